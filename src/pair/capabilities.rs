//! What a pair's endpoint was found to do, kept beside the state so that `pair show` can tell without asking again.
//!
//! A cache and nothing more: safety never depends on it, and a missing or broken file means "not probed".

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::store::write_atomically;
use super::{PairError, PairResult};
use crate::ports::Capabilities;
use crate::types::{PairName, Timestamp};

/// The outcome of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probed {
    /// When, in seconds since 1970.
    pub at_s: i64,
    #[serde(flatten)]
    pub capabilities: Capabilities,
    /// Whether a share's gateway was found where the pair's role says that there is one; `None`: it says so of none.
    #[serde(default)]
    pub peer: Option<bool>,
}

/// What a probe found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub capabilities: Capabilities,
    pub peer: Option<bool>,
}

fn path(state_dir: &Path, name: &PairName) -> PathBuf {
    state_dir.join("pairs").join(format!("{name}.capabilities.json"))
}

/// Notes what a probe found at time `now`.
pub fn save(state_dir: &Path, name: &PairName, found: Found, now: Timestamp) -> PairResult<()> {
    let text = serde_json::to_string(&Probed { at_s: now.secs, capabilities: found.capabilities, peer: found.peer })
        .map_err(|error| PairError::Value(format!("cannot write down the capabilities of pair {name}: {error}")))?;
    write_atomically(&path(state_dir, name), text.as_bytes())
}

/// What the last probe found; `None` where there was none.
pub fn load(state_dir: &Path, name: &PairName) -> Option<Probed> {
    let text = std::fs::read_to_string(path(state_dir, name)).ok()?;
    serde_json::from_str(&text).ok()
}

/// Forgets the probe of a pair that changed or went away.
pub fn forget(state_dir: &Path, name: &PairName) -> PairResult<()> {
    let path = path(state_dir, name);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(PairError::io("remove", &path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_remembered_and_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let name: PairName = "p".parse().unwrap();
        assert_eq!(load(dir.path(), &name), None);
        forget(dir.path(), &name).unwrap();
        let capabilities = Capabilities { conditional_put: true, checksums: true, versioning: false };
        let found = Found { capabilities, peer: Some(false) };
        save(dir.path(), &name, found, Timestamp { secs: 7, nanos: 0 }).unwrap();
        assert_eq!(load(dir.path(), &name), Some(Probed { at_s: 7, capabilities, peer: Some(false) }));
        forget(dir.path(), &name).unwrap();
        assert_eq!(load(dir.path(), &name), None);
    }
}
