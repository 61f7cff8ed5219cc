//! The result of a poll for the known instances: changes, missing VMs, and unexpected states. `adopt.rs` handles vApps that
//! belong to no instance.

use super::adopt::by_href;
use super::answers::wrong_reply;
use super::instance::{Desired, Observed, Origin};
use super::limits::{LOST_TRIES, RETRY_MAX, doubled};
use super::owner::{Owner, Ownership};
use super::pace::Course;
use super::time::Stopwatch;
use super::vapp::{Guest, MISSED_POLLS, Record, Unhealthy};
use super::{Group, Key, Time};
use crate::cloud::{ALLOW_SCRIPTS, Answer, Customization, ErrorKind, Power, Reply, UnixMs, VcdError, Vm, is_windows};
use log::Level;
use std::collections::HashMap;
use std::time::Duration;

/// An unexpected state of a VM counts after this many polls in a row.
pub const AGAINST_POLLS: u32 = 3;
/// The same after this time while a task works on the VM: the task may be the reason.
pub const BUSY_PATIENCE: Duration = Duration::from_secs(2 * 60);
/// A poll counts as several if the last one was more than this time ago.
pub const MISSED_EVERY: Duration = Duration::from_secs(10);
/// First pause after a failed poll or task query. Doubles with each further failure.
pub const WATCH_RETRY: Duration = Duration::from_secs(2);
/// Longest pause after a failed poll or task query.
pub const WATCH_RETRY_MAX: Duration = Duration::from_secs(32);
/// Longest pause that VCD may request with Retry-After.
pub const WATCH_ASKED_MAX: Duration = Duration::from_secs(60);

/// The VM records of a poll, by vApp.
struct Shown<'a> {
    vms: &'a [Vm],
    /// For each vApp: its first record, the number of its records, and whether it belongs to an instance.
    vapps: HashMap<&'a str, (usize, usize, bool)>,
}

impl<'a> Shown<'a> {
    fn new(vms: &'a [Vm]) -> Shown<'a> {
        let mut vapps: HashMap<&str, (usize, usize, bool)> = HashMap::with_capacity(vms.len());
        for (at, vm) in vms.iter().enumerate() {
            vapps.entry(&vm.vapp).or_insert((at, 0, false)).1 += 1;
        }
        Shown { vms, vapps }
    }

    /// The record of a vApp's own VM, and whether the vApp contains another VM. Marks the vApp as one of an instance.
    fn claim(&mut self, vapp: &str, vm: Option<&str>, is_ours: impl Fn(&Vm) -> bool) -> Option<(Option<&'a Vm>, bool)> {
        let (first, count, known) = self.vapps.get_mut(vapp)?;
        *known = true;
        let mut all = self.vms.iter().skip(*first).filter(|one| &*one.vapp == vapp);
        let own = match vm {
            Some(vm) => all.find(|one| &*one.vm == vm),
            None if *count > 1 => all.clone().find(|one| is_ours(one)).or_else(|| all.next()),
            None => all.next(),
        };
        Some((own, *count > usize::from(own.is_some())))
    }

    fn is_known(&self, vapp: &str) -> bool {
        self.vapps.get(vapp).is_some_and(|(.., known)| *known)
    }
}

impl Group {
    pub(super) fn polled(&mut self, sent: Time, vapps: bool, answer: Answer) {
        self.poll.on_wire = false;
        // If VCD is not available, nobody waits for long.
        let counts = answer.is_ok() || self.poll.fails + 1 >= LOST_TRIES;
        self.swept |= self.stopping && sent >= self.stopping_since && counts;
        let poll = match answer {
            Ok(Reply::Poll(poll)) => poll,
            other => return self.poll_failed(vapps, other.err()),
        };
        self.unreachable = false;
        self.source_is(poll.source);
        if std::mem::take(&mut self.poll.fails) > 0 {
            self.say_plain(Level::Info, "VCD answers polls again".into());
        }
        self.sight.open(self.now);
        let sight = self.sight.at(self.now);
        let unseen = sight - std::mem::replace(&mut self.last_sight, sight);
        let mut shown = Shown::new(&poll.vms);
        let keys: Vec<Key> = self.instances.keys().copied().collect();
        for key in keys {
            self.watch_one(key, sent, unseen, &mut shown, poll.now);
        }
        if let Some(records) = &poll.vapps {
            let records = by_href(records);
            self.foreign.retain(|href| records.contains_key(&**href) || shown.vapps.contains_key(&**href));
        }
        self.claim_all(&poll, |href| shown.is_known(href), false);
    }

