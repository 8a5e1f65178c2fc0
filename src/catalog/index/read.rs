//! What a scan's threads do: a directory read, and compared with the rows that the index has of it.
//!
//! Names first, then attributes in the order of inode numbers. If their print is the one stored, that was it; otherwise the rows are read, records
//! where they may be new, and what differs is told to the writer.

use std::collections::{HashMap, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering;

use rusqlite::{Connection, OptionalExtension};

use super::IndexResult;
use super::print::{Print, Printer, Stored, stored};
use super::row::{FACTS, Facts, Tier, ctime_ns, name_of};
use super::scan::Progress;
use crate::lower::{Share, Survey};
use crate::ports::{Attr, FileKind, LowerResult};
use crate::types::{FileId, Inode};

/// A change time so young may be followed by a change that does not move it: the record is read again.
const YOUNG_NS: i64 = 2_000_000_000;

/// Entries for which there is room from one directory to the next.
const SEEN_KEPT: usize = 1 << 16;

/// What one directory has to tell.
pub(super) struct Found {
    pub dir: Inode,
    pub text: Vec<u8>,
    /// Rows that are new or differ; where their names are in `text`.
    pub rows: Vec<(std::ops::Range<usize>, Facts)>,
    /// Names that are no more, and whose they were.
    pub gone: Vec<(Vec<u8>, u64)>,
    pub below: Vec<Inode>,
    pub outcome: Outcome,
}

/// How the directory was met.
pub(super) enum Outcome {
    /// It is no more, or could not be read: its rows stay.
    Unread,
    /// As its print says.
    AsPrinted,
    /// Compared; something could not be looked at.
    InPart,
    /// Compared with rows that had been changed so often, by a scan that began then.
    Whole { changes: i64, began: i64, print: Option<Print> },
}

/// An entry that was looked at, and where the survey has its name.
struct Seen {
    at: usize,
    id: FileId,
    attr: Attr,
}

pub(super) struct Reader<'a> {
    share: &'a Share,
    pub survey: Survey,
    /// `None` while the index is filled for the first time: nothing is known.
    db: Option<Connection>,
    progress: &'a Progress,
    /// When this thread began, in seconds since 1970.
    began: i64,
    printer: Printer,
    seen: Vec<Seen>,
}

impl<'a> Reader<'a> {
    pub fn new(share: &'a Share, db: Option<Connection>, progress: &'a Progress) -> Self {
        let (began, printer) = (super::now_s(), Printer::default());
        Self { share, survey: Survey::new(share), db, progress, began, printer, seen: Vec::new() }
    }

    pub fn read(&mut self, dir: Inode) -> IndexResult<Found> {
        let (text, rows, gone, below) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut found = Found { dir, text, rows, gone, below, outcome: Outcome::Unread };
        if let Err(error) = self.survey.enter(self.share, &dir) {
            if !matches!(error.errno(), libc::ESTALE | libc::ENOTDIR | libc::ENOENT) {
                self.progress.failed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(inode = dir.id.ino, "a directory cannot be read, and is left as it is known: {error}");
            }
            return Ok(found);
        }
        let project = self.survey.project();
        let mut whole = self.look(dir, project, &mut found.below);
        let print = self.printer.end();
        // After the listing: a print that is there now is of rows as they are now.
        let before = match &self.db {
            Some(db) => stored(db, dir.id.ino)?,
            None => Stored::default(),
        };
        self.progress.dirs.fetch_add(1, Ordering::Relaxed);
        self.progress.inodes.fetch_add(self.survey.len() as u64, Ordering::Relaxed);
        if whole && before.print == Some(print) {
            self.progress.as_printed.fetch_add(1, Ordering::Relaxed);
            found.outcome = Outcome::AsPrinted;
            return Ok(found);
        }
        // After the count of changes: what is changed from here on is seen by the writer.
        let mut known = match &self.db {
            Some(db) => known(db, dir.id.ino)?,
            None => Known::default(),
        };
        let settled_ns = |began: i64| began.saturating_mul(1_000_000_000).saturating_sub(YOUNG_NS);
        let kept_ns = if before.compared == 0 { i64::MIN } else { settled_ns(before.compared.min(self.began)) };
        let (mut records, mut young) = (0, false);
        for seen in &self.seen {
            if let Err(error) = self.compare(seen, project, kept_ns, &mut known, &mut records, &mut found)? {
                self.failed(dir, &error);
                whole = false;
            }
            young |= has_record(&seen.attr) && ctime_ns(&seen.attr) >= settled_ns(self.began);
        }
        self.progress.records.fetch_add(records, Ordering::Relaxed);
        found.outcome = Outcome::InPart;
        if whole {
            found.gone.extend(known.rows.into_iter().map(|(ino, (name, _))| (name, ino)));
            found.gone.extend(known.links);
            let print = Some(print).filter(|_| !young);
            found.outcome = Outcome::Whole { changes: before.changes, began: self.began, print };
        }
        Ok(found)
    }

