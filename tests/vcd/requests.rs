//! The VCD client with the simulator, over HTTP.

use crate::client::*;
use fleeting_plugin_vcd::cloud::*;
use fleeting_plugin_vcd::vcd::{Client, Environment, IpMode, OPEN_TIMEOUT, Settings, Token, TokenKind};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};
use vcd_sim::Server;
use vcd_sim::model::Wording;
use vcd_sim::xml::Prefixes;

#[test]
fn one_create_request_contains_everything_and_the_vm_starts() {
    for prefixes in [Prefixes::Default, Prefixes::Vcloud, Prefixes::Numbered] {
        let server = server_with(|o| o.api.prefixes = prefixes);
        let (client, environment) = Client::open(settings(&server)).unwrap();
        let ubuntu = "Ubuntu Linux (64-bit)";
        let (token, no_suspend) = (TokenKind::Lasting, None);
        assert_eq!(environment, Environment { api_version: "38.1".into(), guest_os: ubuntu.into(), no_suspend, token });
        let started = create(&client, "ci-abc12345").unwrap();
        let vapp = started.vapp.clone().unwrap();
        assert_eq!(server.requests("instantiate"), 1);
        assert_eq!(ended(&client, &started), TaskState::Success);
        let vm = until("a customized VM with an address", || {
            let vms = poll(&client, false).unwrap().vms;
            vms.into_iter().find(|vm| vm.customization == Customization::Complete && vm.address.is_some())
        });
        assert_eq!((&vm.vapp, &*vm.vapp_name, vm.power), (&vapp, "ci-abc12345", Power::On));
        assert_eq!((vm.cpus, vm.memory_mb, &*vm.guest_os, vm.busy), (4, 8192, ubuntu, false));
        assert_eq!(&*vm.description, "group=<ci> & co");
        server.with_model(|m| {
            let vm = m.vms.values().next().unwrap();
            assert_eq!((vm.cores_per_socket, vm.disks[0].mb, &*vm.name), (2, 40 * 1024, "ci-abc12345"));
            let applied = vm.applied.as_ref().unwrap();
            assert_eq!(applied.script.as_deref(), Some(SCRIPT));
            assert_eq!(applied.password.as_deref(), Some(PASSWORD));
            assert_eq!(applied.computer_name.as_deref(), Some("ci-abc12345"));
        });
        let now = poll(&client, false).unwrap().now.unwrap();
        let created = vm.created.unwrap();
        assert!(created > 1_600_000_000_000 && now.abs_diff(created) < 86_400_000, "{now} {created}");

        let seen = look(&client, &vapp).unwrap().pop().unwrap();
        assert_eq!((&seen.href, &*seen.name, seen.power, seen.vms.len()), (&vapp, "ci-abc12345", Power::On, 1));
        assert_eq!((seen.description.as_deref(), seen.busy), (Some("group=<ci> & co"), false));
        assert_eq!(seen.vm_descriptions, ["group=<ci> & co"]);
        assert!(seen.tasks.is_empty() && seen.created.is_some());
        let found = vapps(&client, &Request::Find { name: "ci-abc12345".into() }).unwrap();
        assert_eq!(found, [seen]);
        assert_eq!(vapps(&client, &Request::Find { name: "ci-abc1234".into() }).unwrap(), []);

        let gone = delete(&client, &vapp).unwrap();
        assert_eq!((&gone.vapp, ended(&client, &gone)), (&None, TaskState::Success));
        assert_eq!(server.requests("delete"), 1);
        assert_eq!(look(&client, &vapp).unwrap(), []);
        assert!(poll(&client, false).unwrap().vms.is_empty());
    }
}

#[test]
fn the_templates_disk_is_kept_with_size_0_and_never_shrunk() {
    let server = server();
    let client = Client::open(Settings { disk_gb: 0, ip_mode: IpMode::Dhcp, ..settings(&server) }).unwrap().0;
    let started = create(&client, "ci-1").unwrap();
    assert_eq!(ended(&client, &started), TaskState::Success);
    server.with_model(|m| assert_eq!(m.vms.values().next().unwrap().disks[0].mb, 20 * 1024));
    let address = until("an address by DHCP", || poll(&client, false).unwrap().vms[0].address);
    assert!(address >= Ipv4Addr::new(127, 0, 20, 2), "{address}");
    let errors = errors_of(Settings { disk_gb: 10, ..settings(&server) });
    assert_eq!((errors.len(), errors[0].kind), (1, ErrorKind::Invalid));
    assert!(errors[0].to_string().contains("10 GB") && errors[0].text.contains("20480 MB"), "{}", errors[0]);
}

#[test]
fn urls_without_api_or_with_a_slash_work() {
    let server = server();
    for url in [server.url(), format!("{}/api/", server.url())] {
        Client::open(Settings { url, ..settings(&server) }).unwrap();
    }
}

#[test]
fn each_unknown_name_is_reported_with_kind_and_place() {
    let server = server();
    let wrong = || "no-such".to_owned();
    let cases: [(Settings, &str, &str); 5] = [
        (Settings { vdc: wrong(), ..settings(&server) }, "find VDC \"no-such\"", "org \"ci-org\""),
        (Settings { network: wrong(), ..settings(&server) }, "find network \"no-such\"", "VDC \"ci-vdc\""),
        (
            Settings { storage_profile: wrong(), ..settings(&server) },
            "find storage profile \"no-such\"",
            "VDC \"ci-vdc\"",
        ),
        (Settings { template: wrong(), ..settings(&server) }, "find template \"no-such\"", "catalog \"ci-catalog\""),
        (Settings { catalog: wrong(), ..settings(&server) }, "find catalog", "org \"ci-org\""),
    ];
    for (settings, what, place) in cases {
        let errors = errors_of(settings);
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert_eq!(errors[0].kind, ErrorKind::NotFound);
        assert!(errors[0].what.contains(what) && errors[0].text.contains(place), "{}", errors[0]);
    }
    let all =
        Settings { vdc: wrong(), network: wrong(), storage_profile: wrong(), template: wrong(), ..settings(&server) };
    let told: Vec<String> = errors_of(all).into_iter().map(|e| e.what).collect();
    assert_eq!(told.len(), 4, "{told:?}");
    // If only the VDC is unknown, only the VDC is reported.
    assert_eq!(errors_of(Settings { vdc: wrong(), ..settings(&server) }).len(), 1);
}

