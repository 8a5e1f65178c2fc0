//! Conditional requests: on reads by HTTP's rules, on writes judged in the step that publishes.

use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use futures::future::join_all;

use crate::rig::{BUCKET, Rig, code};

#[tokio::test]
async fn of_many_writers_exactly_one_wins() {
    let rig = Rig::new().await;
    for round in 0..5 {
        let key = format!("race{round}");
        let writers = (0..32).map(|n| {
            let put = rig.client.put_object().bucket(BUCKET).key(&key).if_none_match("*");
            put.body(format!("writer {n}").into_bytes().into()).send()
        });
        let (mut won, mut lost) = (Vec::new(), 0);
        for (n, outcome) in join_all(writers).await.into_iter().enumerate() {
            match outcome.map_err(code) {
                Ok(put) => won.push((n, put.e_tag.unwrap())),
                Err(code) => {
                    assert_eq!(code, "PreconditionFailed");
                    lost += 1;
                }
            }
        }
        assert_eq!((won.len(), lost), (1, 31));
        let (winner, etag) = won.remove(0);
        assert_eq!(rig.get(&key).await.unwrap(), format!("writer {winner}").into_bytes());
        // The same with the version everybody has read.
        let writers = (0..32).map(|n| {
            let put = rig.client.put_object().bucket(BUCKET).key(&key).if_match(&etag);
            put.body(format!("second {n}").into_bytes().into()).send()
        });
        let outcomes = join_all(writers).await;
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
        let winner = outcomes.iter().position(Result::is_ok).unwrap();
        assert_eq!(rig.get(&key).await.unwrap(), format!("second {winner}").into_bytes());
    }
    let missing = rig.client.put_object().bucket(BUCKET).key("none").if_match("\"x\"").body(vec![].into()).send().await;
    assert_eq!(code(missing.unwrap_err()), "NoSuchKey");
    rig.server.shutdown().await;
}

#[tokio::test]
async fn completions_and_deletes_honour_conditions() {
    let rig = Rig::new().await;
    let etag = rig.put("k", "old").await;
    let complete = async |condition: Option<&str>| {
        let upload = rig.client.create_multipart_upload().bucket(BUCKET).key("k").send().await.unwrap();
        let id = upload.upload_id.unwrap();
        let part = rig.client.upload_part().bucket(BUCKET).key("k").upload_id(&id).part_number(1);
        let part = part.body(b"new".to_vec().into()).send().await.unwrap();
        let part = CompletedPart::builder().part_number(1).set_e_tag(part.e_tag).build();
        let list = CompletedMultipartUpload::builder().parts(part).build();
        let request = rig.client.complete_multipart_upload().bucket(BUCKET).key("k").upload_id(&id);
        request.multipart_upload(list).set_if_none_match(condition.map(Into::into)).send().await.map(drop).map_err(code)
    };
    assert_eq!(complete(Some("*")).await, Err("PreconditionFailed".into()));
    assert_eq!(rig.get("k").await.unwrap(), b"old");
    let delete = |etag: &str| rig.client.delete_object().bucket(BUCKET).key("k").if_match(etag).send();
    assert_eq!(code(delete("\"other\"").await.unwrap_err()), "PreconditionFailed");
    delete(&etag).await.unwrap();
    assert_eq!(complete(Some("*")).await, Ok(()));
    assert_eq!(rig.get("k").await.unwrap(), b"new");
    rig.server.shutdown().await;
}

#[tokio::test]
async fn reads_with_conditions() {
    let rig = Rig::new().await;
    let etag = rig.put("k", "content").await;
    let get = || rig.client.get_object().bucket(BUCKET).key("k");
    let modified = get().send().await.unwrap().last_modified.unwrap();
    let before = DateTime::from_secs(modified.secs() - 60);
    let after = DateTime::from_secs(modified.secs() + 60);
    let status = async |request: aws_sdk_s3::operation::get_object::builders::GetObjectFluentBuilder| {
        request.send().await.map_or_else(code, |_| "200".to_owned())
    };
    assert_eq!(status(get().if_match(&etag)).await, "200");
    assert_eq!(status(get().if_match("*")).await, "200");
    assert_eq!(status(get().if_match("\"other\"")).await, "PreconditionFailed");
    assert_eq!(status(get().if_none_match(&etag)).await, "304");
    assert_eq!(status(get().if_none_match("\"other\"")).await, "200");
    assert_eq!(status(get().if_modified_since(before)).await, "200");
    assert_eq!(status(get().if_modified_since(after)).await, "304");
    assert_eq!(status(get().if_unmodified_since(before)).await, "PreconditionFailed");
    assert_eq!(status(get().if_unmodified_since(after)).await, "200");
    // The ETag outranks the time.
    assert_eq!(status(get().if_match(&etag).if_unmodified_since(before)).await, "200");
    let head = rig.client.head_object().bucket(BUCKET).key("k").if_none_match(&etag).send().await;
    assert_eq!(code(head.unwrap_err()), "304");
    rig.server.shutdown().await;
}
