//! What an instance is: what is desired of it, what is observed in VCD, and the one operation that is in VCD or may be. What
//! follows from that is in `next.rs`, how it looks is in `view.rs`.

use super::limits::{Backoff, Lane, Slot};
use super::time::{Seen, Stopwatch};
use super::{Name, Time};
use crate::cloud::{self, Customization, Href, Made, Power, SeenGuest, VcdError, Vm, is_windows};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Three polls in a row without an instance ask for a direct look.
pub const MISSED_POLLS: u32 = 3;
/// Looks that find what polls do not show are at most so many polls apart.
pub const MISSED_POLLS_MAX: u32 = 64;
/// A made VM's hardware is asked for at most so many times if VCD does not answer.
pub const CHECKS: u32 = 3;
/// What a direct look has shown of a VM that is made counts for so long: somebody may move it meanwhile.
pub const DOCUMENT_AGE: Duration = Duration::from_secs(15);
/// A guest whose customization reports nothing is taken when its login port has answered every probe for so long.
pub const CUSTOMIZATION_GRACE: Duration = Duration::from_secs(60);
/// The same for a Windows, whose customization takes many minutes and several reboots.
pub const CUSTOMIZATION_GRACE_WINDOWS: Duration = Duration::from_secs(5 * 60);

/// Where an instance comes from, and with that who knows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// An Increase of this process asked for it.
    Requested,
    /// An earlier process made it, and the first Update reported it.
    Adopted,
    /// Found while Init goes on: a look has yet to tell what it is.
    Found,
    /// Ours, and nobody's: deleted, never reported.
    Leftover,
}

/// What is desired of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Desired {
    Running,
    Suspended,
    Deleted(Cause),
}

impl Desired {
    pub fn is_deleted(self) -> bool {
        matches!(self, Desired::Deleted(_))
    }
}

/// Why an instance has to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The host said so.
    Asked,
    /// The host ends, and on_shutdown says that nothing stays.
    Shutdown,
    /// It did not come to running in time.
    Timeout,
    /// VCD has lost it, or somebody took it over.
    Lost,
    /// It was off or broken for too long, or its guest did not come back after it was resumed.
    Unhealthy,
    /// Older than twice max_instance_age, or suspended for longer than suspended_max_age.
    Aged,
    /// An earlier process began it, or a request that was given up.
    Leftover,
}

/// What is observed in VCD.
pub(super) enum Observed {
    /// No vApp, as far as is known.
    Nothing,
    Vapp(Box<Vapp>),
}

/// A vApp of an instance.
pub(super) struct Vapp {
    pub href: Href,
    /// Since when it is known: polls that were sent before say nothing of it.
    pub known: Time,
    /// Its own document has shown that it is ours, and no poll the contrary since: nothing is changed before.
    pub proven: bool,
    /// It has to go, whatever is desired: its create failed. Why it is made anew is in the instance's error.
    pub doomed: bool,
    /// How it is as far as operations and looks tell. Polls lag: they only contradict.
    pub power: Power,
    pub guest: Guest,
    /// How far it is made.
    pub build: Build,
    /// Its VM, once seen.
    pub vm: Option<Href>,
    /// What the last poll that showed the VM said.
    pub record: Option<Record>,
    /// What the last direct look showed, until something is done to it.
    pub document: Option<Document>,
    /// Something does not fit: a look settles it.
    pub doubt: bool,
    /// Another VM than ours is in it.
    pub shared: bool,
    /// Polls in a row, sent after `known`, that did not show it.
    pub missed: u32,
    /// So many missed polls ask for a direct look; doubles when the look finds it.
    pub patience: u32,
    /// Polls in a row that contradict what is believed of it.
    pub against: u32,
    /// The record shows no address any more: the last one is kept.
    pub address_kept: bool,
    /// Off or broken, and not by us.
    pub unhealthy: Option<Unhealthy>,
    /// How it is deleted next.
    pub removal: Removal,
    /// When VCD will suspend or delete it by itself.
    pub lease_end: Option<Time>,
    /// Its address outside the NAT of its vApp, if a look at that showed one: the vApps that are made here have no NAT.
    pub external: Option<IpAddr>,
    pub label: Label,
    /// The group's label was on it when it was found, or was written since.
    pub labelled: bool,
    /// It carries the mark of a suspend of ours.
    pub marked: bool,
}

