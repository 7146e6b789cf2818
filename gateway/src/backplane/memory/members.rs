//! Who lives, and how many sockets of an address each member holds.
//!
//! Counts are what nodes say they hold, never sums of differences, and only those of members count. A member whose
//! lease ran out while others live is gone: it must enter again and have its sockets admitted again (Inv. CAP). If
//! *nobody's* lease is left, it was not the nodes that were away but the one who keeps the time (a paused process):
//! then all get one more lease.

use std::collections::HashMap;

use shared::ids::NodeId;

use super::super::{AddressHash, Admit, AdmitReply, Join, Millis, Standing};

/// Addresses that are counted at one time; far above the sockets of one node.
pub(super) const ADDRESSES_MAX: usize = 1_000_000;
/// Members at one time; a process has one, tests have a few.
pub(super) const MEMBERS_MAX: usize = 1024;

/// Members and their sockets.
#[derive(Debug, Default)]
pub(super) struct Members {
    nodes: HashMap<NodeId, Member>,
    addresses: HashMap<AddressHash, Vec<(NodeId, u32)>>,
}

#[derive(Debug, Clone, Copy)]
struct Member {
    until: Millis,
    lease: Millis,
}

impl Members {
    /// Prolongs or makes a membership, and forgets those that ran out.
    pub(super) fn beat(&mut self, node: NodeId, join: Join, lease: Millis, now: Millis) -> Standing {
        self.bury_or_revive(now);
        let member = Member { until: now.saturating_add(lease), lease };
        match (join, self.is_alive(node, now)) {
            // Inv. BOUND
            (Join::Enter, false) if self.nodes.len() >= MEMBERS_MAX => Standing::Gone,
            (Join::Enter, _) | (Join::Stay, true) => {
                self.nodes.insert(node, member);
                Standing::Member
            }
            (Join::Stay, false) => Standing::Gone,
        }
    }

    /// Ends a membership.
    pub(super) fn leave(&mut self, node: NodeId) {
        if self.nodes.remove(&node).is_some() {
            self.forget_strangers();
        }
    }

    /// Members whose lease has not run out.
    pub(super) fn alive(&self, now: Millis) -> u32 {
        let alive = self.nodes.values().filter(|member| now < member.until).count();
        u32::try_from(alive).unwrap_or(u32::MAX)
    }

    /// Whether the node is kept as a member, be its lease good or not.
    pub(super) fn is_known(&self, node: NodeId) -> bool {
        self.nodes.contains_key(&node)
    }

    /// The nodes whose visitors must be known again after an outage: the living or, while none has come back yet,
    /// all that are kept.
    pub(super) fn awaited(&self, now: Millis) -> Vec<NodeId> {
        let alive: Vec<_> = self.nodes.keys().copied().filter(|node| self.is_alive(*node, now)).collect();
        if alive.is_empty() { self.nodes.keys().copied().collect() } else { alive }
    }

    /// Lets sockets in, up to the cap over all that live. `None` when there are too many addresses.
    pub(super) fn admit(&mut self, request: &Admit, now: Millis) -> Option<AdmitReply> {
        self.bury_or_revive(now);
        if !self.is_alive(request.node, now) {
            return Some(AdmitReply::Gone);
        }
        // Inv. CAP: what others hold comes first; what is granted is counted in the same step.
        let others: u32 = self
            .addresses
            .get(&request.address)
            .into_iter()
            .flatten()
            .filter(|(node, _)| *node != request.node && self.is_alive(*node, now))
            .fold(0, |sum, (_, count)| sum.saturating_add(*count));
        let free = request.cap.saturating_sub(others);
        let (counted, reply) = if request.wanted <= free {
            (request.wanted, AdmitReply::Granted)
        } else {
            // Who asked for more closes nothing: what it holds stays counted.
            let counted = if request.wanted > request.held { request.held } else { free.min(request.held) };
            (counted, AdmitReply::Refused { counted })
        };
        self.set_count(request.node, request.address, counted)?;
        Some(reply)
    }

    /// Notes what a node holds; that of no member does not count. `None` when there are too many addresses; those
    /// before are noted then.
    pub(super) fn set_counts(&mut self, node: NodeId, counts: &[(AddressHash, u32)]) -> Option<()> {
        counts.iter().try_for_each(|(address, count)| self.set_count(node, *address, *count))
    }

    /// The wall clock was set back: leases end as much earlier on the new time line.
    pub(super) fn move_back(&mut self, by: Millis) {
        for member in self.nodes.values_mut() {
            member.until = member.until.saturating_sub(by);
        }
    }

