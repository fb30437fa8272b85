//! Cross-origin requests from browsers: the CORS protocol of the Fetch standard
//! (<https://fetch.spec.whatwg.org/#http-cors-protocol>). Browser credentials are never allowed: keys are sent in
//! headers that a page must set itself.

use super::error;
use super::response::Response;
use crate::config::Origins;
use crate::http1::{Method, RequestHead};

/// Methods of the API, all of them allowed in cross-origin requests.
pub(super) const METHODS: &str = "GET, HEAD, POST, PUT, DELETE";
/// Header fields allowed in cross-origin requests.
const HEADERS: &str = "content-type, x-api-key, x-user-key, x-request-id, x-backup-password";
/// Header fields of responses that pages may read.
pub(super) const EXPOSED: &str =
    "x-entries-hidden, x-next-after, x-partial-result, x-request-id, retry-after";
/// How long a browser may cache the preflight response, in seconds.
const MAX_AGE_SECONDS: &str = "600";

/// Returns the value of `Access-Control-Allow-Origin`, if the settings allow the origin.
pub(super) fn allowed_origin(origins: &Origins, origin: &[u8]) -> Option<String> {
    let origin = std::str::from_utf8(origin).ok()?;
    origins.allows(origin).map(str::to_owned)
}

/// Returns whether the request is a write from a page of another origin that is not allowed. Browsers send the page's
/// origin with every write (<https://fetch.spec.whatwg.org/#origin-header>); `null` is an opaque origin. A proxy may
/// have replaced `Host`, so the browser's own verdict is accepted as well
/// (<https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header>).
pub(super) fn is_cross_origin_write(head: &RequestHead<'_>, is_allowed: bool) -> bool {
    if is_allowed || !matches!(head.method(), Method::Post | Method::Put | Method::Delete | Method::Patch) {
        return false;
    }
    let site = head.fields("sec-fetch-site").next();
    match head.origin() {
        Some(origin) => site != Some(b"same-origin") && !is_of_host(origin, head.host()),
        None => matches!(site, Some(b"cross-site" | b"same-site")),
    }
}

/// Returns whether the origin has this host. The scheme is ignored, because only a proxy can have changed it.
fn is_of_host(origin: &[u8], host: Option<&[u8]>) -> bool {
    let Some(host) = host.filter(|host| !host.is_empty()) else { return false };
    let authority = origin.strip_prefix(b"https://").or_else(|| origin.strip_prefix(b"http://"));
    authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host))
}

/// Returns whether this is a media type that forms send without a preflight request
/// (<https://fetch.spec.whatwg.org/#cors-safelisted-request-header>). The third such type,
/// `application/x-www-form-urlencoded`, is left out: curl and other tools send it with any body.
pub(super) fn is_form_type(content_type: &[u8]) -> bool {
    let end = memchr::memchr(b';', content_type).unwrap_or(content_type.len());
    let essence = content_type[..end].trim_ascii();
    [&b"text/plain"[..], b"multipart/form-data"].iter().any(|simple| essence.eq_ignore_ascii_case(simple))
}

/// Returns the response to a preflight request; `None` for any other request.
pub(super) fn preflight(head: &RequestHead<'_>, allowed_origin: Option<&str>) -> Option<Response> {
    let is_preflight = head.method() == Method::Options
        && head.origin().is_some()
        && head.fields("access-control-request-method").next().is_some();
    if !is_preflight {
        return None;
    }
    if allowed_origin.is_none() {
        return Some(error::origin_not_allowed());
    }
    Some(
        error::no_content()
            .with_header("access-control-allow-methods", METHODS)
            .with_header("access-control-allow-headers", HEADERS)
            .with_header("access-control-max-age", MAX_AGE_SECONDS),
    )
}
