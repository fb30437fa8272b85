//! Versions of entries, tombstones and the replication log, which a store in a cluster maintains.
//!
//! All changes are made on the writer thread, in the transaction that changes the row. A store that was never in a
//! cluster has no versions and incurs no cost for them. The replication log is the table `osc_outbox`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::error::into_rusqlite;
use super::{reader, schema};
use crate::limits::{CLOCK_AHEAD_MAX, REPLICATION_LOG_COUNT_MAX};
use crate::model::SealedEntry;
use crate::model::{
    Change, Digest, EntryId, HlcTimestamp, ReplicaId, SealedBody, Timestamp, TombstoneHorizon, Version,
    VersionedDigest,
};
use crate::storage::digest::{Delta, bucket_of, digest_of};
use crate::storage::digest_table::DigestTable;
use crate::storage::error::Error;
use crate::storage::versioning::{self, VersioningOptions, WallClock};
use crate::storage::write::WriteError;

/// Versions as maintained by the writer.
pub(super) struct Versions {
    node: ReplicaId,
    wall_clock: WallClock,
    is_clustered: bool,
    buckets: Arc<DigestTable>,
    horizon: Arc<Mutex<TombstoneHorizon>>,
    /// Last position in the replication log.
    last_sequence: i64,
    /// Number of versions ahead of the clock in the buckets loaded since startup.
    ahead_count: i64,
}

/// Triggers that record the entries changed by external programs. They are disabled on the writer's connection.
const TRIGGERS: &str = r#"
CREATE TRIGGER IF NOT EXISTS osc_foreign_insert AFTER INSERT ON configurations BEGIN
    INSERT OR REPLACE INTO osc_foreign VALUES (new."key", ifnull(new.environment, ''));
END;
CREATE TRIGGER IF NOT EXISTS osc_foreign_update AFTER UPDATE ON configurations BEGIN
    INSERT OR REPLACE INTO osc_foreign VALUES (old."key", ifnull(old.environment, ''));
    INSERT OR REPLACE INTO osc_foreign VALUES (new."key", ifnull(new.environment, ''));
END;
CREATE TRIGGER IF NOT EXISTS osc_foreign_delete AFTER DELETE ON configurations BEGIN
    INSERT OR REPLACE INTO osc_foreign VALUES (old."key", ifnull(old.environment, ''));
END;
"#;

/// Query for the last assigned position of the replication log, even if the log is empty: positions are never reused.
pub(super) const LAST_SEQUENCE: &str =
    "SELECT ifnull((SELECT seq FROM sqlite_sequence WHERE name = 'osc_outbox'), 0)";

/// Returns whether this store has ever been in a cluster.
pub(super) fn are_kept(connection: &Connection) -> rusqlite::Result<bool> {
    Ok(schema::meta(connection, "node")?.is_some())
}

impl Versions {
    /// Opens the versions, and assigns one to every entry if there were none. The digests must be loaded afterwards by
    /// [`Self::load_next_bucket`].
    pub(super) fn open(
        connection: &mut Connection,
        options: VersioningOptions,
        buckets: Arc<DigestTable>,
        horizon: Arc<Mutex<TombstoneHorizon>>,
    ) -> rusqlite::Result<Self> {
        let new_replica = options.new_replica();
        let VersioningOptions { is_clustered, wall_clock, .. } = options;
        let transaction = Transaction::new(connection, TransactionBehavior::Immediate)?;
        // This may be the first commit of a cycle; if it is not, it records the same values again.
        schema::begin_cycle(&transaction)?;
        transaction.execute_batch(TRIGGERS)?;
        let node = match schema::meta(&transaction, "node")? {
            Some(stored) => ReplicaId::from_database(stored),
            None => {
                schema::set_meta(&transaction, "node", new_replica.to_database())?;
                adopt_rows_without_version(&transaction)?;
                new_replica
            }
        };
        let timestamp = |name| {
            Ok::<_, rusqlite::Error>(
                schema::meta(&transaction, name)?
                    .map_or(HlcTimestamp::default(), HlcTimestamp::from_database),
            )
        };
        *lock(&horizon) =
            TombstoneHorizon { synced: timestamp("synced")?, forgotten: timestamp("forgotten")? };
        let last_sequence = transaction.query_row(LAST_SEQUENCE, [], |row| row.get(0))?;
        transaction.commit()?;
        buckets.forget();
        Ok(Self { node, wall_clock, is_clustered, buckets, horizon, last_sequence, ahead_count: 0 })
    }

    pub(super) fn node(&self) -> ReplicaId {
        self.node
    }

    /// Returns the last position in the replication log.
    pub(super) fn last_sequence(&self) -> i64 {
        self.last_sequence
    }

