//! Settings: `OSC_*` variables and a `.env` file, validated as a whole.
//!
//! All errors are reported together. Errors, warnings and summaries contain no secrets. This is the only module
//! that reads the process environment.

mod allowed_hosts;
mod api_key;
mod clients;
mod cluster;
mod cluster_secret;
pub mod dotenv;
mod effect;
mod engine;
mod error;
mod host;
mod kubernetes;
mod log;
mod number;
mod origins;
mod secret_file;
mod settings;
mod store;
mod table;
#[cfg(test)]
mod tests;
mod text_file;
mod tls;
mod user_key;
mod variables;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use allowed_hosts::AllowedHosts;
pub use clients::{ClientLimits, ForwardedHeader, Proxies};
pub use cluster::{ClusterConfig, FederationConfig, PeerAddress, WriteAcks};
pub use engine::EngineChoice;
pub use error::{SettingError, SettingErrors, Warning};
pub use host::Host;
pub use log::{LogFormat, LogLevel, allows_color};
pub use origins::Origins;
pub use store::StoreChoice;
pub use user_key::user_key;

use crate::model::{ApiKey, ClusterSecret};
use crate::tls::Certificates;

const ENV_FILE: &str = "OSC_ENV_FILE";

/// Validated settings. See `.env.example` for the variables and their defaults.
#[derive(Clone, Debug)]
pub struct Config {
    /// `OSC_HOST`: host to listen on.
    pub host: Host,
    /// `OSC_HOST_PORT`; 0 selects any free port.
    pub port: u16,
    /// `OSC_ADMIN_LISTEN`: listener for probes and metrics, including the port; always plain HTTP.
    pub admin: Option<Host>,
    /// `OSC_WORKERS`: number of executors; `None` means one per usable core.
    pub workers: Option<NonZeroUsize>,
    /// `OSC_DRAIN_SECONDS`: time between the signal to stop and the stop, during which requests are served.
    pub drain: Duration,
    /// `OSC_ENGINE`: I/O engine of the executors.
    pub engine: EngineChoice,
    /// `OSC_STORE`: where entries are stored.
    pub store: StoreChoice,
    /// `OSC_DATABASE_PATH`.
    pub database_path: PathBuf,
    /// `OSC_SALT_FILE_PATH`; never the same file as the database.
    pub salt_file_path: PathBuf,
    /// `OSC_ACCEPT_SALT`: SHA-256 of a salt file that is accepted although it would be refused otherwise.
    pub accepted_salt: Option<[u8; 32]>,
    /// `OSC_MIN_USER_KEY_LENGTH`: like the Python server, in bytes of the header value.
    pub user_key_bytes_min: usize,
    /// `OSC_API_KEY` and the keys in `OSC_API_KEY_FILE`; not empty exactly if `OSC_API_KEY_REQUIRED` is true.
    pub api_keys: Vec<ApiKey>,
    /// `OSC_CLUSTER_NODE_ID`.
    pub node_id: String,
    /// `OSC_CLUSTER_ENABLED` and the settings that depend on it; `None` for a standalone node.
    pub cluster: Option<ClusterConfig>,
    /// `OSC_CLUSTER_SECRET` and the secrets in `OSC_CLUSTER_SECRET_FILE`; empty on a standalone node.
    pub cluster_secrets: Vec<ClusterSecret>,
    /// `OSC_ALLOWED_HOSTS`: accepted values of `Host`; `None` accepts any.
    pub allowed_hosts: Option<AllowedHosts>,
    /// `CORS_ORIGINS`: sites whose pages may use the server; `None` by default.
    pub origins: Option<Origins>,
    /// `OSC_PUBLIC_ROOT`: whether `GET /` needs no API key.
    pub has_public_root: bool,
    /// `OSC_METRICS_AUTH`: whether `GET /metrics` requires an API key.
    pub has_private_metrics: bool,
    /// Per-client limits and trusted proxies.
    pub clients: ClientLimits,
    /// Loaded certificates, if `OSC_HTTPS_ENABLED` is true or a peer uses TLS; otherwise none.
    pub certificates: Certificates,
    /// Whether sockets may use a dedicated ring; false only in tests, with `OSC_TEST_SOCKETS`.
    pub uses_ring: bool,
    /// `OSC_LOG_LEVEL`.
    pub log_level: LogLevel,
    /// `OSC_LOG_FORMAT`.
    pub log_format: LogFormat,
    /// `OSC_LOG_FILE`; `None` for standard error.
    pub log_file: Option<PathBuf>,
    /// `OSC_ENV_FILE`: settings file instead of `.env`.
    pub env_file: Option<PathBuf>,
}

/// Reads the settings from the process environment and the settings file: `OSC_ENV_FILE`, or `.env` in the working
/// directory.
///
/// # Errors
/// Fails with all errors if a setting is invalid, or the settings file cannot be read.
pub fn load() -> Result<(Config, Vec<Warning>), SettingErrors> {
    let environment = environment();
    let file = settings_file(&environment)?;
    let loaded = from_sources(&environment, file.as_deref());
    let (config, mut warnings) = match config_file(&environment) {
        Some(_) => loaded.map_err(|errors| errors.renamed(".env", ENV_FILE))?,
        None => loaded?,
    };
    if config.env_file.is_none() && Path::new(".env").is_dir() {
        warnings.push(Warning::EnvDirectory);
    }
    Ok((config, warnings))
}

/// Reads the address of the admin listener only: a probe must not depend on other settings or files.
///
/// # Errors
/// Fails if the settings file or the setting is invalid.
pub fn load_admin() -> Result<Option<Host>, SettingErrors> {
    let environment = environment();
    settings::read_admin(&environment, settings_file(&environment)?.as_deref())
}

/// Returns `OSC_ENV_FILE`, which is read only from the process environment.
fn config_file(environment: &BTreeMap<String, OsString>) -> Option<&Path> {
    environment.get(ENV_FILE).filter(|path| !path.is_empty()).map(Path::new)
}

fn settings_file(environment: &BTreeMap<String, OsString>) -> Result<Option<Vec<u8>>, SettingErrors> {
    match config_file(environment) {
        None => dotenv::read(Path::new(".env")).map_err(SettingErrors::from),
        Some(path) => dotenv::read_named(path).map(Some).map_err(|problem| {
            let message = format!("{} {problem}", variables::shown(&path.to_string_lossy()));
            SettingErrors::from(SettingError::new(ENV_FILE, message))
        }),
    }
}

fn environment() -> BTreeMap<String, OsString> {
    // No setting has a name that is not UTF-8.
    std::env::vars_os()
        .filter_map(|(name, value)| name.into_string().ok().map(|name| (name, value)))
        .collect()
}

/// Builds the settings from the environment and the bytes of a `.env` file. Also resolves host names to listen on,
/// checks whether two paths lead to the same file, and reads the listed key and certificate files; the result depends
/// on nothing else.
///
/// # Errors
/// Fails with all errors if a setting is invalid.
pub fn from_sources(
    environment: &BTreeMap<String, OsString>,
    dotenv: Option<&[u8]>,
) -> Result<(Config, Vec<Warning>), SettingErrors> {
    settings::read(environment, dotenv, &host::resolve)
}
