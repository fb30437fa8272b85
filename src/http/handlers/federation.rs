//! Inter-node endpoints of a federation, and the report on duplicate entries.

use serde::Serialize;

use super::cursor;
use super::peers::decoded;
use crate::http::PARTIAL_RESULT;
use crate::http::body::ValidationError;
use crate::http::call::Call;
use crate::http::error::{failed, not_clustered};
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
    Ok(Response::json(200, service.federated.find_reply(request.protocol, &find).await.map_err(failed)?))
}

/// Handles `POST /cluster/page`: returns entries of this node in the order of their names.
pub(in crate::http) async fn page(call: Call<'_>) -> Result<Response, Response> {
    let Call { service, body, request, .. } = call;
    require_federation(service)?;
    let mut query = decoded(service, body, decode_query).await?;
    query.bytes_max = query.bytes_max.min(LIST_PAGE_BYTES);
    let _share = service.peer_work.share(query.bytes_max).map_err(failed)?;
    Ok(Response::json(200, service.federated.page_reply(request.protocol, query).await.map_err(failed)?))
}

/// Handles `POST /cluster/write`: changes an entry of this node by compare-and-swap.
pub(in crate::http) async fn write(call: Call<'_>) -> Result<Response, Response> {
    let Call { service, body, request, .. } = call;
    require_federation(service)?;
    let _share = service.peer_work.share(body.len()).map_err(failed)?;
    let write = decoded(service, body, decode_write).await?;
    Ok(Response::json(200, service.federated.write_reply(request.protocol, write).await.map_err(failed)?))
}

#[derive(Serialize)]
struct DuplicatesPage<'a> {
    duplicates: Vec<DuplicateEntry<'a>>,
    next_after: Option<String>,
    silent: &'a [String],
}

#[derive(Serialize)]
struct DuplicateEntry<'a> {
    key: &'a str,
    environment: Option<&'a str>,
    owners: Vec<&'a str>,
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
    let duplicates = service.federated.duplicates(after, DUPLICATES_COUNT_MAX).await.map_err(failed)?;
    let found = duplicates.found.iter().map(|duplicate| {
        let own = duplicate.is_local.then_some(&*settings.node_id);
        DuplicateEntry {
            key: &duplicate.id.key,
            environment: duplicate.id.environment.as_deref(),
            owners: own.into_iter().chain(duplicate.peers.iter().map(String::as_str)).collect(),
        }
    });
    let last = duplicates.found.last().filter(|_| duplicates.more);
    let page = DuplicatesPage {
        duplicates: found.collect(),
        next_after: last.map(|last| cursor::text(&After::Name(last.id.clone()))),
        silent: &duplicates.silent,
    };
    let response = Response::serialized(200, &page);
    Ok(match duplicates.silent.is_empty() {
        true => response,
        false => response.with_header(PARTIAL_RESULT, duplicates.silent.join(", ")),
    })
}

fn require_federation(service: &Service) -> Result<(), Response> {
    if service.is_federated() { Ok(()) } else { Err(not_clustered()) }
}
