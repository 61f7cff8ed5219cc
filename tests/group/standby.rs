//! The standby pool: its content, what an Increase gets from it, and what it never gets.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use crate::lives::{MINUTE, SECOND, count, play, states, vapps, world};
use crate::play::{self, Play, START, href, shown, vapp};
use crate::world::World;
use crate::world::plan::{Act, Admin, Stuck, Suspends, Tuning};
use fleeting_plugin_vcd::cloud::*;
use fleeting_plugin_vcd::group::*;
use std::collections::BTreeMap;
use std::time::Duration;

/// GitLab Runner may not suspend. The pool works nevertheless.
fn pool(standby: u32) -> Tuning {
    Tuning { standby, suspends: Suspends::Never, ..Tuning::default() }
}

fn phases(world: &World) -> BTreeMap<Name, Phase> {
    let time = world.time(0);
    let group = world.plugins[0].group.as_ref();
    group.map(|group| group.glances(time).iter().map(|i| (i.name.clone(), i.phase)).collect()).unwrap_or_default()
}

fn in_standby(world: &World) -> Vec<Name> {
    phases(world).into_iter().filter(|(_, phase)| *phase == Phase::Standby).map(|(name, _)| name).collect()
}

/// A world whose pool is full after six minutes, with these events then, at seconds.
fn full(policy: Tuning, acts: &[(u64, Act)]) -> World {
    let mut world = world(policy, acts);
    play(&mut world, 6 * MINUTE);
    assert_eq!(in_standby(&world).len(), policy.standby as usize);
    world
}

fn group(world: &mut World) -> &mut Group {
    world.plugins[0].group.as_mut().unwrap()
}

#[test]
fn the_pool_is_filled_one_after_another_and_not_reported() {
    let mut world = world(pool(3), &[]);
    for at in (0..6 * 60).step_by(5) {
        play(&mut world, at * SECOND);
        let making = phases(&world).values().filter(|phase| **phase != Phase::Standby).count();
        assert!(making <= 1, "{at} s: {:?}", phases(&world));
        assert!(states(&world).is_empty());
    }
    assert_eq!((in_standby(&world).len(), vapps(&world).len()), (3, 3));
    let standing = group(&mut world).standing(Time(0));
    assert_eq!((standing.instances.used, standing.leftovers, standing.creates_waiting), (0, 0, 0));
    // It costs no request except the polls.
    let requests = world.score.requests;
    play(&mut world, 6 * MINUTE + 60 * MINUTE);
    assert!(world.score.requests - requests <= 6 * 60 + 1);
}

#[test]
fn an_increase_gets_the_oldest_first_and_missing_ones_are_created() {
    let mut world = full(pool(2), &[(400, Act::Increase(3))]);
    let oldest = in_standby(&world);
    play(&mut world, 401 * SECOND + 500);
    let told = states(&world);
    assert_eq!(told.values().filter(|state| **state == State::Creating).count(), 3);
    assert!(oldest.iter().all(|name| told.contains_key(name)));
    play(&mut world, 430 * SECOND);
    let running: Vec<Name> =
        states(&world).into_iter().filter(|(_, state)| *state == State::Running).map(|(name, _)| name).collect();
    assert_eq!(running, oldest, "as fast as a resume");
    assert!(oldest.iter().all(|name| group(&mut world).reach(name).is_ok()));
    play(&mut world, 500 * SECOND);
    assert_eq!(count(&world, State::Running), 3);
    play(&mut world, 800 * SECOND);
    assert_eq!((count(&world, State::Running), in_standby(&world).len()), (3, 2), "the pool is full again");
}

#[test]
fn vms_in_preparation_for_the_pool_are_handed_out_too() {
    // While VCD creates it, while its guest boots, while VCD suspends it.
    for at in [10, 45, 70] {
        let mut world = world(pool(1), &[(at, Act::Increase(1))]);
        play(&mut world, at * SECOND);
        let first = phases(&world).into_keys().next();
        play(&mut world, (at + 2) * SECOND);
        assert_eq!(states(&world).into_keys().next(), first, "{at} s");
        play(&mut world, 110 * SECOND);
        assert_eq!(count(&world, State::Running), 1, "{at} s: {:?}", states(&world));
    }
}

#[test]
fn the_pool_is_in_addition_to_max_size_and_uses_no_slot_of_requested_instances() {
    let policy = Tuning { max_size: 4, max_creates: 2, max_operations: 2, ..pool(2) };
    let mut with = world(policy, &[(1, Act::Increase(4))]);
    let mut without = world(Tuning { standby: 0, ..policy }, &[(1, Act::Increase(4))]);
    for at in (0..200).step_by(2) {
        play(&mut with, at * SECOND);
        play(&mut without, at * SECOND);
        let running = [&with, &without].map(|world| count(world, State::Running));
        assert!(running[0] >= running[1], "{at} s: {running:?}");
    }
    play(&mut with, 12 * MINUTE);
    assert_eq!((count(&with, State::Running), in_standby(&with).len()), (4, 2));
}

