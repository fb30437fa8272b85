//! The buffer pool of one executor: a connection borrows buffers only while it needs them.

use std::cell::{Cell, RefCell};
use std::fmt;

use zeroize::Zeroize;

use crate::http1::Connection;
use crate::limits::{RESPONSE_BYTES_KEPT_MAX, SPARE_BUFFERS_COUNT_MAX};

/// Free buffers of one executor. Not shared between threads.
#[derive(Default)]
pub(super) struct BufferPool {
    response: Cell<Vec<u8>>,
    inputs: RefCell<Vec<Box<[u8]>>>,
    outputs: RefCell<Vec<Vec<u8>>>,
}

impl BufferPool {
    /// Runs `work` with an empty buffer for a response body, which is wiped afterwards.
    pub(super) fn with_response_buffer<T>(&self, work: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let mut response = self.response.take();
        let result = work(&mut response);
        response[..].zeroize();
        response.clear();
        if response.capacity() <= RESPONSE_BYTES_KEPT_MAX {
            self.response.set(response);
        }
        result
    }

    /// Lends buffers to a connection that has none.
    pub(super) fn lend(&self, connection: &mut Connection) {
        let pop_input = || self.inputs.borrow_mut().pop();
        let pop_output = || self.outputs.borrow_mut().pop();
        connection.borrow_buffers(pop_input, pop_output);
    }

    /// Takes back the buffers of a connection, if they are empty.
    pub(super) fn take_back(&self, connection: &mut Connection) {
        let Some((input, output)) = connection.return_buffers() else { return };
        let mut inputs = self.inputs.borrow_mut();
        if inputs.len() < SPARE_BUFFERS_COUNT_MAX && !input.is_empty() {
            inputs.push(input);
        }
        let mut outputs = self.outputs.borrow_mut();
        if outputs.len() < SPARE_BUFFERS_COUNT_MAX && output.capacity() > 0 {
            outputs.push(output);
        }
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferPool").finish_non_exhaustive()
    }
}