    /// Notes the state that moved with a committed transaction.
    pub(super) fn note_committed(&mut self, delta: &Delta) {
        let noted = delta.state();
        self.last_sequence = noted.outbox_line.unwrap_or(self.last_sequence);
    }

    /// Loads the next bucket of digests; returns false if all are loaded. Loading all at once would delay the opening
    /// of a large store. Commits may occur between two buckets: a change is applied only to loaded buckets, and is
    /// included in the others when they are loaded.
    pub(super) fn load_next_bucket(&mut self, connection: &Connection) -> rusqlite::Result<bool> {
        let Some(bucket) = self.buckets.next_unloaded() else {
            self.warn_of_ahead();
            return Ok(false);
        };
        self.ahead_count += self.count_ahead(connection, bucket)?;
        let sql = "SELECT digest FROM osc_versions WHERE bucket = ?1 AND digest IS NOT NULL";
        let mut statement = connection.prepare_cached(sql)?;
        let digests =
            statement.query_map([i64::try_from(bucket).unwrap_or_default()], |row| digest_at(row, 0))?;
        self.buckets.load_bucket(&digests.collect::<rusqlite::Result<Vec<_>>>()?);
        Ok(true)
    }

    fn count_ahead(&self, connection: &Connection, bucket: usize) -> rusqlite::Result<i64> {
        let latest = HlcTimestamp::from_milliseconds((self.wall_clock)()).later(CLOCK_AHEAD_MAX);
        connection
            .prepare_cached("SELECT count(*) FROM osc_versions WHERE bucket = ?1 AND stamp > ?2")?
            .query_row((i64::try_from(bucket).unwrap_or_default(), latest.to_database()), |row| row.get(0))
    }

    /// Logs one warning about versions ahead of the clock, once all buckets are loaded.
    fn warn_of_ahead(&mut self) {
        let count = std::mem::take(&mut self.ahead_count);
        if count > 0 {
            tracing::warn!(
                count,
                "versions are more than {} min ahead of this machine's clock: other nodes refuse them, and clients \
                 cannot change their entries; correct the clock, or stop the node and run \
                 `opensecureconf repair --versions`",
                CLOCK_AHEAD_MAX.as_secs() / 60
            );
        }
    }

