//! Maximum durations, the frequency of requests, and how long the host may see a wrong state: invariants 9 to 12 of the
//! list in `ARCHITECTURE.md`. All durations count only the time in which VCD could be seen.

use super::audit::{Audit, CANCEL_PATIENCE, SLOT_PATIENCE, is_create, is_faulty, is_like_the_go_plugins, is_unread};
use super::plan::{MINUTE, Tuning};
use super::vcd::{CHANGE_TIMEOUT, MEMORY_MB, task_id, task_of, vapp_id};
use super::{ADOPTION, READY};
use fleeting_plugin_vcd::cloud::{Answer, ErrorKind, Href, Reply, Request, TaskState, VcdError};
use fleeting_plugin_vcd::group::{Group, Name, State, Time};
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use vcd_sim::model::{GcStatus, Model, Operation, Power, Target, VappId, Vm, VmId};

/// A pause of up to this length between two answered polls counts as time with polls, in addition to the planned pause.
const SEEN: u64 = MINUTE;
/// Maximum time that the host may see a wrong state of an instance while polls show the right one, and the same in polls.
const MISTAKEN: u64 = 5 * MINUTE;
const MISTAKEN_POLLS: u64 = 5;
/// Maximum time until a guest that answers is reported as running: its hardware may be looked up in vain before.
const UNNOTICED: u64 = 5 * MINUTE;
/// Maximum time that creates may wait while none is in progress.
const IDLE: u64 = MINUTE / 2;
/// The same after an event that pauses creates for long: the longest pause is 5 minutes, plus or minus a quarter.
const LONG_PAUSE: u64 = 400_000;
/// The first pause of a create that failed, and of one that a quota refused: 10 s and 30 s, plus a quarter.
pub const FIRST_PAUSE: u64 = 12_500;
const QUOTA_PAUSE: u64 = 37_500;
/// The breaker opens after this many failures of different events, and counts those of this time. It is longer if they
/// took longer: up to create_timeout each.
const BREAKER: usize = 3;
const BREAKER_WINDOW: u64 = 70 * MINUTE;
/// A task that has run for this long is slow, or hangs. If it ends now, that is noticed within [`IDLE`].
const OLD: u64 = 20_000;
/// Maximum duration of a slow request, there and back.
const SLOW: u64 = 40_000;
/// Requests about one instance in one hour.
const CHANGES_AN_HOUR: usize = 60;
const LOOKS_AN_HOUR: usize = 500;
/// The same in one minute, of any kind.
const ASKED_A_MINUTE: usize = 30;
/// In Init, a lookup that has failed is repeated, even if some polls fail.
const READS: u32 = 2;
/// In Init, polls are sent every 5 s, and are answered soon.
const SILENCE: u64 = 11_000;
const HOUR: u64 = 60 * MINUTE;

/// Times of the requests about one instance in the last hour.
#[derive(Default)]
struct Asked {
    changes: VecDeque<u64>,
    looks: VecDeque<u64>,
}

