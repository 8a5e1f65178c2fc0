//! Planted bugs: each breaks one rule of the protocol, and must be found.

macro_rules! bugs {
    ($($(#[doc = $what:literal])* $name:ident,)*) => {
        /// A rule that is broken on purpose.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Bug {
            $($(#[doc = $what])* $name,)*
        }

        /// All of them, with what each breaks.
        pub const BUGS: &[(Bug, &str)] = &[$((Bug::$name, concat!($($what),*)),)*];
    };
}

bugs! {
    /// a call is granted that was refused before
    RefusalForgotten,
    /// a refusal is told before it is durable
    RefusalUnsaved,
    /// what is not under its path is refused as if it were gone
    StrayRefused,
    /// what was refused of the next epoch is forgotten when this one begins
    RefusalEndsWithEpoch,
    /// an answer to an earlier attempt is believed
    LateAnswerBelieved,
    /// a grant is told before it is durable
    GrantUnsaved,
    /// a call of an epoch that is over is acted upon
    EpochUncompared,
    /// a handover does not raise the epoch
    EpochKept,
    /// rtl: the generation is not compared
    GenerationUncompared,
    /// rtl and offers: writers are not looked for
    WriterIgnored,
    /// rtl is refused while this side offers, and that is not noted
    RefusedWhileOffering,
    /// ltr: a staged copy of an older generation is installed
    StagedUncompared,
    /// a copy is offered of what has changed since
    OfferUncompared,
    /// no answer is taken for a refusal
    NoAnswerIsRefusal,
    /// a plain bucket's 200 is taken for a grant
    PlainAnswerBelieved,
    /// who was refused stays as he is
    RefusedStays,
    /// the intent is noted after the record
    IntentLate,
    /// a published generation is written to
    WriteUnraised,
    /// the first write gives no new generation
    GenerationKept,
    /// writers are let in while it is offered
    WriteWhileOffering,
    /// writers are let in before ownership is granted
    WriteWhileTaking,
    /// blocks are freed before the answer
    FreedWhileOffering,
    /// blocks are freed before the record
    FreedBeforeRecord,
    /// a taker's blocks are freed
    FreedWhileTaking,
    /// a generation is told before its bytes are durable
    PublishedUnsynced,
    /// taken before the bytes are durable
    TakenUnsynced,
    /// taken without the bytes
    TakenWithoutBytes,
    /// who reads the local bytes is not looked for before they are replaced
    HolderIgnored,
    /// bytes are sent without another look at the generation
    BytesUnchecked,
    /// a chunk is kept without a look at its generation and hash
    ChunkUnverified,
    /// facts are believed that are older than what is known
    OldFactsBelieved,
    /// facts are believed of what is being written
    UnpublishedBelieved,
    /// readers are served by a stub's new facts before these are durable
    RefreshUnsaved,
}
