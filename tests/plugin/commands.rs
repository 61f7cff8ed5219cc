//! The commands, as people run them: the built binary, a config.toml, a simulated VCD.

use crate::common::{self, PluginProcess, command, soon};
#[cfg(target_os = "linux")]
use crate::proxy;
use crate::replay;
use crate::{fleet, live};
use fleeting_plugin_vcd::host::proto::fleeting::State;
use fleeting_plugin_vcd::version::VERSION;
use serde_json::{Value, json};
use smol::block_on;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use vcd_sim::Server;
use vcd_sim::model::{Disk, HardwareShown, Model, Nic, Reach, Right, Scripts, TemplateState};

const BINARY: &str = env!("CARGO_BIN_EXE_fleeting-plugin-vcd");
/// Speed of the simulator's clock, as a multiple of real time.
const SCALE: f64 = 50.0;

/// A config.toml that is deleted when dropped.
struct File(PathBuf);

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Lines of a TOML table. Keys that are null are skipped.
fn lines(table: &Value) -> String {
    let given = table.as_object().unwrap().iter().filter(|(_, value)| !value.is_null());
    given.map(|(key, value)| format!("{key} = {value}\n")).collect()
}

fn merged(mut table: Value, changes: Value) -> Value {
    table.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    table
}

/// One runner for the simulated VCD, with changes to plugin_config and to the autoscaler section.
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

/// Runs a command on a file. Returns its status, stdout and stderr, which must contain no secret and no colour.
fn run(file: &File, words: &[&str]) -> (i32, String, String) {
    said(Command::new(BINARY), file, words)
}

/// The lines of `check` with this verdict and topic, without both.
fn found<'a>(stdout: &'a str, verdict: &str, topic: &str) -> Vec<&'a str> {
    let start = format!("  {verdict:4}  {topic:16} ");
    stdout.lines().filter_map(|line| line.strip_prefix(start.as_str())).collect()
}

fn world(change: impl FnOnce(&mut Model)) -> (Server, u16) {
    let (server, guest_port) = fleet::simulator(SCALE);
    server.with_model(change);
    (server, guest_port)
}

