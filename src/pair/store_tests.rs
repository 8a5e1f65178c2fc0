//! Tests of the directory of pairs: what is accepted beside what, and what reaches the disk.

use std::os::unix::fs::MetadataExt;

use super::super::{
    AfterRecall, PACK_BELOW_DEFAULT, REGION_DEFAULT, RESTORE_DAYS_DEFAULT, RETENTION_DEFAULT_S, RemoteRole,
    WhenArchived,
};
use super::*;

fn pair(name: &str) -> Pair {
    Pair {
        name: name.parse().unwrap(),
        local_cluster: "east".parse().unwrap(),
        local_share: "/srv/no-such-share".into(),
        remote_cluster: "west".parse().unwrap(),
        bucket: "cold".into(),
        prefix: "east".into(),
        endpoints: vec!["http://127.0.0.1:9000".into()],
        region: REGION_DEFAULT.into(),
        role: RemoteRole::Gfs,
        meta_sync: None,
        credentials_file: None,
        credentials_profile: None,
        chunk_size: None,
        retention_s: RETENTION_DEFAULT_S,
        after_recall: AfterRecall::Delete,
        recall_retention_s: None,
        recall: Default::default(),
        archived: WhenArchived::Fail,
        restore_days: RESTORE_DAYS_DEFAULT,
        pack: false,
        pack_below: PACK_BELOW_DEFAULT,
    }
}

fn nothing_claims(_: &Pair) -> PairResult<ClaimCheck> {
    Ok(ClaimCheck::Free)
}

#[test]
fn round_trip_with_private_modes() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("etc"));
    assert!(store.load_all().unwrap().is_empty());
    let p = pair("p");
    store.add(&p, false).unwrap();
    assert_eq!(store.load(&p.name).unwrap(), p);
    assert_eq!(store.load_all().unwrap(), vec![p.clone()]);
    assert_eq!(fs::metadata(store.path_of(&p.name)).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(fs::metadata(store.directory()).unwrap().mode() & 0o7777, 0o700);
    let left: Vec<_> = fs::read_dir(store.directory()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "only the pair and the lock: {left:?}");
    store.remove(&p.name, &nothing_claims).unwrap();
    let message = store.load(&p.name).unwrap_err().to_string();
    assert!(message.contains("no pair p") && message.contains("pair add"), "{message}");
}

#[test]
fn what_may_stand_beside_what() {
    let with = |name: &str, change: fn(&mut Pair)| {
        let mut new = pair(name);
        change(&mut new);
        new
    };
    // The pair there, the pair added, refused without and with --force by a message that holds the piece.
    let mirrored: fn(&mut Pair) = |p| {
        p.local_cluster = "west".parse().unwrap();
        p.remote_cluster = "east".parse().unwrap();
        p.local_share = "/data/cold/east".into();
        p.bucket = "no-such-share".into();
        p.prefix = String::new();
    };
    let cases: Vec<(Pair, Pair, Option<&str>, Option<&str>)> = vec![
        (pair("a"), pair("a"), Some("exists already"), Some("exists already")),
        (pair("a"), pair("b"), Some("same four"), Some("same four")),
        (pair("a"), with("b", |p| p.bucket = "other".into()), Some("same share"), None),
        (pair("a"), with("b", |p| p.local_share = "/srv/b".into()), Some("same place"), None),
        (
            pair("a"),
            with("b", |p| {
                p.local_share = "/srv/b".into();
                p.prefix = "b".into();
            }),
            None,
            None,
        ),
        (with("a", |p| p.meta_sync = Some(MetaSyncRole::Master)), with("b", mirrored), None, None),
        (
            with("a", |p| p.meta_sync = Some(MetaSyncRole::Master)),
            {
                let mut other = with("b", mirrored);
                other.meta_sync = Some(MetaSyncRole::Master);
                other
            },
            Some("master"),
            Some("master"),
        ),
        (
            with("a", |p| p.meta_sync = Some(MetaSyncRole::Master)),
            {
                let mut other = with("b", mirrored);
                other.meta_sync = Some(MetaSyncRole::Slave);
                other
            },
            None,
            None,
        ),
    ];
    for (there, new, plain, forced) in cases {
        for (force, want) in [(false, plain), (true, forced)] {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(dir.path());
            store.add(&there, false).unwrap();
            let got = store.add(&new, force).err().map(|error| error.to_string());
            match (want, &got) {
                (None, None) => {}
                (Some(piece), Some(message)) if message.contains(piece) => {}
                _ => panic!("{there:?} beside {new:?}, force {force}: wanted {want:?}, got {got:?}"),
            }
        }
    }
}

