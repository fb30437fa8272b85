//! The machine, event by event.

use proptest::prelude::*;

use super::*;
use crate::tls::PeerTlsError;

const SYNC_INTERVAL_MS: u64 = 60_000;

fn number(bits: u64) -> ReplicaId {
    ReplicaId::from_random(bits << 1)
}

fn introduction(instance: u64, node: u64, salt: Option<u64>, has_entries: bool) -> NodeInfo {
    NodeInfo {
        name: "n".to_owned(),
        instance,
        node: Some(number(node)),
        is_federated: false,
        salt,
        has_entries,
        horizon: TombstoneHorizon::default(),
    }
}

/// In hours.
fn horizon(synced: u64, forgotten: u64) -> TombstoneHorizon {
    let stamp = |hours| HlcTimestamp::from_milliseconds(hours * CLOCKS_DIFFER_MS_MAX);
    TombstoneHorizon { synced: stamp(synced), forgotten: stamp(forgotten) }
}

fn own() -> NodeInfo {
    NodeInfo { horizon: horizon(70, 60), ..introduction(1, 1, Some(7), true) }
}

fn other() -> NodeInfo {
    introduction(2, 2, Some(7), true)
}

fn id(key: &str) -> EntryId {
    EntryId { key: key.to_owned(), environment: None }
}

fn differing(buckets: Vec<usize>) -> Comparison {
    Comparison { buckets, ..Comparison::default() }
}

/// A machine, its clock, and what the driver does for both.
struct Run {
    peer: Peer,
    now_ms: u64,
}

impl Run {
    fn new() -> Self {
        Self { peer: Peer::new(0, SYNC_INTERVAL_MS, 3), now_ms: 0 }
    }

    /// A peer that answers, holds the same, and whose changes go on after line 0.
    fn in_sync() -> Self {
        let mut run = Self::new();
        run.tell(Event::Health(Ok(other())));
        run.peer.set_cursor(run.now_ms, 0);
        run.tell(Event::Digests(Ok(Comparison::default())));
        run
    }

    fn tell(&mut self, event: Event) -> Vec<Effect> {
        self.peer.step(self.now_ms, event, &own())
    }

    fn next(&self) -> Action {
        self.peer.next(self.now_ms)
    }