#[test]
fn a_restart_keeps_standby_vms_and_deletes_incomplete_ones() {
    // After an Increase used it, it cannot be in standby again.
    for (crash, kept) in [(400, 2), (404, 1), (408, 1)] {
        let mut world = full(pool(2), &[(401, Act::Increase(1)), (crash, Act::Crash(1_000))]);
        let before = in_standby(&world);
        play(&mut world, (crash + 3) * SECOND);
        let after = in_standby(&world);
        assert!(after.iter().all(|name| before.contains(name)));
        assert_eq!(after.len(), kept, "killed at {crash} s: {:?}", phases(&world));
    }
    // It is incomplete, or about to be suspended: it is a leftover, or GitLab Runner decides.
    for crash in [20, 50, 68] {
        let mut world = world(pool(1), &[(crash, Act::Crash(1_000))]);
        play(&mut world, 20 * MINUTE);
        assert_eq!(in_standby(&world).len(), 1, "killed at {crash} s: {:?}", phases(&world));
    }
}

#[test]
fn what_is_in_standby_is_used_before_what_is_prepared() {
    let mut world = world(pool(2), &[(120, Act::Increase(1))]);
    play(&mut world, 119 * SECOND);
    let ready = in_standby(&world);
    assert_eq!((ready.len(), phases(&world).len()), (1, 2), "{:?}", phases(&world));
    play(&mut world, 121 * SECOND);
    assert_eq!(states(&world).into_keys().collect::<Vec<Name>>(), ready);
}

#[test]
fn a_doubtful_standby_vm_is_not_handed_out() {
    let mut play = at_rest();
    let doubtful = play.view().name;
    play.holds = vec!["look"];
    let next = play.now + 15 * SECOND;
    play.show(Power::On, false).to(next);
    assert_eq!((play.held.len(), play.deleted().len()), (1, 0), "it is looked up");
    play.increase(1);
    assert!(!play.names().contains(&doubtful), "{:?}", play.said);
    assert_eq!(play.times("create").len(), 2);
}

#[test]
fn the_oldest_is_used_first_after_a_restart_too() {
    let mut world = full(pool(3), &[(400, Act::Crash(1_000)), (460, Act::Increase(1))]);
    let created: Vec<Name> = world.model.vapps.values().map(|vapp| vapp.name.clone()).collect();
    assert_ne!(created.iter().min(), created.first(), "a poll, sorted by name, shows another one first");
    play(&mut world, 500 * SECOND);
    assert_eq!(states(&world).into_keys().collect::<Vec<Name>>(), created[..1]);
}

#[test]
fn a_standby_vm_that_somebody_powers_on_is_never_handed_out() {
    for admin in [Admin::PowerOn, Admin::PowerOff, Admin::AddVm, Admin::DeleteVm, Admin::Rename] {
        let mut world = full(pool(1), &[(390, Act::Admin(admin, 0)), (450, Act::Increase(1))]);
        // A suspended VM cannot be powered off in one step.
        if admin == Admin::PowerOff {
            let id = vapps(&world)[0];
            world.model.admin_power(id, vcd_sim::model::Power::On);
        }
        let spoiled = in_standby(&world);
        play(&mut world, 452 * SECOND);
        assert!(!states(&world).contains_key(&spoiled[0]), "{admin:?}");
        play(&mut world, 15 * MINUTE);
        assert_eq!(
            (count(&world, State::Running), in_standby(&world).len()),
            (1, 1),
            "{admin:?}: {:?}",
            phases(&world)
        );
        assert!(!in_standby(&world).contains(&spoiled[0]), "{admin:?}");
    }
}

#[test]
fn standby_vms_from_another_source_are_replaced_one_after_another() {
    let mut world = full(pool(2), &[(400, Act::NewSource)]);
    let old = in_standby(&world);
    for at in (400..1600).step_by(5) {
        play(&mut world, at * SECOND);
        assert!(!in_standby(&world).is_empty(), "{at} s");
    }
    assert_eq!(in_standby(&world).len(), 2);
    assert!(old.iter().all(|name| !in_standby(&world).contains(name)));

    // After a start all of them are deleted: nobody knows whether they can be used.
    let mut world = full(pool(2), &[(400, Act::Crash(10_000)), (401, Act::NewSource)]);
    play(&mut world, 420 * SECOND);
    assert_eq!(in_standby(&world).len(), 0);
    play(&mut world, 15 * MINUTE);
    assert_eq!((in_standby(&world).len(), vapps(&world).len()), (2, 2));
}

#[test]
fn a_standby_vm_from_an_older_template_is_replaced_after_ten_minutes() {
    let mut play = at_rest();
    let (first, rests) = (play.view().name, 20 * SECOND);
    play.source = Source(2);
    play.before(rests + 10 * MINUTE);
    assert_eq!(play.view().name, first);
    play.to(rests + 10 * MINUTE + 10 * SECOND);
    assert_eq!((play.deleted().len(), play.said("older template")), (1, 1), "{:?}", play.said);
}

#[test]
fn a_vcd_that_does_not_suspend_leaves_the_pool_empty_and_creates_go_on() {
    let mut play = Play::holding(standby_policy(), Vec::new(), &["suspend"]);
    for second in 1..3600 {
        play.to(second * SECOND);
        if !play.held.is_empty() {
            play.fail("suspend", ErrorKind::Forbidden);
        }
    }
    let tries = play.times("suspend").len();
    assert!((6..=12).contains(&tries), "{tries} in an hour");
    assert_eq!(play.deleted().len(), tries);
    play.increase(2);
    play.to(3700 * SECOND);
    assert_eq!(play.states(), [State::Running, State::Running]);
}

