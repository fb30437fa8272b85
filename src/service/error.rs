//! What a use case can answer besides success, by what the caller can do. No status codes here.

use crate::store;

/// The failures of all use cases.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Create or move: the place is taken.
    #[error("entry exists")]
    AlreadyExists {
        /// Its key.
        key: String,
        /// Its environment.
        environment: Option<String>,
        /// Whether the caller's key does not open it, as far as is known.
        is_foreign: bool,
    },
    /// No such entry.
    #[error("no such entry")]
    NotFound {
        /// The key that was asked for.
        key: String,
        /// The environment that was asked for.
        environment: Option<String>,
        /// Peers that may have it and did not answer.
        silent: Vec<String>,
    },
    /// No such entry was found, but not all peers have answered, and whoever asks wants to be sure.
    #[error("not all peers have answered")]
    Incomplete {
        /// The key that was asked for.
        key: String,
        /// The environment that was asked for.
        environment: Option<String>,
        /// The peers that did not answer.
        silent: Vec<String>,
    },
    /// The key alone names several entries.
    #[error("several environments have this key")]
    Ambiguous {
        /// The key that was asked for.
        key: String,
        /// The environments that have it.
        environments: Vec<String>,
    },
    /// The user key does not open the entry.
    #[error("the user key does not open the entry")]
    WrongUserKey {
        /// The entry's key.
        key: String,
    },
    /// One of too many failed keys, or a try after them.
    #[error("too many failed keys")]
    TooManyFailures {
        /// How long the next try should wait.
        wait: std::time::Duration,
    },
    /// A failed key whose response is delayed.
    #[error("{error}")]
    Delayed {
        /// By how much.
        delay: std::time::Duration,
        /// The failure.
        error: Box<Error>,
    },
    /// What is stored is no value: written by another program, or damaged.
    #[error("the stored value is unreadable")]
    Unreadable {
        /// The entry's key.
        key: String,
        /// What is wrong, without a byte of it.
        what: &'static str,
    },
    /// Too much is going on: try again in a moment.
    #[error("busy")]
    Busy,
    /// No space is left; reads go on.
    #[error("disk full")]
    DiskFull,
    /// A file of the store was removed or replaced, so a write would be lost; reads go on.
    #[error("a file was removed or replaced")]
    Displaced,
    /// The server is stopping or has lost a part: try again elsewhere or later.
    #[error("unavailable")]
    Unavailable,
    /// The write is durable here and will replicate, but not as many peers have it as it should wait for.
    #[error("not replicated in time")]
    NotReplicated {
        /// How many other nodes have it.
        reached: usize,
        /// How many should.
        wanted: usize,
    },
    /// The stored version is so far ahead of this node's clock that no other node would take a later one.
    #[error("the version of the entry is ahead of the clock")]
    VersionAhead {
        /// The entry's key.
        key: String,
        /// By how many minutes.
        minutes: u64,
    },
    /// What a peer sent was sealed with another salt.
    #[error("the salt differs")]
    SaltDiffers,
    /// The nodes have not agreed on a salt yet.
    #[error("no salt yet")]
    NoSalt,
    /// The node is new in its cluster, and has not compared its entries with its peers yet.
    #[error("entries not compared yet")]
    NotJoined,
    /// A read failed for a reason nobody outside can help with.
    #[error("store failure")]
    Store(#[source] store::Error),
}

impl Error {
    /// For a write that the store has refused, other than because of another write of the entry.
    pub(super) fn version_ahead(key: &str, ahead_ms: u64) -> Self {
        Self::VersionAhead { key: key.to_owned(), minutes: ahead_ms / 60_000 }
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Full => Self::DiskFull,
            store::Error::Busy => Self::Busy,
            store::Error::Displaced => Self::Displaced,
            store::Error::Stopped | store::Error::Damaged { .. } => Self::Unavailable,
            store::Error::Sqlite(_) => Self::Store(error),
        }
    }
}

impl Error {
    /// Whether it tells a caller without the right user key that an entry exists.
    pub(super) fn is_failed_try(&self) -> bool {
        let is_foreign = matches!(self, Self::AlreadyExists { is_foreign: true, .. });
        is_foreign || matches!(self, Self::WrongUserKey { .. } | Self::Ambiguous { .. })
    }

    /// Whether it differs by the existence of an entry that the caller's key does not open.
    pub(super) fn depends_on_names(&self) -> bool {
        self.is_failed_try() || matches!(self, Self::NotFound { .. } | Self::Incomplete { .. })
    }
}
