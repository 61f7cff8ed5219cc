//! The heart: every instance of the group, and what should happen next.
//!
//! A [`Group`] is fed what the host asks, what VCD answers and what time it is, and hands out [`Command`]s. It does no I/O
//! and has no clock, thread or random source of its own: the same inputs give the same commands, so that a fleet's whole
//! life can be played in virtual time. After each input, take commands by [`Group::next_command`] until there are none,
//! and call [`Group::tick`] no later than [`Group::wake_at`].
//!
//! It does not know how VCD or the host are spoken to.

mod adopt;
mod answers;
mod instance;
mod limits;
mod naps;
mod owner;
mod steps;
mod time;
mod view;

pub use adopt::EARLIER_CREATES;
pub use instance::Phase;
pub use owner::{Owner, Ownership};
pub use time::Time;
pub use view::{Limit, Standing, View};

use crate::cloud::{Answer, Href, Poll, Request, UnixMs, VcdError};
use instance::{Cause, Goal, Instance, There};
use limits::{Breaker, Rng, Throttle};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use steps::QUEUE_TIMEOUTS;

/// The id that the host sees: the vApp's name.
pub type Name = Arc<str>;

/// A handle on a request that was handed out; its answer comes back with it.
pub type Ticket = u64;

/// Deleted instances are reported for so long, then forgotten.
pub const PRUNE_AFTER: Duration = Duration::from_secs(5 * 60);
/// An instance that is off or broken behind our back is deleted after this time, unless it recovers.
pub const ILL_GRACE: Duration = Duration::from_secs(10 * 60);
/// Pause between two collections of what is too old, and between two looks for vApps without a VM.
pub const GC_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// An instance whose lease in VCD ends within this time counts as past its age: VCD would take it from under a job.
/// For a short lease, a quarter of it.
pub const LEASE_MARGIN: Duration = Duration::from_secs(60 * 60);
/// At most so many probes of login ports at a time.
pub const MAX_PROBES: usize = 16;
/// At most so many direct looks at vApps at a time.
pub const MAX_LOOKS: usize = 4;
/// Hrefs of foreign vApps that are remembered while they are there, so that they are looked at and mentioned once.
pub const MAX_FOREIGN: usize = 2048;
/// Ids of the last instances that were forgotten: a vApp that one of their requests made may yet show.
pub const MAX_PAST: usize = 512;

/// The group's policy, from the plugin's configuration.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The runner manager's name (`name`): part of the ownership.
    pub manager: String,
    /// `instance_group_name`.
    pub group: String,
    /// `vapp_name_prefix`.
    pub prefix: String,
    /// At most so many instances. 128.
    pub max_size: u32,
    /// Creates that VCD works on at a time. 3.
    pub max_creates: u32,
    /// Deletes that VCD works on at a time. 5.
    pub max_deletes: u32,
    /// Creates, deletes, suspends and resumes together; one slot is kept for creates. 4.
    pub max_operations: u32,
    /// A create that is not done by then is given up and reported as `timeout`. 20 min.
    pub create_timeout: Duration,
    /// A create whose guest is not ready so long after VCD made it has failed. 10 min.
    pub ready_timeout: Duration,
    /// Creates wait so long for the removal of leftovers that were found on start. 30 min.
    pub startup_cleanup_timeout: Duration,
    /// Pause between polls when nothing is awaited. 10 s.
    pub reconcile_interval: Duration,
    /// Past this age Heartbeat answers unhealthy, past twice of it the instance is deleted. 24 h; zero: never.
    pub max_instance_age: Duration,
    /// An instance that is suspended for longer is deleted. 72 h; zero: never.
    pub suspended_max_age: Duration,
    /// What becomes of the instances at the host's Shutdown.
    pub on_shutdown: OnShutdown,
    /// Fingerprint of what generated credentials are derived from, one word; empty if they are static. Instances that were
    /// made with another one are unhealthy: nobody can log in to them.
    pub credentials: String,
}

