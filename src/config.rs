//! plugin_config and connector_config, as the host sends them in Init. This module turns them into settings, a list of
//! errors, and a list of warnings for the user. It reads the files that the keys name, except the certificates. It
//! reads the token file only if credentials are derived from the token. It sends nothing to VCD: whether a name exists
//! there is checked later.

use crate::access::{Key, Protocol, Seed};
use crate::cloud::Secret;
use crate::{access, group, vcd};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::fs::File;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use ureq::http::Uri;

/// Maximum size of plugin_config, in bytes.
pub const MAX_CONFIG: usize = 64 * 1024;
/// Maximum length of a name, in characters. VCD's own names are shorter.
const MAX_TEXT: usize = 256;
/// Maximum length of a prefix, in characters. With `-` and 8 more it stays below the 80 that vCenter allows for the
/// name of a VM.
pub const MAX_PREFIX: usize = 64;
/// Maximum length of an API token or of the url, in characters.
const MAX_LONG_TEXT: usize = 4096;
/// Maximum length of a guest's user name or password, in characters.
const MAX_CREDENTIAL: usize = 256;
/// Minimum length of a secret from which credentials are derived, in characters: guests show public keys, so a short
/// secret could be guessed offline.
const MIN_SEED: usize = 16;
/// Maximum number of entries in a table.
const MAX_ENTRIES: usize = 64;
/// Maximum length of a key in a table, such as the name of a metadata entry, in characters.
const MAX_ENTRY_KEY: usize = 256;
/// Maximum length of `user_data_file`, in characters. VCD gets it in base64 as one attribute.
const MAX_USER_DATA: usize = 48 * 1024;
/// A lease ends this long after twice max_instance_age: later than the garbage collection that deletes the instance,
/// and later than the margin before its end in which the plugin treats a lease as expired.
const LEASE_EXTRA: Duration = Duration::from_secs(2 * 60 * 60);
/// Value of a key: the plugin decides.
const AUTO: &str = "auto";
/// The key of the limit on all operations.
const OPERATIONS: &str = "max_concurrent_operations";
/// Warning about a service account's token from which guest credentials are derived.
pub const SEED_CHANGES: &str = "guest credentials are derived from the token, but VCD replaces this token at each login: after \
                                a restart all VMs are unhealthy; set credentials_seed to derive them from that";
/// The environment variable with the token, if plugin_config has none.
const TOKEN_VARIABLE: &str = "VCD_TOKEN";
/// Maximum length of a user's text in messages, in characters.
const MAX_SHOWN: usize = 64;
/// Maximum number of unknown keys that are named. The others are counted.
const MAX_UNKNOWN_NAMED: usize = 10;
/// Maximum number of edits between an unknown key and the known key that is suggested for it.
const MAX_EDITS: usize = 3;
/// Guests do not boot with less memory. The usual cause is GB instead of MB.
const LITTLE_MEMORY_MB: u32 = 256;
/// With a longer `reconcile_interval` the plugin notices VMs late.
const SLOW_INTERVAL: Duration = Duration::from_secs(60);
/// The kernel's limit for a socket's path, in bytes.
const MAX_SOCKET_PATH: usize = 107;

/// connector_config as it comes over gRPC (`proto.ConnectorConfig`).
#[derive(Clone, Default)]
pub struct Connector {
    /// Go's name of the OS, or empty.
    pub os: String,
    /// Go's name of the architecture, or empty.
    pub arch: String,
    /// `ssh`, `winrm`, `winrm+https` or empty.
    pub protocol: String,
    /// The user, or empty.
    pub username: String,
    /// The password, or empty.
    pub password: String,
    /// PEM private key, or empty.
    pub key: Vec<u8>,
    /// use_static_credentials.
    pub use_static_credentials: bool,
    /// Nanoseconds.
    pub keepalive: i64,
    /// Nanoseconds.
    pub timeout: i64,
    /// 0: the protocol's default.
    pub protocol_port: i64,
}

/// All settings of the user.
#[derive(Clone, Debug)]
pub struct Config {
    /// For the VCD client.
    pub vcd: vcd::Settings,
    /// For the group.
    pub policy: group::Policy,
    /// For the guests.
    pub access: access::Settings,
    /// `HOST:PORT` or `unix:/PATH` of the debug server, if there is one.
    pub debug_server_addr: Option<String>,
    /// Guests' credentials are derived from the token.
    pub seed_is_token: bool,
    /// Warnings for the user: unknown keys with the nearest known key, an `http://` url.
    pub warnings: Vec<String>,
}

/// The settings as far as they could be read. A wrong value is empty here.
pub struct Draft {
    /// The settings.
    pub config: Config,
    /// The mistakes: one line each, without any part of the token, the password or the key.
    pub errors: Vec<String>,
}

impl Draft {
    /// The settings, or all mistakes in one line.
    pub fn checked(self) -> Result<Config, String> {
        if self.errors.is_empty() { Ok(self.config) } else { Err(self.errors.join("; ")) }
    }
}

/// A key of plugin_config.
#[derive(Clone, Copy, Debug)]
pub struct ConfigKey {
    /// The name in plugin_config.
    pub name: &'static str,
    /// The kind of its value.
    pub kind: Kind,
    /// The default, written as in plugin_config. `None`: the key is required.
    pub default: Option<&'static str>,
    /// One or two sentences for users.
    pub doc: &'static str,
}

/// The kind of a key's value. The limits are inclusive.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A string without control characters. An empty one counts as not set.
    Text {
        /// Maximum length in characters.
        max: usize,
    },
    /// A whole number.
    Whole {
        /// Minimum.
        min: u32,
        /// Maximum.
        max: u32,
    },
    /// true or false.
    Flag,
    /// true, false, or the string "auto".
    AutoFlag,
    /// A table of strings, each without control characters.
    Table {
        /// Maximum length of a value, in characters.
        max: usize,
    },
    /// A duration as Go writes it, such as "1h30m". An empty one counts as not set.
    Span {
        /// Minimum.
        min: Duration,
        /// Maximum.
        max: Duration,
    },
}

