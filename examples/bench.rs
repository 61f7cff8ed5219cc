//! What the plugin costs, measured on the real binary against the simulated VCD; prints figures, judges nothing.
//!
//!     cargo run --release --example bench
//!
//! Takes about eight minutes, most of them idle ones.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/common/fleet.rs"]
mod fleet;

use common::{PluginProcess, command};
use fleeting_plugin_vcd::cloud::{Customization, Poll, Power, Reply, Request, Vm};
use fleeting_plugin_vcd::group::{self, Command, Group, Policy, Time};
use fleeting_plugin_vcd::host::proto::fleeting::State;
use serde_json::Value;
use smol::Timer;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use vcd_sim::Server;

/// Growing or shrinking takes no longer.
const PATIENCE: Duration = Duration::from_secs(600);
/// Starts that are timed.
const STARTS: usize = 20;
/// What a VCD of default durations needs itself: copy 20 s, power on 10 s, customization 25 s, SSH 3 s.
const VCD_PART: f64 = 58.0;

/// Measures what the plugin costs, against the simulated VCD.
#[derive(argh::FromArgs)]
struct Options {
    /// seconds of each idle phase (60)
    #[argh(option, default = "60")]
    idle: u64,
    /// time scale of the simulator in the phases that only grow groups (20)
    #[argh(option, default = "20.0")]
    scale: f64,
}

fn main() -> ExitCode {
    let options: Options = argh::from_env();
    match smol::block_on(run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("bench failed: {reason}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Result<(), String> {
    let binary = fleet::release_binary()?;
    let size = std::fs::metadata(&binary).map_err(|error| error.to_string())?.len();
    println!("stripped release binary: {size} bytes");
    deciding()?;
    starts(&binary).await;
    one_instance(&binary).await?;
    fifty_with_ten_slots(&binary, options).await?;
    idle(&binary, options).await
}

/// What the group itself costs, without any I/O: a poll of 1,000 running instances, and the memory of one of them.
fn deciding() -> Result<(), String> {
    const INSTANCES: usize = 1000;
    const GROUPS: usize = 20;
    const POLLS: u32 = 200;
    let poll = Poll { now: Some(1), vms: (0..INSTANCES).map(running_vm).collect(), vapps: Some(Vec::new()) };
    let before = status_of("self", "VmRSS:")?;
    let mut groups: Vec<Group> = (0..GROUPS).map(|_| Group::new(policy(), 1, Time(0), &poll)).collect();
    let after = status_of("self", "VmRSS:")?;
    let group = groups.last_mut().ok_or("no group")?;
    if group.update().filter(|(_, state)| *state == group::State::Running).count() != INSTANCES {
        return Err("the poll's instances are not adopted".into());
    }
    let mut handling = Duration::ZERO;
    let mut answered = 0;
    let mut now = Time(0);
    while answered < POLLS {
        now = now + Duration::from_secs(10);
        group.tick(now);
        while let Some(command) = group.next_command() {
            if let Command::Ask { ticket, request: Request::Poll { .. } } = command {
                let answer = Ok(Reply::Poll(poll.clone()));
                let began = Instant::now();
                group.answer(now, ticket, answer);
                handling += began.elapsed();
                answered += 1;
            }
        }
    }
    println!("a poll of {INSTANCES} instances: handled in {:.1?}", handling / POLLS);
    let each = after.saturating_sub(before) * 1024 / (INSTANCES * GROUPS) as u64;
    println!("memory of a running instance in the group: {each} bytes");
    Ok(())
}

fn running_vm(n: usize) -> Vm {
    let name = format!("ci-{n:08}");
    Vm {
        vapp: format!("https://vcd.example.com/api/vApp/vapp-00000000-0000-4000-8000-{n:012}").into(),
        vm: format!("https://vcd.example.com/api/vApp/vm-00000000-0000-4000-8000-{n:012}").into(),
        description: format!("fleeting-plugin-vcd/1 manager=runner-1 group=ci-linux id={name}"),
        vapp_name: name.into(),
        power: Power::On,
        busy: false,
        address: Some(Ipv4Addr::from(0x0a00_0000 + n as u32).into()),
        customization: Customization::Complete,
        guest_os: "Ubuntu Linux (64-bit)".into(),
        created: Some(0),
        cpus: 2,
        memory_mb: 4096,
        undeploy_at: None,
        delete_at: None,
    }
}

fn policy() -> Policy {
    Policy {
        manager: "runner-1".into(),
        group: "ci-linux".into(),
        prefix: "ci".into(),
        max_size: 1000,
        max_instance_age: Duration::ZERO,
        ..Policy::default()
    }
}

/// A number of /proc/PID/status.
fn status_of(process: &str, key: &str) -> Result<u64, String> {
    let path = format!("/proc/{process}/status");
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).ok_or(format!("{path}: no {key}"))
}

async fn starts(binary: &Path) {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let began = Instant::now();
        let plugin = PluginProcess::start(command(binary)).await;
        times.push(began.elapsed());
        drop(plugin);
    }
    times.sort();
    let (median, max) = (times.get(STARTS / 2).copied().unwrap_or_default(), times.last().copied().unwrap_or_default());
    println!("start to connected: median {median:.1?}, max {max:.1?} of {STARTS}");
}

