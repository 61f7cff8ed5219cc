//! Create: one `instantiateVAppTemplate` with everything, or a `composeVApp` without hardware and power, which later
//! requests add. It waits for no task.

use super::errors::{self, Stage};
use super::names::Names;
use super::xml::{self, Writer};
use super::{Call, Client, NAMESPACE, OVF, Settings, XSI, hardware, properties};
use crate::cloud::{ErrorKind, Guest, Href, Reply, Source, Started, VcdError};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use ureq::http::Method;

/// Maximum length of a script that VCD accepts, in characters.
pub const MAX_SCRIPT: usize = 49_000;

const INSTANTIATE: &str = "application/vnd.vmware.vcloud.instantiateVAppTemplateParams+xml";
const COMPOSE: &str = "application/vnd.vmware.vcloud.composeVAppParams+xml";
const RASD: &str = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData";
const VMW: &str = "http://www.vmware.com/schema/ovf";

impl Client {
    /// Sends the one request; `whole`: with hardware, powered on. If VCD does not find one of the objects, the names
    /// are looked up again before the next create. The error is permanent only if they had just been looked up.
    pub(super) fn create(
        &self,
        call: &Call,
        name: &str,
        description: &str,
        whole: bool,
        guest: Option<&Guest>,
    ) -> Result<Reply, VcdError> {
        let invalid = |why: String| VcdError::own(ErrorKind::Invalid, call.what.clone(), why);
        let guest = guest.ok_or_else(|| invalid("the guest's settings are missing".into()))?;
        if guest.script.as_ref().is_some_and(|s| s.reveal().chars().count() > MAX_SCRIPT) {
            return Err(invalid(format!("the guest customization script is longer than {MAX_SCRIPT} characters")));
        }
        let before = self.names();
        let names = self.names_for_create(call)?;
        let (template, known) = (&names.template.name, &names.template.hardware);
        let too_much = if known.needs_tpm {
            Some(format!("guests of template {template:?} need a TPM before their first boot"))
        } else if self.settings.disk_gb > 0 && known.disks.is_empty() {
            Some(format!("template {template:?} does not show its disk: the plugin sets its size when the VM shows it"))
        } else {
            None
        };
        if let Some(why) = too_much.filter(|_| whole) {
            return Err(VcdError::own(ErrorKind::TooMuch, call.what.clone(), why));
        }
        let carried = !self.no_properties_in_create.load(Ordering::Relaxed) && properties::are_wished(&self.settings);
        let body = document(&self.settings, &names, name, description, whole, carried, guest)
            .map_err(|element| invalid(format!("{element} contains a control character that XML does not allow")))?;
        let (action, content_type) =
            if whole { ("instantiateVAppTemplate", INSTANTIATE) } else { ("composeVApp", COMPOSE) };
        let url = format!("{}/action/{action}", names.vdc);
        let got = self.send(call, Method::POST, &url, Some((content_type, &body))).map_err(|mut e| {
            if e.kind == ErrorKind::NotFound {
                self.distrust(&names);
                if Arc::ptr_eq(&before, &names) {
                    e.kind = ErrorKind::Unavailable;
                    e.text = format!("{}; the plugin looks up names again before the next attempt", e.text);
                }
            }
            let about_content = errors::is_about_content(&e);
            if about_content && carried && (!whole || e.text.contains("ProductSection")) {
                // They are set when the VM exists.
                self.no_properties_in_create.store(true, Ordering::Relaxed);
                e.kind = ErrorKind::Unavailable;
                e.text =
                    format!("{}; the next attempt creates the VM first and sets the guest properties later", e.text);
            }
            if whole && about_content {
                e.kind = ErrorKind::TooMuch;
            }
            e
        })?;
        let unusable = |why: String| errors::unusable(&call.what, Stage::Change, got.status, why);
        let document = xml::read(&got.body).map_err(unusable)?;
        let root = document.root_element();
        let href = |node: Option<roxmltree::Node>| -> Result<Option<Href>, VcdError> {
            node.and_then(|n| xml::attribute(n, "href")).map(|href| self.link(call, Some(href))).transpose()
        };
        let (vapp, task) = match xml::local(root) {
            "VApp" => (Some(root), xml::child(root, "Tasks").and_then(|tasks| xml::child(tasks, "Task"))),
            "Task" => (xml::child(root, "Owner"), Some(root)),
            other => return Err(unusable(format!("neither a vApp nor a task but {other}"))),
        };
        match href(vapp)? {
            Some(vapp) => Ok(Reply::Started(Started {
                vapp: Some(vapp),
                task: href(task)?,
                source: source(&self.settings, &names),
            })),
            None => Err(unusable("the answer does not name the vApp".into())),
        }
    }
}

