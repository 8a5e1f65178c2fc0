//! Attribute calls: a tag of an object that means something to the other side of a pair, which answers in a header.

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};

use crate::ports::{AttributeCall, RemoteResult};
use crate::types::ObjectKey;

use super::Shared;
use super::deadline::within;
use super::endpoints::Endpoint;
use super::refusal::Refusal;
use super::signer::path;

/// Most of an answer's body that is read, in bytes.
const BODY_MAX: usize = 64 << 10;
/// Longest answer believed, in bytes.
const ANSWER_MAX: usize = 4 << 10;

impl Shared {
    /// Once: whoever asks repeats it until there is an answer.
    pub(super) async fn set_attribute(&self, call: &AttributeCall) -> RemoteResult<Option<String>> {
        let mut attempts = self.endpoints.attempts();
        loop {
            let outcome = self.set_attribute_once(attempts.endpoint(), call).await;
            if let Some(outcome) = attempts.settle(outcome) {
                return outcome;
            }
        }
    }

    async fn set_attribute_once(&self, endpoint: &Endpoint, call: &AttributeCall) -> RemoteResult<Option<String>> {
        let key = ObjectKey(call.key.clone());
        let place = self.place("set attribute", Some(&key), endpoint);
        let url = format!("{}{}?tagging=", endpoint.url.trim_end_matches('/'), path(&self.config.bucket, &call.key));
        let body = format!(
            "<Tagging><TagSet><Tag><Key>{}</Key><Value>{}</Value></Tag></TagSet></Tagging>",
            escaped(&call.tag),
            escaped(&call.value)
        );
        let asked = async {
            let request =
                self.signer.put(url, &call.headers, Bytes::from(body)).await.map_err(|why| place.not_signed(why))?;
            let answer = self.http.send(request).await.map_err(|error| place.not_sent(&error))?;
            let (head, body) = answer.into_parts();
            let said = head.headers.get(call.answer).and_then(|value| value.to_str().ok());
            let said = said.filter(|said| said.len() <= ANSWER_MAX).map(str::to_owned);
            let body = Limited::new(body, BODY_MAX).collect().await;
            if head.status.is_success() {
                return Ok(said);
            }
            let body = body.map(|body| body.to_bytes()).unwrap_or_default();
            let refusal = Refusal::parse(&body);
            Err(place.refused(head.status.as_u16(), &refusal.code, &refusal.message))
        };
        let answered = within(&self.config.timeouts, 0, None, asked).await;
        answered.map_err(|late| place.timed_out(&format!("no answer in {:.1?}", late.after)))?
    }
}

/// Text as XML has it.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
