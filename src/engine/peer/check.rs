//! Whether both sides say the same of a file.

use std::sync::Arc;

use super::super::Engine;
use super::super::cell::Cell;
use super::super::error::{EngineResult, PeerTrouble};
use super::super::verify::Checked;
use crate::peer::{Answer, Refusal};
use crate::record::{PeerState, Phase};

impl Engine {
    /// Asks the other side how the file is there, and compares. Nothing is changed: which of two contents counts is no question for a machine.
    pub(in crate::engine) async fn check_peer(self: &Arc<Self>, cell: &Arc<Cell>) -> EngineResult<Checked> {
        let peer = {
            let inner = cell.lock();
            self.peer_of(cell, &inner.record)?
        };
        self.check_peer_record(cell, peer).await.map(|()| Checked::Sound)
    }

    /// The same, of a record that may not be the file's yet.
    pub(in crate::engine) async fn check_peer_record(
        self: &Arc<Self>,
        cell: &Cell,
        peer: PeerState,
    ) -> EngineResult<()> {
        let answer = self.ask_facts_of(cell, &peer).await?.answer;
        if peer.is_handing_over() {
            return self.trouble(cell, PeerTrouble::Undecided);
        }
        let there = match answer {
            Answer::Facts(facts) => facts,
            Answer::Refused { refusal: Refusal::NoSuchFile, .. } => return self.trouble(cell, PeerTrouble::NotThere),
            _ => return self.trouble(cell, PeerTrouble::Contradiction),
        };
        let owns = matches!(peer.phase, Phase::Owner { .. });
        match there.phase {
            Phase::Offering | Phase::Taking => self.trouble(cell, PeerTrouble::Undecided),
            Phase::Owner { .. } if !owns && there.epoch.0 == peer.epoch => Ok(()),
            Phase::Stub if owns && there.epoch.0 == peer.epoch => Ok(()),
            Phase::Owner { .. } | Phase::Stub => self.trouble(cell, PeerTrouble::Contradiction),
        }
    }
}
