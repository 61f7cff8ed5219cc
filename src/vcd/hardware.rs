//! The hardware of a VM: what the document of the template's VM shows, how a created VM differs from the settings, and
//! the parts of requests. It sends nothing. VCD decides about everything that a document does not show.

use super::names::Names;
use super::xml::{self, Writer};
use super::{IpMode, NAMESPACE, OVF, Settings};
use roxmltree::Node;

/// The kinds of hardware items (`ResourceType`).
const CPU: &str = "3";
const MEMORY: &str = "4";
const ADAPTER: &str = "10";
const DISK: &str = "17";
/// The network name of an adapter without a network.
const NO_NETWORK: &str = "none";
/// Maximum number of adapters in a VM.
const MAX_ADAPTERS: usize = 10;
/// Maximum number of disks of a template's VM that are read.
const MAX_DISKS: usize = 256;

/// The hardware of a template's VM, as far as its document shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Hardware {
    /// `InstanceID` of the item with the CPUs.
    cpu_id: Option<String>,
    memory_id: Option<String>,
    adapters: usize,
    /// The boot disk comes first: the one on the lowest controller, at the lowest unit.
    pub(super) disks: Vec<Disk>,
    /// The type of its primary adapter.
    adapter: Option<String>,
    /// The networks of its adapters, with the template's names.
    pub(super) networks: Vec<String>,
    /// Its guest needs a TPM to boot, and the template has none.
    pub(super) needs_tpm: bool,
    /// It has a device that prevents a suspend.
    pub(super) passthrough: bool,
}

/// A hard disk, with the fields that VCD needs in a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Disk {
    id: String,
    unit: String,
    bus_type: String,
    bus_sub_type: String,
    /// The number of its controller, and its number there.
    pub(super) place: (u64, u64),
    /// 0 if VCD does not report it.
    pub(super) mb: u64,
}

impl Hardware {
    pub(super) fn read(vm: Node, guest_os: &str) -> Hardware {
        let id = |kind| item(vm, kind).and_then(|item| xml::text(item, "InstanceID")).map(str::to_owned);
        let section = xml::child(vm, "NetworkConnectionSection");
        let adapters = || section.into_iter().flat_map(|section| xml::children(section, "NetworkConnection"));
        let adapter = primary_adapter(vm).or_else(|| adapters().next());
        let adapter = adapter.and_then(|adapter| xml::text(adapter, "NetworkAdapterType"));
        let mut networks: Vec<String> = Vec::new();
        for name in adapters().take(MAX_ADAPTERS).filter_map(|adapter| xml::attribute(adapter, "network")) {
            if name != NO_NETWORK && !networks.iter().any(|known| known == name) {
                networks.push(name.to_owned());
            }
        }
        let mut disks = disks_of_items(vm);
        if disks.is_empty() {
            disks = disk_settings(vm).take(MAX_DISKS).filter_map(disk_of_settings).collect();
        }
        let boot = (0..disks.len()).min_by_key(|at| disks.get(*at).map(|(order, _)| *order));
        if let Some(boot) = boot {
            let boot = disks.remove(boot);
            disks.insert(0, boot);
        }
        Hardware {
            cpu_id: id(CPU),
            memory_id: id(MEMORY),
            adapters: adapters().take(MAX_ADAPTERS).count(),
            disks: disks.into_iter().map(|(_, disk)| disk).collect(),
            adapter: adapter
                .or_else(|| item(vm, ADAPTER).and_then(|item| xml::text(item, "ResourceSubType")))
                .map(str::to_owned),
            networks,
            needs_tpm: is_windows_11(vm, guest_os) && !has_tpm(vm),
            passthrough: has_passthrough(vm),
        }
    }

    /// The ids of the items for CPUs and memory, CPUs first. If the document shows none, they are 4 and 5: they come
    /// after one adapter, one disk controller and one drive controller. With more of these, they move.
    fn ids(&self) -> (String, String) {
        let is_first =
            |(at, disk): (usize, &Disk)| self.disks.iter().take(at).all(|other| other.place.0 != disk.place.0);
        let controllers = self.disks.iter().enumerate().filter(|disk| is_first(*disk)).count();
        let before = self.adapters.max(1) + controllers.max(1) + 1;
        let told = |id: &Option<String>, guess: usize| id.clone().unwrap_or_else(|| guess.to_string());
        (told(&self.cpu_id, before + 1), told(&self.memory_id, before + 2))
    }

