//! One instance: what is wanted of it, what is known of it, and how both look to the host and to people.

use super::steps::{CUSTOMIZATION_GRACE, CUSTOMIZATION_GRACE_WINDOWS};
use super::{Event, Name, State, Time, View};
use crate::cloud::{Customization, Href, Power, Vm, is_windows};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Where an instance is in its life, as users know it from the debug page and the logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Accepted; VCD has not been asked yet, or a failed try has been cleared away.
    PendingCreate,
    /// VCD makes it, or it boots.
    Creating,
    /// Its login port answered.
    Running,
    /// To be deleted; VCD has not been asked yet.
    PendingDelete,
    /// VCD deletes it.
    Deleting,
    /// VCD does not know it any more.
    Deleted,
}

impl Phase {
    /// As users of the Go plugin know it.
    pub fn name(self) -> &'static str {
        match self {
            Phase::PendingCreate => "PendingCreate",
            Phase::Creating => "Creating",
            Phase::Running => "Running",
            Phase::PendingDelete => "PendingDelete",
            Phase::Deleting => "Deleting",
            Phase::Deleted => "Deleted",
        }
    }
}

/// What is wanted of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    Live,
    Gone(Cause),
}

/// Why an instance has to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The host said so.
    Asked,
    Shutdown,
    /// It did not come to running in time.
    Timeout,
    /// VCD has lost it, or somebody took it over.
    Lost,
    /// It was off or broken for too long.
    Ill,
    /// Older than twice max_instance_age.
    Aged,
    /// Half made in an earlier life, or made by a request that was given up.
    Leftover,
}

impl Cause {
    /// For the log.
    pub fn words(self) -> (log::Level, &'static str) {
        match self {
            Cause::Asked => (log::Level::Info, "removal asked for by the host"),
            Cause::Shutdown => (log::Level::Info, "removed because the host shuts down"),
            Cause::Timeout => {
                (log::Level::Error, "not running within create_timeout: given up, what it left is deleted")
            }
            Cause::Lost => (log::Level::Warn, "VCD does not have it any more: reported as deleted"),
            Cause::Ill => (log::Level::Warn, "off or broken for too long: deleted"),
            Cause::Aged => (log::Level::Warn, "older than twice max_instance_age: deleted"),
            Cause::Leftover => (log::Level::Info, "a leftover of ours that nobody uses: deleted"),
        }
    }
}

/// What is known of the instance's vApp.
#[derive(Clone, Debug)]
pub(super) enum There {
    /// VCD has no such vApp.
    Absent,
    /// A create went out and its outcome is not known: the name is looked up. Seen as missing `looks` times since `since`.
    Unclear { since: Time, looks: u32 },
    /// The create's task works on it. `cancelled`: VCD was asked to stop.
    Making { vapp: Href, task: Href, since: Time, cancelled: bool },
    /// Made. Waits for power, address and customization, then for the login port.
    Booting { vapp: Href, off: u32 },
    /// The login port answered (or it was complete when it was found).
    Ready { vapp: Href },
    /// Has to be deleted, and VCD has not been asked yet. If it is wanted it is made anew after that.
    Scrap { vapp: Href },
    /// A task works on it after which it is looked at: its deletion, or what held it.
    Removing { vapp: Href, task: Href, since: Time, cancelled: bool },
    /// It may be gone: looked at directly.
    Leaving { vapp: Href },
    /// Named like ours; its own document tells whether it is.
    Stranger { vapp: Href },
}

/// What is asked about an instance right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Create,
    Find,
    Look,
    Delete,
    Cancel,
}

/// The metadata label, written once the instance runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Label {
    Wanted { tries: u32, not_before: Time },
    OnWire { tries: u32 },
    Settled,
}

/// What the last poll that showed the VM said.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub power: Power,
    /// A task held it.
    pub busy: bool,
    pub address: Option<IpAddr>,
    pub customization: Customization,
    pub guest_os: Arc<str>,
}

impl Facts {
    pub fn of(vm: &Vm) -> Facts {
        let (power, busy, customization) = (vm.power, vm.busy, vm.customization);
        Facts { power, busy, address: vm.address, customization, guest_os: vm.guest_os.as_str().into() }
    }

