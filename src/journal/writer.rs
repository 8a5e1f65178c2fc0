//! The thread that owns the connection: takes all calls that wait, runs them in one transaction, commits, answers.
//!
//! Nothing is answered before the commit, reads included: a read may have seen a write of the same batch.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{mpsc, oneshot};

use crate::kill;
use crate::ports::{About, Failed, FailedEntry, FailedId, Intent, IntentId, JournalError, Recalled, Succeeded};
use crate::types::{Inode, ObjectKey, PairName, Timestamp};

use super::CALLS_WAITING_MAX;
use super::letters::FAILED_MAX;
use super::store::{Fault, Store};

pub(super) type Reply<T> = oneshot::Sender<Result<T, JournalError>>;
type Notes = Vec<(IntentId, Intent)>;

/// All that can be asked of the journal.
pub(super) enum Call {
    Add { intent: Intent, reply: Reply<IntentId> },
    SetDelete { id: IntentId, not_before: Timestamp, reply: Reply<()> },
    Remove { id: IntentId, reply: Reply<()> },
    Withdraw { key: ObjectKey, reply: Reply<()> },
    Due { pair: PairName, now: Timestamp, limit: usize, reply: Reply<Notes> },
    Unfinished { after: Option<IntentId>, limit: usize, reply: Reply<Notes> },
    Counts { reply: Reply<(u64, u64)> },
    NamesPair { pair: PairName, reply: Reply<bool> },
    Noted { pair: PairName, about: About, after: Option<IntentId>, limit: usize, reply: Reply<Notes> },
    Repoint { pair: PairName, key: ObjectKey, node: Inode, not_before: Timestamp, reply: Reply<()> },
    NamesKeys { keys: Vec<ObjectKey>, reply: Reply<Vec<bool>> },
    NoteRecalled { recalled: Box<Recalled>, reply: Reply<()> },
    RecalledDue { pair: PairName, now: Timestamp, limit: usize, reply: Reply<Vec<Recalled>> },
    SettleRecalled { recalled: Box<Recalled>, until: Option<Timestamp>, reply: Reply<()> },
    NoteFailed { failed: Box<Failed>, now: Timestamp, reply: Reply<u64> },
    ClearFailed { done: Succeeded, reply: Reply<()> },
    DropFailed { ids: Vec<FailedId>, reply: Reply<u64> },
    Failed { after: Option<FailedId>, limit: usize, reply: Reply<Vec<FailedEntry>> },
    Value { name: String, reply: Reply<Option<String>> },
    SetValue { name: String, value: Option<String>, reply: Reply<()> },
}

/// What can be known without asking the thread.
#[derive(Default)]
pub(super) struct Counts {
    /// Transactions since the journal was opened.
    pub(super) commits: AtomicU64,
    /// Entries of the dead-letter list.
    pub(super) failed_files: AtomicU64,
}

/// An answer held back until the commit: takes the batch's failure, if there was one, instead of its own value.
type Held = Box<dyn FnOnce(Option<&JournalError>)>;

/// Serves calls until all senders are gone and the channel is empty.
pub(super) fn run(mut store: Store, mut inbox: mpsc::Receiver<Call>, counts: &Counts) {
    let mut batch = Vec::new();
    while inbox.blocking_recv_many(&mut batch, CALLS_WAITING_MAX) > 0 {
        serve(&mut store, &mut batch, counts);
    }
    store.close();
}

