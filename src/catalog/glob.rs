//! Patterns of paths: `*` and `?` within a name, `[a-z]` and `[!a-z]` for a character, `**` for any number of directories.

/// A pattern that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// `**`: any directories, none too.
    Any,
    Name(Vec<Piece>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Byte(u8),
    /// `?`
    One,
    /// `*`
    Many,
    /// Ranges of bytes, or all but them.
    Of {
        ranges: Vec<(u8, u8)>,
        not: bool,
    },
}

impl Glob {
    /// Checks a pattern of a path relative to the share. One without a slash is of a name anywhere, as in `.gitignore`.
    pub fn new(text: &str) -> Result<Self, String> {
        let path = text.trim_start_matches('/');
        if path.is_empty() {
            return Err("an empty pattern matches nothing".into());
        }
        let mut parts = Vec::new();
        if !text.contains('/') {
            parts.push(Part::Any);
        }
        for name in path.split('/') {
            match name {
                "**" => parts.push(Part::Any),
                "" => {}
                "." | ".." => return Err(format!("{text:?} has {name:?} in it: write paths from the share's root")),
                name => parts.push(Part::Name(pieces(name.as_bytes())?)),
            }
        }
        // `dir/` means what is in it.
        if path.ends_with('/') {
            parts.push(Part::Any);
        }
        Ok(Self { text: text.to_owned(), parts })
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether a path, relative to the share, is meant.
    pub fn matches(&self, path: &[u8]) -> bool {
        let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
        matches_path(&self.parts, &names)
    }
}

/// A pattern of a value, without directories.
pub fn matches_value(pattern: &str, value: &[u8]) -> bool {
    pieces(pattern.as_bytes()).is_ok_and(|pieces| matches_name(&pieces, value))
}

fn pieces(name: &[u8]) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut rest = name;
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        pieces.push(match first {
            b'*' => Piece::Many,
            b'?' => Piece::One,
            b'\\' => match rest.split_first() {
                Some((&byte, after)) => {
                    rest = after;
                    Piece::Byte(byte)
                }
                None => return Err("a pattern ends with a backslash".into()),
            },
            b'[' => {
                let not = rest.first() == Some(&b'!');
                let from = usize::from(not);
                // A bracket that comes first stands for itself.
                let end = rest.iter().skip(from + 1).position(|byte| *byte == b']').map(|at| at + from + 1);
                let Some(end) = end else { return Err("a pattern has \"[\" without \"]\"".into()) };
                let set = &rest[from..end];
                rest = &rest[end + 1..];
                Piece::Of { ranges: ranges(set), not }
            }
            byte => Piece::Byte(byte),
        });
    }
    Ok(pieces)
}

fn ranges(set: &[u8]) -> Vec<(u8, u8)> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < set.len() {
        if at + 2 < set.len() && set[at + 1] == b'-' {
            ranges.push((set[at], set[at + 2]));
            at += 3;
        } else {
            ranges.push((set[at], set[at]));
            at += 1;
        }
    }
    ranges
}

/// In time by the product of both lengths, each of their names compared once for each part at most: of several `**` the last alone is gone back to, for
/// what the ones before it have taken leaves the most to it.
fn matches_path(parts: &[Part], names: &[&[u8]]) -> bool {
    let (mut part, mut name) = (0, 0);
    let mut any = None;
    while name < names.len() {
        match parts.get(part) {
            Some(Part::Any) => {
                any = Some((part, name));
                part += 1;
                continue;
            }
            Some(Part::Name(pieces)) if matches_name(pieces, names[name]) => {
                part += 1;
                name += 1;
                continue;
            }
            _ => {}
        }
        let Some((at, taken)) = any else { return false };
        part = at + 1;
        name = taken + 1;
        any = Some((at, taken + 1));
    }
    parts[part..].iter().all(|part| *part == Part::Any)
}

