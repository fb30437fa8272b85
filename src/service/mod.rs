//! The use cases: the only place where keys and rows meet.
//!
//! Knows neither HTTP nor status codes. Runs on the executors; whatever may block goes to the pool
//! (derivations, reads of the database) or to the store's writer, and comes back by a oneshot.

mod acks;
mod bounded;
mod clocks;
mod configs;
mod decryptor;
mod error;
pub mod exchange;
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
mod sequence_watch;
mod stats;
mod value;
mod verify;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub use acks::Acknowledgements;
pub use clocks::Clocks;
pub use configs::{CachedEntry, DecryptedEntry, NewEntry, Update};
pub use error::Error;
pub use federation::Federation;
pub use gate::Gate;
pub use guard::{CredentialKind, Guard};
pub use keys::Credentials;
pub use list::{After, EntryList, ListQuery, Render, RenderedPage};
pub use node_auth::NodeAuth;
pub use peer_id::PeerId;
pub use replication::{ClusterView, Member, salt_fingerprint};
pub use sequence_watch::SequenceWatch;
pub use stats::Stats;
pub use value::{SealedValue, Value};
pub use verify::{OpenedCounts, VerifyTarget, verify};

use crate::crypto::{KeyCache, Pool};
use crate::store::{ImportResult, Store};

/// Handles to everything that a use case needs; one for the process, shared by all executors.
#[derive(Debug)]
pub struct Service {
    store: Arc<Store>,
    keys: KeyCache,
    pool: Arc<Pool>,
    cluster: Option<Arc<ClusterView>>,
    federation: Option<Federation>,
    guard: Guard,
    peer_work: peer_work::PeerWork,
    started: Instant,
    /// When the entries were counted last, and how many there were.
    entries_counted: Mutex<Option<(Instant, u64)>>,
}

impl Service {
    /// Puts the parts together. `cluster` is there when this node is one of several.
    pub fn new(
        store: Arc<Store>,
        keys: KeyCache,
        pool: Arc<Pool>,
        cluster: Option<Arc<ClusterView>>,
    ) -> Self {
        Self {
            store,
            keys,
            pool,
            cluster,
            federation: None,
            guard: Guard::new(None),
            peer_work: peer_work::PeerWork::default(),
            started: Instant::now(),
            entries_counted: Mutex::default(),
        }
    }

    /// What this node does not have it asks of others.
    #[must_use]
    pub fn federated(self, federation: Option<Federation>) -> Self {
        Self { federation, ..self }
    }

    /// With a guard that counts failed keys.
    #[must_use]
    pub fn guarded_by(self, guard: Guard) -> Self {
        Self { guard, ..self }
    }

    /// How this node asks others for what it does not have.
    pub fn federation(&self) -> Option<&Federation> {
        self.federation.as_ref()
    }

    /// Whether this node asks others for what it does not have.
    pub fn is_federated(&self) -> bool {
        self.federation.is_some()
    }

    /// The salt, if this node has one yet.
    pub fn salt(&self) -> Option<Arc<[u8]>> {
        self.store.salt().current()
    }

    /// Takes another node's salt, if this one has none.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn adopt_salt(&self, sent: Vec<u8>) -> Result<ImportResult, Error> {
        let store = Arc::clone(&self.store);
        let job = move || store.salt().adopt(&sent);
        match self.pool.submit(job).map_err(|_| Error::Busy)?.await {
            Ok(Ok(adopted)) => Ok(adopted),
            Ok(Err(error)) => {
                tracing::error!(%error, "cannot take over a salt");
                Err(Error::Unavailable)
            }
            Err(_) => Err(Error::Unavailable),
        }
    }

    /// Wipes derived keys that were not used for a while, and forgets failures that have decayed.
    pub fn sweep(&self) {
        self.keys.sweep(self.now_seconds());
        self.guard.sweep(self.now_ms());
    }

    /// Time since the start.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    fn now_seconds(&self) -> u64 {
        self.started.elapsed().as_secs()
    }
}
