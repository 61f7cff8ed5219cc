//! The debug server: the state of the plugin over HTTP/1, as text, HTML, JSON and Prometheus metrics. It is read-only
//! and serves few short connections.

mod html;
mod json;
mod metrics;
#[cfg(test)]
mod tests;
mod text;

use crate::driver::Driver;
use crate::group::{Limit, Time};
use crate::journal::{Entry, Life};
use crate::status::Status;
use crate::timestamp::timestamp;
use crate::transport::{Clock, Io};
use crate::vcd::SessionState;
use http_body_util::Full;
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderMap, HeaderValue,
    REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::http::uri::Authority;
use hyper::{Method, Request, Response, StatusCode};
use smol::future::FutureExt;
use smol::io::{AsyncRead, AsyncWrite};
use smol::{LocalExecutor, Task};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

/// Maximum number of connections. A further one replaces the oldest, so that silent clients block nobody.
pub const MAX_CONNECTIONS: usize = 64;
/// Maximum duration of a connection.
pub const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum time until the head of a request has arrived.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of a request's head, in bytes.
pub const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Pause after a failed accept, for example without free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// Maximum number of events on a page. `/api/status` has all that are kept.
pub const SHOWN_EVENTS: usize = 50;
/// Columns of the text page without `?width=`.
const WIDTH: usize = 80;
/// The valid values of `?width=`.
const WIDTHS: std::ops::RangeInclusive<usize> = 60..=400;
/// The prefix of an address that is the path of a Unix socket.
const UNIX: &str = "unix:";

/// Serves `driver`'s state at `address` (`HOST:PORT` or `unix:/PATH`) until the process ends. If it cannot listen, it
/// logs a warning, and the plugin continues without it.
pub fn start(executor: &Rc<LocalExecutor<'static>>, driver: Rc<Driver>, address: String) {
    let server = Server { executor: executor.clone(), driver, open: RefCell::default() };
    executor
        .spawn(async move {
            let Err(error) = server.listen(&address).await;
            log::warn!("listen at debug_server_addr {address}: {error}; the plugin continues without a debug server");
        })
        .detach();
}

/// One type for both kinds of connections, so that hyper's code is compiled once.
trait Connection: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Connection for T {}

struct Server {
    executor: Rc<LocalExecutor<'static>>,
    driver: Rc<Driver>,
    /// The connections, the oldest first.
    open: RefCell<VecDeque<Task<()>>>,
}

impl Server {
    /// Accepts connections until the process ends. The error says why it cannot listen.
    async fn listen(&self, address: &str) -> std::io::Result<Infallible> {
        if let Some(path) = address.strip_prefix(UNIX) {
            return self.listen_unix(path.into()).await;
        }
        let listener = smol::net::TcpListener::bind(address).await?;
        let local = listener.local_addr()?;
        let mut name = None;
        if local.ip().is_loopback() {
            name = address.rsplit_once(':').map(|(host, _)| Rc::from(host));
            log::info!("debug server at http://{local}");
        } else {
            log::warn!("debug server at http://{local}: anyone who can reach this address can read it");
        }
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.serve(Box::new(stream), name.clone()).await,
                Err(error) => pause(error).await,
            }
        }
    }

    /// A socket for this user only. It replaces the socket of a dead process.
    #[cfg(unix)]
    async fn listen_unix(&self, path: std::path::PathBuf) -> std::io::Result<Infallible> {
        use smol::net::unix::UnixStream;
        use std::os::unix::fs::FileTypeExt;
        let is_socket = std::fs::symlink_metadata(&path).is_ok_and(|found| found.file_type().is_socket());
        if is_socket
            && UnixStream::connect(&path).await.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
        {
            std::fs::remove_file(&path)?;
        }
        let listener = crate::transport::listen(&path, 0o600)?;
        log::info!("debug server at {UNIX}{}", path.display());
        self.driver.at_end(move || {
            let _ = std::fs::remove_file(path);
        });
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.serve(Box::new(stream), None).await,
                Err(error) => pause(error).await,
            }
        }
    }

    #[cfg(not(unix))]
    async fn listen_unix(&self, _: std::path::PathBuf) -> std::io::Result<Infallible> {
        Err(std::io::Error::new(std::io::ErrorKind::Unsupported, "Unix sockets are not supported on this system"))
    }

    /// `name`: set if only this machine can connect; the name that it uses.
    async fn serve(&self, stream: Box<dyn Connection>, name: Option<Rc<str>>) {
        let driver = self.driver.clone();
        let connection = async move {
            serve(&driver, stream, name.as_deref()).await;
        };
        {
            let mut open = self.open.borrow_mut();
            open.retain(|connection| !connection.is_finished());
            if open.len() >= MAX_CONNECTIONS {
                open.pop_front();
            }
            open.push_back(self.executor.spawn(connection));
        }
        // The new connection reads before the next one is accepted.
        smol::future::yield_now().await;
    }
}

