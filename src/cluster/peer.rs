//! State machine of one peer, as this node sees it: pure, it returns the next action.
//!
//! It holds no socket, no clock and no store. The driver performs one action after the other and reports each
//! outcome as an event, so that at most one request to a peer is in flight.

mod error;
mod lag_tracker;

pub use self::error::{IdentityError, IncompatibleReason, PeerError};
use self::lag_tracker::LagTracker;
use crate::limits::{
    BUCKETS_PER_REQUEST, CLOCKS_DIFFER_MS_MAX, ENTRIES_PER_REQUEST, JOIN_PROGRESS_TIMEOUT_MS,
    PEER_BACKOFF_MS_MAX, PEER_BACKOFF_MS_MIN, PEER_FIRST_CONTACT_INTERVAL_MS, PEER_FIRST_CONTACT_MS,
    PEER_HEALTH_INTERVAL_MS,
};
use crate::model::{EntryId, HlcTimestamp, ReplicaId, TombstoneHorizon};
use crate::wire::Protocol;

/// State of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Not reached yet.
    Unknown,
    /// Replies.
    Healthy,
    /// Does not reply.
    Down,
    /// This node itself, under one of its names.
    Myself,
    /// Replies, but there must be no replication with it.
    Incompatible(IncompatibleReason),
}

/// Description that a node gives of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeInfo {
    /// Configured name; several nodes may have the same.
    pub name: String,
    /// Random number of the process.
    pub instance: u64,
    /// Replica ID of the data directory, if the node keeps versions.
    pub node: Option<ReplicaId>,
    /// Whether the node is in federated mode.
    pub is_federated: bool,
    /// Fingerprint of the salt, if the node has one.
    pub salt: Option<u64>,
    /// Whether anything was ever encrypted under that salt.
    pub has_entries: bool,
    /// How far back the node has tombstones.
    pub horizon: TombstoneHorizon,
    /// Newest version of the protocol that both nodes support.
    pub protocol: Protocol,
}

/// Next step, to be performed by the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Do nothing until this time, unless there is an event.
    Wait {
        /// When to call [`Peer::next`] again.
        until_ms: u64,
    },
    /// Check the health of the peer.
    CheckHealth,
    /// Push the local changes after this position of the replication log.
    Push {
        /// Position up to which the peer has them.
        after: i64,
    },
    /// Start an anti-entropy round: compare the root digests, then those of the buckets.
    CompareDigests,
    /// Compare the versions of these buckets.
    CompareVersions(Vec<usize>),
    /// Fetch these entries from the peer.
    Fetch(Vec<EntryId>),
    /// Send these entries to the peer.
    Send(Vec<EntryId>),
}

/// Outcome of an action, or something that happened in the meantime.
#[derive(Clone, Debug)]
pub enum Event {
    /// The replication log has local changes up to this position.
    LogGrew(i64),
    /// A peer request on behalf of a client got no reply.
    RequestUnanswered,
    /// A client request needs the peer, which was down.
    Needed,
    /// Outcome of [`Action::CheckHealth`].
    Health(Result<NodeInfo, PeerError>),
    /// Outcome of [`Action::Push`].
    Pushed(Result<Pushed, PeerError>),
    /// Outcome of [`Action::CompareDigests`].
    Digests(Result<Comparison, PeerError>),
    /// Outcome of [`Action::CompareVersions`].
    Versions(Result<Difference, PeerError>),
    /// Outcome of [`Action::Fetch`]: how many of the requested entries are settled.
    Fetched(Result<usize, PeerError>),
    /// Outcome of [`Action::Send`]: how many of the entries are settled.
    Sent(Result<usize, PeerError>),
}

impl Event {
    /// Returns why an action failed, if it did.
    pub fn error(&self) -> Option<PeerError> {
        match self {
            Self::LogGrew(_) | Self::RequestUnanswered | Self::Needed => None,
            Self::Health(result) => result.as_ref().err().copied(),
            Self::Pushed(result) => result.as_ref().err().copied(),
            Self::Digests(result) => result.as_ref().err().copied(),
            Self::Versions(result) => result.as_ref().err().copied(),
            Self::Fetched(result) | Self::Sent(result) => result.as_ref().err().copied(),
        }
    }
}

