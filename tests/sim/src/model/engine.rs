//! What happens over time: steps of tasks, guests that boot, leases that end, snapshots of the query service.

use super::*;

/// Faults of the next task. Set them before an operation and clear them after it: a task takes them when it starts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inject {
    /// The task fails or hangs.
    pub task: Option<TaskFault>,
    /// The task's steps take this many times longer.
    pub slow: Option<f64>,
    /// The fault of guests in VMs that the task creates.
    pub guest: Option<GuestFault>,
    /// The vApp's tasks hang from now on ([`Faults::hangs`]).
    pub hangs: bool,
}

/// A task that does not succeed.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskFault {
    /// The step of the fault: for a create, 0 is the copy and 1 the power-on. A larger number means the last step.
    pub step: u8,
    /// What happens there.
    pub kind: TaskFaultKind,
}

/// How a task fails.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskFaultKind {
    /// It ends with this error.
    Fail(TaskError),
    /// It never ends, unless it is cancelled.
    Hang,
}

/// Faults of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestFault {
    /// Customization ends as `GC_FAILED`. SSH answers nevertheless, without the effect of the script.
    CustomizationFails,
    /// Customization stays pending. SSH does not answer.
    NeverCustomizes,
    /// Customization does its work, but is shown as pending for ever, as with old Tools.
    NeverReports,
    /// No address is ever reported.
    NoAddress,
    /// SSH never answers.
    NoSsh,
    /// The guest shuts down at the time when SSH would answer.
    ShutsDown,
}

/// Progress of a task.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    work: Work,
    step: u8,
    fault: Option<TaskFault>,
    slow: f64,
}

/// The work of a task.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    Nothing,
    Create { copy: Ms, power_on: bool },
    Recompose { add: Vec<VmId>, remove: Vec<VmId>, change: VappChange, power_on: bool },
    Vm(Box<VmChange>),
    Vapp(Box<VappChange>),
    Metadata(MetadataTarget, Vec<ops::MetadataEntry>),
    Power(PowerAction),
    Deploy { power_on: bool, customize: bool },
    Undeploy(UndeployAction),
    Discard,
    Delete { forced: bool },
    DeleteVm,
    Consolidate,
}

/// An event on the agenda.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    Step(TaskId),
    Cancel(TaskId),
    Guest(VmId, u32, GuestStep),
    Lease(VappId),
    Snapshot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum GuestStep {
    Address,
    Customized,
    Ssh,
}

/// A lease that ends while the vApp is busy is checked again after this time.
const LEASE_RETRY: Ms = 60_000;
/// Snapshots of the query service per lag. There is at most one in 100 ms.
const SNAPSHOTS_PER_LAG: u64 = 4;

/// It was suspended for longer than its DHCP lease.
fn is_lease_over(vm: &Vm, lease: Option<Ms>, now: Ms) -> bool {
    lease.zip(vm.suspended_at).is_some_and(|(lease, since)| now.saturating_sub(since) > lease)
}

impl Model {
    /// Advances the time to `to`. All events until then happen, in order.
    pub fn advance(&mut self, to: Ms) {
        while let Some(Reverse((at, _, event))) = self.agenda.peek().copied() {
            if at > to {
                break;
            }
            self.agenda.pop();
            self.now = self.now.max(at);
            self.happen(event);
        }
        self.now = self.now.max(to);
    }

    /// The time of the next event, if there is one.
    pub fn next_due(&self) -> Option<Ms> {
        self.agenda.peek().map(|Reverse((at, _, _))| *at)
    }

