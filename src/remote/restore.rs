//! Archive classes: what a HEAD says of them, and asking for an object's restore.

use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::types::{GlacierJobParameters, RestoreRequest, StorageClass, Tier};

use crate::ports::{RemoteErrorKind, RemoteResult, RestoreState};
use crate::types::ObjectKey;

use super::Shared;
use super::deadline::within;
use super::endpoints::Endpoint;

/// S3's code for a restore that was asked for before.
const IN_PROGRESS: &str = "RestoreAlreadyInProgress";

/// What a HEAD says about reading the object.
pub(super) fn state_of(answer: &HeadObjectOutput) -> RestoreState {
    match answer.restore() {
        Some(restore) if restore.contains("ongoing-request=\"true\"") => return RestoreState::Restoring,
        Some(restore) if restore.contains("ongoing-request=\"false\"") => return RestoreState::Readable,
        _ => {}
    }
    // The second: what intelligent tiering has archived stays in that class by name.
    let archived = matches!(answer.storage_class(), Some(StorageClass::Glacier | StorageClass::DeepArchive))
        || answer.archive_status().is_some();
    if archived { RestoreState::Archived } else { RestoreState::Readable }
}

impl Shared {
    pub(super) async fn restore(&self, key: &ObjectKey, days: u32) -> RemoteResult<RestoreState> {
        let mut attempts = self.endpoints.attempts();
        loop {
            let outcome = self.restore_once(attempts.endpoint(), key, days).await;
            if let Some(outcome) = attempts.settle(outcome) {
                return outcome;
            }
        }
    }

    async fn restore_once(&self, endpoint: &Endpoint, key: &ObjectKey, days: u32) -> RemoteResult<RestoreState> {
        let place = self.place("restore", Some(key), endpoint);
        let tier = GlacierJobParameters::builder().tier(Tier::Standard).build();
        let tier = tier.map_err(|error| place.error(RemoteErrorKind::Rejected, error.to_string()))?;
        let days = i32::try_from(days).unwrap_or(i32::MAX);
        let wish = RestoreRequest::builder().days(days).glacier_job_parameters(tier).build();
        let request = endpoint.client.restore_object().bucket(&self.config.bucket).key(&key.0).restore_request(wish);
        let answer = within(&self.config.timeouts, 0, None, request.send()).await;
        let answer = answer.map_err(|late| place.timed_out(&format!("no answer in {:.1?}", late.after)))?;
        use aws_sdk_s3::error::ProvideErrorMetadata;
        match answer {
            // 202: it has begun; 200: it was restored before, which the next HEAD says.
            Ok(_) => Ok(RestoreState::Restoring),
            Err(error) if error.code() == Some(IN_PROGRESS) => Ok(RestoreState::Restoring),
            Err(error) => match place.failed(&error) {
                // It is in no archive class: it can be read, unless it is of those that are archived by another name.
                error if error.kind == RemoteErrorKind::Archived => Ok(state_of(&self.head_once(endpoint, key).await?)),
                error => Err(error),
            },
        }
    }
}
