//! Which pages of other sites may use this server from a browser (the CORS protocol of the Fetch standard,
//! <https://fetch.spec.whatwg.org/#http-cors-protocol>). Credentials of the browser are never allowed: keys
//! come in headers that a page must set itself.

use super::answer::Answer;
use super::error;
use crate::config::Origins;
use crate::http1::{HeadView, Method};

/// Methods of the API.
const METHODS: &str = "GET, HEAD, POST, PUT, DELETE";
/// Headers that requests may carry.
const HEADERS: &str = "content-type, x-api-key, x-user-key, x-request-id, x-backup-password";
/// Headers of answers that pages may read.
pub(super) const EXPOSED: &str =
    "x-entries-hidden, x-next-after, x-partial-result, x-request-id, retry-after";
/// How long a browser need not ask again, in seconds.
const MAX_AGE_SECONDS: &str = "600";

/// The origin that the answer allows, if the request came from a page that may see it.
pub(super) fn allowed_origin(origins: &Origins, head: &HeadView<'_>) -> Option<String> {
    let origin = std::str::from_utf8(head.origin()?).ok()?;
    origins.allows(origin).map(str::to_owned)
}

/// The answer to a browser that asks beforehand; `None` for any other request.
pub(super) fn preflight(head: &HeadView<'_>, allowed_origin: Option<&str>) -> Option<Answer> {
    let asks = head.method() == Method::Options
        && head.origin().is_some()
        && head.fields("access-control-request-method").next().is_some();
    if !asks {
        return None;
    }
    if allowed_origin.is_none() {
        return Some(error::origin_not_allowed());
    }
    let answer = Answer { status: 204, content_type: None, headers: Vec::new(), body: Vec::new().into() };
    Some(
        answer
            .with_header("access-control-allow-methods", METHODS)
            .with_header("access-control-allow-headers", HEADERS)
            .with_header("access-control-max-age", MAX_AGE_SECONDS),
    )
}
