//! The reaction to each answer: one instance in virtual time. The test answers each request itself, and asserts the next
//! request and its time. The harness answers polls, tasks and probes.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use crate::play;
use crate::play::{Passing, error, policy, shown};
use fleeting_plugin_vcd::cloud::*;
use fleeting_plugin_vcd::group::{Command, Group, Name, Policy, State, Ticket, Time};
use std::ops::RangeInclusive;
use std::time::Duration;

/// Pauses in milliseconds.
const AT_ONCE: RangeInclusive<u64> = 0..=0;
const BACKOFF: RangeInclusive<u64> = 7_500..=12_500;
const BACKOFF_TWICE: RangeInclusive<u64> = 15_000..=25_000;
const LONG: RangeInclusive<u64> = 225_000..=375_000;
const QUOTA: RangeInclusive<u64> = 22_500..=37_500;
const THROTTLED: RangeInclusive<u64> = 7_500..=22_500;
/// Later than any request.
const NEVER: u64 = 3_600_000;

struct Play {
    group: Group,
    now: u64,
    /// The request that the test has to answer.
    asked: Option<Request>,
    ticket: Ticket,
    name: Name,
    said: Vec<String>,
    /// What polls and lookups show.
    power: Power,
    /// Polls show it: VCD has created it, or the last lookup found it.
    made: bool,
    /// The state of each task.
    task: TaskState,
}

fn failed(kind: ErrorKind) -> Answer {
    Err(error(kind))
}

fn started(task: Option<&str>) -> Answer {
    play::started(Some("v/1".into()), task)
}

impl Passing for Play {
    fn group(&mut self) -> (&mut Group, &mut u64) {
        (&mut self.group, &mut self.now)
    }

    fn command(&mut self, command: Command) -> bool {
        let (ticket, answer) = match command {
            Command::Say(event) => {
                self.said.push(format!("{} {}", event.level, event.text));
                return false;
            }
            Command::Probe { ticket, .. } => {
                self.group.probed(Time(self.now), ticket, Ok(()));
                return false;
            }
            Command::Ask { ticket, request: Request::Poll { .. } | Request::PollSome { .. } } => {
                (ticket, Reply::Poll(Poll { vms: self.vms(), ..Poll::default() }))
            }
            Command::Ask { ticket, request: Request::Tasks { tasks } } => {
                assert!(!tasks.is_empty(), "no request");
                let state = self.task.clone();
                let tasks = tasks.into_iter().map(|href| Task { href, state: state.clone() }).collect();
                (ticket, Reply::Tasks(tasks))
            }
            // These requests complete immediately.
            Command::Ask { ticket, request: Request::Mark { .. } } => (ticket, Reply::Started(Started::default())),
            Command::Ask { ticket, request } => {
                if let Request::Create { name, .. } = &request {
                    self.name = name.clone();
                }
                (self.ticket, self.asked) = (ticket, Some(request));
                return true;
            }
        };
        self.group.answer(Time(self.now), ticket, Ok(answer));
        false
    }
}

impl Play {
    fn new() -> Play {
        let mut play = Play::begin(None);
        play.group.increase(Time(0), 1);
        play
    }

    /// A group that finds an owned, powered-off vApp with this name, if one is given.
    fn begin(leftover: Option<&str>) -> Play {
        let policy = Policy { create_timeout: Duration::from_secs(24 * 3600), ..policy() };
        let mut play = Play::playing(policy.clone());
        if let Some(name) = leftover {
            (play.name, play.made, play.power) = (name.into(), true, Power::Off);
            let first = Poll { vms: play.vms(), ..Poll::default() };
            play.group = Group::new(policy, 1, Time(0), &first);
            play.made = false;
        }
        play
    }

    fn playing(policy: Policy) -> Play {
        Play {
            group: Group::new(policy, 1, Time(0), &Poll::default()),
            now: 0,
            asked: None,
            ticket: 0,
            name: "".into(),
            said: Vec::new(),
            power: Power::On,
            made: false,
            task: TaskState::Success,
        }
    }

    fn state(&self) -> State {
        self.group.update().next().unwrap().1
    }

    fn said(&self, text: &str) -> bool {
        self.said.iter().any(|said| said.contains(text))
    }

    fn failures(&self) -> u32 {
        self.group.standing(Time(self.now)).failures
    }

    /// The next request that the test has to answer, if it comes within this many milliseconds.
    fn within(&mut self, ms: u64) -> Option<Request> {
        self.pass(self.now + ms);
        self.asked.take()
    }

    fn vms(&self) -> Vec<Vm> {
        if self.made { vec![self.vm()] } else { Vec::new() }
    }

    fn vm(&self) -> Vm {
        Vm { power: self.power, ..shown("v/1".into(), self.name.clone()) }
    }

    /// The next request has this name and comes after this pause.
    #[track_caller]
    fn expect(&mut self, operation: &str, pause: RangeInclusive<u64>) -> Request {
        let from = self.now;
        let request = self.within(NEVER).unwrap_or_else(|| panic!("no {operation}"));
        let took = self.now - from;
        assert!(request.operation() == operation && pause.contains(&took), "{request:?} after {took} ms");
        request
    }

    fn answer(&mut self, answer: Answer) {
        match &answer {
            Ok(Reply::Started(_)) => self.made = true,
            Ok(Reply::Vapps(vapps)) => self.made = !vapps.is_empty(),
            _ => {}
        }
        self.group.answer(Time(self.now), self.ticket, answer);
    }

    fn vapp(&self, differs: bool, lacks_tpm: bool) -> Vapp {
        let differs = differs.then(|| "1 CPU".to_string());
        let made = Some(Made { vm: "m/v/1".into(), own: true, differs, lacks_tpm, external: None, guest: None });
        Vapp { made, ..play::vapp(&self.vm()) }
    }

    /// The answer is lost: a lookup follows after a second.
    fn lost(mut self) -> Play {
        self.answer(failed(ErrorKind::Ambiguous));
        self.after(1_000, "look");
        self
    }

    /// The answer is lost, and a minute of lookups shows that it had no effect.
    fn without_effect(self) -> Play {
        let mut play = self.lost();
        play.quiet(59_000);
        play.shows(false, false);
        play
    }

    fn standing(&self) -> fleeting_plugin_vcd::group::Standing {
        self.group.standing(Time(self.now))
    }

    /// The host deletes it while a task works on it: the group cancels the task.
    fn gives_up(&mut self) -> Request {
        self.decrease();
        self.expect("look", AT_ONCE);
        self.held("t/2");
        self.expect("cancel", AT_ONCE)
    }

    /// A task works on it.
    fn held(&mut self, task: &str) {
        self.sees(|vapp| (vapp.busy, vapp.tasks) = (true, vec![task.into()]));
    }

    fn shows(&mut self, differs: bool, lacks_tpm: bool) {
        let vapp = self.vapp(differs, lacks_tpm);
        self.answer(Ok(Reply::Vapps(vec![vapp])));
    }

