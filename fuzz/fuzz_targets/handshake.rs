//! go-plugin's environment: one `NAME=value` per line.
#![no_main]

use fleeting_plugin_vcd::host::{COOKIE, COOKIE_VARIABLE, Refusal, line};
use fleeting_plugin_vcd_fuzz::init;
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;

fuzz_target!(init: init(), |data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let variables: BTreeMap<&str, &str> = text.split('\n').filter_map(|line| line.split_once('=')).collect();
    let get = |name: &str| variables.get(name).copied().filter(|value| !value.is_empty());
    match line(|name| variables.get(name).map(|value| (*value).to_owned())) {
        Err(Refusal::NoHost) => assert_ne!(get(COOKIE_VARIABLE), Some(COOKIE)),
        Err(Refusal::Unsupported(why)) => assert!(get("PLUGIN_CLIENT_CERT").is_some() && why.contains("AutoMTLS")),
        Ok(Ok(line)) => {
            assert_eq!(get(COOKIE_VARIABLE), Some(COOKIE));
            let fields = line.strip_suffix('\n').expect("a line end");
            assert!(!fields.contains(['\n', '\r']), "one line: {fields:?}");
            let fields: Vec<&str> = fields.split('|').collect();
            assert_eq!(fields.len(), if get("PLUGIN_MULTIPLEX_GRPC").is_some() { 7 } else { 6 }, "{line}");
            assert_eq!((fields[0], fields[1], fields[2], fields[4]), ("1", "0", "unix", "grpc"));
            assert!(fields[3].starts_with('/') && fields[3].len() <= 107, "{line}");
        }
        Ok(Err(why)) => assert!(!why.is_empty()),
    }
});
