//! The real share on real ext4 and XFS: the contract of `Lower`, and what only a kernel can show.
//!
//! Needs root, `mkfs.ext4` and `mkfs.xfs`; each test has a filesystem of its own on a loop device.

#[path = "../common/mod.rs"]
mod common;
mod durability;
mod identity;
mod inodes;
mod leases;
mod mounts;
mod walks;

use std::sync::Arc;

use common::lower_contract as contract;
use common::{LoopFs, can_mount};
use tierfs::lower::Share;

/// One share on a filesystem of its own. The share goes first, or the filesystem stays busy.
struct Env {
    share: Arc<Share>,
    fs: LoopFs,
}

fn on(kind: &str, case: impl FnOnce(Env)) {
    if can_mount() {
        tierfs::lower::ignore_sigio().expect("SIGIO");
        let fs = LoopFs::new(kind, 320 << 20);
        case(Env { share: Arc::new(Share::open(&fs.path()).expect("share")), fs });
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
    extended_attributes, records, handles_are_checked, a_reused_inode_is_stale, numbers_lead_to_their_inodes,
    paths_are_true_or_not_told, leases_between_own_opens,
}

macro_rules! on_both {
    ($($module:ident :: $case:ident),* $(,)?) => {
        mod ext4 { $(#[test] fn $case() { super::on("ext4", super::$module::$case); })* }
        mod xfs { $(#[test] fn $case() { super::on("xfs", super::$module::$case); })* }
    };
}

mod listings {
    pub fn they_go_on_from_any_offset(env: super::Env) {
        super::contract::listings::listings_go_on_from_any_offset(&*env.share);
    }
}

on_both! {
    listings::they_go_on_from_any_offset,
    inodes::only_a_file_with_one_name_and_no_record_is_unclaimed,
    leases::an_open_waits_for_a_lease,
    leases::another_process_counts,
    leases::mappings_count_after_their_close,
    identity::many_threads_at_once,
    identity::new_files_belong_to_the_requester,
    identity::setgid_directories_give_their_group,
    identity::umask_and_default_acls,
    identity::setgid_programs_need_the_group,
    identity::an_existing_file_is_opened_as_the_requester,
    identity::the_thread_is_itself_again,
    identity::chmod_setgid_is_kept,
    identity::an_acl_takes_setgid_from_those_outside_the_group,
    identity::tiering_keeps_privileges,
    identity::writes_clear_setuid,
    inodes::ten_thousand_inodes_with_64_descriptors,
    inodes::a_lookup_never_mixes_files_up,
    inodes::sealed_files_are_told,
    inodes::direct_io,
    inodes::numbers_beside_the_share,
    mounts::features_are_found,
    mounts::handles_survive_a_remount,
    mounts::the_lower_mount_can_go,
    mounts::submounts_are_not_crossed,
    mounts::submounts_are_not_crossed_without_a_private_mount,
    mounts::a_read_only_share_says_so,
    durability::a_synced_record_survives_a_power_cut,
    durability::a_dead_filesystem_is_an_error,
    walks::a_walk_goes_on_from_any_place,
    walks::a_walk_goes_on_after_what_is_gone,
}
