//! The next step and its time, to the millisecond: slots, pauses, deadlines, and the frequency of queries. One group in
//! virtual time. The regular polls are a day apart, so that each step happens at its own time or never.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use crate::play::*;
use fleeting_plugin_vcd::cloud::*;
use fleeting_plugin_vcd::group::*;
use std::net::IpAddr;
use std::time::Duration;

const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// Only its own time causes a step.
fn lone() -> Policy {
    Policy { reconcile_interval: Duration::from_secs(24 * 3600), ..policy() }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A group with this many running instances.
fn fleet(n: u32) -> Vec<Vm> {
    (1..=n).map(vm).collect()
}

fn in_seconds(times: &[u64]) -> Vec<u64> {
    times.iter().map(|ms| ms / SECOND).collect()
}

impl Play {
    /// An instance during its create, with a running task.
    fn making(policy: Policy) -> Play {
        let mut play = Play::holding(policy, Vec::new(), &["create"]);
        play.increase(1);
        let document = vapp(&shown(href(1), play.created()));
        play.documents.insert(href(1), Vapp { busy: true, tasks: vec!["t/1".into()], ..document });
        play.begin("create", Some(href(1)), "t/1");
        play
    }

    /// VCD answers the n-th create, and its vApp is in this state.
    fn makes(&mut self, n: u32, power: Power) {
        self.until("create", n as usize);
        let vm = Vm { power, ..shown(href(n), self.created()) };
        self.documents.insert(href(n), vapp(&vm));
        self.begin("create", Some(href(n)), "t/1");
        self.to(self.now + 3 * SECOND);
    }

    /// The name of the newest vApp.
    fn made_last(&self) -> Name {
        self.vms.last().unwrap().vapp_name.clone()
    }

    fn counts(&self, operations: [&str; 2]) -> [usize; 2] {
        operations.map(|operation| self.times(operation).len())
    }

    /// The first request of the operation is sent exactly then.
    #[track_caller]
    fn first(&mut self, operation: &str, at: u64) {
        self.before(at);
        assert_eq!(self.times(operation), [] as [u64; 0], "{operation}");
        self.to(at);
        assert_eq!(self.times(operation), [at], "{operation}");
    }
}

// Slots.

#[test]
fn deletes_have_all_slots_until_a_create_waits_and_then_one() {
    for (limits, removed_first, accepted_first) in [
        ([3, 5, 4], [4, 0], [1, 3]),
        ([9, 9, 4], [4, 0], [0, 4]),
        ([3, 2, 9], [2, 3], [2, 3]),
        ([1, 9, 9], [9, 0], [8, 1]),
        ([3, 5, 1], [1, 0], [0, 1]),
        ([3, 5, 2], [2, 0], [0, 2]),
    ] {
        let [max_creates, max_deletes, max_operations] = limits;
        for (first, asked) in [(true, removed_first), (false, accepted_first)] {
            let policy = Policy { max_creates, max_deletes, max_operations, ..lone() };
            let mut play = Play::holding(policy, fleet(10), &["create", "delete"]);
            let names = play.names();
            if first {
                play.decrease(&names);
                play.to(SECOND);
            }
            play.increase(10);
            play.decrease(&names);
            play.to(2 * SECOND);
            assert_eq!(play.counts(["delete", "create"]), asked, "{limits:?} {first}");
        }
    }
}

#[test]
fn an_increase_right_after_a_decrease_finds_slots() {
    let policy = Policy { max_deletes: 5, max_operations: 4, ..lone() };
    let fleet = |policy: &Policy| Play::holding(policy.clone(), fleet(10), &["create", "delete"]);
    let mut play = fleet(&policy);
    let names = play.names();
    play.decrease(&names[..3]);
    play.before(SECOND);
    play.decrease(&names);
    assert_eq!(play.counts(["delete", "create"]), [1, 0]);
    play.increase(1);
    assert_eq!(play.counts(["delete", "create"]), [1, 1]);
    play.to(SECOND);
    assert_eq!(play.counts(["delete", "create"]), [3, 1], "the second Decrease came while a delete ran");

    let mut play = fleet(&Policy { max_operations: 1, ..policy.clone() });
    play.decrease(&names);
    play.increase(1);
    assert_eq!(play.counts(["delete", "create"]), [0, 1], "it gets the only slot");

    let mut play = fleet(&policy);
    play.decrease(&names);
    play.shutdown();
    assert_eq!(play.counts(["delete", "create"]), [4, 0], "no Increase follows a shutdown");
}

#[test]
fn suspends_have_one_slot_while_creates_wait_unless_it_is_the_only_one() {
    for (max_operations, begun) in [(4, [1, 3]), (2, [1, 1]), (1, [0, 1])] {
        let policy = Policy { max_creates: 9, max_operations, ..policy() };
        let mut play = Play::holding(policy, fleet(9), &["mark", "create", "look"]);
        play.to(8 * SECOND).suspend();
        play.deaf = true;
        play.to(15 * SECOND).increase(9);
        for _ in 0..4 {
            play.release("look", None);
        }
        play.deaf = false;
        play.to(20 * SECOND);
        assert_eq!(play.counts(["mark", "create"]), begun);
    }
}

#[test]
fn the_end_of_a_suspend_mark_needs_the_slot_that_creates_leave() {
    let policy = Policy { max_creates: 9, max_operations: 3, ..policy() };
    let mut play = Play::new(policy, vec![Vm { power: Power::Suspended, ..vm(1) }, vm(2)]);
    (play.holds, play.tasks) = (vec!["mark", "create", "delete"], TaskState::Success);
    play.resume_those(&[name(1)]);
    play.show(Power::On, false).until("mark", 1);
    play.deaf = true;
    play.to(25 * SECOND).decrease(&[name(2)]);
    play.increase(9);
    play.deaf = false;
    play.to(60 * SECOND);
    assert_eq!(play.counts(["create", "delete"]), [2, 0]);
}

#[test]
fn a_create_holds_its_slot_until_its_guest_boots() {
    let policy = Policy { max_creates: 1, ..lone() };
    let mut play = Play::holding(policy, Vec::new(), &["create", "find", "tasks", "look"]);
    play.increase(2);
    let first = play.created();
    play.fail("create", ErrorKind::Ambiguous);
    play.to(SECOND);
    assert_eq!(play.counts(["create", "find"]), [1, 1], "it is looked up");
    let document = Vapp { power: Power::Off, ..vapp(&shown(href(1), first)) };
    let busy = Vapp { tasks: vec!["t/1".into()], ..document.clone() };
    play.release("find", Some(Ok(Reply::Vapps(vec![busy]))));
    assert_eq!(play.counts(["create", "tasks"]), [1, 1], "create task started");
    play.release("tasks", Some(Ok(Reply::Tasks(vec![Task { href: "t/1".into(), state: TaskState::Success }]))));
    assert_eq!(play.counts(["create", "look"]), [2, 1], "it boots");
}

#[test]
fn the_steps_of_a_create_need_no_second_slot() {
    let policy = Policy { max_creates: 1, max_operations: 1, ..lone() };
    let mut play = Play::holding(policy, Vec::new(), &["create", "power_on"]);
    play.increase(1);
    play.fail("create", ErrorKind::TooMuch);
    play.tasks = TaskState::Success;
    play.makes(2, Power::Off);
    assert_eq!(play.times("power_on").len(), 1);
}

#[test]
fn a_task_holds_a_slot_until_it_has_ended() {
    let mut play = Play::new(Policy { max_operations: 2, ..lone() }, fleet(3));
    let names = play.names();
    play.suspend();
    assert_eq!(play.times("suspend"), [0, 0]);
    play.decrease(&names[2..]);
    play.to(30 * SECOND);
    assert_eq!(play.counts(["suspend", "delete"]), [2, 0]);
    play.tasks = TaskState::Success;
    play.to(33 * SECOND);
    assert_eq!(play.counts(["suspend", "delete"]), [2, 1], "then the delete");

    let mut play = Play::holding(Policy { max_operations: 1, ..lone() }, fleet(2), &["delete"]);
    let names = play.names();
    play.decrease(&names[..1]);
    play.to(SECOND);
    play.suspend_those(&names[1..]);
    play.begin("delete", None, "t/1");
    play.to(30 * SECOND);
    assert_eq!(play.counts(["delete", "suspend"]), [1, 0]);
    play.documents.remove(&href(1));
    play.tasks = TaskState::Success;
    play.to(34 * SECOND);
    assert_eq!(play.counts(["delete", "suspend"]), [1, 1]);
}

#[test]
fn during_shutdown_only_requests_on_the_wire_use_slots() {
    let mut play = Play::holding(lone(), fleet(10), &["delete", "create"]);
    play.increase(3);
    play.shutdown();
    assert_eq!(play.counts(["create", "delete"]), [3, 1]);
    for (n, deletes) in [(1, 2), (2, 3), (3, 4)] {
        play.begin("create", Some(format!("v/made-{n}").into()), "t/1");
        assert_eq!(play.counts(["create", "delete"]), [3, deletes]);
    }
    for deletes in 5..=10 {
        play.begin("delete", None, "t/2");
        assert_eq!(play.times("delete").len(), deletes, "VCD queues the tasks");
    }
    // Running suspends are cancelled, and delay nothing.
    let mut play = Play::holding(lone(), fleet(10), &["delete"]);
    play.suspend();
    assert_eq!(play.times("suspend").len(), 4);
    play.shutdown();
    assert_eq!(play.counts(["cancel", "delete"]), [4, 4]);
}

#[test]
fn nothing_is_suspended_or_resumed_during_shutdown() {
    let policy = Policy { on_shutdown: OnShutdown::Keep, ..policy() };
    for asleep in [false, true] {
        let power = if asleep { Power::Suspended } else { Power::On };
        let mut play = Play::new(policy.clone(), vec![Vm { power, ..vm(1) }]);
        play.deaf = true;
        play.to(15 * SECOND);
        if asleep {
            play.resume()
        } else {
            play.suspend()
        }
        play.shutdown();
        play.deaf = false;
        play.to(MINUTE);
        assert_eq!(play.counts(["suspend", "power_on"]), [0, 0]);
        assert!(play.group.stopped());
    }
}

#[test]
fn at_most_four_concurrent_lookups() {
    let six = Policy { max_creates: 6, max_operations: 9, ..lone() };
    let many = |holds: &[&'static str]| {
        let mut play = Play::holding(six.clone(), Vec::new(), holds);
        play.increase(6);
        play
    };
    let undecided = || {
        let vms = fleet(6).into_iter().map(|vm| Vm { description: "".into(), ..vm }).collect();
        Play::holding(lone(), vms, &["look"])
    };
    let leaving = || {
        let mut play = Play::holding(lone(), fleet(6), &["look"]);
        let names = play.names();
        play.decrease(&names);
        play
    };
    let fitting = || {
        let mut play = Play::holding(six.clone(), Vec::new(), &["create", "look"]);
        play.increase(1);
        play.fail("create", ErrorKind::TooMuch);
        play.release("create", None);
        play.holds = vec!["look"];
        play.increase(5);
        play
    };
    let unproven = || {
        let mut play = Play::holding(six.clone(), fleet(6), &["look"]);
        play.suspend();
        play
    };
    let checked = || many(&["look"]);
    let missing = |running: bool| {
        let mut play = many(&[]);
        play.port = running;
        play.to(10 * SECOND);
        (play.hidden, play.holds) = (true, vec!["look"]);
        play.asked.clear();
        for n in 1..=3 {
            play.to(10 * SECOND + n * 24 * HOUR);
        }
        play
    };
    let plays: [(&str, Play); 6] = [
        ("undecided", undecided()),
        ("leaving", leaving()),
        ("unproven", unproven()),
        ("checked", checked()),
        ("missing", missing(true)),
        ("fitting", fitting()),
    ];
    for (what, mut play) in plays {
        assert_eq!(play.held.len(), 4, "{what}");
        play.fail("look", ErrorKind::Unavailable);
        assert_eq!(play.held.len(), 4, "{what}");
        assert_eq!(play.times("look").len(), 5, "{what}");
    }
}

#[test]
fn at_most_sixteen_concurrent_probes() {
    let policy = Policy { max_creates: 20, max_operations: 30, ..lone() };
    let mut play = Play::holding(policy, Vec::new(), &["probe"]);
    play.increase(20);
    play.to(2 * SECOND);
    assert_eq!(play.probes.len(), 16);
    for (answered, left) in [(1, 17), (2, 18), (3, 19), (4, 20), (5, 20)] {
        play.probed();
        assert_eq!(play.times("probe").len(), left, "one by one: {answered}");
    }
}

#[test]
fn all_login_ports_are_probed_however_many_do_not_answer() {
    let policy = Policy { max_creates: 20, max_operations: 30, ..lone() };
    let mut play = Play::holding(policy, Vec::new(), &["probe"]);
    play.increase(20);
    for (vm, n) in play.vms.iter_mut().zip(1..) {
        vm.address = Some([10, 0, 0, n].into());
    }
    let next = |play: &Play| play.probes.iter().map(|(_, address)| address.to_string()).collect::<Vec<String>>();
    play.to(2 * SECOND);
    assert_eq!(next(&play), (1..17).map(|n| format!("10.0.0.{n}")).collect::<Vec<_>>());
    for _ in 0..16 {
        play.probe(Err("no answer".into()));
    }
    assert_eq!(next(&play), (17..21).map(|n| format!("10.0.0.{n}")).collect::<Vec<_>>());
    // Twelve more, after a pause.
    play.to(3 * SECOND);
    let last = ["10.0.0.11", "10.0.0.12"];
    assert_eq!((play.probes.len(), &next(&play)[14..]), (16, &last.map(String::from)[..]));
    for _ in 0..16 {
        play.probe(Err("no answer".into()));
    }
    play.to(4 * SECOND);
    let turns = (13..21).chain(1..9).map(|n| format!("10.0.0.{n}"));
    assert_eq!(next(&play), turns.collect::<Vec<_>>(), "the first ones wait for their turn");
}

#[test]
fn a_late_probe_answer_counts_for_the_current_state() {
    let probing = || {
        let mut play = Play::booting(|play| play.holds = vec!["probe", "look"]);
        play.release("look", None);
        play.to(3 * SECOND);
        assert_eq!(play.probes.len(), 1);
        play
    };
    let mut play = probing();
    play.probed();
    assert_eq!((play.states(), play.said("running, 3 s after it was accepted")), (vec![State::Running], 1));
    // Customization continues.
    let mut play = probing();
    play.vms[0].customization = Customization::Working;
    play.to(5 * SECOND).probed();
    assert_eq!((play.states(), play.probes.len()), (vec![State::Creating], 0));
    play.vms[0].customization = Customization::Complete;
    play.to(7 * SECOND).probed();
    assert_eq!(play.states(), [State::Running]);
    // The instance is no longer wanted.
    let mut play = probing();
    play.hidden = true;
    play.until("look", 2);
    let names = play.names();
    play.decrease(&names);
    play.probed();
    assert_eq!((play.states(), play.said("after it was accepted")), (vec![State::Deleting], 0));
}

#[test]
fn a_guest_without_customization_is_accepted_if_a_poll_confirms_it_at_the_end() {
    for (last, taken) in [(118, false), (120, true)] {
        let mut play = Play::booting(|_| {});
        play.vms[0].customization = Customization::Pending;
        play.to((last + 1) * SECOND).deaf = true;
        assert_eq!(play.before(125 * SECOND).states(), [State::Creating]);
        play.to(125 * SECOND);
        assert_eq!((play.times("probe")[0], play.states() == [State::Running]), (60 * SECOND, taken));
    }
}

// Pauses.

#[test]
fn the_operation_limit_pauses_all_changes_exactly() {
    let limit = || Some(Err(VcdError { retry_after: Some(secs(97)), ..error(ErrorKind::Limit) }));
    for operation in ["create", "delete", "suspend", "power_on"] {
        let power = if operation == "power_on" { Power::Suspended } else { Power::On };
        let mut play = Play::new(lone(), vec![Vm { power, ..vm(1) }]);
        play.holds = vec![operation];
        let names = play.names();
        match operation {
            "create" => play.increase(1),
            "delete" => play.decrease(&names),
            "suspend" => play.suspend(),
            _ => play.resume(),
        }
        play.release(operation, limit());
        assert_eq!(play.before(97 * SECOND).times(operation), [0], "{operation}");
        assert_eq!(play.to(97 * SECOND).times(operation), [0, 97 * SECOND], "{operation}");
    }
}

#[test]
fn after_three_failures_creates_are_tried_one_by_one() {
    let mut play = Play::holding(lone(), Vec::new(), &["create"]);
    play.increase(3);
    play.to(SECOND);
    for _ in 0..3 {
        play.fail("create", ErrorKind::Failed);
    }
    assert_eq!(play.group.standing(Time(play.now)).failures, 1, "concurrent failures are one event");
    for failures in [2, 3] {
        play.until("create", play.times("create").len() + 1);
        while !play.held.is_empty() {
            play.fail("create", ErrorKind::Failed);
        }
        assert_eq!(play.group.standing(Time(play.now)).failures, failures);
    }
    let (opened, tried) = (play.now, play.times("create").len());
    assert_eq!(play.said("no VM is created for 60 s, then one is tried; deletes continue. Fix the last error"), 1);
    play.before(opened + MINUTE);
    assert_eq!(play.times("create").len(), tried);
    play.to(opened + 3 * MINUTE);
    assert_eq!(play.times("create").len(), tried + 1, "one");
    play.fail("create", ErrorKind::Failed);
    let opened = play.now;
    play.before(opened + 2 * MINUTE);
    assert_eq!(play.times("create").len(), tried + 1);
    (play.holds, play.port) = (vec![], false);
    play.to(opened + 2 * MINUTE + 20 * SECOND);
    assert_eq!(play.times("create").len(), tried + 2, "its guest decides");
    play.port = true;
    play.to(play.now + 2 * MINUTE);
    assert_eq!(
        (play.states(), play.times("create").len()),
        (vec![State::Running; 3], tried + 4),
        "all creates continue"
    );
}

#[test]
fn only_a_new_guest_that_is_wanted_decides_for_the_breaker() {
    let mut play = Play::new(lone(), vec![Vm { power: Power::Suspended, ..vm(1) }]);
    play.holds = vec!["create", "look", "delete"];
    (play.tasks, play.port) = (TaskState::Success, false);
    play.increase(12);
    // One is created and waits for its first lookup. The others fail, one after another.
    play.release("create", None);
    while play.group.standing(Time(play.now)).breaker.is_none() {
        play.to(play.now + 1);
        play.fail("create", ErrorKind::NotFound);
    }
    let failed = play.times("create").len();
    assert_eq!(play.group.standing(Time(play.now)).failures, 3);
    while !play.held.iter().all(|(_, request)| request.operation() == "look") {
        play.fail("create", ErrorKind::NotFound);
    }
    play.before(60 * SECOND);
    // One boots again.
    play.resume_those(&[name(1)]);
    assert_eq!(play.times("create").len(), failed);
    play.to(400 * SECOND);
    assert_eq!(play.times("create").len(), failed, "it may run");
    let made = play.made_last();
    play.decrease(&[made]);
    assert_eq!(play.times("create").len(), failed + 1, "it is not wanted any more");
}

#[test]
fn creates_wait_for_leftovers_exactly() {
    let policy = Policy { startup_cleanup_timeout: secs(253), ..lone() };
    let mut play = Play::holding(policy.clone(), vec![Vm { power: Power::Off, ..vm(1) }], &["look"]);
    play.increase(1);
    play.first("create", 253 * SECOND);
    // The last leftover is deleted: creates start at once. A running instance that was found delays nothing.
    let mut play = Play::holding(policy, vec![Vm { power: Power::Off, ..vm(1) }, vm(2)], &["delete"]);
    play.increase(1);
    assert_eq!(play.to(100 * SECOND).times("create"), [] as [u64; 0]);
    play.release("delete", None);
    assert_eq!(play.times("create"), [100 * SECOND]);
}

#[test]
fn changes_wait_for_a_reachable_vcd_except_during_shutdown() {
    for change in ["create", "delete", "suspend"] {
        let mut play = Play::new(policy(), fleet(2));
        play.deaf = true;
        play.to(15 * SECOND);
        let names = play.names();
        match change {
            "create" => play.increase(1),
            "delete" => play.decrease(&names[..1]),
            _ => play.suspend_those(&names[..1]),
        }
        play.to(19 * SECOND);
        play.deaf = false;
        play.first(change, 20 * SECOND);
    }
    let mut play = Play::new(policy(), fleet(2));
    play.deaf = true;
    play.to(15 * SECOND).shutdown();
    assert_eq!(play.times("delete"), [15 * SECOND; 2]);
}

// Deadlines.

#[test]
fn a_create_is_given_up_at_create_timeout_after_its_first_try() {
    let policy = Policy { create_timeout: secs(100), ready_timeout: secs(1000), ..lone() };
    // A hanging create has failed. A create that did not start, or may not have started, has not.
    for (place, failures, why) in [
        ("retry", 1, "Last error: it: no"),
        ("find", 0, "Last error: it: no"),
        ("task", 1, "It waited for the create's task"),
        ("fitting", 1, "It waited for a lookup"),
        ("boot", 1, "Last error: login port: refused"),
        // It is not known yet whether creates in steps fail.
        ("delete", 0, "Last error: it: no"),
    ] {
        let mut play = Play::holding(policy.clone(), Vec::new(), &["create", "find"]);
        play.port = false;
        play.to(7 * SECOND).increase(1);
        match place {
            "retry" => play.fail("create", ErrorKind::Failed),
            "find" => play.fail("create", ErrorKind::Ambiguous),
            "task" => play.begin("create", Some(href(1)), "t/1"),
            "fitting" => {
                play.holds.push("look");
                play.fail("create", ErrorKind::TooMuch);
                play.release("create", None);
            }
            "delete" => {
                (play.holds, play.tasks) = (vec!["create", "delete"], TaskState::Failed(error(ErrorKind::Failed)));
                play.makes(1, Power::Failed);
                play.fail("delete", ErrorKind::Quota);
            }
            _ => play.release("create", None),
        }
        play.before(107 * SECOND);
        assert_eq!(play.states(), [State::Creating], "{place}");
        assert_eq!(play.to(107 * SECOND).states(), [State::Timeout], "{place}");
        assert_eq!(play.group.standing(Time(play.now)).failures, failures, "{place}");
        assert_eq!(play.said(why), 1, "{place}: {:?}", play.said);
        // The first cause is kept.
        let names = play.names();
        play.decrease(&names);
        assert_eq!((play.states(), play.said("requested the delete")), (vec![State::Timeout], 0), "{place}");
    }
    // Further attempts do not extend the time.
    let mut play = Play::holding(policy, Vec::new(), &["create"]);
    play.to(7 * SECOND).increase(1);
    play.fail("create", ErrorKind::Unavailable);
    play.until("create", 2);
    assert!((14_500..=19_500).contains(&play.now));
    play.before(107 * SECOND);
    assert_eq!(play.states(), [State::Creating]);
    assert_eq!(play.to(107 * SECOND).states(), [State::Timeout]);
}

#[test]
fn a_guest_that_is_not_ready_in_time_is_deleted_at_that_moment() {
    let policy = Policy { ready_timeout: Duration::from_millis(97_500), ..lone() };
    let mut play = Play::new(policy, Vec::new());
    play.increase(1);
    play.vms[0].customization = Customization::Working;
    play.first("delete", 97_500);
    assert_eq!((play.states(), play.said("not ready within ready_timeout")), (vec![State::Creating], 1));
}

#[test]
fn a_guest_without_customization_is_probed_after_a_minute() {
    let mut play = Play::new(lone(), Vec::new());
    play.port = false;
    play.to(500).increase(1);
    play.vms[0].customization = Customization::Pending;
    play.first("probe", 60_500);
}

#[test]
fn a_resume_that_a_quota_refused_is_tried_again_after_the_delete_of_another_vm() {
    for (kind, resumes) in [(ErrorKind::Quota, 2), (ErrorKind::Forbidden, 1)] {
        let mut play = Play::new(policy(), vec![Vm { power: Power::Suspended, ..vm(1) }, vm(2)]);
        play.holds = vec!["power_on"];
        play.resume_those(&[name(1)]);
        play.fail("power_on", kind);
        play.decrease(&[name(2)]);
        play.to(MINUTE);
        assert_eq!((play.times("power_on").len(), play.deleted()), (resumes, vec!["v/2"]), "{kind:?}");
    }
}

#[test]
fn a_resume_that_does_not_start_ends_nothing() {
    let policy = Policy { create_timeout: secs(100), ..policy() };
    let mut play = Play::new(policy, vec![Vm { power: Power::Suspended, ..vm(1) }]);
    play.holds = vec!["power_on"];
    play.to(7 * SECOND).resume();
    // VCD rejects it for a day. A lookup follows each time.
    while play.now < 24 * HOUR {
        if !play.held.is_empty() {
            play.fail("power_on", ErrorKind::Quota);
        }
        play.to(play.now + MINUTE);
    }
    assert_eq!((play.states(), play.deleted()), (vec![State::Resuming], vec![]));
    assert!(play.times("power_on").len() < 24 * 16, "about every five minutes");
    assert!(play.view().stuck.unwrap() > secs(23 * 3600));
    play.holds.clear();
    (play.tasks, play.vms[0].power) = (TaskState::Success, Power::On);
    play.to(play.now + 10 * MINUTE);
    assert_eq!((play.states(), play.view().stuck), (vec![State::Running], None));
}

#[test]
fn a_resumed_guest_that_no_poll_shows_is_not_given_up() {
    for hidden in [false, true] {
        let mut play = Play::new(policy(), vec![Vm { power: Power::Suspended, ..vm(1) }]);
        (play.port, play.tasks) = (false, TaskState::Success);
        play.resume();
        assert_eq!(play.to(SECOND).states(), [State::Resuming]);
        (play.hidden, play.deaf) = (hidden, !hidden);
        play.documents.get_mut(&href(1)).unwrap().power = Power::On;
        // No poll shows it for some time: its time does not run.
        play.to(40 * MINUTE);
        assert_eq!(play.states(), [State::Resuming]);
        (play.hidden, play.deaf) = (false, false);
        play.show(Power::On, false).to(49 * MINUTE);
        assert_eq!(play.states(), [State::Resuming]);
        play.to(52 * MINUTE);
        assert_eq!(
            (play.states(), play.view().cause),
            (vec![State::Deleted], Some(Cause::Unhealthy)),
            "seen, and not ready"
        );
    }
}

#[test]
fn a_resumed_guest_that_nothing_shows_is_given_up_after_an_hour() {
    let mut play = Play::new(policy(), vec![Vm { power: Power::Suspended, ..vm(1) }]);
    play.tasks = TaskState::Success;
    play.resume();
    play.to(SECOND).hidden = true;
    play.fails = vec![("look", ErrorKind::Unavailable)];
    assert_eq!(play.to(59 * MINUTE).states(), [State::Resuming]);
    play.to(61 * MINUTE);
    assert_eq!((play.states(), play.view().cause), (vec![State::Deleting], Some(Cause::Unhealthy)));
}

#[test]
fn a_lookup_precedes_each_change_if_the_last_poll_is_old() {
    let acts: [fn(&mut Play); 2] = [Play::suspend, |play| play.decrease(&play.names())];
    for (age, act, looks) in [(60, acts[0], 0), (60, acts[1], 0), (61, acts[0], 1), (61, acts[1], 1)] {
        let policy = Policy { reconcile_interval: secs(300), ..policy() };
        let mut play = Play::new(policy, Vec::new());
        play.increase(1);
        play.to(2 * MINUTE);
        assert_eq!(play.states(), [State::Running]);
        // A person has renamed it since the last poll.
        if looks > 0 {
            play.documents.values_mut().for_each(|vapp| vapp.name = name(2));
        }
        let before = play.times("look").len();
        play.to(play.times("poll").pop().unwrap() + age * SECOND);
        act(&mut play);
        play.to(play.now + SECOND);
        assert_eq!(play.times("look").len() - before, looks, "{age}");
        assert_eq!(play.counts(["mark", "delete"]).iter().sum::<usize>(), 1 - looks, "{age}");
    }
}

#[test]
fn the_metadata_entry_is_written_after_a_lookup_if_the_last_poll_is_old() {
    let mut play = Play::new(policy(), Vec::new());
    play.increase(1);
    play.to(5 * SECOND).deaf = true;
    play.fails = vec![("label", ErrorKind::Unavailable)];
    play.to(50 * SECOND);
    assert_eq!((play.states(), play.times("label").len()), (vec![State::Running], 2));
    play.documents.values_mut().for_each(|vapp| vapp.name = name(2));
    play.to(30 * MINUTE);
    assert_eq!((play.times("label").len(), play.said("the plugin no longer manages it")), (2, 1), "{:?}", play.said);
}

#[test]
fn a_vm_that_is_off_while_a_task_works_on_it_is_unhealthy_after_two_minutes_however_rare_polls_are() {
    for (interval, end) in [(10, 130), (50, 200), (300, 600)] {
        let mut play = Play::new(Policy { reconcile_interval: secs(interval), ..policy() }, fleet(1));
        play.show(Power::Off, true).before(end * SECOND);
        assert_eq!(play.health(), Ok(()), "{interval}");
        play.to(end * SECOND);
        assert!(play.health().is_err(), "{interval}");
    }
}

#[test]
fn ten_unhealthy_minutes_end_an_instance_at_that_moment() {
    let policy = Policy { reconcile_interval: secs(7), ..policy() };
    let mut play = Play::new(policy, fleet(1));
    play.show(Power::Off, false).documents.get_mut(&href(1)).unwrap().power = Power::Off;
    play.before(607 * SECOND);
    assert_eq!((play.states(), play.times("look")), (vec![State::Running], vec![]));
    play.to(607 * SECOND);
    assert_eq!((play.times("look"), play.times("delete")), (vec![607 * SECOND], vec![607 * SECOND]));
}

#[test]
fn a_deleted_instance_is_reported_for_five_minutes() {
    let mut play = Play::new(lone(), fleet(1));
    let names = play.names();
    play.to(7 * SECOND).decrease(&names);
    assert_eq!(play.before(307 * SECOND).states(), [State::Deleted]);
    assert_eq!(play.to(307 * SECOND).states(), []);
    assert!(play.group.views(Time(play.now)).is_empty());
    // Leftovers are forgotten when they are deleted.
    let play = Play::new(lone(), vec![Vm { power: Power::Off, ..vm(1) }]);
    assert_eq!((play.deleted(), play.strays().len()), (vec!["v/1"], 0));
}

// Tasks.

#[test]
fn a_task_that_does_not_end_is_cancelled_after_half_an_hour_and_ignored_after_another() {
    let mut play = Play::new(lone(), fleet(1));
    play.to(7 * SECOND).suspend();
    play.first("cancel", 7 * SECOND + 30 * MINUTE);
    assert_eq!(play.said("the task in VCD hangs"), 1);
    // Its slot was freed after ten minutes. A lookup shows that VCD no longer knows the task: it is suspended again.
    play.to(play.now + 3 * MINUTE);
    assert_eq!(play.times("suspend"), [7 * SECOND, 7 * SECOND + 32 * MINUTE]);
    assert_eq!((play.states(), play.deleted()), (vec![State::Suspending], vec![]));

    // The lookup shows it suspended: it needs no second one.
    let mut play = Play::new(lone(), fleet(1));
    play.suspend();
    play.documents.get_mut(&href(1)).unwrap().power = Power::Suspended;
    play.to(33 * MINUTE);
    assert_eq!((play.states(), play.times("suspend")), (vec![State::Suspended], vec![0]));

    // It has to run again: it is resumed.
    let mut play = Play::new(lone(), fleet(1));
    play.suspend();
    play.to(5 * MINUTE).resume();
    let document = play.documents.get_mut(&href(1)).unwrap();
    (document.power, document.mark) = (Power::Suspended, Mark::Suspended);
    play.show(Power::Suspended, true);
    play.first("power_on", 32 * MINUTE);
    assert_eq!(play.states(), [State::Resuming]);

    // The deadline of a resume does not run while VCD works on it.
    let mut play = Play::new(lone(), vec![Vm { power: Power::Suspended, ..vm(1) }]);
    play.resume();
    play.first("cancel", 30 * MINUTE);
    assert_eq!(play.states(), [State::Resuming]);

    // A delete is not cancelled earlier.
    let mut play = Play::holding(lone(), fleet(1), &["delete"]);
    let names = play.names();
    play.to(7 * SECOND).decrease(&names);
    play.begin("delete", None, "t/1");
    play.documents.get_mut(&href(1)).unwrap().tasks = vec!["t/1".into()];
    play.first("cancel", 7 * SECOND + 30 * MINUTE);
    // It continues anyway: it is cancelled again, with growing pauses.
    play.to(24 * HOUR);
    let cancels = play.times("cancel").len();
    assert!((20..40).contains(&cancels), "{cancels}");
    assert_eq!(play.times("delete").len(), 1);
    assert_eq!(play.group.standing(Time(play.now)).deletes.used, 0, "it keeps no slot");
}

#[test]
fn an_unwanted_create_is_cancelled_at_once_and_a_wanted_one_at_its_deadline() {
    let mut play = Play::making(lone());
    let names = play.names();
    play.to(7 * SECOND).decrease(&names);
    assert_eq!(play.times("cancel"), [7 * SECOND]);
    assert_eq!(play.before(7 * SECOND + 2 * MINUTE).counts(["cancel", "look"]), [1, 1]);
    assert_eq!(play.group.standing(Time(play.now)).creates.used, 1);
    assert_eq!(play.to(7 * SECOND + 2 * MINUTE).counts(["cancel", "look"]), [2, 2], "it is stuck");
    assert_eq!(play.group.standing(Time(play.now)).creates.used, 0);

    let mut play = Play::making(Policy { create_timeout: secs(2 * 3600), ..lone() });
    play.first("cancel", 2 * HOUR);
}

#[test]
fn tasks_are_queried_frequently_at_first_and_by_the_youngest() {
    let mut play = Play::new(lone(), fleet(2));
    play.to(11 * SECOND);
    let names = play.names();
    play.suspend_those(&names[..1]);
    play.to(90 * SECOND);
    let close = [11, 12, 13, 14, 17, 20, 23, 26, 29, 32, 35, 38, 41, 44, 47, 50, 53, 56, 59, 62, 65, 68];
    let tasks = in_seconds(&play.times("tasks"));
    assert_eq!((&tasks[..22], &tasks[22..]), (&close[..], &[73, 78, 83, 88][..]));
    play.suspend_those(&names[1..]);
    play.to(100 * SECOND);
    assert_eq!(in_seconds(&play.times("tasks"))[26..], [90, 91, 92, 93, 96, 99]);
}

#[test]
fn the_duration_of_a_failed_task_says_nothing_about_the_next() {
    let mut play = Play::new(lone(), fleet(2));
    let names = play.names();
    play.suspend_those(&names[..1]);
    play.to(30 * SECOND).tasks = TaskState::Failed(error(ErrorKind::Failed));
    play.to(60 * SECOND).tasks = TaskState::Running;
    let before = play.times("tasks").len();
    play.suspend_those(&names[1..]);
    play.to(64 * SECOND);
    assert_eq!(play.times("tasks")[before..], [60, 61, 62, 63].map(|s| s * SECOND));
}

#[test]
fn only_tasks_count_for_the_pause_around_an_expected_end() {
    let mut play = Play::new(Policy { max_operations: 9, ..lone() }, fleet(4));
    play.to(11 * SECOND);
    let names = play.names();
    play.suspend_those(&names[..1]);
    play.to(41 * SECOND);
    play.tasks = TaskState::Success;
    play.to(50 * SECOND);
    play.tasks = TaskState::Running;
    play.holds = vec!["suspend"];
    play.suspend_those(&names[1..]);
    play.begin("suspend", None, "t/1");
    assert_eq!(play.held.len(), 2, "requests on the wire");
    play.to(85 * SECOND);
    let close: Vec<u64> = play.times("tasks").into_iter().filter(|at| *at > 82 * SECOND).collect();
    assert!(close.len() > 4 && close.windows(2).all(|two| two[1] - two[0] == 500), "{close:?}");
}

#[test]
fn failed_task_queries_are_repeated_with_growing_pauses() {
    let mut play = Play::new(lone(), fleet(1));
    play.to(11 * SECOND);
    play.holds = vec!["tasks"];
    play.suspend();
    let mut again = |retry_after: Option<u64>, kind| {
        let (from, asked) = (play.now, play.times("tasks").len());
        let retry_after = retry_after.map(secs);
        play.release("tasks", Some(Err(VcdError { retry_after, ..error(kind) })));
        play.until("tasks", asked + 1);
        (play.now - from) / SECOND
    };
    for pause in [2, 4, 8, 16, 32, 32, 32] {
        assert_eq!(again(None, ErrorKind::Unavailable), pause);
    }
    for (asked, pause) in [(10, 32), (50, 50), (70, 60)] {
        assert_eq!(again(Some(asked), ErrorKind::Limit), pause);
    }
    assert_eq!(play.said("next query soon"), 10);
    play.release("tasks", None);
    play.until("tasks", 12);
    play.fail("tasks", ErrorKind::Unavailable);
    play.until("tasks", 13);
    // A short pause again: the usual pause is longer.
    let tasks = in_seconds(&play.times("tasks"));
    assert_eq!((tasks[11] - tasks[10], tasks[12] - tasks[11]), (5, 5));
    // No query while a query is on the wire.
    play.to(play.now + MINUTE);
    assert_eq!(play.times("tasks").len(), 13);
}

#[test]
fn the_outcome_of_a_task_that_vcd_no_longer_knows_is_looked_up() {
    let forgets = |play: &mut Play| {
        play.tasks = TaskState::Unknown;
        play.to(play.now + 10 * SECOND).states()
    };
    let mut play = Play::new(lone(), fleet(1));
    play.suspend();
    play.documents.get_mut(&href(1)).unwrap().power = Power::Suspended;
    assert_eq!(forgets(&mut play), [State::Suspended]);

    let mut play = Play::holding(lone(), fleet(1), &["delete"]);
    let names = play.names();
    play.decrease(&names);
    play.begin("delete", None, "t/1");
    play.documents.clear();
    assert_eq!(forgets(&mut play), [State::Deleted]);

    let mut play = Play::making(lone());
    let made = shown(href(1), play.created());
    play.documents.insert(href(1), vapp(&made));
    play.vms.push(made);
    assert_eq!(forgets(&mut play), [State::Running], "polls show it");

    let mut play = Play::holding(lone(), fleet(1), &["mark"]);
    play.suspend();
    play.begin("mark", None, "t/1");
    assert_eq!((forgets(&mut play), play.times("mark").len()), (vec![State::Suspending], 2), "it is written again");
}

#[test]
fn stuck_tasks_are_queried_once_a_minute() {
    let mut play = Play::new(lone(), fleet(1));
    play.suspend();
    play.to(20 * MINUTE);
    let tasks = play.times("tasks");
    let last: Vec<u64> = tasks.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(last[last.len() - 8..], [MINUTE; 8]);
    assert_eq!(play.group.standing(Time(play.now)).stuck, 1);
}

#[test]
fn a_create_that_polls_never_show_is_given_up() {
    let policy = Policy { create_timeout: secs(600), ..policy() };
    let mut play = Play::new(policy, Vec::new());
    (play.port, play.hidden) = (false, true);
    play.increase(1);
    play.before(HOUR);
    assert_eq!((play.states(), play.deleted()), (vec![State::Creating], vec![]), "no poll shows it");
    play.to(HOUR);
    assert_eq!(play.states(), [State::Timeout]);
}

/// Which creates used the combined request.
fn whole(play: &Play) -> Vec<bool> {
    let create = |(_, _, request): &(u64, &str, Option<Request>)| match request {
        Some(Request::Create { whole, .. }) => Some(*whole),
        _ => None,
    };
    play.asked.iter().filter_map(create).collect()
}

#[test]
fn combined_creates_whose_task_fails_are_tried_in_steps_once() {
    let mut play = Play::holding(policy(), Vec::new(), &["create"]);
    play.tasks = TaskState::Failed(error(ErrorKind::Failed));
    play.increase(1);
    // VCD creates it, and cannot power it on: a separate request does that.
    play.makes(1, Power::Off);
    assert_eq!((play.times("power_on").len(), play.said("VCD created the VM but did not power it on")), (1, 1));
    // That fails too. VMs of the next two creates cannot be used either: steps follow, and the breaker counts only
    // failures of steps.
    play.makes(2, Power::Failed);
    play.makes(3, Power::Failed);
    assert_eq!(play.group.standing(Time(play.now)).failures, 1, "the failed power-on");
    play.until("create", 4);
    assert_eq!(whole(&play), [true, true, true, false]);
    play.makes(4, Power::Failed);
    assert_eq!(play.group.standing(Time(play.now)).failures, 2);
    play.until("create", 5);
    assert_eq!(whole(&play)[4..], [true], "creates in steps fail too");
}

#[test]
fn a_vm_that_vcd_created_and_did_not_power_on_keeps_its_slot() {
    let mut play = Play::holding(Policy { max_creates: 1, ..policy() }, Vec::new(), &["create"]);
    play.tasks = TaskState::Failed(error(ErrorKind::Failed));
    play.increase(2);
    let vm = Vm { power: Power::Off, ..shown(href(1), play.created()) };
    play.documents.insert(href(1), vapp(&vm));
    play.holds.push("power_on");
    play.begin("create", Some(href(1)), "t/1");
    play.to(5 * SECOND);
    assert_eq!(play.counts(["create", "power_on"]), [1, 1]);
}

#[test]
fn combined_creates_stay_in_use_if_no_two_in_a_row_fail() {
    let mut play = Play::holding(policy(), Vec::new(), &["create"]);
    play.increase(1);
    for (n, power, state) in [
        (1, Power::Failed, TaskState::Failed(error(ErrorKind::Failed))),
        (2, Power::On, TaskState::Success),
        (3, Power::Failed, TaskState::Failed(error(ErrorKind::Failed))),
    ] {
        play.tasks = state;
        play.makes(n, power);
        if power == Power::On {
            play.increase(1);
        }
    }
    play.until("create", 4);
    assert_eq!(whole(&play), [true; 4]);
}

#[test]
fn combined_creates_stay_in_use_if_vcd_aborts_them() {
    let mut play = Play::holding(policy(), Vec::new(), &["create"]);
    play.tasks = TaskState::Failed(error(ErrorKind::Aborted));
    play.increase(1);
    (1..=3).for_each(|n| play.makes(n, Power::Failed));
    play.until("create", 4);
    assert_eq!(whole(&play), [true; 4]);
}

#[test]
fn combined_creates_that_vcd_rejects_are_tried_in_steps_once() {
    let mut play = Play::holding(policy(), Vec::new(), &["create"]);
    play.increase(1);
    play.fail_creates(4, ErrorKind::Invalid);
    assert_eq!(whole(&play), [true, true, false, true]);
    assert_eq!(play.group.standing(Time(play.now)).failures, 2, "the create in steps, and the one after it");
}

/// The template's disk or a part of the request may have been unreadable for a moment.
#[test]
fn a_combined_create_that_is_too_much_is_tried_again_after_an_hour() {
    let mut play = Play::holding(policy(), Vec::new(), &["create"]);
    play.increase(1);
    play.fail("create", ErrorKind::TooMuch);
    let again = play.now + HOUR;
    // Steps that fail do not make it less.
    play.fail("create", ErrorKind::Failed);
    play.until("create", 3);
    play.release("create", None);
    for at in [again - SECOND, again] {
        play.to(at).increase(1);
        play.release("create", None);
    }
    assert_eq!(whole(&play), [true, false, false, false, true]);
    assert_eq!(play.said("VMs are now created in three steps"), 1);
}

#[test]
fn a_quota_says_nothing_of_steps() {
    let mut play = Play::holding(policy(), Vec::new(), &["create"]);
    play.increase(1);
    play.fail_creates(2, ErrorKind::Invalid);
    play.fail_creates(2, ErrorKind::Quota);
    play.until("create", 5);
    play.tasks = TaskState::Failed(error(ErrorKind::Quota));
    play.begin("create", Some("v/1".into()), "t/1");
    play.until("create", 6);
    assert_eq!(whole(&play), [true, true, false, false, false, false]);
}

#[test]
fn guests_that_are_never_ready_open_the_breaker() {
    let mut play = Play::new(Policy { create_timeout: secs(1200), ready_timeout: secs(600), ..policy() }, Vec::new());
    play.port = false;
    for at in [0, 1201, 2402] {
        play.to(at * SECOND).increase(1);
    }
    assert!(play.to(HOUR).said("no VM is created for") > 0, "{:?}", play.said);
}

#[test]
fn combined_creates_are_used_again_however_many_creates_in_steps_fail() {
    let mut play = Play::holding(policy(), Vec::new(), &["create"]);
    play.increase(2);
    for n in [2, 4] {
        play.until("create", n);
        (0..2).for_each(|_| play.fail("create", ErrorKind::Invalid));
    }
    play.until("create", 5);
    assert_eq!(whole(&play), [true, true, false, false, true]);
}

#[test]
fn combined_creates_whose_answers_are_lost_are_tried_in_steps() {
    let mut play = Play::holding(policy(), Vec::new(), &["create"]);
    play.increase(1);
    // The first one is repeated before it has failed.
    play.fail_creates(4, ErrorKind::Ambiguous);
    play.until("create", 5);
    assert_eq!(whole(&play), [true, true, true, false, true], "one in steps was lost too");
}

#[test]
fn steps_are_tried_again_if_combined_creates_fail_again() {
    let mut play = Play::holding(Policy { create_timeout: secs(3600), ..policy() }, Vec::new(), &["create"]);
    play.increase(1);
    play.fail_creates(5, ErrorKind::Invalid);
    play.until("create", 6);
    assert_eq!(whole(&play), [true, true, false, true, true, false]);
}

#[test]
fn a_create_in_steps_that_is_no_longer_wanted_says_nothing_about_steps() {
    let mut play = Play::holding(policy(), Vec::new(), &["create"]);
    play.increase(1);
    play.fail_creates(2, ErrorKind::Invalid);
    play.until("create", 3);
    let vm = Vm { power: Power::Failed, ..shown(href(3), play.created()) };
    play.documents.insert(href(3), Vapp { tasks: vec!["t/1".into()], ..vapp(&vm) });
    play.begin("create", Some(href(3)), "t/1");
    let names = play.names();
    play.decrease(&names);
    play.tasks = TaskState::Failed(error(ErrorKind::Failed));
    play.to(play.now + 5 * SECOND);
    play.increase(1);
    play.until("create", 4);
    assert_eq!((play.times("cancel").len(), whole(&play)), (1, vec![true, true, false, false]));
}

#[test]
fn a_vm_for_standby_that_vcd_created_and_did_not_power_on_is_powered_on() {
    let mut play = Play::holding(Policy { standby_count: 1, ..policy() }, Vec::new(), &["create"]);
    play.tasks = TaskState::Failed(error(ErrorKind::Failed));
    play.makes(1, Power::Off);
    assert_eq!(play.times("power_on").len(), 1);
}

#[test]
fn a_vm_for_standby_that_disappears_during_its_create_is_replaced_after_a_pause() {
    for empty_vapp_stays in [false, true] {
        let mut play = Play::holding(Policy { standby_count: 1, ..policy() }, Vec::new(), &["create"]);
        play.tasks = TaskState::Unknown;
        if empty_vapp_stays {
            let vm = Vm { power: Power::Off, ..shown(href(1), play.created()) };
            play.documents.insert(href(1), Vapp { made: None, vms: Vec::new(), ..vapp(&vm) });
        }
        play.begin("create", Some(href(1)), "t/1");
        play.until("create", 2);
        let pause = play.now - play.times("look")[0];
        assert!((7_500..=12_500).contains(&pause), "{empty_vapp_stays} {pause} {:?}", play.said);
    }
}

#[test]
fn the_delete_of_a_failed_create_for_standby_frees_no_quota() {
    let mut play = Play::holding(Policy { standby_count: 1, ..policy() }, Vec::new(), &["create"]);
    play.increase(2);
    let refused = play.held[0].1.clone();
    play.fail("create", ErrorKind::Quota);
    play.release("create", None);
    play.until("create", 3);
    assert_eq!(play.strays(), [play.created().to_string()]);
    let vm = Vm { power: Power::Failed, ..shown(href(1), play.created()) };
    play.documents.insert(href(1), vapp(&vm));
    play.tasks = TaskState::Failed(error(ErrorKind::Quota));
    play.begin("create", Some(href(1)), "t/1");
    play.to(20 * SECOND);
    assert_eq!(play.deleted(), ["v/1"]);
    let tries = |play: &Play| play.asked.iter().filter(|(.., request)| request.as_ref() == Some(&refused)).count();
    assert_eq!(tries(&play), 1);
    play.to(40 * SECOND);
    assert_eq!(tries(&play), 2);
}

#[test]
fn a_create_over_a_quota_is_tried_again_after_a_delete() {
    let mut play = Play::holding(policy(), fleet(1), &["create"]);
    play.increase(1);
    // Until the breaker allows none.
    play.fail_creates(3, ErrorKind::Quota);
    assert_eq!(play.said("creates fail: no VM is created for 60 s"), 1);
    let gone = play.now + SECOND;
    play.to(gone).decrease(&[name(1)]);
    assert_eq!((play.times("delete"), play.times("create")[3..].to_vec()), (vec![gone], vec![gone]));
}

#[test]
fn the_delete_of_an_instance_whose_first_create_was_over_a_quota_frees_it_too() {
    let mut play = Play::holding(policy(), Vec::new(), &["create"]);
    play.increase(1);
    play.fail("create", ErrorKind::Quota);
    play.until("create", 2);
    play.release("create", None);
    let running = play.names();
    play.to(play.now + 10 * SECOND).increase(1);
    play.fail("create", ErrorKind::Quota);
    let gone = play.now + SECOND;
    play.to(gone).decrease(&running);
    assert_eq!((play.times("delete"), play.times("create")[3..].to_vec()), (vec![gone], vec![gone]));
}

#[test]
fn one_poll_does_not_keep_an_instance_from_its_resume() {
    let mut play = Play::suspended();
    play.show(Power::Off, false).to(10 * SECOND).resume();
    assert!(play.times("power_on").is_empty());
    play.show(Power::Suspended, false).to(21 * SECOND);
    assert_eq!((play.states(), play.times("power_on").len()), (vec![State::Resuming], 1), "{:?}", play.said);
}

#[test]
fn a_shutdown_does_not_wait_for_the_pause_of_a_delete() {
    let mut play = Play::holding(lone(), fleet(1), &["delete", "undeploy"]);
    let names = play.names();
    play.decrease(&names);
    // What has failed three times is done the other way.
    for (operation, times) in
        [("delete", 1), ("delete", 2), ("delete", 3), ("undeploy", 1), ("delete", 4), ("undeploy", 2), ("delete", 5)]
    {
        play.until(operation, times);
        play.fail(operation, ErrorKind::Failed);
    }
    play.holds.clear();
    play.to(play.now + MINUTE);
    assert_eq!(play.times("undeploy").len(), 2);
    play.shutdown();
    play.to(play.now + 5 * SECOND);
    assert_eq!((play.times("undeploy").len(), play.group.stopped()), (3, true));
}

#[test]
fn a_probe_of_an_address_that_has_changed_does_not_count() {
    let mut play = Play::booting(|play| play.holds = vec!["probe"]);
    play.until("probe", 1);
    play.vms[0].address = Some(IpAddr::from([10, 0, 0, 9]));
    play.to(play.now + 5 * SECOND).probed();
    assert_eq!(play.states(), [State::Creating]);
    play.probed();
    assert_eq!(play.states(), [State::Running]);
}

/// It is polled by name while it boots, and rarely with all others.
#[test]
fn a_guest_is_not_given_up_while_polls_by_name_fail() {
    let rare = Policy { reconcile_interval: Duration::from_secs(1800), ..policy() };
    let mut play = Play::holding(rare, fleet(3), &["probe"]);
    play.increase(1);
    play.to(20 * SECOND).deaf = true;
    play.to(20 * MINUTE);
    assert_eq!((play.states().len(), play.times("delete")), (4, vec![]), "{:?}", play.said);
}

/// VCD carries out each mark, and its answers are unusable.
#[test]
fn a_mark_whose_answer_is_lost_three_times_has_failed() {
    let mut play = Play::holding(lone(), fleet(1), &["mark"]);
    play.tasks = TaskState::Success;
    play.suspend();
    for _ in 0..3 {
        let document = play.documents.get_mut(&href(1)).unwrap();
        (document.busy, document.tasks) = (true, vec!["t/9".into()]);
        play.fail("mark", ErrorKind::Ambiguous);
        play.until("tasks", play.times("tasks").len() + 1);
    }
    let written = play.asked.iter().filter_map(|(_, _, request)| match request {
        Some(Request::Mark { mark, .. }) => Some(mark.clone()),
        _ => None,
    });
    assert_eq!(written.filter(|mark| *mark == Mark::Suspended).count(), 3);
    assert_eq!((play.states(), play.times("suspend")), (vec![State::Running], vec![]), "{:?}", play.said);
}

/// Once an instance runs, it no longer matters that its first create was over the quota.
#[test]
fn an_old_quota_does_not_shorten_the_pause_of_the_breaker() {
    // It runs now, or was deleted.
    for runs in [true, false] {
        an_old_quota(runs);
    }
}

fn an_old_quota(runs: bool) {
    let mut play = Play::holding(policy(), fleet(1), &["create"]);
    play.increase(1);
    play.fail("create", ErrorKind::Quota);
    if runs {
        play.until("create", 2);
        play.release("create", None);
    } else {
        let names = play.names();
        play.decrease(&names[1..]);
    }
    play.to(play.now + 10 * SECOND).increase(1);
    for _ in 0..2 {
        play.fail("create", ErrorKind::Failed);
        play.until("create", play.times("create").len() + 1);
    }
    play.fail("create", ErrorKind::Failed);
    assert_eq!(play.said("creates fail: no VM is created for 60 s"), 1);
    let creates = play.times("create").len();
    play.to(play.now + SECOND).decrease(&[name(1)]);
    assert_eq!(play.times("delete").len(), 1);
    play.to(play.now + 50 * SECOND);
    assert_eq!(play.times("create").len(), creates);
}

#[test]
fn the_delete_of_a_create_over_a_quota_is_no_reason_for_another_try() {
    let mut play = Play::holding(policy(), Vec::new(), &["create"]);
    play.tasks = TaskState::Failed(error(ErrorKind::Quota));
    play.increase(1);
    let vm = Vm { power: Power::Off, ..shown(href(1), play.created()) };
    play.documents.insert(href(1), vapp(&vm));
    play.begin("create", Some(href(1)), "t/1");
    play.until("delete", 1);
    let deleted = play.now;
    play.until("create", 2);
    assert!(play.now >= deleted + 20 * SECOND, "{deleted} {}", play.now);
}

#[test]
fn every_task_is_queried_if_one_request_cannot_contain_all() {
    let policy = Policy { max_operations: 200, max_size: 200, ..lone() };
    let mut play = Play::holding(policy, fleet(130), &["suspend", "tasks"]);
    play.suspend();
    for n in 1..=130 {
        play.begin("suspend", None, &format!("t/{n}"));
    }
    let mut asked = || {
        let next = play.times("tasks").len() + 1;
        play.until("tasks", next);
        let Some((_, Request::Tasks { tasks })) = play.held.last().cloned() else { unreachable!() };
        play.release("tasks", None);
        tasks.iter().map(|task| task.trim_start_matches("t/").parse().unwrap()).collect::<Vec<u32>>()
    };
    let turn = |from: u32| (0..128).map(|n| (from - 1 + n) % 130 + 1).collect::<Vec<u32>>();
    assert_eq!([asked(), asked(), asked()], [turn(2), turn(130), turn(128)]);
}

// Polls.

#[test]
fn booting_vms_are_polled_by_name_and_in_a_full_poll_if_they_are_many() {
    for (boots, by_name) in [(1, true), (MAX_NAMES_ASKED as u32, true), (MAX_NAMES_ASKED as u32 + 1, false)] {
        let policy = Policy { max_creates: 128, max_operations: 128, ..policy() };
        let mut play = Play::new(policy, fleet(3));
        play.port = false;
        play.increase(boots);
        play.to(30 * SECOND);
        let whole = |(at, _, request): &(u64, &str, Option<Request>)| {
            matches!(request, Some(Request::Poll { .. })).then_some(*at / SECOND)
        };
        let all: Vec<u64> = play.asked.iter().filter_map(whole).collect();
        let named: Vec<usize> = play
            .asked
            .iter()
            .filter_map(|(.., request)| match request {
                Some(Request::PollSome { names }) => Some(names.len()),
                _ => None,
            })
            .collect();
        if by_name {
            assert_eq!((all, named.len()), (vec![10, 20, 30], 12), "{boots}");
            assert!(named.iter().all(|names| *names == boots as usize));
        } else {
            assert_eq!((all.len(), named.len()), (15, 0));
        }
    }
}

#[test]
fn a_boot_is_polled_when_an_earlier_one_ended_after_its_power_on() {
    let working = |play: &mut Play| {
        play.to(60 * SECOND).increase(1);
        play.vms.last_mut().unwrap().customization = Customization::Working;
        play.asked.clear();
        play.to(90 * SECOND).times("poll")[0] - 60 * SECOND
    };
    let mut play = Play::new(lone(), Vec::new());
    play.increase(1);
    play.vms[0].customization = Customization::Working;
    play.to(19 * SECOND).vms[0].customization = Customization::Complete;
    // It took 20 s, more or less 3 s.
    assert_eq!(working(&mut play), 17 * SECOND);
    // A guest without customization says nothing, nor does one that is ready before its create task ends.
    let mut play = Play::new(policy(), Vec::new());
    play.increase(1);
    play.vms[0].customization = Customization::Unknown;
    assert_eq!(working(&mut play), 2 * SECOND);
    let mut play = Play::making(policy());
    let made = shown(href(1), play.created());
    play.vms.push(made);
    play.to(25 * SECOND).tasks = TaskState::Success;
    play.to(30 * SECOND).holds.clear();
    assert_eq!(working(&mut play), 2 * SECOND);
}

#[test]
fn a_guest_is_ready_in_time_although_rare_polls_showed_others_late() {
    let rare = Policy { reconcile_interval: secs(300), create_timeout: secs(180), ..lone() };
    let mut play = Play::new(rare, Vec::new());
    play.increase(1);
    play.vms[0].customization = Customization::Working;
    play.to(170 * SECOND).vms[0].customization = Customization::Complete;
    play.to(180 * SECOND);
    assert_eq!(play.states(), [State::Running]);
    // The next guest boots faster than expected.
    play.to(200 * SECOND).increase(1);
    play.vms[1].customization = Customization::Working;
    play.to(230 * SECOND).vms[1].customization = Customization::Complete;
    play.to(262 * SECOND);
    assert_eq!(play.states(), [State::Running, State::Running]);
}

#[test]
fn failed_polls_of_booting_vms_are_repeated_with_growing_pauses() {
    let mut play = Play::new(lone(), Vec::new());
    play.deaf = true;
    play.increase(1);
    play.to(100 * SECOND);
    let full = [10, 20, 30, 40, 56, 88];
    let mut all = [vec![2, 4, 8, 16, 32, 64, 96], full.to_vec()].concat();
    all.sort_unstable();
    assert_eq!(in_seconds(&play.times("poll")), all, "a full poll shows whether VCD is available");
    // However long the configured pause is.
    let mut play = Play::new(Policy { reconcile_interval: secs(3600), ..lone() }, Vec::new());
    play.to(3599 * SECOND).deaf = true;
    play.to(3607 * SECOND).deaf = false;
    assert_eq!(in_seconds(&play.to(8000 * SECOND).times("poll")), [3600, 3610, 7210]);
}

#[test]
fn a_poll_of_vapps_that_fails_is_repeated_later_and_plain_polls_continue() {
    let mut play = Play::new(policy(), fleet(1));
    play.deaf_to_vapps = true;
    play.to(HOUR + SECOND).increase(1);
    assert_eq!(play.times("create").len(), 0, "the last poll failed");
    play.to(HOUR + MINUTE);
    assert_eq!(play.times("create"), [HOUR + 10 * SECOND]);
    let with_vapps = |play: &Play| -> Vec<u64> {
        let asked = play.asked.iter();
        let polls = asked.filter(|(.., request)| matches!(request, Some(Request::Poll { vapps: true })));
        polls.map(|(at, ..)| at / SECOND).collect()
    };
    play.to(HOUR + 11 * MINUTE);
    assert_eq!(with_vapps(&play), [3600, 3900, 4200]);
    // During a shutdown, only this poll shows that nothing is left.
    play.shutdown();
    play.to(HOUR + 11 * MINUTE + 3 * SECOND);
    assert!(!play.group.stopped());
    // If VCD is not available, nobody waits for long.
    play.to(HOUR + 12 * MINUTE);
    assert!(play.group.left().is_empty());
    assert_eq!(with_vapps(&play)[3..], [4260, 4262, 4266, 4276, 4292]);
    play.deaf_to_vapps = false;
    play.to(HOUR + 13 * MINUTE);
    assert!(play.group.stopped());
}

#[test]
fn a_create_that_is_given_up_and_cannot_be_looked_up_is_stuck() {
    let policy = Policy { max_creates: 1, ..policy() };
    let mut play = Play::holding(policy, Vec::new(), &["create"]);
    play.increase(1);
    play.begin("create", Some(href(1)), "t/1");
    play.fails = vec![("look", ErrorKind::Unavailable)];
    let names = play.names();
    play.to(SECOND).decrease(&names);
    play.increase(1);
    let since = play.times("look")[0];
    assert_eq!((since, play.times("create").len()), (SECOND, 1), "it has the slot");
    play.until("create", 2);
    assert_eq!(play.now, 10 * MINUTE);
    let view = play.group.views(Time(play.now)).remove(0);
    assert_eq!(view.stuck, Some(Duration::from_millis(play.now - since)));
}

#[test]
fn a_failed_lookup_is_not_repeated_while_vcd_is_not_available() {
    let mut play = Play::new(policy(), fleet(1));
    (play.hidden, play.fails) = (true, vec![("look", ErrorKind::Unavailable)]);
    play.to(35 * SECOND).deaf = true;
    play.to(HOUR);
    assert_eq!(in_seconds(&play.times("look")), [30]);
    play.deaf = false;
    let polls = play.times("poll").len();
    play.to(HOUR + MINUTE);
    assert_eq!(play.times("look")[1], play.times("poll")[polls]);
}

#[test]
fn a_first_lookup_is_sent_while_vcd_is_not_available() {
    let mut play = Play::new(policy(), fleet(1));
    play.deaf = true;
    play.to(15 * SECOND);
    let names = play.names();
    play.decrease(&names);
    assert_eq!(play.times("look"), [15 * SECOND]);
}

#[test]
fn garbage_collection_leaves_creates_to_create_timeout() {
    let long = secs(2 * 3600);
    let policy = Policy { create_timeout: long, ready_timeout: long, max_instance_age: secs(60), ..policy() };
    let mut play = Play::new(policy, Vec::new());
    play.port = false;
    play.increase(1);
    play.to(HOUR + MINUTE);
    assert_eq!(play.states(), [State::Creating]);
}

#[test]
fn an_unwanted_create_whose_task_vcd_forgets_is_deleted_at_once_unless_it_was_another_task() {
    for (task, deleted) in [("t/1", vec!["v/1"]), ("t/9", vec![])] {
        let mut play = Play::making(lone());
        let names = play.names();
        play.documents.get_mut(&href(1)).unwrap().tasks = vec![task.into()];
        play.to(7 * SECOND).decrease(&names);
        // The lookup before the cancel has shown that task.
        play.documents.values_mut().for_each(|vapp| (vapp.busy, vapp.tasks) = (false, Vec::new()));
        play.tasks = TaskState::Unknown;
        play.to(12 * SECOND);
        assert_eq!((play.times("cancel").len(), play.deleted()), (1, deleted), "{task}");
    }
}

#[test]
fn a_cancelled_task_that_vcd_no_longer_shows_holds_its_vapp_for_five_minutes() {
    let mut play = Play::making(lone());
    let names = play.names();
    play.documents.get_mut(&href(1)).unwrap().tasks = vec!["t/9".into()];
    play.to(7 * SECOND).decrease(&names);
    // Its cancel is requested again and again, at last each hour.
    play.to(4 * HOUR);
    play.documents.values_mut().for_each(|vapp| (vapp.busy, vapp.tasks) = (false, Vec::new()));
    play.tasks = TaskState::Unknown;
    play.to(4 * HOUR + 6 * MINUTE);
    assert_eq!(play.deleted(), ["v/1"]);
}

#[test]
fn lookups_show_that_a_guest_is_down_that_polls_do_not_show() {
    for (power, ended) in [(Power::Off, true), (Power::Other, false), (Power::On, false)] {
        let mut play = Play::booting(|_| {});
        play.hidden = true;
        play.documents.values_mut().for_each(|vapp| vapp.power = power);
        play.to(20 * SECOND);
        assert_eq!(play.said("it is powered off: the plugin") + play.said("it is powered off; "), usize::from(ended));
    }
}

#[test]
fn a_leftover_that_cannot_be_looked_up_holds_up_no_create() {
    let mut play = Play::holding(policy(), vec![Vm { power: Power::Off, ..vm(1) }], &["look"]);
    play.fails = vec![("look", ErrorKind::Unavailable)];
    play.holds.clear();
    play.fail("look", ErrorKind::Unavailable);
    play.increase(1);
    play.until("create", 1);
    assert!(play.times("look").len() <= 6, "{:?}", in_seconds(&play.times("look")));
    assert!(play.times("create")[0] < 2 * MINUTE, "{:?}", play.times("create"));
}

#[test]
fn a_booting_guest_that_polls_showed_down_is_probed_when_they_show_it_on() {
    let mut play = Play::booting(|play| play.fails = vec![("look", ErrorKind::Unavailable)]);
    play.show(Power::Off, false).to(20 * SECOND);
    assert_eq!((play.times("look").len() > 3, play.states()), (true, vec![State::Creating]));
    play.show(Power::On, false).to(24 * SECOND);
    assert_eq!(play.states(), [State::Running]);
}

#[test]
fn an_instance_whose_resume_vcd_rejects_for_ever_ends_by_its_age() {
    let policy = Policy { max_instance_age: secs(30 * 60), suspend_resume: true, ..policy() };
    let mut play = Play::new(policy, vec![Vm { power: Power::Suspended, ..vm(1) }]);
    assert_eq!(play.states(), [State::Suspended]);
    play.fails = vec![("power_on", ErrorKind::Forbidden)];
    play.resume();
    play.before(HOUR);
    assert_eq!(play.states(), [State::Resuming]);
    play.to(HOUR);
    assert_eq!((play.states(), play.view().cause), (vec![State::Deleted], Some(Cause::Aged)));
}

#[test]
fn lookups_show_the_progress_of_a_guest_that_polls_do_not_show() {
    let mut play = Play::booting(|play| play.hidden = true);
    play.to(MINUTE);
    assert_eq!(play.states(), [State::Running]);
    let guests = play.asked.iter().filter(|(.., request)| matches!(request, Some(Request::Look { guest: true, .. })));
    assert_eq!(guests.count(), 1, "only they need more requests");
}

#[test]
fn a_poll_that_was_sent_before_a_resume_ended_does_not_count() {
    let mut play = Play::suspended();
    play.to(9 * SECOND).resume();
    play.holds = vec!["poll"];
    play.to(10 * SECOND).tasks = TaskState::Success;
    let before = Poll { vms: play.vms.clone(), ..Poll::default() };
    play.show(Power::On, false).until("poll_some", 1);
    play.release("poll_some", None);
    play.to(play.now + SECOND);
    assert_eq!((play.states(), play.health()), (vec![State::Running], Ok(())));
    play.release("poll", Some(Ok(Reply::Poll(before))));
    assert_eq!(play.health(), Ok(()));
}

#[test]
fn with_dhcp_a_poll_after_a_resume_shows_the_address_before_it_is_used() {
    let policy = Policy { dhcp: true, suspend_resume: true, ..policy() };
    let mut play = Play::new(policy, vec![Vm { power: Power::Suspended, ..vm(1) }]);
    play.tasks = TaskState::Success;
    play.to(4 * SECOND).show(Power::On, false).resume();
    play.to(20 * SECOND).deaf = true;
    play.to(3 * MINUTE);
    assert_eq!(play.states(), [State::Resuming]);
    play.deaf = false;
    play.to(4 * MINUTE);
    assert_eq!(play.states(), [State::Running]);
}

#[test]
fn a_failed_create_is_reported_as_such_if_its_vm_was_seen_before() {
    let mut play = Play::holding(policy(), Vec::new(), &["create"]);
    play.increase(1);
    play.begin("create", Some(href(1)), "t/1");
    let made = Vm { power: Power::Other, busy: true, ..shown(href(1), play.created()) };
    play.vms.push(made.clone());
    let left = Vapp { power: Power::Failed, busy: false, vms: Vec::new(), made: None, ..vapp(&made) };
    play.documents.insert(href(1), left);
    play.to(15 * SECOND).tasks = TaskState::Failed(error(ErrorKind::Failed));
    play.to(20 * SECOND);
    assert_eq!(play.view().error.as_deref(), Some("it: no"), "{:?}", play.said);
    // VCD may remove it.
    let mut play = Play::holding(policy(), Vec::new(), &["create"]);
    play.increase(1);
    play.begin("create", Some(href(1)), "t/1");
    play.to(5 * SECOND).tasks = TaskState::Failed(error(ErrorKind::Failed));
    play.to(10 * SECOND);
    assert_eq!(play.view().error.as_deref(), Some("it: no"), "{:?}", play.said);
}

#[test]
fn what_is_found_of_a_create_that_failed_is_deleted_at_once() {
    let mut play = Play::holding(policy(), Vec::new(), &["create"]);
    play.increase(1);
    let made = Vm { power: Power::Failed, ..shown(href(1), play.created()) };
    play.documents.insert(href(1), Vapp { vms: Vec::new(), made: None, ..vapp(&made) });
    play.fail("create", ErrorKind::Ambiguous);
    play.to(10 * SECOND);
    assert_eq!(play.deleted(), ["v/1"], "{:?}", play.said);
}

#[test]
fn a_running_instance_that_vcd_does_not_show_is_unhealthy() {
    let mut play = Play::new(policy(), fleet(1));
    (play.hidden, play.fails) = (true, vec![("look", ErrorKind::Unavailable)]);
    play.to(35 * SECOND);
    assert_eq!((play.times("look").len(), play.health()), (1, Ok(())));
    play.until("look", 3);
    assert_eq!(play.health(), Err("VCD does not show it".into()));
    play.hidden = false;
    play.to(play.now + 10 * SECOND);
    assert_eq!(play.health(), Ok(()));
}

#[test]
fn an_adopted_instance_without_an_address_is_kept_by_a_shutdown_that_keeps() {
    let policy = Policy { on_shutdown: OnShutdown::Keep, ..policy() };
    let mut play = Play::new(policy, vec![Vm { address: None, ..vm(1) }]);
    play.to(15 * SECOND);
    assert_eq!(play.states(), [State::Creating]);
    play.shutdown();
    play.to(30 * SECOND);
    assert_eq!((play.deleted().len(), play.group.stopped()), (0, true));
}

#[test]
fn polls_are_never_further_apart_than_configured() {
    for (interval, apart) in [(1_000, [1_000, 1_000]), (2_500, [2_000, 2_500]), (30_000, [2_000, 3_000])] {
        let policy = Policy { reconcile_interval: Duration::from_millis(interval), ..policy() };
        let mut play = Play::new(policy, Vec::new());
        play.port = false;
        play.increase(1);
        play.to(200 * SECOND);
        let polls = play.times("poll");
        let gap = |n: usize| polls[n + 1] - polls[n];
        assert_eq!([gap(0), gap(polls.len() - 2)], apart, "{interval}");
    }
    // If nothing boots, they are not closer either.
    let mut play = Play::new(Policy { reconcile_interval: secs(3), ..policy() }, Vec::new());
    assert_eq!(play.to(10 * SECOND).times("poll"), [3, 6, 9].map(|s| s * SECOND));
}

#[test]
fn garbage_collection_runs_hourly_and_deletes_old_instances() {
    let asleep = Vm { power: Power::Suspended, ..vm(2) };
    for (age, longest, gone) in [
        (0, 0, [None, None]),
        (1800, 0, [Some(1), None]),
        (1801, 0, [Some(2), None]),
        (0, 3600, [None, Some(1)]),
        (0, 3601, [None, Some(2)]),
    ] {
        let (max_instance_age, suspended_max_age) = (secs(age), secs(longest));
        let policy = Policy { max_instance_age, suspended_max_age, ..policy() };
        let mut play = Play::new(policy, vec![Vm { created: Some(START), ..vm(1) }, asleep.clone()]);
        for hour in [1, 2, 3] {
            let states = |play: &Play| {
                let states: Vec<(Name, State)> = play.group.update().map(|(n, s)| (n.clone(), s)).collect();
                [1, 2].map(|n| states.iter().any(|(name_, s)| *name_ == name(n) && *s != State::Deleted))
            };
            play.before(hour * HOUR);
            let gone_by = |by: u64| gone.map(|gone: Option<u64>| gone.is_none_or(|gone| gone > by));
            assert_eq!(states(&play), gone_by(hour - 1), "{age} {longest} {hour}");
            play.to(hour * HOUR);
            assert_eq!(states(&play), gone_by(hour), "{age} {longest} {hour}");
        }
        let full = |(at, _, request): &(u64, &str, Option<Request>)| {
            matches!(request, Some(Request::Poll { vapps: true })).then_some(*at)
        };
        assert_eq!(play.asked.iter().filter_map(full).collect::<Vec<u64>>(), [HOUR, 2 * HOUR, 3 * HOUR]);
    }
    // An instance that is to be resumed is not deleted.
    let policy = Policy { suspended_max_age: secs(60), create_timeout: secs(7200), ..policy() };
    let mut play = Play::holding(policy.clone(), vec![asleep], &["power_on"]);
    play.resume();
    assert_eq!(play.to(HOUR + MINUTE).states(), [State::Resuming]);
    // Nor one that is not suspended yet.
    let mut play = Play::holding(policy, fleet(1), &["suspend"]);
    play.suspend();
    assert_eq!(play.to(HOUR + MINUTE).states(), [State::Suspending]);
}

// The metadata entry.

#[test]
fn the_metadata_entry_is_written_half_a_minute_after_the_instance_runs() {
    let running = || {
        let mut play = Play::new(Policy { on_shutdown: OnShutdown::Keep, ..lone() }, Vec::new());
        play.increase(1);
        assert_eq!(play.to(2 * SECOND).states(), [State::Running]);
        play
    };
    let mut play = running();
    play.first("label", 32 * SECOND);
    assert_eq!(play.to(HOUR).times("label").len(), 1);
    // Not before a suspend, and not during shutdown.
    let mut play = running();
    play.suspend();
    play.documents.values_mut().for_each(|vapp| vapp.power = Power::Suspended);
    play.tasks = TaskState::Success;
    assert_eq!(play.to(HOUR).states(), [State::Suspended]);
    assert_eq!(play.times("label"), [] as [u64; 0]);
    let mut play = running();
    play.shutdown();
    play.to(HOUR);
    assert_eq!((play.states(), play.times("label")), (vec![State::Running], vec![]));
}

#[test]
fn metadata_entries_are_written_if_configured_or_after_the_go_plugin() {
    // vApps with only the metadata entry, as the Go plugin leaves them.
    let theirs = |n: u32| Vm { description: "".into(), ..vm(n) };
    for (labels, found, written) in [
        (Labels::Found, vec![], 0),
        (Labels::Found, vec![vm(7)], 0),
        // Its document shows the tag of this plugin too.
        (Labels::Found, vec![Vm { busy: true, ..vm(7) }], 0),
        (Labels::Found, vec![theirs(7)], 1),
        (Labels::Found, vec![theirs(7), theirs(8)], 1),
        (Labels::None, vec![theirs(7)], 0),
        (Labels::All, vec![], 1),
    ] {
        let first = Poll {
            now: Some(START),
            vapps: Some(found.iter().map(|vm| Vapp { labelled: true, description: None, ..vapp(vm) }).collect()),
            vms: found.clone(),
            ..Poll::default()
        };
        let mut play = Play::new(Policy { labels, ..policy() }, Vec::new());
        let bare = |vm: &Vm| Vapp { description: Some(vm.description.to_string()), ..vapp(vm) };
        play.documents = found.iter().map(|vm| (vm.vapp.clone(), bare(vm))).collect();
        play.vms = found;
        play.group = Group::new(Policy { labels, ..policy() }, 1, Time(0), &first);
        play.serve();
        play.increase(1);
        play.to(10 * MINUTE);
        assert_eq!((play.times("label").len(), play.strays().len()), (written, 0), "{labels:?} {:?}", play.said);
        assert!(play.states().iter().all(|state| *state == State::Running), "{labels:?}");
    }
}

#[test]
fn metadata_entries_are_written_together_if_nothing_else_waits() {
    let mut play = Play::holding(policy(), Vec::new(), &["label"]);
    play.increase(2);
    assert_eq!(play.to(40 * SECOND).times("label").len(), 2);
}

#[test]
fn metadata_entries_are_written_one_by_one_while_a_delete_waits() {
    let policy = Policy { max_creates: 4, max_operations: 4, ..policy() };
    let mut play = Play::holding(policy, vec![vm(1), vm(2)], &["label", "delete"]);
    play.increase(3);
    let names = [name(1), name(2)];
    play.to(20 * SECOND);
    play.holds.retain(|held| *held != "label");
    play.holds.push("label");
    play.decrease(&names);
    play.to(21 * SECOND);
    // Both deletes fail, one of them at the operation limit: the next changes wait for the end of the pause.
    play.fail("delete", ErrorKind::Limit);
    play.fail("delete", ErrorKind::Unavailable);
    play.to(33 * SECOND);
    play.group.tick(Time(play.now));
    play.serve();
    assert_eq!(play.times("label").len(), 1, "{:?}", play.asked);
    play.release("label", None);
    assert_eq!(play.times("label").len(), 2);
}

#[test]
fn a_vapp_without_its_description_has_another_owner_in_spite_of_the_metadata_entry() {
    for written in [true, false] {
        let mut play = Play::holding(policy(), Vec::new(), &["label"]);
        play.increase(1);
        play.to(32 * SECOND);
        let answer = if written { Ok(Reply::Done) } else { Err(error(ErrorKind::Forbidden)) };
        play.release("label", Some(answer));
        play.documents.values_mut().for_each(|vapp| vapp.description = None);
        play.hidden = true;
        play.until("look", play.times("look").len() + 1);
        assert_eq!((play.states(), play.said("no longer manages it")), (vec![State::Deleted], 1), "{written}");
    }
}

// Deletes.

#[test]
fn a_delete_does_not_wait_for_other_steps() {
    // The next attempt.
    let mut play = Play::holding(lone(), Vec::new(), &["create"]);
    play.increase(1);
    play.fail("create", ErrorKind::Quota);
    let names = play.names();
    play.to(SECOND).decrease(&names);
    assert_eq!(play.states(), [State::Deleted]);
    // The guest boots.
    let mut play = Play::new(lone(), Vec::new());
    play.port = false;
    play.increase(1);
    let names = play.names();
    play.to(2_500).decrease(&names);
    assert_eq!((play.times("delete"), play.states()), (vec![2_500], vec![State::Deleted]));
    // A lookup of its hardware is on the wire.
    let mut play = Play::holding(lone(), Vec::new(), &["look"]);
    play.increase(1);
    let names = play.names();
    play.to(2_500).decrease(&names);
    assert_eq!((play.times("delete"), play.states()), (vec![], vec![State::Deleting]));
    play.release("look", None);
    assert_eq!((play.times("delete"), play.states()), (vec![2_500], vec![State::Deleted]));
}

#[test]
fn an_instance_is_stuck_until_vcd_is_no_longer_busy_with_it_or_a_delete_works() {
    for (kind, stuck) in [(ErrorKind::Busy, false), (ErrorKind::Unavailable, true)] {
        let mut play = Play::holding(lone(), fleet(1), &["delete"]);
        let names = play.names();
        play.decrease(&names);
        play.fail("delete", kind);
        assert!(play.view().stuck.is_some() && play.view().error.is_some());
        play.until("delete", 2);
        play.begin("delete", None, "t/1");
        assert_eq!(play.view().stuck.is_some(), stuck, "{kind:?}");
    }
}

#[test]
fn a_vm_that_is_to_be_deleted_is_not_called_unhealthy() {
    let mut play = Play::new(lone(), fleet(1));
    let names = play.names();
    play.suspend();
    play.decrease(&names);
    // Its cancelled task hangs, and a lookup shows that it has ended somehow.
    play.documents.get_mut(&href(1)).unwrap().power = Power::Off;
    play.to(3 * MINUTE);
    assert_eq!((play.deleted(), play.said("unhealthy")), (vec!["v/1"], 0), "{:?}", play.said);
}

#[test]
fn a_delete_with_an_unknown_outcome_keeps_its_slot_only_until_a_lookup_shows_it() {
    let mut play = Play::holding(Policy { max_operations: 1, ..policy() }, fleet(1), &["delete"]);
    play.decrease(&[name(1)]);
    play.to(SECOND).fail("delete", ErrorKind::Ambiguous);
    play.increase(1);
    assert_eq!(play.to(10 * SECOND).times("create"), [2 * SECOND], "its next try is due later");
}

#[test]
fn a_delete_that_has_ended_and_left_the_vapp_is_repeated_after_a_pause() {
    for hangs in [false, true] {
        let mut play = Play::holding(lone(), fleet(1), &["delete"]);
        let names = play.names();
        play.to(SECOND).decrease(&names);
        play.begin("delete", None, "t/1");
        if !hangs {
            play.tasks = TaskState::Success;
        }
        play.until("delete", 2);
        let looked = *play.times("look").iter().rev().nth(1).unwrap();
        assert!((7_500..=12_500).contains(&(play.now - looked)), "{hangs} {:?}", play.asked);
    }
}

#[test]
fn after_vcd_has_forbidden_one_forced_delete_no_other_is_forced() {
    for sent in 1..=2 {
        let mut play = Play::holding(lone(), fleet(3), &["delete", "undeploy"]);
        let names = play.names();
        play.decrease(&names[..sent]);
        play.to(SECOND);
        (0..sent).for_each(|_| play.fail("delete", ErrorKind::Forbidden));
        play.decrease(&names);
        play.to(2 * SECOND);
        assert_eq!(play.counts(["delete", "undeploy"]), [sent, 3]);
    }
}

/// The reason may have concerned one vApp, or the role.
#[test]
fn force_is_tried_again_an_hour_after_it_was_rejected() {
    for (after, forced) in [(59 * MINUTE, 1), (61 * MINUTE, 2)] {
        let mut play = Play::holding(lone(), fleet(2), &["delete", "undeploy"]);
        let names = play.names();
        play.decrease(&names[..1]);
        play.fail("delete", ErrorKind::Forbidden);
        play.to(after).decrease(&names[1..]);
        play.to(after + SECOND);
        assert_eq!(play.times("delete").len(), forced);
    }
}

// Suspend and resume.

#[test]
fn a_suspend_or_resume_may_be_repeated_and_is_rejected_in_other_phases() {
    let asked = |play: &mut Play, suspend: bool| {
        let (now, names) = (Time(play.now), play.names());
        let outcome = if suspend { play.group.suspend(now, &names) } else { play.group.resume(now, &names) };
        play.serve();
        assert_eq!(outcome.succeeded.len() + outcome.refused.len(), 1);
        outcome.refused.first().map(|text| text.trim_start_matches(&format!("instance {} is ", names[0])).to_string())
    };
    let mut play = Play::holding(lone(), Vec::new(), &["create"]);
    play.increase(1);
    assert_eq!(asked(&mut play, true).as_deref(), Some("Creating and cannot be suspended"));
    assert_eq!(asked(&mut play, false).as_deref(), Some("Creating and cannot be resumed"));
    play.release("create", None);
    play.to(40 * SECOND);
    assert_eq!((asked(&mut play, false), play.states()), (None, vec![State::Running]), "it runs already");
    for _ in 0..2 {
        assert_eq!((asked(&mut play, true), play.states()), (None, vec![State::Suspending]));
    }
    play.tasks = TaskState::Success;
    play.to(50 * SECOND);
    assert_eq!((asked(&mut play, true), play.states()), (None, vec![State::Suspended]), "it is suspended already");
    play.port = false;
    for _ in 0..2 {
        assert_eq!((asked(&mut play, false), play.states()), (None, vec![State::Resuming]));
    }
    play.to(60 * SECOND);
    assert_eq!((asked(&mut play, false), play.states()), (None, vec![State::Resuming]), "its guest is not ready");
    assert_eq!(asked(&mut play, true).as_deref(), Some("Resuming and cannot be suspended"));
    assert_eq!(play.counts(["suspend", "power_on"]), [1, 1], "each was requested once");
    play.holds = vec!["delete"];
    let names = play.names();
    play.decrease(&names);
    assert_eq!(asked(&mut play, true).as_deref(), Some("Deleting and cannot be suspended"));
    assert_eq!(asked(&mut play, false).as_deref(), Some("Deleting and cannot be resumed"));
    let unknown = play.group.suspend(Time(play.now), &[name(9)]).refused;
    assert_eq!(unknown, ["instance ci-00000009 is not known"]);
}

#[test]
fn a_vm_is_reported_as_suspended_when_its_mark_is_written() {
    let mut play = Play::running();
    // A person has suspended it: VCD has no mark.
    play.vms[0].power = Power::Suspended;
    let document = Vapp { mark: Mark::Running, ..vapp(&play.vms[0]) };
    play.documents.insert(href(1), document);
    play.holds.push("mark");
    play.suspend();
    play.to(60 * SECOND);
    assert_eq!(play.states(), [State::Suspending], "a later process would delete it");
    play.tasks = TaskState::Success;
    play.release("mark", None);
    play.to(90 * SECOND);
    assert_eq!((play.states(), play.times("suspend").len()), (vec![State::Suspended], 0));
}
