//! Owns the group; runs its commands and feeds it the results. What the gRPC services call.
//!
//! All of it runs on the one executor; only the requests to VCD run on the pool's threads.

use crate::access::{self, Login};
use crate::cloud::{Answer, ErrorKind, Reply, Request, VcdError};
use crate::config::{Config, Connector};
use crate::group::{Command, Event, Group, Name, Outcome, State, Ticket, Time, View};
use crate::pool::{Pool, THREADS};
use crate::vcd::Client;
use crate::version;
use smol::LocalExecutor;
use smol::channel::{Receiver, Sender, bounded};
use smol::future::FutureExt;
use smol::lock::Semaphore;
use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// At most so many changing requests on the wire, so that a read always finds a thread.
const MAX_CHANGES_ON_WIRE: usize = THREADS - 1;
/// Init waits so long for looks at vApps that may be ours; the host gives Init a minute.
const ADOPTION_TIMEOUT: Duration = Duration::from_secs(20);
/// A guest has so long to answer a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Shutdown's time if the host gives none.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);
/// fleeting's capability of suspending and resuming instances.
const SUSPEND_RESUME: &str = "suspend_resume";
/// Shutdown answers so long before the host's deadline.
const SHUTDOWN_MARGIN: Duration = Duration::from_millis(500);

/// The plugin as the gRPC services see it: one method for each rpc of `proto.InstanceGroup`.
pub struct Plugin {
    executor: Rc<LocalExecutor<'static>>,
    serve_debug: ServeDebug,
    state: RefCell<Stage>,
}

