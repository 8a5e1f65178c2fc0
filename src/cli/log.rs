//! The log: lines for people, or JSON objects for programs (`--log-format json`), on standard error, which in a background daemon is the log file.

use std::fmt;
use std::io::IsTerminal;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::output;
use super::report::utc;

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// An object a line.
    Json,
}

impl LogFormat {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// Starts the log of this process.
pub(super) fn start(verbose: u8, format: LogFormat) {
    let level = ["info", "debug", "trace"][usize::from(verbose.min(2))];
    let filter = std::env::var("TIERFS_LOG").unwrap_or_else(|_| match verbose {
        // The SDK's own lines are many and of no use to an administrator; the endpoint's library calls every 404 an error.
        0 | 1 => format!("warn,s3s=off,tierfs={level}"),
        _ => format!("info,s3s=off,tierfs={level}"),
    });
    let ansi = std::io::stderr().is_terminal() && format == LogFormat::Text;
    let filter = tracing_subscriber::EnvFilter::builder().parse_lossy(filter);
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter).with_ansi(ansi);
    let done = match format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.event_format(JsonLines).try_init(),
    };
    if let Err(error) = done {
        output::note(&format!("tierfs: no log: {error}"));
    }
}

/// An event as an object: `time` (UTC), `seconds` since 1970, `level`, `target`, `message`, and the event's own fields by their names, of which
/// one that has one of these names becomes `field.NAME`.
struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut object = Map::new();
        object.insert("time".into(), utc(now.as_secs() as i64).replacen(' ', "T", 1).into());
        object.insert("seconds".into(), (now.as_micros() as f64 / 1e6).into());
        object.insert("level".into(), event.metadata().level().as_str().to_lowercase().into());
        object.insert("target".into(), event.metadata().target().into());
        event.record(&mut Fields(&mut object));
        writeln!(writer, "{}", Value::Object(object))
    }
}

struct Fields<'m>(&'m mut Map<String, Value>);

impl Fields<'_> {
    fn put(&mut self, field: &Field, value: Value) {
        let name = match field.name() {
            name @ ("time" | "seconds" | "level" | "target") => format!("field.{name}"),
            name => name.to_owned(),
        };
        self.0.insert(name, value);
    }
}

impl Visit for Fields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(data);
            Ok(data.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_event_is_an_object_whatever_is_in_it() {
        let kept = Kept::default();
        let into = kept.clone();
        let log = tracing_subscriber::fmt().with_writer(move || into.clone()).event_format(JsonLines).finish();
        tracing::subscriber::with_default(log, || {
            tracing::warn!(path = "a\nb\"\u{1b}", count = 3u64, level = "mine", "said {}", "\u{7}");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&line["path"], &line["count"], &line["level"]),
            (&"a\nb\"\u{1b}".into(), &3.into(), &"warn".into())
        );
        assert_eq!((&line["message"], &line["field.level"]), (&"said \u{7}".into(), &"mine".into()));
    }
}
