//! What is read from disks and sockets: records, manifests, keys, pairs' files, control messages, the journal.
//!
//! Nothing panics; nothing takes more memory than a small multiple of what was read; what is believed says the same when it is written and
//! read again, and has no number that a later step would trip over.

use std::path::Path;

use proptest::prelude::*;
use tierfs::control::protocol::{Reply, Request, WirePath};
use tierfs::engine::made_for;
use tierfs::journal::SqliteJournal;
use tierfs::pair::{file, units};
use tierfs::ports::{Intent, IntentKind, Journal};
use tierfs::record::{Claim, Flags, ObjectRef, PackName, PairRef, Record, Superseded, member_parts, place_of};
use tierfs::remote::manifest::Manifest;
use tierfs::remote::pack::{Index, Member};
use tierfs::types::{ByteRange, CHUNKS_MAX, ContentHash, FileId, Generation, Inode, ObjectKey, RawHandle, Timestamp};

use crate::fuzz;
use crate::memory::peak;
use crate::mutate::{mutated, mutations, number};

fn key() -> ObjectKey {
    ObjectKey("prefix/a/b.txt@1f-deadbeef.64a3c".into())
}

fn member_key() -> ObjectKey {
    let (share, tag) = ("0123456789abcdef".to_owned(), "00ff00ff00ff00ff".to_owned());
    let pack = PackName { prefix: "prefix".into(), share, generation: Generation(0x64a3c), tag };
    pack.member(&key(), ByteRange { offset: 0x1234, len: 0x4000 })
}

fn records() -> Vec<Record> {
    let pair = PairRef {
        name: "gp1".parse().unwrap(),
        local_cluster: "east".parse().unwrap(),
        local_share: "/srv/share".into(),
        remote_cluster: "west".parse().unwrap(),
        remote_share: "bucket/prefix".into(),
    };
    let object = |len| ObjectRef {
        pair: pair.clone(),
        key: key(),
        etag: "d41d8cd98f00b204e9800998ecf8427e".into(),
        version: Some("v1".into()),
        generation: Generation(0x64a3c),
        len,
        mtime: Timestamp { secs: -7, nanos: 999_999_999 },
        chunk_size: 4 << 20,
        root: ContentHash::of(b"root"),
    };
    let with = |claim, len| Record {
        claim,
        generation: Generation(0x64a3c),
        epoch: 3,
        flags: Flags { pinned: true, ..Flags::default() },
        object: Some(object(len)),
        superseded: None,
        patch: None,
        peer: None,
    };
    let mut patched = with(Claim::Stub, 5_000_000_000).into_patched(Generation(0x64a3d));
    if let Some(patch) = &mut patched.patch {
        for n in 0..9 {
            patch.wrote(ByteRange { offset: n << 24, len: 4096 + n }, 77);
            if n == 4 {
                patch.synced(&patch.fresh.clone());
            }
        }
    }
    let mut packed = with(Claim::Stub, 0x4000);
    packed.object.iter_mut().for_each(|object| object.key = member_key());
    let superseded = Superseded { pair: "gp1".parse().unwrap(), key: key(), manifest: true };
    vec![
        with(Claim::Stub, 5_000_000_000),
        with(Claim::Dual, 1),
        with(Claim::Releasing, 4 << 20),
        patched,
        packed,
        Record::unclaimed(),
        Record { superseded: Some(superseded), generation: Generation(9), ..Record::unclaimed() },
    ]
}

/// Puts the checksum right that ends a record or a manifest: damage that it cannot see.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let covered = bytes.len().saturating_sub(4);
    bytes.truncate(covered);
    let crc = crc32fast::hash(&bytes).to_le_bytes();
    bytes.extend_from_slice(&crc);
    bytes
}

