//! One peer as this node sees it: a pure state machine that says what to do next.
//!
//! It holds no socket, no clock and no store. The driver performs one action at a time and tells the
//! outcome, so that there is at most one request to a peer under way.

mod error;
mod lag_tracker;

pub use self::error::{IdentityError, IncompatibleReason, PeerError};
use self::lag_tracker::LagTracker;
use crate::model::{EntryId, HlcTimestamp, ReplicaId, TombstoneHorizon};

/// A healthy peer is asked for its health this often; one that is down as often as peers are compared, if
/// that is more often, so that nodes are equal again two intervals after a network heals.
pub const HEALTH_INTERVAL_MS: u64 = 10_000;
/// A peer that was never reached is asked more often at first: nodes start together.
const FIRST_CONTACT_INTERVAL_MS: u64 = 200;
/// How long a peer counts as one that is just starting, too.
const FIRST_CONTACT_MS: u64 = 30_000;
/// After a failure, doubled with each further one.
const BACKOFF_MS_MIN: u64 = 200;
const BACKOFF_MS_MAX: u64 = 10_000;
/// Clocks that differ by more may make a node look as if its data were too old.
const CLOCKS_DIFFER_MS_MAX: u64 = 60 * 60 * 1000;
/// How long a new node waits for a peer that answers and from which nothing comes.
const PROGRESS_PATIENCE_MS: u64 = 60_000;
/// Buckets whose versions are compared in one request.
const BUCKETS_PER_REQUEST: usize = 64;
/// Entries that are fetched or sent in one request; their bytes bound it further.
const ENTRIES_PER_REQUEST: usize = 256;

/// What is known of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Not reached yet.
    Unknown,
    /// Answers.
    Healthy,
    /// Does not answer.
    Down,
    /// It is this node itself, under one of its names.
    Myself,
    /// Answers, but must not be replicated with.
    Incompatible(IncompatibleReason),
}

/// What a node says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its configured name; several nodes may have the same.
    pub name: String,
    /// Random for each process.
    pub instance: u64,
    /// The number of its data directory, if it keeps versions.
    pub node: Option<ReplicaId>,
    /// Whether it is in federated mode.
    pub is_federated: bool,
    /// Which salt it has, if it has one.
    pub salt: Option<u64>,
    /// Whether anything was ever sealed with that salt.
    pub has_entries: bool,
    /// How far back it knows of deletions.
    pub horizon: TombstoneHorizon,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing before this time, unless something happens.
    Wait {
        /// When to ask again.
        until_ms: u64,
    },
    /// Ask for its health.
    CheckHealth,
    /// Send own changes after this line of the outbox.
    Push {
        /// The line up to which it has them.
        after: i64,
    },
    /// Compare everything, by one digest first.
    CompareDigests,
    /// Compare the versions of these buckets.
    CompareVersions(Vec<usize>),
    /// Get these entries from it.
    Fetch(Vec<EntryId>),
    /// Send it these entries.
    Send(Vec<EntryId>),
}

/// How an action ended, or what happened meanwhile.
#[derive(Clone, Debug)]
pub enum Event {
    /// Own changes are in the outbox up to this line.
    OutboxGrew(i64),
    /// A question of a request had no answer.
    Unanswered,
    /// The answer to [`Action::CheckHealth`].
    Health(Result<NodeInfo, PeerError>),
    /// The answer to [`Action::Push`].
    Pushed(Result<Pushed, PeerError>),
    /// The answer to [`Action::CompareDigests`].
    Digests(Result<Comparison, PeerError>),
    /// The answer to [`Action::CompareVersions`].
    Versions(Result<Difference, PeerError>),
    /// The answer to [`Action::Fetch`]: how many of the entries asked for are dealt with.
    Fetched(Result<usize, PeerError>),
    /// The answer to [`Action::Send`]: how many of the entries are dealt with.
    Sent(Result<usize, PeerError>),
}

impl Event {
    /// Why an action came to nothing, if it did.
    pub fn failure(&self) -> Option<PeerError> {
        match self {
            Self::OutboxGrew(_) | Self::Unanswered => None,
            Self::Health(result) => result.as_ref().err().copied(),
            Self::Pushed(result) => result.as_ref().err().copied(),
            Self::Digests(result) => result.as_ref().err().copied(),
            Self::Versions(result) => result.as_ref().err().copied(),
            Self::Fetched(result) | Self::Sent(result) => result.as_ref().err().copied(),
        }
    }
}

/// How far a push came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The peer has everything up to this line.
    pub sequence: i64,
    /// There are lines after it.
    pub more: bool,
    /// It has refused some of these changes, because they are ahead of its clock. They come again when the two
    /// compare, so the others need not wait for them.
    pub has_refused: bool,
}

