//! The manifest of an object: the hashes of its chunks, by which any range of it can be verified by itself.
//!
//! Stored form: magic, version, a postcard body, CRC-32 (little-endian) of all that precedes. Invariant: a [`Manifest`]
//! is consistent, whether built or decoded: as many hashes as its length has chunks, and a root that follows from them.

use serde::{Deserialize, Serialize};

use crate::types::{ByteRange, CHUNKS_MAX, ContentHash, is_chunk_size};

const MAGIC: &[u8; 8] = b"tfsmanif";
const VERSION: u8 = 1;
const CRC_LEN: usize = 4;
/// What a manifest has besides its hashes, in bytes, generously.
const ENCODED_OVERHEAD_MAX: u64 = 256;

/// Why a manifest cannot be built or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("not a manifest: it does not begin with {:?}", MAGIC.escape_ascii().to_string())]
    BadMagic,
    #[error("manifest version {0} is not known (this tierfs knows {VERSION}): use a newer tierfs")]
    BadVersion(u8),
    #[error("manifest is cut short: {0} bytes")]
    Short(usize),
    #[error("manifest is damaged: its checksum is {stored:08x}, its bytes give {computed:08x}")]
    BadChecksum { stored: u32, computed: u32 },
    #[error("manifest body cannot be read: {0}")]
    BadBody(String),
    #[error("chunk size {0} is not a power of two from 64 KiB to 64 MiB")]
    BadChunkSize(u32),
    #[error("{len} bytes in chunks of {chunk_size} need {expected} hashes, there are {found}")]
    BadCount { len: u64, chunk_size: u32, expected: u64, found: u64 },
    #[error("{len} bytes in chunks of {chunk_size} are more than {CHUNKS_MAX} chunks")]
    TooLong { len: u64, chunk_size: u32 },
    #[error("root hash {stored} does not follow from the chunk hashes ({computed})")]
    BadRoot { stored: ContentHash, computed: ContentHash },
}

/// Hash of a whole content from the hashes of its chunks: of one chunk its own hash, of none the hash of nothing,
/// otherwise BLAKE3 over the hashes one after another.
pub fn root_hash(chunks: &[ContentHash]) -> ContentHash {
    match chunks {
        [] => ContentHash::of(b""),
        [only] => *only,
        many => {
            let mut hasher = blake3::Hasher::new();
            for chunk in many {
                hasher.update(&chunk.0);
            }
            ContentHash(*hasher.finalize().as_bytes())
        }
    }
}

/// The root of a content of `len` zeros in chunks of `chunk_size` bytes (not 0).
pub fn root_of_zeros(len: u64, chunk_size: u32) -> ContentHash {
    let zeros = |len: u64| {
        let mut hasher = blake3::Hasher::new();
        let buffer = [0; 64 << 10];
        let mut left = len;
        while left > 0 {
            let some = left.min(buffer.len() as u64);
            hasher.update(&buffer[..some as usize]);
            left -= some;
        }
        ContentHash(*hasher.finalize().as_bytes())
    };
    let chunk_size = u64::from(chunk_size);
    if len <= chunk_size {
        return zeros(len);
    }
    let (whole, last) = (zeros(chunk_size), len % chunk_size);
    let mut hasher = blake3::Hasher::new();
    for _ in 0..len / chunk_size {
        hasher.update(&whole.0);
    }
    if last > 0 {
        hasher.update(&zeros(last).0);
    }
    ContentHash(*hasher.finalize().as_bytes())
}

/// What version 1 stores. The order of the fields is the format.
#[derive(Serialize, Deserialize)]
struct Body {
    len: u64,
    chunk_size: u32,
    root: ContentHash,
    chunks: Vec<ContentHash>,
}

/// The chunk hashes of one generation of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    len: u64,
    chunk_size: u32,
    root: ContentHash,
    chunks: Vec<ContentHash>,
}

impl Manifest {
    /// Of a content of `len` bytes cut into chunks of `chunk_size` (a power of two, 64 KiB to 64 MiB; the last may be
    /// shorter), whose hashes are `chunks`.
    pub fn new(len: u64, chunk_size: u32, chunks: Vec<ContentHash>) -> Result<Self, ManifestError> {
        if !is_chunk_size(chunk_size) {
            return Err(ManifestError::BadChunkSize(chunk_size));
        }
        let expected = len.div_ceil(u64::from(chunk_size));
        if expected > CHUNKS_MAX {
            return Err(ManifestError::TooLong { len, chunk_size });
        }
        let found = chunks.len() as u64;
        if expected != found {
            return Err(ManifestError::BadCount { len, chunk_size, expected, found });
        }
        Ok(Self { len, chunk_size, root: root_hash(&chunks), chunks })
    }

    /// Length of the content in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the content has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes per chunk; the last may be shorter.
    pub fn chunk_size(&self) -> u32 {
        self.chunk_size
    }

    /// What the stored form of a manifest of so many chunks has at most, in bytes: nothing larger is fetched.
    pub fn encoded_len_max(chunks: u64) -> u64 {
        ENCODED_OVERHEAD_MAX.saturating_add(chunks.saturating_mul(32))
    }

