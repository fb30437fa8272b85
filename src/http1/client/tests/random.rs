//! No input and no order of calls causes a panic.

use super::{
    ClientConnection, ClientRequest, ClientStep,
    responses::{call, called, outcome, receive},
};
use crate::http1::{Method, tests::segmentation::Random};

const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";

/// Returns pieces of responses in any order, with random bytes between them: mostly malformed, but deep enough to reach
/// every part of the parser.
fn input(random: &mut Random) -> Vec<u8> {
    const PIECES: [&str; 24] = [
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 200 OK\r\n",
        GOOD,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n",
        "HTTP/1.0 404 \r\n",
        "HTTP/1.",
        "\r\n",
        "\r\n",
        "\r",
        "\n",
        ":",
        " ",
        "Transfer-Encoding: chunked\r\n",
        "Content-Length: 3\r\n",
        "Content-Length: 21\r\n\r\n",
        "Connection: keep-alive\r\n",
        "Connection: close\r\n",
        "3\r\nabc\r\n",
        "3;x\r\nabc\r\n",
        "0\r\n\r\n",
        "0\r\na: b\r\n\r\n",
        "ffffffff",
    ];
    random.input_of(&PIECES)
}

#[test]
fn outcomes_do_not_depend_on_the_segmentation() {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    for index in 0..20_000 {
        let input = input(&mut random);
        let method = if index % 8 == 0 { Method::Head } else { Method::Get };
        let has_eof = index % 2 == 0;
        let run = |next_size: &mut dyn FnMut() -> usize| {
            let mut client = called(method);
            receive(&mut client, &input, next_size);
            if has_eof {
                client.received_eof();
            }
            outcome(&mut client)
        };
        let expected = run(&mut || usize::MAX);
        let text = String::from_utf8_lossy(&input).into_owned();
        assert_eq!(run(&mut || 1), expected, "byte by byte: {text:?}");
        assert_eq!(run(&mut || 1 + random.below(20)), expected, "in random pieces: {text:?}");
    }
}

#[test]
fn random_calls_do_not_panic() {
    let mut random = Random(0x2545_F491_4F6C_DD1D);
    let (mut responses_count, mut reused_count) = (0, 0);
    for _ in 0..3000 {
        let mut client = ClientConnection::new(20);
        for _ in 0..30 {
            let is_idle = client.step() == ClientStep::Read && client.deadline_ms().is_none();
            match random.below(6) {
                0..=2 if is_idle => {
                    client.call(&ClientRequest { body: b"abc", ..call(Method::Put) }, 0, 1000)
                }
                3 if random.below(30) == 0 => client.received_eof(),
                4 if random.below(30) == 0 => client.expire(),
                _ => {}
            }
            let count = client.output().len();
            client.wrote(if random.below(3) == 0 { random.below(count + 1) } else { count });
            if client.deadline_ms().is_some() || random.below(20) == 0 {
                let is_good = random.below(2) == 0;
                let input = if is_good { GOOD.as_bytes().to_vec() } else { input(&mut random) };
                let space = client.read_space();
                let count = space.len().min(input.len());
                space[..count].copy_from_slice(&input[..count]);
                client.received(count);
            }
            if client.step() == ClientStep::Response {
                assert!((200..600).contains(&client.status()));
                assert_eq!(client.header("x-a"), None);
                assert!(client.take_body().len() <= 20);
                responses_count += 1;
            }
            if client.step() != ClientStep::Read || random.below(20) == 0 {
                reused_count += usize::from(client.finish());
            }
        }
    }
    assert!(responses_count > 500 && reused_count > 100, "{responses_count}, {reused_count}");
}