#[test]
fn edits_keep_identity_and_roles_apart() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path());
    let p = pair("p");
    store.add(&p, false).unwrap();
    let claimed = |_: &Pair| Ok(ClaimCheck::Claimed { files: 3, example: "/srv/x".into() });
    let edited = store.edit(&p.name, |p| Ok(Pair { retention_s: 60, ..p }), &claimed).unwrap();
    assert_eq!(edited.retention_s, 60);
    assert_eq!(store.load(&p.name).unwrap(), edited);
    let message =
        store.edit(&p.name, |p| Ok(Pair { bucket: "new".into(), ..p }), &nothing_claims).unwrap_err().to_string();
    assert!(message.contains("four identifiers"), "{message}");
    let message = store.edit(&p.name, |p| Ok(Pair { role: RemoteRole::Gpeer, ..p }), &claimed).unwrap_err().to_string();
    assert!(message.contains("at least 3 files"), "{message}");
    store.edit(&p.name, |p| Ok(Pair { role: RemoteRole::Gpeer, ..p }), &nothing_claims).unwrap();
    // An edit that would not read back leaves the file as it was.
    store.edit(&p.name, |p| Ok(Pair { chunk_size: Some(5), ..p }), &nothing_claims).unwrap_err();
    assert_eq!(store.load(&p.name).unwrap().chunk_size, None);
}

#[test]
fn removal_is_refused_while_anything_hangs_on_the_pair() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path());
    let p = pair("p");
    store.add(&p, false).unwrap();
    for (check, piece) in [
        (ClaimCheck::Claimed { files: 2, example: "/srv/x".into() }, "tierfs recall -r"),
        (ClaimCheck::Mounted { mountpoint: "/mnt/t".into(), pid: 7 }, "tierfs umount /mnt/t"),
    ] {
        let message = store.remove(&p.name, &|_| Ok(check.clone())).unwrap_err().to_string();
        assert!(message.contains(piece), "{message}");
        store.load(&p.name).unwrap();
    }
    store.remove(&p.name, &|_| Err(PairError::Value("cannot look".into()))).unwrap_err();
    store.load(&p.name).unwrap();
}

#[test]
fn pairs_are_found_by_share() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("etc"));
    let share = dir.path().join("share");
    fs::create_dir(&share).unwrap();
    std::os::unix::fs::symlink(&share, dir.path().join("link")).unwrap();
    let mut p = pair("p");
    p.local_share = share.clone();
    store.add(&p, false).unwrap();
    assert_eq!(store.for_share(&dir.path().join("link")).unwrap().as_ref(), Some(&p));
    assert_eq!(store.for_share(Path::new("/srv/other")).unwrap(), None);
    // A broken neighbour does not hide a sound pair, but is told where none is found, and stops an add.
    fs::write(store.directory().join("broken.toml"), "nonsense").unwrap();
    assert_eq!(store.for_share(&share).unwrap().as_ref(), Some(&p));
    assert!(store.for_share(Path::new("/srv/other")).unwrap_err().to_string().contains("broken.toml:1"));
    assert!(store.load_all().is_err());
    assert_eq!(store.entries().unwrap().len(), 2);
    fs::remove_file(store.directory().join("broken.toml")).unwrap();
    let mut q = pair("q");
    q.local_share = share.clone();
    q.prefix = "q".into();
    store.add(&q, true).unwrap();
    assert!(store.for_share(&share).unwrap_err().to_string().contains("--pair"));
}
