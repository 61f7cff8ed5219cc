//! The end of an operation: the state of an instance after VCD's task has succeeded or failed, or VCD no longer knows it.

use super::answers::{busy_pause, wrong_reply};
use super::instance::{Desired, Kind, Mark, Stage};
use super::limits::RETRY_MAX;
use super::pace::Course;
use super::polls::watch_backoff;
use super::time::Stopwatch;
use super::vapp::{Guest, Removal};
use super::{Group, Instance, Key, Time};
use crate::cloud::{Answer, ErrorKind, Power, Reply, TaskState, VcdError};
use log::Level;

impl Group {
    pub(super) fn tasks_answered(&mut self, answer: Answer) {
        self.tasks.on_wire = false;
        let tasks = match answer {
            Ok(Reply::Tasks(tasks)) => tasks,
            Ok(other) => return self.tasks_failed(&wrong_reply("tasks", &other)),
            Err(error) => return self.tasks_failed(&error),
        };
        self.tasks.fails = 0;
        for task in tasks.into_iter().filter(|task| task.state != TaskState::Running) {
            self.progress = self.now;
            let on = |i: &Instance| i.operation.as_ref().and_then(|o| o.task()) == Some(&task.href);
            let keys: Vec<Key> = self.instances.iter().filter(|(_, i)| on(i)).map(|(key, _)| *key).collect();
            for key in keys {
                self.task_ended(key, &task.state);
            }
        }
    }

    fn tasks_failed(&mut self, error: &VcdError) {
        self.tasks.fails += 1;
        self.tasks.not_before = self.now + watch_backoff(self.tasks.fails, error);
        self.say_plain(Level::Warn, format!("{error}; next query soon"));
    }

    fn task_ended(&mut self, key: Key, state: &TaskState) {
        let Some(i) = self.instances.get_mut(&key) else { return };
        // The answer to a request that is on the wire is older than this.
        let Some(operation) = &i.operation else { return };
        let kind = operation.kind;
        let Stage::Task { found, cancelled, .. } = operation.stage else { return };
        if found && cancelled && *state == TaskState::Unknown {
            // A lookup shows whether it still runs.
            i.attempts.look.next = i.attempts.look.next.min(self.now + RETRY_MAX);
            return;
        }
        if *state == TaskState::Success && !found {
            self.pace.learn(Course::Task(kind), self.now - operation.began);
        }
        i.attempts.look.reset();
        i.attempts.look.next = self.now;
        if let Some(vapp) = i.vapp_mut() {
            vapp.document = None;
        }
        match state {
            TaskState::Running => {}
            TaskState::Unknown if found => {
                // It may run, and VCD does not show it.
                let at = self.now + busy_pause(&mut i.attempts, RETRY_MAX);
                self.look_what_became(key, at);
            }
            // A lookup shows whether it did what the plugin requested. A mark is written again.
            _ if found && matches!(kind, Kind::Suspend | Kind::Resume | Kind::PowerOn) => {
                self.look_what_became(key, self.now)
            }
            _ if found && matches!(kind, Kind::Mark(_)) => self.without_effect(key, kind),
            TaskState::Success => self.succeeded(key, kind),
            TaskState::Failed(error) => self.failed(key, kind, error),
            TaskState::Unknown => self.forgotten(key, kind),
        }
    }

    /// VCD finished the request at once, without a task.
    pub(super) fn done(&mut self, key: Key, kind: Kind) {
        match kind {
            // Or it was never started: a lookup shows it.
            Kind::PowerOn | Kind::Suspend | Kind::Resume | Kind::Delete(Removal::Stop) => {
                self.look_what_became(key, self.now);
            }
            Kind::Delete(_) => self.vanished(key),
            _ => self.succeeded(key, kind),
        }
    }

    /// A lookup at this time shows how it ended.
    pub(super) fn look_what_became(&mut self, key: Key, at: Time) {
        let until = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        i.attempts.look.next = at;
        if let Some(operation) = &mut i.operation {
            // No late effect is expected any more.
            operation.stage = Stage::Unknown { until, looks: 0 };
        }
    }

    fn succeeded(&mut self, key: Key, kind: Kind) {
        let (now, seen) = (self.now, self.sight.at(self.now));
        let Some(i) = self.instances.get_mut(&key) else { return };
        match kind {
            Kind::Create { whole: true } | Kind::PowerOn => {
                i.operation = None;
                i.attempts.change.reset();
                if let Some(vapp) = i.vapp_mut() {
                    vapp.boots(now, seen);
                }
                if kind == (Kind::Create { whole: true }) {
                    self.whole_failures = 0;
                }
                self.say_of(Level::Info, key, "VM powered on, waiting for the guest".into());
            }
            Kind::Create { whole: false } | Kind::Configure | Kind::AddTpm => {
                let slot = i.operation.take().and_then(|operation| operation.slot);
                i.attempts.change.reset();
                let wanted = i.desired == Desired::Running;
                if let Some(vapp) = i.vapp_mut() {
                    vapp.settle(Power::Off, now);
                    vapp.build.slot = slot.filter(|_| wanted);
                }
            }
            Kind::Suspend => self.asleep(key),
            Kind::Resume => self.woke(key),
            Kind::Mark(mark) => {
                i.operation = None;
                i.attempts.change.reset();
                i.vapp_mut().into_iter().for_each(|vapp| vapp.mark = Some(mark));
                if i.stands_by() {
                    self.came_to_rest(key);
                }
            }
            Kind::Delete(_) => self.look_what_became(key, self.now),
            Kind::Other => self.over(key),
        }
    }

