//! VCD as a plugin sees it: the transport of its requests, VCD's actions, and the answers in the types of the client.

use super::plan::{Fault, Quirk};
use super::{CrashAt, GROUP, Happening, PREFIX, Process, World};
use fleeting_plugin_vcd::cloud::{self, Answer, Customization, ErrorKind, Href, Reply, Request, VcdError};
use fleeting_plugin_vcd::group::Ticket;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use vcd_sim::model::{self, HardwareInCreate, Id, Model, QueryFault, Refusal, TaskId, VappId, VmId};

/// Stale queries lag by at most this.
pub const MAX_LAG: u64 = 40_000;
/// Maximum delay of a change whose answer was lost.
const MAX_LATE: u64 = 30_000;
/// The same for a change of a dead process.
const MAX_LINGER: u64 = 90_000;
/// Maximum number of concurrent requests: one for each of the driver's threads, and at most this many changes.
const THREADS: usize = 4;
const CHANGES: usize = 3;
/// Timeouts of reads and changes if VCD does not answer.
const READ_TIMEOUT: u64 = 60_000;
pub const CHANGE_TIMEOUT: u64 = 120_000;

/// Memory of the requested VMs, which differs from the template's.
pub const MEMORY_MB: u32 = 8192;

/// A request of a process. `number`: its position among all requests.
#[derive(Clone)]
pub struct Sending {
    pub number: u64,
    pub ticket: Ticket,
    pub request: Request,
}

/// A process's requests on the wire, and those that wait, as in the driver.
#[derive(Default)]
pub struct Wire {
    /// Changes on the wire, or waiting for a thread only.
    changes: usize,
    busy: usize,
    changes_waiting: VecDeque<Sending>,
    waiting: VecDeque<Sending>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Normal,
    /// Nothing is done, and VCD returns the reason.
    Refused(ErrorKind),
    LostBefore,
    LostAfter,
    LostLate(u64),
    /// VCD receives it and does not answer. `done`: VCD carries it out.
    Silent {
        done: bool,
    },
}

impl World {
    // On the wire.

    /// Sends a request when its turn comes.
    pub fn send(&mut self, n: usize, sending: Sending) {
        let wire = &mut self.plugins[n].wire;
        if sending.request.changes() {
            if wire.changes >= CHANGES {
                return wire.changes_waiting.push_back(sending);
            }
            wire.changes += 1;
        }
        self.occupy(n, sending);
    }

    fn occupy(&mut self, n: usize, sending: Sending) {
        let wire = &mut self.plugins[n].wire;
        if wire.busy >= THREADS {
            return wire.waiting.push_back(sending);
        }
        wire.busy += 1;
        let wanted = self.plugins[n].group.as_ref().is_some_and(|group| group.wants(sending.ticket));
        if let (Request::Create { .. }, false) = (&sending.request, wanted) {
            // It has waited here, and was given up meanwhile.
            let (to, answer) = (self.process(n), Err(error(ErrorKind::Unavailable, sending.request.operation())));
            return self.at(self.now, Happening::Answer { to, sending, answer, truth: false });
        }
        let (from, fate) = (self.process(n), self.fate(&sending.request));
        // After these polls, a plain one follows soon.
        let replaced = matches!(sending.request, Request::Poll { vapps: true } | Request::PollSome { .. });
        if fate != Fate::Normal && !replaced {
            self.plugins[n].audit.pace.thwarted(self.now, &sending.request);
        }
        self.plugins[n].audit.pace.slow |= matches!(fate, Fate::Silent { .. });
        let at = self.now + self.delay(n, &sending.request);
        self.at(at, Happening::Arrive { from, sending, fate });
    }

    /// The next requests are sent.
    fn release(&mut self, n: usize, changes: bool) {
        let wire = &mut self.plugins[n].wire;
        wire.busy -= 1;
        if changes {
            wire.changes -= 1;
            if let Some(next) = wire.changes_waiting.pop_front() {
                wire.changes += 1;
                wire.waiting.push_back(next);
            }
        }
        if let Some(next) = wire.waiting.pop_front() {
            self.occupy(n, next);
        }
    }

