//! The model's entities as XML documents.

use crate::model::*;
use crate::query::Record;
use crate::xml::{Prefixes, Writer};
use std::fmt::Write as _;
use std::net::Ipv4Addr;

/// Writes entities with absolute links.
pub struct View<'a> {
    /// The model that is shown.
    pub model: &'a Model,
    /// `http://HOST:PORT`.
    pub base: &'a str,
    /// The prefixes of XML elements.
    pub prefixes: Prefixes,
}

/// By kind of id: path below `/api/` (or `/`), name in URNs, media type.
const KINDS: [(u16, &str, &str, &str); 13] = [
    (OrgId::KIND, "/api/org/", "org", "org"),
    (UserId::KIND, "/api/admin/user/", "user", "admin.user"),
    (VdcId::KIND, "/api/vdc/", "vdc", "vdc"),
    (ProfileId::KIND, "/api/vdcStorageProfile/", "vdcstorageProfile", "vdcStorageProfile"),
    (NetworkId::KIND, "/api/network/", "network", "orgVdcNetwork"),
    (PolicyId::KIND, "/cloudapi/2.0.0/vdcComputePolicies/urn:vcloud:vdcComputePolicy:", "vdcComputePolicy", "json"),
    (CatalogId::KIND, "/api/catalog/", "catalog", "catalog"),
    (TemplateId::KIND, "/api/vAppTemplate/vappTemplate-", "vapptemplate", "vAppTemplate"),
    (TemplateVmId::KIND, "/api/vAppTemplate/vm-", "vm", "vm"),
    (VappId::KIND, "/api/vApp/vapp-", "vapp", "vApp"),
    (VmId::KIND, "/api/vApp/vm-", "vm", "vm"),
    (TaskId::KIND, "/api/task/", "task", "task"),
    (ItemId::KIND, "/api/catalogItem/", "catalogitem", "catalogItem"),
];

/// VCD's media type for a short name.
pub fn media(name: &str) -> String {
    format!("application/vnd.vmware.vcloud.{name}+xml")
}

/// Unix milliseconds as `2026-01-01T10:00:00.000Z`. If local time has an offset, it stands in place of the Z.
pub fn date(unix_ms: u64, offset_minutes: i32) -> String {
    let unix_ms = unix_ms.saturating_add_signed(i64::from(offset_minutes) * 60_000);
    let (days, ms) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    // Days to civil date, in eras of 400 years that start on 1 March.
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + u64::from(month <= 2);
    let (h, m, s) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    let offset = match offset_minutes {
        0 => "Z".to_owned(),
        _ => {
            let (sign, off) = (if offset_minutes < 0 { '-' } else { '+' }, offset_minutes.unsigned_abs());
            format!("{sign}{:02}:{:02}", off / 60, off % 60)
        }
    };
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{:03}{offset}", ms % 1000)
}

/// All elements of a hardware item, in their order.
const RASD: [&str; 26] = [
    "rasd:Address",
    "rasd:AddressOnParent",
    "rasd:AllocationUnits",
    "rasd:AutomaticAllocation",
    "rasd:AutomaticDeallocation",
    "rasd:Caption",
    "rasd:ChangeableType",
    "rasd:ConfigurationName",
    "rasd:Connection",
    "rasd:ConsumerVisibility",
    "rasd:Description",
    "rasd:ElementName",
    "rasd:Generation",
    "rasd:HostResource",
    "rasd:InstanceID",
    "rasd:Limit",
    "rasd:MappingBehavior",
    "rasd:OtherResourceType",
    "rasd:Parent",
    "rasd:PoolID",
    "rasd:Reservation",
    "rasd:ResourceSubType",
    "rasd:ResourceType",
    "rasd:VirtualQuantity",
    "rasd:VirtualQuantityUnits",
    "rasd:Weight",
];

/// One hardware item: element, attributes, text.
#[derive(Default)]
struct Rasd(Vec<(&'static str, Attributes, String)>);

type Attributes = Vec<(&'static str, String)>;

impl Rasd {
    fn new(id: u32, kind: u16, name: impl Into<String>) -> Rasd {
        let id = Rasd::default().put("rasd:InstanceID", id.to_string());
        id.put("rasd:ResourceType", kind.to_string()).put("rasd:ElementName", name)
    }

    fn put(self, element: &'static str, text: impl Into<String>) -> Rasd {
        self.put_with(element, Vec::new(), text)
    }

    fn put_with(mut self, element: &'static str, attributes: Attributes, text: impl Into<String>) -> Rasd {
        self.0.push((element, attributes, text.into()));
        self
    }

    /// The item as an element.
    fn item(&self, w: &mut Writer, element: &'static str, nil: bool) {
        w.start(element);
        self.write(w, nil);
        w.end();
    }

    /// The content of the item. With `nil`, also the unused elements.
    fn write(&self, w: &mut Writer, nil: bool) {
        for name in RASD {
            match self.0.iter().find(|(element, ..)| *element == name) {
                Some((element, attributes, text)) => {
                    w.start(element);
                    for (attribute, value) in attributes {
                        w.attr(attribute, value);
                    }
                    w.text(text).end();
                }
                None if nil => _ = w.start(name).attr("xsi:nil", "true").end(),
                None => {}
            }
        }
    }
}

/// What a hardware section shows.
struct Shown<'a> {
    cpus: (u32, u32),
    memory_mb: u32,
    disks: &'a [Disk],
    nics: &'a [Nic],
    /// The items of a VM can be edited.
    edit: bool,
    nil: bool,
}

impl Shown<'_> {
    fn of(vm: &Vm) -> Shown<'_> {
        let cpus = (vm.cpus, vm.cores_per_socket);
        Shown { cpus, memory_mb: vm.memory_mb, disks: &vm.disks, nics: &vm.nics, edit: true, nil: false }
    }

    fn ids(&self) -> ItemIds {
        ItemIds::of(self.nics.len(), self.disks)
    }
}

impl<'a> View<'a> {
    fn kind<I: Id>() -> (&'static str, &'static str, &'static str) {
        let found = KINDS.iter().find(|(k, ..)| *k == I::KIND);
        found.map_or(("", "", ""), |(_, path, urn, media)| (path, urn, media))
    }

    /// The link of an entity.
    pub fn href<I: Id>(&self, id: I) -> String {
        let mut href = String::with_capacity(96);
        let _ = write!(href, "{}{}{}", self.base, Self::kind::<I>().0, self.model.uuid(id));
        href
    }

    /// The URN of an entity.
    pub fn urn<I: Id>(&self, id: I) -> String {
        format!("urn:vcloud:{}:{}", Self::kind::<I>().1, self.model.uuid(id))
    }

    fn when(&self, at: Ms) -> String {
        date(self.model.unix(at), self.model.settings.utc_offset_minutes)
    }