/// The times that the checks need.
#[derive(Default)]
pub struct Pace {
    /// Time with polls, in all lives.
    pub seen: u64,
    /// The same without polls that showed a wrong state.
    pub seen_clearly: u64,
    /// Pause between two polls.
    pub interval: u64,
    /// When this process started, and the time without a failed poll.
    began: u64,
    seen_without_fail: u64,
    /// The last answered poll, and the last poll.
    good: u64,
    polled: u64,
    /// When a poll last failed, or showed a wrong state.
    blind: u64,
    /// A poll of this process showed the real state.
    pub clear: bool,
    /// When a lookup of this process last failed, or was slow.
    pub look_failed: Option<u64>,
    /// A request of this process was slow: lookups waited for it.
    pub slow: bool,
    /// How often lookups of a vApp have failed, and when last.
    unread: BTreeMap<VappId, (u32, u64)>,
    /// When a lookup by name last failed.
    unfound: BTreeMap<Name, u64>,
    /// When an operation of a vApp ended whose document cannot be read.
    obscured: Option<u64>,
    /// When a quota last refused a change.
    full: Option<u64>,
    /// Deletes of the last hour: what a quota refuses is tried again after each.
    deletes: VecDeque<u64>,
    asked: BTreeMap<Arc<str>, Asked>,
    /// Number of tries of each create in this life, and the time with polls at the first try.
    tries: BTreeMap<Name, (u32, u64)>,
    /// Since when the host sees a wrong state.
    mistaken: BTreeMap<Name, u64>,
    /// Since when a guest is ready that is not reported as running, in time with polls that show the real state.
    unnoticed: BTreeMap<Name, u64>,
    /// Since when an instance is too old, in time with polls.
    old: BTreeMap<Name, u64>,
    idle: Option<u64>,
    /// Creates have a reason to wait until then.
    pub excused: u64,
    /// Failed creates of different events.
    failures: VecDeque<u64>,
    /// The breaker may be open: the next create decides, however late.
    open: bool,
    /// The last failed create.
    failed: Option<u64>,
    /// Leftovers at the last check.
    leftovers: usize,
}

impl Pace {
    pub fn start(&mut self, now: u64) {
        let (seen, seen_clearly) = (self.seen, self.seen_clearly);
        let (began, good, polled, blind, excused) = (now, now, now, now, now + ADOPTION);
        let interval = self.interval;
        *self = Pace { seen, seen_clearly, interval, began, good, polled, blind, excused, ..Pace::default() };
    }

    /// A poll was answered, and may show the real state.
    pub fn polled(&mut self, now: u64, answered: bool, truth: bool) {
        if answered {
            if self.good != self.polled && self.excused > self.good {
                self.excused += now - self.good;
            }
            let since = (now - self.good).min(SEEN + self.interval);
            self.seen += since;
            self.seen_clearly += if truth { since } else { 0 };
            if self.good == self.polled {
                self.seen_without_fail += now - self.good;
            }
            self.good = now;
        }
        self.polled = now;
        if truth {
            self.clear = true;
        } else {
            self.blind = now;
            self.disturbed(now);
        }
    }

    /// Init may still wait.
    pub fn early(&self, now: u64) -> bool {
        now < self.began + ADOPTION
    }

    /// Time in which this process may not have seen VCD.
    fn unseen(&self, now: u64) -> u64 {
        (now - self.began).saturating_sub(self.seen_without_fail)
    }

    /// Lookups are late or never answered, and slots are freed late.
    pub fn delayed(&mut self, now: u64, request: &Request) {
        self.excused = self.excused.max(now + SLOW);
        // The end of a create is noticed late.
        self.unnoticed.clear();
        if matches!(request, Request::Look { .. } | Request::Find { .. }) {
            self.look_failed = Some(now);
        }
    }

    /// Lookups can show this process what a vApp is.
    pub fn can_look(&self, id: VappId) -> bool {
        !self.slow && self.unread.get(&id).is_none_or(|(fails, _)| *fails < READS)
    }

    /// A lookup of it has failed: the next one may wait for the longest pause.
    pub fn waits_for_look(&self, id: VappId, now: u64) -> bool {
        self.unread.get(&id).is_some_and(|(_, at)| now < at + LONG_PAUSE)
    }

    /// The same for a lookup by name.
    fn waits_for_find(&self, name: &Name, now: u64) -> bool {
        self.unfound.get(name).is_some_and(|at| now < at + LONG_PAUSE)
    }

    /// Polls are not answered any more: Init has to fail.
    pub fn is_silent(&self, now: u64) -> bool {
        now > self.polled + SILENCE
    }

