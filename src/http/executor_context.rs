//! What the connections of one executor share.

use std::rc::Rc;
use std::sync::Arc;

use super::access_log::AccessLog;
use super::budget::{ByteBudget, Holders};
use super::buffer_pool::BufferPool;
use super::timers::Timers;
use crate::limits::BODIES_BYTES_MAX_PER_SHARD;
use crate::telemetry::ExecutorCounts;

/// Not shared between threads.
pub struct ExecutorContext {
    /// The time.
    pub clock: Rc<Timers>,
    pub(super) memory: BufferPool,
    /// Request bodies that arrive here.
    pub(super) bodies: Holders,
    /// Answers that wait for their clients.
    pub(super) answers: Holders,
    pub(super) traffic: AccessLog,
}

impl ExecutorContext {
    /// For an executor that counts here, and shares the budget of answers with the others.
    pub fn new(counts: Arc<ExecutorCounts>, answers: Arc<ByteBudget>) -> Self {
        Self {
            clock: Timers::new(),
            memory: BufferPool::default(),
            bodies: Holders::new(ByteBudget::new(BODIES_BYTES_MAX_PER_SHARD)),
            answers: Holders::new(answers),
            traffic: AccessLog::new(counts),
        }
    }

    /// To be called some times a second.
    pub fn tick(&self, connections: usize) {
        self.clock.tick();
        self.bodies.tick(self.clock.now_ms());
        self.answers.tick(self.clock.now_ms());
        self.traffic.tick(self.clock.now_ms(), connections);
    }
}
