//! Rounds: users on both sides, a link that fails; then all is healed, and both sides must agree.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use tierfs::record::{PeerState, Phase};

use crate::dice::Dice;
use crate::oracle::File;
use crate::sides::Sides;
use crate::users::{Round, whole};

/// How long users are at work in a round.
const WORK: Duration = Duration::from_millis(1_800);
/// How long healed sides may take to agree: who waits for the other side does so for 30 s, and asks at most 30 s apart.
const PATIENCE: Duration = Duration::from_secs(90);
const FILES: usize = 4;
/// Users of each side.
const USERS: u64 = 2;

/// What two records say of one moment; `None`: they may.
fn contradiction(east: &PeerState, west: &PeerState) -> Option<&'static str> {
    use Phase::{Offering, Owner, Stub, Taking};
    let (behind, ahead) = if east.epoch <= west.epoch { (east, west) } else { (west, east) };
    match (ahead.epoch - behind.epoch, behind.phase, ahead.phase) {
        (_, Owner { .. }, Owner { .. }) => Some("two owners"),
        (_, Stub, Stub) => Some("two stubs"),
        (0, Owner { .. } | Offering, Stub | Taking) | (0, Stub | Taking, Owner { .. } | Offering) => None,
        (1, Offering, Owner { .. } | Offering) | (1, Taking, Stub | Taking) => None,
        _ => Some("nobody's content, or everybody's"),
    }
}

/// Looks at both records at one moment: east's before and after west's are the same.
fn look(round: &Round, file: &File) -> Option<(PeerState, PeerState)> {
    let name = match file.try_read() {
        Ok(known) => known.names[0].clone().filter(|_| known.names[1].is_some())?,
        Err(_) => return None,
    };
    let [east, west] = &round.sides.sides;
    let before = east.peer(&name)?;
    let there = west.peer(&name)?;
    (east.peer(&name)? == before && before.id == there.id).then_some((before, there))
}

