use super::*;
use crate::group::Labels;
use serde_json::json;
use std::collections::BTreeMap;

const TOKEN: &str = "Tok3nTok3nTok3nTok3nTok3nTok3n00";
const PASSWORD: &str = "g3heim-und-lang";
const KEY: &[u8] = include_bytes!("../access/testdata/ed25519");

fn plugin_config() -> Value {
    json!({
        "name": "manager-1", "url": "https://vcd.example.com/api", "org": "acme", "token": TOKEN,
        "virtual_datacenter": "vdc-1", "network": "ci-net", "ip_allocation_mode": "POOL",
        "instance_group_name": "linux-small", "vapp_name_prefix": "ci-linux", "catalog": "images",
        "template": "debian-13", "storage_profile": "fast", "cpu_count": 4, "cores_per_socket": 2, "memory_mb": 8192,
    })
}

fn connector() -> Connector {
    Connector {
        username: "ci".into(),
        password: PASSWORD.into(),
        key: KEY.into(),
        use_static_credentials: true,
        keepalive: 30_000_000_000,
        timeout: 600_000_000_000,
        ..Connector::default()
    }
}

/// The usual configuration with some keys set to other values, or taken away by null.
fn with(changes: Value) -> Vec<u8> {
    let mut config = plugin_config();
    for (name, value) in changes.as_object().unwrap() {
        config[name] = value.clone();
    }
    config.to_string().into_bytes()
}

fn parse(changes: Value) -> Result<Config, String> {
    checked(Config::parse(&with(changes), &connector()))
}

fn given_token(config: &Config) -> &str {
    match &config.vcd.token {
        vcd::Token::Text(token) => token.reveal(),
        vcd::Token::File(path) => path.to_str().unwrap(),
    }
}

/// Every error is one line and tells no secret.
fn checked(result: Result<Config, String>) -> Result<Config, String> {
    let said = match &result {
        Ok(config) => format!("{config:?}"),
        Err(error) => error.clone(),
    };
    assert!(!said.contains(TOKEN) && !said.contains(PASSWORD) && !said.contains("b3BlbnNz"), "{said}");
    assert!(!said.contains('\n'), "{said}");
    result
}

#[test]
fn a_complete_config_arrives_where_it_is_used() {
    let config = parse(json!({
        "disk_size_gb": 40, "debug_server_addr": "127.0.0.1:27060", "max_size": 50, "max_concurrent_creates": 7,
        "max_concurrent_deletes": 8, "max_concurrent_operations": 9, "create_timeout": "1h30m",
        "startup_cleanup_timeout": "90s", "session_refresh_interval": "1.5h", "reconcile_interval": "2s",
    }))
    .unwrap();
    assert_eq!(config.vcd.url, "https://vcd.example.com/api");
    assert_eq!((config.vcd.org.as_str(), given_token(&config)), ("acme", TOKEN));
    assert_eq!((config.vcd.vdc.as_str(), config.vcd.network.as_str()), ("vdc-1", "ci-net"));
    assert_eq!(config.vcd.ip_mode, vcd::IpMode::Pool);
    assert_eq!((config.vcd.catalog.as_str(), config.vcd.template.as_str()), ("images", "debian-13"));
    assert_eq!(config.vcd.storage_profile, "fast");
    assert_eq!((config.vcd.cpus, config.vcd.cores_per_socket), (4, 2));
    assert_eq!((config.vcd.memory_mb, config.vcd.disk_gb), (8192, 40));
    assert_eq!((config.vcd.vapp_prefix.as_str(), config.vcd.label.as_str()), ("ci-linux", "linux-small"));
    assert_eq!(config.vcd.session_refresh, Duration::from_secs(5400));
    let policy = &config.policy;
    assert_eq!((policy.manager.as_str(), policy.group.as_str()), ("manager-1", "linux-small"));
    assert_eq!((policy.prefix.as_str(), policy.max_size), ("ci-linux", 50));
    assert_eq!((policy.max_creates, policy.max_deletes, policy.max_operations), (7, 8, 9));
    assert_eq!(policy.create_timeout, Duration::from_secs(5400));
    assert_eq!(policy.startup_cleanup_timeout, Duration::from_secs(90));
    assert_eq!(policy.reconcile_interval, Duration::from_secs(2));
    let access = &config.access;
    assert_eq!((access.os.as_deref(), access.arch.as_deref(), access.username.as_deref()), (None, None, Some("ci")));
    assert_eq!((access.protocol, access.port), (Protocol::Ssh, 22));
    assert_eq!(access.password.as_ref().unwrap().reveal(), PASSWORD);
    assert!(access.key.as_ref().unwrap().public.starts_with("ssh-ed25519 AAAA"));
    assert_eq!((access.keepalive, access.timeout), (30_000_000_000, 600_000_000_000));
    assert_eq!(config.debug_server_addr.as_deref(), Some("127.0.0.1:27060"));
    assert_eq!(config.warnings, [""; 0]);
}

