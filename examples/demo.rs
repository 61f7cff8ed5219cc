//! The main function, live and without a VCD: a simulated VCD, the real plugin as a child process, and this program as
//! its host.
//!
//!     cargo run --release --example demo
//!
//! Scales a group 0 -> 3 -> 1 -> 0, prints the plugin's own table of instances when it changes, and logs in to running
//! instances if there is an OpenSSH server for guests. Then 0 -> 3 again, with two VMs in standby: they run in the time
//! of a resume. Exits with 0 when VCD is empty again, else with 1 and the reason.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/common/fleet.rs"]
mod fleet;

use common::{PluginProcess, command};
use fleeting_plugin_vcd::host::proto::fleeting::{ConnectInfoResponse, ConnectorConfig, State};
use smol::Timer;
use std::collections::BTreeMap;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{IsTerminal, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};
use vcd_sim::{GuestKind, Options, Server};

/// The simulator's clock is this many times as fast as a real VCD's.
const SCALE: f64 = 10.0;
/// VMs in standby.
const STANDBY: usize = 2;
/// Maximum time for a change of size.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    match smol::block_on(run()) {
        Ok(took) => {
            println!("done in {:.1} s: nothing is left in VCD", took.as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(reason) => {
            eprintln!("demo failed: {reason}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<Duration, String> {
    println!("building the plugin");
    let binary = fleet::release_binary()?;
    let began = Instant::now();
    let guest_port = fleet::free_port();
    let options = Options { scale: SCALE, guest_port, guests: GuestKind::Auto, ..Options::default() };
    let server = Server::start(options).map_err(|error| format!("the simulator: {error}"))?;
    println!("a simulated VCD at {}/api, its clock {SCALE} times as fast", server.url());
    println!("its guests: {}", server.guests());

    let debug = format!("127.0.0.1:{}", fleet::free_port());
    let mut config = fleet::plugin_config(&server);
    if let Some(config) = config.as_object_mut() {
        config.insert("debug_server_addr".into(), debug.as_str().into());
        config.insert("standby_count".into(), STANDBY.into());
    }
    let mut plugin = PluginProcess::start(command(&binary)).await;
    // Without static credentials: the plugin generates a key for each guest.
    let username = server.guest_user().unwrap_or("root").to_owned();
    let connector = ConnectorConfig { username, protocol_port: guest_port.into(), ..ConnectorConfig::default() };
    let init = plugin.init(config.to_string().as_bytes(), connector).await;
    let init = init.map_err(|status| format!("Init: {}", status.message()))?;
    println!("{} {} serves {}, at most {} instances", binary.display(), init.version, init.id, init.max_size);
    println!("its debug page: http://{debug}/\n");

    let mut view = View { page: format!("http://{debug}/"), shown: String::new(), began };
    for size in [3, 1, 0] {
        println!("--- GitLab Runner wants {size} {}", if size == 1 { "instance" } else { "instances" });
        scale(&plugin, size, server.guest_user().is_some(), &mut view).await?;
    }
    println!("--- GitLab Runner wants none; {STANDBY} VMs are created, and suspended for standby");
    let waiting = view.standby().await?;
    println!("--- GitLab Runner wants 3 instances again, and {STANDBY} are in standby");
    let took = scale(&plugin, 3, server.guest_user().is_some(), &mut view).await?;
    let mut took: Vec<(String, Duration)> = took.into_iter().collect();
    took.sort_by_key(|(_, took)| *took);
    for (name, took) in took {
        let way = if waiting.contains(&name) { "taken from standby" } else { "created" };
        println!("    {name} was running after {:.1} s: {way}", took.as_secs_f64());
    }

    plugin.shutdown().await.map_err(|status| format!("Shutdown: {}", status.message()))?;
    plugin.quit().await.map_err(|status| format!("quit: {}", status.message()))?;
    let (status, rest) = plugin.exited().await;
    if !status.success() || !rest.is_empty() {
        return Err(format!("the plugin ended with {status} and wrote {rest:?}"));
    }
    match fleet::vapps(&server) {
        left if left.is_empty() => Ok(began.elapsed()),
        left => Err(format!("left in VCD: {}", left.join(", "))),
    }
}

/// Scales the group to `size` like GitLab Runner, waits until it has that size, and logs in to running instances.
/// Returns the time until each was running.
async fn scale(
    plugin: &PluginProcess,
    size: usize,
    logs_in: bool,
    view: &mut View,
) -> Result<BTreeMap<String, Duration>, String> {
    let text = |status: tonic::Status| status.message().to_string();
    let instances = plugin.update().await.map_err(text)?;
    let live: Vec<&str> =
        instances.iter().filter(|(_, state)| *state == State::Running).map(|(name, _)| name.as_str()).collect();
    if live.len() < size {
        plugin.increase((size - live.len()) as u32).await.map_err(text)?;
    } else {
        plugin.decrease(live.get(size..).unwrap_or_default()).await.map_err(text)?;
    }
    let (began, mut took) = (Instant::now(), BTreeMap::new());
    loop {
        view.show()?;
        let instances = plugin.update().await.map_err(text)?;
        let running = || instances.iter().filter(|(_, state)| *state == State::Running);
        for (name, _) in running() {
            took.entry(name.clone()).or_insert(began.elapsed());
        }
        let settled = instances.iter().all(|(_, state)| matches!(state, State::Running | State::Deleted));
        if running().count() == size && settled {
            break;
        }
        if began.elapsed() > PATIENCE {
            return Err(format!("not {size} running after {} s: {instances:?}", PATIENCE.as_secs()));
        }
        Timer::after(Duration::from_millis(200)).await;
    }
    for (name, state) in plugin.update().await.map_err(text)? {
        if state == State::Running {
            let info = plugin.connect_info(&name).await.map_err(text)?;
            let user = info.connector.as_ref().map(|connector| connector.username.as_str()).unwrap_or_default();
            if logs_in {
                log_in(&info)?;
                println!("    logged in to {name} at {} as {user}", info.internal_addr);
            } else {
                println!("    {name} is reachable at {} as {user}", info.internal_addr);
            }
        }
    }
    Ok(took)
}

/// Logs in with the system's ssh and the plugin's ConnectInfo.
fn log_in(info: &ConnectInfoResponse) -> Result<(), String> {
    let connector = info.connector.as_ref().ok_or("ConnectInfo has no credentials")?;
    let folder = std::env::temp_dir().join(format!("vcd-demo-{}", std::process::id()));
    let key = folder.join("key");
    let write = || {
        DirBuilder::new().mode(0o700).create(&folder)?;
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&key)?.write_all(&connector.key)
    };
    write().map_err(|error| format!("write {}: {error}", key.display()))?;
    let mut ssh = Command::new("ssh");
    ssh.args([
        "-F/dev/null",
        "-oBatchMode=yes",
        "-oIdentitiesOnly=yes",
        "-oStrictHostKeyChecking=no",
        "-oLogLevel=ERROR",
    ]);
    ssh.args(["-oUserKnownHostsFile=/dev/null", &format!("-p{}", connector.protocol_port), "-i"]).arg(&key);
    let output = ssh.args([&format!("-l{}", connector.username), &info.internal_addr, "true"]).output();
    let removed = std::fs::remove_dir_all(&folder);
    let output = output.map_err(|error| format!("run ssh: {error}"))?;
    removed.map_err(|error| format!("delete {}: {error}", folder.display()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("no login at {}: {}", info.internal_addr, String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// The plugin's debug page. It is printed again if more than ages has changed.
struct View {
    page: String,
    shown: String,
    began: Instant,
}

impl View {
    /// Waits until all wanted VMs are in standby. Returns their names.
    async fn standby(&mut self) -> Result<Vec<String>, String> {
        let began = Instant::now();
        loop {
            let table = self.show()?;
            let rows = table.iter().map(|line| line.split_whitespace().collect::<Vec<_>>());
            let waiting = rows.filter(|row| row.get(1) == Some(&"Standby")).filter_map(|row| row.first().copied());
            let waiting: Vec<String> = waiting.map(String::from).collect();
            if waiting.len() == STANDBY {
                return Ok(waiting);
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("not {STANDBY} in standby after {} s: {table:?}", PATIENCE.as_secs()));
            }
            Timer::after(Duration::from_millis(200)).await;
        }
    }

    /// The table of instances; printed if it has changed.
    fn show(&mut self) -> Result<Vec<String>, String> {
        let page = ureq::get(&self.page).call().and_then(|mut answer| answer.body_mut().read_to_string());
        let page = page.map_err(|error| format!("debug page: {error}"))?;
        // Only the table, without the columns of ages.
        let table = page.lines().skip_while(|line| !line.starts_with("NAME")).take_while(|line| !line.is_empty());
        let table: Vec<String> = table.map(String::from).collect();
        let essence: String =
            table.iter().flat_map(|line| line.split_whitespace().filter(|word| !is_age(word))).collect();
        if essence != self.shown {
            self.shown = essence;
            let out = std::io::stdout();
            let (bold, plain) = if out.is_terminal() { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
            let mut out = out.lock();
            for (index, line) in table.iter().enumerate() {
                let at = format!("{:5.1} s", self.began.elapsed().as_secs_f64());
                let (at, on) = if index == 0 { (at, bold) } else { (" ".repeat(at.len()), "") };
                writeln!(out, "{at}  {on}{line}{plain}").map_err(|error| error.to_string())?;
            }
        }
        Ok(table)
    }
}

fn is_age(word: &str) -> bool {
    word.strip_suffix(['s', 'm', 'h']).is_some_and(|number| number.parse::<u32>().is_ok())
}
