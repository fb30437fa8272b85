//! Errors of the use cases, distinguished by what the caller can do. HTTP status codes are assigned elsewhere.

use crate::storage;

/// Error of a use case.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The target of a create or a move is taken.
    #[error("entry exists")]
    AlreadyExists {
        /// Key of the existing entry.
        key: String,
        /// Environment of the existing entry.
        environment: Option<String>,
        /// Whether the caller's user key does not decrypt it, or may not: the value of a peer's entry is not checked.
        is_foreign: bool,
    },
    /// The entry does not exist.
    #[error("no such entry")]
    NotFound {
        /// Requested key.
        key: String,
        /// Requested environment.
        environment: Option<String>,
        /// Peers that may have it but did not reply.
        silent: Vec<String>,
    },
    /// The entry was not found, but some peers did not reply and strict mode is on.
    #[error("some peers did not reply")]
    Incomplete {
        /// Requested key.
        key: String,
        /// Requested environment.
        environment: Option<String>,
        /// Peers that did not reply.
        silent: Vec<String>,
    },
    /// The key without an environment is ambiguous.
    #[error("the key exists in several environments")]
    Ambiguous {
        /// Requested key.
        key: String,
        /// Environments that have this key.
        environments: Vec<String>,
    },
    /// The user key does not decrypt the entry.
    #[error("the user key does not decrypt the entry")]
    WrongUserKey {
        /// Key of the entry.
        key: String,
    },
    /// One failed key too many, or an attempt after it.
    #[error("too many failed keys")]
    TooManyFailures {
        /// Time until the next attempt is allowed.
        wait: std::time::Duration,
    },
    /// A failed key whose response is delayed.
    #[error("{error}")]
    Delayed {
        /// Delay of the response.
        delay: std::time::Duration,
        /// Error to report after the delay.
        error: Box<Error>,
    },
    /// The stored value is not valid: another program has written it, or it is damaged.
    #[error("the stored value is unreadable")]
    Unreadable {
        /// Key of the entry.
        key: String,
        /// Reason, which quotes nothing of the value.
        what: &'static str,
    },
    /// The server is overloaded; retry in a moment.
    #[error("busy")]
    Busy,
    /// The disk is full; reads still work.
    #[error("disk full")]
    DiskFull,
    /// A file of the store was removed or replaced, so a write would be lost; reads still work.
    #[error("a file was removed or replaced")]
    Displaced,
    /// The server is stopping, or one of its parts has failed; retry later or on another node.
    #[error("unavailable")]
    Unavailable,
    /// The write is durable on this node and will replicate, but too few peers have acknowledged it in time.
    #[error("not replicated in time")]
    NotReplicated {
        /// Number of other nodes that have acknowledged it.
        reached: usize,
        /// Number of acknowledgements required.
        wanted: usize,
    },
    /// The stored version is so far ahead of this node's clock that no other node would accept a later one.
    #[error("the version of the entry is ahead of the clock")]
    VersionAhead {
        /// Key of the entry.
        key: String,
        /// Minutes by which it is ahead.
        minutes: u64,
    },
    /// The entries that a peer sent were encrypted with another salt.
    #[error("the salt differs")]
    SaltDiffers,
    /// The nodes have not agreed on a salt yet.
    #[error("no salt yet")]
    NoSalt,
    /// The node is new in its cluster and has not finished its first anti-entropy round yet.
    #[error("the node has not joined yet")]
    NotJoined,
    /// A read failed for an internal reason that the client cannot act on.
    #[error("store error")]
    Store(#[source] storage::Error),
}

impl Error {
    /// Creates the error for a write that the store refuses because the stored version is ahead of the clock.
    pub(super) fn version_ahead(key: &str, ahead_ms: u64) -> Self {
        Self::VersionAhead { key: key.to_owned(), minutes: ahead_ms / 60_000 }
    }
}

impl From<storage::Error> for Error {
    fn from(error: storage::Error) -> Self {
        match error {
            storage::Error::Full => Self::DiskFull,
            storage::Error::Busy => Self::Busy,
            storage::Error::Displaced => Self::Displaced,
            storage::Error::Stopped | storage::Error::Damaged { .. } => Self::Unavailable,
            storage::Error::Engine(_) => Self::Store(error),
        }
    }
}

impl Error {
    /// Returns whether the error reveals to a caller without the right user key that an entry exists.
    pub(super) fn is_failed_try(&self) -> bool {
        let is_foreign = matches!(self, Self::AlreadyExists { is_foreign: true, .. });
        is_foreign || matches!(self, Self::WrongUserKey { .. } | Self::Ambiguous { .. })
    }

    /// Returns whether the error depends on the existence of an entry that the caller's user key does not decrypt.
    pub(super) fn depends_on_names(&self) -> bool {
        self.is_failed_try() || matches!(self, Self::NotFound { .. } | Self::Incomplete { .. })
    }
}
