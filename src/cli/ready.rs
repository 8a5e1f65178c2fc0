//! How a daemon started in the background tells the command that started it that the mount is up, or why not.
//!
//! The command passes the number of a pipe in `TIERFS_READY_FD`. One line goes through it: `ok`, or the error.

use std::fs::File;
use std::io::Write;

use super::exit::CliError;

/// Holds the number of the pipe's writing end.
pub const READY_FD_VARIABLE: &str = "TIERFS_READY_FD";
/// The line that means the mount can be used.
pub const OK_LINE: &str = "ok";

/// The daemon's end. Without a waiting command every call is harmless.
#[derive(Debug)]
pub struct Ready {
    pipe: Option<File>,
}

impl Ready {
    /// Takes up the pipe of the environment, if there is one.
    pub fn from_environment() -> Result<Self, CliError> {
        let Some(number) = std::env::var_os(READY_FD_VARIABLE) else { return Ok(Self { pipe: None }) };
        let bad = |reason: String| CliError::Usage(format!("{READY_FD_VARIABLE}={number:?}: {reason}; unset it"));
        let number: u32 =
            number.to_str().and_then(|n| n.parse().ok()).ok_or_else(|| bad("not a descriptor's number".into()))?;
        // A second, owned descriptor of the same pipe, without having to believe that number is ours to own.
        let pipe = std::fs::OpenOptions::new()
            .write(true)
            .open(format!("/proc/self/fd/{number}"))
            .map_err(|error| bad(error.to_string()))?;
        Ok(Self { pipe: Some(pipe) })
    }

    /// Whether a command waits.
    pub fn is_awaited(&self) -> bool {
        self.pipe.is_some()
    }

    /// The mount can be used. Call it once the mount answers; later calls do nothing.
    pub fn ok(&mut self) {
        self.tell(OK_LINE);
    }

    /// There will be no mount. Does nothing after [`Ready::ok`].
    pub fn fail(&mut self, reason: &str) {
        self.tell(&reason.replace('\n', " "));
    }

    fn tell(&mut self, line: &str) {
        if let Some(mut pipe) = self.pipe.take()
            && let Err(error) = writeln!(pipe, "{line}")
        {
            // The command was ended by its user; the daemon goes on.
            tracing::warn!("nobody waits for the mount to be ready: {error}");
        }
    }
}