    /// Answers a lookup with the usual result, changed by `change`.
    fn sees(&mut self, change: impl FnOnce(&mut Vapp)) {
        let mut vapp = self.vapp(false, false);
        change(&mut vapp);
        self.answer(Ok(Reply::Vapps(vec![vapp])));
    }

    fn sees_nothing(&mut self) {
        self.answer(Ok(Reply::Vapps(Vec::new())));
    }

    /// The next request comes after exactly this pause.
    #[track_caller]
    fn after(&mut self, ms: u64, operation: &str) {
        self.expect(operation, ms..=ms);
    }

    /// Time passes without a request.
    #[track_caller]
    fn quiet(&mut self, ms: u64) {
        let asked = self.within(ms);
        assert!(asked.is_none(), "{asked:?}");
    }

    fn decrease(&mut self) {
        let names = [self.name.clone()];
        self.group.decrease(Time(self.now), &names);
    }

    fn resume(&mut self) {
        let names = [self.name.clone()];
        assert_eq!(self.group.resume(Time(self.now), &names).succeeded, names);
    }

    /// Until the first lookup of a vApp that was created without hardware.
    fn composed() -> Play {
        let mut play = Play::new();
        play.expect("create", AT_ONCE);
        play.answer(failed(ErrorKind::TooMuch));
        assert!(matches!(play.expect("create", AT_ONCE), Request::Create { whole: false, .. }));
        play.power = Power::Off;
        play.answer(started(None));
        play.expect("look", AT_ONCE);
        play
    }

    /// Until the first delete of a vApp whose create failed.
    fn scrapped() -> Play {
        let mut play = Play::composed();
        play.shows(true, false);
        play.expect("configure", AT_ONCE);
        play.answer(failed(ErrorKind::Failed));
        play.expect("delete", AT_ONCE);
        play
    }

    /// Until the request for the metadata entry of a running instance.
    fn running() -> Play {
        let mut play = Play::new();
        play.expect("create", AT_ONCE);
        play.answer(started(None));
        play.expect("look", AT_ONCE);
        play.shows(false, false);
        assert!(play.within(20_000).is_none() && play.state() == State::Running);
        play
    }

    /// Until the resume request.
    fn roused() -> Play {
        let mut play = Play::tired();
        play.answer(started(None));
        play.expect("look", AT_ONCE);
        play.power = Power::Suspended;
        play.shows(false, false);
        play.resume();
        play.expect("power_on", AT_ONCE);
        play
    }

    /// Until the suspend request.
    fn tired() -> Play {
        let mut play = Play::running();
        play.expect("label", 0..=30_000);
        play.answer(Ok(Reply::Done));
        let name = play.name.clone();
        play.group.suspend(Time(play.now), &[name]);
        play.expect("suspend", AT_ONCE);
        play
    }
}

#[test]
fn a_create_is_repeated_looked_up_or_done_in_steps() {
    use ErrorKind::*;
    for (kind, pause, failures) in [
        (Limit, THROTTLED, 0),
        (TooMuch, AT_ONCE, 0),
        (Unavailable, BACKOFF, 0),
        (Auth, BACKOFF, 0),
        (Busy, BACKOFF, 0),
        (Failed, BACKOFF, 1),
        (State, BACKOFF, 1),
        (Quota, QUOTA, 1),
        (Forbidden, LONG, 1),
        // In steps, VCD may accept it.
        (Invalid, LONG, 0),
        (NotFound, LONG, 1),
    ] {
        let mut play = Play::new();
        play.expect("create", AT_ONCE);
        play.answer(failed(kind));
        let again = play.expect("create", pause);
        assert!(matches!(again, Request::Create { whole, .. } if whole == (kind != TooMuch)), "{kind:?}");
        assert_eq!(play.failures(), failures, "{kind:?}");
        // A create without hardware fails if VCD rejects it too.
        if kind == TooMuch {
            play.answer(failed(kind));
            play.expect("create", BACKOFF);
            assert_eq!(play.failures(), 1);
        }
    }
    let mut play = Play::new();
    play.expect("create", AT_ONCE);
    play.answer(failed(Failed));
    play.expect("create", BACKOFF);
    play.answer(failed(Failed));
    play.expect("create", BACKOFF_TWICE);
    play.answer(failed(Failed));
    // The breaker's minute is longer than the third pause.
    play.expect("create", 60_000..=60_000);
}

#[test]
fn an_unclear_create_is_looked_up_for_a_minute() {
    for kind in [ErrorKind::Ambiguous, ErrorKind::Protocol, ErrorKind::Duplicate] {
        let mut play = Play::new();
        play.expect("create", AT_ONCE);
        play.answer(failed(kind));
        play.expect("find", 1_000..=1_000);
        for _ in 0..12 {
            play.answer(Ok(Reply::Vapps(Vec::new())));
            play.expect("find", 5_000..=5_000);
        }
        play.answer(Ok(Reply::Vapps(Vec::new())));
        play.expect("create", AT_ONCE);
        assert!(play.said("a lookup by name shows whether VCD created it"), "{:?}", play.said);
    }
    for (power, next) in [(Power::On, "look"), (Power::Off, "power_on")] {
        let mut play = Play::new();
        play.expect("create", AT_ONCE);
        play.answer(failed(ErrorKind::Ambiguous));
        play.expect("find", 1_000..=1_000);
        play.power = power;
        play.shows(false, false);
        play.expect(next, AT_ONCE);
    }
}

#[test]
fn a_vm_created_without_hardware_gets_each_part_once() {
    let mut play = Play::composed();
    for (request, lacks) in [("configure", true), ("tpm", true), ("power_on", true)] {
        play.shows(true, lacks);
        play.expect(request, AT_ONCE);
        play.answer(started(None));
        play.expect("look", AT_ONCE);
    }
    play.power = Power::On;
    play.shows(false, false);
    play.expect("look", AT_ONCE);
    play.shows(false, false);
    assert!(play.within(20_000).is_none() && play.state() == State::Running);

    let mut play = Play::composed();
    play.shows(false, false);
    play.expect("power_on", AT_ONCE);
    play.answer(started(Some("t/1")));
    play.power = Power::On;
    play.expect("look", 1_000..=1_000);
}

/// One request sets the hardware, the next one what the first did not: the guest properties.
#[test]
fn a_vm_that_vcd_created_and_calls_failed_is_powered_on() {
    let mut play = Play::composed();
    play.power = Power::Failed;
    play.shows(false, false);
    play.expect("power_on", AT_ONCE);
}

#[test]
fn a_vm_is_reconfigured_for_as_long_as_what_it_lacks_changes() {
    let mut play = Play::composed();
    for differs in ["1 CPU, no user data", "no user data"] {
        play.sees(|vapp| vapp.made.as_mut().unwrap().differs = Some(differs.into()));
        play.expect("configure", AT_ONCE);
        play.answer(started(None));
        play.expect("look", AT_ONCE);
    }
    // VCD does not change that.
    play.sees(|vapp| vapp.made.as_mut().unwrap().differs = Some("no user data".into()));
    play.expect("power_on", AT_ONCE);
}

