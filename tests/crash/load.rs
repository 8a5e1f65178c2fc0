//! Who works with the files while the daemon lives: writers with a tree of their own, of which they note every change and every sync;
//! movers that archive, release and recall; a reader of files that never change.
//!
//! Everybody goes on until told to stop, or until something fails: of which only the daemon's death can be the reason.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::FallocateFlags;

use crate::dice::Dice;
use crate::mover::identity;
use crate::oracle::{BodyId, Change, Found, Loss, Seen, Tree};
use crate::rig::*;

/// Names of a writer, in two directories.
const NAMES: [&str; 6] = ["a", "b", "c", "d", "x/a", "x/b"];
/// Steps of a writer that a failure shows.
const STORY: usize = 60;
/// Refusals of a transfer that `docs/semantics.md` names, and a file that went meanwhile.
const REFUSALS: [i32; 7] =
    [libc::EBUSY, libc::ENOENT, libc::ESTALE, libc::EINVAL, libc::EPERM, libc::EOPNOTSUPP, libc::EISDIR];

pub struct Writer {
    mount: PathBuf,
    directory: PathBuf,
    pub tree: Tree,
    dice: Dice,
    story: VecDeque<String>,
    /// Whether the power has gone: an answer after that says nothing.
    lost: Arc<AtomicBool>,
    /// What ended it, unless it was told to stop.
    pub ended_by: Option<String>,
    pub steps: u64,
    /// It changes what is there, and syncs nothing: then what tiering syncs is all that is synced.
    pub calm: bool,
}

/// What a writer is doing with a file that it has open.
struct Open {
    file: File,
    body: BodyId,
    /// With O_SYNC.
    durable: bool,
}

impl Writer {
    /// Makes the writer's directories; they are to be made durable before anything is lost.
    pub fn new(mount: &Path, number: u64, seed: u64, lost: Arc<AtomicBool>) -> Self {
        let directory = PathBuf::from(format!("w{number}"));
        fs::create_dir_all(mount.join(&directory).join("x")).unwrap();
        Self {
            mount: mount.to_owned(),
            directory,
            tree: Tree::default(),
            dice: Dice::new(seed ^ (number + 1) << 40),
            story: VecDeque::new(),
            lost,
            ended_by: None,
            steps: 0,
            calm: false,
        }
    }

    /// All names that movers may try.
    pub fn paths(&self) -> Vec<PathBuf> {
        NAMES.map(|name| self.mount.join(&self.directory).join(name)).to_vec()
    }

    pub fn work(&mut self, stop: &AtomicBool) {
        self.ended_by = None;
        while !stop.load(Ordering::Relaxed) {
            if let Err(error) = self.step() {
                self.ended_by = Some(format!("{}: {error}", self.story.back().map_or("", String::as_str)));
                return;
            }
            if self.dice.once_in(4) {
                std::thread::sleep(Duration::from_micros(self.dice.below(4000)));
            }
        }
    }

    fn tell(&mut self, what: String) {
        self.steps += 1;
        self.story.push_back(format!("{} {what}", self.steps));
        if self.story.len() > STORY {
            self.story.pop_front();
        }
    }

    pub fn story(&self) -> String {
        self.story.iter().map(|step| format!("\n  {step}")).collect()
    }

    /// Whether to sync, once in `n` where anything is.
    fn syncs(&mut self, n: u64) -> bool {
        self.dice.once_in(n) && !self.calm
    }

    fn some_name(&mut self) -> PathBuf {
        self.directory.join(NAMES[self.dice.below(NAMES.len() as u64) as usize])
    }

    fn some_bytes(&mut self) -> Vec<u8> {
        let limit = [100, 5000, 70_000, 200_000][self.dice.below(4) as usize];
        let len = 1 + self.dice.below(limit) as usize;
        self.dice.bytes(len)
    }

    fn step(&mut self) -> io::Result<()> {
        let name = self.some_name();
        let Some(body) = self.tree.at(&name) else {
            let durable = self.syncs(6);
            return self.create(&name, durable).map(drop);
        };
        // Of the calm, one in four steps is as any other but for a sync.
        match if self.calm && !self.dice.once_in(4) { 17 } else { self.dice.below(32) } {
            0..=2 => self.rewrite(&name, body),
            3..=5 => self.replace(&name),
            6 | 7 => self.unlink(&name),
            8 | 9 => self.rename(&name),
            10 => self.link(&name, body),
            11..=13 => self.cut(&name, body),
            14..=16 => self.append(&name, body),
            17..=20 => self.patch(&name, body),
            21..=24 if !self.calm => self.sync(&name, body),
            25 if !self.calm => self.sync_directory(&name),
            26 => self.date(&name),
            _ => self.read(&name, body),
        }
    }

