//! The model: what a VMware Cloud Director knows and does, as plain data with a logical clock. No I/O, no threads, no
//! wall clock: the same seed and the same calls give the same world. It knows nothing of HTTP or XML.
//!
//! Time stands still until [`Model::advance`]. Everything that VCD does later (the end of a task, a guest that has
//! booted, a lease that ends) is on an agenda. [`Model::next_due`] returns the time of the next event.
//!
//! The maps of entities are public for reading, and to set up a world. Change a running world only with the methods.

mod admin;
mod check;
mod engine;
mod ops;
mod records;

pub use engine::{GuestFault, Inject, TaskFault, TaskFaultKind};
pub use ops::{
    Create, DiskChange, Hardware, Item, MetadataEntry, MetadataTarget, PowerAction, Recompose, UndeployAction,
    VappChange, VmChange,
};
pub(crate) use records::thin;
pub use records::{QueryFault, Records, TaskRef, TemplateVmRecord, VappRecord, VmRecord};

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// Logical time: milliseconds since the start of the model.
pub type Ms = u64;

/// A small deterministic random source (splitmix64).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A source that depends on `seed` only.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n` (0 if `n` is 0).
    pub fn below(&mut self, n: u64) -> u64 {
        self.bits().checked_rem(n).unwrap_or(0)
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        p > 0.0 && (self.bits() >> 11) as f64 / (1u64 << 53) as f64 <= p
    }
}

/// Ids that are UUIDs in URLs. A UUID contains the seed, a number for the kind, and a counter, so that both
/// conversions are cheap.
pub trait Id: Copy {
    /// The number of the kind in the UUID.
    const KIND: u16;
    /// VMware's name of the kind in its error texts.
    const ENTITY: &'static str;
    /// The counter.
    fn number(self) -> u32;
    /// From the counter.
    fn of(number: u32) -> Self;
}

macro_rules! ids {
    ($($name:ident $kind:literal $entity:literal $doc:literal),* $(,)?) => {$(
        #[doc = $doc]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u32);
        impl Id for $name {
            const KIND: u16 = $kind;
            const ENTITY: &'static str = $entity;
            fn number(self) -> u32 {
                self.0
            }
            fn of(number: u32) -> Self {
                Self(number)
            }
        }
    )*};
}

ids! {
    OrgId 1 "org" "An organization.",
    UserId 2 "user" "A user.",
    VdcId 3 "vdc" "A virtual data center of an org.",
    ProfileId 4 "vdcStorageProfile" "A storage profile of a VDC.",
    NetworkId 5 "network" "An org VDC network.",
    PolicyId 6 "vdcComputePolicy" "A sizing policy.",
    CatalogId 7 "catalog" "A catalog.",
    TemplateId 8 "vapptemplate" "A vApp template; its catalog item has the same number.",
    TemplateVmId 9 "vm" "A VM inside a template.",
    VappId 10 "vapp" "A vApp.",
    VmId 11 "vm" "A VM of a vApp.",
    TaskId 12 "task" "A task.",
    ItemId 13 "catalogitem" "A catalog item.",
}

/// VCD's answer when it rejects a request. Nothing was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// `minorErrorCode`.
    pub minor: Cow<'static, str>,
    /// `message`, without the request id.
    pub message: String,
}

impl Refusal {
    pub(crate) fn new(status: u16, minor: &'static str, message: impl Into<String>) -> Self {
        Self { status, minor: Cow::Borrowed(minor), message: message.into() }
    }

    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(400, "BAD_REQUEST", message)
    }
}

/// How long VCD takes, in milliseconds of VCD time.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is named for what it measures")]
pub struct Durations {
    pub instantiate: Ms,
    pub compose: Ms,
    pub compose_empty: Ms,
    pub recompose: Ms,
    /// From the create request until queries and the vApp show the new VM.
    pub vm_shows: Ms,
    pub power_on: Ms,
    pub power_off: Ms,
    pub reconfigure: Ms,
    pub undeploy: Ms,
    pub delete: Ms,
    pub delete_forced: Ms,
    pub suspend: Ms,
    pub metadata: Ms,
    pub consolidate: Ms,
    /// From the cancel request until the task is `canceled`.
    pub cancel: Ms,
    /// From power on until Tools report a DHCP address.
    pub address: Ms,
    /// From power on until customization is complete.
    pub customization: Ms,
    /// From customization (or the address, if nothing is customized) until SSH answers.
    pub ssh: Ms,
}

impl Default for Durations {
    fn default() -> Self {
        Self {
            instantiate: 20_000,
            compose: 20_000,
            compose_empty: 2_000,
            recompose: 20_000,
            vm_shows: 2_000,
            power_on: 10_000,
            power_off: 5_000,
            reconfigure: 3_000,
            undeploy: 5_000,
            delete: 4_000,
            delete_forced: 9_000,
            suspend: 12_000,
            metadata: 1_000,
            consolidate: 30_000,
            cancel: 2_000,
            address: 10_000,
            customization: 25_000,
            ssh: 3_000,
        }
    }
}

/// What VCD does with a hardware section, or with guest properties, in a create request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HardwareInCreate {
    /// Applies it.
    #[default]
    Apply,
    /// Accepts it and does not apply it.
    Ignore,
    /// Rejects the request with 400.
    Refuse,
}

impl std::str::FromStr for HardwareInCreate {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "apply" => Ok(Self::Apply),
            "ignore" => Ok(Self::Ignore),
            "refuse" => Ok(Self::Refuse),
            _ => Err("expected apply, ignore or refuse".into()),
        }
    }
}

/// What VCD does with a create whose adapter is on another network than the template's adapter, if the template's
/// network is not "none" and no NetworkAssignment connects the two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OwnNetworkInCreate {
    /// The task fails: the template's network does not exist.
    #[default]
    Refuse,
    /// The adapter stays on the template's network, without an error.
    Ignore,
}

