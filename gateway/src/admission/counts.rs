//! How many sockets each address has on this node, and what the cluster has to be told about it. Pure.
//!
//! The backplane holds the node's *true count* of an address, never a sum of differences, so telling it again is
//! always right, and telling it late is a matter of time. What must not happen is that an older count overwrites a
//! newer one: then a socket would live that nobody counts (Inv. CAP). Two rules exclude it:
//!
//! - **One request per address at a time.** Whoever talks to the backplane about an address holds its turn
//!   ([`Counts::begin`], [`Counts::begin_batch`]); the others wait.
//! - **A change after the count was taken leaves the address dirty.** A batch takes the mark away when it takes the
//!   count, so a change in between sets it again, and a batch that failed sets it for all.
//!
//! And what was told may be forgotten: a backplane that restarts may lack the last seconds, and count sockets again whose
//! end it had been told. So addresses that have left are remembered for a while ([`Counts::forget_left`]), to be told
//! anew with all others.
//!
//! And an answer may come too late to be true: between the question of a handshake and its answer the node may have been
//! out, and others let in. So when everything is to be decided anew, what is being asked about at that moment is, too
//! ([`Counts::owe_all`]), though it may have no socket yet.
//!
//! An entry exists only while an address has sockets or handshakes here, so the map is bounded by the node's cap;
//! dirty marks are bounded by [`DIRTY_MAX`].

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use crate::backplane::AddressHash;

/// The most addresses whose count waits to be told. Reached only when the backplane is away while more addresses
/// than this come and go; what is lost then is the news that an address has *left*, which the backplane forgets by
/// itself within the hour.
// Inv. BOUND
pub(super) const DIRTY_MAX: usize = 100_000;

/// The most addresses that are remembered after they have left, in each of two times. Of more, the end is not told
/// again; a backplane that has forgotten it counts them until it forgets them, too, within the hour.
// Inv. BOUND
const LEFT_MAX: usize = 50_000;

/// The sockets of one address on this node.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Sockets {
    /// Open ones.
    held: u32,
    /// Handshakes that are being decided.
    reserved: u32,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Counts {
    addresses: HashMap<AddressHash, Sockets>,
    dirty: HashSet<AddressHash>,
    busy: HashSet<AddressHash>,
    /// Have sockets that the cluster did not let in. Only addresses with sockets, so bounded by them.
    unadmitted: HashSet<AddressHash>,
    /// Those of `unadmitted` about which it is in vain to ask just now.
    put_off: HashSet<AddressHash>,
    /// Those of `busy` whose question was put before the cluster had to decide anew about every address.
    overtaken: HashSet<AddressHash>,
    /// Had sockets or handshakes, and have none: since the last time that some were forgotten, and in the time before.
    left: [HashSet<AddressHash>; 2],
}

/// The address has as many sockets and handshakes here as it may have anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OverCap;

/// Whether the backplane knows the count that this node has now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// It does, but for changes that have their own mark.
    Yes,
    /// It may know another one.
    Unsure,
    /// It counts fewer: the others are to be closed. One that was let in and is not open yet is missed by whoever looks
    /// for them, so the cluster is asked again until none is left.
    TooMany,
    /// It cannot know any: its place for the address holds something else. That is the address's own affair; it is asked
    /// about again from time to time, as only an operator can help ([`Counts::owe_put_off`]).
    Unreadable,
}

impl Counts {
    /// Sets a place aside for a handshake.
    // Inv. CAP: by this node's own count alone there is never one too many, whatever the backplane says or does.
    pub(super) fn reserve(&mut self, address: AddressHash, cap: u32) -> Result<(), OverCap> {
        let sockets = self.addresses.get(&address).copied().unwrap_or_default();
        if sockets.held + sockets.reserved >= cap {
            return Err(OverCap);
        }
        self.addresses.entry(address).or_default().reserved += 1;
        Ok(())
    }

    /// The handshake came to nothing.
    pub(super) fn unreserve(&mut self, address: AddressHash) {
        self.change(address, |sockets| sockets.reserved = sockets.reserved.saturating_sub(1));
    }

