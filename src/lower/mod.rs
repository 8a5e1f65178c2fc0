//! The share below the mount: handles, xattr records, holes, leases. The only module with `unsafe`.
//!
//! [`Share`] is the real [`Lower`](crate::ports::Lower). Three things hold throughout:
//!
//! - An inode is reached by descriptor, never by a remembered path. What `stat` says of it and its file handle always
//!   come from one and the same descriptor, so no rename in between can mix two files up.
//! - Nothing but a regular file or a directory is ever opened for I/O; devices, fifos and sockets are only `O_PATH`.
//! - A thread that acted as somebody else is itself again when the call returns; if it cannot be, the process aborts.

mod as_user;
mod attr;
mod creds;
mod dir;
mod fdcache;
mod file;
mod handle;
mod kept;
mod lease;
mod namespace;
mod number;
mod path;
mod probe;
mod project;
mod quota;
mod setattr;
mod share;
mod survey;
mod xattr;

pub use as_user::{Access, Dir, Seen};
pub use creds::drop_privileges;
pub use lease::ignore_sigio;
pub use quota::{QuotaOf, quota};
pub use share::{DESCRIPTORS_MAX_DEFAULT, Share};
pub use survey::{Survey, Surveyed};

use crate::ports::{LowerError, LowerResult};

/// Names the step that failed, in the words of the call's man page.
trait Step<T> {
    fn step(self, op: &'static str) -> LowerResult<T>;
}

impl<T> Step<T> for Result<T, rustix::io::Errno> {
    fn step(self, op: &'static str) -> LowerResult<T> {
        self.map_err(|errno| LowerError { op, source: errno.into() })
    }
}

impl<T> Step<T> for std::io::Result<T> {
    fn step(self, op: &'static str) -> LowerResult<T> {
        self.map_err(|source| LowerError { op, source })
    }
}
