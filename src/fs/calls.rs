//! How often the kernel asked for what: each request costs a round trip between the caller and this process, so the number of
//! requests is the price of a call.

use std::sync::atomic::{AtomicU64, Ordering};

/// What can be asked for, in the words of the FUSE protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Call {
    Lookup,
    Forget,
    Getattr,
    Setattr,
    Readlink,
    Mknod,
    Mkdir,
    Symlink,
    Unlink,
    Rmdir,
    Rename,
    Link,
    Open,
    Create,
    Read,
    Write,
    Flush,
    Release,
    Fsync,
    Opendir,
    Readdir,
    Readdirplus,
    Releasedir,
    Fsyncdir,
    Statfs,
    Setxattr,
    Getxattr,
    Listxattr,
    Removexattr,
    Ioctl,
    Fallocate,
    Lseek,
    CopyFileRange,
}

const NAMES: [&str; 33] = [
    "lookup",
    "forget",
    "getattr",
    "setattr",
    "readlink",
    "mknod",
    "mkdir",
    "symlink",
    "unlink",
    "rmdir",
    "rename",
    "link",
    "open",
    "create",
    "read",
    "write",
    "flush",
    "release",
    "fsync",
    "opendir",
    "readdir",
    "readdirplus",
    "releasedir",
    "fsyncdir",
    "statfs",
    "setxattr",
    "getxattr",
    "listxattr",
    "removexattr",
    "ioctl",
    "fallocate",
    "lseek",
    "copy_file_range",
];

/// Counts since the mount. A batch of forgotten inodes counts one by one.
#[derive(Debug)]
pub struct Calls([AtomicU64; NAMES.len()]);

impl Default for Calls {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Calls {
    pub fn note(&self, call: Call) {
        self.0[call as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Everything that can be asked for, by name, with how often it was.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        NAMES.iter().zip(&self.0).map(|(name, count)| (*name, count.load(Ordering::Relaxed)))
    }

    /// What was asked for at all, by name, with how often.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.all().filter(|(_, count)| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_has_its_name() {
        assert_eq!(NAMES.len(), Call::CopyFileRange as usize + 1);
        let calls = Calls::default();
        for (call, name) in
            [(Call::Lookup, "lookup"), (Call::Release, "release"), (Call::CopyFileRange, "copy_file_range")]
        {
            calls.note(call);
            assert!(calls.counts().any(|counted| counted == (name, 1)), "{name}");
        }
        assert_eq!(calls.counts().count(), 3);
    }
}
