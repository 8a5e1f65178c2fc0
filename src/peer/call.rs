//! What the two sides tell each other.
//!
//! The four identifiers of the pair, the path and the signature travel beside each call and are checked before anything here is asked; whoever may not call
//! is told so (403), which is no answer of this protocol. Every answer names the file and the ticket or generation that it is about.

use serde::{Deserialize, Serialize};

use super::state::{Content, Epoch, PairFileId, Ticket};
use crate::types::{Generation, Phase};

/// What one side asks of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Call {
    /// How is it? Asked by the stub's side.
    Head { file: PairFileId },
    /// Bytes of this generation; which bytes, and their hashes, travel beside it.
    Get { file: PairFileId, generation: Generation },
    /// Keep this copy, which travels beside it with its root hash. `epoch`: the one for which it is meant.
    Stage { file: PairFileId, epoch: Epoch, content: Content },
    /// Own what is staged: "clear your gpair name" (`ltr_local_to_remote`). Asked by the owner.
    Ltr { file: PairFileId, ticket: Ticket, content: Content },
    /// I have all of this generation; let me own: "set your gpair name" (`rtl_remote_to_local`). Asked by the stub's side.
    Rtl { file: PairFileId, ticket: Ticket, generation: Generation },
    /// Offer me this generation without a copy of it: somebody here waits to throw it away. Asked by the stub's side. It has no ticket: what it leads to is an
    /// attempt of the owner's.
    Want { file: PairFileId, generation: Generation },
}

impl Call {
    /// The file that it is about.
    pub fn file(&self) -> PairFileId {
        match *self {
            Self::Head { file }
            | Self::Get { file, .. }
            | Self::Stage { file, .. }
            | Self::Ltr { file, .. }
            | Self::Rtl { file, .. }
            | Self::Want { file, .. } => file,
        }
    }

    /// The handover that it asks for.
    pub fn ticket(&self) -> Option<Ticket> {
        match *self {
            Self::Ltr { ticket, .. } | Self::Rtl { ticket, .. } => Some(ticket),
            Self::Head { .. } | Self::Get { .. } | Self::Stage { .. } | Self::Want { .. } => None,
        }
    }
}

/// What one side tells of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Facts {
    pub epoch: Epoch,
    /// Of an owner who has not published: length and mtime may change while the generation does not, so the generation is nothing to go by.
    pub phase: Phase,
    pub content: Content,
}

/// What the other side answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Answer {
    /// To `Head`.
    Facts(Facts),
    /// To `Get`: the bytes travel beside it. The facts are those after the reading.
    Bytes(Facts),
    /// To `Stage`: the copy is verified and durable there.
    Staged { epoch: Epoch, generation: Generation },
    /// To `Ltr` and `Rtl`: the asker's wish is durable there, by this call or an earlier one. `content`: what the stub's side goes by, mtime included.
    Granted { ticket: Ticket, content: Content },
    /// This call is not granted, and if it has a ticket, it never will be. `facts`: how the file is there; absent if there is none.
    Refused { ticket: Option<Ticket>, refusal: Refusal, facts: Option<Facts> },
    /// To `Want`: this is offered, durably. It says what [`Call::Ltr`] asks, and is judged as that is.
    Offered { ticket: Ticket, content: Content },
}

/// Why something is not to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    #[error("there is no such file any more, or another one in its place")]
    NoSuchFile,
    #[error("the content has changed")]
    Changed,
    #[error("it is open for writing, or mapped")]
    OpenForWriting,
    #[error("it is open for reading, by who reads an older generation")]
    Open,
    #[error("no verified copy of this generation is staged")]
    NotStaged,
    #[error("this attempt was refused before")]
    RefusedBefore,
    #[error("a handover is being asked for")]
    Handover,
    #[error("the content is owned by the other side")]
    NotOwner,
    #[error("the content is owned by this side")]
    Owner,
    #[error("it is not of this epoch: it was overtaken")]
    Overtaken,
    #[error("the two sides contradict each other: one of them was restored from a backup, or changed below the mount")]
    Diverged,
}