/// The guest of a vApp, as far as this process has to do with it.
#[derive(Clone, Debug)]
pub(super) enum Guest {
    /// It has not been on.
    New,
    /// It is on for the first time: `since` then, and its login port `answers` every probe since.
    Booting { since: Stopwatch, answers: Option<Time>, probing: bool },
    /// Its login port has answered.
    Ready,
    /// It has run, was suspended, and is wanted again: `since` it is on.
    Returning { since: Option<Stopwatch>, answers: Option<Time>, probing: bool },
}

impl Guest {
    /// It has answered once: nobody makes it anew.
    pub fn has_run(&self) -> bool {
        matches!(self, Guest::Ready | Guest::Returning { .. })
    }

    /// It is on, and its login port has yet to answer.
    pub fn boots(&self) -> bool {
        matches!(self, Guest::Booting { .. } | Guest::Returning { since: Some(_), .. })
    }

    pub fn is_probed(&self) -> bool {
        matches!(self, Guest::Booting { probing: true, .. } | Guest::Returning { probing: true, .. })
    }

    /// The watch that judges it, and whether its port answers steadily.
    pub fn watch(&mut self) -> Option<(&mut Stopwatch, &mut Option<Time>, &mut bool)> {
        match self {
            Guest::Booting { since, answers, probing } | Guest::Returning { since: Some(since), answers, probing } => {
                Some((since, answers, probing))
            }
            _ => None,
        }
    }
}

/// How far a VM is made.
#[derive(Default)]
pub(super) struct Build {
    /// Its create carried everything, and powers it on.
    pub whole: bool,
    /// Its hardware was set by a request of its own.
    pub configured: bool,
    /// It was given a TPM, or does not take one.
    pub tpm: bool,
    /// How often its hardware was asked for, to compare it with the wish; [`CHECKS`] when that is done.
    pub checks: u32,
    /// Its create's task has failed so: a look tells whether it can be used all the same.
    pub failed: Option<VcdError>,
    /// Between two steps that follow each other at once, the second has the slot of the first.
    pub slot: Option<Slot>,
}

/// Off or broken, and not by us. Heartbeat says so.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unhealthy {
    pub since: Stopwatch,
    pub why: &'static str,
    /// It is deleted if it stays so.
    pub ends: bool,
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
pub(super) struct Record {
    pub seen: Time,
    pub power: Power,
    /// A task held it.
    pub busy: bool,
    pub address: Option<IpAddr>,
    pub customization: Customization,
    pub guest_os: Arc<str>,
}

impl Record {
    /// `has_run`: its customization was over before, whatever is told of it now.
    pub fn of(vm: &Vm, has_run: bool, seen: Time) -> Record {
        let (power, busy) = (vm.power, vm.busy);
        let customization = if has_run { Customization::Complete } else { vm.customization };
        Record { seen, power, busy, address: vm.address, customization, guest_os: vm.guest_os.as_str().into() }
    }

    /// As a look shows it, which counts for more than what polls have shown before.
    pub fn of_look(seen: &SeenGuest, busy: bool, old: Option<&Record>, now: Time) -> Record {
        let customization = match (seen.customization, old) {
            (Customization::Unknown, Some(old)) => old.customization,
            (told, _) => told,
        };
        let guest_os = match old {
            Some(old) if seen.guest_os.is_empty() => old.guest_os.clone(),
            _ => seen.guest_os.as_str().into(),
        };
        let address = seen.address.or(old.and_then(|old| old.address));
        Record { seen: now, power: Power::On, busy, address, customization, guest_os }
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

    /// How long its login port must answer steadily if customization reports nothing.
    pub fn grace(&self) -> Duration {
        if is_windows(&self.guest_os) { CUSTOMIZATION_GRACE_WINDOWS } else { CUSTOMIZATION_GRACE }
    }
}

/// What a direct look showed.
#[derive(Clone, Debug)]
pub(super) struct Document {
    pub at: Time,
    pub busy: bool,
    /// VCD shows what made it and what it lacks.
    pub made: Option<Made>,
}

impl Document {
    pub fn of(seen: &cloud::Vapp, at: Time) -> Document {
        Document { at, busy: seen.busy, made: seen.made.clone() }
    }
}

/// How a vApp is deleted: by force, or stopped first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removal {
    Force,
    Stop,
    Stopped,
}

