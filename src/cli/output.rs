//! Standard output and error of the commands.
//!
//! A reader that went away (`tierfs status | head`) ends the command quietly; that closes the control socket, which
//! ends the job. Text from outside is shown without control characters, so that a file name cannot steer a terminal.

use std::io::Write;
use std::path::Path;

use super::exit::Exit;

/// Prints one line on standard output.
pub fn line(text: &str) {
    raw(text.as_bytes(), b'\n');
}

/// Prints a path as it is, ended by NUL, as `xargs -0` wants it.
pub fn ended_by_nul(path: &Path) {
    use std::os::unix::ffi::OsStrExt;
    raw(path.as_os_str().as_bytes(), 0);
}

fn raw(bytes: &[u8], end: u8) {
    let mut stdout = std::io::stdout().lock();
    if let Err(error) = stdout.write_all(bytes).and_then(|()| stdout.write_all(&[end])) {
        if error.kind() != std::io::ErrorKind::BrokenPipe {
            note(&format!("tierfs: cannot write the output: {error}"));
        }
        std::process::exit(Exit::Partial.code().into());
    }
}

/// Prints one line on standard error; one that nobody can read is no reason to stop.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Prints `value` as one line of JSON.
pub fn json<T: serde::Serialize>(value: &T) {
    match serde_json::to_string(value) {
        Ok(text) => line(&text),
        Err(error) => note(&format!("tierfs: cannot write the output as JSON: {error}")),
    }
}

/// A path for people.
pub fn shown(path: &Path) -> String {
    plain(&path.to_string_lossy())
}

/// Text without control characters.
pub fn plain(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

/// Rows in columns as wide as their widest cell; the last column is left as it is.
pub fn table(header: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).chain([header[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..header.len()).map(width).collect();
    let print = |cells: &[&str]| {
        let padded: Vec<_> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        line(padded.join("  ").trim_end());
    };
    print(header);
    for row in rows {
        print(&row.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_steer_the_terminal() {
        assert_eq!(shown(Path::new("/a\u{1b}[31m/ü\n")), "/a\\u{1b}[31m/ü\\n");
    }
}
