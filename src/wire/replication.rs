//! Wire format of replication: strictly decoded JSON messages. They contain only names, versions and encrypted values,
//! never user keys or plaintexts.
//!
//! Peers are trusted no more than clients: each field is validated as in the API, lists are bounded and free of
//! duplicates, and a message with a single error is rejected as a whole.

use std::borrow::Cow;
use std::collections::HashSet;
use std::hash::Hash;

use serde::{Deserialize, Serialize};

use super::bounded::Bounded;
use crate::limits::{
    BUCKETS_COUNT, CHANGES_PER_MESSAGE_MAX, CLOCK_AHEAD_MAX, ENTRIES_PER_MESSAGE_MAX,
    VERSIONS_COUNT_MAX_PER_MESSAGE,
};
use crate::model::change::EntryError;
use crate::model::{
    Change, Ciphertext, Digest, EntryId, HlcTimestamp, ReplicaId, SealedBody, Timestamp, TombstoneHorizon,
    Version, VersionedDigest,
};
use crate::store::{AppliedChanges, VersionsPage, bucket_of};

/// Header in the response to a health check of another node: instance ID, random for each process.
pub const INSTANCE_HEADER: &str = "x-osc-instance";
/// Header: replica ID of the data directory, in hexadecimal.
pub const NODE_HEADER: &str = "x-osc-node";
/// Header: `replica` or [`FEDERATED`].
pub const MODE_HEADER: &str = "x-osc-mode";
/// Mode in which each node stores its own entries.
pub const FEDERATED: &str = "federated";
/// Header: fingerprint of the salt of the node; absent without a salt.
pub const SALT_HEADER: &str = "x-osc-salt";
/// Header: `true` once that salt has encrypted anything.
pub const ENTRIES_HEADER: &str = "x-osc-entries";
/// Header: tombstone horizon of the node, two timestamps in hexadecimal.
pub const HORIZON_HEADER: &str = "x-osc-horizon";

/// Error of a message that cannot be decoded.
#[derive(Debug, thiserror::Error)]
#[error("not a message of a peer: {0}")]
pub struct DecodeError(String);

impl DecodeError {
    /// Creates an error with a reason, which must not quote the message.
    pub(super) fn new(reason: &str) -> Self {
        Self(reason.to_owned())
    }
}

impl From<EntryError> for DecodeError {
    fn from(error: EntryError) -> Self {
        Self(error.to_string())
    }
}

impl From<serde_json::Error> for DecodeError {
    fn from(error: serde_json::Error) -> Self {
        // The text of a serde error gives the kind and the position, and quotes nothing of the content.
        Self(error.to_string())
    }
}

#[derive(Serialize, Deserialize)]
struct ChangeText<'a> {
    #[serde(rename = "k")]
    key: Cow<'a, str>,
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    environment: Option<Cow<'a, str>>,
    #[serde(rename = "s")]
    timestamp: i64,
    #[serde(rename = "n")]
    node: i64,
    /// Absent for a deleted entry.
    #[serde(rename = "t", default, skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    category: Option<Cow<'a, str>>,
    #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
    created_at: Option<i64>,
    #[serde(rename = "u", default, skip_serializing_if = "Option::is_none")]
    updated_at: Option<i64>,
}

#[derive(Serialize, Deserialize)]
struct KnownText {
    k: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    e: Option<String>,
    s: i64,
    n: i64,
    /// Digest in hexadecimal; absent for a deleted entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    d: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct VersionsText {
    #[serde(rename = "buckets")]
    buckets_count: usize,
    known: Bounded<KnownText, VERSIONS_COUNT_MAX_PER_MESSAGE>,
}

#[derive(Serialize, Deserialize)]
struct IdText {
    k: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    e: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct ChangesText<'a> {
    salt: String,
    #[serde(borrow)]
    changes: Bounded<ChangeText<'a>, CHANGES_PER_MESSAGE_MAX>,
}

/// Encodes changes for a peer, with the fingerprint of the salt that encrypted them.
pub fn encode_changes(salt: u64, changes: &[Change]) -> Vec<u8> {
    let latest = Timestamp::now().later(CLOCK_AHEAD_MAX);
    let changes = changes.iter().map(|change| change_text(change, latest)).collect();
    encode(&ChangesText { salt: format!("{salt:016x}"), changes: Bounded(changes) })
}

