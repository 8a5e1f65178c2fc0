//! The recall of one file, as `engine/recall.rs` and `engine/fill.rs` do it.

use tierfs::tier::{Event, Verdict};
use tierfs::types::Claim;

use crate::bugs::Bug;
use crate::disk::Rec;
use crate::state::{ALL, Ask, At, CHUNKS, CORRUPT, Fill, NoteKind, Recall, STRAY_TIME, Spawned, State};
use crate::steps::Out;

/// Holder of the lock, for the recall's own steps.
const LOCK: u8 = 21;

/// `start_recall` for a request that wants chunks: it goes to where it is told, or ends.
pub fn want(out: &mut Out, wanted: u8, ask: Ask, go: impl Fn(&mut State, Option<At>)) {
    let from = out.from;
    let Some(cell) = from.cell else { return };
    if cell.machine.is_unknown() {
        // Stored and synced in one go here; a request that opens does it in steps.
        return out.sync(
            "recall: what was unknown is synced",
            |s| {
                let rec = s.cell().rec;
                s.store(rec);
                s.disk.sync_file();
                s.apply(Event::Reestablished(rec.claim));
            },
            |s| go(s, None),
        );
    }
    out.system("recall: asked for", |s| match s.apply(Event::RecallBegin) {
        Verdict::Already if ask == Ask::Recall => go(s, None),
        Verdict::Already => go(s, Some(At::Try)),
        Verdict::Go => {
            let cell = *s.cell();
            if s.is_gone() {
                s.apply(Event::RecallAbandoned);
                return go(s, None);
            }
            if s.disk.bytes.size != cell.rec.len {
                if s.spent.faults == 0 && s.spent.bypasses == 0 {
                    s.violate("a file is called changed below the mount, and nobody did that");
                }
                s.apply(Event::RecallAbandoned);
                return go(s, None);
            }
            let mtime = if cell.rec.claim == Claim::Releasing { cell.rec.mtime } else { s.disk.mtime };
            let (at, rec) = (Fill::Open, Rec { mtime, ..cell.rec });
            if rec != cell.rec {
                s.store(rec);
            }
            s.recall = Some(Recall { at, rec, mtime, written: 0, local: 0, cancelled: false, failed: false, noted: 0 });
            go(s, Some(At::Joined(wanted)));
        }
        Verdict::Refuse(_) => go(s, None),
        _ => match s.recall {
            Some(recall) if !recall.is_ending() => go(s, Some(At::Joined(wanted))),
            _ => go(s, Some(At::WaitRest)),
        },
    });
}

/// The recall ends: those who wait for it are told.
fn finish(s: &mut State, done: bool) {
    s.recall = None;
    readers(s, |at| {
        if let At::ReadRecall { sure } | At::ReadCheck { sure, .. } = at {
            *sure = true;
        }
    });
    for slot in &mut s.requests {
        if let Some(request) = slot
            && let At::Joined(_) = request.at
        {
            if done && request.ask != Ask::Recall {
                request.at = At::Try;
            } else {
                *slot = None;
            }
        }
    }
}

/// Those who read what this recall has brought.
fn readers(s: &mut State, mut change: impl FnMut(&mut At)) {
    for request in s.requests.iter_mut().flatten() {
        if matches!(request.at, At::ReadRecall { .. } | At::ReadCheck { .. }) {
            change(&mut request.at);
        }
    }
}

