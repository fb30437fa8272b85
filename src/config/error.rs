//! Errors in the settings, which prevent the start, and warnings, which do not.

use std::fmt;

/// Error in one setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingError {
    /// Name of the variable, or `.env` for the file as a whole.
    pub variable: &'static str,
    /// The value, unless it is secret, the problem, and the allowed values.
    pub message: String,
    /// Whether the error may be transient, such as a name server that is unreachable at boot.
    pub is_transient: bool,
}

impl SettingError {
    pub(super) fn new(variable: &'static str, message: impl Into<String>) -> Self {
        Self { variable, message: message.into(), is_transient: false }
    }
}

impl fmt::Display for SettingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.variable, self.message)
    }
}

/// All errors in the settings, at least one; displayed one per line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingErrors(Vec<SettingError>);

impl SettingErrors {
    pub(super) fn new(errors: Vec<SettingError>) -> Self {
        Self(errors)
    }

    /// Replaces the name of one variable or file.
    pub(super) fn renamed(mut self, from: &str, to: &'static str) -> Self {
        for error in &mut self.0 {
            if error.variable == from {
                error.variable = to;
            }
        }
        self
    }

    /// Returns whether a supervisor should retry with the same settings.
    pub fn are_transient(&self) -> bool {
        self.0.iter().all(|error| error.is_transient)
    }

    /// Returns the errors, in the order in which `.env.example` lists the settings.
    pub fn as_slice(&self) -> &[SettingError] {
        &self.0
    }
}

impl From<SettingError> for SettingErrors {
    fn from(error: SettingError) -> Self {
        Self(vec![error])
    }
}

impl fmt::Display for SettingErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for SettingErrors {}

/// Warning about a setting that is probably not intended; logged as soon as the log has started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// Other machines can reach the server, which requires no API key.
    #[error("OSC_HOST: listening on non-loopback address {0} without requiring an API key")]
    UnauthenticatedListener(String),
    /// An API key or a related setting is set, but no API key is required.
    #[error("{0}: set but not used, because OSC_API_KEY_REQUIRED is not true")]
    ApiKeyUnused(&'static str),
    /// A cluster setting on a standalone node.
    #[error("{0}: set but not used, because OSC_CLUSTER_ENABLED is not true")]
    ClusterUnused(&'static str),
    /// Nodes authenticate each other with the API key of clients.
    #[error(
        "OSC_CLUSTER_SECRET: not set, so every holder of the first API key can read the salt and all ciphertext, \
         and change or delete every entry, through the inter-node endpoints"
    )]
    ClusterByApiKey,
    /// Nodes do not authenticate each other.
    #[error(
        "OSC_CLUSTER_SECRET: not set, and no API key is required, so anyone who can reach the port can read the salt \
         and all ciphertext, and change or delete every entry, through the inter-node endpoints"
    )]
    ClusterOpen,
    /// An accepted API key is easier to guess than it should be.
    #[error("{0}: contains an API key shorter than 16 characters; generate one with `openssl rand -hex 32`")]
    ApiKeyShort(&'static str),
    /// A certificate is set, but TLS is disabled.
    #[error("OSC_SSL_CERTFILE, OSC_SSL_KEYFILE: set but not used, because OSC_HTTPS_ENABLED is not true")]
    CertificateUnused,
    /// A value has quotes, which a shell or `.env` would remove, but a container runtime keeps.
    #[error(
        "{0}: the value begins and ends with a quote, which is part of the value (container runtimes keep quotes in \
         env files)"
    )]
    Quoted(String),
    /// Another setting disables these settings.
    #[error("{names}: set but not used, because {reason}")]
    NoEffect {
        /// Names of the settings.
        names: String,
        /// State of the setting that disables them.
        reason: &'static str,
    },
    /// A setting names a file that does not exist, while the default file does.
    #[error(
        "{setting}{origin}: a new file will be created at {path}; {present} in the working directory is not used"
    )]
    DefaultFileUnused {
        /// Name of the setting.
        setting: &'static str,
        /// Source of its value, if it is not the environment.
        origin: &'static str,
        /// Value of the setting.
        path: String,
        /// Existing file that is not used.
        present: &'static str,
    },
    /// `.env` is a directory.
    #[error(".env: is a directory, so no settings are read from it")]
    EnvDirectory,
    /// Certificates are not valid yet; the clock may be behind, for example at boot.
    #[error("certificates are not valid yet according to the clock of this machine: {0}")]
    NotYetValid(String),
    /// An unknown variable has the prefix of the settings; it may be misspelt.
    #[error("{0}: unknown variable, ignored")]
    Unknown(String),
}
