//! One group in virtual time, with a VCD that shows and answers exactly what the test defines.

#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use fleeting_plugin_vcd::cloud::*;
use fleeting_plugin_vcd::group::*;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

pub const SECOND: u64 = 1000;
/// No time passes.
const MAX_COMMANDS: usize = 50_000;
/// VCD's clock when the group starts.
pub const START: u64 = 1_000_000_000_000;

/// A group and its VCD.
pub struct Play {
    pub group: Group,
    pub now: u64,
    /// VM and vApp records of polls, and documents of lookups.
    pub vms: Vec<Vm>,
    pub records: Vec<Vapp>,
    pub documents: BTreeMap<Href, Vapp>,
    /// Polls show no VM.
    pub hidden: bool,
    /// The source of new VMs.
    pub source: Source,
    /// Polls fail.
    pub deaf: bool,
    /// Only polls that ask for vApps, too, fail.
    pub deaf_to_vapps: bool,
    /// These operations always fail.
    pub fails: Vec<(&'static str, ErrorKind)>,
    /// The result of a probe.
    pub port: bool,
    pub tasks: TaskState,
    /// Operations whose requests are not answered until [`Play::release`]. Probes can be held too.
    pub holds: Vec<&'static str>,
    pub held: Vec<(Ticket, Request)>,
    pub probes: Vec<(Ticket, IpAddr)>,
    /// All requests, and probes, with their times.
    pub asked: Vec<(u64, &'static str, Option<Request>)>,
    pub said: Vec<String>,
}

pub fn policy() -> Policy {
    Policy {
        manager: "m".into(),
        group: "g".into(),
        prefix: "ci".into(),
        max_instance_age: Duration::ZERO,
        labels: Labels::All,
        ..Policy::default()
    }
}

/// Booting VMs are polled by name, or with all others.
fn is(asked: &str, operation: &str) -> bool {
    asked == operation || (operation == "poll" && asked == "poll_some")
}

pub fn name(n: u32) -> Name {
    format!("ci-{n:08}").into()
}

pub fn href(n: u32) -> Href {
    format!("v/{n}").into()
}

pub fn tag(name: &str) -> String {
    format!("fleeting-plugin-vcd/1 manager=m group=g id={name}")
}

/// An owned, complete VM.
pub fn vm(n: u32) -> Vm {
    shown(href(n), name(n))
}

pub fn shown(vapp: Href, name: Name) -> Vm {
    Vm {
        vm: format!("m/{vapp}").into(),
        vapp,
        description: tag(&name).into(),
        vapp_name: name,
        power: Power::On,
        busy: false,
        address: Some(IpAddr::from([10, 0, 0, 1])),
        customization: Customization::Complete,
        guest_os: "Debian".into(),
        created: None,
        cpus: 1,
        memory_mb: 1,
        undeploy_at: None,
        delete_at: None,
    }
}

/// The guest of a VM, as a lookup shows it.
pub fn guest(vm: &Vm) -> SeenGuest {
    SeenGuest { address: vm.address, customization: vm.customization, guest_os: vm.guest_os.clone() }
}

/// The document, or the record, of a VM's vApp.
pub fn vapp(vm: &Vm) -> Vapp {
    Vapp {
        href: vm.vapp.clone(),
        name: vm.vapp_name.clone(),
        description: Some(tag(&vm.vapp_name)),
        power: vm.power,
        busy: vm.busy,
        tasks: Vec::new(),
        deleting: false,
        suspending: false,
        vms: vec![vm.vm.clone()],
        vm_descriptions: vec![vm.description.to_string()],
        made: Some(Made {
            vm: vm.vm.clone(),
            own: true,
            differs: None,
            lacks_tpm: false,
            external: None,
            guest: Some(guest(vm)),
        }),
        created: vm.created,
        labelled: false,
        mark: if vm.power == Power::Suspended { Mark::Suspended } else { Mark::Running },
    }
}

pub fn error(kind: ErrorKind) -> VcdError {
    VcdError { kind, what: "it".into(), status: 0, code: String::new(), text: "no".into(), retry_after: None }
}

pub fn started(vapp: Option<Href>, task: Option<&str>) -> Answer {
    Ok(Reply::Started(Started { vapp, task: task.map(Into::into), ..Started::default() }))
}

/// A group with a clock that the test moves.
pub trait Passing {
    /// The group and its time.
    fn group(&mut self) -> (&mut Group, &mut u64);

    /// Executes the group's commands. True if the test continues from here.
    fn command(&mut self, command: Command) -> bool;

    /// All requests until now. True if the test continues.
    fn serve(&mut self) -> bool {
        for _ in 0..MAX_COMMANDS {
            let Some(command) = self.group().0.next_command() else { return false };
            if self.command(command) {
                return true;
            }
        }
        panic!("it never stops sending requests");
    }

    /// All requests until then. True if the test continues from the current time.
    fn pass(&mut self, end: u64) -> bool {
        while !self.serve() {
            let (group, now) = self.group();
            match group.wake_at() {
                Some(wake) if wake.0 <= end => {
                    assert!(wake.0 > *now, "called at {now}, but the group requests {}", wake.0);
                    *now = wake.0;
                    group.tick(wake);
                }
                _ => {
                    *now = end;
                    return false;
                }
            }
        }
        true
    }
}

impl Passing for Play {
    fn group(&mut self) -> (&mut Group, &mut u64) {
        (&mut self.group, &mut self.now)
    }

    fn command(&mut self, command: Command) -> bool {
        match command {
            Command::Say(event) => self.said.push(event.text),
            Command::Probe { ticket, address } => {
                self.asked.push((self.now, "probe", None));
                if self.holds.contains(&"probe") {
                    self.probes.push((ticket, address));
                } else {
                    let result = if self.port { Ok(()) } else { Err("refused".into()) };
                    self.group.probed(Time(self.now), ticket, result);
                }
            }
            Command::Ask { ticket, request } => {
                self.asked.push((self.now, request.operation(), Some(request.clone())));
                if self.holds.iter().any(|held| is(request.operation(), held)) {
                    self.held.push((ticket, request));
                } else {
                    let answer = self.answer(request);
                    self.group.answer(Time(self.now), ticket, answer);
                }
            }
        }
        false
    }
}

impl Play {
    /// With a VCD that shows these VMs from the beginning.
    pub fn new(policy: Policy, vms: Vec<Vm>) -> Play {
        Play::holding(policy, vms, &[])
    }

    pub fn holding(policy: Policy, vms: Vec<Vm>, holds: &[&'static str]) -> Play {
        let first = Poll { now: Some(START), vms: vms.clone(), vapps: Some(Vec::new()), ..Poll::default() };
        let mut play = Play {
            group: Group::new(policy, 1, Time(0), &first),
            now: 0,
            documents: vms.iter().map(|vm| (vm.vapp.clone(), vapp(vm))).collect(),
            vms,
            records: Vec::new(),
            hidden: false,
            source: Source(1),
            deaf: false,
            deaf_to_vapps: false,
            fails: Vec::new(),
            port: true,
            tasks: TaskState::Running,
            holds: holds.to_vec(),
            held: Vec::new(),
            probes: Vec::new(),
            asked: Vec::new(),
            said: Vec::new(),
        };
        play.serve();
        play
    }

    /// An instance that was found running.
    pub fn running() -> Play {
        let play = Play::new(policy(), vec![vm(1)]);
        assert_eq!(play.states(), [State::Running]);
        play
    }

    /// An instance that an earlier process has suspended, as a lookup showed.
    pub fn suspended() -> Play {
        let play = Play::new(policy(), vec![Vm { power: Power::Suspended, ..vm(1) }]);
        assert_eq!((play.states(), play.times("look")), (vec![State::Suspended], vec![0]));
        play
    }

    /// An instance that is created now and boots.
    pub fn booting(change: impl FnOnce(&mut Play)) -> Play {
        let mut play = Play::new(policy(), Vec::new());
        change(&mut play);
        assert_eq!(play.group.increase(Time(0), 1), 1);
        play.serve();
        play
    }

    /// Answers all requests until this time.
    pub fn to(&mut self, ms: u64) -> &mut Play {
        self.pass(ms);
        self
    }

    /// The same, until just before this time.
    pub fn before(&mut self, ms: u64) -> &mut Play {
        self.to(ms - 1)
    }

    /// Plays until an operation has been requested this many times.
    pub fn until(&mut self, operation: &str, times: usize) {
        while self.times(operation).len() < times {
            let wake = self.group.wake_at().unwrap();
            assert!(wake.0 < 3600 * SECOND, "not requested: {operation}");
            self.pass(wake.0);
        }
    }

    pub fn answer(&mut self, request: Request) -> Answer {
        if let Some((_, kind)) = self.fails.iter().find(|(failing, _)| *failing == request.operation()) {
            return Err(error(*kind));
        }
        match request {
            Request::Poll { vapps: true } if self.deaf_to_vapps => Err(error(ErrorKind::Unavailable)),
            Request::Poll { .. } | Request::PollSome { .. } if self.deaf => Err(error(ErrorKind::Unavailable)),
            Request::PollSome { .. } if self.hidden => Ok(Reply::Poll(Poll::default())),
            Request::PollSome { names } => Ok(Reply::Poll(Poll {
                now: Some(START + self.now),
                vms: self.vms.iter().filter(|vm| names.contains(&vm.vapp_name)).cloned().collect(),
                ..Poll::default()
            })),
            Request::Poll { vapps } => Ok(Reply::Poll(Poll {
                now: Some(START + self.now),
                vms: if self.hidden { Vec::new() } else { self.vms.clone() },
                vapps: vapps.then(|| self.records.clone()),
                source: self.source,
            })),
            Request::Look { vapp, guest } => {
                let mut documents: Vec<Vapp> = self.documents.get(&vapp).cloned().into_iter().collect();
                if !guest {
                    documents.iter_mut().filter_map(|vapp| vapp.made.as_mut()).for_each(|made| made.guest = None);
                }
                Ok(Reply::Vapps(documents))
            }
            Request::Find { name } => {
                Ok(Reply::Vapps(self.documents.values().filter(|vapp| vapp.name == name).cloned().collect()))
            }
            Request::Create { name, .. } => {
                let made = shown(format!("v/made-{}", self.asked.len()).into(), name);
                self.documents.insert(made.vapp.clone(), vapp(&made));
                self.vms.push(made.clone());
                let source = self.source;
                Ok(Reply::Started(Started { vapp: Some(made.vapp), task: None, source }))
            }
            Request::Undeploy { vapp } => {
                self.vms.iter_mut().filter(|vm| vm.vapp == vapp).for_each(|vm| vm.power = Power::Off);
                self.documents.get_mut(&vapp).into_iter().for_each(|vapp| vapp.power = Power::Off);
                started(None, None)
            }
            Request::Delete { vapp } | Request::DeleteStopped { vapp } => {
                self.documents.remove(&vapp);
                self.vms.retain(|vm| vm.vapp != vapp);
                started(None, None)
            }
            Request::Suspend { .. } | Request::PowerOn { .. } => started(None, Some("t/1")),
            Request::Mark { .. } => started(None, None),
            Request::Tasks { tasks } => {
                let state = self.tasks.clone();
                Ok(Reply::Tasks(tasks.into_iter().map(|href| Task { href, state: state.clone() }).collect()))
            }
            Request::Cancel { .. } | Request::Label { .. } => Ok(Reply::Done),
            other => panic!("{other:?}"),
        }
    }

    /// Answers the held requests of this operation, the usual way or with `answer`.
    pub fn release(&mut self, operation: &str, answer: Option<Answer>) {
        let at = self.held.iter().position(|(_, request)| is(request.operation(), operation)).unwrap();
        let (ticket, request) = self.held.remove(at);
        let answer = answer.unwrap_or_else(|| self.answer(request));
        self.group.answer(Time(self.now), ticket, answer);
        self.serve();
    }

    /// Answers the oldest held probe.
    pub fn probed(&mut self) {
        self.probe(Ok(()));
    }

    /// The same, with this result.
    pub fn probe(&mut self, result: Result<(), String>) {
        let (ticket, _) = self.probes.remove(0);
        self.group.probed(Time(self.now), ticket, result);
        self.serve();
    }

    /// Answers with a failure.
    pub fn fail(&mut self, operation: &str, kind: ErrorKind) {
        self.release(operation, Some(Err(error(kind))));
    }

    /// Each of the next `n` creates fails. One of them may be held.
    pub fn fail_creates(&mut self, n: usize, kind: ErrorKind) {
        for _ in 0..n {
            let held = self.held.iter().filter(|(_, request)| request.operation() == "create").count();
            self.until("create", self.times("create").len() - held + 1);
            self.fail("create", kind);
        }
    }

    /// Answers with a started task.
    pub fn begin(&mut self, operation: &str, vapp: Option<Href>, task: &str) {
        self.release(operation, Some(started(vapp, Some(task))));
    }

    /// The name of the newest create.
    pub fn created(&self) -> Name {
        let created = self.asked.iter().rev().find_map(|(_, _, request)| match request {
            Some(Request::Create { name, .. }) => Some(name.clone()),
            _ => None,
        });
        created.unwrap()
    }

    /// The times of all requests of this operation.
    pub fn times(&self, operation: &str) -> Vec<u64> {
        self.asked.iter().filter(|(_, asked, _)| is(asked, operation)).map(|(at, ..)| *at).collect()
    }

    /// All vApps with a delete request.
    pub fn deleted(&self) -> Vec<&str> {
        let deleted = self.asked.iter().filter_map(|(_, _, request)| match request {
            Some(Request::Delete { vapp }) => Some(&**vapp),
            _ => None,
        });
        deleted.collect()
    }

    pub fn states(&self) -> Vec<State> {
        self.group.update().map(|(_, state)| state).collect()
    }

    pub fn view(&self) -> View {
        let mut views = self.group.views(Time(self.now));
        assert_eq!(views.len(), 1, "{views:?}");
        views.remove(0)
    }

    /// Names of all instances that are not reported.
    pub fn strays(&self) -> Vec<String> {
        let views = self.group.views(Time(self.now));
        views.iter().filter(|view| !view.reported).map(|view| view.name.to_string()).collect()
    }

    pub fn health(&mut self) -> Result<(), String> {
        let name = self.group.update().next().unwrap().0.clone();
        let health = self.group.heartbeat(Time(self.now), &name);
        health.map_err(|text| text.trim_start_matches(&format!("instance {name}: ")).to_string())
    }

    /// Number of log lines with this text.
    pub fn said(&self, text: &str) -> usize {
        self.said.iter().filter(|said| said.contains(text)).count()
    }

    pub fn show(&mut self, power: Power, busy: bool) -> &mut Play {
        (self.vms[0].power, self.vms[0].busy) = (power, busy);
        self
    }

    pub fn names(&self) -> Vec<Name> {
        self.group.update().map(|(name, _)| name.clone()).collect()
    }

    pub fn increase(&mut self, n: u32) {
        assert_eq!(self.group.increase(Time(self.now), n), n);
        self.serve();
    }

    pub fn decrease(&mut self, names: &[Name]) {
        assert_eq!(self.group.decrease(Time(self.now), names), names);
        self.serve();
    }

    pub fn suspend(&mut self) {
        let names = self.names();
        self.suspend_those(&names);
    }

    pub fn suspend_those(&mut self, names: &[Name]) {
        assert_eq!(self.group.suspend(Time(self.now), names).succeeded, names);
        self.serve();
    }

    pub fn resume(&mut self) {
        let names = self.names();
        self.resume_those(&names);
    }

    pub fn resume_those(&mut self, names: &[Name]) {
        assert_eq!(self.group.resume(Time(self.now), names).succeeded, names);
        self.serve();
    }

    pub fn shutdown(&mut self) {
        self.group.shutdown(Time(self.now));
        self.serve();
    }
}
