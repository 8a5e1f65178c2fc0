//! The simulated journal: durable when it answers. `the_model_is_the_journal` compares it with the real one.

use std::sync::Arc;

use async_trait::async_trait;
use tierfs::ports::{Intent, IntentId, IntentKind, Journal, JournalError};
use tierfs::types::{PairName, Timestamp};

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
}