fn watch(round: &Round, looks: &AtomicU64) {
    while !round.is_over() {
        round.meet();
        for file in round.files.read().unwrap().clone() {
            if let Some((east, west)) = look(round, &file) {
                looks.fetch_add(1, Ordering::SeqCst);
                if let Some(what) = contradiction(&east, &west) {
                    round.complain(format!("{what}:\neast {east:?}\nwest {west:?}"));
                }
            }
        }
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// The link fails, in one way at a time, and is healed.
fn disturb(round: &Round, dice: &mut Dice) {
    let sides = round.sides;
    let sleep = |ms: u64| {
        let until = Instant::now() + Duration::from_millis(ms);
        while Instant::now() < until && !round.is_over() {
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    while !round.is_over() {
        sleep(dice.below(500));
        let orders = &sides.sides[dice.below(2) as usize].orders;
        match dice.below(8) {
            0 | 1 => sides.link.set(false),
            2 => orders.delay.store(5 + dice.below(100), Ordering::SeqCst),
            3 => orders.stalled.store(true, Ordering::SeqCst),
            4 | 5 => orders.broken.store(true, Ordering::SeqCst),
            _ => orders.lose.store(1 + dice.below(8), Ordering::SeqCst),
        }
        sleep(50 + dice.below(900));
        sides.heal();
    }
}

/// Healed, both sides come to agree on every file, within a time; its writers get on.
fn settle(round: &Round, dice: &mut Dice) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    let pause = || std::thread::sleep(Duration::from_millis(30));
    for file in round.files.read().unwrap().clone() {
        loop {
            round.meet();
            let decided =
                look(round, &file).is_some_and(|(east, west)| !east.is_handing_over() && !west.is_handing_over());
            if decided {
                break;
            }
            if Instant::now() > deadline {
                let names = file.read().unwrap().names.clone();
                let peers = [0, 1].map(|side| names[0].as_ref().map(|name| round.sides.sides[side].peer(name)));
                return Err(format!("{names:?} is not decided: {peers:?}"));
            }
            pause();
        }
        agreed(round, &file, deadline)?;
        // Each side in turn writes, and the other sees it.
        for side in if dice.below(2) == 0 { [0, 1] } else { [1, 0] } {
            let name = file.read().unwrap().names[side].clone().expect("they have met");
            let path = round.sides.sides[side].mnt(name);
            let mut last = None;
            loop {
                match fs::OpenOptions::new().append(true).open(&path) {
                    Ok(opened) => {
                        let mut known = file.write().unwrap();
                        let data = dice.bytes(700);
                        let content = [known.newest(), &data].concat();
                        known.tried(content);
                        let result = io_write(&opened, &data);
                        result.map_err(|error| format!("{}: {error}", path.display()))?;
                        known.done(side);
                        break;
                    }
                    Err(error) if Instant::now() > deadline => {
                        return Err(format!("{}: {error} (and {last:?}): no writer gets on", path.display()));
                    }
                    Err(error) => last = Some(error),
                }
                pause();
            }
            agreed(round, &file, deadline)?;
        }
    }
    Ok(())
}

fn io_write(mut file: &fs::File, data: &[u8]) -> std::io::Result<()> {
    std::io::Write::write_all(&mut file, data)?;
    file.sync_all()
}

/// Both sides show the newest content, with the same size and times.
fn agreed(round: &Round, file: &File, deadline: Instant) -> Result<(), String> {
    let known = file.read().unwrap();
    loop {
        let mut wrong = None;
        for side in [0, 1] {
            let path = round.sides.sides[side].mnt(known.names[side].as_ref().expect("they have met"));
            match whole(&path) {
                Ok(found) => wrong = wrong.or(known.settled(&found).err()),
                Err(error) => wrong = wrong.or(Some(format!("{}: {error}", path.display()))),
            }
        }
        let shown = [0, 1].map(|side| {
            use std::os::unix::fs::MetadataExt;
            let name = known.names[side].as_ref().expect("they have met");
            fs::metadata(round.sides.sides[side].mnt(name))
                .map(|meta| (meta.len(), meta.mtime(), meta.mtime_nsec()))
                .ok()
        });
        if wrong.is_none() && shown[0] != shown[1] {
            wrong = Some(format!("{:?}: stat shows {shown:?}", known.names));
        }
        let Some(why) = wrong else { return Ok(()) };
        if Instant::now() > deadline {
            return Err(why);
        }
        std::thread::sleep(Duration::from_millis(30));
    }
}

fn play(sides: &Sides, seed: u64, number: u64, counts: &mut BTreeMap<String, u64>) -> Result<(), String> {
    let dir = format!("round{number}");
    fs::create_dir(sides.sides[0].mnt(&dir)).map_err(|error| format!("{dir}: {error}"))?;
    let round = Round {
        sides,
        number,
        files: RwLock::new(Vec::new()),
        names: AtomicU64::new(0),
        over: AtomicBool::new(false),
        wrong: Mutex::default(),
        counts: Mutex::default(),
    };
    let mut dice = Dice::new(seed, number, 0);
    for _ in 0..FILES {
        round.create(&mut dice);
    }
    let (looks, busy) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (round, busy) = (&round, &busy);
        for side in [0, 1] {
            for user in 0..USERS {
                busy.fetch_add(1, Ordering::SeqCst);
                scope.spawn(move || {
                    round.user(side, &mut Dice::new(seed, number, 10 + 2 * user + side as u64));
                    busy.fetch_sub(1, Ordering::SeqCst);
                });
            }
        }
        scope.spawn(|| watch(round, &looks));
        scope.spawn(move || disturb(round, &mut Dice::new(seed, number, 1)));
        let until = Instant::now() + WORK;
        while Instant::now() < until && !round.is_over() {
            std::thread::sleep(Duration::from_millis(20));
        }
        round.over.store(true, Ordering::SeqCst);
        // Whoever waits for the other side does so for half a minute. A call that hangs would hang this test, too: its daemon is ended.
        let deadline = Instant::now() + PATIENCE;
        while busy.load(Ordering::SeqCst) > 0 {
            if Instant::now() > deadline {
                round.complain(format!("a user waits for more than {PATIENCE:?}"));
                sides.kill();
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    sides.heal();
    for (what, count) in round.counts.lock().unwrap().iter() {
        *counts.entry(what.clone()).or_default() += count;
    }
    *counts.entry("looks at both records".into()).or_default() += looks.into_inner();
    let lost = sides.sides.iter().map(|side| side.orders.lost.swap(0, Ordering::SeqCst)).sum::<u64>();
    *counts.entry("answers lost to calls for a handover".into()).or_default() += lost;
    let wrong = std::mem::take(&mut *round.wrong.lock().unwrap());
    if !wrong.is_empty() {
        return Err(wrong.join("\n"));
    }
    settle(&round, &mut dice)?;
    // The master removes all of it, and the slave follows.
    fs::remove_dir_all(sides.sides[0].mnt(&dir)).map_err(|error| format!("{dir}: {error}"))?;
    let deadline = Instant::now() + PATIENCE;
    while sides.sides[1].share().join(&dir).exists() {
        if Instant::now() > deadline {
            return Err(format!("{dir} was removed on east, and is still on west"));
        }
        std::thread::sleep(Duration::from_millis(30));
    }
    Ok(())
}

fn rounds(kind: &str, rounds: u64, seed: u64) {
    let Some(sides) = Sides::new(kind) else { return };
    let (began, mut counts) = (Instant::now(), BTreeMap::new());
    println!("TIERFS_SEED={seed}, {kind}");
    for number in 1..=rounds {
        if let Err(why) = play(&sides, seed, number, &mut counts) {
            panic!("round {number} of seed {seed} on {kind}: {why}\n{}", sides.logs());
        }
        if number % 10 == 0 {
            println!("{number} rounds, {:.0} s", began.elapsed().as_secs_f64());
        }
    }
    println!("{rounds} rounds on {kind}, {:.0} s: {counts:#?}", began.elapsed().as_secs_f64());
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().filter(|value| !value.is_empty()).map(|value| value.parse().expect("a number"))
}

#[test]
fn a_few_on_ext4() {
    rounds("ext4", 3, 1);
}

#[test]
fn a_few_on_xfs() {
    rounds("xfs", 2, 2);
}

#[test]
#[ignore = "minutes: `make pairs-rounds`"]
fn many() {
    let seed = setting("TIERFS_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let all = setting("TIERFS_ROUNDS").unwrap_or(200);
    let half = all.div_ceil(2);
    rounds("ext4", half, seed);
    rounds("xfs", all - half, seed + 1);
}

/// The harness itself sees what it is there to see.
#[test]
fn contradictions_are_seen() {
    let state = |epoch, phase| PeerState { epoch, phase, ..sample() };
    let owner = Phase::Owner { published: true };
    let check = |east, west, want: Option<&str>| {
        assert_eq!(contradiction(&east, &west), want);
        assert_eq!(contradiction(&west, &east), want);
    };
    check(state(1, owner), state(1, Phase::Stub), None);
    check(state(1, Phase::Offering), state(2, owner), None);
    check(state(1, Phase::Taking), state(2, Phase::Stub), None);
    check(state(1, owner), state(1, owner), Some("two owners"));
    check(state(1, owner), state(2, owner), Some("two owners"));
    check(state(1, Phase::Stub), state(2, Phase::Stub), Some("two stubs"));
    check(state(1, owner), state(2, Phase::Stub), Some("nobody's content, or everybody's"));
    check(state(1, Phase::Stub), state(2, owner), Some("nobody's content, or everybody's"));
    check(state(1, Phase::Taking), state(1, Phase::Taking), Some("nobody's content, or everybody's"));
}

fn sample() -> PeerState {
    let none = tierfs::types::FileId { ino: 0, birth: 0 };
    PeerState {
        pair: "gp".parse().unwrap(),
        id: tierfs::types::PairFileId([1; 16]),
        here: none,
        there: none,
        epoch: 1,
        phase: Phase::Stub,
        content: tierfs::record::Seal { len: 0, mtime: Default::default() },
        offered: None,
        attempt: 0,
        refused: Default::default(),
        was_len: None,
    }
}