    /// A document with an entity as its root.
    pub fn entity<I: Id>(&self, root: &'static str, id: I, name: &str) -> Writer {
        let mut w = Writer::new(self.prefixes, root);
        self.entity_attrs(&mut w, id, name);
        w
    }

    fn entity_attrs<I: Id>(&self, w: &mut Writer, id: I, name: &str) {
        w.attr("name", name).attr("id", self.urn(id)).attr("href", self.href(id));
        w.attr("type", media(Self::kind::<I>().2));
    }

    fn reference<I: Id>(&self, w: &mut Writer, element: &'static str, id: I, name: &str) {
        w.start(element).attr("href", self.href(id)).attr("id", self.urn(id)).attr("name", name);
        w.attr("type", media(Self::kind::<I>().2)).end();
    }

    fn link(&self, w: &mut Writer, rel: &str, href: &str, media_name: &str) {
        w.start("Link").attr("rel", rel).attr("href", href);
        if !media_name.is_empty() {
            w.attr("type", media(media_name));
        }
        w.end();
    }

    /// A task as a document.
    pub fn task(&self, id: TaskId, task: &Task) -> String {
        let mut w = Writer::new(self.prefixes, "Task");
        self.task_inside(&mut w, id, task);
        w.finish()
    }

    fn task_inside(&self, w: &mut Writer, id: TaskId, task: &Task) {
        let operation = task.operation;
        let target_uuid = match task.target {
            Target::Vapp(v) => self.model.uuid(v),
            Target::Vm(v) => self.model.uuid(v),
        };
        self.entity_attrs(w, id, "task");
        w.attr("status", task.status.name()).attr("operationName", operation.name());
        w.attr("operation", format!("{} {}({target_uuid})", operation.text(), task.target_name));
        w.attr("startTime", self.when(task.start));
        if let Some(end) = task.end {
            w.attr("endTime", self.when(end));
        }
        w.attr("expiryTime", self.when(task.start.saturating_add(self.model.settings.task_kept)));
        w.attr("cancelRequested", task.cancel_requested.to_string()).attr("serviceNamespace", "com.vmware.vcloud");
        if task.status == TaskStatus::Running {
            self.link(w, "task:cancel", &format!("{}/action/cancel", self.href(id)), "");
        }
        match task.target {
            Target::Vapp(v) => self.reference(w, "Owner", v, &task.target_name),
            Target::Vm(v) => self.reference(w, "Owner", v, &task.target_name),
        }
        if task.status == TaskStatus::Running && self.model.settings.running_task_has_error {
            w.start("Error").attr("majorErrorCode", "0").attr("minorErrorCode", "");
            w.attr("message", "The task is still in progress.").end();
        }
        if let Some(error) = &task.error {
            w.start("Error").attr("majorErrorCode", error.major.to_string()).attr("minorErrorCode", &error.minor);
            w.attr("message", format!("[ {} ] {}", self.model.uuid(id), error.message)).attr("stackTrace", "").end();
        }
        if let Some(user) = self.model.users.get(&task.user) {
            self.reference(w, "User", task.user, &user.name);
        }
        if let Some(org) = self.model.orgs.get(&task.org) {
            self.reference(w, "Organization", task.org, &org.name);
        }
        let done = task.status != TaskStatus::Running;
        w.leaf("Progress", if done { "100" } else { "1" });
        let details = task.error.as_ref().map(|e| format!("  [ {} ] {}", self.model.uuid(id), e.message));
        w.leaf("Details", details.as_deref().unwrap_or(" "));
    }

    /// `Tasks` of an entity, if a task runs.
    fn tasks(&self, w: &mut Writer, id: Option<TaskId>) {
        let Some((id, task)) = id.and_then(|id| self.model.tasks.get(&id).map(|t| (id, t))) else { return };
        w.start("Tasks").start("Task");
        self.task_inside(w, id, task);
        w.end().end();
    }

    /// A vApp as a document.
    pub fn vapp(&self, id: VappId, vapp: &Vapp) -> String {
        let mut w = self.entity("VApp", id, &vapp.name);
        let href = self.href(id);
        w.attr("status", self.model.vapp_status(vapp).code().to_string());
        w.attr("deployed", vapp.deployed.to_string()).attr("ovfDescriptorUploaded", "true");
        self.link(&mut w, "up", &self.href(vapp.vdc), "vdc");
        for (rel, path, media_name) in [
            ("power:powerOn", "/power/action/powerOn", ""),
            ("power:powerOff", "/power/action/powerOff", ""),
            ("deploy", "/action/deploy", "deployVAppParams"),
            ("undeploy", "/action/undeploy", "undeployVAppParams"),
            ("recompose", "/action/recomposeVApp", "recomposeVAppParams"),
            ("down", "/metadata", "metadata"),
            ("remove", "", ""),
        ] {
            self.link(&mut w, rel, &format!("{href}{path}"), media_name);
        }
        w.leaf("Description", &vapp.description);
        self.tasks(&mut w, vapp.task);
        self.lease_inside(&mut w, id, vapp, "LeaseSettingsSection");
        w.end();
        self.networks_inside(&mut w, id, vapp, "NetworkConfigSection");
        w.end();
        w.leaf("DateCreated", self.when(vapp.created));
        let owner = self.model.users.get(&vapp.owner).map_or("system", |u| &u.name);
        w.start("Owner").attr("type", media("owner"));
        self.reference(&mut w, "User", vapp.owner, owner);
        w.end();
        w.leaf("InMaintenanceMode", "false");
        let shown = |v: &&VmId| self.model.vms.get(v).is_some_and(|v| v.shows_at <= self.model.now());
        if vapp.vms.iter().any(|v| shown(&v)) {
            w.start("Children");
            for vm_id in vapp.vms.iter().filter(shown) {
                if let Some(vm) = self.model.vms.get(vm_id) {
                    w.start("Vm");
                    self.vm_inside(&mut w, *vm_id, vm);
                    w.end();
                }
            }
            w.end();
        }
        w.finish()
    }

    /// A section: a document of its own, or the start of a section in another document.
    fn section(&self, w: &mut Writer, name: &'static str, href: &str, info: &str) {
        w.attr("href", href).attr("type", media(&lower_first(name))).attr("ovf:required", "false");
        w.leaf("ovf:Info", info);
    }

    fn lease_inside(&self, w: &mut Writer, id: VappId, vapp: &Vapp, name: &'static str) {
        w.start(name);
        self.lease_body(w, id, vapp);
    }