#[test]
fn what_is_not_given_has_its_default() {
    for changes in [
        json!({}),
        json!({"disk_size_gb": null, "create_timeout": "", "debug_server_addr": "", "max_concurrent_creates": null}),
    ] {
        let config = parse(changes).unwrap();
        assert_eq!((config.vcd.disk_gb, config.debug_server_addr), (0, None));
        let policy = config.policy;
        assert_eq!(policy.max_size, 128);
        assert_eq!((policy.max_creates, policy.max_deletes, policy.max_operations), (3, 5, 4));
        assert_eq!(policy.create_timeout, Duration::from_secs(20 * 60));
        assert_eq!(policy.ready_timeout, Duration::from_secs(10 * 60));
        assert_eq!(policy.startup_cleanup_timeout, Duration::from_secs(30 * 60));
        assert_eq!(policy.reconcile_interval, Duration::from_secs(10));
        assert_eq!(config.vcd.session_refresh, Duration::from_secs(20 * 3600));
    }
}

#[test]
fn every_default_of_the_table_is_valid() {
    for key in KEYS.iter().filter(|key| key.default.is_some()) {
        let wrong = read_key(key, None).err();
        assert!(wrong.is_none() || key.name == "debug_server_addr", "{wrong:?}");
    }
}

#[test]
fn all_missing_keys_are_named_at_once() {
    let error = checked(Config::parse(b"{}", &connector())).unwrap_err();
    let required: Vec<&str> = KEYS.iter().filter(|key| key.default.is_none()).map(|key| key.name).collect();
    assert_eq!(required.len(), 11);
    let expected = required.iter().map(|name| format!("missing required plugin config: {name}"));
    let more = ["token (or token_file, or $VCD_TOKEN)", "cpu_count", "cores_per_socket", "memory_mb"];
    let more = more.iter().map(|name| format!("missing required plugin config: {name}"));
    assert_eq!(error, expected.chain(more).collect::<Vec<_>>().join("; "));
    for name in required {
        let expected = format!("missing required plugin config: {name}");
        assert_eq!(parse(json!({ name: null })).unwrap_err(), expected);
    }
    assert_eq!(parse(json!({"org": ""})).unwrap_err(), "missing required plugin config: org");
}

#[test]
fn all_mistakes_are_in_one_message() {
    let connector = Connector { protocol: "telnet".into(), ..connector() };
    let config = with(json!({
        "org": null, "ip_allocation_mode": "pool", "cpu_count": "4", "memory_mb": 1023, "creat_timeout": "1m",
    }));
    let draft = Config::read(&config, &connector);
    assert_eq!(draft.config.warnings, ["unknown key creat_timeout is ignored, did you mean create_timeout?"]);
    // What is right can be checked further.
    assert_eq!((draft.config.vcd.org.as_str(), draft.config.vcd.vdc.as_str(), draft.errors.len()), ("", "vdc-1", 5));
    assert_eq!(
        checked(draft.checked()).unwrap_err(),
        "missing required plugin config: org; \
         cpu_count: expected a whole number, found a string; \
         invalid ip_allocation_mode: pool (expected POOL or DHCP); \
         memory_mb: 1023 is not a multiple of 4; \
         connector_config: protocol: expected ssh, winrm or winrm+https, found telnet"
    );
}

#[test]
fn a_config_that_is_no_object_is_refused() {
    let large = format!("{{\"name\": \"{}\"}}", "x".repeat(MAX_CONFIG));
    let deep = "[".repeat(10_000);
    for (config, expected) in [
        ("", "plugin_config is empty"),
        (" \n", "plugin_config is empty"),
        ("null", "plugin_config is missing"),
        ("[]", "expected an object, found a list"),
        ("\"s3cret\"", "expected an object, found a string"),
        ("{\n  \"token\": s3cret}", "plugin_config is not JSON: expected value at line 2 column 12"),
        ("{\"token\": \"s3cret", "EOF while parsing a string at line 1 column"),
        ("{} s3cret", "trailing characters at line 1 column 4"),
        ("\u{feff}{}", "expected value at line 1 column 1"),
        (&deep, "recursion limit exceeded"),
        (&large, "more than the 65536 allowed"),
    ] {
        let error = checked(Config::parse(config.as_bytes(), &connector())).unwrap_err();
        assert!(error.contains(expected) && !error.contains("s3cret"), "{expected}: {error}");
    }
    assert!(Config::parse(b"{\"\xff\": 1}", &connector()).unwrap_err().contains("not JSON"));
    // The last one counts, as serde has it.
    let twice = String::from_utf8(with(json!({}))).unwrap().replacen('{', "{\"org\": 5, ", 1);
    assert_eq!(Config::parse(twice.as_bytes(), &connector()).unwrap().vcd.org, "acme");
}

#[test]
fn wrong_types_are_named() {
    for key in KEYS {
        let (expected, values) = match key.kind {
            Kind::Text { .. } => ("expected a string", [json!(5), json!(true), json!([TOKEN]), json!({"a": TOKEN})]),
            Kind::Whole { .. } => ("expected a whole number", [json!("5"), json!(1.5), json!([5]), json!(TOKEN)]),
            Kind::Flag => ("expected true or false", [json!("true"), json!(1), json!([]), json!({})]),
            Kind::AutoFlag => ("expected \"auto\", true or false", [json!(1), json!(0.5), json!([]), json!({})]),
            Kind::Table { .. } => ("expected a table", [json!("a=b"), json!(5), json!([TOKEN]), json!(true)]),
            Kind::Span { .. } => ("expected a duration", [json!(5), json!(false), json!(["5s"]), json!({"a": 1})]),
        };
        for value in values {
            let error = parse(json!({ key.name: value })).unwrap_err();
            assert!(error.starts_with(&format!("{}: {expected}", key.name)), "{error}");
            assert!(error.contains(&format!(", found {}", kind_of(&value))), "{error}");
        }
    }
}

