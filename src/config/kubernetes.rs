//! Service links: variables that Kubernetes adds to the pods in the namespace of a Service.
//!
//! A Service named `osc` adds `OSC_SERVICE_HOST`, `OSC_SERVICE_PORT_HTTP`, `OSC_PORT` and `OSC_PORT_9000_TCP_ADDR`; one
//! named `osc-host` adds an invalid `OSC_HOST_PORT`. The operator has not set them, so warnings about them would only
//! train operators to ignore warnings.

use std::ffi::OsStr;

/// Returns whether Kubernetes has probably set this variable.
pub(super) fn is_service_link(name: &str, value: &OsStr) -> bool {
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.ends_with("_PORT") && value.to_str().is_some_and(is_address))
        || name.match_indices("_PORT_").any(|(at, part)| is_port_link(&name[at + part.len()..]))
}

/// Returns whether a value contains an address in the style of Docker links: `tcp://10.0.0.7:9000`.
pub(super) fn is_address(text: &str) -> bool {
    ["tcp://", "udp://", "sctp://"].iter().any(|scheme| text.contains(scheme))
}

/// Returns whether a text is `9000_TCP`, with an optional `_PROTO`, `_PORT` or `_ADDR`.
fn is_port_link(rest: &str) -> bool {
    let mut parts = rest.split('_');
    let number = parts.next().unwrap_or_default();
    !number.is_empty()
        && number.bytes().all(|byte| byte.is_ascii_digit())
        && matches!(parts.next(), Some("TCP" | "UDP" | "SCTP"))
        && matches!((parts.next(), parts.next()), (None | Some("PROTO" | "PORT" | "ADDR"), None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_links_and_misspelt_settings() {
        for (name, value) in [
            ("OSC_SERVICE_HOST", "10.0.0.7"),
            ("OSC_HOST_SERVICE_HOST", "10.0.0.7"),
            ("OSC_SERVICE_PORT", "9000"),
            ("OSC_SERVICE_PORT_HTTP", "9000"),
            ("OSC_PORT", "tcp://10.0.0.7:9000"),
            ("OSC_PORT_9000_TCP", "tcp://10.0.0.7:9000"),
            ("OSC_PORT_9000_TCP_PROTO", "tcp"),
            ("OSC_HOST_PORT_9000_UDP_ADDR", "10.0.0.7"),
        ] {
            assert!(is_service_link(name, OsStr::new(value)), "{name}");
        }
        for (name, value) in [
            ("OSC_PORT", "9000"),
            ("OSC_HOTS", "::"),
            ("OSC_PORT_NUMBER", "9000"),
            ("OSC_PORT_9000", "1"),
            ("OSC_PORT_9000_TCP_X", "1"),
            ("OSC_SERVICE", "x"),
        ] {
            assert!(!is_service_link(name, OsStr::new(value)), "{name}");
        }
    }
}
