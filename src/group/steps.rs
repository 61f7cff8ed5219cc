//! What happens next: the steps of create and delete, each decided from what is known, so that after a failure the group
//! looks before it repeats. One request about an instance is on the wire at a time.

use super::instance::{Asked, Cause, Facts, Goal, Label, There};
use super::limits::{backoff, long_backoff};
use super::{Command, GC_INTERVAL, Group, ILL_GRACE, Instance, Key, MAX_LOOKS, MAX_PROBES, PRUNE_AFTER, Purpose, Time};
use crate::cloud::{
    Answer, ErrorKind, Href, MAX_TASKS_ASKED, Power, Reply, Request, Started, TaskState, Vapp, VcdError,
};
use log::Level;
use std::time::Duration;

/// A create whose answer was lost counts as never made when its name was not found for so long, and so many times.
pub const UNCLEAR_WINDOW: Duration = Duration::from_secs(60);
const UNCLEAR_LOOKS: u32 = 4;
/// Pause between looks for a name or vApp whose state is not clear.
pub const LOOK_PAUSE: Duration = Duration::from_secs(5);
/// Pause before a vApp that was busy is looked at.
pub const BUSY_PAUSE: Duration = Duration::from_secs(3);
/// A delete's task that takes longer is cancelled; what was cancelled and goes on for as long is looked at anew.
pub const TASK_PATIENCE: Duration = Duration::from_secs(30 * 60);
/// An instance whose create never comes to its first try is given up after so many times create_timeout.
pub const QUEUE_TIMEOUTS: u32 = 3;
/// Pause between two probes of a login port.
pub const PROBE_PAUSE: Duration = Duration::from_secs(1);
/// The metadata label is written so long after the instance runs: its task would hold up a delete that comes at once.
pub const LABEL_DELAY: Duration = Duration::from_secs(30);
/// Customization usually ends in this time: before that, a port that answers may be that of a template that will reboot.
pub const CUSTOMIZATION_USUAL: Duration = Duration::from_secs(60);
/// Pause between two probes of a login port while customization reports nothing: short enough to notice a reboot.
pub const STEADY_PROBE_PAUSE: Duration = Duration::from_secs(5);
/// A guest whose customization reports nothing is taken when its login port has answered every probe for so long.
pub const CUSTOMIZATION_GRACE: Duration = Duration::from_secs(60);
/// The same for a Windows, whose customization takes many minutes and several reboots.
pub const CUSTOMIZATION_GRACE_WINDOWS: Duration = Duration::from_secs(5 * 60);
/// Tries to write the metadata label.
const LABEL_TRIES: u32 = 3;
/// Pause between questions for the tasks that are awaited.
pub const TASK_PAUSE: Duration = Duration::from_secs(3);
/// Pause between polls while a guest boots: what a poll shows late is late for the runner.
pub const BOOT_PAUSE: Duration = Duration::from_secs(2);
/// The same when VCD has shown nothing new for [`LONG_QUIET`].
pub const BOOT_PAUSE_LONG: Duration = Duration::from_secs(3);
/// Longer than a guest needs to boot.
const LONG_QUIET: Duration = Duration::from_secs(120);
/// First pause after a failed poll or question for tasks; doubles with each further one, five times.
const WATCH_RETRY: Duration = Duration::from_secs(1);
/// Pause before a name is looked up whose create's outcome is not known.
const FIND_PAUSE: Duration = Duration::from_secs(1);

/// What goes on, counted anew at each turn.
#[derive(Default)]
struct Load {
    creates: u32,
    deletes: u32,
    looks: usize,
    probes: usize,
    /// Tasks are awaited.
    tasks: bool,
    /// Something boots: only a poll shows how far it is.
    boots: bool,
    /// Creates have to wait for leftovers of an earlier life.
    held: bool,
}

impl Group {
    /// Takes every step that can be taken now, and notes when the next could be due.
    pub(super) fn advance(&mut self) {
        self.wake = None;
        let mut load = self.load();
        let mut key = self.instances.keys().next().copied();
        while let Some(this) = key {
            self.step(this, &mut load);
            key = self.instances.range(this + 1..).next().map(|(key, _)| *key);
        }
        self.watch(&load);
    }

