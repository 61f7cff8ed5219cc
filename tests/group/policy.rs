//! What the host and people see of the group's policy, with a calm VCD in virtual time: states and phases, health, age,
//! rejected calls, and the times that users know.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use crate::world::World;
use crate::world::plan::{Act, Admin, Plan, Step, Tuning};
use fleeting_plugin_vcd::cloud::{Customization, Poll, Power, Request, Vm};
use fleeting_plugin_vcd::group::*;
use std::time::Duration;
use vcd_sim::model;

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// A world without faults, controlled by the test. Steps happen a second later than the plan says.
struct Calm {
    world: World,
}

impl Calm {
    fn new(policy: Tuning, steps: &[(u64, Act)]) -> Calm {
        let steps = steps.iter().map(|&(at, act)| Step { at, act, to: 0 }).collect();
        Calm { world: World::new(&Plan { seed: 7, policy, steps }) }
    }

    fn at(&mut self, ms: u64) -> &mut Calm {
        self.world.play_until(ms).unwrap();
        self
    }

    fn group(&mut self) -> &mut Group {
        self.world.plugins[0].group.as_mut().unwrap()
    }

    fn names(&mut self) -> Vec<Name> {
        self.group().update().map(|(name, _)| name.clone()).collect()
    }

    /// States and phases of all instances that the host knows, sorted by name.
    fn seen(&mut self) -> Vec<(State, Phase)> {
        let now = self.world.time(0);
        let group = self.group();
        let views = group.views(now);
        let phase = |name: &Name| views.iter().find(|view| view.name == *name).unwrap().phase;
        group.update().map(|(name, state)| (state, phase(name))).collect()
    }

    /// Calls Heartbeat like the host.
    fn increase(&mut self, n: u32) -> u32 {
        let (now, plugin) = (self.world.time(0), &mut self.world.plugins[0]);
        let group = plugin.group.as_mut().unwrap();
        let before = group.update().map(|(name, _)| name.clone()).collect();
        let accepted = group.increase(now, n);
        plugin.audit.increased(accepted, &before, group, &self.world.model);
        accepted
    }

    fn heartbeat(&mut self, name: &str) -> Result<(), String> {
        let now = self.world.time(0);
        self.group().heartbeat(now, name)
    }
}

#[test]
fn states_and_phases_of_a_life() {
    let steps = [
        (0, Act::Increase(1)),
        (2 * MINUTE, Act::Suspend(0)),
        (3 * MINUTE, Act::Resume(0)),
        (5 * MINUTE, Act::Decrease(0)),
    ];
    let mut calm = Calm::new(Tuning::default(), &steps);
    for (at, state, phase) in [
        (SECOND + 1, State::Creating, Phase::Creating),
        (40 * SECOND, State::Creating, Phase::Creating),
        (2 * MINUTE, State::Running, Phase::Running),
        (2 * MINUTE + SECOND + 1, State::Suspending, Phase::Suspending),
        (2 * MINUTE + 10 * SECOND, State::Suspending, Phase::Suspending),
        (3 * MINUTE, State::Suspended, Phase::Suspended),
        (3 * MINUTE + SECOND + 1, State::Resuming, Phase::Resuming),
        (3 * MINUTE + 10 * SECOND, State::Resuming, Phase::Resuming),
        (5 * MINUTE, State::Running, Phase::Running),
        (5 * MINUTE + SECOND, State::Deleting, Phase::Deleting),
        (5 * MINUTE + 5 * SECOND, State::Deleting, Phase::Deleting),
        (6 * MINUTE, State::Deleted, Phase::Deleted),
        (10 * MINUTE, State::Deleted, Phase::Deleted),
    ] {
        assert_eq!(calm.at(at).seen(), [(state, phase)], "at {at} ms");
    }
    assert_eq!(calm.at(11 * MINUTE).seen(), [], "forgotten after five minutes");
}