    /// Whether what was just answered was answered while there was power. A filesystem that is shut down in the midst of a sync may call it
    /// done.
    fn answered(&self) -> io::Result<()> {
        if self.lost.load(Ordering::SeqCst) { Err(io::Error::other("answered after the power went")) } else { Ok(()) }
    }

    /// fsync(2), or fdatasync(2), of a file.
    fn sync_open(&mut self, file: &File, body: BodyId, data_only: bool) -> io::Result<()> {
        if data_only {
            file.sync_data()?;
        } else {
            file.sync_all()?;
        }
        self.answered()?;
        self.tree.synced(body, data_only);
        Ok(())
    }

    fn at(&self, name: &Path) -> PathBuf {
        self.mount.join(name)
    }

    fn write(&mut self, open: &Open, at: usize, data: Vec<u8>) -> io::Result<()> {
        let change = Change::Write { at, data: data.clone(), durable: open.durable };
        self.tree.body(open.body).begin(change);
        open.file.write_all_at(&data, at as u64)?;
        if open.durable {
            self.answered()?;
        }
        self.tree.body(open.body).done();
        if open.durable {
            self.tree.names_synced(open.body);
        }
        Ok(())
    }

    /// A new file with some content; perhaps synced.
    fn create(&mut self, name: &Path, durable: bool) -> io::Result<BodyId> {
        let data = self.some_bytes();
        let (sync, twice) = (self.syncs(3), self.dice.once_in(3));
        self.tell(format!("create {} with {} bytes, O_SYNC {durable}, fsync {sync}", name.display(), data.len()));
        let body = self.tree.new_body();
        self.tree.begin(&[(name, Some(body))]);
        let flags = if durable { libc::O_SYNC } else { 0 };
        let file = OpenOptions::new().create_new(true).write(true).custom_flags(flags).open(self.at(name))?;
        self.tree.done();
        self.tree.body(body).ino = Some(file.metadata()?.ino());
        let open = Open { file, body, durable };
        let cut = if twice { data.len() / 2 } else { 0 };
        for (at, part) in [(0, &data[..cut]), (cut, &data[cut..])] {
            if !part.is_empty() {
                self.write(&open, at, part.to_vec())?;
            }
        }
        if sync {
            self.sync_open(&open.file, body, false)?;
        }
        Ok(body)
    }

    fn rewrite(&mut self, name: &Path, body: BodyId) -> io::Result<()> {
        let (data, sync) = (self.some_bytes(), self.syncs(2));
        self.tell(format!("rewrite {} with {} bytes, fsync {sync}", name.display(), data.len()));
        self.tree.body(body).begin(Change::Resize(0));
        let file = OpenOptions::new().write(true).truncate(true).open(self.at(name))?;
        self.tree.body(body).done();
        let open = Open { file, body, durable: false };
        self.write(&open, 0, data)?;
        if sync {
            self.sync_open(&open.file, body, false)?;
        }
        Ok(())
    }

    /// As editors do: a new file beside it, synced or not, renamed over it.
    fn replace(&mut self, name: &Path) -> io::Result<()> {
        let beside = name.with_extension("new");
        if self.tree.at(&beside).is_some() {
            self.unlink(&beside)?;
        }
        let body = self.create(&beside, false)?;
        self.tell(format!("rename {} over {}", beside.display(), name.display()));
        self.tree.begin(&[(&beside, None), (name, Some(body))]);
        fs::rename(self.at(&beside), self.at(name))?;
        self.tree.done();
        if self.syncs(3) { self.sync_directory(name) } else { Ok(()) }
    }

    fn unlink(&mut self, name: &Path) -> io::Result<()> {
        self.tell(format!("unlink {}", name.display()));
        self.tree.begin(&[(name, None)]);
        fs::remove_file(self.at(name))?;
        self.tree.done();
        if self.syncs(3) { self.sync_directory(name) } else { Ok(()) }
    }

