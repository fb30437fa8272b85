//! What nodes of a federation say to each other: JSON texts, read strictly. Only names and sealed values;
//! user keys and plaintexts have no place in any of them.

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::limits::{CLOCK_AHEAD_MAX, LIST_PAGE_ROWS_MAX, REQUEST_LINE_BYTES_MAX};
use crate::model::change::EntryError;
use crate::model::{Category, Ciphertext, Digest, EntryId, Environment, Timestamp};
use crate::service::bounded::Bounded;
use crate::service::exchange::{DecodeError, exchangeable, hexadecimal, id_of};
use crate::store::{Filter, SealedEntry};

/// `POST /cluster/find`: an entry of the node that is asked.
pub const FIND: &str = "/cluster/find";
/// `POST /cluster/page`: entries of the node that is asked, in the order of their names.
pub const PAGE: &str = "/cluster/page";
/// `POST /cluster/write`: changes an entry that is as it was seen.
pub const WRITE: &str = "/cluster/write";

/// Which entry is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Find {
    /// Its key.
    #[serde(rename = "k")]
    pub key: String,
    /// Its environment; `None` leaves it to the node, as for a client.
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
}

/// What a node has of that name.
#[derive(Clone, Debug)]
pub enum FindReply {
    /// This entry.
    Row(Arc<SealedEntry>),
    /// Entries in several environments, none without one.
    Ambiguous(Vec<String>),
    /// Nothing.
    Nothing,
}

/// Which entries are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageQuery {
    /// Those after this name.
    pub after: Option<EntryId>,
    /// Those that pass this.
    pub filter: Filter,
    /// As many as have about so many bytes, one at least.
    pub bytes_max: usize,
    /// Without their values.
    pub names_only: bool,
}

/// Some entries of a node, in the order of their names.
#[derive(Debug, Default)]
pub struct NamePage {
    /// The entries.
    pub rows: Vec<SealedEntry>,
    /// There are more after them.
    pub more: bool,
}

/// A change of an entry that another node has.
#[derive(Debug, PartialEq, Eq)]
pub struct RemoteWrite {
    /// The fingerprint of the salt that everything was sealed with.
    pub salt: u64,
    /// Which entry.
    pub id: EntryId,
    /// A digest of the sealed value that the user key was seen to open.
    pub seen: Digest,
    /// What to do.
    pub action: RemoteWriteAction,
}

/// What is to be done with an entry.
#[derive(Debug, PartialEq, Eq)]
pub enum RemoteWriteAction {
    /// Replace its value.
    Update {
        /// The new sealed value.
        ciphertext: Ciphertext,
        /// The new category; `None` keeps it.
        category: Option<String>,
        /// The environment to move to; `None` stays.
        environment: Option<String>,
    },
    /// Delete it.
    Delete,
}

/// What became of an order.
#[derive(Debug)]
pub enum RemoteWriteOutcome {
    /// It is done, and durable. The entry as it is now, or was before it was deleted.
    Done(SealedEntry),
    /// The entry is not what was seen, but this; `None` if it is gone.
    Changed(Option<SealedEntry>),
    /// The environment to move to has this key already.
    Exists,
    /// No space is left.
    Full,
    /// Too much is going on.
    Busy,
}

/// U+FFFD, which stands for a byte of a query that is no UTF-8, takes as many.
const REPLACED_BYTES: usize = 3;

#[derive(Serialize, Deserialize)]
struct RowText {
    i: i64,
    k: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    e: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    t: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    c: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    a: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    u: Option<i64>,
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
    after: Option<Find>,
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
    id: Find,
    seen: String,
    /// Absent to delete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    update: Option<UpdateText>,
}

