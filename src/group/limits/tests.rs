//! Each limit by itself.

use super::*;

fn secs(duration: Duration, percent: u64, of: u64) {
    let (low, high) = (of * (100 - percent) / 100, of * (100 + percent) / 100 + 1);
    assert!((low..=high).contains(&duration.as_secs()), "{duration:?} is not {of} s");
}

#[test]
fn random_numbers_are_splitmix64() {
    let mut rng = Rng::new(1_234_567);
    let known = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423_u64];
    assert_eq!(known.map(|_| rng.next()), known);
    assert!((0..100).map(|_| rng.below(3)).all(|n| n < 3));
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
fn random_numbers_are_uniform() {
    let mut rng = Rng::new(5);
    let below: Vec<u64> = (0..100).map(|_| rng.below(4)).collect();
    assert_eq!((0..4).map(|n| below.iter().filter(|&&b| b == n).count()).filter(|&n| n > 10).count(), 4);
    assert_eq!(rng.below(0), 0);
    let mut ms: Vec<u128> = (0..1000).map(|_| rng.jitter(Duration::from_millis(12), 25).as_millis()).collect();
    ms.sort_unstable();
    ms.dedup();
    assert_eq!(ms, [9, 10, 11, 12, 13, 14, 15]);
    assert_eq!(rng.jitter(Duration::from_secs(7), 0), Duration::from_secs(7));
}

#[test]
fn the_throttle_counts_and_ends_to_the_moment() {
    let (mut throttle, mut rng) = (Throttle::default(), Rng::new(9));
    assert_eq!((throttle.until(Time(0)), throttle.pauses()), (None, 0));
    let pause = throttle.refused(Time(1000), &mut rng, None).unwrap();
    let until = Time(1000) + pause;
    let just_before = Time(until.0 - 1);
    assert_eq!((throttle.until(just_before), throttle.until(until)), (Some(until), None));
    // A rejection within the pause does not make the next pause longer. A later one does.
    assert_eq!(throttle.refused(just_before, &mut rng, Some(Duration::from_millis(1))), None);
    assert_eq!(throttle.pauses(), 1);
    let longer = throttle.refused(just_before, &mut rng, Some(Duration::from_secs(100))).unwrap();
    assert_eq!(longer, Duration::from_secs(100));
    assert_eq!((throttle.pauses(), throttle.until(just_before)), (2, Some(just_before + longer)));
    let most = throttle.refused(just_before, &mut rng, Some(Duration::from_secs(1000))).unwrap();
    assert_eq!((most, throttle.pauses()), (THROTTLE_PAUSE_MAX, 3));
    // An accepted change makes the next pause short again.
    throttle.accepted();
    let now = throttle.until(just_before).unwrap();
    secs(throttle.refused(now, &mut rng, None).unwrap(), 50, 15);
}

fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

#[test]
fn doubling_ends_at_the_longest() {
    let most = minutes(5);
    let pauses = [0, 1, 2, 3, 4, 5, 6, u32::MAX].map(|times| doubled(RETRY_BASE, times, most).as_secs());
    assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300, 300]);
}

#[test]
fn a_backoff_counts_until_its_own_success() {
    let (mut backoff, mut rng) = (Backoff::default(), Rng::new(1));
    assert_eq!((backoff.tries, backoff.since), (0, None));
    for tries in 1..=3 {
        let now = Time(tries * 100_000);
        let pause = backoff.fail(now, &mut rng, Duration::from_secs(40));
        secs(pause, 25, 40);
        assert_eq!((u64::from(backoff.tries), backoff.since, backoff.next), (tries, Some(Time(100_000)), now + pause));
    }
    backoff.reset();
    assert_eq!((backoff.tries, backoff.since), (0, None));
    backoff.note(Time(7));
    assert_eq!((backoff.tries, backoff.since), (1, Some(Time(7))));
}

#[test]
fn a_slot_is_given_back_by_whoever_drops_it() {
    let slots = Slots::default();
    let all: Vec<Slot> = Lane::ALL.into_iter().flat_map(|lane| [slots.take(lane), slots.take(lane)]).collect();
    assert_eq!(Lane::ALL.map(|lane| slots.used(lane)), [2; 4]);
    assert_eq!((slots.total(), slots.used_by(true), slots.used_by(false)), (8, 4, 4));
    let mut all = all.into_iter();
    drop((all.next(), all.next(), all.next()));
    assert_eq!(Lane::ALL.map(|lane| slots.used(lane)), [0, 1, 2, 2], "create, resume, delete, suspend");
    assert_eq!((slots.total(), slots.used_by(true), slots.used_by(false)), (5, 1, 4));
    drop(all);
    assert_eq!(slots.total(), 0);
}