#[test]
fn templates_and_places_that_cannot_be_used_are_refused() {
    let server = server();
    let one = |settings: Settings| {
        let mut errors = errors_of(settings);
        assert_eq!(errors.len(), 1, "{errors:?}");
        errors.remove(0)
    };
    let e = one(Settings { template: "two-vms".into(), ..settings(&server) });
    assert!(e.kind == ErrorKind::Invalid && e.text.contains("2 VMs"), "{e}");

    server.with_model(|m| {
        let (catalog, vdc) = (*m.catalogs.keys().next().unwrap(), *m.vdcs.keys().next().unwrap());
        m.add_template(catalog, vdc, "empty", &[]);
        m.add_template(catalog, vdc, "twice", &[("a", "Linux", "x")]);
        m.add_template(catalog, vdc, "twice", &[("b", "Linux", "x")]);
    });
    let e = one(Settings { template: "empty".into(), ..settings(&server) });
    assert!(e.kind == ErrorKind::Invalid && e.text.contains("0 VMs"), "{e}");
    let e = one(Settings { template: "twice".into(), ..settings(&server) });
    assert!(e.kind == ErrorKind::Invalid && e.text.matches("\"urn:vcloud:vapptemplate:").count() == 2, "{e}");

    server.with_model(|m| m.profiles.values_mut().for_each(|p| p.enabled = false));
    let e = one(settings(&server));
    assert!(e.what.contains("storage profile") && e.text.contains("disabled"), "{e}");
    server.with_model(|m| {
        m.profiles.values_mut().for_each(|p| p.enabled = true);
        m.vdcs.values_mut().for_each(|v| v.enabled = false);
    });
    let e = one(settings(&server));
    assert!(e.what.contains("VDC") && e.text.contains("disabled"), "{e}");
}

#[test]
fn a_refused_token_is_reported_clearly_and_tried_once() {
    let server = server();
    for (org, token) in [("ci-org", "wrong-token"), ("no-org", "sim-api-token")] {
        let before = server.requests("login");
        let errors =
            errors_of(Settings { org: org.into(), token: Token::Text(Secret::new(token)), ..settings(&server) });
        assert_eq!((errors.len(), errors[0].kind, errors[0].status), (1, ErrorKind::Auth, 400));
        assert!(errors[0].what.contains(org) && errors[0].text.contains("Invalid refresh token"), "{}", errors[0]);
        assert!(!errors[0].to_string().contains(token));
        assert_eq!(server.requests("login"), before + 1);
    }
    let client = open(&server);
    server.with_model(|m| {
        m.admin_revoke_token("sim-api-token");
        m.admin_expire_bearers();
    });
    let before = server.requests("login");
    assert_eq!(poll(&client, false).unwrap_err().kind, ErrorKind::Auth);
    assert_eq!(create(&client, "ci-1").unwrap_err().kind, ErrorKind::Auth);
    assert_eq!(server.requests("login"), before + 2);
    assert_eq!(server.requests("instantiate"), 0);
}

#[test]
fn a_vcd_without_a_usable_version_is_reported_clearly() {
    let server = server_with(|o| o.api.versions = vec![("35.2".into(), false), ("36.0".into(), false)]);
    let errors = errors_of(settings(&server));
    assert!(errors.len() == 1 && errors[0].text.contains("36.1"), "{errors:?}");
    assert_eq!(server.requests("login"), 0);
}

#[test]
fn an_ended_session_is_renewed_reads_are_repeated_changes_are_not() {
    let server = server();
    let client = open(&server);
    let logins = server.requests("login");
    server.with_model(|m| m.admin_expire_bearers());
    poll(&client, true).unwrap();
    assert_eq!(server.requests("login"), logins + 1);

    server.with_model(|m| m.admin_expire_bearers());
    let e = create(&client, "ci-1").unwrap_err();
    assert_eq!((e.kind, e.status), (ErrorKind::Auth, 401));
    assert_eq!((server.requests("login"), server.requests("instantiate")), (logins + 2, 1));
    server.with_model(|m| assert!(m.vapps.is_empty()));
    create(&client, "ci-1").unwrap();
    assert_eq!((server.requests("login"), server.requests("instantiate")), (logins + 2, 2));
}

