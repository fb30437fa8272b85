//! Errors of requests to a peer, and reasons why there is no replication with it.

use crate::service::node_auth::SharedKey;
use crate::tls::PeerTlsError;

/// Reason why there is no replication with a peer that replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IncompatibleReason {
    /// The peer has another salt, and both nodes have entries: neither could decrypt the other's.
    #[error("its salt differs and both have entries")]
    SaltDiffers,
    /// The peer runs on a copy of this node's data directory.
    #[error("it runs on a copy of this node's data directory")]
    CopiedData,
    /// The peer's data predates the tombstones that this node retains: deleted entries would come back.
    #[error("its data predates the tombstone retention window; wipe its data directory and rejoin")]
    Outdated,
    /// This node's data predates the tombstones that the peer retains.
    #[error("this node's data predates the tombstone retention window; wipe its data directory and rejoin")]
    OutdatedHere,
    /// The peer runs in the other cluster mode.
    #[error("it runs in another cluster mode")]
    ModeDiffers,
    /// The two nodes do not authenticate each other as members of one cluster.
    #[error(transparent)]
    Identity(IdentityError),
    /// One of the two does not trust the other's certificate.
    #[error(transparent)]
    Tls(PeerTlsError),
}

/// Reason why a peer and this node do not authenticate each other as members of one cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The peer refuses this node's first API key, and there is no cluster secret.
    #[error("it does not accept the API key")]
    ApiKey,
    /// Only one of the two requires an API key, and neither has a cluster secret.
    #[error("it requires an API key and this node does not, or the reverse")]
    ApiKeyOnOneSide,
    /// The peer refuses this node's first cluster secret.
    #[error("it does not accept this node's cluster secret")]
    SecretRefused,
    /// The peer's first cluster secret is not one of this node's.
    #[error("its cluster secret is not one that this node accepts")]
    SecretDiffers,
    /// Only this node has a cluster secret.
    #[error("it has no cluster secret and this node has one")]
    SecretOnlyHere,
    /// Only the peer has a cluster secret.
    #[error("it has a cluster secret and this node has none")]
    SecretOnlyThere,
    /// The address is that of the peer's client port.
    #[error("it serves peers on another port (its OSC_CLUSTER_LISTEN)")]
    OtherPort,
    /// The other side uses HTTP, but does not complete the handshake of a node of this cluster.
    #[error("it does not prove that it is a node of this cluster")]
    Unproven,
}

impl IdentityError {
    /// Returns why two nodes that authenticate by these kinds of key are incompatible, if they are.
    pub(in crate::cluster) fn of_kinds(own: SharedKey, theirs: SharedKey) -> Option<Self> {
        match (own, theirs) {
            _ if own == theirs => None,
            (SharedKey::Secret, _) => Some(Self::SecretOnlyHere),
            (_, SharedKey::Secret) => Some(Self::SecretOnlyThere),
            _ => Some(Self::ApiKeyOnOneSide),
        }
    }

    /// Returns the error for a peer that refuses this node's key, which is of this kind.
    pub(in crate::cluster) fn refused(own: SharedKey) -> Self {
        match own {
            SharedKey::Secret => Self::SecretRefused,
            SharedKey::ApiKey | SharedKey::Nothing => Self::ApiKey,
        }
    }
}

/// Error of a request to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// No connection, no response in time, or not an HTTP response.
    #[error("no reply")]
    Unreachable,
    /// The connection leads to another process than the last health check.
    #[error("another node replied")]
    OtherNode,
    /// The two nodes do not authenticate each other as members of one cluster.
    #[error(transparent)]
    Identity(IdentityError),
    /// The connection failed because of a certificate.
    #[error(transparent)]
    Distrust(PeerTlsError),
    /// 409: the peer has another salt.
    #[error("the salt differs")]
    SaltDiffers,
    /// A 200 response whose content no node would send.
    #[error("malformed reply")]
    Malformed,
    /// Any other status, or a local store error.
    #[error("the request was refused")]
    Refused,
}
