//! Facts about VCD's objects for new VMs: `check` shows them to the person who sets up a group. A plugin that serves
//! needs none of them. This module does not judge them: the caller decides what is enough for a group.

use super::errors::{self, Stage};
use super::hardware::has_tpm;
use super::http::encode;
use super::names::{HAS_PASSTHROUGH, HAS_VGPU};
use super::{Call, Client, Kind, Settings, TokenKind, query, xml};
use crate::cloud::{ErrorKind, Href, VcdError};
use roxmltree::Node;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use ureq::http::Method;

/// Maximum number of pages of a role's rights, with [`RIGHTS_PAGE`] each: VCD has about 400 rights.
const MAX_RIGHTS_PAGES: usize = 8;
/// Rights per page: VCD's maximum.
const RIGHTS_PAGE: usize = 128;
/// Maximum number of a user's roles that are read.
const MAX_ROLES: usize = 8;

/// A client that is logged in and has resolved no names. It sends each request only when it is called.
pub struct Inspector(Client);

/// The user of the session (`/cloudapi/1.0.0/sessions/current`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Login {
    /// The API version in use.
    pub api_version: String,
    /// The life of the session, if VCD reports it.
    pub life: Option<Duration>,
    /// The kind of the token.
    pub token: TokenKind,
    /// Why the token for the next login could not be written, if so.
    pub unsaved: Option<VcdError>,
    /// The user's name; empty if VCD does not report it.
    pub user: String,
    /// The org's name as VCD writes it; empty if VCD does not report it.
    pub org: String,
    /// URN of the org.
    pub org_id: String,
    /// Names of the user's roles.
    pub roles: Vec<String>,
    /// URNs of the roles.
    role_ids: Vec<String>,
}

/// A VDC's limits (`GET /api/vdc/ID`). `None`: no limit, or VCD does not report it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VdcFacts {
    /// The VDC.
    pub href: Href,
    /// Maximum number of VMs.
    pub vm_quota: Option<u64>,
    /// Number of VMs, including foreign ones that the user can see.
    pub vms: u64,
    /// Limit and use of memory, MB.
    pub memory_mb: (Option<u64>, u64),
}

/// A network's static pool (`GET /api/network/ID`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkFacts {
    /// Its name.
    pub name: String,
    /// Addresses in the static pool.
    pub pool: u64,
    /// Used addresses; `None` if VCD does not report them.
    pub used: Option<u64>,
}

/// A storage profile's limit (`OrgVdcStorageProfileRecord`), MB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageFacts {
    /// Its name.
    pub name: String,
    /// `None`: no limit.
    pub limit_mb: Option<u64>,
    /// In use.
    pub used_mb: u64,
}

/// A template and its one VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateFacts {
    /// Its name. A pattern may have selected it.
    pub name: String,
    /// Its catalog.
    pub catalog: String,
    /// The guest OS as VCD shows it.
    pub guest_os: String,
    /// Its disks, the boot disk first; none if VCD does not show them.
    pub disks: Vec<DiskFacts>,
    /// The networks of its adapters, with the template's names.
    pub networks: Vec<String>,
    /// Version of VMware Tools; `Some("0")` or empty: not installed; `None`: VCD does not report it.
    pub tools: Option<String>,
    /// Guest customization is enabled in the template; `None`: VCD does not report it.
    pub customizes: Option<bool>,
    /// Number of NICs.
    pub nics: usize,
    /// It has a TPM.
    pub tpm: bool,
    /// Why its VMs cannot be suspended, if VCD tells that.
    pub no_suspend: Option<&'static str>,
}

/// A disk of a template's VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFacts {
    /// The number of its controller, and its number there.
    pub place: (u64, u64),
    /// Its size in MB, 0 if VCD does not report it.
    pub mb: u64,
}

/// The org's maximum leases of vApps (`VAppLeaseSettings`); zero: never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRules {
    /// Maximum time that a vApp runs before VCD suspends it or powers it off.
    pub runtime: Duration,
    /// Maximum time that VCD keeps a stopped vApp.
    pub storage: Duration,
}

impl Inspector {
    /// Chooses an API version and logs in.
    pub fn log_in(settings: Settings) -> Result<(Inspector, Login), VcdError> {
        let client = Client::new(settings)?;
        let inspector = Inspector(client);
        let login = inspector.session();
        login.map_err(|e| inspector.0.finish(e, None)).map(|login| (inspector, login))
    }

    /// Ends the session.
    pub fn close(&self) {
        self.0.close();
    }