    /// True if the document omits something: another document of the same VM may show more.
    pub(super) fn is_partial(&self) -> bool {
        self.disks.is_empty() || self.cpu_id.is_none()
    }
}

/// The order of disks: controller, unit, id.
type Order = (u64, u64, u64);

fn number(text: Option<&str>) -> Option<u64> {
    text.and_then(|text| text.parse().ok())
}

fn items<'a, 'i: 'a>(vm: Node<'a, 'i>) -> impl Iterator<Item = Node<'a, 'i>> {
    let section = vm.descendants().find(|n| n.is_element() && xml::local(*n) == "VirtualHardwareSection");
    section.into_iter().flat_map(|section| xml::children(section, "Item"))
}

/// The first item of a kind.
fn item<'a, 'i: 'a>(vm: Node<'a, 'i>, kind: &str) -> Option<Node<'a, 'i>> {
    items(vm).find(|item| xml::text(*item, "ResourceType") == Some(kind))
}

/// Some items have all elements, with empty ones for unused values: these count as missing.
fn disks_of_items(vm: Node) -> Vec<(Order, Disk)> {
    let disk = |item: Node| {
        let id = xml::text(item, "InstanceID")?;
        let host = xml::child(item, "HostResource");
        let of_host = |name| host.and_then(|host| xml::attribute(host, name)).unwrap_or_default();
        let parent = xml::text(item, "Parent");
        let controller = items(vm).find(|other| parent.is_some() && xml::text(*other, "InstanceID") == parent);
        let bus = number(controller.and_then(|controller| xml::text(controller, "Address"))).unwrap_or(0);
        let unit = xml::text(item, "AddressOnParent").unwrap_or("0");
        let order =
            (number(parent).unwrap_or(0), number(Some(unit)).unwrap_or(0), number(Some(id)).unwrap_or(u64::MAX));
        // In bytes if the MB are missing.
        let bytes = number(xml::text(item, "VirtualQuantity")).unwrap_or(0);
        let mb = number(Some(of_host("capacity"))).unwrap_or(bytes >> 20);
        let place = (bus, order.1);
        let (bus_type, bus_sub_type) = (of_host("busType").to_owned(), of_host("busSubType").to_owned());
        Some((order, Disk { id: id.to_owned(), unit: unit.to_owned(), bus_type, bus_sub_type, place, mb }))
    };
    let disks = items(vm).filter(|item| xml::text(*item, "ResourceType") == Some(DISK));
    disks.take(MAX_DISKS).filter_map(disk).collect()
}

fn disk_settings<'a, 'i: 'a>(vm: Node<'a, 'i>) -> impl Iterator<Item = Node<'a, 'i>> {
    let section = xml::child(vm, "VmSpecSection").and_then(|spec| xml::child(spec, "DiskSection"));
    section.into_iter().flat_map(|section| xml::children(section, "DiskSettings"))
}

fn order_of_settings(disk: Node) -> Order {
    let of = |name, none| number(xml::text(disk, name)).unwrap_or(none);
    (of("BusNumber", 0), of("UnitNumber", 0), of("DiskId", u64::MAX))
}

fn disk_of_settings(disk: Node) -> Option<(Order, Disk)> {
    let order = order_of_settings(disk);
    let known = Disk {
        id: xml::text(disk, "DiskId")?.to_owned(),
        unit: order.1.to_string(),
        place: (order.0, order.1),
        mb: number(xml::text(disk, "SizeMb")).unwrap_or(0),
        ..Disk::default()
    };
    Some((order, known))
}

/// Windows 11 does not boot without a TPM.
fn is_windows_11(vm: Node, guest_os: &str) -> bool {
    let system = vm.descendants().find(|n| n.is_element() && xml::local(*n) == "OperatingSystemSection");
    let kind = system.and_then(|s| xml::attribute(s, "osType")).unwrap_or_default();
    kind.to_lowercase().starts_with("windows11") || guest_os.to_lowercase().contains("windows 11")
}

