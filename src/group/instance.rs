//! One instance: what is wanted of it, what is known of it, and how both look to the host and to people.

use super::steps::{CUSTOMIZATION_GRACE, CUSTOMIZATION_GRACE_WINDOWS};
use super::{Event, Name, State, Time};
use crate::cloud::{Customization, Href, Power, Vm, is_windows};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Where an instance is in its life, as users know it from the debug page and the logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Accepted; VCD has not been asked yet, or a failed try has been cleared away.
    PendingCreate,
    /// VCD makes it, or it boots.
    Creating,
    /// Its login port answered.
    Running,
    /// To be suspended, or VCD is at it.
    Suspending,
    /// Its memory is on disk.
    Suspended,
    /// To be resumed, VCD is at it, or its login port does not answer yet.
    Resuming,
    /// To be deleted; VCD has not been asked yet.
    PendingDelete,
    /// VCD deletes it.
    Deleting,
    /// VCD does not know it any more.
    Deleted,
}

impl Phase {
    /// All, in the order of a life.
    pub const ALL: [Phase; 6] =
        [Phase::PendingCreate, Phase::Creating, Phase::Running, Phase::PendingDelete, Phase::Deleting, Phase::Deleted];

    /// True if an instance may stay in it for as long as it likes: nothing is awaited.
    pub fn rests(self) -> bool {
        match self {
            Phase::Running | Phase::Suspended | Phase::Deleted => true,
            Phase::PendingCreate | Phase::Creating | Phase::PendingDelete | Phase::Deleting => false,
            Phase::Suspending | Phase::Resuming => false,
        }
    }

    /// As users of the Go plugin know it.
    pub fn name(self) -> &'static str {
        match self {
            Phase::PendingCreate => "PendingCreate",
            Phase::Creating => "Creating",
            Phase::Running => "Running",
            Phase::Suspending => "Suspending",
            Phase::Suspended => "Suspended",
            Phase::Resuming => "Resuming",
            Phase::PendingDelete => "PendingDelete",
            Phase::Deleting => "Deleting",
            Phase::Deleted => "Deleted",
        }
    }
}

/// What is wanted of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    Live,
    Asleep,
    Gone(Cause),
}

impl Goal {
    pub fn is_gone(self) -> bool {
        matches!(self, Goal::Gone(_))
    }
}

/// Why an instance has to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The host said so.
    Asked,
    Shutdown,
    /// It did not come to running in time.
    Timeout,
    /// VCD has lost it, or somebody took it over.
    Lost,
    /// It was off or broken for too long, or did not come back from its suspension.
    Ill,
    /// Older than twice max_instance_age, or suspended for longer than suspended_max_age.
    Aged,
    /// Half made in an earlier life, or made by a request that was given up.
    Leftover,
}

impl Cause {
    /// One word, for the debug pages.
    pub fn name(self) -> &'static str {
        match self {
            Cause::Asked => "asked",
            Cause::Shutdown => "shutdown",
            Cause::Timeout => "timeout",
            Cause::Lost => "lost",
            Cause::Ill => "ill",
            Cause::Aged => "aged",
            Cause::Leftover => "leftover",
        }
    }

    /// For the log.
    pub fn words(self) -> (log::Level, &'static str) {
        match self {
            Cause::Asked => (log::Level::Info, "removal asked for by the host"),
            Cause::Shutdown => (log::Level::Info, "removed because the host shuts down"),
            Cause::Timeout => {
                (log::Level::Error, "not running within create_timeout: given up, what it left is deleted")
            }
            Cause::Lost => (log::Level::Warn, "VCD does not have it any more: reported as deleted"),
            Cause::Ill => (log::Level::Warn, "off, broken or not back from its suspension for too long: deleted"),
            Cause::Aged => {
                (log::Level::Warn, "older than twice max_instance_age, or suspended past suspended_max_age: deleted")
            }
            Cause::Leftover => (log::Level::Info, "a leftover of ours that nobody uses: deleted"),
        }
    }
}