/// The output of `check` for a changed world, with an unchanged configuration.
fn check_world(name: &str, change: impl FnOnce(&mut Model)) -> (i32, String) {
    let (server, guest_port) = world(change);
    let file = file(name, &[runner(&server, guest_port, "vcd", json!({}), json!({}))]);
    let (status, stdout, _) = run(&file, &["check"]);
    assert_eq!(server.requests("instantiate"), 0, "a check creates nothing");
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
fn a_check_reports_what_vcd_lacks() {
    type Case = (&'static str, &'static str, i32, &'static str, fn(&mut Model));
    let cases: [Case; 12] = [
        ("FAIL", "VDC", 1, "disabled", |m| m.vdcs.values_mut().for_each(|v| v.enabled = false)),
        ("FAIL", "VDC", 1, "no VDC with this name", |m| m.vdcs.values_mut().for_each(|v| v.name = "x".into())),
        ("warn", "quota", 0, "room for 3 more VMs", |m| m.vdcs.values_mut().for_each(|v| v.vm_limit = Some(3))),
        ("warn", "quota", 0, "memory for 2 more VMs", |m| {
            m.vdcs.values_mut().for_each(|v| v.memory_limit_mb = Some(10_000))
        }),
        ("FAIL", "network", 1, "no network with this name", |m| m.networks.clear()),
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
fn a_check_counts_standby_vms() {
    type Case = (&'static str, &'static str, fn(&mut Model));
    let cases: [Case; 5] = [
        ("quota", "room for 5 more VMs, but GitLab Runner may want 4, and 2 are in standby", |m| {
            m.vdcs.values_mut().for_each(|v| v.vm_limit = Some(5))
        }),
        (
            "network",
            "5 of 5 addresses of its static pool are free, but GitLab Runner may want 4, and 2 are in standby",
            |m| m.networks.values_mut().for_each(|n| n.pool.1 = std::net::Ipv4Addr::from(u32::from(n.pool.0) + 4)),
        ),
        ("storage profile", "enough for 5 VMs, but GitLab Runner may want 4, and 2 are in standby", |m| {
            m.profiles.values_mut().for_each(|p| p.limit_mb = 5 * (20_480 + 4096))
        }),
        ("standby", "a passthrough device: VMs cannot be suspended, and none is kept in standby", |m| {
            m.template_vms.values_mut().for_each(|vm| vm.passthrough = true)
        }),
        ("standby", "a share of a graphics card: VMs cannot be suspended", |m| {
            m.policies.values_mut().for_each(|policy| policy.vgpu = true)
        }),
    ];
    for (index, (topic, text, change)) in cases.into_iter().enumerate() {
        let (server, guest_port) = world(change);
        for (count, told) in [(2, 1), (0, 0)] {
            let keys = json!({"standby_count": count, "placement_policy": "rack-1"});
            let keys = if topic == "standby" { keys } else { json!({"standby_count": count}) };
            let file =
                file(&format!("standby-{index}-{count}"), &[runner(&server, guest_port, "vcd", keys, json!({}))]);
            let (status, stdout, _) = run(&file, &["check"]);
            let found = found(&stdout, "warn", topic);
            assert_eq!((status, found.len()), (0, told), "{stdout}");
            assert!(found.iter().all(|line| line.contains(text)), "{text}: {stdout}");
        }
    }
}

#[test]
fn standby_vms_are_listed_and_cleaned_and_a_check_creates_none() {
    block_on(async {
        let (server, guest_port) = world(|_| ());
        let keys = json!({"standby_count": 2});
        let file = file("standby", &[runner(&server, guest_port, "vcd", keys.clone(), json!({}))]);
        let mut plugin = live::start(&server, guest_port, keys).await;
        plugin.increase(1).await.unwrap();
        let running = live::reach(&plugin, 1, State::Running).await;
        plugin.suspend(&[&running[0]]).await.unwrap();
        live::reach(&plugin, 1, State::Suspended).await;
        let listed = |words: &[&str]| run(&file, words).1;
        let states = || {
            let json: Value = serde_json::from_str(&listed(&["list", "--json"])).unwrap();
            let states = json.as_array().unwrap().iter().map(|item| item["state"].as_str().unwrap().to_owned());
            let mut states: Vec<String> = states.collect();
            states.sort();
            states
        };
        common::until("two in standby", || states() == ["standby", "standby", "suspended"]).await;
        foreign(&server);
        let table = listed(&["list"]);
        let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        let with = |state: &str| {
            rows.iter().filter(|row| row[1] == state && row[row.len() - 2..] == ["this", "group"]).count()
        };
        assert_eq!((with("standby"), with("suspended"), rows.len()), (2, 1, 6), "{table}");
        plugin.child.kill().unwrap();
        soon("the plugin's end", plugin.child.status()).await.unwrap();
        drop(plugin);

        // Neither command uses one of them.
        let creates = server.requests("instantiate");
        let (status, stdout, stderr) = run(&file, &["clean", "--yes"]);
        assert_eq!(status, 0, "{stdout}{stderr}");
        assert!(stdout.contains("  standby  ") && stdout.ends_with("deleted: 3 of 3\n"), "{stdout}");
        assert_eq!((fleet::vapps(&server).len(), server.requests("instantiate")), (2, creates));
        let folder = Folder::new("standby");
        common::install(b"#!/bin/sh\nexit 0\n", &folder.0.join("ssh"));
        let mut check = Command::new(BINARY);
        check.env("PATH", format!("{}:{}", folder.0.display(), std::env::var("PATH").unwrap()));
        let (status, stdout, stderr) = said(check, &file, &["check", "--create"]);
        assert_eq!((status, found(&stdout, "ok", "delete").len()), (0, 1), "{stdout}{stderr}");
        assert_eq!((fleet::vapps(&server).len(), server.requests("instantiate")), (2, creates + 1));
    });
}

#[test]
fn a_check_names_what_the_user_cannot_see() {
    let (status, stdout) = check_world("unseen", |m| {
        m.users.values_mut().for_each(|u| u.rights.retain(|r| *r != Right::ViewOrg && *r != Right::Force))
    });
    assert_eq!(status, 0, "{stdout}");
    assert!(found(&stdout, "note", "lease")[0].contains("may not read"), "{stdout}");
    assert!(found(&stdout, "note", "rights")[0].contains("Force Undeploy"), "{stdout}");
}

#[test]
fn a_check_reports_what_the_configuration_lacks() {
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
    assert!(
        status == 1 && all.iter().all(|mistake| said.contains(mistake)),
        "all mistakes are reported together: {stdout}"
    );

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

/// The advice below a finding.
fn advice<'a>(stdout: &'a str, finding: &str) -> &'a str {
    let mut lines = stdout.lines().skip_while(|line| !line.contains(finding));
    lines.nth(1).unwrap_or_default().trim()
}

#[test]
fn a_check_gives_values_to_copy_for_ambiguous_names() {
    let (server, guest_port) = world(|m| {
        let org = *m.orgs.keys().next().unwrap();
        let images = m.add_org("images-org");
        let (other, theirs) = (m.add_vdc(org, "other-vdc"), m.add_vdc(images, "images-vdc"));
        let pool = ([127, 0, 40, 2].into(), [127, 0, 40, 9].into());
        for (name, reach) in [("twice", Reach::Shared), ("twice", Reach::Listed), ("elsewhere", Reach::Vdc)] {
            let id = m.add_network(other, name, pool, pool);
            m.networks.get_mut(&id).unwrap().reach = reach;
        }
        let catalog = m.add_catalog(images, "ci-catalog");
        m.catalogs.get_mut(&catalog).unwrap().shared = true;
        m.add_template(catalog, theirs, "ubuntu-22.04", &[("ubuntu", "Ubuntu Linux (64-bit)", "ubuntu64Guest")]);
    });
    let check = |name: &str, keys: Value| {
        let file = file(&format!("several-{name}"), &[runner(&server, guest_port, "vcd", keys, json!({}))]);
        run(&file, &["check"]).1
    };
    let stdout = check("names", json!({"network": "twice"}));
    let network = found(&stdout, "FAIL", "network")[0].to_owned();
    assert!(network.contains("2 with this name in VDC \"ci-vdc\""), "{stdout}");
    assert_eq!(advice(&stdout, "find network"), "-> copy one of them, without the quotation marks, into the key");
    let catalog = found(&stdout, "FAIL", "catalog")[0];
    assert!(catalog.contains("\"ci-org/ci-catalog\", \"images-org/ci-catalog\"; use one of these"), "{stdout}");

    let id = network.split('"').find(|part| part.starts_with("urn:vcloud:network:")).unwrap().to_owned();
    let stdout = check("values", json!({"network": id, "catalog": "ci-org/ci-catalog"}));
    assert!(found(&stdout, "ok", "network")[0].starts_with("\"twice\": "), "it is shown with its name: {stdout}");
    assert!(found(&stdout, "FAIL", "").is_empty() && found(&stdout, "ok", "catalog").len() == 1, "{stdout}");

    let stdout = check("elsewhere", json!({"network": "elsewhere"}));
    assert!(
        found(&stdout, "FAIL", "network")[0].contains("but in VDC \"other-vdc\", which does not share it"),
        "{stdout}"
    );
    let stdout = check("kind", json!({"network": "urn:vcloud:vdc:1", "template": "https://h/x"}));
    let mistakes = found(&stdout, "FAIL", "configuration");
    for key in ["network: expected the name of a network", "template: expected the name of a template"] {
        assert!(mistakes.iter().any(|line| line.starts_with(key)), "all mistakes are reported together: {stdout}");
    }
}

#[test]
fn a_check_names_a_templates_disks_and_networks() {
    let (status, stdout) = check_world("disks", |m| {
        for vm in m.template_vms.values_mut() {
            vm.disks = [(2016, 12_288), (2000, 20_480), (2001, 102_400)].map(|(id, mb)| Disk { id, mb }).to_vec();
            vm.nics[0] = Nic { network: Some("VM Network".into()), ..Nic::unconnected(0) };
        }
        m.profiles.values_mut().for_each(|p| p.limit_mb = 3 * (20_480 + 102_400 + 12_288 + 4096));
    });
    assert_eq!(status, 0, "{stdout}");
    let template = found(&stdout, "ok", "template")[0];
    let disks = "3 disks by controller and unit: the boot disk 0:0 of 20 GB; 1:0 of 12 GB, 0:1 of 100 GB";
    assert!(template.ends_with(disks), "{stdout}");
    assert!(found(&stdout, "note", "template").iter().any(|line| line.contains("\"VM Network\"")), "{stdout}");
    assert!(
        found(&stdout, "warn", "storage profile")[0].contains("enough for 3 VMs"),
        "all disks are counted: {stdout}"
    );

    let (server, guest_port) = world(|m| m.template_vms.values_mut().for_each(|vm| vm.shows = HardwareShown::Nothing));
    let file = file("hidden", &[runner(&server, guest_port, "vcd", json!({"disk_size_gb": 30}), json!({}))]);
    let (status, stdout, _) = run(&file, &["check"]);
    assert_eq!(status, 0, "{stdout}");
    assert!(found(&stdout, "ok", "template")[0].contains("a disk that VCD does not show"), "{stdout}");
    assert!(found(&stdout, "note", "template").iter().any(|line| line.contains("in three steps")), "{stdout}");
}

#[test]
fn a_check_reports_a_templates_state() {
    for (n, (text, change)) in [
        (
            "in state UNRESOLVED, and a task works on it",
            (|t| t.state = TemplateState::Copying) as fn(&mut vcd_sim::model::Template),
        ),
        ("the template has expired", |t| t.expired = true),
    ]
    .into_iter()
    .enumerate()
    {
        let (status, stdout) = check_world(&format!("state-{n}"), |m| m.templates.values_mut().for_each(change));
        assert_eq!(status, 1, "{stdout}");
        assert!(found(&stdout, "FAIL", "template")[0].contains(text), "{text}: {stdout}");
        assert!(advice(&stdout, text).contains("capture it again"), "{stdout}");
    }
}

#[test]
fn a_check_with_create_names_the_scripts_that_tools_refuse() {
    let (server, guest_port) = world(|m| m.template_vms.values_mut().for_each(|vm| vm.scripts = Scripts::Fail));
    let keys = json!({"create_timeout": "30s", "reconcile_interval": "1s"});
    let file = file("scripts", &[runner(&server, guest_port, "vcd", keys, json!({}))]);
    let (status, stdout, _) = run(&file, &["check", "--create"]);
    assert_eq!(status, 1, "{stdout}");
    assert!(found(&stdout, "FAIL", "create")[0].contains("GC_FAILED"), "{stdout}");
    let advice = advice(&stdout, "GC_FAILED");
    assert!(advice.contains("vmware-toolbox-cmd config set deployPkg enable-custom-scripts true"), "{stdout}");
    assert!(fleet::vapps(&server).is_empty());
}

/// An ssh client that always reports a refused login. The time for retries ends immediately.
#[cfg(target_os = "linux")]
#[test]
fn a_check_whose_login_is_refused_names_the_scripts_first() {
    let (server, guest_port) = world(|m| m.template_vms.values_mut().for_each(|vm| vm.scripts = Scripts::Skip));
    let folder = Folder::new("ssh");
    let (library, shift, ssh) = (folder.0.join("clock.so"), folder.0.join("shift"), folder.0.join("ssh"));
    let refusing = format!(
        "#!/bin/sh\necho 119 > {}\necho 'root@guest: Permission denied (publickey,password).' >&2\nexit 255\n",
        shift.display()
    );
    common::install(refusing.as_bytes(), &ssh);
    std::fs::write(&shift, "0").unwrap();
    common::build_clock(&library);
    let file = file("refused", &[runner(&server, guest_port, "vcd", json!({"reconcile_interval": "1s"}), json!({}))]);
    let mut check = Command::new(BINARY);
    check.env("PATH", format!("{}:{}", folder.0.display(), std::env::var("PATH").unwrap()));
    check.env("LD_PRELOAD", &library).env("CLOCK_SHIFT", &shift).env("CLOCK_ALL", "1");
    let (status, stdout, stderr) = said(check, &file, &["check", "--create"]);
    assert_eq!(status, 1, "{stdout}");
    // Immediately, not after all attempts.
    let early = "no login as root@127.0.";
    let told = stderr.lines().find(|line| line.contains(early)).unwrap_or_else(|| panic!("{stderr}"));
    assert!(
        told.contains(" yet: root@guest: Permission denied (publickey,password).; retrying for at most 120 s"),
        "{told}"
    );
    let said = found(&stdout, "FAIL", "SSH");
    assert!(said.len() == 1 && said[0].contains("Permission denied (publickey,password)."), "{stdout}");
    let first = "-> in a Linux template: vmware-toolbox-cmd config set deployPkg enable-custom-scripts true";
    assert!(advice(&stdout, "no login as root@").starts_with(first), "{stdout}");
    assert_eq!(found(&stdout, "ok", "delete").len(), 1, "{stdout}");
    assert!(fleet::vapps(&server).is_empty());
}

/// OpenSSH in the guests accepts the key of a guest's script, for the user that runs the simulator.
#[test]
fn a_check_logs_in_to_openssh_with_a_static_key_and_reports_a_refusal_immediately() {
    let guest_port = fleet::free_port();
    let options = vcd_sim::Options { scale: SCALE, guest_port, guests: vcd_sim::GuestKind::Auto, ..Default::default() };
    let server = Server::start(options).unwrap();
    let Some(user) = server.guest_user() else { return println!("skipped: guests are {}", server.guests()) };
    let folder = Folder::new("openssh");
    let key = folder.0.join("key");
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status().unwrap();
    assert!(made.success());
    let runner = runner(&server, guest_port, "vcd", json!({}), json!({}));
    let password = "password = \"s3cret-Pa55word\"";
    assert!(runner.contains(password));
    let runner = runner.replace(password, &format!("key_path = {key:?}")).replace("\"root\"", &format!("{user:?}"));
    let file = file("openssh", &[runner]);
    let (status, stdout, stderr) = run(&file, &["check", "--create"]);
    assert_eq!(status, 0, "{stdout}{stderr}");
    assert!(found(&stdout, "ok", "SSH")[0].starts_with(&format!("logged in as {user}@127.0.10.")), "{stdout}");
    assert_eq!((found(&stdout, "ok", "delete").len(), fleet::vapps(&server).len()), (1, 0), "{stdout}");

    // A guest that ran no script rejects every login, and this is reported immediately.
    server.with_model(|m| m.template_vms.values_mut().for_each(|vm| vm.scripts = Scripts::Skip));
    let began = std::time::Instant::now();
    let mut check = Command::new(BINARY);
    check.args(["check", "--create", "--config"]).arg(&file.0).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut check = check.spawn().unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(check.stderr.take().unwrap()));
    let refused = |line: &Result<String, _>| {
        line.as_ref().is_ok_and(|line| {
            line.contains("Permission denied (publickey)") && line.contains("retrying for at most 120 s")
        })
    };
    assert!({ lines }.any(|line| refused(&line)));
    println!("refused after {:?}", began.elapsed());
    for _ in 0..2 {
        rustix::process::kill_process(rustix::process::Pid::from_child(&check), rustix::process::Signal::INT).unwrap();
        std::thread::sleep(Duration::from_millis(500));
    }
    check.wait().unwrap();
}

/// VCD's answer to these requests.
fn answers(server: &Server, operation: &str, status: u16, code: &str, message: &str) {
    let body = format!(
        "<Error xmlns=\"http://www.vmware.com/vcloud/v1.5\" majorErrorCode=\"{status}\" minorErrorCode=\"{code}\" \
         message=\"{message}\"/>"
    );
    let rule = json!({"op": operation, "times": 0, "answer_before": {"status": status, "body": body}});
    assert!(server.add_fault(vcd_sim::faults::Rule::from_json(&rule).unwrap()));
}

#[test]
fn a_check_with_create_ends_at_the_first_permanent_refusal() {
    for (status, code, kind) in [
        (403, "ACCESS_TO_RESOURCE_IS_FORBIDDEN", "more rights"),
        (400, "BAD_REQUEST", "VCD names the value that it rejects"),
    ] {
        let (server, guest_port) = world(|_| ());
        answers(&server, "instantiate", status, code, "VCD's reason");
        let file = file(&format!("stands-{status}"), &[runner(&server, guest_port, "vcd", json!({}), json!({}))]);
        let (ended, stdout, stderr) = run(&file, &["check", "--create"]);
        assert_eq!((ended, server.requests("instantiate")), (1, 1), "{stdout}{stderr}");
        let words = format!("VCD answered {status} {code}: VCD's reason");
        assert_told(&stdout, "create", &words, kind);
    }
}

#[test]
fn an_interrupted_check_names_what_it_waited_for() {
    use std::io::{BufRead as _, BufReader, Read as _};
    let (server, guest_port) = world(|_| ());
    let reason = "The maximum number of simultaneous operations has been reached";
    answers(&server, "instantiate", 400, "OPERATION_LIMITS_EXCEEDED", reason);
    let file = file("interrupted", &[runner(&server, guest_port, "vcd", json!({}), json!({}))]);
    let mut check = Command::new(BINARY);
    check.args(["check", "--create", "--config"]).arg(&file.0).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut check = check.spawn().unwrap();
    let mut lines = BufReader::new(check.stderr.take().unwrap()).lines().map(Result::unwrap);
    // The state that the check waits for is shown repeatedly.
    let shown = |line: &String| line.contains(" PendingCreate, waits for VCD's operation limit (");
    assert!(lines.by_ref().filter(shown).nth(1).is_some());
    let id = rustix::process::Pid::from_child(&check);
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    for _ in lines {}
    let mut stdout = String::new();
    check.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    assert_eq!(check.wait().unwrap().code(), Some(1));
    let said = found(&stdout, "FAIL", "create")[0];
    assert!(
        said.starts_with("interrupted: ci-check-") && said.contains(" waits for VCD's operation limit; last error: "),
        "{said}"
    );
    assert!(said.contains(reason), "{said}");
}

#[test]
fn two_runners_with_one_identity_are_reported() {
    let (server, guest_port) = world(|_| ());
    let of = |name: &str, keys: Value| runner(&server, guest_port, name, keys, json!({}));
    let same = file("same", &[of("one", json!({})), of("two", json!({}))]);
    let (status, stdout, _) = run(&same, &["check"]);
    assert_eq!((status, found(&stdout, "FAIL", "runner").len()), (1, 2), "{stdout}");
    let (status, stdout, stderr) = run(&same, &["list"]);
    assert_eq!((status, stdout.as_str()), (1, ""));
    assert!(stderr.contains("choose one with --runner: \"one\", \"two\""), "{stderr}");

    let apart = file("apart", &[of("one", json!({})), of("two", json!({"name": "runner-2"}))]);
    assert_eq!(run(&apart, &["check"]).0, 0);
    let (status, stdout, _) = run(&apart, &["check", "--runner", "two"]);
    assert!(status == 0 && stdout.contains("\"two\"") && !stdout.contains("\"one\""), "{stdout}");
    let (status, _, stderr) = run(&apart, &["check", "--runner", "three"]);
    assert!(status == 1 && stderr.contains("no runner \"three\""), "{stderr}");
}

#[test]
fn offline_nothing_is_sent_and_the_example_is_accepted() {
    let example = File(PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/config.example.toml")));
    let (status, stdout, stderr) = run(&example, &["check", "--offline"]);
    std::mem::forget(example);
    assert_eq!((status, stderr.as_str()), (0, ""), "{stdout}");
    assert!(found(&stdout, "FAIL", "").is_empty() && stdout.contains("not checked"), "{stdout}");

    let (server, guest_port) = world(|_| ());
    let file = file("offline", &[runner(&server, guest_port, "vcd", json!({}), json!({}))]);
    assert_eq!(run(&file, &["check", "--offline"]).0, 0);
    assert_eq!(server.requests("versions"), 0);
}

/// A plugin that serves the group of [`fleet::plugin_config`], with `count` running instances.
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

/// Foreign vApps: one of another manager, and one whose name only matches the prefix.
fn foreign(server: &Server) {
    server.with_model(|model| {
        let vdc = *model.vdcs.keys().next().unwrap();
        let mark = "fleeting-plugin-vcd/1 manager=runner-2 group=ci-linux id=ci-00000000";
        model.admin_foreign_vapp(vdc, "ci-00000000", mark);
        model.admin_foreign_vapp(vdc, "ci-database", "do not touch");
    });
}

#[test]
fn a_list_shows_the_owners_of_vapps() {
    block_on(async {
        let (server, guest_port) = world(|_| ());
        let file = file("list", &[runner(&server, guest_port, "vcd", json!({}), json!({}))]);
        let (status, stdout, _) = run(&file, &["list"]);
        assert_eq!((status, stdout.as_str()), (0, "VCD has no vApp named ci-*\n"));
        assert_eq!(run(&file, &["list", "--json"]).1, "[]\n");

        let plugin = serving(&server, guest_port, 2).await;
        foreign(&server);
        let (status, stdout, stderr) = run(&file, &["list"]);
        assert_eq!((status, stderr.as_str()), (0, ""));
        let rows: Vec<Vec<&str>> = stdout.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!((rows.len(), rows[0][0]), (5, "NAME"), "{stdout}");
        assert_eq!(
            rows.iter().filter(|row| row[row.len() - 2..] == ["this", "group"] && row[1] == "on").count(),
            2,
            "{stdout}"
        );

        let (_, stdout, _) = run(&file, &["list", "--json"]);
        let json: Value = serde_json::from_str(&stdout).unwrap();
        for item in json.as_array().unwrap() {
            let name = item["name"].as_str().unwrap();
            let expected = !matches!(name, "ci-00000000" | "ci-database");
            assert_eq!(item["own"], expected, "{item}");
            assert_eq!(item["address"].is_string(), expected, "{item}");
        }
        plugin.shutdown().await.unwrap();
        plugin.quit().await.unwrap();
    });
}

#[test]
fn clean_deletes_only_the_groups_vapps_and_only_if_no_plugin_serves() {
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
        assert!(stderr.contains("use --yes"), "{stderr}");
        assert!(!stdout.contains("ci-database"), "only vApps that clean deletes are shown: {stdout}");
        assert_eq!((fleet::vapps(&server).len(), server.requests("delete")), (4, 0));

        let (status, stdout, stderr) = run(&file, &["clean", "--yes"]);
        assert_eq!(status, 0, "{stdout}{stderr}");
        assert!(stdout.ends_with("deleted: 2 of 2\n"), "{stdout}");
        let mut left = fleet::vapps(&server);
        left.sort();
        assert_eq!(left, ["ci-00000000", "ci-database"], "foreign vApps are never touched");
    });
}

/// A vApp of another manager with the same group, whose description a person has edited, and into which a person has put
/// a VM.
#[test]
fn clean_deletes_no_vapp_with_the_metadata_entry_and_a_vm_of_another_manager() {
    let (server, guest_port) = world(|model| {
        let (vdc, network) = (*model.vdcs.keys().next().unwrap(), *model.networks.keys().next().unwrap());
        let template = *model.templates.keys().next().unwrap();
        let mark = "fleeting-plugin-vcd/1 manager=runner-2 group=ci-linux id=ci-00000000";
        let id = model.admin_foreign_vm(vdc, "ci-00000000", mark, template, network).unwrap();
        model.admin_describe_vapp(id, "kept for an inspection");
        model.admin_add_vm(id, "a-tool", "somebody's").unwrap();
        let entry = ("MetadataStringValue".into(), "ci-linux".into());
        model.vapps.get_mut(&id).unwrap().metadata.insert("vcd-instance-group".into(), entry);
    });
    let file = file("entry", &[runner(&server, guest_port, "vcd", json!({}), json!({}))]);
    let (status, stdout, _) = run(&file, &["clean", "--yes"]);
    assert_eq!((status, stdout.as_str()), (0, "group \"ci-linux\" of \"runner-1\" has nothing in VCD\n"));
    assert_eq!(fleet::vapps(&server), ["ci-00000000"]);
}

#[test]
fn clean_does_not_try_to_delete_a_vapp_that_only_queries_still_show() {
    let (server, guest_port) = world(|model| {
        let vdc = *model.vdcs.keys().next().unwrap();
        let id = model.admin_foreign_vapp(vdc, "ci-00000000", "");
        let entry = ("MetadataStringValue".into(), "ci-linux".into());
        model.vapps.get_mut(&id).unwrap().metadata.insert("vcd-instance-group".into(), entry);
    });
    let file = file("ghost", &[runner(&server, guest_port, "vcd", json!({}), json!({}))]);
    assert!(run(&file, &["list"]).1.contains("this group, by metadata"));
    answers(&server, "vapp", 403, "ACCESS_TO_RESOURCE_IS_FORBIDDEN", "No access to entity");
    let (status, stdout, stderr) = run(&file, &["clean", "--yes"]);
    assert_eq!((status, stdout.as_str()), (0, "group \"ci-linux\" of \"runner-1\" has nothing in VCD\n"), "{stderr}");
}

#[test]
fn clean_stops_if_something_listens_at_debug_server_addr() {
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
fn clean_waits_for_a_silent_address_for_a_limited_time() {
    block_on(async {
        let (server, guest_port) = world(|_| ());
        let silent = fleet::free_port();
        let keys = json!({"debug_server_addr": format!("127.0.0.1:{silent}")});
        let file = file("silent", &[runner(&server, guest_port, "vcd", keys, json!({}))]);
        let _full = proxy::full_listener(silent).unwrap();
        // The kernel's own limit would be two minutes.
        let cleaned = smol::unblock(move || run(&file, &["clean", "--yes"]));
        assert_eq!(soon("the end of clean", cleaned).await.0, 0);
    });
}

#[test]
fn an_unreadable_file_is_reported_clearly() {
    for (words, text) in [
        (vec!["check", "--config", "/nowhere/config.toml"], "read /nowhere/config.toml: No such file"),
        (vec!["list", "--config", "/dev/null"], "none of the 0 [[runners]] sections"),
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

/// The same for a prepared command.
fn said(mut command: Command, file: &File, words: &[&str]) -> (i32, String, String) {
    command.arg(words[0]).arg("--config").arg(&file.0).args(&words[1..]).stdin(Stdio::null());
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(stdout), text(stderr));
    for secret in ["sim-api-token", "sim-service-token", "s3cret-Pa55word", "Bearer ", "\x1b"] {
        assert!(!stdout.contains(secret) && !stderr.contains(secret), "{secret:?} in {stdout}{stderr}");
    }
    (status.code().expect("not killed"), stdout, stderr)
}

/// A folder that is deleted when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let folder = std::env::temp_dir().join(format!("vcd-commands-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Folder(folder)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

/// The files in a folder whose names start with `start`.
fn files(folder: &std::path::Path, start: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(start)).collect()
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn https_world() -> Server {
    let any = vcd_sim::Options::default().listen;
    let guest_port = fleet::free_port();
    Server::start(vcd_sim::Options { scale: SCALE, guest_port, https_listen: Some(any), ..Default::default() }).unwrap()
}

/// The check reports this failure under this topic, with this advice below it.
#[track_caller]
fn assert_told(stdout: &str, topic: &str, words: &str, advice: &str) {
    let start = format!("  FAIL  {topic:16} ");
    let lines: Vec<&str> = stdout.lines().collect();
    let told = lines.windows(2).any(|pair| {
        pair[0].strip_prefix(&start).is_some_and(|text| text.contains(words))
            && pair[1].trim_start().strip_prefix("-> ").is_some_and(|text| text.contains(advice))
    });
    assert!(told, "{topic}: {words:?} -> {advice:?} in {stdout}");
}

#[test]
fn each_cause_between_the_plugin_and_vcd_has_its_own_advice() {
    let server = https_world();
    let folder = Folder::new("causes");
    let https = format!("{}/api", server.https_url().unwrap());
    let check = |name: &str, keys: Value, env: &[(&str, &str)]| {
        let file = file(&format!("cause-{name}"), &[runner(&server, 1, "vcd", keys, json!({}))]);
        let mut command = Command::new(BINARY);
        for variable in ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy", "all_proxy"] {
            command.env_remove(variable);
        }
        command.envs(env.iter().copied());
        let (status, stdout, _) = said(command, &file, &["check"]);
        assert_eq!(status, 1, "{name}: {stdout}");
        stdout
    };
    let with_ca = |path: String| json!({"url": https, "ca_file": path});
    let der: Vec<u8> = [&[0x30, 0x82, 1, 0][..], &[7; 256]].concat();
    for (name, path, words, advice) in [
        ("missing", "/no/such.pem".to_owned(), "ca_file /no/such.pem: No such file", "must exist on the machine"),
        ("empty", folder.write("empty.pem", "\n"), "is empty", "put the certificate of the CA"),
        ("der", folder.write("ca.der", der), "is DER, not PEM", "openssl x509 -inform der"),
        ("folder", folder.0.display().to_string(), "is a folder", "set one PEM file"),
        (
            "key",
            folder.write("key.pem", "-----BEGIN X-----\n-----END X-----\n"),
            "contains no PEM",
            "BEGIN CERTIFICATE",
        ),
    ] {
        assert_told(&check(name, with_ca(path), &[]), "URL and TLS", words, advice);
    }
    let plain = json!({"url": https});
    for (name, value, words, advice) in [
        ("no-url", "http://", "HTTPS_PROXY in the environment is not a valid proxy URL", "http://HOST:PORT"),
        (
            "socks",
            "socks5://user:hidden@proxy:1080",
            "HTTPS_PROXY in the environment names a SOCKS proxy",
            "HTTP proxy",
        ),
    ] {
        let stdout = check(name, plain.clone(), &[("HTTPS_PROXY", value)]);
        assert_told(&stdout, "URL and TLS", words, advice);
        assert!(!stdout.contains("hidden"), "{stdout}");
    }
    let unknown = check("unknown", plain.clone(), &[]);
    assert_told(&unknown, "URL and TLS", "invalid peer certificate: UnknownIssuer", "set ca_file");

    // The file with the token.
    let utf16: Vec<u8> = [0xff, 0xfe].into_iter().chain("sim".bytes().flat_map(|byte| [byte, 0])).collect();
    for (name, bytes, words, advice) in [
        ("nothing", b" \n".to_vec(), "is empty", "write the token into it"),
        ("utf16", utf16, "is UTF-16", "iconv -f utf-16"),
        ("quotes", b"\"sim-api-token\"\n".to_vec(), "contains quotes", "remove the quotes"),
        ("name", b"VCD_TOKEN=sim-api-token\n".to_vec(), "contains NAME=", "remove the text before the token"),
    ] {
        let path = folder.write(&format!("token-{name}"), bytes);
        let stdout = check(name, json!({"token": null, "token_file": path}), &[]);
        assert_told(&stdout, "token", &format!("token_file {path}: {words}"), advice);
    }
    let stdout = check("no-token", json!({"token": null, "token_file": "/no/token"}), &[]);
    assert_told(&stdout, "token", "token_file /no/token: No such file", "must exist on the machine");

    // VCD's answers.
    server.with_api(|api| api.redirect = server.https_url().map(|url| url.replace("localhost", "127.0.0.1")));
    let stdout = check("redirect", json!({}), &[]);
    assert_told(&stdout, "URL and TLS", "VCD accepts https only, at https://127.0.0.1", "write https:// in url");
    server.with_api(|api| api.redirect = None);
    let portal = format!("{}/tenant/ci-org/api", server.url());
    let stdout = check("portal", json!({"url": portal}), &[]);
    assert_told(
        &stdout,
        "URL and TLS",
        "the answer is a web page, \"VMware Cloud Director\"",
        "check that url is the address of VCD's API",
    );
    for (name, rule, topic, words, advice) in [
        (
            "404",
            json!({"op": "login", "answer_before": {"status": 404, "body": "<html><title>Not Found</title></html>"}}),
            "token",
            "VCD has no token endpoint for org \"ci-org\": the answer is a web page, \"Not Found\"",
            "check that a proxy in front of VCD forwards /oauth",
        ),
        (
            "401",
            json!({"op": "query:orgVdc", "times": 0, "answer_before": {"status": 401}}),
            "VDC",
            "VCD accepted the token, but rejects the session that it started for it",
            "Authorization header",
        ),
    ] {
        assert!(server.add_fault(vcd_sim::faults::Rule::from_json(&rule).unwrap()));
        assert_told(&check(name, json!({}), &[]), topic, words, advice);
        server.clear_faults();
    }
    server.with_api(|api| api.versions = vec![("35.2".into(), false)]);
    let stdout = check("old", json!({}), &[]);
    assert_told(&stdout, "URL and TLS", "VCD offers API versions up to 35.2 only", "ask the provider for an upgrade");
    let stdout = check("idn", json!({"url": "https://vcd.bücher.example/api"}), &[]);
    assert!(stdout.contains("write its DNS name, vcd.xn--bcher-kva.example"), "{stdout}");
}

#[test]
fn a_self_signed_certificate_is_accepted_if_ca_file_contains_it() {
    use vcd_sim::Certificate;
    let server = https_world();
    let folder = Folder::new("self-signed");
    let check = |which: Certificate, named: Option<&str>| {
        let pem = server.set_certificate(which).unwrap();
        let ca = folder.write("ca.pem", named.unwrap_or(&pem));
        let keys = json!({"url": format!("{}/api", server.https_url().unwrap()), "ca_file": ca});
        let file = file("self-signed", &[runner(&server, 1, "vcd", keys, json!({}))]);
        let (status, stdout, _) = run(&file, &["check"]);
        (status, stdout, pem)
    };
    let (status, stdout, first) = check(Certificate::SelfSigned, None);
    assert_eq!(status, 0, "{stdout}");
    // Only this certificate, for its host name, while it is valid.
    for (which, named, words, advice) in [
        (Certificate::SelfSigned, Some(first.as_str()), "CaUsedAsEndEntity", "put this certificate into ca_file"),
        (Certificate::SelfSignedExpired, None, "certificate expired", "clock"),
        (
            Certificate::SelfSignedOtherHost,
            None,
            "certificate not valid for name",
            "host name of the certificate in url",
        ),
    ] {
        let (status, stdout, _) = check(which, named);
        assert_eq!(status, 1, "{which:?}: {stdout}");
        assert_told(&stdout, "URL and TLS", words, advice);
    }
    let (status, stdout, _) = check(Certificate::Good, server.ca_pem());
    assert_eq!(status, 0, "{stdout}");
}

#[test]
fn an_unknown_newer_vcd_is_used_with_one_warning() {
    let (server, guest_port) = world(|_| ());
    let file = file("newer", &[runner(&server, guest_port, "vcd", json!({}), json!({}))]);
    for (versions, chosen, warnings) in
        [(&["39.2"][..], "39.2", 0), (&["38.2", "40.0"], "38.2", 0), (&["40.0", "41.0"], "40.0", 1)]
    {
        server.with_api(|api| api.versions = versions.iter().map(|v| ((*v).to_owned(), false)).collect());
        let (status, stdout, stderr) = run(&file, &["check"]);
        assert_eq!(status, 0, "{stdout}");
        assert!(found(&stdout, "ok", "URL and TLS")[0].contains(&format!("API version {chosen},")), "{stdout}");
        assert_eq!(stderr.matches("no API version that this plugin knows").count(), warnings, "{stderr}");
    }
}

fn service_token(server: &Server) -> String {
    server.with_model(|model| {
        let user = model.user("ci").unwrap();
        model.new_service_token(user).to_string()
    })
}

/// The only service account token that VCD accepts.
fn good_token(server: &Server) -> String {
    let all: Vec<String> = server.with_model(|m| m.service_tokens.keys().map(|token| token.to_string()).collect());
    assert_eq!(all.len(), 1);
    all[0].clone()
}

#[test]
fn all_commands_and_a_plugin_share_a_service_accounts_token() {
    block_on(async {
        let (server, guest_port) = world(|_| ());
        let folder = Folder::new("shared");
        let token = folder.write("token", service_token(&server));
        let keys = json!({"token": null, "token_file": token});
        let file = file("shared", &[runner(&server, guest_port, "vcd", keys.clone(), json!({}))]);
        let (status, stdout, _) = run(&file, &["check"]);
        assert_eq!(status, 0, "{stdout}");
        assert!(found(&stdout, "ok", "token")[0].contains("a service account's token: VCD replaces it"), "{stdout}");
        assert!(found(&stdout, "warn", "credentials").is_empty(), "{stdout}");

        let mut plugin = PluginProcess::start(command(BINARY)).await;
        let mut config = merged(fleet::plugin_config(&server), keys);
        config.as_object_mut().unwrap().remove("token");
        plugin.init(config.to_string().as_bytes(), fleet::connector(guest_port)).await.unwrap();
        for _ in 0..3 {
            server.with_model(|model| model.admin_expire_bearers());
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    // A session that the end of another command has closed can fail a list, but never lose the token.
                    scope.spawn(|| run(&file, &["list"]));
                }
            });
        }
        assert_eq!(server.refusals("login"), 0);
        let (status, _, stderr) = run(&file, &["clean", "--yes"]);
        assert!(status == 1 && stderr.contains("runs on this machine"), "{stderr}");
        plugin.shutdown().await.unwrap();
        plugin.quit().await.unwrap();
        assert!(plugin.exited().await.0.success());
        assert_eq!(run(&file, &["clean", "--yes"]).0, 0);
        assert_eq!(
            (server.refusals("login"), good_token(&server)),
            (0, std::fs::read_to_string(&token).unwrap().trim().into())
        );
    });
}

