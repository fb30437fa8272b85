//! The application: admits a request by its head, then hands it to its handler.

use std::sync::Arc;

use zeroize::Zeroizing;

use super::answer::{Answer, Outcome};
use super::body::Fault;
use super::client_address::client_address;
use super::connection::{Admission, Application};
use super::cors;
use super::error::{self, Refusal};
use super::handlers::{cluster, configs, documentation, federation, health, metrics, peers, system};
use super::rate_limits::RateLimits;
use super::route::{ENDPOINTS, Miss, Route};
use super::traffic::Exchange;
use crate::config::{Origins, Proxies};
use crate::http1::HeadView;
use crate::model::{ApiKeys, UserKey};
use crate::service::Service;
use crate::telemetry::Executors;

/// What the handlers need to know of the configuration.
#[derive(Debug)]
pub struct Settings {
    /// The API keys, when one is required.
    pub api_keys: ApiKeys,
    /// Shortest user key, in bytes.
    pub user_key_bytes_min: usize,
    /// This node's name.
    pub node_id: String,
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
    /// What the executors count.
    pub executors: Arc<Executors>,
}

impl Default for Settings {
    /// For anybody with a user key of eight bytes, and for no pages of other sites.
    fn default() -> Self {
        Self {
            api_keys: ApiKeys::default(),
            user_key_bytes_min: 8,
            node_id: String::new(),
            origins: None,
            has_public_root: false,
            has_private_metrics: false,
            proxies: Proxies::default(),
            rates: RateLimits::default(),
            engine: "uring",
            connections_max: crate::limits::CONNECTIONS_COUNT_MAX,
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
    pub(super) query: Option<Vec<u8>>,
    pub(super) content_type: Option<Vec<u8>>,
    /// Whether the API key would do, for a route that needs none.
    pub(super) api_key_is_right: bool,
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

    /// The number of the key that was sent; `None` if none is required.
    fn check_api_key(&self, sent: Option<&[u8]>) -> Result<Option<usize>, Refusal> {
        if !self.settings.api_keys.are_required() {
            return Ok(None);
        }
        let sent = sent.filter(|sent| !sent.is_empty()).ok_or(Refusal::ApiKeyMissing)?;
        self.settings.api_keys.find(sent).map(Some).ok_or(Refusal::ApiKeyWrong)
    }

    fn user_key<'a>(&self, sent: Option<&'a [u8]>) -> Result<&'a [u8], Answer> {
        let bytes_min = self.settings.user_key_bytes_min;
        match sent {
            None => Err(Fault::user_key_missing().into()),
            Some(sent) if sent.len() < bytes_min => Err((&Refusal::UserKeyTooShort { bytes_min }).into()),
            Some(sent) => Ok(sent),
        }
    }
}

impl Application for App {
    type Request = Request;

    /// In this order: the path, the method, the API key, the user key, the coding of the body. The body
    /// itself is not read before all of them are right.
    fn admit(
        &self,
        head: &HeadView<'_>,
        exchange: &mut Exchange,
        body: &mut Vec<u8>,
    ) -> Result<Admission<Request>, Answer> {
        if let Some(origins) = &self.settings.origins {
            exchange.allowed_origin = cors::allowed_origin(origins, head);
            if let Some(answer) = cors::preflight(head, exchange.allowed_origin.as_deref()) {
                return Err(answer);
            }
        }
        if !self.settings.proxies.is_empty()
            && let Some(peer) = exchange.client
        {
            exchange.client = Some(client_address(&self.settings.proxies, peer, head));
        }
        let route = Route::find(head.method(), head.path());
        exchange.endpoint = route.as_ref().map_or(0, Route::endpoint);
        if route.as_ref().map_or(true, Route::counts_for_limits) {
            let checked = self.settings.rates.check_address(exchange.client);
            checked.map_err(|wait| Answer::from(&Refusal::TooManyRequests { wait }))?;
        }
        let route = route.map_err(|miss| match miss {
            Miss::Redirect(path) => error::redirect(&path, head.query()),
            other => other.into(),
        })?;
        let api_key = self.check_api_key(head.api_key());
        let api_key_is_right = api_key.is_ok();
        if self.needs_api_key(&route) {
            let number = api_key.map_err(|refusal| Answer::from(&refusal))?;
            if let Some(number) = number.filter(|_| route.counts_for_limits()) {
                let checked = self.settings.rates.check_api_key(number);
                checked.map_err(|wait| Answer::from(&Refusal::TooManyRequests { wait }))?;
            }
        }
        let user_key = match route.needs_user_key() {
            true => Some(self.user_key(head.user_key())?),
            false => None,
        };
        if let (Route::ReadConfig(key), Some(user_key)) = (&route, user_key)
            && configs::read_at_hand(&self.service, user_key, key, head.query(), body).is_some()
        {
            return Ok(Admission::Answered);
        }
        let body_bytes_max = route.body_bytes_max();
        let takes_body = body_bytes_max.is_some();
        if takes_body && !head.content_encoding().is_none_or(is_identity) {
            return Err((&Refusal::ContentCoded).into());
        }
        let query = head.query().map(<[u8]>::to_vec);
        let content_type = head.content_type().filter(|_| takes_body).map(<[u8]>::to_vec);
        let (route, user_key) = (route.into_owned(), user_key.map(UserKey::from_header));
        let request = Request { route, user_key, query, content_type, api_key_is_right };
        Ok(Admission::Admitted { request, body_bytes_max })
    }

