//! What users ask of one file, as `fs/open.rs`, `fs/content.rs`, `fs/attributes.rs`, `fs/namespace.rs`, `fs/wait.rs` and `Engine::admit` do it.

use tierfs::tier::{Activity, Event, IoMode, Verdict};
use tierfs::types::Claim;

use crate::bugs::Bug;
use crate::recall;
use crate::state::{ALL, Ask, At, NoteKind, REQUESTS, Request, Spawned, State};
use crate::steps::{Judged, Out, World, judge};

pub fn steps(out: &mut Out) {
    for index in 0..REQUESTS {
        if let Some(request) = out.from.requests[index] {
            step(out, index, request);
        }
    }
}

/// Where a request is, and its end.
struct Turn {
    index: usize,
}

impl Turn {
    fn lock(&self) -> u8 {
        self.index as u8 + 1
    }

    fn go(&self, state: &mut State, at: At) {
        state.requests[self.index].as_mut().expect("it runs").at = at;
    }

    /// Holds the lock over what follows.
    fn hold(&self, state: &mut State, at: At) {
        state.lock = self.lock();
        self.go(state, at);
    }

    /// Answered, or refused with an error.
    fn end(&self, state: &mut State) {
        self.let_go(state);
        state.requests[self.index] = None;
        for note in state.notes.iter_mut().flatten().filter(|note| note.held == self.lock()) {
            note.held = 0;
        }
    }

    fn let_go(&self, state: &mut State) {
        if state.lock == self.lock() {
            state.lock = 0;
        }
    }
}

fn step(out: &mut Out, index: usize, Request { ask, at }: Request) {
    let turn = Turn { index };
    let (world, from) = (*out.world, out.from);
    let free = out.may_lock(turn.lock());
    match at {
        At::Try | At::Noted if ask == Ask::Unlink => unlink(out, &turn, at),
        At::Try if ask == Ask::Recall && free => out.system("recall: begins", |s| {
            if loaded(&world, s, &turn) {
                turn.go(s, At::WantRecall(ALL));
            }
        }),
        At::Try if free => out.system(label(ask), |s| {
            if s.is_gone() {
                turn.end(s);
            } else if loaded(&world, s, &turn) {
                match ask {
                    Ask::Read(chunk) => look(s, &turn, chunk),
                    ask => admit(&world, s, &turn, ask),
                }
            }
        }),
        At::DemoteFlush => {
            out.sync("load: the cut is synced before the record", |s| turn.go(s, At::DemoteSave), |s| turn.end(s))
        }
        At::DemoteSave => out.system("load: the record becomes resident", |s| {
            s.save(s.disk.rec.into_resident());
            turn.go(s, At::DemoteSync);
        }),
        At::DemoteSync => {
            let left = out.has(Bug::DemotionLeft);
            let demoted = from.disk.rec;
            let before = from.disk.older.iter().flatten().find(|rec| rec.key == demoted.sup).copied();
            let synced = |s: &mut State| {
                s.load(demoted);
                turn.let_go(s);
                turn.go(s, At::Try);
            };
            out.sync("load: the resident record is synced", synced, |s| {
                // The old record is put back: the next load must not believe what is not durable.
                if let (Some(before), false) = (before, left) {
                    s.save(before);
                }
                turn.end(s);
            });
        }
        At::Reestablish => out.sync(
            "what was unknown is synced",
            |s| {
                let claim = s.cell().rec.claim;
                s.apply(Event::Reestablished(claim));
                turn.go(s, At::Try);
            },
            |s| turn.end(s),
        ),
        At::ResidentSync => {
            let ignored = out.has(Bug::FailedSyncIgnored);
            let done = |s: &mut State| {
                s.apply(Event::Saved(Claim::Resident));
                s.spawn(Spawned::NoteSuperseded);
                turn.go(s, At::Try);
            };
            out.sync("the resident record is synced", done, |s| {
                if ignored {
                    done(s);
                } else {
                    s.apply(Event::SaveUnknown);
                    turn.end(s);
                }
            });
        }
        At::CutSync => out.sync(
            "the cut is synced, the record becomes resident",
            |s| {
                s.store_resident(world.bug);
                turn.go(s, At::ResidentSync);
            },
            |s| turn.end(s),
        ),
        At::CutLate => out.sync(
            "the resident record is synced, then the cut",
            |s| {
                cut(s, 0);
                s.apply(Event::Saved(Claim::Resident));
                s.spawn(Spawned::NoteSuperseded);
                turn.go(s, At::Try);
            },
            |s| turn.end(s),
        ),
        At::WantRecall(wanted) if free => recall::want(out, wanted, ask, |s, at| match at {
            Some(at) => turn.go(s, at),
            None => turn.end(s),
        }),
        At::Joined(wanted) if from.recall.is_some_and(|r| ranged(ask) && r.local & wanted == wanted) => {
            out.system("the range is there", |s| turn.go(s, At::Try));
        }
        At::WaitRest
            if match from.activity() {
                Activity::None => true,
                Activity::Recalling { cancelled: false } => {
                    out.has(Bug::WaitSpins) || from.recall.is_some_and(|recall| !recall.is_ending())
                }
                _ => false,
            } =>
        {
            out.system("waited for rest", |s| turn.go(s, At::WantRecall(ALL)));
        }
        At::WaitStep if !matches!(from.activity(), Activity::Releasing | Activity::Recalling { .. }) => {
            out.system("waited for a step", |s| turn.go(s, At::Try));
        }
        At::ReadLocal | At::ReadRecall { .. } | At::ReadCheck { .. } => read(out, &turn, ask, at),
        _ => {}
    }
}

