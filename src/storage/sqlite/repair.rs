//! Offline repair of versions that are ahead of the clock.
//!
//! Other nodes refuse such a version and any change of its entry. It comes from an older release, which accepted any
//! version, or from a clock that was far ahead.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::error::into_rusqlite;
use super::versions::{self, digest_at, entry_id, version_at};
use super::{lock, open, reader, schema};
use crate::limits::{CLOCK_AHEAD_MAX, TOMBSTONE_GRACE};
use crate::model::{Digest, EntryId, HlcTimestamp, ReplicaId, SealedEntry, Version};
use crate::storage::digest::{bucket_of, digest_of};
use crate::storage::error::OpenError;
use crate::storage::salt_store::SaltStore;

/// Outcome of a repair or of a trial.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Number of live entries whose version was ahead.
    pub entries_count: u64,
    /// Number of tombstones whose version was ahead.
    pub deletions_count: u64,
    /// Largest lead of a version, in milliseconds.
    pub ahead_ms: u64,
    /// Whether a recorded time of the last sync with a peer, or of the last tombstone collection, was in the future.
    pub has_horizon: bool,
}

/// Running repair.
struct Repair<'a> {
    transaction: Transaction<'a>,
    now: HlcTimestamp,
    latest: HlcTimestamp,
    repaired: Repaired,
}

impl Repaired {
    /// Returns whether there was nothing to repair.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// Replaces the timestamps of versions that are more than [`CLOCK_AHEAD_MAX`] ahead of `now_ms` by current ones, and
/// keeps their order. With `is_trial`, nothing is changed.
///
/// # Errors
/// Fails if a server is running, or the files cannot be used.
pub fn repair_versions(
    database: &Path,
    salt: &Path,
    accepted_salt: Option<[u8; 32]>,
    now_ms: u64,
    is_trial: bool,
) -> Result<Repaired, OpenError> {
    if !database.exists() {
        return Err(OpenError::Unusable {
            path: database.to_owned(),
            what: "does not exist".to_owned(),
            remedy: "set OSC_DATABASE_PATH to the database of the node",
        });
    }
    let _lock = lock::DataLock::acquire(database)?;
    let mut connection = open::open(database, &SaltStore::open(salt, accepted_salt)?)?.connection;
    let sql = |error| OpenError::sqlite(database, error);
    let repaired = repair(&mut connection, now_ms, is_trial).map_err(sql)?;
    if !is_trial {
        schema::end_cycle(&connection).map_err(sql)?;
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(sql)?;
    }
    Ok(repaired)
}

fn repair(connection: &mut Connection, now_ms: u64, is_trial: bool) -> rusqlite::Result<Repaired> {
    if !versions::are_kept(connection)? {
        return Ok(Repaired::default());
    }
    let transaction = Transaction::new(connection, TransactionBehavior::Immediate)?;
    schema::begin_cycle(&transaction)?;
    let now = HlcTimestamp::from_milliseconds(now_ms);
    let latest = now.later(CLOCK_AHEAD_MAX);
    let mut repair = Repair { transaction, now, latest, repaired: Repaired::default() };
    repair.versions(now_ms)?;
    repair.horizon()?;
    let Repair { transaction, repaired, .. } = repair;
    match is_trial {
        true => transaction.rollback()?,
        false => transaction.commit()?,
    }
    Ok(repaired)
}

impl Repair<'_> {
    fn versions(&mut self, now_ms: u64) -> rusqlite::Result<()> {
        let node = ReplicaId::from_database(schema::meta(&self.transaction, "node")?.unwrap_or_default());
        let mut timestamp = self.now;
        for (id, version, digest) in self.ahead()? {
            let is_deletion = digest == Digest::default();
            *(match is_deletion {
                true => &mut self.repaired.deletions_count,
                false => &mut self.repaired.entries_count,
            }) += 1;
            let ahead_ms = version.timestamp.milliseconds() - now_ms;
            self.repaired.ahead_ms = self.repaired.ahead_ms.max(ahead_ms);
            // The replica ID is that of this node, so that no other node can have issued the same version.
            self.set_version(&id, Version { timestamp, replica: node }, is_deletion)?;
            timestamp = timestamp.next();
        }
        Ok(())
    }

    /// Reads the versions that are ahead, in ascending order.
    fn ahead(&self) -> rusqlite::Result<Vec<(EntryId, Version, Digest)>> {
        let sql = r#"SELECT "key", environment, stamp, node, digest FROM osc_versions WHERE stamp > ?1
                     ORDER BY stamp, node, "key", environment"#;
        let mut statement = self.transaction.prepare(sql)?;
        let rows = statement.query_map([self.latest.to_database()], |row| {
            Ok((entry_id(row.get(0)?, row.get(1)?), version_at(row, 2)?, digest_at(row, 4)?))
        })?;
        rows.collect()
    }

    fn set_version(&self, id: &EntryId, version: Version, is_deletion: bool) -> rusqlite::Result<()> {
        let environment = id.environment.as_deref().unwrap_or_default();
        let content = match is_deletion {
            true => None,
            false => self
                .transaction
                .prepare_cached(&format!(
                    r#"SELECT {} FROM configurations WHERE "key" = ?1 AND ifnull(environment, '') = ?2"#,
                    reader::COLUMNS
                ))?
                .query_row((&id.key, environment), |row| reader::parse_row(row).map_err(into_rusqlite))
                .optional()?
                .flatten()
                .as_ref()
                .and_then(SealedEntry::body),
        };
        // An entry that another program has since corrupted or removed is recorded as such at the next startup.
        let digest = content.map(|content| digest_of(id, version, &content).0.to_be_bytes());
        self.transaction
            .prepare_cached(
                r#"UPDATE osc_versions SET stamp = ?1, node = ?2, digest = ?3
                   WHERE bucket = ?4 AND "key" = ?5 AND environment = ?6"#,
            )?
            .execute(params![
                version.timestamp.to_database(),
                version.replica.to_database(),
                digest,
                i64::try_from(bucket_of(id)).unwrap_or_default(),
                id.key,
                environment
            ])?;
        Ok(())
    }

    /// Repairs the times of synchronisation and tombstone collection. Their true values are unknown. The earliest
    /// possible one is safe: at worst, another node refuses this one as outdated.
    fn horizon(&mut self) -> rusqlite::Result<()> {
        let safe = self.now.earlier(TOMBSTONE_GRACE);
        let latest = self.latest.to_database();
        for name in ["synced", "forgotten"] {
            if schema::meta(&self.transaction, name)?.is_some_and(|timestamp| timestamp > latest) {
                schema::set_meta(&self.transaction, name, safe.to_database())?;
                self.repaired.has_horizon = true;
            }
        }
        let changed = self
            .transaction
            .execute("UPDATE osc_peers SET synced = ?1 WHERE synced > ?2", (safe.to_database(), latest))?;
        self.repaired.has_horizon |= changed > 0;
        Ok(())
    }
}
