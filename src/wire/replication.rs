//! Wire format of replication: strictly decoded JSON messages. They contain only names, versions and encrypted values,
//! never user keys or plaintexts.
//!
//! Peers are trusted no more than clients: each field is validated as in the API, lists are bounded and free of
//! duplicates, and a message with a single error is rejected as a whole.

use std::collections::HashSet;
use std::hash::Hash;

use serde::{Deserialize, Serialize};

use super::bounded::Bounded;
use super::codec::{DecodeError, encode, exchangeable, hexadecimal, id_of};
use super::part::{NameText, part};
use super::protocol::Protocol;
use crate::limits::{
    BUCKETS_COUNT, CHANGES_PER_MESSAGE_MAX, CLOCK_AHEAD_MAX, ENTRIES_PER_MESSAGE_MAX,
    VERSIONS_COUNT_MAX_PER_MESSAGE,
};
use crate::model::change::EntryError;
use crate::model::{
    Change, Ciphertext, Digest, EntryId, HlcTimestamp, ReplicaId, SealedBody, Timestamp, TombstoneHorizon,
    Version, VersionedDigest,
};
use crate::storage::{AppliedChanges, VersionsPage, bucket_of};

part! {
    ChangeText {
        key "k": String,
        environment "e": Option<String>,
        timestamp "s": i64,
        replica "n": i64,
        /// Absent for a deleted entry.
        ciphertext "t": Option<String>,
        category "c": Option<String>,
        created_at "a": Option<i64>,
        updated_at "u": Option<i64>,
    }
}

part! {
    KnownText {
        key "k": String,
        environment "e": Option<String>,
        timestamp "s": i64,
        replica "n": i64,
        /// In hexadecimal; absent for a deleted entry.
        digest "d": Option<String>,
    }
}

#[derive(Serialize, Deserialize)]
struct VersionsText {
    #[serde(rename = "buckets")]
    buckets_count: usize,
    known: Bounded<KnownText, VERSIONS_COUNT_MAX_PER_MESSAGE>,
}

#[derive(Serialize, Deserialize)]
struct ChangesText {
    salt: String,
    changes: Bounded<ChangeText, CHANGES_PER_MESSAGE_MAX>,
}

/// Encodes changes for a peer, with the fingerprint of the salt that encrypted them.
pub fn encode_changes(protocol: Protocol, salt: u64, changes: &[Change]) -> Vec<u8> {
    let latest = Timestamp::now().later(CLOCK_AHEAD_MAX);
    let changes = changes.iter().map(|change| change_text(protocol, change, latest)).collect();
    encode(&ChangesText { salt: format!("{salt:016x}"), changes: Bounded(changes) })
}

/// Decodes changes, and the fingerprint of the salt that encrypted them.
///
/// # Errors
/// Fails if the message is malformed.
pub fn decode_changes(text: &[u8]) -> Result<(u64, Vec<Change>), DecodeError> {
    let message: ChangesText = serde_json::from_slice(text)?;
    let salt = hexadecimal(&message.salt, 16)?;
    let salt = u64::try_from(salt).expect("sixteen digits");
    let changes = message.changes.0.into_iter().map(change_of).collect::<Result<Vec<_>, _>>()?;
    all_differ(changes.iter().map(|change| &change.id))?;
    Ok((salt, changes))
}

/// Reply of a peer to changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangesReply {
    /// Number of changes that the peer applied because they were newer.
    pub applied: usize,
    /// Number of changes that it refused because they are ahead of its clock.
    #[serde(default)]
    pub refused: usize,
    /// Maximum number of milliseconds by which the refused changes are ahead.
    #[serde(default)]
    pub ahead_ms: u64,
}

/// Encodes the reply to changes.
pub fn encode_applied(applied: &AppliedChanges) -> Vec<u8> {
    let AppliedChanges { won, ahead } = applied;
    let ahead_ms = ahead.iter().map(|(_, ahead_ms)| *ahead_ms).max().unwrap_or(0);
    encode(&ChangesReply { applied: *won, refused: ahead.len(), ahead_ms })
}

/// Decodes the reply to changes.
///
/// # Errors
/// Fails if the message is malformed, or counts more changes than were sent.
pub fn decode_applied(text: &[u8], sent_count: usize) -> Result<ChangesReply, DecodeError> {
    let reply: ChangesReply = serde_json::from_slice(text)?;
    match reply.applied.checked_add(reply.refused).is_some_and(|count| count <= sent_count) {
        true => Ok(reply),
        false => Err(DecodeError::new("more changes than were sent")),
    }
}

