//! Shared by the fuzz targets: a VCD in memory, streams that end, a log that is checked, and secrets that must not
//! appear.
//!
//! A target panics if an assertion fails. libFuzzer limits time and memory.

pub mod vcd;

use smol::io::{AsyncRead, AsyncWrite};
use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};
use vcd_sim::model::Model;
use vcd_sim::routes::{self, Api, Request};

/// A part of every secret in the targets. No output of the program may contain it.
pub const MARK: &str = "MARKED-5ecret-0f-the-fuzzer";

/// The URL of the VCD in memory.
pub const BASE: &str = "http://vcd.sim";

/// Panics if `text` contains a secret. It shows only a part of `text`, which can be long.
pub fn assert_no_secret(place: &str, text: &str) {
    if let Some(at) = text.find(MARK) {
        let from = (0..=at.saturating_sub(80)).rev().find(|n| text.is_char_boundary(*n)).unwrap_or(0);
        panic!("{place} contains a secret: …{}", &text[from..at + MARK.len()]);
    }
}

/// True if FUZZ_LOG is set: the target prints what happens to stderr.
pub fn log_is_shown() -> bool {
    static SHOWN: LazyLock<bool> = LazyLock::new(|| std::env::var_os("FUZZ_LOG").is_some());
    *SHOWN
}

/// A log that formats every line like the plugin, and searches it for secrets.
struct Log;

impl log::Log for Log {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().starts_with("fleeting_plugin_vcd")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            struct Fields(String);
            impl<'kvs> log::kv::VisitSource<'kvs> for Fields {
                fn visit_pair(
                    &mut self,
                    key: log::kv::Key<'kvs>,
                    value: log::kv::Value<'kvs>,
                ) -> Result<(), log::kv::Error> {
                    self.0 += &format!(" {key}={value}");
                    Ok(())
                }
            }
            let mut line = Fields(record.args().to_string());
            let _ = record.key_values().visit(&mut line);
            if log_is_shown() {
                eprintln!("{} {}", record.level(), line.0);
            }
            assert_no_secret("a log line", &line.0);
        }
    }

    fn flush(&self) {}
}

/// Enables the log, once.
pub fn init() {
    static LOG: Log = Log;
    if log::set_logger(&LOG).is_ok() {
        log::set_max_level(log::LevelFilter::Debug);
    }
}

/// A connection whose other end sends `data` in pieces, and then closes its half. At each [`PAUSE`] it waits until
/// the connection is quiet.
pub struct Feed {
    data: Vec<u8>,
    at: usize,
    piece: usize,
    /// Every second read has to wait.
    waits: bool,
    quiet: Option<smol::Timer>,
    quiet_rounds: usize,
    last: (usize, usize),
    said: Rc<RefCell<Said>>,
}

/// The bytes that were sent back over a [`Feed`].
#[derive(Default)]
pub struct Said {
    /// Number of bytes.
    pub bytes: usize,
    /// The first bytes, up to [`KEPT`].
    pub first: Vec<u8>,
    tail: Vec<u8>,
}

/// Number of bytes that are kept.
const KEPT: usize = 256;

/// In an input for a connection: the peer waits here until the connection is quiet.
pub const PAUSE: &[u8] = b"\0PAUSE!\0";

/// A connection is quiet after this many rounds of [`ROUND`] without an event.
const QUIET_ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_millis(1);

/// Number of requests to the VCD in memory. While it grows, a connection is not quiet.
static ASKED: AtomicUsize = AtomicUsize::new(0);

impl Feed {
    /// The first byte of `data` sets the size of the pieces.
    pub fn new(data: &[u8]) -> (Feed, Rc<RefCell<Said>>) {
        let (how, data) = data.split_first().unwrap_or((&0, &[]));
        let piece = match how & 7 {
            0 => usize::MAX,
            n => 1 << (n * 2 - 1),
        };
        let said = Rc::new(RefCell::new(Said::default()));
        let feed = Feed {
            data: data.to_vec(),
            at: 0,
            piece,
            waits: how & 8 != 0,
            quiet: None,
            quiet_rounds: 0,
            last: (0, 0),
            said: said.clone(),
        };
        (feed, said)
    }