    /// Nothing but the login port is missing.
    pub fn complete(&self) -> bool {
        self.power == Power::On
            && self.address.is_some()
            && matches!(self.customization, Customization::Complete | Customization::Unknown)
    }

    /// Customization has reported nothing yet, and perhaps never will: old Tools do not.
    pub fn silent(&self) -> bool {
        self.power == Power::On && self.address.is_some() && self.customization == Customization::Pending
    }
}

/// One instance. Those with `reported == false` are strays: vApps of ours that no id of the host stands for.
pub(super) struct Instance {
    pub name: Name,
    pub reported: bool,
    /// It was there before the group began: creates may be held for it.
    pub earlier: bool,
    /// It was looked at once since it was found.
    pub looked: bool,
    pub goal: Goal,
    pub there: There,
    /// A request about it is on the wire.
    pub asked: Option<Asked>,
    /// Its login port is being probed.
    pub probing: bool,
    /// Its login port has answered every probe since, while customization reports nothing.
    pub steady: Option<Time>,
    /// The Go plugin's label was on it when it was found.
    pub labelled: bool,
    /// It was made with other generated credentials than those of today.
    pub locked_out: bool,
    /// When it was accepted or found.
    pub since: Time,
    /// How old it was then.
    pub age_before: Duration,
    /// When the create is given up: from its first try on, create_timeout later.
    pub deadline: Time,
    /// When VCD was first asked to make it.
    pub first_try: Option<Time>,
    /// The next step is not taken before this.
    pub not_before: Time,
    /// The next create is not begun before this.
    pub create_after: Time,
    /// Creates that failed.
    pub retries: u32,
    /// Deletes and looks that failed in a row.
    pub stumbles: u32,
    pub error: Option<Arc<str>>,
    /// Polls in a row, sent after `known`, that did not show it.
    pub missed: u32,
    /// So many missed polls ask for a direct look; doubles when the look finds it.
    pub patience: u32,
    /// Since when its vApp is known: polls that were sent before say nothing of it.
    pub known: Time,
    pub facts: Option<Facts>,
    /// Its address outside the NAT of its vApp, if a look at that showed one: the vApps that are made here have no NAT.
    pub external: Option<IpAddr>,
    /// When a poll showed it last.
    pub seen: Time,
    pub label: Label,
    /// Off or broken since, and how. Heartbeat says so.
    pub ill: Option<(Time, &'static str)>,
    pub ended: Option<Time>,
    /// The vApp that it had last, which late polls may still show.
    pub last_vapp: Option<Href>,
}

/// Three polls in a row without an instance ask for a direct look.
pub(super) const MISSED_POLLS: u32 = 3;

impl Instance {
    pub fn new(name: Name, there: There, now: Time) -> Instance {
        Instance {
            name,
            reported: false,
            earlier: false,
            looked: false,
            goal: Goal::Live,
            there,
            asked: None,
            probing: false,
            steady: None,
            labelled: false,
            locked_out: false,
            since: now,
            age_before: Duration::ZERO,
            deadline: now,
            first_try: None,
            not_before: now,
            create_after: now,
            retries: 0,
            stumbles: 0,
            error: None,
            missed: 0,
            patience: MISSED_POLLS,
            known: now,
            facts: None,
            external: None,
            seen: now,
            label: Label::Settled,
            ill: None,
            ended: None,
            last_vapp: None,
        }
    }

    /// A vApp of ours, or perhaps ours, that no id of the host stands for.
    pub fn stray(name: Name, there: There, now: Time) -> Instance {
        Instance { goal: Goal::Gone(Cause::Leftover), ..Instance::new(name, there, now) }
    }

    /// Its vApp, if one is known.
    pub fn vapp(&self) -> Option<&Href> {
        match &self.there {
            There::Absent | There::Unclear { .. } => None,
            There::Making { vapp, .. }
            | There::Booting { vapp, .. }
            | There::Ready { vapp }
            | There::Scrap { vapp }
            | There::Removing { vapp, .. }
            | There::Leaving { vapp }
            | There::Stranger { vapp } => Some(vapp),
        }
    }

    /// Moves to where `vapp` is known since `now`.
    pub fn place(&mut self, there: There, now: Time) {
        self.there = there;
        self.known = now;
        self.steady = None;
        self.missed = 0;
        self.patience = MISSED_POLLS;
        if let Some(vapp) = self.vapp() {
            self.last_vapp = Some(vapp.clone());
        }
    }

