//! Conversion of variables to [`Config`]: known names, allowed values and defaults.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::engine::EngineChoice;
use super::error::{SettingError, SettingErrors, Warning};
use super::host::{Host, Resolve};
use super::log::{LogFormat, LogLevel};
use super::number::integer;
use super::store::StoreChoice;
use super::table::{DATABASE_NAME, SALT_NAME, index_of};
use super::user_key;
use super::variables::{Variables, shown};
use super::{
    Config, allowed_hosts, api_key, clients, cluster, cluster_secret, dotenv, effect, kubernetes, origins,
    tls,
};
use crate::limits::{
    DRAIN_SECONDS_MAX, NODE_ID_CHARS_MAX, USER_KEY_BYTES_MIN_DEFAULT, USER_KEY_BYTES_MIN_MAX,
    WORKERS_COUNT_MAX,
};

const PORT_DEFAULT: u16 = 9000;

pub(super) fn read(
    environment: &BTreeMap<String, OsString>,
    dotenv: Option<&[u8]>,
    resolve: Resolve<'_>,
) -> Result<(Config, Vec<Warning>), SettingErrors> {
    let mut warnings = Vec::new();
    let file = match dotenv.map(|bytes| dotenv::parse(bytes, environment)) {
        None => dotenv::File::default(),
        Some(Ok(file)) => file,
        Some(Err(error)) => return Err(SettingErrors::from(error)),
    };
    let mut variables = Variables::new(environment, file.values);
    for line in file.unread_lines {
        variables.add_error(".env", format!("the statement that starts in line {line} cannot be parsed"));
    }

    let port = port(&mut variables);
    let has_tls = variables.switch("OSC_HTTPS_ENABLED");
    let cluster = cluster::read(&mut variables, &mut warnings, has_tls, resolve);
    let api_keys = api_key::read(&mut variables, &mut warnings);
    let has_api_key = !api_keys.is_empty();
    let cluster_secrets = cluster_secret::read(&mut variables, &mut warnings, cluster.is_some(), has_api_key);
    let mut config = Config {
        host: host(&mut variables, port, resolve),
        port,
        admin: admin(&mut variables, resolve),
        workers: workers(&mut variables),
        drain: drain(&mut variables),
        engine: variables.choice("OSC_ENGINE", &EngineChoice::NAMES).unwrap_or(EngineChoice::Auto),
        store: variables.choice("OSC_STORE", &StoreChoice::NAMES).unwrap_or(StoreChoice::Sqlite),
        database_path: path(&mut variables, "OSC_DATABASE_PATH", DATABASE_NAME),
        salt_file_path: path(&mut variables, "OSC_SALT_FILE_PATH", SALT_NAME),
        accepted_salt: accepted_salt(&mut variables),
        user_key_bytes_min: user_key_bytes_min(&mut variables),
        api_keys,
        node_id: node_id(&mut variables, port),
        certificates: tls::read(&mut variables, &mut warnings, has_tls, cluster.as_ref()),
        cluster,
        cluster_secrets,
        allowed_hosts: None,
        origins: origins::read(&mut variables),
        has_public_root: variables.switch("OSC_PUBLIC_ROOT"),
        has_private_metrics: variables.switch("OSC_METRICS_AUTH"),
        clients: clients::read(&mut variables),
        uses_ring: variables.choice("OSC_TEST_SOCKETS", &[("ring", true), ("stream", false)]).unwrap_or(true),
        log_level: variables.choice("OSC_LOG_LEVEL", &LogLevel::NAMES).unwrap_or(LogLevel::Info),
        log_format: variables.choice("OSC_LOG_FORMAT", &LogFormat::NAMES).unwrap_or(LogFormat::Console),
        log_file: variables.text("OSC_LOG_FILE").map(PathBuf::from),
        env_file: variables.text("OSC_ENV_FILE").map(PathBuf::from),
    };
    config.allowed_hosts = allowed_hosts::read(&mut variables, &config);
    check_paths_differ(&mut variables, &config);
    check_listeners_differ(&mut variables, &config);
    if config.has_private_metrics && config.api_keys.is_empty() {
        warnings.push(Warning::ApiKeyUnused("OSC_METRICS_AUTH"));
    }

    if config.api_keys.is_empty() && !config.host.is_loopback() {
        warnings.push(Warning::UnauthenticatedListener(config.host.to_string()));
    }
    warnings.extend(effect::quoted(&variables));
    warnings.extend(effect::unused(&variables, &config));
    warnings.extend(effect::unused_default_files(&variables, &config));
    warnings.extend(unknown(&variables));
    if variables.errors.is_empty() { Ok((config, warnings)) } else { Err(in_order(variables.errors)) }
}

