//! Every state of one file that its events can lead to, with up to three handles: no invariant breaks, no local byte that is missing is
//! called local, no wait is for nothing. The machine's own assertions run on every step.

use std::collections::{HashSet, VecDeque};

use super::*;

/// The file as the world has it: what the machine's verdicts must never contradict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct World {
    machine: Machine,
    readers: u32,
    writers: u32,
    /// All content is in the lower file.
    bytes_local: bool,
    /// The object holds the present content, but for what a patch tells.
    object_current: bool,
    /// Bytes were written that no object has.
    written: bool,
    /// What is stored.
    stored: Claim,
    steps: Steps,
}

/// How far the engine's procedures are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Steps {
    None,
    Archiving { changed: bool },
    Marked,
    Punched,
    Fetching,
    Fetched,
}

const HANDLES_MAX: u32 = 3;

impl World {
    fn new() -> Self {
        Self {
            machine: Machine::new(Claim::Resident, false),
            readers: 0,
            writers: 0,
            bytes_local: true,
            object_current: false,
            written: false,
            stored: Claim::Resident,
            steps: Steps::None,
        }
    }

    fn save(&mut self, claim: Claim) {
        self.stored = claim;
        if claim == Claim::Resident {
            (self.object_current, self.written) = (false, false);
        }
        self.machine.apply(Event::Saved(claim));
    }

    /// Content changes, and the machine has let it.
    fn changed(mut self) -> Self {
        if self.stored == Claim::Patched {
            self.written = true;
        } else {
            self.object_current = false;
        }
        if matches!(self.steps, Steps::Archiving { .. }) {
            self.steps = Steps::Archiving { changed: true };
        }
        self
    }

    /// Does at once what an access asks to have stored first; `None` when it must wait or is refused.
    fn admit(mut self, event: Event) -> Option<Self> {
        loop {
            match self.machine.apply(event) {
                Verdict::Go => return Some(self),
                Verdict::Save(claim @ (Claim::Resident | Claim::Patched)) => self.save(claim),
                Verdict::TruncateThenSave => {
                    // An empty file is whole.
                    self.bytes_local = true;
                    self.save(Claim::Resident);
                }
                Verdict::CancelRecall | Verdict::Wait | Verdict::Recall | Verdict::Refuse(_) => return None,
                other => panic!("{other:?} to {event:?}"),
            }
        }
    }

    fn successors(self) -> Vec<Self> {
        let mut next = Vec::new();
        if self.readers + self.writers < HANDLES_MAX {
            for passthrough in [false, true] {
                next.extend(self.admit(Event::OpenRead { passthrough }).map(|w| Self { readers: w.readers + 1, ..w }));
                for event in [Event::OpenWrite { passthrough }, Event::OpenTruncate { passthrough }] {
                    next.extend(self.admit(event).map(|w| Self { writers: w.writers + 1, ..w }));
                }
            }
        }
        for (write, open) in [(false, self.readers), (true, self.writers)] {
            if open > 0 {
                let mut w = self;
                w.machine.apply(Event::Close { write });
                *(if write { &mut w.writers } else { &mut w.readers }) -= 1;
                next.push(w);
            }
        }
        if self.writers > 0 {
            match self.machine.mode() {
                // Nobody is asked.
                IoMode::Pass(_) => next.push(self.changed()),
                _ => next.extend(
                    [Event::Write, Event::Rewrite].into_iter().filter_map(|e| self.admit(e)).map(Self::changed),
                ),
            }
        }
        for to_zero in [false, true] {
            let event = Event::Resize { to_zero };
            if let Some(w) = self.admit(event) {
                next.push(w.changed());
            } else {
                // A refusal or a wait may have cancelled a recall.
                let mut w = self;
                w.machine.apply(event);
                next.push(w);
            }
        }
        next.extend([true, false].map(|pinned| {
            let mut w = self;
            w.machine.apply(Event::Pin(pinned));
            w
        }));
        next.extend(self.transfers());
        next.push(self.crashed());
        next
    }

