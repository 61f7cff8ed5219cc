//! The results of polls and lookups, to the millisecond: missing, unhealthy, adopted, leftover or foreign vApps, and what
//! the shutdown waits for.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use crate::play::*;
use fleeting_plugin_vcd::cloud::*;
use fleeting_plugin_vcd::group::*;
use std::net::IpAddr;
use std::time::Duration;

// Polls.

#[test]
fn three_missed_polls_cause_a_lookup_and_each_lookup_that_finds_it_doubles_that_up_to_four_minutes() {
    let mut play = Play::running();
    play.hidden = true;
    assert_eq!(play.to(10 * SECOND).view().missed, 1);
    assert_eq!(play.before(30 * SECOND).view().missed, 2);
    assert_eq!(play.times("look"), [0; 0]);
    assert_eq!(play.to(30 * SECOND).view().missed, 0, "found");
    play.to(900 * SECOND);
    assert_eq!(play.times("look"), [30, 90, 210, 450, 690].map(|s| s * SECOND));
    // After one poll that shows it, three are needed again.
    play.hidden = false;
    assert_eq!(play.to(910 * SECOND).view().missed, 0);
    play.hidden = true;
    play.to(940 * SECOND);
    assert_eq!(play.times("look").last(), Some(&(940 * SECOND)));
    assert_eq!(play.states(), [State::Running]);
    play.documents.clear();
    play.before(1000 * SECOND);
    assert_eq!(play.states(), [State::Running]);
    play.to(1000 * SECOND);
    assert_eq!((play.states(), play.view().cause), (vec![State::Deleted], Some(Cause::Lost)));
}

#[test]
fn the_first_missed_poll_causes_a_lookup_if_polls_are_rare() {
    for (interval, first) in [(10, 30), (20, 40), (30, 30), (300, 300)] {
        let policy = Policy { reconcile_interval: Duration::from_secs(interval), ..policy() };
        let mut play = Play::new(policy, vec![vm(1)]);
        play.hidden = true;
        play.until("look", 1);
        assert_eq!(play.now, first * SECOND, "{interval}");
    }
}

#[test]
fn a_vapp_renamed_to_another_owned_name_is_not_touched() {
    let mut play = Play::running();
    play.hidden = true;
    for vapp in play.documents.values_mut() {
        (vapp.name, vapp.description) = (name(2), Some("taken over".into()));
    }
    play.to(60 * SECOND);
    assert_eq!((play.states(), play.deleted()), (vec![State::Deleted], vec![]));
    assert_eq!(play.said("has no owner tag of this instance: the plugin no longer manages it"), 1);
}

#[test]
fn a_poll_sent_before_a_vapp_was_known_does_not_count() {
    let mut play = Play::new(policy(), Vec::new());
    play.holds = vec!["poll", "create"];
    play.to(10 * SECOND);
    play.now = 12 * SECOND;
    play.group.increase(Time(play.now), 1);
    play.serve();
    play.hidden = true;
    play.release("create", None);
    play.release("poll", None);
    assert_eq!((play.view().missed, play.times("poll")), (0, vec![10 * SECOND, 12 * SECOND]));
    // Sent when the vApp became known.
    play.release("poll", None);
    assert_eq!(play.view().missed, 0);
    play.to(14 * SECOND).release("poll", None);
    assert_eq!(play.view().missed, 1);
}

#[test]
fn a_poll_that_is_older_than_the_last_record_does_not_count() {
    let mut play = Play::booting(|play| play.port = false);
    play.to(9 * SECOND).holds = vec!["poll"];
    while play.held.len() < 2 {
        play.to(play.now + SECOND);
    }
    // The one by name is answered first.
    let full = play.held.remove(0);
    assert_eq!((full.1.operation(), play.held[0].1.operation()), ("poll", "poll_some"));
    play.release("poll", None);
    play.held.push(full);
    play.hidden = true;
    play.release("poll", None);
    assert_eq!(play.view().missed, 0);
}

#[test]
fn failed_polls_are_repeated_with_growing_pauses_and_the_recovery_is_logged_once() {
    let mut play = Play::running();
    play.to(25 * SECOND);
    assert_eq!(play.said("VCD answers polls again"), 0);
    play.deaf = true;
    play.to(240 * SECOND);
    assert_eq!(play.times("poll"), [10, 20, 30, 40, 50, 60, 76, 108, 140, 172, 204, 236].map(|s| s * SECOND));
    assert_eq!(play.group.standing(Time(play.now)).failed_polls, 10);
    assert_eq!((play.states(), play.said("in their last known state")), (vec![State::Running], 10));
    play.deaf = false;
    play.to(300 * SECOND);
    assert_eq!(play.said("VCD answers polls again"), 1);
    assert_eq!(play.times("poll")[12..], [268, 278, 288, 298].map(|s| s * SECOND));
}

#[test]
fn of_two_vms_in_a_vapp_the_one_with_the_owner_tag_is_adopted() {
    for own_first in [true, false] {
        let other = Vm { vm: "m/other".into(), description: "somebody's".into(), power: Power::Off, ..vm(1) };
        let mut vms = vec![vm(1), other];
        if !own_first {
            vms.reverse();
        }
        let mut play = Play::new(policy(), vms);
        play.to(1);
        let adopted = (play.states(), play.said("found running: adopted"), play.times("look").len());
        assert_eq!(adopted, (vec![State::Running], 1, 0), "{own_first}");
    }
}

// Running instances.

#[test]
fn a_poll_decides_whether_a_running_instance_is_healthy() {
    let complete = Customization::Complete;
    for (power, busy, customization, ill) in [
        (Power::On, false, complete, None),
        (Power::On, true, complete, None),
        (
            Power::On,
            false,
            Customization::Failed,
            Some("guest customization failed after the VM was ready (GC_FAILED)"),
        ),
        (Power::Off, false, complete, Some("it is powered off")),
        (Power::Off, false, Customization::Failed, Some("it is powered off")),
        (Power::Off, true, complete, None),
        (Power::Suspended, false, complete, Some("it is suspended")),
        (Power::Suspended, true, complete, None),
        (Power::Failed, false, complete, Some("VCD reports it as failed")),
        (Power::Failed, true, complete, None),
        (Power::Other, false, complete, None),
    ] {
        let mut play = Play::running();
        play.to(1800 * SECOND - 1).show(power, busy);
        play.documents.get_mut(&href(1)).unwrap().power = power;
        play.vms[0].customization = customization;
        assert_eq!(play.health(), Ok(()));
        play.to(1800 * SECOND);
        assert_eq!(play.health().err().as_deref(), ill, "{power:?} {busy} {customization:?}");
        // Its suspend mark may show that an earlier process suspended it.
        let looks = usize::from(power == Power::Suspended && !busy);
        assert_eq!((play.states(), play.times("look").len()), (vec![State::Running], looks));
        assert_eq!(play.said(", not by the plugin: unhealthy"), usize::from(ill.is_some()));
        // Only a powered-on VM is healthy again, even while a task works on it.
        play.vms[0].customization = complete;
        for (power, busy) in [(Power::Other, false), (Power::Off, true), (Power::Other, false)] {
            let next = play.now + 10 * SECOND;
            play.show(power, busy).to(next);
            assert_eq!(play.health().err().as_deref(), ill);
        }
        let next = play.now + 10 * SECOND;
        play.show(Power::On, true).to(next);
        assert_eq!((play.health(), play.said("healthy again")), (Ok(()), usize::from(ill.is_some())));
    }
}

#[test]
fn an_instance_is_unhealthy_when_three_polls_do_not_know_its_power_state() {
    let mut play = Play::running();
    play.show(Power::Other, false).before(30 * SECOND);
    assert_eq!(play.health(), Ok(()));
    play.to(30 * SECOND);
    assert_eq!(play.health(), Err("VCD does not know its power state: its ESXi host may be down".into()));
}

#[test]
fn ten_unhealthy_minutes_end_an_instance() {
    let ill = |power: Power| {
        let mut play = Play::running();
        play.documents.get_mut(&href(1)).unwrap().power = power;
        play.to(5 * SECOND).show(Power::Off, false);
        play.before(610 * SECOND);
        assert_eq!((play.states(), play.deleted()), (vec![State::Running], vec![]));
        play.to(610 * SECOND);
        play
    };
    let play = ill(Power::Off);
    assert_eq!((play.states(), play.view().cause), (vec![State::Deleted], Some(Cause::Unhealthy)));
    // A lookup shows that the polls are wrong.
    let play = ill(Power::On);
    assert_eq!((play.states(), play.times("look").len(), play.said("healthy again")), (vec![State::Running], 1, 1));
    // So does one that shows a task as well.
    let mut play = Play::running();
    play.documents.get_mut(&href(1)).unwrap().busy = true;
    play.to(5 * SECOND).show(Power::Off, false).to(610 * SECOND);
    assert_eq!((play.states(), play.said("healthy again")), (vec![State::Running], 1));
    // What cannot be looked up is not kept for ever.
    let mut play = Play::running();
    play.fails = vec![("look", ErrorKind::Unavailable)];
    play.to(5 * SECOND).show(Power::Off, false).before(1210 * SECOND);
    assert_eq!((play.states(), play.times("look")[0]), (vec![State::Running], 610 * SECOND));
    play.to(1210 * SECOND);
    assert_eq!((play.states(), play.view().cause), (vec![State::Deleting], Some(Cause::Unhealthy)));
}

#[test]
fn a_lookup_shows_that_an_instance_is_down_unless_a_task_works_on_it() {
    for busy in [false, true] {
        let mut play = Play::running();
        play.hidden = true;
        let vapp = play.documents.get_mut(&href(1)).unwrap();
        (vapp.power, vapp.busy) = (Power::Off, busy);
        play.to(35 * SECOND);
        assert_eq!((play.times("look").len(), play.health().is_ok()), (1, busy));
    }
}

#[test]
fn an_outage_does_not_end_an_unhealthy_instance() {
    let mut play = Play::running();
    play.documents.get_mut(&href(1)).unwrap().power = Power::Off;
    play.to(5 * SECOND).show(Power::Off, false).before(610 * SECOND);
    play.fails = vec![("look", ErrorKind::Unavailable)];
    play.to(610 * SECOND).deaf = true;
    play.to(7200 * SECOND);
    assert_eq!((play.states(), play.times("look").len()), (vec![State::Running], 1));
    // An HA cluster has restarted it meanwhile.
    play.documents.get_mut(&href(1)).unwrap().power = Power::On;
    (play.deaf, play.fails) = (false, Vec::new());
    play.show(Power::On, false).to(7300 * SECOND);
    assert_eq!((play.states(), play.health()), (vec![State::Running], Ok(())));
}

#[test]
fn an_adopted_instance_that_is_suspended_and_cannot_be_looked_up_ends() {
    let mut play = Play::running();
    play.fails = vec![("look", ErrorKind::Unavailable)];
    play.show(Power::Suspended, false).to(60 * SECOND);
    assert_eq!((play.states(), play.health()), (vec![State::Running], Err("it is suspended".into())));
    play.to(1500 * SECOND);
    assert_eq!(play.states(), [State::Deleting]);
}

#[test]
fn failed_lookups_do_not_count_when_nothing_is_to_be_looked_up_any_more() {
    let mut play = Play::suspended();
    (play.hidden, play.fails) = (true, vec![("look", ErrorKind::Unavailable)]);
    play.to(80 * SECOND);
    assert!(play.times("look").len() > 3);
    assert_eq!(play.view().stuck, Some(Duration::from_millis(80 * SECOND - play.times("look")[1])));
    play.hidden = false;
    play.to(90 * SECOND);
    assert_eq!(play.view().stuck, None, "polls show it again");
}

