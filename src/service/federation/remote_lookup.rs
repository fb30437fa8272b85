//! Lookup of an entry on the peers.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use super::owner_hints::OwnerHint;
use super::peer_requests::{Answers, Federation, Peers};
use crate::limits::HEDGE_PART;
use crate::model::{EntryId, SealedEntry};
use crate::service::context::Context;
use crate::service::{Error, PeerId};
use crate::timer::{self, Sleep};
use crate::wire::Message;
use crate::wire::federation::{Find, FindReply, decode_found};

/// Entry of a peer.
pub(in crate::service) struct Remote {
    /// Peer that has the entry.
    pub(super) peer: PeerId,
    /// Row of the entry.
    pub(in crate::service) row: Arc<SealedEntry>,
}

/// Choice among several owners of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::service) enum OwnerPolicy {
    /// Owner that replies first; for reads.
    FirstReply,
    /// Owner that is first in the configuration; for writes.
    FirstConfigured,
}

/// State of the request to one peer.
#[derive(Debug)]
enum PeerReply {
    NotRequested,
    InFlight,
    NoReply,
    NotFound,
    Found(FindReply),
}

/// Lookup in progress.
struct Search<'a> {
    context: &'a Context,
    federation: &'a Federation,
    find: Find,
    message: Arc<Message<'static>>,
    deadline: Instant,
    salt: Option<u64>,
    policy: OwnerPolicy,
    peers: Peers,
    /// Number of the order of the peers, read before the peers were listed.
    order: u64,
    replies: Vec<(PeerId, PeerReply)>,
    pending: Answers,
}

impl Context {
    /// Finds an entry on the peers. If no peer that replies has it, peers that were down are contacted again.
    ///
    /// # Errors
    /// Fails if no peer that replies has the entry, if the key is ambiguous, or if there is no salt.
    pub(in crate::service) async fn find_remote(
        &self,
        federation: &Federation,
        key: &str,
        environment: Option<&str>,
        policy: OwnerPolicy,
    ) -> Result<Remote, Error> {
        // Without a salt, no value could be decrypted, and replies of nodes with other salts could not be recognised.
        self.salt_is_agreed().await?;
        let id = EntryId { key: key.to_owned(), environment: environment.map(str::to_owned) };
        if id.check().is_err() {
            // No node can have the entry, and peers would reject the request.
            let EntryId { key, environment } = id;
            return Err(Error::NotFound { key, environment, silent: Vec::new() });
        }
        let find = Find { key: key.to_owned(), environment: environment.map(str::to_owned) };
        match self.search(federation, find.clone(), policy).await {
            Err(Error::NotFound { silent, .. } | Error::Incomplete { silent, .. })
                if !silent.is_empty() && federation.is_peer_back().await =>
            {
                self.search(federation, find, policy).await
            }
            found => found,
        }
    }

    async fn search(
        &self,
        federation: &Federation,
        find: Find,
        policy: OwnerPolicy,
    ) -> Result<Remote, Error> {
        let order = federation.locations.order();
        let peers = federation.peers();
        let mut search = Search {
            context: self,
            federation,
            message: Arc::new(Message::Find(find.clone())),
            find,
            deadline: Instant::now() + federation.timeout,
            salt: self.salt_in_use().0,
            policy,
            replies: peers.askable().map(|peer| (peer, PeerReply::NotRequested)).collect(),
            peers,
            order,
            pending: Answers::default(),
        };
        search.run().await
    }
}

