//! An encrypted configuration server with the API and the files of OpenSecureConf.
//!
//! Data flows one way: socket, head, route, service, crypto and store, answer. The layers, lowest
//! first; each imports only from the ones before it (`tests/layers.rs` keeps it so):
//!
//! ```text
//! L4  main -> runtime  |  healthcheck      threads, cores and signals; asking a running server
//! L3  http  |  cluster                    routes, status codes, JSON; peers
//! L2  service                             use cases; where crypto and store meet
//! L1  http1  |  crypto  |  store          bytes, keys, rows; blind to each other
//! L0  config  tls  limits  model  telemetry   vocabulary; TLS over any stream
//! ```
//!
//! `docs/architecture.md` says which thread runs what.

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
pub mod store;
pub mod telemetry;
pub mod tls;
