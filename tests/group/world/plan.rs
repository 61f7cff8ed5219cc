//! The events of one run: calls of the host, actions of administrators, and faults, each with its time. One seed
//! determines all of them before the run starts, so that a failing run can be reduced to the important steps.

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

/// One event, its time (milliseconds), and its plugin, if there are several.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    pub at: u64,
    pub to: usize,
    pub act: Act,
}

impl Step {
    /// The end of its effects.
    pub fn end(&self) -> u64 {
        match self.act {
            Act::Outage(minutes) => self.at + minutes * MINUTE,
            _ => self.at,
        }
    }
}

pub const MINUTE: u64 = 60_000;

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
    /// The process dies and starts again after this many milliseconds.
    Crash(u64),
    /// The host shuts down properly, and starts again after this many milliseconds.
    Restart(u64),
    Admin(Admin, u64),
    /// The n-th owned vApp has this fault from now on.
    Stuck(Stuck, u64),
    /// A fault for this many milliseconds, for this percentage of the requests (or tasks, guests) that it concerns.
    Fault(Fault, u64, u64),
    /// VCD is not reachable for this many minutes. Its tasks continue.
    Outage(u64),
    /// All running tasks are aborted, as by a cell that restarts.
    AbortAll,
    /// Maximum number of VMs in the VDC; 0: no limit.
    VmLimit(u32),
    /// From now on VMs are created from another template.
    NewSource,
}

/// What an administrator, or the infrastructure, does to the n-th owned vApp, or to other vApps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admin {
    Delete,
    PowerOff,
    /// Powered on, if it is powered off or suspended.
    PowerOn,
    Suspend,
    Rename,
    /// The first renamed vApp gets its name back.
    RenameBack,
    /// Its VM is deleted; the vApp stays.
    DeleteVm,
    /// Its VM is moved to a foreign vApp.
    MoveVm,
    /// Somebody adds a foreign VM to it.
    AddVm,
    /// The VM gets another description; its vApp keeps the tag.
    DescribeVm,
    /// The vApp gets another description; its VM keeps the tag.
    DescribeVapp,
    /// The ESXi host of its VM stops answering, or answers again.
    HostDown,
    HostUp,
    /// A VM gets another address.
    NewAddress,
    /// Its record no longer shows its address.
    HideAddress,
    /// GC_FAILED is shown late.
    CustomizationFails,
    /// A task of a person works on it for minutes.
    Task,
    /// The VM's description gets a note after the tag.
    NoteVm,
    /// A VM of another manager is moved into it.
    AddOtherVm,
    /// A foreign vApp whose name matches the prefix.
    Foreign,
    /// The same, of another manager of the same group.
    OtherManager,
    /// A copy of an owned vApp: its description, another name.
    Copy,
}

pub const ADMINS: [Admin; 19] = [
    Admin::Delete,
    Admin::PowerOff,
    Admin::PowerOn,
    Admin::Suspend,
    Admin::Rename,
    Admin::RenameBack,
    Admin::DeleteVm,
    Admin::MoveVm,
    Admin::AddVm,
    Admin::DescribeVm,
    Admin::DescribeVapp,
    Admin::HostDown,
    Admin::HostUp,
    Admin::NewAddress,
    Admin::HideAddress,
    Admin::CustomizationFails,
    Admin::Foreign,
    Admin::OtherManager,
    Admin::Copy,
];

/// The fault of one vApp while all others work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stuck {
    /// Its deletes are accepted, and their tasks fail.
    DeleteFails,
    /// The same for forced deletes only: after a stop, the delete works.
    ForceFails,
    /// Its deletes are rejected.
    Locked,
    /// Its tasks never end, and ignore a cancel.
    Hangs,
    /// Its changes have no effect, and their answers do not show that.
    Breaks,
    /// VCD says that it does not know what is to be changed.
    Unfound,
    /// Its tasks never end, and VCD rejects a cancel.
    KeepsTasks,
    /// A person's task works on it for long, and the plugin may not read its tasks.
    HidesTasks,
    /// Its own document cannot be read.
    Unread,
    /// Queries do not show it.
    Unlisted,
}

/// Faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// VCD cannot be reached.
    Unreachable,
    /// VCD receives requests and never answers: they time out.
    Silent,
    /// The answer to a change is lost, and the change was not carried out.
    LostBefore,
    /// The answer to a change is lost, and the change was carried out.
    LostAfter,
    /// The answer to a change is lost, and the change is carried out later.
    LostLate,
    /// The requests of a dead process are carried out minutes later.
    Lingers,
    /// The session is rejected.
    Expired,
    /// The org's operation limit.
    Limit,
    Busy,
    Quota,
    Forbidden,
    /// Creates are rejected because of their content.
    Template,
    ReadFails,
    Slow,
    TaskFails,
    TaskHangs,
    /// Tasks hang and ignore a cancel, and so do all later ones of the same vApp.
    TaskDeaf,
    TaskSlow,
    GuestIll,
    /// New VMs are placed on an ESXi host on which none boots.
    BadHost,
    QueryStale,
    QueryEmpty,
    QueryPartial,
    /// VCD does not show its time.
    NoDate,
    /// A poll shows one VM in another power state.
    QueryOdd,
    /// Polls that ask for vApps, too, fail.
    VappsFail,
    /// The login ports of new guests drop packets.
    NoSsh,
    /// Full polls take long, and other requests do not.
    SlowPolls,
    /// All requests of this operation fail, and no others.
    OneFails(&'static str),
}

pub const FAULTS: [Fault; 24] = [
    Fault::Unreachable,
    Fault::Silent,
    Fault::LostBefore,
    Fault::LostAfter,
    Fault::LostLate,
    Fault::Lingers,
    Fault::Expired,
    Fault::Limit,
    Fault::Busy,
    Fault::Quota,
    Fault::Forbidden,
    Fault::Template,
    Fault::ReadFails,
    Fault::Slow,
    Fault::TaskFails,
    Fault::TaskHangs,
    Fault::TaskDeaf,
    Fault::TaskSlow,
    Fault::GuestIll,
    Fault::BadHost,
    Fault::QueryStale,
    Fault::QueryEmpty,
    Fault::QueryPartial,
    Fault::NoDate,
];

/// A whole run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub policy: Tuning,
    pub steps: Vec<Step>,
}

/// Whether the host may suspend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspends {
    Never,
    Always,
    /// The first process may suspend, its successors may not.
    AtFirst,
}

/// What a VCD never does, although it does all the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quirk {
    None,
    /// It answers each combined create with an error, and nothing is done.
    CreateBreaks,
    /// It creates VMs with a combined create, and never powers them on.
    StaysOff,
    /// It answers each forced delete with an error, and nothing is done.
    ForceBreaks,
    /// The same for each stop before a delete.
    StopBreaks,
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
    pub suspends: Suspends,
    pub duplicate_names: bool,
    /// How VCD treats hardware in a create.
    pub hardware: HardwareInCreate,
    /// Forced deletes need a right that the plugin's user lacks.
    pub no_force: bool,
    /// The template needs a TPM that it does not have.
    pub tpm: bool,
    /// Faults of single vApps end together with the others.
    pub mended: bool,
    /// Number of VMs in standby.
    pub standby: u32,
    /// Minutes until VCD stops a vApp, and then deletes it; 0: never. VCD's shortest lease is an hour, longer than a run.
    pub lease: u64,
    /// At the end of a lease, VCD powers a vApp off. Otherwise it suspends it.
    pub lease_powers_off: bool,
    /// Seconds that the clock of VCD's answers is ahead of the one that dates vApps.
    pub skew: i64,
    /// Number of plugins of different managers that share the VDC.
    pub managers: usize,
    /// Seconds between two polls.
    pub interval: u64,
    pub dhcp: bool,
    pub quirk: Quirk,
    /// The host behaves like fleeting, and whether it uses what it finds after a start. Otherwise the plan contains all
    /// calls.
    pub fleeting: Option<bool>,
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
            suspends: Suspends::Always,
            duplicate_names: false,
            hardware: HardwareInCreate::Apply,
            no_force: false,
            tpm: false,
            mended: false,
            standby: 0,
            lease: 0,
            lease_powers_off: false,
            skew: 0,
            managers: 1,
            interval: 10,
            dhcp: false,
            quirk: Quirk::None,
            fleeting: None,
        }
    }
}

