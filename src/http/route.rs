//! Routing of method and path: pure functions, and the index of the API.

pub use super::key_path::KeyPath;
use super::key_path::{header_text, percent_decode};
use super::pages::{self, File};
use crate::http1::Method;
use crate::limits::{BODY_BYTES_MAX, PEER_BODY_BYTES_MAX};

/// An endpoint of the API. Borrows from the path, so that routing does not allocate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route<'a> {
    /// `GET /`
    Root,
    /// `POST /configs`
    CreateConfig,
    /// `GET /configs`
    ListConfigs,
    /// `GET /configs/{key}`
    ReadConfig(KeyPath<'a>),
    /// `PUT /configs/{key}`
    UpdateConfig(KeyPath<'a>),
    /// `DELETE /configs/{key}`
    DeleteConfig(KeyPath<'a>),
    /// `GET /cluster/status`
    ClusterStatus,
    /// `GET /cluster/health`
    ClusterHealth,
    /// `GET /cluster/configs`
    ClusterConfigs,
    /// `GET /cluster/salt`
    ReadSalt,
    /// `POST /cluster/salt`
    AdoptSalt,
    /// `POST /cluster/changes`: between nodes
    PeerChanges,
    /// `POST /cluster/digests`: between nodes
    PeerDigests,
    /// `POST /cluster/versions`: between nodes
    PeerVersions,
    /// `POST /cluster/entries`: between nodes
    PeerEntries,
    /// `POST /cluster/find`: between nodes
    PeerFind,
    /// `POST /cluster/page`: between nodes
    PeerPage,
    /// `POST /cluster/write`: between nodes
    PeerWrite,
    /// `GET /v1/federation/duplicates`
    Duplicates,
    /// `GET /ready`
    Ready,
    /// `GET /v1/cluster/members`
    ClusterMembers,
    /// `GET /health`
    Health,
    /// `GET /metrics`
    Metrics,
    /// `GET /openapi.json`
    OpenApi,
    /// `GET /docs`, `GET /redoc` and their assets
    Page(&'static File),
}

/// The requesters that a listener serves, which decides its endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Audience {
    /// Clients and peers: there is one listener for both.
    #[default]
    Everyone,
    /// Clients: peers have a dedicated listener.
    Clients,
    /// Peers.
    Peers,
    /// Probes and monitoring, on the admin listener.
    Admin,
}

/// The reason why a request has no route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteError {
    /// The path does not exist.
    NotFound,
    /// The path exists, but does not support the method.
    MethodNotAllowed {
        /// The supported methods.
        allow: &'static str,
        /// Index of the path in [`ENDPOINTS`].
        endpoint: usize,
    },
    /// The path exists without its trailing slash, at this location, relative to the origin.
    Redirect(String),
}

enum Resource<'a> {
    Root,
    Configs,
    Config(KeyPath<'a>),
    ClusterStatus,
    ClusterHealth,
    ClusterConfigs,
    ClusterSalt,
    PeerChanges,
    PeerDigests,
    PeerVersions,
    PeerEntries,
    PeerFind,
    PeerPage,
    PeerWrite,
    Duplicates,
    Ready,
    ClusterMembers,
    Health,
    Metrics,
    OpenApi,
    Page(&'static File),
}

/// Path templates, used as labels in logs and metrics; the first one stands for unknown paths.
pub const ENDPOINTS: [&str; 23] = [
    "unmatched",
    "/",
    "/configs",
    "/configs/{key}",
    "/cluster/status",
    "/cluster/health",
    "/cluster/configs",
    "/cluster/salt",
    "/cluster/changes",
    "/cluster/digests",
    "/cluster/versions",
    "/cluster/entries",
    "/cluster/find",
    "/cluster/page",
    "/cluster/write",
    "/v1/federation/duplicates",
    "/ready",
    "/v1/cluster/members",
    "/health",
    "/metrics",
    "/openapi.json",
    "/docs",
    "/redoc",
];

impl<'a> Route<'a> {
    /// Finds the route of a request. HEAD is routed like GET.
    ///
    /// # Errors
    /// Returns the response to send instead, if there is no route.
    pub fn find(method: Method, path: &'a [u8]) -> Result<Self, RouteError> {
        Self::find_for(Audience::Everyone, method, path).map(|(route, _)| route)
    }

    /// Finds the route of a request on a listener for `audience`, and the index of its path in [`ENDPOINTS`].
    ///
    /// # Errors
    /// Fails like [`Self::find`]. Endpoints that are not for this audience do not exist.
    pub fn find_for(audience: Audience, method: Method, path: &'a [u8]) -> Result<(Self, usize), RouteError> {
        let find = |path| Resource::find(path).filter(|resource| resource.is_for(audience));
        let Some(resource) = find(path) else {
            // A trailing slash that gets here belongs to a fixed resource: in `/configs/...` it is part of the key.
            if let Some(shorter) = path.strip_suffix(b"/")
                && shorter != b"/"
                && find(shorter).is_some()
            {
                return Err(RouteError::Redirect(header_text(shorter)));
            }
            return Err(RouteError::NotFound);
        };
        let (endpoint, allow) = (resource.endpoint(), resource.allow());
        let method = if method == Method::Head { Method::Get } else { method };
        let route = match (resource, method) {
            (Resource::Root, Method::Get) => Self::Root,
            (Resource::Configs, Method::Get) => Self::ListConfigs,
            (Resource::Configs, Method::Post) => Self::CreateConfig,
            (Resource::Config(key), Method::Get) => Self::ReadConfig(key),
            (Resource::Config(key), Method::Put) => Self::UpdateConfig(key),
            (Resource::Config(key), Method::Delete) => Self::DeleteConfig(key),
            (Resource::ClusterStatus, Method::Get) => Self::ClusterStatus,
            (Resource::ClusterHealth, Method::Get) => Self::ClusterHealth,
            (Resource::ClusterConfigs, Method::Get) => Self::ClusterConfigs,
            (Resource::ClusterSalt, Method::Get) => Self::ReadSalt,
            (Resource::ClusterSalt, Method::Post) => Self::AdoptSalt,
            (Resource::PeerChanges, Method::Post) => Self::PeerChanges,
            (Resource::PeerDigests, Method::Post) => Self::PeerDigests,
            (Resource::PeerVersions, Method::Post) => Self::PeerVersions,
            (Resource::PeerEntries, Method::Post) => Self::PeerEntries,
            (Resource::PeerFind, Method::Post) => Self::PeerFind,
            (Resource::PeerPage, Method::Post) => Self::PeerPage,
            (Resource::PeerWrite, Method::Post) => Self::PeerWrite,
            (Resource::Duplicates, Method::Get) => Self::Duplicates,
            (Resource::Ready, Method::Get) => Self::Ready,
            (Resource::ClusterMembers, Method::Get) => Self::ClusterMembers,
            (Resource::Health, Method::Get) => Self::Health,
            (Resource::Metrics, Method::Get) => Self::Metrics,
            (Resource::OpenApi, Method::Get) => Self::OpenApi,
            (Resource::Page(file), Method::Get) => Self::Page(file),
            _ => return Err(RouteError::MethodNotAllowed { allow, endpoint }),
        };
        Ok((route, endpoint))
    }

    /// Returns the route with an owned key, for use after the path is dropped.
    pub fn into_owned(self) -> Route<'static> {
        match self {
            Self::ReadConfig(key) => Route::ReadConfig(key.into_owned()),
            Self::UpdateConfig(key) => Route::UpdateConfig(key.into_owned()),
            Self::DeleteConfig(key) => Route::DeleteConfig(key.into_owned()),
            Self::Root => Route::Root,
            Self::CreateConfig => Route::CreateConfig,
            Self::ListConfigs => Route::ListConfigs,
            Self::ClusterStatus => Route::ClusterStatus,
            Self::ClusterHealth => Route::ClusterHealth,
            Self::ClusterConfigs => Route::ClusterConfigs,
            Self::ReadSalt => Route::ReadSalt,
            Self::AdoptSalt => Route::AdoptSalt,
            Self::PeerChanges => Route::PeerChanges,
            Self::PeerDigests => Route::PeerDigests,
            Self::PeerVersions => Route::PeerVersions,
            Self::PeerEntries => Route::PeerEntries,
            Self::PeerFind => Route::PeerFind,
            Self::PeerPage => Route::PeerPage,
            Self::PeerWrite => Route::PeerWrite,
            Self::Duplicates => Route::Duplicates,
            Self::Ready => Route::Ready,
            Self::ClusterMembers => Route::ClusterMembers,
            Self::Health => Route::Health,
            Self::Metrics => Route::Metrics,
            Self::OpenApi => Route::OpenApi,
            Self::Page(file) => Route::Page(file),
        }
    }

    /// Returns whether the request needs the API key, if the server requires one at all.
    pub fn needs_api_key(&self) -> bool {
        !matches!(self, Self::ClusterHealth | Self::Ready | Self::Health | Self::OpenApi | Self::Page(_))
    }

    /// Returns whether the request needs node credentials, if any are configured.
    pub fn needs_node(&self) -> bool {
        self.is_between_nodes() || matches!(self, Self::ReadSalt | Self::AdoptSalt)
    }

    /// Returns whether this is an inter-node endpoint.
    fn is_between_nodes(&self) -> bool {
        matches!(
            self,
            Self::PeerChanges
                | Self::PeerDigests
                | Self::PeerVersions
                | Self::PeerEntries
                | Self::PeerFind
                | Self::PeerPage
                | Self::PeerWrite
        )
    }

    /// Returns whether requests count towards the rate limits of a client. Monitoring and inter-node requests do not.
    pub fn counts_for_limits(&self) -> bool {
        let is_monitoring = matches!(self, Self::Health | Self::Ready | Self::Metrics | Self::ClusterHealth);
        !is_monitoring && !self.needs_node()
    }

    /// Returns whether the request needs a user key.
    pub fn needs_user_key(&self) -> bool {
        match self {
            Self::CreateConfig
            | Self::ListConfigs
            | Self::ReadConfig(_)
            | Self::UpdateConfig(_)
            | Self::DeleteConfig(_)
            | Self::ClusterConfigs => true,
            Self::Root
            | Self::ClusterStatus
            | Self::ClusterHealth
            | Self::ReadSalt
            | Self::AdoptSalt
            | Self::PeerChanges
            | Self::PeerDigests
            | Self::PeerVersions
            | Self::PeerEntries
            | Self::PeerFind
            | Self::PeerPage
            | Self::PeerWrite
            | Self::Duplicates
            | Self::Ready
            | Self::ClusterMembers
            | Self::Health
            | Self::Metrics
            | Self::OpenApi
            | Self::Page(_) => false,
        }
    }

    /// Returns the size limit of the body in bytes; `None` if the endpoint has no body, and any sent is skipped.
    pub fn body_bytes_max(&self) -> Option<usize> {
        match self {
            Self::CreateConfig | Self::UpdateConfig(_) | Self::AdoptSalt => Some(BODY_BYTES_MAX),
            _ => self.is_between_nodes().then_some(PEER_BODY_BYTES_MAX),
        }
    }
}

impl<'a> Resource<'a> {
    /// Returns the index of the path in [`ENDPOINTS`].
    fn endpoint(&self) -> usize {
        match self {
            Self::Root => 1,
            Self::Configs => 2,
            Self::Config(_) => 3,
            Self::ClusterStatus => 4,
            Self::ClusterHealth => 5,
            Self::ClusterConfigs => 6,
            Self::ClusterSalt => 7,
            Self::PeerChanges => 8,
            Self::PeerDigests => 9,
            Self::PeerVersions => 10,
            Self::PeerEntries => 11,
            Self::PeerFind => 12,
            Self::PeerPage => 13,
            Self::PeerWrite => 14,
            Self::Duplicates => 15,
            Self::Ready => 16,
            Self::ClusterMembers => 17,
            Self::Health => 18,
            Self::Metrics => 19,
            Self::OpenApi => 20,
            Self::Page(file) if file.path.starts_with("/redoc") => 22,
            Self::Page(_) => 21,
        }
    }

    /// Returns the supported methods besides OPTIONS.
    fn allow(&self) -> &'static str {
        match self {
            Self::Configs | Self::ClusterSalt => "GET, HEAD, POST",
            Self::Config(_) => "GET, HEAD, PUT, DELETE",
            _ if self.is_between_nodes() => "POST",
            _ => "GET, HEAD",
        }
    }

    /// Returns whether a listener for `audience` serves the resource. Probes work on every listener. The salt is served
    /// to clients and peers: whether a client may use it depends on the configured credentials, which the application
    /// checks.
    fn is_for(&self, audience: Audience) -> bool {
        match audience {
            Audience::Everyone => true,
            Audience::Clients => !self.is_between_nodes(),
            Audience::Peers => {
                self.is_between_nodes()
                    || matches!(self, Self::ClusterSalt | Self::ClusterHealth | Self::Health | Self::Ready)
            }
            Audience::Admin => {
                matches!(self, Self::ClusterHealth | Self::Health | Self::Ready | Self::Metrics)
            }
        }
    }

    fn is_between_nodes(&self) -> bool {
        matches!(
            self,
            Self::PeerChanges
                | Self::PeerDigests
                | Self::PeerVersions
                | Self::PeerEntries
                | Self::PeerFind
                | Self::PeerPage
                | Self::PeerWrite
        )
    }

    /// Finds the resource of a path. Segments are split before they are decoded, so that `%2F` never starts a new
    /// segment.
    fn find(path: &'a [u8]) -> Option<Self> {
        let rest = path.strip_prefix(b"/")?;
        if rest.is_empty() {
            return Some(Self::Root);
        }
        let (first, rest) = match memchr::memchr(b'/', rest) {
            Some(at) => (&rest[..at], Some(&rest[at + 1..])),
            None => (rest, None),
        };
        match (&*percent_decode(first), rest) {
            (b"ready", None) => Some(Self::Ready),
            (b"health", None) => Some(Self::Health),
            (b"metrics", None) => Some(Self::Metrics),
            (b"openapi.json", None) => Some(Self::OpenApi),
            (b"docs" | b"redoc", _) => pages::find(path).map(Self::Page),
            (b"v1", Some(b"cluster/members")) => Some(Self::ClusterMembers),
            (b"v1", Some(b"federation/duplicates")) => Some(Self::Duplicates),
            (b"configs", None) => Some(Self::Configs),
            (b"configs", Some(key)) if !key.is_empty() => Some(Self::Config(KeyPath::parse(key, path))),
            (b"cluster", Some(second)) => match &*percent_decode(second) {
                b"status" => Some(Self::ClusterStatus),
                b"health" => Some(Self::ClusterHealth),
                b"configs" => Some(Self::ClusterConfigs),
                b"salt" => Some(Self::ClusterSalt),
                b"changes" => Some(Self::PeerChanges),
                b"digests" => Some(Self::PeerDigests),
                b"versions" => Some(Self::PeerVersions),
                b"entries" => Some(Self::PeerEntries),
                b"find" => Some(Self::PeerFind),
                b"page" => Some(Self::PeerPage),
                b"write" => Some(Self::PeerWrite),
                _ => None,
            },
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> KeyPath<'_> {
        KeyPath { text: text.into(), is_text: true, without_slash: None }
    }

    #[test]
    fn the_key_is_the_rest_of_the_path_decoded_once() {
        for (path, expected) in [
            ("/configs/a", "a"),
            ("/configs/a%2Fb", "a/b"),
            ("/configs/a/b", "a/b"),
            ("/configs/a//b", "a//b"),
            ("/configs//lead", "/lead"),
            ("/configs/a+b", "a+b"),
            ("/configs/%2520", "%20"),
            ("/configs/.", "."),
            ("/configs/..", ".."),
            ("/configs/../cluster/salt", "../cluster/salt"),
            ("/configs/%zz", "%zz"),
            ("/configs/50%", "50%"),
            ("/configs/%c3%a9%00%0a", "é\0\n"),
            ("/%63onfigs/a", "a"),
        ] {
            assert_eq!(
                Route::find(Method::Get, path.as_bytes()),
                Ok(Route::ReadConfig(key(expected))),
                "{path}"
            );
        }
        let Ok(Route::ReadConfig(bad)) = Route::find(Method::Head, b"/configs/%ff") else {
            panic!("no route")
        };
        assert_eq!((&*bad.text, bad.is_text), ("\u{fffd}", false));
    }

    #[test]
    fn trailing_slashes_redirect_unless_dot_segments_precede() {
        let Ok(Route::ReadConfig(slash)) = Route::find(Method::Get, b"/configs/t/") else {
            panic!("no route")
        };
        assert_eq!((&*slash.text, slash.without_slash.as_deref()), ("t/", Some("/configs/t")));
        let Ok(Route::ReadConfig(encoded)) = Route::find(Method::Get, b"/configs/t%2F") else {
            panic!("no route")
        };
        assert_eq!((&*encoded.text, encoded.without_slash), ("t/", None));
        for path in [
            "/configs/../cluster/salt/",
            "/configs/a/../../cluster/salt/",
            "/configs/x/../keep/",
            "/configs/x/%2e%2E/keep/",
            "/configs/.%2e/keep/",
            "/configs/./keep/",
            "/configs/x\\..\\keep/",
            "/configs/keep/..//",
            "/configs/../",
        ] {
            let Ok(Route::ReadConfig(dots)) = Route::find(Method::Get, path.as_bytes()) else {
                panic!("{path}")
            };
            assert_eq!(dots.without_slash, None, "{path}");
        }
        for path in ["/configs/a.b/", "/configs/.../", "/configs/a%2F../", "/configs/..a/"] {
            let Ok(Route::ReadConfig(key)) = Route::find(Method::Get, path.as_bytes()) else {
                panic!("{path}")
            };
            assert_eq!(key.without_slash.as_deref(), path.strip_suffix('/'), "{path}");
        }
        for (path, target) in [("/configs/", "/configs"), ("/cluster/health/", "/cluster/health")] {
            for method in [Method::Get, Method::Post, Method::Head] {
                assert_eq!(
                    Route::find(method, path.as_bytes()),
                    Err(RouteError::Redirect(target.to_owned()))
                );
            }
        }
        assert_eq!(header_text("/configs/é\r\n".as_bytes()), "/configs/%C3%A9%0D%0A");
    }

    #[test]
    fn listeners_serve_the_endpoints_of_their_audience() {
        let found = |audience, method, path: &str| Route::find_for(audience, method, path.as_bytes()).err();
        for path in ["changes", "digests", "versions", "entries", "find", "page", "write"] {
            let path = format!("/cluster/{path}");
            for method in [Method::Post, Method::Get] {
                let (clients, peers) =
                    (found(Audience::Clients, method, &path), found(Audience::Peers, method, &path));
                assert_eq!(clients, Some(RouteError::NotFound), "{path}");
                assert_ne!(peers, Some(RouteError::NotFound), "{path}");
            }
            assert_eq!(
                found(Audience::Clients, Method::Get, &format!("{path}/")),
                Some(RouteError::NotFound)
            );
        }
        for path in [
            "/",
            "/configs",
            "/configs/k",
            "/cluster/status",
            "/cluster/configs",
            "/v1/cluster/members",
            "/v1/federation/duplicates",
            "/metrics",
            "/openapi.json",
            "/docs",
            "/redoc",
        ] {
            assert_eq!(found(Audience::Clients, Method::Get, path), None, "{path}");
            assert_eq!(found(Audience::Peers, Method::Get, path), Some(RouteError::NotFound), "{path}");
            assert_eq!(found(Audience::Peers, Method::Delete, path), Some(RouteError::NotFound), "{path}");
            let admin = found(Audience::Admin, Method::Get, path);
            assert_eq!(admin, (path != "/metrics").then_some(RouteError::NotFound), "{path}");
        }
        assert_eq!(found(Audience::Admin, Method::Get, "/cluster/salt"), Some(RouteError::NotFound));
        assert_eq!(found(Audience::Admin, Method::Post, "/cluster/changes"), Some(RouteError::NotFound));
        for path in ["/health", "/ready", "/cluster/health"] {
            assert_eq!(found(Audience::Admin, Method::Get, path), None, "{path}");
        }
        for path in ["/health", "/ready", "/cluster/health", "/cluster/salt"] {
            for audience in [Audience::Everyone, Audience::Clients, Audience::Peers] {
                assert_eq!(found(audience, Method::Get, path), None, "{path} {audience:?}");
            }
        }
    }

    #[test]
    fn unknown_paths_and_methods_have_no_route() {
        for path in
            ["", "*", "/nope", "/cluster", "/cluster/", "//configs", "/Configs", "//", "/cluster/salt/x"]
        {
            assert_eq!(Route::find(Method::Get, path.as_bytes()), Err(RouteError::NotFound), "{path}");
        }
        for (method, path, allow) in [
            (Method::Patch, "/configs", "GET, HEAD, POST"),
            (Method::Post, "/configs/k", "GET, HEAD, PUT, DELETE"),
            (Method::Options, "/", "GET, HEAD"),
            (Method::Put, "/cluster/salt", "GET, HEAD, POST"),
            (Method::Get, "/cluster/changes", "POST"),
        ] {
            let Err(RouteError::MethodNotAllowed { allow: found, endpoint }) =
                Route::find(method, path.as_bytes())
            else {
                panic!("{path}")
            };
            assert_eq!(found, allow, "{path}");
            assert!(path.starts_with(ENDPOINTS[endpoint].split('{').next().expect("one part")), "{path}");
        }
    }
}