    fn lease_body(&self, w: &mut Writer, id: VappId, vapp: &Vapp) {
        let href = format!("{}/leaseSettingsSection/", self.href(id));
        self.section(w, "LeaseSettingsSection", &href, "Lease settings section");
        w.leaf("DeploymentLeaseInSeconds", vapp.lease.deployment_s.to_string());
        if let Some(at) = vapp.undeploy_at {
            w.leaf("DeploymentLeaseExpiration", self.when(at));
        }
        w.leaf("StorageLeaseInSeconds", vapp.lease.storage_s.to_string());
        if let Some(at) = vapp.delete_at {
            w.leaf("StorageLeaseExpiration", self.when(at));
        }
    }

    /// The lease section as a document.
    pub fn lease(&self, id: VappId, vapp: &Vapp) -> String {
        let mut w = Writer::new(self.prefixes, "LeaseSettingsSection");
        self.lease_body(&mut w, id, vapp);
        w.finish()
    }

    fn networks_inside(&self, w: &mut Writer, id: VappId, vapp: &Vapp, name: &'static str) {
        w.start(name);
        self.networks_body(w, id, vapp);
    }

    fn networks_body(&self, w: &mut Writer, id: VappId, vapp: &Vapp) {
        let href = format!("{}/networkConfigSection/", self.href(id));
        self.section(w, "NetworkConfigSection", &href, "The configuration parameters for logical networks");
        for network in &vapp.networks {
            w.start("NetworkConfig").attr("networkName", &network.name).start("Configuration");
            if let Some((parent, n)) = network.parent.and_then(|p| self.model.networks.get(&p).map(|n| (p, n))) {
                w.start("IpScopes").start("IpScope").leaf("IsInherited", "true").leaf("Gateway", n.gateway.to_string());
                w.leaf("Netmask", n.netmask.to_string()).leaf("IsEnabled", "true").end().end();
                self.reference(w, "ParentNetwork", parent, &n.name);
            }
            w.leaf("FenceMode", network.fence.name()).end();
            w.leaf("IsDeployed", vapp.deployed.to_string()).end();
        }
    }

    /// The vApp's networks as a document.
    pub fn networks(&self, id: VappId, vapp: &Vapp) -> String {
        let mut w = Writer::new(self.prefixes, "NetworkConfigSection");
        self.networks_body(&mut w, id, vapp);
        w.finish()
    }

    /// A VM as a document.
    pub fn vm(&self, id: VmId, vm: &Vm) -> String {
        let mut w = Writer::new(self.prefixes, "Vm");
        self.vm_inside(&mut w, id, vm);
        w.finish()
    }

    fn vm_inside(&self, w: &mut Writer, id: VmId, vm: &Vm) {
        let href = self.href(id);
        self.entity_attrs(w, id, &vm.name);
        w.attr("status", vm.status().code().to_string()).attr("deployed", vm.deployed.to_string());
        w.attr("needsCustomization", (vm.needs_customization && vm.applied.is_none()).to_string());
        self.link(w, "up", &self.href(vm.vapp), "vApp");
        for (rel, path, media_name) in [
            ("power:powerOn", "/power/action/powerOn", ""),
            ("reconfigureVm", "/action/reconfigureVm", "vm"),
            ("down", "/metadata", "metadata"),
            ("remove", "", ""),
        ] {
            self.link(w, rel, &format!("{href}{path}"), media_name);
        }
        w.leaf("Description", &vm.description);
        self.tasks(w, vm.task);
        w.start("ovf:VirtualHardwareSection");
        self.hardware_body(w, &href, &Shown::of(vm));
        w.end().start("ovf:OperatingSystemSection").attr("ovf:id", "94").attr("vmw:osType", &vm.os_type);
        w.leaf("ovf:Info", "Specifies the operating system installed").leaf("ovf:Description", &vm.guest_os).end();
        w.start("NetworkConnectionSection");
        self.nics_body(w, id, vm);
        w.end().start("GuestCustomizationSection");
        self.guest_body(w, id, vm);
        w.end();
        self.spec(w, vm);
        w.leaf("VAppScopedLocalId", self.model.uuid(id)).leaf("DateCreated", self.when(vm.created));
        w.start("VmCapabilities").leaf("MemoryHotAddEnabled", vm.memory_hot_add.to_string());
        w.leaf("CpuHotAddEnabled", vm.cpu_hot_add.to_string()).end();
        if let Some(profile) = self.model.profiles.get(&vm.profile) {
            self.reference(w, "StorageProfile", vm.profile, &profile.name);
        }
        let known = |policy: Option<PolicyId>| policy.and_then(|p| self.model.policies.get(&p).map(|n| (p, n)));
        if vm.policy.is_some() || vm.placement.is_some() {
            w.start("ComputePolicy");
            for (name, policy) in [("VmPlacementPolicy", known(vm.placement)), ("VmSizingPolicy", known(vm.policy))] {
                if let Some((id, policy)) = policy {
                    self.reference(w, name, id, &policy.name);
                }
            }
            w.end();
        }
        w.start("TrustedPlatformModule").leaf("TpmPresent", vm.tpm.to_string()).end();
    }

    fn spec(&self, w: &mut Writer, vm: &Vm) {
        w.start("VmSpecSection").attr("Modified", "false").leaf("ovf:Info", "Virtual Machine specification");
        self.spec_hardware(w, &vm.os_type, &Shown::of(vm), Some(vm.profile));
        w.start("HardwareVersion").text("vmx-19").end().leaf("VmToolsVersion", "12352").end();
    }

    fn spec_hardware(&self, w: &mut Writer, os_type: &str, shown: &Shown<'_>, profile: Option<ProfileId>) {
        w.leaf("OsType", os_type).leaf("NumCpus", shown.cpus.0.to_string());
        w.leaf("NumCoresPerSocket", shown.cpus.1.to_string());
        w.start("CpuResourceMhz").leaf("Configured", "0").end();
        w.start("MemoryResourceMb").leaf("Configured", shown.memory_mb.to_string()).end();
        w.leaf("MediaSection", "").start("DiskSection");
        for disk in shown.disks {
            let (bus, unit) = disk.place();
            w.start("DiskSettings").leaf("DiskId", disk.id.to_string()).leaf("SizeMb", disk.mb.to_string());
            w.leaf("UnitNumber", unit.to_string()).leaf("BusNumber", bus.to_string());
            w.leaf("AdapterType", if disk.is_sata() { "6" } else { "5" }).leaf("ThinProvisioned", "true");
            if let Some((id, profile)) = profile.and_then(|id| self.model.profiles.get(&id).map(|p| (id, p))) {
                self.reference(w, "StorageProfile", id, &profile.name);
            }
            w.leaf("overrideVmDefault", "false").leaf("VirtualQuantity", (disk.mb * 1024 * 1024).to_string());
            w.leaf("VirtualQuantityUnit", "byte").end();
        }
        w.end();
    }