/// Each seed has its own mix of faults, administrators and host behaviour (swarm testing).
pub fn plan(seed: u64) -> Plan {
    let mut dice = Dice(seed ^ 0x5eed_91a1);
    let mut pool = Dice(seed ^ 0x57a9_db7c);
    let mut leases = Dice(seed ^ 0x1ea5_e000);
    let mut odd = Dice(seed ^ 0x0ddb_a115);
    let mut late = Dice(seed ^ 0x01a7_e0f0);
    let mut quirks = Dice(seed ^ 0x0901_2c50);
    let large = dice.percent(3);
    let fleeting = dice.pick(&[None, None, None, Some(false), Some(true)]);
    // With a host that replaces old instances, the run would never come to rest.
    let ages: &[u64] = if large || fleeting.is_some() { &[0, 0, 120] } else { &[0, 0, 10, 60] };
    let mut policy = Tuning {
        max_size: if large { 60 } else { dice.between(1, 12) as u32 },
        max_creates: dice.between(1, 5) as u32,
        max_deletes: dice.between(1, 5) as u32,
        max_operations: dice.between(1, 6) as u32,
        create_timeout: dice.pick(&[3, 10, 20]),
        max_age: dice.pick(ages),
        keep: dice.percent(30),
        suspends: dice.pick(&[Suspends::Never, Suspends::Never, Suspends::Always, Suspends::AtFirst]),
        duplicate_names: dice.percent(50),
        hardware: dice.pick(&[
            HardwareInCreate::Apply,
            HardwareInCreate::Apply,
            HardwareInCreate::Ignore,
            HardwareInCreate::Refuse,
        ]),
        no_force: dice.percent(20),
        tpm: dice.percent(10),
        mended: dice.percent(50),
        standby: if pool.percent(30) { pool.between(1, 3) as u32 } else { 0 },
        // A host that replaces what is about to end would never come to rest.
        lease: if leases.percent(10) && fleeting.is_none() { leases.between(12, 60) } else { 0 },
        lease_powers_off: leases.percent(50),
        skew: if dice.percent(20) { dice.between(0, 360) as i64 - 180 } else { 0 },
        managers: if dice.percent(10) { 2 } else { 1 },
        interval: if late.percent(8) { late.pick(&[1, 60, 300]) } else { 10 },
        dhcp: late.percent(10),
        quirk: Quirk::None,
        fleeting,
    };
    policy.quirk = match quirks.below(25) {
        0 => Quirk::CreateBreaks,
        1 => Quirk::StaysOff,
        2 => Quirk::ForceBreaks,
        3 => Quirk::StopBreaks,
        _ => Quirk::None,
    };
    let minutes = dice.pick(&[3, 10, 30]);
    let mut swarm = Swarm { dice, length: minutes * MINUTE, managers: policy.managers, steps: Vec::new() };
    swarm.host(minutes, policy.suspends != Suspends::Never, large);
    swarm.faults();
    swarm.lives();
    swarm.starts();
    swarm.administrators();
    swarm.one_alone();
    swarm.odd_ones(&mut odd);
    swarm.unread_ones(&mut odd);
    swarm.silent_ports(&mut odd, large);
    swarm.late_ones(&mut late);
    swarm.one_operation(&mut late);
    swarm.outage_in_init(&mut quirks, policy.suspends != Suspends::Never);
    if policy.standby > 0 && pool.percent(30) {
        swarm.steps.push(Step { at: pool.below(swarm.length), to: 0, act: Act::NewSource });
    }
    let mut steps = swarm.steps;
    steps.sort_by_key(|step| step.at);
    let no_force = |step: &Step| matches!(step.act, Act::Stuck(Stuck::ForceFails | Stuck::Locked, _));
    if policy.quirk == Quirk::StopBreaks && (policy.no_force || steps.iter().any(no_force)) {
        // No delete would work.
        policy.quirk = Quirk::None;
    }
    Plan { seed, policy, steps }
}