/// One batch, one transaction.
fn serve(store: &mut Store, batch: &mut Vec<Call>, counts: &Counts) {
    let writes = batch.iter().any(Call::is_write);
    let mut failure = if writes { store.begin().err() } else { store.usable().err() };
    let mut answers: Vec<Held> = Vec::with_capacity(batch.len());
    for call in batch.drain(..) {
        answers.push(call.run(store, &mut failure));
    }
    if writes {
        kill::point("journal.written");
        match &failure {
            None => match store.commit() {
                Ok(()) => {
                    kill::point("journal.committed");
                    counts.commits.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => failure = Some(error),
            },
            Some(_) => store.rollback(),
        }
        if failure.is_some()
            && let Err(error) = store.count_failed()
        {
            tracing::warn!(%error, "the dead-letter list could not be counted");
        }
        counts.failed_files.store(store.failed_files, Ordering::Relaxed);
    }
    if let Some(error) = &failure {
        tracing::error!(%error, calls = answers.len(), "journal calls failed");
    }
    for answer in answers {
        answer(failure.as_ref());
    }
}

impl Call {
    fn is_write(&self) -> bool {
        match self {
            Call::Add { .. } | Call::SetDelete { .. } | Call::Remove { .. } => true,
            Call::Withdraw { .. } | Call::Repoint { .. } => true,
            Call::NoteRecalled { .. } | Call::SettleRecalled { .. } => true,
            Call::NoteFailed { .. } | Call::ClearFailed { .. } | Call::DropFailed { .. } | Call::SetValue { .. } => {
                true
            }
            Call::Due { .. } | Call::Unfinished { .. } | Call::Counts { .. } | Call::Noted { .. } => false,
            Call::RecalledDue { .. } => false,
            Call::NamesPair { .. } | Call::NamesKeys { .. } | Call::Failed { .. } | Call::Value { .. } => false,
        }
    }

    /// Runs the call unless the batch has failed already; the first failure fails the batch, for its transaction is
    /// rolled back as a whole. (No call can fail by its arguments: what fails is the file below.)
    fn run(self, store: &mut Store, failure: &mut Option<JournalError>) -> Held {
        match self {
            Call::Add { intent, reply } => hold(reply, failure, || store.add(&intent)),
            Call::SetDelete { id, not_before, reply } => hold(reply, failure, || store.set_delete(id, not_before)),
            Call::Remove { id, reply } => hold(reply, failure, || store.remove(id)),
            Call::Withdraw { key, reply } => hold(reply, failure, || store.withdraw(&key)),
            Call::Due { pair, now, limit, reply } => hold(reply, failure, || store.due(&pair, now, limit)),
            Call::Unfinished { after, limit, reply } => hold(reply, failure, || store.unfinished(after, limit)),
            Call::Counts { reply } => hold(reply, failure, || store.counts()),
            Call::NamesPair { pair, reply } => hold(reply, failure, || store.names_pair(&pair)),
            Call::Noted { pair, about, after, limit, reply } => {
                hold(reply, failure, || store.noted(&pair, &about, after, limit))
            }
            Call::Repoint { pair, key, node, not_before, reply } => {
                hold(reply, failure, || store.repoint(&pair, &key, &node, not_before))
            }
            Call::NamesKeys { keys, reply } => hold(reply, failure, || store.names_keys(&keys)),
            Call::NoteRecalled { recalled, reply } => hold(reply, failure, || store.note_recalled(&recalled)),
            Call::RecalledDue { pair, now, limit, reply } => {
                hold(reply, failure, || store.recalled_due(&pair, now, limit))
            }
            Call::SettleRecalled { recalled, until, reply } => {
                hold(reply, failure, || store.settle_recalled(&recalled, until))
            }
            Call::NoteFailed { failed, now, reply } => {
                hold(reply, failure, || store.note_failed(&failed, now, FAILED_MAX))
            }
            Call::ClearFailed { done, reply } => hold(reply, failure, || store.clear_failed(&done)),
            Call::DropFailed { ids, reply } => hold(reply, failure, || store.drop_failed(&ids)),
            Call::Failed { after, limit, reply } => hold(reply, failure, || store.failed(after, limit)),
            Call::Value { name, reply } => hold(reply, failure, || store.value(&name)),
            Call::SetValue { name, value, reply } => hold(reply, failure, || store.set_value(&name, value.as_deref())),
        }
    }
}

fn hold<T: 'static>(
    reply: Reply<T>,
    failure: &mut Option<JournalError>,
    run: impl FnOnce() -> Result<T, Fault>,
) -> Held {
    let value = match failure {
        Some(_) => None,
        None => match run() {
            Ok(value) => Some(value),
            Err(Fault(error)) => {
                *failure = Some(error);
                None
            }
        },
    };
    Box::new(move |failure| {
        // A receiver that is gone has been cancelled; nobody misses the answer.
        let _ = match (failure, value) {
            (None, Some(value)) => reply.send(Ok(value)),
            (Some(error), _) => reply.send(Err(error.clone())),
            // Without a value the batch has failed; dropping the reply tells the caller that the writer is broken.
            (None, None) => return,
        };
    })
}
