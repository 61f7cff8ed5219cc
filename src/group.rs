//! The heart: every instance of the group, and what should happen next.
//!
//! A [`Group`] is fed what the host asks, what VCD answers and what time it is, and hands out [`Command`]s. It does no I/O
//! and has no clock, thread or random source of its own: the same inputs give the same commands, so that a fleet's whole
//! life can be played in virtual time. After each input, take commands by [`Group::next_command`] until there are none,
//! and call [`Group::tick`] no later than [`Group::wake_at`].
//!
//! This file answers what the host asks. It does not know how VCD or the host are spoken to.

mod adopt;
mod answers;
mod boot;
mod changes;
mod command;
mod failures;
mod instance;
mod limits;
mod looks;
mod next;
mod owner;
mod pace;
mod policy;
mod polls;
mod standby;
mod time;
mod turn;
mod vapp;
mod view;

pub use adopt::{ADOPTION_TIMEOUT, EARLIER_CREATES};
pub use command::{Command, Event, Outcome, Reach, State};
pub use instance::Cause;
pub use owner::{Owner, Ownership};
pub use policy::{Labels, OnShutdown, Policy};
pub use time::Time;
pub use view::{Glance, Limit, Phase, Standing, View};

use crate::cloud::{Answer, Href, Poll, Request, Source, UnixMs, VcdError};
use instance::{Desired, Instance, Observed, Origin, Stage};
use limits::{Backoff, Breaker, Rng, Slots, Throttle};
use pace::Pace;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use time::{Seen, Sight};

/// The id that the host sees: the vApp's name.
pub type Name = Arc<str>;

/// A handle on a request that was handed out; its answer comes back with it.
pub type Ticket = u64;

/// Deleted instances are reported for so long, then forgotten.
pub const PRUNE_AFTER: Duration = Duration::from_secs(5 * 60);
/// An instance that polls show off or broken for so long, and not by us, is deleted.
pub const UNHEALTHY_GRACE: Duration = Duration::from_secs(10 * 60);
/// What is stuck for so long is reported as a failure of the whole plugin.
pub const STUCK_ALERT: Duration = Duration::from_secs(60 * 60);
/// Pause between two collections of what is too old, and between two looks for vApps without a VM.
pub const GC_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// An instance whose lease in VCD ends within this time counts as past its age: VCD would take it from under a job.
/// For a short lease, a quarter of it.
pub const LEASE_MARGIN: Duration = Duration::from_secs(60 * 60);
/// A poll that succeeds shows what is so until the next one is due, and so much longer: it may be slow.
pub const SIGHT_MARGIN: Duration = Duration::from_secs(15);
/// At most so many probes of login ports at a time.
pub const MAX_PROBES: usize = 16;
/// At most so many direct looks at vApps at a time.
pub const MAX_LOOKS: usize = 4;
/// Hrefs of foreign vApps that are remembered while they are there, so that they are looked at and mentioned once.
pub const MAX_FOREIGN: usize = 2048;
/// Ids of the last instances that were forgotten: a vApp that one of their requests made may yet show.
pub const MAX_PAST: usize = 512;

/// What a request on the wire is about.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    Poll {
        sent: Time,
        vapps: bool,
    },
    /// Of those that boot.
    PollSome {
        sent: Time,
    },
    Tasks,
    Label(Key),
    Probe(Key),
    /// Begins an operation.
    Operation(Key),
    /// Asks about an instance, or for the end of its task.
    Question(Key),
}

/// Instances are kept in the order in which they came.
type Key = u64;

