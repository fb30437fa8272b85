//! The settings table: one row per variable with a meaning, in the order of `.env.example`.

use std::fmt::Display;

use super::{Config, PeerAddress};
use crate::tls::Roots;

/// A row of the table.
pub(super) struct Setting {
    /// The variable.
    pub(super) name: &'static str,
    /// The value in effect, without secrets, for `check-config`; `None` if the setting has none.
    shown: fn(&Config) -> Option<String>,
}

macro_rules! setting {
    ($name:literal, $shown:expr) => {
        Setting { name: $name, shown: $shown }
    };
}

/// Every variable that this server or the Python server reads.
pub(super) const SETTINGS: &[Setting] = &[
    setting!("OSC_HOST", |config| text(&config.host)),
    setting!("OSC_HOST_PORT", |config| text(config.port)),
    setting!("OSC_ADMIN_LISTEN", |config| or(config.admin.as_ref(), "(none)")),
    setting!("OSC_WORKERS", |config| or(config.workers, "(one per usable core)")),
    setting!("OSC_DRAIN_SECONDS", |config| text(config.drain.as_secs())),
    setting!("OSC_ENGINE", |config| text(config.engine)),
    setting!("OSC_STORE", |config| text(config.store)),
    setting!("OSC_DATABASE_PATH", |config| text(config.database_path.display())),
    setting!("OSC_SALT_FILE_PATH", |config| text(config.salt_file_path.display())),
    setting!("OSC_ACCEPT_SALT", |config| is_set(config.accepted_salt.is_some())),
    setting!("OSC_MIN_USER_KEY_LENGTH", |config| text(config.user_key_bytes_min)),
    setting!("OSC_API_KEY_REQUIRED", |config| text(!config.api_keys.is_empty())),
    setting!("OSC_API_KEY", |config| secrets(config.api_keys.len(), "(not required)")),
    setting!("OSC_API_KEY_FILE", |_| None),
    setting!("OSC_PUBLIC_ROOT", |config| text(config.has_public_root)),
    setting!("OSC_METRICS_AUTH", |config| text(config.has_private_metrics)),
    setting!("OSC_ALLOWED_HOSTS", |config| or(config.allowed_hosts.as_ref(), "*")),
    setting!("CORS_ORIGINS", |config| or(config.origins.as_ref(), "(none)")),
    setting!("OSC_RATE_LIMIT_PER_ADDRESS", |config| or(config.clients.rate_per_address, "(no limit)")),
    setting!("OSC_RATE_LIMIT_PER_API_KEY", |config| or(config.clients.rate_per_api_key, "(no limit)")),
    setting!("OSC_FAILED_KEYS_PER_ADDRESS", |config| {
        or(config.clients.failed_keys_per_address, "(no limit)")
    }),
    setting!("OSC_CONNECTIONS_PER_ADDRESS", |config| {
        or(config.clients.connections_per_address, "(three quarters of all)")
    }),
    setting!("OSC_TRUSTED_PROXIES", |config| text(&config.clients.proxies)),
    setting!("OSC_FORWARDED_HEADER", |config| text(config.clients.proxies.header())),
    setting!("OSC_PROXY_PROTOCOL", |config| text(config.clients.has_proxy_protocol)),
    setting!("OSC_CLUSTER_ENABLED", |config| text(config.cluster.is_some())),
    setting!("OSC_CLUSTER_MODE", |config| {
        let federation = &config.cluster.as_ref()?.federation;
        text(if federation.is_some() { "federated" } else { "replica" })
    }),
    setting!("OSC_CLUSTER_NODE_ID", |config| text(&config.node_id)),
    setting!("OSC_CLUSTER_NODES", |config| {
        let scheme = |peer: &PeerAddress| if peer.has_tls() { "https://" } else { "" };
        let peers = config.cluster.as_ref()?.peers.iter().map(|peer| format!("{}{peer}", scheme(peer)));
        Some(peers.collect::<Vec<_>>().join(","))
    }),
    setting!("OSC_CLUSTER_LISTEN", |config| text(config.cluster.as_ref()?.listen.as_ref()?)),
    setting!("OSC_CLUSTER_SECRET", |config| {
        config.cluster.as_ref()?;
        secrets(config.cluster_secrets.len(), "(not set)")
    }),
    setting!("OSC_CLUSTER_SECRET_FILE", |_| None),
    setting!("OSC_CLUSTER_SYNC_INTERVAL", |config| {
        let cluster = config.cluster.as_ref().filter(|cluster| cluster.federation.is_none())?;
        text(cluster.sync_interval.as_secs())
    }),
    setting!("OSC_CLUSTER_WRITE_ACKS", |config| {
        text(config.cluster.as_ref().filter(|cluster| cluster.federation.is_none())?.write_acks)
    }),
    setting!("OSC_FEDERATED_TIMEOUT_MS", |config| {
        text(config.cluster.as_ref()?.federation.as_ref()?.timeout.as_millis())
    }),
    setting!("OSC_FEDERATED_STRICT", |config| {
        text(config.cluster.as_ref()?.federation.as_ref()?.is_strict)
    }),
    setting!("OSC_HTTPS_ENABLED", |config| text(config.certificates.files().own.is_some())),
    setting!("OSC_SSL_CERTFILE", |config| text(config.certificates.files().own?.certificate.display())),
    setting!("OSC_SSL_KEYFILE", |config| text(config.certificates.files().own?.key.display())),
    setting!("OSC_SSL_KEYFILE_PASSWORD", |config| {
        is_set(config.certificates.files().own?.password.is_some())
    }),
    setting!("OSC_SSL_CA_CERTS", |config| {
        let files = config.certificates.files();
        files.own?;
        or(files.clients.map(|path| path.display().to_string()), "(none)")
    }),
    setting!("OSC_CLUSTER_CA_CERTS", |config| {
        let files = config.certificates.files();
        match (files.nodes, files.peers) {
            (None, None) => None,
            (None, Some(Roots::System)) => text("(system CA certificates)"),
            (Some(path), _) | (None, Some(Roots::File(path))) => text(path.display()),
        }
    }),
    setting!("OSC_LOG_LEVEL", |config| text(config.log_level)),
    setting!("OSC_LOG_FORMAT", |config| text(config.log_format)),
    setting!("OSC_LOG_FILE", |config| {
        or(config.log_file.as_ref().map(|path| path.display()), "(standard error)")
    }),
    setting!("OSC_ENV_FILE", |config| or(config.env_file.as_ref().map(|path| path.display()), "(.env)")),
];

/// Database in the working directory.
pub(super) const DATABASE_NAME: &str = "configurations.db";
/// Salt file in the working directory.
pub(super) const SALT_NAME: &str = "encryption.salt";

/// Index of a variable in the table.
pub(super) fn index_of(variable: &str) -> Option<usize> {
    SETTINGS.iter().position(|setting| setting.name == variable)
}

impl Config {
    /// Returns the effective settings as `NAME=value` lines without secrets, for `check-config`.
    pub fn summary(&self) -> String {
        let lines = SETTINGS.iter().filter_map(|setting| Some((setting.name, (setting.shown)(self)?)));
        lines.map(|(name, value)| format!("{name}={value}\n")).collect()
    }
}

fn text(value: impl Display) -> Option<String> {
    Some(value.to_string())
}

fn or(value: Option<impl Display>, none: &str) -> Option<String> {
    Some(value.map_or_else(|| none.to_owned(), |value| value.to_string()))
}

fn is_set(is_set: bool) -> Option<String> {
    text(if is_set { "(set)" } else { "(none)" })
}

fn secrets(count: usize, none: &str) -> Option<String> {
    match count {
        0 => text(none),
        1 => text("(set)"),
        count => text(format_args!("({count} set)")),
    }
}
