//! What the query service shows: records of VMs and vApps, of now or of a while ago.

use super::*;

/// How the answer to a query can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryFault {
    /// No records.
    Empty,
    /// Every other record is missing.
    Partial,
    /// The state of this many milliseconds ago; needs [`Model::keep_history`].
    Stale(Ms),
}

/// All records of one moment.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs, reason = "each is named for what it holds")]
pub struct Records {
    pub vms: Vec<VmRecord>,
    pub vapps: Vec<VappRecord>,
}

/// The last task of an entity, in its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is named for what it holds")]
pub struct TaskRef {
    pub id: TaskId,
    pub status: TaskStatus,
    pub operation: Operation,
}

/// `VMRecord` of a VM in a vApp.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "VCD's own words")]
pub struct VmRecord {
    pub id: VmId,
    pub vapp: VappId,
    pub vdc: VdcId,
    pub name: Arc<str>,
    pub vapp_name: Arc<str>,
    pub description: Arc<str>,
    pub status: Status,
    pub vapp_status: Status,
    pub deployed: bool,
    pub busy: bool,
    pub guest_os: Arc<str>,
    pub cpus: u32,
    pub memory_mb: u32,
    pub storage_mb: u64,
    pub address: Option<Ipv4Addr>,
    pub network_name: Option<Arc<str>>,
    pub network: Option<NetworkId>,
    pub gc: GcStatus,
    pub profile: ProfileId,
    pub created: Ms,
    pub undeploy_at: Option<Ms>,
    pub delete_at: Option<Ms>,
    pub expired: bool,
    pub task: Option<TaskRef>,
    pub metadata: Arc<Metadata>,
}

/// `VAppRecord`.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "VCD's own words")]
pub struct VappRecord {
    pub id: VappId,
    pub vdc: VdcId,
    pub name: Arc<str>,
    pub description: Arc<str>,
    pub owner: UserId,
    pub status: Status,
    pub deployed: bool,
    pub busy: bool,
    pub vms: u32,
    pub cpus: u32,
    pub memory_mb: u64,
    pub storage_kb: u64,
    pub created: Ms,
    pub undeploy_at: Option<Ms>,
    pub delete_at: Option<Ms>,
    pub expired: bool,
    pub task: Option<TaskRef>,
    pub metadata: Arc<Metadata>,
}

/// `VMRecord` of a VM in a template.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "VCD's own words")]
pub struct TemplateVmRecord {
    pub id: TemplateVmId,
    pub template: TemplateId,
}

impl Model {
    /// The state of a vApp, from the states of its VMs.
    pub fn vapp_status(&self, vapp: &Vapp) -> Status {
        if vapp.creating {
            return Status::Unresolved;
        }
        if vapp.failed {
            return Status::FailedCreation;
        }
        let mut all = vapp.vms.iter().filter_map(|v| self.vms.get(v)).map(Vm::status);
        let Some(first) = all.next() else { return Status::Resolved };
        if all.all(|s| s == first) { first } else { Status::Mixed }
    }

    fn task_ref(&self, ids: [Option<TaskId>; 2]) -> Option<TaskRef> {
        let id = ids.into_iter().flatten().max()?;
        self.tasks.get(&id).map(|t| TaskRef { id, status: t.status, operation: t.operation })
    }

    /// The dates of a record: while a vApp is deployed, its storage lease starts after the deployment lease.
    fn lease_dates(vapp: &Vapp) -> (Option<Ms>, Option<Ms>) {
        let storage = vapp.lease.storage_s.saturating_mul(1000);
        let after = vapp.undeploy_at.filter(|_| storage > 0).map(|at| at.saturating_add(storage));
        (vapp.undeploy_at, vapp.delete_at.or(after))
    }