    fn load(&mut self) -> Load {
        let mut load = Load::default();
        let mut leftovers = false;
        for i in self.instances.values().filter(|i| i.ended.is_none()) {
            // At the end VCD queues the tasks, and only requests on the wire count.
            let wire = self.stopping;
            load.creates += u32::from(if wire { i.asked == Some(Asked::Create) } else { i.create_slot() });
            load.deletes += u32::from(if wire { i.asked == Some(Asked::Delete) } else { i.delete_slot() });
            load.looks += usize::from(matches!(i.asked, Some(Asked::Look | Asked::Find)));
            load.probes += usize::from(i.probing);
            load.tasks |= matches!(i.there, There::Making { .. } | There::Removing { .. });
            load.boots |= matches!(i.there, There::Booting { .. });
            leftovers |= i.earlier && !i.reported;
        }
        match self.hold_until {
            Some(until) if leftovers && self.now < until => load.held = true,
            Some(_) => self.hold_until = None,
            None => {}
        }
        load
    }

    fn wake_by(&mut self, time: Time) {
        self.wake = Some(self.wake.map_or(time, |wake| wake.min(time)));
    }

    fn may_create(&mut self, load: &Load) -> bool {
        let until = self.breaker.until(self.now).max(self.throttle.until(self.now));
        if let Some(until) = until.max(self.hold_until.filter(|_| load.held)) {
            self.wake_by(until);
            return false;
        }
        if self.unreachable {
            // The next poll that succeeds lets it go on.
            return false;
        }
        let creates = self.policy.max_creates.min(self.breaker.allows(self.now));
        !self.stopping && load.creates < creates && load.creates + load.deletes < self.policy.max_operations
    }

    fn may_delete(&mut self, load: &Load) -> bool {
        if let Some(until) = self.throttle.until(self.now) {
            self.wake_by(until);
            return false;
        }
        if self.unreachable && !self.stopping {
            return false;
        }
        // One slot is kept for creates.
        let deletes = self.policy.max_deletes.min(self.policy.max_operations.saturating_sub(1).max(1));
        load.deletes < deletes && load.creates + load.deletes < self.policy.max_operations
    }