/// What is known of the instance's vApp.
#[derive(Clone, Debug)]
pub(super) enum There {
    /// VCD has no such vApp.
    Absent,
    /// A create went out and its outcome is not known: the name is looked up. Seen as missing `looks` times since `since`.
    Unclear { since: Time, looks: u32 },
    /// A task works on it. `cancelled`: VCD was asked to stop.
    Working { work: Work, vapp: Href, task: Href, since: Time, cancelled: bool },
    /// Made, and off: what it still lacks is seen by a look, then it is powered on.
    Fitting { vapp: Href },
    /// On. Waits for power, address and customization, then for the login port.
    Booting { vapp: Href },
    /// The login port answered (or it was complete when it was found).
    Ready { vapp: Href },
    /// Its memory is on disk, since then as far as is known.
    Suspended { vapp: Href, since: Time },
    /// Has to be deleted, and VCD has not been asked yet. If it is wanted it is made anew after that.
    Scrap { vapp: Href },
    /// It may be gone: looked at directly.
    Leaving { vapp: Href },
    /// Named like ours; its own document tells whether it is.
    Stranger { vapp: Href },
}

/// What a task does to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Makes it. `last`: it is on after that; else it is looked at for what it lacks.
    Make {
        last: bool,
    },
    Suspend,
    Resume,
    /// Something that was not begun here, found when it was to be resumed (`asleep`) or suspended.
    Held {
        asleep: bool,
    },
    /// Deletes it, or holds it so that it cannot be deleted yet: it is looked at after that.
    Remove,
}

/// What is asked about an instance right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Create,
    Fit(Fit),
    Find,
    Look,
    Suspend,
    Resume,
    Delete,
    Cancel,
}

/// A step between a create without hardware and the first boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    Configure,
    Tpm,
    PowerOn,
}

/// How an instance is deleted: by force or, where VCD refuses that, stopped first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removal {
    Force,
    Stop,
    Stopped,
}

/// The metadata label, written once the instance runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Label {
    Wanted { tries: u32, not_before: Time },
    OnWire { tries: u32 },
    Settled,
}

/// What the last poll that showed the VM said.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub power: Power,
    /// A task held it.
    pub busy: bool,
    pub address: Option<IpAddr>,
    pub customization: Customization,
    pub guest_os: Arc<str>,
}

impl Facts {
    /// `resumed`: its customization was over before it was suspended, whatever is told of it now.
    pub fn of(vm: &Vm, resumed: bool) -> Facts {
        let (power, busy) = (vm.power, vm.busy);
        let customization = if resumed { Customization::Complete } else { vm.customization };
        Facts { power, busy, address: vm.address, customization, guest_os: vm.guest_os.as_str().into() }
    }

    /// Nothing but the login port is missing.
    pub fn complete(&self) -> bool {
        self.power == Power::On
            && self.address.is_some()
            && matches!(self.customization, Customization::Complete | Customization::Unknown)
    }

    /// Customization has reported nothing yet, and perhaps never will: old Tools do not.
    pub fn silent(&self) -> bool {
        self.power == Power::On && self.address.is_some() && self.customization == Customization::Pending
    }
}

