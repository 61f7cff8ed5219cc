//! Recent durations, and when to query the end of the next operation of the same kind: rarely before the expected end,
//! often around it, and less and less after it.

use super::Time;
use super::instance::Kind;
use std::time::Duration;

/// Pause between two queries around the expected end.
pub const CLOSE_PAUSE: Duration = Duration::from_millis(500);
/// The same if many operations are close to their ends.
pub const CLOSE_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Pause between two queries before the expected end: an operation may fail early.
pub const EARLY_PAUSE: Duration = Duration::from_secs(5);
/// The same for a boot, which normal polls show too, unless they are rare. Then they may have shown earlier boots late.
pub const EARLY_BOOT_PAUSE: Duration = Duration::from_secs(30);
/// Longest pause between two queries after the expected end.
pub const LATE_PAUSE: Duration = Duration::from_secs(5);
/// Minimum and maximum distance from the median at which the expected end begins and finishes.
pub const SPREAD: (Duration, Duration) = (Duration::from_millis(750), Duration::from_secs(3));

/// Something that takes time and is polled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Course {
    /// A task, by its kind.
    Task(Kind),
    /// From power-on to the end of customization.
    Boot,
}

/// The recent durations of each kind. There are as many entries as kinds.
#[derive(Default)]
pub(super) struct Pace(Vec<(Course, Lately)>);

/// The recent durations, oldest first. Their median is expected: a hanging task says nothing about others.
struct Lately([Duration; 5]);

impl Pace {
    /// Adds a duration.
    pub fn learn(&mut self, course: Course, took: Duration) {
        match self.0.iter_mut().find(|(known, _)| *known == course) {
            Some((_, Lately(all))) => {
                let [_, b, c, d, e] = *all;
                *all = [b, c, d, e, took];
            }
            // Others may differ by a quarter.
            None => self.0.push((course, Lately([took - took / 4, took + took / 4, took, took, took]))),
        }
    }

    /// The ages between which its end is expected.
    fn end(&self, course: Course) -> Option<(Duration, Duration)> {
        let (_, Lately(all)) = self.0.iter().find(|(known, _)| *known == course)?;
        let median = *all.iter().find(|one| {
            let (less, more) = (all.iter().filter(|other| other < one), all.iter().filter(|other| other > one));
            less.count().max(more.count()) <= all.len() / 2
        })?;
        let farthest = all.iter().map(|one| one.abs_diff(median)).max()?;
        let spread = farthest.clamp(SPREAD.0, SPREAD.1);
        Some((median.saturating_sub(spread), median + spread))
    }

    /// When to query these next, all together, by their starts. The last query was at `last`. `blind`: when to query what has
    /// no expected end.
    pub fn due(&self, all: &[Option<(Course, Time)>], last: Time, blind: Time) -> Option<Time> {
        let is_close = |(course, began): &(Course, Time)| {
            let age = last - *began;
            self.end(*course).is_some_and(|(from, to)| (from..to).contains(&age))
        };
        let close = all.iter().filter(|one| one.as_ref().is_some_and(is_close)).count();
        let due = |(course, began): (Course, Time)| Some(began + self.next(course, last - began, close)?);
        all.iter().map(|one| one.and_then(due).unwrap_or(blind)).min()
    }

