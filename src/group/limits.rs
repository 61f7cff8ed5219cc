//! What keeps the group from doing harm by eagerness: backoff, the breaker on creates, the pause when the org's operation
//! limit is reached, and the one source of randomness.

use super::Time;
use std::time::Duration;

/// First pause after a failure; it doubles with each further one.
pub const RETRY_BASE: Duration = Duration::from_secs(10);
/// Longest pause between tries, and the first one when VCD's reason will not pass by itself.
pub const RETRY_MAX: Duration = Duration::from_secs(5 * 60);
/// So many creates failed in a row open the breaker.
pub const BREAKER_FAILURES: u32 = 3;
/// Creates pause so long when the breaker opens; doubles with each failed probe.
pub const BREAKER_PAUSE: Duration = Duration::from_secs(5 * 60);
/// Longest pause of the breaker.
pub const BREAKER_PAUSE_MAX: Duration = Duration::from_secs(30 * 60);
/// First pause after a refusal for the org's operation limit; doubles with each further one.
pub const THROTTLE_PAUSE: Duration = Duration::from_secs(15);
/// Longest such pause.
pub const THROTTLE_PAUSE_MAX: Duration = Duration::from_secs(5 * 60);

/// SplitMix64: names and jitter need no better.
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

    /// Even enough below `n`, for small `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// `duration` with up to `percent` more or less.
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

/// The pause before the next try after `failures` failed ones (1 or more), with 25 % jitter.
pub(super) fn backoff(rng: &mut Rng, failures: u32) -> Duration {
    rng.jitter(doubled(RETRY_BASE, failures.saturating_sub(1), RETRY_MAX), 25)
}

/// The pause when VCD's reason will not pass by itself (quota, rights, a missing template), with 25 % jitter.
pub(super) fn long_backoff(rng: &mut Rng) -> Duration {
    rng.jitter(RETRY_MAX, 25)
}

/// Pauses creates after several failed in a row; lets one through at a time after a pause.
#[derive(Default)]
pub(super) struct Breaker {
    failures: u32,
    /// How often it has opened since the last success.
    opened: u32,
    until: Option<Time>,
}

impl Breaker {
    /// A create came to running.
    pub fn success(&mut self) {
        *self = Breaker::default();
    }

    /// A create failed. Returns the pause if this opened the breaker.
    pub fn failure(&mut self, now: Time) -> Option<Duration> {
        self.failures += 1;
        // Creates that were under way when it opened say nothing new.
        if self.failures < BREAKER_FAILURES || self.until.is_some_and(|until| now < until) {
            return None;
        }
        let pause = doubled(BREAKER_PAUSE, self.opened, BREAKER_PAUSE_MAX);
        self.opened += 1;
        self.until = Some(now + pause);
        Some(pause)
    }

    /// Creates that failed in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// At most so many creates may be under way now.
    pub fn allows(&self, now: Time) -> u32 {
        match self.until {
            None => u32::MAX,
            Some(until) if now < until => 0,
            Some(_) => 1,
        }
    }

    /// When it lets a create through again, if it is shut.
    pub fn until(&self, now: Time) -> Option<Time> {
        self.until.filter(|&until| until > now)
    }
}

/// Pauses all changes after the org's operation limit was reached.
#[derive(Default)]
pub(super) struct Throttle {
    refusals: u32,
    /// Pauses begun so far.
    pauses: u64,
    until: Time,
}

impl Throttle {
    /// VCD took a change.
    pub fn accepted(&mut self) {
        self.refusals = 0;
    }

    /// VCD refused a change for its limit, and asked to wait for `at_least`. Returns the pause if this began one.
    pub fn refused(&mut self, now: Time, rng: &mut Rng, at_least: Option<Duration>) -> Option<Duration> {
        let asked = at_least.unwrap_or_default().min(THROTTLE_PAUSE_MAX);
        // Requests that were under way when the pause began say nothing new.
        if now < self.until && now + asked <= self.until {
            return None;
        }
        let pause = rng.jitter(doubled(THROTTLE_PAUSE, self.refusals, THROTTLE_PAUSE_MAX), 50).max(asked);
        self.refusals += 1;
        self.pauses += 1;
        self.until = now + pause;
        Some(pause)
    }

    /// Pauses begun so far.
    pub fn pauses(&self) -> u64 {
        self.pauses
    }

