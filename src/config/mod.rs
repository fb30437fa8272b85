//! The settings: `OSC_*` variables and a `.env` file, read once at the start and valid ever after.
//!
//! All faults are found before any is reported, and nothing secret is in a fault, a warning or a
//! summary. This is the only module that looks at the environment of the process.

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
mod origins;
mod secret_file;
mod settings;
mod summary;
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

pub use allowed_hosts::AllowedHosts;
pub use clients::{ClientLimits, ForwardedHeader, Proxies};
pub use cluster::{ClusterConfig, FederationConfig, PeerAddress, WriteAcks};
pub use engine::EngineChoice;
pub use error::{SettingError, SettingErrors, Warning};
pub use host::Host;
pub use log::{LogFormat, LogLevel, allows_color};
pub use origins::Origins;
pub use user_key::user_key;

use crate::model::{ApiKey, ClusterSecret};
use crate::tls::Certificates;

const ENV_FILE: &str = "OSC_ENV_FILE";

/// What the server is told to do. See `.env.example` for the variables and their defaults.
#[derive(Clone, Debug)]
pub struct Config {
    /// `OSC_HOST`: what to listen on.
    pub host: Host,
    /// `OSC_HOST_PORT`; 0 takes any free port.
    pub port: u16,
    /// `OSC_ADMIN_LISTEN`: the listener for probes and metrics, port included; always plain HTTP.
    pub admin: Option<Host>,
    /// `OSC_WORKERS`: executors; `None` means one for each usable core.
    pub workers: Option<NonZeroUsize>,
    /// `OSC_ENGINE`: what executors run on.
    pub engine: EngineChoice,
    /// `OSC_DATABASE_PATH`.
    pub database_path: PathBuf,
    /// `OSC_SALT_FILE_PATH`; never the same file as the database.
    pub salt_file_path: PathBuf,
    /// `OSC_ACCEPT_SALT`: the SHA-256 of a salt file that is used although it would be refused.
    pub accepted_salt: Option<[u8; 32]>,
    /// `OSC_MIN_USER_KEY_LENGTH`, which the original counts in bytes of the header.
    pub user_key_bytes_min: usize,
    /// `OSC_API_KEY` and those in `OSC_API_KEY_FILE`: there are some exactly when `OSC_API_KEY_REQUIRED` is true.
    pub api_keys: Vec<ApiKey>,
    /// `OSC_CLUSTER_NODE_ID`.
    pub node_id: String,
    /// `OSC_CLUSTER_ENABLED` and the settings that count then; `None` for a node that stands alone.
    pub cluster: Option<ClusterConfig>,
    /// `OSC_CLUSTER_SECRET` and those in `OSC_CLUSTER_SECRET_FILE`; none on a node that stands alone.
    pub cluster_secrets: Vec<ClusterSecret>,
    /// `OSC_ALLOWED_HOSTS`: the values of `Host` that are answered; any if `None`.
    pub allowed_hosts: Option<AllowedHosts>,
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
    /// `OSC_ENV_FILE`: the settings file in place of `.env`.
    pub env_file: Option<PathBuf>,
}

/// Reads the environment of the process, and the settings file: `OSC_ENV_FILE`, or `.env` in the working directory.
///
/// # Errors
/// When any setting cannot be used, or the settings file cannot be read. All of them are listed.
pub fn load() -> Result<(Config, Vec<Warning>), SettingErrors> {
    let environment = environment();
    let file = settings_file(&environment)?;
    let loaded = from_sources(&environment, file.as_deref());
    let (config, mut warnings) = match config_file(&environment) {
        Some(_) => loaded.map_err(|faults| faults.renamed(".env", ENV_FILE))?,
        None => loaded?,
    };
    if config.env_file.is_none() && Path::new(".env").is_dir() {
        warnings.push(Warning::EnvDirectory);
    }
    Ok((config, warnings))
}

/// Reads the address of the admin listener: a probe must not depend on any other setting or file.
///
/// # Errors
/// When `.env` or the setting cannot be used.
pub fn load_admin() -> Result<Option<Host>, SettingErrors> {
    let environment = environment();
    settings::read_admin(&environment, settings_file(&environment)?.as_deref())
}

/// `OSC_ENV_FILE` of the real environment.
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
    // A name that is not UTF-8 is none of ours.
    std::env::vars_os()
        .filter_map(|(name, value)| name.into_string().ok().map(|name| (name, value)))
        .collect()
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
) -> Result<(Config, Vec<Warning>), SettingErrors> {
    settings::read(environment, dotenv, &host::resolve)
}