fn host(variables: &mut Variables<'_>, port: u16, resolve: Resolve<'_>) -> Host {
    let text = variables.word("OSC_HOST");
    let text = text.as_deref().unwrap_or("127.0.0.1");
    Host::parse(text, port, resolve).unwrap_or_else(|error| {
        variables.add_host_error("OSC_HOST", text, &error);
        Host::loopback(port)
    })
}

fn port(variables: &mut Variables<'_>) -> u16 {
    let Some(word) = variables.word("OSC_HOST_PORT") else { return PORT_DEFAULT };
    // 0 is accepted, but not documented: tests let the operating system choose the port.
    if let Some(port) = integer(&word) {
        return port;
    }
    let hint = if kubernetes::is_address(&word) {
        "; Kubernetes sets it for a Service named osc-host unless the pod has enableServiceLinks: false"
    } else {
        ""
    };
    variables
        .add_error("OSC_HOST_PORT", format!("{} is not a port (allowed: 1 to 65535){hint}", shown(&word)));
    PORT_DEFAULT
}

fn admin(variables: &mut Variables<'_>, resolve: Resolve<'_>) -> Option<Host> {
    let word = variables.word("OSC_ADMIN_LISTEN")?;
    let parsed = match integer::<u16>(&word) {
        Some(port) => Host::parse_with_port(&format!("127.0.0.1:{port}"), resolve),
        None => Host::parse_with_port(&word, resolve),
    };
    parsed.map_err(|error| variables.add_host_error("OSC_ADMIN_LISTEN", &word, &error)).ok()
}

/// Reads the admin listener and no other setting.
pub(super) fn read_admin(
    environment: &BTreeMap<String, OsString>,
    dotenv: Option<&[u8]>,
) -> Result<Option<Host>, SettingErrors> {
    let file = dotenv.map(|bytes| dotenv::parse(bytes, environment)).transpose()?.unwrap_or_default();
    let mut variables = Variables::new(environment, file.values);
    let host = admin(&mut variables, &super::host::resolve);
    if variables.errors.is_empty() { Ok(host) } else { Err(SettingErrors::new(variables.errors)) }
}

fn workers(variables: &mut Variables<'_>) -> Option<NonZeroUsize> {
    variables
        .number("OSC_WORKERS", "a number of workers", &(1..=WORKERS_COUNT_MAX))
        .and_then(NonZeroUsize::new)
}

fn drain(variables: &mut Variables<'_>) -> Duration {
    let seconds = variables.number("OSC_DRAIN_SECONDS", "a number of seconds", &(0..=DRAIN_SECONDS_MAX));
    Duration::from_secs(seconds.unwrap_or_default().into())
}

fn user_key_bytes_min(variables: &mut Variables<'_>) -> usize {
    variables
        .number("OSC_MIN_USER_KEY_LENGTH", "a length", &(1..=USER_KEY_BYTES_MIN_MAX))
        .unwrap_or(USER_KEY_BYTES_MIN_DEFAULT)
}

fn accepted_salt(variables: &mut Variables<'_>) -> Option<[u8; 32]> {
    let word = variables.word("OSC_ACCEPT_SALT")?;
    let digest = sha256_of(&word);
    if digest.is_none() {
        let message = "is not a SHA-256 digest (allowed: 64 hexadecimal digits, as sha256sum prints them)";
        variables.add_error("OSC_ACCEPT_SALT", message);
    }
    digest
}

