//! Names of the header fields between nodes.

/// In a health check and its response: the highest version of the protocol that the sender supports. In any other
/// request: the version of its body and of the response.
pub const PROTOCOL: &str = "x-osc-protocol";

/// In the response to a health check: instance ID, random for each process.
pub const INSTANCE: &str = "x-osc-instance";
/// In the response to a health check: replica ID of the data directory, in hexadecimal.
pub const NODE: &str = "x-osc-node";
/// In the response to a health check: [`super::REPLICA`] or [`super::FEDERATED`].
pub const MODE: &str = "x-osc-mode";
/// In the response to a health check: fingerprint of the salt of the node; absent without a salt.
pub const SALT: &str = "x-osc-salt";
/// In the response to a health check: `true` once that salt has encrypted anything.
pub const ENTRIES: &str = "x-osc-entries";
/// In the response to a health check: tombstone horizon of the node, two timestamps in hexadecimal.
pub const HORIZON: &str = "x-osc-horizon";

/// In a health check and its response: challenge of the sender.
pub const CHALLENGE: &str = "x-osc-challenge";
/// In the response to a health check with a challenge: kind of the shared key, or why there is no authentication.
pub const AUTH: &str = "x-osc-auth";
/// In the response to a health check with a challenge: MAC of both challenges and of the response.
pub const PROOF: &str = "x-osc-proof";
/// In each request: token of the sender, which is the MAC of the server's challenge.
pub const TOKEN: &str = "x-osc-token";

/// Header fields that identify a node; the proof covers them and the body. Nodes of all versions must agree on this
/// list.
pub const IDENTITY: [&str; 6] = [INSTANCE, NODE, MODE, SALT, ENTRIES, HORIZON];
