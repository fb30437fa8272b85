//! What nodes of a federation say to each other: JSON texts, read strictly. Only names and sealed values;
//! user keys and plaintexts have no place in any of them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::{Ciphertext, Digest, EntryId, Timestamp};
use crate::service::exchange::Malformed;
use crate::store::{Filter, Row};

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
pub enum Found {
    /// This entry.
    Row(Arc<Row>),
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
    pub rows: Vec<Row>,
    /// There are more after them.
    pub more: bool,
}

/// A change of an entry that another node has.
#[derive(Debug, PartialEq, Eq)]
pub struct Order {
    /// The fingerprint of the salt that everything was sealed with.
    pub salt: u64,
    /// Which entry.
    pub id: EntryId,
    /// A digest of the sealed value that the user key was seen to open.
    pub seen: Digest,
    /// What to do.
    pub action: OrderAction,
}

/// What is to be done with an entry.
#[derive(Debug, PartialEq, Eq)]
pub enum OrderAction {
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
pub enum Outcome {
    /// It is done, and durable. The entry as it is now, or was before it was deleted.
    Done(Row),
    /// The entry is not what was seen, but this; `None` if it is gone.
    Changed(Option<Row>),
    /// The environment to move to has this key already.
    Exists,
    /// No space is left.
    Full,
    /// Too much is going on.
    Busy,
}

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
enum FoundText {
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
    rows: Vec<RowText>,
    more: bool,
}

#[derive(Serialize, Deserialize)]
struct OrderText {
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
enum OutcomeText {
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
pub fn decode_find(text: &[u8]) -> Result<Find, Malformed> {
    let find: Find = serde_json::from_slice(text)?;
    Ok(Find { environment: find.environment.filter(|name| !name.is_empty()), ..find })
}

/// The answer to the question for an entry; `salt` is the fingerprint of the node's.
pub fn encode_found(salt: Option<u64>, found: &Found) -> Vec<u8> {
    encode(&match found {
        Found::Row(row) => FoundText::Row { salt, row: row_text(row) },
        Found::Ambiguous(environments) => FoundText::Ambiguous(environments.clone()),
        Found::Nothing => FoundText::Nothing,
    })
}

/// # Errors
/// When it is no such message.
pub fn decode_found(text: &[u8]) -> Result<(Option<u64>, Found), Malformed> {
    Ok(match serde_json::from_slice(text)? {
        FoundText::Row { salt, row } => (salt, Found::Row(Arc::new(row_of(row)?))),
        FoundText::Ambiguous(environments) => (None, Found::Ambiguous(environments)),
        FoundText::Nothing => (None, Found::Nothing),
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
pub fn decode_query(text: &[u8]) -> Result<PageQuery, Malformed> {
    let text: QueryText = serde_json::from_slice(text)?;
    let filter = Filter { category: text.category, environment: text.environment, prefix: text.prefix };
    Ok(PageQuery { after: text.after.map(id_of), filter, bytes_max: text.bytes, names_only: text.names })
}

/// A page; `salt` is the fingerprint of the node's.
pub fn encode_page(salt: Option<u64>, page: &NamePage) -> Vec<u8> {
    encode(&PageText { salt, rows: page.rows.iter().map(row_text).collect(), more: page.more })
}

/// # Errors
/// When it is no such message, or its names are not in order.
pub fn decode_page(text: &[u8]) -> Result<(Option<u64>, NamePage), Malformed> {
    let PageText { salt, rows, more } = serde_json::from_slice(text)?;
    let rows = rows.into_iter().map(row_of).collect::<Result<Vec<_>, _>>()?;
    // Whoever says that there is more without giving anything would be asked for ever.
    if !rows.is_sorted_by(|one, next| one.entry_id() < next.entry_id()) || (more && rows.is_empty()) {
        return Err(Malformed::new("a page whose names are not in order"));
    }
    Ok((salt, NamePage { rows, more }))
}

/// An order.
pub fn encode_order(order: &Order) -> Vec<u8> {
    let update = match &order.action {
        OrderAction::Delete => None,
        OrderAction::Update { ciphertext, category, environment } => {
            Some(UpdateText { t: ciphertext.to_text(), c: category.clone(), e: environment.clone() })
        }
    };
    let seen = format!("{:032x}", order.seen.0);
    encode(&OrderText { salt: order.salt, id: name_of(&order.id), seen, update })
}

/// # Errors
/// When it is no such message.
pub fn decode_order(text: &[u8]) -> Result<Order, Malformed> {
    let OrderText { salt, id, seen, update } = serde_json::from_slice(text)?;
    let seen = u128::from_str_radix(&seen, 16).map_err(|_| Malformed::new("a digest that is none"))?;
    let action = match update {
        None => OrderAction::Delete,
        Some(UpdateText { t, c, e }) => {
            let environment = e.filter(|name| !name.is_empty());
            OrderAction::Update { ciphertext: ciphertext_of(&t)?, category: c, environment }
        }
    };
    Ok(Order { salt, id: id_of(id), seen: Digest(seen), action })
}

/// What became of an order.
pub fn encode_outcome(outcome: &Outcome) -> Vec<u8> {
    encode(&match outcome {
        Outcome::Done(row) => OutcomeText::Done(row_text(row)),
        Outcome::Changed(row) => OutcomeText::Changed(row.as_ref().map(row_text)),
        Outcome::Exists => OutcomeText::Exists,
        Outcome::Full => OutcomeText::Full,
        Outcome::Busy => OutcomeText::Busy,
    })
}

/// # Errors
/// When it is no such message.
pub fn decode_outcome(text: &[u8]) -> Result<Outcome, Malformed> {
    Ok(match serde_json::from_slice(text)? {
        OutcomeText::Done(row) => Outcome::Done(row_of(row)?),
        OutcomeText::Changed(row) => Outcome::Changed(row.map(row_of).transpose()?),
        OutcomeText::Exists => Outcome::Exists,
        OutcomeText::Full => Outcome::Full,
        OutcomeText::Busy => Outcome::Busy,
    })
}

fn encode(message: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(message).expect("maps with text keys, written to memory")
}

fn name_of(id: &EntryId) -> Find {
    Find { key: id.key.clone(), environment: id.environment.clone() }
}

fn id_of(name: Find) -> EntryId {
    EntryId { key: name.key, environment: name.environment.filter(|name| !name.is_empty()) }
}

fn ciphertext_of(text: &str) -> Result<Ciphertext, Malformed> {
    Ciphertext::from_text(text.as_bytes()).ok_or_else(|| Malformed::new("a value is no token"))
}

fn row_text(row: &Row) -> RowText {
    RowText {
        i: row.id,
        k: row.key.clone(),
        e: row.environment.clone(),
        t: row.ciphertext.as_ref().map(Ciphertext::to_text),
        c: row.category.clone(),
        a: row.created_at.map(Timestamp::as_microseconds),
        u: row.updated_at.map(Timestamp::as_microseconds),
    }
}

fn row_of(text: RowText) -> Result<Row, Malformed> {
    let environment = text.e.filter(|name| !name.is_empty());
    let ciphertext = text.t.as_deref().map(ciphertext_of).transpose()?;
    let mut row = Row::new(text.i, text.k, environment, ciphertext);
    row.category = text.c;
    row.created_at = text.a.map(Timestamp::from_microseconds);
    row.updated_at = text.u.map(Timestamp::from_microseconds);
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(key: &str, environment: Option<&str>) -> Row {
        let sealed = Some(Ciphertext::from_bytes(vec![0x80, 0, 255]));
        let mut row = Row::new(7, key.to_owned(), environment.map(str::to_owned), sealed);
        row.category = Some("c\"".to_owned());
        row.updated_at = Some(Timestamp::from_microseconds(5));
        row
    }

    fn shown(row: &Row) -> String {
        format!("{row:?}")
    }

    #[test]
    fn messages_and_back() {
        let find = Find { key: "ключ\n".into(), environment: Some("e".into()) };
        assert_eq!(decode_find(&encode_find(&find)).expect("valid"), find);
        let entry = row("k", Some("e"));
        let (salt, found) =
            decode_found(&encode_found(Some(u64::MAX), &Found::Row(Arc::new(row("k", Some("e"))))))
                .expect("valid");
        assert!(matches!(&found, Found::Row(found) if shown(found) == shown(&entry)), "{found:?}");
        assert_eq!(salt, Some(u64::MAX));
        let several = Found::Ambiguous(vec!["a".into(), "b".into()]);
        assert!(
            matches!(decode_found(&encode_found(None, &several)), Ok((None, Found::Ambiguous(found))) if found.len() == 2)
        );
        assert!(matches!(decode_found(&encode_found(None, &Found::Nothing)), Ok((None, Found::Nothing))));
        let filter = Filter { category: Some("c".into()), environment: None, prefix: Some("p".into()) };
        let after = Some(EntryId { key: "k".into(), environment: None });
        let query = PageQuery { after, filter, bytes_max: 5, names_only: true };
        assert_eq!(decode_query(&encode_query(&query)).expect("valid"), query);
        let page = NamePage { rows: vec![row("k", None), row("k", Some("e")), row("l", None)], more: true };
        let (_, decoded) = decode_page(&encode_page(Some(1), &page)).expect("valid");
        assert_eq!(format!("{decoded:?}"), format!("{page:?}"));
        let id = EntryId { key: "k".into(), environment: Some("e".into()) };
        let ciphertext = Ciphertext::from_bytes(vec![1]);
        let update = OrderAction::Update { ciphertext, category: Some("c".into()), environment: None };
        for action in [update, OrderAction::Delete] {
            let order = Order { salt: 3, id: id.clone(), seen: Digest(u128::MAX - 1), action };
            assert_eq!(decode_order(&encode_order(&order)).expect("valid"), order);
        }
        for outcome in [
            Outcome::Done(row("k", None)),
            Outcome::Changed(None),
            Outcome::Changed(Some(row("k", None))),
            Outcome::Exists,
            Outcome::Full,
            Outcome::Busy,
        ] {
            let decoded = decode_outcome(&encode_outcome(&outcome)).expect("valid");
            assert_eq!(format!("{decoded:?}"), format!("{outcome:?}"));
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "{}", "[]", "null", r#"{"salt":"x"}"#, r#"{"salt":1,"row":{"k":"k"}}"#] {
            assert!(decode_find(text.as_bytes()).is_err(), "{text}");
            assert!(decode_found(text.as_bytes()).is_err(), "{text}");
            assert!(decode_page(text.as_bytes()).is_err(), "{text}");
            assert!(decode_order(text.as_bytes()).is_err(), "{text}");
            assert!(decode_outcome(text.as_bytes()).is_err(), "{text}");
        }
        let no_token = br#"{"row":{"salt":1,"row":{"i":1,"k":"k","t":"?"}}}"#;
        assert!(decode_found(no_token).is_err());
        for rows in [vec![row("b", None), row("a", None)], vec![row("a", None), row("a", None)], vec![]] {
            let page = NamePage { rows, more: true };
            assert!(decode_page(&encode_page(None, &page)).is_err(), "{page:?}");
        }
    }
}