/// All keys of plugin_config.
pub const KEYS: &[ConfigKey] = {
    const fn key(name: &'static str, kind: Kind, default: Option<&'static str>, doc: &'static str) -> ConfigKey {
        ConfigKey { name, kind, default, doc }
    }
    const fn whole(min: u32, max: u32) -> Kind {
        Kind::Whole { min, max }
    }
    const fn span(min_secs: u64, max_secs: u64) -> Kind {
        Kind::Span { min: Duration::from_secs(min_secs), max: Duration::from_secs(max_secs) }
    }
    const NAME: Kind = Kind::Text { max: MAX_TEXT };
    const LONG: Kind = Kind::Text { max: MAX_LONG_TEXT };
    const DAY: u64 = 24 * 60 * 60;
    &[
        key("name", NAME, None, "Name of this runner manager. It is part of the owner tag on each vApp."),
        key("url", LONG, None, "Address of the VCD API. /api at its end is optional."),
        key("org", NAME, None, "The VCD organization."),
        key(
            "token",
            LONG,
            Some(""),
            "API token of a user of the organization. If neither token nor token_file is set, the plugin reads $VCD_TOKEN.",
        ),
        key(
            "token_file",
            LONG,
            Some(""),
            "File with the API token of a user or a service account. The plugin reads it again for each login.",
        ),
        key(
            "ca_file",
            LONG,
            Some(""),
            "PEM file with CA certificates to trust in addition to the public CAs and the system's.",
        ),
        key("insecure_skip_tls_verify", Kind::Flag, Some("false"), "Do not verify TLS certificates. For tests only."),
        key("virtual_datacenter", NAME, None, "The virtual data center (VDC): its name, id or link."),
        key("network", NAME, None, "The organization VDC network of the VMs: its name, id or link."),
        key(
            "ip_allocation_mode",
            NAME,
            None,
            "How VMs get an IP address: POOL (the network's static IP pool) or DHCP.",
        ),
        key(
            "instance_group_name",
            NAME,
            None,
            "Name of the instance group. Also the value of the metadata entry vcd-instance-group.",
        ),
        key("vapp_name_prefix", Kind::Text { max: MAX_PREFIX }, None, "Prefix of vApp names: PREFIX-xxxxxxxx."),
        key(
            "catalog",
            NAME,
            None,
            "The catalog with the template: its name, ORG/NAME, id or link. A name may be a pattern with *.",
        ),
        key(
            "template",
            NAME,
            None,
            "The vApp template, with exactly one VM: its name, id or link. With a pattern such as debian-13-*, the newest match.",
        ),
        key("storage_profile", NAME, None, "The storage profile (storage policy) of the VMs: its name, id or link."),
        key("sizing_policy", NAME, Some(""), "VM sizing policy. With one, CPUs and memory are optional."),
        key("placement_policy", NAME, Some(""), "VM placement policy. With one, CPUs and memory are optional."),
        key("cpu_count", whole(0, 1024), Some("0"), "Number of virtual CPUs of a VM."),
        key("cores_per_socket", whole(0, 1024), Some("0"), "Cores per CPU socket. It must divide cpu_count."),
        key("memory_mb", whole(0, 25_165_824), Some("0"), "Memory of a VM in MB. It must be a multiple of 4."),
        key(
            "disk_size_gb",
            whole(0, 63_488),
            Some("0"),
            "Size of the boot disk in GB. 0 keeps the size in the template.",
        ),
        key("guest_properties", Kind::Table { max: MAX_LONG_TEXT }, Some(""), "OVF properties for the guest."),
        key(
            "user_data_file",
            LONG,
            Some(""),
            "File with user data for cloud-init. The guest gets it as the OVF property user-data.",
        ),
        key(
            "login_script",
            Kind::Flag,
            Some("true"),
            "Run a script in new guests that sets up the login for GitLab Runner. Set false if the template or the user data does that.",
        ),
        key(
            "customization_script_file",
            LONG,
            Some(""),
            "File with a script that new guests run after the plugin's own script.",
        ),
        key("metadata", Kind::Table { max: MAX_LONG_TEXT }, Some(""), "Metadata entries to write on the vApps."),
        key(
            "metadata_label",
            Kind::AutoFlag,
            Some(AUTO),
            "Write the metadata entry vcd-instance-group. auto: only if the plugin found vApps of the Go plugin at its start, or if metadata is set.",
        ),
        key(
            "lease",
            NAME,
            Some("auto"),
            "auto: request a lease of twice max_instance_age plus 2 h (storage lease: suspended_max_age plus 2 h if that is longer). org: keep the organization's default.",
        ),
        key(
            "debug_server_addr",
            NAME,
            Some(""),
            "Address of the debug server: HOST:PORT or unix:/PATH. Empty: no debug server.",
        ),
        key("max_size", whole(1, 1000), Some("128"), "Maximum number of instances."),
        key("max_concurrent_creates", whole(1, 128), Some("3"), "Maximum number of creates at the same time."),
        key("max_concurrent_deletes", whole(1, 128), Some("5"), "Maximum number of deletes at the same time."),
        key(
            OPERATIONS,
            whole(1, 128),
            Some("4"),
            "Maximum number of creates, deletes, suspends and resumes at the same time. Creates and resumes come first.",
        ),
        key(
            "create_timeout",
            span(1, DAY),
            Some("20m"),
            "Maximum duration of a create. The plugin gives up a create that takes longer.",
        ),
        key(
            "startup_cleanup_timeout",
            span(0, DAY),
            Some("30m"),
            "Maximum time that creates wait while the plugin deletes leftovers of an earlier run.",
        ),
        key(
            "session_refresh_interval",
            span(1, DAY - 1),
            Some("20h"),
            "Age at which the plugin renews its VCD session.",
        ),
        key(
            "reconcile_interval",
            span(1, 3600),
            Some("10s"),
            "Interval between two polls of all VMs. The plugin polls booting VMs more often.",
        ),
        key(
            "ready_timeout",
            span(1, DAY),
            Some("10m"),
            "Maximum time from the end of the create task until the guest is ready. After that the plugin deletes the VM and creates it again.",
        ),
        key(
            "credentials_seed",
            LONG,
            Some(""),
            "With use_static_credentials = false: the secret from which the plugin derives all keys and passwords. Empty: the API token.",
        ),
        key(
            "max_instance_age",
            span(0, 366 * DAY),
            Some("24h"),
            "Age at which a VM becomes unhealthy and gets no new jobs. At twice this age the plugin deletes it. The age counts from the create, or from the last resume. 0: never.",
        ),
        key("suspend_resume", Kind::Flag, Some("true"), "Offer suspend and resume to GitLab Runner."),
        key(
            "suspended_max_age",
            span(0, 366 * DAY),
            Some("72h"),
            "Maximum time that a VM stays suspended. After that the plugin deletes it. 0: no limit.",
        ),
        key(
            "standby_count",
            whole(0, 1000),
            Some("0"),
            "Number of suspended VMs that the plugin keeps ready for the next jobs, in addition to max_size. 0: none.",
        ),
        key(
            "standby_max_age",
            span(0, 366 * DAY),
            Some("24h"),
            "Age at which the plugin replaces a standby VM. 0: never.",
        ),
        key(
            "on_shutdown",
            NAME,
            Some("delete"),
            "What happens to VMs when GitLab Runner shuts down. delete: the plugin deletes all of them. keep: running and suspended VMs stay.",
        ),
    ]
};

