//! The resources of the plugin, measured on the real binary against the simulated VCD, over HTTPS, compared with VCD's
//! own share and with the last release (`release/figures`). It does not judge them.
//!
//!     cargo run --release --example bench
//!     cargo run --release --example bench -- --only polls
//!
//! Takes about a quarter of an hour, mostly waiting. `--write` writes the figures into that file, for a release.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/common/fleet.rs"]
mod fleet;
mod measured;

use common::{PluginProcess, command};
use fleeting_plugin_vcd::cloud::{Customization, Poll, Power, Reply, Request, STANDBY_KEY, SUSPEND_KEY, Vm};
use fleeting_plugin_vcd::group::{self, Command, Group, Policy, Time};
use fleeting_plugin_vcd::host::proto::fleeting::State;
use measured::{Bench, status_of};
use serde_json::json;
use smol::Timer;
use smol::future::zip;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use vcd_sim::model::Operation;

/// All figures: name, meaning, and VCD's own share.
const ROWS: [(&str, &str, Option<f64>); 36] = [
    ("share_s", "the plugin's own share of a create, s", Some(REQUEST)),
    ("share_at_once_s", "– where SSH answers as soon as customization is over, s", Some(REQUEST)),
    ("life_tasks", "tasks of an instance's life", Some(2.0)),
    ("slot_idle_s", "a create slot is idle between two creates, s", Some(REQUEST)),
    ("storm_s", "50 deleted and 50 created at once, default slots, s", Some(STORM_FLOOR)),
    ("storm_requests", "– requests", None),
    ("fifty_s", "50 creates with 10 slots, VCD 20 times as fast, s", None),
    ("fifty_requests", "– requests", None),
    ("minute_after_requests", "requests in the minute after them", None),
    ("minute_idle_requests", "requests in an idle minute", Some(6.0)),
    ("minute_idle_connections", "new connections in an idle minute", Some(0.0)),
    ("boot_queries", "VM queries in a minute in which one of 1,000 boots", None),
    ("boot_kb", "– KB of answers", None),
    ("poll_kb", "KB of a poll of 1,000", None),
    ("cpu_s_an_hour", "CPU with 1,000 and an Update each second, s an hour", None),
    ("rss_idle_kb", "memory, nothing to do, KB", None),
    ("rss_128_kb", "– with 128 instances, KB", None),
    ("rss_1000_kb", "– with 1,000 instances, KB", None),
    ("rss_128_adopted_kb", "– with 128 that a restarted plugin has adopted, KB", None),
    ("rss_1000_adopted_kb", "– with 1,000 of them, KB", None),
    ("file_bytes", "the file, bytes", None),
    ("start_ms", "start to handshake, ms", None),
    ("poll_us", "the group's own part of a poll of 1,000, µs", None),
    ("instance_bytes", "memory of a running instance in the group, bytes", None),
    ("standby_s", "from Increase to running, from standby, s", Some(RESUME)),
    ("standby_ten_s", "– the last of 10 at once, slots for all, s", Some(RESUME)),
    ("standby_ten_default_s", "– the last of 10 at once, default slots, s", Some(RESUME_IN_TURN)),
    ("burst_with_s", "the last of a burst of 20, 10 in standby, s", None),
    ("burst_with_mean_s", "– mean, s", None),
    ("burst_without_s", "the last of a burst of 20, without a pool, s", None),
    ("burst_without_mean_s", "– mean, s", None),
    ("burst_created_mean_s", "mean of those created, 10 in standby, s", None),
    ("burst_created_all_mean_s", "– slots for all resumes, s", None),
    ("refill_mean_s", "mean of a burst of 10, empty pool of 10, s", None),
    ("refill_without_mean_s", "– without a pool, s", None),
    ("standby_minute_requests", "requests in an idle minute, 10 in standby", Some(6.0)),
];
/// The figures of the last release.
const FIGURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/release/figures");

