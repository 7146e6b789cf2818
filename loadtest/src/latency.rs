//! How long events take, from the begin of the request that published them to the read that brought them.
//!
//! The producer notes when it sent each number ([`Sends`]); each delivery is one sample. That is tens of millions in
//! a run, so they are counted in buckets ([`Histogram`]), sixteen to each doubling: a percentile is at most 1/16 too
//! high. Producer and clients share a process, and so a clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Numbers whose sending is remembered; older ones are overwritten.
const SENDS_MAX: u64 = 1 << 16;
const SUB_BITS: u32 = 4;
const SUB: usize = 1 << SUB_BITS;
const BUCKETS: usize = SUB * (64 - SUB_BITS as usize + 1);

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
#[derive(Debug)]
pub(crate) struct Histogram {
    counts: Box<[u64; BUCKETS]>,
    total: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: Box::new([0; BUCKETS]), total: 0, max: 0 }
    }
}

impl Histogram {
    /// Counts one.
    pub(crate) fn record(&mut self, us: u64) {
        if let Some(count) = self.counts.get_mut(bucket(us)) {
            *count += 1;
        }
        self.total += 1;
        self.max = self.max.max(us);
    }

    /// What `percent` of all did not exceed, rounded up to the end of a bucket; `None` of nothing.
    pub(crate) fn percentile_us(&self, percent: u64) -> Option<u64> {
        let rank = (self.total * percent).div_ceil(100).max(1);
        let mut below = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            below += count;
            if below >= rank {
                return Some(bucket_end(bucket).min(self.max));
            }
        }
        None
    }
}

/// Exact up to twice [`SUB`], then the leading bits.
fn bucket(us: u64) -> usize {
    let shift = (us | 1).ilog2().saturating_sub(SUB_BITS);
    let leading = usize::try_from(us >> shift).unwrap_or(SUB);
    SUB * shift as usize + leading
}

fn bucket_end(bucket: usize) -> u64 {
    let shift = (bucket / SUB).saturating_sub(1);
    let leading = (bucket - SUB * shift) as u64;
    u64::try_from(((u128::from(leading) + 1) << shift) - 1).unwrap_or(u64::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn percentiles_of_a_known_population() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.percentile_us(50), None);
        for us in 1..=1000 {
            histogram.record(us);
        }
        let within = |percent, exact: u64| {
            let got = histogram.percentile_us(percent).expect("a thousand samples");
            assert!((exact..=exact + exact / 16).contains(&got), "{percent} %: {got}");
        };
        within(50, 500);
        within(99, 990);
        assert_eq!(histogram.percentile_us(100), Some(1000));
        assert_eq!(histogram.percentile_us(1), Some(10));
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

    proptest! {
        #[test]
        fn a_bucket_holds_its_values(us in prop_oneof![0u64..1000, any::<u64>()]) {
            let at = bucket(us);
            prop_assert!(at < BUCKETS);
            let end = bucket_end(at);
            prop_assert!(end >= us && end - us <= us / 16, "{us} in the bucket that ends at {end}");
            prop_assert_eq!(bucket(end), at);
        }
    }
}