    /// Hash of the whole content, see [`root_hash`].
    pub fn root(&self) -> ContentHash {
        self.root
    }

    /// Hashes of all chunks, in order.
    pub fn chunks(&self) -> &[ContentHash] {
        &self.chunks
    }

    /// Which bytes chunk `index` covers. `None` beyond the last.
    pub fn chunk_range(&self, index: u64) -> Option<ByteRange> {
        ByteRange::of_chunk(index, self.chunk_size, self.len)
    }

    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(MAGIC.len() + 64 + self.chunks.len() * 32 + CRC_LEN);
        out.extend_from_slice(MAGIC);
        out.push(VERSION);
        let body = Body { len: self.len, chunk_size: self.chunk_size, root: self.root, chunks: self.chunks.clone() };
        // Writing plain data into memory has no way to fail; an empty result would not decode.
        let mut out = postcard::to_extend(&body, out).unwrap_or_default();
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the stored form. Every failure names what is wrong; at most 1 MiB is allocated beyond a small multiple of `stored`.
    pub fn decode(stored: &[u8]) -> Result<Self, ManifestError> {
        let short = || ManifestError::Short(stored.len());
        let magic = stored.get(..MAGIC.len()).ok_or_else(short)?;
        if magic != MAGIC {
            return Err(ManifestError::BadMagic);
        }
        // The version comes before the checksum: a later version may keep another one.
        let version = *stored.get(MAGIC.len()).ok_or_else(short)?;
        if version != VERSION {
            return Err(ManifestError::BadVersion(version));
        }
        let (covered, crc) = stored.split_last_chunk::<CRC_LEN>().ok_or_else(short)?;
        let body = covered.get(MAGIC.len() + 1..).ok_or_else(short)?;
        let (stored_crc, computed) = (u32::from_le_bytes(*crc), crc32fast::hash(covered));
        if stored_crc != computed {
            return Err(ManifestError::BadChecksum { stored: stored_crc, computed });
        }
        let (body, rest) =
            postcard::take_from_bytes::<Body>(body).map_err(|error| ManifestError::BadBody(error.to_string()))?;
        if !rest.is_empty() {
            return Err(ManifestError::BadBody(format!("{} bytes too many", rest.len())));
        }
        let manifest = Self::new(body.len, body.chunk_size, body.chunks)?;
        if manifest.root != body.root {
            return Err(ManifestError::BadRoot { stored: body.root, computed: manifest.root });
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB64: u32 = 64 << 10;

    /// A small random generator, so that a failure replays.
    struct Random(u64);
    impl Random {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }
        fn below(&mut self, bound: usize) -> usize {
            (self.next() % bound as u64) as usize
        }
    }

    fn sample(chunks: u64) -> Manifest {
        let hashes = (0..chunks).map(|n| ContentHash::of(&n.to_le_bytes())).collect();
        let len = (chunks * u64::from(KIB64)).saturating_sub(chunks.min(1) * 100);
        Manifest::new(len, KIB64, hashes).unwrap()
    }

    /// A body of version 1 with a right checksum around it.
    fn sealed(body: &impl Serialize, tail: &[u8]) -> Vec<u8> {
        let mut out = [MAGIC.as_slice(), &[VERSION]].concat();
        out = postcard::to_extend(body, out).unwrap();
        out.extend_from_slice(tail);
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        for chunks in [0, 1, 2, 127, 128, 1_000] {
            let manifest = sample(chunks);
            assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
        }
    }

    #[test]
    fn the_root_follows_its_rule() {
        let [a, b] = [ContentHash::of(b"a"), ContentHash::of(b"b")];
        assert_eq!(root_hash(&[]), ContentHash::of(b""));
        assert_eq!(root_hash(&[a]), a);
        assert_eq!(root_hash(&[a, b]), ContentHash::of(&[a.0, b.0].concat()));
        assert_ne!(root_hash(&[a, b]), root_hash(&[b, a]));
    }

    #[test]
    fn the_root_of_zeros_is_that_of_a_content_of_zeros() {
        for len in [0, 1, 65_535, 65_536, 65_537, 3 * 65_536, 1_000_000] {
            let content = vec![0; len];
            let hashes: Vec<_> = content.chunks(KIB64 as usize).map(ContentHash::of).collect();
            assert_eq!(root_of_zeros(len as u64, KIB64), root_hash(&hashes), "{len}");
        }
    }

    #[test]
    fn ranges_cover_the_content_once() {
        let manifest = sample(3);
        let ranges: Vec<_> = (0..4).map(|n| manifest.chunk_range(n)).collect();
        let range = |offset, len| Some(ByteRange { offset, len });
        let size = u64::from(KIB64);
        assert_eq!(ranges, [range(0, size), range(size, size), range(2 * size, size - 100), None]);
        assert_eq!(manifest.chunk_range(u64::MAX), None);
        assert_eq!(sample(0).chunk_range(0), None);
    }

    /// The bytes of version 1 never change: manifests in buckets are read by every later tierfs.
    #[test]
    fn golden_bytes_of_version_1() {
        let hashes = vec![ContentHash([0x11; 32]), ContentHash([0x22; 32])];
        let manifest = Manifest::new(100_000, KIB64, hashes).unwrap();
        let hex: String = manifest.encode().iter().map(|byte| format!("{byte:02x}")).collect();
        let root = manifest.root().to_string();
        let golden = format!(
            "7466736d616e6966\
             01\
             a08d06\
             808004\
             {root}\
             02\
             {}{}\
             {GOLDEN_CRC}",
            "11".repeat(32),
            "22".repeat(32)
        );
        assert_eq!(root, GOLDEN_ROOT);
        assert_eq!(hex, golden);
    }
    const GOLDEN_ROOT: &str = "613ffd10c1c6183a5b3222a5f2bae3395b1bc8afb75f50eeb4f6fc620a25a3ca";
    const GOLDEN_CRC: &str = "b103649b";

    #[test]
    fn each_kind_of_damage_has_its_name() {
        let good = sample(2).encode();
        let changed = |at: usize| {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            Manifest::decode(&bytes).unwrap_err()
        };
        assert_eq!(changed(0), ManifestError::BadMagic);
        assert_eq!(changed(8), ManifestError::BadVersion(0));
        assert!(matches!(changed(20), ManifestError::BadChecksum { .. }));
        assert!(matches!(changed(good.len() - 1), ManifestError::BadChecksum { .. }));
        assert_eq!(Manifest::decode(b""), Err(ManifestError::Short(0)));
        assert_eq!(Manifest::decode(&good[..8]), Err(ManifestError::Short(8)));
        assert_eq!(Manifest::decode(&good[..11]), Err(ManifestError::Short(11)));
        assert_eq!(Manifest::decode(&[b'x'; 100]), Err(ManifestError::BadMagic));

        let hashes = vec![ContentHash::of(b"1"); 2];
        let body = |len, chunk_size, chunks: &[ContentHash]| Body {
            len,
            chunk_size,
            root: root_hash(chunks),
            chunks: chunks.to_vec(),
        };
        let size = u64::from(KIB64);
        let decode = |body: &Body, tail: &[u8]| Manifest::decode(&sealed(body, tail)).unwrap_err();
        let count = decode(&body(2 * size + 1, KIB64, &hashes), b"");
        assert_eq!(count, ManifestError::BadCount { len: 2 * size + 1, chunk_size: KIB64, expected: 3, found: 2 });
        assert!(matches!(decode(&body(size, KIB64, &hashes), b""), ManifestError::BadCount { .. }));
        assert_eq!(decode(&body(10, 0, &hashes), b""), ManifestError::BadChunkSize(0));
        assert_eq!(decode(&body(10, KIB64 + 1, &hashes), b""), ManifestError::BadChunkSize(KIB64 + 1));
        assert_eq!(
            decode(&body(u64::MAX, KIB64, &hashes), b""),
            ManifestError::TooLong { len: u64::MAX, chunk_size: KIB64 }
        );
        let mut forged = body(2 * size, KIB64, &hashes);
        forged.root = ContentHash::of(b"else");
        assert!(matches!(decode(&forged, b""), ManifestError::BadRoot { .. }));
        assert!(matches!(decode(&body(2 * size, KIB64, &hashes), b"x"), ManifestError::BadBody(_)));
        // A count of hashes far beyond the bytes that follow must fail without reserving room for them.
        let absurd = (2 * size, KIB64, ContentHash::of(b""), u64::MAX >> 1);
        assert!(matches!(Manifest::decode(&sealed(&absurd, b"")), Err(ManifestError::BadBody(_))));
    }

    #[test]
    fn random_bytes_and_flips_are_refused_without_panic() {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for round in 0..20_000 {
            let good = sample((round % 5) as u64);
            let mut bytes = match round % 3 {
                0 => (0..random.below(300)).map(|_| random.next() as u8).collect(),
                // Past the magic and the version.
                1 => {
                    let noise: Vec<u8> = (0..random.below(300)).map(|_| random.next() as u8).collect();
                    let mut bytes = [MAGIC.as_slice(), &[VERSION], &noise].concat();
                    // Half of them past the checksum too.
                    if random.below(2) == 0 {
                        let crc = crc32fast::hash(&bytes);
                        bytes.extend_from_slice(&crc.to_le_bytes());
                    }
                    bytes
                }
                _ => good.encode(),
            };
            if round % 3 == 2 {
                for _ in 0..=random.below(3) {
                    let at = random.below(bytes.len());
                    bytes[at] ^= 1 << random.below(8);
                }
                if random.below(4) == 0 {
                    bytes.truncate(random.below(bytes.len() + 1));
                }
            }
            // Two flips can cancel out: then the bytes are the good ones.
            match Manifest::decode(&bytes) {
                Ok(decoded) => assert_eq!(decoded.encode(), bytes, "round {round}"),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
    }
}
