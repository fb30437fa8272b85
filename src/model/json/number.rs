//! Numbers: where one ends, and whether other parsers can represent it. Its text is never changed.

use super::error::Reason;
use crate::limits::JSON_INTEGER_DIGITS_MAX;

/// Returns the length of the number at the start of `text`, in bytes.
///
/// Like CPython this takes the longest valid number and leaves the rest to the caller, which rejects it: in `01` and
/// `1.` the number is one digit, and the byte after it is not a comma.
///
/// # Errors
/// Fails if there is no number, or if it is too long or too large.
pub(super) fn scan(text: &[u8]) -> Result<usize, Reason> {
    let sign = usize::from(text.first() == Some(&b'-'));
    let integer_end = match text.get(sign) {
        Some(b'0') => sign + 1,
        Some(b'1'..=b'9') => sign + digits(&text[sign..]),
        _ => return Err(Reason::ExpectingValue),
    };
    let fraction_end = integer_end + fraction(&text[integer_end..]);
    let end = fraction_end + exponent(&text[fraction_end..]);
    if end == integer_end {
        if integer_end - sign > JSON_INTEGER_DIGITS_MAX {
            return Err(Reason::IntegerTooLong);
        }
    } else if !is_finite(&text[..end]) {
        return Err(Reason::NumberTooLarge);
    }
    Ok(end)
}

fn digits(text: &[u8]) -> usize {
    text.iter().take_while(|byte| byte.is_ascii_digit()).count()
}

fn fraction(text: &[u8]) -> usize {
    match text {
        [b'.', b'0'..=b'9', ..] => 1 + digits(&text[1..]),
        _ => 0,
    }
}

fn exponent(text: &[u8]) -> usize {
    let mark = match text {
        [b'e' | b'E', b'+' | b'-', b'0'..=b'9', ..] => 2,
        [b'e' | b'E', b'0'..=b'9', ..] => 1,
        _ => return 0,
    };
    mark + digits(&text[mark..])
}

fn is_finite(number: &[u8]) -> bool {
    let text = std::str::from_utf8(number).expect("a number is ASCII");
    let double: f64 = text.parse().expect("Rust parses every JSON number");
    double.is_finite()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_valid_number_is_taken() {
        for (text, expected) in [
            ("0", Ok(1)),
            ("-0,", Ok(2)),
            ("01", Ok(1)),
            ("12]", Ok(2)),
            ("1.5e3x", Ok(5)),
            ("1.", Ok(1)),
            ("1.e5", Ok(1)),
            ("1e", Ok(1)),
            ("1e+", Ok(1)),
            ("1E-02 ", Ok(5)),
            ("-", Err(Reason::ExpectingValue)),
            ("-a", Err(Reason::ExpectingValue)),
            ("1e308", Ok(5)),
            ("1.7976931348623157e308", Ok(22)),
            ("1.8e308", Err(Reason::NumberTooLarge)),
            ("-1e400", Err(Reason::NumberTooLarge)),
            ("1e-400", Ok(6)),
            ("1e99999999999999999999", Err(Reason::NumberTooLarge)),
            ("0e99999999999999999999", Ok(22)),
        ] {
            assert_eq!(scan(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn integers_may_exceed_the_range_of_a_double() {
        assert_eq!(scan("9".repeat(4300).as_bytes()), Ok(4300));
        assert_eq!(scan(format!("-{}", "9".repeat(4300)).as_bytes()), Ok(4301));
        assert_eq!(scan("9".repeat(4301).as_bytes()), Err(Reason::IntegerTooLong));
        assert_eq!(scan(format!("{}.0", "9".repeat(400)).as_bytes()), Err(Reason::NumberTooLarge));
        assert_eq!(scan(format!("0.{}", "1".repeat(9000)).as_bytes()), Ok(9002));
    }
}
