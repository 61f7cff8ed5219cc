//! Differences between VCDs, and GitLab Runner's other calls, end to end: creates in steps, deletes without force,
//! leases, suspend and resume.

use crate::common::{PluginProcess, command, soon, until};
use crate::fleet;
use crate::live::{BINARY, SCALE, end, reach, start};
use fleeting_plugin_vcd::host::proto::fleeting::{ResumeResponse, State, SuspendResponse};
use fleeting_plugin_vcd::host::proto::status;
use prost::Message;
use serde_json::json;
use smol::{Timer, block_on};
use std::time::{Duration, Instant};
use tonic::Code;
use vcd_sim::Server;
use vcd_sim::faults::Rule;
use vcd_sim::model::{
    Disk, HardwareInCreate, HardwareShown, Model, Nic, OwnNetworkInCreate, Power, Right, Scripts, TemplateVm,
};

/// CPUs, cores per socket, memory and disk of all VMs, and whether they have a TPM.
fn hardware(server: &Server) -> Vec<(u32, u32, u32, u64, bool)> {
    server.with_model(|model| {
        let of = |vm: &vcd_sim::model::Vm| (vm.cpus, vm.cores_per_socket, vm.memory_mb, vm.disks[0].mb, vm.tpm);
        model.vms.values().map(of).collect()
    })
}

const MORE: [(&str, u32); 4] = [("cpu_count", 4), ("cores_per_socket", 2), ("memory_mb", 8192), ("disk_size_gb", 60)];

fn more() -> serde_json::Value {
    MORE.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect::<serde_json::Map<_, _>>().into()
}

#[test]
fn if_hardware_in_a_create_is_rejected_vms_are_created_in_steps() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        server.with_model(|model| model.settings.hardware_in_create = HardwareInCreate::Refuse);
        let plugin = start(&server, guest_port, more()).await;
        plugin.increase(1).await.unwrap();
        reach(&plugin, 1, State::Running).await;
        plugin.increase(1).await.unwrap();
        reach(&plugin, 2, State::Running).await;
        assert_eq!(hardware(&server), [(4, 2, 8192, 60 * 1024, false); 2]);
        let counts = ["instantiate", "compose", "reconfigure", "power:on"].map(|name| server.requests(name));
        assert_eq!(
            counts,
            [1, 2, 2, 2],
            "one create request with everything is tried, then each create takes three requests"
        );
        let log = end(plugin).await;
        let said = log.iter().filter(|line| line.contains("VMs are now created in three steps")).count();
        assert_eq!(said, 1, "the reason is logged once");
        assert!(fleet::vapps(&server).is_empty());
    });
}

/// VCD takes five seconds for each create request, and the plugin sends three at the same time.
#[test]
fn creates_that_have_not_been_sent_are_not_sent_after_a_decrease() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let rule = json!({"op": "instantiate", "times": 0, "delay_before_ms": 5_000});
        assert!(server.add_fault(Rule::from_json(&rule).unwrap()));
        let more = json!({"max_concurrent_creates": 8, "max_concurrent_operations": 8});
        let plugin = start(&server, guest_port, more).await;
        plugin.increase(8).await.unwrap();
        until("three create requests", || server.requests("instantiate") == 3).await;
        let names: Vec<String> = plugin.update().await.unwrap().into_iter().map(|(name, _)| name).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        plugin.decrease(&names).await.unwrap();
        end(plugin).await;
        assert_eq!(server.requests("instantiate"), 3);
        assert!(fleet::vapps(&server).is_empty());
    });
}

#[test]
fn if_hardware_in_a_create_is_ignored_the_first_vm_is_created_again() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        server.with_model(|model| model.settings.hardware_in_create = HardwareInCreate::Ignore);
        let plugin = start(&server, guest_port, more()).await;
        plugin.increase(1).await.unwrap();
        let names = reach(&plugin, 1, State::Running).await;
        assert_eq!(hardware(&server), [(4, 2, 8192, 60 * 1024, false)]);
        assert_eq!(fleet::vapps(&server), names, "with the same id");
        plugin.logged("VCD ignores a part of the create request (2 CPUs instead of 4, ").await;
        end(plugin).await;
        assert!(fleet::vapps(&server).is_empty());
    });
}