/// Extent of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Position up to which the peer was sent all changes.
    pub sequence: i64,
    /// Whether the replication log has changes after it.
    pub more: bool,
    /// Whether the peer refused some of these changes, because they are ahead of its clock. Anti-entropy sends them
    /// again, so that later changes need not wait for them.
    pub has_refused: bool,
}

/// Result of comparing the digests of two nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Buckets that differ.
    pub buckets: Vec<usize>,
    /// When the comparison began, by the earlier clock of both nodes.
    pub begun: HlcTimestamp,
}

/// Entries of some buckets that two nodes have to exchange.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Number of buckets that are covered: the first ones of those requested.
    pub buckets_count: usize,
    /// Entries whose version on the peer is later.
    pub fetch: Vec<EntryId>,
    /// Entries whose version on this node is later.
    pub send: Vec<EntryId>,
}

/// Consequence of an event, to be carried out by the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The state changed: to be logged and published.
    StateChanged,
    /// The peer has the local changes up to this position of the replication log.
    Acknowledged(i64),
    /// The peer was sent the local changes up to a position, and refused some of them.
    Refused {
        /// Position after which these changes begin.
        after: i64,
        /// Position of the last one.
        last: i64,
    },
    /// The peer is in sync with this node.
    Synced {
        /// Since when, by the earlier clock of both nodes.
        begun: HlcTimestamp,
        /// Time before which the peer may have removed tombstones.
        forgotten: HlcTimestamp,
    },
}

/// State machine of one peer.
#[derive(Debug)]
pub struct Peer {
    state: State,
    replicates: bool,
    has_failed: bool,
    node: Option<ReplicaId>,
    started_ms: u64,
    health_due_ms: u64,
    sync_interval_ms: u64,
    sync_due_ms: u64,
    round: AntiEntropyRound,
    /// Whether a round was repeated immediately since the two were last in sync.
    has_repeated: bool,
    has_compared: bool,
    progress_ms: u64,
    /// Position in the replication log up to which the peer has the local changes, once it is known.
    cursor: Option<i64>,
    outbox_last: i64,
    lag: LagTracker,
    forgotten: HlcTimestamp,
    failures: u32,
    retry_at_ms: u64,
    last_contact_ms: Option<u64>,
    jitter: u64,
}

/// Progress of an anti-entropy round.
#[derive(Debug, Default)]
struct AntiEntropyRound {
    is_running: bool,
    buckets: Vec<usize>,
    fetch: Vec<EntryId>,
    send: Vec<EntryId>,
    found_difference: bool,
}

impl Peer {
    /// Creates the state machine of a peer that has not been contacted yet. `seed` is that of the jitter.
    pub fn new(now_ms: u64, sync_interval_ms: u64, seed: u64) -> Self {
        Self {
            state: State::Unknown,
            replicates: true,
            has_failed: false,
            node: None,
            started_ms: now_ms,
            health_due_ms: now_ms,
            sync_interval_ms,
            sync_due_ms: now_ms,
            round: AntiEntropyRound::default(),
            has_repeated: false,
            has_compared: false,
            progress_ms: now_ms,
            cursor: None,
            outbox_last: 0,
            lag: LagTracker::default(),
            forgotten: HlcTimestamp::default(),
            failures: 0,
            retry_at_ms: now_ms,
            last_contact_ms: None,
            jitter: seed | 1,
        }
    }

    /// Creates the state machine of a peer with which there is no replication.
    pub fn federated(now_ms: u64, sync_interval_ms: u64, seed: u64) -> Self {
        Self { replicates: false, ..Self::new(now_ms, sync_interval_ms, seed) }
    }

    /// Returns whether a request to the peer may succeed: not if it is known to be down, or incompatible. A peer
    /// that may be just starting, too, counts as reachable.
    pub fn may_reply(&self, now_ms: u64) -> bool {
        match self.state {
            State::Healthy => true,
            State::Unknown => !self.has_failed || self.is_starting(now_ms),
            State::Down | State::Myself | State::Incompatible(_) => false,
        }
    }

    fn is_starting(&self, now_ms: u64) -> bool {
        self.state == State::Unknown && now_ms < self.started_ms + PEER_FIRST_CONTACT_MS
    }

    /// Returns the state.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Returns the replica ID of the peer, once it has reported one.
    pub fn node(&self) -> Option<ReplicaId> {
        self.node
    }

    /// Returns when the peer last replied.
    pub fn last_contact_ms(&self) -> Option<u64> {
        self.last_contact_ms
    }