/// One instance. Those with `reported == false` are strays: vApps of ours that no id of the host stands for.
pub(super) struct Instance {
    pub name: Name,
    pub reported: bool,
    /// It was there before the group began: creates may be held for it.
    pub earlier: bool,
    /// It was looked at once since it was found.
    pub looked: bool,
    /// Its vApp's own document has shown that it is ours, and no poll the contrary since: nothing is changed before.
    pub proven: bool,
    pub goal: Goal,
    pub there: There,
    /// A request about it is on the wire.
    pub asked: Option<Asked>,
    /// Its create carried everything, and powers it on.
    pub whole: bool,
    /// Its hardware was set by a request of its own.
    pub configured: bool,
    /// It was given a TPM.
    pub tpm: bool,
    /// How often its hardware was asked for, to compare it with the wish; [`CHECKS`] when that is done.
    pub checks: u32,
    /// It is looked at: the outcome of a fitting, suspend or resume is not known, and it may be carried out until then; or
    /// polls show what should not be.
    pub unsure: Option<Time>,
    /// It has run, and was suspended since: a guest that does not come back is not made anew.
    pub resumed: bool,
    pub removal: Removal,
    /// Its login port is being probed.
    pub probing: bool,
    /// Its login port has answered every probe since, while customization reports nothing.
    pub steady: Option<Time>,
    /// The group's label was on it when it was found, or was written since.
    pub labelled: bool,
    /// It was made with other generated credentials than those of today.
    pub locked_out: bool,
    /// When it was accepted or found.
    pub since: Time,
    /// How old it was then.
    pub age_before: Duration,
    /// When the create is given up: from its first try on, create_timeout later.
    pub deadline: Time,
    /// When VCD was first asked to make it.
    pub first_try: Option<Time>,
    /// The next step is not taken before this.
    pub not_before: Time,
    /// The next create is not begun before this.
    pub create_after: Time,
    /// Creates that failed.
    pub retries: u32,
    /// Deletes and looks that failed in a row.
    pub stumbles: u32,
    pub error: Option<Arc<str>>,
    /// Polls in a row, sent after `known`, that did not show it.
    pub missed: u32,
    /// So many missed polls ask for a direct look; doubles when the look finds it.
    pub patience: u32,
    /// Since when its vApp is known: polls that were sent before say nothing of it.
    pub known: Time,
    pub facts: Option<Facts>,
    /// Its address outside the NAT of its vApp, if a look at that showed one: the vApps that are made here have no NAT.
    pub external: Option<IpAddr>,
    /// When a poll showed it last.
    pub seen: Time,
    /// Polls in a row that showed it off, or on, when it should not be.
    pub off: u32,
    /// When VCD will suspend or delete it by itself.
    pub lease_end: Option<Time>,
    pub label: Label,
    /// Off or broken since, and how. Heartbeat says so.
    pub ill: Option<(Time, &'static str)>,
    pub ended: Option<Time>,
    /// The vApp that it had last, which late polls may still show.
    pub last_vapp: Option<Href>,
}

/// Three polls in a row without an instance ask for a direct look.
pub(super) const MISSED_POLLS: u32 = 3;

/// What the last poll said of an instance counts for so long: polls fail, lag, or leave some out.
pub(super) const WATCHED: Duration = Duration::from_secs(60);

/// A made VM's hardware is asked for at most so many times if VCD does not answer.
pub(super) const CHECKS: u32 = 3;

impl Instance {
    pub fn new(name: Name, there: There, now: Time) -> Instance {
        Instance {
            name,
            reported: false,
            earlier: false,
            looked: false,
            proven: false,
            goal: Goal::Live,
            there,
            asked: None,
            whole: true,
            configured: false,
            tpm: false,
            checks: 0,
            unsure: None,
            resumed: false,
            removal: Removal::Force,
            probing: false,
            steady: None,
            labelled: false,
            locked_out: false,
            since: now,
            age_before: Duration::ZERO,
            deadline: now,
            first_try: None,
            not_before: now,
            create_after: now,
            retries: 0,
            stumbles: 0,
            error: None,
            missed: 0,
            patience: MISSED_POLLS,
            known: now,
            facts: None,
            external: None,
            seen: now,
            off: 0,
            lease_end: None,
            label: Label::Settled,
            ill: None,
            ended: None,
            last_vapp: None,
        }
    }

    /// A vApp of ours, or perhaps ours, that no id of the host stands for.
    pub fn stray(name: Name, there: There, now: Time) -> Instance {
        Instance { goal: Goal::Gone(Cause::Leftover), ..Instance::new(name, there, now) }
    }

    /// Its vApp, if one is known.
    pub fn vapp(&self) -> Option<&Href> {
        match &self.there {
            There::Absent | There::Unclear { .. } => None,
            There::Working { vapp, .. }
            | There::Fitting { vapp }
            | There::Booting { vapp }
            | There::Ready { vapp }
            | There::Suspended { vapp, .. }
            | There::Scrap { vapp }
            | There::Leaving { vapp }
            | There::Stranger { vapp } => Some(vapp),
        }
    }

    /// Moves to where `vapp` is known since `now`.
    pub fn place(&mut self, there: There, now: Time) {
        self.there = there;
        self.known = now;
        self.steady = None;
        self.off = 0;
        self.missed = 0;
        self.patience = MISSED_POLLS;
        if let Some(vapp) = self.vapp() {
            self.last_vapp = Some(vapp.clone());
        }
    }

