//! Looking at vApps and VMs: the poll of a whole group, the search for a name, the look at one vApp. Nothing is changed.

use super::change::{LABEL_KEY, disk_mb, first_disk};
use super::errors::{self, Stage};
use super::names::{Names, has_tpm};
use super::query::{self, has_prefix, unix_ms};
use super::tasks::is_over;
use super::{Call, Client, Settings, last_part, xml};
use crate::cloud::{ErrorKind, Href, Made, Poll, Power, Vapp, VcdError, Vm};
use roxmltree::Node;
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use ureq::http::Method;

/// What is used of a vApp's record: where metadata is asked for, all else must be, too.
const VAPP_FIELDS: &str = "name,status,isBusy,numberOfVMs,creationDate";

/// The `operationName` of the task that deletes a vApp.
const DELETE_VAPP: &str = "vdcDeleteVapp";

/// A search for one name looks at no more vApps than this.
pub const MAX_FOUND: usize = 4;

impl Client {
    /// All VMs whose vApp carries the prefix, and, with `vapps`, all such vApps.
    pub(super) fn poll(&self, call: &Call, vapps: bool) -> Result<Poll, VcdError> {
        let prefix = &self.settings.vapp_prefix;
        let vdc = self.names().vdc.clone();
        let (wanted, place) = (format!("{}-*", query::value(prefix)), query::value(&vdc));
        let mut poll = Poll::default();
        let mut seen = HashSet::new();
        let filter = format!("isVAppTemplate==false;vdc=={place};containerName=={wanted}");
        poll.now = self.records(call, "vm", &filter, |record| {
            let name = xml::attribute(record, "containerName").unwrap_or_default();
            let is = |name| xml::attribute(record, name) == Some("true");
            if !has_prefix(name, prefix) || is("isVAppTemplate") || is("isDeleted") {
                return Ok(());
            }
            let vm = self.vm(call, record, name)?;
            // Between two pages a record may move to the next page.
            if seen.insert(vm.vm.clone()) {
                poll.vms.push(vm);
            }
            Ok(())
        })?;
        if vapps {
            let filter = format!("name=={wanted};vdc=={place}");
            poll.vapps = Some(self.vapps_with_labels(call, &filter, |name| has_prefix(name, prefix))?);
        }
        Ok(poll)
    }