/// Serves one connection to its end. `name`: set if only this machine can connect; the name that it uses.
async fn serve(driver: &Driver, stream: Box<dyn Connection>, name: Option<&str>) {
    let serve = hyper::server::conn::http1::Builder::new()
        .timer(Clock)
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(Io(stream), hyper::service::service_fn(|request| answer(driver, request, name)));
    let late = async {
        smol::Timer::after(CONNECTION_TIMEOUT).await;
        Ok(())
    };
    if let Err(error) = serve.or(late).await {
        log::debug!("debug server: {error}");
    }
}

/// For `fuzz/`: serves one connection to its end.
#[cfg(fuzzing)]
pub async fn serve_connection(driver: &Driver, stream: impl AsyncRead + AsyncWrite + Unpin + 'static) {
    serve(driver, Box::new(stream), None).await;
}

async fn pause(error: std::io::Error) {
    log::warn!("debug server: accept: {error}; retry in {} s", ACCEPT_PAUSE.as_secs());
    smol::Timer::after(ACCEPT_PAUSE).await;
}

/// An answer.
struct Page {
    status: StatusCode,
    kind: &'static str,
    body: String,
}

impl Page {
    fn new(kind: &'static str, body: String) -> Page {
        Page { status: StatusCode::OK, kind, body }
    }

    fn refusal(status: StatusCode, why: &str) -> Page {
        Page { status, kind: TEXT, body: why.into() }
    }
}

const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";