fn seed_templates(model: &mut Model, change: impl Fn(&mut TemplateVm)) {
    model.template_vms.values_mut().for_each(change);
}

#[test]
fn vms_from_realistic_templates_are_created_with_one_request() {
    block_on(async {
        for setting in [OwnNetworkInCreate::Refuse, OwnNetworkInCreate::Ignore] {
            let (server, guest_port) = fleet::simulator(SCALE);
            server.with_model(|model| {
                model.settings.own_network_in_create = setting;
                model.settings.utc_offset_minutes = -210;
                seed_templates(model, |vm| {
                    // Two adapters. The boot disk is the second of three. The document shows every element.
                    vm.nics = vec![
                        Nic { network: Some("VM Network".into()), ..Nic::unconnected(0) },
                        Nic { network: Some("Internal Network".into()), ..Nic::unconnected(1) },
                    ];
                    vm.disks = [(2016, 7), (2000, 20_480), (2001, 1024)].map(|(id, mb)| Disk { id, mb }).to_vec();
                    vm.shows = HardwareShown::Nil;
                });
            });
            let plugin = start(&server, guest_port, more()).await;
            plugin.increase(2).await.unwrap();
            reach(&plugin, 2, State::Running).await;
            server.with_model(|model| {
                for vm in model.vms.values() {
                    let disks: Vec<(u32, u64)> = vm.disks.iter().map(|disk| (disk.id, disk.mb)).collect();
                    assert_eq!(disks, [(2016, 7), (2000, 60 * 1024), (2001, 1024)]);
                    assert_eq!((vm.cpus, vm.memory_mb, vm.nics[0].network.as_deref()), (4, 8192, Some("ci-net")));
                }
            });
            let counts = ["instantiate", "compose", "reconfigure", "delete"].map(|name| server.requests(name));
            assert_eq!(counts, [2, 0, 0, 0], "{setting:?}");
            end(plugin).await;
        }
    });
}

#[test]
fn a_template_that_does_not_show_its_disk_does_not_fail_the_start() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        server.with_model(|model| seed_templates(model, |vm| vm.shows = HardwareShown::Nothing));
        let plugin = start(&server, guest_port, more()).await;
        plugin.increase(1).await.unwrap();
        reach(&plugin, 1, State::Running).await;
        assert_eq!(hardware(&server), [(4, 2, 8192, 60 * 1024, false)]);
        let counts = ["instantiate", "compose", "reconfigure", "power:on"].map(|name| server.requests(name));
        assert_eq!(counts, [0, 1, 1, 1], "the disk is set in the VM");
        plugin.logged("does not show its disk: the plugin sets its size when the VM shows it").await;
        end(plugin).await;
    });
}

#[test]
fn a_vm_whose_create_failed_at_the_power_on_is_reconfigured_and_powered_on() {
    block_on(async {
        for (hardware_in_create, reconfigured) in [(HardwareInCreate::Apply, 0), (HardwareInCreate::Ignore, 2)] {
            let (server, guest_port) = fleet::simulator(SCALE);
            server.with_model(|model| {
                model.settings.create_fails_at_power_on = true;
                model.settings.hardware_in_create = hardware_in_create;
            });
            let plugin = start(&server, guest_port, more()).await;
            plugin.increase(2).await.unwrap();
            let names = reach(&plugin, 2, State::Running).await;
            assert_eq!(hardware(&server), [(4, 2, 8192, 60 * 1024, false); 2]);
            let counts =
                ["instantiate", "reconfigure", "power:on", "compose", "delete"].map(|name| server.requests(name));
            assert_eq!(counts, [2, reconfigured, 2, 0, 0], "{hardware_in_create:?}");
            let mut made = fleet::vapps(&server);
            made.sort();
            assert_eq!(made, names, "the created VMs are used");
            plugin.logged("VCD created the VM but did not power it on: the plugin powers it on").await;
            end(plugin).await;
        }
    });
}

