//! The group's whole policy in virtual time: thousands of lives of a fleet, each with its own mix of faults.

#![allow(clippy::panic)]

mod world;

use vcd_sim::model::HardwareInCreate;
use world::plan::{Act, Fault, Plan, Step, Tuning, plan, shortest};
use world::{CrashAt, World};

/// Runs one seed; a failure is cut down to the shortest plan that still fails.
fn run(seed: u64) {
    let whole = plan(seed);
    if let Err(violation) = World::new(&whole).run() {
        let short = shortest(&whole, &violation);
        let replay = format!("cargo run --release --example sim -- --seed {seed} --trace --shrink");
        panic!("seed {seed}: {violation}\n  shortest plan that fails so: {short}\n  replay: {replay}");
    }
}

#[test]
fn thousands_of_seeds() {
    let seeds = std::env::var("WORLD_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(2000);
    let next = std::sync::atomic::AtomicU64::new(0);
    let work = || {
        loop {
            let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if seed >= seeds {
                break;
            }
            run(seed);
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
}

/// Points of death that were covered when this was written; fewer would mean that the scenarios have shrunk.
const POINTS: u64 = 5_500;

/// One run of the scenario, with or without a death.
fn scenario(what: &str, plan: &Plan, crash_at: Option<(CrashAt, u64)>) -> world::Score {
    let mut world = World::new(plan);
    world.crash_at = crash_at;
    match world.run() {
        Ok(score) => score,
        Err(violation) => panic!("{what}, {crash_at:?}: {violation}"),
    }
}

/// The process dies before and after each request and each answer of each scenario, and a new one starts at once (what was
/// on the wire may then reach VCD after the first poll) or a while later. The audit tells if anything was lost, doubled or
/// left behind, and that what ran runs on.
#[test]
fn death_at_every_point() {
    let mut covered = 0;
    for (what, plan) in scenarios() {
        let requests = scenario(&what, &plan, None).requests;
        let mut points = 0;
        for number in 1..=requests {
            let kinds = [CrashAt::BeforeRequest, CrashAt::AfterRequest, CrashAt::BeforeAnswer, CrashAt::AfterAnswer];
            for kind in kinds {
                for down in [1, 5_000] {
                    points += scenario(&what, &plan, Some((kind(number), down))).crashes;
                }
            }
        }
        println!("{what}: {requests} requests, {points} points of death");
        covered += points;
    }
    println!("{covered} points of death covered");
    assert!(covered >= POINTS, "only {covered} points of death were covered");
}

fn scenarios() -> Vec<(String, Plan)> {
    let mut all = Vec::new();
    let mut add_with = |what: String, policy: Tuning, acts: &[(u64, Act)]| {
        let steps = acts.iter().map(|&(seconds, act)| Step { at: seconds * 1000, act }).collect();
        all.push((what, Plan { seed: 1, policy, steps }));
    };
    for (hardware, tpm) in [(HardwareInCreate::Refuse, true), (HardwareInCreate::Ignore, false)] {
        let policy = Tuning { hardware, tpm, ..Tuning::default() };
        add_with(format!("create in steps: {hardware:?}"), policy, &[(0, Act::Increase(1))]);
    }
    let policy = Tuning { no_force: true, ..Tuning::default() };
    add_with("removal without force".into(), policy, &[(0, Act::Increase(1)), (150, Act::Decrease(0))]);
    let mut add =
        |what: String, keep: bool, acts: &[(u64, Act)]| add_with(what, Tuning { keep, ..Tuning::default() }, acts);
    for n in [1, 3] {
        add(format!("create {n}"), false, &[(0, Act::Increase(n))]);
    }
    let nap = [(0, Act::Increase(2)), (150, Act::Suspend(0)), (200, Act::Resume(0))];
    for keep in [false, true] {
        add(format!("suspend and resume, keep: {keep}"), keep, &nap);
        add(format!("suspend, keep: {keep}"), keep, &nap[..2]);
    }
    for at in [150, 155, 170] {
        let acts = [(0, Act::Increase(1)), (150, Act::Suspend(0)), (at, Act::Decrease(0))];
        add(format!("removal {} s after a suspend", at - 150), false, &acts);
    }
    let failing = Act::Fault(Fault::TaskFails, 30_000, 100);
    add("create with a failing task".into(), false, &[(0, failing), (1, Act::Increase(1))]);
    add("removal of a running one".into(), false, &[(0, Act::Increase(2)), (150, Act::Decrease(0))]);
    // While its request is on the wire, while VCD makes it, while its guest starts.
    for at in [0, 10, 40, 70] {
        add(format!("removal {at} s after the create began"), false, &[(0, Act::Increase(1)), (at, Act::Decrease(0))]);
    }
    let two_and_a_half = [(0, Act::Increase(2)), (150, Act::Increase(1))];
    for at in [160, 210] {
        let mut acts = two_and_a_half.to_vec();
        acts.push((at, Act::Crash(2_000)));
        add(format!("adoption of two and of one half made, {at} s"), false, &acts);
        for keep in [false, true] {
            let mut acts = two_and_a_half.to_vec();
            acts.push((at, Act::Restart(2_000)));
            add(format!("shutdown at {at} s, keep: {keep}"), keep, &acts);
        }
    }
    all
}
