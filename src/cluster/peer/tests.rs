//! Tests of the state machine, event by event.

use proptest::prelude::*;

use super::*;
use crate::tls::PeerTlsError;

const SYNC_INTERVAL_MS: u64 = 60_000;

fn replica_id(bits: u64) -> ReplicaId {
    ReplicaId::from_random(bits << 1)
}

fn node_info(instance: u64, node: u64, salt: Option<u64>, has_entries: bool) -> NodeInfo {
    NodeInfo {
        name: "n".to_owned(),
        instance,
        node: Some(replica_id(node)),
        salt,
        has_entries,
        ..NodeInfo::default()
    }
}

/// Horizon with these timestamps, in hours.
fn horizon(synced: u64, forgotten: u64) -> TombstoneHorizon {
    let timestamp = |hours| HlcTimestamp::from_milliseconds(hours * CLOCKS_DIFFER_MS_MAX);
    TombstoneHorizon { synced: timestamp(synced), forgotten: timestamp(forgotten) }
}

fn own() -> NodeInfo {
    NodeInfo { horizon: horizon(70, 60), ..node_info(1, 1, Some(7), true) }
}

fn other() -> NodeInfo {
    node_info(2, 2, Some(7), true)
}

fn id(key: &str) -> EntryId {
    EntryId { key: key.to_owned(), environment: None }
}

fn differing(buckets: Vec<usize>) -> Comparison {
    Comparison { buckets, ..Comparison::default() }
}

/// State machine with its clock; stands in for the driver.
struct Run {
    peer: Peer,
    now_ms: u64,
}

impl Run {
    fn new() -> Self {
        Self { peer: Peer::new(0, SYNC_INTERVAL_MS, 3), now_ms: 0 }
    }

    /// Healthy peer that is in sync, at position 0 of the replication log.
    fn in_sync() -> Self {
        let mut run = Self::new();
        run.send(Event::Health(Ok(other())));
        run.peer.set_cursor(run.now_ms, 0);
        run.send(Event::Digests(Ok(Comparison::default())));
        run
    }

    fn send(&mut self, event: Event) -> Vec<Effect> {
        self.peer.step(self.now_ms, event, &own())
    }

    fn next(&self) -> Action {
        self.peer.next(self.now_ms)
    }

    /// Advances the clock until there is something to do; returns by how many milliseconds.
    fn wait(&mut self) -> u64 {
        let before_ms = self.now_ms;
        while let Action::Wait { until_ms } = self.next() {
            assert!(until_ms > self.now_ms, "a wait until now is a busy loop");
            self.now_ms = until_ms;
        }
        self.now_ms - before_ms
    }
}

fn is_about(actual_ms: u64, expected_ms: u64) -> bool {
    (expected_ms * 9 / 10..=expected_ms * 11 / 10).contains(&actual_ms)
}

