//! GitLab Runner's own config.toml: the runners that use this plugin, and the settings that they pass to it. Keys that
//! this module does not know belong to GitLab Runner, and are ignored.

use crate::config::{self, Config, Connector, Draft, KEYS};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::de::{DeTable, DeValue};

/// The file of a GitLab Runner that runs as a service.
pub const DEFAULT_PATH: &str = "/etc/gitlab-runner/config.toml";
/// Maximum size of a config.toml, in bytes.
const MAX_FILE: u64 = 1024 * 1024;
/// Maximum size of a private key, in bytes.
const MAX_KEY: u64 = 64 * 1024;
/// Maximum number of runners in a file that are read.
const MAX_RUNNERS: usize = 256;
/// Names under which the plugin is installed: on PATH, and the last part of an OCI image's name.
const PLUGIN_NAMES: [&str; 2] = ["fleeting-plugin-vcd", "vcd"];
/// GitLab Runner's default for `shutdown_timeout`.
pub const DEFAULT_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);
/// Keys of plugin_config that `[[runners]]` has as well.
const RUNNERS_KEYS: [&str; 3] = ["name", "token", "url"];
/// GitLab Runner's default interval between two Update calls. A longer one is slow.
const UPDATE_INTERVAL: Duration = Duration::from_secs(60);
/// The same while it expects a change. A longer one is slow.
const SLOW_UPDATE: Duration = Duration::from_secs(10);
/// Maximum number of other plugins that an error names.
const MAX_OTHERS_TOLD: usize = 5;
/// Replaces a key that is not on this machine, when only the other settings are checked.
const STAND_IN: &str = "stand-in";

/// The parts of a config.toml that matter here.
pub struct RunnerFile {
    /// Path of the file.
    pub path: PathBuf,
    /// `concurrent`: maximum number of jobs at the same time, over all runners.
    pub concurrent: u64,
    /// `shutdown_timeout`.
    pub shutdown_timeout: Duration,
    /// Number of `[[runners]]` sections.
    pub count: usize,
    /// Those that use this plugin.
    pub runners: Vec<Runner>,
    /// The values of `plugin` in the others.
    others: Vec<String>,
}

/// A `[[runners]]` section with this plugin.
pub struct Runner {
    /// `name`.
    pub name: String,
    /// `executor`.
    pub executor: String,
    /// `limit`; 0: none.
    pub limit: u64,
    /// `capacity_per_instance`; 0: not set.
    pub capacity: u64,
    /// `max_use_count`; 0: any number.
    pub max_use_count: u64,
    /// `max_instances`; 0: not set.
    pub max_instances: u64,
    /// `delete_instances_on_shutdown`.
    pub delete_on_shutdown: bool,
    /// `state_storage.enabled`.
    pub state_storage: bool,
    /// Number of `[[runners.autoscaler.policy]]` sections.
    pub policies: usize,
    /// The largest `idle_count` of its policies.
    pub idle_count: u64,
    /// `[runners.docker]` is there.
    pub has_docker: bool,
    /// `connector_config.use_external_addr`.
    pub use_external_addr: bool,
    /// plugin_config as GitLab Runner passes it to the plugin: JSON.
    pub plugin_config: Map<String, Value>,
    /// connector_config as GitLab Runner passes it to the plugin.
    pub connector: Connector,
    /// `connector_config.key_path`, if set.
    pub key_path: Option<PathBuf>,
    /// Mistakes in the settings of GitLab Runner itself.
    pub mistakes: Vec<String>,
    /// Settings that work, but are probably not meant, and what to do.
    pub warnings: Vec<(String, &'static str)>,
    /// Why the key file could not be read, if so.
    pub key_unread: Option<String>,
}

impl RunnerFile {
    /// Reads `path`. The error says what to do. It quotes nothing of the file.
    pub fn read(path: &Path) -> Result<RunnerFile, String> {
        let text = read_limited(path, MAX_FILE).map_err(|why| {
            format!("read {}: {why}; use --config for another file, or run this as root", path.display())
        })?;
        let text = String::from_utf8(text).map_err(|_| format!("read {}: it is not UTF-8", path.display()))?;
        RunnerFile::parse(&text, path)
    }