impl std::str::FromStr for OwnNetworkInCreate {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "refuse" => Ok(Self::Refuse),
            "ignore" => Ok(Self::Ignore),
            _ => Err("expected refuse or ignore".into()),
        }
    }
}

/// How values in a filter are escaped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FilterEscapes {
    /// A backslash escapes a character that has a meaning in filters, as documented.
    #[default]
    Backslash,
    /// A backslash is an ordinary character, and brackets in a value need no escape.
    Nothing,
}

impl std::str::FromStr for FilterEscapes {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "backslash" => Ok(Self::Backslash),
            "nothing" => Ok(Self::Nothing),
            _ => Err("expected backslash or nothing".into()),
        }
    }
}

/// Wording and codes of rejections, where releases differ. The default is that of recordings from older releases.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wording {
    /// "Stop the vApp and try again" is a 409, as from 10.4.1 on.
    pub stop_is_409: bool,
    /// A request for a busy entity is rejected without the code BUSY_ENTITY. The text names the task.
    pub busy_names_a_task: bool,
    /// A taken name is reported as the name of a VM, without the code DUPLICATE_NAME.
    pub duplicate_is_a_vm: bool,
}

/// Where VCD installations differ.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Two vApps of one VDC may have the same name.
    pub allow_duplicate_names: bool,
    /// Deleted entities are answered with 404 RESOURCE_NOT_FOUND instead of 403.
    pub gone_is_404: bool,
    /// Wording of other rejections.
    pub wording: Wording,
    /// What VCD does with hardware in create requests.
    pub hardware_in_create: HardwareInCreate,
    /// What VCD does with guest properties (`ProductSection`) in create requests.
    pub properties_in_create: HardwareInCreate,
    /// What VCD does with an adapter whose template has its own network.
    pub own_network_in_create: OwnNetworkInCreate,
    /// A create with power-on creates the VM, then its task fails and leaves the VM off. A separate power-on works.
    pub create_fails_at_power_on: bool,
    /// The task fails if the storage quota is full, and not the request.
    pub storage_quota_in_task: bool,
    /// Forced deletes and undeploys need [`Right::Force`].
    pub force_needs_right: bool,
    /// No VM can be suspended, like VMs with a passthrough device or a snapshot.
    pub no_suspend: bool,
    /// Lifetime of a bearer in seconds.
    pub bearer_s: u64,
    /// Duration of a DHCP lease; `None`: no end. A guest that was suspended for longer gets another address, which
    /// shows when its Tools report it. Until then VCD shows the old address, which another guest may have by now.
    pub dhcp_lease: Option<Ms>,
    /// VCD keeps a task for this long after its end.
    pub task_kept: Ms,
    /// Durations vary at random by up to this percentage.
    pub jitter_percent: u32,
    /// The offset of VCD's local time from UTC. VCD shows dates in local time.
    pub utc_offset_minutes: i32,
    /// A running task has an Error element: "still in progress".
    pub running_task_has_error: bool,
    /// How values in a filter are escaped.
    pub filter_escapes: FilterEscapes,
    /// A filter that is in brackets as a whole finds nothing.
    pub bracketed_filter_finds_nothing: bool,
    /// Documented attributes of records that this VCD does not know: rejected in `fields`, and not shown.
    pub unknown_fields: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            allow_duplicate_names: false,
            gone_is_404: false,
            wording: Wording::default(),
            hardware_in_create: HardwareInCreate::Apply,
            properties_in_create: HardwareInCreate::Apply,
            own_network_in_create: OwnNetworkInCreate::Refuse,
            create_fails_at_power_on: false,
            storage_quota_in_task: false,
            force_needs_right: false,
            no_suspend: false,
            bearer_s: 86_400,
            dhcp_lease: None,
            task_kept: 90 * 86_400_000,
            jitter_percent: 0,
            utc_offset_minutes: 0,
            running_task_has_error: true,
            filter_escapes: FilterEscapes::Backslash,
            bracketed_filter_finds_nothing: true,
            unknown_fields: Vec::new(),
        }
    }
}

/// A right that an operation needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Create vApps.
    Create,
    /// Delete vApps.
    Delete,
    /// Power operations, deploy and undeploy.
    Power,
    /// Change vApps, VMs and metadata.
    Edit,
    /// Forced undeploy and consolidate.
    Force,
    /// Read the org's settings.
    ViewOrg,
}

impl Right {
    /// All of them.
    pub const ALL: [Right; 6] = [Right::Create, Right::Delete, Right::Power, Right::Edit, Right::Force, Right::ViewOrg];

    /// VCD's name of the right.
    pub fn name(self) -> &'static str {
        match self {
            Right::Create => "vApp: Create / Reconfigure",
            Right::Delete => "vApp: Delete",
            Right::Power => "vApp: Power Operations",
            Right::Edit => "vApp: Edit Properties",
            Right::Force => "vApp: VM Migrate, Force Undeploy, Relocate, Consolidate",
            Right::ViewOrg => "Organization: View",
        }
    }
}

/// An organization.
#[derive(Clone, Debug)]
pub struct Org {
    /// Its name, as in the login URL.
    pub name: Arc<str>,
    /// Maximum number of running tasks. VCD rejects more.
    pub max_running: Option<u32>,
    /// Its lease rules.
    pub leases: LeaseRules,
}

/// Lease rules of an org. 0 seconds are "never".
#[derive(Clone, Debug, Default)]
pub struct LeaseRules {
    /// Default and maximum of the deployment lease.
    pub deployment_s: (u64, u64),
    /// Default and maximum of the storage lease.
    pub storage_s: (u64, u64),
    /// At the end of the deployment lease, VCD powers the vApp off instead of suspending it.
    pub power_off: bool,
    /// At the end of the storage lease, VCD marks the vApp as expired instead of deleting it.
    pub keep_expired: bool,
}

