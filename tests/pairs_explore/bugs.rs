//! Planted bugs: each breaks one rule of the protocol, and must be found, in the world named beside it.

macro_rules! bugs {
    ($($(#[doc = $what:literal])* $name:ident in $world:literal,)*) => {
        /// A rule that is broken on purpose.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Bug {
            $($(#[doc = $what])* $name,)*
        }

        /// All of them, with what each breaks, and the small world in which it is looked for.
        pub const BUGS: &[(Bug, &str, &str)] = &[$((Bug::$name, concat!($($what),*), $world),)*];
    };
}

bugs! {
    /// a call is granted that was refused before
    RefusalForgotten in "migrate, evicted, late",
    /// a refusal is told before it is durable
    RefusalUnsaved in "refused, staged again, crash",
    /// what is not under its path is refused as if it were gone
    StrayRefused in "migrate, stray",
    /// what was refused of the next epoch is forgotten when this one begins
    RefusalEndsWithEpoch in "taken twice, again",
    /// an answer to an earlier attempt is believed
    LateAnswerBelieved in "refused twice, again",
    /// a grant is told before it is durable
    GrantUnsaved in "migrate, write",
    /// a call of an epoch that is over is acted upon
    EpochUncompared in "taken twice, again",
    /// a handover does not raise the epoch
    EpochKept in "migrate, write",
    /// rtl: the generation is not compared
    GenerationUncompared in "take, late",
    /// rtl and offers: writers are not looked for
    WriterIgnored in "migrate, write",
    /// rtl is refused while this side offers, and that is not noted
    RefusedWhileOffering in "both at once, refused, again",
    /// ltr: a staged copy of an older generation is installed
    StagedUncompared in "staged older, again",
    /// a copy is offered of what has changed since
    OfferUncompared in "migrate, write",
    /// no answer is taken for a refusal
    NoAnswerIsRefusal in "migrate, crash",
    /// a plain bucket's 200 is taken for a grant
    PlainAnswerBelieved in "migrate, late",
    /// who was refused stays as he is
    RefusedStays in "take, write",
    /// the intent is noted after the record
    IntentLate in "migrate, crash",
    /// a published generation is written to
    WriteUnraised in "migrate, write",
    /// the first write gives no new generation
    GenerationKept in "migrate, write",
    /// writers are let in while it is offered
    WriteWhileOffering in "migrate, write",
    /// writers are let in before ownership is granted
    WriteWhileTaking in "take, write",
    /// blocks are freed before the answer
    FreedWhileOffering in "migrate, write",
    /// blocks are freed before the record
    FreedBeforeRecord in "migrate, write",
    /// a taker's blocks are freed
    FreedWhileTaking in "take, write",
    /// a generation is told before its bytes are durable
    PublishedUnsynced in "write unsynced, migrate, power",
    /// taken before the bytes are durable
    TakenUnsynced in "migrate, write",
    /// taken without the bytes
    TakenWithoutBytes in "migrate, write",
    /// who reads the local bytes is not looked for before they are replaced
    HolderIgnored in "hold, take",
    /// bytes are sent without another look at the generation
    BytesUnchecked in "take, write",
    /// a chunk is kept without a look at its generation and hash
    ChunkUnverified in "take, late",
    /// facts are believed that are older than what is known
    OldFactsBelieved in "read, write, power",
    /// facts are believed of what is being written
    UnpublishedBelieved in "look, write",
    /// content is thrown away although nobody wants that any more
    EmptiedUnasked in "cut, gives up",
    /// what is offered is thrown away although it is newer than what was to be
    EmptiedUncompared in "cut, migrate, write",
    /// a stub is an empty file's owner before its bytes are cut
    CutLate in "cut, crash",
    /// the same before the cut is durable
    CutUnsynced in "cut, crash",
    /// an offer of what is thrown away is told before it is durable
    OfferedUnsaved in "cut, crash",
    /// what was accepted for somebody is given up before he gets on
    EmptiedUnheld in "cut on both sides",
    /// an emptied file keeps its generation
    EmptiedGenerationKept in "cut, crash",
    /// readers are served by a stub's new facts before these are durable
    RefreshUnsaved in "read, write, power",
}