    pub(super) fn failed(&mut self, key: Key, kind: Kind, error: &VcdError) {
        let Some(i) = self.instances.get_mut(&key) else { return };
        match kind {
            Kind::Create { whole: true } if !i.desired.is_deleted() && error.kind != ErrorKind::Quota => {
                // VCD may have created it and failed at the power-on, which follows at once then.
                let slot = i.operation.take().and_then(|operation| operation.slot);
                if let Some(vapp) = i.vapp_mut() {
                    (vapp.build.failed, vapp.build.slot) = (Some(Box::new(error.clone())), slot);
                }
                self.say_of(Level::Warn, key, format!("{error}; a lookup shows what VCD created"));
            }
            Kind::AddTpm => {
                self.over(key);
                self.no_tpm(key, error);
            }
            Kind::Create { .. } | Kind::Configure | Kind::PowerOn => self.made_badly(key, error),
            Kind::Suspend | Kind::Mark(Mark::Suspended | Mark::Standby) => {
                i.operation = None;
                self.stayed_on(key);
                self.not_suspended(key, error);
            }
            Kind::Mark(Mark::Running) => {
                self.over(key);
                self.not_unmarked(key, error);
            }
            Kind::Resume => {
                self.over(key);
                self.not_resumed(key, error);
            }
            Kind::Delete(_) => {
                i.operation = None;
                self.delete_failed(key, error, true);
            }
            Kind::Other => self.over(key),
        }
    }

    /// VCD no longer knows the task: polls or a lookup show how it ended.
    fn forgotten(&mut self, key: Key, kind: Kind) {
        match kind {
            Kind::Create { .. } | Kind::PowerOn => self.succeeded(key, kind),
            Kind::Suspend | Kind::Resume | Kind::Delete(_) => self.look_what_became(key, self.now),
            Kind::Mark(_) => self.without_effect(key, kind),
            Kind::Configure | Kind::AddTpm | Kind::Other => self.over(key),
        }
    }

    /// It is suspended.
    pub(super) fn asleep(&mut self, key: Key) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        i.operation = None;
        i.attempts.change.reset();
        let wanted = i.desired == Desired::Running;
        let Some(vapp) = i.vapp_mut() else { return };
        vapp.settle(Power::Suspended, now);
        vapp.unhealthy = None;
        if wanted && vapp.guest.has_run() {
            // The suspend is not desired, or no longer: it is resumed.
            vapp.guest = Guest::Returning { since: None, answers: None, probing: false };
        }
        self.say_of(Level::Info, key, "suspended".into());
    }

    /// It is resumed: earlier polls no longer count.
    pub(super) fn woke(&mut self, key: Key) {
        let (now, seen) = (self.now, self.sight.at(self.now));
        let Some(i) = self.instances.get_mut(&key) else { return };
        i.operation = None;
        i.attempts.change.reset();
        let Some(vapp) = i.vapp_mut() else { return };
        vapp.build.old_address = vapp.record.take().and_then(|record| record.address);
        vapp.unhealthy = None;
        if vapp.guest == Guest::Standby {
            return vapp.first_use(now, seen);
        }
        vapp.settle(Power::On, now);
        vapp.guest = Guest::Returning { since: Some(Stopwatch::start(seen)), answers: None, probing: false };
    }

    /// Its suspend failed, or did not start, and now it has to run: there is nothing to resume.
    pub(super) fn stayed_on(&mut self, key: Key) {
        let (now, seen) = (self.now, self.sight.at(self.now));
        let Some(i) = self.instances.get_mut(&key) else { return };
        let wanted = i.desired == Desired::Running;
        let Some(vapp) = i.vapp_mut().filter(|vapp| vapp.power == Power::On) else { return };
        match vapp.guest {
            Guest::Returning { since: None, .. } => vapp.guest = Guest::Ready,
            Guest::Standby if wanted => vapp.first_use(now, seen),
            _ => return,
        }
        i.attempts.change.reset();
    }
}

impl Instance {
    /// It has to run again after a requested suspend.
    pub(super) fn wake_up(&mut self) {
        self.desired = Desired::Running;
        let suspends = self.does(|kind| kind == Kind::Suspend);
        let Some(vapp) = self.vapp_mut() else { return };
        if suspends || vapp.power == Power::Suspended {
            vapp.guest = Guest::Returning { since: None, answers: None, probing: false };
        }
    }

    /// A request about it is on the wire.
    pub(super) fn on_wire(&self) -> bool {
        self.question.is_some() || self.operation.as_ref().is_some_and(|operation| operation.stage == Stage::Sent)
    }
}
