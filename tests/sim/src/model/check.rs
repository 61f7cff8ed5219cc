//! What VCD checks before an operation: existence, rights, states, quotas, and impossible values.

use super::*;

/// The provider's org.
const PROVIDER: &str = "System";
/// Maximum length of a customization script, in characters.
const MAX_SCRIPT: usize = 49_000;
/// The shortest lease in seconds. 0 is "never".
const MIN_LEASE_S: u64 = 3600;

pub(super) fn task_error(refusal: Refusal) -> TaskError {
    TaskError { major: refusal.status, minor: refusal.minor, message: refusal.message }
}

/// An invalid computer name fails the task, not the request.
pub(super) fn computer_name(vm: &Vm) -> Result<(), TaskError> {
    let Some(name) = vm.guest.computer_name.as_deref().filter(|_| vm.guest.enabled) else { return Ok(()) };
    let max = if vm.is_windows() { 15 } else { 63 };
    let good = (1..=max).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !name.bytes().all(|b| b.is_ascii_digit());
    if good {
        return Ok(());
    }
    Err(TaskError {
        major: 500,
        minor: Cow::Borrowed("INTERNAL_SERVER_ERROR"),
        message: "VM name or computer name not valid or they do not match.".into(),
    })
}

pub(super) fn guest_section(guest: &GuestSection) -> Result<(), Refusal> {
    let refuse = |why: &str| Err(Refusal::bad(format!("Guest customization is not valid: {why}")));
    if guest.admin_password_auto && guest.admin_password.is_some() {
        return refuse("AdminPassword and AdminPasswordAuto exclude each other.");
    }
    match (guest.admin_auto_logon_enabled, guest.admin_auto_logon_count) {
        (true, 1..=100) | (false, 0) => {}
        _ => return refuse("AdminAutoLogonCount must be 1 to 100 with AdminAutoLogonEnabled, else 0."),
    }
    if guest.script.as_deref().is_some_and(|s| s.chars().count() > MAX_SCRIPT) {
        return refuse("CustomizationScript is longer than 49000 characters.");
    }
    Ok(())
}

pub(super) fn hardware(cpus: u32, cores: u32, memory_mb: u32) -> Result<(), Refusal> {
    if cpus == 0 || cores == 0 || !cpus.is_multiple_of(cores) {
        return Err(Refusal::bad(format!(
            "The number of virtual CPUs ({cpus}) must be a multiple of the number of cores per socket ({cores})."
        )));
    }
    if memory_mb == 0 || !memory_mb.is_multiple_of(4) {
        return Err(Refusal::bad(format!("The memory size ({memory_mb} MB) must be a multiple of 4 MB.")));
    }
    Ok(())
}

/// Reduces a lease to the maximum of the org; 0 is "never".
pub(super) fn lease(wanted: u64, (default, max): (u64, u64), given: bool) -> Result<u64, Refusal> {
    let wanted = if given { wanted } else { default };
    if wanted != 0 && wanted < MIN_LEASE_S {
        return Err(Refusal::bad(format!("A lease of {wanted} seconds is shorter than {MIN_LEASE_S} seconds.")));
    }
    Ok(match (wanted, max) {
        (w, 0) => w,
        (0, max) => max,
        (w, max) => w.min(max),
    })
}

impl Model {
    pub(super) fn org_of(&self, who: UserId) -> Option<OrgId> {
        self.users.get(&who).map(|u| u.org)
    }

    pub(super) fn need(&self, who: UserId, right: Right) -> Result<(), Refusal> {
        if self.users.get(&who).is_some_and(|u| u.rights.contains(&right)) {
            return Ok(());
        }
        let message =
            format!("Either you need some or all of the following rights [{}] to perform operations.", right.name());
        Err(Refusal::new(403, "ACCESS_TO_RESOURCE_IS_FORBIDDEN", message))
    }

    /// VCD's answer about an entity that does not exist, or no longer exists.
    pub fn gone<I: Id>(&self, id: I) -> Refusal {
        let entity = format!("com.vmware.vcloud.entity.{}:{}", I::ENTITY, self.uuid(id));
        if self.settings.gone_is_404 {
            return Refusal::new(404, "RESOURCE_NOT_FOUND", format!("No access to entity \"{entity}\"."));
        }
        let message = format!("The VMware Cloud Director entity {entity} does not exist.");
        Refusal::new(403, "ACCESS_TO_RESOURCE_IS_FORBIDDEN", message)
    }

