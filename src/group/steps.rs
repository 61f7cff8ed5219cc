//! What happens next: the steps of create, delete, suspend and resume, each decided from what is known, so that after a
//! failure the group looks before it repeats. One request about an instance is on the wire at a time.

use super::instance::{Asked, CHECKS, Cause, Facts, Fit, Goal, Label, Removal, There, WATCHED, Work};
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
/// A task other than a create's that takes longer is cancelled; what was cancelled and goes on for as long is looked at
/// anew.
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
/// Pauses between questions for the tasks that are awaited, by how long the youngest of them has been going on: small things
/// take seconds, a create half a minute, and what takes longer will take long.
pub const TASK_PAUSES: [(Duration, Duration); 2] =
    [(Duration::from_secs(4), Duration::from_secs(1)), (Duration::from_secs(60), Duration::from_secs(3))];
/// The same beyond these.
pub const TASK_PAUSE_LONG: Duration = Duration::from_secs(5);
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
    /// Suspends and resumes.
    others: u32,
    looks: usize,
    probes: usize,
    /// Tasks are awaited, the youngest since then.
    tasks: Option<Time>,
    /// Something boots: only a poll shows how far it is.
    boots: bool,
    /// Creates have to wait for leftovers of an earlier life.
    held: bool,
}

impl Load {
    fn operations(&self) -> u32 {
        self.creates + self.deletes + self.others
    }
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
            load.others += u32::from(!wire && i.other_slot());
            load.looks += usize::from(matches!(i.asked, Some(Asked::Look | Asked::Find)));
            load.probes += usize::from(i.probing);
            if let There::Working { since, .. } = i.there {
                load.tasks = load.tasks.max(Some(since));
            }
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
        !self.stopping && load.creates < creates && load.operations() < self.policy.max_operations
    }

    /// An operation other than a create may begin.
    fn may_operate(&mut self, load: &Load) -> bool {
        if let Some(until) = self.throttle.until(self.now) {
            self.wake_by(until);
            return false;
        }
        if self.unreachable && !self.stopping {
            return false;
        }
        // One slot is kept for creates.
        let most = self.policy.max_operations.saturating_sub(1).max(1);
        load.deletes + load.others < most && load.operations() < self.policy.max_operations
    }

    /// One instance's next step, if it can be taken now.
    fn step(&mut self, key: Key, load: &mut Load) {
        let now = self.now;
        let unreachable = self.unreachable;
        let Some(i) = self.instances.get_mut(&key) else { return };
        if let Some(ended) = i.ended {
            if !i.reported || now >= ended + PRUNE_AFTER {
                self.forget(key);
            } else {
                self.wake_by(ended + PRUNE_AFTER);
            }
            return;
        }
        let blind = i.resumed && (unreachable || !i.is_watched(now));
        // A task on what has run has a patience of its own.
        if i.goal == Goal::Live && !i.is_ready() && !(i.has_run() && i.work().is_some()) {
            if now >= i.deadline && blind {
                // Nothing says that it does not come back.
                i.deadline = now + WATCHED;
                self.wake_by(now + WATCHED);
            } else if now >= i.deadline {
                let hung = !i.resumed
                    && matches!(i.there, There::Working { .. } | There::Fitting { .. } | There::Booting { .. });
                let cause = if i.resumed { Cause::Ill } else { Cause::Timeout };
                self.condemn(key, cause);
                if hung {
                    self.count_create_failure();
                }
            } else {
                let deadline = i.deadline;
                self.wake_by(deadline);
            }
        }
        let Some(i) = self.instances.get_mut(&key) else { return };
        if i.goal.is_gone() {
            // What was made or is being made has to go; its task is cancelled below.
            let fitting = matches!(i.there, There::Fitting { .. }) && i.unsure.is_some();
            if let There::Fitting { vapp }
            | There::Booting { vapp }
            | There::Ready { vapp }
            | There::Suspended { vapp, .. } = &i.there
                && i.asked.is_none()
                && !fitting
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
            (There::Absent, _) => {
                if now < i.create_after {
                    let create_after = i.create_after;
                    self.wake_by(create_after);
                } else if self.may_create(load) {
                    load.creates += 1;
                    let (timeout, whole) = (self.policy.create_timeout, self.whole);
                    if let Some(i) = self.instances.get_mut(&key) {
                        i.deadline = i.deadline.min(*i.first_try.get_or_insert(now) + timeout);
                        (i.whole, i.configured, i.tpm, i.checks) = (whole, false, false, 0);
                        (i.unsure, i.removal) = (None, Removal::Force);
                    }
                    let description = self.owner.description(&name).into();
                    self.ask_about(key, Asked::Create, Request::Create { name, description, whole });
                }
            }
            (There::Unclear { .. }, _) if load.looks < MAX_LOOKS => {
                load.looks += 1;
                self.ask_about(key, Asked::Find, Request::Find { name });
            }
            (There::Working { work, task, cancelled: false, .. }, Goal::Gone(_)) if *work != Work::Remove => {
                let task = task.clone();
                self.ask_about(key, Asked::Cancel, Request::Cancel { task });
            }
            // A create is given up by its deadline.
            (There::Working { work: Work::Make { .. }, .. }, Goal::Live) => {}
            (There::Working { vapp, task, since, cancelled, .. }, _) => {
                let (until, task, vapp) = (*since + TASK_PATIENCE, task.clone(), vapp.clone());
                if now < until {
                    self.wake_by(until);
                } else if *cancelled && !i.goal.is_gone() {
                    self.condemn(key, Cause::Ill);
                } else if *cancelled {
                    i.there = There::Leaving { vapp };
                    i.not_before = now + LOOK_PAUSE;
                } else {
                    self.say_of(Level::Warn, key, "VCD's task on it does not end: it is cancelled".into());
                    self.ask_about(key, Asked::Cancel, Request::Cancel { task });
                }
            }
            (There::Fitting { vapp }, _) if load.looks < MAX_LOOKS => {
                let vapp = vapp.clone();
                self.look(key, vapp, load);
            }
            (There::Booting { .. }, Goal::Live) => self.step_boot(key, load),
            (There::Ready { .. } | There::Suspended { .. }, Goal::Live | Goal::Asleep) => self.step_rest(key, load),
            (There::Scrap { vapp }, _) => {
                let (vapp, removal) = (vapp.clone(), i.removal);
                if load.deletes < self.policy.max_deletes && self.may_operate(load) {
                    load.deletes += 1;
                    let request = match removal {
                        Removal::Force => Request::Delete { vapp },
                        Removal::Stop => Request::Undeploy { vapp },
                        Removal::Stopped => Request::DeleteStopped { vapp },
                    };
                    self.ask_about(key, Asked::Delete, request);
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
        if now >= i.known + timeout && !i.resumed {
            let seen = i.error.as_ref().map(|error| format!(" ({error})")).unwrap_or_default();
            let why = format!("not ready within ready_timeout, it still waits for {}{seen}", i.waits_for(now));
            return self.boot_failed(key, &why);
        }
        let ready_by = i.known + timeout;
        let steady_from = i.known + CUSTOMIZATION_USUAL;
        if i.missed >= i.patience || i.unsure.is_some() || (i.checks < CHECKS && !i.resumed) {
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
        if now < ready_by {
            self.wake_by(ready_by);
        }
        if now < steady_from {
            self.wake_by(steady_from);
        }
    }

    /// Running or suspended: it is seen to, and suspended or resumed if that is wanted.
    fn step_rest(&mut self, key: Key, load: &mut Load) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        if i.missed >= i.patience || i.unsure.is_some() {
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
        let Some(vapp) = i.vapp().cloned() else { return };
        let change = match (i.is_ready(), i.goal) {
            (true, Goal::Asleep) => Some((Asked::Suspend, Request::Suspend { vapp: vapp.clone() })),
            (false, Goal::Live) => Some((Asked::Resume, Request::PowerOn { vapp: vapp.clone() })),
            _ => None,
        };
        if let Some((asked, request)) = change {
            if !self.stopping && self.may_operate(load) {
                load.others += 1;
                self.ask_about(key, asked, request);
            }
            return;
        }
        if let Label::Wanted { tries, not_before } = i.label
            && i.is_ready()
        {
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
        if let (Some(since), false) = (load.tasks, self.tasks.on_wire) {
            let due = (self.tasks.last + task_pause(self.now - since)).max(self.tasks.not_before);
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
        let longest = self.policy.suspended_max_age;
        let old = |i: &Instance| match i.there {
            There::Ready { .. } => self.too_old(i.age(self.now)),
            There::Suspended { since, .. } if i.goal == Goal::Asleep => {
                !longest.is_zero() && self.now - since >= longest
            }
            _ => false,
        };
        let keys: Vec<Key> = self.instances.iter().filter(|(_, i)| old(i)).map(|(key, _)| *key).collect();
        for key in keys {
            self.condemn(key, Cause::Aged);
        }
    }

    fn ask_tasks(&mut self) {
        let task = |(key, i): (&Key, &Instance)| match &i.there {
            There::Working { task, .. } => Some((*key, task.clone())),
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
        let had_run = i.has_run();
        let was = std::mem::replace(&mut i.there, There::Absent);
        i.stumbles = 0;
        i.facts = None;
        i.ill = None;
        i.not_before = self.now;
        match was {
            _ if had_run => self.condemn(key, Cause::Lost),
            // It went while it was being made, not by us.
            There::Working { work: Work::Make { .. }, .. } | There::Fitting { .. } | There::Booting { .. }
                if i.goal == Goal::Live =>
            {
                self.create_failed(key, None)
            }
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
        let follows = if i.goal.is_gone() {
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
            self.blame(key, error, &format!("all changes pause for {} s", pause.as_secs()));
        }
    }

    // Answers.

    pub(super) fn instance_answered(&mut self, key: Key, answer: Answer) {
        let Some(asked) = self.instances.get_mut(&key).and_then(|i| i.asked.take()) else { return };
        match asked {
            Asked::Create => self.create_answered(key, answer),
            Asked::Fit(fit) => self.fit_answered(key, fit, answer),
            Asked::Suspend => self.nap_answered(key, Work::Suspend, answer),
            Asked::Resume => self.nap_answered(key, Work::Resume, answer),
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
                let there = begun(Work::Make { last: i.whole }, vapp, task, now);
                i.place(there, now);
                self.throttle.accepted();
                self.progress = now;
                return self.say_of(Level::Info, key, "VCD makes it".into());
            }
            Ok(other) => wrong_reply("create", &other),
            Err(error) => error,
        };
        match error.kind {
            ErrorKind::Limit => self.throttled(key, &error),
            ErrorKind::TooMuch if i.whole => self.take_apart(error.to_string()),
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

    /// VCD does not make a VM with everything in one request: from now on in three.
    fn take_apart(&mut self, why: String) {
        if std::mem::take(&mut self.whole) {
            let text = format!("{why}; from now on VMs are made in three steps: compose, reconfigure, power on");
            self.say_plain(Level::Warn, text);
        }
    }

    /// A look at a vApp that was made without hardware: its next step on the way to the first boot.
    fn fit(&mut self, key: Key, vapp: &Vapp) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        let href = vapp.href.clone();
        if let Some(task) = vapp.tasks.first() {
            return i.place(begun(Work::Make { last: false }, href, Some(task.clone()), now), now);
        }
        if vapp.power == Power::On || i.goal.is_gone() {
            i.unsure = None;
            return i.place(There::Booting { vapp: href }, now);
        }
        let Some(made) = vapp.made.as_ref().filter(|_| !vapp.busy) else {
            // The VM shows later than the vApp, or a task holds it; the deadline bounds this.
            i.not_before = now + LOOK_PAUSE;
            return;
        };
        if i.unsure.is_some_and(|until| now < until) {
            // The step that was sent may yet be carried out.
            i.not_before = now + LOOK_PAUSE;
            return;
        }
        if let Some(until) = self.throttle.until(now) {
            i.not_before = until;
            return;
        }
        i.unsure = None;
        let vm = made.vm.clone();
        let (fit, request) = match &made.differs {
            Some(_) if !i.configured => (Fit::Configure, Request::Configure { vm }),
            _ if made.lacks_tpm && !i.tpm => (Fit::Tpm, Request::AddTpm { vm }),
            _ => (Fit::PowerOn, Request::PowerOn { vapp: href }),
        };
        self.ask_about(key, Asked::Fit(fit), request);
    }

    fn fit_answered(&mut self, key: Key, fit: Fit, answer: Answer) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        let There::Fitting { vapp } = &i.there else { return };
        let vapp = vapp.clone();
        let error = match answer {
            Ok(Reply::Started(Started { task, .. })) => {
                match fit {
                    Fit::Configure => i.configured = true,
                    Fit::Tpm => i.tpm = true,
                    Fit::PowerOn => {}
                }
                // Done at once: the next look shows what follows.
                if let Some(task) = task {
                    i.place(begun(Work::Make { last: fit == Fit::PowerOn }, vapp, Some(task), now), now);
                }
                self.throttle.accepted();
                self.progress = now;
                let text = match fit {
                    Fit::Configure => "VCD sets its hardware",
                    Fit::Tpm => "VCD gives it a TPM",
                    Fit::PowerOn => "VCD powers it on",
                };
                return self.say_of(Level::Info, key, text.into());
            }
            Ok(other) => wrong_reply("fit", &other),
            Err(error) => error,
        };
        match error.kind {
            ErrorKind::Limit => self.throttled(key, &error),
            ErrorKind::Busy => i.not_before = now + BUSY_PAUSE,
            ErrorKind::Unavailable | ErrorKind::Auth => self.stumble(key, &error),
            ErrorKind::Ambiguous | ErrorKind::Protocol => {
                i.unsure = Some(now + UNCLEAR_WINDOW);
                i.not_before = now + FIND_PAUSE;
                self.blame(key, &error, "whether it worked is looked up");
            }
            _ => self.made_badly(key, vapp, &error),
        }
    }

    /// A create failed and has left a vApp behind.
    fn made_badly(&mut self, key: Key, vapp: Href, error: &VcdError) {
        let Some(i) = self.instances.get_mut(&key) else { return };
        i.place(There::Scrap { vapp }, self.now);
        let wanted = i.goal == Goal::Live;
        self.create_failed(key, Some(error));
        if wanted {
            self.count_create_failure();
        }
    }

    /// A look at a VM that was just made and boots: its hardware, held against the wish.
    fn checked(&mut self, key: Key, vapp: &Vapp) {
        let Some(i) = self.instances.get_mut(&key) else { return };
        i.checks = CHECKS;
        let Some(differs) = vapp.made.as_ref().and_then(|made| made.differs.clone()) else { return };
        if i.whole {
            // What has booted once cannot be changed as it could before: it is made anew.
            i.scrap(vapp.href.clone());
            i.create_after = self.now;
            self.say_of(Level::Warn, key, format!("{differs}: made anew"));
            self.take_apart("VCD ignores the hardware that a create asks for".into());
        } else {
            self.say_of(Level::Warn, key, format!("{differs}: VCD gives no other, it is used as it is"));
        }
    }

    /// The answer to a suspend or a resume.
    fn nap_answered(&mut self, key: Key, work: Work, answer: Answer) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        let Some(vapp) = i.vapp().cloned() else { return };
        let error = match answer {
            Ok(Reply::Started(Started { task, .. })) => {
                i.stumbles = 0;
                match task {
                    Some(task) => i.place(begun(work, vapp, Some(task), now), now),
                    // Done at once, or never begun: a look tells.
                    None => i.unsure = Some(now + UNCLEAR_WINDOW),
                }
                self.throttle.accepted();
                self.progress = now;
                let text = if work == Work::Suspend { "VCD suspends it" } else { "VCD resumes it" };
                return self.say_of(Level::Info, key, text.into());
            }
            Ok(other) => wrong_reply("suspend or resume", &other),
            Err(error) => error,
        };
        match error.kind {
            ErrorKind::Limit => self.throttled(key, &error),
            ErrorKind::Busy => {
                // What holds it is looked at: it may never end.
                i.unsure = Some(now);
                i.not_before = now + BUSY_PAUSE;
            }
            ErrorKind::Ambiguous | ErrorKind::Protocol => {
                i.unsure = Some(now + UNCLEAR_WINDOW);
                i.not_before = now + FIND_PAUSE;
                self.blame(key, &error, "whether it worked is looked up");
            }
            ErrorKind::NotFound => self.vanished(key),
            ErrorKind::Unavailable | ErrorKind::Auth => self.stumble(key, &error),
            // It may be suspended already, or on: an earlier request was carried out late.
            _ => {
                i.unsure = Some(now);
                match work {
                    Work::Suspend => self.not_suspended(key, &error),
                    _ => self.stumble(key, &error),
                }
            }
        }
    }

    /// A suspend failed for good: the instance runs on.
    fn not_suspended(&mut self, key: Key, error: &VcdError) {
        if let Some(i) = self.instances.get_mut(&key)
            && i.goal == Goal::Asleep
        {
            i.goal = Goal::Live;
        }
        self.blame(key, error, "not suspended, it runs on");
    }

    /// A look at an instance that should run or be suspended, after a request whose outcome is not known, or because polls
    /// show something else.
    fn unsure_seen(&mut self, key: Key, vapp: &Vapp) {
        let now = self.now;
        let deadline = now + self.policy.create_timeout;
        let Some(i) = self.instances.get_mut(&key) else { return };
        let Some(until) = i.unsure else { return };
        let (href, wants_sleep) = (vapp.href.clone(), i.goal == Goal::Asleep);
        let asleep = matches!(i.there, There::Suspended { .. });
        match (&i.there, vapp.power) {
            (There::Ready { .. } | There::Suspended { .. }, _) if wants_sleep != asleep && !vapp.tasks.is_empty() => {
                i.unsure = None;
                i.place(begun(Work::Held { asleep }, href, vapp.tasks.first().cloned(), now), now);
            }
            _ if vapp.busy && now < until => i.not_before = now + LOOK_PAUSE,
            (There::Ready { .. }, Power::Suspended) => {
                if !wants_sleep {
                    i.rouse(deadline);
                }
                self.asleep(key, href);
            }
            (There::Suspended { .. }, Power::On) if wants_sleep => {
                i.unsure = None;
                i.rouse(deadline);
                self.wakes(key, href);
                self.say_of(
                    Level::Warn,
                    key,
                    "on again, not by us: reported as running when its login port answers".into(),
                );
            }
            (There::Suspended { .. }, Power::On) => self.wakes(key, href),
            (There::Booting { .. }, power) if power != Power::On => {
                i.unsure = None;
                self.boot_failed(key, "it is off, though it was resumed");
            }
            // The request may yet be carried out.
            _ if wants_sleep != asleep && now < until => i.not_before = now + LOOK_PAUSE,
            _ => {
                i.unsure = None;
                i.off = 0;
            }
        }
    }

    /// Its memory is on disk.
    fn asleep(&mut self, key: Key, vapp: Href) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        i.unsure = None;
        if i.goal == Goal::Live {
            i.deadline = now + self.policy.create_timeout;
        }
        i.place(There::Suspended { vapp, since: now }, now);
        self.say_of(Level::Info, key, "suspended".into());
    }

    /// Its memory is back: what polls showed before says nothing of it.
    fn wakes(&mut self, key: Key, vapp: Href) {
        let now = self.now;
        let deadline = now + self.policy.ready_timeout;
        let Some(i) = self.instances.get_mut(&key) else { return };
        (i.unsure, i.facts, i.deadline) = (None, None, deadline);
        i.place(There::Booting { vapp }, now);
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
        let (name, whole) = (i.name.clone(), i.whole);
        // The query that found them may have lagged behind a new name.
        let vapps: Vec<Vapp> = vapps.into_iter().filter(|v| v.name == name).collect();
        let owns = |v: &Vapp| self.owner.owns(&v.name, v.description.as_deref(), false);
        let mut ours = vapps.iter().filter(|v| owns(v) && !self.is_stray(&v.href));
        if let Some(vapp) = ours.next() {
            let extra: Vec<Vapp> = ours.cloned().collect();
            let there = found(vapp, whole, now);
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
            Ok(other) => return self.look_failed(key, &wrong_reply("look", &other)),
            Err(error) => return self.look_failed(key, &error),
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
                if i.removal != Removal::Force {
                    i.removal = if vapp.power == Power::Off { Removal::Stopped } else { Removal::Stop };
                }
                // Half made still: the create's task has to end first.
                i.there = match vapp.tasks.first() {
                    Some(task) => begun(Work::Remove, vapp.href, Some(task.clone()), now),
                    None => There::Scrap { vapp: vapp.href },
                };
            }
            There::Fitting { .. } => self.fit(key, &vapp),
            _ => {
                // It is there: the polls lag behind.
                if i.missed >= i.patience {
                    i.missed = 0;
                    i.patience = (i.patience * 2).min(64);
                }
                if i.unsure.is_some() {
                    self.unsure_seen(key, &vapp);
                } else if matches!(i.there, There::Booting { .. }) && i.checks < CHECKS && !i.resumed {
                    self.checked(key, &vapp);
                }
            }
        }
    }

    /// A look at hardware is not worth a long wait; other looks are.
    fn look_failed(&mut self, key: Key, error: &VcdError) {
        match self.instances.get_mut(&key) {
            Some(i) if matches!(i.there, There::Booting { .. }) && i.checks < CHECKS => {
                i.checks += 1;
                i.not_before = self.now + LOOK_PAUSE;
                let follows = if i.checks < CHECKS { "asked again" } else { "its hardware is not compared" };
                self.blame(key, error, follows);
            }
            _ => self.stumble(key, error),
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
                if i.removal == Removal::Stop {
                    i.there = match task {
                        Some(_) => begun(Work::Remove, vapp, task, now),
                        None => There::Leaving { vapp },
                    };
                    return self.say_of(Level::Info, key, "VCD stops it".into());
                }
                if task.is_none() {
                    return self.vanished(key);
                }
                i.there = begun(Work::Remove, vapp, task, now);
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
            ErrorKind::Forbidden | ErrorKind::Invalid | ErrorKind::State if i.removal == Removal::Force => {
                i.removal = Removal::Stop;
                self.say_of(Level::Warn, key, format!("{error}; it is stopped first, then deleted"));
            }
            // What does not run need not be stopped; what cannot be deleted may run.
            ErrorKind::Invalid | ErrorKind::State => {
                i.removal = if i.removal == Removal::Stop { Removal::Stopped } else { Removal::Stop };
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
            _ => {
                if let There::Working { cancelled, since, .. } = &mut i.there {
                    (*cancelled, *since) = (true, self.now);
                }
            }
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
                There::Working { task: this, .. } => *this == task.href,
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
        let There::Working { work, vapp, .. } = i.there.clone() else { return };
        match (work, state) {
            (Work::Make { last: true }, TaskState::Success | TaskState::Unknown) => {
                i.place(There::Booting { vapp }, now);
                self.say_of(Level::Info, key, "made and powered on; waits for its guest".into());
            }
            (Work::Make { last: false }, TaskState::Success | TaskState::Unknown) => {
                i.place(There::Fitting { vapp }, now);
            }
            (Work::Make { .. }, TaskState::Failed(error)) => self.made_badly(key, vapp, error),
            (Work::Suspend, TaskState::Success) => self.asleep(key, vapp),
            (Work::Resume, TaskState::Success) => self.wakes(key, vapp),
            (Work::Suspend, TaskState::Failed(error)) => {
                i.place(There::Ready { vapp }, now);
                self.not_suspended(key, error);
            }
            (Work::Resume, TaskState::Failed(error)) => {
                i.place(There::Suspended { vapp, since: now }, now);
                self.stumble(key, error);
            }
            // A look tells how it ended.
            (Work::Suspend | Work::Held { asleep: false }, _) => {
                i.place(There::Ready { vapp }, now);
                i.unsure = Some(now);
            }
            (Work::Resume | Work::Held { asleep: true }, _) => {
                i.place(There::Suspended { vapp, since: now }, now);
                i.unsure = Some(now);
            }
            (Work::Remove, TaskState::Failed(error)) => {
                i.there = There::Leaving { vapp };
                self.stumble(key, error);
            }
            (Work::Remove, _) => i.there = There::Leaving { vapp },
            (Work::Make { .. }, TaskState::Running) => {}
        }
    }

    pub(super) fn probe_answered(&mut self, key: Key, result: Result<(), String>) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        i.probing = false;
        let There::Booting { vapp } = &i.there else { return };
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
                self.progress = now;
                if i.resumed {
                    return self.say_of(Level::Info, key, "running again".into());
                }
                i.label = Label::Wanted { tries: 0, not_before: now + LABEL_DELAY };
                let took = i.age(now).as_secs();
                self.breaker.success();
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
        if i.resumed {
            i.error = Some(why.into());
            self.say_of(Level::Warn, key, format!("{why}: given up"));
            return self.condemn(key, Cause::Ill);
        }
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

fn task_pause(age: Duration) -> Duration {
    TASK_PAUSES.iter().find(|(until, _)| age < *until).map_or(TASK_PAUSE_LONG, |(_, pause)| *pause)
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

/// A vApp that VCD works on. Without a task the work is done.
pub(super) fn begun(work: Work, vapp: Href, task: Option<Href>, now: Time) -> There {
    match (task, work) {
        (Some(task), _) => There::Working { work, vapp, task, since: now, cancelled: false },
        (None, Work::Make { last: true } | Work::Resume) => There::Booting { vapp },
        (None, Work::Make { last: false }) => There::Fitting { vapp },
        (None, Work::Suspend | Work::Held { asleep: true }) => There::Suspended { vapp, since: now },
        (None, Work::Held { asleep: false }) => There::Ready { vapp },
        (None, Work::Remove) => There::Leaving { vapp },
    }
}

/// A vApp of ours that was looked up after a create. `whole`: that one was to power it on.
fn found(vapp: &Vapp, whole: bool, now: Time) -> There {
    let (href, task) = (vapp.href.clone(), vapp.tasks.first().cloned());
    match vapp.power {
        _ if task.is_some() => begun(Work::Make { last: whole }, href, task, now),
        Power::On => There::Booting { vapp: href },
        _ if whole => There::Scrap { vapp: href },
        _ => There::Fitting { vapp: href },
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
