//! Authentication: the credentials of a request, checked under the brute-force guard, become a principal.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::context::Context;
use super::guard::CredentialKind;
use super::node_auth::{NodeAuth, SharedKey};
use crate::model::ApiKeys;

/// Authenticated sender of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Principal {
    /// Sender without credentials: none are required, or the endpoint is public.
    #[default]
    Anonymous,
    /// Client with the API key of this index.
    ApiKey(usize),
    /// Node of this cluster.
    Node,
}

impl Principal {
    /// Returns the index of the API key, if the sender has one.
    pub fn api_key(self) -> Option<usize> {
        match self {
            Self::ApiKey(index) => Some(index),
            Self::Anonymous | Self::Node => None,
        }
    }
}

/// Failed authentication.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// The request has no API key.
    #[error("no API key")]
    ApiKeyMissing,
    /// The API key is not valid.
    #[error("wrong API key")]
    ApiKeyWrong {
        /// Delay of the response.
        delay: Duration,
    },
    /// The API key is valid, but only for clients.
    #[error("an API key of clients")]
    ApiKeyOfClients,
    /// The request has no proof of the cluster secret.
    #[error("no cluster secret")]
    ClusterSecretMissing,
    /// The cluster secret of the sender is another one.
    #[error("wrong cluster secret")]
    ClusterSecretWrong {
        /// Delay of the response.
        delay: Duration,
    },
    /// The client has failed too often.
    #[error("too many failures")]
    TooManyFailures {
        /// Time until the next attempt is permitted.
        wait: Duration,
    },
}

/// Credentials of a request that can make its sender a node.
#[derive(Clone, Copy, Debug, Default)]
pub struct SentCredentials<'a> {
    /// Node token.
    pub token: Option<&'a [u8]>,
    /// API key.
    pub api_key: Option<&'a [u8]>,
    /// Address of the sender.
    pub address: Option<IpAddr>,
}

/// Use cases of authentication.
#[derive(Debug)]
pub struct Authentication {
    pub(super) context: Arc<Context>,
    pub(super) api_keys: ApiKeys,
    pub(super) nodes: Arc<NodeAuth>,
}

impl Authentication {
    /// Returns the valid API keys.
    pub fn api_keys(&self) -> &ApiKeys {
        &self.api_keys
    }

    /// Returns the authentication of nodes.
    pub fn nodes(&self) -> &NodeAuth {
        &self.nodes
    }

    /// Authenticates a client by its API key; anonymous if none is required.
    ///
    /// # Errors
    /// Fails if the key is missing or wrong, or if the client has failed too often.
    pub fn client(&self, sent: SentCredentials<'_>) -> Result<Principal, AuthError> {
        if !self.api_keys.are_required() {
            return Ok(Principal::Anonymous);
        }
        let key = sent.api_key.filter(|key| !key.is_empty()).ok_or(AuthError::ApiKeyMissing)?;
        let wait = |wait| AuthError::TooManyFailures { wait };
        match self.api_keys.find(key) {
            Some(index) => {
                self.accepted(CredentialKind::ApiKey, index, sent.address).map_err(wait)?;
                Ok(Principal::ApiKey(index))
            }
            None => {
                let delay = self.failed(CredentialKind::ApiKey, sent.address).map_err(wait)?;
                Err(AuthError::ApiKeyWrong { delay })
            }
        }
    }

    /// Authenticates a node by its token or, without a cluster secret, by the first API key; anonymous if the request
    /// has no token and `is_required` is false.
    ///
    /// # Errors
    /// Fails if the credentials are wrong, or missing although they are required.
    pub fn node(&self, sent: SentCredentials<'_>, is_required: bool) -> Result<Principal, AuthError> {
        if let Some(token) = sent.token {
            // After too many failures the response stays what it is for a wrong token, not a 429: the peer shows its
            // operator what is wrong, and learns nothing about further guesses.
            let delay = match self.nodes.accepts(token) {
                true => match self.accepted(CredentialKind::Node, 0, sent.address) {
                    Ok(()) => return Ok(Principal::Node),
                    Err(_wait) => Duration::ZERO,
                },
                false => self.failed(CredentialKind::Node, sent.address).unwrap_or_default(),
            };
            return Err(match self.nodes.shared() {
                SharedKey::Secret => AuthError::ClusterSecretWrong { delay },
                SharedKey::ApiKey | SharedKey::Nothing => AuthError::ApiKeyWrong { delay },
            });
        }
        if !is_required {
            return Ok(Principal::Anonymous);
        }
        if self.nodes.shared() == SharedKey::Secret {
            return Err(AuthError::ClusterSecretMissing);
        }
        // Without a cluster secret, the API key authenticates nodes, as in the Python server. Only the first key does:
        // any further ones are client keys.
        match self.client(sent)? {
            Principal::ApiKey(_) if !self.api_keys.is_first(sent.api_key.unwrap_or_default()) => {
                Err(AuthError::ApiKeyOfClients)
            }
            _ => Ok(Principal::Node),
        }
    }

    fn failed(&self, kind: CredentialKind, address: Option<IpAddr>) -> Result<Duration, Duration> {
        self.context.guard.credential_failed(kind, address, self.context.now_ms())
    }

    fn accepted(&self, kind: CredentialKind, number: usize, address: Option<IpAddr>) -> Result<(), Duration> {
        self.context.guard.credential_accepted(kind, number, address, || self.context.now_ms())
    }
}
