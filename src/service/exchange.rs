//! What nodes say to each other: JSON texts, read strictly. Only names, versions and sealed values;
//! user keys and plaintexts have no place in any of them.

use serde::{Deserialize, Serialize};

use crate::model::{
    Change, Ciphertext, Content, Digest, EntryId, Horizon, Known, NodeNumber, Stamp, Timestamp, Version,
};
use crate::store::VersionsPage;

/// Header of every answer to a health check: random for each process.
pub const INSTANCE_HEADER: &str = "x-osc-instance";
/// Header: the number of the data directory, in hexadecimal.
pub const NODE_HEADER: &str = "x-osc-node";
/// Header: `replica` or [`FEDERATED`].
pub const MODE_HEADER: &str = "x-osc-mode";
/// The mode in which each node keeps its own entries.
pub const FEDERATED: &str = "federated";
/// Header: which salt the node has, as a fingerprint; absent without a salt.
pub const SALT_HEADER: &str = "x-osc-salt";
/// Header: `true` once anything was sealed with that salt.
pub const ENTRIES_HEADER: &str = "x-osc-entries";
/// Header: how far back the node knows of deletions, two stamps in hexadecimal.
pub const HORIZON_HEADER: &str = "x-osc-horizon";
/// Header: `refused` when the asking node's API key is not this node's.
pub const API_KEY_HEADER: &str = "x-osc-api-key";

/// A message that is not what it should be.
#[derive(Debug, thiserror::Error)]
#[error("not a message of a peer: {0}")]
pub struct Malformed(String);

impl Malformed {
    /// Says what is wrong, without quoting any of it.
    pub(super) fn new(what: &str) -> Self {
        Self(what.to_owned())
    }
}

impl From<serde_json::Error> for Malformed {
    fn from(error: serde_json::Error) -> Self {
        // Its text says where and what, and quotes nothing of the content.
        Self(error.to_string())
    }
}

#[derive(Serialize, Deserialize)]
struct ChangeText<'a> {
    #[serde(rename = "k")]
    key: std::borrow::Cow<'a, str>,
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    environment: Option<std::borrow::Cow<'a, str>>,
    #[serde(rename = "s")]
    stamp: i64,
    #[serde(rename = "n")]
    node: i64,
    /// Absent when the entry was deleted.
    #[serde(rename = "t", default, skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    category: Option<std::borrow::Cow<'a, str>>,
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
    /// Hexadecimal; absent for a deleted entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    d: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct VersionsText {
    #[serde(rename = "buckets")]
    buckets_count: usize,
    known: Vec<KnownText>,
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
    changes: Vec<ChangeText<'a>>,
}

/// Changes for a peer, with the fingerprint of the salt that they were sealed with.
pub fn encode_changes(salt: u64, changes: &[Change]) -> Vec<u8> {
    let changes = changes.iter().map(change_text).collect();
    encode(&ChangesText { salt: format!("{salt:016x}"), changes })
}

/// # Errors
/// When it is no such message.
pub fn decode_changes(text: &[u8]) -> Result<(u64, Vec<Change>), Malformed> {
    let message: ChangesText<'_> = serde_json::from_slice(text)?;
    let salt = u64::from_str_radix(&message.salt, 16).map_err(|error| Malformed(error.to_string()))?;
    let changes = message.changes.into_iter().map(change_of).collect::<Result<_, _>>()?;
    Ok((salt, changes))
}

/// The versions of the entries of some buckets.
pub fn encode_versions(page: &VersionsPage) -> Vec<u8> {
    let known = page
        .known
        .iter()
        .map(|known| KnownText {
            k: known.id.key.clone(),
            e: known.id.environment.clone(),
            s: known.version.stamp.to_database(),
            n: known.version.node.to_database(),
            d: (known.digest != Digest::default()).then(|| format!("{:032x}", known.digest.0)),
        })
        .collect();
    encode(&VersionsText { buckets_count: page.buckets_count, known })
}