#[test]
fn a_plugin_that_ends_waits_for_a_login_in_progress() {
    block_on(async {
        let (server, guest_port) = world(|_| ());
        let folder = Folder::new("end");
        let token = folder.write("token", service_token(&server));
        let mut plugin = PluginProcess::start(command(BINARY)).await;
        let keys = json!({"token_file": token, "reconcile_interval": "1s"});
        let mut config = merged(fleet::plugin_config(&server), keys);
        config.as_object_mut().unwrap().remove("token");
        plugin.init(config.to_string().as_bytes(), fleet::connector(guest_port)).await.unwrap();
        // VCD has created the next token, and the answer is on its way.
        let slow = json!({"op": "login", "delay_after_ms": 150});
        assert!(server.add_fault(vcd_sim::faults::Rule::from_json(&slow).unwrap()));
        let first = good_token(&server);
        server.with_model(|model| model.admin_expire_bearers());
        common::until("a login", || good_token(&server) != first).await;
        plugin.quit().await.unwrap();
        assert!(plugin.exited().await.0.success());
        assert_eq!(std::fs::read_to_string(&token).unwrap().trim(), good_token(&server));
        assert!(files(&folder.0, ".").is_empty());
    });
}

#[test]
fn generated_credentials_are_not_derived_from_a_token_that_changes_unnoticed() {
    let (server, guest_port) = world(|_| ());
    let folder = Folder::new("seed");
    let token = folder.write("token", service_token(&server));
    let keys = json!({"token": null, "token_file": token});
    let text = runner(&server, guest_port, "vcd", keys, json!({}));
    let (plugin, _) = text.split_once("[runners.autoscaler.connector_config]").unwrap();
    let check = |seed: &str| {
        let file = file("seed", &[format!("{plugin}{seed}[runners.autoscaler.connector_config]\n")]);
        let (status, stdout, _) = run(&file, &["check"]);
        assert_eq!(status, 0, "{stdout}");
        stdout
    };
    assert!(found(&check(""), "warn", "credentials")[0].contains("VCD replaces this token at each login"));
    assert!(found(&check("credentials_seed = \"0123456789abcdef\"\n"), "warn", "credentials").is_empty());
}

