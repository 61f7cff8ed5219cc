//! Log lines as the host reads them: one JSON object a line on stderr, in hclog's format. Nothing is kept, queued or
//! counted here, and a line that cannot be written is lost without a word: the host may be gone.

use crate::timestamp::timestamp;
use log::kv::{Error, Key, Value as KvValue, VisitSource};
use log::{LevelFilter, Record};
use serde_json::{Map, Value};
use std::io::Write;
use std::time::SystemTime;

/// The environment variable that names the lowest level to log: off, error, warn, info, debug. More is compiled out.
pub const LEVEL_VARIABLE: &str = "VCD_LOG";

/// The level if [`LEVEL_VARIABLE`] is not set: the host filters by its own level.
const DEFAULT_LEVEL: LevelFilter = LevelFilter::Debug;

/// Dependencies log at this level at most.
const DEPENDENCY_LEVEL: LevelFilter = LevelFilter::Warn;

/// No line is longer, its line end included. The host cuts lines of 64 KiB in pieces.
pub const MAX_LINE: usize = 60 * 1024;

/// No more extra keys in a line.
const MAX_KEYS: usize = 24;

/// A line that comes out too long is made again with its message cut to so many bytes, and without its extra keys. A byte
/// becomes at most six in JSON (`\u0000`).
const MAX_MESSAGE: usize = MAX_LINE / 8;

/// Sends everything that is logged, and a panic's message, to stderr. To be called once, before anything is logged.
pub fn init() {
    let wanted = std::env::var(LEVEL_VARIABLE).ok();
    let level = wanted.as_deref().map_or(Some(DEFAULT_LEVEL), |name| name.trim().parse().ok());
    // Fails only if there is a logger already: then that one stays.
    let _ = builder(level.unwrap_or(DEFAULT_LEVEL)).try_init();
    if level.is_none() {
        log::warn!("{LEVEL_VARIABLE} is not one of off, error, warn, info, debug: using {DEFAULT_LEVEL}");
    }
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let message = payload.downcast_ref::<&str>().copied();
        let message = message.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
        let location = panic.location().map_or_else(|| "unknown place".to_owned(), |place| place.to_string());
        log::error!("panic at {location}: {message}");
    }));
}

/// The logger: what it writes, and of whom.
fn builder(level: LevelFilter) -> env_logger::Builder {
    let mut builder = env_logger::Builder::new();
    builder
        .filter_level(level.min(DEPENDENCY_LEVEL))
        .filter_module(env!("CARGO_CRATE_NAME"), level)
        .format(|to, record| to.write_all(line(record, SystemTime::now()).as_bytes()));
    builder
}

/// The line for `record`, at most [`MAX_LINE`] bytes, with its line end.
fn line(record: &Record<'_>, now: SystemTime) -> String {
    let mut extra = Extra(Map::new());
    // Extra never returns an error.
    let _ = record.key_values().visit(&mut extra);
    let message = record.args().to_string();
    let whole = object(record, now, extra.0, &message);
    if whole.len() <= MAX_LINE { whole } else { object(record, now, Map::new(), &cut(&message, MAX_MESSAGE)) }
}

/// `fields` and hclog's own, which win.
fn object(record: &Record<'_>, now: SystemTime, mut fields: Map<String, Value>, message: &str) -> String {
    fields.insert("@level".into(), record.level().as_str().to_ascii_lowercase().into());
    fields.insert("@message".into(), message.into());
    fields.insert("@timestamp".into(), timestamp(now).into());
    let mut line = Value::Object(fields).to_string();
    line.push('\n');
    line
}

/// `text`, cut to at most `limit` bytes, with an ellipsis if it was longer.
pub fn cut(text: &str, limit: usize) -> String {
    let end = (0..=limit).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    match text.get(..end) {
        Some(start) if limit < text.len() => format!("{start}…"),
        _ => text.to_owned(),
    }
}

/// The keys of a record beside its message.
struct Extra(Map<String, Value>);

impl<'kvs> VisitSource<'kvs> for Extra {
    fn visit_pair(&mut self, key: Key<'kvs>, value: KvValue<'kvs>) -> Result<(), Error> {
        if self.0.len() < MAX_KEYS {
            let value = if let Some(number) = value.to_u64() {
                number.into()
            } else if let Some(number) = value.to_i64() {
                number.into()
            } else if let Some(flag) = value.to_bool() {
                flag.into()
            } else {
                value.to_string().into()
            };
            self.0.insert(key.as_str().to_owned(), value);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use log::{Level, Log, Metadata};
    use std::time::UNIX_EPOCH;

    fn parse(line: &str) -> Map<String, Value> {
        assert!(line.ends_with('\n') && !line.trim_end().contains('\n'), "one line: {line:?}");
        match serde_json::from_str(line).unwrap() {
            Value::Object(map) => map,
            other => panic!("no object: {other}"),
        }
    }

    #[test]
    fn a_line_has_hclogs_keys_and_the_records_own() {
        let pairs = [
            ("instance", log::kv::Value::from("ci-1\n\"x\"")),
            ("count", 3.into()),
            ("less", (-3).into()),
            ("ok", true.into()),
            ("@level", "hidden".into()),
        ];
        let pairs = &pairs[..];
        let record =
            Record::builder().level(Level::Warn).args(format_args!("several\nlines")).key_values(&pairs).build();
        let object = parse(&line(&record, UNIX_EPOCH));
        assert_eq!(object["@level"], "warn");
        assert_eq!(object["@message"], "several\nlines");
        assert_eq!(object["@timestamp"], "1970-01-01T00:00:00.000000Z");
        assert_eq!(object["instance"], "ci-1\n\"x\"");
        assert_eq!((&object["count"], &object["less"], &object["ok"]), (&3.into(), &(-3).into(), &true.into()));
        assert_eq!(object.len(), 7);
    }

    #[test]
    fn long_lines_are_cut_and_stay_json() {
        for text in ["\0".repeat(70_000), "ä".repeat(40_000), "x".repeat(70_000)] {
            let pairs = [("value", text.as_str())];
            for (args, pairs) in [(format_args!("{text}"), &[][..]), (format_args!("short"), &pairs[..])] {
                let record = Record::builder().level(Level::Info).args(args).key_values(&pairs).build();
                let line = line(&record, UNIX_EPOCH);
                assert!(line.len() <= MAX_LINE, "{}", line.len());
                let object = parse(&line);
                let message = object["@message"].as_str().unwrap();
                assert!(message == "short" || message.ends_with('…'), "{message}");
            }
        }
    }

    #[test]
    fn dependencies_log_warnings_at_most() {
        let logger = builder(LevelFilter::Trace).build();
        let enabled = |target, level| logger.enabled(&Metadata::builder().target(target).level(level).build());
        assert!(enabled("fleeting_plugin_vcd::vcd", Level::Trace));
        assert!(enabled("rustls::client", Level::Warn));
        assert!(!enabled("rustls::client", Level::Info));
    }

    #[test]
    fn a_line_has_few_keys_of_its_own() {
        let names: Vec<String> = (0..2 * MAX_KEYS).map(|n| format!("key{n}")).collect();
        let pairs: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 1)).collect();
        let pairs = pairs.as_slice();
        let record = Record::builder().level(Level::Info).args(format_args!("x")).key_values(&pairs).build();
        assert_eq!(parse(&line(&record, UNIX_EPOCH)).len(), MAX_KEYS + 3, "with hclog's three");
    }
}
