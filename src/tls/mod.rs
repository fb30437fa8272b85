//! TLS: certificates and keys from files, and an encrypted stream over any other stream.
//!
//! The only module that knows rustls. Certificates are read at the start, and again when their files change; a
//! connection keeps the configuration that it began with. Knows nothing of HTTP. No error text discloses a key or a
//! password.

mod certificates;
mod error;
mod files;
mod key;
mod loaded;
mod peer_error;
mod provider;
mod self_client;
mod server;
mod stream;
#[cfg(test)]
mod tests;

pub use rustls::ClientConfig;

pub use self::certificates::Certificates;
pub use self::error::{CertificateFileError, CertificateFileErrors, FileProblem, FileRole};
pub use self::files::{Files, Own, Password, Roots};
pub use self::peer_error::PeerTlsError;
pub use self::self_client::connect_to_self;
pub use self::server::ServerContext;
pub use self::stream::{Refused, Stream};
