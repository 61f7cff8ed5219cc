//! The real plugin process under each fault: what its host sees, what is in VCD, and the time until everything is
//! normal again. All faults use the same scenario. The results are the tables of docs/reliability.md. The test
//! compares them, except the times.
//!
//! `cargo test --test plugin reliability::` plays the faults that end within a minute. With `-- --ignored` it plays
//! the longer ones. `UPDATE_GOLDEN=1` updates their rows, `CASE=words` plays one row, `SHOW_LOG=1` prints the
//! plugin's log.
#![cfg(target_os = "linux")]

use crate::common::{Client, PluginProcess, command};
use crate::live::{BINARY, SCALE};
use crate::proxy::{Mode, Proxy};
use crate::{common, fleet, live};
use fleeting_plugin_vcd::host::proto::fleeting::State;
use fleeting_plugin_vcd::timestamp::timestamp;
use rustix::process::Signal;
use serde_json::{Value, json};
use smol::Timer;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};
use tonic::Code;
use vcd_sim::faults::{Effect, Rule};
use vcd_sim::model::{GuestFault, Model, Power, QueryFault, TaskFaultKind, TaskStatus};
use vcd_sim::{Certificate, Options, Server};

/// The document with the tables.
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reliability.md");
/// Number of instances that the host wants.
const WANTED: usize = 2;
/// Maximum duration of a call. The plugin answers from memory, and any wait for VCD would be longer.
const CALL_LIMIT: Duration = Duration::from_secs(20);
/// Pause between two bytes of an answer, so that it takes minutes.
const DRIP: Duration = Duration::from_secs(1);
/// Pause between two checks by the host.
const LOOK: Duration = Duration::from_millis(100);
/// Minimum duration of a lasting fault: several polls and attempts are affected.
const LASTS: Duration = Duration::from_secs(3);
/// Maximum time from the end of a fault until everything is normal: in the short and in the long run.
const LIMITS: [Duration; 2] = [Duration::from_secs(55), Duration::from_secs(9 * 60)];
/// Number of concurrent cases in the short run.
const AT_ONCE: usize = 32;

/// One row.
struct Case {
    /// The table with the row.
    part: &'static str,
    /// The row's first cell.
    name: &'static str,
    fault: Fault,
    /// Part of a line in the plugin's log that the fault causes; empty: none.
    says: &'static str,
    ends: Ends,
    /// It takes longer than a minute because of the plugin's own limits.
    long: bool,
    /// Keys of plugin_config that shorten it.
    keys: Value,
}

/// When a fault ends.
#[derive(Clone, Copy, PartialEq)]
enum Ends {
    /// As soon as it has had an effect.
    WhenMet,
    /// The same, but not before this time.
    After(Duration),
    /// When the new instance runs despite the fault.
    WhenRunning,
}

/// A fault.
enum Fault {
    /// Rules of the simulator.
    Rules(Vec<Value>),
    /// The simulator's random mode, with this probability.
    Random(f64),
    /// A change of VCD and its reversal. They get the names of the instances.
    Admin(fn(&mut Model, &Names), fn(&mut Model, &Names)),
    /// A change after the call of the host, when the new instance exists.
    AdminLate(fn(&mut Model, &Names)),
    /// Between plugin and VCD, with HTTP.
    Network(Mode),
    /// Between plugin and VCD, with HTTPS.
    NetworkTls(Mode),
    /// VCD shows another certificate.
    Shows(Certificate),
    /// Plain HTTP where HTTPS should be.
    PlainHttp,
    /// The name of VCD's host does not resolve for longer than the plugin keeps an address.
    NoName(Resolver),
    /// The wall clock jumps by this many seconds. The kernel's monotonic clock cannot jump.
    WallClock(i64),
    /// The process is stopped and continued.
    Stop,
}

/// The behaviour of the name server.
#[derive(Clone, Copy, PartialEq)]
enum Resolver {
    /// Nobody listens at the name server's port.
    Refused,
    /// The name server never answers.
    Silent,
}

/// The instances of the scenario, by their roles.
#[derive(Clone, Default)]
struct Names {
    stays: String,
    removed: String,
    added: Vec<String>,
}

/// The cells of a row that are compared, and the time.
#[derive(Debug)]
struct Row {
    cells: Vec<String>,
    took: Duration,
}

const VCD: &str = "VCD's answers";
const WORK: &str = "VCD's work and its guests";
const PEOPLE: &str = "People and limits";
const NETWORK: &str = "The network";
const TIME: &str = "Time";
const PARTS: [&str; 5] = [VCD, WORK, PEOPLE, NETWORK, TIME];

/// VCD's error without an explanation.
fn said(status: u16, code: &str, message: &str) -> Value {
    let body = format!(
        "<Error xmlns=\"http://www.vmware.com/vcloud/v1.5\" majorErrorCode=\"{status}\" minorErrorCode=\"{code}\" \
         message=\"{message}\"/>"
    );
    json!({"status": status, "body": body})
}

fn with(mut rule: Value, more: Value) -> Value {
    rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    rule
}

impl Case {
    fn new(part: &'static str, name: &'static str, fault: Fault, says: &'static str) -> Case {
        Case { part, name, fault, says, ends: Ends::WhenMet, long: false, keys: json!({}) }
    }

    fn ends(self, ends: Ends) -> Case {
        Case { ends, ..self }
    }

    fn lasts(self) -> Case {
        self.ends(Ends::After(LASTS))
    }

    fn until_running(self) -> Case {
        self.ends(Ends::WhenRunning)
    }

    fn long(self) -> Case {
        Case { long: true, ..self }
    }

    fn keys(self, keys: Value) -> Case {
        Case { keys, ..self }
    }
}

/// The fault hits one request of an operation.
fn once(name: &'static str, op: &str, effect: Value, says: &'static str) -> Case {
    Case::new(VCD, name, Fault::Rules(vec![with(json!({"op": op}), effect)]), says)
}

