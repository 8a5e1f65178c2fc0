//! A share with a gateway, and clients of several users for it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::process::{Child, Command, Stdio};

use aws_sdk_s3::Client;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::primitives::ByteStream;

use crate::rig::{Rig, Setup, said, wait_for};
use crate::s3;

pub const BUCKET: &str = "share";
pub const ALICE: u32 = 21_001;
pub const BOB: u32 = 21_002;
/// A group that both are in.
pub const BOTH: u32 = 21_100;

pub struct Place {
    pub rig: Rig,
    gateway: Option<Child>,
    pub endpoint: String,
    pub root: User,
    pub alice: User,
    pub bob: User,
}

/// A client with somebody's keys.
pub struct User {
    pub client: Client,
}

fn entry(key: &str, more: &str) -> String {
    format!("[[identity]]\naccess_key = \"{key}\"\nsecret_key = \"{key}secret\"\n{more}\n")
}

/// Writes the identities of the tests where the gateway looks for them.
pub fn write_identities(rig: &Rig) {
    let user = |uid: u32| format!("uid = {uid}\ngid = {uid}\ngroups = [{BOTH}]");
    let text = [
        entry("root", "uid = 0\ngid = 0"),
        entry("alice", &user(ALICE)),
        entry("bob", &user(BOB)),
        entry("peer", "role = \"peer\"\npair = \"cold\""),
    ];
    let path = rig.scratch("etc").join("identities.toml");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text.concat()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
}

impl Place {
    /// A gateway by itself, on ext4; `None` where that is not possible (which is said).
    pub fn alone() -> Option<Self> {
        Self::over(Setup::default())
    }

    pub fn over(setup: Setup) -> Option<Self> {
        Some(Self::with(Setup { mounted: false, ..setup }.build()?))
    }

    /// A gateway over a share that is not mounted.
    pub fn with(rig: Rig) -> Self {
        write_identities(&rig);
        let mut place = Self::of(rig, String::new());
        place.start();
        place
    }

    /// A mount that is a gateway as well.
    pub fn mounted() -> Option<Self> {
        let setup = Setup { mounted: false, mount: vec!["-o", "gateway=127.0.0.1:0"], ..Setup::default() };
        let mut rig = setup.build()?;
        write_identities(&rig);
        rig.mount();
        let line =
            rig.log().lines().rev().find(|line| line.contains("served as S3")).expect("it says where").to_owned();
        let endpoint =
            line.split("endpoint=").nth(1).unwrap().split_whitespace().next().unwrap().trim_matches('"').to_owned();
        Some(Self::of(rig, endpoint))
    }

    fn of(rig: Rig, endpoint: String) -> Self {
        for (name, owner, mode) in
            [("alice", ALICE, 0o755), ("bob", BOB, 0o700), ("open", 0, 0o777), ("root", 0, 0o755)]
        {
            let dir = rig.low(name);
            if !dir.exists() {
                fs::create_dir(&dir).unwrap();
                chown(&dir, Some(owner), Some(owner)).unwrap();
                fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
            }
        }
        let user = |name: &str| User::new(&endpoint, name);
        let (root, alice, bob) = (user("root"), user("alice"), user("bob"));
        Self { rig, gateway: None, endpoint, root, alice, bob }
    }

    pub fn gateway_command(&self, more: &[&str]) -> Command {
        let mut args = vec!["gateway".to_owned(), self.rig.share().display().to_string()];
        args.extend(["--listen", "127.0.0.1:0"].map(str::to_owned));
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        self.rig.command(&args)
    }

    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    pub fn start_with(&mut self, more: &[&str]) {
        let mut child = self.gateway_command(more).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let Some(endpoint) = line.trim().strip_prefix("listening on ") else {
            panic!("no gateway: {line:?} {}", said(&child.wait_with_output().unwrap()));
        };
        self.endpoint = endpoint.to_owned();
        self.gateway = Some(child);
        let user = |name: &str| User::new(endpoint, name);
        (self.root, self.alice, self.bob) = (user("root"), user("alice"), user("bob"));
    }

    /// What a gateway says that does not start.
    pub fn refusal(&self, more: &[&str]) -> String {
        let mut child = self.gateway_command(more).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let line = BufReader::new(child.stdout.take().unwrap()).lines().next();
        // It says where it listens, or ends without a word there.
        let _ = line.is_some().then(|| child.kill());
        let output = child.wait_with_output().unwrap();
        assert!(line.is_none(), "it started with {more:?}");
        assert_eq!(output.status.code(), Some(3), "{}", said(&output));
        said(&output)
    }

    pub fn pid(&self) -> u32 {
        self.gateway.as_ref().expect("it runs").id()
    }

