//! Log lines for the host: one JSON object per line on stderr, in hclog's format. A line that the host does not read is
//! dropped, so that no write blocks the thread that decides. When the host reads again, a line reports the number of
//! dropped ones.

use crate::timestamp::timestamp;
use log::kv::{Error, Key, Value as KvValue, VisitSource};
use log::{LevelFilter, Record};
use serde_json::{Map, Value};
use std::io::{ErrorKind, Write};
use std::time::SystemTime;

/// The environment variable with the lowest level to log: off, error, warn, info, debug. Lower levels are not compiled
/// in.
pub const LEVEL_VARIABLE: &str = "VCD_LOG";

/// The level if [`LEVEL_VARIABLE`] is not set. The host filters by its own level.
const DEFAULT_LEVEL: LevelFilter = LevelFilter::Debug;

/// The most detailed level of dependencies.
const DEPENDENCY_LEVEL: LevelFilter = LevelFilter::Warn;

/// Maximum length of a line with its line end. The host splits lines of 64 KiB.
pub const MAX_LINE: usize = 60 * 1024;

/// Maximum number of extra keys in a line.
const MAX_KEYS: usize = 24;

/// Maximum length of the message in a line that was too long. Such a line is written again without its extra keys. A
/// byte becomes at most six in JSON (`\u0000`).
const MAX_MESSAGE: usize = MAX_LINE / 8;

/// Sends all log lines, and the message of a panic, to stderr. Must be called once, before the first log line.
pub fn init() {
    let wanted = std::env::var(LEVEL_VARIABLE).ok();
    let level = wanted.as_deref().map_or(Some(DEFAULT_LEVEL), |name| name.trim().parse().ok());
    // Fails only if there is a logger already. That one stays.
    let mut builder = builder(level.unwrap_or(DEFAULT_LEVEL));
    if do_not_block() {
        builder.target(env_logger::Target::Pipe(Box::new(Unblocked::new(std::io::stderr()))));
    }
    let _ = builder.try_init();
    if level.is_none() {
        log::warn!("{LEVEL_VARIABLE} is not one of off, error, warn, info, debug: using {DEFAULT_LEVEL}");
    }
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let message = payload.downcast_ref::<&str>().copied();
        let message = message.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
        let location = panic.location().map_or_else(|| "unknown place".to_owned(), |place| place.to_string());
        log::error!(
            "panic at {location}: {message}. This is a bug in the plugin, and the plugin exits. Its VMs stay; the plugin adopts \
             them when GitLab Runner starts it again. Please report this line"
        );
    }));
}

/// The logger with its format and filters.
fn builder(level: LevelFilter) -> env_logger::Builder {
    let mut builder = env_logger::Builder::new();
    builder
        .filter_level(level.min(DEPENDENCY_LEVEL))
        .filter_module(env!("CARGO_CRATE_NAME"), level)
        .format(|to, record| to.write_all(line(record, SystemTime::now()).as_bytes()));
    builder
}

/// Makes writes to stderr fail where they would wait for a reader. False if it is not a pipe: then it needs no reader,
/// or other processes that do not expect this write to it.
#[cfg(target_os = "linux")]
fn do_not_block() -> bool {
    use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
    let stderr = std::io::stderr();
    let is_pipe = fstat(&stderr).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
    let set = || fcntl_setfl(&stderr, fcntl_getfl(&stderr)? | OFlags::NONBLOCK);
    is_pipe && set().is_ok()
}

#[cfg(not(target_os = "linux"))]
fn do_not_block() -> bool {
    false
}

/// Writes whole lines to a writer that may block.
struct Unblocked<W> {
    to: W,
    /// The rest of a line that is written in part, at most [`MAX_LINE`].
    rest: Vec<u8>,
    /// Lines dropped since the last written one.
    dropped: u64,
}

impl<W: Write> Unblocked<W> {
    fn new(to: W) -> Unblocked<W> {
        Unblocked { to, rest: Vec::new(), dropped: 0 }
    }

    /// False if nothing of it could be written. A rest is written first the next time.
    fn put(&mut self, line: &[u8]) -> std::io::Result<bool> {
        let mut left = line;
        while !left.is_empty() {
            match self.to.write(left) {
                Ok(0) => return Ok(true),
                Ok(n) => left = left.get(n..).unwrap_or_default(),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock && left.len() == line.len() => return Ok(false),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.rest = left.to_vec();
                    return Ok(true);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// True if everything before is written.
    fn catch_up(&mut self) -> std::io::Result<bool> {
        let rest = std::mem::take(&mut self.rest);
        if !self.put(&rest)? {
            self.rest = rest;
        }
        if !self.rest.is_empty() {
            return Ok(false);
        }
        if self.dropped > 0 {
            let text = format!("{} log lines were dropped: GitLab Runner did not read them", self.dropped);
            let record = Record::builder().level(log::Level::Warn).build();
            if !self.put(object(&record, SystemTime::now(), Map::new(), &text).as_bytes())? {
                return Ok(false);
            }
            self.dropped = 0;
        }
        Ok(self.rest.is_empty())
    }
}

impl<W: Write> Write for Unblocked<W> {
    /// Accepts one whole line, and never waits.
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        if !(self.catch_up()? && self.put(line)?) {
            self.dropped = self.dropped.saturating_add(1);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
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

/// `fields` and hclog's own keys, which override them.
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

/// The keys of a record in addition to its message.
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
    fn lines_that_nobody_reads_are_dropped_and_counted() {
        use std::io::Read;
        let (to, mut from) = std::os::unix::net::UnixStream::pair().unwrap();
        to.set_nonblocking(true).unwrap();
        let mut log = Unblocked::new(to);
        let line = format!("{}\n", "x".repeat(9_999));
        // Far more than fits: none of these waits.
        for _ in 0..500 {
            log.write_all(line.as_bytes()).unwrap();
        }
        let dropped = log.dropped;
        assert!(dropped > 0 && log.rest.len() < line.len(), "{dropped}");
        from.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
        let mut read = Vec::new();
        let mut some = [0; 65_536];
        while let Ok(n @ 1..) = from.read(&mut some) {
            read.extend_from_slice(&some[..n]);
        }
        log.write_all(b"last\n").unwrap();
        drop(log);
        from.read_to_end(&mut read).unwrap();
        let text = String::from_utf8(read).unwrap();
        let mut lines = text.lines().rev();
        assert_eq!(lines.next(), Some("last"));
        let told: Value = serde_json::from_str(lines.next().unwrap()).unwrap();
        assert_eq!(told["@message"], format!("{dropped} log lines were dropped: GitLab Runner did not read them"));
        assert_eq!(told["@level"], "warn");
        let whole = lines.filter(|one| one.len() == 9_999).count();
        assert_eq!(whole as u64 + dropped, 500, "each is whole, or dropped");
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