/// The request, in the order of the schema; or the element with a character that XML does not allow. `carried`: with
/// guest properties.
fn document(
    settings: &Settings,
    names: &Names,
    name: &str,
    description: &str,
    whole: bool,
    carried: bool,
    guest: &Guest,
) -> Result<String, &'static str> {
    let mut w = Writer::new();
    let on = if whole { "true" } else { "false" };
    let root = [
        ("xmlns", NAMESPACE),
        ("xmlns:ovf", OVF),
        ("xmlns:rasd", RASD),
        ("xmlns:vmw", VMW),
        ("xmlns:vcloud", NAMESPACE),
        ("xmlns:xsi", XSI),
        ("name", name),
        ("deploy", on),
        ("powerOn", on),
    ];
    w.open(if whole { "InstantiateVAppTemplateParams" } else { "ComposeVAppParams" }, &root);
    w.leaf("Description", description);
    w.open("InstantiationParams", &[]);
    vapp_network(&mut w, names);
    if let Some(lease) = settings.lease {
        w.open("LeaseSettingsSection", &[]);
        w.leaf("ovf:Info", "The vApp's lease");
        w.leaf("DeploymentLeaseInSeconds", &lease.runtime.as_secs().to_string());
        if let Some(storage) = lease.storage {
            w.leaf("StorageLeaseInSeconds", &storage.as_secs().to_string());
        }
        w.close();
    }
    w.close();
    if whole {
        w.empty("Source", &[("href", &names.template.href)]);
    }
    w.open("SourcedItem", &[]);
    let vm = [
        ("href", &*names.template.vm),
        ("name", &*names.template.vm_name),
        ("type", "application/vnd.vmware.vcloud.vm+xml"),
    ];
    w.empty("Source", &vm);
    w.open("VmGeneralParams", &[]);
    w.leaf("Name", name);
    w.leaf("Description", description);
    // Without this VCD keeps the guest section, but does not run it.
    w.leaf("NeedsCustomization", "true");
    w.leaf("RegenerateBiosUuid", "true");
    w.close();
    w.open("InstantiationParams", &[]);
    hardware::write_adapter(&mut w, settings, names);
    if whole {
        hardware::write_items(&mut w, settings, names);
    }
    guest_customization(&mut w, guest);
    if carried {
        properties::write(&mut w, settings);
    }
    w.close();
    hardware::write_assignments(&mut w, names);
    w.empty("StorageProfile", &[("href", &names.storage_profile)]);
    if names.sizing_policy.is_some() || names.placement_policy.is_some() {
        w.open("ComputePolicy", &[]);
        if let Some(policy) = &names.placement_policy {
            w.empty("VmPlacementPolicy", &[("href", &policy.href)]);
        }
        if let Some(policy) = &names.sizing_policy {
            w.empty("VmSizingPolicy", &[("href", &policy.href)]);
        }
        w.close();
    }
    w.close();
    w.leaf("AllEULAsAccepted", "true");
    w.finish()
}

