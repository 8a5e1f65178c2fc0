//! The text of one pair's file: TOML to [`Pair`] and back.
//!
//! A file is either a whole valid pair or an error that names the line and the key. Unknown keys are errors, so that
//! a misspelt option is never silently a default; keys that look like secrets are refused, and no message repeats a
//! line of the file, because it might hold one.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{
    AfterRecall, MetaSyncRole, PACK_BELOW_DEFAULT, Pair, PairError, PairResult, REGION_DEFAULT, RESTORE_DAYS_DEFAULT,
    RETENTION_DEFAULT_S, RemoteRole, syntax, units,
};
use crate::types::{PairName, RecallPolicy};

/// Largest pair file read, bytes. A real one has a few hundred.
pub const FILE_BYTES_MAX: u64 = 64 << 10;

const KEYS: [&str; 19] = [
    "local_cluster",
    "local_share",
    "remote_cluster",
    "remote_share",
    "endpoints",
    "region",
    "remote_role",
    "meta_sync_role",
    "credentials_file",
    "credentials_profile",
    "chunk_size",
    "retention",
    "after_recall",
    "recall_retention",
    "recall",
    "archived",
    "restore_days",
    "pack",
    "pack_below",
];

/// Parts of key names that mean somebody wrote a secret, or is about to.
const SECRET_WORDS: [&str; 6] = ["secret", "password", "passwd", "token", "access_key", "accesskey"];

const SECRET_REASON: &str = "credentials never belong in a pair's file: put them in a file in the SDK's \
     shared-credentials format (mode 0600), name it with credentials_file = \"/path\", and change the key if it is real";

/// One key's trouble: where and why.
struct Bad {
    span: Range<usize>,
    key: Option<String>,
    reason: String,
}

/// Reads the text of `path` as the pair `name`.
pub fn parse(name: &PairName, path: &Path, text: &str) -> PairResult<Pair> {
    parse_text(name, text).map_err(|bad| PairError::Invalid {
        path: path.to_owned(),
        line: text[..bad.span.start.min(text.len())].bytes().filter(|b| *b == b'\n').count() + 1,
        key: bad.key,
        reason: bad.reason,
    })
}

fn parse_text(name: &PairName, text: &str) -> Result<Pair, Bad> {
    let table = DeTable::parse(text).map_err(|error| Bad {
        span: error.span().unwrap_or(0..0),
        key: None,
        // Only the message: the error's own display quotes the line.
        reason: format!("this is not TOML: {}", error.message()),
    })?;
    let whole = table.span();
    let mut entries = BTreeMap::new();
    for (key, value) in table.into_inner() {
        let span = key.span();
        let key = key.into_inner().into_owned();
        check_key(&key, &span)?;
        entries.insert(key, value);
    }
    let pack = entries.get("pack").map_or(whole.clone(), |value| value.span());
    let mut table = Entries { entries, whole };
    let (bucket, prefix) = table.required("remote_share", syntax::remote_share)?;
    let pair = Pair {
        name: name.clone(),
        local_cluster: table.required("local_cluster", syntax::cluster_id)?,
        local_share: table.required("local_share", syntax::share_path)?,
        remote_cluster: table.required("remote_cluster", syntax::cluster_id)?,
        bucket,
        prefix,
        endpoints: table.endpoints()?,
        region: table.text("region", syntax::region)?.unwrap_or_else(|| REGION_DEFAULT.into()),
        role: table.required("remote_role", |word| word.parse::<RemoteRole>())?,
        meta_sync: table.text("meta_sync_role", |word| word.parse::<MetaSyncRole>())?,
        credentials_file: table.text("credentials_file", syntax::credentials_file)?,
        credentials_profile: table.text("credentials_profile", syntax::credentials_profile)?,
        chunk_size: table.quantity("chunk_size", |text| syntax::chunk_size(units::parse_size(text)?))?,
        retention_s: table.quantity("retention", units::parse_duration)?.unwrap_or(RETENTION_DEFAULT_S),
        after_recall: table.text("after_recall", |word| word.parse())?.unwrap_or_default(),
        recall_retention_s: table.quantity("recall_retention", units::parse_duration)?,
        recall: table.text("recall", |word| word.parse::<RecallPolicy>())?.unwrap_or_default(),
        archived: table.text("archived", |word| word.parse())?.unwrap_or_default(),
        restore_days: table.quantity("restore_days", syntax::restore_days)?.unwrap_or(RESTORE_DAYS_DEFAULT),
        pack: table.truth("pack")?.unwrap_or_default(),
        pack_below: table
            .quantity("pack_below", |text| syntax::pack_below(units::parse_size(text)?))?
            .unwrap_or(PACK_BELOW_DEFAULT),
    };
    // Only what is packed contradicts anything.
    pair.check().map_err(|reason| Bad { span: pack, key: Some("pack".into()), reason })?;
    Ok(pair)
}