    fn delay(&mut self, n: usize, request: &Request) -> u64 {
        if matches!(request, Request::Poll { .. }) && self.has(Fault::SlowPolls) {
            return self.dice.between(500, 10_000);
        }
        if !self.has(Fault::Slow) {
            return self.dice.between(20, 200);
        }
        self.plugins[n].audit.pace.delayed(self.now, request);
        self.plugins[n].audit.pace.slow = true;
        self.dice.between(1_000, 20_000)
    }

    /// The fault is active now, and applies.
    fn has(&mut self, fault: Fault) -> bool {
        match self.faults.get(&fault) {
            Some(&(until, percent)) => self.now < until && self.dice.percent(percent),
            None => false,
        }
    }

    pub fn fate(&mut self, request: &Request) -> Fate {
        match (self.plan.policy.quirk, request) {
            (Quirk::CreateBreaks, Request::Create { whole: true, .. })
            | (Quirk::ForceBreaks, Request::Delete { .. })
            | (Quirk::StopBreaks, Request::Undeploy { .. }) => return Fate::LostBefore,
            _ => {}
        }
        if self.calm || self.faults.is_empty() {
            return Fate::Normal;
        }
        if self.has(Fault::Unreachable) {
            return Fate::Refused(ErrorKind::Unavailable);
        }
        if self.has(Fault::Silent) {
            return Fate::Silent { done: self.dice.percent(50) };
        }
        if self.has(Fault::Expired) {
            return Fate::Refused(ErrorKind::Auth);
        }
        let fails = self.has(Fault::OneFails(request.operation()));
        if fails || (matches!(request, Request::Poll { vapps: true }) && self.has(Fault::VappsFail)) {
            return Fate::Refused(ErrorKind::Unavailable);
        }
        if !request.changes() {
            return if self.has(Fault::ReadFails) { Fate::Refused(ErrorKind::Protocol) } else { Fate::Normal };
        }
        let refusals = [
            (Fault::Limit, ErrorKind::Limit),
            (Fault::Busy, ErrorKind::Busy),
            (Fault::Forbidden, ErrorKind::Forbidden),
        ];
        for (fault, kind) in refusals {
            if self.has(fault) {
                return Fate::Refused(kind);
            }
        }
        if matches!(request, Request::Create { .. }) && self.has(Fault::Template) {
            return Fate::Refused(ErrorKind::Invalid);
        }
        let grows = matches!(request, Request::Create { .. } | Request::PowerOn { .. } | Request::Suspend { .. });
        if grows && self.has(Fault::Quota) {
            return Fate::Refused(ErrorKind::Quota);
        }
        match () {
            _ if self.has(Fault::LostBefore) => Fate::LostBefore,
            _ if self.has(Fault::LostAfter) => Fate::LostAfter,
            _ if self.has(Fault::LostLate) => Fate::LostLate(self.dice.between(100, MAX_LATE)),
            _ => Fate::Normal,
        }
    }

    pub fn arrive(&mut self, from: Process, sending: Sending, fate: Fate) -> Result<(), String> {
        // Sent requests reach VCD even if the process has died.
        let request = &sending.request;
        let (what, changes) = (request.operation(), request.changes());
        let dead = !self.lives(from);
        if dead && fate == Fate::Normal && changes && !self.calm && self.has(Fault::Lingers) {
            let at = self.now + self.dice.between(1_000, MAX_LINGER);
            self.at(at, Happening::Late { from, request: request.clone() });
            return Ok(());
        }
        let lost = || Err(error(ErrorKind::Ambiguous, what));
        let mut truth = false;
        let mut wait = None;
        let answer = match fate {
            Fate::Normal => {
                let (answer, shows) = self.execute(from, request, false)?;
                truth = shows;
                answer
            }
            Fate::Refused(kind) => Err(error(kind, what)),
            Fate::LostBefore => lost(),
            Fate::LostAfter => {
                self.execute(from, request, false)?.0.ok();
                lost()
            }
            Fate::LostLate(after) => {
                let at = self.now + after;
                self.at(at, Happening::Late { from, request: request.clone() });
                lost()
            }
            Fate::Silent { done } => {
                if done {
                    self.execute(from, request, false)?.0.ok();
                }
                wait = Some(if changes { CHANGE_TIMEOUT } else { READ_TIMEOUT });
                if changes { lost() } else { Err(error(ErrorKind::Unavailable, what)) }
            }
        };
        if !dead && self.crash_here(from.plugin, CrashAt::BeforeAnswer(sending.number)) {
            return Ok(());
        }
        let at = self.now + wait.unwrap_or_else(|| self.delay(from.plugin, request));
        self.at(at, Happening::Answer { to: from, sending, answer, truth });
        Ok(())
    }

