//! The heart: every instance of the group, and the decision what happens to it next.
//!
//! A [`Group`] gets the calls of the host, the answers of VCD and the current time. It returns [`Command`]s. It does no I/O
//! and has no clock, thread or random source of its own. The same inputs give the same commands, so that tests can play the
//! whole life of a fleet in virtual time. After each input, take commands with [`Group::next_command`] until there are
//! none, and call [`Group::tick`] no later than [`Group::wake_at`].
//!
//! This file answers the calls of the host. It does not know the protocols of VCD and of the host.

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
mod phase;
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
pub use phase::Phase;
pub use policy::{Labels, OnShutdown, Policy};
pub use time::Time;
pub use view::{Glance, Limit, Standing, View};

use crate::cloud::{Answer, Href, Poll, Source, UnixMs};
use instance::{Desired, Instance, Observed, Origin, Stage};
use limits::{Backoff, Breaker, Rng, Slots, Throttle};
use pace::Pace;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use time::{Seen, Sight};
use vapp::Vapp;

/// The id that the host sees: the vApp's name.
pub type Name = Arc<str>;

/// Identifies a request that the group handed out. The answer carries it back.
pub type Ticket = u64;

/// A deleted instance is reported for this long, then forgotten.
pub const PRUNE_AFTER: Duration = Duration::from_secs(5 * 60);
/// The group deletes an instance that polls show powered off or failed for this long, if the plugin did not do that. A lookup
/// has to confirm it, or fail for as long.
pub const UNHEALTHY_GRACE: Duration = Duration::from_secs(10 * 60);
/// An instance that is stuck for this long is reported as a failure of the whole plugin.
pub const STUCK_ALERT: Duration = Duration::from_secs(60 * 60);
/// Pause between two garbage collections, and between two polls that also find vApps without a VM.
pub const GC_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// An instance whose lease in VCD ends within this time counts as too old: otherwise VCD would stop it during a job. For a
/// short lease, a quarter of the lease.
pub const LEASE_MARGIN: Duration = Duration::from_secs(60 * 60);
/// A successful poll is valid until the next poll is due, plus this time: the next poll may be slow.
pub const SIGHT_MARGIN: Duration = Duration::from_secs(15);
/// Maximum number of concurrent probes of login ports.
pub const MAX_PROBES: usize = 16;
/// Maximum number of concurrent lookups of vApps.
pub const MAX_LOOKS: usize = 4;
/// Maximum number of remembered hrefs of foreign vApps. While they exist, each is looked up and logged once.
pub const MAX_FOREIGN: usize = 2048;
/// Maximum number of remembered ids of forgotten instances: a vApp that one of their requests created may still appear.
pub const MAX_PAST: usize = 512;

/// The subject of a request on the wire.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    Poll {
        sent: Time,
        vapps: bool,
    },
    /// Only instances that boot.
    PollSome {
        sent: Time,
    },
    Tasks,
    Label(Key),
    Probe(Key, IpAddr),
    /// Starts an operation.
    Operation(Key),
    /// A lookup of an instance, or a request to cancel its task.
    Question(Key),
}

/// Instances are kept in the order of their arrival.
type Key = u64;

/// Every instance of the group, and the decision what happens to it next.
pub struct Group {
    policy: Policy,
    owner: Owner,
    now: Time,
    /// Runs only while polls succeed.
    sight: Sight,
    /// Its value at the last successful poll.
    last_sight: Seen,
    rng: Rng,
    /// Boxed: the nodes of the map are half empty.
    instances: BTreeMap<Key, Box<Instance>>,
    /// The instances that the host knows, by id.
    names: BTreeMap<Name, Key>,
    next_key: Key,
    next_ticket: Ticket,
    flights: Vec<(Ticket, Purpose)>,
    commands: VecDeque<Command>,
    slots: Slots,
    breaker: Breaker,
    throttle: Throttle,
    /// Creates use the combined request, until VCD rejects it, ignores the hardware, or its task fails.
    whole: bool,
    /// Combined creates that failed since the last one that succeeded.
    whole_failures: u32,
    /// Until then, creates use steps because combined creates fail, or the combined request because steps fail too.
    steps_until: Option<Time>,
    poll: Watch,
    /// For instances that boot, between two polls.
    poll_some: Watch,
    tasks: Watch,
    /// The last poll failed because VCD was not available: creates and deletes wait for a successful poll.
    unreachable: bool,
    /// The last instance whose task was queried, if one request cannot contain all tasks.
    task_cursor: Key,
    /// The last instance whose login port was probed.
    probe_cursor: Key,
    /// Recent durations of tasks and boots.
    pace: Pace,
    /// When VCD last showed a change: polls are more frequent after it.
    progress: Time,
    next_gc: Time,
    /// Init lasts until then: found vApps may be adopted.
    adopt_until: Option<Time>,
    /// Running instances get the metadata entry.
    labels: bool,
    /// Creates wait until then, or until all leftovers of an earlier process are deleted or stuck.
    hold_until: Option<Time>,
    /// All deletes but one wait until then: an Increase may follow the last Decrease.
    spare_until: Time,
    stopping: bool,
    /// When the shutdown began, and whether a poll that was sent after that has been answered: all in it is deleted, too.
    stopping_since: Time,
    swept: bool,
    /// Failures to create VMs for the standby pool.
    pool_backoff: Backoff,
    /// VCD rejected a forced delete because of a right: until then, VMs are stopped first.
    no_force_until: Time,
    /// What new VMs are created from.
    source: Source,
    /// When the group started, by VCD's clock.
    vcd_start: Option<UnixMs>,
    /// vApps that match the prefix and have another owner.
    foreign: HashSet<Href>,
    /// The ids of the most recently forgotten instances.
    past: VecDeque<Name>,
    wake: Option<Time>,
}