/// The fault hits all requests of some operations for a while; without operations, all requests.
fn all(name: &'static str, ops: &[&str], effect: Value, says: &'static str) -> Case {
    let ops = if ops.is_empty() { &[""] } else { ops };
    let rules = ops.iter().map(|op| with(json!({"op": op, "times": 0}), effect.clone())).collect();
    Case::new(VCD, name, Fault::Rules(rules), says).lasts()
}

/// The fault hits the task or guest of a create.
fn create(name: &'static str, effect: Value, says: &'static str) -> Case {
    Case::new(WORK, name, Fault::Rules(vec![with(json!({"op": "instantiate"}), effect)]), says)
}

fn admin(name: &'static str, on: fn(&mut Model, &Names), off: fn(&mut Model, &Names), says: &'static str) -> Case {
    Case::new(PEOPLE, name, Fault::Admin(on, off), says).lasts()
}

fn network(name: &'static str, fault: Fault, says: &'static str) -> Case {
    Case::new(NETWORK, name, fault, says).lasts()
}

fn vapp(model: &Model, name: &str) -> vcd_sim::model::VappId {
    model.vapps_named(name)[0]
}

fn nothing(_: &mut Model, _: &Names) {}

/// All rows, in the order of the tables.
fn cases() -> Vec<Case> {
    let busy = json!({"answer_before": {"status": 503, "retry_after": 1, "body": "<html>Service Unavailable</html>"}});
    let broken = json!({"answer_before": said(500, "INTERNAL_SERVER_ERROR", "Unable to perform this action.")});
    let late = "found in VCD: the create worked";
    vec![
        all("every request answered 503 for a while (maintenance)", &[], busy.clone(), "VCD answered 503").long(),
        all("every query answered 500 for a while", &["query", "task", "vapp"], broken, "VCD answered 500"),
        all("every query's answer cut after 40 bytes", &["query", "task"], json!({"truncate": 40}), "is incomplete"),
        all(
            "every query answered with an HTML page of a proxy",
            &["query", "task"],
            json!({"html": true}),
            "the answer is a web page",
        ),
        all(
            "every query's connection reset",
            &["query", "task"],
            json!({"reset_before": true}),
            "Connection reset by peer",
        ),
        all("every answer 700 ms late", &[], json!({"delay_before_ms": 300, "delay_after_ms": 400}), "")
            .until_running(),
        once("create: reset before VCD acts", "instantiate", json!({"reset_before": true}), "Connection reset by peer")
            .long(),
        once("create: reset after VCD has acted", "instantiate", json!({"reset_after": true}), late),
        once("create: 500 after VCD has acted", "instantiate", json!({"answer_after": {"status": 500}}), late),
        once("create: 503 before VCD acts", "instantiate", busy.clone(), "the create did not work").long(),
        once("create: the answer is cut after 40 bytes", "instantiate", json!({"truncate": 40}), late),
        once("create: the answer is an HTML page", "instantiate", json!({"html": true}), late),
        once(
            "create: rejected once for too many requests (429)",
            "instantiate",
            json!({"answer_before": {"status": 429, "retry_after": 1}}),
            "all changes pause for",
        ),
        once("delete: reset before VCD acts", "delete", json!({"reset_before": true}), "Connection reset by peer"),
        once("delete: reset after VCD has acted", "delete", json!({"reset_after": true}), "Connection reset by peer"),
        once("delete: 500 after VCD has acted", "delete", json!({"answer_after": {"status": 500}}), "VCD answered 500"),
        once("delete: 503 before VCD acts", "delete", busy, "VCD answered 503"),
        once("delete: the answer is cut after 40 bytes", "delete", json!({"truncate": 40}), "is incomplete"),
        // Lookups show the new instance.
        all("polls return no VMs for a while", &["query:vm", "query:vApp"], json!({"query": "empty"}), "")
            .until_running(),
        all("every other record is missing for a while", &["query:vm"], json!({"query": "partial"}), "")
            .until_running(),
        all("polls are 20 s old for a while", &["query:vm"], json!({"query": "stale", "stale_ms": 20_000}), "")
            .until_running(),
        Case::new(VCD, "every fifth request hit by some fault for 10 s", Fault::Random(0.2), "")
            .ends(Ends::After(Duration::from_secs(10)))
            .long()
            .keys(json!({"create_timeout": "30s"})),
        create("create: its task fails during the copy", json!({"task_fails": {"step": 0}}), "next try in"),
        create(
            "create: its task fails at the power-on",
            json!({"task_fails": {"step": 1}}),
            "VCD created the VM but did not power it on",
        ),
        create("create: its task hangs", json!({"task_hangs": 0}), "not running within create_timeout")
            .keys(json!({"create_timeout": "10s"})),
        create("create: its task takes five times as long", json!({"slow": 5.0}), "").until_running(),
        Case::new(
            WORK,
            "delete: its task fails",
            Fault::Rules(vec![json!({"op": "delete", "task_fails": {"step": 0}})]),
            "next try in",
        ),
        Case::new(
            WORK,
            "delete: its task hangs until somebody aborts it",
            Fault::Rules(vec![json!({"op": "delete", "task_hangs": 0})]),
            "",
        )
        .lasts(),
        create("guest: customization fails", json!({"guest": "gc_failed"}), "guest customization failed (GC_FAILED)"),
        create("guest: customization stays pending", json!({"guest": "gc_pending"}), "not ready within ready_timeout")
            .keys(json!({"ready_timeout": "8s"})),
        create(
            "guest: customized, but VMware Tools never report it",
            json!({"guest": "gc_silent"}),
            "the plugin accepts the VM",
        )
        .long(),
        create("guest: no address", json!({"guest": "no_address"}), "not ready within ready_timeout")
            .keys(json!({"ready_timeout": "8s", "ip_allocation_mode": "DHCP"})),
        create("guest: its login port never answers", json!({"guest": "no_ssh"}), "not ready within ready_timeout")
            .keys(json!({"ready_timeout": "8s"})),
        create("guest: shuts down during its boot", json!({"guest": "shuts_down"}), "it is powered off"),
        admin(
            "the token is revoked and the sessions are ended; later the token is restored",
            |model, _| {
                model.admin_revoke_token("sim-api-token");
                model.admin_expire_bearers();
            },
            |model, _| {
                let user = *model.users.keys().next().unwrap();
                model.tokens.insert("sim-api-token".into(), user);
            },
            "VCD rejected the API token",
        ),
        Case::new(PEOPLE, "all sessions are ended", Fault::Admin(|model, _| model.admin_expire_bearers(), nothing), ""),
        admin(
            "others use up the organization's operation limit",
            |model, _| model.orgs.values_mut().for_each(|org| org.max_running = Some(0)),
            |model, _| model.orgs.values_mut().for_each(|org| org.max_running = None),
            "all changes pause for",
        ),
        admin(
            "the VDC's quota is used up",
            |model, _| model.vdcs.values_mut().for_each(|vdc| vdc.vm_limit = Some(WANTED as u32)),
            |model, _| model.vdcs.values_mut().for_each(|vdc| vdc.vm_limit = None),
            "quota",
        )
        .long(),
        admin(
            "the user's rights are taken away and given back",
            |model, _| model.users.values_mut().for_each(|user| user.rights.clear()),
            |model, _| {
                let all = vcd_sim::model::Right::ALL.to_vec();
                model.users.values_mut().for_each(|user| user.rights.clone_from(&all));
            },
            "VCD answered 403",
        )
        .long(),
        admin("records lag by 50 s of VCD's time", |model, _| model.set_lag(50_000), |model, _| model.set_lag(0), "")
            .until_running(),
        Case::new(
            PEOPLE,
            "somebody deletes a running VM",
            Fault::Admin(|model, names| model.admin_delete_vapp(vapp(model, &names.stays)), nothing),
            "gone from VCD",
        ),
        Case::new(
            PEOPLE,
            "somebody powers a running VM off",
            Fault::Admin(|model, names| model.admin_power(vapp(model, &names.stays), Power::Off), nothing),
            "it is powered off, not by the plugin: unhealthy",
        ),
        Case::new(
            PEOPLE,
            "somebody suspends a running VM",
            Fault::Admin(|model, names| model.admin_power(vapp(model, &names.stays), Power::Suspended), nothing),
            "it is suspended, not by the plugin: unhealthy",
        ),
        Case::new(
            PEOPLE,
            "somebody renames a running VM's vApp",
            Fault::Admin(|model, names| model.admin_rename_vapp(vapp(model, &names.stays), "kept by hand"), nothing),
            "the plugin no longer manages it",
        ),
        Case::new(
            PEOPLE,
            "somebody deletes a VM during its create",
            Fault::AdminLate(|model, names| model.admin_delete_vapp(vapp(model, &names.added[0]))),
            "next try in",
        ),
        Case::new(
            PEOPLE,
            "somebody aborts a create's task",
            Fault::AdminLate(|model, names| model.admin_end_tasks(vapp(model, &names.added[0]), TaskStatus::Aborted)),
            "next try in",
        ),
        network("connection refused", Fault::Network(Mode::Refuse), "Connection refused"),
        network("packets are dropped", Fault::Network(Mode::Drop), "timeout: connect"),
        network("accepted, but never answered (half open)", Fault::Network(Mode::Hold), "timeout: global").long(),
        network("each connection is reset", Fault::Network(Mode::Reset), "Connection reset by peer").long(),
        network("each connection is closed after 100 bytes", Fault::Network(Mode::Cut(100)), "Peer disconnected"),
        network("slow answers: one byte per millisecond", Fault::Network(Mode::Drip(Duration::from_millis(1))), "")
            .until_running(),
        network("slow answers: one byte per second", Fault::Network(Mode::Drip(DRIP)), "timeout: global").long(),
        network(
            "TLS: the certificate has expired",
            Fault::Shows(Certificate::Expired),
            "invalid peer certificate: certificate expired",
        ),
        network(
            "TLS: the certificate is not valid yet",
            Fault::Shows(Certificate::NotYetValid),
            "invalid peer certificate: certificate not valid yet",
        ),
        network(
            "TLS: the certificate is for another host",
            Fault::Shows(Certificate::OtherHost),
            "invalid peer certificate: certificate not valid for name",
        ),
        network(
            "TLS: the certificate is from an unknown CA",
            Fault::Shows(Certificate::OtherCa),
            "invalid peer certificate: UnknownIssuer",
        ),
        network("TLS: closed after 100 bytes of the handshake", Fault::NetworkTls(Mode::Cut(100)), "TLS handshake"),
        network("TLS: accepted, but never answered", Fault::NetworkTls(Mode::Hold), "timeout").long(),
        network("plain HTTP on the TLS port", Fault::PlainHttp, "TLS handshake"),
        network(
            "the host name does not resolve for 40 s (an address is kept for 30 s)",
            Fault::NoName(Resolver::Refused),
            "failed to lookup address",
        )
        .long()
        .ends(Ends::After(Duration::from_secs(40))),
        network(
            "the name server does not answer for 60 s",
            Fault::NoName(Resolver::Silent),
            "failed to lookup address",
        )
        .long()
        .ends(Ends::After(Duration::from_secs(60))),
        Case::new(TIME, "the wall clock jumps 5 h ahead", Fault::WallClock(5 * 3600), ""),
        Case::new(TIME, "the wall clock jumps 5 h back", Fault::WallClock(-5 * 3600), ""),
        Case::new(TIME, "the process is stopped (SIGSTOP) for 3 s", Fault::Stop, "").lasts(),
        Case::new(
            TIME,
            "the process is stopped (SIGSTOP) for 150 s, longer than the timeout of any request",
            Fault::Stop,
            "",
        )
        .ends(Ends::After(Duration::from_secs(150)))
        .long(),
    ]
}

