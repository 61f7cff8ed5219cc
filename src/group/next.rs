//! The next step of an instance: a pure function of its desired state, its observed state, and its operation in VCD. It
//! changes nothing. `turn.rs` decides whether the limits allow the step now.

use super::instance::{Cause, Desired, Instance, Kind, Mark, Observed, Operation, Origin, Question, Stage};
use super::limits::Lane;
use super::time::{Seen, Sight, Time};
use super::vapp::{Guest, Label, Removal, Vapp};
use super::{PRUNE_AFTER, Policy, UNHEALTHY_GRACE};
use crate::cloud::{Href, Power};
use std::net::IpAddr;
use std::time::Duration;

/// A create that never starts is given up after this many times create_timeout.
pub const QUEUE_TIMEOUTS: u32 = 3;
/// A longer task is cancelled. Creates have create_timeout instead.
pub const TASK_PATIENCE: Duration = Duration::from_secs(30 * 60);
/// A longer operation gives up its slot, and is reported as stuck. A create keeps its slot until it is cancelled.
pub const SLOT_PATIENCE: Duration = Duration::from_secs(10 * 60);
/// A task that still runs this long after the request to cancel it is stuck.
pub const CANCEL_PATIENCE: Duration = Duration::from_secs(2 * 60);
/// A request whose answer was lost counts as not carried out if lookups find nothing of it for this long.
pub const UNKNOWN_WINDOW: Duration = Duration::from_secs(60);
/// Customization usually ends within this time. Before that, a port that answers may belong to a template that will reboot.
pub const CUSTOMIZATION_USUAL: Duration = Duration::from_secs(60);

/// After a resume, a guest's clock is wrong for a moment, until VMware Tools set it.
pub const RESUME_SETTLE: Duration = Duration::from_secs(1);
/// With DHCP, another guest may have the address of a guest that was suspended. VMware Tools report addresses every 30 s: after
/// this time, an unchanged address is the guest's own.
pub const RESUME_REPORT: Duration = Duration::from_secs(45);

/// The inputs of the step in addition to the instance.
pub(super) struct At<'a> {
    pub now: Time,
    pub seen: Seen,
    pub sight: &'a Sight,
    pub policy: &'a Policy,
    /// The host shuts down: nothing is started except cleanup.
    pub stopping: bool,
    /// VCD rejected a forced delete because of a missing right.
    pub no_force: bool,
}

/// The next step of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing now.
    Wait,
    /// It has been reported as deleted for long enough.
    Forget,
    /// Nothing of it remains.
    End,
    /// It is to be deleted.
    GiveUp(Cause),
    /// Its guest was not ready within ready_timeout: it is created again.
    NotReady,
    /// Its operation hangs: it gives up its slot.
    Stick,
    /// It was about to be suspended, is still powered on, and is wanted now.
    Use,
    /// It cannot be suspended: its vApp contains another VM.
    Keep,
    Ask(Question),
    Begin(Kind),
    Probe(IpAddr),
    Label,
}

/// The next step, and when it could change if nothing happens until then.
pub(super) struct Next {
    pub step: Step,
    pub wake: Option<Time>,
    /// A lookup is to decide, now or after a pause.
    pub looks: bool,
}

pub(super) fn next(i: &Instance, at: &At<'_>) -> Next {
    let mut from = From { at, wake: None, looks: false };
    let step = from.step(i);
    Next { step, wake: from.wake, looks: from.looks }
}

/// Decides for one moment, and collects the time of the next decision.
struct From<'a> {
    at: &'a At<'a>,
    wake: Option<Time>,
    looks: bool,
}

