//! What the connections of one executor share.

use std::rc::Rc;
use std::sync::Arc;

use super::clock::Clock;
use super::memory::Memory;
use super::traffic::Traffic;
use crate::telemetry::ExecutorCounts;

/// Not shared between threads.
pub struct Local {
    /// The time.
    pub clock: Rc<Clock>,
    pub(super) memory: Memory,
    pub(super) traffic: Traffic,
}

impl Local {
    /// For an executor that counts here.
    pub fn new(counts: Arc<ExecutorCounts>) -> Self {
        Self { clock: Clock::new(), memory: Memory::default(), traffic: Traffic::new(counts) }
    }

    /// To be called some times a second.
    pub fn tick(&self, connections: usize) {
        self.clock.tick();
        self.traffic.tick(self.clock.now_ms(), connections);
    }
}
