//! The API's routes: the operation of each request, the checks before it, and its answer.

use crate::body;
use crate::model::*;
use crate::query::{self, Record};
use crate::view::{View, group_of, media};
use crate::xml::{Prefixes, Writer, check_schema};
use roxmltree::{Document, Node, ParsingOptions};
use serde_json::json;
use std::borrow::Cow;
use std::sync::Arc;

/// A request, read completely.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The path, percent-decoded.
    pub path: String,
    /// The query's parameters, percent-decoded.
    pub query: Vec<(String, String)>,
    /// `Accept`.
    pub accept: Option<String>,
    /// The client accepts gzip.
    pub packs: bool,
    /// `Authorization`.
    pub authorization: Option<String>,
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// `http://HOST:PORT`, as the client addressed the server.
    pub base: String,
    /// The body.
    pub body: Vec<u8>,
}

impl Request {
    fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// `Content-Type`; empty without a body.
    pub content_type: String,
    /// The body.
    pub body: String,
    /// Other headers.
    pub headers: Vec<(&'static str, String)>,
}

impl Reply {
    fn empty(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    fn xml(status: u16, media_name: &str, version: &str, body: String) -> Self {
        Self { status, content_type: format!("{};version={version}", media(media_name)), body, headers: Vec::new() }
    }

    /// A JSON answer.
    pub fn json(status: u16, body: &serde_json::Value) -> Self {
        Self { status, content_type: "application/json".into(), body: body.to_string(), headers: Vec::new() }
    }
}

/// What the front serves in addition to the model.
#[derive(Clone, Debug)]
pub struct Api {
    /// Versions, and whether each is deprecated.
    pub versions: Vec<(String, bool)>,
    /// The prefixes of XML elements in answers.
    pub prefixes: Prefixes,
    /// Maximum page size of queries. Larger pages are cut to it.
    pub largest_page: usize,
    /// The start of all links (VCD's public address); `None`: the address that the client used.
    pub public_address: Option<String>,
    /// Requests over plain HTTP are redirected to this origin, with their path.
    pub redirect: Option<String>,
}

impl Default for Api {
    fn default() -> Self {
        let versions = [("36.3", true), ("37.0", false), ("37.1", false), ("37.2", false), ("38.0", false)];
        let mut versions: Vec<(String, bool)> = versions.iter().map(|(v, d)| (v.to_string(), *d)).collect();
        versions.push(("38.1".into(), false));
        // Never the highest: VMware's own SDK would not work.
        versions.push(("38.0.0-alpha".into(), false));
        Self {
            versions,
            prefixes: Prefixes::Default,
            largest_page: query::MAX_PAGE_SIZE,
            public_address: None,
            redirect: None,
        }
    }
}

/// One request, for its handler.
struct Call<'a> {
    model: &'a mut Model,
    api: &'a Api,
    request: &'a Request,
    args: Vec<String>,
    who: UserId,
    bearer: String,
    version: String,
    query_fault: Option<QueryFault>,
}

type Answer = Result<Reply, Refusal>;
type Handler = fn(&mut Call<'_>) -> Answer;

/// What a request must contain.
#[derive(Clone, Copy, PartialEq)]
enum Need {
    /// Nothing.
    Nothing,
    /// A version in `Accept`.
    Version,
    /// A version and a bearer.
    Bearer,
}
use Need::{Bearer, Nothing, Version};

/// Method, path (`*` matches the rest of a segment), operation, needs, media type of the body ("": none), handler.
type Route = (&'static str, &'static str, &'static str, Need, &'static str, Handler);

const FORM: &str = "application/x-www-form-urlencoded";

#[rustfmt::skip]
const ROUTES: &[Route] = &[
    ("GET", "/api/versions", "versions", Nothing, "", versions),
    ("POST", "/oauth/tenant/*/token", "login", Nothing, FORM, |c| login_token(c, false)),
    ("POST", "/oauth/provider/token", "login", Nothing, FORM, |c| login_token(c, true)),
    ("POST", "/cloudapi/1.0.0/sessions", "login:password", Version, "", login_password),
    ("POST", "/cloudapi/1.0.0/sessions/provider", "login:password", Version, "", login_password),
    ("GET", "/cloudapi/1.0.0/sessions/current", "session", Bearer, "", |c| Ok(session_json(c, 200))),
    ("DELETE", "/cloudapi/1.0.0/sessions/current", "logout", Bearer, "", logout),
    ("GET", "/cloudapi/1.0.0/roles/*/rights", "rights", Bearer, "", rights),
    ("GET", "/api/admin/org/*/settings/vAppLeaseSettings", "leases", Bearer, "", lease_settings),
    ("GET", "/api/session", "session", Bearer, "", session_xml),
    ("DELETE", "/api/session", "logout", Bearer, "", logout),
    ("GET", "/api/org", "org", Bearer, "", orgs),
    ("GET", "/api/org/*", "org", Bearer, "", |c| c.show("org", |v, who, id| v.model.get_org(who, id).map(|o| v.org(id, o)))),
    ("GET", "/api/vdc/*", "vdc", Bearer, "", |c| c.show("vdc", |v, who, id| v.model.get_vdc(who, id).map(|o| v.vdc(id, o)))),
    ("GET", "/api/catalog/*", "catalog", Bearer, "", catalog),
    ("GET", "/api/catalogItem/*", "catalogItem", Bearer, "", catalog_item),
    ("GET", "/api/vAppTemplate/vappTemplate-*", "template", Bearer, "",
        |c| c.show("vAppTemplate", |v, who, id| v.model.get_template(who, id).map(|t| v.template(id, t)))),
    ("GET", "/api/vAppTemplate/vm-*", "template:vm", Bearer, "", template_vm),
    ("GET", "/api/network/*", "network", Bearer, "", network),
    ("GET", "/api/admin/network/*", "network", Bearer, "", network),
    ("GET", "/api/vdcStorageProfile/*", "storageProfile", Bearer, "", profile),
    ("GET", "/cloudapi/2.0.0/vdcs/*/computePolicies", "policies", Bearer, "", policies),
    ("GET", "/cloudapi/1.0.0/orgVdcNetworks/*", "network:owner", Bearer, "", network_owner),
    ("GET", "/api/query", "query", Bearer, "", query_service),
    ("GET", "/api/task/*", "task", Bearer, "", |c| c.show("task", |v, who, id| v.model.get_task(who, id).map(|t| v.task(id, t)))),
    ("POST", "/api/task/*/action/cancel", "cancel", Bearer, "", cancel),

    ("POST", "/api/vdc/*/action/instantiateVAppTemplate", "instantiate", Bearer, "instantiateVAppTemplateParams", instantiate),
    ("POST", "/api/vdc/*/action/composeVApp", "compose", Bearer, "composeVAppParams", compose),
    ("GET", "/api/vApp/vapp-*", "vapp", Bearer, "", |c| c.show("vApp", |v, who, id| v.model.read_vapp(who, id).map(|a| v.vapp(id, a)))),
    ("PUT", "/api/vApp/vapp-*", "update:vapp", Bearer, "vApp", |c| update_vapp(c, "VApp", body::vapp_change)),
    ("DELETE", "/api/vApp/vapp-*", "delete", Bearer, "", delete_vapp),
    ("POST", "/api/vApp/vapp-*/action/recomposeVApp", "recompose", Bearer, "recomposeVAppParams", recompose),
    ("GET", "/api/vApp/vapp-*/leaseSettingsSection", "section:lease", Bearer, "",
        |c| c.show("leaseSettingsSection", |v, who, id| v.model.get_vapp(who, id).map(|a| v.lease(id, a)))),
    ("PUT", "/api/vApp/vapp-*/leaseSettingsSection", "update:lease", Bearer, "leaseSettingsSection",
        |c| update_vapp(c, "LeaseSettingsSection", |_, s| Ok(VappChange { lease: Some(body::lease(s)?), ..VappChange::default() }))),
    ("GET", "/api/vApp/vapp-*/networkConfigSection", "section:networks", Bearer, "",
        |c| c.show("networkConfigSection", |v, who, id| v.model.get_vapp(who, id).map(|a| v.networks(id, a)))),
    ("PUT", "/api/vApp/vapp-*/networkConfigSection", "update:networks", Bearer, "networkConfigSection",
        |c| update_vapp(c, "NetworkConfigSection", |m, s| Ok(VappChange { networks: Some(body::networks(m, s)?), ..VappChange::default() }))),

    ("GET", "/api/vApp/vm-*", "vm", Bearer, "", |c| c.show("vm", |v, who, id| v.model.get_vm(who, id).map(|m| v.vm(id, m)))),
    ("PUT", "/api/vApp/vm-*", "reconfigure", Bearer, "vm", |c| update_vm(c, "Vm", body::vm_change)),
    ("POST", "/api/vApp/vm-*/action/reconfigureVm", "reconfigure", Bearer, "vm", |c| update_vm(c, "Vm", body::vm_change)),
    ("DELETE", "/api/vApp/vm-*", "delete:vm", Bearer, "", |c| { let id = c.id(0)?; let t = c.model.delete_vm(c.who, id)?; c.task(t) }),
    ("GET", "/api/vApp/vm-*/guestCustomizationSection", "section:guest", Bearer, "",
        |c| c.show("guestCustomizationSection", |v, who, id| v.model.get_vm(who, id).map(|m| v.guest(id, m)))),
    ("PUT", "/api/vApp/vm-*/guestCustomizationSection", "update:guest", Bearer, "guestCustomizationSection",
        |c| update_vm(c, "GuestCustomizationSection", |_, s| Ok(VmChange { guest: Some(body::guest(s)?), ..VmChange::default() }))),
    ("GET", "/api/vApp/vm-*/guestcustomizationstatus", "section:gcstatus", Bearer, "",
        |c| c.show::<VmId>("guestcustomizationstatussection", |v, who, id| v.model.get_vm(who, id).map(|m| v.guest_status(m)))),
    ("GET", "/api/vApp/vm-*/networkConnectionSection", "section:nics", Bearer, "",
        |c| c.show("networkConnectionSection", |v, who, id| v.model.get_vm(who, id).map(|m| v.nics(id, m)))),
    ("PUT", "/api/vApp/vm-*/networkConnectionSection", "update:nics", Bearer, "networkConnectionSection",
        |c| update_vm(c, "NetworkConnectionSection", |_, s| Ok(VmChange { nics: Some(body::nics(s)?), ..VmChange::default() }))),
    ("GET", "/api/vApp/vm-*/virtualHardwareSection", "section:hardware", Bearer, "",
        |c| c.show("virtualHardwareSection", |v, who, id| v.model.get_vm(who, id).map(|m| v.hardware(id, m, "")))),
    ("GET", "/api/vApp/vm-*/virtualHardwareSection/cpu", "section:cpu", Bearer, "",
        |c| c.show("rasdItem", |v, who, id| v.model.get_vm(who, id).map(|m| v.hardware(id, m, "cpu")))),
    ("GET", "/api/vApp/vm-*/virtualHardwareSection/memory", "section:memory", Bearer, "",
        |c| c.show("rasdItem", |v, who, id| v.model.get_vm(who, id).map(|m| v.hardware(id, m, "memory")))),
    ("GET", "/api/vApp/vm-*/virtualHardwareSection/disks", "section:disks", Bearer, "",
        |c| c.show("rasdItemsList", |v, who, id| v.model.get_vm(who, id).map(|m| v.hardware(id, m, "disks")))),
    ("PUT", "/api/vApp/vm-*/virtualHardwareSection/cpu", "update:cpu", Bearer, "rasdItem", |c| update_vm(c, "Item", one_item)),
    ("PUT", "/api/vApp/vm-*/virtualHardwareSection/memory", "update:memory", Bearer, "rasdItem", |c| update_vm(c, "Item", one_item)),
    ("PUT", "/api/vApp/vm-*/virtualHardwareSection/disks", "update:disks", Bearer, "rasdItemsList", |c| update_vm(c, "RasdItemsList", items)),
    ("PUT", "/api/vApp/vm-*/virtualHardwareSection", "update:hardware", Bearer, "virtualHardwareSection",
        |c| update_vm(c, "VirtualHardwareSection", items)),
    ("GET", "/api/vApp/vm-*/productSections", "section:properties", Bearer, "",
        |c| c.show::<VmId>("productSections", |v, who, id| v.model.get_vm(who, id).map(|m| v.properties(m)))),
    ("PUT", "/api/vApp/vm-*/productSections", "update:properties", Bearer, "productSections", |c| update_vm(c, "ProductSectionList", properties)),
    ("PUT", "/api/vApp/vm-*/vmCapabilities", "update:capabilities", Bearer, "vmCapabilitiesSection",
        |c| update_vm(c, "VmCapabilities", |_, s| Ok(VmChange { hot_add: Some(body::hot_add(s)), ..VmChange::default() }))),
    ("POST", "/api/vApp/vm-*/action/editTrustedPlatformModule", "tpm", Bearer, "TpmSection",
        |c| update_vm(c, "TrustedPlatformModule", |_, s| Ok(VmChange { tpm: crate::xml::flag(s, "TpmPresent"), ..VmChange::default() }))),
    ("POST", "/api/vApp/vm-*/action/consolidate", "consolidate", Bearer, "", |c| { let id = c.id(0)?; let t = c.model.consolidate(c.who, id)?; c.task(t) }),

    ("GET", "/api/vApp/*/metadata", "metadata", Bearer, "", metadata),
    ("POST", "/api/vApp/*/metadata", "metadata:set", Bearer, "metadata", set_metadata),
    ("GET", "/api/vApp/*/metadata/*", "metadata", Bearer, "", metadata),
    ("PUT", "/api/vApp/*/metadata/*", "metadata:set", Bearer, "metadata.value", set_metadata),
    ("GET", "/api/vApp/*/metadata/*/*", "metadata", Bearer, "", metadata),
    ("PUT", "/api/vApp/*/metadata/*/*", "metadata:set", Bearer, "metadata.value", set_metadata),
    ("DELETE", "/api/vApp/*/metadata/*", "metadata:delete", Bearer, "", delete_metadata),
    ("DELETE", "/api/vApp/*/metadata/*/*", "metadata:delete", Bearer, "", delete_metadata),
    ("POST", "/api/vApp/*/power/action/powerOn", "power:on", Bearer, "", |c| power(c, PowerAction::On)),
    ("POST", "/api/vApp/*/power/action/powerOff", "power:off", Bearer, "", |c| power(c, PowerAction::Off)),
    ("POST", "/api/vApp/*/power/action/shutdown", "power:shutdown", Bearer, "", |c| power(c, PowerAction::Shutdown)),
    ("POST", "/api/vApp/*/power/action/reset", "power:reset", Bearer, "", |c| power(c, PowerAction::Reset)),
    ("POST", "/api/vApp/*/power/action/reboot", "power:reboot", Bearer, "", |c| power(c, PowerAction::Reboot)),
    ("POST", "/api/vApp/*/power/action/suspend", "power:suspend", Bearer, "", |c| power(c, PowerAction::Suspend)),
    ("POST", "/api/vApp/*/action/deploy", "deploy", Bearer, "deployVAppParams", deploy),
    ("POST", "/api/vApp/*/action/undeploy", "undeploy", Bearer, "undeployVAppParams", undeploy),
    ("POST", "/api/vApp/*/action/discardSuspendedState", "discard", Bearer, "",
        |c| { let t = c.target()?; let t = c.model.discard_suspended_state(c.who, t)?; c.task(t) }),
];

fn matches(pattern: &str, path: &str) -> Option<Vec<String>> {
    let mut args = Vec::new();
    let (mut p, mut s) = (pattern.split('/'), path.trim_end_matches('/').split('/'));
    loop {
        match (p.next(), s.next()) {
            (None, None) => return Some(args),
            (Some(pattern), Some(segment)) => match pattern.strip_suffix('*') {
                Some(prefix) => args.push(segment.strip_prefix(prefix).filter(|a| !a.is_empty())?.to_string()),
                None if pattern == segment => {}
                None => return None,
            },
            _ => return None,
        }
    }
}

fn find(request: &Request) -> Option<(&'static Route, Vec<String>)> {
    ROUTES.iter().filter(|r| r.0 == request.method).find_map(|r| Some((r, matches(r.1, &request.path)?)))
}

/// The name of the operation (`query:vm` for queries), and whether it changes anything.
pub fn operation(request: &Request) -> (Cow<'static, str>, bool) {
    match find(request) {
        Some((r, _)) if r.2 == "query" => {
            let kind: String = request.parameter("type").unwrap_or("").chars().take(32).collect();
            (Cow::Owned(format!("query:{kind}")), false)
        }
        Some((r, _)) => (Cow::Borrowed(r.2), r.0 != "GET" && r.3 == Bearer && r.2 != "logout"),
        None => (Cow::Borrowed("unknown"), false),
    }
}

/// VCD's web page, before its script runs.
const PORTAL: &str = "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>VMware Cloud \
                      Director</title><base href=\"/\"></head>\n<body><vcd-root></vcd-root></body></html>";

/// Carries out a request on the model.
pub fn answer(
    model: &mut Model,
    api: &Api,
    request: &Request,
    request_id: &str,
    query_fault: Option<QueryFault>,
) -> Reply {
    let Some((route, args)) = find(request) else {
        // Every path below these is one page.
        if ["/tenant/", "/provider/"].iter().any(|place| request.path.starts_with(place)) && request.method == "GET" {
            return Reply { status: 200, content_type: "text/html".into(), body: PORTAL.into(), headers: Vec::new() };
        }
        let known = ROUTES.iter().any(|r| matches(r.1, &request.path).is_some());
        let (status, minor, message) = if known {
            (405, "METHOD_NOT_ALLOWED", "The method is not allowed here.")
        } else {
            (404, "NOT_FOUND", "HTTP 404 Not Found")
        };
        return refusal(api, request, request_id, &Refusal::new(status, minor, message));
    };
    let mut call = Call {
        model,
        api,
        request,
        args,
        who: UserId::of(0),
        bearer: String::new(),
        version: String::new(),
        query_fault,
    };
    let result = call.check(route).and_then(|()| (route.5)(&mut call));
    result.unwrap_or_else(|r| refusal(api, request, request_id, &r))
}

fn refusal(api: &Api, request: &Request, request_id: &str, refusal: &Refusal) -> Reply {
    if refusal.status == 401 {
        // The answer does not say why, only how to log in.
        let how = "Basic realm=\"VMware vCloud API\", Bearer realm=\"VMware vCloud API\"";
        let headers = vec![("content-type", "text/plain".to_owned()), ("www-authenticate", how.to_owned())];
        return Reply { headers, ..Reply::empty(401) };
    }
    let message = format!("[ {request_id} ] {}", refusal.message);
    if !request.path.starts_with("/api/") {
        let body = json!({"minorErrorCode": refusal.minor, "message": message, "stackTrace": null});
        return Reply::json(refusal.status, &body);
    }
    let mut w = Writer::new(api.prefixes, "Error");
    w.attr("majorErrorCode", refusal.status.to_string()).attr("minorErrorCode", &refusal.minor);
    w.attr("message", message).attr("stackTrace", "com.vmware.vcloud.api.presentation.service.Sim");
    Reply::xml(refusal.status, "error", "38.1", w.finish())
}

fn not_acceptable(api: &Api, version: &str) -> Refusal {
    let marked = |(version, deprecated): &(String, bool)| format!("{version}{}", if *deprecated { " [D]" } else { "" });
    let offered: Vec<String> = api.versions.iter().rev().map(marked).collect();
    let message = format!(
        "The request has invalid accept header: Unsupported API version: {version}. Supported API versions are: [{}] ([D] \
         indicates deprecated versions)",
        offered.join(", ")
    );
    Refusal::new(406, "NOT_ACCEPTABLE", message)
}

fn unauthorized() -> Refusal {
    Refusal::new(401, "UNAUTHORIZED", "")
}

impl Call<'_> {
    fn check(&mut self, route: &Route) -> Result<(), Refusal> {
        let request = self.request;
        if route.3 != Nothing {
            let accept = request.accept.as_deref().unwrap_or("");
            let version = accept.split(';').skip(1).find_map(|p| p.trim().strip_prefix("version="));
            let version = version.unwrap_or("").split(',').next().unwrap_or("").trim();
            if !self.api.versions.iter().any(|(v, _)| v == version) {
                return Err(not_acceptable(self.api, version));
            }
            self.version = version.into();
        }
        if route.3 == Bearer {
            let authorization = request.authorization.as_deref().unwrap_or("");
            let (scheme, bearer) = authorization.split_once(' ').unwrap_or(("", ""));
            if !scheme.eq_ignore_ascii_case("bearer") {
                return Err(unauthorized());
            }
            self.who = self.model.authenticate(bearer.trim()).ok_or_else(unauthorized)?;
            self.bearer = bearer.trim().into();
        }
        if !route.4.is_empty() && !request.body.is_empty() {
            let given = request.content_type.as_deref().unwrap_or("");
            let given = given.split(';').next().unwrap_or("").trim();
            let wanted = if route.4 == FORM { FORM.to_string() } else { media(route.4) };
            if !given.eq_ignore_ascii_case(&wanted) {
                let message = format!("The request has invalid content type: {given}");
                return Err(Refusal::new(415, "UNSUPPORTED_MEDIA_TYPE", message));
            }
        }
        Ok(())
    }

    fn view(&self) -> View<'_> {
        View { model: self.model, base: &self.request.base, prefixes: self.api.prefixes }
    }

