//! What an administrator does without the client. Rights and busy entities never matter here.

use super::*;

/// VCD's error when it does not say why.
pub(super) fn unable() -> TaskError {
    TaskError {
        major: 500,
        minor: Cow::Borrowed("INTERNAL_SERVER_ERROR"),
        message: "Unable to perform this action. Contact your cloud administrator.".into(),
    }
}

impl Model {
    /// The vApps with this name.
    pub fn vapps_named(&self, name: &str) -> Vec<VappId> {
        self.vapps.iter().filter(|(_, v)| *v.name == *name).map(|(id, _)| *id).collect()
    }

    /// Deletes a vApp immediately. Its tasks end with an error.
    pub fn admin_delete_vapp(&mut self, id: VappId) {
        self.admin_end_tasks(id, TaskStatus::Error);
        self.remove_vapp(id);
    }

    /// Ends the running tasks of a vApp and of its VMs.
    pub fn admin_end_tasks(&mut self, id: VappId, status: TaskStatus) {
        let mut tasks: Vec<TaskId> = self.vapps.get(&id).and_then(|v| v.task).into_iter().collect();
        tasks.extend(self.vms_of(Target::Vapp(id)).iter().filter_map(|v| self.vms.get(v)).filter_map(|v| v.task));
        tasks.sort();
        tasks.dedup();
        for task in tasks {
            let error = (status == TaskStatus::Error).then(unable);
            self.end_early(task, status, error);
        }
    }

    /// Renames a vApp.
    pub fn admin_rename_vapp(&mut self, id: VappId, name: &str) {
        if let Some(vapp) = self.vapps.get_mut(&id) {
            vapp.name = name.into();
        }
    }

    /// Powers all VMs of a vApp on or off, or suspends them, immediately. They stay deployed.
    pub fn admin_power(&mut self, id: VappId, power: Power) {
        for vm in self.vms_of(Target::Vapp(id)) {
            if power != Power::On {
                self.stop(vm, power, true);
            } else if self.vms.get(&vm).is_some_and(|vm| vm.power != Power::On) {
                self.boot(vm);
            }
        }
    }

    /// Sets the faults of a vApp. Tasks that hung because of an earlier fault are aborted.
    pub fn admin_faults(&mut self, id: VappId, faults: Faults) {
        let Some(vapp) = self.vapps.get_mut(&id) else { return };
        let hung = std::mem::replace(&mut vapp.faults, faults).hangs;
        if hung && !faults.hangs {
            self.admin_end_tasks(id, TaskStatus::Aborted);
        }
    }

    /// Aborts all running tasks, as a cell that restarts does.
    pub fn admin_abort_all(&mut self) {
        for task in self.running.clone() {
            self.end_early(task, TaskStatus::Aborted, None);
        }
    }

    /// Deletes a VM immediately. Its vApp stays.
    pub fn admin_delete_vm(&mut self, id: VmId) {
        if let Some(task) = self.vms.get(&id).and_then(|vm| vm.task) {
            self.end_early(task, TaskStatus::Error, Some(unable()));
        }
        self.remove_vm(id);
    }

    /// Adds a foreign, running VM to a vApp: a copy of its VM, with another address.
    pub fn admin_add_vm(&mut self, vapp: VappId, name: &str, description: &str) -> Option<VmId> {
        let first = self.vapps.get(&vapp)?.vms.first().copied()?;
        let mut vm = self.vms.get(&first)?.clone();
        let id: VmId = self.fresh();
        (vm.name, vm.description, vm.created, vm.shows_at) = (name.into(), description.into(), self.now, self.now);
        (vm.task, vm.guest_fault, vm.power, vm.deployed) = (None, None, Power::Off, true);
        (vm.ssh, vm.host_down, vm.address_hidden) = (false, false, false);
        vm.nics.iter_mut().for_each(|nic| nic.address = None);
        self.vms.insert(id, vm);
        self.vapps.get_mut(&vapp)?.vms.push(id);
        let _ = self.assign_addresses(id);
        self.boot(id);
        Some(id)
    }

    /// Moves a VM, as it is, to a new foreign vApp.
    pub fn admin_move_vm(&mut self, id: VmId, name: &str) -> Option<VappId> {
        let from = self.vms.get(&id)?.vapp;
        let (vdc, networks) = self.vapps.get(&from).map(|vapp| (vapp.vdc, vapp.networks.clone()))?;
        let to = self.admin_foreign_vapp(vdc, name, "somebody's");
        self.vapps.get_mut(&from)?.vms.retain(|vm| *vm != id);
        let vapp = self.vapps.get_mut(&to)?;
        (vapp.networks, vapp.vms) = (networks, vec![id]);
        self.vms.get_mut(&id)?.vapp = to;
        self.settle(from);
        self.settle(to);
        Some(to)
    }

