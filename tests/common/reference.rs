//! docs/configuration.md, made from the table of keys that the plugin reads and from config.example.toml.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use fleeting_plugin_vcd::config::{ConfigKey, KEYS, Kind};
use std::fmt::Write;
use std::time::Duration;

const EXAMPLE: &str = include_str!("../../config.example.toml");

const HEAD: &str = "\
# Configuration

The keys of `[runners.autoscaler.plugin_config]`, then what the plugin makes of `[runners.autoscaler.connector_config]`.
A complete file is [config.example.toml](../config.example.toml). `fleeting-plugin-vcd check --offline` names every mistake in
a file, `check` also what VCD says to it.

An empty text counts as not given. No text may hold a line end or another control character. Unknown keys are passed over with
a warning that names the nearest known one. Durations are written as Go does: `\"1h30m\"`, `\"90s\"`. The whole table, as JSON,
may have 64 KiB.

This file is generated from the table of keys in `src/config.rs`:

```sh
cargo run --example configuration > docs/configuration.md
```

";

/// Keys with a default that does not do by itself.
const IN_PART: [&str; 5] = ["token", "token_file", "cpu_count", "cores_per_socket", "memory_mb"];

const ABOUT_IN_PART: &str = "\
A token: one of `token` and `token_file`, or `VCD_TOKEN` in the runner's environment. CPUs and memory: all three keys, unless
`sizing_policy` or `placement_policy` is given.

";

/// What else a key's value must be, or what it hangs together with.
fn rule(name: &str) -> Option<&'static str> {
    let rule = match name {
        "url" => {
            "`https://`, or `http://` with a warning; no path but one that ends in `/api`; no user name, `?` or `#`"
        }
        "virtual_datacenter" | "network" | "catalog" | "template" | "storage_profile" => {
            "an id is `urn:vcloud:KIND:UUID`, a link the address of the thing in VCD's API; `check` shows the ids where several \
             things have the name"
        }
        "vapp_name_prefix" => "letters, digits, `-`, `_` and `.`; the first a letter or a digit",
        "token" => {
            "no white space; not together with `token_file`; `VCD_TOKEN` is ignored, with a warning, where this is given"
        }
        "token_file" => {
            "the token alone, or JSON with `refresh_token` as VMware's SDK writes it, in at most 16 KiB; not together with \
             `token`. For a service account the plugin must be able to replace the file"
        }
        "cpu_count" => "0 only with a policy, which then decides",
        "cores_per_socket" | "memory_mb" => "as for `cpu_count`",
        "guest_properties" => {
            "at most 64 entries, with names of at most 256 characters; `user-data` not together with `user_data_file`"
        }
        "user_data_file" => "a file of text, of at most 49,152 characters",
        "login_script" => {
            "false only with `use_static_credentials = true`; then the template or the user data holds the user and the key"
        }
        "customization_script_file" => {
            "a file of text, with what the plugin adds of at most 49,000 characters. Linux: for `sh`, or what its `#!` line \
             names; Windows: a batch file, or PowerShell if it begins with `#ps1`"
        }
        "metadata" => {
            "at most 64 entries, with names of at most 256 characters; not `vcd-instance-group`, which the plugin writes"
        }
        "metadata_label" => "`false` only without `metadata`, which is written together with it",
        "debug_server_addr" => {
            "a Unix socket's path has at most 107 bytes; `:PORT` without a host serves everyone, with a warning"
        }
        "max_size" => "the runner refuses to start with a `max_instances` above it",
        "max_concurrent_creates" => "`max_concurrent_operations`, where it is given, bounds it too",
        "max_concurrent_deletes" => {
            "`max_concurrent_operations` less one bounds it too: 3 deletes at a time if neither is given"
        }
        "max_concurrent_operations" => {
            "if it is not given: 4, or as much as a given `max_concurrent_creates` or `max_concurrent_deletes` needs"
        }
        "create_timeout" => {
            "counted from the first request to VCD; a create that never comes to one is given up after three times as long"
        }
        "credentials_seed" => {
            "at least 16 characters. The token is taken as it is at the start, from `token_file` as well. VMs that were made \
             with another one are unhealthy after a restart, and replaced: give a seed where the token is changed now and then, as \
             that of a service account is at each login"
        }
        _ => return None,
    };
    Some(rule)
}

const TAIL: &str = "\
## connector_config

GitLab Runner reads this table itself and passes it on; what is not named here the plugin hands back as it came.

| key | effect |
| --- | --- |
| `os` | `linux` or `windows`; without it, what VCD says of the template's guest |
| `arch` | `amd64`, `arm64`, `386` or `arm`; without it, `386` where VCD calls the guest one of 32 bits, else `amd64` |
| `protocol` | `ssh` (default); for Windows also `winrm` or `winrm+https`, where static credentials need a password |
| `protocol_port` | the port that the plugin waits for and the runner connects to; 22, 5985, 5986 |
| `username` | default `root` or `Administrator`; another user is made in new guests: on Linux with `sudo` without a password, and in the group `docker`, where these are there; on Windows as one of the administrators. At most 256 characters, no `:` or `/` |
| `password`, `key_path` | with `use_static_credentials = true`: what the runner logs in with, one or both; the plugin puts it into new guests. A password has at most 256 characters |
| `use_static_credentials` | `false`: the plugin derives a key for each VM, and a password for Windows (see `credentials_seed`) |
| `timeout`, `keepalive` | for the runner's connections, handed back as they came |
| `use_external_addr` | not needed: a VM has one address here, told as internal and as external; only a vApp whose NAT somebody has set up since has another |

The key is a private key in OpenSSH, PKCS#1, PKCS#8 or SEC1 form, not encrypted, of at most 16 KiB; an RSA key has 1024 bits or more.
";

/// The whole file.
pub fn configuration() -> String {
    let mut text = String::from(HEAD);
    let (needed, others): (Vec<&ConfigKey>, Vec<&ConfigKey>) = KEYS.iter().partition(|key| key.default.is_none());
    let (in_part, optional): (Vec<&ConfigKey>, Vec<&ConfigKey>) =
        others.into_iter().partition(|key| IN_PART.contains(&key.name));
    let sections = [("Required", "", needed), ("Required in part", ABOUT_IN_PART, in_part), ("Optional", "", optional)];
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

/// A default as it would be written in TOML.
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
    // A comment stands behind two spaces, or behind the alignment's.
    line.split(" #").next().unwrap().trim().to_owned()
}