/// How two nodes differ as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// The buckets that differ.
    pub buckets: Vec<usize>,
    /// When the comparison began, by this node's clock.
    pub begun: HlcTimestamp,
}

/// What two nodes lack of each other in some buckets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// How many of the buckets that were asked for this is about: the first ones.
    pub buckets_count: usize,
    /// The peer's are later.
    pub fetch: Vec<EntryId>,
    /// This node's are later.
    pub send: Vec<EntryId>,
}

/// What the driver must tell others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// For the log and for those who ask.
    StateChanged,
    /// It has own changes up to this line.
    Acknowledged(i64),
    /// It was sent own changes up to this line, and has refused some of them.
    Refused {
        /// The line after which these changes begin.
        after: i64,
        /// The last line.
        last: i64,
    },
    /// It holds the same as this node.
    Synced {
        /// Since when, by this node's clock.
        begun: HlcTimestamp,
        /// It may have forgotten deletions from before this.
        forgotten: HlcTimestamp,
    },
}

/// The machine.
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
    sync: AntiEntropyRound,
    is_second_look: bool,
    has_compared: bool,
    progress_ms: u64,
    /// The line of the outbox up to which it has the own changes, once that is known.
    cursor: Option<i64>,
    outbox_last: i64,
    waiting: LagTracker,
    forgotten: HlcTimestamp,
    failures: u32,
    retry_at_ms: u64,
    last_contact_ms: Option<u64>,
    jitter: u64,
}

/// How far a comparison of everything has come.
#[derive(Debug, Default)]
struct AntiEntropyRound {
    is_under_way: bool,
    buckets: Vec<usize>,
    fetch: Vec<EntryId>,
    send: Vec<EntryId>,
    found_difference: bool,
}

