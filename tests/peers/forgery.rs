//! Nobody but the tiering service at the other end may ask what it asks, and a record that belongs to another file or pair is not acted upon.

use std::fs;

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{Tag, Tagging};
use tierfs::record::{PairRef, peer_object};

use crate::s3;
use crate::sides::{CHUNK, Side, Sides};
use crate::tools::*;

fn client(side: &Side, key: &str) -> Client {
    s3::client(&format!("http://{}", side.addr), key, &format!("{key}secret"))
}

async fn tag(
    client: &Client,
    bucket: &str,
    key: &str,
    tag: &str,
    value: &str,
    call: Option<String>,
) -> Result<(), String> {
    let tag = Tag::builder().key(tag).value(value).build().unwrap();
    let tagging = Tagging::builder().tag_set(tag).build().unwrap();
    let put = client.put_object_tagging().bucket(bucket).key(key).tagging(tagging).customize();
    let put = put.mutate_request(move |request| {
        if let Some(call) = &call {
            request.headers_mut().insert("x-tierfs-call", call.clone());
            request.headers_mut().insert("x-tierfs-node", "0-0");
        }
    });
    put.send().await.map(drop).map_err(s3::code)
}

#[test]
fn only_the_other_end_may_ask() {
    let Some((sides, contents)) = Sides::with_files("ext4", &[("f", 3 * CHUNK)]) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (east, peer) = (&sides.east, sides.east.peer("f"));
    let identifiers = |side: &Side, other: &Side| {
        format!("{},{},{},s3://{}", side.name, side.share().display(), other.name, other.name)
    };
    let right = identifiers(&sides.west, &sides.east);
    let call = format!(
        "{{\"Rtl\":{{\"file\":{},\"ticket\":{{\"epoch\":2,\"attempt\":9}},\"generation\":{}}}}}",
        u128::from_be_bytes(peer.id.0),
        east.record("f").unwrap().generation.0
    );
    runtime.block_on(async {
        for user in ["root", "alice", "elsewhere"] {
            let client = client(east, user);
            for name in ["rtl_remote_to_local", "ltr_local_to_remote"] {
                let denied = tag(&client, "east", "f", name, &right, Some(call.clone())).await;
                assert_eq!(denied, Err("AccessDenied".into()), "{user} {name}");
            }
            for key in [
                format!(".tierfs-gateway/facts/{}/-/0-0/f", peer.id),
                format!(".tierfs-gateway/content/{}/1/0-0/f", peer.id),
                format!(".tierfs-gateway/stage/{}/2.1.5.0.0.65536/0-0/f", peer.id),
                ".tierfs-gateway/hello".to_owned(),
            ] {
                let get = client.get_object().bucket("east").key(&key).send().await;
                assert_eq!(get.map(drop).map_err(s3::code), Err("AccessDenied".into()), "{user} {key}");
                let put = client.put_object().bucket("east").key(&key).body(ByteStream::from_static(b"12345"));
                assert_eq!(put.send().await.map(drop).map_err(s3::code), Err("AccessDenied".into()), "{user} {key}");
            }
        }
        // The right one, with the identifiers of another pair, with another tag than the call, or without a call.
        let client = client(east, "west");
        let wrong = identifiers(&sides.east, &sides.west);
        let refused = tag(&client, "east", "f", "rtl_remote_to_local", &wrong, Some(call.clone())).await;
        assert_eq!(refused, Err("AccessDenied".into()));
        let refused = tag(&client, "east", "f", "ltr_local_to_remote", &right, Some(call.clone())).await;
        assert_eq!(refused, Err("AccessDenied".into()));
        let refused = tag(&client, "east", "f", "rtl_remote_to_local", &right, None).await;
        assert_eq!(refused, Err("NotImplemented".into()));
    });
    assert!(sides.east.owns("f"));
    sides.same("f", &contents[0]);
}

/// Users of the mount can neither read nor write what is recorded, and other users do not get at the content.
#[test]
fn permissions_hold() {
    use std::os::unix::fs::PermissionsExt as _;
    let Some((sides, contents)) = Sides::with_files("ext4", &[("f", 3 * CHUNK)]) else { return };
    for side in [&sides.east, &sides.west] {
        fs::set_permissions(side.mnt("f"), fs::Permissions::from_mode(0o600)).unwrap();
        let tried = as_nobody(&side.mountpoint(), "cat f; echo x > f; setfattr -n user.tierfs.migrate -v 1 f");
        assert!(!said(&tried).contains("x\n") || !tried.status.success(), "{}", said(&tried));
        assert!(xattr(&side.mnt("f"), "trusted.tierfs.record").is_err());
    }
    assert!(sides.east.owns("f"), "nobody has moved it");
    sides.same("f", &contents[0]);
}

/// A record of a pair that is not the one mounted (R7), and one that was copied to another file: named, and not acted upon.
#[test]
fn records_of_elsewhere_are_named() {
    let Some((mut sides, contents)) = Sides::with_files("ext4", &[("f", 3 * CHUNK)]) else { return };
    sides.west.umount();
    let mut record = sides.west.record("f").unwrap();
    let peer = record.peer.as_mut().unwrap();
    peer.pair = "old".parse().unwrap();
    let (id, pair) = (peer.id, PairRef { name: "old".parse().unwrap(), ..record.object.clone().unwrap().pair });
    let object = record.object.clone().unwrap();
    record.object = Some(peer_object(pair, id, object.generation, object.len, object.mtime, object.chunk_size));
    let right = xattr(&sides.west.low("f"), "trusted.tierfs.record").unwrap();
    let set = |name: &str, value: &[u8]| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::lsetxattr(sides.west.low(name), "trusted.tierfs.record", value, flags).unwrap();
    };
    set("f", &record.encode());
    fs::write(sides.west.low("copy"), "").unwrap();
    fs::File::options().write(true).open(sides.west.low("copy")).unwrap().set_len(3 * CHUNK as u64).unwrap();
    set("copy", &right);
    sides.west.mount();
    assert_eq!(fs::read(sides.west.mnt("f")).unwrap_err().raw_os_error(), Some(libc::EREMOTEIO));
    let output = sides.west.on("recall", &["f"]);
    assert!(said(&output).contains("old"), "it names the pair: {}", said(&output));
    assert_eq!(fs::read(sides.west.mnt("copy")).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert!(sides.east.owns("f"));
    // Unless the administrator says so; and then only if the pair that is mounted has it.
    let output = sides.west.tierfs(&["check".as_ref(), "--adopt".as_ref(), sides.west.mnt("f").as_os_str()]);
    assert!(output.status.success() && said(&output).contains("adopted 1 file"), "{}", said(&output));
    sides.same("f", &contents[0]);
    let output = sides.west.tierfs(&["check".as_ref(), sides.west.mnt("f").as_os_str()]);
    assert!(output.status.success(), "{}", said(&output));
}