#[test]
fn an_instance_that_others_suspend_is_unhealthy_and_not_reported_as_suspended() {
    let mut play = Play::running();
    let document = play.documents.get_mut(&href(1)).unwrap();
    (document.power, document.busy) = (Power::Suspended, true);
    play.to(15 * SECOND).show(Power::Suspended, false).to(21 * SECOND);
    assert_eq!((play.times("look").len(), play.health()), (1, Ok(())), "it may be resumed now");
    play.documents.get_mut(&href(1)).unwrap().busy = false;
    play.to(31 * SECOND);
    assert_eq!((play.states(), play.health()), (vec![State::Running], Err("it is suspended".into())));
    let mut play = Play::booting(|_| {});
    assert_eq!(play.to(10 * SECOND).states(), [State::Running]);
    play.show(Power::Suspended, false).to(30 * SECOND);
    assert_eq!((play.states(), play.health()), (vec![State::Running], Err("it is suspended".into())));
}

#[test]
fn an_instance_that_was_suspended_when_a_poll_still_showed_it_running_is_resumed() {
    // An earlier process suspended it.
    let mut play = Play::running();
    let document = play.documents.get_mut(&href(1)).unwrap();
    (document.power, document.mark) = (Power::Suspended, Mark::Suspended);
    play.show(Power::Suspended, false).to(15 * SECOND);
    assert_eq!((play.states(), play.times("power_on").len()), (vec![State::Resuming], 1), "{:?}", play.said);
    assert_eq!(play.said("unhealthy"), 0);
    // The host suspends it before a poll shows that somebody else has done so, and VCD writes no mark.
    let mut play = Play::running();
    play.holds = vec!["mark"];
    play.documents.get_mut(&href(1)).unwrap().power = Power::Suspended;
    play.to(15 * SECOND).show(Power::Suspended, false).suspend();
    let next = play.now + 10 * SECOND;
    play.to(next).fail("mark", ErrorKind::Forbidden);
    assert_eq!((play.states(), play.times("power_on").len()), (vec![State::Resuming], 1), "{:?}", play.said);
}

#[test]
fn an_instance_to_suspend_is_looked_up_if_it_is_already_suspended() {
    for (power, busy, looks, suspends, ill) in [
        (Power::On, false, 0, 1, false),
        (Power::Suspended, false, 1, 0, false),
        (Power::Suspended, true, 0, 1, false),
        (Power::Off, false, 0, 0, true),
        (Power::Failed, false, 0, 0, true),
        (Power::Other, false, 0, 1, false),
    ] {
        // A lookup at the start has shown it. VCD is not available, so that the suspend waits for a poll.
        let mut play = Play::new(policy(), vec![Vm { description: "".into(), ..vm(1) }]);
        play.holds = vec!["look"];
        play.deaf = true;
        play.to(15 * SECOND).suspend();
        let name = play.view().name;
        assert_eq!((play.states(), play.group.reach(&name).is_ok()), (vec![State::Suspending], false));
        assert_eq!(play.times("suspend"), [0; 0]);
        play.deaf = false;
        play.show(power, busy).to(20 * SECOND);
        let asked = (play.times("look").len() - 1, play.times("suspend").len());
        assert_eq!(asked, (looks, suspends), "{power:?} {busy}");
        assert_eq!(play.health().unwrap_err().contains("Suspending"), !ill, "{power:?} {busy}");
    }
}

#[test]
fn an_unhealthy_instance_is_suspended_when_it_is_powered_on_again() {
    for (power, suspends) in [(Power::On, 1), (Power::Other, 0), (Power::Suspended, 0)] {
        let mut play = Play::running();
        play.show(Power::Off, false).to(10 * SECOND);
        play.suspend();
        assert_eq!((play.health(), play.times("suspend")), (Err("it is powered off".into()), vec![]));
        play.show(power, false);
        play.documents.get_mut(&href(1)).unwrap().power = power;
        play.to(20 * SECOND);
        assert_eq!(play.times("suspend").len(), suspends, "{power:?}");
        assert_eq!(play.states()[0] == State::Suspended, power == Power::Suspended, "a lookup showed it");
    }
}

#[test]
fn an_instance_whose_customization_failed_late_can_be_suspended() {
    let mut play = Play::running();
    play.vms[0].customization = Customization::Failed;
    play.to(15 * SECOND).suspend();
    assert_eq!((play.health().is_err(), play.times("suspend")), (true, vec![15 * SECOND]));
}

#[test]
fn a_running_instance_keeps_the_address_that_vcd_no_longer_shows() {
    let mut play = Play::running();
    let reach = play.group.reach(&name(1));
    for (until, shown, said) in [(40, false, 1), (60, true, 1), (90, false, 2)] {
        play.vms[0].address = shown.then(|| IpAddr::from([10, 0, 0, 1]));
        play.to(until * SECOND);
        assert_eq!((play.group.reach(&name(1)), play.said("no longer shows its address")), (reach.clone(), said));
    }
    // Somebody powers it off and on.
    for (until, power) in [(110, Power::Off), (130, Power::On)] {
        play.show(power, false).to(until * SECOND);
        assert_eq!((play.group.reach(&name(1)), play.said("no longer shows its address")), (reach.clone(), 2));
    }
    assert_eq!(play.health(), Ok(()));
}

#[test]
fn a_vapp_with_a_new_owner_is_not_touched() {
    let (kept, theirs): (Name, &str) = ("kept".into(), "fleeting-plugin-vcd/1 manager=other group=g id=ci-00000001");
    for (renamed, description) in [(kept, tag(&name(1))), (name(1), theirs.to_string())] {
        let mut play = Play::running();
        let document = play.documents.get_mut(&href(1)).unwrap();
        (document.name, document.description) = (renamed.clone(), Some(description.clone()));
        (play.vms[0].vapp_name, play.vms[0].description) = (renamed, description.into());
        play.to(15 * SECOND).decrease(&[name(1)]);
        assert_eq!((play.states(), play.said("the plugin no longer manages it")), (vec![State::Deleted], 1));
        // Not even logged when its id is forgotten.
        play.to(900 * SECOND);
        assert_eq!((play.times("look"), play.deleted()), (vec![15 * SECOND], vec![]));
        assert_eq!((play.said("no longer manages it") + play.said("plugin ignores it"), play.strays().len()), (1, 0));
    }
}

// Suspended instances.

#[test]
fn three_polls_that_show_a_suspended_instance_on_cause_a_lookup() {
    let mut play = Play::suspended();
    play.to(45 * SECOND).show(Power::On, false).to(65 * SECOND).show(Power::Suspended, false);
    play.to(75 * SECOND).show(Power::On, false).to(95 * SECOND).show(Power::On, true);
    play.to(105 * SECOND).show(Power::On, false);
    play.before(130 * SECOND);
    assert_eq!((play.times("look"), play.states()), (vec![0], vec![State::Suspended]));
    play.to(130 * SECOND);
    assert_eq!((play.times("look"), play.states()), (vec![0, 130 * SECOND], vec![State::Suspended]));
    // The lookup showed it suspended: three more polls are needed.
    play.documents.get_mut(&href(1)).unwrap().power = Power::On;
    play.before(160 * SECOND);
    assert_eq!(play.times("look").len(), 2);
    play.to(160 * SECOND);
    assert_eq!(play.times("look"), [0, 130 * SECOND, 160 * SECOND]);
    assert_eq!((play.states(), play.said("resumed outside the plugin")), (vec![State::Resuming], 1));
    assert_eq!(play.to(162 * SECOND).states(), [State::Running]);
}

#[test]
fn a_suspended_instance_that_is_off_has_lost_its_memory() {
    for (power, busy, ill) in [
        (Power::Off, false, Some("it is powered off")),
        (Power::Failed, false, Some("VCD reports it as failed")),
        (Power::Off, true, None),
        (Power::Other, false, None),
        (Power::Suspended, false, None),
    ] {
        let mut play = Play::suspended();
        let healthy = play.health().err();
        play.show(power, busy).to(30 * SECOND);
        let seen = play.health().err();
        assert_eq!(seen.as_deref(), ill.or(healthy.as_deref()), "{power:?} {busy}");
        assert_eq!(play.said("its memory is lost"), usize::from(ill.is_some()));
        play.show(Power::Suspended, false).to(40 * SECOND);
        assert_eq!((play.health().err(), play.states()), (healthy, vec![State::Suspended]));
    }
    let lost = |power: Power| {
        let mut play = Play::suspended();
        play.documents.get_mut(&href(1)).unwrap().power = power;
        play.show(Power::Off, false).before(610 * SECOND);
        assert_eq!(play.states(), [State::Suspended]);
        play.to(610 * SECOND);
        (play.states(), play.view().cause)
    };
    assert_eq!(lost(Power::Off), (vec![State::Deleted], Some(Cause::Unhealthy)));
    assert_eq!(lost(Power::Suspended), (vec![State::Suspended], None), "the polls are wrong");
}

#[test]
fn only_lookups_show_whether_an_instance_is_still_suspended() {
    let mut play = Play::suspended();
    let health = play.health();
    play.hidden = true;
    play.to(1200 * SECOND);
    assert!(play.times("look").len() > 3, "{:?}", play.times("look"));
    assert_eq!((play.states(), play.health(), play.said("not by the plugin")), (vec![State::Suspended], health, 0));
    play.documents.get_mut(&href(1)).unwrap().power = Power::Off;
    let looks = play.times("look").len();
    play.until("look", looks + 1);
    assert_eq!((play.states(), play.health()), (vec![State::Suspended], Err("it is powered off".into())));
    play.to(play.now + 610 * SECOND);
    assert_eq!((play.states(), play.view().cause), (vec![State::Deleted], Some(Cause::Unhealthy)));
}

#[test]
fn a_mark_that_may_be_gone_is_written_again_before_a_suspend() {
    let mut play = Play::suspended();
    play.resume();
    (play.holds, play.tasks) = (vec!["mark", "suspend"], TaskState::Success);
    play.show(Power::On, false);
    play.documents.get_mut(&href(1)).unwrap().power = Power::On;
    play.until("mark", 1);
    assert_eq!(play.states(), [State::Running]);
    assert!(matches!(play.held.last(), Some((_, Request::Mark { mark: Mark::Running, .. }))), "{:?}", play.held);
    play.suspend();
    // Perhaps it was deleted.
    play.fail("mark", ErrorKind::Ambiguous);
    play.until("mark", 2);
    assert!(matches!(play.held.last(), Some((_, Request::Mark { mark: Mark::Suspended, .. }))), "{:?}", play.held);
    assert_eq!(play.times("suspend"), [0; 0]);
    play.release("mark", None);
    assert_eq!(play.times("suspend").len(), 1);
}

#[test]
fn a_vm_that_polls_showed_off_during_a_failed_suspend_runs_on_if_it_is_on() {
    let mut play = Play::running();
    play.holds = vec!["suspend"];
    play.suspend();
    play.show(Power::Off, false).to(15 * SECOND);
    assert_eq!(play.health(), Err("it is powered off".into()));
    play.resume();
    play.fail("suspend", ErrorKind::Failed);
    assert_eq!(play.states(), [State::Running]);
    play.show(Power::On, false).to(20 * SECOND);
    assert_eq!((play.states(), play.health()), (vec![State::Running], Ok(())));
}

#[test]
fn a_mark_is_written_again_if_a_found_task_may_be_another_one() {
    let mut play = Play::running();
    play.holds = vec!["mark"];
    play.suspend();
    play.documents.get_mut(&href(1)).unwrap().tasks = vec!["t/9".into()];
    play.fail("mark", ErrorKind::Ambiguous);
    play.to(5 * SECOND).tasks = TaskState::Success;
    play.to(10 * SECOND);
    assert_eq!((play.times("mark").len(), play.times("suspend").len()), (2, 0));
}

#[test]
fn the_end_of_a_suspend_mark_is_tried_three_times() {
    let mut play = Play::suspended();
    (play.holds, play.tasks) = (vec!["mark"], TaskState::Success);
    play.resume();
    play.show(Power::On, false);
    for times in 1..=3 {
        play.until("mark", times);
        play.fail("mark", ErrorKind::Failed);
    }
    play.to(1200 * SECOND);
    assert_eq!((play.times("mark").len(), play.states(), play.view().stuck), (3, vec![State::Running], None));
}