    fn id<I: Id>(&self, index: usize) -> Result<I, Refusal> {
        let text = self.args.get(index).map_or("", String::as_str);
        self.model.parse_uuid(text).ok_or_else(|| {
            let entity = format!("com.vmware.vcloud.entity.{}:{text}", I::ENTITY);
            Refusal::new(403, "ACCESS_TO_RESOURCE_IS_FORBIDDEN", format!("No access to entity \"{entity}\"."))
        })
    }

    /// `vapp-UUID` or `vm-UUID` in the first argument.
    fn target(&self) -> Result<Target, Refusal> {
        let text = self.args.first().map_or("", String::as_str);
        let vapp = text.strip_prefix("vapp-").and_then(|u| self.model.parse_uuid(u)).map(Target::Vapp);
        let vm = || text.strip_prefix("vm-").and_then(|u| self.model.parse_uuid(u)).map(Target::Vm);
        vapp.or_else(vm).ok_or_else(|| {
            let message = format!("No access to entity \"com.vmware.vcloud.entity.vapp:{text}\".");
            Refusal::new(403, "ACCESS_TO_RESOURCE_IS_FORBIDDEN", message)
        })
    }

    /// Answers with the document of the entity that the path names.
    fn show<I: Id>(&self, media_name: &str, write: fn(&View<'_>, UserId, I) -> Result<String, Refusal>) -> Answer {
        let id = self.id(0)?;
        let text = write(&self.view(), self.who, id)?;
        Ok(self.xml(200, media_name, text))
    }

    fn xml(&self, status: u16, media_name: &str, text: String) -> Reply {
        Reply::xml(status, media_name, &self.version, text)
    }

    fn task(&self, id: TaskId) -> Answer {
        let task = self.model.get_task(self.who, id)?;
        let mut reply = self.xml(202, "task", self.view().task(id, task));
        reply.headers.push(("location", self.view().href(id)));
        Ok(reply)
    }

    /// Reads the XML body. Its root must have this name, and its content must match the schema.
    fn body<T>(&self, root: &str, read: impl FnOnce(&Model, Node<'_, '_>) -> Result<T, Refusal>) -> Result<T, Refusal> {
        let wrong = |why: String| Refusal::bad(format!("Bad request\n - {why}"));
        let text = std::str::from_utf8(&self.request.body).map_err(|e| wrong(e.to_string()))?;
        let options = ParsingOptions { nodes_limit: MAX_NODES, ..ParsingOptions::default() };
        let document = Document::parse_with_options(text, options)
            .map_err(|e| wrong(format!("Unexpected JAXB Exception: {e}")))?;
        let node = document.root_element();
        if node.tag_name().name() != root {
            return Err(wrong(format!(
                "Unexpected JAXB Exception: the root is {}, not {root}",
                node.tag_name().name()
            )));
        }
        check_schema(node).map_err(Refusal::bad)?;
        read(self.model, node)
    }
}

/// Maximum number of XML nodes in a body.
const MAX_NODES: u32 = 20_000;

// Versions, sessions, orgs.

fn versions(c: &mut Call<'_>) -> Answer {
    let mut w = Writer::versions();
    for (version, deprecated) in &c.api.versions {
        w.start("VersionInfo").attr("deprecated", deprecated.to_string()).leaf("Version", version);
        w.leaf("LoginUrl", format!("{}/api/sessions", c.request.base));
        w.leaf("ProviderLoginUrl", format!("{}/cloudapi/1.0.0/sessions/provider", c.request.base)).end();
    }
    Ok(Reply { status: 200, content_type: "text/xml".into(), body: w.finish(), headers: Vec::new() })
}

fn login_token(c: &mut Call<'_>, provider: bool) -> Answer {
    let form: Vec<(Cow<'_, str>, Cow<'_, str>)> = form_urlencoded::parse(&c.request.body).collect();
    let field = |name: &str| form.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v);
    if field("grant_type") != "refresh_token" {
        return Err(Refusal::new(400, "unsupported_grant_type", "grant_type must be refresh_token"));
    }
    let org = if provider { "System" } else { c.args.first().map_or("", String::as_str) };
    let grant = c.model.login_token(org, field("refresh_token"))?;
    let body = json!({
        "access_token": &*grant.bearer, "token_type": "Bearer", "expires_in": grant.life_s, "scope": "openid",
        "refresh_token": grant.next.as_deref(),
    });
    Ok(Reply::json(200, &body))
}

