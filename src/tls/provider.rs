//! Cryptography and protocol of all TLS connections.

use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, ring};

/// ALPN identifier of HTTP/1.1 (RFC 7301, 6).
pub(super) const HTTP_1_1: &[u8] = b"http/1.1";

/// Returns the provider of cryptography.
pub(super) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(ring::default_provider()));
    Arc::clone(&PROVIDER)
}
