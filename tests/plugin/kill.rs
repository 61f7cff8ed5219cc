//! Kills the plugin, or the host that started it, with SIGKILL at every request to VCD: before VCD gets the request,
//! and after VCD has carried it out, while instances are created, deleted, adopted, suspended or shut down. The next
//! plugin must recover: no id has two vApps, running instances are reported, every owned vApp is deleted in the end,
//! foreign vApps are not touched, and no process, socket or directory stays.
#![cfg(target_os = "linux")]

use crate::common::{PATIENCE, PluginProcess, command, until};
use crate::fleet;
use crate::relay::{Answer, Relay, Request, Watch};
use fleeting_plugin_vcd::host::proto::fleeting::State;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use smol::channel::{Receiver, Sender, bounded};
use smol::future::or;
use smol::{Timer, block_on};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tonic::Status;
use vcd_sim::model::{Create, GcStatus, HardwareInCreate, Item, Model, Power, VappId};
use vcd_sim::{Options, Server};

const BINARY: &str = env!("CARGO_BIN_EXE_fleeting-plugin-vcd");
/// Speed of the simulator's clock, as a multiple of real time.
const SCALE: f64 = 50.0;
/// The same during the setup of a world.
const FAST: f64 = 20_000.0;
/// Pause between two checks by a host: many hosts that check more often keep the processors busy.
const LOOK: Duration = Duration::from_millis(100);
/// Number of points that are tried concurrently, in all and of one sweep: they wait most of the time.
const AT_ONCE: usize = 48;
const OF_ONE_SWEEP: usize = 3;

/// What happens when the kill comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scene {
    /// Init, then Increase, until the instance runs.
    Create,
    /// The same with a VCD that rejects hardware in a create: compose, reconfigure, power on.
    CreateInSteps,
    /// Decrease of two instances, an adopted one and one of this process, until both are deleted.
    Delete,
    /// Init with one running, one suspended and one incomplete vApp, and one that is being deleted.
    Adopt,
    /// Shutdown with two running instances and one that is being created.
    Shutdown,
    /// Suspend, then Resume.
    Nap,
}

const SCENES: [Scene; 6] =
    [Scene::Create, Scene::CreateInSteps, Scene::Delete, Scene::Adopt, Scene::Shutdown, Scene::Nap];

/// Who is killed, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kill {
    /// The plugin; VCD does not get the request.
    PluginBefore,
    /// The plugin, after VCD has carried out the request. The answer is lost.
    PluginAfter,
    /// The host. The plugin continues alone.
    Host,
}

const KILLS: [Kill; 3] = [Kill::PluginBefore, Kill::PluginAfter, Kill::Host];

/// One attempt: the kill comes with the `at`-th request of the scene.
#[derive(Clone, Copy, Debug)]
struct Point {
    scene: Scene,
    kill: Kill,
    at: usize,
}

// The host, in this process or in a separate one.

/// The host of a plugin, and the files in `dir` that show the test its state after its death.
struct Host {
    plugin: PluginProcess,
    config: String,
    guest_port: u16,
    control: String,
    dir: PathBuf,
    /// Ids of wanted instances that were seen running or suspended.
    running: BTreeSet<String>,
}

/// The directory for the plugin's socket in the directory of a point.
fn sockets(dir: &Path) -> PathBuf {
    dir.join("sockets")
}

impl Host {
    async fn start(config: &str, guest_port: u16, control: &str, dir: &Path) -> Host {
        let mut command = command(BINARY);
        command.env("PLUGIN_UNIX_SOCKET_DIR", sockets(dir));
        let plugin = PluginProcess::start(command).await;
        fs::write(dir.join("plugin"), plugin.child.id().to_string()).unwrap();
        let (config, control, dir) = (config.to_owned(), control.to_owned(), dir.to_owned());
        Host { plugin, config, guest_port, control, dir, running: BTreeSet::new() }
    }

    async fn init(&self) -> Result<(), Status> {
        self.plugin.init(self.config.as_bytes(), fleet::connector(self.guest_port)).await.map(drop)
    }

