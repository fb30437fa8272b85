//! One HTTP/1.1 server connection as a state machine: bytes in; requests, bytes and deadlines out.
//!
//! Owns the buffers of a connection, the framing of its messages (RFC 9112) and the times it may
//! take. Does no I/O, reads no clock (`now_ms` is handed in), spawns nothing and runs on any thread.
//! Never knows JSON, routes or what an answer means, and never keeps a byte of a request that was
//! answered: a head carries the user key and a body the secrets, so both are wiped.
//!
//! The driver reads into [`Connection::read_space`], asks [`Connection::step`] what to do, and
//! writes [`Connection::output`]. Where RFC 9112 lets a server choose between repairing a malformed
//! message and refusing it, it is refused and the connection closed: two readers that repair
//! differently are how requests are smuggled.
//!
//! `client` is the same for the other end, with [`ClientConnection`], for what nodes ask of each other.

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
mod write_buffer;

#[cfg(test)]
mod conversations;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod splits;
#[cfg(test)]
mod timeouts;
#[cfg(test)]
mod wiping;

pub use client::{ClientConnection, ClientFailure, ClientRequest, ClientStep};
pub use connection::Connection;
pub use head::RequestHead;
pub use method::Method;
pub use phase::Step;
pub use protocol_error::ProtocolError;
pub use proxy_header::PROXY_LOCAL;
pub use response::Response;
