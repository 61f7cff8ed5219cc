//! Names to links: what `Settings` names is looked up once, each kind by one query, and all that is wrong is told at once.

use super::errors::{self, Stage};
use super::query::{fits, unix_ms};
use super::watch::is_refusal;
use super::{Call, Client, Settings, last_part, query, xml};
use crate::cloud::{ErrorKind, Href, UnixMs, VcdError};
use roxmltree::Node;
use ureq::http::Method;

/// An error lists at most so many candidates for an ambiguous name.
const MAX_CANDIDATES: usize = 5;
/// Compute policies asked for in one page: names are unique in a VDC, as a rule.
const MAX_POLICIES: usize = 25;
/// MB in a GB, as disks are counted.
const MB_PER_GB: u64 = 1024;
/// Template states, in words, that nothing can be made from.
const UNUSABLE: [&str; 5] = ["FAILED_CREATION", "UNKNOWN", "UNRECOGNIZED", "UNRESOLVED", "LOCAL_COPY_UNAVAILABLE"];

/// The links behind the names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) vdc: Href,
    pub(super) network: Href,
    pub(super) storage_profile: Href,
    pub(super) template: Href,
    pub(super) template_vm: Href,
    pub(super) template_vm_name: String,
    /// The template's own name and its catalog's, where a pattern chose them.
    pub(super) template_name: String,
    pub(super) catalog_name: String,
    pub(super) guest_os: String,
    pub(super) disk: Option<Disk>,
    /// Its guest does not boot without a TPM, and the template has none.
    pub(super) needs_tpm: bool,
    /// It has a device that does not let it be suspended.
    pub(super) passthrough: bool,
    pub(super) sizing_policy: Option<Policy>,
    pub(super) placement_policy: Option<Policy>,
}

/// A compute policy. What it fixes wins over the numbers in a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) href: Href,
    pub(super) fixes_cpus: bool,
    pub(super) fixes_memory: bool,
    /// It gives VMs a part of a graphics card (`isVgpuPolicy`).
    pub(super) vgpu: bool,
}

/// The CPUs and memory that are asked for; 0 leaves them to the template or to a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) cpus: u32,
    pub(super) cores_per_socket: u32,
    pub(super) memory_mb: u32,
}

/// The template's first hard disk, as VCD wants to hear of it again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Disk {
    pub(super) instance_id: String,
    pub(super) address_on_parent: String,
    pub(super) bus_type: String,
    pub(super) bus_sub_type: String,
    pub(super) capacity_mb: u64,
}

/// What the searches want of a record.
#[derive(Debug)]
struct Found {
    href: Href,
    name: String,
    /// `container`, `ownerName` or `vdcName`: tells candidates apart.
    place: String,
    container: Option<String>,
    catalog: String,
    created: Option<UnixMs>,
    guest_os: String,
    enabled: bool,
    status: String,
}

/// The template, by its one VM.
pub(super) struct Template {
    href: Href,
    name: String,
    catalog: String,
    vm: Found,
    inside: Inside,
}

/// What only the template's VM's own document tells.
struct Inside {
    disk: Option<Disk>,
    needs_tpm: bool,
    passthrough: bool,
}

impl Found {
    /// For a list of candidates.
    fn shown(&self, href: &str) -> String {
        let catalog = if self.catalog.is_empty() { String::new() } else { format!(" in catalog {:?}", self.catalog) };
        let place = if self.place.is_empty() { String::new() } else { format!(" ({})", self.place) };
        format!("{href}{catalog}{place}")
    }
}

type Search<T> = Result<T, VcdError>;

/// Collects what is wrong with the names; anything else (no connection, no rights) ends the search.
struct Wrong(Vec<VcdError>);

impl Wrong {
    fn keep<T>(&mut self, result: Result<T, VcdError>) -> Result<Option<T>, Vec<VcdError>> {
        match result {
            Ok(found) => Ok(Some(found)),
            Err(e)
                if e.status == 0 && matches!(e.kind, ErrorKind::NotFound | ErrorKind::Invalid | ErrorKind::State) =>
            {
                self.0.push(e);
                Ok(None)
            }
            Err(e) => {
                self.0.push(e);
                Err(std::mem::take(&mut self.0))
            }
        }
    }
}