    async fn handle(&self, request: Request, body: Zeroizing<Vec<u8>>) -> Outcome {
        let Request { route, user_key, query, content_type, api_key_is_right } = request;
        let query = query.as_deref();
        let caller = configs::Caller { service: &self.service, user_key: user_key.as_ref(), query };
        let answered = match route {
            Route::Root => Ok(system::root(&self.settings, &self.service).into()),
            Route::Ready => Ok(system::ready(&self.service).into()),
            Route::Health => Ok(health::health(&self.settings, &self.service).into()),
            Route::Metrics => Ok(metrics::metrics(&self.settings, &self.service).await.into()),
            Route::ClusterStatus => Ok(cluster::status(&self.settings, &self.service).into()),
            Route::ClusterHealth => {
                Ok(cluster::health(&self.settings, &self.service, api_key_is_right).into())
            }
            Route::ClusterMembers => Ok(cluster::members(&self.settings, &self.service).into()),
            Route::PeerChanges => peers::changes(&self.service, &body).await.map(Outcome::from),
            Route::PeerDigests => peers::digests(&self.service, &body).map(Outcome::from),
            Route::PeerVersions => peers::versions(&self.service, &body).await.map(Outcome::from),
            Route::PeerEntries => peers::entries(&self.service, &body).await.map(Outcome::from),
            Route::PeerFind => federation::find(&self.service, &body).await.map(Outcome::from),
            Route::PeerPage => federation::page(&self.service, &body).await.map(Outcome::from),
            Route::PeerWrite => federation::write(&self.service, &body).await.map(Outcome::from),
            Route::Duplicates => {
                federation::duplicates(&self.settings, &self.service, query).await.map(Outcome::from)
            }
            Route::OpenApi => Ok(documentation::openapi()),
            Route::Page(file) => Ok(documentation::file(file)),
            Route::ReadSalt => cluster::read_salt(&self.service).await.map(Outcome::from),
            Route::AdoptSalt => cluster::adopt_salt(&self.service, &body).await.map(Outcome::from),
            Route::CreateConfig => configs::create(&caller, &body, content_type.as_deref()).await,
            Route::ReadConfig(key) => configs::read(&caller, &key).await,
            Route::UpdateConfig(key) => configs::update(&caller, &key, &body, content_type.as_deref()).await,
            Route::DeleteConfig(key) => configs::delete(&caller, &key).await,
            Route::ListConfigs => configs::list(&caller, false).await,
            Route::ClusterConfigs => configs::list(&caller, true).await,
        };
        answered.unwrap_or_else(Outcome::Complete)
    }
}

fn is_identity(coding: &[u8]) -> bool {
    coding.is_empty() || coding.eq_ignore_ascii_case(b"identity")
}

/// Logs what nobody outside can help with, once, and turns it into an answer.
pub(super) fn failed(failure: crate::service::Error) -> Answer {
    if let crate::service::Error::Store(source) = &failure {
        tracing::error!(error = %source, cause = ?std::error::Error::source(source), "a request failed");
        return error::internal();
    }
    failure.into()
}