/// Decodes the reply to a request for `ids`: some of these entries, in the same order.
///
/// # Errors
/// Fails if the message is malformed, or contains an entry that was not requested.
pub fn decode_entries(text: &[u8], ids: &[EntryId]) -> Result<(u64, Vec<Change>), DecodeError> {
    let (salt, changes) = decode_changes(text)?;
    let mut requested = ids.iter();
    match changes.iter().all(|change| requested.any(|id| *id == change.id)) {
        true => Ok((salt, changes)),
        false => Err(DecodeError::new("an entry that was not asked for")),
    }
}

/// Encodes the versions of the entries in some buckets.
pub fn encode_versions(protocol: Protocol, page: &VersionsPage) -> Vec<u8> {
    let known = page
        .known
        .iter()
        .map(|known| KnownText {
            protocol,
            key: known.id.key.clone(),
            environment: known.id.environment.clone(),
            timestamp: known.version.timestamp.to_database(),
            replica: known.version.replica.to_database(),
            digest: (known.digest != Digest::default()).then(|| format!("{:032x}", known.digest.0)),
        })
        .collect();
    encode(&VersionsText { buckets_count: page.buckets_count, known: Bounded(known) })
}

/// Decodes the reply to a request for the versions in `buckets`.
///
/// # Errors
/// Fails if the message is malformed, or contains a version from a bucket that was not requested.
pub fn decode_versions(text: &[u8], buckets: &[usize]) -> Result<VersionsPage, DecodeError> {
    let message: VersionsText = serde_json::from_slice(text)?;
    let buckets_count = message.buckets_count;
    if !(1..=buckets.len()).contains(&buckets_count) {
        return Err(DecodeError::new("versions of more buckets than were asked for, or of none"));
    }
    let requested: HashSet<usize> = buckets[..buckets_count].iter().copied().collect();
    let known = message.known.0.into_iter().map(known_of).collect::<Result<Vec<_>, _>>()?;
    all_differ(known.iter().map(|known| &known.id))?;
    match known.iter().all(|known| requested.contains(&bucket_of(&known.id))) {
        true => Ok(VersionsPage { known, buckets_count }),
        false => Err(DecodeError::new("a version of another bucket")),
    }
}

/// Encodes the names of some entries.
pub fn encode_ids(protocol: Protocol, ids: &[EntryId]) -> Vec<u8> {
    encode(&ids.iter().map(|id| NameText::new(protocol, id)).collect::<Vec<_>>())
}

/// Decodes the names of some entries.
///
/// # Errors
/// Fails if the message is malformed.
pub fn decode_ids(text: &[u8]) -> Result<Vec<EntryId>, DecodeError> {
    let texts: Bounded<NameText, ENTRIES_PER_MESSAGE_MAX> = serde_json::from_slice(text)?;
    let ids = texts.0.into_iter().map(NameText::into_id).collect::<Result<Vec<_>, _>>()?;
    all_differ(ids.iter())?;
    Ok(ids)
}

/// Encodes bucket numbers.
pub fn encode_buckets(buckets: &[usize]) -> Vec<u8> {
    encode(&buckets)
}

/// Decodes bucket numbers.
///
/// # Errors
/// Fails if the message is malformed, or contains a bucket that does not exist or is repeated.
pub fn decode_buckets(text: &[u8]) -> Result<Vec<usize>, DecodeError> {
    let Bounded(buckets): Bounded<usize, BUCKETS_COUNT> = serde_json::from_slice(text)?;
    if let Some(bucket) = buckets.iter().find(|bucket| **bucket >= BUCKETS_COUNT) {
        return Err(DecodeError::new(format!("there is no bucket {bucket}")));
    }
    all_differ(buckets.iter())?;
    Ok(buckets)
}

/// Encodes a tombstone horizon as a header value.
pub fn encode_horizon(horizon: &TombstoneHorizon) -> String {
    format!("{:016x}-{:016x}", horizon.synced.to_database(), horizon.forgotten.to_database())
}

