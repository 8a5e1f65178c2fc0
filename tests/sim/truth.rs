//! What users did, and so what a filesystem that only stores would hold: the oracle.
//!
//! Nothing of tiering comes in here. After a power loss each page may be as it was at the last acknowledged fsync or at any time since.

use std::collections::BTreeMap;

use tierfs::types::Timestamp;

use crate::content::{Content, PAGE, Page, same};

/// What a file was since its last acknowledged sync.
#[derive(Default)]
struct Since {
    pages: BTreeMap<u64, Vec<Option<Page>>>,
    sizes: Vec<u64>,
    mtimes: Vec<Timestamp>,
    modes: Vec<u32>,
    /// It was written to as a stub: what a power loss leaves of a page may end where the object's bytes do, or another write's.
    patched: bool,
}

pub struct File {
    pub content: Content,
    pub mtime: Timestamp,
    pub mode: u32,
    since: Since,
    /// A change that was asked for and not answered when the process died: the size that it would have given the file.
    pub unanswered: Option<u64>,
    /// A write that was asked for and not answered.
    pub unanswered_write: Option<(u64, Vec<u8>)>,
    /// What was there before writes that failed after all: it may come back when the process dies.
    pub refused_writes: Vec<(u64, Vec<u8>)>,
    /// Times and modes that were asked for and not answered.
    pub unanswered_mtime: Vec<Timestamp>,
    pub unanswered_mode: Option<u32>,
    /// Somebody else's step may have moved the mtime: not promised any more.
    pub mtime_open: bool,
}

impl File {
    pub fn new(content: Content, mtime: Timestamp, mode: u32) -> Self {
        let (since, unanswered, unanswered_mtime, unanswered_mode, mtime_open) = Default::default();
        let (unanswered_write, refused_writes) = Default::default();
        Self {
            content,
            mtime,
            mode,
            since,
            unanswered,
            unanswered_write,
            refused_writes,
            unanswered_mtime,
            unanswered_mode,
            mtime_open,
        }
    }

    fn changing(&mut self) {
        self.since.sizes.push(self.content.size);
        self.since.mtimes.push(self.mtime);
    }

    pub fn write(&mut self, offset: u64, data: &[u8], mtime: Timestamp) {
        self.changing();
        let since = &mut self.since.pages;
        self.content.write_each(offset, data, |index, old, _| since.entry(index).or_default().push(old.cloned()));
        self.mtime = mtime;
    }

    /// What was written is beside an object's bytes.
    pub fn is_patched(&mut self) {
        self.since.patched = true;
    }

    pub fn set_size(&mut self, size: u64, mtime: Timestamp) {
        self.changing();
        let cut = size.min(self.content.size) / PAGE;
        for (index, page) in self.content.pages.range(cut..) {
            self.since.pages.entry(*index).or_default().push(Some(page.clone()));
        }
        self.content.set_size(size);
        for index in cut..size.div_ceil(PAGE) {
            self.since.pages.entry(index).or_default().push(None);
        }
        self.mtime = mtime;
    }

    pub fn set_mtime(&mut self, mtime: Timestamp) {
        self.since.mtimes.push(self.mtime);
        self.mtime = mtime;
        self.mtime_open = false;
    }

    pub fn set_mode(&mut self, mode: u32) {
        self.since.modes.push(self.mode);
        self.mode = mode;
    }

    /// An fsync was acknowledged.
    pub fn synced(&mut self) {
        self.since = Since::default();
        self.refused_writes.clear();
    }

