//! Chunked bodies: the decoder accepts the same input, and decodes it to the same body, as a naive reference parser.

use opensecureconf::http1::{Connection, Response, Step};
use opensecureconf::limits::BODY_BYTES_MAX;

use super::grammar::{self, Chunked};
use super::pieces::Pieces;

const HEAD: &[u8] = b"PUT /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";

/// Checks the body that the server reads from `data`, sent after a head that announces a chunked body.
pub fn run(data: &[u8]) {
    for bytes_max in [BODY_BYTES_MAX, 20] {
        let expected = match grammar::chunked(data, bytes_max) {
            Chunked::Complete(body, _) => Chunked::Complete(body, 0),
            other => other,
        };
        for pieces in Pieces::of(data).into_iter().chain([Pieces::Whole]) {
            let text = format!("{pieces:?}, at most {bytes_max}");
            assert_eq!(serve(data, bytes_max, pieces), expected, "{text}");
        }
    }
}

/// Returns the body as the server decodes it; the count is always zero.
fn serve(data: &[u8], bytes_max: usize, mut pieces: Pieces) -> Chunked {
    let input = [HEAD, data].concat();
    let mut connection = Connection::new(0);
    let mut rest = &input[..];
    loop {
        match connection.step(0) {
            Step::Head => connection.accept_body(bytes_max, 0),
            Step::Body => return Chunked::Complete(connection.take_body().to_vec(), 0),
            Step::Reject(_) => {
                connection.respond_and_close(
                    &Response { status: 400, content_type: None, headers: &[], body: b"", date: "" },
                    0,
                );
                assert!(connection.body().is_empty(), "a body after a rejection");
                return Chunked::Malformed;
            }
            Step::Read if rest.is_empty() => connection.received_eof(),
            Step::Read => {
                let space = connection.read_space();
                let count = space.len().min(rest.len()).min(pieces.next_size());
                assert!(count > 0, "a connection that reads has space");
                space[..count].copy_from_slice(&rest[..count]);
                connection.received(count, 0);
                rest = &rest[count..];
                assert!(
                    connection.buffered_body_bytes() <= 2 * data.len().max(1),
                    "memory is reserved for announced bytes that have not arrived"
                );
            }
            Step::Linger | Step::Close => return Chunked::Incomplete,
        }
    }
}