/// Decodes the output of [`encode_horizon`].
pub fn decode_horizon(text: &str) -> Option<TombstoneHorizon> {
    let (synced, forgotten) = text.split_once('-')?;
    let timestamp = |text| i64::from_str_radix(text, 16).ok().map(HlcTimestamp::from_database);
    Some(TombstoneHorizon { synced: timestamp(synced)?, forgotten: timestamp(forgotten)? })
}

/// Encodes a digest as text; also the reply to a node that has the same digest.
pub fn encode_digest(digest: Digest) -> String {
    format!("{:032x}", digest.0)
}

/// Decodes a digest.
///
/// # Errors
/// Fails if the text is not a digest.
pub fn decode_digest(text: &[u8]) -> Result<Digest, DecodeError> {
    let text = std::str::from_utf8(text).map_err(|error| DecodeError::new(error.to_string()))?;
    hexadecimal(text, 32).map(Digest)
}

/// Encodes the digests of all buckets, 16 bytes each.
pub fn encode_digests(digests: &[Digest]) -> Vec<u8> {
    digests.iter().flat_map(|digest| digest.0.to_be_bytes()).collect()
}

/// Decodes the digests of all buckets.
///
/// # Errors
/// Fails unless there is exactly one digest per bucket.
pub fn decode_digests(bytes: &[u8]) -> Result<Vec<Digest>, DecodeError> {
    let (digests, rest) = bytes.as_chunks::<16>();
    if digests.len() != BUCKETS_COUNT || !rest.is_empty() {
        return Err(DecodeError::new(format!("{} bytes of digests", bytes.len())));
    }
    Ok(digests.iter().map(|bytes| Digest(u128::from_be_bytes(*bytes))).collect())
}

fn all_differ<T: Hash + Eq>(items: impl Iterator<Item = T>) -> Result<(), DecodeError> {
    let mut seen = HashSet::new();
    match items.into_iter().all(|item| seen.insert(item)) {
        true => Ok(()),
        false => Err(DecodeError::new("something is named twice")),
    }
}

/// Validates a version. Replica 0 stands for entries from before there were versions; a deletion cannot have it.
fn version_of(timestamp: i64, replica: i64, is_deletion: bool) -> Result<Version, DecodeError> {
    if timestamp < 0 || replica < 0 || (replica > 0 && timestamp == 0) || (replica == 0 && is_deletion) {
        return Err(DecodeError::new("a version that no node makes"));
    }
    let replica = ReplicaId::from_database(replica);
    Ok(Version { timestamp: HlcTimestamp::from_database(timestamp), replica })
}

fn known_of(text: KnownText) -> Result<VersionedDigest, DecodeError> {
    let digest = text.digest.as_deref().map(|digits| hexadecimal(digits, 32)).transpose()?;
    if digest == Some(0) {
        return Err(DecodeError::new("a digest that no entry has"));
    }
    let version = version_of(text.timestamp, text.replica, digest.is_none())?;
    let id = id_of(text.key, text.environment)?;
    Ok(VersionedDigest { id, version, digest: Digest(digest.unwrap_or_default()) })
}

fn change_text(protocol: Protocol, change: &Change, latest: Timestamp) -> ChangeText {
    let content = change.body.as_ref();
    ChangeText {
        protocol,
        key: change.id.key.clone(),
        environment: change.id.environment.clone(),
        timestamp: change.version.timestamp.to_database(),
        replica: change.version.replica.to_database(),
        ciphertext: content.map(|content| content.ciphertext.to_text()),
        category: content.and_then(|content| content.category.clone()),
        created_at: exchangeable(content.and_then(|content| content.created_at), latest),
        updated_at: exchangeable(content.and_then(|content| content.updated_at), latest),
    }
}

fn change_of(text: ChangeText) -> Result<Change, DecodeError> {
    let content = match text.ciphertext {
        None => None,
        Some(ciphertext) => Some(SealedBody {
            category: text.category,
            ciphertext: Ciphertext::from_text(ciphertext.as_bytes()).ok_or(EntryError::Token)?,
            created_at: text.created_at.map(Timestamp::from_microseconds),
            updated_at: text.updated_at.map(Timestamp::from_microseconds),
        }),
    };
    if let Some(content) = &content {
        content.check()?;
        content.check_times()?;
    }
    let version = version_of(text.timestamp, text.replica, content.is_none())?;
    Ok(Change { id: id_of(text.key, text.environment)?, version, body: content })
}

#[cfg(test)]
mod tests;