/// Number of measured starts. The median counts.
const STARTS: usize = 21;
/// Creates whose share is measured, and the pause between two of them.
const SHARES: usize = 12;
const SHARE_PAUSE: Duration = Duration::from_millis(5_300);
/// The simulator begins to work on a request after this time, in seconds.
const REQUEST: f64 = vcd_sim::REQUEST_MS / 1000.0;
/// Duration of the simulator's create: copy 20 s, power on 10 s; then customization.
const CREATE: Duration = Duration::from_secs(30);
const CUSTOMIZATION: Duration = Duration::from_secs(25);
/// From customization until SSH answers.
const SSH: Duration = Duration::from_secs(3);
/// Creates one after another in one slot.
const CREATES: usize = 5;
/// Instances that are deleted and created together.
const STORM: usize = 50;
/// Three concurrent creates of 30 s, and the last guest.
const STORM_FLOOR: f64 = 538.0;
/// The simulator's suspend mark 1 s, resume 10 s; then 3 s until SSH answers.
const RESUME: f64 = 14.0;
/// The same for 10 with the default 4 slots: three times mark and resume, and SSH.
const RESUME_IN_TURN: f64 = 36.0;
/// VMs in standby.
const POOL: usize = 10;
/// The speed of the simulator's clock while a group only grows.
const FAST: f64 = 20.0;
const VERY_FAST: f64 = 100.0;
const MANY: usize = 1_000;

/// Measures the resources of the plugin, against the simulated VCD.
#[derive(argh::FromArgs)]
struct Options {
    /// seconds of each idle phase (60)
    #[argh(option, default = "60")]
    idle: u64,
    /// only shares, slot, storm, standby, fifty or polls
    #[argh(option)]
    only: Option<String>,
    /// write the figures into release/figures, for a release
    #[argh(switch)]
    write: bool,
}

