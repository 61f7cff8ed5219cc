//! Plays lives of a group in virtual time:
//!
//!     cargo run --release --example sim -- --seeds 100000
//!     cargo run --release --example sim -- --seed 42 --trace
//!
//! Exits with 1 at the first seed that breaks an invariant, with the shortest plan that still breaks it.

#[path = "../tests/group/world/mod.rs"]
mod world;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;
use world::plan::{plan, shortest};
use world::{Score, World};

/// Maximum number of seeds that a survey shows for each invariant.
const SHOWN: usize = 12;

/// Plays lives of a group in virtual time, each with its own mix of faults.
#[derive(argh::FromArgs)]
struct Options {
    /// how many seeds to run (10000)
    #[argh(option, default = "10_000")]
    seeds: u64,
    /// the first seed (0)
    #[argh(option, default = "0")]
    from: u64,
    /// run only this one
    #[argh(option)]
    seed: Option<u64>,
    /// print every event
    #[argh(switch)]
    trace: bool,
    /// play the shortest plan that still fails, not the whole one
    #[argh(switch)]
    shrink: bool,
    /// continue after a seed that breaks an invariant, and report at the end how many broke which
    #[argh(switch)]
    survey: bool,
    /// threads (the number of processors)
    #[argh(option)]
    threads: Option<usize>,
}

fn main() -> ExitCode {
    let options: Options = argh::from_env();
    match options.seed {
        Some(seed) => one(seed, &options),
        None => many(&options),
    }
}

fn one(seed: u64, options: &Options) -> ExitCode {
    let mut chosen = plan(seed);
    if options.shrink
        && let Err(violation) = World::new(&chosen).run()
    {
        chosen = shortest(&chosen, &violation);
    }
    println!("{chosen}");
    let mut world = World::new(&chosen);
    world.trace = options.trace;
    match world.run() {
        Ok(score) => {
            println!("seed {seed}: {score:?}");
            ExitCode::SUCCESS
        }
        Err(violation) => {
            println!("seed {seed}: {violation}");
            ExitCode::FAILURE
        }
    }
}

fn many(options: &Options) -> ExitCode {
    let threads = options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let next = AtomicU64::new(options.from);
    let end = options.from + options.seeds;
    let failed = AtomicBool::new(false);
    let total = Mutex::new(Score::default());
    let settled: Mutex<Vec<u64>> = Mutex::default();
    let broken: Mutex<BTreeMap<String, Vec<String>>> = Mutex::default();
    let began = Instant::now();
    let work = || {
        let mut mine = Score::default();
        let mut rested = Vec::new();
        while !failed.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                break;
            }
            let whole = plan(seed);
            match World::new(&whole).run() {
                Ok(score) => {
                    mine.add(&score);
                    rested.extend(score.settled_ms.map(|ms| ms / 1000));
                }
                Err(violation) if options.survey => {
                    if let Ok(mut broken) = broken.lock() {
                        let number = violation.number().to_string();
                        broken.entry(number).or_default().push(format!("seed {seed}: {violation}"));
                    }
                }
                Err(violation) => {
                    if failed.swap(true, Ordering::Relaxed) {
                        break;
                    }
                    println!("seed {seed}: {violation}");
                    println!("shortest plan that fails so: {}", shortest(&whole, &violation));
                    println!("replay: cargo run --release --example sim -- --seed {seed} --trace --shrink");
                }
            }
        }
        if let Ok(mut total) = total.lock() {
            total.add(&mine);
        }
        if let Ok(mut settled) = settled.lock() {
            settled.append(&mut rested);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let seconds = began.elapsed().as_secs_f64();
    let Ok(total) = total.into_inner() else { return ExitCode::FAILURE };
    println!(
        "{} seeds from {} in {seconds:.1} s: {} events ({:.0} a second), {} requests, {} instances, {:.2} virtual years",
        options.seeds,
        options.from,
        total.events,
        total.events as f64 / seconds,
        total.requests,
        total.created,
        total.virtual_ms as f64 / (365.25 * 86_400_000.0)
    );
    let mut settled = settled.into_inner().unwrap_or_default();
    settled.sort_unstable();
    let after = |percent: usize| settled.get((settled.len() * percent / 100).min(settled.len().saturating_sub(1)));
    let [half, most, nearly, all] = [50, 95, 99, 100].map(|percent| after(percent).copied().unwrap_or_default());
    println!("settled in the end: half after {half} s, 95 % after {most} s, 99 % after {nearly} s, all after {all} s");
    let broken = broken.into_inner().unwrap_or_default();
    for (number, seeds) in &broken {
        println!("{number}: {} seeds", seeds.len());
        seeds.iter().take(SHOWN).for_each(|seed| println!("    {seed}"));
    }
    if failed.into_inner() || !broken.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
