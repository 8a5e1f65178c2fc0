//! Acting as the requester, thread by thread.
//!
//! Invariant: when a guard of this module is dropped, on a panic too, the thread has the identity, groups, capabilities
//! and umask it had before. A thread that cannot get back would go on as the wrong user, so the process aborts.
//!
//! All of these belong to the thread in Linux: the raw calls are used, which (unlike glibc's `setuid`) do not tell the
//! other threads, and the umask is unshared from them. `SECBIT_NO_SETUID_FIXUP` keeps the kernel from touching the
//! thread's capabilities when its filesystem uid changes: the kernel's FUSE client has already granted the permission, so
//! the daemon keeps `CAP_DAC_OVERRIDE` while it creates a file that belongs to somebody else.

#![allow(unsafe_code, reason = "setfsuid, setfsgid and unshare(CLONE_FS) have no safe wrapper in rustix")]

use std::cell::Cell;

use rustix::fs::Mode;
use rustix::process::{getgroups, umask};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, Gid, UnshareFlags, capabilities, capabilities_secure_bits,
    set_capabilities, set_capabilities_secure_bits, set_thread_groups, unshare_unsafe,
};

use super::Step;
use crate::ports::{Caller, LowerError, LowerResult, User};

/// What the kernel drops from a thread whose filesystem uid is not root (`CAP_FS_SET`), as far as it matters to opening.
const FILE_CAPS: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::LINUX_IMMUTABLE)
    .union(CapabilitySet::MAC_OVERRIDE)
    .union(CapabilitySet::MKNOD);

/// Takes `CAP_FSETID` and `CAP_SYS_RESOURCE` out of the effective set of this thread and those it starts, so that the
/// kernel clears setuid bits and enforces quotas on what the daemon writes for users. They stay permitted.
///
/// To be called once, before any other thread is started. Programs that this process starts inherit
/// `SECBIT_NO_SETUID_FIXUP`: none of them may rely on `setuid` without `exec` to lose its capabilities.
pub fn drop_privileges() -> LowerResult<()> {
    let mut sets = capabilities(None).step("capget")?;
    sets.effective.remove(CapabilitySet::FSETID | CapabilitySet::SYS_RESOURCE);
    set_capabilities(None, sets).step("capset")?;
    keep_capabilities_on_setfsuid()
}

fn keep_capabilities_on_setfsuid() -> LowerResult<()> {
    let bits = capabilities_secure_bits().step("prctl(PR_GET_SECUREBITS)")?;
    if bits.contains(CapabilitiesSecureBits::NO_SETUID_FIXUP) {
        return Ok(());
    }
    set_capabilities_secure_bits(bits | CapabilitiesSecureBits::NO_SETUID_FIXUP).step("prctl(PR_SET_SECUREBITS)")
}

thread_local! {
    /// The umask of this thread outside of any guard; `None` until the thread is prepared.
    static OWN_UMASK: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Gives this thread a umask of its own and keeps its capabilities across `setfsuid`. Done once a thread.
fn prepare_thread() -> LowerResult<u32> {
    if let Some(own) = OWN_UMASK.get() {
        return Ok(own);
    }
    // SAFETY: only CLONE_FS (umask, root and working directory); the descriptor table stays shared.
    unsafe { unshare_unsafe(UnshareFlags::FS) }.step("unshare(CLONE_FS)")?;
    keep_capabilities_on_setfsuid()?;
    let own = umask(Mode::empty());
    umask(own);
    OWN_UMASK.set(Some(own.bits()));
    Ok(own.bits())
}

/// How far the thread becomes the requester.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum As {
    /// Owner and group of what is made; permission has been granted above and is not asked again.
    Maker,
    /// `Maker`, where the kernel looks at the requester's groups and `CAP_FSETID`: a file made setgid and group-executable, an ACL
    /// on what has setgid.
    MakerWithGroups,
    /// With the requester's own groups and capabilities, so that the kernel checks permissions here.
    Themselves,
}

/// While it lives, this thread acts on files as the requester.
#[must_use]
pub(super) struct ActingAs {
    uid: Option<u32>,
    gid: Option<u32>,
    umask: Option<u32>,
    groups: Option<Vec<Gid>>,
    caps: Option<CapabilitySets>,
    /// Guards belong to the thread that made them.
    _here: std::marker::PhantomData<*const ()>,
}