/// Creates that start and fail one after another, a second each.
fn fail(breaker: &mut Breaker, times: u64, at: &mut Time) -> Vec<Option<Duration>> {
    let one = |_| {
        let began = *at + Duration::from_millis(1);
        *at = *at + Duration::from_secs(1);
        breaker.failure(*at, began, false)
    };
    (0..times).map(one).collect()
}

#[test]
fn the_breaker_opens_when_failures_outweigh_successes_by_three() {
    let (mut breaker, mut now) = (Breaker::default(), Time(1000));
    assert_eq!(fail(&mut breaker, 2, &mut now), [None, None]);
    breaker.success(now);
    assert_eq!(breaker.failures(), 1);
    assert_eq!(fail(&mut breaker, 2, &mut now), [None, Some(BREAKER_PAUSE)]);
    assert_eq!((breaker.failures(), breaker.allows(now)), (3, 0));
}

#[test]
fn concurrent_creates_are_one_event() {
    let mut breaker = Breaker::default();
    let [began, failed] = [Time(1000), Time(20_000)];
    for at in [failed, failed, Time(25_000), Time(40_000)] {
        assert_eq!(breaker.failure(at, began, false), None);
    }
    assert_eq!(breaker.failures(), 1);
    assert_eq!(breaker.failure(Time(50_000), Time(19_999), false), None);
    assert_eq!(breaker.failures(), 1);
    assert_eq!(breaker.failure(Time(50_000), failed, false), None);
    assert_eq!(breaker.failures(), 2, "it was begun when the first had failed");
}

#[test]
fn tasks_that_vcd_aborts_count_once_in_a_window() {
    let mut breaker = Breaker::default();
    for at in 1..=8 {
        assert_eq!(breaker.failure(Time(at * 60_000), Time(at * 60_000 - 1), true), None);
        assert_eq!(breaker.failures(), 1);
    }
    let later = Time(60_000) + BREAKER_WINDOW + Duration::from_millis(1);
    breaker.failure(later, Time(later.0 - 1), true);
    assert_eq!(breaker.failures(), 1, "the first is forgotten by then");
    fail(&mut breaker, 1, &mut Time(later.0));
    assert_eq!(breaker.failures(), 2);
}

#[test]
fn slow_failures_open_the_breaker() {
    let minute = Duration::from_secs(60);
    let mut breaker = Breaker::default();
    let mut fail = |at: u32| breaker.failure(Time(0) + minute * (at + 20), Time(0) + minute * at, false);
    assert_eq!([fail(0), fail(21), fail(42)], [None, None, Some(BREAKER_PAUSE)]);
}

#[test]
fn old_results_do_not_count() {
    let (mut breaker, mut now) = (Breaker::default(), Time(0));
    fail(&mut breaker, 2, &mut now);
    // A create that took a second counts together with what failed three seconds earlier.
    now = Time(3000) + BREAKER_WINDOW;
    assert_eq!(fail(&mut breaker, 1, &mut now), [None], "too late for the first");
    assert_eq!(breaker.failures(), 2);
    let mut breaker = Breaker::default();
    (0..2 * BREAKER_MEMORY as u64).for_each(|at| breaker.success(Time(at)));
    assert_eq!(breaker.ends.len(), BREAKER_MEMORY);
}

#[test]
fn a_create_of_the_moment_in_which_the_breaker_opened_counts_only_after_the_pause() {
    for (early, pause) in [(1, None), (0, Some(minutes(2)))] {
        let (mut breaker, mut opened) = (Breaker::default(), Time(0));
        fail(&mut breaker, BREAKER_FAILURES.into(), &mut opened);
        let until = breaker.until(opened).unwrap();
        assert_eq!(breaker.failure(Time(until.0 - early), opened, false), pause);
    }
}

#[test]
fn the_breaker_pauses_longer_and_longer_and_lets_one_through() {
    let (mut breaker, mut now) = (Breaker::default(), Time(0));
    fail(&mut breaker, 2, &mut now);
    for pause in [1, 2, 4, 5, 5] {
        assert_eq!(fail(&mut breaker, 1, &mut now), [Some(minutes(pause))]);
        let until = now + minutes(pause);
        assert_eq!((breaker.until(now), breaker.allows(now)), (Some(until), 0));
        // Concurrent creates do not count again.
        assert_eq!(breaker.failure(now, Time(0), false), None);
        now = Time(until.0 - 1);
        assert_eq!((breaker.until(now), breaker.allows(now)), (Some(until), 0));
        now = until;
        assert_eq!((breaker.until(now), breaker.allows(now)), (None, 1));
    }
    breaker.success(now);
    assert_eq!((breaker.allows(now), breaker.failures()), (u32::MAX, 0));
    assert_eq!(
        fail(&mut breaker, 4, &mut now),
        [None, None, None, Some(BREAKER_PAUSE)],
        "one success counts against one"
    );
    breaker.success(now);
    assert_eq!(breaker.allows(now), u32::MAX, "one that comes up while it pauses shows that VCD makes VMs");
}