#[test]
fn values_out_of_range_are_refused() {
    for (name, wrong, right) in [
        ("cpu_count", vec![json!(0), json!(-2), json!(1026)], vec![json!(2), json!(1024)]),
        ("cores_per_socket", vec![json!(0), json!(3), json!(8)], vec![json!(1), json!(4)]),
        ("memory_mb", vec![json!(0), json!(3), json!(6), json!(u64::MAX)], vec![json!(4), json!(25_165_824)]),
        ("disk_size_gb", vec![json!(-1), json!(63_489)], vec![json!(0), json!(63_488)]),
        ("max_size", vec![json!(0), json!(1001)], vec![json!(1), json!(1000)]),
        ("max_concurrent_creates", vec![json!(0), json!(129)], vec![json!(1)]),
        ("max_concurrent_deletes", vec![json!(0), json!(129)], vec![json!(1)]),
        ("max_concurrent_operations", vec![json!(0), json!(129)], vec![json!(1)]),
        ("create_timeout", vec![json!("0s"), json!("25h"), json!("soon")], vec![json!("1s"), json!("24h")]),
        ("startup_cleanup_timeout", vec![json!("24h1s"), json!("-1m")], vec![json!("0"), json!("0s"), json!("24h")]),
        ("session_refresh_interval", vec![json!("0s"), json!("24h")], vec![json!("1s"), json!("23h59m59s")]),
        ("reconcile_interval", vec![json!("999ms"), json!("61m")], vec![json!("1s"), json!("1h")]),
        ("ip_allocation_mode", vec![json!("pool"), json!("MANUAL")], vec![json!("POOL"), json!("DHCP")]),
    ] {
        for value in wrong {
            let error = parse(json!({ name: value })).unwrap_err();
            assert!(error.contains(name) && !error.contains(';'), "{name} {value}: {error}");
        }
        for value in right {
            assert!(parse(json!({ name: value })).is_ok(), "{name} {value}");
        }
    }
    let error = parse(json!({"session_refresh_interval": "24h"})).unwrap_err();
    assert_eq!(error, "session_refresh_interval: 24h is not from 1s to 23h59m59s");
}

#[test]
fn metadata_entries_are_written_as_configured() {
    let labels = |changes| parse(changes).map(|config| config.policy.labels);
    for (changes, written) in [
        (json!({}), Labels::Found),
        (json!({"metadata_label": "auto"}), Labels::Found),
        (json!({"metadata": {"cost": "42"}}), Labels::All),
        (json!({"metadata_label": true}), Labels::All),
        (json!({"metadata_label": false}), Labels::None),
    ] {
        assert_eq!(labels(changes.clone()), Ok(written), "{changes}");
    }
    for (changes, wrong) in [
        (json!({"metadata_label": "yes"}), "metadata_label: expected \"auto\", true or false, found yes"),
        (
            json!({"metadata_label": false, "metadata": {"cost": "42"}}),
            "metadata: metadata_label = false turns off all",
        ),
    ] {
        assert!(labels(changes.clone()).unwrap_err().starts_with(wrong), "{changes}");
    }
}

#[test]
fn durations_are_read_as_go_reads_them() {
    for (text, nanos) in [
        ("0", Some(0)),
        ("90s", Some(90_000_000_000)),
        ("1h30m", Some(5_400_000_000_000)),
        ("1.5h", Some(5_400_000_000_000)),
        (".5s", Some(500_000_000)),
        ("1.s", Some(1_000_000_000)),
        ("1m0.25s", Some(60_250_000_000)),
        ("3us2µs1μs4ns", Some(6_004)),
        ("1.0000000000000000000009s", Some(1_000_000_000)),
        ("", None),
        ("5", None),
        ("s", None),
        (".s", None),
        ("1.2.3s", None),
        ("1 h", None),
        ("1d", None),
        ("-1s", None),
        ("1h ", None),
        ("99999999999999999999h", None),
        ("9999999h", None),
    ] {
        assert_eq!(go_duration(text), nanos.map(Duration::from_nanos), "{text}");
    }
}