/// A checked value of a key.
enum Found {
    Text(String),
    Whole(u32),
    Flag(bool),
    Table(Vec<(String, String)>),
    Span(Duration),
}

/// The values found so far, and the mistakes in the others. The getters return empty or zero for a wrong value: there
/// is a mistake then, and nobody uses the result.
#[derive(Default)]
struct Reading {
    values: Vec<(&'static str, Found)>,
    mistakes: Vec<String>,
    warnings: Vec<String>,
}

impl Config {
    /// The identity of this group. If two plugins have the same identity, the one that starts adopts the VMs of the
    /// other.
    pub fn identity(&self) -> [&str; 6] {
        let (vcd, policy) = (&self.vcd, &self.policy);
        [&vcd.url, &vcd.org, &vcd.vdc, &policy.prefix, &policy.group, &policy.manager]
    }

    /// [`Config::read`] for callers that stop at a mistake. The error names every mistake.
    pub fn parse(plugin_config: &[u8], connector: &Connector) -> Result<Config, String> {
        Config::read(plugin_config, connector).checked()
    }

    /// Reads plugin_config (JSON, at most [`MAX_CONFIG`] bytes) and connector_config.
    pub fn read(plugin_config: &[u8], connector: &Connector) -> Draft {
        Config::read_with(plugin_config, connector, std::env::var(TOKEN_VARIABLE).ok())
    }

    fn read_with(plugin_config: &[u8], connector: &Connector, token: Option<String>) -> Draft {
        let mut reading = Reading::default();
        match object(plugin_config) {
            Ok(object) => reading.read(&object),
            Err(mistake) => reading.mistakes.push(mistake),
        }
        let (ip_mode, url, debug_server_addr) = reading.check();
        let on_shutdown = reading.on_shutdown();
        let token = reading.token(token);
        reading.check_hardware();
        reading.check_names();
        reading.check_tables();
        reading.check_pace();
        let lease = reading.lease();
        let user_data = reading.file("user_data_file", MAX_USER_DATA);
        let custom_script = reading.file("customization_script_file", vcd::MAX_SCRIPT);
        let access = reading.connector(connector, token.as_ref(), custom_script);
        let token = token.unwrap_or_else(|| vcd::Token::Text(Secret::new("")));
        let vcd = vcd::Settings {
            url,
            org: reading.text("org"),
            token,
            ca_file: reading.some("ca_file").map(PathBuf::from),
            insecure_skip_tls_verify: reading.flag("insecure_skip_tls_verify"),
            vdc: reading.text("virtual_datacenter"),
            network: reading.text("network"),
            ip_mode,
            catalog: reading.text("catalog"),
            template: reading.text("template"),
            template_life: vcd::template_life(&reading.text("catalog"), &reading.text("template")),
            storage_profile: reading.text("storage_profile"),
            sizing_policy: reading.some("sizing_policy"),
            placement_policy: reading.some("placement_policy"),
            cpus: reading.whole("cpu_count"),
            cores_per_socket: reading.whole("cores_per_socket"),
            memory_mb: reading.whole("memory_mb"),
            disk_gb: reading.whole("disk_size_gb"),
            vapp_prefix: reading.text("vapp_name_prefix"),
            label: reading.text("instance_group_name"),
            metadata: reading.table("metadata").to_vec(),
            guest_properties: reading
                .table("guest_properties")
                .iter()
                .map(|(key, value)| (key.clone(), Secret::new(value)))
                .collect(),
            user_data,
            lease,
            session_refresh: reading.span("session_refresh_interval"),
            poll_interval: reading.span("reconcile_interval"),
            standby: reading.whole("standby_count") > 0,
            guest_source: access::source(&access),
        };
        let policy = group::Policy {
            manager: reading.text("name"),
            group: reading.text("instance_group_name"),
            prefix: reading.text("vapp_name_prefix"),
            max_size: reading.whole("max_size"),
            max_creates: reading.whole("max_concurrent_creates"),
            max_deletes: reading.whole("max_concurrent_deletes"),
            max_operations: reading.whole(OPERATIONS),
            create_timeout: reading.span("create_timeout"),
            startup_cleanup_timeout: reading.span("startup_cleanup_timeout"),
            reconcile_interval: reading.span("reconcile_interval"),
            ready_timeout: reading.span("ready_timeout"),
            max_instance_age: reading.span("max_instance_age"),
            suspended_max_age: reading.span("suspended_max_age"),
            suspend_resume: reading.flag("suspend_resume"),
            standby_count: reading.whole("standby_count"),
            dhcp: ip_mode == vcd::IpMode::Dhcp,
            standby_max_age: reading.span("standby_max_age"),
            credentials: access::fingerprint(&access),
            labels: match reading.text("metadata_label").as_str() {
                "true" => group::Labels::All,
                "false" => group::Labels::None,
                _ if !reading.table("metadata").is_empty() => group::Labels::All,
                _ => group::Labels::Found,
            },
            on_shutdown,
        };
        let seed_is_token = access.seed.is_some() && reading.some("credentials_seed").is_none();
        let warnings = reading.warnings;
        let config = Config { vcd, policy, access, debug_server_addr, seed_is_token, warnings };
        Draft { config, errors: reading.mistakes }
    }
}

/// plugin_config as a JSON object. If a key is there twice, the last one counts.
fn object(plugin_config: &[u8]) -> Result<Map<String, Value>, String> {
    if plugin_config.len() > MAX_CONFIG {
        return Err(format!("plugin_config has {} bytes, more than the {MAX_CONFIG} allowed", plugin_config.len()));
    }
    if plugin_config.trim_ascii().is_empty() {
        return Err("plugin_config is empty".into());
    }
    match serde_json::from_slice(plugin_config) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(Value::Null) => Err("plugin_config is missing".into()),
        Ok(other) => Err(format!("plugin_config: expected an object, found {}", kind_of(&other))),
        // serde_json's messages for syntax errors are fixed texts with a position. They quote nothing.
        Err(error) => Err(format!("plugin_config is not JSON: {error}")),
    }
}

