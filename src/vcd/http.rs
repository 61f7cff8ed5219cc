//! HTTP with VCD: one request, one answer, limited in time and size. It knows no VCD documents and does not interpret
//! the status.

use super::tls::NotConnected;
#[cfg(not(fuzzing))]
use super::tls::{Lookup, Marking, Tcp, TlsConnector};
use crate::cloud::{Secret, UnixMs};
use flate2::bufread::MultiGzDecoder;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::ClientConfig;
use std::borrow::Cow;
use std::io::Read as _;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use ureq::http::uri::{Authority, Scheme};
use ureq::http::{Method, Request, Uri};
#[cfg(not(fuzzing))]
use ureq::unversioned::transport::{ConnectProxyConnector, Connector as _};
use ureq::{Agent, Proxy, ProxyProtocol};

/// Maximum time to connect, TLS included. (The system limits the lookup of the host name.)
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of the first request of a process.
pub const FIRST_TIMEOUT: Duration = Duration::from_secs(15);
/// Timeout of the logout.
pub const LOGOUT_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of a request that only reads.
pub const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Timeout of a request that changes something: VCD may work for a while before it answers.
pub const CHANGE_TIMEOUT: Duration = Duration::from_secs(120);
/// Maximum size of a response body. For a compressed body, the size after decompression counts.
pub const MAX_BODY: u64 = 8 * 1024 * 1024;
/// Size of each of the two buffers of a connection. The headers of an answer must fit into one.
const BUFFER: usize = 32 * 1024;
/// The same below TLS. Whole answers are collected above it.
const BUFFER_BELOW: usize = 8 * 1024;
/// An idle connection is not used for a change after this time: VCD may be about to close it, and the result of the
/// change would be unknown.
const MAX_IDLE_AGE: Duration = Duration::from_secs(10);
/// The same for a read, which can be repeated, if polls are far apart: many servers and proxies close a connection
/// after a minute.
const MAX_IDLE_AGE_READ: Duration = Duration::from_secs(50);
/// Maximum number of redirects on VCD's own origin that a read follows.
const MAX_REDIRECTS: usize = 3;
/// Maximum value of `Retry-After`. A longer one is cut.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// Sent as `User-Agent`.
pub(super) const USER_AGENT: &str = concat!("fleeting-plugin-vcd/", env!("CARGO_PKG_VERSION"));

/// The operations that are counted: those of `Request`, and those of the client itself.
const OPERATIONS: [&str; 20] = [
    "versions",
    "login",
    "logout",
    "resolve",
    "poll",
    "poll_some",
    "find",
    "look",
    "create",
    "configure",
    "tpm",
    "power_on",
    "suspend",
    "mark",
    "delete",
    "undeploy",
    "delete_stopped",
    "tasks",
    "cancel",
    "label",
];

/// Upper limits of [`Count::took`], in milliseconds.
pub const TOOK_BOUNDS: [u64; 8] = [100, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000];

/// Number, failures and duration of the HTTP requests of one operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// The operation's name, as in `Request::operation`, or `versions`, `login`, `logout`, `resolve`.
    pub operation: &'static str,
    /// HTTP requests that were started.
    pub requests: u64,
    /// Requests without an answer, or with a status of 400 or above.
    pub errors: u64,
    /// Number of requests that took at most this one of [`TOOK_BOUNDS`], but longer than the one before.
    pub took: [u64; TOOK_BOUNDS.len()],
    /// Total duration of all.
    pub took_in_all: Duration,
}

/// The same as counters for several threads.
#[derive(Default)]
struct Counter {
    requests: AtomicU64,
    errors: AtomicU64,
    took: [AtomicU64; TOOK_BOUNDS.len()],
    took_in_all_us: AtomicU64,
}

