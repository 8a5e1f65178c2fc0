//! What the tiering service at the other end of a pair asks: facts, content and hashes of a file by its id, keeping a copy of what is to come, and who owns
//! the file. Nobody else is told that there is anything to ask.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::acting::Acting;
use super::error::About;
use super::publish::{NewFile, append};
use super::staging::{directory, entries};
use super::to_the_end;
use crate::engine::wire::{LOCAL_TO_REMOTE, NOWHERE, Named, REMOTE_TO_LOCAL, Told, Verb};
use crate::engine::{Cell, EngineResult, StagedCopy};
use crate::fs::FsError;
use crate::gateway::blocking;
use crate::gateway::store::{
    AttributeHeaders, Content, ObjectInfo, PartInfo, Seal, StoreError, StoreResult, Upload, UploadId,
};
use crate::lower::{Dir, Share};
use crate::peer::{self, Call};
use crate::ports::{Lower, LowerFile, OpenFlags, RenameMode};
use crate::types::{ByteRange, ContentHash, FileId, Generation, PairFileId, STAGING_NAME, Timestamp};

/// Tells who asks by it that this is the gateway of a pair's share, and that they may ask.
pub const HELLO: &str = ".tierfs-gateway/hello";
/// Where copies wait, in the gateway's directory.
const DIRECTORY: &str = "peer";
const STAGE: &str = "stage-";
const STAGE_XATTR: &str = "peer-stage";
/// Copies that nobody asked for in so long are given up when the gateway starts, seconds.
const STAGE_LIFE_S: i64 = 7 * 24 * 3600;

/// What is known of a staged copy.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct AboutCopy {
    epoch: u64,
    content: peer::Content,
    chunk_size: u32,
    /// Over its chunks' hashes; found out when it is first asked for.
    root: Option<ContentHash>,
}

fn stage_name(id: PairFileId, epoch: u64, generation: Generation) -> OsString {
    format!("{STAGE}{id}-{epoch}-{generation}").into()
}

fn engine<T>(key: &str, result: EngineResult<T>) -> StoreResult<T> {
    result.map_err(FsError::from).about(key)
}

/// Whether a tag is an attribute call rather than a tag.
pub fn is_attribute_call(tag: &str) -> bool {
    matches!(tag, LOCAL_TO_REMOTE | REMOTE_TO_LOCAL)
}

/// Whether a key is one of those that only a peer may use.
pub fn is_peer_key(key: &str) -> bool {
    key == HELLO || Named::parse(key).is_some()
}

impl Acting {
    /// Only the tiering service at the other end of the pair that this share has.
    fn check_peer(&self, key: &str) -> StoreResult<()> {
        let denied =
            || StoreError::Denied(format!("{key}: only the tiering service of a pair's other end may ask this"));
        let pair = self.peer_of().ok_or_else(denied)?;
        if self.user().uid == 0 && self.shared.fs.engine.is_peer(pair) { Ok(()) } else { Err(denied()) }
    }

    async fn peer_file(&self, key: &str, named: &Named) -> StoreResult<Arc<Cell>> {
        let found = engine(key, self.shared.fs.engine.find_peer_file(named).await)?;
        // Perhaps its name is on the way: what is not certain is not said.
        found.ok_or_else(|| StoreError::Unavailable(format!("{key}: no file of this id is found here")))
    }

    /// What a peer's key stands for.
    pub async fn open_for_peer(&self, key: &str) -> StoreResult<(Arc<ObjectInfo>, Arc<dyn Content>)> {
        self.check_peer(key)?;
        let body = |body: Vec<u8>, etag: String| -> (Arc<ObjectInfo>, Arc<dyn Content>) {
            let info = info_of(key, body.len() as u64, etag, Timestamp::default());
            (Arc::new(info), Arc::new(Whole(Bytes::from(body))))
        };
        let Some((named, verb)) = Named::parse(key) else {
            let pair = self.peer_of().map(|pair| pair.to_string()).unwrap_or_default();
            return Ok(body(format!("{{\"pair\":\"{pair}\"}}").into_bytes(), "hello".into()));
        };
        let fs = self.shared.fs.clone();
        match verb {
            Verb::Facts => {
                let call = Call::Head { file: peer::PairFileId(u128::from_be_bytes(named.id.0)) };
                let told = match engine(key, fs.engine.find_peer_file(&named).await)? {
                    Some(cell) => engine(key, fs.engine.peer_called(&cell, call, NOWHERE, None).await)?,
                    // To who only asks how it is.
                    None => Told { from: NOWHERE, answer: peer::answer_gone(call) },
                };
                let text = serde_json::to_vec(&told).map_err(|error| StoreError::Failed(error.to_string()))?;
                Ok(body(text, "facts".into()))
            }
            Verb::Content(generation) => {
                let cell = self.peer_file(key, &named).await?;
                let content = fs.engine.published(&cell, generation).ok_or(StoreError::ConditionFailed)?;
                let info = info_of(key, content.len, generation.to_string(), content.mtime);
                Ok((Arc::new(info), Arc::new(PeerContent { fs, cell, generation, key: key.to_owned() })))
            }
            Verb::Manifest(generation, chunk_size) => {
                let cell = self.peer_file(key, &named).await?;
                let made = engine(key, fs.engine.peer_manifest(&cell, generation, chunk_size).await)?;
                let manifest = made.ok_or(StoreError::ConditionFailed)?;
                Ok(body(manifest.to_vec(), format!("{generation}.{chunk_size}")))
            }
            // A copy is there for nobody to read.
            Verb::Stage { .. } => Err(StoreError::NoSuchKey(key.to_owned())),
        }
    }

