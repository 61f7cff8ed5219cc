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

An empty text counts as not given. Unknown keys are passed over with a warning that names the nearest known one. Durations are
written as Go does: `\"1h30m\"`, `\"90s\"`.

This file is generated from the table of keys in `src/config.rs`:

```sh
cargo run --example configuration > docs/configuration.md
```

";

const TAIL: &str = "\
## connector_config

GitLab Runner reads this table itself and passes it on; what is not named here the plugin hands back as it came.

| key | effect |
| --- | --- |
| `os` | `linux` or `windows`; without it, what VCD says of the template's guest |
| `arch` | `amd64` (default), `arm64`, `386` or `arm` |
| `protocol` | `ssh` (default); for Windows also `winrm` or `winrm+https` |
| `protocol_port` | the port that the plugin waits for and the runner connects to; 22, 5985, 5986 |
| `username` | default `root` or `Administrator`; another user is made in new Linux guests, with `sudo` |
| `password`, `key_path` | with `use_static_credentials = true`: what the runner logs in with; the plugin puts it into new guests |
| `use_static_credentials` | `false`: the plugin derives a key for each VM, and a password for Windows (see `credentials_seed`) |
| `timeout`, `keepalive` | for the runner's connections, handed back as they came |

The key is a private key in OpenSSH, PKCS#1, PKCS#8 or SEC1 form, not encrypted.
";

/// The whole file.
pub fn configuration() -> String {
    let mut text = String::from(HEAD);
    let (needed, optional): (Vec<&ConfigKey>, Vec<&ConfigKey>) = KEYS.iter().partition(|key| key.default.is_none());
    for (title, keys) in [("Required", needed), ("Optional", optional)] {
        writeln!(text, "## {title}\n").unwrap();
        for key in keys {
            write!(text, "### {}\n\n{}\n\n- Type: {}\n", key.name, key.doc, kind(key.kind)).unwrap();
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
        Kind::Table { max } => format!("table of texts, each at most {max} characters"),
        Kind::Span { min, max } => format!("duration from {} to {}", in_words(min), in_words(max)),
    }
}

/// A default as it would be written in TOML.
fn written(kind: Kind, default: &str) -> String {
    match kind {
        Kind::Text { .. } | Kind::Span { .. } => format!("\"{default}\""),
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
