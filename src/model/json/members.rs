//! Members of an object, read from its canonical text.

use std::borrow::Cow;

use memchr::memchr2;

use super::string;

/// Returns the members of an object in canonical text, in order; none if it is not an object.
pub fn members(canonical: &[u8]) -> Members<'_> {
    Members { rest: canonical.strip_prefix(b"{").unwrap_or_default() }
}

/// Iterator over the names and the canonical values of an object, see [`members`].
#[derive(Clone)]
pub struct Members<'a> {
    /// Text from the next name on.
    rest: &'a [u8],
}

impl<'a> Iterator for Members<'a> {
    type Item = (Cow<'a, str>, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, rest) = self.rest.split_at_checked(string_len(self.rest)?)?;
        let rest = rest.strip_prefix(b":")?;
        let (value, rest) = rest.split_at_checked(value_len(rest)?)?;
        self.rest = rest.strip_prefix(b",").unwrap_or_default();
        Some((string(name)?, value))
    }
}

fn value_len(text: &[u8]) -> Option<usize> {
    match text.first()? {
        b'"' => string_len(text),
        b'{' | b'[' => nested_len(text),
        _ => text.iter().position(|byte| matches!(byte, b',' | b'}' | b']')),
    }
}

fn nested_len(text: &[u8]) -> Option<usize> {
    let mut depth = 0_usize;
    let mut at = 0;
    loop {
        match text.get(at)? {
            b'"' => {
                at += string_len(&text[at..])?;
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return Some(at);
        }
    }
}

fn string_len(text: &[u8]) -> Option<usize> {
    let mut at = usize::from(*text.first()? == b'"');
    if at == 0 {
        return None;
    }
    loop {
        at += memchr2(b'"', b'\\', text.get(at..)?)?;
        if text[at] == b'"' {
            return Some(at + 1);
        }
        at += 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(canonical: &str, expected: &[(&str, &str)]) {
        let found: Vec<(String, String)> = members(canonical.as_bytes())
            .map(|(name, value)| (name.into_owned(), String::from_utf8_lossy(value).into_owned()))
            .collect();
        let expected: Vec<_> =
            expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        assert_eq!(found, expected, "{canonical}");
    }

    #[test]
    fn members_are_found_in_order() {
        check("{}", &[]);
        check(r#"{"a":1}"#, &[("a", "1")]);
        check(
            r#"{"":"","q\"\\":"}\"]","n":null,"o":{"a":[1,{"b":"]}"}]},"l":[[],{}],"z":-0}"#,
            &[
                ("", r#""""#),
                ("q\"\\", r#""}\"]""#),
                ("n", "null"),
                ("o", r#"{"a":[1,{"b":"]}"}]}"#),
                ("l", "[[],{}]"),
                ("z", "-0"),
            ],
        );
        for other in ["[]", r#"["a",{"b":1}]"#, "1", r#""{""#, "null", ""] {
            check(other, &[]);
        }
    }

    #[test]
    fn iteration_ends_at_text_that_is_not_canonical() {
        for broken in
            ["{", "{\"", "{\"a", "{\"a\"", "{\"a\":", "{\"a\":[", "{\"a\":\"\\", "{a:1}", "{\"\\", "{}}"]
        {
            check(broken, &[]);
        }
    }
}