impl Counter {
    fn add(&self, took: Duration, failed: bool) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.errors.fetch_add(u64::from(failed), Ordering::Relaxed);
        self.took_in_all_us.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let mut buckets = TOOK_BOUNDS.iter().zip(&self.took);
        if let Some((_, bucket)) = buckets.find(|(bound, _)| took <= Duration::from_millis(**bound)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The address of VCD: the origin and the path before `/api`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Site {
    scheme: Scheme,
    host: String,
    port: u16,
    /// `https://HOST`, with no slash at the end.
    pub(super) root: String,
}

impl Site {
    /// Parses `https://HOST/api`, with or without `/api` and slashes at the end.
    pub(super) fn new(url: &str) -> Result<Self, String> {
        let uri: Uri = url.trim().parse().map_err(|e| format!("not a URL: {e}"))?;
        let (scheme, host, port) = origin(&uri).ok_or("not an absolute http or https URL")?;
        let authority = uri.authority().map(Authority::as_str).unwrap_or_default();
        if authority.contains('@') {
            return Err("the URL must not contain a user name or password".into());
        }
        if uri.query().is_some() {
            return Err("the URL must not contain a query".into());
        }
        let path = uri.path().trim_end_matches('/');
        let path = path.strip_suffix("/api").unwrap_or(path).trim_end_matches('/');
        Ok(Self { root: format!("{scheme}://{authority}{path}"), scheme, host, port })
    }

    /// True if `href` is on this origin, the only one that may receive the session's token.
    pub(super) fn holds(&self, href: &str) -> bool {
        // Nearly all links match here, and a poll has thousands: the text after the root begins with a slash, which
        // ends the authority, and contains only valid characters of a path.
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'_' | b'.' | b':');
        let below = href.strip_prefix(&self.root).filter(|path| path.starts_with('/'));
        if below.is_some_and(|path| path.bytes().all(is_plain)) {
            return true;
        }
        let Ok(uri) = href.parse::<Uri>() else { return false };
        let plain = uri.authority().is_some_and(|a| !a.as_str().contains('@'));
        plain && origin(&uri).is_some_and(|(s, h, p)| s == self.scheme && h == self.host && p == self.port)
    }

    /// `href` on this origin. VCD writes its public address into links, even if the request used another name: of such
    /// links, the path below `/api/` counts. `None` for all other links.
    pub(super) fn place<'a>(&self, href: &'a str) -> Option<Cow<'a, str>> {
        if self.holds(href) {
            return Some(Cow::Borrowed(href));
        }
        let uri: Uri = href.parse().ok()?;
        origin(&uri)?;
        let path = uri.path_and_query()?.as_str().strip_prefix("/api/")?;
        Some(Cow::Owned(format!("{}/api/{path}", self.root)))
    }
}

/// The target of a redirect from `url`, if it is on the same origin: a path, or a full URL.
fn on_same_origin(url: &str, place: &str) -> Option<String> {
    let here = url.parse::<Uri>().ok()?;
    let target = match place.strip_prefix('/') {
        Some(rest) if !rest.starts_with('/') => format!("{}://{}{place}", here.scheme()?, here.authority()?),
        _ => place.to_owned(),
    };
    let there = target.parse::<Uri>().ok()?;
    let plain = there.authority().is_some_and(|a| !a.as_str().contains('@'));
    (plain && origin(&here)? == origin(&there)?).then_some(target)
}

/// True if `place` is on the host of `url`, but with https.
fn is_same_over_https(url: &str, place: &str) -> bool {
    let origin = |url: &str| url.parse::<Uri>().ok().as_ref().and_then(origin);
    let (Some(here), Some(there)) = (origin(url), origin(place)) else { return false };
    here.0 == Scheme::HTTP && there.0 == Scheme::HTTPS && here.1 == there.1
}

/// The proxy for `site` from the environment, by the common rules: `HTTPS_PROXY` (for `http://`: `HTTP_PROXY`),
/// otherwise `ALL_PROXY`, in upper or lower case, unless `NO_PROXY` lists the host.
pub(super) fn proxy(site: &Site, env: impl Fn(&str) -> Option<String>) -> Result<Option<Proxy>, String> {
    let of = |name: &str| {
        [name.to_owned(), name.to_ascii_lowercase()].into_iter().find_map(|name| {
            env(&name).map(|value| (name, value.trim().to_owned())).filter(|(_, value)| !value.is_empty())
        })
    };
    let own = if site.scheme == Scheme::HTTPS { "HTTPS_PROXY" } else { "HTTP_PROXY" };
    let Some((name, value)) = of(own).or_else(|| of("ALL_PROXY")) else { return Ok(None) };
    if of("NO_PROXY").is_some_and(|(_, list)| list.split(',').any(|entry| excepts(entry.trim(), site))) {
        return Ok(None);
    }
    // The value may contain a password, so it is not quoted.
    let proxy = Proxy::new(&value).map_err(|_| format!("{name} in the environment is not a valid proxy URL"))?;
    if !matches!(proxy.protocol(), ProxyProtocol::Http | ProxyProtocol::Https) {
        return Err(format!("{name} in the environment names a SOCKS proxy; only http:// and https:// are supported"));
    }
    Ok(Some(proxy))
}