#[test]
fn the_next_token_of_a_configured_service_account_is_saved_in_the_home_folder() {
    let (server, guest_port) = world(|_| ());
    for by_variable in [false, true] {
        let home = Folder::new("home");
        let given = service_token(&server);
        let keys = if by_variable { json!({"token": null}) } else { json!({"token": given}) };
        let given_file = file("given", &[runner(&server, guest_port, "vcd", keys, json!({}))]);
        let mut command = Command::new(BINARY);
        command.env("HOME", &home.0);
        if by_variable {
            command.env("VCD_TOKEN", &given);
        }
        let (status, stdout, _) = said(command, &given_file, &["check"]);
        let kept = files(&home.0, "vcd-token-");
        assert_eq!((status, kept.len()), (1, 1), "{stdout}");
        let words = format!(
            "as one of a service account; token and VCD_TOKEN cannot save the next one; the next one is in {}",
            kept[0].display()
        );
        assert_told(&stdout, "token", &words, "token_file");
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(std::fs::metadata(&kept[0]).unwrap().permissions().mode() & 0o777, 0o600);
        // The advice works.
        let keys = json!({"token": null, "token_file": kept[0]});
        let file = file("kept", &[runner(&server, guest_port, "vcd", keys, json!({}))]);
        let (status, stdout, _) = run(&file, &["check"]);
        assert_eq!(status, 0, "{stdout}");
        server.with_model(|model| model.service_tokens.clear());
    }
}

