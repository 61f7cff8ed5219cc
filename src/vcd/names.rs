//! Names to links: one query per kind looks up the names in `Settings`, and all mistakes are reported together. An id
//! or a link in place of a name is requested directly, and needs no search.

use super::errors::{self, Stage};
use super::hardware::{self, Hardware};
use super::query::{self, fits, unix_ms};
use super::watch::{is_denied, is_refusal};
use super::{Call, Client, Settings, last_part, xml};
use crate::cloud::{ErrorKind, Href, VcdError};
use roxmltree::Node;
use ureq::http::Method;

/// Maximum number of candidates that an error lists for an ambiguous name, and of candidates that are read in detail
/// for a choice.
const MAX_CANDIDATES: usize = 5;
/// Compute policies per page. Names are usually unique in a VDC.
const MAX_POLICIES: usize = 25;
/// Bytes of a UUID.
const UUID: usize = 36;
/// Template states from which VCD cannot create a vApp: the word, and the number in documents.
const UNUSABLE: [(&str, &str); 13] = [
    ("FAILED_CREATION", "-1"),
    ("UNRESOLVED", "0"),
    ("UNKNOWN", "6"),
    ("UNRECOGNIZED", "7"),
    ("INCONSISTENT_STATE", "9"),
    ("DESCRIPTOR_PENDING", "11"),
    ("COPYING_CONTENTS", "12"),
    ("DISK_CONTENTS_PENDING", "13"),
    ("QUARANTINED", "14"),
    ("QUARANTINE_EXPIRED", "15"),
    ("REJECTED", "16"),
    ("TRANSFER_TIMEOUT", "17"),
    ("LOCAL_COPY_UNAVAILABLE", ""),
];

/// The links behind the names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) vdc: Href,
    pub(super) network: Href,
    pub(super) network_name: String,
    pub(super) storage_profile: Href,
    pub(super) template: Template,
    pub(super) sizing_policy: Option<Policy>,
    pub(super) placement_policy: Option<Policy>,
}

/// The template and its only VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Template {
    pub(super) href: Href,
    /// Its name and its catalog's name, which patterns may have selected.
    pub(super) name: String,
    pub(super) catalog: String,
    pub(super) vm: Href,
    pub(super) vm_name: String,
    pub(super) guest_os: String,
    pub(super) hardware: Hardware,
}

/// A compute policy. The values that it fixes override the numbers in a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) href: Href,
    pub(super) fixes_cpus: bool,
    pub(super) fixes_memory: bool,
    /// It gives VMs a share of a graphics card (`isVgpuPolicy`).
    pub(super) vgpu: bool,
}

/// The CPUs and memory to request. 0: as in the template or the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) cpus: u32,
    pub(super) cores_per_socket: u32,
    pub(super) memory_mb: u32,
}

/// A kind of object that a key names, by name, id or link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "VCD's own words")]
pub enum Kind {
    Vdc,
    Network,
    Catalog,
    Template,
    StorageProfile,
}

impl Kind {
    /// The word for messages, the type in an id, and the path before the UUID in a link.
    fn forms(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Kind::Vdc => ("VDC", "vdc", "/api/vdc/"),
            Kind::Network => ("network", "network", "/api/network/"),
            Kind::Catalog => ("catalog", "catalog", "/api/catalog/"),
            Kind::Template => ("template", "vapptemplate", "/api/vAppTemplate/vappTemplate-"),
            Kind::StorageProfile => ("storage profile", "vdcstorageProfile", "/api/vdcStorageProfile/"),
        }
    }

    fn word(self) -> &'static str {
        self.forms().0
    }

    /// The UUID of an object of this kind, if `text` is its id or its link.
    fn uuid(self, text: &str) -> Option<&str> {
        let text = text.trim_end_matches('/');
        let (before, uuid) = text.split_at_checked(text.len().checked_sub(UUID)?)?;
        let (_, id, path) = self.forms();
        let (before, id) = (before.to_lowercase(), format!("urn:vcloud:{id}:").to_lowercase());
        // The part before may be that of the newer API, or of its administrator part.
        let path = path.trim_start_matches("/api").to_lowercase();
        let fits = before == id || (is_link(text) && (before.ends_with(&path) || before.ends_with(&id)));
        (fits && is_uuid(uuid)).then_some(uuid)
    }

    /// The id of the object behind a link.
    fn id_of(self, href: &str) -> String {
        let uuid = href.len().checked_sub(UUID).and_then(|at| href.get(at..)).unwrap_or(href);
        format!("urn:vcloud:{}:{uuid}", self.forms().1)
    }
}

fn is_link(text: &str) -> bool {
    text.starts_with("https://") || text.starts_with("http://")
}

