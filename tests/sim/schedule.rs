//! One schedule: processes live, die and start again until one comes to its end in peace; then everything is looked at.

use std::sync::Arc;
use std::time::Duration;

use tierfs::engine::{Engine, Limits, Packing, Target};
use tierfs::fs::{Fs, FsOptions};
use tierfs::ports::{FileKind, Journal, Lower, Remote};
use tierfs::record::PairRef;

use crate::bugs::Bug;
use crate::client::{Client, Do, NAMES, SUB_INO, random};
use crate::content::{Content, PAGE};
use crate::dice::Dice;
use crate::disk::{Change, Node};
use crate::inspect;
use crate::journal::SimJournal;
use crate::kernel::Kernel;
use crate::plan::{Event, Kind, Plan};
use crate::remote::SimRemote;
use crate::share::{ROOT_INO, SimShare};
use crate::stats::Stats;
use crate::truth::File;
use crate::world::{SimClock, World, word};

/// Bytes a chunk: the least that is allowed.
pub const CHUNK: u64 = 64 << 10;
/// Whoever waits for longer than this waits for ever.
const LIFE_MAX: Duration = Duration::from_secs(4 * 3600);
/// After so many crashes the process is left in peace.
const LIVES_MAX: u32 = 8;

/// What a schedule is made of.
#[derive(Clone, Debug)]
pub struct Spec {
    pub seed: u64,
    /// What the users of the first life do, each; `None`: by dice, and in later lives too.
    pub scripts: Option<Vec<Vec<Do>>>,
    pub plan: Plan,
    pub bug: Option<Bug>,
    /// Keep the trace as text.
    pub told: bool,
}

#[derive(Debug)]
pub struct Ended {
    pub broken: Option<String>,
    pub trace: u64,
    pub operations: u64,
    pub kinds: Vec<Kind>,
    pub stats: Stats,
    pub told: String,
}

/// How a process lives.
#[derive(Clone, Copy)]
struct Manner {
    passthrough: bool,
    recall_at_open_max: u64,
    retention_s: u64,
    recalled_for_s: Option<u64>,
    fetches_per_file: usize,
    pack: bool,
}

/// A schedule by dice alone.
pub fn random_spec(seed: u64) -> Spec {
    let mut dice = Dice::new(seed);
    let within = [60, 250, 700][dice.below(3) as usize];
    Spec { seed, scripts: None, plan: Plan::random(&mut dice, within), bug: None, told: false }
}

pub fn run(spec: &Spec) -> Ended {
    let world = World::new(spec.seed, spec.plan.clone(), spec.bug, spec.told);
    world.lock().kinds = Some(Vec::new());
    let mut dice = Dice::new(spec.seed ^ 0xd1ce);
    populate(&world, &mut dice);
    let manner = Manner {
        passthrough: !dice.once_in(4),
        recall_at_open_max: [0, CHUNK, 1 << 20][dice.below(3) as usize],
        retention_s: if dice.once_in(3) { 20 } else { 0 },
        // By other dice, so that schedules of old seeds stay as they were.
        recalled_for_s: [None, Some(0), Some(20)][Dice::new(spec.seed ^ 0x4ca1).below(3) as usize],
        fetches_per_file: 1 + dice.below(3) as usize,
        // Not by dice: what they say of all else stays.
        pack: spec.seed % 4 == 2,
    };
    for life in 0.. {
        let scripts = match &spec.scripts {
            Some(scripts) if life == 0 => scripts.clone(),
            Some(_) => Vec::new(),
            None => {
                let (users, steps) = (1 + dice.below(4), 4 + dice.below(20));
                (0..users).map(|_| random(&mut dice, steps)).collect()
            }
        };
        if life >= LIVES_MAX {
            world.lock().calm = true;
        }
        let peaceful = live(&world, manner, scripts, &mut dice);
        let crashed = world.lock().crashed;
        bury(&world, crashed, &mut dice);
        if world.lock().broken.is_some() {
            break;
        }
        if peaceful && crashed.is_none() {
            world.lock().calm = true;
            live(&world, manner, Vec::new(), &mut dice);
            break;
        }
    }
    let mut state = world.lock();
    Ended {
        broken: state.broken.take(),
        trace: state.trace(),
        operations: state.operations,
        kinds: state.kinds.take().unwrap_or_default(),
        stats: std::mem::take(&mut state.stats),
        told: state.told().to_owned(),
    }
}

