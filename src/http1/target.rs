//! Forms of a request target (RFC 9112 3.2).

use super::{method::Method, protocol_error::ProtocolError};

/// Parts of a target.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target<'a> {
    /// Authority of the absolute form, which overrides the `Host` field (RFC 9112 3.2.2).
    pub(super) authority: Option<&'a [u8]>,
    /// `None` if an absolute form has no path, which means `/`.
    pub(super) path: Option<&'a [u8]>,
    pub(super) query: Option<&'a [u8]>,
}

/// Splits a target; the path stays percent-encoded, as it was sent.
///
/// An unknown method is treated like GET, so that a malformed target is reported as such.
pub(super) fn parse(method: Option<Method>, target: &[u8]) -> Result<Target<'_>, ProtocolError> {
    const MALFORMED: ProtocolError = ProtocolError::BadRequest("request target is malformed");
    // Clients never send a fragment. A parser that strips it would see a different path from one that does not.
    if target.contains(&b'#') {
        return Err(MALFORMED);
    }
    if method == Some(Method::Connect) {
        let is_authority = !target.is_empty() && is_host(target);
        return if is_authority { Ok(Target::of_path(target)) } else { Err(MALFORMED) };
    }
    if target == b"*" {
        let is_allowed = method == Some(Method::Options);
        return if is_allowed { Ok(Target::of_path(target)) } else { Err(MALFORMED) };
    }
    if target.first() == Some(&b'/') {
        return Ok(split_query(target));
    }
    // RFC 9112 3.2.2: a server must accept the absolute form, which is meant for proxies.
    let rest = after_scheme(target).ok_or(MALFORMED)?;
    let authority_end = rest.iter().position(|&byte| byte == b'/' || byte == b'?').unwrap_or(rest.len());
    let (authority, rest) = rest.split_at(authority_end);
    if authority.is_empty() || !is_host(authority) {
        return Err(MALFORMED);
    }
    Ok(Target { authority: Some(authority), ..split_query(rest) })
}

impl<'a> Target<'a> {
    fn of_path(path: &'a [u8]) -> Self {
        Self { authority: None, path: Some(path), query: None }
    }
}

/// Checks `uri-host [":" port]` loosely: enough that it cannot be parsed as anything else.
pub(super) fn is_host(value: &[u8]) -> bool {
    value.iter().all(|byte| byte.is_ascii_graphic() && !b"/@?#\\".contains(byte))
}

fn after_scheme(target: &[u8]) -> Option<&[u8]> {
    for scheme in [&b"http://"[..], b"https://"] {
        if let Some((prefix, rest)) = target.split_at_checked(scheme.len())
            && prefix.eq_ignore_ascii_case(scheme)
        {
            return Some(rest);
        }
    }
    None
}

fn split_query(target: &[u8]) -> Target<'_> {
    let (path, query) = match memchr::memchr(b'?', target) {
        Some(at) => (&target[..at], Some(&target[at + 1..])),
        None => (target, None),
    };
    Target { authority: None, path: (!path.is_empty()).then_some(path), query }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: Method, target: &str, expected: Option<(&str, Option<&str>)>) {
        let parsed = parse(Some(method), target.as_bytes());
        let found = parsed.as_ref().ok().map(|target| (target.path.unwrap_or(b"/"), target.query));
        let expected = expected.map(|(path, query)| (path.as_bytes(), query.map(str::as_bytes)));
        assert_eq!(found, expected, "{method:?} {target}");
    }

    #[test]
    fn forms() {
        use Method::{Connect, Get, Options};
        check(Get, "/a/b%2Fc", Some(("/a/b%2Fc", None)));
        check(Get, "/a?b=c?d", Some(("/a", Some("b=c?d"))));
        check(Get, "/?", Some(("/", Some(""))));
        check(Get, "//a", Some(("//a", None)));
        check(Get, "http://host/path?q", Some(("/path", Some("q"))));
        check(Get, "HTTPS://host:1", Some(("/", None)));
        check(Get, "http://[::1]:80?q", Some(("/", Some("q"))));
        check(Options, "*", Some(("*", None)));
        check(Connect, "host:443", Some(("host:443", None)));
        for malformed in ["*", "a", "a/b", "/a#b", "http://", "http:///a", "http://u@h/", "ftp://h/", "h:80"]
        {
            check(Get, malformed, None);
        }
        check(Connect, "/a", None);
        check(Connect, "http://host/", None);
        check(Options, "**", None);
    }
}