/// One create and one delete at the pace of a real VCD.
async fn one_instance(binary: &Path) -> Result<(), String> {
    let bench = Bench::start(binary, 1.0, &[]).await?;
    bench.counts_reset()?;
    let began = Instant::now();
    bench.scale(1).await?;
    let took = began.elapsed().as_secs_f64();
    let create = bench.counts()?;
    println!(
        "one create at scale 1 (with the label, which follows it): running after {took:.1} s, VCD's own part {VCD_PART} s, ours {:.1} s",
        took - VCD_PART
    );
    println!("  {create}");
    // The label follows off the critical path; a delete at once would meet its task.
    Timer::after(Duration::from_secs(15)).await;
    bench.counts_reset()?;
    let tasks = bench.counts()?.tasks;
    let began = Instant::now();
    bench.scale(0).await?;
    let mut delete = bench.counts()?;
    delete.tasks -= tasks;
    println!("one delete at scale 1: {:.1} s, VCD's own part 9 s", began.elapsed().as_secs_f64());
    println!("  {delete}");
    bench.end().await
}

async fn fifty_with_ten_slots(binary: &Path, options: &Options) -> Result<(), String> {
    let slots = [("max_concurrent_creates", 10), ("max_concurrent_deletes", 10), ("max_concurrent_operations", 11)];
    let bench = Bench::start(binary, options.scale, &slots).await?;
    bench.counts_reset()?;
    let (began, cpu) = (Instant::now(), bench.cpu());
    bench.scale(50).await?;
    println!("50 creates with 10 slots at scale {}: {:.1} s", options.scale, began.elapsed().as_secs_f64());
    println!("  {}; CPU {:.2} s", bench.counts()?, bench.cpu() - cpu);
    bench.end().await
}

async fn idle(binary: &Path, options: &Options) -> Result<(), String> {
    let slots = [("max_concurrent_creates", 40), ("max_concurrent_deletes", 40), ("max_concurrent_operations", 60)];
    let bench = Bench::start(binary, options.scale, &slots).await?;
    println!("idle for {} s with", options.idle);
    for size in [0, 10, 50, 128] {
        bench.scale(size).await?;
        // Labels, which come half a minute later, and the last looks of the growth are over.
        Timer::after(Duration::from_secs(45)).await;
        bench.counts_reset()?;
        let cpu = bench.cpu();
        Timer::after(Duration::from_secs(options.idle)).await;
        let hour = (bench.cpu() - cpu) * 3600.0 / options.idle as f64;
        let counts = bench.counts()?;
        let (memory, threads) = (bench.status("VmRSS:")?, bench.status("Threads:")?);
        println!(
            "  {size:3} instances: {} requests, {hour:.1} s of CPU an hour, {memory} kB resident, {threads} threads",
            counts.requests
        );
    }
    println!("  most ever resident: {} kB", bench.status("VmHWM:")?);
    bench.end().await
}

