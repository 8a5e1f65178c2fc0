//! Listings: every key once, in byte order, whatever the page, the prefix and the delimiter.

use std::collections::BTreeSet;
use std::fs;

use crate::place::{BUCKET, Place};

/// What a listing is to say, from all keys.
fn expected(all: &BTreeSet<String>, prefix: &str, delimiter: Option<&str>) -> (Vec<String>, Vec<String>) {
    let (mut keys, mut prefixes) = (Vec::new(), BTreeSet::new());
    for key in all.iter().filter(|key| key.starts_with(prefix)) {
        match delimiter.and_then(|d| key[prefix.len()..].find(d).map(|at| &key[..prefix.len() + at + d.len()])) {
            Some(common) => drop(prefixes.insert(common.to_owned())),
            None => keys.push(key.clone()),
        }
    }
    (keys, prefixes.into_iter().collect())
}

#[test]
fn every_key_once_and_in_order() {
    let Some(place) = Place::alone() else { return };
    // Names around the slash, which is where the order of directories and of keys differ.
    let names = [
        "l/a",
        "l/a-b",
        "l/a.b",
        "l/a0",
        "l/b/1",
        "l/b/2/x",
        "l/b/2/y",
        "l/b-/z",
        "l/b.txt",
        "l/c/d/e/f",
        "l/c/d.e",
        "l/c/d0/x",
        "l/z/a b",
        "l/z/ü",
        "l/z/日本",
        "l/z/\u{10000}",
        "l/z/\u{e000}",
        "l/ö",
        "l/~",
    ];
    for name in names {
        let path = place.rig.low(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, name).unwrap();
    }
    fs::create_dir_all(place.rig.low("l/empty/er")).unwrap();
    let mut all: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
    all.insert("l/empty/er/".into());
    for prefix in [
        "l/",
        "l/a",
        "l/b",
        "l/b/",
        "l/b/2",
        "l/b/2/",
        "l/c/d",
        "l/z/",
        "l/empty/",
        "l/empty/er/",
        "l/q",
        "l/b.txt/",
        "l",
    ] {
        for delimiter in [None, Some("/"), Some("d"), Some("/d"), Some("b")] {
            let wanted = expected(&all, prefix, delimiter);
            for page in [1, 2, 3, 1_000] {
                let found = place.list_by(&place.root, prefix, delimiter, page).unwrap();
                assert_eq!(found, wanted, "prefix {prefix:?}, delimiter {delimiter:?}, pages of {page}");
            }
        }
    }
    let ordered: Vec<&String> = all.iter().collect();
    for after in ["l/", "l/a", "l/a-", "l/b/", "l/b/1", "l/b/2/x", "l/b0", "l/empty/er/", "l/z/\u{e000}", "zzz", ""] {
        let list = place.root.client.list_objects_v2().bucket(BUCKET).prefix("l/").start_after(after);
        let found = place.rig.block_on(list.send()).unwrap().contents.unwrap_or_default();
        let found: Vec<String> = found.into_iter().filter_map(|object| object.key).collect();
        let wanted: Vec<String> = ordered.iter().filter(|key| key.as_str() > after).map(|key| (*key).clone()).collect();
        assert_eq!(found, wanted, "after {after:?}");
    }
}

/// A delimiter listing looks into no directory: one that may not even be opened is told like the others.
#[test]
fn a_directory_that_is_not_asked_for_is_not_entered() {
    let Some(place) = Place::alone() else { return };
    fs::create_dir(place.rig.low("bob/inner")).unwrap();
    fs::write(place.rig.low("bob/inner/f"), "x").unwrap();
    let (keys, prefixes) = place.list_by(&place.alice, "", Some("/"), 1_000).unwrap();
    assert_eq!((keys.len(), prefixes), (0, ["alice/", "bob/", "open/", "root/"].map(str::to_owned).to_vec()));
    assert_eq!(place.list_by(&place.alice, "bob/", None, 10), Err("AccessDenied".into()));
    assert_eq!(place.keys(&place.alice, ""), ["alice/", "open/", "root/"]);
    assert_eq!(place.keys(&place.root, ""), ["alice/", "bob/inner/f", "open/", "root/"]);
}

#[test]
fn a_directory_of_many_names() {
    let Some(place) = Place::over(crate::rig::Setup { size: 1 << 30, ..Default::default() }) else { return };
    let dir = place.rig.low("open/many");
    fs::create_dir(&dir).unwrap();
    for n in 0..20_000 {
        fs::File::create(dir.join(format!("{:05}", n * 7 % 20_000))).unwrap();
    }
    let keys = place.keys(&place.root, "open/many/");
    assert_eq!(keys.len(), 20_000);
    assert!(keys.iter().enumerate().all(|(n, key)| *key == format!("open/many/{n:05}")));
}
