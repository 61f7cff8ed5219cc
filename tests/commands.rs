//! The commands for people, run as they run them: the built binary, a config.toml, a simulated VCD.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "common/fleet.rs"]
mod fleet;
#[cfg(target_os = "linux")]
#[path = "common/proxy.rs"]
mod proxy;

use common::{PluginProcess, command, soon};
use fleeting_plugin_vcd::host::proto::fleeting::State;
use serde_json::{Value, json};
use smol::block_on;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use vcd_sim::Server;
use vcd_sim::model::{Model, Right};

const BINARY: &str = env!("CARGO_BIN_EXE_fleeting-plugin-vcd");
/// The simulator's clock runs so many times as fast as a real VCD's.
const SCALE: f64 = 50.0;

/// A config.toml, gone when dropped.
struct File(PathBuf);

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Lines of a TOML table; a key that is null is left out.
fn lines(table: &Value) -> String {
    let given = table.as_object().unwrap().iter().filter(|(_, value)| !value.is_null());
    given.map(|(key, value)| format!("{key} = {value}\n")).collect()
}

fn merged(mut table: Value, changes: Value) -> Value {
    table.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    table
}

/// One runner for the simulated VCD, with changes to plugin_config and to the runner's own part of the autoscaler.
fn runner(server: &Server, guest_port: u16, name: &str, keys: Value, own: Value) -> String {
    let own = merged(
        json!({"plugin": "fleeting-plugin-vcd", "capacity_per_instance": 1, "max_use_count": 1, "max_instances": 4}),
        own,
    );
    let connector = json!({"use_static_credentials": true, "username": "root", "password": "s3cret-Pa55word",
        "protocol_port": guest_port});
    format!(
        "[[runners]]\nname = {name:?}\nexecutor = \"instance\"\n[runners.autoscaler]\n{}\
         [runners.autoscaler.plugin_config]\n{}[runners.autoscaler.connector_config]\n{}",
        lines(&own),
        lines(&merged(fleet::plugin_config(server), keys)),
        lines(&connector)
    )
}

fn file(name: &str, runners: &[String]) -> File {
    let path = std::env::temp_dir().join(format!("vcd-commands-{name}-{}.toml", std::process::id()));
    std::fs::write(&path, format!("shutdown_timeout = 120\n{}", runners.concat())).unwrap();
    File(path)
}

/// Runs a command on a file. Its status, stdout and stderr; no secret may be in them, and no colour.
fn run(file: &File, words: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(BINARY);
    command.arg(words[0]).arg("--config").arg(&file.0).args(&words[1..]).stdin(Stdio::null());
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(stdout), text(stderr));
    for secret in ["sim-api-token", "s3cret-Pa55word", "Bearer ", "\x1b"] {
        assert!(!stdout.contains(secret) && !stderr.contains(secret), "{secret:?} in {stdout}{stderr}");
    }
    (status.code().expect("not killed"), stdout, stderr)
}

/// The lines of `check` with this verdict and topic.
fn found<'a>(stdout: &'a str, verdict: &str, topic: &str) -> Vec<&'a str> {
    let start = format!("  {verdict:4}  {topic:16} ");
    stdout.lines().filter_map(|line| line.strip_prefix(start.as_str())).collect()
}

fn world(change: impl FnOnce(&mut Model)) -> (Server, u16) {
    let (server, guest_port) = fleet::simulator(SCALE);
    server.with_model(change);
    (server, guest_port)
}

/// What `check` says of a world, with no changes to the configuration.
fn check_world(name: &str, change: impl FnOnce(&mut Model)) -> (i32, String) {
    let (server, guest_port) = world(change);
    let file = file(name, &[runner(&server, guest_port, "vcd", json!({}), json!({}))]);
    let (status, stdout, _) = run(&file, &["check"]);
    assert_eq!(server.requests("instantiate"), 0, "a check makes nothing");
    (status, stdout)
}

#[test]
fn a_good_runner_passes_the_check() {
    let (status, stdout) = check_world("good", |_| ());
    assert_eq!(status, 0, "{stdout}");
    for topic in [
        "configuration",
        "credentials",
        "URL and TLS",
        "token",
        "org",
        "VDC",
        "network",
        "catalog",
        "template",
        "storage profile",
        "rights",
        "lease",
    ] {
        assert_eq!(found(&stdout, "ok", topic).len(), 1, "{topic}: {stdout}");
    }
    assert!(found(&stdout, "ok", "network")[0].contains("1021 of 1021 addresses"), "{stdout}");
    assert!(found(&stdout, "ok", "org")[0].contains("as user \"ci\""), "{stdout}");
}