    /// A request has another effect than requested.
    pub fn thwarted(&mut self, now: u64, request: &Request) {
        self.delayed(now, request);
        self.disturbed(now);
        if request.changes() {
            // The outcome may be unknown, and that keeps a slot.
            self.excused = self.excused.max(now + CHANGE_TIMEOUT + SLOT_PATIENCE);
        }
    }

    /// A fault that may pause creates.
    pub fn disturbed(&mut self, now: u64) {
        self.excused = self.excused.max(now + LONG_PAUSE);
    }

    /// A request other than a poll was answered.
    pub fn answered(&mut self, now: u64, request: &Request, answer: &Answer) {
        let refused = |error: &VcdError| {
            use ErrorKind::{Failed, Forbidden, Invalid, NotFound, Quota, State};
            matches!(error.kind, Quota | Forbidden | Invalid | NotFound | State | Failed)
        };
        if let (Request::Create { name, .. }, Err(error)) = (request, answer)
            && refused(error)
        {
            self.create_failed(now, now, name, first_pause(error));
        }
        if let (Request::Find { .. }, Ok(Reply::Vapps(vapps))) = (request, answer)
            && vapps.is_empty()
        {
            // A create whose answer was lost may have failed.
            self.failed = Some(now);
        }
        if let (true, Err(VcdError { kind: ErrorKind::Ambiguous, .. })) = (request.changes(), answer) {
            // The outcome is unknown, and that keeps a slot: for longer than a task that hung before.
            self.excused = self.excused.max(now + MINUTE + SLOT_PATIENCE);
        }
        if let (Request::Look { .. } | Request::Find { .. }, Err(_)) = (request, answer) {
            self.look_failed = Some(now);
        }
        if let (Request::Find { name }, Err(_)) = (request, answer) {
            self.unfound.insert(name.clone(), now);
        }
        if let (true, Err(VcdError { kind: ErrorKind::Quota, .. })) = (request.changes(), answer) {
            self.full = Some(now);
        }
        if let (Request::Look { vapp, .. }, Err(_)) = (request, answer) {
            let (fails, at) = self.unread.entry(vapp_id(vapp)).or_default();
            (*fails, *at) = (*fails + 1, now);
        }
        if request.changes() && answer.is_err() {
            let locked = matches!(request, Request::Delete { .. } | Request::DeleteStopped { .. });
            if !locked {
                self.disturbed(now);
            }
        }
    }

    /// A create succeeded.
    pub fn create_succeeded(&mut self) {
        self.open = false;
    }

    /// A create that began then has failed: its next try waits, at first for `pause`, and the breaker may open.
    pub fn create_failed(&mut self, now: u64, began: u64, name: &Name, pause: u64) {
        self.failed = Some(now);
        if self.failures.back().is_none_or(|last| began > *last) {
            self.failures.push_back(now);
        }
        while self.failures.front().is_some_and(|at| at + BREAKER_WINDOW < now) {
            self.failures.pop_front();
        }
        let tries = self.tries.get(name).map_or(1, |(tries, _)| (*tries).max(1));
        let own = (pause << (tries - 1).min(5)).min(LONG_PAUSE);
        self.open |= self.failures.len() >= BREAKER;
        let pause = if self.open { LONG_PAUSE } else { own };
        self.excused = self.excused.max(now + pause);
    }
}

fn first_pause(error: &VcdError) -> u64 {
    if error.kind == ErrorKind::Quota { QUOTA_PAUSE } else { FIRST_PAUSE }
}

/// It is healthy: a job can run on it.
fn well(vm: &Vm) -> bool {
    let up = vm.power == Power::On && !vm.host_down && vm.ssh && vm.gc == GcStatus::Complete;
    up && !vm.address_hidden && vm.memory_mb == MEMORY_MB
}

