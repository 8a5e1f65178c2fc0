//! Looking at everything: after a start, and at the end.

use std::collections::BTreeSet;
use std::time::Duration;

use tierfs::ports::{FileKind, Intent, IntentKind, OpenFlags};
use tierfs::record::{Claim, PackName, Record, manifest_key};
use tierfs::types::{ByteRange, ObjectKey};

use crate::content::Content;
use crate::disk::Node;
use crate::kernel::{Failure, Kernel};
use crate::remote;
use crate::share::{RECORD, record_of};
use crate::world::{State, World};

/// In what situation a crash found the share, in a word.
pub fn situation(state: &State) -> &'static str {
    let claims: Vec<Claim> = state.disk.seen.nodes.values().filter_map(record_of).map(|record| record.claim).collect();
    let noted = |wanted: fn(&IntentKind) -> bool| state.notes.values().any(|intent| wanted(&intent.kind));
    if claims.contains(&Claim::Releasing) {
        "during a release"
    } else if noted(|kind| matches!(kind, IntentKind::Upload)) {
        "with an upload noted"
    } else if noted(|kind| matches!(kind, IntentKind::Settle { .. })) {
        "with a transfer noted"
    } else if claims.contains(&Claim::Partial) {
        "with parts"
    } else if claims.contains(&Claim::Stub) {
        "with stubs"
    } else if claims.contains(&Claim::Dual) {
        "with dual files"
    } else {
        "with resident files"
    }
}

/// The content that a file has by its record.
fn effective(state: &State, ino: u64, node: &Node) -> Result<Content, String> {
    let Some(stored) = node.xattrs.get(std::ffi::OsStr::new(RECORD)) else { return Ok(node.content.clone()) };
    let record = Record::decode(stored).map_err(|why| format!("file {ino}: its record is damaged: {why}"))?;
    let Some(object) = &record.object else { return Ok(node.content.clone()) };
    let stub = record.claim.is_remote();
    if node.content.size == 0 {
        return Ok(Content::default());
    }
    if !stub && (node.content.size != object.len || node.mtime != object.mtime) {
        // Changed beside its record: that counts for nothing.
        return Ok(node.content.clone());
    }
    let Some(stored) = remote::stored(state, &object.key) else {
        return Err(format!("file {ino} is {:?} and its object {} is not there", record.claim, object.key));
    };
    if object.has_manifest() && !state.objects.contains_key(&object.manifest_key()) {
        return Err(format!("file {ino} is {:?} and has no manifest", record.claim));
    }
    let remote = Content::of(&stored);
    if let Some(mut patch) = record.patch {
        patch.settle(Some(state.mounted));
        let mut content = node.content.clone();
        for part in patch.of_object(ByteRange { offset: 0, len: content.size }) {
            content.write(part.offset, &stored[part.offset as usize..part.end() as usize]);
        }
        return Ok(content);
    }
    if node.content.size != object.len {
        return Err(format!(
            "file {ino} is {:?} and has {} bytes, its object {}",
            record.claim, node.content.size, object.len
        ));
    }
    match node.content.difference(&remote) {
        Some(difference) if !stub => Err(format!("file {ino} is dual, and its object has other bytes: {difference}")),
        _ => Ok(remote),
    }
}

/// After a start's recovery: the oracle learns what survived, if it may have. `false`: the process is dead.
pub fn after_start(world: &World, life: u32) -> bool {
    let mut state = world.lock();
    if !state.lives(life) {
        return false;
    }
    let power = std::mem::take(&mut state.lost_power);
    let files: Vec<(u64, Node)> = state.disk.seen.nodes.iter().map(|(ino, node)| (*ino, node.clone())).collect();
    for (ino, node) in files.into_iter().filter(|(_, node)| node.kind == FileKind::Regular && node.nlink > 0) {
        let content = match effective(&state, ino, &node) {
            Ok(content) => content,
            Err(why) => {
                state.broken(why);
                return false;
            }
        };
        let releasing = record_of(&node).filter(|record| record.claim == Claim::Releasing).and_then(|r| r.object);
        let doomed = |intent: &Intent, key| intent.key == key && matches!(intent.kind, IntentKind::Delete { .. });
        if releasing.is_some_and(|object| state.notes.values().any(|note| doomed(note, object.key.clone()))) {
            state.stats.count("left half released");
            state.half_released.insert((ino, node.birth));
        }
        let faulty = state.faults > 0;
        let file = state.truth.files.get_mut(&(ino, node.birth)).expect("every file is known");
        file.mtime_open |= faulty;
        let judged = if power {
            file.survived(&content, node.mtime, node.mode)
        } else {
            file.outlived(&content, node.mtime, node.mode)
        };
        if let Err(why) = judged {
            let how = if power { "a power loss" } else { "a kill" };
            state.broken(format!("after {how} file {ino} has {why}"));
            return false;
        }
    }
    state.serving = true;
    true
}