    /// Returns the number of local changes that the peer has not confirmed; `None` until it has been reached.
    pub fn outbox_length(&self) -> Option<i64> {
        self.cursor.map(|cursor| (self.outbox_last - cursor).max(0))
    }

    /// Returns the age of the oldest local change that the peer has not confirmed, in milliseconds; zero if there is
    /// none, `None` until the peer has been reached. The age of a change from before the start counts from when the
    /// peer was reached.
    pub fn lag_ms(&self, now_ms: u64) -> Option<u64> {
        let cursor = self.cursor?;
        Some(self.lag.oldest_ms(cursor).map_or(0, |since_ms| now_ms.saturating_sub(since_ms)))
    }

    /// Returns whether a new node waits for this peer before it reports an entry as not found: until the first
    /// anti-entropy round has ended; for an unreachable peer, until `contact_timeout_ms` after the start; for a
    /// healthy one, until it has made no progress for a minute.
    pub fn is_awaited(&self, now_ms: u64, contact_timeout_ms: u64) -> bool {
        match self.state {
            State::Myself => false,
            _ if self.has_compared => false,
            State::Healthy => now_ms < self.progress_ms + JOIN_PROGRESS_TIMEOUT_MS,
            State::Unknown
            | State::Down
            | State::Incompatible(
                IncompatibleReason::Identity(IdentityError::Unproven | IdentityError::OtherPort)
                | IncompatibleReason::Tls(_),
            ) => now_ms < self.started_ms + contact_timeout_ms,
            // There is no replication, so this node does not get its entries.
            State::Incompatible(_) => false,
        }
    }

    /// Sets the position of the peer in the replication log; the driver loads it once the replica ID is known.
    pub fn set_cursor(&mut self, now_ms: u64, cursor: i64) {
        self.cursor = Some(cursor);
        if cursor < self.outbox_last {
            self.lag.grew(now_ms, self.outbox_last);
        }
    }

    /// Returns whether the driver still has to call [`Self::set_cursor`].
    pub fn needs_cursor(&self) -> bool {
        self.replicates && self.cursor.is_none() && self.state == State::Healthy
    }

    /// Returns the action to perform now.
    pub fn next(&self, now_ms: u64) -> Action {
        let due = |at_ms: u64| at_ms <= now_ms;
        if due(self.health_due_ms) {
            return Action::CheckHealth;
        }
        if self.state != State::Healthy || !self.replicates {
            return Action::Wait { until_ms: self.health_due_ms };
        }
        if !due(self.retry_at_ms) {
            return Action::Wait { until_ms: self.retry_at_ms.min(self.health_due_ms) };
        }
        // Recent writes of clients go first: they determine the lag.
        if let Some(after) = self.cursor.filter(|cursor| *cursor < self.outbox_last) {
            return Action::Push { after };
        }
        if let Some(action) = self.round.next() {
            return action;
        }
        if due(self.sync_due_ms) {
            return Action::CompareDigests;
        }
        Action::Wait { until_ms: self.health_due_ms.min(self.sync_due_ms) }
    }

