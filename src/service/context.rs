//! What the use cases share: storage, keys, threads and cluster.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Error;
use super::cluster_view::{ClusterView, salt_fingerprint};
use super::federation::Federation;
use super::guard::Guard;
use super::retries::UnconfirmedWrites;
use crate::blocking::BlockingPool;
use crate::crypto::{KeyCache, KeyDeriver};
use crate::limits::PEER_INLINE_BYTES;
use crate::storage::{OpenError, SaltStore, Storage};

/// Handles to everything that a use case needs; one per process, shared by all executors.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) storage: Arc<Storage>,
    pub(super) keys: KeyCache,
    pub(super) deriver: Arc<KeyDeriver>,
    pub(super) pool: Arc<BlockingPool>,
    pub(super) cluster: Option<Arc<ClusterView>>,
    pub(super) federation: Option<Federation>,
    pub(super) guard: Guard,
    pub(super) unconfirmed: UnconfirmedWrites,
    pub(super) started: Instant,
}

impl Context {
    /// Returns the cluster status; `None` on a standalone node.
    pub(super) fn cluster(&self) -> Option<&Arc<ClusterView>> {
        self.cluster.as_ref()
    }

    /// Waits until this node has joined its cluster. A new node lacks the entries of its peers: it would report them as
    /// not found, and create other entries of the same names.
    ///
    /// # Errors
    /// Returns [`Error::NotJoined`] after the timeout.
    pub(super) async fn has_joined(&self) -> Result<(), Error> {
        match &self.cluster {
            Some(cluster) => cluster.joining().pass(Error::NotJoined).await,
            None => Ok(()),
        }
    }

    /// Waits until as many peers as a write requires have acknowledged the last local change.
    ///
    /// # Errors
    /// Returns [`Error::NotReplicated`] after the timeout.
    pub(super) async fn is_acknowledged(&self) -> Result<(), Error> {
        match &self.cluster {
            Some(cluster) => cluster.wait_for_write_acks().await,
            None => Ok(()),
        }
    }

    /// Returns the salt, if this node has one yet.
    pub(super) fn salt(&self) -> Option<Arc<[u8]>> {
        self.storage.salt().current()
    }

    /// Returns the fingerprint of the salt, and whether the salt has encrypted anything.
    pub(super) fn salt_in_use(&self) -> (Option<u64>, bool) {
        let salt = self.storage.salt();
        (salt.current().map(|salt| salt_fingerprint(&salt)), salt.is_pinned())
    }

    /// Waits until the nodes of the cluster have agreed on a salt. Returns immediately on a standalone node, and on a
    /// node that already has a salt.
    ///
    /// # Errors
    /// Returns [`Error::NoSalt`] after the timeout.
    pub(super) async fn salt_is_agreed(&self) -> Result<(), Error> {
        match &self.cluster {
            Some(cluster) if self.storage.salt().current().is_none() => {
                cluster.salt().pass(Error::NoSalt).await
            }
            _ => Ok(()),
        }
    }

    /// Generates a salt, unless there is one. In a cluster, only the node that was chosen calls this.
    ///
    /// # Errors
    /// Fails if the salt file cannot be written.
    pub(super) async fn generate_salt(&self) -> Result<(), Error> {
        self.change_salt(|salt| salt.current_or_new().map(|_| ())).await
    }

    /// Runs a job that may write the salt file.
    ///
    /// # Errors
    /// Fails if the file cannot be written, or if the pool is busy.
    pub(super) async fn change_salt<T: Send + 'static>(
        &self,
        job: impl FnOnce(&SaltStore) -> Result<T, OpenError> + Send + 'static,
    ) -> Result<T, Error> {
        self.storage.change_salt(job).await?.map_err(|error| {
            tracing::error!(%error, "cannot write the salt file");
            match error {
                OpenError::NoSpace { .. } => Error::DiskFull,
                _ => Error::Unavailable,
            }
        })
    }

    /// Runs a blocking job on the pool, without batching it with others.
    ///
    /// # Errors
    /// Fails if the pool is busy.
    pub(super) async fn on_pool<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let receiver = self.pool.submit(job).map_err(|_| Error::Busy)?;
        receiver.await.map_err(|_| Error::Unavailable)
    }

    /// Encodes a message of about `bytes` bytes: in place if it is short, otherwise on the pool.
    pub(super) async fn encoded(
        &self,
        bytes: usize,
        encode: impl FnOnce() -> Vec<u8> + Send + 'static,
    ) -> Result<Vec<u8>, Error> {
        match bytes <= PEER_INLINE_BYTES {
            true => Ok(encode()),
            false => self.on_pool(encode).await,
        }
    }

    /// Returns the time since the start.
    pub(super) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn now_seconds(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.uptime().as_millis()).unwrap_or(u64::MAX)
    }
}