    /// The handshake became a socket.
    pub(super) fn hold(&mut self, address: AddressHash, told: Told) {
        let sockets = self.addresses.entry(address).or_default();
        sockets.reserved = sockets.reserved.saturating_sub(1);
        sockets.held += 1;
        if told == Told::Unsure {
            self.mark(address);
        }
    }

    /// The handshake became a socket by this node's own decision: the cluster has to be asked afterwards.
    pub(super) fn hold_alone(&mut self, address: AddressHash) {
        self.hold(address, Told::Unsure);
        self.unadmitted.insert(address);
    }

    /// What the cluster was asked about the address's sockets has led to nothing: ask again.
    pub(super) fn owe_admission(&mut self, address: AddressHash) {
        if self.held(address) > 0 {
            self.unadmitted.insert(address);
        }
    }

    /// The cluster has to decide anew about the sockets of every address.
    pub(super) fn owe_all(&mut self) {
        let held = self.addresses.iter().filter(|(_, sockets)| sockets.held > 0);
        self.unadmitted.extend(held.map(|(address, _)| *address));
        self.put_off.clear();
        // Inv. CAP: what is granted yet was granted by those who did not know who would be let in meanwhile.
        self.overtaken.extend(&self.busy);
    }

    /// It is time to ask again where that was in vain. Returns whether there is anything to ask.
    pub(super) fn owe_put_off(&mut self) -> bool {
        self.put_off.clear();
        self.owes_admission()
    }

    /// Whether there are addresses about whose sockets the cluster has still to decide, and can.
    pub(super) fn owes_admission(&self) -> bool {
        self.unadmitted.len() > self.put_off.len()
    }

    /// A socket ended.
    pub(super) fn release(&mut self, address: AddressHash) {
        self.change(address, |sockets| sockets.held = sockets.held.saturating_sub(1));
        self.mark(address);
    }

    /// Takes the turn of an address and tells how many sockets it has; `None` while another has the turn.
    pub(super) fn begin(&mut self, address: AddressHash) -> Option<u32> {
        self.busy.insert(address).then(|| self.held(address))
    }

    /// Takes the turns of up to `max` addresses about whose sockets the cluster has still to decide, to ask about all that
    /// they have now: nothing else is to be told of them then. Who is let in alone from here on is asked about another
    /// time.
    pub(super) fn begin_admissions(&mut self, max: usize) -> Vec<(AddressHash, u32)> {
        let may_be_asked = |address: &&AddressHash| !self.busy.contains(*address) && !self.put_off.contains(*address);
        let free = self.unadmitted.iter().filter(may_be_asked);
        let batch: Vec<_> = free.take(max).map(|address| (*address, self.held(*address))).collect();
        for (address, _) in &batch {
            self.unadmitted.remove(address);
            self.dirty.remove(address);
            self.busy.insert(*address);
        }
        batch
    }

    /// Gives the turn back. Returns whether the address has to be told (again).
    pub(super) fn end(&mut self, address: AddressHash, told: Told) -> bool {
        self.busy.remove(&address);
        match told {
            Told::Yes => {}
            Told::Unsure => self.mark(address),
            Told::TooMany => self.owe_admission(address),
            Told::Unreadable => self.put_off(address),
        }
        if self.overtaken.remove(&address) {
            self.owe_admission(address);
        }
        self.dirty.contains(&address)
    }

    /// Takes the turns of up to `max` dirty addresses, with their counts; their marks are gone.
    // Inv. CAP: a count that the cluster has not admitted is not stated as a fact.
    pub(super) fn begin_batch(&mut self, max: usize) -> Vec<(AddressHash, u32)> {
        let free = self.dirty.iter().filter(|address| self.may_be_told(address));
        let batch: Vec<_> = free.take(max).map(|address| (*address, self.held(*address))).collect();
        for (address, _) in &batch {
            self.dirty.remove(address);
            self.busy.insert(*address);
        }
        batch
    }

    /// Whether [`Self::begin_batch`] would find anything.
    pub(super) fn has_work(&self) -> bool {
        self.dirty.iter().any(|address| self.may_be_told(address))
    }

    fn may_be_told(&self, address: &AddressHash) -> bool {
        !self.busy.contains(address) && !self.unadmitted.contains(address)
    }

