//! The application: decides on a request from its head, then passes it to its handler.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::access_log::{Client, RequestLog};
use super::body::ValidationError;
use super::budget::ByteBudget;
use super::client_address::client_address;
use super::connection::{Application, HeadDecision};
use super::cors;
use super::error::{self, RequestError};
use super::handlers::{cluster, configs, documentation, federation, health, metrics, peers, system};
use super::rate_limits::RateLimits;
use super::response::{HandlerOutput, Response};
use super::route::{Audience, ENDPOINTS, Route, RouteError};
use crate::config::{AllowedHosts, Origins, Proxies};
use crate::http1::{Method, RequestHead};
use crate::model::{ApiKeys, Requester, UserKey};
use crate::service::node_auth::{Barrier, CHALLENGE_HEADER, Challenge, SharedKey, TOKEN_HEADER};
use crate::service::{CredentialKind, NodeAuth, Service};
use crate::telemetry::{Executors, Gauge};

/// The part of the configuration that the handlers need.
#[derive(Debug)]
pub struct Settings {
    /// The accepted API keys, if one is required.
    pub api_keys: ApiKeys,
    /// Credentials of nodes.
    pub node_auth: Arc<NodeAuth>,
    /// Shortest accepted user key, in bytes.
    pub user_key_bytes_min: usize,
    /// This node's name.
    pub node_id: String,
    /// The accepted values of `Host`; any if `None`.
    pub allowed_hosts: Option<AllowedHosts>,
    /// Origins whose pages may use the server; none if `None`.
    pub origins: Option<Origins>,
    /// Whether `GET /` needs no API key.
    pub has_public_root: bool,
    /// Whether `GET /metrics` needs the API key.
    pub has_private_metrics: bool,
    /// Proxies that are trusted to report the client's address.
    pub proxies: Proxies,
    /// Rate limits per client.
    pub rates: RateLimits,
    /// Name of the I/O engine.
    pub engine: &'static str,
    /// Limit of concurrent connections.
    pub connections_max: usize,
    /// Budget for responses that wait for their clients.
    pub answers: Arc<ByteBudget>,
    /// Counters of the executors.
    pub executors: Arc<Executors>,
    /// Expiry of the listeners' certificate, in seconds since 1970; 0 without TLS.
    pub certificate_expiry: Arc<Gauge>,
}

impl Default for Settings {
    /// Returns settings that require no API key, a user key of at least eight bytes, and allow no other origins.
    fn default() -> Self {
        Self {
            api_keys: ApiKeys::default(),
            node_auth: Arc::new(NodeAuth::new(&[], &ApiKeys::default())),
            user_key_bytes_min: 8,
            node_id: String::new(),
            allowed_hosts: None,
            origins: None,
            has_public_root: false,
            has_private_metrics: false,
            proxies: Proxies::default(),
            rates: RateLimits::default(),
            engine: "uring",
            connections_max: crate::limits::CONNECTIONS_COUNT_MAX,
            answers: ByteBudget::new(crate::limits::ANSWERS_BYTES_MAX),
            certificate_expiry: Arc::default(),
            executors: Arc::new(Executors::new(&ENDPOINTS)),
        }
    }
}

/// The HTTP application of this server.
#[derive(Debug)]
pub struct App {
    pub(super) service: Arc<Service>,
    pub(super) settings: Settings,
}

/// A request whose head has been accepted.
#[derive(Debug)]
pub struct Request {
    pub(super) route: Route<'static>,
    /// The user key; present exactly if the route needs one.
    pub(super) user_key: Option<UserKey>,
    pub(super) requester: Requester,
    pub(super) query: Option<Vec<u8>>,
    pub(super) content_type: Option<Vec<u8>>,
    /// The sender, for a health check.
    pub(super) prober: Prober,
}

/// The sender of a health check.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Prober {
    /// Whether the sender has presented node credentials.
    pub(super) is_node: bool,
    pub(super) handshake: Handshake,
}

/// The state of the node authentication that a health check carries.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Handshake {
    /// The sender does not request authentication.
    #[default]
    NotWanted,
    /// The sender requests a proof that covers this challenge.
    Challenged(Challenge),
    /// Authentication is not possible on this connection.
    Barred(Barrier),
}

impl App {
    /// Creates the application.
    pub fn new(service: Arc<Service>, settings: Settings) -> Self {
        Self { service, settings }
    }

    /// Drops expired state. To be called periodically.
    pub fn sweep(&self) {
        self.service.sweep();
        self.settings.rates.sweep();
    }