    /// Parses `text`, the content of `path`. Keys are read from the files that it names.
    pub fn parse(text: &str, path: &Path) -> Result<RunnerFile, String> {
        let table = DeTable::parse(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            format!(
                "{} is not valid TOML: line {}: {}",
                path.display(),
                before.matches('\n').count() + 1,
                error.message()
            )
        })?;
        let root = object(table.get_ref());
        let mut file = RunnerFile {
            path: path.to_owned(),
            concurrent: whole(&root, "concurrent"),
            shutdown_timeout: match whole(&root, "shutdown_timeout") {
                0 => DEFAULT_SHUTDOWN_TIMEOUT,
                seconds => Duration::from_secs(seconds),
            },
            count: 0,
            runners: Vec::new(),
            others: Vec::new(),
        };
        let folder = path.parent().unwrap_or(Path::new("."));
        for runner in root.get("runners").and_then(Value::as_array).into_iter().flatten().take(MAX_RUNNERS) {
            file.count += 1;
            let autoscaler = runner.get("autoscaler");
            match autoscaler.and_then(|autoscaler| autoscaler.get("plugin")).and_then(Value::as_str) {
                Some(plugin) if is_this_plugin(plugin) => file.runners.extend(Runner::read(runner, folder)),
                Some(plugin) => file.others.push(plugin.to_owned()),
                None => {}
            }
        }
        Ok(file)
    }

    /// The runners with this plugin: all, or the one with this name. The error names the existing ones.
    pub fn select(&self, name: Option<&str>) -> Result<Vec<&Runner>, String> {
        let chosen: Vec<&Runner> =
            self.runners.iter().filter(|runner| name.is_none_or(|name| runner.name == name)).collect();
        if !chosen.is_empty() {
            return Ok(chosen);
        }
        let place = self.path.display();
        let names: Vec<String> = self.runners.iter().map(|runner| format!("{:?}", runner.name)).collect();
        Err(match (name, names.is_empty()) {
            (_, true) => {
                let found: Vec<String> =
                    self.others.iter().take(MAX_OTHERS_TOLD).map(|name| format!("{name:?}")).collect();
                let found = if found.is_empty() { String::new() } else { format!("; found: {}", found.join(", ")) };
                format!(
                    "{place}: none of the {} [[runners]] sections has plugin = {:?} in [runners.autoscaler]{found}",
                    self.count, PLUGIN_NAMES[0]
                )
            }
            (name, false) => format!(
                "{place}: no runner {:?} uses this plugin; found: {}",
                name.unwrap_or_default(),
                names.join(", ")
            ),
        })
    }

    /// The one runner that `name` selects.
    pub fn only(&self, name: Option<&str>) -> Result<&Runner, String> {
        match self.select(name)?.as_slice() {
            [only] => Ok(only),
            many => {
                let names: Vec<String> = many.iter().map(|runner| format!("{:?}", runner.name)).collect();
                Err(format!(
                    "{}: several runners use this plugin; choose one with --runner: {}",
                    self.path.display(),
                    names.join(", ")
                ))
            }
        }
    }
}