impl Peer {
    /// A peer that was not asked yet. `seed` spreads the times of several peers.
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
            sync: AntiEntropyRound::default(),
            is_second_look: false,
            has_compared: false,
            progress_ms: now_ms,
            cursor: None,
            outbox_last: 0,
            waiting: LagTracker::default(),
            forgotten: HlcTimestamp::default(),
            failures: 0,
            retry_at_ms: now_ms,
            last_contact_ms: None,
            jitter: seed | 1,
        }
    }

    /// The same, for a peer with which nothing is exchanged.
    pub fn federated(now_ms: u64, sync_interval_ms: u64, seed: u64) -> Self {
        Self { replicates: false, ..Self::new(now_ms, sync_interval_ms, seed) }
    }

    /// Whether a question may be worth while: not if it is known to be down, or refused. One that is just
    /// starting, too, may be there any moment.
    pub fn may_answer(&self, now_ms: u64) -> bool {
        match self.state {
            State::Healthy => true,
            State::Unknown => !self.has_failed || self.is_starting(now_ms),
            State::Down | State::Myself | State::Incompatible(_) => false,
        }
    }

    fn is_starting(&self, now_ms: u64) -> bool {
        self.state == State::Unknown && now_ms < self.started_ms + FIRST_CONTACT_MS
    }

    /// What is known of it.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The number of its data directory, once it has told.
    pub fn node(&self) -> Option<ReplicaId> {
        self.node
    }

    /// When it last answered.
    pub fn last_contact_ms(&self) -> Option<u64> {
        self.last_contact_ms
    }

    /// Own changes that it has not confirmed; `None` until it was reached.
    pub fn outbox_length(&self) -> Option<i64> {
        self.cursor.map(|cursor| (self.outbox_last - cursor).max(0))
    }

    /// How long the oldest own change that it has not confirmed has waited, zero if there is none; `None`
    /// until it was reached. Changes from before the start count from when it was reached.
    pub fn lag_ms(&self, now_ms: u64) -> Option<u64> {
        let cursor = self.cursor?;
        Some(self.waiting.oldest_ms(cursor).map_or(0, |since_ms| now_ms.saturating_sub(since_ms)))
    }

    /// Whether a new node waits for this peer before it says what is not there: until the first comparison has ended,
    /// for a peer that does not answer until so long after the start, and for one that gives nothing for a minute.
    pub fn is_awaited(&self, now_ms: u64, contact_patience_ms: u64) -> bool {
        match self.state {
            State::Myself => false,
            _ if self.has_compared => false,
            State::Healthy => now_ms < self.progress_ms + PROGRESS_PATIENCE_MS,
            State::Unknown
            | State::Down
            | State::Incompatible(
                IncompatibleReason::Identity(IdentityError::Unproven | IdentityError::OtherPort)
                | IncompatibleReason::Distrust(_),
            ) => now_ms < self.started_ms + contact_patience_ms,
            // Its entries do not come here.
            State::Incompatible(_) => false,
        }
    }

    /// Where its changes go on; the driver looks it up when it knows which node this is.
    pub fn set_cursor(&mut self, now_ms: u64, cursor: i64) {
        self.cursor = Some(cursor);
        if cursor < self.outbox_last {
            self.waiting.grew(now_ms, self.outbox_last);
        }
    }

    /// Whether the driver still has to call [`Self::set_cursor`].
    pub fn needs_cursor(&self) -> bool {
        self.replicates && self.cursor.is_none() && self.state == State::Healthy
    }

    /// What to do now.
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
        // What a client has just written goes first: it is what lag is measured by.
        if let Some(after) = self.cursor.filter(|cursor| *cursor < self.outbox_last) {
            return Action::Push { after };
        }
        if let Some(action) = self.sync.next() {
            return action;
        }
        if due(self.sync_due_ms) {
            return Action::CompareDigests;
        }
        Action::Wait { until_ms: self.health_due_ms.min(self.sync_due_ms) }
    }

    /// Takes an event, and says what others must know.
    pub fn step(&mut self, now_ms: u64, event: Event, own: &NodeInfo) -> Vec<Effect> {
        let mut notices = Vec::new();
        let before = self.state.clone();
        match event {
            Event::OutboxGrew(last) if last > self.outbox_last => {
                self.outbox_last = last;
                self.waiting.grew(now_ms, last);
            }
            Event::OutboxGrew(_) => {}
            Event::Unanswered if self.may_answer(now_ms) => self.health_due_ms = now_ms,
            Event::Unanswered => {}
            Event::Health(Ok(introduction)) => self.introduced(now_ms, &introduction, own),
            Event::Health(Err(failure)) => self.health_failed(now_ms, failure),
            Event::Pushed(Ok(pushed)) => {
                self.succeeded(now_ms);
                let (after, last) = (self.cursor.unwrap_or_default(), pushed.sequence);
                self.confirmed(last);
                if !pushed.more {
                    self.outbox_last = self.outbox_last.max(last);
                }
                notices.push(match pushed.has_refused {
                    true => Effect::Refused { after, last },
                    false => Effect::Acknowledged(last),
                });
            }
            Event::Digests(Ok(comparison)) => {
                self.succeeded(now_ms);
                self.compared(now_ms, comparison, &mut notices);
            }
            Event::Versions(Ok(difference)) => {
                self.succeeded(now_ms);
                self.sync.versions_compared(difference);
            }
            Event::Fetched(Ok(count)) => {
                self.succeeded(now_ms);
                self.progress_ms = now_ms;
                self.sync.fetched(count);
            }
            Event::Sent(Ok(count)) => {
                self.succeeded(now_ms);
                self.sync.sent(count);
            }
            Event::Pushed(Err(failure))
            | Event::Digests(Err(failure))
            | Event::Versions(Err(failure))
            | Event::Fetched(Err(failure))
            | Event::Sent(Err(failure)) => self.failed(now_ms, failure),
        }
        self.has_compared |= self.sync.has_fetched_all();
        if self.sync.is_through() {
            self.sync = AntiEntropyRound::default();
            // Once more, to see that nothing is left. What differs then, because it was changed meanwhile
            // or cannot be settled, waits for the next round.
            if !std::mem::replace(&mut self.is_second_look, true) {
                self.sync_due_ms = now_ms;
            }
        }
        if self.state != before {
            notices.push(Effect::StateChanged);
        }
        notices
    }

    fn introduced(&mut self, now_ms: u64, introduction: &NodeInfo, own: &NodeInfo) {
        self.last_contact_ms = Some(now_ms);
        self.health_due_ms = now_ms + self.jittered(HEALTH_INTERVAL_MS);
        if introduction.instance == own.instance {
            self.state = State::Myself;
            return;
        }
        if introduction.node.is_some() && introduction.node == own.node {
            self.state = State::Incompatible(IncompatibleReason::CopiedData);
            return;
        }
        if introduction.is_federated != own.is_federated {
            self.state = State::Incompatible(IncompatibleReason::ModeDiffers);
            return;
        }
        let tolerance_ms = CLOCKS_DIFFER_MS_MAX + 2 * self.sync_interval_ms;
        if own.horizon.is_beyond(&introduction.horizon, tolerance_ms) {
            self.state = State::Incompatible(IncompatibleReason::Outdated);
            return;
        }
        if introduction.horizon.is_beyond(&own.horizon, tolerance_ms) {
            self.state = State::Incompatible(IncompatibleReason::OutdatedHere);
            return;
        }
        self.forgotten = introduction.horizon.forgotten;
        if self.node != introduction.node {
            // Another node has taken its place: nothing that was found out about the first one holds.
            self.node = introduction.node;
            self.cursor = None;
            self.waiting = LagTracker::default();
            self.sync = AntiEntropyRound::default();
            self.is_second_look = false;
            self.has_compared = false;
            self.sync_due_ms = now_ms;
        }
        let salts_differ = own.salt.is_some() && introduction.salt.is_some() && own.salt != introduction.salt;
        if salts_differ && own.has_entries && introduction.has_entries {
            self.state = State::Incompatible(IncompatibleReason::SaltDiffers);
            return;
        }
        if salts_differ || introduction.salt.is_none() || own.salt.is_none() {
            // One of the two will take the other's salt; until then there is nothing to exchange.
            self.health_due_ms = now_ms + FIRST_CONTACT_INTERVAL_MS;
        }
        if self.state != State::Healthy {
            self.state = State::Healthy;
            self.progress_ms = now_ms;
            self.failures = 0;
            self.retry_at_ms = now_ms;
            self.sync = AntiEntropyRound::default();
            self.sync_due_ms = now_ms;
        }
    }

    fn health_failed(&mut self, now_ms: u64, failure: PeerError) {
        self.has_failed = true;
        let is_starting = self.is_starting(now_ms);
        let down_ms = HEALTH_INTERVAL_MS.min(self.sync_interval_ms);
        let interval_ms = if is_starting { FIRST_CONTACT_INTERVAL_MS } else { self.jittered(down_ms) };
        self.health_due_ms = now_ms + interval_ms;
        self.state = match failure {
            PeerError::Identity(error) => State::Incompatible(IncompatibleReason::Identity(error)),
            PeerError::Distrust(distrust) => State::Incompatible(IncompatibleReason::Distrust(distrust)),
            _ if self.state == State::Unknown => State::Unknown,
            _ => State::Down,
        };
        self.sync = AntiEntropyRound::default();
    }

    fn succeeded(&mut self, now_ms: u64) {
        self.failures = 0;
        self.last_contact_ms = Some(now_ms);
    }

    fn failed(&mut self, now_ms: u64, failure: PeerError) {
        self.failures = self.failures.saturating_add(1);
        let backoff_ms_max = BACKOFF_MS_MAX.min(self.sync_interval_ms);
        let backoff_ms = (BACKOFF_MS_MIN << self.failures.min(10).saturating_sub(1)).min(backoff_ms_max);
        self.retry_at_ms = now_ms + self.jittered(backoff_ms);
        // Nothing comes of comparing with something that does not answer as a node does.
        self.has_compared |= failure == PeerError::Malformed;
        // A comparison starts anew; what it had applied stays applied.
        self.sync = AntiEntropyRound::default();
        match failure {
            // A health check finds out whether it was this connection alone.
            PeerError::Unreachable | PeerError::OtherNode | PeerError::Malformed | PeerError::Distrust(_) => {
                self.health_due_ms = now_ms;
            }
            PeerError::Identity(error) => {
                self.state = State::Incompatible(IncompatibleReason::Identity(error));
                self.health_due_ms = now_ms + self.jittered(HEALTH_INTERVAL_MS);
            }
            PeerError::SaltDiffers => self.health_due_ms = now_ms + FIRST_CONTACT_INTERVAL_MS,
            PeerError::Refused => {}
        }
    }

    fn compared(&mut self, now_ms: u64, comparison: Comparison, notices: &mut Vec<Effect>) {
        self.sync_due_ms = now_ms + self.jittered(self.sync_interval_ms);
        let Comparison { buckets, begun } = comparison;
        if !buckets.is_empty() {
            self.sync = AntiEntropyRound { is_under_way: true, buckets, ..AntiEntropyRound::default() };
            return;
        }
        self.is_second_look = false;
        self.has_compared = true;
        // Lines of the outbox are not confirmed by this: digests leave deletions out.
        notices.push(Effect::Synced { begun, forgotten: self.forgotten });
    }

    fn confirmed(&mut self, line: i64) {
        self.cursor = Some(line);
        self.waiting.confirmed(line);
    }

    /// Between nine tenths and eleven tenths of a time, so that nodes do not act in step.
    fn jittered(&mut self, milliseconds: u64) -> u64 {
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        milliseconds * (90 + self.jitter % 21) / 100
    }
}

impl AntiEntropyRound {
    fn next(&self) -> Option<Action> {
        let some = |ids: &[EntryId]| ids[..ids.len().min(ENTRIES_PER_REQUEST)].to_vec();
        if !self.is_under_way {
            return None;
        }
        if !self.fetch.is_empty() {
            return Some(Action::Fetch(some(&self.fetch)));
        }
        if !self.send.is_empty() {
            return Some(Action::Send(some(&self.send)));
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

    /// Everything of the peer that differed is here.
    fn has_fetched_all(&self) -> bool {
        self.is_under_way && self.buckets.is_empty() && self.fetch.is_empty()
    }

    /// Everything that differed has been exchanged, and something had.
    fn is_through(&self) -> bool {
        self.is_under_way
            && self.found_difference
            && self.buckets.is_empty()
            && self.fetch.is_empty()
            && self.send.is_empty()
    }
}

#[cfg(test)]
mod tests;
