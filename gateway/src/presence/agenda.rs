//! What presence does next: pure decisions.
//!
//! Three things compete for one connection: salts (without which nothing else succeeds), visitors who have just come
//! (to be seen within [`ARRIVALS_GATHERED_FOR`]), and the refresh round over all open sockets, which must not come as
//! one burst of ten thousand. [`Agenda::next`] says which of them is due; the driver does it.
//!
//! A round is cut into batches that are spread over half of its period. Its last batch is marked: when it is
//! acknowledged, all visitors of this node were marked within the round, and an outage is over for them. So a round in
//! which a batch fails proves nothing and is begun anew, in a hurry; and an empty round is one empty batch. A round
//! that is not done when the next is due gives way to it: newer, and as complete.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use crate::backplane::TOUCH_VISITORS_MAX;
use crate::clock::Mono;
use crate::identity::VisitorDigest;

/// A visitor who came is marked as seen after at most this long: others who come meanwhile share the call.
pub const ARRIVALS_GATHERED_FOR: Duration = Duration::from_millis(200);
/// A round is begun at least this often.
pub const ROUND_EVERY_MAX: Duration = Duration::from_secs(60);

/// How fast a round goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Spread over half of its period.
    Spread,
    /// As fast as the backplane acknowledges: it may have lost what it knew, or has not heard of it for a while.
    Hurry,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Job {
    /// Nothing until then.
    Wait(Mono),
    /// Fetch the salts.
    Salts,
    /// Mark those who came.
    Arrivals,
    /// Begin a round, by [`Agenda::begin`].
    Round(Pace),
    /// Mark these.
    Batch(Batch),
}

/// A part of a round.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch {
    /// At most [`TOUCH_VISITORS_MAX`].
    pub visitors: Vec<VisitorDigest>,
    /// Whether the round is complete with it.
    pub last: bool,
}

/// What is due when.
#[derive(Debug)]
pub struct Agenda {
    every: Duration,
    /// After a failure nothing is tried before this.
    held_until: Mono,
    salts_at: Mono,
    arrivals_at: Option<Mono>,
    round_at: Mono,
    pace: Pace,
    batches: VecDeque<Batch>,
    batch_at: Mono,
    gap: Duration,
}

impl Agenda {
    /// Salts first, then rounds: five within a window, one a minute at least.
    #[must_use]
    pub fn new(window: Duration, now: Mono) -> Self {
        let every = (window / 5).min(ROUND_EVERY_MAX);
        Self {
            every,
            held_until: now,
            salts_at: now,
            arrivals_at: None,
            round_at: now + every,
            pace: Pace::Spread,
            batches: VecDeque::new(),
            batch_at: now,
            gap: Duration::ZERO,
        }
    }

    /// What is due at `now`, the most urgent first.
    pub fn next(&mut self, now: Mono) -> Job {
        if now < self.held_until {
            return Job::Wait(self.held_until);
        }
        if now >= self.salts_at {
            return Job::Salts;
        }
        if self.arrivals_at.is_some_and(|at| now >= at) {
            self.arrivals_at = None;
            return Job::Arrivals;
        }
        if now >= self.round_at {
            return Job::Round(self.pace);
        }
        if now >= self.batch_at
            && let Some(batch) = self.batches.pop_front()
        {
            self.batch_at = now + self.gap;
            return Job::Batch(batch);
        }
        let batch_at = (!self.batches.is_empty()).then_some(self.batch_at);
        let times = [Some(self.salts_at), self.arrivals_at, Some(self.round_at), batch_at];
        Job::Wait(times.into_iter().flatten().min().unwrap_or(self.round_at))
    }

    /// The salts serve until `at`.
    pub fn salts_serve_until(&mut self, at: Mono) {
        self.salts_at = at;
    }

    /// The salts do not serve any more.
    pub fn salts_wanted(&mut self, now: Mono) {
        self.salts_at = now;
    }

    /// Somebody came.
    pub fn somebody_came(&mut self, now: Mono) {
        self.arrivals_at.get_or_insert(now + ARRIVALS_GATHERED_FOR);
    }

    /// A round is wanted at once: the one under way, if any, has failed, or all is to be told anew.
    pub fn round_wanted(&mut self, now: Mono) {
        self.round_at = now;
        self.pace = Pace::Hurry;
    }

    /// Begins a round over `visitors`.
    pub fn begin(&mut self, visitors: HashSet<VisitorDigest>, pace: Pace, now: Mono) {
        let visitors: Vec<VisitorDigest> = visitors.into_iter().collect();
        self.batches =
            visitors.chunks(TOUCH_VISITORS_MAX).map(|chunk| Batch { visitors: chunk.to_vec(), last: false }).collect();
        match self.batches.back_mut() {
            Some(batch) => batch.last = true,
            None => self.batches.push_back(Batch { visitors: Vec::new(), last: true }),
        }
        let count = u32::try_from(self.batches.len()).unwrap_or(u32::MAX);
        self.gap = match pace {
            Pace::Spread => self.every / 2 / count,
            Pace::Hurry => Duration::ZERO,
        };
        self.batch_at = now;
        self.round_at = now + self.every;
        self.pace = Pace::Spread;
    }