#[derive(Serialize, Deserialize)]
struct UpdateText {
    t: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    c: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    e: Option<String>,
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

/// The question for an entry.
pub fn encode_find(find: &Find) -> Vec<u8> {
    encode(find)
}

/// # Errors
/// When it is no such message.
pub fn decode_find(text: &[u8]) -> Result<Find, DecodeError> {
    let find: Find = serde_json::from_slice(text)?;
    let EntryId { key, environment } = id_of(find.key, find.environment)?;
    Ok(Find { key, environment })
}

/// The answer to the question for an entry; `salt` is the fingerprint of the node's.
pub fn encode_found(salt: Option<u64>, found: &FindReply) -> Vec<u8> {
    encode(&match found {
        FindReply::Row(row) => FindReplyText::Row { salt, row: row_text(row) },
        FindReply::Ambiguous(environments) => FindReplyText::Ambiguous(environments.clone()),
        FindReply::Nothing => FindReplyText::Nothing,
    })
}

/// # Errors
/// When it is no such message.
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

/// The question for a page.
pub fn encode_query(query: &PageQuery) -> Vec<u8> {
    let Filter { category, environment, prefix } = query.filter.clone();
    let (bytes, names) = (query.bytes_max, query.names_only);
    encode(&QueryText {
        after: query.after.as_ref().map(name_of),
        category,
        environment,
        prefix,
        bytes,
        names,
    })
}

/// # Errors
/// When it is no such message.
pub fn decode_query(text: &[u8]) -> Result<PageQuery, DecodeError> {
    let text: QueryText = serde_json::from_slice(text)?;
    let filter = Filter { category: text.category, environment: text.environment, prefix: text.prefix };
    // A client may ask for what no entry has, as long as its question fits a request line.
    let texts = [&filter.category, &filter.environment, &filter.prefix];
    if texts.into_iter().flatten().any(|text| text.len() > REQUEST_LINE_BYTES_MAX * REPLACED_BYTES) {
        return Err(DecodeError::new("a filter is too long"));
    }
    let after = text.after.map(|after| id_of(after.key, after.environment)).transpose()?;
    Ok(PageQuery { after, filter, bytes_max: text.bytes, names_only: text.names })
}

/// A page; `salt` is the fingerprint of the node's.
pub fn encode_page(salt: Option<u64>, page: &NamePage) -> Vec<u8> {
    encode(&PageText { salt, rows: Bounded(page.rows.iter().map(row_text).collect()), more: page.more })
}

/// # Errors
/// When it is no such message, or its names are not in order.
pub fn decode_page(text: &[u8]) -> Result<(Option<u64>, NamePage), DecodeError> {
    let PageText { salt, rows: Bounded(rows), more } = serde_json::from_slice(text)?;
    let rows = rows.into_iter().map(row_of).collect::<Result<Vec<_>, _>>()?;
    // Whoever says that there is more without giving anything would be asked for ever.
    if !rows.is_sorted_by(|one, next| one.entry_id() < next.entry_id()) || (more && rows.is_empty()) {
        return Err(DecodeError::new("a page whose names are not in order"));
    }
    Ok((salt, NamePage { rows, more }))
}

/// An order.
pub fn encode_order(order: &RemoteWrite) -> Vec<u8> {
    let update = match &order.action {
        RemoteWriteAction::Delete => None,
        RemoteWriteAction::Update { ciphertext, category, environment } => {
            Some(UpdateText { t: ciphertext.to_text(), c: category.clone(), e: environment.clone() })
        }
    };
    let seen = format!("{:032x}", order.seen.0);
    encode(&RemoteWriteText { salt: order.salt, id: name_of(&order.id), seen, update })
}

/// # Errors
/// When it is no such message.
pub fn decode_order(text: &[u8]) -> Result<RemoteWrite, DecodeError> {
    let RemoteWriteText { salt, id, seen, update } = serde_json::from_slice(text)?;
    let seen = hexadecimal(&seen, 32)?;
    let action = match update {
        None => RemoteWriteAction::Delete,
        Some(UpdateText { t, c, e }) => {
            e.as_deref().map_or(Ok(()), Environment::check).map_err(EntryError::Environment)?;
            c.as_deref().map_or(Ok(()), Category::check).map_err(EntryError::Category)?;
            RemoteWriteAction::Update { ciphertext: ciphertext_of(&t)?, category: c, environment: e }
        }
    };
    Ok(RemoteWrite { salt, id: id_of(id.key, id.environment)?, seen: Digest(seen), action })
}

/// What became of an order.
pub fn encode_outcome(outcome: &RemoteWriteOutcome) -> Vec<u8> {
    encode(&match outcome {
        RemoteWriteOutcome::Done(row) => RemoteWriteOutcomeText::Done(row_text(row)),
        RemoteWriteOutcome::Changed(row) => RemoteWriteOutcomeText::Changed(row.as_ref().map(row_text)),
        RemoteWriteOutcome::Exists => RemoteWriteOutcomeText::Exists,
        RemoteWriteOutcome::Full => RemoteWriteOutcomeText::Full,
        RemoteWriteOutcome::Busy => RemoteWriteOutcomeText::Busy,
    })
}

/// # Errors
/// When it is no such message.
pub fn decode_outcome(text: &[u8]) -> Result<RemoteWriteOutcome, DecodeError> {
    Ok(match serde_json::from_slice(text)? {
        RemoteWriteOutcomeText::Done(row) => RemoteWriteOutcome::Done(row_of(row)?),
        RemoteWriteOutcomeText::Changed(row) => RemoteWriteOutcome::Changed(row.map(row_of).transpose()?),
        RemoteWriteOutcomeText::Exists => RemoteWriteOutcome::Exists,
        RemoteWriteOutcomeText::Full => RemoteWriteOutcome::Full,
        RemoteWriteOutcomeText::Busy => RemoteWriteOutcome::Busy,
    })
}

fn encode(message: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(message).expect("maps with text keys, written to memory")
}

fn name_of(id: &EntryId) -> Find {
    Find { key: id.key.clone(), environment: id.environment.clone() }
}

fn ciphertext_of(text: &str) -> Result<Ciphertext, DecodeError> {
    let token = Ciphertext::from_text(text.as_bytes()).filter(Ciphertext::has_token_shape);
    Ok(token.ok_or(EntryError::Token)?)
}

fn row_text(row: &SealedEntry) -> RowText {
    let latest = Timestamp::now().later(CLOCK_AHEAD_MAX);
    RowText {
        i: row.id,
        k: row.key.clone(),
        e: row.environment.clone(),
        t: row.ciphertext.as_ref().filter(|sealed| sealed.has_token_shape()).map(Ciphertext::to_text),
        c: row.category.clone(),
        a: exchangeable(row.created_at, latest),
        u: exchangeable(row.updated_at, latest),
    }
}

fn row_of(text: RowText) -> Result<SealedEntry, DecodeError> {
    let EntryId { key, environment } = id_of(text.k, text.e)?;
    text.c.as_deref().map_or(Ok(()), Category::check).map_err(EntryError::Category)?;
    let ciphertext = text.t.as_deref().map(ciphertext_of).transpose()?;
    let mut row = SealedEntry::new(text.i, key, environment, ciphertext);
    row.category = text.c;
    row.created_at = text.a.map(Timestamp::from_microseconds);
    row.updated_at = text.u.map(Timestamp::from_microseconds);
    match row.created_at.into_iter().chain(row.updated_at).all(Timestamp::is_exchangeable) {
        true => Ok(row),
        false => Err(EntryError::Time.into()),
    }
}

#[cfg(test)]
mod tests;
