//! Owns the group, executes its commands and passes the results to it. The gRPC services call it.
//!
//! All of it runs on one executor. Only the requests to VCD run on the threads of the pool.

use crate::access::{self, Login};
use crate::cloud::{Answer, ErrorKind, Guest, Reply, Request, TaskState, VcdError};
use crate::config::{Config, Connector, SEED_CHANGES};
use crate::group::{ADOPTION_TIMEOUT, Command, Group, Name, Outcome, Phase, State, Ticket, Time, View};
use crate::journal::{Entry, Journal, Note, Shown};
use crate::pool::{Pool, THREADS};
use crate::presence::Presence;
use crate::status::{About, Polls, Process, Status, Wire};
use crate::vcd::{Client, Environment, TokenKind};
use crate::version;
use smol::LocalExecutor;
use smol::channel::{Receiver, Sender, bounded};
use smol::future::FutureExt;
use smol::lock::Semaphore;
use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Maximum number of changing requests in progress, so that there is always a thread for a read.
const MAX_CHANGES_ON_WIRE: usize = THREADS - 1;
/// The group itself ends adoption. Init waits this much longer for that.
const ADOPTION_MARGIN: Duration = Duration::from_secs(6);
/// Maximum time for a probe of a guest.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for Shutdown if the host sets none.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);
/// fleeting's capability to suspend and resume instances.
const SUSPEND_RESUME: &str = "suspend_resume";
/// Shutdown answers this long before the host's deadline.
const SHUTDOWN_MARGIN: Duration = Duration::from_millis(500);

/// The plugin as the gRPC services see it: one method per rpc of `proto.InstanceGroup`.
pub struct Plugin {
    executor: Rc<LocalExecutor<'static>>,
    serve_debug: ServeDebug,
    state: RefCell<Stage>,
}