fn sha256_of(word: &str) -> Option<[u8; 32]> {
    let (pairs, rest) = word.as_bytes().as_chunks::<2>();
    let mut digest = [0; 32];
    if pairs.len() != digest.len() || !rest.is_empty() {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(pairs) {
        let [high, low] = pair.map(|digit| char::from(digit).to_digit(16));
        *byte = u8::try_from(high? << 4 | low?).ok()?;
    }
    Some(digest)
}

fn node_id(variables: &mut Variables<'_>, port: u16) -> String {
    let node_id = variables.word("OSC_CLUSTER_NODE_ID").unwrap_or_else(|| format!("node-{port}"));
    if node_id.chars().count() > NODE_ID_CHARS_MAX {
        let message = format!("{} is too long (allowed: {NODE_ID_CHARS_MAX} characters)", shown(&node_id));
        variables.add_error("OSC_CLUSTER_NODE_ID", message);
    }
    node_id
}

fn path(variables: &mut Variables<'_>, variable: &'static str, default: &str) -> PathBuf {
    let text = variables.text(variable).unwrap_or_else(|| default.to_owned());
    // SQLite would interpret these as an in-memory database and as a URI with options.
    let is_special = text.starts_with(':') || text.starts_with("file:");
    let path = PathBuf::from(&text);
    if is_special || path.file_name().is_none() || text.ends_with('/') || text.trim().is_empty() {
        variables.add_error(variable, format!("{} is not a file path", shown(&text)));
    }
    path
}

fn check_paths_differ(variables: &mut Variables<'_>, config: &Config) {
    if is_same_file(&config.database_path, &config.salt_file_path) {
        let message = format!(
            "{} is the same file as OSC_DATABASE_PATH",
            shown(&config.salt_file_path.to_string_lossy())
        );
        variables.add_error("OSC_SALT_FILE_PATH", message);
    }
}

fn check_listeners_differ(variables: &mut Variables<'_>, config: &Config) {
    let listen = config.cluster.as_ref().and_then(|cluster| cluster.listen.as_ref());
    if let Some(admin) = &config.admin {
        for (other, settings) in
            [(Some(&config.host), "OSC_HOST and OSC_HOST_PORT"), (listen, "OSC_CLUSTER_LISTEN")]
        {
            if other.is_some_and(|other| admin.overlaps(other)) {
                let message = format!("{} overlaps with {settings}", shown(&admin.to_string()));
                variables.add_error("OSC_ADMIN_LISTEN", message);
            }
        }
    }
    if let Some(listen) = listen.filter(|listen| listen.overlaps(&config.host)) {
        let message = format!("{} overlaps with OSC_HOST and OSC_HOST_PORT", shown(&listen.to_string()));
        variables.add_error("OSC_CLUSTER_LISTEN", message);
    }
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let is_same_path = match (std::path::absolute(one), std::path::absolute(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    };
    let identity = |path: &Path| path.metadata().ok().map(|found| (found.dev(), found.ino()));
    is_same_path || identity(one).is_some_and(|found| Some(found) == identity(other))
}

/// Returns warnings about unknown variables. They are not errors, since other programs share the environment.
fn unknown(variables: &Variables<'_>) -> Vec<Warning> {
    variables
        .all()
        .filter(|(name, _)| name.starts_with("OSC_") && index_of(name).is_none())
        .filter(|(name, _)| !user_key::NAMES.contains(name))
        // Hooks for tests, not settings for operators.
        .filter(|(name, _)| !name.starts_with("OSC_TEST_"))
        .filter(|(name, value)| !kubernetes::is_service_link(name, value))
        .map(|(name, _)| Warning::Unknown(name.to_owned()))
        .collect()
}

/// Sorts the errors in the order of [`KNOWN`], which is that of `.env.example`.
fn in_order(mut errors: Vec<SettingError>) -> SettingErrors {
    errors.sort_by_key(|error| index_of(error.variable));
    SettingErrors::new(errors)
}
