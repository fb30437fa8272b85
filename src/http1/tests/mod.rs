//! Tests of a whole connection, one file per property.

use super::{Connection, ProtocolError, Response, Step};

mod deadlines;
mod malformed;
mod pipelining;
pub(super) mod segmentation;
mod zeroize;
