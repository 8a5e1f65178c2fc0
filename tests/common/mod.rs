//! What tests of several files share: real filesystems on loop devices.
//!
//! Mounts are made in a mount namespace of the test thread's own, so they vanish with the test however it ends.

#![allow(unsafe_code, reason = "unshare(CLONE_NEWNS) has no safe wrapper")]
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod lower_contract;
pub mod port;

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};

use rustix::mount::{UnmountFlags, unmount};
use tempfile::TempDir;
use tierfs::control::mountinfo::{self, MountEntry};

/// Whether tests that mount can run. Without root they are skipped with a word, but in CI (`CI=true`) that is a failure.
pub fn can_mount() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "this test needs root: it mounts loop devices");
    eprintln!("SKIPPED: this test needs root, because it mounts loop devices");
    false
}

/// Runs a command to its end; panics with all it said unless it succeeds.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {args:?}: {}\n{text}", output.status);
    text
}

/// Moves this thread (and what it starts from now on) into a mount namespace of its own. Once a thread. The machine's own mounts of tierfs are not there:
/// commands that are told no mount take all there are.
pub fn private_mounts() {
    thread_local!(static DONE: Cell<bool> = const { Cell::new(false) });
    static OTHERS: OnceLock<Vec<PathBuf>> = OnceLock::new();
    if !DONE.replace(true) {
        // In the machine's namespace, not in ours.
        let cleaner = cleaner();
        // SAFETY: no file descriptors are unshared.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.expect("unshare(CLONE_NEWNS)");
        run("mount", &["--make-rprivate", "/"]);
        let thread = std::fs::read_link("/proc/thread-self").expect("/proc/thread-self");
        let mut cleaner = cleaner.lock().unwrap();
        writeln!(cleaner.stdin.as_mut().unwrap(), "/proc/{}/ns/mnt", thread.display())
            .expect("who cleans up has ended");
        // Looked for once only: a later thread comes with the mounts of this test.
        let others = OTHERS.get_or_init(|| {
            // The process's own is that of its first thread, which has not moved.
            let mounts = std::fs::read("/proc/thread-self/mountinfo").expect("/proc/thread-self/mountinfo");
            mountinfo::parse(&mounts).into_iter().filter(MountEntry::is_tierfs).map(|mount| mount.mount_point).collect()
        });
        for other in others {
            // It may have ended since.
            let _ = unmount(other, UnmountFlags::DETACH);
        }
    }
}

/// Ends all that is left in the mount namespaces it is told of, when its input ends. It holds them itself, or another test could get the number of one that is gone.
/// With it the namespace goes, and with that the mounts in it and their loop devices.
const AFTERWARDS: &str = r#"
    trap '' INT TERM HUP
    ours=' '
    while read -r path; do
        if exec {held}<"$path"; then ours+="$(stat --dereference --format %i "/proc/$$/fd/$held") "; fi
    done
    stat --dereference --format '%i %n' /proc/[0-9]*/ns/mnt | while read -r namespace name; do
        if [[ $ours == *" $namespace "* ]]; then name=${name#/proc/}; kill -KILL "${name%%/*}"; fi
    done
"#;

/// Who cleans up after this process, however it ends: daemons are in no group of processes that a signal or a time-out would reach.
fn cleaner() -> &'static Mutex<Child> {
    static CLEANER: OnceLock<Mutex<Child>> = OnceLock::new();
    CLEANER.get_or_init(|| {
        let mut command = Command::new("setsid");
        // Its input is a pipe that ends with us.
        command.args(["bash", "-c", AFTERWARDS]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Mutex::new(command.spawn().expect("setsid (util-linux) and bash"))
    })
}

/// A fresh filesystem in a sparse file, mounted by a loop device; gone when dropped.
pub struct LoopFs {
    dir: TempDir,
    /// What is mounted, where it is not the image itself.
    instead: RefCell<Option<PathBuf>>,
    /// Of each mount; each with a comma before it.
    options: &'static str,
    mounted: Cell<bool>,
}

impl LoopFs {
    /// `kind` is "ext4", "xfs" or "btrfs"; `size` in bytes (XFS takes no less than 300 MiB).
    pub fn new(kind: &str, size: u64) -> Self {
        Self::with_options(kind, size, "")
    }

    /// As [`LoopFs::new`], to be mounted with more options, each with a comma before it.
    pub fn with_options(kind: &str, size: u64, options: &'static str) -> Self {
        private_mounts();
        let dir = tempfile::Builder::new().prefix("tierfs-loop-").tempdir().expect("temporary directory");
        let image = dir.path().join("image");
        std::fs::File::create(&image).and_then(|file| file.set_len(size)).expect("sparse image");
        // Small ext4 images would get blocks of 1 KiB, in which a record and an ACL do not fit together.
        let mut args = if kind == "ext4" { vec!["-q", "-F", "-b", "4096"] } else { vec!["-q", "-f"] };
        if kind == "xfs" && size >= 1 << 40 {
            // Not the 2 GiB that it would write on a filesystem of this size.
            args.extend(["-l", "size=64m"]);
        }
        let image = image.to_str().expect("temporary paths are UTF-8");
        args.push(image);
        run(&format!("mkfs.{kind}"), &args);
        std::fs::create_dir(dir.path().join("mnt")).expect("mount point");
        let fs = Self { dir, instead: RefCell::new(None), options, mounted: Cell::new(false) };
        fs.mount();
        fs
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// The file that holds the filesystem.
    pub fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// From the next mount on, another file is what is mounted: one that stands before the image.
    pub fn mount_instead(&self, file: PathBuf) {
        self.instead.replace(Some(file));
    }

    /// A directory beside the filesystem, on the machine's own.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    pub fn mount(&self) {
        // Others may take the loop device that was free a moment ago.
        for _ in 0..20 {
            if self.try_mount(self.options) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("cannot mount {}: see dmesg", self.image().display());
    }

    /// Mounts with more options (each with a comma before it); false if the kernel refuses.
    pub fn try_mount(&self, options: &str) -> bool {
        let output = Command::new("mount")
            .args(["-o", &format!("loop{options}")])
            .args([self.source(), self.path()])
            .output()
            .expect("mount");
        self.mounted.set(output.status.success());
        output.status.success()
    }

    pub fn unmount(&self) {
        run("umount", &[self.path().to_str().expect("UTF-8")]);
        self.mounted.set(false);
    }

    /// Unmounts if nobody uses it any more; whether the filesystem has ended. A process that is ending may hold it yet, and who mounted it
    /// then would get the old one.
    pub fn try_unmount(&self) -> bool {
        if self.mounted.get() {
            self.mounted.set(rustix::mount::unmount(self.path(), rustix::mount::UnmountFlags::empty()).is_err());
        }
        !self.mounted.get() && !self.has_device()
    }

    /// Whether a loop device stands on what is mounted.
    fn has_device(&self) -> bool {
        let file = self.source();
        let devices = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
        let mut files =
            devices.filter_map(|device| std::fs::read_to_string(device.path().join("loop/backing_file")).ok());
        files.any(|found| Path::new(found.trim_end()) == file)
    }

    fn source(&self) -> PathBuf {
        self.instead.borrow().clone().unwrap_or_else(|| self.image())
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        if self.mounted.get() {
            let path = self.path();
            if !Command::new("umount").arg(&path).status().is_ok_and(|status| status.success()) {
                let _ = Command::new("umount").arg("-l").arg(&path).status();
            }
        }
    }
}
