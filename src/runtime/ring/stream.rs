//! Connection of the ring as an asynchronous stream.

use std::io;
use std::net::{IpAddr, Shutdown};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use futures_lite::{AsyncRead, AsyncWrite};
use socket2::SockRef;

use super::Ring;

/// Stream of one connection; dropping it closes the connection once pending data is sent.
pub(in crate::runtime) struct RingStream {
    ring: Rc<Ring>,
    index: u32,
}

impl RingStream {
    pub(super) fn new(ring: Rc<Ring>, socket: OwnedFd) -> Self {
        let index = ring.state.borrow_mut().add(socket);
        Self { ring, index }
    }

    /// Returns the client's address.
    pub(in crate::runtime) fn peer_address(&self) -> Option<IpAddr> {
        let state = self.ring.state.borrow();
        let descriptor = state.sockets[self.index as usize].descriptor().as_fd();
        Some(SockRef::from(&descriptor).peer_addr().ok()?.as_socket()?.ip())
    }
}

impl AsyncRead for RingStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        self.ring.state.borrow_mut().poll_read(self.index, context, out)
    }
}

impl AsyncWrite for RingStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.ring.state.borrow_mut().poll_write(self.index, context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ring.state.borrow_mut().poll_sent(self.index, context)
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.ring.state.borrow_mut();
        match state.poll_sent(self.index, context) {
            Poll::Ready(Ok(())) => {
                let socket = &state.sockets[self.index as usize];
                Poll::Ready(SockRef::from(&socket.descriptor().as_fd()).shutdown(Shutdown::Write))
            }
            other => other,
        }
    }
}

impl Drop for RingStream {
    fn drop(&mut self) {
        self.ring.state.borrow_mut().abandon(self.index);
    }
}