impl Client {
    /// Looks up everything.
    pub(super) fn resolve(&self, call: &Call) -> Result<Names, Vec<VcdError>> {
        let mut wrong = Wrong(Vec::new());
        let vdc = wrong.keep(self.find_vdc(call))?;
        let network = wrong.keep(self.find_network(call, vdc.as_ref()))?;
        let storage_profile = wrong.keep(self.find_storage_profile(call, vdc.as_ref()))?;
        let mut policies = [None, None];
        if let Some(vdc) = &vdc {
            let wanted = [(&self.settings.sizing_policy, true), (&self.settings.placement_policy, false)];
            for (found, (name, sizing)) in policies.iter_mut().zip(wanted) {
                if let Some(name) = name {
                    *found = wrong.keep(self.find_policy(call, vdc, name, sizing))?;
                }
            }
        }
        let template = wrong.keep(self.find_template(call))?;
        match (vdc, network, storage_profile, template) {
            (Some(vdc), Some(network), Some(storage_profile), Some(template)) if wrong.0.is_empty() => {
                let [sizing_policy, placement_policy] = policies;
                let names =
                    Names { vdc, network, storage_profile, sizing_policy, placement_policy, ..Names::default() };
                Ok(names.with(template))
            }
            _ => Err(wrong.0),
        }
    }

    /// Looks the template up anew; the rest stays.
    pub(super) fn resolve_template(&self, call: &Call, old: &Names) -> Result<Names, Vec<VcdError>> {
        self.find_template(call).map(|template| old.clone().with(template)).map_err(|e| vec![e])
    }

    pub(super) fn find_policy(&self, call: &Call, vdc: &Href, name: &str, sizing: bool) -> Search<Policy> {
        let kind = if sizing { "sizing policy" } else { "placement policy" };
        let root = &self.site.root;
        let (id, wanted) = (last_part(vdc), query::value(name));
        let url = format!(
            "{root}/cloudapi/2.0.0/vdcs/urn:vcloud:vdc:{id}/computePolicies?page=1&pageSize={MAX_POLICIES}\
             &filter=name=={wanted}"
        );
        let got = self.send_for("application/json", call, Method::GET, &url, None)?;
        let unusable = || errors::unusable(&call.what, Stage::Read, got.status, "not a list of compute policies");
        let json: serde_json::Value = serde_json::from_str(&got.body).map_err(|_| unusable())?;
        let values = json.get("values").and_then(|v| v.as_array()).ok_or_else(unusable)?;
        let text = |policy: &serde_json::Value, key: &str| policy.get(key).and_then(|v| v.as_str()).map(str::to_owned);
        let fixes = |policy: &serde_json::Value, key: &str| policy.get(key).is_some_and(|v| !v.is_null());
        let mut found: Vec<(String, Policy)> = values
            .iter()
            .filter(|policy| text(policy, "name").as_deref() == Some(name))
            // An older VCD may not say of which kind a policy is.
            .filter(|policy| policy.get("isSizingOnly").and_then(|v| v.as_bool()).is_none_or(|only| only == sizing))
            .filter_map(|policy| {
                let id = text(policy, "id")?;
                let href = format!("{root}/cloudapi/2.0.0/vdcComputePolicies/{id}").into();
                let (fixes_cpus, fixes_memory) = (fixes(policy, "cpuCount"), fixes(policy, "memory"));
                let vgpu = policy.get("isVgpuPolicy").and_then(|v| v.as_bool()) == Some(true);
                Some((id, Policy { href, fixes_cpus, fixes_memory, vgpu }))
            })
            .collect();
        match (found.pop(), found.is_empty()) {
            (None, _) => Err(unknown(kind, name, &self.in_vdc())),
            (Some((_, policy)), true) => Ok(policy),
            (Some(last), false) => {
                found.push(last);
                let ids: Vec<String> = found.into_iter().map(|(id, _)| id).collect();
                Err(ambiguous(kind, name, &self.in_vdc(), &ids))
            }
        }
    }

    pub(super) fn find_vdc(&self, call: &Call) -> Search<Href> {
        let name = &self.settings.vdc;
        let filter = format!("name=={}", query::value(name));
        let vdc = one("VDC", name, &self.org(), self.search(call, "orgVdc", &filter, named(name))?)?;
        if !vdc.enabled {
            return Err(errors::own(ErrorKind::State, format!("find VDC {name:?}"), "the VDC is disabled"));
        }
        Ok(vdc.href)
    }

