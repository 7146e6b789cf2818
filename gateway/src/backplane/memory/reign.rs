//! Who the ticker is. A reign has an epoch; what a former ticker sends carries a former epoch and is refused, however
//! late it arrives (Inv. FENCE). A slot that was ticked is remembered beyond reigns (Inv. SLOT).
//!
//! A wall clock that was set back far would make every coming slot look done for as long as it was set back. More
//! than two intervals behind, the new clock is believed, under a new epoch: (epoch, slot) still only grows.

use shared::ids::{Epoch, NodeId, Slot};

use super::super::{ClaimReply, Lease, Millis, Tick};
use super::millis;

/// The lease, and what was ticked.
#[derive(Debug, Default)]
pub(super) struct Reign {
    /// The last lease that was given, be it over or not.
    held: Option<Held>,
    last_epoch: Epoch,
    last_slot: Slot,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    lease: Lease,
    until: Millis,
}

/// What is to be done with a tick.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Fenced,
    WrongSlot,
    AlreadyDone,
    /// Under this lease, which may have got a new epoch just now.
    Publish(Lease),
}

impl Reign {
    /// Takes a free lease, prolongs the node's own, or only looks.
    pub(super) fn claim(&mut self, node: NodeId, length: Millis, now: Millis) -> ClaimReply {
        let until = now.saturating_add(length);
        // A reign ends with its lease, also for the node that held it: as on Redis, which may have forgotten who had
        // the lease since.
        let lease = match self.held.filter(|held| now < held.until) {
            Some(held) if held.lease.node == node => Some(held.lease),
            Some(_) => None,
            None => Some(Lease { node, epoch: self.next_epoch(now) }),
        };
        if let Some(lease) = lease {
            self.held = Some(Held { lease, until });
        }
        ClaimReply { lease, last_slot: self.last_slot, now }
    }

    /// Gives the lease back if it is the present one.
    pub(super) fn release(&mut self, lease: Lease) {
        if let Some(held) = self.held.as_mut().filter(|held| held.lease == lease) {
            held.until = 0;
        }
    }

    /// Whether this very lease is held now.
    pub(super) fn holds(&self, lease: Lease, now: Millis) -> bool {
        self.held.is_some_and(|held| held.lease == lease && now < held.until)
    }

    /// Judges a tick and, when it is to be published, notes its slot.
    pub(super) fn judge(&mut self, tick: &Tick, now: Millis) -> Verdict {
        // Inv. FENCE
        if !self.holds(tick.lease, now) {
            return Verdict::Fenced;
        }
        let interval = millis(tick.interval);
        if tick.slot != Slot::containing(now, interval) {
            return Verdict::WrongSlot;
        }
        let mut lease = tick.lease;
        if self.last_slot.0.saturating_sub(now) > interval.saturating_mul(2) {
            lease.epoch = self.next_epoch(now);
            self.held = self.held.map(|held| Held { lease, ..held });
        } else if tick.slot <= self.last_slot {
            // Inv. SLOT
            return Verdict::AlreadyDone;
        }
        self.last_slot = tick.slot;
        Verdict::Publish(lease)
    }

    /// The wall clock was set back: the lease ends as much earlier on the new time line.
    pub(super) fn move_back(&mut self, by: Millis) {
        self.held = self.held.map(|held| Held { until: held.until.saturating_sub(by), ..held });
    }

    fn next_epoch(&mut self, now: Millis) -> Epoch {
        self.last_epoch = Epoch(now.max(self.last_epoch.0 + 1));
        self.last_epoch
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const INTERVAL: Duration = Duration::from_millis(5000);

    fn tick(lease: Lease, slot: u64) -> Tick {
        Tick { lease, slot: Slot(slot), interval: INTERVAL, window: Duration::from_secs(300) }
    }

    fn held(reply: ClaimReply) -> Lease {
        reply.lease.expect("the lease is free")
    }

    // Inv. SLOT, Inv. FENCE
    #[test]
    fn a_clock_that_was_set_back_far_goes_on_under_a_new_epoch() {
        let (a, mut reign) = (NodeId::from_random(1), Reign::default());
        let first = held(reign.claim(a, 3000, 100_000));
        assert_eq!(reign.judge(&tick(first, 100_000), 100_100), Verdict::Publish(first));
        reign.move_back(60_100);
        let Verdict::Publish(second) = reign.judge(&tick(first, 40_000), 40_000) else {
            panic!("believes the new clock")
        };
        assert!(second.epoch > first.epoch, "{second:?} {first:?}");
        assert_eq!(reign.judge(&tick(first, 40_000), 40_001), Verdict::Fenced);
        assert_eq!(reign.judge(&tick(second, 40_000), 40_001), Verdict::AlreadyDone);
    }

    // Inv. SLOT
    #[test]
    fn a_clock_that_was_set_back_a_little_waits_for_its_slot() {
        let (a, mut reign) = (NodeId::from_random(1), Reign::default());
        let lease = held(reign.claim(a, 60_000, 100_000));
        assert_eq!(reign.judge(&tick(lease, 100_000), 100_000), Verdict::Publish(lease));
        for now in [90_000, 95_000, 100_000] {
            assert_eq!(reign.judge(&tick(lease, now), now), Verdict::AlreadyDone, "{now}");
        }
        assert_eq!(reign.judge(&tick(lease, 105_000), 105_000), Verdict::Publish(lease));
    }

    // Inv. FENCE
    #[test]
    fn a_lease_ends_with_its_time_and_each_reign_has_a_greater_epoch() {
        let (a, b, mut reign) = (NodeId::from_random(1), NodeId::from_random(2), Reign::default());
        let first = held(reign.claim(a, 3000, 10_000));
        assert_eq!(reign.claim(b, 3000, 12_999).lease, None);
        assert!(!reign.holds(first, 13_000));
        let second = held(reign.claim(b, 3000, 13_000));
        assert!(second.epoch > first.epoch);
        reign.release(first);
        assert!(reign.holds(second, 13_001), "only the present lease can be given back");
        reign.release(second);
        let third = held(reign.claim(a, 3000, 13_001));
        assert!(third.epoch > second.epoch);
    }
}
