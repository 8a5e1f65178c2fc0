//! The simulated object store.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tierfs::ports::*;
use tierfs::record::{PackName, place_of};
use tierfs::remote::pack::{Index, TRAILER_LEN};
use tierfs::types::{ByteRange, ObjectKey, Timestamp};

use crate::bugs::Bug;
use crate::plan::{Fault, Kind};
use crate::share::record_of;
use crate::world::{Object, State, World};

pub struct SimRemote {
    pub world: Arc<World>,
    pub life: u32,
    pub chunk_size: u64,
}

fn error(kind: RemoteErrorKind, operation: &'static str, key: &ObjectKey) -> RemoteError {
    RemoteError { kind, operation, object: key.to_string(), endpoint: "simulated".into(), detail: format!("{kind:?}") }
}

impl SimRemote {
    /// One request: the time it takes, then its effect, then the time that the answer takes. A process that died gets none.
    async fn ask<T>(
        &self,
        kind: Kind,
        operation: &'static str,
        key: &ObjectKey,
        act: impl FnOnce(&mut State, Option<Fault>) -> Result<T, RemoteErrorKind>,
    ) -> RemoteResult<T> {
        self.world.pause().await;
        let tell = || format!("{operation} {key}");
        let answered = match self.world.step(self.life, kind, tell) {
            Err(_) => None,
            Ok((mut state, fault)) => {
                arrive(&mut state);
                let slow = matches!(
                    fault,
                    Some(Fault::Before(RemoteErrorKind::TimedOut) | Fault::After(RemoteErrorKind::TimedOut))
                );
                let answer = match fault {
                    Some(Fault::Before(kind)) => Err(kind),
                    Some(Fault::After(kind)) => act(&mut state, None).and(Err(kind)),
                    fault => act(&mut state, fault),
                };
                Some((answer, slow))
            }
        };
        let Some((answer, slow)) = answered else { return std::future::pending().await };
        if slow {
            tokio::time::sleep(std::time::Duration::from_secs(30)).await;
        }
        self.world.pause().await;
        answer.map_err(|kind| error(kind, operation, key))
    }
}

fn delete(state: &mut State, key: &ObjectKey) {
    check_deletion(state, key);
    if state.objects.remove(key).is_some() {
        state.stats.deletions += 1;
    }
}

/// What was given up and happens now.
fn arrive(state: &mut State) {
    let now = state.now();
    let (due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut state.late).into_iter().partition(|(at, _)| *at <= now);
    state.late = later;
    for (_, key) in due {
        state.tell(|| format!("late: delete {key}"));
        state.stats.count("late deletion");
        delete(state, &key);
    }
}

/// An object must stay as long as any record that may survive names it.
fn check_deletion(state: &mut State, key: &ObjectKey) {
    let inodes: Vec<u64> = state.disk.seen.nodes.keys().copied().collect();
    let base = key.0.strip_suffix(tierfs::record::MANIFEST_SUFFIX).unwrap_or(&key.0);
    let mut named_by = None;
    for ino in inodes {
        let mut look = |node: Option<&crate::disk::Node>| {
            let needs =
                |key: &ObjectKey| key.0 == base || place_of(key).is_some_and(|place| place.pack.key().0 == base);
            let names = |node| record_of(node).is_some_and(|record| record.object.is_some_and(|o| needs(&o.key)));
            if node.is_some_and(names) {
                named_by = Some(ino);
            }
        };
        // A file that is open without a name, too.
        look(state.disk.seen.nodes.get(&ino));
        state.disk.outcomes(ino, look);
    }
    if let Some(ino) = named_by {
        state.broken(format!("{key} is deleted while a record of file {ino} that names it may survive"));
    }
}

/// How many files share a pack.
fn members_of(pack: &[u8]) -> usize {
    let len = Index::len_of(&pack[pack.len() - TRAILER_LEN..], pack.len() as u64).expect("it is a pack");
    let index = Index::decode(&pack[pack.len() - len as usize..], pack.len() as u64).expect("it is a pack");
    index.members().len()
}

/// The bytes that a record's key stands for, a pack's member included.
pub fn stored(state: &State, key: &ObjectKey) -> Option<Bytes> {
    let Some(place) = place_of(key) else { return Some(state.objects.get(key)?.body.clone()) };
    let pack = &state.objects.get(&place.pack.key())?.body;
    let (from, to) = (place.range.offset as usize, place.range.end() as usize);
    (to <= pack.len()).then(|| pack.slice(from..to))
}

