//! The single table of status codes and error texts.

use std::time::Duration;

use serde::Serialize;

use super::endpoint::RouteError;
use super::response::{Body, Response};

use crate::http1::ProtocolError;
use crate::limits::{HEAD_BYTES_MAX, HEADERS_COUNT_MAX, REQUEST_LINE_BYTES_MAX, RETRY_AFTER_SECONDS};
use crate::service;
use crate::service::AuthError;

#[derive(Serialize)]
struct Detail<'a> {
    detail: &'a str,
}

/// Returns `{"detail": text}`, the body format of every error.
pub(super) fn detail(status: u16, text: &str) -> Response {
    Response::serialized(status, &Detail { detail: text })
}

fn later(status: u16, text: &str) -> Response {
    detail(status, text).with_header("retry-after", RETRY_AFTER_SECONDS.to_string())
}

/// Returns 429 (RFC 6585, 4). The wait is rounded up: a client that retries too early is refused again.
fn too_many(text: &str, wait: Duration) -> Response {
    detail(429, text).with_header("retry-after", (wait.as_secs() + 1).to_string())
}

/// The reason why a request is rejected after its head.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RequestError {
    Authentication(AuthError),
    NodeCertificateMissing,
    UserKeyTooShort {
        bytes_min: usize,
    },
    ContentCoded,
    /// A conditional request (entity tag or time); entries have no validators.
    Conditional,
    /// A partial body, which would replace the complete value (RFC 9110, 14.5).
    PartialContent,
    /// A request of a node in a version that this node does not support.
    ProtocolNotSupported,
    TooManyRequests {
        wait: Duration,
    },
}

impl From<AuthError> for RequestError {
    fn from(error: AuthError) -> Self {
        Self::Authentication(error)
    }
}

impl From<&AuthError> for Response {
    fn from(error: &AuthError) -> Self {
        match error {
            AuthError::ApiKeyMissing => {
                detail(403, "API key required but missing. Provide X-API-Key header.")
            }
            AuthError::ApiKeyWrong { delay } => detail(403, "Invalid API key").delayed(*delay),
            AuthError::ApiKeyOfClients => {
                detail(403, "This endpoint is for nodes and takes only the first API key of the server")
            }
            AuthError::ClusterSecretMissing => {
                detail(403, "This endpoint is for nodes that have the cluster secret")
            }
            AuthError::ClusterSecretWrong { delay } => detail(403, "Invalid cluster secret").delayed(*delay),
            AuthError::TooManyFailures { wait } => too_many("Too many failed keys, try again later", *wait),
        }
    }
}

impl From<&RequestError> for Response {
    fn from(error: &RequestError) -> Self {
        match error {
            RequestError::Authentication(error) => error.into(),
            RequestError::NodeCertificateMissing => {
                detail(403, "Node certificate required (issued by a CA in OSC_CLUSTER_CA_CERTS)")
            }
            RequestError::UserKeyTooShort { bytes_min } => detail(
                401,
                &format!("x-user-key header missing or too short (minimum {bytes_min} characters)"),
            ),
            RequestError::TooManyRequests { wait } => too_many("Too many requests, try again later", *wait),
            RequestError::Conditional => detail(
                412,
                "If-Match, If-None-Match and If-Unmodified-Since are not supported: no entry matches",
            ),
            RequestError::PartialContent => {
                detail(400, "Content-Range is not supported: the body is the whole")
            }
            RequestError::ProtocolNotSupported => {
                detail(400, "X-OSC-Protocol: this version is not supported, this node supports 1 and 2")
            }
            // RFC 9110, 15.5.16: say which codings are accepted.
            RequestError::ContentCoded => {
                detail(415, "Content-Encoding is not supported").with_header("accept-encoding", "identity")
            }
        }
    }
}

impl From<RouteError> for Response {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::NotFound => detail(404, "Not Found"),
            RouteError::MethodNotAllowed { allow, .. } => {
                detail(405, "Method Not Allowed").with_header("allow", allow)
            }
            RouteError::Redirect(location) => redirect(&location, None),
        }
    }
}

