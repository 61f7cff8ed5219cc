//! The plugin process with the simulated VCD over HTTP. The tests act as GitLab Runner: what it and an administrator
//! see.

use crate::common::{PluginProcess, command, soon};
use crate::live::{BINARY, SCALE, end, reach, start};
use crate::{common, fleet};
use fleeting_plugin_vcd::host::proto::fleeting::{HeartbeatRequest, State};
use serde_json::json;
use smol::Timer;
use smol::block_on;
use smol::future::FutureExt as _;
use smol::io::{AsyncReadExt as _, AsyncWriteExt as _};
use smol::net::{TcpListener, TcpStream};
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vcd_sim::faults::Rule;
use vcd_sim::model::{Fence, GcStatus, Power};
use vcd_sim::{Options, Server};

#[test]
fn a_group_scales_up_is_used_scales_down_and_shuts_down() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let plugin = start(&server, guest_port, json!({})).await;
        assert_eq!(plugin.update().await.unwrap(), []);

        assert_eq!(plugin.increase(2).await.unwrap(), 2);
        let mut at_once = plugin.update().await.unwrap();
        at_once.sort();
        assert_eq!(at_once.len(), 2, "the next Update has an id for each accepted request");
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
            std::net::TcpStream::connect(guest).expect("the login port of a running instance answers");
            plugin.heartbeat(name).await.unwrap();
        }
        assert_eq!(server.requests("instantiate"), 2, "one request creates a VM");

        assert_eq!(plugin.decrease(&[&names[0]]).await.unwrap(), [names[0].clone()]);
        assert_eq!(reach(&plugin, 1, State::Running).await, [names[1].clone()]);
        assert_eq!(fleet::vapps(&server), [names[1].clone()]);

        let log = end(plugin).await;
        assert!(fleet::vapps(&server).is_empty(), "shutdown deletes everything");
        for secret in ["sim-api-token", "s3cret-Pa55word", "Bearer "] {
            assert!(!log.iter().any(|line| line.contains(secret)), "{secret} is in the log");
        }
    });
}

/// The Go plugin's vApps have metadata only, so each is looked up. The lookup also shows the NAT address.
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
                // Somebody has set the guest's address by hand.
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
fn a_new_process_adopts_the_vapps_of_a_dead_one() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let mut plugin = start(&server, guest_port, json!({})).await;
        plugin.increase(2).await.unwrap();
        let names = reach(&plugin, 2, State::Running).await;
        // A foreign vApp, and an owned one that is incomplete when the process dies.
        server.with_model(|model| {
            let vdc = *model.vdcs.keys().next().unwrap();
            model.admin_foreign_vapp(
                vdc,
                "ci-00000000",
                "fleeting-plugin-vcd/1 manager=runner-2 group=ci-linux id=ci-00000000",
            );
        });
        // It stays incomplete until the next process has seen it.
        let slow = json!({"op": "instantiate", "slow": 10.0});
        assert!(server.add_fault(Rule::from_json(&slow).unwrap()));
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
        let mut running: Vec<String> = first.iter().map(|(name, _)| name.clone()).collect();
        running.sort();
        assert_eq!(running, names, "the first Update reports what ran before");
        assert!(first.iter().all(|(_, state)| *state == State::Running));
        assert_eq!(plugin.connect_info(&names[0]).await.unwrap().connector.unwrap().username, "root");

        let left = async {
            while fleet::vapps(&server).len() != 3 {
                Timer::after(Duration::from_millis(20)).await;
            }
        };
        soon("the incomplete vApp to be deleted", left).await;
        end(plugin).await;
        assert_eq!(fleet::vapps(&server), ["ci-00000000"], "foreign vApps are never touched");
    });
}

