//! The consequences of a failure or loss: retries, the breaker's count, and the end of an instance.

use super::answers::LOOK_PAUSE;
use super::instance::{Attempts, Cause, Desired, Observed, Origin};
use super::limits::{Backoff, DELETE_RETRY_MAX, QUOTA_RETRY_BASE, RETRY_BASE, RETRY_MAX, doubled};
use super::vapp::{Guest, Removal};
use super::{Command, GC_INTERVAL, Group, Instance, Key, MAX_PAST, PRUNE_AFTER, Time};
use crate::cloud::{ErrorKind, Power, VcdError};
use log::Level;
use std::time::Duration;

/// After this many failed combined creates, VMs are created in steps.
pub const WHOLE_FAILURES: u32 = 2;
/// Steps stay in use for this long if they work, or if the combined request is too much.
pub const WHOLE_AGAIN: Duration = Duration::from_secs(60 * 60);

impl Group {
    // Endings.

    /// VCD has nothing of the instance any more, and it is not wanted.
    pub(super) fn end(&mut self, key: Key) {
        let now = self.now;
        self.progress = now;
        if let Some(i) = self.instances.get_mut(&key) {
            i.ended = Some(now);
        }
        self.say_of(Level::Info, key, "gone from VCD".into());
        match self.instances.get(&key) {
            Some(i) if i.is_reported() => self.wake_by(now + PRUNE_AFTER),
            _ => self.forget(key),
        }
    }

    pub(super) fn forget(&mut self, key: Key) {
        if let Some(i) = self.instances.remove(&key)
            && (i.is_reported() || i.origin == Origin::Standby)
        {
            self.names.remove(&i.name);
            if self.past.len() >= MAX_PAST {
                self.past.pop_front();
            }
            self.past.push_back(i.name);
        }
    }

    /// VCD does not know the instance's vApp, or no longer.
    pub(super) fn vanished(&mut self, key: Key) {
        let now = self.now;
        self.progress = now;
        let Some(i) = self.instances.get_mut(&key) else { return };
        let lost = i.has_run();
        let Observed::Vapp(was) = std::mem::replace(&mut i.observed, Observed::Nothing) else { return };
        i.operation = None;
        i.attempts.delete.reset();
        i.attempts.change.reset();
        i.attempts.look.reset();
        i.attempts.not_busy();
        (i.attempts.look.next, i.attempts.change.next) = (now, now);
        let wanted = !i.desired.is_deleted() && !was.doomed;
        let left_over_quota = was.doomed && i.refused == Some(ErrorKind::Quota);
        let of_pool = i.desired == Desired::Standby;
        match () {
            // Another VM with a new id replaces it.
            _ if of_pool && (was.doomed || was.guest == Guest::Standby) => self.delete_for(key, Cause::Spoiled),
            _ if wanted && lost => self.delete_for(key, Cause::Lost),
            // It disappeared during its create. The plugin did not delete it.
            _ if wanted => {
                if was.guest == Guest::Standby {
                    // Its time starts with the new create request.
                    i.creating = None;
                }
                self.create_ended(key, was.build.failed);
            }
            // It frees only what it used itself, and that was not enough.
            _ if left_over_quota => {}
            _ => self.quota_freed(),
        }
    }

    /// A create or resume that VCD rejected because of a quota may succeed now that an owned vApp is deleted.
    fn quota_freed(&mut self) {
        let refused = |i: &Instance| i.refused == Some(ErrorKind::Quota) && !i.goes();
        let sleeps = |i: &Instance| i.vapp().is_some_and(|vapp| vapp.power == Power::Suspended);
        for i in self.instances.values_mut().filter(|i| refused(i) && sleeps(i)) {
            // A lookup decides first.
            (i.attempts.look.next, i.attempts.change.next) = (self.now, self.now);
        }
        for i in self.instances.values_mut().filter(|i| i.lacks_quota() && i.operation.is_none()) {
            i.attempts.create.next = self.now;
            self.breaker.try_now(self.now);
        }
    }

    /// Deletes the instance for `cause`. The first cause counts.
    pub(super) fn delete_for(&mut self, key: Key, cause: Cause) {
        let Some(instance) = self.instances.get_mut(&key) else { return };
        if instance.desired.is_deleted() || instance.ended.is_some() {
            return;
        }
        // The text of an error needs no explanation.
        let why = match (cause, &instance.error) {
            (Cause::Timeout, Some(error)) => format!(". Last error: {error}"),
            (Cause::Timeout, None) => format!(". It waited for {}", instance.waits_for(self.now)),
            _ => String::new(),
        };
        instance.desired = Desired::Deleted(cause);
        if let Some(vapp) = instance.vapp_mut() {
            vapp.build.slot = None;
            if vapp.is_busy() {
                // That task may delete it: a new lookup shows which one it is.
                vapp.document = None;
            }
        }
        // The pauses belonged to what was desired before.
        (instance.attempts.look.next, instance.attempts.change.next) = (self.now, self.now);
        instance.attempts.change.reset();
        instance.attempts.not_busy();
        let (level, text) = cause.words();
        let event = instance.event(level, text.to_string() + &why);
        self.commands.push_back(Command::Say(event));
    }

