//! What time it is on the backplane, as far as this node can tell.
//!
//! Slots, windows and days are the backplane's, and its clock may differ from the machine's by anything. Every reply
//! that depends on time carries that clock's reading; this keeps the distance between the last reading and the node's
//! own monotonic clock. The result is late by at most the time that the reply was under way, never early, unless the
//! backplane's clock was set back since.
//!
//! It serves choices that need not be exact: whether a snapshot is too old to be shown unflagged, when to fetch the
//! next day's salt. What must be exact is decided behind [`crate::backplane`].

use std::sync::atomic::{AtomicI64, Ordering};

use crate::backplane::Millis;
use crate::clock::{Clock, Mono};

/// No reading yet.
const UNKNOWN: i64 = i64::MIN;

/// The last reading of the backplane's clock, carried forward.
#[derive(Debug)]
pub struct ClusterTime {
    clock: Clock,
    /// Backplane's milliseconds minus the node's monotonic ones.
    offset_ms: AtomicI64,
}

impl ClusterTime {
    /// Without a reading.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { clock, offset_ms: AtomicI64::new(UNKNOWN) }
    }

    /// A reply that has just arrived said `now`.
    pub fn learned(&self, now: Millis) {
        self.offset_ms.store(signed(now).saturating_sub(signed_ms(self.clock.now())), Ordering::Relaxed);
    }

    /// Now, on the backplane's clock; none before the first reading.
    #[must_use]
    pub fn now(&self) -> Option<Millis> {
        let offset = self.offset_ms.load(Ordering::Relaxed);
        let now = offset.saturating_add(signed_ms(self.clock.now()));
        (offset != UNKNOWN).then(|| u64::try_from(now).unwrap_or(0))
    }
}

fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

fn signed_ms(at: Mono) -> i64 {
    i64::try_from(at.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carries_the_last_reading_forward() {
        let time = ClusterTime::new(Clock::start());
        assert_eq!(time.now(), None);
        time.learned(1_700_000_000_000);
        let now = time.now().expect("learned");
        assert!((1_700_000_000_000..1_700_000_010_000).contains(&now), "{now}");
        // A clock that was set back is believed at the next reading.
        time.learned(1_600_000_000_000);
        assert!(time.now().expect("learned") < 1_600_000_010_000);
    }
}
