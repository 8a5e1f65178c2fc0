//! What the store has, in memory: rebuilt from the files' records at start, so it cannot get out of step with them.
//!
//! Only the committing thread changes it, and only after what it says is on stable storage (a removal leaves the index
//! just before its file goes). An entry is immutable and shared; a reader keeps its version for as long as it wants.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::store::{
    BucketInfo, ListEntry, ListPage, ListQuery, ObjectInfo, PartInfo, StoreError, StoreResult, UploadId, UploadInfo,
};
use super::layout::part_name;
use super::record::PartRef;
use super::trash::Trash;
use crate::types::Timestamp;

/// One version of an object.
#[derive(Debug)]
pub struct Object {
    pub info: Arc<ObjectInfo>,
    /// Part of its file's name.
    pub version: u64,
    /// Where the bytes are, if not in its own file.
    pub extents: Option<Arc<Extents>>,
}

/// The part files that hold a completed upload's bytes. They are deleted when the object is gone and nobody reads them.
#[derive(Debug)]
pub struct Extents {
    pub dir: PathBuf,
    pub parts: Vec<PartRef>,
    /// Offset of each part in the object.
    starts: Vec<u64>,
    doomed: AtomicBool,
    trash: Trash,
}

impl Extents {
    pub fn new(dir: PathBuf, parts: Vec<PartRef>, trash: Trash) -> Self {
        let starts = parts
            .iter()
            .scan(0, |next, part| {
                let start = *next;
                *next += part.size;
                Some(start)
            })
            .collect();
        Self { dir, parts, starts, doomed: AtomicBool::new(false), trash }
    }

    /// The files go when the last reader lets go.
    pub fn doom(&self) {
        self.doomed.store(true, Ordering::Release);
    }

    /// Which part holds byte `offset`: its index, its file, where in it, and how many bytes follow there.
    pub fn locate(&self, offset: u64) -> Option<(usize, PathBuf, u64, u64)> {
        let mut at = self.starts.partition_point(|start| *start <= offset).checked_sub(1)?;
        // Empty parts share their start with the next one; `partition_point` gives the last of them.
        while self.parts.get(at)?.size == 0 {
            at += 1;
        }
        let part = self.parts.get(at)?;
        let within = offset.checked_sub(self.starts[at])?;
        let left = part.size.checked_sub(within).filter(|left| *left > 0)?;
        Some((at, self.dir.join(part_name(part.number, part.version)), within, left))
    }
}

impl Drop for Extents {
    fn drop(&mut self) {
        if self.doomed.load(Ordering::Acquire) {
            self.trash.discard(self.dir.clone());
        }
    }
}

/// An upload in parts that is still open.
#[derive(Debug)]
pub struct OpenUpload {
    pub info: Arc<UploadInfo>,
    pub parts: BTreeMap<u16, PartInfo>,
}

#[derive(Debug, Default)]
pub struct Bucket {
    pub created: Timestamp,
    pub objects: BTreeMap<String, Arc<Object>>,
    pub uploads: BTreeMap<UploadId, OpenUpload>,
    /// Which of the 256 directories below `objects` exist.
    pub fans: std::collections::BTreeSet<u8>,
}

#[derive(Debug, Default)]
pub struct Index {
    pub buckets: BTreeMap<String, Bucket>,
}

impl Index {
    pub fn bucket(&self, name: &str) -> StoreResult<&Bucket> {
        self.buckets.get(name).ok_or_else(|| StoreError::NoSuchBucket(name.to_owned()))
    }

    pub fn bucket_mut(&mut self, name: &str) -> StoreResult<&mut Bucket> {
        self.buckets.get_mut(name).ok_or_else(|| StoreError::NoSuchBucket(name.to_owned()))
    }

    pub fn object(&self, bucket: &str, key: &str) -> StoreResult<&Arc<Object>> {
        self.bucket(bucket)?.objects.get(key).ok_or_else(|| StoreError::NoSuchKey(key.to_owned()))
    }

    /// The open upload `id`, if it is for `key`.
    pub fn upload(&self, bucket: &str, key: &str, id: &UploadId) -> StoreResult<&OpenUpload> {
        let upload = self.bucket(bucket)?.uploads.get(id).filter(|upload| upload.info.new.key == key);
        upload.ok_or_else(|| StoreError::NoSuchUpload(id.0.clone()))
    }

    pub fn buckets(&self) -> Vec<BucketInfo> {
        self.buckets.iter().map(|(name, b)| BucketInfo { name: name.clone(), created: b.created }).collect()
    }
}