/// Returns the response to `OPTIONS` for a path, or for the server (RFC 9110, 9.3.7).
pub(super) fn options(allow: &str) -> Response {
    no_content().with_header("allow", format!("{allow}, OPTIONS"))
}

/// Returns 204 without a body.
pub(super) fn no_content() -> Response {
    Response {
        status: 204,
        content_type: None,
        headers: Vec::new(),
        body: Body::default(),
        delay: Duration::ZERO,
        receipt: None,
    }
}

/// Returns 307, so that method and body are preserved (RFC 9110, 15.4.8). The location is relative, so that it is
/// correct behind any proxy.
pub(super) fn redirect(path: &str, query: Option<&[u8]>) -> Response {
    let location = match query {
        Some(query) => format!("{path}?{}", super::key_path::header_text(query)),
        None => path.to_owned(),
    };
    Response {
        status: 307,
        content_type: None,
        headers: vec![("location", location.into())],
        body: Body::default(),
        delay: Duration::ZERO,
        receipt: None,
    }
}

impl From<service::Error> for Response {
    fn from(error: service::Error) -> Self {
        use service::Error;
        match error {
            Error::AlreadyExists { key, environment, is_foreign: _ } => detail(
                400,
                &format!("Configuration with key '{key}' already exists{}", place(environment.as_deref())),
            ),
            Error::NotFound { key, environment, silent } => {
                let place = place(environment.as_deref());
                let response = detail(404, &format!("Configuration with key '{key}' not found{place}"));
                match silent.is_empty() {
                    true => response,
                    false => response.with_header(super::PARTIAL_RESULT, silent.join(", ")),
                }
            }
            Error::Incomplete { key, environment, silent } => {
                let (place, names) = (place(environment.as_deref()), silent.join(", "));
                let text = format!(
                    "Configuration with key '{key}' was not found{place}, but these nodes did not answer: {names}"
                );
                later(503, &text).with_header(super::PARTIAL_RESULT, names)
            }
            Error::Ambiguous { key, environments } => detail(
                400,
                &format!(
                    "Configuration with key '{key}' exists in several environments ({}); add ?environment=",
                    environments.join(", ")
                ),
            ),
            Error::WrongUserKey { key } => {
                detail(401, &format!("x-user-key does not open configuration '{key}'"))
            }
            Error::TooManyFailures { wait } => (&AuthError::TooManyFailures { wait }).into(),
            Error::Delayed { delay, error } => Self::from(*error).delayed(delay),
            Error::Unreadable { key, what } => {
                detail(422, &format!("The stored value of configuration '{key}' is unreadable: {what}"))
            }
            Error::Busy => later(503, "The server is busy, try again in a moment"),
            Error::DiskFull => later(507, "No space is left to store this; reading goes on"),
            Error::Displaced => later(
                503,
                "A file of the server was removed or replaced, or overwritten, so nothing is written to it; /health says which",
            ),
            Error::Unavailable => later(503, "The server cannot do this at the moment, try again later"),
            Error::NotReplicated { reached, wanted } => later(
                503,
                &format!(
                    "The write is stored on this node and will replicate, but only {reached} of {wanted} other \
                     nodes have confirmed it so far"
                ),
            ),
            Error::VersionAhead { key, minutes } => later(
                503,
                &format!(
                    "The stored version of configuration '{key}' is {minutes} min ahead of this node's clock, and no \
                     other node would take a change of it; set the clock right, or stop the node and run \
                     `opensecureconf repair --versions`"
                ),
            ),
            Error::SaltDiffers => detail(409, "The salt of this node differs"),
            Error::NotJoined => {
                later(503, "This node is new and has not compared its entries with its peers yet")
            }
            Error::NoSalt => later(503, "The nodes of the cluster have not agreed on a salt yet"),
            Error::Store(_) => internal(),
        }
    }
}

fn place(environment: Option<&str>) -> String {
    environment.map(|environment| format!(" in environment '{environment}'")).unwrap_or_default()
}

