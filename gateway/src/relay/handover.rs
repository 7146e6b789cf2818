//! Visitors of events that nobody may have marked: pure.
//!
//! A producer's own visitor is marked as seen by the ticker's node alone, as every node reads the same entry. But
//! between two reigns there is no ticker, and one that is about to die marks nothing of what it has just read. So each
//! node remembers whom the events of the last [`HANDOVER`] brought, and marks them when its reign begins. Most of them
//! have been marked by the ticker before: being marked twice is being marked once, a few seconds later.
//!
//! Inv. BOUND: at most [`VISITORS_MAX`] are remembered; beyond that the oldest are not, as they are the likeliest to
//! have been marked.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Mono;
use crate::identity::VisitorDigest;
use crate::presence::ARRIVALS_MAX;

/// For how long nobody may have marked a visitor: the lease of a ticker that died and a poll of the others are 4 s, and
/// what it had read and not yet marked came before.
pub(super) const HANDOVER: Duration = Duration::from_secs(6);
/// Visitors that are remembered: what can be marked at once.
const VISITORS_MAX: usize = ARRIVALS_MAX;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Handover(VecDeque<(Mono, VisitorDigest)>);

impl Handover {
    /// An event of this visitor was read while another node was the ticker, or none.
    pub(super) fn remember(&mut self, visitor: VisitorDigest, now: Mono) {
        self.forget_before(now);
        if self.0.len() >= VISITORS_MAX {
            self.0.pop_front();
        }
        self.0.push_back((now, visitor));
    }

    /// Those to be marked by a ticker whose reign begins; they are not remembered any more.
    pub(super) fn take(&mut self, now: Mono) -> impl Iterator<Item = VisitorDigest> {
        self.forget_before(now);
        std::mem::take(&mut self.0).into_iter().map(|(_, visitor)| visitor)
    }

    fn forget_before(&mut self, now: Mono) {
        while self.0.front().is_some_and(|(at, _)| *at + HANDOVER < now) {
            self.0.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visitor(n: usize) -> VisitorDigest {
        VisitorDigest(std::array::from_fn(|i| n.to_be_bytes()[i % 8]))
    }

    #[test]
    fn who_came_within_the_handover_is_taken_once() {
        let (mut handover, second) = (Handover::default(), Duration::from_secs(1));
        for n in 0..10 {
            handover.remember(visitor(n), second * u32::try_from(n).expect("few"));
        }
        assert!(handover.take(second * 10).eq((4..10).map(visitor)));
        assert_eq!(handover.take(second * 10).count(), 0);
    }

    // Inv. BOUND
    #[test]
    fn the_oldest_of_too_many_are_not_remembered() {
        let mut handover = Handover::default();
        (0..VISITORS_MAX + 5).for_each(|n| handover.remember(visitor(n), Mono::ZERO));
        assert!(handover.take(Mono::ZERO).eq((5..VISITORS_MAX + 5).map(visitor)));
    }
}
