//! The debug server of the real plugin process, over TCP and a Unix socket, against the simulated VCD.

use crate::common::{PluginProcess, command, soon, until};
use crate::live::{BINARY, SCALE, end, reach};
use crate::{fleet, live};
use fleeting_plugin_vcd::host::proto::fleeting::State;
use fleeting_plugin_vcd::version::VERSION;
use serde_json::{Value, json};
use smol::{Timer, block_on};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use vcd_sim::Server;
use vcd_sim::faults::Rule;

/// Maximum time for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// A plugin after Init, and the address of its debug server.
async fn start(server: &Server, guest_port: u16, mut keys: Value) -> (PluginProcess, String) {
    let debug = format!("127.0.0.1:{}", fleet::free_port());
    keys["debug_server_addr"] = json!(debug);
    let plugin = live::start(server, guest_port, keys).await;
    until("the debug server", || TcpStream::connect(&debug).is_ok()).await;
    (plugin, debug)
}

/// An HTTP answer.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

/// Sends `request` unchanged, and reads until the server closes the connection.
fn exchange(mut stream: impl Read + Write, request: &str) -> Answer {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

fn connect(debug: &str) -> TcpStream {
    let stream = TcpStream::connect(debug).unwrap();
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
    stream
}

fn ask(debug: &str, method: &str, path: &str, accept: &str) -> Answer {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: {debug}\r\nAccept: {accept}\r\nConnection: close\r\n\r\n");
    exchange(connect(debug), &request)
}

fn get(debug: &str, path: &str) -> String {
    let answer = ask(debug, "GET", path, "*/*");
    assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    answer.body
}

fn fault(server: &Server, rule: Value) {
    assert!(server.add_fault(Rule::from_json(&rule).unwrap()));
}

/// A rejection of a create, in VCD's words.
fn refusal(message: &str) -> Value {
    let escaped = message.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;");
    let body = format!(
        "<Error xmlns=\"http://www.vmware.com/vcloud/v1.5\" majorErrorCode=\"400\" minorErrorCode=\"BAD_REQUEST\" \
         message=\"{escaped}\"/>"
    );
    json!({"op": "instantiate", "answer_before": {"status": 400, "body": body}})
}

/// All samples of a metrics page, by name and labels.
fn read_samples(page: &str) -> BTreeMap<String, f64> {
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("no number: {line}")))
    };
    let lines: Vec<_> = page.lines().filter(|line| !line.starts_with('#')).map(sample).collect();
    let samples: BTreeMap<String, f64> = lines.iter().cloned().collect();
    assert_eq!(samples.len(), lines.len(), "no sample appears twice");
    samples
}

/// The metrics in a page, with their types.
fn kinds(page: &str) -> BTreeMap<String, String> {
    let kind = |line: &str| line.strip_prefix("# TYPE ")?.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned()));
    page.lines().filter_map(kind).collect()
}