/// Whether the VM has a device of its ESXi host. VCD cannot suspend such a VM.
fn has_passthrough(vm: Node) -> bool {
    let kinds = vm.descendants().filter(|n| n.is_element() && xml::local(*n) == "ResourceSubType");
    kinds.filter_map(|n| n.text()).any(|kind| {
        let kind = kind.to_lowercase();
        kind.contains("passthrough") || kind.contains("vgpu")
    })
}

/// Whether a VM's document shows a TPM.
pub(super) fn has_tpm(vm: Node) -> bool {
    xml::child(vm, "TrustedPlatformModule").and_then(|tpm| xml::text(tpm, "TpmPresent")) == Some("true")
}

/// The primary adapter of a VM.
pub(super) fn primary_adapter<'a, 'i>(vm: Node<'a, 'i>) -> Option<Node<'a, 'i>> {
    let section = xml::child(vm, "NetworkConnectionSection")?;
    let primary = xml::text(section, "PrimaryNetworkConnectionIndex").unwrap_or("0");
    let mut all = xml::children(section, "NetworkConnection");
    all.find(|adapter| xml::text(*adapter, "NetworkConnectionIndex") == Some(primary))
}

/// The boot disk's size in the settings; 0 if it is not set.
pub(super) fn disk_mb(settings: &Settings) -> u64 {
    u64::from(settings.disk_gb) * 1024
}

/// The VM's copy of the template's boot disk, and its size in MB.
fn boot_disk<'a, 'i: 'a>(names: &Names, vm: Node<'a, 'i>) -> Option<(Node<'a, 'i>, u64)> {
    let known = names.template.hardware.disks.first().map(|disk| disk.id.as_str());
    let same = disk_settings(vm).find(|disk| known.is_some() && xml::text(*disk, "DiskId") == known);
    let disk = same.or_else(|| disk_settings(vm).min_by_key(|disk| order_of_settings(*disk)))?;
    Some((disk, number(xml::text(disk, "SizeMb"))?))
}

fn ip_mode(settings: &Settings) -> &'static str {
    match settings.ip_mode {
        IpMode::Pool => "POOL",
        IpMode::Dhcp => "DHCP",
    }
}

/// The differences between a VM's hardware and the settings, in words. Values that its document does not show count as
/// right.
pub(super) fn difference(settings: &Settings, names: &Names, vm: Node) -> Vec<String> {
    let spec = xml::child(vm, "VmSpecSection");
    let of = |node: Option<Node>, name| node.and_then(|n| number(xml::text(n, name)));
    let memory = of(spec.and_then(|s| xml::child(s, "MemoryResourceMb")), "Configured");
    let wish = names.wish(settings);
    let parts = [
        ("CPUs", of(spec, "NumCpus"), u64::from(wish.cpus)),
        ("cores per socket", of(spec, "NumCoresPerSocket"), u64::from(wish.cores_per_socket)),
        ("MB of memory", memory, u64::from(wish.memory_mb)),
        ("MB of disk", boot_disk(names, vm).map(|(_, mb)| mb), disk_mb(settings)),
    ];
    let wrong = parts.into_iter().filter_map(|(what, has, wish)| {
        has.filter(|has| wish > 0 && *has != wish).map(|has| format!("{has} {what} instead of {wish}"))
    });
    wrong.chain(adapter_difference(settings, names, vm)).collect()
}

fn adapter_difference(settings: &Settings, names: &Names, vm: Node) -> Option<String> {
    let adapter = primary_adapter(vm)?;
    let (network, mode) = (xml::attribute(adapter, "network"), xml::text(adapter, "IpAddressAllocationMode"));
    let wanted = ip_mode(settings);
    match (network, mode) {
        (Some(network), _) if network != names.network_name => {
            Some(format!("network {network:?} instead of {:?}", names.network_name))
        }
        (_, Some(mode)) if mode != wanted => Some(format!("address by {mode} instead of {wanted}")),
        _ if xml::text(adapter, "IsConnected") == Some("false") => Some("an adapter that is not connected".into()),
        _ => None,
    }
}

