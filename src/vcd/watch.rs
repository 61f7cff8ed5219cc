//! Reads of vApps and VMs: the poll of a whole group, the search for a name, the lookup of one vApp. They change
//! nothing.

use super::change::LABEL_KEY;
use super::errors::{self, Stage};
use super::http::{Digest, Received};
use super::query::{self, has_prefix, unix_ms};
use super::tasks::is_over;
use super::{Call, Client, Settings, hardware, last_part, names, properties, record, xml};
use crate::cloud::{
    Customization, ErrorKind, Href, MAX_NAMES_ASKED, Made, Mark, Poll, Power, STANDBY_KEY, SUSPEND_KEY, SeenGuest,
    Vapp, VcdError, Vm,
};
use roxmltree::Node;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use ureq::http::Method;

/// The attributes of a vApp's record that are used. A query for metadata has to list them.
const VAPP_FIELDS: &str = "name,status,isBusy,creationDate";

/// The `operationName` of the task that deletes a vApp.
const DELETE_VAPP: &str = "vdcDeleteVapp";
/// That of tasks that suspend a vApp.
const SUSPEND_VAPP: &str = "vappSuspend";

/// Maximum number of vApps that a search for one name looks up.
pub const MAX_FOUND: usize = 4;

/// A page of VM records in the last poll. Most pages are the same in the next poll, which need not read them again.
pub(super) struct Page {
    number: usize,
    /// None if it cannot be compared.
    digest: Option<Digest>,
    vms: Vec<Vm>,
    /// VMs whose records do not show whether they are busy, as for System users. The records of their vApps do.
    busy_unknown: Vec<Href>,
    /// More pages follow.
    more: bool,
}

impl Client {
    /// All VMs whose vApp has the prefix, and, with `vapps`, all such vApps.
    pub(super) fn poll(&self, call: &Call, vapps: bool) -> Result<Poll, VcdError> {
        let wanted = format!("{}-*", query::value(&self.settings.vapp_prefix));
        if vapps && self.settings.standby {
            // Without a create, nothing else notices a newer template.
            let _ = self.names_for_create(call);
        }
        let last = || self.last_pages.lock().unwrap_or_else(PoisonError::into_inner);
        // Another poll that runs at the same time finds none.
        let mut pages = std::mem::take(&mut *last());
        let poll = self.poll_where(call, vapps, &mut pages, &|attribute| format!("{attribute}=={wanted}"));
        *last() = pages;
        Ok(Poll { source: self.known().source, ..poll? })
    }

    /// The VMs in the vApps with these names. All VMs, if VCD does not accept several names in a filter.
    pub(super) fn poll_some(&self, call: &Call, names: &[Arc<str>]) -> Result<Poll, VcdError> {
        if names.len() > MAX_NAMES_ASKED {
            let why = format!("{} vApps, but at most {MAX_NAMES_ASKED} are allowed in one request", names.len());
            return Err(VcdError::own(ErrorKind::Invalid, call.what.clone(), why));
        }
        if !names.is_empty() && !self.is_off(&self.no_names_filter) {
            match self.poll_where(call, false, &mut Vec::new(), &|attribute| query::any_of(attribute, names)) {
                Err(e) => self.turn_off(call, &self.no_names_filter, e)?,
                poll => return poll,
            }
        }
        self.poll(call, false)
    }

