//! An exerciser that knows every byte it wrote: writers with files of their own and a copy of each in memory, readers of files that
//! never change, movers of both. Between rounds the daemon may be killed while it transfers.
//!
//! A seed repeats what each writer does; how the threads interleave it does not.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::FallocateFlags;

use crate::dice::Dice;
use crate::mover::{Moved, StopAtEnd, while_moving};
use crate::place::{Progress, rig, soak_seed, soak_time, stopped, until_enough_moved};
use crate::rig::*;

const WRITERS: u64 = 6;
const FILES: u64 = 5;
const PAGE: usize = 4096;
/// What O_DIRECT asks of offsets, lengths and buffers.
const BLOCK: usize = 4096;
/// Steps of a writer that a failure shows.
const STORY: usize = 40;

/// One file and what it must contain; `None`: it must not exist.
struct Owned {
    path: PathBuf,
    content: Option<Vec<u8>>,
}

struct Writer {
    name: String,
    files: Vec<Owned>,
    dice: Dice,
    steps: u64,
    story: VecDeque<String>,
    /// Kept open over several steps, with the file's number.
    held: Option<(usize, File)>,
}

/// A buffer that begins at a multiple of [`BLOCK`].
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let bytes = vec![0u8; len + BLOCK];
        let start = bytes.as_ptr().align_offset(BLOCK);
        Self { bytes, start, len }
    }

    fn slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// Sets `content` at `offset`, with zeros before it where the file was shorter.
fn put(content: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if content.len() < offset + data.len() {
        content.resize(offset + data.len(), 0);
    }
    content[offset..offset + data.len()].copy_from_slice(data);
}

impl Writer {
    fn new(dir: &Path, number: u64, seed: u64) -> Self {
        let name = format!("w{number}");
        let files = (0..FILES).map(|n| Owned { path: dir.join(format!("{name}-{n}")), content: None }).collect();
        let dice = Dice::new(seed.wrapping_add(number * 1_000_003));
        Self { name, files, dice, steps: 0, story: VecDeque::new(), held: None }
    }

    /// Notes what is done, for the story of a failure.
    fn tell(&mut self, what: String) {
        self.steps += 1;
        self.story.push_back(format!("{} {what}", self.steps));
        if self.story.len() > STORY {
            self.story.pop_front();
        }
    }

    #[track_caller]
    fn same(&self, n: usize, found: &[u8], wanted: &[u8], how: &str) {
        if found != wanted {
            let story: Vec<_> = self.story.iter().map(String::as_str).collect();
            eprintln!("{}'s last steps:\n  {}", self.name, story.join("\n  "));
            assert_same(found, wanted, &format!("{} ({how})", self.files[n].path.display()));
        }
    }

