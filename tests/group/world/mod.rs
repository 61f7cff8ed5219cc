//! Groups, the simulated VCD and their hosts, in virtual time and in one thread: no sockets, no sleeping, all
//! randomness from one seed. All invariants are checked after every event.
//!
//! This file advances the time, and starts and ends the plugins' processes. `acts` contains what happens to them,
//! `vcd` the answers of VCD, `audit` and `pace` the invariants.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

mod acts;
pub mod audit;
mod host;
pub mod pace;
pub mod plan;
mod vcd;

use audit::Audit;
use fleeting_plugin_vcd::cloud::{Answer, Reply, Request};
use fleeting_plugin_vcd::group::{Command, Group, Labels, Name, OnShutdown, Phase, Policy, State, Ticket, Time, View};
use host::Host;
use plan::{Dice, Fault, MINUTE, Plan, Quirk, Suspends};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;
use vcd::{Fate, MAX_LAG, Sending, Wire};
use vcd_sim::model::{self, Model, VappId};

pub const GROUP: &str = "ci";
pub const PREFIX: &str = "ci";

/// Maximum virtual time that the group may still wait after the last step: a hanging task is cancelled after 30 minutes.
const SETTLE: u64 = 40 * MINUTE;
/// A failed delete is repeated after at most an hour, plus or minus a quarter. Then it has to work.
const LONGEST_BACKOFF: u64 = 80 * MINUTE;
/// A vApp without a VM that no instance knows is seen once an hour.
const EMPTY: u64 = 65 * MINUTE;
/// Init answers at the latest this long after its start. If VCD is not available then, it fails somewhat later.
const ADOPTION: u64 = 20_000;
const ADOPTION_MARGIN: u64 = 6_000;
/// Maximum duration of a probe.
const PROBE_TIMEOUT: u64 = 5_000;
/// ready_timeout.
pub const READY: u64 = 10 * MINUTE;
/// Maximum number of events in one run. More means that the group never comes to rest.
const MAX_EVENTS: u64 = 400_000;

/// The result of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Score {
    pub events: u64,
    pub requests: u64,
    pub virtual_ms: u64,
    pub created: u64,
    /// The process died at the given point.
    pub crashes: u64,
    /// The time until everything came to rest at the end, if the run waited for that.
    pub settled_ms: Option<u64>,
}

impl Score {
    pub fn add(&mut self, other: &Score) {
        self.events += other.events;
        self.requests += other.requests;
        self.virtual_ms += other.virtual_ms;
        self.created += other.created;
        self.crashes += other.crashes;
        self.settled_ms = self.settled_ms.max(other.settled_ms);
    }
}

/// A violation: what, and when.
#[derive(Clone, Debug)]
pub struct Violation {
    pub at: u64,
    pub what: String,
}

impl Violation {
    /// Which invariant was broken.
    pub fn number(&self) -> &str {
        self.what.split(':').next().unwrap_or_default()
    }
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "at {} ms: {}", self.at, self.what)
    }
}

/// One process of one of the plugins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pub plugin: usize,
    pub life: u32,
}

enum Happening {
    /// A request reaches VCD.
    Arrive {
        from: Process,
        sending: Sending,
        fate: Fate,
    },
    /// `truth`: it shows the real state.
    Answer {
        to: Process,
        sending: Sending,
        answer: Answer,
        truth: bool,
    },
    /// A change is carried out although its request was given up long ago.
    Late {
        from: Process,
        request: Request,
    },
    Probe {
        to: Process,
        ticket: Ticket,
        address: IpAddr,
    },
    Wake {
        whom: Process,
    },
    /// A turn of the host.
    HostTurn {
        whom: Process,
    },
    Step(usize),
    /// The host starts the plugin. Init's poll is answered.
    Start(usize),
    /// The host's shutdown has waited long enough.
    Killed {
        whom: Process,
        down: u64,
    },
    /// The model has a due event.
    Model,
}

/// Where the process dies: at the n-th request, counted from 1 over all lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashAt {
    /// The request is never sent.
    BeforeRequest(u64),
    /// It is sent, unless others are before it, and reaches VCD. Nobody waits for its answer.
    AfterRequest(u64),
    /// VCD has carried it out. The answer is lost.
    BeforeAnswer(u64),
    /// The group has processed the answer. Its commands are lost.
    AfterAnswer(u64),
}