/// What must hold of a record that was believed, or some step would panic or take memory without end.
fn is_usable(record: &Record) -> Result<(), TestCaseError> {
    prop_assert_eq!(Record::decode(&record.encode()), Ok(record.clone()));
    let _ = record.fits();
    if let (Some(patch), Some(object)) = (&record.patch, &record.object) {
        prop_assert!((1..=object.len).contains(&patch.base));
        let _ = (patch.is_whole(), patch.of_object(ByteRange { offset: object.len / 2, len: u64::MAX / 4 }));
    }
    if let Some(object) = &record.object {
        let chunks = object.chunks();
        prop_assert!((1..=CHUNKS_MAX).contains(&chunks), "{chunks} chunks");
        prop_assert!(object.chunk_range(0).len > 0);
        prop_assert_eq!(object.chunk_range(chunks - 1).end(), object.len);
        let _ = made_for(&object.key);
        if let Some(place) = place_of(&object.key) {
            prop_assert_eq!((place.range.len, chunks), (object.len, 1));
            let _ = (place.range.end(), place.pack.key());
        }
    }
    let resident = record.clone().into_resident(Generation(u64::MAX));
    prop_assert_eq!(Record::decode(&resident.encode()), Ok(resident));
    Ok(())
}

#[test]
fn records_are_what_they_say_or_refused() {
    let good: Vec<_> = records().iter().map(Record::encode).collect();
    let cases = (0..good.len(), mutations(5), any::<bool>());
    fuzz("records", 20_000, cases, |(which, mutations, seal)| {
        let mut bytes = mutated(&good[which], &mutations);
        if seal {
            bytes = sealed(bytes);
        }
        let (decoded, taken) = peak(|| Record::decode(&bytes));
        prop_assert!(taken <= 16 * 1024, "{taken} bytes for {}", bytes.len());
        let Ok(record) = decoded else { return Ok(()) };
        if !seal {
            prop_assert_eq!(&bytes, &good[which], "damage that the checksum must see");
        }
        is_usable(&record)
    });
}

/// Records with a right checksum whose numbers and texts nobody wrote.
#[test]
fn records_of_any_numbers_are_usable_or_refused() {
    let cases = (
        0..records().len(),
        (number(), number(), number()),
        (any::<u32>(), 0u32..32),
        any::<(i64, u32)>(),
        0usize..5_000,
    );
    fuzz(
        "numbers in records",
        20_000,
        cases,
        |(which, (len, generation, other), (chunk, bit), (secs, nanos), text)| {
            let mut record = records().swap_remove(which);
            record.generation = Generation(generation);
            if let Some(object) = record.object.as_mut() {
                object.len = len;
                object.generation = Generation(if other % 4 > 0 { generation } else { other });
                object.chunk_size = if chunk % 4 > 0 { 1 << bit } else { chunk };
                object.mtime = Timestamp { secs, nanos: nanos % 1_100_000_000 };
                if text > 3_000 {
                    object.etag = "e".repeat(text);
                } else if text > 1_500 {
                    object.key.0 = "k".repeat(text - 1_500);
                }
            }
            let stored = sealed([&b"TFS1\x01"[..], &postcard::to_stdvec(&record).unwrap(), &[0; 4]].concat());
            let (decoded, taken) = peak(|| Record::decode(&stored));
            prop_assert!(taken <= 32 * 1024, "{taken} bytes for {}", stored.len());
            decoded.map_or(Ok(()), |record| is_usable(&record))
        },
    );
}

#[test]
fn manifests_are_what_they_say_or_refused() {
    let good: Vec<_> = [0u64, 1, 2, 3, 200]
        .map(|chunks| {
            let hashes = (0..chunks).map(|n| ContentHash::of(&n.to_le_bytes())).collect();
            Manifest::new(chunks * 65_536 - chunks.min(1) * 9, 65_536, hashes).unwrap().encode()
        })
        .into();
    let cases = (0..good.len(), mutations(5), any::<bool>());
    fuzz("manifests", 10_000, cases, |(which, mutations, seal)| {
        let mut bytes = mutated(&good[which], &mutations);
        if seal {
            bytes = sealed(bytes);
        }
        let (decoded, taken) = peak(|| Manifest::decode(&bytes));
        // The count of hashes is believed as far as 1 MiB goes.
        prop_assert!(taken <= 4 * bytes.len() + (1 << 20) + 16 * 1024, "{taken} bytes for {}", bytes.len());
        let Ok(manifest) = decoded else { return Ok(()) };
        if !seal {
            prop_assert_eq!(&bytes, &good[which], "damage that the checksum must see");
        }
        prop_assert!(bytes.len() as u64 <= Manifest::encoded_len_max(manifest.chunks().len() as u64) + 5_000);
        prop_assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest.clone()));
        let covered: u64 =
            (0..manifest.chunks().len() as u64).filter_map(|n| manifest.chunk_range(n)).map(|range| range.len).sum();
        prop_assert_eq!(covered, manifest.len());
        Ok(())
    });
}