#[test]
fn a_peer_is_contacted_fails_and_recovers() {
    let mut run = Run::new();
    // Nodes start together: a peer that does not reply yet is checked again soon.
    for _ in 0..3 {
        assert_eq!(run.next(), Action::CheckHealth);
        assert!(run.send(Event::Health(Err(PeerError::Unreachable))).is_empty());
        assert_eq!(run.peer.state(), &State::Unknown);
        assert_eq!(run.wait(), PEER_FIRST_CONTACT_INTERVAL_MS);
    }
    assert_eq!(run.send(Event::Health(Ok(other()))), [Effect::StateChanged]);
    assert_eq!((run.peer.state(), run.peer.node()), (&State::Healthy, Some(replica_id(2))));
    assert_eq!(run.peer.last_contact_ms(), Some(run.now_ms));
    assert!(run.peer.needs_cursor());
    run.peer.set_cursor(run.now_ms, 4);
    assert!(!run.peer.needs_cursor());
    // Writes of clients are pushed before the first anti-entropy round.
    run.send(Event::LogGrew(9));
    assert_eq!((run.next(), run.peer.outbox_length()), (Action::Push { after: 4 }, Some(5)));
    assert_eq!(run.send(Event::Pushed(Ok(pushed(7, true)))), [Effect::Acknowledged(7)]);
    // Refused changes do not hold up later ones.
    let refused = Pushed { has_refused: true, ..pushed(8, true) };
    assert_eq!(run.send(Event::Pushed(Ok(refused))), [Effect::Refused { after: 7, last: 8 }]);
    assert_eq!(run.next(), Action::Push { after: 8 });
    run.send(Event::Pushed(Ok(pushed(9, false))));
    assert_eq!(run.peer.outbox_length(), Some(0));
    assert_eq!(run.next(), Action::CompareDigests);
    let begun = HlcTimestamp::from_milliseconds(5);
    assert_eq!(
        run.send(Event::Digests(Ok(Comparison { begun, ..Comparison::default() }))),
        [Effect::Synced { begun, forgotten: HlcTimestamp::default() }]
    );
    // The peer keeps refusing: the same request is repeated with exponential backoff.
    run.send(Event::LogGrew(10));
    for expected_ms in [200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000] {
        while run.next() == Action::CheckHealth {
            run.send(Event::Health(Ok(other())));
            run.wait();
        }
        assert_eq!(run.next(), Action::Push { after: 9 });
        run.send(Event::Pushed(Err(PeerError::Refused)));
        let mut waited_ms = run.wait();
        while run.next() == Action::CheckHealth {
            run.send(Event::Health(Ok(other())));
            waited_ms += run.wait();
        }
        assert!(is_about(waited_ms, expected_ms), "{waited_ms} for {expected_ms}");
    }
    // The peer is unreachable: an immediate health check notices.
    run.send(Event::Pushed(Err(PeerError::Unreachable)));
    assert_eq!(run.next(), Action::CheckHealth);
    assert_eq!(run.send(Event::Health(Err(PeerError::Unreachable))), [Effect::StateChanged]);
    assert_eq!(run.peer.state(), &State::Down);
    let waited_ms = run.wait();
    assert!(is_about(waited_ms, PEER_HEALTH_INTERVAL_MS), "{waited_ms}");
    // The peer is back: the changes that it lacks are pushed immediately, then an anti-entropy round begins.
    assert_eq!(run.send(Event::Health(Ok(other()))), [Effect::StateChanged]);
    assert_eq!(run.next(), Action::Push { after: 9 });
    run.send(Event::Pushed(Ok(pushed(10, false))));
    assert_eq!(run.next(), Action::CompareDigests);
}

#[test]
fn incompatible_peers_get_only_health_checks() {
    for (theirs, expected) in [
        (Ok(node_info(1, 1, Some(7), true)), State::Myself),
        (Ok(node_info(2, 1, Some(7), true)), State::Incompatible(IncompatibleReason::CopiedData)),
        (Ok(node_info(2, 2, Some(8), true)), State::Incompatible(IncompatibleReason::SaltDiffers)),
        (
            Ok(NodeInfo { horizon: horizon(1, 0), ..other() }),
            State::Incompatible(IncompatibleReason::Outdated),
        ),
        (
            Ok(NodeInfo { horizon: horizon(80, 75), ..other() }),
            State::Incompatible(IncompatibleReason::OutdatedHere),
        ),
        (
            Ok(NodeInfo { is_federated: true, ..other() }),
            State::Incompatible(IncompatibleReason::ModeDiffers),
        ),
        (
            Err(PeerError::Identity(IdentityError::ApiKey)),
            State::Incompatible(IncompatibleReason::Identity(IdentityError::ApiKey)),
        ),
        (
            Err(PeerError::Distrust(PeerTlsError::Expired)),
            State::Incompatible(IncompatibleReason::Tls(PeerTlsError::Expired)),
        ),
    ] {
        let mut run = Run::new();
        run.send(Event::LogGrew(3));
        assert_eq!(run.send(Event::Health(theirs.clone())), [Effect::StateChanged]);
        assert_eq!(run.peer.state(), &expected);
        assert!(!run.peer.needs_cursor());
        // The peer may refuse a key only because it is just starting: it is checked again soon.
        run.wait();
        assert_eq!(run.next(), Action::CheckHealth, "{expected:?}");
        assert!(run.send(Event::Health(theirs.clone())).is_empty());
        // After that it gets only health checks, which have no effect as long as nothing changes.
        for _ in 0..5 {
            let waited_ms = run.wait();
            assert!(is_about(waited_ms, PEER_HEALTH_INTERVAL_MS), "{expected:?} {waited_ms}");
            assert_eq!(run.next(), Action::CheckHealth, "{expected:?}");
            assert!(run.send(Event::Health(theirs.clone())).is_empty());
        }
        run.wait();
        run.send(Event::Health(Ok(other())));
        assert_eq!(run.peer.state(), &State::Healthy, "{expected:?} is not permanent");
    }
}

