//! Extended attributes: the share's own, without the records; and the virtual `user.tierfs.*`, which show and steer tiering.
//!
//! Nobody reads, writes, lists or removes a record through the mount: a forged one would read another user's object, and one
//! copied by `cp -a` or `rsync -X` would make two files claim one object.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use tokio::time::Instant;

use super::error::{FsError, FsResult};
use super::wait::Waiter;
use super::{Fs, ROOT};
use crate::catalog::index::Who;
use crate::engine::{Candidate, JobKind, state_of};
use crate::ports::{Caller, FileKind, LowerError};
use crate::types::{Inode, RECALLS_XATTR, RecallPolicy, SOCKET_XATTR};

const VIRTUAL: &str = "user.tierfs.";
const RECALL_POLICY: &str = "recall_policy";
/// What happens to the file, from the first time it is asked for.
const TRACE: &str = "trace";
/// Longest value that the kernel takes.
const XATTR_MAX: usize = 64 << 10;
const HIDDEN: [&str; 2] = [VIRTUAL, "trusted.tierfs."];

/// A virtual attribute that was set: what to do.
pub struct Command {
    what: What,
    file: Candidate,
    who: Waiter,
}

enum What {
    Job(JobKind),
    /// End the recall that runs.
    Cancel,
}

fn is_ours(name: &OsStr) -> bool {
    HIDDEN.iter().any(|prefix| name.as_bytes().starts_with(prefix.as_bytes()))
}

fn digit(on: bool) -> Vec<u8> {
    if on { b"1".to_vec() } else { b"0".to_vec() }
}

impl Fs {
    pub fn xattr(&self, id: u64, name: &OsStr, who: &Caller) -> FsResult<Vec<u8>> {
        let node = self.node(id)?;
        if !is_ours(name) {
            // The kernel asks for `security.capability` before the first write to an open file.
            let open = self.engine.cells.live(node.id).and_then(|cell| cell.lock().backing_file.clone());
            return Ok(match open {
                Some(file) => file.xattr(name)?,
                None => self.lower.xattr(&node, name)?,
            });
        }
        if id == ROOT && name == SOCKET_XATTR && who.uid == 0 {
            let socket = self.options.socket.as_ref().ok_or(FsError::NoAttribute)?;
            return Ok(socket.as_os_str().as_bytes().to_vec());
        }
        if id == ROOT && name == RECALLS_XATTR {
            return Ok(self.recalls_of(who.uid));
        }
        let Some(name) = name.to_str().and_then(|name| name.strip_prefix(VIRTUAL)) else {
            return Err(FsError::NoAttribute);
        };
        if name == RECALL_POLICY && self.lower.stat(&node)?.kind == FileKind::Directory {
            let policy = self.engine.directory_policy(&node)?.ok_or(FsError::NoAttribute)?;
            return Ok(policy.as_str().into());
        }
        if name == TRACE {
            let attr = self.lower.stat(&node)?;
            if attr.kind != FileKind::Regular {
                return Err(FsError::NoAttribute);
            }
            // It tells who else uses the file.
            if who.uid != 0 && who.uid != attr.uid {
                return Err(FsError::NotPermitted);
            }
            return Ok(self.engine.trace.read(node.id));
        }
        if !matches!(name, "state" | "pair" | "pin" | "retain") || self.lower.stat(&node)?.kind != FileKind::Regular {
            return Err(FsError::NoAttribute);
        }
        let cell = match self.engine.cells.get(&node) {
            Err(error) if error.is_damage() && name == "state" => return Ok(b"damaged".to_vec()),
            found => found?,
        };
        let inner = cell.lock();
        match name {
            "state" => Ok(state_of(&inner).as_str().into()),
            "pin" => Ok(digit(inner.machine.pinned())),
            "retain" => Ok(digit(inner.record.flags.retained)),
            _ => match &inner.record.object {
                Some(object) => Ok(object.pair.name.as_str().into()),
                None => Err(FsError::NoAttribute),
            },
        }
    }

