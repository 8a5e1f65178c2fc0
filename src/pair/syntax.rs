//! What the single values of a pair may look like. Pure: nothing here looks at a disk or a network.
//!
//! Every function takes text from outside and gives a value that needs no second check, or a reason with the way out.
//! Reasons quote what was given, except where it may hold a secret.

use std::path::{Component, Path, PathBuf};

use crate::types::{ClusterId, is_chunk_size};

/// Endpoints one pair may name.
pub const ENDPOINTS_MAX: usize = 16;
/// Longest prefix, bytes: leaves half of S3's 1,024 for the path, the file id and the generation.
pub const PREFIX_BYTES_MAX: usize = 512;

/// `CLUSTER:/share`.
pub fn local(text: &str) -> Result<(ClusterId, PathBuf), String> {
    let form = || format!("{text:?} is not a local share: write CLUSTER:/path, like east:/srv/share");
    let (cluster, path) = text.split_once(':').ok_or_else(form)?;
    if path.starts_with("s3://") {
        return Err(format!("{text:?} is an object store: the local side is a directory, like east:/srv/share"));
    }
    Ok((cluster_id(cluster)?, share_path(path)?))
}

/// `CLUSTER:s3://bucket/prefix`: cluster, bucket, prefix.
pub fn remote(text: &str) -> Result<(ClusterId, String, String), String> {
    let form = || {
        format!(
            "{text:?} is not a remote share: write CLUSTER:s3://bucket or CLUSTER:s3://bucket/prefix, like west:s3://cold/east"
        )
    };
    let (cluster, location) = text.split_once(':').ok_or_else(form)?;
    if !location.starts_with("s3://") {
        return Err(form());
    }
    let (bucket, prefix) = remote_share(location)?;
    Ok((cluster_id(cluster)?, bucket, prefix))
}

/// `s3://bucket/prefix`: bucket, prefix.
pub fn remote_share(text: &str) -> Result<(String, String), String> {
    let rest = text
        .strip_prefix("s3://")
        .ok_or_else(|| format!("{text:?} is not a remote share: write s3://bucket or s3://bucket/prefix"))?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    Ok((self::bucket(bucket)?, self::prefix(prefix)?))
}

/// A cluster's name.
pub fn cluster_id(text: &str) -> Result<ClusterId, String> {
    text.parse().map_err(|error: crate::types::BadName| error.to_string())
}

/// An absolute path without `.`, `..` or a trailing slash.
pub fn share_path(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if !path.is_absolute() {
        return Err(format!("{text:?} is not an absolute path: start it with /"));
    }
    if text.contains('\0') || text.contains('\n') {
        return Err(format!("{text:?} holds a NUL or a line break, which no share path may"));
    }
    if path.components().any(|part| part == Component::ParentDir) || text.split('/').any(|part| part == ".") {
        return Err(format!("{text:?} holds \".\" or \"..\": write the path without them"));
    }
    let clean: PathBuf = path.components().collect();
    if clean == Path::new("/") {
        return Err(
            "the root directory cannot be a share: the mount point would lie inside it; name a directory".into()
        );
    }
    Ok(clean)
}

/// A bucket by S3's rules.
pub fn bucket(text: &str) -> Result<String, String> {
    let refuse = |why: &str| Err(format!("{text:?} is not a bucket name: {why}"));
    if !(3..=63).contains(&text.len()) {
        return refuse("use 3 to 63 characters");
    }
    if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.') {
        return refuse("use lower-case letters, digits, '-' and '.'");
    }
    let ends_well = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    if !ends_well(text.bytes().next()) || !ends_well(text.bytes().last()) {
        return refuse("start and end it with a letter or a digit");
    }
    if text.contains("..") || text.parse::<std::net::Ipv4Addr>().is_ok() {
        return refuse("\"..\" and the form of an IP address are not allowed");
    }
    Ok(text.to_owned())
}

