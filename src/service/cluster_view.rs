//! Cluster status, shared by request handlers and the cluster driver, and the gates at which requests wait.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::acks::Acknowledgements;
use super::clocks::ClockSkewLog;
use super::gate::Gate;
use super::sequence_watch::SequenceWatch;
use super::{Error, PeerId};
use crate::config::{ClusterConfig, PeerAddress, WriteAcks};
use crate::limits::{JOIN_TIMEOUT, SALT_TIMEOUT};
use crate::model::{Digest, ReplicaId};
use crate::telemetry::{Durations, Histogram};
use crate::wire::Protocol;

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
