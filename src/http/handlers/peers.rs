//! Inter-node endpoints of replication: sealed entries and their versions, never a user key.

use std::time::Duration;

use zeroize::Zeroizing;

use crate::http::call::Call;
use crate::http::error::{failed, malformed_message, not_clustered};
use crate::http::response::Response;
use crate::limits::{CHANGES_BYTES_PER_MESSAGE, PEER_INLINE_BYTES, VERSIONS_BYTES_PER_MESSAGE};
use crate::service::Service;
use crate::storage::root_of;
use crate::wire::DecodeError;
use crate::wire::replication::{
    decode_buckets, decode_changes, decode_digest, decode_ids, encode_applied, encode_digest, encode_digests,
};

/// Handles `POST /cluster/changes`: applies those of a peer's changes that supersede the local versions.
pub(in crate::http) async fn changes(call: Call<'_>) -> Result<Response, Response> {
    let Call { service, body, .. } = call;
    require_cluster(service)?;
    let _share = service.peer_work.share(body.len()).map_err(failed)?;
    let (salt, changes) = decoded(service, body, decode_changes).await?;
    let applied = service.replication.apply(salt, changes).await.map_err(failed)?;
    Ok(Response::json(200, encode_applied(&applied)))
}

/// Handles `POST /cluster/digests`: returns the peer's digest if it equals the local one, else the digests of all
/// buckets.
pub(in crate::http) fn digests(call: &Call<'_>) -> Result<Response, Response> {
    let Call { service, body, .. } = call;
    require_cluster(service)?;
    let remote = decode_digest(body).map_err(|error| malformed_message(&error))?;
    let local = service.replication.bucket_digests().map_err(failed)?;
    let root = root_of(&local);
    let body = match remote == root {
        true => encode_digest(root).into_bytes(),
        false => encode_digests(&local),
    };
    Ok(Response {
        status: 200,
        content_type: Some("application/octet-stream"),
        headers: Vec::new(),
        body: body.into(),
        delay: Duration::ZERO,
        receipt: None,
    })
}

/// Handles `POST /cluster/versions`: returns the versions of all entries in the requested buckets, or in the first ones
/// if that would exceed one message.
pub(in crate::http) async fn versions(call: Call<'_>) -> Result<Response, Response> {
    let Call { service, body, request, .. } = call;
    require_cluster(service)?;
    let _share = service.peer_work.share(body.len() + VERSIONS_BYTES_PER_MESSAGE).map_err(failed)?;
    let buckets = decoded(service, body, decode_buckets).await?;
    Ok(Response::json(
        200,
        service.replication.versions_message(request.protocol, buckets).await.map_err(failed)?,
    ))
}

/// Handles `POST /cluster/entries`: returns entries by name, as many as fit into one message.
pub(in crate::http) async fn entries(call: Call<'_>) -> Result<Response, Response> {
    let Call { service, body, request, .. } = call;
    require_cluster(service)?;
    let _share = service.peer_work.share(body.len() + CHANGES_BYTES_PER_MESSAGE).map_err(failed)?;
    let ids = decoded(service, body, decode_ids).await?;
    Ok(Response::json(200, service.replication.entries_message(request.protocol, ids).await.map_err(failed)?))
}

/// Decodes a message: on the executor if it is short, otherwise on the pool.
pub(super) async fn decoded<T: Send + 'static>(
    service: &Service,
    body: Zeroizing<Vec<u8>>,
    decode: fn(&[u8]) -> Result<T, DecodeError>,
) -> Result<T, Response> {
    let decoded = match body.len() <= PEER_INLINE_BYTES {
        true => decode(&body),
        false => service.on_pool(move || decode(&body)).await.map_err(failed)?,
    };
    decoded.map_err(|error| malformed_message(&error))
}

/// Fails unless this node is in a cluster in replica mode: federated nodes do not replicate.
fn require_cluster(service: &Service) -> Result<(), Response> {
    match service.cluster() {
        Some(_) if !service.is_federated() => Ok(()),
        _ => Err(not_clustered()),
    }
}
