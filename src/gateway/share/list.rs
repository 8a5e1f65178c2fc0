//! Listings: a walk over directories in the order of keys, as far as a page needs.
//!
//! Within a directory, names are taken in the order of what their keys begin with (a directory's has its slash): then the walk meets all keys
//! in byte order. Of a directory only the next page's names are held, the smallest of those that are behind the last; for each page it is
//! read through anew. So memory goes by the page and the depth, not by the number of names, and a directory of 100,000 names is read a
//! hundred times to be listed whole.
//!
//! Not told are: symbolic links and special files; names that are not UTF-8; what is in directories that the user may not read and search.

use std::collections::BinaryHeap;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use super::acting::Acting;
use super::error::{About, is_absent};
use super::meta;
use crate::gateway::store::{ListEntry, ListPage, ListQuery, StoreError, StoreResult};
use crate::lower::{Dir, Seen};
use crate::ports::FileKind;
use crate::types::STAGING_NAME;

/// Whether the page has room.
#[derive(PartialEq, Eq)]
enum Flow {
    On,
    Full,
}

/// A name in a directory, with a slash if it is one itself.
type Step = String;

struct Lister<'a> {
    acting: &'a Acting,
    query: &'a ListQuery,
    delimiter: Option<&'a str>,
    page: ListPage,
    /// Names that cannot be keys.
    skipped: u64,
}

impl Acting {
    pub fn list(&self, query: &ListQuery) -> StoreResult<ListPage> {
        let delimiter = query.delimiter.as_deref().filter(|delimiter| !delimiter.is_empty());
        let mut lister = Lister { acting: self, query, delimiter, page: ListPage::default(), skipped: 0 };
        if query.limit == 0 {
            return Ok(lister.page);
        }
        // The walk begins at the deepest directory that the prefix names.
        let base = &query.prefix[..query.prefix.rfind('/').map_or(0, |at| at + 1)];
        let path = base.trim_end_matches('/');
        let is_path = base.is_empty() || super::key::Key::parse(base).is_ok();
        if !is_path {
            return Ok(lister.page);
        }
        let dir = match self.share().walk_as(self.user(), Path::new(path)) {
            Err(error) if is_absent(&error) => return Ok(lister.page),
            found => found.about(base)?,
        };
        match lister.directory(&dir, base) {
            // The user asked for this very directory.
            Err(error) => Err(error),
            Ok(_) => {
                if lister.skipped > 0 {
                    tracing::debug!(
                        prefix = query.prefix,
                        skipped = lister.skipped,
                        "names that are not UTF-8 are not listed"
                    );
                }
                Ok(lister.page)
            }
        }
    }
}

