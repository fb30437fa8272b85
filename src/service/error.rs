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
    /// What a peer sent was sealed with another salt.
    #[error("the salt differs")]
    SaltDiffers,
    /// The nodes have not agreed on a salt yet.
    #[error("no salt yet")]
    NoSalt,
    /// A read failed for a reason nobody outside can help with.
    #[error("store failure")]
    Store(#[source] store::Error),
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Full => Self::DiskFull,
            store::Error::Busy => Self::Busy,
            store::Error::Stopped | store::Error::Damaged { .. } => Self::Unavailable,
            store::Error::Sqlite(_) => Self::Store(error),
        }
    }
}
