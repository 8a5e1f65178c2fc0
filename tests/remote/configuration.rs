//! Bad configuration: each case names the thing and the way out.

use tierfs::ports::{Remote, RemoteErrorKind as Kind};
use tierfs::remote::{CredentialsFrom, RemoteConfig, S3Remote};

use crate::port::Port;
use crate::rig::*;

#[tokio::test]
async fn bad_configurations_name_the_thing_and_the_way_out() {
    let rig = Rig::with(|options| options.make_buckets = false).await;
    let good = rig.config();
    let secret_file = rig.dir.path().join("other-credentials");
    let connect = async |change: &dyn Fn(&mut RemoteConfig)| {
        let mut config = good.clone();
        change(&mut config);
        S3Remote::connect(config).await
    };
    let tried = async |change: &dyn Fn(&mut RemoteConfig)| match connect(change).await {
        Ok(remote) => remote.probe().await,
        Err(error) => Err(error),
    };

    let missing = ["bucket bucket does not exist", "create it", "tierfs pair edit east"];
    let remote = connect(&|_| {}).await.unwrap();
    fails(remote.probe().await, Kind::NoSuchBucket, &missing);
    fails(put(&remote, "k", b"x").await, Kind::NoSuchBucket, &missing);
    fails(put(&remote, "k", &noise(2 * PART)).await, Kind::NoSuchBucket, &missing);
    fails(get(&remote, "k", 0, 1).await, Kind::NoSuchBucket, &missing);
    fails(remote.head(&key("k")).await, Kind::NoSuchBucket, &missing);
    fails(remote.delete(&key("k")).await, Kind::NoSuchBucket, &missing);

    rig.sdk().create_bucket().bucket("bucket").send().await.unwrap();
    let file = |text: &'static str| {
        let path = secret_file.clone();
        move |config: &mut RemoteConfig| {
            std::fs::write(&path, text).unwrap();
            config.credentials = CredentialsFrom::File { path: path.clone(), profile: None };
        }
    };
    let wrong_secret = "[default]\naws_access_key_id = AKIATESTTESTTESTTEST\naws_secret_access_key = wrong-secret\n";
    let denied = ["access denied", "SignatureDoesNotMatch", "other-credentials"];
    fails(tried(&file(wrong_secret)).await, Kind::Denied, &denied);
    let unknown = "[default]\naws_access_key_id = NOBODY\naws_secret_access_key = wrong-secret\n";
    fails(tried(&file(unknown)).await, Kind::Denied, &["access denied", "InvalidAccessKeyId", "other-credentials"]);
    let remote = connect(&file(unknown)).await.unwrap();
    for outcome in [put(&remote, "k", b"x").await.map(drop), get(&remote, "k", 0, 1).await.map(drop)] {
        fails(outcome, Kind::Denied, &["access denied"]);
    }
    fails(remote.head(&key("k")).await, Kind::Denied, &["access denied"]);

    fails(tried(&file("")).await, Kind::Denied, &["no", "credentials", "other-credentials"]);
    fails(tried(&file("no section here [\n")).await, Kind::Denied, &["credentials", "other-credentials"]);
    let profile = |config: &mut RemoteConfig| {
        let CredentialsFrom::File { profile, .. } = &mut config.credentials else { unreachable!() };
        *profile = Some("nosuch".into());
    };
    fails(tried(&profile).await, Kind::Denied, &["credentials", "nosuch"]);
    let nofile = |config: &mut RemoteConfig| {
        config.credentials = CredentialsFrom::File { path: "/no/such/file".into(), profile: None };
    };
    fails(tried(&nofile).await, Kind::Denied, &["/no/such/file", "No such file", "tierfs pair edit east"]);

    let port = Port::held();
    let closed = port.addr;
    let at = |url: String| move |config: &mut RemoteConfig| config.endpoints = vec![url.clone()];
    let refused = tried(&at(format!("http://{closed}"))).await;
    fails(refused, Kind::Unreachable, &[&closed.to_string(), "Connection refused", "check that the endpoint is up"]);
    let nowhere = tried(&at("http://no-such-host.invalid:80".into())).await;
    fails(nowhere, Kind::Unreachable, &["no-such-host.invalid", "check that the endpoint is up"]);
    let plain = rig.server.addr();
    fails(tried(&at(format!("https://{plain}"))).await, Kind::Unreachable, &["https://"]);
    fails(tried(&at("s3://bucket".into())).await, Kind::Rejected, &["not of the form http(s)://", "pair edit east"]);
    fails(tried(&|config: &mut RemoteConfig| config.endpoints.clear()).await, Kind::Rejected, &["no endpoint"]);

    // The right ones still work, so that the failures above are theirs.
    tried(&|_| {}).await.unwrap();
}

const CHILD: &str = "TIERFS_TEST_REMOTE_CHILD";

/// The standard chain reads the process's environment: hence a process of its own.
#[tokio::test]
async fn the_standard_chain_finds_credentials_and_says_where_it_looked() {
    if let Ok(endpoint) = std::env::var(CHILD) {
        let mut config = RemoteConfig::new("east".parse().unwrap(), "bucket", endpoint);
        config.prefix = "some/prefix".into();
        let remote = S3Remote::connect(config).await.unwrap();
        let outcome = put(&remote, "k", b"x").await;
        if std::env::var_os("AWS_ACCESS_KEY_ID").is_some() {
            outcome.unwrap();
        } else {
            fails(outcome, Kind::Denied, &["no credentials found", "AWS_ACCESS_KEY_ID", "tierfs pair edit east"]);
        }
        return;
    }
    let rig = Rig::new().await;
    for credentials in [true, false] {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child
            .args([
                "--exact",
                "configuration::the_standard_chain_finds_credentials_and_says_where_it_looked",
                "--nocapture",
            ])
            .env_clear()
            .env(CHILD, rig.server.endpoint())
            .env("HOME", rig.dir.path())
            .env("AWS_EC2_METADATA_DISABLED", "true");
        if credentials {
            child.env("AWS_ACCESS_KEY_ID", ACCESS).env("AWS_SECRET_ACCESS_KEY", SECRET);
        }
        // The server it talks to runs on this thread.
        let status = tokio::task::spawn_blocking(move || child.status()).await.unwrap().unwrap();
        assert!(status.success(), "with credentials: {credentials}");
    }
}
