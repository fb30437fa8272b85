//! Summary of the effective settings, printed by `check-config`.

use super::{Config, PeerAddress};
use crate::tls::{Files, Roots};

impl Config {
    /// Returns the effective settings as `NAME=value` lines without secrets.
    pub fn summary(&self) -> String {
        let workers = self.workers.map_or("(one per usable core)".to_owned(), |count| count.to_string());
        let secrets = |count: usize, none: &str| match count {
            0 => none.to_owned(),
            1 => "(set)".to_owned(),
            count => format!("({count} set)"),
        };
        let api_key = secrets(self.api_keys.len(), "(not required)");
        let connections_per_address = self.clients.connections_per_address;
        let connections_per_address = connections_per_address
            .map_or_else(|| "(three quarters of all)".to_owned(), |limit| limit.to_string());
        let lines = [
            ("OSC_HOST", self.host.to_string()),
            ("OSC_HOST_PORT", self.port.to_string()),
            ("OSC_ADMIN_LISTEN", self.admin.as_ref().map_or("(none)".to_owned(), ToString::to_string)),
            ("OSC_WORKERS", workers),
            ("OSC_ENGINE", self.engine.to_string()),
            ("OSC_DATABASE_PATH", self.database_path.display().to_string()),
            ("OSC_SALT_FILE_PATH", self.salt_file_path.display().to_string()),
            ("OSC_ACCEPT_SALT", if self.accepted_salt.is_some() { "(set)" } else { "(none)" }.to_owned()),
            ("OSC_MIN_USER_KEY_LENGTH", self.user_key_bytes_min.to_string()),
            ("OSC_API_KEY_REQUIRED", (!self.api_keys.is_empty()).to_string()),
            ("OSC_API_KEY", api_key),
            ("OSC_CLUSTER_ENABLED", self.cluster.is_some().to_string()),
            ("OSC_CLUSTER_NODE_ID", self.node_id.clone()),
            ("OSC_LOG_LEVEL", self.log_level.to_string()),
            ("OSC_LOG_FORMAT", self.log_format.to_string()),
            (
                "OSC_LOG_FILE",
                self.log_file.as_ref().map_or("(standard error)".into(), |path| path.display().to_string()),
            ),
            (
                "OSC_ENV_FILE",
                self.env_file.as_ref().map_or("(.env)".into(), |path| path.display().to_string()),
            ),
            ("OSC_PUBLIC_ROOT", self.has_public_root.to_string()),
            ("OSC_METRICS_AUTH", self.has_private_metrics.to_string()),
            ("OSC_RATE_LIMIT_PER_ADDRESS", number(self.clients.rate_per_address)),
            ("OSC_RATE_LIMIT_PER_API_KEY", number(self.clients.rate_per_api_key)),
            ("OSC_FAILED_KEYS_PER_ADDRESS", number(self.clients.failed_keys_per_address)),
            ("OSC_CONNECTIONS_PER_ADDRESS", connections_per_address),
            ("OSC_TRUSTED_PROXIES", self.clients.proxies.to_string()),
            ("OSC_FORWARDED_HEADER", self.clients.proxies.header().to_string()),
            ("OSC_PROXY_PROTOCOL", self.clients.has_proxy_protocol.to_string()),
            ("OSC_ALLOWED_HOSTS", self.allowed_hosts.as_ref().map_or("*".to_owned(), ToString::to_string)),
            ("CORS_ORIGINS", self.origins.as_ref().map_or("(none)".to_owned(), ToString::to_string)),
        ];
        let mut summary = lines.map(|(name, value)| format!("{name}={value}\n")).concat();
        summary.push_str(&tls(&self.certificates.files()));
        if let Some(cluster) = &self.cluster {
            let scheme = |peer: &PeerAddress| if peer.has_tls() { "https://" } else { "" };
            let peers: Vec<String> =
                cluster.peers.iter().map(|peer| format!("{}{peer}", scheme(peer))).collect();
            summary.push_str(&format!("OSC_CLUSTER_NODES={}\n", peers.join(",")));
            if let Some(listen) = &cluster.listen {
                summary.push_str(&format!("OSC_CLUSTER_LISTEN={listen}\n"));
            }
            let cluster_secret = secrets(self.cluster_secrets.len(), "(not set)");
            summary.push_str(&format!("OSC_CLUSTER_SECRET={cluster_secret}\n"));
            summary.push_str(&match &cluster.federation {
                None => format!(
                    "OSC_CLUSTER_MODE=replica\nOSC_CLUSTER_SYNC_INTERVAL={}\nOSC_CLUSTER_WRITE_ACKS={}\n",
                    cluster.sync_interval.as_secs(),
                    cluster.write_acks
                ),
                Some(federation) => format!(
                    "OSC_CLUSTER_MODE=federated\nOSC_FEDERATED_TIMEOUT_MS={}\nOSC_FEDERATED_STRICT={}\n",
                    federation.timeout.as_millis(),
                    federation.is_strict
                ),
            });
        }
        summary
    }
}

fn number(limit: Option<std::num::NonZeroU32>) -> String {
    limit.map_or_else(|| "(no limit)".to_owned(), |limit| limit.to_string())
}

fn tls(files: &Files) -> String {
    let Some(own) = &files.own else {
        return "OSC_HTTPS_ENABLED=false\n".to_owned() + &roots(files);
    };
    let clients = files.clients.as_ref().map_or("(none)".to_owned(), |path| path.display().to_string());
    format!(
        "OSC_HTTPS_ENABLED=true\nOSC_SSL_CERTFILE={}\nOSC_SSL_KEYFILE={}\nOSC_SSL_KEYFILE_PASSWORD={}\n\
         OSC_SSL_CA_CERTS={clients}\n{}",
        own.certificate.display(),
        own.key.display(),
        if own.password.is_some() { "(set)" } else { "(none)" },
        roots(files),
    )
}

fn roots(files: &Files) -> String {
    match (&files.nodes, &files.peers) {
        (None, None) => String::new(),
        (None, Some(Roots::System)) => "OSC_CLUSTER_CA_CERTS=(system CA certificates)\n".to_owned(),
        (Some(path), _) | (None, Some(Roots::File(path))) => {
            format!("OSC_CLUSTER_CA_CERTS={}\n", path.display())
        }
    }
}
