//! The application: decides on a request from its head, then passes it to its handler.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use zeroize::Zeroizing;

use super::access_log::{Client, RequestLog};
use super::body::ValidationError;
use super::budget::ByteBudget;
use super::call::{CachedCall, Call, Handshake, Parameter, Request};
use super::client_address::client_address;
use super::connection::{Application, HeadDecision};
use super::cors;
use super::endpoint::{Access, Audience, Endpoint, EndpointLabel, Handler, Listeners, RouteError};
use super::endpoints::LABELS;
use super::error::{self, RequestError};
use super::rate_limits::RateLimits;
use super::response::Response;
use super::route::Route;
use super::settings::Settings;
use crate::config::Proxies;
use crate::http1::{Method, RequestHead};
use crate::model::{Requester, UserKey};
use crate::service::node_auth::{Barrier, Challenge, SharedKey};
use crate::service::{Principal, SentCredentials, Service};
use crate::telemetry::Executors;
use crate::wire::{Protocol, header};

impl Default for Settings {
    /// Returns settings that require no API key, a user key of at least eight bytes, and allow no other origins.
    fn default() -> Self {
        Self {
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
            response_budget: ByteBudget::new(crate::limits::RESPONSES_BYTES_MAX),
            certificate_expiry: Arc::default(),
            executors: Arc::new(Executors::new(&LABELS)),
            is_draining: AtomicBool::new(false),
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
pub struct Admitted {
    handler: Handler,
    request: Request,
}

impl App {
    /// Creates the application.
    pub fn new(service: Arc<Service>, settings: Settings) -> Self {
        Self { service, settings }
    }

    /// Begins the drain: `/ready` responds 503, and clients are told to close their connections.
    pub fn begin_drain(&self) {
        self.settings.is_draining.store(true, Ordering::Relaxed);
    }

    /// Drops expired state. To be called periodically.
    pub fn sweep(&self) {
        self.service.sweep();
        self.settings.rates.sweep();
    }

    fn needs_api_key(&self, access: Access) -> bool {
        match access {
            Access::ApiKeyIf(is_required) => is_required(&self.settings),
            _ => access.needs_api_key(),
        }
    }

    /// Returns whether `Host` is accepted. Probes often send an address as `Host`; their responses, and redirects,
    /// reveal nothing to a page of another site, so they are exempt.
    fn is_for_this_host(&self, head: &RequestHead<'_>, route: &Result<Route<'_>, RouteError>) -> bool {
        let Some(allowed) = &self.settings.allowed_hosts else { return true };
        allowed.allow(head.host().unwrap_or_default())
            || match route {
                Ok(route) => route.endpoint.listeners == Listeners::All,
                Err(error) => matches!(error, RouteError::Redirect(_)),
            }
    }

    fn sent_credentials<'a>(head: &RequestHead<'a>, request_log: &RequestLog) -> SentCredentials<'a> {
        let token = head.fields(header::TOKEN).next();
        SentCredentials { token, api_key: head.api_key(), address: request_log.client }
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
    ) -> Result<(Principal, Handshake), Response> {
        let challenge = head.fields(header::CHALLENGE).next().and_then(Challenge::parse);
        let is_peer = challenge.is_some() || head.fields(header::TOKEN).next().is_some();
        let barred = |barrier| {
            let handshake = if is_peer { Handshake::Barred(barrier) } else { Handshake::NotWanted };
            Ok((Principal::Anonymous, handshake))
        };
        if matches!(request_log.audience, Audience::Clients | Audience::Admin) {
            if !is_required {
                return barred(Barrier::OtherPort);
            }
            // The salt: as in the Python server, clients may use it, unless nodes have certificates or a secret.
            if request_log.lacks_node_certificate
                || self.service.authentication.nodes().shared() == SharedKey::Secret
            {
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
        let sent = Self::sent_credentials(head, request_log);
        let principal = self.service.authentication.node(sent, is_required).map_err(|error| {
            self.record_refused_node(request_log);
            Response::from(&RequestError::from(error))
        })?;
        Ok((principal, challenge.map_or(Handshake::NotWanted, Handshake::Challenged)))
    }

    /// Logs and counts a TLS handshake that failed at a listener for peers.
    pub fn record_failed_handshake(&self, client: &Client, error: &std::io::Error) {
        if let Some(count) = self.service.authentication.nodes().note_refusal() {
            let address = client.address.map(tracing::field::display);
            tracing::warn!(address, %error, count, "TLS handshake with a peer failed");
        }
    }

    /// Logs and counts refused node credentials, on a node of a cluster.
    fn record_refused_node(&self, request_log: &RequestLog) {
        if self.service.cluster().is_some()
            && let Some(count) = self.service.authentication.nodes().note_refusal()
        {
            let address = request_log.client.map(tracing::field::display);
            let endpoint = request_log.endpoint.text;
            tracing::warn!(address, endpoint, count, "node credentials refused");
        }
    }

    /// Authenticates the sender, as the operation requires.
    fn authenticate(
        &self,
        head: &RequestHead<'_>,
        request_log: &RequestLog,
        access: Access,
        endpoint: &Endpoint,
    ) -> Result<(Principal, Handshake), Response> {
        if access.checks_nodes() {
            return self.identify(head, request_log, access.needs_node());
        }
        if !self.needs_api_key(access) {
            return Ok((Principal::Anonymous, Handshake::NotWanted));
        }
        let sent = Self::sent_credentials(head, request_log);
        let principal = self.service.authentication.client(sent);
        let principal = principal.map_err(|error| Response::from(&RequestError::from(error)))?;
        if let Some(index) = principal.api_key().filter(|_| endpoint.counts_for_limits()) {
            let checked = self.settings.rates.check_api_key(index);
            checked.map_err(|wait| Response::from(&RequestError::TooManyRequests { wait }))?;
        }
        Ok((principal, Handshake::NotWanted))
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
    type Request = Admitted;

    /// Checks the host, the origin, the path, the method, the API key, the user key and the coding of the body, in this
    /// order. The body itself is read only after all checks have passed.
    fn on_head(
        &self,
        head: &RequestHead<'_>,
        request_log: &mut RequestLog,
        body: &mut Vec<u8>,
    ) -> Result<HeadDecision<Admitted>, Response> {
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
            Ok(Route { label, .. }) | Err(RouteError::MethodNotAllowed { label, .. }) => *label,
            Err(_) => EndpointLabel::UNMATCHED,
        };
        if head.method() == Method::Options
            && let Some(response) = options(head.path(), &route)
        {
            return Err(response);
        }
        if route.as_ref().map_or(true, |route| route.endpoint.counts_for_limits()) {
            let checked = self.settings.rates.check_address(request_log.client);
            checked.map_err(|wait| Response::from(&RequestError::TooManyRequests { wait }))?;
        }
        if !self.is_for_this_host(head, &route) {
            return Err(error::host_not_allowed());
        }
        if cors::is_cross_origin_write(head, request_log.allowed_origin.is_some()) {
            return Err(error::origin_not_allowed());
        }
        let route = route.map_err(|route_error| match route_error {
            RouteError::Redirect(path) => error::redirect(&path, head.query()),
            other => other.into(),
        })?;
        let Route { endpoint, operation, parameter, .. } = route;
        let access = operation.access;
        let (principal, handshake) = self.authenticate(head, request_log, access, endpoint)?;
        request_log.is_of_node = principal == Principal::Node || !matches!(handshake, Handshake::NotWanted);
        let protocol = if access.needs_node() { protocol_of(head)? } else { Protocol::default() };
        let user_key = match access.needs_user_key() {
            true => Some(self.user_key(head.user_key())?),
            false => None,
        };
        let is_read = matches!(head.method(), Method::Get | Method::Head);
        if user_key.is_some() && (head.has_if_match() || (head.has_if_none_match() && !is_read)) {
            return Err((&RequestError::Conditional).into());
        }
        if let (Some(try_cached), Parameter::Key(key), Some(user_key)) =
            (operation.cached, &parameter, user_key)
        {
            let call = CachedCall { service: &self.service, user_key, key, query: head.query() };
            if try_cached(&call, body).is_some() {
                return Ok(HeadDecision::Responded);
            }
        }
        let body_bytes_max = operation.body_bytes_max;
        let takes_body = body_bytes_max.is_some();
        if takes_body && head.has_content_range() {
            return Err((&RequestError::PartialContent).into());
        }
        if takes_body && !head.content_encoding().is_none_or(is_identity) {
            return Err((&RequestError::ContentCoded).into());
        }
        let query = head.query().map(<[u8]>::to_vec);
        let content_type = head.content_type().filter(|_| takes_body).map(<[u8]>::to_vec);
        let (parameter, user_key) = (parameter.into_owned(), user_key.map(UserKey::from_header));
        let requester = Requester::new(request_log.client, principal.api_key());
        let request =
            Request { parameter, user_key, requester, query, content_type, principal, handshake, protocol };
        let request = Admitted { handler: operation.handler, request };
        Ok(HeadDecision::ReadBody { request, body_bytes_max })
    }

    fn allowed_origin(&self, origin: &[u8]) -> Option<String> {
        cors::allowed_origin(self.settings.origins.as_ref()?, origin)
    }

    fn is_draining(&self) -> bool {
        self.settings.is_draining()
    }

    async fn handle(&self, admitted: Admitted, body: Zeroizing<Vec<u8>>) -> Response {
        let Admitted { handler, request } = admitted;
        let call = Call { settings: &self.settings, service: &self.service, request, body };
        handler(call).await.unwrap_or_else(|error| error)
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

/// Returns the version of the protocol that a request of a node names.
fn protocol_of(head: &RequestHead<'_>) -> Result<Protocol, Response> {
    let named = head.fields(header::PROTOCOL).next();
    Protocol::of_request(named).ok_or_else(|| (&RequestError::ProtocolNotSupported).into())
}

fn is_identity(coding: &[u8]) -> bool {
    coding.is_empty() || coding.eq_ignore_ascii_case(b"identity")
}