#[test]
fn eight_threads_with_an_ended_session_log_in_once() {
    let server = server();
    let client = Arc::new(open(&server));
    for round in 0..3 {
        // All eight requests are sent before the first 401 arrives.
        fault(&server, serde_json::json!({"op": "query:vm", "times": 8, "delay_before_ms": 50}));
        let logins = server.requests("login");
        server.with_model(|m| m.admin_expire_bearers());
        let barrier = Arc::new(Barrier::new(8));
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let (client, barrier) = (client.clone(), barrier.clone());
                std::thread::spawn(move || {
                    barrier.wait();
                    poll(&client, false)
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap().unwrap();
        }
        assert_eq!(server.requests("login"), logins + 1, "round {round}");
        server.clear_faults();
    }
}

#[test]
fn the_session_is_renewed_before_it_ends() {
    let server = server();
    let client = Client::open(Settings { session_refresh: Duration::ZERO, ..settings(&server) }).unwrap().0;
    let logins = server.requests("login");
    poll(&client, false).unwrap();
    assert_eq!(server.requests("login"), logins + 1);
    // The old bearer is used while it is valid and VCD creates no new one.
    fault(&server, serde_json::json!({"op": "login", "times": 0, "answer_before": {"status": 503}}));
    poll(&client, false).unwrap();
    poll(&client, false).unwrap();
    assert_eq!(server.requests("login"), logins + 2);
}

#[test]
fn a_busy_vapp_is_not_deleted_and_its_task_can_be_cancelled() {
    let server = server_with(|o| o.scale = 1.0);
    let client = open(&server);
    let started = create(&client, "ci-1").unwrap();
    let (vapp, task) = (started.vapp.clone().unwrap(), started.task.clone().unwrap());
    let e = delete(&client, &vapp).unwrap_err();
    assert_eq!((e.kind, e.code.as_str()), (ErrorKind::Busy, "BUSY_ENTITY"));
    assert!(e.what.starts_with("delete vApp vapp-"), "{e}");
    let seen = look(&client, &vapp).unwrap().pop().unwrap();
    assert_eq!((seen.busy, seen.tasks.as_slice()), (true, std::slice::from_ref(&task)));
    assert_eq!(states(&client, std::slice::from_ref(&task)).unwrap(), [TaskState::Running]);
    assert_eq!(client.call(&Request::Cancel { task }, None), Ok(Reply::Done));
    assert!(matches!(ended(&client, &started), TaskState::Failed(_)));
    let gone = delete(&client, &vapp).unwrap();
    assert_eq!(ended(&client, &gone), TaskState::Success);
}

#[test]
fn a_missing_vapp_is_not_found() {
    for gone_is_404 in [false, true] {
        let server = server();
        server.with_model(|m| m.settings.gone_is_404 = gone_is_404);
        let client = open(&server);
        let vapp = create(&client, "ci-1").unwrap().vapp.unwrap();
        server.with_model(|m| {
            let id = m.vapps_named("ci-1")[0];
            m.admin_delete_vapp(id);
        });
        assert_eq!(delete(&client, &vapp).unwrap_err().kind, ErrorKind::NotFound);
        assert_eq!(look(&client, &vapp), Ok(vec![]));
        // A proxy's 404 proves nothing.
        for body in [
            "<html>nginx</html>",
            r#"{"message": "no Route matched with those values"}"#,
            r#"{"status": 404, "error": "Not Found", "path": "/api"}"#,
        ] {
            fault(&server, serde_json::json!({"op": "delete", "answer_before": {"status": 404, "body": body}}));
            assert_eq!(delete(&client, &vapp).unwrap_err().kind, ErrorKind::Ambiguous, "{body}");
        }
        fault(
            &server,
            serde_json::json!({"op": "vapp", "answer_before": {"status": 404, "body": "<html>nginx</html>"}}),
        );
        assert_eq!(look(&client, &vapp).unwrap_err().kind, ErrorKind::Protocol);
    }
}

#[test]
fn a_change_with_an_unknown_outcome_is_ambiguous_and_never_repeated() {
    let server = server();
    let client = open(&server);
    let cases = [
        (serde_json::json!({"reset_before": true}), 0),
        (serde_json::json!({"reset_after": true}), 1),
        (serde_json::json!({"truncate": 100}), 1),
        (serde_json::json!({"truncate": 0}), 1),
        (serde_json::json!({"html": true}), 1),
        (serde_json::json!({"answer_after": {"status": 500}}), 1),
        (serde_json::json!({"answer_before": {"status": 502, "body": "<html>"}}), 0),
        (serde_json::json!({"answer_before": {"status": 503, "retry_after": 7}}), 0),
        (serde_json::json!({"answer_before": {"status": 302}}), 0),
    ];
    for (n, (mut rule, made)) in cases.into_iter().enumerate() {
        rule["op"] = "instantiate".into();
        fault(&server, rule.clone());
        let (before, name) = (server.requests("instantiate"), format!("ci-{n}"));
        let e = create(&client, &name).unwrap_err();
        assert_eq!(e.kind, ErrorKind::Ambiguous, "{rule}: {e}");
        assert_eq!(server.requests("instantiate"), before + 1, "{rule}");
        let found = vapps(&client, &Request::Find { name: name.as_str().into() }).unwrap();
        assert_eq!(found.len(), made, "{rule}");
        if e.status == 503 {
            assert_eq!(e.retry_after, Some(Duration::from_secs(7)));
        }
        server.clear_faults();
    }
    fault(&server, serde_json::json!({"op": "delete", "reset_after": true}));
    let vapp = vapps(&client, &Request::Find { name: "ci-1".into() }).unwrap().remove(0).href;
    until("an idle vApp", || look(&client, &vapp).unwrap().pop().filter(|v| !v.busy));
    assert_eq!(delete(&client, &vapp).unwrap_err().kind, ErrorKind::Ambiguous);
    assert_eq!(server.requests("delete"), 1);
}

#[test]
fn a_read_with_an_unknown_outcome_can_be_repeated() {
    let server = server();
    let client = open(&server);
    for (rule, kind) in [
        (serde_json::json!({"op": "query:vm", "reset_after": true}), ErrorKind::Unavailable),
        (serde_json::json!({"op": "query:vm", "answer_before": {"status": 503}}), ErrorKind::Unavailable),
        (serde_json::json!({"op": "query:vm", "truncate": 60}), ErrorKind::Unavailable),
        (serde_json::json!({"op": "query:vm", "html": true}), ErrorKind::Protocol),
        (serde_json::json!({"op": "query:vm", "answer_before": {"status": 302}}), ErrorKind::Protocol),
        (serde_json::json!({"op": "query:vm", "answer_before": {"status": 429}}), ErrorKind::Limit),
    ] {
        fault(&server, rule.clone());
        assert_eq!(poll(&client, false).unwrap_err().kind, kind, "{rule}");
        server.clear_faults();
        poll(&client, false).unwrap();
    }
}

#[test]
fn nothing_was_done_by_a_server_that_is_not_there() {
    let server = Canned::start();
    let settings = Settings { url: server.url.clone(), disk_gb: 0, ..settings_of_nowhere() };
    let client = Client::open(settings.clone()).unwrap().0;
    drop(server);
    for e in [create(&client, "ci-1").unwrap_err(), poll(&client, false).unwrap_err()] {
        assert_eq!((e.kind, e.status), (ErrorKind::Unavailable, 0), "{e}");
    }
    let errors = errors_of(settings);
    assert_eq!((errors.len(), errors[0].kind), (1, ErrorKind::Unavailable));
    let nowhere = Settings { url: "https://vcd.invalid/api".into(), ..settings_of_nowhere() };
    assert_eq!(errors_of(nowhere)[0].kind, ErrorKind::Unavailable);
    let untrusted = server_with(|o| o.https_listen = Some(o.listen));
    let url = untrusted.https_url().unwrap();
    let e = errors_of(Settings { url, ..settings_of_nowhere() }).remove(0);
    assert!(e.kind == ErrorKind::Unavailable && e.text.contains("invalid peer certificate"), "{e}");
}

fn settings_of_nowhere() -> Settings {
    settings(&server())
}

#[test]
fn a_server_that_never_answers_does_not_block_the_start() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/api", silent.local_addr().unwrap());
    let began = Instant::now();
    let errors = errors_of(Settings { url, ..settings_of_nowhere() });
    assert_eq!(errors[0].kind, ErrorKind::Unavailable);
    assert!(began.elapsed() < OPEN_TIMEOUT, "{:?}", began.elapsed());
}

