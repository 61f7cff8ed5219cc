//! The standby pool end to end: VMs are created, used, adopted after a kill, kept or deleted at shutdown. The pool
//! stays empty if VCD does not suspend.

use crate::common::{PluginProcess, command, soon, until};
use crate::fleet;
use crate::live::{BINARY, SCALE, end, reach};
use crate::relay::{Answer, Relay, Request, Watch};
use fleeting_plugin_vcd::access::Key;
use fleeting_plugin_vcd::host::proto::fleeting::{ConnectorConfig, State};
use serde_json::{Value, json};
use smol::{Timer, block_on};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vcd_sim::Server;
use vcd_sim::faults::Rule;
use vcd_sim::model::{Model, Power, VappId, Vm, VmId};

/// What the metadata keys of both suspend marks begin with.
const MARKS: &str = "fleeting-s";

/// The plugin after Init, and the address of its debug server.
struct Standby {
    plugin: PluginProcess,
    debug: String,
}

impl Standby {
    /// A plugin with two standby VMs, and more keys.
    async fn start(server: &Server, guest_port: u16, keys: Value) -> Standby {
        Standby::start_as(server, fleet::connector(guest_port), keys).await
    }

    async fn start_as(server: &Server, connector: ConnectorConfig, keys: Value) -> Standby {
        let debug = format!("127.0.0.1:{}", fleet::free_port());
        let mut config = fleet::plugin_config(server);
        let own = json!({"standby_count": 2, "debug_server_addr": debug});
        for keys in [own, keys] {
            config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        }
        let plugin = PluginProcess::start(command(BINARY)).await;
        plugin.init(config.to_string().as_bytes(), connector).await.unwrap();
        Standby { plugin, debug }
    }

    /// Waits until this many VMs are in standby. Returns their names, the oldest first.
    async fn full(&self, server: &Server, count: usize) -> Vec<String> {
        self.metric("instances_current{state=\"Standby\"}", count as f64).await;
        let names = in_standby(server);
        assert_eq!(names.len(), count, "{:?}", self.plugin.log());
        names
    }

    /// Waits until a metric has this value.
    async fn metric(&self, name: &str, wanted: f64) {
        until(&format!("{name} {wanted}"), || sample(&self.debug, name) == Some(wanted)).await;
    }

    /// Kills the plugin like `kill -9`.
    async fn kill(mut self) {
        self.plugin.child.kill().unwrap();
        soon("the plugin's end", self.plugin.child.status()).await.unwrap();
    }
}

/// The value of a metric. Labels follow the name in braces.
fn sample(debug: &str, name: &str) -> Option<f64> {
    let page = ureq::get(format!("http://{debug}/metrics")).call().ok()?.body_mut().read_to_string().ok()?;
    let (name, label) = name.split_once('{').unwrap_or((name, ""));
    let is_it = |line: &&str| {
        let rest = line.strip_prefix("fleeting_vcd_").and_then(|line| line.strip_prefix(name));
        rest.is_some_and(|rest| rest.starts_with('{') && rest.contains(label.trim_end_matches('}')))
    };
    page.lines().find(is_it)?.rsplit(' ').next()?.parse().ok()
}

/// Its suspend marks, as metadata entries.
fn marks(model: &Model, id: VappId) -> Vec<String> {
    let entries = model.vapps[&id].metadata.iter().filter(|(key, _)| key.starts_with(MARKS));
    entries.map(|(key, (_, value))| format!("{key} {value}")).collect()
}

fn power(model: &Model, id: VappId) -> Power {
    model.vms[&model.vapps[&id].vms[0]].power
}

