//! Under which names visitors are marked: pure.
//!
//! A visitor's name is a hash under the day's salt, and the salts turn at the backplane's midnight. Whoever was marked
//! under the old name just before counts under it for a window more, and for longer after an outage, whose length is
//! added to the window. So a mark also takes away the name that this node gave the visitor before. It does so until the
//! names turn again: how long old names are counted, no node can know. An outage that begins between the turn and the
//! next round keeps them for as long as it lasts, and a visitor who was away at the turn may come back at any time. A
//! name that is not there costs Redis a look into a table.
//!
//! The name to take away is that of *before*, not that of the day before: where a backplane's clock is set back over
//! midnight (a replica was promoted whose clock is behind), the old name is tomorrow's.

use crate::backplane::{Salt, Salts, Seen};
use crate::identity::{VisitorDigest, visitor_hash};

/// The salts in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    salts: Salts,
    before: Salt,
}

impl Names {
    /// The salts that were fetched after those of `held`, if there were any. Who has none begins with the day: others
    /// may have marked his visitors yesterday.
    pub(super) fn next(held: Option<&Self>, salts: Salts) -> Self {
        let before = match held {
            Some(held) if held.salts.today == salts.today => &held.before,
            Some(held) => &held.salts.today,
            None => &salts.yesterday,
        };
        Self { before: before.clone(), salts }
    }

    pub(super) fn salts(&self) -> &Salts {
        &self.salts
    }

    /// The visitor's names.
    // Inv. PRIVATE: what leaves the node is keyed by a salt that will be gone.
    pub(super) fn of(&self, visitor: &VisitorDigest) -> Seen {
        let alias = Some(visitor_hash(&self.before, visitor));
        Seen { visitor: visitor_hash(&self.salts.today, visitor), alias }
    }

    /// The salts that the node can give back to a backplane which lost its own.
    pub(super) fn offer(&self) -> Vec<(u64, Salt)> {
        let Salts { day, today, yesterday, .. } = &self.salts;
        let yesterday = day.checked_sub(1).map(|day| (day, yesterday.clone()));
        yesterday.into_iter().chain([(*day, today.clone())]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VISITOR: VisitorDigest = VisitorDigest([7; 16]);

    /// The salts of a day; that of day n is n.
    fn salts(day: u8) -> Salts {
        Salts { day: day.into(), today: Salt([day; 16]), yesterday: Salt([day - 1; 16]), now: 0 }
    }

    /// The days under whose salts the visitor is marked, and not counted any more.
    fn days(names: &Names) -> (u8, u8) {
        let Seen { visitor, alias } = names.of(&VISITOR);
        let day = |name| (0..=9).find(|day| visitor_hash(&Salt([*day; 16]), &VISITOR) == name).expect("one of them");
        (day(visitor), day(alias.expect("a name before")))
    }

    #[test]
    fn the_name_before_is_taken_away_until_the_next_turn() {
        let started = Names::next(None, salts(5));
        assert_eq!(days(&started), (5, 4));
        let again = Names::next(Some(&started), salts(5));
        assert_eq!(days(&again), (5, 4), "fetching them again is no turn");
        // It was cut off for a day.
        let turned = Names::next(Some(&again), salts(7));
        assert_eq!(days(&turned), (7, 5));
    }

    #[test]
    fn a_clock_that_is_set_back_over_midnight_turns_the_names_as_well() {
        let after = Names::next(None, salts(6));
        let back = Names::next(Some(&after), salts(5));
        assert_eq!(days(&back), (5, 6));
        let again = Names::next(Some(&back), salts(6));
        assert_eq!(days(&again), (6, 5));
    }

    #[test]
    fn what_is_held_can_be_given_back() {
        let names = Names::next(None, salts(5));
        assert_eq!(names.offer(), [(4, Salt([4; 16])), (5, Salt([5; 16]))]);
    }
}
