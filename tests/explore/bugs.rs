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
    /// release: blocks are freed before the record releasing is durable
    PunchBeforeRecord,
    /// archive: the record dual is stored before the data is durable
    DualBeforeData,
    /// archive: the record takes the attributes of the commit, not those from before the copy
    ChangeUnchecked,
    /// archive: the attributes are taken within the clock's grain
    GrainIgnored,
    /// archive: the kernel is not asked for writers and mappings
    MappingIgnored,
    /// archive: the machine's refusal at the commit is overridden
    CommitForced,
    /// archive: the upload is not noted before it begins
    UploadUnnoted,
    /// archive: the upload's note goes before the record is durable
    UploadForgottenEarly,
    /// keys are made from a counter in the record alone
    KeyReused,
    /// release: the kernel's lease is not asked for
    LeaseIgnored,
    /// release: two of one file at once
    TwoReleases,
    /// release: a failed second attempt calls a file with freed blocks dual
    HolesCalledDual,
    /// a releasing record is taken for a dual one after a crash
    ReleasingTakenForDual,
    /// recall: the record dual is stored before the data is durable
    RecallBeforeData,
    /// recall: a body is written and served without a look at its hash
    BodyUnverified,
    /// recall: the end of a cancelled one is not waited for
    RecallOutlivesCut,
    /// recall: blocks written by one that was cut are not freed
    RecallLeavesBlocks,
    /// recall: the record of one that ended early does not say that there are parts
    PartUnrecorded,
    /// recall: parts that are in the file are believed without a look at their hash
    PartBelieved,
    /// read: availability is not asked again after the read
    ReadUnchecked,
    /// an open for writing is let in before the resident record is durable
    WriteBeforeRecord,
    /// an open for writing of a dual file stores nothing at all
    RecordStale,
    /// a failed sync of the record counts as done
    FailedSyncIgnored,
    /// what a failed sync left unknown is forgotten with the cell
    UnknownForgotten,
    /// a stub is resident in the record before it is cut
    ResidentBeforeCut,
    /// a stub found empty is called resident before the cut is durable
    DemotedBeforeCut,
    /// after a failed sync a demoted record stays stored, unsynced
    DemotionLeft,
    /// the superseded object is not kept in the record
    SupersededDropped,
    /// the superseded object's deletion is noted and done before the new record is durable
    DeletedBeforeClaim,
    /// unlink: the deletion is noted after it
    UnlinkNotedLate,
    /// a deletion does not look at the inode's record
    DeletionUnchecked,
    /// a deletion believes in an unlink that is not durable
    UnlinkBelieved,
    /// a deletion believes in a record that is not durable
    RecordBelieved,
    /// a recall that is being given up is waited for in a loop that does not wait
    WaitSpins,
    /// times set on a file changed beside the mount make its record believe it unchanged
    TimesBelieved,
    /// release: what users did to the file while its object was confirmed is not looked at
    TimesRolledBack,
    /// a start settles a file that is open and has no name like any other
    UnlinkedSettled,
    /// a start believes what the dead process left in the page cache
    StartUnsynced,
}