/// Refuses keys that are no part of a pair, and says what may have been meant.
fn check_key(key: &str, span: &Range<usize>) -> Result<(), Bad> {
    if KEYS.contains(&key) {
        return Ok(());
    }
    let flat = key.to_ascii_lowercase().replace('-', "_");
    let reason = if SECRET_WORDS.iter().any(|word| flat.contains(word)) {
        SECRET_REASON.to_owned()
    } else if let Some(near) =
        KEYS.iter().find(|known| **known == flat || known.contains(&*flat) || flat.contains(**known))
    {
        format!("there is no such key; did you mean {near}?")
    } else {
        format!("there is no such key; known are {}", KEYS.join(", "))
    };
    Err(Bad { span: span.clone(), key: Some(key.chars().take(64).collect()), reason })
}

struct Entries<'i> {
    entries: BTreeMap<String, Spanned<DeValue<'i>>>,
    whole: Range<usize>,
}

impl Entries<'_> {
    fn required<T>(&mut self, key: &str, check: impl FnOnce(&str) -> Result<T, String>) -> Result<T, Bad> {
        match self.text(key, check)? {
            Some(value) => Ok(value),
            None => Err(Bad {
                span: self.whole.clone(),
                key: Some(key.to_owned()),
                reason: "this key is missing; `tierfs pair add --help` tells what it is".into(),
            }),
        }
    }

    fn text<T>(&mut self, key: &str, check: impl FnOnce(&str) -> Result<T, String>) -> Result<Option<T>, Bad> {
        let Some(value) = self.entries.remove(key) else { return Ok(None) };
        let checked = match value.get_ref() {
            DeValue::String(text) => check(text),
            other => Err(format!("this is a TOML {}, text in quotes is wanted", other.type_str())),
        };
        checked.map(Some).map_err(|reason| Bad { span: value.span(), key: Some(key.to_owned()), reason })
    }

    fn truth(&mut self, key: &str) -> Result<Option<bool>, Bad> {
        let Some(value) = self.entries.remove(key) else { return Ok(None) };
        match value.get_ref() {
            DeValue::Boolean(truth) => Ok(Some(*truth)),
            other => {
                let reason = format!("this is a TOML {}, true or false is wanted", other.type_str());
                Err(Bad { span: value.span(), key: Some(key.to_owned()), reason })
            }
        }
    }

    /// Text with a unit, or a bare integer.
    fn quantity<T>(&mut self, key: &str, check: impl FnOnce(&str) -> Result<T, String>) -> Result<Option<T>, Bad> {
        let Some(value) = self.entries.remove(key) else { return Ok(None) };
        let checked = match value.get_ref() {
            DeValue::String(text) => check(text),
            DeValue::Integer(number) if number.radix() == 10 => check(&number.as_str().replace('_', "")),
            other => Err(format!(
                "this is a TOML {}, text with a unit is wanted, like \"4MiB\" or \"24h\"",
                other.type_str()
            )),
        };
        checked.map(Some).map_err(|reason| Bad { span: value.span(), key: Some(key.to_owned()), reason })
    }

    fn endpoints(&mut self) -> Result<Vec<String>, Bad> {
        const KEY: &str = "endpoints";
        let Some(value) = self.entries.remove(KEY) else {
            return Err(Bad {
                span: self.whole.clone(),
                key: Some(KEY.into()),
                reason: "this key is missing; write endpoints = [\"http://host:port\"]".into(),
            });
        };
        let fail = |span: Range<usize>, reason: String| Bad { span, key: Some(KEY.into()), reason };
        let array = match value.get_ref() {
            DeValue::Array(array) => array,
            other => {
                let reason =
                    format!("this is a TOML {}, a list is wanted, like [\"http://host:port\"]", other.type_str());
                return Err(fail(value.span(), reason));
            }
        };
        let mut texts = Vec::new();
        for item in array.iter() {
            let text =
                item.get_ref().as_str().ok_or_else(|| fail(item.span(), "every endpoint is text in quotes".into()))?;
            syntax::endpoint(text).map_err(|reason| fail(item.span(), reason))?;
            texts.push(text);
        }
        syntax::endpoints(texts).map_err(|reason| fail(value.span(), reason))
    }
}