/// A port where nobody listens, neither here nor at the guests' addresses. It is outside the kernel's range, and
/// differs for each call, so that concurrent simulators do not conflict.
fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = 10_000 + (std::process::id() % 80) as u16 * 250;
    loop {
        let port = base + NEXT.fetch_add(1, Ordering::Relaxed) % 250;
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
}

/// A folder that is deleted when this is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("vcd-reliability-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Folder(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The host name for the faults of the resolver.
const HOST: &str = "vcd.invalid";

/// The socket of a name server, with another address for each call. Needs root.
fn name_server() -> std::io::Result<UdpSocket> {
    static COUNT: AtomicUsize = AtomicUsize::new(1);
    let [high, low] = (std::process::id() as u16).to_be_bytes();
    let last = COUNT.fetch_add(1, Ordering::Relaxed) % 250;
    UdpSocket::bind((Ipv4Addr::new(127, high, low, last as u8), 53))
}

/// True if a process can have its own files in /etc.
fn has_namespaces() -> bool {
    let tried = std::process::Command::new("unshare").args(["--user", "--map-root-user", "--mount", "true"]).output();
    tried.is_ok_and(|tried| tried.status.success())
}

/// The simulator, the network in front of it, and what a plugin needs to reach it.
struct Place {
    server: Server,
    proxy: Proxy,
    guest_port: u16,
    config: Value,
    files: Folder,
    /// Receives the resolver's queries, and does not answer.
    name_server: Option<UdpSocket>,
}