    /// The result of a poll of instances that boot. Only full polls show that VCD is unavailable.
    pub(super) fn some_polled(&mut self, sent: Time, answer: Answer) {
        self.poll_some.on_wire = false;
        let poll = match answer {
            Ok(Reply::Poll(poll)) => poll,
            other => {
                self.poll_some.fails += 1;
                self.sight.close(self.now);
                let error = other.err().unwrap_or_else(|| wrong_reply("a poll", &Reply::Done));
                self.poll_some.not_before = self.now + watch_backoff(self.poll_some.fails, &error);
                return self.say_plain(Level::Debug, format!("{error}; the next full poll follows soon"));
            }
        };
        self.poll_some.fails = 0;
        let mut shown = Shown::new(&poll.vms);
        let keys: Vec<Key> = self.instances.iter().filter(|(_, i)| i.boots()).map(|(key, _)| *key).collect();
        for key in keys {
            self.watch_one(key, sent, Duration::ZERO, &mut shown, poll.now);
        }
    }

    fn poll_failed(&mut self, vapps: bool, error: Option<VcdError>) {
        self.sight.close(self.now);
        self.poll.fails += 1;
        if vapps {
            // Only this query may fail: the polls until then are plain. During a shutdown, it is what counts.
            self.next_gc = if self.stopping { self.now } else { self.now + RETRY_MAX };
        }
        if let Some(error) = error {
            self.unreachable = matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Auth);
            self.poll.not_before = self.now + watch_backoff(self.poll.fails, &error);
            self.say_plain(Level::Warn, format!("{error}; instances are reported in their last known state"));
        }
    }

    /// The result of a poll for one instance. `unseen`: the time since the previous poll.
    fn watch_one(&mut self, key: Key, sent: Time, unseen: Duration, shown: &mut Shown<'_>, vcd_now: Option<UnixMs>) {
        let Some(i) = self.instances.get_mut(&key) else { return };
        if let Some(last) = i.last_vapp.as_ref().filter(|last| i.href() != Some(*last)) {
            shown.claim(last, None, |_| true);
        }
        let name = i.name.clone();
        let Observed::Vapp(vapp) = &mut i.observed else { return };
        let owner = &self.owner;
        let is_ours = |vm: &Vm| owner.judge_record(&name, Some(&vm.description)) == Ownership::Ours;
        match shown.claim(&vapp.href, vapp.vm.as_deref(), is_ours) {
            Some((Some(vm), shared)) => {
                vapp.shared |= shared;
                // The client's last pages have the same links: one copy of each.
                vapp.href.clone_from(&vm.vapp);
                i.last_vapp = Some(vm.vapp.clone());
                if let Some(own) = &mut vapp.vm {
                    own.clone_from(&vm.vm);
                }
                self.seen(key, vm, sent, vcd_now);
            }
            // A poll that was sent before it was known, or last seen, says nothing.
            _ if vapp.last_seen() < sent => {
                let polls = unseen.as_millis() / MISSED_EVERY.as_millis();
                vapp.missed = vapp.missed.saturating_add(u32::try_from(polls).unwrap_or(u32::MAX).max(1));
                // Nobody saw the progress of its guest.
                let boots = vapp.guest.watch().map(|(since, ..)| since.hold(unseen)).is_some();
                if let Some(creating) = i.creating.as_mut().filter(|_| boots) {
                    creating.hold(unseen);
                }
            }
            _ => {}
        }
    }

