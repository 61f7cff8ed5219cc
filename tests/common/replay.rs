//! Replays a recording of `check --record` to the current client, and compares it with the simulator's answers to the
//! same requests, element by element. A simulator sends the recorded answers: each is a rule for a fault.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use fleeting_plugin_vcd::cloud::{Guest, Href, Reply, Request, Secret, TaskState, VcdError};
use fleeting_plugin_vcd::command::runner::RunnerFile;
use fleeting_plugin_vcd::vcd::inspect::Inspector;
use fleeting_plugin_vcd::vcd::{Client, Settings, record};
use roxmltree::{Document, Node};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use vcd_sim::faults::Rule;
use vcd_sim::routes::decode;
use vcd_sim::{Options, Server};

/// Speed of the simulator's clock, as a multiple of real time.
const SCALE: f64 = 100.0;
/// Maximum duration of a task of the simulator.
const TASK_LIMIT: Duration = Duration::from_secs(30);

/// A request and its answer.
#[derive(Debug, Default)]
pub struct Exchange {
    pub operation: String,
    pub method: String,
    pub place: String,
    pub body: String,
    /// `None`: no answer came.
    pub status: Option<u16>,
    pub location: Option<String>,
    pub answer: String,
}

#[derive(Debug, Default)]
pub struct Recording {
    pub settings: BTreeMap<String, String>,
    pub exchanges: Vec<Exchange>,
}

impl Recording {
    /// Reads a recording. The error names the invalid line.
    pub fn parse(text: &str) -> Result<Recording, String> {
        let mut recording = Recording::default();
        // The next part of the request and of the answer: first line, headers or body.
        let mut part = [0, 0];
        for (number, line) in text.lines().enumerate() {
            let wrong = |why: &str| format!("line {}: {why}: {line}", number + 1);
            if let Some(settings) = line.strip_prefix("settings ") {
                let pairs = settings.split(' ').filter_map(|pair| pair.split_once('='));
                recording.settings.extend(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())));
            } else if let Some(rest) = line.strip_prefix("# ") {
                let operation = rest.split(',').next().unwrap_or_default().to_owned();
                recording.exchanges.push(Exchange { operation, ..Exchange::default() });
                part = [0, 0];
            } else if let Some((side, rest)) =
                ["> ", "< "].iter().position(|mark| line.starts_with(mark)).map(|s| (s, &line[2..]))
            {
                let exchange = recording.exchanges.last_mut().ok_or_else(|| wrong("there is no request before it"))?;
                match (side, part[side]) {
                    (0, 0) => {
                        let (method, place) = rest.split_once(' ').ok_or_else(|| wrong("expected METHOD PLACE"))?;
                        (exchange.method, exchange.place) = (method.to_owned(), place.to_owned());
                    }
                    (1, 0) if rest.starts_with("no answer") => {}
                    (1, 0) => exchange.status = Some(rest.parse().map_err(|_| wrong("expected a status"))?),
                    (_, 1) if !rest.is_empty() => {
                        if let (1, Some(place)) = (side, rest.strip_prefix("Location: ")) {
                            exchange.location = Some(place.to_owned());
                        }
                        continue;
                    }
                    (0, 1) | (1, 1) => {}
                    (0, _) => exchange.body += &format!("{rest}\n"),
                    (_, _) => exchange.answer += &format!("{rest}\n"),
                }
                part[side] += 1;
            }
        }
        match recording.exchanges.is_empty() {
            true => Err("it contains no request".into()),
            false => Ok(recording),
        }
    }

    fn setting(&self, name: &str) -> &str {
        self.settings.get(name).map_or("", String::as_str)
    }

    fn has_create(&self) -> bool {
        self.setting("create") == "true"
    }
}

/// The keys of plugin_config for a VCD at `server`, with the recording's placeholders as names, or with the
/// simulator's names.
fn keys(server: &Server, recording: &Recording, with_stand_ins: bool) -> Value {
    let name = |stand_in: &str, own: &str| if with_stand_ins { stand_in.to_owned() } else { own.to_owned() };
    let number = |key: &str| recording.setting(key).parse::<u32>().unwrap_or_default();
    let mut keys = json!({
        "name": name("manager-2", "runner-1"),
        "url": format!("{}/api", server.url()),
        "org": name("org-1", "ci-org"),
        "token": name("secret-1", "sim-api-token"),
        "virtual_datacenter": name("vdc-1", "ci-vdc"),
        "network": name("network-1", "ci-net"),
        "ip_allocation_mode": if recording.setting("ip_allocation_mode") == "DHCP" { "DHCP" } else { "POOL" },
        "instance_group_name": name("group-2", "ci-linux"),
        "vapp_name_prefix": name("prefix-2", "ci"),
        "catalog": name("catalog-1", "ci-catalog"),
        "template": name("template-1", "ubuntu-22.04"),
        "storage_profile": name("storage-1", "ssd"),
        "cpu_count": number("cpu_count").max(1),
        "cores_per_socket": number("cores_per_socket").max(1),
        "memory_mb": number("memory_mb").max(4),
        "disk_size_gb": number("disk_size_gb"),
    });
    for (key, stand_in, own) in [("sizing_policy", "sizing-1", "small"), ("placement_policy", "placement-1", "rack-1")]
    {
        if recording.setting(key) == "yes" {
            keys[key] = name(stand_in, own).into();
        }
    }
    keys
}

