//! The group's decisions in virtual time: no sockets, clocks or threads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod play;
mod world;

mod adopt;
mod answers;
mod lives;
mod policy;
mod readiness;
mod standby;
mod steps;
