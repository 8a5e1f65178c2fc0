//! What must hold in every state.

use tierfs::tier::IoMode;
use tierfs::types::Claim;

use crate::crashes::served;
use crate::state::{NoteKind, Rec, State};
use crate::steps::{Judged, judge};

/// The first rule that does not hold.
pub fn broken(s: &State) -> Option<&'static str> {
    s.violation.or_else(|| unseen(s)).or_else(|| over_claims(s)).or_else(|| unreferenced(s)).or_else(|| times(s))
}

/// What users see now is the content.
fn unseen(s: &State) -> Option<&'static str> {
    if s.is_gone() {
        return None;
    }
    let local_is_content = s.disk.bytes.same(&s.truth);
    if !local_is_content && (matches!(s.mode(), IoMode::Pass(_)) || s.is_open_outside()) {
        return Some("the kernel reads bytes that are not the content");
    }
    if let Some(cell) = &s.cell {
        let key = cell.rec.key;
        if cell.machine.is_local() && !local_is_content {
            return Some("local bytes that are not the content are called local");
        }
        if key != 0 && !holds(s, &cell.rec) {
            return Some("a record in use names an object that is not its own");
        }
        return None;
    }
    // Nobody has a cell: the stored record is the state.
    match judge(s, None) {
        Judged::Fine(rec) if served(&rec, &s.disk.bytes) != Some((s.truth.size, s.truth.ch)) => {
            Some("the stored record leads to another content")
        }
        Judged::Demote { .. } if !local_is_content => Some("a file made resident has another content"),
        _ => None,
    }
}

fn holds(s: &State, rec: &Rec) -> bool {
    s.object(rec.key).is_some_and(|object| (object.len, object.ch) == (rec.len, rec.root))
}

/// No record that may be on the disk claims more than what may be there with it; and the content it leads to is one that a filesystem
/// which does nothing else might have kept.
fn over_claims(s: &State) -> Option<&'static str> {
    let disk = &s.disk;
    if s.is_gone() && disk.names_set == 1 {
        return None;
    }
    let kept = |bytes: u8, truth: u8| bytes & !truth == 0;
    for rec in disk.possible_records() {
        if rec.key != 0 && !holds(s, &rec) {
            return Some("a record that may survive names an object that is not there");
        }
        let whole_set = disk.bytes.sizes & (1 << rec.len) != 0;
        match rec.claim {
            Claim::Resident | Claim::Dual => {
                let allowed =
                    kept(disk.bytes.sizes, s.truth.sizes) && (0..2).all(|c| kept(disk.bytes.chs[c], s.truth.chs[c]));
                if !allowed {
                    return Some("a record that may survive calls local what is not the content");
                }
                let believed = rec.claim == Claim::Dual && disk.mtimes & (1 << rec.mtime) != 0 && whole_set;
                if believed && (0..usize::from(rec.len)).any(|c| disk.bytes.chs[c] != 1 << rec.root[c]) {
                    return Some("a record dual that may survive is of other bytes");
                }
            }
            Claim::Patched => return Some("a patch, which this model does not have"),
            Claim::Stub | Claim::Releasing | Claim::Partial => {
                if disk.bytes.sizes & !(1 | (1 << rec.len)) != 0 {
                    return Some("a stub that may survive has another size than its object");
                }
                if disk.bytes.sizes & 1 != 0 && s.truth.sizes & 1 == 0 {
                    return Some("an empty stub may survive, and the content is not empty");
                }
                let allowed = s.truth.sizes & (1 << rec.len) != 0
                    && (0..usize::from(rec.len)).all(|c| s.truth.chs[c] & (1 << rec.root[c]) != 0);
                if whole_set && !allowed {
                    return Some("a stub that may survive leads to an object of another content");
                }
            }
        }
    }
    None
}

/// Every object is noted, or named by whatever record survives.
fn unreferenced(s: &State) -> Option<&'static str> {
    for (key, _) in s.objects.iter().enumerate().filter(|(_, object)| object.is_some()) {
        let key = key as u8;
        if s.notes.iter().flatten().any(|note| note.key == key && !matches!(note.kind, NoteKind::Settle(_))) {
            continue;
        }
        if s.disk.names_set & 1 != 0 {
            return Some("an object's file may be gone, and no note says so");
        }
        if !s.disk.possible_records().all(|rec| rec.names(key)) {
            return Some("an object is neither named nor noted");
        }
    }
    None
}

/// Tiering leaves the mtime as it was.
fn times(s: &State) -> Option<&'static str> {
    let rest = s.is_at_rest() && !s.is_gone() && s.spent.faults == 0;
    (rest && s.disk.mtime != s.truth_mtime).then_some("tiering moved the mtime")
}
