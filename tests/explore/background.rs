//! What goes on by itself: notes that are taken away when all is durable, superseded objects, the deletion loop (`engine/archive.rs`,
//! `engine/intents.rs`).

use tierfs::tier::Activity;

use crate::bugs::Bug;
use crate::state::{Deletion, NOTES, Note, NoteKind, Rec, SPAWNED, Spawned, State};
use crate::steps::Out;

const LOCK: u8 = 22;

pub fn steps(out: &mut Out) {
    for index in 0..SPAWNED {
        if let Some(task) = out.from.spawned[index] {
            spawned(out, index, task);
        }
    }
    deletion(out);
    if out.from.recent {
        out.system("the clock ticks", |s| s.recent = false);
    }
}

fn spawned(out: &mut Out, index: usize, task: Spawned) {
    let become_ = |s: &mut State, task: Option<Spawned>| s.spawned[index] = task;
    let next = |s: &State, note| Some(Spawned::Forgets { note, unlinked: s.disk.names == 0 });
    match task {
        Spawned::Forget { note } if out.has(Bug::UploadForgottenEarly) => out.system("a note's end: not synced", |s| {
            let next = next(s, note);
            become_(s, next);
        }),
        Spawned::Forget { note } => out.sync(
            "a note's end: all is synced",
            |s| {
                let next = next(s, note);
                become_(s, next);
            },
            |s| become_(s, None),
        ),
        Spawned::Forgets { note, unlinked } => {
            out.system("a note's end: it goes, or becomes a deletion", |s| {
                let slot = s.note(note);
                match slot {
                    Some(kept) if unlinked && kept.kind == NoteKind::Upload => kept.kind = NoteKind::Delete,
                    slot => *slot = None,
                }
                become_(s, None);
            });
            out.fault("  … the journal fails", |s| become_(s, None));
        }
        Spawned::NoteSuperseded if out.from.lock == 0 || out.has(Bug::DeletedBeforeClaim) => {
            let key = out.from.cell.map_or(0, |cell| cell.rec.sup);
            out.system("the superseded object's deletion is noted", |s| {
                if key == 0 {
                    return become_(s, None);
                }
                s.add_note(NoteKind::Delete, key, 0);
                become_(s, Some(Spawned::DropSuperseded { key }));
            });
            out.fault("  … the journal fails", |s| become_(s, None));
        }
        Spawned::DropSuperseded { key } if out.may_lock(LOCK) => {
            out.system("the record forgets the superseded object", |s| {
                let cell = *s.cell();
                if cell.rec.sup == key && !cell.machine.is_unknown() {
                    s.store(Rec { sup: 0, ..cell.rec });
                }
                become_(s, None);
            });
        }
        _ => {}
    }
}

fn deletion(out: &mut Out) {
    let rest = |s: &mut State| s.deletion = Deletion::Rest;
    match out.from.deletion {
        Deletion::Rest => {
            for index in 0..NOTES {
                if let Some(Note { kind: NoteKind::Delete, key, held: 0 }) = out.from.notes[index] {
                    look(out, index as u8 + 1, key);
                }
            }
        }
        Deletion::Sync { note, gone } => {
            out.system("deletion: what was seen is made durable", |s| {
                if gone {
                    s.disk.sync_all()
                } else {
                    s.disk.sync_file()
                }
                s.lock = 0;
                s.deletion = Deletion::Delete { note };
            });
            out.fault("  … the sync fails", |s| {
                s.lock = 0;
                rest(s);
            });
        }
        Deletion::Delete { note } => {
            let key = out.from.notes[usize::from(note) - 1].map_or(0, |note| note.key);
            out.system("deletion: the object is deleted", |s| {
                s.objects[usize::from(key)] = None;
                s.deletion = Deletion::Remove { note };
            });
            out.fault("  … the object is deleted, the answer lost", |s| {
                s.objects[usize::from(key)] = None;
                rest(s);
            });
            out.fault("  … the request is given up, and may yet arrive", |s| {
                s.late_delete = key;
                rest(s);
            });
        }
        Deletion::Remove { note } => {
            out.system("deletion: its note goes", |s| {
                *s.note(note) = None;
                rest(s);
            });
            out.fault("  … the journal fails", rest);
        }
    }
    if out.from.late_delete != 0 {
        out.user("a late deletion arrives", |s| {
            s.objects[usize::from(s.late_delete)] = None;
            s.late_delete = 0;
        });
    }
}

/// `reference`: what the inode says of the object.
fn look(out: &mut Out, note: u8, key: u8) {
    let (from, unlink, record) =
        (out.from, out.has(Bug::UnlinkBelieved), out.has(Bug::RecordBelieved) || out.has(Bug::DeletedBeforeClaim));
    let after =
        |gone: bool, believed: bool| if believed { Deletion::Delete { note } } else { Deletion::Sync { note, gone } };
    let to = |deletion| {
        move |s: &mut State| {
            // What the record says is made durable under the cell's lock.
            s.lock = if let Deletion::Sync { gone: false, .. } = deletion { LOCK } else { s.lock };
            s.deletion = deletion;
        }
    };
    let free = record
        || (from.lock == 0
            && !from.cell.is_some_and(|cell| cell.machine.is_unknown())
            && from.activity() != Activity::Releasing);
    let names = from.disk.rec.key == key;
    if out.has(Bug::DeletionUnchecked) {
        out.system("deletion: due, nothing is asked", to(Deletion::Delete { note }));
    } else if from.is_gone() {
        out.system("deletion: due, the inode is gone", to(after(true, unlink)));
    } else if !names && free {
        out.system("deletion: due, the record does not name the object", to(after(false, record)));
    } else if names && from.disk.names > 0 && free {
        out.system("deletion: due, but the record names the object", to(Deletion::Remove { note }));
    }
    // Else it has no name and is open: looked at again later.
}
