//! What a node does for its peers, and what it asks of itself to keep up with them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::acks::Acknowledgements;
use super::clocks::Clocks;
use super::exchange::{encode_changes, encode_versions};
use super::gate::Gate;
use super::sequence_watch::SequenceWatch;
use super::{Error, PeerId, Service};
use crate::config::{ClusterConfig, PeerAddress, WriteAcks};
use crate::limits::VERSIONS_BYTES_PER_MESSAGE;
use crate::model::{Change, Digest, EntryId, ReplicaId, TombstoneHorizon, Version};
use crate::store::{AppliedChanges, OpenError, OutboxPage, PeerProgress, Store, VersionsPage, Yielded};
use crate::telemetry::{Durations, Histogram};

/// What the cluster has found out, for those who ask, and those who wait for the salt.
#[derive(Debug)]
pub struct ClusterView {
    /// Random for this process.
    pub instance: u64,
    members: RwLock<Arc<Vec<Member>>>,
    salt: Gate,
    joining: Gate,
    has_joined: AtomicBool,
    outbox: Arc<SequenceWatch>,
    acknowledgements: Acknowledgements,
    clocks: Clocks,
    write_acks: WriteAcks,
    /// Of comparisons with peers; the cluster's thread adds.
    comparisons: Durations,
}

/// One peer, as it is told to those who ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which peer this is.
    pub id: PeerId,
    /// Its address in the configuration.
    pub address: String,
    /// The number of its data directory, once it has told.
    pub node: Option<ReplicaId>,
    /// `unknown`, `healthy`, `down`, `self` or `refused`.
    pub state: &'static str,
    /// Whether a question to it may be worth while.
    pub may_answer: bool,
    /// Why it is refused.
    pub reason: Option<String>,
    /// Whether this node should take no requests for that reason.
    pub blocks_readiness: bool,
    /// Milliseconds since it last answered.
    pub last_contact_ms: Option<u64>,
    /// How long the oldest own change that it has not confirmed has waited, zero if there is none; `None`
    /// until it was reached.
    pub lag_ms: Option<u64>,
    /// Own changes that it has not confirmed; `None` until it was reached.
    pub outbox_length: Option<i64>,
    /// The digest of everything that it holds, as it told when the two last compared.
    pub digest: Option<Digest>,
    /// Milliseconds since it was last found to hold the same.
    pub synced_ms: Option<u64>,
}

impl ClusterView {
    /// All peers, of none of which anything is known yet: a write that comes before the cluster's executor
    /// has begun must wait for as many as any other. `outbox` is raised by the store.
    pub fn new(instance: u64, outbox: Arc<SequenceWatch>, config: &ClusterConfig) -> Self {
        Self {
            instance,
            members: RwLock::new(Arc::new(unknown_members(config))),
            salt: Gate::default(),
            joining: Gate::default(),
            has_joined: AtomicBool::new(false),
            outbox,
            acknowledgements: Acknowledgements::default(),
            clocks: Clocks::default(),
            write_acks: config.write_acks,
            comparisons: Durations::default(),
        }
    }

    /// Notes how long a comparison with a peer took. For the cluster's thread only.
    pub fn note_comparison(&self, duration: Duration) {
        self.comparisons.add(duration);
    }

    /// How long comparisons took.
    pub fn comparisons(&self) -> Histogram {
        self.comparisons.sum()
    }

