//! What may never happen, checked after every event. The numbers are those of the list in `ARCHITECTURE.md`.

use super::plan::Tuning;
use super::{href, task_of, vapp_id};
use fleeting_plugin_vcd::cloud::Request;
use fleeting_plugin_vcd::group::{Group, Name, State, Ticket, Time};
use std::collections::{BTreeMap, BTreeSet};
use vcd_sim::model::{GcStatus, Model, Operation, Power, TaskStatus, VappId};

/// It has come to running, and has not ended.
fn has_run(state: State) -> bool {
    matches!(state, State::Running | State::Suspending | State::Suspended | State::Resuming)
}

/// What is known beside the group and the model.
#[derive(Default)]
pub struct Audit {
    /// vApps that the group asked for, with name and the life that asked.
    pub ours: BTreeMap<VappId, (Name, u32)>,
    pub foreign: BTreeSet<VappId>,
    /// Ours once, until an administrator renamed them.
    pub renamed: BTreeSet<VappId>,
    /// Made while a process shuts down, by a request that an earlier one sent before it died: only the next one can know.
    unknowable: BTreeSet<VappId>,
    /// An administrator deleted, stopped or renamed it, or the group had cause to delete it.
    touched: BTreeSet<VappId>,
    /// Its delete was carried out long after its answer was given up: nobody could know.
    late: BTreeSet<VappId>,
    /// Ids that the host asked to remove, in any life.
    asked: BTreeSet<Name>,
    /// Ids that the host asked to suspend, and to resume, in any life.
    napped: BTreeSet<Name>,
    roused: BTreeSet<Name>,
    /// Ids that had reached running when last seen.
    running: BTreeSet<Name>,
    /// Ids that an Increase brought, with the state seen last.
    accepted: BTreeMap<Name, State>,
    /// Changing requests on the wire.
    wire: BTreeMap<Ticket, Request>,
    life: u32,
    shutdown: bool,
}

impl Audit {
    pub fn start(&mut self, life: u32) {
        self.life = life;
        self.shutdown = false;
        self.wire.clear();
        self.accepted.clear();
    }

    pub fn die(&mut self) {
        self.accepted.clear();
    }

    pub fn asked(&mut self, name: &Name) {
        self.asked.insert(name.clone());
    }

    pub fn touched(&mut self, id: VappId) {
        self.touched.insert(id);
    }

    pub fn increased(&mut self, accepted: u32, before: &BTreeSet<Name>, group: &Group) {
        let new: Vec<Name> =
            group.update().map(|(name, _)| name.clone()).filter(|name| !before.contains(name)).collect();
        assert_eq!(new.len(), accepted as usize, "every accepted request has an id in the next Update");
        self.accepted.extend(new.into_iter().map(|name| (name, State::Creating)));
    }

    pub fn decreased(&mut self, asked: &[Name], done: &[Name]) {
        assert_eq!(asked, done, "a removal of anything, in any phase, is accepted");
    }

    pub fn suspended(&mut self, chosen: &[Name], done: &[Name], before: &BTreeMap<Name, State>) {
        for name in chosen {
            let state = before.get(name).copied();
            let may = matches!(state, Some(State::Running | State::Suspending | State::Suspended));
            assert_eq!(done.contains(name), may, "{name}, which is {state:?}, is to be suspended");
        }
        self.napped.extend(done.iter().cloned());
    }

    pub fn resumed(&mut self, name: &Name, done: bool, state: Option<State>) {
        let may = state.is_some_and(has_run);
        assert_eq!(done, may, "{name}, which is {state:?}, is to be resumed");
        if done {
            self.roused.insert(name.clone());
        }
    }

    pub fn heartbeat(&mut self, name: &Name, healthy: bool, state: Option<State>) {
        let bad = healthy && matches!(state, Some(State::Deleting | State::Deleted | State::Timeout));
        assert!(!bad, "{name} is {state:?} and said to be healthy");
    }

    pub fn shutdown(&mut self, keep: bool, group: &Group) {
        self.shutdown = true;
        if !keep {
            // What the group has not seen yet, too.
            self.asked.extend(self.ours.values().map(|(name, _)| name.clone()));
        }
        for (name, state) in group.update() {
            if !keep || !has_run(state) {
                self.asked.insert(name.clone());
            }
        }
    }

    /// The process has ended in order.
    pub fn stopped(&mut self, _keep: bool) {}