/// What is done to a vApp, by a request that VCD carries out in its own time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `whole`: with everything, powered on.
    Create {
        whole: bool,
    },
    Configure,
    AddTpm,
    /// For the first time.
    PowerOn,
    Suspend,
    Resume,
    /// Writes whether a suspend of ours is on its way.
    Mark(bool),
    Delete(Removal),
    /// Somebody else's task: it is waited for.
    Other,
}

impl Kind {
    pub fn lane(self) -> Option<Lane> {
        match self {
            Kind::Create { .. } | Kind::Configure | Kind::AddTpm | Kind::PowerOn => Some(Lane::Create),
            Kind::Resume => Some(Lane::Resume),
            Kind::Suspend | Kind::Mark(_) => Some(Lane::Suspend),
            Kind::Delete(_) => Some(Lane::Delete),
            Kind::Other => None,
        }
    }
}

/// The one operation of an instance that is in VCD, or may be.
pub(super) struct Operation {
    pub kind: Kind,
    pub stage: Stage,
    pub began: Time,
    /// Counts since then, or since VCD was asked to cancel it.
    pub watch: Stopwatch,
    /// What it holds of the limits; `None` when it is stuck, or was not begun here.
    pub slot: Option<Slot>,
    /// It hangs since then, and counts no more.
    pub stuck: Option<Time>,
}

/// How far an operation is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its request is on the wire.
    Sent,
    /// VCD's task is at work. `cancelled`: VCD was asked to stop it. `found`: a look showed it, so that it may do something else.
    Task { task: Href, cancelled: bool, found: bool },
    /// The answer was lost, or the task forgotten: looked for `looks` times since `since`.
    Unknown { since: Time, looks: u32 },
}

impl Operation {
    pub fn new(kind: Kind, stage: Stage, slot: Option<Slot>, now: Time, seen: Seen) -> Operation {
        Operation { kind, stage, began: now, watch: Stopwatch::start(seen), slot, stuck: None }
    }

    /// The task that is awaited.
    pub fn task(&self) -> Option<&Href> {
        match &self.stage {
            Stage::Task { task, .. } => Some(task),
            _ => None,
        }
    }
}

/// What is asked about an instance right now, beside its operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    Find,
    Look,
    Cancel,
}

/// How each kind of request has failed on an instance.
#[derive(Clone, Debug, Default)]
pub(super) struct Attempts {
    pub create: Backoff,
    /// Configure, power on, suspend, resume.
    pub change: Backoff,
    pub delete: Backoff,
    pub look: Backoff,
}

/// One instance.
pub(super) struct Instance {
    pub name: Name,
    pub origin: Origin,
    pub desired: Desired,
    pub observed: Observed,
    pub operation: Option<Operation>,
    /// On the wire. Never while an operation's request is.
    pub question: Option<Question>,
    pub attempts: Attempts,
    /// VCD refused its last create for a quota.
    pub over_quota: bool,
    /// Counts since it was accepted.
    pub accepted: Stopwatch,
    /// Counts since VCD was first asked to make it.
    pub creating: Option<Stopwatch>,
    /// When VCD was last asked to make it.
    pub create_began: Time,
    /// When it was accepted or found.
    pub since: Time,
    /// How old it was then.
    pub age_before: Duration,
    /// It was made with other generated credentials than those of today.
    pub locked_out: bool,
    pub error: Option<Arc<str>>,
    pub ended: Option<Time>,
    /// The vApp that it had last, which late polls may still show.
    pub last_vapp: Option<Href>,
}

impl Vapp {
    pub fn new(href: Href, now: Time) -> Vapp {
        Vapp {
            href,
            known: now,
            proven: false,
            doomed: false,
            power: Power::Other,
            guest: Guest::New,
            build: Build { whole: true, ..Build::default() },
            vm: None,
            record: None,
            document: None,
            doubt: false,
            shared: false,
            missed: 0,
            patience: MISSED_POLLS,
            against: 0,
            address_kept: false,
            unhealthy: None,
            removal: Removal::Force,
            lease_end: None,
            external: None,
            label: Label::Settled,
            labelled: false,
            marked: false,
        }
    }

    /// Polls do not show it, and a look is due.
    pub fn is_missing(&self) -> bool {
        self.missed >= self.patience
    }

    /// Something is to be settled by a direct look.
    pub fn wants_look(&self) -> bool {
        self.is_missing() || self.doubt || self.is_unchecked()
    }

