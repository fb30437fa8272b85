//! The HTTP API: routes, checks, JSON, and the single table of status codes.
//!
//! Depends on the service and the sans-IO core of HTTP/1.1, but not on a runtime: the driver runs on any futures
//! stream. Everything here runs on the executor that accepted the connection.

mod access_log;
mod app;
mod body;
mod body_stream;
mod budget;
mod buffer_pool;
mod call;
mod client_address;
mod connection;
mod content;
mod cors;
mod endpoint;
mod endpoints;
mod error;
mod executor_context;
mod handlers;
mod json;
mod key_path;
mod openapi;
mod pages;
mod proxy_protocol;
mod query;
mod rate_limits;
mod request_id;
mod response;
mod response_fields;
mod route;
mod settings;
mod timers;

pub use access_log::{Client, RequestLog};
pub use app::{Admitted, App};
pub use body_stream::{BodyStream, Next, NextPart, Trailers};
pub use budget::ByteBudget;
pub use connection::{Application, HeadDecision, serve};
pub use content::Content;
pub use endpoint::{Audience, EndpointLabel, RouteError};
pub use endpoints::LABELS as ENDPOINT_LABELS;
pub use executor_context::ExecutorContext;
pub use proxy_protocol::read_proxy_header;
pub use rate_limits::RateLimits;
pub use response::{Body, Response};
pub use route::Route;
pub use settings::Settings;
pub use timers::{Deadline, Timers};

/// Header with the number of entries in a list that the caller's key does not open; a trailer if the list was longer
/// than one page.
pub(crate) const ENTRIES_HIDDEN: &str = "x-entries-hidden";

/// Header with the nodes whose entries may be missing; a trailer in the same case as [`ENTRIES_HIDDEN`].
pub(crate) const PARTIAL_RESULT: &str = "x-partial-result";
/// Header with the cursor from which a limited list continues.
pub(crate) const NEXT_AFTER: &str = "x-next-after";

/// Returns a complete response for a connection above the connection limit.
pub fn too_many_connections() -> Vec<u8> {
    let retry_after = format!("retry-after: {}\r\n", crate::limits::RETRY_AFTER_SECONDS);
    encode_closing("503 Service Unavailable", &retry_after, &error::overloaded())
}

/// Returns a complete response for a client that uses plain HTTP on a TLS port.
pub fn plain_text_to_tls() -> Vec<u8> {
    encode_closing("400 Bad Request", "", &error::plain_text_to_tls())
}

fn encode_closing(status: &str, fields: &str, response: &Response) -> Vec<u8> {
    let body = response.body.in_memory();
    let length = body.len();
    let mut bytes = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{fields}\
         connection: close\r\n\r\n"
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}
