//! Who reads everything: a program (or the children of one) that asks for one stub after the other, each once, in the order of a directory.
//!
//! It is known by the last files it asked for, whether `grep -r` opens them itself or `find -exec` starts a program for each. The order may be
//! that of names, as shells sort them, of inode numbers, as indexers sort them, or that of the listing, which the caller looks up when asked
//! ([`Noticed::Asks`]).

use std::collections::{HashMap, VecDeque};

use super::Requester;

/// Files after which somebody is taken for a scanner, unless it is said otherwise.
pub const SCAN_FILES: usize = 32;
/// Who asked for nothing for so long begins anew.
const IDLE_NS: u64 = 60_000_000_000;
/// Requesters remembered; the idle ones, then all, are thrown out beyond that.
const RUNS_MAX: usize = 512;

/// A file that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Tells directories apart.
    pub dir: u64,
    pub name: Vec<u8>,
    pub ino: u64,
}

/// What is thought of somebody who asked for a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noticed {
    Nothing,
    /// He reads everything.
    Scan,
    /// Perhaps: [`Scans::judge`] can tell, given the listing of this directory.
    Asks {
        dir: u64,
    },
}

/// One process, or the children of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Runner {
    Process { uid: u32, pid: u32 },
    Children { uid: u32, of: u32 },
}

#[derive(Debug, Default)]
struct Run {
    /// The last files, each once, the newest at the end.
    files: VecDeque<Seen>,
    /// How many more came since it was last judged.
    unjudged: usize,
    scans: bool,
    at_ns: u64,
}

/// All who asked lately.
#[derive(Debug)]
pub struct Scans {
    files: usize,
    runs: HashMap<Runner, Run>,
}

/// In which order files may come, of those that can be told by the files alone.
const ORDERS: [fn(&Seen, &Seen) -> bool; 2] = [|a, b| a.name < b.name, |a, b| a.ino < b.ino];

impl Run {
    fn note(&mut self, seen: &Seen, files: usize, now_ns: u64) -> Noticed {
        if now_ns.saturating_sub(self.at_ns) > IDLE_NS {
            *self = Self::default();
        }
        self.at_ns = now_ns;
        let is_last = self.files.back().is_some_and(|last| last.ino == seen.ino);
        if !is_last {
            if self.files.iter().any(|known| known.ino == seen.ino) {
                // Who comes back to a file works with it.
                *self = Self { at_ns: now_ns, ..Self::default() };
            }
            if self.files.len() >= files {
                self.files.pop_front();
            }
            self.files.push_back(seen.clone());
            self.unjudged += 1;
            if self.files.len() >= files && self.unjudged >= files {
                self.unjudged = 0;
                self.scans = ORDERS.iter().any(|before| self.is_in_order(before));
                if !self.scans {
                    return Noticed::Asks { dir: seen.dir };
                }
            }
        }
        if self.scans { Noticed::Scan } else { Noticed::Nothing }
    }

    /// Whether nearly all pairs of files of one directory, and there are enough of them, are in the order that `before` says.
    fn is_in_order(&self, before: impl Fn(&Seen, &Seen) -> bool) -> bool {
        let pairs = || self.files.iter().zip(self.files.iter().skip(1)).filter(|(a, b)| a.dir == b.dir);
        let ordered = pairs().filter(|(a, b)| before(a, b)).count();
        let all = pairs().count();
        all * 2 >= self.files.len() - 1 && ordered * 8 >= all * 7
    }
}

impl Scans {
    /// `files`: after how many somebody is judged; at least four.
    pub fn new(files: usize) -> Self {
        Self { files: files.max(4), runs: HashMap::new() }
    }

    fn runners(requester: &Requester) -> impl Iterator<Item = Runner> + use<> {
        let (uid, pid, of) = (requester.uid, requester.pid, requester.parent);
        let process = (pid != 0).then_some(Runner::Process { uid, pid });
        process.into_iter().chain((of != 0).then_some(Runner::Children { uid, of }))
    }

    /// Whether somebody reads everything who asks once more for the file that he asked for last. `None`: it is another one, of which
    /// [`Scans::note`] must be told more.
    pub fn goes_on(&mut self, requester: &Requester, ino: u64, now_ns: u64) -> Option<bool> {
        let mut scans = false;
        for runner in Self::runners(requester) {
            let run = self.runs.get_mut(&runner)?;
            if now_ns.saturating_sub(run.at_ns) > IDLE_NS || run.files.back()?.ino != ino {
                return None;
            }
            run.at_ns = now_ns;
            scans |= run.scans;
        }
        Some(scans)
    }

    /// `requester` wants a file that is not local.
    pub fn note(&mut self, requester: &Requester, seen: &Seen, now_ns: u64) -> Noticed {
        if self.runs.len() >= RUNS_MAX {
            self.runs.retain(|_, run| now_ns.saturating_sub(run.at_ns) <= IDLE_NS);
            if self.runs.len() >= RUNS_MAX {
                self.runs.clear();
            }
        }
        let mut noticed = Noticed::Nothing;
        for runner in Self::runners(requester) {
            match self.runs.entry(runner).or_default().note(seen, self.files, now_ns) {
                Noticed::Scan => noticed = Noticed::Scan,
                asks @ Noticed::Asks { .. } if noticed == Noticed::Nothing => noticed = asks,
                _ => {}
            }
        }
        noticed
    }

