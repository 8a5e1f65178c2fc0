//! What a remote is told: plain values, validated by the floor above.

use std::path::PathBuf;
use std::time::Duration;

use crate::types::PairName;

/// Where the credentials come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialsFrom {
    /// The SDK's standard chain: environment, shared files, web identity, container and machine metadata.
    Chain { profile: Option<String> },
    /// A file in the SDK's shared-credentials format.
    File { path: PathBuf, profile: Option<String> },
}

impl CredentialsFrom {
    /// Where they are looked for, for an error's text.
    pub(super) fn describe(&self) -> String {
        let in_profile = |profile: &Option<String>| match profile {
            Some(profile) => format!(", profile {profile:?}"),
            None => String::new(),
        };
        match self {
            Self::File { path, profile } => format!("credentials file {}{}", path.display(), in_profile(profile)),
            Self::Chain { profile } => format!(
                "standard chain: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws/credentials and ~/.aws/config{}, \
                 web identity, container and machine metadata",
                in_profile(profile)
            ),
        }
    }
}

/// When a request is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Until a connection stands.
    pub connect: Duration,
    /// Without any progress: no byte of the body moves, or the answer does not come after the last was sent.
    pub stall: Duration,
    /// Bytes per second below which a body that does move is given up all the same.
    pub rate_min: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), stall: Duration::from_secs(30), rate_min: 16 << 10 }
    }
}

impl Timeouts {
    /// Most time one request with a body of `len` bytes can take.
    pub(super) fn whole(&self, len: u64) -> Duration {
        self.connect + self.stall + Duration::from_secs(len / self.rate_min.max(1))
    }
}

/// One pair's bucket and how to reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteConfig {
    /// Names the pair in messages.
    pub pair: PairName,
    pub bucket: String,
    /// Without leading or trailing slash; may be empty. `list` and the probe's objects are below it.
    pub prefix: String,
    /// One or more `http(s)://host[:port]`, tried in this order while healthy.
    pub endpoints: Vec<String>,
    pub region: String,
    pub credentials: CredentialsFrom,
    pub timeouts: Timeouts,
    /// Objects up to this many bytes take one PUT, larger ones parts of this size (larger where 10,000 do not suffice).
    pub part_size: u64,
    /// Parts sent at once, over all uploads of this remote: memory is about this times `part_size`.
    pub parts_in_flight: usize,
}

impl RemoteConfig {
    /// A bucket at one endpoint, the rest by default: no prefix, region `us-east-1`, standard chain, parts of 8 MiB, 8 in
    /// flight. Measured: 16 × 16 MiB were no faster.
    pub fn new(pair: PairName, bucket: impl Into<String>, endpoint: impl Into<String>) -> Self {
        Self {
            pair,
            bucket: bucket.into(),
            prefix: String::new(),
            endpoints: vec![endpoint.into()],
            region: "us-east-1".into(),
            credentials: CredentialsFrom::Chain { profile: None },
            timeouts: Timeouts::default(),
            part_size: 8 << 20,
            parts_in_flight: 8,
        }
    }

    /// `name` below the pair's prefix.
    pub(super) fn below_prefix(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.prefix) }
    }
}
