//! What is wrong with the settings (the server does not start) and what is only doubtful (it does).

use std::fmt;

/// One setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingError {
    /// The variable, or `.env` for the file as a whole.
    pub variable: &'static str,
    /// What it holds, unless that is secret, and what is allowed.
    pub message: String,
    /// Whether it may be gone at the next start, such as a name server that does not answer at boot.
    pub is_passing: bool,
}

impl SettingError {
    pub(super) fn new(variable: &'static str, message: impl Into<String>) -> Self {
        Self { variable, message: message.into(), is_passing: false }
    }
}

impl fmt::Display for SettingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.variable, self.message)
    }
}

/// Every setting that cannot be used; at least one. Displayed with one line for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingErrors(Vec<SettingError>);

impl SettingErrors {
    pub(super) fn new(faults: Vec<SettingError>) -> Self {
        Self(faults)
    }

    /// The same with another name for one source.
    pub(super) fn renamed(mut self, from: &str, to: &'static str) -> Self {
        for fault in &mut self.0 {
            if fault.variable == from {
                fault.variable = to;
            }
        }
        self
    }

    /// Whether a supervisor should try again with the same settings.
    pub fn are_passing(&self) -> bool {
        self.0.iter().all(|fault| fault.is_passing)
    }

    /// The faults, in the order in which the settings are listed in `.env.example`.
    pub fn as_slice(&self) -> &[SettingError] {
        &self.0
    }
}

impl From<SettingError> for SettingErrors {
    fn from(fault: SettingError) -> Self {
        Self(vec![fault])
    }
}

impl fmt::Display for SettingErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for SettingErrors {}

/// A setting that is probably not what was meant; to be logged loudly once the log is there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// Other machines reach the server and need no API key.
    #[error("OSC_HOST: listening on {0}, beyond this machine, without a required API key")]
    OpenToOthers(String),
    /// A key is there but nobody asks for it.
    #[error("{0}: is set but not used, because OSC_API_KEY_REQUIRED is not true")]
    ApiKeyUnused(&'static str),
    /// Cluster setting of a server that is not part of a cluster.
    #[error("{0}: is set but not used, because OSC_CLUSTER_ENABLED is not true")]
    ClusterUnused(&'static str),
    /// Nodes authenticate each other by the API key of clients.
    #[error(
        "OSC_CLUSTER_SECRET: not set, so every holder of the first API key can read the salt and all ciphertext, \
         and change or delete every entry, by the endpoints between nodes"
    )]
    ClusterByApiKey,
    /// Nodes do not authenticate each other.
    #[error(
        "OSC_CLUSTER_SECRET: not set, and no API key is required, so everyone who reaches the port can read the salt \
         and all ciphertext, and change or delete every entry, by the endpoints between nodes"
    )]
    ClusterOpen,
    /// A key that is taken, but easier to guess than it should be.
    #[error("{0}: holds an API key shorter than 16 characters; `openssl rand -hex 32` makes a good one")]
    ApiKeyShort(&'static str),
    /// A certificate is there but nobody gets to see it.
    #[error("OSC_SSL_CERTFILE, OSC_SSL_KEYFILE: are set but not used, because OSC_HTTPS_ENABLED is not true")]
    CertificateUnused,
    /// Quotes that a shell or `.env` would take away, and a container engine does not.
    #[error(
        "{0}: the value begins and ends with a quote, which is part of the value (env files of container engines keep quotes)"
    )]
    Quoted(String),
    /// Settings that another one switches off.
    #[error("{names}: set but not used, because {reason}")]
    NoEffect {
        /// The settings.
        names: String,
        /// The setting that decides.
        reason: &'static str,
    },
    /// A file that would have been used without this setting, which names one that does not exist.
    #[error(
        "{setting}{origin}: a new file will be made at {path}, while {present} in the working directory is not used"
    )]
    Elsewhere {
        /// The setting.
        setting: &'static str,
        /// Where its value is from, if that is not the environment.
        origin: &'static str,
        /// Its value.
        path: String,
        /// The file that is there.
        present: &'static str,
    },
    /// `.env` is a directory.
    #[error(".env: is a directory, so no settings are read from it")]
    EnvDirectory,
    /// A clock that is behind, for example at boot.
    #[error("certificates are not valid yet by the clock of this machine: {0}")]
    NotYetValid(String),
    /// A variable that looks like one of ours, such as one with a spelling mistake.
    #[error("{0}: this version knows no such variable, so it has no effect")]
    Unknown(String),
}