impl Reading {
    fn get(&self, name: &str) -> Option<&Found> {
        self.values.iter().find(|(key, _)| *key == name).map(|(_, found)| found)
    }

    fn forget(&mut self, name: &str) {
        self.values.retain(|(key, _)| *key != name);
    }

    fn text(&self, name: &str) -> String {
        if let Some(Found::Text(text)) = self.get(name) { text.clone() } else { String::new() }
    }

    /// The text, if it is set.
    fn some(&self, name: &str) -> Option<String> {
        Some(self.text(name)).filter(|text| !text.is_empty())
    }

    fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some(Found::Flag(true)))
    }

    fn table(&self, name: &str) -> &[(String, String)] {
        if let Some(Found::Table(table)) = self.get(name) { table } else { &[] }
    }

    fn whole(&self, name: &str) -> u32 {
        if let Some(Found::Whole(number)) = self.get(name) { *number } else { 0 }
    }

    fn span(&self, name: &str) -> Duration {
        if let Some(Found::Span(span)) = self.get(name) { *span } else { Duration::ZERO }
    }

    /// Reads all keys of the table.
    fn read(&mut self, object: &Map<String, Value>) {
        for key in KEYS {
            match read_key(key, object.get(key.name)) {
                Ok(found) => self.values.push((key.name, found)),
                Err(mistake) => self.mistakes.push(mistake),
            }
            // A token with white space is a mistake anyway.
            if let Some(Found::Text(text)) = self.get(key.name)
                && text.trim() != text
                && key.name != "token"
            {
                self.warnings.push(format!("{}: begins or ends with white space, which is kept", key.name));
            }
        }
        // A configuration without this key may be older than the key. Its other limits stay in force: one slot is
        // reserved for creates.
        let given = |name: &str| object.get(name).is_some_and(|value| !value.is_null());
        if !given(OPERATIONS) {
            let limits = [("max_concurrent_creates", 0), ("max_concurrent_deletes", 1)];
            let needed = limits.into_iter().filter(|(name, _)| given(name)).map(|(name, more)| self.whole(name) + more);
            let least = needed.fold(self.whole(OPERATIONS), u32::max);
            self.forget(OPERATIONS);
            self.values.push((OPERATIONS, Found::Whole(least)));
        }
        let unknown: Vec<&String> = object.keys().filter(|name| KEYS.iter().all(|key| key.name != *name)).collect();
        for name in unknown.iter().take(MAX_UNKNOWN_NAMED) {
            self.warnings.push(match nearest_key(name) {
                Some(known) => format!("unknown key {} is ignored, did you mean {known}?", shown(name)),
                None => format!("unknown key {} is ignored", shown(name)),
            });
        }
        if let more @ 1.. = unknown.len().saturating_sub(MAX_UNKNOWN_NAMED) {
            self.warnings.push(format!("{more} more unknown keys are ignored"));
        }
    }

    fn on_shutdown(&mut self) -> group::OnShutdown {
        match self.text("on_shutdown").as_str() {
            "keep" => group::OnShutdown::Keep,
            "delete" | "" => group::OnShutdown::Delete,
            other => {
                self.mistakes.push(format!("invalid on_shutdown: {} (expected delete or keep)", shown(other)));
                group::OnShutdown::Delete
            }
        }
    }

    /// Checks that the table cannot express. Returns the values that are converted: IP mode, url, debug address.
    fn check(&mut self) -> (vcd::IpMode, String, Option<String>) {
        let ip_mode = match self.text("ip_allocation_mode").as_str() {
            "POOL" | "" => vcd::IpMode::Pool,
            "DHCP" => vcd::IpMode::Dhcp,
            other => {
                self.mistakes.push(format!("invalid ip_allocation_mode: {} (expected POOL or DHCP)", shown(other)));
                vcd::IpMode::Pool
            }
        };

        let mut url = self.text("url");
        if !url.is_empty() {
            match check_url(&url) {
                Ok(true) => {}
                Ok(false) => self.warnings.push("url: with http:// the token is sent unencrypted".into()),
                Err(wrong) => {
                    self.mistakes.push(format!("url: {wrong}"));
                    url.clear();
                }
            }
        }
        if !url.is_empty() {
            url.truncate(url.trim_end_matches('/').len());
            if !url.ends_with("/api") {
                url.push_str("/api");
            }
        }

        if self.flag("insecure_skip_tls_verify") {
            let text = "insecure_skip_tls_verify: TLS certificates are not verified, so anyone on the network path can read the token";
            self.warnings.push(text.into());
        }

        let prefix = self.text("vapp_name_prefix");
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if let Some(wrong) = prefix.chars().find(|c| !fits(*c)) {
            let wrong = wrong.escape_debug();
            self.mistakes
                .push(format!("vapp_name_prefix: may contain letters, digits, '-', '_' and '.', found '{wrong}'"));
        } else if prefix.starts_with(['-', '_', '.']) {
            self.mistakes.push("vapp_name_prefix: must begin with a letter or a digit".into());
        }

        let mut address = Some(self.text("debug_server_addr")).filter(|address| !address.is_empty());
        if let Some(address) = &mut address {
            if address.starts_with(':') {
                address.insert_str(0, "0.0.0.0");
            }
            let path = address.strip_prefix("unix:");
            if !path
                .map_or_else(|| is_host_port(address), |path| path.starts_with('/') && path.len() <= MAX_SOCKET_PATH)
            {
                let text = "debug_server_addr: expected HOST:PORT, such as 127.0.0.1:27060, or unix:/PATH";
                self.mistakes.push(text.into());
            } else if path.is_none() && !is_loopback(address) {
                let text = "anyone who can reach this address can read the debug pages: they need no password";
                self.warnings.push(format!("debug_server_addr: {}: {text}", shown(address)));
            }
        }
        (ip_mode, url, address)
    }

    /// The token, from exactly one source. The environment counts only if the configuration has no token.
    fn token(&mut self, variable: Option<String>) -> Option<vcd::Token> {
        let variable = variable.filter(|token| !token.is_empty());
        let (name, token) = match (self.some("token"), self.some("token_file"), variable) {
            (Some(_), Some(_), _) => {
                self.mistakes.push("token, token_file: set only one of them".into());
                return None;
            }
            (None, None, None) => {
                let text = format!("missing required plugin config: token (or token_file, or ${TOKEN_VARIABLE})");
                self.mistakes.push(text);
                return None;
            }
            (token, file, Some(_)) if token.is_some() || file.is_some() => {
                let name = if token.is_some() { "token" } else { "token_file" };
                self.warnings.push(format!("${TOKEN_VARIABLE} is ignored: {name} is set"));
                match file {
                    Some(file) => return Some(vcd::Token::File(file.into())),
                    None => ("token", token?),
                }
            }
            (_, Some(file), _) => return Some(vcd::Token::File(file.into())),
            (Some(token), ..) => ("token", token),
            (.., Some(token)) => ("$VCD_TOKEN", token),
        };
        if token.chars().count() > MAX_LONG_TEXT || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            self.mistakes.push(format!("{name}: contains white space or other invalid characters, or is too long"));
            return None;
        }
        Some(vcd::Token::Text(Secret::new(token)))
    }

    /// CPUs and memory. A policy can replace them.
    fn check_hardware(&mut self) {
        let has_policy = self.some("sizing_policy").is_some() || self.some("placement_policy").is_some();
        for name in ["cpu_count", "cores_per_socket", "memory_mb"] {
            if matches!(self.get(name), Some(Found::Whole(0))) && !has_policy {
                self.mistakes.push(format!("missing required plugin config: {name}"));
            }
        }
        let (cpus, cores) = (self.whole("cpu_count"), self.whole("cores_per_socket"));
        if self.some("sizing_policy").is_some() && (cpus > 0 || self.whole("memory_mb") > 0) {
            self.warnings
                .push("sizing_policy: values that it fixes override cpu_count, cores_per_socket and memory_mb".into());
        }
        if cpus > 0 && cores > 0 && cpus % cores != 0 {
            self.mistakes.push(format!("cores_per_socket: {cores} does not divide cpu_count {cpus}"));
        }
        let memory = self.whole("memory_mb");
        if !memory.is_multiple_of(4) {
            self.mistakes.push(format!("memory_mb: {memory} is not a multiple of 4"));
        }
        if (1..LITTLE_MEMORY_MB).contains(&memory) {
            self.warnings
                .push(format!("memory_mb: {memory} MB is too little for a guest; {memory} GB is {}", memory * 1024));
        }
    }

    /// Settings that make the plugin slow.
    fn check_pace(&mut self) {
        let interval = self.span("reconcile_interval");
        if interval > SLOW_INTERVAL {
            let text = format!("reconcile_interval: the plugin notices lost VMs up to {} late", in_go(interval));
            self.warnings.push(text);
        }
    }

    /// An id or a link must be one of the right kind of object.
    fn check_names(&mut self) {
        let names = [
            ("virtual_datacenter", vcd::Kind::Vdc),
            ("network", vcd::Kind::Network),
            ("catalog", vcd::Kind::Catalog),
            ("template", vcd::Kind::Template),
            ("storage_profile", vcd::Kind::StorageProfile),
        ];
        for (key, kind) in names {
            let text = self.text(key);
            if let Err(wrong) = vcd::check_name(kind, &text) {
                self.mistakes.push(format!("{key}: {wrong}, found {}", shown(&text)));
                self.forget(key);
            }
        }
    }

    /// The user cannot set entries that the plugin writes.
    fn check_tables(&mut self) {
        if self.table("metadata").iter().any(|(key, _)| key == vcd::LABEL_KEY) {
            self.mistakes.push(format!("metadata: {} is written by the plugin itself", vcd::LABEL_KEY));
        }
        if self.text("metadata_label") == "false" && !self.table("metadata").is_empty() {
            self.mistakes
                .push("metadata: metadata_label = false turns off all metadata entries: set it to auto or true".into());
        }
        let given = self.table("guest_properties").iter().any(|(key, _)| key == vcd::USER_DATA);
        if given && self.some("user_data_file").is_some() {
            self.mistakes.push(format!("guest_properties: {} is set by user_data_file already", vcd::USER_DATA));
        }
    }

    /// The lease of a vApp, for one that nobody deletes. It is longer than the age at which the garbage collection
    /// deletes it, for running and for suspended VMs.
    fn lease(&mut self) -> Option<vcd::Lease> {
        let awake = self.span("max_instance_age").saturating_mul(2);
        let asleep = [
            self.flag("suspend_resume").then(|| self.span("suspended_max_age")),
            (self.whole("standby_count") > 0).then(|| self.span("standby_max_age")),
        ];
        let asleep = asleep.into_iter().flatten();
        let forever = asleep.clone().any(|span| span.is_zero());
        let storage = (!forever).then(|| asleep.fold(awake, Duration::max));
        let with_extra = |span: Duration| span.saturating_add(LEASE_EXTRA);
        match self.text("lease").as_str() {
            "auto" if awake.is_zero() => None,
            "auto" => Some(vcd::Lease { runtime: with_extra(awake), storage: storage.map(with_extra) }),
            "org" | "" => None,
            other => {
                self.mistakes.push(format!("invalid lease: {} (expected auto or org)", shown(other)));
                None
            }
        }
    }

    /// The text in the file that a key names, at most `max` characters.
    fn file(&mut self, key: &str, max: usize) -> Option<Secret> {
        let path = self.some(key)?;
        let read = || -> Result<String, String> {
            let mut text = String::new();
            // A character has at most four bytes.
            let most = max as u64 * 4 + 1;
            let file = File::open(&path).map_err(|e| e.to_string())?;
            file.take(most).read_to_string(&mut text).map_err(|e| e.to_string())?;
            match text.chars().count() {
                0 => Err("is empty".into()),
                count if count > max => Err(format!("has more than the {max} characters allowed")),
                _ => Ok(text),
            }
        };
        let wrong = |why| format!("{key}: {}: {why}{}", shown(&path), tilde(&path));
        read().map(Secret::new).map_err(|why| self.mistakes.push(wrong(why))).ok()
    }

    /// The secret from which credentials are derived: credentials_seed or, without one, the current token. `None` after
    /// a mistake.
    fn seed(&mut self, token: Option<&vcd::Token>) -> Option<Seed> {
        let secret = match self.some("credentials_seed") {
            Some(seed) => Secret::new(seed),
            None => token?.read().map_err(|why| self.mistakes.push(format!("token_file: {why}"))).ok()?,
        };
        Some(Seed::new(secret))
    }

    /// connector_config, and the other settings for guests.
    fn connector(
        &mut self,
        connector: &Connector,
        token: Option<&vcd::Token>,
        custom_script: Option<Secret>,
    ) -> access::Settings {
        let mut wrong = |key: &str, text: String| self.mistakes.push(format!("connector_config: {key}: {text}"));

        if !matches!(connector.os.as_str(), "" | "linux" | "windows") {
            wrong("os", format!("expected linux or windows, found {}", shown(&connector.os)));
        }
        if !matches!(connector.arch.as_str(), "" | "amd64" | "arm64" | "386" | "arm") {
            wrong("arch", format!("expected amd64, arm64, 386 or arm, found {}", shown(&connector.arch)));
        }
        let protocol = match connector.protocol.as_str() {
            "" | "ssh" => Protocol::Ssh,
            "winrm" => Protocol::Winrm,
            "winrm+https" => Protocol::WinrmHttps,
            other => {
                wrong("protocol", format!("expected ssh, winrm or winrm+https, found {}", shown(other)));
                Protocol::Ssh
            }
        };
        if protocol != Protocol::Ssh && connector.os == "linux" {
            wrong("protocol", "winrm is for windows, not for linux".into());
        }
        let port = match u16::try_from(connector.protocol_port) {
            Ok(0) => protocol.default_port(),
            Ok(port) => port,
            Err(_) => {
                wrong("protocol_port", format!("{} is not from 0 to 65535", connector.protocol_port));
                0
            }
        };
        for (name, value) in [("keepalive", connector.keepalive), ("timeout", connector.timeout)] {
            if value < 0 {
                wrong(name, "is negative".into());
            }
        }

        let user = connector.username.as_str();
        if user.contains(|c: char| c.is_control() || matches!(c, ':' | '/')) {
            wrong("username", "contains ':', '/' or a control character".into());
        } else if user.starts_with('-') || user.trim() != user {
            wrong("username", "begins with '-', or begins or ends with white space".into());
        }
        if user.chars().count() > MAX_CREDENTIAL {
            wrong("username", format!("has more than the {MAX_CREDENTIAL} characters allowed"));
        }
        let password = connector.password.as_str();
        if password.contains(char::is_control) {
            wrong("password", "contains a line break or another control character".into());
        }
        if password.chars().count() > MAX_CREDENTIAL {
            wrong("password", format!("has more than the {MAX_CREDENTIAL} characters allowed"));
        }
        let key = match connector.key.as_slice() {
            [] => None,
            pem => Key::parse(pem).map_err(|error| wrong("key_path", error)).ok(),
        };
        let given = !password.is_empty() || !connector.key.is_empty();
        if !connector.use_static_credentials && given {
            let text = "with false the plugin generates credentials: set it to true, or remove password and key_path";
            wrong("use_static_credentials", text.into());
        } else if connector.use_static_credentials && !given {
            wrong("use_static_credentials", "needs username and password, or key_path".into());
        } else if connector.use_static_credentials && protocol != Protocol::Ssh && password.is_empty() {
            wrong("password", "is needed for winrm".into());
        }

        if !self.flag("login_script") && !connector.use_static_credentials {
            let text = "login_script: false needs use_static_credentials = true: the template cannot know generated credentials";
            self.mistakes.push(text.into());
        }
        let seed = self.text("credentials_seed");
        if !seed.is_empty() && seed.chars().count() < MIN_SEED {
            self.mistakes.push(format!("credentials_seed: has fewer than the {MIN_SEED} characters required"));
        }
        let seed = if connector.use_static_credentials { None } else { self.seed(token) };
        let settings = access::Settings {
            os: Some(connector.os.clone()).filter(|os| !os.is_empty()),
            arch: Some(connector.arch.clone()).filter(|arch| !arch.is_empty()),
            protocol,
            port,
            username: Some(connector.username.clone()).filter(|user| !user.is_empty()),
            password: Some(password).filter(|password| !password.is_empty()).map(Secret::new),
            key,
            seed,
            custom_script,
            login_script: self.flag("login_script"),
            keepalive: connector.keepalive,
            timeout: connector.timeout,
        };
        if let Err(error) = access::check(&settings, None) {
            self.mistakes.push(error);
        }
        settings
    }
}

