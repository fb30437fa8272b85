//! Written by the next change.
