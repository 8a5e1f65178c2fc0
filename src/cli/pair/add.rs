//! `tierfs pair add`.

use std::path::PathBuf;

use clap::Args;

use super::exit::{self, CliError, Exit};
use super::{ChunkSize, Global, as_json, capabilities, output, print};
use crate::pair::{
    AfterRecall, MetaSyncRole, PACK_BELOW_DEFAULT, Pair, REGION_DEFAULT, RESTORE_DAYS_DEFAULT, RETENTION_DEFAULT_S,
    RemoteRole, Store, WhenArchived, syntax,
};
use crate::types::{ClusterId, PairName, RecallPolicy};

/// Bind a share to a remote.
///
/// The endpoint is tried with small objects of its own that are removed again, unless --no-probe. Credentials come from
/// the SDK's standard chain (environment, ~/.aws, instance role) or from the file named; they are never arguments.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs pair add cold --local east:/srv/share --remote west:s3://cold/east --endpoint http://127.0.0.1:9000\n  \
     tierfs pair add cold --local east:/srv/share --remote west:s3://cold \\\n      \
     --endpoint https://s3-a.west --endpoint https://s3-b.west \\\n      \
     --credentials-file /etc/tierfs/credentials --credentials-profile west --retention 7d"))]
pub struct Add {
    /// Name of the pair: letters, digits, '-', '_' and '.'.
    name: PairName,
    /// This cluster's name and the share's directory.
    #[arg(long, value_name = "CLUSTER:/SHARE", value_parser = syntax::local)]
    local: (ClusterId, PathBuf),
    /// The other cluster's name, and bucket and prefix there.
    #[arg(long, value_name = "CLUSTER:s3://BUCKET/PREFIX", value_parser = syntax::remote)]
    remote: (ClusterId, String, String),
    /// Where the remote is reached, http(s)://host[:port]; repeat it for several.
    #[arg(long = "endpoint", value_name = "URL", required = true)]
    endpoints: Vec<String>,
    /// gfs: a plain object store; gpeer: a share with the same files on a peer cluster.
    #[arg(long, value_name = "gfs|gpeer", default_value = "gfs")]
    role: RemoteRole,
    /// Whether this side pushes names and attributes (master) or takes them (slave).
    #[arg(long, value_name = "master|slave")]
    meta_sync: Option<MetaSyncRole>,
    /// Region to sign requests for.
    #[arg(long, default_value = REGION_DEFAULT, value_parser = syntax::region)]
    region: String,
    /// File with the keys, in the SDK's shared-credentials format.
    #[arg(long, value_name = "FILE")]
    credentials_file: Option<PathBuf>,
    /// Profile in that file, or in the standard one.
    #[arg(long, value_name = "NAME", value_parser = syntax::credentials_profile)]
    credentials_profile: Option<String>,
    /// Unit of verification and of reads of what is remote: a power of two from 64KiB to 64MiB, or auto: 1MiB, up to 8MiB for files
    /// over 64GiB [default: auto].
    #[arg(long, value_name = "SIZE", value_parser = super::chunk_size)]
    chunk_size: Option<ChunkSize>,
    /// How long superseded and deleted objects are kept, like 0, 24h or 7d [default: 24h].
    #[arg(long, value_name = "DURATION", value_parser = super::retention)]
    retention: Option<u64>,
    /// What becomes of the object of a file that was recalled as a whole: delete (after --recall-retention) or keep [default: delete].
    #[arg(long, value_name = "delete|keep")]
    after_recall: Option<AfterRecall>,
    /// How long it is kept before that, like 0, 24h or 7d [default: as --retention].
    #[arg(long, value_name = "DURATION", value_parser = super::retention)]
    recall_retention: Option<u64>,
    /// What a read of a stub brings back: partial (what is read, and what will be), progressive (the rest follows), full (all of it first) or
    /// pass-through (served, and nothing stays) [default: partial].
    #[arg(long, value_name = "HOW")]
    recall: Option<RecallPolicy>,
    /// Whether who reads content in an archive class is told (fail) or waits (wait) while it is restored [default: fail].
    #[arg(long, value_name = "fail|wait")]
    archived: Option<WhenArchived>,
    /// Days a restored object can be read [default: 7].
    #[arg(long, value_name = "DAYS", value_parser = syntax::restore_days)]
    restore_days: Option<u32>,
    /// Store small files that are archived together in one object [default: false].
    #[arg(long, value_name = "true|false", value_parser = syntax::yes_or_no)]
    pack: Option<bool>,
    /// Which files are small: those shorter than this, 4KiB to 1MiB [default: 128KiB].
    #[arg(long, value_name = "SIZE", value_parser = super::pack_below)]
    pack_below: Option<u32>,
    /// Store the pair without trying the endpoint.
    #[arg(long)]
    no_probe: bool,
    /// Accept a second pair for the same share or the same remote place.
    #[arg(long)]
    force: bool,
}

impl Add {
    pub(super) fn run(&self, global: &Global, store: &Store) -> Result<Exit, CliError> {
        let pair = self.pair()?;
        if !pair.local_share.is_dir() {
            output::note(&format!(
                "tierfs: note: {} is no directory yet; make it before you mount",
                pair.local_share.display()
            ));
        }
        // Refused before anything goes over the network; checked again, under the lock, when it is stored.
        store.check(&pair, self.force)?;
        let probed = if self.no_probe { None } else { Some(super::probe(global, &pair)?) };
        if let Err(error) = store.add(&pair, self.force) {
            let _ = capabilities::forget(&global.state_dir, &pair.name);
            return Err(error.into());
        }
        if global.json {
            output::json(&as_json(&pair, probed));
        } else {
            output::line(&format!("pair {} is stored in {}", pair.name, store.path_of(&pair.name).display()));
            print(&pair, probed);
        }
        Ok(Exit::Done)
    }

    fn pair(&self) -> Result<Pair, CliError> {
        let endpoints = syntax::endpoints(self.endpoints.iter().map(String::as_str))
            .map_err(|reason| CliError::Usage(format!("--endpoint: {reason}")))?;
        let pair = Pair {
            name: self.name.clone(),
            local_cluster: self.local.0.clone(),
            local_share: self.local.1.clone(),
            remote_cluster: self.remote.0.clone(),
            bucket: self.remote.1.clone(),
            prefix: self.remote.2.clone(),
            endpoints,
            region: self.region.clone(),
            role: self.role,
            meta_sync: self.meta_sync,
            credentials_file: self.credentials_file.as_deref().map(super::credentials_file).transpose()?,
            credentials_profile: self.credentials_profile.clone(),
            chunk_size: self.chunk_size.and_then(|size| size.0),
            retention_s: self.retention.unwrap_or(RETENTION_DEFAULT_S),
            after_recall: self.after_recall.unwrap_or_default(),
            recall_retention_s: self.recall_retention,
            recall: self.recall.unwrap_or_default(),
            archived: self.archived.unwrap_or_default(),
            restore_days: self.restore_days.unwrap_or(RESTORE_DAYS_DEFAULT),
            pack: self.pack.unwrap_or_default(),
            pack_below: self.pack_below.unwrap_or(PACK_BELOW_DEFAULT),
        };
        pair.check().map_err(|reason| CliError::Usage(format!("--pack: {reason}")))?;
        Ok(pair)
    }
}
