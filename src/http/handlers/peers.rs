//! What other nodes ask: sealed entries and their versions, never a user key.

use crate::http::answer::Answer;
use crate::http::app::failed;
use crate::http::error::{malformed_message, not_clustered};
use crate::limits::VERSIONS_BYTES_PER_MESSAGE;
use crate::service::Service;
use crate::service::exchange::{
    decode_buckets, decode_changes, decode_digest, decode_ids, encode_changes, encode_digests,
    encode_versions,
};
use crate::store::root_of;

/// `POST /cluster/changes`: takes changes of a peer, those that win.
pub(in crate::http) async fn changes(service: &Service, body: &[u8]) -> Result<Answer, Answer> {
    require_cluster(service)?;
    let (salt, changes) = decode_changes(body).map_err(|error| malformed_message(&error))?;
    let applied = service.apply(salt, changes).await.map_err(failed)?;
    Ok(Answer::json(200, format!(r#"{{"applied":{applied}}}"#).into_bytes()))
}

/// `POST /cluster/digests`: nothing if the peer's digest is this node's, else the digests of all buckets.
pub(in crate::http) fn digests(service: &Service, body: &[u8]) -> Result<Answer, Answer> {
    require_cluster(service)?;
    let theirs = decode_digest(body).map_err(|error| malformed_message(&error))?;
    let own = service.bucket_digests().map_err(failed)?;
    let body = match theirs == root_of(&own) {
        true => Vec::new(),
        false => encode_digests(&own),
    };
    Ok(Answer {
        status: 200,
        content_type: Some("application/octet-stream"),
        headers: Vec::new(),
        body: body.into(),
    })
}

/// `POST /cluster/versions`: the versions of all entries of some buckets, of the first ones if it would be
/// too many.
pub(in crate::http) async fn versions(service: &Service, body: &[u8]) -> Result<Answer, Answer> {
    require_cluster(service)?;
    let buckets = decode_buckets(body).map_err(|error| malformed_message(&error))?;
    let page = service.versions(buckets, VERSIONS_BYTES_PER_MESSAGE).await.map_err(failed)?;
    Ok(Answer::json(200, encode_versions(&page)))
}

/// `POST /cluster/entries`: entries by name, as many as fit one message.
pub(in crate::http) async fn entries(service: &Service, body: &[u8]) -> Result<Answer, Answer> {
    require_cluster(service)?;
    let ids = decode_ids(body).map_err(|error| malformed_message(&error))?;
    let changes = service.changes(ids).await.map_err(failed)?;
    let salt = service.salt_in_use().0.unwrap_or(0);
    Ok(Answer::json(200, encode_changes(salt, &changes)))
}

/// Nodes of a federation exchange nothing.
fn require_cluster(service: &Service) -> Result<(), Answer> {
    match service.cluster() {
        Some(_) if !service.is_federated() => Ok(()),
        _ => Err(not_clustered()),
    }
}