/// The value of one key, or its mistake. It shows numbers, but no other value.
fn read_key(key: &ConfigKey, given: Option<&Value>) -> Result<Found, String> {
    let name = key.name;
    let given = given.filter(|value| !value.is_null() && value.as_str() != Some(""));
    let default = key.default.map(Value::from);
    let Some(value) = given.or(default.as_ref()) else {
        return Err(format!("missing required plugin config: {name}"));
    };
    match key.kind {
        Kind::Text { max } => {
            let text = value.as_str().ok_or_else(|| format!("{name}: expected a string, found {}", kind_of(value)))?;
            if text.contains(char::is_control) {
                return Err(format!("{name}: contains a line break or another control character"));
            }
            match text.chars().count() {
                length if length > max => Err(format!("{name}: has {length} characters, more than the {max} allowed")),
                _ => Ok(Found::Text(text.into())),
            }
        }
        Kind::Whole { min, max } => {
            let number = match value {
                Value::Number(number) => number.as_i128(),
                Value::String(text) if given.is_none() => text.parse().ok(),
                _ => None,
            };
            let number = number.ok_or_else(|| format!("{name}: expected a whole number, found {}", kind_of(value)))?;
            match u32::try_from(number) {
                Ok(number) if (min..=max).contains(&number) => Ok(Found::Whole(number)),
                _ => Err(format!("{name}: {number} is not from {min} to {max}")),
            }
        }
        Kind::Flag => match value {
            Value::Bool(flag) => Ok(Found::Flag(*flag)),
            Value::String(text) if given.is_none() => Ok(Found::Flag(text == "true")),
            _ => Err(format!("{name}: expected true or false, found {}", kind_of(value))),
        },
        Kind::AutoFlag => match value {
            Value::Bool(flag) => Ok(Found::Text(flag.to_string())),
            Value::String(text) if text == AUTO => Ok(Found::Text(text.clone())),
            Value::String(text) => Err(format!("{name}: expected \"auto\", true or false, found {}", shown(text))),
            _ => Err(format!("{name}: expected \"auto\", true or false, found {}", kind_of(value))),
        },
        Kind::Table { max } => match value {
            Value::Object(table) => read_table(name, table, max).map(Found::Table),
            Value::String(_) if given.is_none() => Ok(Found::Table(Vec::new())),
            _ => Err(format!("{name}: expected a table, found {}", kind_of(value))),
        },
        Kind::Span { min, max } => {
            let expected = "expected a duration such as \"1h30m\", found";
            let text = value.as_str().ok_or_else(|| format!("{name}: {expected} {}", kind_of(value)))?;
            let span = go_duration(text).ok_or_else(|| format!("{name}: {expected} {}", shown(text)))?;
            match (min..=max).contains(&span) {
                true => Ok(Found::Span(span)),
                false => Err(format!("{name}: {} is not from {} to {}", shown(text), in_go(min), in_go(max))),
            }
        }
    }
}

