//! Randomised rounds on one file: threads and processes open, map, read, write, append and truncate it in every way while it is
//! archived, released and recalled; no error, no zeros, nothing stale.
//!
//! The oracle: each block is written by one actor only, with a number that grows. A read that starts after number `n` was written and
//! ends before `m + 1` is begun sees nothing but `n..=m` of its own block. A run is told by its seed: it draws the same rounds
//! again, though not in the same interleaving.

mod hands;

use std::collections::VecDeque;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use crate::rig::*;
use hands::{BLOCK, Elsewhere, Hands, Here, MapKind, Outcome, Words};

/// Half of them threads of this process, half processes of their own.
const ACTORS: usize = 6;
/// Rounds between two lulls, in which the file can be released.
const ROUNDS_PER_LULL: u64 = 25;
const TAG: u64 = 0xa5 << 56;

/// xorshift: a run is told by its seed.
struct Dice(u64);

impl Dice {
    fn new(seed: u64, who: u64) -> Self {
        Self((seed.wrapping_add(who).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d) | 1)
    }

    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 20) % end as u64) as usize
    }

    fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }
}

/// Numbers of a block: the last write begun, the last one done.
#[derive(Default)]
struct Block {
    begun: AtomicU64,
    done: AtomicU64,
}

struct World {
    path: PathBuf,
    seed: u64,
    /// Blocks of the file when nothing is appended; twice as many at most.
    base: usize,
    blocks: Vec<Block>,
    /// Blocks of the file.
    len: AtomicUsize,
    /// Held for writing while the file is cut and written anew.
    content: RwLock<()>,
    append: Mutex<()>,
    actors: Vec<Mutex<Actor>>,
    rounds: AtomicU64,
    wanted: u64,
    failed: AtomicBool,
    tally: Tally,
}

#[derive(Debug, Default)]
struct Tally {
    stubs: AtomicU64,
    migrated: AtomicU64,
    released: AtomicU64,
    recalled: AtomicU64,
    refused: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
    maps: AtomicU64,
    pinned_lulls: AtomicU64,
}

struct Actor {
    id: usize,
    dice: Dice,
    hands: Box<dyn Hands>,
    next: u32,
    /// Handles left open: number and flags.
    handles: Vec<(u32, i32)>,
    /// Mappings left, their files closed: number, blocks, kind.
    maps: Vec<(u32, usize, MapKind)>,
    /// What was done last.
    log: VecDeque<String>,
}

impl Actor {
    fn new(id: usize, seed: u64, rig: &Rig) -> Self {
        let path = rig.mnt("file");
        let hands: Box<dyn Hands> =
            if id.is_multiple_of(2) { Box::new(Here::new(&path)) } else { Box::new(Elsewhere::new(&path)) };
        let dice = Dice::new(seed, id as u64 + 1);
        Self { id, dice, hands, next: 0, handles: Vec::new(), maps: Vec::new(), log: VecDeque::new() }
    }

    fn note(&mut self, what: String) {
        if self.log.len() == 30 {
            self.log.pop_front();
        }
        self.log.push_back(what);
    }

    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    fn close_handles(&mut self) -> Outcome<()> {
        for (handle, _) in std::mem::take(&mut self.handles) {
            self.hands.close(handle)?;
        }
        Ok(())
    }

    /// Looks at a few blocks of everything that is mapped.
    fn check_maps(&mut self, world: &World) -> Outcome<()> {
        for (map, blocks, kind) in self.maps.clone() {
            let blocks = blocks.min(world.len.load(SeqCst));
            for block in [0, blocks / 2, blocks - 1] {
                let done = world.blocks[block].done.load(SeqCst);
                let words = self.hands.peek(map, block)?;
                world.check(block, done, &words).map_err(|error| format!("actor {}, {kind:?}: {error}", self.id))?;
            }
        }
        Ok(())
    }

    fn drop_all(&mut self) -> Outcome<()> {
        self.close_handles()?;
        for (map, ..) in std::mem::take(&mut self.maps) {
            self.hands.unmap(map)?;
        }
        Ok(())
    }

    /// A block that this actor writes.
    fn own(&mut self, world: &World) -> usize {
        self.dice.below(world.base / ACTORS) * ACTORS + self.id
    }

    fn round(&mut self, world: &World) -> Outcome<()> {
        match self.dice.below(100) {
            0..2 => self.rewrite(world),
            2..7 => self.append(world),
            7..25 if !self.handles.is_empty() || !self.maps.is_empty() => self.use_what_is_left(world),
            _ => self.open_and_use(world),
        }
    }

