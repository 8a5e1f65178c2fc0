//! What may happen next: the frame in which every subject puts its steps, and what several of them share.

use tierfs::tier::{Event, Machine};
use tierfs::types::Claim;

use crate::bugs::Bug;
use crate::explorer::{self, Explored, Kind};
use crate::state::{Cell, FREED, Rec, STRAY_TIME, Spawned, State};
use crate::{archive, background, crashes, environment, invariants, recall, release, requests};

/// A step and where it leads.
pub type Next = explorer::Next<State, &'static str>;

/// How often what may happen.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Writes and truncations.
    pub changes: u8,
    /// Times set by users.
    pub times: u8,
    pub opens: u8,
    pub reads: u8,
    pub transfers: u8,
    pub crashes: u8,
    /// Failures of the share, the journal or the remote.
    pub faults: u8,
    /// Links and unlinks.
    pub names: u8,
    pub maps: u8,
    pub pins: u8,
    pub bypasses: u8,
    /// `fsync` by users.
    pub syncs: u8,
    /// Handles open at once.
    pub handles: u8,
}

impl Bounds {
    pub const NONE: Self = Self {
        changes: 0,
        times: 0,
        opens: 0,
        reads: 0,
        transfers: 0,
        crashes: 0,
        faults: 0,
        names: 0,
        maps: 0,
        pins: 0,
        bypasses: 0,
        syncs: 0,
        handles: 2,
    };
}

/// What is explored.
#[derive(Clone, Copy, Debug)]
pub struct World {
    pub bounds: Bounds,
    pub bug: Option<Bug>,
    /// What the file is when it begins.
    pub start: Start,
    /// Whether it is recalled inside open.
    pub small: bool,
}

/// What a file is at first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    Resident,
    Dual,
    Stub,
    Any,
}

impl World {
    pub fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }
}

impl Explored for World {
    type State = State;
    type Label = &'static str;

    fn initial(&self) -> Vec<State> {
        let first = State::first(self.small);
        let dual = first.archived(Claim::Dual);
        let stub = first.archived(Claim::Stub);
        match self.start {
            Start::Resident => vec![first],
            Start::Dual => vec![dual],
            Start::Stub => vec![stub],
            Start::Any => vec![first, dual, stub],
        }
    }

    fn steps(&self, state: &State, next: &mut Vec<Next>) {
        let mut out = Out { world: self, from: state, next };
        crashes::boot(&mut out);
        if out.is_serving() {
            requests::steps(&mut out);
            recall::steps(&mut out);
            archive::steps(&mut out);
            release::steps(&mut out);
            background::steps(&mut out);
            environment::steps(&mut out);
        }
        crashes::crash(&mut out);
    }

    fn broken(&self, state: &State) -> Option<&'static str> {
        invariants::broken(state)
    }

    fn is_at_rest(&self, state: &State) -> bool {
        state.is_at_rest()
    }
}

/// Collects the steps from one state.
pub struct Out<'a> {
    pub world: &'a World,
    pub from: &'a State,
    next: &'a mut Vec<Next>,
}

impl Out<'_> {
    pub fn has(&self, bug: Bug) -> bool {
        self.world.has(bug)
    }

    pub fn is_serving(&self) -> bool {
        self.from.boot == crate::state::Boot::Serving
    }

    pub fn step(&mut self, kind: Kind, label: &'static str, change: impl FnOnce(&mut State)) {
        let mut state = *self.from;
        change(&mut state);
        state.settle(self.world.bug);
        self.next.push(Next { kind, label, state });
    }

    pub fn system(&mut self, label: &'static str, change: impl FnOnce(&mut State)) {
        self.step(Kind::System, label, change);
    }

    pub fn user(&mut self, label: &'static str, change: impl FnOnce(&mut State)) {
        self.step(Kind::User, label, change);
    }

    pub fn fault(&mut self, label: &'static str, change: impl FnOnce(&mut State)) {
        if self.from.spent.faults < self.world.bounds.faults {
            self.step(Kind::Fault, label, |state| {
                state.spent.faults += 1;
                change(state);
            });
        }
    }

    /// A sync of the lower file, which may fail: then nothing is known of what is on the disk.
    pub fn sync(&mut self, label: &'static str, done: impl FnOnce(&mut State), failed: impl FnOnce(&mut State)) {
        self.system(label, |state| {
            state.disk.sync_file();
            done(state);
        });
        self.fault("  … the sync fails", failed);
    }

    /// Whether `holder` may take the cell's lock, or has it.
    pub fn may_lock(&self, holder: u8) -> bool {
        self.from.lock == 0 || self.from.lock == holder
    }
}

