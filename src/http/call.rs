//! A request on its way to a handler.

use std::borrow::Cow;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::key_path::KeyPath;
use super::pages::File;
use super::query::parameter;
use super::settings::Settings;
use crate::model::{Requester, UserKey};
use crate::service::node_auth::{Barrier, Challenge};
use crate::service::{Credentials, Principal, Service};
use crate::wire::Protocol;

/// An accepted request with its body.
pub(super) struct Call<'a> {
    pub(super) settings: &'a Settings,
    pub(super) service: &'a Arc<Service>,
    pub(super) request: Request,
    pub(super) body: Zeroizing<Vec<u8>>,
}

/// A read that may be answered at once, from caches.
pub(super) struct CachedCall<'a> {
    pub(super) service: &'a Service,
    pub(super) user_key: &'a [u8],
    pub(super) key: &'a KeyPath<'a>,
    pub(super) query: Option<&'a [u8]>,
}

/// The variable part of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Parameter<'a> {
    None,
    Key(KeyPath<'a>),
    File(&'static File),
}

/// What a handler needs of a request head.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) parameter: Parameter<'static>,
    /// The user key; present exactly if the operation requires one.
    pub(super) user_key: Option<UserKey>,
    pub(super) requester: Requester,
    pub(super) query: Option<Vec<u8>>,
    pub(super) content_type: Option<Vec<u8>>,
    /// The authenticated sender.
    pub(super) principal: Principal,
    /// The state of the node authentication, for a health check.
    pub(super) handshake: Handshake,
    /// The version of the messages, for a request of a node.
    pub(super) protocol: Protocol,
}

/// The state of the node authentication that a health check carries.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Handshake {
    /// The sender does not request authentication.
    #[default]
    NotWanted,
    /// The sender requests a proof that covers this challenge.
    Challenged(Challenge),
    /// Authentication is not possible on this connection.
    Barred(Barrier),
}

impl Call<'_> {
    /// The credentials of an operation that requires a user key.
    pub(super) fn credentials(&self) -> Credentials<'_> {
        let user_key = self.request.user_key.as_ref().expect("the operation requires a user key");
        Credentials { user_key, requester: self.request.requester }
    }

    pub(super) fn query(&self) -> Option<&[u8]> {
        self.request.query.as_deref()
    }

    pub(super) fn content_type(&self) -> Option<&[u8]> {
        self.request.content_type.as_deref()
    }

    /// The key of an endpoint whose path has one.
    pub(super) fn key(&self) -> &KeyPath<'static> {
        match &self.request.parameter {
            Parameter::Key(key) => key,
            Parameter::None | Parameter::File(_) => unreachable!("the path has a key"),
        }
    }

    /// The environment that the query names; an empty one counts as none.
    pub(super) fn environment(&self) -> Option<Cow<'_, str>> {
        environment(self.query())
    }
}

impl Parameter<'_> {
    /// Returns the parameter independent of the path.
    pub(super) fn into_owned(self) -> Parameter<'static> {
        match self {
            Self::None => Parameter::None,
            Self::Key(key) => Parameter::Key(key.into_owned()),
            Self::File(file) => Parameter::File(file),
        }
    }
}

/// Returns the environment that a query names; an empty one counts as none.
pub(super) fn environment(query: Option<&[u8]>) -> Option<Cow<'_, str>> {
    parameter(query, "environment").filter(|environment| !environment.is_empty())
}
