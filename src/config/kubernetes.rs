//! Variables that Kubernetes adds on its own to the pods beside a Service.
//!
//! A Service named `osc` brings `OSC_SERVICE_HOST`, `OSC_SERVICE_PORT_HTTP`, `OSC_PORT` and
//! `OSC_PORT_9000_TCP_ADDR`; one named `osc-host` brings a wrong `OSC_HOST_PORT`. Nobody wrote them,
//! so a warning about each would only train people to overlook warnings.

use std::ffi::OsStr;

/// Whether Kubernetes made this variable, as far as can be told.
pub(super) fn is_service_link(name: &str, value: &OsStr) -> bool {
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.ends_with("_PORT") && value.to_str().is_some_and(is_address))
        || name.match_indices("_PORT_").any(|(at, part)| is_port_link(&name[at + part.len()..]))
}

/// Whether there is an address in the style of Docker links: `tcp://10.0.0.7:9000`.
pub(super) fn is_address(text: &str) -> bool {
    ["tcp://", "udp://", "sctp://"].iter().any(|scheme| text.contains(scheme))
}

/// `9000_TCP`, with or without `_PROTO`, `_PORT` or `_ADDR`.
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
    fn tells_links_from_mistakes() {
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