    /// On the way out: deleted, or looked at first if a task may hold it: an earlier life's, one that a poll showed, or one
    /// whose beginning is not known.
    pub fn scrap(&mut self, vapp: Href) {
        let busy = self.facts.as_ref().is_some_and(|facts| facts.busy);
        self.there =
            if busy || self.earlier || self.unsure.is_some() { There::Leaving { vapp } } else { There::Scrap { vapp } };
    }

    /// How long its login port must answer steadily if customization reports nothing.
    pub fn grace(&self) -> Duration {
        match &self.facts {
            Some(facts) if is_windows(&facts.guest_os) => CUSTOMIZATION_GRACE_WINDOWS,
            _ => CUSTOMIZATION_GRACE,
        }
    }

    pub fn is_ready(&self) -> bool {
        matches!(self.there, There::Ready { .. })
    }

    /// What a task does to it now.
    pub fn work(&self) -> Option<Work> {
        match self.there {
            There::Working { work, .. } => Some(work),
            _ => None,
        }
    }

    /// It has run: it is kept if running instances are, and lost if it goes.
    pub fn has_run(&self) -> bool {
        match self.there {
            There::Ready { .. } | There::Suspended { .. } => true,
            There::Working { work: Work::Suspend | Work::Resume | Work::Held { .. }, .. } => true,
            There::Booting { .. } => self.resumed,
            _ => false,
        }
    }

    /// It was made now, and its hardware has not been compared with the wish yet.
    pub fn is_unchecked(&self) -> bool {
        matches!(self.there, There::Booting { .. }) && self.checks < CHECKS && !self.resumed
    }

    /// A poll has shown it lately.
    pub fn is_watched(&self, now: Time) -> bool {
        self.facts.is_some() && now - self.seen <= WATCHED
    }

    /// Wanted again after a suspension: has until `deadline` to come back.
    pub fn rouse(&mut self, deadline: Time) {
        self.goal = Goal::Live;
        self.resumed = true;
        self.deadline = deadline;
    }

    /// Counts towards max_size.
    pub fn counts(&self) -> bool {
        self.ended.is_none()
    }

    /// VCD works on its create, or has been asked to.
    pub fn create_slot(&self) -> bool {
        self.asked == Some(Asked::Create)
            || matches!(self.there, There::Unclear { .. } | There::Fitting { .. })
            || matches!(self.work(), Some(Work::Make { .. }))
    }

    /// VCD works on its deletion, or has been asked to.
    pub fn delete_slot(&self) -> bool {
        self.asked == Some(Asked::Delete)
            || matches!(self.there, There::Leaving { .. })
            || self.work() == Some(Work::Remove)
    }

    /// VCD suspends or resumes it, or has been asked to.
    pub fn other_slot(&self) -> bool {
        let unclear = self.unsure.is_some() && (self.is_ready() || matches!(self.there, There::Suspended { .. }));
        unclear
            || matches!(self.asked, Some(Asked::Suspend | Asked::Resume))
            || matches!(self.work(), Some(Work::Suspend | Work::Resume | Work::Held { .. }))
    }

    pub fn age(&self, now: Time) -> Duration {
        self.age_before + (now - self.since)
    }

    pub fn state(&self) -> State {
        match self.goal {
            Goal::Gone(Cause::Timeout) => State::Timeout,
            _ if self.ended.is_some() => State::Deleted,
            Goal::Gone(_) => State::Deleting,
            Goal::Asleep if matches!(self.there, There::Suspended { .. }) => State::Suspended,
            Goal::Asleep => State::Suspending,
            Goal::Live if self.is_ready() => State::Running,
            Goal::Live if self.resumed => State::Resuming,
            Goal::Live => State::Creating,
        }
    }

    pub fn phase(&self) -> Phase {
        match (self.goal, &self.there) {
            _ if self.ended.is_some() => Phase::Deleted,
            (Goal::Asleep, There::Suspended { .. }) => Phase::Suspended,
            (Goal::Asleep, _) => Phase::Suspending,
            (Goal::Live, There::Ready { .. }) => Phase::Running,
            (Goal::Live, _) if self.resumed => Phase::Resuming,
            (Goal::Live, There::Absent) if self.asked.is_none() => Phase::PendingCreate,
            (Goal::Live, _) => Phase::Creating,
            (Goal::Gone(_), _) if self.delete_slot() => Phase::Deleting,
            (Goal::Gone(_), _) => Phase::PendingDelete,
        }
    }