/// A repeated query to VCD.
#[derive(Default)]
struct Watch {
    on_wire: bool,
    last: Time,
    fails: u32,
    /// No query before this time, whatever the group waits for.
    not_before: Time,
}

impl Group {
    /// A group that starts with `first` (a poll with vApps), which shows the vApps of earlier processes. `seed` drives
    /// names and jitter.
    ///
    /// A found vApp is adopted, or it is a leftover. Until [`Group::knows_its_own`] is true, this is not decided, and Init
    /// must not answer: GitLab Runner treats an instance that it first sees later as a new one.
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
            flights: Vec::new(),
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
            probe_cursor: Key::MAX,
            pace: Pace::default(),
            progress: now,
            next_gc: now + GC_INTERVAL,
            adopt_until: Some(now + ADOPTION_TIMEOUT),
            labels: policy.labels == Labels::All,
            hold_until: None,
            spare_until: now,
            stopping: false,
            stopping_since: now,
            swept: false,
            pool_backoff: Backoff::default(),
            no_force_until: Time(0),
            source: first.source,
            vcd_start: first.now,
            foreign: HashSet::new(),
            past: VecDeque::new(),
            wake: None,
            policy,
        };
        group.adopt_first(first);
        group.advance();
        group
    }

    // Calls of the host.

    /// Increase: accepts up to `n` new instances, as many as `max_size` allows. Each gets its id at once. VMs of the
    /// standby pool are used first.
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

    /// Decrease: deletes the named instances, in any phase. Returns all names: those instances are deleted or will be.
    pub fn decrease(&mut self, now: Time, names: &[Name]) -> Vec<Name> {
        self.now = now;
        if self.slots.used_by(false) == 0 {
            self.spare_until = now + turn::DECREASE_PAUSE;
        }
        for name in names {
            match self.names.get(name).copied() {
                Some(key) => self.delete_for(key, Cause::Asked),
                // Deleted before the host noticed: this is the result that it wants.
                None => {
                    self.say_plain(log::Level::Debug, format!("GitLab Runner deletes {name}, which no longer exists"))
                }
            }
        }
        self.advance();
        names.to_vec()
    }

    /// Suspend: suspends the named instances if they run. Returns those that are or will be suspended, and for the others
    /// the reason. An instance that is already suspended is a success.
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

    /// Resume: resumes the named instances if they are suspended or being suspended. Returns the same as
    /// [`Group::suspend`]. An instance that already runs is a success.
    pub fn resume(&mut self, now: Time, names: &[Name]) -> Outcome {
        self.for_each_named(now, names, |i| match i.desired {
            Desired::Suspended => {
                i.wake_up();
                Ok(Some("GitLab Runner requested a resume"))
            }
            Desired::Running if i.vapp().is_some_and(|vapp| vapp.guest.has_run()) => Ok(None),
            _ => Err("resumed"),
        })
    }

    /// Applies `change` to each named instance and logs its text. Instances that cannot change are errors.
    #[inline(never)]
    fn for_each_named(
        &mut self,
        now: Time,
        names: &[Name],
        change: fn(&mut Instance) -> Result<Option<&'static str>, &'static str>,
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
                        if i.state() == State::Resuming {
                            i.renew(now);
                        }
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

    /// Update: the state of every id that the host knows.
    pub fn update(&self) -> impl Iterator<Item = (&Name, State)> {
        self.instances.values().filter(|i| i.is_reported()).map(|i| (&i.name, i.state()))
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

    /// Heartbeat: why the instance is unhealthy. An unknown id is no error.
    pub fn heartbeat(&mut self, now: Time, name: &str) -> Result<(), String> {
        let Some(instance) = self.named(name) else {
            self.say_plain(
                log::Level::Warn,
                format!("Heartbeat for {name}, which the plugin does not know: answered as healthy"),
            );
            return Ok(());
        };
        let vapp = instance.vapp();
        let unread = instance.attempts.look.has_failed();
        let why = match vapp.and_then(|vapp| vapp.unhealthy) {
            Some(unhealthy) => unhealthy.why,
            None if unread && vapp.is_some_and(Vapp::is_missing) => "VCD does not show it",
            None if instance.lease_ends(now) => "its lease in VCD ends soon",
            None if instance.desired != Desired::Running => instance.phase().name(),
            None if instance.locked_out => {
                "created with other credentials than the current ones (token, credentials_seed or username)"
            }
            None => "",
        };
        if !why.is_empty() {
            return Err(format!("instance {name}: {why}"));
        }
        let limit = self.policy.max_instance_age;
        if !limit.is_zero() && instance.age(now) >= limit {
            return Err(format!("instance {name} is older than max_instance_age ({} s)", limit.as_secs()));
        }
        Ok(())
    }

    /// Shutdown: starts nothing new and deletes everything, or with `on_shutdown = "keep"` everything that has not been
    /// running. The limit on deletes applies to requests on the wire only: VCD queues the tasks itself.
    pub fn shutdown(&mut self, now: Time) {
        self.now = now;
        let first = !std::mem::replace(&mut self.stopping, true);
        if first {
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
            // Undecided vApps follow when they are decided.
            let runs = i.has_run() && !i.desired.is_deleted();
            let kept = keep && (runs || i.stands_by() || i.origin == Origin::Found);
            if !kept {
                if first {
                    // There is no time for pauses.
                    (i.attempts.delete.next, i.attempts.look.next) = (now, now);
                }
                self.delete_for(key, Cause::Shutdown);
            }
        }
        self.advance();
    }

    /// True after [`Group::shutdown`] when nothing is left to do, according to one last poll.
    pub fn stopped(&self) -> bool {
        let kept = |i: &Instance| (i.has_run() || i.stands_by()) && !i.desired.is_deleted() && !i.on_wire();
        self.stopping && self.swept && self.instances.values().all(|i| i.ended.is_some() || kept(i))
    }

    /// Names of the instances that [`Group::shutdown`] still has to delete.
    pub fn left(&self) -> Vec<Name> {
        let left = self.instances.values().filter(|i| i.ended.is_none() && i.desired.is_deleted());
        left.map(|i| i.name.clone()).collect()
    }

    /// False while the group decides which vApps of an earlier process it adopts: at most for [`ADOPTION_TIMEOUT`].
    pub fn knows_its_own(&self) -> bool {
        self.adopt_until.is_none()
    }

    // Answers from outside.

    /// VCD's answer to the request with this `ticket`.
    pub fn answer(&mut self, now: Time, ticket: Ticket, answer: Answer) {
        self.now = now;
        match self.land(ticket) {
            Some(Purpose::Poll { sent, vapps }) => self.polled(sent, vapps, answer),
            Some(Purpose::PollSome { sent }) => self.some_polled(sent, answer),
            Some(Purpose::Tasks) => self.tasks_answered(answer),
            Some(Purpose::Label(key)) => self.label_answered(key, answer),
            Some(Purpose::Operation(key)) => self.operation_answered(key, answer),
            Some(Purpose::Question(key)) => self.question_answered(key, answer),
            Some(Purpose::Probe(..)) | None => debug_assert!(false, "an answer without a request"),
        }
        self.advance();
    }

    /// The result of the probe with this `ticket`.
    pub fn probed(&mut self, now: Time, ticket: Ticket, result: Result<(), String>) {
        self.now = now;
        if let Some(Purpose::Probe(key, address)) = self.land(ticket) {
            self.probe_answered(key, address, result);
        }
        self.advance();
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Time) {
        self.now = now;
        self.advance();
    }

    /// The next command.
    pub fn next_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// The latest time for a call of [`Group::tick`].
    pub fn wake_at(&self) -> Option<Time> {
        self.wake
    }

    // Helpers for all of the above.

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
            if !self.instances.values().any(|i| i.name == name) {
                return name;
            }
        }
    }
}