    fn transfers(self) -> Vec<Self> {
        let mut w = self;
        match self.steps {
            Steps::None => {
                let mut next = Vec::new();
                let mut archive = self;
                if archive.machine.apply(Event::ArchiveBegin) == Verdict::Go {
                    assert_eq!(archive.stored, Claim::Resident, "{archive:?}");
                    archive.steps = Steps::Archiving { changed: false };
                    next.push(archive);
                }
                let mut release = self;
                if release.machine.apply(Event::ReleaseBegin) == Verdict::Save(Claim::Releasing) {
                    release.save(Claim::Releasing);
                    release.machine.apply(Event::ReleaseMarked);
                    release.steps = Steps::Marked;
                    next.push(release);
                }
                let mut recall = self;
                if recall.machine.apply(Event::RecallBegin) == Verdict::Go {
                    recall.steps = Steps::Fetching;
                    next.push(recall);
                }
                next
            }
            Steps::Archiving { changed } => {
                match w.machine.apply(Event::ArchiveCopied { unchanged: !changed }) {
                    Verdict::Save(Claim::Dual) => {
                        assert!(!changed);
                        w.object_current = true;
                        w.save(Claim::Dual);
                    }
                    _ => {
                        w.machine.apply(Event::ArchiveAbandoned);
                    }
                }
                w.steps = Steps::None;
                vec![w]
            }
            Steps::Marked => {
                w.bytes_local = false;
                w.steps = Steps::Punched;
                let mut failed = self;
                failed.machine.apply(Event::ReleaseAbandoned);
                failed.steps = Steps::None;
                vec![w, failed]
            }
            Steps::Punched => {
                assert_eq!(w.machine.apply(Event::ReleasePunched), Verdict::Save(Claim::Stub));
                w.save(Claim::Stub);
                w.steps = Steps::None;
                vec![w]
            }
            Steps::Fetching => {
                let mut failed = self;
                failed.bytes_local = false;
                failed.machine.apply(Event::RecallAbandoned);
                failed.steps = Steps::None;
                w.bytes_local = true;
                w.steps = Steps::Fetched;
                vec![w, failed]
            }
            Steps::Fetched => {
                let claim = if w.stored == Claim::Patched { Claim::Resident } else { Claim::Dual };
                assert_eq!(w.machine.apply(Event::RecallFetched), Verdict::Save(claim));
                w.save(claim);
                w.steps = Steps::None;
                vec![w]
            }
        }
    }

    /// The process dies; the stored record and the bytes remain.
    fn crashed(self) -> Self {
        let machine = Machine::new(self.stored, self.machine.pinned());
        Self { machine, readers: 0, writers: 0, steps: Steps::None, ..self }
    }

    fn check(&self) {
        assert!(self.bytes_local || self.object_current, "content is nowhere: {self:?}");
        let claims_local = |claim| matches!(claim, Claim::Resident | Claim::Dual);
        assert!(self.bytes_local || !claims_local(self.stored), "the record over-claims: {self:?}");
        assert!(self.bytes_local || !self.machine.is_local(), "zeros would be served: {self:?}");
        assert!(self.object_current || self.stored == Claim::Resident, "the record names a stale object: {self:?}");
        assert!(!self.written || self.stored == Claim::Patched, "what was written is nowhere: {self:?}");
        if let IoMode::Pass(_) = self.machine.mode() {
            assert!(self.bytes_local, "the kernel reads holes: {self:?}");
        }
        assert_eq!(self.machine.handles(), self.readers + self.writers);
        // Whatever an open waits for is running, and will end.
        let mut probe = self.machine;
        if probe.apply(Event::OpenRead { passthrough: true }) == Verdict::Wait {
            assert_ne!(self.steps, Steps::None, "waits for nothing: {self:?}");
        }
    }
}

/// Explores all reachable worlds; returns how many there are.
fn explore() -> usize {
    let mut seen = HashSet::from([World::new()]);
    let mut queue = VecDeque::from([World::new()]);
    while let Some(world) = queue.pop_front() {
        world.check();
        for next in world.successors() {
            if seen.insert(next) {
                queue.push_back(next);
            }
        }
    }
    seen.len()
}

#[test]
fn every_reachable_state_keeps_the_law() {
    let states = explore();
    println!("{states} states");
    assert!(states > 100, "the exploration did not get anywhere: {states} states");
}

#[test]
fn what_a_release_refuses() {
    for (claim, pinned, open, expected) in [
        (Claim::Resident, false, false, Verdict::Refuse(Refusal::NotArchived)),
        (Claim::Dual, true, false, Verdict::Refuse(Refusal::Pinned)),
        (Claim::Dual, false, true, Verdict::Refuse(Refusal::Open)),
        (Claim::Stub, false, false, Verdict::Already),
        (Claim::Dual, false, false, Verdict::Save(Claim::Releasing)),
        (Claim::Releasing, false, false, Verdict::Save(Claim::Releasing)),
    ] {
        let mut machine = Machine::new(claim, pinned);
        if open {
            machine.apply(Event::OpenRead { passthrough: true });
        }
        assert_eq!(machine.apply(Event::ReleaseBegin), expected, "{claim:?} pinned {pinned} open {open}");
    }
}

