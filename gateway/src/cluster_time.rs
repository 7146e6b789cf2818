//! What time it is on the backplane, as far as this node can tell.
//!
//! Slots, windows and days are the backplane's, and its clock may differ from the machine's by anything. Every reply
//! that depends on time carries a reading of that clock; this keeps the distance between it and the node's own monotonic
//! clock. When the reading was made is not known better than that it was after the question and before the answer, and a
//! process that is stopped in between takes the answer for news an hour later. So, as NTP does it (RFC 5905 section 8), a
//! reading is right to half its round trip and no better, that bound grows with the reading's age as clocks drift apart,
//! and of two readings the better one is kept. Two that cannot both be true show that the backplane's clock was set, or
//! is another server's; then the later one counts.
//!
//! What comes out is therefore a [`Span`]: who must not be early takes its beginning, who must not be late its end. It
//! holds unless the backplane's clock was set since the last reading, or the machine was suspended (which stops the
//! monotonic clock, unlike a stop of the process); each beat brings another reading.
//!
//! It serves choices that need not be exact: whether a snapshot is too old to be shown unflagged, when to fetch the
//! next day's salt. What must be exact is decided behind [`crate::backplane`].

use parking_lot::Mutex;

use crate::backplane::Millis;
use crate::clock::{Clock, Mono};

/// Two clocks drift apart by at most a microsecond in this many: 500 millionths, the most by which a clock that is kept
/// right is bent (`adjtimex(2)`).
const DRIFT_ONE_IN: i64 = 2_000;
/// The backplane tells whole milliseconds.
const RESOLUTION_US: i64 = 1_000;

/// Between these two it is, on the backplane's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Not before this.
    pub earliest: Millis,
    /// Not after this.
    pub latest: Millis,
}

/// The best reading of the backplane's clock, carried forward.
#[derive(Debug)]
pub struct ClusterTime {
    clock: Clock,
    best: Mutex<Option<Reading>>,
}

impl ClusterTime {
    /// Without a reading.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { clock, best: Mutex::new(None) }
    }

    /// A reply that has just arrived said `now`; it was asked for at `sent`.
    pub fn learned(&self, sent: Mono, now: Millis) {
        let received = self.clock.now();
        let reading = Reading::new(sent, received, now);
        let mut best = self.best.lock();
        *best = Some(best.map_or(reading, |held| held.or(reading, received)));
    }

    /// The backplane's time at `at`, which is not long ago; none before the first reading.
    #[must_use]
    pub fn at(&self, at: Mono) -> Option<Span> {
        self.best.lock().map(|reading| reading.at(at))
    }
}

/// A reading of the backplane's clock. Its microseconds minus the node's own lie within `error` of `offset`.
#[derive(Debug, Clone, Copy)]
struct Reading {
    offset: i64,
    error: i64,
    /// It was made then or later.
    sent: Mono,
}

impl Reading {
    fn new(sent: Mono, received: Mono, now: Millis) -> Self {
        let now = i64::try_from(now).unwrap_or(i64::MAX).saturating_mul(1_000);
        let (least, most) =
            (now.saturating_sub(us(received)), now.saturating_add(RESOLUTION_US).saturating_sub(us(sent)));
        let width = most.saturating_sub(least).max(0);
        Self { offset: least.saturating_add(width / 2), error: width - width / 2, sent }
    }

    /// The better of this and a later one.
    fn or(self, later: Self, now: Mono) -> Self {
        let (held, came) = (self.error_at(now), later.error_at(now));
        let agree = self.offset.saturating_sub(later.offset).saturating_abs() <= held.saturating_add(came);
        if agree && held < came { self } else { later }
    }

    fn error_at(&self, at: Mono) -> i64 {
        self.error.saturating_add(us(at.saturating_sub(self.sent)) / DRIFT_ONE_IN)
    }

