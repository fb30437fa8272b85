//! The ring itself: what is to be done goes in, what was done comes out.

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

/// Requests to the kernel that fit one submission; more are submitted in between.
const ENTRIES: u32 = 1024;
/// Completions that fit; the kernel keeps more, at a price.
const COMPLETIONS: u32 = 4096;

/// What a request to the kernel was, told again when it completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Accept,
    Receive,
    Send,
    Cancel,
}

/// Which request a completion belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    pub(super) operation: Operation,
    /// The place of the connection, or of the listener.
    pub(super) index: u32,
    /// Which one of those that had this place, the lower 24 bits.
    pub(super) generation: u32,
}

/// What was done.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) tag: Tag,
    pub(super) result: io::Result<u32>,
    /// The buffer that was filled.
    pub(super) buffer: Option<u16>,
    /// More completions of the same request will come.
    pub(super) more: bool,
}

/// The submission and completion queues.
pub(super) struct Queue {
    ring: IoUring,
    /// What did not fit any more.
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
    /// # Errors
    /// When the kernel does not know what is needed: `IORING_SETUP_DEFER_TASKRUN` came with 6.1, later than
    /// everything else here.
    pub(super) fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(COMPLETIONS)
            .build(ENTRIES)?;
        Ok(Self { ring, waiting: VecDeque::new() })
    }

    pub(super) fn ring(&self) -> &IoUring {
        &self.ring
    }

    /// Accepts connections from now on, one completion for each.
    pub(super) fn accept(&mut self, tag: Tag, listener: BorrowedFd<'_>) {
        let flags = rustix::net::SocketFlags::CLOEXEC.bits().cast_signed();
        let entry = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).flags(flags).build();
        self.push(entry.user_data(tag.to_user_data()));
    }

    /// Receives from now on, one completion for each buffer that was filled.
    pub(super) fn receive(&mut self, tag: Tag, socket: BorrowedFd<'_>) {
        let entry = opcode::RecvMulti::new(Fd(socket.as_raw_fd()), GROUP).build();
        self.push(entry.user_data(tag.to_user_data()));
    }

    /// Sends all of the bytes; only an error makes it less.
    ///
    /// # Safety
    /// The bytes must stay where they are, unchanged, until the completion with this tag has come, or the ring
    /// is closed.
    #[expect(unsafe_code, reason = "the kernel reads the bytes later, which no lifetime can say")]
    pub(super) unsafe fn send(&mut self, tag: Tag, socket: RawFd, bytes: &[u8]) {
        let flags = SendFlags::NOSIGNAL.bits() | RecvFlags::WAITALL.bits();
        let len = u32::try_from(bytes.len()).expect("a send is at most some mebibytes");
        let entry = opcode::Send::new(Fd(socket), bytes.as_ptr(), len).flags(flags.cast_signed()).build();
        self.push(entry.user_data(tag.to_user_data()));
    }

    /// Ends a request early. It completes all the same, with an error or with what was done before.
    pub(super) fn cancel(&mut self, target: Tag) {
        let tag = Tag { operation: Operation::Cancel, ..target };
        let entry = opcode::AsyncCancel::new(target.to_user_data()).build();
        self.push(entry.user_data(tag.to_user_data()));
    }

    /// Whether something waits to be submitted, or to be taken out.
    pub(super) fn has_work(&mut self) -> bool {
        // What another processor has done is seen by the flag, if it was not told by the event descriptor.
        fence(Ordering::SeqCst);
        let submission = self.ring.submission();
        let is_pending = !submission.is_empty() || submission.taskrun() || submission.cq_overflow();
        drop(submission);
        is_pending || !self.waiting.is_empty() || !self.ring.completion().is_empty()
    }

    /// Submits what waits, and lets the kernel finish what can be finished; waits for nothing.
    #[expect(unsafe_code, reason = "the safe call does not always ask for completions, on which all depends")]
    pub(super) fn turn(&mut self) -> io::Result<()> {
        loop {
            self.fill();
            let len = u32::try_from(self.ring.submission().len()).expect("it has a capacity");
            // SAFETY: `len` entries are in the queue, and there is no further argument.
            let entered =
                unsafe { self.ring.submitter().enter::<()>(len, 0, EnterFlags::GETEVENTS.bits(), None) };
            match entered.map_err(|error| (error.raw_os_error(), error)) {
                // Busy: the completions are full, and have to be taken out first.
                Ok(_) | Err((Some(EBUSY), _)) => return Ok(()),
                Err((Some(EINTR), _)) => {}
                Err((_, error)) => return Err(error),
            }
        }
    }

    /// The next completion.
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

    /// Whether completions make the event descriptor readable.
    pub(super) fn set_signalling(&mut self, signals: bool) {
        let completions = self.ring.completion();
        match signals {
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
        // In order: a cancellation must come after what it cancels.
        if !self.waiting.is_empty() || !self.try_push(&entry) {
            self.waiting.push_back(entry);
        }
    }

    #[expect(unsafe_code, reason = "a request may name memory")]
    fn try_push(&mut self, entry: &Entry) -> bool {
        // SAFETY: only sends name memory, and who asks for one has promised to keep it.
        unsafe { self.ring.submission().push(entry).is_ok() }
    }
}

const EINTR: i32 = rustix::io::Errno::INTR.raw_os_error();
const EBUSY: i32 = rustix::io::Errno::BUSY.raw_os_error();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_survives_the_kernel() {
        for operation in [Operation::Accept, Operation::Receive, Operation::Send, Operation::Cancel] {
            for (index, generation) in [(0, 0), (u32::MAX, (1 << 24) - 1), (7, 1)] {
                let tag = Tag { operation, index, generation };
                assert_eq!(Tag::from_user_data(tag.to_user_data()), tag);
            }
        }
    }
}