    /// Requests are counted from now on.
    fn arm(&self) {
        fs::write(self.dir.join("armed"), "").unwrap();
    }

    fn remember(&self) {
        let names: Vec<&str> = self.running.iter().map(String::as_str).collect();
        fs::write(self.dir.join("running.new"), names.join("\n")).unwrap();
        fs::rename(self.dir.join("running.new"), self.dir.join("running")).unwrap();
    }

    /// The result of Update without deleted instances.
    async fn update(&mut self) -> Result<BTreeMap<String, State>, Status> {
        let mut all: BTreeMap<String, State> = self.plugin.update().await?.into_iter().collect();
        all.retain(|_, state| *state != State::Deleted);
        let before = self.running.len();
        let run = all.iter().filter(|(_, state)| matches!(state, State::Running | State::Suspended));
        self.running.extend(run.map(|(name, _)| name.clone()));
        if self.running.len() > before {
            self.remember();
        }
        Ok(all)
    }

    /// Waits until Update shows exactly these states.
    async fn reach(&mut self, states: &[State]) -> Result<Vec<String>, Status> {
        let mut wanted = states.to_vec();
        wanted.sort();
        let mut last = BTreeMap::new();
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            last = self.update().await?;
            let mut are: Vec<State> = last.values().copied().collect();
            are.sort();
            if are == wanted {
                return Ok(last.into_keys().collect());
            }
            Timer::after(LOOK).await;
        }
        panic!("waited for {states:?}, got {last:?}: {:#?}", self.plugin.log());
    }

    /// Names of owned vApps in VCD.
    fn in_vcd(&self) -> Vec<String> {
        let text = ureq::get(format!("{}/state", self.control)).call().unwrap().body_mut().read_to_string().unwrap();
        let state: Value = serde_json::from_str(&text).unwrap();
        let vapps = state["vapps"].as_array().expect("vApps").iter();
        let text = |vapp: &Value, key: &str| vapp[key].as_str().unwrap().to_owned();
        let ours = vapps.filter(|vapp| text(vapp, "description") == tag("runner-1", &text(vapp, "name")));
        ours.map(|vapp| text(vapp, "name")).collect()
    }

    /// Plays a scene until it ends.
    async fn play(&mut self, scene: Scene) -> Result<(), Status> {
        use State::{Running, Suspended};
        match scene {
            Scene::Create | Scene::CreateInSteps => {
                self.arm();
                self.init().await?;
                self.plugin.increase(1).await?;
                self.reach(&[Running]).await?;
            }
            Scene::Delete => {
                self.init().await?;
                self.plugin.increase(1).await?;
                let names = self.reach(&[Running, Running]).await?;
                self.running.clear();
                self.remember();
                self.arm();
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                self.plugin.decrease(&names).await?;
                self.reach(&[]).await?;
            }
            Scene::Adopt => {
                self.arm();
                self.init().await?;
                self.reach(&[Running, Suspended]).await?;
                let gone = Instant::now() + PATIENCE;
                while self.in_vcd().len() > 2 {
                    assert!(Instant::now() < gone, "{:?}: {:#?}", self.in_vcd(), self.plugin.log());
                    Timer::after(LOOK).await;
                }
            }
            Scene::Shutdown => {
                self.init().await?;
                self.plugin.increase(1).await?;
                while self.in_vcd().len() < 3 {
                    self.update().await?;
                    Timer::after(Duration::from_millis(20)).await;
                }
                self.running.clear();
                self.remember();
                self.arm();
                self.plugin.shutdown().await?;
                self.plugin.quit().await?;
                self.plugin.exited().await;
            }
            Scene::Nap => {
                self.init().await?;
                self.plugin.increase(1).await?;
                let names = self.reach(&[Running]).await?;
                self.arm();
                assert_eq!(self.plugin.suspend(&[&names[0]]).await?, names);
                self.reach(&[Suspended]).await?;
                assert_eq!(self.plugin.resume(&[&names[0]]).await?, names);
                self.reach(&[Running]).await?;
            }
        }
        Ok(())
    }
}