#[test]
fn a_vm_that_somebody_powers_on_between_its_steps_frees_its_slot() {
    let used = |play: &Play| play.group.standing(Time(play.now)).creates.used;
    let mut play = Play::composed();
    assert_eq!(used(&play), 1, "the next step has it");
    play.power = Power::On;
    play.shows(false, false);
    play.expect("look", AT_ONCE);
    assert_eq!(used(&play), 0, "no further step");
}

#[test]
fn a_failed_reconfigure_is_looked_up() {
    use ErrorKind::*;
    for (kind, pauses) in [
        (Busy, [3_000..=3_000, 6_000..=6_000]),
        (Unavailable, [BACKOFF, BACKOFF_TWICE]),
        (Auth, [BACKOFF, BACKOFF_TWICE]),
        (Limit, [THROTTLED, 15_000..=45_000]),
        (NotFound, [5_000..=5_000, 5_000..=5_000]),
    ] {
        let mut play = Play::composed();
        for pause in pauses {
            play.shows(true, false);
            play.expect("configure", AT_ONCE);
            play.answer(failed(kind));
            play.expect("look", pause);
        }
    }
    let mut play = Play::composed();
    play.shows(true, false);
    play.expect("configure", AT_ONCE);
    play.answer(failed(Ambiguous));
    play.expect("look", 1_000..=1_000);
    for _ in 0..12 {
        play.shows(true, false);
        play.expect("look", 5_000..=5_000);
    }
    play.shows(true, false);
    play.expect("configure", AT_ONCE);

    let mut play = Play::composed();
    play.shows(false, true);
    play.expect("tpm", AT_ONCE);
    play.answer(failed(Failed));
    play.expect("look", AT_ONCE);
    play.shows(false, true);
    play.expect("power_on", AT_ONCE);
}

#[test]
fn a_delete_is_repeated_or_done_without_force() {
    use ErrorKind::*;
    for (kind, next, pause) in [
        (Limit, "delete", THROTTLED),
        (Busy, "look", 3_000..=3_000),
        (Ambiguous, "look", 1_000..=1_000),
        (Protocol, "look", 1_000..=1_000),
        (Unavailable, "look", BACKOFF),
        (Quota, "look", LONG),
        (NotFound, "look", AT_ONCE),
        (Forbidden, "undeploy", AT_ONCE),
        (Invalid, "undeploy", AT_ONCE),
        (State, "undeploy", AT_ONCE),
    ] {
        let mut play = Play::scrapped();
        play.answer(failed(kind));
        assert_eq!(play.group.standing(Time(play.now)).throttled, u64::from(kind == Limit), "{kind:?}");
        play.expect(next, pause);
        assert!(!play.said("a lookup shows whether it worked"), "one line says what follows: {:?}", play.said);
    }
    // A lookup comes before the repeated delete.
    let again = |play: &mut Play, pause: RangeInclusive<u64>, next: &str| {
        play.expect("look", pause);
        play.shows(false, false);
        play.expect(next, AT_ONCE);
    };
    let mut play = Play::scrapped();
    play.answer(failed(Unavailable));
    again(&mut play, BACKOFF, "delete");
    play.answer(failed(Unavailable));
    again(&mut play, BACKOFF_TWICE, "delete");

    // The pause has already started when a lookup shows that VCD does nothing.
    let mut play = Play::scrapped();
    play.answer(failed(Ambiguous));
    play.expect("look", 1_000..=1_000);
    play.shows(false, false);
    again(&mut play, 6_500..=11_500, "delete");

    let mut play = Play::scrapped();
    for pause in [3_000, 6_000, 12_000] {
        play.answer(failed(Busy));
        again(&mut play, pause..=pause, "delete");
    }

    let mut play = Play::scrapped();
    play.answer(failed(State));
    play.expect("undeploy", AT_ONCE);
    // It is powered off, and needs no stop.
    play.answer(failed(State));
    play.expect("delete_stopped", AT_ONCE);
    play.answer(failed(State));
    // By force again: VCD may accept it now.
    again(&mut play, BACKOFF, "delete");
    play.answer(failed(State));
    play.expect("undeploy", AT_ONCE);
    play.answer(started(None));
    play.expect("look", AT_ONCE);
    play.power = Power::On;
    play.shows(false, false);
    // The stop failed: one more failure.
    again(&mut play, BACKOFF_TWICE, "undeploy");
    play.answer(started(None));
    play.expect("look", AT_ONCE);
    play.power = Power::Off;
    play.shows(false, false);
    play.expect("delete_stopped", AT_ONCE);
    // A powered-off vApp may still need a stop: its guest has shut down, and it is still deployed.
    let mut off = Play::scrapped();
    off.answer(failed(Forbidden));
    off.expect("undeploy", AT_ONCE);
    off.answer(failed(Limit));
    again(&mut off, THROTTLED, "undeploy");
    // Somebody changes its owner meanwhile, which polls do not show.
    play.answer(failed(Forbidden));
    play.expect("look", LONG);
    play.sees(|vapp| vapp.name = "kept".into());
    play.expect("create", AT_ONCE);
    assert!(play.said("the plugin no longer manages it"));
}

#[test]
fn after_a_stop_a_vapp_is_deleted_unless_it_still_runs() {
    for power in [Power::Off, Power::Other, Power::Failed] {
        let mut play = Play::scrapped();
        play.answer(failed(ErrorKind::Forbidden));
        play.expect("undeploy", AT_ONCE);
        play.answer(started(None));
        play.expect("look", AT_ONCE);
        play.power = power;
        play.shows(false, false);
        play.expect("delete_stopped", AT_ONCE);
    }
}

#[test]
fn a_delete_that_is_lost_three_times_is_done_the_other_way() {
    let mut play = Play::scrapped();
    play.power = Power::On;
    for next in ["delete", "delete", "undeploy", "delete", "undeploy"] {
        play.answer(failed(ErrorKind::Ambiguous));
        play.expect("look", 1_000..=1_000);
        play.shows(false, false);
        play.expect("look", 0..=NEVER);
        play.shows(false, false);
        play.expect(next, AT_ONCE);
    }
    // While force is forbidden, it follows as soon as it is allowed again.
    let mut play = Play::scrapped();
    play.power = Power::On;
    play.answer(failed(ErrorKind::Forbidden));
    play.expect("undeploy", AT_ONCE);
    let mut next = "undeploy".to_string();
    let forbidden = play.now + NEVER;
    while next == "undeploy" {
        play.answer(failed(ErrorKind::Ambiguous));
        play.expect("look", 1_000..=1_000);
        play.shows(false, false);
        play.expect("look", 0..=2 * NEVER);
        play.shows(false, false);
        next = play.within(0).unwrap().operation().into();
        assert_eq!(next == "delete", play.now >= forbidden);
    }
}

