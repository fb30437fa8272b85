//! In-memory pipe, for code that runs on any futures stream.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use futures_lite::{AsyncRead, AsyncWrite};

/// One direction of a pipe.
#[derive(Default)]
struct Channel {
    bytes: VecDeque<u8>,
    capacity: usize,
    has_ended: bool,
    has_no_reader: bool,
    never_closes: bool,
    was_reset: bool,
    wakers: Vec<Waker>,
}

impl Channel {
    fn changed(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }
}

pub(crate) struct Reader(Rc<RefCell<Channel>>);
pub(crate) struct Writer(Rc<RefCell<Channel>>);

#[allow(dead_code, reason = "not every test uses the other end")]
impl Reader {
    /// Whether the writer is closed, so that nothing more will be written.
    pub(crate) fn has_ended(&self) -> bool {
        self.0.borrow().has_ended
    }
}

#[allow(dead_code, reason = "not every test uses the other end")]
impl Writer {
    /// Whether the reader is gone, so that nothing more will be read.
    pub(crate) fn has_no_reader(&self) -> bool {
        self.0.borrow().has_no_reader
    }

    /// Fails the connection for the other end.
    pub(crate) fn reset(&self) {
        let mut channel = self.0.borrow_mut();
        channel.was_reset = true;
        channel.changed();
    }

    /// Makes closing never complete from now on, as if the other end read nothing.
    pub(crate) fn never_close(&self) {
        self.0.borrow_mut().never_closes = true;
    }
}

/// One end of a pipe with two directions.
pub(crate) struct End {
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
}

/// A pipe that holds `capacity` bytes in each direction.
pub(crate) fn pipe(capacity: usize) -> (End, End) {
    let channel = || Rc::new(RefCell::new(Channel { capacity, ..Channel::default() }));
    let (there, back) = (channel(), channel());
    let server = End { reader: Reader(Rc::clone(&there)), writer: Writer(Rc::clone(&back)) };
    (server, End { reader: Reader(back), writer: Writer(there) })
}

impl AsyncRead for Reader {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        assert!(!out.is_empty(), "an empty read would be mistaken for the end");
        let mut channel = self.0.borrow_mut();
        if channel.was_reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if channel.bytes.is_empty() && !channel.has_ended {
            channel.wakers.push(context.waker().clone());
            return Poll::Pending;
        }
        let count = out.len().min(channel.bytes.len());
        for (byte, slot) in channel.bytes.drain(..count).zip(out) {
            *slot = byte;
        }
        channel.changed();
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for Writer {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut channel = self.0.borrow_mut();
        if channel.has_no_reader || channel.has_ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let count = bytes.len().min(channel.capacity - channel.bytes.len());
        if count == 0 {
            channel.wakers.push(context.waker().clone());
            return Poll::Pending;
        }
        channel.bytes.extend(&bytes[..count]);
        channel.changed();
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut channel = self.0.borrow_mut();
        if channel.never_closes {
            return Poll::Pending;
        }
        channel.has_ended = true;
        channel.changed();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut channel = self.0.borrow_mut();
        channel.has_no_reader = true;
        channel.changed();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut channel = self.0.borrow_mut();
        channel.has_ended = true;
        channel.changed();
    }
}

impl AsyncRead for End {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.reader).poll_read(context, out)
    }
}

impl AsyncWrite for End {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_close(context)
    }
}