#[test]
fn keys_tell_their_file_or_nothing() {
    let good = key().0;
    fuzz("keys", 10_000, mutations(4), |mutations| {
        let bytes = mutated(good.as_bytes(), &mutations);
        let _ = made_for(&ObjectKey(String::from_utf8_lossy(&bytes).into_owned()));
        Ok(())
    });
    let good = member_key().0;
    fuzz("members' keys", 10_000, mutations(4), |mutations| {
        let key = ObjectKey(String::from_utf8_lossy(&mutated(good.as_bytes(), &mutations)).into_owned());
        let Some((own, place)) = member_parts(&key) else { return Ok(()) };
        prop_assert_eq!(place.pack.member(&ObjectKey(own.to_owned()), place.range), key.clone(), "one spelling");
        let pack = PackName::of_key(&place.pack.prefix, &place.pack.key());
        prop_assert_eq!(pack, Some(place.pack), "its pack is one");
        Ok(())
    });
}

#[test]
fn packs_are_what_they_say_or_refused() {
    let member = |n: u64| Member {
        key: key(),
        range: ByteRange { offset: n * 5, len: 5 },
        metadata: vec![("tierfs-mode".into(), "644".into())],
    };
    let good: Vec<_> = [0, 1, 100].map(|count| Index::new((0..count).map(member).collect()).unwrap().encode()).into();
    fuzz("packs", 10_000, (0..good.len(), mutations(5), any::<bool>()), |(which, mutations, seal)| {
        let mut bytes = mutated(&good[which], &mutations);
        if seal && bytes.len() > 12 {
            // The magic is behind the checksum.
            let magic = bytes.split_off(bytes.len() - 8);
            bytes = [sealed(bytes), magic].concat();
        }
        let pack_len = bytes.len() as u64 + 500;
        let (decoded, taken) = peak(|| Index::decode(&bytes, pack_len));
        prop_assert!(taken <= 40 * bytes.len() + (1 << 20) + 16 * 1024, "{taken} bytes for {}", bytes.len());
        let Ok(index) = decoded else { return Ok(()) };
        if !seal {
            prop_assert_eq!(&bytes, &good[which], "damage that the checksum must see");
        }
        for member in index.members() {
            prop_assert!(member.range.end() <= 500);
            prop_assert_eq!(index.at(member.range), Some(member));
        }
        prop_assert_eq!(Index::decode(&index.encode(), index.encode().len() as u64 + 500), Ok(index.clone()));
        Ok(())
    });
}

const PAIR: &str = r#"# a pair
local_cluster = "east"
local_share = "/srv/share"
remote_cluster = "west"
remote_share = "s3://cold/east"
endpoints = ["http://127.0.0.1:9000", "https://s3.example.com"]
region = "us-east-1"
remote_role = "gfs"
meta_sync_role = "master"
credentials_file = "/etc/tierfs/keys"
chunk_size = "4MiB"
retention = "24h"
"#;

