//! Blocking work for executors: a pool of threads with a bounded queue, and the delivery of its results.
//!
//! Knows neither the work nor the executors: jobs are closures, and results return over
//! `futures_channel::oneshot`, whose receivers work on any executor.

mod completion_queue;
pub use completion_queue::CompletionQueue;

mod pool;
pub use pool::{BlockingPool, Busy};
