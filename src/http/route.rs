//! From method and path to a route: pure, and the index of the API.

use std::borrow::Cow;

use super::pages::{self, File};
use crate::http1::Method;
use crate::limits::{BODY_BYTES_MAX, PEER_BODY_BYTES_MAX};

/// Every endpoint. Borrows from the path, so that finding a route takes no memory.
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
    /// `GET /docs`, `GET /redoc` and what they load
    Page(&'static File),
}

/// The entry key in a path: everything after `/configs/`, percent-decoded once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPath<'a> {
    /// The decoded text; bytes that are no UTF-8 are shown as U+FFFD.
    pub text: Cow<'a, str>,
    /// The decoded bytes are UTF-8; otherwise no entry can have this key.
    pub is_text: bool,
    /// Where to go if no entry has this key: the path ends in a `/` that was not encoded.
    pub without_slash: Option<String>,
}

/// Why a path leads to no route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Miss {
    /// No such path.
    NotFound,
    /// The path takes other methods: these.
    MethodNotAllowed(&'static str),
    /// The path exists without its last slash; this is its location, relative to the origin.
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

/// The templates of all paths, which are labels in logs and metrics; the first one is for paths that lead nowhere.
pub const ENDPOINTS: [&str; 22] = [
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
];

impl<'a> Route<'a> {
    /// The place of its path in [`ENDPOINTS`].
    pub fn endpoint(&self) -> usize {
        match self {
            Self::Root => 1,
            Self::CreateConfig | Self::ListConfigs => 2,
            Self::ReadConfig(_) | Self::UpdateConfig(_) | Self::DeleteConfig(_) => 3,
            Self::ClusterStatus => 4,
            Self::ClusterHealth => 5,
            Self::ClusterConfigs => 6,
            Self::ReadSalt | Self::AdoptSalt => 7,
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
            Self::Page(_) => 21,
        }
    }

    /// Finds the route of a request. HEAD goes where GET goes.
    ///
    /// # Errors
    /// With what to answer instead, when there is none.
    pub fn find(method: Method, path: &'a [u8]) -> Result<Self, Miss> {
        let Some(resource) = Resource::find(path) else {
            // The only paths with a slash behind them that can reach this are those of fixed resources.
            if let Some(shorter) = path.strip_suffix(b"/")
                && shorter != b"/"
                && Resource::find(shorter).is_some()
            {
                return Err(Miss::Redirect(header_text(shorter)));
            }
            return Err(Miss::NotFound);
        };
        let method = if method == Method::Head { Method::Get } else { method };
        match (resource, method) {
            (Resource::Root, Method::Get) => Ok(Self::Root),
            (Resource::Configs, Method::Get) => Ok(Self::ListConfigs),
            (Resource::Configs, Method::Post) => Ok(Self::CreateConfig),
            (Resource::Config(key), Method::Get) => Ok(Self::ReadConfig(key)),
            (Resource::Config(key), Method::Put) => Ok(Self::UpdateConfig(key)),
            (Resource::Config(key), Method::Delete) => Ok(Self::DeleteConfig(key)),
            (Resource::ClusterStatus, Method::Get) => Ok(Self::ClusterStatus),
            (Resource::ClusterHealth, Method::Get) => Ok(Self::ClusterHealth),
            (Resource::ClusterConfigs, Method::Get) => Ok(Self::ClusterConfigs),
            (Resource::ClusterSalt, Method::Get) => Ok(Self::ReadSalt),
            (Resource::ClusterSalt, Method::Post) => Ok(Self::AdoptSalt),
            (Resource::PeerChanges, Method::Post) => Ok(Self::PeerChanges),
            (Resource::PeerDigests, Method::Post) => Ok(Self::PeerDigests),
            (Resource::PeerVersions, Method::Post) => Ok(Self::PeerVersions),
            (Resource::PeerEntries, Method::Post) => Ok(Self::PeerEntries),
            (Resource::PeerFind, Method::Post) => Ok(Self::PeerFind),
            (Resource::PeerPage, Method::Post) => Ok(Self::PeerPage),
            (Resource::PeerWrite, Method::Post) => Ok(Self::PeerWrite),
            (Resource::Duplicates, Method::Get) => Ok(Self::Duplicates),
            (Resource::Ready, Method::Get) => Ok(Self::Ready),
            (Resource::ClusterMembers, Method::Get) => Ok(Self::ClusterMembers),
            (Resource::Health, Method::Get) => Ok(Self::Health),
            (Resource::Metrics, Method::Get) => Ok(Self::Metrics),
            (Resource::OpenApi, Method::Get) => Ok(Self::OpenApi),
            (Resource::Page(file), Method::Get) => Ok(Self::Page(file)),
            (
                Resource::PeerChanges
                | Resource::PeerDigests
                | Resource::PeerVersions
                | Resource::PeerEntries
                | Resource::PeerFind
                | Resource::PeerPage
                | Resource::PeerWrite,
                _,
            ) => Err(Miss::MethodNotAllowed("POST")),
            (Resource::Configs | Resource::ClusterSalt, _) => Err(Miss::MethodNotAllowed("GET, HEAD, POST")),
            (Resource::Config(_), _) => Err(Miss::MethodNotAllowed("GET, HEAD, PUT, DELETE")),
            (
                Resource::Root
                | Resource::ClusterStatus
                | Resource::ClusterHealth
                | Resource::ClusterConfigs
                | Resource::Duplicates
                | Resource::Ready
                | Resource::ClusterMembers
                | Resource::Health
                | Resource::Metrics
                | Resource::OpenApi
                | Resource::Page(_),
                _,
            ) => Err(Miss::MethodNotAllowed("GET, HEAD")),
        }
    }

    /// The same, for longer than the path is there.
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

    /// Whether the request must carry the API key, if one is required at all.
    pub fn needs_api_key(&self) -> bool {
        !matches!(self, Self::ClusterHealth | Self::Ready | Self::Health | Self::OpenApi | Self::Page(_))
    }

    /// Whether only nodes of a cluster send such requests, to each other.
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

    /// Whether such requests count for the limits of a client: not what watches over the server, and not what
    /// nodes say to each other.
    pub fn counts_for_limits(&self) -> bool {
        let watches = matches!(self, Self::Health | Self::Ready | Self::Metrics | Self::ClusterHealth);
        let is_of_nodes = self.is_between_nodes() || matches!(self, Self::ReadSalt | Self::AdoptSalt);
        !watches && !is_of_nodes
    }

    /// Whether the request must carry a user key.
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

    /// How large the body may be, if it means something. Other bodies are read over.
    pub fn body_bytes_max(&self) -> Option<usize> {
        match self {
            Self::CreateConfig | Self::UpdateConfig(_) | Self::AdoptSalt => Some(BODY_BYTES_MAX),
            _ => self.is_between_nodes().then_some(PEER_BODY_BYTES_MAX),
        }
    }
}

impl<'a> Resource<'a> {
    /// Segments are split first and decoded one by one, so that `%2F` never makes a new segment.
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

impl<'a> KeyPath<'a> {
    fn parse(raw: &'a [u8], path: &[u8]) -> Self {
        let without_slash = path.strip_suffix(b"/").map(header_text);
        let (text, is_text) = match percent_decode(raw) {
            Cow::Borrowed(bytes) => (String::from_utf8_lossy(bytes), std::str::from_utf8(bytes).is_ok()),
            Cow::Owned(bytes) => match String::from_utf8(bytes) {
                Ok(text) => (Cow::Owned(text), true),
                Err(error) => (Cow::Owned(String::from_utf8_lossy(error.as_bytes()).into_owned()), false),
            },
        };
        Self { text, is_text, without_slash }
    }

    fn into_owned(self) -> KeyPath<'static> {
        let Self { text, is_text, without_slash } = self;
        KeyPath { text: Cow::Owned(text.into_owned()), is_text, without_slash }
    }
}

/// Decodes `%XX`, once. A `%` without two hexadecimal digits stands for itself, as in the original.
pub(super) fn percent_decode(raw: &[u8]) -> Cow<'_, [u8]> {
    let Some(first) = memchr::memchr(b'%', raw) else { return Cow::Borrowed(raw) };
    let mut decoded = Vec::with_capacity(raw.len());
    decoded.extend_from_slice(&raw[..first]);
    let mut rest = &raw[first..];
    while let Some((&byte, after)) = rest.split_first() {
        let hex = |at: usize| after.get(at).and_then(|&digit| char::from(digit).to_digit(16));
        match (byte, hex(0), hex(1)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push(u8::try_from(high * 16 + low).expect("two hexadecimal digits fit a byte"));
                rest = &after[2..];
            }
            _ => {
                decoded.push(byte);
                rest = after;
            }
        }
    }
    Cow::Owned(decoded)
}

