//! The group: any sequence of calls of the host, answers of VCD, and times.
//!
//! Each step is an opcode and its arguments, one byte each. Any open request can get any answer, of the right kind or
//! not, with records of owned, foreign and untagged vApps.
#![no_main]

use fleeting_plugin_vcd::cloud::*;
use fleeting_plugin_vcd::group::{Command, Group, Labels, Name, OnShutdown, Owner, Ownership, Policy, State, Ticket, Time};
use fleeting_plugin_vcd::journal::{Journal, Shown};
use fleeting_plugin_vcd_fuzz::{init, log_is_shown};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// Maximum number of steps in one life.
const MAX_STEPS: usize = 400;
/// Maximum number of instances, as in the policy.
const MAX_SIZE: u32 = 6;
/// Number of vApps that VCD can show, and of VMs and of tasks.
const VAPPS: u8 = 12;
/// Names that VCD can show, in addition to those from the group.
const NAMES: [&str; 6] = ["ci-aaaaaaaa", "ci-bbbbbbbb", "ci-cccccccc", "ci-toolong99", "ci-", "other"];
/// Maximum number of open requests: for each instance a request, its metadata entry and its probe, and the poll and
/// the tasks.
const MAX_OUT: usize = 3 * (MAX_SIZE as usize + 2 * VAPPS as usize) + 3;
/// Maximum number of commands after one input: some for each instance, including the log.
const MAX_COMMANDS: usize = 16 * (MAX_SIZE as usize + 2 * VAPPS as usize) + 64;
/// Maximum number of calls that the group requests without time passing.
const MAX_CALLS_AT_ONCE: u32 = 3;

fuzz_target!(init: init(), |data: &[u8]| {
    let mut input = Input(data);
    let mut life = Life::new(&mut input);
    for _ in 0..MAX_STEPS {
        if input.0.is_empty() {
            break;
        }
        life.step(&mut input);
    }
});

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, n: u8) -> u8 {
        self.byte() % n.max(1)
    }

    fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }
}

struct Life {
    group: Group,
    journal: Journal,
    owner: Owner,
    now: Time,
    asks: Vec<(Ticket, Request)>,
    probes: Vec<Ticket>,
    /// vApps, VMs and tasks that VCD has shown as the group's: in a vApp's own document, or as the result of a
    /// create.
    ours: BTreeSet<Href>,
    /// vApps that had the group's metadata entry.
    labelled: BTreeSet<Href>,
    max_creates: usize,
    stopping: bool,
}

/// For debugging an input: FUZZ_LOG=1 shows what happens.
fn trace(line: impl Fn() -> String) {
    if log_is_shown() {
        eprintln!("{}", line());
    }
}

fn href(kind: &str, n: u8) -> Href {
    format!("https://vcd/api/{kind}/{n}").into()
}

impl Life {
    fn new(input: &mut Input) -> Life {
        let how = input.byte();
        let policy = Policy {
            manager: "m".into(),
            group: "g".into(),
            prefix: "ci".into(),
            max_size: MAX_SIZE,
            max_creates: u32::from(how & 3) + 1,
            max_deletes: u32::from(how >> 2 & 3) + 1,
            max_operations: u32::from(how >> 4 & 3) + 1,
            on_shutdown: if how & 64 == 0 { OnShutdown::Delete } else { OnShutdown::Keep },
            credentials: if how & 128 == 0 { String::new() } else { "0123abcd".into() },
            ..Policy::default()
        };
        let owner = Owner::new(&policy);
        let mut max_creates = policy.max_creates as usize;
        let seed = u64::from(input.byte());
        let standby_count = if seed & 6 == 0 { 2 } else { 0 };
        // A VM for the pool, which takes no slot of requested instances.
        max_creates += usize::from(standby_count > 0);
        let policy =
            Policy { standby_count, labels: if seed & 1 == 0 { Labels::All } else { Labels::Found }, ..policy };
        let empty = Group::new(policy.clone(), seed, Time(0), &Poll::default());
        let mut life = Life {
            group: empty,
            journal: Journal::default(),
            owner,
            now: Time(0),
            asks: Vec::new(),
            probes: Vec::new(),
            ours: BTreeSet::new(),
            labelled: BTreeSet::new(),
            max_creates,
            stopping: false,
        };
        let first = life.poll(input, true);
        trace(|| format!("first poll: {first:?}"));
        life.group = Group::new(policy, seed, Time(0), &first);
        life.after(Shown::Poll, 0);
        life
    }

