//! The operations that change something. Each one is a method that is rejected or starts a task.

use super::engine::Work;
use super::*;

/// A new vApp, for [`Model::instantiate`] and [`Model::compose`].
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is named for what it holds")]
pub struct Create {
    pub name: Arc<str>,
    pub description: Arc<str>,
    pub networks: Vec<VappNetwork>,
    /// `None`: the org's default.
    pub lease: Option<Lease>,
    pub items: Vec<Item>,
    pub deploy: bool,
    pub power_on: bool,
}

impl Default for Create {
    fn default() -> Self {
        Self {
            name: "".into(),
            description: "".into(),
            networks: Vec::new(),
            lease: None,
            items: Vec::new(),
            deploy: true,
            power_on: true,
        }
    }
}

/// One VM to create from a template's VM (`SourcedItem`). For `None`, the template's value is used.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is named for what it holds")]
pub struct Item {
    pub source: TemplateVmId,
    pub name: Option<Arc<str>>,
    pub description: Option<Arc<str>>,
    pub needs_customization: bool,
    pub nics: Option<Vec<Nic>>,
    pub primary_nic: u32,
    /// `NetworkAssignment`: the template's network, and the network of the vApp that replaces it.
    pub assignments: Vec<(Arc<str>, Arc<str>)>,
    pub hardware: Hardware,
    pub guest: Option<GuestSection>,
    pub properties: Properties,
    pub profile: Option<ProfileId>,
    pub policy: Option<PolicyId>,
    pub placement: Option<PolicyId>,
    pub cpu_hot_add: bool,
    pub memory_hot_add: bool,
}

impl Item {
    /// A plain copy of a template's VM.
    pub fn new(source: TemplateVmId) -> Self {
        Self {
            source,
            name: None,
            description: None,
            needs_customization: false,
            nics: None,
            primary_nic: 0,
            assignments: Vec::new(),
            hardware: Hardware::default(),
            guest: None,
            properties: Vec::new(),
            profile: None,
            policy: None,
            placement: None,
            cpu_hot_add: false,
            memory_hot_add: false,
        }
    }
}

/// Requested hardware; `None`: unchanged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is named for what it holds")]
pub struct Hardware {
    pub cpus: Option<u32>,
    pub cores_per_socket: Option<u32>,
    pub memory_mb: Option<u32>,
    /// By InstanceID.
    pub disks: DiskChange,
}

/// Changes of a VM's disks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DiskChange {
    /// No change.
    #[default]
    Keep,
    /// The named disks get this size, the others stay (a hardware section).
    Resize(Vec<Disk>),
    /// The complete list of disks: VCD deletes the others (a `DiskSection`).
    Replace(Vec<Disk>),
}

/// Changes of a vApp; `None`: unchanged.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs, reason = "each is named for what it holds")]
pub struct VappChange {
    pub name: Option<Arc<str>>,
    pub description: Option<Arc<str>>,
    pub networks: Option<Vec<VappNetwork>>,
    pub lease: Option<Lease>,
}

/// Changes of a VM; `None`: unchanged.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs, reason = "each is named for what it holds")]
pub struct VmChange {
    pub name: Option<Arc<str>>,
    pub description: Option<Arc<str>>,
    pub hardware: Hardware,
    pub nics: Option<(u32, Vec<Nic>)>,
    pub guest: Option<GuestSection>,
    pub properties: Option<Properties>,
    pub profile: Option<ProfileId>,
    pub policy: Option<PolicyId>,
    pub tpm: Option<bool>,
    pub hot_add: Option<(bool, bool)>,
}

/// Changes of a vApp's VMs and sections.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs, reason = "each is named for what it holds")]
pub struct Recompose {
    pub change: VappChange,
    pub add: Vec<Item>,
    pub remove: Vec<VmId>,
    pub power_on: bool,
}

/// Power operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "VCD's own words")]
pub enum PowerAction {
    On,
    Off,
    Shutdown,
    Reset,
    Reboot,
    Suspend,
}

/// `UndeployPowerAction`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "VCD's own words")]
pub enum UndeployAction {
    PowerOff,
    Suspend,
    Shutdown,
    Force,
}