async fn answer(
    driver: &Driver,
    request: Request<Incoming>,
    name: Option<&str>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    // The bytes after the head could be a body for one reader, and the next request for another.
    let has_body = !request.body().is_end_stream();
    let page = match *request.method() {
        _ if has_body => Page::refusal(StatusCode::BAD_REQUEST, "requests must have no body\n"),
        _ if name.is_some_and(|name| !is_for(name, request.headers())) => Page::refusal(
            StatusCode::MISDIRECTED_REQUEST,
            "use an IP address, localhost or the configured name: other names are rejected to prevent DNS rebinding\n",
        ),
        Method::GET | Method::HEAD => {
            let (path, query) = (request.uri().path(), request.uri().query());
            let html = wants_html(request.headers());
            driver.show(|status| page(status, path, query.unwrap_or_default(), html))
        }
        _ => Page::refusal(StatusCode::METHOD_NOT_ALLOWED, "this server is read-only: use GET or HEAD\n"),
    };
    let mut response = Response::new(Full::new(Bytes::from(page.body)));
    *response.status_mut() = page.status;
    let headers = response.headers_mut();
    let all = [
        (CONTENT_TYPE, page.kind),
        (CACHE_CONTROL, "no-store"),
        (VARY, "Accept"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CONTENT_SECURITY_POLICY, html::policy()),
        (ALLOW, "GET, HEAD"),
    ];
    for (name, value) in all {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if has_body {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// False if the request's `Host` is neither `own` nor `localhost` nor an IP address. With DNS rebinding, a foreign web
/// page lets its own name point to this machine, and the browser reads for it what only this machine may see.
fn is_for(own: &str, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    hosts.all(|host| {
        let host = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
        host.is_some_and(|host| {
            let name = host.host().trim_matches(['[', ']']);
            [own, "localhost"].iter().any(|own| name.eq_ignore_ascii_case(own)) || name.parse::<IpAddr>().is_ok()
        })
    })
}

fn wants_html(headers: &HeaderMap) -> bool {
    headers.get_all(ACCEPT).iter().any(|value| value.to_str().is_ok_and(|value| value.contains("text/html")))
}

fn page(status: &Status<'_>, path: &str, query: &str, html: bool) -> Page {
    let kind = if html { HTML } else { TEXT };
    if let Some(name) = path.strip_prefix("/instances/") {
        let found = status.journal.lives_of(name).next().is_some();
        let body = match (found, html) {
            (true, true) => html::instance(status, name),
            (true, false) => text::instance(status, name, width(query)),
            (false, true) => html::missing("There is no instance with this name, or its steps are no longer kept."),
            (false, false) => "there is no instance with this name, or its steps are no longer kept\n".into(),
        };
        let code = if found { StatusCode::OK } else { StatusCode::NOT_FOUND };
        return Page { status: code, kind, body };
    }
    match path {
        "/instances" if html => Page::new(HTML, html::instances(status)),
        "/instances" => Page::new(TEXT, text::instances(status, width(query))),
        "/" if html => Page::new(HTML, html::overview(status)),
        "/" => Page::new(TEXT, text::overview(status, width(query))),
        "/api/status" => Page::new(JSON, json::status(status)),
        "/metrics" => Page::new(metrics::CONTENT_TYPE, metrics::page(status)),
        "/healthz" => {
            let problems = status.health_problems();
            match problems.is_empty() {
                true => Page::new(TEXT, "ok\n".into()),
                false => Page { status: StatusCode::SERVICE_UNAVAILABLE, kind: TEXT, body: problems.join("\n") + "\n" },
            }
        }
        _ if html => Page { status: StatusCode::NOT_FOUND, kind: HTML, body: html::missing("There is no such page.") },
        _ => Page {
            status: StatusCode::NOT_FOUND,
            kind: TEXT,
            body: "no such page; there are /, /instances, /instances/NAME, /api/status, /metrics and /healthz\n".into(),
        },
    }
}

fn width(query: &str) -> usize {
    let asked = query.split('&').find_map(|pair| pair.strip_prefix("width=")?.parse().ok());
    asked.map_or(WIDTH, |asked: usize| asked.clamp(*WIDTHS.start(), *WIDTHS.end()))
}

/// One line above the table, on both kinds of page.
struct Fact {
    label: &'static str,
    words: String,
    /// Where to find the fix, if there is a problem; else empty.
    fix: &'static str,
}

/// Everything except instances and events.
fn facts(status: &Status<'_>) -> Vec<Fact> {
    let mut all = Vec::new();
    let mut fact = |label, words: String, fix| all.push(Fact { label, words, fix });
    let (about, standing, polls) = (status.about, &status.standing, &status.polls);

    let troubles = status.troubles();
    if troubles.is_empty() {
        let stopping = standing.stopping.then_some("OK; GitLab Runner is shutting the plugin down");
        fact("status", stopping.unwrap_or("OK").to_owned(), "");
    }
    for trouble in troubles {
        fact("status", trouble.text, trouble.fix);
    }
    fact("VCD", format!("{}, org {}, VDC {}, API {}", about.url, about.org, about.vdc, about.api_version), "");
    let session = &status.session;
    let mut words = match session.state {
        SessionState::Valid => "valid".to_owned(),
        SessionState::LoggingIn => "logging in".to_owned(),
        SessionState::Ended => "none".to_owned(),
    };
    words += &format!(", logins so far: {}", session.logins);
    if let Some(left) = session.renewed_in {
        words += &format!(", renewed in {}", short(left));
    }
    if let Some(failure) = &session.failure {
        words += &format!("; last login failed: {failure}");
    }
    let bad = session.state == SessionState::Ended || session.failure.is_some();
    fact("session", words, if bad { "docs/troubleshooting.md#the-token-and-the-session" } else { "" });

    let result = match &polls.result {
        None => "none yet".to_owned(),
        Some(Ok(1)) => "1 VM".to_owned(),
        Some(Ok(vms)) => counted(*vms as u64, "VM"),
        Some(Err(error)) => format!(
            "FAILED ({} in a row, the last successful one {} ago): {error}",
            standing.failed_polls,
            short(status.now - polls.good)
        ),
    };
    let (ago, took) = (short(status.now - polls.ended), tenths(polls.took));
    let failed = matches!(polls.result, Some(Err(_)));
    let fix = if failed { "docs/troubleshooting.md#while-running" } else { "" };
    fact("last poll", format!("{ago} ago, took {took} s: {result}"), fix);

    let mut words = limit(standing.instances);
    for (phase, count) in by_phase(status) {
        if count > 0 {
            words += &format!(", {count} {phase}");
        }
    }
    fact("instances", words, "");

    let (instances, wire) = (standing, &status.wire);
    let requests = Limit { used: wire.busy as u32, most: wire.most as u32 };
    let words = format!(
        "{} creates, {} deletes, {} operations in all; {} checks of login ports, {} lookups, {} requests to VCD",
        limit(instances.creates),
        limit(instances.deletes),
        limit(instances.operations),
        limit(instances.probes),
        limit(instances.looks),
        limit(requests)
    );
    fact("in use", words, "");
    let words = format!(
        "{}, {}, {} to VCD",
        counted(standing.creates_waiting.into(), "create"),
        counted(standing.deletes_waiting.into(), "delete"),
        counted((wire.waiting + wire.changes_waiting) as u64, "request")
    );
    fact("waiting", words, "");
    if standing.stuck > 0 {
        let longest = short(standing.stuck_for.unwrap_or_default());
        let words = format!(
            "{}, for up to {longest}: VCD does not finish a task, or rejects a request",
            counted(standing.stuck.into(), "instance")
        );
        fact("stuck", words, "docs/troubleshooting.md#what-an-instance-waits-for");
    }

    let failures = standing.failures;
    let (words, paused) = match (standing.breaker, failures) {
        (Some(left), _) => (format!("PAUSED, because too many failed recently; one is tried in {}", short(left)), true),
        (None, _) if standing.breaker_tries => ("one is tried, because too many failed recently".to_owned(), true),
        (None, 0) => ("allowed".to_owned(), false),
        (None, _) => (format!("allowed; recently {failures} more failed than succeeded"), false),
    };
    fact("creates", words, if paused { "docs/troubleshooting.md#creates" } else { "" });
    if standing.unreachable {
        let words = "VCD does not answer: they wait until a poll succeeds";
        fact("changes", words.into(), "docs/troubleshooting.md#while-running");
    }
    let process = &status.process;
    if let (Some(memory), Some(cpu), Some(threads)) = (process.memory, process.cpu, process.threads) {
        let memory = tenths(Duration::from_millis(memory.saturating_mul(1000) >> 20));
        fact("process", format!("{memory} MB, {} s of CPU, {threads} threads", tenths(cpu)), "");
    }
    all
}

/// Such as "1 create", "2 creates".
fn counted(count: u64, of: &str) -> String {
    format!("{count} {of}{}", if count == 1 { "" } else { "s" })
}

fn limit(of: Limit) -> String {
    format!("{} of {}", of.used, of.most)
}

/// The lines above the steps of an instance, on both kinds of page.
fn life_facts(status: &Status<'_>, life: &Life) -> Vec<(&'static str, String)> {
    let at = |time: Time| {
        let text = timestamp(status.wall(time));
        format!("{} UTC, {} ago", text.get(..19).unwrap_or_default().replace('T', " "), short(status.now - time))
    };
    let view = status.views.iter().find(|view| view.key == life.key);
    let mut all = vec![
        ("instance", life.name.to_string()),
        ("phase", format!("{} for {}", life.phase.name(), short(status.now - life.since))),
    ];
    if let Some(view) = view {
        let mut more = |label, value: Option<String>| all.extend(value.map(|value| (label, value)));
        let waits_for = Some(view.waits_for.to_owned()).filter(|words| !words.is_empty());
        more("waits for", waits_for);
        more("address", view.address.map(|address| address.to_string()));
        more("VM", view.power.map(|power| power.name().to_owned()));
        more("guest OS", view.guest_os.as_deref().map(str::to_owned));
        more("vApp", view.vapp.as_deref().map(str::to_owned));
        more("task", view.task.as_deref().map(str::to_owned));
        more("failed attempts", (view.retries > 0).then(|| view.retries.to_string()));
        more("last error", view.error.as_deref().map(str::to_owned));
    }
    let began = if life.was_made_here() { "accepted" } else { "found" };
    all.push((began, at(life.began)));
    all.extend(life.create_asked.map(|time| ("first create request", at(time))));
    all.extend(life.created.map(|time| ("running", at(time))));
    all.extend(life.removal.map(|(time, cause)| ("delete wanted", format!("{}, cause: {}", at(time), cause.name()))));
    all.extend(life.delete_asked.map(|time| ("first delete request", at(time))));
    all.extend(life.ended.map(|time| ("deleted", at(time))));
    all
}

/// Number of instances in each phase, without those whose owner is not known yet.
fn by_phase(status: &Status<'_>) -> impl Iterator<Item = (&'static str, u16)> {
    let known = status.views.iter().filter(|view| !view.undecided);
    let counts = crate::journal::count(known.map(|view| view.phase));
    crate::group::Phase::ALL.iter().map(|phase| phase.name()).zip(counts)
}

/// Time since the instance entered its phase.
fn since(status: &Status<'_>, key: u64) -> String {
    status.journal.life(key).map_or_else(|| "-".into(), |life| short(status.now - life.since))
}

/// The text of an entry: `Creating -> Running: text (3 times since 12:00:01)`.
fn words(status: &Status<'_>, entry: &Entry) -> String {
    let mut words = match (entry.from, entry.phase) {
        (Some(from), Some(to)) => format!("{} -> {}: ", from.name(), to.name()),
        _ => String::new(),
    };
    words += match (&*entry.text, &entry.error) {
        ("", Some(error)) => error,
        (text, _) => text,
    };
    if entry.times > 1 {
        words += &format!(" ({} times since {})", entry.times, clock(status, entry.first));
    }
    let words = words.trim_end().trim_end_matches(':');
    if words.is_empty() { "done".to_owned() } else { words.to_owned() }
}

/// `12:34:56`, in UTC; with the date if it is not today.
fn clock(status: &Status<'_>, time: Time) -> String {
    let (then, now) = (timestamp(status.wall(time)), timestamp(status.wall));
    let today = then.get(..10) == now.get(..10);
    let text = if today { then.get(11..19) } else { then.get(5..19) };
    text.unwrap_or_default().replace('T', " ")
}

/// Seconds with one decimal. Formatting of floating-point numbers would need more code than this whole page.
fn tenths(duration: Duration) -> String {
    let tenths = duration.as_millis().saturating_add(50) / 100;
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// Two or three digits and a unit: `47s`, `12m`, `3h`, `9d`.
fn short(duration: Duration) -> String {
    match duration.as_secs() {
        s @ 0..120 => format!("{s}s"),
        s @ 120..7200 => format!("{}m", s / 60),
        s @ 7200..172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}