fn login_password(c: &mut Call<'_>) -> Answer {
    let given = c.request.authorization.as_deref().unwrap_or("");
    let decoded =
        given.split_once(' ').filter(|(s, _)| s.eq_ignore_ascii_case("basic")).and_then(|(_, b)| base64(b.trim()));
    let text = decoded.and_then(|b| String::from_utf8(b).ok()).ok_or_else(unauthorized)?;
    let (login, password) = text.split_once(':').ok_or_else(unauthorized)?;
    let (user, org) = login.rsplit_once('@').ok_or_else(unauthorized)?;
    let (bearer, _) = c.model.login_password(org, user, password)?;
    c.who = c.model.authenticate(&bearer).ok_or_else(unauthorized)?;
    let mut reply = session_json(c, 200);
    reply.headers.push(("x-vmware-vcloud-access-token", bearer.to_string()));
    reply.headers.push(("x-vmware-vcloud-token-type", "Bearer".into()));
    Ok(reply)
}

/// Base64 with the standard alphabet; padding is optional.
fn base64(text: &str) -> Option<Vec<u8>> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut have) = (0u32, 0u32);
    for b in text.trim_end_matches('=').bytes() {
        let value = ALPHABET.iter().position(|a| *a == b)?;
        bits = (bits << 6 | u32::try_from(value).ok()?) & 0xfff;
        have += 6;
        if have >= 8 {
            have -= 8;
            out.push((bits >> have & 0xff) as u8);
        }
    }
    Some(out)
}