/// Nothing more goes wrong: everything comes to rest, and everything is there. `retention_s`: until when all that is kept is gone.
pub async fn at_the_end(kernel: &Kernel, retention_s: u64) {
    let world = &kernel.world;
    let ended = async {
        rest(kernel, retention_s).await?;
        look(kernel)?;
        let files: Vec<u64> = {
            let state = world.lock();
            let regular = |node: &Node| node.kind == FileKind::Regular && node.nlink > 0;
            state.disk.seen.nodes.iter().filter(|(_, node)| regular(node)).map(|(ino, _)| *ino).collect()
        };
        for ino in &files {
            kernel.stat(*ino)?;
            let handle = kernel.open(*ino, OpenFlags { read: true, ..Default::default() }).await?;
            for offset in (0..400_000).step_by(50_000) {
                kernel.read(&handle, offset, 50_000).await?;
            }
            kernel.stat(*ino)?;
            kernel.close(handle).await?;
        }
        rest(kernel, retention_s).await?;
        look(kernel)?;
        for ino in &files {
            kernel.stat(*ino)?;
        }
        Ok::<(), Failure>(())
    };
    if let Err(Failure::Fs(error)) = ended.await {
        world.lock().broken(format!("at the end, with nothing going wrong: {error} ({error:?})"));
    }
}

/// Waits for transfers and due deletions.
async fn rest(kernel: &Kernel, retention_s: u64) -> Result<(), Failure> {
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_secs(15 + retention_s)).await;
        let state = kernel.world.lock();
        if kernel.fs.engine.is_idle() && state.notes.is_empty() && state.recalled.is_empty() {
            break;
        }
    }
    if kernel.world.is_alive(kernel.life) { Ok(()) } else { Err(Failure::Dead) }
}

/// Share, objects and notes agree.
fn look(kernel: &Kernel) -> Result<(), Failure> {
    let mut state = kernel.world.lock();
    if !state.lives(kernel.life) {
        return Err(Failure::Dead);
    }
    let mut wrong = Vec::new();
    let mut named = BTreeSet::new();
    for (ino, node) in state.disk.seen.nodes.iter().filter(|(_, node)| node.kind == FileKind::Regular) {
        if let Err(why) = effective(&state, *ino, node) {
            wrong.push(why);
        }
        let Some(record) = record_of(node) else { continue };
        if record.claim == Claim::Releasing && !state.half_released.contains(&(*ino, node.birth)) {
            wrong.push(format!("file {ino} is still being released"));
        }
        if record.claim == Claim::Stub && !node.content.pages.is_empty() {
            wrong.push(format!("file {ino} is a stub and has local blocks"));
        }
        let object = record.object.map(|object| (object.key.clone(), object.has_manifest()));
        let superseded = record.superseded.map(|old| (old.key, old.manifest));
        for (key, manifest) in object.into_iter().chain(superseded) {
            if manifest {
                named.insert(manifest_key(&key));
            }
            named.insert(key);
        }
    }
    // Packs go by the collector alone, which nobody calls here.
    let is_pack = |key: &ObjectKey| PackName::of_key("p", key).is_some();
    for key in state.objects.keys().filter(|key| !named.contains(*key) && !is_pack(key)) {
        wrong.push(format!("nothing names {key}"));
    }
    for intent in state.notes.values() {
        wrong.push(format!("a note stays: {:?} {}", intent.kind, intent.key));
    }
    for recalled in state.recalled.values() {
        wrong.push(format!("a recalled file keeps its object: {}", recalled.key));
    }
    if let Some(wrong) = wrong.into_iter().next() {
        kernel.world.broken(&mut state, format!("at the end: {wrong}"));
        return Err(Failure::Dead);
    }
    Ok(())
}