#[test]
fn the_hardware_is_looked_up_three_times() {
    let mut play = Play::new();
    play.expect("create", AT_ONCE);
    play.answer(started(None));
    play.expect("look", AT_ONCE);
    for _ in 0..2 {
        play.answer(failed(ErrorKind::Unavailable));
        play.expect("look", 5_000..=5_000);
    }
    play.answer(failed(ErrorKind::Unavailable));
    assert!(play.within(20_000).is_none() && play.state() == State::Running);
}

#[test]
fn the_metadata_entry_is_tried_three_times_unless_it_cannot_work() {
    let mut play = Play::running();
    play.expect("label", 0..=30_000);
    play.answer(failed(ErrorKind::Unavailable));
    play.expect("label", BACKOFF);
    play.answer(failed(ErrorKind::Unavailable));
    play.expect("label", BACKOFF_TWICE);
    play.answer(failed(ErrorKind::Unavailable));
    assert!(play.within(NEVER).is_none());
    // Other lines report that VCD is not available.
    assert!(play.said("DEBUG") && !play.said("WARN"));

    let mut play = Play::running();
    play.expect("label", 0..=30_000);
    play.answer(failed(ErrorKind::Forbidden));
    assert!(play.within(NEVER).is_none());
    assert!(play.said("WARN"));
}

#[test]
fn a_failed_suspend_is_repeated_looked_up_or_given_up() {
    use ErrorKind::{Ambiguous, Auth, Busy, Failed, Limit, NotFound, Protocol, Unavailable};
    for (kind, next, pause) in [
        (Limit, "suspend", THROTTLED),
        (Busy, "look", 3_000..=3_000),
        (Ambiguous, "look", 1_000..=1_000),
        (Protocol, "look", 1_000..=1_000),
        (Unavailable, "suspend", BACKOFF),
        (Auth, "suspend", BACKOFF),
        (Failed, "look", AT_ONCE),
    ] {
        let mut play = Play::tired();
        play.answer(failed(kind));
        assert_eq!(play.group.standing(Time(play.now)).throttled, u64::from(kind == Limit), "{kind:?}");
        assert_eq!(play.state(), if kind == Failed { State::Running } else { State::Suspending }, "{kind:?}");
        play.expect(next, pause);
        if kind == Ambiguous {
            // The change may still be carried out.
            for _ in 0..12 {
                play.shows(false, false);
                play.expect("look", 5_000..=5_000);
            }
            play.shows(false, false);
            play.expect("suspend", AT_ONCE);
        }
        // It is still powered on.
        if kind == Busy {
            play.shows(false, false);
            play.expect("suspend", AT_ONCE);
        }
        if kind == Failed {
            play.shows(false, false);
            assert_eq!(play.state(), State::Running);
        }
    }
    let mut play = Play::tired();
    play.answer(failed(NotFound));
    play.expect("look", AT_ONCE);
    play.sees_nothing();
    assert_eq!(play.state(), State::Deleted);
    // VCD lags: it exists.
    let mut play = Play::tired();
    play.answer(failed(NotFound));
    play.expect("look", AT_ONCE);
    play.shows(false, false);
    assert_eq!(play.state(), State::Running);

    let mut play = Play::tired();
    play.answer(started(None));
    play.expect("look", AT_ONCE);
    play.power = Power::Suspended;
    play.shows(false, false);
    assert_eq!(play.state(), State::Suspended);
}

/// VCD answers each of them with 500, and does nothing.
#[test]
fn a_change_that_is_lost_three_times_has_failed() {
    let twice = |mut play: Play, operation: &str| {
        for _ in 0..2 {
            play = play.without_effect();
            play.expect(operation, AT_ONCE);
        }
        play
    };
    let mut play = twice(Play::tired(), "suspend").without_effect();
    assert_eq!((play.state(), play.standing().stuck), (State::Running, 0), "{:?}", play.said);
    play.quiet(20_000);

    let mut play = twice(Play::roused(), "power_on").without_effect();
    assert_eq!((play.state(), play.standing().stuck), (State::Resuming, 1));
    play.expect("power_on", 30_000..=50_000);

    let mut play = Play::composed();
    play.shows(false, false);
    play.expect("power_on", AT_ONCE);
    let mut play = twice(play, "power_on").without_effect();
    play.expect("delete", AT_ONCE);
    assert_eq!((play.failures(), play.state()), (1, State::Creating));
}

/// Each operation has three tries of its own.
#[test]
fn lost_answers_count_only_for_the_operation_that_was_requested() {
    // VCD does not add a TPM.
    let mut play = Play::composed();
    for _ in 0..3 {
        play.shows(false, true);
        play.expect("tpm", AT_ONCE);
        play = play.lost();
        play.quiet(59_000);
    }
    play.shows(false, true);
    play.expect("look", AT_ONCE);
    play.shows(false, true);
    play.expect("power_on", AT_ONCE);
    let mut play = play.without_effect();
    play.expect("power_on", AT_ONCE);
    // A resume is accepted at the third try, and cancelled.
    let mut play = Play::roused();
    for pause in [BACKOFF, BACKOFF_TWICE] {
        play.answer(failed(ErrorKind::Unavailable));
        play.expect("power_on", pause);
    }
    play.task = TaskState::Running;
    play.answer(started(Some("t/1")));
    play.decrease();
    play.expect("cancel", AT_ONCE);
    play.answer(failed(ErrorKind::Unavailable));
    play.expect("cancel", BACKOFF);
}

#[test]
fn a_power_on_that_is_done_at_once_and_has_no_effect_is_not_repeated_without_end() {
    let mut play = Play::composed();
    play.shows(false, false);
    for _ in 0..3 {
        play.expect("power_on", AT_ONCE);
        play.answer(started(None));
        play.expect("look", AT_ONCE);
        play.shows(false, false);
    }
    play.expect("delete", AT_ONCE);
    assert_eq!(play.failures(), 1);
}

#[test]
fn a_create_that_is_lost_twice_has_failed() {
    let mut play = Play::new();
    play.expect("create", AT_ONCE);
    for (pause, failures) in [(AT_ONCE, 0), (BACKOFF_TWICE, 1)] {
        play.answer(failed(ErrorKind::Ambiguous));
        play.expect("find", 1_000..=1_000);
        for _ in 0..12 {
            play.sees_nothing();
            play.expect("find", 5_000..=5_000);
        }
        play.sees_nothing();
        assert_eq!(play.failures(), failures);
        play.expect("create", pause);
    }
}

