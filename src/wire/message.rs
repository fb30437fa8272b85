//! Requests to another node, before they are encoded in the version that the two share.

use super::federation::{Find, RemoteWrite, encode_find, encode_query, encode_write};
use super::path;
use super::protocol::Protocol;
use super::replication::{encode_buckets, encode_changes, encode_digest, encode_ids};
use crate::model::{Change, Digest, EntryId};
use crate::storage::NameScan;

/// Request to another node.
#[derive(Debug)]
pub enum Message<'a> {
    /// Requests the salt.
    Salt,
    /// Sends changes.
    Changes {
        /// Fingerprint of the salt that encrypted them.
        salt: u64,
        /// Changes of different entries.
        changes: &'a [Change],
    },
    /// Compares the root digest.
    Digest(Digest),
    /// Requests the versions in these buckets.
    Versions(&'a [usize]),
    /// Requests these entries.
    Entries(&'a [EntryId]),
    /// Looks up an entry.
    Find(Find),
    /// Reads a page of entries.
    Page(NameScan),
    /// Changes an entry.
    Write(RemoteWrite),
}

impl Message<'_> {
    /// Returns the path of the endpoint.
    pub fn path(&self) -> &'static str {
        match self {
            Self::Salt => path::SALT,
            Self::Changes { .. } => path::CHANGES,
            Self::Digest(_) => path::DIGESTS,
            Self::Versions(_) => path::VERSIONS,
            Self::Entries(_) => path::ENTRIES,
            Self::Find(_) => path::FIND,
            Self::Page(_) => path::PAGE,
            Self::Write(_) => path::WRITE,
        }
    }

    /// Encodes the body; `None` for a GET request.
    pub fn encode(&self, protocol: Protocol) -> Option<Vec<u8>> {
        Some(match self {
            Self::Salt => return None,
            Self::Changes { salt, changes } => encode_changes(protocol, *salt, changes),
            Self::Digest(digest) => encode_digest(*digest).into_bytes(),
            Self::Versions(buckets) => encode_buckets(buckets),
            Self::Entries(ids) => encode_ids(protocol, ids),
            Self::Find(find) => encode_find(protocol, find),
            Self::Page(query) => encode_query(protocol, query),
            Self::Write(write) => encode_write(protocol, write),
        })
    }
}
