//! Identifier of a peer that stays valid when the list of peers changes.

/// Identifier of a peer, constant as long as the peer is in the list; its position in the list may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(u32);

impl PeerId {
    /// Creates an ID. IDs are assigned in order, starting with 0 for the first peer of the initial list.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// Returns the number.
    pub const fn number(self) -> u32 {
        self.0
    }
}