#[test]
fn a_check_tells_what_vcd_lacks() {
    type Case = (&'static str, &'static str, i32, &'static str, fn(&mut Model));
    let cases: [Case; 12] = [
        ("FAIL", "VDC", 1, "disabled", |m| m.vdcs.values_mut().for_each(|v| v.enabled = false)),
        ("FAIL", "VDC", 1, "no VDC of this name", |m| m.vdcs.values_mut().for_each(|v| v.name = "x".into())),
        ("warn", "quota", 0, "room for 3 more VMs", |m| m.vdcs.values_mut().for_each(|v| v.vm_limit = Some(3))),
        ("warn", "quota", 0, "memory for 2 more VMs", |m| {
            m.vdcs.values_mut().for_each(|v| v.memory_limit_mb = Some(10_000))
        }),
        ("FAIL", "network", 1, "no network of this name", |m| m.networks.clear()),
        ("warn", "network", 0, "2 of 2 addresses", |m| {
            m.networks.values_mut().for_each(|n| n.pool.1 = std::net::Ipv4Addr::from(u32::from(n.pool.0) + 1))
        }),
        ("warn", "storage profile", 0, "enough for 2 VMs", |m| {
            m.profiles.values_mut().for_each(|p| p.limit_mb = 2 * (20_480 + 4096))
        }),
        ("FAIL", "storage profile", 1, "enough for 0 VMs", |m| {
            m.profiles.values_mut().for_each(|p| p.limit_mb = 20_480)
        }),
        ("FAIL", "template", 1, "VMware Tools are not installed", |m| {
            m.template_vms.values_mut().for_each(|t| t.tools = 0)
        }),
        ("FAIL", "catalog", 1, "no catalog", |m| m.catalogs.values_mut().for_each(|c| c.name = "x".into())),
        ("FAIL", "rights", 1, "missing: vApp: Delete", |m| {
            m.users.values_mut().for_each(|u| u.rights.retain(|r| *r != Right::Delete))
        }),
        ("warn", "lease", 0, "suspends vApps after 2h", |m| {
            m.orgs.values_mut().for_each(|o| o.leases.deployment_s = (7200, 7200))
        }),
    ];
    for (index, (verdict, topic, expected, text, change)) in cases.into_iter().enumerate() {
        let (status, stdout) = check_world(&format!("lacks-{index}"), change);
        assert_eq!(status, expected, "{text}: {stdout}");
        assert!(found(&stdout, verdict, topic).iter().any(|line| line.contains(text)), "{text}: {stdout}");
    }
}

#[test]
fn a_check_says_what_the_user_may_not_see() {
    let (status, stdout) = check_world("unseen", |m| {
        m.users.values_mut().for_each(|u| u.rights.retain(|r| *r != Right::ViewOrg && *r != Right::Force))
    });
    assert_eq!(status, 0, "{stdout}");
    assert!(found(&stdout, "note", "lease")[0].contains("may not read"), "{stdout}");
    assert!(found(&stdout, "note", "rights")[0].contains("Force Undeploy"), "{stdout}");
}

#[test]
fn a_check_tells_what_the_configuration_lacks() {
    let (server, guest_port) = world(|_| ());
    let one = |name: &str, keys: Value, own: Value| {
        let file = file(&format!("config-{name}"), &[runner(&server, guest_port, "vcd", keys, own)]);
        let (status, stdout, stderr) = run(&file, &["check"]);
        assert_eq!(stderr, "", "{stdout}");
        (status, stdout)
    };
    let (status, stdout) = one("missing", json!({"org": null, "memory_mb": 7}), json!({}));
    let said = found(&stdout, "FAIL", "configuration");
    let all = ["missing required plugin config: org", "memory_mb: 7 is not a multiple of 4"];
    assert!(status == 1 && all.iter().all(|mistake| said.contains(mistake)), "all mistakes at once: {stdout}");

    for (name, keys, own, verdict, topic, text, expected) in [
        ("size", json!({}), json!({"max_instances": 129}), "FAIL", "runner", "above max_size", 1),
        ("most", json!({}), json!({"max_instances": null}), "warn", "runner", "max_instances is not set", 0),
        ("use", json!({}), json!({"max_use_count": 0}), "warn", "runner", "jobs run one after another", 0),
        ("storage", json!({}), json!({"state_storage.enabled": true}), "warn", "runner", "state_storage is enabled", 0),
        ("token", json!({"token": "wrong-token"}), json!({}), "FAIL", "token", "VCD answered", 1),
        ("nobody", json!({"url": "http://127.0.0.1:9/api"}), json!({}), "FAIL", "URL and TLS", "refused", 1),
        ("two", json!({"template": "two-vms"}), json!({}), "FAIL", "template", "exactly one", 1),
        ("shrink", json!({"disk_size_gb": 10}), json!({}), "FAIL", "template", "cannot shrink", 1),
        ("policy", json!({"sizing_policy": "big"}), json!({}), "FAIL", "sizing policy", "\"big\"", 1),
        ("policies", json!({"placement_policy": "rack-1"}), json!({}), "ok", "placement policy", "rack-1", 0),
        ("dhcp", json!({"ip_allocation_mode": "DHCP"}), json!({}), "ok", "network", "DHCP", 0),
    ] {
        let (status, stdout) = one(name, keys, own);
        assert_eq!(status, expected, "{name}: {stdout}");
        assert!(found(&stdout, verdict, topic).iter().any(|line| line.contains(text)), "{name}: {stdout}");
    }
}

#[test]
fn two_runners_with_one_identity_are_found() {
    let (server, guest_port) = world(|_| ());
    let of = |name: &str, keys: Value| runner(&server, guest_port, name, keys, json!({}));
    let same = file("same", &[of("one", json!({})), of("two", json!({}))]);
    let (status, stdout, _) = run(&same, &["check"]);
    assert_eq!((status, found(&stdout, "FAIL", "runner").len()), (1, 2), "{stdout}");
    let (status, stdout, stderr) = run(&same, &["list"]);
    assert_eq!((status, stdout.as_str()), (1, ""));
    assert!(stderr.contains("Give --runner: \"one\", \"two\""), "{stderr}");

    let apart = file("apart", &[of("one", json!({})), of("two", json!({"name": "runner-2"}))]);
    assert_eq!(run(&apart, &["check"]).0, 0);
    let (status, stdout, _) = run(&apart, &["check", "--runner", "two"]);
    assert!(status == 0 && stdout.contains("\"two\"") && !stdout.contains("\"one\""), "{stdout}");
    let (status, _, stderr) = run(&apart, &["check", "--runner", "three"]);
    assert!(status == 1 && stderr.contains("no runner \"three\""), "{stderr}");
}

#[test]
fn offline_nothing_is_asked_and_the_example_is_accepted() {
    let example = File(PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/config.example.toml")));
    let (status, stdout, stderr) = run(&example, &["check", "--offline"]);
    std::mem::forget(example);
    assert_eq!((status, stderr.as_str()), (0, ""), "{stdout}");
    assert!(found(&stdout, "FAIL", "").is_empty() && stdout.contains("not asked"), "{stdout}");

    let (server, guest_port) = world(|_| ());
    let file = file("offline", &[runner(&server, guest_port, "vcd", json!({}), json!({}))]);
    assert_eq!(run(&file, &["check", "--offline"]).0, 0);
    assert_eq!(server.requests("versions"), 0);
}

/// A plugin that serves the group of [`fleet::plugin_config`] and has `count` instances running.
async fn serving(server: &Server, guest_port: u16, count: u32) -> PluginProcess {
    let plugin = PluginProcess::start(command(BINARY)).await;
    let config = fleet::plugin_config(server).to_string();
    plugin.init(config.as_bytes(), fleet::connector(guest_port)).await.unwrap();
    plugin.increase(count).await.unwrap();
    let running = async {
        while plugin.update().await.unwrap().iter().filter(|(_, s)| *s == State::Running).count() < count as usize {
            smol::Timer::after(Duration::from_millis(20)).await;
        }
    };
    soon("running instances", running).await;
    plugin
}

/// vApps that belong to somebody else: another manager's, and one that is only named like ours.
fn foreign(server: &Server) {
    server.with_model(|model| {
        let vdc = *model.vdcs.keys().next().unwrap();
        let mark = "fleeting-plugin-vcd/1 manager=runner-2 group=ci-linux id=ci-00000000";
        model.admin_foreign_vapp(vdc, "ci-00000000", mark);
        model.admin_foreign_vapp(vdc, "ci-database", "do not touch");
    });
}

#[test]
fn a_list_tells_whose_vapps_are() {
    block_on(async {
        let (server, guest_port) = world(|_| ());
        let file = file("list", &[runner(&server, guest_port, "vcd", json!({}), json!({}))]);
        let (status, stdout, _) = run(&file, &["list"]);
        assert_eq!((status, stdout.as_str()), (0, "no vApp in VCD is named ci-*\n"));
        assert_eq!(run(&file, &["list", "--json"]).1, "[]\n");

        let plugin = serving(&server, guest_port, 2).await;
        foreign(&server);
        let (status, stdout, stderr) = run(&file, &["list"]);
        assert_eq!((status, stderr.as_str()), (0, ""));
        let rows: Vec<Vec<&str>> = stdout.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!((rows.len(), rows[0][0]), (5, "NAME"), "{stdout}");
        assert_eq!(rows.iter().filter(|row| row.last() == Some(&"ours") && row[1] == "on").count(), 2, "{stdout}");

        let (_, stdout, _) = run(&file, &["list", "--json"]);
        let json: Value = serde_json::from_str(&stdout).unwrap();
        for item in json.as_array().unwrap() {
            let name = item["name"].as_str().unwrap();
            let expected = !matches!(name, "ci-00000000" | "ci-database");
            assert_eq!(item["ours"], expected, "{item}");
            assert_eq!(item["address"].is_string(), expected, "{item}");
        }
        plugin.shutdown().await.unwrap();
        plugin.quit().await.unwrap();
    });
}

#[test]
fn clean_deletes_what_is_ours_and_only_when_nobody_serves() {
    block_on(async {
        let (server, guest_port) = world(|_| ());
        let file = file("clean", &[runner(&server, guest_port, "vcd", json!({}), json!({}))]);
        let (status, stdout, _) = run(&file, &["clean", "--yes"]);
        assert_eq!((status, stdout.as_str()), (0, "group \"ci-linux\" of \"runner-1\" has nothing in VCD\n"));

        let mut plugin = serving(&server, guest_port, 2).await;
        foreign(&server);
        let (status, _, stderr) = run(&file, &["clean", "--yes"]);
        assert_eq!(status, 1);
        assert!(stderr.contains("a plugin of this group and name runs on this machine"), "{stderr}");
        assert_eq!(fleet::vapps(&server).len(), 4);

        plugin.child.kill().unwrap();
        soon("the plugin's end", plugin.child.status()).await.unwrap();
        drop(plugin);
        let (status, stdout, stderr) = run(&file, &["clean"]);
        assert_eq!(status, 1, "{stdout}");
        assert!(stderr.contains("give --yes"), "{stderr}");
        assert!(!stdout.contains("ci-database"), "only what would be deleted is shown: {stdout}");
        assert_eq!((fleet::vapps(&server).len(), server.requests("delete")), (4, 0));

        let (status, stdout, stderr) = run(&file, &["clean", "--yes"]);
        assert_eq!(status, 0, "{stdout}{stderr}");
        assert!(stdout.ends_with("deleted: 2 of 2\n"), "{stdout}");
        let mut left = fleet::vapps(&server);
        left.sort();
        assert_eq!(left, ["ci-00000000", "ci-database"], "another's is never touched");
    });
}

#[test]
fn clean_keeps_away_from_what_looks_alive() {
    let (server, guest_port) = world(|_| ());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let keys = json!({"debug_server_addr": address});
    let file = file("alive", &[runner(&server, guest_port, "vcd", keys, json!({}))]);
    let (status, _, stderr) = run(&file, &["clean", "--yes"]);
    assert!(status == 1 && stderr.contains("something listens at debug_server_addr"), "{stderr}");
    drop(listener);
    assert_eq!(run(&file, &["clean", "--yes"]).0, 0);
}

#[cfg(target_os = "linux")]
#[test]
fn clean_does_not_wait_long_for_an_address_that_is_silent() {
    block_on(async {
        let (server, guest_port) = world(|_| ());
        let silent = fleet::free_port();
        let keys = json!({"debug_server_addr": format!("127.0.0.1:{silent}")});
        let file = file("silent", &[runner(&server, guest_port, "vcd", keys, json!({}))]);
        let _full = proxy::full_listener(silent).unwrap();
        // Without a limit of its own the kernel's would be two minutes.
        let cleaned = smol::unblock(move || run(&file, &["clean", "--yes"]));
        assert_eq!(soon("the end of clean", cleaned).await.0, 0);
    });
}

#[test]
fn a_file_that_cannot_be_read_is_said_clearly() {
    for (words, text) in [
        (vec!["check", "--config", "/nowhere/config.toml"], "read /nowhere/config.toml: No such file"),
        (vec!["list", "--config", "/dev/null"], "none of its 0 [[runners]]"),
        (vec!["clean", "--config", "/"], "read /: "),
    ] {
        let output = Command::new(BINARY).args(&words).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && stderr.contains(text), "{words:?}: {stderr}");
    }
}

#[test]
fn help_shows_examples_and_exit_codes() {
    for command in ["check", "list", "clean", "bootstrap"] {
        let output = Command::new(BINARY).args([command, "--help"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{command}");
        assert!(text.contains("Examples:") && text.contains("Error codes:"), "{text}");
    }
}
