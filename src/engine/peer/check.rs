//! Whether both sides say the same of a file.

use std::sync::Arc;

use super::super::Engine;
use super::super::cell::Cell;
use super::super::error::{EngineResult, PeerTrouble};
use super::super::verify::Checked;
use crate::peer::{Answer, Phase as There, Refusal};
use crate::record::Phase;

impl Engine {
    /// Asks the other side how the file is there, and compares. Nothing is changed: which of two contents counts is no question for a machine.
    pub(in crate::engine) async fn check_peer(self: &Arc<Self>, cell: &Arc<Cell>) -> EngineResult<Checked> {
        let answer = self.ask_facts(cell).await?;
        let peer = {
            let inner = cell.lock();
            self.peer_of(cell, &inner.record)?
        };
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
            There::Offering | There::Taking => self.trouble(cell, PeerTrouble::Undecided),
            There::Owner { .. } if !owns && there.epoch.0 == peer.epoch => Ok(Checked::Sound),
            There::Stub if owns && there.epoch.0 == peer.epoch => Ok(Checked::Sound),
            There::Owner { .. } | There::Stub => self.trouble(cell, PeerTrouble::Contradiction),
        }
    }
}