/// Whatever a line holds, an error must not repeat it: it may be a key that somebody wrote into the wrong file.
#[test]
fn pair_files_are_pairs_or_errors_without_secrets() {
    const MARK: &str = "hjQ7zzSECRETzz0pQ";
    let with_secret = format!("{PAIR}secret_access_key = \"{MARK}\"\n");
    let cases = (any::<bool>(), mutations(4));
    fuzz("pair files", 4_000, cases, |(secret, mutations)| {
        let text = if secret { with_secret.as_str() } else { PAIR };
        let text = String::from_utf8_lossy(&mutated(text.as_bytes(), &mutations)).into_owned();
        let parse =
            |text: &str| file::parse(&"cold".parse().unwrap(), Path::new("/etc/tierfs/pairs.d/cold.toml"), text);
        let (parsed, taken) = peak(|| parse(&text));
        prop_assert!(taken <= 64 * text.len() + 64 * 1024, "{taken} bytes for {}", text.len());
        match parsed {
            Ok(pair) => {
                let again = file::format(&pair).and_then(|text| parse(&text));
                prop_assert_eq!(again.ok(), Some(pair));
            }
            Err(error) => {
                let told = error.to_string();
                // Unless the line was glued to another, which holds a value that is quoted.
                if text.contains(&format!("\nsecret_access_key = \"{MARK}")) {
                    prop_assert!(!told.contains(MARK), "{told}");
                }
                prop_assert!(!told.is_empty() && told.len() < 2_000, "{told}");
            }
        }
        Ok(())
    });
}

#[test]
fn quantities_are_numbers_or_errors() {
    fuzz("quantities", 5_000, ("[0-9]{0,24}(\\.[0-9]{0,3})? ?[A-Za-z]{0,4}", ".{0,20}"), |texts| {
        for text in [&texts.0, &texts.1] {
            if let Ok(size) = units::parse_size(text) {
                prop_assert_eq!(units::parse_size(&units::exact_size(size)), Ok(size));
            }
            if let Ok(seconds) = units::parse_duration(text) {
                prop_assert_eq!(units::parse_duration(&units::exact_duration(seconds)), Ok(seconds));
            }
        }
        Ok(())
    });
}

#[test]
fn control_messages_are_understood_or_refused() {
    let paths = vec![WirePath::Text("a/b".into()), WirePath::Bytes { bytes: b"\xff\xfe".to_vec() }];
    let requests = [
        Request::Migrate { paths: paths.clone(), recursive: true, archive_only: false },
        Request::Verify { paths: paths.clone(), recursive: false, sample_ppm: 10_000, md5: true },
        Request::Status { paths, recursive: true, files: true },
        Request::Mount,
    ];
    let good: Vec<_> = requests.iter().map(|request| serde_json::to_vec(request).unwrap()).collect();
    let replies = [
        r#"{"reply":"progress","files_total":2,"files_done":1,"bytes_total":7,"bytes_done":3,"walked":true}"#,
        r#"{"reply":"failure","path":{"bytes":[255,1]},"reason":"no","skipped":false}"#,
        r#"{"reply":"done","files":2,"bytes":7,"unchanged":0,"skipped":0,"failed":0,"seconds":0.5,"states":{"stub":{"files":1,"bytes":2,"local":3}}}"#,
        r#"{"reply":"error","message":"no pair"}"#,
    ];
    let cases = (0..8usize, mutations(4));
    fuzz("control messages", 10_000, cases, |(which, mutations)| {
        let (good, is_request) =
            if which < 4 { (good[which].as_slice(), true) } else { (replies[which - 4].as_bytes(), false) };
        let bytes = mutated(good, &mutations);
        let bound = 64 * bytes.len() + 16 * 1024;
        if is_request {
            let (request, taken) = peak(|| serde_json::from_slice::<Request>(&bytes));
            prop_assert!(taken <= bound, "{taken} bytes for {}", bytes.len());
            if let Ok(request) = request {
                let line = serde_json::to_vec(&request).unwrap();
                prop_assert!(!line.contains(&b'\n'));
                prop_assert_eq!(serde_json::from_slice::<Request>(&line).unwrap(), request);
            }
        } else {
            let (reply, taken) = peak(|| serde_json::from_slice::<Reply>(&bytes));
            prop_assert!(taken <= bound, "{taken} bytes for {}", bytes.len());
            if let Ok(reply) = reply {
                prop_assert!(!serde_json::to_vec(&reply).unwrap().contains(&b'\n'));
            }
        }
        Ok(())
    });
}