    pub(super) fn find_network(&self, call: &Call, vdc: Option<&Href>) -> Search<Href> {
        let name = &self.settings.network;
        let by_name = format!("name=={}", query::value(name));
        let mut found = Vec::new();
        if let Some(vdc) = vdc {
            let filter = format!("{by_name};vdc=={}", query::value(vdc));
            found = self.search(call, "orgVdcNetwork", &filter, named(name))?;
        }
        if found.is_empty() {
            // The network of a VDC group belongs to another VDC of the group, or to none.
            found = self.search(call, "orgVdcNetwork", &by_name, named(name))?;
        }
        Ok(one("network", name, &self.in_vdc(), found)?.href)
    }

    pub(super) fn find_storage_profile(&self, call: &Call, vdc: Option<&Href>) -> Search<Href> {
        let name = &self.settings.storage_profile;
        let mut filter = format!("name=={}", query::value(name));
        if let Some(vdc) = vdc {
            filter = format!("{filter};vdc=={}", query::value(vdc));
        }
        let mut found = self.search(call, "orgVdcStorageProfile", &filter, named(name))?;
        if vdc.is_none() {
            // Which of them is meant cannot be told while the VDC is not known; that there is one is enough.
            found.truncate(1);
        }
        let profile = one("storage profile", name, &self.in_vdc(), found)?;
        if !profile.enabled {
            return Err(errors::own(
                ErrorKind::State,
                format!("find storage profile {name:?}"),
                "the storage profile is disabled",
            ));
        }
        Ok(profile.href)
    }

    /// The template's one VM. Of the templates that a pattern fits, the newest counts.
    pub(super) fn find_template(&self, call: &Call) -> Search<Template> {
        let (name, catalog) = (&self.settings.template, &self.settings.catalog);
        let place = format!("catalog {catalog:?} of {}", self.org());
        let what = || format!("find template {name:?}");
        let mut vms = Vec::new();
        if !self.has_pattern() {
            let both = format!(
                "containerName=={};catalogName=={};isVAppTemplate==true",
                query::value(name),
                query::value(catalog)
            );
            vms = match self.search(call, "vm", &both, |record| record("containerName").as_deref() == Some(name)) {
                // VM records may not know their catalog here.
                Err(e) if e.kind == ErrorKind::Invalid => Vec::new(),
                other => other?,
            };
        }
        let (mut template_name, mut catalog_name) = (name.clone(), catalog.clone());
        if vms.is_empty() {
            let template = self.find_template_record(call, &place)?;
            let filter = format!("container=={};isVAppTemplate==true", query::value(&template.href));
            vms =
                self.search(call, "vm", &filter, |record| record("containerName").as_deref() == Some(&template.name))?;
            if vms.is_empty() {
                // Another org's VMs may not be told of, though its catalog is shared.
                vms = self.template_children(call, &template)?;
            }
            (template_name, catalog_name) = (template.name, template.catalog);
        }
        let mut containers: Vec<(&str, String)> =
            vms.iter().filter_map(|vm| vm.container.as_deref().map(|href| (href, vm.shown(href)))).collect();
        containers.sort_unstable();
        containers.dedup_by_key(|(href, _)| *href);
        if containers.len() > 1 {
            let candidates: Vec<String> = containers.into_iter().map(|(_, shown)| shown).collect();
            return Err(ambiguous("template", name, &place, &candidates));
        }
        let many = vms.len();
        let Some(vm) = vms.pop().filter(|_| many == 1) else {
            return Err(errors::own(
                ErrorKind::Invalid,
                what(),
                format!("the template holds {many} VMs, but it must hold exactly one"),
            ));
        };
        if UNUSABLE.contains(&vm.status.as_str()) {
            return Err(errors::own(ErrorKind::State, what(), format!("the template's VM is in state {}", vm.status)));
        }
        let inside = self.read_template_vm(call, &vm)?;
        let href = self.link(call, vm.container.as_deref())?;
        Ok(Template { href, name: template_name, catalog: catalog_name, vm, inside })
    }

