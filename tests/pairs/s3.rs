//! A client of a side's gateway, which reaches it as programs on that side do: not over the link.

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, Region, ResponseChecksumValidation};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use tokio::runtime::Runtime;

use crate::link::{ADDRESSES, Link};
use crate::proxy::GATEWAY;

const BUCKET: &str = "share";

pub struct S3 {
    runtime: Runtime,
    client: Client,
}

/// Why something was not done.
#[derive(Debug)]
pub enum Not {
    /// The gateway said so, by this code: it is not done, and never will be.
    Refused(String),
    /// Nobody said anything.
    Unknown(String),
}

impl Not {
    /// For the count.
    pub fn code(&self) -> &str {
        match self {
            Self::Refused(code) => code,
            Self::Unknown(_) => "no answer",
        }
    }
}

fn not<E: ProvideErrorMetadata + std::fmt::Debug, R: std::fmt::Debug>(error: SdkError<E, R>) -> Not {
    match error.as_service_error() {
        Some(said) => Not::Refused(said.code().unwrap_or("none").to_owned()),
        None => Not::Unknown(format!("{error:?}")),
    }
}

impl S3 {
    /// For this thread, which is on `side` from now on.
    pub fn new(link: &Link, side: usize) -> Self {
        link.enter(side);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let keys = aws_credential_types::Credentials::new("root", "rootsecret", None, None, "test");
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(format!("http://{}:{GATEWAY}", ADDRESSES[side]))
            .region(Region::new("us-east-1"))
            .force_path_style(true)
            .credentials_provider(keys)
            // A body that is no version of the file is to be seen, not refused.
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            // What was not answered may have been done: it is not tried twice.
            .retry_config(RetryConfig::disabled())
            .http_client(aws_smithy_http_client::Builder::new().build_http());
        Self { runtime, client: Client::from_conf(config.build()) }
    }

    pub fn put(&self, key: &str, content: &[u8]) -> Result<(), Not> {
        let put = self.client.put_object().bucket(BUCKET).key(key).body(ByteStream::from(content.to_vec()));
        self.runtime.block_on(put.send()).map(drop).map_err(not)
    }

    /// As one part, which may be as short as it likes.
    pub fn put_in_parts(&self, key: &str, content: &[u8]) -> Result<(), Not> {
        let client = &self.client;
        self.runtime.block_on(async {
            // What is begun and not completed has changed nothing.
            let early = |not: Not| Not::Refused(not.code().to_owned());
            let begun = client.create_multipart_upload().bucket(BUCKET).key(key).send().await;
            let id = begun.map_err(not).map_err(early)?.upload_id.unwrap_or_default();
            let part = client.upload_part().bucket(BUCKET).key(key).upload_id(&id).part_number(1);
            let part = part.body(ByteStream::from(content.to_vec())).send().await.map_err(not).map_err(early)?;
            let part = CompletedPart::builder().part_number(1).set_e_tag(part.e_tag).build();
            let parts = CompletedMultipartUpload::builder().parts(part).build();
            let done =
                client.complete_multipart_upload().bucket(BUCKET).key(key).upload_id(&id).multipart_upload(parts);
            done.send().await.map(drop).map_err(not)
        })
    }

    pub fn get(&self, key: &str) -> Result<Vec<u8>, Not> {
        self.runtime.block_on(async {
            let got = self.client.get_object().bucket(BUCKET).key(key).send().await.map_err(not)?;
            let body = got.body.collect().await.map_err(|error| Not::Unknown(error.to_string()))?;
            Ok(body.to_vec())
        })
    }

    pub fn delete(&self, key: &str) -> Result<(), Not> {
        let delete = self.client.delete_object().bucket(BUCKET).key(key);
        self.runtime.block_on(delete.send()).map(drop).map_err(not)
    }

    pub fn rename(&self, from: &str, to: &str) -> Result<(), Not> {
        let source = format!("/{BUCKET}/{from}");
        let put = self.client.put_object().bucket(BUCKET).key(to).customize().mutate_request(move |request| {
            request.headers_mut().insert("x-tierfs-rename-source", source.clone());
        });
        self.runtime.block_on(put.send()).map(drop).map_err(not)
    }
}