    /// One instance's next step, if it can be taken now.
    fn step(&mut self, key: Key, load: &mut Load) {
        let now = self.now;
        let Some(i) = self.instances.get(&key) else { return };
        if let Some(ended) = i.ended {
            if !i.reported || now >= ended + PRUNE_AFTER {
                self.forget(key);
            } else {
                self.wake_by(ended + PRUNE_AFTER);
            }
            return;
        }
        if i.goal == Goal::Live && !i.is_ready() {
            if now >= i.deadline {
                let hung = matches!(i.there, There::Making { .. } | There::Booting { .. });
                self.condemn(key, Cause::Timeout);
                if hung {
                    self.count_create_failure();
                }
            } else {
                let deadline = i.deadline;
                self.wake_by(deadline);
            }
        }
        let Some(i) = self.instances.get_mut(&key) else { return };
        if i.goal != Goal::Live {
            // What was made or is being made has to go; a create's task is cancelled below.
            if let There::Booting { vapp, .. } | There::Ready { vapp } = &i.there
                && i.asked.is_none()
            {
                i.not_before = now;
                let vapp = vapp.clone();
                i.scrap(vapp);
            }
        }
        if i.asked.is_some() {
            return;
        }
        if now < i.not_before {
            let not_before = i.not_before;
            self.wake_by(not_before);
            return;
        }
        let name = i.name.clone();
        match (&i.there, i.goal) {
            (There::Absent, Goal::Gone(_)) => self.end(key),
            (There::Absent, Goal::Live) => {
                if now < i.create_after {
                    let create_after = i.create_after;
                    self.wake_by(create_after);
                } else if self.may_create(load) {
                    load.creates += 1;
                    let timeout = self.policy.create_timeout;
                    if let Some(i) = self.instances.get_mut(&key) {
                        i.deadline = i.deadline.min(*i.first_try.get_or_insert(now) + timeout);
                    }
                    let description = self.owner.description(&name).into();
                    self.ask_about(key, Asked::Create, Request::Create { name, description, whole: true });
                }
            }
            (There::Unclear { .. }, _) if load.looks < MAX_LOOKS => {
                load.looks += 1;
                self.ask_about(key, Asked::Find, Request::Find { name });
            }
            (There::Making { task, cancelled: false, .. }, Goal::Gone(_)) => {
                let task = task.clone();
                self.ask_about(key, Asked::Cancel, Request::Cancel { task });
            }
            (There::Removing { vapp, task, since, cancelled }, _)
            | (There::Making { vapp, task, since, cancelled: cancelled @ true }, Goal::Gone(_)) => {
                let (until, task, vapp) = (*since + TASK_PATIENCE, task.clone(), vapp.clone());
                if now < until {
                    self.wake_by(until);
                } else if *cancelled {
                    i.there = There::Leaving { vapp };
                    i.not_before = now + LOOK_PAUSE;
                } else {
                    self.say_of(Level::Warn, key, "VCD's task on it does not end: it is cancelled".into());
                    self.ask_about(key, Asked::Cancel, Request::Cancel { task });
                }
            }
            (There::Booting { .. }, Goal::Live) => self.step_boot(key, load),
            (There::Ready { .. }, Goal::Live) => self.step_ready(key, load),
            (There::Scrap { vapp }, _) => {
                let vapp = vapp.clone();
                if self.may_delete(load) {
                    load.deletes += 1;
                    self.ask_about(key, Asked::Delete, Request::Delete { vapp });
                }
            }
            (There::Leaving { vapp } | There::Stranger { vapp }, _) if load.looks < MAX_LOOKS => {
                let vapp = vapp.clone();
                self.look(key, vapp, load);
            }
            _ => {}
        }
    }

    fn look(&mut self, key: Key, vapp: Href, load: &mut Load) {
        load.looks += 1;
        self.ask_about(key, Asked::Look, Request::Look { vapp });
    }

    fn step_boot(&mut self, key: Key, load: &mut Load) {
        let now = self.now;
        let timeout = self.policy.ready_timeout;
        let Some(i) = self.instances.get_mut(&key) else { return };
        if now >= i.known + timeout {
            let seen = i.error.as_ref().map(|error| format!(" ({error})")).unwrap_or_default();
            let why = format!("not ready within ready_timeout, it still waits for {}{seen}", i.waits_for(now));
            return self.boot_failed(key, &why);
        }
        let ready_by = i.known + timeout;
        let steady_from = i.known + CUSTOMIZATION_USUAL;
        if i.missed >= i.patience {
            if let (Some(vapp), true) = (i.vapp().cloned(), load.looks < MAX_LOOKS) {
                self.look(key, vapp, load);
            }
        } else if let Some(facts) = &i.facts
            && let Some(address) = facts.address
            && (facts.complete() || (facts.silent() && now >= steady_from))
            && !i.probing
            && load.probes < MAX_PROBES
        {
            load.probes += 1;
            i.probing = true;
            let ticket = self.fly(Purpose::Probe(key));
            self.commands.push_back(Command::Probe { ticket, address });
        }
        self.wake_by(ready_by);
        if now < steady_from {
            self.wake_by(steady_from);
        }
    }

