//! Header fields that determine the framing of a message and the persistence of the connection.

use super::{protocol_error::ProtocolError, target::is_host};

/// Framing of a message body (RFC 9112 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// No body.
    Empty,
    /// Length in bytes; lengths above 64 bits saturate and are rejected like any excessive length.
    Length(u64),
    /// Chunked transfer coding.
    Chunked,
}

/// Values of these fields, collected in one pass.
#[derive(Default)]
pub(super) struct Fields {
    length: Option<u64>,
    is_chunked: bool,
    hosts_count: usize,
    says_close: bool,
    says_keep_alive: bool,
    expects_continue: bool,
    expects_other: bool,
}

impl Fields {
    /// Records a `Content-Length`. RFC 9112 6.3: several equal lengths, or a list of them, MAY be merged. No sane
    /// client sends them, so a message with more than one is rejected.
    pub(super) fn content_length(&mut self, value: &[u8]) -> Result<(), ProtocolError> {
        const MALFORMED: ProtocolError = ProtocolError::BadRequest("content-length is malformed");
        if self.length.is_some() || value.is_empty() {
            return Err(MALFORMED);
        }
        let mut length: u64 = 0;
        for &byte in value {
            if !byte.is_ascii_digit() {
                return Err(MALFORMED);
            }
            length = length.saturating_mul(10).saturating_add(u64::from(byte - b'0'));
        }
        self.length = Some(length);
        Ok(())
    }