#[test]
fn a_peer_without_the_agreed_salt_is_checked_again_soon() {
    for theirs in [
        node_info(2, 2, None, false),
        // The salt of one of the two has not encrypted anything yet, and will be replaced.
        node_info(2, 2, Some(8), false),
    ] {
        let mut run = Run::in_sync();
        run.send(Event::Health(Ok(theirs)));
        assert_eq!(run.peer.state(), &State::Healthy);
        assert_eq!(run.wait(), PEER_FIRST_CONTACT_INTERVAL_MS);
        assert_eq!(run.next(), Action::CheckHealth);
    }
}

#[test]
fn a_peer_with_an_equal_digest_still_gets_every_change() {
    let mut run = Run::in_sync();
    run.send(Event::LogGrew(5));
    let begun = HlcTimestamp::from_milliseconds(5);
    // The change is a deletion that was logged after the state machine had decided to compare digests.
    let equal = Comparison { begun, ..Comparison::default() };
    assert_eq!(
        run.send(Event::Digests(Ok(equal))),
        [Effect::Synced { begun, forgotten: HlcTimestamp::default() }]
    );
    assert_eq!(run.peer.outbox_length(), Some(5));
    assert_eq!(run.next(), Action::Push { after: 0 });
}

fn pushed(sequence: i64, more: bool) -> Pushed {
    Pushed { sequence, more, has_refused: false }
}

#[test]
fn lag_is_the_age_of_the_oldest_unconfirmed_change() {
    let mut run = Run::new();
    run.send(Event::LogGrew(1));
    assert_eq!(run.peer.lag_ms(5), None, "not reached yet");
    run.send(Event::Health(Ok(other())));
    run.peer.set_cursor(0, 0);
    assert_eq!(run.peer.lag_ms(70), Some(70));
    run.send(Event::Pushed(Ok(pushed(1, false))));
    assert_eq!(run.peer.lag_ms(80), Some(0));
    for (now_ms, sequence) in [(1000, 2), (1050, 3), (2000, 4), (3000, 5)] {
        run.now_ms = now_ms;
        run.send(Event::LogGrew(sequence));
    }
    assert_eq!(run.peer.lag_ms(4000), Some(3000));
    run.send(Event::Pushed(Ok(pushed(2, true))));
    assert_eq!(run.peer.lag_ms(4000), Some(3000), "change 3 is in the sample of change 2");
    run.send(Event::Pushed(Ok(pushed(3, true))));
    assert_eq!(run.peer.lag_ms(4000), Some(2000));
    run.send(Event::Pushed(Ok(pushed(5, false))));
    assert_eq!(run.peer.lag_ms(4000), Some(0));
    // A long outage: memory is bounded, and the oldest time is kept.
    for step in 0..5000 {
        run.now_ms = 10_000 + step * 1000;
        run.send(Event::LogGrew(6 + step.cast_signed()));
    }
    assert_eq!(run.peer.lag_ms(run.now_ms), Some(4999 * 1000));
    run.send(Event::Pushed(Ok(pushed(6 + 4999, false))));
    assert_eq!(run.peer.lag_ms(run.now_ms), Some(0));
}

