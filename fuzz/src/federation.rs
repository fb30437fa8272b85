//! Messages between federated nodes: decoding never yields more than was sent, and encoding is its inverse.

use opensecureconf::model::SealedEntry;
use opensecureconf::wire::Protocol;
use opensecureconf::wire::federation::{self as messages, FindReply, RemoteWriteOutcome};

use super::replication::{VERSIONS, are_past, check};

/// Decodes `data` as each type of message.
pub fn run(data: &[u8]) {
    VERSIONS.into_iter().for_each(|protocol| check_in(protocol, data));
}

fn check_in(protocol: Protocol, data: &[u8]) {
    if let Ok(find) = messages::decode_find(data) {
        check(&find, true, |find| messages::encode_find(protocol, find), messages::decode_find);
    }
    if let Ok(message) = messages::decode_found(data) {
        let is_exact = match &message.1 {
            FindReply::Row(row) => is_exact(row),
            FindReply::Ambiguous(_) | FindReply::Nothing => true,
        };
        check(
            &message,
            is_exact,
            |(salt, found)| messages::encode_found(protocol, *salt, found),
            messages::decode_found,
        );
    }
    if let Ok(query) = messages::decode_query(data) {
        check(&query, true, |query| messages::encode_query(protocol, query), messages::decode_query);
    }
    if let Ok(message) = messages::decode_page(data) {
        let page = &message.1;
        assert!(page.rows.len() <= data.len(), "more rows than bytes");
        assert!(!page.more || !page.rows.is_empty(), "an empty page with a next page");
        let is_exact = page.rows.iter().all(is_exact);
        check(
            &message,
            is_exact,
            |(salt, page)| messages::encode_page(protocol, *salt, page),
            messages::decode_page,
        );
    }
    if let Ok(write) = messages::decode_write(data) {
        assert_eq!(write.id.check(), Ok(()), "{write:?}");
        check(&write, true, |write| messages::encode_write(protocol, write), messages::decode_write);
    }
    if let Ok(outcome) = messages::decode_outcome(data) {
        let is_exact = match &outcome {
            RemoteWriteOutcome::Done(row) | RemoteWriteOutcome::Changed(Some(row)) => is_exact(row),
            RemoteWriteOutcome::Changed(None)
            | RemoteWriteOutcome::Exists
            | RemoteWriteOutcome::Full
            | RemoteWriteOutcome::Busy => true,
        };
        check(
            &outcome,
            is_exact,
            |outcome| messages::encode_outcome(protocol, outcome),
            messages::decode_outcome,
        );
    }
}

fn is_exact(row: &SealedEntry) -> bool {
    are_past([row.created_at, row.updated_at].into_iter())
}
