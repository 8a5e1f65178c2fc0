//! What happens to single files, for whoever watches one (`tierfs trace`).
//!
//! Invariant: while nobody watches anything, a note costs one load of a counter; nothing is remembered of files that nobody watches.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{Cell, Engine, EngineError, Moved, state_of};
use crate::admission::Requester;
use crate::types::FileId;

/// Files watched at a time; the one asked for longest ago goes.
const FILES_MAX: usize = 64;
/// Bytes of one file's events, so that an attribute can hold them.
const BYTES_MAX: usize = 48 << 10;
/// A file that nobody has asked for so long is not watched any more.
const WATCHED_FOR: Duration = Duration::from_secs(30);

/// The files that are watched.
#[derive(Default)]
pub struct Tracer {
    watched: AtomicUsize,
    files: Mutex<HashMap<FileId, Events>>,
}

struct Events {
    /// The number of the next event.
    next: u64,
    lines: VecDeque<String>,
    bytes: usize,
    asked: Instant,
}

impl Tracer {
    /// Notes what happened to a file, if that is watched. `what` makes an object.
    pub fn note(&self, file: FileId, what: impl FnOnce() -> Value) {
        if self.watched.load(Ordering::Relaxed) == 0 {
            return;
        }
        {
            let mut files = self.files.lock();
            let Some(events) = files.get(&file) else { return };
            if events.asked.elapsed() > WATCHED_FOR {
                files.remove(&file);
                self.watched.store(files.len(), Ordering::Relaxed);
                return;
            }
        }
        // Not under the lock: it may take others, a file's too, and who notes something may hold that already.
        let mut what = what();
        let mut files = self.files.lock();
        let Some(events) = files.get_mut(&file) else { return };
        if let Some(object) = what.as_object_mut() {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            object.insert("n".into(), events.next.into());
            object.insert("time".into(), (now.as_millis() as f64 / 1e3).into());
        }
        events.next += 1;
        let line = what.to_string();
        events.bytes += line.len() + 1;
        events.lines.push_back(line);
        while events.bytes > BYTES_MAX {
            let Some(oldest) = events.lines.pop_front() else { break };
            events.bytes -= oldest.len() + 1;
        }
    }

    /// The events of a file so far, one JSON object a line, numbered from 0 by `n`: the newest, as many as fit. From the first time on it is watched.
    pub fn read(&self, file: FileId) -> Vec<u8> {
        let mut files = self.files.lock();
        let now = Instant::now();
        files.retain(|_, events| now.duration_since(events.asked) <= WATCHED_FOR);
        if files.len() >= FILES_MAX
            && !files.contains_key(&file)
            && let Some(oldest) = files.iter().min_by_key(|(_, events)| events.asked).map(|(file, _)| *file)
        {
            files.remove(&oldest);
        }
        let events = files.entry(file).or_insert(Events { next: 0, lines: VecDeque::new(), bytes: 0, asked: now });
        events.asked = now;
        let mut text = Vec::with_capacity(events.bytes);
        for line in &events.lines {
            text.extend_from_slice(line.as_bytes());
            text.push(b'\n');
        }
        self.watched.store(files.len(), Ordering::Relaxed);
        text
    }
}

/// A requester as events show him.
pub fn shown(who: &Requester) -> Value {
    json!({ "uid": who.uid, "pid": who.pid, "program": who.program })
}

impl Engine {
    /// A transfer has begun.
    pub(super) fn note_begun(&self, file: FileId, what: Moved) {
        self.trace.note(file, || json!({ "event": "begun", "transfer": what.as_str() }));
    }

    /// A transfer has ended. Not under the cell's lock.
    pub(super) fn note_ended(&self, cell: &Cell, what: Moved, error: Option<&EngineError>) {
        self.totals.note_end(what, error);
        self.trace.note(cell.node.id, || {
            let state = state_of(&cell.lock());
            let error = error.map(ToString::to_string);
            json!({ "event": "ended", "transfer": what.as_str(), "error": error, "state": state.as_str() })
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(tracer: &Tracer, file: FileId) -> Vec<Value> {
        let text = String::from_utf8(tracer.read(file)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn only_what_is_watched_is_remembered_and_no_more_than_fits() {
        let tracer = Tracer::default();
        let (file, other) = (FileId { ino: 1, birth: 1 }, FileId { ino: 2, birth: 1 });
        tracer.note(file, || panic!("nobody watches"));
        assert!(lines(&tracer, file).is_empty());
        tracer.note(other, || panic!("nobody watches this one"));
        for n in 0..2_000 {
            tracer.note(file, || json!({ "event": "x".repeat(100), "k": n }));
        }
        let found = lines(&tracer, file);
        assert!((100..500).contains(&found.len()), "{}", found.len());
        assert!(found.iter().zip(found.iter().skip(1)).all(|(a, b)| a["n"].as_u64().unwrap() + 1 == b["n"]));
        assert_eq!(found.last().unwrap()["n"], 1_999);
        for ino in 3..3 + 2 * FILES_MAX as u64 {
            tracer.read(FileId { ino, birth: 1 });
        }
        assert_eq!(tracer.files.lock().len(), FILES_MAX);
    }
}
