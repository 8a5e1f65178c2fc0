//! The process dies or the power goes; and the start after it, as `Engine::recover` does it.

use tierfs::tier::IoMode;
use tierfs::types::Claim;

use crate::bugs::Bug;
use crate::state::{Boot, Bytes, Deletion, NOTES, NoteKind, OLDER_MAX, Rec, State, Work};
use crate::steps::{Judged, Out, judge};

/// What a user would read if this record and these bytes were all; `None`: an error.
pub fn served(rec: &Rec, bytes: &Bytes) -> Option<(u8, [u8; 2])> {
    match rec.claim {
        Claim::Resident | Claim::Dual => Some((bytes.size, bytes.ch)),
        _ if bytes.size == 0 => Some((0, bytes.ch)),
        _ if bytes.size == rec.len => Some((rec.len, rec.root)),
        _ => None,
    }
}

pub fn crash(out: &mut Out) {
    if out.from.spent.crashes >= out.world.bounds.crashes {
        return;
    }
    let unsynced = out.has(Bug::StartUnsynced);
    let die = |s: &mut State| {
        s.spent.crashes += 1;
        s.cell = None;
        s.recall = None;
        s.requests = Default::default();
        s.work = [Work::idle(); 2];
        s.spawned = Default::default();
        s.deletion = Deletion::Rest;
        s.lock = 0;
        (s.readers, s.writers) = (0, 0);
        s.recent = false;
        s.notes.iter_mut().flatten().for_each(|note| note.held = 0);
        s.boot = if unsynced { Boot::Note(0) } else { Boot::Sync };
    };
    out.step(crate::explorer::Kind::Fault, "the process is killed", |s| {
        // What the kernel serves by itself goes on without the daemon.
        if let IoMode::Pass(_) = s.mode() {
            s.outside_reads |= s.readers > 0;
            s.outside_writes |= s.writers > 0;
        }
        die(s);
    });
    let disk = out.from.disk;
    if disk.names == 0 && disk.names_set == 1 {
        return;
    }
    for rec in disk.possible_records() {
        for bytes in possible_bytes(&disk.bytes) {
            for mtime in (0..16).filter(|mtime| disk.mtimes & (1 << mtime) != 0) {
                for names in (0..3).filter(|names| disk.names_set & (1 << names) != 0) {
                    let label = if rec == disk.rec { "power loss" } else { "power loss: an older record survives" };
                    out.step(crate::explorer::Kind::Fault, label, |s| {
                        die(s);
                        (s.outside_reads, s.outside_writes) = (false, false);
                        s.disk.rec = rec;
                        s.disk.older = [None; OLDER_MAX];
                        s.disk.bytes = bytes;
                        (s.disk.mtime, s.disk.mtimes) = (mtime, 1 << mtime);
                        (s.disk.names, s.disk.names_set) = (names, 1 << names);
                        match served(&rec, &bytes) {
                            Some((size, ch)) => s.truth = Bytes::of(size, ch),
                            None => s.violate("after a crash a file is neither whole nor empty"),
                        }
                        s.truth_mtime = 0;
                    });
                }
            }
        }
    }
}

fn possible_bytes(bytes: &Bytes) -> Vec<Bytes> {
    let values = |set: u8| (0..8).filter(move |value| set & (1 << value) != 0);
    let mut all: Vec<Bytes> = Vec::new();
    for size in values(bytes.sizes) {
        for first in values(bytes.chs[0]) {
            for second in values(bytes.chs[1]) {
                let ch = match size {
                    0 => [0, 0],
                    1 => [first, 0],
                    _ => [first, second],
                };
                let found = Bytes::of(size, ch);
                if !all.contains(&found) {
                    all.push(found);
                }
            }
        }
    }
    all
}

/// The start: what the dead process left is made durable, then each unfinished transfer is settled; then users are served.
pub fn boot(out: &mut Out) {
    let (world, from) = (*out.world, out.from);
    let next = |s: &mut State, note: u8| s.boot = Boot::Note(note + 1);
    match from.boot {
        Boot::Serving => {}
        Boot::Sync => out.system("start: all that is cached is synced", |s| {
            s.disk.sync_all();
            s.boot = Boot::Note(0);
        }),
        Boot::Note(first) => {
            let unfinished = |index: &usize| from.notes[*index].is_some_and(|note| note.kind != NoteKind::Delete);
            let Some(index) = (usize::from(first)..NOTES).find(unfinished) else {
                return out.system("start: users are served", |s| {
                    if s.truth_mtime == 0 {
                        s.truth_mtime = s.disk.mtime;
                    }
                    s.boot = Boot::Serving;
                });
            };
            let note = from.notes[index].expect("it was found");
            let index = index as u8;
            out.system("start: a transfer's note is looked at", |s| {
                // Without a name it is out of reach: what it named goes when its last user does.
                let unlinked = s.disk.names == 0 && !world.has(Bug::UnlinkedSettled);
                let rec = if s.is_gone() || unlinked {
                    Rec::none()
                } else {
                    match judge(s, world.bug) {
                        Judged::Fine(rec) => rec,
                        Judged::Demote { .. } => {
                            s.save(s.disk.rec.into_resident());
                            s.disk.sync_file();
                            s.disk.rec
                        }
                        Judged::Changed => return next(s, index),
                    }
                };
                if rec.key != note.key {
                    s.boot = Boot::Journal { note: index, named: false };
                    return;
                }
                let stub = rec.claim == Claim::Releasing;
                if rec.claim == Claim::Stub && s.disk.bytes.has_data() && !world.has(Bug::PartUnrecorded) {
                    s.save(Rec { claim: Claim::Partial, ..rec });
                }
                if stub && !s.is_open_outside() {
                    s.punch(rec.mtime);
                } else {
                    s.disk.set_mtime(rec.mtime);
                }
                s.boot = Boot::Settled { note: index, stub };
            });
            out.fault("  … that fails", |s| next(s, index));
        }
        Boot::Settled { note, stub } => out.sync(
            "start: the settled file is synced",
            |s| {
                if stub && s.disk.rec.claim == Claim::Releasing {
                    s.save(Rec { claim: Claim::Stub, ..s.disk.rec });
                    s.boot = Boot::Settled { note, stub: false };
                } else {
                    s.boot = Boot::Journal { note, named: true };
                }
            },
            |s| next(s, note),
        ),
        Boot::Journal { note, named } => {
            out.system("start: the note is settled", |s| {
                let slot = s.note(note + 1);
                match slot {
                    Some(kept) if kept.kind == NoteKind::Upload && !named => kept.kind = NoteKind::Delete,
                    slot => *slot = None,
                }
                next(s, note);
            });
            out.fault("  … the journal fails", |s| next(s, note));
        }
    }
}