    /// It was made now, and its hardware has not been compared with the wish yet.
    pub fn is_unchecked(&self) -> bool {
        matches!(self.guest, Guest::Booting { .. }) && self.build.checks < CHECKS
    }

    /// What a look showed, if that counts still.
    pub fn document(&self, now: Time) -> Option<&Document> {
        self.document.as_ref().filter(|document| now - document.at <= DOCUMENT_AGE)
    }

    /// It is on for the first time.
    pub fn boots(&mut self, now: Time, seen: Seen) {
        self.guest = Guest::Booting { since: Stopwatch::start(seen), answers: None, probing: false };
        self.settle(Power::On, now);
    }

    /// It is known to be so since `now`: what polls said before does not count.
    pub fn settle(&mut self, power: Power, now: Time) {
        self.power = power;
        self.known = now;
        self.doubt = false;
        (self.against, self.missed, self.patience) = (0, 0, MISSED_POLLS);
    }
}

impl Instance {
    pub fn new(name: Name, origin: Origin, now: Time, seen: Seen) -> Instance {
        Instance {
            name,
            origin,
            desired: Desired::Running,
            observed: Observed::Nothing,
            operation: None,
            question: None,
            attempts: Attempts::default(),
            over_quota: false,
            accepted: Stopwatch::start(seen),
            creating: None,
            create_began: now,
            since: now,
            age_before: Duration::ZERO,
            locked_out: false,
            error: None,
            ended: None,
            last_vapp: None,
        }
    }

    /// The host knows it.
    pub fn is_reported(&self) -> bool {
        matches!(self.origin, Origin::Requested | Origin::Adopted)
    }

    pub fn vapp(&self) -> Option<&Vapp> {
        match &self.observed {
            Observed::Nothing => None,
            Observed::Vapp(vapp) => Some(vapp),
        }
    }

    pub fn vapp_mut(&mut self) -> Option<&mut Vapp> {
        match &mut self.observed {
            Observed::Nothing => None,
            Observed::Vapp(vapp) => Some(vapp),
        }
    }

    pub fn href(&self) -> Option<&Href> {
        self.vapp().map(|vapp| &vapp.href)
    }

    /// This vApp is its own from now on.
    pub fn observe(&mut self, vapp: Vapp) {
        self.last_vapp = Some(vapp.href.clone());
        self.observed = Observed::Vapp(Box::new(vapp));
    }

    /// It runs, as far as the host can know.
    pub fn is_running(&self) -> bool {
        self.desired == Desired::Running && self.vapp().is_some_and(|v| matches!(v.guest, Guest::Ready))
    }

    /// It has run: it is kept if running instances are, and lost if it goes.
    pub fn has_run(&self) -> bool {
        self.vapp().is_some_and(|vapp| vapp.guest.has_run())
    }

    /// It is suspended, as far as operations and looks tell.
    pub fn is_suspended(&self) -> bool {
        self.vapp().is_some_and(|vapp| vapp.power == Power::Suspended)
    }

    /// What is in VCD has to go: it is not wanted, or its create failed.
    pub fn goes(&self) -> bool {
        self.desired.is_deleted() || self.vapp().is_some_and(|vapp| vapp.doomed)
    }

    /// An operation of this kind is in VCD, or may be.
    pub fn does(&self, which: impl Fn(Kind) -> bool) -> bool {
        self.operation.as_ref().is_some_and(|operation| which(operation.kind))
    }

    /// Its create is on the wire, or its outcome is not known: what a poll shows under its name may be its.
    pub fn may_have_made(&self) -> bool {
        self.operation.as_ref().is_some_and(|operation| {
            matches!(operation.kind, Kind::Create { .. })
                && matches!(operation.stage, Stage::Sent | Stage::Unknown { .. })
        })
    }

    /// Since when it is stuck: its operation hangs, or it cannot be deleted, suspended or resumed.
    pub fn stuck(&self) -> Option<Time> {
        if self.ended.is_some() {
            return None;
        }
        let hangs = self.operation.as_ref().and_then(|operation| operation.stuck);
        let fails = if self.goes() { self.attempts.delete.since } else { self.attempts.change.since };
        hangs.into_iter().chain(fails).min()
    }

    pub fn age(&self, now: Time) -> Duration {
        self.age_before + (now - self.since)
    }
}