/// The host in a separate process, which can be killed. The tests below start it, with its data in `POINT`.
#[test]
#[ignore = "the other tests start it"]
fn host_process() {
    let Ok(point) = std::env::var("POINT") else { return };
    let point: Value = serde_json::from_str(&point).unwrap();
    let text = |key: &str| point[key].as_str().unwrap().to_owned();
    let scene = *SCENES.iter().find(|scene| format!("{scene:?}") == text("scene")).unwrap();
    let guest_port = u16::try_from(point["guest_port"].as_u64().unwrap()).unwrap();
    block_on(async {
        let mut host = Host::start(&text("config"), guest_port, &text("control"), Path::new(&text("dir"))).await;
        host.play(scene).await.unwrap();
    });
}

// The world.

const RUNS: &str = "ci-runs0001";
const SLEEPS: &str = "ci-sleeps01";
const GOES: &str = "ci-goes0001";
const HALF: &str = "ci-half0001";

fn tag(manager: &str, name: &str) -> String {
    format!("fleeting-plugin-vcd/1 manager={manager} group=ci-linux id={name}")
}

/// A simulated VCD with foreign vApps, behind a proxy that kills.
struct World {
    server: Arc<Server>,
    trap: Arc<Trap>,
    _relay: Relay,
    guest_port: u16,
    /// Reserves the guests' port.
    _port: TcpListener,
    config: String,
    dir: PathBuf,
    foreign: BTreeMap<VappId, String>,
}

