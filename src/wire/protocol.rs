//! Versions of the protocol, and their negotiation.

use std::fmt;

/// Version of the protocol between nodes. A node supports the newest one and the one before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// Field names of one letter. Nodes that speak it alone send no [`super::header::PROTOCOL`].
    #[default]
    V1 = 1,
    /// Field names are words.
    V2 = 2,
}

impl Protocol {
    /// Newest version that this node supports, which it announces.
    pub const NEWEST: Self = Self::V2;

    /// Returns the number of the version.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// Returns the newest version that this node and a peer with this announcement support.
    pub fn common(announced: Option<&str>) -> Self {
        let announced = announced.and_then(|text| text.parse::<u32>().ok()).unwrap_or_default();
        if announced >= Self::V2.number().into() { Self::V2 } else { Self::V1 }
    }

    /// Returns the version of a request with this header field; `None` if this node does not support it.
    pub fn of_request(field: Option<&[u8]>) -> Option<Self> {
        match field {
            None | Some(b"1") => Some(Self::V1),
            Some(b"2") => Some(Self::V2),
            Some(_) => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_use_the_newest_version_that_both_support() {
        for (announced, expected) in [
            (None, Protocol::V1),
            (Some("1"), Protocol::V1),
            (Some("2"), Protocol::V2),
            // A later release supports version 2, too.
            (Some("3"), Protocol::V2),
            (Some("4294967295"), Protocol::V2),
            (Some("0"), Protocol::V1),
            (Some(""), Protocol::V1),
            (Some("-2"), Protocol::V1),
            (Some("two"), Protocol::V1),
        ] {
            assert_eq!(Protocol::common(announced), expected, "{announced:?}");
        }
        assert_eq!(Protocol::common(Some(&Protocol::NEWEST.to_string())), Protocol::NEWEST);
    }

    #[test]
    fn requests_name_a_supported_version_or_none() {
        assert_eq!(Protocol::of_request(None), Some(Protocol::V1));
        for protocol in [Protocol::V1, Protocol::V2] {
            assert_eq!(Protocol::of_request(Some(protocol.to_string().as_bytes())), Some(protocol));
        }
        for unsupported in ["0", "3", "", "02", "2 ", "1, 2", "two"] {
            assert_eq!(Protocol::of_request(Some(unsupported.as_bytes())), None, "{unsupported}");
        }
    }
}
