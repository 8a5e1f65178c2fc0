//! Checksums on the way in: which to compute, and whether they are what the client said.
//!
//! Everything is checked before anything is published; a client that names nothing gets a CRC-64/NVME, which is nearly
//! free, so that every object can be verified when it is read.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum_combine};
use hyper::HeaderMap;
use md5::{Digest as _, Md5};
use s3s::checksum::ChecksumHasher;
use s3s::crypto::{Checksum as _, Crc32, Crc32c, Crc64Nvme, Sha1, Sha256};
use s3s::{S3Result, s3_error};

use crate::gateway::store::{Algorithm, Checksum, PartInfo};

/// Every algorithm, its header, and the length of its value in bytes.
const ALGORITHMS: [(Algorithm, &str, usize); 5] = [
    (Algorithm::Crc64Nvme, "x-amz-checksum-crc64nvme", 8),
    (Algorithm::Crc32, "x-amz-checksum-crc32", 4),
    (Algorithm::Crc32c, "x-amz-checksum-crc32c", 4),
    (Algorithm::Sha1, "x-amz-checksum-sha1", 20),
    (Algorithm::Sha256, "x-amz-checksum-sha256", 32),
];

/// The algorithm by the name S3 gives it.
pub fn by_name(name: &str) -> S3Result<Algorithm> {
    match name.to_ascii_uppercase().as_str() {
        "CRC32" => Ok(Algorithm::Crc32),
        "CRC32C" => Ok(Algorithm::Crc32c),
        "CRC64NVME" => Ok(Algorithm::Crc64Nvme),
        "SHA1" => Ok(Algorithm::Sha1),
        "SHA256" => Ok(Algorithm::Sha256),
        _ => Err(s3_error!(InvalidRequest, "unknown checksum algorithm {name:?}")),
    }
}

/// The name S3 gives the algorithm.
pub fn name_of(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::Crc32 => "CRC32",
        Algorithm::Crc32c => "CRC32C",
        Algorithm::Crc64Nvme => "CRC64NVME",
        Algorithm::Sha1 => "SHA1",
        Algorithm::Sha256 => "SHA256",
    }
}

/// What the client said about the content before sending it.
#[derive(Debug, Default)]
pub struct Claims {
    md5: Option<[u8; 16]>,
    sums: Vec<(Algorithm, String)>,
    /// Will follow the content.
    trailer: Option<Algorithm>,
    /// Hex, from a signed payload whose signature nobody checked.
    payload_sha256: Option<String>,
    /// To be computed and stored, whatever else is.
    wanted: Option<Algorithm>,
    /// The MD5 is wanted whether or not the client told one.
    md5_wanted: bool,
}

impl Claims {
    /// Reads the headers of a PUT. `payload_sha256`: the hash it was signed with, if that is still to be checked.
    pub fn read(headers: &HeaderMap, wanted: Option<Algorithm>, payload_sha256: Option<String>) -> S3Result<Self> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let mut claims = Claims { payload_sha256, wanted, ..Self::default() };
        if let Some(value) = text("content-md5") {
            let md5 = BASE64.decode(value).ok().and_then(|raw| raw.try_into().ok());
            claims.md5 = Some(md5.ok_or_else(|| s3_error!(InvalidDigest, "the Content-MD5 {value:?} is not valid"))?);
        }
        for (algorithm, header, len) in ALGORITHMS {
            let Some(value) = text(header) else { continue };
            if BASE64.decode(value).map(|raw| raw.len()) != Ok(len) {
                return Err(s3_error!(InvalidRequest, "the value of {header} is not valid"));
            }
            claims.sums.push((algorithm, value.to_owned()));
        }
        if let Some(trailer) = text("x-amz-trailer") {
            let name = trailer.trim().to_ascii_lowercase();
            claims.trailer = ALGORITHMS.iter().find(|(_, header, _)| *header == name).map(|(algorithm, ..)| *algorithm);
            if claims.trailer.is_none() {
                return Err(s3_error!(InvalidRequest, "the trailer {name:?} is not supported"));
            }
        }
        if claims.wanted.is_none()
            && let Some(name) = text("x-amz-sdk-checksum-algorithm").or_else(|| text("x-amz-checksum-algorithm"))
        {
            claims.wanted = Some(by_name(name)?);
        }
        Ok(claims)
    }

    /// Has the MD5 computed, too.
    pub fn md5(self, md5_wanted: bool) -> Self {
        Self { md5_wanted, ..self }
    }

    /// The algorithm of the checksum to store.
    fn stored(&self) -> Algorithm {
        let named = self.wanted.or(self.sums.first().map(|(algorithm, _)| *algorithm)).or(self.trailer);
        named.unwrap_or(Algorithm::Crc64Nvme)
    }

    pub fn hasher(self) -> Hasher {
        let mut sums = ChecksumHasher::default();
        let named = self.sums.iter().map(|(algorithm, _)| *algorithm).chain(self.trailer).chain([self.stored()]);
        for algorithm in named {
            start(&mut sums, algorithm);
        }
        let payload = self.payload_sha256.as_ref().map(|_| Sha256::new());
        let md5 = (self.md5_wanted || self.md5.is_some()).then(Md5::new);
        Hasher { md5, payload, sums, claims: self }
    }
}