/// Starts the debug server at the configured address. Called once, after a successful Init.
pub type ServeDebug = fn(&Rc<LocalExecutor<'static>>, Rc<Driver>, String);

enum Stage {
    /// Init has not been called, or failed.
    Idle,
    /// Init is in progress.
    Starting,
    Running(Rc<Driver>),
}

/// The error of a call. It becomes a gRPC status.
#[derive(Clone, Debug)]
pub enum CallError {
    /// Init has not been called, or failed. FAILED_PRECONDITION.
    NotReady(String),
    /// The configuration is wrong. INVALID_ARGUMENT.
    Invalid(String),
    /// There is no such instance. NOT_FOUND.
    NotFound(String),
    /// Not possible now. UNAVAILABLE.
    Unavailable(String),
    /// Not possible with this configuration. UNIMPLEMENTED.
    Unsupported(String),
}

/// The answer to Init.
#[derive(Clone, Debug)]
pub struct Provider {
    /// VCD, org, VDC, network, prefix and group, joined as a path.
    pub id: String,
    /// Maximum number of instances.
    pub max_size: u32,
    /// This program's version.
    pub version: String,
    /// The build.
    pub build_info: String,
    /// fleeting's capabilities, such as `suspend_resume`.
    pub capabilities: Vec<String>,
}

/// The answer to ConnectInfo.
#[derive(Clone, Debug)]
pub struct ConnectInfo {
    /// The login.
    pub login: Login,
    /// The address within VCD's network.
    pub internal: IpAddr,
    /// The address from outside. It is the same for vApps that this plugin creates, because they are bridged to the
    /// organization's network. An adopted vApp with NAT has another one.
    pub external: IpAddr,
}

impl Plugin {
    /// A plugin that waits for Init. Its tasks run on `executor`.
    pub fn new(executor: Rc<LocalExecutor<'static>>, serve_debug: ServeDebug) -> Rc<Plugin> {
        Rc::new(Plugin { executor, serve_debug, state: RefCell::new(Stage::Idle) })
    }

    /// Init: reads the configuration, logs in to VCD, adopts existing VMs. A second Init is an error.
    pub async fn init(self: &Rc<Self>, config: &[u8], connector: Connector) -> Result<Provider, CallError> {
        let before = std::mem::replace(&mut *self.state.borrow_mut(), Stage::Starting);
        if !matches!(before, Stage::Idle) {
            *self.state.borrow_mut() = before;
            return Err(CallError::NotReady("Init was called before".into()));
        }
        // If the host cancels the call, the plugin is idle as before.
        let mut reset = ResetUnlessRunning { plugin: self, done: false };
        let draft = Config::read(config, &connector);
        for warning in &draft.config.warnings {
            log::warn!("{warning}");
        }
        let config = draft.checked().map_err(CallError::Invalid)?;
        let vcd = &config.vcd;
        let id = ["vcd", &vcd.org, &vcd.vdc, &vcd.network, &vcd.vapp_prefix, &config.policy.group].join("/");
        let mut provider = Provider {
            id,
            max_size: config.policy.max_size,
            version: version::VERSION.into(),
            build_info: version::build_info(),
            capabilities: Vec::new(),
        };
        let debug_server_addr = config.debug_server_addr.clone();
        let driver = Driver::start(self.executor.clone(), config).await?;
        provider.capabilities.extend(driver.suspend_resume.then(|| SUSPEND_RESUME.into()));
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

    /// All instances as the debug pages show them. None before Init.
    pub fn views(&self) -> Vec<View> {
        self.driver().map(|driver| driver.group.borrow().views(driver.now())).unwrap_or_default()
    }

    /// Increase. Returns how many were accepted.
    pub fn increase(&self, n: u32) -> Result<u32, CallError> {
        Ok(self.driver()?.with(|group, now| group.increase(now, n)))
    }

    /// Decrease. Returns those of `names` that are or will be deleted.
    pub fn decrease(&self, names: Vec<String>) -> Result<Vec<String>, CallError> {
        let names: Vec<Name> = names.into_iter().map(Name::from).collect();
        let succeeded = self.driver()?.with(|group, now| group.decrease(now, &names));
        Ok(succeeded.iter().map(|name| name.to_string()).collect())
    }

    /// Suspend: starts it, and does not wait for its end.
    pub fn suspend(&self, names: Vec<String>) -> Result<Outcome, CallError> {
        self.nap(names, Group::suspend)
    }

    /// Resume: starts it, and does not wait for its end.
    pub fn resume(&self, names: Vec<String>) -> Result<Outcome, CallError> {
        self.nap(names, Group::resume)
    }

    fn nap(&self, names: Vec<String>, change: fn(&mut Group, Time, &[Name]) -> Outcome) -> Result<Outcome, CallError> {
        let driver = self.driver()?;
        if !driver.suspend_resume {
            return Err(CallError::Unsupported(
                "suspend_resume is off in plugin_config, or not possible with this template".into(),
            ));
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

    /// Heartbeat: an error means "unhealthy".
    pub fn heartbeat(&self, name: &str) -> Result<(), CallError> {
        self.driver()?.with(|group, now| group.heartbeat(now, name)).map_err(CallError::Unavailable)
    }

    /// InstanceGroup/Shutdown: stops creating, deletes the group's instances (or keeps them, by policy) within `deadline`.
    pub async fn shutdown(&self, deadline: Option<Duration>) -> Result<(), CallError> {
        let Ok(driver) = self.driver() else { return Ok(()) };
        driver.with(|group, now| group.shutdown(now));
        let stopped = driver.wait(shutdown_time(deadline), Group::stopped).await;
        if !stopped {
            let left = driver.group.borrow().left();
            log::error!(
                "shutdown: at GitLab Runner's deadline VCD still has {}; VCD continues the deletes that have started, and the \
                 next start deletes the rest. Raise shutdown_timeout in config.toml to 80",
                left.join(", ")
            );
        }
        Ok(())
    }

    /// The end of the process: starts nothing new, and waits until requests in progress are answered or time out, and
    /// until a current login ends. The caller limits the wait.
    pub async fn drain(&self) {
        if let Ok(driver) = self.driver() {
            driver.closing.set(true);
            for tidy in driver.at_end.take() {
                tidy();
            }
            driver.wait(Duration::MAX, |_| driver.on_wire.get() == 0).await;
            let client = driver.client.clone();
            driver.pool.run(move || client.settle()).await;
        }
    }

    /// After [`Plugin::drain`]: ends the session with VCD. The caller limits the wait.
    pub async fn log_out(&self) {
        if let Ok(driver) = self.driver() {
            let client = driver.client.clone();
            driver.pool.run(move || client.close()).await;
        }
    }
}

/// Maximum time for Shutdown if the host waits for `deadline`.
fn shutdown_time(deadline: Option<Duration>) -> Duration {
    deadline.unwrap_or(SHUTDOWN_TIMEOUT).saturating_sub(SHUTDOWN_MARGIN)
}

/// Resets the plugin to idle if Init fails or is dropped before its end.
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

/// Ends the session of an Init that fails or is dropped before its end. Nothing else would end it.
struct LogOutUnlessServing {
    executor: Rc<LocalExecutor<'static>>,
    pool: Rc<Pool>,
    client: Arc<Client>,
    driver: Option<Rc<Driver>>,
    done: bool,
}

impl Drop for LogOutUnlessServing {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        if let Some(driver) = self.driver.take() {
            driver.closing.set(true);
            let _ = driver.nudge.try_send(());
        }
        let (pool, client) = (self.pool.clone(), self.client.clone());
        self.executor.spawn(async move { pool.run(move || client.close()).await }).detach();
    }
}

/// The group, and everything that executes its commands.
pub struct Driver {
    executor: Rc<LocalExecutor<'static>>,
    group: RefCell<Group>,
    client: Arc<Client>,
    pool: Rc<Pool>,
    changes: Semaphore,
    access: access::Settings,
    suspend_resume: bool,
    /// The template's guest OS: that of new instances.
    guest_os: String,
    started: Instant,
    about: About,
    journal: RefCell<Journal>,
    polls: RefCell<Polls>,
    /// Changing requests in progress.
    on_wire: Cell<usize>,
    /// Changing requests that wait for their turn.
    changes_waiting: Cell<usize>,
    /// The process ends: no new requests.
    closing: Cell<bool>,
    /// Shows other processes that a plugin serves this group.
    _presence: Option<Presence>,
    /// Wakes the clock if the group's next wake-up may have changed.
    nudge: Sender<()>,
    /// Wakes the tasks that wait for a condition.
    waiting: RefCell<Vec<Sender<()>>>,
    /// Functions to call when the process ends.
    at_end: RefCell<Vec<Box<dyn FnOnce()>>>,
}

impl Driver {
    /// Logs in, polls once, and starts. The error names all mistakes, in one line.
    async fn start(executor: Rc<LocalExecutor<'static>>, config: Config) -> Result<Rc<Driver>, CallError> {
        let presence = Presence::claim(&config.identity());
        if presence.as_ref().is_some_and(|presence| presence.is_second) {
            log::warn!(
                "another plugin with the same name, group and prefix runs on this machine: unless it is about to end, this \
                 plugin adopts its VMs; give each runner its own name"
            );
        }
        let pool = Rc::new(Pool::default());
        let settings = config.vcd.clone();
        let opened = pool.run(move || Client::open(settings)).await.ok_or_else(no_thread_at_all)?;
        let (client, environment) = opened.map_err(|errors| {
            let lines: Vec<String> = errors.iter().map(VcdError::to_string).collect();
            let text = format!("{}; no VM was created", lines.join("; "));
            match errors.iter().any(|e| matches!(e.kind, ErrorKind::Unavailable | ErrorKind::Protocol)) {
                true => CallError::Unavailable(text),
                false => CallError::Invalid(text),
            }
        })?;
        if config.seed_is_token && environment.token == TokenKind::Replaced {
            log::warn!("{SEED_CHANGES}");
        }
        log::info!(api_version = environment.api_version, guest_os = environment.guest_os; "logged in to VCD");
        let client = Arc::new(client);
        let mut unless_serving = LogOutUnlessServing {
            executor: executor.clone(),
            pool: pool.clone(),
            client: client.clone(),
            driver: None,
            done: false,
        };
        match Driver::begin(executor, config, presence, pool.clone(), client.clone(), environment).await {
            Ok(driver) => {
                unless_serving.driver = Some(driver.clone());
                // Instances that are not known to be complete by then are leftovers, unless VCD is not available.
                if !driver.wait(ADOPTION_TIMEOUT + ADOPTION_MARGIN, Group::knows_its_own).await {
                    let text =
                        "VCD does not answer lookups of the VMs of an earlier process; no VM was created or deleted";
                    return Err(CallError::Unavailable(text.into()));
                }
                unless_serving.done = true;
                Ok(driver)
            }
            Err(error) => {
                unless_serving.done = true;
                pool.run(move || client.close()).await;
                Err(error)
            }
        }
    }

    /// The part of [`Driver::start`] with a session.
    async fn begin(
        executor: Rc<LocalExecutor<'static>>,
        config: Config,
        presence: Option<Presence>,
        pool: Rc<Pool>,
        client: Arc<Client>,
        environment: Environment,
    ) -> Result<Rc<Driver>, CallError> {
        access::check(&config.access, Some(&environment.guest_os)).map_err(CallError::Invalid)?;
        if let Some(warning) = access::warning(&config.access, &environment.guest_os) {
            log::warn!("{warning}");
        }
        let mut policy = config.policy;
        if let (true, Some(why)) = (policy.suspend_resume, environment.no_suspend) {
            log::info!("{why}: the plugin does not offer suspend and resume to GitLab Runner");
            policy.suspend_resume = false;
        }
        if let (1.., Some(why)) = (policy.standby_count, environment.no_suspend) {
            log::warn!("{why}: no VM is kept in standby");
            policy.standby_count = 0;
        }
        let suspend_resume = policy.suspend_resume;
        let settings = config.vcd;
        let about = About {
            group: policy.group.clone(),
            manager: policy.manager.clone(),
            prefix: settings.vapp_prefix,
            url: settings.url,
            org: settings.org,
            vdc: settings.vdc,
            api_version: environment.api_version,
            guest_os: environment.guest_os.clone(),
        };
        let began = Instant::now();
        let first = {
            let client = client.clone();
            pool.run(move || client.call(&Request::Poll { vapps: true }, None)).await.ok_or_else(no_thread_at_all)?
        };
        let first = match first {
            Ok(Reply::Poll(poll)) => poll,
            other => {
                let why = other.err().map_or("first poll: unexpected kind of answer".into(), |error| error.to_string());
                return Err(CallError::Unavailable(format!("{why}; no VM was created")));
            }
        };
        let seed = getrandom::u64().map_err(|error| CallError::Unavailable(format!("random seed: {error}")))?;
        let (nudge, nudged) = bounded(1);
        let started = Instant::now();
        let mut journal = Journal::default();
        journal.tally.polls.add(began.elapsed());
        let polls = Polls { took: began.elapsed(), result: Some(Ok(first.vms.len())), ..Polls::default() };
        let driver = Rc::new(Driver {
            executor: executor.clone(),
            group: RefCell::new(Group::new(policy, seed, Time::default(), &first)),
            client,
            pool,
            changes: Semaphore::new(MAX_CHANGES_ON_WIRE),
            access: config.access,
            suspend_resume,
            guest_os: environment.guest_os,
            started,
            about,
            journal: RefCell::new(journal),
            polls: RefCell::new(polls),
            on_wire: Cell::new(0),
            changes_waiting: Cell::new(0),
            closing: Cell::new(false),
            _presence: presence,
            nudge,
            waiting: RefCell::new(Vec::new()),
            at_end: RefCell::new(Vec::new()),
        });
        driver.with(|_, _| {});
        executor.spawn(driver.clone().run_clock(nudged)).detach();
        Ok(driver)
    }

    fn now(&self) -> Time {
        Time(self.started.elapsed().as_millis() as u64)
    }

    /// Passes all values of the debug pages to `show`.
    pub fn show<T>(&self, show: impl FnOnce(&Status<'_>) -> T) -> T {
        let (now, group, journal) = (self.now(), self.group.borrow(), self.journal.borrow());
        let (threads, busy) = (self.pool.threads(), self.pool.busy());
        let wire = Wire {
            busy: busy.min(threads),
            most: THREADS,
            waiting: busy.saturating_sub(threads),
            changes_waiting: self.changes_waiting.get(),
        };
        show(&Status {
            now,
            wall: SystemTime::now(),
            about: &self.about,
            session: self.client.session(),
            polls: self.polls.borrow().clone(),
            standing: group.standing(now),
            wire,
            views: group.views(now),
            journal: &journal,
            requests: self.client.counts(),
            process: Process::read(),
        })
    }

    /// Registers `tidy` to be called when the process ends normally.
    pub fn at_end(&self, tidy: impl FnOnce() + 'static) {
        self.at_end.borrow_mut().push(Box::new(tidy));
    }

    /// Gives the group an input, and executes its commands.
    fn with<T>(self: &Rc<Self>, feed: impl FnOnce(&mut Group, Time) -> T) -> T {
        self.turn(Shown::Nothing, Vec::new(), feed)
    }

    /// The same with the kind of the input, and the facts about the operations that it ended.
    fn turn<T>(self: &Rc<Self>, shown: Shown, notes: Vec<Note>, feed: impl FnOnce(&mut Group, Time) -> T) -> T {
        let now = self.now();
        let result = feed(&mut self.group.borrow_mut(), now);
        self.execute(now, shown, notes);
        result
    }

    /// Executes the group's commands, and notes what has changed. One copy for all kinds of input.
    #[inline(never)]
    fn execute(self: &Rc<Self>, now: Time, shown: Shown, notes: Vec<Note>) {
        let mut group = self.group.borrow_mut();
        let mut said = Vec::new();
        while let Some(command) = group.next_command() {
            match command {
                Command::Say(event) => said.push(event),
                Command::Ask { ticket, request } => {
                    let about = group.about(ticket);
                    self.executor.spawn(self.clone().ask(ticket, about, request)).detach();
                }
                Command::Probe { ticket, address } => {
                    let about = group.about(ticket);
                    self.executor.spawn(self.clone().probe(ticket, about, address)).detach();
                }
            }
        }
        for entry in self.journal.borrow_mut().turn(now, shown, notes, said, &group.glances(now)) {
            write(&entry);
        }
        drop(group);
        // Full: a nudge is in the queue already.
        let _ = self.nudge.try_send(());
        for waiter in self.waiting.borrow_mut().drain(..) {
            let _ = waiter.try_send(());
        }
    }

    async fn ask(self: Rc<Self>, ticket: Ticket, about: Option<u64>, request: Request) {
        let changes = request.changes();
        let permit = if changes {
            self.changes_waiting.set(self.changes_waiting.get() + 1);
            let permit = self.changes.acquire().await;
            self.changes_waiting.set(self.changes_waiting.get() - 1);
            Some(permit)
        } else {
            None
        };
        if self.closing.get() {
            return;
        }
        self.on_wire.set(self.on_wire.get() + usize::from(changes));
        let operation = request.operation();
        let with_vapps = matches!(request, Request::Poll { vapps: true });
        let guest = match &request {
            Request::Create { name, .. } => Some(access::guest(&self.access, &self.guest_os, name)),
            _ => None,
        };
        let client = self.client.clone();
        let began = Instant::now();
        let answer = match &request {
            // It has waited here, and was given up meanwhile.
            Request::Create { name, .. } if !self.group.borrow().wants(ticket) => {
                let what = format!("create vApp {name}");
                Some(Err(VcdError::own(ErrorKind::Unavailable, what, "not sent: it is no longer wanted")))
            }
            _ => self.pool.run(move || client.call(&request, guest.as_ref())).await,
        };
        drop(permit);
        self.on_wire.set(self.on_wire.get() - usize::from(changes));
        let answer = self.redact(answer.unwrap_or_else(|| no_thread(operation)));
        let took = began.elapsed();
        let mut shown = Shown::Nothing;
        let mut notes = Vec::new();
        match operation {
            "poll" => {
                shown = Shown::Poll;
                self.polled(&answer, took, with_vapps);
            }
            "poll_some" => shown = Shown::Poll,
            "tasks" => {
                shown = Shown::Tasks;
                notes = self.tasks_ended(&answer);
            }
            _ => {}
        }
        let error = answer.as_ref().err();
        if about.is_some() || error.is_some() {
            let task = match &answer {
                Ok(Reply::Started(started)) => started.task.clone(),
                _ => None,
            };
            if error
                .is_some_and(|error| !matches!(error.kind, ErrorKind::NotFound | ErrorKind::Busy | ErrorKind::Limit))
            {
                self.count_failure(operation, about);
            }
            let error = error.map(|error| error.to_string().into());
            notes.push(Note { key: about, operation, task, took, error });
        }
        self.turn(shown, notes, |group, now| group.answer(now, ticket, answer));
    }

    /// The answer without the guests' secrets: VCD may echo them in any error, and in the error of a task long after
    /// the request.
    fn redact(&self, mut answer: Answer) -> Answer {
        let (script, password) = (self.access.custom_script.clone(), self.access.password.clone());
        let any = Guest { computer_name: String::new(), script, password };
        match &mut answer {
            Ok(Reply::Tasks(tasks)) => {
                for task in tasks {
                    let TaskState::Failed(error) = &mut task.state else { continue };
                    let name = self.journal.borrow().task_of(&task.href).map(|(life, ..)| life.name.clone());
                    let guest = name.map(|name| access::guest(&self.access, &self.guest_os, &name));
                    *error = self.client.redact(error.clone(), guest.as_ref().unwrap_or(&any));
                }
            }
            Err(error) => *error = self.client.redact(error.clone(), &any),
            Ok(_) => {}
        }
        answer
    }

    /// Counts a poll.
    fn polled(&self, answer: &Answer, took: Duration, with_vapps: bool) {
        let (ended, mut journal, mut polls) = (self.now(), self.journal.borrow_mut(), self.polls.borrow_mut());
        match answer {
            Ok(Reply::Poll(poll)) => {
                journal.tally.polls.add(took);
                if with_vapps {
                    journal.tally.gc.add(took);
                }
                *polls = Polls { ended, took, result: Some(Ok(poll.vms.len())), good: ended };
            }
            other => {
                journal.tally.failed_polls += 1;
                let why = other.as_ref().err().map(|error| error.to_string()).unwrap_or_default();
                *polls = Polls { ended, took, result: Some(Err(why.into())), good: polls.good };
            }
        }
    }

    /// The facts about the tasks that have ended.
    fn tasks_ended(&self, answer: &Answer) -> Vec<Note> {
        let Ok(Reply::Tasks(tasks)) = answer else { return Vec::new() };
        let mut notes = Vec::new();
        for task in tasks {
            let error: Option<Arc<str>> = match &task.state {
                TaskState::Running => continue,
                TaskState::Success | TaskState::Unknown => None,
                TaskState::Failed(error) => Some(error.to_string().into()),
            };
            let journal = self.journal.borrow();
            let known = journal.task_of(&task.href).map(|(life, operation, since)| (life.key, operation, since));
            drop(journal);
            if let Some((key, operation, since)) = known {
                if error.is_some() {
                    self.count_failure(operation, Some(key));
                }
                let (task, took) = (Some(task.href.clone()), self.now() - since);
                notes.push(Note { key: Some(key), operation, task, took, error });
            }
        }
        notes
    }

    /// Failed creates are counted elsewhere, by attempt.
    fn count_failure(&self, operation: &str, about: Option<u64>) {
        let mut journal = self.journal.borrow_mut();
        let resuming = about.and_then(|key| journal.life(key)).is_some_and(|life| life.phase == Phase::Resuming);
        match operation {
            "delete" | "undeploy" | "delete_stopped" => journal.tally.fail("delete"),
            "suspend" => journal.tally.fail("suspend"),
            "power_on" if resuming => journal.tally.fail("resume"),
            _ => {}
        }
    }

    async fn probe(self: Rc<Self>, ticket: Ticket, about: Option<u64>, address: IpAddr) {
        let address = SocketAddr::new(address, self.access.port);
        let began = Instant::now();
        let result = access::probe(address, self.access.protocol, PROBE_TIMEOUT).await;
        let error = result.as_ref().err().map(|seen| format!("login port {address}: {seen}").into());
        let note = Note { key: about, operation: "probe", task: None, took: began.elapsed(), error };
        self.turn(Shown::Port, vec![note], |group, now| group.probed(now, ticket, result));
    }

    /// Calls the group when it is due.
    async fn run_clock(self: Rc<Self>, nudged: Receiver<()>) {
        while !self.closing.get() {
            let due = self.journal.borrow().due();
            let wake = self.group.borrow().wake_at().into_iter().chain(due).min();
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

/// Writes one log line, with the facts as separate fields.
fn write(entry: &Entry) {
    let took = entry.took.map(|took| format!("{}.{:03}s", took.as_secs(), took.subsec_millis()));
    let fields = [
        ("instance", entry.name.as_deref()),
        ("from", entry.from.map(|phase| phase.name())),
        ("phase", entry.phase.map(|phase| phase.name())),
        ("operation", entry.operation),
        ("task", entry.task.as_deref().map(last_part)),
        ("duration", took.as_deref()),
        ("error", entry.error.as_deref()),
    ];
    let fields: Vec<(&str, &str)> = fields.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
    let fields = fields.as_slice();
    let log = |text: std::fmt::Arguments<'_>| {
        let record = log::Record::builder()
            .level(entry.level)
            .target(module_path!())
            .module_path_static(Some(module_path!()))
            .key_values(&fields)
            .args(text)
            .build();
        log::logger().log(&record);
    };
    if entry.level > log::max_level() {
        return;
    }
    match (entry.times, &*entry.text) {
        (1, text) => log(format_args!("{text}")),
        (times, text) => log(format_args!("{text} ({times} times so far)")),
    }
}

/// The text after the last slash: the id in a link.
pub fn last_part(href: &str) -> &str {
    href.rsplit('/').next().unwrap_or(href)
}

fn no_thread_at_all() -> CallError {
    CallError::Unavailable("no thread for requests to VCD could be started".into())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shutdown_answers_before_the_host_gives_up() {
        for (deadline, ms) in [(None, 29_500), (Some(120_000), 119_500), (Some(100), 0)] {
            assert_eq!(shutdown_time(deadline.map(Duration::from_millis)), Duration::from_millis(ms));
        }
    }
}
