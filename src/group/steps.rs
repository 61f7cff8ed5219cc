//! What happens next: the steps of create, delete, suspend and resume, each decided from what is known, so that after a
//! failure the group looks before it repeats. One request about an instance is on the wire at a time. What its answer means
//! is told elsewhere.

use super::instance::{Asked, Cause, Goal, Label, Removal, There, WATCHED, Work};
use super::{Command, GC_INTERVAL, Group, ILL_GRACE, Instance, Key, MAX_LOOKS, MAX_PROBES, PRUNE_AFTER, Purpose, Time};
use crate::cloud::{Href, MAX_TASKS_ASKED, Request};
use log::Level;
use std::time::Duration;

/// A create whose answer was lost counts as never made when its name was not found for so long, and so many times.
pub const UNCLEAR_WINDOW: Duration = Duration::from_secs(60);
pub const UNCLEAR_LOOKS: u32 = 4;
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
pub const LABEL_TRIES: u32 = 3;
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
/// First pause after a failed poll or question for tasks; doubles with each further one.
pub const WATCH_RETRY: Duration = Duration::from_secs(2);
/// Longest such pause.
pub const WATCH_RETRY_MAX: Duration = Duration::from_secs(32);
/// Longest such pause that VCD may ask for.
pub const WATCH_ASKED_MAX: Duration = Duration::from_secs(60);
/// Pause before a name is looked up whose create's outcome is not known.
pub const FIND_PAUSE: Duration = Duration::from_secs(1);

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
    /// Guests of creates that boot.
    guests: u32,
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
        self.step_all(&mut load);
        if load.held {
            // The last leftover may have gone just now: creates wait no longer.
            load = self.load();
            if !load.held {
                self.step_all(&mut load);
            }
        }
        self.watch(&load);
    }

    fn step_all(&mut self, load: &mut Load) {
        let mut key = self.instances.keys().next().copied();
        while let Some(this) = key {
            self.step(this, load);
            key = self.instances.range(this + 1..).next().map(|(key, _)| *key);
        }
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
            let boots = matches!(i.there, There::Booting { .. });
            load.boots |= boots;
            load.guests += u32::from(boots && i.goal == Goal::Live && !i.resumed);
            leftovers |= i.earlier && !i.reported;
        }
        match self.hold_until {
            Some(until) if leftovers && self.now < until => load.held = true,
            Some(_) => self.hold_until = None,
            None => {}
        }
        load
    }

    pub(super) fn wake_by(&mut self, time: Time) {
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
        let allowed = self.breaker.allows(self.now);
        // The one that the breaker lets through decides: no other follows before its guest is ready.
        let guests = if allowed == 1 { load.guests } else { 0 };
        !self.stopping
            && load.creates + guests < self.policy.max_creates.min(allowed)
            && load.operations() < self.policy.max_operations
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
            if now >= ended + PRUNE_AFTER {
                self.forget(key);
            } else {
                self.wake_by(ended + PRUNE_AFTER);
            }
            return;
        }
        let blind = i.resumed && (unreachable || i.unsure.is_some() || !i.is_watched(now));
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
        let changes = match (&i.there, i.goal) {
            (There::Scrap { .. }, _) => true,
            (There::Working { work, cancelled: false, .. }, Goal::Gone(_)) => *work != Work::Remove,
            _ => false,
        };
        if changes && !i.proven {
            return self.prove(key, load);
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
                } else if *cancelled {
                    i.there = There::Leaving { vapp };
                    self.condemn(key, Cause::Ill);
                    self.step(key, load);
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

    /// What VCD said of an instance so far, in lists and in the answer to a create, might be about another's vApp: its own
    /// document is asked before anything is changed.
    fn prove(&mut self, key: Key, load: &mut Load) {
        if let Some(vapp) = self.instances.get(&key).and_then(Instance::vapp).cloned()
            && load.looks < MAX_LOOKS
        {
            self.look(key, vapp, load);
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
        let (ready_by, resumed) = (i.known + timeout, i.resumed);
        if now >= ready_by && !resumed {
            let seen = i.error.as_ref().map(|error| format!(" ({error})")).unwrap_or_default();
            let why = format!("not ready within ready_timeout, it still waits for {}{seen}", i.waits_for(now));
            self.boot_failed(key, &why);
            return self.step(key, load);
        }
        let steady_from = i.known + CUSTOMIZATION_USUAL;
        if i.missed >= i.patience || i.unsure.is_some() || i.is_unchecked() {
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
        // What was resumed has a deadline of its own.
        if !resumed {
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
                return self.step(key, load);
            }
            return self.wake_by(since + ILL_GRACE);
        }
        let Some(vapp) = i.vapp().cloned() else { return };
        let proven = i.proven;
        let change = match (i.is_ready(), i.goal) {
            (true, Goal::Asleep) => Some((Asked::Suspend, Request::Suspend { vapp: vapp.clone() })),
            (false, Goal::Live) => Some((Asked::Resume, Request::PowerOn { vapp: vapp.clone() })),
            _ => None,
        };
        if let Some((asked, request)) = change {
            if !self.stopping && self.may_operate(load) {
                if !proven {
                    return self.prove(key, load);
                }
                load.others += 1;
                self.ask_about(key, asked, request);
            }
            return;
        }
        if let Label::Wanted { tries, not_before } = i.label
            && i.is_ready()
        {
            if now >= not_before && !self.stopping {
                if !proven {
                    return self.prove(key, load);
                }
                i.label = Label::OnWire { tries };
                self.ask(Purpose::Label(key), Request::Label { vapp });
            } else if now < not_before {
                self.wake_by(not_before);
            }
        }
    }

    pub(super) fn ask_about(&mut self, key: Key, asked: Asked, request: Request) {
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
            // The last one does not wait for its turn.
            let interval = if self.stopping && !self.swept { Duration::ZERO } else { interval };
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
        // The last one may have been given up just now.
        let Some((last, _)) = asked.last() else { return };
        self.task_cursor = *last;
        let tasks = asked.into_iter().map(|(_, task)| task).collect();
        self.tasks.on_wire = true;
        self.tasks.last = self.now;
        self.ask(Purpose::Tasks, Request::Tasks { tasks });
    }
}

fn task_pause(age: Duration) -> Duration {
    TASK_PAUSES.iter().find(|(until, _)| age < *until).map_or(TASK_PAUSE_LONG, |(_, pause)| *pause)
}