    /// Processes an event and returns its effects. `own` describes this node.
    pub fn step(&mut self, now_ms: u64, event: Event, own: &NodeInfo) -> Vec<Effect> {
        let mut effects = Vec::new();
        let before = self.state.clone();
        match event {
            Event::LogGrew(last) if last > self.outbox_last => {
                self.outbox_last = last;
                self.lag.grew(now_ms, last);
            }
            Event::LogGrew(_) => {}
            Event::RequestUnanswered if self.may_reply(now_ms) => self.health_due_ms = now_ms,
            Event::RequestUnanswered => {}
            Event::Needed if matches!(self.state, State::Unknown | State::Down) => {
                self.health_due_ms = now_ms;
            }
            Event::Needed => {}
            Event::Health(Ok(theirs)) => self.health_succeeded(now_ms, &theirs, own),
            Event::Health(Err(error)) => self.health_failed(now_ms, error),
            Event::Pushed(Ok(pushed)) => {
                self.succeeded(now_ms);
                let (after, last) = (self.cursor.unwrap_or_default(), pushed.sequence);
                self.confirmed(last);
                if !pushed.more {
                    self.outbox_last = self.outbox_last.max(last);
                }
                effects.push(match pushed.has_refused {
                    true => Effect::Refused { after, last },
                    false => Effect::Acknowledged(last),
                });
            }
            Event::Digests(Ok(comparison)) => {
                self.succeeded(now_ms);
                self.compared(now_ms, comparison, &mut effects);
            }
            Event::Versions(Ok(difference)) => {
                self.succeeded(now_ms);
                self.round.versions_compared(difference);
            }
            Event::Fetched(Ok(count)) => {
                self.succeeded(now_ms);
                self.progress_ms = now_ms;
                self.round.fetched(count);
            }
            Event::Sent(Ok(count)) => {
                self.succeeded(now_ms);
                self.round.sent(count);
            }
            Event::Pushed(Err(error))
            | Event::Digests(Err(error))
            | Event::Versions(Err(error))
            | Event::Fetched(Err(error))
            | Event::Sent(Err(error)) => self.failed(now_ms, error),
        }
        self.has_compared |= self.round.has_fetched_all();
        if self.round.is_complete() {
            self.round = AntiEntropyRound::default();
            // Repeated once, immediately, to confirm that nothing is left. Entries that still differ then, because
            // they were changed in the meantime or cannot be settled, wait for the next regular round.
            if !std::mem::replace(&mut self.has_repeated, true) {
                self.sync_due_ms = now_ms;
            }
        }
        if self.state != before {
            effects.push(Effect::StateChanged);
        }
        effects
    }

    fn health_succeeded(&mut self, now_ms: u64, theirs: &NodeInfo, own: &NodeInfo) {
        self.last_contact_ms = Some(now_ms);
        self.health_due_ms = now_ms + self.jittered(PEER_HEALTH_INTERVAL_MS);
        if theirs.instance == own.instance {
            self.state = State::Myself;
            return;
        }
        if theirs.node.is_some() && theirs.node == own.node {
            self.state = State::Incompatible(IncompatibleReason::CopiedData);
            return;
        }
        if theirs.is_federated != own.is_federated {
            self.state = State::Incompatible(IncompatibleReason::ModeDiffers);
            return;
        }
        let tolerance_ms = CLOCKS_DIFFER_MS_MAX + 2 * self.sync_interval_ms;
        if own.horizon.has_outrun(&theirs.horizon, tolerance_ms) {
            self.state = State::Incompatible(IncompatibleReason::Outdated);
            return;
        }
        if theirs.horizon.has_outrun(&own.horizon, tolerance_ms) {
            self.state = State::Incompatible(IncompatibleReason::OutdatedHere);
            return;
        }
        self.forgotten = theirs.horizon.forgotten;
        if self.node != theirs.node {
            // Another node has replaced it: nothing that is known of the previous one applies.
            self.node = theirs.node;
            self.cursor = None;
            self.lag = LagTracker::default();
            self.round = AntiEntropyRound::default();
            self.has_repeated = false;
            self.has_compared = false;
            self.sync_due_ms = now_ms;
        }
        let salts_differ = own.salt.is_some() && theirs.salt.is_some() && own.salt != theirs.salt;
        if salts_differ && own.has_entries && theirs.has_entries {
            self.state = State::Incompatible(IncompatibleReason::SaltDiffers);
            return;
        }
        if salts_differ || theirs.salt.is_none() || own.salt.is_none() {
            // One of the two will adopt the other's salt; until then there is nothing to exchange.
            self.health_due_ms = now_ms + PEER_FIRST_CONTACT_INTERVAL_MS;
        }
        if self.state != State::Healthy {
            self.state = State::Healthy;
            self.progress_ms = now_ms;
            self.failures = 0;
            self.retry_at_ms = now_ms;
            self.round = AntiEntropyRound::default();
            self.sync_due_ms = now_ms;
        }
    }

    fn health_failed(&mut self, now_ms: u64, error: PeerError) {
        self.has_failed = true;
        let is_starting = self.is_starting(now_ms);
        let down_ms = PEER_HEALTH_INTERVAL_MS.min(self.sync_interval_ms);
        let interval_ms = if is_starting { PEER_FIRST_CONTACT_INTERVAL_MS } else { self.jittered(down_ms) };
        self.health_due_ms = now_ms + interval_ms;
        self.state = match error {
            PeerError::Identity(error) => State::Incompatible(IncompatibleReason::Identity(error)),
            PeerError::Distrust(error) => State::Incompatible(IncompatibleReason::Tls(error)),
            _ if self.state == State::Unknown => State::Unknown,
            _ => State::Down,
        };
        self.round = AntiEntropyRound::default();
    }