#[test]
fn after_two_creates_with_a_failed_task_vms_are_created_in_steps() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let rule = json!({"op": "instantiate", "times": 0, "task_fails": {"step": 0}});
        assert!(server.add_fault(Rule::from_json(&rule).unwrap()));
        let plugin = start(&server, guest_port, more()).await;
        plugin.increase(2).await.unwrap();
        reach(&plugin, 2, State::Running).await;
        let counts = ["instantiate", "compose", "reconfigure", "power:on"].map(|name| server.requests(name));
        assert_eq!(counts, [2, 2, 2, 2]);
        let log = end(plugin).await;
        assert!(log.iter().any(|line| line.contains("VMs are now created in three steps")), "{log:#?}");
        assert!(!log.iter().any(|line| line.contains("creates fail:")), "the breaker does not count them: {log:#?}");
        assert!(fleet::vapps(&server).is_empty(), "the failed creates leave nothing");
    });
}

/// The limit allows one VM. The second create fails and reports the limit, and succeeds soon after the first VM is
/// deleted.
async fn a_quota_ends_with_a_delete(limit: impl FnOnce(&mut Model), says: &str) {
    let (server, guest_port) = fleet::simulator(SCALE);
    server.with_model(limit);
    let plugin = start(&server, guest_port, json!({"reconcile_interval": "1s"})).await;
    plugin.increase(1).await.unwrap();
    let first = reach(&plugin, 1, State::Running).await;
    let began = Instant::now();
    plugin.increase(1).await.unwrap();
    plugin.logged(says).await;
    let refusal = plugin.log().into_iter().find(|line| line.contains(says)).unwrap();
    let pause = refusal.split("next try in ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or(&refusal);
    let pause: u64 = pause.parse().unwrap();
    assert!((22..=38).contains(&pause), "the pauses grow from 30 s: {refusal}");
    // The plugin deletes what the failed create left. This delete causes no retry.
    until("the delete of the failed create's vApp", || fleet::vapps(&server) == first).await;
    let (creates, polls) = (server.requests("instantiate"), server.requests("query:vm"));
    until("polls", || server.requests("query:vm") > polls + 2).await;
    assert_eq!((creates, server.requests("instantiate")), (2, 2), "{says}");
    plugin.decrease(&[&first[0]]).await.unwrap();
    until("another create", || server.requests("instantiate") == 3).await;
    assert!(began.elapsed() < Duration::from_secs(pause), "the retry came before the pause ended");
    let second = reach(&plugin, 1, State::Running).await;
    assert_ne!(first, second);
    end(plugin).await;
}

#[test]
fn a_create_over_a_quota_follows_the_next_delete() {
    let of_vms = |model: &mut Model| model.vdcs.values_mut().for_each(|vdc| vdc.vm_limit = Some(1));
    block_on(a_quota_ends_with_a_delete(of_vms, "exceed the VDC's VM quota"));
}

#[test]
fn a_create_without_a_free_address_follows_the_next_delete() {
    let of_addresses = |model: &mut Model| model.networks.values_mut().for_each(|net| net.pool.1 = net.pool.0);
    // The task fails, after it created the VM.
    block_on(a_quota_ends_with_a_delete(of_addresses, "There are insufficient IP addresses to complete operation"));
}

#[test]
fn a_retry_after_is_obeyed_up_to_a_limit() {
    block_on(async {
        for (asked, said, waits) in [(23, "all changes pause for 23 s", true), (7200, "pause for 300 s", false)] {
            let (server, guest_port) = fleet::simulator(SCALE);
            let plugin = start(&server, guest_port, json!({})).await;
            let rule = json!({"op": "instantiate", "answer_before": {"status": 429, "retry_after": asked}});
            assert!(server.add_fault(Rule::from_json(&rule).unwrap()));
            let began = Instant::now();
            plugin.increase(1).await.unwrap();
            plugin.logged(said).await;
            if waits {
                until("the second try", || server.requests("instantiate") == 2).await;
                assert!(began.elapsed() >= Duration::from_secs(asked), "{:?}", began.elapsed());
                reach(&plugin, 1, State::Running).await;
            }
            end(plugin).await;
        }
    });
}

#[test]
fn user_data_that_a_create_ignores_is_set_before_the_guest_is_ready() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        server.with_model(|model| model.settings.properties_in_create = HardwareInCreate::Ignore);
        // A sizing policy replaces the hardware.
        let keys = json!({"sizing_policy": "small", "cpu_count": 0, "cores_per_socket": 0, "memory_mb": 0,
            "guest_properties": {"role": "builder"}});
        let plugin = start(&server, guest_port, keys).await;
        plugin.increase(1).await.unwrap();
        reach(&plugin, 1, State::Running).await;
        let properties =
            server.with_model(|model| model.vms.values().map(|vm| vm.properties.clone()).collect::<Vec<_>>());
        assert_eq!(properties, [vec![("role".into(), "builder".into())]]);
        assert_eq!(server.requests("update:properties"), 1);
        plugin.logged("a part of the create request (guest property \\\"role\\\" is missing or wrong)").await;
        let log = end(plugin).await;
        assert!(!log.iter().any(|line| line.contains("builder")), "property values are secrets");
    });
}

