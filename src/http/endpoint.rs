//! Parts of the endpoint table in `endpoints.rs`.

use std::future::Future;
use std::pin::Pin;

use super::call::{CachedCall, Call};
use super::response::Response;
use super::settings::Settings;
use crate::http1::Method;

/// Requesters that a listener serves, which decides its endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Audience {
    /// Clients and peers: both use one listener.
    #[default]
    Everyone,
    /// Clients: peers have a dedicated listener.
    Clients,
    /// Peers.
    Peers,
    /// Probes and monitoring, on the admin listener.
    Admin,
}

/// Listeners that serve an endpoint. A listener for everyone serves all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listeners {
    /// Those for clients. Only these requests count towards the limits of a client.
    Clients,
    /// Those for peers.
    Peers,
    /// Those for clients and those for peers.
    ClientsAndPeers,
    /// Those for clients and the admin listener.
    ClientsAndAdmin,
    /// All: operators and load balancers probe a node through any of them, often with an address as `Host`.
    All,
}

/// Credentials that an operation requires.
#[derive(Clone, Copy, Debug)]
pub(super) enum Access {
    /// None.
    Open,
    /// None; peers authenticate themselves by it.
    Handshake,
    /// The API key, if the server requires one.
    ApiKey,
    /// The API key, if the server requires one and these settings do, too.
    ApiKeyIf(fn(&Settings) -> bool),
    /// A user key, and the API key if the server requires one.
    UserKey,
    /// The credentials of a node.
    Node,
}

/// Result of a handler.
pub(super) type Handled<'a> = Pin<Box<dyn Future<Output = Result<Response, Response>> + 'a>>;

/// Responds to an admitted request.
pub(super) type Handler = for<'a> fn(Call<'a>) -> Handled<'a>;

/// Responds with cached data without waiting, or declines.
pub(super) type CachedHandler = fn(&CachedCall<'_>, &mut Vec<u8>) -> Option<()>;

/// A method of an endpoint.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) method: Method,
    pub(super) access: Access,
    /// Size limit of the request body, in bytes; `None` if a body has no meaning and is skipped.
    pub(super) body_bytes_max: Option<usize>,
    pub(super) handler: Handler,
    /// Tried before the body is read.
    pub(super) cached: Option<CachedHandler>,
}

/// A row of the table: a path, and everything that is particular to it.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// Template of the path, which is its label in logs and metrics.
    pub(super) path: &'static str,
    pub(super) listeners: Listeners,
    pub(super) operations: &'static [Operation],
    /// Its path item in the API description.
    pub(super) description: &'static str,
}

/// Label of an endpoint in logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointLabel {
    /// Index into [`super::endpoints::LABELS`].
    pub index: usize,
    /// Template of the path.
    pub text: &'static str,
}

impl EndpointLabel {
    /// Label of requests whose path leads to no endpoint.
    pub const UNMATCHED: Self = Self { index: 0, text: "unmatched" };
}

/// Why a path and a method lead to no operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteError {
    /// There is no such path.
    NotFound,
    /// The path takes other methods.
    MethodNotAllowed {
        /// Value of `Allow`.
        allow: String,
        /// Label of the path.
        label: EndpointLabel,
    },
    /// The path exists without its last slash; this is its location, relative to the origin.
    Redirect(String),
}

impl Listeners {
    pub(super) fn include(self, audience: Audience) -> bool {
        match audience {
            Audience::Everyone => true,
            Audience::Clients => self != Self::Peers,
            Audience::Peers => matches!(self, Self::Peers | Self::ClientsAndPeers | Self::All),
            Audience::Admin => matches!(self, Self::ClientsAndAdmin | Self::All),
        }
    }
}

impl Operation {
    pub(super) const fn get(access: Access, handler: Handler) -> Self {
        Self { method: Method::Get, access, body_bytes_max: None, handler, cached: None }
    }

    pub(super) const fn post(access: Access, body_bytes_max: usize, handler: Handler) -> Self {
        Self { method: Method::Post, body_bytes_max: Some(body_bytes_max), ..Self::get(access, handler) }
    }

    pub(super) const fn put(access: Access, body_bytes_max: usize, handler: Handler) -> Self {
        Self { method: Method::Put, ..Self::post(access, body_bytes_max, handler) }
    }

    pub(super) const fn delete(access: Access, handler: Handler) -> Self {
        Self { method: Method::Delete, ..Self::get(access, handler) }
    }

    pub(super) const fn with_cached(self, cached: CachedHandler) -> Self {
        Self { cached: Some(cached), ..self }
    }
}

impl Access {
    /// Whether an operation requires the API key, with the default settings.
    pub(super) fn needs_api_key(self) -> bool {
        !matches!(self, Self::Open | Self::Handshake)
    }

    pub(super) fn needs_user_key(self) -> bool {
        matches!(self, Self::UserKey)
    }

    pub(super) fn needs_node(self) -> bool {
        matches!(self, Self::Node)
    }

    /// Whether a peer may prove by such a request that it is a node.
    pub(super) fn checks_nodes(self) -> bool {
        matches!(self, Self::Node | Self::Handshake)
    }
}

impl Endpoint {
    /// Value of `Allow`: the methods besides OPTIONS.
    pub(super) fn allow(&self) -> String {
        let names = self.operations.iter().flat_map(|operation| match operation.method {
            Method::Get => ["GET", "HEAD"].as_slice(),
            Method::Post => &["POST"],
            Method::Put => &["PUT"],
            Method::Delete => &["DELETE"],
            _ => &[],
        });
        names.copied().collect::<Vec<_>>().join(", ")
    }

    /// Whether requests count towards the limits of a client. Probes, monitoring and peers do not.
    pub(super) fn counts_for_limits(&self) -> bool {
        self.listeners == Listeners::Clients
    }
}
