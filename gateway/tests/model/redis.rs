//! What `claim.lua`, `tick.lua` and `release.lua` decide about the election, in Rust: the model's Redis half.
//!
//! It is a second writing-down of the same rules, so it is worth as much as the proof that both say the same: one
//! table of cases (`cases.rs`) is run over this, over the real scripts on a real Redis, and over the embedded
//! backplane. What the scripts do beside the election (counting, trimming) is left out.
//!
//! [`Rules`] can be switched off one by one. A model that cannot fail proves nothing: without each of them the checker
//! must find what goes wrong.

use gateway::backplane::{ClaimReply, Lease, Millis};
use shared::ids::{Epoch, NodeId, Slot};

/// What the scripts insist on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Rules {
    /// A tick is carried out for the present holder of the lease alone.
    pub(crate) tick_needs_lease: bool,
    /// A slot that has its snapshot gets no other.
    pub(crate) slot_once: bool,
    /// A lease is prolonged for the node that holds it alone.
    pub(crate) claim_compares_node: bool,
    /// A lease that ran out is free.
    pub(crate) lease_runs_out: bool,
    /// A lease that ran out is a new reign also for the node that held it.
    pub(crate) new_reign_after_expiry: bool,
    /// Only the present lease can be given back.
    pub(crate) release_compares_lease: bool,
}

/// As the scripts are.
pub(crate) const RULES: Rules = Rules {
    tick_needs_lease: true,
    slot_once: true,
    claim_compares_node: true,
    lease_runs_out: true,
    new_reign_after_expiry: true,
    release_compares_lease: true,
};

/// Key `ticker`: the last lease that was given, be it over or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Ticker {
    pub(crate) lease: Lease,
    pub(crate) until: Millis,
}

/// The keys on which the election depends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Redis {
    pub(crate) ticker: Option<Ticker>,
    /// Key `snapshot`: where the last one stands. The stream gets its entry in the same step.
    pub(crate) last: Option<Published>,
}

/// A snapshot's slot and reign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Published {
    pub(crate) slot: Slot,
    pub(crate) epoch: Epoch,
}

/// What `tick.lua` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Verdict {
    Published(Lease),
    AlreadyDone,
    WrongSlot,
    Fenced,
}

impl Redis {
    /// `claim.lua`
    pub(crate) fn claim(&mut self, rules: Rules, node: NodeId, length: Millis, now: Millis) -> ClaimReply {
        let last_slot = self.last.map_or(Slot(0), |last| last.slot);
        // More than one lease ahead: given before the clock jumped back, and worth nothing.
        let expired = self.ticker.is_none_or(|held| held.until <= now || held.until > now + length);
        let own = self.ticker.filter(|held| held.lease.node == node || !rules.claim_compares_node);
        if own.is_none() && !(expired && (rules.lease_runs_out || self.ticker.is_none())) {
            return ClaimReply { lease: None, last_slot, now };
        }
        let lease = match own {
            Some(held) if held.until > now || !rules.new_reign_after_expiry => Lease { node, ..held.lease },
            _ => Lease { node, epoch: self.next_epoch(now) },
        };
        self.ticker = Some(Ticker { lease, until: now + length });
        ClaimReply { lease: Some(lease), last_slot, now }
    }

    /// `release.lua`
    pub(crate) fn release(&mut self, rules: Rules, lease: Lease) {
        if let Some(held) = self.ticker.as_mut().filter(|held| held.lease == lease || !rules.release_compares_lease) {
            held.until = 0;
        }
    }

    /// `tick.lua`
    pub(crate) fn tick(&mut self, rules: Rules, lease: Lease, slot: Slot, interval: Millis, now: Millis) -> Verdict {
        let holds = self.ticker.is_some_and(|held| held.lease == lease && held.until > now);
        if rules.tick_needs_lease && !holds {
            return Verdict::Fenced;
        }
        if slot != Slot::containing(now, interval) {
            return Verdict::WrongSlot;
        }
        let mut reign = lease;
        if let Some(last) = self.last.filter(|last| last.slot >= slot && rules.slot_once) {
            if last.slot.0 <= now + 2 * interval {
                return Verdict::AlreadyDone;
            }
            // The clock jumped back: smaller slots are newer all the same.
            reign.epoch = self.next_epoch(now);
            self.ticker = self.ticker.map(|held| Ticker { lease: reign, ..held });
        }
        self.last = Some(Published { slot, epoch: reign.epoch });
        Verdict::Published(reign)
    }

    fn next_epoch(&self, now: Millis) -> Epoch {
        let given = self.ticker.map_or(0, |held| held.lease.epoch.0);
        let published = self.last.map_or(0, |last| last.epoch.0);
        Epoch((given + 1).max(published + 1).max(now))
    }
}