impl Audit {
    /// 10: a limited number of requests about one instance.
    pub fn count(&mut self, request: &Request, now: u64) -> Result<(), String> {
        let of = |vapp: &Href| self.ours.get(&vapp_id(vapp)).map_or_else(|| vapp.clone(), |(name, _)| name.clone());
        let key = match request {
            Request::Create { name, .. } => {
                let seen = self.pace.seen;
                self.pace.tries.entry(name.clone()).or_insert((0, seen)).0 += 1;
                name.clone()
            }
            Request::Find { name } => name.clone(),
            Request::Look { vapp, .. }
            | Request::PowerOn { vapp }
            | Request::Suspend { vapp }
            | Request::Mark { vapp, .. }
            | Request::Delete { vapp }
            | Request::DeleteStopped { vapp }
            | Request::Undeploy { vapp }
            | Request::Label { vapp } => of(vapp),
            Request::Configure { vm: entity } | Request::AddTpm { vm: entity } | Request::Cancel { task: entity } => {
                entity.clone()
            }
            _ => return Ok(()),
        };
        let in_the_last_hour = |times: &mut VecDeque<u64>| {
            times.push_back(now);
            while times.front().is_some_and(|at| at + HOUR < now) {
                times.pop_front();
            }
        };
        if matches!(request, Request::Delete { .. } | Request::DeleteStopped { .. }) {
            in_the_last_hour(&mut self.pace.deletes);
        }
        let since =
            |times: &VecDeque<u64>, period: u64| times.iter().rev().take_while(|at| **at + period > now).count();
        // Each delete may free the quota.
        let freed = |period| match self.pace.full.is_some_and(|at| at + period > now) {
            true => since(&self.pace.deletes, period + MINUTE),
            false => 0,
        };
        let asked = self.pace.asked.entry(key.clone()).or_default();
        let (times, most) = match request.changes() {
            true => (&mut asked.changes, CHANGES_AN_HOUR + freed(HOUR)),
            false => (&mut asked.looks, LOOKS_AN_HOUR + freed(HOUR)),
        };
        in_the_last_hour(times);
        let count = times.len();
        let in_a_minute = since(&asked.changes, MINUTE) + since(&asked.looks, MINUTE);
        // Each poll can be the reason for one, and each delete for a lookup and a change.
        if in_a_minute > ASKED_A_MINUTE.max((MINUTE / self.pace.interval) as usize) + 2 * freed(MINUTE) {
            let what = request.operation();
            return Err(format!("10: {in_a_minute} requests about {key} in one minute, the last is {what}"));
        }
        if count > most {
            let what = if request.changes() { "changes" } else { "lookups" };
            return Err(format!("10: {count} {what} of {key} in one hour, the last is {}", request.operation()));
        }
        Ok(())
    }

    /// 12: a ready guest is not deleted because VCD could not be seen meanwhile. A create that is given up has failed.
    pub fn gives_up(&mut self, vapp: &Href, model: &Model, tuning: &Tuning, now: u64) -> Result<(), String> {
        let id = vapp_id(vapp);
        let Some((name, life)) = self.ours.get(&id) else { return Ok(()) };
        // While somebody's vApp has its name, a create whose answer is lost may not be found.
        let asked = self.asked.contains(name) || *life != self.life || self.is_taken(name);
        let touched = self.touched.contains(&id);
        let Some(there) = model.vapps.get(&id).filter(|_| !asked) else { return Ok(()) };
        if !self.told.contains(name) {
            // A VM for the pool may have been the one create that the breaker allowed.
            self.pace.failed = Some(now);
        }
        // Other checks handle instances that have run.
        let creating = matches!(self.accepted.get(name), Some(State::Creating | State::Timeout));
        let Some((_, tried)) = self.pace.tries.get(name).copied().filter(|_| creating) else { return Ok(()) };
        self.pace.create_failed(now, there.created, name, FIRST_PAUSE);
        let seen = self.pace.seen - tried;
        let limit = READY.min(tuning.create_timeout * MINUTE) - 30_000;
        if !touched && self.own_vms(there, model).any(well) && seen + 2 * self.pace.interval < limit {
            return Err(format!("12: {name} is healthy and given up, after {} s of successful polls", seen / 1000));
        }
        Ok(())
    }

