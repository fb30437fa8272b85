//! What is wrong with a peer without keeping the two from talking: shown for a while after it was seen last.

use std::time::Duration;

/// Something that is wrong with a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remark {
    /// It holds versions that are ahead of this node's clock by so many milliseconds, which this node refuses.
    IsAhead(u64),
    /// It refuses versions of this node, which are ahead of its clock by so many milliseconds.
    IsBehind(u64),
    /// It has answered something that no node does.
    Malformed,
}

/// The last remark of each kind, and when it was made.
#[derive(Debug, Default)]
pub(super) struct Remarks {
    ahead: Option<(u64, u64)>,
    behind: Option<(u64, u64)>,
    malformed_at_ms: Option<u64>,
}

impl Remarks {
    /// Takes one; true if there was none of its kind.
    pub(super) fn make(&mut self, now_ms: u64, remark: Remark) -> bool {
        match remark {
            Remark::IsAhead(by_ms) => self.ahead.replace((by_ms, now_ms)).is_none(),
            Remark::IsBehind(by_ms) => self.behind.replace((by_ms, now_ms)).is_none(),
            Remark::Malformed => self.malformed_at_ms.replace(now_ms).is_none(),
        }
    }

    /// Those that are not too old. `ahead_ms` is how far its own changes were ahead that it sent lately.
    pub(super) fn text(&self, now_ms: u64, patience: Duration, ahead_ms: Option<u64>) -> Option<String> {
        let is_recent = |at_ms: u64| u128::from(now_ms.saturating_sub(at_ms)) <= patience.as_millis();
        let recent =
            |of: Option<(u64, u64)>| of.filter(|(_, at_ms)| is_recent(*at_ms)).map(|(by_ms, _)| by_ms);
        let malformed = self
            .malformed_at_ms
            .filter(|at_ms| is_recent(*at_ms))
            .map(|_| "its answers are not those of a node".to_owned());
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
        let patience = Duration::from_secs(10);
        assert_eq!(remarks.text(0, patience, None), None);
        assert!(remarks.make(1000, Remark::IsAhead(62 * 60_000)));
        assert!(!remarks.make(2000, Remark::IsAhead(61 * 60_000)));
        assert!(remarks.make(5000, Remark::IsBehind(7 * 60_000)));
        let text = remarks.text(6000, patience, None).expect("two");
        assert!(
            text.contains("61 min ahead of this node's clock") && text.contains("7 min ahead of its clock"),
            "{text}"
        );
        assert!(remarks.text(12_001, patience, None).is_some_and(|text| !text.contains("61 min")));
        assert_eq!(remarks.text(15_001, patience, None), None);
        assert!(remarks.text(15_001, patience, Some(9 * 60_000)).is_some_and(|text| text.contains("9 min")));
        assert!(remarks.make(16_000, Remark::Malformed));
        assert_eq!(
            remarks.text(16_000, patience, None).as_deref(),
            Some("its answers are not those of a node")
        );
    }
}