    /// A request leaves the group.
    pub fn sent(&mut self, ticket: Ticket, request: &Request, model: &Model, tuning: &Tuning) -> Result<(), String> {
        if request.changes() {
            self.wire.insert(ticket, request.clone());
        }
        match request {
            Request::Create { name, .. } => {
                let made = self.ours.iter().filter(|(id, (of, _))| of == name && model.vapps.contains_key(id));
                if let Some((id, _)) = made.into_iter().next()
                    && model.vapps[id].name == *name
                {
                    return Err(format!("7: {name} is asked for again while its vApp {} is there", href(*id)));
                }
                self.check_load(model, tuning)?;
            }
            Request::Suspend { vapp } | Request::PowerOn { vapp } => {
                let id = vapp_id(vapp);
                let done = match request {
                    Request::Suspend { .. } => Power::Suspended,
                    _ => Power::On,
                };
                let is = |vm: &vcd_sim::model::VmId| model.vms.get(vm).is_some_and(|vm| vm.power == done);
                let already = model.vapps.get(&id).is_some_and(|vapp| vapp.vms.iter().any(is));
                let mine = self.ours.get(&id).is_some_and(|(_, life)| *life == self.life);
                if already && mine && !self.late.contains(&id) && !self.touched.contains(&id) {
                    return Err(format!("7: {} of {vapp}, which is {done:?} already", request.operation()));
                }
                self.check_load(model, tuning)?;
            }
            Request::Delete { vapp } | Request::DeleteStopped { vapp } | Request::Undeploy { vapp } => {
                let id = vapp_id(vapp);
                if let Some((name, _)) = self.ours.get(&id)
                    && self.running.contains(name)
                    && !self.excused(name, id, model)
                {
                    return Err(format!("6: {name} runs and nobody asked to delete it"));
                }
                // Once sent for cause it may be carried out whenever.
                self.touched.insert(id);
                let deleting = |t: &vcd_sim::model::Task| {
                    t.operation == Operation::Delete && t.status == TaskStatus::Running && !t.cancel_requested
                };
                // A late one may begin between the look and the repeated request: VCD refuses that one as busy.
                if !self.late.contains(&id)
                    && task_of(model, id).and_then(|task| model.tasks.get(&task)).is_some_and(deleting)
                {
                    return Err(format!("7: {vapp} is deleted again while its deletion goes on"));
                }
                self.check_load(model, tuning)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// At the end, VCD queues what is too much.
    fn check_load(&self, model: &Model, tuning: &Tuning) -> Result<(), String> {
        let (creates, deletes, others) = self.load(model);
        let sum = creates + deletes + others;
        let over = creates > tuning.max_creates || deletes > tuning.max_deletes || sum > tuning.max_operations;
        if over && !self.shutdown {
            let counts = format!("{creates} creates, {deletes} deletes, {others} suspends and resumes");
            return Err(format!("4: {counts} at a time ({tuning:?})"));
        }
        Ok(())
    }

    /// Creates, deletes, and suspends with resumes under way: those on the wire, and those that VCD works on.
    fn load(&self, model: &Model) -> (u32, u32, u32) {
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
                        Some((name, _)) if !self.naps(name) => _ = creates.insert(name),
                        _ => _ = others.insert(id),
                    }
                }
                _ => {}
            }
        }
        for (id, (name, life)) in &self.ours {
            // What carries another name is not known to be ours.
            if *life != self.life || self.renamed.contains(id) {
                continue;
            }
            let task = task_of(model, *id).and_then(|task| model.tasks.get(&task));
            match task.map(|task| task.operation) {
                Some(Operation::Instantiate | Operation::Compose) => _ = creates.insert(name),
                // Nobody could know.
                Some(Operation::UpdateVm | Operation::Deploy | Operation::Suspend) if self.late.contains(id) => {}
                Some(Operation::UpdateVm) => _ = creates.insert(name),
                Some(Operation::Deploy) if !self.naps(name) => _ = creates.insert(name),
                Some(Operation::Deploy | Operation::Suspend) => _ = others.insert(*id),
                Some(Operation::Delete | Operation::UndeployPowerOff) if !self.late.contains(id) => {
                    _ = deletes.insert(*id)
                }
                _ => {}
            }
        }
        (creates.len() as u32, deletes.len() as u32, others.len() as u32)
    }

    /// The host asked to suspend or to resume it, ever: powering it on is no part of a create.
    fn naps(&self, name: &Name) -> bool {
        self.napped.contains(name) || self.roused.contains(name)
    }

    /// The answer to a request has come back.
    pub fn answered(&mut self, ticket: Ticket) {
        self.wire.remove(&ticket);
    }

    /// VCD made a vApp for us.
    pub fn made(&mut self, id: VappId, name: &Name, life: u32, model: &Model, late: bool) -> Result<(), String> {
        let live = |(other, (of, _)): &(&VappId, &(Name, u32))| {
            of == name && model.vapps.get(other).is_some_and(|vapp| vapp.name == *name)
        };
        if let Some((other, _)) = self.ours.iter().find(live) {
            let late = if late { " (a late one)" } else { "" };
            return Err(format!("1: {} and {}{late} are both there for {name}", href(*other), href(id)));
        }
        if life != self.life && self.shutdown {
            self.unknowable.insert(id);
        }
        self.ours.insert(id, (name.clone(), life));
        Ok(())
    }

    /// VCD is asked to delete a vApp.
    pub fn deletes(&mut self, id: VappId, late: bool, model: &Model) -> Result<(), String> {
        if late {
            self.late.insert(id);
        }
        self.changes(id, model, "delete")
    }

    /// A change is carried out long after its answer was given up.
    pub fn came_late(&mut self, id: VappId) {
        self.late.insert(id);
    }

    pub fn changes(&self, id: VappId, model: &Model, what: &str) -> Result<(), String> {
        match model.vapps.get(&id) {
            Some(vapp) if self.foreign.contains(&id) => Err(format!("3: {what} of {}, which is not ours", vapp.name)),
            _ => Ok(()),
        }
    }

    fn excused(&self, name: &Name, id: VappId, model: &Model) -> bool {
        // What was to be resumed and stays suspended, or does not answer, is given up in the end.
        let roused = self.roused.contains(name);
        let asleep = self.napped.contains(name) && !roused;
        let on = |vm: &vcd_sim::model::Vm| match vm.power {
            Power::On => vm.gc != GcStatus::Failed && (vm.ssh || !roused),
            power => asleep && power == Power::Suspended,
        };
        let complete =
            model.vapps.get(&id).is_some_and(|vapp| vapp.vms.iter().all(|vm| model.vms.get(vm).is_some_and(on)));
        self.asked.contains(name) || self.touched.contains(&id) || !complete
    }

    /// After every event, while a process lives.
    pub fn check(&mut self, group: &Group, model: &Model, time: Time) -> Result<(), String> {
        let mut running = BTreeSet::new();
        let mut seen = BTreeSet::new();
        for (name, state) in group.update() {
            seen.insert(name.clone());
            let may_nap = || self.napped.contains(name) || self.is_touched(name);
            if state == State::Running || (has_run(state) && may_nap()) {
                running.insert(name.clone());
            } else if self.running.contains(name) && !self.gone_for_cause(name, group, model, time) {
                return Err(format!("6: {name} ran and is {state:?} now, without cause"));
            }
            if let Some(before) = self.accepted.get_mut(name) {
                let ended = matches!(before, State::Deleted | State::Timeout);
                if ended && state != *before {
                    return Err(format!("5: {name} was {before:?} and is {state:?} now"));
                }
                *before = state;
            }
        }
        for (name, state) in &self.accepted {
            if !seen.contains(name) && !matches!(state, State::Deleted | State::Timeout) {
                return Err(format!("5: {name} was {state:?} and is not reported any more"));
            }
        }
        self.accepted.retain(|name, _| seen.contains(name));
        let lost = self.running.iter().filter(|name| !seen.contains(*name)).find(|name| {
            // Not found at the start of this life because the query lagged: it must still be there, untouched.
            !self.gone_for_cause(name, group, model, time) && !self.there(name, model)
        });
        if let Some(name) = lost {
            return Err(format!("6: {name} ran and is not reported any more, without cause"));
        }
        let missing: Vec<Name> =
            self.running.iter().filter(|name| !seen.contains(*name) && self.there(name, model)).cloned().collect();
        self.running = running;
        self.running.extend(missing);
        Ok(())
    }

    fn is_touched(&self, name: &Name) -> bool {
        self.ours.iter().any(|(id, (of, _))| of == name && self.touched.contains(id))
    }

    fn there(&self, name: &Name, model: &Model) -> bool {
        self.ours.iter().any(|(id, (of, _))| of == name && model.vapps.contains_key(id))
    }

    /// Why a running instance may have ended: the host or an administrator wanted it, VCD lost it, its guest stopped, or it
    /// grew too old.
    fn gone_for_cause(&self, name: &Name, group: &Group, model: &Model, time: Time) -> bool {
        let too_old = group.views(time).iter().any(|view| view.name == *name && group.too_old(view.age));
        let mut vapps = self.ours.iter().filter(|(_, (of, _))| of == name).map(|(id, _)| *id);
        too_old || self.asked.contains(name) || vapps.all(|id| self.excused(name, id, model))
    }

    /// vApps of ours that no running or suspended instance stands for.
    pub fn orphans(&self, group: &Group, model: &Model) -> Vec<Name> {
        self.left(model, Some(group))
    }

    /// vApps of ours that are there, but for those of `group`'s running and suspended instances.
    pub fn left(&self, model: &Model, group: Option<&Group>) -> Vec<Name> {
        let running: BTreeSet<&Name> = group
            .iter()
            .flat_map(|group| group.update().filter(|(_, state)| has_run(*state)).map(|(name, _)| name))
            .collect();
        let ours = self.ours.iter().filter(|(id, (name, _))| {
            model.vapps.contains_key(id)
                && !self.renamed.contains(id)
                && !self.unknowable.contains(id)
                && !running.contains(name)
        });
        ours.map(|(_, (name, _))| name.clone()).collect()
    }
}