    fn is_quiet(&mut self, cx: &mut Context<'_>) -> bool {
        let now = (self.said.borrow().bytes, ASKED.load(Ordering::Relaxed));
        loop {
            let timer = self.quiet.get_or_insert_with(|| smol::Timer::after(ROUND));
            if Pin::new(timer).poll(cx).is_pending() {
                return false;
            }
            self.quiet = None;
            self.quiet_rounds = if now == self.last { self.quiet_rounds + 1 } else { 0 };
            self.last = now;
            if self.quiet_rounds >= QUIET_ROUNDS {
                self.quiet_rounds = 0;
                return true;
            }
        }
    }
}

impl AsyncRead for Feed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut [u8]) -> Poll<io::Result<usize>> {
        if self.waits && self.at % 2 == 1 {
            self.waits = false;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.data[self.at..].starts_with(PAUSE) {
            if !self.is_quiet(cx) {
                return Poll::Pending;
            }
            self.at += PAUSE.len();
        }
        let rest = &self.data[self.at..];
        let end = rest.windows(PAUSE.len()).position(|window| window == PAUSE).unwrap_or(rest.len());
        let n = end.min(to.len()).min(self.piece);
        if n == 0 && end == 0 && !rest.is_empty() {
            // Two successive pauses.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        to[..n].copy_from_slice(&rest[..n]);
        self.at += n;
        Poll::Ready(Ok(n))
    }
}

impl AsyncWrite for Feed {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut said = self.said.borrow_mut();
        said.bytes += bytes.len();
        let room = KEPT.saturating_sub(said.first.len()).min(bytes.len());
        said.first.extend_from_slice(&bytes[..room]);
        // Two writes may cut a secret.
        let mut seen = std::mem::take(&mut said.tail);
        seen.extend_from_slice(bytes);
        assert_no_secret("the answer", &String::from_utf8_lossy(&seen));
        said.tail = seen.split_off(seen.len().saturating_sub(MARK.len()));
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// An HTTP answer with this status and body.
pub fn http(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let date = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_261_602));
    let mut answer = format!("HTTP/1.1 {status} X\r\nDate: {date}\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        answer += &format!("{name}: {value}\r\n");
    }
    let mut answer = (answer + "\r\n").into_bytes();
    answer.extend_from_slice(body);
    answer
}

/// The parts of a request to VCD that matter.
pub fn request(bytes: &[u8]) -> Request {
    let split = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("a request has a head");
    let head = std::str::from_utf8(&bytes[..split]).expect("a request's head is text");
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = query.split('&').filter_map(|pair| pair.split_once('='));
    let mut request = Request {
        method: method.into(),
        path: routes::decode(path),
        query: query.map(|(name, value)| (routes::decode(name), routes::decode(value))).collect(),
        base: BASE.into(),
        body: bytes[split + 4..].to_vec(),
        ..Request::default()
    };
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim().to_owned();
        match name.to_ascii_lowercase().as_str() {
            "accept" => request.accept = Some(value),
            "authorization" => request.authorization = Some(value),
            "content-type" => request.content_type = Some(value),
            _ => {}
        }
    }
    request
}

/// A VCD in memory: the simulator's model. Each request takes a second.
pub fn simulator() -> impl FnMut(&[u8]) -> Vec<u8> + Send {
    let mut world = None;
    let mut n = 0;
    move |bytes| {
        ASKED.fetch_add(1, Ordering::Relaxed);
        let (model, api) = world.get_or_insert_with(|| {
            let mut model = Model::standard(1);
            let user = *model.tokens.values().next().expect("there is a user");
            model.tokens.insert(MARK.into(), user);
            (model, Api::default())
        });
        n += 1;
        model.advance(n * 1000);
        let reply = routes::answer(model, api, &request(bytes), &format!("id-{n}"), None);
        let mut headers: Vec<(&str, &str)> =
            reply.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        headers.push(("Content-Type", &reply.content_type));
        http(reply.status, &headers, reply.body.as_bytes())
    }
}

/// A plugin_config for the VCD in memory.
pub fn plugin_config() -> serde_json::Value {
    serde_json::json!({
        "name": "runner-1",
        "url": format!("{BASE}/api"),
        "org": "ci-org",
        "token": MARK,
        "virtual_datacenter": "ci-vdc",
        "network": "ci-net",
        "ip_allocation_mode": "POOL",
        "instance_group_name": "ci-linux",
        "vapp_name_prefix": "ci",
        "catalog": "ci-catalog",
        "template": "ubuntu-22.04",
        "storage_profile": "ssd",
        "cpu_count": 2,
        "cores_per_socket": 1,
        "memory_mb": 4096,
    })
}
