//! A group, the simulated VCD and a host, in virtual time and in one thread: no sockets, no sleeping, all chance from one
//! seed. After every event it is checked that what may never happen has not happened.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

pub mod audit;
pub mod plan;

use audit::Audit;
use fleeting_plugin_vcd::cloud::{self, Answer, Customization, ErrorKind, Href, Reply, Request, VcdError};
use fleeting_plugin_vcd::group::{Command, Group, Name, OnShutdown, Policy, State, Ticket, Time};
use plan::{Act, Admin, Dice, Fault, Plan};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use vcd_sim::model::{self, HardwareInCreate, Id, Model, QueryFault, Refusal, TaskId, VappId, VmId};

pub const MANAGER: &str = "runner-1";
pub const GROUP: &str = "ci";
pub const PREFIX: &str = "ci";

/// What may be awaited after the last step, in virtual time. Longest: a hung task is cancelled after 30 minutes, and what
/// it held is looked at 30 minutes later; then creates that were queued behind it have their time.
const SETTLE: u64 = 6 * 3600 * 1000;
/// Events of one run; more is a group that never rests.
const MAX_EVENTS: u64 = 400_000;

/// What a run came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Score {
    pub events: u64,
    pub requests: u64,
    pub virtual_ms: u64,
    pub created: u64,
    /// The process died at the point that was asked for.
    pub crashes: u64,
}

impl Score {
    pub fn add(&mut self, other: &Score) {
        self.events += other.events;
        self.requests += other.requests;
        self.virtual_ms += other.virtual_ms;
        self.created += other.created;
        self.crashes += other.crashes;
    }
}

/// A run that went wrong: what, and when.
#[derive(Clone, Debug)]
pub struct Violation {
    pub at: u64,
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "at {} ms: {}", self.at, self.what)
    }
}

enum Happening {
    /// A request reaches VCD. `number`: which one it is.
    Arrive {
        life: u32,
        number: u64,
        ticket: Ticket,
        request: Request,
        fate: Fate,
    },
    Answer {
        life: u32,
        number: u64,
        ticket: Ticket,
        answer: Answer,
    },
    /// A change whose answer was given up long ago is carried out after all.
    Late {
        life: u32,
        request: Request,
    },
    Probe {
        life: u32,
        ticket: Ticket,
        address: IpAddr,
    },
    Wake {
        life: u32,
    },
    Step(usize),
    /// The host starts the plugin; Init's poll is answered.
    Start,
    /// The host's shutdown has waited long enough.
    Killed {
        life: u32,
        down: u64,
    },
    /// The model has something to do.
    Model,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Normal,
    /// Nothing is done, and VCD says why.
    Refused(ErrorKind),
    LostBefore,
    LostAfter,
    LostLate(u64),
}

/// Where the process is to die: at the n-th request, counted from 1 over all lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashAt {
    /// The group wants it sent, and it never leaves.
    BeforeRequest(u64),
    /// It has left, and reaches VCD though nobody waits for its answer.
    AfterRequest(u64),
    /// VCD has done what it asks for; the answer goes nowhere.
    BeforeAnswer(u64),
    /// The group has taken the answer in; nothing that follows from it leaves.
    AfterAnswer(u64),
}

pub struct World {
    now: u64,
    pub model: Model,
    who: model::UserId,
    vdc: model::VdcId,
    template: model::TemplateId,
    network: model::NetworkId,
    plan: Plan,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    sequence: u64,
    dice: Dice,
    pub group: Option<Group>,
    /// Counts the plugin's processes.
    life: u32,
    life_began: u64,
    starting: bool,
    shutting_down: Option<u64>,
    /// Faults and until when, with percent.
    faults: BTreeMap<Fault, (u64, u64)>,
    wake_at: Option<u64>,
    model_at: Option<u64>,
    pub audit: Audit,
    pub score: Score,
    /// Where to die once, and how long the process stays away.
    pub crash_at: Option<(CrashAt, u64)>,
    pub trace: bool,
    /// No more faults: everything has to settle.
    calm: bool,
}

impl World {
    pub fn new(plan: &Plan) -> World {
        let mut model = Model::standard(plan.seed);
        model.settings.allow_duplicate_names = plan.policy.duplicate_names;
        model.settings.task_kept = 3_600_000;
        model.settings.jitter_percent = 10;
        model.settings.hardware_in_create = plan.policy.hardware;
        model.settings.force_needs_right = plan.policy.no_force;
        let who = model.user("ci").unwrap();
        if plan.policy.no_force
            && let Some(user) = model.users.get_mut(&who)
        {
            user.rights.retain(|right| *right != model::Right::Force);
        }
        let vdc = *model.vdcs.keys().next().unwrap();
        let network = *model.networks.keys().next().unwrap();
        let template = *model.templates.iter().find(|(_, t)| &*t.name == "ubuntu-22.04").unwrap().0;
        if plan.steps.iter().any(|step| matches!(step.act, Act::Fault(Fault::QueryStale, ..))) {
            model.keep_history(MAX_LAG);
        }
        let mut world = World {
            now: 0,
            model,
            who,
            vdc,
            template,
            network,
            plan: plan.clone(),
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            sequence: 0,
            dice: Dice(plan.seed.wrapping_mul(0x2545_f491_4f6c_dd1d)),
            group: None,
            life: 0,
            life_began: 0,
            starting: true,
            shutting_down: None,
            faults: BTreeMap::new(),
            wake_at: None,
            model_at: None,
            audit: Audit::default(),
            score: Score::default(),
            crash_at: None,
            trace: false,
            calm: false,
        };
        for (index, step) in plan.steps.iter().enumerate() {
            world.at(step.at + 1_000, Happening::Step(index));
        }
        world.at(0, Happening::Start);
        world
    }

