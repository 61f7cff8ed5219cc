//! When an instance counts as running: one instance in virtual time, with a guest whose answers the test defines.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use crate::play;
use crate::play::{Passing, error, shown, started, vapp};
use fleeting_plugin_vcd::cloud::*;
use fleeting_plugin_vcd::group::{Command, Group, Name, Policy, State, Time};
use std::time::Duration;

/// The state of the guest that VCD and probes show.
struct Shown {
    /// `None`: VCD does not answer.
    customization: Option<Customization>,
    port: bool,
}

struct Life {
    group: Group,
    now: u64,
    guest_os: &'static str,
    /// The vApps created so far: number and time.
    made: Vec<u64>,
    name: Name,
    said: Vec<String>,
}

const GRACE: u64 = 120;

fn policy() -> Policy {
    Policy {
        max_size: 1,
        max_creates: 1,
        max_deletes: 1,
        max_operations: 2,
        create_timeout: Duration::from_secs(3600),
        ready_timeout: Duration::from_secs(600),
        startup_cleanup_timeout: Duration::ZERO,
        reconcile_interval: Duration::from_secs(10),
        ..play::policy()
    }
}

/// A group with its world.
struct Playing<'a, World> {
    life: &'a mut Life,
    world: World,
}

impl<World: Fn(u64) -> Shown> Passing for Playing<'_, World> {
    fn group(&mut self) -> (&mut Group, &mut u64) {
        (&mut self.life.group, &mut self.life.now)
    }

    fn command(&mut self, command: Command) -> bool {
        let shown = (self.world)(self.life.age());
        let life = &mut *self.life;
        let now = Time(life.now);
        match command {
            Command::Say(event) => life.said.push(event.text),
            Command::Probe { ticket, .. } => {
                life.group.probed(now, ticket, if shown.port { Ok(()) } else { Err("refused".into()) });
            }
            Command::Ask { ticket, request } => {
                let answer = life.answer(request, shown);
                life.group.answer(now, ticket, answer);
            }
        }
        false
    }
}

impl Life {
    fn new(guest_os: &'static str) -> Life {
        let group = Group::new(policy(), 1, Time(0), &Poll::default());
        let mut life = Life { group, now: 0, guest_os, made: Vec::new(), name: "".into(), said: Vec::new() };
        assert_eq!(life.group.increase(Time(0), 1), 1);
        life
    }

    fn state(&self) -> State {
        self.group.update().next().unwrap().1
    }

    fn vapp(&self) -> Href {
        format!("v/{}", self.made.len()).as_str().into()
    }

    /// Seconds since the create of the newest vApp.
    fn age(&self) -> u64 {
        (self.now - self.made.last().copied().unwrap_or(self.now)) / 1000
    }

    /// Plays this many seconds. `world` defines what is shown at each age of the newest vApp.
    fn play(&mut self, seconds: u64, world: impl Fn(u64) -> Shown) {
        let end = self.now + seconds * 1000;
        Playing { life: self, world }.pass(end);
    }

    fn vm(&self, customization: Customization) -> Vm {
        Vm { customization, guest_os: self.guest_os.into(), ..shown(self.vapp(), self.name.clone()) }
    }

    fn answer(&mut self, request: Request, shown: Shown) -> Answer {
        match request {
            Request::Create { name, .. } => {
                self.name = name;
                self.made.push(self.now);
                started(Some(self.vapp()), None)
            }
            Request::Poll { .. } | Request::PollSome { .. } => {
                let customization = shown.customization.ok_or(error(ErrorKind::Unavailable))?;
                Ok(Reply::Poll(Poll { vms: vec![self.vm(customization)], ..Poll::default() }))
            }
            Request::Look { .. } => Ok(Reply::Vapps(vec![vapp(&self.vm(Customization::Pending))])),
            Request::Delete { .. } => started(None, None),
            Request::Label { .. } => Ok(Reply::Done),
            other => panic!("{other:?}"),
        }
    }

    fn warned(&self, text: &str) -> bool {
        self.said.iter().any(|said| said.contains(text))
    }
}

fn shows(customization: Customization, port: bool) -> Shown {
    Shown { customization: Some(customization), port }
}