#[test]
fn keep_does_not_delete_running_vms() {
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
fn init_reports_what_is_wrong() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let mut wrong = fleet::plugin_config(&server);
        wrong["network"] = json!("no-such-net");
        wrong["template"] = json!("no-such-template");
        let plugin = PluginProcess::start(command(BINARY)).await;
        let status = plugin.init(wrong.to_string().as_bytes(), fleet::connector(guest_port)).await.unwrap_err();
        for name in ["no-such-net", "no-such-template", "no VM was created"] {
            assert!(status.message().contains(name), "{}", status.message());
        }
        assert!(!status.message().contains('\n'), "one line: {}", status.message());
        plugin.logged("Init failed: ").await;
        let log = plugin.log();
        let line = log.iter().find(|line| line.contains("Init failed: ")).unwrap();
        for words in ["\"@level\":\"error\"", "no-such-net", "no-such-template", "fleeting-plugin-vcd check"] {
            assert!(line.contains(words), "{line}");
        }
        // The same process accepts a correct configuration.
        let right = fleet::plugin_config(&server).to_string();
        plugin.init(right.as_bytes(), fleet::connector(guest_port)).await.unwrap();
        let again = plugin.init(right.as_bytes(), fleet::connector(guest_port)).await.unwrap_err();
        assert!(again.message().contains("before"), "{}", again.message());
        end(plugin).await;
    });
}

/// A file for the plugin. It is deleted when dropped.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> File {
        let path = std::env::temp_dir().join(format!("fleeting-vcd-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        File(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A proxy that opens tunnels (CONNECT), counts them, and records requests.
struct TunnelProxy {
    url: String,
    tunnels: Arc<AtomicUsize>,
    asked: Arc<Mutex<String>>,
}

impl TunnelProxy {
    async fn start() -> TunnelProxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://ci:pr0xy-Secret@{}", listener.local_addr().unwrap());
        let (tunnels, asked) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(String::new())));
        let proxy = TunnelProxy { url, tunnels: tunnels.clone(), asked: asked.clone() };
        smol::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (tunnels, asked) = (tunnels.clone(), asked.clone());
                smol::spawn(async move {
                    let (mut head, mut byte) = (String::new(), [0]);
                    while !head.ends_with("\r\n\r\n") && client.read(&mut byte).await.is_ok_and(|n| n > 0) {
                        head.push(byte[0].into());
                    }
                    let place = head.split(' ').nth(1).unwrap_or_default().to_owned();
                    let server = TcpStream::connect(place).await.unwrap();
                    tunnels.fetch_add(1, Ordering::SeqCst);
                    asked.lock().unwrap().push_str(&head);
                    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
                    let (mut to_client, mut to_server) = (client.clone(), server.clone());
                    let up = smol::io::copy(client, &mut to_server);
                    let down = smol::io::copy(server, &mut to_client);
                    let _ = smol::future::or(up, down).await;
                })
                .detach();
            }
        })
        .detach();
        proxy
    }
}

