//! A long run of the release binary against the simulated VCD: instances come and go all the time, and no resource of
//! the process may grow. At the end its metrics must match the simulator's counts.
//!
//!     cargo run --release --example soak -- --minutes 60
//!     release/build && STATIC_PLUGIN=dist/linux/amd64/plugin cargo run --release --example soak -- --minutes 60
//!
//! Prints a line each minute. Fails if memory, threads or descriptors have grown, if the counts differ, or if something
//! is left in VCD.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/common/fleet.rs"]
mod fleet;
mod measured;

use fleeting_plugin_vcd::group::MAX_PROBES;
use measured::Bench;
use serde_json::{Value, json};
use smol::Timer;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use vcd_sim::model::Rng;

/// Maximum number of instances.
const LARGEST: u64 = 60;
/// Maximum number of instances that a step adds or deletes.
const STEP: u64 = 6;
/// Pause between two steps of the host.
const PAUSE: Duration = Duration::from_millis(500);
/// Maximum growth of resident memory after the first fifth of the run, KB: pages of the allocator, not kept data.
const GROWTH_KB: u64 = 512;
/// The executor's, async-io's, and four for requests.
const THREADS: u64 = 6;

/// Creates and deletes instances for a long time, and compares.
#[derive(argh::FromArgs)]
struct Options {
    /// how long (60)
    #[argh(option, default = "60")]
    minutes: u64,
    /// time scale of the simulator (50)
    #[argh(option, default = "50.0")]
    scale: f64,
    /// seed of the order of creates and deletes (1)
    #[argh(option, default = "1")]
    seed: u64,
}

/// The resources of the process.
#[derive(Clone, Copy)]
struct Taken {
    memory: u64,
    threads: u64,
    descriptors: usize,
}

fn main() -> ExitCode {
    let options: Options = argh::from_env();
    match smol::block_on(run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("soak failed: {reason}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Result<(), String> {
    let slots = json!({
        "max_concurrent_creates": 12, "max_concurrent_deletes": 12, "max_concurrent_operations": 20,
    });
    let bench = Bench::start(&fleet::release_binary()?, options.scale, slots).await?;
    let mut rng = Rng::new(options.seed);
    let began = Instant::now();
    let length = Duration::from_secs(options.minutes * 60);
    let (mut minute, mut early) = (0, None);
    println!("minute, running, created, deleted, requests to VCD: resident KB, threads, descriptors, CPU seconds");
    while began.elapsed() < length {
        step(&bench, &mut rng).await?;
        if began.elapsed().as_secs() / 60 > minute {
            minute = began.elapsed().as_secs() / 60;
            let now = taken(&bench)?;
            let running = bench.running().await?.len();
            let (created, deleted) =
                (bench.metric("instances_created_total")?, bench.metric("instances_deleted_total")?);
            let (requests, cpu) = (bench.counts()?.requests, bench.cpu());
            let Taken { memory, threads, descriptors } = now;
            println!(
                "{minute:4} {running:3} {created:6} {deleted:6} {requests:7}: {memory} {threads} {descriptors} {cpu:.1}"
            );
            if began.elapsed() >= length / 5 {
                let first = *early.get_or_insert(now);
                check(first, now)?;
            }
        }
        Timer::after(PAUSE).await;
    }
    bench.scale(0).await?;
    compare(&bench)?;
    println!("most ever resident: {} KB", bench.status("VmHWM:")?);
    bench.end().await
}

/// One step like GitLab Runner's: reads all instances, checks the health of some, and creates or deletes some.
async fn step(bench: &Bench, rng: &mut Rng) -> Result<(), String> {
    let text = |status: tonic::Status| status.message().to_owned();
    let running = bench.running().await?;
    let mut removed = Vec::new();
    for name in &running {
        if rng.chance(0.1) {
            bench.plugin.heartbeat(name).await.map_err(text)?;
            bench.plugin.connect_info(name).await.map_err(text)?;
        }
        if removed.len() < STEP as usize && rng.chance(0.06) {
            removed.push(name.as_str());
        }
    }
    if rng.chance(0.5) && !removed.is_empty() {
        bench.plugin.decrease(&removed).await.map_err(text)?;
    } else if (running.len() as u64) < LARGEST {
        // Above max_size fewer are accepted. That is not an error.
        bench.plugin.increase(1 + rng.below(STEP) as u32).await.map_err(text)?;
    }
    Ok(())
}

fn taken(bench: &Bench) -> Result<Taken, String> {
    let (memory, threads) = (bench.status("VmRSS:")?, bench.status("Threads:")?);
    Ok(Taken { memory, threads, descriptors: bench.descriptors()? })
}

fn check(early: Taken, now: Taken) -> Result<(), String> {
    if now.memory > early.memory + GROWTH_KB {
        return Err(format!("memory has grown from {} to {} KB", early.memory, now.memory));
    }
    if now.threads > THREADS {
        return Err(format!("{} threads", now.threads));
    }
    // A connection to VCD for each thread, this program's own, and the probes of login ports.
    if now.descriptors > early.descriptors + THREADS as usize + MAX_PROBES {
        return Err(format!("descriptors have grown from {} to {}", early.descriptors, now.descriptors));
    }
    Ok(())
}

/// Compares the plugin's counts with the simulator's.
fn compare(bench: &Bench) -> Result<(), String> {
    let counts = bench.counts()?;
    let accepted = |operation: &str| counts.accepted.get(operation).and_then(Value::as_u64).unwrap_or_default();
    let created = accepted("instantiate");
    let pairs = [
        ("instances created", bench.metric("instances_created_total")?, created),
        ("instances deleted", bench.metric("instances_deleted_total")?, accepted("delete")),
        ("requests to VCD", bench.metric("api_calls_total")?, counts.requests),
        ("instances now", bench.metric("pool_size")?, 0),
    ];
    println!("accepted by VCD: {:?}", counts.accepted);
    for (what, plugin, simulator) in pairs {
        println!("{what}: {plugin} in the plugin's metrics, {simulator} in the simulator");
    }
    match pairs.iter().find(|(_, plugin, simulator)| plugin != simulator) {
        Some((what, ..)) => Err(format!("{what}: the counts differ")),
        None if created == 0 => Err("nothing was created".into()),
        None => Ok(()),
    }
}
