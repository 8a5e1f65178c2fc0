//! What the body of a refused request says: S3's `<Error>` with a code and a message, or nothing we understand.

use std::borrow::Cow;

/// The store's own words.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    pub code: String,
    pub message: String,
}

impl Refusal {
    /// Empty where it is no error of S3's: a page of a proxy, say.
    pub(super) fn parse(body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let Some(error) = element(&text, "Error") else { return Self::default() };
        let of = |name| element(error, name).map(|text| unescaped(text.trim()).into_owned()).unwrap_or_default();
        Self { code: of("Code"), message: of("Message") }
    }
}

/// What is within the first element `name`.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = text;
    loop {
        let (_, after) = rest.split_once('<')?;
        rest = after;
        let Some(after) = after.strip_prefix(name) else { continue };
        // An attribute may follow, but not the rest of a longer name.
        let Some((attributes, content)) = after.split_once('>') else { continue };
        if !(attributes.is_empty() || attributes.starts_with(char::is_whitespace)) || attributes.ends_with('/') {
            continue;
        }
        let mut end = 0;
        loop {
            end += content[end..].find("</")?;
            let tail = content[end + 2..].strip_prefix(name);
            if tail.is_some_and(|tail| tail.trim_start().starts_with('>')) {
                return Some(&content[..end]);
            }
            end += 2;
        }
    }
}

/// Text without XML's escapes; what is none is left as it is.
fn unescaped(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        plain.push_str(before);
        let escape = after.split_once(';').and_then(|(name, tail)| Some((character(name)?, tail)));
        match escape {
            Some((character, tail)) => {
                plain.push(character);
                rest = tail;
            }
            None => {
                plain.push('&');
                rest = after;
            }
        }
    }
    plain.push_str(rest);
    Cow::Owned(plain)
}

fn character(name: &str) -> Option<char> {
    match name {
        "lt" => Some('<'),
        "gt" => Some('>'),
        "amp" => Some('&'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => {
            let number = name.strip_prefix('#')?;
            let code = match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => number.parse().ok()?,
            };
            char::from_u32(code)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_read_and_other_pages_are_not() {
        let check = |body: &str, code: &str, message: &str| {
            let want = Refusal { code: code.into(), message: message.into() };
            assert_eq!(Refusal::parse(body.as_bytes()), want, "{body}");
        };
        check(
            "<?xml version=\"1.0\"?>\n<Error><Code>NoSuchKey</Code><Message>Not &quot;here&quot; &#38; &#x41;</Message></Error>",
            "NoSuchKey",
            "Not \"here\" & A",
        );
        check("<Error xmlns=\"x\"><Key>a</Key><Code >X</Code ><Message/></Error >", "X", "");
        check("<ErrorResponse><Error><Code>Y</Code></Error></ErrorResponse>", "Y", "");
        check(
            "<Error><CodeX>no</CodeX><Code>yes</Code><Message>a </b> &nope; &</Message></Error>",
            "yes",
            "a </b> &nope; &",
        );
        check("<html><Code>NoSuchKey</Code></html>", "", "");
        for cut in ["", "<", "<Error", "<Error>", "<Error><Code>", "<Error><Code>NoSuchKey</Code>", "\u{fffd}<é"] {
            check(cut, "", "");
        }
        assert_eq!(Refusal::parse(b"<Error><Code>\xff</Code></Error>").code, "\u{fffd}");
    }
}