#[test]
fn a_federated_peer_gets_only_health_checks() {
    let own = NodeInfo { is_federated: true, node: None, ..own() };
    let other = NodeInfo { instance: 2, ..own.clone() };
    let mut peer = Peer::federated(0, SYNC_INTERVAL_MS, 3);
    assert!(peer.may_reply(PEER_FIRST_CONTACT_MS), "nothing has failed yet");
    assert_eq!(peer.next(0), Action::CheckHealth);
    peer.step(0, Event::Health(Err(PeerError::Unreachable)), &own);
    assert!(peer.may_reply(PEER_FIRST_CONTACT_MS - 1), "it may be just starting");
    assert!(!peer.may_reply(PEER_FIRST_CONTACT_MS));
    peer.step(0, Event::Health(Ok(other)), &own);
    peer.step(0, Event::LogGrew(5), &own);
    assert!(peer.may_reply(0) && !peer.needs_cursor());
    assert!(matches!(peer.next(0), Action::Wait { until_ms } if is_about(until_ms, PEER_HEALTH_INTERVAL_MS)));
    // An unanswered request causes an immediate health check, so that later requests need not wait.
    peer.step(5, Event::RequestUnanswered, &own);
    assert_eq!(peer.next(5), Action::CheckHealth);
    peer.step(6, Event::Health(Err(PeerError::Unreachable)), &own);
    assert!(!peer.may_reply(6));
    peer.step(7, Event::RequestUnanswered, &own);
    assert!(matches!(peer.next(7), Action::Wait { .. }), "it is known to be down");
}

#[test]
fn a_refused_api_key_stops_everything_but_health_checks() {
    let mut run = Run::in_sync();
    run.send(Event::LogGrew(1));
    assert_eq!(
        run.send(Event::Pushed(Err(PeerError::Identity(IdentityError::ApiKey)))),
        [Effect::StateChanged]
    );
    assert_eq!(run.peer.state(), &State::Incompatible(IncompatibleReason::Identity(IdentityError::ApiKey)));
    run.wait();
    assert_eq!(run.next(), Action::CheckHealth);
}

#[test]
fn another_node_on_the_connection_causes_an_immediate_health_check() {
    let mut run = Run::in_sync();
    run.send(Event::LogGrew(1));
    let before = run.peer.outbox_length();
    assert!(run.send(Event::Pushed(Err(PeerError::OtherNode))).is_empty());
    assert_eq!(run.next(), Action::CheckHealth);
    assert_eq!(run.peer.outbox_length(), before, "nothing is confirmed");
    run.send(Event::Health(Ok(node_info(3, 2, Some(7), true))));
    // Several nodes may reply at one address in turn, so there is a pause nevertheless.
    run.wait();
    assert!(matches!(run.next(), Action::Push { .. }), "the same node in another process is resumed");
}

#[test]
fn another_node_at_the_same_address_starts_from_scratch() {
    let mut run = Run::in_sync();
    run.send(Event::LogGrew(8));
    run.send(Event::Pushed(Ok(pushed(8, false))));
    run.now_ms += SYNC_INTERVAL_MS * 2;
    run.send(Event::Digests(Ok(differing(vec![1]))));
    // The same node after a restart: its entries are still there.
    run.send(Event::Health(Ok(node_info(3, 2, Some(7), true))));
    assert!(!run.peer.needs_cursor());
    assert_eq!(run.next(), Action::CompareVersions(vec![1]));
    run.send(Event::Health(Ok(node_info(4, 5, Some(7), true))));
    assert_eq!(run.peer.node(), Some(replica_id(5)));
    assert!(run.peer.needs_cursor());
    // The buckets that differed were those of the previous node.
    assert_eq!(run.next(), Action::CompareDigests);
}

