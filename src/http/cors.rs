//! Which pages of other sites may use this server from a browser (the CORS protocol of the Fetch standard,
//! <https://fetch.spec.whatwg.org/#http-cors-protocol>). Credentials of the browser are never allowed: keys
//! come in headers that a page must set itself.

use super::error;
use super::response::Response;
use crate::config::Origins;
use crate::http1::{Method, RequestHead};

/// Methods of the API.
pub(super) const METHODS: &str = "GET, HEAD, POST, PUT, DELETE";
/// Headers that requests may carry.
const HEADERS: &str = "content-type, x-api-key, x-user-key, x-request-id, x-backup-password";
/// Headers of answers that pages may read.
pub(super) const EXPOSED: &str =
    "x-entries-hidden, x-next-after, x-partial-result, x-request-id, retry-after";
/// How long a browser need not ask again, in seconds.
const MAX_AGE_SECONDS: &str = "600";

/// The origin that the answer allows, if the request came from a page that may see it.
pub(super) fn allowed_origin(origins: &Origins, origin: &[u8]) -> Option<String> {
    let origin = std::str::from_utf8(origin).ok()?;
    origins.allows(origin).map(str::to_owned)
}

/// Whether a page of another site sends this request, and it would change something. Browsers say where a page is from
/// with every write (<https://fetch.spec.whatwg.org/#origin-header>); `null` is a page that hides it. A proxy may have
/// replaced `Host`, so what the browser itself says of the two is believed as well
/// (<https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header>).
pub(super) fn is_foreign_write(head: &RequestHead<'_>, is_allowed: bool) -> bool {
    if is_allowed || !matches!(head.method(), Method::Post | Method::Put | Method::Delete | Method::Patch) {
        return false;
    }
    let site = head.fields("sec-fetch-site").next();
    match head.origin() {
        Some(origin) => site != Some(b"same-origin") && !is_of_host(origin, head.host()),
        None => matches!(site, Some(b"cross-site" | b"same-site")),
    }
}

/// Whether a page of this origin was loaded from this host. Only a proxy can have changed the scheme.
fn is_of_host(origin: &[u8], host: Option<&[u8]>) -> bool {
    let Some(host) = host.filter(|host| !host.is_empty()) else { return false };
    let authority = origin.strip_prefix(b"https://").or_else(|| origin.strip_prefix(b"http://"));
    authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host))
}

/// Whether only a form sends a body of this type without a preflight request
/// (<https://fetch.spec.whatwg.org/#cors-safelisted-request-header>). The third such type,
/// `application/x-www-form-urlencoded`, is what curl and other tools call any body.
pub(super) fn is_of_forms(content_type: &[u8]) -> bool {
    let end = memchr::memchr(b';', content_type).unwrap_or(content_type.len());
    let essence = content_type[..end].trim_ascii();
    [&b"text/plain"[..], b"multipart/form-data"].iter().any(|simple| essence.eq_ignore_ascii_case(simple))
}

/// The answer to a browser that asks beforehand; `None` for any other request.
pub(super) fn preflight(head: &RequestHead<'_>, allowed_origin: Option<&str>) -> Option<Response> {
    let asks = head.method() == Method::Options
        && head.origin().is_some()
        && head.fields("access-control-request-method").next().is_some();
    if !asks {
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