#[test]
fn limits_quotas_rights_and_names_have_their_own_error_kinds() {
    let server = server_with(|o| o.scale = 1.0);
    let client = open(&server);
    server.with_model(|m| m.orgs.values_mut().for_each(|o| o.max_running = Some(1)));
    create(&client, "ci-1").unwrap();
    let e = create(&client, "ci-2").unwrap_err();
    assert_eq!(e.kind, ErrorKind::Limit, "{e}");
    server.with_model(|m| m.orgs.values_mut().for_each(|o| o.max_running = None));
    let e = create(&client, "ci-1").unwrap_err();
    assert_eq!(e.kind, ErrorKind::Duplicate, "{e}");
    server.with_model(|m| m.vdcs.values_mut().for_each(|v| v.vm_limit = Some(1)));
    let e = create(&client, "ci-3").unwrap_err();
    assert_eq!(e.kind, ErrorKind::Quota, "{e}");
    server.with_model(|m| {
        m.vdcs.values_mut().for_each(|v| v.vm_limit = None);
        m.users.values_mut().for_each(|u| u.rights.clear());
    });
    let e = create(&client, "ci-4").unwrap_err();
    assert_eq!(e.kind, ErrorKind::Forbidden, "{e}");
}

#[test]
fn rejections_worded_as_in_newer_releases_are_understood() {
    let server = server();
    let client = open(&server);
    let begun = create(&client, "ci-1").unwrap();
    assert_eq!(ended(&client, &begun), TaskState::Success);
    let vapp = begun.vapp.unwrap();
    let wording = Wording { stop_is_409: true, busy_names_a_task: true, duplicate_is_a_vm: true };
    server.with_model(|m| m.settings.wording = wording);
    let kind = |result: Result<Reply, VcdError>| {
        let e = result.unwrap_err();
        (e.kind, e.status, e.code)
    };
    let bad = || (400, "BAD_REQUEST".to_owned());
    let stopped = client.call(&Request::DeleteStopped { vapp: vapp.clone() }, None);
    assert_eq!(kind(stopped), (ErrorKind::State, 409, "CONFLICT".into()));
    let e = create(&client, "ci-1").unwrap_err();
    assert_eq!((e.kind, (e.status, e.code)), (ErrorKind::Duplicate, bad()));
    fault(&server, serde_json::json!({"op": "undeploy", "task_hangs": 0}));
    client.call(&Request::Undeploy { vapp: vapp.clone() }, None).unwrap();
    let (is, status, code) = kind(client.call(&Request::Delete { vapp }, None));
    assert_eq!((is, (status, code)), (ErrorKind::Busy, bad()));

    // The task finds the error, not the request.
    server.with_model(|m| m.networks.values_mut().for_each(|n| n.pool.1 = n.pool.0));
    let begun = create(&client, "ci-2").unwrap();
    let TaskState::Failed(e) = ended(&client, &begun) else { panic!("there was an address") };
    assert!(e.kind == ErrorKind::Quota && e.text.contains("There are insufficient IP addresses"), "{e}");
}

#[test]
fn values_that_xml_or_vcd_cannot_contain_are_rejected_before_they_are_sent() {
    let server = server();
    let client = open(&server);
    let request = Request::Create { name: "ci-1".into(), description: "d".into(), whole: true };
    for guest in [
        Some(Guest { password: Some(Secret::new("open\u{1b}sesame")), ..guest() }),
        Some(Guest { script: Some(Secret::new("x".repeat(49_001))), ..guest() }),
        None,
    ] {
        let e = client.call(&request, guest.as_ref()).unwrap_err();
        assert_eq!((e.kind, e.status), (ErrorKind::Invalid, 0), "{e}");
        assert!(!e.to_string().contains("sesame"), "{e}");
    }
    assert_eq!(server.requests("instantiate"), 0);
}

