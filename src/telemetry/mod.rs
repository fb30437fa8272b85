//! What the server says of itself: its log.
//!
//! Nothing secret can be logged: secrets are types without `Display` and with a redacted `Debug`.

mod log;

pub use log::start as start_log;
