//! What happens to a group in one run: what the host asks, what the administrators do, what goes wrong and when. All of it
//! is drawn from one seed before the run begins, so that a failing run can be cut down to the steps that matter.

use super::{Violation, World};
use std::fmt;
use vcd_sim::model::HardwareInCreate;

/// SplitMix64.
#[derive(Clone)]
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.roll() % n.max(1)
    }

    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// One thing that happens, and when (milliseconds).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    pub at: u64,
    pub act: Act,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Act {
    Increase(u32),
    /// The n-th id that the host knows (modulo their number), whatever its state.
    Decrease(u64),
    DecreaseAll,
    /// The n-th id that the host knows, whatever its state.
    Suspend(u64),
    SuspendAll,
    Resume(u64),
    Heartbeat(u64),
    /// The process dies and comes back after so many milliseconds.
    Crash(u64),
    /// The host shuts down in order, and comes back after so many milliseconds.
    Restart(u64),
    Admin(Admin, u64),
    /// For so many milliseconds, with so many percent of the requests (or tasks, guests) that it concerns.
    Fault(Fault, u64, u64),
}

/// What an administrator does to the n-th vApp of ours, or beside them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admin {
    Delete,
    PowerOff,
    Suspend,
    Rename,
    /// A vApp of somebody else, named like ours.
    Foreign,
    /// The same, of another manager of the same group.
    OtherManager,
    /// A copy of one of ours: its description, another name.
    Copy,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// VCD cannot be reached.
    Unreachable,
    /// The answer to a change is lost, and nothing was done.
    LostBefore,
    /// The answer to a change is lost, and it was done.
    LostAfter,
    /// The answer to a change is lost, and it is done later.
    LostLate,
    /// The session is refused.
    Expired,
    /// The org's operation limit.
    Limit,
    Busy,
    Quota,
    Forbidden,
    ReadFails,
    Slow,
    TaskFails,
    TaskHangs,
    TaskSlow,
    GuestIll,
    QueryStale,
    QueryEmpty,
    QueryPartial,
}

pub const FAULTS: [Fault; 18] = [
    Fault::Unreachable,
    Fault::LostBefore,
    Fault::LostAfter,
    Fault::LostLate,
    Fault::Expired,
    Fault::Limit,
    Fault::Busy,
    Fault::Quota,
    Fault::Forbidden,
    Fault::ReadFails,
    Fault::Slow,
    Fault::TaskFails,
    Fault::TaskHangs,
    Fault::TaskSlow,
    Fault::GuestIll,
    Fault::QueryStale,
    Fault::QueryEmpty,
    Fault::QueryPartial,
];

/// A whole run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub policy: Tuning,
    pub steps: Vec<Step>,
}

/// What differs between groups.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    pub max_size: u32,
    pub max_creates: u32,
    pub max_deletes: u32,
    pub max_operations: u32,
    /// Minutes.
    pub create_timeout: u64,
    /// Minutes; 0: never.
    pub max_age: u64,
    pub keep: bool,
    pub duplicate_names: bool,
    /// What VCD does with hardware in a create.
    pub hardware: HardwareInCreate,
    /// Deletes by force need a right that the plugin's user lacks.
    pub no_force: bool,
    /// The template needs a TPM that it does not have.
    pub tpm: bool,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            max_size: 10,
            max_creates: 3,
            max_deletes: 5,
            max_operations: 4,
            create_timeout: 20,
            max_age: 0,
            keep: false,
            duplicate_names: false,
            hardware: HardwareInCreate::Apply,
            no_force: false,
            tpm: false,
        }
    }
}