/// True if an entry of `NO_PROXY` matches the site: `*`, a domain and its subdomains, an IP address or a range. An
/// entry with a port matches only that port.
fn excepts(entry: &str, site: &Site) -> bool {
    let host = site.host.trim_matches(['[', ']']);
    let (entry, port) = match entry.rsplit_once(':') {
        Some((front, port)) if !front.contains(':') || front.ends_with(']') => (front, port.parse().ok()),
        _ => (entry, None),
    };
    if port.is_some_and(|port: u16| port != site.port) {
        return false;
    }
    let entry = entry.trim_matches(['[', ']']).to_ascii_lowercase();
    if let (Some((net, bits)), Ok(host)) = (entry.split_once('/'), host.parse()) {
        return net.parse().is_ok_and(|net| bits.parse().is_ok_and(|bits| in_range(host, net, bits)));
    }
    let domain = entry.trim_start_matches('*').trim_start_matches('.');
    let below = || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
    entry == "*" || (!domain.is_empty() && (host == domain || below()))
}

fn in_range(host: IpAddr, net: IpAddr, bits: u32) -> bool {
    let number = |address: IpAddr| match address {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, 32),
        IpAddr::V6(v6) => (u128::from(v6), 128),
    };
    let ((host, length), (net, same)) = (number(host), number(net));
    let differs = (host ^ net).checked_shr(128_u32.saturating_sub(bits)).unwrap_or(0);
    length == same && bits <= length && differs == 0
}

fn origin(uri: &Uri) -> Option<(Scheme, String, u16)> {
    let scheme = uri.scheme()?.clone();
    let standard = if scheme == Scheme::HTTPS {
        443
    } else if scheme == Scheme::HTTP {
        80
    } else {
        return None;
    };
    let host = uri.host().filter(|h| !h.is_empty())?.to_ascii_lowercase();
    Some((scheme, host, uri.port_u16().unwrap_or(standard)))
}

/// One request.
pub(super) struct Ask<'a> {
    /// One of [`OPERATIONS`].
    pub(super) operation: &'static str,
    pub(super) method: Method,
    pub(super) url: &'a str,
    pub(super) accept: &'a str,
    pub(super) bearer: Option<&'a str>,
    /// `Content-Type` (may be empty) and body.
    pub(super) content: Option<(&'a str, &'a str)>,
    /// `None`: [`FIRST_TIMEOUT`].
    pub(super) timeout: Option<Duration>,
    /// The digest of an earlier answer. The same answer is not unpacked again: its body stays empty.
    pub(super) known: Option<&'a Digest>,
}

/// SHA-256 of a body as VCD sends it, packed or not.
pub(super) type Digest = [u8; 32];

/// One answer, of whatever status.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) status: u16,
    /// The `Date` header.
    pub(super) now: Option<UnixMs>,
    pub(super) retry_after: Option<Duration>,
    /// The target of a redirect.
    pub(super) location: Option<String>,
    /// The redirect is from `http://` to `https://` on the same host.
    pub(super) is_for_https: bool,
    /// VCD's id of the request, for support.
    pub(super) request_id: Option<String>,
    /// None if the body is incomplete.
    pub(super) digest: Option<Digest>,
    /// Empty if it is incomplete and the status is not a good one, and if it is known ([`Ask::known`]).
    pub(super) body: String,
}

/// No answer came.
#[derive(Debug)]
pub(super) struct Lost {
    /// The request may have reached VCD.
    pub(super) sent: bool,
    /// The error of the transport.
    pub(super) text: String,
}

/// The secrets that VCD received last. Log lines and errors must not contain them, even if VCD echoes them.
#[derive(Clone, Default)]
pub(super) struct Shown {
    pub(super) token: Option<Secret>,
    /// VCD's token for the next login.
    pub(super) next: Option<Secret>,
    pub(super) bearer: Option<Arc<str>>,
}

