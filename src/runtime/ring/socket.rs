//! State of one connection of the ring.

use std::io::{self, Write as _};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use rustix::io::Errno;
use zeroize::{Zeroize, Zeroizing};

use super::buffers::{Buffers, Filled};
use super::queue::{Operation, Tag};
use super::{State, WRITE_STALL};
use crate::limits::{
    SEND_BYTES_MAX, SOCKET_INPUT_BYTES_MAX, SOCKET_OUTPUT_KEPT_BYTES_MAX, SPARE_BUFFERS_COUNT_MAX,
    WRITE_BEHIND_BYTES_MAX,
};

/// State of the receive request of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receiving {
    No,
    Yes,
    /// Cancelled, but not completed yet.
    Ending,
}

/// Connection in a slot, which is reused once no request of the connection is in the kernel.
pub(super) struct Socket {
    /// Generation of the connection in its slot.
    pub(super) generation: u32,
    descriptor: Option<OwnedFd>,
    receiving: Receiving,
    /// Data that arrived while a reader waited, still in the kernel's buffer, and the number of bytes read.
    held: Option<(Filled, usize)>,
    /// Data that arrived while no reader waited.
    input: Zeroizing<Vec<u8>>,
    /// Number of bytes of `input` that were read.
    input_read: usize,
    end: Option<Result<(), Errno>>,
    reader: Option<Waker>,
    pub(super) is_sending: bool,
    /// Data that is being sent, which must stay in place until the send completes.
    pub(super) output: Vec<u8>,
    /// Number of bytes of `output` that were sent.
    sent: usize,
    /// Bytes of a write that completes once they are sent.
    owed: usize,
    send_error: Option<Errno>,
    writer: Option<Waker>,
    is_dropped: bool,
}

impl Socket {
    fn new(generation: u32, descriptor: OwnedFd) -> Self {
        Self {
            generation,
            descriptor: Some(descriptor),
            receiving: Receiving::No,
            held: None,
            input: Zeroizing::default(),
            input_read: 0,
            end: None,
            reader: None,
            is_sending: false,
            output: Vec::new(),
            sent: 0,
            owed: 0,
            send_error: None,
            writer: None,
            is_dropped: false,
        }
    }

    /// Returns the file descriptor, which must not be closed yet.
    pub(super) fn descriptor(&self) -> &OwnedFd {
        self.descriptor.as_ref().expect("a connection is closed only after it is dropped")
    }

    /// Aborts the process on a completion for an earlier connection in this slot. A slot is reused only if no request
    /// is pending, so the bookkeeping is corrupt then, and the next bytes could be those of another client.
    #[inline]
    fn check_generation(&self, tag: Tag) {
        if self.generation != tag.generation {
            abort_on_foreign_completion(self.generation, tag);
        }
    }

    fn has_input(&self) -> bool {
        self.held.is_some() || self.input_read < self.input.len() || self.end.is_some()
    }

    fn read(&mut self, buffers: &mut Buffers, out: &mut [u8]) -> Option<io::Result<usize>> {
        if let Some((filled, read)) = &mut self.held {
            let rest = &buffers.bytes(filled)[*read..];
            let count = rest.len().min(out.len());
            out[..count].copy_from_slice(&rest[..count]);
            *read += count;
            if count == rest.len()
                && let Some((filled, _)) = self.held.take()
            {
                buffers.give_back(filled);
            }
            return Some(Ok(count));
        }
        if self.input_read < self.input.len() {
            let rest = &self.input[self.input_read..];
            let count = rest.len().min(out.len());
            out[..count].copy_from_slice(&rest[..count]);
            self.input_read += count;
            if self.input_read == self.input.len() {
                // The buffer is rarely needed, and idle connections should hold no memory.
                (self.input, self.input_read) = (Zeroizing::default(), 0);
            }
            return Some(Ok(count));
        }
        self.end.map(|end| end.map(|()| 0).map_err(io::Error::from))
    }

    /// Appends received data to `input`. A larger buffer gets only the unread bytes, and the old one is wiped.
    fn append(&mut self, bytes: &[u8]) {
        if self.input.len() + bytes.len() > self.input.capacity() {
            let unread = &self.input[self.input_read..];
            let mut larger =
                Zeroizing::new(Vec::with_capacity((unread.len() + bytes.len()).next_power_of_two()));
            larger.extend_from_slice(unread);
            (self.input, self.input_read) = (larger, 0);
        }
        self.input.extend_from_slice(bytes);
    }