#[test]
fn a_replaced_template_is_found_again_before_the_next_create() {
    let server = server();
    let client = open(&server);
    server.with_model(|m| {
        let id = *m.templates.iter().find(|(_, t)| &*t.name == "ubuntu-22.04").unwrap().0;
        let old = m.templates.remove(&id).unwrap();
        old.vms.iter().for_each(|vm| drop(m.template_vms.remove(vm)));
        m.add_template(old.catalog, old.vdc, "ubuntu-22.04", &[("new", "Ubuntu Linux (64-bit)", "ubuntu64Guest")]);
    });
    // Another attempt is useful: the error is not about the template that now has the name.
    let e = create(&client, "ci-1").unwrap_err();
    assert!(e.kind == ErrorKind::Unavailable && e.text.contains("looks up names again before the next attempt"), "{e}");
    create(&client, "ci-1").unwrap();
    assert_eq!(server.requests("instantiate"), 2);
    // If a template is missing right after its lookup, it does not exist.
    fault(
        &server,
        serde_json::json!({"op": "instantiate", "times": 2, "answer_before": {"status": 404, "body": GONE}}),
    );
    assert_eq!(create(&client, "ci-2").unwrap_err().kind, ErrorKind::Unavailable);
    assert_eq!(create(&client, "ci-2").unwrap_err().kind, ErrorKind::NotFound);
    server.with_model(|m| m.templates.retain(|_, t| &*t.name != "ubuntu-22.04"));
    assert_eq!(create(&client, "ci-2").unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(server.requests("instantiate"), 4);
}

/// VCD's rejection of an unknown object.
const GONE: &str = "<Error xmlns=\"http://www.vmware.com/vcloud/v1.5\" majorErrorCode=\"404\" \
                    minorErrorCode=\"RESOURCE_NOT_FOUND\" message=\"No access to entity\"/>";

#[test]
fn a_poll_reads_all_pages_and_only_the_prefix() {
    let server = server();
    let client = open(&server);
    for n in 0..300 {
        foreign(&server, &format!("ci-{n:08}"));
    }
    for other in ["CI-upper", "cix-1", "other-1"] {
        foreign(&server, other);
    }
    until("all VMs", || poll(&client, false).ok().filter(|p| p.vms.len() == 300));
    let before = server.requests("query:vm");
    let told = poll(&client, false).unwrap();
    assert!(told.vms.iter().all(|vm| vm.vapp_name.starts_with("ci-")));
    assert!(told.vms.is_sorted_by(|a, b| a.vapp_name < b.vapp_name));
    assert_eq!(server.requests("query:vm"), before + 3);
    let told = poll(&client, true).unwrap().vapps.unwrap();
    assert_eq!((told.len(), told.iter().any(|v| &*v.name == "CI-upper")), (300, false));

    // A poll with a failed page fails.
    fault(&server, serde_json::json!({"op": "query:vm", "path": "page=2", "answer_before": {"status": 502}}));
    assert_eq!(poll(&client, false).unwrap_err().kind, ErrorKind::Unavailable);
}

#[test]
fn vapps_without_vms_and_metadata_are_read_if_requested() {
    let server = server();
    let client = open(&server);
    server.with_model(|m| {
        let vdc = *m.vdcs.keys().next().unwrap();
        m.admin_foreign_vapp(vdc, "ci-empty", "");
    });
    let started = create(&client, "ci-1").unwrap();
    assert_eq!(ended(&client, &started), TaskState::Success);
    let vapp = started.vapp.unwrap();
    assert_eq!(client.call(&Request::Label { vapp: vapp.clone() }, None), Ok(Reply::Done));
    let told = until("the label", || {
        let told = poll(&client, true).unwrap().vapps.unwrap();
        told.iter().any(|v| v.labelled).then_some(told)
    });
    let mut told: Vec<_> = told.into_iter().map(|v| (v.name.to_string(), v.labelled)).collect();
    told.sort();
    assert_eq!(told, [("ci-1".into(), true), ("ci-empty".into(), false)]);
    assert_eq!(poll(&client, false).unwrap().vapps, None);

    // A user without the right to search metadata sees no labels, and everything else.
    fault(
        &server,
        serde_json::json!({"op": "query:vApp", "path": "metadata", "times": 0, "answer_before": {"status": 400,
        "body": "<Error majorErrorCode='400' minorErrorCode='BAD_REQUEST' message='Unknown property name'/>"}}),
    );
    let told = poll(&client, true).unwrap().vapps.unwrap();
    assert_eq!((told.len(), told.iter().any(|v| v.labelled)), (2, false));
}

/// VCD answers each of these requests with this status.
fn refuse(server: &Server, op: &str, status: u16) {
    let body = format!("<Error majorErrorCode='{status}' minorErrorCode='X' message='m'/>");
    let answer = serde_json::json!({"status": status, "body": body});
    fault(server, serde_json::json!({"op": op, "times": 0, "answer_before": answer}));
}

/// Else a process that starts in that moment would take each VM that the queries lag behind for one that came later.
#[test]
fn a_poll_of_vapps_fails_if_the_vdcs_document_cannot_be_read_now() {
    let server = server();
    let client = open(&server);
    refuse(&server, "vdc", 503);
    assert_eq!(poll(&client, true).unwrap_err().kind, ErrorKind::Unavailable);
    assert!(poll(&client, false).is_ok());
    // A user without the right to read it.
    server.clear_faults();
    refuse(&server, "vdc", 403);
    assert_eq!(poll(&client, true).unwrap().vapps, Some(vec![]));
    // The same for the search of a name. With 500, it may be there.
    for (status, found) in [(403, Ok(vec![])), (500, Err(ErrorKind::Unavailable))] {
        server.clear_faults();
        refuse(&server, "vdc", status);
        let name = "ci-1".into();
        assert_eq!(vapps(&client, &Request::Find { name }).map_err(|e| e.kind), found, "{status}");
    }
}

/// A suspended VM without its mark is deleted.
#[test]
fn a_lookup_fails_if_the_suspend_mark_cannot_be_read_now() {
    let server = server();
    let client = open(&server);
    let started = create(&client, "ci-1").unwrap();
    assert_eq!(ended(&client, &started), TaskState::Success);
    let vapp = started.vapp.unwrap();
    let marked = client.call(&Request::Mark { vapp: vapp.clone(), mark: Mark::Suspended }, None).unwrap();
    let Reply::Started(marked) = marked else { panic!("{marked:?}") };
    assert_eq!(ended(&client, &marked), TaskState::Success);
    server.with_model(|m| m.vms.values_mut().for_each(|vm| vm.power = vcd_sim::model::Power::Suspended));
    let mark = || vapps(&client, &Request::Look { vapp: vapp.clone(), guest: false }).map(|mut all| all.remove(0).mark);
    assert_eq!(mark(), Ok(Mark::Suspended));
    for (status, shown) in [(500, None), (400, None), (503, None), (403, Some(Mark::Running))] {
        refuse(&server, "metadata", status);
        assert_eq!(mark().ok(), shown, "{status}");
        server.clear_faults();
    }
}

#[test]
fn a_lookup_shows_the_state_of_a_guest_if_requested() {
    let server = server();
    let client = open(&server);
    let started = create(&client, "ci-1").unwrap();
    let vapp = started.vapp.clone().unwrap();
    let seen = |guest: bool| {
        let mut found = vapps(&client, &Request::Look { vapp: vapp.clone(), guest }).unwrap();
        found.remove(0).made.and_then(|made| made.guest)
    };
    assert_eq!(seen(true), None, "it is not powered on yet");
    assert_eq!(ended(&client, &started), TaskState::Success);
    server.with_model(|m| m.vms.values_mut().for_each(|vm| vm.gc = vcd_sim::model::GcStatus::Pending));
    let pending = seen(true).unwrap();
    let address = server.with_model(|m| m.vms.values().next().unwrap().address()).map(std::net::IpAddr::V4);
    assert_eq!((pending.address, pending.customization), (address, Customization::Pending));
    assert_eq!(&*pending.guest_os, "Ubuntu Linux (64-bit)");
    server.with_model(|m| m.vms.values_mut().for_each(|vm| vm.gc = vcd_sim::model::GcStatus::Complete));
    assert_eq!(seen(true).unwrap().customization, Customization::Complete);
    let asked = server.requests("section:gcstatus");
    assert_eq!((seen(false), server.requests("section:gcstatus")), (None, asked));

    // A user without this right sees everything else. After a 500 the guest may still be in its customization. Another
    // error of VCD fails the whole lookup.
    for (status, customization) in [(403, Customization::Unknown), (500, Customization::Pending)] {
        refuse(&server, "section:gcstatus", status);
        let seen = seen(true).unwrap();
        assert_eq!((seen.address, seen.customization), (address, customization), "{status}");
        server.clear_faults();
    }
    refuse(&server, "section:gcstatus", 503);
    assert!(vapps(&client, &Request::Look { vapp: vapp.clone(), guest: true }).is_err());
}

#[test]
fn many_tasks_are_one_query_and_failures_say_why() {
    let server = server_with(|o| o.scale = 20.0);
    let client = open(&server);
    let message = "VM name or computer name not valid or they do not match.";
    fault(&server, serde_json::json!({"op": "instantiate", "nth": 2, "task_fails": {"step": 0, "message": message}}));
    let started: Vec<Started> = (0..3).map(|n| create(&client, &format!("ci-{n}")).unwrap()).collect();
    let tasks: Vec<Href> = started.iter().map(|s| s.task.clone().unwrap()).collect();
    let (queries, gets) = (server.requests("query:task"), server.requests("task"));
    assert_eq!(states(&client, &tasks).unwrap().len(), 3);
    assert_eq!((server.requests("query:task"), server.requests("task")), (queries + 1, gets));
    let told = until("the end of the tasks", || {
        let told = states(&client, &tasks).unwrap();
        (!told.contains(&TaskState::Running)).then_some(told)
    });
    assert_eq!((&told[0], &told[2]), (&TaskState::Success, &TaskState::Success));
    let TaskState::Failed(e) = &told[1] else { panic!("{told:?}") };
    assert_eq!((e.kind, e.status), (ErrorKind::Invalid, 500));
    assert!(e.text.contains(message) && e.what.contains("ci-1"), "{e}");

    // A document that cannot be read does not hide the ends of the others.
    let ends = [told[0].clone(), TaskState::Running, told[2].clone()];
    for ill in [serde_json::json!({"answer_before": {"status": 500}}), serde_json::json!({"html": true})] {
        for (asked, known) in [(&tasks[..], Some(&ends)), (&tasks[1..2], None)] {
            let mut rule = ill.clone();
            rule["op"] = "task".into();
            fault(&server, rule);
            assert_eq!(states(&client, asked).ok().as_deref(), known.map(|ends| &ends[..]), "{ill}");
        }
    }

    // Neither does it if the query shows none of them. If none can be read, the request fails.
    fault(&server, serde_json::json!({"op": "query:task", "times": 2, "query": "empty"}));
    fault(&server, serde_json::json!({"op": "task", "nth": 2, "times": 4, "answer_before": {"status": 500}}));
    assert_eq!(states(&client, &tasks), Ok(vec![told[0].clone(), TaskState::Running, TaskState::Running]));
    server.clear_faults();
    fault(&server, serde_json::json!({"op": "query:task", "query": "empty"}));
    fault(&server, serde_json::json!({"op": "task", "times": 3, "answer_before": {"status": 503}}));
    assert_eq!(states(&client, &tasks).unwrap_err().status, 503);

    // A failed query is repeated, a rejected one is not.
    fault(&server, serde_json::json!({"op": "query:task", "answer_before": {"status": 500}}));
    let queries = server.requests("query:task");
    assert_eq!((states(&client, &tasks).unwrap(), states(&client, &tasks).unwrap()), (told.clone(), told.clone()));
    assert_eq!(server.requests("query:task"), queries + 2);
    let refusal = "<Error majorErrorCode='403' minorErrorCode='ACCESS_TO_RESOURCE_IS_FORBIDDEN' message='no'/>";
    fault(
        &server,
        serde_json::json!({"op": "query:task", "times": 0, "answer_before": {"status": 403, "body": refusal}}),
    );
    let (queries, gets) = (server.requests("query:task"), server.requests("task"));
    assert_eq!(states(&client, &tasks).unwrap(), told);
    assert_eq!(states(&client, &tasks).unwrap(), told);
    assert_eq!((server.requests("query:task"), server.requests("task")), (queries + 1, gets + 6));

    server.with_model(|m| m.tasks.clear());
    assert_eq!(states(&client, &tasks[..1]).unwrap(), [TaskState::Unknown]);
}

#[test]
fn secrets_are_redacted_while_another_thread_logs_in() {
    let server = server();
    let client = Arc::new(open(&server));
    server.with_model(|m| m.admin_expire_bearers());
    let hits = server.hits();
    fault(&server, serde_json::json!({"op": "login", "delay_before_ms": 30_000}));
    let logs_in = client.clone();
    std::thread::spawn(move || poll(&logs_in, false));
    until("the login", || (server.hits() > hits).then_some(()));
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let e = client.call(&Request::Tasks { tasks: vec!["t".into(); MAX_TASKS_ASKED + 1] }, None).unwrap_err();
        send.send(client.redact(VcdError { text: "repeated: sim-api-token".into(), ..e }, &guest()))
    });
    let e = receive.recv_timeout(Duration::from_secs(10)).expect("it does not wait for the login");
    assert!(e.text.contains("repeated") && !e.text.contains("sim-api-token"), "{e}");
}