impl Search<'_> {
    async fn run(&mut self) -> Result<Remote, Error> {
        let (key, environment) = (self.find.key.clone(), self.find.environment.clone());
        let hints = &self.federation.locations;
        let order = self.order;
        let hint = hints
            .get(&key, environment.as_deref())
            .filter(|hint| self.policy == OwnerPolicy::FirstReply || hint.is_nearest)
            .filter(|hint| self.replies.iter().any(|(peer, _)| *peer == hint.peer));
        let mut hedge = match hint {
            Some(OwnerHint { peer, .. }) => {
                self.request(|candidate| candidate == peer);
                Some(timer::sleep(self.federation.timeout / HEDGE_PART))
            }
            None => {
                self.request(|_| true);
                None
            }
        };
        loop {
            if let Some((peer, is_nearest)) = self.decision(hint) {
                let reply = self.replies.iter_mut().find(|(candidate, _)| *candidate == peer);
                let found = reply.map(|(_, reply)| std::mem::replace(reply, PeerReply::NotFound));
                return match found {
                    Some(PeerReply::Found(FindReply::Row(row))) => {
                        let is_nearest =
                            is_nearest || hint.is_some_and(|hint| hint.is_nearest && hint.peer == peer);
                        hints.set(&key, environment.as_deref(), OwnerHint { peer, is_nearest }, order);
                        Ok(Remote { peer, row })
                    }
                    Some(PeerReply::Found(FindReply::Ambiguous(environments))) => {
                        Err(Error::Ambiguous { key, environments })
                    }
                    _ => unreachable!("the decision is for a peer that has the entry"),
                };
            }
            match self.next(&mut hedge).await {
                Some((peer, reply)) => {
                    let reply = self.classify(peer, reply).await;
                    if let Some(slot) = self.replies.iter_mut().find(|(candidate, _)| *candidate == peer) {
                        slot.1 = reply;
                    }
                    // The hint was wrong.
                    if hint.is_some_and(|hint| hint.peer == peer) && self.decision(hint).is_none() {
                        hedge = None;
                        self.request(|_| true);
                    }
                }
                None if hedge.take().is_some() => self.request(|_| true),
                None => break,
            }
        }
        let did_not_reply = |peer: &PeerId| {
            self.replies
                .iter()
                .any(|(candidate, reply)| candidate == peer && matches!(reply, PeerReply::NoReply))
        };
        let silent: Vec<PeerId> =
            self.peers.unreachable().chain(self.peers.askable().filter(did_not_reply)).collect();
        let is_known = hints.is_at(&key, environment.as_deref(), &silent);
        if !is_known {
            hints.forget(&key, environment.as_deref());
        }
        let silent = self.peers.names(&silent);
        match is_known || (self.federation.is_strict && !silent.is_empty()) {
            true => Err(Error::Incomplete { key, environment, silent }),
            false => Err(Error::NotFound { key, environment, silent }),
        }
    }

    /// Sends the request to the selected peers that have not been queried yet.
    fn request(&mut self, is_selected: impl Fn(PeerId) -> bool) {
        for (peer, reply) in &mut self.replies {
            if matches!(reply, PeerReply::NotRequested) && is_selected(*peer) {
                *reply = PeerReply::InFlight;
                let receiver = self.federation.send(*peer, &self.message, self.deadline);
                self.pending.expect(*peer, receiver);
            }
        }
    }

    /// Waits for the next reply; `None` when the hedge delay has passed, or no reply is pending.
    async fn next(&mut self, hedge: &mut Option<Sleep>) -> Option<(PeerId, Option<Vec<u8>>)> {
        let mut reply = pin!(self.pending.next());
        poll_fn(|context| {
            if let Poll::Ready(reply) = reply.as_mut().poll(context) {
                return Poll::Ready(reply);
            }
            match hedge {
                Some(hedge) => hedge.as_mut().poll(context).map(|()| None),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// Decodes and classifies a reply. A malformed reply, or one encrypted with another salt, counts as none.
    async fn classify(&self, peer: PeerId, reply: Option<Vec<u8>>) -> PeerReply {
        let Some(reply) = reply else { return PeerReply::NoReply };
        let decoded = self.context.decoded(self.federation, peer, reply, decode_found);
        let Some((salt, found)) = decoded.await else {
            return PeerReply::NoReply;
        };
        match found {
            FindReply::Nothing => PeerReply::NotFound,
            FindReply::Row(row) if !self.is_requested(&row) => {
                self.federation.report_malformed(peer);
                PeerReply::NoReply
            }
            FindReply::Row(_) if salt != self.salt => PeerReply::NoReply,
            found => PeerReply::Found(found),
        }
    }

    /// Returns whether a row has the requested name.
    fn is_requested(&self, row: &SealedEntry) -> bool {
        let environment_fits = self.find.environment.is_none() || row.environment == self.find.environment;
        row.key == self.find.key && environment_fits
    }

    /// Returns the peer whose reply is used, if that is already decided, and whether it is known to be the nearest.
    fn decision(&self, hint: Option<OwnerHint>) -> Option<(PeerId, bool)> {
        let mut all_nearer_settled = true;
        for (peer, reply) in &self.replies {
            match reply {
                PeerReply::Found(_) => {
                    let is_hinted = hint.is_some_and(|hint| hint.peer == *peer);
                    let counts = all_nearer_settled || is_hinted || self.policy == OwnerPolicy::FirstReply;
                    return counts.then_some((*peer, all_nearer_settled));
                }
                PeerReply::NotRequested | PeerReply::InFlight => all_nearer_settled = false,
                PeerReply::NoReply | PeerReply::NotFound => {}
            }
        }
        None
    }
}
