//! Reads bodies of requests from XML into the model's types.

use crate::model::*;
use crate::xml::{XSI, child, children, flag, text};
use roxmltree::Node;
use std::borrow::Cow;
use std::net::Ipv4Addr;
use std::sync::Arc;

/// What is wrong with a body, or with an entity that it names.
type Bad = Refusal;

const OVF: &str = "http://schemas.dmtf.org/ovf/envelope/1";

fn bad<T>(message: impl Into<String>) -> Result<T, Bad> {
    Err(Refusal::bad(message))
}

/// The id in the last 36 characters of a link.
pub fn id_of<I: Id>(model: &Model, href: &str) -> Result<I, Bad> {
    let href = href.trim_end_matches('/');
    let tail = href.len().checked_sub(36).and_then(|at| href.get(at..)).unwrap_or("");
    model.parse_uuid(tail).ok_or_else(|| {
        let message = format!("The reference \"{href}\" cannot be parsed correctly.");
        Refusal::new(400, "BAD_REQUEST", message)
    })
}

fn href_of<I: Id>(model: &Model, node: Node<'_, '_>) -> Result<I, Bad> {
    id_of(model, node.attribute("href").unwrap_or(""))
}

fn arc(text: Option<&str>) -> Option<Arc<str>> {
    text.map(Into::into)
}

/// The number in a child element, if the element exists.
fn number<T: std::str::FromStr>(node: Node<'_, '_>, name: &str) -> Result<Option<T>, Bad> {
    let Some(value) = text(node, name) else { return Ok(None) };
    value.trim().parse().map(Some).or_else(|_| bad(format!("Bad request\n - {name}: '{value}' is not a valid value.")))
}

fn attr_flag(node: Node<'_, '_>, name: &str, default: bool) -> bool {
    node.attribute(name).map_or(default, |v| v.trim().eq_ignore_ascii_case("true"))
}

/// `InstantiateVAppTemplateParams` and `ComposeVAppParams`.
pub fn create(model: &Model, root: Node<'_, '_>) -> Result<Create, Bad> {
    let params = child(root, "InstantiationParams");
    let section = |name| params.and_then(|p| child(p, name));
    Ok(Create {
        name: root.attribute("name").unwrap_or("").into(),
        description: text(root, "Description").unwrap_or("").into(),
        networks: section("NetworkConfigSection").map_or(Ok(Vec::new()), |s| networks(model, s))?,
        lease: section("LeaseSettingsSection").map(lease).transpose()?,
        items: items(model, root)?,
        deploy: attr_flag(root, "deploy", true),
        power_on: attr_flag(root, "powerOn", true),
    })
}

/// The template of `InstantiateVAppTemplateParams`.
pub fn template(model: &Model, root: Node<'_, '_>) -> Result<TemplateId, Bad> {
    child(root, "Source").map_or_else(|| bad("Source is missing."), |s| href_of(model, s))
}

fn items(model: &Model, root: Node<'_, '_>) -> Result<Vec<Item>, Bad> {
    children(root, "SourcedItem").filter(|i| !attr_flag(*i, "sourceDelete", false)).map(|i| item(model, i)).collect()
}

fn item(model: &Model, node: Node<'_, '_>) -> Result<Item, Bad> {
    let Some(source) = child(node, "Source") else { return bad("SourcedItem has no Source.") };
    // A whole template can be named instead of its only VM.
    let id = match href_of::<TemplateVmId>(model, source) {
        Ok(id) => id,
        Err(error) => {
            let template = href_of::<TemplateId>(model, source).ok().and_then(|t| model.templates.get(&t));
            template.and_then(|t| t.vms.first().copied()).ok_or(error)?
        }
    };
    let mut item = Item::new(id);
    let general = child(node, "VmGeneralParams");
    item.name = arc(general.and_then(|g| text(g, "Name")).or(source.attribute("name")));
    item.description = arc(general.and_then(|g| text(g, "Description")));
    item.needs_customization = general.and_then(|g| flag(g, "NeedsCustomization")).unwrap_or(false);
    let assignment = |node: Node<'_, '_>, name| Arc::<str>::from(node.attribute(name).unwrap_or(""));
    item.assignments = children(node, "NetworkAssignment")
        .map(|a| (assignment(a, "innerNetwork"), assignment(a, "containerNetwork")))
        .collect();
    if let Some(params) = child(node, "InstantiationParams") {
        if let Some(section) = child(params, "NetworkConnectionSection") {
            let (primary, nics) = nics(section)?;
            item.primary_nic = primary;
            item.nics = Some(nics);
        }
        if let Some(section) = child(params, "VirtualHardwareSection") {
            item.hardware = hardware(section)?;
            if let Some(vm) = model.template_vms.get(&id) {
                item_ids(vm, section)?;
            }
        }
        item.guest = child(params, "GuestCustomizationSection").map(guest).transpose()?;
        item.properties = children(params, "ProductSection").flat_map(properties).collect();
        if child(params, "VmSpecSection").is_some() {
            return bad("Unexpected section VmSpecSection in InstantiationParams.");
        }
    }
    item.profile = child(node, "StorageProfile").map(|p| href_of(model, p)).transpose()?;
    item.policy = policy(model, node)?;
    let placement = child(node, "ComputePolicy").and_then(|p| child(p, "VmPlacementPolicy"));
    item.placement = placement.map(|p| href_of(model, p)).transpose()?;
    (item.cpu_hot_add, item.memory_hot_add) = child(node, "VmCapabilities").map(hot_add).unwrap_or_default();
    Ok(item)
}