    /// Plays the plan, lets everything settle, and checks that it has.
    pub fn run(mut self) -> Result<Score, Violation> {
        let result = self.play();
        match result {
            Ok(()) => Ok(self.score),
            Err(what) => Err(Violation { at: self.now, what }),
        }
    }

    fn play(&mut self) -> Result<(), String> {
        let end = self.plan.steps.iter().map(|step| step.at).max().unwrap_or(0) + 2_000;
        self.play_until(end)?;
        self.calm = true;
        self.faults.clear();
        // In the end the host goes, when all has settled or in the middle of things; nothing may be left, or everything that
        // ran. If the process dies at that, the next one has to clear up and to go.
        let mut hasty = self.dice.percent(50);
        loop {
            if !std::mem::take(&mut hasty) {
                self.settle()?;
            }
            let life = self.life;
            self.stop()?;
            if self.group.is_some() && self.life == life {
                return self.audit_stopped();
            }
        }
    }

    /// Waits until everything has come to rest.
    fn settle(&mut self) -> Result<(), String> {
        let deadline = self.now + SETTLE;
        while self.now < deadline && !self.settled() {
            let next = self.now + 5_000;
            self.play_until(next)?;
        }
        self.audit_settled()
    }

    /// The host's shutdown, without haste.
    fn stop(&mut self) -> Result<(), String> {
        if let Some(group) = &mut self.group {
            group.shutdown(Time(self.now - self.life_began));
            self.audit.shutdown(self.plan.policy.keep, group);
            self.pump()?;
        }
        let (life, end) = (self.life, self.now + 3_600_000);
        let goes_on = |group: &Group| !group.stopped();
        while self.now < end && self.life == life && self.group.as_ref().is_some_and(goes_on) {
            let next = self.now + 1_000;
            self.play_until(next)?;
        }
        Ok(())
    }

    pub fn play_until(&mut self, until: u64) -> Result<(), String> {
        loop {
            self.schedule();
            let Some(&Reverse((at, sequence))) = self.queue.peek() else { break };
            if at > until {
                break;
            }
            self.queue.pop();
            let Some(happening) = self.happenings.remove(&sequence) else { continue };
            self.now = self.now.max(at);
            self.model.advance(self.now);
            self.score.events += 1;
            if self.score.events > MAX_EVENTS {
                return Err("the group never rests".into());
            }
            self.happen(happening)?;
            self.pump()?;
            self.check()?;
        }
        self.now = until.max(self.now);
        self.model.advance(self.now);
        self.score.virtual_ms = self.now;
        Ok(())
    }

    /// Queues the group's and the model's next time.
    fn schedule(&mut self) {
        if let Some(group) = &self.group {
            let wake = group.wake_at().map(|wake| (wake.0 + self.life_began).max(self.now));
            if let Some(at) = wake
                && self.wake_at.is_none_or(|old| at < old)
            {
                self.wake_at = Some(at);
                self.at(at, Happening::Wake { life: self.life });
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
        self.queue.push(Reverse((at, self.sequence)));
        self.happenings.insert(self.sequence, happening);
    }

    fn say(&self, text: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>10} {}", self.now, text());
        }
    }

    /// The group's time.
    pub fn now(&self) -> Time {
        Time(self.now - self.life_began)
    }