    fn rewrite(&mut self, world: &World) -> Outcome<()> {
        let _alone = world.content.write();
        let handle = self.number();
        if self.dice.percent(50) {
            self.note("truncate to 0 by name".into());
            truncate(&world.path, 0).map_err(|error| error.to_string())?;
            self.hands.open(handle, libc::O_WRONLY)?;
        } else {
            self.note("open O_TRUNC".into());
            self.hands.open(handle, libc::O_WRONLY | libc::O_TRUNC)?;
        }
        world.len.store(world.base, SeqCst);
        for block in 0..world.base {
            let word = world.begin(block);
            self.hands.write(handle, block, word)?;
            world.end(block, word);
        }
        self.hands.close(handle)
    }

    fn append(&mut self, world: &World) -> Outcome<()> {
        let _content = world.content.read();
        let _append = world.append.lock();
        let block = world.len.load(SeqCst);
        if block == 2 * world.base {
            return Ok(());
        }
        self.note(format!("append block {block}"));
        let handle = self.number();
        self.hands.open(handle, libc::O_WRONLY | libc::O_APPEND)?;
        let word = world.begin(block);
        self.hands.append(handle, word)?;
        world.end(block, word);
        world.len.store(block + 1, SeqCst);
        self.hands.close(handle)
    }

    fn use_what_is_left(&mut self, world: &World) -> Outcome<()> {
        let _content = world.content.read();
        if !self.handles.is_empty() {
            let at = self.dice.below(self.handles.len());
            let (handle, flags) = self.handles[at];
            self.access(world, handle, flags)?;
            if self.dice.percent(40) {
                self.handles.swap_remove(at);
                self.note(format!("close {handle}"));
                self.hands.close(handle)?;
            }
        }
        if !self.maps.is_empty() {
            let at = self.dice.below(self.maps.len());
            let (map, blocks, kind) = self.maps[at];
            self.access_map(world, map, blocks, kind)?;
            if self.dice.percent(40) {
                self.maps.swap_remove(at);
                self.note(format!("unmap {map}"));
                self.hands.unmap(map)?;
            }
        }
        Ok(())
    }

    fn open_and_use(&mut self, world: &World) -> Outcome<()> {
        let _content = world.content.read();
        let access = [libc::O_RDONLY, libc::O_RDONLY, libc::O_RDWR, libc::O_WRONLY][self.dice.below(4)];
        let flags = access | if self.dice.percent(20) { libc::O_DIRECT } else { 0 };
        let handle = self.number();
        self.note(format!("open {handle} {flags:#o}"));
        self.hands.open(handle, flags)?;
        self.access(world, handle, flags)?;
        if access != libc::O_WRONLY && self.dice.percent(40) {
            let kind = match self.dice.below(3) {
                0 if access == libc::O_RDWR => MapKind::Writable,
                1 => MapKind::Private,
                _ => MapKind::Shared,
            };
            let (map, blocks) = (self.number(), world.len.load(SeqCst));
            self.note(format!("map {map} of {handle}, {blocks} blocks, {kind:?}"));
            self.hands.map(map, handle, blocks, kind)?;
            world.tally.maps.fetch_add(1, SeqCst);
            self.access_map(world, map, blocks, kind)?;
            if self.dice.percent(33) && self.maps.len() < 4 {
                self.maps.push((map, blocks, kind));
            } else {
                self.hands.unmap(map)?;
            }
        }
        if self.dice.percent(15) && self.handles.len() < 3 {
            self.handles.push((handle, flags));
            return Ok(());
        }
        self.note(format!("close {handle}"));
        self.hands.close(handle)
    }

    fn access(&mut self, world: &World, handle: u32, flags: i32) -> Outcome<()> {
        let access = flags & libc::O_ACCMODE;
        for _ in 0..1 + self.dice.below(4) {
            if access == libc::O_WRONLY || (access == libc::O_RDWR && self.dice.percent(50)) {
                let block = self.own(world);
                let word = world.begin(block);
                self.note(format!("write {handle}: {word:x}"));
                self.hands.write(handle, block, word)?;
                world.end(block, word);
            } else {
                let block = self.dice.below(world.len.load(SeqCst));
                let done = world.blocks[block].done.load(SeqCst);
                self.note(format!("read {handle}: block {block}"));
                let words = self.hands.read(handle, block)?;
                world.check(block, done, &words)?;
            }
        }
        Ok(())
    }

