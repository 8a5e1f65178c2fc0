//! Multipart uploads that were begun and neither completed nor ended: they hold space in the bucket that no listing of
//! objects shows.
//!
//! A `delete` ends those of its key, and still is one request for nearly every key, for it knows without asking: this
//! process notes what it begins, and what earlier processes left is listed once for the whole prefix and then from time
//! to time. (An upload that another node leaves behind between two listings stays until the bucket's own rule for
//! unfinished uploads removes it; every administrator should set one.)

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use aws_sdk_s3::types::EncodingType;
use parking_lot::Mutex;

use crate::ports::{RemoteErrorKind, RemoteResult};
use crate::types::ObjectKey;

use super::Shared;
use super::deadline::within;
use super::endpoints::Endpoint;
use super::objects::decoded;

/// How long a listing of leftovers is believed.
const LEFTOVERS_FRESH: Duration = Duration::from_secs(600);
/// Most pages (of 1,000) a listing takes: beyond that the bucket has another problem.
const PAGES_MAX: usize = 20;

type UploadIds = HashSet<String>;

/// What this process knows of one key.
#[derive(Default)]
struct Own {
    ids: UploadIds,
    /// The answer to the beginning is not here yet; a caller who is dropped leaves it so.
    beginning: bool,
    /// An attempt to begin got no answer: an upload may exist whose id nobody knows.
    lost: bool,
}

#[derive(Default)]
pub(super) struct Unfinished {
    own: Mutex<HashMap<ObjectKey, Own>>,
    /// The lock is held while the listing is fetched, so that of many deletions one fetches it and all wait for it.
    leftovers: tokio::sync::Mutex<Option<(Instant, HashMap<String, UploadIds>)>>,
}

impl Unfinished {
    /// An upload of the key is about to begin.
    pub(super) fn begin(&self, key: &ObjectKey) {
        self.own.lock().entry(key.clone()).or_default().beginning = true;
    }

    /// An attempt to begin it was in vain, or only its answer was lost.
    pub(super) fn lost_answer(&self, key: &ObjectKey) {
        self.own.lock().entry(key.clone()).or_default().lost = true;
    }

    /// It began, under this id.
    pub(super) fn begun(&self, key: &ObjectKey, id: &str) {
        let mut own = self.own.lock();
        let entry = own.entry(key.clone()).or_default();
        entry.beginning = false;
        entry.ids.insert(id.to_owned());
    }

    /// The store refused to begin it.
    pub(super) fn refused(&self, key: &ObjectKey) {
        let mut own = self.own.lock();
        if own.get(key).is_some_and(|entry| entry.ids.is_empty() && !entry.lost) {
            own.remove(key);
        }
    }

    /// The upload became an object. True if another one of the same key may be left.
    pub(super) fn completed(&self, key: &ObjectKey, id: &str) -> bool {
        let mut own = self.own.lock();
        let Some(entry) = own.get_mut(key) else { return false };
        entry.ids.remove(id);
        let left = entry.beginning || entry.lost || !entry.ids.is_empty();
        if !left {
            own.remove(key);
        }
        left
    }
}

impl Shared {
    /// Ends all uploads of `key` that are known or may exist.
    pub(super) async fn end_uploads(&self, key: &ObjectKey) -> RemoteResult<()> {
        let left: Vec<String> = {
            let mut leftovers = self.unfinished.leftovers.lock().await;
            if leftovers.as_ref().is_none_or(|(at, _)| at.elapsed() > LEFTOVERS_FRESH) {
                let listed = self.list_uploads(&self.config.below_prefix("")).await?;
                *leftovers = Some((Instant::now(), listed));
            }
            leftovers.as_ref().and_then(|(_, all)| all.get(&key.0)).into_iter().flatten().cloned().collect()
        };
        if !left.is_empty() {
            for id in &left {
                self.abort(key, id).await?;
            }
            if let Some((_, all)) = self.unfinished.leftovers.lock().await.as_mut() {
                all.remove(&key.0);
            }
        }
        self.end_own_uploads(key).await
    }

    /// Ends the uploads of `key` that this process began.
    pub(super) async fn end_own_uploads(&self, key: &ObjectKey) -> RemoteResult<()> {
        let (mut ids, unknown) = match self.unfinished.own.lock().get(key) {
            Some(own) => (own.ids.clone(), own.beginning || own.lost),
            None => return Ok(()),
        };
        if unknown {
            ids.extend(self.list_uploads(&key.0).await?.remove(&key.0).into_iter().flatten());
        }
        for id in &ids {
            self.abort(key, id).await?;
        }
        self.unfinished.own.lock().remove(key);
        Ok(())
    }

