//! `/cluster/...` endpoints for clients, operators and probes.

use std::borrow::Cow;
use std::time::Duration;

use crate::http::call::{Call, Handshake};
use crate::http::cors::is_form_type;
use crate::http::error::{detail, failed, not_clustered, salt_as_form};
use crate::http::json::write_string;
use crate::http::response::Response;
use crate::limits::SALT_BYTES;
use crate::service::exchange::{
    ENTRIES_HEADER, FEDERATED, HORIZON_HEADER, INSTANCE_HEADER, MODE_HEADER, NODE_HEADER, SALT_HEADER,
    encode_digest, encode_horizon,
};
use crate::service::node_auth::{AUTH_HEADER, CHALLENGE_HEADER, PROOF_HEADER, signed_response};
use crate::service::{Member, Service};
use crate::store::{ImportResult, SaltProblem};

/// Handles `GET /cluster/status`: counts peers only, not this node.
pub(in crate::http) fn status(call: &Call<'_>) -> Response {
    let Call { settings, service, .. } = call;
    let Some(cluster) = service.cluster() else {
        let body = r#"{"enabled":false,"mode":null,"node_id":null,"total_nodes":null,"healthy_nodes":null}"#;
        return Response::json(200, body.as_bytes().to_vec());
    };
    let members = cluster.members();
    let peers = members.iter().filter(|member| member.state != "self");
    let healthy = peers.clone().filter(|member| member.state == "healthy").count();
    let mode = if service.is_federated() { "federated" } else { "replica" };
    let mut body = format!(r#"{{"enabled":true,"mode":"{mode}","node_id":"#).into_bytes();
    write_string(&settings.node_id, &mut body);
    let counts = format!(r#","total_nodes":{},"healthy_nodes":{healthy}}}"#, peers.count());
    body.extend_from_slice(counts.as_bytes());
    Response::json(200, body)
}

/// Handles `GET /cluster/health`. The body is that of the Python server. An authenticated node also gets identity
/// headers; a sender with a challenge gets the headers for mutual authentication.
pub(in crate::http) fn health(call: &Call<'_>) -> Response {
    let Call { settings, service, .. } = call;
    let prober = call.request.prober;
    let mut body = br#"{"status":"healthy","node_id":"#.to_vec();
    write_string(&settings.node_id, &mut body);
    body.push(b'}');
    let mut response = Response::json(200, body);
    let Some(cluster) = service.cluster() else { return response };
    if prober.is_node {
        response.headers = identity(service, cluster.instance);
    }
    let peer_challenge = match prober.handshake {
        Handshake::NotWanted => return response,
        Handshake::Barred(barrier) => return response.with_header(AUTH_HEADER, barrier.name()),
        Handshake::Challenged(challenge) => challenge,
    };
    let credentials = settings.node_auth.credentials();
    let local_challenge = settings.node_auth.challenge();
    let response = response
        .with_header(CHALLENGE_HEADER, local_challenge.to_string())
        .with_header(AUTH_HEADER, credentials.shared().name());
    if !prober.is_node && !credentials.shared().resists_guessing() {
        return response;
    }
    let header = |name: &str| {
        let found = response.headers.iter().find(|(found, _)| *found == name);
        found.map(|(_, value)| &**value)
    };
    let proof = credentials.proof(
        peer_challenge,
        local_challenge,
        &signed_response(header, response.body.in_memory()),
    );
    response.with_header(PROOF_HEADER, proof)
}

/// Returns the headers that nodes of one cluster exchange about themselves.
fn identity(service: &Service, instance: u64) -> Vec<(&'static str, Cow<'static, str>)> {
    let (salt, is_sealed_with) = service.salt_in_use();
    let mut headers: Vec<(&str, Cow<'_, str>)> = vec![
        (INSTANCE_HEADER, format!("{instance:016x}").into()),
        (MODE_HEADER, if service.is_federated() { FEDERATED.into() } else { "replica".into() }),
        (HORIZON_HEADER, encode_horizon(&service.horizon()).into()),
        (ENTRIES_HEADER, is_sealed_with.to_string().into()),
    ];
    headers.extend(service.node().map(|node| (NODE_HEADER, node.to_string().into())));
    headers.extend(salt.map(|salt| (SALT_HEADER, format!("{salt:016x}").into())));
    headers
}

/// Handles `GET /v1/cluster/members`.
pub(in crate::http) fn members(call: &Call<'_>) -> Response {
    let Call { settings, service, .. } = call;
    let Some(cluster) = service.cluster() else { return not_clustered() };
    let mut body = br#"{"node_id":"#.to_vec();
    write_string(&settings.node_id, &mut body);
    // Both exist only in a store that keeps versions; the digest of a large one is not available immediately.
    let node = quoted(service.node());
    let digest = quoted(service.node().and(service.root_digest()).map(encode_digest));
    body.extend_from_slice(format!(r#","node":{node},"digest":{digest},"members":["#).as_bytes());
    for (index, member) in cluster.members().iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        write_member(member, &mut body);
    }
    body.extend_from_slice(b"]}");
    Response::json(200, body)
}

/// Returns a JSON string of text that needs no escaping, or `null`.
fn quoted(text: Option<impl std::fmt::Display>) -> String {
    text.map_or("null".to_owned(), |text| format!("\"{text}\""))
}

fn write_member(member: &Member, out: &mut Vec<u8>) {
    let number = |number: Option<u64>| number.map_or("null".to_owned(), |number| number.to_string());
    out.extend_from_slice(b"{\"address\":");
    write_string(&member.address, out);
    let digest = quoted(member.digest.map(encode_digest));
    let node = quoted(member.node);
    out.extend_from_slice(format!(r#","node":{node},"state":"{}","reason":"#, member.state).as_bytes());
    match &member.reason {
        Some(reason) => write_string(reason, out),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(
        format!(
            r#","last_contact_ms":{},"lag_ms":{},"outbox_length":{},"digest":{digest},"synced_ms":{}}}"#,
            number(member.last_contact_ms),
            number(member.lag_ms),
            number(member.outbox_length.map(i64::unsigned_abs)),
            number(member.synced_ms)
        )
        .as_bytes(),
    );
}

/// Handles `GET /cluster/salt`. In a cluster that has not agreed on a salt yet, the response waits for it.
pub(in crate::http) async fn read_salt(call: Call<'_>) -> Result<Response, Response> {
    let service = call.service;
    service.salt_is_agreed().await.map_err(failed)?;
    Ok(match service.salt() {
        None => detail(404, "Salt file not found on this node"),
        Some(salt) => Response {
            status: 200,
            content_type: Some("application/octet-stream"),
            headers: vec![("content-disposition", "attachment; filename=encryption.salt".into())],
            body: salt.to_vec().into(),
            delay: Duration::ZERO,
        },
    })
}

/// Handles `POST /cluster/salt`.
pub(in crate::http) async fn adopt_salt(call: Call<'_>) -> Result<Response, Response> {
    // Any cross-site page can send such a body, and a salt is permanent.
    if call.content_type().is_some_and(is_form_type) {
        return Err(salt_as_form());
    }
    Ok(match call.service.adopt_salt(call.body.to_vec()).await.map_err(failed)? {
        ImportResult::Created => Response::json(
            200,
            format!(r#"{{"message":"Salt received and saved successfully","status":"created","size_bytes":{SALT_BYTES}}}"#)
                .into_bytes(),
        ),
        ImportResult::Same => Response::json(200, br#"{"message":"Salt already present and matches","status":"ok"}"#.to_vec()),
        ImportResult::Differs => detail(409, "Salt file already exists and differs from received salt"),
        ImportResult::Refused(SaltProblem::Size(size)) => {
            detail(400, &format!("Invalid salt size: {size} bytes (expected {SALT_BYTES})"))
        }
        ImportResult::Refused(problem @ SaltProblem::Degenerate { .. }) => {
            detail(400, &format!("Invalid salt: it {problem}"))
        }
    })
}
