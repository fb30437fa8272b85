//! TLS over any stream. Data counts as written once it has been passed to the socket, so callers need not flush; idle
//! connections hold no buffers except those of rustls.

use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_lite::{AsyncRead, AsyncReadExt, AsyncWrite};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConnection};
use zeroize::Zeroize;

use super::server::ServerContext;

/// First byte of a TLS client: the content type of a handshake record (RFC 8446, 5.1).
const HANDSHAKE: u8 = 22;

/// TLS connection over a socket.
pub struct Stream<S> {
    pub(super) socket: S,
    connection: Connection,
    /// Encrypted output, of which the first `sent` bytes have been passed to the socket.
    pub(super) output: Vec<u8>,
    sent: usize,
    /// Plaintext bytes of a pending write: encrypted, but not passed to the socket yet.
    pending: usize,
    is_closed: bool,
    may_be_node: bool,
}

/// Reason why a TLS connection was not accepted.
pub enum Refused<S> {
    /// The client does not use TLS. The first byte that it sent has been read from the socket.
    NoTls(S, u8),
    /// The handshake failed. The client was sent an alert, if possible.
    Failed(S, io::Error),
    /// The client has disconnected.
    Gone(io::Error),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream<S> {
    /// Accepts a client: completes the handshake.
    ///
    /// # Errors
    /// Returns [`Refused`] if the handshake fails.
    pub async fn accept(mut socket: S, context: &ServerContext) -> Result<Self, Refused<S>> {
        // Distinguishes plain HTTP from TLS, before rustls responds to it with an alert.
        let mut first = [0];
        socket.read_exact(&mut first).await.map_err(Refused::Gone)?;
        if first[0] != HANDSHAKE {
            return Err(Refused::NoTls(socket, first[0]));
        }
        let connection = ServerConnection::new(Arc::clone(&context.config));
        let mut stream = Self::new(socket, connection.map_err(|error| Refused::Gone(failure(error)))?.into());
        let fed = stream.connection.read_tls(&mut &first[..]);
        match fed.and(stream.handshake().await) {
            Ok(()) => {
                stream.may_be_node = context.may_be_node(stream.connection.peer_certificates());
                Ok(stream)
            }
            Err(error) => Err(Refused::Failed(stream.socket, error)),
        }
    }

    /// Connects to a server, whose certificate must be valid for this name or address.
    ///
    /// # Errors
    /// Fails if the certificate is not trusted or the handshake fails. [`super::PeerTlsError`] classifies the error.
    pub async fn connect(socket: S, config: Arc<ClientConfig>, host: &str) -> io::Result<Self> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let connection = ClientConnection::new(config, name).map_err(failure)?;
        let mut stream = Self::new(socket, connection.into());
        stream.handshake().await?;
        Ok(stream)
    }

    fn new(socket: S, connection: Connection) -> Self {
        Self {
            socket,
            connection,
            output: Vec::new(),
            sent: 0,
            pending: 0,
            is_closed: false,
            may_be_node: false,
        }
    }

    /// Returns whether the client may be a node: it has presented a node certificate, or nodes need none.
    pub fn may_be_node(&self) -> bool {
        self.may_be_node
    }

    async fn handshake(&mut self) -> io::Result<()> {
        poll_fn(|context| {
            loop {
                ready!(self.poll_send(context))?;
                if !self.connection.is_handshaking() {
                    return Poll::Ready(Ok(()));
                }
                if ready!(self.poll_receive(context))? == 0 {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
            }
        })
        .await
    }

    /// Reads and processes what has arrived; returns zero at the end of the stream.
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut arriving = Arriving { socket: &mut self.socket, context };
        let count = match self.connection.read_tls(&mut arriving) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            other => other?,
        };
        if let Err(error) = self.connection.process_new_packets() {
            // Sends the alert, if the socket is ready for it.
            let _ = self.poll_send(context);
            return Poll::Ready(Err(failure(error)));
        }
        Poll::Ready(Ok(count))
    }

    /// Passes all encrypted output to the socket.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while self.sent < self.output.len() {
                let rest = &self.output[self.sent..];
                match ready!(Pin::new(&mut self.socket).poll_write(context, rest))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    count => self.sent += count,
                }
            }
            (self.output, self.sent) = (Vec::new(), 0);
            if !self.connection.wants_write() {
                return Poll::Ready(Ok(()));
            }
            while self.connection.wants_write() {
                self.connection.write_tls(&mut self.output)?;
            }
        }
    }
}

fn failure(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    /// Reads plaintext. Returns zero only after the peer's `close_notify`; a truncated stream is an error.
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.connection.reader().read(out) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read),
            }
            ready!(self.poll_receive(context))?;
            if self.connection.wants_write() {
                // A reply to a key update of the other side. It is sent with the next write at the latest.
                let _ = self.poll_send(context)?;
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    /// Writes plaintext. After `Pending`, the caller must pass the same bytes again; more may follow after them.
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.pending == 0 {
            ready!(self.poll_send(context))?;
            self.pending = self.connection.writer().write(bytes)?;
        }
        ready!(self.poll_send(context))?;
        Poll::Ready(Ok(mem::take(&mut self.pending)))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.socket).poll_flush(context)
    }

    /// Sends `close_notify`; what the other side sends can still be read.
    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !mem::replace(&mut self.is_closed, true) {
            self.connection.send_close_notify();
        }
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.socket).poll_close(context)
    }
}

/// Adapter through which rustls reads the socket. If nothing has arrived, the free part of rustls' buffer is wiped:
/// records are decrypted in it, and the last one would stay there for as long as the connection is idle.
struct Arriving<'a, 'b, S> {
    socket: &'a mut S,
    context: &'a mut Context<'b>,
}

impl<S: AsyncRead + Unpin> Read for Arriving<'_, '_, S> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match Pin::new(&mut *self.socket).poll_read(self.context, out) {
            Poll::Ready(read) => read,
            Poll::Pending => {
                out.zeroize();
                Err(io::ErrorKind::WouldBlock.into())
            }
        }
    }
}
