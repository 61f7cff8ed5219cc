//! A whole run at trace level, with everything that can fail: no log line, page, metric, error or gRPC message
//! contains a token, bearer, password, key or script.

use crate::common::{PluginProcess, command, until};
use crate::fleet;
use crate::live::reach;
use fleeting_plugin_vcd::host::proto::fleeting::{ConnectorConfig, State};
use serde_json::{Value, json};
use smol::{Timer, block_on};
use std::collections::BTreeSet;
use std::time::Duration;
use vcd_sim::Server;
use vcd_sim::faults::Rule;

const BINARY: &str = env!("CARGO_BIN_EXE_fleeting-plugin-vcd");
const SCALE: f64 = 50.0;
const TOKEN: &str = "sim-api-token";
const WRONG_TOKEN: &str = "wrong-t0ken-5d41402abc4b2a76";
const PASSWORD: &str = "s3cret-Pa55word <&> \"quoted\"";
const KEY: &str = include_str!("../../src/access/testdata/ed25519");
const SCRIPT: &str = "#!/bin/sh\necho top-secret-script-line > /root/file\n";
const USER_DATA: &str = "#cloud-config\nwrite_files: [{content: top-secret-user-data}]\n";
/// The same, as it is sent to VCD.
const ENCODED_USER_DATA: &str = "I2Nsb3VkLWNvbmZpZwp3cml0ZV9maWxlczogW3tjb250ZW50OiB0b3Atc2VjcmV0LXVzZXItZGF0YX1dCg==";
const PROPERTY: &str = "top-secret-property-value";
/// Shorter lines of keys and scripts appear in many texts.
const MIN_LINE: usize = 14;

/// All outputs, and the secrets that must not be in them.
#[derive(Default)]
struct Run {
    said: Vec<(String, String)>,
    secrets: BTreeSet<String>,
}

impl Run {
    fn hear(&mut self, whence: &str, text: impl Into<String>) {
        self.said.push((whence.to_owned(), text.into()));
    }

    /// Adds a secret, and each of its lines that is long enough to be distinctive.
    fn guard(&mut self, secret: &str) {
        self.secrets.insert(secret.to_owned());
        let lines =
            secret.lines().map(str::trim).filter(|line| line.len() >= MIN_LINE && !line.contains("PRIVATE KEY"));
        self.secrets.extend(lines.map(str::to_owned));
    }

    /// Adds the secrets that are in VCD.
    fn guard_vcd(&mut self, server: &Server) {
        let (bearers, scripts) = server.with_model(|model| {
            let bearers: Vec<String> = model.bearers.keys().map(|bearer| bearer.to_string()).collect();
            let vms = model.vms.values();
            let texts = vms.flat_map(|vm| [vm.guest.script.clone(), vm.guest.admin_password.clone()]);
            (bearers, texts.flatten().map(|text| text.to_string()).collect::<Vec<_>>())
        });
        for secret in bearers.iter().chain(&scripts) {
            self.guard(secret);
        }
    }

    /// Adds all pages of the debug server.
    fn hear_pages(&mut self, debug: &str, names: &[String]) {
        let mut paths: Vec<String> =
            ["/", "/?width=400", "/api/status", "/metrics", "/healthz"].map(str::to_owned).into();
        paths.extend(names.iter().map(|name| format!("/instances/{name}")));
        for path in paths {
            for accept in ["*/*", "text/html"] {
                let request = ureq::get(format!("http://{debug}{path}")).header("Accept", accept);
                let answer = request.config().http_status_as_error(false).build().call();
                let text = answer.and_then(|mut answer| answer.body_mut().read_to_string());
                self.hear(&path, text.unwrap());
            }
        }
    }

    /// The secrets that an output contains, and where.
    fn leaks(&self) -> Vec<String> {
        let mut leaks = Vec::new();
        for (whence, text) in &self.said {
            // As plain text, in JSON, in HTML, and in a form.
            for secret in &self.secrets {
                let json = json!(secret).to_string();
                let html =
                    secret.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
                let form = secret.replace(' ', "%20").replace('<', "%3C");
                if [secret.as_str(), json.trim_matches('"'), &html, &form].iter().any(|way| text.contains(way)) {
                    let line = text.lines().find(|line| line.contains(secret.as_str())).unwrap_or_default();
                    leaks.push(format!("{secret:?} in {whence}: {line}"));
                }
            }
        }
        leaks
    }
}

