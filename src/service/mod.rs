//! Use cases: the only layer that sees both keys and rows.
//!
//! Knows neither HTTP nor status codes. Runs on the executors; work that may block is offloaded to
//! the deriving threads, the pool (database reads) or the store's writer, and returns through a oneshot channel.

mod acks;
mod clocks;
mod configs;
mod decryptor;
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
mod sequence_watch;
mod stats;
mod value;
mod verify;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub use acks::Acknowledgements;
pub use clocks::ClockSkewLog;
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

use crate::blocking::BlockingPool;
use crate::crypto::{KeyCache, KeyDeriver};
use crate::storage::{ImportResult, Storage};

/// Handles to everything that a use case needs; one per process, shared by all executors.
#[derive(Debug)]
pub struct Service {
    storage: Arc<Storage>,
    keys: KeyCache,
    deriver: Arc<KeyDeriver>,
    pool: Arc<BlockingPool>,
    cluster: Option<Arc<ClusterView>>,
    federation: Option<Federation>,
    guard: Guard,
    peer_work: peer_work::PeerWork,
    started: Instant,
    /// Time and result of the last count of the entries.
    entries_counted: Mutex<Option<(Instant, u64)>>,
}

impl Service {
    /// Creates the service. `cluster` is `None` on a standalone node.
    pub fn new(
        storage: Arc<Storage>,
        keys: KeyCache,
        deriver: Arc<KeyDeriver>,
        pool: Arc<BlockingPool>,
        cluster: Option<Arc<ClusterView>>,
    ) -> Self {
        Self {
            storage,
            keys,
            deriver,
            pool,
            cluster,
            federation: None,
            guard: Guard::new(None),
            peer_work: peer_work::PeerWork::default(),
            started: Instant::now(),
            entries_counted: Mutex::default(),
        }
    }

    /// Sets the federation, through which entries that this node does not have are requested from peers.
    #[must_use]
    pub fn federated(self, federation: Option<Federation>) -> Self {
        Self { federation, ..self }
    }

    /// Sets the guard that counts failed keys.
    #[must_use]
    pub fn guarded_by(self, guard: Guard) -> Self {
        Self { guard, ..self }
    }

    /// Returns the federation, if this node is part of one.
    pub fn federation(&self) -> Option<&Federation> {
        self.federation.as_ref()
    }

    /// Returns whether this node requests entries that it does not have from peers.
    pub fn is_federated(&self) -> bool {
        self.federation.is_some()
    }

    /// Returns the salt, if this node has one yet.
    pub fn salt(&self) -> Option<Arc<[u8]>> {
        self.storage.salt().current()
    }

    /// Adopts the salt of another node, if this one has none.
    ///
    /// # Errors
    /// Returns [`Error::Unavailable`] if the salt file cannot be written, and [`Error::Busy`] if the pool is busy.
    pub async fn adopt_salt(&self, salt: Vec<u8>) -> Result<ImportResult, Error> {
        match self.storage.change_salt(move |own| own.adopt(&salt)).await? {
            Ok(result) => Ok(result),
            Err(error) => {
                tracing::error!(%error, "cannot adopt the salt of another node");
                Err(Error::Unavailable)
            }
        }
    }

    /// Wipes derived keys that have not been used for a while, and removes failure counts that have decayed.
    pub fn sweep(&self) {
        self.keys.sweep(self.now_seconds());
        self.guard.sweep(self.now_ms());
    }

    /// Returns the time since the start.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    fn now_seconds(&self) -> u64 {
        self.started.elapsed().as_secs()
    }
}
