//! Sans-I/O HTTP/1.1 connection: bytes in; requests, bytes and deadlines out.
//!
//! Owns the buffers of a connection, the framing of its messages (RFC 9112) and its deadlines. Does no I/O, reads no
//! clock (`now_ms` is a parameter), spawns nothing and runs on any thread. Knows nothing of JSON, routes or the meaning
//! of a response. Keeps no byte of a request after its response: a head carries the user key and a body the secrets, so
//! both are wiped.
//!
//! The driver reads into [`Connection::read_space`], calls [`Connection::step`] for the next action, and writes
//! [`Connection::output`]. Where RFC 9112 lets a server either repair a malformed message or reject it, the message is
//! rejected and the connection closed: request smuggling exploits two parsers that repair differently.
//!
//! `client` is the client side, [`ClientConnection`], for requests between nodes.

mod body;
mod chunked;
mod client;
mod connection;
mod deadlines;
mod fields;
mod head;
mod method;
mod pace;
mod phase;
mod protocol_error;
mod proxy_header;
mod read_buffer;
mod response;
mod response_writer;
mod scan;
mod target;
mod token;
mod write_buffer;

#[cfg(test)]
mod tests;

pub use client::{ClientConnection, ClientFailure, ClientRequest, ClientStep};
pub use connection::Connection;
pub use head::RequestHead;
pub use method::Method;
pub use phase::Step;
pub use protocol_error::ProtocolError;
pub use proxy_header::PROXY_LOCAL;
pub use response::Response;