    fn step_ready(&mut self, key: Key, load: &mut Load) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        if i.missed >= i.patience {
            if let (Some(vapp), true) = (i.vapp().cloned(), load.looks < MAX_LOOKS) {
                self.look(key, vapp, load);
            }
            return;
        }
        if let Some((since, _)) = i.ill {
            if now >= since + ILL_GRACE {
                self.condemn(key, Cause::Ill);
            }
            self.wake_by(since + ILL_GRACE);
            return;
        }
        if let (Label::Wanted { tries, not_before }, Some(vapp)) = (i.label, i.vapp().cloned()) {
            if now >= not_before && !self.stopping {
                i.label = Label::OnWire { tries };
                self.ask(Purpose::Label(key), Request::Label { vapp });
            } else if now < not_before {
                self.wake_by(not_before);
            }
        }
    }

    fn ask_about(&mut self, key: Key, asked: Asked, request: Request) {
        if let Some(i) = self.instances.get_mut(&key) {
            debug_assert!(i.asked.is_none(), "one request about an instance at a time");
            i.asked = Some(asked);
        }
        self.ask(Purpose::Instance(key), request);
    }

    /// Asks for tasks and polls when they are due.
    fn watch(&mut self, load: &Load) {
        if load.tasks && !self.tasks.on_wire {
            let due = (self.tasks.last + TASK_PAUSE).max(self.tasks.not_before);
            if self.now >= due {
                self.ask_tasks();
            } else {
                self.wake_by(due);
            }
        }
        if !self.poll.on_wire {
            let interval = match load.boots {
                true if self.now - self.progress < LONG_QUIET => BOOT_PAUSE.min(self.policy.reconcile_interval),
                true => BOOT_PAUSE_LONG.min(self.policy.reconcile_interval),
                false => self.policy.reconcile_interval,
            };
            let due = (self.poll.last + interval).max(self.poll.not_before);
            if self.now >= due {
                let vapps = self.now >= self.next_gc;
                if vapps {
                    self.collect();
                }
                self.poll.on_wire = true;
                self.poll.last = self.now;
                self.ask(Purpose::Poll { sent: self.now, vapps }, Request::Poll { vapps });
            } else {
                self.wake_by(due);
            }
        }
    }

    /// Garbage collection: what is past twice its age. Leftovers are found by the poll with vApps that goes with it.
    fn collect(&mut self) {
        self.next_gc = self.now + GC_INTERVAL;
        let old = |i: &Instance| i.is_ready() && self.too_old(i.age(self.now));
        let keys: Vec<Key> = self.instances.iter().filter(|(_, i)| old(i)).map(|(key, _)| *key).collect();
        for key in keys {
            self.condemn(key, Cause::Aged);
        }
    }

    fn ask_tasks(&mut self) {
        let task = |(key, i): (&Key, &Instance)| match &i.there {
            There::Making { task, .. } | There::Removing { task, .. } => Some((*key, task.clone())),
            _ => None,
        };
        let after = self.instances.range(self.task_cursor + 1..).filter_map(task);
        let before = self.instances.range(..=self.task_cursor).filter_map(task);
        let asked: Vec<(Key, Href)> = after.chain(before).take(MAX_TASKS_ASKED).collect();
        self.task_cursor = asked.last().map_or(0, |(key, _)| *key);
        let tasks = asked.into_iter().map(|(_, task)| task).collect();
        self.tasks.on_wire = true;
        self.tasks.last = self.now;
        self.ask(Purpose::Tasks, Request::Tasks { tasks });
    }

    // Endings.

    /// Nothing of the instance is in VCD any more, and it is not wanted.
    fn end(&mut self, key: Key) {
        let now = self.now;
        self.progress = now;
        if let Some(i) = self.instances.get_mut(&key) {
            i.ended = Some(now);
        }
        self.say_of(Level::Info, key, "gone from VCD".into());
        match self.instances.get(&key) {
            Some(i) if i.reported => self.wake_by(now + PRUNE_AFTER),
            _ => self.forget(key),
        }
    }

    fn forget(&mut self, key: Key) {
        if let Some(i) = self.instances.remove(&key)
            && i.reported
        {
            self.names.remove(&i.name);
        }
    }

    /// VCD does not know the instance's vApp (any more).
    fn vanished(&mut self, key: Key) {
        self.progress = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        let was = std::mem::replace(&mut i.there, There::Absent);
        i.stumbles = 0;
        i.facts = None;
        i.ill = None;
        i.not_before = self.now;
        match was {
            There::Ready { .. } => self.condemn(key, Cause::Lost),
            // It went while it was being made, not by us.
            There::Making { .. } | There::Booting { .. } if i.goal == Goal::Live => self.create_failed(key, None),
            _ => {}
        }
    }

    fn count_create_failure(&mut self) {
        if let Some(pause) = self.breaker.failure(self.now) {
            let text =
                format!("creates failed one after another: creates pause for {} s, deletes go on", pause.as_secs());
            self.say_plain(Level::Error, text);
        }
    }

    /// A create failed for good: the next one waits. `permanent`: VCD's reason will not pass by itself.
    fn create_failed(&mut self, key: Key, error: Option<&VcdError>) {
        let Some(i) = self.instances.get_mut(&key) else { return };
        i.retries += 1;
        let permanent = error.is_some_and(|error| will_not_pass(error.kind));
        let pause = if permanent { long_backoff(&mut self.rng) } else { backoff(&mut self.rng, i.retries) };
        i.create_after = self.now + pause;
        let follows = if i.goal != Goal::Live {
            "it is to be removed anyway".to_string()
        } else if i.create_after >= i.deadline {
            "no further try before create_timeout".to_string()
        } else {
            format!("next try in {} s", pause.as_secs())
        };
        match error {
            Some(error) => self.blame(key, error, &follows),
            None => self.say_of(Level::Warn, key, format!("gone from VCD while it was being made; {follows}")),
        }
    }

    /// A delete or look failed: the next one waits.
    fn stumble(&mut self, key: Key, error: &VcdError) {
        let Some(i) = self.instances.get_mut(&key) else { return };
        i.stumbles += 1;
        let pause =
            if will_not_pass(error.kind) { long_backoff(&mut self.rng) } else { backoff(&mut self.rng, i.stumbles) };
        i.not_before = self.now + pause;
        self.blame(key, error, &format!("next try in {} s", pause.as_secs()));
    }

    /// The org's operation limit: the request did nothing and may be repeated after a pause of all changes.
    fn throttled(&mut self, key: Key, error: &VcdError) {
        if let Some(pause) = self.throttle.refused(self.now, &mut self.rng, error.retry_after) {
            self.blame(key, error, &format!("creates and deletes pause for {} s", pause.as_secs()));
        }
    }

    // Answers.

    pub(super) fn instance_answered(&mut self, key: Key, answer: Answer) {
        let Some(asked) = self.instances.get_mut(&key).and_then(|i| i.asked.take()) else { return };
        match asked {
            Asked::Create => self.create_answered(key, answer),
            Asked::Find => self.find_answered(key, answer),
            Asked::Look => self.look_answered(key, answer),
            Asked::Delete => self.delete_answered(key, answer),
            Asked::Cancel => self.cancel_answered(key, answer),
        }
    }

    fn create_answered(&mut self, key: Key, answer: Answer) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        let error = match answer {
            Ok(Reply::Started(Started { vapp: Some(vapp), task })) => {
                i.place(made(vapp, task, now), now);
                self.throttle.accepted();
                self.progress = now;
                return self.say_of(Level::Info, key, "VCD makes it".into());
            }
            Ok(other) => wrong_reply("create", &other),
            Err(error) => error,
        };
        match error.kind {
            ErrorKind::Limit => self.throttled(key, &error),
            ErrorKind::Ambiguous | ErrorKind::Protocol | ErrorKind::Duplicate => {
                i.there = There::Unclear { since: now, looks: 0 };
                i.not_before = now + FIND_PAUSE;
                self.blame(key, &error, "whether it was made is looked up by name");
            }
            // VCD could not be asked: that says nothing about creates.
            ErrorKind::Unavailable | ErrorKind::Auth | ErrorKind::Busy => self.create_failed(key, Some(&error)),
            _ => {
                self.create_failed(key, Some(&error));
                self.count_create_failure();
            }
        }
    }

    fn find_answered(&mut self, key: Key, answer: Answer) {
        let now = self.now;
        let vapps = match answer {
            Ok(Reply::Vapps(vapps)) => vapps,
            Ok(other) => return self.stumble(key, &wrong_reply("find", &other)),
            Err(error) => return self.stumble(key, &error),
        };
        let Some(i) = self.instances.get_mut(&key) else { return };
        i.stumbles = 0;
        let There::Unclear { since, looks } = i.there else { return };
        let name = i.name.clone();
        let owns = |v: &Vapp| self.owner.owns(&v.name, v.description.as_deref(), false);
        let mut ours = vapps.iter().filter(|v| owns(v) && !self.is_stray(&v.href));
        if let Some(vapp) = ours.next() {
            let extra: Vec<Vapp> = ours.cloned().collect();
            let there = found(vapp, now);
            if let Some(i) = self.instances.get_mut(&key) {
                i.place(there, now);
            }
            self.progress = now;
            self.say_of(Level::Info, key, "found in VCD: the create had worked".into());
            for vapp in extra {
                self.insert(Instance::stray(name.clone(), There::Scrap { vapp: vapp.href }, now));
            }
            return;
        }
        if vapps.iter().any(|v| !owns(v)) {
            let text = "another's vApp has this name: the id is given up".to_string();
            if let Some(i) = self.instances.get_mut(&key) {
                i.there = There::Absent;
            }
            self.say_of(Level::Error, key, text);
            return self.condemn(key, Cause::Timeout);
        }
        let (window, looks) = (now - since, looks + 1);
        let Some(i) = self.instances.get_mut(&key) else { return };
        if window >= UNCLEAR_WINDOW && looks >= UNCLEAR_LOOKS {
            i.there = There::Absent;
            self.say_of(Level::Info, key, "not found in VCD: the create had not worked".into());
        } else {
            i.there = There::Unclear { since, looks };
            i.not_before = now + LOOK_PAUSE;
        }
    }

    /// A stray stands for this vApp already.
    fn is_stray(&self, vapp: &Href) -> bool {
        self.instances.values().any(|i| !i.reported && i.vapp() == Some(vapp))
    }

    fn look_answered(&mut self, key: Key, answer: Answer) {
        let now = self.now;
        let mut vapps = match answer {
            Ok(Reply::Vapps(vapps)) => vapps,
            Ok(other) => return self.stumble(key, &wrong_reply("look", &other)),
            Err(error) => return self.stumble(key, &error),
        };
        let Some(i) = self.instances.get_mut(&key) else { return };
        i.stumbles = 0;
        i.external = vapps.last().and_then(|vapp| vapp.made.as_ref()?.external).or(i.external);
        if matches!(i.there, There::Stranger { .. }) {
            return self.stranger_seen(key, vapps.pop());
        }
        let Some(vapp) = vapps.pop() else { return self.vanished(key) };
        if !self.owner.owns(&vapp.name, vapp.description.as_deref(), true) {
            return self.released(key, &vapp);
        }
        match i.there {
            There::Leaving { .. } => {
                i.there = match found(&vapp, now) {
                    // Half made still: the create's task has to end first.
                    There::Making { vapp, task, since, .. } => There::Removing { vapp, task, since, cancelled: false },
                    _ => There::Scrap { vapp: vapp.href },
                };
            }
            // It is there: the polls lag behind.
            _ => {
                i.missed = 0;
                i.patience = (i.patience * 2).min(64);
            }
        }
    }

    /// A vApp that was ours carries another name or description now: whoever did that has it.
    fn released(&mut self, key: Key, vapp: &Vapp) {
        let text =
            format!("its vApp is named {:?} now and does not say that it is ours: left alone from now on", vapp.name);
        self.say_of(Level::Warn, key, text);
        self.remember_foreign(&vapp.href);
        self.vanished(key);
    }

    fn delete_answered(&mut self, key: Key, answer: Answer) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        let There::Scrap { vapp } = &i.there else { return };
        let vapp = vapp.clone();
        let error = match answer {
            Ok(Reply::Started(Started { task, .. })) => {
                self.throttle.accepted();
                self.progress = now;
                i.stumbles = 0;
                let Some(task) = task else { return self.vanished(key) };
                i.there = There::Removing { vapp, task, since: now, cancelled: false };
                return self.say_of(Level::Info, key, "VCD deletes it".into());
            }
            Ok(other) => wrong_reply("delete", &other),
            Err(error) => error,
        };
        match error.kind {
            ErrorKind::Limit => self.throttled(key, &error),
            ErrorKind::NotFound => self.vanished(key),
            ErrorKind::Busy => {
                i.there = There::Leaving { vapp };
                i.not_before = now + BUSY_PAUSE;
                self.say_of(
                    Level::Debug,
                    key,
                    format!("{error}; what holds it is looked at in {} s", BUSY_PAUSE.as_secs()),
                );
            }
            ErrorKind::Ambiguous | ErrorKind::Protocol => {
                i.there = There::Leaving { vapp };
                self.stumble(key, &error);
            }
            _ => self.stumble(key, &error),
        }
    }

    fn cancel_answered(&mut self, key: Key, answer: Answer) {
        let Some(i) = self.instances.get_mut(&key) else { return };
        match answer {
            // A second request to cancel does no harm.
            Err(error) if !matches!(error.kind, ErrorKind::NotFound | ErrorKind::Invalid | ErrorKind::State) => {
                self.stumble(key, &error);
            }
            // Asked, or refused because it has ended already: the task's end is awaited.
            _ => match &mut i.there {
                There::Making { cancelled, since, .. } | There::Removing { cancelled, since, .. } => {
                    (*cancelled, *since) = (true, self.now);
                }
                _ => {}
            },
        }
    }

    pub(super) fn tasks_answered(&mut self, answer: Answer) {
        self.tasks.on_wire = false;
        let tasks = match answer {
            Ok(Reply::Tasks(tasks)) => tasks,
            Ok(other) => return self.tasks_failed(&wrong_reply("tasks", &other)),
            Err(error) => return self.tasks_failed(&error),
        };
        self.tasks.fails = 0;
        let ended = tasks.into_iter().filter(|task| task.state != TaskState::Running);
        for task in ended {
            self.progress = self.now;
            let on = |i: &Instance| match &i.there {
                There::Making { task: this, .. } | There::Removing { task: this, .. } => *this == task.href,
                _ => false,
            };
            let keys: Vec<Key> = self.instances.iter().filter(|(_, i)| on(i)).map(|(key, _)| *key).collect();
            for key in keys {
                self.task_ended(key, &task.state);
            }
        }
    }

    fn tasks_failed(&mut self, error: &VcdError) {
        self.tasks.fails += 1;
        self.tasks.not_before = self.now + watch_backoff(self.tasks.fails, error);
        self.say_plain(Level::Warn, format!("{error}; asked again soon"));
    }

    fn task_ended(&mut self, key: Key, state: &TaskState) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        match (i.there.clone(), state) {
            (There::Making { vapp, .. }, TaskState::Success | TaskState::Unknown) => {
                i.place(There::Booting { vapp, off: 0 }, now);
                self.say_of(Level::Info, key, "made and powered on; waits for its guest".into());
            }
            (There::Making { vapp, .. }, TaskState::Failed(error)) => {
                i.place(There::Scrap { vapp }, now);
                let wanted = i.goal == Goal::Live;
                self.create_failed(key, Some(error));
                if wanted {
                    self.count_create_failure();
                }
            }
            (There::Removing { vapp, .. }, TaskState::Failed(error)) => {
                i.there = There::Leaving { vapp };
                self.stumble(key, error);
            }
            (There::Removing { vapp, .. }, _) => i.there = There::Leaving { vapp },
            _ => {}
        }
    }

    pub(super) fn probe_answered(&mut self, key: Key, result: Result<(), String>) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        i.probing = false;
        let There::Booting { vapp, .. } = &i.there else { return };
        let silent = i.facts.as_ref().is_some_and(Facts::silent);
        let complete = i.facts.as_ref().is_some_and(Facts::complete);
        match result {
            // Polls have shown something else since it was asked.
            Ok(()) if i.goal != Goal::Live || !(silent || complete) => {}
            // A poll must have shown it so at the end of that time: they may have failed meanwhile.
            Ok(()) if silent && i.seen < *i.steady.get_or_insert(now) + i.grace() => {
                i.not_before = now + STEADY_PROBE_PAUSE;
            }
            Ok(()) => {
                i.there = There::Ready { vapp: vapp.clone() };
                i.error = None;
                i.label = Label::Wanted { tries: 0, not_before: now + LABEL_DELAY };
                let took = i.age(now).as_secs();
                self.breaker.success();
                self.progress = now;
                if silent {
                    let text = "its login port answers steadily, but VCD still shows its guest customization as pending: \
                                taken as it is; newer VMware Tools in the template would report it";
                    self.say_of(Level::Warn, key, text.into());
                }
                self.say_of(Level::Info, key, format!("running, {took} s after it was accepted"));
            }
            Err(seen) => {
                i.steady = None;
                i.error = Some(format!("login port: {seen}").into());
                i.not_before = now + if silent { STEADY_PROBE_PAUSE } else { PROBE_PAUSE };
            }
        }
    }

    pub(super) fn label_answered(&mut self, key: Key, answer: Answer) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        let Label::OnWire { tries } = i.label else { return };
        let label = match answer {
            Ok(_) => Label::Settled,
            Err(error) => {
                let again = tries + 1 < LABEL_TRIES && !will_not_pass(error.kind);
                let follows = if again { "tried again" } else { "left without it: nothing here depends on it" };
                let text = format!("{error}; {follows}");
                let next = Label::Wanted { tries: tries + 1, not_before: now + backoff(&mut self.rng, tries + 1) };
                self.say_of(Level::Warn, key, text);
                if again { next } else { Label::Settled }
            }
        };
        if let Some(i) = self.instances.get_mut(&key) {
            i.label = label;
        }
    }

    /// A guest that cannot come to running any more: cleared away, then made anew.
    pub(super) fn boot_failed(&mut self, key: Key, why: &str) {
        let Some(i) = self.instances.get_mut(&key) else { return };
        let Some(vapp) = i.vapp().cloned() else { return };
        i.scrap(vapp);
        let error = VcdError {
            kind: ErrorKind::Failed,
            what: format!("boot {}", i.name),
            status: 0,
            code: String::new(),
            text: why.to_string(),
            retry_after: None,
        };
        self.create_failed(key, Some(&error));
        self.count_create_failure();
    }
}