    /// A vApp of the user's org.
    pub fn get_vapp(&self, who: UserId, id: VappId) -> Result<&Vapp, Refusal> {
        let found = self.vapps.get(&id).filter(|v| self.sees_vdc(who, v.vdc));
        found.ok_or_else(|| self.gone(id))
    }

    /// The same, for its own document.
    pub fn read_vapp(&self, who: UserId, id: VappId) -> Result<&Vapp, Refusal> {
        let found = self.get_vapp(who, id)?;
        if found.faults.unread { Err(internal_error()) } else { Ok(found) }
    }

    /// A VM of the user's org that VCD already shows.
    pub fn get_vm(&self, who: UserId, id: VmId) -> Result<&Vm, Refusal> {
        let found = self.vms.get(&id).filter(|vm| vm.shows_at <= self.now && self.get_vapp(who, vm.vapp).is_ok());
        found.ok_or_else(|| self.gone(id))
    }

    /// A task of the user's org.
    pub fn get_task(&self, who: UserId, id: TaskId) -> Result<&Task, Refusal> {
        let kept = |t: &&Task| t.end.is_none_or(|e| e.saturating_add(self.settings.task_kept) > self.now);
        let seen = |t: &&Task| Some(t.org) == self.org_of(who) || self.is_provider(who);
        let found = self.tasks.get(&id).filter(seen).filter(kept);
        let found = found.filter(|t| !self.faults_of(t.target).hides_tasks);
        found.ok_or_else(|| self.gone(id))
    }

    /// The faults of a vApp, or of a VM's vApp.
    pub(super) fn faults_of(&self, target: Target) -> Faults {
        let vapp = match target {
            Target::Vapp(id) => Some(id),
            Target::Vm(id) => self.vms.get(&id).map(|vm| vm.vapp),
        };
        vapp.and_then(|id| self.vapps.get(&id)).map(|vapp| vapp.faults).unwrap_or_default()
    }

    /// The faults that concern all changes, or only those that are no deletes.
    pub(super) fn check_faults(&self, target: Target, deletes: bool) -> Result<(), Refusal> {
        match self.faults_of(target) {
            Faults { breaks: true, .. } if !deletes => Err(internal_error()),
            Faults { unfound: true, .. } => {
                Err(Refusal::new(404, "RESOURCE_NOT_FOUND", "The entity could not be found."))
            }
            _ => Ok(()),
        }
    }

    /// A VDC of the user's org.
    pub fn get_vdc(&self, who: UserId, id: VdcId) -> Result<&Vdc, Refusal> {
        self.vdcs.get(&id).filter(|_| self.sees_vdc(who, id)).ok_or_else(|| self.gone(id))
    }

    /// The user's own org, by its id.
    pub fn get_org(&self, who: UserId, id: OrgId) -> Result<&Org, Refusal> {
        self.orgs.get(&id).filter(|_| self.org_of(who) == Some(id)).ok_or_else(|| self.gone(id))
    }

    /// A template in the user's org, or in a shared catalog of another org.
    pub fn get_template(&self, who: UserId, id: TemplateId) -> Result<&Template, Refusal> {
        let org = self.org_of(who);
        let found = self.templates.get(&id).filter(|t| {
            let catalog = self.catalogs.get(&t.catalog);
            catalog.is_some_and(|catalog| catalog.shared || Some(catalog.org) == org) || self.is_provider(who)
        });
        found.ok_or_else(|| self.gone(id))
    }

    /// Rejects a template from which VMs cannot be created now.
    pub(super) fn check_template(&self, who: UserId, id: TemplateId) -> Result<(), Refusal> {
        let template = self.get_template(who, id)?;
        let entity = format!("com.vmware.vcloud.entity.{}:{}", TemplateId::ENTITY, self.uuid(id));
        match template.state {
            TemplateState::Copying => {
                let message = format!("The entity Ref: {entity} is busy completing an operation VDC_COPY_TEMPLATE.");
                Err(Refusal::new(400, "BUSY_ENTITY", message))
            }
            TemplateState::Unresolved => {
                Err(Refusal::bad(format!("The vApp template \"{}\" is not resolved.", template.name)))
            }
            TemplateState::Ready if template.expired => {
                Err(Refusal::bad(format!("The vApp template \"{}\" has expired.", template.name)))
            }
            TemplateState::Ready => Ok(()),
        }
    }

