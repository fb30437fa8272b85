//! Tests of a whole client connection, one file per property.

use super::{ClientConnection, ClientFailure, ClientRequest, ClientStep};

mod lifecycle;
mod random;
mod responses;
mod roundtrip;