#[test]
fn polls_do_not_count_during_a_resume() {
    let mut play = Play::suspended();
    play.holds = vec!["power_on"];
    play.resume();
    play.show(Power::Off, false).to(30 * SECOND);
    assert_eq!((play.states(), play.health()), (vec![State::Resuming], Ok(())));
    assert_eq!(play.times("look"), [0], "the owner is unknown");
}

#[test]
fn a_resumed_instance_is_looked_up_when_three_polls_show_it_down() {
    let mut play = Play::suspended();
    play.tasks = TaskState::Success;
    play.resume();
    play.to(SECOND);
    assert_eq!((play.states(), play.times("power_on")), (vec![State::Resuming], vec![0]));
    play.documents.get_mut(&href(1)).unwrap().power = Power::On;
    let first = play.times("poll").len();
    play.until("poll", first + 2);
    assert_eq!(play.times("look"), [0], "polls lag");
    play.until("poll", first + 3);
    assert_eq!(play.times("look"), [0, play.now]);
    assert_eq!(play.states(), [State::Resuming], "it is on");
    play.documents.get_mut(&href(1)).unwrap().power = Power::Off;
    play.until("poll", first + 5);
    assert_eq!(play.times("look").len(), 2);
    play.until("poll", first + 6);
    assert_eq!((play.view().cause, play.said("it is powered off")), (Some(Cause::Unhealthy), 1));
}

#[test]
fn an_instance_whose_resume_may_have_worked_is_not_given_up() {
    let mut play = Play::suspended();
    play.holds = vec!["power_on"];
    play.resume();
    play.holds = vec!["look"];
    play.release("power_on", Some(Err(error(ErrorKind::Ambiguous))));
    play.to(7200 * SECOND);
    assert_eq!((play.states(), play.times("look").len(), play.deleted()), (vec![State::Resuming], 2, vec![]));
    play.documents.get_mut(&href(1)).unwrap().power = Power::On;
    play.show(Power::On, false);
    play.release("look", None);
    play.to(7260 * SECOND);
    assert_eq!((play.states(), play.deleted()), (vec![State::Running], vec![]));
}

// Booting instances.

#[test]
fn three_polls_that_show_a_booting_instance_down_cause_a_lookup_that_ends_its_boot() {
    let mut play = Play::booting(|play| play.port = false);
    // Polls that lag: a lookup shows it powered on.
    play.show(Power::Off, false).to(20 * SECOND);
    assert_eq!((play.states(), play.times("look").len(), play.deleted()), (vec![State::Creating], 4, vec![]));
    let mut play = Play::booting(|play| play.port = false);
    play.documents.values_mut().for_each(|vapp| vapp.power = Power::Suspended);
    play.show(Power::Off, false).to(4 * SECOND).show(Power::On, false).to(6 * SECOND);
    play.show(Power::Off, false).to(10 * SECOND).show(Power::Off, true).to(12 * SECOND);
    play.show(Power::Failed, false).to(16 * SECOND).show(Power::Other, false).to(18 * SECOND);
    play.show(Power::Suspended, false).before(24 * SECOND);
    assert_eq!((play.states(), play.deleted()), (vec![State::Creating], vec![]));
    let first = play.vms[0].vapp.clone();
    play.to(24 * SECOND);
    assert_eq!((play.states(), play.deleted()), (vec![State::Creating], vec![&*first]));
    assert_eq!((play.said("it is suspended"), play.times("create")), (1, vec![0]));
    play.to(60 * SECOND);
    assert_eq!(play.times("create").len(), 2, "created again");
}

#[test]
fn a_lookup_decides_even_if_more_polls_contradict_before_its_answer() {
    let down = |play: &mut Play, polls: usize| {
        play.port = false;
        play.documents.values_mut().for_each(|vapp| vapp.power = Power::Off);
        play.show(Power::Off, false).holds = vec!["look"];
        let before = play.times("poll").len();
        play.until("poll", before + polls);
        assert_eq!(play.held.len(), 1);
        play.release("look", None);
    };
    for polls in 3..=6 {
        let mut boots = Play::booting(|play| play.port = false);
        down(&mut boots, polls);
        assert_eq!(boots.deleted().len(), 1, "{polls}");
        let mut returns = Play::suspended();
        returns.tasks = TaskState::Success;
        returns.resume();
        returns.to(SECOND);
        down(&mut returns, polls);
        assert_eq!(returns.view().cause, Some(Cause::Unhealthy), "{polls}");
        // Somebody else's task on an instance that is to be suspended.
        let mut play = Play::running();
        play.deaf = true;
        play.to(15 * SECOND).suspend();
        (play.deaf, play.holds) = (false, vec!["look"]);
        play.documents.get_mut(&href(1)).unwrap().tasks = vec!["t/9".into()];
        let before = play.times("poll").len();
        play.show(Power::Suspended, false).until("poll", before + polls);
        play.release("look", None);
        assert_eq!(play.times("mark"), [0; 0], "{polls}");
    }
}

#[test]
fn an_old_guest_is_adopted_by_what_its_customization_reports() {
    for (customization, state, healthy) in [
        (Customization::Complete, State::Running, true),
        (Customization::Pending, State::Running, true),
        (Customization::Failed, State::Running, false),
        (Customization::Working, State::Creating, true),
    ] {
        let created = Some(START - 300 * SECOND);
        let mut play = Play::new(policy(), vec![Vm { customization, created, ..vm(1) }]);
        assert_eq!((play.states(), play.health().is_ok()), (vec![state], healthy), "{customization:?}");
    }
}

#[test]
fn a_vm_of_the_first_poll_is_adopted_even_if_vcds_dates_are_ahead() {
    let play = Play::new(policy(), vec![Vm { created: Some(START + 600 * SECOND), ..vm(1) }]);
    assert_eq!(play.states(), [State::Running]);
}

#[test]
fn an_adopted_instance_whose_customization_fails_is_given_up() {
    let created = Some(START - 70 * SECOND);
    let mut play = Play::new(policy(), vec![Vm { customization: Customization::Pending, created, ..vm(1) }]);
    assert_eq!(play.states(), [State::Creating]);
    play.vms[0].customization = Customization::Failed;
    play.to(60 * SECOND);
    assert_eq!(
        (play.view().cause, play.deleted(), play.times("create")),
        (Some(Cause::Unhealthy), vec!["v/1"], vec![])
    );
}

#[test]
fn polls_are_more_frequent_while_they_show_changes() {
    let gaps = |play: &Play, from: u64| -> Vec<u64> {
        let polls: Vec<u64> = play.times("poll").into_iter().filter(|&at| at >= from).collect();
        polls.windows(2).map(|pair| (pair[1] - pair[0]) / SECOND).collect()
    };
    // An address, but no customization: 2 s at first, 3 s after two minutes without news.
    let mut play = Play::new(Policy { reconcile_interval: Duration::from_secs(86_400), ..policy() }, Vec::new());
    play.port = false;
    play.increase(1);
    play.vms[0].customization = Customization::Working;
    play.to(150 * SECOND);
    let seen = gaps(&play, 0);
    assert_eq!((seen[0], *seen.last().unwrap()), (2, 3), "{seen:?}");
    let slow = seen.iter().position(|&gap| gap == 3).unwrap();
    assert_eq!((play.times("poll")[slow], seen.len() - slow), (120 * SECOND, 10), "the last news came at 2 s");
    for change in [
        |vm: &mut Vm| vm.customization = Customization::Complete,
        |vm: &mut Vm| vm.address = None,
        |vm: &mut Vm| vm.power = Power::Other,
    ] {
        let from = play.now + 3 * SECOND;
        change(&mut play.vms[0]);
        play.to(from + 40 * SECOND);
        assert!(gaps(&play, from).iter().all(|&gap| gap == 2), "{:?}", gaps(&play, from));
        play.to(from + 125 * SECOND);
        assert_eq!(gaps(&play, from).last(), Some(&3));
    }
}

#[test]
fn a_guest_without_customization_is_probed_slowly_until_it_reports() {
    let mut play = Play::booting(|play| play.port = false);
    play.vms[0].customization = Customization::Pending;
    play.to(79 * SECOND);
    assert_eq!(play.times("probe"), [60, 65, 70, 75].map(|s| s * SECOND));
    // The pause between slow probes ends with the poll that shows its report.
    play.vms[0].customization = Customization::Complete;
    play.to(84 * SECOND);
    let probes = play.times("probe");
    assert!(play.times("poll").contains(&probes[5 - 1]) || probes[4] == 80 * SECOND, "{probes:?}");
    play.port = true;
    play.to(86 * SECOND);
    assert_eq!(play.states(), [State::Running]);

    let mut play = Play::booting(|play| play.port = false);
    play.vms[0].customization = Customization::Pending;
    // The slow probe of 75 s is followed by one with the poll of 76 s or 77 s.
    play.to(75 * SECOND);
    play.vms[0].customization = Customization::Complete;
    play.to(78 * SECOND);
    let next = play.times("probe")[4];
    assert!(next < 78 * SECOND && play.times("poll").contains(&next), "{:?}", play.times("probe"));
}

#[test]
fn a_guest_without_customization_must_keep_its_address() {
    let taken = |change: fn(&mut Vm), back: bool| {
        let mut play = Play::booting(|_| {});
        play.vms[0].customization = Customization::Pending;
        play.to(100 * SECOND);
        let before = play.vms[0].clone();
        change(&mut play.vms[0]);
        play.to(103 * SECOND);
        assert_eq!(play.states(), [State::Creating]);
        if back {
            play.vms[0] = before;
        }
        while play.states() == [State::Creating] && play.now < 300 * SECOND {
            play.to(play.now + SECOND);
        }
        play.now / SECOND
    };
    assert_eq!(taken(|_| {}, false), 125);
    for (again, what) in [
        (taken(|vm| vm.address = Some(IpAddr::from([10, 0, 0, 9])), false), "another address"),
        (taken(|vm| vm.customization = Customization::Working, true), "it reported"),
        (taken(|vm| vm.address = None, true), "no address"),
    ] {
        assert!((160..=170).contains(&again), "{what}: {again}");
    }
}

// Found vApps.

#[test]
fn a_complete_vm_is_adopted_at_the_start() {
    let old = |seconds: u64| Some(START - seconds * SECOND);
    let silent = Vm { customization: Customization::Pending, ..vm(1) };
    let windows = Vm { guest_os: "Microsoft Windows 11".into(), ..silent.clone() };
    for (vm, states) in [
        (vm(1), vec![State::Running]),
        (Vm { customization: Customization::Unknown, ..vm(1) }, vec![State::Running]),
        (Vm { power: Power::Suspended, ..vm(1) }, vec![State::Suspended]),
        (Vm { power: Power::Suspended, address: None, ..silent.clone() }, vec![State::Suspended]),
        (Vm { address: None, ..vm(1) }, vec![]),
        (Vm { power: Power::Off, ..vm(1) }, vec![]),
        (Vm { power: Power::Other, ..vm(1) }, vec![]),
        (silent.clone(), vec![]),
        (Vm { created: old(60).map(|ms| ms + 1), ..silent.clone() }, vec![]),
        (Vm { created: old(60), ..silent.clone() }, vec![State::Creating]),
        (Vm { created: old(120).map(|ms| ms + 1), ..silent.clone() }, vec![State::Creating]),
        (Vm { created: old(120), ..silent.clone() }, vec![State::Running]),
        (Vm { created: old(9999), address: None, ..silent.clone() }, vec![]),
        (Vm { created: old(59), ..windows.clone() }, vec![]),
        (Vm { created: old(359), ..windows.clone() }, vec![State::Creating]),
        (Vm { created: old(360), ..windows }, vec![State::Running]),
    ] {
        let mut play = Play::holding(policy(), vec![vm.clone()], &["look"]);
        let suspended = vm.power == Power::Suspended;
        if suspended {
            assert!(play.states().is_empty(), "a lookup shows whether the plugin suspended it");
            play.release("look", None);
        }
        assert_eq!(play.states(), states, "{vm:?}");
        assert_eq!(play.times("look").len(), usize::from(states.is_empty() || suspended), "{vm:?}");
        assert_eq!(play.group.knows_its_own(), !states.is_empty());
        let said = match states.first() {
            Some(State::Suspended) => "found suspended: adopted",
            Some(State::Running) => "found running: adopted",
            _ => "guest customization pending: adopted",
        };
        assert_eq!((play.said("adopted"), play.said(said)), (states.len(), states.len()));
    }
    // Only with the suspend mark, and only by a process that may suspend.
    for (suspend_resume, marked, kept) in [(true, true, true), (true, false, false), (false, true, false)] {
        let policy = Policy { suspend_resume, ..policy() };
        let mut play = Play::holding(policy, vec![Vm { power: Power::Suspended, ..vm(1) }], &["look"]);
        play.documents.get_mut(&href(1)).unwrap().mark = if marked { Mark::Suspended } else { Mark::Running };
        play.release("look", None);
        assert_eq!((play.states().len(), play.deleted().len()), (usize::from(kept), usize::from(!kept)));
    }
    let play = Play::new(policy(), vec![Vm { created: old(70), ..vm(1) }]);
    assert_eq!(play.view().age, Duration::from_secs(70));
}