fn policy(model: &Model, node: Node<'_, '_>) -> Result<Option<PolicyId>, Bad> {
    let sizing = child(node, "ComputePolicy").and_then(|p| child(p, "VmSizingPolicy"));
    sizing
        .or(child(node, "VdcComputePolicy"))
        .filter(|p| p.has_attribute("href"))
        .map(|p| href_of(model, p))
        .transpose()
}

/// `VmCapabilities`: CPU and memory.
pub fn hot_add(node: Node<'_, '_>) -> (bool, bool) {
    (flag(node, "CpuHotAddEnabled").unwrap_or(false), flag(node, "MemoryHotAddEnabled").unwrap_or(false))
}

/// `NetworkConfigSection`.
pub fn networks(model: &Model, section: Node<'_, '_>) -> Result<Vec<VappNetwork>, Bad> {
    let mut all = Vec::new();
    for config in children(section, "NetworkConfig") {
        let Some(inner) = child(config, "Configuration") else { continue };
        let fence = match text(inner, "FenceMode").unwrap_or("").trim() {
            "bridged" => Fence::Bridged,
            "natRouted" => Fence::NatRouted,
            "isolated" => Fence::Isolated,
            other => return bad(format!("FenceMode '{other}' is not a valid value.")),
        };
        let parent = child(inner, "ParentNetwork").map(|p| href_of(model, p)).transpose()?;
        all.push(VappNetwork { name: config.attribute("networkName").unwrap_or("").into(), parent, fence });
    }
    Ok(all)
}

/// `LeaseSettingsSection`.
pub fn lease(section: Node<'_, '_>) -> Result<Lease, Bad> {
    Ok(Lease {
        deployment_s: number(section, "DeploymentLeaseInSeconds")?.unwrap_or(0),
        storage_s: number(section, "StorageLeaseInSeconds")?.unwrap_or(0),
    })
}

/// `NetworkConnectionSection`: the primary index and the NICs.
pub fn nics(section: Node<'_, '_>) -> Result<(u32, Vec<Nic>), Bad> {
    let mut all = Vec::new();
    for nic in children(section, "NetworkConnection") {
        let mode = match text(nic, "IpAddressAllocationMode").unwrap_or("").trim() {
            "POOL" => IpMode::Pool,
            "DHCP" => IpMode::Dhcp,
            "MANUAL" => IpMode::Manual,
            "NONE" => IpMode::None,
            other => return bad(format!("IpAddressAllocationMode '{other}' is not a valid value.")),
        };
        let address = match text(nic, "IpAddress").map(str::trim).filter(|a| !a.is_empty()) {
            Some(text) => match text.parse::<Ipv4Addr>() {
                Ok(address) => Some(address),
                Err(_) => return bad(format!("IpAddress '{text}' is not a valid address.")),
            },
            None => None,
        };
        let network = nic.attribute("network").filter(|n| !n.is_empty() && *n != "none");
        all.push(Nic {
            index: number(nic, "NetworkConnectionIndex")?.unwrap_or(0),
            network: arc(network),
            mode,
            address: address.filter(|_| mode == IpMode::Manual),
            connected: flag(nic, "IsConnected").unwrap_or(false),
            adapter: text(nic, "NetworkAdapterType").unwrap_or("VMXNET3").into(),
        });
    }
    Ok((number(section, "PrimaryNetworkConnectionIndex")?.unwrap_or(0), all))
}

