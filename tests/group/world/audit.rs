//! Invariants, checked after every event. Their numbers are those of the list in `ARCHITECTURE.md`.

use super::pace::{FIRST_PAUSE, Pace};
use super::plan::{MINUTE, Tuning};
use super::vcd::{MAX_LAG, href, mark, task_id, task_of, vapp_id, works};
use fleeting_plugin_vcd::cloud::{Mark, Request};
use fleeting_plugin_vcd::group::{Group, Name, Phase, State, Ticket, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use vcd_sim::model::{Faults, GcStatus, Model, Operation, Power, Target, TaskId, TaskStatus, Vapp, VappId, Vm, VmId};

/// A task is stuck when it has run for this long. A create's task is stuck this long after it was cancelled.
pub const SLOT_PATIENCE: u64 = 10 * MINUTE;
pub const CANCEL_PATIENCE: u64 = 2 * MINUTE;
/// The group has to know within this time, or this many polls, that an owned vApp contains a foreign VM: polls may lag.
const NOTICE: u64 = 2 * MINUTE;
const NOTICE_POLLS: u64 = 3;
/// After this time, no vApp is changed that a person has renamed: the last poll is old, or shows it. A slow lookup may have
/// seen it before.
const RENAMED: u64 = 2 * MINUTE + MAX_LAG;

/// It has the metadata entry and no owner tag, like the Go plugin's vApps. Their VMs can have any name.
pub(super) fn is_like_the_go_plugins(id: VappId, model: &Model) -> bool {
    let like = |vapp: &Vapp| {
        let mut texts =
            vapp.vms.iter().filter_map(|vm| Some(&model.vms.get(vm)?.description)).chain([&vapp.description]);
        vapp.metadata.contains_key("vcd-instance-group") && !texts.any(|text| text.starts_with("fleeting-plugin-vcd/"))
    };
    model.vapps.get(&id).is_some_and(like)
}

/// It is marked as standby.
pub(super) fn is_marked_standby(vapp: &Vapp) -> bool {
    matches!(mark(vapp), Mark::Standby { .. })
}

/// Part of a create.
pub fn is_create(operation: Operation) -> bool {
    matches!(operation, Operation::Instantiate | Operation::Compose | Operation::UpdateVm | Operation::Deploy)
}

/// It was running, and has not ended.
fn has_run(state: State) -> bool {
    matches!(state, State::Running | State::Suspending | State::Suspended | State::Resuming)
}

/// It cannot be deleted, or its tasks hang.
pub fn is_faulty(vapp: &Vapp) -> bool {
    Faults { force_fails: false, ..vapp.faults } != Faults::default()
}

/// A vApp whose own document cannot be read.
pub fn is_unread(target: Target, model: &Model) -> bool {
    matches!(target, Target::Vapp(id) if model.vapps.get(&id).is_some_and(|vapp| vapp.faults.unread))
}

/// What the audit knows in addition to the group and the model.
#[derive(Default)]
pub struct Audit {
    /// vApps that the group requested, with name and life.
    pub ours: BTreeMap<VappId, (Name, u32)>,
    pub(super) by_name: BTreeMap<Name, Vec<VappId>>,
    pub foreign: BTreeSet<VappId>,
    /// Foreign VMs in owned vApps, and the time with polls when they appeared.
    pub foreign_vms: BTreeMap<VmId, u64>,
    /// Owned until an administrator changed name or description: whoever did that owns them.
    pub taken: BTreeSet<VappId>,
    /// Those that are renamed now, and since when.
    pub renamed: BTreeMap<VappId, u64>,
    /// Created during the shutdown of a process by a request of an earlier, dead process: only the next process can
    /// know.
    unknowable: BTreeSet<VappId>,
    /// An administrator deleted, stopped or renamed it, or the group had a reason to delete it.
    pub(super) touched: BTreeSet<VappId>,
    /// A change was carried out long after its request was given up, or its tasks are hidden: nothing shows that.
    pub(super) late: BTreeSet<VappId>,
    /// When the cancel was requested.
    cancelled: BTreeMap<TaskId, u64>,
    /// Ids that the host deleted, in any life.
    pub(super) asked: BTreeSet<Name>,
    /// Ids that the host suspended and resumed, in any life.
    asked_to_suspend: BTreeSet<Name>,
    asked_to_resume: BTreeSet<Name>,
    /// When the host last resumed an instance that was suspended.
    resumed: BTreeMap<Name, u64>,
    /// Ids that were suspended for the pool.
    rested: BTreeSet<Name>,
    /// Powered on after its suspend, by a request of the plugin.
    used: BTreeSet<VappId>,
    /// Ids that were running when last seen, and their state.
    running: BTreeMap<Name, State>,
    /// What the last check saw: it holds until a state changes, or something that may be the cause of one.
    checked: Vec<(Name, State)>,
    causes: (usize, usize),
    /// Ids from an Increase, with their last state.
    pub(super) accepted: BTreeMap<Name, State>,
    /// All ids from an Increase of this process.
    own: BTreeSet<Name>,
    /// The first Update of this process, after it was called.
    first: Option<BTreeSet<Name>>,
    /// Created by an earlier process, and not reported in the first Update: not to be used, so it may be deleted.
    missed: BTreeSet<Name>,
    /// A VM that an Increase must not hand out.
    broken: Option<String>,
    /// Ids that a host has ever seen.
    pub(super) told: BTreeSet<Name>,
    /// Marked as standby and powered on: the first time with polls while a process lived.
    woken: BTreeMap<VappId, u64>,
    /// In standby when a person powered them on, and on since. The plugin has sent no resume for them.
    pub by_hand: BTreeSet<VappId>,
    /// VCD rejected a delete of these.
    undeleted: BTreeSet<VappId>,
    /// Changing requests on the wire.
    wire: BTreeMap<Ticket, Request>,
    pub(super) life: u32,
    /// The process may suspend.
    suspends: bool,
    /// The clock of VCD's answers is behind the one of its dates.
    pub clock_behind: bool,
    pub(super) shutdown: bool,
    pub pace: Pace,
}

impl Audit {
    /// `interval`: the pause between two polls.
    pub fn new(interval: u64) -> Audit {
        let mut audit = Audit::default();
        audit.pace.interval = interval;
        audit
    }

    pub fn start(&mut self, life: u32, now: u64, suspends: bool) {
        (self.life, self.suspends) = (life, suspends);
        self.shutdown = false;
        self.wire.clear();
        // Only its delete can tell the next process that a standby VM was powered on.
        self.woken.retain(|id, _| !self.undeleted.contains(id));
        self.accepted.clear();
        // VCD shows only when a vApp was created.
        self.resumed.clear();
        self.checked.clear();
        self.own.clear();
        self.first = None;
        self.pace.start(now);
    }

    pub fn die(&mut self) {
        self.accepted.clear();
    }

    /// Init has answered. Instances that ran before and still exist have to be reported now, if the group could know them:
    /// the host treats later ones as new. `known`: the group says that all vApps are decided.
    pub fn first_update(
        &mut self,
        group: &Group,
        model: &Model,
        known: bool,
        (time, now): (Time, u64),
    ) -> Result<(), String> {
        let first: BTreeSet<Name> = group.update().map(|(name, _)| name.clone()).collect();
        self.told.extend(first.iter().cloned());
        let lost: Vec<(Name, State)> =
            self.running.iter().filter(|(name, _)| !first.contains(*name)).map(|(n, s)| (n.clone(), *s)).collect();
        for (name, state) in lost {
            let ids = self.by_name.get(&name).cloned().unwrap_or_default();
            let busy = ids.iter().any(|id| task_of(model, *id).is_some());
            // A process that may suspend keeps a suspended VM, if no foreign VM is in its vApp.
            let shared = ids.iter().filter_map(|id| model.vapps.get(id)).any(|vapp| self.is_shared(vapp));
            let asleep = |vm: &VmId| model.vms.get(vm).is_some_and(|vm| vm.power == Power::Suspended);
            let is_suspended = ids.iter().filter_map(|id| model.vapps.get(id)).any(|vapp| vapp.vms.iter().any(asleep));
            let suspended = (state != State::Running || is_suspended) && (!self.suspends || shared);
            // Nothing shows its suspend mark.
            let unread = ids.iter().filter_map(|id| model.vapps.get(id)).any(|vapp| vapp.faults.unread);
            let for_cause = suspended || busy || unread || self.shutdown;
            let looks = ids.iter().all(|id| self.pace.can_look(*id)) || self.pace.is_silent(now);
            let could = (known && self.pace.early(now)) || (self.pace.clear && looks);
            if could && !for_cause && self.there(&name, model) && !self.gone_for_cause(&name, group, model, (time, now))
            {
                return Err(format!(
                    "6: {name} ran and still exists, but the first Update of the next process does not report it"
                ));
            }
            self.running.remove(&name);
        }
        // A VM that polls do not show yet is reported as creating.
        let unseen = group.update().filter(|(_, state)| *state == State::Creating);
        unseen.for_each(|(name, _)| _ = self.running.remove(name));
        let ours = self.ours.values().filter(|(name, life)| *life != self.life && !first.contains(name));
        let missed: Vec<Name> = ours.map(|(name, _)| name.clone()).collect();
        self.missed.extend(missed);
        self.first = Some(first);
        Ok(())
    }

    pub fn asked(&mut self, name: &Name) {
        self.asked.insert(name.clone());
    }

    pub fn touched(&mut self, id: VappId) {
        self.touched.insert(id);
    }

    pub fn increased(&mut self, accepted: u32, before: &BTreeSet<Name>, group: &Group, model: &Model) {
        let new: Vec<Name> =
            group.update().map(|(name, _)| name.clone()).filter(|name| !before.contains(name)).collect();
        assert_eq!(new.len(), accepted as usize, "the next Update has an id for every accepted request");
        for name in &new {
            // If it was not resumed when its process died, it is still unused.
            let mut ids = self.by_name.get(name).into_iter().flatten().filter(|id| model.vapps.contains_key(id));
            let unused =
                self.rested.contains(name) && !self.own.contains(name) && ids.all(|id| !self.used.contains(id));
            if !self.told.insert(name.clone()) && !unused {
                self.broken = Some(format!("15: {name} was handed out before, and is handed out again"));
            }
            let mut ids = self.by_name.get(name).into_iter().flatten();
            if ids.any(|id| model.vapps.contains_key(id) && self.is_known_to_be_woken(*id)) {
                self.broken = Some(format!("15: {name} was powered on after its suspend, and is handed out"));
            }
        }
        self.own.extend(new.iter().cloned());
        self.accepted.extend(new.into_iter().map(|name| (name, State::Creating)));
    }

    fn notice(&self) -> u64 {
        NOTICE.max(NOTICE_POLLS * self.pace.interval)
    }

    /// Polls have shown for long enough that it is powered on.
    fn is_known_to_be_woken(&self, id: VappId) -> bool {
        self.woken.get(&id).is_some_and(|at| self.pace.seen_clearly >= at + self.notice())
    }

    /// A standby VM was not powered on after its suspend.
    pub fn check_pool(&mut self, group: &Group, model: &Model, time: Time) -> Result<(), String> {
        if let Some(broken) = self.broken.take() {
            return Err(broken);
        }
        for (id, (name, _)) in &self.ours {
            let Some(vapp) = model.vapps.get(id).filter(|vapp| is_marked_standby(vapp)) else { continue };
            // What VCD does not show does not count.
            let on = |vm: &Vm| vm.power == Power::On && !vm.host_down && !is_faulty(vapp);
            if !self.told.contains(name) && self.own_vms(vapp, model).any(on) {
                self.woken.entry(*id).or_insert(self.pace.seen_clearly);
            } else if !self.is_known_to_be_woken(*id) {
                // It is suspended again, or its host is down: VCD shows nothing of it.
                self.woken.remove(id);
            }
        }
        let on = |id: &VappId| {
            let on = |vm: &Vm| vm.power == Power::On && !vm.host_down;
            model.vapps.get(id).is_some_and(|vapp| self.own_vms(vapp, model).all(on))
        };
        self.by_hand = self.by_hand.iter().copied().filter(on).collect();
        let views = if self.by_hand.is_empty() { Vec::new() } else { group.views(time) };
        for view in views.iter().filter(|view| view.state == State::Running && self.own.contains(&view.name)) {
            if view.vapp.as_ref().is_some_and(|vapp| self.by_hand.contains(&vapp_id(vapp))) {
                return Err(format!("15: a person powered {} on while it was in standby, and it is used", view.name));
            }
        }
        if self.woken.is_empty() {
            return Ok(());
        }
        let glances = group.glances(time);
        for glance in glances.iter().filter(|glance| glance.phase == Phase::Standby) {
            let mut ids = self.by_name.get(glance.name).into_iter().flatten();
            let fine = |id: &VappId| {
                model.vapps.get(id).is_some_and(|vapp| !is_faulty(vapp)) && !self.pace.waits_for_look(*id, time.0)
            };
            if ids.any(|id| self.is_known_to_be_woken(*id) && fine(id)) {
                return Err(format!("15: {} was powered on after its suspend, and stays in standby", glance.name));
            }
        }
        Ok(())
    }

    /// A request to power on a vApp: a process that later finds it suspended must know that it is used.
    pub fn powers_on(&mut self, id: VappId, model: &Model) -> Result<(), String> {
        if self.ours.get(&id).is_some_and(|(name, _)| self.rested.contains(name)) {
            self.used.insert(id);
        }
        match model.vapps.get(&id) {
            Some(vapp) if is_marked_standby(vapp) => {
                Err(format!("15: {} is resumed while it is marked as standby", vapp.name))
            }
            _ => Ok(()),
        }
    }

    pub fn decreased(&mut self, asked: &[Name], done: &[Name]) {
        assert_eq!(asked, done, "Decrease accepts every instance, in any phase");
    }

    pub fn suspended(&mut self, chosen: &[Name], done: &[Name], before: &BTreeMap<Name, State>) {
        for name in chosen {
            let state = before.get(name).copied();
            let may = matches!(state, Some(State::Running | State::Suspending | State::Suspended));
            assert_eq!(done.contains(name), may, "Suspend of {name}, which is {state:?}");
        }
        self.asked_to_suspend.extend(done.iter().cloned());
    }

    pub fn resumed(&mut self, name: &Name, done: bool, state: Option<State>, now: u64) {
        let may = state.is_some_and(has_run);
        assert_eq!(done, may, "Resume of {name}, which is {state:?}");
        if done {
            self.asked_to_resume.insert(name.clone());
        }
        if state == Some(State::Suspended) {
            self.resumed.insert(name.clone(), now);
        }
    }

    pub fn heartbeat(&mut self, name: &Name, healthy: bool, state: Option<State>) {
        let bad = healthy && matches!(state, Some(State::Deleting | State::Deleted | State::Timeout));
        assert!(!bad, "{name} is {state:?} and reported as healthy");
    }

    pub fn shutdown(&mut self, keep: bool, group: &Group) {
        self.shutdown = true;
        if !keep {
            // Including what the group has not seen yet.
            self.asked.extend(self.ours.values().map(|(name, _)| name.clone()));
        }
        for (name, state) in group.update() {
            if !keep || !has_run(state) {
                self.asked.insert(name.clone());
            }
        }
    }

    /// A request leaves the group.
    pub fn sent(
        &mut self,
        ticket: Ticket,
        request: &Request,
        model: &Model,
        tuning: &Tuning,
        now: u64,
    ) -> Result<(), String> {
        self.count(request, now)?;
        if request.changes() {
            self.wire.insert(ticket, request.clone());
        }
        if let Request::Suspend { vapp } = request
            && let Some((name, _)) = self.ours.get(&vapp_id(vapp))
            && !self.told.contains(name)
        {
            self.rested.insert(name.clone());
        }
        if let Request::PowerOn { vapp } = request {
            self.by_hand.remove(&vapp_id(vapp));
        }
        if let Request::PowerOn { vapp }
        | Request::Suspend { vapp }
        | Request::Mark { vapp, .. }
        | Request::Delete { vapp }
        | Request::Undeploy { vapp }
        | Request::DeleteStopped { vapp }
        | Request::Label { vapp } = request
            && let Some(at) = self.renamed.get(&vapp_id(vapp)).filter(|at| now > **at + RENAMED)
        {
            let (what, seconds) = (request.operation(), (now - at) / 1_000);
            return Err(format!("3: {what} of {vapp}, which a person renamed {seconds} s ago"));
        }
        match request {
            Request::Cancel { task } => _ = self.cancelled.entry(task_id(task)).or_insert(now),
            Request::Create { name, .. } => {
                let made = self.ours.iter().filter(|(id, (of, _))| of == name && model.vapps.contains_key(id));
                if let Some((id, _)) = made.into_iter().next()
                    && model.vapps[id].name == *name
                    && !self.taken.contains(id)
                {
                    return Err(format!("7: a second create of {name} while its vApp {} exists", href(*id)));
                }
                self.check_load(model, tuning, now)?;
            }
            Request::Suspend { vapp } | Request::PowerOn { vapp } => {
                let id = vapp_id(vapp);
                let shared = self.somebodys(id, model).filter(|_| !is_like_the_go_plugins(id, model));
                if let (Request::Suspend { .. }, Some(vm)) = (request, shared) {
                    return Err(format!("3: suspend of {vapp}, which contains the foreign VM {vm:?}"));
                }
                let done = match request {
                    Request::Suspend { .. } => Power::Suspended,
                    _ => Power::On,
                };
                let is = |vapp: &Vapp| self.own_vms(vapp, model).any(|vm| vm.power == done);
                let already = model.vapps.get(&id).is_some_and(is);
                let mine = self.ours.get(&id).is_some_and(|(_, life)| *life == self.life);
                if already && mine && !self.late.contains(&id) && !self.touched.contains(&id) {
                    return Err(format!("7: {} of {vapp}, which is already {done:?}", request.operation()));
                }
                self.check_load(model, tuning, now)?;
            }
            Request::Delete { vapp } | Request::DeleteStopped { vapp } | Request::Undeploy { vapp } => {
                let id = vapp_id(vapp);
                // A suspended vApp is a leftover for a process that may not suspend.
                let kept = |state: &State, name: &Name| {
                    self.suspends || (*state == State::Running && !self.asked_to_suspend.contains(name))
                };
                // If Init has not answered, the first Update is judged.
                if let Some((name, _)) = self.ours.get(&id)
                    && self.first.is_some()
                    && let Some(state) = self.running.get(name)
                    && kept(state, name)
                    && !self.is_taken(name)
                    && !self.excused(name, id, model)
                {
                    let number = if *state == State::Running { 6 } else { 14 };
                    return Err(format!("{number}: {name} is {state:?}, and its delete was not requested"));
                }
                self.gives_up(vapp, model, tuning, now)?;
                if let Some(vm) = self.somebodys(id, model).filter(|_| !is_like_the_go_plugins(id, model)) {
                    return Err(format!("3: {} of {vapp}, which contains the foreign VM {vm:?}", request.operation()));
                }
                // A delete that was sent for a reason may be carried out at any time.
                self.touched.insert(id);
                let deleting = |t: &vcd_sim::model::Task| {
                    t.operation == Operation::Delete && t.status == TaskStatus::Running && !t.cancel_requested
                };
                // A late delete may start between the lookup and the repeated request, and so may one of another plugin
                // that takes it for its own: VCD rejects that request as busy.
                let unknown = self.late.contains(&id) || (tuning.managers > 1 && is_like_the_go_plugins(id, model));
                if !unknown && task_of(model, id).and_then(|task| model.tasks.get(&task)).is_some_and(deleting) {
                    return Err(format!("7: a second delete of {vapp} while the first one is in progress"));
                }
                self.check_load(model, tuning, now)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// During shutdown, VCD queues the excess.
    fn check_load(&self, model: &Model, tuning: &Tuning, now: u64) -> Result<(), String> {
        let (creates, deletes, others) = self.load(model, now);
        let sum = creates + deletes + others;
        // One VM for the pool, which may be handed out meanwhile.
        let pool = u32::from(tuning.standby > 0);
        let over =
            creates > tuning.max_creates + pool || deletes > tuning.max_deletes || sum > tuning.max_operations + pool;
        if over && !self.shutdown {
            let counts = format!("{creates} creates, {deletes} deletes, {others} suspends and resumes");
            return Err(format!("4: {counts} at the same time ({tuning:?})"));
        }
        Ok(())
    }

    /// Creates, deletes, and suspends with resumes in progress: on the wire, or in VCD.
    fn load(&self, model: &Model, now: u64) -> (u32, u32, u32) {
        let mut creates: BTreeSet<&Name> = BTreeSet::new();
        let mut deletes: BTreeSet<VappId> = BTreeSet::new();
        let mut others: BTreeSet<VappId> = BTreeSet::new();
        for request in self.wire.values() {
            match request {
                Request::Create { name, .. } => _ = creates.insert(name),
                Request::Delete { vapp } | Request::DeleteStopped { vapp } | Request::Undeploy { vapp } => {
                    _ = deletes.insert(vapp_id(vapp))
                }
                Request::PowerOn { vapp } | Request::Suspend { vapp } => {
                    let id = vapp_id(vapp);
                    match self.ours.get(&id) {
                        Some((name, _)) if !self.was_suspended(name) => _ = creates.insert(name),
                        _ => _ = others.insert(id),
                    }
                }
                _ => {}
            }
        }
        for (id, (name, life)) in &self.ours {
            // A vApp with another name has no known owner.
            if *life != self.life || self.taken.contains(id) {
                continue;
            }
            let task = task_of(model, *id).filter(|task| !self.is_given_up(*task, model, now));
            match task.and_then(|task| model.tasks.get(&task)).map(|task| task.operation) {
                // Nothing shows the owner.
                Some(Operation::Instantiate | Operation::Compose) if self.late.contains(id) => {}
                Some(Operation::Instantiate | Operation::Compose) => _ = creates.insert(name),
                Some(Operation::UpdateVm | Operation::Deploy | Operation::Suspend) if self.late.contains(id) => {}
                Some(Operation::UpdateVm) => _ = creates.insert(name),
                Some(Operation::Deploy) if !self.was_suspended(name) => _ = creates.insert(name),
                Some(Operation::Deploy | Operation::Suspend) => _ = others.insert(*id),
                Some(Operation::Delete | Operation::UndeployPowerOff) if !self.late.contains(id) => {
                    _ = deletes.insert(*id)
                }
                _ => {}
            }
        }
        (creates.len() as u32, deletes.len() as u32, others.len() as u32)
    }

    /// Stuck: a hanging operation does not keep its slot.
    fn is_given_up(&self, id: TaskId, model: &Model, now: u64) -> bool {
        let Some(task) = model.tasks.get(&id) else { return true };
        let cancelled = self.cancelled.get(&id).is_some_and(|at| now >= at + CANCEL_PATIENCE);
        let creates = matches!(task.operation, Operation::Instantiate | Operation::Compose);
        // A create is cancelled only after a lookup.
        let unread = is_unread(task.target, model) || self.pace.look_failed.is_some_and(|at| at > task.start);
        cancelled || ((!creates || unread) && now >= task.start + SLOT_PATIENCE)
    }

    /// A foreign VM in an owned vApp that has been there for long enough to be seen.
    fn somebodys(&self, id: VappId, model: &Model) -> Option<VmId> {
        let vms = &model.vapps.get(&id)?.vms;
        vms.iter().copied().find(|vm| self.foreign_vms.contains_key(vm) && self.is_noticed(*vm))
    }

    /// Creates wait for a delete on the wire: for its slot, or because it deletes a leftover.
    pub fn waits_for_deletes(&self, group: &Group, time: Time) -> bool {
        let deletes = |request: &Request| {
            matches!(request, Request::Delete { .. } | Request::DeleteStopped { .. } | Request::Undeploy { .. })
        };
        self.wire.values().any(deletes) && {
            let standing = group.standing(time);
            standing.operations.used >= standing.operations.most || standing.hold.is_some()
        }
    }

    /// It was suspended before: a power-on is no part of a create.
    fn was_suspended(&self, name: &Name) -> bool {
        self.rested.contains(name) || self.asked_to_suspend.contains(name) || self.asked_to_resume.contains(name)
    }

    /// VCD answered a delete with an error.
    pub fn not_deleted(&mut self, request: &Request) {
        if let Request::Delete { vapp } | Request::DeleteStopped { vapp } | Request::Undeploy { vapp } = request {
            self.undeleted.insert(vapp_id(vapp));
        }
    }

    /// The answer to a request has arrived.
    pub fn answered(&mut self, ticket: Ticket) {
        self.wire.remove(&ticket);
    }

    /// VCD created a vApp for the group.
    pub fn made(&mut self, id: VappId, name: &Name, life: u32, model: &Model, late: bool) -> Result<(), String> {
        let live = |(other, (of, _)): &(&VappId, &(Name, u32))| {
            let there = model.vapps.get(other).is_some_and(|vapp| vapp.name == *name);
            of == name && there && !self.taken.contains(other)
        };
        if let Some((other, _)) = self.ours.iter().find(live) {
            let late = if late { " (a late one)" } else { "" };
            return Err(format!("1: {} and {}{late} both exist for {name}", href(*other), href(id)));
        }
        if life != self.life && self.shutdown {
            self.unknowable.insert(id);
        }
        if late {
            self.late.insert(id);
        }
        self.ours.insert(id, (name.clone(), life));
        self.by_name.entry(name.clone()).or_default().push(id);
        Ok(())
    }

    /// A request to delete a vApp.
    pub fn deletes(&mut self, id: VappId, late: bool, model: &Model) -> Result<(), String> {
        if late {
            self.late.insert(id);
        }
        self.changes(id, model, "delete")
    }

    /// A change is carried out long after its request was given up.
    pub fn came_late(&mut self, id: VappId) {
        self.late.insert(id);
    }

    /// An error if the vApp is foreign.
    fn is_noticed(&self, vm: VmId) -> bool {
        self.foreign_vms.get(&vm).is_none_or(|came| self.pace.seen_clearly >= came + self.notice())
    }

    /// A request to change a VM. The group may not know that a VM was moved just now.
    pub fn changes_vm(&self, vm: VmId, vapp: VappId, model: &Model, what: &str) -> Result<(), String> {
        if self.is_noticed(vm) { self.changes(vapp, model, what) } else { Ok(()) }
    }

    pub fn changes(&self, id: VappId, model: &Model, what: &str) -> Result<(), String> {
        match model.vapps.get(&id) {
            Some(vapp) if self.foreign.contains(&id) && !is_like_the_go_plugins(id, model) => {
                Err(format!("3: {what} of the foreign vApp {}", vapp.name))
            }
            _ => Ok(()),
        }
    }

    fn excused(&self, name: &Name, id: VappId, model: &Model) -> bool {
        let Some((_, life)) = self.ours.get(&id) else { return true };
        let (suspended, resumed, earlier) =
            (self.asked_to_suspend.contains(name), self.asked_to_resume.contains(name), *life != self.life);
        // Suspended by a late request, or by a person, before its mark was written: the host did not see it as suspended.
        let marked = model.vapps.get(&id).is_some_and(|vapp| mark(vapp) == Mark::Suspended);
        let unmarked = !marked && self.running.get(name) == Some(&State::Suspending);
        let unread = is_unread(Target::Vapp(id), model);
        let up = |vm: &Vm| match vm.power {
            // A customization that fails late, or an address that is no longer shown, is no reason to delete a running VM.
            // A process that finds it only in this state has to treat it as incomplete.
            Power::On if earlier && (vm.gc == GcStatus::Failed || vm.address_hidden) => false,
            // So it does if a clock that is behind makes the VM look younger than it is.
            Power::On if earlier && vm.gc == GcStatus::Pending && self.clock_behind => false,
            // After a successful resume, a guest that does not answer is given up in the end.
            Power::On => !vm.host_down && ((vm.ssh && !vm.address_hidden) || !resumed),
            // A process that finds it so cannot read its mark.
            Power::Suspended => suspended && !(earlier && (unmarked || unread)),
            Power::Off | Power::Unresolved => false,
        };
        let ours = |vapp: &Vapp| -> Vec<VmId> {
            vapp.vms.iter().copied().filter(|vm| !self.foreign_vms.contains_key(vm)).collect()
        };
        let vms = model.vapps.get(&id).map(ours).unwrap_or_default();
        let complete = !vms.is_empty() && vms.iter().all(|vm| model.vms.get(vm).is_some_and(up));
        self.asked.contains(name) || self.missed.contains(name) || self.touched.contains(&id) || !complete
    }

    /// After every event, while a process lives.
    pub fn check(&mut self, group: &Group, model: &Model, time: Time, now: u64) -> Result<(), String> {
        // Most events change no state.
        let causes = (self.asked_to_suspend.len(), self.touched.len());
        let mut known = self.checked.iter();
        let same = |(name, state): (&Name, State)| {
            known.next().is_some_and(|(old, was)| state == *was && (Name::ptr_eq(name, old) || name == old))
        };
        if self.causes == causes && group.update().all(same) && known.next().is_none() {
            return Ok(());
        }
        self.check_states(group, model, time, now)?;
        self.causes = causes;
        self.checked.clear();
        self.checked.extend(group.update().map(|(name, state)| (name.clone(), state)));
        Ok(())
    }

    fn check_states(&mut self, group: &Group, model: &Model, time: Time, now: u64) -> Result<(), String> {
        // How many of `running` and `accepted` are reported. Sets of the names would take most of the time of a run.
        let (mut running, mut accepted) = (0, 0);
        for (name, state) in group.update() {
            let before = self.running.get(name).copied();
            if has_run(state) && before.is_none() && !self.own.contains(name) && !self.is_first(name) {
                return Err(format!(
                    "13: {name} is {state:?}, an earlier process created it, and the first Update did not report it"
                ));
            }
            if state == State::Running && before.is_none() {
                let ids = self.by_name.get(name).into_iter().flatten().filter(|id| !self.taken.contains(id));
                let vms = ids
                    .filter_map(|id| model.vapps.get(id))
                    .flat_map(|vapp| &vapp.vms)
                    .filter(|vm| !self.foreign_vms.contains_key(vm));
                let mut vms = vms.filter_map(|id| Some((*id, model.vms.get(id)?.gc)));
                // Of two vApps with one name, the other one may run.
                if vms.any(|(id, gc)| works(id, gc)) && !self.is_taken(name) {
                    return Err(format!("11: {name} is running while its customization works"));
                }
            }
            if state == State::Running && before.is_none() && self.own.contains(name) {
                self.pace.create_succeeded();
            }
            let may_suspend = || self.asked_to_suspend.contains(name) || self.is_touched(name);
            if state == State::Suspended
                && before != Some(state)
                && !(self.suspends && self.asked_to_suspend.contains(name))
            {
                return Err(format!("14: {name} is reported as suspended, and the host did not request it"));
            }
            if state == State::Running || (has_run(state) && may_suspend()) {
                running += 1;
                if before != Some(state) {
                    self.running.insert(name.clone(), state);
                }
            } else if let Some(before) = before {
                if !self.gone_for_cause(name, group, model, (time, now)) {
                    let number = if before == State::Running { 6 } else { 14 };
                    return Err(format!("{number}: {name} changed from {before:?} to {state:?} without cause"));
                }
                self.running.remove(name);
            }
            if let Some(before) = self.accepted.get_mut(name) {
                accepted += 1;
                let ended = matches!(before, State::Deleted | State::Timeout);
                if ended && state != *before {
                    return Err(format!("5: {name} changed from {before:?} to {state:?}"));
                }
                if state == State::Timeout && *before == State::Creating {
                    self.pace.create_failed(now, now, name, FIRST_PAUSE);
                }
                *before = state;
            }
        }
        if (running, accepted) == (self.running.len(), self.accepted.len()) {
            return Ok(());
        }
        let seen: BTreeSet<&Name> = group.update().map(|(name, _)| name).collect();
        for (name, state) in &self.accepted {
            if !seen.contains(name) && !matches!(state, State::Deleted | State::Timeout) {
                return Err(format!("5: {name} was {state:?} and is no longer reported"));
            }
        }
        self.accepted.retain(|name, _| seen.contains(name));
        let lost = self
            .running
            .keys()
            .find(|name| !seen.contains(*name) && !self.gone_for_cause(name, group, model, (time, now)));
        if let Some(name) = lost {
            return Err(format!("6: {name} ran and is no longer reported, without cause"));
        }
        self.running.retain(|name, _| seen.contains(name));
        Ok(())
    }

    /// The time since its resume: a suspended VM does nothing, and gets no older.
    pub(super) fn awake(&self, name: &Name, now: u64) -> Option<Duration> {
        self.resumed.get(name).map(|at| Duration::from_millis(now - at))
    }

    fn is_first(&self, name: &Name) -> bool {
        self.first.as_ref().is_none_or(|first| first.contains(name))
    }

    /// One of its vApps has another owner, so there may be a second vApp, or both remain: one of them is deleted.
    pub(super) fn is_taken(&self, name: &Name) -> bool {
        self.by_name.get(name).is_some_and(|ids| ids.iter().any(|id| self.taken.contains(id)))
    }

    fn is_touched(&self, name: &Name) -> bool {
        self.by_name.get(name).is_some_and(|ids| ids.iter().any(|id| self.touched.contains(id)))
    }

    fn there(&self, name: &Name, model: &Model) -> bool {
        self.by_name.get(name).is_some_and(|ids| ids.iter().any(|id| model.vapps.contains_key(id)))
    }

    /// Its vApp has a permanent fault, or contains a foreign VM.
    fn is_stuck_vapp(&self, vapp: &Vapp) -> bool {
        is_faulty(vapp) || self.is_shared(vapp)
    }

    /// The VMs of a vApp that are not foreign.
    pub(super) fn own_vms<'a>(&'a self, vapp: &'a Vapp, model: &'a Model) -> impl Iterator<Item = &'a Vm> {
        vapp.vms.iter().filter(|vm| !self.foreign_vms.contains_key(vm)).filter_map(|vm| model.vms.get(vm))
    }

    fn is_shared(&self, vapp: &Vapp) -> bool {
        vapp.vms.iter().any(|vm| self.foreign_vms.contains_key(vm))
    }

    pub fn is_stuck(&self, name: &Name, model: &Model) -> bool {
        let mut vapps = self.by_name.get(name).into_iter().flatten().filter_map(|id| model.vapps.get(id));
        vapps.any(|vapp| self.is_stuck_vapp(vapp))
    }

    /// A task works on it.
    pub fn is_busy(&self, name: &Name, model: &Model) -> bool {
        self.by_name.get(name).into_iter().flatten().any(|id| task_of(model, *id).is_some())
    }

    pub fn any_stuck(&self, model: &Model) -> bool {
        self.ours.keys().filter_map(|id| model.vapps.get(id)).any(|vapp| self.is_stuck_vapp(vapp))
    }

    /// Why a running instance may have ended: a request of the host or an administrator, a loss in VCD, a stopped guest, or
    /// its age.
    fn gone_for_cause(&self, name: &Name, group: &Group, model: &Model, (time, now): (Time, u64)) -> bool {
        let awake = |age: Duration| self.awake(name, now).map_or(age, |awake| age.min(awake));
        let too_old = group.views(time).iter().any(|view| view.name == *name && group.too_old(awake(view.age)));
        let mut vapps = self.by_name.get(name).into_iter().flatten();
        too_old || self.asked.contains(name) || vapps.all(|id| self.excused(name, *id, model))
    }

    /// Owned vApps that belong to no running or suspended instance, except stuck ones.
    pub fn orphans(&self, group: &Group, model: &Model) -> Vec<Name> {
        self.left(model, Some(group))
    }

    /// Existing owned vApps except stuck ones, and those of `group`'s running and suspended instances.
    pub fn left(&self, model: &Model, group: Option<&Group>) -> Vec<Name> {
        let mut running: BTreeSet<&Name> = group
            .iter()
            .flat_map(|group| group.update())
            // One that an earlier process created may have run.
            .filter(|(name, state)| has_run(*state) || (*state == State::Creating && !self.own.contains(*name)))
            .map(|(name, _)| name)
            .collect();
        let glances = group.map(|group| group.glances(Time(0))).unwrap_or_default();
        running.extend(glances.iter().filter(|glance| glance.phase == Phase::Standby).map(|glance| glance.name));
        let ours = self.ours.iter().filter(|(id, (name, _))| {
            model.vapps.get(id).is_some_and(|vapp| !self.is_stuck_vapp(vapp))
                && !self.taken.contains(id)
                && !self.unknowable.contains(id)
                && !running.contains(name)
        });
        ours.map(|(_, (name, _))| name.clone()).collect()
    }
}
