//! Buffers that the kernel fills: it takes one for each piece that arrives, and gets it back when the piece
//! was read. So a connection that waits holds none.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;
use zeroize::Zeroize;

/// The only group of buffers of a ring.
pub(super) const GROUP: u16 = 0;
/// A power of two.
const COUNT: u16 = 512;
const BYTES: u32 = 2048;

/// The buffers, and the ring in which the kernel finds those that it may take.
#[derive(Debug)]
pub(super) struct Buffers {
    entries: NonNull<BufRingEntry>,
    memory: NonNull<u8>,
    tail: u16,
    is_leaked: bool,
}

/// A buffer with something in it, which the kernel does not touch until it is given back.
#[derive(Debug)]
pub(super) struct Filled {
    id: u16,
    len: usize,
}

fn entries_layout() -> Layout {
    // The kernel wants whole pages.
    Layout::array::<BufRingEntry>(usize::from(COUNT)).and_then(|layout| layout.align_to(4096)).expect("small")
}

fn memory_layout() -> Layout {
    Layout::array::<u8>(usize::from(COUNT) * BYTES as usize).expect("small")
}

#[expect(unsafe_code, reason = "memory that is shared with the kernel has no owner that the compiler knows")]
impl Buffers {
    /// Gives all buffers to the kernel.
    ///
    /// # Errors
    /// When the kernel has no rings of buffers (before 5.19).
    pub(super) fn register(ring: &IoUring) -> io::Result<Self> {
        let allocate = |layout: Layout| {
            // SAFETY: no layout here is of size zero.
            NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout))
        };
        let entries = allocate(entries_layout()).cast();
        let mut buffers = Self { entries, memory: allocate(memory_layout()), tail: 0, is_leaked: false };
        // SAFETY: the ring of buffers is COUNT entries, page aligned, and is freed only after the ring that it
        // is registered with was closed (see `Drop`).
        unsafe { ring.submitter().register_buf_ring_with_flags(entries.as_ptr() as u64, COUNT, GROUP, 0)? };
        for id in 0..COUNT {
            buffers.offer(id);
        }
        Ok(buffers)
    }

    /// A buffer that the kernel has filled.
    pub(super) fn filled(id: u16, len: usize) -> Filled {
        assert!(id < COUNT && len <= BYTES as usize, "the kernel gives back what it was given");
        Filled { id, len }
    }

    /// What is in it.
    pub(super) fn bytes<'a>(&'a self, filled: &'a Filled) -> &'a [u8] {
        // SAFETY: the kernel writes to a buffer only between `offer` and the completion that names it, from
        // which `filled` was made; the range lies within the memory.
        unsafe { slice::from_raw_parts(self.place(filled.id), filled.len) }
    }

    /// Keeps the memory for ever, because the kernel may still write to it.
    pub(super) fn leak(&mut self) {
        self.is_leaked = true;
    }

    /// Lets the kernel fill it again. Nothing of what was in it stays: requests carry user keys.
    pub(super) fn give_back(&mut self, filled: Filled) {
        // SAFETY: as in `bytes`; `filled` is given up, so nobody reads it any more.
        unsafe { slice::from_raw_parts_mut(self.place(filled.id).cast_mut(), filled.len) }.zeroize();
        self.offer(filled.id);
    }

    fn place(&self, id: u16) -> *const u8 {
        // SAFETY: `id` is below COUNT.
        unsafe { self.memory.as_ptr().add(usize::from(id) * BYTES as usize).cast_const() }
    }

    fn offer(&mut self, id: u16) {
        let address = self.place(id) as u64;
        // SAFETY: the index lies within the entries, which nobody else writes; the kernel reads an entry only
        // after the tail below says so. The tail is the last field of the first entry, aligned for u16, and
        // the kernel only reads it.
        unsafe {
            let entry = &mut *self.entries.as_ptr().add(usize::from(self.tail % COUNT));
            entry.set_addr(address);
            entry.set_len(BYTES);
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
        // SAFETY: both were allocated with these layouts. The owner drops the ring first, and leaks the
        // buffers if the kernel may still write to one.
        unsafe {
            dealloc(self.entries.as_ptr().cast(), entries_layout());
            dealloc(self.memory.as_ptr(), memory_layout());
        }
    }
}