    /// The items are in the order of their ids, as in VCD.
    fn hardware_body(&self, w: &mut Writer, href: &str, shown: &Shown<'_>) {
        let ids = shown.ids();
        w.attr("vcloud:href", format!("{href}/virtualHardwareSection/"));
        w.attr("vcloud:type", media("virtualHardwareSection"));
        w.leaf("ovf:Info", "Virtual hardware requirements");
        let nil = shown.nil;
        for nic in shown.nics {
            let mut connection = Vec::new();
            if let Some(address) = nic.address {
                connection.push(("vcloud:ipAddress", address.to_string()));
            }
            connection.push(("vcloud:ipAddressingMode", nic.mode.name().into()));
            connection.push(("vcloud:primaryNetworkConnection", "true".into()));
            let item = Rasd::new(nic.index + 1, 10, format!("Network adapter {}", nic.index));
            let item = item.put("rasd:AddressOnParent", nic.index.to_string());
            let item = item.put("rasd:AutomaticAllocation", nic.connected.to_string());
            let item = item.put_with("rasd:Connection", connection, nic.network.as_deref().unwrap_or("none"));
            item.put("rasd:ResourceSubType", &*nic.adapter).item(w, "ovf:Item", nil);
        }
        for (address, id) in ids.scsi.iter().enumerate() {
            let item =
                Rasd::new(*id, 6, format!("SCSI Controller {address}")).put("rasd:Description", "SCSI Controller");
            let item = item.put("rasd:Address", address.to_string());
            item.put("rasd:ResourceSubType", "VirtualSCSI").item(w, "ovf:Item", nil);
        }
        for (address, id) in ids.sata.iter().enumerate() {
            let item =
                Rasd::new(*id, 20, format!("SATA Controller {address}")).put("rasd:Description", "SATA Controller");
            let item = item.put("rasd:Address", address.to_string());
            item.put("rasd:ResourceSubType", "vmware.sata.ahci").item(w, "ovf:Item", nil);
        }
        let ide = Rasd::new(ids.ide, 5, "IDE Controller 0").put("rasd:Description", "IDE Controller");
        ide.put("rasd:Address", "0").item(w, "ovf:Item", nil);
        for (item, name) in [(self.cpu(shown), "cpu"), (self.memory(shown), "memory")] {
            w.start("ovf:Item");
            item.write(w, nil);
            if name == "cpu" {
                let cores = shown.cpus.1.to_string();
                w.start("vmw:CoresPerSocket").attr("ovf:required", "false").text(&cores).end();
            }
            if shown.edit {
                self.link(w, "edit", &format!("{href}/virtualHardwareSection/{name}"), "rasdItem");
            }
            w.end();
        }
        self.disks(shown).iter().for_each(|disk| disk.item(w, "ovf:Item", nil));
        let drive = Rasd::new(3002, 15, "CD/DVD Drive 1").put("rasd:AddressOnParent", "0");
        drive.put("rasd:Parent", ids.ide.to_string()).item(w, "ovf:Item", nil);
        Rasd::new(8000, 14, "Floppy Drive 1").put("rasd:AddressOnParent", "0").item(w, "ovf:Item", nil);
    }

    fn disks(&self, shown: &Shown<'_>) -> Vec<Rasd> {
        let ids = shown.ids();
        let item = |(n, disk): (usize, &Disk)| {
            let (bus, kind) = if disk.is_sata() { ("20", "vmware.sata.ahci") } else { ("6", "VirtualSCSI") };
            let host = vec![
                ("vcloud:capacity", disk.mb.to_string()),
                ("vcloud:busSubType", kind.to_owned()),
                ("vcloud:busType", bus.to_owned()),
                ("vcloud:storageProfileOverrideVmDefault", "false".to_owned()),
            ];
            let item = Rasd::new(disk.id, 17, format!("Hard disk {}", n + 1)).put("rasd:Description", "Hard disk");
            let item = item.put("rasd:AddressOnParent", disk.place().1.to_string());
            let item =
                item.put_with("rasd:HostResource", host, "").put("rasd:Parent", ids.controller(disk).to_string());
            let item = item.put("rasd:VirtualQuantity", (disk.mb * 1024 * 1024).to_string());
            item.put("rasd:VirtualQuantityUnits", "byte")
        };
        shown.disks.iter().enumerate().map(item).collect()
    }

    fn cpu(&self, shown: &Shown<'_>) -> Rasd {
        let cpus = shown.cpus.0;
        let item = Rasd::new(shown.ids().cpu, 3, format!("{cpus} virtual CPU(s)"));
        let item = item.put("rasd:AllocationUnits", "hertz * 10^6").put("rasd:Description", "Number of Virtual CPUs");
        item.put("rasd:Reservation", "0").put("rasd:VirtualQuantity", cpus.to_string()).put("rasd:Weight", "0")
    }

    fn memory(&self, shown: &Shown<'_>) -> Rasd {
        let mb = shown.memory_mb;
        let item = Rasd::new(shown.ids().memory, 4, format!("{mb} MB of memory"));
        let item = item.put("rasd:AllocationUnits", "byte * 2^20").put("rasd:Description", "Memory Size");
        item.put("rasd:Reservation", "0").put("rasd:VirtualQuantity", mb.to_string()).put("rasd:Weight", "0")
    }

    /// The hardware section (or its part `cpu`, `memory`, `disks`) as a document.
    pub fn hardware(&self, id: VmId, vm: &Vm, part: &str) -> String {
        let href = self.href(id);
        let root = match part {
            "" => "ovf:VirtualHardwareSection",
            "disks" => "RasdItemsList",
            _ => "Item",
        };
        let mut w = Writer::new(self.prefixes, root);
        let shown = Shown::of(vm);
        match part {
            "cpu" => {
                self.cpu(&shown).write(&mut w, false);
                w.start("vmw:CoresPerSocket").attr("ovf:required", "false").text(&vm.cores_per_socket.to_string());
                w.end();
            }
            "memory" => self.memory(&shown).write(&mut w, false),
            "disks" => self.disks(&shown).iter().for_each(|disk| disk.item(&mut w, "Item", false)),
            _ => self.hardware_body(&mut w, &href, &shown),
        }
        w.finish()
    }

    /// Outside its vApp, such a NIC has an address of another range.
    fn is_behind_nat(&self, vm: &Vm, nic: &Nic) -> bool {
        let networks = self.model.vapps.get(&vm.vapp).map(|vapp| &vapp.networks);
        networks.into_iter().flatten().any(|n| Some(&n.name) == nic.network.as_ref() && n.fence == Fence::NatRouted)
    }