#[test]
fn an_instance_that_waits_for_a_slot_is_pending() {
    let policy = Tuning { max_creates: 1, ..Tuning::default() };
    let mut calm = Calm::new(policy, &[(0, Act::Increase(2)), (2 * SECOND, Act::DecreaseAll)]);
    let phases = |seen: Vec<(State, Phase)>| seen.into_iter().map(|(_, phase)| phase).collect::<Vec<_>>();
    let mut before = phases(calm.at(SECOND + 1).seen());
    before.sort();
    assert_eq!(before, [Phase::PendingCreate, Phase::Creating]);
    let states: Vec<State> = calm.seen().into_iter().map(|(state, _)| state).collect();
    assert_eq!(states, [State::Creating; 2], "the host sees both");
    // The waiting instance is deleted immediately. The create of the other one is cancelled first.
    let mut after = phases(calm.at(3 * SECOND + 1).seen());
    after.sort();
    assert_eq!(after, [Phase::PendingDelete, Phase::Deleted]);
}

#[test]
fn increase_accepts_at_most_max_size() {
    let mut calm = Calm::new(Tuning { max_size: 3, ..Tuning::default() }, &[]);
    calm.at(SECOND);
    let now = calm.world.time(0);
    assert_eq!([calm.increase(2), calm.increase(2)], [2, 1]);
    assert_eq!(calm.increase(1), 0);
    let one = calm.names().remove(0);
    calm.world.plugins[0].audit.asked(&one);
    assert_eq!(calm.group().decrease(now, std::slice::from_ref(&one)), [one]);
    calm.at(2 * MINUTE);
    assert_eq!(calm.increase(5), 1, "a deleted instance makes room");
    let now = calm.world.time(0);
    calm.group().shutdown(now);
    let plugin = &mut calm.world.plugins[0];
    plugin.audit.shutdown(false, plugin.group.as_ref().unwrap());
    assert_eq!(calm.group().increase(now, 1), 0, "no instance is created during shutdown");
    assert!(!calm.group().stopped());
    assert_eq!(calm.group().left().len(), 3, "three are not deleted yet");
    calm.at(10 * MINUTE);
    assert!(calm.group().stopped());
    assert!(calm.group().left().is_empty());
}

#[test]
fn only_running_instances_can_be_reached() {
    let steps = [(0, Act::Increase(1)), (2 * MINUTE, Act::Suspend(0))];
    let mut calm = Calm::new(Tuning::default(), &steps);
    let name = calm.at(SECOND + 1).names().remove(0);
    let refused = calm.group().reach(&name).unwrap_err();
    assert_eq!(refused, format!("instance {name} is Creating and has no address to log in to"));
    let reach = calm.at(2 * MINUTE).group().reach(&name).unwrap();
    assert!(reach.address.to_string().starts_with("127.0.10."), "{reach:?}");
    assert_eq!(&*reach.guest_os, "Ubuntu Linux (64-bit)");
    assert!(calm.at(3 * MINUTE).group().reach(&name).is_err(), "suspended");
    assert_eq!(calm.group().reach("ci-zzzzzzzz").unwrap_err(), "instance ci-zzzzzzzz is not known");
}

#[test]
fn an_old_instance_is_unhealthy_and_is_deleted_at_twice_the_age() {
    let policy = Tuning { max_age: 100, ..Tuning::default() };
    let mut calm = Calm::new(policy, &[(0, Act::Increase(1))]);
    let name = calm.at(99 * MINUTE).names().remove(0);
    assert_eq!(calm.heartbeat(&name), Ok(()));
    let old = calm.at(100 * MINUTE + 2 * SECOND).heartbeat(&name).unwrap_err();
    assert_eq!(old, format!("instance {name} is older than max_instance_age (6000 s)"));
    // Garbage collection runs every hour.
    assert_eq!(calm.at(3 * HOUR + 5 * MINUTE).seen(), [(State::Running, Phase::Running)]);
    assert_eq!(calm.at(4 * HOUR + 5 * MINUTE).seen(), [(State::Deleted, Phase::Deleted)]);

    let age = |minutes: u64| Duration::from_secs(minutes * 60);
    assert_eq!([199, 200, 201].map(|minutes| calm.group().too_old(age(minutes))), [false, true, true]);
    let mut ageless = Calm::new(Tuning::default(), &[(0, Act::Increase(1))]);
    let name = ageless.at(30 * HOUR).names().remove(0);
    assert_eq!(ageless.heartbeat(&name), Ok(()));
    assert!(!ageless.group().too_old(age(1_000_000)));
}

