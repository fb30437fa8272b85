//! The stream over a socket that takes and gives a few bytes at a time, and is never ready twice.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_lite::future::{block_on, zip};
use futures_lite::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::*;

#[path = "../../tests/pipe/mod.rs"]
mod pipe;

const BYTES_AT_A_TIME: usize = 7;
/// A server gives tickets before anybody has to read.
const BYTES_ON_THE_WAY_MAX: usize = 2000;

/// One end of a pipe.
struct End {
    inner: pipe::End,
    is_ready: bool,
}

impl End {
    fn pair() -> (Self, Self) {
        let (one, other) = pipe::pipe(BYTES_ON_THE_WAY_MAX);
        let end = |inner| Self { inner, is_ready: false };
        (end(one), end(other))
    }

    /// Every other time it has to be asked once more.
    fn hesitates(&mut self, context: &Context<'_>) -> bool {
        self.is_ready = !self.is_ready;
        if self.is_ready {
            context.waker().wake_by_ref();
        }
        self.is_ready
    }
}

impl AsyncRead for End {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if self.hesitates(context) {
            return Poll::Pending;
        }
        let count = out.len().min(BYTES_AT_A_TIME);
        Pin::new(&mut self.inner).poll_read(context, &mut out[..count])
    }
}

impl AsyncWrite for End {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.hesitates(context) {
            return Poll::Pending;
        }
        Pin::new(&mut self.inner).poll_write(context, &bytes[..bytes.len().min(BYTES_AT_A_TIME)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(context)
    }
}

fn certificates() -> Certificates {
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(["localhost".to_owned()]).expect("a name");
    let directory = tempfile::tempdir().expect("a directory");
    let [certificate, path] = ["cert.pem", "key.pem"].map(|name| directory.path().join(name));
    std::fs::write(&certificate, params.self_signed(&key).expect("signed").pem()).expect("written");
    std::fs::write(&path, key.serialize_pem()).expect("written");
    let own = Own { certificate: certificate.clone(), key: path, password: None };
    let files = Files { own: Some(own), peers: Some(Roots::File(certificate)), ..Files::none() };
    Certificates::load(files).expect("they are good")
}

/// Both ends of one connection.
fn connected() -> (Stream<End>, Stream<End>) {
    let certificates = certificates();
    let (client, server) = End::pair();
    let context = certificates.server().expect("there is a certificate");
    let (client, server) = block_on(zip(
        Stream::connect(client, certificates.client().expect("there are roots"), "localhost"),
        Stream::accept(server, &context),
    ));
    let Ok(server) = server else { panic!("no connection") };
    (client.expect("a connection"), server)
}

fn bytes(count: usize, seed: u8) -> Vec<u8> {
    (0..=250_u8).cycle().map(|byte| byte ^ seed).take(count).collect()
}

#[test]
fn both_ways_and_to_the_end() {
    let (mut client, mut server) = connected();
    let (question, answer) = (bytes(40_000, 1), bytes(200_000, 2));
    let asking = async {
        client.write_all(&question).await?;
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).await?;
        io::Result::Ok(heard)
    };
    let answering = async {
        let mut heard = vec![0; question.len()];
        server.read_exact(&mut heard).await?;
        server.write_all(&answer).await?;
        server.close().await?;
        // What the other side still says can be read after that.
        io::Result::Ok(heard)
    };
    let (heard, asked) = block_on(zip(asking, answering));
    assert!(heard.expect("the answer") == answer && asked.expect("the question") == question);
    block_on(async {
        let (sent, heard) = zip(client.write_all(b"and more"), async {
            let mut more = [0; 8];
            server.read_exact(&mut more).await.map(|()| more)
        })
        .await;
        sent.expect("sent");
        assert_eq!(&heard.expect("it is heard"), b"and more");
    });
}

#[test]
fn what_is_written_is_handed_over_without_a_flush() {
    let (mut client, mut server) = connected();
    let (written, read) = block_on(zip(client.write_all(b"a few"), async {
        let mut few = [0; 5];
        server.read_exact(&mut few).await.map(|()| few)
    }));
    written.expect("written");
    assert_eq!(&read.expect("read"), b"a few");
    assert_eq!(server.output.capacity() + client.output.capacity(), 0, "an idle one holds no buffer");
}

#[test]
fn an_end_that_nobody_told_is_an_error() {
    let (mut client, mut server) = connected();
    block_on(async {
        let (sent, _) = zip(client.write_all(b"half"), server.read_exact(&mut [0; 4])).await;
        sent.expect("sent");
        client.socket.close().await.expect("closed");
        let cut = server.read(&mut [0]).await.expect_err("it was cut");
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
    });
}

#[test]
fn who_is_not_trusted_gets_no_connection() {
    let [one, other] = [certificates(), certificates()];
    let connect = |host: &'static str, certificates: &Certificates| {
        let (client, server) = End::pair();
        let config = certificates.client().expect("there are roots");
        let (client, _) = block_on(zip(
            async move {
                // The end goes with the connection, or the other one would wait for ever.
                let connecting = Stream::connect(client, config, host);
                connecting.await.map(|mut stream| block_on(stream.close()))
            },
            async {
                let context = one.server().expect("there is a certificate");
                let accepting = Stream::accept(server, &context);
                futures_lite::future::or(async { accepting.await.is_ok() }, async {
                    for _ in 0..100_000 {
                        futures_lite::future::yield_now().await;
                    }
                    false
                })
                .await
            },
        ));
        client.err().and_then(|error| PeerTlsError::of(&error))
    };
    assert_eq!(connect("localhost", &one), None);
    assert_eq!(connect("localhost", &other), Some(PeerTlsError::UnknownAuthority));
    assert_eq!(connect("other.example.org", &one), Some(PeerTlsError::OtherName));
}
