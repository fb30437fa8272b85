//! The application: admits a request by its head, then hands it to its handler.

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

/// What the handlers need to know of the configuration.
#[derive(Debug)]
pub struct Settings {
    /// The API keys, when one is required.
    pub api_keys: ApiKeys,
    /// Credentials of nodes.
    pub node_auth: Arc<NodeAuth>,
    /// Shortest user key, in bytes.
    pub user_key_bytes_min: usize,
    /// This node's name.
    pub node_id: String,
    /// The values of `Host` that are answered; any if `None`.
    pub allowed_hosts: Option<AllowedHosts>,
    /// Sites whose pages may use the server.
    pub origins: Option<Origins>,
    /// Whether `GET /` needs no API key.
    pub has_public_root: bool,
    /// Whether `GET /metrics` needs the API key.
    pub has_private_metrics: bool,
    /// Proxies that tell who the client is.
    pub proxies: Proxies,
    /// How much one client may ask.
    pub rates: RateLimits,
    /// What the executors run on.
    pub engine: &'static str,
    /// Connections that there may be at a time.
    pub connections_max: usize,
    /// Answers that wait for their clients.
    pub answers: Arc<ByteBudget>,
    /// What the executors count.
    pub executors: Arc<Executors>,
    /// When the certificate of the listeners expires, in seconds since 1970; 0 without TLS.
    pub certificate_expiry: Arc<Gauge>,
}

impl Default for Settings {
    /// For anybody with a user key of eight bytes, and for no pages of other sites.
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

/// The application of this server.
#[derive(Debug)]
pub struct App {
    pub(super) service: Arc<Service>,
    pub(super) settings: Settings,
}

/// An admitted request.
#[derive(Debug)]
pub struct Request {
    pub(super) route: Route<'static>,
    /// There exactly when the route needs one.
    pub(super) user_key: Option<UserKey>,
    pub(super) requester: Requester,
    pub(super) query: Option<Vec<u8>>,
    pub(super) content_type: Option<Vec<u8>>,
    /// Who asks, for a health check.
    pub(super) prober: Prober,
}

/// Sender of a health check.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Prober {
    /// It has the credentials of a node.
    pub(super) is_node: bool,
    pub(super) handshake: Handshake,
}

/// How far a health check may go on to authenticate two nodes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Handshake {
    /// It does not ask for that.
    #[default]
    NotWanted,
    /// It asks for a proof that covers this.
    Challenged(Challenge),
    /// No further.
    Barred(Barrier),
}

impl App {
    /// Puts the application together.
    pub fn new(service: Arc<Service>, settings: Settings) -> Self {
        Self { service, settings }
    }

    /// Forgets what is not needed any more. To be called now and then.
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

    /// Probes often send an address as `Host`. Their responses, and redirects, show a page of another site nothing.
    fn is_for_this_host(&self, head: &RequestHead<'_>, route: &Result<Route<'_>, RouteError>) -> bool {
        let Some(allowed) = &self.settings.allowed_hosts else { return true };
        allowed.allow(head.host().unwrap_or_default())
            || matches!(
                route,
                Ok(Route::Health | Route::Ready | Route::ClusterHealth) | Err(RouteError::Redirect(_))
            )
    }

    /// The number of the key that was sent; `None` if none is required.
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