#[test]
fn a_running_instance_is_not_stuck() {
    // It was powered on by a request whose answer was lost, after another one.
    let mut play = Play::composed();
    play.shows(false, false);
    play.expect("power_on", AT_ONCE);
    play = play.without_effect();
    play.expect("power_on", AT_ONCE);
    play = play.lost();
    assert_eq!(play.standing().stuck, 1);
    play.power = Power::On;
    play.shows(false, false);
    assert_eq!(play.standing().stuck, 0);
    // It was to be suspended while a task worked on it, and no longer is.
    let mut play = Play::tired();
    play.answer(failed(ErrorKind::Busy));
    assert_eq!(play.standing().stuck, 1);
    play.resume();
    assert_eq!((play.state(), play.standing().stuck), (State::Running, 0));
}

#[test]
fn a_step_that_vcd_does_not_find_three_times_has_failed() {
    let mut play = Play::composed();
    for _ in 0..2 {
        play.shows(true, false);
        play.expect("configure", AT_ONCE);
        play.answer(failed(ErrorKind::NotFound));
        play.expect("look", 5_000..=5_000);
    }
    play.shows(true, false);
    play.expect("configure", AT_ONCE);
    play.answer(failed(ErrorKind::NotFound));
    play.expect("delete", AT_ONCE);
    assert_eq!(play.failures(), 1);
}

#[test]
fn lookups_of_a_task_that_vcd_does_not_show_come_at_growing_intervals() {
    let mut play = Play::composed();
    play.task = TaskState::Unknown;
    // In addition, the task is queried after up to 5 s.
    for pause in [3_000, 6_000, 12_000, 24_000] {
        play.held("t/2");
        play.expect("look", pause..=pause + 5_000);
    }
    // It is looked up for as long as it hangs, and counts as stuck.
    while play.standing().stuck == 0 {
        play.held("t/2");
        play.expect("look", 48_000..=305_000);
    }
    assert!((600_000..1_200_000).contains(&play.now), "{}", play.now);
}

#[test]
fn a_task_that_vcd_does_not_show_is_cancelled_once_and_then_waited_for() {
    let mut play = Play::tired();
    play.task = TaskState::Unknown;
    play.answer(started(Some("t/1")));
    play.expect("look", 0..=1_000);
    play.decrease();
    play.held("t/1");
    play.expect("cancel", AT_ONCE);
    play.answer(failed(ErrorKind::NotFound));
    play.quiet(119_000);
    play.expect("look", 0..=1_000);
    assert_eq!(play.standing().stuck, 1);
}

#[test]
fn a_create_whose_vm_is_taken_away_between_two_steps_holds_no_slot() {
    let mut play = Play::composed();
    play.shows(true, false);
    play.expect("configure", AT_ONCE);
    play.answer(started(None));
    play.expect("look", AT_ONCE);
    assert_eq!(play.standing().creates.used, 1, "the next step has it");
    play.sees(|vapp| (vapp.made, vapp.vms) = (None, Vec::new()));
    assert_eq!(play.standing().creates.used, 0);
}

#[test]
fn after_a_create_whose_task_vcd_does_not_show_the_lookup_decides() {
    let mut play = Play::new();
    play.expect("create", AT_ONCE);
    play.answer(failed(ErrorKind::Ambiguous));
    play.expect("find", 1_000..=1_000);
    (play.task, play.power) = (TaskState::Unknown, Power::Off);
    play.held("t/1");
    play.expect("look", 3_000..=8_000);
    play.shows(false, false);
    play.expect("power_on", AT_ONCE);
    assert_eq!(play.standing().stuck, 0);
}

#[test]
fn a_task_of_a_person_between_two_steps_holds_no_slot() {
    let mut play = Play::composed();
    assert_eq!(play.standing().creates.used, 1, "the next step has it");
    play.task = TaskState::Running;
    play.held("t/2");
    assert_eq!(play.standing().creates.used, 0);
}

#[test]
fn a_stop_of_a_vapp_that_vcd_does_not_find_is_looked_up() {
    let stopped = || {
        let mut play = Play::scrapped();
        play.answer(failed(ErrorKind::Forbidden));
        play.expect("undeploy", AT_ONCE);
        play.answer(failed(ErrorKind::NotFound));
        play.expect("look", AT_ONCE);
        play
    };
    let mut play = stopped();
    play.sees_nothing();
    play.expect("create", BACKOFF);
    // VCD lags: it exists.
    let mut play = stopped();
    play.power = Power::On;
    play.shows(false, false);
    play.expect("look", BACKOFF);
}

/// Its slot is free two minutes later.
#[test]
fn a_cancel_that_vcd_rejects_is_waited_for() {
    use ErrorKind::{Forbidden, Unavailable};
    for (kind, pauses) in [(Forbidden, vec![]), (Unavailable, vec![BACKOFF, BACKOFF_TWICE])] {
        let mut play = Play::new();
        play.task = TaskState::Running;
        play.expect("create", AT_ONCE);
        play.answer(started(Some("t/1")));
        play.gives_up();
        for pause in pauses {
            play.answer(failed(kind));
            play.expect("cancel", pause);
        }
        play.answer(failed(kind));
        play.quiet(119_000);
        assert_eq!(play.standing().creates.used, 1, "{kind:?}");
        play.expect("look", 0..=1_000);
        assert_eq!((play.standing().creates.used, play.standing().stuck), (0, 1), "{kind:?}");
    }
}

#[test]
fn a_cancel_is_repeated_unless_the_task_has_ended() {
    use ErrorKind::{Busy, Invalid, NotFound, State, Unavailable};
    for (kind, again) in [(Unavailable, true), (Busy, true), (NotFound, false), (Invalid, false), (State, false)] {
        let mut play = Play::new();
        play.task = TaskState::Running;
        play.expect("create", AT_ONCE);
        play.answer(started(Some("t/1")));
        assert!(play.within(10_000).is_none());
        // The task in its own document.
        assert_eq!(play.gives_up(), Request::Cancel { task: "t/2".into() });
        play.answer(failed(kind));
        if again {
            play.expect("cancel", BACKOFF);
            play.answer(Ok(Reply::Done));
        }
        assert!(play.within(20_000).is_none(), "{kind:?}");
        play.task = TaskState::Success;
        play.expect("delete", 0..=5_000);
    }
}

#[test]
fn a_task_that_is_given_up_late_is_no_longer_queried() {
    let mut play = Play::new();
    play.task = TaskState::Running;
    play.expect("create", AT_ONCE);
    play.answer(started(Some("t/1")));
    play.gives_up();
    play.answer(Ok(Reply::Done));
    // The machine was suspended: the task query and the deadline of this task are overdue.
    play.now += 31 * 60_000;
    play.group.tick(Time(play.now));
    // No poll saw it meanwhile. After two more minutes with polls it counts as stuck, and is looked up.
    play.expect("look", 60_000..=120_000);
}