    pub fn answer(&mut self, to: Process, sending: &Sending, answer: Answer, truth: bool) -> Result<(), String> {
        if !self.lives(to) {
            return Ok(());
        }
        let (n, ticket) = (to.plugin, sending.ticket);
        self.say(|| format!("answer {ticket}: {}", brief(&answer)));
        let time = self.time(n);
        self.release(n, sending.request.changes());
        let (now, plugin) = (self.now, &mut self.plugins[n]);
        let polled = matches!(sending.request, Request::Poll { .. });
        if polled {
            if answer.is_ok() || sending.request != (Request::Poll { vapps: true }) {
                plugin.audit.pace.polled(now, answer.is_ok(), truth);
            }
        } else {
            plugin.audit.pace.answered(now, &sending.request, &answer);
            if answer.is_err() {
                plugin.audit.not_deleted(&sending.request);
            }
            plugin.audit.tasks_ended(&answer, &self.model, now);
        }
        if plugin.group.as_ref().is_some_and(|group| plugin.audit.waits_for_deletes(group, time)) {
            plugin.audit.pace.excused = plugin.audit.pace.excused.max(now);
        }
        plugin.audit.answered(ticket);
        if let Some(group) = &mut plugin.group {
            group.answer(time, ticket, answer);
            if polled && !plugin.starting && plugin.shutting_down.is_none() {
                plugin.audit.watch(group, &self.model, &self.plan.policy, time, now)?;
            }
        }
        self.crash_here(n, CrashAt::AfterAnswer(sending.number));
        Ok(())
    }

    // VCD's actions.

    /// VCD carries out a request of a process. Also returns whether the answer shows the real state.
    pub fn execute(&mut self, from: Process, request: &Request, late: bool) -> Result<(Answer, bool), String> {
        let fault = if request.changes() { None } else { self.query_fault() };
        let mut answer = self.carry_out(from, request, late, fault)?;
        let polls = matches!(request, Request::Poll { .. } | Request::PollSome { .. });
        let odd = polls && !self.calm && self.has(Fault::QueryOdd);
        if let (true, Ok(Reply::Poll(poll))) = (odd, &mut answer)
            && !poll.vms.is_empty()
        {
            let at = self.dice.below(poll.vms.len() as u64) as usize;
            use cloud::Power::{Failed, Off, On, Other, Suspended};
            poll.vms[at].power = self.dice.pick(&[Off, On, Other, Suspended, Failed]);
        }
        Ok((answer, fault.is_none() && !odd))
    }