    /// Whether the request has the credentials of a node.
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
        // Without a secret the API key serves, as in the original; several of them are those of clients.
        match self.check_api_key(head.api_key(), client)? {
            Some(_) if !self.settings.api_keys.is_own(head.api_key().unwrap_or_default()) => {
                Err(RequestError::ApiKeyOfClients)
            }
            _ => Ok(true),
        }
    }

    /// Finds out whether a node sends the request, which is refused without the credentials if they are required.
    fn identify(
        &self,
        head: &RequestHead<'_>,
        exchange: &RequestLog,
        is_required: bool,
    ) -> Result<Prober, Response> {
        let challenge = head.fields(CHALLENGE_HEADER).next().and_then(Challenge::parse);
        let is_peer = challenge.is_some() || head.fields(TOKEN_HEADER).next().is_some();
        let barred = |barrier| {
            let handshake = if is_peer { Handshake::Barred(barrier) } else { Handshake::NotWanted };
            Ok(Prober { is_node: false, handshake })
        };
        if matches!(exchange.audience, Audience::Clients | Audience::Admin) {
            if !is_required {
                return barred(Barrier::OtherPort);
            }
            // The salt, which in the original clients may read and write.
            if exchange.lacks_node_certificate || self.settings.node_auth.shared() == SharedKey::Secret {
                return Err(RouteError::NotFound.into());
            }
        }
        if exchange.lacks_node_certificate {
            if is_required || is_peer {
                self.note_refused_node(exchange);
            }
            return match is_required {
                true => Err((&RequestError::NodeCertificateMissing).into()),
                false => barred(Barrier::Certificate),
            };
        }
        let is_node = self.check_node(head, is_required, exchange.client).map_err(|refusal| {
            self.note_refused_node(exchange);
            Response::from(&refusal)
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

    /// Logs and counts, on a node of a cluster.
    fn note_refused_node(&self, exchange: &RequestLog) {
        if self.service.cluster().is_some()
            && let Some(count) = self.settings.node_auth.note_refusal()
        {
            let address = exchange.client.map(tracing::field::display);
            let endpoint = ENDPOINTS[exchange.endpoint];
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

    /// In this order: the host, the origin, the path, the method, the API key, the user key, the coding of the body. The body
    /// itself is not read before all of them are right.
    fn on_head(
        &self,
        head: &RequestHead<'_>,
        exchange: &mut RequestLog,
        body: &mut Vec<u8>,
    ) -> Result<HeadDecision<Request>, Response> {
        if let Some(origins) = &self.settings.origins {
            exchange.allowed_origin = head.origin().and_then(|origin| cors::allowed_origin(origins, origin));
            if let Some(answer) = cors::preflight(head, exchange.allowed_origin.as_deref()) {
                return Err(answer);
            }
        }
        if !self.settings.proxies.is_empty()
            && let Some(peer) = exchange.client
        {
            exchange.client = Some(client_address(&self.settings.proxies, peer, head));
        }
        let route = Route::find_for(exchange.audience, head.method(), head.path());
        exchange.endpoint = match &route {
            Ok((_, endpoint)) | Err(RouteError::MethodNotAllowed { endpoint, .. }) => *endpoint,
            Err(_) => 0,
        };
        let route = route.map(|(route, _)| route);
        if head.method() == Method::Options
            && let Some(answer) = options(head.path(), &route)
        {
            return Err(answer);
        }
        if route.as_ref().map_or(true, Route::counts_for_limits) {
            let checked = self.settings.rates.check_address(exchange.client);
            checked.map_err(|wait| Response::from(&RequestError::TooManyRequests { wait }))?;
        }
        if !self.is_for_this_host(head, &route) {
            return Err(error::host_not_allowed());
        }
        if cors::is_foreign_write(head, exchange.allowed_origin.is_some()) {
            return Err(error::origin_not_allowed());
        }
        let route = route.map_err(|miss| match miss {
            RouteError::Redirect(path) => error::redirect(&path, head.query()),
            other => other.into(),
        })?;
        let (mut prober, mut api_key_number) = (Prober::default(), None);
        if route.needs_node() || matches!(route, Route::ClusterHealth) {
            prober = self.identify(head, exchange, route.needs_node())?;
        } else if self.needs_api_key(&route) {
            let number = self
                .check_api_key(head.api_key(), exchange.client)
                .map_err(|refusal| Response::from(&refusal))?;
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
        let requester = Requester::new(exchange.client, api_key_number);
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
        let answered = match route {
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
        answered.unwrap_or_else(HandlerOutput::Complete)
    }
}

/// The methods of a path that exists, or of the server. Load balancers ask by it whether the server is there.
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

/// Logs what nobody outside can help with, once, and turns it into an answer.
pub(super) fn failed(failure: crate::service::Error) -> Response {
    if let crate::service::Error::Store(source) = &failure {
        tracing::error!(error = %source, cause = ?std::error::Error::source(source), "a request failed");
        return error::internal();
    }
    failure.into()
}
