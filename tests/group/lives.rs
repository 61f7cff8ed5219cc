//! The whole policy of the group in virtual time: thousands of lives of a fleet, each with its own mix of faults.

#![allow(clippy::panic)]

use crate::world::plan::{Act, Admin, Fault, Plan, Step, Stuck, Suspends, Tuning, plan, shortest};
use crate::world::{CrashAt, World};
use fleeting_plugin_vcd::group::{Name, State};
use std::collections::BTreeMap;
use vcd_sim::model::{HardwareInCreate, Operation, VappId};

/// Runs one seed. A failure is reduced to the shortest plan that still fails.
fn run(seed: u64) {
    let whole = plan(seed);
    if let Err(violation) = World::new(&whole).run() {
        let short = shortest(&whole, &violation);
        let replay = format!("cargo run --release --example sim -- --seed {seed} --trace --shrink");
        panic!("seed {seed}: {violation}\n  shortest plan with this failure: {short}\n  replay: {replay}");
    }
}

#[test]
fn thousands_of_seeds() {
    let seeds = std::env::var("WORLD_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(2000);
    let next = std::sync::atomic::AtomicU64::new(0);
    let work = || {
        loop {
            let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if seed >= seeds {
                break;
            }
            run(seed);
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
}

/// The number of covered crash points when this was written. A smaller number means that the scenarios have shrunk.
const POINTS: u64 = 12_000;

/// One run of the scenario, with or without a crash.
fn scenario(what: &str, plan: &Plan, crash_at: Option<(CrashAt, u64)>) -> crate::world::Score {
    let mut world = World::new(plan);
    world.crash_at = crash_at;
    match world.run() {
        Ok(score) => score,
        Err(violation) => panic!("{what}, {crash_at:?}: {violation}"),
    }
}

/// The process dies before and after each request and each answer of each scenario. A new one starts at once (then requests
/// on the wire may reach VCD after its first poll) or later. The audit checks that nothing is lost, duplicated or left, and
/// that running instances keep running.
#[test]
fn death_at_every_point() {
    let mut covered = 0;
    for (what, plan) in scenarios() {
        let requests = scenario(&what, &plan, None).requests;
        let mut points = 0;
        for number in 1..=requests {
            let kinds = [CrashAt::BeforeRequest, CrashAt::AfterRequest, CrashAt::BeforeAnswer, CrashAt::AfterAnswer];
            for kind in kinds {
                for down in [1, 5_000] {
                    points += scenario(&what, &plan, Some((kind(number), down))).crashes;
                }
            }
        }
        println!("{what}: {requests} requests, {points} crash points");
        covered += points;
    }
    println!("{covered} crash points covered");
    assert!(covered >= POINTS, "only {covered} crash points were covered");
}

fn scenarios() -> Vec<(String, Plan)> {
    let mut all = Vec::new();
    let mut add_with = |what: String, policy: Tuning, acts: &[(u64, Act)]| {
        let steps = acts.iter().map(|&(seconds, act)| Step { at: seconds * 1000, to: 0, act }).collect();
        all.push((what, Plan { seed: 1, policy, steps }));
    };
    for (hardware, tpm) in [(HardwareInCreate::Refuse, true), (HardwareInCreate::Ignore, false)] {
        let policy = Tuning { hardware, tpm, ..Tuning::default() };
        add_with(format!("create in steps: {hardware:?}"), policy, &[(0, Act::Increase(1))]);
    }
    let policy = Tuning { no_force: true, ..Tuning::default() };
    add_with("delete without force".into(), policy, &[(0, Act::Increase(1)), (150, Act::Decrease(0))]);
    for keep in [false, true] {
        let policy = Tuning { standby: 1, suspends: Suspends::Never, keep, ..Tuning::default() };
        add_with(format!("from standby, keep: {keep}"), policy, &[(150, Act::Increase(1))]);
    }
    let mut add =
        |what: String, keep: bool, acts: &[(u64, Act)]| add_with(what, Tuning { keep, ..Tuning::default() }, acts);
    for n in [1, 3] {
        add(format!("create {n}"), false, &[(0, Act::Increase(n))]);
    }
    let nap = [(0, Act::Increase(2)), (150, Act::Suspend(0)), (200, Act::Resume(0))];
    for keep in [false, true] {
        add(format!("suspend and resume, keep: {keep}"), keep, &nap);
        add(format!("suspend, keep: {keep}"), keep, &nap[..2]);
    }
    for at in [150, 155, 170] {
        let acts = [(0, Act::Increase(1)), (150, Act::Suspend(0)), (at, Act::Decrease(0))];
        add(format!("delete {} s after a suspend", at - 150), false, &acts);
    }
    let failing = Act::Fault(Fault::TaskFails, 30_000, 100);
    add("create with a failing task".into(), false, &[(0, failing), (1, Act::Increase(1))]);
    add("delete of a running instance".into(), false, &[(0, Act::Increase(2)), (150, Act::Decrease(0))]);
    // While its request is on the wire, while VCD creates it, while its guest starts.
    for at in [0, 10, 40, 70] {
        add(
            format!("delete {at} s after the start of the create"),
            false,
            &[(0, Act::Increase(1)), (at, Act::Decrease(0))],
        );
    }
    let two_and_a_half = [(0, Act::Increase(2)), (150, Act::Increase(1))];
    for at in [160, 210] {
        let mut acts = two_and_a_half.to_vec();
        acts.push((at, Act::Crash(2_000)));
        add(format!("adoption of two and of an incomplete one, {at} s"), false, &acts);
        for keep in [false, true] {
            let mut acts = two_and_a_half.to_vec();
            acts.push((at, Act::Restart(2_000)));
            add(format!("shutdown at {at} s, keep: {keep}"), keep, &acts);
        }
    }
    all
}

// One fault each, and its consequences.

pub const SECOND: u64 = 1_000;
pub const MINUTE: u64 = 60 * SECOND;

/// A world with these events, at seconds.
pub fn world(policy: Tuning, acts: &[(u64, Act)]) -> World {
    let steps = acts.iter().map(|&(seconds, act)| Step { at: seconds * SECOND, to: 0, act }).collect();
    World::new(&Plan { seed: 1, policy, steps })
}

pub fn play(world: &mut World, until: u64) {
    if let Err(violation) = world.play_until(until) {
        panic!("at {} ms: {violation}", world.now);
    }
}

pub fn states(world: &World) -> BTreeMap<Name, State> {
    world.plugins[0]
        .group
        .as_ref()
        .map(|group| group.update().map(|(name, state)| (name.clone(), state)).collect())
        .unwrap_or_default()
}

pub fn count(world: &World, state: State) -> usize {
    states(world).values().filter(|s| **s == state).count()
}

/// The existing vApps.
pub fn vapps(world: &World) -> Vec<VappId> {
    world.model.vapps.keys().copied().collect()
}

pub fn tasks(world: &World, operation: Operation) -> usize {
    world.model.tasks.values().filter(|task| task.operation == operation).count()
}

fn healthy(world: &mut World, name: &Name) -> bool {
    let time = world.time(0);
    world.plugins[0].group.as_mut().is_some_and(|group| group.heartbeat(time, name).is_ok())
}

fn many(max_size: u32) -> Tuning {
    Tuning { max_size, ..Tuning::default() }
}

#[test]
fn deletes_that_fail_do_not_block_others() {
    let mut acts = vec![(0, Act::Increase(20)), (900, Act::DecreaseAll)];
    acts.extend((0..3).map(|n| (890, Act::Stuck(Stuck::DeleteFails, n))));
    let mut world = world(many(20), &acts);
    play(&mut world, 895 * SECOND);
    assert_eq!(count(&world, State::Running), 20);
    play(&mut world, 20 * MINUTE);
    assert_eq!(vapps(&world).len(), 3, "the others are gone after 5 minutes");
}

#[test]
fn deletes_that_fail_do_not_block_resumes() {
    let mut acts = vec![(0, Act::Increase(4)), (150, Act::Increase(1))];
    acts.extend((0..5).map(|n| (280, Act::Stuck(Stuck::DeleteFails, n))));
    let mut world = world(Tuning::default(), &acts);
    play(&mut world, 150 * SECOND);
    let first: Vec<Name> = states(&world).into_keys().collect();
    play(&mut world, 290 * SECOND);
    let all: Vec<Name> = states(&world).into_keys().collect();
    let last = all.iter().position(|name| !first.contains(name)).unwrap_or_default();
    // The newest one is suspended, and has to resume while the others cannot be deleted.
    world.act(0, Act::Suspend(last as u64));
    play(&mut world, 330 * SECOND);
    assert_eq!((count(&world, State::Suspended), count(&world, State::Running)), (1, 4));
    (0..5).filter(|n| *n != last).for_each(|n| world.act(0, Act::Decrease(n as u64)));
    play(&mut world, 350 * SECOND);
    world.act(0, Act::Resume(last as u64));
    play(&mut world, 8 * MINUTE);
    assert_eq!(count(&world, State::Running), 1, "{:?}", states(&world));
}

#[test]
fn a_failed_delete_is_repeated_with_growing_pauses_and_in_both_ways() {
    let acts = [(0, Act::Increase(1)), (150, Act::Stuck(Stuck::DeleteFails, 0)), (200, Act::Decrease(0))];
    let mut world = world(Tuning::default(), &acts);
    play(&mut world, 200 * SECOND + 60 * MINUTE);
    let first = tasks(&world, Operation::Delete);
    assert!((5..=12).contains(&first), "{first} in the first hour");
    assert!(tasks(&world, Operation::UndeployPowerOff) > 0, "it was stopped too");
    play(&mut world, 200 * SECOND + 6 * 60 * MINUTE);
    let then = tasks(&world, Operation::Delete) - first;
    assert!((3..=10).contains(&then), "{then} in the next five");
    let views = world.plugins[0].group.as_ref().map(|group| group.views(world.time(0))).unwrap_or_default();
    assert!(views.iter().all(|view| view.retries > 5 && view.error.is_some()), "{views:?}");
}

#[test]
fn a_vapp_that_force_does_not_delete_is_stopped_first() {
    let acts = [(0, Act::Increase(1)), (150, Act::Stuck(Stuck::ForceFails, 0)), (200, Act::Decrease(0))];
    let mut world = world(Tuning::default(), &acts);
    play(&mut world, 250 * SECOND);
    assert_eq!(vapps(&world), []);
}

#[test]
fn creates_that_hang_do_not_keep_their_slots() {
    let acts = [(0, Act::Fault(Fault::TaskDeaf, 20 * SECOND, 100)), (1, Act::Increase(3)), (30, Act::Increase(3))];
    let mut world = world(Tuning::default(), &acts);
    play(&mut world, 26 * MINUTE);
    assert_eq!((count(&world, State::Timeout), count(&world, State::Running)), (3, 3), "{:?}", states(&world));
}

#[test]
fn deletes_that_hang_do_not_keep_their_slots() {
    let mut acts = vec![(0, Act::Increase(8)), (400, Act::DecreaseAll)];
    acts.extend((0..4).map(|n| (390, Act::Stuck(Stuck::Hangs, n))));
    let mut world = world(Tuning::default(), &acts);
    play(&mut world, 400 * SECOND + 13 * MINUTE);
    assert_eq!(vapps(&world).len(), 4, "the others are gone");
    play(&mut world, 400 * SECOND + 120 * MINUTE);
    let cancelled = world.score.requests;
    play(&mut world, 400 * SECOND + 180 * MINUTE);
    let polls = 60 * 6;
    assert!(world.score.requests - cancelled < polls + 100, "few requests are sent");
}

#[test]
fn an_instance_whose_vm_is_deleted_or_moved_is_lost() {
    for admin in [Admin::DeleteVm, Admin::MoveVm] {
        let mut world = world(Tuning::default(), &[(0, Act::Increase(2)), (200, Act::Admin(admin, 0))]);
        play(&mut world, 200 * SECOND);
        let before = vapps(&world);
        play(&mut world, 320 * SECOND);
        assert_eq!(count(&world, State::Running), 1, "{admin:?}: {:?}", states(&world));
        assert_eq!(before.iter().filter(|id| world.model.vapps.contains_key(id)).count(), 1, "{admin:?}");
    }
}

#[test]
fn guests_that_boot_while_vcd_cannot_be_seen_are_kept() {
    for minutes in [12, 60, 180] {
        for begins in [20, 45, 70] {
            let mut world = world(Tuning::default(), &[(0, Act::Increase(6)), (begins, Act::Outage(minutes))]);
            play(&mut world, begins * SECOND + 2 * SECOND);
            let before = vapps(&world);
            play(&mut world, begins * SECOND + minutes * MINUTE + 3 * MINUTE);
            let kept = before.iter().filter(|id| world.model.vapps.contains_key(id)).count();
            assert_eq!(kept, before.len(), "{minutes} minutes from {begins} s on");
            assert_eq!(count(&world, State::Running), 6, "{minutes} minutes from {begins} s on: {:?}", states(&world));
        }
    }
}

#[test]
fn an_event_that_aborts_three_creates_is_one_failure() {
    let mut world = world(Tuning::default(), &[(0, Act::Increase(3)), (15, Act::AbortAll)]);
    play(&mut world, 3 * MINUTE);
    assert_eq!(count(&world, State::Running), 3, "{:?}", states(&world));
}

#[test]
fn a_bad_esxi_host_delays_creates_and_does_not_stop_them() {
    let acts = [(0, Act::Fault(Fault::BadHost, 60 * MINUTE, 30)), (1, Act::Increase(20))];
    let policy = Tuning { max_creates: 4, max_operations: 6, ..many(20) };
    let mut world = world(policy, &acts);
    play(&mut world, 10 * MINUTE);
    assert!(count(&world, State::Running) >= 15, "{:?}", states(&world));
}

#[test]
fn creates_continue_soon_after_a_long_fault() {
    let acts = [(0, Act::Fault(Fault::BadHost, 90 * MINUTE, 100)), (1, Act::Increase(1)), (1, Act::Increase(3))];
    let mut world = world(Tuning { create_timeout: 100, ..Tuning::default() }, &acts);
    play(&mut world, 99 * MINUTE);
    assert_eq!(count(&world, State::Running), 4, "{:?}", states(&world));
}

#[test]
fn a_leftover_that_cannot_be_deleted_does_not_block_creates() {
    for stuck in [Stuck::Locked, Stuck::DeleteFails] {
        let acts = [(0, Act::Increase(1)), (5, Act::Stuck(stuck, 0)), (6, Act::Crash(2_000)), (40, Act::Increase(2))];
        let mut world = world(Tuning::default(), &acts);
        play(&mut world, 4 * MINUTE);
        assert_eq!(count(&world, State::Running), 2, "{stuck:?}: {:?}", states(&world));
    }
}

#[test]
fn leftovers_of_a_dead_process_are_never_used() {
    for down in [100, 5_000, 30_000] {
        let policy = Tuning { max_creates: 4, max_operations: 6, ..many(3) };
        let after = (down + 21_000) / SECOND + 2;
        let mut world = world(policy, &[(0, Act::Increase(3)), (1, Act::Crash(down)), (after, Act::Increase(3))]);
        play(&mut world, 5 * MINUTE);
        assert_eq!(count(&world, State::Running), 3, "down for {down} ms: {:?}", states(&world));
        assert_eq!(vapps(&world).len(), 3, "down for {down} ms");
    }
}

#[test]
fn an_empty_first_poll_hides_nothing() {
    for date in [true, false] {
        // As long as the first poll takes.
        let mut acts =
            vec![(0, Act::Increase(3)), (200, Act::Fault(Fault::QueryEmpty, 1_500, 100)), (200, Act::Crash(100))];
        if !date {
            acts.insert(1, (0, Act::Fault(Fault::NoDate, 60 * MINUTE, 100)));
        }
        let mut world = world(Tuning::default(), &acts);
        play(&mut world, 199 * SECOND);
        let before = states(&world);
        assert_eq!(before.len(), 3);
        play(&mut world, 230 * SECOND);
        assert_eq!(states(&world), before, "date: {date}");
    }
}

#[test]
fn a_vm_that_others_suspended_is_not_reported_as_suspended() {
    for suspends in [Suspends::Never, Suspends::Always] {
        let policy = Tuning { suspends, ..Tuning::default() };
        // Before a start, and soon after one.
        for (suspend, crash) in [(200, 210), (230, 210)] {
            let acts = [(0, Act::Increase(2)), (crash, Act::Crash(1_000)), (suspend, Act::Admin(Admin::Suspend, 0))];
            let mut world = world(policy, &acts);
            play(&mut world, 300 * SECOND);
            assert_eq!(count(&world, State::Suspended), 0, "{suspends:?}: {:?}", states(&world));
            play(&mut world, 20 * MINUTE);
            assert_eq!(vapps(&world).len(), 1, "{suspends:?}: the other one is deleted");
        }
    }
}

#[test]
fn suspended_vms_are_deleted_by_a_process_that_may_not_suspend() {
    let policy = Tuning { suspends: Suspends::AtFirst, ..Tuning::default() };
    let acts = [(0, Act::Increase(2)), (200, Act::Suspend(0)), (250, Act::Crash(1_000))];
    let mut world = world(policy, &acts);
    play(&mut world, 240 * SECOND);
    assert_eq!(count(&world, State::Suspended), 1);
    play(&mut world, 400 * SECOND);
    assert_eq!((count(&world, State::Running), vapps(&world).len()), (1, 1), "{:?}", states(&world));
}

#[test]
fn an_instance_whose_host_is_down_is_unhealthy() {
    let acts = [(0, Act::Increase(1)), (200, Act::Admin(Admin::HostDown, 0)), (400, Act::Admin(Admin::HostUp, 0))];
    let mut world = world(Tuning::default(), &acts);
    play(&mut world, 200 * SECOND);
    let name = states(&world).into_keys().next().unwrap_or_default();
    assert!(healthy(&mut world, &name));
    play(&mut world, 260 * SECOND);
    assert!(!healthy(&mut world, &name));
    play(&mut world, 430 * SECOND);
    assert!(healthy(&mut world, &name), "it is up again");
    assert_eq!(states(&world)[&name], State::Running);
}

#[test]
fn a_task_that_hangs_hides_no_vm_that_is_off() {
    let acts = [(0, Act::Increase(1)), (80, Act::Stuck(Stuck::Hangs, 0)), (200, Act::Admin(Admin::PowerOff, 0))];
    let mut world = world(Tuning::default(), &acts);
    play(&mut world, 300 * SECOND);
    let name = states(&world).into_keys().next().unwrap_or_default();
    assert!(healthy(&mut world, &name), "the task of its metadata entry may end");
    play(&mut world, 350 * SECOND);
    assert!(!healthy(&mut world, &name));
}

#[test]
fn a_task_that_hangs_hides_no_vm_that_is_gone() {
    let acts = [(0, Act::Increase(1)), (80, Act::Stuck(Stuck::Hangs, 0)), (200, Act::Admin(Admin::MoveVm, 0))];
    let mut world = world(Tuning::default(), &acts);
    play(&mut world, 200 * SECOND);
    assert_eq!(count(&world, State::Running), 1);
    play(&mut world, 250 * SECOND);
    assert_eq!(count(&world, State::Running), 1, "a task may be about to add it");
    play(&mut world, 450 * SECOND);
    assert_eq!(count(&world, State::Running), 0, "{:?}", states(&world));
}

#[test]
fn an_instance_whose_vm_has_another_description_is_still_owned() {
    let acts = [(0, Act::Increase(2)), (75, Act::Admin(Admin::DescribeVm, 0)), (80, Act::Crash(1_000))];
    let mut world = world(Tuning::default(), &acts);
    play(&mut world, 79 * SECOND);
    let before = states(&world);
    assert_eq!(count(&world, State::Running), 2, "and they do not have the metadata entry yet");
    play(&mut world, 110 * SECOND);
    assert_eq!(states(&world), before);
}

#[test]
fn a_foreign_vm_in_an_owned_vapp_is_not_touched() {
    let acts = [(0, Act::Increase(1)), (200, Act::Admin(Admin::AddVm, 0)), (600, Act::Decrease(0))];
    let mut world = world(Tuning::default(), &acts);
    play(&mut world, 200 * SECOND);
    let name = states(&world).into_keys().next().unwrap_or_default();
    let reach = |world: &World| world.plugins[0].group.as_ref().and_then(|group| group.reach(&name).ok());
    let before = reach(&world);
    assert!(before.is_some());
    play(&mut world, 599 * SECOND);
    assert_eq!(reach(&world), before);
    play(&mut world, 60 * MINUTE);
    assert_eq!(world.model.vms.len(), 2, "no foreign VM is deleted");
}

#[test]
fn a_customization_that_fails_late_ends_no_job() {
    let acts = [(0, Act::Increase(1)), (200, Act::Admin(Admin::CustomizationFails, 0))];
    let mut world = world(Tuning::default(), &acts);
    play(&mut world, 60 * MINUTE);
    let (name, state) = states(&world).into_iter().next().unwrap_or_else(|| panic!("no instance is reported"));
    assert_eq!(state, State::Running);
    assert!(!healthy(&mut world, &name), "the host decides when to replace it");
}

#[test]
fn an_address_that_is_no_longer_shown_is_kept() {
    let acts = [(0, Act::Increase(1)), (200, Act::Admin(Admin::HideAddress, 0)), (200, Act::Admin(Admin::PowerOn, 0))];
    let mut world = world(Tuning::default(), &acts);
    play(&mut world, 20 * MINUTE);
    let name = states(&world).into_keys().next().unwrap_or_default();
    assert!(world.plugins[0].group.as_ref().is_some_and(|group| group.reach(&name).is_ok()));
    assert!(healthy(&mut world, &name));
}

#[test]
fn an_address_that_changes_is_followed() {
    let acts = [(0, Act::Increase(1)), (200, Act::Admin(Admin::NewAddress, 0))];
    let mut world = world(Tuning::default(), &acts);
    play(&mut world, 260 * SECOND);
    let name = states(&world).into_keys().next().unwrap_or_default();
    let told = world.plugins[0].group.as_ref().and_then(|group| group.reach(&name).ok()).map(|reach| reach.address);
    let is = world.model.vms.values().find_map(|vm| vm.address()).map(std::net::IpAddr::V4);
    assert!(told.is_some() && told == is, "{told:?}, {is:?}");
}

#[test]
fn a_create_without_quota_continues_after_a_delete() {
    let acts = [(0, Act::Increase(3)), (200, Act::VmLimit(3)), (210, Act::Increase(1)), (600, Act::Decrease(0))];
    let mut world = world(Tuning::default(), &acts);
    play(&mut world, 600 * SECOND);
    assert_eq!((count(&world, State::Running), count(&world, State::Creating)), (3, 1));
    play(&mut world, 720 * SECOND);
    assert_eq!(count(&world, State::Running), 3, "{:?}", states(&world));
}

#[test]
fn plugins_of_two_managers_do_not_affect_each_other() {
    let policy = Tuning { managers: 2, ..Tuning::default() };
    let acts =
        [(1, 0, Act::Increase(3)), (1, 1, Act::Increase(3)), (200, 0, Act::Crash(1_000)), (250, 1, Act::DecreaseAll)];
    let steps = acts.iter().map(|&(seconds, to, act)| Step { at: seconds * SECOND, to, act }).collect();
    let mut world = World::new(&Plan { seed: 1, policy, steps });
    play(&mut world, 300 * SECOND);
    assert_eq!((count(&world, State::Running), vapps(&world).len()), (3, 3), "{:?}", states(&world));
}
