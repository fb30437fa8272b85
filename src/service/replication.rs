//! Use cases of replication, for requests of peers and for the cluster driver.

use std::sync::Arc;

use super::Error;
use super::cluster_view::salt_fingerprint;
use super::context::Context;
use crate::limits::VERSIONS_BYTES_PER_MESSAGE;
use crate::model::{Change, Digest, EntryId, ReplicaId, TombstoneHorizon, Version};
use crate::storage::{AppliedChanges, LogPage, PeerProgress, ReplicationLog, VersionsPage};
use crate::wire::Protocol;
use crate::wire::replication::{encode_changes, encode_versions};

/// Returns whether a peer would accept a change. Another program may have written entries that no client can create,
/// and an older release adopted them; one such change would make the peer reject its whole message.
fn is_exchangeable(change: &Change) -> bool {
    change.id.check().is_ok() && change.body.as_ref().is_none_or(|content| content.check().is_ok())
}

/// Approximate size of a version in a message.
const VERSION_BYTES: usize = 160;

/// Use cases of replication, for peers and for the cluster driver.
#[derive(Debug)]
pub struct Replication {
    pub(super) context: Arc<Context>,
}

impl Replication {
    /// Returns the replica ID of the data directory; `None` on a node that was never in a cluster.
    pub fn node(&self) -> Option<ReplicaId> {
        self.context.storage.replication().map(ReplicationLog::replica)
    }

    /// Returns the tombstone horizon of this node.
    pub fn horizon(&self) -> TombstoneHorizon {
        self.context.storage.replication().map_or(TombstoneHorizon::default(), ReplicationLog::horizon)
    }

    /// Returns the digest of the whole store; `None` while the digests of a large store are being loaded.
    pub fn root_digest(&self) -> Option<Digest> {
        self.context.storage.replication()?.digests().root()
    }

    /// Returns the digest of each bucket.
    ///
    /// # Errors
    /// Returns [`Error::Unavailable`] while the digests of a large store are being loaded.
    pub fn bucket_digests(&self) -> Result<Vec<Digest>, Error> {
        self.log()?.digests().all().ok_or(Error::Unavailable)
    }

    /// Applies those changes of another node that are newer and not too far ahead of this node's clock.
    ///
    /// # Errors
    /// Returns [`Error::SaltDiffers`] if they were encrypted with another salt, since no key on this node could decrypt
    /// them. Fails if the store cannot be written.
    pub async fn apply(&self, salt: u64, changes: Vec<Change>) -> Result<AppliedChanges, Error> {
        let own = self.context.storage.salt().current().filter(|own| salt_fingerprint(own) == salt);
        if !own.is_some_and(|own| self.context.storage.salt().pin(&own)) {
            return Err(Error::SaltDiffers);
        }
        match self.log()?.apply(changes).await {
            Ok(applied) => {
                if let Some(cluster) = &self.context.cluster {
                    cluster.clocks().note(&applied.ahead);
                }
                Ok(applied)
            }
            Err(crate::storage::WriteError::Store(error)) => Err(error.into()),
            Err(_) => Err(Error::Unavailable),
        }
    }

    /// Returns by how many milliseconds a version of another node is ahead of this node's clock, if that is too far.
    pub fn ahead_ms(&self, version: Version) -> Option<u64> {
        self.context.storage.replication()?.ahead_ms(version)
    }

    /// Persists the progress of a peer.
    ///
    /// # Errors
    /// Fails if the store cannot be written.
    pub async fn persist_progress(&self, progress: PeerProgress) -> Result<(), Error> {
        match self.log()?.record_progress(progress).await {
            Ok(()) => Ok(()),
            Err(crate::storage::WriteError::Store(error)) => Err(error.into()),
            Err(_) => Err(Error::Unavailable),
        }
    }

    /// Reads the local changes after a position in the replication log.
    ///
    /// # Errors
    /// Fails if the store cannot be read.
    pub async fn log_changes(&self, after: i64) -> Result<LogPage, Error> {
        let mut page = self.log()?.log_changes(after).await?;
        page.changes.retain(is_exchangeable);
        Ok(page)
    }

    /// Reads the first position that is in the replication log, and the last one that was ever assigned.
    ///
    /// # Errors
    /// Fails if the store cannot be read.
    pub async fn log_range(&self) -> Result<(i64, i64), Error> {
        Ok(self.log()?.log_range().await?)
    }

    /// Reads the position in the replication log up to which a peer has the local changes, if it was ever persisted.
    ///
    /// # Errors
    /// Fails if the store cannot be read.
    pub async fn acknowledged(&self, peer: ReplicaId) -> Result<Option<i64>, Error> {
        let all = self.log()?.acknowledged().await?;
        Ok(all.into_iter().find(|(node, _)| *node == peer).map(|(_, position)| position))
    }

    /// Reads the versions of all entries in some buckets, as [`ReplicationLog::versions`] does, without entries that
    /// peers refuse.
    ///
    /// # Errors
    /// Fails if the store cannot be read.
    pub async fn versions(&self, buckets: Vec<usize>, bytes_max: usize) -> Result<VersionsPage, Error> {
        let mut page = self.log()?.versions(buckets, bytes_max).await?;
        page.known.retain(|known| known.id.check().is_ok());
        Ok(page)
    }

    /// Encodes the reply to a peer that requests the versions in some buckets.
    ///
    /// # Errors
    /// Fails if the store cannot be read.
    pub async fn versions_message(&self, protocol: Protocol, buckets: Vec<usize>) -> Result<Vec<u8>, Error> {
        let page = self.versions(buckets, VERSIONS_BYTES_PER_MESSAGE).await?;
        self.context.encoded(page.known.len() * VERSION_BYTES, move || encode_versions(protocol, &page)).await
    }

    /// Encodes the reply to a peer that requests entries by name: as many as fit one message.
    ///
    /// # Errors
    /// Fails if the store cannot be read.
    pub async fn entries_message(&self, protocol: Protocol, ids: Vec<EntryId>) -> Result<Vec<u8>, Error> {
        let salt = self.context.salt_in_use().0.unwrap_or(0);
        let changes = self.changes(ids).await?;
        let sealed_bytes =
            |change: &Change| change.body.as_ref().map_or(0, |body| body.ciphertext.as_bytes().len());
        let bytes = changes.iter().map(sealed_bytes).sum();
        self.context.encoded(bytes, move || encode_changes(protocol, salt, &changes)).await
    }

    /// Reads entries by name, as many as fit one message.
    ///
    /// # Errors
    /// Fails if the store cannot be read.
    pub async fn changes(&self, ids: Vec<EntryId>) -> Result<Vec<Change>, Error> {
        let mut changes = self.log()?.changes(ids).await?;
        changes.retain(is_exchangeable);
        Ok(changes)
    }

    fn log(&self) -> Result<&dyn ReplicationLog, Error> {
        self.context.storage.replication().ok_or(Error::Unavailable)
    }
}
