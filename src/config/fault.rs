//! What is wrong with the settings (the server does not start) and what is only doubtful (it does).

use std::fmt;

/// One setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The variable, or `.env` for the file as a whole.
    pub variable: &'static str,
    /// What it holds, unless that is secret, and what is allowed.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.variable, self.message)
    }
}

/// Every setting that cannot be used; at least one. Displayed with one line for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    pub(super) fn new(faults: Vec<Fault>) -> Self {
        Self(faults)
    }

    /// The faults, in the order in which the settings are listed in `.env.example`.
    pub fn as_slice(&self) -> &[Fault] {
        &self.0
    }
}

impl From<Fault> for Faults {
    fn from(fault: Fault) -> Self {
        Self(vec![fault])
    }
}

impl fmt::Display for Faults {
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

impl std::error::Error for Faults {}

/// A setting that is probably not what was meant; to be logged loudly once the log is there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// Other machines reach the server and need no API key.
    #[error("OSC_HOST: listening on {0}, beyond this machine, without a required API key")]
    OpenToOthers(String),
    /// A key is there but nobody asks for it.
    #[error("{0}: is set but not used, because OSC_API_KEY_REQUIRED is not true")]
    ApiKeyUnused(&'static str),
    /// A certificate is there but nobody gets to see it.
    #[error("OSC_SSL_CERTFILE, OSC_SSL_KEYFILE: are set but not used, because OSC_HTTPS_ENABLED is not true")]
    CertificateUnused,
    /// A variable that looks like one of ours, such as one with a spelling mistake.
    #[error("{0}: this version knows no such variable, so it has no effect")]
    Unknown(String),
}