#[derive(Default)]
struct Figures(RefCell<BTreeMap<&'static str, f64>>);

impl Figures {
    fn put(&self, name: &'static str, figure: f64) {
        eprintln!("{name} {figure:.2}");
        self.0.borrow_mut().insert(name, figure);
    }
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
    let figures = Figures::default();
    let wants = |part: &str| options.only.as_deref().is_none_or(|only| only == part);
    let size = std::fs::metadata(&binary).map_err(|error| error.to_string())?.len();
    figures.put("file_bytes", size as f64);
    figures.put("start_ms", starts(&binary).await.as_secs_f64() * 1000.0);
    deciding(&figures)?;
    // The parts that wait for a VCD at its own pace run in parallel.
    let shares = async {
        if !wants("shares") {
            return Ok(());
        }
        let (one, two) = zip(shares(&binary, &figures, SSH), shares(&binary, &figures, Duration::ZERO)).await;
        one.and(two)
    };
    let slot = async { if wants("slot") { slot(&binary, &figures).await } else { Ok(()) } };
    let storm = async { if wants("storm") { storm(&binary, &figures).await } else { Ok(()) } };
    let (shares, (slot, storm)) = zip(shares, zip(slot, storm)).await;
    shares.and(slot).and(storm)?;
    if wants("standby") {
        standby(&binary, options, &figures).await?;
    }
    if wants("fifty") {
        fifty(&binary, options, &figures).await?;
    }
    if wants("polls") {
        many(&binary, options, &figures).await?;
    }
    show(&figures.0.borrow(), options.write)
}

/// The table, with the figures of the last release.
fn show(now: &BTreeMap<&'static str, f64>, write: bool) -> Result<(), String> {
    let text = std::fs::read_to_string(FIGURES).map_err(|error| format!("{FIGURES}: {error}"))?;
    let last = |name: &str| {
        let figure = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse::<f64>().ok();
        text.lines().find_map(figure)
    };
    let shown = |figure: Option<f64>| match figure {
        None => "-".to_owned(),
        Some(figure) if figure.fract() == 0.0 || figure >= 100.0 => format!("{figure:.0}"),
        Some(figure) => format!("{figure:.2}"),
    };
    println!("| {:52} | {:>10} | {:>10} | {:>10} |", "measure", "VCD's own", "released", "now");
    println!("| {:-<52} | {:->10} | {:->10} | {:->10} |", "", ":", ":", ":");
    for (name, words, floor) in ROWS {
        let now = now.get(name).copied();
        println!("| {words:52} | {:>10} | {:>10} | {:>10} |", shown(floor), shown(last(name)), shown(now));
    }
    if !write {
        return Ok(());
    }
    let head = text.lines().take_while(|line| line.starts_with('#')).map(String::from);
    let figure = |name: &str| Some(format!("{name} {}", shown(now.get(name).copied().or(last(name)))));
    let lines: Vec<String> = head.chain(ROWS.iter().filter_map(|(name, ..)| figure(name))).collect();
    std::fs::write(FIGURES, lines.join("\n") + "\n").map_err(|error| format!("{FIGURES}: {error}"))
}

/// The group itself: the memory of a running instance, and a poll of 1,000.
fn deciding(figures: &Figures) -> Result<(), String> {
    const GROUPS: usize = 20;
    const POLLS: u32 = 200;
    let poll =
        Poll { now: Some(1), vms: (0..MANY).map(running_vm).collect(), vapps: Some(Vec::new()), ..Poll::default() };
    let before = status_of("self", "VmRSS:")?;
    let mut groups: Vec<Group> = (0..GROUPS).map(|_| Group::new(policy(), 1, Time(0), &poll)).collect();
    let after = status_of("self", "VmRSS:")?;
    let group = groups.last_mut().ok_or("no group")?;
    if group.update().filter(|(_, state)| *state == group::State::Running).count() != MANY {
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
    figures.put("poll_us", (handling / POLLS).as_secs_f64() * 1e6);
    figures.put("instance_bytes", (after.saturating_sub(before) * 1024 / (MANY * GROUPS) as u64) as f64);
    Ok(())
}

fn running_vm(n: usize) -> Vm {
    let name = format!("ci-{n:08}");
    Vm {
        vapp: format!("https://vcd.example.com/api/vApp/vapp-00000000-0000-4000-8000-{n:012}").into(),
        vm: format!("https://vcd.example.com/api/vApp/vm-00000000-0000-4000-8000-{n:012}").into(),
        description: format!("fleeting-plugin-vcd/1 manager=runner-1 group=ci-linux id={name}").into(),
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
        max_size: MANY as u32,
        max_instance_age: Duration::ZERO,
        ..Policy::default()
    }
}

/// The median start.
async fn starts(binary: &Path) -> Duration {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let began = Instant::now();
        let plugin = PluginProcess::start(command(binary)).await;
        times.push(began.elapsed());
        drop(plugin);
    }
    times.sort();
    times.get(STARTS / 2).copied().unwrap_or_default()
}

/// Creates one after another, at the pace of a real VCD: the time of each beyond VCD's own. And the tasks of all their
/// lives.
async fn shares(binary: &Path, figures: &Figures, ssh: Duration) -> Result<(), String> {
    let slots =
        json!({"max_concurrent_creates": SHARES, "max_concurrent_deletes": SHARES, "max_concurrent_operations": 16});
    let bench = Bench::start(binary, 1.0, slots).await?;
    bench.server.with_model(|model| model.durations.ssh = ssh.as_millis() as u64);
    // The plugin uses for the others what it learns from the first.
    bench.scale(1).await?;
    let began = Instant::now();
    let mut accepted: BTreeMap<String, Instant> = BTreeMap::new();
    let mut took: BTreeMap<String, Duration> = BTreeMap::new();
    let known = bench.running().await?;
    while took.len() < SHARES {
        if accepted.len() < SHARES && began.elapsed() >= SHARE_PAUSE * accepted.len() as u32 {
            bench.plugin.increase(1).await.map_err(|status| status.message().to_string())?;
        }
        let now = Instant::now();
        for (name, state) in bench.plugin.update().await.map_err(|status| status.message().to_string())? {
            if known.contains(&name) {
                continue;
            }
            let since = *accepted.entry(name.clone()).or_insert(now);
            if state == State::Running {
                took.entry(name).or_insert(now - since);
            }
        }
        if began.elapsed() > SHARE_PAUSE * SHARES as u32 + Duration::from_secs(300) {
            return Err(format!("{} of {SHARES} creates ended", took.len()));
        }
        Timer::after(Duration::from_millis(10)).await;
    }
    let own = took.values().map(|took| took.saturating_sub(CREATE + CUSTOMIZATION + ssh).as_secs_f64());
    figures.put(if ssh.is_zero() { "share_at_once_s" } else { "share_s" }, own.sum::<f64>() / SHARES as f64);
    // Requests that follow when they run, such as metadata.
    Timer::after(Duration::from_secs(45)).await;
    bench.scale(0).await?;
    figures.put("life_tasks", bench.counts()?.tasks as f64 / (SHARES + 1) as f64);
    bench.end().await
}

/// The time between the end of a create's task and the start of the next create that waits for it.
async fn slot(binary: &Path, figures: &Figures) -> Result<(), String> {
    let bench = Bench::start(binary, 1.0, json!({"max_concurrent_creates": 1})).await?;
    bench.scale(CREATES).await?;
    let mut creates: Vec<(u64, u64)> = bench.server.with_model(|model| {
        let creates = model.tasks.values().filter(|task| task.operation == Operation::Instantiate);
        creates.filter_map(|task| Some((task.start, task.end?))).collect()
    });
    creates.sort();
    // The plugin does not know yet how long the first one takes.
    let pauses = creates.windows(2).skip(1).filter_map(|two| Some(two.get(1)?.0 - two.first()?.1));
    let pauses: Vec<u64> = pauses.collect();
    figures.put("slot_idle_s", pauses.iter().sum::<u64>() as f64 / 1000.0 / pauses.len().max(1) as f64);
    bench.end().await
}

async fn storm(binary: &Path, figures: &Figures) -> Result<(), String> {
    let bench = Bench::start(binary, FAST, json!({})).await?;
    bench.scale(STORM).await?;
    bench.set_scale(1.0)?;
    bench.counts_reset()?;
    let text = |status: tonic::Status| status.message().to_string();
    let old = bench.running().await?;
    let began = Instant::now();
    bench.plugin.decrease(&old.iter().map(String::as_str).collect::<Vec<_>>()).await.map_err(text)?;
    bench.plugin.increase(STORM as u32).await.map_err(text)?;
    loop {
        let instances = bench.plugin.update().await.map_err(text)?;
        let new = |(name, state): &&(String, State)| *state == State::Running && !old.contains(name);
        let gone = instances.iter().filter(|(name, _)| old.contains(name)).all(|(_, state)| *state == State::Deleted);
        if gone && instances.iter().filter(new).count() == STORM {
            break;
        }
        if began.elapsed() > Duration::from_secs(1800) {
            return Err("the storm is not over after half an hour".into());
        }
        Timer::after(Duration::from_millis(50)).await;
    }
    figures.put("storm_s", began.elapsed().as_secs_f64());
    figures.put("storm_requests", bench.counts()?.requests as f64);
    bench.set_scale(VERY_FAST)?;
    bench.end().await
}

/// The standby pool, at the pace of a real VCD, in parallel.
async fn standby(binary: &Path, options: &Options, figures: &Figures) -> Result<(), String> {
    let pool = || json!({"standby_count": POOL});
    let taken = async {
        let bench = with_pool(binary, pool()).await?;
        // VCD has finished before the plugin notices it.
        while bench.metric("tasks_awaited")? > 0 {
            Timer::after(Duration::from_millis(50)).await;
        }
        figures.put("standby_minute_requests", minute(&bench, options).await?.0);
        figures.put("standby_s", last(&burst(&bench, 1).await?));
        fill_again(&bench).await?;
        figures.put("standby_ten_default_s", last(&burst(&bench, POOL).await?));
        end_fast(bench).await
    };
    let at_once = async {
        let slots = json!({"standby_count": POOL, "max_concurrent_operations": 16});
        let bench = with_pool(binary, slots).await?;
        figures.put("standby_ten_s", last(&burst(&bench, POOL).await?));
        // The resumes use no create slots: the difference is the cost of the refill.
        fill_again(&bench).await?;
        let waiting = in_standby(&bench);
        let all = burst(&bench, 2 * POOL).await?;
        figures.put("burst_created_all_mean_s", mean(created(&all, &waiting)));
        end_fast(bench).await
    };
    let with = async {
        let bench = with_pool(binary, pool()).await?;
        let waiting = in_standby(&bench);
        let all = burst(&bench, 2 * POOL).await?;
        figures.put("burst_with_s", last(&all));
        figures.put("burst_with_mean_s", mean(all.values()));
        figures.put("burst_created_mean_s", mean(created(&all, &waiting)));
        end_fast(bench).await
    };
    let without = async {
        let bench = Bench::start(binary, 1.0, json!({})).await?;
        let all = burst(&bench, 2 * POOL).await?;
        figures.put("burst_without_s", last(&all));
        figures.put("burst_without_mean_s", mean(all.values()));
        end_fast(bench).await
    };
    let refill = async |keys, name| {
        let bench = Bench::start(binary, 1.0, keys).await?;
        figures.put(name, mean(burst(&bench, POOL).await?.values()));
        end_fast(bench).await
    };
    let refills = zip(refill(pool(), "refill_mean_s"), refill(json!({}), "refill_without_mean_s"));
    let (taken, (at_once, (with, (without, (refilled, alone))))) =
        zip(taken, zip(at_once, zip(with, zip(without, refills)))).await;
    taken.and(at_once).and(with).and(without).and(refilled).and(alone)
}

/// A plugin whose pool is full, on a VCD at its own pace.
async fn with_pool(binary: &Path, keys: serde_json::Value) -> Result<Bench, String> {
    let bench = Bench::start(binary, FAST, keys).await?;
    fill_again(&bench).await?;
    Ok(bench)
}

/// Waits, in a fast VCD, until nothing runs and the pool is full.
async fn fill_again(bench: &Bench) -> Result<(), String> {
    bench.set_scale(FAST)?;
    bench.scale(0).await?;
    let until = Instant::now() + Duration::from_secs(300);
    while in_standby(bench).len() < POOL || bench.server.with_model(|model| model.tasks_running().next().is_some()) {
        if Instant::now() > until {
            return Err(format!("not {POOL} in standby but {:?}", in_standby(bench)));
        }
        Timer::after(Duration::from_millis(50)).await;
    }
    bench.set_scale(1.0)
}

/// The vApps that VCD shows to be in standby.
fn in_standby(bench: &Bench) -> Vec<String> {
    bench.server.with_model(|model| {
        let marked = model.vapps.values().filter(|vapp| {
            let is_marked = |key: &str| vapp.metadata.contains_key(key);
            vapp.task.is_none() && is_marked(STANDBY_KEY) && !is_marked(SUSPEND_KEY)
        });
        marked.map(|vapp| vapp.name.to_string()).collect()
    })
}

/// The time from Increase to running of each of `count`, in seconds.
async fn burst(bench: &Bench, count: usize) -> Result<BTreeMap<String, f64>, String> {
    let text = |status: tonic::Status| status.message().to_string();
    let known = bench.running().await?;
    let began = Instant::now();
    bench.plugin.increase(count as u32).await.map_err(text)?;
    let mut took: BTreeMap<String, f64> = BTreeMap::new();
    while took.len() < count {
        for name in bench.running().await?.into_iter().filter(|name| !known.contains(name)) {
            took.entry(name).or_insert(began.elapsed().as_secs_f64());
        }
        if began.elapsed() > Duration::from_secs(900) {
            return Err(format!("{} of {count} run after {:?}", took.len(), began.elapsed()));
        }
        Timer::after(Duration::from_millis(20)).await;
    }
    Ok(took)
}

/// The times of those that were not in standby.
fn created<'a>(all: &'a BTreeMap<String, f64>, waiting: &'a [String]) -> impl Iterator<Item = &'a f64> {
    all.iter().filter(|(name, _)| !waiting.contains(name)).map(|(_, took)| took)
}

fn last(took: &BTreeMap<String, f64>) -> f64 {
    took.values().copied().fold(0.0, f64::max)
}

fn mean<'a>(took: impl Iterator<Item = &'a f64>) -> f64 {
    let took: Vec<f64> = took.copied().collect();
    took.iter().sum::<f64>() / took.len().max(1) as f64
}

