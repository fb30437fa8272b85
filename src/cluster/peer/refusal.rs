//! Why nothing comes of a peer.

use crate::tls::Distrust;

/// Why there is no replication with a peer that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
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
    /// It does not accept the API key.
    #[error("it does not accept the API key")]
    ApiKey,
    /// One of the two does not trust the other.
    #[error(transparent)]
    Distrust(Distrust),
}

impl Refusal {
    /// Whether this node is wrong, or nobody can tell which of the two is: it should take no requests then.
    pub fn is_in_the_way(self) -> bool {
        // Nodes do not get the certificates of each other's authorities in the same moment, and a single one with a
        // wrong certificate must not keep all others from serving.
        !matches!(self, Self::Outdated | Self::Distrust(_))
    }
}

/// Why a request to a peer came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No connection, no answer in time, or not an answer.
    #[error("no answer")]
    Unreachable,
    /// 403.
    #[error("the API key is not accepted")]
    ApiKey,
    /// There is no connection because of a certificate.
    #[error(transparent)]
    Distrust(Distrust),
    /// 409: the peer has another salt.
    #[error("the salt differs")]
    SaltDiffers,
    /// Any other status, or this node's own store failed.
    #[error("the request was refused")]
    Refused,
}
