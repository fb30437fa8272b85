//! Finding an entry that this node does not have.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use futures_channel::oneshot;

use super::messages::{FIND, Find, FindReply, decode_found, encode_find};
use super::owner_hints::Location;
use super::peer_requests::{Answers, Federation, Peers};
use crate::model::EntryId;
use crate::service::{Error, PeerId, Service};
use crate::store::SealedEntry;

/// A peer that probably has the entry is given this part of the time before the others are asked, too.
const HEDGE_PART: u32 = 4;

/// An entry of a peer.
pub(in crate::service) struct Remote {
    pub(super) peer: PeerId,
    /// The entry.
    pub(in crate::service) row: Arc<SealedEntry>,
}

/// Which of several owners is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::service) enum OwnerPolicy {
    /// The one that answers first: for reading.
    FirstReply,
    /// The one that comes first in the configuration: for changing.
    FirstConfigured,
}

/// What is known of each peer that can be asked.
#[derive(Debug)]
enum PeerReply {
    Unasked,
    Asked,
    NoReply,
    NotFound,
    Found(FindReply),
}

struct Search<'a> {
    service: &'a Service,
    federation: &'a Federation,
    find: Find,
    question: Arc<[u8]>,
    deadline: Instant,
    salt: Option<u64>,
    choice: OwnerPolicy,
    peers: Peers,
    /// Of the peers, before they were listed.
    order: u64,
    standings: Vec<(PeerId, PeerReply)>,
    answers: Answers,
}

impl Service {
    /// Asks the peers for an entry.
    ///
    /// # Errors
    /// When none has it, or none that answers; several are meant; or there is no salt.
    pub(in crate::service) async fn find_remote(
        &self,
        federation: &Federation,
        key: &str,
        environment: Option<&str>,
        choice: OwnerPolicy,
    ) -> Result<Remote, Error> {
        // Without a salt nothing could be opened, and answers could not be told from those of strangers.
        self.salt_is_agreed().await?;
        let id = EntryId { key: key.to_owned(), environment: environment.map(str::to_owned) };
        if id.check().is_err() {
            // No node can have it, and peers would not understand the question.
            let EntryId { key, environment } = id;
            return Err(Error::NotFound { key, environment, silent: Vec::new() });
        }
        let find = Find { key: key.to_owned(), environment: environment.map(str::to_owned) };
        let order = federation.locations.order();
        let peers = federation.peers();
        let mut search = Search {
            service: self,
            federation,
            question: encode_find(&find).into(),
            find,
            deadline: Instant::now() + federation.timeout,
            salt: self.salt_in_use().0,
            choice,
            standings: peers.askable().map(|peer| (peer, PeerReply::Unasked)).collect(),
            peers,
            order,
            answers: Answers::default(),
        };
        search.run().await
    }
}

