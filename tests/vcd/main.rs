//! The VCD client against the simulator, over HTTP.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod client;

mod answers;
mod cut;
mod names;
mod requests;