/// `GuestCustomizationSection`.
pub fn guest(section: Node<'_, '_>) -> Result<GuestSection, Bad> {
    let is = |name| flag(section, name).unwrap_or(false);
    let some = |name| arc(text(section, name).filter(|t| !t.is_empty()));
    Ok(GuestSection {
        enabled: is("Enabled"),
        change_sid: is("ChangeSid"),
        admin_password_enabled: is("AdminPasswordEnabled"),
        admin_password_auto: is("AdminPasswordAuto"),
        admin_password: some("AdminPassword"),
        admin_auto_logon_enabled: is("AdminAutoLogonEnabled"),
        admin_auto_logon_count: number(section, "AdminAutoLogonCount")?.unwrap_or(0),
        reset_password_required: is("ResetPasswordRequired"),
        script: some("CustomizationScript"),
        computer_name: some("ComputerName"),
    })
}

/// An item must not have the id of an item of another kind in the template. Its parent must be a controller of the
/// template, or nil.
fn item_ids(vm: &TemplateVm, section: Node<'_, '_>) -> Result<(), Bad> {
    let ids = ItemIds::of(vm.nics.len(), &vm.disks);
    for item in children(section, "Item") {
        let (id, kind) = (number(item, "InstanceID")?.unwrap_or(0), number::<u16>(item, "ResourceType")?);
        if let Some(other) = ids.kind(id, &vm.disks).filter(|known| Some(*known) != kind) {
            return bad(format!("Bad request\n - rasd:InstanceID: {id} is that of an item of ResourceType {other}."));
        }
        let parent = child(item, "Parent").filter(|parent| parent.attribute((XSI, "nil")) != Some("true"));
        if let Some(parent) = parent.map(|parent| parent.text().unwrap_or("")) {
            let controller = parent.trim().parse().ok().and_then(|id| ids.kind(id, &vm.disks));
            if !matches!(controller, Some(5 | 6 | 20)) {
                return bad(format!("Bad request\n - rasd:Parent: \"{parent}\" is no controller."));
            }
        }
    }
    Ok(())
}

/// `ovf:VirtualHardwareSection`, or any element that holds hardware items.
pub fn hardware(section: Node<'_, '_>) -> Result<Hardware, Bad> {
    let mut all = Hardware::default();
    for node in children(section, "Item") {
        hardware_item(node, &mut all)?;
    }
    Ok(all)
}

/// One hardware item: CPU, memory or disk. Other items are ignored.
pub fn hardware_item(node: Node<'_, '_>, all: &mut Hardware) -> Result<(), Bad> {
    match number::<u32>(node, "ResourceType")? {
        Some(3) => {
            all.cpus = number(node, "VirtualQuantity")?;
            all.cores_per_socket = number(node, "CoresPerSocket")?;
        }
        Some(4) => all.memory_mb = number(node, "VirtualQuantity")?,
        Some(17) => {
            let capacity = child(node, "HostResource").and_then(|h| h.attributes().find(|a| a.name() == "capacity"));
            let mb = capacity.and_then(|c| c.value().parse().ok());
            let (Some(mb), Some(id)) = (mb, number(node, "InstanceID")?) else {
                return bad("A disk item needs InstanceID and HostResource with capacity.");
            };
            match &mut all.disks {
                DiskChange::Resize(disks) => disks.push(Disk { id, mb }),
                other => *other = DiskChange::Resize(vec![Disk { id, mb }]),
            }
        }
        _ => {}
    }
    Ok(())
}

/// The properties of an `ovf:ProductSection`.
pub fn properties<'a>(section: Node<'a, '_>) -> impl Iterator<Item = (Arc<str>, Arc<str>)> + 'a {
    let attribute = |node: Node<'a, '_>, name| node.attribute((OVF, name)).or(node.attribute(name)).unwrap_or("");
    children(section, "Property")
        .map(move |p| {
            let value = child(p, "Value").map_or("", |v| attribute(v, "value"));
            let value = if value.is_empty() { attribute(p, "value") } else { value };
            (attribute(p, "key").into(), value.into())
        })
        .collect::<Vec<_>>()
        .into_iter()
}