fn is_uuid(text: &str) -> bool {
    let fits = |(at, byte): (usize, u8)| match at {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    };
    text.len() == UUID && text.bytes().enumerate().all(fits)
}

/// The mistake in a name that looks like an id or a link, but is of another kind.
pub fn check_name(kind: Kind, text: &str) -> Result<(), String> {
    let (word, id, path) = kind.forms();
    if !(is_link(text) || text.starts_with("urn:")) || kind.uuid(text).is_some() {
        return Ok(());
    }
    Err(format!("expected the name of a {word}, its id (urn:vcloud:{id}:UUID) or its link (https://HOST{path}UUID)"))
}

/// A record in the result of a query.
#[derive(Debug)]
struct Found {
    href: Href,
    attributes: Vec<(String, String)>,
}

impl Found {
    fn get(&self, name: &str) -> &str {
        self.attributes.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    fn name(&self) -> &str {
        self.get("name")
    }

    /// What distinguishes candidates.
    fn place(&self) -> &str {
        ["vdcName", "orgName", "ownerName"].map(|name| self.get(name)).into_iter().find(|p| !p.is_empty()).unwrap_or("")
    }

    /// Its catalog, if several catalogs may have this name.
    fn catalog(&self) -> &str {
        [self.get("catalog"), self.get("org")].into_iter().find(|id| !id.is_empty()).map_or("", last_part)
    }

    /// Its entry in a list of candidates.
    fn shown(&self, kind: Kind) -> String {
        let place = if self.place().is_empty() { String::new() } else { format!(" ({})", self.place()) };
        // A catalog item represents the object behind it.
        let href = [self.get("entity"), &self.href].into_iter().find(|href| !href.is_empty()).unwrap_or_default();
        format!("{:?}{place}", kind.id_of(href))
    }

    /// Why VCD cannot create a vApp from this template, if so.
    fn unfit(&self) -> Option<String> {
        if self.get("isExpired") == "true" {
            return Some("the template has expired".into());
        }
        let state = UNUSABLE.iter().find(|(word, _)| *word == self.get("status"))?;
        Some(unusable_state(state.0, self.get("isBusy") == "true"))
    }
}

fn unusable_state(state: &str, busy: bool) -> String {
    let why = if busy { ", and a task works on it; usually VCD is copying it" } else { "" };
    format!("the template is in state {state}{why}")
}

/// A catalog that is given by its id, or with its org.
struct Catalog {
    id: String,
    org: Option<String>,
    name: String,
}

impl Catalog {
    fn holds(&self, record: &Found) -> bool {
        let (catalog, org) = (record.get("catalog"), record.get("org"));
        match catalog.is_empty() {
            false => last_part(catalog) == self.id,
            // Names are unique in an org.
            true => record.get("catalogName") == self.name && self.org.as_deref().is_none_or(|id| id == last_part(org)),
        }
    }
}

type Search<T> = Result<T, VcdError>;

/// Collects the mistakes in names. Other errors (no connection, no rights) end the search.
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
    /// Looks up all names.
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
            (Some(vdc), Some((network, network_name)), Some((storage_profile, _)), Some(template))
                if wrong.0.is_empty() =>
            {
                let [sizing_policy, placement_policy] = policies;
                Ok(Names { vdc, network, network_name, storage_profile, template, sizing_policy, placement_policy })
            }
            _ => Err(wrong.0),
        }
    }

    /// Looks up the template again. The rest stays.
    pub(super) fn resolve_template(&self, call: &Call, old: &Names) -> Result<Names, Vec<VcdError>> {
        self.find_template(call).map(|template| Names { template, ..old.clone() }).map_err(|e| vec![e])
    }

    pub(super) fn find_policy(&self, call: &Call, vdc: &Href, name: &str, sizing: bool) -> Search<Policy> {
        let kind = if sizing { "sizing policy" } else { "placement policy" };
        let mut found = self.policies(call, vdc, name, sizing, &query::value(name))?;
        if found.is_empty() && query::value(name) != query::bare_value(name) {
            found = self.policies(call, vdc, name, sizing, &query::bare_value(name))?;
        }
        match (found.pop(), found.is_empty()) {
            (None, _) => Err(unknown(kind, name, &self.in_vdc())),
            (Some((_, policy)), true) => Ok(policy),
            (Some(last), false) => {
                found.push(last);
                let ids: Vec<String> = found.into_iter().map(|(id, _)| id).collect();
                Err(ambiguous(kind, name, &self.in_vdc(), &ids, "rename one of them"))
            }
        }
    }

    /// The policies with this name, with their ids.
    fn policies(
        &self,
        call: &Call,
        vdc: &Href,
        name: &str,
        sizing: bool,
        value: &str,
    ) -> Search<Vec<(String, Policy)>> {
        let (root, id) = (&self.site.root, last_part(vdc));
        let url = format!(
            "{root}/cloudapi/2.0.0/vdcs/urn:vcloud:vdc:{id}/computePolicies?page=1&pageSize={MAX_POLICIES}\
             &filter=name=={value}"
        );
        let got = self.send_for("application/json", call, Method::GET, &url, None, None)?;
        let unusable = || errors::unusable(&call.what, Stage::Read, got.status, "not a list of compute policies");
        let json: serde_json::Value = serde_json::from_str(&got.body).map_err(|_| unusable())?;
        let values = json.get("values").and_then(|v| v.as_array()).ok_or_else(unusable)?;
        let text = |policy: &serde_json::Value, key: &str| policy.get(key).and_then(|v| v.as_str()).map(str::to_owned);
        let fixes = |policy: &serde_json::Value, key: &str| policy.get(key).is_some_and(|v| !v.is_null());
        let found = values
            .iter()
            .filter(|policy| text(policy, "name").as_deref() == Some(name))
            // An older VCD may not report the kind of a policy.
            .filter(|policy| policy.get("isSizingOnly").and_then(|v| v.as_bool()).is_none_or(|only| only == sizing))
            .filter_map(|policy| {
                let id = text(policy, "id")?;
                let href = format!("{root}/cloudapi/2.0.0/vdcComputePolicies/{id}").into();
                let (fixes_cpus, fixes_memory) = (fixes(policy, "cpuCount"), fixes(policy, "memory"));
                let vgpu = policy.get("isVgpuPolicy").and_then(|v| v.as_bool()) == Some(true);
                Some((id, Policy { href, fixes_cpus, fixes_memory, vgpu }))
            });
        Ok(found.collect())
    }

    pub(super) fn find_vdc(&self, call: &Call) -> Search<Href> {
        let name = &self.settings.vdc;
        let (href, enabled) = match self.by_id(call, Kind::Vdc, name)? {
            Some((href, body)) => {
                let document = self.document(call, &body)?;
                (href, xml::text(document.root_element(), "IsEnabled") != Some("false"))
            }
            None => {
                let filter = |escape: fn(&str) -> String| format!("name=={}", escape(name));
                let vdc = one(Kind::Vdc, name, &self.org(), self.search(call, "orgVdc", &filter, &named(name))?)?;
                let enabled = vdc.get("isEnabled") != "false";
                (vdc.href, enabled)
            }
        };
        match enabled {
            true => Ok(href),
            false => Err(VcdError::own(ErrorKind::State, format!("find VDC {name:?}"), "the VDC is disabled")),
        }
    }

    /// The network and its name. A network of another VDC counts if it is shared, or belongs to a group of VDCs.
    pub(super) fn find_network(&self, call: &Call, vdc: Option<&Href>) -> Search<(Href, String)> {
        let name = &self.settings.network;
        if let Some((href, body)) = self.by_id(call, Kind::Network, name)? {
            return self.with_name(call, href, &body);
        }
        let mut found = Vec::new();
        if let Some(vdc) = vdc {
            let filter = |escape: fn(&str) -> String| format!("name=={};vdc=={}", escape(name), query::value(vdc));
            found = self.search(call, "orgVdcNetwork", &filter, &named(name))?;
        }
        if found.is_empty() {
            let filter = |escape: fn(&str) -> String| format!("name=={}", escape(name));
            let all = self.search(call, "orgVdcNetwork", &filter, &named(name))?;
            let Some(vdc) = vdc else {
                // Without the VDC, the right one cannot be chosen. It is enough that there is one.
                let network = all.into_iter().next().ok_or_else(|| unknown("network", name, &self.in_vdc()))?;
                return Ok((network.href, name.clone()));
            };
            let elsewhere: Vec<String>;
            (found, elsewhere) = self.within_reach(call, vdc, all)?;
            if found.is_empty() && !elsewhere.is_empty() {
                let places: Vec<String> = elsewhere.into_iter().take(MAX_CANDIDATES).collect();
                let why = format!(
                    "there is no network with this name in {}, but in {}, which does not share it",
                    self.in_vdc(),
                    places.join(" and ")
                );
                return Err(VcdError::own(ErrorKind::NotFound, format!("find network {name:?}"), why));
            }
        }
        let network = one(Kind::Network, name, &self.in_vdc(), found)?;
        Ok((network.href, name.clone()))
    }

    /// The networks of other VDCs that this VDC may use, and the VDCs of the other networks. The records, the VDC's own
    /// list, or the owner of a network show it.
    fn within_reach(&self, call: &Call, vdc: &Href, all: Vec<Found>) -> Search<(Vec<Found>, Vec<String>)> {
        let is_open = |network: &Found| {
            network.get("isShared") == "true" || !network.get("vdcGroupId").is_empty() || network.get("vdc").is_empty()
        };
        let (mut found, others): (Vec<Found>, Vec<Found>) = all.into_iter().partition(is_open);
        let mut elsewhere = Vec::new();
        if others.is_empty() {
            return Ok((found, elsewhere));
        }
        let got = self.send(call, Method::GET, vdc, None)?;
        let document = self.document(call, &got.body)?;
        let list = xml::child(document.root_element(), "AvailableNetworks");
        let list = list.into_iter().flat_map(|list| xml::children(list, "Network"));
        let listed: Vec<&str> = list.filter_map(|entry| xml::attribute(entry, "href")).map(last_part).collect();
        let mut asked = 0;
        for network in others {
            let is_listed = listed.contains(&last_part(&network.href));
            if !is_listed {
                asked += 1;
            }
            match is_listed || (asked <= MAX_CANDIDATES && self.is_of_a_group(call, &network)?) {
                true => found.push(network),
                false => elsewhere.push(format!("VDC {:?}", network.place())),
            }
        }
        Ok((found, elsewhere))
    }

    /// The newer API shows the owner of a network: a VDC, or a group of VDCs.
    fn is_of_a_group(&self, call: &Call, network: &Found) -> Search<bool> {
        let url = format!("{}/cloudapi/1.0.0/orgVdcNetworks/{}", self.site.root, Kind::Network.id_of(&network.href));
        match self.send_for("application/json", call, Method::GET, &url, None, None) {
            Ok(got) => {
                let json: serde_json::Value = serde_json::from_str(&got.body).unwrap_or_default();
                let owner = json.get("ownerRef").and_then(|owner| owner.get("id")).and_then(|id| id.as_str());
                Ok(owner.is_some_and(|id| id.to_lowercase().starts_with("urn:vcloud:vdcgroup:")))
            }
            Err(e) if is_denied(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The storage profile and its name.
    pub(super) fn find_storage_profile(&self, call: &Call, vdc: Option<&Href>) -> Search<(Href, String)> {
        let name = &self.settings.storage_profile;
        let (found, enabled) = match self.by_id(call, Kind::StorageProfile, name)? {
            Some((href, body)) => {
                let enabled = xml::text(self.document(call, &body)?.root_element(), "Enabled") != Some("false");
                (self.with_name(call, href, &body)?, enabled)
            }
            None => {
                let mut found = self.storage_profiles(call, name, vdc)?;
                if vdc.is_none() {
                    // Without the VDC, the right one cannot be chosen. It is enough that there is one.
                    found.truncate(1);
                }
                let profile = one(Kind::StorageProfile, name, &self.in_vdc(), found)?;
                let enabled = profile.get("isEnabled") != "false";
                ((profile.href, name.clone()), enabled)
            }
        };
        match enabled {
            true => Ok(found),
            false => {
                let what = format!("find storage profile {name:?}");
                Err(VcdError::own(ErrorKind::State, what, "the storage profile is disabled"))
            }
        }
    }

    fn storage_profiles(&self, call: &Call, name: &str, vdc: Option<&Href>) -> Search<Vec<Found>> {
        let place = vdc.map(|vdc| format!(";vdc=={}", query::value(vdc))).unwrap_or_default();
        let filter = |escape: fn(&str) -> String| format!("name=={}{place}", escape(name));
        self.search(call, "orgVdcStorageProfile", &filter, &named(name))
    }

    /// Limit (0: none) and use of a storage profile, in MB, if its record shows them.
    pub(super) fn storage_use(&self, call: &Call, profile: &(Href, String)) -> Search<(u64, u64)> {
        let all = self.storage_profiles(call, &profile.1, None)?;
        let same = all.iter().find(|record| last_part(&record.href) == last_part(&profile.0));
        let number = |name| same.and_then(|record| record.get(name).parse().ok()).unwrap_or(0);
        Ok((number("storageLimitMB"), number("storageUsedMB")))
    }

    /// The template and its only VM. Of the templates that match a pattern, the newest counts.
    pub(super) fn find_template(&self, call: &Call) -> Search<Template> {
        let wanted = &self.settings.template;
        let wrong = |kind, why: String| VcdError::own(kind, format!("find template {wanted:?}"), why);
        let (href, catalog, body) = match self.by_id(call, Kind::Template, wanted)? {
            Some((href, body)) => (href, self.settings.catalog.clone(), body),
            None => {
                let (href, catalog) = self.find_template_record(call)?;
                let got = self.send(call, Method::GET, &href, None)?;
                (href, catalog, got.body)
            }
        };
        let document = self.document(call, &body)?;
        let root = document.root_element();
        let number = xml::attribute(root, "status").unwrap_or_default();
        if let Some((state, _)) = UNUSABLE.iter().find(|(_, known)| !known.is_empty() && *known == number) {
            return Err(wrong(ErrorKind::State, unusable_state(state, xml::child(root, "Tasks").is_some())));
        }
        let vms: Vec<Node> =
            xml::child(root, "Children").into_iter().flat_map(|all| xml::children(all, "Vm")).collect();
        let &[vm] = vms.as_slice() else {
            let why = format!("the template contains {} VMs, but must contain exactly one", vms.len());
            return Err(wrong(ErrorKind::Invalid, why));
        };
        let mut template = Template {
            name: xml::attribute(root, "name").unwrap_or(wanted).to_owned(),
            catalog,
            vm: self.link(call, xml::attribute(vm, "href"))?,
            vm_name: xml::attribute(vm, "name").unwrap_or_default().to_owned(),
            guest_os: guest_os(vm),
            href,
            ..Template::default()
        };
        template.hardware = Hardware::read(vm, &template.guest_os);
        if template.guest_os.is_empty() || template.hardware.is_partial() {
            self.look_closer(call, &mut template, vm)?;
        }
        let (wished, boot) = (hardware::disk_mb(&self.settings), template.hardware.disks.first());
        if let Some(disk) = boot.filter(|disk| wished > 0 && wished < disk.mb) {
            let what = format!("create VMs of template {wanted:?} with a disk of {} GB", self.settings.disk_gb);
            let why = format!("the template's disk has {} MB, and disks cannot shrink", disk.mb);
            return Err(VcdError::own(ErrorKind::Invalid, what, why));
        }
        Ok(template)
    }

    /// Reads the facts that a template's document omits: of the VM from its own document, of the guest OS from its
    /// record. If VCD does not show one of them now, what was known of the same VM stays: it does not change.
    fn look_closer(&self, call: &Call, template: &mut Template, vm: Node) -> Search<()> {
        let body = match self.send(call, Method::GET, &template.vm, None) {
            Err(e) if is_refusal(&e) => None,
            other => Some(other?.body),
        };
        let mut unread = body.is_none();
        let document = body.as_deref().map(|body| self.document(call, body)).transpose()?;
        let vm = document.as_ref().map_or(vm, |document| document.root_element());
        if template.guest_os.is_empty() {
            template.guest_os = guest_os(vm);
        }
        if template.guest_os.is_empty() {
            let filter =
                |_: fn(&str) -> String| format!("container=={};isVAppTemplate==true", query::value(&template.href));
            let same = |record: &Found| last_part(record.get("href")) == last_part(&template.vm);
            match self.search(call, "vm", &filter, &same) {
                Ok(found) => template.guest_os = found.first().map_or("", |vm| vm.get("guestOs")).to_owned(),
                Err(e) if is_refusal(&e) => unread = true,
                Err(e) => return Err(e),
            }
        }
        template.hardware = Hardware::read(vm, &template.guest_os);
        let known = self.names();
        if unread && known.template.vm == template.vm {
            template.clone_from(&known.template);
        }
        Ok(())
    }

    /// The template's link and the name of its catalog.
    fn find_template_record(&self, call: &Call) -> Search<(Href, String)> {
        let (name, catalog) = (&self.settings.template, &self.settings.catalog);
        let place = format!("catalog {catalog:?} of {}", self.org());
        let catalogs = self.catalogs(call)?;
        let mut all = self.templates(call, &catalogs, "vAppTemplate")?;
        if all.is_empty() && !query::is_pattern(name) {
            // A template may have another name than its catalog item.
            all = match self.templates(call, &catalogs, "catalogItem") {
                Err(e) if is_denied(&e) => Vec::new(),
                other => other?,
            };
        }
        let what = format!("find template {name:?}");
        let found: Vec<&Found> = all.iter().filter(|template| template.unfit().is_none()).collect();
        let owner = found.first().map_or("", |template| template.catalog());
        if !query::is_pattern(catalog) && found.iter().any(|template| template.catalog() != owner) {
            return Err(self.several_catalogs(call, &place, &found)?);
        }
        let newest = |template: &&&Found| {
            (unix_ms(template.get("creationDate")), template.name().to_owned(), template.href.clone())
        };
        match found.as_slice() {
            [] => {}
            [only] => return self.chosen(call, only),
            many if self.has_pattern() => {
                if let Some(newest) = many.iter().max_by_key(newest) {
                    return self.chosen(call, newest);
                }
            }
            many => {
                let listed: Vec<String> = many.iter().map(|template| template.shown(Kind::Template)).collect();
                return Err(ambiguous("template", name, &place, &listed, IN_PLACE));
            }
        }
        if let Some(why) = all.iter().find_map(Found::unfit) {
            return Err(VcdError::own(ErrorKind::State, what, why));
        }
        if catalogs.is_empty() && !self.has_templates(call, catalog)? {
            return Err(unknown("catalog with templates", catalog, &self.org()));
        }
        Err(unknown("template", name, &place))
    }

    /// The link and the catalog of a template's own record, or of its catalog item's.
    fn chosen(&self, call: &Call, record: &Found) -> Search<(Href, String)> {
        let href = match record.get("entity") {
            "" => record.href.clone(),
            entity => self.link(call, Some(&entity.replacen("/api/admin/", "/api/", 1)))?,
        };
        let told = Some(record.get("catalogName")).filter(|name| !name.is_empty());
        Ok((href, told.unwrap_or(&self.settings.catalog).to_owned()))
    }

    /// The records of templates, or of catalog items, with the name in these catalogs. Without catalogs, in those with
    /// the configured name.
    fn templates(&self, call: &Call, catalogs: &[Catalog], kind: &'static str) -> Search<Vec<Found>> {
        let (name, catalog) = (&self.settings.template, &self.settings.catalog);
        let mut named: Vec<&str> = catalogs.iter().map(|catalog| catalog.name.as_str()).collect();
        named.dedup();
        if named.is_empty() {
            named.push(catalog);
        }
        let wanted = |record: &Found| {
            let is_template =
                record.get("entityType").is_empty() || record.get("entityType").eq_ignore_ascii_case("vAppTemplate");
            let told = record.get("catalogName");
            let held = match catalogs.is_empty() {
                true => told.is_empty() || fits(catalog, told),
                false => catalogs.iter().any(|catalog| catalog.holds(record)),
            };
            is_template && held && fits(name, record.name())
        };
        let mut all = Vec::new();
        for catalog in named {
            let filter =
                |escape: fn(&str) -> String| format!("name=={};catalogName=={}", escape(name), escape(catalog));
            all.extend(self.search(call, kind, &filter, &wanted)?);
        }
        Ok(all)
    }

    /// The catalogs that are given by an id or a link, or with their org. None for a plain name.
    fn catalogs(&self, call: &Call) -> Search<Vec<Catalog>> {
        let wanted = &self.settings.catalog;
        if let Some((_, body)) = self.by_id(call, Kind::Catalog, wanted)? {
            return Ok(vec![self.catalog(call, &body)?]);
        }
        let Some((org, name)) = wanted.split_once('/') else { return Ok(Vec::new()) };
        let filter = |escape: fn(&str) -> String| format!("name=={}", escape(name));
        let wanted = |record: &Found| record.get("orgName") == org && fits(name, record.name());
        let found = match self.search(call, "catalog", &filter, &wanted) {
            // A name may contain a slash.
            Err(e) if is_denied(&e) => Vec::new(),
            other => other?,
        };
        let read = |found: &Found| {
            let got = self.send(call, Method::GET, &found.href, None)?;
            self.catalog(call, &got.body)
        };
        found.iter().take(MAX_CANDIDATES).map(read).collect()
    }

    fn catalog(&self, call: &Call, body: &str) -> Search<Catalog> {
        let document = self.document(call, body)?;
        let root = document.root_element();
        let mut links = xml::children(root, "Link");
        let org = links.find(|link| xml::attribute(*link, "rel") == Some("up"));
        let org = org.and_then(|link| xml::attribute(link, "href")).map(|href| last_part(href).to_owned());
        let text = |name| xml::attribute(root, name).unwrap_or_default();
        Ok(Catalog { id: last_part(text("href")).to_owned(), org, name: text("name").to_owned() })
    }

    /// Whether a catalog with this name has templates. If not, the catalog is missing, not the template.
    fn has_templates(&self, call: &Call, catalog: &str) -> Search<bool> {
        for escape in [query::value, query::bare_value] {
            let (value, mut any) = (escape(catalog), false);
            let page =
                self.first_page(call, "vAppTemplate", &format!("catalogName=={value}"), "sortAsc=name", &mut |_| {
                    any = true;
                    Ok(())
                });
            match page {
                Err(e) if !is_denied(&e) => return Err(e),
                _ if any => return Ok(true),
                _ if value == query::bare_value(catalog) => break,
                _ => {}
            }
        }
        Ok(false)
    }

    /// The error of an ambiguous catalog name, with the values to copy.
    fn several_catalogs(&self, call: &Call, place: &str, templates: &[&Found]) -> Search<VcdError> {
        let name = &self.settings.catalog;
        let filter = |escape: fn(&str) -> String| format!("name=={}", escape(name));
        let catalogs = match self.search(call, "catalog", &filter, &named(name)) {
            Err(e) if is_refusal(&e) => Vec::new(),
            other => other?,
        };
        let listed: Vec<String> =
            catalogs.iter().map(|catalog| format!("{:?}", format!("{}/{name}", catalog.get("orgName")))).collect();
        if listed.len() > 1 {
            return Ok(ambiguous("catalog", name, &self.org(), &listed, IN_PLACE));
        }
        let listed: Vec<String> = templates.iter().map(|template| template.shown(Kind::Template)).collect();
        Ok(ambiguous("template", &self.settings.template, place, &listed, IN_PLACE))
    }

    /// The records that `wanted` selects: a filter with a wildcard ignores case. `filter` gets the kind of escaping. If
    /// nothing is found and a name has special characters, the other kind is tried once.
    fn search(
        &self,
        call: &Call,
        kind: &'static str,
        filter: &dyn Fn(fn(&str) -> String) -> String,
        wanted: &dyn Fn(&Found) -> bool,
    ) -> Search<Vec<Found>> {
        let (documented, bare) = (filter(query::value), filter(query::bare_value));
        let first = self.search_for(call, kind, &documented, wanted);
        let may_be_in_vain = match &first {
            Ok(found) => found.is_empty(),
            Err(e) => is_refusal(e),
        };
        if !may_be_in_vain || documented == bare {
            return first;
        }
        match self.search_for(call, kind, &bare, wanted) {
            Ok(found) if found.is_empty() => first,
            Err(e) if is_refusal(&e) => first,
            other => other,
        }
    }

    fn search_for(
        &self,
        call: &Call,
        kind: &'static str,
        filter: &str,
        wanted: &dyn Fn(&Found) -> bool,
    ) -> Search<Vec<Found>> {
        let mut all = Vec::new();
        self.records(call, kind, filter, &mut |record| {
            let attributes = record.attributes().map(|a| (a.name().to_owned(), a.value().to_owned())).collect();
            // Its link is read only if it is selected.
            let mut found = Found { href: Href::default(), attributes };
            if wanted(&found) {
                // The provider's copy of an object is not the one to use.
                let href = self.link(call, xml::attribute(record, "href"))?;
                found.href = href.replacen("/api/admin/", "/api/", 1).into();
                all.push(found);
            }
            Ok(())
        })?;
        Ok(all)
    }

    /// The link and the document of the object, if `text` is an id or a link.
    fn by_id(&self, call: &Call, kind: Kind, text: &str) -> Search<Option<(Href, String)>> {
        let Some(uuid) = kind.uuid(text) else { return Ok(None) };
        let (word, _, path) = kind.forms();
        let url = format!("{}{path}{uuid}", self.site.root);
        match self.send(call, Method::GET, &url, None) {
            Ok(got) => Ok(Some((url.into(), got.body))),
            Err(e) if matches!(e.kind, ErrorKind::NotFound | ErrorKind::Forbidden) => {
                let why = format!("the user can see no {word} with this id");
                Err(VcdError::own(ErrorKind::NotFound, format!("find {word} {text:?}"), why))
            }
            Err(e) => Err(e),
        }
    }

    fn with_name(&self, call: &Call, href: Href, body: &str) -> Search<(Href, String)> {
        let document = self.document(call, body)?;
        match xml::attribute(document.root_element(), "name") {
            Some(name) => Ok((href, name.to_owned())),
            None => Err(errors::unusable(&call.what, Stage::Read, 200, format!("{href} has no name"))),
        }
    }

    fn document<'a>(&self, call: &Call, body: &'a str) -> Search<roxmltree::Document<'a>> {
        xml::read(body).map_err(|why| errors::unusable(&call.what, Stage::Read, 200, why))
    }

    fn org(&self) -> String {
        format!("org {:?}", self.settings.org)
    }

    fn in_vdc(&self) -> String {
        format!("VDC {:?} of {}", self.settings.vdc, self.org())
    }
}