    /// Copies the unread data of the kernel's buffer, and returns the buffer.
    fn release(&mut self, buffers: &mut Buffers) {
        if let Some((filled, read)) = self.held.take() {
            let later = mem::take(&mut self.input);
            let later = &later[mem::take(&mut self.input_read)..];
            self.append(&buffers.bytes(&filled)[read..]);
            self.append(later);
            buffers.give_back(filled);
        }
    }
}

/// Aborts without unwinding, which would run code of the corrupt executor. Bypasses the log, whose thread may never
/// write the line.
#[cold]
fn abort_on_foreign_completion(generation: u32, tag: Tag) -> ! {
    let line = format!(
        "opensecureconf: fatal: io_uring completion {tag:?} for a connection of generation {generation}\n"
    );
    io::stderr().write_all(line.as_bytes()).ok();
    process::abort()
}

impl State {
    pub(super) fn add(&mut self, descriptor: OwnedFd) -> u32 {
        match self.free.pop() {
            Some(index) => {
                let generation = self.sockets[index as usize].generation.wrapping_add(1) & 0x00ff_ffff;
                self.sockets[index as usize] = Socket::new(generation, descriptor);
                index
            }
            None => {
                self.sockets.push(Socket::new(0, descriptor));
                u32::try_from(self.sockets.len() - 1).expect("there are fewer file descriptors")
            }
        }
    }

    fn tag(&self, operation: Operation, index: u32) -> Tag {
        Tag { operation, index, generation: self.sockets[index as usize].generation }
    }