/// Decodes changes, and the fingerprint of the salt that encrypted them.
///
/// # Errors
/// Fails if the message is malformed.
pub fn decode_changes(text: &[u8]) -> Result<(u64, Vec<Change>), DecodeError> {
    let message: ChangesText<'_> = serde_json::from_slice(text)?;
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
pub fn encode_versions(page: &VersionsPage) -> Vec<u8> {
    let known = page
        .known
        .iter()
        .map(|known| KnownText {
            k: known.id.key.clone(),
            e: known.id.environment.clone(),
            s: known.version.timestamp.to_database(),
            n: known.version.replica.to_database(),
            d: (known.digest != Digest::default()).then(|| format!("{:032x}", known.digest.0)),
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
pub fn encode_ids(ids: &[EntryId]) -> Vec<u8> {
    let texts: Vec<IdText> =
        ids.iter().map(|id| IdText { k: id.key.clone(), e: id.environment.clone() }).collect();
    encode(&texts)
}

/// Decodes the names of some entries.
///
/// # Errors
/// Fails if the message is malformed.
pub fn decode_ids(text: &[u8]) -> Result<Vec<EntryId>, DecodeError> {
    let texts: Bounded<IdText, ENTRIES_PER_MESSAGE_MAX> = serde_json::from_slice(text)?;
    let ids = texts.0.into_iter().map(|text| id_of(text.k, text.e)).collect::<Result<Vec<_>, _>>()?;
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
        return Err(DecodeError(format!("there is no bucket {bucket}")));
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
    let text = std::str::from_utf8(text).map_err(|error| DecodeError(error.to_string()))?;
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
        return Err(DecodeError(format!("{} bytes of digests", bytes.len())));
    }
    Ok(digests.iter().map(|bytes| Digest(u128::from_be_bytes(*bytes))).collect())
}

fn encode(message: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(message).expect("encoding maps with text keys into memory cannot fail")
}

/// Parses exactly `digits_count` hexadecimal digits.
pub(super) fn hexadecimal(text: &str, digits_count: usize) -> Result<u128, DecodeError> {
    let is_whole = text.len() == digits_count && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = u128::from_str_radix(text, 16).ok().filter(|_| is_whole);
    number.ok_or_else(|| DecodeError(format!("not {digits_count} hexadecimal digits")))
}

fn all_differ<T: Hash + Eq>(items: impl Iterator<Item = T>) -> Result<(), DecodeError> {
    let mut seen = HashSet::new();
    match items.into_iter().all(|item| seen.insert(item)) {
        true => Ok(()),
        false => Err(DecodeError::new("something is named twice")),
    }
}

/// Validates a version. Node 0 stands for entries from before there were versions; a deletion cannot have it.
fn version_of(timestamp: i64, node: i64, is_deletion: bool) -> Result<Version, DecodeError> {
    if timestamp < 0 || node < 0 || (node > 0 && timestamp == 0) || (node == 0 && is_deletion) {
        return Err(DecodeError::new("a version that no node makes"));
    }
    Ok(Version { timestamp: HlcTimestamp::from_database(timestamp), replica: ReplicaId::from_database(node) })
}

pub(super) fn id_of(key: String, environment: Option<String>) -> Result<EntryId, DecodeError> {
    let id = EntryId { key, environment };
    id.check()?;
    Ok(id)
}

fn known_of(text: KnownText) -> Result<VersionedDigest, DecodeError> {
    let digest = text.d.as_deref().map(|digits| hexadecimal(digits, 32)).transpose()?;
    if digest == Some(0) {
        return Err(DecodeError::new("a digest that no entry has"));
    }
    let version = version_of(text.s, text.n, digest.is_none())?;
    Ok(VersionedDigest { id: id_of(text.k, text.e)?, version, digest: Digest(digest.unwrap_or_default()) })
}

/// Encodes a time, or returns `None` if peers would refuse it. Such a time was written by another program, and must not
/// prevent the replication of the entry.
pub(super) fn exchangeable(time: Option<Timestamp>, latest: Timestamp) -> Option<i64> {
    time.filter(|time| time.is_exchangeable() && *time <= latest).map(Timestamp::as_microseconds)
}

fn change_text(change: &Change, latest: Timestamp) -> ChangeText<'_> {
    let content = change.body.as_ref();
    ChangeText {
        key: change.id.key.as_str().into(),
        environment: change.id.environment.as_deref().map(Into::into),
        timestamp: change.version.timestamp.to_database(),
        node: change.version.replica.to_database(),
        token: content.map(|content| content.ciphertext.to_text()),
        category: content.and_then(|content| content.category.as_deref()).map(Into::into),
        created_at: exchangeable(content.and_then(|content| content.created_at), latest),
        updated_at: exchangeable(content.and_then(|content| content.updated_at), latest),
    }
}

fn change_of(text: ChangeText<'_>) -> Result<Change, DecodeError> {
    let content = match text.token {
        None => None,
        Some(token) => Some(SealedBody {
            category: text.category.map(Cow::into_owned),
            ciphertext: Ciphertext::from_text(token.as_bytes()).ok_or(EntryError::Token)?,
            created_at: text.created_at.map(Timestamp::from_microseconds),
            updated_at: text.updated_at.map(Timestamp::from_microseconds),
        }),
    };
    if let Some(content) = &content {
        content.check()?;
        content.check_times()?;
    }
    let id = id_of(text.key.into_owned(), text.environment.map(Cow::into_owned))?;
    Ok(Change { id, version: version_of(text.timestamp, text.node, content.is_none())?, body: content })
}

#[cfg(test)]
mod tests;