/// VCD accepts its suspend, and the task never ends.
#[test]
fn a_stuck_vm_of_the_pool_is_neither_waited_for_nor_handed_out() {
    let policy = Policy { standby_count: 2, create_timeout: Duration::from_secs(3600), ..standby_policy() };
    let mut play = Play::new(policy, Vec::new());
    play.before(10 * MINUTE);
    assert_eq!((play.times("create").len(), play.times("suspend").len()), (1, 1));
    play.to(12 * MINUTE);
    assert_eq!((play.times("create").len(), play.times("suspend").len()), (2, 2), "the next one is prepared");
    play.to(23 * MINUTE);
    assert_eq!(play.times("create").len(), 2, "not without end");
    play.increase(1);
    assert_eq!((play.times("create").len(), play.said("to be suspended for standby")), (3, 2), "{:?}", play.said);
}

/// VCD carries out its first create late, while the second one is in progress.
#[test]
fn a_late_vapp_of_a_vm_of_the_pool_is_deleted() {
    let mut play = Play::holding(standby_policy(), Vec::new(), &["create"]);
    play.fail("create", ErrorKind::Ambiguous);
    play.until("create", 2);
    let late = shown(href(1), play.created());
    play.begin("create", Some(href(2)), "t/1");
    play.documents.insert(href(1), vapp(&late));
    play.vms.push(Vm { created: Some(START + 6 * MINUTE), ..late });
    play.to(play.now + 20 * SECOND);
    assert_eq!(play.deleted(), ["v/1"], "{:?}", play.said);
}

#[test]
fn shutdown_keeps_or_deletes_the_pool() {
    for keep in [false, true] {
        let mut world = full(Tuning { keep, ..pool(2) }, &[(400, Act::Restart(1_000))]);
        let before = in_standby(&world);
        play(&mut world, 440 * SECOND);
        let kept = before.iter().filter(|name| in_standby(&world).contains(name)).count();
        assert_eq!(kept, if keep { 2 } else { 0 });
    }
}

#[test]
fn a_vm_that_hangs_before_standby_blocks_nobody() {
    let acts = [(10, Act::Stuck(Stuck::Hangs, 0)), (400, Act::Increase(3))];
    let mut world = world(pool(2), &acts);
    play(&mut world, 60 * MINUTE);
    // An Increase got the hanging VM during its create.
    assert_eq!(count(&world, State::Running), 2, "{:?}", states(&world));
    assert_eq!(in_standby(&world).len(), 2);
}

// Until the request is sent.

fn standby_policy() -> Policy {
    Policy { standby_count: 1, ..play::policy() }
}

fn marks(play: &Play) -> Vec<Mark> {
    let marks = play.asked.iter().filter_map(|(_, _, request)| match request {
        Some(Request::Mark { mark, .. }) => Some(mark.clone()),
        _ => None,
    });
    marks.collect()
}

/// A VM in standby. Its replacement is not suspended.
fn at_rest() -> Play {
    at_rest_with(standby_policy())
}

fn at_rest_with(policy: Policy) -> Play {
    at_rest_beside(policy, Vec::new())
}

/// The same beside these VMs.
fn at_rest_beside(policy: Policy, vms: Vec<Vm>) -> Play {
    let mut play = Play::new(policy, vms);
    play.tasks = TaskState::Success;
    play.holds = vec!["suspend"];
    play.to(20 * SECOND);
    come_to_rest(&mut play);
    play
}

/// Its suspend request is on the wire.
fn come_to_rest(play: &mut Play) {
    let own = play.vms.last_mut().unwrap();
    own.power = Power::Suspended;
    play.documents.get_mut(&own.vapp).unwrap().power = Power::Suspended;
    play.release("suspend", None);
    play.to(play.now + 20 * SECOND);
    let phase = play.group.glances(Time(play.now)).last().map(|i| i.phase);
    assert_eq!((phase, play.said("in standby")), (Some(Phase::Standby), 1), "{:?} {:?}", play.said, play.asked);
}

#[test]
fn a_standby_vm_that_vcd_does_not_show_is_not_handed_out_and_replaced() {
    let missing = || {
        let mut play = at_rest();
        (play.hidden, play.fails) = (true, vec![("look", ErrorKind::Unavailable)]);
        play.until("look", play.times("look").len() + 1);
        play
    };
    let mut play = missing();
    play.increase(1);
    assert_eq!((play.times("power_on").len(), play.times("create").len()), (0, 2));
    let mut play = missing();
    play.until("look", play.times("look").len() + 2);
    assert_eq!((play.said("it cannot be used for standby"), play.times("create").len()), (1, 1));
    play.until("create", 2);
    // While polls fail, failed lookups say nothing.
    let mut play = at_rest_with(Policy { reconcile_interval: Duration::from_secs(120), ..standby_policy() });
    (play.hidden, play.fails) = (true, vec![("look", ErrorKind::Unavailable)]);
    let looks = play.times("look").len();
    play.until("look", looks + 1);
    let polls = play.times("poll").len();
    play.to(play.now + 100 * SECOND);
    assert!(play.times("look").len() >= looks + 3 && play.times("poll").len() == polls);
    assert_eq!(play.said("it cannot be used for standby"), 0);
}

