//! Use cases of the salt, which all nodes of a cluster share.

use std::sync::Arc;

use super::Error;
use super::context::Context;
use crate::storage::{ImportResult, ReplaceResult};

/// Salt of this node.
#[derive(Debug)]
pub struct NodeSalt {
    pub(super) context: Arc<Context>,
}

impl NodeSalt {
    /// Returns the salt, if this node has one yet.
    pub fn current(&self) -> Option<Arc<[u8]>> {
        self.context.salt()
    }

    /// Returns the fingerprint of the salt, and whether the salt has encrypted anything.
    pub fn in_use(&self) -> (Option<u64>, bool) {
        self.context.salt_in_use()
    }

    /// Waits until the nodes of the cluster have agreed on a salt. Returns immediately on a standalone node, and on a
    /// node that already has a salt.
    ///
    /// # Errors
    /// Returns [`Error::NoSalt`] after the timeout.
    pub async fn is_agreed(&self) -> Result<(), Error> {
        self.context.salt_is_agreed().await
    }

    /// Generates a salt, unless there is one. In a cluster, only the node that was chosen calls this.
    ///
    /// # Errors
    /// Fails if the salt file cannot be written.
    pub async fn generate(&self) -> Result<(), Error> {
        self.context.generate_salt().await
    }

    /// Adopts the salt of another node, if this one has none.
    ///
    /// # Errors
    /// Returns [`Error::Unavailable`] if the salt file cannot be written, and [`Error::Busy`] if the pool is busy.
    pub async fn adopt(&self, salt: Vec<u8>) -> Result<ImportResult, Error> {
        match self.context.storage.change_salt(move |own| own.adopt(&salt)).await? {
            Ok(result) => Ok(result),
            Err(error) => {
                tracing::error!(%error, "cannot adopt the salt of another node");
                Err(Error::Unavailable)
            }
        }
    }

    /// Replaces a salt that has not encrypted anything by that of another node.
    ///
    /// # Errors
    /// Fails if the salt file cannot be written.
    pub async fn replace_unused(&self, other: Vec<u8>) -> Result<ReplaceResult, Error> {
        let keys = self.context.keys.clone();
        self.context
            .change_salt(move |salt| {
                let outcome = salt.replace_unused(&other)?;
                if outcome == ReplaceResult::Replaced {
                    // Done in the job, so that keys derived with the old salt are discarded even if the caller is
                    // cancelled.
                    keys.clear();
                }
                Ok(outcome)
            })
            .await
    }
}
