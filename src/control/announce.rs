//! Announcements in a file: JSON lines, appended and synced by a thread of their own, many together.
//!
//! Whoever rotates the file renames it: before each batch it is looked whether the name still means the file that is open. A line that a crash or a full disk has
//! torn is ended before the next one, and told again whole.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use crate::ports::{Announcement, Announcer};

/// Lines that wait for the writer; more wait outside.
const WAITING_MAX: usize = 4_096;
/// Lines of one write and sync.
const BATCH_MAX: usize = 1_024;

struct Line {
    text: Vec<u8>,
    told: oneshot::Sender<Result<(), String>>,
}

/// The file's end of the port.
pub struct AnnounceFile {
    lines: mpsc::Sender<Line>,
}

impl AnnounceFile {
    /// Opens the file or makes it (for root only). What is wrong with it is told now.
    pub fn open(path: &Path) -> io::Result<Arc<Self>> {
        let file = open(path)?;
        let (lines, waiting) = mpsc::channel(WAITING_MAX);
        let path = path.to_owned();
        std::thread::Builder::new().name("tierfs-announce".into()).spawn(move || write(&path, file, waiting))?;
        Ok(Arc::new(Self { lines }))
    }
}

#[async_trait]
impl Announcer for AnnounceFile {
    async fn announce(&self, what: &Announcement) -> Result<(), String> {
        let mut text = serde_json::to_vec(what).map_err(|error| error.to_string())?;
        text.push(b'\n');
        let (told, heard) = oneshot::channel();
        let ended = || "its writer has ended".to_owned();
        self.lines.send(Line { text, told }).await.map_err(|_| ended())?;
        heard.await.map_err(|_| ended())?
    }
}

/// Opens the file for appending, on a line of its own.
fn open(path: &Path) -> io::Result<File> {
    // Not to wait for a reader, if it is a pipe.
    let flags = (rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY).bits() as i32;
    let mut file =
        OpenOptions::new().read(true).append(true).create(true).mode(0o600).custom_flags(flags).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if found.len() > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
        }
    } else if let Some(dir) = path.parent() {
        // The name must outlive a crash as the lines do.
        File::open(dir)?.sync_all()?;
    }
    Ok(file)
}

fn is_same(path: &Path, file: &File) -> io::Result<bool> {
    let own = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (own.dev(), own.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn append(path: &Path, file: &mut Option<File>, text: &[u8]) -> io::Result<()> {
    let fits = match file.as_ref() {
        Some(file) => is_same(path, file)?,
        None => false,
    };
    if !fits {
        *file = Some(open(path)?);
    }
    let Some(file) = file.as_mut() else { return Ok(()) };
    file.write_all(text)?;
    file.sync_data()
}

fn write(path: &Path, file: File, mut waiting: mpsc::Receiver<Line>) {
    let mut file = Some(file);
    let mut failing = false;
    let mut batch = Vec::new();
    while waiting.blocking_recv_many(&mut batch, BATCH_MAX) > 0 {
        let text: Vec<u8> = batch.iter().flat_map(|line| &line.text).copied().collect();
        let written = append(path, &mut file, &text).map_err(|error| error.to_string());
        match &written {
            Ok(()) if failing => tracing::info!(path = %path.display(), "announcements are written again"),
            Err(error) if !failing => {
                tracing::error!(path = %path.display(), "announcements cannot be written and wait: {error}");
            }
            _ => {}
        }
        failing = written.is_err();
        if failing {
            // What a failed write or sync has left in it is not known.
            file = None;
        }
        for line in batch.drain(..) {
            // Who does not wait any more tells again.
            let _ = line.told.send(written.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::WirePath;

    fn announcement(id: &str) -> Announcement {
        let path = WirePath::from_path(Path::new("a\nb"));
        Announcement { id: id.into(), time: 1, event: "archived", path, inode: 2, file: None, failure: None }
    }

    fn ids(path: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines.map(|line| line["id"].as_str().unwrap().to_owned()).collect()
    }

    #[tokio::test]
    async fn lines_are_appended_and_a_renamed_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("announced");
        std::fs::write(&path, b"{\"id\":\"0\"}\n{\"id\":\"to").unwrap();
        let file = AnnounceFile::open(&path).unwrap();
        file.announce(&announcement("1")).await.unwrap();
        assert_eq!(ids(&path), ["0", "1"], "a torn line is ended");
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        file.announce(&announcement("2")).await.unwrap();
        assert_eq!((ids(&path), ids(&dir.path().join("old"))), (vec!["2".into()], vec!["0".into(), "1".into()]));
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(file.announce(&announcement("3")).await.is_err());
        std::fs::remove_dir(&path).unwrap();
        file.announce(&announcement("3")).await.unwrap();
        assert_eq!(ids(&path), ["3"]);
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(AnnounceFile::open(dir.path()).is_err());
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(AnnounceFile::open(&pipe).is_err());
        assert!(AnnounceFile::open(&dir.path().join("none/file")).is_err());
    }
}
