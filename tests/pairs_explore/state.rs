//! What there is: two sides of one file, each with what is durable and what its process knows, and the messages between them.

use tierfs::peer::{Answer, Call, Content, Ownership, PairFileId, Staged};
use tierfs::types::Generation;

use crate::explorer::fingerprint;

/// A chunk whose blocks were freed. Never content.
pub const FREED: u8 = 0;
pub const CHUNKS: usize = 2;
/// Generations are small numbers here, below this.
pub const GENERATIONS: usize = 16;
/// The file.
pub const FILE: PairFileId = PairFileId(1);

/// Content as one whole: length in chunks, and in each chunk the number of the write that made it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Image {
    pub len: u8,
    pub ch: [u8; CHUNKS],
}

/// A file: what is in the page cache, and the sets of values that may be on the disk instead.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Bytes {
    pub now: Image,
    pub lens: u8,
    pub chs: [u16; CHUNKS],
}

impl Bytes {
    pub fn synced(now: Image) -> Self {
        Self { now, lens: 1 << now.len, chs: now.ch.map(|value| 1 << value) }
    }

    pub fn is_synced(&self) -> bool {
        *self == Self::synced(self.now)
    }

    pub fn sync(&mut self) {
        *self = Self::synced(self.now);
    }

    pub fn write(&mut self, chunk: usize, value: u8) {
        if usize::from(self.now.len) <= chunk {
            self.set_len(chunk as u8 + 1);
        }
        self.now.ch[chunk] = value;
        self.chs[chunk] |= 1 << value;
    }

    /// Beyond the new length nothing is left.
    pub fn set_len(&mut self, len: u8) {
        self.now.len = len;
        self.lens |= 1 << len;
        for chunk in usize::from(len)..CHUNKS {
            self.now.ch[chunk] = FREED;
            self.chs[chunk] |= 1 << FREED;
        }
    }

    pub fn replace(&mut self, image: Image) {
        self.set_len(image.len);
        for chunk in 0..usize::from(image.len) {
            self.write(chunk, image.ch[chunk]);
        }
    }

    pub fn free(&mut self) {
        for chunk in 0..CHUNKS {
            self.now.ch[chunk] = FREED;
            self.chs[chunk] |= 1 << FREED;
        }
    }

    /// Whatever may be left of this is one of what may be left of `truth`.
    pub fn within(&self, truth: &Self) -> bool {
        self.lens & !truth.lens == 0 && (0..CHUNKS).all(|c| self.chs[c] & !truth.chs[c] == 0)
    }

    /// All that a power loss may leave.
    pub fn survivors(&self) -> Vec<Image> {
        let mut all = Vec::new();
        for len in (0..=CHUNKS as u8).filter(|len| self.lens & (1 << len) != 0) {
            for a in (0..16).filter(|value| self.chs[0] & (1 << value) != 0) {
                for b in (0..16).filter(|value| self.chs[1] & (1 << value) != 0) {
                    let ch = [if len > 0 { a } else { FREED }, if len > 1 { b } else { FREED }];
                    all.push(Image { len, ch });
                }
            }
        }
        all.sort_by_key(|image| (image.len, image.ch));
        all.dedup();
        all
    }
}

/// What a user does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Op {
    /// Open, write this chunk, close with or without a sync.
    Write(u8),
    /// Truncate by path to so many chunks.
    Cut(u8),
    /// Read all of it.
    Read,
}

/// How far he is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum User {
    Ask(Op),
    Opened(u8),
    Written,
}

/// What the process does by itself, or for users who wait: one thing at a time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Job {
    Idle,
    /// A migration begins.
    Migrate,
    /// The copy is read, so many chunks until now, and sent.
    Upload {
        staged: Staged,
        got: Image,
        chunks: u8,
        waiting: bool,
    },
    /// The other side has staged it.
    Offer(Staged),
    /// Content comes; `take`: and ownership after it.
    Fetch {
        take: bool,
        waiting: bool,
    },
    /// Somebody throws the content away: the owner is asked to offer it.
    Want {
        waiting: bool,
    },
    /// It has: the call that its offer is.
    Accept(Call),
}

/// How far the answer to a `Get` is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Read {
    No,
    /// The bytes may be read.
    Allowed,
    Got(u8),
}

/// A call that is being answered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Handling {
    pub call: Call,
    /// Of a `Get`: which chunk.
    pub chunk: u8,
    /// Of a `Stage`: the copy.
    pub body: Image,
    pub read: Read,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Side {
    /// Durable: the record.
    pub record: Ownership,
    /// Durable: what is staged.
    pub staged: Option<(Staged, Image)>,
    /// Durable: the note that a handover is to be finished.
    pub intent: bool,
    /// The local file.
    pub bytes: Bytes,
    /// What the process believes where it is not what is stored. Only bugs do that.
    pub mem: Option<Ownership>,
    pub user: Option<User>,
    /// What the user throws away has been accepted: he must get on.
    pub emptied: bool,
    /// Somebody reads the local file by himself, over all that happens to the process.
    pub held: bool,
    pub job: Job,
    pub handling: Option<Handling>,
    /// The call for a handover was sent, and is waited for.
    pub sent: bool,
    /// The path that the other side knows leads elsewhere.
    pub astray: bool,
    /// The newest generation that a reader here has seen or a writer here has synced.
    pub floor: Generation,
}