/// One plugin with all its processes.
pub struct Plugin {
    manager: String,
    pub group: Option<Group>,
    /// Counts its processes.
    life: u32,
    began: u64,
    /// Init has not answered yet.
    starting: bool,
    shutting_down: Option<u64>,
    wake_at: Option<u64>,
    wire: Wire,
    /// If the host behaves like fleeting. Otherwise the plan contains all calls.
    host: Option<Host>,
    pub audit: Audit,
}

pub struct World {
    pub now: u64,
    pub model: Model,
    who: model::UserId,
    vdc: model::VdcId,
    template: model::TemplateId,
    network: model::NetworkId,
    /// The source of new VMs.
    source: fleeting_plugin_vcd::cloud::Source,
    plan: Plan,
    /// By time and sequence.
    queue: BTreeMap<(u64, u64), Box<Happening>>,
    sequence: u64,
    dice: Dice,
    pub plugins: Vec<Plugin>,
    /// Faults with their end and percentage.
    faults: BTreeMap<Fault, (u64, u64)>,
    model_at: Option<u64>,
    pub score: Score,
    /// Where to die once, and the time until the restart.
    pub crash_at: Option<(CrashAt, u64)>,
    pub trace: bool,
    /// No more faults: everything has to come to rest.
    calm: bool,
}

impl World {
    pub fn new(plan: &Plan) -> World {
        let mut model = Model::standard(plan.seed);
        model.settings.allow_duplicate_names = plan.policy.duplicate_names;
        model.settings.task_kept = 6 * 60 * MINUTE;
        model.settings.jitter_percent = 10;
        model.settings.hardware_in_create = plan.policy.hardware;
        model.settings.force_needs_right = plan.policy.no_force;
        let who = model.user("ci").unwrap();
        if plan.policy.no_force
            && let Some(user) = model.users.get_mut(&who)
        {
            user.rights.retain(|right| *right != model::Right::Force);
        }
        for org in model.orgs.values_mut().filter(|_| plan.policy.lease > 0) {
            let lease = (0, plan.policy.lease * MINUTE / 1_000);
            let power_off = plan.policy.lease_powers_off;
            org.leases = model::LeaseRules { deployment_s: lease, storage_s: lease, power_off, keep_expired: false };
        }
        let vdc = *model.vdcs.keys().next().unwrap();
        let network = *model.networks.keys().next().unwrap();
        let template = *model.templates.iter().find(|(_, t)| &*t.name == "ubuntu-22.04").unwrap().0;
        if plan.steps.iter().any(|step| matches!(step.act, plan::Act::Fault(Fault::QueryStale, ..))) {
            model.keep_history(MAX_LAG);
        }
        let plugin = |n: usize| Plugin {
            manager: format!("runner-{}", n + 1),
            group: None,
            life: 0,
            began: 0,
            starting: true,
            shutting_down: None,
            wake_at: None,
            wire: Wire::default(),
            host: plan.policy.fleeting.map(|keeps| Host::new(plan.seed ^ 0xf1ee, keeps)),
            audit: Audit::new(plan.policy.interval * 1_000),
        };
        let mut world = World {
            now: 0,
            model,
            who,
            vdc,
            template,
            network,
            source: fleeting_plugin_vcd::cloud::Source(1),
            plan: plan.clone(),
            queue: BTreeMap::new(),
            sequence: 0,
            dice: Dice(plan.seed.wrapping_mul(0x2545_f491_4f6c_dd1d)),
            plugins: (0..plan.policy.managers).map(plugin).collect(),
            faults: BTreeMap::new(),
            model_at: None,
            score: Score::default(),
            crash_at: None,
            trace: false,
            calm: false,
        };
        for (index, step) in plan.steps.iter().enumerate() {
            world.at(step.at + 1_000, Happening::Step(index));
        }
        for n in 0..world.plugins.len() {
            world.at(0, Happening::Start(n));
        }
        world
    }

    /// Plays the plan, lets everything come to rest, and checks that it has.
    pub fn run(mut self) -> Result<Score, Violation> {
        match self.play() {
            Ok(()) => Ok(self.score),
            Err(what) => Err(Violation { at: self.now, what }),
        }
    }