/// The share as it is before tiering begins.
fn populate(world: &World, dice: &mut Dice) {
    let mut state = world.lock();
    let at = state.stamp();
    let root = Node::new(FileKind::Directory, 1, 0o755, at);
    state.disk.seen.nodes.insert(ROOT_INO, root);
    state.disk.begin();
    let sub = Box::new(Node::new(FileKind::Directory, 2, 0o755, at));
    state.disk.change(Change::Create { dir: ROOT_INO, name: "d".into(), ino: SUB_INO, node: sub }, at);
    for (number, (dir, name)) in (12..).zip(NAMES.into_iter().take(4)) {
        let birth = state.next();
        let size = match number {
            // Always there, of one chunk and of two.
            12 => 300 + dice.below(3000),
            13 => CHUNK + 5 + dice.below(2 * PAGE),
            _ => [1, 5_000, 2 * CHUNK + 77][dice.below(3) as usize],
        };
        let mut bytes = Vec::new();
        for page in 0..size.div_ceil(PAGE) {
            let len = (size - page * PAGE).min(PAGE) as usize;
            let word = word(1_000_000 + number * 100 + page).repeat(len.div_ceil(8));
            bytes.extend_from_slice(&word[..len]);
        }
        let mut node = Node::new(FileKind::Regular, birth, 0o644, at);
        node.content = Content::of(&bytes);
        state.truth.files.insert((number, birth), File::new(node.content.clone(), at, 0o644));
        state.disk.change(Change::Create { dir, name: name.into(), ino: number, node: Box::new(node) }, at);
    }
    state.disk.sync_all();
}

/// What is left of the users and of the disk when a process is gone.
fn bury(world: &World, crashed: Option<Event>, dice: &mut Dice) {
    let mut state = world.lock();
    if let Some(crash) = crashed {
        let what = inspect::situation(&state);
        let crash = if crash == Event::Kill { "killed" } else { "power lost" };
        state.stats.count(format!("{crash} {what}"));
    }
    // Users' own open files: most programs end when the mount is dead, all do with the power.
    let keep = crashed == Some(Event::Kill);
    let direct: Vec<u64> = state.opens.iter().filter(|(_, open)| open.direct).map(|(id, _)| *id).collect();
    for id in direct {
        if !keep || dice.once_in(2) {
            state.close(id);
        }
    }
    state.end(1_000_000 + dice.below(20_000_000_000));
    if let Some(Event::PowerLoss(luck)) = crashed {
        state.disk.lose_power(&mut Dice::new(luck));
        state.lost_power = true;
        state.mounted += 1;
    }
}

/// One process from its start to its end; `true` if nothing killed it.
fn live(world: &Arc<World>, manner: Manner, scripts: Vec<Vec<Do>>, dice: &mut Dice) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime needs memory only");
    let peaceful = runtime.block_on(async {
        let life = {
            let mut state = world.lock();
            state.serving = false;
            state.begin()
        };
        let peaceful = tokio::select! {
            biased;
            () = world.ended.notified() => false,
            ended = tokio::time::timeout(LIFE_MAX, serve(world.clone(), life, manner, scripts, dice)) => {
                if ended.is_err() {
                    world.lock().broken(format!("somebody waits for longer than {} s", LIFE_MAX.as_secs()));
                }
                ended.unwrap_or(false)
            }
        };
        world.lock().stop_clock();
        peaceful
    });
    drop(runtime);
    peaceful && world.lock().crashed.is_none()
}

