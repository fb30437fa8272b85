//! `/cluster/...` endpoints for clients, operators and probes.

use std::borrow::Cow;
use std::time::Duration;

use serde::Serialize;

use super::system::cluster_mode;
use crate::http::call::{Call, Handshake};
use crate::http::cors::is_form_type;
use crate::http::error::{detail, failed, not_clustered, salt_as_form};
use crate::http::response::Response;
use crate::limits::SALT_BYTES;
use crate::service::node_auth::signed_response;
use crate::service::{Member, Principal, Service};
use crate::storage::{ImportResult, SaltProblem};
use crate::wire::replication::{encode_digest, encode_horizon};
use crate::wire::{FEDERATED, Protocol, REPLICA, header};

/// The cluster as one node sees it; all but the first field are null on a standalone node.
#[derive(Default, Serialize)]
struct Status<'a> {
    enabled: bool,
    mode: Option<&'static str>,
    node_id: Option<&'a str>,
    total_nodes: Option<usize>,
    healthy_nodes: Option<usize>,
}

/// Handles `GET /cluster/status`: counts peers only, not this node.
pub(in crate::http) fn status(call: &Call<'_>) -> Response {
    let Call { settings, service, .. } = call;
    let Some(cluster) = service.cluster() else { return Response::serialized(200, &Status::default()) };
    let members = cluster.members();
    let peers = members.iter().filter(|member| member.state != "self");
    let healthy = peers.clone().filter(|member| member.state == "healthy").count();
    let status = Status {
        enabled: true,
        mode: cluster_mode(service),
        node_id: Some(&settings.node_id),
        total_nodes: Some(peers.count()),
        healthy_nodes: Some(healthy),
    };
    Response::serialized(200, &status)
}

#[derive(Serialize)]
struct NodeHealth<'a> {
    status: &'static str,
    node_id: &'a str,
}

/// Handles `GET /cluster/health`. The body is that of the Python server. An authenticated node also gets identity
/// headers; a sender with a challenge gets the headers for mutual authentication.
pub(in crate::http) fn health(call: &Call<'_>) -> Response {
    let Call { settings, service, .. } = call;
    let is_node = call.request.principal == Principal::Node;
    let health = NodeHealth { status: "healthy", node_id: &settings.node_id };
    let mut response = Response::serialized(200, &health);
    let Some(cluster) = service.cluster() else { return response };
    if is_node {
        response.headers = identity(service, cluster.instance);
    }
    let peer_challenge = match call.request.handshake {
        Handshake::NotWanted => return response,
        Handshake::Barred(barrier) => return response.with_header(header::AUTH, barrier.name()),
        Handshake::Challenged(challenge) => challenge,
    };
    let credentials = service.authentication.nodes().credentials();
    let local_challenge = service.authentication.nodes().challenge();
    let response = response
        .with_header(header::CHALLENGE, local_challenge.to_string())
        .with_header(header::AUTH, credentials.shared().name());
    if !is_node && !credentials.shared().resists_guessing() {
        return response;
    }
    let field = |name: &str| {
        let found = response.headers.iter().find(|(found, _)| *found == name);
        found.map(|(_, value)| &**value)
    };
    let signed = signed_response(field, response.body.in_memory());
    let proof = credentials.proof(peer_challenge, local_challenge, &signed);
    response.with_header(header::PROOF, proof)
}

/// Returns the headers that nodes of one cluster exchange about themselves.
fn identity(service: &Service, instance: u64) -> Vec<(&'static str, Cow<'static, str>)> {
    let (salt, is_sealed_with) = service.salt.in_use();
    let mut headers: Vec<(&str, Cow<'_, str>)> = vec![
        (header::PROTOCOL, Protocol::NEWEST.to_string().into()),
        (header::INSTANCE, format!("{instance:016x}").into()),
        (header::MODE, if service.is_federated() { FEDERATED.into() } else { REPLICA.into() }),
        (header::HORIZON, encode_horizon(&service.replication.horizon()).into()),
        (header::ENTRIES, is_sealed_with.to_string().into()),
    ];
    headers.extend(service.replication.node().map(|node| (header::NODE, node.to_string().into())));
    headers.extend(salt.map(|salt| (header::SALT, format!("{salt:016x}").into())));
    headers
}