fn session_names(c: &Call<'_>) -> (String, String, Option<OrgId>) {
    let user = c.model.users.get(&c.who);
    let org = user.and_then(|u| c.model.orgs.get(&u.org));
    let name = |n: Option<&Arc<str>>| n.map(|n| n.to_string()).unwrap_or_default();
    (name(user.map(|u| &u.name)), name(org.map(|o| &o.name)), user.map(|u| u.org))
}

fn session_json(c: &mut Call<'_>, status: u16) -> Reply {
    let (user, org, org_id) = session_names(c);
    let org_id = org_id.map(|id| c.view().urn(id)).unwrap_or_default();
    let body = json!({
        "id": format!("urn:vcloud:session:{}", c.model.uuid(c.who)),
        "user": {"name": user, "id": c.view().urn(c.who)},
        "org": {"name": org, "id": org_id},
        "operatingOrg": {"name": org, "id": org_id},
        "roles": ["vApp User"], "roleRefs": [{"name": "vApp User", "id": ROLE}], "location": "sim", "sessionIdleTimeoutMinutes": 30,
    });
    Reply::json(status, &body)
}

/// All users have this role. Each user has their own rights in it.
const ROLE: &str = "urn:vcloud:role:00000000-0000-4000-8000-000000000001";

fn rights(c: &mut Call<'_>) -> Answer {
    if c.args.first().map(String::as_str) != Some(ROLE) {
        return Err(Refusal::new(403, "ACCESS_TO_RESOURCE_IS_FORBIDDEN", "No access to the role."));
    }
    let size = c.request.parameter("pageSize").and_then(|n| n.parse().ok()).unwrap_or(25);
    if !(1..=query::MAX_PAGE_SIZE).contains(&size) {
        return Err(Refusal::bad(format!("pageSize must be from 1 to {}.", query::MAX_PAGE_SIZE)));
    }
    let page: usize = c.request.parameter("page").and_then(|n| n.parse().ok()).filter(|n| *n > 0).unwrap_or(1);
    let all = c.model.users.get(&c.who).map(|u| u.rights.clone()).unwrap_or_default();
    let shown = all.iter().skip((page - 1) * size).take(size);
    let values: Vec<_> = shown.map(|right| json!({"name": right.name()})).collect();
    let pages = all.len().div_ceil(size);
    Ok(Reply::json(
        200,
        &json!({"resultTotal": all.len(), "pageCount": pages, "page": page, "pageSize": size, "values": values}),
    ))
}