impl Default for Policy {
    /// The configuration's defaults, and no names.
    fn default() -> Policy {
        Policy {
            manager: String::new(),
            group: String::new(),
            prefix: String::new(),
            max_size: 128,
            max_creates: 3,
            max_deletes: 5,
            max_operations: 4,
            create_timeout: Duration::from_secs(20 * 60),
            ready_timeout: Duration::from_secs(10 * 60),
            startup_cleanup_timeout: Duration::from_secs(30 * 60),
            reconcile_interval: Duration::from_secs(10),
            max_instance_age: Duration::from_secs(24 * 3600),
            suspended_max_age: Duration::from_secs(72 * 3600),
            on_shutdown: OnShutdown::Delete,
            credentials: String::new(),
        }
    }
}

/// What becomes of the instances at the host's Shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnShutdown {
    /// All are deleted.
    Delete,
    /// Running and suspended ones are kept, half-made ones deleted.
    Keep,
}

/// An instance's state as the host sees it (`proto.State`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// creating
    Creating,
    /// running
    Running,
    /// deleting
    Deleting,
    /// deleted
    Deleted,
    /// timeout
    Timeout,
    /// suspending
    Suspending,
    /// suspended
    Suspended,
    /// resuming
    Resuming,
}

/// Something for the driver to do.
#[derive(Clone, Debug)]
pub enum Command {
    /// Ask VCD, and bring the answer to [`Group::answer`], always, once.
    Ask {
        /// To be given back.
        ticket: Ticket,
        /// What to ask.
        request: Request,
    },
    /// Ask whether a guest answers on the login port, and bring the result to [`Group::probed`], always, once.
    Probe {
        /// To be given back.
        ticket: Ticket,
        /// The guest.
        address: IpAddr,
    },
    /// Write to the log.
    Say(Event),
}

/// Something worth a line in the log.
#[derive(Clone, Debug)]
pub struct Event {
    /// How bad.
    pub level: log::Level,
    /// Which instance, if one.
    pub name: Option<Name>,
    /// Its phase.
    pub phase: Option<Phase>,
    /// What happened, and what follows.
    pub text: String,
}

/// What became of a call that names several instances.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Those for which it worked, or will.
    pub succeeded: Vec<Name>,
    /// Why it did not for the others.
    pub refused: Vec<String>,
}

/// How to reach a running instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The primary NIC's address.
    pub address: IpAddr,
    /// The same as seen from outside, if its vApp's NAT gives it another.
    pub external: IpAddr,
    /// The guest OS as VCD shows it.
    pub guest_os: Arc<str>,
}

/// What a request on the wire is about.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    Poll { sent: Time, vapps: bool },
    Tasks,
    Label(Key),
    Probe(Key),
    Instance(Key),
}

/// Instances are kept in the order in which they came.
type Key = u64;

/// Every instance of the group, and what should happen next.
pub struct Group {
    policy: Policy,
    owner: Owner,
    now: Time,
    rng: Rng,
    instances: BTreeMap<Key, Instance>,
    /// Those that the host knows, by id.
    names: BTreeMap<Name, Key>,
    next_key: Key,
    next_ticket: Ticket,
    flights: BTreeMap<Ticket, Purpose>,
    commands: VecDeque<Command>,
    breaker: Breaker,
    throttle: Throttle,
    /// Creates carry everything, until VCD has refused that or ignored the hardware.
    whole: bool,
    poll: Watch,
    tasks: Watch,
    /// The last poll failed because VCD could not be asked: creates and deletes wait for one that succeeds.
    unreachable: bool,
    /// The last instance whose task was asked for, when there are more than fit in one request.
    task_cursor: Key,
    /// When VCD last showed something new: watching is close after that.
    progress: Time,
    next_gc: Time,
    /// Creates are held until then, or until all leftovers of an earlier life are gone.
    hold_until: Option<Time>,
    stopping: bool,
    /// When that began, and whether a poll that was sent since has been answered: what it shows of ours has to go, too.
    stopping_since: Time,
    swept: bool,
    /// When the group began, by VCD's clock.
    vcd_start: Option<UnixMs>,
    /// vApps that look like ours and are not.
    foreign: BTreeSet<Href>,
    /// The ids of the instances that were forgotten last.
    past: VecDeque<Name>,
    wake: Option<Time>,
}

/// A repeated question to VCD.
#[derive(Default)]
struct Watch {
    on_wire: bool,
    last: Time,
    fails: u32,
    /// Not before this time, whatever is awaited.
    not_before: Time,
}