#[test]
fn a_standby_vm_whose_create_was_found_again_has_the_current_source() {
    let mut play = Play::holding(standby_policy(), Vec::new(), &["create"]);
    let made = shown(href(1), play.created());
    play.documents.insert(href(1), vapp(&made));
    play.vms.push(made);
    play.to(15 * SECOND).tasks = TaskState::Success;
    play.fail("create", ErrorKind::Ambiguous);
    play.holds = vec!["suspend"];
    play.to(40 * SECOND);
    come_to_rest(&mut play);
    let mut marks = play.asked.iter().filter_map(|(.., request)| match request {
        Some(Request::Mark { mark, .. }) => Some(mark.clone()),
        _ => None,
    });
    assert_eq!(marks.next_back(), Some(Mark::Standby { source: Source(1) }));
}

#[test]
fn a_standby_vm_is_marked_after_its_suspend_and_again_before_its_resume() {
    let mut play = at_rest();
    assert_eq!(marks(&play), [Mark::Standby { source: Source(1) }]);
    play.holds.push("mark");
    play.increase(1);
    assert_eq!((play.states(), marks(&play).last()), (vec![State::Creating], Some(&Mark::Running)));
    play.to(60 * SECOND);
    assert_eq!(play.times("power_on"), [0; 0], "not before the mark is written");
    play.release("mark", None);
    assert_eq!(play.times("power_on"), [60 * SECOND]);
}

#[test]
fn a_vm_that_is_powered_on_while_its_mark_is_written_is_never_in_standby() {
    let mut play = Play::new(standby_policy(), Vec::new());
    play.tasks = TaskState::Success;
    play.holds = vec!["suspend", "mark"];
    // No poll comes exactly a minute later.
    play.to(23 * SECOND);
    for power in [Power::Suspended, Power::On] {
        play.documents.values_mut().for_each(|vapp| vapp.power = power);
        play.show(power, false);
        if power == Power::Suspended {
            play.release("suspend", None);
        }
        play.to(play.now + 10 * SECOND);
    }
    // Polls may lag by a minute.
    let end = play.now + 70 * SECOND;
    play.to(end).release("mark", None);
    assert_eq!((play.said("in standby"), play.deleted().len()), (0, 1), "{:?}", play.said);
}

#[test]
fn a_poll_that_lags_behind_the_suspend_spoils_no_standby_vm() {
    let mut play = Play::new(standby_policy(), Vec::new());
    play.tasks = TaskState::Success;
    play.holds = vec!["suspend"];
    play.to(20 * SECOND);
    play.documents.values_mut().for_each(|vapp| vapp.power = Power::Suspended);
    play.release("suspend", None);
    let suspended = play.now;
    play.holds = Vec::new();
    // Polls show it powered on for a minute, and its document shows it suspended.
    play.to(suspended + 60 * SECOND).show(Power::Suspended, false);
    play.to(suspended + 120 * SECOND);
    assert_eq!((play.deleted().len(), play.view().phase), (0, Phase::Standby), "{:?}", play.said);
    // A lookup shows that it does not lag.
    let mut play = at_rest();
    play.documents.values_mut().for_each(|vapp| vapp.power = Power::On);
    let next = play.now + 15 * SECOND;
    play.show(Power::On, false).to(next);
    assert_eq!((play.deleted().len(), play.said("it is no longer suspended")), (1, 1), "{:?}", play.said);
}

#[test]
fn a_standby_vm_is_kept_while_vcd_does_not_know_its_state_or_a_task_works_on_it() {
    for (power, busy) in [(Power::Other, false), (Power::On, true)] {
        let mut play = at_rest();
        let looks = play.times("look").len();
        play.documents.values_mut().for_each(|vapp| (vapp.power, vapp.busy) = (power, busy));
        play.show(Power::On, false).to(55 * SECOND);
        assert_eq!((play.times("look").len() - looks, play.deleted().len()), (1, 0), "{power:?}");
        // Only polls that show another state are followed by lookups.
        play.show(Power::Other, false).to(95 * SECOND);
        assert_eq!((play.times("look").len() - looks, play.said("its ESXi host may be down")), (1, 1), "{power:?}");
    }
}

#[test]
fn a_vm_from_standby_that_a_person_powers_on_before_its_mark_is_written_is_not_used() {
    let mut play = at_rest();
    play.holds.push("mark");
    play.increase(1);
    let limit = VcdError { retry_after: Some(std::time::Duration::from_secs(97)), ..play::error(ErrorKind::Limit) };
    play.release("mark", Some(Err(limit)));
    play.hidden = true;
    play.documents.values_mut().for_each(|vapp| vapp.power = Power::On);
    play.show(Power::On, false).to(75 * SECOND).hidden = false;
    let name = play.names()[0].clone();
    play.to(200 * SECOND);
    assert_eq!((play.states(), play.times("power_on"), play.deleted().len()), (vec![State::Running], vec![], 1));
    assert_eq!((play.names()[0].clone(), play.said("it is no longer suspended")), (name, 1), "{:?}", play.said);
}

