//! Warnings about settings without effect, or with an effect that was probably not intended.

use std::path::Path;

use super::Config;
use super::error::Warning;
use super::table::{DATABASE_NAME, SALT_NAME, index_of};
use super::variables::Variables;

/// Returns warnings about values in quotes.
pub(super) fn quoted<'a>(variables: &'a Variables<'_>) -> impl Iterator<Item = Warning> + 'a {
    variables
        .all()
        .filter(|(name, value)| index_of(name).is_some() && value.to_str().is_some_and(is_quoted))
        .map(|(name, _)| Warning::Quoted(name.to_owned()))
}

pub(super) fn is_quoted(text: &str) -> bool {
    let inner = |quote: char| text.strip_prefix(quote).is_some_and(|rest| rest.ends_with(quote));
    inner('"') || inner('\'')
}

/// Returns warnings about data files that will be created although the default ones exist: a settings file now applies
/// that was ignored before, or a path is misspelt.
pub(super) fn unused_default_files<'a>(
    variables: &'a Variables<'_>,
    config: &'a Config,
) -> impl Iterator<Item = Warning> + 'a {
    let files = [
        ("OSC_DATABASE_PATH", &config.database_path, DATABASE_NAME),
        ("OSC_SALT_FILE_PATH", &config.salt_file_path, SALT_NAME),
    ];
    let is_unused = |path: &Path, name: &str| Path::new(name).is_file() && !path.exists();
    files.into_iter().filter(move |(_, path, name)| is_unused(path, name)).map(|(setting, path, present)| {
        let origin = if variables.is_from_file(setting) { " (from the settings file)" } else { "" };
        Warning::DefaultFileUnused { setting, origin, path: path.display().to_string(), present }
    })
}

/// Whether a group of settings has no effect, the settings with their defaults, and the reason.
type Group = (bool, &'static [(&'static str, &'static str)], &'static str);

/// Returns warnings about settings that another one disables. Explicit defaults cause no warning, since a copy of
/// `.env.example` contains them.
pub(super) fn unused(variables: &Variables<'_>, config: &Config) -> Vec<Warning> {
    let is_standalone = config.cluster.is_none();
    let is_federated = config.cluster.as_ref().is_some_and(|cluster| cluster.federation.is_some());
    let files = config.certificates.files();
    let groups: [Group; 7] = [
        // OSC_CLUSTER_LISTEN and the secrets have separate warnings.
        (
            is_standalone,
            &[
                ("OSC_CLUSTER_NODES", ""),
                ("OSC_CLUSTER_CA_CERTS", ""),
                ("OSC_CLUSTER_WRITE_ACKS", "local"),
                ("OSC_FEDERATED_TIMEOUT_MS", "2000"),
                ("OSC_FEDERATED_STRICT", "false"),
            ],
            "OSC_CLUSTER_ENABLED is not true",
        ),
        (
            !is_standalone && !is_federated,
            &[("OSC_FEDERATED_TIMEOUT_MS", "2000"), ("OSC_FEDERATED_STRICT", "false")],
            "OSC_CLUSTER_MODE is not federated",
        ),
        (is_federated, &[("OSC_CLUSTER_SYNC_INTERVAL", "30")], "OSC_CLUSTER_MODE is federated"),
        (
            files.own.is_none() && files.peers.is_none(),
            &[("OSC_SSL_CA_CERTS", ""), ("OSC_SSL_KEYFILE_PASSWORD", "")],
            "OSC_HTTPS_ENABLED is not true",
        ),
        (
            config.clients.proxies.is_empty(),
            &[("OSC_FORWARDED_HEADER", "x-forwarded-for")],
            "OSC_TRUSTED_PROXIES is empty",
        ),
        (
            config.api_keys.is_empty() && config.has_public_root,
            &[("OSC_PUBLIC_ROOT", "")],
            "OSC_API_KEY_REQUIRED is not true",
        ),
        (
            variables.is_in_file("OSC_ENV_FILE"),
            &[("OSC_ENV_FILE", "")],
            "it is read only from the process environment",
        ),
    ];
    let mut warnings = Vec::new();
    for (is_off, names, reason) in groups {
        let is_unused =
            |(name, default): &&(&str, &str)| is_off && variables.is_set_to_other_than(name, default);
        let set: Vec<&str> = names.iter().filter(is_unused).map(|(name, _)| *name).collect();
        if !set.is_empty() {
            warnings.push(Warning::NoEffect { names: set.join(", "), reason });
        }
    }
    warnings
}