impl Place {
    fn new(fault: &Fault, keys: &Value) -> Place {
        let tls = matches!(fault, Fault::NetworkTls(_) | Fault::Shows(_) | Fault::PlainHttp);
        let guest_port = port();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let https_listen = tls.then_some(any);
        let server = Server::start(Options { scale: SCALE, guest_port, https_listen, ..Options::default() }).unwrap();
        let port_of = |url: String| url.rsplit(':').next().unwrap().parse::<u16>().unwrap();
        let upstream = port_of(server.https_url().unwrap_or_else(|| server.url()));
        let proxy = Proxy::start(port, upstream);
        let files = Folder::new();
        let mut config = fleet::plugin_config(&server);
        let (scheme, host) = match fault {
            Fault::NoName(_) => ("http", HOST),
            _ if tls => ("https", "localhost"),
            _ => ("http", "127.0.0.1"),
        };
        config["url"] = json!(format!("{scheme}://{host}:{}/api", proxy.port));
        config["reconcile_interval"] = json!("1s");
        if let Some(pem) = server.ca_pem() {
            config["ca_file"] = json!(files.write("ca.pem", pem));
        }
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        let silent = matches!(fault, Fault::NoName(Resolver::Silent));
        let name_server = silent.then(|| name_server().unwrap());
        Place { server, proxy, guest_port, config, files, name_server }
    }

    /// The plugin's command, with the environment for the fault.
    fn command(&self, fault: &Fault) -> smol::process::Command {
        match fault {
            Fault::NoName(_) => {
                let hosts = self.files.write("hosts", &format!("127.0.0.1 localhost {HOST}\n"));
                let server = self.name_server.as_ref().map(|server| server.local_addr().unwrap().ip());
                let server = server.unwrap_or(Ipv4Addr::LOCALHOST.into());
                let resolver = self.files.write("resolv.conf", &format!("nameserver {server}\n"));
                let mounts = format!(
                    "mount --bind {} /etc/hosts && mount --bind {} /etc/resolv.conf && exec {BINARY}",
                    hosts.display(),
                    resolver.display()
                );
                let mut inside = command("unshare");
                inside.args(["--user", "--map-root-user", "--mount", "sh", "-c", &mounts]);
                inside
            }
            Fault::WallClock(_) => {
                let library = self.files.0.join("clock.so");
                common::build_clock(&library);
                let mut shifted = command(BINARY);
                shifted.env("LD_PRELOAD", library).env("CLOCK_SHIFT", self.files.write("shift", "0"));
                shifted
            }
            _ => command(BINARY),
        }
    }

    async fn init(&self, plugin: &PluginProcess) -> Result<(), tonic::Status> {
        let connector = fleet::connector(self.guest_port);
        plugin.init(self.config.to_string().as_bytes(), connector).await.map(|_| ())
    }

    fn ours(&self) -> BTreeSet<String> {
        fleet::vapps(&self.server).into_iter().filter(|name| name.starts_with("ci-")).collect()
    }

    async fn begin(&self, fault: &Fault, names: &Names) {
        match fault {
            Fault::Rules(rules) => {
                for rule in rules {
                    assert!(self.server.add_fault(Rule::from_json(rule).unwrap()));
                }
            }
            Fault::Random(rate) => self.server.random_faults(7, *rate),
            Fault::Admin(on, _) => self.server.with_model(|model| on(model, names)),
            Fault::AdminLate(on) => {
                common::until("the new vApp", || self.ours().contains(&names.added[0])).await;
                self.server.with_model(|model| on(model, names));
            }
            Fault::Network(mode) | Fault::NetworkTls(mode) => {
                self.proxy.set(*mode).await;
                // Open connections would hide the fault for a while, or wait for minutes, as the half-open ones do.
                if !matches!(mode, Mode::Hold | Mode::Drip(_)) {
                    self.proxy.cut().await;
                }
            }
            Fault::Shows(certificate) => {
                self.server.set_certificate(*certificate).unwrap();
                self.proxy.cut().await;
            }
            Fault::PlainHttp => {
                self.proxy.set(Mode::To(self.server.url().rsplit(':').next().unwrap().parse().unwrap())).await;
                self.proxy.cut().await;
            }
            Fault::NoName(_) => {
                self.files.write("hosts", "127.0.0.1 localhost\n");
                self.proxy.cut().await;
            }
            Fault::WallClock(shift) => {
                self.files.write("shift", &shift.to_string());
            }
            // The process itself is stopped.
            Fault::Stop => {}
        }
    }

