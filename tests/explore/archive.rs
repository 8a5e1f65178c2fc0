//! The archive of one file, as `engine/archive.rs` does it; a migration goes on with the release.

use tierfs::tier::{Event, Verdict};
use tierfs::types::Claim;

use crate::bugs::Bug;
use crate::state::{ALL, At, CHUNKS, NoteKind, Object, Pc, Rec, Spawned, State, WORKERS, Work};
use crate::steps::Out;

pub fn steps(out: &mut Out) {
    for index in 0..WORKERS {
        step(out, index, out.from.work[index]);
    }
}

/// A worker as holder of the cell's lock.
pub fn lock_of(index: usize) -> u8 {
    11 + index as u8
}

fn step(out: &mut Out, index: usize, work: Work) {
    let free = out.may_lock(lock_of(index));
    let (world, from) = (*out.world, out.from);
    let go = |s: &mut State, pc: Pc| s.work[index].pc = pc;
    match work.pc {
        Pc::Begin if free => out.system("archive: begins", |s| {
            if s.is_gone() || s.disk.bytes.size == 0 || !s.get_cell(world.bug) {
                s.work[index] = Work::idle();
                return;
            }
            let cell = *s.cell();
            if cell.machine.is_unknown() {
                s.store(cell.rec);
                s.disk.sync_file();
                s.apply(Event::Reestablished(cell.rec.claim));
            }
            match s.apply(Event::ArchiveBegin) {
                Verdict::Go => go(s, Pc::Superseded),
                Verdict::Already if work.migrates => go(s, Pc::Look),
                _ => s.work[index] = Work::idle(),
            }
        }),
        Pc::Superseded if free => {
            let sup = from.cell.map_or(0, |cell| cell.rec.sup);
            out.system("archive: the superseded object's deletion is noted", |s| {
                if sup == 0 {
                    return go(s, Pc::Before);
                }
                s.add_note(NoteKind::Delete, sup, 0);
                s.work[index].key = sup;
                go(s, Pc::SupersededNoted);
            });
            if sup != 0 {
                out.fault("  … the journal fails", |s| go(s, Pc::Abandon));
            }
        }
        Pc::SupersededNoted if free => out.system("archive: the record forgets the superseded object", |s| {
            let cell = *s.cell();
            if cell.rec.sup == work.key && !cell.machine.is_unknown() {
                s.store(Rec { sup: 0, ..cell.rec });
            }
            s.work[index].key = 0;
            go(s, Pc::Before);
        }),
        Pc::Before if !from.recent || out.has(Bug::GrainIgnored) => {
            let asks = !out.has(Bug::MappingIgnored);
            out.system("archive: the attributes are taken, the kernel asked for writers", |s| {
                if s.is_gone() || s.disk.bytes.size == 0 || (asks && is_written(s)) {
                    return go(s, Pc::Abandon);
                }
                let (size, mtime) = (s.disk.bytes.size, s.disk.mtime);
                let next = Work { pc: Pc::Note, size, mtime, moved: false, ..s.work[index] };
                s.work[index] = next;
            });
        }
        Pc::Note => {
            let (reused, unnoted) = (out.has(Bug::KeyReused), out.has(Bug::UploadUnnoted));
            out.system("archive: the upload is noted under a fresh key", |s| {
                let key = if reused { s.cell().rec.generation + 1 } else { s.keys + 1 };
                s.keys = s.keys.max(key);
                let note = if unnoted { 0 } else { s.add_note(NoteKind::Upload, key, 0) };
                let work = s.work[index];
                s.work[index] = Work { pc: Pc::Copy, key, note, read: 0, ..work };
            });
            out.fault("  … the journal fails", |s| go(s, Pc::Abandon));
        }
        Pc::Copy => copy(out, index, &work, free),
        Pc::RollBack => {
            out.system("archive: the upload's note becomes its deletion", |s| {
                if work.note != 0
                    && let Some(note) = s.note(work.note)
                {
                    note.kind = NoteKind::Delete;
                }
                go(s, Pc::Abandon);
            });
            out.fault("  … the journal fails", |s| go(s, Pc::Abandon));
        }
        Pc::Abandon if free => out.system("archive: given up", |s| {
            s.apply(Event::ArchiveAbandoned);
            s.work[index] = Work::idle();
        }),
        _ => {}
    }
}

/// Whether the kernel knows of a writer (a read lease is refused).
fn is_written(s: &State) -> bool {
    s.outside_writes || s.writers > 0
}

/// Reads in order, one PUT, a sync of the data beside them; then the commit.
fn copy(out: &mut Out, index: usize, work: &Work, free: bool) {
    let go = |s: &mut State, pc: Pc| s.work[index].pc = pc;
    let all = ALL >> (CHUNKS as u8 - work.size);
    let chunk = work.read.count_ones() as usize;
    if work.read != all {
        out.system(["archive: chunk 0 is read", "archive: chunk 1 is read"][chunk], |s| {
            if usize::from(s.disk.bytes.size) <= chunk {
                return go(s, Pc::RollBack);
            }
            s.work[index].root[chunk] = s.disk.bytes.ch[chunk];
            s.work[index].read |= 1 << chunk;
        });
    } else if !work.put {
        let object = Some(Object { len: work.size, ch: work.root });
        let key = usize::from(work.key);
        out.system("archive: the object is stored", |s| {
            s.objects[key] = object;
            s.work[index].put = true;
        });
        out.fault("  … the object is stored, the answer lost", |s| {
            s.objects[key] = object;
            go(s, Pc::RollBack);
        });
        out.fault("  … the upload fails", |s| go(s, Pc::RollBack));
    }
    if !work.synced {
        out.system("archive: the data is synced", |s| {
            s.disk.sync_file();
            s.work[index].synced = true;
        });
        if work.put {
            out.fault("  … the sync fails", |s| go(s, Pc::RollBack));
        }
    }
    // A removal from its look at the record to its end takes less time than the syncs after a commit: assumed.
    let removed = out.from.requests.iter().flatten().any(|request| request.at == At::Noted);
    if work.put && free && !removed && (work.synced || out.has(Bug::DualBeforeData)) {
        let (unchecked, unasked) = (out.has(Bug::ChangeUnchecked), out.has(Bug::MappingIgnored));
        let (forced, reused) = (out.has(Bug::CommitForced), out.has(Bug::KeyReused));
        out.system("archive: commit", |s| {
            let same = !work.moved && (s.disk.bytes.size, s.disk.mtime) == (work.size, work.mtime);
            let unwritten = unasked || !is_written(s);
            let unchanged = (same || unchecked) && unwritten;
            let verdict = s.apply(Event::ArchiveCopied { unchanged });
            if verdict != Verdict::Save(Claim::Dual) && !forced {
                return go(s, Pc::RollBack);
            }
            let rec = s.cell().rec;
            let generation = if reused { work.key } else { 0 };
            let (claim, key, root, len) = (Claim::Dual, work.key, work.root, work.size);
            let mtime = if unchecked { s.disk.mtime } else { work.mtime };
            s.store(Rec { claim, key, root, len, mtime, sup: 0, pinned: rec.pinned, generation });
            s.apply(Event::Saved(Claim::Dual));
            let done = Work { pc: Pc::Look, migrates: true, note: work.note, ..Work::idle() };
            if work.migrates {
                s.work[index] = done;
            } else {
                s.work[index] = Work::idle();
                if work.note != 0 {
                    s.spawn(Spawned::Forget { note: work.note });
                }
            }
        });
        out.fault("  … the record cannot be stored", |s| go(s, Pc::RollBack));
    }
}
