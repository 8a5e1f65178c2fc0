//! A mount with its writers, and the ways in which it comes to an end.
//!
//! Every round: work, a loss in the midst of it, what survived is mounted (a crash may meet the recovery, too), everything is compared. What
//! survived one round is what the next begins with.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::dice::Dice;
use crate::disk::{Cut, Disk};
use crate::load::{Fixed, Writer, move_files, write_back};
use crate::mover::StopAtEnd;
use crate::oracle::Loss;
use crate::rig::*;
use crate::survivors::{Survivors, survivors};

const WRITERS: u64 = 3;
const MOVERS: u64 = 2;

/// How the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// Nobody cuts it.
    Stays,
    /// The filesystem below is shut down without a flush of its log: what it has not submitted is lost.
    Shutdown,
    /// The disk below loses, keeps or tears what it was not told to flush.
    Disk,
}

/// What the rounds of a scene met.
#[derive(Debug, Default)]
pub struct Tally {
    pub kills: u64,
    pub cuts: u64,
    /// Cuts before which somebody else had synced the filesystem.
    pub spoilt: u64,
    /// Deaths in the midst of a recovery.
    pub in_recovery: u64,
    pub survivors: Survivors,
    /// Names that lost changes to a cut, and cuts that cost some.
    pub lost: u64,
    pub losing_cuts: u64,
    /// Files left with bytes of several moments.
    pub mixed: u64,
    pub steps: u64,
    pub transfers: u64,
    /// Times the endpoint was gone for a moment.
    pub endpoint_restarts: u64,
    pub blocks: Cut,
}

pub struct Scene {
    pub rig: Rig,
    power: Power,
    /// Objects that nobody names stay for an hour.
    keeps: bool,
    disk: Option<Disk>,
    writers: Vec<Writer>,
    fixed: Fixed,
    pub dice: Dice,
    pub tally: Tally,
    /// Set when the power goes.
    lost: Arc<AtomicBool>,
    told: String,
}

impl Scene {
    /// `None` where nothing can be mounted, which is said. `state_below`: the journal loses power with the share.
    pub fn new(kind: &'static str, power: Power, state_below: bool, seed: u64) -> Option<Self> {
        // With a retention, and the journal elsewhere, nothing else syncs what a change of content must have synced.
        let keeps = power != Power::Stays && !state_below;
        // Where points are to be reached, what was recalled is given up in rounds that want it: else nothing would stay dual.
        let recalled = if power == Power::Stays { "24h" } else { "1s" };
        Self::with_retentions(kind, power, state_below, seed, [if keeps { "1h" } else { "0s" }, recalled])
    }