/// # Errors
/// When it is no such message.
pub fn decode_versions(text: &[u8]) -> Result<VersionsPage, Malformed> {
    let message: VersionsText = serde_json::from_slice(text)?;
    if message.buckets_count == 0 {
        return Err(Malformed("versions of no bucket".to_owned()));
    }
    let known = message
        .known
        .into_iter()
        .map(|text| {
            let digest = text.d.as_deref().map_or(Ok(0), |hex| u128::from_str_radix(hex, 16));
            Ok(Known {
                id: EntryId { key: text.k, environment: text.e.filter(|name| !name.is_empty()) },
                version: version_of(text.s, text.n),
                digest: Digest(digest.map_err(|error| Malformed(error.to_string()))?),
            })
        })
        .collect::<Result<_, Malformed>>()?;
    Ok(VersionsPage { known, buckets_count: message.buckets_count })
}

/// The names of some entries.
pub fn encode_ids(ids: &[EntryId]) -> Vec<u8> {
    let texts: Vec<IdText> =
        ids.iter().map(|id| IdText { k: id.key.clone(), e: id.environment.clone() }).collect();
    encode(&texts)
}

/// # Errors
/// When it is no such message.
pub fn decode_ids(text: &[u8]) -> Result<Vec<EntryId>, Malformed> {
    let texts: Vec<IdText> = serde_json::from_slice(text)?;
    let id = |text: IdText| EntryId { key: text.k, environment: text.e.filter(|name| !name.is_empty()) };
    Ok(texts.into_iter().map(id).collect())
}

/// Numbers of buckets.
pub fn encode_buckets(buckets: &[usize]) -> Vec<u8> {
    encode(&buckets)
}

/// # Errors
/// When it is no such message, or names a bucket that does not exist.
pub fn decode_buckets(text: &[u8]) -> Result<Vec<usize>, Malformed> {
    let buckets: Vec<usize> = serde_json::from_slice(text)?;
    match buckets.iter().find(|bucket| **bucket >= crate::limits::BUCKETS_COUNT) {
        Some(bucket) => Err(Malformed(format!("there is no bucket {bucket}"))),
        None => Ok(buckets),
    }
}

/// A horizon as a header's value.
pub fn encode_horizon(horizon: &Horizon) -> String {
    format!("{:016x}-{:016x}", horizon.synced.to_database(), horizon.forgotten.to_database())
}

/// What [`encode_horizon`] gave.
pub fn decode_horizon(text: &str) -> Option<Horizon> {
    let (synced, forgotten) = text.split_once('-')?;
    let stamp = |text| i64::from_str_radix(text, 16).ok().map(Stamp::from_database);
    Some(Horizon { synced: stamp(synced)?, forgotten: stamp(forgotten)? })
}

/// A digest as text.
pub fn encode_digest(digest: Digest) -> String {
    format!("{:032x}", digest.0)
}

/// # Errors
/// When it is no digest.
pub fn decode_digest(text: &[u8]) -> Result<Digest, Malformed> {
    let text = std::str::from_utf8(text).map_err(|error| Malformed(error.to_string()))?;
    u128::from_str_radix(text, 16).map(Digest).map_err(|error| Malformed(error.to_string()))
}

/// The digests of all buckets, sixteen bytes each.
pub fn encode_digests(digests: &[Digest]) -> Vec<u8> {
    digests.iter().flat_map(|digest| digest.0.to_be_bytes()).collect()
}

/// # Errors
/// When it is not one digest for each bucket.
pub fn decode_digests(bytes: &[u8]) -> Result<Vec<Digest>, Malformed> {
    let (digests, rest) = bytes.as_chunks::<16>();
    if digests.len() != crate::limits::BUCKETS_COUNT || !rest.is_empty() {
        return Err(Malformed(format!("{} bytes of digests", bytes.len())));
    }
    Ok(digests.iter().map(|bytes| Digest(u128::from_be_bytes(*bytes))).collect())
}

fn encode(message: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(message).expect("maps with text keys, written to memory")
}

fn version_of(stamp: i64, node: i64) -> Version {
    Version { stamp: Stamp::from_database(stamp), node: NodeNumber::from_database(node) }
}

