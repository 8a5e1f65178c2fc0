//! How many requests came in, by method and by operation: for tests and reports.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Methods with a count of their own.
const METHODS_MAX: usize = 16;

/// Counts since the server started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// HTTP requests received, by method, those answered by an injected fault included.
    pub by_method: BTreeMap<String, u64>,
    /// S3 operations begun, by S3's name for them (`PutObject` …).
    pub by_op: BTreeMap<&'static str, u64>,
    /// TCP connections accepted.
    pub connections: u64,
    /// Bytes of content that answers to GetObject said they have.
    pub content: u64,
}

impl Requests {
    /// How often operation `name` was begun.
    pub fn op(&self, name: &str) -> u64 {
        self.by_op.get(name).copied().unwrap_or_default()
    }

    /// How many requests had `method`.
    pub fn method(&self, method: &str) -> u64 {
        self.by_method.get(method).copied().unwrap_or_default()
    }
}

#[derive(Debug, Default)]
pub struct Counters {
    by_method: Mutex<BTreeMap<String, u64>>,
    by_op: Mutex<BTreeMap<&'static str, u64>>,
    connections: AtomicU64,
    content: AtomicU64,
}

impl Counters {
    pub fn count_content(&self, bytes: Option<i64>) {
        self.content.fetch_add(bytes.and_then(|bytes| bytes.try_into().ok()).unwrap_or(0), Ordering::Relaxed);
    }

    pub fn count(&self, op: &'static str) {
        *self.by_op.lock().entry(op).or_default() += 1;
    }

    pub fn count_method(&self, method: &hyper::Method) {
        let mut counts = self.by_method.lock();
        if let Some(count) = counts.get_mut(method.as_str()) {
            *count += 1;
        } else {
            // An S3 client uses five methods; whatever else comes shares one entry.
            let name = if counts.len() < METHODS_MAX { method.as_str() } else { "other" };
            *counts.entry(name.to_owned()).or_default() += 1;
        }
    }

    pub fn count_connection(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub fn read(&self) -> Requests {
        Requests {
            by_method: self.by_method.lock().clone(),
            by_op: self.by_op.lock().clone(),
            connections: self.connections.load(Ordering::Relaxed),
            content: self.content.load(Ordering::Relaxed),
        }
    }
}