    pub(super) fn poll_read(
        &mut self,
        index: u32,
        context: &Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let socket = &mut self.sockets[index as usize];
        if let Some(read) = socket.read(&mut self.buffers, out) {
            return Poll::Ready(read);
        }
        if !socket.reader.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            socket.reader = Some(context.waker().clone());
        }
        self.receive_if_wanted(index);
        Poll::Pending
    }

    #[expect(unsafe_code, reason = "the kernel reads the bytes later")]
    pub(super) fn poll_write(
        &mut self,
        index: u32,
        context: &Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let tag = self.tag(Operation::Send, index);
        let socket = &mut self.sockets[index as usize];
        if let Some(error) = socket.send_error {
            return Poll::Ready(Err(error.into()));
        }
        if socket.is_sending {
            socket.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let owed = mem::take(&mut socket.owed);
        if owed > 0 {
            return Poll::Ready(Ok(owed));
        }
        let count = bytes.len().min(SEND_BYTES_MAX);
        if count == 0 {
            return Poll::Ready(Ok(0));
        }
        socket.sent = 0;
        socket.output = self.spare_outputs.pop().unwrap_or_default();
        socket.output.extend_from_slice(&bytes[..count]);
        socket.is_sending = true;
        let is_behind = count <= WRITE_BEHIND_BYTES_MAX;
        if !is_behind {
            socket.owed = count;
            socket.writer = Some(context.waker().clone());
        }
        // SAFETY: no code changes `output` while `is_sending`, which only the completion resets; the socket keeps its
        // slot until then, and if the ring is dropped earlier, the bytes are leaked.
        unsafe { self.queue.send(tag, socket.descriptor().as_raw_fd(), &socket.output) };
        self.pending_count += 1;
        self.call_driver();
        if is_behind { Poll::Ready(Ok(count)) } else { Poll::Pending }
    }

    /// Polls until all data is sent.
    pub(super) fn poll_sent(&mut self, index: u32, context: &Context<'_>) -> Poll<io::Result<()>> {
        let socket = &mut self.sockets[index as usize];
        if socket.is_sending {
            socket.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(socket.send_error.map_or(Ok(()), |error| Err(error.into())))
    }

    /// Closes a connection whose stream was dropped. Data that was already written is still sent, within a deadline.
    pub(super) fn abandon(&mut self, index: u32) {
        let (receive, send) = (self.tag(Operation::Receive, index), self.tag(Operation::Send, index));
        let socket = &mut self.sockets[index as usize];
        socket.is_dropped = true;
        (socket.reader, socket.writer) = (None, None);
        (socket.input, socket.input_read) = (Zeroizing::default(), 0);
        if let Some((filled, _)) = socket.held.take() {
            self.buffers.give_back(filled);
        }
        if socket.receiving == Receiving::Yes {
            socket.receiving = Receiving::Ending;
            self.queue.cancel(receive);
            self.call_driver();
        }
        if self.sockets[index as usize].is_sending {
            self.lingering.push((send, Instant::now() + WRITE_STALL));
        }
        self.close_if_done(index);
    }

    /// Returns all buffers to the kernel, and restarts the receives that lacked one: connections that are slow to read
    /// must not starve the rest.
    pub(super) fn feed_starved(&mut self) {
        if self.starved.is_empty() {
            return;
        }
        for socket in &mut self.sockets {
            socket.release(&mut self.buffers);
        }
        for index in mem::take(&mut self.starved) {
            self.receive_if_wanted(index);
        }
    }

    fn close_if_done(&mut self, index: u32) {
        let socket = &mut self.sockets[index as usize];
        let is_done = socket.is_dropped && !socket.is_sending && socket.receiving == Receiving::No;
        if is_done && socket.descriptor.take().is_some() {
            self.free.push(index);
        }
    }

    /// Starts to receive if a reader waits for data.
    pub(super) fn receive_if_wanted(&mut self, index: u32) {
        let tag = self.tag(Operation::Receive, index);
        let socket = &mut self.sockets[index as usize];
        let is_wanted = socket.reader.is_some() && !socket.is_dropped && !socket.has_input();
        if is_wanted && socket.receiving == Receiving::No {
            socket.receiving = Receiving::Yes;
            self.queue.receive(tag, socket.descriptor().as_fd());
            self.pending_count += 1;
            self.call_driver();
        }
    }

    pub(super) fn received(&mut self, tag: Tag, result: io::Result<u32>, buffer: Option<u16>, more: bool) {
        let index = tag.index;
        let socket = &mut self.sockets[index as usize];
        socket.check_generation(tag);
        if !more {
            socket.receiving = Receiving::No;
        }
        let errno = result.as_ref().err().and_then(Errno::from_io_error);
        match (result, buffer) {
            (Ok(count), Some(id)) if count > 0 => {
                let filled = Buffers::filled(id, count as usize);
                let is_awaited = socket.reader.is_some() && !socket.has_input();
                if is_awaited && !socket.is_dropped {
                    socket.held = Some((filled, 0));
                } else {
                    if !socket.is_dropped {
                        socket.append(self.buffers.bytes(&filled));
                    }
                    self.buffers.give_back(filled);
                    if socket.input.len() - socket.input_read >= SOCKET_INPUT_BYTES_MAX
                        && socket.receiving == Receiving::Yes
                    {
                        socket.receiving = Receiving::Ending;
                        self.queue.cancel(tag);
                    }
                }
            }
            (Ok(_), buffer) => {
                if let Some(id) = buffer {
                    self.buffers.give_back(Buffers::filled(id, 0));
                }
                socket.end = Some(Ok(()));
            }
            (Err(_), _) => match errno {
                // No buffer was free.
                Some(Errno::NOBUFS) => self.starved.push(index),
                // A reader may be waiting again since the cancellation.
                Some(Errno::CANCELED) => self.receive_if_wanted(index),
                errno => socket.end = Some(Err(errno.unwrap_or(Errno::IO))),
            },
        }
        let socket = &mut self.sockets[index as usize];
        if socket.has_input() {
            self.woken.extend(socket.reader.take());
        }
        self.close_if_done(index);
    }

    #[expect(unsafe_code, reason = "the kernel reads the bytes later")]
    pub(super) fn sent(&mut self, tag: Tag, result: io::Result<u32>) {
        let socket = &mut self.sockets[tag.index as usize];
        socket.check_generation(tag);
        let count = match &result {
            Ok(count) => *count as usize,
            Err(error) => {
                socket.send_error = Some(Errno::from_io_error(error).unwrap_or(Errno::IO));
                0
            }
        };
        if result.is_ok() && count == 0 {
            socket.send_error = Some(Errno::PIPE);
        }
        socket.sent += count;
        if count > 0 && socket.sent < socket.output.len() && !socket.is_dropped {
            // SAFETY: as in `poll_write`; `is_sending` stays set.
            unsafe { self.queue.send(tag, socket.descriptor().as_raw_fd(), &socket.output[socket.sent..]) };
            self.pending_count += 1;
            return;
        }
        socket.is_sending = false;
        // Responses contain values.
        socket.output.as_mut_slice().zeroize();
        let mut output = mem::take(&mut socket.output);
        output.clear();
        if output.capacity() <= SOCKET_OUTPUT_KEPT_BYTES_MAX
            && self.spare_outputs.len() < SPARE_BUFFERS_COUNT_MAX
        {
            self.spare_outputs.push(output);
        }
        self.woken.extend(socket.writer.take());
        self.close_if_done(tag.index);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixStream;
    use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
    use std::process::Command;
    use std::rc::Rc;

    use super::super::Ring;
    use super::super::queue::Done;
    use super::*;

    fn ring() -> Rc<Ring> {
        Ring::new(Vec::new()).expect("the kernel supports the ring")
    }

    fn connect(ring: &Ring) -> (u32, UnixStream) {
        let (server_end, client) = UnixStream::pair().expect("a pair");
        (ring.state.borrow_mut().add(server_end.into()), client)
    }

    fn read(ring: &Ring, index: u32, out: &mut [u8]) -> Option<usize> {
        let read = ring.state.borrow_mut().poll_read(index, &Context::from_waker(Waker::noop()), out);
        match read {
            Poll::Ready(read) => Some(read.expect("no error")),
            Poll::Pending => None,
        }
    }

    fn byte_at(at: usize) -> u8 {
        u8::try_from(at % 251).expect("small")
    }

    fn turn(ring: &Ring) {
        // Bounded, because a starved connection always leaves work.
        for _ in 0..100 {
            if !ring.turn().expect("submitted") {
                break;
            }
        }
    }

    #[test]
    fn slow_readers_do_not_starve_other_connections() {
        let ring = ring();
        let mut connections: Vec<_> = (0..1500_u32).map(|_| connect(&ring)).collect();
        let sent: Vec<u8> = (0..2000).map(byte_at).collect();
        for (index, client) in &mut connections {
            assert_eq!(read(&ring, *index, &mut [0; 100]), None);
            client.write_all(&sent).expect("sent");
        }
        let mut out = vec![[0; 100]; connections.len()];
        let mut waiting: Vec<usize> = (0..connections.len()).collect();
        for _ in 0..10 {
            turn(&ring);
            // Each reads only a part of the data that has arrived.
            waiting.retain(|&at| read(&ring, connections[at].0, &mut out[at]).is_none());
        }
        assert_eq!(waiting.len(), 0, "starved connections");
        for ((index, client), first) in connections.iter_mut().zip(out) {
            client.write_all(b"more").expect("sent");
            let mut all = first.to_vec();
            for _ in 0..20 {
                let mut out = [0; 777];
                match read(&ring, *index, &mut out) {
                    Some(count) => all.extend_from_slice(&out[..count]),
                    None => turn(&ring),
                }
            }
            assert_eq!(all.len(), sent.len() + 4);
            assert!(all.starts_with(&sent) && all.ends_with(b"more"), "in order");
        }
    }

    #[test]
    fn read_data_is_released_while_more_arrives() {
        let ring = ring();
        let (index, mut client) = connect(&ring);
        let (mut sent, mut taken) = (0_usize, 0_usize);
        // At least 20 KB always stay unread, so that the buffer is never released as fully read.
        while sent < 4 * 1024 * 1024 {
            while sent - taken < 30_000 {
                let bytes: Vec<u8> = (sent..sent + 1000).map(byte_at).collect();
                client.write_all(&bytes).expect("sent");
                sent += bytes.len();
            }
            turn(&ring);
            let mut out = [0; 1500];
            while sent - taken > 20_000 {
                let Some(count) = read(&ring, index, &mut out) else { break };
                assert!((taken..taken + count).zip(out).all(|(at, byte)| byte == byte_at(at)));
                taken += count;
            }
            let held = ring.state.borrow().sockets[index as usize].input.capacity();
            assert!(held <= 2 * SOCKET_INPUT_BYTES_MAX, "{held} bytes held for {} unread ones", sent - taken);
        }
    }

    /// Runs in a child process, which it aborts.
    #[test]
    fn a_completion_of_an_earlier_connection_aborts_the_process() {
        const CHILD: &str = "child-of-the-test";
        let command_line = fs::read_to_string("/proc/self/cmdline").expect("/proc is mounted");
        if command_line.starts_with(CHILD) {
            let ring = ring();
            let (index, _client) = connect(&ring);
            let mut state = ring.state.borrow_mut();
            state.pending_count = 1;
            let tag = Tag { operation: Operation::Receive, index, generation: 1 };
            state.complete(Done { tag, result: Ok(0), buffer: None, more: false });
            return;
        }
        let test = "runtime::ring::socket::tests::a_completion_of_an_earlier_connection_aborts_the_process";
        let mut child = Command::new("/proc/self/exe");
        let output =
            child.arg0(CHILD).args(["--exact", test, "--nocapture"]).output().expect("the child starts");
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(6), "{}: {message}", output.status);
        assert!(message.contains("io_uring completion"), "{message}");
    }
}