/// A command that runs the plugin without root's rights, if this is root.
fn unprivileged(folder: &Folder) -> Command {
    use std::os::unix::fs::chown;
    use std::os::unix::process::CommandExt as _;
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        return Command::new(BINARY);
    }
    let copy = folder.0.join("plugin");
    common::install(&std::fs::read(BINARY).unwrap(), &copy);
    for entry in std::fs::read_dir(&folder.0).unwrap() {
        let entry = entry.unwrap().path();
        let (nobody, own) = (Some(65534), entry.extension().is_none());
        chown(&entry, nobody.filter(|_| own), None).unwrap();
    }
    let mut command = Command::new(copy);
    command.uid(65534).gid(65534);
    command
}

/// A service account's token in a file that the `unprivileged` plugin can read, but it cannot write the next token.
struct Closed {
    folder: Folder,
    home: PathBuf,
    place: PathBuf,
    token: PathBuf,
    first: String,
}

impl Closed {
    fn new(name: &str, server: &Server) -> Closed {
        let folder = Folder::new(name);
        let (home, place) = (folder.0.join("home"), folder.0.join("closed"));
        for made in [&home, &place] {
            std::fs::create_dir(made).unwrap();
        }
        let (token, first) = (place.join("token"), service_token(server));
        std::fs::write(&token, &first).unwrap();
        Closed { folder, home, place, token, first }
    }

