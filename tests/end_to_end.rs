//! The plugin process against the simulated VCD over HTTP, this test being its host: what a runner and its admin see.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "common/fleet.rs"]
mod fleet;

use common::{PluginProcess, command, soon};
use fleeting_plugin_vcd::host::proto::fleeting::State;
use serde_json::json;
use smol::Timer;
use smol::block_on;
use std::time::Duration;
use vcd_sim::Server;
use vcd_sim::model::{Fence, GcStatus, Power};

const BINARY: &str = env!("CARGO_BIN_EXE_fleeting-plugin-vcd");
/// The simulator's clock runs so many times as fast as a real VCD's.
const SCALE: f64 = 50.0;

/// A plugin that has been through Init, with more keys than the least.
async fn start(server: &Server, guest_port: u16, keys: serde_json::Value) -> PluginProcess {
    let mut config = fleet::plugin_config(server);
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    let plugin = PluginProcess::start(command(BINARY)).await;
    plugin.init(config.to_string().as_bytes(), fleet::connector(guest_port)).await.unwrap();
    plugin
}

/// Waits until Update shows just `count` instances in `state`, deleted ones aside. Returns their names.
async fn reach(plugin: &PluginProcess, count: usize, state: State) -> Vec<String> {
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

async fn end(mut plugin: PluginProcess) -> Vec<String> {
    plugin.shutdown().await.unwrap();
    plugin.quit().await.unwrap();
    let (status, rest) = plugin.exited().await;
    assert!(status.success(), "{status}");
    assert_eq!(rest, "", "stdout is for the handshake");
    plugin.log()
}

#[test]
fn a_group_grows_is_used_shrinks_and_ends() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let plugin = start(&server, guest_port, json!({})).await;
        assert_eq!(plugin.update().await.unwrap(), []);

        assert_eq!(plugin.increase(2).await.unwrap(), 2);
        let at_once = plugin.update().await.unwrap();
        assert_eq!(at_once.len(), 2, "an accepted request has an id in the very next Update");
        assert!(at_once.iter().all(|(name, state)| name.starts_with("ci-") && *state == State::Creating));
        let refused = plugin.connect_info(&at_once[0].0).await.err().expect("it is not running yet");
        assert!(refused.message().contains("no address"), "{}", refused.message());

        let names = reach(&plugin, 2, State::Running).await;
        assert_eq!(names, at_once.into_iter().map(|(name, _)| name).collect::<Vec<_>>());
        for name in &names {
            let info = plugin.connect_info(name).await.unwrap();
            let connector = info.connector.unwrap();
            assert_eq!((connector.os.as_str(), connector.arch.as_str()), ("linux", "amd64"));
            assert_eq!((connector.username.as_str(), connector.protocol.as_str()), ("root", "ssh"));
            assert_eq!(connector.protocol_port, i64::from(guest_port));
            let guest = (info.internal_addr.as_str(), guest_port);
            std::net::TcpStream::connect(guest).expect("running means that the login port answers");
            plugin.heartbeat(name).await.unwrap();
        }
        assert_eq!(server.requests("instantiate"), 2, "one request makes a VM");

        assert_eq!(plugin.decrease(&[&names[0]]).await.unwrap(), [names[0].clone()]);
        assert_eq!(reach(&plugin, 1, State::Running).await, [names[1].clone()]);
        assert_eq!(fleet::vapps(&server), [names[1].clone()]);

        let log = end(plugin).await;
        assert!(fleet::vapps(&server).is_empty(), "shutdown leaves nothing");
        for secret in ["sim-api-token", "s3cret-Pa55word", "Bearer "] {
            assert!(!log.iter().any(|line| line.contains(secret)), "{secret} is in the log");
        }
    });
}