/// A user of an org.
#[derive(Clone, Debug)]
pub struct User {
    /// The org.
    pub org: OrgId,
    /// The login name.
    pub name: Arc<str>,
    /// The password.
    pub password: Arc<str>,
    /// What the user may do.
    pub rights: Vec<Right>,
}

/// A bearer's session.
#[derive(Clone, Debug)]
pub struct Session {
    /// The user of the session.
    pub user: UserId,
    /// When it ends.
    pub expires: Ms,
}

/// VCD's answer to a token.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The bearer for the next requests.
    pub bearer: Arc<str>,
    /// Lifetime of the bearer in seconds.
    pub life_s: u64,
    /// The token for the next login, if the token is valid for one login only.
    pub next: Option<Arc<str>>,
}

/// A virtual data center. Limits: `None` is unlimited.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is named for what it holds")]
pub struct Vdc {
    pub org: OrgId,
    pub name: Arc<str>,
    pub enabled: bool,
    /// CPUs of powered-on VMs, checked at power on.
    pub cpu_limit: Option<u32>,
    /// Memory of powered-on VMs, checked at power on.
    pub memory_limit_mb: Option<u64>,
    /// Number of VMs, checked when a create is requested.
    pub vm_limit: Option<u32>,
    /// Linked clones: disks cannot grow before they are consolidated.
    pub fast_provisioning: bool,
}

/// A storage profile.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is named for what it holds")]
pub struct Profile {
    pub vdc: VdcId,
    pub name: Arc<str>,
    pub enabled: bool,
    pub default: bool,
    /// 0: no limit.
    pub limit_mb: u64,
}

/// Which VDCs may use a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// The VDC that owns it.
    #[default]
    Vdc,
    /// All VDCs of its org: `isShared`.
    Shared,
    /// All VDCs of its org. Only their lists of available networks show it.
    Listed,
    /// The VDCs of the VDC group that owns it. Records show the group.
    Group,
    /// Like `Group`. Records show neither VDC nor group.
    GroupAlone,
    /// Like `Group`. Records show a VDC and no group.
    GroupByVdc,
}

/// An org VDC network.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is named for what it holds")]
pub struct Network {
    pub vdc: VdcId,
    pub name: Arc<str>,
    pub reach: Reach,
    pub gateway: Ipv4Addr,
    pub netmask: Ipv4Addr,
    pub dns: Ipv4Addr,
    /// First and last address of the static pool.
    pub pool: (Ipv4Addr, Ipv4Addr),
    /// First and last address of the DHCP range.
    pub dhcp: (Ipv4Addr, Ipv4Addr),
    /// The VM at each used address.
    pub used: BTreeMap<Ipv4Addr, VmId>,
}

/// A sizing policy. Its values override the values of requests.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is named for what it holds")]
pub struct Policy {
    pub vdc: VdcId,
    pub name: Arc<str>,
    /// A sizing policy, else a placement policy.
    pub sizing: bool,
    pub cpus: Option<u32>,
    pub cores_per_socket: Option<u32>,
    pub memory_mb: Option<u32>,
    /// VMs get a part of a graphics card.
    pub vgpu: bool,
}

/// A catalog.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is named for what it holds")]
pub struct Catalog {
    pub org: OrgId,
    pub name: Arc<str>,
    /// Other orgs see it, and can create VMs from its templates.
    pub shared: bool,
}

/// A vApp template.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is named for what it holds")]
pub struct Template {
    pub catalog: CatalogId,
    pub vdc: VdcId,
    pub name: Arc<str>,
    /// The name of its catalog item, if it differs.
    pub item_name: Option<Arc<str>>,
    pub vms: Vec<TemplateVmId>,
    pub created: Ms,
    pub state: TemplateState,
    /// Its storage lease has ended.
    pub expired: bool,
}

/// Whether VMs can be created from a template.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TemplateState {
    /// VMs can be created from it.
    #[default]
    Ready,
    /// It is incomplete, and no task works on it.
    Unresolved,
    /// A task copies it.
    Copying,
}

impl TemplateState {
    /// The word in records, and the number in documents.
    pub fn words(self) -> (&'static str, &'static str) {
        match self {
            TemplateState::Ready => ("RESOLVED", "8"),
            TemplateState::Unresolved | TemplateState::Copying => ("UNRESOLVED", "0"),
        }
    }
}

impl Template {
    /// The name of its catalog item.
    pub fn item_name(&self) -> &Arc<str> {
        self.item_name.as_ref().unwrap_or(&self.name)
    }
}

/// A VM inside a template.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is named for what it holds")]
pub struct TemplateVm {
    pub template: TemplateId,
    pub name: Arc<str>,
    /// As VCD shows it: "Ubuntu Linux (64-bit)".
    pub guest_os: Arc<str>,
    /// As in `VmSpecSection/OsType`: "ubuntu64Guest".
    pub os_type: Arc<str>,
    pub cpus: u32,
    pub cores_per_socket: u32,
    pub memory_mb: u32,
    /// In the order in which the document shows them.
    pub disks: Vec<Disk>,
    /// Its network adapters.
    pub nics: Vec<Nic>,
    /// How much of its hardware its document shows.
    pub shows: HardwareShown,
    /// What Tools do with a customization script.
    pub scripts: Scripts,
    /// Copies also have a TPM.
    pub tpm: bool,
    /// It has a device of the ESXi host: copies cannot be suspended.
    pub passthrough: bool,
    /// Version of VMware Tools; 0: none installed.
    pub tools: u32,
}

/// How much of a template VM's hardware its document shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HardwareShown {
    /// A complete hardware section.
    #[default]
    Section,
    /// A hardware section whose items have every element, the unused ones as `xsi:nil`.
    Nil,
    /// Only a `VmSpecSection`.
    Spec,
    /// Only a `VmSpecSection`, which is missing in the template's document: only the VM's own document has it.
    Apart,
    /// Neither hardware nor guest OS.
    Nothing,
}