    /// Lets the time pass until there is something to do; says how long that was.
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
fn from_the_first_contact_to_a_peer_that_fails_and_comes_back() {
    let mut run = Run::new();
    // Nodes start together: one that does not answer yet is asked again soon.
    for _ in 0..3 {
        assert_eq!(run.next(), Action::CheckHealth);
        assert!(run.tell(Event::Health(Err(PeerError::Unreachable))).is_empty());
        assert_eq!(run.peer.state(), &State::Unknown);
        assert_eq!(run.wait(), FIRST_CONTACT_INTERVAL_MS);
    }
    assert_eq!(run.tell(Event::Health(Ok(other()))), [Effect::StateChanged]);
    assert_eq!((run.peer.state(), run.peer.node()), (&State::Healthy, Some(number(2))));
    assert_eq!(run.peer.last_contact_ms(), Some(run.now_ms));
    assert!(run.peer.needs_cursor());
    run.peer.set_cursor(run.now_ms, 4);
    assert!(!run.peer.needs_cursor());
    // What clients write goes before the first comparison.
    run.tell(Event::OutboxGrew(9));
    assert_eq!((run.next(), run.peer.outbox_length()), (Action::Push { after: 4 }, Some(5)));
    assert_eq!(run.tell(Event::Pushed(Ok(pushed(7, true)))), [Effect::Acknowledged(7)]);
    // What it has refused holds up nothing of what comes after.
    let refused = Pushed { has_refused: true, ..pushed(8, true) };
    assert_eq!(run.tell(Event::Pushed(Ok(refused))), [Effect::Refused { after: 7, last: 8 }]);
    assert_eq!(run.next(), Action::Push { after: 8 });
    run.tell(Event::Pushed(Ok(pushed(9, false))));
    assert_eq!(run.peer.outbox_length(), Some(0));
    assert_eq!(run.next(), Action::CompareDigests);
    let begun = HlcTimestamp::from_milliseconds(5);
    assert_eq!(
        run.tell(Event::Digests(Ok(Comparison { begun, ..Comparison::default() }))),
        [Effect::Synced { begun, forgotten: HlcTimestamp::default() }]
    );
    // It refuses again and again: the same request, later and later.
    run.tell(Event::OutboxGrew(10));
    for expected_ms in [200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000] {
        while run.next() == Action::CheckHealth {
            run.tell(Event::Health(Ok(other())));
            run.wait();
        }
        assert_eq!(run.next(), Action::Push { after: 9 });
        run.tell(Event::Pushed(Err(PeerError::Refused)));
        let mut waited_ms = run.wait();
        while run.next() == Action::CheckHealth {
            run.tell(Event::Health(Ok(other())));
            waited_ms += run.wait();
        }
        assert!(is_about(waited_ms, expected_ms), "{waited_ms} for {expected_ms}");
    }
    // It is gone: that shows when its health is asked for, which is at once.
    run.tell(Event::Pushed(Err(PeerError::Unreachable)));
    assert_eq!(run.next(), Action::CheckHealth);
    assert_eq!(run.tell(Event::Health(Err(PeerError::Unreachable))), [Effect::StateChanged]);
    assert_eq!(run.peer.state(), &State::Down);
    let waited_ms = run.wait();
    assert!(is_about(waited_ms, HEALTH_INTERVAL_MS), "{waited_ms}");
    // Back again: at once what it lacks, then everything is compared.
    assert_eq!(run.tell(Event::Health(Ok(other()))), [Effect::StateChanged]);
    assert_eq!(run.next(), Action::Push { after: 9 });
    run.tell(Event::Pushed(Ok(pushed(10, false))));
    assert_eq!(run.next(), Action::CompareDigests);
}

#[test]
fn peers_that_are_not_replicated_with() {
    for (theirs, expected) in [
        (Ok(introduction(1, 1, Some(7), true)), State::Myself),
        (Ok(introduction(2, 1, Some(7), true)), State::Incompatible(IncompatibleReason::CopiedData)),
        (Ok(introduction(2, 2, Some(8), true)), State::Incompatible(IncompatibleReason::SaltDiffers)),
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
            State::Incompatible(IncompatibleReason::Distrust(PeerTlsError::Expired)),
        ),
    ] {
        let mut run = Run::new();
        run.tell(Event::OutboxGrew(3));
        assert_eq!(run.tell(Event::Health(theirs.clone())), [Effect::StateChanged]);
        assert_eq!(run.peer.state(), &expected);
        assert!(!run.peer.needs_cursor());
        // A key may be refused only because the peer is just starting: once more, soon.
        run.wait();
        assert_eq!(run.next(), Action::CheckHealth, "{expected:?}");
        assert!(run.tell(Event::Health(theirs.clone())).is_empty());
        // They are only asked whether they are still what they were, without a notice if so.
        for _ in 0..5 {
            let waited_ms = run.wait();
            assert!(is_about(waited_ms, HEALTH_INTERVAL_MS), "{expected:?} {waited_ms}");
            assert_eq!(run.next(), Action::CheckHealth, "{expected:?}");
            assert!(run.tell(Event::Health(theirs.clone())).is_empty());
        }
        run.wait();
        run.tell(Event::Health(Ok(other())));
        assert_eq!(run.peer.state(), &State::Healthy, "{expected:?} is not for ever");
    }
}

#[test]
fn a_peer_whose_salt_will_be_settled_is_looked_at_again_soon() {
    for theirs in [
        introduction(2, 2, None, false),
        // One of the two has sealed nothing yet, and yields.
        introduction(2, 2, Some(8), false),
    ] {
        let mut run = Run::in_sync();
        run.tell(Event::Health(Ok(theirs)));
        assert_eq!(run.peer.state(), &State::Healthy);
        assert_eq!(run.wait(), FIRST_CONTACT_INTERVAL_MS);
        assert_eq!(run.next(), Action::CheckHealth);
    }
}

#[test]
fn a_peer_with_the_same_entries_still_gets_each_change() {
    let mut run = Run::in_sync();
    run.tell(Event::OutboxGrew(5));
    let begun = HlcTimestamp::from_milliseconds(5);
    // A deletion that came in after the machine had decided to compare.
    let equal = Comparison { begun, ..Comparison::default() };
    assert_eq!(
        run.tell(Event::Digests(Ok(equal))),
        [Effect::Synced { begun, forgotten: HlcTimestamp::default() }]
    );
    assert_eq!(run.peer.outbox_length(), Some(5));
    assert_eq!(run.next(), Action::Push { after: 0 });
}

