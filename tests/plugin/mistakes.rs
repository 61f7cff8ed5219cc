//! Mistakes in a config.toml, and what `check` says about each: one row per mistake.

use crate::fleet;
use std::path::PathBuf;
use std::process::Command;

const BINARY: &str = env!("CARGO_BIN_EXE_fleeting-plugin-vcd");

/// A correct runner, for the simulator at URL.
const GOOD: &str = r#"concurrent = 4
shutdown_timeout = 80

[[runners]]
  name = "vcd"
  url = "https://gitlab.example.com"
  token = "glrt-1"
  executor = "docker-autoscaler"
  [runners.docker]
    image = "busybox:latest"
  [runners.autoscaler]
    plugin = "fleeting-plugin-vcd"
    capacity_per_instance = 1
    max_use_count = 1
    max_instances = 4
    [runners.autoscaler.plugin_config]
      name = "runner-1"
      url = "URL/api"
      org = "ci-org"
      token = "sim-api-token"
      virtual_datacenter = "ci-vdc"
      network = "ci-net"
      ip_allocation_mode = "POOL"
      instance_group_name = "ci-linux"
      vapp_name_prefix = "ci"
      catalog = "ci-catalog"
      template = "ubuntu-22.04"
      storage_profile = "ssd"
      cpu_count = 2
      cores_per_socket = 1
      memory_mb = 4096
    [runners.autoscaler.connector_config]
      use_static_credentials = true
      username = "root"
      password = "s3cret-Pa55word"
    [[runners.autoscaler.policy]]
      idle_count = 1
      idle_time = "20m0s"
"#;

