//! The small changing requests: configure, power on, suspend, delete, cancel, label. Each changes by one HTTP request and waits for
//! no task.

use super::errors::{self, Stage};
use super::names::Names;
use super::xml::{self, Writer};
use super::{Call, Client, NAMESPACE, Settings};
use crate::cloud::{ErrorKind, Reply, Started, VcdError};
use roxmltree::Node;
use ureq::http::Method;

/// The metadata key by which a group's vApps can be searched.
pub const LABEL_KEY: &str = "vcd-instance-group";

const OVF: &str = "http://schemas.dmtf.org/ovf/envelope/1";

impl Client {
    /// Gives a VM that is off what was wished for. What it has is read first: its disks are replaced as a whole.
    pub(super) fn configure(&self, call: &Call, vm: &str) -> Result<Reply, VcdError> {
        let reading = Call { changes: false, what: call.what.clone(), ..*call };
        let got = self.send(&reading, Method::GET, vm, None)?;
        let unusable = |why: String| errors::unusable(&call.what, Stage::Read, got.status, why);
        let document = xml::read(&got.body).map_err(unusable)?;
        let body = reconfigure(&self.settings, &self.names(), document.root_element()).map_err(|element| {
            errors::own(ErrorKind::Invalid, call.what.clone(), format!("{element} is not usable"))
        })?;
        let content = ("application/vnd.vmware.vcloud.vm+xml", body.as_str());
        self.begin(call, Method::POST, &format!("{vm}/action/reconfigureVm"), Some(content))
    }

    /// Only before the first boot, and only by a request of its own.
    pub(super) fn add_tpm(&self, call: &Call, vm: &str) -> Result<Reply, VcdError> {
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><TrustedPlatformModule xmlns=\"{NAMESPACE}\">\
             <TpmPresent>true</TpmPresent></TrustedPlatformModule>"
        );
        let content = ("application/vnd.vmware.vcloud.TpmSection+xml", body.as_str());
        self.begin(call, Method::POST, &format!("{vm}/action/editTrustedPlatformModule"), Some(content))
    }

    /// `action`: powerOn or suspend.
    pub(super) fn power(&self, call: &Call, vapp: &str, action: &str) -> Result<Reply, VcdError> {
        self.begin(call, Method::POST, &format!("{vapp}/power/action/{action}"), Some(("", "")))
    }

    /// Powers off and gives the resources back, so that a delete without force is taken.
    pub(super) fn undeploy(&self, call: &Call, vapp: &str) -> Result<Reply, VcdError> {
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><UndeployVAppParams xmlns=\"{NAMESPACE}\">\
             <UndeployPowerAction>powerOff</UndeployPowerAction></UndeployVAppParams>"
        );
        let content = ("application/vnd.vmware.vcloud.undeployVAppParams+xml", body.as_str());
        self.begin(call, Method::POST, &format!("{vapp}/action/undeploy"), Some(content))
    }

    /// With `force` it works on what runs, too. What is gone already is deleted.
    pub(super) fn delete(&self, call: &Call, vapp: &str, force: bool) -> Result<Reply, VcdError> {
        let url = if force { format!("{vapp}?force=true") } else { vapp.to_owned() };
        match self.begin(call, Method::DELETE, &url, None) {
            Err(e) if e.kind == ErrorKind::NotFound => Ok(Reply::Started(Started { vapp: None, task: None })),
            other => other,
        }
    }

    /// Sends what begins a task, or is done at once.
    fn begin(&self, call: &Call, method: Method, url: &str, content: Option<(&str, &str)>) -> Result<Reply, VcdError> {
        let got = self.send(call, method, url, content)?;
        if got.status == 204 {
            return Ok(Reply::Started(Started { vapp: None, task: None }));
        }
        let unusable = |why: String| errors::unusable(&call.what, Stage::Change, got.status, why);
        let document = xml::read(&got.body).map_err(unusable)?;
        let root = document.root_element();
        if xml::local(root) != "Task" {
            return Err(unusable(format!("not a task but {}", xml::local(root))));
        }
        let task = self.link(call, xml::attribute(root, "href"))?;
        Ok(Reply::Started(Started { vapp: None, task: Some(task) }))
    }

    /// Asks for the end of a task; what it has done so far stays.
    pub(super) fn cancel(&self, call: &Call, task: &str) -> Result<Reply, VcdError> {
        self.send(call, Method::POST, &format!("{task}/action/cancel"), Some(("", ""))).map(|_| Reply::Done)
    }

    /// Writes the group's label, and the user's own.
    pub(super) fn label(&self, call: &Call, vapp: &str) -> Result<Reply, VcdError> {
        let body = metadata(&self.settings).map_err(|_| {
            errors::own(
                ErrorKind::Invalid,
                call.what.clone(),
                "the label holds a control character that XML cannot carry",
            )
        })?;
        let content = ("application/vnd.vmware.vcloud.metadata+xml", body.as_str());
        self.send(call, Method::POST, &format!("{vapp}/metadata"), Some(content)).map(|_| Reply::Done)
    }
}

