//! Use cases: the only layer that sees both keys and rows.
//!
//! Knows neither HTTP nor status codes. Runs on the executors; work that may block is offloaded to
//! the deriving threads, the pool (database reads) or the store's writer, and returns through a oneshot channel.

mod acks;
pub mod auth;
mod clocks;
mod cluster_view;
mod context;
mod decryptor;
mod entries;
mod error;
mod failures;
pub mod federation;
mod gate;
mod guard;
mod guarded;
mod keys;
mod list;
pub mod node_auth;
mod peer_id;
mod peer_work;
mod replication;
mod retries;
mod salt;
mod sequence_watch;
mod stats;
mod value;
mod verify;

use std::sync::Arc;
use std::time::Instant;

pub use acks::Acknowledgements;
pub use auth::{AuthError, Authentication, Principal, SentCredentials};
pub use clocks::ClockSkewLog;
pub use cluster_view::{ClusterView, Member, salt_fingerprint};
pub use entries::{CachedEntry, DecryptedEntry, Entries, NewEntry, Update};
pub use error::Error;
pub use federation::{Federated, Federation};
pub use gate::Gate;
pub use guard::{CredentialKind, Guard};
pub use keys::Credentials;
pub use list::{After, EntryList, ListQuery, Render, RenderedPage};
pub use node_auth::NodeAuth;
pub use peer_id::PeerId;
pub use peer_work::PeerWork;
pub use replication::Replication;
pub use retries::Receipt;
pub use salt::NodeSalt;
pub use sequence_watch::SequenceWatch;
pub use stats::{Statistics, Stats};
pub use value::{SealedValue, Value};
pub use verify::{OpenedCounts, VerifyTarget, verify};

use self::context::Context;
use self::retries::UnconfirmedWrites;
use crate::blocking::BlockingPool;
use crate::crypto::{KeyCache, KeyDeriver};
use crate::model::ApiKeys;
use crate::storage::Storage;

/// Components that the use cases work on. Those of a standalone node are the default of the last five.
#[derive(Debug)]
pub struct Parts {
    /// Entries.
    pub storage: Arc<Storage>,
    /// Cache of derived keys.
    pub keys: KeyCache,
    /// Threads that derive keys.
    pub deriver: Arc<KeyDeriver>,
    /// Threads for blocking work.
    pub pool: Arc<BlockingPool>,
    /// Cluster, if this node is in one.
    pub cluster: Option<Arc<ClusterView>>,
    /// Federation, through which entries that this node does not have are requested from peers.
    pub federation: Option<Federation>,
    /// Guard that counts failed keys.
    pub guard: Guard,
    /// Valid API keys.
    pub api_keys: ApiKeys,
    /// Authentication of nodes.
    pub node_auth: Arc<NodeAuth>,
}

impl Parts {
    /// Creates the parts of a standalone node without API keys and guard.
    pub fn standalone(
        storage: Arc<Storage>,
        keys: KeyCache,
        deriver: Arc<KeyDeriver>,
        pool: Arc<BlockingPool>,
    ) -> Self {
        let api_keys = ApiKeys::default();
        let node_auth = Arc::new(NodeAuth::new(&[], &api_keys));
        let guard = Guard::new(None);
        Self { storage, keys, deriver, pool, cluster: None, federation: None, guard, api_keys, node_auth }
    }
}

/// Use cases by subject; one per process, shared by all executors.
#[derive(Debug)]
pub struct Service {
    /// Entries: create, read, update, delete, list.
    pub entries: Entries,
    /// Replication between nodes.
    pub replication: Replication,
    /// Federated mode.
    pub federated: Federated,
    /// Salt of this node.
    pub salt: NodeSalt,
    /// Authentication of requests.
    pub authentication: Authentication,
    /// Statistics and health.
    pub statistics: Statistics,
    /// Budget for requests of other nodes.
    pub peer_work: PeerWork,
    context: Arc<Context>,
}

impl Service {
    /// Creates the use cases.
    pub fn new(parts: Parts) -> Self {
        let Parts { storage, keys, deriver, pool, cluster, federation, guard, api_keys, node_auth } = parts;
        let started = Instant::now();
        let unconfirmed = UnconfirmedWrites::default();
        let context =
            Context { storage, keys, deriver, pool, cluster, federation, guard, unconfirmed, started };
        let context = Arc::new(context);
        let shared = || Arc::clone(&context);
        Self {
            entries: Entries { context: shared() },
            replication: Replication { context: shared() },
            federated: Federated { context: shared() },
            salt: NodeSalt { context: shared() },
            authentication: Authentication { context: shared(), api_keys, nodes: node_auth },
            statistics: Statistics::new(shared()),
            peer_work: PeerWork::default(),
            context,
        }
    }

    /// Returns the cluster status; `None` on a standalone node.
    pub fn cluster(&self) -> Option<&Arc<ClusterView>> {
        self.context.cluster()
    }

    /// Returns the federation, if this node is part of one.
    pub fn federation(&self) -> Option<&Federation> {
        self.context.federation.as_ref()
    }

    /// Returns whether this node requests entries that it does not have from peers.
    pub fn is_federated(&self) -> bool {
        self.context.federation.is_some()
    }

    /// Runs a blocking job on the pool, without batching it with others.
    ///
    /// # Errors
    /// Fails if the pool is busy.
    pub async fn on_pool<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        self.context.on_pool(job).await
    }

    /// Wipes derived keys that have not been used for a while, and removes failure counts that have decayed and records
    /// that have expired.
    pub fn sweep(&self) {
        self.context.keys.sweep(self.context.now_seconds());
        self.context.guard.sweep(self.context.now_ms());
        self.context.unconfirmed.sweep();
    }
}
