//! Answers that are read to their end before they are understood (listings, errors, confirmations) are bounded: a store that talks on and
//! on must not take the daemon's memory.

use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextMut;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::SdkBody;
use aws_smithy_runtime_api::client::orchestrator::Metadata;
use http_body_util::Limited;

/// The longest such answer, in bytes: four times a listing of 1,000 keys of 1,024 bytes, each of them escaped.
const ANSWER_MAX: usize = 16 << 20;

#[derive(Debug)]
pub(super) struct Bounded;

impl Intercept for Bounded {
    fn name(&self) -> &'static str {
        "Bounded"
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        // Content comes as it is asked for, and who asked counts it.
        let is_get = config.load::<Metadata>().is_some_and(|operation| operation.name() == "GetObject");
        let streams = is_get && context.response().status().is_success();
        if !streams {
            let body = std::mem::replace(context.response_mut().body_mut(), SdkBody::taken());
            *context.response_mut().body_mut() = SdkBody::from_body_1_x(Limited::new(body, ANSWER_MAX));
        }
        Ok(())
    }
}