    /// The peers as they were last seen.
    pub fn members(&self) -> Arc<Vec<Member>> {
        Arc::clone(&self.members.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Shows the peers as they are now.
    pub fn publish(&self, members: Vec<Member>) {
        *self.members.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(members);
    }

    /// Closed until requests may use the salt.
    pub fn salt(&self) -> &Gate {
        &self.salt
    }

    /// Closed while a new node gets what its peers have.
    pub fn joining(&self) -> &Gate {
        &self.joining
    }

    /// Whether this node may be asked: it is not new, or has compared with its peers, or waited for them in vain.
    pub fn has_joined(&self) -> bool {
        self.has_joined.load(Ordering::Acquire)
    }

    /// Ends the waiting for good.
    pub fn set_joined(&self) {
        self.has_joined.store(true, Ordering::Release);
        self.joining.open();
    }

    /// The last line of the outbox, and a way to wait for the next one.
    pub fn outbox(&self) -> &SequenceWatch {
        &self.outbox
    }

    /// Which peers have which own changes.
    pub fn acknowledgements(&self) -> &Acknowledgements {
        &self.acknowledgements
    }

    /// Changes that were refused for their versions.
    pub fn clocks(&self) -> &Clocks {
        &self.clocks
    }

    /// Waits until as many peers have all own changes so far as a write needs.
    ///
    /// # Errors
    /// [`Error::NotReplicated`] when that takes too long; the write stays, and will replicate.
    pub(super) async fn wait_for_write_acks(&self) -> Result<(), Error> {
        let peers_count = self.members().iter().filter(|member| member.state != "self").count();
        let wanted = match self.write_acks {
            WriteAcks::Local => return Ok(()),
            // This node has it already: with it, more than half of all.
            WriteAcks::Quorum => peers_count.div_ceil(2),
            WriteAcks::All => peers_count,
        };
        let line = self.outbox.value();
        match self.acknowledgements.wait_for(line, wanted).await {
            Ok(()) => Ok(()),
            Err(_) => Err(Error::NotReplicated { reached: self.acknowledgements.reached(line), wanted }),
        }
    }
}

/// Whether a peer would take it. Another program may have written what no client can, and an older release took
/// that up; sent along, it would have all other changes of its message refused.
fn is_exchangeable(change: &Change) -> bool {
    change.id.check().is_ok() && change.content.as_ref().is_none_or(|content| content.check().is_ok())
}

/// The peers of which nothing is known yet.
fn unknown_members(config: &ClusterConfig) -> Vec<Member> {
    let unknown = |(number, peer): (u32, &PeerAddress)| Member {
        id: PeerId::new(number),
        address: peer.to_string(),
        node: None,
        state: "unknown",
        may_answer: true,
        reason: None,
        blocks_readiness: false,
        last_contact_ms: None,
        lag_ms: None,
        outbox_length: None,
        digest: None,
        synced_ms: None,
    };
    (0..).zip(&config.peers).map(unknown).collect()
}

/// Which salt this is, without telling it.
pub fn salt_fingerprint(salt: &[u8]) -> u64 {
    let digest = Sha256::digest(salt);
    let (first, _) = digest.as_slice().split_at(8);
    first.iter().fold(0, |fingerprint, byte| fingerprint << 8 | u64::from(*byte))
}

impl Service {
    /// What the cluster knows; `None` on a node that stands alone.
    pub fn cluster(&self) -> Option<&Arc<ClusterView>> {
        self.cluster.as_ref()
    }

    /// The number of the data directory; `None` on a node that never was one of a cluster.
    pub fn node(&self) -> Option<ReplicaId> {
        self.store.node()
    }

    /// Waits until the nodes of the cluster have agreed on a salt; at once on a node that stands alone,
    /// or that has one already.
    ///
    /// # Errors
    /// [`Error::NoSalt`] when they have not in time.
    pub async fn salt_is_agreed(&self) -> Result<(), Error> {
        match &self.cluster {
            Some(cluster) if self.store.salt().current().is_none() => cluster.salt.pass(Error::NoSalt).await,
            _ => Ok(()),
        }
    }

    /// Waits until this node may say what is not there. A new node of a cluster lacks what its peers have: it would
    /// answer 404 for their entries, and create others in their place.
    ///
    /// # Errors
    /// [`Error::NotJoined`] when it takes too long.
    pub(super) async fn has_joined(&self) -> Result<(), Error> {
        match &self.cluster {
            Some(cluster) => cluster.joining.pass(Error::NotJoined).await,
            None => Ok(()),
        }
    }

    /// The fingerprint of the salt, and whether anything was sealed with it.
    pub fn salt_in_use(&self) -> (Option<u64>, bool) {
        let salt = self.store.salt();
        (salt.current().map(|salt| salt_fingerprint(&salt)), salt.is_pinned())
    }

    /// How far back this node knows of deletions.
    pub fn horizon(&self) -> TombstoneHorizon {
        self.store.horizon()
    }

    /// The digest of everything; `None` as long as a large store is being added up.
    pub fn root_digest(&self) -> Option<Digest> {
        self.store.buckets().root()
    }

    /// The digest of each bucket.
    ///
    /// # Errors
    /// [`Error::Unavailable`] as long as a large store is being added up.
    pub fn bucket_digests(&self) -> Result<Vec<Digest>, Error> {
        self.store.buckets().all().ok_or(Error::Unavailable)
    }

    /// Applies changes of another node, those that win and are not ahead of this node's clock.
    ///
    /// # Errors
    /// [`Error::SaltDiffers`] when they were sealed with another salt: they would open nowhere here.
    pub async fn apply(&self, salt: u64, changes: Vec<Change>) -> Result<AppliedChanges, Error> {
        let own = self.store.salt().current().filter(|own| salt_fingerprint(own) == salt);
        if !own.is_some_and(|own| self.store.salt().pin(&own)) {
            return Err(Error::SaltDiffers);
        }
        let receiver = self.store.apply(changes)?;
        match receiver.await.map_err(|_| Error::Unavailable)? {
            Ok(applied) => {
                if let Some(cluster) = &self.cluster {
                    cluster.clocks.note(&applied.ahead);
                }
                Ok(applied)
            }
            Err(crate::store::WriteError::Store(error)) => Err(error.into()),
            Err(_) => Err(Error::Unavailable),
        }
    }

    /// How many milliseconds a version of another node is ahead of this node's clock, if that is too much.
    pub fn ahead_ms(&self, version: Version) -> Option<u64> {
        self.store.ahead_ms(version)
    }

    /// Keeps what is known of a peer.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn note(&self, note: PeerProgress) -> Result<(), Error> {
        let receiver = self.store.note(note)?;
        match receiver.await.map_err(|_| Error::Unavailable)? {
            Ok(()) => Ok(()),
            Err(crate::store::WriteError::Store(error)) => Err(error.into()),
            Err(_) => Err(Error::Unavailable),
        }
    }

    /// Own changes after a line of the outbox.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn outbox(&self, after: i64) -> Result<OutboxPage, Error> {
        self.read_store(move |store| {
            let mut page = store.outbox(after)?;
            page.changes.retain(is_exchangeable);
            Ok(page)
        })
        .await
    }

