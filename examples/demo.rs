//! The main job, live and without a VCD: a simulated VCD, the real plugin as a child process, and this program as its host.
//!
//!     cargo run --release --example demo
//!
//! Scales a group 0 -> 3 -> 1 -> 0 and shows the plugin's own table of instances whenever it changes. Exits 0 when VCD is
//! empty again, else 1 with the reason.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/common/fleet.rs"]
mod fleet;

use common::{PluginProcess, command};
use fleeting_plugin_vcd::host::proto::fleeting::State;
use smol::Timer;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The simulator's clock runs so many times as fast as a real VCD's.
const SCALE: f64 = 10.0;
/// Each change of size must be done within this time.
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
    let (server, guest_port) = fleet::simulator(SCALE);
    println!("a simulated VCD at {}/api, its clock {SCALE} times as fast", server.url());

    let debug = format!("127.0.0.1:{}", fleet::free_port());
    let mut config = fleet::plugin_config(&server);
    if let Some(config) = config.as_object_mut() {
        config.insert("debug_server_addr".into(), debug.as_str().into());
    }
    let mut plugin = PluginProcess::start(command(&binary)).await;
    let init = plugin.init(config.to_string().as_bytes(), fleet::connector(guest_port)).await;
    let init = init.map_err(|status| format!("Init: {}", status.message()))?;
    println!("{} {} serves {}, at most {} instances", binary.display(), init.version, init.id, init.max_size);
    println!("its debug page: http://{debug}/\n");

    let mut view = View { page: format!("http://{debug}/"), shown: String::new(), began };
    for size in [3, 1, 0] {
        println!("--- the runner wants {size} {}", if size == 1 { "instance" } else { "instances" });
        scale(&plugin, size, &mut view).await?;
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

/// Brings the group to `size` as a runner does, and waits until it is there.
async fn scale(plugin: &PluginProcess, size: usize, view: &mut View) -> Result<(), String> {
    let text = |status: tonic::Status| status.message().to_string();
    let instances = plugin.update().await.map_err(text)?;
    let live: Vec<&str> =
        instances.iter().filter(|(_, state)| *state == State::Running).map(|(name, _)| name.as_str()).collect();
    if live.len() < size {
        plugin.increase((size - live.len()) as u32).await.map_err(text)?;
    } else {
        plugin.decrease(live.get(size..).unwrap_or_default()).await.map_err(text)?;
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        view.show()?;
        let instances = plugin.update().await.map_err(text)?;
        let running = instances.iter().filter(|(_, state)| *state == State::Running).count();
        let settled = instances.iter().all(|(_, state)| matches!(state, State::Running | State::Deleted));
        if running == size && settled {
            break;
        }
        if Instant::now() > deadline {
            return Err(format!("not {size} running after {} s: {instances:?}", PATIENCE.as_secs()));
        }
        Timer::after(Duration::from_millis(200)).await;
    }
    for (name, state) in plugin.update().await.map_err(text)? {
        if state == State::Running {
            let info = plugin.connect_info(&name).await.map_err(text)?;
            println!("    {name} is to be reached at {} as root", info.internal_addr);
        }
    }
    Ok(())
}

/// The plugin's debug page, shown anew when more than ages has changed.
struct View {
    page: String,
    shown: String,
    began: Instant,
}

impl View {
    fn show(&mut self) -> Result<(), String> {
        let page = ureq::get(&self.page).call().and_then(|mut answer| answer.body_mut().read_to_string());
        let page = page.map_err(|error| format!("debug page: {error}"))?;
        // The table alone, without the columns of ages.
        let table: Vec<&str> =
            page.lines().skip_while(|line| !line.starts_with("NAME")).take_while(|line| !line.is_empty()).collect();
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
        Ok(())
    }
}

fn is_age(word: &str) -> bool {
    word.strip_suffix(['s', 'm', 'h']).is_some_and(|number| number.parse::<u32>().is_ok())
}