    /// Those that `filter` selects. It gets the name of the attribute with the vApp's name. `pages`: those of the last
    /// such poll, and then those of this one.
    fn poll_where(
        &self,
        call: &Call,
        vapps: bool,
        pages: &mut Vec<Page>,
        filter: &dyn Fn(&str) -> String,
    ) -> Result<Poll, VcdError> {
        let prefix = &self.settings.vapp_prefix;
        let vdc = self.names().vdc.clone();
        let place = query::value(&vdc);
        let (mut poll, mut seen, mut unknown) = (Poll::default(), HashSet::new(), HashSet::new());
        let vms = format!("isVAppTemplate==false;vdc=={place};{}", filter("containerName"));
        let mut read: Vec<Page> = Vec::new();
        let known = pages.iter().filter(|_| !record::is_on());
        let known: Vec<_> = known.filter_map(|page| Some((page.number, page.digest?))).collect();
        poll.now = self.pages(call, "vm", &vms, "", &known, &mut |got, number| {
            let same = |page: &Page| page.number == number && page.digest.is_some() && page.digest == got.digest;
            let page = match pages.iter().position(same) {
                Some(at) => pages.swap_remove(at),
                None => self.vms(call, got, number)?,
            };
            unknown.extend(page.busy_unknown.iter().cloned());
            // Between two pages a record may move to the next page.
            poll.vms.extend(page.vms.iter().filter(|vm| seen.insert(vm.vm.clone())).cloned());
            let more = page.more;
            read.push(page);
            Ok(more)
        })?;
        *pages = read;
        if vapps || !unknown.is_empty() {
            let filter = format!("{};vdc=={place}", filter("name"));
            let mut all = self.vapps_with_labels(call, &filter, &|name| has_prefix(name, prefix))?;
            let mut records: HashMap<Href, &mut Vapp> = all.iter_mut().map(|vapp| (vapp.href.clone(), vapp)).collect();
            for vm in &mut poll.vms {
                let Some(vapp) = records.get_mut(&vm.vapp) else { continue };
                vapp.vms.push(vm.vm.clone());
                vm.busy |= unknown.contains(&vm.vm) && vapp.busy;
            }
            if vapps {
                self.add_unlisted(call, &vdc, &poll.vms, &mut all)?;
            }
            poll.vapps = vapps.then_some(all);
        }
        Ok(poll)
    }

    /// The VMs in one page of a poll.
    fn vms(&self, call: &Call, got: &Received, number: usize) -> Result<Page, VcdError> {
        let (mut vms, mut busy_unknown): (Vec<Vm>, _) = (Vec::new(), Vec::new());
        let more = query::read_page(call, got, number, &mut |record| {
            let name = xml::attribute(record, "containerName").unwrap_or_default();
            let is = |name| xml::attribute(record, name) == Some("true");
            if !has_prefix(name, &self.settings.vapp_prefix) || is("isVAppTemplate") || is("isDeleted") {
                return Ok(());
            }
            let mut vm = self.vm(call, record, name)?;
            if let Some(last) = vms.last() {
                share(&mut vm.guest_os, &last.guest_os);
                share(&mut vm.description, &last.description);
            }
            if self.settings.is_provider() && xml::attribute(record, "isBusy").is_none() {
                busy_unknown.push(vm.vm.clone());
            }
            vms.push(vm);
            Ok(())
        })?;
        Ok(Page { number, digest: got.digest, vms, busy_unknown, more })
    }