/// The order of the schema; or the element that is not usable.
fn reconfigure(settings: &Settings, names: &Names, vm: Node) -> Result<String, &'static str> {
    let mut w = Writer::new();
    let name = xml::attribute(vm, "name").ok_or("name")?;
    w.open("Vm", &[("xmlns", NAMESPACE), ("xmlns:ovf", OVF), ("name", name)]);
    // Left out, it might be taken for an empty one.
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
    disks(&mut w, settings, names, vm)?;
    w.finish()
}

/// All disks as they are, but for the first one's size. A section that changes nothing would be refused.
fn disks(w: &mut Writer, settings: &Settings, names: &Names, vm: Node) -> Result<(), &'static str> {
    let Some((first, _)) = first_disk(names, vm).filter(|(_, mb)| settings.disk_gb > 0 && *mb != disk_mb(settings))
    else {
        return Ok(());
    };
    w.open("DiskSection", &[]);
    for disk in all_disks(vm) {
        w.open("DiskSettings", &[]);
        for name in ["DiskId", "SizeMb", "UnitNumber", "BusNumber", "AdapterType"] {
            match xml::text(disk, name) {
                Some(_) if name == "SizeMb" && disk == first => w.leaf(name, &disk_mb(settings).to_string()),
                Some(text) => w.leaf(name, text),
                None => return Err(name),
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

/// The size that was wished for.
pub(super) fn disk_mb(settings: &Settings) -> u64 {
    u64::from(settings.disk_gb) * 1024
}

fn all_disks<'a, 'i>(vm: Node<'a, 'i>) -> impl Iterator<Item = Node<'a, 'i>> {
    let section = xml::child(vm, "VmSpecSection").and_then(|spec| xml::child(spec, "DiskSection"));
    section.into_iter().flat_map(|section| xml::children(section, "DiskSettings"))
}

/// The VM's disk that the template's first one has become, and its size in MB.
pub(super) fn first_disk<'a, 'i>(names: &Names, vm: Node<'a, 'i>) -> Option<(Node<'a, 'i>, u64)> {
    let id = names.disk.as_ref().map(|disk| disk.instance_id.as_str());
    let disk = all_disks(vm).find(|disk| xml::text(*disk, "DiskId") == id).or_else(|| all_disks(vm).next())?;
    Some((disk, xml::text(disk, "SizeMb")?.parse().ok()?))
}

fn metadata(settings: &Settings) -> Result<String, &'static str> {
    let mut w = Writer::new();
    let root = [("xmlns", NAMESPACE), ("xmlns:xsi", "http://www.w3.org/2001/XMLSchema-instance")];
    w.open("Metadata", &root);
    let own = settings.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    for (key, value) in own.chain([(LABEL_KEY, settings.label.as_str())]) {
        w.open("MetadataEntry", &[]);
        w.leaf_with("Domain", &[("visibility", "READWRITE")], "GENERAL");
        w.leaf("Key", key);
        w.open("TypedValue", &[("xsi:type", "MetadataStringValue")]);
        w.leaf("Value", value);
        w.close();
        w.close();
    }
    w.finish()
}
