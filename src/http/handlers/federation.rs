//! What nodes of a federation ask each other, and what their operators ask about all of them.

use super::cursor;
use crate::http::PARTIAL_RESULT;
use crate::http::answer::Answer;
use crate::http::app::{Settings, failed};
use crate::http::body::Fault;
use crate::http::error::{malformed_message, not_clustered};
use crate::http::json::{write_optional, write_string};
use crate::http::query::parameter;
use crate::limits::{DUPLICATES_COUNT_MAX, LIST_PAGE_BYTES};
use crate::service::federation::messages::{
    decode_find, decode_order, decode_query, encode_found, encode_outcome, encode_page,
};
use crate::service::{After, Service};

/// `POST /cluster/find`: an entry of this node.
pub(in crate::http) async fn find(service: &Service, body: &[u8]) -> Result<Answer, Answer> {
    require_federation(service)?;
    let find = decode_find(body).map_err(|error| malformed_message(&error))?;
    let found = service.find_here(&find).await.map_err(failed)?;
    Ok(Answer::json(200, encode_found(service.salt_in_use().0, &found)))
}

/// `POST /cluster/page`: entries of this node, by name.
pub(in crate::http) async fn page(service: &Service, body: &[u8]) -> Result<Answer, Answer> {
    require_federation(service)?;
    let mut query = decode_query(body).map_err(|error| malformed_message(&error))?;
    query.bytes_max = query.bytes_max.min(LIST_PAGE_BYTES);
    let page = service.page_here(query).await.map_err(failed)?;
    Ok(Answer::json(200, encode_page(service.salt_in_use().0, &page)))
}

/// `POST /cluster/write`: changes an entry of this node.
pub(in crate::http) async fn write(service: &Service, body: &[u8]) -> Result<Answer, Answer> {
    require_federation(service)?;
    let order = decode_order(body).map_err(|error| malformed_message(&error))?;
    let outcome = service.write_here(order).await.map_err(failed)?;
    Ok(Answer::json(200, encode_outcome(&outcome)))
}

/// `GET /v1/federation/duplicates`: entries that several nodes have.
pub(in crate::http) async fn duplicates(
    settings: &Settings,
    service: &Service,
    query: Option<&[u8]>,
) -> Result<Answer, Answer> {
    require_federation(service)?;
    let after = match parameter(query, "after").filter(|text| !text.is_empty()) {
        None => None,
        Some(text) => match cursor::parse(&text) {
            Some(After::Name(name)) => Some(name),
            _ => return Err(Fault::parameter("value_error", "after", "what next_after gave", &text).into()),
        },
    };
    let duplicates = service.duplicates(after, DUPLICATES_COUNT_MAX).await.map_err(failed)?;
    let mut body = b"{\"duplicates\":[".to_vec();
    for (index, duplicate) in duplicates.found.iter().enumerate() {
        body.extend_from_slice(if index > 0 { b",{\"key\":" } else { b"{\"key\":" });
        write_string(&duplicate.id.key, &mut body);
        body.extend_from_slice(b",\"environment\":");
        write_optional(duplicate.id.environment.as_deref(), &mut body);
        body.extend_from_slice(b",\"owners\":");
        let own = duplicate.is_here.then_some(&settings.node_id);
        write_list(own.into_iter().chain(&duplicate.peers), &mut body);
        body.push(b'}');
    }
    let last = duplicates.found.last().filter(|_| duplicates.more);
    let next_after = last.map(|last| cursor::text(&After::Name(last.id.clone())));
    body.extend_from_slice(b"],\"next_after\":");
    write_optional(next_after.as_deref(), &mut body);
    body.extend_from_slice(b",\"silent\":");
    write_list(duplicates.silent.iter(), &mut body);
    body.push(b'}');
    let answer = Answer::json(200, body);
    Ok(match duplicates.silent.is_empty() {
        true => answer,
        false => answer.with_header(PARTIAL_RESULT, duplicates.silent.join(", ")),
    })
}

fn write_list<'a>(texts: impl Iterator<Item = &'a String>, out: &mut Vec<u8>) {
    out.push(b'[');
    for (index, text) in texts.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_string(text, out);
    }
    out.push(b']');
}

fn require_federation(service: &Service) -> Result<(), Answer> {
    if service.is_federated() { Ok(()) } else { Err(not_clustered()) }
}