#[async_trait]
impl Remote for SimRemote {
    async fn put(
        &self,
        key: &ObjectKey,
        len: u64,
        source: Arc<dyn ObjectSource>,
        metadata: &[(String, String)],
    ) -> RemoteResult<Stored> {
        let failed = |_| error(RemoteErrorKind::Source, "put", key);
        let mut body = Vec::with_capacity(len as usize);
        let mut offset = 0;
        while offset < len {
            let part = self.chunk_size.min(len - offset);
            body.extend_from_slice(&source.read(ByteRange { offset, len: part }).await.map_err(failed)?);
            offset += part;
            self.world.pause().await;
        }
        self.ask(Kind::Put, "put", key, |state, fault| {
            if state.objects.contains_key(key) {
                state.broken(format!("{key} is written over"));
            }
            if PackName::of_key("p", key).is_some() {
                let members = members_of(&body);
                state.stats.count(if members > 1 { "pack of several" } else { "pack of one" });
            }
            let etag = format!("e{}", state.next());
            let manifest = key.0.ends_with(tierfs::record::MANIFEST_SUFFIX);
            let forgets = state.has(Bug::PutsForgotten) || (manifest && state.has(Bug::ManifestsForgotten));
            if state.has(Bug::PutsCut) && body.len() > 1 {
                body.pop();
            }
            // A body that is cut on its way is refused.
            if fault == Some(Fault::Cut) {
                return Err(RemoteErrorKind::Corrupt);
            }
            if !forgets {
                state
                    .objects
                    .insert(key.clone(), Object { body: body.into(), etag: etag.clone(), metadata: metadata.to_vec() });
            }
            Ok(Stored { etag, version: None })
        })
        .await
    }

    async fn get(&self, key: &ObjectKey, range: ByteRange, etag: Option<&str>) -> RemoteResult<Bytes> {
        let etag = etag.map(str::to_owned);
        self.ask(Kind::Get, "get", key, |state, fault| {
            let wrong = state.has(Bug::GetsMixedUp);
            let object = match wrong.then(|| state.objects.values().next()).flatten() {
                Some(other) => other,
                None => state.objects.get(key).ok_or(RemoteErrorKind::NotFound)?,
            };
            if etag.is_some_and(|etag| etag != object.etag) && !wrong {
                return Err(RemoteErrorKind::Conflict);
            }
            let (from, to) = (range.offset as usize, range.end() as usize);
            if to > object.body.len() {
                return Err(RemoteErrorKind::Corrupt);
            }
            let body = object.body.slice(from..to);
            Ok(match fault {
                Some(Fault::Corrupted) => {
                    let mut body = body.to_vec();
                    let at = state.dice.below(body.len() as u64) as usize;
                    body[at] ^= 1 << state.dice.below(8);
                    body.into()
                }
                Some(Fault::Cut) => body.slice(..body.len() - 1),
                _ => body,
            })
        })
        .await
    }

    async fn head(&self, key: &ObjectKey) -> RemoteResult<ObjectInfo> {
        self.ask(Kind::Head, "head", key, |state, fault| {
            let object = state.objects.get(key).ok_or(RemoteErrorKind::NotFound)?;
            let len = object.body.len() as u64 + u64::from(fault == Some(Fault::Corrupted));
            Ok(ObjectInfo {
                len,
                etag: object.etag.clone(),
                metadata: object.metadata.clone(),
                restore: Default::default(),
            })
        })
        .await
    }

    async fn delete(&self, key: &ObjectKey) -> RemoteResult<()> {
        self.ask(Kind::Delete, "delete", key, |state, fault| {
            if fault == Some(Fault::Late) {
                let at = Timestamp { secs: state.now().secs + 60, nanos: 0 };
                state.late.push((at, key.clone()));
                return Err(RemoteErrorKind::TimedOut);
            }
            delete(state, key);
            Ok(())
        })
        .await
    }

    async fn list(&self, prefix: &str, after: Option<&ObjectKey>) -> RemoteResult<Vec<(ObjectKey, u64)>> {
        let (prefix, after) = (prefix.to_owned(), after.cloned());
        self.ask(Kind::List, "list", &ObjectKey(String::new()), |state, _| {
            let wanted =
                |key: &&ObjectKey| key.0.starts_with(&prefix) && after.as_ref().is_none_or(|after| *key > after);
            let keys = state.objects.keys().filter(wanted).take(1000);
            Ok(keys.map(|key| (key.clone(), state.objects[key].body.len() as u64)).collect())
        })
        .await
    }

    async fn probe(&self) -> RemoteResult<Capabilities> {
        Ok(Capabilities { conditional_put: true, checksums: true, versioning: false })
    }
}