#[test]
fn https_with_a_custom_ca_works_directly_and_through_a_proxy() {
    block_on(async {
        let guest_port = fleet::free_port();
        let any = Options::default().listen;
        let options = Options { scale: SCALE, guest_port, https_listen: Some(any), ..Options::default() };
        let server = Server::start(options).unwrap();
        let ca = File::new("ca.pem", server.ca_pem().unwrap());
        let url = server.https_url().unwrap();
        let mut config = fleet::plugin_config(&server);
        config["url"] = json!(url);

        let plugin = PluginProcess::start(command(BINARY)).await;
        let refused = plugin.init(config.to_string().as_bytes(), fleet::connector(guest_port)).await.unwrap_err();
        assert!(refused.message().contains("invalid peer certificate"), "{}", refused.message());
        config["insecure_skip_tls_verify"] = json!(true);
        plugin.init(config.to_string().as_bytes(), fleet::connector(guest_port)).await.unwrap();
        plugin.logged("TLS certificates are not verified").await;
        end(plugin).await;

        // CAs of the system's store are trusted: here a file with the CA twice, and an unreadable certificate.
        config["insecure_skip_tls_verify"] = json!(false);
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let pem = server.ca_pem().unwrap();
        let bundle = File::new("bundle.pem", &format!("{pem}{broken}{pem}"));
        let mut trusting = command(BINARY);
        trusting.env("SSL_CERT_FILE", &bundle.0);
        let plugin = PluginProcess::start(trusting).await;
        plugin.init(config.to_string().as_bytes(), fleet::connector(guest_port)).await.unwrap();
        plugin.logged("bundle.pem: 1 CAs are trusted in addition to the public ones, 1 cannot be read").await;
        end(plugin).await;

        config["ca_file"] = json!(ca.0);
        for exception in ["", "localhost"] {
            let proxy = TunnelProxy::start().await;
            let mut command = command(BINARY);
            command.env("HTTPS_PROXY", &proxy.url).env("NO_PROXY", exception);
            let plugin = PluginProcess::start(command).await;
            plugin.init(config.to_string().as_bytes(), fleet::connector(guest_port)).await.unwrap();
            plugin.increase(1).await.unwrap();
            reach(&plugin, 1, State::Running).await;
            let log = end(plugin).await;
            assert!(fleet::vapps(&server).is_empty());
            // Connections are reused: there are at most as many as threads, for any number of requests.
            let (tunnels, asked) = (proxy.tunnels.load(Ordering::SeqCst), proxy.asked.lock().unwrap().clone());
            if exception.is_empty() {
                let place = url.trim_start_matches("https://");
                assert!((1..=4).contains(&tunnels), "{tunnels} tunnels");
                assert!(asked.starts_with(&format!("CONNECT {place} HTTP/1.1\r\n")), "{asked}");
                assert!(asked.to_lowercase().contains("proxy-authorization: basic "), "{asked}");
                assert!(log.iter().any(|line| line.contains("through the proxy 127.0.0.1:")), "{log:#?}");
            } else {
                assert_eq!((tunnels, asked.as_str()), (0, ""));
            }
            for secret in ["pr0xy-Secret", "sim-api-token"] {
                assert!(!log.iter().any(|line| line.contains(secret)), "{secret} is in the log");
            }
        }
    });
}

#[test]
fn a_revoked_token_is_logged_and_running_instances_are_still_reported() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let mut config = fleet::plugin_config(&server);
        // The token is in the environment, and the url is copied from a browser.
        config.as_object_mut().unwrap().remove("token");
        config["url"] = json!(format!("{}/", server.url()));
        config["reconcile_interval"] = json!("1s");
        let mut command = command(BINARY);
        command.env("VCD_TOKEN", "sim-api-token");
        let plugin = PluginProcess::start(command).await;
        plugin.init(config.to_string().as_bytes(), fleet::connector(guest_port)).await.unwrap();
        plugin.increase(2).await.unwrap();
        let names = reach(&plugin, 2, State::Running).await;

        server.with_model(|model| {
            model.admin_revoke_token("sim-api-token");
            model.admin_expire_bearers();
        });
        plugin.logged("VCD rejected the API token").await;
        let refusals = server.requests("login") + 1;
        common::until("another login", || server.requests("login") >= refusals).await;
        assert_eq!(reach(&plugin, 2, State::Running).await, names);
        plugin.connect_info(&names[0]).await.unwrap();
        plugin.heartbeat(&names[0]).await.unwrap();

        server.with_model(|model| {
            let user = *model.users.keys().next().unwrap();
            model.tokens.insert("sim-api-token".into(), user);
        });
        plugin.decrease(&[&names[0]]).await.unwrap();
        assert_eq!(reach(&plugin, 1, State::Running).await, [names[1].clone()]);
        let log = end(plugin).await;
        assert!(!log.iter().any(|line| line.contains("sim-api-token")), "the token is in the log");
        assert_eq!((server.requests("logout"), server.with_model(|model| model.bearers.len())), (1, 0));
    });
}

