//! Certificates in use, and their hot reload.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use rustls::ClientConfig;

use super::error::{CertificateFileErrors, FileRole};
use super::files::{Files, Fingerprint};
use super::loaded::Loaded;
use super::self_client;
use super::server::ServerContext;

/// Handle to the certificates in use; all clones share them.
#[derive(Clone)]
pub struct Certificates(Arc<Shared>);

struct Shared {
    current: ArcSwap<Current>,
    watch: Mutex<Watch>,
}

struct Current {
    files: Files,
    loaded: Arc<Loaded>,
}

/// State of the change detection.
#[derive(Clone)]
struct Watch {
    /// Fingerprint of the files that are in use.
    loaded: Fingerprint,
    /// Fingerprint at the last check.
    seen: Fingerprint,
    /// Errors of the files at the last check, which have been reported.
    reported: Option<CertificateFileErrors>,
}

impl Certificates {
    /// Reads all files.
    ///
    /// # Errors
    /// Returns all errors of all files.
    pub fn load(files: Files) -> Result<Self, CertificateFileErrors> {
        // Computed before the files are read, so that a write in between is detected as a change.
        let fingerprint = files.fingerprint();
        let loaded = Arc::new(Loaded::read(&files)?);
        let watch = Mutex::new(Watch { loaded: fingerprint.clone(), seen: fingerprint, reported: None });
        Ok(Self(Arc::new(Shared { current: ArcSwap::from_pointee(Current { files, loaded }), watch })))
    }

    /// Creates the handle of a node without TLS.
    pub fn none() -> Self {
        Self::load(Files::none()).expect("there is no file that could be invalid")
    }

    /// Returns the files that the certificates come from.
    pub fn files(&self) -> Files {
        self.0.current.load().files.clone()
    }

    /// Returns the context of a new connection to the client listener; `None` if this node serves without TLS.
    pub fn server(&self) -> Option<Arc<ServerContext>> {
        self.0.current.load().loaded.server.clone()
    }

    /// Returns the context of a new connection to the cluster listener; `None` if there is no such listener, or this
    /// node serves without TLS.
    pub fn cluster_server(&self) -> Option<Arc<ServerContext>> {
        self.0.current.load().loaded.cluster_server.clone()
    }

    /// Returns the configuration of a new connection to a peer; `None` if no peer uses TLS.
    pub fn client(&self) -> Option<Arc<ClientConfig>> {
        self.0.current.load().loaded.client.clone()
    }

    /// Returns the configuration of a connection of this machine to its own server: it trusts exactly the certificate
    /// of the server, whatever its names are, and presents it if clients must present one. `None` if the server has
    /// no TLS.
    pub fn to_self(&self) -> Option<Arc<ClientConfig>> {
        let current = self.0.current.load();
        let presents_it = current.files.clients.is_some();
        current.loaded.own.clone().map(|own| Arc::new(self_client::config(own, presents_it)))
    }

    /// Returns the expiry time of this node's certificate.
    pub fn expires(&self) -> Option<Timestamp> {
        self.0.current.load().loaded.expires
    }

    /// Returns the expiry times of the files, by setting: that of this node's certificate, and that of the last valid
    /// CA certificate of each file.
    pub fn expiries(&self) -> Vec<(&'static str, Timestamp)> {
        let loaded = &self.0.current.load().loaded;
        let own = loaded.expires.map(|expires| (FileRole::Certificate, expires));
        let all = own.into_iter().chain(loaded.authorities_expire.iter().copied());
        all.map(|(role, expires)| (role.variable(), expires)).collect()
    }

    /// Returns why peers with the same CA certificates for nodes would refuse this node's certificate, if they would.
    pub fn refusal_as_node(&self) -> Option<String> {
        self.0.current.load().loaded.refusal_as_node.clone()
    }

    /// Returns an error for each certificate that is not valid yet by the clock of this machine; `None` if all are
    /// valid.
    pub fn not_yet_valid(&self) -> Option<CertificateFileErrors> {
        let errors = self.0.current.load().loaded.not_yet_valid.clone();
        (!errors.is_empty()).then_some(CertificateFileErrors(errors))
    }

    /// Applies the certificates of `newer`, and its files. Returns whether the certificates have changed.
    pub fn apply(&self, newer: &Self) -> bool {
        *self.watch() = newer.watch().clone();
        let newer = newer.0.current.load();
        self.replace(newer.files.clone(), Arc::clone(&newer.loaded))
    }

    /// Replaces the certificates; returns whether they have changed. Unchanged ones keep their configuration, so that
    /// connections to peers need not be re-established.
    fn replace(&self, files: Files, loaded: Arc<Loaded>) -> bool {
        let previous = Arc::clone(&self.0.current.load().loaded);
        let has_changed = loaded.digest != previous.digest;
        let loaded = if has_changed { loaded } else { previous };
        self.0.current.store(Arc::new(Current { files, loaded }));
        has_changed
    }

    /// Reads all files again if they have changed and are at rest: a certificate and its key are not replaced at the
    /// same instant, so a change since the last call is left to the next one. New connections then use the new
    /// contents; open ones continue. Returns whether the certificates have changed.
    ///
    /// # Errors
    /// Fails if the files are invalid. The previous certificates then stay in use, and the next call tries again: a
    /// certificate may become valid, and a shortage of file descriptors may end. Each set of errors is returned once.
    pub fn reload_if_changed(&self) -> Result<bool, CertificateFileErrors> {
        let files = self.files();
        let fingerprint = files.fingerprint();
        {
            let mut watch = self.watch();
            if watch.seen != fingerprint {
                (watch.seen, watch.reported) = (fingerprint, None);
                return Ok(false);
            }
            if watch.loaded == fingerprint {
                return Ok(false);
            }
        }
        let read = Loaded::read(&files).and_then(|loaded| match loaded.not_yet_valid.is_empty() {
            true => Ok(loaded),
            // The certificates in use are better than ones that are not valid yet.
            false => Err(CertificateFileErrors(loaded.not_yet_valid)),
        });
        match read {
            Ok(loaded) => {
                *self.watch() = Watch { loaded: fingerprint.clone(), seen: fingerprint, reported: None };
                Ok(self.replace(files, Arc::new(loaded)))
            }
            Err(errors) => {
                let reported = self.watch().reported.replace(errors.clone());
                if reported.as_ref() == Some(&errors) { Ok(false) } else { Err(errors) }
            }
        }
    }

    fn watch(&self) -> std::sync::MutexGuard<'_, Watch> {
        self.0.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Certificates").field(&self.0.current.load().files).finish()
    }
}