    fn command(&self) -> Command {
        let mut command = unprivileged(&self.folder);
        command.env("HOME", &self.home);
        self.own(0, 0o444, 0o555);
        command
    }

    fn own(&self, owner: u32, file: u32, folder: u32) {
        use std::os::unix::fs::PermissionsExt as _;
        for (path, mode) in [(&self.token, file), (&self.place, folder)] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
            if rustix::process::geteuid().is_root() {
                std::os::unix::fs::chown(path, Some(owner), Some(owner)).unwrap();
            }
        }
    }

    /// Allows the plugin to write it.
    fn open(&self) {
        let own = rustix::process::geteuid();
        self.own(if own.is_root() { 65534 } else { own.as_raw() }, 0o600, 0o755);
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.open();
    }
}

#[test]
fn a_next_token_that_cannot_be_written_is_saved_elsewhere_and_reported() {
    use std::os::unix::fs::PermissionsExt as _;
    let (server, guest_port) = world(|_| ());
    let closed = Closed::new("unwritable", &server);
    let keys = json!({"token": null, "token_file": closed.token});
    let file = file("unwritable", &[runner(&server, guest_port, "vcd", keys, json!({}))]);
    std::fs::set_permissions(&file.0, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (status, stdout, stderr) = said(closed.command(), &file, &["check"]);
    let kept = files(&closed.home, "vcd-token-");
    assert_eq!((status, kept.len()), (1, 1), "{stdout}{stderr}");
    let words = format!("if the plugin ends before that, move {} to token_file", kept[0].display());
    assert_told(&stdout, "token", &words, "write access to the file and its folder");
    assert!(stdout.contains("Permission denied"), "{stdout}");
    // The check continued with its session, and the token is in the reported file.
    assert_eq!(found(&stdout, "ok", "VDC").len(), 1, "{stdout}");
    assert_eq!(std::fs::metadata(&kept[0]).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_to_string(&kept[0]).unwrap().trim(), good_token(&server));
    assert_eq!(std::fs::read_to_string(&closed.token).unwrap(), closed.first);
}

#[test]
fn a_token_that_could_not_be_written_is_written_when_it_can_be() {
    block_on(async {
        let (server, guest_port) = world(|_| ());
        let closed = Closed::new("later", &server);
        let mut config = fleet::plugin_config(&server);
        config["token"] = Value::Null;
        config["token_file"] = closed.token.to_str().unwrap().into();
        config["reconcile_interval"] = "1s".into();
        let mut plugin = PluginProcess::start(common::hosted(closed.command().into())).await;
        plugin.init(config.to_string().as_bytes(), fleet::connector(guest_port)).await.unwrap();
        plugin.logged("retries to write it every 10 s: allow it to write this file and its folder; if ").await;
        let kept = files(&closed.home, "vcd-token-");
        assert!(kept.len() == 1 && server.requests("login") == 1);
        closed.open();
        plugin.logged(&format!("the new token is in it now; {} is deleted", kept[0].display())).await;
        let written = std::fs::read_to_string(&closed.token).unwrap();
        assert_eq!((written.trim(), kept[0].exists()), (good_token(&server).as_str(), false));
        // The written token is valid for the next login.
        server.with_model(|model| model.admin_expire_bearers());
        soon("another login", async {
            while server.requests("login") < 2 {
                smol::Timer::after(Duration::from_millis(20)).await;
            }
        })
        .await;
        plugin.shutdown().await.unwrap();
        plugin.quit().await.unwrap();
        plugin.exited().await;
        assert_eq!(std::fs::read_to_string(&closed.token).unwrap().trim(), good_token(&server));
        assert!(!plugin.log().iter().any(|line| line.contains("sim-service-token")), "{:#?}", plugin.log());
    });
}

/// Recordings of the simulator must match its answers. Recordings of real VCDs may differ where the simulator has yet
/// to be improved. After a change of the requests or of the simulator, run with `UPDATE_GOLDEN=1`.
#[test]
fn recordings_are_played_to_the_client_and_compared_with_the_simulator() {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recordings"));
    for (name, more) in [("check", "create=false disk_size_gb=0"), ("life", "create=true disk_size_gb=40")] {
        let settings = "ip_allocation_mode=POOL cpu_count=2 cores_per_socket=1 memory_mb=4096 sizing_policy=yes placement_policy=no";
        let head = format!("settings {settings} {more}\n# versions\n");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            let text = replay::on_simulator(&replay::Recording::parse(&head).unwrap()).unwrap();
            std::fs::write(folder.join(format!("simulator-{name}.txt")), text).unwrap();
        }
    }
    // A check against the replayed recording, with its output for people.
    let check = |path: &std::path::Path| {
        let output = Command::new(BINARY).args(["check", "--config"]).arg(path).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        if output.status.success() { Ok(()) } else { Err(said) }
    };
    let all = files(&folder, "");
    assert!(all.len() >= 2);
    for path in all {
        let recording = replay::read(&path).unwrap();
        let simulated = replay::Recording::parse(&replay::on_simulator(&recording).unwrap()).unwrap();
        let place = path.display();
        assert_eq!(replay::play(&recording, check), Ok(Vec::new()), "{place}");
        let differences = replay::differences(&recording, &simulated);
        if path.file_name().unwrap().to_str().unwrap().starts_with("simulator-") {
            assert!(differences.is_empty(), "{place}: {differences:#?}");
        }
        // A difference is found, whichever side it is on.
        let text = std::fs::read_to_string(&path).unwrap().replace("VmQuota>", "VmAllowance>");
        let other = replay::Recording::parse(&text).unwrap();
        let found = replay::differences(&other, &simulated);
        for side in ["only in the recording: answer Vdc VmAllowance", "only on the simulator: answer Vdc VmQuota"] {
            assert!(found.iter().any(|line| line.starts_with("GET /api/vdc/*: ") && line.contains(side)), "{found:#?}");
        }
    }
    assert!(replay::Recording::parse("# x\n> GET\n").unwrap_err().contains("line 2"));
    assert!(replay::Recording::parse("nothing").is_err());
}