/// The vApps that are suspended and marked as standby, the oldest first.
fn in_standby(server: &Server) -> Vec<String> {
    server.with_model(|model| {
        let stands_by = |id: &VappId| {
            let has_vm = !model.vapps[id].vms.is_empty();
            let marks = marks(model, *id);
            let is_marked = matches!(&marks[..], [mark] if mark.starts_with("fleeting-standby "));
            has_vm && power(model, *id) == Power::Suspended && is_marked
        };
        let mut all: Vec<_> = model.vapps.iter().filter(|(id, _)| stands_by(id)).map(|(_, vapp)| vapp).collect();
        all.sort_by_key(|vapp| vapp.created);
        all.into_iter().map(|vapp| vapp.name.to_string()).collect()
    })
}

fn fault(server: &Server, rule: Value) {
    assert!(server.add_fault(Rule::from_json(&rule).unwrap()));
}

/// Connects to its login port.
async fn is_reached(plugin: &PluginProcess, name: &str) -> std::net::SocketAddr {
    let info = plugin.connect_info(name).await.unwrap();
    let port = u16::try_from(info.connector.unwrap().protocol_port).unwrap();
    let address = (info.internal_addr.parse::<Ipv4Addr>().unwrap(), port).into();
    TcpStream::connect(address).expect("its port answers");
    address
}

#[test]
fn the_pool_is_filled_and_not_reported() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let Standby { plugin, debug } = {
            let standby = Standby::start(&server, guest_port, json!({})).await;
            standby.full(&server, 2).await;
            standby.metric("standby_created_total", 2.0).await;
            standby
        };
        assert_eq!(plugin.update().await.unwrap(), []);
        assert_eq!(sample(&debug, "pool_size"), Some(0.0), "they are in addition to max_size");
        assert_eq!(sample(&debug, "instances_created_total"), Some(0.0));
        let json = ureq::get(format!("http://{debug}/api/status")).call().unwrap().body_mut().read_to_string().unwrap();
        let json: Value = serde_json::from_str(&json).unwrap();
        let shown = json["Instances"].as_array().unwrap().iter();
        let shown = shown.filter(|one| one["Phase"] == "Standby" && one["Reported"] == false).count();
        assert_eq!(shown, 2, "{json}");
        end(plugin).await;
        assert!(fleet::vapps(&server).is_empty(), "on_shutdown is delete");
    });
}

/// A request for a vApp, and the vApp's state and marks at that time.
type Came = (String, Power, Vec<String>);

/// Records suspends, marks and resumes.
struct Book {
    server: Arc<Server>,
    came: Mutex<BTreeMap<String, Vec<Came>>>,
}

impl Watch for Book {
    fn before(&self, request: &mut Request) -> bool {
        let Some((_, rest)) = request.path.split_once("/vApp/vapp-") else { return true };
        let Some((uuid, action)) = rest.split_once('/').filter(|_| request.changes()) else { return true };
        let body = String::from_utf8_lossy(&request.body);
        let what = match action {
            "metadata" if !body.contains(MARKS) => return true,
            "metadata" => {
                let text =
                    |tag: &str| body.split(tag).nth(1).and_then(|rest| rest.split('<').next()).unwrap_or_default();
                format!("{} {}", text("<Key>"), text("<Value>"))
            }
            action => action.replace("power/action/", ""),
        };
        let (name, came) = self.server.with_model(|model| {
            let id = model.parse_uuid(uuid).unwrap();
            (model.vapps[&id].name.to_string(), (what, power(model, id), marks(model, id)))
        });
        self.came.lock().unwrap().entry(name).or_default().push(came);
        true
    }

    fn after(&self, _: &Request, answer: Answer) -> Option<Answer> {
        Some(answer)
    }
}