impl Lister<'_> {
    /// Whether keys that begin with `start` can be on the page.
    fn may_hold(&self, start: &str) -> bool {
        let (prefix, after) = (self.query.prefix.as_str(), self.query.after.as_deref());
        (start.starts_with(prefix) || prefix.starts_with(start))
            && after.is_none_or(|after| after < start || after.starts_with(start))
    }

    /// Adds what is to be told of `key`.
    fn add(&mut self, key: &str, entry: impl FnOnce() -> ListEntry) -> Flow {
        let ListQuery { prefix, after, limit, .. } = self.query;
        let Some(rest) = key.strip_prefix(prefix.as_str()) else { return Flow::On };
        if after.as_deref().is_some_and(|after| key <= after) {
            return Flow::On;
        }
        let common = self.delimiter.and_then(|d| rest.find(d).map(|at| &key[..prefix.len() + at + d.len()]));
        if let Some(common) = common {
            let told = matches!(self.page.entries.last(), Some(ListEntry::CommonPrefix(last)) if last == common);
            // A page that ended with this common prefix goes on behind all of it.
            if told || after.as_deref() == Some(common) {
                return Flow::On;
            }
        }
        if self.page.entries.len() == *limit {
            self.page.truncated = true;
            return Flow::Full;
        }
        let entry = common.map_or_else(entry, |common| ListEntry::CommonPrefix(common.to_owned()));
        self.page.entries.push(entry);
        Flow::On
    }

    /// All keys below `dir`, which begin with `path`.
    fn directory(&mut self, dir: &Dir, path: &str) -> StoreResult<Flow> {
        let mut from: Option<(Step, bool)> = self.start_in(path);
        loop {
            let (steps, more, empty) = self.next_steps(dir, path, from.as_ref())?;
            if empty && !path.is_empty() {
                return self.empty(dir, path);
            }
            let Some(last) = steps.last().cloned() else { return Ok(Flow::On) };
            if self.steps(dir, path, &steps)? == Flow::Full {
                return Ok(Flow::Full);
            }
            if !more {
                return Ok(Flow::On);
            }
            from = Some((last, false));
        }
    }

    /// Where a page that begins behind a key begins in the directory: the step, and whether it is to be taken itself.
    fn start_in(&self, path: &str) -> Option<(Step, bool)> {
        let rest = self.query.after.as_deref()?.strip_prefix(path)?;
        Some(match rest.find('/') {
            Some(at) => (rest[..=at].to_owned(), true),
            None => (rest.to_owned(), false),
        })
    }

    /// The next steps of a directory in order, whether there are more, and whether it holds nothing at all.
    fn next_steps(
        &mut self,
        dir: &Dir,
        path: &str,
        from: Option<&(Step, bool)>,
    ) -> StoreResult<(Vec<Step>, bool, bool)> {
        let (share, user) = (self.acting.share(), self.acting.user());
        let room = self.query.limit - self.page.entries.len() + 1;
        let (mut steps, mut more, mut empty, mut skipped) = (BinaryHeap::new(), false, true, 0);
        let listing = share.list_as(user, dir).about(path)?;
        let listed = listing.each(0, &mut |entry| {
            if entry.name == "." || entry.name == ".." || (path.is_empty() && entry.name == STAGING_NAME) {
                return false;
            }
            empty = false;
            let Some(name) = entry.name.to_str() else {
                skipped += 1;
                return false;
            };
            let kind = entry.kind.or_else(|| Some(share.look_as(user, dir, entry.name).ok()?.attr.kind));
            let step = match kind {
                Some(FileKind::Regular) => name.to_owned(),
                Some(FileKind::Directory) => format!("{name}/"),
                _ => return false,
            };
            let behind = from.is_none_or(|(from, itself)| step > *from || (*itself && step == *from));
            let key_begins = [path, &step].concat();
            let prefix = self.query.prefix.as_str();
            if behind && (key_begins.starts_with(prefix) || prefix.starts_with(&key_begins)) {
                steps.push(step);
                if steps.len() > room {
                    steps.pop();
                    more = true;
                }
            }
            false
        });
        listed.about(path)?;
        self.skipped += skipped;
        Ok((steps.into_sorted_vec(), more, empty))
    }

    fn steps(&mut self, dir: &Dir, path: &str, steps: &[Step]) -> StoreResult<Flow> {
        let (share, user) = (self.acting.share(), self.acting.user());
        let names: Vec<OsString> = steps.iter().map(|step| step.trim_end_matches('/').into()).collect();
        let seen = share.look_each_as(user, dir, &names).about(path)?;
        for (step, seen) in steps.iter().zip(seen) {
            let key = [path, step].concat();
            let Some(seen) = seen else { continue };
            let flow = match (seen.attr.kind, step.ends_with('/')) {
                (FileKind::Directory, true) => self.below(&key)?,
                (FileKind::Regular, false) => self.file(&key, &seen)?,
                // Another thing by now.
                _ => Flow::On,
            };
            if flow == Flow::Full {
                return Ok(Flow::Full);
            }
        }
        Ok(Flow::On)
    }

    fn file(&mut self, key: &str, seen: &Seen) -> StoreResult<Flow> {
        let acting = self.acting;
        let mut shown = seen.attr;
        // Removed meanwhile: as it was.
        if let Ok(attr) = acting.shared.fs.attr_of(&seen.node) {
            shown = attr;
        }
        let object = || {
            let info = meta::info_of(acting.share(), key, &seen.node, &shown, seen.readable);
            ListEntry::Object(Arc::new(info))
        };
        Ok(self.add(key, object))
    }

    /// A directory: its common prefix, where that is all that is asked for, else what is in it.
    fn below(&mut self, path: &str) -> StoreResult<Flow> {
        if !self.may_hold(path) {
            return Ok(Flow::On);
        }
        let rolled_up = self.delimiter == Some("/") && path.len() > self.query.prefix.len();
        let after = self.query.after.as_deref();
        if rolled_up && after == Some(path) {
            // A page that ended with it goes on behind all of it.
            return Ok(Flow::On);
        }
        if rolled_up && after.is_none_or(|after| after < path) {
            // Any key below it says the same.
            return Ok(self.add(path, || ListEntry::CommonPrefix(path.to_owned())));
        }
        let acting = self.acting;
        let dir = match acting.share().walk_as(acting.user(), Path::new(path.trim_end_matches('/'))) {
            Ok(dir) => dir,
            Err(_) => return Ok(Flow::On),
        };
        match self.directory(&dir, path) {
            // Nothing in it is for this user, or it is gone.
            Err(StoreError::Denied(_) | StoreError::NoSuchKey(_) | StoreError::Gone) => Ok(Flow::On),
            told => told,
        }
    }

    /// A directory with nothing in it is an object of its own, if somebody asked for it.
    fn empty(&mut self, dir: &Dir, path: &str) -> StoreResult<Flow> {
        let acting = self.acting;
        if meta::is_implied(acting.share(), &dir.node()) {
            return Ok(Flow::On);
        }
        let Ok(attr) = acting.shared.fs.attr_of(&dir.node()) else { return Ok(Flow::On) };
        let object = || {
            let info = meta::info_of(acting.share(), path, &dir.node(), &attr, true);
            ListEntry::Object(Arc::new(info))
        };
        Ok(self.add(path, object))
    }
}
