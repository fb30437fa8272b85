//! What the server says of itself: its log, and its numbers.
//!
//! Nothing secret can be logged: secrets are types without `Display` and with a redacted `Debug`.

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
pub use process::ProcessNumbers;
