//! GitLab Runner fleeting plugin for VMware Cloud Director. The binary is a thin command line over this library; the
//! library is public for the tests, examples and benchmarks of this package only.
//!
//! Dependencies point one way: `command` to all else, `host` and `debug` to `driver`, `driver` to `group`, `vcd`,
//! `access`; `group` and `vcd` know only the plain types of `cloud`.

pub mod access;
pub mod cloud;
pub mod command;
pub mod config;
mod crypto;
pub mod debug;
pub mod driver;
pub mod group;
pub mod host;
pub mod journal;
pub mod pool;
pub mod presence;
pub mod status;
pub mod tally;
pub mod timestamp;
pub mod transport;
pub mod vcd;
pub mod version;
