//! Federated mode: each node keeps what is written to it, and asks the others for what it does not have.
//!
//! A request asks each peer at most once, and a peer answers from what it has itself, so that questions
//! never go in circles. Answers are sealed: the node that was asked by the client opens them, and the
//! user key stays where it came to.

mod duplicates;
mod listing;
mod local_lookup;
pub mod messages;
mod owner_hints;
mod peer_requests;
mod remote_lookup;
mod writing;

pub use duplicates::{Duplicate, Duplicates};
pub(super) use listing::RemoteEntries;
pub use peer_requests::{ClusterTask, ClusterTaskQueue, Federation, PeerRequest};
pub(super) use remote_lookup::OwnerPolicy;
