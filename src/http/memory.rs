//! Memory that the connections of one shard share: buffers, which a connection has only while it needs them,
//! and the bound on request bodies.

use std::cell::{Cell, RefCell};
use std::fmt;

use zeroize::Zeroize;

use crate::http1::Connection;
use crate::limits::{BODIES_BYTES_MAX_PER_SHARD, SPARE_BUFFERS_COUNT_MAX};

/// A larger buffer is not kept.
const ANSWER_BYTES_KEPT_MAX: usize = 64 * 1024;

/// What one shard has of it. Not shared between threads.
#[derive(Default)]
pub(super) struct Memory {
    bodies_bytes: Cell<usize>,
    answer: Cell<Vec<u8>>,
    inputs: RefCell<Vec<Box<[u8]>>>,
    outputs: RefCell<Vec<Vec<u8>>>,
}

impl Memory {
    /// Runs `work` with an empty buffer for an answer, which is wiped afterwards.
    pub(super) fn with_answer<T>(&self, work: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let mut answer = self.answer.take();
        let result = work(&mut answer);
        answer[..].zeroize();
        answer.clear();
        if answer.capacity() <= ANSWER_BYTES_KEPT_MAX {
            self.answer.set(answer);
        }
        result
    }

    /// Gives a connection buffers, if it has none.
    pub(super) fn lend(&self, connection: &mut Connection) {
        let pop_input = || self.inputs.borrow_mut().pop();
        let pop_output = || self.outputs.borrow_mut().pop();
        connection.borrow_buffers(pop_input, pop_output);
    }

    /// Takes its buffers back, if there is nothing in them.
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

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("bodies_bytes", &self.bodies_bytes.get()).finish_non_exhaustive()
    }
}

/// What one connection holds of the memory for bodies.
pub(super) struct BodyShare<'a> {
    memory: &'a Memory,
    held: usize,
}

impl<'a> BodyShare<'a> {
    /// Nothing yet.
    pub(super) fn new(memory: &'a Memory) -> Self {
        Self { memory, held: 0 }
    }

    /// Changes what is held; false when the shard holds too much now.
    pub(super) fn hold(&mut self, bytes: usize) -> bool {
        if bytes == self.held {
            return true;
        }
        let total = self.memory.bodies_bytes.get() - self.held + bytes;
        self.memory.bodies_bytes.set(total);
        self.held = bytes;
        total <= BODIES_BYTES_MAX_PER_SHARD
    }
}

impl Drop for BodyShare<'_> {
    fn drop(&mut self) {
        self.hold(0);
    }
}
