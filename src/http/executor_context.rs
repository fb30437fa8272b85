//! State shared by the connections of one executor.

use std::rc::Rc;
use std::sync::Arc;

use super::access_log::AccessLog;
use super::budget::{ByteBudget, Holders};
use super::buffer_pool::BufferPool;
use super::timers::Timers;
use crate::limits::BODIES_BYTES_MAX_PER_SHARD;
use crate::telemetry::ExecutorCounts;

/// State shared by the connections of one executor. Not shared between threads.
pub struct ExecutorContext {
    /// Coarse clock and deadlines.
    pub clock: Rc<Timers>,
    pub(super) memory: BufferPool,
    /// Connections that hold memory for request bodies.
    pub(super) bodies: Holders,
    /// Connections that hold memory for responses.
    pub(super) answers: Holders,
    pub(super) traffic: AccessLog,
}

impl ExecutorContext {
    /// Creates the state of an executor that counts in `counts`. The response budget is shared by all executors.
    pub fn new(counts: Arc<ExecutorCounts>, answers: Arc<ByteBudget>) -> Self {
        Self {
            clock: Timers::new(),
            memory: BufferPool::default(),
            bodies: Holders::new(ByteBudget::new(BODIES_BYTES_MAX_PER_SHARD)),
            answers: Holders::new(answers),
            traffic: AccessLog::new(counts),
        }
    }

    /// Advances the clock, the budgets and the access log. To be called several times per second.
    pub fn tick(&self, connections: usize) {
        self.clock.tick();
        self.bodies.tick(self.clock.now_ms());
        self.answers.tick(self.clock.now_ms());
        self.traffic.tick(self.clock.now_ms(), connections);
    }
}
