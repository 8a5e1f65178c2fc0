//! The loop that tells: looks at what changed, waits until that is on stable storage, tells it, and reads what comes back.
//!
//! One batch is under way at a time. What was taken and not confirmed goes back, and is looked at anew: so nothing old is ever told again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::book::Book;
use super::compare::Comparison;
use super::look::{Listing, Looker, STATEMENTS_MAX, Told};
use super::receive::Begun;
use super::wire::{Answer, Batch, Begin, Counts, Half, MESSAGE_MAX, Statement, decode, encode};
use super::{KEYS, Side, SyncError, SyncResult};
use crate::capture::files::Files;
use crate::capture::{Capture, Turn};
use crate::catalog::walk::on_own_thread;
use crate::ports::{Clock, Lower, ObjectSource, Remote, RemoteErrorKind, SourceError};
use crate::types::{ByteRange, FileId, Generation, ObjectKey, PairFileId, Timestamp};

/// What comes within so long of the first change goes into the same batch.
const GATHER: Duration = Duration::from_millis(40);
/// How often it is looked whether marks can go.
const REST: Duration = Duration::from_secs(1);
/// Pauses after failures, doubled each time.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);

pub struct SenderOptions {
    pub lower: Arc<dyn Lower>,
    pub files: Arc<dyn Files>,
    pub clock: Arc<dyn Clock>,
    pub capture: Arc<Capture>,
    /// At first; see [`Sender::reach_by`].
    pub remote: Arc<dyn Remote>,
    pub book: Arc<Mutex<Book>>,
    pub side: Side,
    pub half: Half,
}

/// Where the numbering is.
#[derive(Default)]
pub(super) struct Line {
    /// `None`: to be begun.
    run: Option<u64>,
    number: u64,
}

/// What is known of how it goes.
#[derive(Default)]
pub(super) struct Going {
    pub problem: Option<String>,
    pub told_at: Option<Timestamp>,
    pub counts: Counts,
    pub slave: Option<Half>,
    /// By the master's directory and name.
    pub refused: HashMap<(FileId, Vec<u8>), (String, bool)>,
    pub batches: u64,
    pub statements: u64,
}

pub struct Sender {
    pub(super) options: SenderOptions,
    remote: RwLock<Arc<dyn Remote>>,
    pub(super) looker: Looker,
    /// The comparison's.
    pub(super) of_all: Looker,
    pub(super) line: tokio::sync::Mutex<Line>,
    pub(super) going: Mutex<Going>,
    /// A directory whose telling is under way.
    part: Mutex<Option<(Turn, Listing)>>,
    /// Refused, with when they are told again.
    pub(super) later: Mutex<Vec<(Instant, Turn)>>,
    /// Without a name at the slave, and with one here when it was last looked: with when that was, and the inode.
    pub(super) named: Mutex<HashMap<PairFileId, (Instant, FileId)>>,
    pub(super) gone: Mutex<HashMap<PairFileId, (Instant, bool)>>,
    pub(super) stopping: AtomicBool,
    pub(super) held: AtomicU64,
    pub(super) comparison: Mutex<Comparison>,
}

struct Message(Bytes);

#[async_trait]
impl ObjectSource for Message {
    async fn read(&self, range: ByteRange) -> Result<Bytes, SourceError> {
        let end = usize::try_from(range.end()).ok().filter(|end| *end <= self.0.len());
        end.map(|end| self.0.slice(range.offset as usize..end)).ok_or_else(|| SourceError("beyond its end".into()))
    }
}

/// What a batch came to.
pub(super) struct Outcome {
    pub answer: Answer,
}

impl Sender {
    pub fn new(options: SenderOptions) -> Arc<Self> {
        let looker = Looker {
            lower: options.lower.clone(),
            capture: options.capture.clone(),
            files: options.files.clone(),
            dry: false,
            whole: false,
        };
        let of_all = Looker {
            lower: options.lower.clone(),
            capture: options.capture.clone(),
            files: options.files.clone(),
            dry: false,
            whole: true,
        };
        Arc::new(Self {
            remote: RwLock::new(options.remote.clone()),
            options,
            looker,
            of_all,
            line: tokio::sync::Mutex::default(),
            going: Mutex::default(),
            part: Mutex::default(),
            later: Mutex::default(),
            named: Mutex::default(),
            gone: Mutex::default(),
            stopping: AtomicBool::new(false),
            held: AtomicU64::new(0),
            comparison: Mutex::default(),
        })
    }