/// Whether a request waits for a range only.
fn ranged(ask: Ask) -> bool {
    matches!(ask, Ask::Read(_) | Ask::OpenRead)
}

fn label(ask: Ask) -> &'static str {
    match ask {
        Ask::OpenRead => "open for reading: tried",
        Ask::OpenWrite => "open for writing: tried",
        Ask::OpenTruncate => "open with O_TRUNC: tried",
        Ask::Cut => "truncate to zero: tried",
        Ask::Shorten => "truncate to one chunk: tried",
        Ask::SetTime(_) => "set the mtime: tried",
        Ask::Read(0) => "read of chunk 0: looks",
        Ask::Read(_) => "read of chunk 1: looks",
        Ask::Unlink | Ask::Recall => "",
    }
}

/// Sees to it that there is a cell; `false`: not yet, or an error.
fn loaded(world: &World, s: &mut State, turn: &Turn) -> bool {
    if s.cell.is_some() {
        return true;
    }
    if s.is_gone() {
        turn.end(s);
        return false;
    }
    match judge(s, world.bug) {
        Judged::Fine(rec) => {
            s.load(rec);
            return true;
        }
        Judged::Demote { cut } => {
            let flush = cut && !world.has(Bug::DemotedBeforeCut);
            turn.hold(s, if flush { At::DemoteFlush } else { At::DemoteSave });
        }
        Judged::Changed => turn.end(s),
    }
    false
}

/// `Fs::admit_open` and `set_attr_inner`, with `Engine::admit`.
fn admit(world: &World, s: &mut State, turn: &Turn, ask: Ask) {
    let cell = *s.cell();
    if ask == Ask::OpenRead && s.small && cell.machine.mode() == IoMode::Idle {
        let away = cell.machine.claim().is_remote();
        if away && !available(s, ALL) {
            return turn.go(s, At::WantRecall(ALL));
        }
    }
    if cell.machine.is_unknown() {
        s.store(cell.rec);
        return turn.hold(s, At::Reestablish);
    }
    let passthrough = true;
    let away = s.cell().rec.claim.is_remote();
    let event = match ask {
        // Patches are not of this model (`tests/sim/` has them): who changes a stub does it in the way that needs all of it.
        Ask::OpenWrite | Ask::Shorten if away => Event::Rewrite,
        Ask::OpenRead => Event::OpenRead { passthrough },
        Ask::OpenWrite => Event::OpenWrite { passthrough },
        Ask::OpenTruncate => Event::OpenTruncate { passthrough },
        Ask::Cut => Event::Resize { to_zero: true },
        Ask::Shorten => Event::Resize { to_zero: false },
        _ if changed_beside(s) && !world.has(Bug::TimesBelieved) => Event::Resize { to_zero: false },
        _ => Event::SetTimes,
    };
    match s.apply(event) {
        Verdict::Go | Verdict::Already => finish(s, turn, ask),
        Verdict::Save(Claim::Resident) => match world.bug {
            Some(Bug::RecordStale) => {
                s.apply(Event::Saved(Claim::Resident));
                turn.go(s, At::Try);
            }
            Some(Bug::WriteBeforeRecord) => {
                s.store_resident(world.bug);
                s.apply(Event::Saved(Claim::Resident));
                s.spawn(Spawned::NoteSuperseded);
                turn.go(s, At::Try);
            }
            _ => {
                s.store_resident(world.bug);
                turn.hold(s, At::ResidentSync);
            }
        },
        Verdict::TruncateThenSave if world.has(Bug::ResidentBeforeCut) => {
            s.store_resident(world.bug);
            turn.hold(s, At::CutLate);
        }
        Verdict::TruncateThenSave => {
            cut(s, 0);
            turn.hold(s, At::CutSync);
        }
        Verdict::Recall => {
            turn.let_go(s);
            turn.go(s, At::WantRecall(ALL));
        }
        Verdict::CancelRecall => {
            if let Some(recall) = &mut s.recall {
                recall.cancelled = true;
            }
            turn.let_go(s);
            turn.go(s, At::WaitStep);
            if world.has(Bug::RecallOutlivesCut) {
                s.apply(Event::RecallAbandoned);
            }
        }
        Verdict::Wait => {
            turn.let_go(s);
            turn.go(s, At::WaitStep);
        }
        Verdict::Refuse(_) => turn.end(s),
        Verdict::TakeEmpty => unreachable!("no other side of a pair has it"),
        Verdict::Save(claim) => unreachable!("no access asks to save {claim:?}"),
    }
}

