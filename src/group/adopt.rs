//! What a poll shows, held against what is known: instances that changed, that are missing, and vApps of ours that nothing
//! here stands for (an earlier life's, or made by a request that was given up).

use super::answers::{begun, watch_backoff};
use super::instance::{Asked, Cause, Facts, Goal, MISSED_POLLS, There, Work};
use super::owner::{Owner, Ownership};
use super::steps::{CUSTOMIZATION_USUAL, LOOK_PAUSE, TASK_PATIENCE, UNCLEAR_WINDOW};
use super::{Group, Instance, Key, MAX_FOREIGN, Name, OnShutdown, Time};
use crate::cloud::{Answer, Customization, ErrorKind, Href, Poll, Power, Reply, UnixMs, Vapp, Vm, is_windows};
use log::Level;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A VM that is off or broken in so many polls in a row is so indeed.
const OFF_POLLS: u32 = 3;

/// A vApp of an earlier life that is on counts as half made if a poll shows it so that much later: polls lag.
pub const LEFTOVER_GRACE: Duration = Duration::from_secs(60);

/// An adopted instance that is suspended so soon after the start was being suspended by the earlier life: its task may go on
/// for as long as one is given.
const EARLIER_WORK: Duration = TASK_PATIENCE;

/// A request of an earlier life has made its vApp so long after this life's start, by VCD's clock, or never will. What is made
/// later and bears no id of this life's was made by another plugin of the same name, group and prefix.
pub const EARLIER_CREATES: Duration = Duration::from_secs(5 * 60);

/// A vApp that a poll shows and no instance stands for.
struct Unclaimed<'a> {
    vapp: &'a Href,
    name: &'a Name,
    description: Option<&'a str>,
    vm: Option<&'a Vm>,
    created: Option<UnixMs>,
    labelled: bool,
    /// A task holds it, or its VM.
    busy: bool,
}

impl Group {
    /// The poll that the group begins with.
    pub(super) fn adopt_first(&mut self, first: &Poll) {
        for vapp in unclaimed(first, |_| false) {
            self.claim(&vapp, first.now, true);
        }
        if self.instances.values().any(|i| !i.reported) {
            self.hold_until = Some(self.now + self.policy.startup_cleanup_timeout);
        }
    }