#[test]
fn without_a_login_script_tools_that_refuse_scripts_get_none() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        server.with_model(|model| seed_templates(model, |vm| vm.scripts = Scripts::Fail));
        let plugin = start(&server, guest_port, json!({"login_script": false})).await;
        plugin.increase(1).await.unwrap();
        reach(&plugin, 1, State::Running).await;
        assert!(server.with_model(|model| model.vms.values().all(|vm| vm.guest.script.is_none())));
        end(plugin).await;
    });
}

#[test]
fn a_customization_that_fails_names_the_scripts_that_tools_refuse() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        server.with_model(|model| seed_templates(model, |vm| vm.scripts = Scripts::Fail));
        for (template, says) in [
            ("ubuntu-22.04", "the template needs `vmware-toolbox-cmd config set deployPkg enable-custom-scripts true`"),
            ("windows-2022", "often the password policy of the guest rejects the password"),
        ] {
            let plugin = start(&server, guest_port, json!({"template": template})).await;
            plugin.increase(1).await.unwrap();
            plugin.logged("guest customization failed (GC_FAILED)").await;
            let line = plugin.log().into_iter().find(|line| line.contains("GC_FAILED")).unwrap();
            assert!(line.contains(says), "{line}");
            end(plugin).await;
        }
    });
}

#[test]
fn windows_11_gets_its_tpm_before_the_first_boot() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        server.with_model(|model| {
            let (catalog, vdc) = (*model.catalogs.keys().next().unwrap(), *model.vdcs.keys().next().unwrap());
            model.add_template(
                catalog,
                vdc,
                "windows-11",
                &[("w", "Microsoft Windows 11 (64-bit)", "windows11_64Guest")],
            );
        });
        let plugin = start(&server, guest_port, json!({"template": "windows-11"})).await;
        plugin.increase(1).await.unwrap();
        reach(&plugin, 1, State::Running).await;
        assert!(hardware(&server).iter().all(|vm| vm.4), "it has a TPM");
        assert_eq!(server.requests("tpm"), 1);
        end(plugin).await;
    });
}

#[test]
fn without_the_right_to_force_vapps_are_stopped_and_deleted() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        server.with_model(|model| {
            model.settings.force_needs_right = true;
            model.users.values_mut().for_each(|user| user.rights.retain(|right| *right != Right::Force));
        });
        let plugin = start(&server, guest_port, json!({})).await;
        plugin.increase(2).await.unwrap();
        let names = reach(&plugin, 2, State::Running).await;
        plugin.decrease(&[&names[0]]).await.unwrap();
        reach(&plugin, 1, State::Running).await;
        assert_eq!(server.requests("undeploy"), 1);
        plugin.logged("the plugin stops the vApp first, then deletes it").await;
        end(plugin).await;
        assert!(fleet::vapps(&server).is_empty(), "shutdown deletes it in the same way");
    });
}