impl Search<'_> {
    async fn run(&mut self) -> Result<Remote, Error> {
        let (key, environment) = (self.find.key.clone(), self.find.environment.clone());
        let locations = &self.federation.locations;
        let order = self.order;
        let guess = locations
            .get(&key, environment.as_deref())
            .filter(|guess| self.choice == OwnerPolicy::FirstReply || guess.is_nearest)
            .filter(|guess| self.standings.iter().any(|(peer, _)| *peer == guess.peer));
        let mut alarm = match guess {
            Some(Location { peer, .. }) => {
                self.ask(|candidate| candidate == peer);
                Some(self.federation.alarm(self.federation.timeout / HEDGE_PART))
            }
            None => {
                self.ask(|_| true);
                None
            }
        };
        loop {
            if let Some((peer, is_nearest)) = self.decided(guess) {
                let standing = self.standings.iter_mut().find(|(candidate, _)| *candidate == peer);
                let found = standing.map(|(_, standing)| std::mem::replace(standing, PeerReply::NotFound));
                return match found {
                    Some(PeerReply::Found(FindReply::Row(row))) => {
                        let is_nearest =
                            is_nearest || guess.is_some_and(|guess| guess.is_nearest && guess.peer == peer);
                        locations.set(&key, environment.as_deref(), Location { peer, is_nearest }, order);
                        Ok(Remote { peer, row })
                    }
                    Some(PeerReply::Found(FindReply::Ambiguous(environments))) => {
                        Err(Error::Ambiguous { key, environments })
                    }
                    _ => unreachable!("decided for a peer that has something"),
                };
            }
            match self.next(&mut alarm).await {
                Some((peer, answer)) => {
                    let standing = self.standing(peer, answer).await;
                    if let Some(place) = self.standings.iter_mut().find(|(candidate, _)| *candidate == peer) {
                        place.1 = standing;
                    }
                    // The guess was wrong.
                    if guess.is_some_and(|guess| guess.peer == peer) && self.decided(guess).is_none() {
                        alarm = None;
                        self.ask(|_| true);
                    }
                }
                None if alarm.take().is_some() => self.ask(|_| true),
                None => break,
            }
        }
        locations.forget(&key, environment.as_deref());
        let did_not_answer = |peer: &PeerId| {
            self.standings
                .iter()
                .any(|(asked, standing)| asked == peer && matches!(standing, PeerReply::NoReply))
        };
        let silent: Vec<PeerId> =
            self.peers.silent().chain(self.peers.askable().filter(did_not_answer)).collect();
        let silent = self.peers.names(&silent);
        match self.federation.is_strict && !silent.is_empty() {
            true => Err(Error::Incomplete { key, environment, silent }),
            false => Err(Error::NotFound { key, environment, silent }),
        }
    }

    /// Asks those that were not asked yet.
    fn ask(&mut self, which: impl Fn(PeerId) -> bool) {
        for (peer, standing) in &mut self.standings {
            if matches!(standing, PeerReply::Unasked) && which(*peer) {
                *standing = PeerReply::Asked;
                let receiver = self.federation.ask(*peer, FIND, &self.question, self.deadline);
                self.answers.expect(*peer, receiver);
            }
        }
    }

    /// The next answer; `None` when the alarm rings, or nobody is waited for.
    async fn next(&mut self, alarm: &mut Option<oneshot::Receiver<()>>) -> Option<(PeerId, Option<Vec<u8>>)> {
        let mut answer = pin!(self.answers.next());
        poll_fn(|context| {
            if let Poll::Ready(answer) = answer.as_mut().poll(context) {
                return Poll::Ready(answer);
            }
            match alarm {
                Some(alarm) => Pin::new(alarm).poll(context).map(|_| None),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// What an answer says. One that cannot be right is none.
    async fn standing(&self, peer: PeerId, answer: Option<Vec<u8>>) -> PeerReply {
        let Some(answer) = answer else { return PeerReply::NoReply };
        let decoded = self.service.decoded(self.federation, peer, answer, decode_found);
        let Some((salt, found)) = decoded.await else {
            return PeerReply::NoReply;
        };
        match found {
            FindReply::Nothing => PeerReply::NotFound,
            FindReply::Row(row) if !self.is_meant(&row) => {
                self.federation.note_malformed(peer);
                PeerReply::NoReply
            }
            FindReply::Row(_) if salt != self.salt => PeerReply::NoReply,
            found => PeerReply::Found(found),
        }
    }

    fn is_meant(&self, row: &SealedEntry) -> bool {
        let environment_fits = self.find.environment.is_none() || row.environment == self.find.environment;
        row.key == self.find.key && environment_fits
    }

    /// The peer whose answer counts, if that is clear by now, and whether it is known to be the nearest.
    fn decided(&self, guess: Option<Location>) -> Option<(PeerId, bool)> {
        let mut all_nearer_answered = true;
        for (peer, standing) in &self.standings {
            match standing {
                PeerReply::Found(_) => {
                    let is_guess = guess.is_some_and(|guess| guess.peer == *peer);
                    let counts = all_nearer_answered || is_guess || self.choice == OwnerPolicy::FirstReply;
                    return counts.then_some((*peer, all_nearer_answered));
                }
                PeerReply::Unasked | PeerReply::Asked => all_nearer_answered = false,
                PeerReply::NoReply | PeerReply::NotFound => {}
            }
        }
        None
    }
}