/// The steps of an unfinished plan.
struct Swarm {
    dice: Dice,
    length: u64,
    managers: usize,
    steps: Vec<Step>,
}

impl Swarm {
    fn add(&mut self, at: u64, act: Act) {
        let to = self.dice.below(self.managers as u64) as usize;
        self.steps.push(Step { at, to, act });
    }

    fn add_somewhen(&mut self, act: Act) {
        let at = self.dice.below(self.length);
        self.add(at, act);
    }

    /// This long after one of the requests for new instances, or at any time.
    fn after_an_increase(&mut self, low: u64, high: u64) -> u64 {
        let times: Vec<u64> =
            self.steps.iter().filter(|step| matches!(step.act, Act::Increase(_))).map(|step| step.at).collect();
        let from = if times.is_empty() { self.dice.below(self.length) } else { self.dice.pick(&times) };
        from + self.dice.between(low, high)
    }

    fn host(&mut self, minutes: u64, suspends: bool, large: bool) {
        if large {
            let n = self.dice.between(20, 60) as u32;
            self.add_somewhen(Act::Increase(n));
        }
        for _ in 0..self.dice.between(1, 3 + minutes) {
            let act = match self.dice.below(if suspends { 16 } else { 10 }) {
                10..13 => Act::Suspend(self.dice.roll() % 64),
                13 => Act::SuspendAll,
                14..16 => Act::Resume(self.dice.roll() % 64),
                0..4 => Act::Increase(self.dice.between(1, 4) as u32),
                4..8 => Act::Decrease(self.dice.roll() % 64),
                8 => Act::Heartbeat(self.dice.roll() % 64),
                _ => Act::DecreaseAll,
            };
            self.add_somewhen(act);
        }
    }

    /// Temporary faults that concern everybody.
    fn faults(&mut self) {
        let share = self.dice.pick(&[0, 6, 20]);
        for fault in FAULTS {
            if self.dice.percent(share) {
                for _ in 0..self.dice.between(1, 2) {
                    let percent = self.dice.pick(&[5, 20, 50, 100]);
                    let long = self.dice.between(1_000, self.length / 2);
                    self.add_somewhen(Act::Fault(fault, long, percent));
                }
            }
        }
        if self.dice.percent(8) {
            // Guests boot meanwhile.
            let at = self.after_an_increase(0, 90_000);
            let minutes = self.dice.pick(&[12, 12, 60, 180]);
            self.add(at, Act::Outage(minutes));
        }
        if self.dice.percent(12) {
            let at = self.after_an_increase(0, 40_000);
            self.add(at, Act::AbortAll);
        }
        if self.dice.percent(6) {
            // A fault from the start, until somebody notices it.
            let fault = self.dice.pick(&[Fault::Template, Fault::Forbidden, Fault::Quota]);
            let long = self.dice.between(MINUTE, self.length);
            self.add(0, Act::Fault(fault, long, 100));
        }
        if self.dice.percent(4) {
            let (long, percent) = (self.length, self.dice.pick(&[30, 60, 100]));
            self.add(0, Act::Fault(Fault::BadHost, long, percent));
        }
        if self.dice.percent(6) {
            let most = self.dice.between(1, 6) as u32;
            self.add_somewhen(Act::VmLimit(most));
            self.add_somewhen(Act::VmLimit(0));
        }
        if self.dice.percent(6) {
            self.add(0, Act::Fault(Fault::NoDate, self.length, 100));
        }
    }

