//! One turn: every instance takes its next step if limits and pauses allow it, and due polls and task queries are sent.
//! `next.rs` decides the steps.

use super::answers::LOOK_PAUSE;
use super::instance::{Cause, Desired, Kind, Mark, Operation, Origin, Question, Stage};
use super::limits::{Lane, RETRY_BASE};
use super::next::{self, At, Step};
use super::pace::Course;
use super::standby::STANDBY_AT_A_TIME;
use super::vapp::{Label, Removal, Vapp};
use super::{Command, Group, Instance, Key, MAX_LOOKS, MAX_PROBES, Purpose, Time};
use crate::cloud::{self, Href, MAX_NAMES_ASKED, MAX_TASKS_ASKED, Request};
use log::Level;
use std::net::IpAddr;
use std::time::Duration;

/// Pauses between task queries, by the age of the youngest task: small tasks take seconds, a create half a minute, and a
/// long task will take longer still.
pub const TASK_PAUSES: [(Duration, Duration); 2] =
    [(Duration::from_secs(4), Duration::from_secs(1)), (Duration::from_secs(60), Duration::from_secs(3))];
/// The same for older tasks.
pub const TASK_PAUSE_LONG: Duration = Duration::from_secs(5);
/// The same if all tasks are stuck.
pub const TASK_PAUSE_STUCK: Duration = Duration::from_secs(60);
/// Pause between polls of instances that boot: a late poll delays the host.
pub const BOOT_PAUSE: Duration = Duration::from_secs(2);
/// The same when VCD has shown no change for [`LONG_QUIET`].
pub const BOOT_PAUSE_LONG: Duration = Duration::from_secs(3);
/// Longer than the boot of a guest.
const LONG_QUIET: Duration = Duration::from_secs(120);
/// After a Decrease, all slots but one are kept for this time: GitLab Runner often sends an Increase next, and nobody waits for
/// a delete.
pub const DECREASE_PAUSE: Duration = Duration::from_secs(1);
/// Maximum number of steps of an instance in one turn that need no request.
const MAX_STEPS: u32 = 8;

/// Work outside the slots, counted again in each turn.
#[derive(Default)]
struct Load {
    looks: usize,
    probing: usize,
    /// Metadata entries on the wire.
    labels: usize,
    /// A create or delete has not started yet.
    waits: bool,
    /// Instances that somebody waits for and whose create has not started, or is to be repeated.
    wanted: u32,
    /// New guests that boot and that somebody waits for.
    guests: u32,
    /// Number of instances that boot. Only polls show their progress.
    boots: usize,
    /// Number of tasks that are not stuck, and the start of the youngest.
    tasks: usize,
    youngest: Time,
    /// There are stuck tasks.
    stuck: bool,
}

/// A step that needs a slot.
struct Wish {
    key: Key,
    kind: Kind,
    lane: Lane,
}

impl Group {
    /// Takes every step that is possible now, and records when the next one is due.
    pub(super) fn advance(&mut self) {
        self.wake = None;
        self.end_adoption_in_time();
        self.refill();
        let mut load = self.load();
        let (mut wishes, mut probes) = (Vec::new(), Vec::new());
        let mut key = self.instances.keys().next().copied();
        while let Some(this) = key {
            self.step(this, &mut load, &mut wishes, &mut probes);
            key = self.instances.range(this + 1..).next().map(|(key, _)| *key);
        }
        self.probe(load.probing, &probes);
        self.begin(&load, &wishes);
        // Steps of this turn change what polls are due.
        let load = self.load();
        self.watch(&load);
    }

    fn load(&self) -> Load {
        let mut load = Load::default();
        for i in self.instances.values().filter(|i| i.ended.is_none()) {
            load.looks += usize::from(matches!(i.question, Some(Question::Look | Question::Find)));
            load.waits |= i.operation.is_none() && (i.vapp().is_none() || i.goes());
            load.wanted += u32::from(i.desired == Desired::Running && i.vapp().is_none());
            if let Some(vapp) = i.vapp() {
                load.labels += usize::from(matches!(vapp.label, Label::OnWire { .. }));
                load.probing += usize::from(vapp.guest.is_probed());
                let boots = i.boots();
                load.boots += usize::from(boots);
                let waited_for = i.origin != Origin::Standby && !i.has_run() && i.stuck().is_none();
                load.guests += u32::from(boots && waited_for);
            }
            if let Some(operation) = i.operation.as_ref().filter(|operation| operation.task().is_some()) {
                match operation.stuck {
                    Some(_) => load.stuck = true,
                    None => {
                        load.tasks += 1;
                        load.youngest = load.youngest.max(operation.began);
                    }
                }
            }
        }
        load
    }