#[test]
fn an_instance_whose_lease_ends_soon_is_unhealthy() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let plugin = start(&server, guest_port, json!({"lease": "org", "reconcile_interval": "1s"})).await;
        plugin.increase(1).await.unwrap();
        let names = reach(&plugin, 1, State::Running).await;
        plugin.heartbeat(&names[0]).await.unwrap();
        server.with_model(|model| {
            let soon = model.now() + 30 * 60 * 1000;
            model.vapps.values_mut().for_each(|vapp| vapp.undeploy_at = Some(soon));
        });
        let unhealthy = async {
            loop {
                match plugin.heartbeat(&names[0]).await {
                    Ok(()) => Timer::after(Duration::from_millis(50)).await,
                    Err(status) => return status,
                };
            }
        };
        let status = soon("an unhealthy heartbeat", unhealthy).await;
        assert!(status.message().contains("its lease in VCD ends soon"), "{}", status.message());
        end(plugin).await;
    });
}

/// The details of a failed Suspend or Resume about its successful part.
fn part<M: Message + Default>(status: &tonic::Status, name: &str) -> M {
    let details = status::Status::decode(status.details()).unwrap();
    assert_eq!((details.code, details.message.as_str()), (status.code() as i32, status.message()));
    assert_eq!(details.details[0].type_url, format!("type.googleapis.com/{name}"));
    M::decode(&*details.details[0].value).unwrap()
}

async fn state(plugin: &PluginProcess, name: &str) -> State {
    plugin.update().await.unwrap().into_iter().find(|(id, _)| id == name).expect("it is reported").1
}

async fn becomes(plugin: &PluginProcess, name: &str, wanted: State) {
    let reached = async {
        while state(plugin, name).await != wanted {
            Timer::after(Duration::from_millis(10)).await;
        }
    };
    soon(&format!("{name} to be {wanted:?}"), reached).await;
}

#[test]
fn instances_are_suspended_and_resumed() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let plugin = start(&server, guest_port, json!({})).await;
        plugin.increase(2).await.unwrap();
        let names = reach(&plugin, 2, State::Running).await;
        let one = names[0].as_str();

        assert_eq!(plugin.suspend(&[one]).await.unwrap(), [one]);
        assert_eq!(state(&plugin, one).await, State::Suspending, "at once");
        assert!(plugin.connect_info(one).await.is_err());
        becomes(&plugin, one, State::Suspended).await;
        assert_eq!(plugin.suspend(&[one]).await.unwrap(), [one], "a suspended instance is a success");
        assert_eq!(server.requests("power:suspend"), 1);
        assert_eq!(server.with_model(|model| model.vms.values().filter(|vm| vm.power == Power::Suspended).count()), 1);

        assert_eq!(plugin.resume(&[one]).await.unwrap(), [one]);
        assert_eq!(state(&plugin, one).await, State::Resuming, "at once");
        becomes(&plugin, one, State::Running).await;
        let info = plugin.connect_info(one).await.unwrap();
        std::net::TcpStream::connect((info.internal_addr.as_str(), guest_port)).expect("its port answers");

        // A part of the call succeeds.
        plugin.decrease(&[&names[1]]).await.unwrap();
        let status = plugin.suspend(&[one, &names[1], "ci-00000000"]).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(part::<SuspendResponse>(&status, "proto.SuspendResponse").succeeded, [one]);
        for text in [&format!("{} is", names[1]), "ci-00000000 is not known"] {
            assert!(status.message().contains(text), "{text}: {}", status.message());
        }
        becomes(&plugin, one, State::Suspended).await;
        let status = plugin.resume(&[&names[1]]).await.unwrap_err();
        assert_eq!(part::<ResumeResponse>(&status, "proto.ResumeResponse").succeeded, [""; 0]);

        // A suspended instance is deleted without a resume.
        plugin.decrease(&[one]).await.unwrap();
        reach(&plugin, 0, State::Running).await;
        assert!(fleet::vapps(&server).is_empty());
        end(plugin).await;
    });
}

