//! The simulated journal: durable when it answers. `the_model_is_the_journal` compares it with the real one.

use std::sync::Arc;

use async_trait::async_trait;
use tierfs::ports::{
    Failed, FailedEntry, FailedId, Intent, IntentId, IntentKind, Journal, JournalError, Recalled, Succeeded,
};
use tierfs::types::{ObjectKey, PairName, Timestamp};

use crate::bugs::Bug;
use crate::plan::{Fault, Kind};
use crate::world::{State, World};

pub struct SimJournal {
    pub world: Arc<World>,
    pub life: u32,
}

fn error(reason: &str) -> JournalError {
    JournalError { path: "simulated".into(), reason: reason.into() }
}

impl SimJournal {
    async fn ask<T>(
        &self,
        kind: Kind,
        tell: impl FnOnce() -> String + Send,
        act: impl FnOnce(&mut State) -> T + Send,
    ) -> Result<T, JournalError> {
        self.world.pause().await;
        let answer = match self.world.step(self.life, kind, tell) {
            Err(_) => None,
            Ok((state, _)) if state.poisoned => Some(Err(error("its disk failed"))),
            Ok((_, Some(Fault::Refused))) => Some(Err(error("its disk is full"))),
            Ok((mut state, Some(_))) => {
                act(&mut state);
                state.poisoned = true;
                Some(Err(error("its disk failed")))
            }
            Ok((mut state, None)) => Some(Ok(act(&mut state))),
        };
        let Some(answer) = answer else { return std::future::pending().await };
        self.world.pause().await;
        answer
    }
}

fn some(state: &State, limit: usize, wanted: impl Fn(u64, &Intent) -> bool) -> Vec<(IntentId, Intent)> {
    let notes = state.notes.iter().filter(|(id, intent)| wanted(**id, intent));
    notes.take(limit).map(|(id, intent)| (IntentId(*id), intent.clone())).collect()
}

#[async_trait]
impl Journal for SimJournal {
    async fn add(&self, intent: Intent) -> Result<IntentId, JournalError> {
        let told = format!("add {:?} {}", intent.kind, intent.key);
        self.ask(
            Kind::Note,
            || told,
            |state| {
                let id = state.next();
                if !state.has(Bug::NotesForgotten) {
                    state.notes.insert(id, intent);
                }
                IntentId(id)
            },
        )
        .await
    }

    async fn set_delete(&self, id: IntentId, not_before: Timestamp) -> Result<(), JournalError> {
        self.ask(
            Kind::Note,
            || format!("set_delete {}", id.0),
            |state| {
                let idle = state.has(Bug::DeletionsNotNoted);
                let note = state.notes.get_mut(&id.0).filter(|_| !idle);
                if let Some(note) = note.filter(|note| !matches!(note.kind, IntentKind::Settle { .. })) {
                    note.kind = IntentKind::Delete { not_before };
                }
            },
        )
        .await
    }

    async fn remove(&self, id: IntentId) -> Result<(), JournalError> {
        self.ask(
            Kind::Note,
            || format!("remove {}", id.0),
            |state| {
                if !state.has(Bug::NotesStay) {
                    state.notes.remove(&id.0);
                }
            },
        )
        .await
    }