/// `Vm` of `reconfigureVm` and of `PUT`.
pub fn vm_change(model: &Model, root: Node<'_, '_>) -> Result<VmChange, Bad> {
    let Some(name) = root.attribute("name").filter(|n| !n.is_empty()) else { return bad("The VM needs a name.") };
    let mut change = VmChange {
        name: arc(Some(name)),
        description: arc(text(root, "Description")),
        nics: child(root, "NetworkConnectionSection").map(nics).transpose()?,
        guest: child(root, "GuestCustomizationSection").map(guest).transpose()?,
        profile: child(root, "StorageProfile")
            .filter(|p| p.has_attribute("href"))
            .map(|p| href_of(model, p))
            .transpose()?,
        policy: policy(model, root)?,
        hot_add: child(root, "VmCapabilities").map(hot_add),
        ..VmChange::default()
    };
    if let Some(section) = child(root, "VirtualHardwareSection") {
        change.hardware = hardware(section)?;
    }
    if let Some(spec) = child(root, "VmSpecSection").filter(|s| attr_flag(*s, "Modified", false)) {
        change.hardware.cpus = number(spec, "NumCpus")?.or(change.hardware.cpus);
        change.hardware.cores_per_socket = number(spec, "NumCoresPerSocket")?.or(change.hardware.cores_per_socket);
        if let Some(memory) = child(spec, "MemoryResourceMb") {
            change.hardware.memory_mb = number(memory, "Configured")?.or(change.hardware.memory_mb);
        }
        if let Some(section) = child(spec, "DiskSection") {
            let mut disks = Vec::new();
            for settings in children(section, "DiskSettings") {
                let next = 2000 + u32::try_from(disks.len()).unwrap_or(0);
                let (id, mb) = (number(settings, "DiskId")?.unwrap_or(next), number(settings, "SizeMb")?.unwrap_or(0));
                disks.push(Disk { id, mb });
            }
            change.hardware.disks = DiskChange::Replace(disks);
        }
    }
    Ok(change)
}

/// `RecomposeVAppParams`.
pub fn recompose(model: &Model, root: Node<'_, '_>) -> Result<Recompose, Bad> {
    let params = child(root, "InstantiationParams");
    let section = |name| params.and_then(|p| child(p, name));
    Ok(Recompose {
        change: VappChange {
            name: arc(root.attribute("name").filter(|n| !n.is_empty())),
            description: arc(text(root, "Description")),
            networks: section("NetworkConfigSection").map(|s| networks(model, s)).transpose()?,
            lease: section("LeaseSettingsSection").map(lease).transpose()?,
        },
        add: items(model, root)?,
        remove: children(root, "DeleteItem").map(|d| href_of(model, d)).collect::<Result<_, _>>()?,
        power_on: attr_flag(root, "powerOn", false),
    })
}

/// `VApp` of `PUT`.
pub fn vapp_change(model: &Model, root: Node<'_, '_>) -> Result<VappChange, Bad> {
    Ok(VappChange {
        name: arc(root.attribute("name").filter(|n| !n.is_empty())),
        description: arc(text(root, "Description")),
        networks: child(root, "NetworkConfigSection").map(|s| networks(model, s)).transpose()?,
        lease: child(root, "LeaseSettingsSection").map(lease).transpose()?,
    })
}

/// `Metadata`: its entries.
pub fn metadata(root: Node<'_, '_>) -> Result<Vec<MetadataEntry>, Bad> {
    children(root, "MetadataEntry").map(|e| metadata_value(e, text(e, "Key").unwrap_or(""))).collect()
}

/// `MetadataValue`, or an entry of `Metadata`.
pub fn metadata_value(node: Node<'_, '_>, key: &str) -> Result<MetadataEntry, Bad> {
    let Some(value) = child(node, "TypedValue") else { return bad("TypedValue is missing.") };
    let kind = value.attributes().find(|a| a.name() == "type").map_or("", |a| a.value());
    let kind = kind.rsplit(':').next().unwrap_or("");
    let known = ["MetadataStringValue", "MetadataNumberValue", "MetadataDateTimeValue", "MetadataBooleanValue"];
    let Some(kind) = known.into_iter().find(|k| *k == kind) else {
        return bad(format!("The metadata type '{kind}' is not known."));
    };
    Ok((key.into(), Some((Cow::Borrowed(kind), text(value, "Value").unwrap_or("").into()))))
}

/// `UndeployVAppParams`.
pub fn undeploy(root: Node<'_, '_>) -> Result<UndeployAction, Bad> {
    match text(root, "UndeployPowerAction").unwrap_or("powerOff").trim() {
        "powerOff" | "default" => Ok(UndeployAction::PowerOff),
        "suspend" => Ok(UndeployAction::Suspend),
        "shutdown" => Ok(UndeployAction::Shutdown),
        "force" => Ok(UndeployAction::Force),
        other => bad(format!("UndeployPowerAction '{other}' is not a valid value.")),
    }
}

/// `DeployVAppParams`: power on, force customization.
pub fn deploy(root: Node<'_, '_>) -> (bool, bool) {
    (attr_flag(root, "powerOn", true), attr_flag(root, "forceCustomization", false))
}