    /// On the way out: deleted, or looked at first if a task may hold it: an earlier life's, or one that a poll showed.
    pub fn scrap(&mut self, vapp: Href) {
        let busy = self.facts.as_ref().is_some_and(|facts| facts.busy);
        self.there = if busy || self.earlier { There::Leaving { vapp } } else { There::Scrap { vapp } };
    }

    /// How long its login port must answer steadily if customization reports nothing.
    pub fn grace(&self) -> Duration {
        match &self.facts {
            Some(facts) if is_windows(&facts.guest_os) => CUSTOMIZATION_GRACE_WINDOWS,
            _ => CUSTOMIZATION_GRACE,
        }
    }

    pub fn is_ready(&self) -> bool {
        matches!(self.there, There::Ready { .. })
    }

    /// Counts towards max_size.
    pub fn counts(&self) -> bool {
        self.ended.is_none()
    }

    /// VCD works on its create, or has been asked to.
    pub fn create_slot(&self) -> bool {
        self.asked == Some(Asked::Create) || matches!(self.there, There::Making { .. } | There::Unclear { .. })
    }

    /// VCD works on its deletion, or has been asked to.
    pub fn delete_slot(&self) -> bool {
        self.asked == Some(Asked::Delete) || matches!(self.there, There::Removing { .. } | There::Leaving { .. })
    }

    pub fn age(&self, now: Time) -> Duration {
        self.age_before + (now - self.since)
    }

    pub fn state(&self) -> State {
        match self.goal {
            Goal::Gone(Cause::Timeout) => State::Timeout,
            _ if self.ended.is_some() => State::Deleted,
            Goal::Gone(_) => State::Deleting,
            Goal::Live if self.is_ready() => State::Running,
            Goal::Live => State::Creating,
        }
    }

    pub fn phase(&self) -> Phase {
        match (self.goal, &self.there) {
            _ if self.ended.is_some() => Phase::Deleted,
            (Goal::Live, There::Ready { .. }) => Phase::Running,
            (Goal::Live, There::Absent) if self.asked.is_none() => Phase::PendingCreate,
            (Goal::Live, _) => Phase::Creating,
            (Goal::Gone(_), There::Removing { .. } | There::Leaving { .. }) => Phase::Deleting,
            (Goal::Gone(_), _) if self.asked == Some(Asked::Delete) => Phase::Deleting,
            (Goal::Gone(_), _) => Phase::PendingDelete,
        }
    }

    /// What it waits for, in a few words.
    pub fn waits_for(&self, now: Time) -> &'static str {
        if self.ended.is_some() {
            return "";
        }
        match (&self.there, self.asked) {
            (_, Some(Asked::Create)) => "VCD to accept the create",
            (_, Some(Asked::Delete)) => "VCD to accept the delete",
            (_, Some(Asked::Cancel)) => "VCD to cancel the create",
            (There::Unclear { .. }, _) => "a look whether the create worked",
            (There::Making { cancelled: true, .. }, _) => "the create to stop",
            (There::Making { .. }, _) => "the create's task",
            (There::Booting { .. }, _) => match &self.facts {
                Some(facts) if facts.complete() => "the login port",
                Some(Facts { power: Power::On, address: Some(_), .. }) => "guest customization",
                Some(Facts { power: Power::On, .. }) => "an address",
                _ => "power on",
            },
            (There::Ready { .. }, _) => "",
            (There::Removing { .. }, _) => "the delete's task",
            (There::Leaving { .. } | There::Stranger { .. }, _) => "a direct look",
            (There::Absent | There::Scrap { .. }, _) if self.not_before > now || self.create_after > now => {
                "the next try"
            }
            (There::Absent, _) => "a free create slot",
            (There::Scrap { .. }, _) => "a free delete slot",
        }
    }

    pub fn view(&self, now: Time) -> View {
        View {
            name: self.name.clone(),
            phase: self.phase(),
            address: self.facts.as_ref().and_then(|facts| facts.address),
            age: self.age(now),
            waits_for: self.waits_for(now),
            retries: self.retries,
            error: self.error.clone(),
        }
    }

    pub fn event(&self, level: log::Level, text: String) -> Event {
        Event { level, name: Some(self.name.clone()), phase: Some(self.phase()), text }
    }
}
