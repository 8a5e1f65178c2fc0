//! What must hold in every state.

use tierfs::peer::Phase;

use crate::state::State;

/// The first rule that does not hold.
pub fn broken(s: &State) -> Option<&'static str> {
    s.violation.or_else(|| owners(s)).or_else(|| bytes(s)).or_else(|| readers(s)).or_else(|| staged(s))
}

/// Never two owners, never two stubs, and always one whose bytes are the content.
fn owners(s: &State) -> Option<&'static str> {
    let [east, west] = [&s.sides[0], &s.sides[1]].map(|side| (side.record, *side.own()));
    // Also by what a process believes and acts upon.
    for (east, west) in [(east.0, west.0), (east.1, west.1), (east.0, west.1), (east.1, west.0)] {
        if east.is_owner() && west.is_owner() {
            return Some("two owners");
        }
        if east.phase == Phase::Stub && west.phase == Phase::Stub {
            return Some("two stubs");
        }
    }
    s.authority().is_none().then_some("the two records contradict each other")
}

/// Whatever survives of the content, on the side that counts, is what a filesystem that does nothing but store might have kept; and no
/// phase says more of the local bytes than they are.
fn bytes(s: &State) -> Option<&'static str> {
    let side = &s.sides[s.authority()?];
    if side.bytes.now != s.truth.now {
        return Some("the content is not what users made it");
    }
    if !side.bytes.within(&s.truth) {
        return Some("an acknowledged byte may be lost");
    }
    for side in &s.sides {
        let own = side.record;
        let Some(image) = s.image(own.content.generation) else {
            if own.phase != (Phase::Owner { published: false }) {
                return Some("a generation is known that nobody published");
            }
            continue;
        };
        if u64::from(image.len) != own.content.len && !own.is_owner() {
            return Some("a length is known that is not the generation's");
        }
        match own.phase {
            Phase::Owner { published: false } => return Some("a generation is written to that was published"),
            Phase::Owner { published: true } | Phase::Offering | Phase::Taking
                if side.bytes.now != image || !side.bytes.is_synced() =>
            {
                return Some("the local bytes are not, durably, what the record says");
            }
            _ => {}
        }
    }
    None
}

/// Who reads the local bytes by himself sees some generation, whole.
fn readers(s: &State) -> Option<&'static str> {
    for side in &s.sides {
        let whole = s.history.iter().flatten().any(|image| *image == side.bytes.now);
        if side.held && side.record.phase == Phase::Stub && !whole {
            return Some("bytes that somebody reads are replaced or freed");
        }
    }
    None
}

/// What is staged when nothing goes on may still be installed.
fn staged(s: &State) -> Option<&'static str> {
    for side in &s.sides {
        if let Some((staged, image)) = side.staged
            && staged.epoch > side.own().epoch
        {
            if staged.epoch != side.own().epoch.next() && side.own().epoch >= staged.epoch {
                return Some("a copy is staged for an epoch that is over");
            }
            if u64::from(image.len) != staged.content.len {
                return Some("a staged copy has another length than it says");
            }
        }
    }
    None
}
