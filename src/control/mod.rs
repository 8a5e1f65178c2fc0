//! The administrator's socket: what the commands say to a running mount.
//!
//! One connection carries one request: a JSON line; the answer is JSON lines that end with `done` or `error`.
//! Only root may connect: the socket lies in a directory of mode 0700 and the peer's uid is checked. Other users steer
//! their own files by virtual xattrs through the mount ([`by_xattr`]).

pub mod announce;
pub mod background;
mod bring_back;
pub mod by_xattr;
mod choices;
pub mod client;
mod failed;
mod figures;
mod gc;
mod index;
pub mod locate;
pub mod metrics;
pub mod mountinfo;
pub mod names;
mod packs;
pub mod pairs;
pub mod policies;
pub mod policy;
pub mod protocol;
mod recalls;
pub mod scrub;
pub mod server;
pub mod space;
mod sync;
pub mod tasks;
mod told;
mod unfit;

use std::path::PathBuf;

pub type ControlResult<T> = Result<T, ControlError>;

/// Why a mount could not be asked. One line each: the thing, the reason, the way out.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("cannot read /proc/self/mountinfo: {0}; is /proc mounted?")]
    NoMountInfo(std::io::Error),
    #[error("the daemon of the mount at {} is dead: `tierfs umount {}`, then mount again", mountpoint.display(), mountpoint.display())]
    Dead { mountpoint: PathBuf },
    #[error(
        "the mount at {} did not answer within {seconds} s; its daemon is stuck or stopped (see its log)",
        mountpoint.display()
    )]
    Silent { mountpoint: PathBuf, seconds: u64 },
    #[error("the mount at {} does not tell its control socket: {reason}", mountpoint.display())]
    NoSocket { mountpoint: PathBuf, reason: String },
    #[error("cannot reach the daemon at {}: {error}; is it running, and are you root?", socket.display())]
    Unreachable { socket: PathBuf, error: std::io::Error },
    #[error("the daemon closed the connection before it was done: {reason}; ask again, and see its log if it ended")]
    Broken { reason: String },
    /// The daemon's own words.
    #[error("{0}")]
    Refused(String),
}