#[test]
fn an_increase_uses_standby_vms_first_and_each_is_marked_as_used_before_its_resume() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let server = Arc::new(server);
        let book = Arc::new(Book { server: server.clone(), came: Mutex::default() });
        let relay = Relay::start(&server.url(), book.clone());
        let standby = Standby::start(&server, guest_port, json!({"url": format!("{}/api", relay.url())})).await;
        let waiting = standby.full(&server, 2).await;
        let in_standby = server.with_model(|model| marks(model, model.vapps_named(&waiting[0])[0]));
        let [as_standby] = &in_standby[..] else { panic!("{in_standby:?}") };
        let used = "fleeting-suspend no";
        let plugin = &standby.plugin;
        assert_eq!(plugin.increase(3).await.unwrap(), 3);
        let told = plugin.update().await.unwrap();
        assert!(told.len() == 3 && told.iter().all(|(_, state)| *state == State::Creating), "immediately: {told:?}");
        assert!(waiting.iter().all(|name| told.iter().any(|(told, _)| told == name)), "{told:?}");
        let running = reach(plugin, 3, State::Running).await;
        for name in &running {
            is_reached(plugin, name).await;
        }
        standby.metric("standby_taken_total", 2.0).await;
        for (name, wanted) in [
            ("standby_taken_duration_seconds_count", 2.0),
            ("instance_creation_duration_seconds_count", 1.0),
            ("instances_created_total", 3.0),
            ("pool_size", 3.0),
        ] {
            assert_eq!(sample(&standby.debug, name), Some(wanted), "{name}");
        }
        let came = book.came.lock().unwrap().clone();
        for name in &waiting {
            let wanted: [(&str, Power, &[&str]); 4] = [
                ("suspend", Power::On, &[]),
                (as_standby, Power::Suspended, &[]),
                (used, Power::Suspended, &[as_standby]),
                ("powerOn", Power::Suspended, &[as_standby, used]),
            ];
            let wanted = wanted.map(|(what, power, marks)| {
                (what.to_owned(), power, marks.iter().map(|mark| mark.to_string()).collect::<Vec<_>>())
            });
            assert_eq!(came[name], wanted, "{name}");
        }
        let new = running.iter().find(|name| !waiting.contains(name)).unwrap();
        assert!(
            !came.contains_key(new),
            "a VM that is created for GitLab Runner is neither suspended nor marked: {came:?}"
        );
        standby.full(&server, 2).await;
        assert_eq!(fleet::vapps(&server).len(), 5, "the pool is full again");
        end(standby.plugin).await;
        assert!(fleet::vapps(&server).is_empty());
    });
}

#[test]
fn standby_vms_survive_a_kill_and_are_replaced_after_a_change_of_the_configuration() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let standby = Standby::start(&server, guest_port, json!({})).await;
        let before = standby.full(&server, 2).await;
        standby.kill().await;

        let standby = Standby::start(&server, guest_port, json!({})).await;
        assert_eq!(standby.plugin.update().await.unwrap(), []);
        assert_eq!(standby.full(&server, 2).await, before);
        let log = standby.plugin.log();
        assert_eq!(log.iter().filter(|line| line.contains("found in standby: adopted")).count(), 2, "{log:#?}");
        assert_eq!((server.requests("instantiate"), server.requests("delete")), (2, 0));
        assert_eq!(sample(&standby.debug, "standby_created_total"), Some(0.0), "this process has created none");
        // They can be used as before.
        standby.plugin.increase(1).await.unwrap();
        assert_eq!(reach(&standby.plugin, 1, State::Running).await, before[..1]);
        standby.plugin.decrease(&[&before[0]]).await.unwrap();
        let before = standby.full(&server, 2).await;
        until("the delete of the first", || fleet::vapps(&server).len() == 2).await;
        standby.kill().await;

        let standby = Standby::start(&server, guest_port, json!({"memory_mb": 8192})).await;
        assert_eq!(standby.plugin.update().await.unwrap(), []);
        let others = || server.with_model(|model| model.vms.values().filter(|vm| vm.memory_mb == 8192).count());
        until("two VMs of the new size", || others() == 2 && in_standby(&server).len() == 2).await;
        let after = standby.full(&server, 2).await;
        assert!(after.iter().all(|name| !before.contains(name)), "{before:?}, then {after:?}");
        assert_eq!(fleet::vapps(&server).len(), 2, "the old VMs are deleted");
        assert_eq!(standby.plugin.update().await.unwrap(), []);
        end(standby.plugin).await;
    });
}