/// What was admitted is done, still under the lock.
fn finish(s: &mut State, turn: &Turn, ask: Ask) {
    match ask {
        Ask::OpenRead => s.readers += 1,
        Ask::OpenWrite => s.writers += 1,
        Ask::OpenTruncate => {
            if s.disk.bytes.size > 0 {
                cut(s, 0);
            }
            s.writers += 1;
        }
        Ask::Cut if s.disk.bytes.size > 0 => cut(s, 0),
        Ask::Shorten if s.disk.bytes.size > 1 => cut(s, 1),
        Ask::SetTime(time) => {
            s.disk.set_mtime(time);
            s.truth_mtime = time;
            s.stamps = s.stamps.max(time);
            s.move_ctime();
            let mut rec = s.cell().rec;
            if rec.key != 0 && rec.mtime != time {
                rec.mtime = time;
                s.store(rec);
            }
        }
        _ => {}
    }
    turn.end(s);
}

/// A dual file whose size or mtime below are not its record's.
fn changed_beside(s: &mut State) -> bool {
    let (rec, disk) = (s.cell().rec, &s.disk);
    rec.claim == Claim::Dual && (disk.bytes.size, disk.mtime) != (rec.len, rec.mtime)
}

fn cut(s: &mut State, size: u8) {
    s.disk.bytes.set_size(size);
    s.truth.set_size(size);
    s.touch();
}

fn available(s: &State, wanted: u8) -> bool {
    let there = |recall: crate::state::Recall| !recall.failed && recall.local & wanted == wanted;
    // Once committed or undone the cell has no recall any more.
    s.recall.is_some_and(there)
}

/// `read_inner` up to the read.
fn look(s: &mut State, turn: &Turn, chunk: u8) {
    let cell = *s.cell();
    let at = if cell.machine.is_local() {
        At::ReadLocal
    } else if chunk >= cell.rec.len {
        return turn.end(s);
    } else if available(s, 1 << chunk) {
        At::ReadRecall { sure: false }
    } else {
        At::WantRecall(1 << chunk)
    };
    turn.go(s, at);
}

fn read(out: &mut Out, turn: &Turn, ask: Ask, at: At) {
    let Ask::Read(chunk) = ask else { unreachable!("only reads read") };
    let (index, unchecked) = (usize::from(chunk), out.has(Bug::ReadUnchecked));
    // What the users may see now; past the end nothing.
    let right_now = |s: &State, got: u8| s.truth.size <= chunk || s.truth.ch[index] == got;
    let deliver = move |s: &mut State, right: bool| {
        if !right {
            s.violate("a reader got bytes that are not the content");
        }
        turn.end(s);
    };
    match at {
        At::ReadLocal => out.system("read from the lower file", |s| {
            let short = s.disk.bytes.size <= chunk;
            let right = if short { s.truth.size <= chunk } else { right_now(s, s.disk.bytes.ch[index]) };
            deliver(s, right);
        }),
        At::ReadRecall { sure } => out.system("read of a recalled chunk", |s| {
            if s.disk.bytes.size <= chunk {
                return turn.go(s, At::WantRecall(1 << chunk));
            }
            let got = s.disk.bytes.ch[index];
            let right = right_now(s, got);
            if unchecked { deliver(s, right) } else { turn.go(s, At::ReadCheck { sure, right, got }) }
        }),
        At::ReadCheck { sure, right, got } => out.system("read: is the chunk still there?", |s| {
            let asked = s.recall.is_some_and(|recall| !recall.failed && recall.local & (1 << chunk) != 0);
            if asked || sure {
                let right = right || right_now(s, got);
                deliver(s, right);
            } else {
                turn.go(s, At::WantRecall(1 << chunk));
            }
        }),
        _ => {}
    }
}

/// `Fs::removal`, `note_removal`, `unlink`.
fn unlink(out: &mut Out, turn: &Turn, at: At) {
    let late = out.has(Bug::UnlinkNotedLate);
    let take = |s: &mut State| {
        s.disk.names = s.disk.names.saturating_sub(1);
        s.disk.names_set |= 1 << s.disk.names;
        s.move_ctime();
    };
    let leaves = |s: &State| s.cell.map_or(s.disk.rec, |cell| cell.rec);
    let note = |s: &mut State, held: u8| {
        let rec = leaves(s);
        for key in [rec.key, rec.sup].into_iter().filter(|key| *key != 0) {
            s.add_note(NoteKind::Delete, key, held);
        }
    };
    if at == At::Noted {
        return out.system("unlink: the name goes", |s| {
            if late {
                note(s, 0)
            } else {
                take(s)
            }
            turn.end(s);
        });
    }
    let rec = leaves(out.from);
    if out.from.disk.names == 1 && (rec.key != 0 || rec.sup != 0) {
        out.system("unlink: the deletion is noted", |s| {
            if late {
                take(s)
            } else {
                note(s, turn.lock())
            }
            turn.go(s, At::Noted);
        });
        out.fault("  … the journal fails", |s| turn.end(s));
    } else {
        out.system("unlink: the name goes, nothing to note", |s| {
            take(s);
            turn.end(s);
        });
    }
}