    /// Assigns the next version to a local change, and appends the change to the replication log.
    ///
    /// # Errors
    /// Returns [`WriteError::Ahead`] if the replaced version is too far ahead of the clock.
    pub(super) fn record_own(
        &mut self,
        connection: &Connection,
        delta: &mut Delta,
        id: &EntryId,
        content: Option<&SealedBody>,
    ) -> Result<(), WriteError> {
        let before = known(connection, id)?;
        let seen = before.as_ref().map_or(HlcTimestamp::default(), |known| known.version.timestamp);
        let version = versioning::issue((self.wall_clock)(), self.node, seen, self.is_clustered)?;
        record(connection, delta, before.as_ref(), id, version, content)?;
        connection
            .prepare_cached(r#"INSERT INTO osc_outbox ("key", environment) VALUES (?1, ?2)"#)?
            .execute((&id.key, id.environment.as_deref().unwrap_or_default()))?;
        delta.state_mut().outbox_line = Some(connection.last_insert_rowid());
        Ok(())
    }

    /// Returns by how many milliseconds a change of another node is ahead of this node's clock, if that exceeds
    /// [`CLOCK_AHEAD_MAX`].
    pub(super) fn ahead_ms(&self, change: &Change) -> Option<u64> {
        versioning::change_ahead_ms(change, (self.wall_clock)())
    }

    /// Records the version of a change of another node if it is newer than the local one, and returns whether it is.
    pub(super) fn record_if_newer(
        &self,
        connection: &Connection,
        delta: &mut Delta,
        change: &Change,
    ) -> rusqlite::Result<bool> {
        let before = known(connection, &change.id)?;
        let digest = change
            .body
            .as_ref()
            .map_or(Digest::default(), |content| digest_of(&change.id, change.version, content));
        if !versioning::supersedes(change, digest, before.as_ref()) {
            return Ok(false);
        }
        record(connection, delta, before.as_ref(), &change.id, change.version, change.body.as_ref())?;
        Ok(true)
    }

    /// Records the changes of external programs as local changes, and returns their number.
    pub(super) fn adopt_external_changes(
        &mut self,
        connection: &Connection,
        delta: &mut Delta,
    ) -> Result<usize, Error> {
        let mut statement = connection.prepare_cached(r#"SELECT "key", environment FROM osc_foreign"#)?;
        let ids: Vec<EntryId> = statement
            .query_map([], |row| Ok(entry_id(row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        let mut postponed = Vec::new();
        // Entries that no client can name are not replicated: peers would refuse them.
        for id in ids.iter().filter(|id| id.check().is_ok()) {
            let row = reader::exact(connection, &id.key, id.environment.as_deref())?;
            let content = row.as_ref().and_then(exchangeable_content_of);
            match self.record_own(connection, delta, id, content.as_ref()) {
                // The change stays recorded until the version is repaired.
                Err(WriteError::Ahead { ahead_ms }) => {
                    tracing::warn!(
                        ahead_ms,
                        "external change postponed: the version of its entry is ahead of the clock"
                    );
                    postponed.push(id);
                }
                Err(WriteError::Store(error)) => return Err(error),
                Ok(()) | Err(WriteError::AlreadyExists | WriteError::Changed) => {}
            }
        }
        connection.execute("DELETE FROM osc_foreign", [])?;
        for id in &postponed {
            connection
                .prepare_cached("INSERT INTO osc_foreign VALUES (?1, ?2)")?
                .execute((&id.key, id.environment.as_deref().unwrap_or_default()))?;
        }
        Ok(ids.len() - postponed.len())
    }

    /// Records that a peer has all changes up to `sequence`, and trims the replication log to the changes that some
    /// peer lacks.
    pub(super) fn acknowledge(
        &self,
        connection: &Connection,
        peer: ReplicaId,
        sequence: i64,
    ) -> rusqlite::Result<()> {
        connection
            .prepare_cached(
                "INSERT INTO osc_peers (node, acknowledged, synced) VALUES (?1, ?2, 0)
                 ON CONFLICT (node) DO UPDATE SET acknowledged = max(acknowledged, ?2)",
            )?
            .execute((peer.to_database(), sequence))?;
        connection
            .prepare_cached(
                "DELETE FROM osc_outbox WHERE sequence <= (SELECT min(acknowledged) FROM osc_peers)",
            )?
            .execute([])?;
        Ok(())
    }

    /// Records that a peer was in sync with this node at `stamp`. The horizon moves to `forgotten`, too, because this
    /// node may have never received the tombstones that the peer has collected.
    pub(super) fn note_synced(
        &self,
        connection: &Connection,
        peer: ReplicaId,
        stamp: HlcTimestamp,
        forgotten: HlcTimestamp,
    ) -> rusqlite::Result<()> {
        connection
            .prepare_cached(
                "INSERT INTO osc_peers (node, acknowledged, synced) VALUES (?1, ?3, ?2)
                 ON CONFLICT (node) DO UPDATE SET synced = max(synced, ?2)",
            )?
            .execute((peer.to_database(), stamp.to_database(), self.last_sequence))?;
        self.move_horizon(connection, TombstoneHorizon { synced: stamp, forgotten })
    }

    /// Drops the progress of nodes that are not peers any more, which would retain tombstones and the replication log
    /// indefinitely.
    pub(super) fn drop_removed_peers(
        &self,
        connection: &Connection,
        peers: &[ReplicaId],
        before: HlcTimestamp,
    ) -> rusqlite::Result<()> {
        let known: Vec<ReplicaId> = connection
            .prepare_cached("SELECT node FROM osc_peers WHERE synced < ?1")?
            .query_map([before.to_database()], |row| Ok(ReplicaId::from_database(row.get(0)?)))?
            .collect::<rusqlite::Result<_>>()?;
        for node in known.into_iter().filter(|node| !peers.contains(node)) {
            connection
                .prepare_cached("DELETE FROM osc_peers WHERE node = ?1")?
                .execute([node.to_database()])?;
        }
        Ok(())
    }

    /// Collects the tombstones older than `before` that every known peer has had for the grace period, and trims the replication log to its
    /// bound. Returns the number of collected tombstones.
    pub(super) fn collect(&self, connection: &Connection, before: HlcTimestamp) -> rusqlite::Result<usize> {
        let count = i64::try_from(REPLICATION_LOG_COUNT_MAX).unwrap_or(i64::MAX);
        connection.execute(
            "DELETE FROM osc_outbox WHERE sequence <= (SELECT max(sequence) FROM osc_outbox) - ?1",
            [count],
        )?;
        let all_synced: Option<i64> =
            connection.query_row("SELECT min(synced) FROM osc_peers", [], |row| row.get(0))?;
        let Some(all_synced) = all_synced.map(HlcTimestamp::from_database) else { return Ok(0) };
        let forgotten = versioning::collectable(before, all_synced);
        self.move_horizon(connection, TombstoneHorizon { forgotten, ..TombstoneHorizon::default() })?;
        connection.execute(
            "DELETE FROM osc_versions WHERE digest IS NULL AND stamp < ?1",
            [forgotten.to_database()],
        )
    }

    /// Moves the horizon, only ever forward. In memory it moves before the commit; if that commit fails, it is merely
    /// ahead of the database.
    fn move_horizon(&self, connection: &Connection, to: TombstoneHorizon) -> rusqlite::Result<()> {
        // The values of a peer are untrusted.
        let to = to.clamped_at((self.wall_clock)());
        let mut horizon = lock(&self.horizon);
        if to.synced > horizon.synced {
            schema::set_meta(connection, "synced", to.synced.to_database())?;
            horizon.synced = to.synced;
        }
        if to.forgotten > horizon.forgotten {
            schema::set_meta(connection, "forgotten", to.forgotten.to_database())?;
            horizon.forgotten = to.forgotten;
        }
        Ok(())
    }
}

/// Writes the version of one entry, and adds the change of its digest to `delta`.
fn record(
    connection: &Connection,
    delta: &mut Delta,
    before: Option<&VersionedDigest>,
    id: &EntryId,
    version: Version,
    content: Option<&SealedBody>,
) -> rusqlite::Result<()> {
    let digest = content.map_or(Digest::default(), |content| digest_of(id, version, content));
    let stored = (digest != Digest::default()).then(|| digest.0.to_be_bytes());
    connection
        .prepare_cached(
            r#"INSERT INTO osc_versions (bucket, "key", environment, stamp, node, digest)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6)
               ON CONFLICT (bucket, "key", environment) DO UPDATE SET stamp = ?4, node = ?5, digest = ?6"#,
        )?
        .execute(params![
            bucket_number(id),
            id.key,
            id.environment.as_deref().unwrap_or_default(),
            version.timestamp.to_database(),
            version.replica.to_database(),
            stored
        ])?;
    delta.replace(id, before.map_or(Digest::default(), |known| known.digest), digest);
    Ok(())
}

/// Reads the version of one entry, deleted or not.
pub(super) fn known(connection: &Connection, id: &EntryId) -> rusqlite::Result<Option<VersionedDigest>> {
    connection
        .prepare_cached(
            r#"SELECT stamp, node, digest FROM osc_versions
               WHERE bucket = ?1 AND "key" = ?2 AND environment = ?3"#,
        )?
        .query_row((bucket_number(id), &id.key, id.environment.as_deref().unwrap_or_default()), |row| {
            Ok(VersionedDigest { id: id.clone(), version: version_at(row, 0)?, digest: digest_at(row, 2)? })
        })
        .optional()
}

fn bucket_number(id: &EntryId) -> i64 {
    i64::try_from(bucket_of(id)).unwrap_or_default()
}

pub(super) fn version_at(row: &rusqlite::Row<'_>, index: usize) -> rusqlite::Result<Version> {
    let stamp = HlcTimestamp::from_database(row.get(index)?);
    Ok(Version { timestamp: stamp, replica: ReplicaId::from_database(row.get(index + 1)?) })
}

pub(super) fn digest_at(row: &rusqlite::Row<'_>, index: usize) -> rusqlite::Result<Digest> {
    let bytes: Option<[u8; 16]> = row.get(index)?;
    Ok(bytes.map_or(Digest::default(), |bytes| Digest(u128::from_be_bytes(bytes))))
}

pub(super) fn entry_id(key: String, environment: String) -> EntryId {
    EntryId { key, environment: (!environment.is_empty()).then_some(environment) }
}

/// Assigns versions to all entries of a store that had none. A version has the time of the entry's last change, if it
/// is known, and no replica ID, so that copies of one entry on two nodes are equal.
fn adopt_rows_without_version(connection: &Connection) -> rusqlite::Result<()> {
    let sql = format!("SELECT {} FROM configurations", reader::COLUMNS);
    let mut statement = connection.prepare(&sql)?;
    let mut rows = statement.query([])?;
    let mut delta = Delta::default();
    while let Some(row) = rows.next()? {
        let Some(row) = reader::parse_row(row).map_err(into_rusqlite)? else { continue };
        // An entry that no client can have created cannot be decrypted anywhere, and is not replicated.
        let Some(content) = exchangeable_content_of(&row).filter(|_| row.entry_id().check().is_ok()) else {
            continue;
        };
        let changed = row.updated_at.map_or(0, Timestamp::as_milliseconds);
        let version =
            Version { timestamp: HlcTimestamp::from_milliseconds(changed), replica: ReplicaId::default() };
        let id = EntryId { key: row.key, environment: row.environment };
        record(connection, &mut delta, None, &id, version, Some(&content))?;
    }
    Ok(())
}

/// Returns the content for other nodes of a row that an external program may have written; `None` if no client could
/// have created it.
fn exchangeable_content_of(row: &SealedEntry) -> Option<SealedBody> {
    row.body().filter(|content| content.check().is_ok())
}

pub(super) fn lock(horizon: &Mutex<TombstoneHorizon>) -> MutexGuard<'_, TombstoneHorizon> {
    horizon.lock().unwrap_or_else(PoisonError::into_inner)
}