#[derive(Serialize)]
struct MemberList<'a> {
    node_id: &'a str,
    node: Option<String>,
    digest: Option<String>,
    members: Vec<MemberStatus<'a>>,
}

#[derive(Serialize)]
struct MemberStatus<'a> {
    address: &'a str,
    node: Option<String>,
    state: &'static str,
    reason: Option<&'a str>,
    last_contact_ms: Option<u64>,
    lag_ms: Option<u64>,
    outbox_length: Option<u64>,
    digest: Option<String>,
    synced_ms: Option<u64>,
    protocol: Option<u64>,
}

impl<'a> MemberStatus<'a> {
    fn of(member: &'a Member) -> Self {
        Self {
            address: &member.address,
            node: member.node.as_ref().map(ToString::to_string),
            state: member.state,
            reason: member.reason.as_deref(),
            last_contact_ms: member.last_contact_ms,
            lag_ms: member.lag_ms,
            outbox_length: member.outbox_length.map(i64::unsigned_abs),
            digest: member.digest.map(encode_digest),
            synced_ms: member.synced_ms,
            protocol: member.protocol.map(|protocol| protocol.number().into()),
        }
    }
}

/// Handles `GET /v1/cluster/members`.
pub(in crate::http) fn members(call: &Call<'_>) -> Response {
    let Call { settings, service, .. } = call;
    let Some(cluster) = service.cluster() else { return not_clustered() };
    let members = cluster.members();
    let list = MemberList {
        node_id: &settings.node_id,
        // Both exist only in a store that keeps versions; the digest of a large one is not available immediately.
        node: service.replication.node().as_ref().map(ToString::to_string),
        digest: service.replication.node().and(service.replication.root_digest()).map(encode_digest),
        members: members.iter().map(MemberStatus::of).collect(),
    };
    Response::serialized(200, &list)
}

/// Handles `GET /cluster/salt`. In a cluster that has not agreed on a salt yet, the response waits for it.
pub(in crate::http) async fn read_salt(call: Call<'_>) -> Result<Response, Response> {
    let service = call.service;
    service.salt.is_agreed().await.map_err(failed)?;
    Ok(match service.salt.current() {
        None => detail(404, "Salt file not found on this node"),
        Some(salt) => Response {
            status: 200,
            content_type: Some("application/octet-stream"),
            headers: vec![("content-disposition", "attachment; filename=encryption.salt".into())],
            body: salt.to_vec().into(),
            delay: Duration::ZERO,
            receipt: None,
        },
    })
}

#[derive(Serialize)]
struct SaltAdopted {
    message: &'static str,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_bytes: Option<usize>,
}

/// Handles `POST /cluster/salt`.
pub(in crate::http) async fn adopt_salt(call: Call<'_>) -> Result<Response, Response> {
    // Any cross-site page can send such a body, and a salt is permanent.
    if call.content_type().is_some_and(is_form_type) {
        return Err(salt_as_form());
    }
    Ok(match call.service.salt.adopt(call.body.to_vec()).await.map_err(failed)? {
        ImportResult::Created => Response::serialized(
            200,
            &SaltAdopted {
                message: "Salt received and saved successfully",
                status: "created",
                size_bytes: Some(SALT_BYTES),
            },
        ),
        ImportResult::Same => {
            let message = "Salt already present and matches";
            Response::serialized(200, &SaltAdopted { message, status: "ok", size_bytes: None })
        }
        ImportResult::Differs => detail(409, "Salt file already exists and differs from received salt"),
        ImportResult::Refused(SaltProblem::Size(size)) => {
            detail(400, &format!("Invalid salt size: {size} bytes (expected {SALT_BYTES})"))
        }
        ImportResult::Refused(problem @ SaltProblem::Degenerate { .. }) => {
            detail(400, &format!("Invalid salt: it {problem}"))
        }
    })
}