    /// The reported results of tasks.
    pub fn tasks_ended(&mut self, answer: &Answer, model: &Model, now: u64) {
        let Ok(Reply::Tasks(tasks)) = answer else { return };
        for told in tasks {
            let Some(task) = model.tasks.get(&task_id(&told.href)) else { continue };
            let ended = matches!(told.state, TaskState::Success | TaskState::Failed(_));
            if ended && is_unread(task.target, model) {
                self.pace.obscured = Some(now);
            }
            let TaskState::Failed(error) = &told.state else { continue };
            let vapp = match task.target {
                Target::Vapp(id) => Some(id),
                Target::Vm(id) => model.vms.get(&id).map(|vm| vm.vapp),
            };
            let Some((name, _)) = vapp.and_then(|id| self.ours.get(&id)) else { continue };
            if is_create(task.operation) {
                let name = name.clone();
                self.pace.create_failed(now, task.start, &name, first_pause(error));
            }
        }
    }

    /// After a poll: compares what the host sees with the real state, and checks that creates continue.
    pub fn watch(
        &mut self,
        group: &mut Group,
        model: &Model,
        tuning: &Tuning,
        time: Time,
        now: u64,
    ) -> Result<(), String> {
        if self.shutdown {
            return Ok(());
        }
        self.check_told(group, model, tuning, time, now)?;
        self.check_unnoticed(group, model, now)?;
        self.check_old(group, tuning, time)?;
        self.check_idle(group, model, tuning, time, now)
    }

    /// 11: a running and healthy instance exists, is powered on, and has the address that the host sees.
    fn check_told(
        &mut self,
        group: &mut Group,
        model: &Model,
        tuning: &Tuning,
        time: Time,
        now: u64,
    ) -> Result<(), String> {
        let running: Vec<Name> =
            group.update().filter(|(_, state)| *state == State::Running).map(|(name, _)| name.clone()).collect();
        let mut mistaken = BTreeMap::new();
        for name in running {
            if let Err(why) = group.heartbeat(time, &name) {
                let young = self.awake(&name, now).is_some_and(|awake| awake.as_secs() < tuning.max_age * 60);
                if why.contains("max_instance_age") && young {
                    return Err(format!("11: {why}, but it was resumed later"));
                }
                let ill = why.contains(": it is ") || why.contains(": VCD ");
                if ill && now > self.pace.blind + MISTAKEN && self.is_well(&name, model) {
                    return Err(format!("11: {why}, but it is well"));
                }
                continue;
            }
            let told = group.reach(&name).map(|reach| reach.address);
            let Some(wrong) = self.mistake(&name, &told, model) else { continue };
            let since = self.pace.mistaken.get(&name).copied().unwrap_or(now);
            // A VM with a task is in transition, or seems to be.
            let task = self.by_name.get(&name).into_iter().flatten().find_map(|id| task_of(model, *id));
            let held = task.and_then(|task| model.tasks.get(&task)).map_or(0, |task| task.start + SLOT_PATIENCE);
            // Only lookups show it, and they say nothing while a task works on it.
            let since = if task.is_some() && self.is_unlisted(&name, model) { now } else { since };
            if now > since.max(self.pace.blind).max(held) + MISTAKEN.max(MISTAKEN_POLLS * self.pace.interval) {
                return Err(format!("11: {name} is reported as running and healthy at {told:?}, but {wrong}"));
            }
            mistaken.insert(name, since);
        }
        self.pace.mistaken = mistaken;
        Ok(())
    }

    /// Queries do not show it.
    fn is_unlisted(&self, name: &Name, model: &Model) -> bool {
        let mut vapps = self.by_name.get(name).into_iter().flatten().filter_map(|id| model.vapps.get(id));
        vapps.any(|vapp| vapp.faults.unlisted)
    }