#[test]
fn tasks_that_a_query_omits_are_read_one_by_one() {
    let server = server();
    let client = open(&server);
    let tasks: Vec<Href> = (0..3).map(|n| create(&client, &format!("ci-{n}")).unwrap().task.unwrap()).collect();
    fault(&server, serde_json::json!({"op": "query:task", "query": "empty"}));
    let gets = server.requests("task");
    assert_eq!(states(&client, &tasks).unwrap().len(), 3);
    assert_eq!(server.requests("task"), gets + 3);
    let many: Vec<Href> = (0..=MAX_TASKS_ASKED).map(|_| tasks[0].clone()).collect();
    assert_eq!(states(&client, &many).unwrap_err().kind, ErrorKind::Invalid);
}

#[test]
fn links_to_elsewhere_are_not_followed() {
    let server = server();
    let client = open(&server);
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let origin = format!("http://{}", elsewhere.local_addr().unwrap());
    let href = format!("{origin}/api/vApp/vapp-1");
    assert_eq!(look(&client, &href.as_str().into()).unwrap_err().kind, ErrorKind::Protocol);
    let records = |href: &str| {
        let body = format!(
            "<QueryResultRecords total='1' pageSize='128'>\
             <VMRecord containerName='ci-1' container='{href}' href='{href}'/></QueryResultRecords>"
        );
        fault(&server, serde_json::json!({"op": "query:vm", "answer_before": {"status": 200, "body": body}}));
        poll(&client, false)
    };
    let here = format!("{}/api/vApp/vapp-1", server.url());
    assert_eq!(*records(&href).unwrap().vms[0].vapp, here);
    let e = records(&format!("{origin}/elsewhere")).unwrap_err();
    assert!(e.kind == ErrorKind::Protocol && e.text.contains(&origin), "{e}");
    let body = format!("<VApp href='{href}'><Tasks><Task href='{origin}/task'/></Tasks></VApp>");
    fault(&server, serde_json::json!({"op": "instantiate", "answer_before": {"status": 201, "body": body}}));
    assert_eq!(create(&client, "ci-1").unwrap_err().kind, ErrorKind::Ambiguous);
    let body = format!("<VApp href='{href}'><Tasks><Task href='{origin}/api/task/1'/></Tasks></VApp>");
    fault(&server, serde_json::json!({"op": "instantiate", "answer_before": {"status": 201, "body": body}}));
    let started = create(&client, "ci-1").unwrap();
    assert_eq!(started.vapp.as_deref(), Some(&*here));
    assert_eq!(states(&client, &[started.task.unwrap()]).unwrap(), [TaskState::Unknown]);
    assert!(elsewhere.accept().is_err(), "the client connected");
}