    /// What it waits for, in a few words.
    pub fn waits_for(&self, now: Time) -> &'static str {
        if self.ended.is_some() {
            return "";
        }
        match (&self.there, self.asked) {
            (_, Some(Asked::Create)) => "VCD to accept the create",
            (_, Some(Asked::Delete)) => "VCD to accept the delete",
            (_, Some(Asked::Cancel)) => "VCD to cancel its task",
            (_, Some(Asked::Fit(_))) => "VCD to accept its fitting",
            (_, Some(Asked::Suspend)) => "VCD to accept the suspend",
            (_, Some(Asked::Resume)) => "VCD to accept the resume",
            (There::Unclear { .. }, _) => "a look whether the create worked",
            (There::Working { cancelled: true, .. }, _) => "its task to stop",
            (There::Working { work: Work::Make { .. }, .. }, _) => "the create's task",
            (There::Working { work: Work::Suspend, .. }, _) => "the suspend's task",
            (There::Working { work: Work::Resume, .. }, _) => "the resume's task",
            (There::Working { work: Work::Held { .. }, .. }, _) => "a task that holds it",
            (There::Working { work: Work::Remove, .. }, _) => "the delete's task",
            (There::Fitting { .. }, _) => "a look at what it lacks",
            (There::Booting { .. }, _) => match &self.facts {
                Some(facts) if facts.complete() => "the login port",
                Some(Facts { power: Power::On, address: Some(_), .. }) => "guest customization",
                Some(Facts { power: Power::On, .. }) => "an address",
                _ => "power on",
            },
            (There::Ready { .. } | There::Suspended { .. }, _) if self.unsure.is_some() => "a direct look",
            (There::Ready { .. }, _) if self.goal == Goal::Asleep => "a free slot to be suspended",
            (There::Suspended { .. }, _) if self.goal == Goal::Live => "a free slot to be resumed",
            (There::Ready { .. } | There::Suspended { .. }, _) => "",
            (There::Leaving { .. } | There::Stranger { .. }, _) => "a direct look",
            (There::Absent | There::Scrap { .. }, _) if self.not_before > now || self.create_after > now => {
                "the next try"
            }
            (There::Absent, _) => "a free create slot",
            (There::Scrap { .. }, _) => "a free delete slot",
        }
    }