fn lease_settings(c: &mut Call<'_>) -> Answer {
    let id: OrgId = c.id(0)?;
    let may = c.model.users.get(&c.who).is_some_and(|u| u.org == id && u.rights.contains(&Right::ViewOrg));
    let org = c.model.orgs.get(&id).filter(|_| may);
    let rules = &org.ok_or_else(|| Refusal::new(403, "ACCESS_TO_RESOURCE_IS_FORBIDDEN", "No access."))?.leases;
    let mut w = Writer::new(c.api.prefixes, "VAppLeaseSettings");
    w.leaf("DeleteOnStorageLeaseExpiration", (!rules.keep_expired).to_string());
    w.leaf("DeploymentLeaseSeconds", rules.deployment_s.1.to_string());
    w.leaf("StorageLeaseSeconds", rules.storage_s.1.to_string());
    w.leaf("PowerOffOnRuntimeLeaseExpiration", rules.power_off.to_string());
    Ok(c.xml(200, "vAppLeaseSettings", w.finish()))
}

fn session_xml(c: &mut Call<'_>) -> Answer {
    let (user, org, org_id) = session_names(c);
    let mut w = Writer::new(c.api.prefixes, "Session");
    w.attr("user", user).attr("org", org).attr("roles", "vApp User");
    w.attr("href", format!("{}/api/session", c.request.base)).attr("type", media("session"));
    for (path, name) in [("org", "orgList"), ("query", "query.queryList"), ("session", "session")] {
        w.start("Link").attr("rel", if name == "session" { "remove" } else { "down" });
        w.attr("href", format!("{}/api/{path}", c.request.base)).attr("type", media(name)).end();
    }
    if let Some(id) = org_id {
        w.start("Link").attr("rel", "down").attr("href", c.view().href(id)).attr("type", media("org")).end();
    }
    Ok(c.xml(200, "session", w.finish()))
}

fn logout(c: &mut Call<'_>) -> Answer {
    c.model.logout(&c.bearer);
    Ok(Reply::empty(204))
}

fn orgs(c: &mut Call<'_>) -> Answer {
    let (_, _, org) = session_names(c);
    Ok(c.xml(200, "orgList", c.view().orgs(org)))
}

// Entities that hardly ever change.

fn catalog(c: &mut Call<'_>) -> Answer {
    let id: CatalogId = c.id(0)?;
    let org = c.model.users.get(&c.who).map(|u| u.org);
    let catalog = c.model.catalogs.get(&id).filter(|x| Some(x.org) == org || x.shared || c.model.is_provider(c.who));
    let catalog = catalog.ok_or_else(|| c.model.gone(id))?;
    Ok(c.xml(200, "catalog", c.view().catalog(id, catalog)))
}

fn catalog_item(c: &mut Call<'_>) -> Answer {
    let id: ItemId = c.id(0)?;
    let template = TemplateId::of(id.number());
    let text = c.view().item(id, template, c.model.get_template(c.who, template)?);
    Ok(c.xml(200, "catalogItem", text))
}

fn template_vm(c: &mut Call<'_>) -> Answer {
    let id: TemplateVmId = c.id(0)?;
    let seen = |vm: &&TemplateVm| c.model.get_template(c.who, vm.template).is_ok();
    let vm = c.model.template_vms.get(&id).filter(seen).ok_or_else(|| c.model.gone(id))?;
    Ok(c.xml(200, "vm", c.view().template_vm(id, vm)))
}

fn network(c: &mut Call<'_>) -> Answer {
    let id: NetworkId = c.id(0)?;
    let seen = |n: &&Network| c.model.sees_vdc(c.who, n.vdc);
    let network = c.model.networks.get(&id).filter(seen).ok_or_else(|| c.model.gone(id))?;
    Ok(c.xml(200, "orgVdcNetwork", c.view().network(id, network)))
}

/// A network by the newer API, which shows its owner.
fn network_owner(c: &mut Call<'_>) -> Answer {
    let id: NetworkId = body::id_of(c.model, c.args.first().map_or("", String::as_str))?;
    let network = c.model.networks.get(&id).filter(|n| c.model.sees_vdc(c.who, n.vdc));
    let network = network.ok_or_else(|| c.model.gone(id))?;
    let owner = match network.reach {
        Reach::Group | Reach::GroupAlone | Reach::GroupByVdc => group_of(&c.view(), network.vdc),
        _ => c.view().urn(network.vdc),
    };
    Ok(Reply::json(200, &json!({"id": c.view().urn(id), "name": &*network.name, "ownerRef": {"id": owner}})))
}