#[test]
fn a_vm_whose_suspend_ends_after_an_outage_is_looked_up_before_its_mark() {
    let mut play = Play::new(standby_policy(), Vec::new());
    play.holds = vec!["suspend"];
    play.to(20 * SECOND).deaf = true;
    play.release("suspend", None);
    play.to(2 * MINUTE);
    play.documents.values_mut().for_each(|vapp| (vapp.power, vapp.name) = (Power::Suspended, play::name(2)));
    play.tasks = TaskState::Success;
    play.to(3 * MINUTE);
    assert_eq!((play.times("mark"), play.said("the plugin no longer manages it")), (vec![], 1), "{:?}", play.said);
}

#[test]
fn a_failed_resume_leads_to_a_new_vm_with_the_same_id() {
    // Nor is it resumed while it is marked as unused.
    for refused in ["mark", "power_on"] {
        let mut play = at_rest();
        play.holds.push(refused);
        play.increase(1);
        let name = play.names()[0].clone();
        play.to(41 * SECOND).fail(refused, ErrorKind::Invalid);
        play.to(60 * SECOND);
        let is_same = |request: &Request| matches!(request, Request::Create { name: created, .. } if *created == name);
        let created = play.asked.iter().filter(|(.., request)| request.as_ref().is_some_and(is_same)).count();
        assert_eq!((play.deleted().len(), created, play.states()), (1, 2, vec![State::Running]), "{:?}", play.said);
        let resumed = play.times("power_on").len();
        assert_eq!(resumed, usize::from(refused == "power_on"));
        assert_eq!(play.group.standing(Time(play.now)).failures, 0, "creates work");
    }
}

#[test]
fn a_full_quota_destroys_no_standby_vm() {
    let mut play = at_rest_beside(standby_policy(), vec![play::vm(1)]);
    play.holds.push("power_on");
    play.increase(1);
    play.to(50 * SECOND).fail("power_on", ErrorKind::Quota);
    let created = play.times("create").len();
    // The next try is minutes later, or at once when another VM is deleted.
    play.to(60 * SECOND);
    assert_eq!((play.times("power_on").len(), play.deleted().len()), (1, 0));
    play.decrease(&[play::name(1)]);
    play.vms.retain(|vm| vm.vapp != href(1));
    play.documents.remove(&href(1));
    play.until("power_on", 2);
    assert!(play.now <= 80 * SECOND, "{} {:?}", play.now, play.said);
    play.fail("power_on", ErrorKind::Quota);
    play.until("power_on", 3);
    assert_eq!((play.times("create").len(), play.deleted()), (created, vec!["v/1"]));
}

#[test]
fn a_standby_vm_that_disappears_before_its_resume_costs_its_instance_no_time() {
    let create_timeout = Duration::from_secs(100);
    let mut play = at_rest_with(Policy { create_timeout, ..standby_policy() });
    play.holds = vec!["power_on"];
    play.increase(1);
    play.to(100 * SECOND);
    let name = play.names()[0].clone();
    play.documents.retain(|_, vapp| vapp.name != name);
    play.vms.retain(|vm| vm.vapp_name != name);
    play.fail("power_on", ErrorKind::Limit);
    play.port = false;
    play.until("create", 3);
    let created = play.now;
    play.before(created + 100 * SECOND);
    assert_eq!(play.states(), [State::Creating], "{:?}", play.said);
    play.to(created + 130 * SECOND);
    assert_eq!(play.states(), [State::Timeout]);
}

#[test]
fn a_standby_vm_that_a_late_poll_showed_as_running_is_deleted_without_use() {
    let mut play = Play::new(standby_policy(), vec![play::vm(1)]);
    assert_eq!(play.states(), [State::Running]);
    let mark = Mark::Standby { source: Source(1) };
    let document = play.documents.remove(&href(1)).unwrap();
    play.documents.insert(href(1), Vapp { power: Power::Suspended, mark, ..document });
    play.suspend();
    play.to(20 * SECOND);
    assert_eq!((play.states(), play.deleted()), (vec![State::Deleted], vec!["v/1"]), "{:?}", play.said);
    assert_eq!(play.times("power_on").len(), 0);
}

#[test]
fn the_pool_does_not_grow_if_vcd_deletes_nothing() {
    let mut play = Play::new(standby_policy(), Vec::new());
    play.fails = ["suspend", "delete", "undeploy"].map(|operation| (operation, ErrorKind::Failed)).to_vec();
    play.to(3 * 3600 * SECOND);
    assert_eq!((play.strays().len(), play.times("create").len()), (2, 2));
}

#[test]
fn a_template_that_needs_steps_does_not_shorten_the_pause_of_the_pool() {
    let mut play = Play::holding(standby_policy(), Vec::new(), &["create"]);
    play.fail_creates(5, ErrorKind::Failed);
    play.fail_creates(1, ErrorKind::TooMuch);
    play.fail_creates(1, ErrorKind::Failed);
    let failed = play.now;
    play.until("create", 8);
    assert!(play.now > failed + 200 * SECOND, "{failed} {}", play.now);
}

#[test]
fn a_vm_whose_suspend_for_standby_fails_is_used_as_it_is_if_it_was_handed_out() {
    let mut play = Play::holding(standby_policy(), Vec::new(), &["suspend"]);
    play.to(20 * SECOND).increase(1);
    play.fail("suspend", ErrorKind::Unavailable);
    play.to(25 * SECOND);
    assert_eq!((play.states(), play.times("power_on")), (vec![State::Running], vec![]), "{:?}", play.said);
}