/// Swarm: each seed has its own mix of faults, administrators and habits of the host.
pub fn plan(seed: u64) -> Plan {
    let mut dice = Dice(seed ^ 0x5eed_91a1);
    let max_creates = dice.between(1, 5) as u32;
    let policy = Tuning {
        max_size: dice.between(1, 12) as u32,
        max_creates,
        max_deletes: dice.between(1, 5) as u32,
        max_operations: dice.between(1, 6) as u32,
        create_timeout: dice.pick(&[3, 10, 20]),
        max_age: dice.pick(&[0, 0, 10, 60]),
        keep: dice.percent(30),
        duplicate_names: dice.percent(50),
        hardware: dice.pick(&[
            HardwareInCreate::Apply,
            HardwareInCreate::Apply,
            HardwareInCreate::Ignore,
            HardwareInCreate::Refuse,
        ]),
        no_force: dice.percent(20),
        tpm: dice.percent(10),
    };
    let suspends = dice.percent(40);
    let minutes = dice.pick(&[3, 10, 30]);
    let length = minutes * 60_000;
    let mut steps = Vec::new();
    for _ in 0..dice.between(1, 3 + minutes) {
        let at = dice.below(length);
        let act = match dice.below(if suspends { 16 } else { 10 }) {
            10..13 => Act::Suspend(dice.roll() % 64),
            13 => Act::SuspendAll,
            14..16 => Act::Resume(dice.roll() % 64),
            0..4 => Act::Increase(dice.between(1, 4) as u32),
            4..8 => Act::Decrease(dice.roll() % 64),
            8 => Act::Heartbeat(dice.roll() % 64),
            _ => Act::DecreaseAll,
        };
        steps.push(Step { at, act });
    }
    for fault in FAULTS {
        if dice.percent(25) {
            for _ in 0..dice.between(1, 2) {
                let percent = dice.pick(&[5, 20, 50, 100]);
                steps.push(Step {
                    at: dice.below(length),
                    act: Act::Fault(fault, dice.between(1_000, length / 2), percent),
                });
            }
        }
    }
    if dice.percent(40) {
        for _ in 0..dice.between(1, 3) {
            let down = dice.pick(&[100, 2_000, 30_000, 120_000]);
            let act = if dice.percent(70) { Act::Crash(down) } else { Act::Restart(down) };
            steps.push(Step { at: dice.below(length), act });
        }
    }
    if dice.percent(40) {
        let all = [
            Admin::Delete,
            Admin::PowerOff,
            Admin::Suspend,
            Admin::Rename,
            Admin::Foreign,
            Admin::OtherManager,
            Admin::Copy,
        ];
        for _ in 0..dice.between(1, 4) {
            steps.push(Step { at: dice.below(length), act: Act::Admin(dice.pick(&all), dice.roll() % 64) });
        }
    }
    steps.sort_by_key(|step| step.at);
    Plan { seed, policy, steps }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9} ms  {:?}", self.at, self.act)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}, {:?}", self.seed, self.policy)?;
        self.steps.iter().try_for_each(|step| write!(f, "\n    {step}"))
    }
}

/// The shortest plan that still breaks the same invariant.
pub fn shortest(whole: &Plan, violation: &Violation) -> Plan {
    let number = |what: &str| what.split(':').next().unwrap_or_default().to_string();
    shrink(whole, |plan| World::new(plan).run().is_err_and(|v| number(&v.what) == number(&violation.what)))
}

/// The shortest plan that still fails, by leaving out ever smaller pieces. `fails` runs a plan.
fn shrink(plan: &Plan, fails: impl Fn(&Plan) -> bool) -> Plan {
    let mut best = plan.clone();
    let mut piece = best.steps.len().div_ceil(2).max(1);
    loop {
        let mut from = 0;
        let mut shrunk = false;
        while from < best.steps.len() {
            let mut shorter = best.clone();
            shorter.steps.drain(from..(from + piece).min(best.steps.len()));
            if fails(&shorter) {
                best = shorter;
                shrunk = true;
            } else {
                from += piece;
            }
        }
        if piece == 1 && !shrunk {
            return best;
        }
        piece = if shrunk { piece } else { piece.div_ceil(2) }.max(1);
    }
}
