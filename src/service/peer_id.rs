//! Which peer is meant, whatever becomes of the list of peers.

/// A peer for as long as it is in the list. Its place there may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(u32);

impl PeerId {
    /// Ids are given out in order, beginning with zero for the first peer of the list at the start.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn number(self) -> u32 {
        self.0
    }
}
