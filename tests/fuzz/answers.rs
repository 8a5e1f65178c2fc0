//! The S3 client against an endpoint whose answers are twisted: every call ends, in what it was asked for or in an error of one line, in
//! bounded memory.

use proptest::collection::vec;
use proptest::prelude::*;
use tierfs::ports::{Remote, RemoteError};
use tierfs::remote::S3Remote;
use tierfs::types::{ByteRange, ObjectKey};

use crate::fuzz;
use crate::memory::peak;
use crate::rig::*;
use crate::twist::{Proxy, Twist, twist};

/// What a call may take beyond the bytes it was asked for: the client's own copies of the largest answer that is read to its end.
const MEMORY_MAX: usize = 24 << 20;

#[derive(Clone, Copy, Debug)]
enum Call {
    Get { offset: u64, len: u64, conditional: bool },
    Head,
    List { after: bool },
    Put,
    Delete,
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        4 => (0u64..900, 1u64..100, any::<bool>()).prop_map(|(offset, len, conditional)| Call::Get { offset, len, conditional }),
        1 => Just(Call::Get { offset: 0, len: 1000, conditional: true }),
        2 => Just(Call::Head),
        3 => any::<bool>().prop_map(|after| Call::List { after }),
        2 => Just(Call::Put),
        1 => Just(Call::Delete),
    ]
}

fn worded(error: &RemoteError) -> Result<(), TestCaseError> {
    let text = error.to_string();
    prop_assert!(!text.contains('\n') && text.len() < 3_000 && !text.contains(SECRET), "{text}");
    Ok(())
}

#[test]
fn no_answer_is_taken_for_another() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let others = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let rig = others.block_on(Rig::new());
    let data = noise(1000);
    let (stored, remote, proxy) = {
        let direct = others.block_on(rig.remote());
        let stored = others.block_on(put(&direct, "k0", &data)).unwrap();
        for n in 1..5 {
            others.block_on(put(&direct, &format!("k{n}"), b"x")).unwrap();
        }
        let proxy = Proxy::before(rig.server.addr());
        let mut config = rig.config();
        config.endpoints = vec![proxy.url.clone()];
        let remote = runtime.block_on(S3Remote::connect(config)).unwrap();
        // The listing of what an earlier process left unfinished comes before the first call.
        runtime.block_on(remote.head(&key("k0"))).unwrap();
        (stored, remote, proxy)
    };
    let good = runtime.block_on(remote.head(&key("k0"))).unwrap();
    let mut fresh = std::sync::atomic::AtomicU64::new(0);
    let cases = (call(), vec(twist(), 1..4));
    fuzz("answers", 600, cases, |(call, twists)| {
        let plain = !twists.iter().any(Twist::touches_content);
        proxy.twist(&twists);
        let number = fresh.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (outcome, taken) = peak(|| {
            runtime.block_on(async {
                match call {
                    Call::Get { offset, len, conditional } => {
                        let range = ByteRange { offset, len };
                        let got = remote.get(&key("k0"), range, conditional.then_some(stored.etag.as_str())).await;
                        got.map(|got| {
                            prop_assert_eq!(got.len() as u64, len);
                            if plain {
                                prop_assert_eq!(&got[..], &data[offset as usize..range.end() as usize]);
                            }
                            Ok(())
                        })
                    }
                    Call::Head => remote.head(&key("k0")).await.map(|info| {
                        if plain && !info.etag.is_empty() {
                            prop_assert_eq!((info.len, &info.etag), (good.len, &good.etag));
                        }
                        Ok(())
                    }),
                    Call::List { after } => {
                        let after = after.then(|| key("k2"));
                        remote.list("k", after.as_ref()).await.map(|listed| {
                            let keys: Vec<&ObjectKey> = listed.iter().map(|(key, _)| key).collect();
                            prop_assert!(
                                keys.is_sorted() && keys.iter().all(|key| key.0.starts_with("some/prefix/k")),
                                "{keys:?}"
                            );
                            prop_assert!(after.is_none_or(|after| keys.iter().all(|key| **key > after)), "{keys:?}");
                            Ok(())
                        })
                    }
                    Call::Put => put(&remote, &format!("new{number}"), &data).await.map(|stored| {
                        prop_assert!(!stored.etag.is_empty());
                        Ok(())
                    }),
                    Call::Delete => remote.delete(&key("nothing")).await.map(|()| Ok(())),
                }
            })
        });
        proxy.twist(&[]);
        prop_assert!(taken <= MEMORY_MAX, "{taken} bytes");
        match outcome {
            Ok(checked) => checked?,
            Err(error) => worded(&error)?,
        }
        Ok(())
    });
    assert!(*fresh.get_mut() >= 600 && proxy.twisted.load(std::sync::atomic::Ordering::Relaxed) >= 600);
    // A store that does not come to an end.
    proxy.twist(&[Twist::Huge(64 << 20)]);
    let (listed, taken) = peak(|| runtime.block_on(remote.list("k", None)));
    assert!(listed.is_err() && taken <= 2 * MEMORY_MAX, "{taken} bytes");
    proxy.twist(&[]);
    // All is well as soon as the answers are.
    assert_eq!(runtime.block_on(get(&remote, "k0", 0, 1000)).unwrap(), data);
    others.block_on(rig.server.shutdown());
}
