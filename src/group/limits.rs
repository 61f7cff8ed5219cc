//! Limits that protect VCD from the group: slots, backoff, the create breaker, the throttle at the organization's operation
//! limit, and the one source of randomness.

use super::Time;
use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

/// First pause after a failure. Doubles with each further failure.
pub const RETRY_BASE: Duration = Duration::from_secs(10);
/// Longest pause between tries, and the first one if VCD's reason does not disappear by itself.
pub const RETRY_MAX: Duration = Duration::from_secs(5 * 60);
/// First pause after a quota was exceeded. Doubles each further time, up to [`RETRY_MAX`].
pub const QUOTA_RETRY_BASE: Duration = Duration::from_secs(30);
/// Longest pause between two tries to delete a vApp.
pub const DELETE_RETRY_MAX: Duration = Duration::from_secs(60 * 60);
/// The breaker opens when failed creates exceed successful ones within [`BREAKER_WINDOW`] by this number.
pub const BREAKER_FAILURES: u32 = 3;
/// Older results of creates do not count. Longer by [`BREAKER_FAILURES`] times what the last failed create took.
pub const BREAKER_WINDOW: Duration = Duration::from_secs(10 * 60);
/// First pause of creates when the breaker opens. Doubles each time that the one create after the pause fails.
pub const BREAKER_PAUSE: Duration = Duration::from_secs(60);
/// Longest pause of the breaker.
pub const BREAKER_PAUSE_MAX: Duration = Duration::from_secs(5 * 60);
/// Maximum number of create results that the breaker remembers.
pub const BREAKER_MEMORY: usize = 32;
/// First pause at the organization's operation limit. Doubles with each further rejection.
pub const THROTTLE_PAUSE: Duration = Duration::from_secs(15);
/// Longest pause at the organization's operation limit.
pub const THROTTLE_PAUSE_MAX: Duration = Duration::from_secs(5 * 60);

/// A change that VCD did not carry out, or did not find, this many times in a row has failed. An instance that cannot be looked
/// up this many times in a row is stuck.
pub const LOST_TRIES: u32 = 3;

