//! What is stored of the file: its record, its bytes, its times and names. Each has a value in the page cache, and a set of values that may be
//! on the disk instead until it is synced; a crash keeps any of them, each thing for itself.
//!
//! Content is two chunks; a chunk's value is the number of the write that made it.

use tierfs::types::Claim;

pub const CHUNKS: usize = 2;
/// A value for each chunk.
pub type Chunks = [u8; 2];
/// A file's length in chunks.
pub const FULL: u8 = CHUNKS as u8;
/// All chunks, as a mask.
pub const ALL: u8 = (1 << CHUNKS) - 1;
/// A chunk whose blocks were freed: reads as zeros, and is never content. A zero that a user made by cutting is 0.
pub const FREED: u8 = 7;
/// A chunk that a broken body left.
pub const CORRUPT: u8 = 6;
/// An mtime that is the engine's doing.
pub const STRAY_TIME: u8 = 15;

/// The tiering record.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Rec {
    pub claim: Claim,
    /// The object's key; 0: none.
    pub key: u8,
    pub root: Chunks,
    pub len: u8,
    pub mtime: u8,
    /// The superseded object; 0: none.
    pub sup: u8,
    pub pinned: bool,
    /// Only counted where keys are made from it.
    pub generation: u8,
}

impl Rec {
    pub const fn none() -> Self {
        let claim = Claim::Resident;
        Self { claim, key: 0, root: [0; CHUNKS], len: 0, mtime: 0, sup: 0, pinned: false, generation: 0 }
    }

    pub fn into_resident(self) -> Self {
        let sup = if self.key != 0 { self.key } else { self.sup };
        Self { sup, pinned: self.pinned, generation: self.generation, ..Self::none() }
    }

    pub fn names(&self, key: u8) -> bool {
        self.key == key || self.sup == key
    }
}

/// Size and chunks; with each the set of what may be on the disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Bytes {
    pub size: u8,
    pub ch: Chunks,
    pub sizes: u8,
    pub chs: Chunks,
}

impl Bytes {
    pub fn of(size: u8, ch: Chunks) -> Self {
        let mut bytes = Self { size, ch, sizes: 0, chs: [0; CHUNKS] };
        bytes.sync();
        bytes
    }

    /// Whether there is anything but holes.
    pub fn has_data(&self) -> bool {
        self.ch.iter().any(|value| ![0, FREED].contains(value))
    }

    pub fn write(&mut self, chunk: usize, value: u8) {
        self.ch[chunk] = value;
        self.chs[chunk] |= 1 << value;
        if usize::from(self.size) <= chunk {
            self.set_size(chunk as u8 + 1);
        }
    }

    pub fn set_size(&mut self, size: u8) {
        self.size = size;
        self.sizes |= 1 << size;
        for chunk in usize::from(size)..CHUNKS {
            self.ch[chunk] = 0;
            self.chs[chunk] |= 1;
        }
    }

    pub fn sync(&mut self) {
        self.sizes = 1 << self.size;
        self.chs = self.ch.map(|value| 1 << value);
    }

    pub fn same(&self, other: &Self) -> bool {
        (self.size, self.ch) == (other.size, other.ch)
    }
}

/// Records that may be on the disk besides the one in the page cache.
pub const OLDER_MAX: usize = 4;

/// The lower file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Disk {
    pub rec: Rec,
    pub older: [Option<Rec>; OLDER_MAX],
    pub bytes: Bytes,
    pub mtime: u8,
    pub mtimes: u16,
    pub names: u8,
    /// How many names there may be on the disk, as a set.
    pub names_set: u8,
}

impl Disk {
    pub fn save(&mut self, rec: Rec) {
        if rec == self.rec {
            return;
        }
        for older in &mut self.older {
            if *older == Some(rec) {
                *older = None;
            }
        }
        if !self.older.contains(&Some(self.rec)) {
            let free =
                self.older.iter_mut().find(|older| older.is_none()).expect("more unsynced records than modelled");
            *free = Some(self.rec);
        }
        self.older.sort_unstable_by_key(|older| older.map(|r| (r.claim as u8, r.key, r.sup, r.mtime, r.pinned)));
        self.rec = rec;
    }

    pub fn set_mtime(&mut self, mtime: u8) {
        self.mtime = mtime;
        self.mtimes |= 1 << mtime;
    }

    /// What `fsync` of the file makes durable: all but its names.
    pub fn sync_file(&mut self) {
        self.older = [None; OLDER_MAX];
        self.bytes.sync();
        self.mtimes = 1 << self.mtime;
    }

    pub fn sync_all(&mut self) {
        self.sync_file();
        self.names_set = 1 << self.names;
    }

    pub fn possible_records(&self) -> impl Iterator<Item = Rec> + '_ {
        self.older.iter().flatten().copied().chain([self.rec])
    }
}