/// What VMware Tools do with a customization script (`deployPkg enable-custom-scripts`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scripts {
    /// They run it.
    #[default]
    Run,
    /// They skip it, and customization completes.
    Skip,
    /// Customization fails: "custom script is disabled". The steps before the script are done.
    Fail,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// `rasd:InstanceID` and `DiskId`. It depends on the position: from 2000 on 16 for each SCSI controller, from
    /// 16000 on 30 for each SATA controller.
    pub id: u32,
    /// Its size.
    pub mb: u64,
}

/// The lowest id of a disk on a SATA controller.
pub const SATA_DISKS: u32 = 16_000;
/// The lowest id of a disk on a SCSI controller.
pub const SCSI_DISKS: u32 = 2_000;

impl Disk {
    /// True on a SATA controller.
    pub fn is_sata(&self) -> bool {
        self.id >= SATA_DISKS
    }

    /// The number of its controller among those of its kind, and its position there.
    pub fn place(&self) -> (u32, u32) {
        let (first, each) = if self.is_sata() { (SATA_DISKS, 30) } else { (SCSI_DISKS, 16) };
        let n = self.id.saturating_sub(first);
        (n / each, n % each)
    }
}

/// The ids of a VM's hardware items. They depend on the number of adapters and controllers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is named for what it holds")]
pub struct ItemIds {
    /// The adapters have the ids from 1 to this.
    pub adapters: u32,
    pub scsi: Vec<u32>,
    pub sata: Vec<u32>,
    pub ide: u32,
    pub cpu: u32,
    pub memory: u32,
}

impl ItemIds {
    /// The ids for a VM with this many adapters and these disks.
    pub fn of(adapters: usize, disks: &[Disk]) -> ItemIds {
        let adapters = u32::try_from(adapters).unwrap_or(0);
        let count = |sata| disks.iter().filter(|d| d.is_sata() == sata).map(|d| d.place().0 + 1).max().unwrap_or(0);
        let sata = count(true);
        let scsi = if sata > 0 { count(false) } else { count(false).max(1) };
        let mut next = adapters;
        let mut take = || {
            next += 1;
            next
        };
        let (scsi, sata) = ((0..scsi).map(|_| take()).collect(), (0..sata).map(|_| take()).collect());
        ItemIds { adapters, scsi, sata, ide: take(), cpu: take(), memory: take() }
    }

    /// The id of a disk's controller.
    pub fn controller(&self, disk: &Disk) -> u32 {
        let all = if disk.is_sata() { &self.sata } else { &self.scsi };
        all.get(disk.place().0 as usize).copied().unwrap_or(0)
    }

    /// The `ResourceType` of an id, if an item has it.
    pub fn kind(&self, id: u32, disks: &[Disk]) -> Option<u16> {
        match id {
            0 => None,
            _ if id <= self.adapters => Some(10),
            _ if self.scsi.contains(&id) => Some(6),
            _ if self.sata.contains(&id) => Some(20),
            _ if id == self.ide => Some(5),
            _ if id == self.cpu => Some(3),
            _ if id == self.memory => Some(4),
            _ if disks.iter().any(|d| d.id == id) => Some(17),
            _ => None,
        }
    }
}

/// How a NIC gets its address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "VCD's own words")]
pub enum IpMode {
    Pool,
    Dhcp,
    Manual,
    #[default]
    None,
}

impl IpMode {
    /// VCD's word.
    pub fn name(self) -> &'static str {
        match self {
            IpMode::Pool => "POOL",
            IpMode::Dhcp => "DHCP",
            IpMode::Manual => "MANUAL",
            IpMode::None => "NONE",
        }
    }
}

/// A network card of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is named for what it holds")]
pub struct Nic {
    pub index: u32,
    /// The vApp network; `None` is "none".
    pub network: Option<Arc<str>>,
    pub mode: IpMode,
    pub address: Option<Ipv4Addr>,
    pub connected: bool,
    pub adapter: Arc<str>,
}

impl Nic {
    /// A NIC that is on no network, like a template's.
    pub fn unconnected(index: u32) -> Nic {
        Nic { index, network: None, mode: IpMode::None, address: None, connected: false, adapter: "VMXNET3".into() }
    }
}

/// Guest customization settings (`GuestCustomizationSection`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "VCD's own words")]
pub struct GuestSection {
    pub enabled: bool,
    pub change_sid: bool,
    pub admin_password_enabled: bool,
    pub admin_password_auto: bool,
    pub admin_password: Option<Arc<str>>,
    pub admin_auto_logon_enabled: bool,
    pub admin_auto_logon_count: u32,
    pub reset_password_required: bool,
    pub script: Option<Arc<str>>,
    pub computer_name: Option<Arc<str>>,
}

/// `gcStatus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "VCD's own words")]
pub enum GcStatus {
    Pending,
    Complete,
    Failed,
}

impl GcStatus {
    /// VCD's word.
    pub fn name(self) -> &'static str {
        match self {
            GcStatus::Pending => "GC_PENDING",
            GcStatus::Complete => "GC_COMPLETE",
            GcStatus::Failed => "GC_FAILED",
        }
    }
}

/// State of a vApp, a VM or a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "VCD's own words")]
pub enum Status {
    FailedCreation,
    Unresolved,
    Resolved,
    Suspended,
    PoweredOn,
    PoweredOff,
    Unknown,
    Mixed,
    PartiallyPoweredOff,
}

impl Status {
    /// The number in entity documents.
    pub fn code(self) -> i8 {
        match self {
            Status::FailedCreation => -1,
            Status::Unresolved => 0,
            Status::Resolved => 1,
            Status::Suspended => 3,
            Status::PoweredOn => 4,
            Status::Unknown => 6,
            Status::PoweredOff => 8,
            Status::Mixed => 10,
            Status::PartiallyPoweredOff => 20,
        }
    }