/// Starts the debug server at the configured address; called once, when Init has succeeded.
pub type ServeDebug = fn(&Rc<LocalExecutor<'static>>, Rc<Driver>, String);

enum Stage {
    /// Init has not been called, or failed.
    Idle,
    /// Init is under way.
    Starting,
    Running(Rc<Driver>),
}

/// A call that could not be answered. Becomes a gRPC status.
#[derive(Clone, Debug)]
pub enum CallError {
    /// Init has not been called, or failed. FAILED_PRECONDITION.
    NotReady(String),
    /// The configuration is wrong. INVALID_ARGUMENT.
    Invalid(String),
    /// No such instance. NOT_FOUND.
    NotFound(String),
    /// Not now. UNAVAILABLE.
    Unavailable(String),
    /// Not with this configuration. UNIMPLEMENTED.
    Unsupported(String),
}

/// The answer to Init.
#[derive(Clone, Debug)]
pub struct Provider {
    /// Path join of vcd, org, VDC, network, prefix and group.
    pub id: String,
    /// At most so many instances.
    pub max_size: u32,
    /// This program's version.
    pub version: String,
    /// How it was built.
    pub build_info: String,
    /// fleeting's capabilities, such as `suspend_resume`.
    pub capabilities: Vec<String>,
}

/// The answer to ConnectInfo.
#[derive(Clone, Debug)]
pub struct ConnectInfo {
    /// How to log in.
    pub login: Login,
    /// Where, within VCD's network.
    pub internal: IpAddr,
    /// Where, from outside: the same, as the vApps that are made here are bridged to the organization's network; another for
    /// one that was adopted and has NAT.
    pub external: IpAddr,
}

impl Plugin {
    /// A plugin that waits for Init. Its tasks run on `executor`.
    pub fn new(executor: Rc<LocalExecutor<'static>>, serve_debug: ServeDebug) -> Rc<Plugin> {
        Rc::new(Plugin { executor, serve_debug, state: RefCell::new(Stage::Idle) })
    }

    /// Init: reads the configuration, logs in to VCD, adopts what is there. A second Init is an error.
    pub async fn init(self: &Rc<Self>, config: &[u8], connector: Connector) -> Result<Provider, CallError> {
        let before = std::mem::replace(&mut *self.state.borrow_mut(), Stage::Starting);
        if !matches!(before, Stage::Idle) {
            *self.state.borrow_mut() = before;
            return Err(CallError::NotReady("Init was called before".into()));
        }
        // A call that the host gives up leaves the plugin as if it had not come.
        let mut reset = ResetUnlessRunning { plugin: self, done: false };
        let config = Config::parse(config, &connector).map_err(CallError::Invalid)?;
        for warning in &config.warnings {
            log::warn!("{warning}");
        }
        let vcd = &config.vcd;
        let id = ["vcd", &vcd.org, &vcd.vdc, &vcd.network, &vcd.vapp_prefix, &config.policy.group].join("/");
        let provider = Provider {
            id,
            max_size: config.policy.max_size,
            version: version::VERSION.into(),
            build_info: version::build_info(),
            capabilities: config.suspend_resume.then(|| SUSPEND_RESUME.into()).into_iter().collect(),
        };
        let debug_server_addr = config.debug_server_addr.clone();
        let driver = Driver::start(self.executor.clone(), config).await?;
        if let Some(address) = debug_server_addr {
            (self.serve_debug)(&self.executor, driver.clone(), address);
        }
        *self.state.borrow_mut() = Stage::Running(driver);
        reset.done = true;
        Ok(provider)
    }

    fn driver(&self) -> Result<Rc<Driver>, CallError> {
        match &*self.state.borrow() {
            Stage::Running(driver) => Ok(driver.clone()),
            Stage::Idle | Stage::Starting => Err(CallError::NotReady("Init has not succeeded yet".into())),
        }
    }

    /// Update, from memory.
    pub fn update(&self) -> Result<Vec<(Name, State)>, CallError> {
        let driver = self.driver()?;
        let group = driver.group.borrow();
        Ok(group.update().map(|(name, state)| (name.clone(), state)).collect())
    }

    /// Increase: how many were accepted.
    pub fn increase(&self, n: u32) -> Result<u32, CallError> {
        Ok(self.driver()?.with(|group, now| group.increase(now, n)))
    }

    /// Decrease: those of `names` that are or will be deleted.
    pub fn decrease(&self, names: Vec<String>) -> Result<Vec<String>, CallError> {
        let names: Vec<Name> = names.into_iter().map(Name::from).collect();
        let succeeded = self.driver()?.with(|group, now| group.decrease(now, &names));
        Ok(succeeded.iter().map(|name| name.to_string()).collect())
    }

    /// Suspend: begins it, and does not wait for its end.
    pub fn suspend(&self, names: Vec<String>) -> Result<Outcome, CallError> {
        self.nap(names, Group::suspend)
    }

    /// Resume: begins it, and does not wait for its end.
    pub fn resume(&self, names: Vec<String>) -> Result<Outcome, CallError> {
        self.nap(names, Group::resume)
    }

    fn nap(&self, names: Vec<String>, change: fn(&mut Group, Time, &[Name]) -> Outcome) -> Result<Outcome, CallError> {
        let driver = self.driver()?;
        if !driver.suspend_resume {
            return Err(CallError::Unsupported("suspend_resume is false in plugin_config".into()));
        }
        let names: Vec<Name> = names.into_iter().map(Name::from).collect();
        Ok(driver.with(|group, now| change(group, now, &names)))
    }

    /// ConnectInfo, from memory.
    pub fn connect_info(&self, name: &str) -> Result<ConnectInfo, CallError> {
        let driver = self.driver()?;
        let reach = driver.group.borrow().reach(name).map_err(CallError::NotFound)?;
        let login = access::login(&driver.access, &reach.guest_os, name);
        Ok(ConnectInfo { login, internal: reach.address, external: reach.external })
    }

    /// Heartbeat: an error is "unhealthy".
    pub fn heartbeat(&self, name: &str) -> Result<(), CallError> {
        self.driver()?.with(|group, now| group.heartbeat(now, name)).map_err(CallError::Unavailable)
    }

    /// InstanceGroup/Shutdown: stops creating, deletes the group's instances (or keeps them, by policy) within `deadline`.
    pub async fn shutdown(&self, deadline: Option<Duration>) -> Result<(), CallError> {
        let Ok(driver) = self.driver() else { return Ok(()) };
        driver.with(|group, now| group.shutdown(now));
        let timeout = deadline.unwrap_or(SHUTDOWN_TIMEOUT).saturating_sub(SHUTDOWN_MARGIN);
        let stopped = driver.wait(timeout, Group::stopped).await;
        if !stopped {
            let left = driver.group.borrow().left();
            log::error!("shutdown: not yet gone from VCD when the host's time was up: {}", left.join(", "));
        }
        Ok(())
    }

    /// The end of the process: starts nothing new, and waits until requests that are on the wire have been answered or
    /// have timed out. The caller bounds the wait.
    pub async fn drain(&self) {
        if let Ok(driver) = self.driver() {
            driver.closing.set(true);
            driver.wait(Duration::MAX, |_| driver.on_wire.get() == 0).await;
        }
    }

    /// After [`Plugin::drain`]: ends the session with VCD. The caller bounds the wait.
    pub async fn log_out(&self) {
        if let Ok(driver) = self.driver() {
            let client = driver.client.clone();
            driver.pool.run(move || client.close()).await;
        }
    }
}

/// Puts the plugin back to idle if Init fails or is dropped half-way.
struct ResetUnlessRunning<'a> {
    plugin: &'a Plugin,
    done: bool,
}