#[test]
fn a_vcd_with_another_public_address_is_reached_at_url() {
    let server = server_with(|o| o.api.public_address = Some("https://vcd.example.invalid:8443".into()));
    let client = open(&server);
    let started = create(&client, "ci-1").unwrap();
    assert_eq!(ended(&client, &started), TaskState::Success);
    let vapp = started.vapp.clone().unwrap();
    assert!(vapp.starts_with(&server.url()), "{vapp}");
    let told = poll(&client, true).unwrap();
    assert_eq!((&told.vms[0].vapp, &told.vapps.unwrap()[0].href), (&vapp, &vapp));
    assert_eq!(look(&client, &vapp).unwrap()[0].href, vapp);
    let gone = delete(&client, &vapp).unwrap();
    assert_eq!(ended(&client, &gone), TaskState::Success);
    server.with_model(|m| assert!(m.vapps.is_empty()));
}

#[test]
fn a_withdrawn_version_is_replaced_at_once() {
    let server = server();
    let client = open(&server);
    let (versions, logins) = (server.requests("versions"), server.requests("login"));
    let offer = |versions: &[&str]| {
        server.with_api(|api| api.versions = versions.iter().map(|v| ((*v).to_owned(), false)).collect());
    };
    // An upgrade of VCD: no create fails, and the session continues.
    offer(&["39.2", "40.0.0-alpha-1700000000"]);
    let begun = create(&client, "ci-1").unwrap();
    assert_eq!((server.requests("instantiate"), server.accepted("instantiate")), (2, 1));
    assert_eq!((server.requests("versions"), server.requests("login")), (versions + 1, logins));
    assert_eq!(ended(&client, &begun), TaskState::Success);
    offer(&["40.0", "41.0"]);
    poll(&client, true).unwrap();
    assert_eq!((server.requests("versions"), server.requests("login")), (versions + 2, logins));

    // This answer is not from VCD: a change is not repeated.
    fault(
        &server,
        serde_json::json!({"op": "instantiate", "times": 0, "answer_before": {"status": 406, "body": "<html/>"}}),
    );
    let before = server.requests("instantiate");
    assert_eq!(create(&client, "ci-2").unwrap_err().kind, ErrorKind::Ambiguous);
    assert_eq!(server.requests("instantiate"), before + 1);
    // There is no other version: the versions are read once, then the error is reported.
    let body = "<Error majorErrorCode='406' minorErrorCode='NOT_ACCEPTABLE' message='Unsupported API version'/>";
    fault(&server, serde_json::json!({"op": "query:vm", "times": 0, "answer_before": {"status": 406, "body": body}}));
    let (polls, before) = (server.requests("query:vm"), server.requests("versions"));
    assert_eq!(poll(&client, false).unwrap_err().kind, ErrorKind::Unavailable);
    assert_eq!((server.requests("query:vm"), server.requests("versions")), (polls + 1, before + 1));
}

