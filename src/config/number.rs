//! Numbers in settings.

use std::str::FromStr;

/// Parses an integer without a plus sign, which `FromStr` alone would accept.
pub(super) fn integer<T: FromStr>(word: &str) -> Option<T> {
    word.parse().ok().filter(|_| !word.starts_with('+'))
}