/// A create's answer that names a foreign vApp, or a foreign task: the plugin changes neither.
#[test]
fn a_vapp_is_not_changed_before_its_own_document_shows_the_owner() {
    let made = |task: Option<&str>| {
        let mut play = Play::new();
        play.task = TaskState::Running;
        play.expect("create", AT_ONCE);
        play.answer(started(task));
        play
    };
    let others = |play: &mut Play| {
        let vapp = Vapp { name: "other".into(), description: Some("another's".into()), ..play.vapp(false, false) };
        play.answer(Ok(Reply::Vapps(vec![vapp])));
    };

    // It is deleted while the task runs: no cancel, no delete.
    let mut play = made(Some("t/1"));
    let name = play.name.clone();
    play.group.decrease(Time(play.now), &[name]);
    play.expect("look", AT_ONCE);
    others(&mut play);
    assert_eq!(play.state(), State::Deleted);
    assert!(play.within(60_000).is_none(), "no further request");

    // The task fails: a lookup of its vApp, no change, and a new create.
    let mut play = made(Some("t/1"));
    play.task = TaskState::Failed(failed(ErrorKind::Failed).unwrap_err());
    play.expect("look", 0..=5_000);
    others(&mut play);
    play.expect("create", BACKOFF);

    // Its document is not available: no delete without proof of the owner.
    let mut play = made(Some("t/1"));
    play.task = TaskState::Failed(failed(ErrorKind::Failed).unwrap_err());
    play.expect("look", 0..=5_000);
    play.answer(failed(ErrorKind::Unavailable));
    play.expect("look", BACKOFF);
    play.shows(false, false);
    play.expect("delete", AT_ONCE);

    // Its document names no task: the task of the answer is not cancelled, and the vApp is deleted.
    let mut play = made(Some("t/1"));
    let name = play.name.clone();
    play.group.decrease(Time(play.now), &[name]);
    play.expect("look", AT_ONCE);
    play.shows(false, false);
    play.expect("delete", AT_ONCE);
}

#[test]
fn a_failed_resume_is_repeated_or_looked_up() {
    use ErrorKind::{Ambiguous, Auth, Busy, Failed, Limit, NotFound, Unavailable};
    for (kind, next, pause) in [
        (Limit, "power_on", THROTTLED),
        (Busy, "look", 3_000..=3_000),
        (Ambiguous, "look", 1_000..=1_000),
        (Unavailable, "power_on", BACKOFF),
        (Auth, "power_on", BACKOFF),
        (Failed, "look", BACKOFF),
        (NotFound, "look", AT_ONCE),
    ] {
        let mut play = Play::roused();
        play.answer(failed(kind));
        assert_eq!(play.state(), State::Resuming, "{kind:?}");
        assert_eq!(play.group.standing(Time(play.now)).throttled, u64::from(kind == Limit), "{kind:?}");
        play.expect(next, pause);
        if kind == Failed {
            play.shows(false, false);
            play.expect("power_on", AT_ONCE);
        }
    }
}

#[test]
fn creates_wait_for_leftovers_for_a_limited_time() {
    let mut play = Play::begin(Some("ci-abc12345"));
    play.group.increase(Time(0), 1);
    play.expect("look", AT_ONCE);
    play.shows(false, false);
    play.expect("delete", AT_ONCE);
    play.answer(started(None));
    // At the next poll at the latest.
    play.expect("create", 0..=10_000);

    let mut play = Play::begin(Some("ci-abc12345"));
    play.group.increase(Time(0), 1);
    play.expect("look", AT_ONCE);
    play.shows(false, false);
    // A leftover that cannot be deleted delays nothing.
    play.expect("delete", AT_ONCE);
    play.answer(failed(ErrorKind::Unavailable));
    play.expect("create", AT_ONCE);
}

/// The tickets of all requests of this operation that are sent now.
fn asked(group: &mut Group, operation: &str) -> Vec<Ticket> {
    let ask = |command| match command {
        Command::Ask { ticket, request } if request.operation() == operation => Some(ticket),
        _ => None,
    };
    std::iter::from_fn(|| group.next_command()).filter_map(ask).collect()
}

#[test]
fn at_most_four_names_are_looked_up_concurrently() {
    let policy = Policy { prefix: "ci".into(), max_creates: 6, max_operations: 9, ..Policy::default() };
    let mut group = Group::new(policy, 1, Time(0), &Poll::default());
    group.increase(Time(0), 7);
    let creates = asked(&mut group, "create");
    assert_eq!(creates.len(), 6);
    for ticket in creates {
        group.answer(Time(0), ticket, failed(ErrorKind::Ambiguous));
    }
    assert_eq!(asked(&mut group, "find").len(), 0);
    group.tick(Time(999));
    assert_eq!(asked(&mut group, "find").len(), 0);
    group.tick(Time(1_000));
    let finds = asked(&mut group, "find");
    assert_eq!(finds.len(), 4);
    group.answer(Time(1_000), finds[0], Ok(Reply::Vapps(Vec::new())));
    assert_eq!(asked(&mut group, "find").len(), 1);
}

#[test]
fn a_create_that_never_begins_is_given_up_after_three_times_its_timeout() {
    let policy = Policy { prefix: "ci".into(), max_creates: 0, ..Policy::default() };
    let mut play = Play::playing(policy);
    play.group.increase(Time(0), 1);
    play.quiet(3_599_999);
    assert_eq!(play.state(), State::Creating);
    play.quiet(1);
    assert_eq!((play.state(), play.failures()), (State::Timeout, 0));
}

// Creates.

#[test]
fn a_vapp_that_disappears_during_its_create_is_created_again_after_a_pause() {
    let boots: fn() -> Play = || {
        let mut play = Play::new();
        play.expect("create", AT_ONCE);
        play.answer(started(None));
        play.expect("look", AT_ONCE);
        play
    };
    for begin in [boots, Play::composed] {
        let mut play = begin();
        play.sees_nothing();
        play.expect("create", BACKOFF);
        assert!(play.said("the vApp disappeared during its create; next try in"));
    }
    // An unwanted instance is not created again.
    let mut play = boots();
    play.decrease();
    play.sees_nothing();
    play.quiet(60_000);
    assert_eq!(play.state(), State::Deleted);
}

#[test]
fn a_try_that_would_be_too_late_is_logged() {
    for (timeout, text) in [(7, "no further try before create_timeout"), (13, "next try in")] {
        let policy = Policy { create_timeout: Duration::from_secs(timeout), ..policy() };
        let mut play = Play::playing(policy);
        play.group.increase(Time(0), 1);
        play.expect("create", AT_ONCE);
        play.answer(failed(ErrorKind::Failed));
        play.within(1);
        assert!(play.said(text), "{:?}", play.said);
    }
}

