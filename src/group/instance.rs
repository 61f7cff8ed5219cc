//! The data of an instance: its desired state, its observed state in VCD, and its one operation in VCD. `next.rs` decides
//! the next step, `view.rs` shows the instance to others.

use super::limits::{Backoff, Lane, Slot};
use super::time::{Seen, Stopwatch};
use super::vapp::{Guest, Removal, Vapp};
use super::{LEASE_MARGIN, Name, Time};
use crate::cloud::{ErrorKind, Href, Power};
use std::sync::Arc;
use std::time::Duration;

/// The origin of an instance. It decides who knows of the instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// An Increase of this process requested it.
    Requested,
    /// An earlier process created it, and the first Update reported it.
    Adopted,
    /// Found during Init: a lookup has yet to show what it is.
    Found,
    /// Owned by this group, and used by nobody: deleted, never reported.
    Leftover,
    /// For the standby pool: the host does not know of it.
    Standby,
}

/// The desired state of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Desired {
    Running,
    Suspended,
    /// Ready, suspended, and kept for a later Increase.
    Standby,
    Deleted(Cause),
}

impl Desired {
    pub fn is_deleted(self) -> bool {
        matches!(self, Desired::Deleted(_))
    }
}

/// The reason why an instance is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The host requested it.
    Asked,
    /// The host shuts down, and on_shutdown keeps nothing.
    Shutdown,
    /// It was not running in time.
    Timeout,
    /// VCD has lost it, or it has another owner now.
    Lost,
    /// It was powered off or failed for too long, or its guest was not ready after a resume.
    Unhealthy,
    /// Older than twice max_instance_age, or suspended for longer than suspended_max_age.
    Aged,
    /// From an earlier process, or from a create that was given up.
    Leftover,
    /// Not usable for standby: it may have been used, cannot be suspended, or is older than standby_max_age.
    Spoiled,
    /// In standby, and created from an older template or configuration.
    Outdated,
}

/// The observed state in VCD.
pub(super) enum Observed {
    /// No vApp, as far as the group knows.
    Nothing,
    Vapp(Box<Vapp>),
}

/// What an operation does with a vApp. VCD carries it out as a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `whole`: the combined request, with power-on.
    Create {
        whole: bool,
    },
    Configure,
    AddTpm,
    /// The first power-on.
    PowerOn,
    Suspend,
    Resume,
    /// Writes the suspend mark: what it means if the vApp is found suspended.
    Mark(Mark),
    Delete(Removal),
    /// A task of another user: the plugin waits for it.
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

/// What it means if a vApp is found suspended. The short form of [`cloud::Mark`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Running,
    Suspended,
    Standby,
}

/// The one operation of an instance that VCD carries out, or may carry out.
pub(super) struct Operation {
    pub kind: Kind,
    pub stage: Stage,
    pub began: Time,
    /// Runs since then, or since the request to cancel it.
    pub watch: Stopwatch,
    /// Its slot. `None` if it is stuck, or was not started by this process.
    pub slot: Option<Slot>,
    /// Stuck since then, without a slot.
    pub stuck: Option<Time>,
}

/// The stage of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its request is on the wire.
    Sent,
    /// VCD's task runs. `cancelled`: VCD was requested to cancel it. `found`: a lookup showed it, so that it may be another
    /// operation's task.
    Task { task: Href, cancelled: bool, found: bool },
    /// The answer was lost, or VCD no longer knows the task: `looks` lookups so far. VCD may carry it out `until` then.
    Unknown { until: Time, looks: u32 },
}

impl Stage {
    /// A task that a lookup shows.
    pub fn found(task: &Href) -> Stage {
        Stage::Task { task: task.clone(), cancelled: false, found: true }
    }
}

impl Operation {
    pub fn new(kind: Kind, stage: Stage, slot: Option<Slot>, now: Time, seen: Seen) -> Box<Operation> {
        Box::new(Operation { kind, stage, began: now, watch: Stopwatch::start(seen), slot, stuck: None })
    }

    /// The task that the instance waits for.
    pub fn task(&self) -> Option<&Href> {
        match &self.stage {
            Stage::Task { task, .. } => Some(task),
            _ => None,
        }
    }
}

/// The request about an instance that is on the wire, in addition to its operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    Find,
    Look,
    Cancel,
}

/// The failures of an instance, for each kind of request.
#[derive(Clone, Debug, Default)]
pub(super) struct Attempts {
    pub create: Backoff,
    /// Configure, power on, suspend, resume.
    pub change: Backoff,
    pub delete: Backoff,
    /// Deletes and changes in a row that VCD rejected because a task works on the vApp.
    pub busy: u32,
    pub look: Backoff,
    /// No probe of the login port before this time.
    pub probe: Time,
}

impl Attempts {
    /// No task of another user works on the vApp any more.
    pub fn not_busy(&mut self) {
        self.busy = 0;
        for backoff in [&mut self.change, &mut self.delete] {
            backoff.since = backoff.since.filter(|_| backoff.tries > 0);
        }
    }
}

