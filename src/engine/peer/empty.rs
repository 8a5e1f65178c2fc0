//! The other side's content that somebody here throws away: it is not fetched. The owner offers the file without a copy, and this side accepts with an empty one.
//!
//! Order: the owner is asked → it notes, records *offering* (durable), answers → here, if who wanted it still waits: record that the file may be cut (durable) → cut,
//! synced → record *owner* of an empty content (durable). Until that last record is durable, the owner has every byte; an offer that nobody wants any more, because
//! he gave up, or this side died, is refused when the owner repeats it, as one of which no copy is staged.

use std::sync::Arc;
use std::time::Duration;

use super::super::cell::Cell;
use super::super::error::{EngineError, EngineResult, PeerTrouble};
use super::super::{Engine, blocking};
use super::state::learn_node;
use crate::peer::{Answer, Call, Event, Local, Refusal, Verdict};
use crate::types::FileId;

/// How often it is asked for, and how far apart: an offer may be overtaken, and the content may have another generation.
const ASKS: u32 = 4;
const ASK_PAUSE: Duration = Duration::from_millis(100);

/// Somebody throws all of a file's content away. As long as this is held an offer of it is accepted; and what was accepted is not given up again, or he might be
/// told that it failed, and find it thrown away.
pub struct Emptying(Arc<Cell>);

impl Emptying {
    fn new(cell: &Arc<Cell>) -> Self {
        cell.lock().emptying += 1;
        Self(cell.clone())
    }
}

impl Drop for Emptying {
    fn drop(&mut self) {
        self.0.lock().emptying -= 1;
    }
}

/// What came of asking the owner for an offer.
pub(super) enum Offer {
    /// The call that the offer is, and the owner's inode.
    Made(Call, FileId),
    /// It is this side's, or is being decided: whoever asked looks again.
    Needless,
    /// The stub is one of another content now: it may be asked for again.
    Renewed,
    /// The other side does not know what is asked.
    Unknown,
}

impl Engine {
    /// Has a stub become this side's, empty, for somebody who throws all of its content away; nothing of it is fetched. It stays this side's until he who asks has
    /// looked again and dropped what this gives. Dropped before it ends: see [`Engine::emptied`].
    pub async fn take_empty(self: &Arc<Self>, cell: &Arc<Cell>) -> EngineResult<Emptying> {
        self.check_running()?;
        let emptying = Emptying::new(cell);
        let taken = self.try_take_empty(cell).await;
        // However it came about: what is this side's can be changed.
        let owns = !cell.lock().machine.is_foreign();
        if owns { Ok(emptying) } else { taken.map(|()| emptying) }
    }

    /// Somebody gives up waiting for [`Engine::take_empty`], which was dropped: `None`, and nothing is taken for him any more; or it was, and he has to go on.
    pub fn emptied(&self, cell: &Arc<Cell>) -> Option<Emptying> {
        let mut inner = cell.lock();
        let owns = !inner.machine.is_foreign();
        inner.emptying += u32::from(owns);
        drop(inner);
        owns.then(|| Emptying(cell.clone()))
    }

    async fn try_take_empty(self: &Arc<Self>, cell: &Arc<Cell>) -> EngineResult<()> {
        for ask in 0..ASKS {
            if ask > 0 {
                tokio::time::sleep(ASK_PAUSE).await;
            }
            let (call, from) = match self.ask_for_offer(cell).await? {
                Offer::Made(call, from) => (call, from),
                Offer::Needless => return Ok(()),
                Offer::Renewed => continue,
                // As of any other change: all content first.
                Offer::Unknown => return self.recall(cell).await.map(drop),
            };
            // To its end, whoever gives up: it is decided under the lock, or it is not.
            let (this, on) = (self.clone(), cell.clone());
            let judged = self.runtime.spawn(async move { this.peer_called(&on, call, from, None).await });
            match judged.await.map_err(|_| EngineError::Defect)? {
                Ok(told) if matches!(told.answer, Answer::Granted { .. }) => {
                    self.leftover_is_gone(cell);
                    return Ok(());
                }
                // The same offer came by another way, and was refused before.
                Ok(_) => {}
                Err(error) if error.is_undecided() => {}
                Err(error) => return Err(error),
            }
        }
        self.trouble(cell, PeerTrouble::Refused)
    }

    /// Asks the owner of a stub's content to offer it without a copy.
    pub(super) async fn ask_for_offer(self: &Arc<Self>, cell: &Arc<Cell>) -> EngineResult<Offer> {
        let (this, on) = (self.clone(), cell.clone());
        let asked = blocking(move || {
            let mut inner = on.lock();
            this.known(&on, &mut inner)?;
            let peer = this.peer_of(&on, &inner.record)?;
            let verdict = this.decide_and_store(&on, &mut inner, Local::default(), Event::WantBegin, "peer.wanted")?;
            let Verdict::Call(call) = verdict else { return Ok(None) };
            Ok::<_, EngineError>(Some((call, this.named(&on.node, &peer))))
        });
        let Some((call, named)) = asked.await?? else { return Ok(Offer::Needless) };
        let Some(told) = self.send(cell, call, &named, None).await? else { return Ok(Offer::Unknown) };
        learn_node(&mut cell.lock(), told.from);
        match told.answer {
            Answer::Offered { ticket, content } => {
                Ok(Offer::Made(Call::Ltr { file: call.file(), ticket, content }, told.from))
            }
            Answer::Refused { refusal: Refusal::Changed, .. } => {
                self.refresh_from_peer(cell).await.map(|_| Offer::Renewed)
            }
            Answer::Refused { refusal: Refusal::OpenForWriting | Refusal::Open, .. } => {
                self.trouble(cell, PeerTrouble::Refused)
            }
            Answer::Refused { refusal: Refusal::Handover, .. } => self.trouble(cell, PeerTrouble::Undecided),
            _ => self.trouble(cell, PeerTrouble::Contradiction),
        }
    }
}
