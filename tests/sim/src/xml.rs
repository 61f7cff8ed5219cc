//! XML: a small writer that escapes and can vary its prefixes, readers by local name for roxmltree, and the check of
//! the element order in VCD's schema.

use roxmltree::Node;
use std::fmt::Write as _;

/// Namespaces, with their prefixes in the code of this crate ("": VCD's own).
const NAMESPACES: [(&str, &str); 4] = [
    ("", "http://www.vmware.com/vcloud/v1.5"),
    ("ovf", "http://schemas.dmtf.org/ovf/envelope/1"),
    ("rasd", "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"),
    ("vmw", "http://www.vmware.com/schema/ovf"),
];
/// The namespace of `/api/versions`.
pub const VERSIONS_NAMESPACE: &str = "http://www.vmware.com/vcloud/versions";
pub(crate) const XSI: &str = "http://www.w3.org/2001/XMLSchema-instance";

/// The prefixes of XML elements in answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prefixes {
    /// VCD's namespace is the default.
    #[default]
    Default,
    /// VCD's elements have the prefix `vcloud:`.
    Vcloud,
    /// `ns2:` and so on, as Java's serializers write it.
    Numbered,
}

impl Prefixes {
    fn of(self, prefix: &str) -> &str {
        match (self, prefix) {
            (Prefixes::Default, p) => p,
            (Prefixes::Vcloud, "") => "vcloud",
            (Prefixes::Vcloud, p) => p,
            (Prefixes::Numbered, "") => "ns2",
            (Prefixes::Numbered, "ovf") => "ns4",
            (Prefixes::Numbered, "rasd") => "ns5",
            (Prefixes::Numbered, _) => "ns6",
        }
    }
}

/// Writes one document.
pub struct Writer {
    out: String,
    prefixes: Prefixes,
    open: Vec<&'static str>,
    in_tag: bool,
}

impl Writer {
    /// A document with this root element.
    pub fn new(prefixes: Prefixes, root: &'static str) -> Self {
        let out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        let mut w = Self { out, prefixes, open: Vec::new(), in_tag: false };
        w.start(root);
        for (prefix, uri) in NAMESPACES {
            match w.prefixes.of(prefix) {
                "" => w.raw_attr("xmlns", uri),
                p => w.raw_attr(&format!("xmlns:{p}"), uri),
            }
        }
        if prefixes == Prefixes::Default {
            w.raw_attr("xmlns:vcloud", NAMESPACES[0].1);
        }
        w.raw_attr("xmlns:xsi", XSI);
        w
    }

    /// A document of `/api/versions`, which has its own namespace.
    pub fn versions() -> Self {
        let out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        let mut w = Self { out, prefixes: Prefixes::Default, open: Vec::new(), in_tag: false };
        w.start("SupportedVersions");
        w.raw_attr("xmlns", VERSIONS_NAMESPACE);
        w
    }

    fn name(&mut self, name: &str) {
        let (prefix, local) = name.split_once(':').unwrap_or(("", name));
        match self.prefixes.of(prefix) {
            "" => self.out.push_str(local),
            p => {
                let p = p.to_owned();
                let _ = write!(self.out, "{p}:{local}");
            }
        }
    }

    fn end_tag(&mut self) {
        if std::mem::take(&mut self.in_tag) {
            self.out.push('>');
        }
    }

    /// Opens an element. Attributes may follow.
    pub fn start(&mut self, name: &'static str) -> &mut Self {
        self.end_tag();
        self.out.push('<');
        self.name(name);
        self.open.push(name);
        self.in_tag = true;
        self
    }

    /// An attribute of the open element. `vcloud:x` is in VCD's namespace, `ovf:x` in OVF's.
    pub fn attr(&mut self, name: &str, value: impl AsRef<str>) -> &mut Self {
        match name.split_once(':') {
            Some(("vcloud", local)) => {
                let prefix = match self.prefixes {
                    Prefixes::Numbered => "ns2",
                    _ => "vcloud",
                };
                self.raw_attr(&format!("{prefix}:{local}"), value.as_ref());
            }
            Some((p @ ("ovf" | "rasd" | "vmw"), local)) => {
                let name = format!("{}:{local}", self.prefixes.of(p));
                self.raw_attr(&name, value.as_ref());
            }
            _ => self.raw_attr(name, value.as_ref()),
        }
        self
    }

