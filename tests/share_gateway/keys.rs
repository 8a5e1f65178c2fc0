//! Keys that are no paths, and paths that are no keys.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;

use crate::place::{BUCKET, Place};
use crate::s3;

/// The status line of a signed request for a raw path, which the SDK would clean.
fn raw(place: &Place, method: &str, path: &str) -> String {
    let reply = place.rig.block_on(s3::http(place.addr(), &format!("{method} {path}"), "", b"x"));
    reply.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn nothing_leads_out_of_the_share() {
    let Some(place) = Place::alone() else { return };
    let outside = place.rig.fs.path().join("outside");
    fs::write(&outside, "secret").unwrap();
    for key in
        ["../outside", "open/../../outside", "/outside", "open//x", "open/./x", "open/x\0y", "..", ".", "//", "open/.."]
    {
        assert_eq!(place.put(&place.root, key, "evil").map(drop), Err("InvalidArgument".into()), "PUT {key:?}");
        let got = place.get(&place.root, key);
        assert!(
            got.as_ref().is_err_and(|code| code == "InvalidArgument" || code == "NoSuchKey"),
            "GET {key:?}: {got:?}"
        );
        assert_eq!(place.rename(&place.root, "open/a", key), Err("InvalidArgument".into()), "rename {key:?}");
    }
    assert_eq!(place.put(&place.root, &"n".repeat(256), "x").map(drop), Err("KeyTooLongError".into()));
    assert_eq!(fs::read(&outside).unwrap(), b"secret");
    // Without a signature nothing is looked at.
    for path in ["/share/../outside", "/share/%2e%2e/outside", "/share/open/k"] {
        assert!(raw(&place, "PUT", path).contains("403"), "{path}");
    }
    // Symbolic links are neither followed nor shown, wherever they are.
    let link = |to: &std::path::Path, name: &str| std::os::unix::fs::symlink(to, place.rig.low(name)).unwrap();
    link(&outside, "open/link");
    link(&place.rig.fs.path(), "open/up");
    link(&place.rig.low("root"), "open/in");
    for key in ["open/link", "open/up/outside", "open/in/x"] {
        assert_eq!(place.get(&place.root, key), Err("NoSuchKey".into()), "{key}");
        let put = place.put(&place.root, key, "evil").map(drop);
        assert_eq!(put, Err("KeyInTheWay".into()), "{key}");
        place.delete(&place.root, key).unwrap();
    }
    assert_eq!(fs::read(&outside).unwrap(), b"secret");
    assert!(place.rig.low("open/link").is_symlink());
    let fifo = std::process::Command::new("mkfifo").arg(place.rig.low("open/fifo")).status().unwrap();
    assert!(fifo.success());
    assert_eq!(place.get(&place.root, "open/fifo"), Err("NoSuchKey".into()));
    assert_eq!(place.put(&place.root, "open/fifo", "x").map(drop), Err("KeyInTheWay".into()));
    assert_eq!(place.keys(&place.root, "open/"), Vec::<String>::new());
    // Files and directories do not take each other's place.
    place.put(&place.root, "open/file", "x").unwrap();
    assert_eq!(place.put(&place.root, "open/file/below", "x").map(drop), Err("KeyInTheWay".into()));
    assert_eq!(place.put(&place.root, "open/file/", "").map(drop), Err("KeyInTheWay".into()));
    assert_eq!(place.put(&place.root, "open", "x").map(drop), Err("KeyInTheWay".into()));
    assert_eq!(place.put(&place.root, "open/dir/", "content").map(drop), Err("InvalidArgument".into()));
    assert_eq!(place.get(&place.root, "open"), Err("NoSuchKey".into()));
}

#[test]
fn strange_names_are_keys_as_they_are() {
    let Some(place) = Place::alone() else { return };
    let names = [
        "a b",
        "a+b",
        "ü/ö ß",
        "日本/語",
        "%41",
        "a%2Fb",
        "~x",
        "'q\"",
        "<&>",
        "x\ny",
        ".hidden",
        "...",
        "a\\b",
        "#?=&;",
    ];
    for name in names {
        let key = format!("open/{name}");
        place.put(&place.root, &key, name).unwrap_or_else(|error| panic!("{name:?}: {error}"));
        assert_eq!(fs::read(place.rig.low(&key)).unwrap(), name.as_bytes(), "{name:?}");
        assert_eq!(place.get(&place.root, &key).unwrap(), name.as_bytes(), "{name:?}");
    }
    // Names that are not UTF-8 cannot be keys: they are left out, and nothing else is.
    let odd = std::ffi::OsStr::from_bytes(b"odd\xff");
    fs::write(place.rig.low("open").join(odd), "x").unwrap();
    let listed = place.root.client.list_objects_v2().bucket(BUCKET).prefix("open/").encoding_type("url".into());
    let listed = place.rig.block_on(listed.send()).unwrap().contents.unwrap();
    assert_eq!(listed.len(), names.len());
}

/// The id of an upload is part of a path, and comes from a client.
#[test]
fn ids_of_uploads_lead_nowhere_else() {
    let Some(place) = Place::alone() else { return };
    let create = place.alice.client.create_multipart_upload().bucket(BUCKET).key("alice/big");
    let id = place.rig.block_on(create.send()).unwrap().upload_id.unwrap();
    let foreign = format!("../u{}/upload-{id}", crate::place::ALICE);
    for bad in [foreign.as_str(), "..", "", "../../../alice", &"0".repeat(32), &id.to_uppercase(), &format!("{id}/")] {
        let abort = place.bob.client.abort_multipart_upload().bucket(BUCKET).key("alice/big").upload_id(bad);
        let code = s3::code(place.rig.block_on(abort.send()).unwrap_err());
        assert!(["NoSuchUpload", "other"].contains(&code.as_str()), "{bad:?}: {code}");
        let part = place.alice.client.upload_part().bucket(BUCKET).key("alice/other").upload_id(bad).part_number(1);
        let part = place.rig.block_on(part.body(aws_sdk_s3::primitives::ByteStream::from_static(b"x")).send());
        let code = s3::code(part.unwrap_err());
        assert!(["NoSuchUpload", "other"].contains(&code.as_str()), "{bad:?}: {code}");
    }
    assert_eq!(place.staged(), 1);
    // Nor does an id serve another key.
    let list = place.alice.client.list_parts().bucket(BUCKET).key("alice/other").upload_id(&id);
    assert_eq!(s3::code(place.rig.block_on(list.send()).unwrap_err()), "NoSuchUpload");
}

/// What the gateway keeps for itself is no key, and no name of the mount.
#[test]
fn its_own_directory_is_hidden() {
    let Some(mut place) = Place::alone() else { return };
    let create = place.root.client.create_multipart_upload().bucket(BUCKET).key("open/big");
    place.rig.block_on(create.send()).unwrap();
    place.put(&place.root, "open/f", "x").unwrap();
    assert_eq!(place.staged(), 1);
    let hidden = ".tierfs-gateway";
    assert_eq!(place.get(&place.root, &format!("{hidden}/u0/x")), Err("InvalidArgument".into()));
    assert_eq!(place.put(&place.root, hidden, "x").map(drop), Err("InvalidArgument".into()));
    assert!(!place.keys(&place.root, "").iter().any(|key| key.contains(hidden)));
    assert_eq!(place.keys(&place.root, ".tierfs-gateway/"), Vec::<String>::new());
    place.stop();
    place.through_a_mount(|rig| {
        let names: Vec<_> = fs::read_dir(rig.mountpoint()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(!names.iter().any(|name| name == hidden) && names.iter().any(|name| name == "open"), "{names:?}");
        let errno = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
        assert_eq!(errno(fs::metadata(rig.mnt(hidden)).map(drop)), Some(libc::ENOENT));
        assert_eq!(errno(fs::create_dir(rig.mnt(hidden))), Some(libc::EPERM));
        assert_eq!(errno(fs::write(rig.mnt(hidden), "x")), Some(libc::EPERM));
        assert_eq!(errno(fs::rename(rig.mnt("open"), rig.mnt(hidden))), Some(libc::EPERM));
        assert_eq!(errno(fs::remove_dir(rig.mnt(hidden))), Some(libc::ENOENT));
        // Nor does tiering see it.
        rig.on(&["migrate", "-r"], &[""]);
        assert_eq!((rig.state("open/f"), rig.objects().len()), ("stub".to_owned(), 1));
    });
    assert_eq!(place.staged(), 1);
    place.start();
    let listed = place.rig.block_on(place.root.client.list_multipart_uploads().bucket(BUCKET).send()).unwrap();
    assert_eq!(listed.uploads.unwrap().len(), 1);
}