    fn happen(&mut self, happening: Happening) -> Result<(), String> {
        match happening {
            // One that was queued for another time is void.
            Happening::Model => self.model_at = self.model_at.filter(|at| *at > self.now),
            Happening::Wake { life } => {
                if life == self.life && self.wake_at.is_some_and(|at| at <= self.now) {
                    self.wake_at = None;
                    let time = self.now();
                    if let Some(group) = &mut self.group {
                        group.tick(time);
                    }
                }
            }
            Happening::Step(index) => {
                let act = self.plan.steps[index].act;
                self.say(|| format!("== {act:?}"));
                self.act(act);
            }
            Happening::Start => self.start(),
            Happening::Killed { life, down } => {
                if life == self.life {
                    self.die();
                    self.at(self.now + down, Happening::Start);
                }
            }
            Happening::Late { life, request } => {
                self.say(|| format!("VCD late: {request:?}"));
                let answer = self.execute(life, &request, true)?;
                self.say(|| format!("VCD late: {answer:?}"));
            }
            Happening::Arrive { life, number, ticket, request, fate } => {
                self.arrive(life, number, ticket, &request, fate)?
            }
            Happening::Answer { life, number, ticket, answer } => {
                if life == self.life {
                    self.say(|| format!("answer {ticket}: {}", brief(&answer)));
                    let time = self.now();
                    self.audit.answered(ticket);
                    if let Some(group) = &mut self.group {
                        group.answer(time, ticket, answer);
                    }
                    self.crash_here(CrashAt::AfterAnswer(number));
                }
            }
            Happening::Probe { life, ticket, address } => {
                if life == self.life {
                    let answers = match address {
                        IpAddr::V4(address) => self.model.guests().any(|(guest, _)| guest == address),
                        IpAddr::V6(_) => false,
                    };
                    let result = if answers { Ok(()) } else { Err("connection refused".to_string()) };
                    let time = self.now();
                    if let Some(group) = &mut self.group {
                        group.probed(time, ticket, result);
                    }
                }
            }
        }
        Ok(())
    }

    fn policy(&self) -> Policy {
        let tuning = self.plan.policy;
        Policy {
            manager: MANAGER.into(),
            group: GROUP.into(),
            prefix: PREFIX.into(),
            max_size: tuning.max_size,
            max_creates: tuning.max_creates,
            max_deletes: tuning.max_deletes,
            max_operations: tuning.max_operations,
            create_timeout: Duration::from_secs(tuning.create_timeout * 60),
            ready_timeout: Duration::from_secs(10 * 60),
            startup_cleanup_timeout: Duration::from_secs(30 * 60),
            reconcile_interval: Duration::from_secs(10),
            max_instance_age: Duration::from_secs(tuning.max_age * 60),
            suspended_max_age: Duration::from_secs(tuning.max_age * 180),
            on_shutdown: if tuning.keep { OnShutdown::Keep } else { OnShutdown::Delete },
            credentials: String::new(),
        }
    }

    /// A new process: Init polls once, and fails with the poll; the host tries again.
    fn start(&mut self) {
        if self.group.is_some() {
            return;
        }
        let poll = Request::Poll { vapps: true };
        let answer = match self.fate(&poll) {
            Fate::Normal => self.execute(self.life, &poll, false),
            _ => Ok(Err(error(ErrorKind::Unavailable, "poll"))),
        };
        let Ok(Ok(Reply::Poll(first))) = answer else {
            return self.at(self.now + 10_000, Happening::Start);
        };
        self.life += 1;
        self.life_began = self.now;
        self.wake_at = None;
        self.starting = true;
        self.shutting_down = None;
        self.say(|| format!("== life {} begins", self.life));
        self.audit.start(self.life);
        let seed = self.plan.seed.wrapping_add(u64::from(self.life) << 40);
        self.group = Some(Group::new(self.policy(), seed, Time(0), &first));
    }

    fn die(&mut self) {
        self.say(|| format!("== life {} ends", self.life));
        self.group = None;
        self.shutting_down = None;
        self.audit.die();
    }

    /// Dies if this is the point to die at.
    fn crash_here(&mut self, point: CrashAt) -> bool {
        let Some((_, down)) = self.crash_at.filter(|(at, _)| *at == point && self.group.is_some()) else {
            return false;
        };
        self.say(|| format!("== {point:?}"));
        self.crash_at = None;
        self.score.crashes += 1;
        self.die();
        self.at(self.now + down, Happening::Start);
        true
    }

