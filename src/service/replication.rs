//! Use cases of replication, for requests of peers and for the cluster driver, and the cluster status.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::acks::Acknowledgements;
use super::clocks::ClockSkewLog;
use super::gate::Gate;
use super::sequence_watch::SequenceWatch;
use super::{Error, PeerId, Service};
use crate::config::{ClusterConfig, PeerAddress, WriteAcks};
use crate::limits::{JOIN_TIMEOUT, PEER_INLINE_BYTES, SALT_TIMEOUT, VERSIONS_BYTES_PER_MESSAGE};
use crate::model::{Change, Digest, EntryId, ReplicaId, TombstoneHorizon, Version};
use crate::storage::{
    AppliedChanges, LogPage, OpenError, PeerProgress, ReplaceResult, ReplicationLog, SaltStore, VersionsPage,
};
use crate::telemetry::{Durations, Histogram};
use crate::wire::Protocol;
use crate::wire::replication::{encode_changes, encode_versions};

/// Cluster status shared with request handlers, and the gates at which requests wait for the cluster.
#[derive(Debug)]
pub struct ClusterView {
    /// Instance ID, random for each process.
    pub instance: u64,
    members: RwLock<Arc<Vec<Member>>>,
    salt: Gate,
    joining: Gate,
    has_joined: AtomicBool,
    outbox: Arc<SequenceWatch>,
    acknowledgements: Acknowledgements,
    clocks: ClockSkewLog,
    write_acks: WriteAcks,
    /// Durations of anti-entropy rounds, recorded by the cluster thread.
    comparisons: Durations,
}

/// Status of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Identifier of the peer.
    pub id: PeerId,
    /// Address of the peer in the configuration.
    pub address: String,
    /// Replica ID of its data directory, once it has reported it.
    pub node: Option<ReplicaId>,
    /// `unknown`, `healthy`, `down`, `self` or `refused`.
    pub state: &'static str,
    /// Whether the peer may reply to a request.
    pub may_reply: bool,
    /// Reason why the peer is refused, or a problem that does not prevent replication.
    pub reason: Option<String>,
    /// Whether that reason makes this node unready.
    pub blocks_readiness: bool,
    /// Milliseconds since the last response of the peer.
    pub last_contact_ms: Option<u64>,
    /// Age in milliseconds of the oldest local change that the peer has not confirmed, 0 if there is none; `None` until
    /// the peer has been reached.
    pub lag_ms: Option<u64>,
    /// Number of local changes that the peer has not confirmed; `None` until the peer has been reached.
    pub outbox_length: Option<i64>,
    /// Root digest of the peer at the last comparison.
    pub digest: Option<Digest>,
    /// Milliseconds since the two nodes were last in sync.
    pub synced_ms: Option<u64>,
    /// Version of the protocol in which this node sends requests to the peer; `None` until it has been reached.
    pub protocol: Option<Protocol>,
}

impl ClusterView {
    /// Creates the view with all configured peers in state `unknown`: a write that arrives before the cluster executor
    /// has started must wait for as many peers as any other. The store advances `outbox`.
    pub fn new(instance: u64, outbox: Arc<SequenceWatch>, config: &ClusterConfig) -> Self {
        Self {
            instance,
            members: RwLock::new(Arc::new(unknown_members(config))),
            salt: Gate::new(SALT_TIMEOUT),
            joining: Gate::new(JOIN_TIMEOUT),
            has_joined: AtomicBool::new(false),
            outbox,
            acknowledgements: Acknowledgements::default(),
            clocks: ClockSkewLog::default(),
            write_acks: config.write_acks,
            comparisons: Durations::default(),
        }
    }

    /// Records the duration of an anti-entropy round. Must only be called on the cluster thread.
    pub fn record_anti_entropy_round(&self, duration: Duration) {
        self.comparisons.add(duration);
    }

    /// Returns the durations of anti-entropy rounds.
    pub fn comparisons(&self) -> Histogram {
        self.comparisons.sum()
    }