    /// True if garbage collection deletes a running instance of this age.
    pub fn too_old(&self, age: Duration) -> bool {
        let limit = self.policy.max_instance_age * 2;
        !limit.is_zero() && age >= limit
    }

    /// Garbage collection: deletes instances past twice max_instance_age. The poll with vApps at the same time finds
    /// leftovers.
    pub(super) fn collect(&mut self) {
        self.next_gc = self.now + GC_INTERVAL;
        let longest = self.policy.suspended_max_age;
        let old = |i: &Instance| {
            let Some(vapp) = i.vapp() else { return false };
            match (i.desired, &vapp.guest) {
                (Desired::Suspended, _) if i.is_suspended() => !longest.is_zero() && self.now - vapp.known >= longest,
                (Desired::Running | Desired::Suspended, guest) if guest.has_run() => self.too_old(i.age(self.now)),
                _ => false,
            }
        };
        let keys: Vec<Key> = self.instances.iter().filter(|(_, i)| old(i)).map(|(key, _)| *key).collect();
        for key in keys {
            self.delete_for(key, Cause::Aged);
        }
    }

    // Failures.

    /// A create failed because of VCD or the configuration.
    pub(super) fn count_create_failure(&mut self, key: Key, aborted: bool) {
        let Some(i) = self.instances.get(&key) else { return };
        if i.origin == Origin::Standby && self.breaker.allows(self.now) == u32::MAX {
            // Nobody waits for it. If the breaker is open, it is the one create that is tried.
            return;
        }
        let why = i.error.clone().unwrap_or_else(|| "unknown reason".into());
        if let Some(pause) = self.breaker.failure(self.now, i.create_began, aborted) {
            let text = format!(
                "creates fail: no VM is created for {} s, then one is tried; deletes continue. Fix the last error (see \
                 docs/troubleshooting.md), of {}: {why}",
                pause.as_secs(),
                i.name
            );
            self.say_plain(Level::Error, text);
        }
    }

    /// A create failed: the next one waits.
    pub(super) fn create_failed(&mut self, key: Key, error: Option<&VcdError>) {
        let (now, timeout, seen) = (self.now, self.policy.create_timeout, self.sight.at(self.now));
        let Some(i) = self.instances.get_mut(&key) else { return };
        let tries = i.attempts.create.tries;
        let kind = error.map(|error| error.kind);
        i.refused = kind;
        if i.desired == Desired::Standby {
            // Another VM with a new id replaces it.
            return self.pool_failed(key, error);
        }
        let pause = match kind {
            Some(ErrorKind::Quota) => doubled(QUOTA_RETRY_BASE, tries, RETRY_MAX),
            kind => pause(kind, tries, RETRY_MAX),
        };
        let pause = i.attempts.create.fail(now, &mut self.rng, pause);
        let left = i.creating.map(|watch| watch.end(timeout) - seen);
        let follows = if i.desired.is_deleted() {
            "no further try, it is no longer wanted".to_string()
        } else if left.is_some_and(|left| pause >= left) {
            "no further try before create_timeout".to_string()
        } else {
            format!("next try in {} s", pause.as_secs())
        };
        match error {
            Some(error) => self.blame(key, error, &follows),
            None => self.say_of(Level::Warn, key, format!("the vApp disappeared during its create; {follows}")),
        }
    }

    /// A create left nothing of use. `error`: why its task failed, if it did.
    pub(super) fn create_ended(&mut self, key: Key, error: Option<Box<VcdError>>) {
        let Some(error) = error else { return self.create_failed(key, None) };
        let counts = self.whole_failed(&error);
        self.create_left(key, &error, counts);
    }

    /// A create failed in its steps or at its guest, and left a vApp.
    pub(super) fn made_badly(&mut self, key: Key, error: &VcdError) {
        // A task that was cancelled or aborted says nothing, nor does a quota.
        let counts = |i: &Instance| !i.goes() && i.vapp().is_some_and(|vapp| !vapp.build.whole);
        if !matches!(error.kind, ErrorKind::Aborted | ErrorKind::Quota)
            && self.instances.get(&key).is_some_and(|i| counts(i))
        {
            self.steps_failed();
        }
        self.create_left(key, error, true);
    }

    /// A create in steps failed. If steps were tried because the combined request failed, the combined request is used
    /// again.
    pub(super) fn steps_failed(&mut self) {
        if self.whole_failures >= WHOLE_FAILURES {
            (self.whole, self.whole_failures) = (true, 0);
        }
    }

