//! The end that is told: what a peer's identity may put below [`super::KEYS`], and what it gets back.
//!
//! `begin/RUN`, `batch/RUN-NUMBER` and `compare/…` are put to the slave, `held/…` to the master. The ETag of what was put is
//! `WORD-LENGTH`: the length of the answer to be fetched under the same key, 0 if there is nothing to say.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::apply::Applier;
use super::book::{Book, RefusedName};
use super::limbo::Limbo;
use super::wire::{Answer, Batch, Begin, Half, Held, decode, encode};
use super::{Side, SyncError, SyncResult};
use crate::capture::files::Files;
use crate::capture::id::peer_id;
use crate::ports::{Clock, Lower};
use crate::types::{FileId, Inode, PairName, Timestamp};

/// Answers kept until they are fetched.
const ANSWERS_MAX: usize = 8;

/// What the slave says to a master that begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    pub slave: Half,
    /// Applied of this run so far, and who has no name.
    pub answer: Answer,
}

/// Who is this side's master, once it has told something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Master {
    pub half: Half,
    pub share: FileId,
}

pub struct Receiver {
    lower: Arc<dyn Lower>,
    files: Arc<dyn Files>,
    clock: Arc<dyn Clock>,
    pub book: Arc<Mutex<Book>>,
    applier: Option<Applier>,
    pub half: Half,
    answers: Mutex<Vec<(String, Bytes)>>,
    /// When something was last received, and why something was last refused.
    pub heard: Mutex<(Option<Timestamp>, Option<String>)>,
}

impl Receiver {
    /// Brings a batch to its end that a crash interrupted. Blocks.
    pub fn open(
        lower: Arc<dyn Lower>,
        files: Arc<dyn Files>,
        clock: Arc<dyn Clock>,
        (mut book, whole): (Book, bool),
        (side, half): (Side, Half),
    ) -> SyncResult<Self> {
        let applier = match side {
            Side::Master => {
                // What gets an id from now on is not in this book: should this side be the slave again, it looks.
                book.unset("whole")?;
                None
            }
            Side::Slave => {
                // A share that was neither slave nor master has nothing to be found.
                let whole = whole || (!Limbo::is_there(&*lower)? && book.number("run")? == 0);
                let applier = Applier::new(lower.clone(), files.clone(), clock.clone())?;
                if whole {
                    book.set("whole", b"")?;
                } else {
                    applier.fill(&mut book)?;
                }
                applier.take_up(&mut book)?;
                if let Some(pending) = book.value("pending")? {
                    match decode::<Batch>(&pending) {
                        Ok(batch) => drop(applier.redo(&mut book, &batch)?),
                        Err(error) => {
                            tracing::warn!("an interrupted batch of the metadata sync cannot be read: {error}");
                            book.unset("pending")?;
                        }
                    }
                }
                Some(applier)
            }
        };
        let book = Arc::new(Mutex::new(book));
        Ok(Self { lower, files, clock, book, applier, half, answers: Mutex::default(), heard: Mutex::default() })
    }

    fn answer(&self, path: &str, word: &str, answer: Vec<u8>) -> String {
        let len = answer.len();
        let mut answers = self.answers.lock();
        answers.retain(|(of, _)| of != path);
        if answers.len() >= ANSWERS_MAX {
            answers.remove(0);
        }
        answers.push((path.to_owned(), answer.into()));
        format!("{word}-{len}")
    }

    /// What was answered to something put.
    pub fn get(&self, path: &str) -> Option<Bytes> {
        self.answers.lock().iter().find(|(of, _)| of == path).map(|(_, answer)| answer.clone())
    }

    /// Takes a message of the pair's peer; the ETag to answer with. Blocks.
    pub fn put(&self, pair: &PairName, path: &str, body: &[u8]) -> SyncResult<String> {
        let taken = self.take(pair, path, body);
        let refused = match &taken {
            Err(SyncError::OutOfTurn { .. } | SyncError::Unknown) => return taken,
            taken => taken.as_ref().err().map(ToString::to_string),
        };
        *self.heard.lock() = (Some(self.clock.now()), refused);
        taken
    }

    fn take(&self, pair: &PairName, path: &str, body: &[u8]) -> SyncResult<String> {
        if pair.as_str() != self.half.pair {
            let Half { pair: ours, .. } = &self.half;
            return Err(SyncError::Refused(format!(
                "this identity is of the pair {pair}, and {} is served with the pair {ours}: give the identity that pair's name",
                self.half.place()
            )));
        }
        let (kind, _) = path.split_once('/').ok_or(SyncError::Unknown)?;
        match kind {
            "begin" => self.begin(path, &decode(body)?),
            "batch" | "compare" => self.batch(path, &decode(body)?),
            "held" => self.held(&decode(body)?),
            _ => Err(SyncError::Unknown),
        }
    }

    fn slave(&self, who: &str) -> SyncResult<&Applier> {
        self.applier.as_ref().ok_or_else(|| {
            SyncError::Refused(format!(
                "meta_sync_role = \"master\" on both sides, one must be \"slave\": {} and {who}",
                self.half.place()
            ))
        })
    }