#[test]
fn a_resumed_instance_is_reached_at_its_new_address() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let plugin = start(&server, guest_port, json!({"ip_allocation_mode": "DHCP"})).await;
        plugin.increase(1).await.unwrap();
        let names = reach(&plugin, 1, State::Running).await;
        let before = plugin.connect_info(&names[0]).await.unwrap().internal_addr;
        plugin.suspend(&[&names[0]]).await.unwrap();
        becomes(&plugin, &names[0], State::Suspended).await;
        // Meanwhile its DHCP lease ended, and another guest has the address.
        let new: std::net::Ipv4Addr = "127.0.10.77".parse().unwrap();
        server.with_model(|model| {
            model.vms.values_mut().for_each(|vm| vm.nics.iter_mut().for_each(|nic| nic.address = Some(new)));
        });
        plugin.resume(&[&names[0]]).await.unwrap();
        becomes(&plugin, &names[0], State::Running).await;
        let after = plugin.connect_info(&names[0]).await.unwrap().internal_addr;
        assert!(before != after && after == new.to_string(), "{before}, then {after}");
        end(plugin).await;
    });
}

#[test]
fn an_instance_that_cannot_be_suspended_continues_to_run() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let plugin = start(&server, guest_port, json!({})).await;
        plugin.increase(1).await.unwrap();
        let names = reach(&plugin, 1, State::Running).await;
        server.with_model(|model| model.settings.no_suspend = true);
        plugin.suspend(&[&names[0]]).await.unwrap();
        plugin.logged("has a device or a snapshot that does not allow it.; not suspended, the VM keeps running").await;
        becomes(&plugin, &names[0], State::Running).await;
        plugin.heartbeat(&names[0]).await.unwrap();

        // The storage has no space for its memory.
        server.with_model(|model| {
            model.settings.no_suspend = false;
            let full: Vec<_> = model.profiles.keys().map(|id| (*id, model.storage_used(*id))).collect();
            for (id, used) in full {
                model.profiles.get_mut(&id).unwrap().limit_mb = used.max(1);
            }
        });
        plugin.suspend(&[&names[0]]).await.unwrap();
        plugin.logged("storage quota").await;
        becomes(&plugin, &names[0], State::Running).await;
        end(plugin).await;
    });
}

#[test]
fn suspend_is_not_offered_if_vcd_shows_that_it_cannot_work() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let announced = |keys: serde_json::Value| {
            let server = &server;
            async move {
                let mut config = fleet::plugin_config(server);
                config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
                let plugin = PluginProcess::start(command(BINARY)).await;
                let init = plugin.init(config.to_string().as_bytes(), fleet::connector(guest_port)).await.unwrap();
                let unsupported = plugin.suspend(&["ci-00000000"]).await.unwrap_err().code() == Code::Unimplemented;
                assert_eq!(init.capabilities.is_empty(), unsupported);
                end(plugin).await;
                init.capabilities
            }
        };
        assert_eq!(announced(json!({})).await, ["suspend_resume"]);
        assert_eq!(announced(json!({"suspend_resume": false})).await, [""; 0]);
        server.with_model(|model| model.policies.values_mut().for_each(|policy| policy.vgpu = true));
        assert_eq!(announced(json!({"placement_policy": "rack-1"})).await, [""; 0]);
        assert_eq!(announced(json!({})).await, ["suspend_resume"], "this configuration does not use the policy");
        server.with_model(|model| model.template_vms.values_mut().for_each(|vm| vm.passthrough = true));
        assert_eq!(announced(json!({})).await, [""; 0]);
    });
}

#[test]
fn a_suspend_or_resume_with_a_failed_task_is_reported_and_retried() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let plugin = start(&server, guest_port, json!({})).await;
        plugin.increase(1).await.unwrap();
        let names = reach(&plugin, 1, State::Running).await;
        let fails = |operation: &str| {
            let rule = json!({"op": operation, "task_fails": {"message": "no host has room"}});
            assert!(server.add_fault(Rule::from_json(&rule).unwrap()));
        };
        fails("power:suspend");
        plugin.suspend(&[&names[0]]).await.unwrap();
        plugin.logged("no host has room; not suspended, the VM keeps running").await;
        becomes(&plugin, &names[0], State::Running).await;

        plugin.suspend(&[&names[0]]).await.unwrap();
        becomes(&plugin, &names[0], State::Suspended).await;
        fails("power:on");
        plugin.resume(&[&names[0]]).await.unwrap();
        plugin.logged("no host has room; next try in").await;
        becomes(&plugin, &names[0], State::Running).await;
        end(plugin).await;
        assert!(fleet::vapps(&server).is_empty());
    });
}
