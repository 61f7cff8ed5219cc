//! Time in the group: each call passes the time, and the group has no clock. A second clock runs only while polls succeed.
//! It measures guests and tasks, so that time without a successful poll does not count. What is used in many places is not
//! inlined: each copy would be larger than a call.

use std::ops::{Add, Sub};
use std::time::Duration;

/// Milliseconds since the driver started, on a clock that never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub u64);

impl Add<Duration> for Time {
    type Output = Time;

    #[inline(never)]
    fn add(self, duration: Duration) -> Time {
        Time(self.0.saturating_add(duration.as_millis() as u64))
    }
}

impl Sub for Time {
    type Output = Duration;

    /// Zero if `earlier` is later.
    #[inline(never)]
    fn sub(self, earlier: Time) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// A point on the clock that runs only while polls succeed, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Seen(pub u64);

impl Sub for Seen {
    type Output = Duration;

    /// Zero if `earlier` is later.
    fn sub(self, earlier: Seen) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// The clock that runs only while polls succeed.
#[derive(Debug)]
pub(super) struct Sight {
    total: u64,
    since: Option<Time>,
    /// It stops at this time if no poll succeeds: a hanging poll shows nothing.
    until: Time,
    lasts: Duration,
}

impl Sight {
    /// It runs from `now`, after a successful poll. A successful poll is valid for `lasts`.
    pub fn new(now: Time, lasts: Duration) -> Sight {
        Sight { total: 0, since: Some(now), until: now + lasts, lasts }
    }

    /// A poll succeeded: the clock runs.
    pub fn open(&mut self, now: Time) {
        self.close(now);
        (self.since, self.until) = (Some(now), now + self.lasts);
    }

    /// A poll failed: the clock stops.
    pub fn close(&mut self, now: Time) {
        self.total = self.at(now).0;
        self.since = None;
    }

    /// No poll has succeeded since the last one that failed.
    pub fn is_closed(&self) -> bool {
        self.since.is_none()
    }

    /// Its value.
    #[inline(never)]
    pub fn at(&self, now: Time) -> Seen {
        Seen(self.total + self.since.map_or(0, |since| now.min(self.until).0.saturating_sub(since.0)))
    }

    /// When it will show `point`, if it keeps running.
    pub fn when(&self, point: Seen, now: Time) -> Option<Time> {
        let at = now + (point - self.at(now));
        self.since.filter(|_| at <= self.until).map(|_| at)
    }
}

/// A limit ends after this many times its length, however long it was held.
pub const HELD_TIMES: u32 = 6;

/// Measures time with the clock that runs only while polls succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stopwatch {
    start: Seen,
    held: Duration,
}

impl Stopwatch {
    /// Starts.
    pub fn start(now: Seen) -> Stopwatch {
        Stopwatch { start: now, held: Duration::ZERO }
    }

    /// When `limit` has passed, or [`HELD_TIMES`] times `limit` with what does not count.
    #[inline(never)]
    pub fn end(self, limit: Duration) -> Seen {
        let total = limit + self.held.min(limit * (HELD_TIMES - 1));
        Seen(self.start.0.saturating_add(total.as_millis() as u64))
    }

    /// Does not count the last `duration`.
    pub fn hold(&mut self, duration: Duration) {
        self.held += duration;
    }
}