impl Runner {
    /// `None` if it has no autoscaler.
    fn read(runner: &Value, folder: &Path) -> Option<Runner> {
        let runner = runner.as_object()?;
        let autoscaler = runner.get("autoscaler")?.as_object()?;
        let table = |name: &str| autoscaler.get(name).and_then(Value::as_object).cloned().unwrap_or_default();
        let connector = table("connector_config");
        let policies = autoscaler.get("policy").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let mut read = Runner {
            name: text(runner, "name"),
            executor: text(runner, "executor"),
            limit: whole(runner, "limit"),
            capacity: whole(autoscaler, "capacity_per_instance"),
            max_use_count: whole(autoscaler, "max_use_count"),
            max_instances: whole(autoscaler, "max_instances"),
            delete_on_shutdown: flag(autoscaler, "delete_instances_on_shutdown"),
            state_storage: flag(&table("state_storage"), "enabled"),
            policies: policies.len(),
            idle_count: policies.iter().filter_map(Value::as_object).map(|p| whole(p, "idle_count")).max().unwrap_or(0),
            has_docker: runner.get("docker").is_some_and(Value::is_object),
            use_external_addr: flag(&connector, "use_external_addr"),
            plugin_config: table("plugin_config"),
            connector: Connector {
                os: text(&connector, "os"),
                arch: text(&connector, "arch"),
                protocol: text(&connector, "protocol"),
                username: text(&connector, "username"),
                password: text(&connector, "password"),
                key: Vec::new(),
                use_static_credentials: flag(&connector, "use_static_credentials"),
                keepalive: 0,
                timeout: 0,
                protocol_port: i64::try_from(whole(&connector, "protocol_port")).unwrap_or(i64::MAX),
            },
            key_path: Some(text(&connector, "key_path")).filter(|path| !path.is_empty()).map(PathBuf::from),
            mistakes: Vec::new(),
            warnings: Vec::new(),
            key_unread: None,
        };
        read.connector.keepalive = read.span("connector_config", &connector, "keepalive").unwrap_or(0);
        read.connector.timeout = read.span("connector_config", &connector, "timeout").unwrap_or(0);
        for policy in policies.iter().filter_map(Value::as_object) {
            let _ = read.span("policy", policy, "idle_time");
        }
        read.pace(autoscaler);
        for (place, table, known) in [
            ("[[runners]]", runner, &RUNNERS_KEYS[..]),
            ("[runners.autoscaler]", autoscaler, &[]),
            ("[runners.autoscaler.connector_config]", &connector, &[]),
        ] {
            for key in KEYS.iter().filter(|key| table.contains_key(key.name) && !known.contains(&key.name)) {
                let text = format!("{} is in {place}, where GitLab Runner ignores it", key.name);
                read.warnings.push((text, "move it into [runners.autoscaler.plugin_config]"));
            }
        }
        if let Some(path) = &read.key_path {
            // GitLab Runner opens it relative to its working directory, which is usually the folder of its
            // configuration.
            match read_limited(&folder.join(path), MAX_KEY) {
                Ok(key) => read.connector.key = key,
                Err(why) => {
                    let path = path.display().to_string();
                    read.key_unread =
                        Some(format!("connector_config: key_path: {path}: {why}{}", config::tilde(&path)));
                }
            }
        }
        Some(read)
    }

    /// A duration of GitLab Runner, in nanoseconds. An invalid one is a mistake; a small number is probably one.
    fn span(&mut self, place: &str, table: &Map<String, Value>, name: &str) -> Option<i64> {
        let value = table.get(name)?;
        match (duration(value), value) {
            (None, Value::String(given)) => {
                let text = format!(
                    "{place}: {name}: {given:?} is not a duration such as \"10m\": GitLab Runner does not start"
                );
                self.mistakes.push(text);
            }
            (None, _) => self.mistakes.push(format!("{place}: {name}: expected a duration such as \"10m\"")),
            (Some(nanos @ 1..=999_999), Value::Number(_)) => {
                let text = format!("{place}: {name} = {nanos}: a number without a unit is in nanoseconds");
                self.warnings.push((text, "write it with a unit, such as \"10m\""));
            }
            (Some(_), _) => {}
        }
        duration(value)
    }

    /// How soon GitLab Runner notices changes.
    fn pace(&mut self, autoscaler: &Map<String, Value>) {
        for (name, slow, advice) in [
            ("update_interval", UPDATE_INTERVAL, "remove it: GitLab Runner's default is 60 s"),
            ("update_interval_when_expecting", SLOW_UPDATE, "remove it: GitLab Runner's default is 2 s"),
        ] {
            let given = self.span("[runners.autoscaler]", autoscaler, name).and_then(|nanos| u64::try_from(nanos).ok());
            if let Some(given) = given.map(Duration::from_nanos).filter(|given| *given > slow) {
                let text = format!("{name} is {} s: GitLab Runner notices new and lost VMs this late", given.as_secs());
                self.warnings.push((text, advice));
            }
        }
    }