async fn end_fast(bench: Bench) -> Result<(), String> {
    bench.set_scale(VERY_FAST)?;
    bench.end().await
}

/// The requests of a whole minute.
async fn minute(bench: &Bench, options: &Options) -> Result<(f64, f64), String> {
    bench.counts_reset()?;
    Timer::after(Duration::from_secs(options.idle)).await;
    let counts = bench.counts()?;
    eprintln!("  {counts}");
    let of_a_minute = 60.0 / options.idle as f64;
    Ok((counts.requests as f64 * of_a_minute, counts.connections as f64 * of_a_minute))
}

async fn fifty(binary: &Path, options: &Options, figures: &Figures) -> Result<(), String> {
    let slots = json!({"max_concurrent_creates": 10, "max_concurrent_deletes": 10, "max_concurrent_operations": 11});
    let bench = Bench::start(binary, FAST, slots).await?;
    bench.counts_reset()?;
    let (began, cpu) = (Instant::now(), bench.cpu());
    bench.scale(50).await?;
    let counts = bench.counts()?;
    figures.put("fifty_s", began.elapsed().as_secs_f64());
    figures.put("fifty_requests", counts.requests as f64);
    eprintln!("  {counts}; CPU {:.2} s", bench.cpu() - cpu);
    figures.put("minute_after_requests", minute(&bench, options).await?.0);
    let (requests, connections) = minute(&bench, options).await?;
    figures.put("minute_idle_requests", requests);
    figures.put("minute_idle_connections", connections);
    bench.end().await
}

