//! What a sync promises, and what it says when it cannot keep it.

use tierfs::lower::Share;
use tierfs::ports::{Lower, SetAttr};

use crate::Env;
use crate::common::{LoopFs, run};
use crate::contract::{self, BOTH, READ, os};

/// Stops the filesystem without writing its log, as a power cut would.
fn cut_power(fs: &LoopFs) {
    run("xfs_io", &["-x", "-c", "shutdown", fs.path().to_str().expect("UTF-8")]);
}

/// A record that was synced is there after a power cut, though nothing else was. Somebody's `sync` on this machine would
/// spoil the round, so a file that was not synced must be gone for it to count.
pub fn a_synced_record_survives_a_power_cut(env: Env) {
    let Env { mut share, fs } = env;
    for round in 0..10 {
        let (synced, control) = (format!("synced {round}"), format!("control {round}"));
        let node = contract::file(&*share, &synced, b"content");
        share.save_record(&node, b"first").expect("save");
        share.sync_node(&share.root()).expect("sync");
        share.sync_node(&node).expect("sync");
        share.save_record(&node, b"second").expect("save");
        share.set_attr(&node, &SetAttr { mode: Some(0), ..SetAttr::default() }).expect("chmod");
        share.sync_node(&node).expect("sync");
        contract::file(&*share, &control, b"not synced");
        cut_power(&fs);
        drop(share);
        fs.unmount();
        fs.mount();
        share = Share::open(&fs.path()).expect("share").into();
        let counts = share.lookup(&share.root(), os(&control)).is_err();
        let (found, attr) = share.lookup(&share.root(), os(&synced)).expect("synced");
        assert_eq!(found, node);
        assert_eq!(attr.mode, 0);
        assert_eq!(share.load_record(&node).expect("load").as_deref(), Some(&b"second"[..]));
        assert_eq!(contract::content(&*share, &node), b"content");
        if counts {
            return;
        }
    }
    panic!("in ten rounds nothing was ever lost: this shows nothing");
}

pub fn a_dead_filesystem_is_an_error(env: Env) {
    let node = contract::file(&*env.share, "file", b"content");
    let (reader, writer) = (env.share.open(&node, READ).expect("open"), env.share.open(&node, BOTH).expect("open"));
    env.share.sync_all().expect("sync");
    writer.write_at(&[1; 65536], 0).expect("write");
    cut_power(&env.fs);
    assert!(env.share.sync_all().is_err());
    assert!(env.share.sync_node(&node).is_err());
    assert!(writer.sync(true).is_err());
    assert!(env.share.save_record(&node, b"x").is_err());
    assert!(reader.sync(false).is_err());
}
