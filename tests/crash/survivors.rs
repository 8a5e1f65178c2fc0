//! What a loss left behind: records and notes, as the next start will find them.

use std::fs;
use std::ops::AddAssign;
use std::path::Path;

use tierfs::journal::SqliteJournal;
use tierfs::ports::{Intent, IntentKind, Journal};
use tierfs::record::{Claim, Record};

use crate::rig::*;

/// Counts over many losses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Survivors {
    pub resident: u64,
    pub dual: u64,
    pub releasing: u64,
    pub stub: u64,
    /// Notes of archives, releases and recalls that were under way, or had just ended.
    pub archives_cut: u64,
    pub releases_cut: u64,
    pub recalls_cut: u64,
    /// Transfers whose file did not survive.
    pub orphans: u64,
    /// Losses that met a transfer.
    pub in_transfer: u64,
}

impl AddAssign for Survivors {
    fn add_assign(&mut self, more: Self) {
        self.resident += more.resident;
        self.dual += more.dual;
        self.releasing += more.releasing;
        self.stub += more.stub;
        self.archives_cut += more.archives_cut;
        self.releases_cut += more.releases_cut;
        self.recalls_cut += more.recalls_cut;
        self.orphans += more.orphans;
        self.in_transfer += more.in_transfer;
    }
}

/// Records below the mount, and notes in a copy of the journal.
pub fn survivors(rig: &Rig) -> Survivors {
    let mut found = Survivors::default();
    let mut records = Vec::new();
    collect(&rig.share(), &mut records);
    for record in &records {
        match record.claim {
            Claim::Resident => found.resident += 1,
            Claim::Dual => found.dual += 1,
            Claim::Releasing => found.releasing += 1,
            Claim::Stub | Claim::Partial | Claim::Patched => found.stub += 1,
        }
    }
    for note in notes(rig) {
        let claim = records.iter().find(|record| record.names(&note.key)).map(|record| record.claim);
        match (note.kind, claim) {
            (IntentKind::Delete { .. }, _) => continue,
            (_, Some(Claim::Releasing)) => found.releases_cut += 1,
            (IntentKind::Settle { .. }, Some(Claim::Dual)) => found.releases_cut += 1,
            (IntentKind::Settle { .. }, Some(_)) => found.recalls_cut += 1,
            (IntentKind::Settle { .. }, None) => found.orphans += 1,
            (IntentKind::Upload, _) => found.archives_cut += 1,
        }
        found.in_transfer = 1;
    }
    found
}

fn collect(directory: &Path, records: &mut Vec<Record>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            collect(&entry.path(), records);
        } else if let Ok(stored) = xattr(&entry.path(), RECORD) {
            let decoded = Record::decode(&stored);
            records.push(decoded.unwrap_or_else(|why| panic!("{}: {why}", entry.path().display())));
        }
    }
}

/// Opening a journal changes it, so a copy is looked at.
fn notes(rig: &Rig) -> Vec<Intent> {
    let copy = tempfile::tempdir().unwrap();
    let mut notes = Vec::new();
    for share in fs::read_dir(rig.state_dir().join("shares")).into_iter().flatten().flatten() {
        for name in ["journal.sqlite", "journal.sqlite-wal"] {
            let _ = fs::remove_file(copy.path().join(name));
            let from = share.path().join(name);
            if from.exists() {
                fs::copy(from, copy.path().join(name)).unwrap();
            }
        }
        let journal = SqliteJournal::open(copy.path().join("journal.sqlite")).expect("the journal survives");
        let found = futures::executor::block_on(journal.unfinished(None, 10_000)).expect("the journal answers");
        notes.extend(found.into_iter().map(|(_, intent)| intent));
    }
    notes
}
