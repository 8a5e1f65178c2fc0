//! Listings. Nothing is open for a directory that a program has open: the kernel is told that directories need no opening, which spares two
//! requests a listing, and each request says where in the directory it is.
//!
//! Invariant: a listing begun goes on where it was, whoever else lists the directory: a cursor is found by its directory and its place,
//! and used by one request at a time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Fs;
use super::error::FsResult;
use crate::ports::{DirEntryRef, LowerDir};
use crate::types::FileId;

/// Listings that go on without opening the directory again. Others go on as well, by opening it and seeking.
const CURSORS_MAX: usize = 64;
/// A cursor nobody came back to for so long is closed at the next listing.
const CURSOR_LIFE: Duration = Duration::from_secs(10);

/// An open directory in the midst of a listing; it has read ahead.
struct Cursor {
    of: FileId,
    /// Where it goes on.
    at: u64,
    dir: Arc<dyn LowerDir>,
    used: Instant,
}

/// What of a directory did not fit into an answer.
#[must_use = "what comes next is read ahead once the answer is on its way"]
pub struct Rest(Option<Arc<dyn LowerDir>>);

impl Rest {
    /// Reads the next entries while the kernel takes in what it was answered: on a second CPU a long listing is read and handed on at once.
    /// To be called after the answer.
    pub fn read_ahead(self) {
        if let Some(dir) = self.0 {
            dir.read_ahead();
        }
    }
}

/// The listings under way, the least recently used first.
#[derive(Default)]
pub(super) struct Listings(Mutex<VecDeque<Cursor>>);

impl Listings {
    pub(super) fn len(&self) -> usize {
        self.0.lock().len()
    }

    fn take(&self, of: FileId, at: u64) -> Option<Cursor> {
        let mut cursors = self.0.lock();
        let found = cursors.iter().rposition(|cursor| cursor.of == of && cursor.at == at)?;
        cursors.remove(found)
    }

    fn put(&self, mut cursor: Cursor) {
        cursor.used = Instant::now();
        // Closed after the lock is given back.
        let _left: Vec<_> = {
            let mut cursors = self.0.lock();
            let now = cursor.used;
            cursors.push_back(cursor);
            let old = |cursor: &Cursor| now.duration_since(cursor.used) > CURSOR_LIFE;
            let excess = cursors.len().saturating_sub(CURSORS_MAX);
            let gone = cursors.iter().enumerate().take_while(|(n, cursor)| *n < excess || old(cursor)).count();
            cursors.drain(..gone).collect()
        };
    }
}

impl Fs {
    /// Gives `take` the entries of a directory from `offset` on (0, or an entry's `next_offset`), until it says that it has no room for the
    /// one it got, or there are no more. Who has answered may let the rest be read ahead.
    pub fn read_dir(&self, id: u64, offset: u64, mut take: impl FnMut(&DirEntryRef<'_>) -> bool) -> FsResult<Rest> {
        let node = self.node(id)?;
        // From the start, the directory is read as it is now (rewinddir(3)).
        let under_way = if offset == 0 { None } else { self.listings.take(node.id, offset) };
        let mut cursor = match under_way {
            Some(cursor) => cursor,
            None => Cursor { of: node.id, at: offset, dir: self.lower.open_dir(&node)?, used: Instant::now() },
        };
        let (mut at, mut more) = (offset, false);
        cursor.dir.each(offset as i64, &mut |entry| {
            let full = !Self::is_hidden(id, entry.name) && take(entry);
            if !full {
                at = entry.next_offset as u64;
            }
            more = full;
            full
        })?;
        let rest = Rest(more.then(|| Arc::clone(&cursor.dir)));
        // The kernel asks once more where a listing ended, and then has no use for it.
        if at != offset {
            cursor.at = at;
            self.listings.put(cursor);
        }
        Ok(rest)
    }

    pub fn sync_dir(&self, id: u64, data_only: bool) -> FsResult<()> {
        Ok(self.lower.open_dir(&self.node(id)?)?.sync(data_only)?)
    }
}
