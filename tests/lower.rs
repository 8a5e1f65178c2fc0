//! The real share on real ext4 and XFS: the contract of `Lower`, and what only a kernel can show.
//!
//! Needs root, `mkfs.ext4` and `mkfs.xfs`; each test has a filesystem of its own on a loop device.

mod common;

use std::sync::Arc;

use common::lower_contract as contract;
use common::{LoopFs, can_mount};
use tierfs::lower::Share;
use tierfs::ports::Lower;

struct Env {
    share: Arc<Share>,
    fs: LoopFs,
}

impl Env {
    fn new(kind: &str) -> Self {
        let fs = LoopFs::new(kind, 320 << 20);
        Self { share: Arc::new(Share::open(&fs.path()).expect("share")), fs }
    }
}

fn on(kind: &str, case: impl FnOnce(Env)) {
    if can_mount() {
        tierfs::lower::ignore_sigio().expect("SIGIO");
        case(Env::new(kind));
    }
}

macro_rules! contract {
    ($($case:ident),* $(,)?) => {
        mod contract_on_ext4 {
            $(#[test] fn $case() { super::on("ext4", |env| super::contract::$case(&*env.share)); })*
        }
        mod contract_on_xfs {
            $(#[test] fn $case() { super::on("xfs", |env| super::contract::$case(&*env.share)); })*
        }
    };
}

contract! {
    lookup_finds_what_was_made, dot_and_dotdot, every_kind_of_node, create_opens_what_exists,
    hard_links_share_an_identity, renames, unlinked_files_live_while_open, space_of_removed_files_comes_back,
    set_attr_in_its_order, names_of_any_bytes, content_reads_as_written, copies_between_files, holes_and_punching,
    extended_attributes, records, handles_are_checked, a_reused_inode_is_stale, listings_go_on_from_any_offset,
    paths_are_true_or_not_told, leases_between_own_opens,
}

macro_rules! on_both {
    ($($case:ident),* $(,)?) => {
        mod ext4 { $(#[test] fn $case() { super::on("ext4", super::$case); })* }
        mod xfs { $(#[test] fn $case() { super::on("xfs", super::$case); })* }
    };
}

on_both! { an_open_waits_for_a_lease, many_threads_at_once }

fn an_open_waits_for_a_lease(env: Env) {
    contract::an_open_waits_for_a_lease(env.share);
}

fn many_threads_at_once(env: Env) {
    contract::many_threads_at_once(env.share);
}
