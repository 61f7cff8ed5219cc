//! A simulated VCD and the built plugin, configured for it: the start of the demo, the benchmark and the end-to-end
//! tests.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use fleeting_plugin_vcd::host::proto::fleeting::ConnectorConfig;
use serde_json::{Value, json};
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use vcd_sim::{Options, Server};

/// A port on which nothing listened a moment ago, on any address, and which the system does not use for outgoing
/// connections.
pub fn free_port() -> u16 {
    loop {
        let random = RandomState::new().hash_one(0);
        let port = 10_000 + u16::try_from(random % 20_000).expect("below 20,000");
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
}

/// A simulated VCD whose time runs `scale` times as fast, and the port of its guests.
pub fn simulator(scale: f64) -> (Server, u16) {
    let guest_port = free_port();
    let server = Server::start(Options { scale, guest_port, ..Options::default() }).expect("the simulator starts");
    (server, guest_port)
}

/// The same over HTTPS, and the file with its CA, for `plugin_config_https`.
pub fn simulator_https(scale: f64) -> (Server, u16, PathBuf) {
    let (guest_port, any) = (free_port(), SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let options = Options { scale, guest_port, https_listen: Some(any), ..Options::default() };
    let server = Server::start(options).expect("the simulator starts");
    let ca_file = std::env::temp_dir().join(format!("vcd-ca-{}-{guest_port}.pem", std::process::id()));
    std::fs::write(&ca_file, server.ca_pem().unwrap_or_default()).expect("the file with the CA can be written");
    (server, guest_port, ca_file)
}

/// The same for a simulator with HTTPS.
pub fn plugin_config_https(server: &Server, ca_file: &Path) -> Value {
    let mut config = plugin_config(server);
    config["url"] = format!("{}/api", server.https_url().expect("HTTPS is served")).into();
    config["ca_file"] = ca_file.display().to_string().into();
    config
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

/// The plugin's release binary. The cargo that runs this example builds it if it is out of date. STATIC_PLUGIN can
/// name another binary, such as a released one.
pub fn release_binary() -> Result<PathBuf, String> {
    if let Some(binary) = std::env::var_os("STATIC_PLUGIN") {
        return Ok(binary.into());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let build =
        ["build", "--quiet", "--release", "--locked", "--bin", "fleeting-plugin-vcd", "--manifest-path", manifest];
    let status = Command::new(cargo).args(build).status().map_err(|error| format!("run cargo build: {error}"))?;
    // This example is in target/release/examples, and the plugin in the parent folder.
    let example = std::env::current_exe().map_err(|error| format!("find the target folder: {error}"))?;
    let target = example.ancestors().nth(3).ok_or("find the target folder: this example lies in no target folder")?;
    let binary = target.join("release").join("fleeting-plugin-vcd");
    match status.success() && binary.exists() {
        true => Ok(binary),
        false => Err(format!("cargo build did not create {}", binary.display())),
    }
}

/// Names of the vApps in the simulated VCD.
pub fn vapps(server: &Server) -> Vec<String> {
    server.with_model(|model| model.vapps.values().map(|vapp| vapp.name.to_string()).collect())
}