fn read_table(name: &str, table: &Map<String, Value>, max: usize) -> Result<Vec<(String, String)>, String> {
    if table.len() > MAX_ENTRIES {
        return Err(format!("{name}: has {} entries, more than the {MAX_ENTRIES} allowed", table.len()));
    }
    let entry = |(key, value): (&String, &Value)| {
        let place = format!("{name}.{}", shown(key));
        let text = value.as_str().ok_or_else(|| format!("{place}: expected a string, found {}", kind_of(value)))?;
        if key.trim().is_empty() || key.contains(char::is_control) || key.chars().count() > MAX_ENTRY_KEY {
            return Err(format!("{place}: is not a valid key: it is empty, too long, or contains a control character"));
        }
        if text.contains(char::is_control) || text.chars().count() > max {
            return Err(format!("{place}: has more than the {max} characters allowed, or a control character"));
        }
        Ok((key.clone(), text.to_owned()))
    };
    table.iter().map(entry).collect()
}

/// The kind of a JSON value in words.
fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(number) if number.is_f64() => "a number with a fraction",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a table",
    }
}

/// A user's text, on one line, cut to a maximum length.
fn shown(text: &str) -> String {
    let cut: String = text.chars().take(MAX_SHOWN).collect();
    let dots = if cut.len() < text.len() { "…" } else { "" };
    format!("{}{dots}", cut.escape_debug())
}

