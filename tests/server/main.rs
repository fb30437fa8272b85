//! The real binary, started on a free port of the loopback interface, with real files.

mod certificates;
mod clients;
mod documentation;
mod durability;
mod engines;
mod field_cases;
mod files;
mod framing;
mod healthcheck;
mod lifecycle;
mod limits;
mod observability;
mod reload;
mod requests;
mod secrets;
mod support;
mod tls;
mod tls_files;