    fn stages(&self) -> StoreResult<Dir> {
        let share = self.share();
        let all = directory(share, &share.root(), STAGING_NAME, 0o711, (0, 0))?;
        let own = directory(share, &all, DIRECTORY, 0o700, (0, 0))?;
        share.dir(&own).about(STAGING_NAME)
    }

    fn stage_verb(&self, key: &str) -> StoreResult<(Named, AboutCopy)> {
        self.check_peer(key)?;
        match Named::parse(key) {
            Some((named, Verb::Stage { epoch, content, chunk_size })) if crate::types::is_chunk_size(chunk_size) => {
                Ok((named, AboutCopy { epoch, content, chunk_size, root: None }))
            }
            _ => Err(StoreError::NoSuchKey(key.to_owned())),
        }
    }

    /// Begins to take a copy in, if it is wanted.
    pub async fn begin_for_peer(&self, key: &str) -> StoreResult<Box<dyn Upload>> {
        let (_, about) = self.wanted(key).await?;
        let acting = self.clone();
        let (name, new) = (key.to_owned(), blocking(move || acting.new_stage()).await?);
        Ok(Box::new(StageUpload { acting: self.clone(), key: name, about, new, at: 0 }))
    }

    /// Refuses a copy that would never be asked for, before it is uploaded.
    pub async fn wanted(&self, key: &str) -> StoreResult<(Named, AboutCopy)> {
        let (named, about) = self.stage_verb(key)?;
        self.check_writable()?;
        let cell = self.peer_file(key, &named).await?;
        let wanted = self.shared.fs.engine.peer_wants(&cell, about.epoch, about.content).await;
        if engine(key, wanted)? { Ok((named, about)) } else { Err(StoreError::ConditionFailed) }
    }

    fn new_stage(&self) -> StoreResult<NewFile> {
        self.unnamed_in(&self.stages()?)
    }

    /// As [`Acting::complete`], of a copy.
    pub async fn complete_for_peer(
        self,
        key: String,
        id: UploadId,
        parts: Vec<PartInfo>,
    ) -> StoreResult<Arc<ObjectInfo>> {
        let (_, about) = self.wanted(&key).await?;
        let (acting, for_key, upload) = (self.clone(), key.clone(), id.clone());
        let new = blocking(move || {
            let new = acting.new_stage()?;
            acting.assemble_into(&new, &for_key, &upload, &parts)?;
            Ok(new)
        })
        .await?;
        let info = self.clone().keep_stage(key, about, new).await?;
        if let Err(error) = blocking(move || self.abort(&id)).await {
            tracing::warn!(%error, "the parts of a completed copy stay");
        }
        Ok(info)
    }

    /// A copy that has come is durable under its name from now on; older ones of the file go.
    async fn keep_stage(self, key: String, about: AboutCopy, new: NewFile) -> StoreResult<Arc<ObjectInfo>> {
        let (named, _) = self.stage_verb(&key)?;
        let (acting, for_key) = (self, key.clone());
        blocking(move || {
            let (share, key) = (acting.share(), for_key.as_str());
            let attr = new.file.stat().about(key)?;
            if attr.size != about.content.len {
                return Err(StoreError::Failed(format!("{key}: {} bytes came", attr.size)));
            }
            let stored = postcard::to_stdvec(&about).map_err(|error| StoreError::Failed(error.to_string()))?;
            share.set_xattr(&new.node, &share.hidden_xattr(STAGE_XATTR), &stored, 0).about(key)?;
            new.file.sync(false).about(key)?;
            let dir = acting.stages()?;
            let name = stage_name(named.id, about.epoch, about.content.generation);
            let temporary = OsString::from(format!("new-{}", new.node.id));
            share.link_as(acting.user(), &*new.file, &dir, &temporary).about(key)?;
            share.rename(&dir.node(), &temporary, &dir.node(), &name, RenameMode::Replace).about(key)?;
            acting.forget_stages(&dir, named.id, Some(&name))?;
            share.sync_node(&dir.node()).about(key)
        })
        .await?;
        Ok(Arc::new(info_of(&key, about.content.len, about.content.generation.to_string(), about.content.mtime)))
    }