/// A duration as Go's `time.ParseDuration` reads it, without a sign: numbers with units, such as `1h30m` or `1.5h`.
pub(crate) fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut nanos: u64 = 0;
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?);
        let (unit, after) = after.split_at(after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len()));
        let scale: u64 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return None;
        }
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        nanos = nanos.checked_add(whole.checked_mul(scale)?)?;
        let mut place = scale;
        for digit in fraction.bytes() {
            place /= 10;
            nanos = nanos.checked_add(u64::from(digit.wrapping_sub(b'0')).checked_mul(place)?)?;
        }
        rest = after;
    }
    (!text.is_empty()).then(|| Duration::from_nanos(nanos))
}

/// Whole seconds as Go writes them.
fn in_go(span: Duration) -> String {
    let (hours, minutes, seconds) = (span.as_secs() / 3600, span.as_secs() / 60 % 60, span.as_secs() % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        (_, _) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// Whether `url` is one of VCD's API: `Ok(true)` for https, `Ok(false)` for http. The error quotes only a host name,
/// because the url may contain a password.
fn check_url(url: &str) -> Result<bool, Cow<'static, str>> {
    let https = url.starts_with("https://");
    if !https && !url.starts_with("http://") {
        return Err("must begin with https:// or http://".into());
    }
    let uri: Uri = url.parse().map_err(|_| match host_in_ascii(url) {
        Some(host) => format!("has a host name with non-ASCII letters: write its DNS name, {host}").into(),
        None => Cow::Borrowed("is not a valid URL"),
    })?;
    check_parts(&uri, url).map(|()| https).map_err(Cow::Borrowed)
}

fn check_parts(uri: &Uri, url: &str) -> Result<(), &'static str> {
    let authority = uri.authority().ok_or("has no host, expected https://HOST/api")?;
    if authority.as_str().contains('@') {
        return Err("must not contain a user name or password");
    }
    if authority.host().is_empty() {
        return Err("has no host, expected https://HOST/api");
    }
    let port = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
    if !port.is_empty() && !matches!(authority.port_u16(), Some(1..)) {
        return Err("has an invalid port");
    }
    if uri.query().is_some() || url.contains('#') {
        return Err("must not contain '?' or '#'");
    }
    // Another path is usually the address of a web page.
    let path = uri.path().trim_end_matches('/');
    if !path.is_empty() && !path.ends_with("/api") {
        return Err("has a path that does not end in /api, expected https://HOST/api or https://HOST");
    }
    Ok(())
}

