//! Under which names visitors are marked: pure.
//!
//! A visitor's name is a hash under the day's salt, and the salts turn at the backplane's midnight. Whoever was marked
//! under the old name just before counts under it for a window more, and for longer after an outage, whose length is
//! added to the window. So a mark also takes away the name that this node gave the visitor before, for two windows
//! after its own turn: one for which a name counts, and one for which an outage may lengthen it.
//!
//! What counts is *this node's* turn, not midnight: a node that was cut off at midnight turns when it is back, and then
//! the old names are still counted. And the name to take away is that of *before*, not that of the day before: where a
//! backplane's clock is set back over midnight (a replica was promoted whose clock is behind), the old name is
//! tomorrow's.

use std::time::Duration;

use crate::backplane::{Millis, Salt, Salts, Seen};
use crate::identity::{VisitorDigest, visitor_hash};

/// For how many windows after the turn old names are taken away.
const WINDOWS: u32 = 2;

/// The salts in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    salts: Salts,
    before: Salt,
    /// Until when, on the backplane's clock, names under `before` may still be counted.
    before_until: Millis,
}

impl Names {
    /// The salts that were fetched after those of `held`, if there were any. Who has none begins with the day: others
    /// may have marked his visitors yesterday.
    pub(super) fn next(held: Option<&Self>, salts: Salts, window: Duration) -> Self {
        let turn = salts.now.saturating_add(millis(window.saturating_mul(WINDOWS)));
        match held {
            Some(held) if held.salts.today == salts.today => {
                Self { before: held.before.clone(), before_until: held.before_until, salts }
            }
            Some(held) => Self { before: held.salts.today.clone(), before_until: turn, salts },
            None => Self { before: salts.yesterday.clone(), before_until: turn, salts },
        }
    }

    pub(super) fn salts(&self) -> &Salts {
        &self.salts
    }

    /// The visitor's names at `now`, on the backplane's clock.
    // Inv. PRIVATE: what leaves the node is keyed by a salt that will be gone.
    pub(super) fn of(&self, visitor: &VisitorDigest, now: Millis) -> Seen {
        let alias = (now <= self.before_until).then(|| visitor_hash(&self.before, visitor));
        Seen { visitor: visitor_hash(&self.salts.today, visitor), alias }
    }

    /// The salts that the node can give back to a backplane which lost its own.
    pub(super) fn offer(&self) -> Vec<(u64, Salt)> {
        let Salts { day, today, yesterday, .. } = &self.salts;
        let yesterday = day.checked_sub(1).map(|day| (day, yesterday.clone()));
        yesterday.into_iter().chain([(*day, today.clone())]).collect()
    }
}

fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(300);
    const WINDOW_MS: Millis = 300_000;
    const VISITOR: VisitorDigest = VisitorDigest([7; 16]);

    /// The salts of a day; that of day n is n.
    fn salts(day: u8, now: Millis) -> Salts {
        Salts { day: day.into(), today: Salt([day; 16]), yesterday: Salt([day - 1; 16]), now }
    }

    fn alias(names: &Names, now: Millis) -> Option<u8> {
        let alias = names.of(&VISITOR, now).alias?;
        (0..=9).find(|day| visitor_hash(&Salt([*day; 16]), &VISITOR) == alias)
    }

    #[test]
    fn the_name_before_is_taken_away_for_two_windows_after_the_nodes_own_turn() {
        let started = Names::next(None, salts(5, 0), WINDOW);
        assert_eq!(alias(&started, 2 * WINDOW_MS), Some(4));
        assert_eq!(alias(&started, 2 * WINDOW_MS + 1), None);
        let again = Names::next(Some(&started), salts(5, 90_000_000), WINDOW);
        assert_eq!(alias(&again, 90_000_000), None, "fetching them again is no turn");
        // It was cut off at midnight and turns an hour later.
        let turn = 100_000_000;
        let turned = Names::next(Some(&again), salts(6, turn), WINDOW);
        assert_eq!(turned.of(&VISITOR, turn).visitor, visitor_hash(&Salt([6; 16]), &VISITOR));
        assert_eq!(alias(&turned, turn + 2 * WINDOW_MS), Some(5));
        assert_eq!(alias(&turned, turn + 2 * WINDOW_MS + 1), None);
    }

    #[test]
    fn a_clock_that_is_set_back_over_midnight_turns_the_names_as_well() {
        let after = Names::next(None, salts(6, 1_000_000), WINDOW);
        let back = Names::next(Some(&after), salts(5, 990_000), WINDOW);
        assert_eq!(alias(&back, 990_000), Some(6));
        let again = Names::next(Some(&back), salts(6, 1_000_000), WINDOW);
        assert_eq!(alias(&again, 1_000_000), Some(5));
    }

    #[test]
    fn what_is_held_can_be_given_back() {
        let names = Names::next(None, salts(5, 0), WINDOW);
        assert_eq!(names.offer(), [(4, Salt([4; 16])), (5, Salt([5; 16]))]);
    }
}
