//! Header fields that every response gets.

use std::borrow::Cow;

use smallvec::SmallVec;

use super::access_log::RequestLog;
use super::cors::EXPOSED;

/// The header fields of a response.
pub(super) struct ResponseFields<'a> {
    pub(super) all: SmallVec<[(&'a str, &'a str); 8]>,
}

impl<'a> ResponseFields<'a> {
    /// The response's own fields and the common ones: responses hold secrets, so they must not be cached or have
    /// their media type guessed.
    pub(super) fn of(own: &'a [(&'static str, Cow<'static, str>)], request_log: &'a RequestLog) -> Self {
        let mut all: SmallVec<[(&str, &str); 8]> =
            own.iter().map(|(name, value)| (*name, &**value)).collect();
        all.push(("x-request-id", request_log.id()));
        all.push(("x-content-type-options", "nosniff"));
        if !own.iter().any(|(name, _)| *name == "cache-control") {
            all.push(("cache-control", "no-store"));
        }
        if let Some(origin) = &request_log.allowed_origin {
            all.push(("access-control-allow-origin", origin));
            all.push(("access-control-expose-headers", EXPOSED));
            all.push(("vary", "origin"));
        }
        Self { all }
    }
}