    fn access_map(&mut self, world: &World, map: u32, blocks: usize, kind: MapKind) -> Outcome<()> {
        for _ in 0..1 + self.dice.below(3) {
            if kind == MapKind::Writable && self.dice.percent(50) {
                let block = self.own(world);
                let word = world.begin(block);
                self.note(format!("poke {map}: {word:x}"));
                self.hands.poke(map, block, word)?;
                world.end(block, word);
            } else {
                let block = self.dice.below(blocks.min(world.len.load(SeqCst)));
                let done = world.blocks[block].done.load(SeqCst);
                self.note(format!("peek {map}: block {block}"));
                let words = self.hands.peek(map, block)?;
                world.check(block, done, &words)?;
            }
        }
        Ok(())
    }
}

impl World {
    fn begin(&self, block: usize) -> u64 {
        let number = self.blocks[block].begun.fetch_add(1, SeqCst) + 1;
        TAG | (block as u64) << 32 | number
    }

    fn end(&self, block: usize, word: u64) {
        self.blocks[block].done.store(word & 0xffff_ffff, SeqCst);
        self.tally.writes.fetch_add(1, SeqCst);
    }

    fn check(&self, block: usize, done: u64, words: &Words) -> Outcome<()> {
        let begun = self.blocks[block].begun.load(SeqCst);
        self.tally.reads.fetch_add(1, SeqCst);
        let right = TAG | (block as u64) << 32;
        let wrong: Vec<_> = words
            .iter()
            .filter(|word| !(right + done..=right + begun).contains(*word))
            .map(|w| format!("{w:x}"))
            .collect();
        if wrong.is_empty() {
            return Ok(());
        }
        Err(format!("block {block} has {wrong:?}, right is {:x}..={:x}", right + done, right + begun))
    }

    /// Sets a virtual attribute; `false` where the file is busy or not archived.
    fn tier(&self, verb: &str) -> Outcome<bool> {
        let count = match verb {
            "migrate" => &self.tally.migrated,
            "release" => &self.tally.released,
            _ => &self.tally.recalled,
        };
        match set_xattr(&self.path, &format!("user.tierfs.{verb}"), b"1") {
            Ok(()) => {
                count.fetch_add(1, SeqCst);
                Ok(true)
            }
            Err(libc::EBUSY | libc::EINVAL | libc::ECANCELED) => {
                self.tally.refused.fetch_add(1, SeqCst);
                Ok(false)
            }
            Err(errno) => Err(format!("{verb}: errno {errno}")),
        }
    }