    pub(super) fn polled(&mut self, sent: Time, vapps: bool, answer: Answer) {
        self.poll.on_wire = false;
        self.swept |= self.stopping && sent >= self.stopping_since;
        let poll = match answer {
            Ok(Reply::Poll(poll)) => poll,
            other => {
                let error = other.err();
                self.poll.fails += 1;
                if vapps {
                    self.next_gc = self.now;
                }
                if let Some(error) = error {
                    self.unreachable = matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Auth);
                    self.poll.not_before = self.now + watch_backoff(self.poll.fails, &error);
                    self.say_plain(Level::Warn, format!("{error}; instances are reported as they were last known"));
                }
                return;
            }
        };
        self.unreachable = false;
        if std::mem::take(&mut self.poll.fails) > 0 {
            self.say_plain(Level::Info, "VCD answers polls again".into());
        }
        // Each VM by its vApp, and whether an instance stands for it.
        let mut shown: BTreeMap<&str, (&Vm, bool)> = poll.vms.iter().map(|vm| (&*vm.vapp, (vm, false))).collect();
        let keys: Vec<Key> = self.instances.keys().copied().collect();
        for key in keys {
            let Some(i) = self.instances.get_mut(&key) else { continue };
            if let Some((_, known)) = i.last_vapp.as_ref().and_then(|last| shown.get_mut(&**last)) {
                *known = true;
            }
            let Some(vapp) = i.vapp() else { continue };
            match shown.get_mut(&**vapp) {
                Some((vm, known)) => {
                    *known = true;
                    self.seen(key, vm, poll.now);
                }
                // A poll that was sent before the vApp was known says nothing of it.
                None if i.known < sent => i.missed = i.missed.saturating_add(1),
                None => {}
            }
        }
        if let Some(records) = &poll.vapps {
            let there: BTreeSet<&str> = records.iter().map(|vapp| &*vapp.href).chain(shown.keys().copied()).collect();
            self.foreign.retain(|href| there.contains(&**href));
        }
        for vapp in unclaimed(&poll, |href| shown.get(href).is_some_and(|(_, known)| *known)) {
            self.claim(&vapp, poll.now, false);
        }
    }

    fn seen(&mut self, key: Key, vm: &Vm, vcd_now: Option<UnixMs>) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        i.missed = 0;
        i.patience = MISSED_POLLS;
        i.seen = now;
        let judge = || self.owner.judge_record(&vm.vapp_name, Some(&vm.description), i.labelled);
        i.proven = i.proven && judge() != Ownership::Foreign;
        let lease = [vm.undeploy_at, vm.delete_at].into_iter().flatten().min().zip(vcd_now);
        i.lease_end = lease.map(|(end, vcd_now)| now + Duration::from_millis(end.saturating_sub(vcd_now)));
        let facts = Facts::of(vm, i.resumed);
        let fresh = i.facts.as_ref().is_none_or(|old| {
            (old.power, old.address, old.customization) != (facts.power, facts.address, facts.customization)
        });
        if fresh {
            self.progress = now;
        }
        if !facts.silent() || i.facts.as_ref().is_some_and(|old| old.address != facts.address) {
            i.steady = None;
        }
        if facts.complete() && i.facts.as_ref().is_some_and(Facts::silent) && matches!(i.there, There::Booting { .. }) {
            // The pause was between the slow probes that went before.
            i.not_before = now;
        }
        i.facts = Some(facts);
        if i.goal.is_gone() {
            return;
        }
        let failed = vm.customization == Customization::Failed;
        let down = match vm.power {
            // Taken before its customization reported.
            Power::On if failed && i.is_ready() => Some("guest customization failed after all (GC_FAILED)"),
            Power::On => None,
            _ if vm.busy => None,
            Power::Off => Some("it is powered off"),
            Power::Suspended => Some("it is suspended"),
            Power::Failed => Some("VCD reports it as failed"),
            Power::Other => None,
        };
        match &i.there {
            There::Booting { .. } => {
                i.off = if down.is_some() { i.off + 1 } else { 0 };
                if i.resumed {
                    // Polls that lag show it as it was before.
                    if i.off >= OFF_POLLS {
                        i.unsure = i.unsure.or(Some(now + UNCLEAR_WINDOW));
                    }
                } else if failed {
                    let windows = is_windows(&vm.guest_os);
                    let hint =
                        if windows { "; a password that the guest's policy refuses is a usual cause" } else { "" };
                    self.boot_failed(key, &format!("guest customization failed (GC_FAILED){hint}"));
                } else if let (Some(down), true) = (down, i.off >= OFF_POLLS) {
                    self.boot_failed(key, down);
                }
            }
            There::Suspended { .. } if i.goal == Goal::Asleep => {
                i.off = if vm.power == Power::On && !vm.busy { i.off + 1 } else { 0 };
                match (vm.power, down) {
                    (Power::On, _) if i.off >= OFF_POLLS => i.unsure = i.unsure.or(Some(now + UNCLEAR_WINDOW)),
                    (Power::Off | Power::Failed, Some(down)) if i.ill.is_none() => {
                        i.ill = Some((now, down));
                        self.say_of(Level::Warn, key, format!("{down}, not by us: its memory is lost"));
                    }
                    (Power::Suspended, _) => i.ill = None,
                    _ => {}
                }
            }
            There::Ready { .. } if i.goal == Goal::Asleep && matches!(vm.power, Power::On | Power::Suspended) => {
                i.ill = None;
                if vm.power == Power::Suspended && !vm.busy {
                    // By somebody else, or by a request whose answer was lost: a look tells.
                    i.unsure = i.unsure.or(Some(now));
                }
            }
            There::Ready { vapp }
                if vm.power == Power::Suspended && !vm.busy && i.earlier && now < i.since + EARLIER_WORK =>
            {
                let vapp = vapp.clone();
                i.goal = Goal::Asleep;
                i.place(There::Suspended { vapp, since: now }, now);
                self.say_of(Level::Info, key, "suspended, as the earlier process had asked".into());
            }
            There::Ready { .. } => match (down, i.ill) {
                (Some(down), None) => {
                    i.ill = Some((now, down));
                    self.say_of(Level::Warn, key, format!("{down}, not by us: unhealthy"));
                }
                (None, Some(_)) if vm.power == Power::On => {
                    i.ill = None;
                    self.say_of(Level::Info, key, "on again".into());
                }
                _ => {}
            },
            _ => {}
        }
    }

    /// A vApp that no instance stands for, if it may be ours.
    fn claim(&mut self, found: &Unclaimed<'_>, vcd_now: Option<UnixMs>, at_start: bool) {
        let now = self.now;
        if !self.owner.could_name(found.name) || self.foreign.contains(found.vapp) {
            return;
        }
        // Instances that an earlier record of the same poll began included.
        if self.instances.values().any(|i| i.vapp() == Some(found.vapp) || i.last_vapp.as_ref() == Some(found.vapp)) {
            return;
        }
        // A create whose answer is awaited, or whose outcome is being looked up, may have made it.
        if let Some(i) = self.named(found.name)
            && (i.asked == Some(Asked::Create) || matches!(i.there, There::Unclear { .. }))
        {
            return;
        }
        let verdict = self.owner.judge_record(found.name, found.description, found.labelled);
        if verdict == Ownership::Foreign {
            // What a plugin of another manager or group makes under this prefix is no news.
            let level = if Owner::is_marked(found.description) { Level::Debug } else { Level::Warn };
            return self.left_alone(level, found.vapp, found.name);
        }
        let created = found.vm.and_then(|vm| vm.created).or(found.created);
        let after_start = created.zip(self.vcd_start).map(|(created, start)| i128::from(created) - i128::from(start));
        let is_of_this_life = self.names.contains_key(found.name) || self.past.contains(found.name);
        if !is_of_this_life && after_start.is_some_and(|ms| ms > EARLIER_CREATES.as_millis() as i128) {
            return self.left_to_another(found.vapp, found.name, verdict);
        }
        let there = There::Stranger { vapp: found.vapp.clone() };
        let mut i = Instance::stray(found.name.clone(), there, now);
        // The first poll may have lagged: what VCD made before it is of an earlier life too.
        i.earlier = at_start || after_start.is_some_and(|ms| ms < 0);
        i.labelled = found.labelled;
        i.locked_out = self.owner.locks_out(found.name, found.description);
        i.facts = found.vm.map(|vm| Facts::of(vm, false));
        if let (Some(vcd_now), Some(created)) = (vcd_now, created) {
            i.age_before = Duration::from_millis(vcd_now.saturating_sub(created));
        }
        let key = self.insert(i);
        // What a task holds may be on its way out: a look tells.
        if verdict == Ownership::Ours && at_start && !found.busy {
            self.adopt(key, found.vapp);
        }
    }

    /// A direct look at a stranger.
    pub(super) fn stranger_seen(&mut self, key: Key, vapp: Option<Vapp>) {
        let Some(i) = self.instances.get(&key) else { return };
        let Some(vapp) = vapp else {
            self.forget_stranger(key);
            return;
        };
        // By now the create that made it may have been answered or looked up.
        let claimed = |(other, i): (&Key, &Instance)| *other != key && i.vapp() == Some(&vapp.href);
        if self.instances.iter().any(claimed) {
            return self.forget_stranger(key);
        }
        if let Some(named) = self.named(&i.name)
            && (named.asked == Some(Asked::Create) || matches!(named.there, There::Unclear { .. }))
        {
            return self.forget_stranger(key);
        }
        if vapp.name == i.name && self.owner.owns(&vapp.name, vapp.description.as_deref(), i.labelled) {
            let locked_out = self.owner.locks_out(&vapp.name, vapp.description.as_deref());
            if let Some(i) = self.instances.get_mut(&key) {
                i.proven = true;
                i.locked_out = locked_out;
            }
            return self.own(key, &vapp);
        }
        self.left_alone(Level::Warn, &vapp.href, &vapp.name);
        self.forget_stranger(key);
    }

    /// A complete vApp of an earlier life, on or suspended, if its id is free: reported, so that the host decides.
    fn adopt(&mut self, key: Key, vapp: &Href) -> bool {
        let (now, sweeping) = (self.now, self.sweeping());
        let Some(i) = self.instances.get_mut(&key) else { return false };
        let name = i.name.clone();
        let suspended = i.facts.as_ref().is_some_and(|facts| facts.power == Power::Suspended);
        let complete = i.facts.as_ref().is_some_and(|facts| {
            // Old VMware Tools may never report the end of customization: such a guest may have been taken without.
            let old = Facts { customization: Customization::Unknown, ..facts.clone() };
            facts.complete() || (i.age(now) >= CUSTOMIZATION_USUAL + i.grace() && old.complete())
        });
        if sweeping || !i.earlier || !(complete || suspended) || self.names.contains_key(&name) {
            return false;
        }
        let vapp = vapp.clone();
        i.reported = true;
        if suspended {
            i.goal = Goal::Asleep;
            i.place(There::Suspended { vapp, since: now }, now);
        } else {
            i.goal = Goal::Live;
            i.place(There::Ready { vapp }, now);
        }
        self.names.insert(name, key);
        let locked_out = i.locked_out;
        self.say_of(
            Level::Info,
            key,
            if suspended { "found suspended: adopted" } else { "found running: adopted" }.into(),
        );
        if locked_out {
            let text = "made with other credentials than those of now (token, credentials_seed or username): unhealthy";
            self.say_of(Level::Warn, key, text.into());
        }
        true
    }

    /// A stranger that was looked at is ours: adopted if complete, else a leftover. Records lag, so that one that is on
    /// may be complete though the poll does not show it: it is given time to show.
    fn own(&mut self, key: Key, vapp: &Vapp) {
        let now = self.now;
        let on = matches!(vapp.power, Power::On | Power::Suspended) && !vapp.deleting;
        if on && self.adopt(key, &vapp.href) {
            return;
        }
        let sweeping = self.sweeping();
        let Some(i) = self.instances.get_mut(&key) else { return };
        let href = vapp.href.clone();
        let shown = sweeping || i.facts.is_some() && i.seen >= i.since + LEFTOVER_GRACE;
        if on && i.earlier && !shown {
            i.looked = true;
            i.not_before = now + LOOK_PAUSE;
            return;
        }
        let there = match vapp.tasks.first() {
            Some(task) => begun(Work::Remove, href, Some(task.clone()), now),
            None => There::Scrap { vapp: href },
        };
        i.place(there, now);
        let (level, text) = Cause::Leftover.words();
        self.say_of(level, key, text.into());
    }

    /// The host goes, and nothing is to be left.
    fn sweeping(&self) -> bool {
        self.stopping && self.policy.on_shutdown == OnShutdown::Delete
    }

    /// Mentioned once, then ignored.
    fn left_alone(&mut self, level: Level, vapp: &Href, name: &str) {
        let level = if self.remember_foreign(vapp) { level } else { Level::Debug };
        self.say_plain(level, format!("vApp {name} is named like ours but is not: left alone"));
    }

    /// Two plugins that take each other's for their own would delete them without end.
    fn left_to_another(&mut self, vapp: &Href, name: &Name, verdict: Ownership) {
        if verdict != Ownership::Ours {
            return self.left_alone(Level::Warn, vapp, name);
        }
        self.remember_foreign(vapp);
        let text = format!(
            "vApp {name} was made by another plugin that has the same name, group and prefix: left alone; give each runner \
             another name"
        );
        self.say_plain(Level::Error, text);
    }

    fn forget_stranger(&mut self, key: Key) {
        self.instances.remove(&key);
    }

    /// False if there is no room.
    pub(super) fn remember_foreign(&mut self, vapp: &Href) -> bool {
        let room = self.foreign.len() < MAX_FOREIGN;
        if room {
            self.foreign.insert(vapp.clone());
        }
        room
    }
}

