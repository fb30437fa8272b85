//! Inter-node endpoints of a federation, and the report on duplicate entries.

use super::cursor;
use super::peers::decoded;
use crate::http::PARTIAL_RESULT;
use crate::http::body::ValidationError;
use crate::http::call::Call;
use crate::http::error::{failed, not_clustered};
use crate::http::json::{write_optional, write_string};
use crate::http::query::parameter;
use crate::http::response::Response;
use crate::limits::{DUPLICATES_COUNT_MAX, LIST_PAGE_BYTES};
use crate::service::{After, Service};
use crate::wire::federation::{decode_find, decode_query, decode_write};

/// Handles `POST /cluster/find`: returns an entry of this node.
pub(in crate::http) async fn find(call: Call<'_>) -> Result<Response, Response> {
    let Call { service, body, request, .. } = call;
    require_federation(service)?;
    let find = decoded(service, body, decode_find).await?;
    Ok(Response::json(200, service.find_reply(request.protocol, &find).await.map_err(failed)?))
}

/// Handles `POST /cluster/page`: returns entries of this node in the order of their names.
pub(in crate::http) async fn page(call: Call<'_>) -> Result<Response, Response> {
    let Call { service, body, request, .. } = call;
    require_federation(service)?;
    let mut query = decoded(service, body, decode_query).await?;
    query.bytes_max = query.bytes_max.min(LIST_PAGE_BYTES);
    let _share = service.share_for_peer(query.bytes_max).map_err(failed)?;
    Ok(Response::json(200, service.page_reply(request.protocol, query).await.map_err(failed)?))
}

/// Handles `POST /cluster/write`: changes an entry of this node by compare-and-swap.
pub(in crate::http) async fn write(call: Call<'_>) -> Result<Response, Response> {
    let Call { service, body, request, .. } = call;
    require_federation(service)?;
    let _share = service.share_for_peer(body.len()).map_err(failed)?;
    let write = decoded(service, body, decode_write).await?;
    Ok(Response::json(200, service.write_reply(request.protocol, write).await.map_err(failed)?))
}

/// Handles `GET /v1/federation/duplicates`: lists the entries that several nodes have.
pub(in crate::http) async fn duplicates(call: Call<'_>) -> Result<Response, Response> {
    let Call { settings, service, .. } = call;
    require_federation(service)?;
    let after = match parameter(call.query(), "after").filter(|text| !text.is_empty()) {
        None => None,
        Some(text) => match cursor::parse(&text) {
            Some(After::Name(name)) => Some(name),
            _ => {
                return Err(ValidationError::parameter(
                    "value_error",
                    "after",
                    "what next_after gave",
                    &text,
                )
                .into());
            }
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
        let own = duplicate.is_local.then_some(&settings.node_id);
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
    let response = Response::json(200, body);
    Ok(match duplicates.silent.is_empty() {
        true => response,
        false => response.with_header(PARTIAL_RESULT, duplicates.silent.join(", ")),
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

fn require_federation(service: &Service) -> Result<(), Response> {
    if service.is_federated() { Ok(()) } else { Err(not_clustered()) }
}