    /// Adds the vApps that only the VDC's own document lists, not the query service.
    fn add_unlisted(&self, call: &Call, vdc: &str, vms: &[Vm], all: &mut Vec<Vapp>) -> Result<(), VcdError> {
        let prefix = &self.settings.vapp_prefix;
        let entities = match self.entities(call, vdc, |name| has_prefix(name, prefix)) {
            Ok(entities) => entities,
            // Without the error text: texts must not leave the client before the secrets are taken out.
            Err(e) if is_refusal(&e) => {
                log::warn!(
                    "{}: the VDC's document cannot be read ({}); the plugin uses the records",
                    call.what,
                    e.status
                );
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        let links = vms.iter().map(|vm| &vm.vapp).chain(all.iter().map(|vapp| &vapp.href));
        let known: HashSet<Href> = links.cloned().collect();
        let unlisted: Vec<(String, Href)> = entities.into_iter().filter(|(_, href)| !known.contains(href)).collect();
        all.extend(unlisted.into_iter().map(|(name, href)| Vapp {
            href,
            name: name.into(),
            description: None,
            power: Power::Other,
            busy: false,
            tasks: Vec::new(),
            deleting: false,
            suspending: false,
            vms: Vec::new(),
            vm_descriptions: Vec::new(),
            made: None,
            created: None,
            labelled: false,
            mark: Mark::Running,
        }));
        Ok(())
    }

    /// vApp records with their metadata entries: one query, or two if the first shows no metadata.
    fn vapps_with_labels(
        &self,
        call: &Call,
        filter: &str,
        wanted: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<Vapp>, VcdError> {
        let mut all = None;
        if !self.is_off(&self.no_metadata_field) {
            match self.vapp_records(call, filter, Some(VAPP_FIELDS), wanted) {
                Ok((vapps, has_metadata)) if has_metadata || vapps.is_empty() => return Ok(vapps),
                Ok((vapps, _)) => all = Some(vapps),
                Err(e) => self.turn_off(call, &self.no_metadata_field, e)?,
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

    /// The vApps with exactly this name, each looked up. The query service may lag, so the VDC's own document is
    /// searched too.
    pub(super) fn find(&self, call: &Call, name: &str) -> Result<Vec<Vapp>, VcdError> {
        let vdc = self.names().vdc.clone();
        let filter = format!("name=={};vdc=={}", query::value(name), query::value(&vdc));
        let (records, _) = self.vapp_records(call, &filter, None, &|n| n == name)?;
        let mut found: Vec<Href> = records.into_iter().map(|vapp| vapp.href).collect();
        if found.is_empty() {
            let entities = match self.entities(call, &vdc, |n| n == name) {
                // Without the right to read it, only the query counts.
                Err(e) if is_denied(&e) => Vec::new(),
                other => other?,
            };
            found = entities.into_iter().map(|(_, href)| href).collect();
        }
        if found.len() > MAX_FOUND {
            log::warn!("{}: {} vApps have this name; the plugin looks up {MAX_FOUND}", call.what, found.len());
        }
        let mut all = Vec::new();
        for vapp in found.iter().take(MAX_FOUND) {
            all.extend(self.look(call, vapp, false)?);
        }
        Ok(all)
    }

    /// Name and link of the vApps among the VDC's `ResourceEntities` whose name `wanted` selects.
    fn entities(&self, call: &Call, vdc: &str, wanted: impl Fn(&str) -> bool) -> Result<Vec<(String, Href)>, VcdError> {
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
            .filter(|entity| xml::attribute(*entity, "type").is_some_and(|kind| kind.ends_with("vcloud.vApp+xml")))
            .filter_map(|entity| Some((entity, xml::attribute(entity, "name").filter(|name| wanted(name))?)))
            .map(|(entity, name)| Ok((name.to_owned(), self.link(call, xml::attribute(entity, "href"))?)))
            .collect()
    }

    /// The document of one vApp; `None` if VCD does not know it. `guest`: with the state of its guest, if it is powered
    /// on.
    pub(super) fn look(&self, call: &Call, vapp: &Href, guest: bool) -> Result<Option<Vapp>, VcdError> {
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
        // A redirect has led to another vApp.
        if xml::attribute(root, "href").is_some_and(|href| last_part(href) != last_part(vapp)) {
            return Err(unusable("this is the document of another vApp".into()));
        }
        let children = xml::child(root, "Children");
        // A task may block only one of the VMs.
        let held = [root].into_iter().chain(children.into_iter().flat_map(|all| xml::children(all, "Vm")));
        let (mut tasks, mut deleting, mut suspending) = (Vec::new(), false, false);
        for task in held.filter_map(|one| xml::child(one, "Tasks")).flat_map(|tasks| xml::children(tasks, "Task")) {
            if !is_over(xml::attribute(task, "status").unwrap_or_default()) {
                tasks.push(self.link(call, xml::attribute(task, "href"))?);
                let operation = xml::attribute(task, "operationName");
                deleting |= operation == Some(DELETE_VAPP);
                suspending |= operation == Some(SUSPEND_VAPP);
            }
        }
        let name = xml::attribute(root, "name").ok_or_else(|| unusable("the vApp has no name".into()))?;
        let vms: Vec<Node> = children.into_iter().flat_map(|all| xml::children(all, "Vm")).collect();
        // A person may have added another VM.
        let own = vms.iter().find(|vm| xml::attribute(**vm, "name") == Some(name)).or(vms.first());
        let mut made = own.map(|vm| self.made(call, *vm, name)).transpose()?;
        let description =
            |one: Node| xml::child(one, "Description").and_then(|d| d.text()).unwrap_or_default().to_owned();
        let vm_descriptions = vms.iter().map(|vm| description(*vm)).collect();
        let vms = vms.iter().map(|vm| self.link(call, xml::attribute(*vm, "href"))).collect::<Result<_, _>>()?;
        let power = query::power_of_number(xml::attribute(root, "status").unwrap_or_default());
        let mark = if suspending || power == Power::Suspended { self.read_mark(call, vapp)? } else { Mark::Running };
        if let (true, Power::On, Some(vm), Some(made)) = (guest, power, own, &mut made) {
            made.guest = Some(self.seen_guest(call, *vm, &made.vm)?);
        }
        Ok(Some(Vapp {
            href: vapp.clone(),
            name: name.into(),
            description: Some(description(root)),
            power,
            busy: !tasks.is_empty(),
            tasks,
            deleting,
            suspending,
            vms,
            vm_descriptions,
            made,
            created: xml::text(root, "DateCreated").and_then(unix_ms),
            labelled: false,
            mark,
        }))
    }

    /// The suspend mark on a vApp. A user without the right to read metadata sees none.
    fn read_mark(&self, call: &Call, vapp: &Href) -> Result<Mark, VcdError> {
        let got = match self.send(call, Method::GET, &format!("{vapp}/metadata"), None) {
            Err(e) if matches!(e.kind, ErrorKind::Forbidden | ErrorKind::NotFound) => return Ok(Mark::Running),
            other => other?,
        };
        let document =
            xml::read(&got.body).map_err(|why| errors::unusable(&call.what, Stage::Read, got.status, why))?;
        let value = |key| entry(document.root_element(), key);
        Ok(Mark::read(value(SUSPEND_KEY), value(STANDBY_KEY)))
    }

    fn seen_guest(&self, call: &Call, vm: Node, href: &Href) -> Result<SeenGuest, VcdError> {
        let customization = match self.send(call, Method::GET, &format!("{href}/guestcustomizationstatus"), None) {
            Err(e) if is_denied(&e) => Customization::Unknown,
            // The guest may be in the middle of it: its login port decides.
            Err(e) if is_refusal(&e) => Customization::Pending,
            got => {
                let got = got?;
                let unusable = |why: String| errors::unusable(&call.what, Stage::Read, got.status, why);
                let document = xml::read(&got.body).map_err(unusable)?;
                query::customization(xml::text(document.root_element(), "GuestCustStatus"))
            }
        };
        let primary = hardware::primary_adapter(vm);
        Ok(SeenGuest {
            address: primary.and_then(|adapter| xml::text(adapter, "IpAddress")?.parse().ok()),
            customization,
            guest_os: names::guest_os(vm).into(),
        })
    }

    fn made(&self, call: &Call, vm: Node, vapp_name: &str) -> Result<Made, VcdError> {
        let names = self.names();
        let href = self.link(call, xml::attribute(vm, "href"))?;
        let mut differs = hardware::difference(&self.settings, &names, vm);
        if let Some(sections) = self.product_sections(call, &href, vm)? {
            let missing = properties::missing(&self.settings, &sections);
            differs.extend(missing.into_iter().map(|key| format!("guest property {key:?} is missing or wrong")));
        }
        Ok(Made {
            vm: href,
            own: xml::attribute(vm, "name") == Some(vapp_name),
            differs: (!differs.is_empty()).then(|| differs.join(", ")),
            lacks_tpm: names.template.hardware.needs_tpm && !hardware::has_tpm(vm),
            external: external(vm),
            guest: None,
        })
    }

    fn vm(&self, call: &Call, record: Node, vapp_name: &str) -> Result<Vm, VcdError> {
        let attribute = |name| xml::attribute(record, name);
        let number = |name| attribute(name).and_then(|n| n.parse().ok()).unwrap_or(0);
        Ok(Vm {
            vapp: self.link(call, attribute("container"))?,
            vapp_name: vapp_name.into(),
            vm: self.link(call, attribute("href"))?,
            description: attribute("description").unwrap_or_default().into(),
            power: attribute("status").map_or(Power::Other, query::power),
            busy: attribute("isBusy") == Some("true"),
            address: attribute("ipAddress").and_then(|a| a.parse().ok()),
            customization: query::customization(attribute("gcStatus")),
            guest_os: attribute("guestOs").unwrap_or_default().into(),
            created: attribute("dateCreated").and_then(unix_ms),
            cpus: number("numberOfCpus"),
            memory_mb: number("memoryMB"),
            undeploy_at: attribute("autoUndeployDate").and_then(unix_ms),
            delete_at: attribute("autoDeleteDate").and_then(unix_ms),
        })
    }

    /// Without `fields` the records have all attributes, but no metadata. True if any has metadata.
    fn vapp_records(
        &self,
        call: &Call,
        filter: &str,
        fields: Option<&str>,
        wanted: &dyn Fn(&str) -> bool,
    ) -> Result<(Vec<Vapp>, bool), VcdError> {
        let mut all: Vec<Vapp> = Vec::new();
        let mut has_metadata = false;
        let mut seen = HashSet::new();
        let more = fields.map(|fields| format!("&fields={fields},metadata:{LABEL_KEY}")).unwrap_or_default();
        self.records_with(call, "vApp", filter, &more, &mut |record| {
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
                    suspending: false,
                    vms: Vec::new(),
                    vm_descriptions: Vec::new(),
                    made: None,
                    created: attribute("creationDate").and_then(unix_ms),
                    labelled: has_label(&self.settings, record),
                    mark: Mark::Running,
                });
            }
            Ok(())
        })?;
        Ok((all, has_metadata))
    }

    /// The vApps with the group's metadata entry. None for a user without the right to search by metadata. A search that
    /// fails with 500 is repeated once: without its entry, a vApp of the Go plugin would be foreign as long as it exists.
    fn labelled(&self, call: &Call, filter: &str) -> Result<HashSet<Href>, VcdError> {
        let filter = format!("{filter};metadata:{LABEL_KEY}==STRING:{}", query::value(&self.settings.label));
        let mut all = HashSet::new();
        let mut search = || {
            self.records(call, "vApp", &filter, &mut |record| {
                all.insert(self.link(call, xml::attribute(record, "href"))?);
                Ok(())
            })
        };
        let result = match search() {
            Err(e) if e.status == 500 => search(),
            other => other,
        };
        match result {
            Err(e) if !is_dispensable(call, &e) => Err(e),
            _ => Ok(all),
        }
    }
}

/// Keeps one copy of a text that many records have.
fn share(text: &mut Arc<str>, last: &Arc<str>) {
    if text == last {
        text.clone_from(last);
    }
}

/// Whether the metadata in a record contains the group's entry.
fn has_label(settings: &Settings, record: Node) -> bool {
    xml::child(record, "Metadata").and_then(|all| entry(all, LABEL_KEY)) == Some(settings.label.trim())
}

/// The value of a metadata entry.
fn entry<'a>(metadata: Node<'a, '_>, key: &str) -> Option<&'a str> {
    let entry = xml::children(metadata, "MetadataEntry").find(|entry| xml::text(*entry, "Key") == Some(key))?;
    xml::text(xml::child(entry, "TypedValue")?, "Value")
}

/// The primary NIC's `ExternalIpAddress`. VCD shows it in a VM's document, but not in its record.
fn external(vm: Node) -> Option<IpAddr> {
    xml::text(hardware::primary_adapter(vm)?, "ExternalIpAddress")?.parse().ok()
}

/// VCD rejects a query that it answers in another form, or fails with 500. Not a lost connection.
pub(super) fn is_refusal(e: &VcdError) -> bool {
    is_denied(e) || e.status == 500
}

/// The same without 500: it says for certain that this user cannot read it.
pub(super) fn is_denied(e: &VcdError) -> bool {
    let denied = matches!(e.kind, ErrorKind::Invalid | ErrorKind::Forbidden | ErrorKind::NotFound | ErrorKind::State);
    denied && e.status != 0
}

/// The same for a request that the plugin can do without: this is logged.
pub(super) fn is_dispensable(call: &Call, e: &VcdError) -> bool {
    let refused = is_refusal(e);
    if refused {
        // Without the error text: texts must not leave the client before the secrets are taken out.
        log::debug!("{}: VCD rejects a request that the plugin can do without: {}", call.what, e.status);
    }
    refused
}
