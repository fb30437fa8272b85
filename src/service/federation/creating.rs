//! Check of the peers before an entry is created.

use std::sync::Arc;
use std::time::Instant;

use super::owner_hints::OwnerHint;
use super::peer_requests::{Answers, Federation};
use crate::crypto::DerivedKey;
use crate::model::EntryId;
use crate::service::Error;
use crate::service::context::Context;
use crate::service::entries::verify;
use crate::wire::Message;
use crate::wire::federation::{Find, FindReply, decode_found};

impl Context {
    /// Checks that no peer that replies has an entry of this name. Another node may create one at the same time: that
    /// is not prevented.
    ///
    /// # Errors
    /// Returns [`Error::AlreadyExists`] if a peer has one, and [`Error::Incomplete`] if one was last found on a peer
    /// that does not reply.
    pub(in crate::service) async fn is_free_elsewhere(
        &self,
        federation: &Federation,
        derived: &DerivedKey,
        name: &EntryId,
    ) -> Result<(), Error> {
        if name.check().is_err() {
            // No peer can have the entry, and peers would reject the request.
            return Ok(());
        }
        federation.is_peer_back().await;
        let EntryId { key, environment } = name.clone();
        let message = Arc::new(Message::Find(Find { key, environment }));
        let (order, peers) = (federation.locations.order(), federation.peers());
        let (mut replies, mut silent) = (Answers::default(), peers.unreachable().collect::<Vec<_>>());
        let deadline = Instant::now() + federation.timeout;
        for peer in peers.askable() {
            replies.expect(peer, federation.send(peer, &message, deadline));
        }
        let EntryId { key, environment } = name.clone();
        while let Some((peer, reply)) = replies.next().await {
            let found = match reply {
                Some(reply) => self.decoded(federation, peer, reply, decode_found).await,
                None => None,
            };
            match found {
                Some((_, FindReply::Row(row))) if row.entry_id() == *name => {
                    let hint = OwnerHint { peer, is_nearest: false };
                    federation.locations.set(&key, environment.as_deref(), hint, order);
                    let is_foreign = verify(derived, &row).is_err();
                    return Err(Error::AlreadyExists { key, environment, is_foreign });
                }
                // Without an environment, peers also return an entry that has one.
                Some(_) => {}
                None => silent.push(peer),
            }
        }
        match federation.locations.is_at(&key, environment.as_deref(), &silent) {
            true => Err(Error::Incomplete { key, environment, silent: peers.names(&silent) }),
            false => Ok(()),
        }
    }
}