    pub(super) fn wake_by(&mut self, time: Time) {
        self.wake = Some(self.wake.map_or(time, |wake| wake.min(time)));
    }

    /// The time until which creates wait for leftovers of an earlier process. Leftovers that cannot be deleted yet do not
    /// count.
    pub(super) fn held_until(&self) -> Option<Time> {
        let until = self.hold_until.filter(|&until| self.now < until)?;
        let waits = |i: &Instance| i.stuck().is_some() || i.does(|kind| kind == Kind::Other);
        let goes = |i: &Instance| i.is_leftover() && i.ended.is_none() && !waits(i);
        self.instances.values().any(|i| goes(i)).then_some(until)
    }

    /// The steps of one instance, up to the first that needs a slot or an answer.
    fn step(&mut self, key: Key, load: &mut Load, wishes: &mut Vec<Wish>, probes: &mut Vec<(Key, IpAddr)>) {
        for _ in 0..MAX_STEPS {
            let Some(i) = self.instances.get(&key) else { return };
            let at = At {
                now: self.now,
                seen: self.sight.at(self.now),
                sight: &self.sight,
                policy: &self.policy,
                stopping: self.stopping,
                no_force: self.now < self.no_force_until,
            };
            let next = next::next(i, &at);
            let lane = match next.step {
                Step::Begin(kind) => i.lane(kind),
                _ => None,
            };
            if let Some(wake) = next.wake {
                self.wake_by(wake);
            }
            if let Some(i) = self.instances.get_mut(&key).filter(|i| !next.looks && i.question.is_none()) {
                // What the failed lookups were for is over.
                i.attempts.look.reset();
            }
            match next.step {
                Step::Wait => return,
                Step::Forget => return self.forget(key),
                Step::End => return self.end(key),
                Step::GiveUp(cause) => self.give_up(key, cause),
                Step::NotReady => self.not_ready(key),
                Step::Stick => self.stick(key),
                Step::Use => self.stayed_on(key),
                Step::Keep => self.kept_on(key),
                Step::Ask(question) => return self.ask_question(key, question, load),
                Step::Begin(kind) => {
                    if let Some(lane) = lane {
                        wishes.push(Wish { key, kind, lane });
                    }
                    return;
                }
                Step::Probe(address) => return probes.push((key, address)),
                Step::Label => {
                    // Its task takes time in VCD, as creates and deletes do.
                    if load.waits && load.labels > 0 {
                        return;
                    }
                    load.labels += 1;
                    if let Some(vapp) = self.instances.get_mut(&key).and_then(|i| i.vapp_mut())
                        && let Label::Wanted { tries, .. } = vapp.label
                    {
                        vapp.label = Label::OnWire { tries };
                        let vapp = vapp.href.clone();
                        self.ask(Purpose::Label(key), Request::Label { vapp });
                    }
                    return;
                }
            }
        }
    }

    /// It is given up before it runs: its create, or its guest, has failed.
    fn give_up(&mut self, key: Key, cause: Cause) {
        let Some(i) = self.instances.get(&key) else { return };
        let made = |kind: Kind| kind.lane() == Some(Lane::Create);
        let hangs = i.operation.as_ref().is_some_and(|o| made(o.kind) && o.task().is_some());
        let boots = i.operation.is_none() && i.vapp().is_some_and(|vapp| !vapp.doomed && !vapp.guest.has_run());
        if i.origin == Origin::Standby && cause == Cause::Timeout {
            self.pause_pool();
        }
        self.delete_for(key, cause);
        if cause == Cause::Timeout && (hangs || boots) {
            self.count_create_failure(key, false);
        }
    }

    fn ask_question(&mut self, key: Key, question: Question, load: &mut Load) {
        let looks = matches!(question, Question::Look | Question::Find);
        // While VCD is not available, a second try says nothing about the vApp.
        let again = self.instances.get(&key).is_some_and(|i| i.attempts.look.tries > 0);
        if looks && (load.looks >= MAX_LOOKS || (again && self.unreachable && !self.stopping)) {
            return;
        }
        load.looks += usize::from(looks);
        self.question(key, question);
    }