    /// Changes the description of a vApp.
    pub fn admin_describe_vapp(&mut self, id: VappId, description: &str) {
        if let Some(vapp) = self.vapps.get_mut(&id) {
            vapp.description = description.into();
        }
    }

    /// Changes the description of a VM. The vApp's description stays.
    pub fn admin_describe_vm(&mut self, id: VmId, description: &str) {
        if let Some(vm) = self.vms.get_mut(&id) {
            vm.description = description.into();
        }
    }

    /// The ESXi host of a VM stops answering, or answers again.
    pub fn admin_host_down(&mut self, id: VmId, down: bool) {
        if let Some(vm) = self.vms.get_mut(&id) {
            vm.host_down = down;
            self.guest_changes += 1;
        }
    }

    /// VCD shows a guest's customization as failed, long after it ended.
    pub fn admin_customization_failed(&mut self, id: VmId) {
        if let Some(vm) = self.vms.get_mut(&id) {
            vm.gc = GcStatus::Failed;
        }
    }

    /// A VM's record stops showing its address, or shows it again. The guest keeps the address.
    pub fn admin_hide_address(&mut self, id: VmId, hidden: bool) {
        if let Some(vm) = self.vms.get_mut(&id) {
            vm.address_hidden = hidden;
        }
    }

    /// Changes the addresses of a VM.
    pub fn admin_new_address(&mut self, id: VmId) {
        let Some(vm) = self.vms.get_mut(&id) else { return };
        let old: Vec<Ipv4Addr> = vm.nics.iter_mut().filter_map(|nic| nic.address.take()).collect();
        // The old addresses are still in use, so the new ones differ.
        let _ = self.assign_addresses(id);
        for network in self.networks.values_mut() {
            network.used.retain(|address, vm| *vm != id || !old.contains(address));
        }
        self.guest_changes += 1;
    }

    /// Creates a foreign vApp without VMs in the same org.
    pub fn admin_foreign_vapp(&mut self, vdc: VdcId, name: &str, description: &str) -> VappId {
        let id: VappId = self.fresh();
        let vapp = Vapp {
            vdc,
            owner: UserId(0),
            name: name.into(),
            description: description.into(),
            created: self.now,
            networks: Vec::new(),
            vms: Vec::new(),
            metadata: Metadata::new(),
            lease: Lease::default(),
            undeploy_at: None,
            delete_at: None,
            expired: false,
            creating: false,
            failed: false,
            deployed: false,
            faults: Faults::default(),
            task: None,
            last_task: None,
        };
        self.vapps.insert(id, vapp);
        id
    }

    /// Creates a foreign, running vApp with one VM from a template, with an address of `network`.
    pub fn admin_foreign_vm(
        &mut self,
        vdc: VdcId,
        name: &str,
        description: &str,
        template: TemplateId,
        network: NetworkId,
    ) -> Option<VappId> {
        let source = self.templates.get(&template)?.vms.first().copied()?;
        let network_name = self.networks.get(&network)?.name.clone();
        let who = *self.users.keys().next()?;
        let mut item = Item::new(source);
        item.name = Some(name.into());
        item.description = Some(description.into());
        item.nics = Some(vec![Nic {
            index: 0,
            network: Some(network_name.clone()),
            mode: IpMode::Pool,
            address: None,
            connected: true,
            adapter: "VMXNET3".into(),
        }]);
        let create = Create {
            name: name.into(),
            description: description.into(),
            networks: vec![VappNetwork { name: network_name, parent: Some(network), fence: Fence::Bridged }],
            items: vec![item],
            ..Create::default()
        };
        let (inject, limits) = (std::mem::take(&mut self.inject), self.settings.allow_duplicate_names);
        self.settings.allow_duplicate_names = true;
        let made = self.instantiate(who, vdc, template, create);
        self.settings.allow_duplicate_names = limits;
        self.inject = inject;
        made.ok().map(|(id, _)| id)
    }

    /// Revokes an API token: logins with it fail.
    pub fn admin_revoke_token(&mut self, token: &str) {
        self.tokens.remove(token);
    }

    /// Ends all sessions.
    pub fn admin_expire_bearers(&mut self) {
        self.bearers.clear();
    }
}
