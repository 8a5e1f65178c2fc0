//! The kernel's side: mounts, decodes requests, calls `fs`, replies. It decides nothing.

mod adapter;
mod convert;
mod drive;
mod errno;
mod session;

pub use session::{Mount, MountError, MountOptions, kernel_can_pass_through};
