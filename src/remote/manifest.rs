//! placeholder
use crate::types::ContentHash;
pub struct Manifest;
#[derive(Debug, thiserror::Error)]
#[error("bad")]
pub struct ManifestError;
impl Manifest {
    pub fn new(_: u64, _: u32, _: Vec<ContentHash>) -> Self { Self }
    pub fn root(&self) -> ContentHash { todo!() }
    pub fn len(&self) -> u64 { 0 }
    pub fn chunk_size(&self) -> u32 { 0 }
    pub fn into_chunks(self) -> Vec<ContentHash> { vec![] }
    pub fn encode(&self) -> Vec<u8> { vec![] }
    pub fn decode(_: &[u8]) -> Result<Self, ManifestError> { Ok(Self) }
    pub fn encoded_len_max(_: u64) -> u64 { 0 }
}
