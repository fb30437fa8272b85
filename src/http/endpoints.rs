//! The endpoint table: one row per path. Routing, `Allow`, credentials, labels of metrics and the API description all
//! come from it.

use std::future::ready;
use std::sync::LazyLock;

use super::endpoint::{Access, Endpoint, Listeners, Operation};
use super::handlers::{cluster, configs, documentation, federation, health, metrics, peers, system};
use super::openapi;
use crate::limits::{BODY_BYTES_MAX, PEER_BODY_BYTES_MAX};
use crate::wire::path;

/// An `async fn` of a call as a handler.
macro_rules! waits {
    ($handler:expr) => {
        |call| Box::pin($handler(call))
    };
}

/// A function of a call that never waits as a handler.
macro_rules! immediate {
    ($handler:expr) => {
        |call| Box::pin(ready(Ok($handler(&call))))
    };
}

/// A row of an endpoint between nodes: POST with the credentials of a node.
macro_rules! peer_endpoint {
    ($path:expr, $handler:expr, $description:literal) => {
        Endpoint {
            path: $path,
            listeners: Listeners::Peers,
            operations: &[Operation::post(Access::Node, PEER_BODY_BYTES_MAX, $handler)],
            description: include_str!($description),
        }
    };
}

/// All endpoints, in the order of the API description.
pub(super) static ENDPOINTS: [Endpoint; 22] = [
    Endpoint {
        path: "/configs",
        listeners: Listeners::Clients,
        operations: &[
            Operation::get(Access::UserKey, waits!(configs::list)),
            Operation::post(Access::UserKey, BODY_BYTES_MAX, waits!(configs::create)),
        ],
        description: include_str!("openapi/paths/configs.json"),
    },
    Endpoint {
        path: CONFIG_PATH,
        listeners: Listeners::Clients,
        operations: &[
            Operation::get(Access::UserKey, waits!(configs::read)).with_cached(configs::try_read_cached),
            Operation::put(Access::UserKey, BODY_BYTES_MAX, waits!(configs::update)),
            Operation::delete(Access::UserKey, waits!(configs::delete)),
        ],
        description: include_str!("openapi/paths/config.json"),
    },
    Endpoint {
        path: "/",
        listeners: Listeners::Clients,
        operations: &[Operation::get(
            Access::ApiKeyIf(|settings| !settings.has_public_root),
            immediate!(system::root),
        )],
        description: include_str!("openapi/paths/root.json"),
    },
    Endpoint {
        path: "/ready",
        listeners: Listeners::All,
        operations: &[Operation::get(Access::Open, immediate!(system::ready))],
        description: include_str!("openapi/paths/ready.json"),
    },
    Endpoint {
        path: "/health",
        listeners: Listeners::All,
        operations: &[Operation::get(Access::Open, immediate!(health::health))],
        description: include_str!("openapi/paths/health.json"),
    },
    Endpoint {
        path: "/metrics",
        listeners: Listeners::ClientsAndAdmin,
        operations: &[Operation::get(
            Access::ApiKeyIf(|settings| settings.has_private_metrics),
            waits!(metrics::metrics),
        )],
        description: include_str!("openapi/paths/metrics.json"),
    },
    Endpoint {
        path: path::HEALTH,
        listeners: Listeners::All,
        operations: &[Operation::get(Access::Handshake, immediate!(cluster::health))],
        description: include_str!("openapi/paths/cluster-health.json"),
    },
    Endpoint {
        path: "/cluster/status",
        listeners: Listeners::Clients,
        operations: &[Operation::get(Access::ApiKey, immediate!(cluster::status))],
        description: include_str!("openapi/paths/cluster-status.json"),
    },
    Endpoint {
        path: "/cluster/configs",
        listeners: Listeners::Clients,
        operations: &[Operation::get(Access::UserKey, waits!(configs::list_local))],
        description: include_str!("openapi/paths/cluster-configs.json"),
    },
    Endpoint {
        path: path::SALT,
        // Clients may read and write it where the application lets them, which depends on the credentials in use.
        listeners: Listeners::ClientsAndPeers,
        operations: &[
            Operation::get(Access::Node, waits!(cluster::read_salt)),
            Operation::post(Access::Node, BODY_BYTES_MAX, waits!(cluster::adopt_salt)),
        ],
        description: include_str!("openapi/paths/cluster-salt.json"),
    },
    Endpoint {
        path: "/v1/cluster/members",
        listeners: Listeners::Clients,
        operations: &[Operation::get(Access::ApiKey, immediate!(cluster::members))],
        description: include_str!("openapi/paths/members.json"),
    },
    Endpoint {
        path: "/v1/federation/duplicates",
        listeners: Listeners::Clients,
        operations: &[Operation::get(Access::ApiKey, waits!(federation::duplicates))],
        description: include_str!("openapi/paths/duplicates.json"),
    },
    Endpoint {
        path: "/openapi.json",
        listeners: Listeners::Clients,
        operations: &[Operation::get(Access::Open, |_| {
            Box::pin(ready(Ok(documentation::openapi(&DESCRIPTION))))
        })],
        description: include_str!("openapi/paths/openapi.json"),
    },
    Endpoint {
        path: "/docs",
        listeners: Listeners::Clients,
        operations: &[Operation::get(Access::Open, immediate!(documentation::page))],
        description: include_str!("openapi/paths/docs.json"),
    },
    Endpoint {
        path: "/redoc",
        listeners: Listeners::Clients,
        operations: &[Operation::get(Access::Open, immediate!(documentation::page))],
        description: include_str!("openapi/paths/redoc.json"),
    },
    peer_endpoint!(path::CHANGES, waits!(peers::changes), "openapi/paths/changes.json"),
    peer_endpoint!(
        path::DIGESTS,
        |call| Box::pin(ready(peers::digests(&call))),
        "openapi/paths/digests.json"
    ),
    peer_endpoint!(path::VERSIONS, waits!(peers::versions), "openapi/paths/versions.json"),
    peer_endpoint!(path::ENTRIES, waits!(peers::entries), "openapi/paths/entries.json"),
    peer_endpoint!(path::FIND, waits!(federation::find), "openapi/paths/find.json"),
    peer_endpoint!(path::PAGE, waits!(federation::page), "openapi/paths/page.json"),
    peer_endpoint!(path::WRITE, waits!(federation::write), "openapi/paths/write.json"),
];

/// Template of the path of an entry, the only one with a parameter.
pub(super) const CONFIG_PATH: &str = "/configs/{key}";

/// Labels of all endpoints in logs and metrics; the first one is for paths that lead to none.
pub const LABELS: [&str; ENDPOINTS.len() + 1] = {
    let mut labels = ["unmatched"; ENDPOINTS.len() + 1];
    let mut index = 0;
    while index < ENDPOINTS.len() {
        labels[index + 1] = ENDPOINTS[index].path;
        index += 1;
    }
    labels
};

/// The API description as compact JSON.
pub(super) static DESCRIPTION: LazyLock<Vec<u8>> = LazyLock::new(|| {
    openapi::document(ENDPOINTS.iter().map(|endpoint| (endpoint.path, endpoint.description)))
});