    /// A job can run on its VM, and neither a person nor a fault of its vApp concerns it.
    fn is_well(&self, name: &Name, model: &Model) -> bool {
        let ids = self.by_name.get(name).into_iter().flatten().filter(|id| !self.touched.contains(id));
        let mut vapps = ids.filter_map(|id| model.vapps.get(id)).filter(|vapp| !is_faulty(vapp));
        vapps.any(|vapp| self.own_vms(vapp, model).any(well))
    }

    /// 9: a guest that answers is reported as running, however many others do not answer.
    fn check_unnoticed(&mut self, group: &Group, model: &Model, now: u64) -> Result<(), String> {
        let mut unnoticed = BTreeMap::new();
        for (name, _) in group.update().filter(|(name, state)| *state == State::Creating && !self.asked.contains(*name))
        {
            // The answer to its create or resume was lost, and lookups fail.
            let mut ids = self.by_name.get(name).into_iter().flatten();
            let waits = ids.any(|id| self.pace.waits_for_look(*id, now)) || self.pace.waits_for_find(name, now);
            // A VM for the pool may be in the middle of its suspend.
            if waits || self.is_busy(name, model) || !self.is_well(name, model) {
                continue;
            }
            let since = *self.pace.unnoticed.get(name).unwrap_or(&self.pace.seen_clearly);
            let seconds = (self.pace.seen_clearly - since) / 1000;
            if seconds * 1000 > UNNOTICED.max(MISTAKEN_POLLS * self.pace.interval) {
                return Err(format!("9: {name} has been ready for {seconds} s, and is reported as creating"));
            }
            unnoticed.insert(name.clone(), since);
        }
        self.pace.unnoticed = unnoticed;
        Ok(())
    }

    /// 10: what is too old is given up, whatever VCD answers to its changes.
    fn check_old(&mut self, group: &Group, tuning: &Tuning, time: Time) -> Result<(), String> {
        if tuning.max_age == 0 {
            return Ok(());
        }
        let kept = |state| matches!(state, State::Running | State::Resuming | State::Suspending);
        let mut old = BTreeMap::new();
        for view in group.views(time).iter().filter(|view| kept(view.state) && group.too_old(view.age)) {
            let since = *self.pace.old.get(&view.name).unwrap_or(&self.pace.seen);
            if self.pace.seen > since + HOUR + 10 * MINUTE {
                return Err(format!("10: {} is {:?} for {} s", view.name, view.state, view.age.as_secs()));
            }
            old.insert(view.name.clone(), since);
        }
        self.pace.old = old;
        Ok(())
    }

    fn mistake(&self, name: &Name, told: &Result<IpAddr, String>, model: &Model) -> Option<String> {
        let vapps = self.by_name.get(name)?.iter().filter_map(|id| Some((*id, model.vapps.get(id)?)));
        // In a vApp that is like one of the Go plugin, any VM is the instance's.
        let own = |id: VappId, vm: &VmId| !self.foreign_vms.contains_key(vm) || is_like_the_go_plugins(id, model);
        let vms = vapps.flat_map(|(id, vapp)| vapp.vms.iter().filter(move |vm| own(id, vm)));
        let vms: Vec<&Vm> = vms.filter_map(|vm| model.vms.get(vm)).collect();
        let unlisted = |vm: &Vm| model.vapps.get(&vm.vapp).is_some_and(|vapp| vapp.faults.unlisted);
        let wrong = |vm: &&Vm| {
            let address = vm.address().map(IpAddr::V4);
            match () {
                _ if vm.host_down => Some("its ESXi host is down".into()),
                _ if vm.power != Power::On => Some(format!("it is {:?}", vm.power)),
                // Nobody can know a new address that VCD does not show.
                _ if (vm.address_hidden || unlisted(vm)) && told.is_ok() => None,
                _ if told.as_ref().ok() != address.as_ref() => Some(format!("its address is {address:?}")),
                _ => None,
            }
        };
        // A vApp with another owner exists in addition.
        if vms.iter().any(|vm| wrong(vm).is_none()) {
            return None;
        }
        vms.iter().find_map(wrong).or(Some("it does not exist".into()))
    }

