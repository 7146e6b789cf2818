//! How long things take.
//!
//! For events: from the begin of the request that published them to the read that brought them. The producer notes
//! when it sent each number ([`Sends`]); each delivery is one sample. That is tens of millions in a run, so they are
//! counted in a histogram of three digits ([`Waits`]), which threads and processes keep each for themselves and
//! which are added in the end. Producer and clients share a process, and so a clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Numbers whose sending is remembered; older ones are overwritten.
const SENDS_MAX: u64 = 1 << 16;
/// Values are kept to so many digits.
const DIGITS: u8 = 3;
/// The longest that is told apart from longer ones: ten minutes.
const LONGEST_US: u64 = 600_000_000;

/// When each of the last numbers was sent.
#[derive(Debug)]
pub(crate) struct Sends {
    origin: Instant,
    /// Microseconds since `origin` plus one and, in the lower 24 bits, the number's: in one word, so that neither is
    /// read without the other. Zero: nothing.
    slots: Box<[AtomicU64]>,
}

impl Sends {
    /// Nothing sent yet.
    pub(crate) fn new() -> Self {
        Self { origin: Instant::now(), slots: (0..SENDS_MAX).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Notes that `number` is sent now.
    pub(crate) fn note(&self, number: u64) {
        if let Some(slot) = self.slot(number) {
            slot.store((micros(self.origin.elapsed()) + 1) << 24 | number & 0xff_ffff, Ordering::Relaxed);
        }
    }

    /// How long before `now` it was; `None` for a number that was not sent from here, or long ago.
    pub(crate) fn age_us(&self, number: u64, now: Instant) -> Option<u64> {
        let noted = self.slot(number)?.load(Ordering::Relaxed);
        let same = noted != 0 && noted & 0xff_ffff == number & 0xff_ffff;
        same.then(|| micros(now.duration_since(self.origin)).saturating_sub((noted >> 24) - 1))
    }

    fn slot(&self, number: u64) -> Option<&AtomicU64> {
        usize::try_from(number % SENDS_MAX).ok().and_then(|at| self.slots.get(at))
    }
}

/// Durations in microseconds, counted.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
pub(crate) struct Waits(Histogram<u64>);

impl Default for Waits {
    fn default() -> Self {
        #[expect(clippy::expect_used, reason = "these bounds are valid: 1 * 2 <= 600,000,000 and 3 <= 5")]
        Self(Histogram::new_with_bounds(1, LONGEST_US, DIGITS).expect("valid bounds"))
    }
}

impl Waits {
    /// Counts one.
    pub(crate) fn record(&mut self, us: u64) {
        self.0.saturating_record(us);
    }

    /// Counts one.
    pub(crate) fn record_duration(&mut self, duration: Duration) {
        self.record(micros(duration));
    }

    /// Adds what somebody else has counted.
    pub(crate) fn add(&mut self, other: &Self) {
        for value in other.0.iter_recorded() {
            self.0.saturating_record_n(value.value_iterated_to(), value.count_at_value());
        }
    }

    /// How many.
    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// What so many percent of all did not exceed; `None` of nothing.
    pub(crate) fn percentile_us(&self, percent: f64) -> Option<u64> {
        (!self.0.is_empty()).then(|| self.0.value_at_percentile(percent).min(self.0.max()))
    }

    /// The longest; `None` of nothing.
    pub(crate) fn longest(&self) -> Option<Duration> {
        (!self.0.is_empty()).then(|| Duration::from_micros(self.0.max()))
    }
}

impl From<Vec<(u64, u64)>> for Waits {
    fn from(counts: Vec<(u64, u64)>) -> Self {
        let mut waits = Self::default();
        counts.into_iter().for_each(|(us, count)| waits.0.saturating_record_n(us, count));
        waits
    }
}

impl From<Waits> for Vec<(u64, u64)> {
    fn from(waits: Waits) -> Self {
        waits.0.iter_recorded().map(|value| (value.value_iterated_to(), value.count_at_value())).collect()
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_a_known_population() {
        let mut waits = Waits::default();
        assert_eq!((waits.percentile_us(50.0), waits.longest()), (None, None));
        for us in 1..=1000 {
            waits.record(us);
        }
        assert_eq!(waits.percentile_us(50.0), Some(500));
        assert_eq!(waits.percentile_us(99.0), Some(990));
        assert_eq!(waits.longest(), Some(Duration::from_millis(1)));
        waits.record(u64::MAX);
        assert!(waits.longest().is_some_and(|longest| longest >= Duration::from_secs(600)));
    }

    #[test]
    fn parts_make_up_the_whole() {
        let (mut one, mut other, mut all) = (Waits::default(), Waits::default(), Waits::default());
        for us in 1..100_000 {
            if us % 3 == 0 {
                one.record(us * 7)
            } else {
                other.record(us * 7)
            }
            all.record(us * 7);
        }
        let told = serde_json::to_string(&other).expect("JSON");
        one.add(&serde_json::from_str(&told).expect("JSON"));
        assert_eq!(one.count(), all.count());
        for percent in [1.0, 50.0, 99.0, 99.9] {
            assert_eq!(one.percentile_us(percent), all.percentile_us(percent));
        }
    }

    #[test]
    fn the_age_of_what_was_sent() {
        let sends = Sends::new();
        let now = Instant::now() + Duration::from_secs(1);
        assert_eq!(sends.age_us(0, now), None);
        sends.note(5);
        assert!(sends.age_us(5, now).is_some_and(|us| (900_000..=1_000_000).contains(&us)));
        assert_eq!(sends.age_us(5 + SENDS_MAX, now), None, "another number at the same place");
        sends.note(5 + SENDS_MAX);
        assert_eq!(sends.age_us(5, now), None, "overwritten");
    }
}
