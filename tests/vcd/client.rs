//! Shared code for the tests of the VCD client: a simulated VCD, settings for it, and short forms of requests.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "a test")]

use fleeting_plugin_vcd::cloud::*;
use fleeting_plugin_vcd::vcd::{Client, IpMode, Settings, TEMPLATE_LIFE, Token};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use vcd_sim::faults::Rule;
use vcd_sim::model::VappId;
use vcd_sim::{Options, Server};

pub const DEADLINE: Duration = Duration::from_secs(60);
pub const SCRIPT: &str = "#!/bin/sh\necho 'ssh-ed25519 AAAAC3Nza <ci> & co' >> /root/.ssh/authorized_keys\r\n";
pub const PASSWORD: &str = "S3cret & <more>";

pub fn server_with(change: impl FnOnce(&mut Options)) -> Server {
    static PORT: AtomicU16 = AtomicU16::new(23_400);
    let guest_port = PORT.fetch_add(1, Ordering::Relaxed);
    let mut options = Options { scale: 100.0, guest_port, ..Options::default() };
    change(&mut options);
    Server::start(options).unwrap()
}

pub fn server() -> Server {
    server_with(|_| {})
}

pub fn settings(server: &Server) -> Settings {
    Settings {
        url: format!("{}/api", server.url()),
        org: "ci-org".into(),
        token: Token::Text(Secret::new("sim-api-token")),
        ca_file: None,
        insecure_skip_tls_verify: false,
        vdc: "ci-vdc".into(),
        network: "ci-net".into(),
        ip_mode: IpMode::Pool,
        catalog: "ci-catalog".into(),
        template: "ubuntu-22.04".into(),
        template_life: TEMPLATE_LIFE,
        storage_profile: "ssd".into(),
        sizing_policy: None,
        placement_policy: None,
        cpus: 4,
        cores_per_socket: 2,
        memory_mb: 8192,
        disk_gb: 40,
        vapp_prefix: "ci".into(),
        label: "ci linux; (all)".into(),
        metadata: Vec::new(),
        guest_properties: Vec::new(),
        user_data: None,
        lease: None,
        session_refresh: Duration::from_secs(3600),
        poll_interval: Duration::from_secs(10),
        standby: false,
        guest_source: String::new(),
    }
}

pub fn open(server: &Server) -> Client {
    Client::open(settings(server)).unwrap().0
}

pub fn errors_of(settings: Settings) -> Vec<VcdError> {
    Client::open(settings).expect_err("open must fail")
}

pub fn guest() -> Guest {
    let (script, password) = (Some(Secret::new(SCRIPT)), Some(Secret::new(PASSWORD)));
    Guest { computer_name: "ci-abc12345".into(), script, password }
}

pub fn create(client: &Client, name: &str) -> Result<Started, VcdError> {
    let request = Request::Create { name: name.into(), description: "group=<ci> & co".into(), whole: true };
    match client.call(&request, Some(&guest()))? {
        Reply::Started(started) => Ok(started),
        other => panic!("{other:?}"),
    }
}

pub fn delete(client: &Client, vapp: &Href) -> Result<Started, VcdError> {
    match client.call(&Request::Delete { vapp: vapp.clone() }, None)? {
        Reply::Started(started) => Ok(started),
        other => panic!("{other:?}"),
    }
}

pub fn poll(client: &Client, vapps: bool) -> Result<Poll, VcdError> {
    match client.call(&Request::Poll { vapps }, None)? {
        Reply::Poll(poll) => Ok(poll),
        other => panic!("{other:?}"),
    }
}

pub fn vapps(client: &Client, request: &Request) -> Result<Vec<Vapp>, VcdError> {
    match client.call(request, None)? {
        Reply::Vapps(vapps) => Ok(vapps),
        other => panic!("{other:?}"),
    }
}

pub fn look(client: &Client, vapp: &Href) -> Result<Vec<Vapp>, VcdError> {
    vapps(client, &Request::Look { vapp: vapp.clone(), guest: false })
}

pub fn states(client: &Client, tasks: &[Href]) -> Result<Vec<TaskState>, VcdError> {
    match client.call(&Request::Tasks { tasks: tasks.to_vec() }, None)? {
        Reply::Tasks(told) => {
            assert_eq!(told.iter().map(|t| &t.href).collect::<Vec<_>>(), tasks.iter().collect::<Vec<_>>());
            Ok(told.into_iter().map(|t| t.state).collect())
        }
        other => panic!("{other:?}"),
    }
}

pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "timeout: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn ended(client: &Client, started: &Started) -> TaskState {
    let task = started.task.clone().expect("a task");
    until("the end of a task", || {
        states(client, std::slice::from_ref(&task)).unwrap().pop().filter(|s| *s != TaskState::Running)
    })
}

pub fn fault(server: &Server, rule: serde_json::Value) {
    assert!(server.add_fault(Rule::from_json(&rule).unwrap()));
}

pub fn foreign(server: &Server, name: &str) -> VappId {
    server.with_model(|m| {
        let (vdc, network) = (*m.vdcs.keys().next().unwrap(), *m.networks.keys().next().unwrap());
        let template = *m.templates.iter().find(|(_, t)| &*t.name == "ubuntu-22.04").unwrap().0;
        m.admin_foreign_vm(vdc, name, "somebody's", template, network).unwrap()
    })
}