/// A rejection or an answer whose text contains all secrets.
fn echoing(op: &str, status: u16, bearers: &[String]) -> Value {
    let words = [TOKEN, PASSWORD, PROPERTY, ENCODED_USER_DATA, "echo top-secret-script-line > /root/file"].join(" ")
        + " "
        + &bearers.join(" ");
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
    let body = format!(
        "<Error xmlns=\"http://www.vmware.com/vcloud/v1.5\" majorErrorCode=\"{status}\" minorErrorCode=\"X\" \
         message=\"{words}\"/>"
    );
    json!({"op": op, "answer_before": {"status": status, "body": body}})
}

#[test]
fn no_secret_appears_in_any_output() {
    block_on(async {
        let mut run = Run::default();
        let dir = std::env::temp_dir().join(format!("vcd-secrets-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = |name: &str, text: &str| {
            std::fs::write(dir.join(name), text).unwrap();
            dir.join(name).display().to_string()
        };
        for secret in [TOKEN, WRONG_TOKEN, PASSWORD, KEY, SCRIPT, USER_DATA, ENCODED_USER_DATA, PROPERTY] {
            run.guard(secret);
        }
        let (server, guest_port) = fleet::simulator(SCALE);
        let debug = format!("127.0.0.1:{}", fleet::free_port());
        let mut config = fleet::plugin_config(&server);
        config["debug_server_addr"] = debug.as_str().into();
        config["reconcile_interval"] = "1s".into();
        config["customization_script_file"] = file("script", SCRIPT).into();
        config["user_data_file"] = file("user-data", USER_DATA).into();
        config["guest_properties"] = json!({"secret-key": PROPERTY});
        let connector = ConnectorConfig { password: PASSWORD.into(), key: KEY.into(), ..fleet::connector(guest_port) };
        let mut trace = command(BINARY);
        trace.env("VCD_LOG", "trace");

        // A configuration with mistakes, then a wrong token, then a password that is too long.
        let mut plugin = PluginProcess::start(trace).await;
        let mut wrong = config.clone();
        (wrong["token"], wrong["cpu_count"]) = (format!("{WRONG_TOKEN}\n").into(), PASSWORD.into());
        let status = plugin.init(wrong.to_string().as_bytes(), connector.clone()).await.unwrap_err();
        run.hear("Init with mistakes", status.message());
        let broken = format!("{}{}", &config.to_string()[..60], TOKEN);
        let status = plugin.init(broken.as_bytes(), connector.clone()).await.unwrap_err();
        run.hear("Init with broken JSON", status.message());
        wrong = config.clone();
        wrong["token"] = WRONG_TOKEN.into();
        let status = plugin.init(wrong.to_string().as_bytes(), connector.clone()).await.unwrap_err();
        assert!(status.message().contains("rejected the API token"), "{}", status.message());
        run.hear("Init with a wrong token", status.message());
        let long = PASSWORD.repeat(20);
        run.guard(&long);
        let odd = ConnectorConfig { password: long, key: format!("{KEY}x").into(), ..connector.clone() };
        if let Err(status) = plugin.init(config.to_string().as_bytes(), odd).await {
            run.hear("Init with odd credentials", status.message());
            plugin.init(config.to_string().as_bytes(), connector.clone()).await.unwrap();
        }
        let status = plugin.init(config.to_string().as_bytes(), connector.clone()).await.unwrap_err();
        run.hear("a second Init", status.message());
        until("the debug server", || std::net::TcpStream::connect(&debug).is_ok()).await;

        plugin.increase(1).await.unwrap();
        let good = reach(&plugin, 1, State::Running).await;

        // VCD repeats what it was sent in rejections, failed tasks and invalid answers.
        run.guard_vcd(&server);
        let bearers: Vec<String> = server.with_model(|model| model.bearers.keys().map(|b| b.to_string()).collect());
        for (op, status) in [("instantiate", 500), ("query:vm", 500), ("task", 503)] {
            assert!(server.add_fault(Rule::from_json(&echoing(op, status, &bearers)).unwrap()));
        }
        let failing = json!({"op": "instantiate", "task_fails": {"message": format!("{TOKEN} {PASSWORD}")}});
        assert!(server.add_fault(Rule::from_json(&failing).unwrap()));
        let refusing = json!({"op": "instantiate", "guest": "gc_failed"});
        assert!(server.add_fault(Rule::from_json(&refusing).unwrap()));
        assert_eq!(plugin.increase(3).await.unwrap(), 3);
        let names: Vec<String> = plugin.update().await.unwrap().into_iter().map(|(name, _)| name).collect();
        let new = names.iter().find(|name| !good.contains(name)).unwrap();
        let status = plugin.connect_info(new).await.err().unwrap();
        run.hear("ConnectInfo too early", status.message());
        for failure in
            ["a lookup by name shows whether", "a lookup shows what VCD created", "(GC_FAILED)", "last known state"]
        {
            plugin.logged(failure).await;
        }
        run.guard_vcd(&server);
        run.hear_pages(&debug, &names);
        let told = "VCD answered 500 X: …";
        assert!(run.said.iter().any(|(_, text)| text.contains(told)), "the text appears without the secrets");

        // The session ends. VCD rejects the token, then accepts it again.
        server.with_model(|model| model.admin_expire_bearers());
        Timer::after(Duration::from_millis(1500)).await;
        run.guard_vcd(&server);
        run.hear_pages(&debug, &names);
        for name in &names {
            if let Err(status) = plugin.heartbeat(name).await {
                run.hear("Heartbeat", status.message());
            }
        }
        server.with_model(|model| {
            model.admin_revoke_token(TOKEN);
            model.admin_expire_bearers();
        });
        plugin.logged("VCD rejected the API token").await;
        run.hear_pages(&debug, &names);

        // The plugin is killed. The next one uses generated credentials.
        plugin.child.kill().unwrap();
        plugin.exited().await;
        run.said.extend(plugin.log().into_iter().map(|line| ("the first log".to_owned(), line)));
        let lines = run.said.len();
        let (server, guest_port) = fleet::simulator(SCALE);
        config["url"] = format!("{}/api", server.url()).into();
        let connector = ConnectorConfig { protocol_port: guest_port.into(), ..ConnectorConfig::default() };
        let mut trace = command(BINARY);
        trace.env("VCD_LOG", "trace");
        let mut plugin = PluginProcess::start(trace).await;
        plugin.init(config.to_string().as_bytes(), connector).await.unwrap();
        plugin.increase(1).await.unwrap();
        let names = reach(&plugin, 1, State::Running).await;
        // Only the host gets these.
        let login = plugin.connect_info(&names[0]).await.unwrap().connector.unwrap();
        run.guard(&String::from_utf8(login.key).unwrap());
        run.guard_vcd(&server);
        run.hear_pages(&debug, &names);
        plugin.shutdown().await.unwrap();
        plugin.quit().await.unwrap();
        plugin.exited().await;
        run.said.extend(plugin.log().into_iter().map(|line| ("the second log".to_owned(), line)));
        std::fs::remove_dir_all(&dir).unwrap();

        assert!(run.secrets.len() > 20 && lines > 100 && run.said.len() > lines + 20, "the run had too few outputs");
        let leaks = run.leaks();
        assert!(leaks.is_empty(), "{leaks:#?}");
    });
}

/// A recording, which people share to get help: an instance with all settings, and rejections that repeat them.
#[test]
fn a_recording_has_placeholders_for_secrets_and_names() {
    let dir = std::env::temp_dir().join(format!("vcd-secrets-record-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let write = |name: &str, text: &str| {
        std::fs::write(dir.join(name), text).unwrap();
        dir.join(name).display().to_string()
    };
    let mut run = Run::default();
    let (server, guest_port) = fleet::simulator(SCALE);
    let first = server.with_model(|model| {
        let user = model.user("ci").unwrap();
        model.new_service_token(user).to_string()
    });
    let config = fleet::plugin_config(&server);
    let own = |key: &str| config[key].as_str().unwrap().to_owned();
    let changes = [
        ("token", None),
        ("token_file", Some(write("token", &first))),
        ("name", Some("manager-of-somebody".into())),
        ("instance_group_name", Some("group-of-somebody".into())),
        ("vapp_name_prefix", Some("somebodys".into())),
        ("customization_script_file", Some(write("script", SCRIPT))),
        ("user_data_file", Some(write("user-data", USER_DATA))),
    ];
    let mut keys: Vec<(String, String)> = Vec::new();
    for (key, value) in config.as_object().unwrap() {
        if !changes.iter().any(|(changed, _)| changed == key) {
            keys.push((key.clone(), value.to_string()));
        }
    }
    keys.extend(changes.into_iter().filter_map(|(key, value)| Some((key.to_owned(), json!(value?).to_string()))));
    keys.push(("guest_properties".into(), format!("{{\"secret-key\" = {PROPERTY:?}}}")));
    keys.push(("metadata".into(), "{\"owner-of-it\" = \"somebody-or-other\"}".into()));
    let keys: String = keys.into_iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
    let text = format!(
        "[[runners]]\nname = \"vcd\"\nexecutor = \"instance\"\n[runners.autoscaler]\nplugin = \"fleeting-plugin-vcd\"\n\
         max_instances = 1\n[runners.autoscaler.plugin_config]\n{keys}[runners.autoscaler.connector_config]\n\
         use_static_credentials = true\nusername = \"root\"\npassword = {}\nprotocol_port = {guest_port}\n",
        json!(PASSWORD)
    );
    // A rejection that repeats all of it.
    let mut echo = echoing("task", 503, &[]);
    let named = format!("{} {} somebodys-check group-of-somebody ", own("org"), own("network"));
    let body = echo["answer_before"]["body"].as_str().unwrap().replacen("message=\"", &format!("message=\"{named}"), 1);
    echo["answer_before"]["body"] = body.into();
    assert!(server.add_fault(Rule::from_json(&echo).unwrap()));
    let (file, place) = (write("config.toml", &text), dir.join("vcd.txt"));
    let mut check = std::process::Command::new(BINARY);
    check.args(["check", "--create", "--config", &file, "--record"]).arg(&place);
    // Without ssh, which would contact a guest that does not exist.
    let output = check.env("PATH", &dir).env("VCD_LOG", "trace").stdin(std::process::Stdio::null()).output().unwrap();
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(stdout.contains("deleted in VCD after"), "{stdout}{stderr}");
    let recording = std::fs::read_to_string(&place).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();

    for secret in [PASSWORD, SCRIPT, USER_DATA, ENCODED_USER_DATA, PROPERTY, &first] {
        run.guard(secret);
    }
    run.guard_vcd(&server);
    run.secrets.extend(
        server.with_model(|model| model.service_tokens.keys().map(|token| token.to_string()).collect::<Vec<_>>()),
    );
    run.hear("stdout", stdout);
    run.hear("stderr", stderr);
    assert!(run.leaks().is_empty(), "{:#?}", run.leaks());

    // In a recording, names, addresses and ids are secret too.
    run.said.clear();
    run.hear("the recording", &recording);
    for key in ["org", "virtual_datacenter", "network", "catalog", "template", "storage_profile"] {
        run.guard(&own(key));
    }
    for own in ["somebody", "secret-key", "owner-of-it", server.url().trim_start_matches("http://"), "\"ci\"", ">ci<"] {
        run.guard(own);
    }
    let leaks = run.leaks();
    assert!(leaks.is_empty(), "{leaks:#?}");
    for part in ["# login, ", "refresh_token=secret-", "# create, ", "CustomizationScript>secret-", "name=\"prefix-1"] {
        assert!(recording.contains(part), "{part}: {recording}");
    } // Everything with the length and the dashes of an id is a placeholder.
    let parts = recording.split(|c: char| !(c.is_ascii_hexdigit() || c == '-'));
    let ids: Vec<&str> = parts.filter(|part| part.len() >= 36 && part.matches('-').count() >= 4).collect();
    assert!(ids.len() > 20 && ids.iter().all(|id| id.contains("00000000-0000-4000-8000-")), "{ids:?}");
}
