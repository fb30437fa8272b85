//! `CORS_ORIGINS`: sites whose pages may use the server from a browser.

use std::fmt;

use super::variables::{Variables, shown};

/// Allowed origins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// Every origin (`*`).
    All,
    /// Listed origins, in lower case.
    Some(Vec<String>),
}

impl Origins {
    /// Returns the value of `Access-Control-Allow-Origin` for an origin; `None` if it is not allowed.
    pub fn allows<'a>(&'a self, origin: &'a str) -> Option<&'a str> {
        match self {
            Self::All => Some("*"),
            Self::Some(origins) => origins.iter().any(|allowed| allowed == origin).then_some(origin),
        }
    }
}

impl fmt::Display for Origins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Some(origins) => f.write_str(&origins.join(",")),
        }
    }
}

/// Reads the setting; `None` if it is unset, which allows no other site.
pub(super) fn read(variables: &mut Variables<'_>) -> Option<Origins> {
    let text = variables.text("CORS_ORIGINS")?;
    let origins: Vec<&str> = text.split(',').map(str::trim).filter(|origin| !origin.is_empty()).collect();
    if origins == ["*"] {
        return Some(Origins::All);
    }
    for origin in &origins {
        if !is_origin(origin) {
            variables.add_error(
                "CORS_ORIGINS",
                format!(
                    "{} is not an origin (allowed: * or a list like https://admin.example.org)",
                    shown(origin)
                ),
            );
        }
    }
    // Browsers send scheme and host in lower case.
    (!origins.is_empty())
        .then(|| Origins::Some(origins.iter().map(|origin| origin.to_ascii_lowercase()).collect()))
}

/// Returns whether a text is an origin as browsers send it: scheme, host and an optional port, without a final slash.
fn is_origin(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let is_scheme = !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_scheme
        && !rest.is_empty()
        && rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]_".contains(&byte))
}
