//! What the plugin costs, measured on the real binary against the simulated VCD; prints figures, judges nothing.
//!
//!     cargo run --release --example bench
//!
//! Takes about eight minutes, most of them idle ones.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/common/fleet.rs"]
mod fleet;
mod measured;

use common::{PluginProcess, command};
use fleeting_plugin_vcd::cloud::{Customization, Poll, Power, Reply, Request, Vm};
use fleeting_plugin_vcd::group::{self, Command, Group, Policy, Time};
use measured::{Bench, status_of};
use serde_json::json;
use smol::Timer;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

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
    let bench = Bench::start(binary, 1.0, json!({})).await?;
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
    let slots = json!({"max_concurrent_creates": 10, "max_concurrent_deletes": 10, "max_concurrent_operations": 11});
    let bench = Bench::start(binary, options.scale, slots).await?;
    bench.counts_reset()?;
    let (began, cpu) = (Instant::now(), bench.cpu());
    bench.scale(50).await?;
    println!("50 creates with 10 slots at scale {}: {:.1} s", options.scale, began.elapsed().as_secs_f64());
    println!("  {}; CPU {:.2} s", bench.counts()?, bench.cpu() - cpu);
    bench.end().await
}

async fn idle(binary: &Path, options: &Options) -> Result<(), String> {
    let slots = json!({"max_concurrent_creates": 40, "max_concurrent_deletes": 40, "max_concurrent_operations": 60});
    let bench = Bench::start(binary, options.scale, slots).await?;
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