    fn at(&self, at: Mono) -> Span {
        let (middle, error) = (self.offset.saturating_add(us(at)), self.error_at(at));
        let millis = |us: i64| u64::try_from(us.div_euclid(1_000)).unwrap_or(0);
        Span {
            earliest: millis(middle.saturating_sub(error)),
            latest: millis(middle.saturating_add(error).saturating_add(999)),
        }
    }
}

fn us(time: Mono) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;

    const BEGIN: Millis = 1_700_000_000_000;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn span(earliest: Millis, latest: Millis) -> Option<Span> {
        Some(Span { earliest: BEGIN + earliest, latest: BEGIN + latest })
    }

    /// A node's clock, and what it knows of a backplane whose clock said [`BEGIN`] when the node's began.
    fn start() -> (Clock, ClusterTime) {
        let clock = Clock::start();
        (clock, ClusterTime::new(clock))
    }

    #[tokio::test(start_paused = true)]
    async fn a_reading_is_carried_forward_and_is_as_good_as_half_its_round_trip() {
        let (clock, time) = start();
        assert_eq!(time.at(clock.now()), None);
        // Whenever in these 20 ms it was read, and at the end of whichever millisecond; what is not whole is rounded away.
        advance(ms(20)).await;
        time.learned(ms(0), BEGIN + 10);
        assert_eq!(time.at(ms(20)), span(10 - 1, 31 + 1));
        // Drift: 500 us for each second.
        advance(ms(99_980)).await;
        assert_eq!(time.at(clock.now()), span(100_000 - 10 - 50, 100_000 + 11 + 50));
    }

    // The process was stopped between question and answer: what came then is an hour old, or not.
    #[tokio::test(start_paused = true)]
    async fn a_reading_that_came_late_does_not_replace_a_better_one() {
        let (clock, time) = start();
        time.learned(ms(0), BEGIN);
        let sent = clock.now();
        advance(ms(3_600_000)).await;
        time.learned(sent, BEGIN);
        assert_eq!(time.at(clock.now()), span(3_600_000 - 1_800, 3_600_000 + 1 + 1_800));
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_reading_is_better_than_none_and_says_how_bad_it_is() {
        let (clock, time) = start();
        advance(ms(60_000)).await;
        time.learned(ms(0), BEGIN + 5);
        let known = time.at(clock.now()).expect("learned");
        assert!(known.earliest <= BEGIN + 5 && BEGIN + 60_005 <= known.latest, "{known:?}");
        // The next good one is believed.
        time.learned(clock.now(), BEGIN + 60_000);
        assert_eq!(time.at(clock.now()), span(60_000, 60_001));
    }

    #[tokio::test(start_paused = true)]
    async fn a_better_reading_replaces_one_that_has_aged() {
        let (clock, time) = start();
        time.learned(ms(0), BEGIN);
        advance(ms(60_000)).await;
        let sent = clock.now();
        advance(ms(10)).await;
        time.learned(sent, BEGIN + 60_005);
        assert_eq!(time.at(clock.now()), span(60_005 - 1, 60_016 + 1));
    }

    // However slow the reading that shows it: both cannot be true.
    #[tokio::test(start_paused = true)]
    async fn a_clock_that_was_set_is_believed() {
        for (set, round_trip) in [(1_600_000_000_000, 0), (1_800_000_000_000, 0), (BEGIN - 5_000, 4_000)] {
            let (clock, time) = start();
            time.learned(ms(0), BEGIN);
            advance(ms(round_trip)).await;
            time.learned(ms(0), set);
            let known = time.at(clock.now()).expect("learned");
            assert!(known.earliest <= set && set <= known.latest && known.latest <= set + round_trip + 5, "{known:?}");
        }
    }

    // Whatever the backplane says is outside data.
    #[tokio::test(start_paused = true)]
    async fn no_reading_is_too_large() {
        let (clock, time) = start();
        time.learned(ms(0), Millis::MAX);
        time.learned(Mono::MAX, 0);
        assert!(time.at(clock.now()).is_some());
    }
}