async fn serve(world: Arc<World>, life: u32, manner: Manner, scripts: Vec<Vec<Do>>, dice: &mut Dice) -> bool {
    let share = Arc::new(SimShare { world: world.clone(), life });
    let lower: Arc<dyn Lower> = share.clone();
    let journal: Arc<dyn Journal> = Arc::new(SimJournal { world: world.clone(), life });
    let remote: Arc<dyn Remote> = Arc::new(SimRemote { world: world.clone(), life, chunk_size: CHUNK });
    let pair = PairRef {
        name: "p".parse().expect("it is a name"),
        local_cluster: "east".parse().expect("it is a name"),
        local_share: "s".into(),
        remote_cluster: "west".parse().expect("it is a name"),
        remote_share: "b".into(),
    };
    let target = Target {
        pair,
        prefix: "p".into(),
        remote,
        chunk_size: Some(CHUNK as u32),
        retention_s: manner.retention_s,
        recalled_for_s: manner.recalled_for_s,
        peer: false,
        recall: Default::default(),
        restore: Default::default(),
        // One alone is packed, too: two at a time are seldom here.
        pack: manner.pack.then_some(Packing { below: CHUNK + 1, members_min: 1 }),
    };
    let limits = Limits { fetches_per_file: manner.fetches_per_file, ..Limits::default() };
    let runtime = tokio::runtime::Handle::current();
    let clock = Arc::new(SimClock(world.clone()));
    let engine = Engine::new(lower.clone(), journal, clock, Some(target), runtime, limits);
    // A start that fails is made again, as a supervisor does.
    for attempt in 0.. {
        match engine.recover().await {
            Ok(_) => break,
            Err(error) => {
                let mut state = world.lock();
                if !state.lives(life) {
                    return false;
                }
                if attempt > 8 || state.faults == 0 {
                    state.broken(format!("the start fails: {error}"));
                    return false;
                }
                (state.poisoned, state.serving) = (false, false);
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    if !inspect::after_start(&world, life) {
        return false;
    }
    let options = FsOptions {
        passthrough: manner.passthrough,
        recall_at_open_max: manner.recall_at_open_max,
        ..FsOptions::default()
    };
    let fs = Fs::new(lower, engine.clone(), options, life);
    engine.start_deletions();
    let kernel = Kernel::new(world.clone(), fs, share, life);
    let leftover = tokio::spawn(leave(kernel.clone(), dice.below(3000)));
    let users: Vec<_> =
        scripts.into_iter().map(|script| tokio::spawn(Client::new(kernel.clone()).follow(script))).collect();
    for user in users {
        if let Err(error) = user.await {
            world.lock().broken(format!("a panic: {}", panic_text(error)));
            return false;
        }
    }
    drop(leftover.await);
    let calm = world.lock().calm;
    if calm {
        inspect::at_the_end(&kernel, manner.retention_s + manner.recalled_for_s.unwrap_or(0)).await;
        return world.is_alive(life);
    }
    // Unmounted: no transfer begins any more, and those that run have time to end.
    engine.stop();
    let rest = async {
        while !engine.is_idle() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(600), rest).await.is_err() {
        world.lock().broken("a transfer does not end".into());
    }
    world.is_alive(life)
}

/// Programs that outlived the process before still have files open: they write for a while, and end.
async fn leave(kernel: Arc<Kernel>, within_ms: u64) {
    let left: Vec<(u64, u64, bool)> = {
        let state = kernel.world.lock();
        let direct = state.opens.iter().filter(|(_, open)| open.direct);
        direct.map(|(id, open)| (*id, open.ino, open.write)).collect()
    };
    for (id, ino, write) in left {
        tokio::time::sleep(Duration::from_millis(within_ms)).await;
        let mut state = kernel.world.lock();
        if !state.lives(kernel.life) {
            return;
        }
        state.stats.count("outlived by a user");
        if write {
            let data = word(state.next()).repeat(3);
            state.direct_write(ino, 0, &data, false);
        }
        state.close(id);
    }
}

fn panic_text(error: tokio::task::JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "without words".into()),
        Err(error) => error.to_string(),
    }
}
