//! The whole share compared with the other side's, directory by directory.
//!
//! Which directories are still to be told is kept in the book, so a comparison goes on after a restart, and memory goes by one directory.
//! What changes meanwhile is told as ever: a directory that is moved where the comparison has been already is in the list with its number.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::look::{Listing, Looker, Told};
use super::send::Sender;
use super::wire::{Counts, decode, encode};
use super::{Side, SyncError, SyncResult};
use crate::capture::Item;
use crate::catalog::walk::on_own_thread;
use crate::types::Inode;

/// In the book: one is under way, and what it has found.
const UNDER_WAY: &str = "comparing";
/// One is wanted.
const WANTED: &str = "compare";
/// The last one that came to its end.
const LAST: &str = "compared";
/// Directories looked at for one batch.
const DIRECTORIES_MAX: usize = 100;
/// Differences that a comparison without changes names.
const NAMED_MAX: usize = 1_000;

/// How far a comparison is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Seconds since 1970.
    pub began: i64,
    pub ended: Option<i64>,
    pub directories: u64,
    pub entries: u64,
    pub counts: Counts,
}

/// The comparison under way.
#[derive(Default)]
pub(super) struct Comparison {
    progress: Progress,
    listing: Option<Listing>,
}

impl Sender {
    fn book_progress(&self, name: &str) -> SyncResult<Option<Progress>> {
        Ok(self.options.book.lock().value(name)?.map(|stored| decode(&stored)).transpose()?)
    }

    /// The comparison under way, and the last one.
    pub fn comparisons(&self) -> SyncResult<(Option<Progress>, Option<Progress>)> {
        let running = self.book_progress(UNDER_WAY)?;
        let running = running.map(|stored| {
            let live = self.comparison.lock().progress.clone();
            if live.began == stored.began { live } else { stored }
        });
        Ok((running, self.book_progress(LAST)?))
    }

    /// Has the whole share compared, unless that is under way. Goes on after restarts.
    pub fn want_comparison(&self) -> SyncResult<()> {
        if self.options.side == Side::Slave {
            return Err(SyncError::Refused(format!(
                "{} is the slave of this metadata sync: the master compares, so run this on {}",
                self.options.half.place(),
                self.options.half.remote_cluster
            )));
        }
        if self.book_progress(UNDER_WAY)?.is_none() {
            self.options.book.lock().set(WANTED, b"")?;
        }
        self.options.capture.wake().notify_one();
        Ok(())
    }

    /// Whether one is wanted or under way.
    pub fn is_comparing(&self) -> SyncResult<bool> {
        let book = self.options.book.lock();
        Ok(book.value(UNDER_WAY)?.is_some() || book.value(WANTED)?.is_some() || self.options.capture.wants_comparison())
    }

    /// One more batch of the comparison; whether there is one.
    pub(super) async fn compare_on(self: &Arc<Self>) -> SyncResult<bool> {
        if !self.is_comparing()? {
            return Ok(false);
        }
        let this = self.clone();
        let looked = on_own_thread(move || this.next_part()).await.ok_or(SyncError::Stopped)?;
        let Some((mut told, ended)) = looked? else { return Ok(true) };
        let statements = std::mem::take(&mut told.statements);
        let entries = told.entries as u64;
        let outcome = match self.tell(statements, false).await {
            Ok(outcome) => outcome,
            Err(error) => {
                // The directory is told from its beginning.
                self.comparison.lock().listing = None;
                return Err(error);
            }
        };
        let mut dirs: Vec<Inode> = outcome.answer.unknown.iter().filter_map(|id| told.dir(*id)).collect();
        let refused = &outcome.answer.refused;
        self.note_refused(&mut self.going.lock(), &told, refused);
        let names: Vec<_> = refused.iter().filter_map(|no| Some((told.dir(no.dir)?, no.name.clone()))).collect();
        self.nameless(outcome.answer.nameless).await?;
        let (this, counts, below) = (self.clone(), outcome.answer.counts, told.below);
        let kept = tokio::task::spawn_blocking(move || -> SyncResult<()> {
            for dir in dirs.drain(..) {
                this.looker.climb(&dir)?;
            }
            for (dir, name) in names {
                let name = std::os::unix::ffi::OsStringExt::from_vec(name);
                this.options.capture.look_at(Item::Name(dir.id, name), &dir)?;
            }
            let mut comparison = this.comparison.lock();
            comparison.progress.counts.add(&counts);
            comparison.progress.entries += entries;
            comparison.progress.directories += ended.len() as u64;
            let progress = encode(&comparison.progress);
            this.options.book.lock().batch(|book| {
                for dir in &below {
                    book.add_todo(false, dir)?;
                }
                for dir in &ended {
                    book.drop_todo(false, dir)?;
                }
                book.set(UNDER_WAY, &progress)
            })
        });
        kept.await.map_err(|_| SyncError::Stopped)??;
        Ok(true)
    }