#[test]
fn pages_show_what_happens() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let (plugin, debug) = start(&server, guest_port, json!({"max_concurrent_creates": 1})).await;
        let empty = get(&debug, "/");
        assert!(empty.starts_with("fleeting-plugin-vcd ") && empty.contains("(no instances)"), "{empty}");
        let keys_of = |path: &str| -> Value { serde_json::from_str(&get(&debug, path)).unwrap() };
        assert_eq!(keys_of("/api/status")["Healthy"], true);
        assert_eq!(get(&debug, "/healthz"), "ok\n");
        assert!(empty.contains("\n status    OK\n"), "{empty}");
        assert!(get(&debug, "/instances").starts_with("NAME  PHASE"));
        let table = ask(&debug, "GET", "/instances", "text/html");
        assert!(table.status == 200 && table.body.contains("<table id=\"instances\">"), "{}", table.body);

        fault(&server, refusal("<b>no</b> \"way\" of that"));
        plugin.increase(2).await.unwrap();
        let mut names: Vec<String> = plugin.update().await.unwrap().into_iter().map(|(name, _)| name).collect();
        until("the refusal on the page", || get(&debug, "/").contains("BAD_REQUEST")).await;
        let text = get(&debug, "/");
        // The rejected instance is sorted to the front.
        names.sort_by_key(|name| !get(&debug, "/?width=400").contains(&format!("create vApp {name}:")));
        let told = format!("create vApp {}: VCD answered 400 BAD_REQUEST: <b>no</b> \"way\" of that", names[0]);
        assert!(get(&debug, "/?width=400").contains(&told), "{text}");
        assert!(text.contains("Creating -> PendingCreate"), "{text}");
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        let wide = get(&debug, "/?width=120");
        assert!(wide.lines().any(|line| line.len() > 80) && wide.lines().all(|line| line.len() <= 120), "{wide}");

        let browser = "text/html,application/xhtml+xml,*/*;q=0.8";
        for path in ["/".to_owned(), format!("/instances/{}", names[0])] {
            let page = ask(&debug, "GET", &path, browser);
            assert_eq!(page.status, 200);
            assert!(page.head.contains("content-type: text/html; charset=utf-8"), "{}", page.head);
            assert!(page.head.contains("content-security-policy: default-src 'none'; "), "{}", page.head);
            assert!(page.head.contains("vary: accept") && page.head.contains("cache-control: no-store"));
            assert!(page.body.contains("&lt;b&gt;no&lt;/b&gt; &quot;way&quot; of that"), "{}", page.body);
            assert!(!page.body.contains("<b>"), "{}", page.body);
        }

        let instance = |name: &str| {
            let status: Value = serde_json::from_str(&get(&debug, "/api/status")).unwrap();
            status["Instances"].as_array().unwrap().iter().find(|i| i["ID"] == name).cloned().unwrap()
        };
        let failed = instance(&names[0]);
        assert_eq!((&failed["Phase"], &failed["RetryCount"]), (&json!("PendingCreate"), &json!(1)));
        assert_eq!(failed["LastError"], told);
        assert!(failed["NextRetryAfter"].is_string(), "{failed}");
        let running = async {
            while instance(&names[1])["Phase"] != "Running" {
                Timer::after(Duration::from_millis(20)).await;
            }
        };
        soon("the other instance to run", running).await;
        let ours = instance(&names[1]);
        for key in ["ID", "IntentID", "Name", "VMName"] {
            assert_eq!(ours[key], names[1], "{key}");
        }
        for key in ["CreatedAt", "CreateStartedAt", "CreateCompletedAt", "LastUpdated", "IPAddress", "Href", "OSType"] {
            assert!(ours[key].as_str().is_some_and(|text| !text.is_empty()), "{key} of {ours}");
        }
        for key in ["DeleteRequestedAt", "DeleteStartedAt", "DeleteCompletedAt", "GCMarkedAt", "Cause"] {
            assert!(ours.get(key).is_some_and(Value::is_null), "{key} of {ours}");
        }
        assert_eq!((&ours["VAppStatus"], &ours["VMStatus"]), (&json!("POWERED_ON"), &json!("POWERED_ON")));
        assert_eq!((&ours["RetryCount"], &ours["MissedPolls"], &ours["LastError"]), (&json!(0), &json!(0), &json!("")));
        let config = keys_of("/api/status")["ReconcilerConfig"].clone();
        assert_eq!((&config["MaxConcurrentCreates"], &config["MaxConcurrentDeletes"]), (&json!(1), &json!(5)));
        assert_eq!(config["Interval"], 10_000_000_000_u64);
        assert_eq!(config["MaxInstanceAge"], 86_400_000_000_000_u64);

        plugin.decrease(&[&names[1]]).await.unwrap();
        let gone = async {
            while instance(&names[1])["Phase"] != "Deleted" {
                Timer::after(Duration::from_millis(20)).await;
            }
        };
        soon("its end", gone).await;
        // Its whole history, with VCD's own task ids.
        let life = get(&debug, &format!("/instances/{}?width=200", names[1]));
        let tasks: Vec<String> = server.with_model(|model| {
            let uuids: Vec<_> = model.tasks.keys().map(|id| model.uuid(*id).to_string()).collect();
            uuids.into_iter().filter(|uuid| life.contains(uuid.as_str())).collect()
        });
        assert_eq!(tasks.len(), 2, "the tasks of the create and of the delete:\n{life}");
        for word in [
            "accepted",
            "create",
            "Creating -> Running",
            "GitLab Runner requested the delete",
            "delete",
            "gone from VCD",
        ] {
            assert!(life.contains(word), "{word:?} is not in\n{life}");
        }
        assert!(!instance(&names[1])["DeleteCompletedAt"].is_null());

        assert_eq!(ask(&debug, "GET", "/instances/ci-none", "*/*").status, 404);
        let missing = ask(&debug, "GET", "/%3Cscript%3E", browser);
        assert!(missing.status == 404 && missing.body.contains("There is no such page."), "{}", missing.body);
        let refused = ask(&debug, "POST", "/", "*/*");
        assert!(refused.status == 405 && refused.head.contains("allow: get, head"), "{}", refused.head);
        let head = ask(&debug, "HEAD", "/healthz", "*/*");
        assert_eq!((head.status, head.body.as_str()), (200, ""));
        assert!(head.head.contains("content-length: 3"), "{}", head.head);

        // One line for each change of phase, with fields.
        let log = end(plugin).await;
        let lines: Vec<Value> = log.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let of = |name: &str| lines.iter().filter(|line| line["instance"] == name).cloned().collect::<Vec<_>>();
        let changes: Vec<(String, String)> = of(&names[1])
            .iter()
            .filter(|line| line.get("from").is_some())
            .map(|line| (line["from"].as_str().unwrap().into(), line["phase"].as_str().unwrap().into()))
            .collect();
        let way = ["PendingCreate", "Creating", "Running", "Deleting", "Deleted"];
        let wanted: Vec<(String, String)> = way.windows(2).map(|pair| (pair[0].into(), pair[1].into())).collect();
        assert_eq!(changes, wanted);
        let failed = of(&names[0]).into_iter().find(|line| line.get("error").is_some()).unwrap();
        assert_eq!((&failed["operation"], &failed["error"]), (&json!("create"), &json!(told)));
        assert!(failed["duration"].as_str().is_some_and(|text| text.ends_with('s')), "{failed}");
        assert!(
            of(&names[1]).iter().any(|line| line["task"].as_str().is_some_and(|task| tasks.contains(&task.into())))
        );
    });
}