#[test]
fn a_vm_is_created_with_all_settings() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        server.with_model(|model| {
            let (catalog, vdc) = (*model.catalogs.keys().next().unwrap(), *model.vdcs.keys().next().unwrap());
            for (name, created) in [("golden-a", 2_000), ("golden-b", 1_000)] {
                let windows = ("vm", "Microsoft Windows Server 2022 (64-bit)", "windows2019srvNext_64Guest");
                let id = model.add_template(catalog, vdc, name, &[windows]);
                model.templates.get_mut(&id).unwrap().created = created;
            }
        });
        let script = File::new("script", "#ps1\nWrite-Host 'the user-s own'\n");
        let data = File::new("data", "#cloud-config\n");
        let keys = json!({
            "template": "golden-*", "ip_allocation_mode": "DHCP", "vapp_name_prefix": "ci-windows-with-a-long-name",
            "cpu_count": 0, "cores_per_socket": 0, "memory_mb": 0, "sizing_policy": "small", "placement_policy": "rack-1",
            "guest_properties": {"stage": "test"}, "user_data_file": data.0, "customization_script_file": script.0,
            "max_instance_age": "10h",
        });
        let plugin = start(&server, guest_port, keys).await;
        plugin.increase(1).await.unwrap();
        let names = reach(&plugin, 1, State::Running).await;
        let info = plugin.connect_info(&names[0]).await.unwrap();
        assert!(info.internal_addr.starts_with("127.0.2"), "an address by DHCP: {}", info.internal_addr);
        assert_eq!((info.connector.unwrap().os.as_str(), names[0].len()), ("windows", 36));
        server.with_model(|model| {
            let vapp = model.vapps.values().next().unwrap();
            assert_eq!((vapp.lease.deployment_s, vapp.lease.storage_s), (22 * 3600, 74 * 3600));
            let vm = &model.vms[&vapp.vms[0]];
            assert!(vm.policy.is_some() && vm.placement.is_some());
            let properties: Vec<(&str, &str)> = vm.properties.iter().map(|(key, value)| (&**key, &**value)).collect();
            assert_eq!(properties, [("stage", "test"), ("user-data", "I2Nsb3VkLWNvbmZpZwo=")]);
            let applied = vm.applied.as_ref().unwrap();
            assert!(applied.script.as_deref().unwrap().contains("powershell"), "{:?}", applied.script);
            let computer = applied.computer_name.as_deref().unwrap();
            assert!(computer.len() <= 15 && computer.ends_with(&names[0][names[0].len() - 9..]), "{computer}");
        });
        let log = end(plugin).await;
        assert!(!log.iter().any(|line| line.contains("the user-s own")), "the script is in the log");
    });
}

#[test]
fn a_vm_without_an_address_is_created_again() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let rule = json!({"op": "instantiate", "guest": "no_address"});
        assert!(server.add_fault(Rule::from_json(&rule).unwrap()));
        let keys = json!({"ip_allocation_mode": "DHCP", "ready_timeout": "8s", "reconcile_interval": "1s"});
        let plugin = start(&server, guest_port, keys).await;
        plugin.increase(1).await.unwrap();
        let names = reach(&plugin, 1, State::Running).await;
        assert_eq!((server.requests("instantiate"), fleet::vapps(&server)), (2, names));
        end(plugin).await;
    });
}

#[test]
fn the_host_gets_the_candidates_of_an_ambiguous_name() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        server.with_model(|model| {
            let (catalog, vdc) = (*model.catalogs.keys().next().unwrap(), *model.vdcs.keys().next().unwrap());
            model.add_template(catalog, vdc, "ubuntu-22.04", &[("another", "Ubuntu Linux (64-bit)", "ubuntu64Guest")]);
        });
        let plugin = PluginProcess::start(command(BINARY)).await;
        let config = fleet::plugin_config(&server).to_string();
        let status = plugin.init(config.as_bytes(), fleet::connector(guest_port)).await.unwrap_err();
        let said = status.message();
        assert_eq!(said.matches("\"urn:vcloud:vapptemplate:").count(), 2, "{said}");
        assert!(said.contains("2 with this name in catalog \"ci-catalog\"") && !said.contains('\n'), "{said}");
        end(plugin).await;
    });
}