/// What VMs are created from, without secrets: a hash of the request and of the guest's secrets.
pub(super) fn source(settings: &Settings, names: &Names) -> Source {
    let guest = Guest { computer_name: String::new(), script: None, password: None };
    let request = document(settings, names, "", "", true, true, &guest).unwrap_or_default();
    let digest = ring::digest::digest(&ring::digest::SHA256, (request + &settings.guest_source).as_bytes());
    Source(digest.as_ref().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes)))
}

fn vapp_network(w: &mut Writer, names: &Names) {
    w.open("NetworkConfigSection", &[]);
    w.leaf("ovf:Info", "The vApp's network");
    // A bridged vApp network must have the name of its parent network.
    w.open("NetworkConfig", &[("networkName", &names.network_name)]);
    w.open("Configuration", &[]);
    w.empty("ParentNetwork", &[("href", &names.network)]);
    w.leaf("FenceMode", "bridged");
    w.close();
    w.close();
    w.close();
}

fn guest_customization(w: &mut Writer, guest: &Guest) {
    w.open("GuestCustomizationSection", &[]);
    w.leaf("ovf:Info", "The guest");
    w.leaf("Enabled", "true");
    w.leaf("AdminPasswordEnabled", if guest.password.is_some() { "true" } else { "false" });
    w.leaf("AdminPasswordAuto", "false");
    if let Some(password) = &guest.password {
        w.leaf("AdminPassword", password.reveal());
    }
    w.leaf("ResetPasswordRequired", "false");
    if let Some(script) = &guest.script {
        w.leaf("CustomizationScript", script.reveal());
    }
    w.leaf("ComputerName", &guest.computer_name);
    w.close();
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::hardware::Hardware;
    use super::super::names::{Policy, Template};
    use super::super::{IpMode, Lease};
    use super::*;
    use crate::cloud::Secret;
    use std::time::Duration;

    fn policy(href: &str) -> Policy {
        Policy { href: href.into(), ..Policy::default() }
    }

    pub(in super::super) fn example() -> Settings {
        Settings {
            url: "https://h/api".into(),
            org: "o".into(),
            token: super::super::Token::Text(Secret::new("t")),
            ca_file: None,
            insecure_skip_tls_verify: false,
            vdc: "v".into(),
            network: "n".into(),
            ip_mode: IpMode::Pool,
            catalog: "c".into(),
            template: "t".into(),
            template_life: super::super::TEMPLATE_LIFE,
            storage_profile: "s".into(),
            sizing_policy: None,
            placement_policy: None,
            cpus: 4,
            cores_per_socket: 2,
            memory_mb: 8192,
            disk_gb: 0,
            vapp_prefix: "ci".into(),
            label: "ci".into(),
            metadata: Vec::new(),
            guest_properties: Vec::new(),
            user_data: None,
            lease: None,
            session_refresh: std::time::Duration::from_secs(3600),
            poll_interval: std::time::Duration::from_secs(10),
            standby: false,
            guest_source: String::new(),
        }
    }

    /// The document of a template's VM, with two adapters and two disks.
    const TEMPLATE: &str = r#"<Vm xmlns:x="v"><VirtualHardwareSection>
        <Item><InstanceID>3</InstanceID><Address>0</Address><ResourceType>6</ResourceType></Item>
        <Item><InstanceID>5</InstanceID><ResourceType>3</ResourceType></Item>
        <Item><InstanceID>6</InstanceID><ResourceType>4</ResourceType></Item>
        <Item><AddressOnParent>1</AddressOnParent><HostResource x:capacity="10240"/><InstanceID>2001</InstanceID>
          <Parent>3</Parent><ResourceType>17</ResourceType></Item>
        <Item><AddressOnParent>2</AddressOnParent><HostResource x:capacity="10240"/><InstanceID>2002</InstanceID>
          <Parent>3</Parent><ResourceType>17</ResourceType></Item></VirtualHardwareSection>
        <NetworkConnectionSection><PrimaryNetworkConnectionIndex>1</PrimaryNetworkConnectionIndex>
          <NetworkConnection network="none"><NetworkConnectionIndex>0</NetworkConnectionIndex></NetworkConnection>
          <NetworkConnection network="VM &amp; Net"><NetworkConnectionIndex>1</NetworkConnectionIndex>
            <NetworkAdapterType>E1000E</NetworkAdapterType></NetworkConnection></NetworkConnectionSection></Vm>"#;

    fn names() -> Names {
        Names {
            vdc: "https://h/api/vdc/1".into(),
            network: "https://h/api/network/2".into(),
            network_name: "n".into(),
            storage_profile: "https://h/api/vdcStorageProfile/3".into(),
            template: Template {
                href: "https://h/api/vAppTemplate/vappTemplate-4".into(),
                vm: "https://h/api/vAppTemplate/vm-5".into(),
                vm_name: "tpl & vm".into(),
                hardware: Hardware::read(xml::read(TEMPLATE).unwrap().root_element(), ""),
                ..Template::default()
            },
            ..Names::default()
        }
    }

    fn guest() -> Guest {
        let script = Some(Secret::new("#!/bin/sh\necho \"<&>\"\r\n"));
        Guest { computer_name: "ci-1".into(), script, password: Some(Secret::new("p<w")) }
    }

    /// Names of all elements with text or the href they carry, in their order.
    fn outline(text: &str) -> Vec<String> {
        let document = xml::read(text).unwrap();
        let elements = document.root_element().descendants().filter(|n| n.is_element());
        elements
            .map(|n| match n.text().or(xml::attribute(n, "href")) {
                Some(text) => format!("{}={text}", xml::local(n)),
                None => xml::local(n).to_owned(),
            })
            .collect()
    }

    #[test]
    fn the_request_carries_everything_in_the_schemas_order() {
        let settings = Settings { disk_gb: 80, ..example() };
        let text = document(&settings, &names(), "ci-1", "fleet \"a\"", true, false, &guest()).unwrap();
        assert_eq!(
            outline(&text).join("\n"),
            "InstantiateVAppTemplateParams\nDescription=fleet \"a\"\nInstantiationParams\nNetworkConfigSection\n\
             Info=The vApp's network\nNetworkConfig\nConfiguration\nParentNetwork=https://h/api/network/2\nFenceMode=bridged\n\
             Source=https://h/api/vAppTemplate/vappTemplate-4\nSourcedItem\nSource=https://h/api/vAppTemplate/vm-5\n\
             VmGeneralParams\nName=ci-1\nDescription=fleet \"a\"\nNeedsCustomization=true\nRegenerateBiosUuid=true\n\
             InstantiationParams\nNetworkConnectionSection\nInfo=The VM's network\nPrimaryNetworkConnectionIndex=0\n\
             NetworkConnection\nNetworkConnectionIndex=0\nIsConnected=true\nIpAddressAllocationMode=POOL\n\
             NetworkAdapterType=E1000E\nVirtualHardwareSection\nInfo=The VM's hardware\n\
             Item\nAllocationUnits=hertz * 10^6\nDescription=Number of Virtual CPUs\nElementName=4 virtual CPU(s)\nInstanceID=5\n\
             ResourceType=3\nVirtualQuantity=4\nCoresPerSocket=2\n\
             Item\nAllocationUnits=byte * 2^20\nDescription=Memory Size\nElementName=8192 MB of memory\nInstanceID=6\n\
             ResourceType=4\nVirtualQuantity=8192\n\
             Item\nAddressOnParent=1\nDescription=Hard disk\nElementName=Hard disk 1\nHostResource\nInstanceID=2001\nParent\nResourceType=17\n\
             VirtualQuantity=85899345920\nVirtualQuantityUnits=byte\n\
             GuestCustomizationSection\nInfo=The guest\nEnabled=true\nAdminPasswordEnabled=true\nAdminPasswordAuto=false\n\
             AdminPassword=p<w\nResetPasswordRequired=false\nCustomizationScript=#!/bin/sh\necho \"<&>\"\r\n\nComputerName=ci-1\n\
             NetworkAssignment\nStorageProfile=https://h/api/vdcStorageProfile/3\nAllEULAsAccepted=true"
        );
        for part in [
            "deploy=\"true\" powerOn=\"true\"",
            "vcloud:capacity=\"81920\"",
            "<NetworkAssignment innerNetwork=\"VM &amp; Net\" containerNetwork=\"n\"/>",
            "<rasd:Parent xsi:nil=\"true\"/>",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_template_that_shows_nothing_gets_what_most_have() {
        let names = Names { template: Template::default(), ..names() };
        let text = document(&example(), &names, "ci-1", "d", true, false, &guest()).unwrap();
        for part in ["<rasd:InstanceID>4</rasd:InstanceID><rasd:ResourceType>3<", ">5</rasd:InstanceID>", ">VMXNET3<"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("NetworkAssignment"), "{text}");
    }

    #[test]
    fn settings_that_are_not_set_are_left_out() {
        let settings = Settings { ip_mode: IpMode::Dhcp, ..example() };
        let guest = Guest { computer_name: "ci-1".into(), script: None, password: None };
        let text = document(&settings, &names(), "ci-1", "d", true, false, &guest).unwrap();
        for absent in ["Hard disk", "<AdminPassword>", "CustomizationScript", "POOL"] {
            assert!(!text.contains(absent), "{absent} in {text}");
        }
        assert!(
            text.contains("<AdminPasswordEnabled>false</AdminPasswordEnabled>") && text.contains(">DHCP<"),
            "{text}"
        );
    }

    #[test]
    fn a_password_that_xml_cannot_carry_is_refused_without_being_shown() {
        let guest = Guest { password: Some(Secret::new("pw\u{1}")), ..guest() };
        assert_eq!(document(&example(), &names(), "ci-1", "d", true, false, &guest), Err("AdminPassword"));
    }

    #[test]
    fn the_off_one_leaves_hardware_and_power_to_others() {
        let settings = Settings {
            disk_gb: 80,
            lease: Some(Lease { runtime: Duration::from_secs(7200), storage: Some(Duration::from_secs(9000)) }),
            guest_properties: vec![("my-key".into(), Secret::new("a\"b"))],
            user_data: Some(Secret::new("#cloud-config")),
            ..example()
        };
        let names = Names {
            placement_policy: Some(policy("https://h/cloudapi/p")),
            sizing_policy: Some(policy("https://h/cloudapi/s")),
            ..names()
        };
        let text = document(&settings, &names, "ci-1", "d", false, true, &guest()).unwrap();
        let expected = [
            "ComposeVAppParams",
            "deploy=\"false\" powerOn=\"false\"",
            "<LeaseSettingsSection><ovf:Info>The vApp's lease</ovf:Info><DeploymentLeaseInSeconds>7200</",
            "<StorageLeaseInSeconds>9000</",
            "ovf:key=\"my-key\" ovf:type=\"string\" ovf:userConfigurable=\"true\" ovf:value=\"a&quot;b\"/>",
            "ovf:key=\"user-data\" ovf:type=\"string\" ovf:userConfigurable=\"true\" ovf:value=\"I2Nsb3VkLWNvbmZpZw==\"/>",
            "<ComputePolicy><VmPlacementPolicy href=\"https://h/cloudapi/p\"/><VmSizingPolicy href=\"https://h/cloudapi/s\"/>",
            "AdminPassword>p&lt;w<",
        ];
        for part in expected {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(
            !text.contains("VirtualHardwareSection")
                && !text.contains("<Source href=\"https://h/api/vAppTemplate/vapp")
        );
        let bare = Settings { cpus: 0, cores_per_socket: 0, memory_mb: 0, ..example() };
        let text = document(&bare, &names, "ci-1", "d", true, false, &guest()).unwrap();
        assert!(!text.contains("VirtualHardwareSection"), "{text}");
    }
}