#[test]
fn suspended_instances_have_their_own_maximum_age() {
    // In this world, the maximum age of suspended instances is three times that of others.
    let policy = Tuning { max_age: 60, ..Tuning::default() };
    let mut calm = Calm::new(policy, &[(0, Act::Increase(2)), (2 * MINUTE, Act::Suspend(0))]);
    let states = |calm: &mut Calm| {
        let mut states: Vec<State> = calm.seen().into_iter().map(|(state, _)| state).collect();
        states.sort_by_key(|state| *state as u8);
        states
    };
    assert_eq!(states(calm.at(3 * HOUR + 7 * MINUTE)), [State::Suspended], "the running one is deleted and forgotten");
    assert_eq!(states(calm.at(4 * HOUR + MINUTE)), [State::Deleted]);
}

#[test]
fn the_age_of_an_instance_counts_from_its_last_resume() {
    let policy = Tuning { max_age: 60, ..Tuning::default() };
    let resumed = 2 * HOUR + 30 * MINUTE;
    let mut calm =
        Calm::new(policy, &[(0, Act::Increase(1)), (2 * MINUTE, Act::Suspend(0)), (resumed, Act::Resume(0))]);
    let name = calm.at(resumed + 59 * MINUTE).names().remove(0);
    assert_eq!((calm.seen(), calm.heartbeat(&name)), (vec![(State::Running, Phase::Running)], Ok(())));
    let old = calm.at(resumed + 61 * MINUTE).heartbeat(&name).unwrap_err();
    assert!(old.contains("older than max_instance_age"), "{old}");
}

#[test]
fn an_instance_stopped_outside_the_plugin_is_unhealthy_and_then_deleted() {
    let steps = [(0, Act::Increase(2)), (2 * MINUTE, Act::Admin(Admin::PowerOff, 0)), (8 * MINUTE, Act::Increase(1))];
    let mut calm = Calm::new(Tuning::default(), &steps);
    let names = calm.at(2 * MINUTE).names();
    assert!(names.iter().all(|name| calm.heartbeat(name).is_ok()));
    calm.at(3 * MINUTE);
    let ill: Vec<Name> = names.iter().filter(|name| calm.heartbeat(name).is_err()).cloned().collect();
    assert_eq!(ill.len(), 1);
    assert_eq!(calm.heartbeat(&ill[0]).unwrap_err(), format!("instance {}: it is powered off", ill[0]));
    assert_eq!(calm.heartbeat("ci-zzzzzzzz"), Ok(()), "an unknown instance is no error");
    let running = |calm: &mut Calm| calm.seen().iter().filter(|(state, _)| *state == State::Running).count();
    assert_eq!(running(calm.at(12 * MINUTE)), 3, "ten minutes of grace");
    assert_eq!(running(calm.at(13 * MINUTE + 10 * SECOND)), 2);
    let gone = calm.heartbeat(&ill[0]).unwrap_err();
    assert!(gone.starts_with(&format!("instance {}: Delet", ill[0])), "{gone}");
}

#[test]
fn an_instance_that_is_powered_on_again_is_healthy() {
    let steps = [(0, Act::Increase(1)), (2 * MINUTE, Act::Admin(Admin::PowerOff, 0))];
    let mut calm = Calm::new(Tuning::default(), &steps);
    let name = calm.at(3 * MINUTE).names().remove(0);
    assert!(calm.heartbeat(&name).is_err());
    let id = *calm.world.model.vapps.keys().next().unwrap();
    calm.world.model.admin_power(id, model::Power::On);
    assert_eq!(calm.at(4 * MINUTE).heartbeat(&name), Ok(()));
    assert_eq!(calm.at(30 * MINUTE).seen(), [(State::Running, Phase::Running)], "the grace period restarted");
}

/// An owned VM as the first poll of a process shows it.
fn found(name: &str, description: &str) -> Vm {
    Vm {
        vapp: format!("v/{name}").into(),
        vapp_name: name.into(),
        vm: format!("m/{name}").into(),
        description: description.into(),
        power: Power::On,
        busy: false,
        address: Some("10.0.0.1".parse().unwrap()),
        customization: Customization::Complete,
        guest_os: "Ubuntu Linux (64-bit)".into(),
        created: Some(0),
        cpus: 1,
        memory_mb: 1,
        undeploy_at: None,
        delete_at: None,
    }
}

