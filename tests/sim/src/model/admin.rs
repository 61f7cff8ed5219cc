//! What an administrator does behind the client's back. Never refused for rights or because something is busy.

use super::*;

impl Model {
    /// The vApps of this name.
    pub fn vapps_named(&self, name: &str) -> Vec<VappId> {
        self.vapps.iter().filter(|(_, v)| *v.name == *name).map(|(id, _)| *id).collect()
    }

    /// Removes a vApp at once; its tasks end in error.
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
            let error = (status == TaskStatus::Error).then(|| TaskError {
                major: 500,
                minor: Cow::Borrowed("INTERNAL_SERVER_ERROR"),
                message: "Unable to perform this action. Contact your cloud administrator.".into(),
            });
            self.end_early(task, status, error);
        }
    }

    /// Renames a vApp.
    pub fn admin_rename_vapp(&mut self, id: VappId, name: &str) {
        if let Some(vapp) = self.vapps.get_mut(&id) {
            vapp.name = name.into();
        }
    }

    /// Powers all VMs of a vApp off (or suspends them) at once; they stay deployed.
    pub fn admin_power(&mut self, id: VappId, power: Power) {
        for vm in self.vms_of(Target::Vapp(id)) {
            self.stop(vm, power, true);
        }
    }

    /// Makes a vApp without VMs that belongs to somebody else of the same org.
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
            task: None,
            last_task: None,
        };
        self.vapps.insert(id, vapp);
        id
    }

    /// Makes a running vApp with one VM of a template, with an address of `network`, that belongs to somebody else.
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

    /// Revokes an API token: no new bearers by it.
    pub fn admin_revoke_token(&mut self, token: &str) {
        self.tokens.remove(token);
    }

    /// Ends all sessions.
    pub fn admin_expire_bearers(&mut self) {
        self.bearers.clear();
    }
}