    fn lives(&mut self) {
        if self.dice.percent(40) {
            for _ in 0..self.dice.between(1, 3) {
                let down = self.dice.pick(&[100, 2_000, 30_000, 120_000]);
                let act = if self.dice.percent(70) { Act::Crash(down) } else { Act::Restart(down) };
                self.add_somewhen(act);
            }
        }
        if self.dice.percent(15) {
            // Killed with creates on the wire, and the next process gets an Increase.
            let (at, down) = (self.after_an_increase(1, 3_000), self.dice.pick(&[100, 2_000, 20_000]));
            self.add(at, Act::Crash(down));
            let again = at + down + self.dice.between(500, 30_000);
            let n = self.dice.between(1, 4) as u32;
            self.add(again, Act::Increase(n));
        }
    }

    /// The first poll of a process is incomplete.
    fn starts(&mut self) {
        if self.dice.percent(5) {
            let (at, down) = (self.after_an_increase(60_000, 300_000), self.dice.pick(&[100, 2_000, 30_000]));
            let fault = self.dice.pick(&[Fault::QueryEmpty, Fault::QueryPartial, Fault::QueryStale]);
            let long = down + self.dice.pick(&[500, 5_000, 15_000]);
            self.add(at, Act::Fault(fault, long, 100));
            self.add(at, Act::Crash(down));
        }
    }

    fn administrators(&mut self) {
        if self.dice.percent(40) {
            for _ in 0..self.dice.between(1, 4) {
                let (admin, n) = (self.dice.pick(&ADMINS), self.dice.roll() % 64);
                self.add_somewhen(Act::Admin(admin, n));
            }
        }
    }

    /// Rare faults of single vApps, with dice of their own.
    fn odd_ones(&mut self, dice: &mut Dice) {
        if !dice.percent(15) {
            return;
        }
        for _ in 0..dice.between(1, 3) {
            let n = dice.roll() % 64;
            let act = match dice.below(10) {
                0 => Act::Stuck(Stuck::Breaks, n),
                1 => Act::Stuck(Stuck::Unfound, n),
                2 => Act::Stuck(Stuck::KeepsTasks, n),
                3 => Act::Stuck(Stuck::HidesTasks, n),
                4 => Act::Admin(Admin::Task, n),
                5 => Act::Admin(Admin::NoteVm, n),
                6 => Act::Fault(Fault::QueryOdd, self.length, dice.pick(&[2, 10])),
                7 => Act::Stuck(Stuck::Unread, n),
                8 => Act::Stuck(Stuck::Unlisted, n),
                _ => Act::Admin(Admin::AddOtherVm, n),
            };
            let to = dice.below(self.managers as u64) as usize;
            self.steps.push(Step { at: dice.below(self.length), to, act });
        }
    }

    /// A vApp whose document cannot be read, when its instance is created, hangs, is deleted, or is left over.
    fn unread_ones(&mut self, dice: &mut Dice) {
        if !dice.percent(3) {
            return;
        }
        let (mut at, n) = (self.after_an_increase(0, 120_000).min(self.length), dice.roll() % 64);
        self.add(at, Act::Stuck(Stuck::Unread, n));
        if dice.percent(30) {
            self.add(at, Act::Stuck(Stuck::Hangs, n));
        }
        if dice.percent(30) {
            self.add(at, Act::Fault(Fault::QueryStale, 2 * MINUTE, 100));
        }
        at += dice.between(1_000, 2 * MINUTE);
        self.add(at, if dice.percent(50) { Act::Crash(2_000) } else { Act::Decrease(n) });
        self.add(at + MINUTE, Act::Increase(2));
    }

    /// Many guests whose login port drops packets, and others after them.
    fn silent_ports(&mut self, dice: &mut Dice, large: bool) {
        if !dice.percent(if large { 50 } else { 2 }) {
            return;
        }
        let (at, percent) = (self.after_an_increase(0, 30_000), dice.pick(&[50, 90]));
        let long = dice.between(1, 6) * MINUTE;
        self.add(at, Act::Fault(Fault::NoSsh, long, percent));
        if large {
            self.add(at, Act::Increase(25));
            self.add(at + long, Act::Increase(4));
        }
    }