    #[track_caller]
    fn check_all(&mut self) {
        for n in 0..self.files.len() {
            match (fs::read(&self.files[n].path), &self.files[n].content) {
                (Ok(found), Some(wanted)) => self.same(n, &found, wanted, "all of it"),
                (Err(error), None) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}"),
                (found, wanted) => panic!(
                    "{}: {:?}, though it should have {:?} bytes; {:?}",
                    self.files[n].path.display(),
                    found.map(|found| found.len()),
                    wanted.as_ref().map(Vec::len),
                    self.story
                ),
            }
        }
    }

    /// Mostly small; one in eight is beyond what is recalled inside open.
    fn some_len(&mut self) -> usize {
        let limit = if self.dice.once_in(8) { 3 << 20 } else { 200 << 10 };
        1 + self.dice.below(limit) as usize
    }

    fn step(&mut self) {
        let n = self.dice.below(FILES) as usize;
        if self.files[n].content.is_none() {
            return self.replace(n, false);
        }
        match self.dice.below(24) {
            0 | 1 => self.replace(n, true),
            2 => self.rewrite(n),
            3 => self.unlink(n),
            4 | 5 => self.cut(n),
            6 | 7 => self.append(n),
            8..=11 => self.read(n),
            12 | 13 => self.map_and_read(n),
            14..=16 => self.map_and_write(n),
            17 => self.direct(n),
            18 => self.copy(n),
            19 => self.hold(n),
            _ => self.open_and_do(n),
        }
        if self.dice.once_in(3) {
            std::thread::sleep(Duration::from_micros(self.dice.below(8000)));
        }
    }

    /// A new file, under another name first where `over`.
    fn replace(&mut self, n: usize, over: bool) {
        let len = self.some_len();
        let data = self.dice.bytes(len);
        self.tell(format!("replace {n} by {len} bytes, renamed over it: {over}"));
        let path = self.files[n].path.clone();
        let first = if over { path.with_extension("new") } else { path.clone() };
        fs::write(&first, &data).unwrap();
        if over {
            fs::rename(&first, &path).unwrap();
        }
        self.files[n].content = Some(data);
    }

    fn rewrite(&mut self, n: usize) {
        let len = self.some_len();
        let data = self.dice.bytes(len);
        self.tell(format!("rewrite {n} with {len} bytes"));
        fs::write(&self.files[n].path, &data).unwrap();
        self.files[n].content = Some(data);
    }

    fn unlink(&mut self, n: usize) {
        self.tell(format!("unlink {n}"));
        fs::remove_file(&self.files[n].path).unwrap();
        self.files[n].content = None;
    }

    fn cut(&mut self, n: usize) {
        let Some(content) = &self.files[n].content else { return };
        let len = match self.dice.below(4) {
            0 => 0,
            1 => content.len() + self.dice.below(100_000) as usize,
            _ => self.dice.below(content.len() as u64 + 1) as usize,
        };
        self.tell(format!("truncate {n} to {len}"));
        truncate(&self.files[n].path, len as u64).unwrap();
        self.files[n].content.as_mut().unwrap().resize(len, 0);
    }

    fn append(&mut self, n: usize) {
        let len = 1 + self.dice.below(50_000) as usize;
        let data = self.dice.bytes(len);
        self.tell(format!("append {len} to {n}"));
        let mut file = OpenOptions::new().append(true).open(&self.files[n].path).unwrap();
        std::io::Write::write_all(&mut file, &data).unwrap();
        self.files[n].content.as_mut().unwrap().extend(data);
    }

    fn read(&mut self, n: usize) {
        self.tell(format!("read {n}"));
        let wanted = self.files[n].content.as_ref().unwrap();
        if self.dice.once_in(2) || wanted.is_empty() {
            let found = fs::read(&self.files[n].path).unwrap();
            return self.same(n, &found, wanted, "read whole");
        }
        let from = self.dice.below(wanted.len() as u64) as usize;
        let len = 1 + self.dice.below((wanted.len() - from) as u64) as usize;
        let file = File::open(&self.files[n].path).unwrap();
        let mut found = vec![0; len];
        file.read_exact_at(&mut found, from as u64).unwrap();
        drop(file);
        self.same(n, &found, &self.files[n].content.as_ref().unwrap()[from..from + len], "read a part");
    }

    /// Reads a mapping whose descriptor is closed.
    fn map_and_read(&mut self, n: usize) {
        let len = self.files[n].content.as_ref().unwrap().len();
        if len == 0 {
            return;
        }
        self.tell(format!("map {n} and read"));
        let file = File::open(&self.files[n].path).unwrap();
        let mapping = Mapping::of(&file, len, false);
        drop(file);
        for _ in 0..3 {
            std::thread::sleep(Duration::from_micros(self.dice.below(2000)));
            let from = self.dice.below(len as u64) as usize;
            let wanted = self.files[n].content.as_ref().unwrap();
            self.same(n, &mapping.bytes()[from..], &wanted[from..], "mapped");
        }
    }

    /// Writes by a mapping whose descriptor is closed.
    fn map_and_write(&mut self, n: usize) {
        let len = self.files[n].content.as_ref().unwrap().len();
        if len == 0 {
            return;
        }
        let (early, sync) = (self.dice.once_in(2), self.dice.once_in(2));
        self.tell(format!("map {n} and write; closed before: {early}, msync: {sync}"));
        let file = OpenOptions::new().read(true).write(true).open(&self.files[n].path).unwrap();
        let mut mapping = Mapping::of(&file, len, true);
        let file = (!early).then_some(file);
        for _ in 0..3 {
            let from = self.dice.below(len as u64) as usize;
            let count = 1 + self.dice.below((len - from).min(3 * PAGE) as u64) as usize;
            let data = self.dice.bytes(count);
            std::thread::sleep(Duration::from_micros(self.dice.below(3000)));
            mapping.set(from, &data);
            put(self.files[n].content.as_mut().unwrap(), from, &data);
        }
        if sync {
            mapping.sync();
        }
        drop(mapping);
        drop(file);
    }

    fn direct(&mut self, n: usize) {
        let len = self.files[n].content.as_ref().unwrap().len();
        let blocks = 1 + self.dice.below(40) as usize;
        let at = self.dice.below((len / BLOCK) as u64 + 1) as usize * BLOCK;
        let write = self.dice.once_in(2);
        self.tell(format!("O_DIRECT on {n}: {blocks} blocks at {at}, write: {write}"));
        let mut options = OpenOptions::new();
        options.read(true).write(write).custom_flags(libc::O_DIRECT);
        let file = options.open(&self.files[n].path).unwrap();
        let mut buffer = Aligned::new(blocks * BLOCK);
        if write {
            let data = self.dice.bytes(blocks * BLOCK);
            buffer.slice().copy_from_slice(&data);
            file.write_all_at(buffer.slice(), at as u64).unwrap();
            put(self.files[n].content.as_mut().unwrap(), at, &data);
        }
        let got = file.read_at(buffer.slice(), at as u64).unwrap();
        let wanted = self.files[n].content.as_ref().unwrap();
        let end = wanted.len().min(at + blocks * BLOCK).max(at.min(wanted.len()));
        self.same(n, &buffer.slice()[..got], &wanted[at.min(wanted.len())..end], "O_DIRECT");
    }

    /// copy_file_range(2) from one file to another.
    fn copy(&mut self, to: usize) {
        let from = self.dice.below(FILES) as usize;
        let Some(source) = self.files[from].content.clone().filter(|source| from != to && !source.is_empty()) else {
            return;
        };
        let at = self.dice.below(source.len() as u64) as usize;
        let len = 1 + self.dice.below((source.len() - at) as u64) as usize;
        let onto = self.dice.below(self.files[to].content.as_ref().unwrap().len() as u64 + 1) as usize;
        self.tell(format!("copy {len} from {from} at {at} to {to} at {onto}"));
        let input = File::open(&self.files[from].path).unwrap();
        let output = OpenOptions::new().write(true).open(&self.files[to].path).unwrap();
        let (mut offset_in, mut offset_out, mut left) = (at as u64, onto as u64, len);
        while left > 0 {
            let done = rustix::fs::copy_file_range(&input, Some(&mut offset_in), &output, Some(&mut offset_out), left)
                .unwrap();
            assert!(done > 0, "copy_file_range ended early: {:?}", self.story);
            left -= done;
        }
        put(self.files[to].content.as_mut().unwrap(), onto, &source[at..at + len]);
    }

    /// Opens a file to keep, or reads the one kept, whatever has become of its name.
    fn hold(&mut self, n: usize) {
        match self.held.take() {
            None => {
                self.tell(format!("hold {n} open"));
                self.held = Some((n, File::open(&self.files[n].path).unwrap()));
            }
            Some((held, file)) => {
                self.tell(format!("read {held}, which was held, and close it"));
                let here = fs::symlink_metadata(&self.files[held].path).ok();
                let meta = file.metadata().unwrap();
                let mut found = vec![0; meta.len() as usize];
                file.read_exact_at(&mut found, 0).unwrap();
                use std::os::unix::fs::MetadataExt;
                // Replaced or removed meanwhile: then only that it can be read is known.
                if here.is_some_and(|here| here.ino() == meta.ino()) {
                    self.same(held, &found, self.files[held].content.as_ref().unwrap(), "held open");
                }
            }
        }
    }

    /// Several calls on one descriptor.
    fn open_and_do(&mut self, n: usize) {
        let file = OpenOptions::new().read(true).write(true).open(&self.files[n].path).unwrap();
        for _ in 0..1 + self.dice.below(4) {
            let len = self.files[n].content.as_ref().unwrap().len();
            let at = self.dice.below(len as u64 + 10_000) as usize;
            let count = 1 + self.dice.below(70_000) as usize;
            match self.dice.below(5) {
                0 if at < len => {
                    let count = count.min(len - at);
                    self.tell(format!("punch {count} at {at} of {n}"));
                    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    rustix::fs::fallocate(&file, flags, at as u64, count as u64).unwrap();
                    self.files[n].content.as_mut().unwrap()[at..at + count].fill(0);
                }
                1 => {
                    self.tell(format!("ftruncate {n} to {at}"));
                    file.set_len(at as u64).unwrap();
                    self.files[n].content.as_mut().unwrap().resize(at, 0);
                }
                2 => {
                    self.tell(format!("fsync {n}"));
                    file.sync_data().unwrap();
                }
                _ => {
                    let data = self.dice.bytes(count);
                    self.tell(format!("write {count} at {at} of {n}"));
                    file.write_all_at(&data, at as u64).unwrap();
                    put(self.files[n].content.as_mut().unwrap(), at, &data);
                }
            }
        }
        let wanted = self.files[n].content.as_ref().unwrap();
        let mut found = vec![0; wanted.len()];
        file.read_exact_at(&mut found, 0).unwrap();
        self.same(n, &found, wanted, "through the descriptor that wrote");
    }
}