/// One page of `objects` in byte order. Steps over a common prefix at once, however much lies below it.
pub fn list(objects: &BTreeMap<String, Arc<Object>>, query: &ListQuery) -> ListPage {
    let mut page = ListPage::default();
    let ListQuery { prefix, delimiter, after, limit } = query;
    let delimiter = delimiter.as_deref().filter(|d| !d.is_empty());
    if *limit == 0 {
        return page;
    }
    let mut from = match after {
        Some(after) if after >= prefix => Bound::Excluded(after.clone()),
        _ => Bound::Included(prefix.clone()),
    };
    loop {
        let mut skip_to = None;
        for (key, object) in objects.range((from.clone(), Bound::Unbounded)) {
            let Some(rest) = key.strip_prefix(prefix.as_str()) else { break };
            let common = delimiter.and_then(|d| rest.find(d).map(|at| &key[..prefix.len() + at + d.len()]));
            // A page that ended with this common prefix goes on behind all of it.
            if common.is_none() || common != after.as_deref() {
                if page.entries.len() == *limit {
                    page.truncated = true;
                    return page;
                }
                page.entries.push(match common {
                    Some(common) => ListEntry::CommonPrefix(common.to_owned()),
                    None => ListEntry::Object(object.info.clone()),
                });
            }
            if let Some(common) = common {
                skip_to = Some(behind_all(common));
                break;
            }
        }
        match skip_to {
            Some(Some(next)) => from = Bound::Included(next),
            Some(None) | None => return page,
        }
    }
}

/// The smallest string behind every string that begins with `prefix`; `None` if there is none.
fn behind_all(prefix: &str) -> Option<String> {
    let mut next = prefix.to_owned();
    while let Some(last) = next.pop() {
        // Byte order of UTF-8 is the order of the scalars; the surrogates are the one gap in them.
        let following = if last == '\u{d7ff}' { Some('\u{e000}') } else { char::from_u32(last as u32 + 1) };
        if let Some(following) = following {
            next.push(following);
            return Some(next);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(keys: &[&str]) -> BTreeMap<String, Arc<Object>> {
        keys.iter()
            .map(|key| {
                let info = ObjectInfo {
                    key: (*key).to_owned(),
                    size: 0,
                    etag: String::new(),
                    modified: Timestamp::default(),
                    attributes: Default::default(),
                    tags: vec![],
                    checksum: None,
                    part_sizes: vec![],
                    upload: None,
                };
                ((*key).to_owned(), Arc::new(Object { info: Arc::new(info), version: 0, extents: None }))
            })
            .collect()
    }

    fn names(page: &ListPage) -> Vec<String> {
        page.entries
            .iter()
            .map(|entry| match entry {
                ListEntry::Object(info) => info.key.clone(),
                ListEntry::CommonPrefix(prefix) => format!("[{prefix}]"),
            })
            .collect()
    }

    fn check(keys: &[&str], prefix: &str, delimiter: Option<&str>, after: Option<&str>, want: &[&str]) {
        let objects = objects(keys);
        let query = |after: Option<&str>, limit| ListQuery {
            prefix: prefix.into(),
            delimiter: delimiter.map(Into::into),
            after: after.map(Into::into),
            limit,
        };
        assert_eq!(names(&list(&objects, &query(after, 1000))), want);
        // Page by page it is the same, whatever the size of the page.
        for limit in 1..4 {
            let (mut got, mut at) = (Vec::new(), after.map(str::to_owned));
            loop {
                let page = list(&objects, &query(at.as_deref(), limit));
                got.extend(names(&page));
                let Some(last) = page.entries.last() else { break };
                at = Some(match last {
                    ListEntry::Object(info) => info.key.clone(),
                    ListEntry::CommonPrefix(prefix) => prefix.clone(),
                });
                if !page.truncated {
                    break;
                }
                assert_eq!(page.entries.len(), limit);
            }
            assert_eq!(got, want, "pages of {limit}");
        }
    }

    #[test]
    fn lists_in_byte_order_and_pages() {
        let keys = ["a", "a/", "a/1", "a/2/x", "a/2/y", "b", "é/1", "é/2", "\u{10ffff}/1", "z"];
        check(&keys, "", None, None, &["a", "a/", "a/1", "a/2/x", "a/2/y", "b", "z", "é/1", "é/2", "\u{10ffff}/1"]);
        check(&keys, "", Some("/"), None, &["a", "[a/]", "b", "z", "[é/]", "[\u{10ffff}/]"]);
        check(&keys, "a/", Some("/"), None, &["a/", "a/1", "[a/2/]"]);
        check(&keys, "a", Some("/"), Some("a"), &["[a/]"]);
        check(&keys, "", None, Some("a/2/x"), &["a/2/y", "b", "z", "é/1", "é/2", "\u{10ffff}/1"]);
        check(&keys, "q", None, None, &[]);
        check(&keys, "", Some("/1"), Some("b"), &["z", "[é/1]", "é/2", "[\u{10ffff}/1]"]);
        check(&["p", "p/q", "p0"], "p", Some("/"), None, &["p", "[p/]", "p0"]);
    }

    #[test]
    fn behind_all_is_the_next_string() {
        assert_eq!(behind_all("a/"), Some("a0".into()));
        assert_eq!(behind_all("\u{d7ff}"), Some("\u{e000}".into()));
        assert_eq!(behind_all("a\u{10ffff}"), Some("b".into()));
        assert_eq!(behind_all("\u{10ffff}"), None);
    }
}