    pub fn event(&self, level: log::Level, text: String) -> Event {
        Event { level, name: Some(self.name.clone()), phase: Some(self.phase()), text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vapp() -> Href {
        "v/1".into()
    }

    fn working(work: Work) -> There {
        There::Working { work, vapp: vapp(), task: "t/1".into(), since: Time(0), cancelled: false }
    }

    /// Every place, in the order of [`There`], then every work.
    fn places() -> [There; 16] {
        let vapp = vapp();
        [
            There::Absent,
            There::Unclear { since: Time(0), looks: 0 },
            There::Fitting { vapp: vapp.clone() },
            There::Booting { vapp: vapp.clone() },
            There::Ready { vapp: vapp.clone() },
            There::Suspended { vapp: vapp.clone(), since: Time(0) },
            There::Scrap { vapp: vapp.clone() },
            There::Leaving { vapp: vapp.clone() },
            There::Stranger { vapp },
            working(Work::Make { last: true }),
            working(Work::Make { last: false }),
            working(Work::Suspend),
            working(Work::Resume),
            working(Work::Held { asleep: true }),
            working(Work::Held { asleep: false }),
            working(Work::Remove),
        ]
    }

    fn at(there: There) -> Instance {
        Instance::new("ci-00000001".into(), there, Time(1000))
    }

    /// Which of [`places`] a question is true of.
    fn which(of: impl Fn(&mut Instance) -> bool) -> Vec<usize> {
        let all = places().into_iter().map(at).enumerate();
        all.filter_map(|(n, mut i)| of(&mut i).then_some(n)).collect()
    }

    fn facts(power: Power, address: bool, customization: Customization) -> Facts {
        let address = address.then(|| IpAddr::from([10, 0, 0, 1]));
        Facts { power, busy: false, address, customization, guest_os: "Debian".into() }
    }

    #[test]
    fn slots_are_taken_by_what_vcd_works_on() {
        assert_eq!(which(|i| i.create_slot()), [1, 2, 9, 10]);
        assert_eq!(which(|i| i.delete_slot()), [7, 15]);
        assert_eq!(which(|i| i.other_slot()), [11, 12, 13, 14]);
        let unsure = |i: &mut Instance| {
            i.unsure = Some(Time(0));
            i.other_slot()
        };
        assert_eq!(which(unsure), [4, 5, 11, 12, 13, 14]);
        for asked in [
            Asked::Create,
            Asked::Fit(Fit::PowerOn),
            Asked::Find,
            Asked::Look,
            Asked::Suspend,
            Asked::Resume,
            Asked::Delete,
            Asked::Cancel,
        ] {
            let mut i = at(There::Absent);
            i.asked = Some(asked);
            let slots = (i.create_slot(), i.delete_slot(), i.other_slot());
            let of = |kinds: &[Asked]| kinds.contains(&asked);
            let expected = (of(&[Asked::Create]), of(&[Asked::Delete]), of(&[Asked::Suspend, Asked::Resume]));
            assert_eq!(slots, expected, "{asked:?}");
        }
    }

    #[test]
    fn what_has_run_is_known_by_its_place() {
        assert_eq!(which(|i| i.is_ready()), [4]);
        assert_eq!(which(|i| i.has_run()), [4, 5, 11, 12, 13, 14]);
        let resumed = |i: &mut Instance| {
            i.rouse(Time(9));
            assert_eq!((i.goal, i.deadline), (Goal::Live, Time(9)));
            i.has_run()
        };
        assert_eq!(which(resumed), [3, 4, 5, 11, 12, 13, 14]);
        assert_eq!(which(|i| i.vapp().is_some()), [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        assert_eq!(which(|i| i.work().is_some()), [9, 10, 11, 12, 13, 14, 15]);
        assert!(at(There::Absent).counts());
        assert!(!Instance { ended: Some(Time(0)), ..at(There::Absent) }.counts());
    }

    #[test]
    fn states_and_phases_follow_from_goal_and_place() {
        use {Phase as P, State as S};
        let tell = |goal, there: There, resumed, ended| {
            let i = Instance { goal, resumed, ended, ..at(there) };
            (i.state(), i.phase())
        };
        let (ready, asleep) = (There::Ready { vapp: vapp() }, There::Suspended { vapp: vapp(), since: Time(0) });
        let booting = There::Booting { vapp: vapp() };
        for (goal, there, resumed, seen) in [
            (Goal::Live, There::Absent, false, (S::Creating, P::PendingCreate)),
            (Goal::Live, There::Unclear { since: Time(0), looks: 0 }, false, (S::Creating, P::Creating)),
            (Goal::Live, booting.clone(), false, (S::Creating, P::Creating)),
            (Goal::Live, booting.clone(), true, (S::Resuming, P::Resuming)),
            (Goal::Live, There::Absent, true, (S::Resuming, P::Resuming)),
            (Goal::Live, ready.clone(), false, (S::Running, P::Running)),
            (Goal::Live, ready.clone(), true, (S::Running, P::Running)),
            (Goal::Live, asleep.clone(), true, (S::Resuming, P::Resuming)),
            (Goal::Asleep, ready.clone(), false, (S::Suspending, P::Suspending)),
            (Goal::Asleep, asleep.clone(), false, (S::Suspended, P::Suspended)),
            (Goal::Gone(Cause::Asked), ready.clone(), false, (S::Deleting, P::PendingDelete)),
            (Goal::Gone(Cause::Ill), asleep.clone(), true, (S::Deleting, P::PendingDelete)),
            (Goal::Gone(Cause::Asked), working(Work::Remove), false, (S::Deleting, P::Deleting)),
            (Goal::Gone(Cause::Timeout), booting, false, (S::Timeout, P::PendingDelete)),
            (Goal::Gone(Cause::Timeout), There::Leaving { vapp: vapp() }, false, (S::Timeout, P::Deleting)),
        ] {
            assert_eq!(tell(goal, there.clone(), resumed, None), seen, "{goal:?} {there:?} {resumed}");
        }
        assert_eq!(tell(Goal::Gone(Cause::Asked), There::Absent, false, Some(Time(1))), (S::Deleted, P::Deleted));
        assert_eq!(tell(Goal::Gone(Cause::Timeout), There::Absent, false, Some(Time(1))), (S::Timeout, P::Deleted));
        let asked = Instance { asked: Some(Asked::Create), ..at(There::Absent) };
        assert_eq!((asked.state(), asked.phase()), (S::Creating, P::Creating));
        let all = [P::PendingCreate, P::Creating, P::Running, P::Suspending, P::Suspended, P::Resuming];
        let all = all.into_iter().chain([P::PendingDelete, P::Deleting, P::Deleted]);
        let resting: Vec<Phase> = all.filter(|phase| phase.rests()).collect();
        assert_eq!(resting, [P::Running, P::Suspended, P::Deleted]);
    }

    #[test]
    fn what_is_waited_for_is_told() {
        let now = Time(1000);
        let told = |there: There, change: &dyn Fn(&mut Instance)| {
            let mut i = at(there);
            change(&mut i);
            i.waits_for(now)
        };
        let plain = [
            "a free create slot",
            "a look whether the create worked",
            "a look at what it lacks",
            "power on",
            "",
            "a free slot to be resumed",
            "a free delete slot",
            "a direct look",
            "a direct look",
            "the create's task",
            "the create's task",
            "the suspend's task",
            "the resume's task",
            "a task that holds it",
            "a task that holds it",
            "the delete's task",
        ];
        assert_eq!(places().map(|there| told(there, &|_| {})), plain);
        assert!(places().into_iter().all(|there| told(there, &|i| i.ended = Some(now)).is_empty()));
        let [absent, _, _, booting, ready, asleep, scrap, ..] = places();
        for (asked, words) in [
            (Asked::Create, "VCD to accept the create"),
            (Asked::Delete, "VCD to accept the delete"),
            (Asked::Cancel, "VCD to cancel its task"),
            (Asked::Fit(Fit::Tpm), "VCD to accept its fitting"),
            (Asked::Suspend, "VCD to accept the suspend"),
            (Asked::Resume, "VCD to accept the resume"),
            (Asked::Look, ""),
        ] {
            assert_eq!(told(ready.clone(), &|i| i.asked = Some(asked)), words);
        }
        for there in [absent, scrap] {
            assert_eq!(told(there.clone(), &|i| i.not_before = Time(1001)), "the next try");
            assert_eq!(told(there.clone(), &|i| i.create_after = Time(1001)), "the next try");
        }
        assert_eq!(told(ready.clone(), &|i| i.unsure = Some(now)), "a direct look");
        assert_eq!(told(ready, &|i| i.goal = Goal::Asleep), "a free slot to be suspended");
        assert_eq!(told(asleep, &|i| i.goal = Goal::Asleep), "");
        for (power, address, customization, words) in [
            (Power::On, true, Customization::Complete, "the login port"),
            (Power::On, true, Customization::Pending, "guest customization"),
            (Power::On, false, Customization::Complete, "an address"),
            (Power::Off, true, Customization::Complete, "power on"),
        ] {
            assert_eq!(told(booting.clone(), &|i| i.facts = Some(facts(power, address, customization))), words);
        }
        let mut stopped = working(Work::Suspend);
        if let There::Working { cancelled, .. } = &mut stopped {
            *cancelled = true;
        }
        assert_eq!(told(stopped, &|_| {}), "its task to stop");
    }

    #[test]
    fn a_goal_to_go_tells_why() {
        assert!(!Goal::Live.is_gone() && !Goal::Asleep.is_gone());
        let causes =
            [Cause::Asked, Cause::Shutdown, Cause::Timeout, Cause::Lost, Cause::Ill, Cause::Aged, Cause::Leftover];
        assert!(causes.iter().all(|&cause| Goal::Gone(cause).is_gone()));
        assert_eq!(causes.map(Cause::name), ["asked", "shutdown", "timeout", "lost", "ill", "aged", "leftover"]);
        let stray = Instance::stray("ci-00000001".into(), There::Scrap { vapp: vapp() }, Time(5));
        assert_eq!((stray.goal, stray.reported, stray.since), (Goal::Gone(Cause::Leftover), false, Time(5)));
    }

    #[test]
    fn facts_are_complete_or_silent_only_when_on_with_an_address() {
        use Customization::{Complete, Failed, Pending, Unknown, Working};
        for power in [Power::On, Power::Off, Power::Suspended, Power::Failed, Power::Other] {
            for address in [false, true] {
                for customization in [Pending, Working, Complete, Failed, Unknown] {
                    let facts = facts(power, address, customization);
                    let up = power == Power::On && address;
                    assert_eq!(facts.complete(), up && [Complete, Unknown].contains(&customization), "{facts:?}");
                    assert_eq!(facts.silent(), up && customization == Pending, "{facts:?}");
                }
            }
        }
    }

    #[test]
    fn what_may_be_held_is_looked_at_before_it_is_deleted() {
        let scrapped = |change: fn(&mut Instance)| {
            let mut i = at(There::Ready { vapp: vapp() });
            i.facts = Some(facts(Power::On, true, Customization::Complete));
            change(&mut i);
            i.scrap(vapp());
            matches!(i.there, There::Leaving { .. })
        };
        assert!(!scrapped(|_| {}));
        assert!(!scrapped(|i| i.facts = None));
        assert!(scrapped(|i| i.facts.as_mut().unwrap().busy = true));
        assert!(scrapped(|i| i.earlier = true));
        assert!(scrapped(|i| i.unsure = Some(Time(0))));
    }

    #[test]
    fn a_new_place_begins_everything_anew() {
        let mut i = at(There::Absent);
        (i.steady, i.off, i.missed, i.patience) = (Some(Time(1)), 2, 3, 12);
        i.place(There::Booting { vapp: vapp() }, Time(7));
        assert!(matches!(i.there, There::Booting { .. }));
        assert_eq!((i.steady, i.off, i.missed, i.patience), (None, 0, 0, 3));
        assert_eq!((i.known, i.last_vapp.clone()), (Time(7), Some(vapp())));
        i.place(There::Absent, Time(8));
        assert_eq!((i.known, i.last_vapp), (Time(8), Some(vapp())), "late polls may still show it");
    }

    #[test]
    fn a_poll_counts_for_a_minute() {
        let minute = Time(61_000);
        let mut i = at(There::Ready { vapp: vapp() });
        assert!(!i.is_watched(Time(1000)), "no poll has shown it");
        i.facts = Some(facts(Power::On, true, Customization::Complete));
        assert!(i.is_watched(Time(1000)) && i.is_watched(minute));
        assert!(!i.is_watched(Time(minute.0 + 1)));
    }

    #[test]
    fn age_and_grace_are_added_up() {
        let mut i = at(There::Ready { vapp: vapp() });
        i.age_before = Duration::from_secs(10);
        assert_eq!(i.age(Time(4000)), Duration::from_secs(13));
        assert_eq!(i.grace(), CUSTOMIZATION_GRACE);
        i.facts = Some(facts(Power::On, true, Customization::Pending));
        assert_eq!(i.grace(), CUSTOMIZATION_GRACE);
        i.facts.as_mut().unwrap().guest_os = "Microsoft Windows 11".into();
        assert_eq!(i.grace(), CUSTOMIZATION_GRACE_WINDOWS);
    }

    #[test]
    fn what_was_resumed_was_customized_before() {
        let vm = Vm {
            vapp: vapp(),
            vapp_name: "ci-00000001".into(),
            vm: "m/1".into(),
            description: String::new(),
            power: Power::On,
            busy: true,
            address: Some(IpAddr::from([10, 0, 0, 1])),
            customization: Customization::Pending,
            guest_os: "Debian".into(),
            created: None,
            cpus: 1,
            memory_mb: 1,
            undeploy_at: None,
            delete_at: None,
        };
        let (first, again) = (Facts::of(&vm, false), Facts::of(&vm, true));
        assert_eq!((first.power, first.busy, first.address), (vm.power, vm.busy, vm.address));
        assert_eq!((first.customization, &*first.guest_os), (Customization::Pending, "Debian"));
        assert_eq!(again.customization, Customization::Complete);
    }
}