/// Returns 500 with a constant text; the cause is in the log only.
pub(super) fn internal() -> Response {
    detail(500, "Internal server error")
}

#[derive(Serialize)]
struct NotReady<'a> {
    ready: bool,
    detail: &'a str,
}

/// Returns the response to `GET /ready` on a node that is not ready.
pub(super) fn not_ready(reason: &str) -> Response {
    Response::serialized(503, &NotReady { ready: false, detail: reason })
        .with_header("retry-after", RETRY_AFTER_SECONDS.to_string())
}

/// Returns 403 for a page whose origin is not in `CORS_ORIGINS`.
pub(super) fn origin_not_allowed() -> Response {
    detail(403, "Origin not allowed")
}

/// Returns 421 for a `Host` that is not in `OSC_ALLOWED_HOSTS` (RFC 9110, 15.5.20).
pub(super) fn host_not_allowed() -> Response {
    detail(421, "Host not allowed, add it to OSC_ALLOWED_HOSTS")
}

/// Returns 415 for a salt in a media type of forms.
pub(super) fn salt_as_form() -> Response {
    detail(415, "A salt is sent as application/octet-stream")
}

#[derive(Serialize)]
struct Unhealthy {
    status: &'static str,
    detail: String,
}

/// Returns the response to `GET /health` on a node that should be restarted or inspected.
pub(super) fn unhealthy(reasons: &[String]) -> Response {
    let unhealthy = Unhealthy { status: "unhealthy", detail: reasons.join("; ") };
    Response::serialized(503, &unhealthy).with_header("retry-after", RETRY_AFTER_SECONDS.to_string())
}

/// Returns 422 for a peer's message that cannot be decoded.
pub(super) fn malformed_message(error: &crate::wire::DecodeError) -> Response {
    detail(422, &error.to_string())
}

/// Returns 404 for a cluster endpoint on a node that is not in a cluster, or in one of the other mode.
pub(super) fn not_clustered() -> Response {
    detail(404, "This node is not part of a cluster")
}

/// Returns 503 for too many open connections, or too many bytes held for bodies or responses.
pub(super) fn overloaded() -> Response {
    later(503, "Too many requests at a time, try again in a moment")
}

/// Returns 400 for plain HTTP on a TLS port.
pub(super) fn plain_text_to_tls() -> Response {
    detail(400, "This port speaks TLS only, use https://")
}

impl From<ProtocolError> for Response {
    fn from(error: ProtocolError) -> Self {
        match error {
            ProtocolError::BadRequest(reason) => detail(400, &format!("Malformed request: {reason}")),
            ProtocolError::VersionNotSupported => detail(505, "HTTP version not supported, use HTTP/1.1"),
            ProtocolError::MethodNotImplemented => detail(501, "Method not implemented"),
            ProtocolError::TransferCodingNotImplemented => {
                detail(501, "Transfer coding not implemented, only chunked is")
            }
            ProtocolError::ExpectationFailed => detail(417, "Expectation failed, only 100-continue is known"),
            ProtocolError::RequestLineTooLong => {
                detail(414, &format!("Request line too long (at most {REQUEST_LINE_BYTES_MAX} bytes)"))
            }
            ProtocolError::HeadTooLarge => detail(
                431,
                &format!(
                    "Header fields too large (at most {HEAD_BYTES_MAX} bytes in {HEADERS_COUNT_MAX} fields)"
                ),
            ),
            ProtocolError::BodyTooLarge { bytes_max } => {
                detail(413, &format!("Body too large (at most {bytes_max} bytes)"))
            }
            ProtocolError::HeadTimeout => detail(408, "The request head took too long"),
            ProtocolError::BodyTimeout => detail(408, "The request body took too long"),
        }
    }
}

/// Converts a service error into a response; internal errors are logged once.
pub(super) fn failed(error: service::Error) -> Response {
    if let service::Error::Store(source) = &error {
        tracing::error!(error = %source, cause = ?std::error::Error::source(source), "request failed");
        return internal();
    }
    error.into()
}
