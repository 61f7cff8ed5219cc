//! The front over real HTTP, with a plain client: VCD's answers, its rejections, and the effects of faults.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

use roxmltree::Document;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use vcd_sim::faults::Rule;
use vcd_sim::model::{Disk, HardwareShown, Model, Nic, Reach, Right, Status, Target};
use vcd_sim::xml::Prefixes;
use vcd_sim::{Certificate, Options, Server, routes::Api};

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

    /// A hundred times faster than real time, with guests on another port.
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

    /// A create request that contains everything.
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

    /// Waits until a task ends.
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
    let found = c.get("/api/query?type=vm&filter=isVAppTemplate==false;containerName==ci-*");
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
    // Slow enough that the next request finds it busy.
    c.fault(serde_json::json!({"op": "delete", "slow": 20.0}));
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
fn invalid_requests_are_rejected() {
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
        (
            "another item's id",
            good.replacen("<rasd:InstanceID>4<", "<rasd:InstanceID>1<", 1),
            "1 is that of an item of ResourceType 10",
        ),
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
    assert_eq!(refused.headers.get("content-type").unwrap(), "text/plain");
    assert!(refused.headers.get("www-authenticate").unwrap().to_str().unwrap().contains("Bearer "));
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
    let mut page = "/api/query?type=vApp&pageSize=128&sortAsc=name&filter=name==X-*".to_string();
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
fn faults_follow_their_rules() {
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

    // VCD does the work, but the client gets no answer.
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
    // The test's client follows the redirect, without the bearer.
    assert_eq!(c.raw("GET", "/api/session", &headers[..2], "").unwrap().status, 401);
    assert_eq!(c.server.requests("org"), orgs + 1);
}

#[test]
fn answers_are_compressed_if_requested() {
    let c = Client::start(22_399);
    let connections = c.server.connections();
    let ask = |more: &str| {
        let mut stream = TcpStream::connect(c.server.url().trim_start_matches("http://")).unwrap();
        let request = format!("GET /api/versions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let head = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        (String::from_utf8_lossy(&answer[..head]).to_lowercase(), answer[head..].to_vec())
    };
    let sent = c.server.sent();
    let (head, plain) = ask("Accept-Encoding: identity\r\n");
    assert!(!head.contains("content-encoding") && plain.starts_with(b"<?xml"), "{head}");
    assert_eq!(c.server.sent() - sent, plain.len() as u64);
    let (head, packed) = ask("Accept-Encoding: br, gzip\r\n");
    assert!(head.contains("content-encoding: gzip") && packed.starts_with(&[0x1f, 0x8b]), "{head}");
    assert!(packed.len() < plain.len() / 2 && head.contains(&format!("content-length: {}", packed.len())), "{head}");
    assert_eq!(c.server.connections(), connections + 2);
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
fn versions_change_while_it_runs() {
    let c = Client::start(22_214);
    assert_eq!(c.get("/api/org").status, 200);
    c.control("POST", "/versions", r#"["37.3!", "39.1", "40.0.0-alpha-1700000000"]"#);
    let gone = c.get("/api/org");
    assert_eq!((gone.status, gone.root("minorErrorCode").as_str()), (406, "NOT_ACCEPTABLE"));
    let offered =
        "Unsupported API version: 38.1. Supported API versions are: [40.0.0-alpha-1700000000, 39.1, 37.3 [D]]";
    assert!(gone.root("message").contains(offered), "{}", gone.body);
    let versions = c.raw("GET", "/api/versions", &[], "").unwrap();
    assert_eq!(versions.all("VersionInfo", "deprecated"), ["true", "false", "false"]);
}

#[test]
fn a_login_with_a_service_accounts_token_returns_the_next() {
    let c = Client::start(22_215);
    let token = c.control("POST", "/admin", r#"{"action": "service_token"}"#)["token"].as_str().unwrap().to_owned();
    let login = |token: &str| {
        let form = format!("grant_type=refresh_token&refresh_token={token}");
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        let answer = c.raw("POST", "/oauth/tenant/ci-org/token", &headers, &form).unwrap();
        (answer.status, serde_json::from_str::<serde_json::Value>(&answer.body).unwrap())
    };
    let (status, answer) = login(&token);
    let next = answer["refresh_token"].as_str().unwrap();
    assert!(status == 200 && next != token && answer["access_token"].is_string(), "{answer}");
    assert_eq!(login(&token).0, 400);
    assert_eq!(login(next).0, 200);
}

#[test]
fn plain_http_is_redirected_to_https_and_browsers_get_a_page() {
    let c = Client::start(22_216);
    let page = c.raw("GET", "/tenant/ci-org/api/versions", &[], "").unwrap();
    assert_eq!((page.status, page.headers["content-type"].to_str().unwrap()), (200, "text/html"));
    assert!(page.body.contains("<title>VMware Cloud Director</title>"), "{}", page.body);
    c.server.with_api(|api| api.redirect = Some("https://vcd.example.com".into()));
    let config = ureq::Agent::config_builder().http_status_as_error(false).max_redirects(0).build();
    let answer = ureq::Agent::from(config).get(format!("{}/api/query?type=vm", c.server.url())).call().unwrap();
    let place = answer.headers()["location"].to_str().unwrap();
    assert_eq!((answer.status().as_u16(), place), (302, "https://vcd.example.com/api/query?type=vm"));
}

#[test]
fn a_server_can_have_a_self_signed_certificate() {
    let https = Some("127.0.0.1:0".parse().unwrap());
    let server = Server::start(Options { https_listen: https, ..Options::default() }).unwrap();
    let ca = server.ca_pem().unwrap().to_owned();
    for which in [Certificate::SelfSigned, Certificate::SelfSignedExpired, Certificate::SelfSignedOtherHost] {
        let pem = server.set_certificate(which).unwrap();
        assert!(pem.starts_with("-----BEGIN CERTIFICATE-----") && pem != ca, "{which:?}");
        let roots = ureq::tls::RootCerts::new_with_certs(&[ureq::tls::Certificate::from_pem(ca.as_bytes()).unwrap()]);
        let tls = ureq::tls::TlsConfig::builder().root_certs(roots).build();
        let agent = ureq::Agent::from(ureq::Agent::config_builder().tls_config(tls).build());
        let url = format!("{}/api/versions", server.https_url().unwrap());
        assert!(agent.get(&url).call().is_err(), "{which:?} is none of the CA's");
    }
}

#[test]
fn the_control_port_shows_and_changes_the_world() {
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
    let delete = || c.call("DELETE", &format!("{vapp}?force=true"), "", "");
    c.control("POST", "/admin", r#"{"action": "set_faults", "vapp": "ci-new", "faults": ["locked"]}"#);
    assert_eq!(delete().status, 403);
    c.control("POST", "/admin", r#"{"action": "set_faults", "vapp": "ci-new", "faults": ["delete_fails"]}"#);
    assert_eq!(c.finish(&delete().root("href")), "error");
    c.control("POST", "/admin", r#"{"action": "delete_vms", "vapp": "ci-new"}"#);
    assert_eq!(c.control("GET", "/state", "")["vapps"][0]["vms"], serde_json::json!([]));
    c.control("POST", "/admin", r#"{"action": "delete_vapp", "vapp": "ci-new"}"#);
    assert_eq!(c.get(&vapp).status, 403);
    c.control("POST", "/admin", r#"{"action": "foreign_vapp", "name": "theirs", "template": "ubuntu-22.04"}"#);
    wait_for("the foreign vApp", || c.server.with_model(|m| status(m, "theirs") == Some(Status::PoweredOn)));
    c.control("POST", "/faults", r#"{"op": "org", "answer_before": {"status": 502}}"#);
    assert_eq!(c.get("/api/org").status, 502);
    let no_fault = r#"{"action": "set_faults", "vapp": "theirs", "faults": ["no"]}"#;
    for bad in [r#"{"action": "no"}"#, "{", r#"{"action": "delete_vapp", "vapp": "none"}"#, no_fault] {
        let url = format!("{}/admin", c.server.control_url());
        assert_eq!(c.raw("POST", &url, &[], bad).unwrap().status, 400, "{bad}");
    }
}

/// Faults of one vApp: changes that break or are not found, tasks that nobody may cancel or read, a document that cannot be read, records
/// that queries leave out.
#[test]
fn changes_and_tasks_of_one_vapp_fail_alone() {
    let c = Client::start(22_218);
    let (vapp, other) = (c.create("ci-faulty"), c.create("ci-fine"));
    let faults = |names: &str| {
        let body = format!(r#"{{"action": "set_faults", "vapp": "ci-faulty", "faults": [{names}]}}"#);
        c.control("POST", "/admin", &body);
    };
    let suspend = |vapp: &str| c.call("POST", &format!("{vapp}/power/action/suspend"), "", "");
    for (name, status) in [("breaks", 500), ("unfound", 404)] {
        faults(&format!("{name:?}"));
        assert_eq!((suspend(&vapp).status, c.get(&vapp).status), (status, 200), "{name}");
    }
    faults(r#""hangs", "keeps_tasks""#);
    let task = suspend(&vapp).root("href");
    assert_eq!(c.call("POST", &format!("{task}/action/cancel"), "", "").status, 403);
    assert_eq!(c.get(&task).status, 200);
    faults(r#""hangs", "hides_tasks""#);
    assert_eq!(c.get(&task).status, 403);
    faults(r#""unread""#);
    assert_eq!((c.get(&vapp).status, c.get(&other).status), (500, 200));
    let listed = || c.get("/api/query?type=vm&filter=containerName==ci-*").xml_href().len();
    assert_eq!(listed(), 2);
    faults(r#""unlisted""#);
    assert_eq!((c.get(&vapp).status, listed()), (200, 1));
    assert_eq!(c.finish(&suspend(&other).root("href")), "success");
}

#[test]
fn a_request_is_carried_out_even_if_its_client_disconnects() {
    let c = Client::start(22_217);
    let body = c.create_body("ci-late");
    let vdc = c.href("orgVdc", "name==ci-vdc");
    c.fault(serde_json::json!({"op": "instantiate", "delay_before_ms": 3000}));
    let url = format!("{vdc}/action/instantiateVAppTemplate");
    let (origin, path) = url.split_at(url.find("/api").unwrap());
    let host = origin.trim_start_matches("http://");
    let mut client = TcpStream::connect(host).unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {}\r\nAccept: application/*+xml;version=38.1\r\n\
         Content-Type: application/vnd.vmware.vcloud.instantiateVAppTemplateParams+xml\r\nContent-Length: {}\r\n\r\n",
        c.bearer,
        body.len()
    );
    client.write_all((head + &body).as_bytes()).unwrap();
    wait_for("the request", || c.control("GET", "/counts", "")["requests"]["instantiate"] == 1);
    assert!(c.server.with_model(|m| m.vapps_named("ci-late").is_empty()));
    drop(client);
    wait_for("the vApp", || c.server.with_model(|m| !m.vapps_named("ci-late").is_empty()));
}

fn status(m: &Model, name: &str) -> Option<Status> {
    let id = m.vapps_named(name).pop()?;
    (!m.is_busy(Target::Vapp(id))).then(|| m.vapp_status(&m.vapps[&id]))
}

#[test]
fn a_forwarded_guest_is_identified_by_its_address() {
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

/// All hardware items of a VM: InstanceID, ResourceType, Parent, and the number of nil elements.
fn items(answer: &Answer) -> Vec<(String, String, String, usize)> {
    let xml = answer.xml();
    let items = xml.descendants().filter(|n| n.tag_name().name() == "Item");
    items
        .map(|item| {
            let text = |name: &str| {
                let child = item.children().find(|n| n.tag_name().name() == name);
                child.and_then(|n| n.text()).unwrap_or_default().to_owned()
            };
            let nil = |n: &roxmltree::Node| n.attributes().any(|a| a.name() == "nil");
            (text("InstanceID"), text("ResourceType"), text("Parent"), item.children().filter(nil).count())
        })
        .collect()
}

#[test]
fn a_templates_document_shows_more_or_less_of_its_hardware() {
    let c = Client::start(22_211);
    let href = c.href("vm", "containerName==ubuntu-22.04;isVAppTemplate==true");
    let seed = |shows| {
        c.server.with_model(|m| {
            for vm in m.template_vms.values_mut() {
                vm.shows = shows;
                vm.disks = [2016, 2000].map(|id| Disk { id, mb: 1024 }).to_vec();
                vm.nics = vec![Nic::unconnected(0), Nic::unconnected(1)];
            }
        });
        c.get(&href)
    };
    let of = |all: &[(String, String, String, usize)]| -> Vec<(String, String, String)> {
        all.iter().map(|(id, kind, parent, _)| (id.clone(), kind.clone(), parent.clone())).collect()
    };
    let expected = [
        ("1", "10", ""),
        ("2", "10", ""),
        ("3", "6", ""),
        ("4", "6", ""),
        ("5", "5", ""),
        ("6", "3", ""),
        ("7", "4", ""),
        ("2016", "17", "4"),
        ("2000", "17", "3"),
        ("3002", "15", "5"),
        ("8000", "14", ""),
    ]
    .map(|(id, kind, parent)| (id.to_owned(), kind.to_owned(), parent.to_owned()));
    let section = seed(HardwareShown::Section);
    assert_eq!(of(&items(&section)), expected);
    assert!(items(&section).iter().all(|item| item.3 == 0));
    assert_eq!(section.all("NetworkConnection", "network"), ["none", "none"]);
    let nil = seed(HardwareShown::Nil);
    assert_eq!(of(&items(&nil)), expected);
    assert!(items(&nil).iter().all(|item| item.3 > 10));
    let spec = seed(HardwareShown::Spec);
    assert_eq!((items(&spec).len(), spec.all("DiskSettings", "x").len()), (0, 2));
    assert_eq!((spec.text("BusNumber"), spec.text("UnitNumber")), (Some("1".into()), Some("0".into())));
    let nothing = seed(HardwareShown::Nothing);
    assert!(items(&nothing).is_empty() && nothing.text("DiskSettings").is_none());
    assert!(nothing.text("NetworkConnection").is_some());
}

#[test]
fn records_and_dates_are_like_a_real_vcds() {
    let c = Client::start(22_212);
    c.create("ci-1");
    let of = |field: &str| c.get("/api/query?type=vApp").all("VAppRecord", field);
    assert_eq!(of("numberOfVMs"), [""]);
    assert_eq!(of("description"), ["group=ci-linux"]);
    for field in ["numberOfVMs", "autoUndeployDate"] {
        assert_eq!(c.get(&format!("/api/query?type=vApp&fields={field}")).status, 400, "{field}");
    }
    c.control("POST", "/admin", r#"{"action": "set_setting", "name": "unknown_fields", "value": ["isBusy"]}"#);
    assert_eq!((of("isBusy"), c.get("/api/query?type=vApp&fields=isBusy").status), (vec![String::new()], 400));

    assert!(of("creationDate")[0].ends_with('Z'));
    c.control("POST", "/admin", r#"{"action": "set_setting", "name": "utc_offset_minutes", "value": 120}"#);
    assert!(of("creationDate")[0].ends_with("+02:00"), "{:?}", of("creationDate"));

    // A filter in brackets as a whole.
    let total = |filter: &str| c.get(&format!("/api/query?type=vApp&filter={filter}")).root("total");
    assert_eq!([total("name==ci-1"), total("(name==ci-1)"), total("(name==ci-1);name==ci-*")], ["1", "0", "1"]);
    c.control(
        "POST",
        "/admin",
        r#"{"action": "set_setting", "name": "bracketed_filter_finds_nothing", "value": false}"#,
    );
    assert_eq!(total("(name==ci-1)"), "1");

    // Queries for administrators only.
    assert_eq!(c.get("/api/query?type=adminVM").status, 403);
    c.server.with_model(|m| {
        let system = m.add_org("System");
        let user = m.add_user(system, "administrator", "p", &Right::ALL);
        m.tokens.insert("provider-token".into(), user);
    });
    let form = [("grant_type", "refresh_token"), ("refresh_token", "provider-token")];
    let mut answer = c.agent.post(format!("{}/oauth/provider/token", c.server.url())).send_form(form).unwrap();
    let json: serde_json::Value = serde_json::from_reader(answer.body_mut().as_reader()).unwrap();
    let bearer = format!("Bearer {}", json["access_token"].as_str().unwrap());
    let get = |path: &str| c.raw("GET", path, &[("accept", XML), ("authorization", &bearer)], "").unwrap();
    let vms = get("/api/query?type=adminVM&filter=isVAppTemplate==false");
    assert_eq!(
        (vms.all("AdminVMRecord", "isBusy"), vms.all("AdminVMRecord", "status")),
        (vec!["".into()], vec!["POWERED_ON".to_owned()])
    );
    assert_eq!(get("/api/query?type=adminVApp").all("AdminVAppRecord", "numberOfVMs"), ["1"]);
    assert_eq!(get("/api/query?type=vm").root("total"), "0", "their own org has none");
    assert_eq!(get(&vms.xml_href()[0]).status, 200);
}

#[test]
fn a_running_task_says_that_it_is_in_progress() {
    let c = Client::with(Options { scale: 1.0, guest_port: 22_213, ..Options::default() });
    let made = c.post_create(&c.create_body("ci-1"));
    let task = c.get(&made.all("Task", "href")[0]);
    assert_eq!(
        (task.root("status").as_str(), task.all("Error", "message")[0].as_str()),
        ("running", "The task is still in progress.")
    );
}

#[test]
fn the_owner_of_a_network_is_read() {
    let c = Client::start(22_214);
    let (own, other) = c.server.with_model(|m| {
        let org = *m.orgs.keys().next().unwrap();
        let own = *m.vdcs.keys().next().unwrap();
        let other = m.add_vdc(org, "other-vdc");
        m.networks.values_mut().for_each(|n| n.vdc = other);
        (m.uuid(own), m.uuid(other))
    });
    let of = |reach| {
        c.server.with_model(|m| m.networks.values_mut().for_each(|n| n.reach = reach));
        let record = c.get("/api/query?type=orgVdcNetwork");
        let field = |name: &str| record.all("OrgVdcNetworkRecord", name)[0].clone();
        let listed = c.get(&format!("/api/vdc/{own}")).all("Network", "name");
        let id = record.xml_href()[0].rsplit('/').next().unwrap().to_owned();
        let path = format!("/cloudapi/1.0.0/orgVdcNetworks/urn:vcloud:network:{id}");
        let bearer = format!("Bearer {}", c.bearer);
        let headers = [("accept", "application/json;version=38.1"), ("authorization", bearer.as_str())];
        let owner = c.raw("GET", &path, &headers, "").unwrap().body.contains("vdcGroup");
        (field("vdcName"), field("isShared") == "true", !field("vdcGroupId").is_empty(), !listed.is_empty(), owner)
    };
    let there = || "other-vdc".to_owned();
    assert_eq!(of(Reach::Vdc), (there(), false, false, false, false));
    assert_eq!(of(Reach::Shared), (there(), true, false, false, false));
    assert_eq!(of(Reach::Listed), (there(), false, false, true, false));
    assert_eq!(of(Reach::Group), (String::new(), false, true, false, true));
    assert_eq!(of(Reach::GroupAlone), (String::new(), false, false, false, true));
    assert_eq!(of(Reach::GroupByVdc), (there(), false, false, false, true));
    assert_ne!(own, other);
}

#[test]
fn the_binary_reports_its_guests_and_ends_on_request() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vcd-sim"));
    command.args(["--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--guests", "banner"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let said: Vec<String> = lines.take(3).map(Result::unwrap).collect();
    let at = said[0].strip_prefix("vcd http://").unwrap();
    assert_eq!(said[1], "guests: an SSH banner only: no other kind was requested");
    let taken = Command::new(env!("CARGO_BIN_EXE_vcd-sim")).args(["--listen", at]).output().unwrap();
    let why = String::from_utf8_lossy(&taken.stderr);
    assert!(!taken.status.success() && why.starts_with(&format!("vcd-sim: listen on {at}: ")), "{why}");
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    assert!(child.wait().unwrap().success());
}