    fn session(&self) -> Result<Login, VcdError> {
        let call = call("read the session");
        let pass = self.0.pass(None, call.deadline)?;
        let (token, unsaved) = self.0.session.token();
        let mut login = Login {
            api_version: pass.version.to_string(),
            life: self.0.session.view(&self.0.http).ends_in,
            token,
            unsaved,
            ..Login::default()
        };
        // The user's name is needed only for this report.
        let Ok(json) = self.json(&call, "/cloudapi/1.0.0/sessions/current") else { return Ok(login) };
        let text = |place: &str, key: &str| {
            json.get(place).and_then(|of| of.get(key)).and_then(|v| v.as_str()).unwrap_or_default().to_owned()
        };
        login.user = text("user", "name");
        login.org = text("org", "name");
        login.org_id = text("org", "id");
        let list = |key: &str| json.get(key).and_then(|v| v.as_array()).into_iter().flatten().take(MAX_ROLES);
        login.roles = list("roles").filter_map(|role| role.as_str()).map(str::to_owned).collect();
        login.role_ids =
            list("roleRefs").filter_map(|role| role.get("id").and_then(|id| id.as_str())).map(str::to_owned).collect();
        Ok(login)
    }

    /// The names of all rights in the user's roles; `None` if the user may not read them.
    pub fn rights(&self, login: &Login) -> Option<Vec<String>> {
        let call = call("read the user's rights");
        let mut all = Vec::new();
        for role in &login.role_ids {
            for page in 1..=MAX_RIGHTS_PAGES {
                let path = format!("/cloudapi/1.0.0/roles/{}/rights?page={page}&pageSize={RIGHTS_PAGE}", encode(role));
                let json = self.json(&call, &path).ok()?;
                let values = json.get("values")?.as_array()?;
                all.extend(values.iter().filter_map(|right| right.get("name")?.as_str()).map(str::to_owned));
                if values.len() < RIGHTS_PAGE {
                    break;
                }
            }
        }
        (!login.role_ids.is_empty()).then_some(all)
    }

    /// The org's maximum leases; `None` if the user may not read them.
    pub fn lease_rules(&self, login: &Login) -> Option<LeaseRules> {
        let id = login.org_id.rsplit(':').next().filter(|id| !id.is_empty())?;
        let url = format!("{}/api/admin/org/{}/settings/vAppLeaseSettings", self.0.site.root, encode(id));
        let call = call("read the org's lease settings");
        let got = self.0.send(&call, Method::GET, &url, None).ok()?;
        let document = xml::read(&got.body).ok()?;
        let seconds =
            |name| xml::text(document.root_element(), name).and_then(|n| n.parse().ok()).map(Duration::from_secs);
        Some(LeaseRules { runtime: seconds("DeploymentLeaseSeconds")?, storage: seconds("StorageLeaseSeconds")? })
    }

    /// The VDC.
    pub fn vdc(&self) -> Result<VdcFacts, VcdError> {
        let call = call(format!("read VDC {:?}", self.0.settings.vdc));
        self.finish((|| {
            let href = self.0.find_vdc(&call)?;
            let got = self.0.send(&call, Method::GET, &href, None)?;
            let document = xml::read(&got.body).map_err(|why| unusable(&call, why))?;
            let root = document.root_element();
            let memory = xml::child(root, "ComputeCapacity").and_then(|c| xml::child(c, "Memory"));
            let memory = memory.filter(|m| xml::text(*m, "Units") == Some("MB"));
            let filter = format!("isVAppTemplate==false;vdc=={}", query::value(&href));
            let mut vms = 0;
            self.0.first_page(&call, "vm", &filter, "sortAsc=name", &mut |record| {
                let total = record.parent_element().and_then(|all| xml::attribute(all, "total"));
                vms = total.and_then(|n| n.parse().ok()).unwrap_or(vms + 1);
                Ok(())
            })?;
            Ok(VdcFacts {
                vm_quota: number(root, "VmQuota").filter(|n| *n > 0),
                vms,
                memory_mb: (
                    memory.and_then(|m| number(m, "Limit")).filter(|n| *n > 0),
                    memory.and_then(|m| number(m, "Used")).unwrap_or(0),
                ),
                href,
            })
        })())
    }

    /// The network.
    pub fn network(&self, vdc: Option<&Href>) -> Result<NetworkFacts, VcdError> {
        let call = call(format!("read network {:?}", self.0.settings.network));
        self.finish((|| {
            let (href, name) = self.0.find_network(&call, vdc)?;
            let got = self.0.send(&call, Method::GET, &href, None)?;
            let document = xml::read(&got.body).map_err(|why| unusable(&call, why))?;
            let (mut pool, mut used) = (0, None);
            for scope in elements(document.root_element(), "IpScope") {
                pool += elements(scope, "IpRange").filter_map(addresses).sum::<u64>();
                if let Some(allocated) = xml::child(scope, "AllocatedIpAddresses") {
                    used = Some(used.unwrap_or(0) + xml::children(allocated, "IpAddress").count() as u64);
                }
            }
            Ok(NetworkFacts { name, pool, used })
        })())
    }

    /// The storage profile.
    pub fn storage(&self, vdc: Option<&Href>) -> Result<StorageFacts, VcdError> {
        let call = call(format!("read storage profile {:?}", self.0.settings.storage_profile));
        self.finish((|| {
            let profile = self.0.find_storage_profile(&call, vdc)?;
            let (limit, used_mb) = self.0.storage_use(&call, &profile)?;
            Ok(StorageFacts { name: profile.1, limit_mb: Some(limit).filter(|mb| *mb > 0), used_mb })
        })())
    }