    fn needs_api_key(&self, route: &Route<'_>) -> bool {
        match route {
            Route::Root => !self.settings.has_public_root,
            Route::Metrics => self.settings.has_private_metrics,
            _ => route.needs_api_key(),
        }
    }

    /// Returns whether `Host` is accepted. Probes often send an address as `Host`; their responses, and redirects,
    /// reveal nothing to a page of another site, so they are exempt.
    fn is_for_this_host(&self, head: &RequestHead<'_>, route: &Result<Route<'_>, RouteError>) -> bool {
        let Some(allowed) = &self.settings.allowed_hosts else { return true };
        allowed.allow(head.host().unwrap_or_default())
            || matches!(
                route,
                Ok(Route::Health | Route::Ready | Route::ClusterHealth) | Err(RouteError::Redirect(_))
            )
    }

    /// Checks the API key, and returns its index; `None` if none is required.
    fn check_api_key(
        &self,
        sent: Option<&[u8]>,
        client: Option<IpAddr>,
    ) -> Result<Option<usize>, RequestError> {
        if !self.settings.api_keys.are_required() {
            return Ok(None);
        }
        let sent = sent.filter(|sent| !sent.is_empty()).ok_or(RequestError::ApiKeyMissing)?;
        let checked = match self.settings.api_keys.find(sent) {
            Some(number) => {
                let accepted = self.service.credential_accepted(CredentialKind::ApiKey, number, client);
                accepted.map(|()| Ok(Some(number)))
            }
            None => {
                let failed = self.service.credential_failed(CredentialKind::ApiKey, client);
                failed.map(|delay| Err(RequestError::ApiKeyWrong { delay }))
            }
        };
        checked.unwrap_or_else(|wait| Err(RequestError::TooManyFailures { wait }))
    }

    /// Returns whether the request has valid node credentials.
    ///
    /// # Errors
    /// Fails if they are wrong, or missing although `is_required`.
    fn check_node(
        &self,
        head: &RequestHead<'_>,
        is_required: bool,
        client: Option<IpAddr>,
    ) -> Result<bool, RequestError> {
        let auth = &self.settings.node_auth;
        if let Some(token) = head.fields(TOKEN_HEADER).next() {
            // After too many failures the response stays what it is for a wrong one, not a 429: the peer shows
            // its operator what is wrong, and learns nothing about further guesses.
            let delay = match auth.accepts(token) {
                true => match self.service.credential_accepted(CredentialKind::Node, 0, client) {
                    Ok(()) => return Ok(true),
                    Err(_wait) => Duration::ZERO,
                },
                false => self.service.credential_failed(CredentialKind::Node, client).unwrap_or_default(),
            };
            return Err(match auth.shared() {
                SharedKey::Secret => RequestError::ClusterSecretWrong { delay },
                SharedKey::ApiKey | SharedKey::Nothing => RequestError::ApiKeyWrong { delay },
            });
        }
        if !is_required {
            return Ok(false);
        }
        if auth.shared() == SharedKey::Secret {
            return Err(RequestError::ClusterSecretMissing);
        }
        // Without a cluster secret, the API key authenticates nodes, as in the Python server. Only the first key does:
        // any further ones are client keys.
        match self.check_api_key(head.api_key(), client)? {
            Some(_) if !self.settings.api_keys.is_own(head.api_key().unwrap_or_default()) => {
                Err(RequestError::ApiKeyOfClients)
            }
            _ => Ok(true),
        }
    }

    /// Determines whether a node sent the request.
    ///
    /// # Errors
    /// Returns the error response if node credentials are wrong, or missing although `is_required`.
    fn identify(
        &self,
        head: &RequestHead<'_>,
        request_log: &RequestLog,
        is_required: bool,
    ) -> Result<Prober, Response> {
        let challenge = head.fields(CHALLENGE_HEADER).next().and_then(Challenge::parse);
        let is_peer = challenge.is_some() || head.fields(TOKEN_HEADER).next().is_some();
        let barred = |barrier| {
            let handshake = if is_peer { Handshake::Barred(barrier) } else { Handshake::NotWanted };
            Ok(Prober { is_node: false, handshake })
        };
        if matches!(request_log.audience, Audience::Clients | Audience::Admin) {
            if !is_required {
                return barred(Barrier::OtherPort);
            }
            // The salt: as in the Python server, clients may use it, unless nodes have certificates or a secret.
            if request_log.lacks_node_certificate || self.settings.node_auth.shared() == SharedKey::Secret {
                return Err(RouteError::NotFound.into());
            }
        }
        if request_log.lacks_node_certificate {
            if is_required || is_peer {
                self.record_refused_node(request_log);
            }
            return match is_required {
                true => Err((&RequestError::NodeCertificateMissing).into()),
                false => barred(Barrier::Certificate),
            };
        }
        let is_node = self.check_node(head, is_required, request_log.client).map_err(|error| {
            self.record_refused_node(request_log);
            Response::from(&error)
        })?;
        Ok(Prober { is_node, handshake: challenge.map_or(Handshake::NotWanted, Handshake::Challenged) })
    }

