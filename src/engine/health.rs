//! Whether the pair can be used, as its own calls show: every one of them passes here and is passed on unchanged.
//!
//! What is at fault is said once in the log, kept for whoever asks, and forgotten with the next success: of any call, or where something is
//! refused to us, of the same kind, for a store may let us read and not write.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::totals::{Ask, Totals};
use crate::ports::{
    AttributeCall, Body, Capabilities, ObjectInfo, ObjectSource, Remote, RemoteError, RemoteErrorKind, RemoteResult,
    RestoreState, Stored,
};
use crate::types::{ByteRange, ObjectKey};

/// Calls of one kind that fail in a row before a fault that may pass counts as one of the pair.
const PASSING_MAX: u32 = 3;

/// What calls are told apart by.
#[derive(Clone, Copy)]
enum Sort {
    Read,
    Write,
    Delete,
    List,
}

impl Sort {
    fn of(ask: Ask) -> Self {
        match ask {
            Ask::Put => Self::Write,
            Ask::Get | Ask::Stream | Ask::GetAll | Ask::Head | Ask::Restore => Self::Read,
            Ask::Delete | Ask::EndUploads => Self::Delete,
            Ask::List | Ask::ListUploads => Self::List,
        }
    }
}

#[derive(Default)]
struct Standing {
    /// Failures in a row that may pass.
    passing: u32,
    problem: Option<String>,
    /// It is one of rights.
    denied: bool,
}

/// What the calls so far have shown.
#[derive(Default)]
pub struct Health {
    sorts: Mutex<[Standing; 4]>,
}

impl Health {
    /// Why the pair cannot be used at present, if so.
    pub fn problem(&self) -> Option<String> {
        self.sorts.lock().iter().find_map(|standing| standing.problem.clone())
    }

    fn look<T>(&self, sort: Sort, outcome: RemoteResult<T>) -> RemoteResult<T> {
        let mut sorts = self.sorts.lock();
        let standing = &mut sorts[sort as usize];
        match &outcome {
            Err(error) if error.kind.is_configuration() => standing.fails(error),
            Err(error) if error.kind.is_transient() => {
                standing.passing += 1;
                if standing.passing >= PASSING_MAX {
                    standing.fails(error);
                }
            }
            // An answer about one object: the pair works.
            Ok(_) | Err(_) => {
                standing.denied = false;
                for standing in sorts.iter_mut().filter(|standing| !standing.denied) {
                    standing.passing = 0;
                    if standing.problem.take().is_some() {
                        tracing::info!("the pair can be used again");
                    }
                }
            }
        }
        outcome
    }
}

impl Standing {
    fn fails(&mut self, error: &RemoteError) {
        if self.problem.is_none() {
            tracing::error!("the pair cannot be used: {error}");
        }
        self.problem = Some(error.to_string());
        self.denied = error.kind == RemoteErrorKind::Denied;
    }
}

/// A remote that is looked after.
pub(super) struct Watched {
    pub(super) remote: Arc<dyn Remote>,
    pub(super) health: Arc<Health>,
    pub(super) totals: Arc<Totals>,
}

impl Watched {
    /// What is dropped before its answer comes is not counted.
    async fn watch<T>(&self, ask: Ask, call: impl Future<Output = RemoteResult<T>>) -> RemoteResult<T> {
        let begun = Instant::now();
        let outcome = call.await;
        self.totals.note_answer(ask, begun.elapsed(), outcome.as_ref().err().map(|error| error.kind));
        self.health.look(Sort::of(ask), outcome)
    }
}

#[async_trait]
impl Remote for Watched {
    async fn put(
        &self,
        key: &ObjectKey,
        len: u64,
        source: Arc<dyn ObjectSource>,
        metadata: &[(String, String)],
    ) -> RemoteResult<Stored> {
        self.watch(Ask::Put, self.remote.put(key, len, source, metadata)).await
    }

    async fn get(&self, key: &ObjectKey, range: ByteRange, etag: Option<&str>) -> RemoteResult<Bytes> {
        self.watch(Ask::Get, self.remote.get(key, range, etag)).await
    }

    async fn stream(&self, key: &ObjectKey, range: ByteRange, etag: Option<&str>) -> RemoteResult<Box<dyn Body>> {
        self.watch(Ask::Stream, self.remote.stream(key, range, etag)).await
    }

    async fn get_all(&self, key: &ObjectKey, len_max: u64) -> RemoteResult<Bytes> {
        self.watch(Ask::GetAll, self.remote.get_all(key, len_max)).await
    }

    async fn head(&self, key: &ObjectKey) -> RemoteResult<ObjectInfo> {
        self.watch(Ask::Head, self.remote.head(key)).await
    }

    async fn restore(&self, key: &ObjectKey, days: u32) -> RemoteResult<RestoreState> {
        self.watch(Ask::Restore, self.remote.restore(key, days)).await
    }

    async fn delete(&self, key: &ObjectKey) -> RemoteResult<()> {
        self.watch(Ask::Delete, self.remote.delete(key)).await
    }

    async fn list(&self, prefix: &str, after: Option<&ObjectKey>) -> RemoteResult<Vec<(ObjectKey, u64)>> {
        self.watch(Ask::List, self.remote.list(prefix, after)).await
    }

    async fn unfinished_uploads(&self) -> RemoteResult<Vec<ObjectKey>> {
        self.watch(Ask::ListUploads, self.remote.unfinished_uploads()).await
    }

    async fn end_uploads(&self, key: &ObjectKey) -> RemoteResult<()> {
        self.watch(Ask::EndUploads, self.remote.end_uploads(key)).await
    }

    async fn set_attribute(&self, call: &AttributeCall) -> RemoteResult<Option<String>> {
        self.health.look(Sort::Write, self.remote.set_attribute(call).await)
    }

    async fn probe(&self) -> RemoteResult<Capabilities> {
        self.remote.probe().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::RemoteErrorKind::{self, Denied, NoSuchBucket, NotFound, Server, Unreachable};

    fn error(kind: RemoteErrorKind) -> RemoteResult<()> {
        let (object, endpoint, detail) = (String::new(), String::new(), format!("{kind:?}"));
        Err(RemoteError { kind, operation: "get", object, endpoint, detail })
    }

    #[test]
    fn a_problem_lasts_until_what_it_was_about_works() {
        let health = Health::default();
        let says = |piece: &str| health.problem().is_some_and(|problem| problem.contains(piece));
        let _ = health.look(Sort::Write, error(Denied));
        assert!(says("Denied"));
        let _ = health.look(Sort::Read, Ok(()));
        assert!(says("Denied"), "reading is another matter");
        let _ = health.look(Sort::Write, error(NotFound));
        assert_eq!(health.problem(), None);
        for (kind, sick) in [(Unreachable, false), (Server, false), (Unreachable, true), (Server, true)] {
            let _ = health.look(Sort::Read, error(kind));
            assert_eq!(says(&format!("{kind:?}")), sick, "{kind:?}");
        }
        let _ = health.look(Sort::Write, error(NoSuchBucket));
        let _ = health.look(Sort::List, Ok(()));
        assert_eq!(health.problem(), None, "who answers one kind answers all");
        let _ = health.look(Sort::Read, error(Server));
        assert_eq!(health.problem(), None, "the count begins anew");
    }
}
