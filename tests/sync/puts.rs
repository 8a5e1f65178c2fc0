//! What a crash or a loss of power leaves of PUTs: one that was answered is there, whole; one that was not has left what was there, or what it
//! brought, and nothing else anywhere. Both sides' gateways take them in turn, so each is over a stub whose content the other side has.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use tempfile::TempDir;
use tierfs::record::Record;
use tokio::runtime::Runtime;

use crate::dice::Dice;
use crate::disk::Disk;
use crate::hostile::client;
use crate::tools::*;
use crate::two::{BUCKET, Side, Two};

/// Who puts, each to a key of its own.
const WRITERS: usize = 3;
const SMALL_MAX: u64 = 200 << 10;
/// The shortest that a part may be which is not the last.
const PART: usize = 5 << 20;

/// Two clusters whose disks lose what they were not told to keep.
struct Powered {
    two: Two,
    disks: [Disk; 2],
    // Behind what stands on it.
    _dirs: [TempDir; 2],
}

/// What a key was, in order, from the last that is certain.
struct Key {
    name: String,
    versions: Vec<Vec<u8>>,
    /// Answered: this, or a later one.
    certain: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    Killed,
    Power,
    /// Both sides lose it.
    AllPower,
}

impl Powered {
    fn new(kind: &'static str) -> Option<Self> {
        let two = Two::unmounted(kind, "slave")?;
        let dirs = [(); 2].map(|()| tempfile::Builder::new().prefix("tierfs-disk-").tempdir().unwrap());
        let before = |side: &Side, at: &TempDir| {
            side.fs.unmount();
            let disk = Disk::new(&side.fs.image(), at.path());
            side.fs.mount_instead(disk.file());
            side.fs.mount();
            disk
        };
        let disks = [before(&two.east, &dirs[0]), before(&two.west, &dirs[1])];
        Some(Self { two: two.mounted(), disks, _dirs: dirs })
    }

    fn side(&mut self, side: usize) -> &mut Side {
        if side == 0 { &mut self.two.east } else { &mut self.two.west }
    }

    fn lose(&mut self, side: usize, power: bool, seed: u64) {
        // Nobody is answered any more.
        self.side(side).crash();
        if !power {
            return;
        }
        self.disks[side].cut(seed);
        let Self { two, disks, .. } = self;
        let lost = if side == 0 { &two.east } else { &two.west };
        wait_for("the filesystem to be left", || lost.fs.try_unmount());
        disks[side].restore();
        lost.fs.mount_instead(disks[side].file());
        lost.fs.mount();
    }
}

async fn put_in_parts(client: &Client, key: &str, content: &[u8]) -> Result<(), (String, bool)> {
    let early = |error: String| (error, true);
    let begun = client.create_multipart_upload().bucket(BUCKET).key(key).send().await;
    let id = begun.map_err(|error| early(format!("{error:?}")))?.upload_id.unwrap_or_default();
    let mut parts = Vec::new();
    for (number, part) in (1..).zip(content.chunks(PART)) {
        let sent = client.upload_part().bucket(BUCKET).key(key).upload_id(&id).part_number(number);
        let sent =
            sent.body(ByteStream::from(part.to_vec())).send().await.map_err(|error| early(format!("{error:?}")))?;
        parts.push(CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag).build());
    }
    let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
    let done = client.complete_multipart_upload().bucket(BUCKET).key(key).upload_id(&id).multipart_upload(parts);
    done.send().await.map(drop).map_err(|error| (format!("{error:?}"), error.as_service_error().is_some()))
}

/// What failed, and whether that was said by the gateway.
async fn put(client: &Client, key: &str, content: &[u8]) -> Result<(), (String, bool)> {
    if content.len() > PART {
        return put_in_parts(client, key, content).await;
    }
    let put = client.put_object().bucket(BUCKET).key(key).body(ByteStream::from(content.to_vec())).send().await;
    put.map(drop).map_err(|error| (format!("{error:?}"), error.as_service_error().is_some()))
}

