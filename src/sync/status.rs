//! How a metadata sync goes, for reports.

use serde::{Deserialize, Serialize};

use super::compare::Progress;
use super::receive::Receiver;
use super::send::Sender;
use super::wire::{Counts, Half};
use super::{Side, SyncResult};
use crate::types::WirePath;

/// Refused names in one report.
const REFUSED_MAX: usize = 1_000;

/// A name that is not the same on both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedStatus {
    pub path: WirePath,
    pub why: String,
    /// Something that only the slave has is in the way.
    pub conflict: bool,
}

/// How far a comparison is.
pub type ComparisonStatus = Progress;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// `master` or `slave`.
    pub role: String,
    pub pair: String,
    /// This side, `cluster:share`.
    pub here: String,
    /// The other one, as it says, or as this side's pair does.
    pub there: String,
    /// Why nothing is told, or was taken, at present.
    pub problem: Option<String>,
    /// Things that changed and are not told yet.
    pub waiting: u64,
    /// Changes noted since the mount.
    pub changes: u64,
    /// Batches and statements told since the mount.
    pub batches: u64,
    pub statements: u64,
    /// What was last told and confirmed, or received; seconds since 1970.
    pub last: Option<i64>,
    /// What the other side did since the mount.
    pub counts: Counts,
    pub comparing: Option<ComparisonStatus>,
    /// The last whole comparison. None: what was there before the sync is synced only where it changes.
    pub compared: Option<ComparisonStatus>,
    /// Of the slave: inodes that the master has too.
    pub inodes: u64,
    /// How many names are not as the master says, and some of them.
    pub refused: u64,
    pub refused_names: Vec<RefusedStatus>,
}

fn place(half: &Half, other: Option<&Half>) -> String {
    match other {
        Some(other) => other.place(),
        None => format!("{}:{}", half.remote_cluster, half.remote_share),
    }
}

impl Status {
    /// Blocks on local I/O.
    pub fn of(sender: &Sender, receiver: &Receiver) -> SyncResult<Self> {
        let half = &sender.options.half;
        let (comparing, compared) = sender.comparisons()?;
        let master = receiver.master()?;
        let (heard, refusal) = receiver.heard.lock().clone();
        let going = sender.going.lock();
        let slave = sender.options.side == Side::Slave;
        let other = if slave { master.as_ref().map(|master| &master.half) } else { going.slave.as_ref() };
        let (last, problem) = match slave {
            // What the slave has to tell goes nowhere while its master is down; that it hears nothing, its master shows.
            true => (heard, refusal.or_else(|| going.problem.clone())),
            false => (going.told_at, going.problem.clone().or(refusal)),
        };
        let mut status = Self {
            role: sender.options.side.as_str().into(),
            pair: half.pair.clone(),
            here: half.place(),
            there: place(half, other),
            problem,
            waiting: sender.options.capture.waiting() as u64,
            changes: sender.options.capture.changes(),
            batches: going.batches,
            statements: going.statements,
            last: last.map(|at| at.secs),
            counts: going.counts,
            comparing,
            compared,
            inodes: 0,
            refused: going.refused.len() as u64,
            refused_names: Vec::new(),
        };
        if slave {
            let (names, all) = receiver.refused(REFUSED_MAX)?;
            status.refused = all;
            status.inodes = receiver.book.lock().inodes()?;
            status.refused_names = names
                .into_iter()
                .map(|(path, no)| RefusedStatus {
                    path: WirePath::from_path(&path),
                    why: no.why,
                    conflict: no.conflict,
                })
                .collect();
        } else {
            for ((dir, name), (why, conflict)) in going.refused.iter().take(REFUSED_MAX) {
                let above = sender.options.lower.by_number(dir.ino);
                let above = above.ok().and_then(|(node, _)| sender.options.lower.path_of(&node).ok()?);
                let name = std::os::unix::ffi::OsStrExt::from_bytes(name.as_slice());
                let name: &std::ffi::OsStr = name;
                let path = above.unwrap_or_else(|| "?".into()).join(name);
                status.refused_names.push(RefusedStatus {
                    path: WirePath::from_path(&path),
                    why: why.clone(),
                    conflict: *conflict,
                });
            }
        }
        Ok(status)
    }
}
