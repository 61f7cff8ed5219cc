//! The table of steps: desired state, observed state, operation in VCD, and the next step. It is in ARCHITECTURE.md;
//! `UPDATE_GOLDEN=1` writes it.

use super::super::limits::Slots;
use super::super::time::Stopwatch;
use super::super::vapp::{Build, Document, Record};
use super::*;
use crate::cloud::{Customization, Made};
use std::fmt::Write as _;

const NOW: Time = Time(10_000_000);
/// A resumed guest's clock is right since then.
const EARLIER: Time = Time(NOW.0 - RESUME_SETTLE.as_millis() as u64);

fn seen() -> Seen {
    Seen(NOW.0)
}

/// An instance whose vApp is proven, and that a poll and a lookup have shown just now.
fn with_vapp(power: Power, guest: Guest) -> Instance {
    let mut vapp = Vapp::new("v/1".into(), EARLIER);
    (vapp.proven, vapp.power, vapp.guest) = (true, power, guest);
    vapp.build = Build { whole: true, checks: 3, ..Build::default() };
    vapp.record = Some(Record {
        seen: NOW,
        power,
        busy: false,
        address: Some([10, 0, 0, 1].into()),
        customization: Customization::Complete,
        guest_os: "Debian".into(),
    });
    let made = Made { vm: "m/1".into(), own: true, differs: None, lacks_tpm: false, external: None, guest: None };
    vapp.document = Some(Box::new(Document { at: NOW, busy: false, made: Some(made) }));
    let mut i = Instance::new("ci-00000001".into(), Origin::Requested, NOW, seen());
    i.observe(vapp);
    i
}

fn without_vapp() -> Instance {
    Instance::new("ci-00000001".into(), Origin::Requested, NOW, seen())
}

fn booting() -> Guest {
    Guest::Booting { since: Stopwatch::start(seen()), answers: None, probing: false }
}

fn returning(on: bool) -> Guest {
    Guest::Returning { since: on.then(|| Stopwatch::start(seen())), answers: None, probing: false }
}

type Observing = fn() -> Instance;

/// All observed states, in words.
const OBSERVED: [(&str, Observing); 12] = [
    ("nothing", without_vapp),
    ("created, off", || with_vapp(Power::Off, Guest::New)),
    ("booting", || with_vapp(Power::On, booting())),
    ("running", || with_vapp(Power::On, Guest::Ready)),
    ("running, marked", || {
        let mut i = with_vapp(Power::On, Guest::Ready);
        i.vapp_mut().unwrap().mark = Some(Mark::Suspended);
        i
    }),
    ("suspended", || {
        let mut i = with_vapp(Power::Suspended, Guest::Ready);
        i.vapp_mut().unwrap().mark = Some(Mark::Suspended);
        i
    }),
    ("suspended, to be resumed", || with_vapp(Power::Suspended, returning(false))),
    ("resumed, booting", || with_vapp(Power::On, returning(true))),
    ("ready, and never used", || with_vapp(Power::On, Guest::Standby)),
    ("suspended, and never used", || with_vapp(Power::Suspended, Guest::Standby)),
    ("in standby", || {
        let mut i = with_vapp(Power::Suspended, Guest::Standby);
        i.vapp_mut().unwrap().mark = Some(Mark::Standby);
        i
    }),
    ("create failed", || {
        let mut i = with_vapp(Power::Failed, Guest::New);
        i.vapp_mut().unwrap().doomed = true;
        i
    }),
];

const DESIRED: [(&str, Desired); 4] = [
    ("running", Desired::Running),
    ("suspended", Desired::Suspended),
    ("standby", Desired::Standby),
    ("deleted", Desired::Deleted(Cause::Asked)),
];

fn step_of(i: &Instance) -> Step {
    let policy = Policy::default();
    let sight = Sight::new(Time(0), Duration::from_secs(24 * 3600));
    next(i, &At { now: NOW, seen: seen(), sight: &sight, policy: &policy, stopping: false, no_force: false }).step
}

fn words(step: &Step) -> String {
    match step {
        Step::Wait => "–".into(),
        Step::End => "end".into(),
        Step::Begin(Kind::Create { .. }) => "create".into(),
        Step::Begin(Kind::Configure) => "configure".into(),
        Step::Begin(Kind::AddTpm) => "add a TPM".into(),
        Step::Begin(Kind::PowerOn) => "power on".into(),
        Step::Begin(Kind::Suspend) => "suspend".into(),
        Step::Begin(Kind::Resume) => "resume".into(),
        Step::Begin(Kind::Mark(Mark::Suspended)) => "mark, then suspend".into(),
        Step::Begin(Kind::Mark(Mark::Standby)) => "mark as in standby".into(),
        Step::Begin(Kind::Mark(Mark::Running)) => "clear its mark".into(),
        Step::Use => "use it".into(),
        Step::Begin(Kind::Delete(_)) => "delete".into(),
        Step::Ask(question) => format!("{question:?}").to_lowercase(),
        Step::Probe(_) => "probe".into(),
        other => format!("{other:?}"),
    }
}

