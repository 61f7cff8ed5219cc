//! Lookups of a vApp or of a name, their results, and the consequences.

use super::answers::{LOOK_PAUSE, wrong_reply};
use super::instance::{Desired, Kind, Observed, Operation, Origin, Question, Stage};
use super::limits::{DELETE_RETRY_MAX, Lane, RETRY_MAX, doubled};
use super::polls::{AGAINST_POLLS, down};
use super::vapp::{CHECKS, Guest, MISSED_POLLS, Removal, Vapp};
use super::{Cause, Group, Instance, Key, Purpose, Time, next};
use crate::cloud::{self, Answer, ErrorKind, Href, Power, Reply, Request, VcdError};
use log::Level;

/// A create whose answer was lost counts as not carried out if lookups did not find its name this often.
pub const UNKNOWN_LOOKS: u32 = 4;

impl Group {
    /// Sends a lookup of an instance, or a request to cancel its task.
    pub(super) fn question(&mut self, key: Key, question: Question) {
        let Some(i) = self.instances.get_mut(&key) else { return };
        let request = match question {
            Question::Find => Some(Request::Find { name: i.name.clone() }),
            // Of a guest that polls do not show, only lookups show the progress.
            Question::Look => i.vapp().map(|vapp| Request::Look {
                vapp: vapp.href.clone(),
                guest: i.origin == Origin::Found || (vapp.guest.boots() && vapp.is_missing()),
            }),
            Question::Cancel => next::task(i).map(|task| Request::Cancel { task }),
        };
        let Some(request) = request else { return };
        i.question = Some(question);
        self.ask(Purpose::Question(key), request);
    }

    // Lookup by name, for a create whose answer was lost.

    pub(super) fn find_answered(&mut self, key: Key, answer: Answer) {
        let (now, seen) = (self.now, self.sight.at(self.now));
        let vapps = match answer {
            Ok(Reply::Vapps(vapps)) => vapps,
            Ok(other) => return self.look_failed(key, &wrong_reply("find", &other)),
            Err(error) => return self.look_failed(key, &error),
        };
        let Some(i) = self.instances.get_mut(&key) else { return };
        i.attempts.look.reset();
        let Some(Operation { kind: Kind::Create { whole }, stage: Stage::Unknown { until, looks }, .. }) =
            i.operation.as_deref()
        else {
            return;
        };
        let (name, whole, until, looks) = (i.name.clone(), *whole, *until, looks + 1);
        // The query that found them may have lagged behind a new name.
        let vapps: Vec<cloud::Vapp> = vapps.into_iter().filter(|v| v.name == name).collect();
        let owns = |v: &cloud::Vapp| self.owner.owns(v, false);
        // Somebody had a foreign one in the meantime, even if it has its own name and description again.
        let mut ours = vapps.iter().filter(|v| owns(v) && !self.is_tracked(&v.href) && !self.foreign.contains(&v.href));
        if let Some(found) = ours.next() {
            let extra: Vec<&cloud::Vapp> = ours.collect();
            self.found_made(key, found, whole);
            for found in extra {
                let mut vapp = super::vapp::Vapp::new(found.href.clone(), now);
                vapp.show(found, now);
                let mut i = Instance::new(name.clone(), Origin::Leftover, now, seen);
                i.desired = Desired::Deleted(Cause::Leftover);
                i.observe(vapp);
                self.insert(i);
            }
            return;
        }
        let is_over = now >= until && looks >= UNKNOWN_LOOKS;
        // A foreign vApp that was known before may have the same name as the new one.
        if vapps.iter().any(|v| !owns(v) && (is_over || !self.foreign.contains(&v.href))) {
            self.over(key);
            let text = "a vApp of another owner has this name: the plugin ignores it, and GitLab Runner requests another \
                        VM. If this comes again, use a vapp_name_prefix of your own";
            self.say_of(Level::Error, key, text.into());
            return self.delete_for(key, Cause::Timeout);
        }
        if is_over {
            self.over(key);
            self.say_of(Level::Info, key, "not found in VCD: the create did not work".into());
            self.lost_create(key, whole);
        } else {
            self.look_again(key);
        }
    }