impl Group {
    /// A group that takes in what `first` (a poll with vApps) shows of an earlier life. `seed` drives names and jitter.
    ///
    /// Instances whose ownership cannot be told from the poll are looked at first: until [`Group::knows_its_own`] is true,
    /// [`Group::update`] may lack some.
    pub fn new(policy: Policy, seed: u64, now: Time, first: &Poll) -> Group {
        let owner = Owner::new(&policy);
        let mut group = Group {
            owner,
            now,
            rng: Rng::new(seed),
            instances: BTreeMap::new(),
            names: BTreeMap::new(),
            next_key: 0,
            next_ticket: 0,
            flights: BTreeMap::new(),
            commands: VecDeque::new(),
            breaker: Breaker::default(),
            throttle: Throttle::default(),
            whole: true,
            poll: Watch { last: now, ..Watch::default() },
            tasks: Watch::default(),
            unreachable: false,
            task_cursor: 0,
            progress: now,
            next_gc: now + GC_INTERVAL,
            hold_until: None,
            stopping: false,
            stopping_since: now,
            swept: false,
            vcd_start: first.now,
            foreign: BTreeSet::new(),
            past: VecDeque::new(),
            wake: None,
            policy,
        };
        group.adopt_first(first);
        group.advance();
        group
    }

    // What the host asks.

    /// Increase: accepts up to `n` new instances, as many as `max_size` allows. Each has an id at once.
    pub fn increase(&mut self, now: Time, n: u32) -> u32 {
        self.now = now;
        let live = self.names.values().filter(|key| self.instances.get(key).is_some_and(Instance::counts)).count();
        let room = (self.policy.max_size as usize).saturating_sub(live);
        let accepted = if self.stopping { 0 } else { room.min(n as usize) };
        for _ in 0..accepted {
            let name = self.fresh_name();
            let mut instance = Instance::new(name.clone(), There::Absent, now);
            instance.deadline = now + self.policy.create_timeout * QUEUE_TIMEOUTS;
            instance.reported = true;
            self.say(log::Level::Info, &instance, "accepted");
            let key = self.insert(instance);
            self.names.insert(name, key);
        }
        self.advance();
        accepted as u32
    }

    /// Decrease: the named instances are to go, in whatever phase they are. Returns those that are gone or will be: all.
    pub fn decrease(&mut self, now: Time, names: &[Name]) -> Vec<Name> {
        self.now = now;
        for name in names {
            match self.names.get(name).copied() {
                Some(key) => self.condemn(key, Cause::Asked),
                // Gone before the host noticed: that is what it wants.
                None => {
                    self.say_plain(log::Level::Debug, format!("asked to remove {name}, which is not there any more"))
                }
            }
        }
        self.advance();
        names.to_vec()
    }

    /// Suspend: the named instances are to be suspended, if they run. Returns those that are or will be, and why the others
    /// are not. What is suspended already is a success.
    pub fn suspend(&mut self, now: Time, names: &[Name]) -> Outcome {
        self.for_each_named(now, names, |i| match i.goal {
            Goal::Live if i.is_ready() => {
                i.goal = Goal::Asleep;
                Ok(Some("to be suspended, as the host asked"))
            }
            Goal::Asleep => Ok(None),
            _ => Err("suspended"),
        })
    }

    /// Resume: the named instances are to be resumed, if they are suspended or are being suspended. Returns as
    /// [`Group::suspend`] does. What runs already is a success.
    pub fn resume(&mut self, now: Time, names: &[Name]) -> Outcome {
        let deadline = now + self.policy.create_timeout;
        self.for_each_named(now, names, |i| match i.goal {
            Goal::Asleep => {
                i.rouse(deadline);
                Ok(Some("to be resumed, as the host asked"))
            }
            Goal::Live if i.is_ready() || i.resumed => Ok(None),
            _ => Err("resumed"),
        })
    }