    /// Removes the copies of a file but the one named so.
    fn forget_stages(&self, dir: &Dir, id: PairFileId, but: Option<&OsStr>) -> StoreResult<()> {
        let of_file = format!("{STAGE}{id}-");
        for entry in entries(self.share(), &dir.node()).about(STAGING_NAME)? {
            let name = entry.name.to_string_lossy();
            if name.starts_with(&of_file) && but != Some(&*entry.name) {
                self.share().unlink(&dir.node(), &entry.name).about(STAGING_NAME)?;
            }
        }
        Ok(())
    }

    /// The copy that a call is about, if it has the root that the call says.
    fn staged(&self, id: PairFileId, call: &Call, root: Option<ContentHash>) -> StoreResult<Option<StagedCopy>> {
        let Call::Ltr { ticket, content, .. } = call else { return Ok(None) };
        let (share, dir) = (self.share(), self.stages()?);
        let name = stage_name(id, ticket.epoch.0, content.generation);
        let Ok((node, attr)) = share.lookup(&dir.node(), &name) else { return Ok(None) };
        let xattr = share.hidden_xattr(STAGE_XATTR);
        let stored = share.xattr(&node, &xattr).about(STAGING_NAME)?;
        let Ok(mut about) = postcard::from_bytes::<AboutCopy>(&stored) else { return Ok(None) };
        if about.content != *content || attr.size != content.len {
            return Ok(None);
        }
        let file =
            share.open(&node, OpenFlags { read: true, no_atime: true, ..Default::default() }).about(STAGING_NAME)?;
        if about.root.is_none() {
            about.root = root_of(&*file, content.len, about.chunk_size).about(STAGING_NAME)?;
            if let Ok(stored) = postcard::to_stdvec(&about) {
                // Only remembered: else it is found out again.
                let _ = share.set_xattr(&node, &xattr, &stored, 0);
            }
        }
        if root.is_none() || about.root != root {
            tracing::warn!(file = %id, "a copy does not have the hashes of what was sent: it is not taken");
            return Ok(None);
        }
        Ok(Some(StagedCopy { epoch: about.epoch, content: *content, file }))
    }

    /// An attribute call (R6): its answer, in JSON.
    pub async fn attribute_call(
        self,
        key: String,
        tags: Vec<(String, String)>,
        headers: AttributeHeaders,
    ) -> StoreResult<String> {
        let refused = |why: &str| StoreError::Denied(format!("{key}: {why}"));
        if self.peer_of().is_none() {
            return Err(refused("only the tiering service of a pair's other end may make this call"));
        }
        let [(tag, value)] = tags.as_slice() else { return Err(refused("the call is made with one tag")) };
        if value.split(',').count() != 4 {
            return Err(refused("the tag's value is the pair's four identifiers, joined by commas"));
        }
        self.check_peer(&key)?;
        if !self.shared.fs.engine.is_other_half(value, &self.shared.bucket) {
            return Err(refused("these are not the identifiers of the pair that this share has"));
        }
        self.check_writable()?;
        let missing =
            |what: &str| StoreError::NotSupported(format!("{key}: an attribute call without the header {what}"));
        let call: Call = serde_json::from_str(&headers.call).map_err(|_| missing(crate::engine::wire::CALL_HEADER))?;
        let right = match call {
            Call::Ltr { .. } => tag == LOCAL_TO_REMOTE,
            Call::Rtl { .. } | Call::Want { .. } => tag == REMOTE_TO_LOCAL,
            _ => false,
        };
        if !right {
            return Err(refused("the call is another than the tag"));
        }
        let named = Named {
            id: PairFileId(call.file().0.to_be_bytes()),
            node: headers.node.parse().map_err(|()| missing(crate::engine::wire::NODE_HEADER))?,
            path: key.clone(),
        };
        let root = parse_root(&headers.root);
        // Only a hint: without it the path is tried.
        let from = headers.from.parse().unwrap_or(NOWHERE);
        let told = to_the_end(self.answered(key, named, call, from, root)).await?;
        serde_json::to_string(&told).map_err(|error| StoreError::Failed(error.to_string()))
    }