/// One instance.
pub(super) struct Instance {
    pub name: Name,
    pub origin: Origin,
    pub desired: Desired,
    pub observed: Observed,
    /// On the heap, because most instances have none.
    pub operation: Option<Box<Operation>>,
    /// On the wire. Never at the same time as an operation's request.
    pub question: Option<Question>,
    pub attempts: Attempts,
    /// Why its last create or resume failed, if one failed.
    pub refused: Option<ErrorKind>,
    /// Runs since it was accepted.
    pub accepted: Stopwatch,
    /// Runs since the first create request.
    pub creating: Option<Stopwatch>,
    /// When the last create request was sent.
    pub create_began: Time,
    /// When it was accepted or found.
    pub since: Time,
    /// Its age at that time.
    pub age_before: Duration,
    /// It was created with other generated credentials than the current ones.
    pub locked_out: bool,
    pub error: Option<Arc<str>>,
    pub ended: Option<Time>,
    /// Its previous vApp, which late polls may still show.
    pub last_vapp: Option<Href>,
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
            refused: None,
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

    /// A leftover, or undecided.
    pub fn is_leftover(&self) -> bool {
        matches!(self.origin, Origin::Found | Origin::Leftover)
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

    /// This vApp belongs to it now.
    pub fn observe(&mut self, vapp: Vapp) {
        self.last_vapp = Some(vapp.href.clone());
        self.observed = Observed::Vapp(Box::new(vapp));
    }

    /// It runs, as far as the host can know.
    pub fn is_running(&self) -> bool {
        self.desired == Desired::Running && self.vapp().is_some_and(|v| matches!(v.guest, Guest::Ready))
    }

    /// It is suspended and marked as standby.
    pub fn stands_by(&self) -> bool {
        self.desired == Desired::Standby && self.operation.is_none() && self.vapp().is_some_and(Vapp::is_at_rest)
    }

    /// The slot that an operation of this kind takes.
    pub fn lane(&self, kind: Kind) -> Option<Lane> {
        let handed_out = self.desired == Desired::Running && self.vapp().is_some_and(|v| v.guest == Guest::Standby);
        match kind {
            Kind::Delete(_) => kind.lane(),
            _ if self.origin == Origin::Standby => Some(Lane::Standby),
            Kind::Mark(_) if handed_out => Some(Lane::Resume),
            _ => kind.lane(),
        }
    }

    /// Its guest was ready once, perhaps for an earlier process: it is kept if running instances are kept, and lost if it
    /// disappears.
    #[inline(never)]
    pub fn has_run(&self) -> bool {
        self.origin == Origin::Adopted || self.vapp().is_some_and(|vapp| vapp.guest.has_run())
    }

    /// It is powered on and wanted, and its login port has not answered yet: only polls show its progress.
    pub fn boots(&self) -> bool {
        let boots = self.vapp().is_some_and(|vapp| vapp.guest.boots());
        let wanted = matches!(self.desired, Desired::Running | Desired::Standby);
        boots && self.ended.is_none() && wanted && !self.goes() && self.operation.is_none()
    }

    /// It is suspended, according to operations and lookups, and its suspend mark is written: else a later process deletes it.
    pub fn is_suspended(&self) -> bool {
        self.vapp().is_some_and(|vapp| vapp.power == Power::Suspended && vapp.mark == Some(Mark::Suspended))
    }

    /// Its vApp is to be deleted: it is not wanted, or its create failed.
    pub fn goes(&self) -> bool {
        self.desired.is_deleted() || self.vapp().is_some_and(|vapp| vapp.doomed)
    }

    /// It is wanted, and a quota prevents its create.
    pub fn lacks_quota(&self) -> bool {
        let unmade = self.vapp().is_none_or(|vapp| vapp.doomed);
        self.refused == Some(ErrorKind::Quota) && unmade && !self.desired.is_deleted()
    }

    /// It has an operation of this kind in VCD, or may have.
    pub fn does(&self, which: impl Fn(Kind) -> bool) -> bool {
        self.operation.as_ref().is_some_and(|operation| which(operation.kind))
    }

    /// Its create is on the wire, or its outcome is unknown: a vApp with its name in a poll may belong to it.
    pub fn may_have_made(&self) -> bool {
        self.operation.as_ref().is_some_and(|operation| {
            matches!(operation.kind, Kind::Create { .. })
                && matches!(operation.stage, Stage::Sent | Stage::Unknown { .. })
        })
    }

    /// Since when it is stuck: its operation hangs, or it cannot be deleted, suspended, resumed or looked up.
    pub fn stuck(&self) -> Option<Time> {
        if self.ended.is_some() {
            return None;
        }
        let hangs = self.operation.as_ref().and_then(|operation| operation.stuck);
        let Attempts { change, delete, look, .. } = &self.attempts;
        let unread = look.since.filter(|_| look.has_failed());
        let fails = match () {
            _ if self.goes() => delete.since.or(unread),
            // It needs no change.
            _ if self.is_running() => None,
            _ => change.since.or(unread),
        };
        hangs.into_iter().chain(fails).min()
    }

    /// Its lease in VCD ends soon.
    pub fn lease_ends(&self, now: Time) -> bool {
        // The lease began when the vApp was created, or later.
        let margin = |end: Time| LEASE_MARGIN.min((self.age(now) + (end - now)) / 4);
        self.vapp().and_then(|vapp| vapp.lease_end).is_some_and(|end| now + margin(end) >= end)
    }

    pub fn age(&self, now: Time) -> Duration {
        self.age_before + (now - self.since)
    }

    /// Its age counts from now: a suspended VM does nothing.
    pub fn renew(&mut self, now: Time) {
        (self.since, self.age_before) = (now, Duration::ZERO);
    }
}