    fn act(&mut self, act: Act) {
        let time = self.now();
        match act {
            Act::Fault(fault, length, percent) => {
                self.faults.insert(fault, (self.now + length, percent));
            }
            Act::Admin(admin, n) => self.admin(admin, n),
            Act::Crash(down) => {
                if self.group.is_some() {
                    self.die();
                    self.at(self.now + down, Happening::Start);
                }
            }
            Act::Restart(down) => {
                if let Some(group) = &mut self.group {
                    group.shutdown(time);
                    self.audit.shutdown(self.plan.policy.keep, group);
                    self.shutting_down = Some(down);
                    self.at(self.now + 30_000, Happening::Killed { life: self.life, down });
                }
            }
            Act::Increase(_)
            | Act::Decrease(_)
            | Act::DecreaseAll
            | Act::Suspend(_)
            | Act::SuspendAll
            | Act::Resume(_)
            | Act::Heartbeat(_) => {
                let Some(group) = self.group.as_mut().filter(|_| self.shutting_down.is_none()) else { return };
                let ids: Vec<Name> = group.update().map(|(name, _)| name.clone()).collect();
                let nth = |n: u64| ids.get((n % ids.len().max(1) as u64) as usize).cloned();
                match act {
                    Act::Increase(n) => {
                        let before: BTreeSet<Name> = ids.iter().cloned().collect();
                        let accepted = group.increase(time, n);
                        self.audit.increased(accepted, &before, group);
                        self.score.created += u64::from(accepted);
                    }
                    Act::Decrease(n) => {
                        if let Some(id) = nth(n) {
                            self.audit.asked(&id);
                            let done = group.decrease(time, std::slice::from_ref(&id));
                            self.audit.decreased(&[id], &done);
                        }
                    }
                    Act::DecreaseAll => {
                        ids.iter().for_each(|id| self.audit.asked(id));
                        let done = group.decrease(time, &ids);
                        self.audit.decreased(&ids, &done);
                    }
                    Act::Suspend(_) | Act::SuspendAll => {
                        let chosen: Vec<Name> = match act {
                            Act::Suspend(n) => nth(n).into_iter().collect(),
                            _ => ids,
                        };
                        let before: BTreeMap<Name, State> = group.update().map(|(name, s)| (name.clone(), s)).collect();
                        let done = group.suspend(time, &chosen).succeeded;
                        self.audit.suspended(&chosen, &done, &before);
                    }
                    Act::Resume(n) => {
                        if let Some(id) = nth(n) {
                            let state = group.update().find(|(name, _)| **name == id).map(|(_, state)| state);
                            let done = group.resume(time, std::slice::from_ref(&id)).succeeded;
                            self.audit.resumed(&id, !done.is_empty(), state);
                        }
                    }
                    _ => {
                        if let Act::Heartbeat(n) = act
                            && let Some(id) = nth(n)
                        {
                            let healthy = group.heartbeat(time, &id).is_ok();
                            let state = group.update().find(|(name, _)| **name == id).map(|(_, state)| state);
                            self.audit.heartbeat(&id, healthy, state);
                        }
                    }
                }
            }
        }
    }

    fn admin(&mut self, admin: Admin, n: u64) {
        let ours: Vec<VappId> =
            self.audit.ours.keys().copied().filter(|id| self.model.vapps.contains_key(id)).collect();
        let one = ours.get((n % ours.len().max(1) as u64) as usize).copied();
        let name = format!("{PREFIX}-{:08}", n);
        match (admin, one) {
            (Admin::Foreign, _) => {
                let made = self.model.admin_foreign_vm(self.vdc, &name, "somebody's", self.template, self.network);
                self.audit.foreign.extend(made);
            }
            (Admin::OtherManager, _) => {
                let text = format!("fleeting-plugin-vcd/1 manager=runner-2 group={GROUP} id={name}");
                let made = self.model.admin_foreign_vm(self.vdc, &name, &text, self.template, self.network);
                self.audit.foreign.extend(made);
            }
            (_, None) => {}
            (Admin::Copy, Some(id)) => {
                let text = self.model.vapps[&id].description.clone();
                let made = self.model.admin_foreign_vm(self.vdc, &name, &text, self.template, self.network);
                self.audit.foreign.extend(made);
            }
            (Admin::Delete, Some(id)) => {
                self.audit.touched(id);
                self.model.admin_delete_vapp(id);
            }
            (Admin::PowerOff, Some(id)) => {
                self.audit.touched(id);
                self.model.admin_power(id, model::Power::Off);
            }
            (Admin::Suspend, Some(id)) => {
                self.audit.touched(id);
                self.model.admin_power(id, model::Power::Suspended);
            }
            (Admin::Rename, Some(id)) => {
                self.audit.touched(id);
                self.audit.renamed.insert(id);
                self.model.admin_rename_vapp(id, &format!("kept-{n}"));
            }
        }
    }

    /// Runs the group's commands.
    fn pump(&mut self) -> Result<(), String> {
        while let Some(command) = self.group.as_mut().and_then(Group::next_command) {
            match command {
                Command::Say(event) => {
                    self.say(|| format!("{:5} {} {}", event.level, event.name.as_deref().unwrap_or("-"), event.text))
                }
                Command::Probe { ticket, address } => {
                    let at = self.now + self.dice.between(1, 300);
                    self.at(at, Happening::Probe { life: self.life, ticket, address });
                }
                Command::Ask { ticket, request } => {
                    self.score.requests += 1;
                    let number = self.score.requests;
                    if self.crash_here(CrashAt::BeforeRequest(number)) {
                        return Ok(());
                    }
                    let fate = self.fate(&request);
                    self.say(|| format!("ask {ticket}: {request:?}"));
                    self.audit.sent(ticket, &request, &self.model, &self.plan.policy)?;
                    let at = self.now + self.delay();
                    self.at(at, Happening::Arrive { life: self.life, number, ticket, request, fate });
                    if self.crash_here(CrashAt::AfterRequest(number)) {
                        return Ok(());
                    }
                }
            }
        }
        if self.shutting_down.is_some() && self.group.as_ref().is_some_and(Group::stopped) {
            let down = self.shutting_down.take().unwrap_or_default();
            self.audit.stopped(self.plan.policy.keep);
            self.die();
            self.at(self.now + down, Happening::Start);
        }
        Ok(())
    }

