//! The release of one file, as `engine/release.rs` does it.

use tierfs::tier::{Event, Refusal, Verdict};
use tierfs::types::Claim;

use crate::archive::lock_of;
use crate::bugs::Bug;
use crate::state::{FREED, NoteKind, Pc, Rec, Spawned, State, WORKERS, Work};
use crate::steps::Out;

pub fn steps(out: &mut Out) {
    for index in 0..WORKERS {
        step(out, index, out.from.work[index]);
    }
}

/// `Engine::release` after `free`: the note goes once all is durable, unless the release stuck after its mark.
fn end(s: &mut State, index: usize) {
    let note = s.work[index].note;
    s.work[index] = Work::idle();
    if s.lock == lock_of(index) {
        s.lock = 0;
    }
    let cell = s.cell();
    if note != 0 && cell.rec.claim != Claim::Releasing && !cell.machine.is_unknown() {
        s.spawn(Spawned::Forget { note });
    }
}

fn abandon(s: &mut State, index: usize) {
    s.apply(Event::ReleaseAbandoned);
    end(s, index);
}

fn step(out: &mut Out, index: usize, work: Work) {
    let free = out.may_lock(lock_of(index));
    let (world, from) = (*out.world, out.from);
    let go = |s: &mut State, pc: Pc| s.work[index].pc = pc;
    match work.pc {
        Pc::Look if free => out.system("release: looks at the record", |s| {
            if s.cell.is_none() && (s.is_gone() || !s.get_cell(world.bug)) {
                s.work[index] = Work::idle();
                return;
            }
            let cell = *s.cell();
            if cell.machine.claim() == Claim::Stub || cell.rec.key == 0 {
                return end(s, index);
            }
            let seen_remote = cell.machine.claim().is_remote();
            let pc = if work.note == 0 { Pc::Confirm } else { Pc::Mark };
            s.work[index] =
                Work { pc, key: cell.rec.key, mtime: cell.rec.mtime, seen_remote, note: work.note, ..Work::idle() };
        }),
        Pc::Confirm if free => {
            let there = from.object(work.key).is_some();
            out.system("release: the object is confirmed", |s| {
                let machine = s.cell().machine;
                let refused = machine.handles() > 0 || machine.pinned() || !there;
                if refused { end(s, index) } else { go(s, Pc::SettleNote) }
            });
            out.fault("  … the remote fails, or knows nothing of it", |s| end(s, index));
        }
        Pc::SettleNote if free => {
            out.system("release: noted", |s| {
                s.work[index].note = s.add_note(NoteKind::Settle(work.mtime), work.key, 0);
                go(s, Pc::Mark);
            });
            out.fault("  … the journal fails", |s| end(s, index));
        }
        Pc::Mark if free => mark(out, index, &work),
        Pc::MarkReestablish => out.sync(
            "release: what was unknown is synced",
            |s| {
                let claim = s.cell().rec.claim;
                s.apply(Event::Reestablished(claim));
                go(s, Pc::Mark);
            },
            |s| end(s, index),
        ),
        Pc::MarkSync if free => {
            // Where blocks may be free since an earlier attempt, only the object is whole.
            let holes = work.seen_remote && !out.has(Bug::HolesCalledDual);
            out.sync(
                "release: the mark is synced",
                |s| {
                    s.apply(Event::ReleaseMarked);
                    go(s, Pc::Punch);
                },
                |s| {
                    s.apply(Event::SaveUnknown);
                    s.apply(Event::ReleaseAbandoned);
                    let claim = if holes { Claim::Releasing } else { Claim::Dual };
                    s.store(Rec { claim, ..s.cell.expect("it is held").rec });
                    s.lock = lock_of(index);
                    go(s, Pc::MarkUndoSync);
                },
            );
        }
        Pc::MarkUndoSync => out.sync(
            "release: dual again, synced",
            |s| {
                let claim = s.cell().rec.claim;
                s.apply(Event::Reestablished(claim));
                end(s, index);
            },
            |s| end(s, index),
        ),
        Pc::Punch => {
            out.system("release: the blocks are freed, the mtime put back", |s| {
                s.punch(work.mtime);
                go(s, Pc::PunchSync);
            });
            if free {
                out.fault("  … half are freed, then it fails", |s| {
                    s.disk.bytes.write(0, FREED);
                    s.disk.set_mtime(crate::state::STRAY_TIME);
                    abandon(s, index);
                });
            }
        }
        Pc::PunchSync if free => {
            out.sync("release: the holes are synced", |s| go(s, Pc::StubSave), |s| abandon(s, index))
        }
        Pc::StubSave if free => {
            out.system("release: the record becomes stub", |s| {
                s.apply(Event::ReleasePunched);
                let rec = s.cell().rec;
                s.store(Rec { claim: Claim::Stub, ..rec });
                s.apply(Event::Saved(Claim::Stub));
                end(s, index);
            });
            out.fault("  … the record cannot be stored", |s| {
                s.apply(Event::ReleasePunched);
                abandon(s, index);
            });
        }
        _ => {}
    }
}

/// `mark_releasing` and `hold_and_mark`.
fn mark(out: &mut Out, index: usize, work: &Work) {
    let go = |s: &mut State, pc: Pc| s.work[index].pc = pc;
    let (unleased, twice, early) =
        (out.has(Bug::LeaseIgnored), out.has(Bug::TwoReleases), out.has(Bug::PunchBeforeRecord));
    let loose = out.has(Bug::TimesRolledBack);
    if out.from.cell.is_some_and(|cell| cell.machine.is_unknown()) {
        return out.system("release: stores again what was unknown", |s| {
            let rec = s.cell().rec;
            s.store(rec);
            s.lock = lock_of(index);
            go(s, Pc::MarkReestablish);
        });
    }
    let begin = |s: &mut State| {
        if s.is_gone() {
            end(s, index);
            return false;
        }
        let rec = s.cell().rec;
        let same = loose || (rec.key, rec.mtime) == (work.key, work.mtime);
        if (rec.claim.is_remote() != work.seen_remote || !same) && !twice {
            end(s, index);
            return false;
        }
        match s.apply(Event::ReleaseBegin) {
            Verdict::Save(Claim::Releasing) => {}
            Verdict::Refuse(Refusal::Busy) if twice => {}
            _ => {
                end(s, index);
                return false;
            }
        }
        // An archive's descriptor that is about to be closed is somebody's, too.
        let copying = |work: &Work| matches!(work.pc, Pc::Note | Pc::Copy | Pc::RollBack | Pc::Abandon);
        let open = s.is_open_outside() || s.work.iter().any(copying);
        let changed = !work.seen_remote && (s.disk.bytes.size, s.disk.mtime) != (rec.len, rec.mtime);
        if (open && !unleased) || changed {
            abandon(s, index);
            return false;
        }
        true
    };
    out.system("release: the record says releasing", |s| {
        if !begin(s) {
            return;
        }
        let rec = s.cell().rec;
        s.store(Rec { claim: Claim::Releasing, ..rec });
        s.apply(Event::Saved(Claim::Releasing));
        s.lock = 0;
        s.work[index].lease = true;
        if early {
            s.apply(Event::ReleaseMarked);
        }
        go(s, if early { Pc::Punch } else { Pc::MarkSync });
    });
    out.fault("  … the record cannot be stored", |s| {
        if begin(s) {
            abandon(s, index);
        }
    });
}
