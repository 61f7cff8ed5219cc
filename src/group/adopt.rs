//! vApps that a poll shows and that belong to no instance: from an earlier process, or from a create that was given up. If
//! such a vApp is complete when Init answers, it is adopted. An owned vApp that appears later is deleted, because GitLab
//! Runner would treat it as new.

use super::answers::LOOK_PAUSE;
use super::instance::{Cause, Desired, Mark, Observed, Origin};
use super::next::CUSTOMIZATION_USUAL;
use super::owner::{Owner, Ownership};
use super::vapp::{CHECKS, Guest, Record, Vapp};
use super::{Group, Instance, Key, Labels, MAX_FOREIGN, Name, OnShutdown};
use crate::cloud::{self, Customization, Href, Poll, Power, UnixMs, Vm};
use log::Level;
use std::collections::HashMap;
use std::time::Duration;

/// Init waits at most this long for lookups of vApps of earlier processes. The host gives Init a minute.
pub const ADOPTION_TIMEOUT: Duration = Duration::from_secs(20);

/// A request of an earlier process creates its vApp within this time after the start of this process, by VCD's clock, or
/// never. If a vApp is created later and has no id of this process, another plugin with the same name, group and prefix
/// created it.
pub const EARLIER_CREATES: Duration = Duration::from_secs(5 * 60);

/// A vApp in a poll that belongs to no instance.
struct Unclaimed<'a> {
    vapp: &'a Href,
    name: &'a Name,
    /// The description of the vApp if its record shows it, else that of its VM.
    description: Option<&'a str>,
    vm: Option<&'a Vm>,
    created: Option<UnixMs>,
    /// It has the group's metadata entry, and no VM with a tag of whatever manager and group: the Go plugin writes none.
    labelled: bool,
    /// A task works on the vApp or its VM.
    busy: bool,
}

impl Group {
    /// The first poll of the group.
    pub(super) fn adopt_first(&mut self, first: &Poll) {
        self.claim_all(first, |_| false, true);
        if self.instances.values().any(|i| !i.is_reported()) {
            self.hold_until = Some(self.now + self.policy.startup_cleanup_timeout);
        }
        self.end_adoption_when_known();
    }

    /// vApps in a poll that belong to no instance. Only records of the `first` poll can be enough to adopt them: a lookup may
    /// have shown since then that one is gone.
    pub(super) fn claim_all(&mut self, poll: &Poll, known: impl Fn(&str) -> bool, first: bool) {
        let all = unclaimed(poll, &self.owner, known);
        let mut names: HashMap<&str, usize> = HashMap::new();
        for vapp in &all {
            *names.entry(vapp.name).or_default() += 1;
        }
        for vapp in &all {
            let alone = names.get(&**vapp.name) == Some(&1);
            self.claim(vapp, poll.now, first && alone);
        }
    }

    /// A vApp that belongs to no instance, if this group may own it. `enough`: its record can show that it is complete.
    fn claim(&mut self, found: &Unclaimed<'_>, vcd_now: Option<UnixMs>, enough: bool) {
        let (now, seen) = (self.now, self.sight.at(self.now));
        if !self.owner.could_name(found.name) || self.foreign.contains(found.vapp) {
            return;
        }
        // This includes instances that an earlier record of the same poll began.
        if self.instances.values().any(|i| i.href() == Some(found.vapp) || i.last_vapp.as_ref() == Some(found.vapp)) {
            return;
        }
        if self.is_being_made(found.name) {
            return;
        }
        let verdict = self.owner.judge_record(found.name, found.description);
        if verdict == Ownership::Foreign {
            // vApps of another manager or group under this prefix are expected: no warning.
            let level = if Owner::is_marked(found.description) { Level::Debug } else { Level::Warn };
            return self.left_alone(level, found.vapp, found.name);
        }
        let created = found.vm.and_then(|vm| vm.created).or(found.created);
        let adopting = self.adopt_until.is_some();
        if self.is_anothers(found.name, created) {
            return self.left_to_another(found.vapp, found.name, verdict);
        }
        let origin = if adopting { Origin::Found } else { Origin::Leftover };
        let mut i = Instance::new(found.name.clone(), origin, now, seen);
        i.desired = Desired::Deleted(Cause::Leftover);
        i.locked_out = self.owner.locks_out(found.name, found.description);
        if let (Some(vcd_now), Some(created)) = (vcd_now, created) {
            i.age_before = Duration::from_millis(vcd_now.saturating_sub(created));
        }
        // A VM that somebody put into an owned vApp has no owner tag.
        let tagged =
            found.vm.filter(|vm| self.owner.judge_record(found.name, Some(&vm.description)) == Ownership::Ours);
        let mut vapp = Vapp::new(found.vapp.clone(), now);
        vapp.labelled = found.labelled;
        vapp.vm = tagged.map(|vm| vm.vm.clone());
        vapp.record = found.vm.map(|vm| Record::of(vm, false, now));
        i.observe(vapp);
        let key = self.insert(i);
        // A vApp with a task may be about to be deleted. Only its document shows who suspended it.
        let on = tagged.is_some_and(|vm| vm.power == Power::On && vm.address.is_some());
        if adopting && enough && verdict == Ownership::Ours && !found.busy && on {
            self.adopt(key, Power::On);
        }
    }

