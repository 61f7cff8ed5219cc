//! The front over real HTTP, asked by a plain client: what VCD answers, refuses, and how faults look from outside.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

use roxmltree::Document;
use std::io::Read as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};
use vcd_sim::faults::Rule;
use vcd_sim::model::{Model, Status, Target};
use vcd_sim::xml::Prefixes;
use vcd_sim::{Options, Server, routes::Api};

const CREATE: &str = include_str!("create.xml");
const XML: &str = "application/*+xml;version=38.1";
const DEADLINE: Duration = Duration::from_secs(20);

struct Client {
    server: Server,
    agent: ureq::Agent,
    bearer: String,
}

struct Answer {
    status: u16,
    headers: ureq::http::HeaderMap,
    body: String,
}

impl Answer {
    fn xml(&self) -> Document<'_> {
        Document::parse(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    fn root(&self, attribute: &str) -> String {
        self.xml().root_element().attribute(attribute).unwrap_or_default().into()
    }

    /// The given attribute of all elements of a name.
    fn all(&self, element: &str, attribute: &str) -> Vec<String> {
        let xml = self.xml();
        let found = xml.descendants().filter(|n| n.tag_name().name() == element);
        found.map(|n| n.attribute(attribute).unwrap_or_default().to_string()).collect()
    }

    fn text(&self, element: &str) -> Option<String> {
        self.xml().descendants().find(|n| n.tag_name().name() == element).map(|n| n.text().unwrap_or("").into())
    }
}

impl Client {
    fn with(options: Options) -> Self {
        let server = Server::start(options).unwrap();
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(DEADLINE)).build();
        let mut client = Client { server, agent: config.into(), bearer: String::new() };
        client.bearer = client.login("sim-api-token").expect("a bearer");
        client
    }

    /// A hundred times as fast as life, guests on a port of their own.
    fn start(guest_port: u16) -> Self {
        Self::with(Options { scale: 100.0, guest_port, ..Options::default() })
    }

    fn login(&self, token: &str) -> Option<String> {
        let url = format!("{}/oauth/tenant/ci-org/token", self.server.url());
        let form = [("grant_type", "refresh_token"), ("refresh_token", token)];
        let mut answer = self.agent.post(url).send_form(form).unwrap();
        let json: serde_json::Value = serde_json::from_reader(answer.body_mut().as_reader()).unwrap();
        json.get("access_token").and_then(|t| t.as_str()).map(String::from)
    }