    fn begin(&self, path: &str, begin: &Begin) -> SyncResult<String> {
        let master = begin.master.place();
        self.slave(&master)?;
        let book = self.book.lock();
        let known: Option<Master> = book.value("master")?.map(|stored| decode(&stored)).transpose()?;
        let is = Master { half: begin.master.clone(), share: begin.share };
        if let Some(known) = &known {
            let other =
                (&known.half.local_cluster, &known.half.local_share) != (&is.half.local_cluster, &is.half.local_share);
            if other {
                return Err(SyncError::Refused(format!(
                    "only one master (a new one: `tierfs sync --accept-master` on {}): {} has {} already, not {master}",
                    self.half.local_cluster,
                    self.half.place(),
                    known.half.place(),
                )));
            }
            if known.share != is.share {
                return Err(SyncError::Refused(format!(
                    "another directory than before (if that is right: `tierfs sync --accept-master` on {}): is {master} mounted? What is \
                     missing there would be removed from {}",
                    self.half.local_cluster,
                    self.half.place(),
                )));
            }
        }
        let run = book.number("run")?;
        if begin.run < run {
            return Err(SyncError::OutOfTurn { run, number: book.number("number")? });
        }
        if begin.run > run {
            book.set_number("number", 0)?;
            book.set_number("run", begin.run)?;
        }
        if known.as_ref() != Some(&is) {
            book.set("master", &encode(&is))?;
        }
        let mut answer = Answer { run: begin.run, number: book.number("number")?, ..Answer::default() };
        for id in book.nameless(1_000)? {
            let origin = book.known(id)?.map_or(FileId { ino: 0, birth: 0 }, |known| known.origin);
            answer.nameless.push((id, origin));
        }
        Ok(self.answer(path, "begun", encode(&Begun { slave: self.half.clone(), answer })))
    }

    fn batch(&self, path: &str, batch: &Batch) -> SyncResult<String> {
        let applier = self.slave("the other side")?;
        let mut book = self.book.lock();
        let (run, number) = (book.number("run")?, book.number("number")?);
        let turn = SyncError::OutOfTurn { run, number };
        let answer = match batch.number {
            _ if batch.run != run => return Err(turn),
            0 => applier.apply(&mut book, batch)?,
            n if n == number => match book.value("answer")? {
                Some(answer) => decode(&answer)?,
                None => return Err(turn),
            },
            n if n == number + 1 => applier.apply(&mut book, batch)?,
            _ => return Err(turn),
        };
        let plain = answer.is_plain() && answer.number > 0;
        // What is plain is told by the ETag alone.
        Ok(if plain { "applied-0".to_owned() } else { self.answer(path, "applied", encode(&answer)) })
    }

    /// A file has taken the place, and the id, of another.
    pub fn replaced(&self, node: &Inode) -> SyncResult<()> {
        let Some(id) = peer_id(&*self.lower, node)? else { return Ok(()) };
        let book = self.book.lock();
        match book.known(id)? {
            Some(known) if known.node != *node => book.put(id, node, known.origin),
            _ => Ok(()),
        }
    }

    /// Facts of contents that the other side holds.
    fn held(&self, held: &Held) -> SyncResult<String> {
        if self.applier.is_some() {
            return Err(SyncError::Refused(format!(
                "{} has meta_sync_role = \"slave\" as the other side has: one of them must be \"master\"",
                self.half.place()
            )));
        }
        let mut changed = false;
        for (id, node, facts) in &held.files {
            // Whoever tells of a file that is another by now tells nothing.
            let Ok((node, attr)) = self.lower.by_number(node.ino) else { continue };
            let same = attr.nlink > 0 && peer_id(&*self.lower, &node).is_ok_and(|known| known == Some(*id));
            if !same || !facts.held {
                continue;
            }
            match self.files.refresh(&node, facts, FileId { ino: 0, birth: 0 }) {
                Ok(true) => {
                    changed = true;
                    self.files.inode_changed(node.id, false);
                }
                Ok(false) => {}
                Err(error) => tracing::warn!(inode = node.id.ino, "news of its content could not be kept: {error}"),
            }
        }
        if changed {
            self.lower.sync_all()?;
        }
        Ok("held-0".to_owned())
    }

    /// Lets go of the master that this side has: the next one to begin is it.
    pub fn accept_master(&self) -> SyncResult<()> {
        self.book.lock().unset("master")
    }

    pub fn master(&self) -> SyncResult<Option<Master>> {
        Ok(self.book.lock().value("master")?.map(|stored| decode(&stored)).transpose()?)
    }

    /// Names that are not as the master says: up to `max`, with how many there are; each with its path where it is known.
    pub fn refused(&self, max: usize) -> SyncResult<(Vec<(std::path::PathBuf, RefusedName)>, u64)> {
        let (names, all) = self.book.lock().refused(max)?;
        let place = |dir| -> Option<std::path::PathBuf> {
            let known = match dir {
                crate::types::PairFileId::ROOT => self.lower.root(),
                dir => self.book.lock().known(dir).ok()??.node,
            };
            self.lower.path_of(&known).ok()?
        };
        use std::os::unix::ffi::OsStrExt as _;
        let named = names.into_iter().map(|refused| {
            let name = std::ffi::OsStr::from_bytes(&refused.name);
            (place(refused.dir).unwrap_or_else(|| "?".into()).join(name), refused)
        });
        Ok((named.collect(), all))
    }

    /// Makes way for what the master has under a path: what is there is renamed. Its new name.
    pub fn take_path(&self, path: &std::path::Path) -> SyncResult<std::ffi::OsString> {
        let refused = |why: &str| SyncError::Refused(format!("{}: {why}", path.display()));
        let applier =
            self.applier.as_ref().ok_or_else(|| refused("only the slave of a metadata sync has names in the way"))?;
        let (above, name) = path.parent().zip(path.file_name()).ok_or_else(|| refused("it has no name"))?;
        let dir = crate::catalog::walk::resolve(&*self.lower, above)?;
        let id = peer_id(&*self.lower, &dir.node)?.ok_or_else(|| refused("its directory is not the master's"))?;
        let book = self.book.lock();
        let other = applier.move_aside(&dir.node, name)?;
        book.accept(id, std::os::unix::ffi::OsStrExt::as_bytes(name))?;
        Ok(other)
    }
}