/// The metrics that users of the Go plugin know: name, type, label, buckets.
const KNOWN: &[(&str, &str, &str, &str)] = &[
    ("instances_created_total", "counter", "", ""),
    ("instances_deleted_total", "counter", "", ""),
    ("instances_failed_total", "counter", "operation", ""),
    ("instances_current", "gauge", "state", ""),
    ("instance_creation_duration_seconds", "histogram", "", "30 60 90 120 180 300 600 900 1200"),
    ("instance_deletion_duration_seconds", "histogram", "", "10 30 60 120 300 600 1200 1800 3600"),
    ("gc_runs_total", "counter", "", ""),
    ("gc_instances_collected_total", "counter", "", ""),
    ("gc_duration_seconds", "histogram", "", "1 5 10 30 60 120 300"),
    ("api_calls_total", "counter", "operation", ""),
    ("api_errors_total", "counter", "operation", ""),
    ("api_duration_seconds", "histogram", "operation", "0.1 0.5 1 2 5 10 30 60"),
    ("pool_size", "gauge", "", ""),
    ("pool_max_size", "gauge", "", ""),
    ("state_manager_instances_total", "gauge", "", ""),
    ("state_manager_instances_by_state", "gauge", "state", ""),
    ("reconcile_duration_seconds", "histogram", "", "0.1 0.5 1 2 5 10 30 60 120"),
    ("reconcile_total", "counter", "", ""),
    ("throttle_events_total", "counter", "", ""),
    ("throttle_pause_seconds", "gauge", "", ""),
    ("last_reconcile_timestamp_seconds", "gauge", "", ""),
    ("leftover_vapps_queued_total", "counter", "", ""),
    ("startup_hold", "gauge", "", ""),
    ("startup_leftovers_remaining", "gauge", "", ""),
];

/// If there were more series, a label would have values from outside.
const MAX_SERIES: usize = 600;

