//! The standby pool: VMs that are ready and suspended, so that an Increase gets one as fast as a resume. The host does not
//! know of them before they are handed out. A VM that may have been used, or was powered on after its suspend, is never
//! handed out: it is deleted.

use super::instance::{Cause, Desired, Instance, Kind, Mark, Origin};
use super::limits::{DELETE_RETRY_MAX, RETRY_BASE, doubled};
use super::time::Stopwatch;
use super::vapp::{Guest, Vapp};
use super::{Group, Key, Name};
use crate::cloud::{self, ErrorKind, Power, Source, VcdError};
use log::Level;
use std::cmp::Reverse;
use std::time::Duration;

/// Polls may lag by this time: within it, a lookup checks what they show of a suspended VM.
pub const STANDBY_LAG: Duration = Duration::from_secs(60);
/// A VM from an older template or configuration is replaced when it has been in standby for this long. This limits the cost
/// if the configuration changes back and forth.
pub const STANDBY_RENEWAL: Duration = Duration::from_secs(10 * 60);
/// Maximum number of VMs that are prepared for the pool at the same time, from their create to their suspend.
pub const STANDBY_AT_A_TIME: usize = 1;

impl Group {
    /// Hands out up to `n` VMs of the pool: first the VMs in standby, then those in preparation, the oldest first.
    pub(super) fn hand_out(&mut self, n: usize) -> usize {
        let sound = |vapp: &Vapp| !vapp.doubt && !vapp.is_missing() && !vapp.shared && vapp.unhealthy.is_none();
        // A VM whose create has not started, or that is stuck, would be slower than a new one.
        let usable = |i: &Instance| !i.goes() && i.stuck().is_none() && i.vapp().map_or(i.operation.is_some(), sound);
        let pool = self.instances.iter().filter(|(_, i)| i.desired == Desired::Standby && usable(i));
        // Keys do not tell the age of what was adopted: polls are sorted by name.
        let mut pool: Vec<_> = pool.map(|(key, i)| (!i.stands_by(), Reverse(i.age(self.now)), *key)).collect();
        pool.sort_unstable();
        let keys: Vec<Key> = pool.into_iter().map(|(_, _, key)| key).take(n).collect();
        for key in &keys {
            self.hand_out_one(*key);
        }
        keys.len()
    }

    fn hand_out_one(&mut self, key: Key) {
        let (now, seen) = (self.now, self.sight.at(self.now));
        let Some(i) = self.instances.get_mut(&key) else { return };
        (i.origin, i.desired) = (Origin::Requested, Desired::Running);
        i.renew(now);
        i.error = None;
        (i.accepted, i.create_began) = (Stopwatch::start(seen), now);
        i.creating = i.creating.map(|_| i.accepted).or_else(|| i.vapp().map(|_| i.accepted));
        (i.attempts.change.next, i.attempts.look.next) = (now, now);
        let text = match i.vapp() {
            Some(vapp) if vapp.power == Power::Suspended => "accepted: taken from standby",
            Some(vapp) if vapp.guest == Guest::Standby => "accepted: it was about to be suspended for standby",
            _ => "accepted: it was being created for standby",
        };
        let name: Name = i.name.clone();
        self.names.insert(name, key);
        self.say_of(Level::Info, key, text.into());
    }

    /// Starts the next VM of the pool if one is missing, and replaces one that is outdated. Requests of the host have
    /// priority, above all if a quota is full, and nothing starts while VCD rejects creates.
    pub(super) fn refill(&mut self) {
        if self.policy.standby_count == 0 || self.stopping || self.adopt_until.is_some() {
            return;
        }
        if let Some(until) = self.held_until().max(self.breaker.until(self.now)).max(self.throttle.until(self.now)) {
            return self.wake_by(until);
        }
        if self.unreachable {
            return;
        }
        let pool = || self.instances.iter().filter(|(_, i)| i.origin == Origin::Standby && i.ended.is_none());
        let wanted = |i: &Instance| !i.desired.is_deleted();
        let size = pool().filter(|(_, i)| wanted(i)).count();
        let busy = pool().filter(|(_, i)| wanted(i) && !i.stands_by() && i.stuck().is_none()).count();
        if busy >= STANDBY_AT_A_TIME {
            return;
        }
        let most = self.policy.standby_count as usize;
        if size < most {
            // If VCD deletes none of those that are replaced, the pool does not grow for ever.
            if pool().count() >= 2 * most {
                return;
            }
            if self.instances.values().any(|i| i.lacks_quota()) {
                return;
            }
            if self.now < self.pool_backoff.next {
                return self.wake_by(self.pool_backoff.next);
            }
            let (now, seen) = (self.now, self.sight.at(self.now));
            let mut i = Instance::new(self.fresh_name(), Origin::Standby, now, seen);
            i.desired = Desired::Standby;
            self.say(Level::Info, &i, "to be created for standby");
            self.insert(i);
            return;
        }
        let differs = |vapp: &Vapp| vapp.source != Source::default() && vapp.source != self.source;
        let old = |vapp: &Vapp| self.now - vapp.known >= STANDBY_RENEWAL;
        let outdated = |i: &Instance| i.stands_by() && i.vapp().is_some_and(|vapp| differs(vapp) && old(vapp));
        let goes = pool().any(|(_, i)| i.desired == Desired::Deleted(Cause::Outdated) && i.stuck().is_none());
        if let Some(key) = pool().find(|(_, i)| outdated(i)).map(|(key, _)| *key).filter(|_| !goes) {
            self.delete_for(key, Cause::Outdated);
        }
    }

