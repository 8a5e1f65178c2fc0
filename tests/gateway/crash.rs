//! A server killed at any time leaves the old object or the new one, never a torn one, and loses nothing it confirmed.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tierfs::gateway::{Credentials, Server};

use crate::rig::{BUCKET, client, code, content, files, options};

const DIR_VARIABLE: &str = "GATEWAY_CRASH_DIR";
const KEYS_VARIABLE: &str = "GATEWAY_CRASH_KEYS";
const ROUNDS: u64 = 6;
const KEYS: u64 = 6;

/// Not a test by itself: the process that is killed.
#[test]
#[ignore = "run by a_killed_server_keeps_what_it_confirmed"]
fn server_process() {
    let Some(dir) = std::env::var_os(DIR_VARIABLE) else { return };
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut options = options(&Default::default());
        // For trying other clients by hand: "access:secret".
        if let Some((access, secret)) =
            std::env::var(KEYS_VARIABLE).ok().as_deref().and_then(|keys| keys.split_once(':'))
        {
            options.credentials = Some(Credentials { access_key: access.into(), secret_key: secret.into() });
        }
        let server = Server::start(dir.as_ref(), options).await.unwrap();
        println!("listening {}", server.endpoint());
        std::future::pending::<()>().await;
    });
}

pub struct Victim {
    pub process: Child,
    pub endpoint: String,
}

impl Victim {
    pub fn start(dir: &std::path::Path) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::server_process", "--ignored", "--nocapture"])
            .env(DIR_VARIABLE, dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let found =
            lines.map_while(Result::ok).find_map(|line| line.split_once("listening ").map(|(_, at)| at.to_owned()));
        Self { endpoint: found.expect("the server process did not start"), process }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// For each key: the last version confirmed, and the last begun.
type Versions = BTreeMap<u64, (u64, u64)>;

fn body(key: u64, version: u64) -> Vec<u8> {
    // From a few bytes to several parts' worth; some keys hold large objects.
    let len = [100, 70_000, 65_536, 900_000, 10, 2_500_000][key as usize] + version as usize % 7;
    let mut body = content(key << 32 | version, len);
    body[..8].copy_from_slice(&version.to_le_bytes());
    body
}

async fn write(endpoint: &str, versions: &Mutex<Versions>, key: u64) {
    let client = client(endpoint, "a", "b");
    loop {
        let version = {
            let mut versions = versions.lock();
            let (_, begun) = versions.entry(key).or_default();
            *begun += 1;
            *begun
        };
        let bytes = body(key, version);
        let name = format!("k{key}");
        let done = if key == 5 {
            multipart(&client, &name, &bytes).await
        } else {
            client.put_object().bucket(BUCKET).key(&name).body(bytes.into()).send().await.map(drop).map_err(code)
        };
        match done {
            Ok(()) => versions.lock().entry(key).or_default().0 = version,
            Err(code) => {
                assert!(["dispatch", "response"].contains(&code.as_str()), "{name}: {code}");
                return;
            }
        }
    }
}

async fn multipart(client: &aws_sdk_s3::Client, key: &str, bytes: &[u8]) -> Result<(), String> {
    use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
    let created = client.create_multipart_upload().bucket(BUCKET).key(key).send().await.map_err(code)?;
    let id = created.upload_id.unwrap();
    let mut parts = Vec::new();
    for (at, chunk) in bytes.chunks(600_000).enumerate() {
        let part = client.upload_part().bucket(BUCKET).key(key).upload_id(&id).part_number(at as i32 + 1);
        let part = part.body(chunk.to_vec().into()).send().await.map_err(code)?;
        parts.push(CompletedPart::builder().part_number(at as i32 + 1).set_e_tag(part.e_tag).build());
    }
    let list = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
    let done = client.complete_multipart_upload().bucket(BUCKET).key(key).upload_id(&id).multipart_upload(list);
    done.send().await.map(drop).map_err(code)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_keeps_what_it_confirmed() {
    let dir = tempfile::tempdir().unwrap();
    let versions: Arc<Mutex<Versions>> = Arc::default();
    let mut confirmed_in_all = 0;
    for round in 0..ROUNDS {
        let victim = Victim::start(dir.path());
        let writers: Vec<_> = (0..KEYS)
            .map(|key| {
                let (endpoint, versions) = (victim.endpoint.clone(), versions.clone());
                tokio::spawn(async move { write(&endpoint, &versions, key).await })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(150 + round * 67)).await;
        drop(victim);
        for writer in writers {
            writer.await.unwrap();
        }
        // A fresh server in this process looks at what is there.
        let server = Server::start(dir.path(), options(&Default::default())).await.unwrap();
        let client = client(&server.endpoint(), "a", "b");
        let found = versions.lock().clone();
        for (key, (confirmed, begun)) in found {
            let got = client.get_object().bucket(BUCKET).key(format!("k{key}")).send().await;
            let got = match got.map_err(code) {
                Ok(got) => got.body.collect().await.unwrap().to_vec(),
                Err(code) => {
                    assert_eq!((code.as_str(), confirmed), ("NoSuchKey", 0), "k{key}");
                    continue;
                }
            };
            let version = u64::from_le_bytes(got[..8].try_into().unwrap());
            assert!((confirmed..=begun).contains(&version), "k{key}: {version}, but {confirmed} was confirmed");
            assert!(got == body(key, version), "round {round}: k{key} is torn");
            // What was found is what counts from now on.
            versions.lock().insert(key, (version, begun));
            confirmed_in_all += version;
        }
        // A thread clears these away.
        let staging = dir.path().join(".tierfs/staging");
        for _ in 0..100 {
            if files(&staging) == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(files(&staging), 0, "round {round}");
        server.shutdown().await;
        let heads = files(&dir.path().join(BUCKET).join("objects"));
        assert!(heads <= KEYS as usize, "round {round}: {heads} files for {KEYS} objects");
    }
    assert!(confirmed_in_all > 20, "only {confirmed_in_all} writes: nothing was tested");
}
