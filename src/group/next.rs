//! What happens next to an instance: a pure function of what is desired, what is observed, and the operation that is in VCD.
//! It changes nothing. Whether there is room for the step now is asked in `turn.rs`.

use super::instance::{Cause, Desired, Instance, Kind, Mark, Observed, Operation, Origin, Question, Stage};
use super::limits::Lane;
use super::time::{Seen, Sight, Time};
use super::vapp::{Guest, Label, Removal, Vapp};
use super::{LEASE_MARGIN, PRUNE_AFTER, Policy, UNHEALTHY_GRACE};
use crate::cloud::{Href, Power};
use std::net::IpAddr;
use std::time::Duration;

/// An instance whose create never comes to its first try is given up after so many times create_timeout.
pub const QUEUE_TIMEOUTS: u32 = 3;
/// One that is not running after so many times create_timeout is given up, even if polls have not shown it.
pub const UNSEEN_TIMEOUTS: u32 = 6;
/// A task other than a create's that takes longer is cancelled. A create has create_timeout.
pub const TASK_PATIENCE: Duration = Duration::from_secs(30 * 60);
/// What takes longer holds its slot no more, and is reported as stuck. A create holds it until it is cancelled.
pub const SLOT_PATIENCE: Duration = Duration::from_secs(10 * 60);
/// A task that goes on for so long after VCD was asked to cancel it is stuck.
pub const CANCEL_PATIENCE: Duration = Duration::from_secs(2 * 60);
/// A request whose answer was lost counts as never carried out when nothing of it was found for so long.
pub const UNKNOWN_WINDOW: Duration = Duration::from_secs(60);
/// Customization usually ends in this time: before that, a port that answers may be that of a template that will reboot.
pub const CUSTOMIZATION_USUAL: Duration = Duration::from_secs(60);

/// After its resume a guest's clock is wrong for a moment, until VMware Tools set it.
pub const RESUME_SETTLE: Duration = Duration::from_secs(1);

/// What the step depends on beside the instance.
pub(super) struct At<'a> {
    pub now: Time,
    pub seen: Seen,
    pub sight: &'a Sight,
    pub policy: &'a Policy,
    /// The host goes: nothing is begun but what clears up.
    pub stopping: bool,
    /// VCD has refused a delete by force for its right.
    pub no_force: bool,
}

/// The next step of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing now.
    Wait,
    /// It has been reported as gone for long enough.
    Forget,
    /// Nothing of it is left.
    End,
    /// From now on it is to go.
    GiveUp(Cause),
    /// Its guest did not come up within ready_timeout: it is made anew.
    NotReady,
    /// Its operation hangs: it gives back its slot.
    Stick,
    /// It was about to be suspended for standby, and is wanted now.
    Use,
    Ask(Question),
    Begin(Kind),
    Probe(IpAddr),
    Label,
}

/// The next step, and when it could be another one if nothing happens until then.
pub(super) struct Next {
    pub step: Step,
    pub wake: Option<Time>,
}

pub(super) fn next(i: &Instance, at: &At<'_>) -> Next {
    let mut from = From { at, wake: None };
    let step = from.step(i);
    Next { step, wake: from.wake }
}

/// Decides from a moment, and collects when to decide again.
struct From<'a> {
    at: &'a At<'a>,
    wake: Option<Time>,
}