/// Why VMs cannot be suspended.
pub(super) const HAS_PASSTHROUGH: &str = "the template's VM has a passthrough device";
/// The same.
pub(super) const HAS_VGPU: &str = "a policy gives the VMs a share of a graphics card";

impl Names {
    /// The hardware in the settings that no policy fixes.
    pub(super) fn wish(&self, settings: &Settings) -> Wish {
        let fixes = |fixes: fn(&Policy) -> bool| self.sizing_policy.as_ref().is_some_and(fixes);
        let cpus = if fixes(|policy| policy.fixes_cpus) { 0 } else { settings.cpus };
        let cores_per_socket = if cpus == 0 { 0 } else { settings.cores_per_socket.max(1) };
        let memory_mb = if fixes(|policy| policy.fixes_memory) { 0 } else { settings.memory_mb };
        Wish { cpus, cores_per_socket, memory_mb }
    }

    /// Why VMs cannot be suspended, if VCD shows that in advance.
    pub(super) fn no_suspend(&self) -> Option<&'static str> {
        let vgpu = [&self.sizing_policy, &self.placement_policy].into_iter().flatten().any(|policy| policy.vgpu);
        match (self.template.hardware.passthrough, vgpu) {
            (true, _) => Some(HAS_PASSTHROUGH),
            (_, true) => Some(HAS_VGPU),
            _ => None,
        }
    }
}

