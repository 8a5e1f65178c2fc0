//! Who is no peer can send nothing; and whatever a peer sends, it stays within the share and leaves alone what is not its to change.

use std::fs;
use std::os::unix::fs::symlink;

use aws_sdk_s3::Client;
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::primitives::ByteStream;
use tierfs::capture::files::Facts;
use tierfs::sync::wire::{Answer, Batch, Begin, Half, Kind, Node, Statement, decode, encode};
use tierfs::tree::Attributes;
use tierfs::types::{FileId, PairFileId};
use tokio::runtime::Runtime;

use crate::tools::*;
use crate::two::{BUCKET, PAIR, Side, Two};

/// Messages to a side's gateway, by whoever has the keys.
pub struct Sends {
    runtime: Runtime,
    client: Client,
}

/// A client with somebody's keys.
pub fn client(side: &Side, key: &str) -> Client {
    let keys = aws_credential_types::Credentials::new(key, format!("{key}secret"), None, None, "test");
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(aws_sdk_s3::config::BehaviorVersion::latest())
        .endpoint_url(side.endpoint())
        .region(aws_sdk_s3::config::Region::new("us-east-1"))
        .force_path_style(true)
        .credentials_provider(keys)
        .http_client(aws_smithy_http_client::Builder::new().build_http());
    Client::from_conf(config.build())
}

impl Sends {
    pub fn to(side: &Side, key: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { runtime, client: client(side, key) }
    }

    /// Puts a message; the ETag, or the code and message of the refusal.
    fn put(&self, path: &str, body: Vec<u8>) -> Result<String, (String, String)> {
        let put = self.client.put_object().bucket(BUCKET).key(format!(".tierfs-gateway/sync/{path}"));
        let put = self.runtime.block_on(put.body(ByteStream::from(body)).send());
        put.map(|put| put.e_tag.unwrap_or_default().trim_matches('"').to_owned()).map_err(|error| {
            let error = error.into_service_error();
            (error.code().unwrap_or("none").to_owned(), error.message().unwrap_or_default().to_owned())
        })
    }

    fn get(&self, path: &str) -> Result<Vec<u8>, String> {
        let get = self.client.get_object().bucket(BUCKET).key(format!(".tierfs-gateway/sync/{path}"));
        self.runtime.block_on(async {
            let got =
                get.send().await.map_err(|error| error.into_service_error().code().unwrap_or("none").to_owned())?;
            Ok(got.body.collect().await.unwrap().to_vec())
        })
    }

    pub fn begin(&self, east: &Side, run: u64) -> Result<String, (String, String)> {
        let master = Half {
            pair: PAIR.into(),
            local_cluster: "east".into(),
            local_share: east.share().display().to_string(),
            ..Half::default()
        };
        let root = fs::metadata(east.share()).unwrap();
        let share = FileId { ino: std::os::unix::fs::MetadataExt::ino(&root), birth: 1 };
        self.put(&format!("begin/{run}"), encode(&Begin { run, master, share }))
    }

    pub fn batch(&self, run: u64, number: u64, statements: Vec<Statement>) -> Result<Answer, (String, String)> {
        let path = format!("batch/{run}-{number}");
        let etag = self.put(&path, encode(&Batch { run, number, statements }))?;
        if etag.ends_with("-0") {
            return Ok(Answer::default());
        }
        Ok(decode(&self.get(&path).unwrap()).unwrap())
    }
}

pub fn node(id: u8, kind: Kind) -> Node {
    let attributes = Attributes { mode: 0o777, ..Attributes::default() };
    Node { id: Some(PairFileId([id; 16])), origin: FileId { ino: 1_000_000, birth: 1 }, links: 1, kind, attributes }
}

pub fn name(dir: PairFileId, name: &[u8], is: Option<Node>) -> Statement {
    Statement::Name { dir, name: name.to_vec(), is }
}

pub const ROOT: PairFileId = PairFileId::ROOT;

#[test]
fn only_the_peer_can_send() {
    let Some(two) = Two::new() else { return };
    two.told();
    let batch = encode(&Batch { run: 1, number: 1, statements: Vec::new() });
    for key in ["root", "nobody"] {
        let sends = Sends::to(&two.west, key);
        for path in ["batch/1-1", "begin/1", "held/1", "compare/1-1"] {
            let refused = sends.put(path, batch.clone()).unwrap_err();
            assert_eq!(refused.0, "InvalidArgument", "{key} {path} {refused:?}");
            assert!(sends.get(path).is_err(), "{key} {path}");
        }
    }
    // Nor by another name for the same place, or beside it.
    let peer = Sends::to(&two.west, "east");
    for key in ["../etc", "", "nothing/1", "batch"] {
        assert!(peer.put(key, batch.clone()).is_err(), "{key}");
    }
    assert_eq!(peer.put("batch/1-1", b"no message".to_vec()).unwrap_err().0, "Refused");
    assert_eq!(peer.put("batch/1-1", batch.clone()).unwrap_err().0, "PreconditionFailed");
    // An identity of another pair.
    let path = two.west.scratch("etc/identities.toml");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(PAIR));
    fs::write(two.east.mnt("still"), "works").unwrap();
    two.equal();
}