    async fn due(
        &self,
        pair: &PairName,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<(IntentId, Intent)>, JournalError> {
        let pair = pair.clone();
        self.ask(
            Kind::Recollect,
            || "due".into(),
            |state| {
                let time = |intent: &Intent| match intent.kind {
                    IntentKind::Delete { not_before } if intent.pair == pair => Some(not_before),
                    _ => None,
                };
                let mut due = some(state, usize::MAX, |_, intent| time(intent).is_some_and(|at| at <= now));
                due.sort_by_key(|(id, intent)| (time(intent), *id));
                due.truncate(limit);
                due
            },
        )
        .await
    }

    async fn unfinished(&self, after: Option<IntentId>, limit: usize) -> Result<Vec<(IntentId, Intent)>, JournalError> {
        let open = |intent: &Intent| !matches!(intent.kind, IntentKind::Delete { .. });
        let after = after.map_or(0, |id| id.0);
        self.ask(
            Kind::Recollect,
            || "unfinished".into(),
            |state| some(state, limit, |id, intent| id > after && open(intent)),
        )
        .await
    }

    async fn counts(&self) -> Result<(u64, u64), JournalError> {
        self.ask(
            Kind::Recollect,
            || "counts".into(),
            |state| {
                let deletion = |intent: &&Intent| matches!(intent.kind, IntentKind::Delete { .. });
                let deletions = state.notes.values().filter(deletion).count() as u64;
                (state.notes.len() as u64 - deletions, deletions)
            },
        )
        .await
    }

    async fn names_pair(&self, pair: &PairName) -> Result<bool, JournalError> {
        let pair = pair.clone();
        self.ask(
            Kind::Recollect,
            || "names_pair".into(),
            |state| state.notes.values().any(|intent| intent.pair == pair),
        )
        .await
    }

    async fn withdraw(&self, key: &ObjectKey) -> Result<(), JournalError> {
        self.ask(
            Kind::Note,
            || format!("withdraw {key}"),
            |state| {
                let settles = |intent: &Intent| matches!(intent.kind, IntentKind::Settle { .. });
                state.notes.retain(|_, intent| intent.key != *key || settles(intent));
            },
        )
        .await
    }

    async fn names_keys(&self, keys: Vec<ObjectKey>) -> Result<Vec<bool>, JournalError> {
        self.ask(
            Kind::Recollect,
            || "names_keys".into(),
            |state| keys.iter().map(|key| state.notes.values().any(|intent| intent.key == *key)).collect(),
        )
        .await
    }

    async fn note_recalled(&self, recalled: Recalled) -> Result<(), JournalError> {
        self.ask(
            Kind::Note,
            || format!("note_recalled {}", recalled.key),
            |state| {
                state.stats.count("recalled, and noted");
                let id = recalled.node.id;
                state.recalled.insert((id.ino, id.birth), recalled.clone());
            },
        )
        .await
    }

    async fn recalled_due(&self, pair: &PairName, now: Timestamp, limit: usize) -> Result<Vec<Recalled>, JournalError> {
        let pair = pair.clone();
        self.ask(
            Kind::Recollect,
            || "recalled_due".into(),
            |state| {
                let due = state.recalled.values().filter(|row| row.pair == pair && row.not_before <= now);
                let mut due: Vec<Recalled> = due.cloned().collect();
                due.sort_by_key(|row| (row.not_before, row.node.id.ino));
                due.truncate(limit);
                due
            },
        )
        .await
    }

    async fn settle_recalled(&self, recalled: Recalled, until: Option<Timestamp>) -> Result<(), JournalError> {
        self.ask(
            Kind::Note,
            || format!("settle_recalled {} {until:?}", recalled.key),
            |state| {
                let id = (recalled.node.id.ino, recalled.node.id.birth);
                let Some(row) = state.recalled.get_mut(&id) else { return };
                if (&row.key, row.not_before) != (&recalled.key, recalled.not_before) {
                    return;
                }
                match until {
                    Some(until) => row.not_before = until,
                    None => {
                        state.recalled.remove(&id);
                    }
                }
            },
        )
        .await
    }

    async fn note_failed(&self, failed: Failed, now: Timestamp) -> Result<u64, JournalError> {
        self.ask(
            Kind::Note,
            || format!("note_failed {:?}", failed.task),
            |state| {
                let object = |failed: &Failed| failed.deletion.as_ref().map(|(_, key)| key.clone());
                let name = |failed: &Failed| (failed.node.id, failed.task, object(failed));
                match state.failures.values_mut().find(|entry| name(&entry.failed) == name(&failed)) {
                    Some(entry) => {
                        (entry.attempts, entry.last, entry.failed) = (entry.attempts + 1, now, failed.clone());
                        entry.attempts
                    }
                    None => {
                        let id = FailedId(state.next());
                        let failed = failed.clone();
                        state.failures.insert(id, FailedEntry { id, failed, attempts: 1, first: now, last: now });
                        1
                    }
                }
            },
        )
        .await
    }

    async fn clear_failed(&self, done: Succeeded) -> Result<(), JournalError> {
        self.ask(
            Kind::Note,
            || format!("clear_failed {:?}", done.task),
            |state| {
                state.failures.retain(|_, FailedEntry { failed, .. }| {
                    let object = failed.deletion.as_ref().map(|(_, key)| key);
                    (failed.node.id, failed.task, object) != (done.file, done.task, done.object.as_ref())
                });
            },
        )
        .await
    }

    async fn drop_failed(&self, ids: Vec<FailedId>) -> Result<u64, JournalError> {
        self.ask(
            Kind::Note,
            || "drop_failed".into(),
            |state| ids.iter().filter(|id| state.failures.remove(id).is_some()).count() as u64,
        )
        .await
    }

    async fn failed(&self, after: Option<FailedId>, limit: usize) -> Result<Vec<FailedEntry>, JournalError> {
        self.ask(
            Kind::Recollect,
            || "failed".into(),
            |state| {
                let later = state.failures.values().filter(|entry| after.is_none_or(|after| entry.id > after));
                later.take(limit).cloned().collect()
            },
        )
        .await
    }

    fn failed_files(&self) -> u64 {
        self.world.lock().failures.len() as u64
    }

    async fn value(&self, name: &str) -> Result<Option<String>, JournalError> {
        self.ask(Kind::Recollect, || format!("value {name}"), |state| state.values.get(name).cloned()).await
    }

    async fn set_value(&self, name: &str, value: Option<String>) -> Result<(), JournalError> {
        self.ask(
            Kind::Note,
            || format!("set_value {name}"),
            |state| {
                state.values.remove(name);
                state.values.extend(value.clone().map(|value| (name.to_owned(), value)));
            },
        )
        .await
    }
}
