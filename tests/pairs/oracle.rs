//! What each file may be: every content that users made, in order, and which of them a reader may still see.

use std::sync::RwLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What users know of a file.
pub struct Known {
    /// Its name at the master, and the slave's as soon as it has it there.
    pub names: [Option<String>; 2],
    pub gone: bool,
    /// All contents, the newest last.
    versions: Vec<Vec<u8>>,
    /// The last that was acknowledged: the file is this, or a later one.
    certain: usize,
    /// Readers of a side never see older ones than this.
    floor: [AtomicUsize; 2],
}

/// Who changes the file holds it exclusively, who reads it shares it; migrations and recalls do not ask.
pub type File = RwLock<Known>;

impl Known {
    /// A file just made at the master, and synced. The slave may have heard of it while it was empty.
    pub fn new(name: String, content: Vec<u8>) -> Self {
        let floor = [AtomicUsize::new(1), AtomicUsize::new(0)];
        Self { names: [Some(name), None], gone: false, versions: vec![Vec::new(), content], certain: 1, floor }
    }

    /// The content as it is if all that was tried was done.
    pub fn newest(&self) -> &[u8] {
        self.versions.last().expect("there is one")
    }

    /// A change is tried; it may be done from now on.
    pub fn tried(&mut self, content: Vec<u8>) {
        self.versions.push(content);
    }

    /// The last that was tried is done, by a user of this side.
    pub fn done(&mut self, side: usize) {
        self.certain = self.versions.len() - 1;
        self.floor[side].store(self.certain, Ordering::SeqCst);
    }

    /// It was refused as a whole: it is not done, and never will be.
    pub fn refused(&mut self) {
        self.versions.pop();
    }

    /// What a reader of this side that begins now may not fall behind.
    pub fn floor(&self, side: usize) -> usize {
        self.floor[side].load(Ordering::SeqCst)
    }

    /// A reader of this side found this, who began when the floor was that: another may have seen more meanwhile.
    pub fn read(&self, side: usize, floor: usize, found: &[u8]) -> Result<(), String> {
        match self.versions.iter().rposition(|version| version == found) {
            Some(at) if at >= floor => {
                self.floor[side].fetch_max(at, Ordering::SeqCst);
                Ok(())
            }
            Some(at) => Err(format!("version {at} of {:?}, after version {floor} was seen", self.names)),
            None => Err(format!(
                "{} bytes of {:?} that are no version of it: {}",
                found.len(),
                self.names,
                self.unlike(found)
            )),
        }
    }

    /// When all is quiet: the newest that was acknowledged, or one that was tried after it.
    pub fn settled(&self, found: &[u8]) -> Result<(), String> {
        match self.versions.iter().rposition(|version| version == found) {
            Some(at) if at >= self.certain => Ok(()),
            Some(at) => Err(format!("{:?}: version {at}, and {} was acknowledged", self.names, self.certain)),
            None => Err(format!("{:?}: no version of it: {}", self.names, self.unlike(found))),
        }
    }

    /// How it differs from what comes closest.
    fn unlike(&self, found: &[u8]) -> String {
        let differs = |version: &Vec<u8>| {
            let same = version.iter().zip(found).take_while(|(a, b)| a == b).count();
            (same, version.len())
        };
        let all: Vec<_> = self.versions.iter().map(differs).collect();
        // In blocks of 4 KiB: `.` as the newest, a number as so many versions before, `0` zeros, `?` anything else.
        let mut map = String::new();
        for (at, block) in found.chunks(4_096).enumerate() {
            let range = at * 4_096..at * 4_096 + block.len();
            let back = self.versions.iter().rev().position(|version| version.get(range.clone()) == Some(block));
            map += &match back {
                Some(0) => ".".to_owned(),
                _ if block.iter().all(|byte| *byte == 0) => "0".to_owned(),
                Some(back) => back.to_string(),
                None => "?".to_owned(),
            };
        }
        format!("equal up to (of bytes) {all:?}; {} bytes found, blocks {map}; certain: {}", found.len(), self.certain)
    }
}
