//! What the group says to the driver and the host: commands, events, and the answers to calls. Plain values.

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
    /// All of them.
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

    /// As fleeting writes it.
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

/// Something for the driver to do.
#[derive(Clone, Debug)]
pub enum Command {
    /// Ask VCD, and bring the answer to [`super::Group::answer`], always, once.
    Ask {
        /// To be given back.
        ticket: Ticket,
        /// What to ask.
        request: Request,
    },
    /// Ask whether a guest answers on the login port, and bring the result to [`super::Group::probed`], always, once.
    Probe {
        /// To be given back.
        ticket: Ticket,
        /// The guest.
        address: IpAddr,
    },
    /// Write to the log.
    Say(Event),
}

/// Something worth a line in the log.
#[derive(Clone, Debug)]
pub struct Event {
    /// How bad.
    pub level: log::Level,
    /// Which instance, if one.
    pub name: Option<Name>,
    /// Its phase.
    pub phase: Option<Phase>,
    /// What happened, and what follows.
    pub text: String,
}

/// What became of a call that names several instances.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Those for which it worked, or will.
    pub succeeded: Vec<Name>,
    /// Why it did not for the others.
    pub refused: Vec<String>,
}

/// How to reach a running instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The primary NIC's address.
    pub address: IpAddr,
    /// The same as seen from outside, if its vApp's NAT gives it another.
    pub external: IpAddr,
    /// The guest OS as VCD shows it.
    pub guest_os: Arc<str>,
}