#[test]
fn only_the_lookup_of_an_undecided_vapp_includes_its_guest() {
    let undecided = Play::new(policy(), vec![Vm { description: "".into(), ..vm(1) }]);
    for (play, includes) in [(undecided, true), (Play::booting(|_| {}), false)] {
        let looks = play.asked.iter().filter_map(|(.., request)| match request {
            Some(Request::Look { guest, .. }) => Some(*guest),
            _ => None,
        });
        assert_eq!(looks.collect::<Vec<bool>>(), [includes]);
    }
}

#[test]
fn an_instance_with_other_credentials_is_unhealthy() {
    for (described, of_today) in [(tag(&name(1)) + " credentials=abcd", true), (tag(&name(1)), false)] {
        for at_once in [true, false] {
            // By the record, or by the document if the record does not show it.
            let record = if at_once { described.clone() } else { String::new() };
            let vms = vec![Vm { description: record.into(), ..vm(1) }];
            let mut play = Play::holding(Policy { credentials: "abcd".into(), ..policy() }, vms, &["look"]);
            play.documents.get_mut(&href(1)).unwrap().description = Some(described.clone());
            if !at_once {
                assert_eq!(play.states(), []);
                play.release("look", None);
            }
            assert_eq!(play.states(), [State::Running]);
            assert_eq!(play.health().is_ok(), of_today);
            assert_eq!(play.said("created with other credentials"), usize::from(!of_today));
        }
    }
}

#[test]
fn a_lookup_shows_what_a_record_does_not() {
    let untold = || Vm { description: "".into(), ..vm(1) };
    let mut play = Play::holding(policy(), vec![untold()], &["look"]);
    assert!(play.states().is_empty() && !play.group.knows_its_own());
    play.release("look", None);
    assert!(play.group.knows_its_own());
    assert_eq!((play.states(), play.deleted()), (vec![State::Running], vec![]));

    // Its document shows it powered off: a leftover, whatever the record showed.
    let mut play = Play::holding(policy(), vec![untold()], &["look"]);
    play.documents.get_mut(&href(1)).unwrap().power = Power::Off;
    play.release("look", None);
    assert_eq!((play.states(), play.deleted()), (vec![], vec!["v/1"]));
    assert!(play.group.knows_its_own() && play.strays().is_empty());

    // The vApp is foreign.
    let mut play = Play::holding(policy(), vec![untold(), Vm { description: "".into(), ..vm(2) }], &[]);
    assert_eq!(play.states().len(), 2);
    let mut others = Play::holding(policy(), play.vms.clone(), &["look"]);
    for vapp in others.documents.values_mut() {
        vapp.description = Some("another's".into());
    }
    others.release("look", None);
    others.release("look", None);
    assert_eq!((others.states(), others.strays(), others.said("plugin ignores it")), (vec![], vec![], 2));
    others.to(100 * SECOND);
    assert_eq!((others.times("look").len(), others.said("plugin ignores it"), others.deleted()), (2, 2, vec![]));

    // The vApp is gone.
    play.holds = vec!["look"];
    let mut gone = Play::holding(policy(), vec![untold()], &["look"]);
    gone.documents.clear();
    gone.vms.clear();
    gone.release("look", None);
    assert_eq!((gone.states(), gone.strays(), gone.said("plugin ignores it")), (vec![], vec![], 0));
    assert!(gone.group.knows_its_own());
}

/// A delete of an earlier process continues for a moment, and the record of the vApp does not show why it is busy.
#[test]
fn a_vapp_that_is_being_deleted_is_not_adopted() {
    for deleting in [true, false] {
        let mut play = Play::holding(policy(), vec![Vm { busy: true, ..vm(1) }], &["look"]);
        assert!(play.states().is_empty() && !play.group.knows_its_own(), "it is looked up first");
        let document = play.documents.get_mut(&href(1)).unwrap();
        (document.tasks, document.deleting, document.busy) = (vec!["t/9".into()], deleting, true);
        play.release("look", None);
        assert!(play.group.knows_its_own());
        let states = if deleting { vec![] } else { vec![State::Running] };
        assert_eq!((play.states(), play.deleted()), (states, vec![]), "no second request while the task runs");
        assert_eq!(play.strays().len(), usize::from(deleting));
    }
}

/// A person deletes it in VCD's pages, or a request of an earlier process is carried out late.
#[test]
fn an_instance_whose_vapp_vcd_deletes_is_not_used_and_not_deleted_twice() {
    let mut play = Play::running();
    play.tasks = TaskState::Running;
    let document = play.documents.get_mut(&href(1)).unwrap();
    (document.tasks, document.deleting, document.busy) = (vec!["t/9".into()], true, true);
    play.hidden = true;
    play.until("look", 1);
    assert_eq!((play.states(), play.said("VCD deletes its vApp")), (vec![State::Deleting], 1));
    play.to(5 * 60 * SECOND);
    assert_eq!(play.deleted(), [""; 0], "its task runs");
    play.documents.clear();
    play.tasks = TaskState::Success;
    play.to(6 * 60 * SECOND);
    assert_eq!((play.states(), play.deleted()), (vec![State::Deleted], vec![]));
}

#[test]
fn an_instance_whose_vm_is_deleted_while_the_task_of_its_mark_hangs_is_lost() {
    let mut play = Play::running();
    play.suspend();
    play.tasks = TaskState::Failed(error(ErrorKind::Failed));
    play.holds = vec!["mark"];
    play.to(5 * SECOND);
    play.tasks = TaskState::Running;
    play.begin("mark", None, "t/2");
    assert_eq!(play.states(), [State::Running]);
    let document = play.documents.get_mut(&href(1)).unwrap();
    (document.vms, document.made, document.tasks, document.busy) = (vec![], None, vec!["t/2".into()], true);
    play.hidden = true;
    assert_eq!(play.to(29 * SECOND).times("look"), [0], "polls have shown it before");
    play.to(5 * 60 * SECOND);
    assert_eq!((play.states(), play.said("its VM is no longer in its vApp")), (vec![State::Deleting], 1));
}

#[test]
fn a_create_that_polls_do_not_show_is_not_looked_up_while_its_task_runs() {
    let mut play = Play::holding(policy(), Vec::new(), &["create"]);
    (play.tasks, play.hidden) = (TaskState::Running, true);
    play.increase(1);
    play.begin("create", Some("v/9".into()), "t/1");
    assert_eq!(play.to(2 * 60 * SECOND).times("look"), [0; 0]);
}

#[test]
fn a_create_whose_vapp_vcd_deletes_fails_without_a_second_delete() {
    let mut play =
        Play::booting(|play| (play.port, play.holds, play.tasks) = (false, vec!["look"], TaskState::Running));
    let document = play.documents.values_mut().next().unwrap();
    (document.tasks, document.deleting, document.busy) = (vec!["t/9".into()], true, true);
    play.release("look", None);
    assert_eq!(play.said("VCD deletes its vApp"), 1);
    play.to(2 * 60 * SECOND);
    assert_eq!((play.states(), play.deleted()), (vec![State::Creating], vec![]), "its task runs");
}

/// The task that a lookup showed may not be the one that runs now.
#[test]
fn an_instance_that_was_busy_is_looked_up_before_its_delete() {
    let mut play = Play::running();
    let document = play.documents.get_mut(&href(1)).unwrap();
    (document.tasks, document.busy) = (vec!["t/9".into()], true);
    play.hidden = true;
    play.until("look", 1);
    play.hidden = false;
    assert_eq!(play.states(), [State::Running]);
    play.tasks = TaskState::Running;
    play.documents.get_mut(&href(1)).unwrap().deleting = true;
    play.decrease(&[name(1)]);
    assert_eq!(play.deleted(), [""; 0], "VCD deletes it");
}

/// The suspend mark shows whether the host requested the suspend of an earlier process.
#[test]
fn a_vapp_that_is_being_suspended_is_adopted_as_suspended_if_it_is_marked() {
    for (mark, states) in [(Mark::Suspended, vec![State::Suspended]), (Mark::Running, vec![])] {
        let mut play = Play::holding(policy(), vec![Vm { busy: true, ..vm(1) }], &["look"]);
        let document = play.documents.get_mut(&href(1)).unwrap();
        (document.busy, document.suspending, document.tasks) = (true, true, vec!["t/9".into()]);
        document.mark = mark;
        play.release("look", None);
        assert_eq!((play.states(), play.group.knows_its_own()), (states, true));
    }
}

/// A record shows a foreign vApp with the name and tag of this group, at the start or later, or an owned vApp has a new
/// owner: the vApp's own document decides, whatever the host requests.
#[test]
fn a_vapp_that_only_a_record_shows_as_owned_is_not_touched() {
    let others = |play: &mut Play| {
        let document = play.documents.values_mut().next().unwrap();
        document.description = Some("fleeting-plugin-vcd/1 manager=another group=g id=ci-00000001".into());
    };
    let changes = |play: &Play| -> Vec<&'static str> {
        let changes = |request: &Option<Request>| request.as_ref().is_some_and(Request::changes);
        play.asked.iter().filter(|(_, _, request)| changes(request)).map(|(_, operation, _)| *operation).collect()
    };
    type Act = fn(&mut Play);
    let acts: [Act; 4] = [
        |play| drop(play.group.decrease(Time(play.now), &[name(1)])),
        |play| drop(play.group.suspend(Time(play.now), &[name(1)])),
        |play| play.group.shutdown(Time(play.now)),
        |play| {
            // Older than twice the maximum age.
            play.to(3 * 3600 * SECOND);
        },
    ];
    for act in acts {
        let aging = Policy { max_instance_age: Duration::from_secs(3600), ..policy() };
        let mut play = Play::new(aging, vec![vm(1)]);
        others(&mut play);
        act(&mut play);
        let now = play.now;
        play.to(now + 30 * SECOND);
        assert_eq!((play.times("look").len(), play.said("no longer manages it")), (1, 1));
        assert_eq!(changes(&play), [""; 0]);
        assert_ne!(play.states().first(), Some(&State::Running));
    }
    // It appears later, and is looked up then.
    let mut play = Play::new(policy(), Vec::new());
    play.vms.push(vm(1));
    play.documents.insert(href(1), vapp(&vm(1)));
    others(&mut play);
    play.to(100 * SECOND);
    assert_eq!((changes(&play), play.times("look").len(), play.said("plugin ignores it")), (vec![], 1, 1));
}