/// The Go plugin marks its vApps by metadata only, so that each is looked at; what else the look shows is used.
#[test]
fn an_adopted_vapp_behind_nat_is_reached_from_outside_by_another_address() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let vapp = server.with_model(|model| {
            let (vdc, network) = (*model.vdcs.keys().next().unwrap(), *model.networks.keys().next().unwrap());
            let template = *model.templates.iter().find(|(_, t)| &*t.name == "ubuntu-22.04").unwrap().0;
            let id = model.admin_foreign_vm(vdc, "ci-abcd1234", "", template, network).unwrap();
            let vapp = model.vapps.get_mut(&id).unwrap();
            vapp.networks[0].fence = Fence::NatRouted;
            vapp.metadata.insert("vcd-instance-group".into(), ("MetadataStringValue".into(), "ci-linux".into()));
            id
        });
        let inside = soon("the guest", async {
            loop {
                // A guest whose address somebody has set by hand.
                let guest = server.with_model(|model| {
                    let vm = model.vms.get_mut(model.vapps[&vapp].vms.first()?)?;
                    vm.gc = GcStatus::Complete;
                    vm.address().filter(|_| vm.power == Power::On)
                });
                match guest {
                    Some(address) => return address,
                    None => Timer::after(Duration::from_millis(20)).await,
                };
            }
        })
        .await;
        let plugin = start(&server, guest_port, json!({})).await;
        assert_eq!(reach(&plugin, 1, State::Running).await, ["ci-abcd1234"]);
        let info = plugin.connect_info("ci-abcd1234").await.unwrap();
        let outside = format!("203.0.113.{}", inside.octets()[3]);
        assert_eq!((info.internal_addr, info.external_addr), (inside.to_string(), outside));
        end(plugin).await;
    });
}

#[test]
fn a_new_process_takes_in_what_a_dead_one_left() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let mut plugin = start(&server, guest_port, json!({})).await;
        plugin.increase(2).await.unwrap();
        let names = reach(&plugin, 2, State::Running).await;
        // Somebody else's, and one more of ours that is only half made when the process dies.
        server.with_model(|model| {
            let vdc = *model.vdcs.keys().next().unwrap();
            model.admin_foreign_vapp(
                vdc,
                "ci-00000000",
                "fleeting-plugin-vcd/1 manager=runner-2 group=ci-linux id=ci-00000000",
            );
        });
        plugin.increase(1).await.unwrap();
        soon("the third create", async {
            while fleet::vapps(&server).len() < 4 {
                Timer::after(Duration::from_millis(5)).await;
            }
        })
        .await;
        plugin.child.kill().unwrap();
        drop(plugin);

        let plugin = start(&server, guest_port, json!({})).await;
        let first = plugin.update().await.unwrap();
        let running: Vec<String> = first.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(running, names, "the first Update reports what ran before");
        assert!(first.iter().all(|(_, state)| *state == State::Running));
        assert_eq!(plugin.connect_info(&names[0]).await.unwrap().connector.unwrap().username, "root");

        let left = async {
            while fleet::vapps(&server).len() != 3 {
                Timer::after(Duration::from_millis(20)).await;
            }
        };
        soon("the half-made one to be deleted", left).await;
        end(plugin).await;
        assert_eq!(fleet::vapps(&server), ["ci-00000000"], "another manager's is never touched");
    });
}

#[test]
fn keep_leaves_what_runs() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let plugin = start(&server, guest_port, json!({"on_shutdown": "keep"})).await;
        plugin.increase(1).await.unwrap();
        let names = reach(&plugin, 1, State::Running).await;
        end(plugin).await;
        assert_eq!(fleet::vapps(&server), names);
    });
}

#[test]
fn the_host_learns_at_init_what_is_wrong() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let mut wrong = fleet::plugin_config(&server);
        wrong["network"] = json!("no-such-net");
        wrong["template"] = json!("no-such-template");
        let plugin = PluginProcess::start(command(BINARY)).await;
        let status = plugin.init(wrong.to_string().as_bytes(), fleet::connector(guest_port)).await.unwrap_err();
        for name in ["no-such-net", "no-such-template", "no instance was made"] {
            assert!(status.message().contains(name), "{}", status.message());
        }
        assert!(!status.message().contains('\n'), "one line: {}", status.message());
        // The same process can be given a better one.
        let right = fleet::plugin_config(&server).to_string();
        plugin.init(right.as_bytes(), fleet::connector(guest_port)).await.unwrap();
        let again = plugin.init(right.as_bytes(), fleet::connector(guest_port)).await.unwrap_err();
        assert!(again.message().contains("before"), "{}", again.message());
        end(plugin).await;
    });
}
