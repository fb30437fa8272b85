//! Paths of the inter-node endpoints.

/// GET: describes the node and authenticates it.
pub const HEALTH: &str = "/cluster/health";
/// GET: returns the salt of the node.
pub const SALT: &str = "/cluster/salt";
/// POST: applies changes of the sender.
pub const CHANGES: &str = "/cluster/changes";
/// POST: compares the root digest, and returns those of the buckets if it differs.
pub const DIGESTS: &str = "/cluster/digests";
/// POST: returns the versions in some buckets.
pub const VERSIONS: &str = "/cluster/versions";
/// POST: returns entries by name.
pub const ENTRIES: &str = "/cluster/entries";
/// POST, federated mode: finds a local entry of the node.
pub const FIND: &str = "/cluster/find";
/// POST, federated mode: reads local entries of the node, in the order of their names.
pub const PAGE: &str = "/cluster/page";
/// POST, federated mode: changes a local entry of the node by compare-and-swap.
pub const WRITE: &str = "/cluster/write";
