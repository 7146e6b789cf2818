//! Who was seen when, under which salts.
//!
//! A visitor counts for a window after it was last seen. While nothing could be touched (the process was paused),
//! staying visitors look like leaving ones. So when ticks are missing, the window grows by the hole, until each
//! living node has refreshed the visitors of all its sockets, at most for one window: an outage loses nobody who
//! stayed.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use shared::ids::NodeId;

use super::super::{DAY_MS, HOLE_MS_MAX, Millis, Salt, Salts, Touch, VisitorHash};
use super::millis;

/// Visitors that are counted at one time; more are not counted. About 50 MB when full.
pub const VISITORS_MAX: usize = 1_000_000;

/// When each visitor was last seen, and what is known about holes.
#[derive(Debug, Default)]
pub(super) struct Visitors {
    last_seen: HashMap<VisitorHash, Millis>,
    /// When each node last had refreshed all its sockets' visitors.
    refreshed: HashMap<NodeId, Millis>,
    last_tick: Option<Millis>,
    hole: Option<Hole>,
}

#[derive(Debug, Clone, Copy)]
struct Hole {
    noticed: Millis,
    length: Millis,
}

impl Visitors {
    /// Marks visitors as seen now, once each: the name under yesterday's salt goes.
    pub(super) fn touch(&mut self, request: &Touch, now: Millis) {
        for seen in &request.seen {
            if let Some(alias) = &seen.alias {
                self.last_seen.remove(alias);
            }
            // Inv. BOUND
            if self.last_seen.len() < VISITORS_MAX || self.last_seen.contains_key(&seen.visitor) {
                self.last_seen.insert(seen.visitor, now);
            }
        }
        if let Some(node) = request.round_of {
            self.refreshed.insert(node, now);
        }
    }

    /// Counts for a tick, and forgets whom no coming tick will count. `awaited` are the nodes that must have
    /// refreshed before a hole is over.
    pub(super) fn count(&mut self, interval: Duration, window: Duration, awaited: &[NodeId], now: Millis) -> u64 {
        let since_last = self.last_tick.map_or(0, |last| now.saturating_sub(last));
        if since_last > millis(interval).saturating_mul(2) {
            let unhealed = self.hole.map_or(0, |hole| hole.length);
            let length = unhealed.saturating_add(since_last).min(HOLE_MS_MAX);
            self.hole = Some(Hole { noticed: now, length });
        }
        let window = millis(window);
        self.hole = self.hole.filter(|hole| {
            let refreshed = |node| self.refreshed.get(node).is_some_and(|at| *at >= hole.noticed);
            let over = now.saturating_sub(hole.noticed) > window || awaited.iter().all(refreshed);
            !over
        });
        self.last_tick = Some(now);
        let window = window.saturating_add(self.hole.map_or(0, |hole| hole.length));
        self.last_seen.retain(|_, seen| now.saturating_sub(*seen) <= window);
        self.last_seen.len() as u64
    }

    /// Forgets when these nodes refreshed.
    pub(super) fn forget_nodes(&mut self, gone: impl Fn(NodeId) -> bool) {
        self.refreshed.retain(|node, _| !gone(*node));
    }

    /// The wall clock was set back: nobody was seen in the future.
    pub(super) fn clamp(&mut self, now: Millis) {
        for seen in self.last_seen.values_mut().chain(self.refreshed.values_mut()) {
            *seen = (*seen).min(now);
        }
        self.last_tick = self.last_tick.map(|last| last.min(now));
        self.hole = self.hole.map(|hole| Hole { noticed: hole.noticed.min(now), ..hole });
    }
}

/// The salts of the days around now.
#[derive(Debug, Default)]
pub(super) struct SaltStore(BTreeMap<u64, Salt>);

impl SaltStore {
    /// The salts of today and yesterday: kept, else offered, else made.
    pub(super) fn salts(&mut self, offer: &[(u64, Salt)], now: Millis) -> Salts {
        let day = now / DAY_MS;
        let yesterday = day.saturating_sub(1);
        // Inv. BOUND: three days at most. Tomorrow's is kept for a clock that was set back over midnight.
        self.0.retain(|kept, _| (yesterday..=day + 1).contains(kept));
        let mut of = |day: u64| {
            let offered = offer.iter().find(|(offered, _)| *offered == day).map(|(_, salt)| salt.clone());
            self.0.entry(day).or_insert_with(|| offered.unwrap_or_else(|| Salt(rand::random()))).clone()
        };
        Salts { day, today: of(day), yesterday: of(yesterday), now }
    }