#[test]
fn a_vm_that_is_handed_out_while_its_suspend_is_lost_is_not_stuck_later() {
    let mut play = Play::holding(standby_policy(), Vec::new(), &["suspend"]);
    play.to(20 * SECOND).increase(1);
    play.fail("suspend", ErrorKind::Ambiguous);
    play.to(120 * SECOND);
    assert_eq!(play.states(), [State::Running], "{:?}", play.said);
    play.suspend();
    assert_eq!(play.group.standing(Time(play.now)).stuck, 0);
}

/// Its pages took long, and the first was read before the suspend.
#[test]
fn a_poll_that_was_sent_before_the_suspend_spoils_no_standby_vm() {
    let mut play = Play::holding(standby_policy(), Vec::new(), &["suspend"]);
    play.tasks = TaskState::Success;
    play.to(20 * SECOND).holds.push("poll");
    play.until("poll", play.times("poll").len() + 1);
    let old = Poll { now: Some(START), vms: play.vms.clone(), ..Poll::default() };
    come_to_rest(&mut play);
    play.to(play.now + 70 * SECOND);
    play.holds.clear();
    play.release("poll", Some(Ok(Reply::Poll(old))));
    play.to(play.now + 60 * SECOND);
    assert_eq!((play.deleted().len(), play.said("without use")), (0, 0), "{:?}", play.said);
}

/// VCD shows GC_FAILED late, after the guest was ready.
#[test]
fn a_customization_that_fails_after_a_guest_was_ready_does_not_matter_at_its_first_use() {
    let mut play = Play::holding(standby_policy(), Vec::new(), &["suspend"]);
    play.to(20 * SECOND);
    play.vms[0].customization = Customization::Failed;
    play.increase(1);
    play.fail("suspend", ErrorKind::Unavailable);
    play.to(45 * SECOND);
    assert_eq!((play.states(), play.deleted().len()), (vec![State::Running], 0), "{:?}", play.said);
}

#[test]
fn the_log_shows_in_which_state_a_vm_of_the_pool_was_handed_out() {
    let mut ready = Play::holding(standby_policy(), Vec::new(), &["suspend"]);
    ready.to(20 * SECOND);
    for (mut play, text) in [
        (Play::holding(standby_policy(), Vec::new(), &["create"]), "it was being created for standby"),
        (Play::new(standby_policy(), Vec::new()), "it was being created for standby"),
        (ready, "it was about to be suspended for standby"),
        (at_rest(), "taken from standby"),
    ] {
        play.increase(1);
        assert_eq!((play.said("accepted: "), play.said(text)), (1, 1), "{:?}", play.said);
    }
}

#[test]
fn a_vm_from_standby_is_probed_a_second_after_its_resume() {
    let mut play = at_rest();
    // The next poll is due.
    play.show(Power::On, false).to(47 * SECOND).increase(1);
    play.to(60 * SECOND);
    let resumed = *play.times("tasks").last().unwrap();
    assert_eq!(play.times("probe").last(), Some(&(resumed + SECOND)), "{:?}", play.asked);
}

#[test]
fn a_guest_without_customization_is_not_waited_for_again_after_its_standby() {
    let mut play = Play::holding(standby_policy(), Vec::new(), &["suspend"]);
    play.tasks = TaskState::Success;
    play.vms[0].customization = Customization::Pending;
    play.until("suspend", 1);
    come_to_rest(&mut play);
    play.increase(1);
    let next = play.now + 10 * SECOND;
    play.show(Power::On, false).to(next);
    assert_eq!(play.states(), [State::Running]);
}

#[test]
fn a_vm_that_is_handed_out_during_its_suspend_is_resumed_as_a_new_one() {
    let mut play = Play::holding(standby_policy(), Vec::new(), &["suspend", "power_on"]);
    play.to(20 * SECOND).increase(1);
    play.tasks = TaskState::Success;
    play.release("suspend", None);
    play.to(25 * SECOND);
    assert_eq!((play.states(), play.times("power_on").len()), (vec![State::Creating], 1), "{:?}", play.said);
}

#[test]
fn a_vm_whose_suspend_for_standby_did_not_work_is_suspended_again() {
    let mut play = Play::holding(standby_policy(), Vec::new(), &["suspend"]);
    play.to(20 * SECOND);
    let probes = play.times("probe").len();
    play.fail("suspend", ErrorKind::Ambiguous);
    play.to(90 * SECOND);
    assert_eq!((play.times("suspend").len(), play.times("probe").len()), (2, probes), "{:?}", play.said);
}

#[test]
fn after_a_create_for_standby_that_took_too_long_the_next_starts_later() {
    let create_timeout = std::time::Duration::from_secs(100);
    let mut play = Play::new(Policy { create_timeout, ..standby_policy() }, Vec::new());
    play.port = false;
    play.until("create", 2);
    assert!((107_500..=112_500).contains(&play.now), "{}", play.now);
}

#[test]
fn a_vm_that_was_in_standby_for_long_is_replaced() {
    let mut play = at_rest();
    let (first, day) = (play.view().name, 24 * 3600 * SECOND);
    play.before(day);
    assert_eq!(play.view().name, first);
    play.to(day + 120 * SECOND);
    assert!(play.said("no longer usable for standby") == 1 && play.view().name != first, "{:?}", play.said);
    assert_eq!(play.times("create").last(), play.times("delete").last(), "at once: no create failed");
}