impl Shown {
    pub(super) fn secrets(&self) -> Vec<&str> {
        let tokens = [&self.token, &self.next].into_iter().flatten().map(Secret::reveal);
        tokens.chain(self.bearer.as_deref()).collect()
    }
}

const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Percent-encodes everything but letters, digits and `-._~`.
pub(super) fn encode(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

/// Takes a secret out of texts, in each form in which an answer may contain it.
pub(super) fn take_out(secret: &str, texts: &mut [&mut String]) {
    for form in forms(secret).iter().filter(|form| !form.is_empty()) {
        for text in texts.iter_mut().filter(|text| text.contains(&**form)) {
            **text = text.replace(&**form, "…");
        }
    }
}

/// The forms of a secret: as it is; as [`tidy`] changes VCD's texts; and as a web page may quote it: as text or
/// attribute of XML or HTML, in a link or form, as JSON.
fn forms(secret: &str) -> Vec<Cow<'_, str>> {
    let mut forms = vec![Cow::Borrowed(secret), Cow::Owned(tidy(secret))];
    if secret.bytes().any(|byte| !byte.is_ascii_alphanumeric()) {
        let text = secret.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let attribute = text.replace('"', "&quot;");
        let link = encode(secret);
        let more = [
            attribute.replace('\'', "&apos;"),
            attribute.replace('\'', "&#39;"),
            text,
            attribute,
            link.replace("%20", "+"),
            link,
            secret.replace('\\', "\\\\").replace('"', "\\\""),
        ];
        forms.extend(more.into_iter().filter(|form| form != secret).map(Cow::Owned));
    }
    forms
}

/// Replaces control characters and runs of white space with single spaces.
pub(super) fn tidy(text: &str) -> String {
    let words: Vec<&str> =
        text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
    words.join(" ")
}

/// The connections, shared by all threads.
pub(super) struct Http {
    agent: Agent,
    /// [`MAX_IDLE_AGE`].
    most_idle: Duration,
    counts: [Counter; OPERATIONS.len()],
    /// Not locked during a request: the thread that decides locks it, too.
    shown: Mutex<Shown>,
}

impl Http {
    /// Does no I/O. All connections use `proxy`, if there is one. Reads may be `poll_interval` apart.
    pub(super) fn new(tls: Arc<ClientConfig>, proxy: Option<Proxy>, poll_interval: Duration) -> Self {
        let config = |buffer: usize| {
            Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(0)
                .proxy(proxy.clone())
                .user_agent(USER_AGENT)
                .max_idle_age(idle_age(poll_interval))
                .input_buffer_size(buffer)
                .output_buffer_size(buffer)
                .timeout_resolve(Some(CONNECT_TIMEOUT))
                .timeout_connect(Some(CONNECT_TIMEOUT))
                .timeout_global(Some(FIRST_TIMEOUT))
                .build()
        };
        #[cfg(not(fuzzing))]
        let agent = {
            let connector =
                ().chain(ConnectProxyConnector::default())
                    .chain(Tcp::new(config(BUFFER_BELOW)))
                    .chain(TlsConnector(tls));
            Agent::with_parts(config(BUFFER), Marking(connector), Lookup::default())
        };
        #[cfg(fuzzing)]
        let agent = super::wire::agent(config(BUFFER), tls);
        Self { agent, most_idle: MAX_IDLE_AGE, counts: Default::default(), shown: Mutex::default() }
    }

    /// Must be set before VCD receives it for the first time.
    pub(super) fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The counters of requests, by operation.
    pub(super) fn counts(&self) -> Vec<Count> {
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        OPERATIONS
            .iter()
            .zip(&self.counts)
            .map(|(operation, counter)| Count {
                operation,
                requests: read(&counter.requests),
                errors: read(&counter.errors),
                took: std::array::from_fn(|at| counter.took.get(at).map_or(0, read)),
                took_in_all: Duration::from_micros(read(&counter.took_in_all_us)),
            })
            .collect()
    }

