//! A chunk's content as it came: in pieces, which are hashed, served and written as they are.

use std::ops::Range;

use bytes::Bytes;

use crate::kill;
use crate::ports::{LowerFile, LowerResult};

/// Space that is all zeros is left a hole in units of so many bytes: what ext4 and xfs allocate at least.
const BLOCK: usize = 4096;
/// Bytes of pieces that are written together. ext4 takes a folio as large as the write, and large ones seemed dearer to fill on a virtual machine; measured on a
/// busy one only, so it may be another number elsewhere.
const WRITE_MAX: u64 = 256 << 10;

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

    /// All of it; nothing is copied where it came in one piece.
    pub fn into_bytes(mut self) -> Bytes {
        if self.pieces.len() == 1 {
            return self.pieces.remove(0);
        }
        let mut joined = Vec::with_capacity(self.len);
        self.pieces.iter().for_each(|piece| joined.extend_from_slice(piece));
        joined.into()
    }

    /// Puts `more` behind it.
    pub fn append(&mut self, more: Self) {
        self.len += more.len;
        self.pieces.extend(more.pieces);
    }

    /// Writes it to `file`. `hole`: its place there reads as zeros already, and what is zeros stays a hole.
    pub fn write(&self, file: &dyn LowerFile, offset: u64, hole: bool) -> LowerResult<()> {
        self.to_write(offset, hole).into_iter().try_for_each(|(at, pieces)| {
            file.write_pieces(&pieces, at)?;
            kill::point("recall.written");
            Ok(())
        })
    }

    /// What is written, and where; what lies together is written together, so far as that is no more than [`WRITE_MAX`] or one piece.
    fn to_write(&self, offset: u64, hole: bool) -> Vec<(u64, Vec<&[u8]>)> {
        let mut writes: Vec<(u64, Vec<&[u8]>)> = Vec::new();
        let (mut at, mut end) = (offset, None);
        for piece in &self.pieces {
            let parts: Vec<_> =
                if hole { runs(piece, at).collect() } else { std::iter::once(0..piece.len()).collect() };
            for part in parts {
                let place = at + part.start as u64;
                let fits = |begun: u64| end == Some(place) && place + part.len() as u64 - begun <= WRITE_MAX;
                match writes.last_mut().filter(|(begun, _)| fits(*begun)) {
                    Some((_, together)) => together.push(&piece[part.clone()]),
                    None => writes.push((place, vec![&piece[part.clone()]])),
                }
                end = Some(at + part.end as u64);
            }
            at += piece.len() as u64;
        }
        writes
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
        assert_eq!((content.len(), &*content.clone().into_bytes()), (whole.len(), &whole[..]));
        for (at, len) in [(0, 10_000), (0, 1), (4_999, 2), (1, 9_998), (9_999, 1), (10_000, 0)] {
            let mut found = content.slice(at, len);
            assert_eq!(found.clone().into_bytes(), whole[at..at + len], "{len} at {at}");
            found.append(content.slice(0, at));
            let joined = [&whole[at..at + len], &whole[..at]].concat();
            assert_eq!((found.len(), &*found.into_bytes()), (joined.len(), &joined[..]));
        }
    }

    /// Each call writes what lies together, in one piece or in many, and leaves holes where there are zeros.
    #[test]
    fn what_lies_together_is_written_together() {
        let mut content = Content::default();
        let mut body = vec![0; 6 * BLOCK];
        for block in [0, 1, 4, 5] {
            body[block * BLOCK + 3] = 1;
        }
        for piece in body.chunks(BLOCK) {
            content.push(Bytes::copy_from_slice(piece));
        }
        for (hole, want) in [(true, [(0, 2), (4, 2)].as_slice()), (false, &[(0, 6)])] {
            let found: Vec<_> =
                content.to_write(0, hole).iter().map(|(at, pieces)| (*at, pieces.concat().len())).collect();
            let want: Vec<_> = want.iter().map(|(at, blocks)| ((at * BLOCK) as u64, blocks * BLOCK)).collect();
            assert_eq!(found, want);
        }
        let mut large = Content::default();
        for _ in 0..5 {
            large.push(Bytes::from(vec![1; 100 << 10]));
        }
        large.push(Bytes::from(vec![1; 300 << 10]));
        let sizes: Vec<_> = large.to_write(7, true).iter().map(|(_, pieces)| pieces.concat().len() >> 10).collect();
        assert_eq!(sizes, [200, 200, 100, 300]);
    }
}
