//! What a peer may ask of this store: changes since a line of the outbox, versions of a bucket,
//! entries by name. All of it is sealed, and read on a thread that may block.

use std::collections::HashSet;

use rusqlite::Connection;

use super::error::Error;
use super::reader::{Readers, content_of, exact};
use super::versions::{LAST_SEQUENCE, digest_at, entry_id, known, version_at};
use crate::limits::{CHANGES_BYTES_PER_MESSAGE, CHANGES_PER_MESSAGE_MAX};
use crate::model::{Change, EntryId, ReplicaId, VersionedDigest};

/// The versions of all entries of some buckets, deleted ones too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VersionsPage {
    /// The versions.
    pub known: Vec<VersionedDigest>,
    /// Of how many of the buckets that were asked for: the first ones.
    pub buckets_count: usize,
}

/// What a version takes in a message, besides the name of its entry.
const VERSION_BYTES: usize = 128;

/// Own changes that a peer does not have yet.
#[derive(Debug, Default)]
pub struct OutboxPage {
    /// The changes, each entry once, as it is now.
    pub changes: Vec<Change>,
    /// The line of the outbox up to which these are; the peer has everything so far once it has them.
    pub sequence: i64,
    /// Lines after that.
    pub more: bool,
}

impl Readers {
    /// Own changes after a line of the outbox, as many as fit one message.
    pub(super) fn outbox(&self, node: ReplicaId, after: i64) -> Result<OutboxPage, Error> {
        self.with(|connection| {
            // One snapshot, so that no version is told with another version's content.
            let snapshot = connection.unchecked_transaction()?;
            outbox(&snapshot, node, after)
        })
    }

    /// How many lines of the outbox come after this one, and the first and last line there are.
    pub(super) fn outbox_range(&self) -> Result<(i64, i64), Error> {
        self.with(|connection| {
            let sql = "SELECT ifnull(min(sequence), 0), ifnull((SELECT seq FROM sqlite_sequence \
                       WHERE name = 'osc_outbox'), 0) FROM osc_outbox";
            Ok(connection.prepare_cached(sql)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?)
        })
    }

    /// The line up to which each known peer has the own changes.
    pub(super) fn acknowledged(&self) -> Result<Vec<(ReplicaId, i64)>, Error> {
        self.with(|connection| {
            let mut statement = connection.prepare_cached("SELECT node, acknowledged FROM osc_peers")?;
            let rows =
                statement.query_map([], |row| Ok((ReplicaId::from_database(row.get(0)?), row.get(1)?)))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// The versions of all entries of these buckets, of whole ones until there are about `bytes_max` bytes
    /// of names and versions, and of one at least.
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

    /// These entries as they are now, as many as fit one message; at least one if there is one.
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

fn outbox(connection: &Connection, node: ReplicaId, after: i64) -> Result<OutboxPage, Error> {
    let mut statement = connection.prepare_cached(
        r#"SELECT sequence, "key", environment FROM osc_outbox WHERE sequence > ?1 ORDER BY sequence"#,
    )?;
    let mut rows = statement.query([after])?;
    let mut page = OutboxPage { sequence: after, ..OutboxPage::default() };
    let (mut seen, mut bytes) = (HashSet::new(), 0);
    while let Some(row) = rows.next()? {
        let sequence = row.get(0)?;
        let id = entry_id(row.get(1)?, row.get(2)?);
        if !seen.contains(&id) {
            if page.changes.len() >= CHANGES_PER_MESSAGE_MAX {
                page.more = true;
                return Ok(page);
            }
            // What a peer has overwritten since is that peer's to tell.
            if let Some(change) = change(connection, &id)?.filter(|change| change.version.node == node) {
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
    // To the very end, also when the last lines were dropped: whoever asks would ask for them forever.
    let last = connection.prepare_cached(LAST_SEQUENCE)?.query_row([], |row| row.get(0))?;
    page.sequence = page.sequence.max(last);
    Ok(page)
}

fn change(connection: &Connection, id: &EntryId) -> Result<Option<Change>, Error> {
    let Some(known) = known(connection, id)? else { return Ok(None) };
    let content = match known.digest == crate::model::Digest::default() {
        true => None,
        false => match exact(connection, &id.key, id.environment.as_deref())?.as_ref().and_then(content_of) {
            // Another program has just removed or spoilt it; the writer will notice.
            None => return Ok(None),
            content => content,
        },
    };
    Ok(Some(Change { id: id.clone(), version: known.version, content }))
}

fn weight(change: &Change) -> usize {
    let content = change.content.as_ref();
    change.id.key.len() + 64 + content.map_or(0, |content| content.ciphertext.as_bytes().len())
}