    fn nics_body(&self, w: &mut Writer, id: VmId, vm: &Vm) {
        let href = format!("{}/networkConnectionSection/", self.href(id));
        self.section(w, "NetworkConnectionSection", &href, "Specifies the available VM network connections");
        w.leaf("PrimaryNetworkConnectionIndex", vm.primary_nic.to_string());
        for nic in &vm.nics {
            w.start("NetworkConnection").attr("network", nic.network.as_deref().unwrap_or("none"));
            w.attr("needsCustomization", "false").leaf("NetworkConnectionIndex", nic.index.to_string());
            if let Some(address) = nic.address {
                w.leaf("IpAddress", address.to_string());
                if self.is_behind_nat(vm, nic) {
                    w.leaf("ExternalIpAddress", Ipv4Addr::new(203, 0, 113, address.octets()[3]).to_string());
                }
            }
            w.leaf("IsConnected", nic.connected.to_string());
            w.leaf(
                "MACAddress",
                format!("00:50:56:{:02x}:{:02x}:{:02x}", id.number() >> 8 & 0xff, id.number() & 0xff, nic.index & 0xff),
            );
            w.leaf("IpAddressAllocationMode", nic.mode.name()).leaf("NetworkAdapterType", &nic.adapter).end();
        }
    }

    /// The NICs as a document.
    pub fn nics(&self, id: VmId, vm: &Vm) -> String {
        let mut w = Writer::new(self.prefixes, "NetworkConnectionSection");
        self.nics_body(&mut w, id, vm);
        w.finish()
    }

    fn guest_body(&self, w: &mut Writer, id: VmId, vm: &Vm) {
        let guest = &vm.guest;
        let href = format!("{}/guestCustomizationSection/", self.href(id));
        self.section(w, "GuestCustomizationSection", &href, "Specifies Guest OS Customization Settings");
        w.leaf("Enabled", guest.enabled.to_string()).leaf("ChangeSid", guest.change_sid.to_string());
        w.leaf("VirtualMachineId", self.model.uuid(id)).leaf("JoinDomainEnabled", "false");
        w.leaf("UseOrgSettings", "false").leaf("AdminPasswordEnabled", guest.admin_password_enabled.to_string());
        w.leaf("AdminPasswordAuto", guest.admin_password_auto.to_string());
        if let Some(password) = &guest.admin_password {
            w.leaf("AdminPassword", password);
        }
        w.leaf("AdminAutoLogonEnabled", guest.admin_auto_logon_enabled.to_string());
        w.leaf("AdminAutoLogonCount", guest.admin_auto_logon_count.to_string());
        w.leaf("ResetPasswordRequired", guest.reset_password_required.to_string());
        if let Some(script) = &guest.script {
            w.leaf("CustomizationScript", script);
        }
        if let Some(name) = &guest.computer_name {
            w.leaf("ComputerName", name);
        }
    }

    /// The guest customization as a document.
    pub fn guest(&self, id: VmId, vm: &Vm) -> String {
        let mut w = Writer::new(self.prefixes, "GuestCustomizationSection");
        self.guest_body(&mut w, id, vm);
        w.finish()
    }

    /// The status of guest customization as a document.
    pub fn guest_status(&self, vm: &Vm) -> String {
        let mut w = Writer::new(self.prefixes, "GuestCustomizationStatusSection");
        w.leaf("GuestCustStatus", vm.gc.name());
        w.finish()
    }

    /// The guest properties as a document.
    pub fn properties(&self, vm: &Vm) -> String {
        let mut w = Writer::new(self.prefixes, "ProductSectionList");
        if !vm.properties.is_empty() {
            w.start("ovf:ProductSection").leaf("ovf:Info", "Custom properties");
            for (key, value) in &vm.properties {
                w.start("ovf:Property")
                    .attr("ovf:key", key)
                    .attr("ovf:type", "string")
                    .attr("ovf:userConfigurable", "true");
                w.start("ovf:Value").attr("ovf:value", value).end().end();
            }
        }
        w.finish()
    }

    /// Metadata as a document. With `key`, only its value.
    pub fn metadata(&self, metadata: &Metadata, key: Option<&str>) -> Option<String> {
        let value = |w: &mut Writer, kind: &str, value: &str| {
            w.start("TypedValue").attr("xsi:type", kind).leaf("Value", value).end();
        };
        if let Some(key) = key {
            let (kind, text) = metadata.get(key)?;
            let mut w = Writer::new(self.prefixes, "MetadataValue");
            w.start("Domain").attr("visibility", "READWRITE").text("GENERAL").end();
            value(&mut w, kind, text);
            return Some(w.finish());
        }
        let mut w = Writer::new(self.prefixes, "Metadata");
        for (key, (kind, text)) in metadata {
            w.start("MetadataEntry").start("Domain").attr("visibility", "READWRITE").text("GENERAL").end();
            w.leaf("Key", key);
            value(&mut w, kind, text);
            w.end();
        }
        Some(w.finish())
    }

    /// A template as a document.
    pub fn template(&self, id: TemplateId, template: &Template) -> String {
        let mut w = self.entity("VAppTemplate", id, &template.name);
        w.attr("status", template.state.words().1).attr("ovfDescriptorUploaded", "true").attr("goldMaster", "false");
        self.link(&mut w, "up", &self.href(template.vdc), "vdc");
        self.link(&mut w, "catalogItem", &self.href(ItemId::of(id.number())), "catalogItem");
        w.leaf("Description", "");
        if template.state == TemplateState::Copying {
            w.start("Tasks").start("Task").attr("status", "running").attr("operationName", "vdcCopyTemplate");
            w.attr("href", format!("{}/api/task/{}", self.base, self.model.uuid(id))).end().end();
        }
        w.start("Children");
        for vm_id in &template.vms {
            if let Some(vm) = self.model.template_vms.get(vm_id) {
                w.start("Vm");
                self.template_vm_inside(&mut w, *vm_id, vm, false);
                w.end();
            }
        }
        w.end().leaf("DateCreated", self.when(template.created));
        w.finish()
    }

    /// A template's VM as a document.
    pub fn template_vm(&self, id: TemplateVmId, vm: &TemplateVm) -> String {
        let mut w = Writer::new(self.prefixes, "Vm");
        self.template_vm_inside(&mut w, id, vm, true);
        w.finish()
    }