fn pushed(sequence: i64, more: bool) -> Pushed {
    Pushed { sequence, more, has_refused: false }
}

#[test]
fn lag_is_the_age_of_the_oldest_change_that_waits() {
    let mut run = Run::new();
    run.tell(Event::OutboxGrew(1));
    assert_eq!(run.peer.lag_ms(5), None, "it was not reached yet");
    run.tell(Event::Health(Ok(other())));
    run.peer.set_cursor(0, 0);
    assert_eq!(run.peer.lag_ms(70), Some(70));
    run.tell(Event::Pushed(Ok(pushed(1, false))));
    assert_eq!(run.peer.lag_ms(80), Some(0));
    for (now_ms, line) in [(1000, 2), (1050, 3), (2000, 4), (3000, 5)] {
        run.now_ms = now_ms;
        run.tell(Event::OutboxGrew(line));
    }
    assert_eq!(run.peer.lag_ms(4000), Some(3000));
    run.tell(Event::Pushed(Ok(pushed(2, true))));
    assert_eq!(run.peer.lag_ms(4000), Some(3000), "line 3 came within the grain of line 2");
    run.tell(Event::Pushed(Ok(pushed(3, true))));
    assert_eq!(run.peer.lag_ms(4000), Some(2000));
    run.tell(Event::Pushed(Ok(pushed(5, false))));
    assert_eq!(run.peer.lag_ms(4000), Some(0));
    // A peer that is away for long: memory is bounded, and the oldest moment is kept.
    for step in 0..5000 {
        run.now_ms = 10_000 + step * 1000;
        run.tell(Event::OutboxGrew(6 + step.cast_signed()));
    }
    assert_eq!(run.peer.lag_ms(run.now_ms), Some(4999 * 1000));
    run.tell(Event::Pushed(Ok(pushed(6 + 4999, false))));
    assert_eq!(run.peer.lag_ms(run.now_ms), Some(0));
}

#[test]
fn a_peer_that_is_only_asked_is_only_asked_for_its_health() {
    let own = NodeInfo { is_federated: true, node: None, ..own() };
    let other = NodeInfo { instance: 2, ..own.clone() };
    let mut peer = Peer::federated(0, SYNC_INTERVAL_MS, 3);
    assert!(peer.may_answer(FIRST_CONTACT_MS), "nothing speaks against it yet");
    assert_eq!(peer.next(0), Action::CheckHealth);
    peer.step(0, Event::Health(Err(PeerError::Unreachable)), &own);
    assert!(peer.may_answer(FIRST_CONTACT_MS - 1), "it may be just starting");
    assert!(!peer.may_answer(FIRST_CONTACT_MS));
    peer.step(0, Event::Health(Ok(other)), &own);
    peer.step(0, Event::OutboxGrew(5), &own);
    assert!(peer.may_answer(0) && !peer.needs_cursor());
    assert!(matches!(peer.next(0), Action::Wait { until_ms } if is_about(until_ms, HEALTH_INTERVAL_MS)));
    // A question without an answer makes it look at once, so that the next ones need not wait.
    peer.step(5, Event::Unanswered, &own);
    assert_eq!(peer.next(5), Action::CheckHealth);
    peer.step(6, Event::Health(Err(PeerError::Unreachable)), &own);
    assert!(!peer.may_answer(6));
    peer.step(7, Event::Unanswered, &own);
    assert!(matches!(peer.next(7), Action::Wait { .. }), "it is known to be down");
}

#[test]
fn an_api_key_that_is_refused_later_stops_everything_but_health_checks() {
    let mut run = Run::in_sync();
    run.tell(Event::OutboxGrew(1));
    assert_eq!(
        run.tell(Event::Pushed(Err(PeerError::Identity(IdentityError::ApiKey)))),
        [Effect::StateChanged]
    );
    assert_eq!(run.peer.state(), &State::Incompatible(IncompatibleReason::Identity(IdentityError::ApiKey)));
    run.wait();
    assert_eq!(run.next(), Action::CheckHealth);
}

#[test]
fn another_node_on_the_connection_is_asked_who_it_is_at_once() {
    let mut run = Run::in_sync();
    run.tell(Event::OutboxGrew(1));
    let before = run.peer.outbox_length();
    assert!(run.tell(Event::Pushed(Err(PeerError::OtherNode))).is_empty());
    assert_eq!(run.next(), Action::CheckHealth);
    assert_eq!(run.peer.outbox_length(), before, "nothing is confirmed");
    run.tell(Event::Health(Ok(introduction(3, 2, Some(7), true))));
    // Several nodes may answer at one address in turn, so there is a pause nevertheless.
    run.wait();
    assert!(matches!(run.next(), Action::Push { .. }), "the same node in another process goes on");
}