impl ActingAs {
    pub(super) fn new(who: &Caller, how: As) -> LowerResult<Self> {
        Self::with(who, how, || Rights::of(who))
    }

    /// As [`As::Themselves`], for a user who has no process here.
    pub(super) fn user(user: &User) -> LowerResult<Self> {
        let who = Caller { uid: user.uid, gid: user.gid, pid: 0, umask: user.umask };
        let rights = || Rights {
            groups: user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect(),
            effective: if user.uid == 0 { CapabilitySet::all() } else { CapabilitySet::empty() },
        };
        Self::with(&who, As::Themselves, rights)
    }

    fn with(who: &Caller, how: As, rights: impl FnOnce() -> Rights) -> LowerResult<Self> {
        let own_umask = prepare_thread()?;
        let mut guard =
            Self { uid: None, gid: None, umask: None, groups: None, caps: None, _here: std::marker::PhantomData };
        // Whatever fails from here on, dropping `guard` undoes the steps taken.
        let wanted = who.umask & 0o777;
        if wanted != own_umask {
            umask(Mode::from_raw_mode(wanted));
            guard.umask = Some(own_umask);
        }
        if how != As::Maker {
            let rights = rights();
            let own = capabilities(None).step("capget")?;
            guard.groups = Some(getgroups().step("getgroups")?);
            set_thread_groups(&rights.groups).step("setgroups")?;
            let from_requester = match how {
                As::Themselves => FILE_CAPS,
                _ => CapabilitySet::FSETID,
            };
            let effective = (own.effective - from_requester) | (rights.effective & from_requester & own.permitted);
            guard.caps = Some(own);
            set_capabilities(None, CapabilitySets { effective, ..own }).step("capset")?;
        }
        guard.gid = switch(setfsgid, who.gid, "setfsgid")?;
        guard.uid = switch(setfsuid, who.uid, "setfsuid")?;
        Ok(guard)
    }
}

impl Drop for ActingAs {
    fn drop(&mut self) {
        let back = || -> LowerResult<()> {
            if let Some(uid) = self.uid {
                switch(setfsuid, uid, "setfsuid")?;
            }
            if let Some(gid) = self.gid {
                switch(setfsgid, gid, "setfsgid")?;
            }
            if let Some(groups) = &self.groups {
                set_thread_groups(groups).step("setgroups")?;
            }
            if let Some(caps) = self.caps {
                set_capabilities(None, caps).step("capset")?;
            }
            Ok(())
        };
        if let Err(error) = back() {
            die(&error);
        }
        if let Some(own) = self.umask {
            umask(Mode::from_raw_mode(own));
        }
    }
}

/// Runs `call` with `CAP_FSETID` in this thread's effective set, if the daemon may have it.
pub(super) fn with_fsetid<T>(call: impl FnOnce() -> LowerResult<T>) -> LowerResult<T> {
    with_capabilities(CapabilitySet::FSETID, call)
}

/// Runs `call` with `wanted` in this thread's effective set, as far as the daemon may have it.
pub(super) fn with_capabilities<T>(wanted: CapabilitySet, call: impl FnOnce() -> LowerResult<T>) -> LowerResult<T> {
    struct Back(CapabilitySets);
    impl Drop for Back {
        fn drop(&mut self) {
            if let Err(error) = set_capabilities(None, self.0).step("capset") {
                die(&error);
            }
        }
    }
    let own = capabilities(None).step("capget")?;
    let effective = own.effective | (wanted & own.permitted);
    if effective == own.effective {
        return call();
    }
    set_capabilities(None, CapabilitySets { effective, ..own }).step("capset")?;
    let _back = Back(own);
    call()
}

/// Runs `call` with `uid` as this thread's filesystem uid, and all its capabilities.
pub(super) fn with_fsuid<T>(uid: u32, call: impl FnOnce() -> T) -> LowerResult<T> {
    struct Back(Option<u32>);
    impl Drop for Back {
        fn drop(&mut self) {
            if let Some(own) = self.0
                && let Err(error) = switch(setfsuid, own, "setfsuid")
            {
                die(&error);
            }
        }
    }
    if uid == 0 {
        return Ok(call());
    }
    prepare_thread()?;
    let _back = Back(switch(setfsuid, uid, "setfsuid")?);
    Ok(call())
}

fn die(error: &LowerError) -> ! {
    tracing::error!(%error, "cannot return to the daemon's own identity; aborting rather than act as another user");
    std::process::abort()
}

