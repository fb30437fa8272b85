//! Telemetry: the log and the metrics.
//!
//! Secrets cannot be logged: their types have no `Display`, and their `Debug` is redacted.

mod counters;
mod executors;
mod exposition;
mod log;
mod log_file;
mod process;

pub use counters::{Counter, Durations, Gauge, Histogram};
pub use executors::{ExecutorCounts, Executors, METHODS, RequestLabels};
pub use exposition::{CONTENT_TYPE as METRICS_CONTENT_TYPE, Exposition, Label};
pub use log::{Log, LogError, dropped_lines_count};
pub use process::ProcessStats;
