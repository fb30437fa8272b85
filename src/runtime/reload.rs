//! SIGHUP: reads the settings again, and takes over those that can change while the server runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use crate::config::{self, Config, PeerAddress};
use crate::model::ApiKeys;
use crate::service::NodeAuth;
use crate::service::node_auth::SharedKey;
use crate::telemetry::{Gauge, Log};
use crate::tls::Certificates;

/// Settings that are taken over; all others wait for the next start.
const TAKEN_OVER: &[&str] = &[
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

/// Reads the settings again. Wrong ones change nothing.
pub(super) fn read() -> Option<Config> {
    match config::load() {
        Ok((config, warnings)) => {
            for warning in warnings {
                tracing::warn!("{warning}");
            }
            Some(config)
        }
        Err(faults) => {
            for fault in faults.as_slice() {
                tracing::error!(%fault, "the settings stay as they were");
            }
            None
        }
    }
}

/// Takes over what needs no other executor, and says what does not change. Gives the peers to go on with.
pub(super) fn apply(
    before: &Config,
    after: &Config,
    log: &Log,
    api_keys: &ApiKeys,
    node_auth: &NodeAuth,
) -> Option<Vec<PeerAddress>> {
    log.set_level(after.log_level);
    // A file that is gone for a moment, say, must not open the server to everybody.
    if after.api_keys.is_empty() && api_keys.are_required() {
        tracing::warn!("an API key stays required until the next start, and the keys are those from before");
    } else {
        api_keys.replace(after.api_keys.clone());
    }
    if after.cluster_secrets.is_empty() && node_auth.shared() == SharedKey::Secret {
        tracing::warn!("a cluster secret stays required until the next start, and it is the one from before");
    } else {
        node_auth.replace(&after.cluster_secrets, api_keys);
    }
    // Whether there is TLS does not change, and then neither does what follows from it.
    let has_same_scheme =
        before.certificates.files().own.is_some() == after.certificates.files().own.is_some();
    match after.certificates.not_yet_valid() {
        Some(faults) if has_same_scheme => {
            tracing::error!("certificates are not valid yet, keeping the previous ones: {faults}");
        }
        _ if has_same_scheme && before.certificates.take_over(&after.certificates) => {
            tell_of(&before.certificates);
        }
        _ => {}
    }
    let peers = after.cluster.as_ref().filter(|_| has_same_scheme).map(|cluster| cluster.peers.clone());
    let (before, after) = (before.summary(), after.summary());
    let waiting = changed(&before, &after);
    if !waiting.is_empty() {
        tracing::warn!(settings = waiting.join(" "), "these settings take effect at the next start");
    }
    tracing::info!("the settings were read again");
    peers
}

/// From so many days before its end on a certificate is warned about.
const EXPIRY_WARNING_DAYS: i64 = 14;
const DAY_SECONDS: i64 = 24 * 60 * 60;

/// Warns of a certificate that is about to end, once for each day that is left.
#[derive(Default)]
pub(super) struct ExpiryWatch {
    gauge: Arc<Gauge>,
    said: BTreeMap<&'static str, (Timestamp, i64)>,
}

impl ExpiryWatch {
    /// In seconds since 1970; 0 without TLS.
    pub(super) fn gauge(&self) -> Arc<Gauge> {
        Arc::clone(&self.gauge)
    }

    /// To be called now and then.
    pub(super) fn look(&mut self, certificates: &Certificates, now: Timestamp) {
        if let Some(expires) = certificates.expires() {
            self.gauge.set(u64::try_from(expires.as_second()).unwrap_or_default());
        }
        for (setting, expires) in certificates.expiries() {
            let days = (expires.as_second() - now.as_second()).div_euclid(DAY_SECONDS);
            let is_said = self.said.insert(setting, (expires, days)) == Some((expires, days));
            match days {
                EXPIRY_WARNING_DAYS.. => {}
                _ if is_said => {}
                0.. => tracing::warn!(%expires, days, "the certificate in {setting} expires soon: renew it"),
                _ => tracing::error!(%expires, "the certificate in {setting} has expired, and is refused"),
            }
        }
    }
}

/// Takes certificates that have changed into use.
pub(super) fn look_at(certificates: &Certificates) {
    match certificates.reload_if_changed() {
        Ok(false) => {}
        Ok(true) => tell_of(certificates),
        Err(faults) => {
            tracing::error!(
                "the certificates that have changed cannot be used, those before them stay: {faults}"
            );
        }
    }
}

fn tell_of(certificates: &Certificates) {
    let expires = certificates.expires().map(tracing::field::display);
    tracing::info!(expires, "new connections have the certificates that have changed");
    warn_of_refusal(certificates);
}

/// Warns of a certificate with which this node would be no node for peers that have the same settings.
pub(super) fn warn_of_refusal(certificates: &Certificates) {
    if let Some(reason) = certificates.refusal_as_node() {
        tracing::warn!(reason, "OSC_SSL_CERTFILE is not a certificate of a node by OSC_CLUSTER_CA_CERTS");
    }
}

/// Names of settings that differ and are not taken over.
fn changed<'a>(before: &'a str, after: &'a str) -> Vec<&'a str> {
    let lines = |summary: &'a str| -> BTreeMap<&'a str, &'a str> {
        summary.lines().filter_map(|line| line.split_once('=')).collect()
    };
    let (before, after) = (lines(before), lines(after));
    let names = before.keys().chain(after.keys()).copied();
    let differs = |name: &&str| before.get(name) != after.get(name) && !TAKEN_OVER.contains(name);
    let mut names: Vec<&str> = names.filter(differs).collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_to_wait_is_named() {
        let before = "OSC_HOST=a\nOSC_LOG_LEVEL=INFO\nOSC_WORKERS=1\n";
        let after = "OSC_HOST=b\nOSC_LOG_LEVEL=DEBUG\nOSC_WORKERS=1\nOSC_CLUSTER_MODE=replica\n";
        assert_eq!(changed(before, after), ["OSC_CLUSTER_MODE", "OSC_HOST"]);
        assert!(changed(after, after).is_empty());
    }
}