    async fn end(&self, fault: &Fault, names: &Names) {
        self.server.clear_faults();
        match fault {
            Fault::Admin(_, off) => self.server.with_model(|model| off(model, names)),
            Fault::Shows(_) => drop(self.server.set_certificate(Certificate::Good).unwrap()),
            Fault::NoName(_) => _ = self.files.write("hosts", &format!("127.0.0.1 localhost {HOST}\n")),
            // Tasks that hang would never end.
            Fault::Rules(_) | Fault::Random(_) => self.server.with_model(|model| {
                for name in names.removed.split(' ').chain(names.added.iter().map(String::as_str)) {
                    let hangs = matches!(fault, Fault::Random(_)) || name == names.removed;
                    for id in model.vapps_named(name).into_iter().filter(|_| hangs) {
                        model.admin_end_tasks(id, TaskStatus::Aborted);
                    }
                }
            }),
            _ => {}
        }
        self.proxy.set(Mode::Pass).await;
    }
}

/// The host. It wants [`WANTED`] instances, and treats unhealthy ones like GitLab Runner.
struct Host<'a> {
    plugin: &'a PluginProcess,
    /// A client with a timeout: calls must not hang, even if VCD hangs for minutes.
    client: Client,
    names: Names,
    /// The states of each instance, without repetition.
    seen: BTreeMap<String, Vec<&'static str>>,
    /// The instances that it wants to delete.
    given_up: BTreeSet<String>,
    /// The results of Heartbeat for the instance that stays.
    heartbeats: Vec<String>,
    accepted: Vec<u32>,
}

fn word(state: State) -> &'static str {
    match state {
        State::Creating => "creating",
        State::Running => "running",
        State::Deleting => "deleting",
        State::Deleted => "deleted",
        State::Timeout => "timeout",
        State::Suspending => "suspending",
        State::Suspended => "suspended",
        State::Resuming => "resuming",
    }
}

impl Host<'_> {
    async fn increase(&mut self, n: usize) {
        let accepted = self.client.increase(n as u32).await.unwrap();
        self.accepted.push(accepted);
    }

    async fn decrease(&mut self, name: &str) {
        assert_eq!(self.client.decrease(&[name]).await.unwrap(), [name.to_owned()]);
        self.given_up.insert(name.to_owned());
        // The next look may come after the delete.
        let instances = self.client.update().await.unwrap();
        let now = instances.into_iter().find_map(|(found, state)| (found == name).then_some(state));
        if let Some(state) = now {
            self.saw(name, state);
        }
    }

    fn saw(&mut self, name: &str, state: State) {
        let states = self.seen.entry(name.to_owned()).or_default();
        if states.is_empty() && *name != self.names.stays && *name != self.names.removed {
            self.names.added.push(name.to_owned());
        }
        if states.last() != Some(&word(state)) {
            states.push(word(state));
        }
    }

    /// Calls Update and Heartbeat, and reacts. True if everything is as the host wants it.
    async fn look(&mut self) -> bool {
        let instances = self.client.update().await.unwrap();
        let mut alive = 0;
        let mut well = true;
        for (name, state) in &instances {
            self.saw(name, *state);
            let mut lost = matches!(state, State::Timeout);
            if *state == State::Running && !self.given_up.contains(name) {
                let answer = self.client.heartbeat(name).await;
                // The instance may have ended between the two calls.
                lost = answer.is_err() && self.client.update().await.unwrap().contains(&(name.clone(), State::Running));
                if *name == self.names.stays && (answer.is_ok() || lost) {
                    let said = answer.err().map_or("healthy".to_owned(), |status| {
                        status.message().replace(&format!("instance {name}: "), "").trim().to_owned()
                    });
                    if self.heartbeats.last() != Some(&said) {
                        self.heartbeats.push(said);
                    }
                }
            }
            if lost && !self.given_up.contains(name) {
                self.decrease(name).await;
            }
            let is_alive = matches!(state, State::Creating | State::Running) && !self.given_up.contains(name);
            alive += usize::from(is_alive);
            let over = matches!(state, State::Deleted | State::Timeout);
            well &= if is_alive { *state == State::Running } else { over };
        }
        if alive < WANTED {
            self.increase(WANTED - alive).await;
        }
        well && alive == WANTED
    }

    fn path(&self, name: &str) -> String {
        let states = self.seen.get(name).map_or(&[][..], Vec::as_slice);
        let states = if *name == self.names.removed { &states[1..] } else { states };
        states.iter().map(|state| format!("`{state}`")).collect::<Vec<_>>().join(", ")
    }

    fn running(&self) -> BTreeSet<String> {
        let last = |name: &&String| self.seen[*name].last() == Some(&"running") && !self.given_up.contains(*name);
        self.seen.keys().filter(last).cloned().collect()
    }
}

/// The log from a line on, without details.
fn told(plugin: &PluginProcess, from: usize) -> String {
    let log = plugin.log().split_off(from);
    log.into_iter().filter(|line| !line.contains("\"@level\":\"debug\"")).collect::<Vec<_>>().join("\n")
}

