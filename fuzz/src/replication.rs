//! Messages between replicas: decoding never yields more than was sent, and encoding is its inverse.

use std::fmt::Debug;

use opensecureconf::limits::{BUCKETS_COUNT, CHANGES_PER_MESSAGE_MAX, ENTRIES_PER_MESSAGE_MAX};
use opensecureconf::model::{EntryId, Timestamp};
use opensecureconf::wire::{Protocol, replication as messages};

/// Versions in which each decoded message is encoded again.
pub(super) const VERSIONS: [Protocol; 2] = [Protocol::V1, Protocol::V2];

/// Decodes `data` as each type of message.
pub fn run(data: &[u8]) {
    VERSIONS.into_iter().for_each(|protocol| check_in(protocol, data));
}

fn check_in(protocol: Protocol, data: &[u8]) {
    if let Ok(message) = messages::decode_changes(data) {
        let changes = &message.1;
        assert!(changes.len() <= CHANGES_PER_MESSAGE_MAX, "{} changes", changes.len());
        check_ids(changes.iter().map(|change| &change.id));
        let contents = changes.iter().filter_map(|change| change.body.as_ref());
        assert!(contents.clone().all(|content| content.check().is_ok() && content.check_times().is_ok()));
        let times = contents.flat_map(|content| [content.created_at, content.updated_at]);
        let is_exact = are_past(times);
        check(
            &message,
            is_exact,
            |(salt, changes)| messages::encode_changes(protocol, *salt, changes),
            messages::decode_changes,
        );
    }
    let buckets: Vec<usize> = (0..BUCKETS_COUNT).collect();
    let decode_versions = |text: &[u8]| messages::decode_versions(text, &buckets);
    if let Ok(page) = decode_versions(data) {
        assert!(
            (1..=BUCKETS_COUNT).contains(&page.buckets_count),
            "versions of {} buckets",
            page.buckets_count
        );
        check_ids(page.known.iter().map(|known| &known.id));
        check(&page, true, |page| messages::encode_versions(protocol, page), decode_versions);
    }
    if let Ok(ids) = messages::decode_ids(data) {
        assert!(ids.len() <= ENTRIES_PER_MESSAGE_MAX, "{} names", ids.len());
        check_ids(ids.iter());
        check(&ids, true, |ids| messages::encode_ids(protocol, ids), messages::decode_ids);
    }
    if let Ok(buckets) = messages::decode_buckets(data) {
        assert!(buckets.iter().all(|bucket| *bucket < BUCKETS_COUNT), "a bucket that does not exist");
        assert!(buckets.len() <= BUCKETS_COUNT, "a repeated bucket");
        check(&buckets, true, |buckets| messages::encode_buckets(buckets), messages::decode_buckets);
    }
    if let Ok(digests) = messages::decode_digests(data) {
        assert_eq!(messages::encode_digests(&digests), data, "digests have two encodings");
    }
    if let Ok(digest) = messages::decode_digest(data) {
        let encoded = messages::encode_digest(digest);
        assert!(matches!(messages::decode_digest(encoded.as_bytes()), Ok(again) if again == digest));
    }
    if let Some(horizon) = std::str::from_utf8(data).ok().and_then(messages::decode_horizon) {
        assert_eq!(messages::decode_horizon(&messages::encode_horizon(&horizon)), Some(horizon));
    }
}

/// Returns whether all of these times survive encoding: times in the future are omitted.
pub(super) fn are_past(times: impl Iterator<Item = Option<Timestamp>>) -> bool {
    times.flatten().all(|time| time <= Timestamp::now())
}

/// Checks that every name is valid for clients, and that no name is repeated.
fn check_ids<'a>(ids: impl Iterator<Item = &'a EntryId>) {
    let mut seen = std::collections::BTreeSet::new();
    for id in ids {
        assert_eq!(id.check(), Ok(()), "{id:?}");
        assert!(seen.insert(id), "a repeated name: {id:?}");
    }
}

/// Checks that encoding round-trips, completely if the message `is_exact`, and that truncated messages are rejected.
pub(super) fn check<M: Debug, E: Debug>(
    message: &M,
    is_exact: bool,
    encode: impl Fn(&M) -> Vec<u8>,
    decode: impl Fn(&[u8]) -> Result<M, E>,
) {
    let encoded = encode(message);
    let again = decode(&encoded).expect("an encoded message decodes");
    if is_exact {
        assert_eq!(format!("{again:?}"), format!("{message:?}"), "the message has changed");
    }
    assert_eq!(encode(&again), encoded, "the encoding has changed");
    for end in [encoded.len() / 3, encoded.len() - 1] {
        assert!(decode(&encoded[..end]).is_err(), "the first {end} of {} bytes decode", encoded.len());
    }
}