#[test]
fn another_node_at_the_same_address_begins_from_the_start() {
    let mut run = Run::in_sync();
    run.tell(Event::OutboxGrew(8));
    run.tell(Event::Pushed(Ok(pushed(8, false))));
    run.now_ms += SYNC_INTERVAL_MS * 2;
    run.tell(Event::Digests(Ok(differing(vec![1]))));
    // The same node restarted: it still has what it had.
    run.tell(Event::Health(Ok(introduction(3, 2, Some(7), true))));
    assert!(!run.peer.needs_cursor());
    assert_eq!(run.next(), Action::CompareVersions(vec![1]));
    run.tell(Event::Health(Ok(introduction(4, 5, Some(7), true))));
    assert_eq!(run.peer.node(), Some(number(5)));
    assert!(run.peer.needs_cursor());
    // The buckets that differed were the other node's.
    assert_eq!(run.next(), Action::CompareDigests);
}

#[test]
fn a_comparison_that_found_differences_is_repeated_once_at_once() {
    let mut run = Run::in_sync();
    run.tell(Event::Health(Ok(other())));
    run.now_ms = SYNC_INTERVAL_MS * 2;
    run.tell(Event::Health(Ok(other())));
    let mut immediate_count = 0;
    for round in 0..3 {
        assert_eq!(run.next(), Action::CompareDigests, "round {round}");
        run.tell(Event::Digests(Ok(differing((0..70).collect()))));
        assert_eq!(run.next(), Action::CompareVersions((0..64).collect()));
        let difference = Difference { buckets_count: 64, fetch: vec![id("a"), id("b")], send: vec![id("c")] };
        run.tell(Event::Versions(Ok(difference)));
        assert_eq!(run.next(), Action::Fetch(vec![id("a"), id("b")]));
        run.tell(Event::Fetched(Ok(1)));
        assert_eq!(run.next(), Action::Fetch(vec![id("b")]));
        run.tell(Event::Fetched(Ok(1)));
        assert_eq!(run.next(), Action::Send(vec![id("c")]));
        run.tell(Event::Sent(Ok(1)));
        assert_eq!(run.next(), Action::CompareVersions((64..70).collect()));
        run.tell(Event::Versions(Ok(Difference { buckets_count: 6, ..Difference::default() })));
        // Something that cannot be settled, as it were: it differs every time.
        immediate_count += u32::from(run.next() == Action::CompareDigests);
        let begun_ms = run.now_ms;
        while run.wait() > 0 && run.next() == Action::CheckHealth {
            run.tell(Event::Health(Ok(other())));
        }
        if round > 0 {
            assert!(is_about(run.now_ms - begun_ms, SYNC_INTERVAL_MS));
        }
    }
    assert_eq!(immediate_count, 1);
}

#[test]
fn a_failure_ends_a_comparison_which_then_starts_anew() {
    let mut run = Run::in_sync();
    run.tell(Event::Digests(Ok(differing(vec![3]))));
    run.tell(Event::Versions(Ok(Difference { buckets_count: 1, fetch: vec![id("a")], send: Vec::new() })));
    run.tell(Event::Fetched(Err(PeerError::Refused)));
    assert!(matches!(run.next(), Action::Wait { until_ms } if until_ms > run.now_ms));
    let begun_ms = run.now_ms;
    loop {
        run.wait();
        match run.next() {
            Action::CheckHealth => run.tell(Event::Health(Ok(other()))),
            action => break assert_eq!(action, Action::CompareDigests),
        };
    }
    assert!(run.now_ms - begun_ms <= SYNC_INTERVAL_MS * 11 / 10);
}

/// How the next action ends.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Fails(PeerError),
    Succeeds,
}

fn failures() -> impl Strategy<Value = PeerError> {
    prop_oneof![
        4 => Just(PeerError::Unreachable),
        2 => Just(PeerError::Refused),
        1 => Just(PeerError::OtherNode),
        1 => Just(PeerError::SaltDiffers),
        1 => Just(PeerError::Identity(IdentityError::ApiKey)),
        1 => Just(PeerError::Distrust(PeerTlsError::OfThisNode)),
    ]
}