    /// What was found after a power loss: one of those that it may be. It is what there is from now on.
    pub fn survived(&mut self, found: &Content, mtime: Timestamp, mode: u32) -> Result<(), String> {
        if let Some((offset, data)) = self.unanswered_write.take() {
            self.write(offset, &data, mtime);
            self.is_patched();
        }
        let mut sizes = self.since.sizes.clone();
        sizes.push(self.content.size);
        sizes.extend(self.unanswered);
        let (least, most) = (sizes.iter().min().copied(), sizes.iter().max().copied());
        let between = found.size.is_multiple_of(PAGE) && Some(found.size) >= least && Some(found.size) <= most;
        if !sizes.contains(&found.size) && !between {
            return Err(format!("{} bytes; it had {sizes:?} since its last sync", found.size));
        }
        for index in 0..found.size.div_ceil(PAGE) {
            let len = found.len_of(index);
            let is = |page: Option<&Page>| same(found.pages.get(&index), page, len);
            let before = self.since.pages.get(&index).map_or(&[][..], |pages| pages);
            let cut_to = self.unanswered.filter(|size| (*size / PAGE) <= index).map(|size| {
                let keep = size.saturating_sub(index * PAGE) as usize;
                self.content.pages.get(&index).map(|page| Page::from(&page[..page.len().min(keep)]))
            });
            let now = self.content.pages.get(&index);
            let byte = |page: Option<&Page>, at: usize| page.and_then(|page| page.get(at)).copied().unwrap_or(0);
            let mixed = || {
                (0..len).all(|at| {
                    let found = byte(found.pages.get(&index), at);
                    found == byte(now, at) || before.iter().any(|page| found == byte(page.as_ref(), at))
                })
            };
            if self.since.patched && mixed() {
                continue;
            }
            if !is(now) && !before.iter().any(|page| is(page.as_ref())) && !cut_to.is_some_and(|page| is(page.as_ref()))
            {
                return Err(format!(
                    "page {index} is {}; it should be {}",
                    found.word(index),
                    self.content.word(index)
                ));
            }
        }
        let modes = |mode| mode == self.mode || self.since.modes.contains(&mode) || self.unanswered_mode == Some(mode);
        if !modes(mode) {
            return Err(format!("mode {mode:o}; it was {:o}", self.mode));
        }
        *self = Self::new(found.clone(), mtime, mode);
        Ok(())
    }

    /// What was found after the process died: exactly what there was, but for what was not answered.
    pub fn outlived(&mut self, found: &Content, mtime: Timestamp, mode: u32) -> Result<(), String> {
        let mut may_be: Vec<Content> = Vec::new();
        for (offset, data) in self.unanswered_write.take().into_iter().chain(std::mem::take(&mut self.refused_writes)) {
            self.mtime_open = true;
            let mut with = self.content.clone();
            with.write(offset, &data);
            may_be.push(with);
        }
        // Any part of any of them.
        let sized = may_be.iter().any(|with| with.size == found.size) || self.content.size == found.size;
        if !may_be.is_empty() && sized && found.difference(&self.content).is_some() {
            let (now, then) = (found.bytes(), self.content.bytes());
            let alike: Vec<_> = may_be.iter().map(Content::bytes).collect();
            let byte = |bytes: &[u8], at: usize| bytes.get(at).copied();
            let either = |at: &usize| alike.iter().chain([&then]).any(|all| byte(&now, *at) == byte(all, *at));
            if (0..now.len()).all(|at| either(&at)) {
                self.set_size(found.size, mtime);
                self.write(0, &now, mtime);
            }
        }
        if let Some(size) = self.unanswered.take() {
            self.mtime_open = true;
            let mut cut = self.content.clone();
            cut.set_size(size);
            if found.difference(&cut).is_none() && found.difference(&self.content).is_some() {
                self.set_size(size, mtime);
            }
        }
        if let Some(difference) = found.difference(&self.content) {
            return Err(difference);
        }
        let asked = std::mem::take(&mut self.unanswered_mtime);
        if asked.contains(&mtime) {
            self.set_mtime(mtime);
        }
        if self.unanswered_mode.take() == Some(mode) {
            self.set_mode(mode);
        }
        if mode != self.mode {
            return Err(format!("mode {mode:o} rather than {:o}", self.mode));
        }
        if self.mtime_open {
            (self.mtime, self.mtime_open) = (mtime, false);
        }
        if mtime != self.mtime {
            return Err(format!("mtime {mtime:?} rather than {:?}", self.mtime));
        }
        Ok(())
    }
}

/// All files there ever were, by inode number and birth: a removal that is not durable is undone by a power loss.
#[derive(Default)]
pub struct Truth {
    pub files: BTreeMap<(u64, u64), File>,
}
