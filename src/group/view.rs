//! The group and its instances as others see them: the host sees states, and people see phases and what an instance waits
//! for, in the log, on the debug pages and in the metrics. Nothing here decides anything.

use super::instance::{Cause, Desired, Kind, Mark, Origin, Question, Stage};
use super::limits::Lane;
use super::vapp::{Guest, Removal, Vapp};
use super::{Event, Group, Instance, Key, MAX_LOOKS, MAX_PROBES, Name, Observed, Phase, Purpose, State, Ticket, Time};
use crate::cloud::{ErrorKind, Href, Power};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// One instance as the debug pages show it.
#[derive(Clone, Debug)]
pub struct View {
    /// Identifies it among all instances that the group ever had. An id may occur twice.
    pub key: u64,
    /// The id.
    pub name: Name,
    /// The state that the host sees.
    pub state: State,
    /// The host knows it. Otherwise it is a leftover or in the standby pool.
    pub reported: bool,
    /// Its name matches, and its owner is not known yet.
    pub undecided: bool,
    /// Its phase.
    pub phase: Phase,
    /// Why it is deleted, in one word. `None` while it is wanted.
    pub cause: Option<Cause>,
    /// Its vApp, when known.
    pub vapp: Option<Href>,
    /// The task in VCD that it waits for.
    pub task: Option<Href>,
    /// The VM's power state in the last poll that showed it.
    pub power: Option<Power>,
    /// The guest OS as VCD shows it.
    pub guest_os: Option<Arc<str>>,
    /// The address, when known.
    pub address: Option<IpAddr>,
    /// Time since it was accepted or, if adopted, since VCD created it.
    pub age: Duration,
    /// What it waits for, in a few words.
    pub waits_for: &'static str,
    /// Time until the next try, if it waits for one.
    pub next_try: Option<Duration>,
    /// Failed tries of its current operation.
    pub retries: u32,
    /// Failed creates since it was last ready.
    pub failed_creates: u32,
    /// Polls in a row that did not show it.
    pub missed: u32,
    /// Time since a poll showed it.
    pub seen: Option<Duration>,
    /// The last error.
    pub error: Option<Arc<str>>,
    /// Why VCD rejected its create, if the reason stays until somebody changes something.
    pub refused: Option<ErrorKind>,
    /// How long it has been stuck: its operation hangs, or it cannot be deleted, suspended, resumed or looked up.
    pub stuck: Option<Duration>,
}

/// The small part of an instance that is read after each event.
#[derive(Clone, Copy, Debug)]
pub struct Glance<'a> {
    /// [`View::key`].
    pub key: u64,
    /// [`View::name`].
    pub name: &'a Name,
    /// [`View::reported`].
    pub reported: bool,
    /// [`View::undecided`].
    pub undecided: bool,
    /// [`View::phase`].
    pub phase: Phase,
    /// [`View::cause`].
    pub cause: Option<Cause>,
    /// [`View::task`] is there.
    pub has_task: bool,
    /// [`View::waits_for`].
    pub waits_for: &'static str,
    /// [`View::retries`].
    pub retries: u32,
    /// [`View::failed_creates`].
    pub failed_creates: u32,
}

impl<'a> From<&Glance<'a>> for Glance<'a> {
    fn from(glance: &Glance<'a>) -> Glance<'a> {
        *glance
    }
}

impl<'a> From<&'a View> for Glance<'a> {
    fn from(view: &'a View) -> Glance<'a> {
        Glance {
            key: view.key,
            name: &view.name,
            reported: view.reported,
            undecided: view.undecided,
            phase: view.phase,
            cause: view.cause,
            has_task: view.task.is_some(),
            waits_for: view.waits_for,
            retries: view.retries,
            failed_creates: view.failed_creates,
        }
    }
}

/// Usage of a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// In use now.
    pub used: u32,
    /// The limit.
    pub most: u32,
}