    /// Returns the status of the peers as last published.
    pub fn members(&self) -> Arc<Vec<Member>> {
        Arc::clone(&self.members.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Publishes the current status of the peers.
    pub fn publish(&self, members: Vec<Member>) {
        *self.members.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(members);
    }

    /// Returns the gate that is closed until requests may use the salt.
    pub fn salt(&self) -> &Gate {
        &self.salt
    }

    /// Returns the gate that is closed while a new node fetches the entries of its peers.
    pub fn joining(&self) -> &Gate {
        &self.joining
    }

    /// Returns whether this node has joined its cluster: it is not new, or its first anti-entropy rounds have ended, or
    /// the wait for them has timed out.
    pub fn has_joined(&self) -> bool {
        self.has_joined.load(Ordering::Acquire)
    }

    /// Marks the node as joined, permanently, and opens the gate.
    pub fn set_joined(&self) {
        self.has_joined.store(true, Ordering::Release);
        self.joining.open();
    }

    /// Returns the last position in the replication log, which callers can wait on.
    pub fn outbox(&self) -> &SequenceWatch {
        &self.outbox
    }

    /// Returns the acknowledgements of local changes by peers.
    pub fn acknowledgements(&self) -> &Acknowledgements {
        &self.acknowledgements
    }

    /// Returns the record of changes refused because their versions are ahead of the clock.
    pub fn clocks(&self) -> &ClockSkewLog {
        &self.clocks
    }

    /// Waits until the number of peers that a write requires have acknowledged the last local change.
    ///
    /// # Errors
    /// Returns [`Error::NotReplicated`] after the timeout; the write remains stored and will replicate.
    pub(super) async fn wait_for_write_acks(&self) -> Result<(), Error> {
        let peers_count = self.members().iter().filter(|member| member.state != "self").count();
        let wanted = match self.write_acks {
            WriteAcks::Local => return Ok(()),
            // This node counts too, so together they are a majority.
            WriteAcks::Quorum => peers_count.div_ceil(2),
            WriteAcks::All => peers_count,
        };
        let position = self.outbox.value();
        let outcome = self.acknowledgements.wait_for(position, wanted).await;
        outcome.map_err(|reached| Error::NotReplicated { reached, wanted })
    }
}

/// Returns whether a peer would accept a change. Another program may have written entries that no client can create,
/// and an older release adopted them; one such change would make the peer reject its whole message.
fn is_exchangeable(change: &Change) -> bool {
    change.id.check().is_ok() && change.body.as_ref().is_none_or(|content| content.check().is_ok())
}

/// Approximate size of a version in a message.
const VERSION_BYTES: usize = 160;

/// Returns the configured peers in state `unknown`.
fn unknown_members(config: &ClusterConfig) -> Vec<Member> {
    let unknown = |(number, peer): (u32, &PeerAddress)| Member {
        id: PeerId::new(number),
        address: peer.to_string(),
        node: None,
        state: "unknown",
        may_reply: true,
        reason: None,
        blocks_readiness: false,
        last_contact_ms: None,
        lag_ms: None,
        outbox_length: None,
        digest: None,
        synced_ms: None,
        protocol: None,
    };
    (0..).zip(&config.peers).map(unknown).collect()
}

/// Computes the fingerprint of a salt, which identifies the salt without revealing it.
pub fn salt_fingerprint(salt: &[u8]) -> u64 {
    let digest = Sha256::digest(salt);
    let (first, _) = digest.as_slice().split_at(8);
    first.iter().fold(0, |fingerprint, byte| fingerprint << 8 | u64::from(*byte))
}

impl Service {
    /// Returns the cluster status; `None` on a standalone node.
    pub fn cluster(&self) -> Option<&Arc<ClusterView>> {
        self.cluster.as_ref()
    }

    /// Returns the replica ID of the data directory; `None` on a node that was never in a cluster.
    pub fn node(&self) -> Option<ReplicaId> {
        self.storage.replication().map(ReplicationLog::replica)
    }

    /// Waits until the nodes of the cluster have agreed on a salt. Returns immediately on a standalone node, and on a
    /// node that already has a salt.
    ///
    /// # Errors
    /// Returns [`Error::NoSalt`] after the timeout.
    pub async fn salt_is_agreed(&self) -> Result<(), Error> {
        match &self.cluster {
            Some(cluster) if self.storage.salt().current().is_none() => {
                cluster.salt.pass(Error::NoSalt).await
            }
            _ => Ok(()),
        }
    }

    /// Waits until this node has joined its cluster. A new node lacks the entries of its peers: it would report them as
    /// not found, and create other entries of the same names.
    ///
    /// # Errors
    /// Returns [`Error::NotJoined`] after the timeout.
    pub(super) async fn has_joined(&self) -> Result<(), Error> {
        match &self.cluster {
            Some(cluster) => cluster.joining.pass(Error::NotJoined).await,
            None => Ok(()),
        }
    }

    /// Returns the fingerprint of the salt, and whether the salt has encrypted anything.
    pub fn salt_in_use(&self) -> (Option<u64>, bool) {
        let salt = self.storage.salt();
        (salt.current().map(|salt| salt_fingerprint(&salt)), salt.is_pinned())
    }

    /// Returns the tombstone horizon of this node.
    pub fn horizon(&self) -> TombstoneHorizon {
        self.storage.replication().map_or(TombstoneHorizon::default(), ReplicationLog::horizon)
    }

    /// Returns the digest of the whole store; `None` while the digests of a large store are being loaded.
    pub fn root_digest(&self) -> Option<Digest> {
        self.storage.replication()?.digests().root()
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
        let own = self.storage.salt().current().filter(|own| salt_fingerprint(own) == salt);
        if !own.is_some_and(|own| self.storage.salt().pin(&own)) {
            return Err(Error::SaltDiffers);
        }
        match self.log()?.apply(changes).await {
            Ok(applied) => {
                if let Some(cluster) = &self.cluster {
                    cluster.clocks.note(&applied.ahead);
                }
                Ok(applied)
            }
            Err(crate::storage::WriteError::Store(error)) => Err(error.into()),
            Err(_) => Err(Error::Unavailable),
        }
    }

    /// Returns by how many milliseconds a version of another node is ahead of this node's clock, if that is too far.
    pub fn ahead_ms(&self, version: Version) -> Option<u64> {
        self.storage.replication()?.ahead_ms(version)
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
        self.encoded(page.known.len() * VERSION_BYTES, move || encode_versions(protocol, &page)).await
    }

    /// Encodes the reply to a peer that requests entries by name: as many as fit one message.
    ///
    /// # Errors
    /// Fails if the store cannot be read.
    pub async fn entries_message(&self, protocol: Protocol, ids: Vec<EntryId>) -> Result<Vec<u8>, Error> {
        let salt = self.salt_in_use().0.unwrap_or(0);
        let changes = self.changes(ids).await?;
        let sealed_bytes =
            |change: &Change| change.body.as_ref().map_or(0, |body| body.ciphertext.as_bytes().len());
        let bytes = changes.iter().map(sealed_bytes).sum();
        self.encoded(bytes, move || encode_changes(protocol, salt, &changes)).await
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
        self.storage.replication().ok_or(Error::Unavailable)
    }

    /// Generates a salt, unless there is one. In a cluster, only the node that was chosen calls this.
    ///
    /// # Errors
    /// Fails if the salt file cannot be written.
    pub async fn generate_salt(&self) -> Result<(), Error> {
        self.change_salt(|salt| salt.current_or_new().map(|_| ())).await
    }

    /// Replaces a salt that has not encrypted anything by that of another node.
    ///
    /// # Errors
    /// Fails if the salt file cannot be written.
    pub async fn replace_unused_salt(&self, other: Vec<u8>) -> Result<ReplaceResult, Error> {
        let keys = self.keys.clone();
        self.change_salt(move |salt| {
            let outcome = salt.replace_unused(&other)?;
            if outcome == ReplaceResult::Replaced {
                // Done in the job, so that keys derived with the old salt are discarded even if the caller is
                // cancelled.
                keys.clear();
            }
            Ok(outcome)
        })
        .await
    }

    /// Runs a blocking job on the pool, without batching it with others.
    ///
    /// # Errors
    /// Fails if the pool is busy.
    pub async fn on_pool<T: Send + 'static>(
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

    async fn change_salt<T: Send + 'static>(
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
}