    /// VCD shows what new VMs are created from.
    pub(super) fn source_is(&mut self, source: Source) {
        if source != Source::default() {
            self.source = source;
        }
    }

    /// A VM is in standby.
    pub(super) fn came_to_rest(&mut self, key: Key) {
        self.pool_backoff.reset();
        self.say_of(Level::Info, key, "in standby".into());
    }

    /// The next VM of the pool starts later: at growing intervals, up to an hour. Returns the pause.
    pub(super) fn pause_pool(&mut self) -> Duration {
        let pause = doubled(RETRY_BASE, self.pool_backoff.tries, DELETE_RETRY_MAX);
        self.pool_backoff.fail(self.now, &mut self.rng, pause)
    }

    /// A VM cannot be prepared for the pool: it is deleted, and the next one starts later.
    pub(super) fn pool_failed(&mut self, key: Key, error: Option<&VcdError>) {
        let pause = self.pause_pool();
        let text = format!("it cannot be used for standby and is deleted; the next is tried in {} s", pause.as_secs());
        match error {
            Some(error) => self.blame(key, error, &text),
            None => self.say_of(Level::Warn, key, format!("the vApp disappeared during its create; {text}")),
        }
        self.delete_for(key, Cause::Spoiled);
    }

    /// It may have been used, or was powered on: it is never handed out.
    pub(super) fn spoil(&mut self, key: Key, why: &str) {
        let Some(i) = self.instances.get_mut(&key) else { return };
        match i.desired {
            Desired::Standby => {
                self.say_of(Level::Warn, key, format!("{why}, not by the plugin: the plugin deletes it without use"));
                self.delete_for(key, Cause::Spoiled);
            }
            // It was just handed out: another VM replaces it.
            _ => {
                let error = VcdError::own(ErrorKind::Failed, format!("resume {}", i.name), why);
                self.not_resumed(key, &error);
            }
        }
    }

    /// The result of a poll for a VM that is ready for the pool, or in it.
    pub(super) fn seen_standby(&mut self, key: Key) {
        let Some(i) = self.instances.get_mut(&key).filter(|i| i.desired == Desired::Standby) else { return };
        // A mark changes no power state, and its request may take minutes.
        let at_work = i.does(|kind| !matches!(kind, Kind::Mark(_)));
        let marks = i.operation.is_some();
        let Some(vapp) = i.vapp_mut() else { return };
        let Some(record) = &vapp.record else { return };
        let woken = vapp.power == Power::Suspended && matches!(record.power, Power::On | Power::Off);
        if woken && !at_work && record.seen - vapp.known > STANDBY_LAG {
            return self.spoil(key, "it is no longer suspended");
        }
        if marks || record.busy {
            return;
        }
        match (vapp.power, record.power) {
            (_, Power::Other) => self.judge(key, Power::Other, false),
            (was, is) if was == is => (vapp.against, vapp.unhealthy) = (0, None),
            // Polls lag: a lookup follows.
            _ => vapp.doubt = true,
        }
    }

    /// A lookup of a VM that is ready for the pool, in it, or just handed out.
    pub(super) fn looked_at_standby(&mut self, key: Key, power: Power, busy: bool) {
        let Some(vapp) = self.instances.get_mut(&key).and_then(|i| i.vapp_mut()) else { return };
        vapp.against = 0;
        match (vapp.power, power) {
            (was, is) if was == is => vapp.unhealthy = None,
            _ if busy || power == Power::Other => {}
            (Power::Suspended, _) => self.spoil(key, "it is no longer suspended"),
            _ => self.spoil(key, "it is no longer running"),
        }
    }

    /// A vApp of an earlier process that is marked as standby. False if it cannot be used.
    pub(super) fn adopt_standby(&mut self, key: Key, seen: &cloud::Vapp) -> bool {
        let cloud::Mark::Standby { source } = &seen.mark else { return false };
        let (now, most) = (self.now, self.policy.standby_count as usize);
        let others = self.instances.values().filter(|i| i.origin == Origin::Standby).count();
        let is_current = *source == self.source || self.source == Source::default();
        let is_double = self.instances.iter().any(|(other, i)| *other != key && i.name == seen.name);
        let Some(i) = self.instances.get_mut(&key) else { return false };
        let locked_out = i.locked_out;
        let Some(vapp) = i.vapp_mut() else { return false };
        if others >= most || !is_current || is_double || locked_out || vapp.shared || seen.busy {
            return false;
        }
        vapp.guest = Guest::Standby;
        vapp.settle(Power::Suspended, now);
        (vapp.mark, vapp.source) = (Some(Mark::Standby), *source);
        (i.origin, i.desired) = (Origin::Standby, Desired::Standby);
        self.say_of(Level::Info, key, "found in standby: adopted".into());
        true
    }
}