/// The replaced text, its replacement, the verdict, the topic, and words of the finding.
type Row = (&'static str, &'static str, &'static str, &'static str, &'static str);

const PASSWORD: &str = "      password = \"s3cret-Pa55word\"\n";
const POLICY: &str = "    [[runners.autoscaler.policy]]\n      idle_count = 1\n      idle_time = \"20m0s\"\n";
const DOCKER: &str = "  [runners.docker]\n    image = \"busybox:latest\"\n";
const DEBUG: &str = "      memory_mb = 4096\n";

const ROWS: &[Row] = &[
    // Mistakes in the whole file. They end the check, with a message on stderr.
    ("concurrent = 4", "concurrent = ", "stderr", "", "is not valid TOML: line 1"),
    (
        "plugin = \"fleeting-plugin-vcd\"",
        "plugin = \"fleeting-plugin-vcloud\"",
        "stderr",
        "",
        "none of the 1 [[runners]] sections has plugin = \"fleeting-plugin-vcd\" in [runners.autoscaler]; found: \"fleeting-plugin-vcloud\"",
    ),
    ("    plugin = \"fleeting-plugin-vcd\"\n", "", "stderr", "", "none of the 1 [[runners]] sections has plugin"),
    ("[[runners]]", "[runners]", "stderr", "", "none of the 0 [[runners]] sections"),
    // Names that do not exist in VCD.
    ("\"ssd\"", "\"SSD\"", "FAIL", "storage profile", "-> did you mean \"ssd\"?"),
    ("\"ssd\"", "\"sdd\"", "FAIL", "storage profile", "there is no storage profile with this name"),
    ("\"ssd\"", "\"gold\"", "FAIL", "storage profile", "-> the user can see \"ssd\""),
    ("ubuntu-22.04", "ubuntu-22-04", "FAIL", "template", "-> did you mean \"ubuntu-22.04\"?"),
    ("ubuntu-22.04", "Ubuntu-22.04", "FAIL", "template", "-> did you mean \"ubuntu-22.04\"?"),
    ("ubuntu-22.04", "fedora", "FAIL", "template", "-> the user can see "),
    ("\"ci-catalog\"", "\"ci-catalogue\"", "FAIL", "catalog", "-> did you mean \"ci-catalog\"?"),
    ("\"ci-net\"", "\"ci-nett\"", "FAIL", "network", "-> did you mean \"ci-net\"?"),
    ("\"ci-vdc\"", "\"ci_vdc\"", "FAIL", "VDC", "-> did you mean \"ci-vdc\"?"),
    ("\"ci-org\"", "\"ci-orgs\"", "FAIL", "token", "is not of org \"ci-orgs\""),
    ("sim-api-token", "sim-api-tokem", "FAIL", "token", "VCD rejected the API token"),
    // Keys that are missing, in the wrong place or misspelt.
    ("      org = \"ci-org\"\n", "", "FAIL", "configuration", "missing required plugin config: org"),
    (
        "      token = \"sim-api-token\"\n",
        "",
        "FAIL",
        "configuration",
        "missing required plugin config: token (or token_file",
    ),
    ("org =", "orgg =", "warn", "configuration", "unknown key orgg is ignored, did you mean org?"),
    ("storage_profile =", "storage-profile =", "warn", "configuration", "did you mean storage_profile?"),
    ("memory_mb =", "memory =", "FAIL", "configuration", "missing required plugin config: memory_mb"),
    (
        DEBUG,
        "      memory_mb = 4096\n      colour = \"red\"\n",
        "warn",
        "configuration",
        "unknown key colour is ignored",
    ),
    (
        "    max_instances = 4\n",
        "    max_instances = 4\n    max_concurrent_creates = 9\n",
        "warn",
        "runner",
        "max_concurrent_creates is in [runners.autoscaler], where GitLab Runner ignores it",
    ),
    (
        "  executor =",
        "  storage_profile = \"ssd\"\n  executor =",
        "warn",
        "runner",
        "storage_profile is in [[runners]], where GitLab Runner ignores it",
    ),
    (
        "      username = \"root\"\n",
        "      username = \"root\"\n      debug_server_addr = \"127.0.0.1:27060\"\n",
        "warn",
        "runner",
        "debug_server_addr is in [runners.autoscaler.connector_config]",
    ),
    // Invalid values.
    ("\"POOL\"", "\"pool\"", "FAIL", "configuration", "invalid ip_allocation_mode: pool (expected POOL or DHCP)"),
    (
        "cpu_count = 2",
        "cpu_count = \"2\"",
        "FAIL",
        "configuration",
        "cpu_count: expected a whole number, found a string",
    ),
    ("cpu_count = 2", "cpu_count = 2.5", "FAIL", "configuration", "cpu_count: expected a whole number"),
    ("cpu_count = 2", "cpu_count = -2", "FAIL", "configuration", "cpu_count: -2 is not from 0 to 1024"),
    ("cores_per_socket = 1", "cores_per_socket = 3", "FAIL", "configuration", "does not divide cpu_count 2"),
    ("memory_mb = 4096", "memory_mb = 4097", "FAIL", "configuration", "4097 is not a multiple of 4"),
    ("memory_mb = 4096", "memory_mb = 4", "warn", "configuration", "4 MB is too little for a guest; 4 GB is 4096"),
    ("memory_mb = 4096", "memory_mb = 999999999", "FAIL", "configuration", "is not from 0 to"),
    (DEBUG, "      memory_mb = 4096\n      disk_size_gb = 1\n", "FAIL", "template", "disks cannot shrink"),
    (
        DEBUG,
        "      memory_mb = 4096\n      create_timeout = \"20\"\n",
        "FAIL",
        "configuration",
        "create_timeout: expected a duration",
    ),
    (
        DEBUG,
        "      memory_mb = 4096\n      create_timeout = 20\n",
        "FAIL",
        "configuration",
        "create_timeout: expected a duration",
    ),
    (
        DEBUG,
        "      memory_mb = 4096\n      session_refresh_interval = \"25h\"\n",
        "FAIL",
        "configuration",
        "is not from",
    ),
    (
        DEBUG,
        "      memory_mb = 4096\n      on_shutdown = \"stop\"\n",
        "FAIL",
        "configuration",
        "invalid on_shutdown: stop",
    ),
    (DEBUG, "      memory_mb = 4096\n      lease = \"24h\"\n", "FAIL", "configuration", "invalid lease: 24h"),
    (
        DEBUG,
        "      memory_mb = 4096\n      reconcile_interval = \"10m\"\n",
        "warn",
        "configuration",
        "notices lost VMs up to 10m0s late",
    ),
    (DEBUG, "      memory_mb = 4096\n      max_size = 2\n", "FAIL", "runner", "max_instances 4 is above max_size 2"),
    ("vapp_name_prefix = \"ci\"", "vapp_name_prefix = \"ci linux\"", "FAIL", "configuration", "found ' '"),
    ("\"ci-catalog\"", "\"ci-catalog \"", "warn", "configuration", "catalog: begins or ends with white space"),
    ("sim-api-token", "sim-api-token ", "FAIL", "configuration", "token: contains white space"),
    ("\"ci-net\"", "\"urn:vcloud:vdc:1\"", "FAIL", "configuration", "network: expected the name of a network"),
    // The url.
    ("\"URL/api\"", "\"vcd.example.com/api\"", "FAIL", "configuration", "must begin with https:// or http://"),
    ("\"URL/api\"", "\"URL/tenant/ci-org\"", "FAIL", "configuration", "has a path that does not end in /api"),
    (
        "\"URL/api\"",
        "\"https://user:pass@vcd.example.com/api\"",
        "FAIL",
        "configuration",
        "must not contain a user name",
    ),
    ("\"URL/api\"", "\"http://127.0.0.1:9/api\"", "FAIL", "URL and TLS", "onnection refused"),
    ("\"URL/api\"", "\"URL\"", "warn", "configuration", "with http:// the token is sent unencrypted"),
    // Files.
    (
        DEBUG,
        "      memory_mb = 4096\n      ca_file = \"~/ca.pem\"\n",
        "FAIL",
        "URL and TLS",
        "-> ~ is not expanded: write the full path",
    ),
    (
        "token = \"sim-api-token\"",
        "token_file = \"~/token\"",
        "FAIL",
        "token",
        "-> ~ is not expanded: write the full path",
    ),
    (
        "token = \"sim-api-token\"",
        "token_file = \"/no/such\"",
        "FAIL",
        "token",
        "-> the file must exist on the machine of GitLab Runner",
    ),
    (
        DEBUG,
        "      memory_mb = 4096\n      user_data_file = \"~/user-data\"\n",
        "FAIL",
        "configuration",
        "user_data_file: ~/user-data: No such file or directory (os error 2); ~ is not expanded",
    ),
    (
        PASSWORD,
        "      key_path = \"~/.ssh/id\"\n",
        "FAIL",
        "configuration",
        "connector_config: key_path: ~/.ssh/id: No such file or directory (os error 2); ~ is not expanded: write the full path",
    ),
    (
        PASSWORD,
        "      key_path = \"/no/key\"\n",
        "FAIL",
        "configuration",
        "connector_config: key_path: /no/key: No such file",
    ),
    (PASSWORD, "      key_path = \"/etc/hostname\"\n", "FAIL", "configuration", "connector_config: key_path: "),
    // The connector.
    (PASSWORD, "", "FAIL", "configuration", "needs username and password, or key_path"),
    (
        "use_static_credentials = true",
        "use_static_credentials = false",
        "FAIL",
        "configuration",
        "with false the plugin generates credentials",
    ),
    (
        "      username = \"root\"\n",
        "      username = \"root\"\n      protocol = \"rdp\"\n",
        "FAIL",
        "configuration",
        "expected ssh, winrm",
    ),
    (
        "      username = \"root\"\n",
        "      username = \"root\"\n      protocol = \"winrm\"\n",
        "warn",
        "credentials",
        "winrm is for windows",
    ),
    (
        "      username = \"root\"\n",
        "      username = \"root\"\n      os = \"Linux\"\n",
        "FAIL",
        "configuration",
        "os: expected linux or windows",
    ),
    (
        "      username = \"root\"\n",
        "      username = \"root\"\n      protocol_port = 70000\n",
        "FAIL",
        "configuration",
        "70000 is not from 0 to 65535",
    ),
    (
        "      username = \"root\"\n",
        "      username = \"root\"\n      timeout = \"10\"\n",
        "FAIL",
        "configuration",
        "timeout: \"10\" is not a duration",
    ),
    (
        "      username = \"root\"\n",
        "      username = \"root\"\n      timeout = 600\n",
        "warn",
        "runner",
        "timeout = 600: a number without a unit is in nanoseconds",
    ),
    // The runner's own settings.
    ("docker-autoscaler", "docker+machine", "FAIL", "runner", "executor \"docker+machine\" does not autoscale"),
    (DOCKER, "", "warn", "runner", "without [runners.docker]: jobs fail"),
    (POLICY, "", "warn", "runner", "no [[runners.autoscaler.policy]]: no VM is kept ready"),
    (
        "idle_time = \"20m0s\"",
        "idle_time = \"20\"",
        "FAIL",
        "configuration",
        "policy: idle_time: \"20\" is not a duration",
    ),
    (
        "idle_time = \"20m0s\"",
        "idle_time = 1200",
        "warn",
        "runner",
        "policy: idle_time = 1200: a number without a unit is in nanoseconds",
    ),
    ("idle_count = 1", "idle_count = 9", "warn", "runner", "a policy keeps 9 idle, but only 4 jobs fit"),
    ("    max_instances = 4\n", "", "warn", "runner", "max_instances is not set"),
    ("    max_instances = 4\n", "    max_instances = 500\n", "FAIL", "runner", "above max_size 128"),
    ("    capacity_per_instance = 1\n", "", "warn", "runner", "capacity_per_instance is not set"),
    ("concurrent = 4", "concurrent = 1", "note", "runner", "allows fewer jobs than the 4"),
    ("shutdown_timeout = 80", "shutdown_timeout = 5", "warn", "runner", "shutdown_timeout is 5 s: VCD may take longer"),
    (
        "shutdown_timeout = 80",
        "shutdown_timeout = 600",
        "warn",
        "runner",
        "shutdown_timeout is 600 s: after 90 s systemd kills",
    ),
    (
        "    max_instances = 4\n",
        "    max_instances = 4\n    update_interval = \"5m0s\"\n",
        "warn",
        "runner",
        "update_interval is 300 s: GitLab Runner notices",
    ),
    (
        "    max_instances = 4\n",
        "    max_instances = 4\n    update_interval_when_expecting = \"1m\"\n",
        "warn",
        "runner",
        "update_interval_when_expecting is 60 s",
    ),
    // The standby pool.
    (
        DEBUG,
        "      memory_mb = 4096\n      standby_count = 4\n",
        "note",
        "standby",
        "4 suspended VMs in addition to max_size",
    ),
    (
        DEBUG,
        "      memory_mb = 4096\n      standby_count = 5\n",
        "warn",
        "standby",
        "standby_count is 5, but GitLab Runner wants at most 4 instances -> lower standby_count",
    ),
    (
        DEBUG,
        "      memory_mb = 4096\n      standby_count = 1001\n",
        "FAIL",
        "configuration",
        "standby_count: 1001 is not from 0 to 1000",
    ),
    (
        DEBUG,
        "      memory_mb = 4096\n      standby_count = 4\n      standby_max_age = \"1d\"\n",
        "FAIL",
        "configuration",
        "standby_max_age: expected a duration",
    ),
    (
        "      ip_allocation_mode = \"POOL\"\n",
        "      ip_allocation_mode = \"DHCP\"\n      standby_count = 4\n",
        "note",
        "standby",
        "-> set standby_max_age below half the lease time of the DHCP server",
    ),
    // The debug server.
    (
        DEBUG,
        "      memory_mb = 4096\n      debug_server_addr = \"0.0.0.0:27060\"\n",
        "warn",
        "configuration",
        "debug_server_addr: 0.0.0.0:27060: anyone",
    ),
    (
        DEBUG,
        "      memory_mb = 4096\n      debug_server_addr = \"[::]:27060\"\n",
        "warn",
        "configuration",
        "debug_server_addr: [::]:27060: anyone",
    ),
    (
        DEBUG,
        "      memory_mb = 4096\n      debug_server_addr = \"192.168.1.5:27060\"\n",
        "warn",
        "configuration",
        "anyone who can reach",
    ),
    (
        DEBUG,
        "      memory_mb = 4096\n      debug_server_addr = \":27060\"\n",
        "warn",
        "configuration",
        "debug_server_addr: 0.0.0.0:27060: anyone",
    ),
    (
        DEBUG,
        "      memory_mb = 4096\n      debug_server_addr = \"27060\"\n",
        "FAIL",
        "configuration",
        "debug_server_addr: expected HOST:PORT",
    ),
];

/// A file that is deleted when this is dropped.
struct File(PathBuf);

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The status, stdout and stderr of a check of this text.
fn check(name: &str, text: &str) -> (i32, String, String) {
    let file = File(std::env::temp_dir().join(format!("vcd-mistakes-{name}-{}.toml", std::process::id())));
    std::fs::write(&file.0, text).unwrap();
    let output = Command::new(BINARY).args(["check", "--config"]).arg(&file.0).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    for secret in ["sim-api-token", "s3cret-Pa55word", "glrt-1", "Bearer "] {
        assert!(!stdout.contains(secret) && !stderr.contains(secret), "{secret:?} in {stdout}{stderr}");
    }
    (output.status.code().unwrap(), stdout, stderr)
}

/// The findings of this kind, each in one line with its advice.
fn findings(stdout: &str, verdict: &str, topic: &str) -> Vec<String> {
    let start = format!("  {verdict:4}  {topic:16} ");
    let mut all: Vec<String> = Vec::new();
    let mut ours = false;
    for line in stdout.lines() {
        let advice = line.trim_start().starts_with("-> ");
        match line.strip_prefix(&start) {
            Some(text) => all.push(text.to_owned()),
            None if advice && ours => all.last_mut().unwrap().push_str(&format!(" {}", line.trim())),
            None => {}
        }
        ours = line.starts_with(&start) || (ours && advice);
    }
    all
}

#[test]
fn each_mistake_is_reported_with_its_row_and_a_fix() {
    let (server, _) = fleet::simulator(50.0);
    let good = GOOD.replace("URL", &server.url());
    let (status, stdout, stderr) = check("good", &good);
    assert_eq!(
        (status, stderr.as_str(), stdout.matches("  warn  ").count()),
        (0, "", 1),
        "only the warning about http: {stdout}"
    );
    assert!(ROWS.len() > 72);
    let mut wrong = Vec::new();
    for (index, (from, to, verdict, topic, words)) in ROWS.iter().enumerate() {
        assert!(GOOD.contains(from), "row {index}: {from}");
        let (status, stdout, stderr) =
            check(&index.to_string(), &GOOD.replacen(from, to, 1).replace("URL", &server.url()));
        let told = match *verdict {
            "stderr" => status == 1 && stderr.contains(words),
            _ => findings(&stdout, verdict, topic).iter().any(|finding| finding.contains(words)),
        };
        // Only a failure fails the check.
        let fails = stdout.contains("  FAIL  ") || *verdict == "stderr";
        if !told || fails != (status == 1) || (*verdict == "FAIL" && !fails) {
            wrong.push(format!(
                "row {index}: {to:?}: expected {verdict} {topic} {words:?}, status {status}: {stdout}{stderr}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn one_mistake_hides_no_other_and_a_warning_is_no_error() {
    let (server, _) = fleet::simulator(50.0);
    let text = GOOD
        .replace("URL", &server.url())
        .replace("memory_mb = 4096", "memory_mb = 7")
        .replace("\"ssd\"", "\"SSD\"")
        .replace("      vapp_name_prefix = \"ci\"\n", "")
        .replace("\"ci-net\"", "\"urn:vcloud:vdc:1\"")
        .replace("shutdown_timeout = 80", "shutdown_timeout = 5");
    let (status, stdout, _) = check("all", &text);
    assert_eq!(status, 1);
    let mistakes = findings(&stdout, "FAIL", "configuration");
    assert_eq!(mistakes.len(), 3, "{stdout}");
    let url = "explains each key";
    assert!(mistakes[2].contains("/docs/configuration.md") && mistakes[2].ends_with(url), "{stdout}");
    assert_eq!(findings(&stdout, "warn", "configuration").len(), 2, "http and little memory: {stdout}");
    assert_eq!(findings(&stdout, "warn", "runner").len(), 1, "{stdout}");
    // VCD gets every query that is possible.
    for topic in ["URL and TLS", "token", "VDC", "template", "rights"] {
        assert_eq!(findings(&stdout, "ok", topic).len(), 1, "{topic}: {stdout}");
    }
    assert_eq!(
        findings(&stdout, "FAIL", "storage profile"),
        [
            "find storage profile \"SSD\": there is no storage profile with this name in VDC \"ci-vdc\" of org \"ci-org\" -> did you mean \"ssd\"?"
        ]
    );
    assert!(findings(&stdout, "FAIL", "network").is_empty(), "already reported: {stdout}");
    assert!(stdout.ends_with("4 failures, 3 warnings\n"), "{stdout}");
}

#[test]
fn a_key_that_cannot_be_read_is_one_mistake() {
    let (server, _) = fleet::simulator(50.0);
    let text = GOOD.replace("URL", &server.url()).replace(PASSWORD, "      key_path = \"/no/key\"\n");
    let (status, stdout, _) = check("key", &text);
    assert_eq!((status, stdout.matches("  FAIL  ").count()), (1, 1), "{stdout}");
    assert!(findings(&stdout, "ok", "credentials").is_empty(), "{stdout}");
}

#[test]
fn an_invalid_command_line_gets_a_suggestion() {
    for (words, expected) in [
        (&["chekc"][..], "did you mean check?"),
        (&["check", "config.toml"], "did you mean check --config config.toml?"),
        (&["check", "--ofline"], "did you mean --offline?"),
        (&["list", "--josn"], "did you mean --json?"),
    ] {
        let output = Command::new(BINARY).args(words).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && said.contains(expected), "{words:?}: {said}");
    }
    for words in [&["-h"][..], &["check", "-h"], &["--help"]] {
        let output = Command::new(BINARY).args(words).output().unwrap();
        assert!(output.status.success() && output.stdout.starts_with(b"Usage:"), "{words:?}");
    }
}