    fn seen(&mut self, key: Key, vm: &Vm, sent: Time, vcd_now: Option<UnixMs>) {
        let (now, clock) = (self.now, self.sight.at(self.now));
        let Some(i) = self.instances.get_mut(&key) else { return };
        let going = i.goes();
        let (desired, busy_with, unread) = (i.desired, i.operation.is_some(), i.attempts.look.has_failed());
        let Observed::Vapp(vapp) = &mut i.observed else { return };
        if sent < vapp.last_seen() {
            // What is known is newer.
            return;
        }
        (vapp.missed, vapp.patience, vapp.shown) = (0, MISSED_POLLS, sent);
        let judged = self.owner.judge_record(&vm.vapp_name, Some(&vm.description));
        // A foreign text may mean that the vApp has another owner now.
        let untold = (vapp.labelled && !Owner::is_marked(Some(&vm.description))) || vm.description.trim().is_empty();
        if judged == Ownership::Ours {
            vapp.vm.get_or_insert_with(|| vm.vm.clone());
        }
        let unsure = judged == Ownership::Unsure && vm.vapp_name == i.name;
        // A lookup since the last poll has proven it in spite of the same text.
        let noted = vapp.noted.as_ref() == Some(&vm.description);
        vapp.proven = vapp.proven && (judged == Ownership::Ours || (unsure && (untold || noted)));
        vapp.noted = unsure.then(|| vm.description.clone());
        let lease = [vm.undeploy_at, vm.delete_at].into_iter().flatten().min().zip(vcd_now);
        vapp.lease_end = lease.map(|(end, vcd_now)| now + Duration::from_millis(end.saturating_sub(vcd_now)));
        let ready = matches!(vapp.guest, Guest::Ready | Guest::Returning { since: None, .. });
        let mut record = Record::of(vm, vapp.is_customized(), sent);
        let old = vapp.record.take();
        let mut lost_address = false;
        if ready && record.address.is_none() {
            // Records lose the address for a while: the guest still has it. If it is off, it will have it again.
            record.address = old.as_ref().and_then(|old| old.address);
            lost_address = record.power == Power::On && record.address.is_some() && !vapp.address_kept;
            vapp.address_kept |= lost_address;
        } else if record.address.is_some() {
            vapp.address_kept = false;
        }
        let fresh = old.as_ref().is_none_or(|old| {
            (old.power, old.address, old.customization) != (record.power, record.address, record.customization)
        });
        if fresh {
            self.progress = now;
        }
        if let Some((_, answers, _)) = vapp.guest.watch() {
            if !record.silent() || old.as_ref().is_some_and(|old| old.address != record.address) {
                *answers = None;
            }
            if record.complete() && old.as_ref().is_some_and(Record::silent) {
                // The pause was for the slow probes before.
                i.attempts.probe = now;
            }
        }
        let (power, busy) = (record.power, record.busy);
        let is_over = record.is_final() && !old.as_ref().is_some_and(Record::is_final);
        let first = matches!(vapp.guest, Guest::Booting { .. }) && !vapp.is_customized();
        if is_over && first && matches!(i.origin, Origin::Requested | Origin::Standby) {
            self.pace.learn(Course::Boot, now - vapp.known);
        }
        vapp.record = Some(record);
        if lost_address {
            let text = "VCD no longer shows its address: the plugin uses the last one";
            self.say_of(Level::Warn, key, text.into());
        }
        if going {
            return;
        }
        let failed = vm.customization == Customization::Failed;
        let Some(i) = self.instances.get_mut(&key) else { return };
        let adopted = i.origin == Origin::Adopted;
        let Some(vapp) = i.vapp_mut() else { return };
        match (&vapp.guest, desired) {
            (Guest::New, _) => {}
            (Guest::Standby, _) => self.seen_standby(key),
            (Guest::Booting { .. }, _) => {
                let down = down(power, busy);
                vapp.against = if down.is_some() { vapp.against + 1 } else { 0 };
                if failed && first {
                    let hint = match is_windows(&vm.guest_os) {
                        true => "often the password policy of the guest rejects the password".into(),
                        false => format!("often the template needs `{ALLOW_SCRIPTS}`"),
                    };
                    self.boot_failed(key, &format!("guest customization failed (GC_FAILED); {hint}"));
                } else {
                    // Polls that lag show an earlier state: a lookup follows.
                    vapp.doubt = vapp.against >= AGAINST_POLLS;
                }
            }
            (Guest::Returning { since: Some(_), .. }, _) => {
                // Polls that lag show an earlier state.
                vapp.against = if down(power, busy).is_some() { vapp.against + 1 } else { 0 };
                vapp.doubt = vapp.against >= AGAINST_POLLS;
            }
            // It is being resumed: polls may show the earlier state. One that showed it down does not decide.
            (Guest::Returning { since: None, .. }, _) => {
                vapp.doubt |= matches!(power, Power::On | Power::Suspended) && vapp.unhealthy.take().is_some();
            }
            (Guest::Ready, Desired::Suspended) if vapp.power == Power::Suspended => {
                vapp.against = if power == Power::On && !busy { vapp.against + 1 } else { 0 };
                match (power, down(power, busy)) {
                    (Power::On, _) if vapp.against >= AGAINST_POLLS => vapp.doubt = true,
                    (Power::Off | Power::Failed, Some(down)) if vapp.unhealthy.is_none() => {
                        let since = Stopwatch::start(clock);
                        vapp.unhealthy = Some(Unhealthy { since, why: down, ends: true });
                        self.say_of(
                            Level::Warn,
                            key,
                            format!("{down}, not by the plugin: unhealthy, its memory is lost"),
                        );
                    }
                    (Power::Suspended, _) => vapp.unhealthy = None,
                    _ => {}
                }
            }
            (Guest::Ready, Desired::Suspended) if matches!(power, Power::On | Power::Suspended) => {
                vapp.unhealthy = None;
                // By another user, or by a request whose answer was lost: a lookup follows.
                vapp.doubt |= power == Power::Suspended && !busy && !busy_with;
            }
            (Guest::Ready, _) => {
                // A task may be the reason that it is down, and end. A task that hangs does not hide it for long.
                let held = busy && !matches!(power, Power::On | Power::Other);
                vapp.held = vapp.held.filter(|_| held).or_else(|| held.then(|| Stopwatch::start(clock)));
                match vapp.held.is_some_and(|since| clock < since.end(BUSY_PATIENCE)) {
                    true => vapp.against = 0,
                    // What it was adopted from may be older: its suspend mark shows who suspended it.
                    false if power == Power::Suspended && adopted && !busy && !unread && vapp.unhealthy.is_none() => {
                        vapp.doubt = true;
                    }
                    false => self.judge(key, power, failed),
                }
            }
        }
    }