#[test]
fn metrics_have_the_known_names_and_correct_values() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let (plugin, debug) = start(&server, guest_port, json!({})).await;
        plugin.increase(2).await.unwrap();
        let names = reach(&plugin, 2, State::Running).await;
        plugin.decrease(&[&names[0]]).await.unwrap();
        reach(&plugin, 1, State::Running).await;
        let answer =
            ask(&debug, "GET", "/metrics", "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4");
        assert!(answer.head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{}", answer.head);
        let page = answer.body;
        let (kinds, samples) = (kinds(&page), read_samples(&page));

        for (name, kind, label, buckets) in KNOWN {
            let name = format!("fleeting_vcd_{name}");
            assert_eq!(kinds.get(&name).map(String::as_str), Some(*kind), "{name}");
            let with = if label.is_empty() { "}".to_owned() } else { format!(",{label}=\"") };
            let start = match *kind {
                "histogram" if label.is_empty() => format!("{name}_count{{instance_group=\"ci-linux\"}}"),
                "histogram" => format!("{name}_count{{instance_group=\"ci-linux\"{with}"),
                _ => format!("{name}{{instance_group=\"ci-linux\"{with}"),
            };
            assert!(samples.keys().any(|sample| sample.starts_with(&start)), "{start} is missing in\n{page}");
            let start = format!("{name}_bucket{{");
            let found: BTreeSet<&str> = page
                .lines()
                .filter(|line| line.starts_with(&start))
                .map(|line| line.split_once("le=\"").unwrap().1.split_once('"').unwrap().0)
                .collect();
            let mut wanted: BTreeSet<&str> = buckets.split_whitespace().collect();
            wanted.extend((*kind == "histogram").then_some("+Inf"));
            assert_eq!(found, wanted, "{name}");
        }
        assert!(samples.keys().all(|sample| sample.contains("{instance_group=\"ci-linux\"")), "{page}");
        for name in ["process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"] {
            assert!(samples[&format!("{name}{{instance_group=\"ci-linux\"}}")] > 0.0, "{name}");
        }

        let value = |name: &str, more: &str| {
            let key = format!("fleeting_vcd_{name}{{instance_group=\"ci-linux\"{more}}}");
            *samples.get(&key).unwrap_or_else(|| panic!("{key} is missing in\n{page}"))
        };
        assert_eq!((value("instances_created_total", ""), value("instances_deleted_total", "")), (2.0, 1.0));
        assert_eq!(value("instances_failed_total", ",operation=\"create\""), 0.0);
        assert_eq!(value("instances_current", ",state=\"Running\""), 1.0);
        assert_eq!(value("instances_current", ",state=\"Deleted\""), 1.0);
        assert_eq!((value("pool_size", ""), value("pool_max_size", "")), (1.0, 128.0));
        assert_eq!(value("state_manager_instances_total", ""), 2.0);
        for (state, count) in
            [("creating", 0.0), ("running", 1.0), ("deleting", 0.0), ("deleted", 1.0), ("timeout", 0.0)]
        {
            assert_eq!(value("state_manager_instances_by_state", &format!(",state=\"{state}\"")), count, "{state}");
        }
        let build = samples.iter().find(|(name, _)| name.starts_with("fleeting_vcd_build_info{")).unwrap();
        assert!(build.0.contains(&format!("version=\"{VERSION}\"")) && *build.1 == 1.0, "{build:?}");
        assert_eq!((value("instances_stuck", ""), value("oldest_pending_create_seconds", "")), (0.0, 0.0));
        assert_eq!(value("instance_creation_duration_seconds_count", ""), 2.0);
        assert_eq!(value("instance_deletion_duration_seconds_count", ""), 1.0);
        assert_eq!(value("creation_overhead_seconds_count", ",part=\"notice\""), 2.0);
        let took = value("instance_creation_duration_seconds_sum", "");
        let added = value("creation_overhead_seconds_sum", ",part=\"notice\"");
        assert!(0.0 < added && added < took, "{added} of {took} s");
        assert_eq!(value("task_duration_seconds_count", ",operation=\"create\""), 2.0);
        assert_eq!(value("task_duration_seconds_count", ",operation=\"delete\""), 1.0);
        assert_eq!(value("api_calls_total", ",operation=\"create\""), server.requests("instantiate") as f64);
        assert_eq!(
            value("api_calls_total", ",operation=\"create\""),
            value("api_duration_seconds_count", ",operation=\"create\"")
        );
        assert_eq!(value("api_calls_total", ",operation=\"login\""), 1.0);
        assert!(value("reconcile_total", "") >= 1.0);
        assert!(value("last_reconcile_timestamp_seconds", "") > 1.7e9);
        assert_eq!(value("slots", ",limit=\"creates\""), 3.0);
        assert_eq!(value("session_valid", ""), 1.0);

        // Buckets are cumulative, and the last one is the count.
        for (key, count) in samples.iter().filter(|(key, _)| key.contains("_bucket{")) {
            let all = key.replace("_bucket{", "_count{");
            let all = all.split_once(",le=").unwrap().0.to_owned() + "}";
            assert!(*count <= samples[&all], "{key}");
        }
        assert!(samples.len() < MAX_SERIES, "{} series", samples.len());
        plugin.increase(5).await.unwrap();
        reach(&plugin, 6, State::Running).await;
        assert_eq!(read_samples(&get(&debug, "/metrics")).len(), samples.len(), "more instances do not add series");
        end(plugin).await;
    });
}