    /// Starts what the limits allow: first urgent operations, then the others. Each group leaves one slot to the other.
    fn begin(&mut self, load: &Load, wishes: &[Wish]) {
        if wishes.is_empty() {
            return;
        }
        let held = self.held_until();
        let allowed: Vec<&Wish> = wishes.iter().filter(|wish| self.may_begin(wish, held)).collect();
        let is_idle = |wish: &&&Wish| !wish.lane.is_urgent() && wish.lane != Lane::Standby;
        let idle_waits = allowed.iter().any(|wish| is_idle(&wish));
        for wish in allowed.iter().filter(|wish| wish.lane.is_urgent()) {
            // The last slot is for operations that nobody waits for, if none of them runs.
            let kept = u32::from(idle_waits && self.slots.used_by(false) == 0 && self.policy.max_operations > 1);
            let room = self.slots.total() + kept < self.policy.max_operations || self.has_slot(wish);
            if room && self.has_lane(wish, load) {
                self.operate(wish);
            }
        }
        let spares = self.now < self.spare_until && !self.stopping;
        if spares {
            self.wake_by(self.spare_until);
        }
        for wish in allowed.iter().filter(is_idle) {
            let most = self.policy.max_operations;
            let most = if spares { most.saturating_sub(1).min(1) } else { most };
            let room = self.slots.total() < self.policy.max_operations && self.slots.used_by(false) < most;
            if room && self.has_lane(wish, load) {
                self.operate(wish);
            }
        }
        for wish in allowed.iter().filter(|wish| wish.lane == Lane::Standby) {
            let room = self.slots.total() < self.policy.max_operations;
            if (room && self.has_lane(wish, load)) || self.has_slot(wish) {
                self.operate(wish);
            }
        }
    }

    /// Only a slot is missing.
    fn may_begin(&mut self, wish: &Wish, held: Option<Time>) -> bool {
        if let Some(until) = self.throttle.until(self.now) {
            self.wake_by(until);
            return false;
        }
        let create = matches!(wish.kind, Kind::Create { .. });
        if self.adopt_until.is_some() || (self.unreachable && !(self.stopping && wish.lane == Lane::Delete)) {
            // It continues when Init has answered, or after the next successful poll.
            return false;
        }
        if create && let Some(until) = self.breaker.until(self.now).max(held) {
            self.wake_by(until);
            return false;
        }
        !(self.stopping && create)
    }

    /// There is room in its own lane.
    fn has_lane(&self, wish: &Wish, load: &Load) -> bool {
        let used = self.slots.used(wish.lane);
        match wish.lane {
            _ if self.has_slot(wish) => true,
            Lane::Create => {
                let allowed = self.breaker.allows(self.now);
                // The one create that the breaker allows decides: no other starts before its guest is ready, unless it is
                // for standby.
                let others = match wish.kind {
                    Kind::Create { .. } if allowed == 1 => load.guests + self.slots.used(Lane::Standby),
                    _ => 0,
                };
                used + others < self.policy.max_creates.min(allowed)
            }
            Lane::Delete => used < self.policy.max_deletes,
            Lane::Standby => {
                let decides = matches!(wish.kind, Kind::Create { .. }) && self.breaker.allows(self.now) == 1;
                // A create that somebody waits for decides, even if its next try is due later.
                let wanted = load.guests + load.wanted + self.slots.used(Lane::Create);
                let others = if decides { wanted } else { 0 };
                used + others < STANDBY_AT_A_TIME as u32
            }
            Lane::Resume | Lane::Suspend => true,
        }
    }

    /// It has a slot from the previous step of its create.
    fn has_slot(&self, wish: &Wish) -> bool {
        let has = |i: &Instance| i.vapp().is_some_and(|vapp| vapp.build.slot.is_some());
        matches!(wish.lane, Lane::Create | Lane::Standby) && self.instances.get(&wish.key).is_some_and(|i| has(i))
    }

