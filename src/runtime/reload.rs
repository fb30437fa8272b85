//! Reload on SIGHUP: applies the settings that can change while the server runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use crate::config::{self, Config, PeerAddress};
use crate::limits::CERTIFICATE_EXPIRY_WARNING_DAYS;
use crate::model::ApiKeys;
use crate::service::NodeAuth;
use crate::service::node_auth::SharedKey;
use crate::telemetry::{Gauge, Log};
use crate::tls::Certificates;

/// Settings that a reload applies; all others require a restart.
const RELOADABLE: &[&str] = &[
    "OSC_LOG_LEVEL",
    "OSC_API_KEY_REQUIRED",
    "OSC_API_KEY",
    "OSC_API_KEY_FILE",
    "OSC_CLUSTER_NODES",
    "OSC_CLUSTER_SECRET",
    "OSC_CLUSTER_SECRET_FILE",
    "OSC_CLUSTER_CA_CERTS",
    "OSC_SSL_CERTFILE",
    "OSC_SSL_KEYFILE",
    "OSC_SSL_KEYFILE_PASSWORD",
    "OSC_SSL_CA_CERTS",
];

/// Loads the settings again. Logs every error and returns `None` if they are invalid.
pub(super) fn read() -> Option<Config> {
    match config::load() {
        Ok((config, warnings)) => {
            for warning in warnings {
                tracing::warn!("{warning}");
            }
            Some(config)
        }
        Err(errors) => {
            for error in errors.as_slice() {
                tracing::error!(%error, "invalid configuration, keeping the previous settings");
            }
            None
        }
    }
}

/// Applies the reloadable settings, and logs the changed ones that require a restart. Returns the new list of peers.
pub(super) fn apply(
    before: &Config,
    after: &Config,
    log: &Log,
    api_keys: &ApiKeys,
    node_auth: &NodeAuth,
) -> Option<Vec<PeerAddress>> {
    log.set_level(after.log_level);
    // A key file that is missing for a moment, for example, must not open the server to all clients.
    if after.api_keys.is_empty() && api_keys.are_required() {
        tracing::warn!("cannot stop requiring an API key without a restart; keeping the previous keys");
    } else {
        api_keys.replace(after.api_keys.clone());
    }
    if after.cluster_secrets.is_empty() && node_auth.shared() == SharedKey::Secret {
        tracing::warn!(
            "cannot stop requiring a cluster secret without a restart; keeping the previous secrets"
        );
    } else {
        node_auth.replace(&after.cluster_secrets, api_keys);
    }
    // TLS is not switched on or off without a restart, nor are the settings that depend on it applied then.
    let has_same_scheme =
        before.certificates.files().own.is_some() == after.certificates.files().own.is_some();
    match after.certificates.not_yet_valid() {
        Some(errors) if has_same_scheme => {
            tracing::error!(%errors, "certificates are not valid yet, keeping the previous ones");
        }
        _ if has_same_scheme && before.certificates.apply(&after.certificates) => {
            log_reload(&before.certificates);
        }
        _ => {}
    }
    let peers = after.cluster.as_ref().filter(|_| has_same_scheme).map(|cluster| cluster.peers.clone());
    let (before, after) = (before.summary(), after.summary());
    let pending = changed(&before, &after);
    if !pending.is_empty() {
        tracing::warn!(settings = pending.join(" "), "these settings require a restart");
    }
    tracing::info!("configuration reloaded");
    peers
}

const DAY_SECONDS: i64 = 24 * 60 * 60;

/// Warner about certificates that expire soon, once per remaining day and certificate.
#[derive(Default)]
pub(super) struct ExpiryWatch {
    gauge: Arc<Gauge>,
    /// Expiry and remaining days of the last warning, by setting.
    warned: BTreeMap<&'static str, (Timestamp, i64)>,
}

impl ExpiryWatch {
    /// Returns the expiry of the server certificate, in seconds since 1970; 0 without TLS.
    pub(super) fn gauge(&self) -> Arc<Gauge> {
        Arc::clone(&self.gauge)
    }

    /// Checks the expiry of all certificates, and updates the gauge. Called periodically.
    pub(super) fn look(&mut self, certificates: &Certificates, now: Timestamp) {
        if let Some(expires) = certificates.expires() {
            self.gauge.set(u64::try_from(expires.as_second()).unwrap_or_default());
        }
        for (setting, expires) in certificates.expiries() {
            let days = (expires.as_second() - now.as_second()).div_euclid(DAY_SECONDS);
            let is_warned = self.warned.insert(setting, (expires, days)) == Some((expires, days));
            match days {
                CERTIFICATE_EXPIRY_WARNING_DAYS.. => {}
                _ if is_warned => {}
                0.. => tracing::warn!(setting, %expires, days, "certificate expires soon, renew it"),
                _ => tracing::error!(setting, %expires, "certificate has expired and is refused"),
            }
        }
    }
}

/// Reloads certificate files that have changed.
pub(super) fn reload_certificates(certificates: &Certificates) {
    match certificates.reload_if_changed() {
        Ok(false) => {}
        Ok(true) => log_reload(certificates),
        Err(errors) => tracing::error!(%errors, "invalid certificates, keeping the previous ones"),
    }
}

fn log_reload(certificates: &Certificates) {
    let expires = certificates.expires().map(tracing::field::display);
    tracing::info!(expires, "certificates reloaded, new connections use them");
    warn_of_refusal(certificates);
}

/// Warns if peers with the same settings would refuse the certificate of this node.
pub(super) fn warn_of_refusal(certificates: &Certificates) {
    if let Some(reason) = certificates.refusal_as_node() {
        tracing::warn!(reason, "OSC_SSL_CERTFILE is not a valid node certificate under OSC_CLUSTER_CA_CERTS");
    }
}

/// Returns the names of the settings that differ and that a reload does not apply.
fn changed<'a>(before: &'a str, after: &'a str) -> Vec<&'a str> {
    let lines = |summary: &'a str| -> BTreeMap<&'a str, &'a str> {
        summary.lines().filter_map(|line| line.split_once('=')).collect()
    };
    let (before, after) = (lines(before), lines(after));
    let names = before.keys().chain(after.keys()).copied();
    let differs = |name: &&str| before.get(name) != after.get(name) && !RELOADABLE.contains(name);
    let mut names: Vec<&str> = names.filter(differs).collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_require_a_restart_are_named() {
        let before = "OSC_HOST=a\nOSC_LOG_LEVEL=INFO\nOSC_WORKERS=1\n";
        let after = "OSC_HOST=b\nOSC_LOG_LEVEL=DEBUG\nOSC_WORKERS=1\nOSC_CLUSTER_MODE=replica\n";
        assert_eq!(changed(before, after), ["OSC_CLUSTER_MODE", "OSC_HOST"]);
        assert!(changed(after, after).is_empty());
    }
}