    /// vApp records with their labels: one query, or one more where the first does not show metadata.
    fn vapps_with_labels(
        &self,
        call: &Call,
        filter: &str,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<Vapp>, VcdError> {
        let mut all = None;
        if !self.no_metadata_field.load(Ordering::Relaxed) {
            match self.vapp_records(call, filter, Some(VAPP_FIELDS), &wanted) {
                Ok((vapps, has_metadata)) if has_metadata || vapps.is_empty() => return Ok(vapps),
                Ok((vapps, _)) => all = Some(vapps),
                Err(e) if is_refusal(&e) => {
                    log::debug!("{}: metadata in records is refused, it is asked for apart: {}", call.what, e.status);
                    // A 500 may pass.
                    self.no_metadata_field.fetch_or(e.status < 500, Ordering::Relaxed);
                }
                Err(e) => return Err(e),
            }
        }
        let mut all = match all {
            Some(all) => all,
            None => self.vapp_records(call, filter, None, wanted)?.0,
        };
        let labelled = self.labelled(call, filter)?;
        for vapp in &mut all {
            vapp.labelled = labelled.contains(&vapp.href);
        }
        Ok(all)
    }

    /// The vApps of exactly this name, each looked at. The query service may lag: what it does not show is looked for in
    /// the VDC's own document too.
    pub(super) fn find(&self, call: &Call, name: &str) -> Result<Vec<Vapp>, VcdError> {
        let vdc = self.names().vdc.clone();
        let filter = format!("name=={};vdc=={}", query::value(name), query::value(&vdc));
        let (records, _) = self.vapp_records(call, &filter, None, |n| n == name)?;
        let mut found: Vec<Href> = records.into_iter().map(|vapp| vapp.href).collect();
        if found.is_empty() {
            found = self.entities_named(call, &vdc, name)?;
        }
        if found.len() > MAX_FOUND {
            log::warn!("{}: {} vApps have this name, {MAX_FOUND} are looked at", call.what, found.len());
        }
        let mut all = Vec::new();
        for vapp in found.iter().take(MAX_FOUND) {
            all.extend(self.look(call, vapp)?);
        }
        Ok(all)
    }

    /// The vApps of this name among the VDC's `ResourceEntities`.
    fn entities_named(&self, call: &Call, vdc: &str, name: &str) -> Result<Vec<Href>, VcdError> {
        let got = self.send(call, Method::GET, vdc, None)?;
        let unusable = |why: String| errors::unusable(&call.what, Stage::Read, got.status, why);
        let document = xml::read(&got.body).map_err(unusable)?;
        let root = document.root_element();
        if xml::local(root) != "Vdc" {
            return Err(unusable(format!("not a VDC but {}", xml::local(root))));
        }
        let entities = xml::child(root, "ResourceEntities");
        entities
            .iter()
            .flat_map(|all| xml::children(*all, "ResourceEntity"))
            .filter(|entity| xml::attribute(*entity, "name") == Some(name))
            .filter(|entity| xml::attribute(*entity, "type").is_some_and(|kind| kind.ends_with("vcloud.vApp+xml")))
            .map(|entity| self.link(call, xml::attribute(entity, "href")))
            .collect()
    }

    /// One vApp's own document; `None` if VCD does not know it.
    pub(super) fn look(&self, call: &Call, vapp: &Href) -> Result<Option<Vapp>, VcdError> {
        let got = match self.send(call, Method::GET, vapp, None) {
            Err(e) if e.kind == ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let unusable = |why: String| errors::unusable(&call.what, Stage::Read, got.status, why);
        let document = xml::read(&got.body).map_err(unusable)?;
        let root = document.root_element();
        if xml::local(root) != "VApp" {
            return Err(unusable(format!("not a vApp but {}", xml::local(root))));
        }
        // Where a redirect has led elsewhere.
        if xml::attribute(root, "href").is_some_and(|href| last_part(href) != last_part(vapp)) {
            return Err(unusable("this is the document of another vApp".into()));
        }
        let children = xml::child(root, "Children");
        // A task may hold one of the VMs only.
        let held = [root].into_iter().chain(children.into_iter().flat_map(|all| xml::children(all, "Vm")));
        let (mut tasks, mut deleting) = (Vec::new(), false);
        for task in held.filter_map(|one| xml::child(one, "Tasks")).flat_map(|tasks| xml::children(tasks, "Task")) {
            if !is_over(xml::attribute(task, "status").unwrap_or_default()) {
                tasks.push(self.link(call, xml::attribute(task, "href"))?);
                deleting |= xml::attribute(task, "operationName") == Some(DELETE_VAPP);
            }
        }
        let name = xml::attribute(root, "name").ok_or_else(|| unusable("the vApp has no name".into()))?;
        let vms = children.map_or(0, |all| xml::children(all, "Vm").count());
        let made = children.and_then(|all| xml::child(all, "Vm")).map(|vm| self.made(call, vm)).transpose()?;
        Ok(Some(Vapp {
            href: vapp.clone(),
            name: name.into(),
            description: Some(xml::child(root, "Description").and_then(|d| d.text()).unwrap_or_default().to_owned()),
            power: query::power_of_number(xml::attribute(root, "status").unwrap_or_default()),
            busy: !tasks.is_empty(),
            tasks,
            deleting,
            vms: u32::try_from(vms).unwrap_or(u32::MAX),
            made,
            created: xml::text(root, "DateCreated").and_then(unix_ms),
            labelled: false,
        }))
    }

    fn made(&self, call: &Call, vm: Node) -> Result<Made, VcdError> {
        let names = self.names();
        Ok(Made {
            vm: self.link(call, xml::attribute(vm, "href"))?,
            differs: difference(&self.settings, &names, vm),
            lacks_tpm: names.needs_tpm && !has_tpm(vm),
            external: external(vm),
        })
    }

    fn vm(&self, call: &Call, record: Node, vapp_name: &str) -> Result<Vm, VcdError> {
        let attribute = |name| xml::attribute(record, name);
        let number = |name| attribute(name).and_then(|n| n.parse().ok()).unwrap_or(0);
        Ok(Vm {
            vapp: self.link(call, attribute("container"))?,
            vapp_name: vapp_name.into(),
            vm: self.link(call, attribute("href"))?,
            description: attribute("description").unwrap_or_default().to_owned(),
            power: attribute("status").map_or(Power::Other, query::power),
            busy: attribute("isBusy") == Some("true"),
            address: attribute("ipAddress").and_then(|a| a.parse().ok()),
            customization: query::customization(attribute("gcStatus")),
            guest_os: attribute("guestOs").unwrap_or_default().to_owned(),
            created: attribute("dateCreated").and_then(unix_ms),
            cpus: number("numberOfCpus"),
            memory_mb: number("memoryMB"),
            undeploy_at: attribute("autoUndeployDate").and_then(unix_ms),
            delete_at: attribute("autoDeleteDate").and_then(unix_ms),
        })
    }

    /// Without `fields` the records come with all attributes, but without metadata. True if any came with metadata.
    fn vapp_records(
        &self,
        call: &Call,
        filter: &str,
        fields: Option<&str>,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<(Vec<Vapp>, bool), VcdError> {
        let mut all: Vec<Vapp> = Vec::new();
        let mut has_metadata = false;
        let mut seen = HashSet::new();
        let more = fields.map(|fields| format!("&fields={fields},metadata:{LABEL_KEY}")).unwrap_or_default();
        self.records_with(call, "vApp", filter, &more, |record| {
            let attribute = |name| xml::attribute(record, name);
            let name = attribute("name").unwrap_or_default();
            if !wanted(name) {
                return Ok(());
            }
            let href = self.link(call, attribute("href"))?;
            has_metadata |= xml::child(record, "Metadata").is_some();
            if seen.insert(href.clone()) {
                all.push(Vapp {
                    href,
                    name: name.into(),
                    description: None,
                    power: attribute("status").map_or(Power::Other, query::power),
                    busy: attribute("isBusy") == Some("true"),
                    tasks: Vec::new(),
                    deleting: false,
                    vms: attribute("numberOfVMs").and_then(|n| n.parse().ok()).unwrap_or(0),
                    made: None,
                    created: attribute("creationDate").and_then(unix_ms),
                    labelled: has_label(&self.settings, record),
                });
            }
            Ok(())
        })?;
        Ok((all, has_metadata))
    }

    /// Which vApps carry the group's label. Who may not search by metadata gets none.
    fn labelled(&self, call: &Call, filter: &str) -> Result<HashSet<Href>, VcdError> {
        let filter = format!("{filter};metadata:{LABEL_KEY}==STRING:{}", query::value(&self.settings.label));
        let mut all = HashSet::new();
        let result = self.records(call, "vApp", &filter, |record| {
            all.insert(self.link(call, xml::attribute(record, "href"))?);
            Ok(())
        });
        match result {
            Ok(_) => Ok(all),
            Err(e) if is_refusal(&e) => {
                log::debug!("{}: the search by label is refused, labels are not seen: {}", call.what, e.status);
                Ok(HashSet::new())
            }
            Err(e) => Err(e),
        }
    }
}

/// Whether the metadata in a record holds the group's label.
fn has_label(settings: &Settings, record: Node) -> bool {
    let entries = xml::child(record, "Metadata");
    entries.iter().flat_map(|all| xml::children(*all, "MetadataEntry")).any(|entry| {
        let value = xml::child(entry, "TypedValue").and_then(|value| xml::text(value, "Value"));
        xml::text(entry, "Key") == Some(LABEL_KEY) && value == Some(settings.label.trim())
    })
}

/// The primary NIC's `ExternalIpAddress`: VCD shows it in a VM's document, not in its record.
fn external(vm: Node) -> Option<IpAddr> {
    let section = xml::child(vm, "NetworkConnectionSection")?;
    let primary = xml::text(section, "PrimaryNetworkConnectionIndex").unwrap_or("0");
    let mut nics = xml::children(section, "NetworkConnection");
    let nic = nics.find(|nic| xml::text(*nic, "NetworkConnectionIndex") == Some(primary))?;
    xml::text(nic, "ExternalIpAddress")?.parse().ok()
}

/// How a VM's hardware differs from the wish. What its document does not tell counts as right.
fn difference(settings: &Settings, names: &Names, vm: Node) -> Option<String> {
    let spec = xml::child(vm, "VmSpecSection");
    let number = |node: Option<Node>, name| node.and_then(|n| xml::text(n, name)).and_then(|n| n.parse::<u64>().ok());
    let memory = number(spec.and_then(|s| xml::child(s, "MemoryResourceMb")), "Configured");
    let wish = names.wish(settings);
    let parts = [
        ("CPUs", number(spec, "NumCpus"), u64::from(wish.cpus)),
        ("cores per socket", number(spec, "NumCoresPerSocket"), u64::from(wish.cores_per_socket)),
        ("MB of memory", memory, u64::from(wish.memory_mb)),
        ("MB of disk", first_disk(names, vm).map(|(_, mb)| mb), disk_mb(settings)),
    ];
    let wrong = parts.into_iter().filter_map(|(what, has, wish)| {
        has.filter(|has| wish > 0 && *has != wish).map(|has| format!("{has} {what} instead of {wish}"))
    });
    let wrong: Vec<String> = wrong.collect();
    (!wrong.is_empty()).then(|| wrong.join(", "))
}

/// VCD's own refusal of a query that it answers elsewhere, or its failure at it (500); not a lost connection.
pub(super) fn is_refusal(e: &VcdError) -> bool {
    let refused = matches!(e.kind, ErrorKind::Invalid | ErrorKind::Forbidden | ErrorKind::NotFound | ErrorKind::State);
    (refused && e.status != 0) || e.status == 500
}