/// Changes an id by `set` and makes sure that it took; the former one if it was another.
fn switch(set: fn(u32) -> u32, to: u32, op: &'static str) -> LowerResult<Option<u32>> {
    let before = set(to);
    if before == to {
        return Ok(None);
    }
    // These calls report no errors. An impossible id changes nothing and tells the present one.
    if set(u32::MAX) != to {
        return Err(LowerError::from_errno(op, libc::EPERM));
    }
    Ok(Some(before))
}

fn setfsuid(uid: u32) -> u32 {
    // SAFETY: takes and returns a number; changes this thread's credentials only.
    unsafe { libc::setfsuid(uid) as u32 }
}

fn setfsgid(gid: u32) -> u32 {
    // SAFETY: takes and returns a number; changes this thread's credentials only.
    unsafe { libc::setfsgid(gid) as u32 }
}

/// What a requester may do beyond being its uid and gid.
#[derive(Debug, PartialEq, Eq)]
struct Rights {
    groups: Vec<Gid>,
    effective: CapabilitySet,
}

impl Rights {
    /// Of the waiting thread `who.pid`. Unknown or somebody else by now: no groups, and capabilities for root only.
    fn of(who: &Caller) -> Self {
        let known = (who.pid != 0)
            .then(|| std::fs::read_to_string(format!("/proc/{}/status", who.pid)).ok())
            .flatten()
            .and_then(|status| Self::parse(&status, who.uid));
        known.unwrap_or_else(|| Self {
            groups: Vec::new(),
            effective: if who.uid == 0 { CapabilitySet::all() } else { CapabilitySet::empty() },
        })
    }

    fn parse(status: &str, uid: u32) -> Option<Self> {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let fsuid: u32 = field("Uid:")?.split_whitespace().nth(3)?.parse().ok()?;
        if fsuid != uid {
            return None;
        }
        let groups = field("Groups:")?.split_whitespace().map(|gid| gid.parse().map(Gid::from_raw));
        let effective = u64::from_str_radix(field("CapEff:")?.trim(), 16).ok()?;
        Some(Self {
            groups: groups.collect::<Result<_, _>>().ok()?,
            effective: CapabilitySet::from_bits_retain(effective),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_those_of_the_right_user_only() {
        let status =
            "Name:\tsh\nUid:\t1\t1\t1\t1000\nGid:\t5\t5\t5\t5\nGroups:\t4 24 1000 \nCapEff:\t0000000000000010\n";
        let rights = Rights::parse(status, 1000).expect("parses");
        assert_eq!(rights.groups, [4, 24, 1000].map(Gid::from_raw));
        assert_eq!(rights.effective, CapabilitySet::FSETID);
        assert_eq!(Rights::parse(status, 1), None);
        assert_eq!(Rights::parse("", 1), None);
    }

    #[test]
    fn a_panic_restores_the_thread() {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "this test needs root");
            return eprintln!("SKIPPED: this test needs root");
        }
        let now = || {
            (setfsuid(u32::MAX), setfsgid(u32::MAX), capabilities(None).expect("capget"), getgroups().expect("groups"))
        };
        keep_capabilities_on_setfsuid().expect("securebits");
        let before = now();
        let who = Caller { uid: 1000, gid: 2000, pid: 0, umask: 0o077 };
        for how in [As::Maker, As::MakerWithGroups, As::Themselves] {
            let panicked = std::panic::catch_unwind(|| {
                let _as_requester = ActingAs::new(&who, how).expect("act");
                assert_eq!((setfsuid(u32::MAX), setfsgid(u32::MAX)), (1000, 2000));
                assert_eq!(umask(Mode::from_raw_mode(0o077)).bits(), 0o077);
                panic!("on purpose");
            });
            assert_eq!(*panicked.expect_err("panics").downcast::<&str>().expect("text"), "on purpose");
            assert_eq!(now(), before);
            let own = OWN_UMASK.get().expect("prepared");
            assert_eq!(umask(Mode::from_raw_mode(own)).bits(), own);
        }
    }

    #[test]
    fn unknown_requesters_have_no_rights_unless_root() {
        let who = |uid| Caller { uid, gid: 0, pid: 0, umask: 0 };
        assert_eq!(Rights::of(&who(1000)), Rights { groups: vec![], effective: CapabilitySet::empty() });
        assert!(Rights::of(&who(0)).effective.contains(CapabilitySet::DAC_OVERRIDE));
    }
}