    /// The settings as the plugin reads them in Init, or all mistakes. `offline`: a key that is not on this machine is
    /// not a mistake.
    pub fn config(&self, offline: bool) -> Result<Config, String> {
        self.draft(offline).checked()
    }

    /// The same as far as it can be read, with all mistakes.
    pub fn draft(&self, offline: bool) -> Draft {
        let mut connector = self.connector.clone();
        // The missing key is reported already.
        if self.key_unread.is_some() && connector.password.is_empty() {
            connector.password = STAND_IN.into();
        }
        let mut draft = Config::read(&self.json(), &connector);
        let mut errors = self.mistakes.clone();
        errors.extend(self.key_unread.clone().filter(|_| !offline));
        errors.append(&mut draft.errors);
        Draft { errors, ..draft }
    }

    /// plugin_config as bytes.
    pub fn json(&self) -> Vec<u8> {
        Value::Object(self.plugin_config.clone()).to_string().into_bytes()
    }
}

/// True for `fleeting-plugin-vcd`, a path to it, and an OCI image of that name or `vcd`, with or without a version.
fn is_this_plugin(plugin: &str) -> bool {
    let last = plugin.rsplit(['/', '\\']).next().unwrap_or_default();
    let name = last.split([':', '@']).next().unwrap_or_default();
    let name = name.strip_suffix(".exe").unwrap_or(name);
    PLUGIN_NAMES.contains(&name)
}

/// A table as JSON, as GitLab Runner passes plugin_config to the plugin. Dates become text. The parser limits the
/// nesting of tables.
fn object(table: &DeTable<'_>) -> Map<String, Value> {
    let mut object = Map::new();
    for (key, value) in table.iter() {
        object.insert(key.get_ref().to_string(), json(value.get_ref()));
    }
    object
}

fn json(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => text.as_ref().into(),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).map_or(Value::Null, Value::from)
        }
        // JSON has no plus sign, infinity or NaN, and no key of the plugin has a fraction.
        DeValue::Float(number) => serde_json::from_str(number.as_str().trim_start_matches('+')).unwrap_or_default(),
        DeValue::Boolean(flag) => (*flag).into(),
        DeValue::Datetime(date) => date.to_string().into(),
        DeValue::Array(all) => all.iter().map(|value| json(value.get_ref())).collect(),
        DeValue::Table(table) => object(table).into(),
    }
}

#[inline(never)]
fn flag(table: &Map<String, Value>, name: &str) -> bool {
    table.get(name).and_then(Value::as_bool) == Some(true)
}