    fn carry_out(
        &mut self,
        from: Process,
        request: &Request,
        late: bool,
        fault: Option<QueryFault>,
    ) -> Result<Answer, String> {
        let what = request.operation();
        // Nobody waits for the answer any more.
        let late = late || !self.lives(from);
        let n = from.plugin;
        Ok(match request {
            Request::PollSome { names } => {
                let vms = self.vms(fault, |name| names.contains(name));
                let clock = self.model.unix(self.now).saturating_add_signed(self.plan.policy.skew * 1000);
                let now = (!self.has(Fault::NoDate)).then_some(clock);
                Ok(Reply::Poll(cloud::Poll { now, vms, ..cloud::Poll::default() }))
            }
            Request::Poll { vapps } => {
                let shown = |name: &str| name.starts_with(PREFIX) && name[PREFIX.len()..].starts_with('-');
                let vms = self.vms(fault, |name| shown(name));
                let vapps = vapps.then(|| {
                    let records = self.model.query_vapps(self.who, fault);
                    let records = records.iter().filter(|vapp| shown(&vapp.name));
                    let mut all: Vec<cloud::Vapp> = records.map(|vapp| self.vapp_record(vapp)).collect();
                    // vApps that only the VDC's own document lists.
                    let listed = self.model.vapps.iter().filter(|(_, vapp)| shown(&vapp.name));
                    let unlisted: Vec<cloud::Vapp> = listed
                        .filter(|(id, _)| !all.iter().any(|vapp| vapp.href == href(**id)))
                        .map(|(id, vapp)| unlisted(href(*id), vapp.name.clone()))
                        .collect();
                    all.extend(unlisted);
                    all
                });
                let clock = self.model.unix(self.now).saturating_add_signed(self.plan.policy.skew * 1000);
                let now = (!self.has(Fault::NoDate)).then_some(clock);
                Ok(Reply::Poll(cloud::Poll { now, vms, vapps, source: self.source }))
            }
            Request::Find { name } => {
                let records = self.model.query_vapps(self.who, fault);
                let mut found: Vec<VappId> = records.iter().filter(|v| v.name == *name).map(|v| v.id).collect();
                if found.is_empty() {
                    found = self.model.vapps_named(name);
                }
                if found.iter().any(|id| self.model.vapps.get(id).is_some_and(|vapp| vapp.faults.unread)) {
                    return Ok(Err(error(ErrorKind::Unavailable, what)));
                }
                Ok(Reply::Vapps(found.into_iter().filter_map(|id| self.document(id, false)).collect()))
            }
            Request::Look { vapp, guest } => match self.model.read_vapp(self.who, vapp_id(vapp)) {
                Err(refusal) if refusal.status == 500 => Err(error(ErrorKind::Unavailable, what)),
                _ => {
                    let document = self.document(vapp_id(vapp), *guest);
                    Ok(Reply::Vapps(document.into_iter().collect()))
                }
            },
            Request::Tasks { tasks } => {
                let state = |task: &Href| cloud::Task { href: task.clone(), state: self.task_state(task) };
                Ok(Reply::Tasks(tasks.iter().map(state).collect()))
            }
            Request::Create { name, description, whole } => {
                let tuning = self.plan.policy;
                if *whole && (tuning.tpm || tuning.hardware == HardwareInCreate::Refuse) {
                    return Ok(Err(error(ErrorKind::TooMuch, what)));
                }
                self.inject(n, true);
                if *whole && tuning.quirk == Quirk::StaysOff {
                    self.plugins[n].audit.pace.disturbed(self.now);
                    self.model.inject.task =
                        Some(model::TaskFault { step: 1, kind: model::TaskFaultKind::Fail(failure()) });
                }
                let create = self.create(name, description, *whole);
                let made = match whole {
                    true => self.model.instantiate(self.who, self.vdc, self.template, create),
                    false => self.model.compose(self.who, self.vdc, create),
                };
                self.model.inject = model::Inject::default();
                match made {
                    Ok((vapp, task)) => {
                        for (other, plugin) in self.plugins.iter_mut().enumerate() {
                            if other != n {
                                plugin.audit.foreign.insert(vapp);
                            }
                        }
                        self.plugins[n].audit.made(vapp, name, from.life, &self.model, late)?;
                        {
                            let (vapp, task, source) = (Some(href(vapp)), Some(task_href(task)), self.source);
                            Ok(Reply::Started(cloud::Started { vapp, task, source }))
                        }
                    }
                    Err(refusal) => Err(refused(&refusal, what)),
                }
            }
            Request::Delete { vapp } | Request::DeleteStopped { vapp } => {
                self.plugins[n].audit.deletes(vapp_id(vapp), late, &self.model)?;
                self.inject(n, false);
                let forced = matches!(request, Request::Delete { .. });
                let deleted = self.model.delete_vapp(self.who, vapp_id(vapp), forced);
                self.model.inject = model::Inject::default();
                match deleted {
                    Ok(task) => {
                        Ok(Reply::Started(cloud::Started { task: Some(task_href(task)), ..cloud::Started::default() }))
                    }
                    Err(refusal) => Err(refused(&refusal, what)),
                }
            }
            Request::Cancel { task } => match self.model.cancel_task(self.who, task_id(task)) {
                Ok(()) => Ok(Reply::Done),
                Err(refusal) => Err(refused(&refusal, what)),
            },
            Request::Configure { vm } | Request::AddTpm { vm } => {
                let id = vm_id(vm);
                if let Some(vm) = self.model.vms.get(&id) {
                    self.plugins[n].audit.changes_vm(id, vm.vapp, &self.model, what)?;
                    if late {
                        self.plugins[n].audit.came_late(vm.vapp);
                    }
                }
                let change = match request {
                    Request::AddTpm { .. } => model::VmChange { tpm: Some(true), ..model::VmChange::default() },
                    _ => model::VmChange { hardware: wish(), ..model::VmChange::default() },
                };
                self.inject(n, false);
                let task = self.model.update_vm(self.who, id, change);
                self.model.inject = model::Inject::default();
                started(task, what)
            }
            Request::PowerOn { vapp } | Request::Suspend { vapp } | Request::Undeploy { vapp } => {
                let (id, target) = (vapp_id(vapp), model::Target::Vapp(vapp_id(vapp)));
                self.plugins[n].audit.changes(id, &self.model, what)?;
                if late {
                    self.plugins[n].audit.came_late(id);
                }
                if let (Request::PowerOn { .. }, false) = (request, late) {
                    self.plugins[n].audit.powers_on(id, &self.model)?;
                }
                self.inject(n, false);
                let task = match request {
                    Request::PowerOn { .. } => self.model.power(self.who, target, model::PowerAction::On),
                    Request::Suspend { .. } => self.model.power(self.who, target, model::PowerAction::Suspend),
                    _ => self.model.undeploy(self.who, target, model::UndeployAction::PowerOff),
                };
                self.model.inject = model::Inject::default();
                started(task, what)
            }
            Request::Mark { vapp, mark } => {
                self.plugins[n].audit.changes(vapp_id(vapp), &self.model, what)?;
                if late {
                    self.plugins[n].audit.came_late(vapp_id(vapp));
                }
                let (key, value) = mark.entry();
                let value = (std::borrow::Cow::Borrowed("MetadataStringValue"), Arc::from(value));
                let target = model::Target::Vapp(vapp_id(vapp));
                self.inject(n, false);
                let task = self.model.set_metadata(self.who, target, vec![(key.into(), Some(value))]);
                self.model.inject = model::Inject::default();
                started(task, what)
            }
            Request::Label { vapp } => {
                self.plugins[n].audit.changes(vapp_id(vapp), &self.model, what)?;
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
        if self.calm || self.faults.is_empty() {
            return None;
        }
        match () {
            _ if self.has(Fault::QueryEmpty) => Some(QueryFault::Empty),
            _ if self.has(Fault::QueryPartial) => Some(QueryFault::Partial),
            _ if self.has(Fault::QueryStale) => Some(QueryFault::Stale(self.dice.between(1_000, MAX_LAG))),
            _ => None,
        }
    }

    /// The faults of the next task and its guest.
    fn inject(&mut self, n: usize, create: bool) {
        if self.calm || self.faults.is_empty() {
            return;
        }
        let step = self.dice.below(2) as u8;
        let mut inject = model::Inject::default();
        if self.has(Fault::TaskFails) {
            inject.task = Some(model::TaskFault { step, kind: model::TaskFaultKind::Fail(failure()) });
        } else if self.has(Fault::TaskHangs) {
            inject.task = Some(model::TaskFault { step, kind: model::TaskFaultKind::Hang });
        } else if self.has(Fault::TaskDeaf) {
            inject.hangs = true;
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
        } else if create && self.has(Fault::NoSsh) {
            inject.guest = Some(model::GuestFault::NoSsh);
        } else if create && self.has(Fault::BadHost) {
            inject.guest = Some(model::GuestFault::ShutsDown);
        }
        if inject != model::Inject::default() {
            self.plugins[n].audit.pace.disturbed(self.now);
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

    // VCD's records in the types of the client.

    /// Those of the vApps with such names. Sorted by name, like the answers to the client.
    fn vms(&self, fault: Option<QueryFault>, named: impl Fn(&Arc<str>) -> bool) -> Vec<cloud::Vm> {
        let vms = self.model.query_vms(self.who, fault);
        let mut vms: Vec<cloud::Vm> = vms.iter().filter(|vm| named(&vm.vapp_name)).map(|vm| self.vm(vm)).collect();
        vms.sort_by(|a, b| a.vapp_name.cmp(&b.vapp_name));
        vms
    }

    fn vm(&self, vm: &model::VmRecord) -> cloud::Vm {
        cloud::Vm {
            vapp: href(vm.vapp),
            vapp_name: vm.vapp_name.clone(),
            vm: vm_href(vm.id),
            description: vm.description.clone(),
            power: power(vm.status),
            busy: vm.busy,
            address: vm.address.map(IpAddr::V4),
            customization: customization(vm.id, vm.gc),
            guest_os: vm.guest_os.clone(),
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
            suspending: false,
            vms: Vec::new(),
            vm_descriptions: Vec::new(),
            made: None,
            created: Some(self.model.unix(vapp.created)),
            labelled: label,
            mark: cloud::Mark::Running,
        }
    }

    fn document(&self, id: VappId, guest: bool) -> Option<cloud::Vapp> {
        let vapp = self.model.get_vapp(self.who, id).ok()?;
        let task = task_of(&self.model, id);
        let suspending = task.is_some_and(|task| self.model.tasks[&task].operation == model::Operation::Suspend);
        let own = |id: &&VmId| self.model.vms.get(id).is_some_and(|vm| vm.name == vapp.name);
        let vm = vapp.vms.iter().find(own).or(vapp.vms.first()).and_then(|id| Some((*id, self.model.vms.get(id)?)));
        let made = vm.map(|(id, vm)| cloud::Made {
            vm: vm_href(id),
            own: vm.name == vapp.name,
            differs: (vm.memory_mb != MEMORY_MB).then(|| "another size of memory".into()),
            lacks_tpm: self.plan.policy.tpm && !vm.tpm,
            external: None,
            guest: guest.then(|| cloud::SeenGuest {
                address: vm.address().map(IpAddr::V4),
                customization: customization(id, vm.gc),
                guest_os: "".into(),
            }),
        });
        Some(cloud::Vapp {
            href: href(id),
            name: vapp.name.clone(),
            description: Some(vapp.description.to_string()),
            power: power(self.model.vapp_status(vapp)),
            busy: self.model.is_busy(model::Target::Vapp(id)),
            tasks: task.into_iter().map(task_href).collect(),
            deleting: task.is_some_and(|task| self.model.tasks[&task].operation == model::Operation::Delete),
            suspending,
            vms: vapp.vms.iter().map(|id| vm_href(*id)).collect(),
            vm_descriptions: vapp
                .vms
                .iter()
                .filter_map(|id| Some(self.model.vms.get(id)?.description.to_string()))
                .collect(),
            made,
            created: Some(self.model.unix(vapp.created)),
            labelled: false,
            // Requested only where it counts.
            mark: if suspending || power(self.model.vapp_status(vapp)) == cloud::Power::Suspended {
                mark(vapp)
            } else {
                cloud::Mark::Running
            },
        })
    }

    fn task_state(&self, task: &Href) -> cloud::TaskState {
        let id = task_id(task);
        match self.model.get_task(self.who, id) {
            Err(_) => cloud::TaskState::Unknown,
            Ok(task) => match task.status {
                model::TaskStatus::Running => cloud::TaskState::Running,
                model::TaskStatus::Success => cloud::TaskState::Success,
                model::TaskStatus::Aborted => cloud::TaskState::Failed(error(ErrorKind::Aborted, "task")),
                _ => cloud::TaskState::Failed(error(FAILURES[id.number() as usize % FAILURES.len()], "task")),
            },
        }
    }
}

fn failure() -> model::TaskError {
    model::TaskError { major: 500, minor: "INTERNAL_SERVER_ERROR".into(), message: "The operation failed.".into() }
}

/// Why tasks fail.
const FAILURES: [ErrorKind; 8] = [
    ErrorKind::Failed,
    ErrorKind::Quota,
    ErrorKind::Failed,
    ErrorKind::Busy,
    ErrorKind::Failed,
    ErrorKind::State,
    ErrorKind::NotFound,
    ErrorKind::Unavailable,
];

/// The suspend mark on a vApp.
pub fn mark(vapp: &model::Vapp) -> cloud::Mark {
    let value = |key: &str| vapp.metadata.get(key).map(|(_, value)| &**value);
    cloud::Mark::read(value(cloud::SUSPEND_KEY), value(cloud::STANDBY_KEY))
}

fn customization(id: VmId, gc: model::GcStatus) -> Customization {
    match gc {
        model::GcStatus::Complete => Customization::Complete,
        model::GcStatus::Failed => Customization::Failed,
        _ if works(id, gc) => Customization::Working,
        _ => Customization::Pending,
    }
}

/// Its customization reports that it is in progress. That of other VMs reports only its end.
pub fn works(id: VmId, gc: model::GcStatus) -> bool {
    gc == model::GcStatus::Pending && id.number() % 4 < 2
}

/// A vApp that the query service does not show.
fn unlisted(href: Href, name: Arc<str>) -> cloud::Vapp {
    cloud::Vapp {
        href,
        name,
        description: None,
        power: cloud::Power::Other,
        busy: false,
        tasks: Vec::new(),
        deleting: false,
        suspending: false,
        vms: Vec::new(),
        vm_descriptions: Vec::new(),
        made: None,
        created: None,
        labelled: false,
        mark: cloud::Mark::Running,
    }
}

fn wish() -> model::Hardware {
    model::Hardware { memory_mb: Some(MEMORY_MB), ..model::Hardware::default() }
}

/// The answer to a request that starts a task.
fn started(task: Result<TaskId, Refusal>, what: &str) -> Answer {
    match task {
        Ok(task) => Ok(Reply::Started(cloud::Started { task: Some(task_href(task)), ..cloud::Started::default() })),
        Err(refusal) => Err(refused(&refusal, what)),
    }
}

fn vm_href(id: VmId) -> Href {
    format!("m/{}", id.number()).into()
}

fn vm_id(href: &Href) -> VmId {
    VmId::of(href[2..].parse().unwrap())
}

pub fn href(id: VappId) -> Href {
    format!("v/{}", id.number()).into()
}

/// The task that works on a vApp.
pub fn task_of(model: &Model, id: VappId) -> Option<TaskId> {
    let vapp = model.vapps.get(&id)?;
    vapp.task.or_else(|| vapp.vms.iter().find_map(|vm| model.vms.get(vm)?.task))
}

/// An answer for the trace. A poll is one short text per VM.
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

pub fn task_id(href: &Href) -> TaskId {
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
        (500, _) => ErrorKind::Ambiguous,
        (400, "BUSY_ENTITY") => ErrorKind::Busy,
        _ if refusal.message.contains("quota") => ErrorKind::Quota,
        (400, "DUPLICATE_NAME") => ErrorKind::Duplicate,
        (403, _) => ErrorKind::Forbidden,
        _ if refusal.message.contains("and try again") || refusal.message.contains("power state") => ErrorKind::State,
        _ if refusal.message.contains("maximum number of simultaneous") => ErrorKind::Limit,
        _ => ErrorKind::Invalid,
    };
    let (what, code, text) = (what.into(), refusal.minor.to_string(), refusal.message.clone());
    VcdError { kind, what, status: refusal.status, code, text, retry_after: None }
}