#[test]
fn a_lost_create_continues_in_the_state_that_is_found() {
    let lost = |whole: bool| {
        let mut play = Play::new();
        play.expect("create", AT_ONCE);
        if !whole {
            play.answer(failed(ErrorKind::TooMuch));
            play.expect("create", AT_ONCE);
            play.power = Power::Off;
        }
        play.answer(failed(ErrorKind::Ambiguous));
        play.after(1_000, "find");
        play
    };
    // Without hardware it is powered off: reconfigured.
    let mut play = lost(false);
    play.shows(true, false);
    play.expect("configure", AT_ONCE);
    // First, its task has to end.
    for (whole, next) in [(false, "configure"), (true, "")] {
        let mut play = lost(whole);
        play.task = TaskState::Running;
        play.sees(|vapp| vapp.tasks = vec!["t/1".into()]);
        play.quiet(9_000);
        play.task = TaskState::Success;
        play.expect("look", 0..=3_000);
        play.shows(!whole, false);
        if whole {
            play.quiet(10_000);
            assert_eq!(play.state(), State::Running);
        } else {
            play.expect(next, AT_ONCE);
        }
    }
    // The vApp is foreign: not touched.
    let mut play = lost(true);
    play.sees(|vapp| vapp.description = Some("another's".into()));
    play.made = false;
    assert_eq!(play.state(), State::Timeout);
    play.quiet(60_000);
    assert!(play.said("a vApp of another owner has this name"));
    // Two vApps are found: one is used, the other is deleted.
    let mut play = lost(true);
    let twin = |href: &str| Vapp { href: href.into(), ..play.vapp(false, false) };
    play.answer(Ok(Reply::Vapps(vec![twin("v/1"), twin("v/2")])));
    play.expect("look", AT_ONCE);
    play.shows(false, false);
    let request = play.expect("delete", AT_ONCE);
    assert!(matches!(request, Request::Delete { vapp } if &*vapp == "v/2"));
}

#[test]
fn a_vapp_that_somebody_took_does_not_hide_the_next_one_with_its_name() {
    let mut play = Play::new();
    play.expect("create", AT_ONCE);
    play.answer(started(None));
    play.expect("look", AT_ONCE);
    let taken: fn(&mut Vapp) = |vapp| (vapp.href, vapp.description) = ("v/0".into(), Some("kept".into()));
    play.sees(taken);
    play.expect("create", BACKOFF);
    assert!(play.said("the plugin no longer manages it"));
    play.answer(failed(ErrorKind::Ambiguous));
    let given_back: fn(&mut Vapp) = |vapp| vapp.href = "v/0".into();
    for (pause, shown) in [(1_000, taken), (5_000, given_back)] {
        play.after(pause, "find");
        play.sees(shown);
        assert_eq!((play.state(), play.said("found in VCD")), (State::Creating, false));
    }
    play.after(5_000, "find");
    play.shows(false, false);
    play.expect("look", AT_ONCE);
    assert!(play.said("found in VCD: the create worked"));
}

#[test]
fn a_vm_that_disappears_before_a_poll_shows_it_is_created_again() {
    let mut play = Play::new();
    play.expect("create", AT_ONCE);
    play.task = TaskState::Success;
    play.answer(started(Some("t/1")));
    play.expect("look", 0..=3_000);
    play.sees(|vapp| (vapp.vms, vapp.made) = (Vec::new(), None));
    play.expect("delete", AT_ONCE);
    assert!(play.said("its VM is no longer in its vApp"));
}

#[test]
fn a_vm_that_appears_after_its_vapp_or_is_busy_is_awaited() {
    let unready: [fn(&mut Vapp); 2] = [|vapp| (vapp.vms, vapp.made) = (Vec::new(), None), |vapp| vapp.busy = true];
    let mut play = Play::composed();
    for shown in unready {
        play.sees(shown);
        play.after(5_000, "look");
    }
    play.shows(true, false);
    play.expect("configure", AT_ONCE);
}

#[test]
fn a_vapp_that_is_already_being_deleted_is_not_used_for_a_create() {
    // The outcome of the first create was lost. Its vApp appears while the second is in progress, and is deleted.
    let mut play = Play::new();
    play.expect("create", AT_ONCE);
    play.answer(failed(ErrorKind::Ambiguous));
    play.after(1_000, "find");
    for _ in 0..12 {
        play.sees_nothing();
        play.after(5_000, "find");
    }
    play.sees_nothing();
    play.expect("create", AT_ONCE);
    play.answer(failed(ErrorKind::NotFound));
    play.made = true;
    play.expect("look", 0..=10_000);
    play.shows(false, false);
    play.expect("delete", AT_ONCE);
    play.expect("create", 200_000..=375_000);
    play.answer(failed(ErrorKind::Ambiguous));
    play.after(1_000, "find");
    play.shows(false, false);
    play.after(5_000, "find");
}

#[test]
fn each_step_of_a_create_but_the_last_is_looked_up() {
    let mut play = Play::composed();
    for (request, lacks, pause) in [("configure", true, 1_000), ("tpm", true, 3_000)] {
        play.shows(true, lacks);
        play.expect(request, AT_ONCE);
        play.answer(started(Some("t/1")));
        play.expect("look", 0..=pause);
    }
    play.shows(true, true);
    play.expect("power_on", AT_ONCE);
    play.answer(started(Some("t/1")));
    play.power = Power::On;
    // Its hardware.
    play.expect("look", 0..=3_000);
    play.shows(true, true);
    play.quiet(20_000);
    assert_eq!(play.state(), State::Running);
}

#[test]
fn a_lost_reconfigure_may_be_carried_out_for_a_minute() {
    for (ms, next, pause) in [(59_999, "look", 5_000), (60_000, "configure", 0)] {
        let mut play = Play::composed();
        play.shows(true, false);
        play.expect("configure", AT_ONCE);
        play.answer(failed(ErrorKind::Ambiguous));
        play.after(1_000, "look");
        play.quiet(ms - 1_000);
        play.shows(true, false);
        play.after(pause, next);
    }
    // An unwanted vApp is looked up once, then deleted.
    let mut play = Play::composed();
    play.shows(true, false);
    play.expect("configure", AT_ONCE);
    play.decrease();
    play.answer(failed(ErrorKind::Ambiguous));
    play.after(1_000, "look");
    play.shows(true, false);
    play.expect("delete", AT_ONCE);
}

#[test]
fn a_failed_create_counts_unless_it_was_no_longer_wanted() {
    for wanted in [true, false] {
        let mut play = Play::new();
        play.task = TaskState::Running;
        play.expect("create", AT_ONCE);
        play.answer(started(Some("t/1")));
        play.quiet(10_000);
        if !wanted {
            play.gives_up();
            play.answer(Ok(Reply::Done));
        }
        play.task = TaskState::Failed(error(ErrorKind::Failed));
        if wanted {
            play.expect("look", 0..=3_000);
            play.shows(false, false);
            play.expect("delete", AT_ONCE);
        } else {
            play.expect("delete", 0..=3_000);
        }
        // It is not known yet whether creates in steps fail.
        assert_eq!(play.failures(), 0);
        assert_eq!(play.said("no further try, it is no longer wanted"), !wanted);
    }
}

// Lookups.

