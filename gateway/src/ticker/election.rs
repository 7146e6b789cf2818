//! When to ask for the lease, and when to tick: pure decisions.
//!
//! Of any number of nodes exactly one should publish the snapshot of a slot. The fence against two of them is the
//! backplane's (lease, epoch and slot are checked where the snapshot is written), so what is at stake here is
//! progress and manners: a dead ticker is replaced within its lease, a slot begins with its snapshot, and a node that
//! slept does not act on what it believed before.
//!
//! A node is a challenger, which polls, or the holder, which renews and ticks. Time comes from two clocks:
//! - *own monotonic time* says how long the node may still believe that it holds the lease: never longer than the
//!   lease's length from when the successful claim was **sent**. Whatever delayed the answer only shortens the
//!   belief, and a process that was stopped finds it expired when it wakes (Inv. FENCE);
//! - *the backplane's time*, estimated from its replies, says which slot it is. The estimate is taken afresh from each
//!   reply; where it was wrong, the backplane says so and the node tries again within the same slot.
//!
//! Deliberately absent: IO, clocks and randomness. [`Election::next`] says what to do, the driver does it, and feeds
//! back what came of it. One call is under way at a time.

use std::time::Duration;

use rand::{Rng, RngExt};
use shared::ids::{NodeId, Slot};

use crate::backplane::{ClaimReply, Lease, Millis, TickReply};
use crate::clock::Mono;

/// Challengers ask this often whether the lease is free…
pub const POLL_EVERY: Duration = Duration::from_millis(500);
/// …and up to this much later, so that they do not ask in step.
pub const POLL_JITTER_MAX: Duration = Duration::from_millis(250);
/// A failed renewal or tick is tried again after this.
pub const RETRY_AFTER: Duration = Duration::from_millis(100);
/// The first tick after the backplane has lost its data waits this long. The new data set knows neither nodes nor
/// visitors: a count taken at once would be of the ticker's own. The others connect again within a second, beat 1.5 s
/// after that, and then mark their visitors.
pub const SETTLE_AFTER_LOSS: Duration = Duration::from_secs(4);

/// What the election goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ElectionSettings {
    /// Length of a slot.
    pub interval: Duration,
    /// How long a claim holds; it is renewed after a third of it.
    pub lease: Duration,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing until then.
    Wait(Mono),
    /// Ask for the lease, or prolong it.
    Claim,
    /// Publish the snapshot of this slot.
    Tick {
        /// On whose authority.
        lease: Lease,
        /// Which slot.
        slot: Slot,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Role {
    Challenger {
        poll_at: Mono,
    },
    Holder {
        lease: Lease,
        /// The node does not believe that it holds the lease from here on.
        until: Mono,
        renew_at: Mono,
        /// No tick before this, after one that failed.
        tick_from: Mono,
        /// The slot that needs no tick any more.
        settled: Option<Slot>,
    },
}

/// One node's part in the election.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Election {
    node: NodeId,
    settings: ElectionSettings,
    role: Role,
    /// The backplane's time minus own time, in microseconds.
    offset_us: i128,
    /// The backplane has known of a snapshot: one that knows of none has lost its data.
    had_snapshot: bool,
}

impl Election {
    /// A challenger that polls at once.
    #[must_use]
    pub fn new(node: NodeId, settings: ElectionSettings) -> Self {
        Self { node, settings, role: Role::Challenger { poll_at: Mono::ZERO }, offset_us: 0, had_snapshot: false }
    }

    /// The lease, while the node may believe that it holds it.
    #[must_use]
    pub fn lease(&self, now: Mono) -> Option<Lease> {
        match self.role {
            Role::Holder { lease, until, .. } if now < until => Some(lease),
            _ => None,
        }
    }

    /// What to do at `now`.
    pub fn next(&mut self, now: Mono) -> Action {
        let (lease, until, renew_at, tick_from, settled) = match self.role {
            Role::Challenger { poll_at } if now < poll_at => return Action::Wait(poll_at),
            Role::Challenger { .. } => return Action::Claim,
            Role::Holder { lease, until, renew_at, tick_from, settled } => (lease, until, renew_at, tick_from, settled),
        };
        // Inv. FENCE: what was believed before a pause is not acted upon; the backplane is asked first.
        if now >= until {
            self.role = Role::Challenger { poll_at: now };
            return Action::Claim;
        }
        let slot = self.slot_at(now);
        let tick_at = if settled == Some(slot) { self.start_of_next(slot, now) } else { tick_from };
        // A tick goes first, for punctuality, unless that could cost the lease.
        let lease_is_safe = until - now > self.settings.lease / 2;
        if now >= renew_at && !(lease_is_safe && now >= tick_at) {
            return Action::Claim;
        }
        if now >= tick_at {
            return Action::Tick { lease, slot };
        }
        Action::Wait(tick_at.min(renew_at).min(until))
    }