    fn raw_attr(&mut self, name: &str, value: &str) {
        let _ = write!(self.out, " {name}=\"");
        self.escape(value);
        self.out.push('"');
    }

    /// Text of the open element.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.end_tag();
        self.escape(text);
        self
    }

    /// Closes the open element.
    pub fn end(&mut self) -> &mut Self {
        let Some(name) = self.open.pop() else { return self };
        if std::mem::take(&mut self.in_tag) {
            self.out.push_str("/>");
        } else {
            self.out.push_str("</");
            self.name(name);
            self.out.push('>');
        }
        self
    }

    /// An element that contains only text.
    pub fn leaf(&mut self, name: &'static str, text: impl AsRef<str>) -> &mut Self {
        self.start(name).text(text.as_ref()).end()
    }

    /// The document, with all elements closed.
    pub fn finish(mut self) -> String {
        while !self.open.is_empty() {
            self.end();
        }
        self.out
    }

    fn escape(&mut self, text: &str) {
        for c in text.chars() {
            match c {
                '&' => self.out.push_str("&amp;"),
                '<' => self.out.push_str("&lt;"),
                '>' => self.out.push_str("&gt;"),
                '"' => self.out.push_str("&quot;"),
                '\n' => self.out.push_str("&#10;"),
                '\r' => self.out.push_str("&#13;"),
                '\t' => self.out.push_str("&#9;"),
                c if c < ' ' => {}
                c => self.out.push(c),
            }
        }
    }
}

/// The first child element with this local name.
pub fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|c| c.is_element() && c.tag_name().name() == name)
}

/// All child elements with this local name.
pub fn children<'a, 'i>(node: Node<'a, 'i>, name: &'static str) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children().filter(move |c| c.is_element() && c.tag_name().name() == name)
}

/// The text of a child element, if it exists.
pub fn text<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    child(node, name).map(|c| c.text().unwrap_or(""))
}

/// A boolean child element; pyvcloud writes `True`.
pub fn flag(node: Node<'_, '_>, name: &str) -> Option<bool> {
    text(node, name).map(|t| t.trim().eq_ignore_ascii_case("true"))
}