    /// As a crash would.
    pub fn kill(&mut self) {
        let mut child = self.gateway.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// In good order.
    pub fn stop(&mut self) {
        let mut child = self.gateway.take().expect("it runs");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        wait_for("the gateway's end", || child.try_wait().unwrap().is_some());
    }

    /// Mounts with nothing else, does `work`, unmounts. The gateway must not run.
    pub fn through_a_mount(&mut self, work: impl FnOnce(&Rig)) {
        self.rig.mount();
        work(&self.rig);
        self.rig.umount();
    }

    pub fn addr(&self) -> std::net::SocketAddr {
        self.endpoint.split("//").nth(1).unwrap().parse().unwrap()
    }

    /// What is in the staging directory, but for its directories.
    pub fn staged(&self) -> usize {
        s3::files(&self.rig.low(".tierfs-gateway"))
    }

    pub fn put(&self, user: &User, key: &str, content: impl Into<Vec<u8>>) -> Result<String, String> {
        let body = ByteStream::from(content.into());
        let put = self.rig.block_on(user.client.put_object().bucket(BUCKET).key(key).body(body).send());
        put.map(|put| put.e_tag.unwrap()).map_err(s3::code)
    }

    pub fn get(&self, user: &User, key: &str) -> Result<Vec<u8>, String> {
        self.get_range(user, key, None)
    }

    pub fn get_range(&self, user: &User, key: &str, range: Option<&str>) -> Result<Vec<u8>, String> {
        self.rig.block_on(async {
            let get = user.client.get_object().bucket(BUCKET).key(key).set_range(range.map(str::to_owned));
            let got = get.send().await.map_err(s3::code)?;
            got.body.collect().await.map(|body| body.to_vec()).map_err(|error| format!("body: {error}"))
        })
    }

    pub fn head(&self, user: &User, key: &str) -> Result<HeadObjectOutput, String> {
        self.rig.block_on(user.client.head_object().bucket(BUCKET).key(key).send()).map_err(s3::code)
    }

    pub fn delete(&self, user: &User, key: &str) -> Result<(), String> {
        let deleted = self.rig.block_on(user.client.delete_object().bucket(BUCKET).key(key).send());
        deleted.map(drop).map_err(s3::code)
    }

    pub fn rename(&self, user: &User, from: &str, to: &str) -> Result<String, String> {
        let source = format!("/{BUCKET}/{from}");
        let put = user.client.put_object().bucket(BUCKET).key(to).body(ByteStream::from_static(b""));
        let put = put.customize().mutate_request(move |request| {
            request.headers_mut().insert("x-tierfs-rename-source", source.clone());
        });
        self.rig.block_on(put.send()).map(|put| put.e_tag.unwrap()).map_err(s3::code)
    }

    pub fn copy(&self, user: &User, from: &str, to: &str) -> Result<(), String> {
        let copy = user.client.copy_object().bucket(BUCKET).key(to).copy_source(format!("{BUCKET}/{from}"));
        self.rig.block_on(copy.send()).map(drop).map_err(s3::code)
    }

    /// Keys and common prefixes, by pages of `page`.
    pub fn list_by(
        &self,
        user: &User,
        prefix: &str,
        delimiter: Option<&str>,
        page: i32,
    ) -> Result<(Vec<String>, Vec<String>), String> {
        let list = user.client.list_objects_v2().bucket(BUCKET).prefix(prefix).max_keys(page);
        let mut pages = list.set_delimiter(delimiter.map(str::to_owned)).into_paginator().send();
        let (mut keys, mut prefixes) = (Vec::new(), Vec::new());
        self.rig.block_on(async {
            while let Some(page) = pages.next().await {
                let page = page.map_err(s3::code)?;
                keys.extend(page.contents.unwrap_or_default().into_iter().filter_map(|object| object.key));
                prefixes
                    .extend(page.common_prefixes.unwrap_or_default().into_iter().filter_map(|common| common.prefix));
            }
            Ok((keys, prefixes))
        })
    }

    /// All keys.
    pub fn keys(&self, user: &User, prefix: &str) -> Vec<String> {
        self.list_by(user, prefix, None, 1_000).unwrap().0
    }
}

impl User {
    pub fn new(endpoint: &str, name: &str) -> Self {
        Self { client: s3::client(endpoint, name, &format!("{name}secret")) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(mut child) = self.gateway.take() else { return };
        let _ = child.kill();
        if let Ok(output) = child.wait_with_output()
            && std::thread::panicking()
        {
            eprintln!("--- the gateway's log ---\n{}", String::from_utf8_lossy(&output.stderr));
        }
    }
}