    /// Nothing is to be tried before `until`.
    pub fn hold(&mut self, until: Mono) {
        self.held_until = until;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(300);

    fn visitors(n: u16) -> HashSet<VisitorDigest> {
        (0..n).map(|n| VisitorDigest(std::array::from_fn(|i| n.to_be_bytes()[i % 2]))).collect()
    }

    fn with_salts() -> Agenda {
        let mut agenda = Agenda::new(WINDOW, Mono::ZERO);
        assert_eq!(agenda.next(Mono::ZERO), Job::Salts, "nothing goes without salts");
        agenda.salts_serve_until(Duration::from_secs(100_000));
        agenda
    }

    #[test]
    fn a_round_is_spread_and_only_its_last_batch_is_marked() {
        let mut agenda = with_salts();
        let mut now = Duration::from_secs(60);
        assert_eq!(agenda.next(Mono::ZERO), Job::Wait(now));
        assert_eq!(agenda.next(now), Job::Round(Pace::Spread));
        agenda.begin(visitors(1_200), Pace::Spread, now);
        let (mut seen, mut batches, mut last) = (HashSet::new(), 0, false);
        while !last {
            match agenda.next(now) {
                Job::Batch(batch) => {
                    assert!(batch.visitors.len() <= TOUCH_VISITORS_MAX);
                    seen.extend(batch.visitors);
                    (batches, last) = (batches + 1, batch.last);
                }
                Job::Wait(until) => now = until,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((batches, seen), (3, visitors(1_200)));
        assert_eq!(now, Duration::from_secs(60 + 20), "three batches, ten seconds apart");
        assert_eq!(agenda.next(now), Job::Wait(Duration::from_secs(120)));
    }

    #[test]
    fn a_node_without_visitors_still_proves_its_round() {
        let mut agenda = with_salts();
        let now = Duration::from_secs(60);
        agenda.begin(HashSet::new(), Pace::Spread, now);
        assert_eq!(agenda.next(now), Job::Batch(Batch { visitors: Vec::new(), last: true }));
    }

    #[test]
    fn a_round_that_failed_is_begun_anew_after_the_backoff() {
        let mut agenda = with_salts();
        let now = Duration::from_secs(1);
        agenda.begin(visitors(600), Pace::Spread, now);
        assert!(matches!(agenda.next(now), Job::Batch(Batch { last: false, .. })));
        agenda.round_wanted(now);
        agenda.hold(now + Duration::from_millis(300));
        agenda.somebody_came(now);
        assert_eq!(agenda.next(now), Job::Wait(now + Duration::from_millis(300)));
        let now = now + Duration::from_millis(300);
        assert_eq!(agenda.next(now), Job::Arrivals);
        assert_eq!(agenda.next(now), Job::Round(Pace::Hurry));
        agenda.begin(visitors(600), Pace::Hurry, now);
        assert!(matches!(agenda.next(now), Job::Batch(Batch { last: false, .. })), "from its beginning");
        assert!(matches!(agenda.next(now), Job::Batch(Batch { last: true, .. })), "in a hurry there is no gap");
    }

    #[test]
    fn those_who_come_share_a_call_and_do_not_wait_for_each_other() {
        let mut agenda = with_salts();
        let now = Duration::from_secs(1);
        agenda.somebody_came(now);
        agenda.somebody_came(now + Duration::from_millis(150));
        let due = now + ARRIVALS_GATHERED_FOR;
        assert_eq!(agenda.next(now), Job::Wait(due));
        assert_eq!(agenda.next(due), Job::Arrivals);
        assert_eq!(agenda.next(due), Job::Wait(Duration::from_secs(60)));
    }

    #[test]
    fn a_wanted_round_does_not_wait_and_the_next_takes_its_time_again() {
        let mut agenda = with_salts();
        let now = Duration::from_secs(7);
        agenda.round_wanted(now);
        assert_eq!(agenda.next(now), Job::Round(Pace::Hurry));
        agenda.begin(HashSet::new(), Pace::Hurry, now);
        assert!(matches!(agenda.next(now), Job::Batch(_)));
        let later = now + Duration::from_secs(60);
        assert_eq!(agenda.next(later), Job::Round(Pace::Spread));
    }

    #[test]
    fn salts_come_before_everything() {
        let mut agenda = with_salts();
        let now = Duration::from_secs(60);
        agenda.somebody_came(now - Duration::from_secs(1));
        agenda.salts_wanted(now);
        assert_eq!(agenda.next(now), Job::Salts);
    }
}