    fn step(&mut self, input: &mut Input) {
        let before = self.now;
        let mut shown = Shown::Nothing;
        match input.byte() % 16 {
            0 => {
                let n = input.byte();
                let n = if n == 255 { u32::MAX } else { n.into() };
                let live = self.live();
                let accepted = self.group.increase(self.now, n);
                assert!(accepted <= n && (accepted as usize + live <= MAX_SIZE as usize || accepted == 0));
                assert!(!self.stopping || accepted == 0, "no new instance after Shutdown");
            }
            1 => {
                let names = self.names(input);
                assert_eq!(self.group.decrease(self.now, &names), names);
            }
            2 => {
                let names = self.names(input);
                let outcome = self.group.suspend(self.now, &names);
                assert_eq!(outcome.succeeded.len() + outcome.refused.len(), names.len());
            }
            3 => {
                let names = self.names(input);
                let outcome = self.group.resume(self.now, &names);
                assert_eq!(outcome.succeeded.len() + outcome.refused.len(), names.len());
            }
            4 => {
                if let Some(name) = self.names(input).first() {
                    let _ = self.group.heartbeat(self.now, name);
                    let _ = self.group.reach(name);
                }
            }
            5 if input.byte() == 7 => {
                self.stopping = true;
                self.group.shutdown(self.now);
            }
            // Time passes: until the time that the group requests, or until any other time.
            5..=7 => {
                let wish = self.group.wake_at();
                self.now = match (input.byte(), wish) {
                    (0..128, Some(at)) => Time(at.0.max(self.now.0)),
                    (n, _) => self.now + Duration::from_millis(1 << (n % 29)),
                };
                self.group.tick(self.now);
            }
            8 if !self.probes.is_empty() => {
                let at = usize::from(input.byte()) % self.probes.len();
                let ticket = self.probes.swap_remove(at);
                let result = if input.flag() { Ok(()) } else { Err("closed".to_owned()) };
                shown = Shown::Port;
                self.group.probed(self.now, ticket, result);
            }
            _ if !self.asks.is_empty() => {
                self.now = self.now + Duration::from_millis(u64::from(input.byte()) * 8);
                let at = usize::from(input.byte()) % self.asks.len();
                let (ticket, request) = self.asks.remove(at);
                shown = match request {
                    Request::Poll { .. } | Request::PollSome { .. } => Shown::Poll,
                    Request::Tasks { .. } => Shown::Tasks,
                    _ => Shown::Nothing,
                };
                let answer = self.answer(input, &request);
                trace(|| format!("{:?} {request:?} -> {answer:?}", self.now));
                self.group.answer(self.now, ticket, answer);
            }
            _ => {}
        }
        assert!(self.now >= before);
        self.after(shown, 0);
    }

    fn live(&self) -> usize {
        self.group
            .update()
            .filter(|(_, state)| !matches!(state, State::Deleting | State::Deleted | State::Timeout))
            .count()
    }