#[test]
fn the_port_counts_only_when_customization_is_complete() {
    let mut life = Life::new("Debian");
    let world = |age| shows(if age < 50 { Customization::Pending } else { Customization::Complete }, true);
    life.play(49, world);
    assert_eq!(life.state(), State::Creating);
    life.play(4, world);
    assert_eq!(life.state(), State::Running);
    assert!(!life.warned("steadily"));
}

#[test]
fn a_guest_that_answers_steadily_but_never_reports_is_accepted_with_a_warning() {
    let world = |_| shows(Customization::Pending, true);
    let mut life = Life::new("Debian");
    life.play(GRACE - 1, world);
    assert_eq!(life.state(), State::Creating);
    life.play(15, world);
    assert_eq!(life.state(), State::Running);
    assert!(life.warned("the login port answers steadily"));

    // Windows gets more time.
    let mut life = Life::new("Microsoft Windows Server 2022");
    life.play(GRACE + 180, world);
    assert_eq!(life.state(), State::Creating);
    life.play(80, world);
    assert_eq!((life.state(), life.made.len()), (State::Running, 1));
}

#[test]
fn a_reboot_restarts_the_time() {
    let mut life = Life::new("Debian");
    let world = |age| shows(Customization::Pending, !(100..108).contains(&age));
    life.play(GRACE + 40, world);
    assert_eq!(life.state(), State::Creating);
    life.play(30, world);
    assert_eq!(life.state(), State::Running);
}

#[test]
fn a_slow_customization_that_reports_is_waited_for() {
    let mut life = Life::new("Debian");
    let world = |age| {
        shows(
            match age {
                0..90 => Customization::Pending,
                90..400 => Customization::Working,
                _ => Customization::Complete,
            },
            true,
        )
    };
    life.play(399, world);
    assert_eq!(life.state(), State::Creating);
    life.play(6, world);
    assert_eq!((life.state(), life.made.len()), (State::Running, 1));
    assert!(!life.warned("steadily"));
}

#[test]
fn failed_polls_do_not_count_for_customization() {
    let mut life = Life::new("Debian");
    let world = |age| match age {
        0..90 => shows(Customization::Pending, true),
        90..300 => Shown { customization: None, port: true },
        _ => shows(Customization::Working, true),
    };
    life.play(400, world);
    assert_eq!(life.state(), State::Creating);
}

#[test]
fn a_guest_that_is_not_ready_in_time_is_created_again_with_the_reason() {
    for (customization, port, reason) in [
        (Customization::Working, true, "still waiting for guest customization"),
        (Customization::Pending, false, "still waiting for guest customization (login port: refused)"),
        (Customization::Complete, false, "still waiting for the login port (login port: refused)"),
    ] {
        let mut life = Life::new("Debian");
        life.play(599, |_| shows(customization, port));
        assert_eq!((life.state(), life.made.len()), (State::Creating, 1));
        life.play(30, |_| shows(customization, port));
        assert_eq!((life.state(), life.made.len()), (State::Creating, 2), "{reason}");
        assert!(life.warned("not ready within ready_timeout") && life.warned(reason), "{:?}", life.said);
    }
}

#[test]
fn a_failed_customization_ends_the_create_at_once() {
    for (guest_os, hint) in [("Debian", false), ("Microsoft Windows", true)] {
        let mut life = Life::new(guest_os);
        life.play(20, |_| shows(Customization::Failed, true));
        assert_eq!((life.state(), life.made.len()), (State::Creating, 2));
        assert!(life.warned("guest customization failed (GC_FAILED)"), "{:?}", life.said);
        assert_eq!(life.warned("often the password policy of the guest rejects the password"), hint);
    }
}

#[test]
fn a_customization_that_fails_after_the_guest_was_accepted_makes_it_unhealthy() {
    let mut life = Life::new("Debian");
    life.play(GRACE + 15, |_| shows(Customization::Pending, true));
    assert_eq!(life.state(), State::Running);
    let name = life.name.clone();
    assert_eq!(life.group.heartbeat(Time(life.now), &name), Ok(()));
    life.play(20, |_| shows(Customization::Failed, true));
    let error = life.group.heartbeat(Time(life.now), &name).unwrap_err();
    assert!(error.contains("GC_FAILED"), "{error}");
}