    /// Tries `change` on each named instance, and says what it says. It fails with what cannot be done.
    fn for_each_named(
        &mut self,
        now: Time,
        names: &[Name],
        change: impl Fn(&mut Instance) -> Result<Option<&'static str>, &'static str>,
    ) -> Outcome {
        self.now = now;
        let mut outcome = Outcome::default();
        for name in names {
            let key = self.names.get(name).copied();
            let Some((key, i)) = key.and_then(|key| Some((key, self.instances.get_mut(&key)?))) else {
                outcome.refused.push(format!("instance {name} is not known"));
                continue;
            };
            match change(i) {
                Ok(said) => {
                    i.not_before = now;
                    outcome.succeeded.push(name.clone());
                    if let Some(said) = said {
                        self.say_of(log::Level::Info, key, said.into());
                    }
                }
                Err(what) => {
                    outcome.refused.push(format!("instance {name} is {} and cannot be {what}", i.phase().name()))
                }
            }
        }
        self.advance();
        outcome
    }

    /// Update: the state of every id that the host has to know of.
    pub fn update(&self) -> impl Iterator<Item = (&Name, State)> {
        self.names.iter().filter_map(|(name, key)| Some((name, self.instances.get(key)?.state())))
    }

    /// ConnectInfo: how to reach a running instance, or why not.
    pub fn reach(&self, name: &str) -> Result<Reach, String> {
        let instance = self.named(name).ok_or_else(|| format!("instance {name} is not known"))?;
        let runs = instance.is_ready() && instance.goal == Goal::Live;
        let facts = instance.facts.as_ref().filter(|_| runs);
        match facts.and_then(|facts| Some((facts.address?, facts.guest_os.clone()))) {
            Some((address, guest_os)) => {
                Ok(Reach { address, external: instance.external.unwrap_or(address), guest_os })
            }
            None => Err(format!("instance {name} is {} and has no address to log in at", instance.phase().name())),
        }
    }

    /// Heartbeat: why the instance is not healthy. An id that is not known is no error.
    pub fn heartbeat(&mut self, now: Time, name: &str) -> Result<(), String> {
        let Some(instance) = self.named(name) else {
            self.say_plain(log::Level::Warn, format!("heartbeat of {name}, which is not known"));
            return Ok(());
        };
        if let Some((_, why)) = instance.ill {
            return Err(format!("instance {name}: {why}"));
        }
        // The lease began when the vApp was made, or later.
        let margin = |end: Time| LEASE_MARGIN.min((instance.age(now) + (end - now)) / 4);
        if instance.lease_end.is_some_and(|end| now + margin(end) >= end) {
            return Err(format!("instance {name}: its lease in VCD ends soon"));
        }
        if instance.goal != Goal::Live {
            return Err(format!("instance {name} is {}", instance.phase().name()));
        }
        if instance.locked_out {
            return Err(format!("instance {name} was made with other credentials than those that are generated now"));
        }
        let limit = self.policy.max_instance_age;
        if !limit.is_zero() && instance.age(now) >= limit {
            return Err(format!("instance {name} is older than max_instance_age ({} s)", limit.as_secs()));
        }
        Ok(())
    }

    /// True if garbage collection takes a running instance of this age.
    pub fn too_old(&self, age: Duration) -> bool {
        let limit = self.policy.max_instance_age * 2;
        !limit.is_zero() && age >= limit
    }

    /// Shutdown: nothing new is begun, everything (or, with `on_shutdown = "keep"`, what has not come to running) is to go.
    /// The limits on deletes hold for requests on the wire only: VCD queues the tasks itself.
    pub fn shutdown(&mut self, now: Time) {
        self.now = now;
        if !std::mem::replace(&mut self.stopping, true) {
            (self.stopping_since, self.next_gc) = (now, now);
            self.poll = Watch { on_wire: self.poll.on_wire, fails: self.poll.fails, ..Watch::default() };
        }
        let keep = self.policy.on_shutdown == OnShutdown::Keep;
        let keys: Vec<Key> = self.instances.keys().copied().collect();
        for key in keys {
            if !(keep && self.instances.get(&key).is_some_and(Instance::has_run)) {
                self.condemn(key, Cause::Shutdown);
            }
        }
        self.advance();
    }

    /// True when [`Group::shutdown`] was called and nothing is left to do for it, as far as one last poll shows.
    pub fn stopped(&self) -> bool {
        let kept = |i: &Instance| i.has_run() && !i.goal.is_gone() && i.asked.is_none();
        self.stopping && self.swept && self.instances.values().all(|i| i.ended.is_some() || kept(i))
    }