    /// Keys with unfinished uploads, in order, as the store tells now.
    pub(super) async fn unfinished_uploads(&self) -> RemoteResult<Vec<ObjectKey>> {
        let mut keys: Vec<_> =
            self.list_uploads(&self.config.below_prefix("")).await?.into_keys().map(ObjectKey).collect();
        keys.sort();
        Ok(keys)
    }

    /// Ends the uploads of `key` that the store tells now.
    pub(super) async fn end_listed_uploads(&self, key: &ObjectKey) -> RemoteResult<()> {
        for id in self.list_uploads(&key.0).await?.remove(&key.0).into_iter().flatten() {
            self.abort(key, &id).await?;
        }
        Ok(())
    }

    /// Ends one upload; one that is no more is success.
    async fn abort(&self, key: &ObjectKey, id: &str) -> RemoteResult<()> {
        let mut attempts = self.endpoints.attempts();
        loop {
            let outcome = self.abort_once(attempts.endpoint(), key, id).await;
            if let Some(outcome) = attempts.settle(outcome) {
                return outcome;
            }
        }
    }

    async fn abort_once(&self, endpoint: &Endpoint, key: &ObjectKey, id: &str) -> RemoteResult<()> {
        let place = self.place("end upload of", Some(key), endpoint);
        let request = endpoint.client.abort_multipart_upload().bucket(&self.config.bucket).key(&key.0);
        let answer = within(&self.config.timeouts, 0, None, request.upload_id(id).send()).await;
        let answer = answer.map_err(|late| place.timed_out(&format!("no answer in {:.1?}", late.after)))?;
        match answer {
            Ok(_) => Ok(()),
            Err(error) if error.raw_response().is_some_and(|raw| raw.status().as_u16() == 404) => {
                let error = place.failed(&error);
                if error.kind == RemoteErrorKind::NoSuchBucket { Err(error) } else { Ok(()) }
            }
            Err(error) => Err(place.failed(&error)),
        }
    }

    /// The unfinished uploads of all keys that start with `prefix`. None where the store cannot or may not tell.
    async fn list_uploads(&self, prefix: &str) -> RemoteResult<HashMap<String, UploadIds>> {
        let mut found: HashMap<String, UploadIds> = HashMap::new();
        let mut marker = None;
        for _ in 0..PAGES_MAX {
            let mut attempts = self.endpoints.attempts();
            let page = loop {
                let outcome = self.list_uploads_once(attempts.endpoint(), prefix, marker.clone()).await;
                if let Some(outcome) = attempts.settle(outcome) {
                    break outcome;
                }
            };
            let (uploads, next) = match page {
                Ok(page) => page,
                Err(error) if matches!(error.kind, RemoteErrorKind::Rejected | RemoteErrorKind::Denied) => {
                    tracing::info!(%error, "unfinished uploads cannot be listed; the bucket's own rule must end them");
                    break;
                }
                Err(error) => return Err(error),
            };
            for (key, id) in uploads {
                found.entry(key).or_default().insert(id);
            }
            if next.is_none() {
                return Ok(found);
            }
            marker = next;
        }
        Ok(found)
    }

    async fn list_uploads_once(
        &self,
        endpoint: &Endpoint,
        prefix: &str,
        marker: Option<(String, String)>,
    ) -> RemoteResult<(Vec<(String, String)>, Option<(String, String)>)> {
        let place = self.place("list uploads of", None, endpoint);
        let (key_marker, id_marker) = marker.unzip();
        let request = endpoint
            .client
            .list_multipart_uploads()
            .bucket(&self.config.bucket)
            .prefix(prefix)
            .set_key_marker(key_marker)
            .set_upload_id_marker(id_marker)
            .encoding_type(EncodingType::Url);
        let answer = within(&self.config.timeouts, 0, None, request.send()).await;
        let answer = answer.map_err(|late| place.timed_out(&format!("no answer in {:.1?}", late.after)))?;
        let answer = answer.map_err(|error| place.failed(&error))?;
        let encoding = answer.encoding_type();
        let uploads = answer.uploads().iter().filter_map(|upload| {
            Some((decoded(upload.key()?, encoding)?.into_owned(), upload.upload_id()?.to_owned()))
        });
        let uploads = uploads.collect();
        let next = match (answer.is_truncated(), answer.next_key_marker(), answer.next_upload_id_marker()) {
            (Some(true), Some(key), id) => {
                decoded(key, encoding).map(|key| (key.into_owned(), id.unwrap_or_default().to_owned()))
            }
            _ => None,
        };
        Ok((uploads, next))
    }
}
