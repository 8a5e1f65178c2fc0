//! Users and administrators: what they do, from a script or by dice.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use tierfs::engine::JobKind;
use tierfs::ports::OpenFlags;
use tierfs::types::Timestamp;

use crate::dice::Dice;
use crate::kernel::{Answer, Failure, Handle, Kernel, Mapping};
use crate::share::ROOT_INO;
use crate::world::word;

/// The one directory besides the root.
pub const SUB_INO: u64 = 11;
/// Names, by number: some of them in the other directory.
pub const NAMES: [(u64, &str); 6] =
    [(ROOT_INO, "a"), (ROOT_INO, "b"), (ROOT_INO, "c"), (SUB_INO, "a"), (SUB_INO, "x"), (ROOT_INO, "y")];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Read,
    Write,
    Both,
    Cut,
}

/// One step. Files are named by their number in [`NAMES`], handles by how recently they were opened (0: last).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Do {
    Create(usize),
    Open(usize, How),
    /// Bytes at a place in thousandths of the file.
    Write(usize, u64, usize),
    Append(usize, usize),
    /// All of the file in pieces of so many bytes.
    ReadAll(usize, u32),
    Read(usize, u64, u32),
    Sync(usize),
    Close(usize),
    Map(usize),
    Unmap,
    Truncate(usize, u64),
    Times(usize),
    Mode(usize, u32),
    Look(usize),
    Unlink(usize),
    Rename(usize, usize),
    RenameNew(usize, usize),
    Link(usize, usize),
    Command(usize, &'static str),
    Job(usize, JobKind),
    Wait(u64),
}

pub struct Client {
    pub kernel: Arc<Kernel>,
    handles: Vec<Handle>,
    mappings: Vec<Mapping>,
}

impl Client {
    pub fn new(kernel: Arc<Kernel>) -> Self {
        Self { kernel, handles: Vec::new(), mappings: Vec::new() }
    }

    /// Does all of it, closes everything, and ends early when the daemon dies.
    pub async fn follow(mut self, script: Vec<Do>) {
        for what in script {
            self.kernel.world.pause().await;
            let transfer = matches!(what, Do::Command(..) | Do::Job(..));
            let ended = self.step(what).await;
            if let Err(failure) = ended {
                if matches!(failure, Failure::Dead) {
                    return;
                }
                self.kernel.judge(&format!("{what:?}"), &failure, transfer);
            }
        }
        while let Some(mapping) = self.mappings.pop() {
            if self.kernel.unmap(mapping).is_err() {
                return;
            }
        }
        while let Some(handle) = self.handles.pop() {
            if let Err(failure) = self.kernel.close(handle).await {
                self.kernel.judge("close", &failure, false);
            }
        }
    }

    fn handle(&self, nth: usize) -> Option<&Handle> {
        self.handles.len().checked_sub(1 + nth % self.handles.len().max(1)).map(|at| &self.handles[at])
    }

    fn find(&self, name: usize) -> Answer<u64> {
        let (dir, name) = NAMES[name];
        Ok(self.kernel.lookup(dir, OsStr::new(name))?.id)
    }

