//! Where the commands meet the rest of the program: everything that needs a mount, a remote or a record is called here.

use std::path::Path;

use super::exit::CliError;
use super::{DevS3Args, MountArgs, Ready, claims};
use crate::pair::{ClaimCheck, Pair, PairResult};
use crate::ports::Capabilities;
use crate::types::PairName;

/// Mounts the share and serves it until it is unmounted. Calls `ready.ok()` when the mount answers; an error before that
/// is passed on to whoever waits.
pub fn run(args: &MountArgs, ready: &mut Ready) -> Result<(), CliError> {
    let _ = ready;
    Err(CliError::Failed(format!("cannot mount {}: the daemon is not assembled yet", args.share.display())))
}

/// Serves the embedded S3 endpoint until a signal ends it. Calls `listening` with the address it is bound to.
pub fn dev_s3(args: &DevS3Args, listening: &dyn Fn(std::net::SocketAddr)) -> Result<(), CliError> {
    let _ = listening;
    Err(CliError::Failed(format!("cannot serve {}: the endpoint is not assembled yet", args.dir.display())))
}

/// Tries what the pair's endpoint can do. The error is one line without a secret.
pub fn probe(pair: &Pair) -> Result<Capabilities, String> {
    Err(format!("{}: the remote is not assembled yet", pair.endpoints.join(", ")))
}

/// Whether files of the pair's share have content that only the pair can bring back. The share is not mounted with it.
pub fn claims(pair: &Pair) -> PairResult<ClaimCheck> {
    claims::scan(pair, &record_pair)
}

/// The pair that a stored record names; `None` when the record cannot be read, which counts as any pair.
fn record_pair(_path: &Path, _record: &[u8]) -> Option<PairName> {
    None
}