    /// Whether the files that `requester` asked for last came in the order that `place` gives those of the directory that was asked about, by inode
    /// number.
    pub fn judge(&mut self, requester: &Requester, place: impl Fn(u64) -> Option<u32>) -> bool {
        let before = |a: &Seen, b: &Seen| matches!((place(a.ino), place(b.ino)), (Some(a), Some(b)) if a < b);
        let mut scans = false;
        for runner in Self::runners(requester) {
            if let Some(run) = self.runs.get_mut(&runner)
                && run.files.len() >= self.files
                && run.is_in_order(before)
            {
                run.scans = true;
                scans = true;
            }
        }
        scans
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requester(pid: u32, parent: u32) -> Requester {
        Requester { uid: 1, pid, parent, ..Requester::default() }
    }

    fn seen(dir: u64, name: u64, ino: u64) -> Seen {
        Seen { dir, name: format!("{name:06}").into_bytes(), ino }
    }

    /// A number that looks random, the same for the same `n`.
    fn scattered(n: u64) -> u64 {
        n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40
    }

    /// How many of `files` are asked for before the requester is known as a scanner.
    fn noticed_after(files: impl Iterator<Item = (Requester, Seen)>) -> Option<usize> {
        let mut scans = Scans::new(8);
        let mut files = files.enumerate();
        files.find_map(|(n, (requester, seen))| {
            (scans.note(&requester, &seen, n as u64 * 1_000_000) == Noticed::Scan).then_some(n)
        })
    }

    #[test]
    fn each_order_is_a_scan() {
        // By name, by inode number, by a program started for each file, and down a tree.
        let by_name = (0..40).map(|n| (requester(9, 0), seen(1, n, scattered(n))));
        assert_eq!(noticed_after(by_name), Some(7));
        let by_number = (0..40).map(|n| (requester(9, 0), seen(1, scattered(n), n)));
        assert_eq!(noticed_after(by_number), Some(7));
        let by_children = (0..40).map(|n| (requester(100 + n as u32, 9), seen(1, n, scattered(n))));
        assert_eq!(noticed_after(by_children), Some(7));
        let tree = (0..40).map(|n| (requester(9, 0), seen(scattered(n / 4), n % 4, scattered(n))));
        assert_eq!(noticed_after(tree), Some(7));
    }

    #[test]
    fn the_order_of_the_listing_is_asked_for() {
        let mut scans = Scans::new(8);
        let who = requester(9, 0);
        let files: Vec<_> = (0..30).map(|n| seen(1, scattered(n), scattered(n + 1_000))).collect();
        let place = |ino: u64| files.iter().position(|file| file.ino == ino).map(|at| at as u32);
        for (n, file) in files.iter().enumerate().take(20) {
            match scans.note(&who, file, 0) {
                Noticed::Asks { dir } => {
                    assert_eq!(dir, 1);
                    assert!(n == 7, "asked again at {n}: it scans already");
                    assert!(!scans.judge(&who, |_| None), "nothing is known of the listing");
                    assert!(!scans.judge(&who, |ino| Some(u32::MAX - place(ino).unwrap())), "the other way round");
                    assert!(scans.judge(&who, place));
                    break;
                }
                noticed => assert!(n < 7 && noticed == Noticed::Nothing),
            }
        }
        assert_eq!(scans.note(&who, &files[8], 0), Noticed::Scan);
        assert!(!scans.judge(&requester(10, 0), place), "somebody else");
    }

    #[test]
    fn work_is_no_scan() {
        // Anywhere in a directory.
        let anywhere = (0..100).map(|n| (requester(9, 0), seen(1, scattered(n), scattered(n + 7))));
        assert_eq!(noticed_after(anywhere), None);
        // Back and forth.
        let back = (0..100).map(|n| (requester(9, 0), seen(1, n / 6 + n % 3, n / 6 + n % 3)));
        assert_eq!(noticed_after(back), None);
        // One file, read on and on.
        assert_eq!(noticed_after((0..100).map(|_| (requester(9, 0), seen(1, 1, 1)))), None);
        // Different programs of different parents.
        let many = (0..100).map(|n| (requester(n as u32 + 1, n as u32 + 500), seen(1, n, n)));
        assert_eq!(noticed_after(many), None);
        // One file each of many directories says nothing about an order.
        let thin = (0..100).map(|n| (requester(9, 0), seen(n, 1, n)));
        assert_eq!(noticed_after(thin), None);
        // Nobody known.
        assert_eq!(noticed_after((0..100).map(|n| (requester(0, 0), seen(1, n, n)))), None);
    }

    #[test]
    fn who_rests_or_comes_back_begins_anew() {
        let mut scans = Scans::new(8);
        let who = requester(9, 0);
        let mut note = |n, now| scans.note(&who, &seen(1, n, n), now);
        for n in 0..8 {
            note(n, 0);
        }
        assert_eq!(note(8, 1), Noticed::Scan);
        assert_eq!(note(8, 2), Noticed::Scan, "it reads on");
        assert_eq!(note(6, 3), Noticed::Nothing, "back to a file");
        for n in 10..18 {
            note(n, 4);
        }
        assert_eq!(note(18, 5), Noticed::Scan);
        assert_eq!(note(19, 6 + IDLE_NS), Noticed::Nothing);
    }

    #[test]
    fn memory_is_bounded() {
        let mut scans = Scans::new(8);
        for n in 0..10 * RUNS_MAX as u32 {
            scans.note(&requester(n + 1, 0), &seen(1, 1, 1), 0);
        }
        assert!(scans.runs.len() <= RUNS_MAX + 1);
    }
}