/// A simulator, the plugin on it, and this program as its host.
struct Bench {
    server: Server,
    plugin: PluginProcess,
}

struct Counts {
    requests: u64,
    tasks: u64,
    /// Requests by operation, as the simulator names them.
    by_operation: String,
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} tasks, {} requests: {}", self.tasks, self.requests, self.by_operation)
    }
}

impl Bench {
    async fn start(binary: &Path, scale: f64, keys: &[(&str, u32)]) -> Result<Bench, String> {
        let (server, guest_port) = fleet::simulator(scale);
        let mut config = fleet::plugin_config(&server);
        for (key, value) in keys {
            if let Some(config) = config.as_object_mut() {
                config.insert((*key).into(), (*value).into());
            }
        }
        let plugin = PluginProcess::start(command(binary)).await;
        let init = plugin.init(config.to_string().as_bytes(), fleet::connector(guest_port)).await;
        init.map_err(|status| format!("Init: {}", status.message()))?;
        Ok(Bench { server, plugin })
    }

    async fn scale(&self, size: usize) -> Result<(), String> {
        let text = |status: tonic::Status| status.message().to_string();
        let running = |instances: Vec<(String, State)>| {
            let running = instances.into_iter().filter(|(_, state)| *state == State::Running);
            running.map(|(name, _)| name).collect::<Vec<_>>()
        };
        let live = running(self.plugin.update().await.map_err(text)?);
        if live.len() < size {
            self.plugin.increase((size - live.len()) as u32).await.map_err(text)?;
        } else {
            let names: Vec<&str> = live.iter().skip(size).map(String::as_str).collect();
            self.plugin.decrease(&names).await.map_err(text)?;
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let instances = self.plugin.update().await.map_err(text)?;
            let settled = instances.iter().all(|(_, state)| matches!(state, State::Running | State::Deleted));
            if settled && running(instances).len() == size {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("not {size} running after {} s", PATIENCE.as_secs()));
            }
            Timer::after(Duration::from_millis(20)).await;
        }
    }

    fn counts(&self) -> Result<Counts, String> {
        let url = format!("{}/counts", self.server.control_url());
        let text = ureq::get(&url).call().and_then(|mut answer| answer.body_mut().read_to_string());
        let text = text.map_err(|error| format!("{url}: {error}"))?;
        let counts: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let number = |key: &str| counts.get(key).and_then(Value::as_u64).unwrap_or_default();
        let tasks = counts.get("tasks").and_then(Value::as_object);
        let tasks = tasks.map_or(0, |tasks| tasks.values().filter_map(Value::as_u64).sum());
        let requests = counts.get("requests").and_then(Value::as_object);
        let by_operation: Vec<String> = requests.into_iter().flatten().map(|(name, n)| format!("{name} {n}")).collect();
        Ok(Counts { requests: number("total"), tasks, by_operation: by_operation.join(", ") })
    }

    fn counts_reset(&self) -> Result<(), String> {
        let url = format!("{}/counts/reset", self.server.control_url());
        ureq::post(&url).send_empty().map_err(|error| format!("{url}: {error}"))?;
        Ok(())
    }

    /// CPU time of all threads so far, in seconds, as precise as the scheduler counts.
    fn cpu(&self) -> f64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.plugin.child.id()));
        let nanoseconds = tasks.into_iter().flatten().flatten().filter_map(|task| {
            let line = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        });
        nanoseconds.sum::<u64>() as f64 / 1e9
    }

    fn status(&self, key: &str) -> Result<u64, String> {
        status_of(&self.plugin.child.id().to_string(), key)
    }

    async fn end(mut self) -> Result<(), String> {
        self.plugin.shutdown().await.map_err(|status| format!("Shutdown: {}", status.message()))?;
        self.plugin.quit().await.map_err(|status| format!("quit: {}", status.message()))?;
        let (status, _) = self.plugin.exited().await;
        match (status.success(), fleet::vapps(&self.server)) {
            (true, left) if left.is_empty() => Ok(()),
            (true, left) => Err(format!("left in VCD: {}", left.join(", "))),
            (false, _) => Err(format!("the plugin ended with {status}")),
        }
    }
}