    /// Sends one request once and reads the whole answer. A read follows redirects on the same origin: no other one
    /// receives the session's token.
    pub(super) fn exchange(&self, ask: &Ask) -> Result<Received, Lost> {
        let began = Instant::now();
        // Headers, bodies and the targets of redirects are never logged. The client's queries contain only names.
        let place = ask.url.splitn(4, '/').nth(3).unwrap_or_default();
        let mut got = self.once(ask, place)?;
        for _ in 0..MAX_REDIRECTS {
            if !matches!(got.status, 301 | 302 | 303 | 307 | 308) || ask.method != Method::GET {
                break;
            }
            let place = got.location.as_deref().unwrap_or_default();
            got.is_for_https = is_same_over_https(ask.url, place);
            let Some(url) = on_same_origin(ask.url, place) else { break };
            let timeout = ask.timeout.unwrap_or(FIRST_TIMEOUT).saturating_sub(began.elapsed());
            if timeout.is_zero() {
                break;
            }
            got = self.once(&Ask { url: &url, method: ask.method.clone(), timeout: Some(timeout), ..*ask }, place)?;
        }
        Ok(got)
    }

    fn once(&self, ask: &Ask, place: &str) -> Result<Received, Lost> {
        let began = Instant::now();
        let result = self.run(ask);
        let took = began.elapsed();
        let ms = took.as_millis();
        super::record::note(ask, &result, took);
        if log::log_enabled!(log::Level::Debug) {
            let mut line = match &result {
                Ok(got) => format!("{} /{place}: {} in {ms} ms", ask.method, got.status),
                Err(lost) => format!("{} /{place}: no answer in {ms} ms: {}", ask.method, lost.text),
            };
            // The place is a link from VCD.
            for secret in self.shown().secrets() {
                take_out(secret, &mut [&mut line]);
            }
            log::debug!("{line}");
        }
        if let Some(at) = OPERATIONS.iter().position(|o| *o == ask.operation)
            && let Some(counter) = self.counts.get(at)
        {
            counter.add(took, result.as_ref().map_or(true, |got| got.status >= 400));
        }
        result
    }

    fn run(&self, ask: &Ask) -> Result<Received, Lost> {
        let mut head = Request::builder()
            .method(ask.method.clone())
            .uri(ask.url)
            .header("Accept", ask.accept)
            .header("Accept-Language", "en")
            .header("Accept-Encoding", "gzip");
        if let Some(bearer) = ask.bearer {
            head = head.header("Authorization", format!("Bearer {bearer}"));
        }
        let built = |e: ureq::http::Error| Lost { sent: false, text: e.to_string() };
        let answer = match ask.content {
            Some((kind, body)) => {
                if !kind.is_empty() {
                    head = head.header("Content-Type", kind);
                }
                self.send(head.body(body).map_err(built)?, ask.timeout)
            }
            None => self.send(head.body(()).map_err(built)?, ask.timeout),
        };
        let mut answer = answer.map_err(lost)?;
        let header = |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok()).map(str::trim);
        let date = header("date").and_then(|d| httpdate::parse_http_date(d).ok());
        let retry_after = header("retry-after").and_then(|v| retry_after(v, date));
        let location = header("location").map(str::to_owned);
        let request_id = header("x-vmware-vcloud-request-id").map(str::to_owned);
        let status = answer.status();
        let now = date.and_then(|d| d.duration_since(SystemTime::UNIX_EPOCH).ok());
        let now = now.and_then(|d| UnixMs::try_from(d.as_millis()).ok());
        let is_packed = header("content-encoding").is_some_and(|encoding| encoding.eq_ignore_ascii_case("gzip"));
        let bytes = answer.body_mut().with_config().limit(MAX_BODY).read_to_vec();
        let digest = bytes.as_ref().ok().and_then(|bytes| digest(bytes));
        let body = match bytes {
            Ok(_) if digest.is_some() && digest.as_ref() == ask.known => Ok(Vec::new()),
            Ok(bytes) if is_packed => unpacked(&bytes),
            other => other,
        };
        let body = match body {
            Ok(bytes) => text(bytes),
            Err(e) if status.is_success() => {
                return Err(Lost { sent: true, text: format!("the answer ({status}) is incomplete: {e}") });
            }
            Err(_) => String::new(),
        };
        let status = status.as_u16();
        Ok(Received { status, now, retry_after, location, is_for_https: false, request_id, digest, body })
    }

    fn send<B: ureq::AsSendBody>(
        &self,
        request: Request<B>,
        timeout: Option<Duration>,
    ) -> Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        let reads = request.method() == Method::GET;
        let mut config = self.agent.configure_request(request);
        if !reads {
            config = config.max_idle_age(self.most_idle);
        }
        if timeout.is_some() {
            config = config.timeout_global(timeout);
        }
        self.agent.run(config.build())
    }
}