#[test]
fn urls_are_checked() {
    for (url, expected) in [
        ("vcd.example.com/api", "must begin with https"),
        ("vcd.example.com", "must begin with https"),
        ("/api", "must begin with https"),
        ("ftp://vcd.example.com/api", "must begin with https"),
        ("https://", "not a valid URL"),
        ("https:///api", "not a valid URL"),
        ("https://:443/api", "has no host"),
        ("https://vcd.example.com/tenant/acme", "a path that does not end in /api"),
        ("https://vcd.example.com/cloudapi/", "a path that does not end in /api"),
        ("https://vcd.example.com/api?x=1", "must not contain"),
        ("https://vcd.example.com/api#x", "must not contain"),
        ("https://user:s3cret@vcd.example.com/api", "user name"),
        ("https://vcd.example.com:99999/api", "port"),
        ("https://vcd.example.com:0/api", "port"),
        (" https://vcd.example.com/api", "must begin with https"),
        ("https://vcd example.com/api", "not a valid URL"),
        (
            "https://vcd.bücher.example/api",
            "has a host name with non-ASCII letters: write its DNS name, vcd.xn--bcher-kva.example",
        ),
        ("https://MÜNCHEN.例え.ü:8443/api", "write its DNS name, xn--mnchen-3ya.xn--r8jz45g.xn--tda"),
        ("https://user:s3cret@bücher.example/api", "not a valid URL"),
        ("https://bücher example/api", "not a valid URL"),
    ] {
        let error = parse(json!({"url": url})).unwrap_err();
        assert!(error.starts_with("url: ") && error.contains(expected), "{url}: {error}");
        assert!(!error.contains("s3cret"), "{error}");
    }
    for url in ["https://vcd.example.com:8443/api", "https://[fd00::1]/api", "https://192.0.2.1/vcd/api"] {
        let config = parse(json!({"url": url})).unwrap();
        assert_eq!((config.vcd.url.as_str(), config.warnings.len()), (url, 0));
    }
    for url in ["https://vcd.example.com", "https://vcd.example.com/", "https://vcd.example.com/api//"] {
        let config = parse(json!({"url": url})).unwrap();
        assert_eq!((config.vcd.url.as_str(), config.warnings.len()), ("https://vcd.example.com/api", 0), "{url}");
    }
    let config = parse(json!({"url": "http://vcd.example.com/api/"})).unwrap();
    assert_eq!(config.vcd.url, "http://vcd.example.com/api");
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    assert!(config.warnings[0].contains("unencrypted"));
}

#[test]
fn texts_are_checked_and_kept() {
    for (changes, expected) in [
        (json!({"org": "a\nb"}), "org: contains a line break"),
        (json!({"name": "x".repeat(257)}), "name: has 257 characters"),
        (json!({"token": format!("{TOKEN}\n")}), "token: contains a line break"),
        (json!({"token": format!(" {TOKEN}")}), "token: contains white space"),
        (
            json!({"vapp_name_prefix": "ci*"}),
            "vapp_name_prefix: may contain letters, digits, '-', '_' and '.', found '*'",
        ),
        (json!({"vapp_name_prefix": "ci,a"}), "found ','"),
        (json!({"vapp_name_prefix": "ci;a"}), "found ';'"),
        (json!({"vapp_name_prefix": "(ci)"}), "found '('"),
        (json!({"vapp_name_prefix": "ci "}), "found ' '"),
        (json!({"vapp_name_prefix": "für"}), "found 'ü'"),
        (json!({"vapp_name_prefix": "-ci"}), "must begin with"),
        (json!({"vapp_name_prefix": "x".repeat(65)}), "has 65 characters"),
        (json!({"ip_allocation_mode": " DHCP"}), "invalid ip_allocation_mode:  DHCP (expected POOL or DHCP)"),
        (json!({"debug_server_addr": "27060"}), "expected HOST:PORT"),
        (json!({"debug_server_addr": "unix:"}), "or unix:/PATH"),
        (json!({"debug_server_addr": "unix:debug.sock"}), "or unix:/PATH"),
        (json!({"debug_server_addr": format!("unix:/{}", "x".repeat(107))}), "or unix:/PATH"),
        (json!({"debug_server_addr": "127.0.0.1"}), "expected HOST:PORT"),
        (json!({"debug_server_addr": "127.0.0.1:"}), "expected HOST:PORT"),
        (json!({"debug_server_addr": "127.0.0.1:0"}), "expected HOST:PORT"),
        (json!({"debug_server_addr": "127.0.0.1:+80"}), "expected HOST:PORT"),
        (json!({"debug_server_addr": "127.0.0.1:65536"}), "expected HOST:PORT"),
        (json!({"debug_server_addr": "127.0.0.256:80"}), "expected HOST:PORT"),
        (json!({"debug_server_addr": "::1:80"}), "expected HOST:PORT"),
        (json!({"debug_server_addr": "http://localhost:80"}), "expected HOST:PORT"),
        (json!({"debug_server_addr": "local host:80"}), "expected HOST:PORT"),
    ] {
        let error = parse(changes.clone()).unwrap_err();
        assert!(error.contains(expected), "{changes}: {error}");
    }
    for prefix in ["ci", "CI_Linux.2-x", "9", "a-"] {
        assert_eq!(parse(json!({"vapp_name_prefix": prefix})).unwrap().policy.prefix, prefix);
    }
    for (address, open) in [
        ("unix:/run/gitlab-runner/vcd.sock", false),
        ("localhost:27060", false),
        ("127.0.0.53:27060", false),
        ("[::1]:27060", false),
        ("[::ffff:127.0.0.1]:27060", false),
        ("0.0.0.0:1", true),
        ("[::]:27060", true),
        ("192.168.1.5:27060", true),
        ("my-host.example:65535", true),
    ] {
        let config = parse(json!({"debug_server_addr": address})).unwrap();
        assert_eq!(config.debug_server_addr.as_deref(), Some(address));
        assert_eq!(config.warnings.len(), usize::from(open), "{address}: {:?}", config.warnings);
    }
    let config = parse(json!({"debug_server_addr": ":27060"})).unwrap();
    assert_eq!(config.debug_server_addr.as_deref(), Some("0.0.0.0:27060"));
    assert!(config.warnings[0].starts_with("debug_server_addr: 0.0.0.0:27060: anyone"), "{:?}", config.warnings);
    let config = parse(json!({"catalog": "images "})).unwrap();
    assert_eq!(config.vcd.catalog, "images ");
    assert!(config.warnings[0].starts_with("catalog: begins or ends with white space"));
}

