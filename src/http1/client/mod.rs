//! Sans-I/O HTTP/1.1 client connection: requests in; bytes, responses and deadlines out.
//!
//! Sends requests to other nodes, one in flight per connection. As strict as the server side, for the same reason: a
//! connection on which the two ends may disagree about the end of a response carries no further request. Written bytes
//! are wiped, because a head carries the keys.
//!
//! The driver passes a [`ClientRequest`] to [`ClientConnection::call`], writes [`ClientConnection::output`], reads into
//! [`ClientConnection::read_space`] and calls [`ClientConnection::step`] for the next action.
//! [`ClientConnection::finish`] returns whether the connection can be reused.

mod connection;
mod head;
mod request;
mod step;

#[cfg(test)]
mod tests;

pub use connection::ClientConnection;
pub use request::ClientRequest;
pub use step::{ClientFailure, ClientStep};