    fn rename(&mut self, from: &Path) -> io::Result<()> {
        let to = self.some_name();
        // Of two names of one file, rename(2) leaves both.
        if self.tree.at(from) == self.tree.at(&to) {
            return Ok(());
        }
        self.tell(format!("rename {} to {}", from.display(), to.display()));
        self.tree.begin(&[(from, None), (&to, self.tree.at(from))]);
        fs::rename(self.at(from), self.at(&to))?;
        self.tree.done();
        match self.dice.below(6) {
            0 if !self.calm => self.sync_directory(from),
            1 if !self.calm => self.sync_directory(&to),
            _ => Ok(()),
        }
    }

    fn link(&mut self, from: &Path, body: BodyId) -> io::Result<()> {
        let to = self.some_name();
        if self.tree.at(&to).is_some() {
            return Ok(());
        }
        self.tell(format!("link {} as {}", from.display(), to.display()));
        self.tree.begin(&[(&to, Some(body))]);
        fs::hard_link(self.at(from), self.at(&to))?;
        self.tree.done();
        Ok(())
    }

    fn cut(&mut self, name: &Path, body: BodyId) -> io::Result<()> {
        let len = self.tree.body(body).content().len();
        let to = match self.dice.below(4) {
            0 => 0,
            1 => len + self.dice.below(50_000) as usize,
            _ => self.dice.below(len as u64 + 1) as usize,
        };
        self.tell(format!("truncate {} to {to}", name.display()));
        self.tree.body(body).begin(Change::Resize(to));
        truncate(&self.at(name), to as u64)?;
        self.tree.body(body).done();
        Ok(())
    }

    fn append(&mut self, name: &Path, body: BodyId) -> io::Result<()> {
        let (data, sync) = (self.some_bytes(), self.syncs(3));
        self.tell(format!("append {} to {}, fdatasync {sync}", data.len(), name.display()));
        let mut file = OpenOptions::new().append(true).open(self.at(name))?;
        let at = self.tree.body(body).content().len();
        self.tree.body(body).begin(Change::Write { at, data: data.clone(), durable: false });
        file.write_all(&data)?;
        self.tree.body(body).done();
        if sync {
            self.sync_open(&file, body, true)?;
        }
        Ok(())
    }

    /// Writes and holes anywhere, some by O_SYNC.
    fn patch(&mut self, name: &Path, body: BodyId) -> io::Result<()> {
        let durable = self.syncs(4);
        let flags = if durable { libc::O_SYNC } else { 0 };
        self.tell(format!("patch {}, O_SYNC {durable}", name.display()));
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(self.at(name))?;
        let open = Open { file, body, durable };
        for _ in 0..1 + self.dice.below(3) {
            let len = self.tree.body(body).content().len() as u64;
            let at = self.dice.below(len + 5_000) as usize;
            if self.dice.once_in(4) && (at as u64) < len {
                let count = 1 + self.dice.below(len - at as u64) as usize;
                self.tell(format!("  punch {count} at {at}"));
                let change = Change::Write { at, data: vec![0; count], durable: false };
                self.tree.body(body).begin(change);
                let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&open.file, mode, at as u64, count as u64)?;
                self.tree.body(body).done();
            } else {
                let data = self.some_bytes();
                self.tell(format!("  write {} at {at}", data.len()));
                self.write(&open, at, data)?;
            }
        }
        Ok(())
    }

    fn sync(&mut self, name: &Path, body: BodyId) -> io::Result<()> {
        let data_only = self.dice.once_in(3);
        self.tell(format!("sync {}, data only: {data_only}", name.display()));
        let file = File::open(self.at(name))?;
        self.sync_open(&file, body, data_only)
    }

    fn sync_directory(&mut self, name: &Path) -> io::Result<()> {
        let directory = name.parent().expect("names are below a directory").to_owned();
        self.tell(format!("sync directory {}", directory.display()));
        File::open(self.at(&directory))?.sync_all()?;
        self.answered()?;
        self.tree.directory_synced(&directory);
        Ok(())
    }

    fn date(&mut self, name: &Path) -> io::Result<()> {
        self.tell(format!("date {}", name.display()));
        let time = std::time::UNIX_EPOCH + Duration::from_secs(1_500_000_000 + self.dice.below(1_000_000));
        File::open(self.at(name))?.set_times(fs::FileTimes::new().set_modified(time))
    }

    fn read(&mut self, name: &Path, body: BodyId) -> io::Result<()> {
        self.tell(format!("read {}", name.display()));
        let found = fs::read(self.at(name))?;
        self.answered()?;
        if found != self.tree.body(body).content() {
            eprintln!("{}'s last steps:{}", self.directory.display(), self.story());
            assert_same(&found, self.tree.body(body).content(), &format!("{} while all is well", name.display()));
        }
        Ok(())
    }

    /// Looks at every name, and compares.
    pub fn check(&mut self, loss: Loss) -> Result<Seen, String> {
        self.tell(format!("--- {loss:?} lost ---"));
        let mut found: BTreeMap<PathBuf, Option<Found>> = self.tree.names().map(|name| (name.clone(), None)).collect();
        for directory in [self.directory.clone(), self.directory.join("x")] {
            for entry in fs::read_dir(self.at(&directory)).map_err(|error| error.to_string())? {
                let entry = entry.map_err(|error| error.to_string())?;
                if entry.file_type().is_ok_and(|kind| kind.is_file()) {
                    let name = directory.join(entry.file_name());
                    let one = look(&self.at(&name)).map_err(|error| format!("{}: {error}", name.display()))?;
                    found.insert(name, Some(one));
                }
            }
        }
        self.tree.check(found, loss)
    }
}

