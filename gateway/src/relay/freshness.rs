//! Whether the number that clients see is the present truth: pure decisions.
//!
//! A dashboard that goes on showing the last number when its source has died is worse than one that shows none. A
//! snapshot comes back through the stream each interval, so its absence proves that somewhere between ticker and
//! node something is broken, whatever else seems healthy. After two intervals and [`GRACE`] without one, the node
//! says so: it repeats the last snapshot each interval, with its own timestamp and flagged as stale, until a fresh
//! one comes. A snapshot that comes late (a node catches up) is judged by its age, not by its arrival; as its timestamp
//! may be cut by a second, it is believed to be as much younger, and so flagged at the age of two intervals and two
//! seconds at the latest. One that is ahead of the backplane's time has no age that could be known, and counts as stale.
//!
//! Until when a number is fresh is decided once, when it comes, and told with it: whoever shows it compares that with
//! the clock. So it is flagged in time also while this node's relay is held up, or was stopped with the process and
//! did not run yet. What is left to [`Watch::poll`] is to tell those who hold the number already.

use std::time::Duration;

use shared::time::Timestamp;

use crate::clock::Mono;
use crate::cluster_time::Span;

/// Beyond two intervals; also covers that timestamps are cut to whole seconds.
pub const GRACE: Duration = Duration::from_secs(1);

/// How long ago a snapshot was counted, at most, when it is `time` on the backplane; none when that cannot be known.
///
/// A snapshot from the future was counted by another clock than the one which is read now (Redis failed over to a
/// machine whose clock is behind, or its clock was set back): it may be of any age. Up to [`GRACE`] ahead is no
/// more than a small correction of the clock, and counts as now.
#[must_use]
pub fn age(counted: Timestamp, time: Span) -> Option<Duration> {
    let counted = Duration::from_secs(counted.unix_seconds());
    let latest = Duration::from_millis(time.latest);
    (counted <= latest + GRACE).then(|| latest.saturating_sub(counted))
}

/// Watches snapshots come.
#[derive(Debug)]
pub struct Watch {
    interval: Duration,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Fresh { until: Mono },
    Stale { repeat_at: Mono },
}

/// What time has brought about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The last snapshot has just become stale: say so.
    Stale,
    /// It still is: say so again.
    Repeat,
}

impl Watch {
    /// A watch that gives the first snapshot as long as any other.
    #[must_use]
    pub fn new(interval: Duration, now: Mono) -> Self {
        let mut watch = Self { interval, state: State::Fresh { until: now } };
        watch.state = State::Fresh { until: now + watch.limit() };
        watch
    }

    /// The age from which a snapshot is stale.
    #[must_use]
    pub fn limit(&self) -> Duration {
        self.interval * 2 + GRACE
    }

    /// Whether clients are told that the number is stale.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        matches!(self.state, State::Stale { .. })
    }

    /// A snapshot came that was counted `age` ago, as [`age`] says; tells until when it is the present truth. `now` or
    /// earlier: it is not.
    pub fn came(&mut self, age: Option<Duration>, now: Mono) -> Mono {
        let left = age.and_then(|age| self.limit().checked_sub(age)).filter(|left| !left.is_zero());
        // Old news prove nothing. Whether the present state is stale is for `poll` to say, in its own time.
        let Some(left) = left else { return now };
        // Up to GRACE of the age is how timestamps are cut, and not held against the next snapshot.
        let until = now + (left + GRACE).min(self.limit());
        self.state = State::Fresh { until };
        until
    }

    /// When to call [`Self::poll`].
    #[must_use]
    pub fn due(&self) -> Mono {
        match self.state {
            State::Fresh { until } => until,
            State::Stale { repeat_at } => repeat_at,
        }
    }

    /// What time has brought about; none before [`Self::due`].
    pub fn poll(&mut self, now: Mono) -> Option<Turn> {
        if now < self.due() {
            return None;
        }
        let turn = if self.is_stale() { Turn::Repeat } else { Turn::Stale };
        self.state = State::Stale { repeat_at: now + self.interval };
        Some(turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(5);

    fn at(seconds: u64) -> Mono {
        Mono::from_secs(seconds)
    }

    #[test]
    fn turns_stale_after_two_intervals_and_a_second_and_repeats_each_interval() {
        let mut watch = Watch::new(INTERVAL, at(0));
        assert_eq!(watch.came(Some(Duration::ZERO), at(3)), at(14));
        assert_eq!((watch.due(), watch.poll(at(13))), (at(14), None));
        assert!(!watch.is_stale());
        assert_eq!(watch.poll(at(14)), Some(Turn::Stale));
        assert!(watch.is_stale());
        assert_eq!((watch.due(), watch.poll(at(18))), (at(19), None));
        assert_eq!(watch.poll(at(19)), Some(Turn::Repeat));
        assert_eq!(watch.came(Some(Duration::ZERO), at(21)), at(32));
        assert_eq!((watch.is_stale(), watch.due()), (false, at(32)));
    }

    #[test]
    fn the_first_snapshot_has_as_long() {
        let mut watch = Watch::new(INTERVAL, at(100));
        assert_eq!((watch.poll(at(110)), watch.poll(at(111))), (None, Some(Turn::Stale)));
    }

    #[test]
    fn a_late_snapshot_is_judged_by_its_age() {
        let mut watch = Watch::new(INTERVAL, at(0));
        assert_eq!(watch.came(Some(Duration::from_secs(11)), at(5)), at(5));
        assert_eq!((watch.is_stale(), watch.due()), (false, at(11)), "it proves nothing");
        // One that is nine seconds old leaves two, and the second by which its timestamp may be cut.
        assert_eq!(watch.came(Some(Duration::from_secs(9)), at(5)), at(8));
        assert_eq!(watch.due(), at(8));
        // A cut timestamp makes no difference.
        assert_eq!(watch.came(Some(Duration::from_millis(999)), at(20)), at(31));
        assert_eq!(watch.due(), at(31));
    }

    #[test]
    fn a_snapshot_whose_age_is_not_known_is_old_news() {
        let mut watch = Watch::new(INTERVAL, at(0));
        assert_eq!(watch.came(None, at(5)), at(5));
        assert_eq!((watch.is_stale(), watch.due()), (false, at(11)), "it proves nothing");
    }

    #[test]
    fn the_age_is_the_most_that_it_may_be_and_the_future_has_none() {
        let now = Span { earliest: 99_000, latest: 100_500 };
        let age = |seconds: u64| age(Timestamp::from_unix_ms(seconds * 1_000), now);
        assert_eq!(age(90), Some(Duration::from_millis(10_500)));
        assert_eq!(age(100), Some(Duration::from_millis(500)));
        assert_eq!(age(101), Some(Duration::ZERO), "a small correction of the clock");
        assert_eq!((age(102), age(1_000_000)), (None, None));
    }

    // A process that was stopped for an hour says once that the number is stale, not once for each interval.
    #[test]
    fn a_pause_is_one_turn() {
        let mut watch = Watch::new(INTERVAL, at(0));
        assert_eq!(watch.poll(at(3_600)), Some(Turn::Stale));
        assert_eq!((watch.poll(at(3_600)), watch.due()), (None, at(3_605)));
    }
}