    /// Nobody acts: the file is released if nothing pins it, and found again in some state.
    fn lull(&self, dice: &mut Dice) -> Outcome<()> {
        let mut actors: Vec<_> = self.actors.iter().map(|actor| actor.lock()).collect();
        if dice.percent(30) {
            // What is left open or mapped stays: a release must not touch it.
            self.tally.pinned_lulls.fetch_add(1, SeqCst);
            let mapped_only = dice.percent(70);
            for actor in actors.iter_mut().filter(|_| mapped_only) {
                actor.close_handles()?;
            }
            for _ in 0..3 {
                // Closes reach the daemon a little later.
                std::thread::sleep(Duration::from_millis(3));
                self.tier("migrate")?;
                for actor in &mut actors {
                    actor.check_maps(self)?;
                }
            }
            return Ok(());
        }
        for actor in &mut actors {
            actor.drop_all()?;
        }
        let deadline = Instant::now() + SOON;
        while !self.tier("migrate")? {
            if Instant::now() > deadline {
                return Err("nothing is open or mapped, and the file is not released".into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.tally.stubs.fetch_add(1, SeqCst);
        match dice.below(4) {
            0 => self.tier("recall").map(drop),
            1 => self.tier("recall").and_then(|_| self.tier("release")).map(drop),
            _ => Ok(()),
        }
    }

    fn run(&self) {
        std::thread::scope(|scope| {
            for actor in &self.actors {
                scope.spawn(|| {
                    while !self.is_over() {
                        let mut actor = actor.lock();
                        if let Err(error) = actor.round(self) {
                            self.fail(&format!("actor {}: {error}\n{:#?}", actor.id, actor.log));
                        }
                        self.rounds.fetch_add(1, SeqCst);
                        drop(actor);
                        // Locks are not fair: let a lull begin.
                        std::thread::yield_now();
                    }
                });
            }
            scope.spawn(|| {
                let mut dice = Dice::new(self.seed, 1000);
                let mut next = 0;
                while !self.is_over() {
                    if self.rounds.load(SeqCst) >= next {
                        next = self.rounds.load(SeqCst) + ROUNDS_PER_LULL;
                        self.lull(&mut dice).unwrap_or_else(|error| self.fail(&format!("lull: {error}")));
                    }
                    std::thread::sleep(Duration::from_micros(200));
                }
            });
            scope.spawn(|| {
                let mut dice = Dice::new(self.seed, 2000);
                while !self.is_over() {
                    let verb = ["migrate", "release", "recall"][dice.below(3)];
                    self.tier(verb).map(drop).unwrap_or_else(|error| self.fail(&error));
                    std::thread::sleep(Duration::from_micros(dice.below(20_000) as u64));
                }
            });
            let started = Instant::now();
            let mut shown = 1;
            while !self.is_over() {
                std::thread::sleep(Duration::from_millis(20));
                let done = self.rounds.load(SeqCst);
                if done * 20 / self.wanted >= shown && self.wanted >= 10_000 {
                    eprintln!("{done} of {} rounds, {:?}: {:?}", self.wanted, started.elapsed(), self.tally);
                    shown += 1;
                }
            }
        });
    }

    fn is_over(&self) -> bool {
        self.failed.load(SeqCst) || self.rounds.load(SeqCst) >= self.wanted
    }

    fn fail(&self, why: &str) {
        if !self.failed.swap(true, SeqCst) {
            eprintln!("seed {}, after {} rounds: {why}", self.seed, self.rounds.load(SeqCst));
        }
    }
}

/// So many rounds on a file of `base` blocks; a filesystem and a mount of its own.
fn rounds(setup: Setup, base: usize, wanted: u64, seed: u64) {
    let Some(rig) = setup.build() else { return };
    eprintln!("{}, {base} blocks, {wanted} rounds, seed {seed}", rig.kind);
    fs::write(rig.mnt("file"), b"").unwrap();
    let world = World {
        path: rig.mnt("file"),
        seed,
        base,
        blocks: std::iter::repeat_with(Block::default).take(2 * base).collect(),
        len: AtomicUsize::new(0),
        content: RwLock::new(()),
        append: Mutex::new(()),
        actors: (0..ACTORS).map(|id| Mutex::new(Actor::new(id, seed, &rig))).collect(),
        rounds: AtomicU64::new(0),
        wanted,
        failed: AtomicBool::new(false),
        tally: Tally::default(),
    };
    world.actors[0].lock().rewrite(&world).unwrap();
    world.run();
    assert!(!world.failed.load(SeqCst), "seed {seed} failed: see above");
    for actor in &world.actors {
        actor.lock().drop_all().unwrap();
    }
    eprintln!("{} rounds: {:?}", world.rounds.load(SeqCst), world.tally);
    // All of it, through the mount and below.
    let blocks = &world.blocks[..world.len.load(SeqCst)];
    let word = |(at, block): (usize, &Block)| TAG | (at as u64) << 32 | block.done.load(SeqCst);
    let wanted: Vec<u8> =
        blocks.iter().enumerate().flat_map(|found| word(found).to_le_bytes().repeat(BLOCK / 8)).collect();
    rig.same("file", &wanted);
    // Readers are served before what they read is written.
    wait_for("the end of a recall", || ["dual", "resident"].contains(&rig.state("file").as_str()));
    assert_same(&fs::read(rig.low("file")).unwrap(), &wanted, "below");
    assert!(world.tally.stubs.load(SeqCst) > 0, "the file was never released");
}

/// Small files are recalled by their open, large ones by their readers.
const SMALL: usize = 5 * ACTORS;
const LARGE: usize = 56 * ACTORS;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

fn clock() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_micros() as u64
}

#[test]
fn on_a_small_file() {
    rounds(Setup::default(), SMALL, 500, number("TIERFS_SEED", clock()));
}

#[test]
fn on_a_large_file() {
    rounds(Setup::xfs(), LARGE, 300, number("TIERFS_SEED", clock()));
}

/// `make rounds`: each filesystem and size gets a quarter of them.
#[test]
#[ignore = "takes minutes: make rounds"]
fn many() {
    let (all, seed) = (number("TIERFS_ROUNDS", 100_000), number("TIERFS_SEED", clock()));
    for setup in [Setup::default(), Setup::xfs()] {
        for base in [SMALL, LARGE] {
            rounds(setup.clone(), base, all.div_ceil(4), seed);
        }
    }
}