#[test]
fn a_round_that_found_differences_is_repeated_once_immediately() {
    let mut run = Run::in_sync();
    run.send(Event::Health(Ok(other())));
    run.now_ms = SYNC_INTERVAL_MS * 2;
    run.send(Event::Health(Ok(other())));
    let mut immediate_count = 0;
    for round in 0..3 {
        assert_eq!(run.next(), Action::CompareDigests, "round {round}");
        run.send(Event::Digests(Ok(differing((0..70).collect()))));
        assert_eq!(run.next(), Action::CompareVersions((0..64).collect()));
        let difference = Difference { buckets_count: 64, fetch: vec![id("a"), id("b")], send: vec![id("c")] };
        run.send(Event::Versions(Ok(difference)));
        assert_eq!(run.next(), Action::Fetch(vec![id("a"), id("b")]));
        run.send(Event::Fetched(Ok(1)));
        assert_eq!(run.next(), Action::Fetch(vec![id("b")]));
        run.send(Event::Fetched(Ok(1)));
        assert_eq!(run.next(), Action::Send(vec![id("c")]));
        run.send(Event::Sent(Ok(1)));
        assert_eq!(run.next(), Action::CompareVersions((64..70).collect()));
        run.send(Event::Versions(Ok(Difference { buckets_count: 6, ..Difference::default() })));
        // Stands for a difference that cannot be settled: it is found every time.
        immediate_count += u32::from(run.next() == Action::CompareDigests);
        let begun_ms = run.now_ms;
        while run.wait() > 0 && run.next() == Action::CheckHealth {
            run.send(Event::Health(Ok(other())));
        }
        if round > 0 {
            assert!(is_about(run.now_ms - begun_ms, SYNC_INTERVAL_MS));
        }
    }
    assert_eq!(immediate_count, 1);
}

#[test]
fn a_failed_round_starts_again_from_scratch() {
    let mut run = Run::in_sync();
    run.send(Event::Digests(Ok(differing(vec![3]))));
    run.send(Event::Versions(Ok(Difference { buckets_count: 1, fetch: vec![id("a")], send: Vec::new() })));
    run.send(Event::Fetched(Err(PeerError::Refused)));
    assert!(matches!(run.next(), Action::Wait { until_ms } if until_ms > run.now_ms));
    let begun_ms = run.now_ms;
    loop {
        run.wait();
        match run.next() {
            Action::CheckHealth => run.send(Event::Health(Ok(other()))),
            action => break assert_eq!(action, Action::CompareDigests),
        };
    }
    assert!(run.now_ms - begun_ms <= SYNC_INTERVAL_MS * 11 / 10);
}

/// Outcome of the next action.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    Failure(PeerError),
    Success,
}

fn errors() -> impl Strategy<Value = PeerError> {
    prop_oneof![
        4 => Just(PeerError::Unreachable),
        2 => Just(PeerError::Refused),
        1 => Just(PeerError::OtherNode),
        1 => Just(PeerError::SaltDiffers),
        1 => Just(PeerError::Identity(IdentityError::ApiKey)),
        1 => Just(PeerError::Distrust(PeerTlsError::OfThisNode)),
    ]
}

fn outcomes() -> impl Strategy<Value = Outcome> {
    prop_oneof![errors().prop_map(Outcome::Failure), Just(Outcome::Success)]
}

fn event(action: &Action, outcome: Outcome, sequence: i64, differs: bool) -> Event {
    let result = |success| match outcome {
        Outcome::Failure(error) => Err(error),
        Outcome::Success => success,
    };
    let count = |ids: &[EntryId]| result(Ok(())).map(|()| ids.len());
    match action {
        Action::Wait { .. } => Event::LogGrew(sequence),
        Action::CheckHealth => Event::Health(result(Ok(())).map(|()| other())),
        Action::Push { .. } => Event::Pushed(result(Ok(())).map(|()| pushed(sequence, false))),
        Action::CompareDigests => {
            let buckets = if differs { vec![1, 2] } else { Vec::new() };
            Event::Digests(result(Ok(())).map(|()| differing(buckets)))
        }
        Action::CompareVersions(_) => {
            let difference = Difference { buckets_count: 2, fetch: vec![id("a")], send: vec![id("b")] };
            Event::Versions(result(Ok(())).map(|()| difference))
        }
        Action::Fetch(ids) => Event::Fetched(count(ids)),
        Action::Send(ids) => Event::Sent(count(ids)),
    }
}