    /// Logs and counts a TLS handshake that failed at a listener for peers.
    pub fn note_refused_handshake(&self, client: &Client, error: &std::io::Error) {
        if let Some(count) = self.settings.node_auth.note_refusal() {
            let address = client.address.map(tracing::field::display);
            tracing::warn!(address, %error, count, "TLS handshake with a peer failed");
        }
    }

    /// Logs and counts refused node credentials, on a node of a cluster.
    fn record_refused_node(&self, request_log: &RequestLog) {
        if self.service.cluster().is_some()
            && let Some(count) = self.settings.node_auth.note_refusal()
        {
            let address = request_log.client.map(tracing::field::display);
            let endpoint = ENDPOINTS[request_log.endpoint];
            tracing::warn!(address, endpoint, count, "node credentials refused");
        }
    }

    fn user_key<'a>(&self, sent: Option<&'a [u8]>) -> Result<&'a [u8], Response> {
        let bytes_min = self.settings.user_key_bytes_min;
        match sent {
            None => Err(ValidationError::user_key_missing().into()),
            Some(sent) if sent.len() < bytes_min => {
                Err((&RequestError::UserKeyTooShort { bytes_min }).into())
            }
            Some(sent) => Ok(sent),
        }
    }
}

impl Application for App {
    type Request = Request;

    /// Checks the host, the origin, the path, the method, the API key, the user key and the coding of the body, in this
    /// order. The body itself is read only after all checks have passed.
    fn on_head(
        &self,
        head: &RequestHead<'_>,
        request_log: &mut RequestLog,
        body: &mut Vec<u8>,
    ) -> Result<HeadDecision<Request>, Response> {
        if let Some(origins) = &self.settings.origins {
            request_log.allowed_origin =
                head.origin().and_then(|origin| cors::allowed_origin(origins, origin));
            if let Some(response) = cors::preflight(head, request_log.allowed_origin.as_deref()) {
                return Err(response);
            }
        }
        if !self.settings.proxies.is_empty()
            && let Some(peer) = request_log.client
        {
            request_log.client = Some(client_address(&self.settings.proxies, peer, head));
        }
        let route = Route::find_for(request_log.audience, head.method(), head.path());
        request_log.endpoint = match &route {
            Ok((_, endpoint)) | Err(RouteError::MethodNotAllowed { endpoint, .. }) => *endpoint,
            Err(_) => 0,
        };
        let route = route.map(|(route, _)| route);
        if head.method() == Method::Options
            && let Some(response) = options(head.path(), &route)
        {
            return Err(response);
        }
        if route.as_ref().map_or(true, Route::counts_for_limits) {
            let checked = self.settings.rates.check_address(request_log.client);
            checked.map_err(|wait| Response::from(&RequestError::TooManyRequests { wait }))?;
        }
        if !self.is_for_this_host(head, &route) {
            return Err(error::host_not_allowed());
        }
        if cors::is_foreign_write(head, request_log.allowed_origin.is_some()) {
            return Err(error::origin_not_allowed());
        }
        let route = route.map_err(|route_error| match route_error {
            RouteError::Redirect(path) => error::redirect(&path, head.query()),
            other => other.into(),
        })?;
        let (mut prober, mut api_key_number) = (Prober::default(), None);
        if route.needs_node() || matches!(route, Route::ClusterHealth) {
            prober = self.identify(head, request_log, route.needs_node())?;
        } else if self.needs_api_key(&route) {
            let number = self
                .check_api_key(head.api_key(), request_log.client)
                .map_err(|error| Response::from(&error))?;
            api_key_number = number;
            if let Some(number) = number.filter(|_| route.counts_for_limits()) {
                let checked = self.settings.rates.check_api_key(number);
                checked.map_err(|wait| Response::from(&RequestError::TooManyRequests { wait }))?;
            }
        }
        let user_key = match route.needs_user_key() {
            true => Some(self.user_key(head.user_key())?),
            false => None,
        };
        let is_read = matches!(head.method(), Method::Get | Method::Head);
        if user_key.is_some() && (head.has_if_match() || (head.has_if_none_match() && !is_read)) {
            return Err((&RequestError::Conditional).into());
        }
        if let (Route::ReadConfig(key), Some(user_key)) = (&route, user_key)
            && configs::try_read_cached(&self.service, user_key, key, head.query(), body).is_some()
        {
            return Ok(HeadDecision::Responded);
        }
        let body_bytes_max = route.body_bytes_max();
        let takes_body = body_bytes_max.is_some();
        if takes_body && head.has_content_range() {
            return Err((&RequestError::PartialContent).into());
        }
        if takes_body && !head.content_encoding().is_none_or(is_identity) {
            return Err((&RequestError::ContentCoded).into());
        }
        let query = head.query().map(<[u8]>::to_vec);
        let content_type = head.content_type().filter(|_| takes_body).map(<[u8]>::to_vec);
        let (route, user_key) = (route.into_owned(), user_key.map(UserKey::from_header));
        let requester = Requester::new(request_log.client, api_key_number);
        let request = Request { route, user_key, requester, query, content_type, prober };
        Ok(HeadDecision::ReadBody { request, body_bytes_max })
    }