#[test]
fn a_guest_that_has_failed_is_not_ready_whatever_its_last_probe_says() {
    let mut play = Play::booting(|play| play.holds = vec!["probe", "delete"]);
    play.until("probe", 1);
    play.vms[0].customization = Customization::Failed;
    play.until("delete", 1);
    play.probed();
    assert_eq!((play.states(), play.said("running, ")), (vec![State::Creating], 0), "{:?}", play.said);
}

/// A person has added a note to its VM's text, or has moved a VM of another manager into the vApp.
#[test]
fn only_the_vapps_document_shows_the_owner_if_the_text_of_its_vm_is_odd() {
    let noted = Vm { description: format!("{}, be careful", tag(&name(1))).into(), ..vm(1) };
    let text = "fleeting-plugin-vcd/1 manager=x group=g id=ci-00000009";
    let others = Vm { vm: "m/other".into(), description: text.into(), ..vm(1) };
    for vms in [
        vec![noted.clone()],
        vec![noted.clone(), others.clone()],
        vec![others.clone(), noted],
        vec![others.clone(), vm(1)],
        vec![vm(1), others.clone()],
    ] {
        let mut play = Play::holding(policy(), vms, &["look"]);
        play.documents.insert(href(1), vapp(&vm(1)));
        if !play.held.is_empty() {
            play.release("look", None);
        }
        assert_eq!(play.states(), [State::Running], "{:?}", play.said);
    }
    // Polls do not show its own VM yet.
    let mut play = Play::holding(policy(), vec![others], &["look"]);
    assert_eq!(play.states(), []);
    play.documents.insert(href(1), vapp(&vm(1)));
    play.release("look", None);
    assert_eq!(play.states(), [State::Running], "{:?}", play.said);
}

/// The process of which the host requested it has died. VCD carries out its suspend after the next process has looked it up.
#[test]
fn an_instance_that_a_dead_process_suspends_late_is_resumed() {
    let mut play = Play::new(policy(), vec![Vm { busy: true, ..vm(1) }]);
    assert_eq!((play.states(), play.times("look")), (vec![State::Running], vec![0]));
    let document = play.documents.get_mut(&href(1)).unwrap();
    (document.power, document.mark) = (Power::Suspended, Mark::Suspended);
    play.show(Power::Suspended, false).to(11 * SECOND);
    assert_eq!((play.states(), play.times("power_on").len()), (vec![State::Resuming], 1), "{:?}", play.said);
}

#[test]
fn a_vapp_with_a_persons_vm_is_not_suspended() {
    let mut play = Play::running();
    play.vms.push(Vm { vm: "m/other".into(), description: "a person's".into(), ..vm(1) });
    let mut moved = Play::running();
    moved.vms.clone_from(&play.vms);
    play.documents.get_mut(&href(1)).unwrap().vms.push("m/other".into());
    play.to(11 * SECOND).suspend();
    assert_eq!((play.states(), play.times("suspend"), play.said("another VM")), (vec![State::Running], vec![], 1));
    // It is no longer there.
    moved.to(11 * SECOND).suspend();
    assert_eq!((moved.states(), moved.times("suspend")), (vec![State::Suspending], vec![11 * SECOND]));
}

/// Created here and looked up; then a poll shows it as foreign.
#[test]
fn an_instance_that_a_poll_shows_as_foreign_is_looked_up_before_its_delete() {
    let taken: [fn(&mut Vm); 4] = [
        |vm| vm.description = tag(&name(7)).into(),
        |vm| vm.description = "a person's".into(),
        |vm| vm.vapp_name = "ci-of-another-pattern".into(),
        |vm| vm.vapp_name = "ci-keep1234".into(),
    ];
    for (at, take) in taken.iter().enumerate() {
        for kept in [true, false] {
            let mut play = Play::booting(|_| {});
            assert_eq!(play.to(10 * SECOND).states(), [State::Running]);
            let (looks, id) = (play.times("look").len(), play.vms[0].vapp_name.clone());
            take(&mut play.vms[0]);
            if !kept {
                play.documents.values_mut().for_each(|vapp| vapp.description = Some("another's".into()));
            }
            play.to(30 * SECOND);
            assert_eq!((play.states(), play.times("look").len()), (vec![State::Running], looks), "{at}");
            play.group.decrease(Time(play.now), &[id]);
            play.to(40 * SECOND);
            assert_eq!((play.times("look").len(), play.deleted().len()), (looks + 1, usize::from(kept)), "{at}");
            assert_eq!(play.states(), [State::Deleted]);
        }
    }
}

#[test]
fn a_text_that_a_lookup_has_seen_through_is_not_looked_up_again_until_it_changes() {
    for (text, looks) in [("a person's", 1), ("another person's", 2)] {
        let mut play = Play::booting(|_| {});
        play.vms[0].description = "a person's".into();
        assert_eq!(play.to(20 * SECOND).states(), [State::Running]);
        let before = play.times("look").len();
        play.suspend();
        play.to(30 * SECOND).resume();
        play.vms[0].description = text.into();
        play.to(60 * SECOND);
        let names = play.names();
        play.fails = vec![("tasks", ErrorKind::Unavailable)];
        play.decrease(&names);
        play.to(120 * SECOND);
        assert_eq!(play.times("look").len() - before, looks, "{text}");
    }
}

#[test]
fn a_vapp_with_the_metadata_entry_that_a_person_renames_is_not_touched() {
    let mut play = Play::booting(|_| {});
    assert_eq!((play.to(60 * SECOND).states(), play.times("label").len()), (vec![State::Running], 1));
    let id = play.vms[0].vapp_name.clone();
    play.vms[0].vapp_name = name(7);
    play.documents.values_mut().for_each(|vapp| vapp.name = name(7));
    play.to(80 * SECOND).decrease(&[id]);
    play.to(90 * SECOND);
    assert_eq!((play.states(), play.deleted()), (vec![State::Deleted], vec![]));
}

#[test]
fn the_metadata_entry_needs_a_document_that_does_not_contradict() {
    let odd = Vm { description: "a template's".into(), ..vm(1) };
    for (labelled, bears, description, adopted) in [
        (true, 1, None, true),
        (true, 1, Some("a template's".to_string()), true),
        (true, 1, Some(tag(&name(2))), false),
        (true, 2, Some("a template's".to_string()), false),
        (false, 1, None, false),
        (false, 1, Some(tag(&name(1))), true),
    ] {
        let record = Vapp { labelled, ..vapp(&odd) };
        let first = Poll { now: Some(START), vms: vec![odd.clone()], vapps: Some(vec![record]), ..Poll::default() };
        let mut group = Group::new(policy(), 1, Time(0), &first);
        assert!(!group.knows_its_own(), "somebody may have edited the VM's text");
        let mut looks = 0;
        while let Some(command) = group.next_command() {
            if let Command::Ask { ticket, request: Request::Look { .. } } = command {
                looks += 1;
                assert_eq!(looks, 1, "one lookup is enough");
                let document = Vapp { name: name(bears), description: description.clone(), ..vapp(&odd) };
                group.answer(Time(0), ticket, Ok(Reply::Vapps(vec![document])));
            }
        }
        assert_eq!(group.update().count(), usize::from(adopted), "{labelled} {bears} {description:?}");
    }
}

#[test]
fn the_metadata_entry_does_not_outweigh_a_tag() {
    let edited = Some("kept for an inspection".to_string());
    let theirs = Vm { description: tag(&name(1)).replace("manager=", "manager=another-").into(), ..vm(1) };
    let somebodys = Vm { description: "somebody's".into(), ..vm(1) };
    let shown = Vapp { labelled: true, description: edited.clone(), ..vapp(&theirs) };
    let silent = Vapp { description: None, ..shown.clone() };
    let unlisted = Vapp { vms: Vec::new(), vm_descriptions: Vec::new(), made: None, ..silent.clone() };
    let noted = Vm { description: format!("{}, be careful", theirs.description).into(), ..vm(1) };
    let renamed = Vm { description: tag(&name(2)).into(), ..vm(1) };
    let own = Vm { power: Power::Off, ..vm(1) };
    for (vms, record) in [
        (vec![theirs.clone(), somebodys.clone()], &silent),
        (vec![somebodys, theirs.clone()], &silent),
        (vec![theirs], &shown),
        (vec![noted], &silent),
        (vec![renamed], &silent),
        (vec![own], &silent),
        // The poll misses the VM: only the document shows its tag.
        (vec![], &unlisted),
    ] {
        let mut play = Play::new(policy(), Vec::new());
        let first = Poll { now: Some(START), vms: vms.clone(), vapps: Some(vec![record.clone()]), ..Poll::default() };
        play.group = Group::new(policy(), 1, Time(0), &first);
        play.documents.insert(href(1), shown.clone());
        play.vms = vms;
        play.serve();
        assert_eq!((play.states(), play.times("look").len(), play.strays().len()), (vec![], 1, 0));
    }
}

#[test]
fn a_vm_with_another_name_is_that_of_the_vapp_only_if_the_go_plugin_created_it() {
    for (description, used) in [(None, true), (Some(tag(&name(1))), false)] {
        let record = Vapp { labelled: true, description: description.clone(), ..vapp(&vm(1)) };
        let vms = vec![Vm { description: "a template's".into(), ..vm(1) }];
        let first = Poll { now: Some(START), vms: vms.clone(), vapps: Some(vec![record.clone()]), ..Poll::default() };
        let mut play = Play::new(policy(), Vec::new());
        play.group = Group::new(policy(), 1, Time(0), &first);
        let made = record.made.clone().map(|made| Made { own: false, ..made });
        let vm_descriptions = vec!["a template's".to_string()];
        play.documents.insert(href(1), Vapp { made, vm_descriptions, ..record });
        play.vms = vms;
        play.serve();
        assert_eq!(play.states().len(), usize::from(used));
        play.decrease(&[name(1)]);
        assert_eq!((play.deleted().len(), play.said("contains another VM") > 0), (usize::from(used), !used));
    }
}

#[test]
fn another_name_means_another_owner() {
    let mut other = vm(1);
    other.vapp_name = "ci-x".into();
    let theirs = |n: u32| Vm { description: "another's".into(), ..vm(n) };
    let mut play = Play::holding(policy(), vec![other, theirs(2), vm(3)], &["look"]);
    play.vms.push(theirs(4));
    play.records = play.vms.iter().map(|vm| Vapp { description: None, ..vapp(vm) }).collect();
    for n in [2, 4] {
        play.documents.insert(href(n), Vapp { description: Some("another's".into()), ..vapp(&theirs(n)) });
    }
    play.holds.clear();
    play.release("look", None);
    play.to(3700 * SECOND);
    assert_eq!((play.states(), play.strays()), (vec![State::Running], vec![]));
    assert_eq!(play.times("look"), [0, 10 * SECOND], "each once");
    assert_eq!(play.said("ci-00000002 matches vapp_name_prefix but has no owner tag of this group"), 1);
    assert_eq!(play.said("plugin ignores it"), 2);
}

/// A create of an earlier process is in progress, or its guest boots.
#[test]
fn an_incomplete_vapp_is_a_leftover_as_soon_as_a_lookup_shows_it() {
    let off = Vm { power: Power::Off, address: None, customization: Customization::Pending, ..vm(1) };
    let half = [
        off.clone(),
        Vm { power: Power::Other, ..off.clone() },
        Vm { power: Power::On, ..off.clone() },
        Vm { power: Power::On, created: Some(START - 100 * SECOND), ..off.clone() },
        Vm { power: Power::On, customization: Customization::Pending, ..vm(1) },
        Vm { customization: Customization::Working, ..vm(1) },
        Vm { customization: Customization::Failed, ..vm(1) },
    ];
    for half in half {
        for listed in [true, false] {
            let mut play = Play::holding(policy(), if listed { vec![half.clone()] } else { vec![vm(1)] }, &["look"]);
            if !listed {
                // Only the VDC's own document lists it.
                let record = Vapp { description: None, power: Power::Other, made: None, created: None, ..vapp(&vm(1)) };
                let first = Poll { now: Some(START), vms: Vec::new(), vapps: Some(vec![record]), ..Poll::default() };
                play.group = Group::new(policy(), 1, Time(0), &first);
                play.documents.insert(href(1), vapp(&half));
                play.to(0);
            }
            assert!(!play.group.knows_its_own(), "{half:?}");
            play.documents.get_mut(&href(1)).unwrap().tasks.push("t/7".into());
            play.release("look", None);
            assert!(play.group.knows_its_own(), "{half:?}");
            assert_eq!((play.states(), play.group.standing(Time(0)).leftovers), (vec![], 1), "{half:?}");
            // Its create succeeds.
            (play.vms, play.tasks) = (vec![vm(1)], TaskState::Success);
            play.documents.insert(href(1), vapp(&vm(1)));
            play.holds.clear();
            play.to(30 * SECOND);
            assert_eq!((play.states(), play.deleted()), (vec![], vec!["v/1"]), "a host would use it as new: {half:?}");
        }
    }
}