/// The entity with the metadata.
pub type MetadataTarget = Target;
/// A key, and its type (`MetadataStringValue` and others) and value. `None` deletes the key.
pub type MetadataEntry = (Arc<str>, Option<(Cow<'static, str>, Arc<str>)>);

/// Maximum length of a metadata key.
const MAX_METADATA_KEY: usize = 256;

impl Model {
    /// `instantiateVAppTemplate`: a vApp with all VMs of a template. VMs without an item are plain copies.
    pub fn instantiate(
        &mut self,
        who: UserId,
        vdc: VdcId,
        template: TemplateId,
        mut create: Create,
    ) -> Result<(VappId, TaskId), Refusal> {
        let vms = self.get_template(who, template)?.vms.clone();
        if let Some(item) = create.items.iter().find(|i| !vms.contains(&i.source)) {
            return Err(self.gone(item.source));
        }
        for vm in vms {
            if !create.items.iter().any(|i| i.source == vm) {
                create.items.push(Item::new(vm));
            }
        }
        self.create(who, vdc, create, Operation::Instantiate)
    }

    /// `composeVApp`: a vApp with VMs from single VMs of templates, or without VMs.
    pub fn compose(&mut self, who: UserId, vdc: VdcId, create: Create) -> Result<(VappId, TaskId), Refusal> {
        self.create(who, vdc, create, Operation::Compose)
    }

    fn create(
        &mut self,
        who: UserId,
        vdc: VdcId,
        create: Create,
        operation: Operation,
    ) -> Result<(VappId, TaskId), Refusal> {
        self.need(who, Right::Create)?;
        if !self.get_vdc(who, vdc)?.enabled {
            return Err(Refusal::bad("The VDC is not enabled."));
        }
        self.check_name(vdc, &create.name)?;
        self.check_networks(who, vdc, &create.networks)?;
        let rules = self.org_of(who).and_then(|o| self.orgs.get(&o)).map(|o| o.leases.clone()).unwrap_or_default();
        let lease = self.cut_lease(&rules, create.lease)?;
        let id: VappId = self.fresh();
        let vms = self.plan_vms(who, vdc, id, &create.networks, &create.items, &create.name)?;
        self.check_limit(who)?;

        let copy = match operation {
            _ if vms.is_empty() => self.durations.compose_empty,
            Operation::Instantiate => self.durations.instantiate,
            _ => self.durations.compose,
        };
        let power_on = create.power_on && create.deploy && !vms.is_empty();
        let ids = self.insert_vms(vms);
        let vapp = Vapp {
            vdc,
            owner: who,
            name: create.name,
            description: create.description,
            created: self.now,
            networks: create.networks,
            vms: ids,
            metadata: Metadata::new(),
            lease,
            undeploy_at: None,
            delete_at: None,
            expired: false,
            creating: true,
            failed: false,
            deployed: false,
            faults: Faults::default(),
            task: None,
            last_task: None,
        };
        self.vapps.insert(id, vapp);
        let task = self.begin(who, operation, Target::Vapp(id), Work::Create { copy, power_on });
        Ok((id, task))
    }

    fn insert_vms(&mut self, vms: Vec<Vm>) -> Vec<VmId> {
        let mut ids = Vec::with_capacity(vms.len());
        let guest_fault = self.inject.guest;
        for mut vm in vms {
            let id: VmId = self.fresh();
            vm.guest_fault = guest_fault;
            self.vms.insert(id, vm);
            ids.push(id);
        }
        ids
    }

    fn check_networks(&self, who: UserId, vdc: VdcId, networks: &[VappNetwork]) -> Result<(), Refusal> {
        for network in networks {
            let Some(parent) = network.parent else {
                if network.fence == Fence::Isolated {
                    continue;
                }
                return Err(Refusal::bad(format!("Network \"{}\" has no parent network.", network.name)));
            };
            let seen = |n: &&Network| self.sees_vdc(who, n.vdc) && (n.vdc == vdc || n.reach != Reach::Vdc);
            let found = self.networks.get(&parent).filter(seen);
            let Some(found) = found else { return Err(self.gone(parent)) };
            if network.fence == Fence::Bridged && found.name != network.name {
                let message = format!(
                    "The bridged network \"{}\" must have the name of its parent network \"{}\".",
                    network.name, found.name
                );
                return Err(Refusal::bad(message));
            }
        }
        Ok(())
    }

    fn cut_lease(&self, rules: &LeaseRules, lease: Option<Lease>) -> Result<Lease, Refusal> {
        let wanted = lease.unwrap_or_default();
        Ok(Lease {
            deployment_s: check::lease(wanted.deployment_s, rules.deployment_s, lease.is_some())?,
            storage_s: check::lease(wanted.storage_s, rules.storage_s, lease.is_some())?,
        })
    }

    /// Checks items and converts them into VMs as they will be after the copy.
    fn plan_vms(
        &mut self,
        who: UserId,
        vdc: VdcId,
        vapp: VappId,
        networks: &[VappNetwork],
        items: &[Item],
        vapp_name: &str,
    ) -> Result<Vec<Vm>, Refusal> {
        let mut vms: Vec<Vm> = Vec::with_capacity(items.len());
        let mut wanted: BTreeMap<ProfileId, u64> = BTreeMap::new();
        for item in items {
            let Some(source) = self.template_vms.get(&item.source).cloned() else {
                return Err(self.gone(item.source));
            };
            self.check_template(who, source.template)?;
            let name = item.name.clone().unwrap_or_else(|| source.name.clone());
            if name.is_empty() || vms.iter().any(|v| v.name == name) {
                let message = format!("There is already a VM named \"{name}\" in vApp \"{vapp_name}\".");
                return Err(Refusal::new(400, "DUPLICATE_NAME", message));
            }
            let profile = self.pick_profile(vdc, item.profile)?;
            let hardware = self.create_hardware(item)?;
            // Without a section, the template's own section applies.
            let mut guest =
                item.guest.clone().unwrap_or_else(|| GuestSection { enabled: true, ..GuestSection::default() });
            check::guest_section(&guest)?;
            self.fill_password(&mut guest);
            let properties = self.create_properties(item)?;
            let (nics, missing_network) = self.create_nics(item, &source, &name, networks)?;
            let mut vm = Vm {
                vapp,
                name,
                description: item.description.clone().unwrap_or_else(|| "".into()),
                created: self.now,
                shows_at: self.now.saturating_add(self.durations.vm_shows),
                guest_os: source.guest_os,
                os_type: source.os_type,
                cpus: source.cpus,
                cores_per_socket: source.cores_per_socket,
                memory_mb: source.memory_mb,
                disks: source.disks,
                nics,
                primary_nic: item.primary_nic,
                profile,
                policy: item.policy,
                placement: item.placement,
                guest,
                needs_customization: item.needs_customization,
                cpu_hot_add: item.cpu_hot_add,
                memory_hot_add: item.memory_hot_add,
                tpm: source.tpm,
                passthrough: source.passthrough,
                scripts: source.scripts,
                missing_network,
                linked: false,
                metadata: Metadata::new(),
                properties,
                power: Power::Unresolved,
                deployed: false,
                gc: GcStatus::Pending,
                applied: None,
                ssh: false,
                guest_fault: None,
                host_down: false,
                suspended_at: None,
                lease_over: false,
                address_hidden: false,
                boot: 0,
                task: None,
                last_task: None,
            };
            let resized = hardware.disks != DiskChange::Keep;
            // With a size in the create, VCD copies the disk completely.
            self.change_hardware(&mut vm, &hardware)?;
            vm.linked = !resized && self.vdcs.get(&vdc).is_some_and(|v| v.fast_provisioning);
            self.apply_policy(&mut vm)?;
            *wanted.entry(profile).or_default() += vm.disks.iter().map(|d| d.mb).sum::<u64>();
            vms.push(vm);
        }
        self.check_vm_quota(vdc, vms.len())?;
        if !self.settings.storage_quota_in_task {
            for (profile, mb) in wanted {
                self.check_storage(profile, mb)?;
            }
        }
        Ok(vms)
    }

    fn pick_profile(&self, vdc: VdcId, wanted: Option<ProfileId>) -> Result<ProfileId, Refusal> {
        if let Some(id) = wanted {
            return match self.profiles.get(&id) {
                Some(p) if p.vdc == vdc && p.enabled => Ok(id),
                Some(p) if p.vdc == vdc => {
                    Err(Refusal::bad(format!("The storage policy \"{}\" is not enabled.", p.name)))
                }
                _ => Err(self.gone(id)),
            };
        }
        let default = self.profiles.iter().find(|(_, p)| p.vdc == vdc && p.default);
        default.map(|(id, _)| *id).ok_or_else(|| Refusal::bad("The VDC has no default storage policy."))
    }

    fn create_hardware(&self, item: &Item) -> Result<Hardware, Refusal> {
        let asks = item.hardware != Hardware::default();
        match self.settings.hardware_in_create {
            HardwareInCreate::Refuse if asks => {
                Err(Refusal::bad("Unexpected section VirtualHardwareSection in InstantiationParams."))
            }
            HardwareInCreate::Ignore => Ok(Hardware::default()),
            _ => Ok(item.hardware.clone()),
        }
    }

    fn create_properties(&self, item: &Item) -> Result<Properties, Refusal> {
        match self.settings.properties_in_create {
            HardwareInCreate::Refuse if !item.properties.is_empty() => {
                Err(Refusal::bad("Unexpected section ProductSection in InstantiationParams."))
            }
            HardwareInCreate::Ignore => Ok(Vec::new()),
            _ => Ok(item.properties.clone()),
        }
    }

    /// The NICs of a new VM, and a network of the template that the vApp does not have: the task will fail because of
    /// it.
    fn create_nics(
        &self,
        item: &Item,
        source: &TemplateVm,
        vm: &str,
        networks: &[VappNetwork],
    ) -> Result<(Vec<Nic>, Option<Arc<str>>), Refusal> {
        let no_network = |name: &str| Refusal::bad(format!("The VCD entity network \"{name}\" does not exist."));
        for (inner, container) in &item.assignments {
            if &**inner == "none" || !networks.iter().any(|n| n.name == *container) {
                return Err(no_network(if &**inner == "none" { inner } else { container }));
            }
        }
        let mut nics = item.nics.clone().unwrap_or_else(|| source.nics.clone());
        if item.nics.is_some() {
            self.check_nics(vm, &nics, networks)?;
        }
        let assigned = |name: &Arc<str>| item.assignments.iter().find(|(inner, _)| inner == name).map(|(_, to)| to);
        let mut missing = None;
        for own in &source.nics {
            let Some(name) = &own.network else { continue };
            let nic = nics.iter_mut().find(|nic| nic.index == own.index);
            let follows = networks.iter().any(|n| n.name == *name);
            match (assigned(name), self.settings.own_network_in_create, nic) {
                (Some(to), _, Some(nic)) if item.nics.is_none() => nic.network = Some(to.clone()),
                (Some(_), ..) => {}
                (None, _, Some(nic)) if follows && nic.network.as_ref() == Some(name) => {}
                (None, _, None) if follows => {}
                (None, OwnNetworkInCreate::Refuse, _) => missing = Some(name.clone()),
                (None, OwnNetworkInCreate::Ignore, Some(nic)) => nic.network = Some(name.clone()),
                (None, OwnNetworkInCreate::Ignore, None) => {}
            }
        }
        Ok((nics, missing))
    }

    fn fill_password(&mut self, guest: &mut GuestSection) {
        // No error.
        guest.admin_password_enabled &= guest.admin_password_auto || guest.admin_password.is_some();
        if guest.admin_password_enabled && guest.admin_password_auto {
            guest.admin_password = Some(format!("Auto-{:012x}", self.rng.bits() & 0xffff_ffff_ffff).into());
        }
    }

    fn check_nics(&self, vm: &str, nics: &[Nic], networks: &[VappNetwork]) -> Result<(), Refusal> {
        for nic in nics {
            let Some(name) = &nic.network else {
                if nic.mode == IpMode::None {
                    continue;
                }
                let message = format!("NIC {} of VM \"{vm}\" has no network, so its mode must be NONE.", nic.index);
                return Err(Refusal::bad(message));
            };
            let Some(network) = networks.iter().find(|n| n.name == *name) else {
                let message = format!("NIC {} of VM \"{vm}\" names an unknown network \"{name}\".", nic.index);
                return Err(Refusal::bad(message));
            };
            let Some(parent) = network.parent.and_then(|p| self.networks.get(&p)) else { continue };
            if nic.mode == IpMode::Manual {
                let mask = u32::from(parent.netmask);
                let inside = nic.address.is_some_and(|a| u32::from(a) & mask == u32::from(parent.gateway) & mask);
                if !inside || nic.address.is_some_and(|a| parent.used.contains_key(&a)) {
                    let message = format!("The address of NIC {} of VM \"{vm}\" is not usable.", nic.index);
                    return Err(Refusal::bad(message));
                }
            }
        }
        Ok(())
    }

    /// Applies requested hardware to a VM, or returns what is wrong with it.
    fn change_hardware(&self, vm: &mut Vm, wish: &Hardware) -> Result<(), Refusal> {
        let cpus = wish.cpus.unwrap_or(vm.cpus);
        let cores = wish.cores_per_socket.unwrap_or(if wish.cpus.is_some() { 1 } else { vm.cores_per_socket });
        let memory = wish.memory_mb.unwrap_or(vm.memory_mb);
        if (cpus, cores, memory) != (vm.cpus, vm.cores_per_socket, vm.memory_mb) {
            check::hardware(cpus, cores, memory)?;
            let hot = (cpus == vm.cpus || (vm.cpu_hot_add && cpus > vm.cpus && cores == vm.cores_per_socket))
                && (memory == vm.memory_mb || (vm.memory_hot_add && memory > vm.memory_mb));
            if vm.power == Power::On && !hot {
                return Err(Refusal::bad(format!(
                    "The requested operation could not be executed on VM \"{}\": CPU and memory of a running VM can only \
                     grow, and only with hot add.",
                    vm.name
                )));
            }
        }
        (vm.cpus, vm.cores_per_socket, vm.memory_mb) = (cpus, cores, memory);
        let (named, all) = match &wish.disks {
            DiskChange::Keep => return Ok(()),
            DiskChange::Resize(disks) => (disks, false),
            DiskChange::Replace(disks) => (disks, true),
        };
        for disk in named {
            match vm.disks.iter_mut().find(|d| d.id == disk.id) {
                Some(have) if disk.mb < have.mb => {
                    let message = format!(
                        "The size of disk {} of VM \"{}\" cannot be reduced from {} MB to {} MB.",
                        disk.id, vm.name, have.mb, disk.mb
                    );
                    return Err(Refusal::bad(message));
                }
                Some(have) => have.mb = disk.mb,
                None => vm.disks.push(disk.clone()),
            }
        }
        if all {
            vm.disks.retain(|d| named.iter().any(|n| n.id == d.id));
        }
        Ok(())
    }

    fn apply_policy(&self, vm: &mut Vm) -> Result<(), Refusal> {
        let Some(id) = vm.policy else { return Ok(()) };
        let Some(policy) = self.policies.get(&id) else { return Err(self.gone(id)) };
        vm.cpus = policy.cpus.unwrap_or(vm.cpus);
        vm.cores_per_socket = policy.cores_per_socket.unwrap_or(vm.cores_per_socket);
        vm.memory_mb = policy.memory_mb.unwrap_or(vm.memory_mb);
        check::hardware(vm.cpus, vm.cores_per_socket, vm.memory_mb)
    }

    /// `recomposeVApp`: adds and deletes VMs, changes name, description, networks, lease.
    pub fn recompose(&mut self, who: UserId, id: VappId, recompose: Recompose) -> Result<TaskId, Refusal> {
        self.need(who, Right::Edit)?;
        let target = Target::Vapp(id);
        let vapp = self.get_vapp(who, id)?.clone();
        self.check_free(target)?;
        let mut recompose = recompose;
        self.check_vapp_change(who, &vapp, &mut recompose.change)?;
        for vm in &recompose.remove {
            if !vapp.vms.contains(vm) {
                return Err(self.gone(*vm));
            }
            self.check_stopped(Target::Vm(*vm))?;
        }
        let networks = recompose.change.networks.as_ref().unwrap_or(&vapp.networks).clone();
        let taken = |name: &str| vapp.vms.iter().any(|v| self.vms.get(v).is_some_and(|v| *v.name == *name));
        if let Some(name) = recompose.add.iter().filter_map(|i| i.name.as_deref()).find(|n| taken(n)) {
            let message = format!("There is already a VM named \"{name}\" in vApp \"{}\".", vapp.name);
            return Err(Refusal::new(400, "DUPLICATE_NAME", message));
        }
        let vms = self.plan_vms(who, vapp.vdc, id, &networks, &recompose.add, &vapp.name)?;
        self.check_limit(who)?;
        let add = self.insert_vms(vms);
        if let Some(vapp) = self.vapps.get_mut(&id) {
            vapp.vms.extend(&add);
        }
        let power_on = recompose.power_on && !add.is_empty();
        let work = Work::Recompose { add, remove: recompose.remove, change: recompose.change, power_on };
        Ok(self.begin(who, Operation::Recompose, target, work))
    }

    fn check_vapp_change(&self, who: UserId, vapp: &Vapp, change: &mut VappChange) -> Result<(), Refusal> {
        change.name = change.name.take().filter(|n| *n != vapp.name);
        if let Some(name) = &change.name {
            self.check_name(vapp.vdc, name)?;
        }
        if let Some(networks) = &change.networks {
            self.check_networks(who, vapp.vdc, networks)?;
        }
        if let Some(lease) = change.lease {
            let rules = self.org_of(who).and_then(|o| self.orgs.get(&o)).map(|o| o.leases.clone()).unwrap_or_default();
            change.lease = Some(self.cut_lease(&rules, Some(lease))?);
        }
        Ok(())
    }

    /// `PUT` of a vApp or of its sections.
    pub fn update_vapp(&mut self, who: UserId, id: VappId, mut change: VappChange) -> Result<TaskId, Refusal> {
        self.need(who, Right::Edit)?;
        let vapp = self.get_vapp(who, id)?.clone();
        self.check_free(Target::Vapp(id))?;
        self.check_vapp_change(who, &vapp, &mut change)?;
        self.check_limit(who)?;
        Ok(self.begin(who, Operation::UpdateVapp, Target::Vapp(id), Work::Vapp(Box::new(change))))
    }

    /// `reconfigureVm`, and `PUT` of a VM or of its sections.
    pub fn update_vm(&mut self, who: UserId, id: VmId, mut change: VmChange) -> Result<TaskId, Refusal> {
        self.need(who, Right::Edit)?;
        let vm = self.get_vm(who, id)?.clone();
        self.check_faults(Target::Vm(id), false)?;
        self.check_free(Target::Vm(id))?;
        if let Some(guest) = &mut change.guest {
            check::guest_section(guest)?;
            self.fill_password(guest);
        }
        if let Some((_, nics)) = &change.nics {
            let networks = self.vapps.get(&vm.vapp).map(|v| v.networks.clone()).unwrap_or_default();
            let known = |n: &&Nic| vm.nics.iter().any(|old| old.address == n.address && n.address.is_some());
            let new: Vec<Nic> = nics.iter().filter(|n| !known(n)).cloned().collect();
            self.check_nics(&vm.name, &new, &networks)?;
        }
        if change.tpm.is_some() && vm.power != Power::Off {
            return Err(self.wrong_state(Target::Vm(id), "Power it off and try again."));
        }
        let mut trial = vm.clone();
        trial.policy = change.policy.or(vm.policy);
        self.change_hardware(&mut trial, &change.hardware)?;
        if change.policy.is_some() {
            self.apply_policy(&mut trial)?;
        }
        if let Some(profile) = change.profile {
            let vdc = self.vapps.get(&vm.vapp).map_or(VdcId(0), |v| v.vdc);
            self.pick_profile(vdc, Some(profile))?;
        }
        let size = |vm: &Vm| vm.disks.iter().map(|d| d.mb).sum::<u64>();
        let more = size(&trial).saturating_sub(size(&vm));
        if more > 0 {
            self.check_storage(change.profile.unwrap_or(vm.profile), more)?;
        }
        self.check_limit(who)?;
        Ok(self.begin(who, Operation::UpdateVm, Target::Vm(id), Work::Vm(Box::new(change))))
    }

    pub(super) fn change_vapp_now(&mut self, target: Target, change: &VappChange) {
        let Target::Vapp(id) = target else { return };
        let Some(vapp) = self.vapps.get_mut(&id) else { return };
        if let Some(name) = &change.name {
            vapp.name = name.clone();
        }
        if let Some(description) = &change.description {
            vapp.description = description.clone();
        }
        if let Some(networks) = &change.networks {
            vapp.networks = networks.clone();
        }
        if let Some(lease) = change.lease {
            vapp.lease = lease;
            (vapp.undeploy_at, vapp.delete_at, vapp.expired) = (None, None, false);
        }
        self.settle(id);
    }

    pub(super) fn change_vm_now(&mut self, id: VmId, change: &VmChange) -> Result<(), TaskError> {
        let Some(mut vm) = self.vms.get(&id).cloned() else { return Ok(()) };
        if vm.linked && change.hardware.disks != DiskChange::Keep {
            return Err(TaskError {
                major: 500,
                minor: Cow::Borrowed("INTERNAL_SERVER_ERROR"),
                message: "Disks with parents cannot be expanded.".into(),
            });
        }
        self.change_hardware(&mut vm, &change.hardware).map_err(check::task_error)?;
        vm.name = change.name.clone().unwrap_or(vm.name);
        vm.description = change.description.clone().unwrap_or(vm.description);
        vm.profile = change.profile.unwrap_or(vm.profile);
        vm.properties = change.properties.clone().unwrap_or(vm.properties);
        vm.tpm = change.tpm.unwrap_or(vm.tpm);
        (vm.cpu_hot_add, vm.memory_hot_add) = change.hot_add.unwrap_or((vm.cpu_hot_add, vm.memory_hot_add));
        if change.policy.is_some() {
            vm.policy = change.policy;
            self.apply_policy(&mut vm).map_err(check::task_error)?;
        }
        if let Some(guest) = &change.guest {
            // If it is enabled before it ever ran, it runs at the next power on.
            vm.needs_customization |= guest.enabled && vm.applied.is_none();
            vm.guest = guest.clone();
        }
        check::computer_name(&vm)?;
        let nics = change.nics.clone();
        self.vms.insert(id, vm);
        if let Some((primary, nics)) = nics {
            self.replace_nics(id, primary, nics)?;
        }
        Ok(())
    }

    fn replace_nics(&mut self, id: VmId, primary: u32, mut nics: Vec<Nic>) -> Result<(), TaskError> {
        let Some(vm) = self.vms.get_mut(&id) else { return Ok(()) };
        for nic in &mut nics {
            let same =
                vm.nics.iter_mut().find(|o| o.index == nic.index && o.network == nic.network && o.mode == nic.mode);
            // The new NIC gets the old NIC's address. All other addresses are freed.
            if let Some(old) = same
                && (nic.mode != IpMode::Manual || nic.address == old.address)
            {
                nic.address = old.address.take();
            } else if nic.mode != IpMode::Manual {
                nic.address = None;
            }
        }
        self.release_addresses(id, false);
        let Some(vm) = self.vms.get_mut(&id) else { return Ok(()) };
        vm.nics = nics;
        vm.primary_nic = primary;
        self.assign_addresses(id)
    }

    // Power.

    fn wrong_state(&self, target: Target, advice: &str) -> Refusal {
        let (kind, name) = match target {
            Target::Vapp(v) => ("vApp", self.vapps.get(&v).map(|v| v.name.clone())),
            Target::Vm(v) => ("VM", self.vms.get(&v).map(|v| v.name.clone())),
        };
        let name = name.unwrap_or_else(|| "".into());
        let message = format!("The requested operation could not be executed on {kind} \"{name}\". {advice}");
        match self.settings.wording.stop_is_409 && advice.starts_with("Stop") {
            true => Refusal::new(409, "CONFLICT", message),
            false => Refusal::bad(message),
        }
    }

    fn check_stopped(&self, target: Target) -> Result<(), Refusal> {
        if self.target_deployed(target) {
            let advice = if matches!(target, Target::Vapp(_)) {
                "Stop the vApp and try again."
            } else {
                "Stop the VM and try again."
            };
            return Err(self.wrong_state(target, advice));
        }
        Ok(())
    }

    fn get_target(&self, who: UserId, target: Target) -> Result<(), Refusal> {
        match target {
            Target::Vapp(id) => self.get_vapp(who, id).map(|_| ()),
            Target::Vm(id) => self.get_vm(who, id).map(|_| ()),
        }
    }

    fn any_vm(&self, target: Target, test: impl Fn(&Vm) -> bool) -> bool {
        self.vms_of(target).iter().any(|v| self.vms.get(v).is_some_and(&test))
    }

    /// Rights, existence, busy: the first checks of every operation on an entity.
    fn enter(&self, who: UserId, right: Right, target: Target) -> Result<(), Refusal> {
        self.need(who, right)?;
        self.get_target(who, target)?;
        self.check_faults(target, right == Right::Delete)?;
        self.check_free(target)
    }

    /// `power/action/…`.
    pub fn power(&mut self, who: UserId, target: Target, action: PowerAction) -> Result<TaskId, Refusal> {
        self.enter(who, Right::Power, target)?;
        let (operation, fits) = match action {
            PowerAction::On => (Operation::Deploy, self.any_vm(target, |v| v.power != Power::On)),
            PowerAction::Off => {
                (Operation::PowerOff, self.any_vm(target, |v| matches!(v.power, Power::On | Power::Suspended)))
            }
            PowerAction::Shutdown => (Operation::Shutdown, self.any_vm(target, |v| v.power == Power::On)),
            PowerAction::Reset => (Operation::Reset, self.any_vm(target, |v| v.power == Power::On)),
            PowerAction::Reboot => (Operation::Reboot, self.any_vm(target, |v| v.power == Power::On)),
            PowerAction::Suspend => (Operation::Suspend, self.any_vm(target, |v| v.power == Power::On)),
        };
        if !fits {
            return Err(self.wrong_state(target, "The power state does not allow it."));
        }
        if action == PowerAction::Suspend {
            self.check_suspend(target)?;
        }
        self.check_limit(who)?;
        Ok(self.begin(who, operation, target, Work::Power(action)))
    }

    /// A VM's memory must fit into its storage, and some VMs cannot be suspended.
    fn check_suspend(&self, target: Target) -> Result<(), Refusal> {
        for vm in self.vms_of(target).iter().filter_map(|v| self.vms.get(v)).filter(|v| v.power == Power::On) {
            if self.settings.no_suspend || vm.passthrough {
                return Err(Refusal::bad(format!(
                    "The virtual machine \"{}\" cannot be suspended: it has a device or a snapshot that does not allow it.",
                    vm.name
                )));
            }
            self.check_storage(vm.profile, u64::from(vm.memory_mb))?;
        }
        Ok(())
    }

    /// `action/deploy`. Customization can be forced only while it is not deployed.
    pub fn deploy(&mut self, who: UserId, target: Target, power_on: bool, customize: bool) -> Result<TaskId, Refusal> {
        self.enter(who, Right::Power, target)?;
        let deployed = self.target_deployed(target);
        let off = self.any_vm(target, |v| v.power != Power::On);
        if (customize && deployed) || !off || (deployed && !power_on) {
            return Err(self.wrong_state(target, "It is deployed already."));
        }
        self.check_limit(who)?;
        Ok(self.begin(who, Operation::Deploy, target, Work::Deploy { power_on, customize }))
    }

    /// `action/undeploy`.
    pub fn undeploy(&mut self, who: UserId, target: Target, action: UndeployAction) -> Result<TaskId, Refusal> {
        if action == UndeployAction::Force && self.settings.force_needs_right {
            self.need(who, Right::Force)?;
        }
        self.enter(who, Right::Power, target)?;
        if !self.target_deployed(target) {
            return Err(self.wrong_state(target, "It is not running."));
        }
        self.check_limit(who)?;
        let suspend = action == UndeployAction::Suspend;
        let operation = if suspend { Operation::UndeploySuspend } else { Operation::UndeployPowerOff };
        Ok(self.begin(who, operation, target, Work::Undeploy(action)))
    }

    /// `action/discardSuspendedState`.
    pub fn discard_suspended_state(&mut self, who: UserId, target: Target) -> Result<TaskId, Refusal> {
        self.enter(who, Right::Power, target)?;
        if !self.any_vm(target, |v| v.power == Power::Suspended) {
            return Err(self.wrong_state(target, "It is not suspended."));
        }
        self.check_limit(who)?;
        Ok(self.begin(who, Operation::Discard, target, Work::Discard))
    }

    /// `action/consolidate` of a VM.
    pub fn consolidate(&mut self, who: UserId, id: VmId) -> Result<TaskId, Refusal> {
        self.enter(who, Right::Force, Target::Vm(id))?;
        self.check_limit(who)?;
        Ok(self.begin(who, Operation::Consolidate, Target::Vm(id), Work::Consolidate))
    }

    /// `DELETE` of a vApp, with or without `force`.
    pub fn delete_vapp(&mut self, who: UserId, id: VappId, forced: bool) -> Result<TaskId, Refusal> {
        if forced && self.settings.force_needs_right {
            self.need(who, Right::Force)?;
        }
        let target = Target::Vapp(id);
        self.enter(who, Right::Delete, target)?;
        if !forced {
            self.check_stopped(target)?;
        }
        self.check_lock(id)?;
        self.check_limit(who)?;
        Ok(self.begin(who, Operation::Delete, target, Work::Delete { forced }))
    }

    /// `DELETE` of a VM.
    pub fn delete_vm(&mut self, who: UserId, id: VmId) -> Result<TaskId, Refusal> {
        self.enter(who, Right::Delete, Target::Vm(id))?;
        self.check_stopped(Target::Vm(id))?;
        self.check_limit(who)?;
        Ok(self.begin(who, Operation::DeleteVm, Target::Vm(id), Work::DeleteVm))
    }

    /// `action/cancel` of a task: it ends as `canceled` a little later, unless it ends before.
    pub fn cancel_task(&mut self, who: UserId, id: TaskId) -> Result<(), Refusal> {
        let task = self.get_task(who, id)?;
        if task.status != TaskStatus::Running {
            return Err(Refusal::bad("The task has ended already and cannot be canceled."));
        }
        if self.faults_of(task.target).keeps_tasks {
            let message = "Either you need some or all of the following rights [Task: Cancel] to perform operations.";
            return Err(Refusal::new(403, "ACCESS_TO_RESOURCE_IS_FORBIDDEN", message));
        }
        let due = self.now.saturating_add(self.durations.cancel);
        if let Some(task) = self.tasks.get_mut(&id)
            && !std::mem::replace(&mut task.cancel_requested, true)
        {
            self.at(due, engine::Event::Cancel(id));
        }
        Ok(())
    }

    /// Writes metadata keys (merge), and deletes keys without a value.
    pub fn set_metadata(
        &mut self,
        who: UserId,
        target: MetadataTarget,
        entries: Vec<MetadataEntry>,
    ) -> Result<TaskId, Refusal> {
        self.enter(who, Right::Edit, target)?;
        if entries.iter().any(|(key, _)| key.is_empty() || key.len() > MAX_METADATA_KEY) {
            return Err(Refusal::bad("A metadata key must have 1 to 256 characters."));
        }
        self.check_limit(who)?;
        Ok(self.begin(who, Operation::Metadata, target, Work::Metadata(target, entries)))
    }

    pub(super) fn change_metadata_now(&mut self, target: MetadataTarget, entries: &[MetadataEntry]) {
        let metadata = match target {
            Target::Vapp(id) => self.vapps.get_mut(&id).map(|v| &mut v.metadata),
            Target::Vm(id) => self.vms.get_mut(&id).map(|v| &mut v.metadata),
        };
        let Some(metadata) = metadata else { return };
        for (key, value) in entries {
            match value {
                Some(value) => metadata.insert(key.clone(), value.clone()),
                None => metadata.remove(key),
            };
        }
    }
}
