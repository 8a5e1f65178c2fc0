//! Tests of the record codec: round trip, golden bytes, damage.

use super::*;
use crate::types::{FileId, PairFileId};

fn sample() -> Record {
    Record {
        claim: Claim::Stub,
        generation: Generation(0x0006_4a3c_1234_5678),
        epoch: 3,
        flags: Flags { pinned: false, no_recall: true, retained: false },
        object: Some(ObjectRef {
            pair: PairRef {
                name: "gp1".parse().unwrap(),
                local_cluster: "east".parse().unwrap(),
                local_share: "/srv/share".into(),
                remote_cluster: "west".parse().unwrap(),
                remote_share: "bucket/prefix".into(),
            },
            key: ObjectKey("prefix/a/b@c-1.64a3c".into()),
            etag: "d41d8cd98f00b204e9800998ecf8427e".into(),
            version: None,
            generation: Generation(0x0006_4a3c_1234_5678),
            len: 5_000_000_000,
            mtime: Timestamp { secs: -7, nanos: 999_999_999 },
            chunk_size: 4 << 20,
            root: ContentHash::of(b"root"),
        }),
        superseded: None,
        patch: None,
        peer: None,
    }
}

fn patched() -> Record {
    let mut record = sample().into_patched(Generation(0x0006_4a3c_1234_5679));
    let patch = record.patch.as_mut().unwrap();
    patch.wrote(ByteRange { offset: 100, len: 50 }, 9);
    patch.synced(&patch.fresh.clone());
    patch.wrote(ByteRange { offset: 5_000, len: 1 }, 0xdead_beef);
    record
}

fn packed() -> Record {
    let mut record = sample();
    let object = record.object.as_mut().unwrap();
    (object.len, object.chunk_size) = (16 << 10, 1 << 20);
    let (prefix, tag) = ("prefix".to_owned(), "00000000000000ff".to_owned());
    let pack =
        PackName { prefix, share: "0123456789abcdef".into(), generation: Generation(0x0006_4a3c_0000_0000), tag };
    object.key = pack.member(&object.key, ByteRange { offset: 0x1_2345, len: object.len });
    record
}

#[test]
fn round_trips() {
    for record in [
        sample(),
        patched(),
        packed(),
        packed().into_resident(Generation(u64::MAX)),
        packed().into_patched(Generation(u64::MAX)),
        Record::unclaimed(),
        sample().into_resident(Generation(u64::MAX)),
    ] {
        assert_eq!(Record::decode(&record.encode()), Ok(record));
    }
}

/// Version 1 as first released: these bytes are on people's disks and must decode forever.
#[test]
fn golden_version_1() {
    let golden = include_bytes!("golden/v1.bin");
    assert_eq!(Record::decode(golden), Ok(sample()));
    assert_eq!(sample().encode(), golden);
}

fn with_peer(phase: Phase) -> Record {
    let peer = PeerState {
        pair: "gp1".parse().unwrap(),
        id: PairFileId([7; 16]),
        here: FileId { ino: 0x2f, birth: 0xdef },
        there: FileId { ino: 0x1f, birth: 0xabc },
        epoch: 5,
        phase,
        content: Seal { len: 77, mtime: Timestamp { secs: 9, nanos: 8 } },
        offered: Some(ContentHash([9; 32])),
        attempt: 2,
        refused: Attempted { epoch: 6, attempt: 3 },
        was_len: Some(9),
    };
    let record = Record { peer: Some(peer.clone()), ..sample() };
    match phase {
        Phase::Owner { .. } | Phase::Offering => {
            Record { claim: Claim::Resident, object: None, flags: Flags::default(), ..record }
        }
        Phase::Stub | Phase::Taking => {
            let object = sample().object.unwrap();
            let stands_for = peer_object(object.pair, peer.id, object.generation, object.len, object.mtime, 4 << 20);
            let claim = if phase == Phase::Stub { Claim::Partial } else { Claim::Dual };
            Record { claim, object: Some(stands_for), ..record }
        }
    }
}

const PHASES: [Phase; 5] =
    [Phase::Owner { published: false }, Phase::Owner { published: true }, Phase::Stub, Phase::Offering, Phase::Taking];

/// Version 4: files that both sides of a pair have.
#[test]
fn golden_version_4() {
    assert_eq!(with_peer(Phase::Stub).encode(), include_bytes!("golden/v4-stub.bin"));
    assert_eq!(with_peer(PHASES[1]).encode(), include_bytes!("golden/v4-owner.bin"));
    for phase in PHASES {
        assert_eq!(Record::decode(&with_peer(phase).encode()), Ok(with_peer(phase)));
    }
}

#[test]
fn who_owns_the_content_goes_with_where_it_is() {
    for phase in PHASES {
        for claim in [Claim::Resident, Claim::Dual, Claim::Releasing, Claim::Stub, Claim::Partial] {
            let mut record = Record { claim, ..with_peer(phase) };
            if claim != Claim::Resident {
                record.object = with_peer(Phase::Stub).object;
            }
            let fits = match (phase, claim) {
                (Phase::Owner { .. } | Phase::Offering, claim) => claim == Claim::Resident,
                (Phase::Taking, claim) => claim == Claim::Dual,
                (Phase::Stub, claim) => claim.is_remote(),
            };
            assert_eq!(record.check().is_ok(), fits, "{phase:?} {claim:?}");
        }
    }
    // An empty file has no object, wherever it belongs.
    for phase in [Phase::Stub, Phase::Taking] {
        assert!(Record { claim: Claim::Resident, object: None, ..with_peer(phase) }.check().is_ok());
    }
    let other = sample().object;
    assert!(Record { object: other, ..with_peer(Phase::Stub) }.check().is_err(), "an object at a store");
}