    /// As [`Scene::new`], with the retentions that are wished: of what is superseded or removed, and of what was recalled.
    pub fn with_retentions(
        kind: &'static str,
        power: Power,
        state_below: bool,
        seed: u64,
        [retention, recall_retention]: [&'static str; 2],
    ) -> Option<Self> {
        // Nothing is to be durable that was not synced; xfs waits for half a minute anyway.
        let below = if kind == "ext4" { ",commit=3600" } else { "" };
        let base = if kind == "xfs" { Setup::xfs() } else { Setup::default() };
        let keeps = retention != "0s";
        let mut rig = Setup { below, state_below, retention, recall_retention, mounted: false, ..base }.build()?;
        let disk = if power == Power::Disk {
            rig.fs.unmount();
            let at = rig.scratch("disk");
            fs::create_dir(&at).unwrap();
            let disk = Disk::new(&rig.fs.image(), &at);
            rig.fs.mount_instead(disk.file());
            rig.fs.mount();
            Some(disk)
        } else {
            None
        };
        rig.mount();
        let lost = Arc::new(AtomicBool::new(false));
        let writers = (0..WRITERS).map(|n| Writer::new(&rig.mountpoint(), n, seed, lost.clone())).collect();
        let fixed = Fixed::new(&rig);
        let told =
            format!("{kind}, {power:?}, journal {}, seed {seed}", if state_below { "below" } else { "elsewhere" });
        let dice = Dice::new(seed);
        let scene = Self { rig, power, keeps, disk, writers, fixed, dice, tally: Tally::default(), lost, told };
        scene.sync();
        Some(scene)
    }

    /// Somebody syncs the filesystem below.
    pub fn sync(&self) {
        rustix::fs::syncfs(File::open(self.rig.fs.path()).unwrap()).unwrap();
    }

    /// Lets everybody work until `end` has ended the daemon.
    fn work(&mut self, calm: bool, end: impl FnOnce(&mut Rig, &dyn Fn() -> Option<String>)) {
        let Self { rig, power, writers, fixed, dice, tally, .. } = self;
        let mount = rig.mountpoint();
        let fixed_paths = fixed.paths(&mount);
        let paths: Vec<PathBuf> = writers.iter().flat_map(Writer::paths).chain(fixed_paths).collect();
        let seed = dice.roll();
        let moving = if calm { 0 } else { MOVERS };
        let writes_back = *power != Power::Stays && dice.once_in(2);
        let (stop, moved, troubles) = (AtomicBool::new(false), AtomicU64::new(0), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            let (stop, moved, troubles, paths, fixed, mount) = (&stop, &moved, &troubles, &paths, &*fixed, &mount);
            let trouble = |what: Option<String>| troubles.lock().unwrap().extend(what);
            let at_end = StopAtEnd(stop);
            for writer in writers.iter_mut() {
                writer.calm = calm;
                scope.spawn(move || {
                    let _others = OnPanic(stop);
                    writer.work(stop);
                    trouble(writer.ended_by.clone());
                });
            }
            for n in 0..moving {
                scope.spawn(move || {
                    let _others = OnPanic(stop);
                    trouble(move_files(paths, seed ^ n, stop, moved));
                });
            }
            scope.spawn(move || {
                let _others = OnPanic(stop);
                trouble(fixed.read(mount, seed, stop));
            });
            if writes_back {
                let share = rig.share();
                scope.spawn(move || write_back(&share, seed, stop));
            }
            end(rig, &|| {
                let first = troubles.lock().unwrap().first().cloned();
                first.or_else(|| stop.load(Ordering::Relaxed).then(|| "somebody panicked".to_owned()))
            });
            rig.kill();
            drop(at_end);
        });
        tally.steps = writers.iter().map(|writer| writer.steps).sum();
        tally.transfers += moved.into_inner();
    }

    /// How long a round works; whether the endpoint goes and comes back meanwhile; whether it is calm. A calm round is short: soon all
    /// is dirty, and nothing is left to be dirtied.
    fn some_work(&mut self, most_ms: u64) -> (Duration, bool, bool) {
        let (restart, calm) = (self.dice.once_in(8), self.power != Power::Stays && self.dice.once_in(3));
        self.tally.endpoint_restarts += u64::from(restart);
        let most_ms = if calm { most_ms / 8 } else { most_ms };
        (Duration::from_millis(5 + self.dice.below(most_ms)), restart, calm)
    }

    /// Works for a while; then the daemon is killed.
    pub fn work_and_kill(&mut self, most_ms: u64) {
        let (pause, restart, calm) = self.some_work(most_ms);
        self.work(calm, |rig, trouble| {
            pass(rig, trouble, pause, restart);
            rig.kill();
        });
        self.rig.crash();
        self.tally.kills += 1;
    }

