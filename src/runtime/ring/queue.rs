//! Submission and completion queues of the ring.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{Ordering, fence};

use io_uring::cqueue::{self, Entry as Completion};
use io_uring::squeue::Entry;
use io_uring::types::Fd;
use io_uring::{EnterFlags, IoUring, opcode};
use rustix::net::{RecvFlags, SendFlags};

use super::buffers::GROUP;
use crate::limits::{RING_COMPLETIONS, RING_ENTRIES};

/// Kind of a request to the kernel, returned with its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Accept,
    Receive,
    Send,
    Cancel,
}

/// Identifier of a request, returned with its completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    pub(super) operation: Operation,
    /// Slot of the connection, or index of the listener.
    pub(super) index: u32,
    /// Generation of the connection in its slot, the lower 24 bits.
    pub(super) generation: u32,
}

/// Completion of a request.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) tag: Tag,
    pub(super) result: io::Result<u32>,
    /// Identifier of the filled buffer, if there is one.
    pub(super) buffer: Option<u16>,
    /// Whether further completions of the same request will follow.
    pub(super) more: bool,
}

/// The submission and completion queues.
pub(super) struct Queue {
    ring: IoUring,
    /// Requests that did not fit into the submission queue.
    waiting: VecDeque<Entry>,
}

const GENERATION_BITS: u32 = 24;

impl Tag {
    fn to_user_data(self) -> u64 {
        let operation = match self.operation {
            Operation::Accept => 0,
            Operation::Receive => 1,
            Operation::Send => 2,
            Operation::Cancel => 3,
        };
        let generation = u64::from(self.generation & ((1 << GENERATION_BITS) - 1));
        operation << 56 | generation << 32 | u64::from(self.index)
    }

    fn from_user_data(data: u64) -> Self {
        let operation = match data >> 56 {
            0 => Operation::Accept,
            1 => Operation::Receive,
            2 => Operation::Send,
            _ => Operation::Cancel,
        };
        let low = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or_default();
        Self { operation, index: low(data), generation: low(data >> 32) & ((1 << GENERATION_BITS) - 1) }
    }
}