    fn play(&mut self) -> Result<(), String> {
        self.play_steps()?;
        self.heal();
        // At the end the hosts shut down, at rest or in the middle of operations. Nothing may remain, or every instance
        // that ran. If a process dies during that, the next one has to clean up and to shut down.
        let mut hasty = self.dice.percent(50);
        loop {
            if !std::mem::take(&mut hasty) {
                self.settle()?;
            }
            self.await_all()?;
            let lives: Vec<u32> = self.plugins.iter().map(|plugin| plugin.life).collect();
            self.stop()?;
            if self.plugins.iter().zip(lives).all(|(plugin, life)| plugin.group.is_some() && plugin.life == life) {
                return self.audit_stopped();
            }
        }
    }

    /// Plays all steps of the plan.
    pub fn play_steps(&mut self) -> Result<(), String> {
        let end = self.plan.steps.iter().map(plan::Step::end).max().unwrap_or(0) + 2_000;
        self.play_until(end)
    }

    /// Ends all faults, except faults of single vApps if the plan keeps them.
    pub fn heal(&mut self) {
        self.calm = true;
        self.faults.clear();
        self.limit_vms(0);
        if self.plan.policy.mended {
            let ids: Vec<VappId> = self.model.vapps.keys().copied().collect();
            ids.into_iter().for_each(|id| self.model.admin_faults(id, model::Faults::default()));
        }
    }

    /// Waits until every plugin has a process.
    fn await_all(&mut self) -> Result<(), String> {
        while self.plugins.iter().any(|plugin| plugin.group.is_none()) {
            let next = self.now + 1_000;
            self.play_until(next)?;
        }
        Ok(())
    }

    /// Waits until everything has come to rest.
    fn settle(&mut self) -> Result<(), String> {
        let began = self.now;
        let deadline = self.now + self.patience();
        while self.now < deadline && !self.settled() {
            let next = self.now + 5_000;
            self.play_until(next)?;
        }
        self.score.settled_ms = self.score.settled_ms.max(Some(self.now - began));
        self.audit_settled()
    }

    /// Maximum time until everything comes to rest.
    fn patience(&self) -> u64 {
        let tuning = &self.plan.policy;
        let hung = self.model.vapps.values().filter(|vapp| vapp.faults.hangs).count() as u64;
        // A hanging operation keeps its slot until it is given up, in the worst case one after another.
        let hung = hung * (tuning.create_timeout + 13) * MINUTE;
        // One after another, each may take two minutes: in steps, after a failure.
        let queue = u64::from(tuning.max_size) * 2 * MINUTE / u64::from(tuning.max_creates.min(tuning.max_operations));
        let empty = if self.model.vapps.values().any(|vapp| vapp.vms.is_empty()) { EMPTY } else { 0 };
        // A lookup follows after several polls that do not show it.
        let polls = 30 * tuning.interval * 1_000;
        // A create that polls never show is given up late.
        let unlisted = self.model.vapps.values().any(|vapp| vapp.faults.unlisted);
        let unseen = if unlisted { 6 * tuning.create_timeout * MINUTE } else { 0 };
        self.longest_delete() + hung + queue + empty + polls + unseen
    }

    /// Maximum time until a delete works: only every second try may, and force is tried again an hour after it was forbidden.
    fn longest_delete(&self) -> u64 {
        SETTLE
            + match self.plan.policy.quirk {
                Quirk::ForceBreaks => 2 * LONGEST_BACKOFF,
                Quirk::StopBreaks => 2 * LONGEST_BACKOFF + 60 * MINUTE,
                _ => LONGEST_BACKOFF,
            }
    }

    /// An orderly shutdown of the hosts.
    fn stop(&mut self) -> Result<(), String> {
        for n in 0..self.plugins.len() {
            let (now, keep) = (self.now, self.plan.policy.keep);
            let plugin = &mut self.plugins[n];
            if let Some(group) = &mut plugin.group {
                group.shutdown(Time(now - plugin.began));
                plugin.audit.shutdown(keep, group);
                self.pump(n)?;
            }
        }
        let lives: Vec<u32> = self.plugins.iter().map(|plugin| plugin.life).collect();
        let end = self.now + self.longest_delete();
        while self.now < end && !self.stopped() {
            if self.plugins.iter().zip(&lives).any(|(p, life)| p.group.is_none() || p.life != *life) {
                break;
            }
            let next = self.now + 1_000;
            self.play_until(next)?;
        }
        Ok(())
    }