/// The only adapter of a new VM.
pub(super) fn write_adapter(w: &mut Writer, settings: &Settings, names: &Names) {
    w.open("NetworkConnectionSection", &[]);
    w.leaf("ovf:Info", "The VM's network");
    w.leaf("PrimaryNetworkConnectionIndex", "0");
    w.open("NetworkConnection", &[("network", &names.network_name)]);
    w.leaf("NetworkConnectionIndex", "0");
    w.leaf("IsConnected", "true");
    w.leaf("IpAddressAllocationMode", ip_mode(settings));
    w.leaf("NetworkAdapterType", names.template.hardware.adapter.as_deref().unwrap_or("VMXNET3"));
    w.close();
    w.close();
}

/// Assigns the configured network to the template's networks. Without it VCD may reject the VM, or leave it on the
/// template's network. VCD rejects an assignment for "none".
pub(super) fn write_assignments(w: &mut Writer, names: &Names) {
    for network in names.template.hardware.networks.iter().filter(|network| **network != names.network_name) {
        w.empty("NetworkAssignment", &[("innerNetwork", network), ("containerNetwork", &names.network_name)]);
    }
}

/// The hardware in the settings, as the template's own items with other values. The children of an item are in
/// alphabetical order, `vmw` after `rasd`. Nothing is written if nothing is set.
pub(super) fn write_items(w: &mut Writer, settings: &Settings, names: &Names) {
    let (wish, hardware) = (names.wish(settings), &names.template.hardware);
    if wish.cpus == 0 && wish.memory_mb == 0 && settings.disk_gb == 0 {
        return;
    }
    let (cpu_id, memory_id) = hardware.ids();
    w.open("ovf:VirtualHardwareSection", &[]);
    w.leaf("ovf:Info", "The VM's hardware");
    if wish.cpus > 0 {
        w.open("ovf:Item", &[]);
        w.leaf("rasd:AllocationUnits", "hertz * 10^6");
        w.leaf("rasd:Description", "Number of Virtual CPUs");
        w.leaf("rasd:ElementName", &format!("{} virtual CPU(s)", wish.cpus));
        w.leaf("rasd:InstanceID", &cpu_id);
        w.leaf("rasd:ResourceType", CPU);
        w.leaf("rasd:VirtualQuantity", &wish.cpus.to_string());
        // The attribute lets a reader ignore the element.
        let cores = wish.cores_per_socket.to_string();
        w.leaf_with("vmw:CoresPerSocket", &[("ovf:required", "false")], &cores);
        w.close();
    }
    if wish.memory_mb > 0 {
        w.open("ovf:Item", &[]);
        w.leaf("rasd:AllocationUnits", "byte * 2^20");
        w.leaf("rasd:Description", "Memory Size");
        w.leaf("rasd:ElementName", &format!("{} MB of memory", wish.memory_mb));
        w.leaf("rasd:InstanceID", &memory_id);
        w.leaf("rasd:ResourceType", MEMORY);
        w.leaf("rasd:VirtualQuantity", &wish.memory_mb.to_string());
        w.close();
    }
    if let Some(disk) = hardware.disks.first().filter(|_| settings.disk_gb > 0) {
        let mb = disk_mb(settings);
        let capacity = mb.to_string();
        let host = [
            ("vcloud:capacity", capacity.as_str()),
            ("vcloud:busType", disk.bus_type.as_str()),
            ("vcloud:busSubType", disk.bus_sub_type.as_str()),
        ];
        let told: Vec<(&str, &str)> = host.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        w.open("ovf:Item", &[]);
        w.leaf("rasd:AddressOnParent", &disk.unit);
        w.leaf("rasd:Description", "Hard disk");
        w.leaf("rasd:ElementName", "Hard disk 1");
        w.empty("rasd:HostResource", &told);
        w.leaf("rasd:InstanceID", &disk.id);
        // Nil, as pyvcloud, VMware's own client, sends it: its controller is not among these items.
        w.empty("rasd:Parent", &[("xsi:nil", "true")]);
        w.leaf("rasd:ResourceType", DISK);
        w.leaf("rasd:VirtualQuantity", &(mb << 20).to_string());
        w.leaf("rasd:VirtualQuantityUnits", "byte");
        w.close();
    }
    w.close();
}