/// The text of a pair's file; [`parse`] reads it back to an equal pair. Fails where a path is not UTF-8.
pub fn format(pair: &Pair) -> PairResult<String> {
    let path_text = |what: &str, path: &Path| {
        path.to_str().map(quoted).ok_or_else(|| {
            PairError::Value(format!(
                "{what} {path:?} is not UTF-8, which a pair's file cannot hold: rename it or use a bind mount"
            ))
        })
    };
    let mut lines = vec![
        format!(
            "# Pair {} of tierfs. `tierfs pair edit {}` changes it; edits by hand are checked when it is next read.",
            pair.name, pair.name
        ),
        format!("local_cluster = {}", quoted(pair.local_cluster.as_str())),
        format!("local_share = {}", path_text("local_share", &pair.local_share)?),
        format!("remote_cluster = {}", quoted(pair.remote_cluster.as_str())),
        format!("remote_share = {}", quoted(&pair.remote_share())),
        format!("endpoints = [{}]", pair.endpoints.iter().map(|e| quoted(e)).collect::<Vec<_>>().join(", ")),
        format!("region = {}", quoted(&pair.region)),
        format!("remote_role = {}", quoted(pair.role.as_str())),
    ];
    if let Some(role) = pair.meta_sync {
        lines.push(format!("meta_sync_role = {}", quoted(role.as_str())));
    }
    if let Some(file) = &pair.credentials_file {
        lines.push(format!("credentials_file = {}", path_text("credentials_file", file)?));
    }
    if let Some(profile) = &pair.credentials_profile {
        lines.push(format!("credentials_profile = {}", quoted(profile)));
    }
    if let Some(size) = pair.chunk_size {
        lines.push(format!("chunk_size = {}", quoted(&units::exact_size(size.into()))));
    }
    lines.push(format!("retention = {}", quoted(&units::exact_duration(pair.retention_s))));
    // Only where it is not the default: an older tierfs knows no such key.
    if pair.after_recall != AfterRecall::default() {
        lines.push(format!("after_recall = {}", quoted(pair.after_recall.as_str())));
    }
    if let Some(seconds) = pair.recall_retention_s {
        lines.push(format!("recall_retention = {}", quoted(&units::exact_duration(seconds))));
    }
    if pair.recall != RecallPolicy::default() {
        lines.push(format!("recall = {}", quoted(pair.recall.as_str())));
    }
    lines.push(format!("archived = {}", quoted(pair.archived.as_str())));
    lines.push(format!("restore_days = {}", pair.restore_days));
    // The same.
    if pair.pack {
        lines.push("pack = true".into());
    }
    if pair.pack_below != PACK_BELOW_DEFAULT {
        lines.push(format!("pack_below = {}", quoted(&units::exact_size(pair.pack_below.into()))));
    }
    Ok(lines.join("\n") + "\n")
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::super::WhenArchived;
    use super::*;

    const GOOD: &str = r#"
local_cluster = "east"
local_share = "/srv/share"
remote_cluster = "west"
remote_share = "s3://cold/east"
endpoints = ["http://127.0.0.1:9000"]
remote_role = "gfs"
"#;

    fn read(text: &str) -> PairResult<Pair> {
        parse(&"p".parse().unwrap(), Path::new("/etc/tierfs/pairs.d/p.toml"), text)
    }

    #[test]
    fn defaults() {
        let pair = read(GOOD).unwrap();
        assert_eq!(pair.chunk_size, None);
        assert_eq!(pair.retention_s, 86_400);
        assert_eq!(
            (pair.recalled_for_s(), Pair { retention_s: 7, ..pair.clone() }.recalled_for_s()),
            (Some(86_400), Some(7))
        );
        assert_eq!(pair.region, "us-east-1");
        assert_eq!((pair.bucket.as_str(), pair.prefix.as_str()), ("cold", "east"));
        assert_eq!(pair.meta_sync, None);
        assert_eq!((pair.archived, pair.restore_days), (WhenArchived::Fail, 7));
        assert_eq!((pair.pack, pair.pack_below), (false, 128 << 10));
        assert!(!format(&pair).unwrap().contains("pack"), "an older tierfs knows no such keys");
        assert_eq!(pair.identifiers(), "east,/srv/share,west,s3://cold/east");
    }

    #[test]
    fn what_is_written_reads_back() {
        let mut pair = read(GOOD).unwrap();
        assert_eq!(read(&format(&pair).unwrap()).unwrap(), pair);
        pair.local_share = "/srv/a \"b\" \\ c ü".into();
        pair.prefix = String::new();
        pair.endpoints.push("https://[::1]:9000".into());
        pair.meta_sync = Some(MetaSyncRole::Slave);
        pair.role = RemoteRole::Gpeer;
        pair.credentials_file = Some("/root/creds".into());
        pair.credentials_profile = Some("west".into());
        pair.chunk_size = Some(64 << 10);
        pair.retention_s = 5_400;
        pair.after_recall = AfterRecall::Keep;
        pair.recall_retention_s = Some(0);
        pair.archived = WhenArchived::Wait;
        pair.restore_days = 30;
        pair.pack_below = 16 << 10;
        assert_eq!(read(&format(&pair).unwrap()).unwrap(), pair);
        (pair.role, pair.pack) = (RemoteRole::Gfs, true);
        assert_eq!(read(&format(&pair).unwrap()).unwrap(), pair);
    }

    #[test]
    fn errors_name_line_key_and_reason() {
        // Line to append or replace, expected line number, and pieces of the message.
        for (text, line, pieces) in [
            (format!("{GOOD}chunk_size = \"5MiB\"\n"), 8, vec!["chunk_size", "power of two"]),
            (format!("{GOOD}chunk_size = 4194304\nretention = 5\n"), 9, vec!["retention", "units"]),
            (format!("{GOOD}retention = true\n"), 8, vec!["retention", "boolean"]),
            (format!("{GOOD}endpoint = \"http://x\"\n"), 8, vec!["did you mean endpoints"]),
            (format!("{GOOD}after_recall = \"forget\"\n"), 8, vec!["after_recall", "keep"]),
            (format!("{GOOD}recall_retention = \"soon\"\n"), 8, vec!["recall_retention", "duration"]),
            (format!("{GOOD}archived = \"never\"\n"), 8, vec!["archived", "wait"]),
            (format!("{GOOD}restore_days = 0\n"), 8, vec!["restore_days", "1 to 365"]),
            (format!("{GOOD}restore_days = \"7d\"\n"), 8, vec!["restore_days", "1 to 365"]),
            (format!("{GOOD}pack = \"yes\"\n"), 8, vec!["pack", "true or false"]),
            (format!("{GOOD}pack_below = \"2MiB\"\n"), 8, vec!["pack_below", "1MiB"]),
            (format!("{}pack = true\n", GOOD.replace("gfs", "gpeer")), 8, vec!["pack", "gpeer"]),
            (format!("{GOOD}colour = \"red\"\n"), 8, vec!["colour", "known are"]),
            (format!("{GOOD}[credentials]\nkey = \"x\"\n"), 8, vec!["credentials"]),
            (GOOD.replace("\"gfs\"", "\"nfs\""), 7, vec!["remote_role", "gpeer"]),
            (GOOD.replace("http://127.0.0.1:9000", "127.0.0.1:9000"), 6, vec!["endpoints", "http://"]),
            (GOOD.replace("[\"http://127.0.0.1:9000\"]", "[]"), 6, vec!["no endpoint"]),
            (GOOD.replace("[\"http://127.0.0.1:9000\"]", "\"http://x\""), 6, vec!["a list is wanted"]),
            (GOOD.replace("s3://cold/east", "s3://Cold/east"), 5, vec!["remote_share", "bucket"]),
            (GOOD.replace("\"/srv/share\"", "\"srv\""), 3, vec!["local_share", "absolute"]),
            (GOOD.replace("remote_role = \"gfs\"\n", ""), 1, vec!["remote_role", "missing"]),
            (format!("{GOOD}local_cluster = \"x\"\n"), 8, vec!["TOML", "duplicate"]),
            (format!("{GOOD}oops\n"), 8, vec!["TOML"]),
        ] {
            let error = read(&text).unwrap_err();
            let message = error.to_string();
            let at = message.starts_with(&format!("/etc/tierfs/pairs.d/p.toml:{line}: "));
            assert!(at, "line {line} wanted: {message}");
            for piece in pieces {
                assert!(message.contains(piece), "{piece:?} wanted: {message}");
            }
            assert!(!message.contains('\n'), "one line: {message}");
        }
    }

    #[test]
    fn secrets_are_refused_and_not_repeated() {
        for key in [
            "secret_key",
            "aws_secret_access_key",
            "access_key",
            "access-key-id",
            "session_token",
            "password",
            "SecretKey",
        ] {
            let message = read(&format!("{GOOD}{key} = \"hunter2\"\n")).unwrap_err().to_string();
            assert!(message.contains("credentials_file"), "{message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
        for text in [
            format!("{GOOD}secret_key = hunter2\n"),
            format!("{GOOD}secret_key \"hunter2\"\n"),
            format!("{GOOD}credentials_file = \"hunter2\"\n"),
            GOOD.replace("http://127", "http://k:hunter2@127"),
            GOOD.replace("http://127", "hunter2://127"),
        ] {
            let message = read(&text).unwrap_err().to_string();
            assert!(!message.contains("hunter2"), "{message}");
        }
    }
}