    /// `alone`: as a separate document.
    fn template_vm_inside(&self, w: &mut Writer, id: TemplateVmId, vm: &TemplateVm, alone: bool) {
        let shows = match vm.shows {
            HardwareShown::Apart if alone => HardwareShown::Section,
            HardwareShown::Apart => HardwareShown::Nothing,
            shows => shows,
        };
        self.entity_attrs(w, id, &vm.name);
        let state = self.model.templates.get(&vm.template).map(|t| t.state).unwrap_or_default();
        w.attr("status", state.words().1).attr("deployed", "false");
        self.link(w, "up", &self.href(vm.template), "vAppTemplate");
        w.leaf("Description", "").start("NetworkConnectionSection").attr("ovf:required", "false");
        w.leaf("ovf:Info", "Specifies the available VM network connections");
        w.leaf("PrimaryNetworkConnectionIndex", "0");
        for nic in &vm.nics {
            w.start("NetworkConnection").attr("network", nic.network.as_deref().unwrap_or("none"));
            w.leaf("NetworkConnectionIndex", nic.index.to_string()).leaf("IsConnected", nic.connected.to_string());
            w.leaf("IpAddressAllocationMode", nic.mode.name()).leaf("NetworkAdapterType", &nic.adapter).end();
        }
        w.end();
        w.start("GuestCustomizationSection").leaf("ovf:Info", "Guest customization").leaf("Enabled", "true").end();
        if shows != HardwareShown::Nothing {
            w.start("ovf:OperatingSystemSection").attr("ovf:id", "94").attr("vmw:osType", &vm.os_type);
            w.leaf("ovf:Info", "Specifies the operating system installed").leaf("ovf:Description", &vm.guest_os).end();
        }
        let shown = Shown {
            cpus: (vm.cpus, vm.cores_per_socket),
            memory_mb: vm.memory_mb,
            disks: &vm.disks,
            nics: &vm.nics,
            edit: false,
            nil: shows == HardwareShown::Nil,
        };
        if matches!(shows, HardwareShown::Section | HardwareShown::Nil) {
            w.start("ovf:VirtualHardwareSection");
            self.hardware_body(w, &self.href(id), &shown);
            if vm.passthrough {
                let item = Rasd::new(13_000, 1, "PCI device 0").put("rasd:Description", "PCI device");
                item.put("rasd:ResourceSubType", "vmware.pcipassthrough").item(w, "ovf:Item", shown.nil);
            }
            w.end();
        }
        if shows != HardwareShown::Nothing {
            w.start("VmSpecSection").leaf("ovf:Info", "Virtual Machine specification");
            if shows == HardwareShown::Spec {
                self.spec_hardware(w, &vm.os_type, &shown, None);
            }
            w.leaf("VmToolsVersion", vm.tools.to_string()).end();
        }
        w.leaf("VAppScopedLocalId", &vm.name).leaf("DateCreated", self.when(0));
        w.start("TrustedPlatformModule").leaf("TpmPresent", vm.tpm.to_string()).end();
    }

    /// The list of orgs that a user sees.
    pub fn orgs(&self, org: Option<OrgId>) -> String {
        let mut w = Writer::new(self.prefixes, "OrgList");
        if let Some((id, org)) = org.and_then(|id| self.model.orgs.get(&id).map(|o| (id, o))) {
            self.reference(&mut w, "Org", id, &org.name);
        }
        w.finish()
    }

    /// An org as a document.
    pub fn org(&self, id: OrgId, org: &Org) -> String {
        let mut w = self.entity("Org", id, &org.name);
        let mut link = |href: String, name: &str, media_name: &str| {
            w.start("Link").attr("rel", "down").attr("href", href).attr("type", media(media_name));
            if !name.is_empty() {
                w.attr("name", name);
            }
            w.end();
        };
        for (vdc_id, vdc) in self.model.vdcs.iter().filter(|(_, v)| v.org == id) {
            link(self.href(*vdc_id), &vdc.name, "vdc");
            for (network_id, n) in self.model.networks.iter().filter(|(_, n)| n.vdc == *vdc_id) {
                link(self.href(*network_id), &n.name, "orgNetwork");
            }
        }
        for (catalog_id, c) in self.model.catalogs.iter().filter(|(_, c)| c.org == id) {
            link(self.href(*catalog_id), &c.name, "catalog");
        }
        for kind in ["orgVdc", "catalog"] {
            link(format!("{}/api/query?type={kind}&format=records", self.base), "", "query.records");
        }
        w.leaf("Description", "").leaf("FullName", &org.name);
        w.finish()
    }

    /// A VDC as a document.
    pub fn vdc(&self, id: VdcId, vdc: &Vdc) -> String {
        let mut w = self.entity("Vdc", id, &vdc.name);
        w.attr("status", "1");
        let href = self.href(id);
        self.link(&mut w, "up", &self.href(vdc.org), "org");
        for name in ["instantiateVAppTemplate", "composeVApp"] {
            self.link(&mut w, "add", &format!("{href}/action/{name}"), &format!("{name}Params"));
        }
        w.leaf("Description", "").leaf("AllocationModel", "Flex").start("ComputeCapacity");
        for (name, unit, limit) in [("Cpu", "MHz", vdc.cpu_limit.map(u64::from)), ("Memory", "MB", vdc.memory_limit_mb)]
        {
            w.start(name).leaf("Units", unit).leaf("Allocated", "0").leaf("Limit", limit.unwrap_or(0).to_string());
            let used = if name == "Memory" { self.model.memory_used(id) } else { 0 };
            w.leaf("Reserved", "0").leaf("Used", used.to_string()).end();
        }
        w.end().start("ResourceEntities");
        for (vapp_id, v) in self.model.vapps.iter().filter(|(_, v)| v.vdc == id) {
            self.reference(&mut w, "ResourceEntity", *vapp_id, &v.name);
        }
        for (template_id, t) in self.model.templates.iter().filter(|(_, t)| t.vdc == id) {
            self.reference(&mut w, "ResourceEntity", *template_id, &t.name);
        }
        w.end().start("AvailableNetworks");
        let same_org = |other: VdcId| self.model.vdcs.get(&other).is_some_and(|v| v.org == vdc.org);
        let listed = |n: &Network| n.vdc == id || (n.reach == Reach::Listed && same_org(n.vdc));
        for (network_id, n) in self.model.networks.iter().filter(|(_, n)| listed(n)) {
            self.reference(&mut w, "Network", *network_id, &n.name);
        }
        w.end().leaf("NicQuota", "0").leaf("NetworkQuota", "1000").leaf("UsedNetworkCount", "1");
        w.leaf("VmQuota", vdc.vm_limit.unwrap_or(0).to_string()).leaf("IsEnabled", vdc.enabled.to_string());
        w.start("VdcStorageProfiles");
        for (profile_id, p) in self.model.profiles.iter().filter(|(_, p)| p.vdc == id) {
            self.reference(&mut w, "VdcStorageProfile", *profile_id, &p.name);
        }
        w.finish()
    }

    /// A catalog as a document.
    pub fn catalog(&self, id: CatalogId, catalog: &Catalog) -> String {
        let mut w = self.entity("Catalog", id, &catalog.name);
        self.link(&mut w, "up", &self.href(catalog.org), "org");
        w.leaf("Description", "").start("CatalogItems");
        for (template_id, t) in self.model.templates.iter().filter(|(_, t)| t.catalog == id) {
            self.reference(&mut w, "CatalogItem", ItemId::of(template_id.number()), t.item_name());
        }
        w.end().leaf("IsPublished", "false").leaf("DateCreated", self.when(0));
        w.finish()
    }