    /// Takes the commands, and checks the assertions.
    fn after(&mut self, shown: Shown, calls: u32) {
        let mut said = Vec::new();
        let mut count = 0;
        while let Some(command) = self.group.next_command() {
            count += 1;
            assert!(count <= MAX_COMMANDS, "more than {MAX_COMMANDS} commands after one input");
            trace(|| format!("{:?} {command:?}", self.now));
            match command {
                Command::Say(event) => said.push(event),
                Command::Probe { ticket, .. } => self.probes.push(ticket),
                Command::Ask { ticket, request } => {
                    self.may(&request);
                    self.asks.push((ticket, request));
                }
            }
        }
        assert!(self.asks.len() + self.probes.len() <= MAX_OUT, "{} requests are out", self.asks.len());
        let out = |is: fn(&Request) -> bool| self.asks.iter().filter(|(_, request)| is(request)).count();
        assert!(out(|request| matches!(request, Request::Poll { .. })) <= 1);
        assert!(out(|request| matches!(request, Request::PollSome { .. })) <= 1);
        assert!(out(|request| matches!(request, Request::Tasks { .. })) <= 1);
        assert!(out(|request| matches!(request, Request::Create { .. })) <= self.max_creates, "too many creates");

        let mut names: Vec<&Name> = self.group.update().map(|(name, _)| name).collect();
        names.sort();
        assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "each id once");
        let views = self.group.views(self.now);
        self.journal.turn(self.now, shown, Vec::new(), said, &views);
        // The group may request another call immediately, but not repeatedly.
        if self.group.wake_at().is_some_and(|at| at <= self.now) {
            assert!(calls < MAX_CALLS_AT_ONCE, "it requests repeated calls at {:?}", self.now);
            self.group.tick(self.now);
            self.after(Shown::Nothing, calls + 1);
        }
        let _ = self.group.standing(self.now);
        assert!(self.group.knows_its_own() || !views.is_empty());
        if self.group.stopped() {
            assert!(self.stopping && self.group.left().is_empty());
        }
    }

    /// A change is sent only to an object of the group.
    fn may(&self, request: &Request) {
        let target = match request {
            Request::Configure { vm } | Request::AddTpm { vm } => vm,
            Request::PowerOn { vapp }
            | Request::Suspend { vapp }
            | Request::Mark { vapp, .. }
            | Request::Delete { vapp }
            | Request::Undeploy { vapp }
            | Request::DeleteStopped { vapp }
            | Request::Label { vapp } => vapp,
            Request::Cancel { task } => task,
            Request::Create { name, description, .. } => {
                assert!(self.owner.judge_record(name, Some(description)) == Ownership::Ours);
                assert!(!self.stopping, "a create after Shutdown");
                return;
            }
            Request::Tasks { tasks } => return assert!(!tasks.is_empty() && tasks.len() <= MAX_TASKS_ASKED),
            Request::PollSome { names } => return assert!(!names.is_empty() && names.len() <= MAX_NAMES_ASKED),
            Request::Poll { .. } | Request::Find { .. } | Request::Look { .. } => return,
        };
        assert!(self.ours.contains(target), "{request:?} is sent to an object that the group does not own");
    }

    fn names(&self, input: &mut Input) -> Vec<Name> {
        let known: Vec<Name> = self.group.update().map(|(name, _)| name.clone()).collect();
        (0..input.below(4)).map(|_| pick(&known, input.byte())).collect()
    }

    fn name(&self, input: &mut Input) -> Name {
        let known: Vec<Name> = self.group.update().map(|(name, _)| name.clone()).collect();
        pick(&known, input.byte())
    }

    fn description(&self, name: &str, input: &mut Input) -> String {
        match input.byte() % 8 {
            0 => String::new(),
            1 => "a template's text".into(),
            2 => "fleeting-plugin-vcd/1 manager=m2 group=g id=ci-aaaaaaaa".into(),
            3 => self.owner.description("ci-bbbbbbbb"),
            4 => format!("fleeting-plugin-vcd/1 manager=m group=g id={name} credentials=other"),
            _ => self.owner.description(name),
        }
    }

    fn power(input: &mut Input) -> Power {
        match input.byte() % 8 {
            0 => Power::Off,
            1 => Power::Suspended,
            2 => Power::Failed,
            3 => Power::Other,
            _ => Power::On,
        }
    }

    fn customization(choice: u8) -> Customization {
        match choice & 7 {
            0 => Customization::Pending,
            1 => Customization::Working,
            2 => Customization::Failed,
            3 => Customization::Unknown,
            _ => Customization::Complete,
        }
    }

    fn vcd_time(input: &mut Input) -> Option<UnixMs> {
        match input.byte() {
            0 => None,
            1 => Some(0),
            2 => Some(u64::MAX),
            n => Some(1_767_261_602_000 + u64::from(n) * 600_000),
        }
    }

    /// The source of VMs: one of two, or unknown.
    fn source(from: Option<UnixMs>) -> Source {
        match from {
            None => Source::default(),
            Some(0) => Source(2),
            _ => Source(1),
        }
    }

    fn poll(&mut self, input: &mut Input, vapps: bool) -> Poll {
        let now = Self::vcd_time(input);
        let vms = (0..input.below(5)).map(|_| self.vm(input)).collect();
        let vapps = vapps.then(|| (0..input.below(5)).map(|_| self.vapp(input, true)).collect());
        Poll { now, vms, vapps, source: Self::source(now) }
    }

    fn vm(&mut self, input: &mut Input) -> Vm {
        let n = input.below(VAPPS);
        let name = self.name(input);
        let description = self.description(&name, input);
        let (vapp, vm) = (href("vApp", n), href("vm", n));
        let more = input.byte();
        Vm {
            vapp,
            vapp_name: name,
            vm,
            description: description.into(),
            power: Self::power(input),
            busy: more & 1 == 1,
            address: (more & 2 == 0).then_some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, n))),
            customization: Self::customization(more >> 2),
            guest_os: if more & 32 == 0 { "Ubuntu Linux (64-bit)" } else { "Microsoft Windows Server 2022 (64-bit)" }
                .into(),
            created: Self::vcd_time(input),
            cpus: 2,
            memory_mb: 4096,
            undeploy_at: (more & 64 != 0).then(|| Self::vcd_time(input)).flatten(),
            delete_at: (more & 128 != 0).then(|| Self::vcd_time(input)).flatten(),
        }
    }

    /// A vApp from a record, or from its own document.
    fn vapp(&mut self, input: &mut Input, record: bool) -> Vapp {
        let n = input.below(VAPPS);
        let name = self.name(input);
        let href_ = href("vApp", n);
        let description = (!record).then(|| self.description(&name, input));
        let more = input.byte();
        let labelled = record && more & 1 == 1;
        if labelled {
            self.labelled.insert(href_.clone());
        }
        let tasks: Vec<Href> =
            (0..if record { 0 } else { more >> 1 & 3 }).map(|_| href("task", input.below(VAPPS))).collect();
        let made = (!record && more & 8 != 0).then(|| Made {
            vm: href("vm", n),
            own: more & 2 == 0,
            differs: (more & 16 != 0).then(|| "1 CPU instead of 2".to_owned()),
            lacks_tpm: more & 32 != 0,
            external: (more & 64 != 0).then_some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, n))),
            guest: (more & 2 != 0).then(|| SeenGuest {
                address: (more & 64 != 0).then_some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, n))),
                customization: Self::customization(input.byte()),
                guest_os: "".into(),
            }),
        });
        let (created, tasks_empty) = (Self::vcd_time(input), tasks.is_empty());
        let vm_descriptions = made.iter().map(|_| self.description(&name, input)).collect();
        Vapp {
            href: href_,
            name,
            description,
            power: Self::power(input),
            busy: !tasks.is_empty() || more & 128 != 0,
            deleting: !tasks.is_empty() && more & 4 != 0,
            tasks,
            vms: made.iter().map(|made| made.vm.clone()).chain((more & 4 != 0).then(|| href("vm", n ^ 1))).collect(),
            vm_descriptions,
            made,
            created,
            labelled,
            suspending: !tasks_empty && more & 2 != 0,
            mark: match more & 3 {
                1 => Mark::Suspended,
                3 => Mark::Standby { source: Self::source(created) },
                _ => Mark::Running,
            },
        }
    }

    /// A vApp's own document decides the owner. A known vApp of the group stays owned if somebody changes its
    /// description.
    fn told(&mut self, vapp: &Vapp) {
        let known = self.labelled.contains(&vapp.href) || self.ours.contains(&vapp.href);
        if self.owner.owns(vapp, known) {
            self.ours.insert(vapp.href.clone());
            self.ours.extend(vapp.tasks.iter().cloned());
            self.ours.extend(vapp.made.iter().map(|made| made.vm.clone()));
        }
    }

    fn error(input: &mut Input) -> VcdError {
        use ErrorKind::*;
        let kinds = [
            NotFound,
            Busy,
            State,
            Forbidden,
            Auth,
            Limit,
            Quota,
            Duplicate,
            Invalid,
            TooMuch,
            Unavailable,
            Ambiguous,
            Protocol,
            Failed,
        ];
        let kind = kinds[usize::from(input.byte()) % kinds.len()];
        let retry_after = match input.byte() % 4 {
            0 => Some(Duration::from_secs(3600)),
            1 => Some(Duration::ZERO),
            _ => None,
        };
        VcdError { kind, what: "try".into(), status: 400, code: String::new(), text: "no".into(), retry_after }
    }

    fn answer(&mut self, input: &mut Input, request: &Request) -> Answer {
        let how = input.byte() % 16;
        if how == 0 {
            return Err(Self::error(input));
        }
        // Sometimes an answer has any kind.
        let kind = match (how, request) {
            (1, _) => input.byte() % 5,
            (_, Request::Poll { .. } | Request::PollSome { .. }) => 0,
            (_, Request::Find { .. } | Request::Look { .. }) => 1,
            (_, Request::Tasks { .. }) => 2,
            (_, Request::Cancel { .. } | Request::Label { .. }) => 3,
            _ => 4,
        };
        Ok(match kind {
            0 => Reply::Poll(self.poll(input, matches!(request, Request::Poll { vapps: true }))),
            1 => {
                let mut vapps: Vec<Vapp> = (0..input.below(4)).map(|_| self.vapp(input, false)).collect();
                // A lookup returns the requested vApp or nothing: the client ensures this.
                if let Request::Look { vapp: asked, .. } = request {
                    vapps.truncate(1);
                    vapps.iter_mut().for_each(|vapp| vapp.href = asked.clone());
                }
                // A found vApp has the name, unless it was renamed at this moment.
                if let (Request::Find { name }, 5..) = (request, how) {
                    for vapp in &mut vapps {
                        if vapp.description.as_deref() == Some(&*self.owner.description(&vapp.name)) {
                            vapp.description = Some(self.owner.description(name));
                        }
                        vapp.name = name.clone();
                    }
                }
                for vapp in &vapps {
                    self.told(vapp);
                }
                Reply::Vapps(vapps)
            }
            2 => {
                let asked = match request {
                    Request::Tasks { tasks } => tasks.clone(),
                    _ => vec![href("task", input.below(VAPPS))],
                };
                let state = |input: &mut Input| match input.byte() % 8 {
                    0 => TaskState::Failed(Self::error(input)),
                    1 => TaskState::Unknown,
                    2 | 3 => TaskState::Running,
                    _ => TaskState::Success,
                };
                Reply::Tasks(asked.into_iter().map(|href| Task { href, state: state(input) }).collect())
            }
            3 => Reply::Done,
            _ => {
                let (vapp, task) = (href("vApp", input.below(VAPPS)), href("task", input.below(VAPPS)));
                let more = input.byte();
                let vapp = (matches!(request, Request::Create { .. }) && more & 7 != 0).then_some(vapp);
                let task = (more & 24 != 0).then_some(task);
                // The group owns what VCD reports as created for it, and the tasks of its requests.
                if request.changes() {
                    if let Some(vapp) = &vapp {
                        self.ours.insert(vapp.clone());
                    }
                    self.ours.extend(task.clone());
                }
                Reply::Started(Started { vapp, task, source: Source(1) })
            }
        })
    }
}

fn pick(known: &[Name], n: u8) -> Name {
    let n = usize::from(n);
    if n & 1 == 1 && !known.is_empty() {
        known[(n >> 1) % known.len()].clone()
    } else {
        NAMES[(n >> 1) % NAMES.len()].into()
    }
}