/// Every instance of the group, and what should happen next.
pub struct Group {
    policy: Policy,
    owner: Owner,
    now: Time,
    /// Runs only while polls succeed.
    sight: Sight,
    /// What it showed at the last poll that succeeded.
    last_sight: Seen,
    rng: Rng,
    /// In boxes: the map's nodes are half empty.
    instances: BTreeMap<Key, Box<Instance>>,
    /// Those that the host knows, by id.
    names: BTreeMap<Name, Key>,
    next_key: Key,
    next_ticket: Ticket,
    flights: BTreeMap<Ticket, Purpose>,
    commands: VecDeque<Command>,
    slots: Slots,
    breaker: Breaker,
    throttle: Throttle,
    /// Creates carry everything, until VCD has refused that, ignored the hardware, or failed at it.
    whole: bool,
    /// Creates that carry everything and have failed, since the last that worked.
    whole_failures: u32,
    /// Until then creates go in steps because those fail, or in one request because steps fail as well.
    steps_until: Option<Time>,
    poll: Watch,
    /// For those that boot, between two polls.
    poll_some: Watch,
    tasks: Watch,
    /// The last poll failed because VCD could not be asked: creates and deletes wait for one that succeeds.
    unreachable: bool,
    /// The last instance whose task was asked for, when there are more than fit in one request.
    task_cursor: Key,
    /// How long tasks and boots took lately.
    pace: Pace,
    /// When VCD last showed something new: watching is close after that.
    progress: Time,
    next_gc: Time,
    /// Init goes on until then: what is found may be adopted.
    adopt_until: Option<Time>,
    /// What runs is given the metadata label.
    labels: bool,
    /// Creates are held until then, or until all leftovers of an earlier life are gone or do not go.
    hold_until: Option<Time>,
    stopping: bool,
    /// When that began, and whether a poll that was sent since has been answered: what it shows of ours has to go, too.
    stopping_since: Time,
    swept: bool,
    /// How making VMs for the standby pool has failed.
    pool_backoff: Backoff,
    /// VCD has refused a delete by force for its right: VMs are stopped first from then on.
    no_force: bool,
    /// What VMs are created from now.
    source: Source,
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
    /// What is found is adopted, or a leftover. Until [`Group::knows_its_own`] is true that is still being found out, and
    /// Init must not answer: GitLab Runner trusts what it sees for the first time later as if it were new.
    pub fn new(policy: Policy, seed: u64, now: Time, first: &Poll) -> Group {
        let sight = Sight::new(now, policy.reconcile_interval + SIGHT_MARGIN);
        let mut group = Group {
            owner: Owner::new(&policy),
            now,
            last_sight: sight.at(now),
            sight,
            rng: Rng::new(seed),
            instances: BTreeMap::new(),
            names: BTreeMap::new(),
            next_key: 0,
            next_ticket: 0,
            flights: BTreeMap::new(),
            commands: VecDeque::new(),
            slots: Slots::default(),
            breaker: Breaker::default(),
            throttle: Throttle::default(),
            whole: true,
            whole_failures: 0,
            steps_until: None,
            poll: Watch { last: now, ..Watch::default() },
            poll_some: Watch { last: now, ..Watch::default() },
            tasks: Watch::default(),
            unreachable: false,
            task_cursor: 0,
            pace: Pace::default(),
            progress: now,
            next_gc: now + GC_INTERVAL,
            adopt_until: Some(now + ADOPTION_TIMEOUT),
            labels: policy.labels == Labels::All,
            hold_until: None,
            stopping: false,
            stopping_since: now,
            swept: false,
            pool_backoff: Backoff::default(),
            no_force: false,
            source: first.source,
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

    /// Increase: accepts up to `n` new instances, as many as `max_size` allows. Each has an id at once. VMs of the standby
    /// pool go first.
    pub fn increase(&mut self, now: Time, n: u32) -> u32 {
        self.now = now;
        let live = self.names.values().filter(|key| self.instances.get(key).is_some_and(|i| i.ended.is_none())).count();
        let room = (self.policy.max_size as usize).saturating_sub(live);
        let accepted = if self.stopping { 0 } else { room.min(n as usize) };
        let taken = self.hand_out(accepted);
        for _ in taken..accepted {
            let name = self.fresh_name();
            let instance = Instance::new(name.clone(), Origin::Requested, now, self.sight.at(now));
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
                Some(key) => self.delete_for(key, Cause::Asked),
                // Gone before the host noticed: that is what it wants.
                None => {
                    self.say_plain(log::Level::Debug, format!("GitLab Runner deletes {name}, which no longer exists"))
                }
            }
        }
        self.advance();
        names.to_vec()
    }

    /// Suspend: the named instances are to be suspended, if they run. Returns those that are or will be, and why the others
    /// are not. What is suspended already is a success.
    pub fn suspend(&mut self, now: Time, names: &[Name]) -> Outcome {
        self.for_each_named(now, names, |i| match i.desired {
            Desired::Running if i.is_running() => {
                i.desired = Desired::Suspended;
                Ok(Some("GitLab Runner requested a suspend"))
            }
            Desired::Suspended => Ok(None),
            _ => Err("suspended"),
        })
    }

    /// Resume: the named instances are to be resumed, if they are suspended or are being suspended. Returns as
    /// [`Group::suspend`] does. What runs already is a success.
    pub fn resume(&mut self, now: Time, names: &[Name]) -> Outcome {
        self.for_each_named(now, names, |i| match i.desired {
            Desired::Suspended => {
                i.wake_up();
                Ok(Some("GitLab Runner requested a resume"))
            }
            Desired::Running if i.has_run() => Ok(None),
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
                    i.attempts.change.next = now;
                    i.attempts.not_busy();
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
        let vapp = instance.vapp().filter(|_| instance.is_running());
        let known = vapp.and_then(|vapp| Some((vapp, vapp.record.as_ref()?)));
        match known.and_then(|(vapp, record)| Some((vapp, record.address?, record.guest_os.clone()))) {
            Some((vapp, address, guest_os)) => {
                Ok(Reach { address, external: vapp.external.unwrap_or(address), guest_os })
            }
            None => Err(format!("instance {name} is {} and has no address to log in to", instance.phase().name())),
        }
    }

    /// Heartbeat: why the instance is not healthy. An id that is not known is no error.
    pub fn heartbeat(&mut self, now: Time, name: &str) -> Result<(), String> {
        let Some(instance) = self.named(name) else {
            self.say_plain(
                log::Level::Warn,
                format!("Heartbeat for {name}, which the plugin does not know: answered as healthy"),
            );
            return Ok(());
        };
        let vapp = instance.vapp();
        if let Some(unhealthy) = vapp.and_then(|vapp| vapp.unhealthy) {
            return Err(format!("instance {name}: {}", unhealthy.why));
        }
        // The lease began when the vApp was made, or later.
        let margin = |end: Time| LEASE_MARGIN.min((instance.age(now) + (end - now)) / 4);
        if vapp.and_then(|vapp| vapp.lease_end).is_some_and(|end| now + margin(end) >= end) {
            return Err(format!("instance {name}: its lease in VCD ends soon"));
        }
        if instance.desired != Desired::Running {
            return Err(format!("instance {name} is {}", instance.phase().name()));
        }
        if instance.locked_out {
            return Err(format!(
                "instance {name} was created with other credentials than the current ones (token, credentials_seed or \
                 username)"
            ));
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
            let Some(i) = self.instances.get_mut(&key) else { continue };
            if let Some(operation) = i.operation.as_mut().filter(|operation| operation.stage != Stage::Sent) {
                operation.slot = None;
            }
            // What is not known yet is decided when it is.
            let kept = keep && (i.has_run() || i.stands_by() || i.origin == Origin::Found);
            if !kept {
                self.delete_for(key, Cause::Shutdown);
            }
        }
        self.advance();
    }

    /// True when [`Group::shutdown`] was called and nothing is left to do for it, as far as one last poll shows.
    pub fn stopped(&self) -> bool {
        let kept = |i: &Instance| (i.has_run() || i.stands_by()) && !i.desired.is_deleted() && !i.on_wire();
        self.stopping && self.swept && self.instances.values().all(|i| i.ended.is_some() || kept(i))
    }

    /// Names of what [`Group::shutdown`] has yet to remove.
    pub fn left(&self) -> Vec<Name> {
        let left = self.instances.values().filter(|i| i.ended.is_none() && i.desired.is_deleted());
        left.map(|i| i.name.clone()).collect()
    }

    /// False while it is still being found out what of an earlier life is adopted: at most for [`ADOPTION_TIMEOUT`].
    pub fn knows_its_own(&self) -> bool {
        self.adopt_until.is_none()
    }

    // What the world answers.

    /// VCD's answer to a request that was handed out with `ticket`.
    pub fn answer(&mut self, now: Time, ticket: Ticket, answer: Answer) {
        self.now = now;
        match self.flights.remove(&ticket) {
            Some(Purpose::Poll { sent, vapps }) => self.polled(sent, vapps, answer),
            Some(Purpose::PollSome { sent }) => self.some_polled(sent, answer),
            Some(Purpose::Tasks) => self.tasks_answered(answer),
            Some(Purpose::Label(key)) => self.label_answered(key, answer),
            Some(Purpose::Operation(key)) => self.operation_answered(key, answer),
            Some(Purpose::Question(key)) => self.question_answered(key, answer),
            Some(Purpose::Probe(_)) | None => debug_assert!(false, "an answer without a request"),
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
        self.instances.get(self.names.get(name)?).map(|instance| &**instance)
    }

    fn insert(&mut self, instance: Instance) -> Key {
        let key = self.next_key;
        self.next_key += 1;
        self.instances.insert(key, Box::new(instance));
        key
    }

    fn fresh_name(&mut self) -> Name {
        loop {
            let name = self.owner.name(&mut self.rng);
            if !self.names.contains_key(&name) && !self.instances.values().any(|i| i.name == name) {
                return name;
            }
        }
    }

    /// The instance is to go, for `cause`; the first cause counts.
    fn delete_for(&mut self, key: Key, cause: Cause) {
        let Some(instance) = self.instances.get_mut(&key) else { return };
        if instance.desired.is_deleted() || instance.ended.is_some() {
            return;
        }
        // An error is understood alone.
        let why = match (cause, &instance.error) {
            (Cause::Timeout, Some(error)) => format!(". Last error: {error}"),
            (Cause::Timeout, None) => format!(". It waited for {}", instance.waits_for(self.now)),
            _ => String::new(),
        };
        instance.desired = Desired::Deleted(cause);
        instance.vapp_mut().into_iter().for_each(|vapp| vapp.build.slot = None);
        // Pauses were for what was desired before.
        (instance.attempts.look.next, instance.attempts.change.next) = (self.now, self.now);
        instance.attempts.not_busy();
        let (level, text) = cause.words();
        let event = instance.event(level, text.to_string() + &why);
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
