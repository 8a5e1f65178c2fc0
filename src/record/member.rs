//! The keys of packs and of their members: a small file's content that lies in one object with others'.
//!
//! A member's key is that of an object of its own, and where it is instead: `KEY%mPREFIX.SHARE.GENERATION.TAG.OFFSET.LENGTH`, numbers in
//! hexadecimal. No object has such a key: in keys of ours, `%` is followed by two hexadecimal digits. It tells pack and range alone, so whoever keeps keys (a
//! record, a note) need know nothing of packs.

use crate::types::{ByteRange, Generation, ObjectKey, parse_hex};

/// Where packs are, below the pair's prefix.
pub const PACKS: &str = ".tierfs/packs/";
/// What a member's key has behind the key of an object of its own.
const MARK: &str = "%m";
/// What that and all behind it take at most, in bytes.
pub const MEMBER_SUFFIX_MAX: usize = 96;
/// Digits of a share's identity, and of a pack's tag.
const DIGITS: usize = 16;

/// A pack, by what its key says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PackName {
    /// The pair's prefix; no slashes at its ends; may be empty.
    pub prefix: String,
    /// The share that made it.
    pub share: String,
    /// When it was begun.
    pub generation: Generation,
    /// Of the members' keys, so that no two packs have one key even where the clock was set back.
    pub tag: String,
}

/// Where a member is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    pub pack: PackName,
    /// In the pack's object.
    pub range: ByteRange,
}

fn are_digits(text: &str) -> bool {
    text.len() == DIGITS && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

impl PackName {
    /// The pack's own key.
    pub fn key(&self) -> ObjectKey {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        let Self { prefix, share, generation, tag } = self;
        ObjectKey(format!("{prefix}{slash}{PACKS}{share}.{generation}.{tag}"))
    }

    /// Which pack of the pair's `prefix` has this key; `None`: it is none.
    pub fn of_key(prefix: &str, key: &ObjectKey) -> Option<Self> {
        let below = match prefix {
            "" => key.0.as_str(),
            prefix => key.0.strip_prefix(prefix)?.strip_prefix('/')?,
        };
        Self::of_parts(prefix, &mut below.strip_prefix(PACKS)?.split('.')).filter(|name| name.key() == *key)
    }

    fn of_parts<'a>(prefix: &str, parts: &mut impl Iterator<Item = &'a str>) -> Option<Self> {
        let share = parts.next().filter(|text| are_digits(text))?.to_owned();
        let generation = Generation(parse_hex(parts.next()?)?);
        let tag = parts.next().filter(|text| are_digits(text))?.to_owned();
        Some(Self { prefix: prefix.to_owned(), share, generation, tag })
    }

    /// The key of the member that would be an object `key`, and is in `range` of the pack. `key` begins with the pack's prefix.
    pub fn member(&self, key: &ObjectKey, range: ByteRange) -> ObjectKey {
        let Self { prefix, share, generation, tag } = self;
        let ByteRange { offset, len } = range;
        ObjectKey(format!("{key}{MARK}{:x}.{share}.{generation}.{tag}.{offset:x}.{len:x}", prefix.len()))
    }
}

/// The key that an object of its own would have, and where the member is. `None`: the key is not a member's. One spelling only.
pub fn member_parts(key: &ObjectKey) -> Option<(&str, Place)> {
    let (own, place) = key.0.rsplit_once(MARK)?;
    let mut parts = place.split('.');
    let prefix_len = usize::try_from(parse_hex(parts.next()?)?).ok()?;
    let prefix = own.get(..prefix_len)?;
    if prefix_len > 0 && !own[prefix_len..].starts_with('/') {
        return None;
    }
    let pack = PackName::of_parts(prefix, &mut parts)?;
    let range = ByteRange { offset: parse_hex(parts.next()?)?, len: parse_hex(parts.next()?)? };
    let fits = range.len > 0 && range.offset.checked_add(range.len).is_some();
    (fits && parts.next().is_none()).then_some((own, Place { pack, range }))
}

/// Where the content is that a key stands for, if that is in a pack.
pub fn place_of(key: &ObjectKey) -> Option<Place> {
    Some(member_parts(key)?.1)
}

/// Whether the key is a member's.
pub fn is_member(key: &ObjectKey) -> bool {
    member_parts(key).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(prefix: &str) -> PackName {
        let (share, tag) = ("0123456789abcdef".to_owned(), "00000000000000ff".to_owned());
        PackName { prefix: prefix.into(), share, generation: Generation(0x64a3c), tag }
    }

    #[test]
    fn keys_tell_pack_and_range() {
        for prefix in ["", "p", "p/q", "ü", "a%m0.b"] {
            let pack = name(prefix);
            assert_eq!(PackName::of_key(prefix, &pack.key()), Some(pack.clone()), "{prefix:?}");
            let slash = if prefix.is_empty() { "" } else { "/" };
            for path in ["a", "d/e.txt", "x%25m", "ü@1-2.3"] {
                let own = ObjectKey(format!("{prefix}{slash}{path}@1f-a.64"));
                let range = ByteRange { offset: 0xfff, len: 0x4000 };
                let key = pack.member(&own, range);
                assert!(key.0.len() - own.0.len() <= MEMBER_SUFFIX_MAX);
                assert_eq!(member_parts(&key), Some((own.0.as_str(), Place { pack: pack.clone(), range })));
                assert!(!is_member(&own), "{own}");
            }
        }
        let far = ByteRange { offset: u64::MAX - 9, len: 9 };
        let long =
            PackName { generation: Generation(u64::MAX), ..name("p") }.member(&ObjectKey("p/a@1-2.3".into()), far);
        assert!(is_member(&long) && long.0.len() - "p/a@1-2.3".len() <= MEMBER_SUFFIX_MAX);
    }

    #[test]
    fn there_is_one_spelling() {
        let good = "p/a@1f-a.64%m1.0123456789abcdef.64a3c.00000000000000ff.fff.4000";
        assert!(is_member(&ObjectKey(good.into())));
        for (from, to) in [
            ("%m1", "%m2"),
            ("%m1", "%m01"),
            ("%m1", "%m"),
            ("%m1", "%n1"),
            ("0123456789abcdef", "0123456789abcde"),
            ("0123456789abcdef", "0123456789ABCDEF"),
            (".64a3c.", ".064a3c."),
            (".fff.", ".0fff."),
            (".4000", ".4000.1"),
            (".4000", ".0"),
            (".4000", ".4000.manifest"),
            (".4000", ""),
            (".fff.4000", ".ffffffffffffffff.1"),
        ] {
            let bad = ObjectKey(good.replacen(from, to, 1));
            assert_ne!(bad.0, good);
            assert_eq!(member_parts(&bad), None, "{bad}");
        }
        let pack = name("p").key();
        for bad in [
            format!("{pack}.1"),
            format!("{pack}0"),
            pack.0.replace("packs/", "packs/x/"),
            pack.0.replace("64a3c", "064a3c"),
        ] {
            assert_eq!(PackName::of_key("p", &ObjectKey(bad.clone())), None, "{bad}");
        }
        assert_eq!(PackName::of_key("", &pack), None);
    }
}