    fn delay(&mut self) -> u64 {
        if self.has(Fault::Slow) { self.dice.between(1_000, 20_000) } else { self.dice.between(20, 200) }
    }

    /// The fault is on now, and strikes.
    fn has(&mut self, fault: Fault) -> bool {
        match self.faults.get(&fault) {
            Some(&(until, percent)) => self.now < until && self.dice.percent(percent),
            None => false,
        }
    }

    fn fate(&mut self, request: &Request) -> Fate {
        if self.calm {
            return Fate::Normal;
        }
        if self.has(Fault::Unreachable) {
            return Fate::Refused(ErrorKind::Unavailable);
        }
        if self.has(Fault::Expired) {
            return Fate::Refused(ErrorKind::Auth);
        }
        if !request.changes() {
            return if self.has(Fault::ReadFails) { Fate::Refused(ErrorKind::Protocol) } else { Fate::Normal };
        }
        let refusals = [
            (Fault::Limit, ErrorKind::Limit),
            (Fault::Busy, ErrorKind::Busy),
            (Fault::Quota, ErrorKind::Quota),
            (Fault::Forbidden, ErrorKind::Forbidden),
        ];
        for (fault, kind) in refusals {
            if self.has(fault) {
                return Fate::Refused(kind);
            }
        }
        match () {
            _ if self.has(Fault::LostBefore) => Fate::LostBefore,
            _ if self.has(Fault::LostAfter) => Fate::LostAfter,
            _ if self.has(Fault::LostLate) => Fate::LostLate(self.dice.between(100, MAX_LATE)),
            _ => Fate::Normal,
        }
    }

    fn arrive(&mut self, life: u32, number: u64, ticket: Ticket, request: &Request, fate: Fate) -> Result<(), String> {
        // What the process had sent reaches VCD even if the process is gone by now.
        let what = request.operation();
        let answer = match fate {
            Fate::Normal => self.execute(life, request, false)?,
            Fate::Refused(kind) => Err(error(kind, what)),
            Fate::LostBefore => Err(error(ErrorKind::Ambiguous, what)),
            Fate::LostAfter => {
                self.execute(life, request, false)?.ok();
                Err(error(ErrorKind::Ambiguous, what))
            }
            Fate::LostLate(after) => {
                let at = self.now + after;
                self.at(at, Happening::Late { life, request: request.clone() });
                Err(error(ErrorKind::Ambiguous, what))
            }
        };
        if life == self.life && self.crash_here(CrashAt::BeforeAnswer(number)) {
            return Ok(());
        }
        let at = self.now + self.delay();
        self.at(at, Happening::Answer { life, number, ticket, answer });
        Ok(())
    }