    /// No request of this process or an earlier one created it.
    fn is_anothers(&self, name: &Name, created: Option<UnixMs>) -> bool {
        let after_start = created.zip(self.vcd_start).map(|(created, start)| i128::from(created) - i128::from(start));
        let late = after_start.is_some_and(|ms| ms > EARLIER_CREATES.as_millis() as i128);
        let mut known = self.instances.values().filter(|i| !i.is_leftover());
        self.adopt_until.is_none() && late && !self.past.contains(name) && !known.any(|i| i.name == *name)
    }

    /// A create with this name is on the wire, or its outcome is unknown.
    fn is_being_made(&self, name: &str) -> bool {
        self.instances.values().any(|i| *i.name == *name && i.may_have_made())
    }

    /// A lookup of a vApp whose owner was unknown.
    pub(super) fn undecided_seen(&mut self, key: Key, seen: Option<cloud::Vapp>) {
        let Some(i) = self.instances.get(&key) else { return };
        let Some(seen) = seen else { return self.forget_undecided(key) };
        // Meanwhile, the create that created it may have been answered or looked up.
        let claimed = self.instances.iter().any(|(other, i)| *other != key && i.href() == Some(&seen.href));
        if claimed || self.is_being_made(&i.name) {
            return self.forget_undecided(key);
        }
        let labelled = i.vapp().is_some_and(|vapp| vapp.labelled);
        if seen.name != i.name || !self.owner.owns(&seen, labelled) {
            self.left_alone(Level::Warn, &seen.href, &seen.name);
            return self.forget_undecided(key);
        }
        if self.is_anothers(&seen.name, seen.created) {
            self.left_to_another(&seen.href, &seen.name, Ownership::Ours);
            return self.forget_undecided(key);
        }
        let locked_out = self.owner.locks_out(&seen.name, seen.description.as_deref());
        if let Some(i) = self.instances.get_mut(&key) {
            i.locked_out = locked_out;
        }
        self.own(key, seen);
    }

    /// The group owns it: adopted if its document shows that it is complete, else a leftover. Polls may lag behind both.
    fn own(&mut self, key: Key, seen: cloud::Vapp) {
        let (now, start, suspends) = (self.now, self.vcd_start, self.policy.suspend_resume);
        let sweeping = self.stopping && self.policy.on_shutdown == OnShutdown::Delete;
        let Some(i) = self.instances.get_mut(&key) else { return };
        let mut found = i.origin == Origin::Found && !sweeping && !seen.deleting;
        if let Some((start, created)) = start.zip(seen.created) {
            i.age_before = i.age_before.max(Duration::from_millis(start.saturating_sub(created)));
        }
        if let Some(vapp) = i.vapp_mut() {
            found &= vapp.show(&seen, now);
            // It would outlast the adoption.
            vapp.document = None;
            if seen.mark == cloud::Mark::Suspended {
                vapp.mark = Some(Mark::Suspended);
            }
            // The Go plugin, and programs that use its metadata entry, may return.
            self.labels |= vapp.is_the_go_plugins(&seen) && self.policy.labels == Labels::Found;
        }
        // A vApp that is being suspended counts as suspended: its mark says for whom.
        let power = if seen.suspending { Power::Suspended } else { seen.power };
        let adopted = match power {
            Power::On => found && self.adopt(key, Power::On),
            Power::Suspended if seen.mark == cloud::Mark::Suspended => {
                found && suspends && self.adopt(key, Power::Suspended)
            }
            Power::Suspended => found && self.adopt_standby(key, &seen),
            _ => false,
        };
        if !adopted {
            self.leave_over(key);
            self.looked(key, seen);
        }
        self.end_adoption_when_known();
    }

