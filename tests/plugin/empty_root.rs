//! The static binary in an empty root: no libc, no /etc, no /proc, no resolver, only a CA's certificate. Needs root
//! for chroot, and the binary, so it runs only by name:
//!
//!     release/build && sudo -E STATIC_PLUGIN=dist/linux/amd64/plugin cargo test --test plugin empty_root:: -- --ignored
#![cfg(target_os = "linux")]

use crate::common::{PluginProcess, command, soon};
use crate::{common, fleet};
use fleeting_plugin_vcd::host::proto::fleeting::State;
use serde_json::json;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use vcd_sim::{Options, Server};

/// Speed of the simulator's clock, as a multiple of real time.
const SCALE: f64 = 50.0;

/// A folder that is deleted when this is dropped.
struct Root(PathBuf);

impl Drop for Root {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
#[ignore = "needs root and a static binary, named by STATIC_PLUGIN"]
fn an_instance_is_created_and_deleted() {
    let binary = std::env::var_os("STATIC_PLUGIN").expect("STATIC_PLUGIN names the static binary");
    let root = Root(std::env::temp_dir().join(format!("vcd-empty-root-{}", std::process::id())));
    std::fs::create_dir(&root.0).unwrap();
    common::install(&std::fs::read(&binary).unwrap(), &root.0.join("plugin"));

    let guest_port = fleet::free_port();
    let https_listen = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let server = Server::start(Options { scale: SCALE, guest_port, https_listen, ..Options::default() }).unwrap();
    std::fs::write(root.0.join("ca.pem"), server.ca_pem().unwrap()).unwrap();
    let mut config = fleet::plugin_config(&server);
    config["url"] = json!(format!("{}/api", server.https_url().unwrap().replace("localhost", "127.0.0.1")));
    config["ca_file"] = json!("/ca.pem");

    smol::block_on(async {
        let mut enter = command("chroot");
        enter.arg(&root.0).arg("/plugin").env("PLUGIN_UNIX_SOCKET_DIR", "/");
        let mut plugin = PluginProcess::start_below(&root.0, enter).await;
        let init = plugin.init(config.to_string().as_bytes(), fleet::connector(guest_port)).await;
        init.unwrap_or_else(|error| panic!("{}; log: {:#?}", error.message(), plugin.log()));
        assert_eq!(plugin.increase(1).await.unwrap(), 1);
        let running = async {
            while plugin.update().await.unwrap()[0].1 != State::Running {
                smol::Timer::after(Duration::from_millis(20)).await;
            }
        };
        soon("a running instance", running).await;
        plugin.shutdown().await.unwrap();
        plugin.quit().await.unwrap();
        assert!(plugin.exited().await.0.success());
    });
    assert!(fleet::vapps(&server).is_empty());
    let mut left: Vec<_> = std::fs::read_dir(&root.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["ca.pem", "plugin"], "only the binary and the CA are left");
}