    /// The word in query records.
    pub fn name(self) -> &'static str {
        match self {
            Status::FailedCreation => "FAILED_CREATION",
            Status::Unresolved => "UNRESOLVED",
            Status::Resolved => "RESOLVED",
            Status::Suspended => "SUSPENDED",
            Status::PoweredOn => "POWERED_ON",
            Status::Unknown => "UNKNOWN",
            Status::PoweredOff => "POWERED_OFF",
            Status::Mixed => "MIXED",
            Status::PartiallyPoweredOff => "PARTIALLY_POWERED_OFF",
        }
    }
}

/// A network of a vApp.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is named for what it holds")]
pub struct VappNetwork {
    pub name: Arc<str>,
    pub parent: Option<NetworkId>,
    pub fence: Fence,
}

/// `FenceMode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "VCD's own words")]
pub enum Fence {
    Bridged,
    NatRouted,
    Isolated,
}

impl Fence {
    /// VCD's word.
    pub fn name(self) -> &'static str {
        match self {
            Fence::Bridged => "bridged",
            Fence::NatRouted => "natRouted",
            Fence::Isolated => "isolated",
        }
    }
}

/// Leases of a vApp in seconds; 0 is "never".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is named for what it holds")]
pub struct Lease {
    pub deployment_s: u64,
    pub storage_s: u64,
}

/// Metadata: key to type (`MetadataStringValue` and such) and value.
pub type Metadata = BTreeMap<Arc<str>, (Cow<'static, str>, Arc<str>)>;

/// Faults of one vApp, until somebody clears them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Its deletes are accepted, and their tasks fail.
    pub delete_fails: bool,
    /// The same, for deletes by force only.
    pub force_fails: bool,
    /// Its deletes are rejected.
    pub locked: bool,
    /// Its tasks never end, and ignore a cancel.
    pub hangs: bool,
    /// Its changes, except deletes, are answered with 500, and nothing is done.
    pub breaks: bool,
    /// Its changes and deletes are answered with 404, as by a cell that lags.
    pub unfound: bool,
    /// Nobody may cancel its tasks.
    pub keeps_tasks: bool,
    /// Nobody may read its tasks.
    pub hides_tasks: bool,
    /// Its own document is answered with 500.
    pub unread: bool,
    /// Queries do not show it.
    pub unlisted: bool,
}

/// A vApp.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is named for what it holds")]
pub struct Vapp {
    pub vdc: VdcId,
    pub owner: UserId,
    pub name: Arc<str>,
    pub description: Arc<str>,
    pub created: Ms,
    pub networks: Vec<VappNetwork>,
    pub vms: Vec<VmId>,
    pub metadata: Metadata,
    pub lease: Lease,
    /// When the deployment lease ends.
    pub undeploy_at: Option<Ms>,
    /// When the storage lease ends.
    pub delete_at: Option<Ms>,
    pub expired: bool,
    /// Its create has not ended.
    pub creating: bool,
    /// Its create failed before the VM existed.
    pub failed: bool,
    /// A VM of it is deployed.
    pub deployed: bool,
    /// Its faults.
    pub faults: Faults,
    /// The task that locks it.
    pub task: Option<TaskId>,
    pub last_task: Option<TaskId>,
}

/// Power state of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is named for what it is")]
pub enum Power {
    /// VCD copies it.
    Unresolved,
    Off,
    On,
    Suspended,
}

/// What customization wrote to the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is named for what it holds")]
pub struct Applied {
    pub script: Option<Arc<str>>,
    pub password: Option<Arc<str>>,
    pub computer_name: Option<Arc<str>>,
}

/// Guest properties: key and value.
pub type Properties = Vec<(Arc<str>, Arc<str>)>;

/// A VM.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is named for what it holds")]
pub struct Vm {
    pub vapp: VappId,
    pub name: Arc<str>,
    pub description: Arc<str>,
    pub created: Ms,
    /// Queries and its vApp show it from then on.
    pub shows_at: Ms,
    pub guest_os: Arc<str>,
    pub os_type: Arc<str>,
    pub cpus: u32,
    pub cores_per_socket: u32,
    pub memory_mb: u32,
    pub disks: Vec<Disk>,
    pub nics: Vec<Nic>,
    pub primary_nic: u32,
    pub profile: ProfileId,
    pub policy: Option<PolicyId>,
    pub placement: Option<PolicyId>,
    pub guest: GuestSection,
    pub needs_customization: bool,
    pub cpu_hot_add: bool,
    pub memory_hot_add: bool,
    pub tpm: bool,
    pub passthrough: bool,
    pub scripts: Scripts,
    /// A network of its template that this vApp does not have: the create fails because of it.
    pub missing_network: Option<Arc<str>>,
    /// A linked clone: its disks cannot be enlarged.
    pub linked: bool,
    pub metadata: Metadata,
    /// Guest properties (`ovf:ProductSection`).
    pub properties: Properties,
    pub power: Power,
    pub deployed: bool,
    pub gc: GcStatus,
    /// What customization wrote to the guest; `None` before it ran.
    pub applied: Option<Applied>,
    /// SSH answers.
    pub ssh: bool,
    /// The fault of this guest.
    pub guest_fault: Option<GuestFault>,
    /// Its ESXi host does not answer.
    pub host_down: bool,
    /// Its record does not show its address.
    pub address_hidden: bool,
    /// The time of its suspend.
    pub suspended_at: Option<Ms>,
    /// It was resumed after the end of its DHCP lease, and has no new address yet.
    pub lease_over: bool,
    /// Counts power changes. Steps of an earlier boot are ignored.
    pub boot: u32,
    /// The task that locks it.
    pub task: Option<TaskId>,
    pub last_task: Option<TaskId>,
}

impl Vm {
    /// The primary NIC.
    pub fn nic(&self) -> Option<&Nic> {
        self.nics.iter().find(|n| n.index == self.primary_nic)
    }