    pub fn play_until(&mut self, until: u64) -> Result<(), String> {
        loop {
            self.schedule();
            let Some(first) = self.queue.first_entry() else { break };
            let (at, _) = *first.key();
            if at > until {
                break;
            }
            let happening = *first.remove();
            self.now = self.now.max(at);
            self.model.advance(self.now);
            self.end_leases();
            self.score.events += 1;
            if self.score.events > MAX_EVENTS {
                return Err("the group never comes to rest".into());
            }
            self.happen(happening)?;
            for n in 0..self.plugins.len() {
                self.pump(n)?;
                self.check(n)?;
            }
        }
        self.now = until.max(self.now);
        self.model.advance(self.now);
        self.score.virtual_ms = self.now;
        Ok(())
    }

    /// VCD may stop or delete those whose lease has ended at any time, and nothing shows that before.
    fn end_leases(&mut self) {
        if self.plan.policy.lease == 0 {
            return;
        }
        let ended = |at: Option<u64>| at.is_some_and(|at| at <= self.now);
        for (id, _) in self.model.vapps.iter().filter(|(_, vapp)| ended(vapp.undeploy_at) || ended(vapp.delete_at)) {
            for plugin in &mut self.plugins {
                plugin.audit.touched(*id);
                plugin.audit.came_late(*id);
            }
        }
    }

    /// Queues the groups' and the model's next time.
    fn schedule(&mut self) {
        for n in 0..self.plugins.len() {
            let (now, plugin) = (self.now, &mut self.plugins[n]);
            let wake = plugin.group.as_ref().and_then(Group::wake_at).map(|wake| (wake.0 + plugin.began).max(now));
            if let Some(at) = wake
                && plugin.wake_at.is_none_or(|old| at < old)
            {
                plugin.wake_at = Some(at);
                let whom = Process { plugin: n, life: plugin.life };
                self.at(at, Happening::Wake { whom });
            }
        }
        if let Some(at) = self.model.next_due()
            && self.model_at.is_none_or(|old| at < old)
        {
            self.model_at = Some(at);
            self.at(at, Happening::Model);
        }
    }

