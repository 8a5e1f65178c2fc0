//! Each injected fault does what it says, once its rule picks the request, and nothing else.

use std::time::{Duration, Instant};

use tierfs::gateway::faults::{Effect, Rule};

use crate::rig::{BUCKET, Rig, code, content};

async fn put(rig: &Rig, body: &[u8]) -> String {
    let put = rig.client.put_object().bucket(BUCKET).key("k").body(body.to_vec().into()).send();
    match tokio::time::timeout(Duration::from_millis(1500), put).await {
        Ok(outcome) => outcome.map_or_else(code, |_| "ok".to_owned()),
        Err(_) => "hangs".to_owned(),
    }
}

async fn get(rig: &Rig) -> String {
    let got = tokio::time::timeout(Duration::from_millis(1500), rig.get("k")).await;
    match got {
        Ok(Ok(body)) if body == content(1, 400_000) => "ok".to_owned(),
        Ok(Ok(_)) => "other bytes".to_owned(),
        Ok(Err(e)) if e.starts_with("body: ") => "broken body".to_owned(),
        Ok(Err(e)) => e,
        Err(_) => "hangs".to_owned(),
    }
}

#[tokio::test]
async fn every_effect_on_a_put() {
    let rig = Rig::new().await;
    let cases = [
        (Effect::InternalError, "InternalError", false),
        (Effect::SlowDown, "SlowDown", false),
        (Effect::Hang, "hangs", false),
        (Effect::Reset, "dispatch", false),
        (Effect::LostReply, "dispatch", true),
        (Effect::CutUpload { after: 100_000 }, "dispatch", false),
        (Effect::CorruptUpload { at: 200_000 }, "BadDigest", false),
        (Effect::Delay(Duration::from_millis(200)), "ok", true),
    ];
    for (at, (effect, want, done)) in cases.into_iter().enumerate() {
        rig.put("k", "old").await;
        let before = rig.server.requests();
        let rule = rig.faults.add(Rule::new(effect).method("PUT").url("/bucket/k").times(1));
        let new = content(at as u64, 400_000);
        let start = Instant::now();
        assert_eq!(put(&rig, &new).await, want, "{effect:?}");
        if let Effect::Delay(time) = effect {
            assert!(start.elapsed() >= time);
        }
        assert_eq!(rig.faults.hits(rule), 1);
        let after = rig.server.requests();
        assert_eq!(after.method("PUT") - before.method("PUT"), 1, "{effect:?}");
        let stored = rig.get("k").await.unwrap();
        assert_eq!(stored == new, done, "{effect:?}");
        assert!(done || stored == b"old", "{effect:?}");
        assert_eq!(put(&rig, b"next").await, "ok", "the rule is used up");
        rig.faults.clear();
    }
    assert_eq!(rig.files_at_most(".tierfs/staging", 0).await, 0);
    rig.server.shutdown().await;
}

#[tokio::test]
async fn every_effect_on_a_get() {
    let rig = Rig::new().await;
    rig.put("k", content(1, 400_000)).await;
    let cases = [
        (Effect::InternalError, "InternalError"),
        (Effect::SlowDown, "SlowDown"),
        (Effect::Hang, "hangs"),
        (Effect::Reset, "dispatch"),
        (Effect::LostReply, "dispatch"),
        (Effect::TruncateReply { after: 150_000 }, "broken body"),
        (Effect::StallReply { after: 150_000 }, "hangs"),
        (Effect::StallReply { after: 0 }, "hangs"),
        // The client checks the checksum of the whole.
        (Effect::CorruptReply { at: 399_999 }, "broken body"),
    ];
    for (effect, want) in cases {
        let rule = rig.faults.add(Rule::new(effect).method("GET").times(1));
        assert_eq!(get(&rig).await, want, "{effect:?}");
        assert_eq!(rig.faults.hits(rule), 1);
        assert_eq!(get(&rig).await, "ok", "the rule is used up");
        rig.faults.clear();
    }
    // A range carries no checksum: exactly one bit differs.
    rig.faults.add(Rule::new(Effect::CorruptReply { at: 10 }));
    let range = rig.client.get_object().bucket(BUCKET).key("k").range("bytes=1000-1999").send().await.unwrap();
    let got = range.body.collect().await.unwrap().to_vec();
    let differing: Vec<usize> = (0..1000).filter(|at| got[*at] != content(1, 400_000)[1000 + at]).collect();
    assert_eq!(differing, [10]);
    rig.server.shutdown().await;
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_the_hung() {
    let rig = Rig::new().await;
    rig.faults.add(Rule::new(Effect::Hang));
    let (client, started) = (rig.client.clone(), Instant::now());
    let hung = tokio::spawn(async move { client.list_buckets().send().await.map(drop).map_err(code) });
    while rig.server.requests().method("GET") == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    rig.server.shutdown().await;
    assert!(started.elapsed() < Duration::from_secs(8));
    assert_eq!(hung.await.unwrap(), Err("dispatch".into()));
}