fn profile(c: &mut Call<'_>) -> Answer {
    let id: ProfileId = c.id(0)?;
    let seen = |p: &&Profile| c.model.sees_vdc(c.who, p.vdc);
    let profile = c.model.profiles.get(&id).filter(seen).ok_or_else(|| c.model.gone(id))?;
    Ok(c.xml(200, "vdcStorageProfile", c.view().profile(id, profile)))
}

fn policies(c: &mut Call<'_>) -> Answer {
    let vdc: VdcId = body::id_of(c.model, c.args.first().map_or("", String::as_str))?;
    c.model.get_vdc(c.who, vdc)?;
    let escapes = c.model.settings.filter_escapes;
    let filter =
        c.request.parameter("filter").map(|f| query::parse(f, &["name", "isSizingOnly", "id"], escapes)).transpose();
    let filter = filter.map_err(Refusal::bad)?;
    let mut values = Vec::new();
    for (id, p) in c.model.policies.iter().filter(|(_, p)| p.vdc == vdc) {
        let mut record = Record::default();
        record.put("name", &*p.name).put("isSizingOnly", p.sizing.to_string()).put("id", c.view().urn(*id));
        if filter.as_ref().is_none_or(|f| f.matches(&record)) {
            values.push(json!({
                "id": c.view().urn(*id), "name": &*p.name, "isSizingOnly": p.sizing, "cpuCount": p.cpus,
                "coresPerSocket": p.cores_per_socket, "memory": p.memory_mb, "isVgpuPolicy": p.vgpu,
            }));
        }
    }
    let body = json!({"resultTotal": values.len(), "pageCount": 1, "page": 1, "pageSize": 128, "values": values});
    Ok(Reply::json(200, &body))
}

// Changes.

fn created(c: &mut Call<'_>, id: VappId) -> Answer {
    let text = c.view().vapp(id, c.model.get_vapp(c.who, id)?);
    let mut reply = c.xml(201, "vApp", text);
    reply.headers.push(("location", c.view().href(id)));
    Ok(reply)
}

fn instantiate(c: &mut Call<'_>) -> Answer {
    let vdc = c.id(0)?;
    let (template, create) =
        c.body("InstantiateVAppTemplateParams", |m, root| Ok((body::template(m, root)?, body::create(m, root)?)))?;
    let (id, _) = c.model.instantiate(c.who, vdc, template, create)?;
    created(c, id)
}

fn compose(c: &mut Call<'_>) -> Answer {
    let vdc = c.id(0)?;
    let create = c.body("ComposeVAppParams", body::create)?;
    let (id, _) = c.model.compose(c.who, vdc, create)?;
    created(c, id)
}

fn recompose(c: &mut Call<'_>) -> Answer {
    let id = c.id(0)?;
    let recompose = c.body("RecomposeVAppParams", body::recompose)?;
    let task = c.model.recompose(c.who, id, recompose)?;
    c.task(task)
}

fn update_vapp(c: &mut Call<'_>, root: &str, read: fn(&Model, Node<'_, '_>) -> Result<VappChange, Refusal>) -> Answer {
    let id = c.id(0)?;
    let change = c.body(root, read)?;
    let task = c.model.update_vapp(c.who, id, change)?;
    c.task(task)
}

fn update_vm(c: &mut Call<'_>, root: &str, read: fn(&Model, Node<'_, '_>) -> Result<VmChange, Refusal>) -> Answer {
    let id = c.id(0)?;
    let change = c.body(root, read)?;
    let task = c.model.update_vm(c.who, id, change)?;
    c.task(task)
}

fn one_item(_: &Model, node: Node<'_, '_>) -> Result<VmChange, Refusal> {
    let mut change = VmChange::default();
    body::hardware_item(node, &mut change.hardware)?;
    Ok(change)
}

fn items(_: &Model, node: Node<'_, '_>) -> Result<VmChange, Refusal> {
    Ok(VmChange { hardware: body::hardware(node)?, ..VmChange::default() })
}

fn properties(_: &Model, node: Node<'_, '_>) -> Result<VmChange, Refusal> {
    let all = crate::xml::children(node, "ProductSection").flat_map(body::properties).collect();
    Ok(VmChange { properties: Some(all), ..VmChange::default() })
}

fn delete_vapp(c: &mut Call<'_>) -> Answer {
    let id = c.id(0)?;
    let forced = c.request.parameter("force").is_some_and(|f| f.eq_ignore_ascii_case("true"));
    let task = c.model.delete_vapp(c.who, id, forced)?;
    c.task(task)
}

fn power(c: &mut Call<'_>, action: PowerAction) -> Answer {
    let target = c.target()?;
    let task = c.model.power(c.who, target, action)?;
    c.task(task)
}

fn deploy(c: &mut Call<'_>) -> Answer {
    let target = c.target()?;
    let (power_on, customize) =
        if c.request.body.is_empty() { (true, false) } else { c.body("DeployVAppParams", |_, n| Ok(body::deploy(n)))? };
    let task = c.model.deploy(c.who, target, power_on, customize)?;
    c.task(task)
}

fn undeploy(c: &mut Call<'_>) -> Answer {
    let target = c.target()?;
    let action = if c.request.body.is_empty() {
        UndeployAction::PowerOff
    } else {
        c.body("UndeployVAppParams", |_, n| body::undeploy(n))?
    };
    let task = c.model.undeploy(c.who, target, action)?;
    c.task(task)
}

fn cancel(c: &mut Call<'_>) -> Answer {
    let id = c.id(0)?;
    c.model.cancel_task(c.who, id)?;
    Ok(Reply::empty(204))
}

/// The key in a metadata path, with or without its domain.
fn metadata_key(c: &Call<'_>) -> Option<String> {
    c.args.get(1..).and_then(|a| a.last()).cloned()
}

fn metadata(c: &mut Call<'_>) -> Answer {
    let metadata = match c.target()? {
        Target::Vapp(id) => &c.model.get_vapp(c.who, id)?.metadata,
        Target::Vm(id) => &c.model.get_vm(c.who, id)?.metadata,
    };
    let key = metadata_key(c);
    let text = c.view().metadata(metadata, key.as_deref());
    let missing = || Refusal::new(403, "ACCESS_TO_RESOURCE_IS_FORBIDDEN", "The metadata key does not exist.");
    Ok(c.xml(200, if key.is_some() { "metadata.value" } else { "metadata" }, text.ok_or_else(missing)?))
}

fn set_metadata(c: &mut Call<'_>) -> Answer {
    let target = c.target()?;
    let entries = match metadata_key(c) {
        Some(key) => vec![c.body("MetadataValue", |_, n| body::metadata_value(n, &key))?],
        None => c.body("Metadata", |_, n| body::metadata(n))?,
    };
    let task = c.model.set_metadata(c.who, target, entries)?;
    c.task(task)
}

fn delete_metadata(c: &mut Call<'_>) -> Answer {
    let target = c.target()?;
    let key = metadata_key(c).unwrap_or_default();
    let task = c.model.set_metadata(c.who, target, vec![(key.into(), None)])?;
    c.task(task)
}