/// The scenario: two instances run. The fault starts. The host wants one more and one less, and continues its checks.
/// The fault ends after it has had an effect. Then everything has to become normal, and at the end nothing is left.
async fn play(case: &Case) -> Row {
    let place = Place::new(&case.fault, &case.keys);
    let mut plugin = PluginProcess::start(place.command(&case.fault)).await;
    place.init(&plugin).await.unwrap_or_else(|status| panic!("{}: {}", case.name, status.message()));
    plugin.increase(WANTED as u32).await.unwrap();
    let first = live::reach(&plugin, WANTED, State::Running).await;
    let names = Names { stays: first[0].clone(), removed: first[1].clone(), added: Vec::new() };
    let mut host = Host {
        plugin: &plugin,
        client: plugin.with_time_limit(CALL_LIMIT),
        names,
        seen: BTreeMap::new(),
        given_up: BTreeSet::new(),
        heartbeats: Vec::new(),
        accepted: Vec::new(),
    };
    host.look().await;

    let (lines, made) = (plugin.log().len(), place.server.accepted("instantiate"));
    let hits = place.server.hits();
    let asks_first = matches!(case.fault, Fault::AdminLate(_) | Fault::Stop | Fault::WallClock(_));
    if let Fault::AdminLate(_) = case.fault {
        // On a busy machine the fault may come late, and has to come before the create has ended.
        assert!(place.server.add_fault(Rule::from_json(&json!({"op": "instantiate", "slow": 5.0})).unwrap()));
    }
    if !asks_first {
        place.begin(&case.fault, &host.names).await;
    }
    let began = Instant::now();
    host.increase(1).await;
    let removed = host.names.removed.clone();
    host.decrease(&removed).await;
    host.look().await;
    assert_eq!(host.names.added.len(), 1, "{}: an accepted request has an id immediately", case.name);
    if asks_first {
        place.begin(&case.fault, &host.names).await;
    }
    if let Fault::Stop = case.fault {
        plugin.signal(Signal::STOP);
    }
    let limit = LIMITS[usize::from(case.long)];
    let said = |host: &Host<'_>| host.plugin.log().iter().skip(lines).any(|line| line.contains(case.says));
    let mut hit = None;
    loop {
        if !matches!(case.fault, Fault::Stop) {
            host.look().await;
        }
        let by_rule = matches!(case.fault, Fault::Rules(_) | Fault::Random(_));
        if hit.is_none() && (!by_rule || place.server.hits() > hits) {
            hit = Some(Instant::now());
        }
        let met = hit.is_some() && said(&host);
        let over = match case.ends {
            Ends::WhenMet => true,
            Ends::After(time) => began.elapsed() >= time,
            Ends::WhenRunning => host.running().contains(&host.names.added[0]),
        };
        if met && over {
            break;
        }

        assert!(began.elapsed() < limit, "{}: the fault had no effect\n{}", case.name, told(&plugin, lines));
        Timer::after(LOOK).await;
    }
    let meanwhile = host.path(&host.names.added[0].clone());
    place.end(&case.fault, &host.names).await;
    if let Fault::Stop = case.fault {
        plugin.signal(Signal::CONT);
    }

    let ended = Instant::now();
    while !(host.look().await && place.ours() == host.running()) {
        let left = place.ours();
        assert!(
            ended.elapsed() < limit,
            "{}: not normal: {:?}, VCD has {left:?}\n{}",
            case.name,
            host.seen,
            told(&plugin, lines)
        );
        Timer::after(LOOK).await;
    }
    // A fault that hits once is over after its hit.
    let took = if case.ends == Ends::WhenMet { hit.unwrap_or(began).elapsed() } else { ended.elapsed() };
    if let Fault::WallClock(shift) = case.fault {
        let log = plugin.log().last().unwrap().clone();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let at = |shift| timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(now.saturating_add_signed(shift)));
        let stamp = serde_json::from_str::<Value>(&log).unwrap()["@timestamp"].as_str().unwrap().to_owned();
        assert!(stamp > at(shift - 60) && stamp < at(shift + 60), "{}: its log has a wrong time: {log}", case.name);
    }
    assert_eq!(host.accepted.iter().filter(|n| **n == 0).count(), 0, "{}: Increase always accepts", case.name);

    let new: Vec<String> = host.names.added.iter().map(|name| host.path(name)).collect();
    let mut new = new.join("; replacement: ");
    if matches!(case.ends, Ends::After(_)) && meanwhile == "`creating`" {
        new = new.replacen("`creating`", "`creating` during the fault", 1);
    }
    let made = match case.fault {
        Fault::Random(_) => "-".to_owned(),
        _ => (place.server.accepted("instantiate") - made).to_string(),
    };
    let says = match case.says {
        "" => "-".to_owned(),
        text => format!("`{text}`"),
    };
    let stays = format!("{}: {}", host.path(&host.names.stays), host.heartbeats.join(", then "));
    let gone = host.path(&removed);
    if std::env::var_os("SHOW_LOG").is_some() {
        println!("=== {}\n{}", case.name, told(&plugin, lines));
    }

    plugin.shutdown().await.unwrap();
    plugin.quit().await.unwrap();
    let (status, _) = plugin.exited().await;
    assert!(status.success(), "{}: {status}", case.name);
    assert_eq!(place.ours(), BTreeSet::new(), "{}: shutdown deletes everything", case.name);
    Row { cells: vec![stays, new, gone, made, says], took }
}

/// False, with a message, if this machine does not allow the fault.
fn can_be_played(fault: &Fault) -> bool {
    let can = match fault {
        Fault::NoName(Resolver::Silent) => has_namespaces() && name_server().is_ok(),
        Fault::NoName(Resolver::Refused) => has_namespaces(),
        _ => true,
    };
    if !can {
        eprintln!("unshare --user --mount or port 53 is not allowed here: the faults of the resolver are skipped");
    }
    can
}

/// Plays cases concurrently, each on its own thread. A case that panics has no result.
fn side_by_side<C: Sync, R: Send>(cases: &[C], at_once: usize, play: impl Fn(&C) -> R + Sync) -> Vec<Option<R>> {
    let results: Vec<Mutex<Option<R>>> = cases.iter().map(|_| Mutex::new(None)).collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..at_once.min(cases.len()) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::SeqCst);
                    let Some(case) = cases.get(index) else { return };
                    let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| play(case)));
                    *results[index].lock().unwrap() = played.ok();
                }
            });
        }
    });
    results.into_iter().map(|result| result.into_inner().unwrap()).collect()
}

/// `3 s`, `2 min`: rounded for the tables.
fn rounded(took: Duration) -> String {
    match took.as_secs_f64() {
        seconds if seconds < 100.0 => format!("{:.0} s", seconds.max(1.0)),
        seconds => format!("{:.0} min", seconds / 60.0),
    }
}

/// The heads of the tables. The last column is not compared.
const HEAD: [&str; 7] = [
    "fault",
    "existing instance",
    "new instance",
    "deleted instance",
    "VMs created",
    "log line contains",
    "normal after",
];
/// The same for faults at Init.
const START_HEAD: [&str; 5] = ["fault", "Init returns", "message contains", "after the fault", "answered after"];

/// One section of the document.
struct Section {
    /// Its name in the comments around it.
    name: &'static str,
    head: &'static [&'static str],
    /// The titles of its tables, each with the first cells of its rows.
    tables: Vec<(&'static str, Vec<&'static str>)>,
}