/// Reads files that never change, in every way, until told to stop; how often.
fn read_fixed(files: &BTreeMap<PathBuf, Vec<u8>>, seed: u64, stop: &AtomicBool) -> u64 {
    let (mut dice, mut reads) = (Dice::new(seed), 0);
    let files: Vec<_> = files.iter().collect();
    while !stop.load(Ordering::Relaxed) {
        let (path, wanted) = files[dice.below(files.len() as u64) as usize];
        let what = format!("{} (never changed, seed {seed})", path.display());
        match dice.below(4) {
            0 => assert_same(&fs::read(path).unwrap(), wanted, &what),
            1 => {
                let file = File::open(path).unwrap();
                let mapping = Mapping::of(&file, wanted.len(), false);
                drop(file);
                let from = dice.below(wanted.len() as u64) as usize;
                assert_same(&mapping.bytes()[from..], &wanted[from..], &what);
            }
            2 => {
                let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
                let at = dice.below((wanted.len() / BLOCK) as u64 + 1) as usize * BLOCK;
                let mut buffer = Aligned::new((1 + dice.below(30) as usize) * BLOCK);
                let got = file.read_at(buffer.slice(), at as u64).unwrap();
                let end = wanted.len().min(at + buffer.len);
                assert_same(&buffer.slice()[..got], &wanted[at.min(end)..end], &what);
            }
            _ => {
                let file = File::open(path).unwrap();
                for _ in 0..4 {
                    let at = dice.below(wanted.len() as u64) as usize;
                    let mut found = vec![0; (1 + dice.below(100_000) as usize).min(wanted.len() - at)];
                    file.read_exact_at(&mut found, at as u64).unwrap();
                    assert_same(&found, &wanted[at..at + found.len()], &what);
                }
            }
        }
        reads += 1;
    }
    reads
}