#[test]
fn shutdown_waits_for_vcd_and_for_the_host_for_a_limited_time() {
    block_on(async {
        for (operation, said) in [
            ("instantiate", "VCD did not answer some requests in time"),
            ("logout", "VCD did not end the session in time"),
            ("", "GitLab Runner still has a connection open"),
        ] {
            let (server, guest_port) = fleet::simulator(SCALE);
            let mut plugin = start(&server, guest_port, json!({})).await;
            if !operation.is_empty() {
                let rule = json!({"op": operation, "times": 0, "delay_before_ms": 3_600_000});
                assert!(server.add_fault(Rule::from_json(&rule).unwrap()));
            }
            let before = server.requests("instantiate");
            if operation == "instantiate" {
                plugin.increase(1).await.unwrap();
                common::until("the create", || server.requests("instantiate") > before).await;
            }
            // A call of the host whose message never arrives.
            let client = plugin.client.clone().unwrap();
            let path = "/proto.InstanceGroup/Heartbeat";
            let mut call = Box::pin(client.streaming::<HeartbeatRequest, ()>(path, smol::stream::pending()));
            if operation.is_empty() {
                assert!(smol::future::poll_once(&mut call).await.is_none());
            }
            plugin.quit().await.unwrap();
            let (status, _) = plugin.exited().await;
            assert!(status.success(), "{operation}: {status}");
            assert!(plugin.log().iter().any(|line| line.contains(said)), "{operation}: {:#?}", plugin.log());
        }
    });
}

#[test]
#[cfg(target_os = "linux")]
fn an_unread_log_delays_neither_calls_nor_shutdown() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        // The pipe is full from the first line on.
        let (mut reader, mut log) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&log, true).unwrap();
        let full = std::iter::repeat_with(|| log.write(b"x")).position(|written| written.is_err()).unwrap();
        rustix::io::ioctl_fionbio(&log, false).unwrap();
        let mut command = command(BINARY);
        command.stderr(log);
        let mut plugin = PluginProcess::start(command).await;
        let config = fleet::plugin_config(&server).to_string();
        plugin.init(config.as_bytes(), fleet::connector(guest_port)).await.unwrap();
        assert_eq!(plugin.increase(1).await.unwrap(), 1);
        reach(&plugin, 1, State::Running).await;
        plugin.signal(rustix::process::Signal::TERM);
        plugin.client = None;
        assert!(plugin.exited().await.0.success(), "SIGTERM ends a plugin without a connection");
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        assert_eq!(said, "x".repeat(full), "no other line is in between");
    });
}

#[test]
fn three_changes_are_on_the_wire_and_reads_go_on() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let keys = json!({"max_concurrent_creates": 5, "max_concurrent_operations": 6, "reconcile_interval": "1s"});
        let plugin = start(&server, guest_port, keys).await;
        let rule = json!({"op": "instantiate", "times": 0, "delay_before_ms": 3_600_000});
        assert!(server.add_fault(Rule::from_json(&rule).unwrap()));
        plugin.increase(5).await.unwrap();
        let creates = || server.requests("instantiate");
        common::until("creates", || creates() == 3).await;
        let polls = server.requests("query:vm");
        common::until("polls", || server.requests("query:vm") > polls + 1).await;
        assert_eq!(creates(), 3, "the others wait");
    });
}

/// A vApp that only a lookup shows as foreign, and `times` lookups (0: all) that take an hour.
fn delay_looks(server: &Server, times: u32) {
    server.with_model(|model| {
        let vdc = *model.vdcs.keys().next().unwrap();
        model.admin_foreign_vapp(vdc, "ci-abcd1234", "");
    });
    let rule = json!({"op": "vapp", "times": times, "delay_before_ms": 3_600_000});
    assert!(server.add_fault(Rule::from_json(&rule).unwrap()));
}

#[test]
fn init_waits_for_a_lookup_for_a_limited_time() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        delay_looks(&server, 0);
        let plugin = start(&server, guest_port, json!({})).await;
        plugin.logged("vApps that may belong to this group could not be looked up in time").await;
    });
}

