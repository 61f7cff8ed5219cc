//! The output of the group for the driver and the host: commands, events, and the answers to calls. The requests on the wire.

use super::{Group, Instance, Key, Name, Phase, Purpose, Ticket};
use crate::cloud::{Request, VcdError};
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

impl Group {
    pub(super) fn ask(&mut self, purpose: Purpose, request: Request) {
        let ticket = self.fly(purpose);
        self.commands.push_back(Command::Ask { ticket, request });
    }

    pub(super) fn fly(&mut self, purpose: Purpose) -> Ticket {
        self.next_ticket += 1;
        self.flights.push((self.next_ticket, purpose));
        self.next_ticket
    }

    pub(super) fn land(&mut self, ticket: Ticket) -> Option<Purpose> {
        let at = self.flights.iter().position(|(flight, _)| *flight == ticket)?;
        Some(self.flights.swap_remove(at).1)
    }

    pub(super) fn say(&mut self, level: log::Level, instance: &Instance, text: &str) {
        self.commands.push_back(Command::Say(instance.event(level, text.to_string())));
    }

    pub(super) fn say_of(&mut self, level: log::Level, key: Key, text: String) {
        if let Some(instance) = self.instances.get(&key) {
            self.commands.push_back(Command::Say(instance.event(level, text)));
        }
    }

    pub(super) fn say_plain(&mut self, level: log::Level, text: String) {
        self.commands.push_back(Command::Say(Event { level, name: None, phase: None, text }));
    }

    /// Records an error on the instance, for people.
    pub(super) fn blame(&mut self, key: Key, error: &VcdError, follows: &str) {
        let text: Arc<str> = error.to_string().into();
        if let Some(instance) = self.instances.get_mut(&key) {
            instance.error = Some(text.clone());
        }
        self.say_of(log::Level::Warn, key, format!("{text}; {follows}"));
    }
}