    /// An answer to a claim that was sent at `sent`, or none in time.
    pub fn claimed<R: Rng + ?Sized>(&mut self, sent: Mono, now: Mono, reply: Option<ClaimReply>, rng: &mut R) {
        let Some(reply) = reply else {
            match &mut self.role {
                Role::Challenger { poll_at } => *poll_at = later(now, rng),
                Role::Holder { renew_at, .. } => *renew_at = now + RETRY_AFTER,
            }
            return;
        };
        self.learn(sent, now, reply.now);
        let lost = self.had_snapshot && reply.last_slot == Slot(0);
        self.had_snapshot |= reply.last_slot != Slot(0);
        let Some(lease) = reply.lease.filter(|lease| lease.node == self.node) else {
            self.role = Role::Challenger { poll_at: later(now, rng) };
            return;
        };
        let (tick_from, settled) = match self.role {
            Role::Holder { lease: held, tick_from, settled, .. } if held == lease => (tick_from, settled),
            _ if lost => (now + SETTLE_AFTER_LOSS, None),
            // A new reign: the present slot is published at once if it is missing.
            _ => (now, (reply.last_slot == self.slot_at(now)).then_some(reply.last_slot)),
        };
        self.role = Role::Holder {
            lease,
            until: sent + self.settings.lease,
            renew_at: sent + self.settings.lease / 3,
            tick_from,
            settled,
        };
    }

    /// An answer to a tick for `slot` that was sent at `sent`, or none in time.
    pub fn ticked<R: Rng + ?Sized>(
        &mut self,
        sent: Mono,
        now: Mono,
        slot: Slot,
        reply: Option<TickReply>,
        rng: &mut R,
    ) {
        if let Some(
            TickReply::Published { now: theirs, .. }
            | TickReply::AlreadyDone { now: theirs }
            | TickReply::WrongSlot { now: theirs },
        ) = reply
        {
            self.learn(sent, now, theirs);
        }
        let Role::Holder { lease, tick_from, settled, .. } = &mut self.role else { return };
        match reply {
            Some(TickReply::Published { lease: reign, .. }) => {
                *lease = reign;
                *settled = Some(slot);
                self.had_snapshot = true;
            }
            Some(TickReply::AlreadyDone { .. }) => *settled = Some(slot),
            // The estimate is right now. Should the slot be the same still, the short wait keeps the loop from spinning.
            Some(TickReply::WrongSlot { .. }) => *tick_from = now + RETRY_AFTER / 10,
            Some(TickReply::Fenced) => self.role = Role::Challenger { poll_at: later(now, rng) },
            None => *tick_from = now + RETRY_AFTER,
        }
    }

    /// Takes the backplane's reading as of the middle of the call.
    fn learn(&mut self, sent: Mono, now: Mono, theirs: Millis) {
        let middle_us = i128::try_from((sent + now.saturating_sub(sent) / 2).as_micros()).unwrap_or(i128::MAX);
        // The reading is cut to milliseconds, so the estimate is late rather than early: an early tick is a lost call.
        self.offset_us = i128::from(theirs) * 1000 - middle_us;
    }

    fn slot_at(&self, now: Mono) -> Slot {
        let now_us = i128::try_from(now.as_micros()).unwrap_or(i128::MAX).saturating_add(self.offset_us);
        let now_ms = u64::try_from(now_us.max(0) / 1000).unwrap_or(u64::MAX);
        Slot::containing(now_ms, self.interval_ms())
    }

    /// When the slot after `slot` begins, on own time; never before `now`.
    fn start_of_next(&self, slot: Slot, now: Mono) -> Mono {
        let start_us = i128::from(slot.0.saturating_add(self.interval_ms())) * 1000 - self.offset_us;
        Mono::from_micros(u64::try_from(start_us.max(0)).unwrap_or(u64::MAX)).max(now)
    }

    fn interval_ms(&self) -> u64 {
        u64::try_from(self.settings.interval.as_millis()).unwrap_or(u64::MAX)
    }
}

fn later<R: Rng + ?Sized>(now: Mono, rng: &mut R) -> Mono {
    now + POLL_EVERY + rng.random_range(Duration::ZERO..=POLL_JITTER_MAX)
}

#[cfg(test)]
mod tests;
