//! Setuid, setgid and file capabilities of a file whose content only comes and goes: recall writes, release punches.
//!
//! Invariant: whoever dies in between, the capability is in the file or in its copy beside it (unless there was no room for one),
//! and the next who changes the file this way puts it back. A file that counts as dual is changed by nobody, so a transfer puts it back before
//! ([`Kept::put_back`]). The kernel takes capabilities at every change of content, and nothing stops it; set-id bits it leaves to those who have
//! `CAP_FSETID`.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{XattrFlags, fgetxattr, fremovexattr, fsetxattr};
use rustix::io::Errno;

use super::Step;
use super::creds::with_fsetid;
use crate::kill;
use crate::ports::{Keep, LowerResult};

const CAPABILITY: &str = "security.capability";
/// Hidden from users of the mount like everything by this prefix.
const COPY: &str = "trusted.tierfs.capability";
/// `XATTR_CAPS_SZ_3` is 24 bytes; a later revision has room here.
const BYTES_MAX: usize = 256;

pub(super) struct Kept {
    fd: Arc<OwnedFd>,
    keep: Keep,
    state: Mutex<State>,
}

enum State {
    Untouched,
    /// Changed, or about to be; the capability to put back.
    Changed(Option<Vec<u8>>),
}

impl Kept {
    pub(super) fn new(fd: Arc<OwnedFd>, keep: Keep) -> Self {
        Self { fd, keep, state: Mutex::new(State::Untouched) }
    }

    /// Makes a change of content.
    pub(super) fn through<T>(&self, change: impl FnOnce() -> LowerResult<T>) -> LowerResult<T> {
        {
            let mut state = self.state.lock();
            if let State::Untouched = *state {
                *state = State::Changed(self.copy_capability()?);
                kill::point("capability.copied");
            }
        }
        with_fsetid(change)
    }

    /// Ends the changes made so far: what they took is in the file again, as is what an interrupted transfer left beside it. The next change begins anew.
    pub(super) fn put_back(&self) -> LowerResult<()> {
        let mut state = self.state.lock();
        let found = match std::mem::replace(&mut *state, State::Untouched) {
            State::Changed(found) => found,
            State::Untouched => self.copy_capability()?,
        };
        found.map_or(Ok(()), |capability| self.restore(&capability))
    }

    fn restore(&self, capability: &[u8]) -> LowerResult<()> {
        match fsetxattr(&*self.fd, CAPABILITY, capability, XattrFlags::empty()) {
            // As for the copy: no reason to keep the content away for ever.
            Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::PERM)) => {
                tracing::warn!(%errno, "a program's capabilities could not be put back; they stay in {COPY}");
                return Ok(());
            }
            put => put.step("fsetxattr")?,
        }
        kill::point("capability.put_back");
        match fremovexattr(&*self.fd, COPY) {
            Err(Errno::NODATA) => Ok(()),
            removed => removed.step("fremovexattr"),
        }
    }

    /// The copy is made before the first change, in the same journal of the filesystem: it cannot be lost before the original.
    fn copy_capability(&self) -> LowerResult<Option<Vec<u8>>> {
        if let Some(found) = self.xattr(CAPABILITY) {
            match fsetxattr(&*self.fd, COPY, &found, XattrFlags::empty()) {
                // Attributes of a user may leave no room for it, or it may not be set. Then a crash costs the capability; the content matters more.
                Err(Errno::NOSPC | Errno::DQUOT | Errno::PERM) => {
                    tracing::warn!("no copy of a program's capabilities can be kept")
                }
                copied => copied.step("fsetxattr")?,
            }
            return Ok(Some(found));
        }
        if self.keep == Keep::OwnAndLeft {
            return Ok(self.xattr(COPY));
        }
        // Left by somebody who did not come to the end, and of older content: it must not come back with this.
        match fremovexattr(&*self.fd, COPY) {
            // PERM: who may not use `trusted.*` has left nothing there.
            Err(errno) if !matches!(errno, Errno::NODATA | Errno::NOTSUP | Errno::PERM) => {
                Err(errno).step("fremovexattr")
            }
            _ => Ok(None),
        }
    }

    /// `None` also where there are no such attributes.
    fn xattr(&self, name: &str) -> Option<Vec<u8>> {
        let mut buffer = [0; BYTES_MAX];
        let len = fgetxattr(&*self.fd, name, &mut buffer).ok()?;
        Some(buffer[..len].to_vec())
    }
}

/// For who failed in between.
impl Drop for Kept {
    fn drop(&mut self) {
        if let State::Changed(Some(_)) = self.state.get_mut()
            && let Err(error) = self.put_back()
        {
            tracing::warn!(%error, "a program's capabilities could not be put back; they stay in {COPY}");
        }
    }
}
