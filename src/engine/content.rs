//! A chunk's content as it came: in pieces, which are hashed, served and written as they are.

use std::ops::Range;

use bytes::Bytes;

use crate::kill;
use crate::ports::{LowerFile, LowerResult};
use crate::types::ContentHash;

/// Space that is all zeros is left a hole in units of so many bytes: what ext4 and xfs allocate at least.
const BLOCK: usize = 4096;

/// Bytes in order; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Content {
    pieces: Vec<Bytes>,
    len: usize,
}

impl Content {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn push(&mut self, piece: Bytes) {
        self.len += piece.len();
        self.pieces.push(piece);
    }

    /// `len` bytes from `offset` on; all of it must be within the content.
    pub fn slice(&self, offset: usize, len: usize) -> Self {
        let mut slice = Self::default();
        let mut at = 0;
        for piece in &self.pieces {
            let start = offset.saturating_sub(at).min(piece.len());
            let end = (offset + len).saturating_sub(at).min(piece.len());
            if start < end {
                slice.push(piece.slice(start..end));
            }
            at += piece.len();
        }
        assert_eq!(slice.len, len, "the content ends before");
        slice
    }

    pub fn hash(&self) -> ContentHash {
        if let [only] = &self.pieces[..] {
            return ContentHash::of(only);
        }
        let mut hasher = blake3::Hasher::new();
        for piece in &self.pieces {
            hasher.update(piece);
        }
        ContentHash(*hasher.finalize().as_bytes())
    }

    /// Fills `into` with what is at `offset`; all of it must be within the content.
    pub fn copy_to(&self, offset: usize, into: &mut [u8]) {
        let (mut at, mut done) = (0, 0);
        for piece in &self.pieces {
            let skip = (offset + done).saturating_sub(at).min(piece.len());
            let some = (piece.len() - skip).min(into.len() - done);
            into[done..done + some].copy_from_slice(&piece[skip..skip + some]);
            done += some;
            at += piece.len();
        }
        assert_eq!(done, into.len(), "the content ends before");
    }

    /// Writes it to `file`. `hole`: its place there reads as zeros already, and what is zeros stays a hole.
    pub fn write(&self, file: &dyn LowerFile, offset: u64, hole: bool) -> LowerResult<()> {
        let mut at = offset;
        for piece in &self.pieces {
            let parts: Vec<_> =
                if hole { runs(piece, at).collect() } else { std::iter::once(0..piece.len()).collect() };
            for part in parts {
                file.write_at(&piece[part.clone()], at + part.start as u64)?;
                kill::point("recall.written");
            }
            at += piece.len() as u64;
        }
        Ok(())
    }
}

/// Runs of blocks that are not all zeros in bytes whose place is `offset`.
fn runs(body: &[u8], offset: u64) -> impl Iterator<Item = Range<usize>> {
    let first = BLOCK - (offset % BLOCK as u64) as usize;
    let end_of = move |at: usize| if at < first { first } else { first + (at - first) / BLOCK * BLOCK + BLOCK };
    let is_zero = move |at: usize| body[at..body.len().min(end_of(at))].iter().all(|byte| *byte == 0);
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < body.len() && is_zero(at) {
            at = end_of(at);
        }
        let start = at;
        while at < body.len() && !is_zero(at) {
            at = end_of(at);
        }
        (start < body.len()).then(|| start..at.min(body.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_left_out_by_blocks() {
        let check = |set: &[usize], len: usize, offset: u64, want: &[(usize, usize)]| {
            let mut body = vec![0; len];
            set.iter().for_each(|at| body[*at] = 1);
            let found: Vec<_> = runs(&body, offset).map(|run| (run.start, run.end)).collect();
            assert_eq!(found, want, "{set:?} of {len} at {offset}");
        };
        check(&[], 0, 0, &[]);
        check(&[], 3 * BLOCK + 1, 0, &[]);
        check(&[0], 1, 0, &[(0, 1)]);
        check(&[BLOCK - 1], 3 * BLOCK, 0, &[(0, BLOCK)]);
        check(&[BLOCK, 2 * BLOCK], 4 * BLOCK, 0, &[(BLOCK, 3 * BLOCK)]);
        check(&[0, 2 * BLOCK + 5], 2 * BLOCK + 6, 0, &[(0, BLOCK), (2 * BLOCK, 2 * BLOCK + 6)]);
        // A piece that begins within a block.
        check(&[0], 2 * BLOCK, BLOCK as u64 - 10, &[(0, 10)]);
        check(&[9, 10], 2 * BLOCK, BLOCK as u64 - 10, &[(0, BLOCK + 10)]);
        check(&[BLOCK + 10], 2 * BLOCK, BLOCK as u64 - 10, &[(BLOCK + 10, 2 * BLOCK)]);
    }

    #[test]
    fn pieces_are_one_content() {
        let whole: Vec<u8> = (0..10_000_u32).map(|n| (n * 7 % 251) as u8).collect();
        let mut content = Content::default();
        for (from, to) in [(0, 1), (1, 5_000), (5_000, 5_000), (5_000, 9_999), (9_999, 10_000)] {
            content.push(Bytes::copy_from_slice(&whole[from..to]));
        }
        assert_eq!((content.len(), content.hash()), (whole.len(), ContentHash::of(&whole)));
        for (at, len) in [(0, 10_000), (0, 1), (4_999, 2), (1, 9_998), (9_999, 1), (10_000, 0)] {
            let mut found = vec![0; len];
            content.copy_to(at, &mut found);
            assert_eq!(found, whole[at..at + len], "{len} at {at}");
            assert_eq!(content.slice(at, len).hash(), ContentHash::of(&whole[at..at + len]), "{len} at {at}");
        }
    }
}