    /// Whether hashes of that day, under the salt of that fingerprint, are the present ones.
    pub(super) fn is_present(&self, day: u64, fingerprint: &str, now: Millis) -> bool {
        day == now / DAY_MS && self.0.get(&day).is_some_and(|salt| salt.fingerprint() == fingerprint)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::Seen;
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(5);
    const WINDOW: Duration = Duration::from_secs(300);

    fn touch(visitors: &mut Visitors, name: u8, alias: Option<u8>, round_of: Option<NodeId>, now: Millis) {
        let hash = |name| VisitorHash([name; 16]);
        let seen = vec![Seen { visitor: hash(name), alias: alias.map(hash) }];
        visitors.touch(&Touch { day: 0, fingerprint: String::new(), seen, round_of }, now);
    }

    #[test]
    fn a_visitor_counts_for_a_window_and_once() {
        let mut visitors = Visitors::default();
        touch(&mut visitors, 1, None, None, 0);
        touch(&mut visitors, 1, None, None, 1000);
        touch(&mut visitors, 2, None, None, 2000);
        touch(&mut visitors, 3, Some(2), None, 3000);
        assert_eq!(visitors.count(INTERVAL, WINDOW, &[], 5000), 2);
        for now in (10_000..=300_000).step_by(5000) {
            assert_eq!(visitors.count(INTERVAL, WINDOW, &[], now), 2, "{now}");
        }
        assert_eq!(visitors.count(INTERVAL, WINDOW, &[], 301_000), 2);
        assert_eq!(visitors.count(INTERVAL, WINDOW, &[], 301_001), 1);
        assert_eq!(visitors.count(INTERVAL, WINDOW, &[], 303_001), 0);
        assert!(visitors.last_seen.is_empty(), "who left is forgotten");
    }

    #[test]
    fn a_hole_between_ticks_loses_nobody_who_stayed() {
        let (node, mut visitors) = (NodeId::from_random(1), Visitors::default());
        touch(&mut visitors, 1, None, Some(node), 0);
        touch(&mut visitors, 2, None, None, 0);
        assert_eq!(visitors.count(INTERVAL, WINDOW, &[node], 5000), 2);
        assert_eq!(visitors.count(INTERVAL, WINDOW, &[node], 605_000), 2, "ten minutes were not lived");
        assert_eq!(visitors.count(INTERVAL, WINDOW, &[node], 610_000), 2);
        touch(&mut visitors, 1, None, Some(node), 612_000);
        assert_eq!(visitors.count(INTERVAL, WINDOW, &[node], 615_000), 1, "who left is known again");
    }

    #[test]
    fn a_node_that_never_refreshes_keeps_a_hole_open_for_one_window_only() {
        let (node, mut visitors) = (NodeId::from_random(1), Visitors::default());
        assert_eq!(visitors.count(INTERVAL, WINDOW, &[node], 5000), 0);
        for now in (605_000..=950_000).step_by(5000) {
            if now == 650_000 {
                touch(&mut visitors, 1, None, None, now);
            }
            assert_eq!(visitors.count(INTERVAL, WINDOW, &[node], now), u64::from(now >= 650_000), "{now}");
        }
        assert_eq!(visitors.count(INTERVAL, WINDOW, &[node], 955_000), 0);
    }

    #[test]
    fn salts_are_kept_then_offered_then_made() {
        let mut store = SaltStore::default();
        let noon = 100 * DAY_MS + DAY_MS / 2;
        let offered = Salt([9; 16]);
        let first = store.salts(&[(99, offered.clone()), (98, Salt([1; 16]))], noon);
        assert_eq!((first.day, &first.yesterday), (100, &offered));
        assert_eq!(store.salts(&[(100, Salt([3; 16])), (99, Salt([3; 16]))], noon + 1).today, first.today);
        let next = store.salts(&[], noon + DAY_MS);
        assert_eq!((next.day, &next.yesterday), (101, &first.today));
        assert_ne!(next.today, first.today);
        assert!(store.is_present(101, &next.today.fingerprint(), noon + DAY_MS));
        assert!(!store.is_present(100, &first.today.fingerprint(), noon + DAY_MS), "the day has turned");
        assert_eq!(store.0.len(), 2);
    }
}