#[test]
fn changed_content_has_no_seal_and_gives_no_object_up() {
    let changed = with_peer(PHASES[1]).into_resident(Generation(u64::MAX));
    assert_eq!(changed.peer.as_ref().unwrap().phase, Phase::Owner { published: false });
    assert_eq!((changed.object, changed.superseded), (None, None));
}

/// Version 3, which has patches.
#[test]
fn golden_version_3() {
    let golden = include_bytes!("golden/v3.bin");
    assert_eq!(Record::decode(golden), Ok(patched()));
    assert_eq!(patched().encode(), golden);
}

/// Version 5, which has members of packs.
#[test]
fn golden_version_5() {
    let golden = include_bytes!("golden/v5.bin");
    assert_eq!(Record::decode(golden), Ok(packed()));
    assert_eq!(packed().encode(), golden);
}

#[test]
fn members_have_the_version_that_knows_them() {
    for record in [packed(), packed().into_resident(Generation(u64::MAX)), packed().into_patched(Generation(u64::MAX))]
    {
        let mut bytes = record.encode();
        assert_eq!(bytes[4], 5);
        bytes[4] = 3;
        let body = bytes.len() - 4;
        let crc = crc32fast::hash(&bytes[..body]).to_le_bytes();
        bytes[body..].copy_from_slice(&crc);
        assert!(
            matches!(Record::decode(&bytes), Err(RecordError::Contradiction(_))),
            "an older tierfs would not find it"
        );
    }
    let mut other_len = packed();
    other_len.object.as_mut().unwrap().len += 1;
    assert!(other_len.check().is_err());
    let mut chunks = packed();
    let object = chunks.object.as_mut().unwrap();
    object.len = 128 << 10;
    object.chunk_size = 64 << 10;
    object.key = ObjectKey(object.key.0.replace(".4000", ".20000"));
    assert!(place_of(&object.key).is_some() && chunks.check().is_err());
}

#[test]
fn the_longest_patch_can_be_stored() {
    let mut record = sample();
    let object = record.object.as_mut().unwrap();
    (object.len, object.chunk_size) = (64 << 40, 64 << 20);
    object.key = ObjectKey("k".repeat(1024));
    let mut record = record.into_patched(Generation(u64::MAX));
    let patch = record.patch.as_mut().unwrap();
    let far = |n: u64| ByteRange { offset: (32 << 40) + (n << 32), len: (1 << 31) + n };
    for n in 0..PATCH_RANGES_MAX as u64 {
        assert!(!patch.is_full_for(far(n)));
        patch.wrote(far(n), u64::MAX);
    }
    assert!(patch.is_full_for(far(PATCH_RANGES_MAX as u64)));
    assert_eq!(Record::decode(&record.encode()), Ok(record.clone()));
}

#[test]
fn every_flipped_bit_and_every_truncation_is_noticed() {
    [sample(), patched(), packed(), with_peer(Phase::Stub)].iter().for_each(every_damage_is_noticed);
}

fn every_damage_is_noticed(record: &Record) {
    let good = record.encode();
    for bit in 0..good.len() * 8 {
        let mut bad = good.to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(Record::decode(&bad).is_err(), "bit {bit} flipped unnoticed");
    }
    for len in 0..good.len() {
        assert!(Record::decode(&good[..len]).is_err(), "cut to {len} unnoticed");
    }
}

#[test]
fn contradictions_are_refused_even_with_a_right_checksum() {
    let mut wrong = Vec::new();
    let mut no_object = sample();
    no_object.object = None;
    wrong.push(no_object);
    let mut resident = sample();
    resident.claim = Claim::Resident;
    wrong.push(resident);
    let mut other_generation = sample();
    other_generation.generation = Generation(1);
    wrong.push(other_generation);
    for record in wrong {
        let mut bytes = [MAGIC.as_slice(), &[2]].concat();
        bytes = postcard::to_extend(&record, bytes).unwrap();
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        assert!(matches!(Record::decode(&bytes), Err(RecordError::Contradiction(_))), "{record:?}");
        assert!(std::panic::catch_unwind(|| record.encode()).is_err());
    }
}

/// A store may call its objects by names of any length, and a share's path may have 4 KiB.
#[test]
fn what_would_not_be_read_back_is_not_stored() {
    let with_etag = |len| {
        let mut record = sample();
        record.object.as_mut().unwrap().etag = "e".repeat(len);
        record
    };
    let mut longest = with_etag((0..ENCODED_LEN_MAX).rev().find(|len| with_etag(*len).fits()).unwrap());
    let object = longest.object.as_mut().unwrap();
    (object.mtime, object.generation) = (Timestamp { secs: i64::MIN, nanos: 999_999_999 }, Generation(u64::MAX));
    (longest.generation, longest.epoch) = (Generation(u64::MAX), u64::MAX);
    assert_eq!(Record::decode(&longest.encode()), Ok(longest));
    assert!(!with_etag(ENCODED_LEN_MAX).fits());
    assert!(std::panic::catch_unwind(|| with_etag(ENCODED_LEN_MAX).encode()).is_err());
}

#[test]
fn a_later_version_says_so() {
    let mut bytes = sample().encode();
    bytes[4] = 9;
    let body = bytes.len() - 4;
    let crc = crc32fast::hash(&bytes[..body]).to_le_bytes();
    bytes[body..].copy_from_slice(&crc);
    assert_eq!(Record::decode(&bytes), Err(RecordError::Version(9)));
}