/// What a look at a stored record tells.
pub enum Judged {
    Fine(Rec),
    /// It is to be made resident; `cut`: because the file is empty.
    Demote {
        cut: bool,
    },
    /// Contradicts the file: an error.
    Changed,
}

/// `judge_record`: the stored record against the file.
pub fn judge(state: &State, bug: Option<Bug>) -> Judged {
    let (mut rec, disk) = (state.disk.rec, &state.disk);
    if rec.key == 0 {
        return Judged::Fine(rec);
    }
    if rec.claim == Claim::Releasing && bug == Some(Bug::ReleasingTakenForDual) {
        rec.claim = Claim::Dual;
        return Judged::Fine(rec);
    }
    match rec.claim {
        Claim::Dual if (disk.bytes.size, disk.mtime) != (rec.len, rec.mtime) => Judged::Demote { cut: false },
        claim if claim.is_remote() && disk.bytes.size == 0 => Judged::Demote { cut: true },
        claim if claim.is_remote() && disk.bytes.size != rec.len => Judged::Changed,
        _ => Judged::Fine(rec),
    }
}

impl State {
    pub fn cell(&mut self) -> &mut Cell {
        self.cell.as_mut().expect("whoever asks holds it")
    }

    pub fn apply(&mut self, event: Event) -> tierfs::tier::Verdict {
        self.cell().machine.apply(event)
    }

    /// Makes the cell from a record that was judged.
    pub fn load(&mut self, rec: Rec) {
        self.cell = Some(Cell { machine: Machine::new(rec.claim, rec.pinned), rec });
    }

    /// The cell, loaded in one go where nobody has it; `false`: the record contradicts the file. (Requests load it step by step.)
    pub fn get_cell(&mut self, bug: Option<Bug>) -> bool {
        if self.cell.is_some() {
            return true;
        }
        match judge(self, bug) {
            Judged::Fine(rec) => self.load(rec),
            Judged::Demote { .. } => {
                self.save(self.disk.rec.into_resident());
                self.disk.sync_file();
                self.load(self.disk.rec);
            }
            Judged::Changed => return false,
        }
        true
    }

    /// Stores the cell's record as changed; the caller syncs.
    pub fn store(&mut self, rec: Rec) {
        self.cell().rec = rec;
        self.save(rec);
    }

    /// The record that changed content has, in the cell and stored; not synced.
    pub fn store_resident(&mut self, bug: Option<Bug>) {
        let mut rec = self.cell().rec.into_resident();
        match bug {
            Some(Bug::SupersededDropped) => rec.sup = 0,
            Some(Bug::DeletedBeforeClaim) => {
                self.spawn(Spawned::NoteSuperseded);
            }
            Some(Bug::KeyReused) => rec.generation += 1,
            _ => {}
        }
        self.store(rec);
    }

    /// Frees all blocks; the size stays, the mtime moves and is put back.
    pub fn punch(&mut self, mtime: u8) {
        for chunk in 0..usize::from(self.disk.bytes.size) {
            self.disk.bytes.write(chunk, FREED);
        }
        self.disk.set_mtime(STRAY_TIME);
        self.disk.set_mtime(mtime);
        self.move_ctime();
    }

    /// Whether the kernel knows of anybody else who has the file open or mapped.
    pub fn is_open_outside(&self) -> bool {
        self.outside_reads || self.outside_writes
    }
}
