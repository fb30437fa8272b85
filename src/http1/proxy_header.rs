//! PROXY protocol header for outgoing connections.

/// PROXY protocol header, version 2, with the command `LOCAL`: sent by a client that connects without a proxy to a
/// server which expects the protocol (section 2.2 of
/// <https://www.haproxy.org/download/1.8/doc/proxy-protocol.txt>).
pub const PROXY_LOCAL: [u8; 16] = *b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
