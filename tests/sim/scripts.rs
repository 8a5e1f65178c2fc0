//! Small fixed workloads: each is repeated with every fault and every crash at every one of its operations.

use tierfs::engine::JobKind;

use crate::client::Do::{self, *};
use crate::client::How;

/// Files 0 (one chunk) and 1 (two chunks) are there at first, and two more.
pub fn all() -> Vec<(&'static str, Vec<Vec<Do>>)> {
    let migrate = |name| Job(name, JobKind::Migrate);
    vec![
        ("migrate", vec![vec![migrate(0), Look(0)]]),
        (
            "a reader of a stub meets a writer",
            vec![vec![
                migrate(1),
                Open(1, How::Read),
                Open(1, How::Both),
                ReadAll(1, 40_000),
                Write(0, 0, 700),
                Close(0),
                ReadAll(0, 40_000),
            ]],
        ),
        (
            "a cutting open meets a removal and a new file",
            vec![
                vec![Job(0, JobKind::ArchiveOnly), Open(0, How::Cut), Append(0, 40), Close(0)],
                vec![Wait(40), Unlink(0), Create(0), Append(0, 700), Sync(0), ReadAll(0, 5000), Close(0), Look(0)],
                vec![Wait(200), Unlink(0), Create(0), Append(0, 700), Sync(0), ReadAll(0, 5000), Close(0), Look(0)],
            ],
        ),
        ("migrate large", vec![vec![migrate(1)]]),
        ("archive then release", vec![vec![Job(0, JobKind::ArchiveOnly), Wait(50), Job(0, JobKind::Release)]]),
        ("read a small stub", vec![vec![migrate(0), Open(0, How::Read), ReadAll(0, 5000), Close(0)]]),
        (
            "read a large stub",
            vec![vec![migrate(1), Open(1, How::Read), Read(0, 900, 700), ReadAll(0, 40_000), Close(0)]],
        ),
        ("recall", vec![vec![migrate(1), Job(1, JobKind::Recall), Look(1)]]),
        (
            "write a dual file",
            vec![vec![
                Job(0, JobKind::ArchiveOnly),
                Open(0, How::Write),
                Write(0, 333, 40),
                Sync(0),
                Append(0, 700),
                Close(0),
                migrate(0),
            ]],
        ),
        ("write a stub", vec![vec![migrate(1), Open(1, How::Both), Write(0, 900, 700), Sync(0), Close(0), Look(1)]]),
        (
            "write to parts of a stub",
            vec![vec![
                migrate(1),
                Open(1, How::Both),
                Write(0, 333, 5000),
                Read(0, 333, 17_000),
                Write(0, 900, 700),
                Append(0, 40),
                Truncate(1, 70_000),
                Wait(3000),
                Write(0, 0, 17_000),
                ReadAll(0, 40_000),
                Sync(0),
                Close(0),
                migrate(1),
            ]],
        ),
        (
            "write to a stub that is read",
            vec![
                vec![migrate(1), Open(1, How::Write), Write(0, 900, 5000), Write(0, 333, 40), Close(0), Look(1)],
                vec![Wait(30), Open(1, How::Read), ReadAll(0, 5000), Close(0), Job(1, JobKind::Recall)],
            ],
        ),
        (
            "write all of a stub",
            vec![vec![migrate(0), Open(0, How::Write), Write(0, 0, 17_000), Write(0, 900, 17_000), Close(0), Look(0)]],
        ),
        ("cut a stub", vec![vec![migrate(1), Truncate(1, 0), Look(1), Open(1, How::Write), Append(0, 700), Close(0)]]),
        ("empty a stub by opening it", vec![vec![migrate(0), Open(0, How::Cut), Append(0, 40), Sync(0), Close(0)]]),
        ("shorten a stub", vec![vec![migrate(1), Truncate(1, 16_384), Truncate(1, 70_000), migrate(1)]]),
        (
            "times of a stub",
            vec![vec![migrate(0), Times(0), Look(0), Open(0, How::Read), ReadAll(0, 5000), Close(0), Look(0)]],
        ),
        (
            "times after a release",
            vec![
                vec![Job(0, JobKind::ArchiveOnly), Job(0, JobKind::Release), Times(0), Look(0)],
                vec![Wait(40), Times(0), Times(0), Times(0)],
            ],
        ),
        ("remove a stub", vec![vec![migrate(0), Unlink(0), Create(0), Append(0, 40), Close(0)]]),
        (
            "remove a file that is read",
            vec![vec![migrate(1), Open(1, How::Read), Unlink(1), ReadAll(0, 40_000), Close(0), Wait(9000)]],
        ),
        ("rename over a stub", vec![vec![migrate(1), migrate(0), Rename(0, 1), Look(1)]]),
        (
            "two names",
            vec![vec![Link(0, 4), migrate(4), Unlink(0), Open(4, How::Write), Append(0, 40), Close(0), Unlink(4)]],
        ),
        (
            "a writer meets an archive",
            vec![vec![migrate(1)], vec![Open(1, How::Write), Write(0, 0, 40), Sync(0), Close(0)]],
        ),
        (
            "a reader meets a release",
            vec![vec![migrate(0), migrate(0)], vec![Open(0, How::Read), ReadAll(0, 5000), Close(0)]],
        ),
        (
            "a cut meets a recall",
            vec![vec![migrate(1), Job(1, JobKind::Recall)], vec![Wait(200), Truncate(1, 0), Look(1)]],
        ),
        ("pack one and read it", vec![vec![migrate(0), Open(0, How::Read), ReadAll(0, 5000), Close(0), Look(0)]]),
        ("pack several", vec![vec![migrate(0), Look(0)], vec![migrate(2)], vec![migrate(3)]]),
        (
            "pack several, write to one and remove one",
            vec![
                vec![migrate(0), Open(0, How::Write), Write(0, 333, 40), Sync(0), Close(0), migrate(0), Look(0)],
                vec![migrate(2), Job(2, JobKind::Recall), Unlink(2), Create(2), Append(0, 700), Close(0), migrate(2)],
            ],
        ),
        (
            "pack what a writer and a removal meet",
            vec![
                vec![migrate(0), Look(0)],
                vec![migrate(2)],
                vec![Open(0, How::Write), Write(0, 0, 40), Sync(0), Close(0)],
                vec![Wait(30), Unlink(2)],
            ],
        ),
        ("a removal meets a migration", vec![vec![migrate(1)], vec![Wait(30), Unlink(1)]]),
        (
            "new files",
            vec![vec![Create(5), Append(0, 700), Sync(0), Close(0), Command(5, "migrate"), Rename(5, 4), Look(4)]],
        ),
    ]
}

/// The seed in which the users of a workload meet at the worst moment, where one is known.
pub fn first_seed(name: &str) -> u64 {
    match name {
        // It cut the new file without any fault.
        "a cutting open meets a removal and a new file" => 63,
        // Such seeds pack (`schedule`).
        _ if name.starts_with("pack") => 6,
        // Of "times after a release" too.
        _ => 5,
    }
}