/// A prefix without leading or trailing slash; may be empty.
pub fn prefix(text: &str) -> Result<String, String> {
    let clean = text.trim_matches('/');
    let refuse = |why: &str| Err(format!("{text:?} is not a usable prefix: {why}"));
    if clean.len() > PREFIX_BYTES_MAX {
        return Err(format!("the prefix has {} bytes: use at most {PREFIX_BYTES_MAX}", clean.len()));
    }
    if clean.chars().any(char::is_control) {
        return refuse("it holds control characters");
    }
    if !clean.is_empty() && clean.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return refuse("it holds an empty part, \".\" or \"..\"");
    }
    Ok(clean.to_owned())
}

/// `http(s)://host[:port]`, without the trailing slash.
pub fn endpoint(text: &str) -> Result<String, String> {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => (scheme, rest),
        // Not quoted: before the scheme is checked the text could be anything, a key pasted by mistake included.
        _ => return Err("an endpoint is a URL that starts with http:// or https://, like http://127.0.0.1:9000".into()),
    };
    if rest.contains('@') {
        return Err(
            "the endpoint holds a user name or a password: leave them out and name a credentials_file instead".into()
        );
    }
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    let refuse = |why: &str| Err(format!("{text:?} is not an endpoint: {why}"));
    if authority.contains(['/', '?', '#']) {
        return refuse("write only http(s)://host[:port]; bucket and prefix belong in the remote share");
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(six) => match six.split_once(']') {
            Some((address, tail)) if address.parse::<std::net::Ipv6Addr>().is_ok() => match tail.strip_prefix(':') {
                Some(port) => (authority, Some(port)),
                None if tail.is_empty() => (authority, None),
                None => return refuse("only a port may follow the address"),
            },
            _ => return refuse("what is in brackets is no IPv6 address"),
        },
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if host.is_empty() {
        return refuse("the host is missing");
    }
    if !authority.starts_with('[')
        && !host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.' || b == b'_')
    {
        return refuse("the host holds characters that no host name has");
    }
    if let Some(port) = port
        && !port.parse::<u16>().is_ok_and(|port| port > 0)
    {
        return refuse("the port is not a number from 1 to 65535");
    }
    Ok(format!("{scheme}://{authority}"))
}

/// One to [`ENDPOINTS_MAX`] different endpoints.
pub fn endpoints<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    for text in texts {
        let one = endpoint(text)?;
        if all.contains(&one) {
            return Err(format!("endpoint {one} is named twice"));
        }
        all.push(one);
    }
    match all.len() {
        0 => Err("no endpoint is named: at least one is needed, like http://127.0.0.1:9000".into()),
        1..=ENDPOINTS_MAX => Ok(all),
        n => Err(format!("{n} endpoints are named: at most {ENDPOINTS_MAX}")),
    }
}

/// Days a restored object can be read.
pub fn restore_days(text: &str) -> Result<u32, String> {
    let days = text.parse().ok().filter(|days| (1..=365).contains(days));
    days.ok_or_else(|| format!("{text:?} is not a number of days: use 1 to 365"))
}

/// A power of two, 64 KiB to 64 MiB.
pub fn chunk_size(bytes: u64) -> Result<u32, String> {
    match u32::try_from(bytes) {
        Ok(size) if is_chunk_size(size) => Ok(size),
        _ => {
            Err(format!("a chunk of {bytes} bytes is not possible: use a power of two from 64KiB to 64MiB, like 4MiB"))
        }
    }
}

/// Which files are packed: those shorter than 4 KiB to 1 MiB.
pub fn pack_below(bytes: u64) -> Result<u32, String> {
    let size = u32::try_from(bytes).ok().filter(|size| (4 << 10..=1 << 20).contains(size));
    size.ok_or_else(|| format!("{bytes} bytes are no bound for packed files: use 4KiB to 1MiB, like 128KiB"))
}

/// `true` or `false`.
pub fn yes_or_no(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("{text:?} is neither true nor false"))
}