    async fn answered(
        self,
        key: String,
        named: Named,
        call: Call,
        from: FileId,
        root: Option<ContentHash>,
    ) -> StoreResult<Told> {
        let fs = self.shared.fs.clone();
        let cell = self.peer_file(&key, &named).await?;
        let (acting, id) = (self.clone(), named.id);
        let staged = blocking(move || acting.staged(id, &call, root)).await?;
        let told = engine(&key, fs.engine.peer_called(&cell, call, from, staged).await)?;
        if matches!(call, Call::Ltr { .. }) {
            let acting = self;
            // Taken or refused: nobody asks for it any more. Else the next copy replaces it.
            let _ = blocking(move || acting.forget_stages(&acting.stages()?, id, None)).await;
        }
        Ok(told)
    }
}

fn parse_root(text: &str) -> Option<ContentHash> {
    let mut hash = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (n, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * n..2 * n + 2], 16).ok()?;
    }
    Some(ContentHash(hash))
}

/// The root over the hashes of a file's chunks. `None`: it cannot be cut so.
fn root_of(file: &dyn LowerFile, len: u64, chunk_size: u32) -> crate::ports::LowerResult<Option<ContentHash>> {
    let mut hashes = Vec::new();
    let mut buffer = vec![0; chunk_size as usize];
    let mut index = 0;
    while let Some(range) = ByteRange::of_chunk(index, chunk_size, len) {
        let part = &mut buffer[..range.len as usize];
        if file.read_at(part, range.offset)? != part.len() {
            return Ok(None);
        }
        hashes.push(ContentHash::of(part));
        index += 1;
    }
    let manifest = crate::remote::manifest::Manifest::new(len, chunk_size, hashes);
    Ok(manifest.ok().map(|manifest| manifest.root()))
}

fn info_of(key: &str, size: u64, etag: String, modified: Timestamp) -> ObjectInfo {
    ObjectInfo {
        key: key.to_owned(),
        size,
        etag,
        modified,
        attributes: Default::default(),
        tags: Vec::new(),
        checksum: None,
        part_sizes: Vec::new(),
        upload: None,
    }
}

/// A body that is here.
struct Whole(Bytes);

#[async_trait]
impl Content for Whole {
    async fn read(&self, offset: u64, len_max: usize) -> StoreResult<Bytes> {
        let start = (offset as usize).min(self.0.len());
        Ok(self.0.slice(start..(start + len_max).min(self.0.len())))
    }
}

/// A published generation.
struct PeerContent {
    fs: Arc<crate::fs::Fs>,
    cell: Arc<Cell>,
    generation: Generation,
    key: String,
}

#[async_trait]
impl Content for PeerContent {
    async fn read(&self, offset: u64, len_max: usize) -> StoreResult<Bytes> {
        let read = self.fs.engine.peer_read(&self.cell, self.generation, offset, len_max).await;
        // Of no generation that anybody was told of: it must not look whole.
        engine(&self.key, read)?.filter(|bytes| !bytes.is_empty()).ok_or(StoreError::Gone)
    }
}

/// A copy on its way in.
struct StageUpload {
    acting: Acting,
    key: String,
    about: AboutCopy,
    new: NewFile,
    at: u64,
}

#[async_trait]
impl Upload for StageUpload {
    fn write(&mut self, chunks: &[Bytes]) -> StoreResult<()> {
        append(&*self.new.file, &mut self.at, chunks).about(&self.key)
    }

    async fn publish(self: Box<Self>, _: Seal) -> StoreResult<Arc<ObjectInfo>> {
        let Self { acting, key, about, new, .. } = *self;
        to_the_end(acting.keep_stage(key, about, new)).await
    }
}

/// Removes copies that nobody came back for.
pub fn clear_stages(share: &Share, now: Timestamp) -> crate::ports::LowerResult<()> {
    let there = share.lookup(&share.root(), OsStr::new(STAGING_NAME));
    let Ok((dir, _)) = there.and_then(|(all, _)| share.lookup(&all, OsStr::new(DIRECTORY))) else { return Ok(()) };
    for entry in entries(share, &dir)? {
        let old = now.secs.saturating_sub(share.lookup(&dir, &entry.name)?.1.ctime.secs) > STAGE_LIFE_S;
        if old || !entry.name.to_string_lossy().starts_with(STAGE) {
            share.unlink(&dir, &entry.name)?;
        }
    }
    Ok(())
}