    /// Works until the daemon dies by itself, or for `most`; whether it died.
    pub fn work_until_dead(&mut self, most: Duration) -> bool {
        let mut died = false;
        self.work(false, |rig, trouble| {
            let deadline = Instant::now() + most;
            let daemon = rig.daemon.expect("a daemon works");
            while alive(daemon) && Instant::now() < deadline {
                if trouble().is_some() {
                    all_is_well_or_dead(rig, trouble);
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            died = !alive(daemon);
        });
        self.rig.crash();
        self.tally.kills += u64::from(died);
        died
    }

    /// Works for a while; then the power goes. Whether nobody had synced: only then is it a loss.
    pub fn work_and_cut(&mut self, most_ms: u64) -> bool {
        let (pause, restart, calm) = self.some_work(most_ms);
        let (power, seed) = (self.power, self.dice.roll());
        let (disk, lost) = (self.disk.take(), self.lost.clone());
        let mut blocks = Cut::default();
        self.work(calm, |rig, trouble| {
            pass(rig, trouble, pause, restart);
            // It must not answer anybody any more, as if it had been done.
            halt(rig.daemon.expect("a daemon works"));
            blocks = cut(rig, power, disk.as_ref(), seed, &lost);
        });
        self.disk = disk;
        self.rig.crash();
        self.add(blocks);
        self.power_returns()
    }

    /// The recovery dies at points, then the power goes.
    pub fn recover_and_cut(&mut self, deaths: &[String]) -> bool {
        self.recover(deaths);
        self.cut_at_rest()
    }

    /// The power goes while nobody works.
    pub fn cut_at_rest(&mut self) -> bool {
        self.rig.crash();
        let seed = self.dice.roll();
        let blocks = cut(&self.rig, self.power, self.disk.as_ref(), seed, &self.lost);
        self.add(blocks);
        self.power_returns()
    }

    fn add(&mut self, more: Cut) {
        let blocks = &mut self.tally.blocks;
        blocks.unflushed += more.unflushed;
        blocks.dropped += more.dropped;
        blocks.kept += more.kept;
        blocks.torn += more.torn;
    }

    fn power_returns(&mut self) -> bool {
        wait_for("the filesystem below to be left", || self.rig.fs.try_unmount());
        if let Some(disk) = &self.disk {
            disk.restore();
            self.rig.fs.mount_instead(disk.file());
        }
        self.rig.fs.mount();
        self.lost.store(false, Ordering::SeqCst);
        self.tally.cuts += 1;
        let control = control(&self.rig);
        let lost = !control.exists();
        if !lost {
            fs::remove_file(control).unwrap();
            self.tally.spoilt += 1;
        }
        lost
    }

    /// Mounts what survived; `deaths`: points of the recovery at which it dies first.
    pub fn recover(&mut self, deaths: &[String]) {
        self.tally.survivors += survivors(&self.rig);
        for point in deaths {
            self.rig.kill_at = Some(point.clone());
            let died = !self.rig.try_mount(&[]).status.success();
            self.tally.in_recovery += u64::from(died);
            self.rig.crash();
        }
        self.rig.kill_at = None;
        self.rig.mount();
    }

    /// Compares everything with what may be there; what is wrong.
    pub fn compare(&mut self, loss: Loss) -> Result<(), String> {
        let mut lost = 0;
        for writer in &mut self.writers {
            let seen = writer.check(loss).map_err(|error| format!("{error}\nsteps:{}", writer.story()))?;
            lost += seen.lost;
            self.tally.mixed += seen.mixed;
            if self.power == Power::Stays {
                writer.tree.settle();
            }
        }
        self.fixed.check(&self.rig)?;
        if loss == Loss::Power {
            self.tally.lost += lost;
            self.tally.losing_cuts += u64::from(lost > 0);
        }
        Ok(())
    }

    #[track_caller]
    pub fn check(&mut self, loss: Loss) {
        if let Err(error) = self.compare(loss) {
            let losses = self.tally.kills + self.tally.cuts;
            panic!("{}: after loss {losses} ({loss:?}): {error}", self.told);
        }
    }

    /// From now on the disk below forgets what it was told to keep.
    pub fn lie(&self) {
        self.disk.as_ref().expect("a disk of ours").lies();
    }

    /// Every object that a record names is there, and no other, as soon as all deletions are due. (That those are there which are named,
    /// every comparison shows: it reads them.)
    pub fn check_objects(&self) {
        if self.keeps {
            return;
        }
        let mut names: Vec<String> = self.fixed.0.keys().cloned().collect();
        for writer in &self.writers {
            let there = writer.tree.names().filter(|name| writer.tree.at(name).is_some());
            names.extend(there.map(|name| name.to_str().expect("plain names").to_owned()));
        }
        self.rig.settled_after_crash(&names.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// Asks for the state of every file until the daemon is dead, or for `most`.
    pub fn touch_until_dead(&mut self, most: Duration) -> bool {
        let mount = self.rig.mountpoint();
        let paths: Vec<PathBuf> = self.writers.iter().flat_map(Writer::paths).chain(self.fixed.paths(&mount)).collect();
        let (deadline, daemon) = (Instant::now() + most, self.rig.daemon.expect("a daemon works"));
        while alive(daemon) && Instant::now() < deadline {
            for path in &paths {
                // Whatever the answer: the question loads the record.
                let _ = xattr(path, "user.tierfs.state");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let died = !alive(daemon);
        self.tally.kills += u64::from(died);
        died
    }

    /// What this scene is, for messages.
    pub fn told(&self) -> &str {
        &self.told
    }
}

/// Tells the others to stop where a thread panics, or they would work on while the scope waits for them.
struct OnPanic<'a>(&'a AtomicBool);

impl Drop for Scene {
    fn drop(&mut self) {
        // The rig removes its directory before the disk in it goes.
        let _ = rustix::mount::unmount(self.rig.scratch("disk"), rustix::mount::UnmountFlags::DETACH);
    }
}

impl Drop for OnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Nobody has met an error, or the daemon has died of it.
#[track_caller]
fn all_is_well_or_dead(rig: &mut Rig, trouble: &dyn Fn() -> Option<String>) {
    let Some(what) = trouble() else { return };
    let daemon = rig.daemon.expect("a daemon works");
    let deadline = Instant::now() + Duration::from_secs(3);
    while alive(daemon) {
        if Instant::now() > deadline {
            rig.kill();
            panic!("an error while the daemon lives: {what}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[track_caller]
fn all_is_well(rig: &mut Rig, trouble: &dyn Fn() -> Option<String>) {
    if let Some(what) = trouble() {
        rig.kill();
        panic!("an error while the daemon lives: {what}");
    }
}

/// Lets time pass. With `restart`, the endpoint is gone for a moment, and then nobody is blamed for errors.
fn pass(rig: &mut Rig, trouble: &dyn Fn() -> Option<String>, pause: Duration, restart: bool) {
    std::thread::sleep(pause / 2);
    all_is_well(rig, trouble);
    if restart {
        rig.stop_server();
        rig.start_server();
    }
    std::thread::sleep(pause / 2);
    if !restart {
        all_is_well(rig, trouble);
    }
}

/// A file that nobody syncs.
fn control(rig: &Rig) -> PathBuf {
    rig.fs.path().join("control")
}

/// Stops a process: each of its threads stands, or will when the kernel has done what it was asked for.
fn halt(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::STOP).unwrap();
    let stands = |thread: fs::DirEntry| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit(") ").next().unwrap_or_default().starts_with(['T', 'D', 'Z', 'X']) || stat.is_empty()
    };
    wait_for("the daemon to stand", || {
        fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten().all(stands)
    });
}

/// Cuts the power, right after a file was written that must not survive it.
fn cut(rig: &Rig, power: Power, disk: Option<&Disk>, seed: u64, lost: &AtomicBool) -> Cut {
    fs::write(control(rig), [1; 4096]).unwrap();
    lost.store(true, Ordering::SeqCst);
    match (power, disk) {
        (Power::Shutdown, _) => {
            shut_down(&File::open(rig.fs.path()).unwrap());
            Cut::default()
        }
        (Power::Disk, Some(disk)) => disk.cut(seed),
        _ => panic!("there is no power to cut"),
    }
}

/// Shuts a filesystem down without a flush of its log (`FS_IOC_SHUTDOWN`).
#[expect(unsafe_code, reason = "the ioctl has no safe wrapper")]
fn shut_down(directory: &File) {
    const FS_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;
    const NO_LOG_FLUSH: u32 = 2;
    // SAFETY: the ioctl reads one u32, which outlives the call.
    let answer = unsafe { libc::ioctl(directory.as_raw_fd(), FS_IOC_SHUTDOWN as _, &NO_LOG_FLUSH) };
    assert_eq!(answer, 0, "FS_IOC_SHUTDOWN: {}", std::io::Error::last_os_error());
}
