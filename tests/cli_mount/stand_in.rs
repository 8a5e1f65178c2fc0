//! The stand-in daemon: four files in a FUSE mount with the virtual attributes, and a control socket that answers by script.

use std::collections::HashSet;
use std::ffi::{CString, OsStr};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, ReplyAttr, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyXattr, Request,
};
use serde_json::{Value, json};

const TTL: Duration = Duration::from_secs(1);
/// Inode, parent, name; directories are 1 and 3.
const TREE: [(u64, u64, &str); 5] = [(1, 1, ""), (2, 1, "a"), (3, 1, "sub"), (4, 3, "b"), (5, 3, "busy")];

struct Files {
    socket: PathBuf,
    stubs: Mutex<HashSet<u64>>,
}

fn is_directory(ino: u64) -> bool {
    ino == 1 || ino == 3
}

fn attr(ino: u64) -> FileAttr {
    let directory = is_directory(ino);
    FileAttr {
        ino: INodeNo(ino),
        size: if directory { 0 } else { 5 },
        blocks: 1,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if directory { FileType::Directory } else { FileType::RegularFile },
        perm: if directory { 0o755 } else { 0o666 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4_096,
        flags: 0,
    }
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match TREE.iter().find(|(ino, up, known)| *up == u64::from(parent) && *ino != 1 && OsStr::new(known) == name) {
            Some((ino, ..)) => reply.entry(&TTL, &attr(*ino), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &attr(ino.into()));
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let below = TREE.iter().filter(|(child, up, _)| *up == u64::from(ino) && *child != 1);
        for (i, (child, _, name)) in below.enumerate().skip(offset as usize) {
            if reply.add(INodeNo(*child), i as u64 + 1, attr(*child).kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let ino = u64::from(ino);
        let value = match (name.to_str().unwrap_or_default(), is_directory(ino)) {
            ("user.tierfs.socket", true) if ino == 1 && req.uid() == 0 => self.socket.to_str().unwrap().to_owned(),
            ("user.tierfs.state", false) => {
                if self.stubs.lock().unwrap().contains(&ino) { "stub" } else { "dual" }.to_owned()
            }
            ("user.tierfs.pair", false) => "cold".to_owned(),
            _ => return reply.error(Errno::ENODATA),
        };
        if size == 0 { reply.size(value.len() as u32) } else { reply.data(value.as_bytes()) }
    }

    fn setxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        match (name.to_str(), u64::from(ino)) {
            (_, 5) => reply.error(Errno::EBUSY),
            (Some("user.tierfs.migrate"), ino) => {
                self.stubs.lock().unwrap().insert(ino);
                reply.ok();
            }
            _ => reply.error(Errno::ENODATA),
        }
    }
}

/// Mounts `directory/mnt`, listens on `directory/socket`, notes requests in `directory/asked`; returns when unmounted.
pub fn serve(directory: &Path) {
    // The daemon must never need its own mount; nor may the path of the test.
    std::env::set_current_dir("/").unwrap();
    let socket = directory.join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let place = directory.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let place = place.clone();
            std::thread::spawn(move || answer(&place, stream.unwrap()));
        }
    });
    let device: OwnedFd = std::fs::File::options().read(true).write(true).open("/dev/fuse").unwrap().into();
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
    let data = CString::new(data).unwrap();
    let flags = rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV;
    rustix::mount::mount("/no/share", directory.join("mnt"), "fuse.tierfs", flags, data.as_c_str()).unwrap();
    let files = Files { socket, stubs: Mutex::default() };
    let session = fuser::Session::from_fd(files, device, fuser::SessionACL::All, fuser::Config::default()).unwrap();
    std::fs::write(directory.join("ready"), b"").unwrap();
    // The end of the session is the end of this process, however fuser calls it.
    let _ = session.spawn().and_then(|running| running.join());
    // A daemon has things to put away; a command that does not wait for it is found out.
    std::thread::sleep(Duration::from_millis(500));
}

fn answer(place: &Path, stream: UnixStream) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    let mut log = std::fs::File::options().create(true).append(true).open(place.join("asked")).unwrap();
    log.write_all(line.as_bytes()).unwrap();
    let request: Value = serde_json::from_str(&line).unwrap();
    let mut replies = Vec::new();
    let mut done =
        json!({"reply": "done", "files": 0, "bytes": 0, "unchanged": 0, "skipped": 0, "failed": 0, "seconds": 0.5});
    match request["request"].as_str().unwrap() {
        "mount" => replies.push(json!({
            "reply": "mount", "share": "/no/share", "mountpoint": place.join("mnt"), "pid": std::process::id(),
            "version": "0", "pair": "cold", "pair_problem": null, "intents": [0, 0], "transfers": 0
        })),
        "quiesce" => {}
        "status" => {
            for path in request["paths"].as_array().unwrap().iter().filter(|_| request["files"] == true) {
                replies.push(json!({
                    "reply": "file", "path": path, "state": "dual", "size": 5, "local": 512, "pinned": false,
                    "activity": "archiving", "pair": "cold", "generation": 1, "object": "k"
                }));
            }
            let files = request["paths"].as_array().unwrap().len();
            done["states"] = json!({"dual": {"files": files, "bytes": 5, "local": 512}});
        }
        _ => {
            replies.push(json!({
                "reply": "progress", "files_total": 1, "files_done": 0, "bytes_total": 5, "bytes_done": 0, "walked": true
            }));
            let (busy, free): (Vec<_>, Vec<_>) =
                request["paths"].as_array().unwrap().iter().partition(|path| path.as_str().unwrap().ends_with("busy"));
            for path in &busy {
                replies.push(json!({"reply": "failure", "path": path, "reason": "it is open", "skipped": true}));
            }
            done["skipped"] = busy.len().into();
            done["files"] = free.len().into();
            done["bytes"] = (free.len() * 5).into();
        }
    }
    replies.push(done);
    for reply in replies {
        writeln!(stream.get_mut(), "{reply}").unwrap();
    }
    // Held open, as the client may want it (quiesce), until the client is done.
    let _ = stream.read_line(&mut line);
}
