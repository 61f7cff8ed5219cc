//! What a poll means for the instances that are known: what changed, what is missing, what is not as it should be. vApps that
//! nothing here stands for are in `adopt.rs`.

use super::adopt::by_href;
use super::answers::wrong_reply;
use super::instance::{Desired, Observed, Origin};
use super::limits::doubled;
use super::owner::Ownership;
use super::pace::Course;
use super::time::Stopwatch;
use super::vapp::{Guest, Record, Unhealthy};
use super::{Group, Key, Time};
use crate::cloud::{ALLOW_SCRIPTS, Answer, Customization, ErrorKind, Power, Reply, UnixMs, VcdError, Vm, is_windows};
use log::Level;
use std::collections::HashMap;
use std::time::Duration;

/// A VM that so many polls in a row show otherwise than it should be is so indeed.
pub const AGAINST_POLLS: u32 = 3;
/// The same while a task holds it, which may have to do with that.
pub const AGAINST_BUSY: u32 = 12;
/// First pause after a failed poll or question for tasks; doubles with each further one.
pub const WATCH_RETRY: Duration = Duration::from_secs(2);
/// Longest such pause.
pub const WATCH_RETRY_MAX: Duration = Duration::from_secs(32);
/// Longest such pause that VCD may ask for.
pub const WATCH_ASKED_MAX: Duration = Duration::from_secs(60);