    /// The first line of the outbox, and the last one ever written.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn outbox_range(&self) -> Result<(i64, i64), Error> {
        self.read_store(Store::outbox_range).await
    }

    /// The line of the outbox up to which a peer has everything, if it was ever told.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn acknowledged(&self, peer: ReplicaId) -> Result<Option<i64>, Error> {
        let all = self.read_store(Store::acknowledged).await?;
        Ok(all.into_iter().find(|(node, _)| *node == peer).map(|(_, line)| line))
    }

    /// The versions of all entries of some buckets, as [`Store::versions`] gives them.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn versions(&self, buckets: Vec<usize>, bytes_max: usize) -> Result<VersionsPage, Error> {
        self.read_store(move |store| {
            let mut page = store.versions(&buckets, bytes_max)?;
            page.known.retain(|known| known.id.check().is_ok());
            Ok(page)
        })
        .await
    }

    /// The answer to a peer that asks for the versions of some buckets.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn versions_message(&self, buckets: Vec<usize>) -> Result<Vec<u8>, Error> {
        self.read_store(move |store| {
            let mut page = store.versions(&buckets, VERSIONS_BYTES_PER_MESSAGE)?;
            page.known.retain(|known| known.id.check().is_ok());
            Ok(encode_versions(&page))
        })
        .await
    }

    /// The answer to a peer that asks for entries by name: as many as fit one message.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn entries_message(&self, ids: Vec<EntryId>) -> Result<Vec<u8>, Error> {
        let salt = self.salt_in_use().0.unwrap_or(0);
        self.read_store(move |store| {
            let mut changes = store.changes(&ids)?;
            changes.retain(is_exchangeable);
            Ok(encode_changes(salt, &changes))
        })
        .await
    }

    /// Entries by name, as many as fit one message.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn changes(&self, ids: Vec<EntryId>) -> Result<Vec<Change>, Error> {
        self.read_store(move |store| {
            let mut changes = store.changes(&ids)?;
            changes.retain(is_exchangeable);
            Ok(changes)
        })
        .await
    }

    /// Makes a new salt, as the node of the cluster that was chosen to.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn make_salt(&self) -> Result<(), Error> {
        self.on_store(|store| store.salt().current_or_new().map(|_| ())).await
    }

    /// Takes another node's salt instead of an own one that sealed nothing.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn yield_salt_to(&self, other: Vec<u8>) -> Result<Yielded, Error> {
        let keys = self.keys.clone();
        self.on_store(move |store| {
            let yielded = store.salt().replace_unused(&other)?;
            if yielded == Yielded::Taken {
                // Keys derived with the old salt must not be used any more, whoever waits for this.
                keys.clear();
            }
            Ok(yielded)
        })
        .await
    }

    /// Runs something that may block and is not one of many on the pool.
    ///
    /// # Errors
    /// When the pool is busy.
    pub async fn on_pool<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let receiver = self.pool.submit(job).map_err(|_| Error::Busy)?;
        receiver.await.map_err(|_| Error::Unavailable)
    }

    pub(super) async fn read_store<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Store) -> Result<T, crate::store::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let store = Arc::clone(&self.store);
        Ok(self.on_pool(move || read(&store)).await??)
    }

    async fn on_store<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Store) -> Result<T, OpenError> + Send + 'static,
    ) -> Result<T, Error> {
        let store = Arc::clone(&self.store);
        self.on_pool(move || job(&store)).await?.map_err(|error| {
            tracing::error!(%error, "the salt cannot be written");
            match error {
                OpenError::NoRoom { .. } => Error::DiskFull,
                _ => Error::Unavailable,
            }
        })
    }
}
