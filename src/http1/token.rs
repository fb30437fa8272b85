//! Characters of tokens.

/// Returns whether a byte is a `tchar` of RFC 9110 5.6.2, which methods and field names consist of.
pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
