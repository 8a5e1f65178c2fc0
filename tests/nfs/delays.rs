//! Slow recalls: NFS clients are told to come back later, so that they hold no thread of the server; everybody else waits.

use std::time::Duration;

use tierfs::gateway::faults::{Effect, Rule};

use crate::ganesha::{Export, USER};
use crate::rig::*;

fn impatient() -> Setup {
    Setup { mount: vec!["-o", "delay_after=1s"], ..Setup::default() }
}

#[test]
fn a_client_that_asks_again_gets_its_bytes() {
    let Some(export) = Export::of(impatient().build()) else { return };
    let rig = &export.rig;
    let large = rig.write("large", 24 * CHUNK);
    let small = rig.write("small", 5000);
    for version in [3, 4] {
        for (name, content) in [("large", &large), ("small", &small)] {
            export.migrate(name);
            let mut client = export.client(version);
            rig.faults.add(Rule::new(Effect::Delay(Duration::from_secs(3))).method("GET").times(1));
            client.does(&format!("open 0 0 /{name}"));
            let why = client.reads(0, 0, content.len()).expect_err("later");
            assert_eq!(why.0, libc::EAGAIN, "NFSv{version} {name}: {}", why.1);
            assert_same(&client.reads_patiently(0, 0, content.len()), content, name);
            rig.faults.clear();
        }
    }
}

#[test]
fn who_is_put_off_can_be_chosen() {
    let mount = vec!["-o", "delay_after=1s,delay_for=nobody:cat"];
    let Some(rig) = (Setup { mount, ..Setup::default() }).build() else { return };
    rig.quiet();
    rig.write("a", 5000);
    rig.write("b", 5000);
    rig.migrate("a");
    rig.migrate("b");
    rig.fault(Effect::Delay(Duration::from_secs(3)), "GET");
    let read = |program: &str, name: &str| std::process::Command::new(program).arg(rig.mnt(name)).output().unwrap();
    let put_off = read("cat", "a");
    assert!(!put_off.status.success() && said(&put_off).contains("temporarily unavailable"), "{}", said(&put_off));
    // Everybody else waits.
    assert_same(&read("md5sum", "b").stdout[..32], &md5_of("b"), "b");
    wait_for("the recall that went on", || read("cat", "a").status.success());
    rig.same("a", &noise("a", 5000));
}

/// Ganesha reads as root, whoever its client is: `uid:` does not tell its users apart, and `prog:` bounds all of them together; also what goes on for a client
/// that was told to come back later, and asks for more.
#[test]
fn a_budget_of_the_server_bounds_its_clients_together() {
    let mount = vec!["-o", "delay_after=1s,recall_budget=uid:1000:files=1+prog:ganesha.nfsd:files=2"];
    let Some(export) = Export::of((Setup { mount, ..Setup::default() }).build()) else { return };
    let rig = &export.rig;
    let listed = || {
        let mut lines = rig.json(&["recalls", rig.mountpoint().to_str().unwrap()], 0);
        lines.pop();
        lines
    };
    for version in [3, 4] {
        let names: Vec<_> = (0..6).map(|n| format!("v{version}-{n}")).collect();
        for name in &names {
            rig.write(name, 24 * CHUNK);
            export.migrate(name);
        }
        let hang = rig.fault(Effect::Hang, "GET");
        let into = rig.scratch("into");
        let mut clients = [export.client(version), export.client_as(version, USER + 1)];
        for (client, names) in clients.iter_mut().zip(names.chunks(3)) {
            for (slot, name) in names.iter().enumerate() {
                client.does(&format!("open {slot} 0 /{name}"));
            }
        }
        for round in 0..2 {
            for client in &mut clients {
                client.send(&format!("storm 3 5000 {}", into.display()));
                assert_eq!(client.line(), "sent");
            }
            for client in &mut clients {
                assert_eq!(client.line(), "ok 0 3 0", "all are to come back later");
            }
            let lines = listed();
            let users: Vec<_> = lines.iter().map(|recall| recall["requesters"][0]["uid"].as_u64().unwrap()).collect();
            assert_eq!(users, [0, 0], "NFSv{version}, round {round}: {lines:?}");
        }
        rig.faults.remove(hang);
        for recall in listed() {
            rig.json(&["recalls", "--cancel", &recall["inode"].to_string()], 0);
        }
        wait_for("the end of all", || listed().is_empty());
    }
}

fn md5_of(name: &str) -> Vec<u8> {
    let mut sum = std::process::Command::new("md5sum");
    sum.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut sum = sum.spawn().unwrap();
    std::io::Write::write_all(&mut sum.stdin.take().unwrap(), &noise(name, 5000)).unwrap();
    sum.wait_with_output().unwrap().stdout[..32].to_vec()
}