    fn find_template_record(&self, call: &Call, place: &str) -> Search<Found> {
        let (name, catalog) = (&self.settings.template, &self.settings.catalog);
        let filter = format!("name=={};catalogName=={}", query::value(name), query::value(catalog));
        let mut found = self.search(call, "vAppTemplate", &filter, |record| {
            record("name").is_some_and(|n| fits(name, &n))
                && record("catalogName").is_none_or(|c| fits(catalog, &c))
                && record("isExpired").as_deref() != Some("true")
        })?;
        if self.has_pattern() {
            found.retain(|template| !UNUSABLE.contains(&template.status.as_str()));
            found.sort_by(|a, b| (a.created, &a.name, &a.href).cmp(&(b.created, &b.name, &b.href)));
            if let Some(newest) = found.pop() {
                return Ok(newest);
            }
        }
        if found.is_empty() && !self.has_pattern() {
            found = self.find_catalog_items(call)?;
        }
        if found.is_empty() {
            // Nothing at all in a catalog of this name: it is the catalog that is not there.
            let mut any = false;
            let filter = format!("catalogName=={}", query::value(catalog));
            self.page(call, "vAppTemplate", &filter, "sortAsc=name", 1, |_| {
                any = true;
                Ok(())
            })?;
            if !any {
                return Err(unknown("catalog with templates", catalog, &self.org()));
            }
        }
        one("template", name, place, found)
    }

    /// The templates behind catalog items of the name: a template may be called otherwise than its item.
    fn find_catalog_items(&self, call: &Call) -> Search<Vec<Found>> {
        let (name, catalog) = (&self.settings.template, &self.settings.catalog);
        let filter = format!("name=={};catalogName=={}", query::value(name), query::value(catalog));
        let mut found = Vec::new();
        let result = self.records(call, "catalogItem", &filter, |record| {
            let attribute = |name| xml::attribute(record, name);
            let of_name = attribute("name") == Some(name) && attribute("catalogName").is_none_or(|c| c == catalog);
            if of_name && attribute("entityType").is_none_or(|kind| kind.eq_ignore_ascii_case("vAppTemplate")) {
                found.push(Found {
                    href: self.link(call, attribute("entity"))?.replacen("/api/admin/", "/api/", 1).into(),
                    name: attribute("entityName").unwrap_or(name).to_owned(),
                    place: attribute("vdcName").unwrap_or_default().to_owned(),
                    container: None,
                    catalog: catalog.clone(),
                    created: None,
                    guest_os: String::new(),
                    enabled: true,
                    status: String::new(),
                });
            }
            Ok(())
        });
        match result {
            Err(e) if !is_refusal(&e) => Err(e),
            _ => Ok(found),
        }
    }

    /// The VMs in a template's own document.
    fn template_children(&self, call: &Call, template: &Found) -> Search<Vec<Found>> {
        let got = self.send(call, Method::GET, &template.href, None)?;
        let document =
            xml::read(&got.body).map_err(|why| errors::unusable(&call.what, Stage::Read, got.status, why))?;
        let children = xml::child(document.root_element(), "Children");
        let vms = children.iter().flat_map(|all| xml::children(*all, "Vm"));
        vms.map(|vm| {
            let system = xml::child(vm, "OperatingSystemSection");
            Ok(Found {
                href: self.link(call, xml::attribute(vm, "href"))?,
                name: xml::attribute(vm, "name").unwrap_or_default().to_owned(),
                place: template.place.clone(),
                container: Some(template.href.to_string()),
                catalog: template.catalog.clone(),
                created: None,
                guest_os: system.and_then(|s| xml::text(s, "Description")).unwrap_or_default().to_owned(),
                enabled: true,
                status: String::new(),
            })
        })
        .collect()
    }

    /// The template VM's first hard disk, which must be able to become as large as asked; and whether its guest needs a
    /// TPM that it does not have.
    fn read_template_vm(&self, call: &Call, vm: &Found) -> Search<Inside> {
        let got = self.send(call, Method::GET, &vm.href, None)?;
        let document =
            xml::read(&got.body).map_err(|why| errors::unusable(&call.what, Stage::Read, got.status, why))?;
        let root = document.root_element();
        let inside = Inside {
            disk: first_disk(root),
            needs_tpm: is_windows_11(root, &vm.guest_os) && !has_tpm(root),
            passthrough: has_passthrough(root),
        };
        let wanted = u64::from(self.settings.disk_gb) * MB_PER_GB;
        let refuse = |why: String| {
            let what =
                format!("give VMs of template {:?} a disk of {} GB", self.settings.template, self.settings.disk_gb);
            Err(errors::own(ErrorKind::Invalid, what, why))
        };
        match &inside.disk {
            _ if wanted == 0 => Ok(inside),
            None => refuse("the template's VM has no hard disk".into()),
            Some(disk) if wanted < disk.capacity_mb => {
                refuse(format!("the template's disk has {} MB, and disks cannot shrink", disk.capacity_mb))
            }
            Some(_) => Ok(inside),
        }
    }