/// A group that grows to 1,000.
async fn many(binary: &Path, options: &Options, figures: &Figures) -> Result<(), String> {
    let slots = json!({
        "max_size": MANY, "max_concurrent_creates": 100, "max_concurrent_deletes": 100, "max_concurrent_operations": 128,
    });
    let mut bench = Bench::start(binary, VERY_FAST, slots).await?;
    // Memory is measured when the growth is over.
    let rest = || Timer::after(Duration::from_secs(40));
    for (size, name) in [(0, "rss_idle_kb"), (128, "rss_128_kb"), (MANY - 1, "rss_1000_kb")] {
        bench.scale(size).await?;
        rest().await;
        figures.put(name, bench.status("VmRSS:")? as f64);
    }
    bench.counts_reset()?;
    let cpu = bench.cpu();
    for _ in 0..options.idle {
        bench.plugin.update().await.map_err(|status| format!("Update: {}", status.message()))?;
        Timer::after(Duration::from_secs(1)).await;
    }
    figures.put("cpu_s_an_hour", (bench.cpu() - cpu) * 3600.0 / options.idle as f64);
    let counts = bench.counts()?;
    let pages = counts.by_operation.get("query:vm").and_then(serde_json::Value::as_u64).unwrap_or_default();
    let polls = (pages as f64 / MANY.div_ceil(128) as f64).max(1.0);
    figures.put("poll_kb", counts.sent as f64 / 1000.0 / polls);

    // A boot that takes longer than the minute.
    bench.server.with_model(|model| model.durations.customization = 75_000);
    bench.plugin.increase(1).await.map_err(|status| status.message().to_string())?;
    let until = Instant::now() + Duration::from_secs(60);
    let made = || bench.server.with_model(|model| model.vapps.len() == MANY && model.tasks_running().next().is_none());
    while !made() {
        if Instant::now() > until {
            return Err("the last one is not created".into());
        }
        Timer::after(Duration::from_millis(20)).await;
    }
    bench.set_scale(1.0)?;
    bench.counts_reset()?;
    Timer::after(Duration::from_secs(60)).await;
    let counts = bench.counts()?;
    eprintln!("  {counts}");
    let queries = counts.by_operation.get("query:vm").and_then(serde_json::Value::as_u64).unwrap_or_default();
    figures.put("boot_queries", queries as f64);
    figures.put("boot_kb", counts.sent as f64 / 1000.0);
    bench.set_scale(VERY_FAST)?;
    for (size, name) in [(MANY, "rss_1000_adopted_kb"), (128, "rss_128_adopted_kb")] {
        bench.scale(size).await?;
        bench.restart().await?;
        rest().await;
        figures.put(name, bench.status("VmRSS:")? as f64);
    }
    bench.end().await
}