proptest! {
    /// A failed action is never repeated immediately; and a wait always ends in the future.
    #[test]
    fn failed_actions_are_never_repeated_immediately(
        rounds in proptest::collection::vec((outcomes(), any::<bool>(), 0_i64..3), 1..200),
        seed in any::<u64>(),
    ) {
        let mut run = Run { peer: Peer::new(0, SYNC_INTERVAL_MS, seed), now_ms: 0 };
        let mut sequence = 0;
        for (outcome, differs, written) in rounds {
            sequence += written;
            run.send(Event::LogGrew(sequence));
            if run.peer.needs_cursor() {
                run.peer.set_cursor(run.now_ms, sequence - written);
            }
            run.wait();
            let action = run.next();
            run.send(event(&action, outcome, sequence, differs));
            if matches!(outcome, Outcome::Failure(_)) {
                prop_assert_ne!(run.next(), action);
            }
        }
    }

    /// A peer with which every request fails costs a few requests per second at most, whatever the errors are, and
    /// even if they are immediate.
    #[test]
    fn the_request_rate_to_a_failing_peer_is_bounded(
        errors in proptest::collection::vec(errors(), 1..8),
        health_fails in any::<bool>(),
        seed in any::<u64>(),
    ) {
        const SECONDS: u64 = 120;
        let mut run = Run { peer: Peer::new(0, SYNC_INTERVAL_MS, seed), now_ms: 0 };
        let mut per_second = vec![0; usize::try_from(SECONDS).expect("small")];
        let mut errors = errors.into_iter().cycle();
        loop {
            run.send(Event::LogGrew(5));
            if run.peer.needs_cursor() {
                run.peer.set_cursor(run.now_ms, 0);
            }
            run.wait();
            if run.now_ms >= SECONDS * 1000 {
                break;
            }
            let action = run.next();
            let second = usize::try_from(run.now_ms / 1000).expect("small");
            per_second[second] += 1;
            prop_assert!(per_second[second] <= 16, "{per_second:?}");
            let outcome = match (&action, health_fails) {
                (Action::CheckHealth, false) => Outcome::Success,
                _ => Outcome::Failure(errors.next().expect("the iterator cycles")),
            };
            run.send(event(&action, outcome, 5, true));
        }
        // The rate is far lower after the first minute, in which nodes are expected to start.
        let later: u32 = per_second[60..].iter().sum();
        prop_assert!(later <= 60 * 6, "{per_second:?}");
    }
}

#[test]
fn a_new_node_waits_for_a_peer_for_a_limited_time() {
    let health = |result| Event::Health(result);
    let mut peer = Peer::new(0, SYNC_INTERVAL_MS, 3);
    assert!(peer.is_awaited(9_999, 10_000) && !peer.is_awaited(10_000, 10_000), "a peer never reached");
    assert!(peer.is_awaited(1_999, 2_000) && !peer.is_awaited(2_000, 2_000));
    peer.step(5_000, health(Ok(other())), &own());
    assert!(peer.is_awaited(64_999, 10_000) && !peer.is_awaited(65_000, 10_000), "a peer without progress");
    peer.step(6_000, Event::Digests(Ok(differing(vec![1]))), &own());
    let fetch = vec![id("a"), id("b")];
    let difference = Difference { buckets_count: 1, fetch, send: vec![id("c")] };
    peer.step(6_000, Event::Versions(Ok(difference)), &own());
    peer.step(50_000, Event::Fetched(Ok(1)), &own());
    assert!(peer.is_awaited(109_999, 10_000) && !peer.is_awaited(110_000, 10_000), "a peer with progress");
    peer.step(51_000, Event::Fetched(Ok(1)), &own());
    assert!(!peer.is_awaited(51_000, 10_000), "this node has everything, even if the peer does not");

    for (event, is_awaited) in [
        (Event::Digests(Ok(Comparison::default())), false),
        (Event::Digests(Err(PeerError::Malformed)), false),
        (Event::Digests(Err(PeerError::Unreachable)), true),
        (health(Ok(node_info(2, 2, Some(8), true))), false),
        (health(Err(PeerError::Identity(IdentityError::Unproven))), true),
        (health(Err(PeerError::Identity(IdentityError::SecretDiffers))), false),
        (health(Err(PeerError::Unreachable)), true),
    ] {
        let mut peer = Peer::new(0, SYNC_INTERVAL_MS, 3);
        peer.step(0, health(Ok(other())), &own());
        peer.step(1, event.clone(), &own());
        assert_eq!(peer.is_awaited(2, 10_000), is_awaited, "{event:?}");
    }
}