impl From<'_> {
    fn wake_by(&mut self, time: Time) {
        self.wake = Some(self.wake.map_or(time, |wake| wake.min(time)));
    }

    /// True from that time on. Before, it requests a new decision at that time.
    fn reached(&mut self, time: Time) -> bool {
        if self.at.now < time {
            self.wake_by(time);
        }
        self.at.now >= time
    }

    /// The same with the clock that runs only while polls succeed.
    fn seen(&mut self, point: Seen) -> bool {
        if self.at.seen < point
            && let Some(time) = self.at.sight.when(point, self.at.now)
        {
            self.wake_by(time);
        }
        self.at.seen >= point
    }

    fn step(&mut self, i: &Instance) -> Step {
        if let Some(ended) = i.ended {
            return if self.reached(ended + PRUNE_AFTER) { Step::Forget } else { Step::Wait };
        }
        if self.is_overdue(i) {
            return Step::GiveUp(Cause::Timeout);
        }
        if i.question.is_some() {
            return Step::Wait;
        }
        if let Some(operation) = &i.operation {
            return self.operation(i, operation);
        }
        match (&i.observed, i.desired) {
            (Observed::Nothing, Desired::Deleted(_)) => Step::End,
            (Observed::Nothing, _) => match self.reached(i.attempts.create.next) {
                true => Step::Begin(Kind::Create { whole: true }),
                false => Step::Wait,
            },
            // Its own document shows the owner.
            (Observed::Vapp(_), _) if i.origin == Origin::Found => self.look(i),
            (Observed::Vapp(vapp), _) if i.goes() => self.delete(i, vapp),
            (Observed::Vapp(vapp), Desired::Suspended) => self.suspend(i, vapp),
            (Observed::Vapp(vapp), Desired::Standby) if vapp.guest == Guest::Standby => self.stand_by(i, vapp),
            (Observed::Vapp(vapp), _) => self.run(i, vapp),
        }
    }

    /// It is not running in time.
    fn is_overdue(&mut self, i: &Instance) -> bool {
        let made = match i.desired {
            Desired::Running => i.origin == Origin::Requested && !i.has_run(),
            Desired::Standby => i.creating.is_some() && i.vapp().is_none_or(|vapp| vapp.guest != Guest::Standby),
            Desired::Suspended | Desired::Deleted(_) => false,
        };
        if !made {
            return false;
        }
        let timeout = self.at.policy.create_timeout;
        self.seen(match i.creating {
            Some(watch) => watch.end(timeout),
            None => i.accepted.end(timeout * QUEUE_TIMEOUTS),
        })
    }

    fn look(&mut self, i: &Instance) -> Step {
        self.looks = true;
        let question = if i.vapp().is_some() { Question::Look } else { Question::Find };
        if self.reached(i.attempts.look.next) { Step::Ask(question) } else { Step::Wait }
    }

    /// It has taken too long, and is not reported as stuck yet.
    fn hangs(&mut self, operation: &Operation, patience: Duration) -> bool {
        operation.stuck.is_none() && self.seen(operation.watch.end(patience))
    }

    /// An operation is in VCD, or may be.
    fn operation(&mut self, i: &Instance, operation: &Operation) -> Step {
        match &operation.stage {
            Stage::Sent => Step::Wait,
            Stage::Unknown { .. } => {
                self.looks = true;
                if self.hangs(operation, SLOT_PATIENCE) {
                    return Step::Stick;
                }
                self.look(i)
            }
            Stage::Task { cancelled: true, .. } => {
                if self.hangs(operation, CANCEL_PATIENCE) {
                    return Step::Stick;
                }
                // VCD may have forgotten it, or it cancels it on a second request.
                if operation.stuck.is_some() { self.look(i) } else { Step::Wait }
            }
            Stage::Task { cancelled: false, found, .. } => {
                let stops = !matches!(operation.kind, Kind::Delete(_) | Kind::Mark(_) | Kind::Other);
                if (stops && i.goes()) || (operation.stuck.is_some() && self.seen(operation.watch.end(TASK_PATIENCE))) {
                    // Only a task on a vApp whose own document shows the owner tag is cancelled. A person may have started
                    // a task that a lookup found.
                    let may = |vapp: &Vapp| if *found { vapp.is_known(self.at.now) } else { vapp.proven };
                    return match i.vapp().map(may) {
                        Some(true) if self.reached(i.attempts.change.next) => Step::Ask(Question::Cancel),
                        Some(true) => Step::Wait,
                        _ if i.attempts.look.has_failed() && self.hangs(operation, SLOT_PATIENCE) => {
                            self.looks = true;
                            Step::Stick
                        }
                        _ => self.look(i),
                    };
                }
                let making = operation.kind.lane() == Some(Lane::Create) && !i.goes();
                if !making && self.hangs(operation, SLOT_PATIENCE) {
                    return Step::Stick;
                }
                // Such a task says nothing about the VM.
                let aside = matches!(operation.kind, Kind::Mark(_) | Kind::Other) && !i.goes();
                if aside && i.vapp().is_some_and(Vapp::is_missing) {
                    return self.look(i);
                }
                Step::Wait
            }
        }
    }

    /// It is to be deleted. A vApp that may be busy, shared or foreign is looked up first, and so is one that could not be
    /// deleted before, or that the last poll did not show.
    fn delete(&mut self, i: &Instance, vapp: &Vapp) -> Step {
        if !self.reached(i.attempts.delete.next) {
            return Step::Wait;
        }
        let removal = match vapp.removal {
            Removal::Force if self.at.no_force => Removal::Stop,
            other => other,
        };
        let unclear = vapp.doubt
            || i.origin != Origin::Requested
            || removal != Removal::Force
            || i.attempts.delete.tries > 0
            || vapp.is_busy();
        let known = vapp.is_known(self.at.now);
        if !known || vapp.shared || vapp.is_missing() || (unclear && vapp.document.is_none()) {
            return self.look(i);
        }
        Step::Begin(Kind::Delete(removal))
    }

    fn run(&mut self, i: &Instance, vapp: &Vapp) -> Step {
        match &vapp.guest {
            Guest::New => self.make(i, vapp),
            Guest::Booting { since, answers: _, probing } => {
                if self.seen(since.end(self.at.policy.ready_timeout)) {
                    return Step::NotReady;
                }
                self.boot(i, vapp, *probing)
            }
            Guest::Returning { since: Some(since), answers: _, probing } => {
                if self.seen(since.end(self.at.policy.ready_timeout)) {
                    return Step::GiveUp(Cause::Unhealthy);
                }
                self.boot(i, vapp, *probing)
            }
            Guest::Returning { since: None, .. } => match self.rest(i, vapp) {
                Some(step) => step,
                None if vapp.power == Power::On => Step::Use,
                None => self.change(i, vapp, Kind::Resume),
            },
            // From now on, no process that finds it may treat it as unused.
            Guest::Standby => match self.rest(i, vapp) {
                Some(step) => step,
                None if vapp.power == Power::On => Step::Use,
                None if vapp.mark != Some(Mark::Running) => self.change(i, vapp, Kind::Mark(Mark::Running)),
                None => self.change(i, vapp, Kind::Resume),
            },
            Guest::Ready => match self.rest(i, vapp) {
                Some(step) => step,
                None => self.tidy(i, vapp),
            },
        }
    }

    /// Created and not yet powered on: a lookup shows what is missing.
    fn make(&mut self, i: &Instance, vapp: &Vapp) -> Step {
        if !self.reached(i.attempts.change.next) {
            return Step::Wait;
        }
        let document = vapp.document(self.at.now).filter(|document| !document.busy);
        let Some(made) = document.and_then(|document| document.made.as_ref()) else { return self.look(i) };
        Step::Begin(match () {
            _ if made.differs.is_some() && made.differs != vapp.build.configured => Kind::Configure,
            _ if made.lacks_tpm && !vapp.build.tpm => Kind::AddTpm,
            _ => Kind::PowerOn,
        })
    }

    /// Powered on, and its login port has not answered yet.
    fn boot(&mut self, i: &Instance, vapp: &Vapp, probing: bool) -> Step {
        if vapp.wants_look() {
            return self.look(i);
        }
        let Some(record) = &vapp.record else { return Step::Wait };
        let Some(address) = record.address else { return Step::Wait };
        let settles = match () {
            _ if self.at.policy.dhcp && vapp.build.old_address == Some(address) => RESUME_REPORT,
            _ if vapp.is_customized() => RESUME_SETTLE,
            _ => Duration::ZERO,
        };
        let settled = vapp.known + settles;
        if !self.reached(settled) || (settles == RESUME_REPORT && record.seen < settled) {
            return Step::Wait;
        }
        let usual = vapp.known + CUSTOMIZATION_USUAL;
        let ready = record.complete() || (record.silent() && self.reached(usual));
        if ready && !probing && self.reached(i.attempts.probe) { Step::Probe(address) } else { Step::Wait }
    }

    /// Running or suspended: handles an unexpected state.
    fn rest(&mut self, i: &Instance, vapp: &Vapp) -> Option<Step> {
        let ends = vapp.unhealthy.filter(|unhealthy| unhealthy.ends);
        let over = ends.is_some_and(|unhealthy| self.seen(unhealthy.since.end(UNHEALTHY_GRACE)));
        // Polls may be wrong about it: a lookup decides, if VCD answers one.
        let look = &i.attempts.look;
        let unread = look.has_failed() && look.since.is_some_and(|since| self.reached(since + UNHEALTHY_GRACE));
        match () {
            _ if over && (unread || (!vapp.wants_look() && vapp.document(self.at.now).is_some())) => {
                Some(Step::GiveUp(Cause::Unhealthy))
            }
            _ if over || vapp.wants_look() => Some(self.look(i)),
            _ => ends.map(|_| Step::Wait),
        }
    }

    fn suspend(&mut self, i: &Instance, vapp: &Vapp) -> Step {
        match self.rest(i, vapp) {
            Some(step) => step,
            None if vapp.power == Power::Suspended && vapp.mark == Some(Mark::Suspended) => Step::Wait,
            // A poll may be out of date.
            None if vapp.shared && vapp.power == Power::On && vapp.document(self.at.now).is_none() => self.look(i),
            None if vapp.shared && vapp.power == Power::On => Step::Keep,
            None if vapp.mark != Some(Mark::Suspended) => self.change(i, vapp, Kind::Mark(Mark::Suspended)),
            None => self.change(i, vapp, Kind::Suspend),
        }
    }

    /// Its guest was ready: it is suspended, then marked. A later process uses only a marked VM.
    fn stand_by(&mut self, i: &Instance, vapp: &Vapp) -> Step {
        if let Some(step) = self.rest(i, vapp) {
            return step;
        }
        if vapp.shared {
            return Step::GiveUp(Cause::Spoiled);
        }
        if vapp.power != Power::Suspended {
            return self.change(i, vapp, Kind::Suspend);
        }
        if vapp.mark != Some(Mark::Standby) {
            return self.change(i, vapp, Kind::Mark(Mark::Standby));
        }
        let longest = self.at.policy.standby_max_age;
        let old = !longest.is_zero() && self.reached(vapp.known + longest);
        if old || i.lease_ends(self.at.now) { Step::GiveUp(Cause::Spoiled) } else { Step::Wait }
    }

    /// A change of a running or suspended VM, after its own document has shown the owner tag. If the last poll did not show
    /// the vApp, a person's VM may be in it now.
    fn change(&mut self, i: &Instance, vapp: &Vapp, kind: Kind) -> Step {
        match () {
            _ if self.at.stopping || !self.reached(i.attempts.change.next) => Step::Wait,
            _ if !vapp.is_known(self.at.now) => self.look(i),
            _ => Step::Begin(kind),
        }
    }

    /// Work that nobody waits for: the metadata entry, and the end of a suspend mark.
    fn tidy(&mut self, i: &Instance, vapp: &Vapp) -> Step {
        if vapp.mark != Some(Mark::Running) && vapp.power == Power::On {
            return self.change(i, vapp, Kind::Mark(Mark::Running));
        }
        match vapp.label {
            Label::Wanted { not_before, .. } if !self.at.stopping && self.reached(not_before) => {
                if vapp.is_known(self.at.now) { Step::Label } else { self.look(i) }
            }
            _ => Step::Wait,
        }
    }
}

#[cfg(test)]
mod tests;

/// The task that a step refers to.
pub(super) fn task(i: &Instance) -> Option<Href> {
    i.operation.as_deref().and_then(Operation::task).cloned()
}
