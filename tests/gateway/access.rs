//! Who may come in, and what cannot be served: each refusal is one clear line.

use std::process::Command;

use tierfs::gateway::{Credentials, Options, Server};

use crate::rig::{BUCKET, Rig, client, code, http, loopback};

#[tokio::test]
async fn credentials_are_checked_when_there_are_any() {
    let keys = Credentials { access_key: "west".into(), secret_key: "tea".into() };
    assert!(!format!("{keys:?}").contains("tea"));
    let rig = Rig::at(tempfile::tempdir().unwrap(), |options| options.credentials = Some(keys)).await;
    rig.put("k", "v").await;
    assert_eq!(rig.get("k").await.unwrap(), b"v");
    let endpoint = rig.server.endpoint();
    let try_with = async |access, secret| {
        let client = client(&endpoint, access, secret);
        let put = client.put_object().bucket(BUCKET).key("k").body(b"new".to_vec().into()).send().await;
        code(put.unwrap_err())
    };
    assert_eq!(try_with("east", "tea").await, "InvalidAccessKeyId");
    assert_eq!(try_with("west", "coffee").await, "SignatureDoesNotMatch");
    let reply = http(rig.server.addr(), "GET /bucket/k", "", b"").await;
    assert!(reply.starts_with("HTTP/1.1 403") && reply.contains("AccessDenied"), "{reply}");
    let config = aws_sdk_s3::presigning::PresigningConfig::expires_in(std::time::Duration::from_secs(60)).unwrap();
    let signed = rig.client.get_object().bucket(BUCKET).key("k").presigned(config).await.unwrap();
    let path = signed.uri().split_once("//").and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..])).unwrap();
    let reply = http(rig.server.addr(), &format!("GET {path}"), "", b"").await;
    assert!(reply.starts_with("HTTP/1.1 200") && reply.ends_with("\r\n\r\nv"), "{reply}");
    let reply = http(rig.server.addr(), &format!("GET {}", path.replace("/k?", "/other?")), "", b"").await;
    assert!(reply.starts_with("HTTP/1.1 403"), "{reply}");
    assert_eq!(rig.get("k").await.unwrap(), b"v");
    rig.server.shutdown().await;
}

#[tokio::test]
async fn without_credentials_anybody_may() {
    let rig = Rig::new().await;
    let addr = rig.server.addr();
    assert!(http(addr, "PUT /bucket/k", "", b"v").await.starts_with("HTTP/1.1 200"));
    let presigned = "GET /bucket/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature=00&X-Amz-Expires=1";
    assert!(http(addr, presigned, "", b"").await.ends_with("\r\n\r\nv"));
    let v2 = "Authorization: AWS somebody:c2lnbmF0dXJl\r\n";
    assert!(http(addr, "GET /bucket/k", v2, b"").await.ends_with("\r\n\r\nv"));
    rig.server.shutdown().await;
}

async fn refusal(dir: &std::path::Path, options: Options) -> String {
    match Server::start(dir, options).await {
        Ok(_) => panic!("{} should not be served", dir.display()),
        Err(e) => e.to_string(),
    }
}

#[tokio::test]
async fn what_cannot_be_served_is_said_in_one_line() {
    let rig = Rig::new().await;
    let options = || Options::new(loopback());
    let check = async |dir: &std::path::Path, options: Options, want: &str| {
        let message = refusal(dir, options).await;
        assert!(message.contains(want) && !message.contains('\n'), "{message:?} should say {want:?}");
    };
    check(rig.dir.path(), options(), "being served by another process").await;
    let other = tempfile::tempdir().unwrap();
    check(other.path(), Options::new(rig.server.addr()), "cannot listen on").await;
    let file = other.path().join("file");
    std::fs::write(&file, "").unwrap();
    check(&file, options(), "not a directory").await;
    check(&file.join("below"), options(), "not a directory").await;
    check(std::path::Path::new("/proc/self/nowhere"), options(), "cannot write to").await;
    let old = other.path().join("old");
    std::fs::create_dir_all(old.join(".tierfs")).unwrap();
    std::fs::write(old.join(".tierfs/lock"), "tierfs object directory 99\n").unwrap();
    check(&old, options(), "format \"tierfs object directory 99\"").await;
    let mut empty = options();
    empty.credentials = Some(Credentials { access_key: String::new(), secret_key: String::new() });
    check(&other.path().join("new"), empty, "must not be empty").await;
    // A missing directory is made, parents and all.
    let made = other.path().join("a/b/c");
    Server::start(&made, options()).await.unwrap().shutdown().await;
    assert!(made.is_dir());
    rig.server.shutdown().await;
}

/// A mount that goes away with the test.
struct Mount(std::path::PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_filesystem_without_xattrs_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount").args(["-t", "ramfs", "none"]).arg(dir.path()).output().unwrap();
    if !mounted.status.success() {
        eprintln!("skipped: cannot mount ramfs: {}", String::from_utf8_lossy(&mounted.stderr));
        return;
    }
    let _mount = Mount(dir.path().to_owned());
    let message = refusal(dir.path(), Options::new(loopback())).await;
    assert!(message.contains("does not keep user xattrs") && !message.contains('\n'), "{message}");
}

/// The store is full: the upload is refused with the status that says so, the old object stays, and space freed is space.
#[tokio::test]
async fn a_full_disk_refuses_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "none"]).arg(dir.path()).output().unwrap();
    if !mounted.status.success() {
        eprintln!("skipped: cannot mount tmpfs: {}", String::from_utf8_lossy(&mounted.stderr));
        return;
    }
    let mount = Mount(dir.path().to_owned());
    let server = match Server::start(dir.path(), Options::new(loopback())).await {
        Ok(server) => server,
        Err(e) => {
            eprintln!("skipped: {e}");
            return;
        }
    };
    let client = client(&server.endpoint(), "a", "b");
    let put = |len: usize| client.put_object().bucket(BUCKET).key("k").body(vec![7; len].into()).send();
    put(1 << 20).await.unwrap();
    assert_eq!(code(put(5 << 20).await.unwrap_err()), "InsufficientStorage");
    let got = client.get_object().bucket(BUCKET).key("k").send().await.unwrap();
    assert_eq!(got.content_length, Some(1 << 20));
    for _ in 0..5 {
        put(3 << 19).await.unwrap();
    }
    server.shutdown().await;
    drop(mount);
}
