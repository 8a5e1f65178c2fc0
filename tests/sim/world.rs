//! Everything outside of the process: the share's disk, the objects, the notes, the clock, the users' own mappings; and what happens to whom.
//!
//! All of it changes under one lock, one operation at a time, and each operation is counted: the number is where faults and crashes are
//! put. A process that has died changes nothing any more.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tierfs::ports::{Clock, FailedEntry, FailedId, Intent, Recalled};
use tierfs::types::{ObjectKey, Timestamp};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::bugs::Bug;
use crate::dice::Dice;
use crate::disk::Disk;
use crate::plan::{Event, Fault, Kind, Plan};
use crate::stats::Stats;
use crate::truth::Truth;

/// When every schedule begins: 2023-11-14.
const EPOCH_NS: u64 = 1_700_000_000_000_000_000;
/// A schedule with so many operations goes round in circles.
const OPERATIONS_MAX: u64 = 50_000;

/// The process that asked is no more.
#[derive(Debug)]
pub struct Dead;

/// A lower file that somebody has open.
pub struct Open {
    pub ino: u64,
    pub write: bool,
    /// Of a user's passthrough handle or mapping, rather than of the daemon.
    pub direct: bool,
}

pub struct Object {
    pub body: Bytes,
    pub etag: String,
    pub metadata: Vec<(String, String)>,
}

pub struct State {
    pub disk: Disk,
    pub opens: BTreeMap<u64, Open>,
    pub leases: BTreeSet<u64>,
    /// Opens that are mappings for writing, whose owners write when they like.
    pub mappings: BTreeSet<u64>,
    /// What [`tierfs::ports::LowerFile::as_owner`] is acting on.
    pub acting: Option<u64>,
    pub objects: BTreeMap<ObjectKey, Object>,
    /// Deletions that were given up and will happen.
    pub late: Vec<(Timestamp, ObjectKey)>,
    pub notes: BTreeMap<u64, Intent>,
    /// Recalled files, by inode and birth.
    pub recalled: BTreeMap<(u64, u64), Recalled>,
    /// The dead-letter list, and what is remembered by name.
    pub failures: BTreeMap<FailedId, FailedEntry>,
    pub values: BTreeMap<String, String>,
    pub poisoned: bool,
    pub truth: Truth,
    pub dice: Dice,
    pub stats: Stats,
    /// What was found to be wrong, first of all.
    pub broken: Option<String>,
    /// How many faults have happened.
    pub faults: u64,
    /// Users are served: what is stored must agree with what they did.
    pub serving: bool,
    /// No more faults, crashes or mapped writes.
    pub calm: bool,
    pub operations: u64,
    /// Kinds of all operations so far, where they are wanted.
    pub kinds: Option<Vec<Kind>>,
    pub crashed: Option<Event>,
    /// What is there is what a power loss left.
    pub lost_power: bool,
    /// Which mount of the disk it is.
    pub mounted: u64,
    /// Files whose removal a power loss has undone together with the end of their release: the note is one of a deletion by then, and nothing
    /// ends the release before the next access does.
    pub half_released: BTreeSet<(u64, u64)>,
    /// The unit of the times that the share gives files, in nanoseconds.
    pub tick_ns: u64,
    pub bug: Option<Bug>,
    plan: Plan,
    life: u32,
    /// Nanoseconds that passed without anybody waiting.
    passed_ns: u64,
    began: Option<Instant>,
    next: u64,
    trace: DefaultHasher,
    told: Option<String>,
}

pub struct World {
    state: Mutex<State>,
    /// The process died, or something is broken.
    pub ended: Notify,
}