/// SplitMix64: sufficient for names and jitter.
pub(super) struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform enough below `n`, for small `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// `duration` plus or minus at most `percent`.
    pub fn jitter(&mut self, duration: Duration, percent: u64) -> Duration {
        let ms = duration.as_millis() as u64;
        let span = ms * percent / 100;
        Duration::from_millis(ms - span + self.below(2 * span + 1))
    }
}

/// `base` doubled `times` times, at most `max`.
pub(super) fn doubled(base: Duration, times: u32, max: Duration) -> Duration {
    base.saturating_mul(1u32.checked_shl(times.min(16)).unwrap_or(u32::MAX)).min(max)
}

/// The failures of one kind of operation on one instance. Reset only when that kind succeeds.
#[derive(Clone, Debug, Default)]
pub(super) struct Backoff {
    /// Failed tries in a row.
    pub tries: u32,
    /// Since the first of them.
    pub since: Option<Time>,
    /// No try before this time.
    pub next: Time,
}

impl Backoff {
    /// One more try has failed. The next one waits for `pause`, with 25 % jitter. Returns the pause.
    pub fn fail(&mut self, now: Time, rng: &mut Rng, pause: Duration) -> Duration {
        let pause = rng.jitter(pause, 25);
        self.note(now);
        self.next = now + pause;
        pause
    }

    /// One more try has failed. The caller decides about the time of the next one.
    pub fn note(&mut self, now: Time) {
        self.tries = self.tries.saturating_add(1);
        self.since.get_or_insert(now);
    }

    /// If this try fails too, nothing is tried again.
    pub fn is_last(&self) -> bool {
        self.tries + 1 >= LOST_TRIES
    }

    /// It has failed [`LOST_TRIES`] times.
    pub fn has_failed(&self) -> bool {
        self.tries >= LOST_TRIES
    }

    /// It succeeded.
    pub fn reset(&mut self) {
        (self.tries, self.since) = (0, None);
    }
}

/// The purpose of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Creates an instance, until its first boot.
    Create,
    Resume,
    Delete,
    Suspend,
    /// All operations on a VM for the standby pool, except its delete. It counts for no other limit: nobody waits because
    /// of it.
    Standby,
}

impl Lane {
    /// The lanes that count together.
    const ALL: [Lane; 4] = [Lane::Create, Lane::Resume, Lane::Delete, Lane::Suspend];

    /// Somebody waits for it.
    pub fn is_urgent(self) -> bool {
        matches!(self, Lane::Create | Lane::Resume)
    }
}

/// The number of operations in VCD, including possible ones. Each holds a [`Slot`].
#[derive(Default)]
pub(super) struct Slots([Rc<Cell<u32>>; 5]);

impl Slots {
    fn count(&self, lane: Lane) -> &Rc<Cell<u32>> {
        let [create, resume, delete, suspend, standby] = &self.0;
        match lane {
            Lane::Create => create,
            Lane::Resume => resume,
            Lane::Delete => delete,
            Lane::Suspend => suspend,
            Lane::Standby => standby,
        }
    }

    pub fn take(&self, lane: Lane) -> Slot {
        let count = self.count(lane).clone();
        count.set(count.get() + 1);
        Slot(count)
    }

    /// Slots in use in this lane.
    pub fn used(&self, lane: Lane) -> u32 {
        self.count(lane).get()
    }

    /// Slots in use in all urgent lanes, or in all others that count together.
    pub fn used_by(&self, urgent: bool) -> u32 {
        Lane::ALL.into_iter().filter(|lane| lane.is_urgent() == urgent).map(|lane| self.used(lane)).sum()
    }

    /// Slots in use in all lanes that count together.
    pub fn total(&self) -> u32 {
        Lane::ALL.into_iter().map(|lane| self.used(lane)).sum()
    }
}

/// One slot of a lane. Dropping it frees it.
pub(super) struct Slot(Rc<Cell<u32>>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// Pauses creates when they fail. After a pause, it allows one create.
#[derive(Default)]
pub(super) struct Breaker {
    /// The recent results of creates, oldest first.
    ends: VecDeque<(Time, Ended)>,
    /// Time of the last failure that counts: the result of a create that began before it does not count again.
    counted: Option<Time>,
    /// How often it has opened since the last success.
    opened: u32,
    until: Option<Time>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    Well,
    Badly,
    /// VCD aborted its task: one event for all tasks that it stopped.
    Aborted,
}

impl Breaker {
    /// A create succeeded: the instance runs.
    pub fn success(&mut self, now: Time) {
        if self.until.take().is_some() {
            *self = Breaker::default();
        }
        self.opened = 0;
        self.forget(now, Duration::ZERO);
        self.remember(now, Ended::Well);
    }

    /// A create that began at `began` has failed because of VCD or the configuration. Returns the pause if this opened the
    /// breaker. Concurrent creates count once, and so do all tasks that VCD aborts.
    pub fn failure(&mut self, now: Time, began: Time, aborted: bool) -> Option<Duration> {
        // Slow failures are rare failures: it takes long until there are three.
        let longer = (now - began) * BREAKER_FAILURES;
        self.forget(now, longer);
        let known = self.counted.is_some_and(|counted| began < counted)
            || (aborted && self.ends.iter().any(|(_, end)| *end == Ended::Aborted));
        if known || self.until.is_some_and(|until| now < until) {
            return None;
        }
        self.counted = Some(now);
        self.remember(now, if aborted { Ended::Aborted } else { Ended::Badly });
        if self.until.is_none() && self.balance() < BREAKER_FAILURES {
            return None;
        }
        let pause = doubled(BREAKER_PAUSE, self.opened, BREAKER_PAUSE_MAX);
        self.opened += 1;
        self.until = Some(now + pause);
        Some(pause)
    }

    /// The reason for the failures may be gone: allows one create now.
    pub fn try_now(&mut self, now: Time) {
        self.until = self.until.map(|until| until.min(now));
    }

    fn remember(&mut self, now: Time, end: Ended) {
        if self.ends.len() >= BREAKER_MEMORY {
            self.ends.pop_front();
        }
        self.ends.push_back((now, end));
    }

    fn forget(&mut self, now: Time, longer: Duration) {
        while self.ends.front().is_some_and(|(at, _)| now - *at > BREAKER_WINDOW + longer) {
            self.ends.pop_front();
        }
    }

    fn balance(&self) -> u32 {
        let well = self.ends.iter().filter(|(_, end)| *end == Ended::Well).count();
        (self.ends.len() - well).saturating_sub(well) as u32
    }

    /// By how much failures exceed recent successes.
    pub fn failures(&self) -> u32 {
        self.balance()
    }

    /// Maximum number of concurrent creates at this time.
    pub fn allows(&self, now: Time) -> u32 {
        match self.until {
            None => u32::MAX,
            Some(until) if now < until => 0,
            Some(_) => 1,
        }
    }

    /// When it allows a create again, if it is open.
    pub fn until(&self, now: Time) -> Option<Time> {
        self.until.filter(|&until| until > now)
    }
}

/// Pauses all changes after the organization's operation limit was reached.
#[derive(Default)]
pub(super) struct Throttle {
    refusals: u32,
    /// Number of pauses until now.
    pauses: u64,
    until: Time,
}

impl Throttle {
    /// VCD accepted a change.
    pub fn accepted(&mut self) {
        self.refusals = 0;
    }

    /// VCD rejected a change because of its limit, with a Retry-After of `at_least`. Returns the pause if this started one.
    pub fn refused(&mut self, now: Time, rng: &mut Rng, at_least: Option<Duration>) -> Option<Duration> {
        let asked = at_least.unwrap_or_default().min(THROTTLE_PAUSE_MAX);
        // Requests that were on the wire when the pause began do not count again.
        if now < self.until && now + asked <= self.until {
            return None;
        }
        let pause = rng.jitter(doubled(THROTTLE_PAUSE, self.refusals, THROTTLE_PAUSE_MAX), 50).max(asked);
        self.refusals += 1;
        self.pauses += 1;
        self.until = now + pause;
        Some(pause)
    }

    /// Number of pauses until now.
    pub fn pauses(&self) -> u64 {
        self.pauses
    }

    /// The end of the pause, if there is one.
    pub fn until(&self, now: Time) -> Option<Time> {
        Some(self.until).filter(|&until| until > now)
    }
}

#[cfg(test)]
mod tests;