    /// Reports a vApp of an earlier process, so that the host decides. A powered-on VM must be complete. If only its
    /// address is missing, which VCD may lose for a while, it runs when polls show the address again. If its guest reports
    /// no customization in the usual time, or VCD does not show its age, it runs when its login port answers steadily.
    fn adopt(&mut self, key: Key, power: Power) -> bool {
        let (now, seen, timeless) = (self.now, self.sight.at(self.now), self.vcd_start.is_none());
        let Some(i) = self.instances.get_mut(&key) else { return false };
        let (name, age) = (i.name.clone(), i.age(now));
        let timeless = timeless && i.age_before.is_zero();
        let Observed::Vapp(vapp) = &mut i.observed else { return false };
        let record = vapp.record.as_ref();
        let up = record.is_some_and(|record| record.power == Power::On && record.address.is_some());
        let customization = record.map_or(Customization::Pending, |record| record.customization);
        let usual = age >= CUSTOMIZATION_USUAL;
        let long = record.is_some_and(|record| age >= CUSTOMIZATION_USUAL + record.grace());
        let (complete, silent) = match customization {
            Customization::Complete | Customization::Unknown => (up, false),
            // Old VMware Tools may never report the end of customization, and a late failure says nothing: an earlier
            // process may have accepted such a guest.
            Customization::Pending | Customization::Failed if long => (up, false),
            Customization::Pending | Customization::Working => (false, up && (timeless || usual)),
            Customization::Failed => (false, false),
        };
        let customized = customization == Customization::Complete;
        if !(complete || customized || silent || power == Power::Suspended) || self.names.contains_key(&name) {
            return false;
        }
        let text = match power {
            Power::Suspended => "found suspended: adopted",
            _ if complete => "found running: adopted",
            _ if silent => "found powered on, guest customization pending: adopted, waiting for its login port",
            _ => "found powered on without an address: adopted, waiting for its guest",
        };
        if complete || power == Power::Suspended {
            vapp.guest = Guest::Ready;
            vapp.settle(power, now);
        } else {
            vapp.boots(now, seen);
            vapp.build.checks = CHECKS;
        }
        i.origin = Origin::Adopted;
        i.desired = if power == Power::Suspended { Desired::Suspended } else { Desired::Running };
        let locked_out = i.locked_out;
        self.names.insert(name, key);
        self.say_of(Level::Info, key, text.into());
        if locked_out {
            let text =
                "created with other credentials than the current ones (token, credentials_seed or username): unhealthy";
            self.say_of(Level::Warn, key, text.into());
        }
        if complete && customization == Customization::Failed {
            self.judge(key, power, true);
        }
        true
    }

    /// The group owns it, and nobody will use it.
    fn leave_over(&mut self, key: Key) {
        if let Some(i) = self.instances.get_mut(&key) {
            i.origin = Origin::Leftover;
        }
        let (level, text) = Cause::Leftover.words();
        self.say_of(level, key, text.into());
    }

    /// Ends adoption when all vApps are decided.
    fn end_adoption_when_known(&mut self) {
        if self.adopt_until.is_some() && !self.instances.values().any(|i| i.origin == Origin::Found) {
            self.adopt_until = None;
        }
    }