    pub(super) fn at(&mut self, at: Ms, event: Event) {
        self.agenda_seq += 1;
        self.agenda.push(Reverse((at, self.agenda_seq, event)));
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Step(task) => self.step_due(task),
            Event::Cancel(task) => self.cancel_due(task),
            Event::Guest(vm, boot, step) => self.guest_step(vm, boot, step),
            Event::Lease(vapp) => self.lease_due(vapp),
            Event::Snapshot => self.snapshot(),
        }
    }

    // Tasks.

    /// Starts a task and locks its target. All checks were done before.
    pub(super) fn begin(&mut self, who: UserId, operation: Operation, target: Target, work: Work) -> TaskId {
        self.forget_old_tasks();
        let id: TaskId = self.fresh();
        let inject = std::mem::take(&mut self.inject);
        self.strike(target, inject.hangs);
        let target_name = match target {
            Target::Vapp(v) => self.vapps.get(&v).map(|v| v.name.clone()),
            Target::Vm(v) => self.vms.get(&v).map(|v| v.name.clone()),
        };
        let task = Task {
            operation,
            target,
            target_name: target_name.unwrap_or_else(|| "".into()),
            org: self.org_of(who).unwrap_or(OrgId(0)),
            user: who,
            status: TaskStatus::Running,
            start: self.now,
            end: None,
            error: None,
            cancel_requested: false,
            run: Run {
                fault: self.delete_fault(target, &work).or(inject.task),
                work,
                step: 0,
                slow: inject.slow.unwrap_or(1.0),
            },
        };
        self.tasks.insert(id, task);
        self.running.insert(id);
        self.set_lock(target, None, Some(id));
        self.schedule_step(id);
        id
    }

    /// Moves the lock of a target from one task to another. A new holder is also the last task.
    fn set_lock(&mut self, target: Target, from: Option<TaskId>, to: Option<TaskId>) {
        let vm_ids = match target {
            Target::Vm(vm) => vec![vm],
            Target::Vapp(vapp) => {
                let Some(vapp) = self.vapps.get_mut(&vapp) else { return };
                if vapp.task == from {
                    vapp.task = to;
                    vapp.last_task = to.or(vapp.last_task);
                }
                vapp.vms.clone()
            }
        };
        for id in vm_ids {
            if let Some(vm) = self.vms.get_mut(&id)
                && vm.task == from
            {
                vm.task = to;
                vm.last_task = to.or(vm.last_task);
            }
        }
    }

    fn forget_old_tasks(&mut self) {
        while let Some((&id, task)) = self.tasks.first_key_value() {
            if task.end.is_none_or(|e| e.saturating_add(self.settings.task_kept) > self.now) {
                return;
            }
            self.tasks.remove(&id);
        }
    }

    /// Duration of a step; `None` if there is no such step.
    fn step_time(&self, work: &Work, target: Target, step: u8) -> Option<Ms> {
        let d = &self.durations;
        match (work, step) {
            (Work::Create { copy, .. }, 0) => Some(*copy),
            (Work::Create { power_on: true, .. } | Work::Recompose { power_on: true, .. }, 1) => Some(d.power_on),
            (Work::Recompose { add, .. }, 0) if !add.is_empty() => Some(d.recompose),
            (Work::Recompose { .. } | Work::Vm(_) | Work::Vapp(_) | Work::Discard | Work::Nothing, 0) => {
                Some(d.reconfigure)
            }
            (Work::Metadata(..), 0) => Some(d.metadata),
            (Work::Power(action), 0) => Some(match action {
                PowerAction::On => d.power_on,
                PowerAction::Suspend => d.suspend,
                _ => d.power_off,
            }),
            (Work::Deploy { power_on, .. }, 0) => Some(if *power_on { d.power_on } else { d.reconfigure }),
            (Work::Undeploy(UndeployAction::Suspend), 0) => Some(d.suspend),
            (Work::Undeploy(_), 0) => Some(d.undeploy),
            (Work::Delete { forced: true }, 0) if self.target_deployed(target) => Some(d.delete_forced),
            (Work::Delete { .. } | Work::DeleteVm, 0) => Some(d.delete),
            (Work::Consolidate, 0) => Some(d.consolidate),
            _ => None,
        }
    }

    fn schedule_step(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(&id) else { return };
        let (run, target) = (&task.run, task.target);
        let Some(time) = self.step_time(&run.work, target, run.step) else {
            return self.finish(id, TaskStatus::Success, None);
        };
        let hangs = run.fault.as_ref().is_some_and(|f| matches!(f.kind, TaskFaultKind::Hang));
        if self.hangs(target) || (hangs && self.fault_is_here(run, target)) {
            return;
        }
        let slow = run.slow;
        let mut time = (time as f64 * slow) as Ms;
        let jitter = u64::from(self.settings.jitter_percent.min(100));
        if jitter > 0 {
            time = time.saturating_mul(100 - jitter + self.rng.below(2 * jitter + 1)) / 100;
        }
        self.at(self.now.saturating_add(time), Event::Step(id));
    }

    fn fault_is_here(&self, run: &Run, target: Target) -> bool {
        let is_last = self.step_time(&run.work, target, run.step.saturating_add(1)).is_none();
        run.fault.as_ref().is_some_and(|f| f.step == run.step || (f.step > run.step && is_last))
    }

    fn step_due(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id).filter(|t| t.status == TaskStatus::Running) else { return };
        let target = task.target;
        if self.hangs(target) {
            return;
        }
        let Some(task) = self.tasks.get_mut(&id) else { return };
        // The work is moved out while it changes the world, and moved back for the next step.
        let run = Run { work: std::mem::replace(&mut task.run.work, Work::Nothing), ..task.run.clone() };
        let planned = match &run.fault {
            Some(TaskFault { kind: TaskFaultKind::Fail(error), .. }) if self.fault_is_here(&run, target) => {
                Err(error.clone())
            }
            _ => Ok(()),
        };
        let result = planned.and_then(|()| self.apply(target, &run.work, run.step));
        match result {
            Ok(()) => {
                if let Some(task) = self.tasks.get_mut(&id) {
                    task.run = Run { step: run.step.saturating_add(1), ..run };
                }
                self.schedule_step(id);
            }
            Err(error) => {
                self.give_up(target, &run.work, run.step);
                self.finish(id, TaskStatus::Error, Some(error));
            }
        }
    }

    fn cancel_due(&mut self, id: TaskId) {
        if self.tasks.get(&id).is_some_and(|task| !self.hangs(task.target)) {
            self.end_early(id, TaskStatus::Canceled, None);
        }
    }

    fn vapp_of(&self, target: Target) -> Option<VappId> {
        match target {
            Target::Vapp(id) => Some(id),
            Target::Vm(id) => self.vms.get(&id).map(|vm| vm.vapp),
        }
    }

    fn faults(&self, target: Target) -> Faults {
        self.vapp_of(target).and_then(|id| self.vapps.get(&id)).map(|vapp| vapp.faults).unwrap_or_default()
    }

    fn hangs(&self, target: Target) -> bool {
        self.faults(target).hangs
    }

    fn strike(&mut self, target: Target, hangs: bool) {
        if let Some(vapp) = self.vapp_of(target).and_then(|id| self.vapps.get_mut(&id)) {
            vapp.faults.hangs |= hangs;
        }
    }

    fn delete_fault(&self, target: Target, work: &Work) -> Option<TaskFault> {
        let faults = self.faults(target);
        let fails = match work {
            Work::Delete { forced } => faults.delete_fails || (*forced && faults.force_fails),
            _ => false,
        };
        fails.then(|| TaskFault { step: 0, kind: TaskFaultKind::Fail(admin::unable()) })
    }

    /// Ends a running task without the rest of its work.
    pub(super) fn end_early(&mut self, id: TaskId, status: TaskStatus, error: Option<TaskError>) {
        let Some(task) = self.tasks.get_mut(&id).filter(|t| t.status == TaskStatus::Running) else { return };
        let work = std::mem::replace(&mut task.run.work, Work::Nothing);
        let (target, step) = (task.target, task.run.step);
        self.give_up(target, &work, step);
        self.finish(id, status, error);
    }

    fn finish(&mut self, id: TaskId, status: TaskStatus, error: Option<TaskError>) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.status = status;
        task.end = Some(self.now);
        task.error = error;
        task.run.work = Work::Nothing;
        let target = task.target;
        let created = matches!(task.operation, Operation::Instantiate | Operation::Compose);
        self.running.remove(&id);
        self.set_lock(target, Some(id), None);
        if let (true, Target::Vapp(vapp)) = (created, target)
            && let Some(vapp) = self.vapps.get_mut(&vapp)
        {
            vapp.creating = false;
        }
        match target {
            Target::Vapp(vapp) => self.settle(vapp),
            Target::Vm(vm) => {
                if let Some(vapp) = self.vms.get(&vm).map(|v| v.vapp) {
                    self.settle(vapp);
                }
            }
        }
    }

    /// What remains if a task ends before its work is done: a create that fails in the copy leaves a vApp without
    /// VMs. A create that fails later leaves the VMs, powered off.
    fn give_up(&mut self, target: Target, work: &Work, step: u8) {
        match (work, target, step) {
            (Work::Create { .. }, Target::Vapp(id), 0) => {
                for vm in self.vms_of(target) {
                    self.remove_vm(vm);
                }
                if let Some(vapp) = self.vapps.get_mut(&id) {
                    vapp.failed = true;
                }
            }
            (Work::Recompose { add, .. }, _, 0) => {
                for &vm in add {
                    self.remove_vm(vm);
                }
            }
            _ => {}
        }
    }

    fn apply(&mut self, target: Target, work: &Work, step: u8) -> Result<(), TaskError> {
        let vms = self.vms_of(target);
        match work {
            Work::Nothing => Ok(()),
            Work::Create { .. } if step == 0 => self.finish_copy(&vms),
            Work::Recompose { add, remove, change, .. } if step == 0 => {
                for &vm in remove {
                    self.remove_vm(vm);
                }
                self.change_vapp_now(target, change);
                self.finish_copy(add)
            }
            Work::Create { .. } if self.settings.create_fails_at_power_on => Err(TaskError {
                major: 500,
                minor: Cow::Borrowed("INTERNAL_SERVER_ERROR"),
                message: "Unable to perform this action. Contact your cloud administrator.".into(),
            }),
            Work::Create { .. } | Work::Recompose { .. } | Work::Power(PowerAction::On) => self.power_on(&vms),
            Work::Vm(change) => {
                let Target::Vm(vm) = target else { return Ok(()) };
                self.change_vm_now(vm, change)
            }
            Work::Vapp(change) => {
                self.change_vapp_now(target, change);
                Ok(())
            }
            Work::Metadata(at, entries) => {
                self.change_metadata_now(*at, entries);
                Ok(())
            }
            Work::Power(PowerAction::Reset | PowerAction::Reboot) => {
                vms.iter().for_each(|vm| self.boot(*vm));
                Ok(())
            }
            Work::Power(PowerAction::Suspend) => {
                vms.iter().for_each(|vm| self.stop(*vm, Power::Suspended, true));
                Ok(())
            }
            Work::Power(_) => {
                vms.iter().for_each(|vm| self.stop(*vm, Power::Off, true));
                Ok(())
            }
            Work::Deploy { power_on, customize } => {
                for id in &vms {
                    let Some(vm) = self.vms.get_mut(id) else { continue };
                    vm.deployed = true;
                    if *customize {
                        vm.needs_customization = true;
                        vm.applied = None;
                    }
                }
                if *power_on { self.power_on(&vms) } else { Ok(()) }
            }
            Work::Undeploy(UndeployAction::Suspend) => {
                vms.iter().for_each(|vm| self.stop(*vm, Power::Suspended, false));
                Ok(())
            }
            Work::Undeploy(_) => {
                vms.iter().for_each(|vm| self.stop(*vm, Power::Off, false));
                Ok(())
            }
            Work::Discard => {
                let suspended = |m: &Self, v: &VmId| m.vms.get(v).is_some_and(|v| v.power == Power::Suspended);
                for vm in vms.iter().filter(|v| suspended(self, v)).copied().collect::<Vec<_>>() {
                    self.stop(vm, Power::Off, false);
                }
                Ok(())
            }
            Work::Delete { .. } => {
                if let Target::Vapp(vapp) = target {
                    self.remove_vapp(vapp);
                }
                Ok(())
            }
            Work::DeleteVm => {
                vms.iter().for_each(|vm| self.remove_vm(*vm));
                Ok(())
            }
            Work::Consolidate => {
                for vm in vms {
                    if let Some(vm) = self.vms.get_mut(&vm) {
                        vm.linked = false;
                    }
                }
                Ok(())
            }
        }
    }

    fn finish_copy(&mut self, vms: &[VmId]) -> Result<(), TaskError> {
        for &id in vms {
            let Some(vm) = self.vms.get(&id) else { continue };
            check::computer_name(vm)?;
            if let Some(network) = &vm.missing_network {
                return Err(TaskError {
                    major: 400,
                    minor: Cow::Borrowed("BAD_REQUEST"),
                    message: format!("The VCD entity network \"{network}\" does not exist."),
                });
            }
            if self.settings.storage_quota_in_task {
                self.check_storage(vm.profile, 0).map_err(check::task_error)?;
            }
        }
        for &id in vms {
            // An exhausted pool shows at power on: the VM stays, without an address.
            let _ = self.assign_addresses(id);
            if let Some(vm) = self.vms.get_mut(&id) {
                vm.power = Power::Off;
                vm.shows_at = vm.shows_at.min(self.now);
            }
        }
        Ok(())
    }

    fn power_on(&mut self, vms: &[VmId]) -> Result<(), TaskError> {
        let starting: Vec<VmId> =
            vms.iter().filter(|v| self.vms.get(v).is_some_and(|v| v.power != Power::On)).copied().collect();
        self.check_compute(&starting)?;
        for &vm in &starting {
            self.assign_addresses(vm)?;
        }
        for vm in starting {
            self.boot(vm);
        }
        Ok(())
    }

    // Guests.

    pub(super) fn boot(&mut self, id: VmId) {
        let (d, now, lease) = (self.durations.clone(), self.now, self.settings.dhcp_lease);
        let Some(vm) = self.vms.get_mut(&id) else { return };
        let resumed = vm.power == Power::Suspended;
        vm.lease_over = resumed && is_lease_over(vm, lease, now);
        vm.suspended_at = None;
        let address = if resumed && !vm.lease_over { 0 } else { d.address };
        vm.power = Power::On;
        vm.deployed = true;
        vm.boot += 1;
        let was_up = std::mem::replace(&mut vm.ssh, false);
        let customizes = !resumed && vm.guest.enabled && vm.needs_customization && vm.applied.is_none();
        if customizes {
            vm.gc = GcStatus::Pending;
        }
        let (boot, vapp) = (vm.boot, vm.vapp);
        self.guest_changes += u64::from(was_up);
        self.at(now + address, Event::Guest(id, boot, GuestStep::Address));
        if customizes {
            self.at(now + d.customization, Event::Guest(id, boot, GuestStep::Customized));
        } else {
            self.at(now + address + d.ssh, Event::Guest(id, boot, GuestStep::Ssh));
        }
        self.settle(vapp);
    }

    pub(super) fn stop(&mut self, id: VmId, power: Power, deployed: bool) {
        let Some(vm) = self.vms.get_mut(&id) else { return };
        // Undeploying with "suspend" suspends running VMs, and leaves the others as they are.
        vm.power = if power == Power::Suspended && vm.power != Power::On { vm.power } else { power };
        vm.suspended_at = (vm.power == Power::Suspended).then(|| vm.suspended_at.unwrap_or(self.now));
        vm.deployed &= deployed;
        vm.boot += 1;
        let was_up = std::mem::replace(&mut vm.ssh, false);
        let vapp = vm.vapp;
        self.guest_changes += u64::from(was_up);
        if power == Power::Off {
            self.release_addresses(id, true);
        }
        self.settle(vapp);
    }

    fn guest_step(&mut self, id: VmId, boot: u32, step: GuestStep) {
        let Some(vm) = self.vms.get(&id).filter(|v| v.boot == boot && v.power == Power::On) else { return };
        let fault = vm.guest_fault;
        match step {
            GuestStep::Address if fault == Some(GuestFault::NoAddress) => {}
            GuestStep::Address if vm.lease_over => self.renew_addresses(id),
            GuestStep::Address => {
                let indexes: Vec<u32> = vm.nics.iter().filter(|n| n.mode == IpMode::Dhcp).map(|n| n.index).collect();
                for index in indexes {
                    // An exhausted DHCP range: no address.
                    let _ = self.assign_address(id, index);
                }
            }
            GuestStep::Customized => {
                let Some(vm) = self.vms.get_mut(&id) else { return };
                match fault {
                    Some(GuestFault::NeverCustomizes) => return,
                    Some(GuestFault::CustomizationFails) => {
                        vm.gc = GcStatus::Failed;
                        vm.applied = Some(Applied::default());
                    }
                    _ => {
                        let refused = vm.guest.script.is_some() && vm.scripts != Scripts::Run;
                        if refused && vm.scripts == Scripts::Fail {
                            vm.gc = GcStatus::Failed;
                        } else if fault != Some(GuestFault::NeverReports) {
                            vm.gc = GcStatus::Complete;
                        }
                        vm.applied = Some(Applied {
                            script: vm.guest.script.clone().filter(|_| !refused),
                            password: vm.guest.admin_password.clone().filter(|_| vm.guest.admin_password_enabled),
                            computer_name: vm.guest.computer_name.clone(),
                        });
                    }
                }
                self.at(self.now + self.durations.ssh, Event::Guest(id, boot, GuestStep::Ssh));
            }
            GuestStep::Ssh => {
                if fault == Some(GuestFault::ShutsDown) {
                    return self.stop(id, Power::Off, true);
                }
                let Some(vm) = self.vms.get_mut(&id) else { return };
                // Only customization configures an address of the pool in the guest.
                let reachable = vm.nic().is_some_and(|n| {
                    n.address.is_some() && n.connected && (n.mode == IpMode::Dhcp || vm.applied.is_some())
                });
                if reachable && fault != Some(GuestFault::NoSsh) && fault != Some(GuestFault::NoAddress) {
                    vm.ssh = true;
                    self.guest_changes += 1;
                }
            }
        }
    }

    /// The guests that answer SSH, with their addresses.
    pub fn guests(&self) -> impl Iterator<Item = (Ipv4Addr, VmId)> + '_ {
        self.vms.iter().filter(|(_, vm)| vm.ssh && !vm.host_down).filter_map(|(id, vm)| Some((vm.address()?, *id)))
    }

    /// The VM with this address, on any network.
    pub fn vm_at(&self, address: Ipv4Addr) -> Option<VmId> {
        self.networks.values().find_map(|n| n.used.get(&address).copied())
    }

    // Addresses.

    pub(super) fn assign_addresses(&mut self, id: VmId) -> Result<(), TaskError> {
        let Some(vm) = self.vms.get(&id) else { return Ok(()) };
        let wanting: Vec<u32> =
            vm.nics.iter().filter(|n| n.mode == IpMode::Pool && n.address.is_none()).map(|n| n.index).collect();
        wanting.into_iter().try_for_each(|index| self.assign_address(id, index))
    }

    fn assign_address(&mut self, id: VmId, index: u32) -> Result<(), TaskError> {
        let Some(vm) = self.vms.get(&id) else { return Ok(()) };
        let Some(nic) = vm.nics.iter().find(|n| n.index == index && n.address.is_none()) else { return Ok(()) };
        let parent = self
            .vapps
            .get(&vm.vapp)
            .and_then(|v| v.networks.iter().find(|n| Some(&n.name) == nic.network.as_ref()).and_then(|n| n.parent));
        let Some(network) = parent.and_then(|p| self.networks.get_mut(&p)) else { return Ok(()) };
        let is_dhcp = nic.mode == IpMode::Dhcp;
        let (first, last) = if is_dhcp { network.dhcp } else { network.pool };
        let (lease, now) = (self.settings.dhcp_lease.filter(|_| is_dhcp), self.now);
        let is_over = |holder: &VmId| self.vms.get(holder).is_some_and(|vm| is_lease_over(vm, lease, now));
        let is_free = |address: &Ipv4Addr| network.used.get(address).is_none_or(is_over);
        let free = (u32::from(first)..=u32::from(last)).map(Ipv4Addr::from).find(is_free);
        let Some(free) = free else {
            return Err(TaskError {
                major: 400,
                minor: Cow::Borrowed("BAD_REQUEST"),
                message: "Following errors occurred while updating network connections: \n There are insufficient IP \
                          addresses to complete operation. You need to add IP addresses to the network that is associated \
                          with the object being created or deployed."
                    .into(),
            });
        };
        network.used.insert(free, id);
        if let Some(nic) = self.vms.get_mut(&id).and_then(|vm| vm.nics.iter_mut().find(|n| n.index == index)) {
            nic.address = Some(free);
        }
        Ok(())
    }

    /// Assigns new DHCP addresses to a VM whose DHCP lease is over.
    fn renew_addresses(&mut self, id: VmId) {
        let Some(vm) = self.vms.get_mut(&id) else { return };
        vm.lease_over = false;
        let of_dhcp = vm.nics.iter_mut().filter(|nic| nic.mode == IpMode::Dhcp);
        let old: Vec<(u32, Option<Ipv4Addr>)> = of_dhcp.map(|nic| (nic.index, nic.address.take())).collect();
        for (index, old) in old {
            // The old address is still in use, so the new one differs.
            let _ = self.assign_address(id, index);
            for network in self.networks.values_mut() {
                network.used.retain(|address, vm| *vm != id || old != Some(*address));
            }
        }
    }

    /// Frees the addresses of a VM: all, or only those from DHCP.
    pub(super) fn release_addresses(&mut self, id: VmId, dhcp_only: bool) {
        let Some(vm) = self.vms.get_mut(&id) else { return };
        for nic in vm.nics.iter_mut().filter(|n| !dhcp_only || n.mode == IpMode::Dhcp) {
            let Some(address) = nic.address.take() else { continue };
            for network in self.networks.values_mut() {
                if network.used.get(&address) == Some(&id) {
                    network.used.remove(&address);
                }
            }
        }
    }

    // Deletions.

    pub(super) fn remove_vm(&mut self, id: VmId) {
        self.release_addresses(id, false);
        let Some(vm) = self.vms.remove(&id) else { return };
        self.guest_changes += u64::from(vm.ssh);
        if let Some(vapp) = self.vapps.get_mut(&vm.vapp) {
            vapp.vms.retain(|v| *v != id);
        }
        self.settle(vm.vapp);
    }

    pub(super) fn remove_vapp(&mut self, id: VappId) {
        for vm in self.vms_of(Target::Vapp(id)) {
            self.remove_vm(vm);
        }
        self.vapps.remove(&id);
    }

    pub(super) fn vms_of(&self, target: Target) -> Vec<VmId> {
        match target {
            Target::Vm(vm) => vec![vm],
            Target::Vapp(vapp) => self.vapps.get(&vapp).map(|v| v.vms.clone()).unwrap_or_default(),
        }
    }

    pub(super) fn target_deployed(&self, target: Target) -> bool {
        self.vms_of(target).iter().any(|v| self.vms.get(v).is_some_and(|v| v.deployed))
    }

    // Leases.

    /// Updates a vApp's `deployed` and its leases after any change.
    pub(super) fn settle(&mut self, id: VappId) {
        let deployed = self.target_deployed(Target::Vapp(id));
        let now = self.now;
        let Some(vapp) = self.vapps.get_mut(&id) else { return };
        let changed = deployed != vapp.deployed || (vapp.undeploy_at.is_none() && vapp.delete_at.is_none());
        vapp.deployed = deployed;
        if !changed || vapp.creating {
            return;
        }
        let end = |s: u64| (s > 0).then(|| now.saturating_add(s.saturating_mul(1000)));
        vapp.undeploy_at = end(vapp.lease.deployment_s).filter(|_| deployed);
        vapp.delete_at = end(vapp.lease.storage_s).filter(|_| !deployed);
        if let Some(at) = vapp.undeploy_at.or(vapp.delete_at) {
            self.at(at, Event::Lease(id));
        }
    }

    fn lease_due(&mut self, id: VappId) {
        let Some(vapp) = self.vapps.get(&id) else { return };
        let is_due = |at: Option<Ms>| at.is_some_and(|at| at <= self.now);
        let (undeploy, delete) = (is_due(vapp.undeploy_at), is_due(vapp.delete_at));
        if !undeploy && !delete {
            return;
        }
        let owner = vapp.owner;
        if self.check_free(Target::Vapp(id)).is_err() {
            return self.at(self.now + LEASE_RETRY, Event::Lease(id));
        }
        let rules = self.org_of(owner).and_then(|o| self.orgs.get(&o)).map(|o| o.leases.clone()).unwrap_or_default();
        let target = Target::Vapp(id);
        // The injected faults are for the client's tasks, not for this task.
        let inject = std::mem::take(&mut self.inject);
        if undeploy && rules.power_off {
            self.begin(owner, Operation::UndeployPowerOff, target, Work::Undeploy(UndeployAction::PowerOff));
        } else if undeploy {
            self.begin(owner, Operation::UndeploySuspend, target, Work::Undeploy(UndeployAction::Suspend));
        } else if rules.keep_expired {
            if let Some(vapp) = self.vapps.get_mut(&id) {
                vapp.expired = true;
            }
        } else {
            self.begin(owner, Operation::Delete, target, Work::Delete { forced: false });
        }
        self.inject = inject;
    }

    // The query service's lag.

    /// Queries show the state of `lag` milliseconds ago; 0 ends this.
    pub fn set_lag(&mut self, lag: Ms) {
        self.lag = lag;
        self.keep_history(lag);
    }

    /// Keeps snapshots of the last `history` milliseconds, for single stale queries.
    pub fn keep_history(&mut self, history: Ms) {
        let begins = self.history == 0 && history > 0;
        self.history = history;
        if begins {
            self.snapshot();
        } else if history == 0 {
            self.snapshots.clear();
        }
    }

    fn snapshot(&mut self) {
        if self.history == 0 {
            return;
        }
        let records = Arc::new(self.records_now());
        self.snapshots.push_back((self.now, records));
        // One older snapshot is kept: it is the state at the start of the history.
        while self.snapshots.get(1).is_some_and(|(at, _)| at.saturating_add(self.history) <= self.now) {
            self.snapshots.pop_front();
        }
        self.at(self.now + (self.history / SNAPSHOTS_PER_LAG).max(100), Event::Snapshot);
    }

    /// The records of `ago` milliseconds ago, as far as they are kept.
    pub(super) fn records_ago(&self, ago: Ms) -> Option<Arc<Records>> {
        let then = self.now.saturating_sub(ago);
        self.snapshots.iter().rev().find(|(at, _)| *at <= then).or(self.snapshots.front()).map(|(_, r)| r.clone())
    }
}