/// A config.toml with one runner. It is deleted when dropped.
struct File(PathBuf);

impl File {
    fn new(keys: &Value) -> File {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("vcd-replay-{}-{number}.toml", std::process::id()));
        let lines: String = keys.as_object().unwrap().iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        let text = format!(
            "[[runners]]\nname = \"replay\"\nexecutor = \"instance\"\n[runners.autoscaler]\nplugin = \"fleeting-plugin-vcd\"\n\
             capacity_per_instance = 1\nmax_use_count = 1\nmax_instances = 1\n[runners.autoscaler.plugin_config]\n{lines}\
             [runners.autoscaler.connector_config]\nuse_static_credentials = true\nusername = \"root\"\n\
             password = \"s3cret-Pa55word\"\n"
        );
        std::fs::write(&path, text).unwrap();
        File(path)
    }

    fn settings(&self) -> Result<Settings, String> {
        Ok(RunnerFile::read(&self.0)?.only(None)?.config(false)?.vcd)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn guest() -> Guest {
    let (script, password) = (Some(Secret::new("#!/bin/sh\nexit 0\n")), Some(Secret::new("s3cret-Pa55word")));
    Guest { computer_name: "replay".into(), script, password }
}

fn server() -> Server {
    Server::start(Options { scale: SCALE, guest_port: 22_599, ..Options::default() }).unwrap()
}

/// The differences between the current client's behaviour and the recording. `check` gets a config.toml.
pub fn play(recording: &Recording, check: impl Fn(&Path) -> Result<(), String>) -> Result<Vec<String>, String> {
    let server = server();
    for exchange in &recording.exchanges {
        let answer = match exchange.status {
            Some(status) => {
                json!({"answer_before": {"status": status, "body": exchange.answer.trim_end(), "location": exchange.location}})
            }
            None => json!({"reset_before": true}),
        };
        let mut rule = answer;
        // Decoded, as in the simulator.
        let (path, query) = exchange.place.split_once('?').unwrap_or((&exchange.place, ""));
        let pairs: Vec<String> = query.split('&').filter(|pair| !pair.is_empty()).map(decode).collect();
        let line = if pairs.is_empty() { decode(path) } else { format!("{}?{}", decode(path), pairs.join("&")) };
        rule["method"] = exchange.method.as_str().into();
        // Links to VCD's own address are followed at the configured address.
        rule["path"] = line.replace("https://host-1.example", &server.url()).into();
        if rule["answer_before"]["location"].is_null() {
            rule["answer_before"].as_object_mut().map(|answer| answer.remove("location"));
        }
        if !server.add_fault(Rule::from_json(&rule)?) {
            return Err("it has too many requests".into());
        }
    }
    let body = "<Error majorErrorCode='501' minorErrorCode='X' message='no such request is in the recording'/>";
    let rest = json!({"times": 0, "answer_before": {"status": 501, "body": body}});
    assert!(server.add_fault(Rule::from_json(&rest)?));
    let file = File::new(&keys(&server, recording, true));
    check(&file.0)?;
    let settings = file.settings()?;
    let mut complaints = Vec::new();
    // The plugin of `check --create` starts after the check's logout.
    let plugins = recording.exchanges.iter().skip_while(|exchange| exchange.operation != "logout").skip(1);
    let plugins: Vec<&Exchange> = plugins.collect();
    if plugins.iter().all(|exchange| exchange.operation != "create") {
        return Ok(complaints);
    }
    let settings = Settings { vapp_prefix: "prefix-1".into(), ..settings };
    let client = match Client::open(settings) {
        Ok((client, _)) => client,
        Err(errors) => return Ok(errors.iter().map(|error| format!("it cannot open VCD: {error}")).collect()),
    };
    for (at, exchange) in plugins.iter().enumerate() {
        let next = plugins.get(at + 1);
        let Some(request) = request(exchange, next.copied(), &server) else { continue };
        let said = client.call(&request, Some(&guest()));
        let good = exchange.status.is_some_and(|status| status < 400);
        // A missing vApp is no error for a lookup or a delete.
        let is_gone = matches!(exchange.status, Some(403 | 404)) && !exchange.operation.starts_with("create");
        if good != said.is_ok() && !(is_gone && said.is_ok()) {
            let said = said.map_or_else(|error| error.to_string(), |reply| format!("{reply:?}"));
            complaints.push(format!("{} {}: {said}", exchange.method, exchange.place));
        }
    }
    Ok(complaints)
}

/// The client's request behind an exchange; `None` if it belongs to another request, or to the login.
fn request(exchange: &Exchange, next: Option<&Exchange>, server: &Server) -> Option<Request> {
    let id = |kind: &str| {
        let path = exchange.place.split(['?']).next()?;
        let end = path.find(kind)? + kind.len() + 36;
        Some(Href::from(format!("{}{}", server.url(), path.get(..end)?)))
    };
    let (vapp, vm) = (|| id("/vapp-"), || id("/vm-"));
    let is = |what: &str| exchange.place.contains(what);
    match exchange.operation.as_str() {
        "poll" if is("type=vm&") && is("page=1&") => {
            let vapps = next.is_some_and(|next| next.operation == "poll" && next.place.contains("type=vApp"));
            Some(Request::Poll { vapps })
        }
        "poll_some" if is("type=vm&") => {
            let filter = exchange.place.split("containerName==").skip(1);
            let names = filter.map(|rest| rest.split([',', ')', ';']).next().unwrap_or_default().into());
            Some(Request::PollSome { names: names.collect() })
        }
        "look" => Some(Request::Look { vapp: vapp()?, guest: false }),
        "create" => {
            let document = Document::parse(&exchange.body).ok()?;
            let root = document.root_element();
            let description = root
                .children()
                .find(|node| node.has_tag_name("Description") || node.tag_name().name() == "Description");
            Some(Request::Create {
                name: root.attribute("name")?.into(),
                description: description.and_then(|node| node.text()).unwrap_or_default().into(),
                whole: root.tag_name().name() == "InstantiateVAppTemplateParams",
            })
        }
        "configure" => Some(Request::Configure { vm: vm()? }),
        "tpm" => Some(Request::AddTpm { vm: vm()? }),
        "power_on" => Some(Request::PowerOn { vapp: vapp()? }),
        "suspend" => Some(Request::Suspend { vapp: vapp()? }),
        "delete" => Some(Request::Delete { vapp: vapp()? }),
        "undeploy" => Some(Request::Undeploy { vapp: vapp()? }),
        "delete_stopped" => Some(Request::DeleteStopped { vapp: vapp()? }),
        "label" => Some(Request::Label { vapp: vapp()? }),
        "tasks" => Some(Request::Tasks { tasks: vec![id("/task/")?] }),
        _ => None,
    }
}

/// A recording of the same requests to the simulator, for the comparison.
pub fn on_simulator(recording: &Recording) -> Result<String, String> {
    let server = server();
    record::start();
    let settings = File::new(&keys(&server, recording, false)).settings()?;
    inspect(settings.clone()).map_err(|error| error.to_string())?;
    if recording.has_create() {
        let settings = Settings { vapp_prefix: "ci-check".into(), ..settings };
        let (client, _) = Client::open(settings).map_err(|errors| format!("{errors:?}"))?;
        live(&client, recording.exchanges.iter().any(|exchange| exchange.operation == "label"))?;
        client.close();
    }
    let host = server.url().replace("http://", "");
    let names = [
        ("host", host.as_str()),
        ("org", "ci-org"),
        ("vdc", "ci-vdc"),
        ("network", "ci-net"),
        ("catalog", "ci-catalog"),
        ("template", "ubuntu-22.04"),
        ("storage", "ssd"),
        ("sizing", "small"),
        ("placement", "rack-1"),
        ("prefix", "ci-check"),
        ("prefix", "ci"),
        ("group", "ci-linux-check"),
        ("group", "ci-linux"),
        ("manager", "runner-1-check"),
        ("manager", "runner-1"),
    ];
    let settings: String = recording.settings.iter().map(|(key, value)| format!(" {key}={value}")).collect();
    let head = format!("fleeting-plugin-vcd's recording, format 1, created on the simulator\nsettings{settings}\n");
    record::text(&head, &names).map(|written| written.text).ok_or_else(|| "nothing was recorded".into())
}

/// The requests of `check`.
fn inspect(settings: Settings) -> Result<(), VcdError> {
    let (inspector, login) = Inspector::log_in(settings.clone())?;
    let vdc = inspector.vdc()?.href;
    inspector.network(Some(&vdc))?;
    inspector.template()?;
    inspector.storage(Some(&vdc))?;
    for (name, sizing) in [(&settings.sizing_policy, true), (&settings.placement_policy, false)] {
        if let Some(name) = name {
            inspector.policy(&vdc, name, sizing)?;
        }
    }
    inspector.rights(&login);
    inspector.lease_rules(&login);
    inspector.close();
    Ok(())
}

/// One instance: created, looked up, deleted.
fn live(client: &Client, with_label: bool) -> Result<(), String> {
    let call = |request: Request| client.call(&request, Some(&guest())).map_err(|error| error.to_string());
    let wait = |task: Option<Href>| -> Result<(), String> {
        let Some(task) = task else { return Ok(()) };
        let began = Instant::now();
        while began.elapsed() < TASK_LIMIT {
            let Reply::Tasks(tasks) = call(Request::Tasks { tasks: vec![task.clone()] })? else { break };
            if tasks.iter().all(|task| task.state != TaskState::Running) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err("a task does not end".into())
    };
    call(Request::Poll { vapps: true })?;
    let description = "fleeting-plugin-vcd/1 manager=runner-1-check group=ci-linux-check id=ci-check-ab12cd34";
    let create = Request::Create { name: "ci-check-ab12cd34".into(), description: description.into(), whole: true };
    let Reply::Started(started) = call(create)? else { return Err("no create".into()) };
    wait(started.task)?;
    let vapp = started.vapp.ok_or("no vApp")?;
    call(Request::Poll { vapps: true })?;
    call(Request::Look { vapp: vapp.clone(), guest: false })?;
    if with_label {
        call(Request::Label { vapp: vapp.clone() })?;
        // The task locks the vApp for a moment.
        std::thread::sleep(Duration::from_millis(100));
    }
    let Reply::Started(started) = call(Request::Delete { vapp: vapp.clone() })? else { return Err("no delete".into()) };
    wait(started.task)?;
    call(Request::Look { vapp, guest: false }).map(|_| ())
}

/// The differences between two recordings: for each kind of request, what only one of them contains.
pub fn differences(recorded: &Recording, simulated: &Recording) -> Vec<String> {
    let (recorded, simulated) = (shapes(recorded), shapes(simulated));
    let mut all = Vec::new();
    for (kind, shape) in &recorded {
        let Some(other) = simulated.get(kind) else {
            all.push(format!("{kind}: only in the recording"));
            continue;
        };
        all.extend(shape.difference(other).map(|part| format!("{kind}: only in the recording: {part}")));
        all.extend(other.difference(shape).map(|part| format!("{kind}: only on the simulator: {part}")));
    }
    let missing = simulated.keys().filter(|kind| !recorded.contains_key(*kind));
    all.extend(missing.map(|kind| format!("{kind}: only on the simulator")));
    all
}

/// For each kind of request: the elements of its requests and answers, as paths.
fn shapes(recording: &Recording) -> BTreeMap<String, BTreeSet<String>> {
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for exchange in &recording.exchanges {
        let (path, query) = exchange.place.split_once('?').unwrap_or((&exchange.place, ""));
        let is_word =
            |part: &&str| part.chars().all(|c| c.is_ascii_alphabetic() || c == '.') || part.parse::<f32>().is_ok();
        let path: Vec<&str> = path.split('/').map(|part| if is_word(&part) { part } else { "*" }).collect();
        let kind =
            query.split('&').find(|pair| pair.starts_with("type=")).map(|kind| format!("?{kind}")).unwrap_or_default();
        let shape = all.entry(format!("{} {}{kind}", exchange.method, path.join("/"))).or_default();
        shape.insert(format!("status {}", exchange.status.unwrap_or_default()));
        parts("request", &exchange.body, shape);
        parts("answer", &exchange.answer, shape);
    }
    all
}

fn parts(side: &str, body: &str, shape: &mut BTreeSet<String>) {
    if let Ok(document) = Document::parse(body) {
        elements(side, document.root_element(), shape);
    } else if let Ok(json) = serde_json::from_str(body) {
        fields(side, &json, shape);
    }
}

fn elements(path: &str, node: Node, shape: &mut BTreeSet<String>) {
    let path = format!("{path} {}", node.tag_name().name());
    for attribute in node.attributes() {
        shape.insert(format!("{path} @{}", attribute.name()));
    }
    for child in node.children().filter(Node::is_element) {
        elements(&path, child, shape);
    }
    shape.insert(path);
}

fn fields(path: &str, json: &Value, shape: &mut BTreeSet<String>) {
    match json {
        Value::Object(all) => all.iter().for_each(|(key, value)| fields(&format!("{path} {key}"), value, shape)),
        Value::Array(all) => all.iter().for_each(|value| fields(path, value, shape)),
        _ => _ = shape.insert(path.to_owned()),
    }
}

/// Reads a recording.
pub fn read(path: &Path) -> Result<Recording, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Recording::parse(&text).map_err(|why| format!("{}: {why}", path.display()))
}