    /// The names of all objects of a kind that the user can see, in this VDC if it is known, from one page of the
    /// query: a help for misspelt names. Empty if VCD does not report them.
    pub fn names(&self, kind: Kind, vdc: Option<&Href>) -> Vec<String> {
        let (records, of_vdc) = match kind {
            Kind::Vdc => ("orgVdc", false),
            Kind::Network => ("orgVdcNetwork", true),
            Kind::Catalog => ("catalog", false),
            Kind::Template => ("vAppTemplate", false),
            Kind::StorageProfile => ("orgVdcStorageProfile", true),
        };
        let place = vdc.filter(|_| of_vdc).map(|vdc| format!(";vdc=={}", query::value(vdc))).unwrap_or_default();
        let catalog = &self.0.settings.catalog;
        let mut names = Vec::new();
        let call = call(format!("list names like {:?}", kind));
        let asked = self.0.first_page(&call, records, &format!("name==*{place}"), "sortAsc=name", &mut |record| {
            let elsewhere = xml::attribute(record, "catalogName").is_some_and(|told| !query::fits(catalog, told));
            names.extend(
                xml::attribute(record, "name").filter(|_| kind != Kind::Template || !elsewhere).map(str::to_owned),
            );
            Ok(())
        });
        names.dedup();
        if asked.is_ok() { names } else { Vec::new() }
    }

    /// A compute policy of the VDC: sizing or placement. With why its VMs cannot be suspended, if VCD tells that.
    pub fn policy(&self, vdc: &Href, name: &str, sizing: bool) -> Result<Option<&'static str>, VcdError> {
        let call = call(format!("read compute policy {name:?}"));
        let found = self.0.find_policy(&call, vdc, name, sizing);
        self.finish(found.map(|policy| policy.vgpu.then_some(HAS_VGPU)))
    }

    /// The template.
    pub fn template(&self) -> Result<TemplateFacts, VcdError> {
        let call = call(format!("read template {:?}", self.0.settings.template));
        self.finish((|| {
            let found = self.0.find_template(&call)?;
            let got = self.0.send(&call, Method::GET, &found.vm, None)?;
            let document = xml::read(&got.body).map_err(|why| unusable(&call, why))?;
            let root = document.root_element();
            let guest = elements(root, "GuestCustomizationSection").next();
            let runtime = elements(root, "VMWareTools").next();
            let tools = elements(root, "VmSpecSection").next().and_then(|spec| xml::child(spec, "VmToolsVersion"));
            let tools = tools
                .map(|tools| tools.text().unwrap_or_default().trim().to_owned())
                .or(runtime.map(|tools| xml::attribute(tools, "version").unwrap_or_default().to_owned()));
            let disks = found.hardware.disks.iter().map(|disk| DiskFacts { place: disk.place, mb: disk.mb });
            Ok(TemplateFacts {
                name: found.name,
                catalog: found.catalog,
                guest_os: found.guest_os,
                disks: disks.collect(),
                networks: found.hardware.networks,
                tools,
                customizes: guest.and_then(|g| xml::text(g, "Enabled")).map(|enabled| enabled == "true"),
                nics: elements(root, "NetworkConnection").count(),
                tpm: has_tpm(root),
                no_suspend: found.hardware.passthrough.then_some(HAS_PASSTHROUGH),
            })
        })())
    }

    fn json(&self, call: &Call, path: &str) -> Result<serde_json::Value, VcdError> {
        let url = format!("{}{path}", self.0.site.root);
        let got = self.0.send_for("application/json", call, Method::GET, &url, None, None)?;
        serde_json::from_str(&got.body).map_err(|_| unusable(call, "not JSON"))
    }

    fn finish<T>(&self, result: Result<T, VcdError>) -> Result<T, VcdError> {
        result.map_err(|e| self.0.finish(e, None))
    }
}

fn call(what: impl Into<String>) -> Call {
    Call::lookup(what.into(), Instant::now())
}

fn unusable(call: &Call, why: impl Into<String>) -> VcdError {
    errors::unusable(&call.what, Stage::Read, 200, why)
}

/// All elements of this name below `node`.
fn elements<'a, 'i: 'a>(node: Node<'a, 'i>, name: &'static str) -> impl Iterator<Item = Node<'a, 'i>> {
    node.descendants().filter(move |n| n.is_element() && xml::local(*n) == name)
}

fn number(node: Node, name: &str) -> Option<u64> {
    xml::text(node, name)?.parse().ok()
}

/// Number of addresses in a range.
fn addresses(range: Node) -> Option<u64> {
    let end = |name| xml::text(range, name).and_then(|a| a.parse::<Ipv4Addr>().ok()).map(u32::from);
    let (first, last) = (end("StartAddress")?, end("EndAddress")?);
    Some(u64::from(last.checked_sub(first)?) + 1)
}

/// True if the client itself found that an object does not exist or is not usable. False if a request failed.
pub fn is_about_names(e: &VcdError) -> bool {
    e.status == 0 && matches!(e.kind, ErrorKind::NotFound | ErrorKind::Invalid | ErrorKind::State)
}
