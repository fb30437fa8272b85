//! The root resource and readiness.

use serde::Serialize;

use crate::http::call::Call;
use crate::http::error::not_ready;
use crate::http::response::Response;
use crate::http::settings::Settings;
use crate::service::Service;

#[derive(Serialize)]
struct Root {
    service: &'static str,
    version: &'static str,
    features: [&'static str; 6],
    api_key_required: bool,
    cluster_enabled: bool,
    cluster_mode: Option<&'static str>,
    endpoints: Endpoints,
}

#[derive(Serialize)]
struct Endpoints {
    create: &'static str,
    read: &'static str,
    update: &'static str,
    delete: &'static str,
    list: &'static str,
    cluster_status: &'static str,
}

/// Handles `GET /`: the description of this service.
pub(in crate::http) fn root(call: &Call<'_>) -> Response {
    let service = call.service;
    let cluster_mode = cluster_mode(service);
    let root = Root {
        service: "OpenSecureConf API",
        version: "2.0.0",
        features: ["encryption", "multithreading", "async", "api-key-auth", "clustering", "environments"],
        api_key_required: service.authentication.api_keys().are_required(),
        cluster_enabled: cluster_mode.is_some(),
        cluster_mode,
        endpoints: Endpoints {
            create: "POST /configs",
            read: "GET /configs/{key}",
            update: "PUT /configs/{key}",
            delete: "DELETE /configs/{key}",
            list: "GET /configs",
            cluster_status: "GET /cluster/status",
        },
    };
    Response::serialized(200, &root)
}

/// Returns the mode of the cluster; `None` on a standalone node.
pub(super) fn cluster_mode(service: &Service) -> Option<&'static str> {
    service.cluster().map(|_| if service.is_federated() { "federated" } else { "replica" })
}

/// Handles `GET /ready`.
pub(in crate::http) fn ready(call: &Call<'_>) -> Response {
    match not_ready_reason(call.settings, call.service) {
        Some(reason) => not_ready(&reason),
        None => Response::json(200, br#"{"ready":true}"#.as_slice()),
    }
}

/// Reason why `/ready` fails from the signal to stop on.
pub(in crate::http) const DRAINING: &str = "this node is about to stop";

/// Reason why `/ready` fails while a new node may lack entries of its peers.
pub(in crate::http) const NOT_JOINED: &str =
    "this node is new and has not compared its entries with its peers yet";

/// Returns the reason why this node should not receive requests; `None` if it is ready.
pub(super) fn not_ready_reason(settings: &Settings, service: &Service) -> Option<String> {
    if settings.is_draining() {
        return Some(DRAINING.to_owned());
    }
    if let Some(problem) = service.statistics.health_problems().into_iter().next() {
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
