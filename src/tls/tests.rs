//! Tests of the stream, over a socket that transfers a few bytes per call and is never ready twice in a row.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_lite::future::{block_on, zip};
use futures_lite::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::*;

#[path = "../../tests/pipe/mod.rs"]
mod pipe;

const BYTES_PER_CALL: usize = 7;
/// Capacity of the pipe: a server sends session tickets before the client has to read.
const BYTES_IN_FLIGHT_MAX: usize = 2000;

/// End of a pipe.
struct End {
    inner: pipe::End,
    is_ready: bool,
}

impl End {
    fn pair() -> (Self, Self) {
        let (one, other) = pipe::pipe(BYTES_IN_FLIGHT_MAX);
        let end = |inner| Self { inner, is_ready: false };
        (end(one), end(other))
    }

    /// Returns true in every other call: the caller must poll again.
    fn must_retry(&mut self, context: &Context<'_>) -> bool {
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
        if self.must_retry(context) {
            return Poll::Pending;
        }
        let count = out.len().min(BYTES_PER_CALL);
        Pin::new(&mut self.inner).poll_read(context, &mut out[..count])
    }
}

impl AsyncWrite for End {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.must_retry(context) {
            return Poll::Pending;
        }
        Pin::new(&mut self.inner).poll_write(context, &bytes[..bytes.len().min(BYTES_PER_CALL)])
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
    Certificates::load(files).expect("the files are valid")
}

/// Client and server end of one connection.
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
fn data_arrives_in_both_directions_up_to_the_close() {
    let (mut client, mut server) = connected();
    let (request, response) = (bytes(40_000, 1), bytes(200_000, 2));
    let client_side = async {
        client.write_all(&request).await?;
        let mut received = Vec::new();
        client.read_to_end(&mut received).await?;
        io::Result::Ok(received)
    };
    let server_side = async {
        let mut received = vec![0; request.len()];
        server.read_exact(&mut received).await?;
        server.write_all(&response).await?;
        server.close().await?;
        io::Result::Ok(received)
    };
    let (by_client, by_server) = block_on(zip(client_side, server_side));
    assert!(by_client.expect("the response") == response && by_server.expect("the request") == request);
    // After its close, the server can still read what the client sends.
    block_on(async {
        let (sent, received) = zip(client.write_all(b"and more"), async {
            let mut more = [0; 8];
            server.read_exact(&mut more).await.map(|()| more)
        })
        .await;
        sent.expect("sent");
        assert_eq!(&received.expect("received"), b"and more");
    });
}

#[test]
fn writes_reach_the_socket_without_a_flush() {
    let (mut client, mut server) = connected();
    let (written, read) = block_on(zip(client.write_all(b"a few"), async {
        let mut few = [0; 5];
        server.read_exact(&mut few).await.map(|()| few)
    }));
    written.expect("written");
    assert_eq!(&read.expect("read"), b"a few");
    assert_eq!(server.output.capacity() + client.output.capacity(), 0, "idle connections hold no buffer");
}

#[test]
fn a_truncated_stream_is_an_error() {
    let (mut client, mut server) = connected();
    block_on(async {
        let (sent, _) = zip(client.write_all(b"half"), server.read_exact(&mut [0; 4])).await;
        sent.expect("sent");
        client.socket.close().await.expect("closed");
        let error = server.read(&mut [0]).await.expect_err("the stream was truncated");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    });
}

#[test]
fn untrusted_certificates_get_no_connection() {
    let [one, other] = [certificates(), certificates()];
    let connect = |host: &'static str, certificates: &Certificates| {
        let (client, server) = End::pair();
        let config = certificates.client().expect("there are roots");
        let (client, _) = block_on(zip(
            async move {
                // Dropping the connection closes the pipe; the server would wait indefinitely otherwise.
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
    assert_eq!(connect("localhost", &other), Some(PeerTlsError::UnknownCa));
    assert_eq!(connect("other.example.org", &one), Some(PeerTlsError::OtherName));
}
