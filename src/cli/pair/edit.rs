//! `tierfs pair edit`.

use std::path::PathBuf;

use clap::Args;

use super::exit::{self, CliError, Exit};
use super::{ChunkSize, Global, RecallRetention, as_json, capabilities, claims, output, print};
use crate::pair::{AfterRecall, MetaSyncRole, Pair, RemoteRole, Store, WhenArchived, syntax};
use crate::types::{PairName, RecallPolicy};

/// Change a pair. What is not named stays.
///
/// The name and the four identifiers (clusters, share, bucket and prefix) cannot change: stubs carry them. A running mount is
/// told, and what begins from then on goes by the change (meta_sync_role: from the next mount on). The file is written anew, so comments in
/// it are lost; editing it by hand is fine too, and `tierfs pair reload` has the mount read it.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs pair edit cold --endpoint http://10.0.0.1:9000 --endpoint http://10.0.0.2:9000\n  \
     tierfs pair edit cold --retention 7d\n  \
     tierfs pair edit cold --credentials-file ''     (back to the SDK's standard chain)"))]
pub struct Edit {
    /// Name of the pair.
    name: PairName,
    #[command(flatten)]
    changes: Changes,
    /// Store the change without trying the endpoint.
    #[arg(long)]
    no_probe: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Changes {
    /// Replaces all endpoints; repeat it for several.
    #[arg(long = "endpoint", value_name = "URL")]
    endpoints: Vec<String>,
    /// gfs or gpeer; refused while files hang on the pair.
    #[arg(long, value_name = "gfs|gpeer")]
    role: Option<RemoteRole>,
    /// master, slave, or empty for neither.
    #[arg(long, value_name = "master|slave")]
    meta_sync: Option<String>,
    /// Region to sign requests for.
    #[arg(long, value_parser = syntax::region)]
    region: Option<String>,
    /// File with the keys; empty for the SDK's standard chain.
    #[arg(long, value_name = "FILE")]
    credentials_file: Option<PathBuf>,
    /// Profile in that file; empty for the standard one.
    #[arg(long, value_name = "NAME")]
    credentials_profile: Option<String>,
    /// Unit of verification, for files archived from now on; or auto.
    #[arg(long, value_name = "SIZE", value_parser = super::chunk_size)]
    chunk_size: Option<ChunkSize>,
    /// How long superseded and deleted objects are kept.
    #[arg(long, value_name = "DURATION", value_parser = super::retention)]
    retention: Option<u64>,
    /// What becomes of the object of a file that was recalled as a whole: delete (after --recall-retention) or keep.
    #[arg(long, value_name = "delete|keep")]
    after_recall: Option<AfterRecall>,
    /// How long it is kept before that; empty: as --retention says.
    #[arg(long, value_name = "DURATION", value_parser = super::recall_retention)]
    recall_retention: Option<RecallRetention>,
    /// What a read of a stub brings back: partial (what is read, and what will be), progressive (the rest follows), full (all of it first) or
    /// pass-through (served, and nothing stays).
    #[arg(long, value_name = "HOW")]
    recall: Option<RecallPolicy>,
    /// Whether who reads content in an archive class is told (fail) or waits (wait) while it is restored.
    #[arg(long, value_name = "fail|wait")]
    archived: Option<WhenArchived>,
    /// Days a restored object can be read.
    #[arg(long, value_name = "DAYS", value_parser = syntax::restore_days)]
    restore_days: Option<u32>,
    /// Whether small files that are archived together from now on share an object.
    #[arg(long, value_name = "true|false", value_parser = syntax::yes_or_no)]
    pack: Option<bool>,
    /// Which files are small: those shorter than this, 4KiB to 1MiB.
    #[arg(long, value_name = "SIZE", value_parser = super::pack_below)]
    pack_below: Option<u32>,
}

impl Edit {
    pub(super) fn run(&self, global: &Global, store: &Store) -> Result<Exit, CliError> {
        let old = store.load(&self.name)?;
        let new = self.changes.applied_to(old.clone())?;
        let reached_anew = new.endpoints != old.endpoints
            || new.region != old.region
            || new.credentials_file != old.credentials_file
            || new.credentials_profile != old.credentials_profile;
        let known = capabilities::load(&global.state_dir, &self.name);
        // What a share's gateway is asked first, a store was not.
        let asked_anew = new.role == RemoteRole::Gpeer && known.is_none_or(|known| known.peer.is_none());
        let probed = match (reached_anew || asked_anew, self.no_probe) {
            (false, _) => known,
            (true, true) => known.filter(|_| !reached_anew),
            (true, false) => Some(super::probe(global, &new)?),
        };
        // Applied to what is stored now, not to what was stored when we looked.
        let apply = |pair: Pair| {
            self.changes.applied_to(pair).map_err(|error| crate::pair::PairError::Value(error.to_string()))
        };
        let new = store.edit(&self.name, apply, &claims)?;
        if reached_anew && probed.is_none() {
            capabilities::forget(&global.state_dir, &self.name)?;
        }
        let told = super::reload::tell_mount(&new);
        if global.json {
            output::json(&as_json(&new, probed));
        } else {
            print(&new, probed);
        }
        match told {
            Ok(told) => {
                if let Some(told) = told {
                    output::note(&format!("tierfs: {}", super::reload::said(&told)));
                }
                Ok(Exit::Done)
            }
            // Stored it is, and it counts from the next mount on.
            Err(error) => {
                output::note(&format!("tierfs: the pair is stored, and the mount did not take it over: {error}"));
                Ok(Exit::Partial)
            }
        }
    }
}

impl Changes {
    fn applied_to(&self, mut pair: Pair) -> Result<Pair, CliError> {
        let usage = |option: &'static str| move |reason: String| CliError::Usage(format!("{option}: {reason}"));
        if !self.endpoints.is_empty() {
            pair.endpoints =
                syntax::endpoints(self.endpoints.iter().map(String::as_str)).map_err(usage("--endpoint"))?;
        }
        if let Some(role) = self.role {
            pair.role = role;
        }
        if let Some(word) = &self.meta_sync {
            pair.meta_sync = match word.as_str() {
                "" => None,
                word => Some(word.parse::<MetaSyncRole>().map_err(usage("--meta-sync"))?),
            };
        }
        if let Some(region) = &self.region {
            pair.region.clone_from(region);
        }
        if let Some(file) = &self.credentials_file {
            pair.credentials_file =
                if file.as_os_str().is_empty() { None } else { Some(super::credentials_file(file)?) };
        }
        if let Some(profile) = &self.credentials_profile {
            pair.credentials_profile = match profile.as_str() {
                "" => None,
                profile => Some(syntax::credentials_profile(profile).map_err(usage("--credentials-profile"))?),
            };
        }
        if let Some(size) = self.chunk_size {
            pair.chunk_size = size.0;
        }
        if let Some(seconds) = self.retention {
            pair.retention_s = seconds;
        }
        if let Some(after) = self.after_recall {
            pair.after_recall = after;
        }
        if let Some(kept) = self.recall_retention {
            pair.recall_retention_s = kept.0;
        }
        if let Some(recall) = self.recall {
            pair.recall = recall;
        }
        if let Some(archived) = self.archived {
            pair.archived = archived;
        }
        if let Some(days) = self.restore_days {
            pair.restore_days = days;
        }
        if let Some(pack) = self.pack {
            pair.pack = pack;
        }
        if let Some(below) = self.pack_below {
            pair.pack_below = below;
        }
        pair.check().map_err(usage("--pack"))?;
        Ok(pair)
    }
}