impl From<'_> {
    fn wake_by(&mut self, time: Time) {
        self.wake = Some(self.wake.map_or(time, |wake| wake.min(time)));
    }

    /// True from then on; before, it is looked at again then.
    fn reached(&mut self, time: Time) -> bool {
        if self.at.now < time {
            self.wake_by(time);
        }
        self.at.now >= time
    }

    /// The same on the clock that runs only while polls succeed.
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
            // Its own document tells what it is.
            (Observed::Vapp(_), _) if i.origin == Origin::Found => self.look(i),
            (Observed::Vapp(vapp), _) if i.goes() => self.delete(i, vapp),
            (Observed::Vapp(vapp), Desired::Suspended) => self.suspend(i, vapp),
            (Observed::Vapp(vapp), Desired::Standby) if vapp.guest == Guest::Standby => self.stand_by(i, vapp),
            (Observed::Vapp(vapp), _) => self.run(i, vapp),
        }
    }

    /// It has not come to running in its time.
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
            Some(watch) => watch.end(timeout).min(i.accepted.end(timeout * UNSEEN_TIMEOUTS)),
            None => i.accepted.end(timeout * QUEUE_TIMEOUTS),
        })
    }

    fn look(&mut self, i: &Instance) -> Step {
        if self.reached(i.attempts.look.next) { Step::Ask(Question::Look) } else { Step::Wait }
    }

    /// An operation is in VCD, or may be.
    fn operation(&mut self, i: &Instance, operation: &Operation) -> Step {
        let holds = operation.slot.is_some();
        match &operation.stage {
            Stage::Sent => Step::Wait,
            Stage::Unknown { .. } => {
                if holds && self.seen(operation.watch.end(SLOT_PATIENCE)) {
                    return Step::Stick;
                }
                let question = if i.vapp().is_some() { Question::Look } else { Question::Find };
                if self.reached(i.attempts.look.next) { Step::Ask(question) } else { Step::Wait }
            }
            Stage::Task { cancelled: true, .. } => {
                if operation.stuck.is_none() && self.seen(operation.watch.end(CANCEL_PATIENCE)) {
                    return Step::Stick;
                }
                // VCD may have forgotten it, or cancels it if it is asked again.
                if operation.stuck.is_some() { self.look(i) } else { Step::Wait }
            }
            Stage::Task { cancelled: false, .. } => {
                let stops = !matches!(operation.kind, Kind::Delete(_) | Kind::Mark(_) | Kind::Other);
                if (stops && i.goes()) || (operation.stuck.is_some() && self.seen(operation.watch.end(TASK_PATIENCE))) {
                    // Only what its own document shows to be ours is stopped.
                    return match i.vapp() {
                        Some(vapp) if vapp.proven && self.reached(i.attempts.change.next) => {
                            Step::Ask(Question::Cancel)
                        }
                        Some(vapp) if vapp.proven => Step::Wait,
                        _ => self.look(i),
                    };
                }
                let making = operation.kind.lane() == Some(Lane::Create) && !i.goes();
                if operation.stuck.is_none() && !making && self.seen(operation.watch.end(SLOT_PATIENCE)) {
                    return Step::Stick;
                }
                Step::Wait
            }
        }
    }

    /// It has to go. What may be held, shared or taken over is looked at first, and so is what could not be deleted before.
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
            || vapp.record.as_ref().is_some_and(|record| record.busy);
        if !vapp.proven || vapp.shared || vapp.is_missing() || (unclear && vapp.document.is_none()) {
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
                None => self.change(i, vapp, Kind::Resume),
            },
            // Whoever finds it from now on must not take it for unused.
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

    /// Made, and not on yet: what it lacks is seen by a look.
    fn make(&mut self, i: &Instance, vapp: &Vapp) -> Step {
        if !self.reached(i.attempts.change.next) {
            return Step::Wait;
        }
        let document = vapp.document(self.at.now).filter(|document| !document.busy);
        let Some(made) = document.and_then(|document| document.made.as_ref()) else { return self.look(i) };
        Step::Begin(match () {
            _ if made.differs.is_some() && !vapp.build.configured => Kind::Configure,
            _ if made.lacks_tpm && !vapp.build.tpm => Kind::AddTpm,
            _ => Kind::PowerOn,
        })
    }

    /// On, and its login port has yet to answer.
    fn boot(&mut self, i: &Instance, vapp: &Vapp, probing: bool) -> Step {
        if vapp.wants_look() {
            return self.look(i);
        }
        let Some(record) = &vapp.record else { return Step::Wait };
        let Some(address) = record.address else { return Step::Wait };
        if vapp.build.customized && !self.reached(vapp.known + RESUME_SETTLE) {
            return Step::Wait;
        }
        let usual = vapp.known + CUSTOMIZATION_USUAL;
        let ready = record.complete() || (record.silent() && self.reached(usual));
        if ready && !probing && self.reached(i.attempts.look.next) { Step::Probe(address) } else { Step::Wait }
    }

    /// Running or suspended: what is not as it should be.
    fn rest(&mut self, i: &Instance, vapp: &Vapp) -> Option<Step> {
        if vapp.wants_look() {
            return Some(self.look(i));
        }
        let unhealthy = vapp.unhealthy.as_ref()?;
        match unhealthy.ends && self.seen(unhealthy.since.end(UNHEALTHY_GRACE)) {
            true => Some(Step::GiveUp(Cause::Unhealthy)),
            false if unhealthy.ends => Some(Step::Wait),
            false => None,
        }
    }

    fn suspend(&mut self, i: &Instance, vapp: &Vapp) -> Step {
        match self.rest(i, vapp) {
            Some(step) => step,
            None if vapp.power == Power::Suspended && vapp.mark == Some(Mark::Suspended) => Step::Wait,
            None if vapp.mark != Some(Mark::Suspended) => self.change(i, vapp, Kind::Mark(Mark::Suspended)),
            None => self.change(i, vapp, Kind::Suspend),
        }
    }

    /// Its guest has been ready: it is suspended, then marked. Only what is marked is found again as unused.
    fn stand_by(&mut self, i: &Instance, vapp: &Vapp) -> Step {
        if let Some(step) = self.rest(i, vapp) {
            return step;
        }
        if vapp.power != Power::Suspended {
            return self.change(i, vapp, Kind::Suspend);
        }
        if vapp.mark != Some(Mark::Standby) {
            return self.change(i, vapp, Kind::Mark(Mark::Standby));
        }
        let longest = self.at.policy.standby_max_age;
        let old = !longest.is_zero() && self.reached(vapp.known + longest);
        let ends = vapp.lease_end.is_some_and(|end| self.at.now + LEASE_MARGIN.min(end - vapp.known) >= end);
        if old || ends { Step::GiveUp(Cause::Spoiled) } else { Step::Wait }
    }

    /// A change of what runs or is suspended, once its own document has shown that it is ours.
    fn change(&mut self, i: &Instance, vapp: &Vapp, kind: Kind) -> Step {
        match () {
            _ if self.at.stopping || !self.reached(i.attempts.change.next) => Step::Wait,
            _ if !vapp.proven => self.look(i),
            _ => Step::Begin(kind),
        }
    }

    /// What nobody waits for: the label, and the mark of a suspend that is over.
    fn tidy(&mut self, i: &Instance, vapp: &Vapp) -> Step {
        if vapp.mark != Some(Mark::Running) && vapp.power == Power::On {
            return self.change(i, vapp, Kind::Mark(Mark::Running));
        }
        match vapp.label {
            Label::Wanted { not_before, .. } if !self.at.stopping && self.reached(not_before) => {
                if vapp.proven {
                    Step::Label
                } else {
                    self.look(i)
                }
            }
            _ => Step::Wait,
        }
    }
}

#[cfg(test)]
mod tests;

/// The task that a step asks about.
pub(super) fn task(i: &Instance) -> Option<Href> {
    i.operation.as_ref().and_then(Operation::task).cloned()
}