/// In time by the product of both lengths: the last star alone is gone back to.
fn matches_name(pieces: &[Piece], name: &[u8]) -> bool {
    let (mut piece, mut byte) = (0, 0);
    let mut star = None;
    while byte < name.len() {
        let one = match pieces.get(piece) {
            Some(Piece::Many) => {
                star = Some((piece, byte));
                piece += 1;
                continue;
            }
            Some(Piece::One) => true,
            Some(Piece::Byte(wanted)) => *wanted == name[byte],
            Some(Piece::Of { ranges, not }) => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&name[byte])) != *not
            }
            None => false,
        };
        if one {
            piece += 1;
            byte += 1;
        } else if let Some((at, taken)) = star {
            piece = at + 1;
            byte = taken + 1;
            star = Some((at, taken + 1));
        } else {
            return false;
        }
    }
    pieces[piece..].iter().all(|piece| *piece == Piece::Many)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_and_paths() {
        for (pattern, matching, not) in [
            ("*.exr", &["a.exr", "x/y/b.exr", ".exr"][..], &["a.exr.bak", "exr"][..]),
            ("projects/**", &["projects/a", "projects/a/b"], &["project/a", "x/projects/a"]),
            ("/projects/*/old", &["projects/a/old"], &["projects/old", "projects/a/b/old"]),
            ("**/tmp/**", &["tmp/a", "a/tmp/b", "a/b/tmp/c/d"], &["a/tmpx/b"]),
            ("a/**/z", &["a/z", "a/b/z", "a/b/c/z"], &["a/b", "z"]),
            ("logs/", &["logs/a", "logs/b/c"], &["log/a"]),
            ("frame-[0-9]?.[!t]*", &["frame-12.exr"], &["frame-12.tif", "frame-a2.exr", "frame-12."]),
            ("[]x]\\*", &["]*", "x*"], &["xa"]),
            ("*a*b*a", &["aba", "xaxbxa"], &["abab", "ba"]),
        ] {
            let glob = Glob::new(pattern).unwrap();
            for path in matching {
                assert!(glob.matches(path.as_bytes()), "{pattern} and {path}");
            }
            for path in not {
                assert!(!glob.matches(path.as_bytes()), "{pattern} but not {path}");
            }
        }
        assert!(Glob::new("*\u{e9}*").unwrap().matches("caf\u{e9}".as_bytes()));
        assert!(Glob::new("a*").unwrap().matches(b"a\xff"));
        for bad in ["", "/", "a[b", "a\\", "../x", "a/./b"] {
            assert!(Glob::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_hostile_pattern_takes_no_time() {
        let pattern = "*a".repeat(60) + "b";
        assert!(!Glob::new(&pattern).unwrap().matches("a".repeat(250).as_bytes()));
        // By trying every place of each, this takes longer than anybody lives.
        let (pattern, path) = ("**/a/".repeat(30) + "b", "a/".repeat(60) + "a");
        assert!(!Glob::new(&pattern).unwrap().matches(path.as_bytes()));
        assert!(Glob::new(&pattern).unwrap().matches((path + "/b").as_bytes()));
    }

    /// As one reads it: whatever each `**` may take is tried.
    fn by_trying(parts: &[Part], names: &[&[u8]]) -> bool {
        match (parts.split_first(), names.split_first()) {
            (None, _) => names.is_empty(),
            (Some((Part::Any, rest)), _) => (0..=names.len()).any(|from| by_trying(rest, &names[from..])),
            (Some(_), None) => false,
            (Some((Part::Name(pieces), rest)), Some((name, below))) => {
                matches_name(pieces, name) && by_trying(rest, below)
            }
        }
    }

    #[test]
    fn every_short_pattern_means_what_trying_all_says() {
        fn words<'a>(letters: &[&'a str], longest: usize) -> Vec<Vec<&'a str>> {
            let mut all: Vec<Vec<&str>> = vec![Vec::new()];
            for at in 0.. {
                let Some(word) = all.get(at).filter(|word| word.len() < longest).cloned() else { break };
                all.extend(letters.iter().map(|letter| [&word[..], &[letter]].concat()));
            }
            all.split_off(1)
        }
        let paths = words(&["a", "b"], 5);
        let mut matching = 0;
        for pattern in words(&["**", "a", "*", "b"], 5) {
            let glob = Glob::new(&format!("/{}", pattern.join("/"))).unwrap();
            for path in &paths {
                let names: Vec<&[u8]> = path.iter().map(|name| name.as_bytes()).collect();
                let wanted = by_trying(&glob.parts, &names);
                matching += u32::from(wanted);
                assert_eq!(glob.matches(path.join("/").as_bytes()), wanted, "{pattern:?} and {path:?}");
            }
        }
        assert!(matching > 10_000, "{matching}");
    }
}