fn endings() -> impl Strategy<Value = Ending> {
    prop_oneof![failures().prop_map(Ending::Fails), Just(Ending::Succeeds)]
}

fn outcome(action: &Action, ending: Ending, line: i64, differs: bool) -> Event {
    let result = |failure| match ending {
        Ending::Fails(by) => Err(by),
        Ending::Succeeds => failure,
    };
    let count = |ids: &[EntryId]| result(Ok(())).map(|()| ids.len());
    match action {
        Action::Wait { .. } => Event::OutboxGrew(line),
        Action::CheckHealth => Event::Health(result(Ok(())).map(|()| other())),
        Action::Push { .. } => Event::Pushed(result(Ok(())).map(|()| pushed(line, false))),
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
    /// An action that has failed is not asked for again before some time has passed; and a wait ends later.
    #[test]
    fn what_fails_is_never_tried_again_at_once(
        rounds in proptest::collection::vec((endings(), any::<bool>(), 0_i64..3), 1..200),
        seed in any::<u64>(),
    ) {
        let mut run = Run { peer: Peer::new(0, SYNC_INTERVAL_MS, seed), now_ms: 0 };
        let mut line = 0;
        for (ending, differs, written) in rounds {
            line += written;
            run.tell(Event::OutboxGrew(line));
            if run.peer.needs_cursor() {
                run.peer.set_cursor(run.now_ms, line - written);
            }
            run.wait();
            let action = run.next();
            run.tell(outcome(&action, ending, line, differs));
            if matches!(ending, Ending::Fails(_)) {
                prop_assert_ne!(run.next(), action);
            }
        }
    }

    /// A peer with which everything fails, however it does, costs a few requests a second at most, even if
    /// all failures come at once.
    #[test]
    fn a_peer_that_fails_is_asked_a_bounded_number_of_times(
        failures in proptest::collection::vec(failures(), 1..8),
        health_fails in any::<bool>(),
        seed in any::<u64>(),
    ) {
        const SECONDS: u64 = 120;
        let mut run = Run { peer: Peer::new(0, SYNC_INTERVAL_MS, seed), now_ms: 0 };
        let mut per_second = vec![0; usize::try_from(SECONDS).expect("small")];
        let mut failures = failures.into_iter().cycle();
        loop {
            run.tell(Event::OutboxGrew(5));
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
            let ending = match (&action, health_fails) {
                (Action::CheckHealth, false) => Ending::Succeeds,
                _ => Ending::Fails(failures.next().expect("it goes round")),
            };
            run.tell(outcome(&action, ending, 5, true));
        }
        // After the first while, in which nodes are expected to start, it is far less.
        let later: u32 = per_second[60..].iter().sum();
        prop_assert!(later <= 60 * 6, "{per_second:?}");
    }
}

#[test]
fn a_new_node_waits_for_a_peer_for_a_limited_time() {
    let health = |result| Event::Health(result);
    let mut peer = Peer::new(0, SYNC_INTERVAL_MS, 3);
    assert!(peer.is_awaited(9_999, 10_000) && !peer.is_awaited(10_000, 10_000), "one that was never reached");
    assert!(peer.is_awaited(1_999, 2_000) && !peer.is_awaited(2_000, 2_000));
    peer.step(5_000, health(Ok(other())), &own());
    assert!(peer.is_awaited(64_999, 10_000) && !peer.is_awaited(65_000, 10_000), "one that gives nothing");
    peer.step(6_000, Event::Digests(Ok(differing(vec![1]))), &own());
    let fetch = vec![id("a"), id("b")];
    let difference = Difference { buckets_count: 1, fetch, send: vec![id("c")] };
    peer.step(6_000, Event::Versions(Ok(difference)), &own());
    peer.step(50_000, Event::Fetched(Ok(1)), &own());
    assert!(
        peer.is_awaited(109_999, 10_000) && !peer.is_awaited(110_000, 10_000),
        "one that gives something"
    );
    peer.step(51_000, Event::Fetched(Ok(1)), &own());
    assert!(!peer.is_awaited(51_000, 10_000), "everything is here, whether or not the own entries are there");

    for (event, is_awaited) in [
        (Event::Digests(Ok(Comparison::default())), false),
        (Event::Digests(Err(PeerError::Malformed)), false),
        (Event::Digests(Err(PeerError::Unreachable)), true),
        (health(Ok(introduction(2, 2, Some(8), true))), false),
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