    /// Names of what [`Group::shutdown`] has yet to remove.
    pub fn left(&self) -> Vec<Name> {
        let gone = |i: &&Instance| i.ended.is_none() && i.goal.is_gone();
        self.instances.values().filter(gone).map(|i| i.name.clone()).collect()
    }

    /// False while vApps that may be of an earlier life are still being looked at.
    pub fn knows_its_own(&self) -> bool {
        !self.instances.values().any(|i| matches!(i.there, There::Stranger { .. }) && i.earlier && !i.looked)
    }

    // What the world answers.

    /// VCD's answer to a request that was handed out with `ticket`.
    pub fn answer(&mut self, now: Time, ticket: Ticket, answer: Answer) {
        self.now = now;
        match self.flights.remove(&ticket) {
            Some(Purpose::Poll { sent, vapps }) => self.polled(sent, vapps, answer),
            Some(Purpose::Tasks) => self.tasks_answered(answer),
            Some(Purpose::Label(key)) => self.label_answered(key, answer),
            Some(Purpose::Instance(key)) => self.instance_answered(key, answer),
            Some(Purpose::Probe(_)) | None => debug_assert!(false, "an answer that nobody waits for"),
        }
        self.advance();
    }

    /// The result of a probe that was handed out with `ticket`.
    pub fn probed(&mut self, now: Time, ticket: Ticket, result: Result<(), String>) {
        self.now = now;
        if let Some(Purpose::Probe(key)) = self.flights.remove(&ticket) {
            self.probe_answered(key, result);
        }
        self.advance();
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Time) {
        self.now = now;
        self.advance();
    }

    /// The next thing to do.
    pub fn next_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// When [`Group::tick`] must be called at the latest.
    pub fn wake_at(&self) -> Option<Time> {
        self.wake
    }

    // Small helpers for all of the above.

    fn named(&self, name: &str) -> Option<&Instance> {
        self.instances.get(self.names.get(name)?)
    }

    fn insert(&mut self, instance: Instance) -> Key {
        let key = self.next_key;
        self.next_key += 1;
        self.instances.insert(key, instance);
        key
    }

    fn fresh_name(&mut self) -> Name {
        loop {
            let name = self.owner.name(&mut self.rng);
            if !self.names.contains_key(&name) {
                return name;
            }
        }
    }

    /// The instance is to go, for `cause`; the first cause counts.
    fn condemn(&mut self, key: Key, cause: Cause) {
        let Some(instance) = self.instances.get_mut(&key) else { return };
        if instance.goal.is_gone() {
            return;
        }
        instance.goal = Goal::Gone(cause);
        // A pause after failures was for the next create.
        instance.not_before = self.now;
        let (level, text) = cause.words();
        let event = instance.event(level, text.to_string());
        self.commands.push_back(Command::Say(event));
    }

    fn ask(&mut self, purpose: Purpose, request: Request) {
        let ticket = self.fly(purpose);
        self.commands.push_back(Command::Ask { ticket, request });
    }

    fn fly(&mut self, purpose: Purpose) -> Ticket {
        self.next_ticket += 1;
        self.flights.insert(self.next_ticket, purpose);
        self.next_ticket
    }

    fn say(&mut self, level: log::Level, instance: &Instance, text: &str) {
        self.commands.push_back(Command::Say(instance.event(level, text.to_string())));
    }

    fn say_of(&mut self, level: log::Level, key: Key, text: String) {
        if let Some(instance) = self.instances.get(&key) {
            self.commands.push_back(Command::Say(instance.event(level, text)));
        }
    }

    fn say_plain(&mut self, level: log::Level, text: String) {
        self.commands.push_back(Command::Say(Event { level, name: None, phase: None, text }));
    }

    /// Notes what went wrong on the instance, for people.
    fn blame(&mut self, key: Key, error: &VcdError, follows: &str) {
        let text: Arc<str> = error.to_string().into();
        if let Some(instance) = self.instances.get_mut(&key) {
            instance.error = Some(text.clone());
        }
        self.say_of(log::Level::Warn, key, format!("{text}; {follows}"));
    }
}
