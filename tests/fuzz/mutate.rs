//! Small changes to good bytes, which come closer to what a decoder believes than noise does.

use proptest::collection::vec;
use proptest::prelude::*;

/// One change. Places are parts of the whole, in 65,536ths, so that a case means something for bytes of any length.
#[derive(Clone, Debug)]
pub enum Mutation {
    Flip {
        at: u16,
        bit: u8,
    },
    Set {
        at: u16,
        byte: u8,
    },
    Cut {
        at: u16,
    },
    Remove {
        at: u16,
        len: u8,
    },
    Insert {
        at: u16,
        bytes: Vec<u8>,
    },
    /// What is at one place is repeated at another.
    Copy {
        from: u16,
        len: u8,
        to: u16,
    },
    /// A number, as eight or four bytes in either order, or as a varint.
    Number {
        at: u16,
        number: u64,
        form: u8,
    },
}

/// Numbers at which something ends.
pub fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0u32..64).prop_map(|bit| 1 << bit),
        (0u32..64).prop_map(|bit| (1u64 << bit).wrapping_sub(1)),
        Just(u64::MAX),
        0u64..300,
    ]
}

pub fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        4 => (any::<u16>(), 0u8..8).prop_map(|(at, bit)| Mutation::Flip { at, bit }),
        3 => (any::<u16>(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set { at, byte }),
        1 => any::<u16>().prop_map(|at| Mutation::Cut { at }),
        2 => (any::<u16>(), any::<u8>()).prop_map(|(at, len)| Mutation::Remove { at, len }),
        2 => (any::<u16>(), vec(any::<u8>(), 0..40)).prop_map(|(at, bytes)| Mutation::Insert { at, bytes }),
        2 => (any::<u16>(), any::<u8>(), any::<u16>()).prop_map(|(from, len, to)| Mutation::Copy { from, len, to }),
        3 => (any::<u16>(), number(), 0u8..5).prop_map(|(at, number, form)| Mutation::Number { at, number, form }),
    ]
}

pub fn mutations(most: usize) -> impl Strategy<Value = Vec<Mutation>> {
    vec(mutation(), 0..=most)
}

fn varint(mut number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
    out
}

impl Mutation {
    pub fn apply(&self, bytes: &mut Vec<u8>) {
        let place = |part: u16, len: usize| (usize::from(part) * (len + 1)) >> 16;
        let len = bytes.len();
        match self {
            Self::Flip { at, bit } => {
                if let Some(byte) = bytes.get_mut(place(*at, len)) {
                    *byte ^= 1 << bit;
                }
            }
            Self::Set { at, byte } => {
                if let Some(old) = bytes.get_mut(place(*at, len)) {
                    *old = *byte;
                }
            }
            Self::Cut { at } => bytes.truncate(place(*at, len)),
            Self::Remove { at, len: some } => {
                let from = place(*at, len);
                bytes.drain(from..(from + usize::from(*some)).min(len));
            }
            Self::Insert { at, bytes: some } => {
                let at = place(*at, len);
                bytes.splice(at..at, some.iter().copied());
            }
            Self::Copy { from, len: some, to } => {
                let from = place(*from, len);
                let some = bytes[from..(from + usize::from(*some)).min(len)].to_vec();
                let to = place(*to, len);
                bytes.splice(to..to, some);
            }
            Self::Number { at, number, form } => {
                let written = match form {
                    0 => number.to_le_bytes().to_vec(),
                    1 => number.to_be_bytes().to_vec(),
                    2 => (*number as u32).to_le_bytes().to_vec(),
                    3 => varint(*number),
                    _ => number.to_string().into_bytes(),
                };
                let at = place(*at, len);
                bytes.splice(at..(at + written.len()).min(len), written);
            }
        }
    }
}

/// `good` after all changes.
pub fn mutated(good: &[u8], mutations: &[Mutation]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    mutations.iter().for_each(|mutation| mutation.apply(&mut bytes));
    bytes
}
