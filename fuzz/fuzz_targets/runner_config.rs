//! GitLab Runner's config.toml.
#![no_main]

use fleeting_plugin_vcd::command::runner::RunnerFile;
use fleeting_plugin_vcd_fuzz::{MARK, assert_no_secret, init};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use std::path::Path;

/// Maximum length of an error. It is for a person at a terminal, but it can list all mistakes of a runner.
const MAX_ERROR: usize = 32 * 1024;

fuzz_target!(init: init(), |data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // `MARK` replaces SECRET in an input.
    let text = text.replace("SECRET", MARK);
    let file = match RunnerFile::parse(&text, Path::new("/nowhere/config.toml")) {
        Ok(file) => file,
        Err(error) => {
            assert!(!error.is_empty() && error.len() <= MAX_ERROR, "{} bytes", error.len());
            return assert_no_secret("an error", &error);
        }
    };
    assert!(file.runners.len() <= file.count);
    for name in [None, Some(""), Some("vcd")] {
        let _ = file.select(name);
        let _ = file.only(name);
    }
    for runner in file.runners.iter().take(4) {
        assert!(serde_json::from_slice::<Value>(&runner.json()).is_ok_and(|json| json.is_object()));
        let secrets_only_where_they_belong = {
            let mut plain = runner.plugin_config.clone();
            for name in ["token", "credentials_seed", "guest_properties"] {
                plain.remove(name);
            }
            !Value::Object(plain).to_string().contains(MARK) && ![&runner.name, &runner.connector.username,
                &runner.connector.os, &runner.connector.arch, &runner.connector.protocol].iter().any(|t| t.contains(MARK))
                && runner.key_path.as_ref().is_none_or(|path| !path.to_string_lossy().contains(MARK))
        };
        for offline in [true, false] {
            let (error, debug) = match runner.config(offline) {
                Ok(config) => (String::new(), format!("{config:?}")),
                Err(error) => (error, String::new()),
            };
            assert!(error.len() <= MAX_ERROR, "{} bytes", error.len());
            if secrets_only_where_they_belong {
                assert_no_secret("an error", &error);
                assert_no_secret("the configuration's Debug", &debug);
            }
        }
    }
});
