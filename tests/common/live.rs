//! The built plugin on a simulated VCD, through Init and to its end: what the end-to-end tests share.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

use crate::common::{PluginProcess, command, soon};
use crate::fleet;
use fleeting_plugin_vcd::host::proto::fleeting::State;
use smol::Timer;
use std::time::Duration;
use vcd_sim::Server;

/// The plugin.
pub const BINARY: &str = env!("CARGO_BIN_EXE_fleeting-plugin-vcd");
/// The simulator's clock runs so many times as fast as a real VCD's.
pub const SCALE: f64 = 50.0;

/// A plugin that has been through Init, with more keys than the least.
pub async fn start(server: &Server, guest_port: u16, keys: serde_json::Value) -> PluginProcess {
    let mut config = fleet::plugin_config(server);
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    let plugin = PluginProcess::start(command(BINARY)).await;
    plugin.init(config.to_string().as_bytes(), fleet::connector(guest_port)).await.unwrap();
    plugin
}

/// Waits until Update shows just `count` instances in `state`, deleted ones aside. Returns their names.
pub async fn reach(plugin: &PluginProcess, count: usize, state: State) -> Vec<String> {
    let reached = async {
        loop {
            let mut instances = plugin.update().await.unwrap();
            instances.retain(|(_, state)| *state != State::Deleted);
            if instances.len() == count && instances.iter().all(|(_, is)| *is == state) {
                return instances.into_iter().map(|(name, _)| name).collect();
            }
            Timer::after(Duration::from_millis(20)).await;
        }
    };
    soon(&format!("{count} instances {state:?}"), reached).await
}

/// The host's orderly end. Returns the log.
pub async fn end(mut plugin: PluginProcess) -> Vec<String> {
    plugin.shutdown().await.unwrap();
    plugin.quit().await.unwrap();
    let (status, rest) = plugin.exited().await;
    assert!(status.success(), "{status}");
    assert_eq!(rest, "", "stdout is for the handshake");
    plugin.log()
}
