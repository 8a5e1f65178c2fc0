//! A gateway that dies, and clients that do.

use tokio::io::AsyncWriteExt as _;

use crate::place::{BUCKET, Place};
use crate::rig::{noise, wait_for};

/// A PUT cut short by the server's death, or by the client's, leaves what was there, and nothing else in sight.
#[test]
fn half_a_put_is_nothing() {
    let Some(mut place) = Place::alone() else { return };
    let old = noise("old", 100_000);
    place.put(&place.alice, "alice/f", old.clone()).unwrap();
    let config = aws_sdk_s3::presigning::PresigningConfig::expires_in(std::time::Duration::from_secs(600)).unwrap();
    for (key, killed) in [("alice/f", true), ("alice/new/g", true), ("alice/f", false), ("alice/new/g", false)] {
        let put = place.alice.client.put_object().bucket(BUCKET).key(key);
        let signed = place.rig.block_on(put.presigned(config.clone())).unwrap();
        let path = signed.uri().split_once("//").and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..])).unwrap();
        let head = format!("PUT {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: 9000000\r\n\r\n", place.addr());
        let addr = place.addr();
        let mut stream = place.rig.block_on(tokio::net::TcpStream::connect(addr)).unwrap();
        place.rig.block_on(async {
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(&noise("half", 5_000_000)).await.unwrap();
        });
        // Some of it has arrived: there is a file without a name now.
        let pid = place.pid();
        let nameless = || {
            let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
            let links = open.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
            links
                .filter(|link| link.to_string_lossy().contains("(deleted)") && link.to_string_lossy().contains("/#"))
                .count()
        };
        wait_for("the content's beginning", || nameless() > 0);
        if killed {
            place.kill();
            drop(stream);
            place.start();
        } else {
            drop(stream);
            wait_for("its end", || nameless() == 0);
        }
        assert_eq!(place.keys(&place.root, "alice/"), ["alice/f"]);
        assert!(place.get(&place.alice, "alice/f").unwrap() == old);
        assert!(!place.rig.low("alice/new").exists());
        assert_eq!(place.staged(), 0);
    }
}

/// What a crash left on its way in is cleared away at the next start.
#[test]
fn what_a_crash_left_is_cleared_away() {
    let Some(mut place) = Place::alone() else { return };
    place.put(&place.alice, "alice/f", "x").unwrap();
    place.put(&place.alice, "alice/f", "y").unwrap();
    place.kill();
    let own = place.rig.low(".tierfs-gateway").join(format!("u{}", crate::place::ALICE));
    std::fs::write(own.join("put-1-1"), "left").unwrap();
    assert_eq!(place.staged(), 1);
    place.start();
    assert_eq!(place.staged(), 0);
    assert_eq!(place.get(&place.alice, "alice/f").unwrap(), b"y");
}