/// The body that changes a VM to the settings, in the order of the schema; or the mistake in the VM's document.
pub(super) fn reconfigure(settings: &Settings, names: &Names, vm: Node) -> Result<String, String> {
    let unusable = |element: &str| format!("{element} is not usable");
    let mut w = Writer::new();
    let name = xml::attribute(vm, "name").ok_or_else(|| unusable("name"))?;
    w.open("Vm", &[("xmlns", NAMESPACE), ("xmlns:ovf", OVF), ("name", name)]);
    // If it is omitted, VCD might read it as empty.
    w.leaf("Description", xml::child(vm, "Description").and_then(|d| d.text()).unwrap_or_default());
    w.open("VmSpecSection", &[("Modified", "true")]);
    w.leaf("ovf:Info", "The VM's hardware");
    let wish = names.wish(settings);
    if wish.cpus > 0 {
        w.leaf("NumCpus", &wish.cpus.to_string());
        w.leaf("NumCoresPerSocket", &wish.cores_per_socket.to_string());
    }
    if wish.memory_mb > 0 {
        w.open("MemoryResourceMb", &[]);
        w.leaf("Configured", &wish.memory_mb.to_string());
        w.close();
    }
    write_disks(&mut w, settings, names, vm)?;
    w.close();
    if adapter_difference(settings, names, vm).is_some() {
        write_adapter(&mut w, settings, names);
    }
    w.finish().map_err(unusable)
}