/// The state of the group: its limits, and what delays it.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// Instances that count towards `max_size`.
    pub instances: Limit,
    /// Creates in VCD, including sent requests.
    pub creates: Limit,
    /// Deletes in VCD, including sent requests.
    pub deletes: Limit,
    /// Creates, deletes, suspends and resumes together.
    pub operations: Limit,
    /// Lookups of vApps.
    pub looks: Limit,
    /// Probes of login ports.
    pub probes: Limit,
    /// Number of stuck instances.
    pub stuck: u32,
    /// How long the first of them has been stuck.
    pub stuck_for: Option<Duration>,
    /// How long the oldest create that has not started has waited.
    pub oldest_pending: Option<Duration>,
    /// Creates that wait for a slot, a pause or the next try.
    pub creates_waiting: u32,
    /// Deletes that wait for a slot, a pause or the next try.
    pub deletes_waiting: u32,
    /// Tasks in VCD that instances wait for.
    pub tasks: u32,
    /// By how much failed creates exceed recent successful ones.
    pub failures: u32,
    /// Time until creates continue, if the breaker is open.
    pub breaker: Option<Duration>,
    /// The breaker's pause is over and its one create decides: it has not closed yet.
    pub breaker_tries: bool,
    /// Time until changes continue, if VCD's operation limit was reached.
    pub throttle: Option<Duration>,
    /// Number of pauses because of that limit.
    pub throttled: u64,
    /// Longest time that creates still wait for leftovers of an earlier process.
    pub hold: Option<Duration>,
    /// Number of leftovers.
    pub leftovers: u32,
    /// VCD was not available at the last poll: changes wait for a successful poll.
    pub unreachable: bool,
    /// Failed polls in a row.
    pub failed_polls: u32,
    /// The host has called Shutdown.
    pub stopping: bool,
    /// Pause between polls when nothing is in progress.
    pub interval: Duration,
    /// `max_instance_age`.
    pub max_age: Duration,
}

impl Group {
    /// Every instance, including leftovers and undecided ones, in the order of their arrival.
    pub fn views(&self, now: Time) -> Vec<View> {
        self.instances.iter().map(|(key, i)| i.view(self.glance(*key, i, now), now)).collect()
    }

    /// The same in short.
    pub fn glances(&self, now: Time) -> Vec<Glance<'_>> {
        self.instances.iter().map(|(key, i)| self.glance(*key, i, now)).collect()
    }

    fn glance<'a>(&self, key: Key, i: &'a Instance, now: Time) -> Glance<'a> {
        Glance {
            key,
            name: &i.name,
            reported: i.is_reported(),
            undecided: i.origin == Origin::Found,
            phase: i.phase(),
            cause: match i.desired {
                Desired::Running | Desired::Suspended | Desired::Standby => None,
                Desired::Deleted(cause) => Some(cause),
            },
            has_task: i.operation.as_ref().is_some_and(|operation| operation.task().is_some()),
            waits_for: self.held_by(i, now).unwrap_or_else(|| i.waits_for(now)),
            retries: i.retries(),
            failed_creates: i.attempts.create.tries,
        }
    }

    /// What delays the instance's next step in addition to the limits, if it is not its own pause.
    fn held_by(&self, i: &Instance, now: Time) -> Option<&'static str> {
        if i.on_wire() || i.operation.is_some() || i.ended.is_some() {
            return None;
        }
        let creates = matches!(i.observed, Observed::Nothing) && !i.desired.is_deleted();
        if creates && i.attempts.create.next > now {
            return None;
        }
        let deletes = i.goes() && i.vapp().is_some_and(|v| v.proven) && i.attempts.delete.next <= now;
        match () {
            _ if creates && self.breaker.allows(now) < u32::MAX => Some("the create breaker"),
            _ if creates && self.held_until().is_some() => Some("leftovers to be deleted"),
            _ if (creates || deletes) && self.throttle.until(now).is_some() => Some("VCD's operation limit"),
            _ if (creates || deletes) && self.unreachable => Some("VCD to answer polls"),
            _ => None,
        }
    }

    /// The instance of a request or probe is wanted.
    pub fn wants(&self, ticket: Ticket) -> bool {
        self.about(ticket).and_then(|key| self.instances.get(&key)).is_some_and(|i| !i.goes())
    }

    /// The instance of a request or probe on the wire ([`View::key`]).
    pub fn about(&self, ticket: Ticket) -> Option<u64> {
        let (_, purpose) = self.flights.iter().find(|(flight, _)| *flight == ticket)?;
        match *purpose {
            Purpose::Label(key) | Purpose::Probe(key, _) | Purpose::Operation(key) | Purpose::Question(key) => {
                Some(key)
            }
            Purpose::Poll { .. } | Purpose::PollSome { .. } | Purpose::Tasks => None,
        }
    }

    /// The state of the group now.
    pub fn standing(&self, now: Time) -> Standing {
        let live = || self.instances.values().filter(|i| i.ended.is_none());
        let count = |which: &dyn Fn(&Instance) -> bool| live().filter(|i| which(i)).count() as u32;
        let leftovers = count(&Instance::is_leftover);
        let stuck = || live().filter_map(|i| i.stuck());
        // Nobody waits for VMs of the pool.
        let pending = || live().filter(|i| i.is_reported() && i.phase() == Phase::PendingCreate);
        let policy = &self.policy;
        Standing {
            instances: Limit { used: count(&Instance::is_reported), most: policy.max_size },
            creates: Limit { used: self.slots.used(Lane::Create), most: policy.max_creates },
            deletes: Limit { used: self.slots.used(Lane::Delete), most: policy.max_deletes },
            operations: Limit { used: self.slots.total(), most: policy.max_operations },
            looks: Limit {
                used: count(&|i| matches!(i.question, Some(Question::Look | Question::Find))),
                most: MAX_LOOKS as u32,
            },
            probes: Limit { used: count(&|i| i.vapp().is_some_and(|v| v.guest.is_probed())), most: MAX_PROBES as u32 },
            stuck: stuck().count() as u32,
            stuck_for: stuck().min().map(|since| now - since),
            oldest_pending: pending().map(|i| i.since).min().map(|since| now - since),
            creates_waiting: pending().count() as u32,
            deletes_waiting: count(&|i| i.phase() == Phase::PendingDelete && i.origin != Origin::Found),
            tasks: count(&|i| i.operation.as_ref().is_some_and(|operation| operation.task().is_some())),
            failures: self.breaker.failures(),
            breaker: self.breaker.until(now).map(|until| until - now),
            breaker_tries: self.breaker.allows(now) == 1,
            throttle: self.throttle.until(now).map(|until| until - now),
            throttled: self.throttle.pauses(),
            hold: self.held_until().map(|until| until - now),
            leftovers,
            unreachable: self.unreachable,
            failed_polls: self.poll.fails,
            stopping: self.stopping,
            interval: policy.reconcile_interval,
            max_age: policy.max_instance_age,
        }
    }
}