    /// Requests of one operation fail for long, and no others. Or full polls are slow.
    fn one_operation(&mut self, dice: &mut Dice) {
        if dice.percent(5) {
            let long = dice.between(self.length / 4, self.length);
            self.add_somewhen(Act::Fault(Fault::SlowPolls, long, dice.pick(&[30, 100])));
        }
        if dice.percent(5) {
            let operation = dice.pick(&[
                "poll_some",
                "tasks",
                "look",
                "find",
                "cancel",
                "mark",
                "configure",
                "suspend",
                "power_on",
                "undeploy",
                "delete",
            ]);
            let long = dice.between(self.length / 4, self.length);
            self.add_somewhen(Act::Fault(Fault::OneFails(operation), long, 100));
        }
    }

    /// VCD stops answering after the first poll of a process that finds suspended instances.
    fn outage_in_init(&mut self, dice: &mut Dice, suspends: bool) {
        if !dice.percent(if suspends { 8 } else { 1 }) {
            return;
        }
        let (at, down) = (self.after_an_increase(2 * MINUTE, 5 * MINUTE), 2_000);
        let fault = dice.pick(&[Fault::Unreachable, Fault::Silent, Fault::OneFails("look")]);
        let begins = at + down + dice.pick(&[1, 1, 500, 4_000]);
        self.add(at - MINUTE, Act::SuspendAll);
        self.add(at, Act::Crash(down));
        let (percent, long) = (dice.pick(&[50, 100, 100]), dice.between(5_000, 90_000));
        self.add(begins, Act::Fault(fault, long, percent));
    }

    /// What happens when the first hour is over, and the poll with vApps is due again.
    fn late_ones(&mut self, dice: &mut Dice) {
        if !dice.percent(3) {
            return;
        }
        if dice.percent(70) {
            let (at, long) = (dice.between(50, 60) * MINUTE, dice.between(5, 60) * MINUTE);
            self.add(at, Act::Fault(Fault::VappsFail, long, dice.pick(&[50, 100])));
        }
        for _ in 0..dice.between(2, 6) {
            let act = match dice.below(6) {
                0..3 => Act::Increase(dice.between(1, 3) as u32),
                3 => Act::Suspend(dice.roll() % 64),
                4 => Act::Resume(dice.roll() % 64),
                _ => Act::Decrease(dice.roll() % 64),
            };
            self.add(dice.between(40, 140) * MINUTE, act);
        }
    }

    /// Faults of single vApps that do not end with the others.
    fn one_alone(&mut self) {
        if self.dice.percent(25) {
            for _ in 0..self.dice.between(1, 4) {
                let stuck = self.dice.pick(&[Stuck::DeleteFails, Stuck::Locked, Stuck::Hangs, Stuck::ForceFails]);
                let at = self.after_an_increase(0, 120_000).min(self.length);
                let n = self.dice.roll() % 64;
                self.add(at, Act::Stuck(stuck, n));
            }
        }
        if self.dice.percent(4) {
            // Deletes fail, and suspended instances have to resume.
            let at = self.after_an_increase(60_000, 180_000);
            let stuck = self.dice.pick(&[Stuck::DeleteFails, Stuck::Hangs]);
            for (after, count) in [(0, 3), (20_000, 4), (30_000, 4), (60_000, 3)] {
                for _ in 0..count {
                    let n = self.dice.roll() % 64;
                    let act = match after {
                        0 => Act::Suspend(n),
                        20_000 => Act::Stuck(stuck, n),
                        30_000 => Act::Decrease(n),
                        _ => Act::Resume(n),
                    };
                    self.add(at + after, act);
                }
            }
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = if self.to == 0 { String::new() } else { format!(" (plugin {})", self.to) };
        write!(f, "{:>9} ms  {:?}{to}", self.at, self.act)
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
    shrink(whole, |plan| World::new(plan).run().is_err_and(|v| v.number() == violation.number()))
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