    /// Whether everything that can be told has been, and answered.
    pub(super) fn is_told(&self) -> bool {
        self.busy.is_empty() && self.dirty.is_subset(&self.put_off)
    }

    /// Every address is to be told anew, also those that have left of late.
    #[cfg(test)]
    pub(super) fn mark_all(&mut self) {
        self.dirty.extend(self.addresses.iter().filter(|(_, sockets)| sockets.held > 0).map(|(address, _)| *address));
        self.mark_left();
    }

    /// The addresses that have left of late are to be told anew.
    // Inv. CAP: a place that was given back stays given back.
    pub(super) fn mark_left(&mut self) {
        for address in self.left.iter().flatten() {
            // Inv. BOUND
            if self.dirty.len() < DIRTY_MAX {
                self.dirty.insert(*address);
            }
        }
    }

    /// Forgets the addresses that had left when this was called last.
    pub(super) fn forget_left(&mut self) {
        self.left.swap(0, 1);
        self.left[0] = HashSet::new();
    }

    /// How many sockets an address has.
    pub(super) fn held(&self, address: AddressHash) -> u32 {
        self.addresses.get(&address).map_or(0, |sockets| sockets.held)
    }

    fn put_off(&mut self, address: AddressHash) {
        // Without a socket there is nothing to tell: its count is 0 whatever stands there.
        if self.held(address) > 0 {
            self.unadmitted.insert(address);
            self.put_off.insert(address);
        }
    }

    // Inv. BOUND: an address that still has sockets is always marked; it is bounded by them.
    fn mark(&mut self, address: AddressHash) {
        if self.dirty.len() < DIRTY_MAX || self.held(address) > 0 {
            self.dirty.insert(address);
        }
    }