pub(super) fn guest_os(vm: Node) -> String {
    let system = xml::child(vm, "OperatingSystemSection");
    system.and_then(|system| xml::text(system, "Description")).unwrap_or_default().to_owned()
}

/// A filter for [`Client::search`]: exactly this name.
fn named(name: &str) -> impl Fn(&Found) -> bool {
    move |record| record.name() == name
}

fn one(kind: Kind, name: &str, place: &str, mut found: Vec<Found>) -> Search<Found> {
    match (found.pop(), found.is_empty()) {
        (None, _) => Err(unknown(kind.word(), name, place)),
        (Some(only), true) => Ok(only),
        (Some(last), false) => {
            found.push(last);
            let candidates: Vec<String> = found.iter().map(|one| one.shown(kind)).collect();
            Err(ambiguous(kind.word(), name, place, &candidates, IN_PLACE))
        }
    }
}

fn unknown(kind: &str, name: &str, place: &str) -> VcdError {
    VcdError::own(
        ErrorKind::NotFound,
        format!("find {kind} {name:?}"),
        format!("there is no {kind} with this name in {place}"),
    )
}

/// Advice for an ambiguous name.
const IN_PLACE: &str = "use one of these in place of the name";

fn ambiguous<T: AsRef<str>>(kind: &str, name: &str, place: &str, candidates: &[T], advice: &str) -> VcdError {
    let listed: Vec<&str> = candidates.iter().take(MAX_CANDIDATES).map(AsRef::as_ref).collect();
    let text = format!("{} with this name in {place}: {}; {advice}", candidates.len(), listed.join(", "));
    VcdError::own(ErrorKind::Invalid, format!("find {kind} {name:?}"), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "01234567-89ab-cdef-0123-456789abcdef";

    #[test]
    fn of_many_candidates_the_first_are_named() {
        let e = ambiguous("network", "n", "VDC v", &["1", "2", "3", "4", "5", "6", "7"], IN_PLACE);
        assert_eq!(e.text, "7 with this name in VDC v: 1, 2, 3, 4, 5; use one of these in place of the name");
    }

    #[test]
    fn ids_and_links_are_distinguished_from_names() {
        let good = [
            (Kind::Vdc, "urn:vcloud:vdc:"),
            (Kind::Vdc, "https://h/api/vdc/"),
            (Kind::Vdc, "https://h:8443/api/admin/vdc/"),
            (Kind::Network, "urn:vcloud:network:"),
            (Kind::Network, "https://h/api/network/"),
            (Kind::Network, "https://h/cloudapi/1.0.0/orgVdcNetworks/urn:vcloud:network:"),
            (Kind::Catalog, "urn:vcloud:catalog:"),
            (Kind::Template, "urn:vcloud:vapptemplate:"),
            (Kind::Template, "urn:vcloud:vappTemplate:"),
            (Kind::Template, "http://h/api/vAppTemplate/vappTemplate-"),
            (Kind::StorageProfile, "urn:vcloud:vdcstorageProfile:"),
            (Kind::StorageProfile, "https://h/api/vdcStorageProfile/"),
        ];
        for (kind, before) in good {
            for end in ["", "/"] {
                let text = format!("{before}{ONE}{end}");
                assert_eq!((kind.uuid(&text), check_name(kind, &text)), (Some(ONE), Ok(())), "{text}");
            }
        }
        for (kind, text) in [
            (Kind::Network, format!("urn:vcloud:vdc:{ONE}")),
            (Kind::Network, format!("https://h/api/vdc/{ONE}")),
            (Kind::Vdc, "urn:vcloud:vdc:".to_owned()),
            (Kind::Vdc, format!("urn:vcloud:vdc:{}", ONE.replace('-', "0"))),
            (Kind::Template, format!("https://h/api/vAppTemplate/vm-{ONE}")),
            (Kind::Catalog, "https://h/tenant/o/catalogs".to_owned()),
        ] {
            let wrong = check_name(kind, &text).unwrap_err();
            assert!(kind.uuid(&text).is_none() && wrong.contains(kind.word()), "{text}: {wrong}");
        }
        for name in ["ci-net", "a/b", "*", "über", ONE, ""] {
            assert_eq!((Kind::Network.uuid(name), check_name(Kind::Network, name)), (None, Ok(())), "{name}");
        }
        assert_eq!(
            Kind::Template.id_of(&format!("https://h/api/vAppTemplate/vappTemplate-{ONE}")),
            format!("urn:vcloud:vapptemplate:{ONE}")
        );
    }
}
