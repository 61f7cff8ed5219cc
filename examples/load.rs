//! A large group under load: many instances, a host with far more calls than GitLab Runner, and more readers of the
//! debug page than it allows. Prints the duration of calls, the CPU time of the process, and its requests to VCD. It
//! only fails if something is not answered.
//!
//!     cargo run --release --example load

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/common/fleet.rs"]
mod fleet;
mod measured;

use measured::Bench;
use serde_json::json;
use smol::Timer;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Puts a large group under load.
#[derive(argh::FromArgs)]
struct Options {
    /// instances (1000)
    #[argh(option, default = "1000")]
    instances: usize,
    /// update calls a second (100)
    #[argh(option, default = "100")]
    updates: u32,
    /// concurrent readers of the debug page (50)
    #[argh(option, default = "50")]
    readers: usize,
    /// seconds (60)
    #[argh(option, default = "60")]
    seconds: u64,
}

fn main() -> ExitCode {
    let options: Options = argh::from_env();
    match smol::block_on(run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("load failed: {reason}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Result<(), String> {
    let keys = json!({
        "max_size": 1000, "max_concurrent_creates": 100, "max_concurrent_deletes": 100,
        "max_concurrent_operations": 128,
    });
    let bench = Bench::start(&fleet::release_binary()?, 100.0, keys).await?;
    let began = Instant::now();
    bench.scale(options.instances).await?;
    println!("{} instances run after {:.1} s", options.instances, began.elapsed().as_secs_f64());
    // The metadata entries, which follow half a minute later, are written.
    Timer::after(Duration::from_secs(45)).await;
    phase(&bench, options, "at rest", 0, 0).await?;
    phase(&bench, options, "with Update calls", options.updates, 0).await?;
    phase(&bench, options, "with Update calls and readers", options.updates, options.readers).await?;
    println!("most ever resident: {} KB", bench.status("VmHWM:")?);
    bench.end().await
}

async fn phase(bench: &Bench, options: &Options, what: &str, updates: u32, readers: usize) -> Result<(), String> {
    bench.counts_reset()?;
    let length = Duration::from_secs(options.seconds);
    let cpu = bench.cpu();
    let stop = Arc::new(AtomicBool::new(false));
    let read = Arc::new(AtomicU64::new(0));
    let refused = Arc::new(AtomicU64::new(0));
    let url = format!("http://{}/", bench.debug);
    // Separate threads: they must not delay the calls that are timed.
    let threads: Vec<_> = (0..readers)
        .map(|_| {
            let (stop, read, refused, url) = (stop.clone(), read.clone(), refused.clone(), url.clone());
            std::thread::spawn(move || {
                let agent: ureq::Agent = ureq::config::Config::builder()
                    .timeout_global(Some(Duration::from_secs(30)))
                    .max_idle_connections(0)
                    .build()
                    .into();
                while !stop.load(Ordering::Relaxed) {
                    let page = agent.get(&url).call().and_then(|mut answer| answer.body_mut().read_to_vec());
                    let count = if page.is_ok() { &read } else { &refused };
                    count.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(200));
                }
            })
        })
        .collect();
    let mut took = Vec::new();
    let began = Instant::now();
    let mut calls = Vec::new();
    for n in 0.. {
        if began.elapsed() >= length {
            break;
        }
        if updates == 0 {
            Timer::after(length).await;
            continue;
        }
        Timer::at(began + Duration::from_secs(1) * n / updates).await;
        let client = bench.plugin.client.clone().ok_or("not connected")?;
        calls.push(smol::spawn(async move {
            let began = Instant::now();
            client.update().await.map(|instances| (began.elapsed(), instances.len()))
        }));
    }
    for call in calls {
        let (time, instances) = call.await.map_err(|status| format!("Update: {}", status.message()))?;
        if instances != options.instances {
            return Err(format!("Update shows {instances} instances"));
        }
        took.push(time);
    }
    let share = (bench.cpu() - cpu) / began.elapsed().as_secs_f64() * 100.0;
    let requests = bench.counts()?;
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().map_err(|_| "a reader panicked")?;
    }
    took.sort();
    let at = |percent: usize| took.get((took.len() * percent / 100).min(took.len().saturating_sub(1))).copied();
    print!("{what}: CPU {share:.1} %, resident {} KB, {requests}", bench.status("VmRSS:")?);
    if let (Some(half), Some(most), Some(longest)) = (at(50), at(99), took.last()) {
        print!("; {} Updates: median {half:.1?}, 99 % {most:.1?}, longest {longest:.1?}", took.len());
    }
    if readers > 0 {
        print!("; {} pages read, {} refused", read.load(Ordering::Relaxed), refused.load(Ordering::Relaxed));
    }
    println!();
    Ok(())
}