    /// The primary NIC's address.
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.nic().and_then(|n| n.address)
    }

    /// Its state in VCD's words: powered off but deployed is "partially" off.
    pub fn status(&self) -> Status {
        match self.power {
            _ if self.host_down => Status::Unknown,
            Power::Unresolved => Status::Unresolved,
            Power::On => Status::PoweredOn,
            Power::Suspended => Status::Suspended,
            Power::Off if self.deployed => Status::PartiallyPoweredOff,
            Power::Off => Status::PoweredOff,
        }
    }

    /// True if this is the name of a Windows guest OS.
    pub fn is_windows(&self) -> bool {
        self.guest_os.contains("Windows")
    }
}

/// A vApp or a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each is named for what it is")]
pub enum Target {
    Vapp(VappId),
    Vm(VmId),
}

/// State of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "VCD's own words")]
pub enum TaskStatus {
    Running,
    Success,
    Error,
    Canceled,
    Aborted,
}

impl TaskStatus {
    /// VCD's word.
    pub fn name(self) -> &'static str {
        match self {
            TaskStatus::Running => "running",
            TaskStatus::Success => "success",
            TaskStatus::Error => "error",
            TaskStatus::Canceled => "canceled",
            TaskStatus::Aborted => "aborted",
        }
    }
}

/// Why a task failed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "VCD's own words")]
pub struct TaskError {
    pub major: u16,
    pub minor: Cow<'static, str>,
    pub message: String,
}

macro_rules! operations {
    ($($name:ident $camel:literal $upper:literal $text:literal),* $(,)?) => {
        /// What a task does.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(missing_docs, reason = "each is named for what it does")]
        pub enum Operation { $($name),* }

        impl Operation {
            /// `operationName` of the task.
            pub fn name(self) -> &'static str {
                match self { $(Operation::$name => $camel),* }
            }

            /// The name in "is busy completing an operation …".
            pub fn busy_name(self) -> &'static str {
                match self { $(Operation::$name => $upper),* }
            }

            /// The beginning of the task's `operation` text.
            pub fn text(self) -> &'static str {
                match self { $(Operation::$name => $text),* }
            }
        }
    };
}

operations! {
    Instantiate "vdcInstantiateVapp" "VDC_INSTANTIATE_VAPP" "Creating Virtual Application",
    Compose "vdcComposeVapp" "VDC_COMPOSE_VAPP" "Composing Virtual Application",
    Recompose "vdcRecomposeVapp" "VDC_RECOMPOSE_VAPP" "Recomposing Virtual Application",
    UpdateVm "vappUpdateVm" "VAPP_UPDATE_VM" "Updating Virtual Machine",
    UpdateVapp "vdcUpdateVapp" "VDC_UPDATE_VAPP" "Updating Virtual Application",
    Deploy "vappDeploy" "VAPP_DEPLOY" "Starting Virtual Application",
    PowerOff "vappPowerOff" "VAPP_POWER_OFF" "Powering off Virtual Application",
    Shutdown "vappShutdownGuest" "VAPP_SHUTDOWN_GUEST" "Shutting down guest of",
    Reset "vappReset" "VAPP_RESET" "Resetting Virtual Application",
    Reboot "vappRebootGuest" "VAPP_REBOOT_GUEST" "Rebooting guest of",
    Suspend "vappSuspend" "VAPP_SUSPEND" "Suspending Virtual Application",
    Discard "vappDiscardSuspendedState" "VAPP_DISCARD_SUSPENDED_STATE" "Discarding suspended state of",
    UndeployPowerOff "vappUndeployPowerOff" "VAPP_UNDEPLOY_POWER_OFF" "Stopping Virtual Application",
    UndeploySuspend "vappUndeploySuspend" "VAPP_UNDEPLOY_SUSPEND" "Suspending Virtual Application",
    Delete "vdcDeleteVapp" "VDC_DELETE_VAPP" "Deleting Virtual Application",
    DeleteVm "vappDeleteVm" "VAPP_DELETE_VM" "Deleting Virtual Machine",
    Metadata "metadataUpdate" "METADATA_UPDATE" "Updating metadata of",
    Consolidate "vappConsolidateVm" "VAPP_CONSOLIDATE_VM" "Consolidating Virtual Machine",
}

/// A task.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is named for what it holds")]
pub struct Task {
    pub operation: Operation,
    pub target: Target,
    pub target_name: Arc<str>,
    pub org: OrgId,
    pub user: UserId,
    pub status: TaskStatus,
    pub start: Ms,
    pub end: Option<Ms>,
    pub error: Option<TaskError>,
    pub cancel_requested: bool,
    pub(crate) run: engine::Run,
}

/// VMware Cloud Director.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is named for what it holds")]
pub struct Model {
    pub durations: Durations,
    pub settings: Settings,
    /// Faults for the next task; see [`Inject`].
    pub inject: Inject,
    /// Unix time in milliseconds of logical time 0.
    pub epoch: u64,
    pub orgs: BTreeMap<OrgId, Org>,
    pub users: BTreeMap<UserId, User>,
    /// API tokens.
    pub tokens: BTreeMap<Arc<str>, UserId>,
    /// Tokens of service accounts: each is valid for one login, whose answer has the next token.
    pub service_tokens: BTreeMap<Arc<str>, UserId>,
    pub bearers: BTreeMap<Arc<str>, Session>,
    pub vdcs: BTreeMap<VdcId, Vdc>,
    pub profiles: BTreeMap<ProfileId, Profile>,
    pub networks: BTreeMap<NetworkId, Network>,
    pub policies: BTreeMap<PolicyId, Policy>,
    pub catalogs: BTreeMap<CatalogId, Catalog>,
    pub templates: BTreeMap<TemplateId, Template>,
    pub template_vms: BTreeMap<TemplateVmId, TemplateVm>,
    pub vapps: BTreeMap<VappId, Vapp>,
    pub vms: BTreeMap<VmId, Vm>,
    pub tasks: BTreeMap<TaskId, Task>,
    /// Increases when a guest starts or stops answering.
    pub guest_changes: u64,
    now: Ms,
    seed: u64,
    rng: Rng,
    last_id: u32,
    running: BTreeSet<TaskId>,
    agenda: BinaryHeap<Reverse<(Ms, u64, engine::Event)>>,
    agenda_seq: u64,
    lag: Ms,
    history: Ms,
    snapshots: VecDeque<(Ms, Arc<Records>)>,
}