    /// Sends the request that starts an operation.
    fn operate(&mut self, wish: &Wish) {
        let (now, seen, key) = (self.now, self.sight.at(self.now), wish.key);
        let kept = self.instances.get_mut(&key).and_then(|i| i.vapp_mut()?.build.slot.take());
        let kept = kept.filter(|_| matches!(wish.lane, Lane::Create | Lane::Standby));
        let slot = kept.unwrap_or_else(|| self.slots.take(wish.lane));
        if self.steps_until.is_some_and(|until| now >= until) {
            (self.steps_until, self.whole, self.whole_failures) = (None, true, 0);
        }
        let whole = self.whole;
        let Some(i) = self.instances.get_mut(&key) else { return };
        if let (Kind::Mark(_), Some(vapp)) = (wish.kind, i.vapp_mut()) {
            vapp.mark = None;
        }
        let href = i.href().cloned();
        let vm = || i.vapp().and_then(|v| Some(v.document.as_ref()?.made.as_ref()?.vm.clone()));
        let request = match wish.kind {
            Kind::Create { .. } => {
                let (name, description) = (i.name.clone(), self.owner.description(&i.name).into());
                Some(Request::Create { name, description, whole })
            }
            Kind::Configure => vm().map(|vm| Request::Configure { vm }),
            Kind::AddTpm => vm().map(|vm| Request::AddTpm { vm }),
            Kind::PowerOn | Kind::Resume => href.map(|vapp| Request::PowerOn { vapp }),
            Kind::Suspend => href.map(|vapp| Request::Suspend { vapp }),
            Kind::Mark(mark) => {
                i.vapp().map(|vapp| Request::Mark { vapp: vapp.href.clone(), mark: mark_of(mark, vapp) })
            }
            Kind::Delete(removal) => href.map(|vapp| match removal {
                Removal::Force => Request::Delete { vapp },
                Removal::Stop => Request::Undeploy { vapp },
                Removal::Stopped => Request::DeleteStopped { vapp },
            }),
            Kind::Other => None,
        };
        let Some(request) = request else { return };
        let kind = match wish.kind {
            Kind::Create { .. } => {
                i.creating.get_or_insert(super::time::Stopwatch::start(seen));
                i.create_began = now;
                Kind::Create { whole }
            }
            other => other,
        };
        i.operation = Some(Operation::new(kind, Stage::Sent, Some(slot), now, seen));
        self.ask(Purpose::Operation(key), request);
    }

    /// A stuck operation gives up its slot.
    fn stick(&mut self, key: Key) {
        let now = self.now;
        let Some(operation) = self.instances.get_mut(&key).and_then(|i| i.operation.as_mut()) else { return };
        operation.slot = None;
        operation.stuck = Some(now);
        let text = "the task in VCD hangs: it no longer counts toward the limits, and lookups continue. If it lasts, have the \
                    provider end it";
        self.say_of(Level::Warn, key, text.into());
    }

    /// Sends task queries and polls when they are due.
    fn watch(&mut self, load: &Load) {
        if let (Some(due), false) = (self.tasks_due(load), self.tasks.on_wire) {
            let due = due.max(self.tasks.not_before);
            if self.now >= due {
                self.ask_tasks();
            } else {
                self.wake_by(due);
            }
        }
        if !self.poll.on_wire {
            let interval = match load.boots > 0 && !self.polls_some(load) {
                true => self.boot_pause(),
                false => self.policy.reconcile_interval,
            };
            let interval = match () {
                // The last poll does not wait.
                _ if self.stopping && !self.swept => Duration::ZERO,
                // Init must know whether VCD is available.
                _ if self.adopt_until.is_some() => interval.min(LOOK_PAUSE),
                // The last one failed.
                _ if self.sight.is_closed() => interval.min(RETRY_BASE),
                _ => interval,
            };
            let due = (self.poll.last + interval).max(self.poll.not_before);
            if self.now >= due {
                let vapps = self.now >= self.next_gc;
                if vapps {
                    self.collect();
                }
                self.poll.on_wire = true;
                (self.poll.last, self.poll_some.last) = (self.now, self.now);
                self.ask(Purpose::Poll { sent: self.now, vapps }, Request::Poll { vapps });
            } else {
                self.wake_by(due);
            }
        }
        if load.boots > 0 && self.polls_some(load) && !self.poll_some.on_wire {
            let due = self.boots_due().max(self.poll_some.not_before);
            if self.now >= due {
                self.ask_some();
            } else {
                self.wake_by(due);
            }
        }
    }