    /// Ends the loop after what is under way.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.options.capture.wake().notify_one();
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Tells until it is stopped.
    pub async fn run(self: Arc<Self>) {
        let wake = self.options.capture.wake();
        let mut pause = PAUSE_MIN;
        while !self.is_stopping() {
            let told = match self.options.side {
                Side::Master => match self.round().await {
                    Ok(told) => self.compare_on().await.map(|compared| told || compared),
                    failed => failed,
                },
                Side::Slave => self.tell_held().await,
            };
            match told {
                Ok(true) => pause = PAUSE_MIN,
                Ok(false) => {
                    pause = PAUSE_MIN;
                    self.sweep(false).await;
                    let waited = tokio::time::timeout(REST, wake.notified()).await;
                    if waited.is_ok() {
                        tokio::time::sleep(GATHER).await;
                    }
                }
                Err(error) => {
                    self.fails(&error);
                    // The changes of the meantime are no reason to ask more often.
                    let until = Instant::now() + pause;
                    while Instant::now() < until && !self.is_stopping() {
                        tokio::time::sleep(Duration::from_millis(50).min(pause)).await;
                    }
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    async fn sweep(self: &Arc<Self>, at_once: bool) {
        let capture = self.options.capture.clone();
        // It panics only with a bug of its own, which has been told.
        let _ = tokio::task::spawn_blocking(move || capture.sweep(at_once)).await;
    }

    /// Tells what waits, for a moment before the end of the process; what could not be told is marked.
    pub async fn finish(self: &Arc<Self>, within: Duration) {
        self.stop();
        let told = async { while matches!(self.round().await, Ok(true)) {} };
        if self.options.side == Side::Master && self.going.lock().problem.is_none() {
            // Too late only means that the next start tells it.
            let _ = tokio::time::timeout(within, told).await;
        }
        self.sweep(true).await;
    }

    fn fails(&self, error: &SyncError) {
        let said = error.to_string();
        let mut going = self.going.lock();
        if going.problem.as_ref() != Some(&said) {
            tracing::warn!("the metadata sync waits: {said}");
            going.problem = Some(said);
        }
    }

    /// Has all further messages go by other connections: the pair was edited.
    pub fn reach_by(&self, remote: Arc<dyn Remote>) {
        *self.remote.write() = remote;
    }

    fn remote(&self) -> Arc<dyn Remote> {
        self.remote.read().clone()
    }

    /// Why nothing is told at present.
    pub fn problem(&self) -> Option<String> {
        self.going.lock().problem.clone()
    }

    pub(super) fn works(&self) {
        let mut going = self.going.lock();
        going.told_at = Some(self.options.clock.now());
        if going.problem.take().is_some() {
            tracing::info!("the metadata sync goes on");
        }
    }

    pub(super) async fn put(&self, path: &str, message: Vec<u8>) -> SyncResult<(String, u64)> {
        let key = ObjectKey(format!("{KEYS}{path}"));
        let len = message.len() as u64;
        let put = self.remote().put(&key, len, Arc::new(Message(message.into())), &[]).await;
        let etag = match put {
            Err(error) if error.kind == RemoteErrorKind::Conflict => {
                return Err(SyncError::OutOfTurn { run: 0, number: 0 });
            }
            put => put?.etag,
        };
        let nonsense = || {
            SyncError::Refused(format!(
                "the other side does not answer as a peer's gateway does (ETag {etag:?}): is its endpoint the gateway of a tierfs share that \
                 takes part in a metadata sync?"
            ))
        };
        let (word, len) = etag.split_once('-').ok_or_else(nonsense)?;
        let len = len.parse().ok().filter(|len| *len <= MESSAGE_MAX as u64).ok_or_else(nonsense)?;
        Ok((word.to_owned(), len))
    }

    async fn ask<T: DeserializeOwned>(&self, path: &str, message: &impl Serialize) -> SyncResult<Option<T>> {
        let (_, len) = self.put(path, encode(message)).await?;
        if len == 0 {
            return Ok(None);
        }
        let key = ObjectKey(format!("{KEYS}{path}"));
        let answer = self.remote().get(&key, ByteRange { offset: 0, len }, None).await?;
        Ok(Some(decode(&answer)?))
    }

    /// Begins a run, if none is begun.
    async fn begin(self: &Arc<Self>, line: &mut Line) -> SyncResult<u64> {
        if let Some(run) = line.run {
            return Ok(run);
        }
        let run = {
            let book = self.options.book.lock();
            let run = Generation(book.number("run")?).after(self.options.clock.now()).0;
            book.set_number("run", run)?;
            run
        };
        let begin = Begin { run, master: self.options.half.clone(), share: self.options.lower.root().id };
        let begun = match self.ask::<Begun>("begin/it", &begin).await {
            Err(SyncError::OutOfTurn { .. }) => {
                return Err(SyncError::Refused(
                    "the other side has seen a later run of this master than this: the clock was set back, or there are two. It is tried again"
                        .into(),
                ));
            }
            begun => begun?,
        };
        let begun = begun.ok_or_else(|| SyncError::Refused("the other side said nothing to a beginning".into()))?;
        (line.run, line.number) = (Some(run), 0);
        self.going.lock().slave = Some(begun.slave);
        self.gone.lock().clear();
        self.nameless(begun.answer.nameless).await?;
        Ok(run)
    }

    /// Tells one batch and has it answered. Number 0: only compared.
    pub(super) async fn tell(self: &Arc<Self>, statements: Vec<Statement>, dry: bool) -> SyncResult<Outcome> {
        let mut line = self.line.lock().await;
        let run = self.begin(&mut line).await?;
        let number = if dry { 0 } else { line.number + 1 };
        let kind = if dry { "compare" } else { "batch" };
        let count = statements.len() as u64;
        let nonce = self.held.fetch_add(1, Ordering::Relaxed);
        let path = if dry { format!("{kind}/{run}-{nonce}") } else { format!("{kind}/{run}-{number}") };
        let answer = self.ask::<Answer>(&path, &Batch { run, number, statements }).await;
        if answer.is_err() {
            // Whether it was applied is not known: what follows is numbered anew.
            line.run = None;
        }
        let answer = answer?.unwrap_or_default();
        if !dry {
            line.number = number;
            // Each answer names all of them: the others have a name there by now.
            self.named.lock().retain(|id, _| answer.nameless.iter().any(|(of, _)| of == id));
        }
        drop(line);
        self.works();
        let mut going = self.going.lock();
        going.batches += 1;
        going.statements += count;
        if !dry {
            going.counts.add(&answer.counts);
        }
        Ok(Outcome { answer })
    }

    /// Looks, tells, reads the answer. Whether there was anything.
    async fn round(self: &Arc<Self>) -> SyncResult<bool> {
        self.bring_back_later();
        self.look_again().await?;
        let this = self.clone();
        let gathered = on_own_thread(move || this.gather()).await.ok_or(SyncError::Stopped)?;
        let Gathered { mut told, taken, gone } = gathered?;
        if told.statements.is_empty() && gone.is_empty() {
            self.note_refused(&mut self.going.lock(), &told, &[]);
            self.options.capture.confirm(taken);
            // Who has nothing to tell begins all the same, once, so that both sides know of each other.
            let mut line = self.line.lock().await;
            if line.run.is_none() && !self.is_stopping() {
                self.begin(&mut line).await?;
                drop(line);
                self.works();
            }
            return Ok(false);
        }
        let statements = std::mem::take(&mut told.statements);
        let outcome = match self.tell(statements, false).await {
            Ok(outcome) => outcome,
            Err(error) => {
                // From its beginning: parts of it may not have come.
                let part = self.part.lock().take().map(|(turn, _)| turn);
                let mut back = taken;
                back.extend(part);
                self.options.capture.put_back(back);
                self.gone.lock().retain(|id, _| !gone.contains(id));
                return Err(error);
            }
        };
        // The slave says it once: what it wants is not forgotten because this side has no room for a mark just now.
        while let Err(error) = self.read(&told, &outcome.answer, &taken).await {
            self.fails(&error);
            if self.is_stopping() {
                return Err(error);
            }
            tokio::time::sleep(PAUSE_MIN).await;
        }
        Ok(true)
    }

    fn gather(&self) -> SyncResult<Gathered> {
        let mut told = Told::default();
        let mut taken = Vec::new();
        let gone: Vec<PairFileId> = {
            let mut gone = self.gone.lock();
            let now = Instant::now();
            let due = gone.iter_mut().filter(|(_, (_, told))| !told).take(STATEMENTS_MAX);
            due.map(|(id, state)| {
                *state = (now, true);
                *id
            })
            .collect()
        };
        told.statements.extend(gone.iter().map(|id| Statement::Gone(*id)));
        let mut part = self.part.lock();
        let mut looked = || -> SyncResult<()> {
            loop {
                if let Some((_, listing)) = &mut *part
                    && self.looker.part(listing, &mut told)?
                {
                    taken.extend(part.take().map(|(turn, _)| turn));
                }
                if told.is_full() || part.is_some() {
                    return Ok(());
                }
                let Some(turn) = self.options.capture.take(1).pop() else { return Ok(()) };
                match self.looker.look(&turn.1, &mut told) {
                    Ok(Some(listing)) => *part = Some((turn, listing)),
                    Ok(None) => taken.push(turn),
                    Err(error) => {
                        taken.push(turn);
                        return Err(error.into());
                    }
                }
            }
        };
        let done = looked().and_then(|()| {
            self.looker.finish(&mut told)?;
            Ok(self.options.capture.barrier()?)
        });
        if let Err(error) = done {
            taken.extend(part.take().map(|(turn, _)| turn));
            self.options.capture.put_back(taken);
            self.gone.lock().retain(|id, _| !gone.contains(id));
            return Err(error);
        }
        drop(part);
        Ok(Gathered { told, taken, gone })
    }

    fn bring_back_later(&self) {
        let now = Instant::now();
        let due: Vec<Turn> = {
            let mut later = self.later.lock();
            let (due, rest) = std::mem::take(&mut *later).into_iter().partition(|(at, _)| *at <= now);
            *later = rest;
            let due: Vec<(Instant, Turn)> = due;
            due.into_iter().map(|(_, turn)| turn).collect()
        };
        if !due.is_empty() {
            self.options.capture.put_back(due);
        }
    }
}

struct Gathered {
    told: Told,
    taken: Vec<Turn>,
    gone: Vec<PairFileId>,
}