    pub(super) fn records_now(&self) -> Records {
        let mut records = Records::default();
        for (id, vapp) in self.vapps.iter().filter(|(_, vapp)| !vapp.faults.unlisted) {
            let (undeploy_at, delete_at) = Self::lease_dates(vapp);
            let status = self.vapp_status(vapp);
            let mut record = VappRecord {
                id: *id,
                vdc: vapp.vdc,
                name: vapp.name.clone(),
                description: vapp.description.clone(),
                owner: vapp.owner,
                status,
                deployed: vapp.deployed,
                busy: self.is_busy(Target::Vapp(*id)),
                vms: 0,
                cpus: 0,
                memory_mb: 0,
                storage_kb: 0,
                created: vapp.created,
                undeploy_at,
                delete_at,
                expired: vapp.expired,
                task: self.task_ref([vapp.last_task, None]),
                metadata: Arc::new(vapp.metadata.clone()),
            };
            for vm_id in &vapp.vms {
                let Some(vm) = self.vms.get(vm_id).filter(|vm| vm.shows_at <= self.now) else { continue };
                let storage_mb = vm.disks.iter().map(|d| d.mb).sum();
                record.vms += 1;
                record.cpus += vm.cpus;
                record.memory_mb += u64::from(vm.memory_mb);
                record.storage_kb += storage_mb * 1024;
                let nic = vm.nic();
                let network_name = nic.and_then(|n| n.network.clone());
                let network = vapp.networks.iter().find(|n| Some(&n.name) == network_name.as_ref());
                records.vms.push(VmRecord {
                    id: *vm_id,
                    vapp: *id,
                    vdc: vapp.vdc,
                    name: vm.name.clone(),
                    vapp_name: vapp.name.clone(),
                    description: vm.description.clone(),
                    status: vm.status(),
                    vapp_status: status,
                    deployed: vm.deployed,
                    busy: self.is_busy(Target::Vm(*vm_id)),
                    guest_os: vm.guest_os.clone(),
                    cpus: vm.cpus,
                    memory_mb: vm.memory_mb,
                    storage_mb,
                    address: nic.and_then(|n| n.address).filter(|_| !vm.address_hidden),
                    network_name,
                    network: network.and_then(|n| n.parent),
                    gc: vm.gc,
                    profile: vm.profile,
                    created: vm.created,
                    undeploy_at,
                    delete_at,
                    expired: vapp.expired,
                    task: self.task_ref([vm.last_task, vapp.last_task]),
                    metadata: Arc::new(vm.metadata.clone()),
                });
            }
            records.vapps.push(record);
        }
        records
    }

    fn records(&self, fault: Option<QueryFault>) -> Arc<Records> {
        let ago = match fault {
            Some(QueryFault::Stale(ago)) => ago,
            _ => self.lag,
        };
        let old = if ago > 0 { self.records_ago(ago) } else { None };
        old.unwrap_or_else(|| Arc::new(self.records_now()))
    }

    /// All VMs of the user's org, without VMs of templates.
    pub fn query_vms(&self, who: UserId, fault: Option<QueryFault>) -> Vec<VmRecord> {
        let records = self.records(fault);
        let seen = records.vms.iter().filter(|r| self.sees_vdc(who, r.vdc));
        thin(seen, fault).cloned().collect()
    }

    /// All vApps of the user's org.
    pub fn query_vapps(&self, who: UserId, fault: Option<QueryFault>) -> Vec<VappRecord> {
        let records = self.records(fault);
        let seen = records.vapps.iter().filter(|r| self.sees_vdc(who, r.vdc));
        thin(seen, fault).cloned().collect()
    }

    /// All tasks of the user's org.
    pub fn query_tasks(&self, who: UserId) -> impl Iterator<Item = (TaskId, &Task)> + '_ {
        let (org, all) = (self.org_of(who), self.is_provider(who));
        self.tasks.iter().filter(move |(_, t)| all || Some(t.org) == org).map(|(id, t)| (*id, t))
    }

    /// All VMs of templates in the user's org.
    pub fn query_template_vms(&self, who: UserId) -> Vec<TemplateVmRecord> {
        let seen = self.template_vms.iter().filter(|(_, vm)| self.get_template(who, vm.template).is_ok());
        seen.map(|(id, vm)| TemplateVmRecord { id: *id, template: vm.template }).collect()
    }
}

/// Skips the records that a faulty query does not show.
pub(crate) fn thin<T>(all: impl Iterator<Item = T>, fault: Option<QueryFault>) -> impl Iterator<Item = T> {
    all.enumerate()
        .filter(move |(i, _)| match fault {
            Some(QueryFault::Empty) => false,
            Some(QueryFault::Partial) => i % 2 == 0,
            _ => true,
        })
        .map(|(_, r)| r)
}
