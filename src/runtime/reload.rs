//! SIGHUP: reads the settings again, and takes over those that can change while the server runs.

use std::collections::BTreeMap;

use crate::config::{self, Config};
use crate::model::ApiKeys;
use crate::telemetry::Log;

/// Settings that are taken over; all others wait for the next start.
const TAKEN_OVER: [&str; 5] =
    ["OSC_LOG_LEVEL", "OSC_API_KEY_REQUIRED", "OSC_API_KEY", "OSC_API_KEY_FILE", "OSC_CLUSTER_NODES"];

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

/// Takes over what concerns no executor, and says what does not change.
pub(super) fn apply(before: &Config, after: &Config, log: &Log, api_keys: &ApiKeys) {
    log.set_level(after.log_level);
    api_keys.replace(after.api_keys.clone());
    if after.api_keys.is_empty() && !before.api_keys.is_empty() {
        tracing::warn!("from now on no API key is required");
    }
    let (before, after) = (before.summary(), after.summary());
    let waiting = changed(&before, &after);
    if !waiting.is_empty() {
        tracing::warn!(settings = waiting.join(" "), "these settings take effect at the next start");
    }
    tracing::info!("the settings were read again");
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
