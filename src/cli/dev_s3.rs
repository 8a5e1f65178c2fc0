//! `tierfs dev-s3`: the embedded S3 endpoint by itself.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::exit::{self, CliError, Exit};
use super::{Global, daemon, output};
use crate::pair::units::parse_duration;

/// Serve a directory as an S3 endpoint, for trials and tests.
///
/// Takes the credentials it is started with from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (any pair will do; give the
/// same ones to the mount) and makes missing buckets. Prints "listening on http://ADDR" once it can be used, and serves
/// until SIGINT or SIGTERM.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  AWS_ACCESS_KEY_ID=dev AWS_SECRET_ACCESS_KEY=devsecret tierfs dev-s3 /srv/objects --listen 127.0.0.1:9000\n  \
     tierfs dev-s3 /tmp/objects --listen 127.0.0.1:0     (a free port, printed)"))]
pub struct DevS3 {
    /// Directory for the objects; made if it is missing.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9000")]
    listen: SocketAddr,
    /// How long a restore of an object in an archive class (GLACIER, DEEP_ARCHIVE) takes.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse_duration)]
    restore_after: u64,
}

/// What the endpoint is to do.
#[derive(Clone, Debug)]
pub struct DevS3Args {
    /// Absolute.
    pub dir: PathBuf,
    pub listen: SocketAddr,
    pub restore_after: Duration,
}

impl DevS3 {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        let cannot = |error: std::io::Error| CliError::Failed(format!("cannot serve {}: {error}", self.dir.display()));
        std::fs::create_dir_all(&self.dir).map_err(cannot)?;
        let dir = std::fs::canonicalize(&self.dir).map_err(cannot)?;
        let json = global.json;
        daemon::dev_s3(
            &DevS3Args { dir, listen: self.listen, restore_after: Duration::from_secs(self.restore_after) },
            &|address| {
                if json {
                    output::json(&serde_json::json!({ "listening": format!("http://{address}") }));
                } else {
                    output::line(&format!("listening on http://{address}"));
                }
            },
        )?;
        Ok(Exit::Done)
    }
}