#[test]
fn a_standby_vm_that_somebody_deletes_is_replaced_at_once() {
    for empty_vapp_stays in [false, true] {
        let mut play = at_rest();
        play.vms.clear();
        play.documents.values_mut().for_each(|vapp| (vapp.vms, vapp.made) = (Vec::new(), None));
        play.documents.retain(|_, _| empty_vapp_stays);
        play.to(100 * SECOND);
        assert_eq!(play.times("create").last(), play.times("look").get(1), "{:?}", play.said);
        assert_eq!(play.deleted().len(), usize::from(empty_vapp_stays));
    }
}

#[test]
fn failed_creates_for_standby_do_not_pause_those_that_somebody_waits_for() {
    let mut play = Play::holding(standby_policy(), Vec::new(), &["create"]);
    play.fail_creates(4, ErrorKind::Failed);
    assert_eq!(play.group.standing(Time(play.now)).failures, 0);
    play.increase(1);
    assert_eq!(play.times("create").last(), Some(&play.now));
}

#[test]
fn the_pool_tries_steps_at_once_and_then_waits_as_before() {
    for kind in [ErrorKind::Invalid, ErrorKind::Ambiguous] {
        let mut play = Play::holding(standby_policy(), Vec::new(), &["create"]);
        // A lost create is tried again before it counts as failed.
        let requests = if kind == ErrorKind::Ambiguous { 2 } else { 1 };
        let fail = |play: &mut Play, creates: usize| {
            play.fail_creates(creates * requests, kind);
            play.now
        };
        play.fail_creates(5, ErrorKind::Quota);
        let failed = fail(&mut play, 2);
        let steps = fail(&mut play, 1);
        assert!(steps <= failed + 200 * SECOND, "{kind:?}: {failed} {steps}");
        // Steps fail, too: both ways are tried at growing intervals.
        let last = fail(&mut play, 4);
        let next = fail(&mut play, 1);
        assert!(next > last + 100 * SECOND, "{kind:?}: {last} {next}");
    }
}

#[test]
fn only_the_delete_of_a_standby_vm_uses_a_slot_of_other_instances() {
    let used = |play: &Play| {
        let standing = play.group.standing(Time(play.now));
        [standing.creates.used, standing.deletes.used, standing.operations.used]
    };
    let play = Play::holding(standby_policy(), Vec::new(), &["create"]);
    assert_eq!((play.held.len(), used(&play)), (1, [0, 0, 0]));
    let mut play = at_rest();
    play.holds.push("delete");
    play.shutdown();
    assert_eq!((play.held.len(), used(&play)), (1, [0, 1, 1]));
}

#[test]
fn the_pool_waits_for_a_slot_and_not_for_creates() {
    let mut play = Play::holding(Policy { max_operations: 1, ..standby_policy() }, vec![play::vm(1)], &["delete"]);
    play.holds.push("suspend");
    play.decrease(&[play::name(1)]);
    assert_eq!(play.to(20 * SECOND).times("suspend"), [0; 0]);
    play.release("delete", None);
    assert_eq!(play.times("suspend"), [20 * SECOND]);

    let mut play = at_rest();
    play.holds.push("create");
    play.increase(2);
    assert_eq!(play.held.len(), 2, "another one for the pool");
}

/// Every create that is sent fails, until the breaker opens.
fn open_the_breaker(play: &mut Play) {
    while play.group.standing(Time(play.now)).breaker.is_none() {
        play.to(play.now + SECOND);
        while !play.held.is_empty() {
            play.fail("create", ErrorKind::Failed);
        }
    }
}

#[test]
fn while_one_create_decides_no_other_starts_for_standby_or_beside_one_for_standby() {
    // Until the guest of that create runs.
    let mut play = Play::holding(standby_policy(), Vec::new(), &["create"]);
    play.increase(1);
    open_the_breaker(&mut play);
    let created = play.times("create").len();
    play.port = false;
    play.to(play.now + 5 * MINUTE);
    assert_eq!((play.times("create").len(), play.created()), (created + 1, play.names()[0].clone()));
    play.release("create", None);
    play.to(play.now + MINUTE);
    assert_eq!(play.times("create").len(), created + 1);
    play.port = true;
    play.to(play.now + MINUTE);
    assert_eq!((play.states(), play.times("create").len()), (vec![State::Running], created + 2));

    let mut play = Play::holding(standby_policy(), Vec::new(), &["create"]);
    play.increase(2);
    let began_for_standby = play.held.remove(0);
    open_the_breaker(&mut play);
    let created = play.times("create").len();
    play.to(play.now + 5 * MINUTE);
    assert_eq!(play.times("create").len(), created);
    play.held.push(began_for_standby);
    play.holds.clear();
    play.release("create", None);
    play.to(play.now + MINUTE);
    assert_eq!(play.states(), [State::Running; 2]);
}

#[test]
fn a_create_that_somebody_waits_for_does_not_wait_for_a_guest_of_the_pool() {
    let mut play = Play::holding(standby_policy(), Vec::new(), &["create"]);
    play.port = false;
    play.fail("create", ErrorKind::Failed);
    play.increase(1);
    play.until("create", 3);
    let waits = play.held.remove(0);
    play.release("create", None);
    play.held.push(waits);
    open_the_breaker(&mut play);
    let created = play.times("create").len();
    play.to(play.now + 2 * MINUTE);
    assert_eq!((play.times("create").len(), play.created()), (created + 1, play.names()[0].clone()));
    assert!(play.strays().len() == 1, "the VM of the pool boots");
}