    fn change(&mut self, address: AddressHash, change: impl FnOnce(&mut Sockets)) {
        if let Entry::Occupied(mut entry) = self.addresses.entry(address) {
            change(entry.get_mut());
            if entry.get().held == 0 {
                self.unadmitted.remove(&address);
                self.put_off.remove(&address);
            }
            if *entry.get() == Sockets::default() {
                entry.remove();
                if self.left[0].len() < LEFT_MAX {
                    self.left[0].insert(address);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CAP: u32 = 3;

    fn address(n: u8) -> AddressHash {
        AddressHash([n; 16])
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        /// A handshake arrives, and is refused here when the address is full.
        Arrive(u8),
        /// The oldest waiting handshake of the address takes its turn.
        Ask(u8),
        /// The cluster answers the request about the address, or does not (it was carried out or not).
        Answer(u8, Option<bool>),
        Close(u8),
        Flush(usize),
        FlushAnswer(Option<bool>),
    }

    fn step() -> impl Strategy<Value = Step> {
        let who = 0..3_u8;
        prop_oneof![
            3 => who.clone().prop_map(Step::Arrive),
            3 => who.clone().prop_map(Step::Ask),
            3 => (who.clone(), any::<Option<bool>>()).prop_map(|(a, o)| Step::Answer(a, o)),
            3 => who.prop_map(Step::Close),
            1 => (1..3_usize).prop_map(Step::Flush),
            1 => any::<Option<bool>>().prop_map(Step::FlushAnswer),
        ]
    }

    /// A node, its view (`counts`) and what the cluster believes (`told`), driven by random steps.
    #[derive(Default)]
    struct World {
        counts: Counts,
        told: HashMap<AddressHash, u32>,
        waiting: HashMap<AddressHash, u32>,
        asking: HashMap<AddressHash, u32>,
        batch: Vec<(AddressHash, u32)>,
        open: HashMap<AddressHash, u32>,
    }

    impl World {
        fn take(&mut self, step: Step) {
            match step {
                Step::Arrive(n) if self.counts.reserve(address(n), CAP).is_ok() => {
                    *self.waiting.entry(address(n)).or_default() += 1;
                }
                Step::Ask(n) if self.waiting.get(&address(n)).is_some_and(|waiting| *waiting > 0) => {
                    if let Some(held) = self.counts.begin(address(n)) {
                        *self.waiting.entry(address(n)).or_default() -= 1;
                        self.asking.insert(address(n), held + 1);
                    }
                }
                // Some(true): granted. Some(false): no answer, yet carried out. None: no answer, nothing done.
                Step::Answer(n, outcome) => {
                    let Some(wanted) = self.asking.remove(&address(n)) else { return };
                    if outcome.is_some() {
                        self.told.insert(address(n), wanted);
                    }
                    let told = if outcome == Some(true) { Told::Yes } else { Told::Unsure };
                    self.counts.hold(address(n), told);
                    self.counts.end(address(n), told);
                    *self.open.entry(address(n)).or_default() += 1;
                }
                Step::Close(n) if self.open.get(&address(n)).is_some_and(|open| *open > 0) => {
                    *self.open.entry(address(n)).or_default() -= 1;
                    self.counts.release(address(n));
                }
                Step::Flush(max) if self.batch.is_empty() => self.batch = self.counts.begin_batch(max),
                Step::FlushAnswer(outcome) => {
                    for (address, count) in std::mem::take(&mut self.batch) {
                        if outcome.is_some() {
                            self.told.insert(address, count);
                        }
                        self.counts.end(address, if outcome == Some(true) { Told::Yes } else { Told::Unsure });
                    }
                }
                _ => {}
            }
        }
    }

    proptest! {
        // Inv. CAP: never more sockets than the cap, and what the cluster believes is the truth as soon as no
        // request is open and nothing is dirty, whatever was lost, late or raced.
        #[test]
        fn the_cluster_learns_the_truth(steps in proptest::collection::vec(step(), 0..120)) {
            let mut world = World::default();
            for step in steps {
                world.take(step);
                prop_assert!(world.open.values().all(|open| *open <= CAP));
                for (address, open) in &world.open {
                    prop_assert_eq!(world.counts.held(*address), *open);
                    let settled = !world.asking.contains_key(address)
                        && !world.counts.busy.contains(address)
                        && !world.counts.dirty.contains(address);
                    if settled {
                        prop_assert_eq!(world.told.get(address).copied().unwrap_or(0), *open);
                    }
                }
            }
            for n in 0..3 {
                world.take(Step::Answer(n, Some(true)));
            }
            world.take(Step::FlushAnswer(None));
            while world.counts.has_work() {
                world.take(Step::Flush(2));
                world.take(Step::FlushAnswer(Some(true)));
            }
            for (address, open) in &world.open {
                prop_assert_eq!(world.told.get(address).copied().unwrap_or(0), *open);
            }
            prop_assert!(world.counts.busy.is_empty());
        }
    }

    #[test]
    fn an_address_without_sockets_leaves_nothing_behind() {
        let mut counts = Counts::default();
        counts.reserve(address(1), CAP).expect("room");
        counts.unreserve(address(1));
        counts.reserve(address(1), CAP).expect("room");
        counts.hold(address(1), Told::Yes);
        counts.release(address(1));
        assert_eq!(counts.begin_batch(9), [(address(1), 0)]);
        counts.end(address(1), Told::Yes);
        assert!(counts.addresses.is_empty() && counts.dirty.is_empty() && counts.busy.is_empty());
    }

    // Inv. CAP
    #[test]
    fn who_has_left_of_late_is_told_again_with_all_others() {
        let mut counts = Counts::default();
        counts.hold(address(1), Told::Yes);
        counts.release(address(1));
        counts.reserve(address(2), CAP).expect("room");
        counts.unreserve(address(2));
        assert_eq!(counts.begin_batch(9), [(address(1), 0)]);
        counts.end(address(1), Told::Yes);
        counts.forget_left();
        counts.mark_all();
        let mut again = counts.begin_batch(9);
        again.sort_unstable();
        assert_eq!(again, [(address(1), 0), (address(2), 0)]);
        counts.end(address(1), Told::Yes);
        counts.end(address(2), Told::Yes);
        counts.forget_left();
        counts.mark_all();
        assert!(!counts.has_work(), "but not for ever");
    }

    // Inv. CAP
    #[test]
    fn what_was_let_in_alone_is_asked_about_before_it_is_told() {
        let mut counts = Counts::default();
        counts.hold(address(1), Told::Yes);
        counts.hold_alone(address(1));
        assert!(!counts.has_work() && counts.begin_batch(9).is_empty());
        assert_eq!(counts.begin_admissions(9), [(address(1), 2)]);
        assert!(!counts.owes_admission() && counts.begin_admissions(9).is_empty());
        assert!(!counts.dirty.contains(&address(1)), "the number before the answer is not told after it");
        // One more while the question is open is another question.
        counts.hold_alone(address(1));
        assert!(counts.begin_admissions(9).is_empty(), "but not at the same time");
        counts.end(address(1), Told::Yes);
        // An answer that was lost, too; but not about sockets that are gone.
        assert_eq!(counts.begin_admissions(9), [(address(1), 3)]);
        counts.owe_admission(address(1));
        counts.end(address(1), Told::Unsure);
        assert!(counts.owes_admission());
        (0..3).for_each(|_| counts.release(address(1)));
        assert!(!counts.owes_admission());
        assert_eq!(counts.begin_batch(9), [(address(1), 0)]);
    }

    // Inv. CAP
    #[test]
    fn who_was_out_asks_about_everything_and_tells_nothing_before() {
        let mut counts = Counts::default();
        for n in 1..=3 {
            counts.hold(address(n), Told::Yes);
        }
        counts.release(address(3));
        counts.mark_all();
        counts.owe_all();
        assert_eq!(counts.begin_batch(9), [(address(3), 0)], "who has left may be told");
        let first = counts.begin_admissions(1);
        let second = counts.begin_admissions(9);
        assert_eq!((first.len(), second.len(), counts.owes_admission()), (1, 1, false));
        for (address, held) in first.iter().chain(&second) {
            assert_eq!(*held, 1);
            counts.end(*address, Told::Yes);
        }
        assert!(!counts.has_work(), "what was asked about is told by that");
    }

    // Inv. CAP: whoever is over the cap asks until it is not; what cannot be asked about waits apart.
    #[test]
    fn the_surplus_is_asked_about_until_it_is_gone() {
        let mut counts = Counts::default();
        (0..3).for_each(|_| counts.hold_alone(address(1)));
        assert_eq!(counts.begin_admissions(9), [(address(1), 3)]);
        counts.end(address(1), Told::TooMany);
        counts.release(address(1));
        assert!(!counts.has_work(), "what is too many is no fact to be told");
        assert_eq!(counts.begin_admissions(9), [(address(1), 2)]);
        counts.end(address(1), Told::Yes);
        assert!(!counts.owes_admission() && !counts.has_work());

        counts.owe_all();
        assert_eq!(counts.begin_admissions(9), [(address(1), 2)]);
        counts.end(address(1), Told::Unreadable);
        counts.hold_alone(address(1));
        assert!(!counts.owes_admission() && counts.begin_admissions(9).is_empty() && counts.is_told());
        counts.hold_alone(address(2));
        assert!(counts.owes_admission());
        assert_eq!(counts.begin_admissions(9), [(address(2), 1)]);
        counts.end(address(2), Told::Yes);
        assert!(counts.owe_put_off());
        assert_eq!(counts.begin_admissions(9), [(address(1), 3)]);
        counts.end(address(1), Told::Unreadable);
        (0..3).for_each(|_| counts.release(address(1)));
        assert_eq!(counts.begin_batch(9), [(address(1), 0)], "what has left may be told");
        counts.end(address(1), Told::Unreadable);
        assert!(counts.put_off.is_empty() && counts.unadmitted.is_empty() && !counts.has_work());
    }

    // Inv. BOUND
    #[test]
    fn marks_are_bounded_but_for_addresses_with_sockets() {
        let mut counts = Counts::default();
        let nth = |n: u32| AddressHash(std::array::from_fn(|i| n.to_be_bytes()[i % 4]));
        for n in 0..=u32::try_from(DIRTY_MAX).expect("fits") {
            counts.release(nth(n));
        }
        assert_eq!(counts.dirty.len(), DIRTY_MAX);
        counts.hold(nth(u32::MAX), Told::Unsure);
        assert!(counts.dirty.contains(&nth(u32::MAX)));
    }
}