/// Rounds until `time` is over and enough moved, each of about `round`; with `kill`, the daemon is killed between them.
fn exercise(kind: &'static str, seed: u64, time: Duration, round: Duration, kill: bool) {
    let Some(mut rig) = rig(kind, 2 << 30) else { return };
    eprintln!("exerciser on {kind}, seed {seed}");
    let progress = Progress::new();
    let (dir, fixed) = (rig.mnt("written"), rig.mnt("fixed"));
    fs::create_dir(&dir).unwrap();
    fs::create_dir(&fixed).unwrap();
    let lens = [1, 700, CHUNK, 3 * CHUNK + 11, 1 << 20, (1 << 20) + 1, 3_000_000];
    let never_changed: BTreeMap<PathBuf, Vec<u8>> = lens
        .iter()
        .enumerate()
        .map(|(n, len)| (fixed.join(format!("r{n}")), rig.write(&format!("fixed/r{n}"), *len)))
        .collect();
    let mut writers: Vec<Writer> = (0..WRITERS).map(|n| Writer::new(&dir, n, seed)).collect();
    let mut dice = Dice::new(seed);
    let (mut rounds, mut reads) = (0u64, 0);
    until_enough_moved(&mut rig, &format!("exerciser on {kind}"), |rig, _| {
        let (began, mut moved) = (Instant::now(), Moved::default());
        while began.elapsed() < time && !stopped() {
            rounds += 1;
            let until = Instant::now() + round.min(time.saturating_sub(began.elapsed()));
            let stop = AtomicBool::new(false);
            let (read, transfers) = while_moving(&[&dir, &fixed], seed ^ rounds, || {
                std::thread::scope(|scope| {
                    let (stop, files) = (&stop, &never_changed);
                    let readers: Vec<_> = (0..2)
                        .map(|n| scope.spawn(move || read_fixed(files, seed ^ (rounds << 8) ^ n, stop)))
                        .collect();
                    let end = StopAtEnd(stop);
                    std::thread::scope(|scope| {
                        for writer in &mut writers {
                            scope.spawn(move || {
                                while Instant::now() < until && !stopped() {
                                    writer.step();
                                }
                                writer.held = None;
                            });
                        }
                    });
                    drop(end);
                    readers.into_iter().map(|reader| reader.join().unwrap()).sum::<u64>()
                })
            });
            reads += read;
            moved.add(&transfers);
            let steps: u64 = writers.iter().map(|writer| writer.steps).sum();
            progress.say(&format!("{kind}, round {rounds}: {steps} steps, {reads} reads; {transfers}"));
            if kill && !stopped() {
                let verb = ["migrate", "recall"][dice.below(2) as usize];
                let args = [verb.into(), "-r".into(), rig.mountpoint().into_os_string()];
                let mut moving = rig.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
                std::thread::sleep(Duration::from_millis(20 + dice.below(300)));
                rig.crash();
                moving.wait().unwrap();
                rig.mount();
            }
            for writer in &mut writers {
                writer.check_all();
            }
            for (path, wanted) in &never_changed {
                assert_same(&fs::read(path).unwrap(), wanted, &path.display().to_string());
            }
        }
        moved
    });
    if !stopped() {
        // What is still there must be named, and what is named must be there.
        let written = writers.iter().flat_map(|writer| &writer.files).filter(|file| file.content.is_some());
        let all = written.map(|file| &file.path).chain(never_changed.keys());
        let names: Vec<String> =
            all.map(|path| path.strip_prefix(rig.mountpoint()).unwrap().to_str().unwrap().to_owned()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        for name in &names {
            wait_for("the last recall", || rig.state(name) != "releasing");
        }
        rig.settled_after_crash(&names);
    }
}

#[test]
fn every_byte_written_is_read_while_files_move() {
    exercise("ext4", 11, Duration::from_secs(8), Duration::from_secs(4), true);
}

#[test]
#[ignore = "long: make soak"]
fn soak_exerciser_on_ext4() {
    exercise("ext4", soak_seed(), soak_time(), Duration::from_secs(15), true);
}

#[test]
#[ignore = "long: make soak"]
fn soak_exerciser_on_xfs() {
    exercise("xfs", soak_seed(), soak_time(), Duration::from_secs(15), true);
}