/// The host name of a url, converted to ASCII, if its only mistake is non-ASCII letters. Such labels begin with `xn--`
/// and are in Punycode.
fn host_in_ascii(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let (host, port) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
    let part = |part: &str| match part.is_ascii() {
        true => Some(part.to_owned()),
        false => punycode(&part.to_lowercase()).map(|code| format!("xn--{code}")),
    };
    let parts: Option<Vec<String>> = host.split('.').map(part).collect();
    let ascii = parts?.join(".");
    let is_url = format!("{scheme}://{ascii}{port}{path}").parse::<Uri>().is_ok();
    (is_url && ascii != host && !authority.contains('@')).then_some(ascii)
}

/// RFC 3492.
fn punycode(text: &str) -> Option<String> {
    let letter = |n: u32| char::from_u32(if n < 26 { u32::from(b'a') + n } else { u32::from(b'0') + n - 26 });
    let mut code: String = text.chars().filter(char::is_ascii).collect();
    let basic = u32::try_from(code.len()).ok()?;
    if basic > 0 {
        code.push('-');
    }
    let (mut done, mut next, mut delta, mut bias) = (basic, 128, 0u32, 72);
    while (done as usize) < text.chars().count() {
        let least = text.chars().map(u32::from).filter(|c| *c >= next).min()?;
        delta = delta.checked_add((least - next).checked_mul(done + 1)?)?;
        next = least;
        for c in text.chars().map(u32::from) {
            delta = delta.checked_add(u32::from(c < next))?;
            if c != next {
                continue;
            }
            let (mut left, mut k) = (delta, 36u32);
            loop {
                let threshold = k.saturating_sub(bias).clamp(1, 26);
                if left < threshold {
                    break;
                }
                code.push(letter(threshold + (left - threshold) % (36 - threshold))?);
                left = (left - threshold) / (36 - threshold);
                k += 36;
            }
            code.push(letter(left)?);
            let mut step = if done == basic { delta / 700 } else { delta / 2 };
            done += 1;
            step += step / done;
            bias = 0;
            while step > 455 {
                step /= 35;
                bias += 36;
            }
            bias += 36 * step / (step + 38);
            delta = 0;
        }
        delta = delta.checked_add(1)?;
        next += 1;
    }
    Some(code)
}

/// Whether the server can listen on `address`: an IP address or a host name, and a port.
fn is_host_port(address: &str) -> bool {
    if let Ok(address) = address.parse::<SocketAddr>() {
        return address.port() != 0;
    }
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    // A name of digits and dots is an IP address. This one is not valid.
    let is_number = host.chars().all(|c| c.is_ascii_digit() || c == '.');
    let has_digits_only = port.chars().all(|c| c.is_ascii_digit());
    host.chars().all(is_name) && !is_number && has_digits_only && matches!(port.parse(), Ok(1u16..))
}

/// The known key that the user probably meant by `name`.
fn nearest_key(name: &str) -> Option<&'static str> {
    nearest(&name.replace('-', "_"), KEYS.iter().map(|key| key.name))
}

/// The element of `known` that `name` probably means. Case does not matter.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let lower = |name: &str| name.chars().take(MAX_SHOWN).flat_map(char::to_lowercase).collect::<String>();
    let name = lower(name);
    let (distance, known) = known.map(|known| (edits(&name, &lower(known)), known)).min()?;
    // Half of a short name is not enough for a guess.
    (distance <= MAX_EDITS && distance * 2 < known.len()).then_some(known)
}

/// A hint for a path that could not be read, if `~` is the reason.
pub(crate) fn tilde(path: &str) -> &'static str {
    if path.starts_with('~') { "; ~ is not expanded: write the full path" } else { "" }
}

/// Whether only this machine reaches an address that [`is_host_port`].
fn is_loopback(address: &str) -> bool {
    match address.parse::<SocketAddr>() {
        Ok(address) => address.ip().to_canonical().is_loopback(),
        Err(_) => address.rsplit_once(':').is_some_and(|(host, _)| host.eq_ignore_ascii_case("localhost")),
    }
}

/// The number of characters to insert, delete or replace to get from one text to the other (Levenshtein).
fn edits(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.chars().count()).collect();
    for (line, a) in from.chars().enumerate() {
        let mut left = line + 1;
        let mut diagonal = line;
        for (above, b) in row.iter_mut().skip(1).zip(to.chars()) {
            let best = (diagonal + usize::from(a != b)).min(left + 1).min(*above + 1);
            diagonal = std::mem::replace(above, best);
            left = best;
        }
        if let Some(first) = row.first_mut() {
            *first = line + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests;