// Queries.

/// Type, element, attributes.
type QueryType = (&'static str, &'static str, &'static [&'static str]);

const QUERY_TYPES: &[QueryType] = &[
    (
        "vm",
        "VMRecord",
        &[
            "href",
            "id",
            "name",
            "container",
            "containerName",
            "containerStatus",
            "ownerName",
            "vdc",
            "vdcName",
            "description",
            "isVAppTemplate",
            "isDeleted",
            "isDeployed",
            "isBusy",
            "isPublished",
            "isVdcEnabled",
            "guestOs",
            "detectedGuestOs",
            "numberOfCpus",
            "memoryMB",
            "status",
            "network",
            "networkName",
            "ipAddress",
            "catalogName",
            "hardwareVersion",
            "vmToolsStatus",
            "vmToolsVersion",
            "isInMaintenanceMode",
            "isAutoNature",
            "storageProfileName",
            "gcStatus",
            "autoUndeployDate",
            "autoDeleteDate",
            "isExpired",
            "dateCreated",
            "totalStorageAllocatedMb",
            "task",
            "taskStatus",
            "taskStatusName",
            "taskDetails",
            "hostName",
        ],
    ),
    (
        "vApp",
        "VAppRecord",
        &[
            "href",
            "id",
            "name",
            "creationDate",
            "isBusy",
            "isDeployed",
            "isEnabled",
            "isExpired",
            "isInMaintenanceMode",
            "isPublic",
            "ownerName",
            "status",
            "vdc",
            "vdcName",
            "description",
            "isAutoNature",
            "numberOfCpus",
            "memoryAllocationMB",
            "totalStorageAllocatedMb",
        ],
    ),
    (
        "task",
        "TaskRecord",
        &[
            "href",
            "id",
            "name",
            "org",
            "orgName",
            "operationFull",
            "message",
            "startDate",
            "endDate",
            "status",
            "progress",
            "ownerName",
            "object",
            "objectType",
            "objectName",
            "serviceNamespace",
        ],
    ),
    ("organization", "OrgRecord", &["href", "id", "name", "displayName", "isEnabled", "isReadOnly"]),
    (
        "orgVdc",
        "OrgVdcRecord",
        &["href", "id", "name", "isEnabled", "isBusy", "status", "org", "orgName", "numberOfVApps", "vdc", "vdcName"],
    ),
    (
        "catalog",
        "CatalogRecord",
        &[
            "href",
            "id",
            "name",
            "isPublished",
            "isShared",
            "isLocal",
            "orgName",
            "status",
            "creationDate",
            "owner",
            "ownerName",
        ],
    ),
    (
        "vAppTemplate",
        "VAppTemplateRecord",
        &[
            "href",
            "id",
            "name",
            "catalog",
            "catalogName",
            "status",
            "isExpired",
            "isPublished",
            "creationDate",
            "ownerName",
            "org",
            "vdc",
            "vdcName",
            "isBusy",
            "isDeployed",
            "isEnabled",
            "isGoldMaster",
            "storageProfileName",
        ],
    ),
    (
        "catalogItem",
        "CatalogItemRecord",
        &[
            "href",
            "id",
            "name",
            "catalog",
            "catalogName",
            "entity",
            "entityName",
            "entityType",
            "status",
            "isExpired",
            "creationDate",
            "ownerName",
            "vdc",
            "vdcName",
            "isVdcEnabled",
        ],
    ),
    (
        "orgVdcNetwork",
        "OrgVdcNetworkRecord",
        &[
            "href",
            "id",
            "name",
            "defaultGateway",
            "netmask",
            "dns1",
            "linkType",
            "isBusy",
            "isShared",
            "isIpScopeInherited",
            "vdcGroupId",
            "vdc",
            "vdcName",
            "isVdcEnabled",
        ],
    ),
    (
        "orgVdcStorageProfile",
        "OrgVdcStorageProfileRecord",
        &[
            "href",
            "id",
            "name",
            "isEnabled",
            "isDefaultStorageProfile",
            "storageUsedMB",
            "storageLimitMB",
            "isVdcBusy",
            "vdc",
            "vdcName",
            "isVdcEnabled",
        ],
    ),
];

