//! The small changes: configure, power on, suspend, delete, cancel, metadata. Each is one HTTP request and waits for no
//! task.

use super::errors::{self, Stage};
use super::xml::{self, Writer};
use super::{Call, Client, NAMESPACE, XSI, hardware, properties};
use crate::cloud::{ErrorKind, Mark, Reply, Started, VcdError};
use ureq::http::Method;

/// The metadata key for searches of a group's vApps.
pub const LABEL_KEY: &str = "vcd-instance-group";

const METADATA_TYPE: &str = "application/vnd.vmware.vcloud.metadata+xml";

impl Client {
    /// Adds to a powered-off VM a part of the settings that it lacks: hardware and adapter, or the guest properties if
    /// only these are missing. It reads the VM first, because VCD replaces disks and properties as a whole.
    pub(super) fn configure(&self, call: &Call, vm: &str) -> Result<Reply, VcdError> {
        let reading = Call { changes: false, what: call.what.clone(), ..*call };
        let got = self.send(&reading, Method::GET, vm, None)?;
        let unusable = |why: String| errors::unusable(&call.what, Stage::Read, got.status, why);
        let document = xml::read(&got.body).map_err(unusable)?;
        let (root, names) = (document.root_element(), self.names());
        let invalid = |why: String| VcdError::own(ErrorKind::Invalid, call.what.clone(), why);
        if hardware::difference(&self.settings, &names, root).is_empty()
            && let Some(sections) = self.product_sections(call, vm, root)?
            && !properties::missing(&self.settings, &sections).is_empty()
        {
            let body = properties::body(&self.settings, sections).map_err(|element| {
                invalid(format!("{element} contains a control character that XML does not allow"))
            })?;
            let content = (properties::SECTIONS, body.as_str());
            return self.begin(call, Method::PUT, &format!("{vm}/productSections/"), Some(content));
        }
        let body = hardware::reconfigure(&self.settings, &names, root).map_err(invalid)?;
        let content = ("application/vnd.vmware.vcloud.vm+xml", body.as_str());
        self.begin(call, Method::POST, &format!("{vm}/action/reconfigureVm"), Some(content))
    }

    /// Possible only before the first boot, and only in a separate request.
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

    /// Powers off and releases the resources, so that VCD accepts a delete without force.
    pub(super) fn undeploy(&self, call: &Call, vapp: &str) -> Result<Reply, VcdError> {
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><UndeployVAppParams xmlns=\"{NAMESPACE}\">\
             <UndeployPowerAction>powerOff</UndeployPowerAction></UndeployVAppParams>"
        );
        let content = ("application/vnd.vmware.vcloud.undeployVAppParams+xml", body.as_str());
        self.begin(call, Method::POST, &format!("{vapp}/action/undeploy"), Some(content))
    }

    /// With `force` it also deletes a running vApp.
    pub(super) fn delete(&self, call: &Call, vapp: &str, force: bool) -> Result<Reply, VcdError> {
        let url = if force { format!("{vapp}?force=true") } else { vapp.to_owned() };
        self.begin(call, Method::DELETE, &url, None)
    }

    /// Sends a request that starts a task, or is done at once.
    fn begin(&self, call: &Call, method: Method, url: &str, content: Option<(&str, &str)>) -> Result<Reply, VcdError> {
        let got = self.send(call, method, url, content)?;
        if got.status == 204 {
            return Ok(Reply::Started(Started::default()));
        }
        let unusable = |why: String| errors::unusable(&call.what, Stage::Change, got.status, why);
        let document = xml::read(&got.body).map_err(unusable)?;
        let root = document.root_element();
        if xml::local(root) != "Task" {
            return Err(unusable(format!("not a task but {}", xml::local(root))));
        }
        let task = self.link(call, xml::attribute(root, "href"))?;
        Ok(Reply::Started(Started { task: Some(task), ..Started::default() }))
    }

    /// Requests the cancellation of a task. Its effects so far stay.
    pub(super) fn cancel(&self, call: &Call, task: &str) -> Result<Reply, VcdError> {
        self.send(call, Method::POST, &format!("{task}/action/cancel"), Some(("", ""))).map(|_| Reply::Done)
    }

    /// Writes the suspend mark.
    pub(super) fn mark(&self, call: &Call, vapp: &str, mark: &Mark) -> Result<Reply, VcdError> {
        let (key, value) = mark.entry();
        let body = metadata([(key, value.as_str())]).map_err(|element| {
            VcdError::own(ErrorKind::Invalid, call.what.clone(), format!("{element} is not usable"))
        })?;
        self.begin(call, Method::POST, &format!("{vapp}/metadata"), Some((METADATA_TYPE, body.as_str())))
    }

    /// Writes the group's metadata entry, and the user's own.
    pub(super) fn label(&self, call: &Call, vapp: &str) -> Result<Reply, VcdError> {
        let own = self.settings.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let body = metadata(own.chain([(LABEL_KEY, self.settings.label.as_str())])).map_err(|_| {
            VcdError::own(
                ErrorKind::Invalid,
                call.what.clone(),
                "the label contains a control character that XML does not allow",
            )
        })?;
        let content = (METADATA_TYPE, body.as_str());
        self.send(call, Method::POST, &format!("{vapp}/metadata"), Some(content)).map(|_| Reply::Done)
    }
}

fn metadata<'a>(entries: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<String, &'static str> {
    let mut w = Writer::new();
    let root = [("xmlns", NAMESPACE), ("xmlns:xsi", XSI)];
    w.open("Metadata", &root);
    for (key, value) in entries {
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