/// All polls share one connection, and connections of busier times expire: the one that was idle longest is used first,
/// and is too old if several take turns.
fn idle_age(poll_interval: Duration) -> Duration {
    (poll_interval.saturating_mul(3) / 2).clamp(MAX_IDLE_AGE, MAX_IDLE_AGE_READ)
}

fn digest(bytes: &[u8]) -> Option<Digest> {
    ring::digest::digest(&ring::digest::SHA256, bytes).as_ref().first_chunk().copied()
}

/// A body that is packed with gzip, up to [`MAX_BODY`].
fn unpacked(packed: &[u8]) -> Result<Vec<u8>, ureq::Error> {
    let mut body = Vec::new();
    let read = MultiGzDecoder::new(packed).take(MAX_BODY + 1).read_to_end(&mut body)?;
    if read as u64 > MAX_BODY { Err(ureq::Error::BodyExceedsLimit(MAX_BODY)) } else { Ok(body) }
}

/// Usually without a copy.
fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

/// Seconds, or a date.
fn retry_after(value: &str, now: Option<SystemTime>) -> Option<Duration> {
    let wait = match value.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(value).ok()?.duration_since(now?).ok()?,
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// The request may have been sent unless the connection failed, or the request could not be written.
fn lost(error: ureq::Error) -> Lost {
    match error {
        ureq::Error::Other(e) if e.is::<NotConnected>() => Lost { sent: false, text: e.to_string() },
        e @ (ureq::Error::Http(_) | ureq::Error::BadUri(_) | ureq::Error::ConnectionFailed) => {
            Lost { sent: false, text: e.to_string() }
        }
        e => Lost { sent: true, text: e.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_with_and_without_api_and_slash() {
        for url in [
            "https://vcd.example.com/api",
            "https://vcd.example.com/api/",
            "https://vcd.example.com",
            " https://vcd.example.com/ ",
        ] {
            assert_eq!(Site::new(url).unwrap().root, "https://vcd.example.com", "{url}");
        }
        assert_eq!(Site::new("http://[::1]:8080/cloud/api").unwrap().root, "http://[::1]:8080/cloud");
        for url in ["vcd.example.com/api", "ftp://x/api", "https://a:secret@x/api", "https://x/api?y=1", "", "https://"]
        {
            let error = Site::new(url).unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn only_the_configured_origin_gets_the_session() {
        let site = Site::new("https://vcd.example.com/api").unwrap();
        for href in ["https://vcd.example.com/api/vApp/vapp-1", "https://VCD.example.com:443/api/x?y=1"] {
            assert!(site.holds(href), "{href}");
        }
        for href in [
            "http://vcd.example.com/api",
            "https://vcd.example.com:8443/api",
            "https://vcd.example.com.evil.org/api",
            "https://vcd.example.com@evil.org/api",
            "https://u@vcd.example.com/api",
            "/api/vApp/vapp-1",
            "not a url",
            "",
        ] {
            assert!(!site.holds(href), "{href}");
        }
    }

    #[test]
    fn links_to_anywhere_are_followed_here_or_not_at_all() {
        let site = Site::new("https://vcd.example.com/cloud/api").unwrap();
        let place = |href| site.place(href).map(Cow::into_owned);
        for href in ["http://other/api/x/1?y=1", "https://u:p@other:8443/api/x/1?y=1", "https://10.0.0.1/api/x/1?y=1"] {
            assert_eq!(place(href).as_deref(), Some("https://vcd.example.com/cloud/api/x/1?y=1"), "{href}");
        }
        for href in ["https://other/apix", "https://other/x/api/", "https://other", "ftp://other/api/x", "/api/x", ""] {
            assert_eq!(place(href), None, "{href}");
        }
        let own = "https://vcd.example.com/cloud/api/vApp/1";
        assert!(matches!(site.place(own), Some(Cow::Borrowed(href)) if href == own));
    }

    #[test]
    fn redirects_stay_on_their_origin() {
        let from = "https://vcd.example.com/api/query?type=vm";
        for (place, leads) in [
            ("/cloud/api?x=1", Some("https://vcd.example.com/cloud/api?x=1")),
            ("https://VCD.example.com:443/api/x", Some("https://VCD.example.com:443/api/x")),
            ("http://vcd.example.com/api", None),
            ("https://vcd.example.com:8443/api", None),
            ("https://u@vcd.example.com/api", None),
            ("https://evil.example.com/api", None),
            ("//evil.example.com/api", None),
            ("api", None),
            ("", None),
        ] {
            assert_eq!(on_same_origin(from, place).as_deref(), leads, "{place}");
        }
    }

    #[test]
    fn a_redirect_to_the_same_host_over_tls_is_known() {
        let from = "http://vcd.example.com:8080/api/versions";
        for (place, is) in [
            ("https://VCD.example.com/api/versions", true),
            ("https://vcd.example.com:8443/", true),
            ("https://other.example.com/api/versions", false),
            ("http://vcd.example.com/api/versions", false),
            ("/api/versions", false),
            ("", false),
        ] {
            assert_eq!(is_same_over_https(from, place), is, "{place}");
        }
        assert!(!is_same_over_https("https://vcd.example.com/api", "https://vcd.example.com/api"));
    }

    #[test]
    fn the_environments_proxy_is_taken_by_the_common_rules() {
        let found = |url: &str, env: &[(&str, &str)]| {
            let lookup = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string());
            proxy(&Site::new(url).unwrap(), lookup).map(|p| p.map(|p| format!("{}:{}", p.host(), p.port())))
        };
        let (https, http) = ("https://vcd.example.com/api", "http://10.1.2.3:8080/api");
        let both = [("HTTPS_PROXY", "http://s:1"), ("http_proxy", "p:2"), ("ALL_PROXY", "http://a:3")];
        assert_eq!(found(https, &both), Ok(Some("s:1".into())));
        assert_eq!(found(http, &both), Ok(Some("p:2".into())));
        assert_eq!(found(http, &both[2..]), Ok(Some("a:3".into())));
        assert_eq!(found(https, &[("HTTPS_PROXY", " ")]), Ok(None));
        assert_eq!(found(https, &[("HTTP_PROXY", "http://p:2")]), Ok(None));
        for error in [
            found(https, &[("HTTPS_PROXY", "socks5://user:secret@s")]).unwrap_err(),
            found(https, &[("https_proxy", "ftp://user:secret@s")]).unwrap_err(),
        ] {
            assert!(error.to_uppercase().contains("HTTPS_PROXY") && !error.contains("secret"), "{error}");
        }
        for (url, list, direct) in [
            (https, "*", true),
            (https, "a.org, VCD.example.com", true),
            (https, "example.com", true),
            (https, ".example.com", true),
            (https, "*.example.com", true),
            (https, "vcd.example.com:443", true),
            (https, "vcd.example.com:8443", false),
            (https, "ample.com", false),
            (https, "example.com.org", false),
            (https, ",", false),
            (http, "10.1.2.3", true),
            (http, "10.0.0.0/8", true),
            (http, "10.1.2.4/31", false),
            (http, "10.1.2.2/31", true),
            (http, "0.0.0.0/0", true),
            (http, "::/0", false),
            (http, "10.0.0.0/99", false),
            ("http://[fd00::1]/api", "fd00::/8", true),
            ("http://[fd00::1]/api", "[fd00::1]:80", true),
        ] {
            let env = [("ALL_PROXY", "http://a:3"), ("no_proxy", list)];
            assert_eq!(found(url, &env).unwrap().is_none(), direct, "{url} {list}");
        }
    }

    #[test]
    fn retry_after_is_read_and_cut() {
        let now = httpdate::parse_http_date("Thu, 01 Jan 2026 10:00:00 GMT").ok();
        assert_eq!(retry_after("7", None), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("99999999", None), Some(MAX_RETRY_AFTER));
        assert_eq!(retry_after("Thu, 01 Jan 2026 10:00:30 GMT", now), Some(Duration::from_secs(30)));
        assert_eq!(retry_after("soon", now), None);
    }

    /// One request for `url`.
    fn ask(http: &Http, url: &str, timeout: Option<Duration>) -> Result<Received, Lost> {
        let (operation, method, accept) = ("versions", Method::GET, "*/*");
        http.exchange(&Ask { operation, method, url, accept, bearer: None, content: None, timeout, known: None })
    }

    const POLLS: Duration = Duration::from_secs(10);

    /// With a port that accepts connections and leaves them to `answer`.
    fn served(answer: impl FnOnce(std::net::TcpStream) + Send + 'static) -> (Http, String) {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/api/versions", port.local_addr().unwrap());
        std::thread::spawn(move || answer(port.accept().unwrap().0));
        (Http::new(super::super::tls::config(None, false).unwrap(), None, POLLS), url)
    }

    #[test]
    fn a_request_has_its_time_and_a_connection_too() {
        use std::io::Read as _;
        let silent = |mut stream: std::net::TcpStream| drop(stream.read_to_end(&mut Vec::new()));
        let (http, url) = served(silent);
        let lost = ask(&http, &url, Some(Duration::from_secs(2))).unwrap_err();
        assert!(lost.sent && lost.text.contains("timeout"), "{lost:?}");
        let times = http.agent.config().timeouts();
        assert_eq!(
            [times.resolve, times.connect, times.global],
            [CONNECT_TIMEOUT, CONNECT_TIMEOUT, FIRST_TIMEOUT].map(Some)
        );
    }

    #[test]
    fn a_connection_outlives_the_pause_between_polls() {
        for (pause, age) in [(1, MAX_IDLE_AGE), (10, Duration::from_secs(15)), (3600, MAX_IDLE_AGE_READ)] {
            assert_eq!(idle_age(Duration::from_secs(pause)), age, "{pause}");
        }
        assert_eq!(idle_age(Duration::MAX), MAX_IDLE_AGE_READ);
    }

    #[test]
    fn only_reads_use_a_connection_that_has_idled_for_long() {
        use std::io::{Read as _, Write as _};
        // Each connection answers what it is asked by its number.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/api/versions", port.local_addr().unwrap());
        std::thread::spawn(move || {
            for (number, mut stream) in port.incoming().flatten().enumerate() {
                std::thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while stream.read(&mut buffer).is_ok_and(|n| n > 0) {
                        _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{number}");
                    }
                });
            }
        });
        let young = Http::new(super::super::tls::config(None, false).unwrap(), None, POLLS);
        let mut old = Http::new(super::super::tls::config(None, false).unwrap(), None, POLLS);
        old.most_idle = Duration::ZERO;
        let said = |http: &Http, method: Method| {
            let (operation, accept, timeout) = ("versions", "*/*", Some(Duration::from_secs(30)));
            let ask = Ask { operation, method, url: &url, accept, bearer: None, content: None, timeout, known: None };
            http.exchange(&ask).unwrap().body
        };
        for (http, methods, numbers) in [
            (&young, [Method::GET, Method::GET, Method::DELETE, Method::GET], ["0", "0", "0", "0"]),
            (&old, [Method::GET, Method::GET, Method::DELETE, Method::GET], ["1", "1", "2", "2"]),
        ] {
            assert_eq!(methods.map(|method| said(http, method)), numbers);
        }
    }

    #[test]
    fn an_answers_headers_fit_into_the_buffer() {
        use std::io::{Read as _, Write as _};
        for (length, fits) in [(BUFFER / 2, true), (BUFFER, false)] {
            let (http, url) = served(move |mut stream| {
                let head = format!("HTTP/1.1 200 OK\r\nX-Long: {}\r\n", "x".repeat(length));
                // The client may see enough before all is written.
                _ = stream.write_all((head + "Content-Length: 2\r\n\r\nok").as_bytes());
                _ = stream.read_to_end(&mut Vec::new());
            });
            let got = ask(&http, &url, Some(Duration::from_secs(30)));
            assert_eq!(got.as_ref().is_ok_and(|got| got.body == "ok"), fits, "{got:?}");
            drop(http);
        }
    }
}
