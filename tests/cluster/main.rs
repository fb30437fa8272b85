//! Integration tests of clusters: several nodes of the real binary, connected on the loopback interface by links that
//! a test can cut, or placed in network namespaces.

mod acks;
mod anti_entropy;
mod api_key_roll;
mod backup;
mod chaos;
mod federated;
mod hostile;
mod identity;
mod joining;
mod link;
mod listener;
mod namespaces;
mod node_certificates;
mod nodes;
mod reload;
mod salt;
mod secret;
mod stop;
mod stranger;
mod tls;
mod wire;

// Shared with the tests of a single server.
#[allow(dead_code, reason = "the cluster tests use only a part of the shared helpers")]
#[path = "../server/support.rs"]
mod support;

#[allow(dead_code, reason = "the cluster tests use only a part of the shared helpers")]
#[path = "../server/certificates.rs"]
mod certificates;