/// All metric names in `text`.
fn metric_names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("fleeting_vcd_") || word.starts_with("process_")).collect()
}

#[test]
fn the_dashboard_and_the_alerts_use_names_that_exist() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let (plugin, debug) = start(&server, guest_port, json!({})).await;
        let kinds = kinds(&get(&debug, "/metrics"));
        let mut known: BTreeSet<String> = kinds.keys().cloned().collect();
        for (name, _) in kinds.iter().filter(|(_, kind)| *kind == "histogram") {
            known.extend(["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")));
        }
        let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
        let read = |name: &str| std::fs::read_to_string(docs.join(name)).unwrap();
        let (dashboard, guide, alerts) = (read("grafana-dashboard.json"), read("monitoring.md"), read("alerts.yml"));
        for (file, text) in [("grafana-dashboard.json", &dashboard), ("monitoring.md", &guide), ("alerts.yml", &alerts)]
        {
            let names = metric_names(text);
            assert!(names.len() > 5, "{file} uses only {names:?}");
            let unknown: Vec<_> = names.iter().filter(|name| !known.contains(**name)).collect();
            assert!(unknown.is_empty(), "{file}: {unknown:?}");
        }
        let documented = metric_names(&guide);
        let missing: Vec<_> = kinds.keys().filter(|name| !documented.contains(name.as_str())).collect();
        assert!(missing.is_empty(), "monitoring.md does not mention {missing:?}");
        let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
        let panels = dashboard["panels"].as_array().unwrap();
        let queries = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
        assert!(queries.clone().count() >= panels.len() - 1, "every panel except the text has a query");
        assert!(queries.into_iter().all(|query| query["expr"].as_str().is_some_and(|expr| expr.contains("$group"))));
        for panel in panels {
            assert!(panel["description"].as_str().is_some_and(|text| text.len() > 20), "{}", panel["title"]);
        }
        // Every key of the JSON is documented.
        let status: Value = serde_json::from_str(&get(&debug, "/api/status")).unwrap();
        for key in status.as_object().unwrap().keys() {
            assert!(guide.contains(&format!("`{key}`")), "monitoring.md does not mention {key}");
        }
        plugin.increase(1).await.unwrap();
        until("an instance", || get(&debug, "/api/status").contains("NextRetryAfter")).await;
        let status: Value = serde_json::from_str(&get(&debug, "/api/status")).unwrap();
        for part in [&status["Instances"][0], &status["Events"][0]] {
            for key in part.as_object().unwrap().keys() {
                assert!(guide.contains(&format!("`{key}`")), "monitoring.md does not mention {key}");
            }
        }
        end(plugin).await;
    });
}

#[test]
fn a_lost_session_is_not_healthy() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let (plugin, debug) = start(&server, guest_port, json!({"reconcile_interval": "1s"})).await;
        assert_eq!(ask(&debug, "GET", "/healthz", "*/*").status, 200);
        server.with_model(|model| {
            model.admin_revoke_token("sim-api-token");
            model.admin_expire_bearers();
        });
        until("503", || ask(&debug, "GET", "/healthz", "*/*").status == 503).await;
        let health = ask(&debug, "GET", "/healthz", "*/*").body;
        assert!(health.contains("there is no session with VCD: log in to org"), "{health}");
        let status: Value = serde_json::from_str(&get(&debug, "/api/status")).unwrap();
        assert_eq!((&status["Healthy"], &status["Session"]["State"]), (&json!(false), &json!("none")));
        let page = get(&debug, "/");
        assert!(page.contains("!session   none") && page.contains("!last poll"), "{page}");
        end(plugin).await;
    });
}