impl World {
    /// `told`: keep the trace as text.
    pub fn new(seed: u64, plan: Plan, bug: Option<Bug>, told: bool) -> Arc<Self> {
        let mut dice = Dice::new(seed ^ 0x51b5_17e4);
        let disk = Disk::new(dice.once_in(2));
        let tick_ns = [1, 4_000_000, 10_000_000][dice.below(3) as usize];
        let state = State {
            disk,
            opens: BTreeMap::new(),
            leases: BTreeSet::new(),
            mappings: BTreeSet::new(),
            acting: None,
            objects: BTreeMap::new(),
            late: Vec::new(),
            notes: BTreeMap::new(),
            recalled: BTreeMap::new(),
            failures: BTreeMap::new(),
            values: BTreeMap::new(),
            poisoned: false,
            truth: Truth::default(),
            dice,
            stats: Stats::default(),
            broken: None,
            faults: 0,
            serving: false,
            calm: false,
            operations: 0,
            kinds: None,
            crashed: None,
            lost_power: false,
            mounted: 1,
            half_released: BTreeSet::new(),
            tick_ns,
            bug,
            plan,
            life: 0,
            passed_ns: 0,
            began: None,
            next: 100,
            trace: DefaultHasher::new(),
            told: told.then(String::new),
        };
        Arc::new(Self { state: Mutex::new(state), ended: Notify::new() })
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// One operation of the process `life` begins. The fault that it has, if any.
    pub fn step(
        &self,
        life: u32,
        kind: Kind,
        what: impl FnOnce() -> String,
    ) -> Result<(MutexGuard<'_, State>, Option<Fault>), Dead> {
        let mut state = self.lock();
        if !state.lives(life) {
            self.ended.notify_one();
            return Err(Dead);
        }
        let result = state.step(kind, what);
        if !state.lives(life) {
            self.ended.notify_one();
            return Err(Dead);
        }
        Ok((state, result))
    }

    /// Something that must never be.
    pub fn broken(&self, state: &mut State, what: String) {
        state.broken(what);
        self.ended.notify_one();
    }

    /// Lets others go first, sometimes for a while.
    pub async fn pause(&self) {
        let (turns, wait) = {
            let mut state = self.lock();
            let turns = state.dice.below(4);
            (turns, state.dice.once_in(6).then(|| state.dice.below(120)))
        };
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        if let Some(ms) = wait {
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
    }

    pub fn is_alive(&self, life: u32) -> bool {
        self.lock().lives(life)
    }
}

impl State {
    pub fn lives(&self, life: u32) -> bool {
        self.life == life && self.crashed.is_none() && self.broken.is_none()
    }

    pub fn life(&self) -> u32 {
        self.life
    }

    fn step(&mut self, kind: Kind, what: impl FnOnce() -> String) -> Option<Fault> {
        self.operations += 1;
        self.passed_ns += 1_000 + self.dice.below(20_000);
        if self.operations > OPERATIONS_MAX {
            self.broken(format!("{OPERATIONS_MAX} operations: it goes round in circles"));
            return None;
        }
        if let Some(kinds) = &mut self.kinds {
            kinds.push(kind);
        }
        let event = self.plan.0.get(&self.operations).copied().filter(|_| !self.calm);
        let fault = match event {
            Some(Event::Fault(choice)) => {
                let faults = kind.faults();
                self.faults += 1;
                Some(faults[(choice % faults.len() as u64) as usize])
            }
            Some(crash) => {
                self.crashed = Some(crash);
                None
            }
            None => None,
        };
        (self.operations, kind, self.passed_ns).hash(&mut self.trace);
        let (now, number, life) = (self.now(), self.operations, self.life);
        if let Some(told) = &mut self.told {
            let outcome = match (event, fault) {
                (_, Some(fault)) => format!(" <- {fault:?}"),
                (Some(event), None) => format!(" <- {event:?}"),
                (None, None) => String::new(),
            };
            let line = what();
            let _ = writeln!(told, "{number:5} {life} {}.{:09} {kind:?} {line}{outcome}", now.secs, now.nanos);
        }
        fault
    }

    /// A line in the trace that is no operation.
    pub fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(told) = &mut self.told {
            let _ = writeln!(told, "        -- {}", line());
        }
    }

    pub fn broken(&mut self, what: String) {
        self.tell(|| format!("BROKEN: {what}"));
        self.broken.get_or_insert(what);
    }

    /// A number that was never given before.
    pub fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// A process begins, in the runtime that is entered.
    pub fn begin(&mut self) -> u32 {
        self.life += 1;
        (self.crashed, self.poisoned) = (None, false);
        self.began = Some(Instant::now());
        self.life
    }

    /// The runtime's clock is read for the last time; outside of the runtime it would be the machine's.
    pub fn stop_clock(&mut self) {
        if let Some(began) = self.began.take() {
            self.passed_ns += began.elapsed().as_nanos() as u64;
        }
    }

    /// The process is no more; what it had open is closed.
    pub fn end(&mut self, pause_ns: u64) {
        self.passed_ns += pause_ns;
        self.life += 1;
        self.leases.clear();
        self.acting = None;
        let closed: Vec<u64> = self.opens.iter().filter(|(_, open)| !open.direct).map(|(id, _)| *id).collect();
        for id in closed {
            self.close(id);
        }
    }

    pub fn now(&self) -> Timestamp {
        let waited = self.began.map_or(0, |began| began.elapsed().as_nanos() as u64);
        let ns = EPOCH_NS + self.passed_ns + waited;
        Timestamp { secs: (ns / 1_000_000_000) as i64, nanos: (ns % 1_000_000_000) as u32 }
    }

    /// Now, as the share dates files.
    pub fn stamp(&self) -> Timestamp {
        let now = self.now();
        Timestamp { nanos: (u64::from(now.nanos) / self.tick_ns * self.tick_ns) as u32, ..now }
    }

    pub fn open(&mut self, ino: u64, write: bool, direct: bool) -> u64 {
        let id = self.next();
        self.opens.insert(id, Open { ino, write, direct });
        id
    }

    pub fn close(&mut self, id: u64) {
        self.mappings.remove(&id);
        let Some(Open { ino, .. }) = self.opens.remove(&id) else { return };
        self.reap(ino);
    }

    /// Frees an inode without a name that nobody has open.
    pub fn reap(&mut self, ino: u64) {
        let nameless = self.disk.seen.nodes.get(&ino).is_some_and(|node| node.nlink == 0);
        if nameless && !self.opens.values().any(|open| open.ino == ino) {
            self.disk.reap(ino);
        }
    }

    /// A user writes without the daemon: through a passthrough handle, or quietly through a mapping.
    pub fn direct_write(&mut self, ino: u64, offset: u64, data: &[u8], mapped: bool) {
        let at = self.stamp();
        let pages = offset / crate::content::PAGE..(offset + data.len() as u64).div_ceil(crate::content::PAGE);
        let quiet = mapped && pages.clone().all(|index| self.disk.is_dirty(ino, index));
        if quiet {
            self.disk.write_quietly(ino, offset, data);
        } else {
            self.disk.write(ino, offset, data, at);
        }
        let birth = self.disk.seen.nodes[&ino].birth;
        if let Some(file) = self.truth.files.get_mut(&(ino, birth)) {
            let mtime = if quiet { file.mtime } else { at };
            file.write(offset, data, mtime);
        }
    }

    /// A mapping's owner writes just now, sometimes: at any moment of the daemon's.
    pub fn mapped_write(&mut self) {
        if self.mappings.is_empty() || self.calm || !self.dice.once_in(12) {
            return;
        }
        let which = self.dice.below(self.mappings.len() as u64) as usize;
        let ino = self.opens[self.mappings.iter().nth(which).expect("there are so many")].ino;
        let size = self.disk.seen.nodes[&ino].content.size;
        if size == 0 {
            return;
        }
        let offset = self.dice.below(size);
        let data = word(self.next()).repeat(4)[..(size - offset).min(32) as usize].to_vec();
        self.tell(|| format!("mapping of {ino} writes {}+{}", offset, data.len()));
        self.direct_write(ino, offset, &data, true);
    }

    pub fn trace(&self) -> u64 {
        self.trace.finish()
    }

    pub fn told(&self) -> &str {
        self.told.as_deref().unwrap_or_default()
    }
}

/// Eight bytes that tell what wrote them.
pub fn word(number: u64) -> [u8; 8] {
    let mut word = *b"w0000000";
    for (at, digit) in word[1..].iter_mut().rev().zip(0..) {
        *at = b'0' + ((number / 10u64.pow(digit)) % 10) as u8;
    }
    word
}

pub struct SimClock(pub Arc<World>);

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        self.0.lock().now()
    }
}