#[test]
fn standby_vms_stay_at_shutdown_if_vms_are_kept() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let standby = Standby::start(&server, guest_port, json!({"on_shutdown": "keep"})).await;
        let before = standby.full(&server, 2).await;
        end(standby.plugin).await;
        assert_eq!(in_standby(&server), before);

        let standby = Standby::start(&server, guest_port, json!({"on_shutdown": "keep"})).await;
        assert_eq!(standby.full(&server, 2).await, before);
        end(standby.plugin).await;
        assert_eq!((in_standby(&server), server.requests("delete")), (before, 0));

        // If none are wanted, they are deleted.
        let standby = Standby::start(&server, guest_port, json!({"standby_count": 0})).await;
        until("an empty VCD", || fleet::vapps(&server).is_empty()).await;
        end(standby.plugin).await;

        let standby = Standby::start(&server, guest_port, json!({})).await;
        standby.full(&server, 2).await;
        end(standby.plugin).await;
        assert!(fleet::vapps(&server).is_empty(), "on_shutdown is delete");
    });
}

#[test]
fn without_suspend_the_pool_stays_empty_and_creates_continue() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let body = "<Error xmlns=\"http://www.vmware.com/vcloud/v1.5\" majorErrorCode=\"403\" \
                    minorErrorCode=\"ACCESS_TO_RESOURCE_IS_FORBIDDEN\" message=\"no right to suspend\"/>";
        fault(&server, json!({"op": "power:suspend", "times": 0, "answer_before": {"status": 403, "body": body}}));
        let standby = Standby::start(&server, guest_port, json!({})).await;
        standby
            .plugin
            .logged("no right to suspend; it cannot be used for standby and is deleted; the next is tried in ")
            .await;
        until("the delete of the VM that cannot be suspended", || fleet::vapps(&server).is_empty()).await;
        standby.plugin.increase(2).await.unwrap();
        let names = reach(&standby.plugin, 2, State::Running).await;
        for name in &names {
            is_reached(&standby.plugin, name).await;
        }
        assert_eq!(sample(&standby.debug, "breaker_failures"), Some(0.0), "creates work");
        assert_eq!(sample(&standby.debug, "standby_created_total"), Some(0.0));
        end(standby.plugin).await;
        assert!(fleet::vapps(&server).is_empty());
    });
}

#[test]
fn no_standby_vm_is_created_if_vcd_shows_that_it_cannot_be_suspended() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        server.with_model(|model| model.template_vms.values_mut().for_each(|vm| vm.passthrough = true));
        let standby = Standby::start(&server, guest_port, json!({})).await;
        let says = "the template's VM has a passthrough device: no VM is kept in standby";
        standby.plugin.logged(says).await;
        standby.plugin.increase(1).await.unwrap();
        reach(&standby.plugin, 1, State::Running).await;
        assert_eq!(server.requests("instantiate"), 1);
        end(standby.plugin).await;
    });
}

#[test]
fn generated_credentials_work_in_a_vm_from_standby() {
    block_on(async {
        for (template, os) in [("windows-2022", "windows"), ("ubuntu-22.04", "linux")] {
            let (server, guest_port) = fleet::simulator(SCALE);
            let connector = ConnectorConfig { protocol_port: guest_port.into(), ..ConnectorConfig::default() };
            let keys = json!({"template": template, "standby_count": 1});
            let standby = Standby::start_as(&server, connector.clone(), keys.clone()).await;
            let waiting = standby.full(&server, 1).await;
            // The next process has the same credentials.
            standby.kill().await;
            let standby = Standby::start_as(&server, connector, keys).await;
            assert_eq!(standby.full(&server, 1).await, waiting);
            standby.plugin.increase(1).await.unwrap();
            let names = reach(&standby.plugin, 1, State::Running).await;
            assert_eq!(names, waiting);
            is_reached(&standby.plugin, &names[0]).await;
            let login = standby.plugin.connect_info(&names[0]).await.unwrap().connector.unwrap();
            let applied = server.with_model(|model| {
                let id = model.vapps_named(&names[0])[0];
                model.vms[&model.vapps[&id].vms[0]].applied.clone().unwrap()
            });
            assert_eq!(login.os, os);
            match os {
                "windows" => assert_eq!(Some(login.password.as_str()), applied.password.as_deref()),
                _ => {
                    let key = Key::parse(&login.key).unwrap();
                    assert!(applied.script.unwrap().contains(&key.public), "the guest has its key");
                }
            }
            end(standby.plugin).await;
        }
    });
}