#[test]
fn a_unix_socket_is_private_and_replaces_a_dead_one() {
    use std::os::unix::fs::PermissionsExt;
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let dir = std::env::temp_dir().join(format!("vcd-debug-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("debug.sock");
        // The socket of a dead process.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let mut config = fleet::plugin_config(&server);
        config["debug_server_addr"] = format!("unix:{}", path.display()).into();
        let config = config.to_string();
        let plugin = PluginProcess::start(command(BINARY)).await;
        plugin.init(config.as_bytes(), fleet::connector(guest_port)).await.unwrap();
        plugin.logged("debug server at unix:").await;
        let text = exchange(UnixStream::connect(&path).unwrap(), "GET / HTTP/1.0\r\n\r\n");
        assert!(text.status == 200 && text.body.contains("(no instances)"), "{}", text.body);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        // A second plugin finds it in use, reports this, and continues.
        let second = PluginProcess::start(command(BINARY)).await;
        second.init(config.as_bytes(), fleet::connector(guest_port)).await.unwrap();
        second.logged("the plugin continues without a debug server").await;
        assert_eq!(second.update().await.unwrap(), []);
        end(second).await;
        assert!(UnixStream::connect(&path).is_ok(), "the first plugin's socket is untouched");

        end(plugin).await;
        assert!(!path.exists(), "the socket is deleted when its process ends");
        // A file that is no socket is not deleted.
        std::fs::write(&path, "precious").unwrap();
        let plugin = PluginProcess::start(command(BINARY)).await;
        plugin.init(config.as_bytes(), fleet::connector(guest_port)).await.unwrap();
        plugin.logged("the plugin continues without a debug server").await;
        end(plugin).await;
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        std::fs::remove_dir_all(&dir).unwrap();
    });
}

#[test]
fn a_port_in_use_and_a_public_address_cause_warnings() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let mut config = fleet::plugin_config(&server);
        config["debug_server_addr"] = address.as_str().into();
        let plugin = PluginProcess::start(command(BINARY)).await;
        plugin.init(config.to_string().as_bytes(), fleet::connector(guest_port)).await.unwrap();
        plugin.logged(&format!("listen at debug_server_addr {address}: Address already in use")).await;
        assert_eq!(plugin.increase(1).await.unwrap(), 1);
        reach(&plugin, 1, State::Running).await;
        let log = end(plugin).await;
        let line = log.iter().find(|line| line.contains("debug_server_addr")).unwrap();
        assert!(line.contains("\"@level\":\"warn\"") && line.contains("continues without a debug server"), "{line}");

        config["debug_server_addr"] = format!("0.0.0.0:{}", fleet::free_port()).into();
        let plugin = PluginProcess::start(command(BINARY)).await;
        plugin.init(config.to_string().as_bytes(), fleet::connector(guest_port)).await.unwrap();
        plugin.logged("anyone who can reach this address can read it").await;
        end(plugin).await;
    });
}

#[test]
fn request_heads_have_a_size_and_time_limit() {
    use fleeting_plugin_vcd::debug::MAX_HEADER_BYTES;
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let (plugin, debug) = start(&server, guest_port, json!({})).await;
        let request = |padding: usize| {
            let padding = "x".repeat(padding);
            format!("GET /healthz HTTP/1.1\r\nHost: {debug}\r\nConnection: close\r\nX-Padding: {padding}\r\n\r\n")
        };
        assert_eq!(exchange(connect(&debug), &request(4_000)).status, 200);
        let mut long = connect(&debug);
        // The server may close the connection before it has read everything.
        let _ = long.write_all(request(MAX_HEADER_BYTES * 8).as_bytes());
        let mut answer = Vec::new();
        let _ = long.read_to_end(&mut answer);
        assert!(!String::from_utf8_lossy(&answer).contains("200 OK"));

        // A client that stops sending is disconnected.
        let mut slow = connect(&debug);
        slow.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n").unwrap();
        let mut answer = Vec::new();
        let _ = slow.read_to_end(&mut answer);
        assert!(!String::from_utf8_lossy(&answer).contains("200 OK"));
        end(plugin).await;
    });
}

