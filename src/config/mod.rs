//! The settings: `OSC_*` variables and a `.env` file, read once at the start and valid ever after.
//!
//! All faults are found before any is reported, and nothing secret is in a fault, a warning or a
//! summary. This is the only module that looks at the environment of the process.

mod api_key;
mod clients;
mod cluster;
mod dotenv;
mod engine;
mod fault;
mod host;
mod kubernetes;
mod log;
mod origins;
mod settings;
mod summary;
#[cfg(test)]
mod tests;
mod tls;
mod variables;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

pub use clients::{ClientLimits, Proxies};
pub use cluster::{ClusterConfig, FederationConfig, PeerAddress, WriteAcks};
pub use engine::EngineChoice;
pub use fault::{Fault, Faults, Warning};
pub use host::Host;
pub use log::{LogFormat, LogLevel};
pub use origins::Origins;

use crate::model::ApiKey;
use crate::tls::Certificates;

/// What the server is told to do. See `.env.example` for the variables and their defaults.
#[derive(Clone, Debug)]
pub struct Config {
    /// `OSC_HOST`: what to listen on.
    pub host: Host,
    /// `OSC_HOST_PORT`; 0 takes any free port.
    pub port: u16,
    /// `OSC_WORKERS`: executors; `None` means one for each usable core.
    pub workers: Option<NonZeroUsize>,
    /// `OSC_ENGINE`: what executors run on.
    pub engine: EngineChoice,
    /// `OSC_DATABASE_PATH`.
    pub database_path: PathBuf,
    /// `OSC_SALT_FILE_PATH`; never the same file as the database.
    pub salt_file_path: PathBuf,
    /// `OSC_MIN_USER_KEY_LENGTH`, which the original counts in bytes of the header.
    pub user_key_bytes_min: usize,
    /// `OSC_API_KEY` and those in `OSC_API_KEY_FILE`: there are some exactly when `OSC_API_KEY_REQUIRED` is true.
    pub api_keys: Vec<ApiKey>,
    /// `OSC_CLUSTER_NODE_ID`.
    pub node_id: String,
    /// `OSC_CLUSTER_ENABLED` and the settings that count then; `None` for a node that stands alone.
    pub cluster: Option<ClusterConfig>,
    /// `CORS_ORIGINS`: sites whose pages may use the server; none by default.
    pub origins: Option<Origins>,
    /// `OSC_PUBLIC_ROOT`: whether `GET /` needs no API key.
    pub has_public_root: bool,
    /// `OSC_METRICS_AUTH`: whether `GET /metrics` needs the API key.
    pub has_private_metrics: bool,
    /// What one client may take, and whom to believe about who it is.
    pub clients: ClientLimits,
    /// `OSC_HTTPS_ENABLED`, and whether a peer has TLS: the certificates, read and found good; none without any TLS.
    pub certificates: Certificates,
    /// Whether sockets may have a ring of their own: `OSC_TEST_SOCKETS`, by which tests go the other way.
    pub uses_ring: bool,
    /// `OSC_LOG_LEVEL`.
    pub log_level: LogLevel,
    /// `OSC_LOG_FORMAT`.
    pub log_format: LogFormat,
    /// `OSC_LOG_FILE`; standard error if there is none.
    pub log_file: Option<PathBuf>,
}

/// Reads the environment of the process and `.env` in its working directory.
///
/// # Errors
/// When any setting cannot be used, or `.env` is there but cannot be read. All of them are listed.
pub fn load() -> Result<(Config, Vec<Warning>), Faults> {
    // A name that is not UTF-8 is none of ours.
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| name.into_string().ok().map(|name| (name, value)))
        .collect();
    match dotenv::read(Path::new(".env")) {
        Ok(file) => from_sources(&environment, file.as_deref()),
        Err(fault) => Err(Faults::from(fault)),
    }
}

/// Makes the settings from the environment and the bytes of a `.env` file. Apart from resolving the
/// name in `OSC_HOST`, looking whether two paths lead to one file, and reading the files of keys and certificates that
/// are named, the result depends on nothing else.
///
/// # Errors
/// When any setting cannot be used. All of them are listed.
pub fn from_sources(
    environment: &BTreeMap<String, OsString>,
    dotenv: Option<&[u8]>,
) -> Result<(Config, Vec<Warning>), Faults> {
    settings::read(environment, dotenv, &host::resolve)
}
