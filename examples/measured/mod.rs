//! The parts that bench, soak and load share: a simulator, the plugin's release binary, and the example as its host;
//! the resources of the process, and the counts of the simulator and of the plugin's own metrics.
#![allow(dead_code)]

use crate::common::{PluginProcess, command};
use crate::fleet;
use fleeting_plugin_vcd::host::proto::fleeting::State;
use serde_json::{Map, Value, json};
use smol::Timer;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vcd_sim::Server;

/// Maximum time for a change of size.
const PATIENCE: Duration = Duration::from_secs(600);

/// The simulator and the plugin, with its debug server.
pub struct Bench {
    pub server: Server,
    pub plugin: PluginProcess,
    pub debug: SocketAddr,
    binary: PathBuf,
    config: Value,
    guest_port: u16,
    ca_file: PathBuf,
}

/// The simulator's counts.
pub struct Counts {
    pub requests: u64,
    pub tasks: u64,
    /// Requests by operation, as the simulator names them.
    pub by_operation: Map<String, Value>,
    /// Accepted changes.
    pub accepted: Map<String, Value>,
    /// New connections.
    pub connections: u64,
    /// Bytes of the answers' bodies.
    pub sent: u64,
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list: Vec<String> = self.by_operation.iter().map(|(name, n)| format!("{name} {n}")).collect();
        let (requests, connections) = (self.requests, self.connections);
        write!(f, "{} tasks, {connections} connections, {requests} requests: {}", self.tasks, list.join(", "))
    }
}

impl Bench {
    /// Over HTTPS.
    pub async fn start(binary: &Path, scale: f64, keys: Value) -> Result<Bench, String> {
        let (server, guest_port, ca_file) = fleet::simulator_https(scale);
        let debug = SocketAddr::from((Ipv4Addr::LOCALHOST, fleet::free_port()));
        let mut config = fleet::plugin_config_https(&server, &ca_file);
        if let (Some(config), Value::Object(keys)) = (config.as_object_mut(), keys) {
            config.extend(keys);
            config.insert("debug_server_addr".into(), json!(debug.to_string()));
        }
        let plugin = plugin(binary, &config, guest_port).await?;
        Ok(Bench { server, plugin, debug, binary: binary.to_owned(), config, guest_port, ca_file })
    }

    /// Kills the plugin and starts it again. It adopts what runs.
    pub async fn restart(&mut self) -> Result<(), String> {
        self.plugin.child.kill().map_err(|error| format!("kill the plugin: {error}"))?;
        self.plugin = plugin(&self.binary, &self.config, self.guest_port).await?;
        Ok(())
    }

    /// Names of the running instances.
    pub async fn running(&self) -> Result<Vec<String>, String> {
        Ok(running(self.plugin.update().await.map_err(|status| format!("Update: {}", status.message()))?))
    }

    /// Sets the size of the group, and waits until it has that size. Creates in progress are finished first.
    pub async fn scale(&self, size: usize) -> Result<(), String> {
        let text = |status: tonic::Status| status.message().to_string();
        let deadline = Instant::now() + PATIENCE;
        let live = loop {
            let instances = self.plugin.update().await.map_err(text)?;
            if instances.iter().all(|(_, state)| *state != State::Creating) || Instant::now() > deadline {
                break running(instances);
            }
            Timer::after(Duration::from_millis(20)).await;
        };
        if live.len() < size {
            self.plugin.increase((size - live.len()) as u32).await.map_err(text)?;
        } else {
            let names: Vec<&str> = live.iter().skip(size).map(String::as_str).collect();
            self.plugin.decrease(&names).await.map_err(text)?;
        }
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

    pub fn counts(&self) -> Result<Counts, String> {
        let url = format!("{}/counts", self.server.control_url());
        let counts: Value = serde_json::from_str(&get(&url)?).map_err(|error| format!("{url}: {error}"))?;
        let number = |key: &str| counts.get(key).and_then(Value::as_u64).unwrap_or_default();
        let map = |key: &str| counts.get(key).and_then(Value::as_object).cloned().unwrap_or_default();
        let tasks = map("tasks").values().filter_map(Value::as_u64).sum();
        Ok(Counts {
            requests: number("total"),
            tasks,
            by_operation: map("requests"),
            accepted: map("accepted"),
            connections: number("connections"),
            sent: number("sent"),
        })
    }

    /// From now on the simulator's time runs this many times as fast.
    pub fn set_scale(&self, scale: f64) -> Result<(), String> {
        let url = format!("{}/scale", self.server.control_url());
        let body = json!({"scale": scale}).to_string();
        ureq::post(&url).send(&body).map_err(|error| format!("{url}: {error}"))?;
        Ok(())
    }

    pub fn counts_reset(&self) -> Result<(), String> {
        let url = format!("{}/counts/reset", self.server.control_url());
        ureq::post(&url).send_empty().map_err(|error| format!("{url}: {error}"))?;
        Ok(())
    }

    /// CPU time of all threads so far, in seconds, as precise as the scheduler counts.
    pub fn cpu(&self) -> f64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.plugin.child.id()));
        let nanoseconds = tasks.into_iter().flatten().flatten().filter_map(|task| {
            let line = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        });
        nanoseconds.sum::<u64>() as f64 / 1e9
    }

    pub fn status(&self, key: &str) -> Result<u64, String> {
        status_of(&self.plugin.child.id().to_string(), key)
    }

    /// Open descriptors.
    pub fn descriptors(&self) -> Result<usize, String> {
        let path = format!("/proc/{}/fd", self.plugin.child.id());
        Ok(std::fs::read_dir(&path).map_err(|error| format!("{path}: {error}"))?.count())
    }

    /// The sum of a metric's samples, from the plugin's own page.
    pub fn metric(&self, name: &str) -> Result<u64, String> {
        let text = get(&format!("http://{}/metrics", self.debug))?;
        let samples = text.lines().filter_map(|line| {
            let rest = line.strip_prefix("fleeting_vcd_")?.strip_prefix(name)?;
            (rest.starts_with(' ') || rest.starts_with('{'))
                .then(|| rest.split_whitespace().last()?.parse::<f64>().ok())?
        });
        let samples: Vec<f64> = samples.collect();
        if samples.is_empty() { Err(format!("no metric {name}")) } else { Ok(samples.iter().sum::<f64>() as u64) }
    }

    /// A normal shutdown by the host. An error if it fails or something is left in VCD.
    pub async fn end(mut self) -> Result<(), String> {
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

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.ca_file);
    }
}

async fn plugin(binary: &Path, config: &Value, guest_port: u16) -> Result<PluginProcess, String> {
    let plugin = PluginProcess::start(command(binary)).await;
    let init = plugin.init(config.to_string().as_bytes(), fleet::connector(guest_port)).await;
    init.map_err(|status| format!("Init: {}", status.message()))?;
    Ok(plugin)
}

fn running(instances: Vec<(String, State)>) -> Vec<String> {
    instances.into_iter().filter(|(_, state)| *state == State::Running).map(|(name, _)| name).collect()
}

fn get(url: &str) -> Result<String, String> {
    let text = ureq::get(url).call().and_then(|mut answer| answer.body_mut().read_to_string());
    text.map_err(|error| format!("{url}: {error}"))
}

/// A number of /proc/PID/status.
pub fn status_of(process: &str, key: &str) -> Result<u64, String> {
    let path = format!("/proc/{process}/status");
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).ok_or(format!("{path}: no {key}"))
}