    /// True for a user of the provider, who sees all orgs.
    pub fn is_provider(&self, who: UserId) -> bool {
        self.org_of(who).and_then(|o| self.orgs.get(&o)).is_some_and(|o| &*o.name == PROVIDER)
    }

    /// True if a VDC is in the user's org.
    pub fn sees_vdc(&self, who: UserId, vdc: VdcId) -> bool {
        self.vdcs.get(&vdc).is_some_and(|v| self.org_of(who) == Some(v.org)) || self.is_provider(who)
    }

    /// A vApp is busy if a task works on it or on any of its VMs. A VM is busy if a task works on it or on its vApp.
    pub(super) fn holder(&self, target: Target) -> Option<(Target, TaskId)> {
        let vm_task = |id: &VmId| self.vms.get(id).and_then(|vm| vm.task).map(|t| (Target::Vm(*id), t));
        let vapp_task = |id: VappId| self.vapps.get(&id).and_then(|v| v.task).map(|t| (Target::Vapp(id), t));
        match target {
            Target::Vapp(id) => {
                vapp_task(id).or_else(|| self.vapps.get(&id).and_then(|v| v.vms.iter().find_map(vm_task)))
            }
            Target::Vm(id) => vm_task(&id).or_else(|| self.vms.get(&id).and_then(|vm| vapp_task(vm.vapp))),
        }
    }

    /// True while a task locks it.
    pub fn is_busy(&self, target: Target) -> bool {
        self.holder(target).is_some()
    }

    pub(super) fn check_free(&self, target: Target) -> Result<(), Refusal> {
        let Some((held, task)) = self.holder(target) else { return Ok(()) };
        let entity = match held {
            Target::Vapp(id) => format!("vapp:{}", self.uuid(id)),
            Target::Vm(id) => format!("vm:{}", self.uuid(id)),
        };
        let operation = self.tasks.get(&task).map_or("UNKNOWN", |t| t.operation.busy_name());
        if self.settings.wording.busy_names_a_task {
            return Err(Refusal::bad(format!(
                "Unable to perform this action. Contact your cloud administrator. \
                 {operation}(com.vmware.vcloud.entity.task:{})",
                self.uuid(task)
            )));
        }
        Err(Refusal::new(
            400,
            "BUSY_ENTITY",
            format!(
                "The entity Ref: com.vmware.vcloud.entity.{entity} is busy completing an operation {operation}. \
                 {operation}(com.vmware.vcloud.entity.task:{})",
                self.uuid(task)
            ),
        ))
    }

    pub(super) fn check_lock(&self, id: VappId) -> Result<(), Refusal> {
        let Some(vapp) = self.vapps.get(&id).filter(|vapp| vapp.faults.locked) else { return Ok(()) };
        let message = format!("The vApp \"{}\" is locked and cannot be deleted.", vapp.name);
        Err(Refusal::new(403, "ACCESS_TO_RESOURCE_IS_FORBIDDEN", message))
    }

    /// The org's limit for concurrent operations.
    pub(super) fn check_limit(&self, who: UserId) -> Result<(), Refusal> {
        let Some(org) = self.org_of(who).and_then(|o| self.orgs.get(&o)) else { return Ok(()) };
        if org.max_running.is_none_or(|max| self.running_tasks() < max) {
            return Ok(());
        }
        let message = format!(
            "The maximum number of simultaneous operations for organization \"{}\" has been reached.",
            org.name
        );
        Err(Refusal::new(503, "OPERATION_LIMIT_EXCEEDED", message))
    }

    /// Number of running tasks.
    pub fn running_tasks(&self) -> u32 {
        u32::try_from(self.running.len()).unwrap_or(u32::MAX)
    }