    /// When changes may go on, if they are paused.
    pub fn until(&self, now: Time) -> Option<Time> {
        Some(self.until).filter(|&until| until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(duration: Duration, percent: u64, of: u64) {
        let (low, high) = (of * (100 - percent) / 100, of * (100 + percent) / 100 + 1);
        assert!((low..=high).contains(&duration.as_secs()), "{duration:?} is not {of} s");
    }

    #[test]
    fn chance_is_splitmix64s() {
        let mut rng = Rng::new(1_234_567);
        let known = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423_u64];
        assert_eq!(known.map(|_| rng.next()), known);
        assert!((0..100).map(|_| rng.below(3)).all(|n| n < 3));
    }

    #[test]
    fn backoff_doubles_from_ten_seconds_to_five_minutes() {
        let mut rng = Rng::new(1);
        for (failures, of) in [(1, 10), (2, 20), (3, 40), (4, 80), (5, 160), (6, 300), (7, 300), (u32::MAX, 300)] {
            secs(backoff(&mut rng, failures), 25, of);
        }
    }

    #[test]
    fn the_breaker_opens_after_three_failures_and_lets_one_through() {
        let mut breaker = Breaker::default();
        let mut now = Time(0);
        assert_eq!(breaker.failure(now), None);
        assert_eq!(breaker.failure(now), None);
        assert_eq!(breaker.failure(now), Some(BREAKER_PAUSE));
        assert_eq!(breaker.failure(now), None, "creates that were under way count once");
        assert_eq!(breaker.allows(now), 0);
        for minutes in [10, 20, 30, 30] {
            now = breaker.until(now).unwrap();
            assert_eq!(breaker.allows(now), 1);
            assert_eq!(breaker.failure(now), Some(Duration::from_secs(minutes * 60)));
        }
        breaker.success();
        assert_eq!(breaker.allows(now), u32::MAX);
        assert_eq!(breaker.failure(now), None);
    }

    #[test]
    fn the_throttle_doubles_and_heeds_retry_after() {
        let (mut throttle, mut rng) = (Throttle::default(), Rng::new(3));
        let mut now = Time(0);
        for of in [15, 30, 60, 120, 240, 300, 300] {
            secs(throttle.refused(now, &mut rng, None).unwrap(), 50, of);
            assert_eq!(throttle.refused(now, &mut rng, None), None, "refusals during a pause are not new");
            now = throttle.until(now).unwrap();
        }
        throttle.accepted();
        let pause = throttle.refused(now, &mut rng, Some(Duration::from_secs(100))).unwrap();
        assert_eq!(pause.as_secs(), 100);
    }

    #[test]
    fn chance_is_spread_evenly() {
        let mut rng = Rng::new(5);
        let below: Vec<u64> = (0..100).map(|_| rng.below(4)).collect();
        assert_eq!((0..4).map(|n| below.iter().filter(|&&b| b == n).count()).filter(|&n| n > 10).count(), 4);
        assert_eq!(rng.below(0), 0);
        let mut ms: Vec<u128> = (0..1000).map(|_| rng.jitter(Duration::from_millis(12), 25).as_millis()).collect();
        ms.sort_unstable();
        ms.dedup();
        assert_eq!(ms, [9, 10, 11, 12, 13, 14, 15]);
        assert_eq!(rng.jitter(Duration::from_secs(7), 0), Duration::from_secs(7));
        let long: Vec<u64> = (0..1000).map(|_| long_backoff(&mut rng).as_secs()).collect();
        assert!(long.iter().all(|s| (225..=375).contains(s)), "{long:?}");
        assert!(long.iter().any(|&s| s < 235) && long.iter().any(|&s| s > 365), "{long:?}");
    }

    #[test]
    fn the_breaker_counts_and_is_shut_to_the_moment() {
        let mut breaker = Breaker::default();
        let now = Time(1000);
        for failures in 1..=3 {
            assert_eq!((breaker.until(now), breaker.allows(now)), (None, u32::MAX));
            breaker.failure(now);
            assert_eq!(breaker.failures(), failures);
        }
        let until = now + Duration::from_secs(300);
        let just_before = Time(until.0 - 1);
        assert_eq!((breaker.until(just_before), breaker.allows(just_before)), (Some(until), 0));
        assert_eq!(breaker.failure(just_before), None);
        assert_eq!((breaker.until(until), breaker.allows(until)), (None, 1));
        breaker.success();
        assert_eq!((breaker.failures(), breaker.until(just_before)), (0, None));
    }

    #[test]
    fn the_throttle_counts_and_ends_to_the_moment() {
        let (mut throttle, mut rng) = (Throttle::default(), Rng::new(9));
        assert_eq!((throttle.until(Time(0)), throttle.pauses()), (None, 0));
        let pause = throttle.refused(Time(1000), &mut rng, None).unwrap();
        let until = Time(1000) + pause;
        let just_before = Time(until.0 - 1);
        assert_eq!((throttle.until(just_before), throttle.until(until)), (Some(until), None));
        // What ends within the pause is no reason for a longer one; what ends after it is.
        assert_eq!(throttle.refused(just_before, &mut rng, Some(Duration::from_millis(1))), None);
        assert_eq!(throttle.pauses(), 1);
        let longer = throttle.refused(just_before, &mut rng, Some(Duration::from_secs(100))).unwrap();
        assert_eq!(longer, Duration::from_secs(100));
        assert_eq!((throttle.pauses(), throttle.until(just_before)), (2, Some(just_before + longer)));
        let most = throttle.refused(just_before, &mut rng, Some(Duration::from_secs(1000))).unwrap();
        assert_eq!((most, throttle.pauses()), (THROTTLE_PAUSE_MAX, 3));
        // One that VCD takes makes the next pause short again.
        throttle.accepted();
        let now = throttle.until(just_before).unwrap();
        secs(throttle.refused(now, &mut rng, None).unwrap(), 50, 15);
    }
}