/// State, content, and, if it is dual, whether its object is the same: released and read again.
pub fn look(path: &Path) -> Result<Found, String> {
    let state = xattr(path, "user.tierfs.state").map_err(|errno| format!("its state: errno {errno}"))?;
    let state = String::from_utf8(state).expect("states are words");
    if !["resident", "dual", "stub", "partial", "patched"].contains(&state.as_str()) {
        return Err(format!("it is {state}"));
    }
    let content = fs::read(path).map_err(|error| format!("{state}: {error}"))?;
    if state == "dual" {
        let released = set_xattr(path, "user.tierfs.pin", b"0")
            .and_then(|()| patiently(path, "user.tierfs.retain", b"0"))
            .and_then(|()| patiently(path, "user.tierfs.release", b"1"));
        let now = || xattr(path, "user.tierfs.state").map(|state| String::from_utf8_lossy(&state).into_owned());
        match released {
            Ok(()) => {}
            // Recalled before, it has given its object up meanwhile.
            Err(libc::EINVAL) if now().as_deref() == Ok("resident") => {}
            Err(errno) => {
                return Err(format!("dual, but it cannot be released: errno {errno}, now it is {:?}", now()));
            }
        }
        let again = fs::read(path).map_err(|error| format!("dual, released: {error}"))?;
        if again != content {
            return Err(format!(
                "dual, but its object of {} bytes is not its {} local ones",
                again.len(),
                content.len()
            ));
        }
    }
    let ino = fs::symlink_metadata(path).map_err(|error| error.to_string())?.ino();
    Ok(Found { ino, content, state })
}

/// The last close may not have been told yet.
fn patiently(path: &Path, name: &str, value: &[u8]) -> Result<(), i32> {
    let deadline = Instant::now() + SOON;
    loop {
        match set_xattr(path, name, value) {
            Err(libc::EBUSY) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            ended => return ended,
        }
    }
}

/// Archives, releases and recalls until told to stop, or until a request is not answered; how often it was done.
pub fn move_files(paths: &[PathBuf], seed: u64, stop: &AtomicBool, done: &AtomicU64) -> Option<String> {
    let mut dice = Dice::new(seed);
    while !stop.load(Ordering::Relaxed) {
        let path = &paths[dice.below(paths.len() as u64) as usize];
        // A pinned file that is migrated is archived only.
        let verbs: [(&str, &[u8]); 11] = [
            ("migrate", b"1"),
            ("migrate", b"1"),
            ("migrate", b"1"),
            ("release", b"1"),
            ("recall", b"1"),
            ("recall", b"1"),
            ("pin", b"1"),
            ("pin", b"0"),
            ("retain", b"1"),
            ("retain", b"0"),
            ("retain", b"0"),
        ];
        let seen = identity(path);
        let (verb, value) = verbs[dice.below(verbs.len() as u64) as usize];
        match set_xattr(path, &format!("user.tierfs.{verb}"), value) {
            Ok(()) => drop(done.fetch_add(1, Ordering::Relaxed)),
            Err(errno) if REFUSALS.contains(&errno) => {}
            // Removed, and its inode number used again: the kernel answers so for the old inode.
            Err(libc::EIO) if identity(path) != seen => {}
            Err(errno) => return Some(format!("{verb} {}: errno {errno}", path.display())),
        }
        std::thread::sleep(Duration::from_micros(dice.below(1500)));
    }
    None
}

