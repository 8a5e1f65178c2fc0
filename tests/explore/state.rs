//! The world of one file as values: what the users know, what is stored, what the process holds. A state is compact, copied and hashed whole.

use tierfs::tier::{Activity, IoMode, Machine};
use tierfs::types::Claim;

use crate::bugs::Bug;
pub use crate::disk::{ALL, Bytes, CHUNKS, CORRUPT, Chunks, Disk, FREED, FULL, OLDER_MAX, Rec, STRAY_TIME};

/// A remote object's content; absent without length.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Object {
    pub len: u8,
    pub ch: Chunks,
}

pub const KEYS: usize = 6;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum NoteKind {
    Upload,
    Settle(u8),
    Delete,
}

/// A durable note of the journal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Note {
    pub kind: NoteKind,
    pub key: u8,
    /// Not due: the removal of this request is under way, and within its grace.
    pub held: u8,
}

pub const NOTES: usize = 8;
pub const REQUESTS: usize = 2;
pub const WORKERS: usize = 2;
pub const SPAWNED: usize = 6;

/// What a user's request is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Ask {
    OpenRead,
    OpenWrite,
    OpenTruncate,
    Cut,
    Shorten,
    /// Sets the mtime, perhaps to one that was before.
    SetTime(u8),
    Read(u8),
    Unlink,
    Recall,
}

/// How far a request is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum At {
    Try,
    DemoteFlush,
    DemoteSave,
    DemoteSync,
    Reestablish,
    ResidentSync,
    CutSync,
    /// Planted only: the record is stored and the cut comes after.
    CutLate,
    WantRecall(u8),
    Joined(u8),
    WaitRest,
    WaitStep,
    ReadLocal,
    /// `sure`: the recall it looked at has ended well since.
    ReadRecall {
        sure: bool,
    },
    ReadCheck {
        sure: bool,
        right: bool,
        got: u8,
    },
    Noted,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Request {
    pub ask: Ask,
    pub at: At,
}

/// What a worker is at.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Pc {
    #[default]
    Idle,
    // Archive.
    Begin,
    Superseded,
    SupersededNoted,
    Before,
    Note,
    Copy,
    RollBack,
    Abandon,
    // Release.
    Look,
    Confirm,
    SettleNote,
    Mark,
    MarkReestablish,
    MarkSync,
    MarkUndoSync,
    Punch,
    PunchSync,
    StubSave,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Work {
    pub pc: Pc,
    pub migrates: bool,
    pub key: u8,
    pub root: Chunks,
    pub read: u8,
    pub size: u8,
    pub mtime: u8,
    /// Something moved the file's ctime since the note of its attributes.
    pub moved: bool,
    pub put: bool,
    pub synced: bool,
    /// What release saw: `Releasing` or (false) `Dual`.
    pub seen_remote: bool,
    /// 1 + index of the note; 0: none.
    pub note: u8,
    pub lease: bool,
}

impl Work {
    pub const fn idle() -> Self {
        Self {
            pc: Pc::Idle,
            migrates: false,
            key: 0,
            root: [0; CHUNKS],
            read: 0,
            size: 0,
            mtime: 0,
            moved: false,
            put: false,
            synced: false,
            seen_remote: false,
            note: 0,
            lease: false,
        }
    }
}

/// How far a recall is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fill {
    Open,
    Fetch,
    Stop,
    Time,
    Sync,
    Commit,
    Undo,
    /// The mtime goes back, and what is there stays.
    Rest,
    Keep,
    Leave,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Recall {
    pub at: Fill,
    pub rec: Rec,
    pub mtime: u8,
    pub written: u8,
    pub local: u8,
    pub cancelled: bool,
    pub failed: bool,
    pub noted: u8,
}

impl Recall {
    /// Nobody can join it any more.
    pub fn is_ending(&self) -> bool {
        let ends = matches!(self.at, Fill::Stop | Fill::Rest | Fill::Keep | Fill::Undo | Fill::Leave);
        self.cancelled || self.failed || ends
    }
}

/// What goes on by itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Spawned {
    /// Takes a note away once all is durable.
    Forget {
        note: u8,
    },
    Forgets {
        note: u8,
        unlinked: bool,
    },
    NoteSuperseded,
    DropSuperseded {
        key: u8,
    },
}

/// How far the deletion loop is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Deletion {
    Rest,
    Sync { note: u8, gone: bool },
    Delete { note: u8 },
    Remove { note: u8 },
}

/// How far a start is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Boot {
    Sync,
    Note(u8),
    Settled { note: u8, stub: bool },
    Journal { note: u8, named: bool },
    Serving,
}

/// What somebody uses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Cell {
    pub machine: Machine,
    pub rec: Rec,
}

/// How often each thing has happened; the bounds say how often it may.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Spent {
    pub changes: u8,
    pub times: u8,
    pub opens: u8,
    pub reads: u8,
    pub transfers: u8,
    pub crashes: u8,
    pub faults: u8,
    pub names: u8,
    pub maps: u8,
    pub pins: u8,
    pub bypasses: u8,
    pub syncs: u8,
}

/// One state of the world.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct State {
    /// The file is small: opens for reading wait for all of it.
    pub small: bool,
    /// The content as its users know it, and what a filesystem that does nothing else might keep of it.
    pub truth: Bytes,
    pub truth_mtime: u8,
    pub disk: Disk,
    pub objects: [Option<Object>; KEYS],
    /// A deletion that was given up and may yet happen (key).
    pub late_delete: u8,
    pub notes: [Option<Note>; NOTES],
    pub cell: Option<Cell>,
    pub recall: Option<Recall>,
    pub requests: [Option<Request>; REQUESTS],
    pub work: [Work; WORKERS],
    pub spawned: [Option<Spawned>; SPAWNED],
    pub deletion: Deletion,
    pub boot: Boot,
    /// Request that holds the cell's lock over several steps, 1 + its index; workers follow.
    pub lock: u8,
    pub readers: u8,
    pub writers: u8,
    /// Somebody has the lower file open or mapped, unknown to the daemon.
    pub outside_reads: bool,
    pub outside_writes: bool,
    /// The last change was within the clock's grain.
    pub recent: bool,
    /// Keys and times given out.
    pub keys: u8,
    pub stamps: u8,
    pub spent: Spent,
    pub violation: Option<&'static str>,
}