    fn raw(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Result<Answer, ureq::Error> {
        let url = if path.starts_with("http") { path.into() } else { format!("{}{path}", self.server.url()) };
        let mut request = ureq::http::Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = match (method, body) {
            ("GET" | "DELETE", _) | (_, "") => self.agent.run(request.body(()).unwrap())?,
            _ => self.agent.run(request.body(body.to_string()).unwrap())?,
        };
        let text = response.body_mut().read_to_string()?;
        Ok(Answer { status: response.status().as_u16(), headers: response.headers().clone(), body: text })
    }

    fn call(&self, method: &str, path: &str, media: &str, body: &str) -> Answer {
        let bearer = format!("Bearer {}", self.bearer);
        let media = format!("application/vnd.vmware.vcloud.{media}+xml");
        let headers = [("accept", XML), ("authorization", bearer.as_str()), ("content-type", media.as_str())];
        self.raw(method, path, &headers[..if body.is_empty() { 2 } else { 3 }], body).unwrap()
    }

    fn get(&self, path: &str) -> Answer {
        self.call("GET", path, "", "")
    }

    fn href(&self, kind: &str, filter: &str) -> String {
        let found = self.get(&format!("/api/query?type={kind}&filter={filter}")).xml_href();
        assert_eq!(found.len(), 1, "{kind} {filter}");
        found[0].clone()
    }

    /// The create request with everything in it.
    fn create_body(&self, name: &str) -> String {
        CREATE
            .replace("{name}", name)
            .replace("{network}", &self.href("orgVdcNetwork", "name==ci-net"))
            .replace("{template}", &self.href("vAppTemplate", "name==ubuntu-22.04"))
            .replace("{template_vm}", &self.href("vm", "containerName==ubuntu-22.04;isVAppTemplate==true"))
            .replace("{profile}", &self.href("orgVdcStorageProfile", "name==ssd"))
    }

    fn post_create(&self, body: &str) -> Answer {
        let vdc = self.href("orgVdc", "name==ci-vdc");
        self.call("POST", &format!("{vdc}/action/instantiateVAppTemplate"), "instantiateVAppTemplateParams", body)
    }

    fn create(&self, name: &str) -> String {
        let made = self.post_create(&self.create_body(name));
        assert_eq!(made.status, 201, "{}", made.body);
        assert_eq!(made.root("status"), "0");
        let task = made.all("Task", "href")[0].clone();
        assert_eq!(self.finish(&task), "success");
        made.root("href")
    }

    /// Waits for the end of a task.
    fn finish(&self, task: &str) -> String {
        let until = Instant::now() + DEADLINE;
        loop {
            let status = self.get(task).root("status");
            if status != "running" || Instant::now() > until {
                return status;
            }
        }
    }

    fn fault(&self, json: serde_json::Value) {
        assert!(self.server.add_fault(Rule::from_json(&json).unwrap()));
    }

    fn control(&self, method: &str, path: &str, body: &str) -> serde_json::Value {
        let url = format!("{}{path}", self.server.control_url());
        let answer = self.raw(method, &url, &[], body).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
        serde_json::from_str(&answer.body).unwrap()
    }
}

impl Answer {
    fn xml_href(&self) -> Vec<String> {
        let xml = self.xml();
        let records = xml.root_element().children().filter(|n| n.tag_name().name().ends_with("Record"));
        records.map(|n| n.attribute("href").unwrap_or_default().into()).collect()
    }
}

fn wait_for(what: &str, mut test: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !test() {
        assert!(Instant::now() < until, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn one_request_creates_everything_and_one_deletes_it() {
    let c = Client::start(22_201);
    let vapp = c.create("ci-abc12345");
    let found = c.get("/api/query?type=vm&filter=(isVAppTemplate==false;containerName==ci-*)");
    let record = |a: &str| found.all("VMRecord", a).pop().unwrap_or_default();
    let expected = [
        ("containerName", "ci-abc12345"),
        ("status", "POWERED_ON"),
        ("ipAddress", "127.0.10.2"),
        ("numberOfCpus", "4"),
        ("memoryMB", "8192"),
        ("description", "group=ci-linux"),
        ("networkName", "ci-net"),
        ("storageProfileName", "ssd"),
        ("isBusy", "false"),
        ("taskStatus", "success"),
        ("taskStatusName", "vdcInstantiateVapp"),
    ];
    for (attribute, value) in expected {
        assert_eq!(record(attribute), value, "{attribute}");
    }
    let vm = c.get(&record("href"));
    assert_eq!(vm.text("NumCoresPerSocket").as_deref(), Some("2"));
    assert_eq!(vm.text("SizeMb").as_deref(), Some("81920"));

    wait_for("the guest's banner", || {
        let Ok(mut guest) = TcpStream::connect("127.0.10.2:22201") else { return false };
        let mut banner = [0u8; 17];
        guest.read_exact(&mut banner).is_ok() && banner == *b"SSH-2.0-vcd-sim\r\n"
    });
    let guest = c.control("GET", "/guest/127.0.10.2", "");
    assert_eq!(guest["password"], "S3cret!");
    assert_eq!(guest["script"], "#!/bin/sh\r\necho done\n");
    let poll = c.get("/api/query?type=vm&filter=isVAppTemplate==false");
    assert_eq!(poll.all("VMRecord", "gcStatus"), ["GC_COMPLETE"]);

    let plain = c.call("DELETE", &vapp, "", "");
    assert_eq!(plain.status, 400);
    assert!(plain.root("message").contains("Stop the vApp and try again."), "{}", plain.body);
    let forced = c.call("DELETE", &format!("{vapp}?force=true"), "", "");
    assert_eq!(forced.status, 202);
    let busy = c.call("DELETE", &format!("{vapp}?force=true"), "", "");
    assert_eq!((busy.status, busy.root("minorErrorCode").as_str()), (400, "BUSY_ENTITY"));
    assert_eq!(c.finish(&forced.root("href")), "success");
    let gone = c.get(&vapp);
    assert_eq!(gone.status, 403);
    assert!(gone.root("message").contains("com.vmware.vcloud.entity.vapp:"), "{}", gone.body);
    wait_for("the guest's end", || TcpStream::connect("127.0.10.2:22201").is_err());
}

#[test]
fn what_is_wrong_is_refused() {
    let c = Client::start(22_202);
    let good = c.create_body("ci-wrong");
    let cases = [
        (
            "order",
            good.replacen("<AllEULAsAccepted>true</AllEULAsAccepted>", "", 1).replacen(
                "<Description>",
                "<AllEULAsAccepted>true</AllEULAsAccepted><Description>",
                1,
            ),
            "cvc-complex-type.2.4.a",
        ),
        (
            "rasd order",
            good.replacen(
                "<rasd:ResourceType>3<",
                "<rasd:AllocationUnits>x</rasd:AllocationUnits><rasd:ResourceType>3<",
                1,
            ),
            "cvc-complex-type.2.4.a",
        ),
        ("namespace", good.replacen("<ovf:Info>guest</ovf:Info>", "<Info>guest</Info>", 1), "cvc-complex-type.2.4.a"),
        ("missing", good.replacen("<FenceMode>bridged</FenceMode>", "", 1), "cvc-complex-type.2.4.b"),
        ("info", good.replacen("<ovf:Info>guest</ovf:Info>", "", 1), "cvc-complex-type.2.4.a"),
        ("password", good.replacen("<AdminPassword>S3cret!</AdminPassword>", "", 1), "AdminPassword"),
        ("cores", good.replacen(">2</vmw:CoresPerSocket>", ">3</vmw:CoresPerSocket>", 1), "multiple"),
        ("shrink", good.replacen("\"81920\"", "\"100\"", 1), "cannot be reduced"),
        (
            "network",
            good.replacen("NetworkConnection network=\"ci-net\"", "NetworkConnection network=\"other\"", 1),
            "unknown network",
        ),
        ("no xml", "<Instantiate".into(), "JAXB"),
        (
            "dtd",
            format!("<!DOCTYPE x [<!ENTITY a \"b\">]>{}", good.split_once("?>").map_or(good.as_str(), |(_, b)| b)),
            "JAXB",
        ),
    ];
    for (what, body, text) in cases {
        let answer = c.post_create(&body);
        assert_eq!(
            (answer.status, answer.root("minorErrorCode").as_str()),
            (400, "BAD_REQUEST"),
            "{what}: {}",
            answer.body
        );
        assert!(answer.root("message").contains(text), "{what}: {}", answer.body);
    }
    assert_eq!(c.get("/api/query?type=vApp").root("total"), "0");
    c.create("ci-wrong");
    assert_eq!(c.post_create(&good).root("minorErrorCode"), "DUPLICATE_NAME");

    let vdc = c.href("orgVdc", "name==ci-vdc");
    let media = c.call("POST", &format!("{vdc}/action/instantiateVAppTemplate"), "composeVAppParams", &good);
    assert_eq!(media.status, 415);
    let huge = "x".repeat((1 << 20) + 1);
    let large = c.raw("POST", "/api/vdc/x/action/composeVApp", &[("accept", XML)], &huge);
    assert!(large.map_or(true, |a| a.status == 413));
}

#[test]
fn accept_and_authorization_are_checked() {
    let c = Client::start(22_203);
    let bearer = format!("bearer {}", c.bearer);
    let with = |accept: &str, authorization: &str| {
        c.raw("GET", "/api/org", &[("accept", accept), ("authorization", authorization)], "").unwrap()
    };
    assert_eq!(with(XML, &bearer).status, 200);
    for accept in ["*/*", "application/*+xml", "application/*+xml;version=9.0"] {
        assert_eq!(with(accept, &bearer).status, 406, "{accept}");
    }
    let refused = with(XML, "Bearer nonsense");
    assert_eq!((refused.status, refused.body.as_str()), (401, ""));
    assert!(refused.headers.contains_key("x-vmware-vcloud-request-id"));
    assert_eq!(c.raw("GET", "/api/versions", &[("accept", "*/*")], "").unwrap().status, 200);

    c.control("POST", "/admin", r#"{"action": "expire_bearers"}"#);
    assert_eq!(c.get("/api/org").status, 401);
    assert!(c.login("sim-api-token").is_some());
    c.control("POST", "/admin", r#"{"action": "revoke_token", "token": "sim-api-token"}"#);
    assert_eq!(c.login("sim-api-token"), None);

    // ci@ci-org:ci-password
    let basic = "Basic Y2lAY2ktb3JnOmNpLXBhc3N3b3Jk";
    let headers = [("accept", "application/*;version=38.1"), ("authorization", basic)];
    let session = c.raw("POST", "/cloudapi/1.0.0/sessions", &headers, "").unwrap();
    let token = session.headers.get("x-vmware-vcloud-access-token").unwrap().to_str().unwrap().to_string();
    let bearer = format!("Bearer {token}");
    let headers = [("accept", "application/json;version=38.1"), ("authorization", bearer.as_str())];
    let current = c.raw("GET", "/cloudapi/1.0.0/sessions/current", &headers, "").unwrap();
    assert!(current.body.contains("\"ci-org\""), "{}", current.body);
    assert_eq!(c.raw("DELETE", "/cloudapi/1.0.0/sessions/current", &headers, "").unwrap().status, 204);
    assert_eq!(c.raw("GET", "/cloudapi/1.0.0/sessions/current", &headers, "").unwrap().status, 401);
}

#[test]
fn queries_page_sort_and_filter() {
    let c = Client::start(22_204);
    c.server.with_model(|m| {
        let vdc = *m.vdcs.keys().next().unwrap();
        for i in (0..130).rev() {
            m.admin_foreign_vapp(vdc, &format!("x-{i:03}"), "");
        }
    });
    let mut page = "/api/query?type=vApp&pageSize=128&sortAsc=name&filter=(name==X-*)".to_string();
    let mut names = Vec::new();
    for expected in [128, 2] {
        let answer = c.get(&page);
        assert_eq!(answer.root("total"), "130");
        let found = answer.all("VAppRecord", "name");
        assert_eq!(found.len(), expected);
        names.extend(found);
        let xml = answer.xml();
        let next = xml.descendants().find(|n| n.attribute("rel") == Some("nextPage"));
        page = next.and_then(|n| n.attribute("href")).unwrap_or_default().to_string();
    }
    assert_eq!(page, "");
    let expected: Vec<String> = (0..130).map(|i| format!("x-{i:03}")).collect();
    assert_eq!(names, expected);
    assert_eq!(c.get("/api/query?type=vApp").all("VAppRecord", "name").len(), 25);
    for bad in ["pageSize=129", "filter=foo==1", "sortAsc=foo", "filter=(name==a", "page=0", "fields=foo", "format=x"] {
        assert_eq!(c.get(&format!("/api/query?type=vApp&{bad}")).status, 400, "{bad}");
    }
    assert_eq!(c.get("/api/query?type=VM").status, 400);
    let vdc = c.href("orgVdc", "name==ci-vdc").replace(':', "%3A").replace('/', "%2F");
    let counted = c.get(&format!("/api/query?type=vApp&filter=vdc=={vdc};name==x-00*&fields=name"));
    assert_eq!(counted.root("total"), "10");
    assert!(!counted.body.contains("creationDate"), "{}", counted.body);
}

#[test]
fn metadata_is_written_and_filtered_on() {
    let c = Client::start(22_205);
    let vapp = c.create("ci-meta");
    c.create("ci-other");
    let body = r#"<Metadata xmlns="http://www.vmware.com/vcloud/v1.5" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><MetadataEntry><Domain visibility="READWRITE">GENERAL</Domain><Key>vcd-instance-group</Key><TypedValue xsi:type="MetadataStringValue"><Value>ci &amp; co</Value></TypedValue></MetadataEntry></Metadata>"#;
    let task = c.call("POST", &format!("{vapp}/metadata"), "metadata", body);
    assert_eq!((task.status, c.finish(&task.root("href")).as_str()), (202, "success"), "{}", task.body);
    assert_eq!(c.get(&format!("{vapp}/metadata")).text("Value").as_deref(), Some("ci & co"));
    let query = "/api/query?type=vApp&fields=name,metadata:vcd-instance-group&filter=metadata:vcd-instance-group==STRING:ci%20%26%20co";
    let found = c.get(query);
    assert_eq!(found.all("VAppRecord", "name"), ["ci-meta"]);
    assert_eq!(found.text("Value").as_deref(), Some("ci & co"));
}

#[test]
fn documents_are_xml_in_every_prefix_style() {
    for (i, prefixes) in [Prefixes::Default, Prefixes::Vcloud, Prefixes::Numbered].into_iter().enumerate() {
        let api = Api { prefixes, ..Api::default() };
        let c = Client::with(Options { scale: 100.0, guest_port: 22_206 + i as u16, api, ..Options::default() });
        let vapp = c.create("ci-style");
        let vm = c.href("vm", "containerName==ci-style");
        let links = [
            vapp.clone(),
            format!("{vapp}/leaseSettingsSection/"),
            format!("{vapp}/networkConfigSection/"),
            vm.clone(),
            format!("{vm}/guestCustomizationSection/"),
            format!("{vm}/guestcustomizationstatus"),
            format!("{vm}/networkConnectionSection/"),
            format!("{vm}/virtualHardwareSection/"),
            format!("{vm}/virtualHardwareSection/cpu"),
            format!("{vm}/virtualHardwareSection/memory"),
            format!("{vm}/virtualHardwareSection/disks"),
            format!("{vm}/productSections/"),
            c.href("vAppTemplate", "name==two-vms"),
            c.href("vm", "name==second"),
            c.href("orgVdc", "name==ci-vdc"),
            c.href("organization", "name==ci-org"),
            c.href("catalog", "name==ci-catalog"),
            c.href("catalogItem", "name==two-vms"),
            c.href("orgVdcNetwork", "name==ci-net"),
            c.href("orgVdcStorageProfile", "name==ssd"),
            "/api/org".into(),
            "/api/session".into(),
            "/api/query?type=task".into(),
        ];
        for link in links {
            let answer = c.get(&link);
            assert_eq!(answer.status, 200, "{link}: {}", answer.body);
            let root = answer.xml().root_element().tag_name().namespace().unwrap_or("").to_string();
            assert!(root.ends_with("v1.5") || root.ends_with("envelope/1"), "{link}: {root}");
        }
    }
}

#[test]
fn faults_hit_as_their_rules_say() {
    let c = Client::start(22_210);
    let org = || {
        let bearer = format!("Bearer {}", c.bearer);
        c.raw("GET", "/api/org", &[("accept", XML), ("authorization", bearer.as_str())], "")
    };
    c.fault(serde_json::json!({"op": "org", "nth": 2, "answer_before": {"status": 503, "body": "<html>", "retry_after": 7}}));
    assert_eq!(org().unwrap().status, 200);
    let refused = org().unwrap();
    assert_eq!((refused.status, refused.headers.get("retry-after").unwrap().to_str().unwrap()), (503, "7"));
    assert_eq!(org().unwrap().status, 200);
    for broken in
        [serde_json::json!({"op": "org", "reset_before": true}), serde_json::json!({"op": "org", "truncate": 30})]
    {
        c.server.clear_faults();
        c.fault(broken.clone());
        assert!(org().is_err(), "{broken}");
        assert_eq!(org().unwrap().status, 200);
    }
    c.fault(serde_json::json!({"op": "org", "html": true}));
    c.server.clear_faults();
    c.fault(serde_json::json!({"path": "/api/org", "html": true}));
    assert!(org().unwrap().body.starts_with("<html>"));

    // The work is done, but nobody is told.
    c.fault(serde_json::json!({"op": "instantiate", "reset_after": true}));
    let vdc = c.href("orgVdc", "name==ci-vdc");
    let bearer = format!("Bearer {}", c.bearer);
    let media = "application/vnd.vmware.vcloud.instantiateVAppTemplateParams+xml";
    let headers = [("accept", XML), ("authorization", bearer.as_str()), ("content-type", media)];
    let post = c.raw("POST", &format!("{vdc}/action/instantiateVAppTemplate"), &headers, &c.create_body("ci-lost"));
    assert!(post.is_err());
    assert_eq!(c.get("/api/query?type=vApp&filter=name==ci-lost").root("total"), "1");

    c.fault(serde_json::json!({"op": "instantiate", "task_fails": {"step": 1, "message": "no host"}}));
    let made = c.post_create(&c.create_body("ci-fails"));
    let task = made.all("Task", "href")[0].clone();
    assert_eq!(c.finish(&task), "error");
    assert!(c.get(&task).all("Error", "message")[0].contains("no host"));
    assert_eq!(c.get(&made.root("href")).root("status"), "8");

    c.fault(serde_json::json!({"op": "query:vm", "query": "empty"}));
    assert_eq!(c.get("/api/query?type=vm").root("total"), "0");
    assert_ne!(c.get("/api/query?type=vm").root("total"), "0");
    let place = serde_json::json!({"status": 302, "location": "/api/org"});
    c.fault(serde_json::json!({"op": "session", "answer_before": place}));
    let orgs = c.server.requests("org");
    // The test's client follows, and takes no bearer along.
    assert_eq!(c.raw("GET", "/api/session", &headers[..2], "").unwrap().status, 401);
    assert_eq!(c.server.requests("org"), orgs + 1);
}

#[test]
fn https_is_served_by_a_certificate_of_the_ca() {
    let https = Some("127.0.0.1:0".parse().unwrap());
    let server = Server::start(Options { scale: 100.0, https_listen: https, ..Options::default() }).unwrap();
    let pem = ureq::tls::Certificate::from_pem(server.ca_pem().unwrap().as_bytes()).unwrap();
    let tls = |roots| ureq::tls::TlsConfig::builder().root_certs(roots).build();
    let agent = |roots| ureq::Agent::from(ureq::Agent::config_builder().tls_config(tls(roots)).build());
    let url = format!("{}/api/versions", server.https_url().unwrap());
    let trusting = agent(ureq::tls::RootCerts::new_with_certs(&[pem]));
    let body = trusting.get(&url).call().unwrap().body_mut().read_to_string().unwrap();
    assert!(body.contains(&server.https_url().unwrap()), "{body}");
    assert!(agent(ureq::tls::RootCerts::new_with_certs(&[])).get(&url).call().is_err());
}

#[test]
fn the_control_port_sees_and_changes() {
    let c = Client::start(22_211);
    let vapp = c.create("ci-control");
    let state = c.control("GET", "/state", "");
    assert_eq!(state["vapps"][0]["vms"][0]["computer_name"], "ci-control");
    assert_eq!(state["vapps"][0]["vms"][0]["disks"][0]["mb"], 81_920);
    let counts = c.control("GET", "/counts", "");
    assert_eq!((&counts["requests"]["instantiate"], &counts["changing"]), (&1.into(), &1.into()));
    assert_eq!(counts["tasks"]["vdcInstantiateVapp"], 1);
    c.control("POST", "/counts/reset", "");
    assert_eq!(c.control("GET", "/counts", "")["total"], 0);
    c.control("POST", "/admin", r#"{"action": "rename_vapp", "vapp": "ci-control", "name": "ci-new"}"#);
    assert_eq!(c.get(&vapp).root("name"), "ci-new");
    c.control("POST", "/admin", r#"{"action": "power_off", "vapp": "ci-new"}"#);
    assert_eq!(c.get(&vapp).root("status"), "20");
    c.control("POST", "/admin", r#"{"action": "delete_vapp", "vapp": "ci-new"}"#);
    assert_eq!(c.get(&vapp).status, 403);
    c.control("POST", "/admin", r#"{"action": "foreign_vapp", "name": "theirs", "template": "ubuntu-22.04"}"#);
    wait_for("the foreign vApp", || c.server.with_model(|m| status(m, "theirs") == Some(Status::PoweredOn)));
    c.control("POST", "/faults", r#"{"op": "org", "answer_before": {"status": 502}}"#);
    assert_eq!(c.get("/api/org").status, 502);
    for bad in [r#"{"action": "no"}"#, "{", r#"{"action": "delete_vapp", "vapp": "none"}"#] {
        let url = format!("{}/admin", c.server.control_url());
        assert_eq!(c.raw("POST", &url, &[], bad).unwrap().status, 400, "{bad}");
    }
}

fn status(m: &Model, name: &str) -> Option<Status> {
    let id = m.vapps_named(name).pop()?;
    (!m.is_busy(Target::Vapp(id))).then(|| m.vapp_status(&m.vapps[&id]))
}

#[test]
fn a_forwarded_guest_is_known_by_its_address() {
    let ssh = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let guest_forward = Some(ssh.local_addr().unwrap());
    let c = Client::with(Options { scale: 100.0, guest_port: 22_212, guest_forward, ..Options::default() });
    c.create("ci-forward");
    let mut guest = None;
    wait_for("the guest", || {
        guest = TcpStream::connect("127.0.10.2:22212").ok();
        guest.is_some()
    });
    let (mut server, from) = ssh.accept().unwrap();
    assert_eq!(from.ip().to_string(), "127.0.10.2");
    std::io::Write::write_all(&mut server, b"hello").unwrap();
    drop(server);
    let mut heard = String::new();
    guest.unwrap().read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "hello");
}