    async fn step(&mut self, what: Do) -> Answer<()> {
        let kernel = self.kernel.clone();
        let name_of = |name: usize| (NAMES[name].0, OsStr::new(NAMES[name].1));
        let size_of = |handle: &Handle| {
            let state = kernel.world.lock();
            state.disk.seen.nodes.get(&handle.ino).map_or(0, |node| node.content.size)
        };
        {
            let mut state = kernel.world.lock();
            state.tell(|| format!("{what:?}"));
        }
        match what {
            Do::Create(name) => {
                let (dir, name) = name_of(name);
                self.handles.push(kernel.create(dir, name, false).await?);
            }
            Do::Open(name, how) => {
                let flags = OpenFlags {
                    read: matches!(how, How::Read | How::Both),
                    write: how != How::Read,
                    truncate: how == How::Cut,
                    ..Default::default()
                };
                let ino = self.find(name)?;
                self.handles.push(kernel.open(ino, flags).await?);
            }
            Do::Write(nth, place, len) => {
                let Some(handle) = self.handle(nth).filter(|handle| handle.write) else { return Ok(()) };
                let offset = size_of(handle) * place / 1000;
                kernel.write(handle, Some(offset), &self.data(len)).await?;
            }
            Do::Append(nth, len) => {
                let Some(handle) = self.handle(nth).filter(|handle| handle.write) else { return Ok(()) };
                kernel.write(handle, None, &self.data(len)).await?;
            }
            Do::ReadAll(nth, piece) => {
                let Some(handle) = self.handle(nth) else { return Ok(()) };
                let mut offset = 0;
                while offset <= size_of(handle) {
                    kernel.read(handle, offset, piece).await?;
                    offset += u64::from(piece);
                }
            }
            Do::Read(nth, place, len) => {
                let Some(handle) = self.handle(nth) else { return Ok(()) };
                kernel.read(handle, size_of(handle) * place / 1000, len).await?;
            }
            Do::Sync(nth) => self.handle(nth).map_or(Ok(()), |handle| kernel.fsync(handle))?,
            Do::Close(nth) => {
                if !self.handles.is_empty() {
                    let handle = self.handles.remove(self.handles.len() - 1 - nth % self.handles.len());
                    kernel.close(handle).await?;
                }
            }
            Do::Map(nth) => {
                let Some(handle) = self.handle(nth) else { return Ok(()) };
                self.mappings.extend(kernel.map(handle)?);
            }
            Do::Unmap => self.mappings.pop().map_or(Ok(()), |mapping| kernel.unmap(mapping))?,
            Do::Truncate(name, size) => kernel.truncate(self.find(name)?, size).await?,
            Do::Times(name) => {
                let (ino, secs) = (self.find(name)?, 1_000_000_000 + kernel.world.lock().next() as i64);
                kernel.utimes(ino, Timestamp { secs, nanos: 500 }).await?;
            }
            Do::Mode(name, mode) => kernel.chmod(self.find(name)?, mode).await?,
            Do::Look(name) => kernel.stat(self.find(name)?)?,
            Do::Unlink(name) => {
                let (dir, name) = name_of(name);
                kernel.unlink(dir, name).await?;
            }
            Do::Rename(from, to) => kernel.rename(name_of(from), name_of(to), true).await?,
            Do::RenameNew(from, to) => kernel.rename(name_of(from), name_of(to), false).await?,
            Do::Link(name, to) => {
                let (ino, (dir, to)) = (self.find(name)?, name_of(to));
                kernel.link(ino, dir, to).await?;
            }
            Do::Command(name, verb) => {
                let value: &[u8] = if verb == "unpin" { b"0" } else { b"1" };
                let verb = if verb == "unpin" { "pin" } else { verb };
                kernel.command(self.find(name)?, verb, value).await?;
            }
            Do::Job(name, kind) => kernel.job(self.find(name)?, kind).await?,
            Do::Wait(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
        }
        Ok(())
    }

    fn data(&self, len: usize) -> Vec<u8> {
        let mut data = word(self.kernel.world.lock().next()).repeat(len.div_ceil(8));
        data.truncate(len);
        data
    }
}

/// What somebody might do next.
pub fn random(dice: &mut Dice, steps: u64) -> Vec<Do> {
    (0..steps).map(|_| random_step(dice)).collect()
}

fn random_step(dice: &mut Dice) -> Do {
    // Few names, so that users meet.
    let name = match dice.below(8) {
        0..=2 => 0,
        3 | 4 => 1,
        other => other as usize - 3,
    };
    let nth = dice.below(3) as usize;
    let place = [0, 0, 333, 900, 1000][dice.below(5) as usize];
    let len = [1, 40, 700, 5000, 17_000][dice.below(5) as usize];
    match dice.below(64) {
        0..=2 => Do::Create(name),
        3..=7 => Do::Open(name, How::Read),
        8..=10 => Do::Open(name, How::Write),
        11 | 12 => Do::Open(name, How::Both),
        13 => Do::Open(name, How::Cut),
        14..=17 => Do::Write(nth, place, len as usize),
        18 => Do::Append(nth, len as usize),
        19..=21 => Do::ReadAll(nth, 40_000),
        22 | 23 => Do::Read(nth, place, len as u32),
        24..=26 => Do::Sync(nth),
        27..=33 => Do::Close(nth),
        34 => Do::Map(nth),
        35 => Do::Unmap,
        36 => Do::Truncate(name, 0),
        37 => Do::Truncate(name, [1, 100, 16_384, 70_000][dice.below(4) as usize]),
        38 => Do::Times(name),
        39 => Do::Mode(name, [0o600, 0o640, 0o666][dice.below(3) as usize]),
        40 | 41 => Do::Look(name),
        42 => Do::Unlink(name),
        43 if dice.once_in(4) => Do::RenameNew(name, dice.below(NAMES.len() as u64) as usize),
        43 => Do::Rename(name, dice.below(NAMES.len() as u64) as usize),
        44 => Do::Link(name, dice.below(NAMES.len() as u64) as usize),
        45..=48 => Do::Command(name, "migrate"),
        49 | 50 => Do::Command(name, "release"),
        51 => Do::Command(name, "recall"),
        52 => Do::Command(name, "pin"),
        53 => Do::Command(name, "unpin"),
        54 | 55 => Do::Job(name, JobKind::Migrate),
        56 => Do::Job(name, JobKind::ArchiveOnly),
        57 => Do::Job(name, JobKind::Release),
        58 => Do::Job(name, JobKind::Recall),
        59 => Do::Job(name, JobKind::Verify { md5: false }),
        60 => Do::Job(name, JobKind::Check { repair: dice.once_in(2) }),
        61 => Do::Wait(dice.below(200)),
        62 => Do::Wait(dice.below(6000)),
        _ => Do::Look(name),
    }
}