#[test]
fn the_pool_starts_no_vm_while_a_create_that_somebody_waits_for_lacks_quota() {
    let mut play = Play::holding(standby_policy(), Vec::new(), &["create"]);
    play.fail("create", ErrorKind::Failed);
    play.increase(1);
    play.fail("create", ErrorKind::Quota);
    let waits = play.names();
    for tries in 3..6 {
        play.until("create", tries);
        assert_eq!((play.created(), play.held.len()), (waits[0].clone(), 1));
        play.fail("create", ErrorKind::Quota);
    }
    play.until("create", 6);
    play.release("create", None);
    play.to(play.now + MINUTE);
    assert!(!waits.contains(&play.created()) && play.times("create").len() == 7);
}

#[test]
fn while_nobody_waits_a_create_for_standby_decides() {
    let mut play = Play::holding(standby_policy(), vec![play::vm(1)], &["create"]);
    play.increase(1);
    open_the_breaker(&mut play);
    let waiting: Vec<Name> = play.names().into_iter().filter(|name| *name != play::name(1)).collect();
    play.decrease(&waiting);
    let created = play.times("create").len();
    play.until("create", created + 1);
    assert!(!play.names().contains(&play.created()));
}

#[test]
fn while_a_create_that_somebody_waits_for_is_to_be_repeated_none_for_standby_decides() {
    let policy = Policy { max_creates: 1, ..standby_policy() };
    let mut play = Play::holding(policy, Vec::new(), &["create"]);
    play.increase(8);
    while play.group.standing(Time(play.now)).breaker.is_none() || !play.held.is_empty() {
        play.to(play.now + SECOND);
        if !play.held.is_empty() {
            // The next try is minutes later.
            play.fail("create", ErrorKind::Invalid);
        }
    }
    let tried = |play: &Play, name: &Name| {
        play.asked.iter().any(|(_, _, asked)| matches!(asked, Some(Request::Create { name: of, .. }) if of == name))
    };
    let untried: Vec<Name> = play.names().into_iter().filter(|name| !tried(&play, name)).collect();
    play.decrease(&untried);
    let created = play.times("create").len();
    play.until("create", created + 1);
    assert!(play.names().contains(&play.created()), "the breaker allows it");
}

#[test]
fn a_vm_from_standby_does_not_wait_for_deletes() {
    let policy = Policy { max_operations: 2, ..standby_policy() };
    let mut play = at_rest_beside(policy, (1..=3).map(play::vm).collect());
    play.holds.extend(["delete", "mark"]);
    let names = play.names();
    play.decrease(&names);
    play.to(play.now + SECOND);
    play.increase(1);
    assert_eq!((play.times("delete").len(), play.times("mark").len()), (2, 1), "both slots are in use");
    play.release("delete", None);
    assert_eq!((play.times("delete").len(), play.times("mark").len()), (2, 2));
}

#[test]
fn a_standby_vm_is_replaced_an_hour_before_its_lease_ends_or_in_the_last_quarter_of_a_shorter_one() {
    for (minutes, kept) in [(61, 45), (24 * 60, 23 * 60 - 1)] {
        let mut play = at_rest();
        play.vms[0].delete_at = Some(START + 50 * SECOND + minutes * MINUTE);
        play.to(kept * MINUTE);
        assert_eq!(play.deleted().len(), 0, "{minutes}");
        play.to((kept + 3) * MINUTE);
        assert_eq!(play.deleted().len(), 1, "{minutes}");
    }
}

#[test]
fn after_a_resume_with_dhcp_an_unchanged_address_is_used_later() {
    for (dhcp, changed, running_at) in [(true, false, 45), (true, true, 4), (false, false, 4)] {
        let mut play = at_rest_with(Policy { dhcp, ..standby_policy() });
        let rests = play.now;
        play.increase(1);
        play.show(Power::On, false);
        if changed {
            play.vms[0].address = Some([10, 9, 9, 9].into());
        }
        let runs = |play: &Play| play.states() == [State::Running];
        while !runs(&play) && play.now < rests + 120 * SECOND {
            let next = play.now + 500;
            play.to(next);
        }
        let took = (play.now - rests) / SECOND;
        assert!((running_at - 3..running_at + 12).contains(&took), "{dhcp} {changed}: {took} s");
    }
}

#[test]
fn a_new_guest_is_probed_as_soon_as_a_poll_shows_it() {
    let mut play = Play::new(play::policy(), Vec::new());
    play.to(4 * SECOND).increase(1);
    assert_eq!(play.times("probe"), [4 * SECOND]);
}

/// A job that begins before that would see a wrong time.
#[test]
fn a_resumed_guest_is_probed_when_its_clock_is_right() {
    let mut play = Play::suspended();
    play.tasks = TaskState::Success;
    play.to(4 * SECOND).show(Power::On, false).resume();
    play.until("probe", 1);
    let resumed = play.times("tasks")[0];
    assert_eq!(play.times("probe"), [resumed + 1_000]);
}