impl Side {
    fn new(record: Ownership, bytes: Bytes) -> Self {
        Self {
            record,
            staged: None,
            intent: false,
            bytes,
            mem: None,
            user: None,
            emptied: false,
            held: false,
            job: Job::Idle,
            handling: None,
            sent: false,
            astray: false,
            floor: record.content.generation,
        }
    }

    /// What the process goes by.
    pub fn own(&self) -> &Ownership {
        self.mem.as_ref().unwrap_or(&self.record)
    }

    pub fn writers(&self) -> bool {
        matches!(self.user, Some(User::Opened(_) | User::Written))
    }

    /// Whether somebody waits to throw the content away.
    pub fn empties(&self) -> bool {
        self.user == Some(User::Ask(Op::Cut(0)))
    }
}

/// On its way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Message {
    Call { to: u8, call: Call, chunk: u8, body: Image },
    Answer { to: u8, answer: Answer, chunk: u8, value: u8 },
}

impl Message {
    pub fn to(&self) -> usize {
        match self {
            Self::Call { to, .. } | Self::Answer { to, .. } => usize::from(*to),
        }
    }
}

/// How often what has happened.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Spent {
    pub writes: u8,
    pub cuts: u8,
    pub reads: u8,
    pub unsynced: u8,
    pub migrations: u8,
    pub takes: u8,
    pub heads: u8,
    pub holds: u8,
    pub frees: u8,
    pub crashes: u8,
    pub powers: u8,
    pub timeouts: u8,
    pub losses: u8,
    pub repeats: u8,
    pub evictions: u8,
    pub strays: u8,
    pub giveups: u8,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct State {
    pub sides: [Side; 2],
    /// In no order: any may come next. Kept sorted, so that equal states are equal.
    pub net: Vec<Message>,
    /// The content as its users know it, and what of it might be lost by a filesystem that does nothing but store.
    pub truth: Bytes,
    /// What each published generation is.
    pub history: [Option<Image>; GENERATIONS],
    pub spent: Spent,
    pub violation: Option<&'static str>,
}

pub const NOTHING: Image = Image { len: 0, ch: [FREED; CHUNKS] };

impl State {
    /// East owns, west is a stub; `partial`: all bytes are in the stub.
    pub fn first(partial: bool) -> Self {
        let image = Image { len: CHUNKS as u8, ch: [1, 1] };
        let content = content(1, image.len);
        let mut history = [None; GENERATIONS];
        history[1] = Some(image);
        let freed = Image { len: image.len, ch: [FREED; CHUNKS] };
        let there = if partial { image } else { freed };
        let east = Side::new(Ownership::first_owner(FILE, content), Bytes::synced(image));
        let west = Side::new(Ownership::first_stub(FILE, content), Bytes::synced(there));
        Self {
            sides: [east, west],
            net: Vec::new(),
            truth: Bytes::synced(image),
            history,
            spent: Spent::default(),
            violation: None,
        }
    }

    /// The content of a generation that was told.
    pub fn image(&self, generation: Generation) -> Option<Image> {
        self.history.get(generation.0 as usize).copied().flatten()
    }

    pub fn send(&mut self, message: Message) {
        self.net.push(message);
        self.net.sort_by_cached_key(fingerprint);
    }

    pub fn send_call(&mut self, from: usize, call: Call, chunk: u8, body: Image) {
        self.send(Message::Call { to: 1 - from as u8, call, chunk, body });
    }

    pub fn is_at_rest(&self) -> bool {
        let quiet = |side: &Side| {
            side.user.is_none()
                && side.job == Job::Idle
                && side.handling.is_none()
                && !side.intent
                && !side.own().phase.is_asking()
                && !side.held
                && !side.astray
                && side.mem.is_none()
        };
        self.net.is_empty() && self.sides.iter().all(quiet)
    }

    /// Whose bytes are the content; `None`: nobody's, or two sides'.
    pub fn authority(&self) -> Option<usize> {
        use tierfs::peer::Phase::{Offering, Owner, Stub, Taking};
        let [east, west] = [self.sides[0].record, self.sides[1].record];
        let (low, high) = if east.epoch <= west.epoch { (0, 1) } else { (1, 0) };
        let (behind, ahead) = (self.sides[low].record, self.sides[high].record);
        if behind.epoch == ahead.epoch {
            return match (behind.phase, ahead.phase) {
                (Owner { .. } | Offering, Stub | Taking) => Some(low),
                (Stub | Taking, Owner { .. } | Offering) => Some(high),
                _ => None,
            };
        }
        match (behind.phase, ahead.phase) {
            _ if behind.epoch.next() != ahead.epoch => None,
            (Offering, Owner { .. } | Offering) => Some(high),
            (Taking, Stub | Taking) => Some(low),
            _ => None,
        }
    }
}

pub fn content(generation: u64, len: u8) -> Content {
    Content { generation: Generation(generation), len: len.into(), mtime: Default::default() }
}
