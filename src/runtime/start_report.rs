//! Summary of a started server: one log line, and the status for the supervisor.

use std::path::Path;

use super::EngineKind;
use crate::config::{Config, StoreChoice};

/// Logs one line with everything that identifies this server: address, files, engine and mode.
pub(super) fn log(config: &Config, engine: EngineKind, executors: usize, port: u16) {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        url = url(config, port),
        database = file(config, &config.database_path),
        salt = file(config, &config.salt_file_path),
        engine = engine.name(),
        executors,
        mode = mode(config),
        node = config.node_id,
        peers_listener = config.cluster.as_ref().and_then(|cluster| cluster.listen.as_ref()).map(field),
        admin_listener = config.admin.as_ref().map(field),
        "server started"
    );
}

/// Returns a short form of the log line, for `systemctl status`.
pub(super) fn status(config: &Config, engine: EngineKind, port: u16) -> String {
    let database = file(config, &config.database_path);
    format!("serving {database} at {} ({}, {})", url(config, port), mode(config), engine.name())
}

fn field(value: impl std::fmt::Display) -> String {
    value.to_string()
}

fn url(config: &Config, port: u16) -> String {
    let scheme = if config.certificates.files().own.is_some() { "https" } else { "http" };
    let host = config.host.to_string();
    match host.contains(':') && !host.starts_with('[') {
        true => format!("{scheme}://[{host}]:{port}"),
        false => format!("{scheme}://{host}:{port}"),
    }
}

fn mode(config: &Config) -> &'static str {
    match &config.cluster {
        None => "single",
        Some(cluster) if cluster.federation.is_some() => "federated",
        Some(_) => "replica",
    }
}

/// Returns the name of a data file; `memory` without one.
fn file(config: &Config, path: &Path) -> String {
    match config.store {
        StoreChoice::Sqlite => absolute(path),
        StoreChoice::Memory => config.store.to_string(),
    }
}

/// Returns the absolute path as text: a relative one depends on the working directory, which the log does not show.
fn absolute(path: &Path) -> String {
    std::path::absolute(path).as_deref().unwrap_or(path).display().to_string()
}
