//! The allocator of the server: wipes memory when it is given back, so that nothing of a request stays in it.
//!
//! Buffers of our own are wiped by their owners, most of them long before they are freed. This is for copies that
//! have no owner: vectors that grow, and the buffers within rustls, glommio and tokio.
//! See docs/decisions/0022-secrets-in-memory.md.

use std::alloc::{GlobalAlloc, Layout, System};
use std::mem::MaybeUninit;
use std::ptr;
use std::slice;

use zeroize::Zeroize;

/// The system's allocator, with wiping.
#[derive(Clone, Copy, Debug)]
pub struct WipingAllocator;

#[expect(unsafe_code, reason = "an allocator hands out memory without an owner")]
// SAFETY: every block comes from the system's allocator and goes back to it with the same layout. Between, only bytes
// of a block that its owner gives up are written.
unsafe impl GlobalAlloc for WipingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller gives up a block of this layout, whose bytes may be uninitialised.
        let bytes = unsafe { slice::from_raw_parts_mut(block.cast::<MaybeUninit<u8>>(), layout.size()) };
        bytes.zeroize();
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(block, layout) }
    }

    /// Always moves: the system's way of growing would free the old block with all that is in it.
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the new size is not zero and makes a layout of this alignment.
        let larger = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: as above.
        let moved = unsafe { System.alloc(larger) };
        if !moved.is_null() {
            // SAFETY: both blocks have so many bytes, and they are different blocks.
            unsafe { ptr::copy_nonoverlapping(block, moved, layout.size().min(size)) };
            // SAFETY: the caller gives up the old block.
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
    fn blocks_grow_and_shrink_with_their_bytes() {
        let layout = Layout::array::<u8>(100).expect("small");
        // SAFETY: the layout is not empty, and each block is used within its size and given back once.
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