#[inline(never)]
fn text(table: &Map<String, Value>, name: &str) -> String {
    table.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[inline(never)]
fn whole(table: &Map<String, Value>, name: &str) -> u64 {
    table.get(name).and_then(Value::as_u64).unwrap_or_default()
}

/// Nanoseconds, as a number or as a duration of Go.
fn duration(value: &Value) -> Option<i64> {
    match value {
        Value::String(text) => i64::try_from(config::go_duration(text)?.as_nanos()).ok(),
        other => other.as_i64(),
    }
}

fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > limit { Err(format!("has more than the {limit} bytes allowed")) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<RunnerFile, String> {
        let name = format!("vcd-runner-{}-{:x}.toml", std::process::id(), text.as_ptr() as usize);
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).unwrap();
        let read = RunnerFile::read(&path);
        std::fs::remove_file(path).unwrap();
        read
    }

    #[test]
    fn the_plugin_is_known_by_all_its_names() {
        for name in [
            "fleeting-plugin-vcd",
            "fleeting-plugin-vcd:0.1.0",
            "/usr/local/bin/fleeting-plugin-vcd",
            r"C:\GitLab-Runner\fleeting-plugin-vcd.exe",
            "registry.example.com:5000/ci/fleeting-plugin-vcd:latest",
            "vcd:1",
        ] {
            assert!(is_this_plugin(name), "{name}");
        }
        for name in ["fleeting-plugin-aws", "aws:latest", "vcd/aws", "", "my-vcd"] {
            assert!(!is_this_plugin(name), "{name}");
        }
    }

    #[test]
    fn runners_are_read_as_the_runner_passes_them_on() {
        let file = file(
            r#"
            concurrent = 4
            [[runners]]
              name = "other"
              executor = "shell"
              token_obtained_at = 2026-01-02T03:04:05Z
              token_expires_at = 0001-01-01T00:00:00Z
            [[runners]]
              name = "aws"
              [runners.autoscaler]
                plugin = "aws:latest"
            [[runners]]
              name = "vcd"
              executor = "instance"
              limit = 3
              [runners.autoscaler]
                plugin = "fleeting-plugin-vcd"
                capacity_per_instance = 2
                max_instances = 5
                [runners.autoscaler.plugin_config]
                  name = "n"
                  cpu_count = 2
                  debug = true
                  share = 0.5
                  list = ["a"]
                  metadata = { a = "b" }
                [runners.autoscaler.connector_config]
                  username = "ci"
                  password = "secret"
                  use_static_credentials = true
                  timeout = "1m30s"
                  keepalive = 5
                [[runners.autoscaler.policy]]
                  idle_count = 1
                [[runners.autoscaler.policy]]
                  idle_count = 7
            "#,
        )
        .unwrap();
        assert_eq!((file.count, file.runners.len(), file.concurrent), (3, 1, 4));
        assert_eq!(file.shutdown_timeout, DEFAULT_SHUTDOWN_TIMEOUT);
        let runner = file.only(None).unwrap();
        assert_eq!((runner.limit, runner.capacity, runner.max_instances, runner.idle_count), (3, 2, 5, 7));
        assert_eq!((runner.connector.timeout, runner.connector.keepalive), (90_000_000_000, 5));
        let expected = r#"{"cpu_count":2,"debug":true,"list":["a"],"metadata":{"a":"b"},"name":"n","share":0.5}"#;
        assert_eq!(String::from_utf8(runner.json()).unwrap(), expected);
        let mistakes = runner.config(false).err().unwrap();
        assert!(mistakes.contains("missing required plugin config: url"), "{mistakes}");
        assert!(file.only(Some("aws")).err().unwrap().contains("found: \"vcd\""));
    }

    #[test]
    fn other_plugins_are_named() {
        let runner = |name: usize| format!("[[runners]]\n[runners.autoscaler]\nplugin = \"aws-{name}\"\n");
        let all: String = (0..=MAX_OTHERS_TOLD).map(runner).collect();
        let error = file(&all).unwrap().select(None).err().unwrap();
        assert!(error.ends_with("; found: \"aws-0\", \"aws-1\", \"aws-2\", \"aws-3\", \"aws-4\""), "{error}");
    }

    #[test]
    fn a_syntax_error_names_the_line_and_quotes_nothing() {
        let error = file("concurrent = 1\ntoken = \"glrt-secret\" x\n").err().unwrap();
        assert!(error.contains("line 2") && !error.contains("secret"), "{error}");
        assert!(file("a = 1").unwrap().select(None).err().unwrap().contains("none of the 0 [[runners]] sections"));
        let nested = format!("a = {}", "[".repeat(10_000));
        assert!(file(&nested).is_err());
    }

    #[test]
    fn files_that_are_too_long_are_refused_and_of_many_runners_the_first_are_read() {
        let long = file(&" ".repeat(MAX_FILE as usize + 1)).err().unwrap();
        assert!(long.contains("more than the 1048576 bytes"), "{long}");
        let key = std::env::temp_dir().join(format!("vcd-runner-key-{}", std::process::id()));
        std::fs::write(&key, "x".repeat(MAX_KEY as usize + 1)).unwrap();
        let runner = format!(
            "[[runners]]\n[runners.autoscaler]\nplugin = \"vcd\"\n[runners.autoscaler.connector_config]\nkey_path = {key:?}\n"
        );
        let read = file(&runner.repeat(MAX_RUNNERS + 1)).unwrap();
        std::fs::remove_file(key).unwrap();
        assert_eq!((read.count, read.runners.len()), (MAX_RUNNERS, MAX_RUNNERS));
        let mistakes = read.runners[0].config(false).unwrap_err();
        assert!(mistakes.contains("key_path") && mistakes.contains("more than the 65536 bytes"), "{mistakes}");
    }
}
