//! What users, administrators and others beside the mount do, within the bounds.

use tierfs::tier::{Event, IoMode};
use tierfs::types::Claim;

use crate::state::{Ask, At, CHUNKS, Pc, Rec, Request, Spent, State, Work};
use crate::steps::Out;

pub fn steps(out: &mut Out) {
    let (from, bounds) = (out.from, out.world.bounds);
    let spent = from.spent;
    if !from.is_gone() {
        asks(out);
        handles(out);
        outside(out);
        let named = from.disk.names > 0;
        if named && spent.transfers < bounds.transfers {
            transfers(out);
        }
        if named && spent.names < bounds.names && from.disk.names == 1 {
            out.user("a second name is made", |s| {
                s.spent.names += 1;
                s.disk.names = 2;
                s.disk.names_set |= 1 << 2;
                s.move_ctime();
            });
        }
        if spent.pins < bounds.pins && from.lock == 0 && from.cell.is_some() {
            out.user("pinned, or unpinned", |s| {
                s.spent.pins += 1;
                let rec = s.cell().rec;
                let pinned = !rec.pinned;
                s.store(Rec { pinned, ..rec });
                s.apply(Event::Pin(pinned));
            });
        }
    }
}

/// Requests go to a free place.
fn asks(out: &mut Out) {
    let (from, bounds) = (out.from, out.world.bounds);
    let Some(index) = from.requests.iter().position(Option::is_none) else { return };
    let spent = from.spent;
    let named = from.disk.names > 0;
    let mut ask = |label, ask: Ask, count: fn(&mut Spent)| {
        // Two of a kind at once add nothing but two unlinks of two names.
        if from.requests.iter().flatten().any(|request| request.ask == ask && ask != Ask::Unlink) {
            return;
        }
        out.user(label, |s| {
            s.requests[index] = Some(Request { ask, at: At::Try });
            count(&mut s.spent);
        });
    };
    let opening =
        from.requests.iter().flatten().filter(|r| matches!(r.ask, Ask::OpenRead | Ask::OpenWrite | Ask::OpenTruncate));
    if named && spent.opens < bounds.opens && from.handles() + (opening.count() as u8) < bounds.handles {
        ask("open for reading", Ask::OpenRead, |s| s.opens += 1);
        ask("open for writing", Ask::OpenWrite, |s| s.opens += 1);
        if spent.changes < bounds.changes {
            ask("open with O_TRUNC", Ask::OpenTruncate, |s| {
                s.opens += 1;
                s.changes += 1;
            });
        }
    }
    if named && spent.changes < bounds.changes {
        ask("truncate to zero", Ask::Cut, |s| s.changes += 1);
        ask("truncate to one chunk", Ask::Shorten, |s| s.changes += 1);
    }
    if named && spent.times < bounds.times {
        for time in 1..=from.stamps + 1 {
            ask("set the mtime", Ask::SetTime(time), |s| s.times += 1);
        }
    }
    if named && spent.names < bounds.names {
        ask("unlink", Ask::Unlink, |s| s.names += 1);
    }
    if spent.reads < bounds.reads && matches!(from.mode(), IoMode::Daemon(_)) && from.handles() > 0 {
        ask("read of chunk 0", Ask::Read(0), |s| s.reads += 1);
        ask("read of chunk 1", Ask::Read(1), |s| s.reads += 1);
    }
    if named && spent.transfers < bounds.transfers {
        ask("recall", Ask::Recall, |s| s.transfers += 1);
    }
}

/// What is done with open handles.
fn handles(out: &mut Out) {
    let (from, bounds) = (out.from, out.world.bounds);
    let spent = from.spent;
    if from.writers > 0 && spent.changes < bounds.changes {
        for chunk in 0..CHUNKS {
            out.user(["write of chunk 0", "write of chunk 1"][chunk], |s| {
                s.spent.changes += 1;
                write(s, chunk);
                s.touch();
            });
        }
    }
    let reading = from.requests.iter().flatten().any(|request| matches!(request.ask, Ask::Read(_)));
    for write in [false, true] {
        if if write { from.writers > 0 } else { from.readers > 0 } && !reading && from.lock == 0 {
            out.user(if write { "close of a writer" } else { "close of a reader" }, |s| {
                s.apply(Event::Close { write });
                *(if write { &mut s.writers } else { &mut s.readers }) -= 1;
            });
        }
    }
    if from.handles() > 0 && spent.syncs < bounds.syncs {
        out.user("fsync by a user", |s| {
            s.spent.syncs += 1;
            s.disk.sync_file();
            s.truth.sync();
        });
    }
    if let (IoMode::Pass(_), true) = (from.mode(), spent.maps < bounds.maps) {
        out.user("mapped, and the mapping outlives the handle", |s| {
            s.spent.maps += 1;
            s.outside_reads |= s.readers > 0;
            s.outside_writes |= s.writers > 0;
        });
    }
}

fn write(s: &mut State, chunk: usize) {
    // The next value that nothing has: a write is a version.
    let value = 2 + s.spent.changes + s.spent.bypasses - 1;
    s.disk.bytes.write(chunk, value);
    s.truth.write(chunk, value);
}

/// Mappings, passthrough handles that outlived the daemon, and writers beside the mount.
fn outside(out: &mut Out) {
    let (from, bounds) = (out.from, out.world.bounds);
    let spent = from.spent;
    if from.is_open_outside() {
        out.user("unmapped", |s| (s.outside_reads, s.outside_writes) = (false, false));
    }
    if from.outside_writes && spent.changes < bounds.changes {
        out.user("a mapping writes, the mtime moved before", |s| {
            s.spent.changes += 1;
            write(s, 0);
        });
        out.user("a mapping writes", |s| {
            s.spent.changes += 1;
            write(s, 1);
            s.touch();
        });
    }
    // Its write is synced: of what is lost by power while nobody can know it, no record can tell. A lease keeps it out.
    let local = matches!(from.disk.rec.claim, Claim::Resident | Claim::Dual);
    if spent.bypasses < bounds.bypasses && local && !from.work.iter().any(|work| work.lease) && from.disk.bytes.size > 0
    {
        out.user("a write beside the mount", |s| {
            s.spent.bypasses += 1;
            write(s, 0);
            s.touch();
            s.disk.sync_file();
            s.truth.sync();
        });
    }
}

/// Administrators, policies: two workers at once.
fn transfers(out: &mut Out) {
    let from = out.from;
    let Some(index) = from.work.iter().position(|work| work.pc == Pc::Idle) else { return };
    let kinds = [("archive", Pc::Begin, false), ("migrate", Pc::Begin, true), ("release", Pc::Look, false)];
    for (label, pc, migrates) in kinds {
        out.user(label, |s| {
            s.spent.transfers += 1;
            s.work[index] = Work { pc, migrates, ..Work::idle() };
        });
    }
}
