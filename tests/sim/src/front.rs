//! The front: listeners, connections, the clock that drives the model, faults, and the guests' addresses.

use crate::control;
use crate::faults::{Answer, Effect, Faults};
use crate::guests::Guests;
use crate::io::{Out, SmolTimer, Stream, read};
use crate::model::Model;
use crate::routes::{self, Api, Reply, Request};
use crate::tls::Acceptor;
use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use smol::future::FutureExt as _;
use smol::io::{AsyncRead, AsyncWrite};
use smol::net::{TcpListener, TcpStream};
use smol::{LocalExecutor, Timer, channel};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::rc::{Rc, Weak};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// Maximum number of connections, over all ports of the front.
const MAX_CONNECTIONS: usize = 1024;
/// A connection that sends no request for this long is closed.
const IDLE: Duration = Duration::from_secs(60);
/// Maximum duration of a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Duration of any request at VCD, in milliseconds of VCD time.
pub const REQUEST_MS: f64 = 100.0;
/// Shorter bodies are not compressed.
const MIN_PACKED: usize = 256;
/// The clock advances the model at least this often.
const MAX_TICK: Duration = Duration::from_secs(1);

/// Converts real time to logical time.
#[derive(Clone, Debug)]
pub struct Clock {
    since: Instant,
    base_ms: f64,
    /// Logical milliseconds per real millisecond.
    pub scale: f64,
}

impl Clock {
    /// A clock at 0.
    pub fn new(scale: f64) -> Self {
        Self { since: Instant::now(), base_ms: 0.0, scale }
    }

    fn exact(&self) -> f64 {
        self.base_ms + self.since.elapsed().as_secs_f64() * 1000.0 * self.scale
    }

    /// Logical milliseconds.
    pub fn now(&self) -> u64 {
        self.exact() as u64
    }

    /// Continues from now at another speed.
    pub fn set_scale(&mut self, scale: f64) {
        self.base_ms = self.exact();
        self.since = Instant::now();
        self.scale = scale;
    }

    fn real(&self, logical_ms: f64) -> Duration {
        Duration::from_secs_f64((logical_ms / self.scale / 1000.0).clamp(0.0, 86_400.0))
    }
}

/// Counts of requests and answers, by operation.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// All requests.
    pub requests: BTreeMap<String, u64>,
    /// Requests that change something.
    pub changing: u64,
    /// Requests that change something and were accepted.
    pub accepted: BTreeMap<String, u64>,
    /// Answers with an error status.
    pub refusals: BTreeMap<String, u64>,
    /// Connections.
    pub connections: u64,
    /// Bytes of the answers' bodies, as sent.
    pub sent: u64,
}

/// All that the front's tasks share.
pub struct World {
    /// VCD itself.
    pub model: Model,
    /// The rules for faults.
    pub faults: Faults,
    /// Counts of requests and answers.
    pub counts: Counts,
    /// The clock.
    pub clock: Clock,
    /// Settings of the API.
    pub api: Api,
    requests: u64,
}

impl World {
    /// A world whose clock starts now.
    pub fn new(mut model: Model, faults: Faults, api: Api, scale: f64) -> Self {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        model.epoch = u64::try_from(unix.as_millis()).unwrap_or(0);
        Self { model, faults, counts: Counts::default(), clock: Clock::new(scale), api, requests: 0 }
    }

    /// Advances the model to the clock's time.
    pub fn catch_up(&mut self) {
        let now = self.clock.now();
        self.model.advance(now);
    }
}

/// The world, and a channel that wakes the clock.
pub struct Shared {
    world: Mutex<World>,
    bell: channel::Sender<()>,
}

impl Shared {
    /// Shares a world. The receiver gets a message for each change.
    pub fn new(world: World) -> (Arc<Self>, channel::Receiver<()>) {
        let (bell, heard) = channel::bounded(1);
        (Arc::new(Self { world: Mutex::new(world), bell }), heard)
    }

    /// The world. A panic in a test's closure does not end the server: a poisoned lock is used.
    pub fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something changed: the clock computes its next event again.
    pub fn ring(&self) {
        let _ = self.bell.try_send(());
    }
}

/// What the server's thread serves.
pub struct Listeners {
    /// Plain HTTP.
    pub http: std::net::TcpListener,
    /// HTTPS.
    pub https: Option<(std::net::TcpListener, Acceptor)>,
    /// The control port.
    pub control: std::net::TcpListener,
}