    /// Looks at as much as a batch has room for, with the directories that are told with it to their ends. `None`: it was the end.
    fn next_part(&self) -> SyncResult<Option<(Told, Vec<Inode>)>> {
        let capture = &self.options.capture;
        let mut comparison = self.comparison.lock();
        let under_way = self.book_progress(UNDER_WAY)?;
        let begins = {
            let book = self.options.book.lock();
            capture.wants_comparison() || (under_way.is_none() && book.value(WANTED)?.is_some())
        };
        if begins {
            let began = self.options.clock.now().secs;
            *comparison = Comparison { progress: Progress { began, ..Progress::default() }, listing: None };
            let progress = encode(&comparison.progress);
            let root = self.options.lower.root();
            self.options.book.lock().batch(|book| {
                book.clear_todo(false)?;
                book.add_todo(false, &root)?;
                book.set(UNDER_WAY, &progress)?;
                book.unset(WANTED)
            })?;
            capture.comparing()?;
        } else if let Some(stored) = under_way.filter(|stored| stored.began != comparison.progress.began) {
            // Of the process before.
            comparison.progress = stored;
        }
        let (mut told, mut ended) = (Told::default(), Vec::new());
        let going_on = comparison.listing.as_ref().map(|listing| listing.dir);
        let mut next = self.options.book.lock().some_todo(false, DIRECTORIES_MAX)?;
        next.retain(|dir| Some(*dir) != going_on);
        if next.is_empty() && going_on.is_none() {
            self.end_comparison(&comparison.progress)?;
            return Ok(None);
        }
        let mut next = next.into_iter();
        while !told.is_full() {
            let open = match comparison.listing.take() {
                Some(listing) => Some(listing),
                None => {
                    let Some(dir) = next.next() else { break };
                    let open = match self.options.lower.stat(&dir) {
                        Ok(attr) if attr.nlink > 0 => self.of_all.listing(&dir)?,
                        Err(error) if !super::look::is_gone(&error) => return Err(error.into()),
                        _ => None,
                    };
                    if open.is_none() {
                        // Gone, or told by its name, with all that is in it.
                        ended.push(dir);
                    }
                    open
                }
            };
            if let Some(mut listing) = open {
                match self.of_all.part(&mut listing, &mut told)? {
                    true => ended.push(listing.dir),
                    false => comparison.listing = Some(listing),
                }
            }
        }
        self.of_all.finish(&mut told)?;
        capture.barrier()?;
        Ok(Some((told, ended)))
    }

    fn end_comparison(&self, progress: &Progress) -> SyncResult<()> {
        let ended = Some(self.options.clock.now().secs);
        let stored = encode(&Progress { ended, ..progress.clone() });
        self.options.book.lock().batch(|book| {
            book.set(LAST, &stored)?;
            book.unset(UNDER_WAY)
        })?;
        tracing::info!(counts = ?progress.counts, "the share was compared with the other side's");
        Ok(())
    }

    /// What a comparison would change, and the names that it would not, up to some: nothing is changed on either side. `go_on` is asked now
    /// and then.
    pub async fn compare_only(
        self: &Arc<Self>,
        go_on: &(dyn Fn(&Progress) -> bool + Sync),
    ) -> SyncResult<(Progress, Vec<(std::path::PathBuf, String)>)> {
        if self.options.side == Side::Slave {
            self.want_comparison()?;
        }
        let looker = Arc::new(Looker {
            lower: self.options.lower.clone(),
            capture: self.options.capture.clone(),
            files: self.options.files.clone(),
            dry: true,
            whole: true,
        });
        {
            let book = self.options.book.lock();
            book.clear_todo(true)?;
            book.add_todo(true, &self.options.lower.root())?;
        }
        let mut progress = Progress { began: self.options.clock.now().secs, ..Progress::default() };
        let mut named = Vec::new();
        loop {
            let Some(dir) = self.options.book.lock().some_todo(true, 1)?.pop() else { break };
            let mut open = looker.listing(&dir)?;
            while let Some(listing) = open.take() {
                let on = looker.clone();
                let looked = on_own_thread(move || -> SyncResult<_> {
                    let (mut listing, mut told) = (listing, Told::default());
                    let ended = on.part(&mut listing, &mut told)?;
                    on.finish(&mut told)?;
                    Ok((listing, told, ended))
                });
                let (listing, mut told, ended) = looked.await.ok_or(SyncError::Stopped)??;
                let statements = std::mem::take(&mut told.statements);
                let answer = self.tell(statements, true).await?.answer;
                for no in &answer.refused {
                    let place = told.dir(no.dir).and_then(|dir| self.options.lower.path_of(&dir).ok()?);
                    if named.len() < NAMED_MAX {
                        let name = std::os::unix::ffi::OsStringExt::from_vec(no.name.clone());
                        let name: std::ffi::OsString = name;
                        named.push((place.unwrap_or_default().join(name), no.why.clone()));
                    }
                }
                progress.counts.add(&answer.counts);
                progress.entries += told.entries as u64;
                self.options
                    .book
                    .lock()
                    .batch(|book| told.below.iter().try_for_each(|dir| book.add_todo(true, dir)))?;
                if !go_on(&progress) {
                    return Err(SyncError::Stopped);
                }
                open = (!ended).then_some(listing);
            }
            progress.directories += 1;
            self.options.book.lock().drop_todo(true, &dir)?;
        }
        progress.ended = Some(self.options.clock.now().secs);
        Ok((progress, named))
    }
}
