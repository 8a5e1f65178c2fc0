//! Extended attributes: the share's own, without the records; and the virtual `user.tierfs.*`, which show and steer tiering.
//!
//! Nobody reads, writes, lists or removes a record through the mount: a forged one would read another user's object, and one
//! copied by `cp -a` or `rsync -X` would make two files claim one object.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::error::{FsError, FsResult};
use super::{Fs, ROOT};
use crate::catalog::index::Who;
use crate::engine::{Candidate, JobKind, state_of};
use crate::ports::{Caller, FileKind, LowerError};
use crate::types::SOCKET_XATTR;

const VIRTUAL: &str = "user.tierfs.";
const HIDDEN: [&str; 2] = [VIRTUAL, "trusted.tierfs."];

/// A virtual attribute that was set: what to do.
pub struct Command {
    kind: JobKind,
    file: Candidate,
}

fn is_ours(name: &OsStr) -> bool {
    HIDDEN.iter().any(|prefix| name.as_bytes().starts_with(prefix.as_bytes()))
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
        let Some(name) = name.to_str().and_then(|name| name.strip_prefix(VIRTUAL)) else {
            return Err(FsError::NoAttribute);
        };
        if !matches!(name, "state" | "pair" | "pin") || self.lower.stat(&node)?.kind != FileKind::Regular {
            return Err(FsError::NoAttribute);
        }
        let cell = match self.engine.cells.get(&node) {
            Err(error) if error.is_damage() && name == "state" => return Ok(b"damaged".to_vec()),
            found => found?,
        };
        let inner = cell.lock();
        match name {
            "state" => Ok(state_of(&inner).as_str().into()),
            "pin" => Ok(if inner.machine.pinned() { b"1".to_vec() } else { b"0".to_vec() }),
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
            if name == "system.posix_acl_access" {
                self.lower.set_acl(&node, value, flags, who)?;
            } else {
                self.lower.set_xattr(&node, name, value, flags)?;
            }
            self.recorder().changed(&node);
            return Ok(None);
        }
        let verb = name.to_str().and_then(|name| name.strip_prefix(VIRTUAL)).ok_or(FsError::NotPermitted)?;
        let kind = match (verb, value) {
            ("migrate", _) => JobKind::Migrate,
            ("release", _) => JobKind::Release,
            ("recall", _) => JobKind::Recall,
            ("pin", b"0") => JobKind::Unpin,
            ("pin", b"1" | b"") => JobKind::Pin,
            ("pin", _) => return Err(FsError::Invalid("pin is 0 or 1")),
            _ => return Err(FsError::NotPermitted),
        };
        let attr = self.lower.stat(&node)?;
        // Write permission is not enough: these move the owner's content.
        if who.uid != 0 && who.uid != attr.uid {
            return Err(FsError::NotPermitted);
        }
        if kind == JobKind::Recall {
            self.recorder().wanted_by(node.id, Who::User { uid: who.uid, pid: who.pid });
        }
        let path = self.lower.path_of(&node)?.unwrap_or_else(|| PathBuf::from("unnamed"));
        Ok(Some(Command { kind, file: Candidate { node, attr, path } }))
    }

    /// Carries out a command and waits for its end.
    pub async fn run_command(&self, command: Command) -> FsResult<()> {
        let ended = self.engine.run_locked(command.kind, &command.file).await;
        if let Err(error) = &ended
            && !error.is_skip()
        {
            // Who asks by an attribute is answered by a number only.
            tracing::warn!(path = %command.file.path.display(), "{:?} failed: {error}", command.kind);
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

    pub fn remove_xattr(&self, id: u64, name: &OsStr) -> FsResult<()> {
        self.check_writable()?;
        if is_ours(name) {
            return Err(LowerError::from_errno("removexattr", libc::ENODATA).into());
        }
        let node = self.node(id)?;
        self.lower.remove_xattr(&node, name)?;
        self.recorder().changed(&node);
        Ok(())
    }
}