fn start(sums: &mut ChecksumHasher, algorithm: Algorithm) {
    match algorithm {
        Algorithm::Crc32 => sums.crc32 = Some(Crc32::new()),
        Algorithm::Crc32c => sums.crc32c = Some(Crc32c::new()),
        Algorithm::Crc64Nvme => sums.crc64nvme = Some(Crc64Nvme::new()),
        Algorithm::Sha1 => sums.sha1 = Some(Sha1::new()),
        Algorithm::Sha256 => sums.sha256 = Some(Sha256::new()),
    }
}

/// The checksums of content in passing.
pub struct Hasher {
    md5: Option<Md5>,
    payload: Option<Sha256>,
    sums: ChecksumHasher,
    claims: Claims,
}

/// What became of the checksums.
#[derive(Debug, Default)]
pub struct Verified {
    /// Hex, if the client sent a Content-MD5, or it was wanted.
    pub md5: Option<String>,
    /// The one to store.
    pub checksum: Option<Checksum>,
}

impl Hasher {
    pub fn update(&mut self, chunks: &[Bytes]) {
        for chunk in chunks {
            if let Some(md5) = &mut self.md5 {
                md5.update(chunk);
            }
            if let Some(payload) = &mut self.payload {
                payload.update(chunk);
            }
            self.sums.update(chunk);
        }
    }

