//! `CORS_ORIGINS`: which sites' pages may use the server from a browser.

use std::fmt;

use super::variables::{Variables, shown};

/// The origins that are allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// `*`: every one.
    All,
    /// These.
    Some(Vec<String>),
}

impl Origins {
    /// What to allow for a request from this origin.
    pub fn allows<'a>(&'a self, origin: &'a str) -> Option<&'a str> {
        match self {
            Self::All => Some("*"),
            Self::Some(origins) => origins.iter().any(|known| known == origin).then_some(origin),
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

/// `None` if it is not set: no page of another site may.
pub(super) fn read(variables: &mut Variables<'_>) -> Option<Origins> {
    let text = variables.text("CORS_ORIGINS")?;
    let origins: Vec<&str> = text.split(',').map(str::trim).filter(|origin| !origin.is_empty()).collect();
    if origins == ["*"] {
        return Some(Origins::All);
    }
    for origin in &origins {
        if !is_origin(origin) {
            variables.fault(
                "CORS_ORIGINS",
                format!(
                    "{} is no origin (allowed: * or a list like https://admin.example.org)",
                    shown(origin)
                ),
            );
        }
    }
    // Browsers send both in lower case.
    (!origins.is_empty())
        .then(|| Origins::Some(origins.iter().map(|origin| origin.to_ascii_lowercase()).collect()))
}

/// Scheme, host and perhaps a port, as a browser writes it: nothing behind it, not even a slash.
fn is_origin(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let is_scheme = !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_scheme
        && !rest.is_empty()
        && rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]_".contains(&byte))
}