/// Else the next poll would show them as VMs that were not there at the start, and they would be deleted.
#[test]
fn an_init_during_an_outage_fails_and_deletes_nothing() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        delay_looks(&server, 1);
        let rule = json!({"op": "query:vm", "nth": 2, "times": 0, "answer_before": {"status": 503}});
        assert!(server.add_fault(Rule::from_json(&rule).unwrap()));
        let plugin = PluginProcess::start(command(BINARY)).await;
        let config = fleet::plugin_config(&server).to_string();
        let error = plugin.init(config.as_bytes(), fleet::connector(guest_port)).await.unwrap_err().to_string();
        assert!(error.contains("VCD does not answer lookups of the VMs of an earlier process"), "{error}");
        common::until("the end of the session", || server.requests("logout") == 1).await;
        server.clear_faults();
        plugin.init(config.as_bytes(), fleet::connector(guest_port)).await.unwrap();
        end(plugin).await;
    });
}

#[test]
fn an_init_that_the_host_cancels_leaves_no_session_and_no_driver() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        delay_looks(&server, 1);
        let plugin = PluginProcess::start(command(BINARY)).await;
        let config = fleet::plugin_config(&server).to_string();
        let init = async {
            let answer = plugin.init(config.as_bytes(), fleet::connector(guest_port)).await;
            panic!("Init did not wait for the lookup: {answer:?}");
        };
        // Dropping a call cancels it.
        init.or(common::until("a lookup", || server.requests("vapp") > 0)).await;
        common::until("the end of the session", || server.requests("logout") == 1).await;
        plugin.init(config.as_bytes(), fleet::connector(guest_port)).await.unwrap();
        assert_eq!(server.requests("login"), 2);
        end(plugin).await;
    });
}

#[test]
fn a_silent_guest_is_probed_again() {
    block_on(async {
        let (server, _) = fleet::simulator(SCALE);
        // The system accepts connections to this port, but nobody answers on them.
        let silent = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = silent.local_addr().unwrap().port();
        let plugin = start(&server, port, json!({"ready_timeout": "12s"})).await;
        plugin.increase(1).await.unwrap();
        plugin.logged("connected, but no useful answer within 5s").await;
    });
}

#[test]
fn connections_to_the_debug_server_end_and_wait_where_no_more_can_be_opened() {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let debug = format!("127.0.0.1:{}", fleet::free_port());
        let plugin = start(&server, guest_port, json!({"debug_server_addr": debug})).await;
        plugin.logged("debug server at").await;
        let request = format!("GET /healthz HTTP/1.1\r\nHost: {debug}\r\n\r\n");
        // Sends requests until the server closes the connection.
        let ask = async |stream: &mut TcpStream| {
            let mut answer = [0; 4096];
            stream.write_all(request.as_bytes()).await.is_ok()
                && stream.read(&mut answer).await.is_ok_and(|length| length > 0)
        };
        let mut slow = TcpStream::connect(&debug).await.unwrap();
        slow.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        let mut busy = TcpStream::connect(&debug).await.unwrap();
        assert!(ask(&mut busy).await);
        let ended = async {
            while ask(&mut busy).await {
                Timer::after(Duration::from_millis(100)).await;
            }
        };
        let mut rest = Vec::new();
        let closed = async {
            let _ = slow.read_to_end(&mut rest).await;
        };
        let mut ended = Box::pin(ended);
        soon(
            "the end of a slow connection",
            smol::future::or(closed, async {
                (&mut ended).await;
                panic!("the connection with requests ends first");
            }),
        )
        .await;
        soon("the end of a connection with many requests", ended).await;

        let process = Pid::from_raw(plugin.child.id().try_into().unwrap());
        let none = Rlimit { current: Some(1), maximum: getrlimit(Resource::Nofile).maximum };
        let before = prlimit(process, Resource::Nofile, none).unwrap();
        let mut late = TcpStream::connect(&debug).await.unwrap();
        let warnings = || plugin.log().iter().filter(|line| line.contains("debug server: accept: ")).count();
        common::until("a second try", || warnings() > 1).await;
        prlimit(process, Resource::Nofile, before).unwrap();
        assert!(ask(&mut late).await);
        assert!(warnings() < 50, "it tries without a pause: {} times", warnings());
    });
}
