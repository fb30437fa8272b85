//! Request handlers, one file per resource: each parses the request, calls the service and encodes the response.

pub(super) mod cluster;
pub(super) mod configs;
mod cursor;
pub(super) mod documentation;
pub(super) mod federation;
pub(super) mod health;
mod list_stream;
pub(super) mod metrics;
pub(super) mod peers;
pub(super) mod system;