#[test]
fn unknown_keys_are_warnings_that_name_the_nearest_known_one() {
    for (name, expected) in [
        ("max_concurent_creates", Some("max_concurrent_creates")),
        ("Org", Some("org")),
        ("memory-mb", Some("memory_mb")),
        ("cpu_counts", Some("cpu_count")),
        ("max_concurrent_crea", Some("max_concurrent_creates")),
        ("max_concurrent_cre", None),
        ("storage_policy_of_mine", None),
        ("abc", None),
        ("", None),
    ] {
        let config = parse(json!({ name: TOKEN })).unwrap();
        let expected = match expected {
            Some(known) => format!("unknown key {name} is ignored, did you mean {known}?"),
            None => format!("unknown key {name} is ignored"),
        };
        assert_eq!(config.warnings, [expected]);
    }
    let many: Map<String, Value> = (0..1000).map(|number| (format!("zz\n{number}"), json!(1))).collect();
    let warnings = parse(Value::Object(many)).unwrap().warnings;
    assert_eq!(warnings.len(), MAX_UNKNOWN_NAMED + 1);
    assert_eq!(warnings[MAX_UNKNOWN_NAMED], "990 more unknown keys are ignored");
    let long = parse(json!({"y".repeat(30_000): 1})).unwrap().warnings;
    assert!(long[0].len() < 200, "{}", long[0].len());
}

#[test]
fn edits_are_counted() {
    for (from, to, expected) in
        [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("abc", "abc", 0), ("ab", "ba", 2)]
    {
        assert_eq!((edits(from, to), edits(to, from)), (expected, expected));
    }
}

#[test]
fn a_connector_is_checked() {
    type Change = fn(&mut Connector);
    let wrong: [(Change, &str); 22] = [
        (|c| c.os = "darwin".into(), "os: expected linux or windows, found darwin"),
        (|c| c.arch = "x86_64".into(), "arch: expected amd64"),
        (|c| c.protocol = "SSH".into(), "protocol: expected ssh"),
        (|c| c.protocol_port = -1, "protocol_port: -1 is not from 0 to 65535"),
        (|c| c.protocol_port = 65536, "protocol_port: 65536"),
        (|c| c.keepalive = -1, "keepalive: is negative"),
        (|c| c.timeout = i64::MIN, "timeout: is negative"),
        (|c| c.username = "a\nb".into(), "username: contains"),
        (|c| c.username = "a:b".into(), "username: contains"),
        (|c| c.username = "../root".into(), "username: contains"),
        (|c| c.username = "-x".into(), "username: begins with '-'"),
        (|c| c.username = " ci".into(), "white space"),
        (|c| c.username = "x".repeat(257), "username: has more than"),
        (|c| c.password = format!("{PASSWORD}\n"), "password: contains a line break"),
        (|c| c.password = "x".repeat(257), "password: has more than"),
        (|c| c.key = b"nonsense".into(), "key_path: this is not a private key"),
        (|c| c.use_static_credentials = false, "use_static_credentials: with false the plugin generates credentials"),
        (
            |c| {
                c.password.clear();
                c.key.clear();
            },
            "use_static_credentials: needs username and password, or key_path",
        ),
        (
            |c| {
                c.password.clear();
                c.protocol = "winrm".into();
            },
            "password: is needed for winrm",
        ),
        (
            |c| {
                c.os = "linux".into();
                c.protocol = "winrm+https".into();
            },
            "protocol: winrm is for windows",
        ),
        (|c| c.os = "lin\nux".into(), "found lin\\nux"),
        (|c| c.protocol = "p".repeat(100_000), "ppp…"),
    ];
    for (change, expected) in wrong {
        let mut connector = connector();
        change(&mut connector);
        let error = checked(Config::parse(&with(json!({})), &connector)).unwrap_err();
        assert!(error.starts_with("connector_config: ") && error.contains(expected), "{expected}: {error}");
        assert!(!error.contains(';') && error.len() < 300, "{error}");
    }

    let port = |protocol: &str, port: i64| {
        let connector =
            Connector { os: "windows".into(), protocol: protocol.into(), protocol_port: port, ..connector() };
        Config::parse(&with(json!({})), &connector).unwrap().access.port
    };
    assert_eq!((port("", 0), port("ssh", 2222), port("winrm", 0), port("winrm+https", 0)), (22, 2222, 5985, 5986));

    // One of password and key is enough; without a user it is the guest's administrator.
    for (password, key) in [(PASSWORD, b"".as_slice()), ("", KEY)] {
        let connector =
            Connector { username: String::new(), password: password.into(), key: key.into(), ..connector() };
        let access = Config::parse(&with(json!({})), &connector).unwrap().access;
        assert_eq!((access.username, access.password.is_some()), (None, !password.is_empty()));
        assert_eq!(access.key.is_some(), !key.is_empty());
    }
}

