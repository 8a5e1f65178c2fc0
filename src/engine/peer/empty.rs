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

/// Who waits to throw a file's content away. An offer is accepted as long as there is one.
struct Waits<'a>(&'a Cell);

impl<'a> Waits<'a> {
    fn new(cell: &'a Cell) -> Self {
        cell.lock().emptying += 1;
        Self(cell)
    }
}

impl Drop for Waits<'_> {
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
    /// Has a stub become this side's, empty, for somebody who throws all of its content away; nothing of it is fetched. Whoever asks looks again: it may be the other
    /// side's again. Dropped, nothing is taken any more.
    pub async fn take_empty(self: &Arc<Self>, cell: &Arc<Cell>) -> EngineResult<()> {
        self.check_running()?;
        let _waits = Waits::new(cell);
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