impl Drop for ResetUnlessRunning<'_> {
    fn drop(&mut self) {
        if !self.done {
            *self.plugin.state.borrow_mut() = Stage::Idle;
        }
    }
}

/// The group and what runs its commands.
pub struct Driver {
    executor: Rc<LocalExecutor<'static>>,
    group: RefCell<Group>,
    client: Arc<Client>,
    pool: Rc<Pool>,
    changes: Semaphore,
    access: access::Settings,
    suspend_resume: bool,
    /// The template's guest OS: what a new instance will run.
    guest_os: String,
    started: Instant,
    /// Changing requests on the wire.
    on_wire: Cell<usize>,
    /// The process ends: no new requests.
    closing: Cell<bool>,
    /// Wakes the clock when the group's next wake-up may have changed.
    nudge: Sender<()>,
    /// Wakes those who wait for a condition.
    waiting: RefCell<Vec<Sender<()>>>,
}

impl Driver {
    /// Logs in, polls once, and begins. Failures name everything that is wrong, one line.
    async fn start(executor: Rc<LocalExecutor<'static>>, config: Config) -> Result<Rc<Driver>, CallError> {
        let busy = || CallError::Unavailable("no thread for requests to VCD could be started".into());
        let pool = Rc::new(Pool::default());
        let settings = config.vcd;
        let opened = pool.run(move || Client::open(settings)).await.ok_or_else(busy)?;
        let (client, environment) = opened.map_err(|errors| {
            let lines: Vec<String> = errors.iter().map(VcdError::to_string).collect();
            let text = format!("{}; no instance was made", lines.join("; "));
            match errors.iter().any(|e| matches!(e.kind, ErrorKind::Unavailable | ErrorKind::Protocol)) {
                true => CallError::Unavailable(text),
                false => CallError::Invalid(text),
            }
        })?;
        log::info!(api_version = environment.api_version, guest_os = environment.guest_os; "logged in to VCD");
        access::check(&config.access, Some(&environment.guest_os)).map_err(CallError::Invalid)?;
        if let Some(warning) = access::warning(&config.access, &environment.guest_os) {
            log::warn!("{warning}");
        }
        let client = Arc::new(client);
        let first = {
            let client = client.clone();
            pool.run(move || client.call(&Request::Poll { vapps: true }, None)).await.ok_or_else(busy)?
        };
        let first = match first {
            Ok(Reply::Poll(poll)) => poll,
            other => {
                pool.run(move || client.close()).await;
                let why = other.err().map_or("first poll: an answer of another kind".into(), |error| error.to_string());
                return Err(CallError::Unavailable(format!("{why}; no instance was made")));
            }
        };
        let seed = getrandom::u64().map_err(|error| CallError::Unavailable(format!("random seed: {error}")))?;
        let (nudge, nudged) = bounded(1);
        let started = Instant::now();
        let driver = Rc::new(Driver {
            executor: executor.clone(),
            group: RefCell::new(Group::new(config.policy, seed, Time::default(), &first)),
            client,
            pool,
            changes: Semaphore::new(MAX_CHANGES_ON_WIRE),
            access: config.access,
            suspend_resume: config.suspend_resume,
            guest_os: environment.guest_os,
            started,
            on_wire: Cell::new(0),
            closing: Cell::new(false),
            nudge,
            waiting: RefCell::new(Vec::new()),
        });
        driver.run_commands();
        executor.spawn(driver.clone().run_clock(nudged)).detach();
        if !driver.wait(ADOPTION_TIMEOUT, Group::knows_its_own).await {
            log::warn!("some vApps that may be ours could not be looked at yet: they follow when VCD answers");
        }
        Ok(driver)
    }

