//! docs/configuration.md, generated from the table of keys that the plugin reads and from config.example.toml.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use fleeting_plugin_vcd::config::{ConfigKey, KEYS, Kind};
use std::fmt::Write;
use std::time::Duration;

const EXAMPLE: &str = include_str!("../../config.example.toml");

const HEAD: &str = "\
# Configuration reference

All keys of `[runners.autoscaler.plugin_config]`, and how the plugin uses `[runners.autoscaler.connector_config]`.
[config.example.toml](../config.example.toml) is a complete file. `fleeting-plugin-vcd check --offline` reports every error in
a file. `check` also compares the file with VCD.

- An empty text counts as not set. A text must not contain line breaks or other control characters.
- The plugin ignores an unknown key with a warning that names the most similar known key.
- Durations are written as in Go: `\"1h30m\"`, `\"90s\"`.
- The whole table, as JSON, has a maximum size of 64 KiB.
- Each key shows an example value. It is not the default.

This file is generated from the table of keys in `src/config.rs`:

```sh
cargo run --example configuration > docs/configuration.md
```

";

/// Keys that have a default and are nevertheless required, unless another key replaces them.
const IN_PART: [&str; 5] = ["token", "token_file", "cpu_count", "cores_per_socket", "memory_mb"];

const ABOUT_IN_PART: &str = "\
A token is required: one of `token`, `token_file`, or the environment variable `VCD_TOKEN` of GitLab Runner. CPUs and memory are
required: all three keys, unless `sizing_policy` or `placement_policy` is set.

";

/// Other rules for a key's value, and the keys on which it depends.
fn rule(name: &str) -> Option<&'static str> {
    let rule = match name {
        "url" => {
            "`https://`, or `http://` with a warning. The only path allowed is one that ends in `/api`. No user name, `?` or `#`"
        }
        "virtual_datacenter" | "network" | "catalog" | "template" | "storage_profile" => {
            "an id has the form `urn:vcloud:KIND:UUID`. A link is the address of the object in the VCD API. If several objects have \
             the same name, `check` shows their ids"
        }
        "vapp_name_prefix" => "letters, digits, `-`, `_` and `.`. It must begin with a letter or a digit",
        "token" => {
            "no white space. Not together with `token_file`. If `token` is set, the plugin ignores `VCD_TOKEN` with a warning"
        }
        "token_file" => {
            "the file contains only the token, or JSON with `refresh_token` as VMware's SDK writes it. Maximum size: 16 KiB. Not \
             together with `token`. For a service account the plugin must be able to replace the file"
        }
        "cpu_count" => "0 is allowed only with a policy, which then sets the value",
        "cores_per_socket" | "memory_mb" => "the same as for `cpu_count`",
        "guest_properties" => {
            "at most 64 entries with names of at most 256 characters. `user-data` is not allowed together with `user_data_file`"
        }
        "user_data_file" => "a text file of at most 49,152 characters",
        "login_script" => {
            "`false` requires `use_static_credentials = true`. The template or the user data must then contain the user and the key"
        }
        "customization_script_file" => {
            "a text file. With the plugin's own script it has at most 49,000 characters. Linux: for `sh`, or for the interpreter of \
             its `#!` line. Windows: a batch file, or PowerShell if it begins with `#ps1`"
        }
        "metadata" => {
            "at most 64 entries with names of at most 256 characters. `vcd-instance-group` is not allowed: the plugin writes it"
        }
        "metadata_label" => "`false` is not allowed together with `metadata`: the plugin writes both in one request",
        "debug_server_addr" => {
            "the path of a Unix socket has at most 107 bytes. `:PORT` without a host listens on all addresses, with a warning"
        }
        "max_size" => "GitLab Runner does not start if its `max_instances` is larger",
        "max_concurrent_creates" => "`max_concurrent_operations`, if set, is a limit for this key too",
        "max_concurrent_deletes" => {
            "`max_concurrent_operations` is a limit for this key too. If neither key is set, there are at most 4 deletes at the same \
             time, and 1 while a create waits for a slot"
        }
        "max_concurrent_operations" => {
            "if not set: the largest of 4, `max_concurrent_creates` and `max_concurrent_deletes` + 1. Only keys that are set count"
        }
        "create_timeout" => {
            "the time counts from the first request to VCD. A create that never gets to its first request is given up after three \
             times this value"
        }
        "credentials_seed" => {
            "at least 16 characters. Without a seed the plugin uses the token that it reads at its start, also from `token_file`. If \
             the seed or that token has changed after a restart, existing VMs become unhealthy and are replaced. So set a seed if \
             the token changes from time to time. The token of a service account changes at each login"
        }
        _ => return None,
    };
    Some(rule)
}

const TAIL: &str = "\
## connector_config

