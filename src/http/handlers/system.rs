//! The root resource and readiness.

use crate::http::call::Call;
use crate::http::error::not_ready;
use crate::http::response::Response;
use crate::service::Service;

/// Handles `GET /`: the description of this service.
pub(in crate::http) fn root(call: &Call<'_>) -> Response {
    let Call { settings, service, .. } = call;
    let (enabled, mode) = match service.cluster() {
        Some(_) if service.is_federated() => (true, "\"federated\""),
        Some(_) => (true, "\"replica\""),
        None => (false, "null"),
    };
    let body = format!(
        concat!(
            r#"{{"service":"OpenSecureConf API","version":"2.0.0","#,
            r#""features":["encryption","multithreading","async","api-key-auth","clustering","environments"],"#,
            r#""api_key_required":{},"cluster_enabled":{},"cluster_mode":{},"#,
            r#""endpoints":{{"create":"POST /configs","read":"GET /configs/{{key}}","#,
            r#""update":"PUT /configs/{{key}}","delete":"DELETE /configs/{{key}}","#,
            r#""list":"GET /configs","cluster_status":"GET /cluster/status"}}}}"#,
        ),
        settings.api_keys.are_required(),
        enabled,
        mode,
    );
    Response::json(200, body.into_bytes())
}

/// Handles `GET /ready`.
pub(in crate::http) fn ready(call: &Call<'_>) -> Response {
    match not_ready_reason(call.service) {
        Some(reason) => not_ready(&reason),
        None => Response::json(200, br#"{"ready":true}"#.to_vec()),
    }
}

/// Reason why `/ready` fails while a new node may lack entries of its peers.
pub(in crate::http) const NOT_JOINED: &str =
    "this node is new and has not compared its entries with its peers yet";

/// Returns the reason why this node should not receive requests; `None` if it is ready.
pub(super) fn not_ready_reason(service: &Service) -> Option<String> {
    if let Some(problem) = service.health_problems().into_iter().next() {
        return Some(problem);
    }
    let cluster = service.cluster()?;
    if !cluster.salt().is_open() {
        return Some("the nodes have not agreed on a salt yet".to_owned());
    }
    if !cluster.has_joined() {
        return Some(NOT_JOINED.to_owned());
    }
    let members = cluster.members();
    let blocking = members.iter().find(|member| member.blocks_readiness)?;
    Some(format!("no replication with {}: {}", blocking.address, blocking.reason.as_ref()?))
}