    /// Records a `Transfer-Encoding`: exactly `chunked`, once. Implementations have disagreed on every other spelling.
    pub(super) fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), ProtocolError> {
        const MALFORMED: ProtocolError = ProtocolError::BadRequest("transfer-encoding is malformed");
        if self.is_chunked {
            return Err(MALFORMED);
        }
        if value.eq_ignore_ascii_case(b"chunked") {
            self.is_chunked = true;
            return Ok(());
        }
        let is_one_token = !value.is_empty() && value.iter().all(|&byte| super::token::is_token_byte(byte));
        Err(if is_one_token { ProtocolError::TransferCodingNotImplemented } else { MALFORMED })
    }

    /// Records a `Host`.
    pub(super) fn host(&mut self, value: &[u8]) -> Result<(), ProtocolError> {
        self.hosts_count += 1;
        if self.hosts_count > 1 || !is_host(value) {
            return Err(ProtocolError::BadRequest("host is malformed"));
        }
        Ok(())
    }

    /// Records the options of a `Connection` field, of which a message may have several (RFC 9110 7.6.1).
    pub(super) fn connection(&mut self, value: &[u8]) {
        for option in value.split(|&byte| byte == b',') {
            let option = trim(option);
            self.says_close |= option.eq_ignore_ascii_case(b"close");
            self.says_keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    /// Records an `Expect`.
    pub(super) fn expect(&mut self, value: &[u8]) {
        if value.eq_ignore_ascii_case(b"100-continue") {
            self.expects_continue = true;
        } else {
            self.expects_other = true;
        }
    }

    /// Returns the framing, once every field is recorded.
    pub(super) fn framing(&self, is_http_11: bool) -> Result<Framing, ProtocolError> {
        match (self.is_chunked, self.length) {
            // RFC 9112 6.1: such a message may be a smuggling attempt, and is treated as one.
            (true, Some(_)) => Err(ProtocolError::BadRequest("both transfer-encoding and content-length")),
            // RFC 9112 6.1: the framing of an HTTP/1.0 message with a transfer coding is faulty.
            (true, None) if !is_http_11 => Err(ProtocolError::BadRequest("transfer-encoding in HTTP/1.0")),
            (true, None) => Ok(Framing::Chunked),
            (false, None | Some(0)) => Ok(Framing::Empty),
            (false, Some(length)) => Ok(Framing::Length(length)),
        }
    }

    /// Returns whether a length was sent, even zero, which [`Framing`] does not distinguish from none.
    pub(super) fn has_length(&self) -> bool {
        self.length.is_some()
    }

    /// Fails for an HTTP/1.1 request without a host (RFC 9112 3.2).
    pub(super) fn check_host(&self, is_http_11: bool) -> Result<(), ProtocolError> {
        if is_http_11 && self.hosts_count == 0 {
            return Err(ProtocolError::BadRequest("host is missing"));
        }
        Ok(())
    }

    /// Returns whether the client waits for `100 Continue`, which an HTTP/1.0 client cannot (RFC 9110 10.1.1).
    pub(super) fn expects_continue(&self, is_http_11: bool) -> Result<bool, ProtocolError> {
        if is_http_11 && self.expects_other {
            return Err(ProtocolError::ExpectationFailed);
        }
        Ok(is_http_11 && self.expects_continue)
    }

    /// Returns whether the connection persists after the response (RFC 9112 9.3).
    pub(super) fn keeps_alive(&self, is_http_11: bool) -> bool {
        !self.says_close && (is_http_11 || self.says_keep_alive)
    }
}

/// Strips optional white space (RFC 9110 5.6.3), a smaller set than ASCII white space.
pub(super) fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks the framing of an HTTP/1.1 request with these `(name, value)` pairs.
    fn check(fields: &[(&str, &str)], expected: Result<Framing, ProtocolError>) {
        let mut recorded = Fields::default();
        let mut framing = Ok(());
        for (name, value) in fields {
            framing = framing.and(match *name {
                "length" => recorded.content_length(value.as_bytes()),
                _ => recorded.transfer_encoding(value.as_bytes()),
            });
        }
        assert_eq!(framing.and_then(|()| recorded.framing(true)), expected, "{fields:?}");
    }

    #[test]
    fn a_length_consists_of_digits() {
        check(&[], Ok(Framing::Empty));
        check(&[("length", "0")], Ok(Framing::Empty));
        check(&[("length", "007")], Ok(Framing::Length(7)));
        check(&[("length", "18446744073709551615")], Ok(Framing::Length(u64::MAX)));
        check(&[("length", "99999999999999999999999")], Ok(Framing::Length(u64::MAX)));
        let malformed = Err(ProtocolError::BadRequest("content-length is malformed"));
        for value in ["", "+3", "-3", "0x5", "5,", "5,5", "5 5", "5\u{b}", "1e3"] {
            check(&[("length", value)], malformed);
        }
        check(&[("length", "5"), ("length", "5")], malformed);
    }

    #[test]
    fn chunked_is_the_only_transfer_coding() {
        let malformed = Err(ProtocolError::BadRequest("transfer-encoding is malformed"));
        check(&[("coding", "Chunked")], Ok(Framing::Chunked));
        check(&[("coding", "gzip")], Err(ProtocolError::TransferCodingNotImplemented));
        for value in ["", "chunked,", "chunked, gzip", "chunked;q=1", "\u{b}chunked", "chunked chunked"] {
            check(&[("coding", value)], malformed);
        }
        check(&[("coding", "chunked"), ("coding", "identity")], malformed);
        let both = Err(ProtocolError::BadRequest("both transfer-encoding and content-length"));
        check(&[("coding", "chunked"), ("length", "0")], both);
    }

    #[test]
    fn connection_is_a_list_of_options() {
        let keeps_alive = |values: &[&str], is_http_11: bool| {
            let mut fields = Fields::default();
            values.iter().for_each(|value| fields.connection(value.as_bytes()));
            fields.keeps_alive(is_http_11)
        };
        assert!(keeps_alive(&[], true) && !keeps_alive(&[], false));
        assert!(!keeps_alive(&["CLOSE"], true) && !keeps_alive(&["upgrade,\tclose "], true));
        assert!(!keeps_alive(&["upgrade", "close"], true) && keeps_alive(&["not-close"], true));
        assert!(keeps_alive(&["x, Keep-Alive"], false) && !keeps_alive(&["keep-alive, close"], false));
    }
}