    fn failed(&self, dir: Inode, error: &crate::ports::LowerError) {
        self.progress.failed.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(directory = dir.id.ino, "a name cannot be looked at: {error}");
    }

    /// Looks at all entries and at what is below; `false`: at some it could not.
    fn look(&mut self, dir: Inode, project: u32, below: &mut Vec<Inode>) -> bool {
        let mut all = true;
        self.seen.clear();
        self.seen.shrink_to(SEEN_KEPT);
        self.printer.begin(dir.id);
        for at in 0..self.survey.len() {
            let looked = self.survey.look(at).and_then(|seen| {
                let Some(seen) = seen else { return Ok(()) };
                if seen.attr.kind == FileKind::Directory {
                    match self.survey.below(at)? {
                        Some(inode) => below.push(inode),
                        None => return Ok(()),
                    }
                }
                let facts = Facts::new(seen.id, &seen.attr, project, Tier::none());
                self.printer.add(seen.name.as_bytes(), &facts);
                self.seen.push(Seen { at, id: seen.id, attr: seen.attr });
                Ok(())
            });
            if let Err(error) = looked {
                self.failed(dir, &error);
                all = false;
            }
        }
        all
    }

    /// Compares an entry with what is known of it. A record is not read again that was when it was settled: before `kept_ns`.
    fn compare(
        &self,
        seen: &Seen,
        project: u32,
        kept_ns: i64,
        known: &mut Known,
        records: &mut u64,
        found: &mut Found,
    ) -> IndexResult<LowerResult<()>> {
        let (name, id, attr) = (self.survey.name(seen.at).as_bytes(), seen.id, &seen.attr);
        let mut facts = Facts::new(id, attr, project, Tier::none());
        let linked = facts.has_links();
        // The row of a file with several names may be under another of them, which is as good.
        let elsewhere = match &self.db {
            Some(db) if linked && !known.rows.contains_key(&id.ino) => row_of(db, id)?,
            _ => None,
        };
        let here = known.rows.get(&id.ino).filter(|(known, facts)| (linked || known == name) && facts.id == id);
        let before = here.map(|(_, facts)| facts).or(elsewhere.as_ref());
        match before {
            // Storing a record moves the change time.
            Some(before)
                if before.ctime_ns == facts.ctime_ns && before.size == facts.size && facts.ctime_ns < kept_ns =>
            {
                facts.tier = before.tier.clone();
            }
            _ if !has_record(attr) => {}
            _ => {
                *records += 1;
                match self.survey.record(seen.at) {
                    Ok(stored) => facts.tier = Tier::of(attr, stored.as_deref()),
                    Err(error) => return Ok(Err(error)),
                }
            }
        }
        let same = before.is_some_and(|before| *before == facts);
        if linked || here.is_some() {
            known.rows.remove(&id.ino);
        }
        // One of a file that has no other name any more is cleared away with the row. Left as gone, it would take the row along.
        let link = !known.links.is_empty() && known.links.remove(&(name.to_vec(), id.ino));
        if !(same && link == linked) {
            let start = found.text.len();
            found.text.extend_from_slice(name);
            found.rows.push((start..found.text.len(), facts));
        }
        Ok(Ok(()))
    }
}

/// Whether its record says more than its attributes: an empty file has its content whatever is stored.
fn has_record(attr: &Attr) -> bool {
    attr.kind == FileKind::Regular && attr.size != 0
}

/// Rows of a directory as they are known, by inode; and its names of files with several.
fn known(db: &Connection, parent: u64) -> IndexResult<Known> {
    let mut known = Known::default();
    let sql = format!("SELECT {FACTS}, name FROM f WHERE parent = ?1");
    let mut rows = db.prepare_cached(&sql)?;
    let mut rows = rows.query([parent as i64])?;
    while let Some(row) = rows.next()? {
        let facts = Facts::read(row)?;
        known.rows.insert(facts.id.ino, (name_of(row.get_ref(19)?).to_vec(), facts));
    }
    let mut links = db.prepare_cached("SELECT name, ino FROM links WHERE parent = ?1")?;
    let mut links = links.query([parent as i64])?;
    while let Some(row) = links.next()? {
        known.links.insert((name_of(row.get_ref(0)?).to_vec(), row.get::<_, i64>(1)? as u64));
    }
    Ok(known)
}

/// The row of an inode that has a name somewhere.
fn row_of(db: &Connection, id: FileId) -> IndexResult<Option<Facts>> {
    let sql = format!("SELECT {FACTS} FROM f WHERE ino = ?1 AND birth = ?2 AND parent > 0");
    let mut row = db.prepare_cached(&sql)?;
    Ok(row.query_row([id.ino as i64, id.birth as i64], Facts::read).optional()?)
}

#[derive(Default)]
struct Known {
    rows: HashMap<u64, (Vec<u8>, Facts)>,
    links: HashSet<(Vec<u8>, u64)>,
}