impl Drop for World {
    fn drop(&mut self) {
        // If the test has failed, a plugin may still run that should have ended by itself.
        let plugin = fs::read_to_string(self.dir.join("plugin")).unwrap_or_default();
        if let (true, Ok(id)) = (std::thread::panicking(), plugin.parse()) {
            let is_plugin = fs::read_link(format!("/proc/{id}/exe")).is_ok_and(|exe| exe == Path::new(BINARY));
            if let (true, Some(id)) = (is_plugin, Pid::from_raw(id)) {
                let _ = kill_process(id, Signal::KILL);
            }
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn set_scale(server: &Server, scale: f64) {
    let body = json!({ "scale": scale }).to_string();
    ureq::post(format!("{}/scale", server.control_url())).send(body).unwrap();
}

/// What must not change.
fn face(model: &Model, id: VappId) -> String {
    let Some(vapp) = model.vapps.get(&id) else { return "gone".into() };
    let vms = vapp.vms.iter().filter_map(|vm| model.vms.get(vm));
    let vms: Vec<String> = vms.map(|vm| format!("{} {} {:?}", vm.name, vm.description, vm.power)).collect();
    format!("{} {} {:?} {:?} {:?} {vms:?}", vapp.name, vapp.description, vapp.metadata, vapp.task, vapp.last_task)
}

impl World {
    async fn new(point: Point) -> World {
        static COUNT: Mutex<usize> = Mutex::new(0);
        let number = {
            let mut count = COUNT.lock().unwrap();
            *count += 1;
            *count
        };
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        let guest_port = port.local_addr().unwrap().port();
        let server = Server::start(Options { scale: FAST, guest_port, ..Options::default() }).unwrap();
        let server = Arc::new(server);
        let dir = std::env::temp_dir().join(format!("vcd-kill-{}-{number}", std::process::id()));
        fs::create_dir_all(sockets(&dir)).unwrap();

        let mut running = vec!["other-1".to_owned(), "ci-other001".to_owned(), "ci-copy0001".to_owned()];
        running.extend(match point.scene {
            Scene::Create | Scene::CreateInSteps | Scene::Nap => vec![],
            Scene::Delete => vec![RUNS.to_owned()],
            Scene::Shutdown => vec![RUNS.to_owned(), SLEEPS.to_owned()],
            Scene::Adopt => vec![RUNS.to_owned(), SLEEPS.to_owned(), GOES.to_owned()],
        });
        let description = |name: &str| match name {
            "other-1" => "somebody's".to_owned(),
            "ci-other001" => tag("runner-2", name),
            "ci-copy0001" => tag("runner-1", RUNS),
            ours => tag("runner-1", ours),
        };
        server.with_model(|model| {
            // With this setting, VCD does not reject a second vApp with the same name.
            model.settings.allow_duplicate_names = true;
            if point.scene == Scene::CreateInSteps {
                model.settings.hardware_in_create = HardwareInCreate::Refuse;
            }
            let vdc = *model.vdcs.keys().next().unwrap();
            for name in &running {
                make(model, name, &description(name));
            }
            model.admin_foreign_vapp(vdc, "ci-empty001", "somebody's");
        });
        let ready = || {
            server.with_model(|model| {
                // They have no customization that would report.
                model.vms.values_mut().filter(|vm| vm.power == Power::On).for_each(|vm| {
                    vm.gc = GcStatus::Complete;
                    vm.ssh = true;
                });
                model.vms.len() == running.len()
                    && model.vms.values().all(|vm| vm.power == Power::On && vm.address().is_some() && vm.task.is_none())
                    && model.vapps.values().all(|vapp| vapp.task.is_none())
            })
        };
        until("the world", ready).await;
        set_scale(&server, SCALE);
        let foreign = server.with_model(|model| {
            if point.scene == Scene::Adopt || point.scene == Scene::Shutdown {
                let sleeps = model.vapps_named(SLEEPS)[0];
                model.admin_power(sleeps, Power::Suspended);
                // An earlier process suspended it, and marked it before.
                let mark = ("MetadataStringValue".into(), "yes".into());
                model.vapps.get_mut(&sleeps).unwrap().metadata.insert("fleeting-suspend".into(), mark);
            }
            if point.scene == Scene::Adopt {
                let (user, goes) = (*model.users.keys().next().unwrap(), model.vapps_named(GOES)[0]);
                model.delete_vapp(user, goes, true).unwrap();
                make_half(model, HALF, &tag("runner-1", HALF));
            }
            let ids: Vec<VappId> = model.vapps.keys().copied().collect();
            let is_foreign = |id: &VappId| !is_ours(model, *id);
            ids.into_iter().filter(is_foreign).map(|id| (id, face(model, id))).collect::<BTreeMap<_, _>>()
        });
        assert_eq!(foreign.len(), 4);

        let (sprung, heard) = bounded(1);
        let trap = Arc::new(Trap {
            point,
            dir: dir.clone(),
            server: server.clone(),
            state: Mutex::new(TrapState { victim: None, count: 0, over: false }),
            sprung,
            heard,
            wrong: Mutex::new(Vec::new()),
        });
        let relay = Relay::start(&server.url(), trap.clone());
        let mut config = fleet::plugin_config(&server);
        config["url"] = format!("{}/api", relay.url()).into();
        config["reconcile_interval"] = "1s".into();
        config["suspend_resume"] = true.into();
        let config = config.to_string();
        World { server, trap, _relay: relay, guest_port, _port: port, config, dir, foreign }
    }

    /// What must never happen.
    fn check(&self) {
        let wrong = self.trap.wrong.lock().unwrap().clone();
        assert!(wrong.is_empty(), "{wrong:#?}");
        self.server.with_model(|model| {
            for (id, before) in &self.foreign {
                assert_eq!(face(model, *id), *before, "a foreign vApp was touched");
            }
        });
    }

    /// Names of owned vApps in VCD.
    fn ours(&self) -> Vec<String> {
        self.server.with_model(|model| {
            let ours = model.vapps.iter().filter(|(id, _)| is_ours(model, **id));
            ours.map(|(_, vapp)| vapp.name.to_string()).collect()
        })
    }

    fn sockets_left(&self) -> usize {
        fs::read_dir(sockets(&self.dir)).unwrap().count()
    }
}

fn make(model: &mut Model, name: &str, description: &str) {
    let (vdc, network) = (*model.vdcs.keys().next().unwrap(), *model.networks.keys().next().unwrap());
    let template = *model.templates.iter().find(|(_, template)| &*template.name == "ubuntu-22.04").unwrap().0;
    model.admin_foreign_vm(vdc, name, description, template, network).unwrap();
}

/// A vApp with a slow create, which is off afterwards.
fn make_half(model: &mut Model, name: &str, description: &str) {
    let (user, vdc) = (*model.users.keys().next().unwrap(), *model.vdcs.keys().next().unwrap());
    let (id, template) = model.templates.iter().find(|(_, template)| &*template.name == "ubuntu-22.04").unwrap();
    let (id, item) = (*id, Item::new(template.vms[0]));
    let create = Create {
        name: name.into(),
        description: description.into(),
        items: vec![Item { name: Some(name.into()), description: Some(description.into()), ..item }],
        deploy: false,
        power_on: false,
        ..Create::default()
    };
    model.inject.slow = Some(3.0);
    model.instantiate(user, vdc, id, create).unwrap();
    model.inject.slow = None;
}

/// Its description has the owner tag.
fn is_ours(model: &Model, id: VappId) -> bool {
    model.vapps.get(&id).is_some_and(|vapp| *vapp.description == *tag("runner-1", &vapp.name))
}

/// Counts the requests of a scene, and kills at one of them. It checks all requests to VCD.
struct Trap {
    point: Point,
    dir: PathBuf,
    server: Arc<Server>,
    state: Mutex<TrapState>,
    sprung: Sender<()>,
    heard: Receiver<()>,
    wrong: Mutex<Vec<String>>,
}

struct TrapState {
    victim: Option<Pid>,
    count: usize,
    /// It has killed, or the scene ended before.
    over: bool,
}

impl Trap {
    /// Kills nobody from now on. True if it has not killed before.
    fn disarm(&self) -> bool {
        let mut state = self.state.lock().unwrap();
        !std::mem::replace(&mut state.over, true)
    }

    fn spring(&self) {
        let mut state = self.state.lock().unwrap();
        if std::mem::replace(&mut state.over, true) {
            return;
        }
        let victim = state.victim.expect("a victim");
        kill_process(victim, Signal::KILL).expect("it is running: it has just sent a request");
        // The victim must see nothing of what follows.
        while !is_gone(victim.as_raw_pid()) {
            std::thread::yield_now();
        }
        let _ = self.sprung.try_send(());
    }

    fn is_now(&self, mark: usize, kill: Kill) -> bool {
        mark == self.point.at && self.point.kill == kill
    }
}

impl Watch for Trap {
    fn before(&self, request: &mut Request) -> bool {
        if self.dir.join("armed").exists() {
            let mut state = self.state.lock().unwrap();
            if !state.over {
                state.count += 1;
                request.mark = state.count;
            }
        }
        if request.changes() {
            let named = self.server.with_model(|model| {
                let named = |id: VappId, vms: &[vcd_sim::model::VmId]| {
                    let names = |uuid: String| request.path.contains(&uuid);
                    !is_ours(model, id) && (names(model.uuid(id)) || vms.iter().any(|vm| names(model.uuid(*vm))))
                };
                model.vapps.iter().find(|(id, vapp)| named(**id, &vapp.vms)).map(|(_, vapp)| vapp.name.to_string())
            });
            if let Some(name) = named {
                self.wrong.lock().unwrap().push(format!("{} {} of {name}", request.method, request.path));
            }
        }
        if self.is_now(request.mark, Kill::PluginBefore) {
            self.spring();
            return false;
        }
        if self.is_now(request.mark, Kill::Host) {
            self.spring();
        }
        true
    }

    fn after(&self, request: &Request, answer: Answer) -> Option<Answer> {
        if request.changes() {
            self.server.with_model(|model| {
                let mut names = BTreeSet::new();
                for (id, vapp) in &model.vapps {
                    if is_ours(model, *id) && !names.insert(vapp.name.clone()) {
                        self.wrong.lock().unwrap().push(format!("two vApps for {}", vapp.name));
                    }
                }
            });
        }
        if self.is_now(request.mark, Kill::PluginAfter) {
            self.spring();
            return None;
        }
        Some(answer)
    }
}

/// The process has ended, whether or not its parent has read its exit status.
fn is_gone(process: i32) -> bool {
    match fs::read_to_string(format!("/proc/{process}/stat")) {
        // While one of its threads exists, its descriptors do, too: the next plugin would see its presence.
        Ok(stat) => {
            let ended = stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X']));
            ended && fs::read_dir(format!("/proc/{process}/task")).is_ok_and(|threads| threads.count() <= 1)
        }
        // Other errors, such as too many open files, say nothing about the process.
        Err(error) => error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(Errno::SRCH.raw_os_error()),
    }
}

// A point.

/// True if the scene reached the point, and a process was killed.
async fn try_point(point: Point) -> bool {
    let world = World::new(point).await;
    let control = world.server.control_url();
    let killed = match point.kill {
        Kill::Host => kill_host(&world, &control).await,
        Kill::PluginBefore | Kill::PluginAfter => kill_plugin(&world, &control).await,
    };
    if !killed {
        return false;
    }
    let running = fs::read_to_string(world.dir.join("running")).unwrap_or_default();
    let running: BTreeSet<String> = running.lines().map(str::to_owned).collect();
    let left = world.sockets_left();
    let log = fs::read_to_string(world.dir.join("log")).unwrap_or_default();
    assert_eq!(left, usize::from(point.kill != Kill::Host), "socket directories after the kill, {log}");

    let mut next = Host::start(&world.config, world.guest_port, &control, &world.dir).await;
    until("the end of the old socket", || world.sockets_left() == 1).await;
    next.init().await.unwrap_or_else(|status| panic!("{status:?}: {:#?}", next.plugin.log()));
    let settled = async {
        loop {
            let shown = next.update().await.unwrap();
            for name in &running {
                let state = shown.get(name).copied();
                let alive =
                    matches!(state, Some(State::Running | State::Suspending | State::Suspended | State::Resuming));
                assert!(alive, "{name} ran and is {state:?} now: {:#?}", next.plugin.log());
            }
            world.check();
            let rest = shown.values().all(|state| matches!(state, State::Running | State::Suspended));
            let ours = world.ours();
            let names: BTreeSet<&String> = ours.iter().collect();
            if rest && ours.len() == shown.len() && shown.keys().all(|name| names.contains(name)) {
                return true;
            }
            Timer::after(LOOK).await;
        }
    };
    let late = async {
        Timer::after(PATIENCE).await;
        false
    };
    assert!(or(settled, late).await, "not settled: VCD has {:?}; {:#?}", world.ours(), next.plugin.log());

    next.plugin.shutdown().await.unwrap();
    next.plugin.quit().await.unwrap();
    let (status, _) = next.plugin.exited().await;
    assert!(status.success(), "{status}");
    world.check();
    assert_eq!(world.ours(), [] as [&str; 0], "left in VCD: {:#?}", next.plugin.log());
    assert_eq!(world.sockets_left(), 0, "the socket and its directory");
    let log = next.plugin.log();
    assert!(!log.iter().any(|line| line.contains("another plugin") || line.contains("panicked")), "{log:#?}");
    true
}

async fn kill_plugin(world: &World, control: &str) -> bool {
    let mut host = Host::start(&world.config, world.guest_port, control, &world.dir).await;
    let victim = Pid::from_raw(host.plugin.child.id().try_into().unwrap());
    world.trap.state.lock().unwrap().victim = victim;
    let played = async { Some(host.play(world.trap.point.scene).await) };
    let sprung = async {
        let _ = world.trap.heard.recv().await;
        None
    };
    let result = or(sprung, played).await;
    if world.trap.disarm() {
        assert!(matches!(result, Some(Ok(()))), "{result:?}: {:#?}", host.plugin.log());
        return false;
    }
    let (status, _) = host.plugin.exited().await;
    assert!(status.code().is_none(), "killed: {status}");
    true
}

async fn kill_host(world: &World, control: &str) -> bool {
    let point = json!({
        "scene": format!("{:?}", world.trap.point.scene),
        "config": world.config,
        "control": control,
        "guest_port": world.guest_port,
        "dir": world.dir,
    });
    let log = fs::File::create(world.dir.join("log")).unwrap();
    let mut helper = {
        // A request that comes before the victim is known waits for this.
        let mut state = world.trap.state.lock().unwrap();
        let helper = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill::host_process", "--ignored", "--nocapture"])
            .env("POINT", point.to_string())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        state.victim = Pid::from_raw(helper.id().try_into().unwrap());
        helper
    };
    let mut status = None;
    let ended = || {
        status = helper.try_wait().unwrap();
        status.is_some()
    };
    until("the host's end", ended).await;
    if world.trap.disarm() {
        let log = fs::read_to_string(world.dir.join("log")).unwrap();
        assert!(status.unwrap().success(), "{log}");
        return false;
    }
    let plugin: i32 = fs::read_to_string(world.dir.join("plugin")).unwrap().parse().unwrap();
    until("the plugin's end without its host", || is_gone(plugin)).await;
    true
}

// All points.

/// All points of one scene and one kind of kill.
#[derive(Default)]
struct Sweep {
    next: usize,
    busy: usize,
    done: bool,
    covered: usize,
}

type Sweeps = BTreeMap<(Scene, Kill), Sweep>;

/// Tries every point of every scene. Returns the number of points.
fn sweep() -> BTreeMap<(Scene, Kill), usize> {
    let mut sweeps = Sweeps::new();
    for scene in SCENES {
        for kill in KILLS {
            sweeps.insert((scene, kill), Sweep::default());
        }
    }
    let sweeps = Mutex::new(sweeps);
    let take = |sweeps: &mut Sweeps| {
        let open = sweeps.iter_mut().filter(|(_, sweep)| !sweep.done && sweep.busy < OF_ONE_SWEEP);
        let ((scene, kill), sweep) = open.min_by_key(|(_, sweep)| (sweep.busy, sweep.next))?;
        sweep.next += 1;
        sweep.busy += 1;
        Some(Point { scene: *scene, kill: *kill, at: sweep.next })
    };
    let work = || {
        loop {
            let (point, over) = {
                let mut sweeps = sweeps.lock().unwrap();
                (take(&mut sweeps), sweeps.values().all(|sweep| sweep.done))
            };
            let Some(point) = point else {
                if over {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
                continue;
            };
            let reached = std::panic::catch_unwind(|| block_on(try_point(point)));
            let mut sweeps = sweeps.lock().unwrap();
            let sweep = sweeps.get_mut(&(point.scene, point.kill)).unwrap();
            sweep.busy -= 1;
            match reached {
                Ok(reached) => {
                    sweep.covered += usize::from(reached);
                    sweep.done |= !reached;
                }
                Err(panic) => {
                    eprintln!("at {point:?}");
                    // The other points end soon.
                    sweeps.values_mut().for_each(|sweep| sweep.done = true);
                    drop(sweeps);
                    std::panic::resume_unwind(panic);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        for result in results {
            if let Err(panic) = result {
                std::panic::resume_unwind(panic);
            }
        }
    });
    sweeps.into_inner().unwrap().into_iter().map(|(key, sweep)| (key, sweep.covered)).collect()
}

fn tell(covered: &BTreeMap<(Scene, Kill), usize>, began: Instant) {
    for scene in SCENES {
        let of = |kill| covered[&(scene, kill)];
        let [before, after, host] = KILLS.map(of);
        println!("{scene:?}: plugin killed before {before} requests and after {after}, host killed at {host}");
    }
    println!("{} points in {:?}", covered.values().sum::<usize>(), began.elapsed());
}

/// The minimum number of requests in a scene. With fewer, the sweep is no test.
const LEAST: [(Scene, usize); 6] = [
    (Scene::Create, 12),
    (Scene::CreateInSteps, 16),
    (Scene::Delete, 6),
    (Scene::Adopt, 12),
    (Scene::Shutdown, 8),
    (Scene::Nap, 6),
];

#[test]
fn killed_at_every_moment() {
    let began = Instant::now();
    let covered = sweep();
    tell(&covered, began);
    for (scene, least) in LEAST {
        for kill in KILLS {
            let points = covered[&(scene, kill)];
            assert!(points >= least, "{scene:?}, {kill:?}: {points} points");
        }
    }
}