pub fn steps(out: &mut Out) {
    let Some(recall) = out.from.recall else { return };
    let unchecked = out.has(Bug::ReadUnchecked);
    let go = |s: &mut State, at: Fill| {
        if let Some(recall) = &mut s.recall {
            recall.at = at;
            recall.failed |= matches!(at, Fill::Undo | Fill::Leave);
        }
        if matches!(at, Fill::Undo | Fill::Leave) && !unchecked {
            // Those who read by it find it failed, and begin anew.
            readers(s, |at| *at = At::WantRecall(ALL));
        }
    };
    match recall.at {
        Fill::Open => {
            let refuse = |s: &mut State| go(s, Fill::Leave);
            if recall.rec.claim == Claim::Stub && out.from.disk.bytes.has_data() {
                return out.system("recall: data that tierfs did not write", |s| {
                    if s.spent.bypasses == 0 && s.spent.faults == 0 && !s.is_open_outside() {
                        s.violate("a stub's own blocks are taken for somebody else's");
                    }
                    refuse(s);
                });
            }
            let believed = recall.rec.claim == Claim::Partial && out.has(Bug::PartBelieved);
            out.system("recall: noted", |s| {
                let id = s.add_note(NoteKind::Settle(recall.mtime), recall.rec.key, 0);
                if let Some(recall) = &mut s.recall {
                    recall.noted = id;
                    recall.at = Fill::Fetch;
                    if believed {
                        (recall.written, recall.local) = (ALL, ALL >> (CHUNKS as u8 - recall.rec.len));
                    }
                }
            });
            out.fault("  … the journal fails", refuse);
        }
        Fill::Fetch => fetch(out, &recall),
        Fill::Stop if recall.cancelled => out.system("recall: ends, the file is cut", |s| go(s, Fill::Undo)),
        Fill::Stop => out.system("recall: ends early", |s| go(s, Fill::Rest)),
        Fill::Rest => {
            out.system("recall: ends early, the mtime is put back", |s| {
                s.disk.set_mtime(recall.mtime);
                s.move_ctime();
                go(s, Fill::Keep);
            });
            out.fault("  … that fails", |s| go(s, Fill::Leave));
        }
        Fill::Keep if out.may_lock(LOCK) => {
            let forgets = out.has(Bug::PartUnrecorded);
            out.system("recall: the record says that there are parts", |s| {
                let rec = s.cell().rec;
                match s.apply(Event::RecallPaused) {
                    Verdict::Save(Claim::Partial) if !forgets => {
                        s.store(Rec { claim: Claim::Partial, ..rec });
                        s.apply(Event::Saved(Claim::Partial));
                    }
                    Verdict::Go => {}
                    _ => {
                        s.apply(Event::RecallAbandoned);
                    }
                }
                s.spawn(Spawned::Forget { note: recall.noted });
                finish(s, false);
            });
            out.fault("  … the record cannot be stored", |s| go(s, Fill::Leave));
        }
        Fill::Time => {
            let sync = if out.has(Bug::RecallBeforeData) { Fill::Commit } else { Fill::Sync };
            out.system("recall: the mtime is put back", |s| {
                s.disk.set_mtime(recall.mtime);
                s.move_ctime();
                go(s, sync);
            });
            out.fault("  … that fails", |s| go(s, Fill::Rest));
        }
        Fill::Sync => out.sync("recall: synced", |s| go(s, Fill::Commit), |s| go(s, Fill::Rest)),
        Fill::Commit if out.may_lock(LOCK) => {
            let ended = out.has(Bug::RecallOutlivesCut) && recall.cancelled;
            out.system("recall: the record becomes dual", |s| {
                if ended {
                    return finish(s, true);
                }
                let Verdict::Save(Claim::Dual) = s.apply(Event::RecallFetched) else { return go(s, Fill::Rest) };
                let mut rec = s.cell().rec;
                if s.disk.bytes.size != rec.len {
                    return go(s, Fill::Rest);
                }
                (rec.claim, rec.mtime) = (Claim::Dual, s.disk.mtime);
                s.store(rec);
                s.apply(Event::Saved(Claim::Dual));
                s.spawn(Spawned::Forget { note: recall.noted });
                finish(s, true);
            });
            out.fault("  … the record cannot be stored", |s| go(s, Fill::Rest));
        }
        Fill::Undo => {
            let leaves = out.has(Bug::RecallLeavesBlocks);
            out.system("recall: what it wrote is freed", |s| {
                if !leaves {
                    s.punch(recall.mtime);
                }
                s.spawn(Spawned::Forget { note: recall.noted });
                go(s, Fill::Leave);
            });
            out.fault("  … that fails", |s| go(s, Fill::Leave));
        }
        Fill::Leave if out.may_lock(LOCK) => out.system("recall: given up", |s| {
            s.apply(Event::RecallAbandoned);
            finish(s, false);
        }),
        _ => {}
    }
}

fn fetch(out: &mut Out, recall: &Recall) {
    let stop = |s: &mut State| {
        if let Some(recall) = &mut s.recall {
            recall.at = Fill::Stop;
        }
    };
    let all = ALL >> (CHUNKS as u8 - recall.rec.len);
    let cancelled = recall.cancelled && !out.has(Bug::RecallOutlivesCut);
    if recall.local == all {
        return out.system("recall: all is there", |s| {
            if let Some(recall) = &mut s.recall {
                recall.at = Fill::Time
            }
        });
    }
    for chunk in 0..recall.rec.len {
        let (bit, index) = (1 << chunk, usize::from(chunk));
        let put = |s: &mut State, value: u8| {
            s.disk.bytes.write(index, value);
            s.disk.set_mtime(STRAY_TIME);
            s.move_ctime();
            if let Some(recall) = &mut s.recall {
                recall.written |= bit;
            }
        };
        let there = recall.rec.claim.is_remote() && recall.rec.claim != Claim::Stub;
        if recall.written & bit == 0 && !cancelled && there && out.from.disk.bytes.ch[index] == recall.rec.root[index] {
            out.system("recall: a chunk that is there has its hash", |s| {
                if let Some(recall) = &mut s.recall {
                    recall.written |= bit;
                    recall.local |= bit;
                }
            });
        } else if recall.written & bit == 0 && !cancelled {
            let object = out.from.object(recall.rec.key);
            match object.filter(|object| object.ch[index] == recall.rec.root[index]) {
                Some(object) => {
                    let label = ["recall: chunk 0 is verified and written", "recall: chunk 1 is verified and written"];
                    out.system(label[index], |s| put(s, object.ch[index]));
                }
                None => out.system("recall: the object is not there, or another", |s| {
                    s.violate("an object that a record names is not there, or is another");
                    stop(s);
                }),
            }
            out.fault("  … the remote fails, or the share is full", stop);
            if out.has(Bug::BodyUnverified) {
                out.fault("  … a corrupt body", |s| put(s, CORRUPT));
            }
        }
        if recall.written & !recall.local & bit != 0 {
            out.system("recall: a written chunk counts as local", |s| {
                if let Some(recall) = &mut s.recall {
                    recall.local |= bit;
                }
            });
        }
    }
    let waited_for = out.from.requests.iter().flatten().any(|request| matches!(request.at, At::Joined(_)));
    if !cancelled && !waited_for && recall.written == recall.local {
        out.system("recall: nobody wants more", stop);
    }
    // Writes that run end by themselves first.
    if cancelled && recall.written == recall.local {
        out.system("recall: cancelled", stop);
    }
}