    fn allowed_origin(&self, origin: &[u8]) -> Option<String> {
        cors::allowed_origin(self.settings.origins.as_ref()?, origin)
    }

    async fn handle(&self, request: Request, body: Zeroizing<Vec<u8>>) -> HandlerOutput {
        let Request { route, user_key, requester, query, content_type, prober } = request;
        let query = query.as_deref();
        let caller =
            configs::Caller { service: &self.service, user_key: user_key.as_ref(), requester, query };
        let output = match route {
            Route::Root => Ok(system::root(&self.settings, &self.service).into()),
            Route::Ready => Ok(system::ready(&self.service).into()),
            Route::Health => Ok(health::health(&self.settings, &self.service).into()),
            Route::Metrics => Ok(metrics::metrics(&self.settings, &self.service).await.into()),
            Route::ClusterStatus => Ok(cluster::status(&self.settings, &self.service).into()),
            Route::ClusterHealth => Ok(cluster::health(&self.settings, &self.service, prober).into()),
            Route::ClusterMembers => Ok(cluster::members(&self.settings, &self.service).into()),
            Route::PeerChanges => peers::changes(&self.service, body).await.map(HandlerOutput::from),
            Route::PeerDigests => peers::digests(&self.service, &body).map(HandlerOutput::from),
            Route::PeerVersions => peers::versions(&self.service, body).await.map(HandlerOutput::from),
            Route::PeerEntries => peers::entries(&self.service, body).await.map(HandlerOutput::from),
            Route::PeerFind => federation::find(&self.service, body).await.map(HandlerOutput::from),
            Route::PeerPage => federation::page(&self.service, body).await.map(HandlerOutput::from),
            Route::PeerWrite => federation::write(&self.service, body).await.map(HandlerOutput::from),
            Route::Duplicates => {
                federation::duplicates(&self.settings, &self.service, query).await.map(HandlerOutput::from)
            }
            Route::OpenApi => Ok(documentation::openapi()),
            Route::Page(file) => Ok(documentation::file(file)),
            Route::ReadSalt => cluster::read_salt(&self.service).await.map(HandlerOutput::from),
            Route::AdoptSalt => {
                let content_type = content_type.as_deref();
                cluster::adopt_salt(&self.service, &body, content_type).await.map(HandlerOutput::from)
            }
            Route::CreateConfig => configs::create(&caller, &body, content_type.as_deref()).await,
            Route::ReadConfig(key) => configs::read(&caller, &key).await,
            Route::UpdateConfig(key) => configs::update(&caller, &key, &body, content_type.as_deref()).await,
            Route::DeleteConfig(key) => configs::delete(&caller, &key).await,
            Route::ListConfigs => configs::list(&caller, false).await,
            Route::ClusterConfigs => configs::list(&caller, true).await,
        };
        output.unwrap_or_else(HandlerOutput::Complete)
    }
}

/// Returns the response to OPTIONS: the methods of an existing path, or of the server (`*`). Load balancers use it as a
/// liveness check.
fn options(path: &[u8], route: &Result<Route<'_>, RouteError>) -> Option<Response> {
    match route {
        Err(RouteError::MethodNotAllowed { allow, .. }) => Some(error::options(allow)),
        _ if path == b"*" => Some(error::options(cors::METHODS)),
        _ => None,
    }
}

fn is_identity(coding: &[u8]) -> bool {
    coding.is_empty() || coding.eq_ignore_ascii_case(b"identity")
}

/// Converts a service error into a response; internal errors are logged once.
pub(super) fn failed(error: crate::service::Error) -> Response {
    if let crate::service::Error::Store(source) = &error {
        tracing::error!(error = %source, cause = ?std::error::Error::source(source), "request failed");
        return error::internal();
    }
    error.into()
}
