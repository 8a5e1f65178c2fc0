//! Figures, not a test: `cargo nextest run -E 'test(measure_)' --run-ignored only --no-capture`, in release to mean much.

use std::time::{Duration, Instant};

use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use futures::future::join_all;

use crate::crash::Victim;
use crate::rig::{BUCKET, client, content};

/// CPU time of a process so far.
fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<u64> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse().unwrap())
        .collect();
    Duration::from_millis((fields[0] + fields[1]) * 10)
}

async fn report(what: &str, victim: &Victim, bytes: u64, files: u64, work: impl Future<Output = ()>) {
    let (server, client, start) = (cpu(victim.process.id()), cpu(std::process::id()), Instant::now());
    work.await;
    let seconds = start.elapsed().as_secs_f64();
    let (server, client) = (cpu(victim.process.id()) - server, cpu(std::process::id()) - client);
    println!(
        "{what:24} {:7.0} MB/s {:7.0} files/s; CPU-s: server {:.2}, client {:.2}",
        bytes as f64 / 1e6 / seconds,
        files as f64 / seconds,
        server.as_secs_f64(),
        client.as_secs_f64()
    );
}

const FILES: u64 = 4_000;
const CLIENTS: u64 = 32;
const SMALL: usize = 64 << 10;
const PARTS: usize = 128;
const PART: usize = 8 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "figures"]
async fn measure_throughput() {
    let dir = tempfile::tempdir().unwrap();
    let victim = Victim::start(dir.path());
    let client = client(&victim.endpoint, "a", "b");
    let small = bytes::Bytes::from(content(1, SMALL));
    let large = bytes::Bytes::from(content(2, PART));
    for _ in 0..2 {
        report("put 64 KiB", &victim, FILES * SMALL as u64, FILES, async {
            let workers = (0..CLIENTS).map(|worker| {
                let (client, small) = (client.clone(), small.clone());
                tokio::spawn(async move {
                    for at in 0..FILES / CLIENTS {
                        let put = client.put_object().bucket(BUCKET).key(format!("small/{worker}/{at}"));
                        put.body(small.clone().into()).customize().disable_payload_signing().send().await.unwrap();
                    }
                })
            });
            join_all(workers).await;
        })
        .await;
        report("get 64 KiB", &victim, FILES * SMALL as u64, FILES, async {
            let workers = (0..CLIENTS).map(|worker| {
                let client = client.clone();
                tokio::spawn(async move {
                    for at in 0..FILES / CLIENTS {
                        let get = client.get_object().bucket(BUCKET).key(format!("small/{worker}/{at}"));
                        assert_eq!(get.send().await.unwrap().body.collect().await.unwrap().to_vec().len(), SMALL);
                    }
                })
            });
            join_all(workers).await;
        })
        .await;
        report("put 1 GiB, 8 MiB parts", &victim, (PARTS * PART) as u64, 1, async {
            let created = client.create_multipart_upload().bucket(BUCKET).key("large").send().await.unwrap();
            let id = created.upload_id.unwrap();
            let workers = (0..8).map(|worker| {
                let (client, large, id) = (client.clone(), large.clone(), id.clone());
                tokio::spawn(async move {
                    let mut parts = Vec::new();
                    for number in (1..=PARTS).skip(worker).step_by(8) {
                        let part =
                            client.upload_part().bucket(BUCKET).key("large").upload_id(&id).part_number(number as i32);
                        let part = part.body(large.clone().into()).customize().disable_payload_signing();
                        let etag = part.send().await.unwrap().e_tag;
                        parts.push(CompletedPart::builder().part_number(number as i32).set_e_tag(etag).build());
                    }
                    parts
                })
            });
            let mut parts: Vec<_> = join_all(workers).await.into_iter().flat_map(Result::unwrap).collect();
            parts.sort_by_key(|part| part.part_number);
            let list = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
            let done = client.complete_multipart_upload().bucket(BUCKET).key("large").upload_id(&id);
            done.multipart_upload(list).send().await.unwrap();
        })
        .await;
        report("get 1 GiB, 8 ranges", &victim, (PARTS * PART) as u64, 1, async {
            let workers = (0..8).map(|worker| {
                let client = client.clone();
                tokio::spawn(async move {
                    for at in (0..PARTS).skip(worker).step_by(8) {
                        let range = format!("bytes={}-{}", at * PART, (at + 1) * PART - 1);
                        let get = client.get_object().bucket(BUCKET).key("large").range(range).send().await.unwrap();
                        let mut body = get.body;
                        let mut len = 0;
                        while let Some(chunk) = body.try_next().await.unwrap() {
                            len += chunk.len();
                        }
                        assert_eq!(len, PART);
                    }
                })
            });
            join_all(workers).await;
        })
        .await;
    }
}

/// How long a start takes with many objects, and how fast the store is without HTTP.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "figures"]
async fn measure_start() {
    use std::sync::Arc;
    use tierfs::gateway::DirStore;
    use tierfs::gateway::store::{ListQuery, Seal, Store, Target};
    const OBJECTS: usize = 100_000;
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(DirStore::open(dir.path()).unwrap());
    store.create_bucket(BUCKET).await.unwrap();
    let start = Instant::now();
    let writers = (0..100).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for at in 0..OBJECTS / 100 {
                let target = Target::Object { key: format!("some/directory/{writer}/object-{at}") };
                let upload = store.stage(BUCKET, target).await.unwrap();
                upload.publish(Seal { etag: "0-1".into(), ..Seal::default() }).await.unwrap();
            }
        })
    });
    join_all(writers).await;
    println!("{:.0} empty objects/s into the store", OBJECTS as f64 / start.elapsed().as_secs_f64());
    let Ok(store) = Arc::try_unwrap(store) else { panic!("still shared") };
    drop(store);
    for _ in 0..3 {
        let start = Instant::now();
        let store = DirStore::open(dir.path()).unwrap();
        println!("start with {OBJECTS} objects: {:.2} s", start.elapsed().as_secs_f64());
        let query = ListQuery { limit: 1000, delimiter: Some("/".into()), prefix: "some/".into(), after: None };
        let start = Instant::now();
        assert_eq!(store.list(BUCKET, &query).await.unwrap().entries.len(), 1);
        println!("a listing that steps over all of them: {:?}", start.elapsed());
    }
}
