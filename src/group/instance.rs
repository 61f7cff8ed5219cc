//! What an instance is: what is desired of it, what is observed in VCD, and the one operation that is in VCD or may be. What
//! follows from that is in `next.rs`, how it looks is in `view.rs`.

use super::limits::{Backoff, Lane, Slot};
use super::time::{Seen, Stopwatch};
use super::vapp::{Guest, Removal, Vapp};
use super::{Name, Time};
use crate::cloud::{ErrorKind, Href, Power};
use std::sync::Arc;
use std::time::Duration;

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
    /// For the standby pool: the host does not know of it.
    Standby,
}

/// What is desired of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Desired {
    Running,
    Suspended,
    /// Complete, suspended, and kept for a later Increase.
    Standby,
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
    /// It cannot be in standby: it may have been used, cannot be suspended, or is older than standby_max_age.
    Spoiled,
    /// In standby, and created from what is not configured any more.
    Outdated,
}

/// What is observed in VCD.
pub(super) enum Observed {
    /// No vApp, as far as is known.
    Nothing,
    Vapp(Box<Vapp>),
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
    /// Writes what it means if it is found suspended.
    Mark(Mark),
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

/// What it means if a vApp is found suspended, in short ([`cloud::Mark`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Running,
    Suspended,
    Standby,
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
    /// How often in a row VCD refused a delete or change because a task holds the vApp.
    pub busy: u32,
    pub look: Backoff,
}

impl Attempts {
    /// No task of somebody's holds the vApp any more.
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
    pub operation: Option<Operation>,
    /// On the wire. Never while an operation's request is.
    pub question: Option<Question>,
    pub attempts: Attempts,
    /// Why its last create failed, if one did.
    pub refused: Option<ErrorKind>,
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

    /// Nobody's, or not known to be anybody's yet.
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

    /// This vApp is its own from now on.
    pub fn observe(&mut self, vapp: Vapp) {
        self.last_vapp = Some(vapp.href.clone());
        self.observed = Observed::Vapp(Box::new(vapp));
    }

    /// It runs, as far as the host can know.
    pub fn is_running(&self) -> bool {
        self.desired == Desired::Running && self.vapp().is_some_and(|v| matches!(v.guest, Guest::Ready))
    }

    /// It is in standby, and whoever finds it knows that.
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

    /// It has run: it is kept if running instances are, and lost if it goes.
    pub fn has_run(&self) -> bool {
        self.vapp().is_some_and(|vapp| vapp.guest.has_run())
    }

    /// It is on and wanted, and its login port has yet to answer: only polls show how far it is.
    pub fn boots(&self) -> bool {
        let boots = self.vapp().is_some_and(|vapp| vapp.guest.boots());
        let wanted = matches!(self.desired, Desired::Running | Desired::Standby);
        boots && self.ended.is_none() && wanted && !self.goes() && self.operation.is_none()
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
