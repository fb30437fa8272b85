//! Federated mode: each node keeps what is written to it, and asks the others for what it does not have.
//!
//! A request asks each peer at most once, and a peer answers from what it has itself, so that questions
//! never go in circles. Answers are sealed: the node that was asked by the client opens them, and the
//! user key stays where it came to.

mod asking;
mod duplicates;
mod elsewhere;
mod here;
mod listing;
mod locations;
pub mod messages;
mod writing;

pub use asking::{Ask, Errand, Errands, Federation};
pub use duplicates::{Duplicate, Duplicates};
pub(super) use elsewhere::Choice;
pub(super) use listing::Others;