    /// Sets an attribute. `Some`: it was a virtual one, and the command is to be carried out.
    pub fn set_xattr(
        &self,
        id: u64,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        who: &Caller,
    ) -> FsResult<Option<Command>> {
        self.check_writable()?;
        let node = self.node(id)?;
        if !is_ours(name) {
            let change = self.changing_inode(&node)?;
            if name == "system.posix_acl_access" {
                self.lower.set_acl(&node, value, flags, who)?;
            } else {
                self.lower.set_xattr(&node, name, value, flags)?;
            }
            self.recorder().changed(&node);
            if let Some(change) = change {
                change.touched(&node);
            }
            return Ok(None);
        }
        let verb = name.to_str().and_then(|name| name.strip_prefix(VIRTUAL)).ok_or(FsError::NotPermitted)?;
        if verb == RECALL_POLICY {
            self.set_recall_policy(&node, Some(value), who)?;
            return Ok(None);
        }
        let what = match (verb, value) {
            ("migrate", _) => What::Job(JobKind::Migrate),
            ("release", _) => What::Job(JobKind::Release),
            ("recall", b"cancel") => What::Cancel,
            ("recall", _) => What::Job(JobKind::Recall),
            ("pin", b"0") => What::Job(JobKind::Unpin),
            ("pin", b"1" | b"") => What::Job(JobKind::Pin),
            ("pin", _) => return Err(FsError::Invalid("pin is 0 or 1")),
            // Not its owner: the lock is to hold against him, too.
            ("retain", _) if who.uid != 0 => return Err(FsError::NotPermitted),
            ("retain", b"0") => What::Job(JobKind::Retain { on: false }),
            ("retain", b"1") => What::Job(JobKind::Retain { on: true }),
            ("retain", _) => return Err(FsError::Invalid("retain is 0 or 1")),
            _ => return Err(FsError::NotPermitted),
        };
        let attr = self.lower.stat(&node)?;
        // Write permission is not enough: these move the owner's content.
        if who.uid != 0 && who.uid != attr.uid {
            return Err(FsError::NotPermitted);
        }
        if matches!(what, What::Job(JobKind::Recall)) {
            self.recorder().wanted_by(node.id, Who::User { uid: who.uid, pid: who.pid });
        }
        let path = self.lower.path_of(&node)?.unwrap_or_else(|| PathBuf::from("unnamed"));
        let who = Waiter { pid: who.pid, uid: who.uid, since: Instant::now() };
        Ok(Some(Command { what, file: Candidate { node, attr, path }, who }))
    }

    /// The recalls that run as JSON, one a line: for root all, for others those that they asked for or whose file is theirs. As many as an
    /// attribute can hold.
    fn recalls_of(&self, uid: u32) -> Vec<u8> {
        let own = |node: &Inode| self.lower.stat(node).is_ok_and(|attr| attr.uid == uid);
        let recalls =
            self.engine.running_recalls(|node, by| uid == 0 || by.iter().any(|who| who.uid == uid) || own(node));
        let mut lines = Vec::new();
        for (_, recall) in recalls {
            let Ok(line) = serde_json::to_vec(&recall) else { continue };
            if lines.len() + line.len() < XATTR_MAX {
                lines.extend(line);
                lines.push(b'\n');
            }
        }
        lines
    }

    /// What reads below a directory bring back: its owner's and root's to say.
    fn set_recall_policy(&self, node: &Inode, value: Option<&[u8]>, who: &Caller) -> FsResult<()> {
        let attr = self.lower.stat(node)?;
        if attr.kind != FileKind::Directory {
            return Err(FsError::Invalid("only directories say how their files are recalled"));
        }
        if who.uid != 0 && who.uid != attr.uid {
            return Err(FsError::NotPermitted);
        }
        let parse = |word: &[u8]| std::str::from_utf8(word).ok()?.parse::<RecallPolicy>().ok();
        let policy = value.map(|word| parse(word).ok_or(FsError::Invalid("no such way to recall"))).transpose()?;
        Ok(self.engine.set_directory_policy(node, policy)?)
    }

    /// Carries out a command and waits for its end.
    pub async fn run_command(&self, command: Command) -> FsResult<()> {
        let kind = match command.what {
            What::Job(kind) => kind,
            What::Cancel if self.engine.stop_recall(command.file.node.id).await => return Ok(()),
            What::Cancel => return Err(FsError::Invalid("no recall of it runs")),
        };
        let who = self.gate.requesters.of(command.who);
        let ended = self.engine.run_locked(kind, &command.file, &who).await;
        if let Err(error) = &ended
            && !error.is_skip()
        {
            // Who asks by an attribute is answered by a number only.
            tracing::warn!(path = %command.file.path.display(), "{kind:?} failed: {error}");
        }
        ended?;
        Ok(())
    }

    /// Names, separated and ended by NUL as listxattr(2) wants them. Ours are not among them; `trusted.*` is for root, whom the
    /// kernel's FUSE client does not tell apart here.
    pub fn list_xattrs(&self, id: u64, who: &Caller) -> FsResult<Vec<u8>> {
        let names = self.lower.list_xattrs(&self.node(id)?)?;
        Ok(names
            .into_iter()
            .filter(|name| !is_ours(name) && (who.uid == 0 || !name.as_bytes().starts_with(b"trusted.")))
            .flat_map(|name: OsString| name.into_vec().into_iter().chain([0]))
            .collect())
    }

    pub fn remove_xattr(&self, id: u64, name: &OsStr, who: &Caller) -> FsResult<()> {
        self.check_writable()?;
        if name.as_bytes().strip_prefix(VIRTUAL.as_bytes()) == Some(RECALL_POLICY.as_bytes()) {
            self.xattr(id, name, who)?;
            return self.set_recall_policy(&self.node(id)?, None, who);
        }
        if is_ours(name) {
            return Err(LowerError::from_errno("removexattr", libc::ENODATA).into());
        }
        let node = self.node(id)?;
        let change = self.changing_inode(&node)?;
        self.lower.remove_xattr(&node, name)?;
        self.recorder().changed(&node);
        if let Some(change) = change {
            change.touched(&node);
        }
        Ok(())
    }
}
