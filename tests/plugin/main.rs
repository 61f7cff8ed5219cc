//! Tests of the built plugin as a process: they act as its host, its users, its failing VCD and its attackers. They
//! also check the documents.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/fleet.rs"]
mod fleet;
#[path = "../common/live.rs"]
mod live;
#[path = "../common/manual.rs"]
mod manual;
#[cfg(target_os = "linux")]
#[path = "../common/proxy.rs"]
mod proxy;
#[path = "../common/reference.rs"]
mod reference;
#[path = "../common/relay.rs"]
mod relay;
#[path = "../common/replay.rs"]
mod replay;

mod abuse;
mod commands;
mod debug_browser;
mod debug_pages;
mod documents;
mod empty_root;
mod end_to_end;
mod host_protocol;
mod kill;
mod mistakes;
mod operations;
mod reliability;
mod secrets;
mod standby;
mod version;