    /// 9: creates continue unless they have a fault.
    fn check_idle(
        &mut self,
        group: &Group,
        model: &Model,
        tuning: &Tuning,
        time: Time,
        now: u64,
    ) -> Result<(), String> {
        let waiting = group.standing(time).creates_waiting;
        let creating = group.update().filter(|(_, state)| *state == State::Creating).count();
        if waiting == 0 || creating > waiting as usize {
            self.pace.idle = None;
            return Ok(());
        }
        if self.holds_creates(group, model, tuning, time, now) {
            self.pace.excused = self.pace.excused.max(now);
        }
        let since = *self.pace.idle.get_or_insert(now);
        if now > since.max(self.pace.excused) + IDLE.max(3 * self.pace.interval) {
            let since = since.max(self.pace.excused);
            return Err(format!(
                "9: {waiting} creates wait and none has been in progress for {} s",
                (now - since) / 1000
            ));
        }
        Ok(())
    }

    /// Hanging operations that still have a slot, or leftovers that are deleted one after another.
    fn holds_creates(&mut self, group: &Group, model: &Model, tuning: &Tuning, time: Time, now: u64) -> bool {
        let unseen = self.pace.unseen(now);
        // A lookup shows which task works on a leftover.
        let known = (self.pace.began + ADOPTION).max(self.pace.look_failed.unwrap_or_default() + CHANGE_TIMEOUT);
        let holds = |task: &vcd_sim::model::Task| {
            let create = if is_create(task.operation) { tuning.create_timeout * MINUTE } else { 0 };
            // It may be cancelled at the last moment. The answer to its request may have been lost.
            let patience = create.max(SLOT_PATIENCE) + CANCEL_PATIENCE + MINUTE + unseen;
            // A delete that fails again and again is always young.
            (task.start + OLD..task.start.max(known) + patience).contains(&now)
        };
        // Not every failure that opened the breaker is known here.
        let failed = self.pace.failed.is_some_and(|at| now < at + LONG_PAUSE);
        if failed && group.standing(time).breaker.is_some() {
            return true;
        }
        // Leftovers without faults are deleted as fast as requests allow.
        let fine = !model.vapps.values().any(is_faulty) || tuning.max_operations == 1;
        if fine && group.standing(time).hold.is_some() {
            return true;
        }
        // With few slots, resumes can have all of them.
        let vapp_of = |name: &Name| self.by_name.get(name).into_iter().flatten();
        let is_deployed = |id: &VappId| {
            let task = task_of(model, *id).and_then(|task| model.tasks.get(&task));
            task.is_some_and(|task| task.operation == Operation::Deploy)
        };
        let resuming = group.update().filter(|(_, state)| *state == State::Resuming);
        let resumes = resuming.filter(|(name, _)| vapp_of(name).any(is_deployed)).count();
        if self.waits_for_deletes(group, time) || resumes >= tuning.max_operations as usize {
            return true;
        }
        // Nothing, or only a rare lookup, shows what became of the last operation: it keeps its slot for a while.
        let lately = |end: Option<u64>| end.is_some_and(|end| now < end + SLOT_PATIENCE + MINUTE);
        let hidden = |target| matches!(target, Target::Vapp(id) if self.late.contains(&id)) || is_unread(target, model);
        if lately(self.pace.obscured) || model.tasks.values().any(|task| lately(task.end) && hidden(task.target)) {
            return true;
        }
        let left = self.orphans(group, model).len();
        let goes = std::mem::replace(&mut self.pace.leftovers, left) > left;
        goes || model.tasks_running().any(holds)
    }
}
