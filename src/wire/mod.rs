//! Protocol between nodes: paths, header names, versions, and the messages with their JSON encoding. Encoding and
//! decoding are pure: nothing here does I/O, parses HTTP, or sees a user key or a plaintext.
//!
//! To change a message, see `docs/clustering.md` on rolling upgrades: what is here must keep decoding what the previous
//! release encodes.

mod bounded;
mod codec;
pub mod federation;
pub mod header;
mod message;
mod part;
pub mod path;
mod protocol;
pub mod replication;

pub use codec::DecodeError;
pub use message::Message;
pub use protocol::Protocol;

/// Mode in which all nodes keep the same entries, as the value of [`header::MODE`].
pub const REPLICA: &str = "replica";
/// Mode in which each node stores its own entries, as the value of [`header::MODE`].
pub const FEDERATED: &str = "federated";

#[cfg(test)]
mod tests;