/// Each vApp of a poll once, but for those that are `known`, with what its VM record and its vApp record say.
fn unclaimed(poll: &Poll, known: impl Fn(&str) -> bool) -> Vec<Unclaimed<'_>> {
    let records = poll.vapps.iter().flatten().filter(|vapp| !known(&vapp.href));
    let records: BTreeMap<&str, &Vapp> = records.map(|vapp| (&*vapp.href, vapp)).collect();
    let mut all: BTreeMap<&str, Unclaimed<'_>> = BTreeMap::new();
    for vm in poll.vms.iter().filter(|vm| !known(&vm.vapp)) {
        let record = records.get(&*vm.vapp);
        let labelled = record.is_some_and(|vapp| vapp.labelled);
        let busy = vm.busy || record.is_some_and(|vapp| vapp.busy);
        let description = Some(vm.description.as_str());
        let (vapp, name) = (&vm.vapp, &vm.vapp_name);
        all.insert(&vm.vapp, Unclaimed { vapp, name, description, vm: Some(vm), created: None, labelled, busy });
    }
    for (href, vapp) in records {
        let (name, labelled, busy) = (&vapp.name, vapp.labelled, vapp.busy);
        let (description, created) = (vapp.description.as_deref(), vapp.created);
        all.entry(href).or_insert(Unclaimed { vapp: &vapp.href, name, description, vm: None, created, labelled, busy });
    }
    all.into_values().collect()
}