#[test]
fn requests_are_counted_by_operation() {
    let server = server();
    let client = open(&server);
    poll(&client, false).unwrap();
    fault(&server, serde_json::json!({"op": "query:vm", "answer_before": {"status": 503}}));
    poll(&client, false).unwrap_err();
    let count = |operation| {
        let all = client.counts();
        let count = all.iter().find(|c| c.operation == operation).unwrap();
        (count.requests, count.errors)
    };
    assert_eq!((count("versions"), count("login"), count("poll"), count("create")), ((1, 0), (1, 0), (2, 1), (0, 0)));
    assert!(count("resolve").0 <= 5, "{:?}", count("resolve"));
}

const BEARER: &str = "bearer-of-this-test-1";

/// A server that lets `open` succeed and answers all other requests with an error that contains every secret.
/// Dropping it frees its port.
struct Canned {
    url: String,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Canned {
    fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", port.local_addr().unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let told_to_stop = stop.clone();
        let thread = std::thread::spawn(move || {
            for stream in port.incoming() {
                let mut stream = stream.unwrap();
                if told_to_stop.load(Ordering::SeqCst) {
                    return;
                }
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n > 0) {
                    head.push(byte[0]);
                }
                let head = String::from_utf8_lossy(&head).to_lowercase();
                let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).and_then(|l| l.parse().ok());
                let mut body = vec![0; length.unwrap_or(0)];
                stream.read_exact(&mut body).unwrap();
                let records = |records: &str| {
                    (200, format!("<QueryResultRecords total='1' pageSize='128'>{records}</QueryResultRecords>"))
                };
                let host = head.lines().find_map(|l| l.strip_prefix("host: ")).unwrap_or_default();
                let record = |more: &str| {
                    records(&format!("<R{} href='http://{host}/api/x/1'/>", format_args!("Record {more}")))
                };
                let (status, answer) = if head.starts_with("get /api/versions") {
                    (
                        200,
                        "<SupportedVersions><VersionInfo><Version>38.1</Version></VersionInfo></SupportedVersions>"
                            .into(),
                    )
                } else if head.starts_with("post /oauth") {
                    (200, format!("{{\"access_token\":\"{BEARER}\",\"expires_in\":3600}}"))
                } else if head.contains("type=vapptemplate") {
                    record("name='ubuntu-22.04' catalogName='ci-catalog'")
                } else if head.contains("type=vm") {
                    record("guestOs='Linux'")
                } else if head.contains("type=orgvdcnetwork") {
                    record("name='ci-net'")
                } else if head.contains("type=orgvdcstorageprofile") {
                    record("name='ssd'")
                } else if head.contains("type=orgvdc") {
                    record("name='ci-vdc'")
                } else if head.starts_with("get /api/x/1") {
                    let vm = format!("<Children><Vm href='http://{host}/api/x/2'/></Children>");
                    (200, format!("<VAppTemplate>{vm}</VAppTemplate>"))
                } else if head.starts_with("get /api/x/2") {
                    (200, "<Vm/>".into())
                } else {
                    let message = format!("{BEARER} sim-api-token {PASSWORD} {SCRIPT}")
                        .replace('&', "&amp;")
                        .replace('<', "&lt;");
                    let message = message.replace('\'', "&apos;");
                    (400, format!("<Error minorErrorCode='BAD_REQUEST' message='{message}' stackTrace='{BEARER}'/>"))
                };
                let length = answer.len();
                let text =
                    format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{answer}");
                stream.write_all(text.as_bytes()).unwrap();
            }
        });
        Self { url, stop, thread: Some(thread) }
    }
}

impl Drop for Canned {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(std::net::TcpStream::connect(self.url.trim_start_matches("http://")));
        self.thread.take().unwrap().join().unwrap();
    }
}

/// A logger that keeps every line, of all crates and levels.
struct Lines(Mutex<String>);

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata) -> bool {
        true
    }

    fn log(&self, record: &log::Record) {
        let mut lines = self.0.lock().unwrap();
        lines.push_str(&format!("{} {} {}\n", record.level(), record.target(), record.args()));
    }

    fn flush(&self) {}
}

#[test]
fn no_secret_is_logged_or_reported() {
    static LINES: Lines = Lines(Mutex::new(String::new()));
    log::set_logger(&LINES).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let server = Canned::start();
    let url = server.url.clone();
    let settings = Settings { url, disk_gb: 0, ..settings_of_nowhere() };
    let shown = format!("{settings:?} {:?}", guest());
    let client = Client::open(settings).unwrap().0;
    let e = create(&client, "ci-1").unwrap_err();
    assert_eq!(e.kind, ErrorKind::Invalid, "{e}");
    let logged = LINES.0.lock().unwrap().clone();
    assert!(logged.contains("instantiateVAppTemplate: 400 in"), "{logged}");
    for secret in [BEARER, "sim-api-token", "S3cret", "AAAAC3Nza", "authorized_keys"] {
        for (place, text) in
            [("log", &logged), ("error", &format!("{e} {e:?}")), ("debug", &shown), ("client", &format!("{client:?}"))]
        {
            assert!(!text.contains(secret), "{secret} in {place}: {text}");
        }
    }
}
