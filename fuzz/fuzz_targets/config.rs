//! plugin_config as JSON, and connector_config as JSON after a line `---`.
#![no_main]

use fleeting_plugin_vcd::cloud::Secret;
use fleeting_plugin_vcd::config::{Config, Connector, KEYS, Kind};
use fleeting_plugin_vcd::{access, vcd};
use fleeting_plugin_vcd_fuzz::{MARK, assert_no_secret, init};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};

/// Maximum length of all mistakes in one line: for each of some 50 keys, one of at most 200 bytes, and usually less.
const MAX_MISTAKES: usize = 32 * 1024;

fuzz_target!(init: init(), |data: &[u8]| {
    let split = data.windows(5).position(|window| window == b"\n---\n");
    let (config, connector) = match split {
        Some(at) => (&data[..at], serde_json::from_slice(&data[at + 5..]).unwrap_or_default()),
        None => (data, Value::Null),
    };
    let connector = connector.as_object().cloned().unwrap_or_default();
    // Every secret contains `MARK`, unless the key is invalid anyway.
    let marked = match serde_json::from_slice(config) {
        Ok(Value::Object(mut object)) => {
            for name in ["token", "credentials_seed"] {
                if let Some(Value::String(text)) = object.get_mut(name).filter(|value| **value != "") {
                    *text += MARK;
                }
            }
            if let Some(Value::Object(table)) = object.get_mut("guest_properties") {
                for value in table.values_mut() {
                    if let Value::String(text) = value {
                        *text += MARK;
                    }
                }
            }
            Value::Object(object).to_string().into_bytes()
        }
        _ => config.to_vec(),
    };
    let connector = read(&connector);
    match Config::parse(&marked, &connector) {
        Ok(config) => accepted(&config, &connector),
        Err(mistakes) => {
            assert!(!mistakes.is_empty() && mistakes.len() <= MAX_MISTAKES, "{} bytes of mistakes", mistakes.len());
            assert!(!mistakes.contains('\n'), "one line: {mistakes:?}");
            assert_no_secret("the mistakes", &mistakes);
        }
    }
});

fn read(object: &Map<String, Value>) -> Connector {
    let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let number = |name: &str| object.get(name).and_then(Value::as_i64).unwrap_or_default();
    let secret = |name: &str| Some(text(name)).filter(|text| !text.is_empty());
    Connector {
        os: text("os"),
        arch: text("arch"),
        protocol: text("protocol"),
        username: text("username"),
        password: secret("password").map(|text| text + MARK).unwrap_or_default(),
        key: secret("key").map(|text| format!("{text}\n{MARK}").into_bytes()).unwrap_or_default(),
        use_static_credentials: object.get("use_static_credentials") == Some(&Value::Bool(true)),
        keepalive: number("keepalive"),
        timeout: number("timeout"),
        protocol_port: number("protocol_port"),
    }
}

/// An accepted configuration is within its limits, and usable.
fn accepted(config: &Config, connector: &Connector) {
    assert_no_secret("the configuration's Debug", &format!("{config:?}"));
    config.warnings.iter().for_each(|warning| assert_no_secret("a warning", warning));
    let whole = |name: &str, value: u32| {
        let key = KEYS.iter().find(|key| key.name == name).expect("it is a key");
        let Kind::Whole { min, max } = key.kind else { panic!("{name} is a number") };
        assert!((min..=max).contains(&value), "{name}: {value}");
    };
    let (vcd, policy) = (&config.vcd, &config.policy);
    whole("cpu_count", vcd.cpus);
    whole("memory_mb", vcd.memory_mb);
    whole("disk_size_gb", vcd.disk_gb);
    whole("max_size", policy.max_size);
    whole("max_concurrent_creates", policy.max_creates);
    whole("max_concurrent_deletes", policy.max_deletes);
    whole("max_concurrent_operations", policy.max_operations);
    assert!(vcd.cpus == 0 || vcd.cpus % vcd.cores_per_socket.max(1) == 0);
    assert!(!vcd.vapp_prefix.is_empty() && vcd.vapp_prefix == policy.prefix);
    assert!(vcd.url.ends_with("/api"));
    assert!(!policy.create_timeout.is_zero() && !policy.reconcile_interval.is_zero());
    assert_eq!(config.access.timeout, connector.timeout);

    let name = format!("{}-abc12345", policy.prefix);
    for os in ["Ubuntu Linux (64-bit)", "Microsoft Windows Server 2022 (64-bit)"] {
        let login = access::login(&config.access, os, &name);
        assert!(!login.username.is_empty() && login.port > 0, "a usable login");
        assert_no_secret("a login's Debug", &format!("{login:?}"));
        let guest = access::guest(&config.access, os, &name);
        assert!(!guest.computer_name.is_empty() && guest.computer_name.len() <= 63, "{}", guest.computer_name);
        let script = guest.script.as_ref().map(Secret::reveal).unwrap_or_default();
        assert!(script.chars().count() <= vcd::MAX_SCRIPT, "VCD accepts the script");
        assert_no_secret("a guest's Debug", &format!("{guest:?}"));
        let _ = access::warning(&config.access, os);
    }
}