    /// Ends adoption at its deadline: a vApp that was not looked up by then is a leftover if the group owns it. If VCD is
    /// not available, that says nothing about the vApp: Init fails instead.
    pub(super) fn end_adoption_in_time(&mut self) {
        let Some(mut until) = self.adopt_until else { return };
        let silent = self.poll.on_wire && self.now >= self.poll.last + LOOK_PAUSE;
        if self.unreachable || silent {
            until = until.max(self.now + LOOK_PAUSE);
            self.adopt_until = Some(until);
        }
        // During shutdown nothing is adopted, unless instances are kept.
        let sweeping = self.stopping && self.policy.on_shutdown == OnShutdown::Delete;
        if self.now < until && !sweeping {
            return self.wake_by(until);
        }
        self.adopt_until = None;
        let mut unseen = 0;
        for i in self.instances.values_mut().filter(|i| i.origin == Origin::Found) {
            i.origin = Origin::Leftover;
            unseen += 1;
        }
        if unseen > 0 {
            let text = format!(
                "{unseen} vApps that may belong to this group could not be looked up in time: the plugin deletes those \
                 that do"
            );
            self.say_plain(Level::Warn, text);
        }
    }

    /// Logged once, then ignored.
    fn left_alone(&mut self, level: Level, vapp: &Href, name: &str) {
        let level = if self.remember_foreign(vapp) { level } else { Level::Debug };
        let text = format!(
            "vApp {name} matches vapp_name_prefix but has no owner tag of this group: the plugin ignores it. To avoid name \
             conflicts, use a vapp_name_prefix of your own"
        );
        self.say_plain(level, text);
    }

    /// Two plugins that each take the VMs of the other for their own would delete them again and again.
    fn left_to_another(&mut self, vapp: &Href, name: &Name, verdict: Ownership) {
        if verdict != Ownership::Ours {
            return self.left_alone(Level::Warn, vapp, name);
        }
        self.remember_foreign(vapp);
        let text = format!(
            "vApp {name} was created by another plugin that has the same name, group and prefix: this plugin ignores it. \
             When one of the two starts, it takes the VMs of the other for its own: give each runner its own name in \
             plugin_config"
        );
        self.say_plain(Level::Error, text);
    }

    fn forget_undecided(&mut self, key: Key) {
        self.instances.remove(&key);
        self.end_adoption_when_known();
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

/// The place of each vApp, by its href.
pub(super) fn by_href(vapps: &[cloud::Vapp]) -> HashMap<&str, usize> {
    vapps.iter().enumerate().map(|(at, vapp)| (&*vapp.href, at)).collect()
}

/// Each vApp of a poll once, except those that are `known`, with the data of its VM record and its vApp record.
fn unclaimed<'a>(poll: &'a Poll, owner: &Owner, known: impl Fn(&str) -> bool) -> Vec<Unclaimed<'a>> {
    let vapps = poll.vapps.as_deref().unwrap_or_default();
    let records = by_href(vapps);
    let mut all: Vec<Unclaimed<'_>> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for vm in poll.vms.iter().filter(|vm| !known(&vm.vapp)) {
        let record = records.get(&*vm.vapp).and_then(|at| vapps.get(*at));
        let busy = vm.busy || record.is_some_and(|vapp| vapp.busy);
        let of_vapp = record.and_then(|vapp| vapp.description.as_deref());
        let description = of_vapp.or(Some(&vm.description));
        let (vapp, name) = (&vm.vapp, &vm.vapp_name);
        let verdict = owner.judge_record(name, Some(&vm.description));
        let place = *places.entry(&**vapp).or_insert(all.len());
        let labelled = record.is_some_and(|vapp| vapp.labelled)
            && !Owner::is_marked(Some(&vm.description))
            && all.get(place).is_none_or(|first| first.labelled);
        let one = Unclaimed { vapp, name, description, vm: Some(vm), created: None, labelled, busy };
        match all.get_mut(place) {
            None => all.push(one),
            // If a vApp contains several VMs, the one with the best owner tag counts.
            Some(first) if verdict > owner.judge_record(name, first.description) => *first = one,
            Some(first) => first.labelled = labelled,
        }
    }
    for vapp in vapps.iter().filter(|vapp| !known(&vapp.href)) {
        let (name, labelled, busy) = (&vapp.name, vapp.labelled, vapp.busy);
        let (description, created) = (vapp.description.as_deref(), vapp.created);
        if *places.entry(&*vapp.href).or_insert(all.len()) == all.len() {
            all.push(Unclaimed { vapp: &vapp.href, name, description, vm: None, created, labelled, busy });
        }
    }
    all
}