/// Which desired states are possible for an observed state: only an instance that has run can be suspended.
fn can_be(i: &Instance, desired: Desired) -> bool {
    match desired {
        Desired::Suspended => matches!(i.vapp().map(|v| &v.guest), Some(Guest::Ready)),
        Desired::Standby => !i.has_run(),
        Desired::Running => !(i.is_suspended() && matches!(i.vapp().map(|v| &v.guest), Some(Guest::Ready))),
        Desired::Deleted(_) => true,
    }
}

fn table() -> String {
    let mut table = String::from(
        "| observed | desired: running | suspended | standby | deleted |\n| --- | --- | --- | --- | --- |\n",
    );
    for (observed, make) in OBSERVED {
        let cells = DESIRED.map(|(_, desired)| {
            let mut i = make();
            let can = can_be(&i, desired);
            i.desired = desired;
            if can { words(&step_of(&i)) } else { String::new() }
        });
        let _ = writeln!(table, "| {observed} | {} |", cells.join(" | "));
    }
    table
}

#[test]
fn the_table_of_steps_is_that_of_the_architecture() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/ARCHITECTURE.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (before, rest) = text.split_once("<!-- steps -->\n").unwrap();
    let (held, after) = rest.split_once("<!-- /steps -->").unwrap();
    let table = table();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, format!("{before}<!-- steps -->\n{table}<!-- /steps -->{after}")).unwrap();
        return;
    }
    assert_eq!(held, table);
}

/// In all states: while an operation is in VCD, no other one starts.
#[test]
fn an_operation_prevents_all_others() {
    let slots = Slots::default();
    let kinds = [
        Kind::Create { whole: true },
        Kind::Configure,
        Kind::AddTpm,
        Kind::PowerOn,
        Kind::Suspend,
        Kind::Resume,
        Kind::Mark(Mark::Suspended),
        Kind::Mark(Mark::Standby),
        Kind::Mark(Mark::Running),
        Kind::Delete(Removal::Force),
        Kind::Delete(Removal::Stop),
        Kind::Delete(Removal::Stopped),
        Kind::Other,
    ];
    let task = |cancelled| Stage::Task { task: "t/1".into(), cancelled, found: false };
    for (observed, make) in OBSERVED {
        for (_, desired) in DESIRED {
            for kind in kinds {
                for stage in [Stage::Sent, task(false), task(true), Stage::Unknown { until: NOW, looks: 0 }] {
                    let mut i = make();
                    i.desired = desired;
                    let (has_vapp, goes) = (i.vapp().is_some(), i.goes());
                    let slot = kind.lane().map(|lane| slots.take(lane));
                    i.operation = Some(Operation::new(kind, stage.clone(), slot, NOW, seen()));
                    let stops = goes && !matches!(kind, Kind::Delete(_) | Kind::Mark(_) | Kind::Other);
                    let expected = match stage {
                        Stage::Unknown { .. } if has_vapp => Step::Ask(Question::Look),
                        Stage::Unknown { .. } => Step::Ask(Question::Find),
                        Stage::Task { cancelled: false, .. } if stops && has_vapp => Step::Ask(Question::Cancel),
                        Stage::Task { cancelled: false, .. } if stops => Step::Ask(Question::Find),
                        _ => Step::Wait,
                    };
                    assert_eq!(step_of(&i), expected, "{observed} {desired:?} {kind:?} {stage:?}");
                    // Nor while a lookup is on the wire.
                    i.question = Some(Question::Look);
                    assert_eq!(step_of(&i), Step::Wait);
                }
            }
        }
    }
    assert_eq!(slots.total(), 0, "slots go with their operations");
}

#[test]
fn an_unproven_vapp_is_looked_up_before_a_change() {
    for (observed, make) in OBSERVED {
        for (_, desired) in DESIRED {
            let mut i = make();
            if !can_be(&i, desired) || i.vapp().is_none() {
                continue;
            }
            i.desired = desired;
            let changes = matches!(step_of(&i), Step::Begin(kind) if kind != Kind::PowerOn);
            i.vapp_mut().unwrap().proven = false;
            let step = step_of(&i);
            assert_eq!(step == Step::Ask(Question::Look), changes, "{observed} {desired:?}: {step:?}");
        }
    }
}