/// All disks as they are, except for the boot disk's size. VCD rejects a section without a change.
fn write_disks(w: &mut Writer, settings: &Settings, names: &Names, vm: Node) -> Result<(), String> {
    let wished = disk_mb(settings);
    let Some((boot, mb)) = boot_disk(names, vm).filter(|(_, mb)| wished > 0 && *mb != wished) else {
        return Ok(());
    };
    if mb > wished {
        return Err(format!("the VM's boot disk has {mb} MB, and disks cannot shrink"));
    }
    w.open("DiskSection", &[]);
    for disk in disk_settings(vm) {
        w.open("DiskSettings", &[]);
        for name in ["DiskId", "SizeMb", "UnitNumber", "BusNumber", "AdapterType"] {
            match xml::text(disk, name) {
                Some(_) if name == "SizeMb" && disk == boot => w.leaf(name, &wished.to_string()),
                Some(text) => w.leaf(name, text),
                None => return Err(format!("{name} of a disk is missing in VCD's answer")),
            }
        }
        if let Some(thin) = xml::text(disk, "ThinProvisioned") {
            w.leaf("ThinProvisioned", thin);
        }
        for name in ["Disk", "StorageProfile"] {
            if let Some(href) = xml::child(disk, name).and_then(|reference| xml::attribute(reference, "href")) {
                w.empty(name, &[("href", href)]);
            }
        }
        w.leaf("overrideVmDefault", xml::text(disk, "overrideVmDefault").unwrap_or("false"));
        w.close();
    }
    w.close();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(inside: &str) -> Hardware {
        let text = format!(
            r#"<Vm xmlns="v" xmlns:ovf="o" xmlns:rasd="r" xmlns:x="v" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
            {inside}</Vm>"#
        );
        Hardware::read(xml::read(&text).unwrap().root_element(), "")
    }

    fn section(items: &[&str]) -> String {
        let items: String = items.iter().map(|item| format!("<ovf:Item>{item}</ovf:Item>")).collect();
        format!("<ovf:VirtualHardwareSection>{items}</ovf:VirtualHardwareSection>")
    }

    fn disk(id: &str, parent: &str, unit: &str) -> String {
        format!(
            "<rasd:AddressOnParent>{unit}</rasd:AddressOnParent><rasd:HostResource x:capacity=\"16384\" x:busType=\"6\" \
             x:busSubType=\"lsilogic\"/><rasd:InstanceID>{id}</rasd:InstanceID><rasd:Parent>{parent}</rasd:Parent>\
             <rasd:ResourceType>17</rasd:ResourceType>"
        )
    }

    #[test]
    fn items_are_recognised_by_their_kind() {
        let hardware = read(&section(&[
            "<rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceSubType>E1000E</rasd:ResourceSubType>\
             <rasd:ResourceType>10</rasd:ResourceType>",
            "<rasd:Address>0</rasd:Address><rasd:InstanceID>2</rasd:InstanceID><rasd:ResourceType>6</rasd:ResourceType>",
            "<rasd:InstanceID>4</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType>",
            "<rasd:InstanceID>5</rasd:InstanceID><rasd:ResourceType>4</rasd:ResourceType>",
            &disk("2001", "2", "1"),
        ]));
        let want = Hardware {
            cpu_id: Some("4".into()),
            memory_id: Some("5".into()),
            disks: vec![Disk {
                id: "2001".into(),
                unit: "1".into(),
                bus_type: "6".into(),
                bus_sub_type: "lsilogic".into(),
                place: (0, 1),
                mb: 16_384,
            }],
            adapter: Some("E1000E".into()),
            ..Hardware::default()
        };
        assert_eq!(hardware, want);
        assert!(!hardware.is_partial() && read("").is_partial());
    }

    #[test]
    fn the_boot_disk_is_on_the_lowest_controller_at_the_lowest_unit() {
        let ids = |inside: String| read(&inside).disks.into_iter().map(|disk| disk.id).collect::<Vec<_>>();
        let all = [("2016", "3", "0"), ("2001", "2", "1"), ("2000", "2", "0")];
        let items: Vec<String> = all.iter().map(|(id, parent, unit)| disk(id, parent, unit)).collect();
        let items: Vec<&str> = items.iter().map(String::as_str).collect();
        assert_eq!(ids(section(&items)), ["2000", "2016", "2001"]);
        let many = vec![items[0]; MAX_DISKS + 5];
        assert_eq!(ids(section(&many)).len(), MAX_DISKS);
        // By numbers, not by letters.
        assert_eq!(ids(section(&[&disk("2000", "10", "0"), &disk("16000", "9", "0")])), ["16000", "2000"]);
        let settings = |(id, bus, unit): (u32, u32, u32)| {
            format!(
                "<DiskSettings><DiskId>{id}</DiskId><SizeMb>7</SizeMb><UnitNumber>{unit}</UnitNumber>\
                 <BusNumber>{bus}</BusNumber></DiskSettings>"
            )
        };
        let all: String = [(2016, 1, 0), (2001, 0, 1), (2000, 0, 0)].into_iter().map(settings).collect();
        let spec = format!("<VmSpecSection><DiskSection>{all}</DiskSection></VmSpecSection>");
        assert_eq!(ids(spec.clone()), ["2000", "2016", "2001"]);
        let known = read(&spec).disks;
        assert_eq!(
            known.iter().map(|disk| (disk.place, disk.mb)).collect::<Vec<_>>(),
            [((0, 0), 7), ((1, 0), 7), ((0, 1), 7)]
        );
    }

    #[test]
    fn elements_that_are_nil_are_not_there() {
        let hardware = read(&section(&[
            "<rasd:InstanceID xsi:nil=\"true\"/><rasd:ResourceType>3</rasd:ResourceType>",
            "<rasd:AddressOnParent xsi:nil=\"true\"/><rasd:HostResource xsi:nil=\"true\"/>\
             <rasd:InstanceID>2000</rasd:InstanceID><rasd:Parent xsi:nil=\"true\"/>\
             <rasd:ResourceType>17</rasd:ResourceType><rasd:VirtualQuantity>21474836480</rasd:VirtualQuantity>",
        ]));
        assert_eq!(hardware.cpu_id, None);
        assert_eq!(
            (hardware.disks[0].mb, hardware.disks[0].place, hardware.disks[0].unit.as_str()),
            (20_480, (0, 0), "0")
        );
    }

    #[test]
    fn networks_of_the_template_are_read() {
        let adapters = |names: &[&str]| {
            let one = |name: &&str| format!("<NetworkConnection network=\"{name}\"/>");
            let all: String = names.iter().map(one).collect();
            read(&format!("<NetworkConnectionSection>{all}</NetworkConnectionSection>")).networks
        };
        assert_eq!(adapters(&["none"]), [""; 0]);
        assert_eq!(adapters(&["VM Network", "none", "Internal", "VM Network"]), ["VM Network", "Internal"]);
        assert_eq!(adapters(&["a"; MAX_ADAPTERS + 5]).len(), 1);
    }
}