/// Serves until `stop` gets a message.
pub fn run(
    shared: &Arc<Shared>,
    heard: &channel::Receiver<()>,
    listeners: Listeners,
    guests: Guests,
    stop: &channel::Receiver<()>,
) -> io::Result<()> {
    let executor = Rc::new(LocalExecutor::new());
    let open = Rc::new(Cell::new(0usize));
    let http = TcpListener::try_from(listeners.http)?;
    let control = TcpListener::try_from(listeners.control)?;
    // A task that owned its executor would never be dropped, nor would its sockets.
    let weak = Rc::downgrade(&executor);
    executor.spawn(accept(weak.clone(), open.clone(), http, None, shared.clone(), false)).detach();
    executor.spawn(accept(weak.clone(), open.clone(), control, None, shared.clone(), true)).detach();
    if let Some((listener, tls)) = listeners.https {
        let listener = TcpListener::try_from(listener)?;
        executor.spawn(accept(weak.clone(), open, listener, Some(tls), shared.clone(), false)).detach();
    }
    executor.spawn(tick(weak, shared.clone(), heard.clone(), guests)).detach();
    smol::block_on(executor.run(async {
        let _ = stop.recv().await;
    }));
    Ok(())
}

/// Advances the model and opens and closes the guests' ports.
async fn tick(
    executor: Weak<LocalExecutor<'static>>,
    shared: Arc<Shared>,
    heard: channel::Receiver<()>,
    mut guests: Guests,
) {
    loop {
        let (wait, up) = {
            let mut world = shared.lock();
            world.catch_up();
            let model = &world.model;
            let script = |vm| model.vms.get(&vm)?.applied.as_ref()?.script.clone();
            let up =
                guests.is_outdated(model).then(|| model.guests().map(|(a, vm)| (a, script(vm))).collect::<Vec<_>>());
            let due = world.model.next_due().map(|due| due as f64 + 1.0 - world.clock.exact());
            (due.map_or(MAX_TICK, |ms| world.clock.real(ms)).min(MAX_TICK), up)
        };
        let all_open = match up {
            Some(up) => guests.open_only(&executor, &up),
            None => true,
        };
        let wait = if all_open { wait } else { wait.min(Duration::from_millis(50)) };
        let bell = async {
            let _ = heard.recv().await;
        };
        let alarm = async {
            Timer::after(wait).await;
        };
        bell.or(alarm).await;
    }
}

async fn accept(
    executor: Weak<LocalExecutor<'static>>,
    open: Rc<Cell<usize>>,
    listener: TcpListener,
    tls: Option<Acceptor>,
    shared: Arc<Shared>,
    is_control: bool,
) {
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            // Usually no file descriptor is left. Other connections will be closed.
            Timer::after(Duration::from_millis(50)).await;
            continue;
        };
        if open.get() >= MAX_CONNECTIONS {
            continue;
        }
        let _ = socket.set_nodelay(true);
        open.set(open.get() + 1);
        let (shared, tls, open) = (shared.clone(), tls.as_ref().map(Acceptor::get), open.clone());
        shared.lock().counts.connections += u64::from(!is_control);
        let serve = async move {
            match tls {
                None if is_control => serve(socket.clone(), socket, shared, "http", true).await,
                None => serve(socket.clone(), socket, shared, "http", false).await,
                Some(tls) => {
                    let handshake = async { tls.accept(socket.clone()).await.ok() };
                    let late = async {
                        Timer::after(HANDSHAKE).await;
                        None
                    };
                    if let Some(stream) = handshake.or(late).await {
                        serve(stream, socket, shared, "https", false).await;
                    }
                }
            }
            open.set(open.get().saturating_sub(1));
        };
        match executor.upgrade() {
            Some(executor) => executor.spawn(serve).detach(),
            None => return,
        }
    }
}

async fn serve<T>(stream: T, socket: TcpStream, shared: Arc<Shared>, scheme: &'static str, is_control: bool)
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let service = service_fn(move |request| {
        let (shared, socket) = (shared.clone(), socket.clone());
        async move {
            if is_control {
                return control_request(&shared, request).await;
            }
            vcd_request(&shared, &socket, request, scheme).await
        }
    });
    let mut builder = http1::Builder::new();
    // A request that has arrived completely is carried out, even if its client has disconnected.
    builder.timer(SmolTimer).header_read_timeout(IDLE).auto_date_header(false).half_close(true);
    // An error means that the client disconnected, or that a fault closed the connection.
    let _ = builder.serve_connection(Stream(stream), service).await;
}

async fn control_request(shared: &Shared, request: hyper::Request<Incoming>) -> io::Result<Response<Out>> {
    let Some(request) = read(request, "http").await? else { return too_large() };
    let reply = {
        let mut world = shared.lock();
        world.catch_up();
        control::answer(&mut world, &request)
    };
    shared.ring();
    respond(reply)
}

fn too_large() -> io::Result<Response<Out>> {
    let reply = Reply { status: 413, content_type: "text/plain".into(), body: "too large".into(), headers: Vec::new() };
    respond(reply)
}

/// The page of a proxy in front of VCD.
const HTML: &str =
    "<html><head><title>Bad Gateway</title></head><body><h1>The page cannot be displayed</h1></body></html>";