/// A region: 1 to 64 of letters, digits and `-`.
pub fn region(text: &str) -> Result<String, String> {
    let fits = (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if fits {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is not a region: use letters, digits and '-', like us-east-1"))
    }
}

/// The path of a credentials file: absolute.
pub fn credentials_file(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if path.is_absolute() && !text.contains(['\0', '\n']) {
        Ok(path.to_owned())
    } else {
        // Not quoted: a secret pasted here by mistake must not reach a log.
        Err("this is not an absolute path: name a file in the SDK's shared-credentials format, like /etc/tierfs/credentials"
            .into())
    }
}

/// A profile's name in a credentials file.
pub fn credentials_profile(text: &str) -> Result<String, String> {
    let fits = (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.@+ ".contains(&b))
        && text.trim() == text;
    if fits {
        Ok(text.to_owned())
    } else {
        Err("this is not a profile name: use 1 to 64 letters, digits, '-', '_' and '.'".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_shares() {
        for (text, want) in [
            ("east:/srv/share", Some("/srv/share")),
            ("east:/srv/share/", Some("/srv/share")),
            ("east://srv//share", Some("/srv/share")),
            ("east:/srv/a:b", Some("/srv/a:b")),
            ("east:srv", None),
            ("/srv/share", None),
            (":/srv", None),
            ("-east:/srv", None),
            ("east:/", None),
            ("east:/srv/../etc", None),
            ("east:/srv/./x", None),
            ("east:s3://bucket", None),
        ] {
            let got = local(text).ok().map(|(_, path)| path);
            assert_eq!(got.as_deref(), want.map(Path::new), "{text:?}");
        }
    }

    #[test]
    fn remote_shares() {
        for (text, want) in [
            ("west:s3://cold", Some(("cold", ""))),
            ("west:s3://cold/", Some(("cold", ""))),
            ("west:s3://cold/a/b/", Some(("cold", "a/b"))),
            ("west:s3://cold//a", Some(("cold", "a"))),
            ("west:s3://cold/a//b", None),
            ("west:s3://cold/../b", None),
            ("west:s3://Cold", None),
            ("west:/srv", None),
            ("s3://cold", None),
            ("west:s3://", None),
        ] {
            let got = remote(text).ok();
            assert_eq!(got.as_ref().map(|(_, b, p)| (b.as_str(), p.as_str())), want, "{text:?}");
        }
    }

    #[test]
    fn buckets() {
        for (text, good) in [
            ("abc", true),
            ("a-b.c9", true),
            ("ab", false),
            ("-abc", false),
            ("abc-", false),
            ("a..b", false),
            ("a_b", false),
            ("10.0.0.1", false),
            (&"x".repeat(64), false),
        ] {
            assert_eq!(bucket(text).is_ok(), good, "{text:?}");
        }
    }

    #[test]
    fn endpoint_forms() {
        for (text, want) in [
            ("http://127.0.0.1:9000", Some("http://127.0.0.1:9000")),
            ("https://s3.example.org/", Some("https://s3.example.org")),
            ("http://[::1]:9000", Some("http://[::1]:9000")),
            ("http://[::1]", Some("http://[::1]")),
            ("http://[::1", None),
            ("http://[::1]x", None),
            ("http://", None),
            ("http://:80", None),
            ("http://host:0", None),
            ("http://host:65536", None),
            ("http://host:80:81", None),
            ("http://host/bucket", None),
            ("http://host?x=1", None),
            ("http://ho st", None),
            ("ftp://host", None),
            ("host:9000", None),
            ("http://key:secret@host", None),
        ] {
            assert_eq!(endpoint(text).ok().as_deref(), want, "{text:?}");
        }
        assert!(!endpoint("http://AKIA:hunter2@host").unwrap_err().contains("hunter2"));
    }

    #[test]
    fn several_endpoints() {
        assert!(endpoints([]).is_err());
        assert!(endpoints(["http://a", "http://a/"]).is_err());
        assert_eq!(endpoints(["http://a", "http://b"]).unwrap().len(), 2);
    }

    #[test]
    fn chunk_sizes() {
        for (bytes, good) in [
            (4 << 20, true),
            (64 << 10, true),
            (64 << 20, true),
            (32 << 10, false),
            (128 << 20, false),
            (5 << 20, false),
        ] {
            assert_eq!(chunk_size(bytes).is_ok(), good, "{bytes}");
        }
    }
}