impl Key {
    /// Puts by turns to both sides until it is over.
    fn work(&mut self, clients: &[Client; 2], dice: &mut Dice, over: &AtomicBool, done: &AtomicU64) {
        let runtime = Runtime::new().unwrap();
        for turn in dice.below(2).. {
            if over.load(Ordering::SeqCst) {
                return;
            }
            let len = match dice.below(12) {
                0 => 0,
                1 => PART + 1 + dice.below(SMALL_MAX) as usize,
                _ => 1 + dice.below(SMALL_MAX) as usize,
            };
            let content = dice.bytes(len);
            self.versions.push(content.clone());
            match runtime.block_on(put(&clients[turn as usize % 2], &self.name, &content)) {
                Ok(()) => {
                    self.certain = self.versions.len() - 1;
                    done.fetch_add(1, Ordering::SeqCst);
                }
                // Who was told that it failed must not find it.
                Err((_, true)) => {
                    self.versions.pop();
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err((_, false)) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// What it is now must be one of what it may be. Both sides come to show the same.
    fn check(&mut self, two: &Two, told: &str) {
        let deadline = Instant::now() + SOON;
        let found = loop {
            let found = [&two.east, &two.west].map(|side| fs::read(side.mnt(&self.name)));
            let lens = match found {
                [Ok(east), Ok(west)] if east == west => break east,
                found => found.map(|found| found.map(|found| found.len())),
            };
            if Instant::now() > deadline {
                let records = [&two.east, &two.west].map(|side| {
                    let stored = xattr(&side.low(&self.name), "trusted.tierfs.record").unwrap_or_default();
                    Record::decode(&stored).map(|record| (record.claim, record.generation, record.peer))
                });
                panic!("{told}: {}: the sides show {lens:?}, and have\n{records:#?}", self.name);
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let at = self.versions.iter().rposition(|version| *version == found);
        let lens: Vec<usize> = self.versions.iter().map(Vec::len).collect();
        assert!(
            at.is_some_and(|at| at >= self.certain),
            "{told}: {} is version {at:?} ({} bytes), and {} was answered; of {lens:?} bytes",
            self.name,
            found.len(),
            self.certain
        );
        (self.versions, self.certain) = (vec![found], 0);
    }
}

/// Names that a PUT has left on its way in.
fn staged(side: &Side) -> Vec<String> {
    let own = side.low(".tierfs-gateway").join("u0");
    let names = fs::read_dir(own).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter_map(|name| name.into_string().ok()).filter(|name| name.starts_with("put-")).collect()
}

fn rounds(kind: &'static str, seed: u64, losses: &[(usize, Loss)], lies: bool) {
    let Some(mut powered) = Powered::new(kind) else { return };
    let clients = [client(&powered.two.east, "root"), client(&powered.two.west, "root")];
    let runtime = Runtime::new().unwrap();
    let mut keys: Vec<Key> =
        (0..WRITERS).map(|n| Key { name: format!("k{n}"), versions: vec![b"at first".to_vec()], certain: 0 }).collect();
    for key in &keys {
        runtime.block_on(put(&clients[0], &key.name, b"at first")).unwrap();
    }
    powered.two.equal();
    if lies {
        powered.disks.iter().for_each(Disk::lies);
    }
    let mut dice = Dice::new(seed);
    for (round, (side, loss)) in losses.iter().enumerate() {
        let told = format!("{kind}, seed {seed}, round {round}: {loss:?} at {}", ["east", "west"][*side]);
        let (over, done) = (AtomicBool::new(false), AtomicU64::new(0));
        let (enough, pause) = (3 + dice.below(8), Duration::from_millis(dice.below(60)));
        let seeds: Vec<u64> = keys.iter().map(|_| dice.roll()).collect();
        std::thread::scope(|scope| {
            for (key, seed) in keys.iter_mut().zip(&seeds) {
                let (clients, over, done) = (&clients, &over, &done);
                scope.spawn(move || key.work(clients, &mut Dice::new(*seed), over, done));
            }
            let _stops = OnDrop(&over);
            wait_for("PUTs that are answered", || done.load(Ordering::SeqCst) >= enough);
            std::thread::sleep(pause);
            let power = *loss != Loss::Killed;
            powered.lose(*side, power, dice.roll());
            if *loss == Loss::AllPower {
                powered.lose(1 - side, power, dice.roll());
            }
        });
        for side in [0, 1] {
            if powered.side(side).daemon.is_none() {
                powered.side(side).mount();
                assert_eq!(staged(powered.side(side)), [""; 0], "{told}");
            }
        }
        for key in &mut keys {
            key.check(&powered.two, &told);
        }
        powered.two.equal();
    }
}

/// Writers end when the test does.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

const ROUNDS: [(usize, Loss); 6] =
    [(1, Loss::Killed), (0, Loss::Power), (1, Loss::Power), (0, Loss::Killed), (1, Loss::AllPower), (1, Loss::Power)];

#[test]
fn what_was_answered_survives_on_ext4() {
    rounds("ext4", 1, &ROUNDS, false);
}

#[test]
fn what_was_answered_survives_on_xfs() {
    rounds("xfs", 2, &ROUNDS, false);
}

/// Those who check are checked: a disk that forgets what it was told to keep is found out.
#[test]
#[should_panic(expected = "was answered")]
fn a_disk_that_lies_is_found_out() {
    if !crate::common::can_mount() {
        panic!("mounting is not possible here: nothing was answered");
    }
    rounds("ext4", 3, &[(0, Loss::AllPower); 4], true);
}

#[test]
#[ignore = "minutes: PUTS_ROUNDS=, PUTS_SEED="]
fn what_was_answered_survives_at_length() {
    let setting =
        |name: &str, unless: u64| std::env::var(name).map_or(unless, |value| value.parse().expect("a number"));
    let (rounds_wanted, seed) = (setting("PUTS_ROUNDS", 60), setting("PUTS_SEED", 7));
    let mut dice = Dice::new(seed);
    let losses: Vec<(usize, Loss)> = (0..rounds_wanted)
        .map(|_| {
            let loss = [Loss::Killed, Loss::Power, Loss::Power, Loss::AllPower][dice.below(4) as usize];
            (dice.below(2) as usize, loss)
        })
        .collect();
    for kind in ["ext4", "xfs"] {
        rounds(kind, seed, &losses, false);
    }
}
