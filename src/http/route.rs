//! Routing: from method and path to an operation of the endpoint table. Pure.

use super::call::Parameter;
use super::endpoint::{Audience, Endpoint, EndpointLabel, Operation, RouteError};
use super::endpoints::{CONFIG_PATH, ENDPOINTS};
use super::key_path::{KeyPath, header_text, percent_decode};
use super::pages;
use crate::http1::Method;

/// An operation that was found, with its parameter. Borrows from the path, so that finding it takes no memory.
#[derive(Clone, Debug)]
pub struct Route<'a> {
    pub(super) endpoint: &'static Endpoint,
    pub(super) operation: &'static Operation,
    pub(super) parameter: Parameter<'a>,
    pub(super) label: EndpointLabel,
}

impl<'a> Route<'a> {
    /// Finds the route of a request. HEAD has the route of GET.
    ///
    /// # Errors
    /// Returns the reason if there is none.
    pub fn find(method: Method, path: &'a [u8]) -> Result<Self, RouteError> {
        Self::find_for(Audience::Everyone, method, path)
    }

    /// Finds the route of a request on a listener for `audience`. Endpoints for another one do not exist there.
    ///
    /// # Errors
    /// As [`Self::find`].
    pub fn find_for(audience: Audience, method: Method, path: &'a [u8]) -> Result<Self, RouteError> {
        let find = |path| look_up(path).filter(|(index, _)| ENDPOINTS[*index].listeners.include(audience));
        let Some((index, parameter)) = find(path) else {
            // Of the paths that end with a slash, only fixed ones without it get here.
            if let Some(shorter) = path.strip_suffix(b"/")
                && shorter != b"/"
                && find(shorter).is_some()
            {
                return Err(RouteError::Redirect(header_text(shorter)));
            }
            return Err(RouteError::NotFound);
        };
        let endpoint = &ENDPOINTS[index];
        let label = EndpointLabel { index: index + 1, text: endpoint.path };
        let method = if method == Method::Head { Method::Get } else { method };
        match endpoint.operations.iter().find(|operation| operation.method == method) {
            Some(operation) => Ok(Self { endpoint, operation, parameter, label }),
            None => Err(RouteError::MethodNotAllowed { allow: endpoint.allow(), label }),
        }
    }
}

const CONFIG: usize = index_of(CONFIG_PATH);
const DOCS: usize = index_of("/docs");
const REDOC: usize = index_of("/redoc");

/// Segments are split first and decoded one by one, so that `%2F` never makes a new segment.
fn look_up(path: &[u8]) -> Option<(usize, Parameter<'_>)> {
    let rest = path.strip_prefix(b"/")?;
    let (first, rest) = match memchr::memchr(b'/', rest) {
        Some(at) => (&rest[..at], Some(&rest[at + 1..])),
        None => (rest, None),
    };
    match (&*percent_decode(first), rest) {
        (b"configs", Some(key)) if !key.is_empty() => {
            Some((CONFIG, Parameter::Key(KeyPath::parse(key, path))))
        }
        (b"docs", _) => pages::find(path).map(|file| (DOCS, Parameter::File(file))),
        (b"redoc", _) => pages::find(path).map(|file| (REDOC, Parameter::File(file))),
        _ => ENDPOINTS
            .iter()
            .position(|endpoint| is_path(endpoint.path, path))
            .map(|index| (index, Parameter::None)),
    }
}

fn is_path(template: &str, path: &[u8]) -> bool {
    if !path.contains(&b'%') {
        return template.as_bytes() == path;
    }
    let (mut expected, mut segments) = (template.split('/'), path.split(|byte| *byte == b'/'));
    loop {
        match (expected.next(), segments.next()) {
            (None, None) => return true,
            (Some(expected), Some(segment)) if *percent_decode(segment) == *expected.as_bytes() => {}
            _ => return false,
        }
    }
}

/// Index of a path in the table, at compile time.
const fn index_of(path: &str) -> usize {
    let mut index = 0;
    while !is_equal(ENDPOINTS[index].path.as_bytes(), path.as_bytes()) {
        index += 1;
    }
    index
}

const fn is_equal(one: &[u8], other: &[u8]) -> bool {
    let mut index = 0;
    while index < one.len() && index < other.len() {
        if one[index] != other[index] {
            return false;
        }
        index += 1;
    }
    one.len() == other.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> KeyPath<'_> {
        KeyPath { text: text.into(), is_text: true, without_slash: None }
    }

    fn key_of(path: &str) -> KeyPath<'_> {
        match Route::find(Method::Get, path.as_bytes()).map(|route| route.parameter) {
            Ok(Parameter::Key(key)) => key,
            other => panic!("{path}: {other:?}"),
        }
    }

    fn error_of(method: Method, path: &str) -> Option<RouteError> {
        Route::find(method, path.as_bytes()).err()
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
            assert_eq!(key_of(path), key(expected), "{path}");
        }
        let bad = key_of("/configs/%ff");
        assert_eq!((&*bad.text, bad.is_text), ("\u{fffd}", false));
    }

    #[test]
    fn trailing_slashes_redirect_unless_dot_segments_precede() {
        let slash = key_of("/configs/t/");
        assert_eq!((&*slash.text, slash.without_slash.as_deref()), ("t/", Some("/configs/t")));
        let encoded = key_of("/configs/t%2F");
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
            let dots = key_of(path);
            assert_eq!(dots.without_slash, None, "{path}");
        }
        for path in ["/configs/a.b/", "/configs/.../", "/configs/a%2F../", "/configs/..a/"] {
            let key = key_of(path);
            assert_eq!(key.without_slash.as_deref(), path.strip_suffix('/'), "{path}");
        }
        for (path, target) in [("/configs/", "/configs"), ("/cluster/health/", "/cluster/health")] {
            for method in [Method::Get, Method::Post, Method::Head] {
                assert_eq!(error_of(method, path), Some(RouteError::Redirect(target.to_owned())));
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
            assert_eq!(error_of(Method::Get, path), Some(RouteError::NotFound), "{path}");
        }
        for (method, path, allow) in [
            (Method::Patch, "/configs", "GET, HEAD, POST"),
            (Method::Post, "/configs/k", "GET, HEAD, PUT, DELETE"),
            (Method::Options, "/", "GET, HEAD"),
            (Method::Put, "/cluster/salt", "GET, HEAD, POST"),
            (Method::Get, "/cluster/changes", "POST"),
        ] {
            let Some(RouteError::MethodNotAllowed { allow: found, label }) = error_of(method, path) else {
                panic!("{path}")
            };
            assert_eq!(found, allow, "{path}");
            assert!(path.starts_with(label.text.split('{').next().expect("one part")), "{path}");
        }
    }
}
