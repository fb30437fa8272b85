//! State shared by the connections of one executor.

use std::rc::Rc;
use std::sync::Arc;

use super::access_log::AccessLog;
use super::budget::{ByteBudget, Holders};
use super::buffer_pool::BufferPool;
use super::timers::Timers;
use crate::limits::BODIES_BYTES_MAX_PER_EXECUTOR;
use crate::telemetry::ExecutorCounts;

/// State shared by the connections of one executor. Not shared between threads.
pub struct ExecutorContext {
    /// Coarse clock and deadlines.
    pub timers: Rc<Timers>,
    pub(super) buffers: BufferPool,
    /// Connections that hold memory for request bodies.
    pub(super) bodies: Holders,
    /// Connections that hold memory for responses.
    pub(super) responses: Holders,
    pub(super) access_log: AccessLog,
}

impl ExecutorContext {
    /// Creates the state of an executor that counts in `counts`. The response budget is shared by all executors.
    pub fn new(counts: Arc<ExecutorCounts>, answers: Arc<ByteBudget>) -> Self {
        Self {
            timers: Timers::new(),
            buffers: BufferPool::default(),
            bodies: Holders::new(ByteBudget::new(BODIES_BYTES_MAX_PER_EXECUTOR)),
            responses: Holders::new(answers),
            access_log: AccessLog::new(counts),
        }
    }

    /// Advances the clock, the budgets and the access log. To be called several times per second.
    pub fn tick(&self, connections: usize) {
        self.timers.tick();
        self.bodies.tick(self.timers.now_ms());
        self.responses.tick(self.timers.now_ms());
        self.access_log.tick(self.timers.now_ms(), connections);
    }
}
