//! Why nothing comes of a peer.

use crate::service::node_auth::SharedKey;
use crate::tls::PeerTlsError;

/// Why there is no replication with a peer that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IncompatibleReason {
    /// It has another salt, and both have entries: neither could open the other's.
    #[error("its salt differs and both have entries")]
    SaltDiffers,
    /// It runs on a copy of this node's data directory.
    #[error("it runs on a copy of this node's data directory")]
    CopiedData,
    /// Its data are older than the deletions that this node remembers: what was deleted would come back.
    #[error(
        "its data are older than the deletions that are remembered, it must start with an empty directory"
    )]
    Outdated,
    /// The same, the other way round.
    #[error(
        "this node's data are older than the deletions that are remembered, it must start with an empty directory"
    )]
    OutdatedHere,
    /// It is in the other cluster mode.
    #[error("it runs in another cluster mode")]
    ModeDiffers,
    /// The two do not recognise each other as nodes of one cluster.
    #[error(transparent)]
    Identity(IdentityError),
    /// One of the two does not trust the other.
    #[error(transparent)]
    Distrust(PeerTlsError),
}

/// Why a peer and this node do not recognise each other as nodes of one cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// It refuses the first API key, and there is no cluster secret.
    #[error("it does not accept the API key")]
    ApiKey,
    /// One of the two requires no API key, and neither has a cluster secret.
    #[error("it requires an API key and this node does not, or the reverse")]
    ApiKeyOnOneSide,
    /// It refuses the first cluster secret.
    #[error("it does not accept this node's cluster secret")]
    SecretRefused,
    /// Its first cluster secret is not one of this node's.
    #[error("its cluster secret is not one that this node accepts")]
    SecretDiffers,
    /// Only this node has one.
    #[error("it has no cluster secret and this node has one")]
    SecretOnlyHere,
    /// Only the peer has one.
    #[error("it has a cluster secret and this node has none")]
    SecretOnlyThere,
    /// This is its client port.
    #[error("it serves peers on another port (its OSC_CLUSTER_LISTEN)")]
    OtherPort,
    /// It speaks HTTP, and not as a node of this cluster does.
    #[error("it does not prove that it is a node of this cluster")]
    Unproven,
}

impl IdentityError {
    /// What keeps two nodes apart that authenticate by these kinds of key.
    pub(in crate::cluster) fn of_kinds(own: SharedKey, theirs: SharedKey) -> Option<Self> {
        match (own, theirs) {
            _ if own == theirs => None,
            (SharedKey::Secret, _) => Some(Self::SecretOnlyHere),
            (_, SharedKey::Secret) => Some(Self::SecretOnlyThere),
            _ => Some(Self::ApiKeyOnOneSide),
        }
    }

    /// What a peer says that refuses a key of this kind.
    pub(in crate::cluster) fn refused(own: SharedKey) -> Self {
        match own {
            SharedKey::Secret => Self::SecretRefused,
            SharedKey::ApiKey | SharedKey::Nothing => Self::ApiKey,
        }
    }
}

/// Why a request to a peer came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// No connection, no answer in time, or not an answer.
    #[error("no answer")]
    Unreachable,
    /// The connection leads to another node than the last health check.
    #[error("another node answers")]
    OtherNode,
    /// The two do not recognise each other as nodes of one cluster.
    #[error(transparent)]
    Identity(IdentityError),
    /// There is no connection because of a certificate.
    #[error(transparent)]
    Distrust(PeerTlsError),
    /// 409: the peer has another salt.
    #[error("the salt differs")]
    SaltDiffers,
    /// 200 with something that no node answers to that.
    #[error("its answer is not that of a node")]
    Malformed,
    /// Any other status, or this node's own store failed.
    #[error("the request was refused")]
    Refused,
}