    /// Checks the state of a running or suspended VM.
    pub(super) fn judge(&mut self, key: Key, power: Power, failed: bool) {
        let since = Stopwatch::start(self.sight.at(self.now));
        let Some(vapp) = self.instances.get_mut(&key).and_then(|i| i.vapp_mut()) else { return };
        vapp.against = if power == Power::Other { vapp.against + 1 } else { 0 };
        let wrong = match power {
            // Accepted before its customization reported. A job may run on it.
            Power::On if failed => Some(("guest customization failed after the VM was ready (GC_FAILED)", false)),
            Power::On => None,
            Power::Suspended if vapp.power == Power::Suspended => None,
            Power::Other if vapp.against < AGAINST_POLLS => None,
            Power::Other => Some(("VCD does not know its power state: its ESXi host may be down", true)),
            _ => down(power, false).map(|down| (down, true)),
        };
        match (wrong, vapp.unhealthy) {
            (Some((why, ends)), old) if old.is_none_or(|old| old.ends != ends) => {
                vapp.unhealthy = Some(Unhealthy { since, why, ends });
                self.say_of(Level::Warn, key, format!("{why}, not by the plugin: unhealthy"));
            }
            (None, Some(_)) if power != Power::Other => {
                vapp.unhealthy = None;
                self.say_of(Level::Info, key, "healthy again".into());
            }
            _ => {}
        }
    }
}

/// Why this is not the power state of a running guest, unless a task works on it.
pub(super) fn down(power: Power, busy: bool) -> Option<&'static str> {
    match power {
        _ if busy => None,
        Power::Off => Some("it is powered off"),
        Power::Suspended => Some("it is suspended"),
        Power::Failed => Some("VCD reports it as failed"),
        Power::On | Power::Other => None,
    }
}

/// The pause after `fails` failed polls or task queries.
pub(super) fn watch_backoff(fails: u32, error: &VcdError) -> Duration {
    let asked = error.retry_after.unwrap_or_default().min(WATCH_ASKED_MAX);
    doubled(WATCH_RETRY, fails.saturating_sub(1), WATCH_RETRY_MAX).max(asked)
}
