//! Planted bugs: each makes the world around the engine lie in one way that the engine must not get past the oracle with.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// `fsync` and `sync_node` do nothing.
    FsyncIdle,
    /// `syncfs` does nothing.
    SyncfsIdle,
    /// The sync before blocks are freed does nothing: they are freed before the record is durable.
    LeasedSyncIdle,
    /// A record is sometimes said to be stored and is not.
    RecordsNotSaved,
    /// Leases are granted to everybody.
    LeasesLie,
    /// Inodes are said to be gone that are there.
    HandlesLie,
    /// Times are not put back.
    TimesIgnored,
    /// An upload is confirmed and not stored.
    PutsForgotten,
    /// A manifest is confirmed and not stored.
    ManifestsForgotten,
    /// An upload is confirmed and cut.
    PutsCut,
    /// Another object's bytes are served.
    GetsMixedUp,
    /// Notes are confirmed and not stored.
    NotesForgotten,
    /// An upload's note does not become a deletion.
    DeletionsNotNoted,
    /// Notes are not taken away.
    NotesStay,
    /// A filesystem that was mounted again after a power loss passes for the one before.
    MountsAlike,
}

pub const ALL: [Bug; 15] = [
    Bug::FsyncIdle,
    Bug::SyncfsIdle,
    Bug::LeasedSyncIdle,
    Bug::RecordsNotSaved,
    Bug::LeasesLie,
    Bug::HandlesLie,
    Bug::TimesIgnored,
    Bug::PutsForgotten,
    Bug::ManifestsForgotten,
    Bug::PutsCut,
    Bug::GetsMixedUp,
    Bug::NotesForgotten,
    Bug::DeletionsNotNoted,
    Bug::NotesStay,
    Bug::MountsAlike,
];