/// The children of an element, in order. A particle is a list of names separated by `|`, with `!` (required, once),
/// `?` (at most once) or `*` at its end. Names without prefix are in VCD's namespace.
type Rule = (&'static str, &'static [&'static str]);

const SECTIONS: &str = "NetworkConfigSection|LeaseSettingsSection|NetworkConnectionSection|GuestCustomizationSection|\
    VmSpecSection|RuntimeInfoSection|SnapshotSection|CustomizationSection|DefaultStorageProfileSection|\
    ovf:VirtualHardwareSection|ovf:OperatingSystemSection|ovf:ProductSection|ovf:StartupSection|ovf:NetworkSection*";

/// The schema of what clients send, by parent element.
const SCHEMA: &[Rule] = &[
    (
        "InstantiateVAppTemplateParams",
        &["Description?", "InstantiationParams?", "Source!", "IsSourceDelete?", "SourcedItem*", "AllEULAsAccepted?"],
    ),
    ("ComposeVAppParams", &["Description?", "InstantiationParams?", "SourcedItem*", "AllEULAsAccepted?"]),
    (
        "RecomposeVAppParams",
        &[
            "Description?",
            "InstantiationParams?",
            "SourcedItem*",
            "AllEULAsAccepted?",
            "CreateItem*",
            "ReconfigureItem*",
            "DeleteItem*",
        ],
    ),
    ("InstantiationParams", &[SECTIONS]),
    (
        "SourcedItem",
        &[
            "Source!",
            "VmGeneralParams?",
            "VAppScopedLocalId?",
            "InstantiationParams?",
            "NetworkAssignment*",
            "StorageProfile?",
            "VdcComputePolicy?",
            "ComputePolicy?",
            "LocalityParams?",
            "VmCapabilities?",
        ],
    ),
    ("VmGeneralParams", &["Name?", "Description?", "NeedsCustomization?", "RegenerateBiosUuid?"]),
    ("ComputePolicy", &["VmPlacementPolicy?", "VmPlacementPolicyFinal?", "VmSizingPolicy?", "VmSizingPolicyFinal?"]),
    ("VmCapabilities", &["Link*", "MemoryHotAddEnabled?", "CpuHotAddEnabled?"]),
    ("NetworkConfigSection", &["ovf:Info!", "Link*", "NetworkConfig*"]),
    ("NetworkConfig", &["Link*", "Description?", "Configuration!", "IsDeployed?"]),
    (
        "Configuration",
        &[
            "BackwardCompatibilityMode?",
            "IpScopes?",
            "ParentNetwork?",
            "FenceMode!",
            "RetainNetInfoAcrossDeployments?",
            "Features?",
            "SyslogServerSettings?",
            "RouterInfo?",
            "SubInterface?",
            "DistributedInterface?",
            "GuestVlanAllowed?",
            "ConnectionType?",
            "DualStackNetwork?",
        ],
    ),
    (
        "LeaseSettingsSection",
        &[
            "ovf:Info!",
            "Link*",
            "DeploymentLeaseInSeconds?",
            "DeploymentLeaseExpiration?",
            "StorageLeaseInSeconds?",
            "StorageLeaseExpiration?",
        ],
    ),
    ("NetworkConnectionSection", &["ovf:Info!", "PrimaryNetworkConnectionIndex?", "NetworkConnection*", "Link*"]),
    (
        "NetworkConnection",
        &[
            "NetworkConnectionIndex!",
            "IpAddress?",
            "IpType?",
            "SecondaryIpAddress?",
            "SecondaryIpType?",
            "ExternalIpAddress?",
            "IsConnected!",
            "MACAddress?",
            "IpAddressAllocationMode!",
            "SecondaryIpAddressAllocationMode?",
            "NetworkAdapterType?",
        ],
    ),
    (
        "GuestCustomizationSection",
        &[
            "ovf:Info!",
            "Enabled?",
            "ChangeSid?",
            "VirtualMachineId?",
            "JoinDomainEnabled?",
            "UseOrgSettings?",
            "DomainName?",
            "DomainUserName?",
            "DomainUserPassword?",
            "MachineObjectOU?",
            "AdminPasswordEnabled?",
            "AdminPasswordAuto?",
            "AdminPassword?",
            "AdminAutoLogonEnabled?",
            "AdminAutoLogonCount?",
            "ResetPasswordRequired?",
            "CustomizationScript?",
            "ComputerName?",
            "Link*",
        ],
    ),
    ("ovf:VirtualHardwareSection", &["ovf:Info!", "ovf:System?", "ovf:Item*", "vmw:ExtraConfig*", "Link*"]),
    ("VApp", &["Link*", "Description?", "Tasks?", "Files?", SECTIONS]),
    (
        "Vm",
        &[
            "Link*",
            "Description?",
            "Tasks?",
            "Files?",
            "VAppParent?",
            SECTIONS,
            "VAppScopedLocalId?",
            "DateCreated?",
            "VmCapabilities?",
            "StorageProfile?",
            "VdcComputePolicy?",
            "ComputePolicy?",
            "BootOptions?",
            "Media?",
        ],
    ),
    (
        "VmSpecSection",
        &[
            "ovf:Info!",
            "OsType?",
            "Firmware?",
            "NumCpus?",
            "NumCoresPerSocket?",
            "CpuResourceMhz?",
            "MemoryResourceMb?",
            "MediaSection?",
            "DiskSection?",
            "HardwareVersion?",
            "VmToolsVersion?",
            "VirtualCpuType?",
            "TimeSyncWithHost?",
        ],
    ),
    ("DiskSection", &["DiskSettings*"]),
    (
        "DiskSettings",
        &[
            "DiskId?",
            "SizeMb!",
            "UnitNumber!",
            "BusNumber!",
            "AdapterType!",
            "ThinProvisioned?",
            "Disk?",
            "StorageProfile?",
            "overrideVmDefault!",
            "IopsAllocation?",
            "VirtualQuantity?",
            "VirtualQuantityUnit?",
        ],
    ),
    ("Metadata", &["Link*", "MetadataEntry*"]),
    ("MetadataEntry", &["Link*", "Domain?", "Key!", "TypedValue!"]),
    ("MetadataValue", &["Link*", "Domain?", "TypedValue!"]),
    ("TypedValue", &["Value!"]),
    ("UndeployVAppParams", &["UndeployPowerAction?"]),
    ("DeployVAppParams", &[]),
    ("TrustedPlatformModule", &["TpmPresent!"]),
    ("ProductSectionList", &["ovf:ProductSection*"]),
    ("RasdItemsList", &["Link*", "Item*"]),
];

/// Maximum depth of a body.
const MAX_DEPTH: u32 = 16;

/// Checks a body against the schema: order, unknown and missing elements, namespaces. The error is VCD's text.
pub fn check_schema(node: Node<'_, '_>) -> Result<(), String> {
    check_node(node, 0)
}

fn qualified(node: Node<'_, '_>) -> Option<String> {
    let uri = node.tag_name().namespace().unwrap_or("");
    let (prefix, _) = NAMESPACES.iter().find(|(_, known)| *known == uri)?;
    let local = node.tag_name().name();
    Some(if prefix.is_empty() { local.to_string() } else { format!("{prefix}:{local}") })
}

fn unexpected(node: Node<'_, '_>, expected: &[&str]) -> String {
    let uri = node.tag_name().namespace().unwrap_or("");
    let expected: Vec<&str> = expected.iter().map(|p| p.trim_end_matches(['!', '?', '*'])).collect();
    format!(
        "Bad request\n - cvc-complex-type.2.4.a: Invalid content was found starting with element '{{\"{uri}\":{}}}'. \
         One of '{{{}}}' is expected.",
        node.tag_name().name(),
        expected.join(", ").replace('|', ", ")
    )
}

fn check_node(node: Node<'_, '_>, depth: u32) -> Result<(), String> {
    let name = qualified(node).ok_or_else(|| unexpected(node, &[]))?;
    if name == "ovf:Item" || name == "Item" {
        return check_item(node);
    }
    let Some((_, particles)) = SCHEMA.iter().find(|(parent, _)| *parent == name) else { return Ok(()) };
    if depth > MAX_DEPTH {
        return Err("Bad request\n - the document is nested too deep".into());
    }
    let mut rest: &[&str] = particles;
    let mut taken = false;
    for element in node.children().filter(Node::is_element) {
        let name = qualified(element).ok_or_else(|| unexpected(element, rest))?;
        loop {
            let Some((first, more)) = rest.split_first() else { return Err(unexpected(element, &[])) };
            let repeats = first.ends_with('*');
            let fits = first.trim_end_matches(['!', '?', '*']).split('|').any(|n| n.trim() == name);
            if fits && (repeats || !taken) {
                taken = true;
                break;
            }
            if first.ends_with('!') && !taken {
                return Err(unexpected(element, rest));
            }
            (rest, taken) = (more, false);
        }
        check_node(element, depth + 1)?;
    }
    let missing = rest.iter().enumerate().find(|(i, p)| p.ends_with('!') && !(*i == 0 && taken));
    match missing {
        Some((_, particle)) => Err(format!(
            "Bad request\n - cvc-complex-type.2.4.b: The content of element '{name}' is not complete. One of '{{{}}}' is expected.",
            particle.trim_end_matches('!')
        )),
        None => Ok(()),
    }
}

/// Children of a hardware item: `rasd:` in alphabetical order, then `vmw:`.
fn check_item(node: Node<'_, '_>) -> Result<(), String> {
    let mut last = (0, String::new());
    for element in node.children().filter(Node::is_element) {
        let rank = match qualified(element).as_deref().and_then(|n| n.split_once(':')).map(|(p, _)| p) {
            Some("rasd") => 1,
            Some("vmw") => 2,
            None if element.tag_name().name() == "Link" => 3,
            _ => return Err(unexpected(element, &["rasd"])),
        };
        let key = (rank, element.tag_name().name().to_string());
        // HostResource, Parent and similar elements may repeat.
        if (rank == 1 || rank < last.0) && key < last {
            return Err(unexpected(element, &["the elements of a hardware item in alphabetical order"]));
        }
        last = key;
    }
    Ok(())
}