impl Instance {
    /// The state that the host sees.
    pub(super) fn state(&self) -> State {
        match self.desired {
            Desired::Deleted(Cause::Timeout) => State::Timeout,
            _ if self.ended.is_some() => State::Deleted,
            Desired::Deleted(_) => State::Deleting,
            Desired::Suspended if self.is_suspended() => State::Suspended,
            Desired::Suspended => State::Suspending,
            // It is not reported.
            Desired::Standby => State::Suspended,
            Desired::Running => match self.vapp().map(|vapp| &vapp.guest) {
                Some(Guest::Ready) => State::Running,
                Some(Guest::Returning { .. }) => State::Resuming,
                _ => State::Creating,
            },
        }
    }

    /// The phase that people see.
    pub(super) fn phase(&self) -> Phase {
        match self.state() {
            _ if self.ended.is_some() => Phase::Deleted,
            _ if self.stands_by() => Phase::Standby,
            _ if self.desired == Desired::Standby => match (&self.observed, &self.operation) {
                (Observed::Nothing, None) => Phase::PendingCreate,
                (Observed::Vapp(vapp), _) if vapp.guest == Guest::Standby => Phase::Suspending,
                _ => Phase::Creating,
            },
            State::Suspended => Phase::Suspended,
            State::Suspending => Phase::Suspending,
            State::Running => Phase::Running,
            State::Resuming => Phase::Resuming,
            State::Creating => match (&self.observed, &self.operation) {
                (Observed::Nothing, None) => Phase::PendingCreate,
                _ => Phase::Creating,
            },
            State::Deleting | State::Deleted | State::Timeout => {
                if self.does(|kind| matches!(kind, Kind::Delete(_))) {
                    Phase::Deleting
                } else {
                    Phase::PendingDelete
                }
            }
        }
    }