    fn at(&mut self, at: u64, happening: Happening) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), Box::new(happening));
    }

    fn say(&self, text: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>10} {}", self.now, text());
        }
    }

    fn process(&self, n: usize) -> Process {
        Process { plugin: n, life: self.plugins[n].life }
    }

    fn lives(&self, process: Process) -> bool {
        let plugin = &self.plugins[process.plugin];
        plugin.life == process.life && plugin.group.is_some()
    }

    /// The group's time.
    pub fn time(&self, n: usize) -> Time {
        Time(self.now - self.plugins[n].began)
    }

    fn happen(&mut self, happening: Happening) -> Result<(), String> {
        match happening {
            // An event that was queued for another time is void.
            Happening::Model => self.model_at = self.model_at.filter(|at| *at > self.now),
            Happening::Wake { whom } => {
                let time = self.time(whom.plugin);
                let (now, plugin) = (self.now, &mut self.plugins[whom.plugin]);
                if whom.life == plugin.life && plugin.wake_at.is_some_and(|at| at <= now) {
                    plugin.wake_at = None;
                    if let Some(group) = &mut plugin.group {
                        group.tick(time);
                    }
                }
            }
            Happening::HostTurn { whom } => {
                if self.lives(whom) {
                    self.host_turn(whom.plugin)?;
                }
            }
            Happening::Step(index) => {
                let step = self.plan.steps[index];
                self.say(|| format!("== {:?}", step.act));
                self.act(step.to, step.act);
            }
            Happening::Start(n) => self.start(n),
            Happening::Killed { whom, down } => {
                if self.lives(whom) {
                    self.die(whom.plugin);
                    self.at(self.now + down, Happening::Start(whom.plugin));
                }
            }
            Happening::Late { from, request } => {
                self.say(|| format!("VCD late: {request:?}"));
                let (answer, _) = self.execute(from, &request, true)?;
                self.say(|| format!("VCD late: {answer:?}"));
            }
            Happening::Arrive { from, sending, fate } => self.arrive(from, sending, fate)?,
            Happening::Answer { to, sending, answer, truth } => self.answer(to, &sending, answer, truth)?,
            Happening::Probe { to, ticket, address } => {
                if self.lives(to) {
                    let answers = match address {
                        IpAddr::V4(address) => self.model.guests().any(|(guest, _)| guest == address),
                        IpAddr::V6(_) => false,
                    };
                    let result = if answers { Ok(()) } else { Err("connection refused".to_string()) };
                    let time = self.time(to.plugin);
                    if let Some(group) = &mut self.plugins[to.plugin].group {
                        group.probed(time, ticket, result);
                    }
                }
            }
        }
        Ok(())
    }

    fn policy(&self, n: usize) -> Policy {
        let tuning = self.plan.policy;
        Policy {
            manager: self.plugins[n].manager.clone(),
            group: GROUP.into(),
            prefix: PREFIX.into(),
            max_size: tuning.max_size,
            max_creates: tuning.max_creates,
            max_deletes: tuning.max_deletes,
            max_operations: tuning.max_operations,
            create_timeout: Duration::from_secs(tuning.create_timeout * 60),
            ready_timeout: Duration::from_millis(READY),
            startup_cleanup_timeout: Duration::from_secs(30 * 60),
            reconcile_interval: Duration::from_secs(tuning.interval),
            max_instance_age: Duration::from_secs(tuning.max_age * 60),
            suspended_max_age: Duration::from_secs(tuning.max_age * 180),
            suspend_resume: self.may_suspend(n),
            standby_count: tuning.standby,
            dhcp: tuning.dhcp,
            standby_max_age: Duration::from_secs(tuning.max_age * 120),
            on_shutdown: if tuning.keep { OnShutdown::Keep } else { OnShutdown::Delete },
            credentials: String::new(),
            labels: Labels::All,
        }
    }

    /// The current process, or the next one, may suspend.
    fn may_suspend(&self, n: usize) -> bool {
        match self.plan.policy.suspends {
            Suspends::Never => false,
            Suspends::Always => true,
            Suspends::AtFirst => self.plugins[n].life <= 1,
        }
    }

    /// A new process: Init polls once, and fails if the poll fails. Then the host starts it again.
    fn start(&mut self, n: usize) {
        if self.plugins[n].group.is_some() {
            return;
        }
        let poll = Request::Poll { vapps: true };
        let answer = match self.fate(&poll) {
            Fate::Normal => self.execute(self.process(n), &poll, false).ok(),
            _ => None,
        };
        let Some((Ok(Reply::Poll(first)), truth)) = answer else {
            return self.at(self.now + 10_000, Happening::Start(n));
        };
        let now = self.now;
        let plugin = &mut self.plugins[n];
        plugin.life += 1;
        plugin.began = now;
        plugin.wake_at = None;
        plugin.starting = true;
        plugin.shutting_down = None;
        plugin.wire = Wire::default();
        let life = plugin.life;
        self.say(|| format!("== life {life} of plugin {n} begins"));
        let (policy, suspends) = (self.policy(n), self.may_suspend(n));
        let plugin = &mut self.plugins[n];
        plugin.audit.start(life, now, suspends);
        plugin.audit.clock_behind = self.plan.policy.skew < 0;
        if let Some(host) = &mut plugin.host {
            host.restart();
        }
        plugin.audit.pace.polled(now, true, truth);
        let seed = self.plan.seed.wrapping_add(u64::from(life) << 40).wrapping_add((n as u64) << 56);
        plugin.group = Some(Group::new(policy, seed, Time(0), &first));
    }

    fn die(&mut self, n: usize) {
        self.say(|| format!("== life {} of plugin {n} ends", self.plugins[n].life));
        let plugin = &mut self.plugins[n];
        plugin.group = None;
        plugin.shutting_down = None;
        plugin.audit.die();
    }

    /// Dies if this is the point to die at.
    fn crash_here(&mut self, n: usize, point: CrashAt) -> bool {
        let Some((_, down)) = self.crash_at.filter(|(at, _)| *at == point && self.plugins[n].group.is_some()) else {
            return false;
        };
        self.say(|| format!("== {point:?}"));
        self.crash_at = None;
        self.score.crashes += 1;
        self.die(n);
        self.at(self.now + down, Happening::Start(n));
        true
    }

    /// Runs the group's commands.
    fn pump(&mut self, n: usize) -> Result<(), String> {
        while let Some(command) = self.plugins[n].group.as_mut().and_then(Group::next_command) {
            match command {
                Command::Say(event) => {
                    self.say(|| format!("{:5} {} {}", event.level, event.name.as_deref().unwrap_or("-"), event.text))
                }
                Command::Probe { ticket, address } => {
                    let silent = self.model.vms.values().any(|vm| {
                        vm.guest_fault == Some(model::GuestFault::NoSsh)
                            && vm.address().map(IpAddr::V4) == Some(address)
                    });
                    // A port that drops packets is known as silent only after the probe's whole time.
                    let at = self.now + if silent { PROBE_TIMEOUT } else { self.dice.between(1, 300) };
                    let to = self.process(n);
                    self.at(at, Happening::Probe { to, ticket, address });
                }
                Command::Ask { ticket, request } => {
                    self.score.requests += 1;
                    let number = self.score.requests;
                    if self.crash_here(n, CrashAt::BeforeRequest(number)) {
                        return Ok(());
                    }
                    let plugin = &self.plugins[n];
                    if request.changes() && plugin.group.as_ref().is_some_and(|group| !group.knows_its_own()) {
                        return Err(format!("13: {} before Init has answered", request.operation()));
                    }
                    self.say(|| format!("send {ticket}: {request:?}"));
                    self.plugins[n].audit.sent(ticket, &request, &self.model, &self.plan.policy, self.now)?;
                    self.send(n, Sending { number, ticket, request });
                    if self.crash_here(n, CrashAt::AfterRequest(number)) {
                        return Ok(());
                    }
                }
            }
        }
        let plugin = &mut self.plugins[n];
        if plugin.shutting_down.is_some() && plugin.group.as_ref().is_some_and(Group::stopped) {
            let down = plugin.shutting_down.take().unwrap_or_default();
            self.die(n);
            self.at(self.now + down, Happening::Start(n));
        }
        Ok(())
    }

    // Checks.

    fn check(&mut self, n: usize) -> Result<(), String> {
        let (now, plugin) = (self.now, &mut self.plugins[n]);
        let Some(group) = &plugin.group else { return Ok(()) };
        if plugin.starting {
            // The host sees nothing before Init has answered: when all vApps are decided, or after 20 s.
            if !group.knows_its_own() {
                if now >= plugin.began + ADOPTION + ADOPTION_MARGIN {
                    self.die(n);
                    self.at(now + 10_000, Happening::Start(n));
                }
                return Ok(());
            }
            let known = now < plugin.began + ADOPTION;
            plugin.starting = false;
            plugin.audit.first_update(group, &self.model, known, (Time(now - plugin.began), now))?;
            self.at(now, Happening::HostTurn { whom: self.process(n) });
        }
        let plugin = &mut self.plugins[n];
        let Some(group) = &plugin.group else { return Ok(()) };
        if self.plan.policy.standby > 0 {
            plugin.audit.check_pool(group, &self.model, Time(now - plugin.began))?;
        }
        plugin.audit.check(group, &self.model, Time(now - plugin.began), now)
    }

    /// Every instance that the host knows is running or has ended, and VCD contains exactly those, except stuck ones.
    fn settled(&self) -> bool {
        let rests = |plugin: &Plugin| {
            let Some(group) = plugin.group.as_ref().filter(|_| plugin.shutting_down.is_none()) else { return false };
            // Stuck instances count towards max_size: the host may not get its desired number.
            if !self.host_rests(plugin) {
                return false;
            }
            let stuck = self.reported_stuck(plugin);
            let mut all = group.update();
            self.pool_rests(plugin, &stuck)
                && all.all(|(name, state)| self.instance_rests(plugin, &stuck, name, state))
                && plugin.audit.orphans(group, &self.model).is_empty()
        };
        self.plugins.iter().all(rests)
    }

    fn instance_rests(&self, plugin: &Plugin, stuck: &[View], name: &Name, state: State) -> bool {
        // Nothing is suspended or resumed during shutdown.
        let stays = plugin.audit.shutdown && matches!(state, State::Suspending | State::Resuming);
        let audit = &plugin.audit;
        let reported = || stuck.iter().any(|view| view.name == *name);
        match audit.is_stuck(name, &self.model) {
            true => rests(state) || stays || reported(),
            false if state == State::Running && !audit.is_busy(name, &self.model) => !reported(),
            false => rests(state) || stays,
        }
    }

    /// What the group says is stuck.
    fn reported_stuck(&self, plugin: &Plugin) -> Vec<View> {
        let views = plugin.group.as_ref().map(|group| group.views(Time(self.now - plugin.began))).unwrap_or_default();
        views.into_iter().filter(|view| view.stuck.is_some()).collect()
    }

    /// The standby pool is full.
    fn pool_rests(&self, plugin: &Plugin, stuck: &[View]) -> bool {
        let Some(group) = &plugin.group else { return false };
        let time = Time(self.now - plugin.began);
        let rest = group.glances(time).iter().filter(|glance| glance.phase == Phase::Standby).count();
        // A stuck VM of the pool is counted in it.
        let stuck = stuck.iter().filter(|view| !view.reported).count();
        rest + stuck >= self.plan.policy.standby as usize || plugin.audit.shutdown
    }

    fn host_rests(&self, plugin: &Plugin) -> bool {
        let audit = &plugin.audit;
        plugin.host.as_ref().is_none_or(|host| host.rests() || audit.shutdown || audit.any_stuck(&self.model))
    }

    fn audit_settled(&self) -> Result<(), String> {
        // Instances without faults are checked separately.
        let stuck = self.model.vapps.values().any(audit::is_faulty);
        let number = if stuck { 9 } else { 5 };
        for plugin in &self.plugins {
            let Some(group) = &plugin.group else { return Err("the plugin does not start again".into()) };
            let reported = self.reported_stuck(plugin);
            for (name, state) in group.update() {
                if !self.instance_rests(plugin, &reported, name, state) {
                    return Err(format!("{number}: {name} is still {state:?} long after the last fault"));
                }
            }
            if !self.host_rests(plugin) {
                return Err(format!(
                    "{number}: the host does not have the desired number of instances long after the last fault"
                ));
            }
            if !self.pool_rests(plugin, &reported) {
                return Err(format!("{number}: the standby pool is not full long after the last fault"));
            }
            if let Some(orphan) = plugin.audit.orphans(group, &self.model).first() {
                let number = if stuck { 9 } else { 2 };
                return Err(format!("{number}: the owned vApp {orphan} remains, and belongs to no instance"));
            }
        }
        Ok(())
    }

    /// All plugins have stopped, or wait only for stuck instances.
    fn stopped(&self) -> bool {
        let keep = self.plan.policy.keep;
        self.plugins.iter().all(|plugin| {
            let Some(group) = &plugin.group else { return false };
            group.stopped() || (self.any_stuck() && plugin.audit.left(&self.model, keep.then_some(group)).is_empty())
        })
    }

    /// A vApp without an owner tag can belong to the other plugin, too.
    fn any_stuck(&self) -> bool {
        self.plugins.iter().any(|plugin| plugin.audit.any_stuck(&self.model))
    }

    fn audit_stopped(&mut self) -> Result<(), String> {
        let keep = self.plan.policy.keep;
        for (n, plugin) in self.plugins.iter().enumerate() {
            let Some(group) = &plugin.group else { continue };
            let left = plugin.audit.left(&self.model, keep.then_some(group));
            if let Some(left) = left.first() {
                return Err(format!("8: vApp {left} remains after shutdown"));
            }
            if !group.stopped() && !self.any_stuck() {
                return Err(format!("8: shutdown does not end: {:?}", group.views(self.time(n))));
            }
        }
        Ok(())
    }
}

/// No more change is expected in this state.
fn rests(state: State) -> bool {
    matches!(state, State::Running | State::Suspended | State::Deleted | State::Timeout)
}