/// The rows of the document's tables by their first cell.
fn rows_of(section: &str) -> BTreeMap<String, Vec<String>> {
    let cells = |line: &str| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let rows = section.lines().filter(|line| line.starts_with("| ")).map(cells);
    rows.map(|cells| (cells[0].clone(), cells)).collect()
}

/// Compares the results with the document, or writes them into it.
fn hold_against_document(section: &Section, seen: &[(&str, Row)]) {
    static WRITING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = WRITING.lock();
    let document = std::fs::read_to_string(DOCUMENT).unwrap();
    let begin = format!("<!-- {}: written by tests/plugin/reliability.rs -->\n", section.name);
    let end = format!("<!-- end of {} -->\n", section.name);
    let (before, rest) = document.split_once(&begin).expect("the section begins");
    let (text, after) = rest.split_once(&end).expect("the section ends");
    let mut rows = rows_of(text);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        for (name, row) in seen {
            let cells = std::iter::once(name.to_string()).chain(row.cells.iter().cloned());
            rows.insert(name.to_string(), cells.chain([rounded(row.took)]).collect());
        }
        let mut text = String::new();
        for (title, names) in &section.tables {
            let rule = vec!["---"; section.head.len()].join(" | ");
            text += &format!("\n### {title}\n\n| {} |\n| {rule} |\n", section.head.join(" | "));
            for row in names.iter().filter_map(|name| rows.get(*name)) {
                text += &format!("| {} |\n", row.join(" | "));
            }
        }
        std::fs::write(DOCUMENT, format!("{before}{begin}{text}\n{end}{after}")).unwrap();
        return;
    }
    let mut differences = Vec::new();
    for (name, row) in seen {
        let told = rows.get(*name).map(|cells| &cells[1..cells.len() - 1]);
        if told != Some(&row.cells[..]) {
            differences.push(format!("{name}:\n  the document: {told:?}\n  seen:         {:?}", row.cells));
        }
    }
    let names = section.tables.iter().flat_map(|(_, names)| names).copied();
    let names: BTreeSet<&str> = names.chain([section.head[0], "---"]).collect();
    let unknown: Vec<&String> = rows.keys().filter(|name| !names.contains(name.as_str())).collect();
    assert!(unknown.is_empty(), "rows without a case: {unknown:?}");
    let missing: Vec<&&str> = names.iter().filter(|name| !rows.contains_key(**name)).collect();
    assert!(missing.is_empty(), "cases without a row: {missing:?}");
    assert!(differences.is_empty(), "update it with UPDATE_GOLDEN=1?\n{}", differences.join("\n"));
}

fn run(long: bool, at_once: usize) {
    let all = cases();
    // A single case, for debugging.
    let only = std::env::var("CASE").unwrap_or_default();
    let chosen = all.iter().filter(|case| case.long == long && case.name.contains(&only));
    let chosen: Vec<&Case> = chosen.filter(|case| can_be_played(&case.fault)).collect();
    let rows = side_by_side(&chosen, at_once, |case| smol::block_on(play(case)));
    let (mut seen, mut failed) = (Vec::new(), Vec::new());
    for (case, row) in chosen.into_iter().zip(rows) {
        match row {
            Some(row) => seen.push((case.name, row)),
            None => failed.push(case.name),
        }
    }
    let of = |part| all.iter().filter(move |case| case.part == part).map(|case| case.name).collect();
    let tables = PARTS.map(|part| (part, of(part))).to_vec();
    hold_against_document(&Section { name: "faults", head: &HEAD, tables }, &seen);
    assert!(failed.is_empty(), "failed, see above: {failed:#?}");
}

#[test]
fn the_plugin_recovers_from_short_faults() {
    run(false, AT_ONCE);
}

#[test]
#[ignore = "the plugin's own limits make some faults last for minutes"]
fn the_plugin_recovers_from_long_faults() {
    run(true, usize::MAX);
}

/// A fault during Init.
struct Start {
    name: &'static str,
    fault: Fault,
    code: Code,
    says: &'static str,
}

fn starts() -> Vec<Start> {
    let start = |name, fault, code, says| Start { name, fault, code, says };
    let rule = |rule: Value| Fault::Rules(vec![with(json!({"times": 0}), rule)]);
    let revoke = Fault::Admin(
        |model, _| model.admin_revoke_token("sim-api-token"),
        |model, _| _ = model.tokens.insert("sim-api-token".into(), *model.users.keys().next().unwrap()),
    );
    let unavailable = Code::Unavailable;
    vec![
        start("connection refused", Fault::Network(Mode::Refuse), unavailable, "Connection refused"),
        start("packets are dropped", Fault::Network(Mode::Drop), unavailable, "timeout: connect"),
        start("accepted, but never answered", Fault::Network(Mode::Hold), unavailable, "timeout: global"),
        start("each connection is reset", Fault::Network(Mode::Reset), unavailable, "Connection reset by peer"),
        start("slow answers: one byte per second", Fault::Network(Mode::Drip(DRIP)), unavailable, "timeout: global"),
        start(
            "the host name does not resolve",
            Fault::NoName(Resolver::Refused),
            unavailable,
            "failed to lookup address",
        ),
        start(
            "the name server does not answer",
            Fault::NoName(Resolver::Silent),
            unavailable,
            "failed to lookup address",
        ),
        start(
            "TLS: the certificate has expired",
            Fault::Shows(Certificate::Expired),
            unavailable,
            "certificate expired",
        ),
        start(
            "TLS: the certificate is for another host",
            Fault::Shows(Certificate::OtherHost),
            unavailable,
            "not valid for name",
        ),
        start(
            "TLS: the certificate is from an unknown CA",
            Fault::Shows(Certificate::OtherCa),
            unavailable,
            "UnknownIssuer",
        ),
        start(
            "TLS: closed after 100 bytes of the handshake",
            Fault::NetworkTls(Mode::Cut(100)),
            unavailable,
            "TLS handshake",
        ),
        start("TLS: accepted, but never answered", Fault::NetworkTls(Mode::Hold), unavailable, "timeout"),
        start("plain HTTP on the TLS port", Fault::PlainHttp, unavailable, "TLS handshake"),
        start(
            "every request answered 503",
            rule(json!({"answer_before": {"status": 503}})),
            unavailable,
            "VCD answered 503",
        ),
        start("every answer is an HTML page", rule(json!({"html": true})), unavailable, "the answer is a web page"),
        start("every answer cut after 40 bytes", rule(json!({"truncate": 40})), unavailable, "is incomplete"),
        start(
            "polls answered 500",
            rule(json!({"op": "query:vm", "answer_before": {"status": 500}})),
            unavailable,
            "VCD answered 500",
        ),
        start("the token is revoked", revoke, Code::InvalidArgument, "VCD rejected the API token"),
    ]
}