    fn now(&self) -> Time {
        Time(self.started.elapsed().as_millis() as u64)
    }

    /// What the debug pages show.
    pub fn views(&self) -> Vec<View> {
        self.group.borrow().views(self.now())
    }

    /// Time since Init.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Feeds the group, and runs what it commands.
    fn with<T>(self: &Rc<Self>, feed: impl FnOnce(&mut Group, Time) -> T) -> T {
        let result = feed(&mut self.group.borrow_mut(), self.now());
        self.run_commands();
        result
    }

    fn run_commands(self: &Rc<Self>) {
        loop {
            let command = self.group.borrow_mut().next_command();
            match command {
                Some(Command::Say(event)) => say(&event),
                Some(Command::Ask { ticket, request }) => {
                    self.executor.spawn(self.clone().ask(ticket, request)).detach()
                }
                Some(Command::Probe { ticket, address }) => {
                    self.executor.spawn(self.clone().probe(ticket, address)).detach()
                }
                None => break,
            }
        }
        // Full means that a nudge is on its way already.
        let _ = self.nudge.try_send(());
        for waiter in self.waiting.borrow_mut().drain(..) {
            let _ = waiter.try_send(());
        }
    }

    async fn ask(self: Rc<Self>, ticket: Ticket, request: Request) {
        let changes = request.changes();
        let permit = if changes { Some(self.changes.acquire().await) } else { None };
        if self.closing.get() {
            return;
        }
        self.on_wire.set(self.on_wire.get() + usize::from(changes));
        let operation = request.operation();
        let guest = match &request {
            Request::Create { name, .. } => Some(access::guest(&self.access, &self.guest_os, name)),
            _ => None,
        };
        let client = self.client.clone();
        let answer = self.pool.run(move || client.call(&request, guest.as_ref())).await;
        drop(permit);
        self.on_wire.set(self.on_wire.get() - usize::from(changes));
        let answer = answer.unwrap_or_else(|| no_thread(operation));
        self.with(|group, now| group.answer(now, ticket, answer));
    }

    async fn probe(self: Rc<Self>, ticket: Ticket, address: IpAddr) {
        let address = SocketAddr::new(address, self.access.port);
        let result = access::probe(address, self.access.protocol, PROBE_TIMEOUT).await;
        self.with(|group, now| group.probed(now, ticket, result));
    }

    /// Calls the group when it wants to be called.
    async fn run_clock(self: Rc<Self>, nudged: Receiver<()>) {
        while !self.closing.get() {
            let wake = self.group.borrow().wake_at();
            let due = async {
                match wake.and_then(|wake| self.started.checked_add(Duration::from_millis(wake.0))) {
                    Some(at) => smol::Timer::at(at).await,
                    None => std::future::pending().await,
                };
                true
            };
            let nudge = async { nudged.recv().await.is_err() };
            if due.or(nudge).await {
                self.with(|group, now| group.tick(now));
            }
        }
    }

    /// Waits until `met` holds, at most for `timeout`. Returns whether it holds.
    async fn wait(&self, timeout: Duration, met: impl Fn(&Group) -> bool) -> bool {
        let met = || met(&self.group.borrow());
        let holds = async {
            while !met() {
                let (wake, woken) = bounded(1);
                self.waiting.borrow_mut().push(wake);
                let _ = woken.recv().await;
            }
        };
        let late = async {
            match Instant::now().checked_add(timeout) {
                Some(at) => smol::Timer::at(at).await,
                None => std::future::pending().await,
            };
        };
        holds.or(late).await;
        met()
    }
}

fn say(event: &Event) {
    match (&event.name, event.phase) {
        (Some(name), Some(phase)) => log::log!(event.level, instance = **name, phase = phase.name(); "{}", event.text),
        _ => log::log!(event.level, "{}", event.text),
    }
}

fn no_thread(operation: &str) -> Answer {
    Err(VcdError {
        kind: ErrorKind::Unavailable,
        what: operation.into(),
        status: 0,
        code: String::new(),
        text: "no thread was free for the request".into(),
        retry_after: None,
    })
}
