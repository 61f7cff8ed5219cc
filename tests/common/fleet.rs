//! A simulated VCD and the built plugin configured for it: what the demo, the benchmark and the end-to-end tests begin
//! with.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used)]

use fleeting_plugin_vcd::host::proto::fleeting::ConnectorConfig;
use serde_json::{Value, json};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use vcd_sim::{Options, Server};

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("a bound address").port()
}

/// A simulated VCD whose time runs `scale` times as fast, and the port at which its guests answer.
pub fn simulator(scale: f64) -> (Server, u16) {
    let guest_port = free_port();
    let server = Server::start(Options { scale, guest_port, ..Options::default() }).expect("the simulator starts");
    (server, guest_port)
}

/// A plugin_config for the simulator's standard world.
pub fn plugin_config(server: &Server) -> Value {
    json!({
        "name": "runner-1",
        "url": format!("{}/api", server.url()),
        "org": "ci-org",
        "token": "sim-api-token",
        "virtual_datacenter": "ci-vdc",
        "network": "ci-net",
        "ip_allocation_mode": "POOL",
        "instance_group_name": "ci-linux",
        "vapp_name_prefix": "ci",
        "catalog": "ci-catalog",
        "template": "ubuntu-22.04",
        "storage_profile": "ssd",
        "cpu_count": 2,
        "cores_per_socket": 1,
        "memory_mb": 4096,
    })
}

/// A connector_config with a static password.
pub fn connector(guest_port: u16) -> ConnectorConfig {
    ConnectorConfig {
        username: "root".into(),
        password: "s3cret-Pa55word".into(),
        use_static_credentials: true,
        protocol_port: guest_port.into(),
        ..ConnectorConfig::default()
    }
}

/// The plugin's release binary, built by the cargo that runs this example if it is not up to date; or the one that
/// STATIC_PLUGIN names, as what is released.
pub fn release_binary() -> Result<PathBuf, String> {
    if let Some(binary) = std::env::var_os("STATIC_PLUGIN") {
        return Ok(binary.into());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let build =
        ["build", "--quiet", "--release", "--locked", "--bin", "fleeting-plugin-vcd", "--manifest-path", manifest];
    let status = Command::new(cargo).args(build).status().map_err(|error| format!("run cargo build: {error}"))?;
    // This example lies in target/release/examples, the plugin beside that folder.
    let example = std::env::current_exe().map_err(|error| format!("find the target folder: {error}"))?;
    let target = example.ancestors().nth(3).ok_or("find the target folder: this example lies in no target folder")?;
    let binary = target.join("release").join("fleeting-plugin-vcd");
    match status.success() && binary.exists() {
        true => Ok(binary),
        false => Err(format!("cargo build did not make {}", binary.display())),
    }
}

/// Names of the vApps that are in the simulated VCD.
pub fn vapps(server: &Server) -> Vec<String> {
    server.with_model(|model| model.vapps.values().map(|vapp| vapp.name.to_string()).collect())
}
