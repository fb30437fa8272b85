//! The certificates in use, and how they become others while the server runs.

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

/// A handle; all copies lead to the same certificates.
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

/// What the files looked like.
#[derive(Clone)]
struct Watch {
    /// When they were read last and could be used.
    read: Fingerprint,
    /// When they were looked at last.
    seen: Fingerprint,
    /// What was wrong then, and has been said.
    faults: Option<CertificateFileErrors>,
}

impl Certificates {
    /// Reads all files.
    ///
    /// # Errors
    /// With everything that is wrong with them.
    pub fn load(files: Files) -> Result<Self, CertificateFileErrors> {
        // Before they are read: what is written meanwhile is seen as a change.
        let stamp = files.stamp();
        let loaded = Arc::new(Loaded::read(&files)?);
        let watch = Mutex::new(Watch { read: stamp.clone(), seen: stamp, faults: None });
        Ok(Self(Arc::new(Shared { current: ArcSwap::from_pointee(Current { files, loaded }), watch })))
    }

    /// For a node without any TLS.
    pub fn none() -> Self {
        Self::load(Files::none()).expect("no file can be wrong")
    }

    /// Where they come from.
    pub fn files(&self) -> Files {
        self.0.current.load().files.clone()
    }

    /// For a connection to the listener of clients that is made now; `None` when this node serves without TLS.
    pub fn server(&self) -> Option<Arc<ServerContext>> {
        self.0.current.load().loaded.server.clone()
    }

    /// For a connection to the listener of peers that is made now, likewise.
    pub fn cluster_server(&self) -> Option<Arc<ServerContext>> {
        self.0.current.load().loaded.cluster_server.clone()
    }

    /// For a connection to a peer that is made now; `None` when no peer has TLS.
    pub fn client(&self) -> Option<Arc<ClientConfig>> {
        self.0.current.load().loaded.client.clone()
    }

    /// For a connection of this machine to the server itself: it trusts the very certificate of the server, whatever
    /// name that has, and shows it if clients must show one. `None` when the server has no TLS.
    pub fn to_self(&self) -> Option<Arc<ClientConfig>> {
        let current = self.0.current.load();
        let shown = current.files.clients.is_some();
        current.loaded.own.clone().map(|own| Arc::new(self_client::config(own, shown)))
    }

    /// When the certificate of this node expires.
    pub fn expires(&self) -> Option<Timestamp> {
        self.0.current.load().loaded.expires
    }

    /// When each file is of no more use, by its setting: the own certificate, and authorities.
    pub fn expiries(&self) -> Vec<(&'static str, Timestamp)> {
        let loaded = &self.0.current.load().loaded;
        let own = loaded.expires.map(|expires| (FileRole::Certificate, expires));
        let all = own.into_iter().chain(loaded.authorities_expire.iter().copied());
        all.map(|(role, expires)| (role.variable(), expires)).collect()
    }

    /// Why peers with the same CA certificates for nodes as this one would refuse its certificate.
    pub fn refusal_as_node(&self) -> Option<String> {
        self.0.current.load().loaded.refusal_as_node.clone()
    }

    /// Certificates that are valid only later by the clock of this machine; `None` if all are valid.
    pub fn not_yet_valid(&self) -> Option<CertificateFileErrors> {
        let faults = self.0.current.load().loaded.not_yet_valid.clone();
        (!faults.is_empty()).then_some(CertificateFileErrors(faults))
    }

    /// Takes over what `newer` has read, and where that came from. Says whether the certificates are others.
    pub fn take_over(&self, newer: &Self) -> bool {
        *self.watch() = newer.watch().clone();
        let newer = newer.0.current.load();
        self.put(newer.files.clone(), Arc::clone(&newer.loaded))
    }

    /// What has not changed stays the same, so that peers need not be connected to anew.
    fn put(&self, files: Files, loaded: Arc<Loaded>) -> bool {
        let before = Arc::clone(&self.0.current.load().loaded);
        let has_changed = loaded.digest != before.digest;
        let loaded = if has_changed { loaded } else { before };
        self.0.current.store(Arc::new(Current { files, loaded }));
        has_changed
    }

    /// Reads all files again if they have changed and are at rest: a certificate and its key are not replaced in
    /// the same moment, so what has changed since the last call is left for the next one. From then on new
    /// connections have what they hold, and open ones go on as they are. Says whether the certificates are others.
    ///
    /// # Errors
    /// When they cannot be used; then what was in use stays in use, and the next call tries again: a certificate
    /// may not be valid yet, or the descriptors be short. What is wrong is said once.
    pub fn reload_if_changed(&self) -> Result<bool, CertificateFileErrors> {
        let files = self.files();
        let stamp = files.stamp();
        {
            let mut watch = self.watch();
            if watch.seen != stamp {
                (watch.seen, watch.faults) = (stamp, None);
                return Ok(false);
            }
            if watch.read == stamp {
                return Ok(false);
            }
        }
        let read = Loaded::read(&files).and_then(|loaded| match loaded.not_yet_valid.is_empty() {
            true => Ok(loaded),
            // What is in use is better than what is not valid yet.
            false => Err(CertificateFileErrors(loaded.not_yet_valid)),
        });
        match read {
            Ok(loaded) => {
                *self.watch() = Watch { read: stamp.clone(), seen: stamp, faults: None };
                Ok(self.put(files, Arc::new(loaded)))
            }
            Err(faults) => {
                let said = self.watch().faults.replace(faults.clone());
                if said.as_ref() == Some(&faults) { Ok(false) } else { Err(faults) }
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