    /// The age at which to query next, if `age` was the age at the last query. `None` if no duration of this kind is known,
    /// or it boots for longer than expected. `close`: the number of operations that are queried together and close to
    /// their ends.
    fn next(&self, course: Course, age: Duration, close: usize) -> Option<Duration> {
        let (first, last) = self.end(course)?;
        let pause = (CLOSE_PAUSE * close as u32 / 2).clamp(CLOSE_PAUSE, CLOSE_PAUSE_MAX);
        Some(match age {
            age if age < first => first.min(age + if course == Course::Boot { EARLY_BOOT_PAUSE } else { EARLY_PAUSE }),
            age if age < last => age + pause,
            _ if course == Course::Boot => return None,
            age => age + ((age - last) / 2).clamp(pause, LATE_PAUSE.max(pause)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREATE: Course = Course::Task(Kind::Create { whole: true });

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// The ages at which queries are due.
    fn looks(pace: &Pace, until: u64) -> Vec<u64> {
        let mut age = Duration::ZERO;
        let next = |age: &mut Duration| {
            *age = pace.next(CREATE, *age, 1)?;
            Some(age.as_millis() as u64)
        };
        std::iter::from_fn(|| next(&mut age)).take_while(|age| *age < until).take(1000).collect()
    }

    #[test]
    fn queries_are_frequent_around_the_expected_end() {
        let mut pace = Pace::default();
        assert_eq!(looks(&pace, 60_000), [] as [u64; 0]);
        (0..40).for_each(|_| pace.learn(CREATE, ms(30_000)));
        let expected =
            [5_000, 10_000, 15_000, 20_000, 25_000, 29_250, 29_750, 30_250, 30_750, 31_250, 31_750, 32_250, 33_000];
        assert_eq!(looks(&pace, 34_000), expected);
        let late = looks(&pace, 600_000);
        assert!(late.windows(2).skip(20).all(|two| two[1] - two[0] == 5_000), "{late:?}");
        assert!(pace.next(Course::Boot, ms(0), 1).is_none());
    }

    #[test]
    fn a_boot_is_queried_only_around_its_expected_end() {
        let mut pace = Pace::default();
        pace.learn(Course::Boot, ms(8_000));
        for (age, due) in [(0, Some(6_000)), (6_000, Some(6_500)), (9_999, Some(10_499)), (10_000, None)] {
            assert_eq!(pace.next(Course::Boot, ms(age), 1), due.map(ms), "{age}");
        }
    }

    #[test]
    fn queries_are_frequent_for_longer_if_durations_differ() {
        let close = |apart: u64| {
            let mut pace = Pace::default();
            (0..40).for_each(|n| pace.learn(CREATE, ms(if n % 2 == 0 { 30_000 - apart } else { 30_000 + apart })));
            looks(&pace, 50_000).windows(2).filter(|two| two[1] - two[0] <= 500).count()
        };
        assert_eq!([0, 500, 1_000, 10_000].map(close), [6, 7, 11, 15]);
    }

    #[test]
    fn several_operations_close_to_their_end_are_not_queried_more_often() {
        let mut pace = Pace::default();
        pace.learn(CREATE, ms(30_000));
        for (close, pause) in [(0, 500), (1, 500), (2, 500), (3, 750), (4, 1_000), (128, 1_000)] {
            assert_eq!(pace.next(CREATE, ms(30_000), close), Some(ms(30_000 + pause)), "{close}");
        }
        // Four that are not close to their ends do not count.
        for (began, due) in [(0, 31_000), (3_000, 31_000), (3_001, 30_001), (20_000, 30_500)] {
            let mut all = [Some((CREATE, Time(began))); 5];
            all[4] = Some((CREATE, Time(0)));
            assert_eq!(pace.due(&all, Time(30_000), Time(90_000)), Some(Time(due)), "{began}");
        }
        let boot = Some((Course::Boot, Time(0)));
        assert_eq!(pace.due(&[boot, None], Time(1), Time(90_000)), Some(Time(90_000)), "none has ended yet");
    }

    #[test]
    fn recent_durations_count_and_a_hanging_one_does_not() {
        let mut pace = Pace::default();
        let rows = [
            (10_000, (7_500, 12_500)),
            (30_000, (7_000, 13_000)),
            (30_000, (7_000, 13_000)),
            // Three of five.
            (30_000, (27_000, 33_000)),
            (30_000, (27_000, 33_000)),
            (30_000, (29_250, 30_750)),
            (3_600_000, (27_000, 33_000)),
            (3_600_000, (27_000, 33_000)),
            (30_000, (27_000, 33_000)),
        ];
        for (took, (from, to)) in rows {
            pace.learn(CREATE, ms(took));
            assert_eq!(pace.end(CREATE), Some((ms(from), ms(to))), "{took}");
        }
        // If all hang, queries have pauses until then.
        (0..5).for_each(|_| pace.learn(CREATE, ms(3_600_000)));
        assert!(looks(&pace, 3_600_000).len() <= 3_600 / 5 + 20);
    }
}
