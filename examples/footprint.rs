//! The size of the plugin: the shipped file, part by part, and the resources of a serving plugin while it speaks HTTPS
//! with VCD. Prints a table for docs/dependencies.md. `release/footprint` runs it, and compares with release/budget.
//!
//!     cargo run --example footprint -- BINARY UNSTRIPPED
//!
//! BINARY serves (the stripped one), UNSTRIPPED is the same build with its symbols, which `nm` reads.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/common/fleet.rs"]
mod fleet;

use common::{PluginProcess, command};
use fleeting_plugin_vcd::host::proto::fleeting::State;
use smol::Timer;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// Number of measured starts. The median counts.
const STARTS: usize = 11;
/// Instances of the larger group.
const INSTANCES: usize = 50;
/// The simulator's clock is this many times as fast as a real VCD's.
const SCALE: f64 = 200.0;
/// Maximum time for the growth of the group.
const PATIENCE: Duration = Duration::from_secs(120);

/// Crates by purpose. The first prefix of a symbol's crate counts.
const PARTS: [(&str, &[&str]); 9] = [
    ("the plugin itself", &["fleeting_plugin_vcd"]),
    ("TLS", &["rustls", "webpki", "ring", "untrusted"]),
    ("gRPC and HTTP/2", &["h2", "hyper", "tonic", "prost", "tokio", "http_body", "tower", "want", "try_lock"]),
    ("HTTP client", &["ureq", "http", "httparse", "percent_encoding", "base64"]),
    ("executor", &["smol", "async_", "futures", "polling", "rustix", "event_listener", "concurrent_queue", "blocking"]),
    ("XML and JSON", &["roxmltree", "serde", "zmij", "itoa"]),
    ("SSH keys", &["ssh_", "der", "pkcs", "sec1", "pem_", "sha2", "digest", "spki"]),
    ("TOML, for the commands", &["toml", "winnow"]),
    (
        "Rust's std",
        &["std", "core", "alloc", "gimli", "addr2line", "miniz", "rustc_demangle", "memchr", "compiler_builtins"],
    ),
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [binary, unstripped] = words.as_slice() else {
        eprintln!("usage: footprint BINARY UNSTRIPPED");
        return ExitCode::FAILURE;
    };
    match run(Path::new(binary), Path::new(unstripped)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("footprint: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn run(binary: &Path, unstripped: &Path) -> Result<(), String> {
    let size = std::fs::metadata(binary).map_err(|error| format!("{}: {error}", binary.display()))?.len();
    let parts = parts(unstripped)?;
    let (start, idle, busy) = smol::block_on(serve(binary))?;
    println!("| | |\n| --- | --- |");
    println!("| binary, stripped | {} KB |", size / 1000);
    for (name, bytes) in PARTS.iter().map(|(name, _)| *name).chain(["C and assembly, the rest"]).zip(parts) {
        println!("| – {name} | {} KB |", bytes / 1000);
    }
    println!("| memory of a serving plugin (RSS) | {} KB |", idle.memory);
    println!("| – with {INSTANCES} instances, at its largest | {} KB |", busy.memory);
    println!("| threads | {} |", idle.threads);
    println!("| – with {INSTANCES} instances | {} |", busy.threads);
    println!("| start to handshake | {} ms |", start.as_millis());
    // For release/footprint.
    eprintln!("binary_kb {}", size / 1000);
    eprintln!("idle_rss_kb {}", idle.memory);
    eprintln!("busy_rss_kb {}", busy.memory);
    eprintln!("threads {}", busy.threads);
    Ok(())
}

/// Bytes of code and data by part; the last is for symbols without a crate. Tables for unwinding and relocation,
/// strings and padding have no symbols, so the sum is less than the file.
fn parts(unstripped: &Path) -> Result<Vec<u64>, String> {
    let output = Command::new("nm").args(["--print-size", "--demangle"]).arg(unstripped).output();
    let output = output.map_err(|error| format!("run nm: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut sums = vec![0; PARTS.len() + 1];
    let mut crates: BTreeMap<usize, u64> = BTreeMap::new();
    for line in text.lines() {
        let mut fields = line.splitn(4, ' ');
        let (Some(_), Some(size), Some(kind), Some(name)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let Ok(size) = u64::from_str_radix(size, 16) else { continue };
        // Symbols that are not in the file.
        if matches!(kind, "b" | "B" | "U") {
            continue;
        }
        let of = name
            .trim_start_matches(['<', '&', '*', '(', '[', '_'])
            .trim_start_matches("dyn ")
            .trim_start_matches("mut ");
        let part = PARTS.iter().position(|(_, names)| names.iter().any(|start| of.starts_with(start)));
        *crates.entry(part.unwrap_or(PARTS.len())).or_default() += size;
    }
    for (part, size) in crates {
        if let Some(sum) = sums.get_mut(part) {
            *sum = size;
        }
    }
    if sums.iter().sum::<u64>() == 0 {
        return Err(format!("{} has no symbols", unstripped.display()));
    }
    Ok(sums)
}

/// The resources of a process.
struct Taken {
    /// Resident memory, KB.
    memory: u64,
    threads: u64,
}

/// The median start, an idle plugin, and a plugin with a large group.
async fn serve(binary: &Path) -> Result<(Duration, Taken, Taken), String> {
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        let began = Instant::now();
        let plugin = PluginProcess::start(command(binary)).await;
        starts.push(began.elapsed());
        drop(plugin);
    }
    starts.sort();
    let start = starts.get(STARTS / 2).copied().unwrap_or_default();

    let (server, guest_port, ca_file) = fleet::simulator_https(SCALE);
    let mut plugin = PluginProcess::start(command(binary)).await;
    let mut config = fleet::plugin_config_https(&server, &ca_file);
    if let Some(config) = config.as_object_mut() {
        config.insert("max_concurrent_creates".into(), 10.into());
        config.insert("max_concurrent_operations".into(), 12.into());
    }
    let text = |status: tonic::Status| status.message().to_string();
    let init = plugin.init(config.to_string().as_bytes(), fleet::connector(guest_port)).await;
    let _ = std::fs::remove_file(&ca_file);
    init.map_err(text)?;
    // The first polls and the login are done.
    Timer::after(Duration::from_secs(2)).await;
    let idle = taken(&plugin, "VmRSS:")?;

    plugin.increase(INSTANCES as u32).await.map_err(text)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let running = plugin.update().await.map_err(text)?.iter().filter(|(_, state)| *state == State::Running).count();
        if running == INSTANCES {
            break;
        }
        if Instant::now() > deadline {
            return Err(format!("{running} of {INSTANCES} instances run after {} s", PATIENCE.as_secs()));
        }
        Timer::after(Duration::from_millis(100)).await;
    }
    let busy = taken(&plugin, "VmHWM:")?;
    plugin.shutdown().await.map_err(text)?;
    plugin.quit().await.map_err(text)?;
    plugin.exited().await;
    Ok((start, idle, busy))
}

fn taken(plugin: &PluginProcess, memory: &str) -> Result<Taken, String> {
    let path = format!("/proc/{}/status", plugin.child.id());
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let field = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).ok_or(format!("no {key} in {path}"))
    };
    Ok(Taken { memory: field(memory)?, threads: field("Threads:")? })
}