#[test]
fn a_vapp_that_polls_do_not_show_yet_is_adopted_by_its_document() {
    let stale = [
        Vm { customization: Customization::Pending, ..vm(1) },
        Vm { address: None, ..vm(1) },
        Vm { power: Power::Off, ..vm(1) },
        Vm { power: Power::Other, ..vm(1) },
    ];
    for stale in stale {
        let mut play = Play::holding(policy(), vec![stale.clone()], &["look"]);
        play.documents.insert(href(1), vapp(&vm(1)));
        play.vms = vec![vm(1)];
        play.release("look", None);
        assert!(play.group.knows_its_own(), "{stale:?}");
        assert_eq!(play.states(), [State::Running], "{stale:?}");
        assert!(play.group.reach(&name(1)).is_ok() && play.health().is_ok(), "{stale:?}");
        play.to(60 * SECOND);
        assert_eq!((play.states(), play.deleted()), (vec![State::Running], vec![]), "{stale:?}");
    }

    // Old VMware Tools do not report the end of customization.
    let silent = |seconds: u64| {
        let created = Some(START - seconds * SECOND);
        let silent = Vm { customization: Customization::Pending, created, ..vm(1) };
        let record = Vapp { description: None, power: Power::Other, made: None, created: None, ..vapp(&silent) };
        let mut play = Play::new(policy(), Vec::new());
        let first = Poll { now: Some(START), vms: Vec::new(), vapps: Some(vec![record]), ..Poll::default() };
        play.group = Group::new(policy(), 1, Time(0), &first);
        play.documents.insert(href(1), vapp(&silent));
        play.to(SECOND).states()
    };
    assert_eq!((silent(59), silent(60), silent(119)), (vec![], vec![State::Creating], vec![State::Creating]));
    assert_eq!(silent(120), [State::Running]);

    // VCD may not show its time. Then the age is unknown, and the port has to answer steadily.
    let mut play = Play::new(policy(), Vec::new());
    play.vms = vec![Vm { customization: Customization::Pending, ..vm(1) }];
    play.documents.insert(href(1), vapp(&play.vms[0]));
    play.group = Group::new(
        policy(),
        1,
        Time(0),
        &Poll { now: None, vms: play.vms.clone(), vapps: Some(Vec::new()), ..Poll::default() },
    );
    play.serve();
    assert_eq!((play.to(60 * SECOND).states(), play.deleted()), (vec![State::Creating], vec![]));
    assert_eq!((play.to(150 * SECOND).states(), play.deleted()), (vec![State::Running], vec![]));

    // A customized guest without an address: VCD loses it for a while.
    let mut play = Play::new(policy(), vec![Vm { address: None, ..vm(1) }]);
    assert_eq!((play.group.knows_its_own(), play.states()), (true, vec![State::Creating]));
    assert_eq!(play.said("found powered on without an address: adopted"), 1);
    play.to(15 * SECOND);
    play.vms[0].address = Some(IpAddr::from([10, 0, 0, 1]));
    assert_eq!(play.to(20 * SECOND).states(), [State::Running]);

    // A poll may have shown what the lookup does not.
    for customization in [Customization::Complete, Customization::Pending] {
        for (looked_up, guest_os) in [("", "Debian"), ("Ubuntu", "Ubuntu")] {
            let shown = Vm { busy: true, customization, ..vm(1) };
            let mut play = Play::holding(policy(), vec![shown.clone()], &["look"]);
            let guest = SeenGuest { address: None, customization: Customization::Unknown, guest_os: looked_up.into() };
            let made = vapp(&shown).made.map(|made| Made { guest: Some(guest), ..made });
            play.documents.insert(href(1), Vapp { made, ..vapp(&shown) });
            play.release("look", None);
            let adopted = customization == Customization::Complete;
            assert_eq!(play.states().len(), usize::from(adopted));
            assert!(!adopted || &*play.group.reach(&name(1)).unwrap().guest_os == guest_os);
        }
    }
}

#[test]
fn a_vapp_without_a_lookup_in_time_is_a_leftover() {
    let init = ADOPTION_TIMEOUT.as_millis() as u64;
    let mut play = Play::holding(policy(), vec![Vm { address: None, ..vm(1) }], &["look"]);
    play.before(init);
    assert_eq!((play.group.knows_its_own(), play.states()), (false, vec![]));
    assert_eq!(play.times("poll"), [5, 10, 15].map(|s| s * SECOND), "is VCD available?");
    play.to(init);
    assert!(play.group.knows_its_own());
    assert_eq!(play.said("1 vApps that may belong to this group could not be looked up in time"), 1);
    play.release("look", None);
    assert_eq!((play.states(), play.deleted()), (vec![], vec!["v/1"]), "a host would use it as new");
}

#[test]
fn a_lookup_that_fails_is_repeated_before_init_answers() {
    let mut play = Play::holding(policy(), vec![Vm { power: Power::Suspended, ..vm(1) }], &["look"]);
    for tries in 1..=3 {
        play.fail("look", ErrorKind::Unavailable);
        play.until("look", tries + 1);
    }
    play.release("look", None);
    assert_eq!((play.states(), play.deleted()), (vec![State::Suspended], vec![]));
}

#[test]
fn an_outage_during_init_makes_no_leftover() {
    let mut play = Play::holding(policy(), vec![Vm { power: Power::Suspended, ..vm(1) }], &["look"]);
    (play.deaf, play.fails) = (true, vec![("look", ErrorKind::Unavailable)]);
    play.fail("look", ErrorKind::Unavailable);
    play.holds.clear();
    play.to(60 * SECOND);
    assert!(!play.group.knows_its_own());
    (play.deaf, play.fails) = (false, Vec::new());
    play.to(100 * SECOND);
    assert!(play.group.knows_its_own());
    assert_eq!((play.states(), play.deleted()), (vec![State::Suspended], vec![]));
}

#[test]
fn a_vcd_that_does_not_answer_during_init_makes_no_leftover() {
    let mut play = Play::holding(policy(), vec![Vm { power: Power::Suspended, ..vm(1) }], &["look", "poll"]);
    play.to(60 * SECOND);
    assert_eq!((play.group.knows_its_own(), play.times("poll").len()), (false, 1));
    play.holds.clear();
    play.fail("poll", ErrorKind::Unavailable);
    play.fail("look", ErrorKind::Unavailable);
    play.to(100 * SECOND);
    assert!(play.group.knows_its_own());
    assert_eq!((play.states(), play.deleted()), (vec![State::Suspended], vec![]));
}

#[test]
fn nothing_is_deleted_before_init_answers() {
    let vms = vec![Vm { power: Power::Off, ..vm(1) }, Vm { address: None, ..vm(2) }];
    let mut play = Play::holding(policy(), vms, &["look"]);
    play.release("look", None);
    play.before(15 * SECOND);
    assert_eq!((play.group.knows_its_own(), play.deleted()), (false, vec![]));
    play.release("look", None);
    assert_eq!((play.group.knows_its_own(), play.deleted()), (true, vec!["v/1"]));
}

#[test]
fn the_external_address_is_that_of_the_own_vm() {
    let mut play = Play::running();
    play.hidden = true;
    let address = play.vms[0].address.unwrap();
    let mut show = |vm: &str, external: u8| {
        let vapp = play.documents.get_mut(&href(1)).unwrap();
        vapp.vms = vec!["m/v/1".into(), "m/theirs".into()];
        let made = vapp.made.as_mut().unwrap();
        (made.vm, made.external) = (vm.into(), Some(IpAddr::from([192, 0, 2, external])));
        let looks = play.times("look").len();
        play.until("look", looks + 1);
        let reach = play.group.reach(&name(1)).unwrap();
        assert_eq!(reach.address, address);
        reach.external
    };
    assert_eq!(show("m/theirs", 1), address);
    assert_eq!(show("m/v/1", 2), IpAddr::from([192, 0, 2, 2]));
    assert_eq!(show("m/theirs", 3), IpAddr::from([192, 0, 2, 2]));
}

#[test]
fn a_leftover_with_a_task_is_deleted_after_it() {
    let mut play = Play::holding(policy(), vec![Vm { power: Power::Off, ..vm(1) }], &["look"]);
    play.documents.get_mut(&href(1)).unwrap().tasks.push("t/7".into());
    play.holds.clear();
    play.release("look", None);
    play.to(30 * SECOND);
    assert_eq!((play.deleted(), play.group.standing(Time(play.now)).tasks), (vec![], 1));
    assert!(play.times("tasks").len() > 3 && play.times("cancel").is_empty());
    play.documents.get_mut(&href(1)).unwrap().tasks.clear();
    play.tasks = TaskState::Success;
    play.to(40 * SECOND);
    assert_eq!((play.deleted(), play.strays()), (vec!["v/1"], vec![]));
}

#[test]
fn an_owned_vapp_that_appears_after_init_is_deleted() {
    for created in [Some(START - 1), Some(START), Some(START + 1), None] {
        let mut play = Play::new(policy(), Vec::new());
        play.holds = vec!["look"];
        let late = Vm { created, ..vm(1) };
        play.documents.insert(href(1), vapp(&late));
        play.vms.push(late);
        play.to(10 * SECOND);
        assert_eq!((play.states(), play.times("look"), play.strays().len()), (vec![], vec![10 * SECOND], 1));
        assert_eq!(play.group.standing(Time(play.now)).leftovers, 1, "{created:?}");
        play.release("look", None);
        assert_eq!((play.states(), play.deleted()), (vec![], vec!["v/1"]), "a host would use it as new");
    }
}

#[test]
fn a_late_vapp_with_an_unknown_id_belongs_to_another_plugin() {
    let limit = EARLIER_CREATES.as_millis() as u64;
    assert_eq!(limit, 300 * SECOND);
    for (after, deleted) in [(limit, true), (limit + 1, false)] {
        for (power, description) in
            [(Power::On, tag(&name(1))), (Power::Off, tag(&name(1))), (Power::On, String::new())]
        {
            let mut play = Play::new(policy(), vec![vm(2)]);
            play.to(after);
            let late = Vm { created: Some(START + after), power, description: description.as_str().into(), ..vm(1) };
            play.documents.insert(href(1), vapp(&late));
            play.vms.push(late);
            play.to(after + 100 * SECOND);
            let expected = (vec![State::Running], usize::from(deleted));
            assert_eq!((play.states(), play.deleted().len()), expected, "{after} {description}");
            let text = if description.is_empty() {
                "matches vapp_name_prefix"
            } else {
                "another plugin that has the same name"
            };
            assert_eq!(play.said(text), usize::from(!deleted), "{after} {description}");
            assert_eq!(play.times("look").is_empty(), !deleted);
        }
    }
}

#[test]
fn a_late_vapp_whose_date_only_its_document_shows_belongs_to_another_plugin() {
    for (after, deleted) in [(300 * SECOND, 1), (300 * SECOND + 1, 0)] {
        let mut play = Play::new(policy(), vec![vm(2)]);
        play.to(after);
        let late = Vm { created: Some(START + after), ..vm(1) };
        play.documents.insert(href(1), vapp(&late));
        play.vms.push(Vm { created: None, ..late });
        play.to(after + 100 * SECOND);
        assert_eq!((play.deleted().len(), play.said("another plugin that has the same name")), (deleted, 1 - deleted));
    }
}

