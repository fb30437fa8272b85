//! Problems of a peer that do not prevent replication, shown for a while after their last occurrence.

use std::time::Duration;

/// Problem of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remark {
    /// The peer has versions ahead of this node's clock, which this node refuses; by how many milliseconds.
    IsAhead(u64),
    /// The peer refuses versions of this node, which are ahead of its clock; by how many milliseconds.
    IsBehind(u64),
    /// The peer has sent a malformed reply.
    Malformed,
}

/// Last remark of each kind, and when it was made.
#[derive(Debug, Default)]
pub(super) struct Remarks {
    /// Milliseconds by which the versions are ahead, and when this was last noticed.
    ahead: Option<(u64, u64)>,
    behind: Option<(u64, u64)>,
    malformed_at_ms: Option<u64>,
}

impl Remarks {
    /// Records a remark; returns whether it is the first one of its kind.
    pub(super) fn make(&mut self, now_ms: u64, remark: Remark) -> bool {
        match remark {
            Remark::IsAhead(by_ms) => self.ahead.replace((by_ms, now_ms)).is_none(),
            Remark::IsBehind(by_ms) => self.behind.replace((by_ms, now_ms)).is_none(),
            Remark::Malformed => self.malformed_at_ms.replace(now_ms).is_none(),
        }
    }

    /// Describes the remarks that are not older than `lifetime`. `ahead_ms` is how far the changes that the peer
    /// pushed recently were ahead.
    pub(super) fn text(&self, now_ms: u64, lifetime: Duration, ahead_ms: Option<u64>) -> Option<String> {
        let is_recent = |at_ms: u64| u128::from(now_ms.saturating_sub(at_ms)) <= lifetime.as_millis();
        let recent =
            |of: Option<(u64, u64)>| of.filter(|(_, at_ms)| is_recent(*at_ms)).map(|(by_ms, _)| by_ms);
        let malformed = self
            .malformed_at_ms
            .filter(|at_ms| is_recent(*at_ms))
            .map(|_| "it sends malformed replies".to_owned());
        let ahead = recent(self.ahead).max(ahead_ms).map(|by_ms| {
            format!("it has versions {} min ahead of this node's clock, which are refused", by_ms / 60_000)
        });
        let behind = recent(self.behind).map(|by_ms| {
            format!("it refuses versions of this node, which are {} min ahead of its clock", by_ms / 60_000)
        });
        let texts: Vec<String> = malformed.into_iter().chain(ahead).chain(behind).collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remarks_are_shown_for_a_while() {
        let mut remarks = Remarks::default();
        let lifetime = Duration::from_secs(10);
        assert_eq!(remarks.text(0, lifetime, None), None);
        assert!(remarks.make(1000, Remark::IsAhead(62 * 60_000)));
        assert!(!remarks.make(2000, Remark::IsAhead(61 * 60_000)));
        assert!(remarks.make(5000, Remark::IsBehind(7 * 60_000)));
        let text = remarks.text(6000, lifetime, None).expect("two remarks");
        assert!(
            text.contains("61 min ahead of this node's clock") && text.contains("7 min ahead of its clock"),
            "{text}"
        );
        assert!(remarks.text(12_001, lifetime, None).is_some_and(|text| !text.contains("61 min")));
        assert_eq!(remarks.text(15_001, lifetime, None), None);
        assert!(remarks.text(15_001, lifetime, Some(9 * 60_000)).is_some_and(|text| text.contains("9 min")));
        assert!(remarks.make(16_000, Remark::Malformed));
        assert_eq!(remarks.text(16_000, lifetime, None).as_deref(), Some("it sends malformed replies"));
    }
}
