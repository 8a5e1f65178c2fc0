//! Archive classes: what lies in one is not read before it was restored.
//!
//! As S3 has it, but that a restore takes as long as the server was told, and is forgotten when the server ends: the object is archived again then.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use hyper::StatusCode;
use parking_lot::Mutex;
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::{Protocol, convert};
use crate::gateway::store::ObjectInfo;

const CLASSES: [&str; 7] = [
    "STANDARD",
    "REDUCED_REDUNDANCY",
    "STANDARD_IA",
    "ONEZONE_IA",
    "GLACIER_IR",
    StorageClass::GLACIER,
    StorageClass::DEEP_ARCHIVE,
];
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How far an object in an archive class is from being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Archived,
    Ongoing,
    Restored { until: SystemTime },
}

struct Begun {
    ready: Instant,
    until: SystemTime,
}

/// The restores that were asked for, of this version of this object in this bucket.
pub struct Restores {
    takes: Duration,
    begun: Mutex<HashMap<[String; 3], Begun>>,
}

/// The class to keep with an object: none for the standard one.
pub fn class(asked: Option<&StorageClass>) -> S3Result<Option<String>> {
    match asked.map(StorageClass::as_str) {
        None | Some(StorageClass::STANDARD) => Ok(None),
        Some(class) if CLASSES.contains(&class) => Ok(Some(class.to_owned())),
        Some(class) => Err(s3_error!(InvalidStorageClass, "there is no storage class {class:?} here")),
    }
}

fn is_archive(info: &ObjectInfo) -> bool {
    matches!(info.attributes.class.as_deref(), Some(StorageClass::GLACIER | StorageClass::DEEP_ARCHIVE))
}

fn name(bucket: &str, info: &ObjectInfo) -> [String; 3] {
    [bucket.to_owned(), info.key.clone(), info.etag.clone()]
}

impl Restores {
    /// Each will take so long.
    pub fn new(takes: Duration) -> Self {
        Self { takes, begun: Mutex::default() }
    }

    /// None where it lies in no archive class.
    fn standing(&self, bucket: &str, info: &ObjectInfo) -> Option<Standing> {
        if !is_archive(info) {
            return None;
        }
        let begun = self.begun.lock();
        Some(match begun.get(&name(bucket, info)) {
            Some(begun) if begun.ready > Instant::now() => Standing::Ongoing,
            Some(begun) if begun.until > SystemTime::now() => Standing::Restored { until: begun.until },
            _ => Standing::Archived,
        })
    }

    /// Refuses to give what is not restored.
    pub fn check(&self, bucket: &str, info: &ObjectInfo) -> S3Result<()> {
        match self.standing(bucket, info) {
            None | Some(Standing::Restored { .. }) => Ok(()),
            Some(Standing::Archived | Standing::Ongoing) => {
                Err(s3_error!(InvalidObjectState, "the object is in an archive class: restore it first"))
            }
        }
    }

    /// What `x-amz-restore` says.
    pub fn header(&self, bucket: &str, info: &ObjectInfo) -> Option<String> {
        match self.standing(bucket, info)? {
            Standing::Archived => None,
            Standing::Ongoing => Some("ongoing-request=\"true\"".to_owned()),
            Standing::Restored { until } => {
                let mut date = Vec::new();
                // Writing to memory does not fail.
                let _ = Timestamp::from(until).format(TimestampFormat::HttpDate, &mut date);
                Some(format!("ongoing-request=\"false\", expiry-date=\"{}\"", String::from_utf8_lossy(&date)))
            }
        }
    }
}

pub async fn restore_object(
    protocol: &Protocol,
    req: S3Request<RestoreObjectInput>,
) -> S3Result<S3Response<RestoreObjectOutput>> {
    let input = req.input;
    let info = protocol.store.head(&input.bucket, &input.key).await.map_err(convert::error)?;
    let days = input.restore_request.and_then(|request| request.days).unwrap_or(1);
    let days = u32::try_from(days).ok().filter(|days| *days > 0);
    let days = days.ok_or_else(|| s3_error!(InvalidArgument, "an object is restored for one day or more"))?;
    let restores = &protocol.restores;
    let status = match restores.standing(&input.bucket, &info) {
        None => return Err(s3_error!(InvalidObjectState, "the object is in no archive class")),
        Some(Standing::Ongoing) => return Err(s3_error!(RestoreAlreadyInProgress)),
        Some(Standing::Restored { .. }) => StatusCode::OK,
        Some(Standing::Archived) => StatusCode::ACCEPTED,
    };
    let takes = if status == StatusCode::OK { Duration::ZERO } else { restores.takes };
    let now = SystemTime::now();
    let mut begun = restores.begun.lock();
    begun.retain(|_, begun| begun.until > now);
    begun.insert(name(&input.bucket, &info), Begun { ready: Instant::now() + takes, until: now + takes + days * DAY });
    let mut answer = S3Response::new(RestoreObjectOutput::default());
    answer.status = Some(status);
    Ok(answer)
}
