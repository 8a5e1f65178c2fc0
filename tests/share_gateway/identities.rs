//! Who comes in, by which door.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::place::{BUCKET, Place, User};
use crate::rig::said;
use crate::s3;

#[test]
fn strangers_are_refused() {
    let Some(place) = Place::alone() else { return };
    place.put(&place.root, "open/f", "x").unwrap();
    let nobody = User::new(&place.endpoint, "eve");
    assert_eq!(place.get(&nobody, "open/f"), Err("InvalidAccessKeyId".into()));
    let liar = User { client: s3::client(&place.endpoint, "alice", "guess") };
    assert_eq!(place.get(&liar, "open/f"), Err("SignatureDoesNotMatch".into()));
    assert_eq!(place.put(&liar, "open/f", "y").map(drop), Err("SignatureDoesNotMatch".into()));
    for request in ["GET /share/open/f", "PUT /share/open/f", "DELETE /share/open/f", "GET /", "GET /share?list-type=2"]
    {
        let reply = place.rig.block_on(s3::http(place.addr(), request, "", b""));
        assert!(reply.starts_with("HTTP/1.1 403"), "{request}: {reply}");
    }
    // A signature made for one body does not carry another.
    assert_eq!(place.get(&place.root, "open/f").unwrap(), b"x");
    // There is one bucket, and it is the share.
    let buckets = place.rig.block_on(place.alice.client.list_buckets().send()).unwrap().buckets.unwrap();
    assert_eq!(buckets.iter().filter_map(|bucket| bucket.name.as_deref()).collect::<Vec<_>>(), [BUCKET]);
    let create = place.rig.block_on(place.root.client.create_bucket().bucket("other").send());
    assert_eq!(s3::code(create.unwrap_err()), "AccessDenied");
    let remove = place.rig.block_on(place.root.client.delete_bucket().bucket(BUCKET).send());
    assert_eq!(s3::code(remove.unwrap_err()), "AccessDenied");
    let get = place.root.client.get_object().bucket("other").key("f").send();
    assert_eq!(s3::code(place.rig.block_on(get).unwrap_err()), "NoSuchBucket");
}

#[test]
fn what_cannot_be_served_is_said_in_one_line() {
    let Some(mut place) = Place::alone() else { return };
    place.stop();
    let identities = place.rig.scratch("etc").join("identities.toml");
    let refused = |place: &Place, more: &[&str], piece: &str| {
        let message = place.refusal(more);
        assert!(message.contains(piece) && message.trim().lines().count() == 1, "{message}");
        assert!(!message.contains("alicesecret"), "{message}");
    };
    refused(&place, &["--bucket", "Not_A_Bucket"], "bucket's name");
    refused(&place, &["--identities", "/nowhere"], "/nowhere");
    fs::set_permissions(&identities, fs::Permissions::from_mode(0o640)).unwrap();
    refused(&place, &[], "chmod 600");
    fs::set_permissions(&identities, fs::Permissions::from_mode(0o600)).unwrap();
    let text = fs::read_to_string(&identities).unwrap();
    fs::write(&identities, text.replace("uid = 0", "uid = none")).unwrap();
    refused(&place, &[], "identities.toml");
    fs::write(&identities, "").unwrap();
    refused(&place, &[], "no [[identity]]");
    fs::write(&identities, text).unwrap();
    refused(&place, &["--tls-cert", "/nowhere", "--tls-key", "/nowhere"], "/nowhere");
    place.start();
    refused(&place, &[], "is served as S3 at");
}

/// A certificate for 127.0.0.1, and its key.
fn certificate(dir: &Path) -> (String, String) {
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=tierfs", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", said(&made));
    (cert.display().to_string(), key.display().to_string())
}

#[test]
fn over_tls() {
    let Some(mut place) = Place::alone() else { return };
    place.stop();
    let (cert, key) = certificate(&place.rig.scratch(""));
    place.start_with(&["--tls-cert", &cert, "--tls-key", &key]);
    assert!(place.endpoint.starts_with("https://127.0.0.1:"), "{}", place.endpoint);
    // Signed by curl itself, which is told whom to trust.
    let curl = |more: &[&str]| {
        let url = format!("{}/share/open/f", place.endpoint);
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "20", "--aws-sigv4", "aws:amz:us-east-1:s3", "--user", "alice:alicesecret"]);
        curl.args(["-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD"]).args(more).arg(url).output().unwrap()
    };
    let put = curl(&["--cacert", &cert, "-X", "PUT", "--data-binary", "through tls"]);
    assert!(put.status.success() && put.stdout.is_empty(), "{}", said(&put));
    let got = curl(&["--cacert", &cert]);
    assert_eq!(String::from_utf8_lossy(&got.stdout), "through tls", "{}", said(&got));
    assert!(!curl(&[]).status.success(), "a certificate that nobody vouches for");
    // Plain HTTP gets no answer, and stops nobody else.
    let plain = place.rig.block_on(s3::http(place.addr(), "GET /share/open/f", "", b""));
    assert!(!plain.contains("HTTP/1.1 200"), "{plain}");
    assert_eq!(String::from_utf8_lossy(&curl(&["--cacert", &cert]).stdout), "through tls");
}
