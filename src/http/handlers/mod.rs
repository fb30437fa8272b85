//! One file for each resource: reads the request, calls the service, writes the answer.

pub(super) mod cluster;
pub(super) mod configs;
pub(super) mod peers;
pub(super) mod system;
