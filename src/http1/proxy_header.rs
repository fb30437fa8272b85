//! What comes before HTTP where a header of the PROXY protocol is expected.

/// What one says to a server that expects the PROXY protocol, version 2, and that is reached without a proxy: the
/// connection is one's own (`LOCAL`, section 2.2 of
/// <https://www.haproxy.org/download/1.8/doc/proxy-protocol.txt>).
pub const PROXY_LOCAL: [u8; 16] = *b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