/// The queries of provider users: type, element, the type whose records it shows, attributes that these records lack,
/// and additional attributes.
type AdminType = (&'static str, &'static str, &'static str, &'static [&'static str], &'static [&'static str]);

const ADMIN_TYPES: &[AdminType] = &[
    (
        "adminVM",
        "AdminVMRecord",
        "vm",
        &[
            "isBusy",
            "autoUndeployDate",
            "autoDeleteDate",
            "ownerName",
            "network",
            "isInMaintenanceMode",
            "vmToolsStatus",
            "task",
            "taskStatus",
            "taskStatusName",
            "taskDetails",
        ],
        &["org"],
    ),
    ("adminVApp", "AdminVAppRecord", "vApp", &["isPublic"], &["org", "numberOfVMs", "storageKB", "isVdcEnabled"]),
    ("adminTask", "AdminTaskRecord", "task", &[], &[]),
    ("adminOrgVdc", "AdminOrgVdcRecord", "orgVdc", &[], &[]),
    ("adminCatalog", "AdminCatalogRecord", "catalog", &["status"], &[]),
    ("adminVAppTemplate", "AdminVAppTemplateRecord", "vAppTemplate", &[], &["catalogItem", "isVdcEnabled"]),
    ("adminCatalogItem", "AdminCatalogItemRecord", "catalogItem", &[], &[]),
    ("adminOrgVdcStorageProfile", "AdminOrgVdcStorageProfileRecord", "orgVdcStorageProfile", &[], &[]),
];

fn number(request: &Request, name: &str, default: usize) -> Result<usize, Refusal> {
    let Some(text) = request.parameter(name) else { return Ok(default) };
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| Refusal::bad(format!("{name} must be a positive number.")))
}

/// The types of queries.
fn query_list(c: &Call<'_>) -> Reply {
    let mut w = Writer::new(c.api.prefixes, "QueryList");
    for (kind, ..) in QUERY_TYPES {
        for format in ["records", "idrecords", "references"] {
            let href = format!("{}/api/query?type={kind}&format={format}", c.request.base);
            w.start("Link").attr("rel", "down").attr("href", href).attr("name", *kind);
            w.attr("type", media(&format!("query.{format}"))).end();
        }
    }
    c.xml(200, "query.queryList", w.finish())
}

fn query_service(c: &mut Call<'_>) -> Answer {
    let request = c.request;
    let Some(wanted) = request.parameter("type") else { return Ok(query_list(c)) };
    let admin = ADMIN_TYPES.iter().find(|(k, ..)| *k == wanted);
    if admin.is_some() && !c.model.is_provider(c.who) {
        return Err(Refusal::new(403, "ACCESS_TO_RESOURCE_IS_FORBIDDEN", "This query is for system administrators."));
    }
    let of = admin.map_or(wanted, |(_, _, kind, ..)| kind);
    let Some((kind, element, known)) = QUERY_TYPES.iter().find(|(k, ..)| *k == of) else {
        return Err(Refusal::bad(format!("Unknown query type '{wanted}'.")));
    };
    let (element, lacks, more) = admin.map_or((*element, [].as_slice(), [].as_slice()), |a| (a.1, a.3, a.4));
    let unknown_here = |name: &str| c.model.settings.unknown_fields.iter().any(|f| f == name);
    let known = known.iter().filter(|name| !lacks.contains(name)).chain(more).copied();
    let known: Vec<&str> = known.filter(|name| !unknown_here(name)).collect();
    // Provider users get their own org in the tenants' queries, and it is empty.
    let in_vain = admin.is_none() && c.model.is_provider(c.who) && *kind != "orgVdcNetwork";
    let page_size = number(request, "pageSize", query::DEFAULT_PAGE_SIZE)?;
    if page_size > query::MAX_PAGE_SIZE {
        return Err(Refusal::bad(format!("pageSize {page_size} is larger than {}.", query::MAX_PAGE_SIZE)));
    }
    let page_size = page_size.min(c.api.largest_page);
    let page = number(request, "page", 1)?;
    let unknown = |what: &str, name: &str| Refusal::bad(format!("Unknown property name {name} in {what}."));
    let fields: Option<Vec<&str>> = request.parameter("fields").map(|f| f.split(',').collect());
    let metadata_key = |f: &str| f.strip_prefix("metadata:").map(str::to_owned);
    if let Some(bad) = fields.iter().flatten().find(|f| !known.contains(*f) && metadata_key(f).is_none()) {
        return Err(unknown("fields", bad));
    }
    let mut filter_text = request.parameter("filter").unwrap_or("").to_string();
    if request.parameter("filterEncoded") == Some("true") && filter_text.contains('%') {
        filter_text = decode(&filter_text);
    }
    let filter = match filter_text.as_str() {
        "" => None,
        text => Some(query::parse(text, &known, c.model.settings.filter_escapes).map_err(Refusal::bad)?),
    };
    let in_vain = in_vain || (c.model.settings.bracketed_filter_finds_nothing && query::is_bracketed(&filter_text));

    let view = c.view();
    let mut records = match *kind {
        _ if in_vain => Vec::new(),
        "vm" => {
            let mut all: Vec<Record> =
                c.model.query_vms(c.who, c.query_fault).iter().map(|r| view.vm_record(r)).collect();
            let templates = thin(c.model.query_template_vms(c.who).into_iter(), c.query_fault);
            all.extend(templates.filter_map(|r| view.template_vm_record(&r)));
            all
        }
        "vApp" => c.model.query_vapps(c.who, c.query_fault).iter().map(|r| view.vapp_record(r)).collect(),
        "task" => thin(c.model.query_tasks(c.who), c.query_fault).map(|(id, t)| view.task_record(id, t)).collect(),
        other => thin(view.static_records(c.who, other).into_iter(), c.query_fault).collect(),
    };
    if let Some(filter) = &filter {
        records.retain(|r| filter.matches(r));
    }
    for (parameter, descending) in [("sortAsc", false), ("sortDesc", true)] {
        if let Some(attribute) = request.parameter(parameter) {
            if !known.contains(&attribute) {
                return Err(unknown(parameter, attribute));
            }
            query::sort(&mut records, attribute, descending);
        }
    }

    let total = records.len();
    let skip = (page - 1).saturating_mul(page_size);
    let format = request.parameter("format").unwrap_or("records");
    let mut w = Writer::new(c.api.prefixes, if format == "references" { "References" } else { "QueryResultRecords" });
    let (reply_media, page_link) = match format {
        "records" | "idrecords" | "references" => (format!("query.{format}"), |n| page_href(request, n)),
        other => return Err(Refusal::bad(format!("Unknown format '{other}'."))),
    };
    w.attr("name", *kind).attr("type", media(&reply_media)).attr("page", page.to_string());
    w.attr("pageSize", page_size.to_string()).attr("total", total.to_string()).attr("href", page_link(page));
    let last = total.div_ceil(page_size).max(1);
    let links = [
        ("firstPage", 1, page > 1),
        ("previousPage", page - 1, page > 1),
        ("nextPage", page + 1, page < last),
        ("lastPage", last, page < last),
    ];
    for (rel, number, there) in links {
        if there {
            w.start("Link").attr("rel", rel).attr("href", page_link(number)).attr("type", media(&reply_media)).end();
        }
    }
    for record in records.iter().skip(skip).take(page_size) {
        w.start(if format == "references" { "Reference" } else { element });
        for (name, value) in &record.attributes {
            match (format, *name) {
                ("references", "name" | "href") => w.attr(name, value),
                ("references", _) => continue,
                _ if !known.contains(name) => continue,
                _ if fields.as_ref().is_some_and(|f| *name != "href" && !f.contains(name)) => continue,
                ("idrecords", "href") => w.attr("id", urn_of(value)),
                ("idrecords", _) if value.starts_with("http") => w.attr(name, urn_of(value)),
                _ => w.attr(name, value),
            };
        }
        let keys: Vec<String> = fields.iter().flatten().filter_map(|f| metadata_key(f)).collect();
        if !keys.is_empty() {
            w.start("Metadata");
            for (key, kind, value) in record.metadata.iter().filter(|(k, ..)| keys.contains(k)) {
                w.start("MetadataEntry").leaf("Key", key).start("TypedValue").attr("xsi:type", kind);
                w.leaf("Value", value).end().end();
            }
            w.end();
        }
        w.end();
    }
    Ok(c.xml(200, &reply_media, w.finish()))
}

/// The query's own link with another page.
fn page_href(request: &Request, page: usize) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(request.query.iter().filter(|(n, _)| n != "page"));
    query.append_pair("page", &page.to_string());
    format!("{}{}?{}", request.base, request.path, query.finish())
}

/// The URN for a link.
fn urn_of(href: &str) -> String {
    let mut parts = href.rsplit('/');
    let (last, kind) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    let (kind, uuid) = match last.split_once('-') {
        Some((k @ ("vapp" | "vm"), uuid)) => (k.to_string(), uuid),
        Some(("vappTemplate", uuid)) => ("vapptemplate".into(), uuid),
        _ => (kind.to_lowercase(), last),
    };
    format!("urn:vcloud:{kind}:{uuid}")
}

/// Percent-decoding.
pub fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        let mut ahead = bytes.clone();
        let digits = (b == b'%').then(|| Some((ahead.next()?, ahead.next()?))).flatten();
        let hex = |d: u8| (d as char).to_digit(16);
        match digits.and_then(|(h, l)| Some(hex(h)? << 4 | hex(l)?)) {
            Some(value) => {
                out.push(value as u8);
                bytes = ahead;
            }
            None => out.push(b),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