    /// The records that are `wanted`, which is asked with a record's attributes: a filter does not mind upper and lower
    /// case where it has a wildcard.
    fn search(
        &self,
        call: &Call,
        kind: &'static str,
        filter: &str,
        wanted: impl Fn(&dyn Fn(&str) -> Option<String>) -> bool,
    ) -> Search<Vec<Found>> {
        let mut all = Vec::new();
        self.records(call, kind, filter, |record| {
            let attribute = |name| xml::attribute(record, name);
            if !wanted(&|name| xml::attribute(record, name).map(str::to_owned)) {
                return Ok(());
            }
            let href = self.link(call, attribute("href"))?;
            let place = attribute("vdcName").or(attribute("ownerName")).or(attribute("orgName")).unwrap_or_default();
            let catalog = attribute("catalogName").unwrap_or_default();
            all.push(Found {
                // The provider's view of a thing is not the place where it is used.
                href: href.replacen("/api/admin/", "/api/", 1).into(),
                name: attribute("name").unwrap_or_default().to_owned(),
                place: place.to_owned(),
                container: attribute("container").map(str::to_owned),
                catalog: catalog.to_owned(),
                created: attribute("creationDate").and_then(unix_ms),
                guest_os: attribute("guestOs").unwrap_or_default().to_owned(),
                enabled: attribute("isEnabled") != Some("false"),
                status: attribute("status").unwrap_or_default().to_owned(),
            });
            Ok(())
        })?;
        Ok(all)
    }

    fn org(&self) -> String {
        format!("org {:?}", self.settings.org)
    }

    fn in_vdc(&self) -> String {
        format!("VDC {:?} of {}", self.settings.vdc, self.org())
    }
}

impl Names {
    /// What the settings wish for and no policy decides.
    pub(super) fn wish(&self, settings: &Settings) -> Wish {
        let fixes = |fixes: fn(&Policy) -> bool| self.sizing_policy.as_ref().is_some_and(fixes);
        let cpus = if fixes(|policy| policy.fixes_cpus) { 0 } else { settings.cpus };
        let cores_per_socket = if cpus == 0 { 0 } else { settings.cores_per_socket.max(1) };
        let memory_mb = if fixes(|policy| policy.fixes_memory) { 0 } else { settings.memory_mb };
        Wish { cpus, cores_per_socket, memory_mb }
    }

    pub(super) fn with(self, template: Template) -> Names {
        Names {
            template: template.href,
            template_vm: template.vm.href,
            template_vm_name: template.vm.name,
            template_name: template.name,
            catalog_name: template.catalog,
            guest_os: template.vm.guest_os,
            disk: template.inside.disk,
            needs_tpm: template.inside.needs_tpm,
            passthrough: template.inside.passthrough,
            ..self
        }
    }

    /// Why VMs cannot be suspended, as far as VCD tells that beforehand.
    pub(super) fn no_suspend(&self) -> Option<&'static str> {
        let vgpu = [&self.sizing_policy, &self.placement_policy].into_iter().flatten().any(|policy| policy.vgpu);
        match (self.passthrough, vgpu) {
            (true, _) => Some("the template's VM has a passthrough device"),
            (_, true) => Some("a policy gives the VMs a part of a graphics card"),
            _ => None,
        }
    }
}

/// A record's attributes, by name.
type Record<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// For [`Client::search`]: exactly this name.
fn named(name: &str) -> impl Fn(&Record) -> bool {
    move |record| record("name").as_deref() == Some(name)
}

/// Windows 11 does not boot without a TPM.
fn is_windows_11(vm: Node, guest_os: &str) -> bool {
    let system = vm.descendants().find(|n| n.is_element() && xml::local(*n) == "OperatingSystemSection");
    let kind = system.and_then(|s| xml::attribute(s, "osType")).unwrap_or_default();
    kind.to_lowercase().starts_with("windows11") || guest_os.to_lowercase().contains("windows 11")
}

