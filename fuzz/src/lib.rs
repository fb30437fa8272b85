//! Properties of all parsers of untrusted input, one module per fuzz target.
//!
//! Each `run` takes arbitrary bytes and panics if a property does not hold. cargo-fuzz calls them with the inputs of
//! libFuzzer (`fuzz_targets/`), and `tests/fuzz.rs` with mutations of `seeds/`; see `docs/checks.md`.

pub mod chunked;
pub mod dotenv;
pub mod federation;
pub mod fernet;
pub mod json;
pub mod proxy_header;
pub mod replication;
pub mod requests;
pub mod responses;

mod grammar;
mod pieces;
