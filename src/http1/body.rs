//! Body buffer that grows with the bytes that arrive and leaves no unwiped copy behind.

use zeroize::Zeroizing;

/// Appends to a body of at most `expected` bytes.
///
/// The capacity doubles as bytes arrive instead of being allocated at once, because announcing a length costs the
/// client nothing. The vector never reallocates by itself, which would leave the secrets so far in freed memory; here
/// the old vector is wiped when it is dropped.
pub(super) fn append(body: &mut Zeroizing<Vec<u8>>, bytes: &[u8], expected: usize) {
    let needed = body.len() + bytes.len();
    if needed > body.capacity() {
        let capacity = needed.max(body.capacity() * 2).min(needed.max(expected));
        let mut larger = Zeroizing::new(Vec::with_capacity(capacity));
        larger.extend_from_slice(body);
        *body = larger;
    }
    body.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacity_doubles_up_to_the_expected_length() {
        let mut body = Zeroizing::new(Vec::new());
        let mut capacities = Vec::new();
        for piece in [&b"0123456789"[..], b"a", b"bcdefghij", b"k", b"lmno"] {
            append(&mut body, piece, 25);
            capacities.push(body.capacity());
        }
        assert_eq!(&body[..], b"0123456789abcdefghijklmno");
        assert_eq!(capacities, [10, 20, 20, 25, 25]);
    }
}