    /// A create whose answer was lost did not work. It is tried again at once. If that is lost, too, it has failed: VCD may
    /// answer only the combined request in this way.
    fn lost_create(&mut self, key: Key, whole: bool) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        if i.attempts.create.tries == 0 {
            return i.attempts.create.note(now);
        }
        let (error, wanted) = (unseen("create", i), !i.desired.is_deleted());
        match whole {
            true => _ = self.whole_failed(&error),
            false => self.steps_failed(),
        }
        self.create_failed(key, Some(&error));
        if wanted {
            self.count_create_failure(key, false);
        }
    }

    /// The create worked: its vApp is found.
    fn found_made(&mut self, key: Key, found: &cloud::Vapp, whole: bool) {
        let (now, seen) = (self.now, self.sight.at(self.now));
        let Some(i) = self.instances.get_mut(&key) else { return };
        let mut vapp = super::vapp::Vapp::new(found.href.clone(), now);
        (vapp.build.whole, vapp.source) = (whole, self.source);
        vapp.show(found, now);
        match found.tasks.first() {
            Some(task) => {
                if let Some(operation) = &mut i.operation {
                    operation.stage = Stage::found(task);
                }
            }
            None => {
                i.operation = None;
                match found.power {
                    Power::On => vapp.boots(now, seen),
                    // It should be powered on: a lookup shows what is missing.
                    _ => vapp.settle(found.power, now),
                }
            }
        }
        // No create leaves it suspended: somebody else did that.
        vapp.doomed = found.power == Power::Suspended;
        i.observe(vapp);
        self.progress = now;
        self.say_of(Level::Info, key, "found in VCD: the create worked".into());
    }

    /// This vApp belongs to an instance already.
    fn is_tracked(&self, vapp: &Href) -> bool {
        self.instances.values().any(|i| i.href() == Some(vapp))
    }

    /// Repeats the lookup after a pause: it may still appear.
    fn look_again(&mut self, key: Key) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        i.attempts.look.next = now + LOOK_PAUSE;
        i.vapp_mut().into_iter().for_each(|vapp| vapp.build.slot = None);
        if let Some(Operation { stage: Stage::Unknown { looks, .. }, .. }) = i.operation.as_deref_mut() {
            *looks += 1;
        }
        if let Some(vapp) = i.vapp_mut() {
            vapp.document = None;
        }
    }

    // Lookup of a vApp.

    pub(super) fn look_answered(&mut self, key: Key, answer: Answer) {
        let mut vapps = match answer {
            Ok(Reply::Vapps(vapps)) => vapps,
            Ok(other) => return self.not_seen(key, &wrong_reply("look", &other)),
            Err(error) => return self.not_seen(key, &error),
        };
        let Some(i) = self.instances.get_mut(&key) else { return };
        let hangs = i.operation.as_ref().is_some_and(|operation| operation.stuck.is_some());
        if !hangs {
            i.attempts.look.reset();
        }
        if i.origin == Origin::Found || (i.origin == Origin::Leftover && !i.vapp().is_some_and(|v| v.proven)) {
            return self.undecided_seen(key, vapps.pop());
        }
        let Some(seen) = vapps.pop() else { return self.vanished(key) };
        let labelled = i.vapp().is_some_and(|vapp| vapp.labelled);
        if seen.name != i.name || !self.owner.owns(&seen, labelled) {
            return self.released(key, &seen);
        }
        self.looked(key, seen);
    }

    /// A failed lookup of hardware is not worth a long wait. Other lookups are.
    fn not_seen(&mut self, key: Key, error: &VcdError) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        match i.checked_in_vain() {
            Some(checks) => {
                i.attempts.look.next = now + LOOK_PAUSE;
                let follows = if checks < CHECKS { "the lookup is repeated" } else { "its hardware is not checked" };
                self.blame(key, error, follows);
            }
            None => self.look_failed(key, error),
        }
    }

    /// An owned vApp has another name or description now: whoever changed that owns it.
    fn released(&mut self, key: Key, vapp: &cloud::Vapp) {
        let text = format!(
            "its vApp is now named {:?} and has no owner tag of this instance: the plugin no longer manages it",
            vapp.name
        );
        self.say_of(Level::Warn, key, text);
        self.remember_foreign(&vapp.href);
        self.vanished(key);
    }

    /// Its own document, which shows the owner tag: it replaces the observed state, and the operation continues from there.
    pub(super) fn looked(&mut self, key: Key, seen: cloud::Vapp) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        let going = i.goes();
        let made = matches!(&i.operation, Some(o) if matches!(o.kind, Kind::Create { .. }));
        let marked = matches!(seen.mark, cloud::Mark::Standby { .. });
        let is_standby = marked && i.origin == Origin::Adopted && i.desired != Desired::Standby;
        let Observed::Vapp(vapp) = &mut i.observed else { return };
        let ours = vapp.show(&seen, now);
        let was_there = vapp.vm.is_some() || !matches!(vapp.guest, Guest::New);
        // A task may be about to add it. If the next lookup, several polls later, does not show it either, it is lost.
        let may_come = !seen.tasks.is_empty() && vapp.patience <= MISSED_POLLS;
        let gone = was_there && !ours && !made && !may_come;
        if gone && !going {
            return self.unusable(key, "its VM is no longer in its vApp, and the plugin did not delete it");
        }
        match self.instances.get(&key).and_then(|i| i.operation.as_ref()) {
            Some(operation) => match operation.stage {
                Stage::Sent => {}
                Stage::Task { .. } => self.task_seen(key, &seen),
                Stage::Unknown { until, .. } => {
                    let (kind, may_come) = (operation.kind, now < until);
                    self.unknown_seen(key, kind, may_come, &seen);
                }
            },
            None if going => self.going_seen(key, seen),
            // By a person, or a late request of an earlier process.
            None if seen.deleting => {
                self.unusable(key, "VCD deletes its vApp, and this process did not request that");
                self.found_task(key, &seen);
            }
            // To resume it with its mark would let a later process hand it out after its use.
            None if is_standby => self.unusable(key, "it is in standby, but a late poll showed it as running"),
            None => self.settled_seen(key, &seen),
        }
    }

    /// Its vApp exists and is of no use any more, for the reason `why`.
    fn unusable(&mut self, key: Key, why: &str) {
        let Some(i) = self.instances.get_mut(&key) else { return };
        let (had_run, mut of_pool) = (i.has_run(), i.desired == Desired::Standby);
        let mut failed = None;
        if let Some(vapp) = i.vapp_mut() {
            of_pool &= vapp.guest == Guest::Standby;
            failed = vapp.build.failed.take();
            (vapp.doomed, vapp.build.slot) = (true, None);
        }
        i.operation = None;
        self.say_of(Level::Warn, key, why.into());
        match had_run {
            true => self.delete_for(key, Cause::Lost),
            false if of_pool => self.delete_for(key, Cause::Spoiled),
            false => self.create_ended(key, failed),
        }
    }

    /// A lookup while a task runs: it shows the owner, which task it is, or that there is no task any more.
    fn task_seen(&mut self, key: Key, seen: &cloud::Vapp) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        i.vapp_mut().map(Vapp::is_found);
        let Some(operation) = &mut i.operation else { return };
        let hangs = operation.stuck.is_some();
        let (kind, began) = (operation.kind, operation.began);
        let Stage::Task { task, cancelled, found } = &mut operation.stage else { return };
        let Some(this) = seen.tasks.first() else {
            // VCD no longer knows it.
            i.operation = None;
            i.attempts.look.reset();
            return match kind {
                Kind::Suspend | Kind::Resume if !i.goes() => {
                    i.vapp_mut().into_iter().for_each(|vapp| vapp.doubt = true);
                    self.settled_seen(key, seen);
                }
                Kind::Delete(_) => self.still_there(key, began),
                _ => {}
            };
        };
        *found |= task != this;
        task.clone_from(this);
        if hangs && *cancelled {
            // Repeat the request to cancel, with growing pauses.
            let pause = doubled(RETRY_MAX, i.attempts.look.tries, DELETE_RETRY_MAX);
            i.attempts.look.fail(now, &mut self.rng, pause);
            self.question(key, Question::Cancel);
        }
    }

    /// A lookup after a request with an unknown outcome. `may_come`: it may still be carried out.
    fn unknown_seen(&mut self, key: Key, kind: Kind, may_come: bool, seen: &cloud::Vapp) {
        let Some(i) = self.instances.get_mut(&key) else { return };
        let going = i.goes();
        let Some(began) = i.operation.as_ref().map(|operation| operation.began) else { return };
        if let Some(task) = seen.tasks.first() {
            if let Some(operation) = &mut i.operation {
                operation.stage = Stage::found(task);
            }
            return;
        }
        match (kind, seen.power) {
            // If its host is down, VCD knows no more.
            (Kind::Delete(Removal::Stop), Power::Off | Power::Other | Power::Failed) => {
                self.over(key);
                let vapp = self.instances.get_mut(&key).and_then(|i| i.vapp_mut());
                vapp.into_iter().for_each(|vapp| vapp.removal = Removal::Stopped);
            }
            (Kind::Delete(_), _) => {
                self.over(key);
                self.still_there(key, began);
            }
            // It is deleted in any state.
            _ if going => self.over(key),
            (kind, Power::On) if kind.lane() == Some(Lane::Create) => {
                self.over(key);
                self.on_for_the_first_time(key);
            }
            _ if seen.busy && may_come => self.look_again(key),
            (Kind::Suspend, Power::Suspended) => self.asleep(key),
            (Kind::Resume, Power::On) => self.woke(key),
            _ if may_come => self.look_again(key),
            // The next step is decided by what the lookup shows.
            (Kind::Create { .. } | Kind::Other, _) => self.over(key),
            _ => self.without_effect(key, kind),
        }
    }

    /// VCD has not carried out a change whose answer or task was lost. It is requested again, and has failed after
    /// [`LOST_TRIES`].
    pub(super) fn without_effect(&mut self, key: Key, kind: Kind) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        if i.attempts.change.is_last() {
            let error = unseen("change", i);
            return self.failed(key, kind, &error);
        }
        i.operation = None;
        i.attempts.change.note(now);
        self.stayed_on(key);
    }

    /// VCD has accepted its delete, or that answer was lost, and it still exists. `began`: the time of the request.
    fn still_there(&mut self, key: Key, began: Time) {
        let Some(i) = self.instances.get_mut(&key) else { return };
        if i.attempts.delete.next > began {
            // The pause after a lost answer has already started. This lookup may be outdated after it.
            i.vapp_mut().into_iter().for_each(|vapp| vapp.document = None);
            return;
        }
        let what = format!("delete vApp {}", i.name);
        let error = VcdError::own(ErrorKind::Failed, what, "VCD has ended its task, and the vApp still exists");
        self.delete_failed(key, &error, false);
    }

    /// A lookup of a vApp that is to be deleted: wait for a task that works on it. A foreign VM in it prevents the delete.
    fn going_seen(&mut self, key: Key, seen: cloud::Vapp) {
        let Some(i) = self.instances.get_mut(&key) else { return };
        let Observed::Vapp(vapp) = &mut i.observed else { return };
        vapp.doubt = false;
        vapp.is_found();
        if let (Removal::Stopped, Power::On | Power::Suspended) = (vapp.removal, seen.power) {
            vapp.removal = Removal::Stop;
        }
        if vapp.shared {
            vapp.document = None;
            let text = "it contains another VM, so the plugin does not delete it. Move that VM to another vApp";
            let error = VcdError::own(ErrorKind::State, format!("delete vApp {}", i.name), text);
            return self.try_later(key, &error, |attempts| &mut attempts.delete, DELETE_RETRY_MAX);
        }
        self.found_task(key, &seen);
    }

    /// True if a task works on it: the task is an operation of the instance until it ends.
    fn found_task(&mut self, key: Key, seen: &cloud::Vapp) -> bool {
        let (now, clock) = (self.now, self.sight.at(self.now));
        let Some((i, task)) = self.instances.get_mut(&key).zip(seen.tasks.first()) else { return false };
        i.operation = Some(Operation::new(Kind::Other, Stage::found(task), None, now, clock));
        i.vapp_mut().into_iter().for_each(|vapp| vapp.build.slot = None);
        true
    }

    /// A lookup of a wanted instance without an operation.
    fn settled_seen(&mut self, key: Key, seen: &cloud::Vapp) {
        let Some(i) = self.instances.get_mut(&key) else { return };
        let wants_suspended = i.desired == Desired::Suspended;
        let Observed::Vapp(vapp) = &mut i.observed else { return };
        let contradicted = std::mem::take(&mut vapp.doubt);
        let unclear = vapp.is_found() || vapp.unhealthy.is_some();
        let doubt = contradicted || (unclear && !seen.busy);
        // The state of a vApp with several VMs says little about one of them.
        let fails = doubt && !seen.busy && seen.power != Power::On && (contradicted || seen.power != Power::Other);
        // Its suspend mark is written before each suspend.
        let by_us = doubt && seen.mark == cloud::Mark::Suspended;
        if contradicted && !seen.tasks.is_empty() {
            vapp.doubt = true;
            self.found_task(key, seen);
            return;
        }
        match (&vapp.guest, seen.power) {
            (Guest::New, power) => self.new_seen(key, power, seen),
            (Guest::Standby, power) => self.looked_at_standby(key, power, seen.busy),
            (Guest::Ready | Guest::Returning { since: None, .. }, Power::Suspended)
                if vapp.power != Power::Suspended && (by_us || wants_suspended) =>
            {
                self.asleep(key)
            }
            (Guest::Booting { .. } | Guest::Returning { since: Some(_), .. }, power) if fails => {
                self.boot_failed(key, down(power, false).unwrap_or("it is not powered on"));
            }
            (Guest::Booting { .. }, _) if vapp.is_unchecked() => {
                let differs = seen.made.as_ref().and_then(|made| made.differs.clone());
                self.compare(key, differs);
            }
            (Guest::Ready | Guest::Returning { since: None, .. }, Power::On) if vapp.power == Power::Suspended => {
                if doubt {
                    let text = "resumed outside the plugin: reported as running when its login port answers";
                    if wants_suspended {
                        self.say_of(Level::Warn, key, text.into());
                    }
                    if let Some(i) = self.instances.get_mut(&key) {
                        i.desired = Desired::Running;
                    }
                    self.woke(key);
                }
            }
            (Guest::Returning { since: None, .. }, Power::On) if !seen.busy => self.stayed_on(key),
            _ => {
                vapp.against = 0;
                if (doubt || vapp.guest == Guest::Ready) && (!seen.busy || seen.power == Power::On) {
                    // What polls do not show well is decided now.
                    vapp.against = if doubt && !vapp.shared { AGAINST_POLLS } else { 0 };
                    self.judge(key, seen.power, false);
                }
            }
        }
    }

    /// A lookup of a VM that was created and not yet powered on: what it still lacks, or what remains of a failed create.
    fn new_seen(&mut self, key: Key, power: Power, seen: &cloud::Vapp) {
        if self.found_task(key, seen) {
            return;
        }
        let now = self.now;
        let Some(vapp) = self.instances.get_mut(&key).and_then(|i| i.vapp_mut()) else { return };
        if let Some(error) = vapp.build.failed.take() {
            if power == Power::Off && seen.made.is_some() && error.kind != ErrorKind::Aborted {
                // VCD created it and could not power it on: one more try.
                vapp.settle(power, now);
                return self.say_of(
                    Level::Info,
                    key,
                    "VCD created the VM but did not power it on: the plugin powers it on".into(),
                );
            }
            return self.create_ended(key, Some(error));
        }
        match power {
            Power::On => return self.on_for_the_first_time(key),
            Power::Failed if seen.made.is_none() => {
                let error = self.instances.get(&key).map(|i| unseen("create", i));
                return error.iter().for_each(|error| self.made_badly(key, error));
            }
            _ => {}
        }
        if seen.made.is_none() || seen.busy {
            // The VM appears later than the vApp, or a task works on it. The deadline limits this.
            self.look_again(key);
        }
    }

    fn on_for_the_first_time(&mut self, key: Key) {
        let (now, seen) = (self.now, self.sight.at(self.now));
        let Some(i) = self.instances.get_mut(&key) else { return };
        i.attempts.change.reset();
        i.vapp_mut().into_iter().for_each(|vapp| vapp.boots(now, seen));
    }
}

/// The error of a request whose answer or task was lost, and that had no effect.
fn unseen(what: &str, i: &Instance) -> VcdError {
    VcdError::own(ErrorKind::Failed, format!("{what} vApp {}", i.name), "VCD does not show that it carried it out")
}