/// The VM records of a poll, by vApp.
struct Shown<'a> {
    vms: &'a [Vm],
    /// The first record of each vApp, how many there are, and whether an instance stands for it.
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

    /// The record of a vApp's own VM, and whether another VM is in it. An instance stands for it.
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
        self.swept |= self.stopping && sent >= self.stopping_since;
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
        self.claim_all(&poll, |href| shown.is_known(href));
    }

    /// What is shown of those that boot. That VCD cannot be seen, or nothing of theirs, is told by whole polls.
    pub(super) fn some_polled(&mut self, sent: Time, answer: Answer) {
        self.poll_some.on_wire = false;
        let poll = match answer {
            Ok(Reply::Poll(poll)) => poll,
            other => {
                self.poll_some.fails += 1;
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
            self.next_gc = self.now;
        }
        if let Some(error) = error {
            self.unreachable = matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Auth);
            self.poll.not_before = self.now + watch_backoff(self.poll.fails, &error);
            self.say_plain(Level::Warn, format!("{error}; instances are reported in their last known state"));
        }
    }

    /// What a poll shows of one instance, or does not. `unseen`: the time since the poll before.
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
                self.seen(key, vm, vcd_now);
            }
            // A poll that was sent before the vApp was known says nothing of it.
            _ if vapp.known < sent => {
                vapp.missed = vapp.missed.saturating_add(1);
                // Nobody saw how far its guest is.
                let boots = vapp.guest.watch().map(|(since, ..)| since.hold(unseen)).is_some();
                if let Some(creating) = i.creating.as_mut().filter(|_| boots) {
                    creating.hold(unseen);
                }
            }
            _ => {}
        }
    }

    fn seen(&mut self, key: Key, vm: &Vm, vcd_now: Option<UnixMs>) {
        let now = self.now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        let going = i.goes();
        let (desired, busy_with) = (i.desired, i.operation.is_some());
        let Observed::Vapp(vapp) = &mut i.observed else { return };
        (vapp.missed, vapp.patience) = (0, super::vapp::MISSED_POLLS);
        let judged = self.owner.judge_record(&vm.vapp_name, Some(&vm.description));
        // A text that nobody of ours wrote may mean that somebody has taken it over.
        let untold = vapp.labelled || vm.description.trim().is_empty();
        if judged == Ownership::Ours {
            vapp.vm.get_or_insert_with(|| vm.vm.clone());
        }
        vapp.proven = vapp.proven && (judged == Ownership::Ours || (judged == Ownership::Unsure && untold));
        let lease = [vm.undeploy_at, vm.delete_at].into_iter().flatten().min().zip(vcd_now);
        vapp.lease_end = lease.map(|(end, vcd_now)| now + Duration::from_millis(end.saturating_sub(vcd_now)));
        let ready = matches!(vapp.guest, Guest::Ready);
        let mut record = Record::of(vm, vapp.is_customized(), now);
        let old = vapp.record.take();
        let mut lost_address = false;
        if ready && record.address.is_none() && record.power == Power::On {
            // Records lose it for a while: the guest has it still.
            record.address = old.as_ref().and_then(|old| old.address);
            lost_address = record.address.is_some() && !vapp.address_kept;
            vapp.address_kept = record.address.is_some();
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
                // The pause was between the slow probes that went before.
                i.attempts.look.next = now;
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
        let Some(vapp) = self.instances.get_mut(&key).and_then(|i| i.vapp_mut()) else { return };
        match (&vapp.guest, desired) {
            (Guest::New, _) => {}
            (Guest::Standby, _) => self.seen_standby(key),
            (Guest::Booting { .. }, _) => {
                let down = down(power, busy);
                vapp.against = if down.is_some() { vapp.against + 1 } else { 0 };
                if failed {
                    let hint = match is_windows(&vm.guest_os) {
                        true => "often the password policy of the guest rejects the password".into(),
                        false => format!("often the template needs `{ALLOW_SCRIPTS}`"),
                    };
                    self.boot_failed(key, &format!("guest customization failed (GC_FAILED); {hint}"));
                } else {
                    // Polls that lag show it as it was before: a look tells.
                    vapp.doubt |= vapp.against >= AGAINST_POLLS;
                }
            }
            (Guest::Returning { since: Some(_), .. }, _) => {
                // Polls that lag show it as it was before.
                vapp.against = if down(power, busy).is_some() { vapp.against + 1 } else { 0 };
                vapp.doubt |= vapp.against >= AGAINST_POLLS;
            }
            // It is being resumed: what polls show may be from before.
            (Guest::Returning { since: None, .. }, _) => {}
            (Guest::Ready, Desired::Suspended) if vapp.power == Power::Suspended => {
                vapp.against = if power == Power::On && !busy { vapp.against + 1 } else { 0 };
                match (power, down(power, busy)) {
                    (Power::On, _) if vapp.against >= AGAINST_POLLS => vapp.doubt = true,
                    (Power::Off | Power::Failed, Some(down)) if vapp.unhealthy.is_none() => {
                        let since = Stopwatch::start(self.sight.at(now));
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
                // By somebody else, or by a request whose answer was lost: a look tells.
                vapp.doubt |= power == Power::Suspended && !busy && !busy_with;
            }
            (Guest::Ready, _) => {
                // A task may do that, and end; one that hangs hides nothing for ever.
                let held = busy && power != Power::Other;
                vapp.held = if held && power != Power::On { vapp.held.saturating_add(1) } else { 0 };
                match held && vapp.held <= AGAINST_BUSY {
                    true => vapp.against = 0,
                    false => self.judge(key, power, failed),
                }
            }
        }
    }

    /// Whether what runs, or is suspended, is as it should be.
    pub(super) fn judge(&mut self, key: Key, power: Power, failed: bool) {
        let since = Stopwatch::start(self.sight.at(self.now));
        let Some(vapp) = self.instances.get_mut(&key).and_then(|i| i.vapp_mut()) else { return };
        vapp.against = if power == Power::Other { vapp.against + 1 } else { 0 };
        let wrong = match power {
            // Taken before its customization reported. A job may run on it.
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
            (None, Some(_)) if power == Power::On => {
                vapp.unhealthy = None;
                self.say_of(Level::Info, key, "powered on again".into());
            }
            _ => {}
        }
    }
}

/// How a power state is not that of a guest that runs, unless a task is at work.
pub(super) fn down(power: Power, busy: bool) -> Option<&'static str> {
    match power {
        _ if busy => None,
        Power::Off => Some("it is powered off"),
        Power::Suspended => Some("it is suspended"),
        Power::Failed => Some("VCD reports it as failed"),
        Power::On | Power::Other => None,
    }
}

/// The pause before a poll or a question for tasks is repeated after `fails` failed ones.
pub(super) fn watch_backoff(fails: u32, error: &VcdError) -> Duration {
    let asked = error.retry_after.unwrap_or_default().min(WATCH_ASKED_MAX);
    doubled(WATCH_RETRY, fails.saturating_sub(1), WATCH_RETRY_MAX).max(asked)
}
