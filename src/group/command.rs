//! The output of the group for the driver and the host: commands, events, and the answers to calls. Plain values.

use super::view::Phase;
use super::{Name, Ticket};
use crate::cloud::Request;
use std::net::IpAddr;
use std::sync::Arc;

/// An instance's state as the host sees it (`proto.State`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// creating
    Creating,
    /// running
    Running,
    /// deleting
    Deleting,
    /// deleted
    Deleted,
    /// timeout
    Timeout,
    /// suspending
    Suspending,
    /// suspended
    Suspended,
    /// resuming
    Resuming,
}

impl State {
    /// All states.
    pub const ALL: [State; 8] = [
        State::Creating,
        State::Running,
        State::Suspending,
        State::Suspended,
        State::Resuming,
        State::Deleting,
        State::Deleted,
        State::Timeout,
    ];

    /// The name in fleeting.
    pub fn name(self) -> &'static str {
        match self {
            State::Creating => "creating",
            State::Running => "running",
            State::Suspending => "suspending",
            State::Suspended => "suspended",
            State::Resuming => "resuming",
            State::Deleting => "deleting",
            State::Deleted => "deleted",
            State::Timeout => "timeout",
        }
    }
}

/// An action for the driver.
#[derive(Clone, Debug)]
pub enum Command {
    /// Send a request to VCD, and pass the answer to [`super::Group::answer`], exactly once.
    Ask {
        /// Passed back with the answer.
        ticket: Ticket,
        /// The request.
        request: Request,
    },
    /// Check whether a guest answers on the login port, and pass the result to [`super::Group::probed`], exactly once.
    Probe {
        /// Passed back with the result.
        ticket: Ticket,
        /// The guest's address.
        address: IpAddr,
    },
    /// Write to the log.
    Say(Event),
}

/// A log line.
#[derive(Clone, Debug)]
pub struct Event {
    /// Log level.
    pub level: log::Level,
    /// The instance, if the line is about one.
    pub name: Option<Name>,
    /// Its phase.
    pub phase: Option<Phase>,
    /// What happened, and what happens next.
    pub text: String,
}

/// The result of a call that names several instances.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The instances for which it worked or will work.
    pub succeeded: Vec<Name>,
    /// The reasons for the others.
    pub refused: Vec<String>,
}

/// How to reach a running instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The primary NIC's address.
    pub address: IpAddr,
    /// The same address from outside, if the vApp's NAT maps it.
    pub external: IpAddr,
    /// The guest OS as VCD shows it.
    pub guest_os: Arc<str>,
}