#[test]
fn generated_credentials_are_of_the_seed_or_else_of_the_token() {
    let generated = |changes: Value, username: &str| {
        let (username, password, key) = (username.into(), String::new(), Vec::new());
        let connector = Connector { username, password, key, use_static_credentials: false, ..connector() };
        checked(Config::parse(&with(changes), &connector))
    };
    let seed = json!({"credentials_seed": "a seed of a good length"});
    let key = |config: &Config| access::login(&config.access, "Linux", "ci-linux-abcd1234").key.unwrap();
    let of_token = generated(json!({}), "").unwrap();
    let of_other_token = generated(json!({"token": "another"}), "").unwrap();
    let of_seed = generated(seed.clone(), "").unwrap();
    assert_ne!(key(&of_token), key(&of_other_token));
    assert_ne!(key(&of_token), key(&of_seed));
    let marks = [&of_token, &of_other_token, &of_seed].map(|config| config.policy.credentials.clone());
    assert!(marks.iter().all(|mark| mark.len() == 8), "{marks:?}");
    assert!(marks[0] != marks[1] && marks[0] != marks[2], "{marks:?}");
    // With a seed the token may change; another user is another login.
    let mut seed_and_token = seed.clone();
    seed_and_token["token"] = "another".into();
    let same = generated(seed_and_token, "").unwrap();
    assert_eq!((key(&same), &same.policy.credentials), (key(&of_seed), &marks[2]));
    assert_ne!(generated(seed.clone(), "ci").unwrap().policy.credentials, marks[2]);

    // The token is the secret wherever it comes from, and never nothing.
    let place = std::env::temp_dir().join(format!("vcd-config-token-{}", std::process::id()));
    std::fs::write(&place, format!("{TOKEN}\n")).unwrap();
    let file = json!({"token": null, "token_file": place.to_str().unwrap()});
    assert_eq!(key(&generated(file.clone(), "").unwrap()), key(&of_token));
    std::fs::write(&place, "\n").unwrap();
    let error = generated(file.clone(), "").unwrap_err();
    assert!(error.starts_with("token_file: ") && error.ends_with(": is empty"), "{error}");
    std::fs::remove_file(&place).unwrap();
    assert!(generated(file.clone(), "").unwrap_err().contains("No such file"));
    // Nobody needs it where there is a seed, or where nothing is generated.
    let mut file_and_seed = file.clone();
    file_and_seed["credentials_seed"] = seed["credentials_seed"].clone();
    assert_eq!(key(&generated(file_and_seed, "").unwrap()), key(&of_seed));
    assert!(parse(file).is_ok());
    let connector =
        Connector { password: String::new(), key: Vec::new(), use_static_credentials: false, ..connector() };
    let of_variable = Config::read_with(&with(json!({"token": null})), &connector, Some(TOKEN.into())).config;
    assert_eq!(key(&of_variable), key(&of_token));

    assert_eq!(parse(json!({})).unwrap().policy.credentials, "", "static ones leave no mark");
    let error = generated(json!({"credentials_seed": "short"}), "").unwrap_err();
    assert!(error.starts_with("credentials_seed: has fewer than"), "{error}");
}

/// A key of the example's plugin_config: its value as JSON, whether it stands in a comment, and the comment behind it.
struct Shown {
    value: Value,
    optional: bool,
    comment: String,
}

/// The example's plugin_config, read line by line.
fn example() -> BTreeMap<String, Shown> {
    let text = include_str!("../../config.example.toml");
    let table = text.lines().map(str::trim).skip_while(|line| *line != "[runners.autoscaler.plugin_config]").skip(1);
    let mut keys = BTreeMap::new();
    for line in table.take_while(|line| !line.starts_with('[')) {
        // Optional keys are shown in comments: `# key = value`, with one space.
        let plain = line.strip_prefix("# ").unwrap_or(line);
        let Some((name, rest)) = plain.split_once(" = ") else { continue };
        let (value, comment) = rest.split_once(" # ").unwrap_or((rest, ""));
        // A table is written as JSON writes it, but for its sign between key and value.
        let value = value.trim().replace("\" = \"", "\": \"");
        let value = serde_json::from_str(&value).unwrap_or_else(|error| panic!("{line}: {error}"));
        let shown = Shown { value, optional: plain != line, comment: comment.trim().to_owned() };
        assert!(keys.insert(name.trim().into(), shown).is_none(), "{line}");
    }
    keys
}

#[test]
fn the_example_shows_every_key_with_a_useful_value_and_its_default() {
    let example = example();
    assert_eq!(example.len(), KEYS.len());
    for key in KEYS {
        let shown = example.get(key.name).unwrap_or_else(|| panic!("the example lacks {}", key.name));
        let Some(default) = key.default.filter(|_| shown.optional) else { continue };
        let value = shown.value.as_str().map_or_else(|| shown.value.to_string(), str::to_owned);
        assert!(value != default && !value.is_empty(), "{}: the value is the default", key.name);
        if !default.is_empty() {
            let written = match key.kind {
                Kind::Whole { .. } | Kind::Flag => default.to_owned(),
                _ => format!("{default:?}"),
            };
            let comment = &shown.comment;
            let said = comment.strip_prefix("Default: ").and_then(|rest| rest.strip_prefix(&*written));
            assert!(said.is_some_and(|rest| rest.starts_with(['.', ','])), "{}: {comment}", key.name);
        }
    }
    // All together are a configuration, but for what cannot stand beside other keys, names a file, or has a warning.
    let (mut all, mut left_out) = (Map::new(), 0);
    for (name, shown) in example {
        match name.as_str() {
            "token_file"
            | "sizing_policy"
            | "user_data_file"
            | "customization_script_file"
            | "insecure_skip_tls_verify" => {
                left_out += 1;
            }
            _ => assert!(all.insert(name, shown.value).is_none()),
        }
    }
    let config = Config::parse(Value::Object(all).to_string().as_bytes(), &connector()).unwrap();
    assert_eq!(config.warnings, [""; 0]);
    assert_eq!(left_out, 5);
}