/// Midnight of 1 January 2026, UTC: the default for logical time 0.
const DEFAULT_EPOCH: u64 = 1_767_225_600_000;

impl Model {
    /// An empty world.
    pub fn new(seed: u64) -> Self {
        Self {
            durations: Durations::default(),
            settings: Settings::default(),
            inject: Inject::default(),
            epoch: DEFAULT_EPOCH,
            orgs: BTreeMap::new(),
            users: BTreeMap::new(),
            tokens: BTreeMap::new(),
            service_tokens: BTreeMap::new(),
            bearers: BTreeMap::new(),
            vdcs: BTreeMap::new(),
            profiles: BTreeMap::new(),
            networks: BTreeMap::new(),
            policies: BTreeMap::new(),
            catalogs: BTreeMap::new(),
            templates: BTreeMap::new(),
            template_vms: BTreeMap::new(),
            vapps: BTreeMap::new(),
            vms: BTreeMap::new(),
            tasks: BTreeMap::new(),
            guest_changes: 0,
            now: 0,
            seed,
            rng: Rng::new(seed),
            last_id: 0,
            running: BTreeSet::new(),
            agenda: BinaryHeap::new(),
            agenda_seq: 0,
            lag: 0,
            history: 0,
            snapshots: VecDeque::new(),
        }
    }

    /// A world with one org (`ci-org`, user `ci` with password `ci-password` and API token `sim-api-token`), VDC `ci-vdc`
    /// with storage profile `ssd` and network `ci-net` (pool 127.0.10.2 to 127.0.13.254, DHCP 127.0.20.2 to
    /// 127.0.23.254), sizing policy `small`, placement policy `rack-1`, and catalog `ci-catalog` with `ubuntu-22.04`, `windows-2022`, `two-vms`.
    pub fn standard(seed: u64) -> Self {
        let mut m = Self::new(seed);
        let org = m.add_org("ci-org");
        let user = m.add_user(org, "ci", "ci-password", &Right::ALL);
        m.tokens.insert("sim-api-token".into(), user);
        let vdc = m.add_vdc(org, "ci-vdc");
        m.add_profile(vdc, "ssd", 0);
        m.add_network(
            vdc,
            "ci-net",
            (Ipv4Addr::new(127, 0, 10, 2), Ipv4Addr::new(127, 0, 13, 254)),
            (Ipv4Addr::new(127, 0, 20, 2), Ipv4Addr::new(127, 0, 23, 254)),
        );
        let policy = m.fresh();
        let small = Policy {
            vdc,
            name: "small".into(),
            sizing: true,
            cpus: Some(2),
            cores_per_socket: Some(1),
            memory_mb: Some(4096),
            vgpu: false,
        };
        m.policies.insert(policy, small);
        let policy = m.fresh();
        let rack = Policy {
            name: "rack-1".into(),
            sizing: false,
            cpus: None,
            cores_per_socket: None,
            memory_mb: None,
            vgpu: false,
            vdc,
        };
        m.policies.insert(policy, rack);
        let catalog = m.add_catalog(org, "ci-catalog");
        let (ubuntu, windows) = ("Ubuntu Linux (64-bit)", "Microsoft Windows Server 2022 (64-bit)");
        m.add_template(catalog, vdc, "ubuntu-22.04", &[("ubuntu", ubuntu, "ubuntu64Guest")]);
        m.add_template(catalog, vdc, "windows-2022", &[("windows", windows, "windows2019srvNext_64Guest")]);
        m.add_template(
            catalog,
            vdc,
            "two-vms",
            &[("first", ubuntu, "ubuntu64Guest"), ("second", ubuntu, "ubuntu64Guest")],
        );
        m
    }

    /// Logical time.
    pub fn now(&self) -> Ms {
        self.now
    }

    /// Unix time in milliseconds of a logical time, by VCD's clock.
    pub fn unix(&self, at: Ms) -> u64 {
        self.epoch.saturating_add(at)
    }

