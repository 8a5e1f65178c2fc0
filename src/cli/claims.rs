//! Looks through a share that is not mounted for files whose records name a pair (R8).
//!
//! Errs on the safe side: a record that cannot be read counts as a claim, and what cannot be looked at is an error.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::io::Errno;

use crate::pair::{ClaimCheck, Pair, PairError, PairResult};
use crate::types::PairName;

/// Where records are kept, with and without the privilege for `trusted.*`.
const RECORD_XATTRS: [&str; 2] = ["trusted.tierfs.record", "user.tierfs.record"];
/// Counting stops here: the answer is the same, and the administrator need not wait for it.
const CLAIMS_ENOUGH: u64 = 1_000;

/// Reads a record: the pair it names, if any (`Some(None)`: a resident file's). `None`: it cannot be read.
pub type RecordPair<'r> = &'r dyn Fn(&Path, &[u8]) -> Option<Option<PairName>>;

/// Whether any file below the pair's share has a record that names it, by `record_pair`.
pub fn scan(pair: &Pair, record_pair: RecordPair<'_>) -> PairResult<ClaimCheck> {
    let cannot = |path: &Path, error: std::io::Error| {
        PairError::Value(format!(
            "cannot look through {} for stubs of pair {}: {}: {error}; if the share is gone for good, delete the pair's file by hand",
            pair.local_share.display(),
            pair.name,
            path.display()
        ))
    };
    let share = &pair.local_share;
    let device = std::fs::symlink_metadata(share).map_err(|error| cannot(share, error))?.dev();
    let mut files = 0;
    let mut example = None;
    // One open listing a level: memory goes by the depth, not by the number of files.
    let mut levels = vec![(share.clone(), std::fs::read_dir(share).map_err(|error| cannot(share, error))?)];
    while let Some((directory, listing)) = levels.last_mut() {
        let Some(entry) = listing.next() else {
            levels.pop();
            continue;
        };
        let path = match entry {
            Ok(entry) => entry.path(),
            Err(error) => return Err(cannot(directory, error)),
        };
        let metadata = match std::fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(cannot(&path, error)),
        };
        if metadata.is_dir() && metadata.dev() == device {
            let listing = std::fs::read_dir(&path).map_err(|error| cannot(&path, error))?;
            levels.push((path, listing));
        } else if metadata.is_file() && names_pair(&path, &pair.name, record_pair).map_err(|e| cannot(&path, e))? {
            files += 1;
            example.get_or_insert(path);
            if files >= CLAIMS_ENOUGH {
                break;
            }
        }
    }
    Ok(example.map_or(ClaimCheck::Free, |example| ClaimCheck::Claimed { files, example }))
}

fn names_pair(path: &Path, name: &PairName, record_pair: RecordPair<'_>) -> std::io::Result<bool> {
    for attribute in RECORD_XATTRS {
        let mut record = vec![0u8; 64 << 10];
        match rustix::fs::lgetxattr(path, attribute, &mut record[..]) {
            Ok(len) => {
                record.truncate(len);
                return Ok(record_pair(path, &record).is_none_or(|named| named.as_ref() == Some(name)));
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::XattrFlags;

    #[test]
    fn records_are_found_and_the_unreadable_count() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("plain"), b"x").unwrap();
        std::os::unix::fs::symlink("/nowhere", deep.join("link")).unwrap();
        let text = format!(
            "local_cluster='e'\nlocal_share='{}'\nremote_cluster='w'\nremote_share='s3://cold'\nendpoints=['http://x']\nremote_role='gfs'\n",
            dir.path().display()
        );
        let pair = crate::pair::file::parse(&"mine".parse().unwrap(), Path::new("x"), &text).unwrap();
        let read = |_: &Path, record: &[u8]| std::str::from_utf8(record).ok()?.parse().ok().map(Some);
        assert_eq!(scan(&pair, &read).unwrap(), ClaimCheck::Free);
        for (record, claimed) in [(&b"other"[..], false), (b"mine", true), (b"\xff", true)] {
            let file = deep.join("stub");
            std::fs::write(&file, b"x").unwrap();
            if let Err(errno) = rustix::fs::setxattr(&file, RECORD_XATTRS[1], record, XattrFlags::empty()) {
                eprintln!("skipped: no user xattrs here: {errno}");
                return;
            }
            let want = if claimed { ClaimCheck::Claimed { files: 1, example: file } } else { ClaimCheck::Free };
            assert_eq!(scan(&pair, &read).unwrap(), want, "{record:?}");
        }
        let gone = Pair { local_share: dir.path().join("gone"), ..pair };
        assert!(scan(&gone, &read).unwrap_err().to_string().contains("by hand"));
    }
}