#[test]
fn a_vapp_of_a_forgotten_id_is_deleted_when_it_appears() {
    for (forgotten, deleted) in [(MAX_PAST, true), (MAX_PAST + 1, false)] {
        let mut play = Play::new(Policy { max_size: 1024, ..policy() }, Vec::new());
        play.to(2 * EARLIER_CREATES.as_millis() as u64);
        play.holds = vec!["create"];
        play.group.increase(Time(play.now), forgotten as u32);
        let ids: Vec<Name> = play.group.views(Time(play.now)).into_iter().map(|view| view.name).collect();
        // The request of the first create is on the wire when it is given up.
        for id in &ids {
            play.group.decrease(Time(play.now), std::slice::from_ref(id));
        }
        play.serve();
        play.holds.clear();
        while !play.held.is_empty() {
            play.release("create", Some(Err(error(ErrorKind::Quota))));
        }
        play.to(play.now + PRUNE_AFTER.as_millis() as u64 + SECOND);
        assert_eq!(play.states(), []);
        let late = Vm { created: Some(START + play.now), ..shown(href(1), ids[0].clone()) };
        play.documents.insert(href(1), vapp(&late));
        play.vms.push(late);
        play.to(play.now + 100 * SECOND);
        assert_eq!(play.deleted().len(), usize::from(deleted), "{forgotten}");
    }
}

#[test]
fn a_new_instance_never_gets_the_id_of_a_leftover() {
    let id_of = |vms: Vec<Vm>| {
        let mut play = Play::holding(policy(), vms, &["look"]);
        play.increase(1);
        play.names().remove(0)
    };
    // The next process draws the same ids.
    let id = id_of(Vec::new());
    assert_ne!(id_of(vec![Vm { power: Power::Off, ..shown(href(1), id.clone()) }]), id);
}

#[test]
fn a_late_vapp_of_a_failed_create_for_standby_is_deleted() {
    let mut play = Play::holding(Policy { standby_count: 1, ..policy() }, Vec::new(), &["create"]);
    let id = play.created();
    play.to(2 * EARLIER_CREATES.as_millis() as u64).fail("create", ErrorKind::Failed);
    let late = Vm { created: Some(START + play.now), ..shown(href(1), id) };
    play.documents.insert(href(1), vapp(&late));
    play.vms.push(late);
    play.to(play.now + 15 * SECOND);
    assert_eq!(play.deleted(), ["v/1"], "{:?}", play.said);
}

#[test]
fn of_two_vapps_with_one_name_one_is_adopted() {
    let twin = Vm { vapp: href(2), ..vm(1) };
    let mut play = Play::new(policy(), vec![vm(1), twin]);
    assert_eq!((play.states(), play.strays(), play.deleted()), (vec![State::Running], vec![], vec!["v/2"]));
    assert_eq!(play.times("look"), [0, 0], "neither is adopted by its record");
    play.to(15 * SECOND);
    assert_eq!(play.states(), [State::Running]);
}

#[test]
fn a_record_of_a_later_poll_is_not_enough_to_adopt_its_vapp() {
    let [gone, slow] = [1, 3].map(|n| Vm { busy: true, ..vm(n) });
    let mut play = Play::holding(policy(), vec![gone, slow], &["look"]);
    play.documents.remove(&href(1));
    play.release("look", None);
    // The poll lags.
    play.vms[0].busy = false;
    play.to(6 * SECOND);
    assert_eq!((play.times("look").len(), play.states(), play.strays().len()), (3, vec![], 2));
    play.release("look", None);
    play.release("look", None);
    assert_eq!((play.states(), play.strays().len()), (vec![State::Running], 0), "{:?}", play.said);
}

#[test]
fn a_vapp_whose_vm_was_moved_away_is_not_adopted() {
    let mut play = Play::holding(policy(), vec![Vm { busy: true, ..vm(1) }], &["look"]);
    let others = vec!["m/other".into()];
    play.documents.insert(href(1), Vapp { vms: others, made: None, ..vapp(&vm(1)) });
    play.release("look", None);
    assert_eq!((play.states(), play.strays().len()), (vec![], 1));
}

#[test]
fn a_found_guest_that_polls_never_show_is_given_up() {
    let mut play = Play::new(policy(), vec![Vm { address: None, ..vm(1) }]);
    assert_eq!(play.states(), [State::Creating]);
    play.hidden = true;
    let longest = (policy().ready_timeout * 6).as_millis() as u64;
    play.before(longest);
    assert_eq!((play.states(), play.deleted()), (vec![State::Creating], vec![]));
    play.to(longest + SECOND);
    assert_eq!(play.deleted(), ["v/1"]);
}

#[test]
fn a_vapp_record_starts_no_second_instance() {
    let mut play = Play::running();
    play.vms.push(vm(2));
    play.documents.insert(href(2), vapp(&vm(2)));
    play.records = vec![vapp(&vm(1)), vapp(&vm(3))];
    play.documents.insert(href(3), Vapp { power: Power::Off, ..vapp(&vm(3)) });
    play.before(3600 * SECOND);
    assert_eq!((play.deleted(), play.states()), (vec!["v/2"], vec![State::Running]));
    play.hidden = true;
    play.to(3601 * SECOND);
    assert_eq!((play.states(), play.strays().len()), (vec![State::Running], 0));
    assert_eq!(play.deleted(), ["v/2", "v/3"], "a vApp without a VM record is found by its own record");

    // It is deleted, and polls still show it.
    let mut play = Play::running();
    play.records = vec![vapp(&vm(1))];
    let late = play.vms.clone();
    play.to(3595 * SECOND).group.decrease(Time(3595 * SECOND), &[name(1)]);
    play.to(3599 * SECOND);
    assert_eq!(play.states(), [State::Deleted]);
    play.to(3610 * SECOND);
    assert_eq!(play.times("look"), [3595 * SECOND], "before the delete");
    play.vms = late;
    play.to(3640 * SECOND);
    assert_eq!((play.states(), play.strays().len(), play.deleted()), (vec![State::Deleted], 0, vec!["v/1"]));
}

#[test]
fn a_vapp_that_a_create_may_have_created_belongs_to_that_create() {
    // The answer to the create is missing.
    let mut play = Play::booting(|play| play.holds = vec!["create"]);
    let name = play.view().name;
    play.vms.push(shown(href(1), name.clone()));
    play.documents.insert(href(1), vapp(&play.vms[0]));
    play.to(30 * SECOND);
    assert_eq!((play.strays().len(), play.times("look").len()), (0, 0));
    play.holds.push("find");
    // A lookup shows the outcome.
    play.release("create", Some(Err(error(ErrorKind::Ambiguous))));
    play.to(60 * SECOND);
    assert_eq!((play.strays().len(), play.times("look").len(), play.times("find").len()), (0, 0, 1));
    play.release("find", None);
    play.to(65 * SECOND);
    assert_eq!((play.states(), play.deleted(), play.strays().len()), (vec![State::Running], vec![], 0));
    assert!(play.said.iter().any(|said| said == "accepted"));
    assert_eq!(play.said("the create worked"), 1);

    // Only a create creates one.
    let mut other = Play::running();
    other.holds = vec!["suspend"];
    other.suspend();
    other.vms.push(Vm { vapp: href(2), ..vm(1) });
    other.documents.insert(href(2), vapp(&other.vms[1]));
    other.to(15 * SECOND);
    assert_eq!((other.held.len(), other.deleted()), (1, vec!["v/2"]));
    // A create that has its vApp did not create another.
    play.vms.push(shown(href(2), name));
    play.documents.insert(href(2), vapp(&play.vms[1]));
    play.to(80 * SECOND);
    assert_eq!((play.states(), play.deleted()), (vec![State::Running], vec!["v/2"]));
}

#[test]
fn a_found_vapp_with_a_persons_vm_is_not_deleted() {
    for found_twice in [false, true] {
        let mut play = Play::booting(|play| play.holds = vec!["create", "find"]);
        let name = play.view().name;
        play.release("create", Some(Err(error(ErrorKind::Ambiguous))));
        // Polls do not show the VMs yet.
        play.decrease(std::slice::from_ref(&name));
        play.to(30 * SECOND);
        let own = vapp(&shown(href(1), name.clone()));
        let mut shared = vapp(&shown(href(2), name.clone()));
        shared.vms.push("m/of-a-person".into());
        play.documents.extend([(href(1), own.clone()), (href(2), shared.clone())]);
        let found = if found_twice { vec![own, shared] } else { vec![shared] };
        play.release("find", Some(Ok(Reply::Vapps(found))));
        play.to(600 * SECOND);
        let deleted = if found_twice { vec!["v/1"] } else { vec![] };
        assert_eq!(play.deleted(), deleted, "found twice: {found_twice}");
        assert!(play.said("contains another VM") > 0);
    }
}

#[test]
fn a_persons_vm_that_polls_have_shown_prevents_the_delete() {
    for polls in 1..=3 {
        let mut play = Play::booting(|_| {});
        play.to(5 * SECOND);
        let other = Vm { vm: "m/other".into(), description: "a person's".into(), ..play.vms[0].clone() };
        play.documents.values_mut().for_each(|vapp| vapp.vms.push(other.vm.clone()));
        play.vms.push(other);
        let names = play.names();
        play.to(polls * 10 * SECOND).decrease(&names);
        assert_eq!((play.deleted().len(), play.said("contains another VM") > 0), (0, true), "{polls}");
    }
}

#[test]
fn a_vapp_that_the_last_poll_did_not_show_is_looked_up_before_its_delete() {
    let mut play = Play::booting(|_| {});
    play.to(15 * SECOND).hidden = true;
    play.to(25 * SECOND);
    assert_eq!((play.view().missed, play.states()), (1, vec![State::Running]));
    play.documents.values_mut().for_each(|vapp| vapp.vms.push("m/other".into()));
    let names = play.names();
    play.decrease(&names);
    assert_eq!((play.deleted().len(), play.said("contains another VM")), (0, 1));
}

#[test]
fn a_delete_of_what_vcd_does_not_know_keeps_no_slot() {
    let mut play = Play::holding(Policy { max_operations: 1, ..policy() }, vec![vm(1)], &["delete", "create"]);
    play.decrease(&[name(1)]);
    play.until("delete", 1);
    play.increase(1);
    play.holds.push("look");
    assert_eq!(play.times("create").len(), 0);
    play.fail("delete", ErrorKind::NotFound);
    assert_eq!((play.times("create").len(), play.held.len()), (1, 2), "beside the lookup");
}

#[test]
fn a_vapp_that_the_last_poll_did_not_show_is_looked_up_before_its_suspend() {
    for shared in [false, true] {
        let mut play = Play::booting(|_| {});
        play.to(15 * SECOND).hidden = true;
        play.to(25 * SECOND);
        let looks = play.times("look").len();
        if shared {
            play.documents.values_mut().for_each(|vapp| vapp.vms.push("m/other".into()));
        }
        play.suspend();
        assert_eq!(play.times("look").get(looks), Some(&(25 * SECOND)));
        assert_eq!(play.times("suspend").len(), usize::from(!shared));
    }
}

#[test]
fn a_persons_vm_is_not_used_when_the_own_one_is_moved_away() {
    // A person has changed the description of the own VM, and added another VM.
    let own = Vm { description: "changed".into(), ..vm(1) };
    let other = Vm { vm: "m/other".into(), address: Some([10, 0, 0, 9].into()), ..own.clone() };
    let both = vec![own.clone(), other.clone()];
    let mut play = Play::holding(policy(), both.clone(), &["look"]);
    let document = Vapp { vms: vec![own.vm.clone(), other.vm.clone()], ..vapp(&own) };
    play.documents.insert(href(1), document);
    play.vms = both;
    play.release("look", None);
    play.holds.clear();
    assert_eq!(play.states(), [State::Running]);
    play.vms = vec![other.clone()];
    play.documents.insert(href(1), Vapp { vms: vec![other.vm.clone()], made: None, ..vapp(&other) });
    play.to(120 * SECOND);
    assert!(play.group.reach(&name(1)).is_err() && play.states() != [State::Running]);
    assert_eq!(play.deleted(), Vec::<&str>::new(), "the vApp holds the other VM");
}