    /// A combined create failed for a reason that may not apply to steps. If that happens again, VMs are created in steps
    /// for a while. Returns whether the failure counts against VCD: not before steps were tried.
    pub(super) fn whole_failed(&mut self, error: &VcdError) -> bool {
        if !self.whole || error.kind == ErrorKind::Aborted {
            return true;
        }
        let tried = self.steps_until.is_some();
        self.whole_failures += 1;
        if self.whole_failures >= WHOLE_FAILURES {
            if !tried {
                // The pool's failures so far say nothing of steps. If it waited longer than steps are used, it would never
                // try them.
                self.pool_backoff = Backoff::default();
            }
            self.take_apart(&error.to_string(), Some(self.now + WHOLE_AGAIN));
        }
        tried
    }

    /// VCD does not create a VM with the combined request: use three steps, until `until` if it is set.
    pub(super) fn take_apart(&mut self, why: &str, until: Option<Time>) {
        if std::mem::take(&mut self.whole) {
            self.steps_until = until;
            let text = format!("{why}; VMs are now created in three steps: compose, reconfigure, power on");
            self.say_plain(Level::Warn, text);
        }
    }

    /// A create failed and left a vApp. `counts`: the failure counts for the breaker.
    pub(super) fn create_left(&mut self, key: Key, error: &VcdError, counts: bool) {
        let Some(i) = self.instances.get_mut(&key) else { return };
        i.operation = None;
        let wanted = !i.desired.is_deleted();
        if let Some(vapp) = i.vapp_mut() {
            (vapp.doomed, vapp.build.slot) = (true, None);
        }
        self.create_failed(key, Some(error));
        if wanted && counts {
            self.count_create_failure(key, error.kind == ErrorKind::Aborted);
        }
    }

    /// A change of a VM failed: the next try waits.
    pub(super) fn change_failed(&mut self, key: Key, error: &VcdError) {
        self.try_later(key, error, |attempts| &mut attempts.change, RETRY_MAX);
    }

    /// A lookup failed: the next one waits. A VM of the pool is not worth many.
    pub(super) fn look_failed(&mut self, key: Key, error: &VcdError) {
        let Some(i) = self.instances.get_mut(&key) else { return };
        i.vapp_mut().into_iter().for_each(|vapp| vapp.build.slot = None);
        let (poll, look) = (&self.poll, &i.attempts.look);
        // While VCD is not available, this says nothing about the VM.
        let polled = poll.fails == 0 && !poll.on_wire && look.since < Some(poll.last);
        if i.desired == Desired::Standby && look.is_last() && polled {
            return self.pool_failed(key, Some(error));
        }
        // Init waits for it.
        let most = if i.origin == Origin::Found { LOOK_PAUSE } else { RETRY_MAX };
        self.try_later(key, error, |attempts| &mut attempts.look, most);
    }

    /// A delete failed: the next one waits. It uses the other way if this one `cannot` work, or has failed several times.
    pub(super) fn delete_failed(&mut self, key: Key, error: &VcdError, cannot: bool) {
        let Some(i) = self.instances.get_mut(&key) else { return };
        // VCD was not available: this says nothing about the vApp.
        let unasked = matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Auth);
        let flips = cannot || i.attempts.delete.is_last();
        if let Some(vapp) = i.vapp_mut() {
            // The result of a lookup may be outdated after the pause.
            vapp.document = None;
            if flips {
                // What is used now is not force if that was forbidden.
                let force = vapp.removal == Removal::Force && self.now >= self.no_force_until;
                vapp.removal = if force { Removal::Stop } else { Removal::Force };
            }
        }
        let most = if unasked { RETRY_MAX } else { DELETE_RETRY_MAX };
        self.try_later(key, error, |attempts| &mut attempts.delete, most);
    }

    /// Another try after a pause that grows with each failure.
    pub(super) fn try_later(
        &mut self,
        key: Key,
        error: &VcdError,
        of: fn(&mut Attempts) -> &mut Backoff,
        most: Duration,
    ) {
        let Some(i) = self.instances.get_mut(&key) else { return };
        let backoff = of(&mut i.attempts);
        let pause = pause(Some(error.kind), backoff.tries, most);
        let pause = backoff.fail(self.now, &mut self.rng, pause);
        self.blame(key, error, &format!("next try in {} s", pause.as_secs()));
    }

    /// The organization's operation limit: the request did nothing and is repeated after a pause of all changes.
    pub(super) fn throttled(&mut self, key: Key, error: &VcdError) {
        if let Some(pause) = self.throttle.refused(self.now, &mut self.rng, error.retry_after) {
            self.blame(key, error, &format!("all changes pause for {} s", pause.as_secs()));
        }
    }
}

/// The pause after `tries` + 1 failed tries. It doubles, and starts long if VCD's reason does not disappear by itself.
fn pause(kind: Option<ErrorKind>, tries: u32, most: Duration) -> Duration {
    let least = if kind.is_some_and(will_not_pass) { RETRY_MAX } else { Duration::ZERO };
    doubled(RETRY_BASE, tries, most).max(least)
}

/// The reason stays until somebody changes something in VCD.
pub(super) fn will_not_pass(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Quota | ErrorKind::Forbidden | ErrorKind::Invalid | ErrorKind::NotFound)
}
