//! Wire format of federated mode: strictly decoded JSON messages. They contain only names and encrypted values, never
//! user keys or plaintexts.

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::bounded::Bounded;
use super::codec::{DecodeError, encode, exchangeable, hexadecimal, id_of};
use super::part::{NameText, part};
use super::protocol::Protocol;
use crate::limits::{CLOCK_AHEAD_MAX, LIST_PAGE_ROWS_MAX, REQUEST_LINE_BYTES_MAX};
use crate::model::change::EntryError;
use crate::model::{Category, Ciphertext, Digest, EntryId, Environment, Filter, SealedEntry, Timestamp};
use crate::storage::{NameScan, NameScanPage};

/// Lookup of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Find {
    /// Key of the entry.
    pub key: String,
    /// Environment of the entry; without one, the same rules as for a client apply.
    pub environment: Option<String>,
}

/// Reply to a lookup.
#[derive(Clone, Debug)]
pub enum FindReply {
    /// Entry that was found.
    Row(Arc<SealedEntry>),
    /// Environments that have the key; no entry without an environment has it.
    Ambiguous(Vec<String>),
    /// No entry.
    Nothing,
}

/// Compare-and-swap write to an entry that another node owns.
#[derive(Debug, PartialEq, Eq)]
pub struct RemoteWrite {
    /// Fingerprint of the salt that encrypted the values.
    pub salt: u64,
    /// Name of the entry.
    pub id: EntryId,
    /// Digest of the expected encrypted value, which the user key was verified to decrypt.
    pub seen: Digest,
    /// Change to apply.
    pub action: RemoteWriteAction,
}

/// Change of a [`RemoteWrite`].
#[derive(Debug, PartialEq, Eq)]
pub enum RemoteWriteAction {
    /// Replaces the value.
    Update {
        /// New encrypted value.
        ciphertext: Ciphertext,
        /// New category; `None` keeps it.
        category: Option<String>,
        /// Environment to move the entry to; `None` keeps it.
        environment: Option<String>,
    },
    /// Deletes the entry.
    Delete,
}

/// Outcome of a [`RemoteWrite`].
#[derive(Debug)]
pub enum RemoteWriteOutcome {
    /// The write is applied and durable. Contains the entry as it is now, or as it was before its deletion.
    Done(SealedEntry),
    /// The encrypted value is not the expected one. Contains the current entry; `None` if it does not exist.
    Changed(Option<SealedEntry>),
    /// The key is already taken in the environment to move to.
    Exists,
    /// The disk is full.
    Full,
    /// The node is overloaded.
    Busy,
}

/// Length of U+FFFD, which replaces each invalid UTF-8 byte of a query string.
const REPLACED_BYTES: usize = 3;

part! {
    RowText {
        id "i": i64,
        key "k": String,
        environment "e": Option<String>,
        ciphertext "t": Option<String>,
        category "c": Option<String>,
        created_at "a": Option<i64>,
        updated_at "u": Option<i64>,
    }
}

