//! Federated mode: each node stores the entries that are written to it, and queries its peers for the rest.
//!
//! A lookup queries each peer at most once, and peers reply from their local entries only, so requests never loop.
//! Replies contain encrypted values: the node that the client is connected to decrypts them, and the user key never
//! leaves that node.

mod creating;
mod duplicate_names;
mod duplicates;
mod listing;
mod local_lookup;
mod owner_hints;
mod peer_requests;
mod remote_lookup;
mod writing;

pub use duplicates::{Duplicate, Duplicates};
pub(super) use listing::RemoteEntries;
pub use local_lookup::Federated;
pub use peer_requests::{ClusterTask, ClusterTaskQueue, Federation, PeerRequest};
pub(super) use remote_lookup::OwnerPolicy;
