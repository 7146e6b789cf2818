//! How long to wait before trying again: exponential, capped, with full jitter.
//!
//! Without jitter, everyone whom one failure disconnected comes back in the same instant, again and again. Full
//! jitter (a uniform draw from zero to the exponential bound) spreads them best for the least total wait.

use std::time::Duration;

use rand::{Rng, RngExt};

/// A backoff's state. Pure: randomness is an argument, and waiting is the caller's.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    attempt: u32,
}

impl Backoff {
    /// A backoff whose first wait is at most `base` and whose later waits are at most `cap`.
    #[must_use]
    pub fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, attempt: 0 }
    }

    /// The next wait: uniform in `0..=min(cap, base * 2^attempt)`.
    pub fn next_delay<R: Rng + ?Sized>(&mut self, rng: &mut R) -> Duration {
        let bound = self.bound();
        self.attempt = self.attempt.saturating_add(1);
        let bound_us = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(rng.random_range(0..=bound_us))
    }

    /// Call after a success that lasted: the next wait is short again.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }

    /// The longest that the next wait can be.
    #[must_use]
    pub fn bound(&self) -> Duration {
        let factor = 2u32.saturating_pow(self.attempt);
        self.base.saturating_mul(factor).min(self.cap)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    proptest! {
        #[test]
        fn stays_within_its_bound_and_never_over_the_cap(base_ms in 1u64..10_000, cap_ms in 1u64..100_000, seed: u64, steps in 1usize..80) {
            let mut rng = StdRng::seed_from_u64(seed);
            let cap = Duration::from_millis(cap_ms);
            let mut backoff = Backoff::new(Duration::from_millis(base_ms), cap);
            let mut last = Duration::ZERO;
            for _ in 0..steps {
                let bound = backoff.bound();
                prop_assert!(bound <= cap && bound >= last);
                prop_assert!(backoff.next_delay(&mut rng) <= bound);
                last = bound;
            }
            backoff.reset();
            prop_assert_eq!(backoff.bound(), Duration::from_millis(base_ms).min(cap));
        }
    }
}