    /// The running tasks.
    pub fn tasks_running(&self) -> impl Iterator<Item = &Task> + '_ {
        self.running.iter().filter_map(|id| self.tasks.get(id))
    }

    pub(super) fn check_name(&self, vdc: VdcId, name: &str) -> Result<(), Refusal> {
        if name.is_empty() || name.len() > 128 {
            return Err(Refusal::bad("The name must have 1 to 128 characters."));
        }
        if !self.settings.allow_duplicate_names && self.vapps.values().any(|v| v.vdc == vdc && *v.name == *name) {
            if self.settings.wording.duplicate_is_a_vm {
                return Err(Refusal::bad(format!("There is already a VM named \"{name}\".")));
            }
            return Err(Refusal::new(400, "DUPLICATE_NAME", format!("The VCD entity {name} already exists.")));
        }
        Ok(())
    }

    /// Megabytes that a storage profile's VMs use: their disks, and the memory of suspended VMs.
    pub fn storage_used(&self, profile: ProfileId) -> u64 {
        let memory = |vm: &Vm| if vm.power == Power::Suspended { u64::from(vm.memory_mb) } else { 0 };
        let of = |vm: &Vm| vm.disks.iter().map(|d| d.mb).sum::<u64>() + memory(vm);
        self.vms.values().filter(|v| v.profile == profile).map(of).sum()
    }

    pub(super) fn check_storage(&self, id: ProfileId, more_mb: u64) -> Result<(), Refusal> {
        let Some(profile) = self.profiles.get(&id) else { return Err(self.gone(id)) };
        let used = self.storage_used(id);
        if profile.limit_mb == 0 || used.saturating_add(more_mb) <= profile.limit_mb {
            return Ok(());
        }
        Err(Refusal::bad(format!(
            "The requested operation will exceed the VDC's storage quota: storage policy \"{}\" has {} MB remaining, \
             requested {more_mb} MB.",
            profile.name,
            profile.limit_mb.saturating_sub(used)
        )))
    }

    pub(super) fn check_vm_quota(&self, vdc: VdcId, more: usize) -> Result<(), Refusal> {
        let Some(limit) = self.vdcs.get(&vdc).and_then(|v| v.vm_limit) else { return Ok(()) };
        let have = self.vms.values().filter(|vm| self.vapps.get(&vm.vapp).is_some_and(|v| v.vdc == vdc)).count();
        if have + more <= limit as usize {
            return Ok(());
        }
        Err(Refusal::bad(format!(
            "The requested operation will exceed the VDC's VM quota: {have} of {limit} VMs exist."
        )))
    }

    /// Memory of powered-on VMs in a VDC, in MB.
    pub fn memory_used(&self, vdc: VdcId) -> u64 {
        let here = |vm: &&Vm| self.vapps.get(&vm.vapp).is_some_and(|v| v.vdc == vdc);
        self.vms.values().filter(|vm| vm.power == Power::On).filter(here).map(|vm| u64::from(vm.memory_mb)).sum()
    }

    /// Checks the CPU and memory limits of the VDC for VMs that power on.
    pub(super) fn check_compute(&self, starting: &[VmId]) -> Result<(), TaskError> {
        let Some(first) = starting.first().and_then(|v| self.vms.get(v)) else { return Ok(()) };
        let Some(vdc_id) = self.vapps.get(&first.vapp).map(|v| v.vdc) else { return Ok(()) };
        let Some(vdc) = self.vdcs.get(&vdc_id) else { return Ok(()) };
        if vdc.cpu_limit.is_none() && vdc.memory_limit_mb.is_none() {
            return Ok(());
        }
        let (mut cpus, mut memory) = (0u64, 0u64);
        for (id, vm) in &self.vms {
            let counts = vm.power == Power::On || starting.contains(id);
            if counts && self.vapps.get(&vm.vapp).is_some_and(|v| v.vdc == vdc_id) {
                cpus += u64::from(vm.cpus);
                memory += u64::from(vm.memory_mb);
            }
        }
        let over = |what: &str| {
            let message = format!("The requested operation will exceed the VDC's {what} quota.");
            Err(TaskError { major: 400, minor: Cow::Borrowed("BAD_REQUEST"), message })
        };
        if vdc.cpu_limit.is_some_and(|l| cpus > u64::from(l)) {
            return over("CPU");
        }
        if vdc.memory_limit_mb.is_some_and(|l| memory > l) {
            return over("memory");
        }
        Ok(())
    }
}

fn internal_error() -> Refusal {
    Refusal::new(500, "INTERNAL_SERVER_ERROR", "An unexpected error occurred.")
}