part! {
    UpdateText {
        ciphertext "t": String,
        category "c": Option<String>,
        environment "e": Option<String>,
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FindReplyText {
    Row { salt: Option<u64>, row: RowText },
    Ambiguous(Vec<String>),
    Nothing,
}

#[derive(Serialize, Deserialize)]
struct QueryText {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after: Option<NameText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    category: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    environment: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prefix: Option<String>,
    bytes: usize,
    names: bool,
}

#[derive(Serialize, Deserialize)]
struct PageText {
    salt: Option<u64>,
    rows: Bounded<RowText, LIST_PAGE_ROWS_MAX>,
    more: bool,
}

#[derive(Serialize, Deserialize)]
struct RemoteWriteText {
    salt: u64,
    id: NameText,
    seen: String,
    /// Absent for a deletion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    update: Option<UpdateText>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RemoteWriteOutcomeText {
    Done(RowText),
    Changed(Option<RowText>),
    Exists,
    Full,
    Busy,
}

/// Encodes a lookup.
pub fn encode_find(protocol: Protocol, find: &Find) -> Vec<u8> {
    let Find { key, environment } = find.clone();
    encode(&NameText { protocol, key, environment })
}

/// Decodes a lookup.
///
/// # Errors
/// Fails if the message is malformed.
pub fn decode_find(text: &[u8]) -> Result<Find, DecodeError> {
    let EntryId { key, environment } = serde_json::from_slice::<NameText>(text)?.into_id()?;
    Ok(Find { key, environment })
}

/// Encodes the reply to a lookup; `salt` is the fingerprint of the node's salt.
pub fn encode_found(protocol: Protocol, salt: Option<u64>, reply: &FindReply) -> Vec<u8> {
    encode(&match reply {
        FindReply::Row(row) => FindReplyText::Row { salt, row: row_text(protocol, row) },
        FindReply::Ambiguous(environments) => FindReplyText::Ambiguous(environments.clone()),
        FindReply::Nothing => FindReplyText::Nothing,
    })
}

/// Decodes the reply to a lookup.
///
/// # Errors
/// Fails if the message is malformed.
pub fn decode_found(text: &[u8]) -> Result<(Option<u64>, FindReply), DecodeError> {
    Ok(match serde_json::from_slice(text)? {
        FindReplyText::Row { salt, row } => (salt, FindReply::Row(Arc::new(row_of(row)?))),
        FindReplyText::Ambiguous(environments) => {
            environments
                .iter()
                .try_for_each(|name| Environment::check(name))
                .map_err(EntryError::Environment)?;
            let all: HashSet<&String> = environments.iter().collect();
            if all.is_empty() || all.len() != environments.len() {
                return Err(DecodeError::new("several environments that are none"));
            }
            (None, FindReply::Ambiguous(environments))
        }
        FindReplyText::Nothing => (None, FindReply::Nothing),
    })
}

/// Encodes a page query.
pub fn encode_query(protocol: Protocol, query: &NameScan) -> Vec<u8> {
    let Filter { category, environment, prefix } = query.filter.clone();
    let (bytes, names) = (query.bytes_max, query.names_only);
    encode(&QueryText {
        after: query.after.as_ref().map(|after| NameText::new(protocol, after)),
        category,
        environment,
        prefix,
        bytes,
        names,
    })
}

/// Decodes a page query.
///
/// # Errors
/// Fails if the message is malformed.
pub fn decode_query(text: &[u8]) -> Result<NameScan, DecodeError> {
    let text: QueryText = serde_json::from_slice(text)?;
    let filter = Filter { category: text.category, environment: text.environment, prefix: text.prefix };
    // Clients may filter by texts that no entry can have, as long as the query fits the request line.
    let texts = [&filter.category, &filter.environment, &filter.prefix];
    if texts.into_iter().flatten().any(|text| text.len() > REQUEST_LINE_BYTES_MAX * REPLACED_BYTES) {
        return Err(DecodeError::new("a filter is too long"));
    }
    let after = text.after.map(NameText::into_id).transpose()?;
    Ok(NameScan { after, filter, bytes_max: text.bytes, names_only: text.names })
}

/// Encodes a page; `salt` is the fingerprint of the node's salt.
pub fn encode_page(protocol: Protocol, salt: Option<u64>, page: &NameScanPage) -> Vec<u8> {
    let rows = page.rows.iter().map(|row| row_text(protocol, row)).collect();
    encode(&PageText { salt, rows: Bounded(rows), more: page.more })
}

/// Decodes a page.
///
/// # Errors
/// Fails if the message is malformed, or if its names are not in order.
pub fn decode_page(text: &[u8]) -> Result<(Option<u64>, NameScanPage), DecodeError> {
    let PageText { salt, rows: Bounded(rows), more } = serde_json::from_slice(text)?;
    let rows = rows.into_iter().map(row_of).collect::<Result<Vec<_>, _>>()?;
    // An empty page with further entries would be requested again indefinitely.
    if !rows.is_sorted_by(|one, next| one.entry_id() < next.entry_id()) || (more && rows.is_empty()) {
        return Err(DecodeError::new("a page whose names are not in order"));
    }
    Ok((salt, NameScanPage { rows, more }))
}

/// Encodes a remote write.
pub fn encode_write(protocol: Protocol, write: &RemoteWrite) -> Vec<u8> {
    let update = match &write.action {
        RemoteWriteAction::Delete => None,
        RemoteWriteAction::Update { ciphertext, category, environment } => {
            let (ciphertext, category) = (ciphertext.to_text(), category.clone());
            Some(UpdateText { protocol, ciphertext, category, environment: environment.clone() })
        }
    };
    let seen = format!("{:032x}", write.seen.0);
    encode(&RemoteWriteText { salt: write.salt, id: NameText::new(protocol, &write.id), seen, update })
}

/// Decodes a remote write.
///
/// # Errors
/// Fails if the message is malformed.
pub fn decode_write(text: &[u8]) -> Result<RemoteWrite, DecodeError> {
    let RemoteWriteText { salt, id, seen, update } = serde_json::from_slice(text)?;
    let seen = hexadecimal(&seen, 32)?;
    let action = match update {
        None => RemoteWriteAction::Delete,
        Some(UpdateText { protocol: _, ciphertext, category, environment }) => {
            environment.as_deref().map_or(Ok(()), Environment::check).map_err(EntryError::Environment)?;
            category.as_deref().map_or(Ok(()), Category::check).map_err(EntryError::Category)?;
            RemoteWriteAction::Update { ciphertext: ciphertext_of(&ciphertext)?, category, environment }
        }
    };
    Ok(RemoteWrite { salt, id: id.into_id()?, seen: Digest(seen), action })
}

/// Encodes the outcome of a remote write.
pub fn encode_outcome(protocol: Protocol, outcome: &RemoteWriteOutcome) -> Vec<u8> {
    encode(&match outcome {
        RemoteWriteOutcome::Done(row) => RemoteWriteOutcomeText::Done(row_text(protocol, row)),
        RemoteWriteOutcome::Changed(row) => {
            RemoteWriteOutcomeText::Changed(row.as_ref().map(|row| row_text(protocol, row)))
        }
        RemoteWriteOutcome::Exists => RemoteWriteOutcomeText::Exists,
        RemoteWriteOutcome::Full => RemoteWriteOutcomeText::Full,
        RemoteWriteOutcome::Busy => RemoteWriteOutcomeText::Busy,
    })
}

/// Decodes the outcome of a remote write.
///
/// # Errors
/// Fails if the message is malformed.
pub fn decode_outcome(text: &[u8]) -> Result<RemoteWriteOutcome, DecodeError> {
    Ok(match serde_json::from_slice(text)? {
        RemoteWriteOutcomeText::Done(row) => RemoteWriteOutcome::Done(row_of(row)?),
        RemoteWriteOutcomeText::Changed(row) => RemoteWriteOutcome::Changed(row.map(row_of).transpose()?),
        RemoteWriteOutcomeText::Exists => RemoteWriteOutcome::Exists,
        RemoteWriteOutcomeText::Full => RemoteWriteOutcome::Full,
        RemoteWriteOutcomeText::Busy => RemoteWriteOutcome::Busy,
    })
}

fn ciphertext_of(text: &str) -> Result<Ciphertext, DecodeError> {
    let token = Ciphertext::from_text(text.as_bytes()).filter(Ciphertext::has_token_shape);
    Ok(token.ok_or(EntryError::Token)?)
}

fn row_text(protocol: Protocol, row: &SealedEntry) -> RowText {
    let latest = Timestamp::now().later(CLOCK_AHEAD_MAX);
    let ciphertext = row.ciphertext.as_ref().filter(|sealed| sealed.has_token_shape());
    RowText {
        protocol,
        id: row.id,
        key: row.key.clone(),
        environment: row.environment.clone(),
        ciphertext: ciphertext.map(Ciphertext::to_text),
        category: row.category.clone(),
        created_at: exchangeable(row.created_at, latest),
        updated_at: exchangeable(row.updated_at, latest),
    }
}

fn row_of(text: RowText) -> Result<SealedEntry, DecodeError> {
    let EntryId { key, environment } = id_of(text.key, text.environment)?;
    text.category.as_deref().map_or(Ok(()), Category::check).map_err(EntryError::Category)?;
    let ciphertext = text.ciphertext.as_deref().map(ciphertext_of).transpose()?;
    let mut row = SealedEntry::new(text.id, key, environment, ciphertext);
    row.category = text.category;
    row.created_at = text.created_at.map(Timestamp::from_microseconds);
    row.updated_at = text.updated_at.map(Timestamp::from_microseconds);
    match row.created_at.into_iter().chain(row.updated_at).all(Timestamp::is_exchangeable) {
        true => Ok(row),
        false => Err(EntryError::Time.into()),
    }
}

#[cfg(test)]
mod tests;