    /// The seed of the model.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    pub(crate) fn fresh<I: Id>(&mut self) -> I {
        self.last_id += 1;
        I::of(self.last_id)
    }

    /// The UUID of an id.
    pub fn uuid<I: Id>(&self, id: I) -> String {
        let (high, low) = self.seed_parts();
        format!("{high:08x}-{:04x}-4{low:03x}-8000-{:012x}", I::KIND, id.number())
    }

    /// The id in a UUID, if this model has created the UUID for this kind. The entity may be deleted.
    pub fn parse_uuid<I: Id>(&self, uuid: &str) -> Option<I> {
        let number = u32::from_str_radix(uuid.rsplit('-').next()?, 16).ok()?;
        let id = I::of(number);
        uuid.eq_ignore_ascii_case(&self.uuid(id)).then_some(id)
    }

    fn seed_parts(&self) -> (u32, u16) {
        let mixed = Rng::new(self.seed).bits();
        ((mixed >> 32) as u32, (mixed & 0xfff) as u16)
    }

    // Setup of a world.

    /// Adds an org without limits or leases.
    pub fn add_org(&mut self, name: &str) -> OrgId {
        let id = self.fresh();
        self.orgs.insert(id, Org { name: name.into(), max_running: None, leases: LeaseRules::default() });
        id
    }

    /// Adds a user.
    pub fn add_user(&mut self, org: OrgId, name: &str, password: &str, rights: &[Right]) -> UserId {
        let id = self.fresh();
        self.users.insert(id, User { org, name: name.into(), password: password.into(), rights: rights.to_vec() });
        id
    }

    /// Adds a VDC without limits.
    pub fn add_vdc(&mut self, org: OrgId, name: &str) -> VdcId {
        let id = self.fresh();
        let vdc = Vdc {
            org,
            name: name.into(),
            enabled: true,
            cpu_limit: None,
            memory_limit_mb: None,
            vm_limit: None,
            fast_provisioning: false,
        };
        self.vdcs.insert(id, vdc);
        id
    }

    /// Adds a storage profile. The first one of a VDC is its default.
    pub fn add_profile(&mut self, vdc: VdcId, name: &str, limit_mb: u64) -> ProfileId {
        let id = self.fresh();
        let default = !self.profiles.values().any(|p| p.vdc == vdc);
        self.profiles.insert(id, Profile { vdc, name: name.into(), enabled: true, default, limit_mb });
        id
    }

    /// Adds a network with a static pool and a DHCP range (first and last address each).
    pub fn add_network(
        &mut self,
        vdc: VdcId,
        name: &str,
        pool: (Ipv4Addr, Ipv4Addr),
        dhcp: (Ipv4Addr, Ipv4Addr),
    ) -> NetworkId {
        let id = self.fresh();
        let gateway = Ipv4Addr::from(u32::from(pool.0).saturating_sub(1));
        let network = Network {
            vdc,
            name: name.into(),
            reach: Reach::Vdc,
            gateway,
            netmask: Ipv4Addr::new(255, 255, 0, 0),
            dns: gateway,
            pool,
            dhcp,
            used: BTreeMap::new(),
        };
        self.networks.insert(id, network);
        id
    }

    /// Adds a catalog.
    pub fn add_catalog(&mut self, org: OrgId, name: &str) -> CatalogId {
        let id = self.fresh();
        self.catalogs.insert(id, Catalog { org, name: name.into(), shared: false });
        id
    }

    /// Adds a template of VMs (name, guest OS, OS type), each with 2 CPUs, 4096 MB and a disk of 20480 MB.
    pub fn add_template(
        &mut self,
        catalog: CatalogId,
        vdc: VdcId,
        name: &str,
        vms: &[(&str, &str, &str)],
    ) -> TemplateId {
        let id = self.fresh();
        let mut ids = Vec::with_capacity(vms.len());
        for (vm_name, guest_os, os_type) in vms {
            let vm = self.fresh();
            let template_vm = TemplateVm {
                template: id,
                name: (*vm_name).into(),
                guest_os: (*guest_os).into(),
                os_type: (*os_type).into(),
                cpus: 2,
                cores_per_socket: 1,
                memory_mb: 4096,
                disks: vec![Disk { id: SCSI_DISKS, mb: 20_480 }],
                nics: vec![Nic::unconnected(0)],
                shows: HardwareShown::Section,
                scripts: Scripts::Run,
                tpm: false,
                passthrough: false,
                tools: 12_352,
            };
            self.template_vms.insert(vm, template_vm);
            ids.push(vm);
        }
        let template = Template {
            catalog,
            vdc,
            name: name.into(),
            item_name: None,
            vms: ids,
            created: self.now,
            state: TemplateState::Ready,
            expired: false,
        };
        self.templates.insert(id, template);
        id
    }

    // Accounts.

    /// Exchanges an API token of a user of `org`, or a service account's token, for a bearer.
    pub fn login_token(&mut self, org: &str, token: &str) -> Result<Grant, Refusal> {
        let user = self.tokens.get(token).or(self.service_tokens.get(token));
        let user = user.copied().filter(|u| self.user_is_in(*u, org));
        let Some(user) = user else {
            return Err(Refusal::new(400, "invalid_grant", "Invalid refresh token"));
        };
        let next = self.service_tokens.remove(token).is_some().then(|| self.new_service_token(user));
        let (bearer, life_s) = self.new_bearer(user);
        Ok(Grant { bearer, life_s, next })
    }

    /// A token of a service account that acts as `user`.
    pub fn new_service_token(&mut self, user: UserId) -> Arc<str> {
        let token: Arc<str> = format!("sim-service-token-{:016x}", self.rng.bits()).into();
        self.service_tokens.insert(token.clone(), user);
        token
    }

    /// Opens a session with name and password. Returns a bearer and its lifetime in seconds.
    pub fn login_password(&mut self, org: &str, name: &str, password: &str) -> Result<(Arc<str>, u64), Refusal> {
        let found = self
            .users
            .iter()
            .find(|(id, u)| *u.name == *name && *u.password == *password && self.user_is_in(**id, org));
        let Some((&user, _)) = found else {
            return Err(Refusal::new(401, "UNAUTHORIZED", "Invalid credentials"));
        };
        Ok(self.new_bearer(user))
    }

    fn user_is_in(&self, user: UserId, org: &str) -> bool {
        self.users.get(&user).and_then(|u| self.orgs.get(&u.org)).is_some_and(|o| *o.name == *org)
    }

    fn new_bearer(&mut self, user: UserId) -> (Arc<str>, u64) {
        let now = self.now;
        self.bearers.retain(|_, s| s.expires > now);
        let bearer: Arc<str> = format!("sim-bearer-{:016x}{:016x}", self.rng.bits(), self.rng.bits()).into();
        let life = self.settings.bearer_s;
        let expires = now.saturating_add(life.saturating_mul(1000));
        self.bearers.insert(bearer.clone(), Session { user, expires });
        (bearer, life)
    }

    /// The user of a bearer, unless the session has ended.
    pub fn authenticate(&self, bearer: &str) -> Option<UserId> {
        self.bearers.get(bearer).filter(|s| s.expires > self.now).map(|s| s.user)
    }

    /// Ends a session.
    pub fn logout(&mut self, bearer: &str) {
        self.bearers.remove(bearer);
    }

    /// The user with this name, for drivers that skip the login.
    pub fn user(&self, name: &str) -> Option<UserId> {
        self.users.iter().find(|(_, u)| *u.name == *name).map(|(id, _)| *id)
    }
}
