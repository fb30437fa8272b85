//! Durable storage: the engines that store entries, the caches in front of them, and the salt file.
//!
//! Never sees a user key or a plaintext.

mod digest_table;
mod disk_space;
mod entry_cache;
mod error;
mod page_cache;
mod paths;
mod permissions;
mod salt;
mod salt_file;
pub mod sqlite;
mod sync;
mod write;

pub use digest_table::{DigestTable, bucket_of, root_of};
pub use disk_space::Shortage;
pub use entry_cache::{EntryCache, FillTicket};
pub use error::{BoxedError, Error, OpenError};
pub use page_cache::Page;
pub use permissions::Denials;
pub use salt::SaltProblem;
pub use salt_file::{ImportResult, ReplaceResult, SaltFile};
pub use sqlite::counts::WriterCounts;
pub use sqlite::maintenance;
pub use sqlite::repair::{Repaired, repair_versions};
pub use sqlite::replica::{LogPage, VersionsPage};
pub use sqlite::writer::{OnFatal, OnLogAppend};
pub use sqlite::{Options, Store, VersioningOptions, WallClock};
pub use write::{AppliedChanges, PeerProgress, Write, WriteError, WriteResult};