    /// VCD carries out a request of the process `life`.
    fn execute(&mut self, life: u32, request: &Request, late: bool) -> Result<Answer, String> {
        let what = request.operation();
        Ok(match request {
            Request::Poll { vapps } => {
                let fault = self.query_fault();
                let shown = |name: &str| name.starts_with(PREFIX) && name[PREFIX.len()..].starts_with('-');
                let vms = self.model.query_vms(self.who, fault);
                let vms = vms.iter().filter(|vm| shown(&vm.vapp_name)).map(|vm| self.vm(vm)).collect();
                let vapps = vapps.then(|| {
                    let vapps = self.model.query_vapps(self.who, fault);
                    vapps.iter().filter(|vapp| shown(&vapp.name)).map(|vapp| self.vapp_record(vapp)).collect()
                });
                Ok(Reply::Poll(cloud::Poll { now: Some(self.model.unix(self.now)), vms, vapps }))
            }
            Request::Find { name } => {
                let fault = self.query_fault();
                let records = self.model.query_vapps(self.who, fault);
                let mut found: Vec<VappId> = records.iter().filter(|v| v.name == *name).map(|v| v.id).collect();
                if found.is_empty() {
                    found = self.model.vapps_named(name);
                }
                Ok(Reply::Vapps(found.into_iter().filter_map(|id| self.document(id)).collect()))
            }
            Request::Look { vapp } => Ok(Reply::Vapps(self.document(vapp_id(vapp)).into_iter().collect())),
            Request::Tasks { tasks } => {
                let state = |task: &Href| cloud::Task { href: task.clone(), state: self.task_state(task) };
                Ok(Reply::Tasks(tasks.iter().map(state).collect()))
            }
            Request::Create { name, description, whole } => {
                let tuning = self.plan.policy;
                if *whole && (tuning.tpm || tuning.hardware == HardwareInCreate::Refuse) {
                    return Ok(Err(error(ErrorKind::TooMuch, what)));
                }
                self.inject(true);
                let create = self.create(name, description, *whole);
                let made = match whole {
                    true => self.model.instantiate(self.who, self.vdc, self.template, create),
                    false => self.model.compose(self.who, self.vdc, create),
                };
                self.model.inject = model::Inject::default();
                match made {
                    Ok((vapp, task)) => {
                        self.audit.made(vapp, name, life, &self.model, late)?;
                        Ok(Reply::Started(cloud::Started { vapp: Some(href(vapp)), task: Some(task_href(task)) }))
                    }
                    Err(refusal) => Err(refused(&refusal, what)),
                }
            }
            Request::Delete { vapp } | Request::DeleteStopped { vapp } => {
                self.audit.deletes(vapp_id(vapp), late || life != self.life, &self.model)?;
                self.inject(false);
                let forced = matches!(request, Request::Delete { .. });
                let deleted = self.model.delete_vapp(self.who, vapp_id(vapp), forced);
                self.model.inject = model::Inject::default();
                match deleted {
                    Ok(task) => Ok(Reply::Started(cloud::Started { vapp: None, task: Some(task_href(task)) })),
                    Err(refusal) => match refused(&refusal, what) {
                        error if error.kind == ErrorKind::NotFound => {
                            Ok(Reply::Started(cloud::Started { vapp: None, task: None }))
                        }
                        error => Err(error),
                    },
                }
            }
            Request::Cancel { task } => match self.model.cancel_task(self.who, task_id(task)) {
                Ok(()) => Ok(Reply::Done),
                Err(refusal) => Err(refused(&refusal, what)),
            },
            Request::Configure { vm } | Request::AddTpm { vm } => {
                let id = vm_id(vm);
                if let Some(vm) = self.model.vms.get(&id) {
                    self.audit.changes(vm.vapp, &self.model, what)?;
                    if late || life != self.life {
                        self.audit.came_late(vm.vapp);
                    }
                }
                let change = match request {
                    Request::AddTpm { .. } => model::VmChange { tpm: Some(true), ..model::VmChange::default() },
                    _ => model::VmChange { hardware: wish(), ..model::VmChange::default() },
                };
                self.inject(false);
                let task = self.model.update_vm(self.who, id, change);
                self.model.inject = model::Inject::default();
                started(task, what)
            }
            Request::PowerOn { vapp } | Request::Suspend { vapp } | Request::Undeploy { vapp } => {
                let (id, target) = (vapp_id(vapp), model::Target::Vapp(vapp_id(vapp)));
                self.audit.changes(id, &self.model, what)?;
                if late || life != self.life {
                    self.audit.came_late(id);
                }
                self.inject(false);
                let task = match request {
                    Request::PowerOn { .. } => self.model.power(self.who, target, model::PowerAction::On),
                    Request::Suspend { .. } => self.model.power(self.who, target, model::PowerAction::Suspend),
                    _ => self.model.undeploy(self.who, target, model::UndeployAction::PowerOff),
                };
                self.model.inject = model::Inject::default();
                started(task, what)
            }
            Request::Label { vapp } => {
                self.audit.changes(vapp_id(vapp), &self.model, what)?;
                let value = (std::borrow::Cow::Borrowed("MetadataStringValue"), Arc::from(GROUP));
                let target = model::Target::Vapp(vapp_id(vapp));
                match self.model.set_metadata(self.who, target, vec![("vcd-instance-group".into(), Some(value))]) {
                    Ok(_) => Ok(Reply::Done),
                    Err(refusal) => Err(refused(&refusal, what)),
                }
            }
        })
    }

    fn query_fault(&mut self) -> Option<QueryFault> {
        if self.calm {
            return None;
        }
        match () {
            _ if self.has(Fault::QueryEmpty) => Some(QueryFault::Empty),
            _ if self.has(Fault::QueryPartial) => Some(QueryFault::Partial),
            _ if self.has(Fault::QueryStale) => Some(QueryFault::Stale(self.dice.between(1_000, MAX_LAG))),
            _ => None,
        }
    }

    /// What goes wrong with the next task and its guest.
    fn inject(&mut self, create: bool) {
        if self.calm {
            return;
        }
        let step = self.dice.below(2) as u8;
        let failure = model::TaskError {
            major: 500,
            minor: "INTERNAL_SERVER_ERROR".into(),
            message: "The operation failed.".into(),
        };
        let mut inject = model::Inject::default();
        if self.has(Fault::TaskFails) {
            inject.task = Some(model::TaskFault { step, kind: model::TaskFaultKind::Fail(failure) });
        } else if self.has(Fault::TaskHangs) {
            inject.task = Some(model::TaskFault { step, kind: model::TaskFaultKind::Hang });
        } else if self.has(Fault::TaskSlow) {
            inject.slow = Some(self.dice.between(2, 30) as f64);
        }
        if create && self.has(Fault::GuestIll) {
            inject.guest = Some(self.dice.pick(&[
                model::GuestFault::CustomizationFails,
                model::GuestFault::NeverCustomizes,
                model::GuestFault::NeverReports,
                model::GuestFault::NoAddress,
                model::GuestFault::NoSsh,
                model::GuestFault::ShutsDown,
            ]));
        }
        self.model.inject = inject;
    }