#[test]
fn there_is_one_token_and_the_configuration_comes_first() {
    let parse = |changes: Value, variable: Option<&str>| {
        checked(Config::read_with(&with(changes), &connector(), variable.map(str::to_owned)).checked())
    };
    let own = json!({});
    let file = json!({"token": null, "token_file": "/run/token"});
    let none = json!({"token": null});
    assert_eq!(given_token(&parse(none.clone(), Some(TOKEN)).unwrap()), TOKEN);
    let config = parse(file.clone(), None).unwrap();
    assert!(matches!(&config.vcd.token, vcd::Token::File(path) if path.to_str() == Some("/run/token")));
    for (changes, given) in [(own, TOKEN), (file, "/run/token")] {
        let config = parse(changes, Some("other")).unwrap();
        assert_eq!(given_token(&config), given);
        assert!(config.warnings[0].starts_with("$VCD_TOKEN is ignored: token"), "{:?}", config.warnings);
    }
    for (changes, variable, wrong) in [
        (none.clone(), None, "missing required plugin config: token (or token_file"),
        (none.clone(), Some(""), "missing required plugin config: token (or token_file"),
        (none, Some("a b"), "$VCD_TOKEN: contains white space"),
        (json!({"token_file": "/run/token"}), None, "token, token_file: set only one"),
    ] {
        let error = parse(changes, variable).unwrap_err();
        assert!(error.starts_with(wrong), "{error}");
    }
}

#[test]
fn a_policy_stands_for_cpus_and_memory() {
    let without = json!({"cpu_count": null, "cores_per_socket": null, "memory_mb": null});
    for policy in ["sizing_policy", "placement_policy"] {
        let mut changes = without.clone();
        changes[policy] = json!("small");
        let vcd = parse(changes).unwrap().vcd;
        assert_eq!((vcd.cpus, vcd.cores_per_socket, vcd.memory_mb), (0, 0, 0));
        let name = if policy == "sizing_policy" { vcd.sizing_policy } else { vcd.placement_policy };
        assert_eq!(name.as_deref(), Some("small"));
    }
    assert!(parse(json!({"sizing_policy": "small", "memory_mb": 3})).is_err());
    let warnings = parse(json!({"sizing_policy": "small"})).unwrap().warnings;
    assert!(warnings[0].starts_with("sizing_policy: values that it fixes override"), "{warnings:?}");
}

#[test]
fn tables_and_flags_are_read() {
    let vcd = parse(json!({
        "metadata": {"cost": "42", "owner": "ci; team"}, "guest_properties": {"a": "b"}, "insecure_skip_tls_verify": true,
        "ca_file": "/etc/ca.pem",
    }));
    let config = vcd.unwrap();
    assert_eq!(config.vcd.metadata, [("cost".into(), "42".into()), ("owner".into(), "ci; team".into())]);
    assert_eq!(config.vcd.guest_properties, [("a".into(), Secret::new("b"))]);
    assert_eq!(config.vcd.ca_file.as_deref(), Some(std::path::Path::new("/etc/ca.pem")));
    assert!(
        config.vcd.insecure_skip_tls_verify
            && config.warnings[0].starts_with("insecure_skip_tls_verify: TLS certificates are not")
    );
    let many: Map<String, Value> = (0..65).map(|n| (n.to_string(), json!("x"))).collect();
    for (changes, wrong) in [
        (json!({"metadata": {"vcd-instance-group": "x"}}), "metadata: vcd-instance-group is written"),
        (json!({"metadata": {"a": 1}}), "metadata.a: expected a string, found a number"),
        (json!({"metadata": {"": "x"}}), "metadata.: is not a valid key"),
        (json!({"metadata": {"k".repeat(257): "x"}}), "metadata.kkk"),
        (json!({"metadata": {"a": "x\u{1}"}}), "metadata.a: has more than the 4096"),
        (json!({"metadata": many}), "metadata: has 65 entries"),
        (json!({"guest_properties": {"a": "x".repeat(4097)}}), "guest_properties.a: has more"),
    ] {
        let error = parse(changes).unwrap_err();
        assert!(error.starts_with(wrong), "{error}");
    }
}