#[test]
fn tricks_in_batches_do_nothing() {
    let Some(mut two) = Two::unmounted("ext4", "slave") else { return };
    two.west.mount();
    let (east, west) = (&two.east, &two.west);
    let outside = west.scratch("outside");
    fs::create_dir(&outside).unwrap();
    fs::create_dir(west.mnt("own")).unwrap();
    fs::write(west.mnt("own/file"), "own").unwrap();
    symlink(&outside, west.mnt("way-out")).unwrap();
    let before = west.tree();
    let peer = Sends::to(west, "east");
    let run = 1 << 60;
    peer.begin(east, run).unwrap();
    // Of an earlier run, out of turn, and not at all.
    assert_eq!(peer.begin(east, run - 1).unwrap_err().0, "PreconditionFailed");
    for (run, number) in [(run - 1, 1), (run + 1, 1), (run, 2), (run, u64::MAX)] {
        assert_eq!(peer.batch(run, number, vec![]).unwrap_err().0, "PreconditionFailed", "{run} {number}");
    }
    let file = |id| node(id, Kind::Regular(Facts { size: 5, held: true, ..Facts::default() }));
    let directory = |id| node(id, Kind::Directory);
    let mut statements: Vec<Statement> =
        [&b".."[..], b".", b"", b"a/b", b"../x", b"a\0b", &[b'x'; 256], b".tierfs-gateway", b"own", b"way-out"]
            .into_iter()
            .map(|bad| name(ROOT, bad, Some(directory(1))))
            .collect();
    // Directories that are not there, or that no master has.
    statements.push(name(PairFileId([9; 16]), b"x", Some(file(2))));
    statements.push(name(PairFileId([0xff; 16]), b"x", Some(file(2))));
    statements.push(name(ROOT, b"root-again", Some(Node { id: Some(ROOT), ..directory(3) })));
    statements.push(name(ROOT, b"nobody", Some(Node { id: None, ..directory(3) })));
    statements.push(name(ROOT, b"link", Some(node(4, Kind::Symlink { target: b"a\0b".to_vec() }))));
    statements.push(Statement::Inode(Node { id: Some(ROOT), ..directory(3) }));
    statements.push(Statement::Gone(ROOT));
    statements.push(Statement::Gone(PairFileId([7; 16])));
    // Nothing is taken away that the master never had.
    statements.push(name(ROOT, b"own", None));
    statements.push(Statement::Names { dir: ROOT, after: None, upto: None, names: vec![] });
    // Content that this side is said to hold, and does not.
    statements.push(name(ROOT, b"held", Some(node(5, Kind::Regular(Facts { size: 9, ..Facts::default() })))));
    let many = statements.len();
    let answer = peer.batch(run, 1, statements.clone()).unwrap();
    assert_eq!(west.tree(), before, "{answer:?}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert!(answer.counts.refused >= 10 && answer.counts.made <= 5 && many > 20, "{answer:?}");
    // A repeat is answered the same, and not applied again.
    assert_eq!(peer.batch(run, 1, statements).unwrap(), answer);
    // What is good is taken: a link that leads out is a link, and nothing is made through it.
    let good = vec![
        name(ROOT, b"d", Some(directory(10))),
        name(
            PairFileId([10; 16]),
            b"out",
            Some(node(11, Kind::Symlink { target: outside.as_os_str().as_encoded_bytes().to_vec() })),
        ),
        // As if the link were a directory.
        name(PairFileId([11; 16]), b"x", Some(file(12))),
    ];
    let answer = peer.batch(run, 2, good).unwrap();
    assert_eq!(answer.unknown, [PairFileId([11; 16])], "{answer:?}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert_eq!(fs::read_link(west.mnt("d/out")).unwrap(), outside);
    // Hidden attributes are not taken from anybody, and what is there of them stays.
    let mine = xattr(&west.low("d"), "trusted.tierfs.peer-id").unwrap();
    let mut dressed = directory(10);
    dressed.attributes.xattrs =
        ["trusted.tierfs.peer-id", "trusted.tierfs.record", "user.tierfs.pin", "user.good", "security.selinux"]
            .map(|name| (name.as_bytes().to_vec(), b"forged".to_vec()))
            .to_vec();
    peer.batch(run, 3, vec![Statement::Inode(dressed)]).unwrap();
    assert_eq!(xattr(&west.low("d"), "trusted.tierfs.peer-id").unwrap(), mine);
    assert_eq!(xattr(&west.low("d"), "user.good").unwrap(), b"forged");
    for name in ["trusted.tierfs.record", "user.tierfs.pin"] {
        assert!(xattr(&west.low("d"), name).is_err(), "{name}");
    }
    // A directory into itself.
    let nested = vec![name(PairFileId([10; 16]), b"again", Some(directory(10)))];
    let answer = peer.batch(run, 4, nested).unwrap();
    assert_eq!(answer.counts.refused, 1, "{answer:?}");
    assert!(west.mnt("d/out").symlink_metadata().is_ok());
}

/// Below the mount, ids are copied along with files by those who copy everything; both are files of their own.
#[test]
fn copied_ids_are_nobodys() {
    let Some(two) = Two::new() else { return };
    let (east, west) = (&two.east, &two.west);
    fs::create_dir(east.mnt("d")).unwrap();
    symlink("x", east.mnt("d/l")).unwrap();
    two.equal();
    let copied = xattr(&east.low("d"), "trusted.tierfs.peer-id").unwrap();
    fs::create_dir(east.low("copy")).unwrap();
    set_xattr(&east.low("copy"), "trusted.tierfs.peer-id", &copied).unwrap();
    east.reconcile(&[]);
    two.equal();
    assert!(west.mnt("d/l").symlink_metadata().is_ok() && west.mnt("copy").is_dir());
    // And users of the mount neither see nor set them.
    let path = east.mnt("d");
    assert!(xattr(&path, "trusted.tierfs.peer-id").is_err());
    assert!(set_xattr(&path, "trusted.tierfs.peer-id", &copied).is_err());
}