    fn create(&self, name: &Arc<str>, description: &Arc<str>, whole: bool) -> model::Create {
        let source = self.model.templates[&self.template].vms[0];
        let mut item = model::Item::new(source);
        item.name = Some(name.clone());
        item.description = Some(description.clone());
        item.needs_customization = true;
        if whole {
            item.hardware = wish();
        }
        item.guest = Some(model::GuestSection { enabled: true, ..model::GuestSection::default() });
        let network: Arc<str> = "ci-net".into();
        item.nics = Some(vec![model::Nic {
            index: 0,
            network: Some(network.clone()),
            mode: model::IpMode::Pool,
            address: None,
            connected: true,
            adapter: "VMXNET3".into(),
        }]);
        let fence = model::Fence::Bridged;
        model::Create {
            name: name.clone(),
            description: description.clone(),
            networks: vec![model::VappNetwork { name: network, parent: Some(self.network), fence }],
            items: vec![item],
            deploy: whole,
            power_on: whole,
            ..model::Create::default()
        }
    }

    // VCD's records as the client would give them.

    fn vm(&self, vm: &model::VmRecord) -> cloud::Vm {
        cloud::Vm {
            vapp: href(vm.vapp),
            vapp_name: vm.vapp_name.clone(),
            vm: vm_href(vm.id),
            description: vm.description.to_string(),
            power: power(vm.status),
            busy: vm.busy,
            address: vm.address.map(IpAddr::V4),
            customization: match vm.gc {
                model::GcStatus::Complete => Customization::Complete,
                model::GcStatus::Failed => Customization::Failed,
                _ => Customization::Pending,
            },
            guest_os: vm.guest_os.to_string(),
            created: Some(self.model.unix(vm.created)),
            cpus: vm.cpus,
            memory_mb: vm.memory_mb,
            undeploy_at: vm.undeploy_at.map(|at| self.model.unix(at)),
            delete_at: vm.delete_at.map(|at| self.model.unix(at)),
        }
    }

    fn vapp_record(&self, vapp: &model::VappRecord) -> cloud::Vapp {
        let label = vapp.metadata.get("vcd-instance-group").is_some_and(|(_, value)| &**value == GROUP);
        cloud::Vapp {
            href: href(vapp.id),
            name: vapp.name.clone(),
            description: None,
            power: power(vapp.status),
            busy: vapp.busy,
            tasks: Vec::new(),
            deleting: false,
            vms: vapp.vms,
            made: None,
            created: Some(self.model.unix(vapp.created)),
            labelled: label,
        }
    }

    fn document(&self, id: VappId) -> Option<cloud::Vapp> {
        let vapp = self.model.get_vapp(self.who, id).ok()?;
        let task = task_of(&self.model, id);
        let vm = vapp.vms.first().and_then(|id| Some((*id, self.model.vms.get(id)?)));
        let made = vm.map(|(id, vm)| cloud::Made {
            vm: vm_href(id),
            differs: (vm.memory_mb != MEMORY_MB).then(|| "another size of memory".into()),
            lacks_tpm: self.plan.policy.tpm && !vm.tpm,
            external: None,
        });
        Some(cloud::Vapp {
            href: href(id),
            name: vapp.name.clone(),
            description: Some(vapp.description.to_string()),
            power: power(self.model.vapp_status(vapp)),
            busy: self.model.is_busy(model::Target::Vapp(id)),
            tasks: task.into_iter().map(task_href).collect(),
            deleting: task.is_some_and(|task| self.model.tasks[&task].operation == model::Operation::Delete),
            vms: vapp.vms.len() as u32,
            made,
            created: Some(self.model.unix(vapp.created)),
            labelled: false,
        })
    }

    fn task_state(&self, task: &Href) -> cloud::TaskState {
        match self.model.get_task(self.who, task_id(task)) {
            Err(_) => cloud::TaskState::Unknown,
            Ok(task) => match task.status {
                model::TaskStatus::Running => cloud::TaskState::Running,
                model::TaskStatus::Success => cloud::TaskState::Success,
                _ => cloud::TaskState::Failed(error(ErrorKind::Failed, "task")),
            },
        }
    }

    // Checks.

    fn check(&mut self) -> Result<(), String> {
        if self.starting {
            // The host sees nothing before Init has answered: not before strangers are known, or 20 s have gone.
            let known = self.group.as_ref().is_some_and(Group::knows_its_own);
            if !known && self.now < self.life_began + 20_000 {
                return Ok(());
            }
            self.starting = false;
        }
        match &self.group {
            Some(group) => self.audit.check(group, &self.model, Time(self.now - self.life_began)),
            None => Ok(()),
        }
    }

    /// Everything that the host knows of has come to an end or to running, and VCD holds just what runs.
    fn settled(&self) -> bool {
        let Some(group) = self.group.as_ref().filter(|_| self.shutting_down.is_none()) else { return false };
        let rests = group.update().all(|(_, state)| rests(state));
        rests && self.model.running_tasks() == 0 && self.audit.orphans(group, &self.model).is_empty()
    }