fn change_text(change: &Change) -> ChangeText<'_> {
    let content = change.content.as_ref();
    ChangeText {
        key: change.id.key.as_str().into(),
        environment: change.id.environment.as_deref().map(Into::into),
        stamp: change.version.stamp.to_database(),
        node: change.version.node.to_database(),
        token: content.map(|content| content.ciphertext.to_text()),
        category: content.and_then(|content| content.category.as_deref()).map(Into::into),
        created_at: content.and_then(|content| content.created_at).map(Timestamp::as_microseconds),
        updated_at: content.and_then(|content| content.updated_at).map(Timestamp::as_microseconds),
    }
}

fn change_of(text: ChangeText<'_>) -> Result<Change, Malformed> {
    let content = match text.token {
        None => None,
        Some(token) => Some(Content {
            category: text.category.map(std::borrow::Cow::into_owned),
            ciphertext: Ciphertext::from_text(token.as_bytes())
                .ok_or_else(|| Malformed("a value is no token".to_owned()))?,
            created_at: text.created_at.map(Timestamp::from_microseconds),
            updated_at: text.updated_at.map(Timestamp::from_microseconds),
        }),
    };
    let environment = text.environment.map(std::borrow::Cow::into_owned).filter(|name| !name.is_empty());
    let id = EntryId { key: text.key.into_owned(), environment };
    if id.key.is_empty() {
        return Err(Malformed("an entry without a key".to_owned()));
    }
    Ok(Change { id, version: version_of(text.stamp, text.node), content })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_back() {
        let version = version_of(7, 9);
        let content = Content {
            category: Some("c\"".into()),
            ciphertext: Ciphertext::from_bytes(vec![0x80, 0, 255]),
            created_at: Some(Timestamp::from_microseconds(1)),
            updated_at: None,
        };
        let id = EntryId { key: "ключ\n".into(), environment: Some("e".into()) };
        let changes = vec![
            Change { id: id.clone(), version, content: Some(content) },
            Change { id: EntryId { key: "k".into(), environment: None }, version, content: None },
        ];
        assert_eq!(decode_changes(&encode_changes(5, &changes)).expect("valid"), (5, changes));
        let known = vec![
            Known { id: id.clone(), version, digest: Digest(u128::MAX - 1) },
            Known { id: id.clone(), version, digest: Digest(0) },
        ];
        let page = VersionsPage { known, buckets_count: 3 };
        assert_eq!(decode_versions(&encode_versions(&page)).expect("valid"), page);
        assert_eq!(decode_ids(&encode_ids(std::slice::from_ref(&id))).expect("valid"), [id]);
        assert_eq!(decode_buckets(&encode_buckets(&[0, 1023])).expect("valid"), [0, 1023]);
        let digests: Vec<Digest> = (0..1024).map(Digest).collect();
        assert_eq!(decode_digests(&encode_digests(&digests)).expect("valid"), digests);
        let horizon = Horizon { synced: Stamp::from_milliseconds(5), forgotten: Stamp::default() };
        assert_eq!(decode_horizon(&encode_horizon(&horizon)), Some(horizon));
        assert_eq!(decode_digest(encode_digest(Digest(77)).as_bytes()).expect("valid"), Digest(77));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "{}", "[]", r#"{"salt":"x","changes":[]}"#, r#"{"salt":"0","changes":[{"k":1}]}"#] {
            assert!(decode_changes(text.as_bytes()).is_err(), "{text}");
        }
        let no_token = r#"{"salt":"0","changes":[{"k":"k","s":1,"n":1,"t":"?"}]}"#;
        assert!(decode_changes(no_token.as_bytes()).is_err());
        assert!(decode_buckets(b"[1024]").is_err());
        assert!(decode_buckets(b"[-1]").is_err());
        assert!(decode_digests(&[0; 16]).is_err());
        for text in [
            r#"{"buckets":1,"known":[{"k":"k","s":1,"n":1,"d":"xyz"}]}"#,
            // An answer about no bucket would be asked for again for ever.
            r#"{"buckets":0,"known":[]}"#,
        ] {
            assert!(decode_versions(text.as_bytes()).is_err(), "{text}");
        }
    }
}