impl Queue {
    /// Creates the queues.
    ///
    /// # Errors
    /// Fails if the kernel lacks a required feature: `IORING_SETUP_DEFER_TASKRUN`, the most recent one, needs 6.1.
    pub(super) fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(RING_COMPLETIONS)
            .build(RING_ENTRIES)?;
        Ok(Self { ring, waiting: VecDeque::new() })
    }

    pub(super) fn ring(&self) -> &IoUring {
        &self.ring
    }

    /// Starts to accept connections (multishot), with one completion per connection.
    pub(super) fn accept(&mut self, tag: Tag, listener: BorrowedFd<'_>) {
        let flags = rustix::net::SocketFlags::CLOEXEC.bits().cast_signed();
        let entry = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).flags(flags).build();
        self.push(entry.user_data(tag.to_user_data()));
    }

    /// Starts to receive (multishot), with one completion per filled buffer.
    pub(super) fn receive(&mut self, tag: Tag, socket: BorrowedFd<'_>) {
        let entry = opcode::RecvMulti::new(Fd(socket.as_raw_fd()), GROUP).build();
        self.push(entry.user_data(tag.to_user_data()));
    }

    /// Sends all bytes; only an error makes it fewer.
    ///
    /// # Safety
    /// The bytes must stay in place and unchanged until the completion with this tag arrives, or the ring is closed.
    #[expect(unsafe_code, reason = "the kernel reads the bytes later, which no lifetime can express")]
    pub(super) unsafe fn send(&mut self, tag: Tag, socket: RawFd, bytes: &[u8]) {
        let flags = SendFlags::NOSIGNAL.bits() | RecvFlags::WAITALL.bits();
        let len = u32::try_from(bytes.len()).expect("a send is at most a few mebibytes");
        let entry = opcode::Send::new(Fd(socket), bytes.as_ptr(), len).flags(flags.cast_signed()).build();
        self.push(entry.user_data(tag.to_user_data()));
    }

    /// Cancels a request. It still completes, with an error or with the result so far.
    pub(super) fn cancel(&mut self, target: Tag) {
        let tag = Tag { operation: Operation::Cancel, ..target };
        let entry = opcode::AsyncCancel::new(target.to_user_data()).build();
        self.push(entry.user_data(tag.to_user_data()));
    }

    /// Returns whether a request waits for submission, or a completion waits to be consumed.
    pub(super) fn has_work(&mut self) -> bool {
        // Makes completions posted by another core visible in the flags, if the eventfd has not signalled them.
        fence(Ordering::SeqCst);
        let submission = self.ring.submission();
        let is_pending = !submission.is_empty() || submission.taskrun() || submission.cq_overflow();
        drop(submission);
        is_pending || !self.waiting.is_empty() || !self.ring.completion().is_empty()
    }

    /// Submits waiting requests, and lets the kernel complete the ones that are ready; does not wait.
    #[expect(
        unsafe_code,
        reason = "the safe call does not always set GETEVENTS, which completions depend on"
    )]
    pub(super) fn turn(&mut self) -> io::Result<()> {
        loop {
            self.fill();
            let len = u32::try_from(self.ring.submission().len()).expect("the queue has a small capacity");
            // SAFETY: the queue has `len` entries, and there is no further argument.
            let result =
                unsafe { self.ring.submitter().enter::<()>(len, 0, EnterFlags::GETEVENTS.bits(), None) };
            match result.map_err(|error| (error.raw_os_error(), error)) {
                // EBUSY: the completion queue is full, and has to be drained first.
                Ok(_) | Err((Some(EBUSY), _)) => return Ok(()),
                Err((Some(EINTR), _)) => {}
                Err((_, error)) => return Err(error),
            }
        }
    }

    /// Returns the next completion.
    pub(super) fn next(&mut self) -> Option<Done> {
        let completion: Completion = self.ring.completion().next()?;
        let result = match completion.result() {
            error if error < 0 => Err(io::Error::from_raw_os_error(-error)),
            result => Ok(result.unsigned_abs()),
        };
        let flags = completion.flags();
        Some(Done {
            tag: Tag::from_user_data(completion.user_data()),
            result,
            buffer: cqueue::buffer_select(flags),
            more: cqueue::more(flags),
        })
    }

    /// Sets whether completions signal the eventfd.
    pub(super) fn set_signalling(&mut self, is_enabled: bool) {
        let completions = self.ring.completion();
        match is_enabled {
            true => completions.enable_eventfd(),
            false => completions.disable_eventfd(),
        }
    }

    fn fill(&mut self) {
        while let Some(entry) = self.waiting.pop_front() {
            if !self.try_push(&entry) {
                self.waiting.push_front(entry);
                break;
            }
        }
    }

    fn push(&mut self, entry: Entry) {
        // Keeps the order: a cancellation must follow the request that it cancels.
        if !self.waiting.is_empty() || !self.try_push(&entry) {
            self.waiting.push_back(entry);
        }
    }

    #[expect(unsafe_code, reason = "a request may point to memory")]
    fn try_push(&mut self, entry: &Entry) -> bool {
        // SAFETY: only sends point to memory, and the caller of `send` guarantees that it stays valid.
        unsafe { self.ring.submission().push(entry).is_ok() }
    }
}

const EINTR: i32 = rustix::io::Errno::INTR.raw_os_error();
const EBUSY: i32 = rustix::io::Errno::BUSY.raw_os_error();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_round_trip_through_user_data() {
        for operation in [Operation::Accept, Operation::Receive, Operation::Send, Operation::Cancel] {
            for (index, generation) in [(0, 0), (u32::MAX, (1 << 24) - 1), (7, 1)] {
                let tag = Tag { operation, index, generation };
                assert_eq!(Tag::from_user_data(tag.to_user_data()), tag);
            }
        }
    }
}