/// A standby VM with DHCP, after the end of its address lease. Its Tools report the new address late. Also returns
/// the guests' port, the VM's name and its old address.
async fn after_its_lease() -> (Server, u16, Standby, String, Ipv4Addr) {
    let (server, guest_port) = fleet::simulator(SCALE);
    server.with_model(|model| model.settings.dhcp_lease = Some(60_000));
    let keys = json!({"ip_allocation_mode": "DHCP", "standby_count": 1, "reconcile_interval": "1s"});
    let standby = Standby::start(&server, guest_port, keys).await;
    let name = standby.full(&server, 1).await.remove(0);
    let old = server.with_model(|model| vm_of(model, &name).address().unwrap());
    server.with_model(|model| model.durations.address = 150_000);
    let over = || server.with_model(|model| model.now() > vm_of(model, &name).suspended_at.unwrap() + 60_000);
    until("the end of its address lease", over).await;
    (server, guest_port, standby, name, old)
}

fn vm_of<'a>(model: &'a Model, name: &str) -> &'a Vm {
    &model.vms[&model.vapps[&model.vapps_named(name)[0]].vms[0]]
}

#[test]
fn a_vm_with_a_new_address_after_its_resume_is_reported_with_it() {
    block_on(async {
        let (server, _, standby, name, old) = after_its_lease().await;

        standby.plugin.increase(1).await.unwrap();
        let running = async {
            loop {
                let (_, state) = standby.plugin.update().await.unwrap().remove(0);
                let address = server.with_model(|model| vm_of(model, &name).address().unwrap());
                match state {
                    State::Running => return address,
                    state => assert_eq!(state, State::Creating),
                }
                Timer::after(Duration::from_millis(1)).await;
            }
        };
        let new = soon("running", running).await;
        assert_ne!(new, old);
        let reached = is_reached(&standby.plugin, &name).await;
        assert_eq!(reached.ip(), new, "not {old}");
        end(standby.plugin).await;
    });
}

#[test]
fn an_old_address_that_belongs_to_another_guest_is_not_reported() {
    block_on(async {
        let (server, guest_port, standby, name, old) = after_its_lease().await;
        server.with_model(|model| {
            let (vdc, network) = (*model.vdcs.keys().next().unwrap(), *model.networks.keys().next().unwrap());
            let template = *model.templates.keys().next().unwrap();
            model.admin_foreign_vm(vdc, "other-1", "somebody's", template, network).unwrap();
        });
        let foreign = || {
            let is_it = |(_, vm): &(&VmId, &Vm)| &*vm.name == "other-1" && vm.power == Power::On;
            server.with_model(|model| model.vms.iter().find(is_it).map(|(id, _)| *id))
        };
        until("the foreign VM", || foreign().is_some()).await;
        let id = foreign().unwrap();
        server.with_model(|model| {
            let vm = model.vms.get_mut(&id).unwrap();
            (vm.nics[0].address, vm.ssh) = (Some(old), true);
            // The simulator updates its guests.
            model.admin_host_down(id, false);
        });
        until("its port", || TcpStream::connect((old, guest_port)).is_ok()).await;

        standby.plugin.increase(1).await.unwrap();
        reach(&standby.plugin, 1, State::Running).await;
        let reached = is_reached(&standby.plugin, &name).await;
        assert_ne!(reached.ip(), old);
        end(standby.plugin).await;
    });
}