impl State {
    pub fn first(small: bool) -> Self {
        let bytes = Bytes::of(FULL, [1, 1]);
        let disk = Disk {
            rec: Rec::none(),
            older: [None; OLDER_MAX],
            bytes,
            mtime: 1,
            mtimes: 1 << 1,
            names: 1,
            names_set: 1 << 1,
        };
        Self {
            small,
            truth: bytes,
            truth_mtime: 1,
            disk,
            objects: [None; KEYS],
            late_delete: 0,
            notes: [None; NOTES],
            cell: None,
            recall: None,
            requests: [None; REQUESTS],
            work: [Work::idle(); WORKERS],
            spawned: [None; SPAWNED],
            deletion: Deletion::Rest,
            boot: Boot::Serving,
            lock: 0,
            readers: 0,
            writers: 0,
            outside_reads: false,
            outside_writes: false,
            recent: false,
            keys: 0,
            stamps: 1,
            spent: Spent::default(),
            violation: None,
        }
    }

    /// The same file with an object, long since and durably.
    pub fn archived(mut self, claim: Claim) -> Self {
        let (size, root) = (self.disk.bytes.size, self.disk.bytes.ch);
        self.keys = 1;
        self.objects[1] = Some(Object { len: size, ch: root });
        self.disk.rec = Rec { claim, key: 1, root, len: size, mtime: self.disk.mtime, ..Rec::none() };
        if claim == Claim::Stub {
            self.disk.bytes = Bytes::of(size, [FREED; CHUNKS]);
        }
        self
    }

    pub fn handles(&self) -> u8 {
        self.readers + self.writers
    }

    pub fn mode(&self) -> IoMode {
        self.cell.map_or(IoMode::Idle, |cell| cell.machine.mode())
    }

    pub fn activity(&self) -> Activity {
        self.cell.map_or(Activity::None, |cell| cell.machine.activity())
    }

    pub fn object(&self, key: u8) -> Option<Object> {
        self.objects[usize::from(key)]
    }

    /// The inode is no more: no name, nobody who has it open.
    pub fn is_gone(&self) -> bool {
        let descriptor = |work: &Work| {
            !matches!(
                work.pc,
                Pc::Idle
                    | Pc::Begin
                    | Pc::Superseded
                    | Pc::SupersededNoted
                    | Pc::Look
                    | Pc::Confirm
                    | Pc::SettleNote
                    | Pc::Mark
            )
        };
        self.disk.names == 0
            && self.handles() == 0
            && !self.outside_reads
            && !self.outside_writes
            && self.recall.is_none()
            && !self.work.iter().any(descriptor)
    }

    /// Nothing goes on and nobody waits.
    pub fn is_at_rest(&self) -> bool {
        self.boot == Boot::Serving
            && self.requests.iter().all(Option::is_none)
            && self.work.iter().all(|work| work.pc == Pc::Idle)
            && self.recall.is_none()
            && self.spawned.iter().all(Option::is_none)
            && self.deletion == Deletion::Rest
            && self.lock == 0
    }

    pub fn add_note(&mut self, kind: NoteKind, key: u8, held: u8) -> u8 {
        let free = self.notes.iter().position(Option::is_none).expect("more notes than modelled");
        self.notes[free] = Some(Note { kind, key, held });
        free as u8 + 1
    }

    pub fn note(&mut self, id: u8) -> &mut Option<Note> {
        &mut self.notes[usize::from(id) - 1]
    }

    pub fn spawn(&mut self, task: Spawned) {
        let free = self.spawned.iter_mut().find(|task| task.is_none()).expect("more tasks than modelled");
        *free = Some(task);
    }

    /// Stores a record in the page cache; the change moves the file's ctime.
    pub fn save(&mut self, rec: Rec) {
        self.disk.save(rec);
        self.move_ctime();
    }

    pub fn move_ctime(&mut self) {
        for work in &mut self.work {
            work.moved |= matches!(work.pc, Pc::Note | Pc::Copy);
        }
    }

    /// What a change by a user does to the times.
    pub fn touch(&mut self) {
        if !self.recent {
            self.stamps += 1;
            self.disk.set_mtime(self.stamps);
            self.truth_mtime = self.stamps;
            self.move_ctime();
        }
        self.recent = true;
    }

    pub fn violate(&mut self, what: &'static str) {
        self.violation.get_or_insert(what);
    }

    /// After every step: a cell that nobody holds is dropped.
    pub fn settle(&mut self, bug: Option<Bug>) {
        let Some(cell) = &self.cell else { return };
        let waits = |request: &Request| {
            !matches!(
                (request.ask, request.at),
                (Ask::Unlink, _) | (_, At::DemoteFlush | At::DemoteSave | At::DemoteSync)
            )
        };
        let held = self.handles() > 0
            || self.recall.is_some()
            || self.work.iter().any(|work| work.pc != Pc::Idle)
            || self.spawned.iter().any(Option::is_some)
            || self.requests.iter().flatten().any(waits)
            // What a failed sync left unknown is not forgotten with its last user.
            || (cell.machine.is_unknown() && bug != Some(Bug::UnknownForgotten));
        if !held {
            self.cell = None;
        }
    }
}