    fn set_count(&mut self, node: NodeId, address: AddressHash, count: u32) -> Option<()> {
        // Inv. BOUND
        if count > 0 && self.addresses.len() >= ADDRESSES_MAX && !self.addresses.contains_key(&address) {
            return None;
        }
        let holders = self.addresses.entry(address).or_default();
        holders.retain(|(holder, _)| *holder != node);
        if count > 0 {
            holders.push((node, count));
        }
        if holders.is_empty() {
            self.addresses.remove(&address);
        }
        Some(())
    }

    /// To be called before anybody is taken for dead. Inv. CAP: who was taken for dead once must stay it. Were he only
    /// passed over, others could be let in in the place of his sockets, and he be revived with all later.
    fn bury_or_revive(&mut self, now: Millis) {
        let (alive, known) = (self.alive(now), self.nodes.len());
        if alive == 0 {
            for member in self.nodes.values_mut() {
                member.until = now.saturating_add(member.lease);
            }
        } else if (alive as usize) < known {
            self.nodes.retain(|_, member| now < member.until);
            self.forget_strangers();
        }
    }

    fn is_alive(&self, node: NodeId, now: Millis) -> bool {
        self.nodes.get(&node).is_some_and(|member| now < member.until)
    }

    fn forget_strangers(&mut self) {
        let nodes = &self.nodes;
        self.addresses.retain(|_, holders| {
            holders.retain(|(node, _)| nodes.contains_key(node));
            !holders.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IP: AddressHash = AddressHash([7; 16]);

    fn admit(members: &mut Members, node: u64, held: u32, wanted: u32, now: Millis) -> AdmitReply {
        let request = Admit { node: NodeId::from_random(node), address: IP, held, wanted, cap: 10 };
        members.admit(&request, now).expect("room for an address")
    }

    // Inv. CAP
    #[test]
    fn who_is_gone_counts_no_more_and_comes_back_as_one_who_asks() {
        let mut members = Members::default();
        let (a, b) = (NodeId::from_random(1), NodeId::from_random(2));
        members.beat(a, Join::Enter, 6000, 0);
        members.beat(b, Join::Enter, 6000, 3000);
        assert_eq!(admit(&mut members, 1, 0, 6, 3000), AdmitReply::Granted);
        assert_eq!(admit(&mut members, 2, 0, 5, 5999), AdmitReply::Refused { counted: 0 });
        assert_eq!(admit(&mut members, 2, 0, 5, 6000), AdmitReply::Granted);
        assert_eq!(members.beat(a, Join::Stay, 6000, 6001), Standing::Gone);
        assert_eq!(admit(&mut members, 1, 6, 6, 6001), AdmitReply::Gone);
        assert_eq!(members.beat(a, Join::Enter, 6000, 6002), Standing::Member);
        assert_eq!(admit(&mut members, 1, 6, 6, 6002), AdmitReply::Refused { counted: 5 });
        assert_eq!(members.alive(6002), 2);
    }

    #[test]
    fn when_nobody_has_a_lease_left_it_was_the_keeper_that_slept() {
        let mut members = Members::default();
        let (a, b) = (NodeId::from_random(1), NodeId::from_random(2));
        members.beat(a, Join::Enter, 6000, 0);
        members.beat(b, Join::Enter, 6000, 0);
        assert_eq!(admit(&mut members, 1, 0, 10, 0), AdmitReply::Granted);
        assert_eq!(admit(&mut members, 2, 0, 1, 3_600_000), AdmitReply::Refused { counted: 0 });
        assert_eq!(members.beat(a, Join::Stay, 6000, 3_601_000), Standing::Member);
        assert_eq!(members.alive(3_601_000), 2);
    }

    // Inv. BOUND
    #[test]
    fn what_is_given_back_leaves_nothing_behind() {
        let mut members = Members::default();
        let a = NodeId::from_random(1);
        members.beat(a, Join::Enter, 6000, 0);
        assert_eq!(admit(&mut members, 1, 0, 3, 1), AdmitReply::Granted);
        members.set_counts(a, &[(IP, 0)]).expect("zero needs no room");
        assert!(members.addresses.is_empty());
        assert_eq!(admit(&mut members, 1, 0, 3, 1), AdmitReply::Granted);
        members.leave(a);
        assert!(members.addresses.is_empty() && members.nodes.is_empty());
    }
}