#[test]
fn a_failed_sync_stops_everything_until_it_is_settled() {
    let mut machine = Machine::new(Claim::Dual, false);
    assert_eq!(machine.apply(Event::OpenWrite { passthrough: true }), Verdict::Save(Claim::Resident));
    machine.apply(Event::SaveUnknown);
    for event in [Event::OpenRead { passthrough: true }, Event::Read, Event::ArchiveBegin, Event::ReleaseBegin] {
        assert_eq!(machine.apply(event), Verdict::Refuse(Refusal::Unknown), "{event:?}");
    }
    machine.apply(Event::Reestablished(Claim::Resident));
    assert_eq!(machine.apply(Event::OpenWrite { passthrough: true }), Verdict::Go);
}

/// A file that both sides of a pair have: what its machine lets in, by who owns it.
#[test]
fn who_owns_it_decides_who_changes_it() {
    let changes = [
        Event::OpenWrite { passthrough: true },
        Event::OpenTruncate { passthrough: true },
        Event::Write,
        Event::Rewrite,
        Event::Resize { to_zero: false },
        Event::Resize { to_zero: true },
    ];
    let machine = |claim, paired| Machine::new(claim, false).paired(paired);
    for event in changes {
        // Published: its generation is raised first, once.
        let sealed = Paired { sealed: true, ..Paired::default() };
        let mut owner = machine(Claim::Resident, sealed);
        assert_eq!(owner.apply(event), Verdict::Save(Claim::Resident), "{event:?}");
        owner.apply(Event::Saved(Claim::Resident));
        assert_eq!(owner.apply(event), Verdict::Go, "{event:?}");
        // The other side's: it is taken first, whatever is to become of the content.
        let foreign = Paired { foreign: true, ..Paired::default() };
        for claim in [Claim::Stub, Claim::Partial, Claim::Releasing, Claim::Resident] {
            let empties = matches!(event, Event::OpenTruncate { .. } | Event::Resize { to_zero: true });
            let first = if empties && claim.is_remote() { Verdict::TakeEmpty } else { Verdict::Recall };
            assert_eq!(machine(claim, foreign).apply(event), first, "{event:?} of {claim:?}");
            if claim.is_remote() {
                // What somebody reads is set aside, not thrown away.
                let mut read = machine(claim, foreign);
                assert_eq!(read.apply(Event::RecallBegin), Verdict::Go);
                assert_eq!(read.apply(event), if empties { Verdict::Wait } else { Verdict::Recall });
            }
        }
        // Undecided: nobody changes it, and nobody moves it.
        for (claim, foreign) in [(Claim::Resident, false), (Claim::Dual, true)] {
            let mut asked = machine(claim, Paired { sealed: !foreign, foreign, handing_over: true });
            assert_eq!(asked.apply(event), Verdict::Wait, "{event:?} of {claim:?}");
            assert_eq!(asked.apply(Event::SetTimes), Verdict::Wait);
            assert_eq!(asked.apply(Event::Read), Verdict::Go);
            assert_eq!(asked.apply(Event::RecallBegin), Verdict::Already);
            assert_eq!(asked.apply(Event::ReleaseBegin), Verdict::Refuse(Refusal::Busy), "{claim:?}");
            // Read through the daemon: what is decided may free it.
            assert_eq!(asked.apply(Event::OpenRead { passthrough: true }), Verdict::Go);
            assert_eq!(asked.mode(), IoMode::Daemon(1));
            asked.apply(Event::HandOverEnded(Claim::Partial, Paired { foreign: true, ..Paired::default() }));
            assert_eq!(asked.activity(), Activity::None);
            assert!(matches!(asked.apply(event), Verdict::Recall | Verdict::TakeEmpty));
        }
    }
}

#[test]
fn a_change_of_owner_begins_with_nobody_at_work() {
    let begun = |open: Option<Event>| {
        let mut machine = Machine::new(Claim::Resident, false);
        if let Some(open) = open {
            assert_eq!(machine.apply(open), Verdict::Go);
        }
        machine.apply(Event::HandOverBegin)
    };
    assert_eq!(begun(None), Verdict::Go);
    assert_eq!(begun(Some(Event::OpenRead { passthrough: false })), Verdict::Go);
    assert_eq!(begun(Some(Event::OpenRead { passthrough: true })), Verdict::Refuse(Refusal::Open));
    assert_eq!(begun(Some(Event::OpenWrite { passthrough: false })), Verdict::Refuse(Refusal::Open));
    let mut copied = Machine::new(Claim::Resident, false);
    assert_eq!(copied.apply(Event::ArchiveBegin), Verdict::Go);
    assert_eq!(copied.apply(Event::OpenWrite { passthrough: true }), Verdict::Go);
    copied.apply(Event::Close { write: true });
    assert_eq!(copied.apply(Event::HandOverBegin), Verdict::Refuse(Refusal::Changed));
}
