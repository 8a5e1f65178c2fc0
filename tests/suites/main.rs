//! What others wrote to test filesystems, and programs people use, run inside a mount whose files are moved away and back meanwhile:
//! pjdfstest, fsx, fio, git, SQLite, rsync, and an exerciser of our own that knows every byte it wrote.
//!
//! Short forms run with `make test`; what is marked `ignored` is long, and belongs to `make soak` (`docs/testing.md`).
//! Needs root, /dev/fuse, and the tools that `scripts/install-deps.sh` brings.

#[path = "../common/mod.rs"]
mod common;
#[expect(dead_code, reason = "each test binary uses its own part")]
#[path = "../mount/rig.rs"]
mod rig;
#[expect(dead_code, reason = "each test binary uses its own part")]
#[path = "../mount/tools.rs"]
mod tools;

mod dice;
mod exercise;
mod fsx;
mod mover;
mod place;
mod posix;
mod programs;
