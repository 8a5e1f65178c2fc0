//! Listings of directories that are larger than a buffer.

use std::collections::BTreeSet;
use std::ffi::OsString;

use tierfs::ports::{DirEntryRef, FileKind, Lower, NewNode};

use super::{ROOT, dir, errno};

pub fn listings_go_on_from_any_offset(lower: &dyn Lower) {
    let sub = dir(lower, "dir");
    let expected: BTreeSet<OsString> = (0..2_000).map(|n| format!("entry number {n:06}").into()).collect();
    for name in &expected {
        lower.make(&sub, name, NewNode::Special(FileKind::Regular, 0), 0o600, &ROOT).expect("mknod");
    }
    let open = lower.open_dir(&sub).expect("open_dir");
    let mut entries = Vec::new();
    let mut offset = 0;
    loop {
        let batch = open.read(offset).expect("readdir");
        assert!(batch.len() < 1_500, "a bounded buffer");
        let Some(last) = batch.last() else { break };
        offset = last.next_offset;
        entries.extend(batch);
    }
    let listed: Vec<&OsString> = entries.iter().map(|entry| &entry.name).collect();
    assert_eq!(listed.len(), 2_002);
    assert!(listed.iter().any(|name| *name == ".") && listed.iter().any(|name| *name == ".."));
    assert!(expected.iter().all(|name| listed.contains(&name)));
    for at in [0, 1, 7, 799, 1_200, 2_000, 2_001] {
        // Another descriptor, as after a restart, and out of order.
        let rest = lower.open_dir(&sub).expect("open_dir").read(entries[at].next_offset).expect("readdir");
        assert_eq!(rest.first().map(|entry| &entry.name), entries.get(at + 1).map(|entry| &entry.name));
        assert_eq!(open.read(entries[at].next_offset).expect("readdir"), rest);
        // What was read ahead is of another place now.
        open.read_ahead();
    }
    let ahead = lower.open_dir(&sub).expect("open_dir");
    let (mut names, mut offset) = (Vec::new(), 0);
    for step in (1..).map(|n| n * 29 % 900) {
        let (before, from) = (names.len(), offset);
        let until = before + step + 1;
        let take = &mut |entry: &DirEntryRef<'_>| {
            let full = names.len() == until;
            if !full {
                names.push(entry.name.to_owned());
                offset = entry.next_offset;
            }
            full
        };
        ahead.each(from, take).expect("readdir");
        if names.len() == before {
            break;
        }
        // Once more is of no use, and does no harm.
        (0..step % 3).for_each(|_| ahead.read_ahead());
    }
    assert!(names.iter().eq(entries.iter().map(|entry| &entry.name)), "nothing is left out or told twice");
    let some = entries.iter().find(|entry| entry.name == "entry number 000042").expect("listed");
    let (node, _) = lower.lookup(&sub, &some.name).expect("lookup");
    assert_eq!((some.ino, some.kind), (node.id.ino, Some(FileKind::Regular)));
    open.sync(false).expect("fsync");
    assert!(errno(open.read(-1)) == libc::EINVAL);
    assert!(open.read(0).expect("works again").len() > 2);
}