const REQUESTS: usize = 10_000;
/// Number of requests on one connection.
const ON_ONE: usize = 100;
/// Number of requests after which everything that is created once exists.
const WARM_UP: usize = 1_000;
/// Maximum growth of resident memory, in kB, which the allocator causes.
const MAX_GROWTH_KB: u64 = 2_048;
/// Maximum CPU time of an idle plugin in [`IDLE`], in seconds. One poll is in it.
const MAX_IDLE_CPU: f64 = 0.3;
const IDLE: Duration = Duration::from_secs(2);

fn sends(debug: &str, count: usize) {
    let paths = ["/", "/metrics", "/api/status", "/healthz", "/instances/none", "/?width=120"];
    for start in (0..count).step_by(ON_ONE) {
        let mut requests = String::new();
        for at in start..start + ON_ONE {
            let accept = if at % 12 < 6 { "text/html" } else { "*/*" };
            let last = if at + 1 == start + ON_ONE { "Connection: close\r\n" } else { "" };
            requests += &format!("GET {} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n{last}\r\n", paths[at % 6]);
        }
        let mut stream = connect(debug);
        let mut writer = stream.try_clone().unwrap();
        let sender = std::thread::spawn(move || writer.write_all(requests.as_bytes()).unwrap());
        let mut answers = Vec::new();
        stream.read_to_end(&mut answers).unwrap();
        sender.join().unwrap();
        let answers = String::from_utf8(answers).unwrap();
        assert_eq!(answers.matches("HTTP/1.1 ").count(), ON_ONE);
    }
}

#[test]
fn ten_thousand_requests_leak_nothing() {
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let (plugin, debug) = start(&server, guest_port, json!({})).await;
        plugin.increase(3).await.unwrap();
        reach(&plugin, 3, State::Running).await;
        let process = plugin.child.id();
        let memory = || -> u64 {
            let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
            let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        let count = |folder: &str| std::fs::read_dir(format!("/proc/{process}/{folder}")).unwrap().count();
        let cpu = || read_samples(&get(&debug, "/metrics"))["process_cpu_seconds_total{instance_group=\"ci-linux\"}"];
        sends(&debug, WARM_UP);
        let (before, threads, files) = (memory(), count("task"), count("fd"));
        sends(&debug, REQUESTS);
        let after = memory();
        println!("{before} kB before, {after} kB after {REQUESTS} requests");
        assert!(after <= before + MAX_GROWTH_KB, "{before} kB before, {after} kB after");
        assert_eq!(count("task"), threads);
        until("as many open files as before", || count("fd") <= files).await;
        let began = cpu();
        Timer::after(IDLE).await;
        let used = cpu() - began;
        assert!(used < MAX_IDLE_CPU, "{used} s of CPU in {IDLE:?}");
        end(plugin).await;
    });
}

/// Checks the metrics page of a plugin at work with Prometheus's tool: `PROMTOOL=promtool cargo test … -- --ignored`.
#[test]
#[ignore = "needs promtool"]
fn promtool_accepts_metrics_and_alerts() {
    use std::process::{Command, Stdio};
    let promtool = std::env::var("PROMTOOL").unwrap_or_else(|_| "promtool".into());
    block_on(async {
        let (server, guest_port) = fleet::simulator(SCALE);
        let (plugin, debug) = start(&server, guest_port, json!({"instance_group_name": "a \"b\" \\c"})).await;
        plugin.increase(2).await.unwrap();
        let names = reach(&plugin, 2, State::Running).await;
        plugin.decrease(&[&names[0]]).await.unwrap();
        reach(&plugin, 1, State::Running).await;
        let page = get(&debug, "/metrics");
        end(plugin).await;
        let mut check = Command::new(&promtool)
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("promtool runs");
        check.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
        let output = check.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        // Users of the Go plugin know a gauge with this name.
        let kept = "fleeting_vcd_state_manager_instances_total non-counter metrics should not have \"_total\" suffix";
        let rest: Vec<&str> = said.lines().filter(|line| *line != kept).collect();
        assert!(rest.is_empty(), "{rest:#?}");
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/alerts.yml");
        let rules = Command::new(&promtool).args(["check", "rules", file]).output().unwrap();
        assert!(rules.status.success(), "{}", String::from_utf8_lossy(&rules.stderr));
        assert!(String::from_utf8_lossy(&rules.stdout).contains("rules found"));
    });
}
