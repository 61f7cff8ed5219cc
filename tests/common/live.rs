//! The built plugin with a simulated VCD, from Init to its end: shared by the end-to-end tests.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

use crate::common::{PluginProcess, command, soon};
use crate::fleet;
use fleeting_plugin_vcd::host::proto::fleeting::State;
use smol::Timer;
use std::time::Duration;
use vcd_sim::Server;

/// The plugin.
pub const BINARY: &str = env!("CARGO_BIN_EXE_fleeting-plugin-vcd");
/// Speed of the simulator's clock, as a multiple of real time.
pub const SCALE: f64 = 50.0;

/// A plugin after Init, with additional keys.
pub async fn start(server: &Server, guest_port: u16, keys: serde_json::Value) -> PluginProcess {
    let mut config = fleet::plugin_config(server);
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    let plugin = PluginProcess::start(command(BINARY)).await;
    plugin.init(config.to_string().as_bytes(), fleet::connector(guest_port)).await.unwrap();
    plugin
}

/// Waits until Update shows exactly `count` instances in `state`, without deleted ones. Returns their names, sorted.
pub async fn reach(plugin: &PluginProcess, count: usize, state: State) -> Vec<String> {
    let reached = async {
        loop {
            let mut instances = plugin.update().await.unwrap();
            instances.retain(|(_, state)| *state != State::Deleted);
            instances.sort();
            if instances.len() == count && instances.iter().all(|(_, is)| *is == state) {
                return instances.into_iter().map(|(name, _)| name).collect();
            }
            Timer::after(Duration::from_millis(20)).await;
        }
    };
    soon(&format!("{count} instances {state:?}"), reached).await
}

/// The host shuts the plugin down. Returns the log.
pub async fn end(mut plugin: PluginProcess) -> Vec<String> {
    plugin.shutdown().await.unwrap();
    plugin.quit().await.unwrap();
    let (status, rest) = plugin.exited().await;
    assert!(status.success(), "{status}");
    assert_eq!(rest, "", "stdout contains only the handshake");
    plugin.log()
}