fn policy() -> Policy {
    Policy { manager: "m".into(), group: "g".into(), prefix: "ci".into(), ..Policy::default() }
}

#[test]
fn init_waits_for_lookups_of_possibly_owned_vapps() {
    let ours = found("ci-00000001", "fleeting-plugin-vcd/1 manager=m group=g id=ci-00000001");
    let poll = |vms: &[Vm]| Poll { now: Some(1), vms: vms.to_vec(), ..Poll::default() };
    let group = Group::new(policy(), 1, Time(0), &poll(std::slice::from_ref(&ours)));
    assert!(group.knows_its_own(), "the record shows everything");
    assert_eq!(group.update().count(), 1);

    let unsure = found("ci-00000002", "");
    let mut group = Group::new(policy(), 1, Time(0), &poll(&[ours, unsure]));
    assert!(!group.knows_its_own());
    let mut looked = false;
    while let Some(command) = group.next_command() {
        if let Command::Ask { ticket, request: Request::Look { .. } } = command {
            looked = true;
            group.answer(Time(1), ticket, Ok(fleeting_plugin_vcd::cloud::Reply::Vapps(Vec::new())));
        }
    }
    assert!(looked && group.knows_its_own());
    assert_eq!(group.update().count(), 1, "the missing vApp is not reported");
}

#[test]
fn an_instance_whose_lease_ends_within_an_hour_is_unhealthy() {
    let now = 1_000_000_000_000;
    let mut vm = found("ci-00000001", "fleeting-plugin-vcd/1 manager=m group=g id=ci-00000001");
    let minutes = |minutes: u64| Some(now + minutes * MINUTE);
    for (age, undeploy_at, delete_at, healthy) in [
        (600, None, None, true),
        (600, minutes(61), None, true),
        (600, minutes(60), None, false),
        (600, None, minutes(59), false),
        (600, minutes(61), minutes(30), false),
        (600, minutes(0), minutes(500), false),
        // A quarter of a short lease.
        (0, minutes(60), None, true),
        (44, minutes(16), None, true),
        (45, minutes(15), None, false),
    ] {
        (vm.undeploy_at, vm.delete_at, vm.created) = (undeploy_at, delete_at, Some(now - age * MINUTE));
        let poll = Poll { now: Some(now), vms: vec![vm.clone()], ..Poll::default() };
        let mut group = Group::new(Policy { max_instance_age: Duration::ZERO, ..policy() }, 1, Time(0), &poll);
        group.tick(Time(10_000));
        while let Some(command) = group.next_command() {
            if let Command::Ask { ticket, request: Request::Poll { .. } } = command {
                group.answer(Time(10_000), ticket, Ok(fleeting_plugin_vcd::cloud::Reply::Poll(poll.clone())));
            }
        }
        let heartbeat = group.heartbeat(Time(10_000), "ci-00000001");
        assert_eq!(heartbeat.is_ok(), healthy, "{undeploy_at:?} {delete_at:?}: {heartbeat:?}");
    }
}

#[test]
fn states_have_the_names_of_fleeting() {
    let names = ["creating", "running", "suspending", "suspended", "resuming", "deleting", "deleted", "timeout"];
    assert_eq!(State::ALL.map(State::name), names);
}

#[test]
fn default_timeouts_have_the_documented_values() {
    let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
    assert_eq!(PRUNE_AFTER, minutes(5));
    assert_eq!(UNHEALTHY_GRACE, minutes(10));
    assert_eq!(GC_INTERVAL, minutes(60));
    assert_eq!(LEASE_MARGIN, minutes(60));
    assert_eq!(STUCK_ALERT, minutes(60));
    let policy = Policy::default();
    assert_eq!((policy.create_timeout, policy.ready_timeout), (minutes(20), minutes(10)));
    assert_eq!((policy.startup_cleanup_timeout, policy.max_instance_age), (minutes(30), minutes(24 * 60)));
    assert_eq!((policy.suspended_max_age, policy.reconcile_interval), (minutes(72 * 60), Duration::from_secs(10)));
    assert_eq!((policy.max_size, policy.max_creates, policy.max_deletes, policy.max_operations), (128, 3, 5, 4));
}