/// A raw path or query for a `Location`: ASCII stays, everything else is encoded, so no byte can
/// break out of the header.
pub(super) fn header_text(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for &byte in path {
        if byte.is_ascii_graphic() {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> KeyPath<'_> {
        KeyPath { text: text.into(), is_text: true, without_slash: None }
    }

    #[test]
    fn keys_are_the_rest_of_the_path_decoded_once() {
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
    fn a_raw_slash_at_the_end() {
        let Ok(Route::ReadConfig(slash)) = Route::find(Method::Get, b"/configs/t/") else {
            panic!("no route")
        };
        assert_eq!((&*slash.text, slash.without_slash.as_deref()), ("t/", Some("/configs/t")));
        let Ok(Route::ReadConfig(encoded)) = Route::find(Method::Get, b"/configs/t%2F") else {
            panic!("no route")
        };
        assert_eq!((&*encoded.text, encoded.without_slash), ("t/", None));
        for (path, goal) in [("/configs/", "/configs"), ("/cluster/health/", "/cluster/health")] {
            for method in [Method::Get, Method::Post, Method::Head] {
                assert_eq!(Route::find(method, path.as_bytes()), Err(Miss::Redirect(goal.to_owned())));
            }
        }
        assert_eq!(header_text("/configs/é\r\n".as_bytes()), "/configs/%C3%A9%0D%0A");
    }

    #[test]
    fn nothing_else_is_a_route() {
        for path in
            ["", "*", "/nope", "/cluster", "/cluster/", "//configs", "/Configs", "//", "/cluster/salt/x"]
        {
            assert_eq!(Route::find(Method::Get, path.as_bytes()), Err(Miss::NotFound), "{path}");
        }
        for (method, path, allow) in [
            (Method::Patch, "/configs", "GET, HEAD, POST"),
            (Method::Post, "/configs/k", "GET, HEAD, PUT, DELETE"),
            (Method::Options, "/", "GET, HEAD"),
            (Method::Put, "/cluster/salt", "GET, HEAD, POST"),
        ] {
            assert_eq!(Route::find(method, path.as_bytes()), Err(Miss::MethodNotAllowed(allow)), "{path}");
        }
    }
}