/// Has the kernel write out dirty pages of files below `share`, which it may do at any time, without a flush: until told to stop.
pub fn write_back(share: &Path, seed: u64, stop: &AtomicBool) {
    let mut dice = Dice::new(seed);
    while !stop.load(Ordering::Relaxed) {
        for directory in fs::read_dir(share).into_iter().flatten().flatten() {
            for file in fs::read_dir(directory.path()).into_iter().flatten().flatten() {
                if dice.once_in(3)
                    && let Ok(file) = File::open(file.path())
                {
                    start_writing(&file);
                }
            }
        }
        std::thread::sleep(Duration::from_micros(dice.below(6000)));
    }
}

/// sync_file_range(2) of all of a file, which begins to write and waits for nothing.
#[expect(unsafe_code, reason = "the call has no safe wrapper")]
fn start_writing(file: &File) {
    use std::os::fd::AsRawFd;
    // SAFETY: the arguments are numbers; the descriptor is open. Whether it succeeds does not matter.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Files that never change, by name; they are durable, with these times, from the beginning on.
pub struct Fixed(pub BTreeMap<String, Vec<u8>>);

/// `cap_net_raw` as the kernel stores it (revision 2, effective).
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const NANOS: i64 = 111_222_333;

impl Fixed {
    pub fn new(rig: &Rig) -> Self {
        let lens = [700, CHUNK, 3 * CHUNK + 11, 9 * CHUNK, (1 << 20) + 1, 20 * CHUNK];
        let files = lens.iter().enumerate().map(|(n, len)| {
            let name = format!("fixed{n}");
            let content = rig.write(&name, *len);
            set_mtime(&rig.mnt(&name), Self::mtime(&name), NANOS);
            (name, content)
        });
        let fixed = Self(files.collect());
        set_xattr(&rig.mnt("fixed2"), "security.capability", &CAPABILITY).unwrap();
        fixed
    }

    fn mtime(name: &str) -> i64 {
        1_400_000_000 + i64::from(name.as_bytes()[5])
    }

    pub fn paths(&self, mount: &Path) -> Vec<PathBuf> {
        self.0.keys().map(|name| mount.join(name)).collect()
    }

    /// Reads until told to stop, or until a request is not answered.
    pub fn read(&self, mount: &Path, seed: u64, stop: &AtomicBool) -> Option<String> {
        let mut dice = Dice::new(seed);
        let files: Vec<_> = self.0.iter().collect();
        while !stop.load(Ordering::Relaxed) {
            let (name, content) = files[dice.below(files.len() as u64) as usize];
            let at = dice.below(content.len() as u64) as usize;
            let mut part = vec![0; (1 + dice.below(100_000) as usize).min(content.len() - at)];
            let read = File::open(mount.join(name)).and_then(|file| file.read_exact_at(&mut part, at as u64));
            if let Err(error) = read {
                return Some(format!("reading {name}: {error}"));
            }
            assert_same(&part, &content[at..at + part.len()], &format!("{name} at {at} while all is well"));
            std::thread::sleep(Duration::from_micros(dice.below(4000)));
        }
        None
    }

    /// Times and privileges, then state and content.
    pub fn check(&self, rig: &Rig) -> Result<(), String> {
        for (name, content) in &self.0 {
            for path in [rig.mnt(name), rig.low(name)] {
                let meta = fs::metadata(&path).map_err(|error| format!("{name}: {error}"))?;
                let found = (meta.size(), meta.mtime(), meta.mtime_nsec());
                let wanted = (content.len() as u64, Self::mtime(name), NANOS);
                if found != wanted {
                    return Err(format!("{}: size and mtime are {found:?}, not {wanted:?}", path.display()));
                }
            }
            if rig.state(name) == "stub" && rig.allocated(name) > 4096 {
                return Err(format!("{name}, a stub, has {} bytes", rig.allocated(name)));
            }
            let found = look(&rig.mnt(name)).map_err(|error| format!("{name}: {error}"))?;
            if found.content != *content {
                let wrong = found.content.iter().zip(content).filter(|(a, b)| a != b).count();
                let zeros = found.content.iter().filter(|byte| **byte == 0).count();
                return Err(format!("{name}, {}: {wrong} bytes are wrong, {zeros} are zero", found.state));
            }
        }
        // A recall puts it back at its end, and readers are served before.
        let deadline = Instant::now() + SOON;
        loop {
            match xattr(&rig.low("fixed2"), "security.capability") {
                Ok(found) if found == CAPABILITY => return Ok(()),
                other if Instant::now() > deadline => return Err(format!("fixed2 has lost its capability: {other:?}")),
                _ => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}
