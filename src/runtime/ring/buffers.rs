//! Receive buffers provided to the kernel, which fills one per received segment. A buffer is returned once its data has
//! been read, so an idle connection holds none.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;
use zeroize::Zeroize;

use crate::limits::{RING_BUFFER_BYTES, RING_BUFFERS_COUNT};

/// Buffer group of a ring, which has only this one.
pub(super) const GROUP: u16 = 0;

/// Buffers, and the ring of those that the kernel may fill.
#[derive(Debug)]
pub(super) struct Buffers {
    entries: NonNull<BufRingEntry>,
    memory: NonNull<u8>,
    tail: u16,
    is_leaked: bool,
}

/// Filled buffer, which the kernel does not access until it is returned.
#[derive(Debug)]
pub(super) struct Filled {
    id: u16,
    len: usize,
}

fn entries_layout() -> Layout {
    // The kernel requires whole pages.
    Layout::array::<BufRingEntry>(usize::from(RING_BUFFERS_COUNT))
        .and_then(|layout| layout.align_to(4096))
        .expect("small")
}

fn memory_layout() -> Layout {
    Layout::array::<u8>(usize::from(RING_BUFFERS_COUNT) * RING_BUFFER_BYTES as usize).expect("small")
}

#[expect(unsafe_code, reason = "memory is shared with the kernel, which the compiler cannot know")]
impl Buffers {
    /// Allocates the buffers and provides all of them to the kernel.
    ///
    /// # Errors
    /// Fails if the kernel does not support buffer rings (before 5.19).
    pub(super) fn register(ring: &IoUring) -> io::Result<Self> {
        let allocate = |layout: Layout| {
            // SAFETY: neither layout has size zero.
            NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout))
        };
        let entries = allocate(entries_layout()).cast();
        let mut buffers = Self { entries, memory: allocate(memory_layout()), tail: 0, is_leaked: false };
        // SAFETY: the buffer ring has RING_BUFFERS_COUNT entries, is page-aligned, and is freed only after the io_uring instance
        // that it is registered with has been closed (see `Drop`).
        unsafe {
            ring.submitter().register_buf_ring_with_flags(
                entries.as_ptr() as u64,
                RING_BUFFERS_COUNT,
                GROUP,
                0,
            )?
        };
        for id in 0..RING_BUFFERS_COUNT {
            buffers.offer(id);
        }
        Ok(buffers)
    }

    /// Returns the buffer that a completion names as filled.
    pub(super) fn filled(id: u16, len: usize) -> Filled {
        assert!(
            id < RING_BUFFERS_COUNT && len <= RING_BUFFER_BYTES as usize,
            "the kernel returns a buffer that it was given"
        );
        Filled { id, len }
    }

    /// Returns the data in a buffer.
    pub(super) fn bytes<'a>(&'a self, filled: &'a Filled) -> &'a [u8] {
        // SAFETY: the kernel writes to a buffer only between `offer` and the completion that names it, from which
        // `filled` was created; the range is within the memory.
        unsafe { slice::from_raw_parts(self.start_of(filled.id), filled.len) }
    }

    /// Never frees the memory, because the kernel may still write to it.
    pub(super) fn leak(&mut self) {
        self.is_leaked = true;
    }

    /// Wipes a buffer, since requests contain user keys, and returns it to the kernel.
    pub(super) fn give_back(&mut self, filled: Filled) {
        // SAFETY: as in `bytes`; `filled` is consumed, so no reference to the data remains.
        unsafe { slice::from_raw_parts_mut(self.start_of(filled.id).cast_mut(), filled.len) }.zeroize();
        self.offer(filled.id);
    }

    fn start_of(&self, id: u16) -> *const u8 {
        // SAFETY: `id` is below RING_BUFFERS_COUNT.
        unsafe { self.memory.as_ptr().add(usize::from(id) * RING_BUFFER_BYTES as usize).cast_const() }
    }

    fn offer(&mut self, id: u16) {
        let address = self.start_of(id) as u64;
        // SAFETY: the index is within the entries, which only this code writes; the kernel reads an entry only after
        // the tail below covers it. The tail is the last field of the first entry, aligned for u16, and the kernel
        // only reads it.
        unsafe {
            let entry = &mut *self.entries.as_ptr().add(usize::from(self.tail % RING_BUFFERS_COUNT));
            entry.set_addr(address);
            entry.set_len(RING_BUFFER_BYTES);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
            let tail = BufRingEntry::tail(self.entries.as_ptr()).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }
}

#[expect(unsafe_code, reason = "as above")]
impl Drop for Buffers {
    fn drop(&mut self) {
        if self.is_leaked {
            return;
        }
        // SAFETY: both were allocated with these layouts. The owner drops the io_uring instance first, and leaks the
        // buffers if the kernel may still write to one.
        unsafe {
            dealloc(self.entries.as_ptr().cast(), entries_layout());
            dealloc(self.memory.as_ptr(), memory_layout());
        }
    }
}
