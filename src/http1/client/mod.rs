//! The other end of a connection: calls in; requests, responses and deadlines out.
//!
//! Talks to other nodes, one call at a time. As strict as the server side and for the same reason:
//! a connection on which the two ends might disagree about where a response ends carries no further
//! call. What was written is wiped, because a head carries the keys.
//!
//! The driver gives a [`Call`] to [`ClientConnection::call`], writes [`ClientConnection::output`],
//! reads into [`ClientConnection::read_space`], asks [`ClientConnection::step`] what to do, and
//! learns from [`ClientConnection::finish`] whether the connection is worth keeping.

mod connection;
mod head;
mod request;
mod step;

#[cfg(test)]
mod exchanges;
#[cfg(test)]
mod life;
#[cfg(test)]
mod noise;
#[cfg(test)]
mod responses;

pub use connection::ClientConnection;
pub use request::ClientRequest;
pub use step::{ClientFailure, ClientStep};
