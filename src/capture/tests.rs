//! The notes: turns, what comes back, what finds no room.

use super::*;
use crate::types::RawHandle;

fn node(ino: u64) -> Inode {
    Inode { id: FileId { ino, birth: 1 }, handle: RawHandle::new(1, &ino.to_ne_bytes()).unwrap() }
}

fn on() -> Capture {
    Capture { on: AtomicBool::new(true), names: true, ..Capture::default() }
}

fn name(capture: &Capture, dir: u64, name: &str) {
    let dir = node(dir);
    let change = capture.names([Some(&dir), None]).unwrap().unwrap();
    change.named(&dir, OsStr::new(name));
}

#[test]
fn off_it_keeps_nothing() {
    let capture = Capture::default();
    assert!(capture.names([Some(&node(1)), None]).unwrap().is_none());
    assert_eq!(capture.waiting(), 0);
}

#[test]
fn many_changes_of_one_name_are_one_in_its_first_turn() {
    let capture = on();
    for changed in ["a", "b", "a"] {
        name(&capture, 1, changed);
    }
    let items: Vec<_> = capture.take(10).into_iter().map(|(_, item)| item).collect();
    let item = |name: &str| Item::Name(node(1).id, name.into());
    assert_eq!(items, [item("a"), item("b")]);
}

#[test]
fn what_is_put_back_keeps_its_turn_and_is_not_doubled() {
    let capture = on();
    for changed in ["a", "b", "c"] {
        name(&capture, 1, changed);
    }
    let taken = capture.take(2);
    // It changes while it is told.
    name(&capture, 1, "a");
    capture.put_back(taken);
    let items: Vec<_> = capture.take(10).into_iter().map(|(_, item)| item).collect();
    assert_eq!(items, ["a", "b", "c"].map(|name| Item::Name(node(1).id, name.into())));
    assert_eq!(capture.noted.lock().marked[&Mark::Directory(node(1).id)].items, 3);
    capture.confirm(items.into_iter().map(|item| (0, item)).collect());
    assert_eq!(capture.noted.lock().marked[&Mark::Directory(node(1).id)].items, 0);
}

#[test]
fn what_finds_no_room_wants_a_comparison() {
    let capture = on();
    for n in 0..ITEMS_MAX + 1 {
        name(&capture, 1, &n.to_string());
    }
    assert!(capture.wants_comparison() && capture.waiting() == ITEMS_MAX);
    capture.comparing().unwrap();
    assert!(!capture.wants_comparison());
}