    fn succeeded(&mut self, now_ms: u64) {
        self.failures = 0;
        self.last_contact_ms = Some(now_ms);
    }

    fn failed(&mut self, now_ms: u64, error: PeerError) {
        self.failures = self.failures.saturating_add(1);
        let backoff_ms_max = PEER_BACKOFF_MS_MAX.min(self.sync_interval_ms);
        let backoff_ms = (PEER_BACKOFF_MS_MIN << self.failures.min(10).saturating_sub(1)).min(backoff_ms_max);
        self.retry_at_ms = now_ms + self.jittered(backoff_ms);
        // A round with a peer that sends malformed replies cannot succeed, so a new node does not wait for it.
        self.has_compared |= error == PeerError::Malformed;
        // The round starts again from scratch; changes that it has applied stay applied.
        self.round = AntiEntropyRound::default();
        match error {
            // A health check determines whether only this connection failed.
            PeerError::Unreachable | PeerError::OtherNode | PeerError::Malformed | PeerError::Distrust(_) => {
                self.health_due_ms = now_ms;
            }
            PeerError::Identity(error) => {
                self.state = State::Incompatible(IncompatibleReason::Identity(error));
                self.health_due_ms = now_ms + self.jittered(PEER_HEALTH_INTERVAL_MS);
            }
            PeerError::SaltDiffers => self.health_due_ms = now_ms + PEER_FIRST_CONTACT_INTERVAL_MS,
            PeerError::Refused => {}
        }
    }

    fn compared(&mut self, now_ms: u64, comparison: Comparison, effects: &mut Vec<Effect>) {
        self.sync_due_ms = now_ms + self.jittered(self.sync_interval_ms);
        let Comparison { buckets, begun } = comparison;
        if !buckets.is_empty() {
            self.round = AntiEntropyRound { is_running: true, buckets, ..AntiEntropyRound::default() };
            return;
        }
        self.has_repeated = false;
        self.has_compared = true;
        // Equal digests do not confirm positions of the replication log: deletions are not part of digests.
        effects.push(Effect::Synced { begun, forgotten: self.forgotten });
    }

    fn confirmed(&mut self, sequence: i64) {
        self.cursor = Some(sequence);
        self.lag.confirmed(sequence);
    }

    /// Varies an interval by up to a tenth, so that nodes do not act in step.
    fn jittered(&mut self, milliseconds: u64) -> u64 {
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        milliseconds * (90 + self.jitter % 21) / 100
    }
}

impl AntiEntropyRound {
    fn next(&self) -> Option<Action> {
        let first = |ids: &[EntryId]| ids[..ids.len().min(ENTRIES_PER_REQUEST)].to_vec();
        if !self.is_running {
            return None;
        }
        if !self.fetch.is_empty() {
            return Some(Action::Fetch(first(&self.fetch)));
        }
        if !self.send.is_empty() {
            return Some(Action::Send(first(&self.send)));
        }
        let count = self.buckets.len().min(BUCKETS_PER_REQUEST);
        (count > 0).then(|| Action::CompareVersions(self.buckets[..count].to_vec()))
    }

    fn versions_compared(&mut self, difference: Difference) {
        self.buckets.drain(..difference.buckets_count.min(self.buckets.len()));
        self.found_difference |= !(difference.fetch.is_empty() && difference.send.is_empty());
        self.fetch.extend(difference.fetch);
        self.send.extend(difference.send);
    }

    fn fetched(&mut self, count: usize) {
        self.fetch.drain(..count.min(self.fetch.len()));
    }

    fn sent(&mut self, count: usize) {
        self.send.drain(..count.min(self.send.len()));
    }

    /// Returns whether this node has fetched all entries that differed.
    fn has_fetched_all(&self) -> bool {
        self.is_running && self.buckets.is_empty() && self.fetch.is_empty()
    }

    /// Returns whether there were differences and all of them have been exchanged.
    fn is_complete(&self) -> bool {
        self.is_running
            && self.found_difference
            && self.buckets.is_empty()
            && self.fetch.is_empty()
            && self.send.is_empty()
    }
}

#[cfg(test)]
mod tests;