    /// What it waits for, in a few words.
    pub(super) fn waits_for(&self, now: Time) -> &'static str {
        if self.ended.is_some() {
            return "";
        }
        match (self.question, &self.operation, &self.observed) {
            (Some(Question::Cancel), ..) => "VCD to cancel its task",
            (Some(Question::Find), ..) => "a lookup after a lost answer",
            (Some(Question::Look), ..) => "a lookup",
            (None, Some(operation), _) => match &operation.stage {
                Stage::Sent => accepts(operation.kind),
                Stage::Task { .. } if operation.stuck.is_some() => "a task that hangs",
                Stage::Task { cancelled: true, .. } => "its task to stop",
                Stage::Task { .. } => works(operation.kind),
                Stage::Unknown { .. } if matches!(operation.kind, Kind::Create { .. }) => {
                    "a lookup after a lost answer"
                }
                Stage::Unknown { .. } => "a lookup",
            },
            (None, None, Observed::Nothing) if self.attempts.create.next > now => "the next try",
            (None, None, Observed::Nothing) => "a free create slot",
            (None, None, Observed::Vapp(_)) if self.origin == Origin::Found => "a lookup",
            (None, None, Observed::Vapp(vapp)) if self.goes() => match () {
                _ if self.attempts.delete.next > now => "the next try",
                _ if vapp.proven => "a free delete slot",
                _ => "a lookup",
            },
            (None, None, Observed::Vapp(vapp)) => self.rests_for(vapp, now),
        }
    }

    /// The same for a wanted instance with a vApp and without an operation.
    fn rests_for(&self, vapp: &Vapp, now: Time) -> &'static str {
        match &vapp.guest {
            _ if self.attempts.change.next > now && !matches!(vapp.guest, Guest::Ready) => "the next try",
            Guest::New => "a lookup of its hardware",
            guest if guest.boots() => match &vapp.record {
                Some(record) if record.complete() => "the login port",
                Some(record) if record.power == Power::On && record.address.is_some() => "guest customization",
                Some(record) if record.power == Power::On => "an address",
                _ => "power on",
            },
            _ if vapp.wants_look() => "a lookup",
            Guest::Ready if self.desired == Desired::Suspended && vapp.power != Power::Suspended => {
                "a free suspend slot"
            }
            Guest::Returning { .. } => "a free resume slot",
            Guest::Standby if self.desired == Desired::Running => "a free resume slot",
            Guest::Standby if !vapp.is_at_rest() => "a free suspend slot",
            _ => "",
        }
    }

    /// Failed tries of its current operation.
    fn retries(&self) -> u32 {
        let failed = match self.goes() {
            true => self.attempts.delete.tries,
            false => self.attempts.create.tries.max(self.attempts.change.tries),
        };
        failed + self.attempts.busy
    }

    /// The time of its next try.
    fn next_try(&self) -> Time {
        match &self.observed {
            Observed::Nothing => self.attempts.create.next,
            _ if self.goes() => self.attempts.delete.next,
            _ => self.attempts.change.next.max(self.attempts.look.next),
        }
    }

    fn view(&self, glance: Glance<'_>, now: Time) -> View {
        let vapp = self.vapp();
        let record = vapp.and_then(|vapp| vapp.record.as_ref());
        let pause = self.next_try() - now;
        View {
            key: glance.key,
            name: glance.name.clone(),
            state: self.state(),
            reported: glance.reported,
            undecided: glance.undecided,
            phase: glance.phase,
            cause: glance.cause,
            vapp: self.href().cloned(),
            task: super::next::task(self),
            power: record.map(|record| record.power),
            guest_os: record.map(|record| record.guest_os.clone()),
            address: record.and_then(|record| record.address),
            age: self.age(now),
            waits_for: glance.waits_for,
            next_try: Some(pause).filter(|pause| !self.on_wire() && self.ended.is_none() && !pause.is_zero()),
            retries: glance.retries,
            failed_creates: glance.failed_creates,
            missed: vapp.map_or(0, |vapp| vapp.missed),
            seen: record.map(|record| now - record.seen),
            error: self.error.clone(),
            refused: self.refused.filter(|kind| vapp.is_none() && super::failures::will_not_pass(*kind)),
            stuck: self.stuck().map(|since| now - since),
        }
    }

    pub(super) fn event(&self, level: log::Level, text: String) -> Event {
        Event { level, name: Some(self.name.clone()), phase: Some(self.phase()), text }
    }
}

fn accepts(kind: Kind) -> &'static str {
    match kind {
        Kind::Create { .. } => "VCD to accept the create",
        Kind::Configure | Kind::AddTpm | Kind::PowerOn => "VCD to accept a step of the create",
        Kind::Suspend | Kind::Mark(Mark::Suspended) => "VCD to accept the suspend",
        Kind::Resume => "VCD to accept the resume",
        Kind::Mark(Mark::Running | Mark::Standby) => "VCD to accept the suspend mark",
        Kind::Delete(_) => "VCD to accept the delete",
        Kind::Other => "",
    }
}

fn works(kind: Kind) -> &'static str {
    match kind {
        Kind::Create { .. } | Kind::Configure | Kind::AddTpm | Kind::PowerOn => "the create's task",
        Kind::Suspend | Kind::Mark(Mark::Suspended) => "the suspend's task",
        Kind::Resume => "the resume's task",
        Kind::Mark(Mark::Running | Mark::Standby) => "the suspend mark's task",
        Kind::Delete(Removal::Force | Removal::Stop | Removal::Stopped) => "the delete's task",
        Kind::Other => "another task on the VM",
    }
}

#[cfg(test)]
impl View {
    /// An instance that the host knows, without other data.
    pub fn example(key: u64, name: &str, phase: Phase) -> View {
        View {
            key,
            name: name.into(),
            state: match phase {
                Phase::PendingCreate | Phase::Creating => State::Creating,
                Phase::Running => State::Running,
                Phase::Suspending => State::Suspending,
                Phase::Suspended | Phase::Standby => State::Suspended,
                Phase::Resuming => State::Resuming,
                Phase::PendingDelete | Phase::Deleting => State::Deleting,
                Phase::Deleted => State::Deleted,
            },
            reported: true,
            undecided: false,
            phase,
            cause: None,
            vapp: None,
            task: None,
            power: None,
            guest_os: None,
            address: None,
            age: Duration::ZERO,
            waits_for: "",
            next_try: None,
            retries: 0,
            failed_creates: 0,
            missed: 0,
            seen: None,
            error: None,
            refused: None,
            stuck: None,
        }
    }
}