    /// A catalog item as a document.
    pub fn item(&self, id: ItemId, template_id: TemplateId, template: &Template) -> String {
        let mut w = self.entity("CatalogItem", id, template.item_name());
        w.leaf("Description", "");
        self.reference(&mut w, "Entity", template_id, &template.name);
        w.leaf("DateCreated", self.when(template.created));
        w.finish()
    }

    /// A network as a document.
    pub fn network(&self, id: NetworkId, network: &Network) -> String {
        let mut w = self.entity("OrgVdcNetwork", id, &network.name);
        w.attr("status", "1");
        self.link(&mut w, "up", &self.href(network.vdc), "vdc");
        w.leaf("Description", "").start("Configuration").start("IpScopes").start("IpScope");
        w.leaf("IsInherited", "true").leaf("Gateway", network.gateway.to_string());
        w.leaf("Netmask", network.netmask.to_string()).leaf("Dns1", network.dns.to_string()).leaf("IsEnabled", "true");
        w.start("IpRanges").start("IpRange").leaf("StartAddress", network.pool.0.to_string());
        w.leaf("EndAddress", network.pool.1.to_string()).end().end().start("AllocatedIpAddresses");
        for address in network.used.keys().filter(|a| (network.pool.0..=network.pool.1).contains(*a)) {
            w.leaf("IpAddress", address.to_string());
        }
        w.end().end().end();
        w.leaf("FenceMode", "bridged").end().leaf("IsShared", "false");
        w.finish()
    }

    /// A storage profile as a document.
    pub fn profile(&self, id: ProfileId, profile: &Profile) -> String {
        let mut w = self.entity("VdcStorageProfile", id, &profile.name);
        w.leaf("Enabled", profile.enabled.to_string()).leaf("Units", "MB").leaf("Limit", profile.limit_mb.to_string());
        w.leaf("Default", profile.default.to_string());
        w.leaf("StorageUsedMB", self.model.storage_used(id).to_string());
        w.finish()
    }

    // Query records.

    fn put_task(&self, r: &mut Record, task: Option<TaskRef>) {
        let Some(task) = task else { return };
        r.put("task", self.href(task.id)).put("taskStatus", task.status.name());
        r.put("taskStatusName", task.operation.name()).put("taskDetails", " ");
    }

    fn put_metadata(&self, r: &mut Record, metadata: &Metadata) {
        for (key, (kind, value)) in metadata {
            r.metadata.push((key.to_string(), kind.to_string(), value.to_string()));
        }
    }

    /// `VMRecord`.
    pub fn vm_record(&self, vm: &VmRecord) -> Record {
        let mut r = Record::default();
        r.put("href", self.href(vm.id)).put("name", &*vm.name).put("containerName", &*vm.vapp_name);
        r.put("container", self.href(vm.vapp)).put("status", vm.status.name());
        r.put("containerStatus", vm.vapp_status.name()).put("isDeployed", vm.deployed.to_string());
        r.put("isBusy", vm.busy.to_string()).put("isDeleted", "false").put("isVAppTemplate", "false");
        r.put("guestOs", &*vm.guest_os).put_some("ipAddress", vm.address.map(|a| a.to_string()));
        r.put_some("networkName", vm.network_name.as_deref());
        r.put_some("network", vm.network.map(|n| self.href(n))).put("numberOfCpus", vm.cpus.to_string());
        r.put("memoryMB", vm.memory_mb.to_string()).put("gcStatus", vm.gc.name());
        r.put("dateCreated", self.when(vm.created)).put("description", &*vm.description);
        r.put("totalStorageAllocatedMb", vm.storage_mb.to_string()).put("isInMaintenanceMode", "false");
        self.put_vdc(&mut r, vm.vdc);
        r.put_some("org", self.model.vdcs.get(&vm.vdc).map(|v| self.href(v.org)));
        r.put_some("storageProfileName", self.model.profiles.get(&vm.profile).map(|p| &*p.name));
        r.put("hardwareVersion", "19").put("vmToolsStatus", "Running").put("isExpired", vm.expired.to_string());
        r.put_some("autoUndeployDate", vm.undeploy_at.map(|at| self.when(at)));
        r.put_some("autoDeleteDate", vm.delete_at.map(|at| self.when(at)));
        self.put_task(&mut r, vm.task);
        self.put_metadata(&mut r, &vm.metadata);
        r
    }

    fn put_vdc(&self, r: &mut Record, vdc: VdcId) {
        r.put("vdc", self.href(vdc)).put_some("vdcName", self.model.vdcs.get(&vdc).map(|v| &*v.name));
        r.put_some("isVdcEnabled", self.model.vdcs.get(&vdc).map(|v| v.enabled.to_string()));
    }

    /// `VMRecord` of a template's VM.
    pub fn template_vm_record(&self, record: &TemplateVmRecord) -> Option<Record> {
        let vm = self.model.template_vms.get(&record.id)?;
        let template = self.model.templates.get(&record.template)?;
        let mut r = Record::default();
        r.put("href", self.href(record.id)).put("name", &*vm.name).put("containerName", &*template.name);
        r.put("container", self.href(record.template)).put("status", "POWERED_OFF").put("isVAppTemplate", "true");
        r.put("isDeployed", "false").put("isBusy", "false").put("isDeleted", "false").put("guestOs", &*vm.guest_os);
        r.put("numberOfCpus", vm.cpus.to_string()).put("memoryMB", vm.memory_mb.to_string());
        r.put_some("catalogName", self.model.catalogs.get(&template.catalog).map(|c| &*c.name));
        self.put_vdc(&mut r, template.vdc);
        r.put("dateCreated", self.when(template.created));
        Some(r)
    }

    /// `VAppRecord`.
    pub fn vapp_record(&self, vapp: &VappRecord) -> Record {
        let mut r = Record::default();
        r.put("href", self.href(vapp.id)).put("name", &*vapp.name).put("status", vapp.status.name());
        r.put("isDeployed", vapp.deployed.to_string()).put("isBusy", vapp.busy.to_string()).put("isEnabled", "true");
        r.put("isExpired", vapp.expired.to_string()).put("isInMaintenanceMode", "false").put("isPublic", "false");
        r.put("ownerName", self.model.users.get(&vapp.owner).map_or("system", |u| &u.name));
        r.put("creationDate", self.when(vapp.created)).put("numberOfCpus", vapp.cpus.to_string());
        r.put("memoryAllocationMB", vapp.memory_mb.to_string()).put("description", &*vapp.description);
        r.put("totalStorageAllocatedMb", (vapp.storage_kb / 1024).to_string());
        // Only for provider users.
        r.put("numberOfVMs", vapp.vms.to_string()).put("storageKB", vapp.storage_kb.to_string());
        r.put_some("org", self.model.vdcs.get(&vapp.vdc).map(|v| self.href(v.org)));
        self.put_vdc(&mut r, vapp.vdc);
        self.put_metadata(&mut r, &vapp.metadata);
        r
    }