#[test]
fn a_check_is_recorded_into_a_new_private_file() {
    use std::os::unix::fs::PermissionsExt as _;
    let (server, guest_port) = world(|_| ());
    let folder = Folder::new("record");
    let place = folder.0.join("vcd.txt");
    let file = file("record", &[runner(&server, guest_port, "vcd", json!({}), json!({}))]);
    let words = ["check", "--record", place.to_str().unwrap()];
    let (status, stdout, _) = run(&file, &words);
    assert_eq!(status, 0, "{stdout}");
    let text = std::fs::read_to_string(&place).unwrap();
    let requests = text.lines().filter(|line| line.starts_with("# ")).count();
    let told = format!("{requests} requests and answers are in {}: tokens, passwords", place.display());
    assert!(requests > 10 && found(&stdout, "ok", "recording")[0].starts_with(&told), "{stdout}");
    assert_eq!(std::fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o600);
    let said = format!("plugin {VERSION}\nsettings create=false ip_allocation_mode=POOL cpu_count=2");
    assert!(text.starts_with("fleeting-plugin-vcd's recording, format 1") && text.contains(&said), "{text}");
    // No file is overwritten, and without a VCD no file is created.
    let (status, _, stderr) = run(&file, &words);
    assert!(status == 1 && stderr.contains("File exists"), "{stderr}");
    std::fs::remove_file(&place).unwrap();
    let (status, stdout, _) = run(&file, &["check", "--offline", "--record", place.to_str().unwrap()]);
    assert!(status == 0 && found(&stdout, "note", "recording").len() == 1 && !place.exists(), "{stdout}");
}