    /// Compares with what the client claimed; `trailer` is what followed the content.
    pub fn verify(self, trailer: Option<&HeaderMap>) -> S3Result<Verified> {
        let Hasher { md5, payload, sums, mut claims } = self;
        let computed = sums.finalize();
        let value = |algorithm: Algorithm| match algorithm {
            Algorithm::Crc32 => computed.checksum_crc32.clone(),
            Algorithm::Crc32c => computed.checksum_crc32c.clone(),
            Algorithm::Crc64Nvme => computed.checksum_crc64nvme.clone(),
            Algorithm::Sha1 => computed.checksum_sha1.clone(),
            Algorithm::Sha256 => computed.checksum_sha256.clone(),
        };
        if let Some(algorithm) = claims.trailer {
            let header = ALGORITHMS.iter().find(|(a, ..)| *a == algorithm).map(|(_, header, _)| *header);
            let sent = header.and_then(|header| trailer?.get(header)?.to_str().ok());
            match sent {
                Some(sent) => claims.sums.push((algorithm, sent.to_owned())),
                None => return Err(s3_error!(IncompleteBody, "the announced trailing checksum did not arrive")),
            }
        }
        for (algorithm, claimed) in &claims.sums {
            if value(*algorithm).as_deref() != Some(claimed) {
                let name = name_of(*algorithm);
                return Err(s3_error!(BadDigest, "the {name} you specified did not match what was received"));
            }
        }
        let md5: Option<[u8; 16]> = md5.map(|md5| md5.finalize().into());
        if claims.md5.is_some() && md5 != claims.md5 {
            return Err(s3_error!(BadDigest, "the Content-MD5 you specified did not match what was received"));
        }
        let payload = payload.map(|payload| hex(payload.finalize().as_ref()));
        if payload != claims.payload_sha256 {
            let code = s3s::S3ErrorCode::Custom("XAmzContentSHA256Mismatch".into());
            let mut error = s3s::S3Error::with_message(code, "the payload is not what was signed");
            error.set_status_code(hyper::StatusCode::BAD_REQUEST);
            return Err(error);
        }
        let algorithm = claims.stored();
        let checksum = value(algorithm).map(|value| Checksum { algorithm, value, composite: false });
        Ok(Verified { md5: md5.map(|md5| hex(&md5)), checksum })
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The ETag of an object completed from parts: as S3 makes it if all parts have MD5 ETags, else of the same shape.
pub fn multipart_etag(parts: &[PartInfo]) -> String {
    let mut md5 = Md5::new();
    for part in parts {
        match un_hex(&part.etag) {
            Some(raw) => md5.update(raw),
            None => md5.update(&part.etag),
        }
    }
    format!("{}-{}", hex(&md5.finalize()), parts.len())
}

fn un_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if !digits {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

/// The checksum of the whole out of those of the parts; `None` if a part lacks it.
pub fn combine(parts: &[PartInfo], algorithm: Algorithm, composite: bool) -> Option<Checksum> {
    let mut raws = Vec::with_capacity(parts.len());
    for part in parts {
        let sum = part.checksum.as_ref().filter(|sum| sum.algorithm == algorithm)?;
        raws.push((BASE64.decode(&sum.value).ok()?, part.size));
    }
    if composite {
        let mut sums = ChecksumHasher::default();
        start(&mut sums, algorithm);
        raws.iter().for_each(|(raw, _)| sums.update(raw));
        let all = sums.finalize();
        let value = all
            .checksum_crc32
            .or(all.checksum_crc32c)
            .or(all.checksum_crc64nvme)
            .or(all.checksum_sha1)
            .or(all.checksum_sha256)?;
        return Some(Checksum { algorithm, value: format!("{value}-{}", parts.len()), composite });
    }
    let crc = match algorithm {
        Algorithm::Crc32 => CrcAlgorithm::Crc32IsoHdlc,
        Algorithm::Crc32c => CrcAlgorithm::Crc32Iscsi,
        Algorithm::Crc64Nvme => CrcAlgorithm::Crc64Nvme,
        Algorithm::Sha1 | Algorithm::Sha256 => return None,
    };
    let number = |raw: &[u8]| raw.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    let mut raws = raws.into_iter();
    let (first, _) = raws.next()?;
    let width = first.len();
    let sum = raws.fold(number(&first), |sum, (raw, size)| checksum_combine(crc, sum, number(&raw), size));
    Some(Checksum { algorithm, value: BASE64.encode(&sum.to_be_bytes()[8 - width..]), composite })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(algorithm: Algorithm, content: &[u8]) -> Checksum {
        let claims = Claims { wanted: Some(algorithm), ..Claims::default() };
        let mut hasher = claims.hasher();
        hasher.update(&[Bytes::copy_from_slice(content)]);
        hasher.verify(None).unwrap().checksum.unwrap()
    }

    #[test]
    fn parts_combine_to_the_whole() {
        let content: Vec<u8> = (0..10_000_u32).flat_map(|n| n.to_le_bytes()).collect();
        for algorithm in [Algorithm::Crc32, Algorithm::Crc32c, Algorithm::Crc64Nvme] {
            let parts: Vec<PartInfo> = content
                .chunks(9_999)
                .enumerate()
                .map(|(at, chunk)| PartInfo {
                    number: at as u16 + 1,
                    size: chunk.len() as u64,
                    etag: String::new(),
                    modified: Default::default(),
                    checksum: Some(sum(algorithm, chunk)),
                    version: 0,
                })
                .collect();
            assert_eq!(combine(&parts, algorithm, false), Some(sum(algorithm, &content)), "{algorithm:?}");
        }
    }

    /// Values published for the nine digits "123456789".
    #[test]
    fn known_values() {
        let check = |algorithm, value| assert_eq!(sum(algorithm, b"123456789").value, value);
        check(Algorithm::Crc32, BASE64.encode(0xcbf4_3926_u32.to_be_bytes()));
        check(Algorithm::Crc32c, BASE64.encode(0xe306_9283_u32.to_be_bytes()));
        check(Algorithm::Crc64Nvme, BASE64.encode(0xae8b_1486_0a79_9888_u64.to_be_bytes()));
    }
}