#[test]
fn the_first_record_of_a_vapp_may_be_that_of_a_persons_vm() {
    let mut play = Play::booting(|play| play.holds = vec!["look"]);
    let own = &play.vms[0];
    let (vm, address) = ("m/other".into(), Some(IpAddr::from([10, 0, 0, 9])));
    let other = Vm { vm, address, description: "a person's".into(), ..own.clone() };
    let expected = own.address;
    play.vms.insert(0, other);
    assert_eq!(play.to(10 * SECOND).view().address, expected);
}

#[test]
fn the_own_vm_is_known_from_its_record() {
    let mut play = Play::booting(|play| play.holds = vec!["look"]);
    // VCD gives it a name of its own. A poll shows it before the lookup does.
    play.documents.values_mut().for_each(|vapp| vapp.made.as_mut().unwrap().own = false);
    play.to(15 * SECOND);
    play.holds.clear();
    play.release("look", None);
    play.to(60 * SECOND);
    assert_eq!((play.states(), play.said("contains another VM")), (vec![State::Running], 0), "{:?}", play.said);
}

/// The outcome of a create was lost, and lookups did not find the vApp. Then polls show it while a second create and the
/// lookup of that vApp are on the wire.
fn late() -> Play {
    let mut play = Play::booting(|play| play.holds = vec!["create", "find"]);
    play.release("create", Some(Err(error(ErrorKind::Ambiguous))));
    while play.now < 60 * SECOND {
        let looks = play.times("find").len();
        play.until("find", looks + 1);
        if play.now < 60 * SECOND {
            play.release("find", None);
        }
    }
    play.deaf = true;
    play.to(80 * SECOND).release("find", None);
    assert_eq!((play.said("the create did not work"), play.times("create").len()), (1, 1));
    let late = shown(href(1), play.view().name);
    play.documents.insert(href(1), vapp(&late));
    play.vms.push(late);
    play.deaf = false;
    play.holds = vec!["create", "look"];
    play.until("look", 1);
    assert_eq!((play.times("create").len(), play.strays().len()), (2, 1));
    play
}

#[test]
fn an_undecided_vapp_of_a_create_belongs_to_it() {
    let mut play = late();
    play.release("look", None);
    assert_eq!((play.strays().len(), play.deleted().len()), (0, 0), "its answer is missing");

    let mut play = late();
    play.holds = vec!["find", "look"];
    play.release("create", Some(Err(error(ErrorKind::Duplicate))));
    play.release("look", None);
    assert_eq!((play.strays().len(), play.deleted().len()), (0, 0), "it is looked up");

    let mut play = late();
    play.holds.clear();
    play.release("create", Some(started(Some(href(1)), None)));
    play.release("look", None);
    play.to(play.now + 20 * SECOND);
    assert_eq!((play.strays().len(), play.deleted().len(), play.states()), (0, 0, vec![State::Running]));

    let mut play = late();
    play.holds.clear();
    play.release("create", None);
    play.release("look", None);
    play.to(play.now + 20 * SECOND);
    assert_eq!((play.strays().len(), play.deleted(), play.states()), (0, vec!["v/1"], vec![State::Running]));
}

// Creates and deadlines.

#[test]
fn creates_wait_for_leftovers_and_are_given_up_after_three_timeouts() {
    let waiting = Policy {
        create_timeout: Duration::from_secs(100),
        startup_cleanup_timeout: Duration::from_secs(250),
        ..policy()
    };
    let off = || vec![Vm { power: Power::Off, ..vm(1) }];
    let mut play = Play::holding(waiting.clone(), off(), &["delete", "create"]);
    play.group.increase(Time(0), 1);
    play.before(250 * SECOND);
    assert_eq!((play.times("create"), play.states()), (vec![], vec![State::Creating]));
    play.to(250 * SECOND);
    assert_eq!(play.times("create"), [250 * SECOND]);

    let waiting = Policy { startup_cleanup_timeout: Duration::from_secs(9000), ..waiting };
    let mut play = Play::holding(waiting.clone(), off(), &["delete"]);
    play.group.increase(Time(0), 1);
    play.before(300 * SECOND);
    assert_eq!((play.times("create"), play.states()), (vec![], vec![State::Creating]));
    assert_eq!(play.to(300 * SECOND).states(), [State::Timeout]);

    // An adopted instance delays nothing.
    let mut play = Play::new(waiting, vec![vm(1)]);
    play.group.increase(Time(0), 1);
    play.to(0);
    assert_eq!(play.times("create"), [0]);
}

// Shutdown.

#[test]
fn shutdown_waits_for_a_poll_that_was_sent_after_it() {
    let mut play = Play::new(policy(), Vec::new());
    play.to(15 * SECOND);
    assert!(!play.group.stopped());
    play.holds = vec!["poll"];
    play.to(21 * SECOND);
    play.shutdown();
    assert_eq!(play.times("poll"), [10 * SECOND, 20 * SECOND], "one poll after another");
    play.release("poll", None);
    assert!(!play.group.stopped(), "the poll was sent before the shutdown");
    assert_eq!(play.asked.last().unwrap(), &(21 * SECOND, "poll", Some(Request::Poll { vapps: true })));
    play.to(25 * SECOND);
    assert!(!play.group.stopped());
    play.release("poll", None);
    play.holds.clear();
    // Later polls do not change that.
    assert!(play.to(50 * SECOND).group.stopped());
    assert_eq!(play.times("poll")[3..], [31, 41].map(|s| s * SECOND));

    // Earlier failed polls still count.
    let mut play = Play::running();
    play.deaf = true;
    play.to(35 * SECOND);
    play.holds = vec!["poll"];
    play.shutdown();
    assert_eq!(play.group.standing(Time(play.now)).failed_polls, 3);
}

#[test]
fn a_vapp_found_during_shutdown_is_deleted_or_kept() {
    for (on_shutdown, kept) in [(OnShutdown::Delete, false), (OnShutdown::Keep, true)] {
        let policy = Policy { on_shutdown, ..policy() };
        let vms = vec![Vm { description: "".into(), ..vm(1) }, vm(2)];
        let mut play = Play::holding(policy.clone(), vms, &["look"]);
        assert_eq!(play.states(), [State::Running]);
        play.holds.clear();
        play.shutdown();
        play.release("look", None);
        play.to(10 * SECOND);
        assert_eq!(play.states(), if kept { vec![State::Running; 2] } else { vec![State::Deleted] });
        assert_eq!(play.deleted().len(), if kept { 0 } else { 2 });
        assert!(play.group.stopped() && play.strays().is_empty());

        // An incomplete vApp is deleted in both cases.
        let half = Vm { customization: Customization::Pending, ..vm(1) };
        let mut play = Play::holding(policy, vec![half], &["look"]);
        play.shutdown();
        assert!(!play.group.stopped() && play.deleted().is_empty());
        play.holds.clear();
        play.release("look", None);
        play.to(10 * SECOND);
        assert_eq!((play.deleted().len(), play.group.stopped()), (1, true));
    }
}

#[test]
fn shutdown_waits_for_a_running_suspend() {
    let mut play = Play::running();
    play.suspend();
    play.to(5 * SECOND).shutdown();
    play.to(30 * SECOND);
    assert_eq!((play.times("cancel"), play.group.stopped()), (vec![5 * SECOND], false));
    assert_eq!(play.group.left(), [name(1)]);
    play.tasks = TaskState::Failed(error(ErrorKind::Failed));
    play.to(60 * SECOND);
    assert_eq!((play.deleted(), play.group.stopped()), (vec!["v/1"], true));
    assert!(play.group.left().is_empty());
}

#[test]
fn shutdown_waits_for_the_answer_to_a_request_about_a_kept_instance() {
    let policy = Policy { on_shutdown: OnShutdown::Keep, ..policy() };
    for request in ["suspend", "look"] {
        let mut play = Play::holding(policy.clone(), vec![vm(1)], &[request]);
        match request {
            "suspend" => play.suspend(),
            _ => play.hidden = true,
        }
        play.to(30 * SECOND).shutdown();
        assert_eq!((play.held.len(), play.group.stopped()), (1, false), "{request}");
        play.release(request, None);
        assert!(play.group.stopped(), "{request}");
    }
}

#[test]
fn a_limited_number_of_existing_foreign_vapps_is_remembered() {
    let others = |from: u32, count: usize| -> Vec<Vm> {
        let theirs = |vm: Vm| {
            let description = format!("fleeting-plugin-vcd/1 manager=x group=g id={}", vm.vapp_name).into();
            Vm { description, ..vm }
        };
        (from..from + count as u32).map(|n| theirs(vm(n))).collect()
    };
    for (count, again) in [(MAX_FOREIGN, false), (MAX_FOREIGN + 1, true)] {
        let rare = Duration::from_secs(30);
        let mut play = Play::new(Policy { reconcile_interval: rare, ..policy() }, others(1, count));
        assert_eq!(play.said("plugin ignores it"), count, "each once");
        play.to(60 * SECOND);
        assert_eq!(play.said("plugin ignores it") > count, again, "{count}");
        // Other vApps replace them, as the hourly poll with vApps shows.
        play.vms = others(10_000, MAX_FOREIGN);
        play.to(3700 * SECOND);
        let said = play.said("plugin ignores it");
        play.to(3800 * SECOND);
        assert_eq!(play.said("plugin ignores it"), said, "{count}");
    }
}

#[test]
fn vapps_of_another_manager_cause_no_warning() {
    let theirs = "fleeting-plugin-vcd/1 manager=x group=g id=ci-00000001";
    for (description, level) in [(theirs, Some(log::Level::Debug)), ("another's", None)] {
        let found = Vm { description: description.into(), ..vm(1) };
        let first = Poll { now: Some(START), vms: vec![found], ..Poll::default() };
        let mut group = Group::new(policy(), 7, Time(0), &first);
        let said = std::iter::from_fn(|| group.next_command()).find_map(|command| match command {
            Command::Say(event) => Some(event.level),
            _ => None,
        });
        assert_eq!(said, level, "{description}");
    }
}

#[test]
fn a_name_counts_as_missing_after_four_lookups_however_long_they_take() {
    let mut play = Play::holding(policy(), Vec::new(), &["create", "find"]);
    play.increase(1);
    play.fail("create", ErrorKind::Ambiguous);
    for looks in 1..=4 {
        play.until("find", looks);
        play.to(play.now + 100 * SECOND);
        assert_eq!((play.times("find").len(), play.times("create").len()), (looks, 1));
        play.release("find", Some(Ok(Reply::Vapps(Vec::new()))));
    }
    assert_eq!(play.times("create").len(), 2);
}

#[test]
fn a_port_that_does_not_answer_is_probed_frequently_at_first() {
    let mut play = Play::booting(|play| play.port = false);
    play.to(60 * SECOND);
    let probes = play.times("probe");
    let first = probes[0] + 30 * SECOND;
    for pair in probes.windows(2) {
        let pause = if pair[0] < first { 250 } else { SECOND };
        assert_eq!(pair[1] - pair[0], pause, "{pair:?}");
    }
    assert_eq!(probes.last(), Some(&(60 * SECOND)));
}

#[test]
fn a_rejected_suspend_says_what_follows() {
    let mut play = Play::running();
    play.holds = vec!["suspend"];
    play.suspend();
    play.fail("suspend", ErrorKind::Forbidden);
    assert_eq!((play.said("not suspended, the VM keeps running"), play.said("is resumed")), (1, 0), "{:?}", play.said);
}
