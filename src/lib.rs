//! Encrypted configuration server, compatible with the API and the files of OpenSecureConf.
//!
//! Data flows in one direction: socket, head, route, service, crypto and storage, response. The layers, highest first;
//! each imports only from those below it, which `tests/layers.rs` enforces:
//!
//! ```text
//! L4  main -> runtime  |  healthcheck      threads, cores and signals; probing a running server
//! L3  http  |  cluster                    routes, status codes, JSON; peers
//! L2  service                             use cases; combines crypto and storage
//! L1  http1  |  crypto  |  wire -> storage   bytes, keys, messages between nodes, rows
//! L0  config  tls  limits  model  telemetry  blocking  threads  timer  sync   vocabulary; TLS over any stream; threads
//! ```
//!
//! `docs/architecture.md` is the map of the code: entry points, invariants of the modules, threads and request paths.

pub mod blocking;
pub mod cluster;
pub mod config;
pub mod crypto;
pub mod healthcheck;
pub mod http;
pub mod http1;
pub mod limits;
pub mod model;
pub mod runtime;
pub mod service;
pub mod storage;
mod sync;
pub mod telemetry;
pub mod threads;
pub mod timer;
pub mod tls;
pub mod wire;