    fn audit_settled(&self) -> Result<(), String> {
        let Some(group) = &self.group else { return Err("the plugin does not come back".into()) };
        for (name, state) in group.update() {
            if !rests(state) {
                return Err(format!("5: {name} is still {state:?} long after the last fault"));
            }
        }
        match self.audit.orphans(group, &self.model).first() {
            Some(orphan) => Err(format!("2: vApp {orphan} of ours stays, and no instance stands for it")),
            None => Ok(()),
        }
    }

    fn audit_stopped(&mut self) -> Result<(), String> {
        let Some(group) = &self.group else { return Ok(()) };
        if !group.stopped() {
            return Err(format!("8: shutdown does not end: {:?}", group.views(Time(self.now - self.life_began))));
        }
        let keep = self.plan.policy.keep;
        let left = self.audit.left(&self.model, keep.then_some(group));
        match left.first() {
            Some(left) => Err(format!("8: vApp {left} is left after shutdown")),
            None => Ok(()),
        }
    }
}

/// Stale queries lag by at most this.
const MAX_LAG: u64 = 40_000;
/// A change whose answer was lost is carried out at most so much later.
const MAX_LATE: u64 = 30_000;

/// Memory of the VMs that are wished for, which is not the template's.
const MEMORY_MB: u32 = 8192;

fn wish() -> model::Hardware {
    model::Hardware { memory_mb: Some(MEMORY_MB), ..model::Hardware::default() }
}

/// Nothing more is to happen to an instance in this state.
fn rests(state: State) -> bool {
    matches!(state, State::Running | State::Suspended | State::Deleted | State::Timeout)
}

/// The answer to what begins a task.
fn started(task: Result<TaskId, Refusal>, what: &str) -> Answer {
    match task {
        Ok(task) => Ok(Reply::Started(cloud::Started { vapp: None, task: Some(task_href(task)) })),
        Err(refusal) => Err(refused(&refusal, what)),
    }
}

fn vm_href(id: VmId) -> Href {
    format!("m/{}", id.number()).into()
}

fn vm_id(href: &Href) -> VmId {
    VmId::of(href[2..].parse().unwrap())
}

fn href(id: VappId) -> Href {
    format!("v/{}", id.number()).into()
}

/// The task that holds a vApp.
pub fn task_of(model: &Model, id: VappId) -> Option<TaskId> {
    let vapp = model.vapps.get(&id)?;
    vapp.task.or_else(|| vapp.vms.iter().find_map(|vm| model.vms.get(vm)?.task))
}

/// An answer for the trace: a poll is one short piece for each VM.
fn brief(answer: &Answer) -> String {
    let Ok(Reply::Poll(poll)) = answer else { return format!("{answer:?}") };
    let vm = |vm: &cloud::Vm| {
        let busy = if vm.busy { " busy" } else { "" };
        format!("{} {} {:?} {:?}{busy} {:?}", vm.vapp, vm.vapp_name, vm.power, vm.customization, vm.address)
    };
    let vms: Vec<String> = poll.vms.iter().map(vm).collect();
    format!("[{}] {:?}", vms.join(", "), poll.vapps)
}

fn task_href(id: TaskId) -> Href {
    format!("t/{}", id.number()).into()
}

pub fn vapp_id(href: &Href) -> VappId {
    VappId::of(href[2..].parse().unwrap())
}

fn task_id(href: &Href) -> TaskId {
    TaskId::of(href[2..].parse().unwrap())
}

fn power(status: model::Status) -> cloud::Power {
    match status.name() {
        "POWERED_ON" => cloud::Power::On,
        "POWERED_OFF" | "PARTIALLY_POWERED_OFF" => cloud::Power::Off,
        "SUSPENDED" | "PARTIALLY_SUSPENDED" => cloud::Power::Suspended,
        "FAILED_CREATION" => cloud::Power::Failed,
        _ => cloud::Power::Other,
    }
}

fn error(kind: ErrorKind, what: &str) -> VcdError {
    VcdError { kind, what: what.into(), status: 0, code: String::new(), text: "injected".into(), retry_after: None }
}

fn refused(refusal: &Refusal, what: &str) -> VcdError {
    let kind = match (refusal.status, &*refusal.minor) {
        _ if refusal.message.contains("does not exist") => ErrorKind::NotFound,
        (404, _) => ErrorKind::NotFound,
        (400, "BUSY_ENTITY") => ErrorKind::Busy,
        (400, "DUPLICATE_NAME") => ErrorKind::Duplicate,
        (403, _) => ErrorKind::Forbidden,
        _ if refusal.message.contains("and try again") || refusal.message.contains("power state") => ErrorKind::State,
        _ if refusal.message.contains("maximum number of simultaneous") => ErrorKind::Limit,
        _ => ErrorKind::Invalid,
    };
    let (what, code, text) = (what.into(), refusal.minor.to_string(), refusal.message.clone());
    VcdError { kind, what, status: refusal.status, code, text, retry_after: None }
}
