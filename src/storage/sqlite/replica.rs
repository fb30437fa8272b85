//! Reads for peers: changes since a position in the replication log, versions of a bucket, and entries by name. All
//! values are encrypted, and the reads run on a thread that may block.

use std::collections::HashSet;

use rusqlite::Connection;

use super::reader::{Readers, exact};
use super::versions::{LAST_SEQUENCE, digest_at, entry_id, known, version_at};
use crate::limits::{CHANGES_BYTES_PER_MESSAGE, CHANGES_PER_MESSAGE_MAX};
use crate::model::{Change, EntryId, ReplicaId, SealedEntry, VersionedDigest};
use crate::storage::error::Error;
use crate::storage::replication::{LogPage, VersionsPage};

/// Size of a version in a message, without the name of its entry.
const VERSION_BYTES: usize = 128;

impl Readers {
    /// Reads the local changes after a position in the replication log, up to the size of one message.
    pub(super) fn log_changes(&self, node: ReplicaId, after: i64) -> Result<LogPage, Error> {
        self.with(|connection| {
            // A single snapshot, so that no version is paired with the content of another.
            let snapshot = connection.unchecked_transaction()?;
            outbox(&snapshot, node, after)
        })
    }

    /// Reads the first position that is in the replication log, and the last one that was ever assigned.
    pub(super) fn log_range(&self) -> Result<(i64, i64), Error> {
        self.with(|connection| {
            let sql = "SELECT ifnull(min(sequence), 0), ifnull((SELECT seq FROM sqlite_sequence \
                       WHERE name = 'osc_outbox'), 0) FROM osc_outbox";
            Ok(connection.prepare_cached(sql)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?)
        })
    }

    /// Reads for each known peer the position in the replication log up to which it has the local changes.
    pub(super) fn acknowledged(&self) -> Result<Vec<(ReplicaId, i64)>, Error> {
        self.with(|connection| {
            let mut statement = connection.prepare_cached("SELECT node, acknowledged FROM osc_peers")?;
            let rows =
                statement.query_map([], |row| Ok((ReplicaId::from_database(row.get(0)?), row.get(1)?)))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Reads the versions of all entries in some buckets: whole buckets, at least one, until names and versions amount
    /// to about `bytes_max` bytes.
    pub(super) fn versions(&self, buckets: &[usize], bytes_max: usize) -> Result<VersionsPage, Error> {
        self.with(|connection| {
            let sql = r#"SELECT "key", environment, stamp, node, digest FROM osc_versions WHERE bucket = ?1"#;
            let mut statement = connection.prepare_cached(sql)?;
            let (mut page, mut bytes) = (VersionsPage::default(), 0_usize);
            for bucket in buckets {
                if bytes >= bytes_max {
                    break;
                }
                let mut rows = statement.query([i64::try_from(*bucket).unwrap_or(-1)])?;
                while let Some(row) = rows.next()? {
                    let id = entry_id(row.get(0)?, row.get(1)?);
                    bytes += id.key.len() + id.environment.as_ref().map_or(0, String::len) + VERSION_BYTES;
                    page.known.push(VersionedDigest {
                        id,
                        version: version_at(row, 2)?,
                        digest: digest_at(row, 4)?,
                    });
                }
                page.buckets_count += 1;
            }
            Ok(page)
        })
    }

    /// Reads the current state of entries, up to the size of one message; at least one if any exists.
    pub(super) fn changes(&self, ids: &[EntryId]) -> Result<Vec<Change>, Error> {
        self.with(|connection| {
            let snapshot = connection.unchecked_transaction()?;
            let (mut changes, mut bytes) = (Vec::new(), 0);
            for id in ids {
                let Some(change) = change(&snapshot, id)? else { continue };
                bytes += weight(&change);
                if !changes.is_empty() && bytes > CHANGES_BYTES_PER_MESSAGE {
                    break;
                }
                changes.push(change);
            }
            Ok(changes)
        })
    }
}

fn outbox(connection: &Connection, node: ReplicaId, after: i64) -> Result<LogPage, Error> {
    let mut statement = connection.prepare_cached(
        r#"SELECT sequence, "key", environment FROM osc_outbox WHERE sequence > ?1 ORDER BY sequence"#,
    )?;
    let mut rows = statement.query([after])?;
    let mut page = LogPage { sequence: after, ..LogPage::default() };
    let (mut seen, mut bytes) = (HashSet::new(), 0);
    while let Some(row) = rows.next()? {
        let sequence = row.get(0)?;
        let id = entry_id(row.get(1)?, row.get(2)?);
        if !seen.contains(&id) {
            if page.changes.len() >= CHANGES_PER_MESSAGE_MAX {
                page.more = true;
                return Ok(page);
            }
            // A change that a peer has since overwritten is pushed by that peer.
            if let Some(change) = change(connection, &id)?.filter(|change| change.version.replica == node) {
                bytes += weight(&change);
                if !page.changes.is_empty() && bytes > CHANGES_BYTES_PER_MESSAGE {
                    page.more = true;
                    return Ok(page);
                }
                page.changes.push(change);
            }
            seen.insert(id);
        }
        page.sequence = sequence;
    }
    // The page ends at the last assigned position, even if the last ones were trimmed: otherwise the peer would request
    // them indefinitely.
    let last = connection.prepare_cached(LAST_SEQUENCE)?.query_row([], |row| row.get(0))?;
    page.sequence = page.sequence.max(last);
    Ok(page)
}

fn change(connection: &Connection, id: &EntryId) -> Result<Option<Change>, Error> {
    let Some(known) = known(connection, id)? else { return Ok(None) };
    let content = match known.digest == crate::model::Digest::default() {
        true => None,
        false => {
            match exact(connection, &id.key, id.environment.as_deref())?.as_ref().and_then(SealedEntry::body)
            {
                // Another program has just removed or corrupted the row; the writer will detect it.
                None => return Ok(None),
                content => content,
            }
        }
    };
    Ok(Some(Change { id: id.clone(), version: known.version, body: content }))
}

fn weight(change: &Change) -> usize {
    let content = change.body.as_ref();
    change.id.key.len() + 64 + content.map_or(0, |content| content.ciphertext.as_bytes().len())
}