GitLab Runner reads this table itself and passes it to the plugin. The plugin returns keys that are not in this list unchanged.

| key | effect |
| --- | --- |
| `os` | `linux` or `windows`. Default: the guest OS of the template in VCD |
| `arch` | `amd64`, `arm64`, `386` or `arm`. Default: `386` if VCD shows a 32-bit guest OS, else `amd64` |
| `protocol` | `ssh` (default). For Windows also `winrm` or `winrm+https`, which require a password if credentials are static |
| `protocol_port` | the port that the plugin probes and GitLab Runner connects to. Default: 22 (`ssh`), 5985 (`winrm`), 5986 (`winrm+https`) |
| `username` | default: `root` or `Administrator`. If another user does not exist in the guest, it is created: on Linux with `sudo` without a password and in the group `docker`, if these exist; on Windows as an administrator. At most 256 characters, no `:` or `/` |
| `password`, `key_path` | with `use_static_credentials = true`: the login credentials, one or both. The plugin puts them into new guests. A password has at most 256 characters |
| `use_static_credentials` | `false`: the plugin derives a key for each VM, for Windows also a password (see `credentials_seed`) |
| `timeout`, `keepalive` | for GitLab Runner's connections. The plugin returns them unchanged |
| `use_external_addr` | not needed. A VM has one address, which the plugin reports as internal and as external. The two differ only if somebody has added NAT to the vApp |

The key is an unencrypted private key in OpenSSH, PKCS#1, PKCS#8 or SEC1 format, with a maximum size of 16 KiB. An RSA key has at
least 1024 bits.
";

/// The whole document.
pub fn configuration() -> String {
    let mut text = String::from(HEAD);
    let (needed, others): (Vec<&ConfigKey>, Vec<&ConfigKey>) = KEYS.iter().partition(|key| key.default.is_none());
    let (in_part, optional): (Vec<&ConfigKey>, Vec<&ConfigKey>) =
        others.into_iter().partition(|key| IN_PART.contains(&key.name));
    let sections =
        [("Required", "", needed), ("Required, with alternatives", ABOUT_IN_PART, in_part), ("Optional", "", optional)];
    for (title, about, keys) in sections {
        write!(text, "## {title}\n\n{about}").unwrap();
        for key in keys {
            write!(text, "### {}\n\n{}\n\n- Type: {}\n", key.name, key.doc, kind(key.kind)).unwrap();
            if let Some(rule) = rule(key.name) {
                writeln!(text, "- Rule: {rule}").unwrap();
            }
            match key.default {
                None => {}
                Some("") => text.push_str("- Default: none\n"),
                Some(default) => writeln!(text, "- Default: `{}`", written(key.kind, default)).unwrap(),
            }
            writeln!(text, "- Example: `{}`\n", example(key.name)).unwrap();
        }
    }
    text + TAIL
}

fn kind(kind: Kind) -> String {
    match kind {
        Kind::Text { max } => format!("text, at most {max} characters"),
        Kind::Whole { min, max } => format!("whole number from {min} to {max}"),
        Kind::Flag => "`true` or `false`".into(),
        Kind::AutoFlag => "`\"auto\"`, `true` or `false`".into(),
        Kind::Table { max } => format!("table of texts, each at most {max} characters"),
        Kind::Span { min, max } => format!("duration from {} to {}", in_words(min), in_words(max)),
    }
}

/// A default, as TOML.
fn written(kind: Kind, default: &str) -> String {
    match kind {
        Kind::Text { .. } | Kind::Span { .. } | Kind::AutoFlag => format!("\"{default}\""),
        Kind::Whole { .. } | Kind::Flag | Kind::Table { .. } => default.into(),
    }
}

fn in_words(span: Duration) -> String {
    match span.as_secs() {
        0 => "0".into(),
        s if s % 86_400 == 0 => format!("{} days", s / 86_400).replace("1 days", "1 day"),
        s if s % 3600 == 0 => format!("{} h", s / 3600),
        86_399 => "1 day less 1 s".into(),
        s => format!("{s} s"),
    }
}

/// The key's line in the example's plugin_config, without its comment.
pub fn example(name: &str) -> String {
    let section = EXAMPLE.split("[runners.autoscaler.plugin_config]").nth(1).expect("the example has a plugin_config");
    let section = section.split("[runners.autoscaler.connector_config]").next().unwrap();
    let start = format!("{name} = ");
    let line = section
        .lines()
        .map(|line| line.trim().trim_start_matches("# "))
        .find(|line| line.starts_with(&start))
        .unwrap_or_else(|| panic!("config.example.toml does not show {name}"));
    // A comment follows after two or more spaces.
    line.split(" #").next().unwrap().trim().to_owned()
}
