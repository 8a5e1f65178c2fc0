//! The commands' end of the control socket.
//!
//! One [`Connection`] carries one request. Lines and waiting are bounded: a daemon that is gone, stuck or talks nonsense
//! ends in an error, never in a hang that Ctrl-C cannot end. Closing the socket tells the daemon to stop the job.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::locate::{ANSWER_WITHIN_S, socket_of};
use super::mountinfo::{MountEntry, read};
use super::protocol::{MountInfo, Reply, Request, Summary};
use super::{ControlError, ControlResult};

/// Longest line either side may send, bytes.
pub const LINE_BYTES_MAX: u64 = 4 << 20;
/// Most paths in one request; more are asked for in turns.
pub const REQUEST_PATHS_MAX: usize = 1_000;

/// An open control socket.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<UnixStream>,
}

impl Connection {
    /// Connects to the daemon at `socket`. `patience` bounds the wait for every single reply line; `None` waits as long
    /// as the job takes (transfers).
    pub fn open(socket: &Path, patience: Option<Duration>) -> ControlResult<Self> {
        let fail = |error| ControlError::Unreachable { socket: socket.to_owned(), error };
        let stream = UnixStream::connect(socket).map_err(fail)?;
        stream.set_read_timeout(patience).map_err(fail)?;
        stream.set_write_timeout(Some(Duration::from_secs(ANSWER_WITHIN_S))).map_err(fail)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends `request` and hands every reply but the last to `each`; gives the summary of the last. The connection
    /// stays open until it is dropped, which matters after [`Request::Quiesce`].
    pub fn ask(
        &mut self,
        request: &Request,
        each: &mut dyn FnMut(Reply) -> ControlResult<()>,
    ) -> ControlResult<Summary> {
        let broken = |reason: String| ControlError::Broken { reason };
        let mut line = serde_json::to_vec(request).map_err(|error| broken(error.to_string()))?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).map_err(|error| broken(error.to_string()))?;
        loop {
            line.clear();
            let len = (&mut self.stream).take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
            match len {
                Ok(0) => return Err(broken("the end came early".into())),
                Ok(_) if line.last() != Some(&b'\n') => {
                    return Err(broken("a line came incomplete or too long".into()));
                }
                Ok(_) => {}
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                    return Err(broken("no answer in time".into()));
                }
                Err(error) => return Err(broken(error.to_string())),
            }
            let reply = serde_json::from_slice(&line)
                .map_err(|error| broken(format!("an answer is not understood ({error}); versions may differ")))?;
            match reply {
                Reply::Done(summary) => return Ok(summary),
                Reply::Error { message } => return Err(ControlError::Refused(message)),
                other => each(other)?,
            }
        }
    }
}

/// Asks a mount what it is.
pub fn mount_info(mounts: &[MountEntry], mount: &MountEntry) -> ControlResult<MountInfo> {
    let socket = socket_of(mounts, mount)?;
    let mut info = None;
    let mut connection = Connection::open(&socket, Some(Duration::from_secs(ANSWER_WITHIN_S)))?;
    connection.ask(&Request::Mount, &mut |reply| {
        if let Reply::Mount(told) = reply {
            info = Some(told);
        }
        Ok(())
    })?;
    info.ok_or_else(|| ControlError::Broken { reason: "it did not say what it is".into() })
}

/// The mount that runs over the share at `share`, if there is one: its mount point and what it says.
/// A mount that cannot be asked is an error only when the kernel's list says it is the one.
pub fn mount_of_share(share: &Path) -> ControlResult<Option<(PathBuf, MountInfo)>> {
    let mounts = read().map_err(ControlError::NoMountInfo)?;
    Ok(find(&mounts, share)?.map(|(mount, info)| (mount.mount_point.clone(), info)))
}

/// The same mount, and a connection to it that waits as long as it takes.
pub fn connection_of_share(share: &Path) -> ControlResult<Option<(MountInfo, Connection)>> {
    let mounts = read().map_err(ControlError::NoMountInfo)?;
    let Some((mount, info)) = find(&mounts, share)? else { return Ok(None) };
    Ok(Some((info, Connection::open(&socket_of(&mounts, mount)?, None)?)))
}

fn find<'m>(mounts: &'m [MountEntry], share: &Path) -> ControlResult<Option<(&'m MountEntry, MountInfo)>> {
    let canonical = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let share = canonical(share);
    for mount in mounts.iter().filter(|mount| mount.is_tierfs() && mount.root == Path::new("/")) {
        match mount_info(mounts, mount) {
            Ok(info) if canonical(Path::new(&info.share)) == share => return Ok(Some((mount, info))),
            Ok(_) => {}
            Err(error) if Path::new(&mount.source) == share => return Err(error),
            Err(_) => {}
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::super::protocol::Progress;
    use super::*;

    /// A daemon that answers one request with `answer` and closes.
    fn ask_a_daemon_that_says(answer: &'static [u8]) -> (ControlResult<Summary>, Vec<Reply>) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let daemon = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), Request::Mount);
            stream.get_mut().write_all(answer).unwrap();
        });
        let mut replies = Vec::new();
        let result =
            Connection::open(&socket, Some(Duration::from_secs(5))).unwrap().ask(&Request::Mount, &mut |reply| {
                replies.push(reply);
                Ok(())
            });
        daemon.join().unwrap();
        (result, replies)
    }

    const DONE: &str = r#"{"reply":"done","files":2,"bytes":7,"unchanged":0,"skipped":0,"failed":0,"seconds":0.5}"#;

    #[test]
    fn replies_come_in_order_and_end_with_the_summary() {
        let answer: &'static [u8] = format!(
            "{}\n{DONE}\n",
            r#"{"reply":"progress","files_total":2,"files_done":1,"bytes_total":7,"bytes_done":3,"walked":true}"#
        )
        .leak()
        .as_bytes();
        let (result, replies) = ask_a_daemon_that_says(answer);
        assert_eq!(result.unwrap().files, 2);
        let want = Progress { files_total: 2, files_done: 1, bytes_total: 7, bytes_done: 3, walked: true };
        assert_eq!(replies, vec![Reply::Progress(want)]);
    }

    #[test]
    fn what_goes_wrong_is_told() {
        for (answer, piece) in [
            (&b""[..], "the end came early"),
            (b"{\"reply\":\"done\"", "incomplete"),
            (b"hello\n", "not understood"),
            (b"{\"reply\":\"error\",\"message\":\"no pair\"}\n", "no pair"),
        ] {
            let message = ask_a_daemon_that_says(answer).0.unwrap_err().to_string();
            assert!(message.contains(piece), "{message}");
        }
    }

    #[test]
    fn nobody_there() {
        let dir = tempfile::tempdir().unwrap();
        let message = Connection::open(&dir.path().join("none"), None).unwrap_err().to_string();
        assert!(message.contains("cannot reach the daemon"), "{message}");
    }

    #[test]
    fn a_silent_daemon_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let _listener = UnixListener::bind(&socket).unwrap();
        let mut connection = Connection::open(&socket, Some(Duration::from_millis(50))).unwrap();
        let message = connection.ask(&Request::Mount, &mut |_| Ok(())).unwrap_err().to_string();
        assert!(message.contains("no answer in time"), "{message}");
    }
}