/// Whether a VM's hardware holds a device of its host's: such a VM cannot be suspended.
fn has_passthrough(vm: Node) -> bool {
    let kinds = vm.descendants().filter(|n| n.is_element() && xml::local(*n) == "ResourceSubType");
    kinds.filter_map(|n| n.text()).any(|kind| {
        let kind = kind.to_lowercase();
        kind.contains("passthrough") || kind.contains("vgpu")
    })
}

/// Whether a VM's document tells of a TPM.
pub(super) fn has_tpm(vm: Node) -> bool {
    xml::child(vm, "TrustedPlatformModule").and_then(|tpm| xml::text(tpm, "TpmPresent")) == Some("true")
}

fn one(kind: &str, name: &str, place: &str, mut found: Vec<Found>) -> Search<Found> {
    match (found.pop(), found.is_empty()) {
        (None, _) => Err(unknown(kind, name, place)),
        (Some(only), true) => Ok(only),
        (Some(last), false) => {
            found.push(last);
            let candidates: Vec<String> = found.iter().map(|one| one.shown(&one.href)).collect();
            Err(ambiguous(kind, name, place, &candidates))
        }
    }
}

fn unknown(kind: &str, name: &str, place: &str) -> VcdError {
    errors::own(
        ErrorKind::NotFound,
        format!("find {kind} {name:?}"),
        format!("there is no {kind} of this name in {place}"),
    )
}

fn ambiguous<T: AsRef<str>>(kind: &str, name: &str, place: &str, candidates: &[T]) -> VcdError {
    let listed: Vec<&str> = candidates.iter().take(MAX_CANDIDATES).map(AsRef::as_ref).collect();
    let text = format!("{} of this name in {place}: {}", candidates.len(), listed.join(", "));
    errors::own(ErrorKind::Invalid, format!("find {kind} {name:?}"), text)
}

/// The first `Item` that is a hard disk, wherever the hardware section lies.
fn first_disk(root: Node) -> Option<Disk> {
    let section = root.descendants().find(|n| n.is_element() && xml::local(*n) == "VirtualHardwareSection")?;
    let item = xml::children(section, "Item").find(|item| xml::text(*item, "ResourceType") == Some("17"))?;
    let host = xml::child(item, "HostResource");
    let of_host = |name| host.and_then(|h| xml::attribute(h, name)).unwrap_or_default().to_owned();
    Some(Disk {
        instance_id: xml::text(item, "InstanceID")?.to_owned(),
        address_on_parent: xml::text(item, "AddressOnParent").unwrap_or("0").to_owned(),
        bus_type: of_host("busType"),
        bus_sub_type: of_host("busSubType"),
        capacity_mb: of_host("capacity").parse().unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_hard_disk_is_read() {
        let text = r#"<Vm xmlns="v" xmlns:ovf="o" xmlns:rasd="r" xmlns:x="v"><ovf:VirtualHardwareSection>
            <ovf:Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType></ovf:Item>
            <ovf:Item><rasd:AddressOnParent>1</rasd:AddressOnParent>
              <rasd:HostResource x:capacity="16384" x:busType="6" x:busSubType="VirtualSCSI"/>
              <rasd:InstanceID>2001</rasd:InstanceID><rasd:ResourceType>17</rasd:ResourceType></ovf:Item>
            <ovf:Item><rasd:InstanceID>2002</rasd:InstanceID><rasd:ResourceType>17</rasd:ResourceType></ovf:Item>
            </ovf:VirtualHardwareSection></Vm>"#;
        let disk = first_disk(xml::read(text).unwrap().root_element()).unwrap();
        let want = Disk {
            instance_id: "2001".into(),
            address_on_parent: "1".into(),
            bus_type: "6".into(),
            bus_sub_type: "VirtualSCSI".into(),
            capacity_mb: 16384,
        };
        assert_eq!(disk, want);
        assert_eq!(first_disk(xml::read("<Vm/>").unwrap().root_element()), None);
    }

    #[test]
    fn of_many_candidates_the_first_are_named() {
        let e = ambiguous("network", "n", "VDC v", &["1", "2", "3", "4", "5", "6", "7"]);
        assert_eq!(e.text, "7 of this name in VDC v: 1, 2, 3, 4, 5");
    }
}