#[test]
fn files_are_read_whole_or_refused() {
    let place = std::env::temp_dir().join(format!("vcd-config-{}", std::process::id()));
    std::fs::create_dir_all(&place).unwrap();
    let path = |name: &str| place.join(name).to_str().unwrap().to_owned();
    std::fs::write(path("script"), "#!/bin/sh\n").unwrap();
    std::fs::write(path("data"), "#cloud-config\nü").unwrap();
    std::fs::write(path("empty"), "").unwrap();
    std::fs::write(path("binary"), b"\xff\xfe").unwrap();
    std::fs::write(path("long"), "x".repeat(MAX_USER_DATA + 1)).unwrap();
    let config = parse(json!({"customization_script_file": path("script"), "user_data_file": path("data")})).unwrap();
    assert_eq!(config.access.custom_script.unwrap().reveal(), "#!/bin/sh\n");
    assert_eq!(config.vcd.user_data.unwrap().reveal(), "#cloud-config\nü");
    for (name, wrong) in
        [("none", "No such file"), ("empty", "is empty"), ("binary", "UTF-8"), ("long", "more than the 49")]
    {
        for key in ["user_data_file", "customization_script_file"] {
            let error = parse(json!({key: path(name)})).unwrap_err();
            assert!(error.starts_with(&format!("{key}: ")) && error.contains(wrong), "{error}");
        }
    }
    // What is wrong with the script comes together with all the rest.
    std::fs::write(path("control"), "a\u{1}b").unwrap();
    std::fs::write(path("almost"), "x".repeat(48_999)).unwrap();
    for (name, wrong) in [("control", "contains control characters"), ("almost", "with the plugin's own part")] {
        let error = parse(json!({"customization_script_file": path(name), "memory_mb": 3, "lease": "x"})).unwrap_err();
        let wrong = format!("customization_script_file: {wrong}");
        assert!([&wrong, "memory_mb: 3", "invalid lease"].iter().all(|text| error.contains(text)), "{error}");
    }
    let both = json!({"user_data_file": path("data"), "guest_properties": {"user-data": "x"}});
    assert!(parse(both).unwrap_err().starts_with("guest_properties: user-data is set by"));
    std::fs::remove_dir_all(place).unwrap();
}

#[test]
fn limits_that_were_raised_raise_the_limit_of_all_that_is_not_given() {
    let limit = |changes: Value| parse(changes).unwrap().policy.max_operations;
    assert_eq!(limit(json!({"max_concurrent_creates": 10})), 10);
    assert_eq!(limit(json!({"max_concurrent_creates": 2, "max_concurrent_deletes": 20})), 21);
    assert_eq!(limit(json!({"max_concurrent_creates": 20, "max_concurrent_deletes": 20})), 21);
    assert_eq!(limit(json!({"max_concurrent_creates": 2, "max_concurrent_deletes": null})), 4);
    assert_eq!(limit(json!({"max_concurrent_creates": 10, "max_concurrent_operations": 3})), 3);
}

#[test]
fn a_lease_ends_after_twice_the_oldest_age() {
    let lease = |changes: Value| parse(changes).map(|config| config.vcd.lease);
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let of =
        |runtime, storage: Option<u64>| Ok(Some(vcd::Lease { runtime: hours(runtime), storage: storage.map(hours) }));
    assert_eq!(lease(json!({"max_instance_age": "10h"})), of(22, Some(74)));
    assert_eq!(lease(json!({"max_instance_age": "10h", "suspended_max_age": "1h"})), of(22, Some(22)));
    assert_eq!(lease(json!({"max_instance_age": "10h", "suspended_max_age": "0"})), of(22, None));
    assert_eq!(lease(json!({"max_instance_age": "10h", "suspend_resume": false})), of(22, Some(22)));
    assert_eq!(lease(json!({"max_instance_age": "0"})), Ok(None));
    assert_eq!(lease(json!({"lease": "org"})), Ok(None));
    assert_eq!(lease(json!({"lease": "24h"})).unwrap_err(), "invalid lease: 24h (expected auto or org)");
}

#[test]
fn what_begins_like_an_id_or_a_link_must_be_one() {
    const UUID: &str = "01234567-89ab-cdef-0123-456789abcdef";
    let good = json!({
        "virtual_datacenter": format!("urn:vcloud:vdc:{UUID}"), "network": format!("https://h/api/network/{UUID}"),
        "catalog": "org/images", "template": format!("urn:vcloud:vapptemplate:{UUID}"), "storage_profile": "*",
    });
    assert_eq!(parse(good).unwrap().vcd.network, format!("https://h/api/network/{UUID}"));
    let wrong = json!({
        "virtual_datacenter": format!("urn:vcloud:network:{UUID}"), "network": "urn:vcloud:network:1",
        "catalog": "https://h/tenant/o/catalogs", "template": format!("https://h/api/vAppTemplate/vm-{UUID}"),
        "storage_profile": "urn:vcloud:vdcstorageProfile:",
    });
    let error = parse(wrong).unwrap_err();
    for (key, word, id) in [
        ("virtual_datacenter", "VDC", "vdc"),
        ("network", "network", "network"),
        ("catalog", "catalog", "catalog"),
        ("template", "template", "vapptemplate"),
        ("storage_profile", "storage profile", "vdcstorageProfile"),
    ] {
        let mistake =
            format!("{key}: expected the name of a {word}, its id (urn:vcloud:{id}:UUID) or its link (https://HOST");
        assert!(error.contains(&mistake), "{key}: {error}");
    }
}

#[test]
fn without_a_login_script_credentials_are_given() {
    assert!(!parse(json!({"login_script": false})).unwrap().access.login_script);
    assert!(parse(json!({})).unwrap().access.login_script);
    let generated =
        Connector { use_static_credentials: false, password: String::new(), key: Vec::new(), ..connector() };
    let error = checked(Config::parse(&with(json!({"login_script": false})), &generated)).unwrap_err();
    assert!(error.contains("login_script: false needs use_static_credentials = true"), "{error}");
}