    /// Instances that boot are polled by name: they are few, and a full poll is not as frequent anyway.
    fn polls_some(&self, load: &Load) -> bool {
        load.boots <= MAX_NAMES_ASKED && self.policy.reconcile_interval >= BOOT_PAUSE * 2
    }

    /// When the next task query is due.
    fn tasks_due(&self, load: &Load) -> Option<Time> {
        let last = self.tasks.last;
        if load.tasks == 0 {
            return load.stuck.then_some(last + TASK_PAUSE_STUCK);
        }
        let operations = self.instances.values().filter_map(|i| i.operation.as_ref());
        let tasks = operations.filter(|operation| operation.stuck.is_none() && operation.task().is_some());
        let tasks = tasks.map(|operation| Some((Course::Task(operation.kind), operation.began)));
        self.pace.due(&tasks.collect::<Vec<_>>(), last, last + task_pause(self.now - load.youngest))
    }

    /// When the next poll of instances that boot is due. No poll before something can have changed: full polls continue.
    fn boots_due(&self) -> Time {
        let (last, blind) = (self.poll_some.last, self.poll_some.last + self.boot_pause());
        let awaited = |i: &Instance| {
            let vapp = i.vapp().filter(|vapp| !vapp.is_customized())?;
            let ended = vapp.record.as_ref().is_some_and(|record| record.is_final());
            (!ended).then_some((Course::Boot, vapp.known))
        };
        let boots = self.instances.values().filter(|i| i.boots()).map(|i| awaited(i));
        self.pace.due(&boots.collect::<Vec<_>>(), last, blind).unwrap_or(blind)
    }

    /// Pause between two polls of instances that boot.
    fn boot_pause(&self) -> Duration {
        let pause = if self.now - self.progress < LONG_QUIET { BOOT_PAUSE } else { BOOT_PAUSE_LONG };
        pause.min(self.policy.reconcile_interval)
    }

    fn ask_some(&mut self) {
        let boots = self.instances.values().filter(|i| i.boots());
        let names = boots.take(MAX_NAMES_ASKED).map(|i| i.name.clone()).collect();
        self.poll_some.on_wire = true;
        self.poll_some.last = self.now;
        self.ask(Purpose::PollSome { sent: self.now }, Request::PollSome { names });
    }

    /// All login ports get their turn, even if many do not answer.
    fn probe(&mut self, probing: usize, probes: &[(Key, IpAddr)]) {
        let (last, mut free) = (self.probe_cursor, MAX_PROBES.saturating_sub(probing));
        for before in [false, true] {
            for &(key, address) in probes.iter().filter(|(key, _)| (*key <= last) == before) {
                if free > 0
                    && let Some((.., probing)) = self.guest_watch(key)
                {
                    *probing = true;
                    free -= 1;
                    self.probe_cursor = key;
                    let ticket = self.fly(Purpose::Probe(key, address));
                    self.commands.push_back(Command::Probe { ticket, address });
                }
            }
        }
    }

    fn ask_tasks(&mut self) {
        let after = self.instances.range(self.task_cursor + 1..);
        let before = self.instances.range(..=self.task_cursor);
        let tasks = after.chain(before).filter_map(|(key, i)| Some((*key, next::task(i)?)));
        let asked: Vec<(Key, Href)> = tasks.take(MAX_TASKS_ASKED).collect();
        let Some((last, _)) = asked.last() else { return };
        self.task_cursor = *last;
        let tasks = asked.into_iter().map(|(_, task)| task).collect();
        self.tasks.on_wire = true;
        self.tasks.last = self.now;
        self.ask(Purpose::Tasks, Request::Tasks { tasks });
    }
}

/// The suspend mark for VCD.
fn mark_of(mark: Mark, vapp: &Vapp) -> cloud::Mark {
    match mark {
        Mark::Running => cloud::Mark::Running,
        Mark::Suspended => cloud::Mark::Suspended,
        Mark::Standby => cloud::Mark::Standby { source: vapp.source },
    }
}

fn task_pause(age: Duration) -> Duration {
    TASK_PAUSES.iter().find(|(until, _)| age < *until).map_or(TASK_PAUSE_LONG, |(_, pause)| *pause)
}