async fn vcd_request(
    shared: &Shared,
    socket: &TcpStream,
    request: hyper::Request<Incoming>,
    scheme: &str,
) -> io::Result<Response<Out>> {
    let redirect = (scheme == "http").then(|| shared.lock().api.redirect.clone()).flatten();
    if let Some(origin) = redirect {
        let place = request.uri().path_and_query().map_or("/", |place| place.as_str());
        let headers = vec![("location", format!("{origin}{place}"))];
        return respond(Reply { status: 302, headers, ..Reply::default() });
    }
    let Some(mut request) = read(request, scheme).await? else { return too_large() };
    let packs = request.packs;
    let (operation, changes) = routes::operation(&request);
    let (effect, request_id, latency) = {
        let mut world = shared.lock();
        if let Some(public) = &world.api.public_address {
            request.base.clone_from(public);
        }
        world.requests += 1;
        *world.counts.requests.entry(operation.to_string()).or_default() += 1;
        world.counts.changing += u64::from(changes);
        let path = request_line(&request);
        let effect = world.faults.decide(&operation, &request.method, &path, changes).unwrap_or_default();
        (
            effect,
            format!("{:08x}-0000-4000-9000-{:012x}", world.model.seed() as u32, world.requests),
            world.clock.real(REQUEST_MS),
        )
    };
    Timer::after(latency + Duration::from_millis(effect.delay_before_ms)).await;
    if effect.reset_before {
        return reset(socket);
    }
    if let Some(answer) = &effect.answer_before {
        count(shared, &operation, changes, answer.status);
        return respond_as(made_up(answer), None, packs, shared);
    }
    let (mut reply, date) = {
        let mut world = shared.lock();
        world.catch_up();
        let world = &mut *world;
        world.model.inject = effect.inject.clone();
        let reply = routes::answer(&mut world.model, &world.api, &request, &request_id, effect.query);
        world.model.inject = Default::default();
        let unix = world.model.unix(world.model.now());
        (reply, httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_millis(unix)))
    };
    shared.ring();
    count(shared, &operation, changes, reply.status);
    Timer::after(Duration::from_millis(effect.delay_after_ms)).await;
    if effect.reset_after {
        return reset(socket);
    }
    if let Some(answer) = &effect.answer_after {
        return respond_as(made_up(answer), None, packs, shared);
    }
    reply.headers.push(("x-vmware-vcloud-request-id", request_id));
    reply.headers.push(("date", date));
    respond_as(after_effect(reply, &effect), effect.truncate, packs, shared)
}

fn request_line(request: &Request) -> String {
    let mut line = request.path.clone();
    for (i, (name, value)) in request.query.iter().enumerate() {
        line.push(if i == 0 { '?' } else { '&' });
        line.push_str(name);
        line.push('=');
        line.push_str(value);
    }
    line
}

fn after_effect(mut reply: Reply, effect: &Effect) -> Reply {
    if effect.html {
        reply.body = HTML.into();
        reply.content_type = "text/html".into();
    }
    reply
}

fn count(shared: &Shared, operation: &str, changes: bool, status: u16) {
    let mut world = shared.lock();
    if status >= 400 {
        *world.counts.refusals.entry(operation.into()).or_default() += 1;
    } else if changes {
        *world.counts.accepted.entry(operation.into()).or_default() += 1;
    }
}

/// Ends the connection with a TCP reset.
fn reset(socket: &TcpStream) -> io::Result<Response<Out>> {
    socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO))?;
    Err(io::ErrorKind::ConnectionReset.into())
}

fn made_up(answer: &Answer) -> Reply {
    let mut reply = Reply {
        status: answer.status,
        content_type: answer.content_type.clone(),
        body: answer.body.clone(),
        headers: Vec::new(),
    };
    if let Some(seconds) = answer.retry_after {
        reply.headers.push(("retry-after", seconds.to_string()));
    }
    if let Some(place) = &answer.location {
        reply.headers.push(("location", place.clone()));
    }
    reply
}

/// The answer, compressed if the client accepts that and the body is large enough, and cut after `truncate` bytes.
fn respond_as(reply: Reply, truncate: Option<usize>, packs: bool, shared: &Shared) -> io::Result<Response<Out>> {
    let mut response = head(&reply);
    let mut bytes = reply.body.into_bytes();
    if packs && bytes.len() >= MIN_PACKED {
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(&bytes)?;
        bytes = packed.finish()?;
        response = response.header("content-encoding", "gzip");
    }
    shared.lock().counts.sent += bytes.len() as u64;
    let body = match truncate.filter(|n| *n < bytes.len()) {
        Some(at) => {
            response = response.header("content-length", bytes.len());
            bytes.truncate(at);
            Out::cut(bytes)
        }
        None => Out::whole(bytes),
    };
    response.body(body).map_err(io::Error::other)
}

fn respond(reply: Reply) -> io::Result<Response<Out>> {
    head(&reply).body(Out::whole(reply.body)).map_err(io::Error::other)
}

fn head(reply: &Reply) -> hyper::http::response::Builder {
    let mut response = Response::builder().status(reply.status);
    if !reply.content_type.is_empty() && !reply.body.is_empty() {
        response = response.header("content-type", &reply.content_type);
    }
    for (name, value) in &reply.headers {
        response = response.header(*name, value);
    }
    response
}
