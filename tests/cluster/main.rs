//! Several nodes of the real binary on the loopback interface, connected by links that a test can cut, or in
//! network namespaces.

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

// Shared with the tests of one server, which use more of it than these do.
#[allow(dead_code, reason = "these tests need only a part of what the tests of one server need")]
#[path = "../server/support.rs"]
mod support;

#[allow(dead_code, reason = "these tests need only a part of what the tests of one server need")]
#[path = "../server/certificates.rs"]
mod certificates;
