//! TLS over a stream. Whatever was written is handed over to the socket before it counts as written, so nobody has
//! to flush; idle connections hold no buffers but those of rustls.

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

/// The first byte of a client that speaks TLS: a record of the handshake (RFC 8446, 5.1).
const HANDSHAKE: u8 = 22;

/// A connection over another one.
pub struct Stream<S> {
    pub(super) socket: S,
    connection: Connection,
    /// Encrypted, and how much of it was handed over.
    pub(super) output: Vec<u8>,
    sent: usize,
    /// Bytes that were taken and whose writer waits until they are handed over.
    owed: usize,
    is_closed: bool,
    may_be_node: bool,
}

/// Why a client got no connection.
pub enum Refused<S> {
    /// It does not speak TLS. What it has sent is lost, but its first byte.
    NoTls(S, u8),
    /// It speaks TLS, and was told what was wrong, if it can be told.
    Failed(S, io::Error),
    /// It has gone.
    Gone(io::Error),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream<S> {
    /// Waits for a client to agree.
    ///
    /// # Errors
    /// When it does not.
    pub async fn accept(mut socket: S, context: &ServerContext) -> Result<Self, Refused<S>> {
        // By this the plain text of HTTP is told from TLS, before rustls answers it by an alert.
        let mut first = [0];
        socket.read_exact(&mut first).await.map_err(Refused::Gone)?;
        if first[0] != HANDSHAKE {
            return Err(Refused::NoTls(socket, first[0]));
        }
        let connection = ServerConnection::new(Arc::clone(&context.config));
        let mut stream = Self::new(socket, connection.map_err(|error| Refused::Gone(failure(error)))?.into());
        let taken = stream.connection.read_tls(&mut &first[..]);
        match taken.and(stream.handshake().await) {
            Ok(()) => {
                stream.may_be_node = context.may_be_node(stream.connection.peer_certificates());
                Ok(stream)
            }
            Err(error) => Err(Refused::Failed(stream.socket, error)),
        }
    }

    /// Agrees with a server, which must have a certificate for this name or address.
    ///
    /// # Errors
    /// When it has none, or something else fails. [`super::Distrust`] tells what it was.
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
            owed: 0,
            is_closed: false,
            may_be_node: false,
        }
    }

    /// Whether a client may be a node: its certificate is one of a node, where nodes must have one.
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

    /// Takes what has arrived; zero at its end.
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut arriving = Arriving { socket: &mut self.socket, context };
        let count = match self.connection.read_tls(&mut arriving) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            other => other?,
        };
        if let Err(error) = self.connection.process_new_packets() {
            // It is told what was wrong, if it takes it at once.
            let _ = self.poll_send(context);
            return Poll::Ready(Err(failure(error)));
        }
        Poll::Ready(Ok(count))
    }

    /// Hands over everything that is encrypted.
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
    /// Zero only at an end that the other side has told: one that was cut is an error.
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
                // An answer to the other side's new keys. It goes at the latest with what is written next.
                let _ = self.poll_send(context)?;
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    /// While it is pending, the same bytes must be given again, and more only after them.
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.owed == 0 {
            ready!(self.poll_send(context))?;
            self.owed = self.connection.writer().write(bytes)?;
        }
        ready!(self.poll_send(context))?;
        Poll::Ready(Ok(mem::take(&mut self.owed)))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.socket).poll_flush(context)
    }

    /// Says that nothing more comes; what the other side sends can still be read.
    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !mem::replace(&mut self.is_closed, true) {
            self.connection.send_close_notify();
        }
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.socket).poll_close(context)
    }
}

/// A socket as rustls reads it. While nothing arrives, the free part of rustls' buffer is wiped: records are decrypted
/// in it, and the last one would stay there for as long as the connection waits.
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
