//! Global allocator that wipes memory when it is freed, so that no data of a request remains in it.
//!
//! The server's own buffers are wiped by their owners, mostly long before they are freed. The allocator covers copies
//! without such an owner: vectors that grow, and the buffers within rustls, glommio and tokio.
//! See docs/decisions/0022-secrets-in-memory.md.

use std::alloc::{GlobalAlloc, Layout, System};
use std::mem::MaybeUninit;
use std::ptr;
use std::slice;

use zeroize::Zeroize;

/// System allocator that wipes freed memory.
#[derive(Clone, Copy, Debug)]
pub struct WipingAllocator;

#[expect(unsafe_code, reason = "an allocator manages raw memory")]
// SAFETY: every block comes from the system allocator and is returned to it with the same layout. In between, only
// blocks that their owner has released are written.
unsafe impl GlobalAlloc for WipingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller upholds the contract of `GlobalAlloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller upholds the contract of `GlobalAlloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller releases a block of this layout, whose bytes may be uninitialised.
        let bytes = unsafe { slice::from_raw_parts_mut(block.cast::<MaybeUninit<u8>>(), layout.size()) };
        bytes.zeroize();
        // SAFETY: the caller upholds the contract of `GlobalAlloc`.
        unsafe { System.dealloc(block, layout) }
    }

    /// Always moves the block: the system's `realloc` may free the old block without wiping it.
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller guarantees that the new size is not zero and forms a valid layout with this alignment.
        let larger = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: as above.
        let moved = unsafe { System.alloc(larger) };
        if !moved.is_null() {
            // SAFETY: both blocks have at least this many bytes, and they do not overlap.
            unsafe { ptr::copy_nonoverlapping(block, moved, layout.size().min(size)) };
            // SAFETY: the caller releases the old block.
            unsafe { self.dealloc(block, layout) };
        }
        moved
    }
}

#[cfg(test)]
#[expect(unsafe_code, reason = "as above")]
mod tests {
    use super::*;

    #[test]
    fn reallocation_keeps_the_bytes() {
        let layout = Layout::array::<u8>(100).expect("small");
        // SAFETY: the layout is not empty, and each block is used within its size and freed once.
        unsafe {
            let first = WipingAllocator.alloc(layout);
            first.write_bytes(7, 100);
            let grown = WipingAllocator.realloc(first, layout, 5000);
            assert_eq!(slice::from_raw_parts(grown, 100), [7; 100]);
            let shrunk = WipingAllocator.realloc(grown, Layout::array::<u8>(5000).expect("small"), 10);
            assert_eq!(slice::from_raw_parts(shrunk, 10), [7; 10]);
            WipingAllocator.dealloc(shrunk, Layout::array::<u8>(10).expect("small"));
            let zeroed = WipingAllocator.alloc_zeroed(layout);
            assert_eq!(slice::from_raw_parts(zeroed, 100), [0; 100]);
            WipingAllocator.dealloc(zeroed, layout);
        }
    }
}