    /// `TaskRecord`.
    pub fn task_record(&self, id: TaskId, task: &Task) -> Record {
        let mut r = Record::default();
        let (object, kind) = match task.target {
            Target::Vapp(v) => (self.href(v), "vapp"),
            Target::Vm(v) => (self.href(v), "vm"),
        };
        r.put("href", self.href(id)).put("name", task.operation.name()).put("status", task.status.name());
        r.put("operationFull", task.operation.text()).put("startDate", self.when(task.start));
        r.put_some("endDate", task.end.map(|e| self.when(e))).put("object", object).put("objectType", kind);
        r.put("objectName", &*task.target_name).put("org", self.href(task.org));
        r.put_some("orgName", self.model.orgs.get(&task.org).map(|o| &*o.name));
        r.put_some("ownerName", self.model.users.get(&task.user).map(|u| &*u.name));
        r.put_some("message", task.error.as_ref().map(|e| e.message.as_str()));
        r.put("progress", if task.end.is_some() { "100" } else { "1" }).put("serviceNamespace", "com.vmware.vcloud");
        r
    }

    /// `OrgRecord`, `OrgVdcRecord`, `CatalogRecord`, `VAppTemplateRecord`, `CatalogItemRecord`,
    /// `OrgVdcNetworkRecord`, `OrgVdcStorageProfileRecord`: entities that hardly ever change.
    pub fn static_records(&self, who: UserId, kind: &str) -> Vec<Record> {
        let m = self.model;
        let org = m.users.get(&who).map(|u| u.org);
        let everything = m.is_provider(who);
        let mut all = Vec::new();
        let mut add = |href: String, name: &str, fill: &dyn Fn(&mut Record)| {
            let mut r = Record::default();
            r.put("href", href).put("name", name);
            fill(&mut r);
            all.push(r);
        };
        match kind {
            "organization" => {
                for (id, o) in m.orgs.iter().filter(|(id, _)| Some(**id) == org) {
                    add(self.href(*id), &o.name, &|r| {
                        r.put("displayName", &*o.name).put("isEnabled", "true").put("isReadOnly", "false");
                    });
                }
            }
            "orgVdc" => {
                for (id, v) in m.vdcs.iter().filter(|(_, v)| everything || Some(v.org) == org) {
                    add(self.href(*id), &v.name, &|r| {
                        r.put("isEnabled", v.enabled.to_string()).put("isBusy", "false").put("status", "READY");
                        r.put_some("orgName", m.orgs.get(&v.org).map(|o| &*o.name)).put("org", self.href(v.org));
                        r.put("numberOfVApps", m.vapps.values().filter(|a| a.vdc == *id).count().to_string());
                    });
                }
            }
            "catalog" => {
                for (id, c) in m.catalogs.iter().filter(|(_, c)| everything || Some(c.org) == org || c.shared) {
                    add(self.href(*id), &c.name, &|r| {
                        r.put("isPublished", "false").put("isShared", c.shared.to_string()).put("isLocal", "true");
                        r.put_some("orgName", m.orgs.get(&c.org).map(|o| &*o.name)).put("status", "READY");
                        r.put("creationDate", self.when(0)).put("owner", "").put("ownerName", "system");
                    });
                }
            }
            "vAppTemplate" | "catalogItem" => {
                for (id, t) in m.templates.iter().filter(|(id, _)| m.get_template(who, **id).is_ok()) {
                    let is_item = kind == "catalogItem";
                    let href = if is_item { self.href(ItemId::of(id.number())) } else { self.href(*id) };
                    let name = if is_item { t.item_name() } else { &t.name };
                    add(href, name, &|r| {
                        let catalog = m.catalogs.get(&t.catalog);
                        r.put_some("catalogName", catalog.map(|c| &*c.name)).put("catalog", self.href(t.catalog));
                        r.put("status", t.state.words().0).put("isExpired", t.expired.to_string());
                        r.put("creationDate", self.when(t.created)).put("ownerName", "system");
                        self.put_vdc(r, t.vdc);
                        if is_item {
                            r.put("entity", self.href(*id))
                                .put("entityName", &*t.name)
                                .put("entityType", "vapptemplate");
                        } else {
                            r.put_some("org", catalog.map(|c| self.href(c.org)));
                            r.put("isBusy", (t.state == TemplateState::Copying).to_string());
                            r.put("isDeployed", "false").put("isEnabled", "true").put("isGoldMaster", "false");
                            // Only for provider users.
                            r.put("catalogItem", self.href(ItemId::of(id.number())));
                        }
                    });
                }
            }
            "orgVdcNetwork" => {
                for (id, n) in m.networks.iter().filter(|(_, n)| m.sees_vdc(who, n.vdc)) {
                    add(self.href(*id), &n.name, &|r| {
                        r.put("defaultGateway", n.gateway.to_string()).put("netmask", n.netmask.to_string());
                        r.put("dns1", n.dns.to_string()).put("linkType", "0").put("isBusy", "false");
                        r.put("isShared", (n.reach == Reach::Shared).to_string()).put("isIpScopeInherited", "true");
                        match n.reach {
                            Reach::Group => _ = r.put("vdcGroupId", group_of(self, n.vdc)),
                            Reach::GroupAlone => {}
                            _ => self.put_vdc(r, n.vdc),
                        }
                    });
                }
            }
            "orgVdcStorageProfile" => {
                for (id, p) in m.profiles.iter().filter(|(_, p)| m.sees_vdc(who, p.vdc)) {
                    add(self.href(*id), &p.name, &|r| {
                        r.put("isEnabled", p.enabled.to_string()).put("isDefaultStorageProfile", p.default.to_string());
                        r.put("storageUsedMB", m.storage_used(*id).to_string());
                        r.put("storageLimitMB", p.limit_mb.to_string()).put("isVdcBusy", "false");
                        self.put_vdc(r, p.vdc);
                    });
                }
            }
            _ => {}
        }
        all
    }
}

/// The id of the VDC group that a VDC is in.
pub fn group_of(view: &View<'_>, vdc: VdcId) -> String {
    format!("urn:vcloud:vdcGroup:{}", view.model.uuid(vdc))
}

fn lower_first(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map(|c| c.to_lowercase().chain(chars).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #[test]
    fn dates_are_civil() {
        assert_eq!(super::date(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(super::date(951_782_400_000, 0), "2000-02-29T00:00:00.000Z");
        assert_eq!(super::date(1_767_225_600_123, 0), "2026-01-01T00:00:00.123Z");
        assert_eq!(super::date(1_767_225_600_123, 120), "2026-01-01T02:00:00.123+02:00");
        assert_eq!(super::date(1_767_225_600_123, -210), "2025-12-31T20:30:00.123-03:30");
    }
}