/// A journal with some notes, closed.
fn journal(dir: &Path, runtime: &tokio::runtime::Runtime) -> std::path::PathBuf {
    let path = dir.join("journal.sqlite");
    let journal = SqliteJournal::open(&path).unwrap();
    let handle = RawHandle::new(1, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
    let kinds = [
        IntentKind::Upload,
        IntentKind::Delete { not_before: Timestamp { secs: 5, nanos: 6 } },
        IntentKind::Settle { mtime: Timestamp { secs: -5, nanos: 6 } },
    ];
    for n in 0..12u64 {
        let node = Inode { id: FileId { ino: n, birth: u64::MAX - n }, handle };
        let kind = kinds[n as usize % 3];
        let intent = Intent { pair: "p".parse().unwrap(), key: key(), manifest: n % 2 == 0, node, kind };
        runtime.block_on(journal.add(intent)).unwrap();
    }
    drop(journal);
    path
}

/// All that a start and the deletions ask of a journal.
fn asked(path: &Path, runtime: &tokio::runtime::Runtime) -> Result<Vec<Intent>, String> {
    let journal = SqliteJournal::open(path).map_err(|error| error.to_string())?;
    let told = |error: tierfs::ports::JournalError| error.to_string();
    runtime.block_on(async {
        let mut notes = journal.unfinished(None, 100).await.map_err(told)?;
        let now = Timestamp { secs: i64::MAX, nanos: 999_999_999 };
        notes.extend(journal.due(&"p".parse().unwrap(), now, 100).await.map_err(told)?);
        journal.counts().await.map_err(told)?;
        Ok(notes.into_iter().map(|(_, intent)| intent).collect())
    })
}

#[test]
fn a_damaged_journal_is_refused_or_read_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let good = std::fs::read(journal(dir.path(), &runtime)).unwrap();
    let damaged = dir.path().join("damaged.sqlite");
    fuzz("journals", 150, mutations(4), |mutations| {
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", damaged.display()));
        }
        let bytes = mutated(&good, &mutations);
        std::fs::write(&damaged, &bytes).unwrap();
        match asked(&damaged, &runtime) {
            Ok(_) => {}
            Err(told) => {
                prop_assert!(told.contains("damaged.sqlite") && told.len() < 1_000, "{told}");
                // What cannot be used is left as it was found, for somebody to look at.
                let now = std::fs::read(&damaged).unwrap();
                prop_assert!(now.len() >= bytes.len().min(16), "it was emptied: {told}");
            }
        }
        Ok(())
    });
}

/// Rows that the schema lets through and nobody wrote.
#[test]
fn odd_rows_of_the_journal_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let path = journal(dir.path(), &runtime);
    let good = std::fs::read(&path).unwrap();
    let text = ".{0,70}";
    let cases =
        (text, text, any::<(i64, i64, i64)>(), proptest::collection::vec(any::<u8>(), 0..60), any::<(i64, i64)>());
    fuzz("journal rows", 150, cases, |(pair, key, (ino, birth, handle_kind), handle, (secs, nanos))| {
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
        }
        std::fs::write(&path, &good).unwrap();
        let fits = pair.parse::<tierfs::types::PairName>().is_ok()
            && handle.len() <= tierfs::types::HANDLE_BYTES_MAX
            && i32::try_from(handle_kind).is_ok()
            && (0..1_000_000_000).contains(&nanos);
        {
            let db = rusqlite::Connection::open(&path).unwrap();
            let sql = "UPDATE intent SET pair = ?1, key = ?2, ino = ?3, birth = ?4, handle_kind = ?5, handle = ?6, at_secs = ?7, at_nanos = ?8 WHERE id = 3";
            db.execute(sql, rusqlite::params![pair, key, ino, birth, handle_kind, handle, secs, nanos]).unwrap();
        }
        match asked(&path, &runtime) {
            Ok(notes) => {
                prop_assert!(fits, "believed");
                let wanted = Timestamp { secs, nanos: nanos as u32 };
                let kind = IntentKind::Settle { mtime: wanted };
                prop_assert!(notes.iter().any(|note| note.key.0 == key && note.kind == kind));
            }
            Err(told) => prop_assert!(told.contains("journal.sqlite"), "{told}"),
        }
        Ok(())
    });
}