/// Init fails in limited time, with a message, and nothing is created. After the end of the fault, Init works in the
/// same process.
async fn play_start(start: &Start) -> Row {
    let place = Place::new(&start.fault, &json!({}));
    let mut plugin = PluginProcess::start(place.command(&start.fault)).await;
    place.begin(&start.fault, &Names::default()).await;
    let began = Instant::now();
    let status = place.init(&plugin).await.expect_err(start.name);
    let took = began.elapsed();
    let message = status.message();
    assert_eq!(status.code(), start.code, "{}: {message}", start.name);
    assert!(message.contains(start.says) && message.contains("no VM was created"), "{}: {message}", start.name);
    place.end(&start.fault, &Names::default()).await;
    let again = place.init(&plugin).await;
    again.unwrap_or_else(|status| panic!("{}, after the fault: {}", start.name, status.message()));
    plugin.shutdown().await.unwrap();
    plugin.quit().await.unwrap();
    assert!(plugin.exited().await.0.success(), "{}", start.name);
    assert_eq!(place.server.accepted("instantiate"), 0);
    let cells = [&format!("`{:?}`", start.code), &format!("`{}`", start.says), "Init works in the same process"];
    Row { cells: cells.map(String::from).to_vec(), took }
}

#[test]
fn faults_at_the_start() {
    let all = starts();
    let chosen: Vec<&Start> = all.iter().filter(|start| can_be_played(&start.fault)).collect();
    let rows = side_by_side(&chosen, AT_ONCE, |start| smol::block_on(play_start(start)));
    let played: Vec<_> = chosen.iter().zip(rows).filter_map(|(start, row)| Some((start.name, row?))).collect();
    let tables = vec![("At the start", all.iter().map(|start| start.name).collect())];
    hold_against_document(&Section { name: "faults at the start", head: &START_HEAD, tables }, &played);
    assert_eq!(played.len(), chosen.len(), "some failed, see above");
}

/// A list of kinds of faults, and the kind of a value. A kind that is not in the list does not compile.
macro_rules! kinds {
    ($names:ident, $name:ident($type:ty) { $($pattern:pat => $kind:literal),* $(,)? }) => {
        const $names: &[&str] = &[$($kind),*];
        fn $name(value: &$type) -> &'static str {
            match value { $($pattern => $kind),* }
        }
    };
}

kinds!(GUESTS, guest(GuestFault) {
    GuestFault::CustomizationFails => "guest: CustomizationFails",
    GuestFault::NeverCustomizes => "guest: NeverCustomizes",
    GuestFault::NeverReports => "guest: NeverReports",
    GuestFault::NoAddress => "guest: NoAddress",
    GuestFault::NoSsh => "guest: NoSsh",
    GuestFault::ShutsDown => "guest: ShutsDown",
});
kinds!(QUERIES, query(QueryFault) {
    QueryFault::Empty => "query: Empty",
    QueryFault::Partial => "query: Partial",
    QueryFault::Stale(_) => "query: Stale",
});
kinds!(TASKS, task(TaskFaultKind) {
    TaskFaultKind::Fail(_) => "task: Fail",
    TaskFaultKind::Hang => "task: Hang",
});

/// The parts of an effect, and whether each is set. A new field does not compile until it is here.
fn effects(effect: &Effect) -> Vec<(&'static str, bool)> {
    let Effect {
        answer_before,
        reset_before,
        reset_after,
        answer_after,
        delay_before_ms,
        delay_after_ms,
        truncate,
        html,
        // Faults of a vApp are set by an administrator, not by a rule.
        inject: vcd_sim::model::Inject { task: injected_task, slow, guest: injected_guest, hangs: _ },
        query: query_fault,
    } = effect;
    let mut all = vec![
        ("answer_before", answer_before.is_some()),
        ("reset_before", *reset_before),
        ("reset_after", *reset_after),
        ("answer_after", answer_after.is_some()),
        ("delay_before_ms", *delay_before_ms > 0),
        ("delay_after_ms", *delay_after_ms > 0),
        ("truncate", truncate.is_some()),
        ("html", *html),
        ("slow", slow.is_some()),
    ];
    let mut kinds = |names: &[&'static str], is: Option<&'static str>| {
        all.extend(names.iter().map(|name| (*name, Some(*name) == is)));
    };
    kinds(GUESTS, injected_guest.as_ref().map(guest));
    kinds(QUERIES, query_fault.as_ref().map(query));
    kinds(TASKS, injected_task.as_ref().map(|fault| task(&fault.kind)));
    all
}

#[test]
fn every_fault_of_the_simulator_has_a_row() {
    let mut missing: BTreeSet<&str> = effects(&Effect::default()).into_iter().map(|(name, _)| name).collect();
    for case in cases() {
        let Fault::Rules(rules) = &case.fault else { continue };
        for rule in rules {
            for (name, _) in effects(&Rule::from_json(rule).unwrap().effect).iter().filter(|(_, is)| *is) {
                missing.remove(name);
            }
        }
    }
    assert!(missing.is_empty(), "no row for {missing:?}");
    let names: BTreeSet<&str> = cases().iter().map(|case| case.name).collect();
    assert_eq!(names.len(), cases().len(), "each row has its own name");
}