#[test]
fn hardware_is_compared_once_and_never_after_a_resume() {
    let unchecked = |made: bool| {
        let mut play = Play::new();
        play.expect("create", AT_ONCE);
        play.answer(started(None));
        play.made = made;
        play.expect("look", AT_ONCE);
        play.answer(failed(ErrorKind::Unavailable));
        play.after(5_000, "look");
        assert!(play.said("the lookup is repeated") && !play.said("not checked"));
        play.answer(failed(ErrorKind::Unavailable));
        play.after(5_000, "look");
        assert!(!play.said("not checked"));
        play.answer(failed(ErrorKind::Unavailable));
        play
    };
    let mut play = unchecked(true);
    play.quiet(20_000);
    assert!(play.said("its hardware is not checked"));
    assert_eq!(play.state(), State::Running);
    // Polls do not show it: the following lookups have another reason.
    let mut play = unchecked(false);
    play.expect("look", 2_000..=10_000);
    assert!(play.said("its hardware is not checked"));
    play.answer(failed(ErrorKind::Unavailable));
    play.expect("look", BACKOFF);
    play.shows(true, false);
    play.quiet(20_000);
    assert_eq!(play.state(), State::Running);

    let mut play = Play::roused();
    play.answer(started(Some("t/1")));
    (play.made, play.power) = (false, Power::On);
    play.expect("look", 5_000..=20_000);
    play.answer(failed(ErrorKind::Unavailable));
    play.expect("look", BACKOFF);
    play.shows(true, false);
    play.quiet(20_000);
    assert_eq!(play.state(), State::Running);
}

// Suspended and resumed.

#[test]
fn a_lookup_shows_the_outcome_of_a_lost_suspend() {
    let lost = || Play::tired().lost();
    // Busy without a task: while it may be the request, the lookup is repeated.
    for (ms, next, pause) in [(59_999, "look", 5_000), (60_000, "suspend", 0)] {
        for busy in [false, true] {
            let mut play = lost();
            play.quiet(ms - 1_000);
            play.sees(|vapp| vapp.busy = busy);
            play.after(pause, next);
        }
    }
    // First its task has to end, then a lookup follows.
    let mut play = lost();
    play.task = TaskState::Running;
    play.sees(|vapp| vapp.tasks = vec!["t/1".into()]);
    play.quiet(20_000);
    assert_eq!(play.state(), State::Suspending);
    play.task = TaskState::Success;
    play.power = Power::Suspended;
    play.expect("look", 0..=3_000);
    play.shows(false, false);
    assert_eq!(play.state(), State::Suspended);
    // It is suspended, but VCD has not finished.
    for (ms, state) in [(59_999, State::Suspending), (60_000, State::Suspended)] {
        let mut play = lost();
        play.quiet(ms - 1_000);
        play.power = Power::Suspended;
        play.sees(|vapp| vapp.busy = true);
        assert_eq!(play.state(), state);
        if state == State::Suspending {
            play.after(5_000, "look");
            play.shows(false, false);
            assert_eq!(play.state(), State::Suspended);
        }
    }
    // It is deleted in the state that the lookup has shown.
    let mut play = lost();
    play.decrease();
    play.power = Power::Suspended;
    play.shows(false, false);
    play.expect("delete", AT_ONCE);
}

#[test]
fn a_lookup_shows_the_outcome_of_a_lost_resume() {
    let lost = || Play::roused().lost();
    for (ms, next, pause) in [(59_999, "look", 5_000), (60_000, "power_on", 0)] {
        for busy in [false, true] {
            let mut play = lost();
            play.quiet(ms - 1_000);
            play.sees(|vapp| vapp.busy = busy);
            play.after(pause, next);
        }
    }
    // It is powered on, but VCD has not finished.
    let mut play = lost();
    play.power = Power::On;
    play.sees(|vapp| vapp.busy = true);
    play.after(5_000, "look");
    play.shows(false, false);
    play.quiet(20_000);
    assert_eq!(play.state(), State::Running);
    // First its task has to end, then a lookup follows.
    let mut play = lost();
    play.task = TaskState::Running;
    play.sees(|vapp| vapp.tasks = vec!["t/1".into()]);
    play.quiet(20_000);
    play.task = TaskState::Success;
    play.power = Power::On;
    play.expect("look", 0..=3_000);
    play.shows(false, false);
    play.quiet(20_000);
    assert_eq!(play.state(), State::Running);
}

#[test]
fn a_suspend_that_failed_and_worked_anyway_is_resumed() {
    const DAY: u64 = 24 * 3600 * 1000;
    // VCD rejected it, yet it is suspended: the host sees it as running.
    let mut play = Play::tired();
    play.answer(failed(ErrorKind::Failed));
    assert_eq!(play.state(), State::Running);
    play.expect("look", AT_ONCE);
    play.power = Power::Suspended;
    play.shows(false, false);
    assert_eq!(play.state(), State::Resuming);
    play.expect("power_on", AT_ONCE);
    play.quiet(2 * DAY);
    assert_eq!(play.state(), State::Resuming);
    // The host resumes it while VCD suspends it.
    let mut play = Play::tired();
    play.task = TaskState::Running;
    play.answer(started(Some("t/1")));
    play.quiet(10_000);
    play.resume();
    assert_eq!(play.state(), State::Resuming);
    play.quiet(20_000);
    play.task = TaskState::Success;
    play.power = Power::Suspended;
    play.expect("power_on", 0..=3_000);
    assert!(play.said("suspend task started") && !play.said("resume task started"));
    assert_eq!(play.state(), State::Resuming);
}

#[test]
fn a_suspend_that_did_not_work_needs_no_resume() {
    // Its answer was lost, and the host resumes it before the outcome is known.
    let mut play = Play::tired().lost();
    play.resume();
    play.quiet(59_000);
    play.shows(false, false);
    play.quiet(20_000);
    assert_eq!(play.state(), State::Running);
    // VCD was not available.
    let mut play = Play::tired();
    play.resume();
    play.answer(failed(ErrorKind::Unavailable));
    assert_eq!(play.state(), State::Running);
    play.quiet(60_000);
    // VCD rejected it, or its task failed.
    let mut play = Play::tired();
    play.resume();
    play.answer(failed(ErrorKind::Failed));
    play.expect("look", AT_ONCE);
    play.shows(false, false);
    play.quiet(20_000);
    assert_eq!(play.state(), State::Running);
    let mut play = Play::tired();
    play.task = TaskState::Running;
    play.answer(started(Some("t/1")));
    play.resume();
    play.task = TaskState::Failed(error(ErrorKind::Failed));
    play.quiet(20_000);
    assert_eq!(play.state(), State::Running);
}

#[test]
fn a_failed_suspend_does_not_cancel_a_delete() {
    let mut play = Play::tired();
    play.decrease();
    play.answer(failed(ErrorKind::Failed));
    assert_eq!(play.state(), State::Deleting);
    play.expect("look", AT_ONCE);
    play.shows(false, false);
    play.expect("delete", AT_ONCE);
}
