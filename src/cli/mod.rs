//! The command line: one file a command; parse, assemble, print.
//!
//! Nothing here decides about files: it asks a running mount (`control`) or starts one ([`daemon`]). Secrets never
//! come in as arguments, which every user of the machine can see.

mod claims;
pub mod daemon;
mod dev_s3;
pub mod exit;
mod failed;
mod files;
pub mod gateway;
mod gc;
mod history;
mod holders;
mod index;
mod info;
mod listing;
mod log;
mod migrate;
pub mod mount;
mod mount_options;
mod mounted_pairs;
mod observe;
mod other_end;
mod output;
mod overview;
mod pair;
mod pin;
mod policy;
mod quota;
mod ready;
mod rebuild;
mod recall;
mod recall_rules;
mod recalls;
mod release;
mod report;
mod save_names;
mod set;
mod sql;
mod status;
mod sync;
mod synced;
mod tasks;
mod top;
mod trace;
mod umount;
mod undelete;
mod verify;
mod why;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::control::protocol::Reply;

pub use dev_s3::DevS3Args;
pub use exit::{CliError, Exit};
pub use gateway::GatewayArgs;
pub use mount::{MountArgs, MountFlags, Policy};
pub use observe::ObserveArgs;
pub use ready::Ready;

/// Moves cold files' content to an S3 store and brings it back on read.
///
/// A share is mounted through tierfs; each file stays in its place with its size, times and owner, while its content is
/// local, remote, or both.
#[derive(Debug, Parser)]
#[command(name = "tierfs", version, after_help = exit::help(
    "  tierfs pair add cold --local east:/srv/share --remote west:s3://cold/east --endpoint http://127.0.0.1:9000\n  \
     tierfs mount /srv/share /mnt/tiered\n  \
     tierfs migrate -r /mnt/tiered/projects/2019\n  \
     tierfs status -r /mnt/tiered\n  \
     tierfs umount /mnt/tiered"))]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Common options")]
pub struct Global {
    /// Directory that holds pairs.d, where each pair is one file NAME.toml.
    #[arg(long, global = true, value_name = "DIR", env = "TIERFS_CONFIG_DIR", default_value = "/etc/tierfs")]
    pub config_dir: PathBuf,
    /// Directory for the journal, logs and control sockets.
    #[arg(long, global = true, value_name = "DIR", env = "TIERFS_STATE_DIR", default_value = "/var/lib/tierfs")]
    pub state_dir: PathBuf,
    /// Print JSON, one object a line, and nothing else on standard output.
    #[arg(long, global = true)]
    pub json: bool,
    /// Say more in the log (-v debug, -vv trace); $TIERFS_LOG takes tracing's filter syntax.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// How the log is written: text for people, json for programs (an object a line).
    #[arg(long, global = true, value_name = "FORMAT", value_enum, default_value_t, env = "TIERFS_LOG_FORMAT")]
    pub log_format: log::LogFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    Mount(mount::MountCommand),
    Umount(umount::Umount),
    Pair(pair::PairCommand),
    Migrate(migrate::Migrate),
    Recall(recall::Recall),
    Recalls(recalls::Recalls),
    Release(release::Release),
    Set(set::Set),
    Pin(pin::Pin),
    Unpin(pin::Unpin),
    Status(status::Status),
    Info(info::Info),
    Verify(verify::Verify),
    Check(verify::Check),
    Failed(failed::FailedCommand),
    Gc(gc::Gc),
    Index(index::IndexCommand),
    Sql(sql::Sql),
    Du(listing::Du),
    Ls(listing::Ls),
    Find(listing::Find),
    Policy(policy::PolicyCommand),
    Why(why::Why),
    Sync(sync::SyncCommand),
    Trace(trace::Trace),
    Tasks(tasks::TasksCommand),
    Top(top::Top),
    Quota(quota::QuotaCommand),
    Report(overview::ReportCommand),
    History(history::History),
    Undelete(undelete::Undelete),
    SaveNames(save_names::SaveNames),
    Rebuild(rebuild::Rebuild),
    Gateway(gateway::GatewayCommand),
    DevS3(dev_s3::DevS3),
}

/// Parses the command line, runs the command, prints its error, gives the exit code.
pub fn main() -> ExitCode {
    let mut cli = Cli::parse();
    log::start(cli.global.verbose, cli.global.log_format);
    let result = absolute_dirs(&mut cli.global).and_then(|()| run(&cli));
    match result {
        Ok(exit) => exit.into(),
        Err(error) => {
            let message = output::plain(&error.to_string());
            if cli.global.json {
                output::json(&Reply::Error { message: message.clone() });
            }
            output::note(&format!("tierfs: {message}"));
            error.code().into()
        }
    }
}

fn run(cli: &Cli) -> Result<Exit, CliError> {
    let global = &cli.global;
    match &cli.command {
        Command::Mount(command) => command.run(global),
        Command::Umount(command) => command.run(global),
        Command::Pair(command) => command.run(global),
        Command::Migrate(command) => command.run(global),
        Command::Recall(command) => command.run(global),
        Command::Recalls(command) => command.run(global),
        Command::Release(command) => command.run(global),
        Command::Set(command) => command.run(global),
        Command::Pin(command) => command.run(global),
        Command::Unpin(command) => command.run(global),
        Command::Status(command) => command.run(global),
        Command::Info(command) => command.run(global),
        Command::Verify(command) => command.run(global),
        Command::Check(command) => command.run(global),
        Command::Failed(command) => command.run(global),
        Command::Gc(command) => command.run(global),
        Command::Index(command) => command.run(global),
        Command::Sql(command) => command.run(global),
        Command::Du(command) => command.run(global),
        Command::Ls(command) => command.run(global),
        Command::Find(command) => command.run(global),
        Command::Policy(command) => command.run(global),
        Command::Why(command) => command.run(global),
        Command::Sync(command) => command.run(global),
        Command::Trace(command) => command.run(global),
        Command::Tasks(command) => command.run(global),
        Command::Top(command) => command.run(global),
        Command::Quota(command) => command.run(global),
        Command::Report(command) => command.run(global),
        Command::History(command) => command.run(global),
        Command::Undelete(command) => command.run(global),
        Command::SaveNames(command) => command.run(global),
        Command::Rebuild(command) => command.run(global),
        Command::Gateway(command) => command.run(global),
        Command::DevS3(command) => command.run(global),
    }
}

/// The daemon changes its directory to `/`, so relative directories are resolved while they still mean something.
fn absolute_dirs(global: &mut Global) -> Result<(), CliError> {
    for dir in [&mut global.config_dir, &mut global.state_dir] {
        *dir = std::path::absolute(&*dir)
            .map_err(|error| CliError::Usage(format!("{}: {error}: name a directory", dir.display())))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn clap_finds_no_contradiction() {
        super::Cli::command().debug_assert();
    }
}