/// VCD's reason stands until somebody changes something there.
fn will_not_pass(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Quota | ErrorKind::Forbidden | ErrorKind::Invalid | ErrorKind::NotFound)
}

/// The pause before a poll or a question for tasks is repeated after `fails` failed ones.
pub(super) fn watch_backoff(fails: u32, error: &VcdError) -> Duration {
    WATCH_RETRY
        .saturating_mul(1 << fails.min(5))
        .max(error.retry_after.unwrap_or_default().min(Duration::from_secs(60)))
}

/// A vApp that a create began.
fn made(vapp: Href, task: Option<Href>, now: Time) -> There {
    match task {
        Some(task) => There::Making { vapp, task, since: now, cancelled: false },
        None => There::Booting { vapp, off: 0 },
    }
}

/// A vApp of ours that was looked up.
pub(super) fn found(vapp: &Vapp, now: Time) -> There {
    let href = vapp.href.clone();
    match (vapp.tasks.first(), vapp.power) {
        (Some(task), _) => There::Making { vapp: href, task: task.clone(), since: now, cancelled: false },
        (None, Power::On) => There::Booting { vapp: href, off: 0 },
        (None, _) => There::Scrap { vapp: href },
    }
}

fn wrong_reply(what: &str, reply: &Reply) -> VcdError {
    let kind = match reply {
        Reply::Poll(_) => "a poll",
        Reply::Vapps(_) => "vApps",
        Reply::Started(_) => "a start without a vApp",
        Reply::Tasks(_) => "tasks",
        Reply::Done => "nothing",
    };
    let text = format!("the answer holds {kind}");
    VcdError { kind: ErrorKind::Protocol, what: what.into(), status: 0, code: String::new(), text, retry_after: None }
}
