//! The judge: what one client saw, against what every client is promised.
//!
//! `init` comes first; a slot's number comes once, and numbers move forward; events come once each, in the order of
//! publishing, and none is missing between the first and the last that a client saw, unless the server said so (a
//! `gap`, or a fresh `init` after a stall). Events carry their number in their page: `/n/17`.
//!
//! What a client needs is a few words of state: a million of them must fit beside the servers. What an event's absence means is known at the end only: a producer's request that
//! failed may or may not have been carried out, so its numbers are nobody's loss ([`Auditor::lost`]).

mod meaning;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) use self::meaning::{Chunk, Chunks, Meaning, Meanings};

/// Holes that are remembered per client; what comes on top is one finding more or less, of many.
const HOLES_MAX: usize = 64;

/// A promise that was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Finding {
    /// Something came before `init`.
    BeforeInit,
    /// The same slot's number came twice, without being called stale.
    DuplicateSlot,
    /// A slot's number came after that of a later slot.
    SlotBack,
    /// An event came twice.
    DuplicateEvent,
    /// An event came after a later one.
    ReorderedEvent,
    /// Events never came, and nothing was said about it.
    LostEvent,
    /// An event took longer than the bound.
    LateEvent,
    /// A message that the protocol does not know.
    Malformed,
}

impl Finding {
    /// For the report.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::BeforeInit => "message before init",
            Self::DuplicateSlot => "slot delivered twice",
            Self::SlotBack => "slot after a later one",
            Self::DuplicateEvent => "event delivered twice",
            Self::ReorderedEvent => "event after a later one",
            Self::LostEvent => "event lost",
            Self::LateEvent => "event late",
            Self::Malformed => "malformed message",
        }
    }
}

/// How a snapshot's second tells its slot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slots {
    interval_ms: u64,
}

impl Slots {
    /// Slots of this length.
    pub(crate) fn new(interval_ms: u64) -> Self {
        Self { interval_ms }
    }

    /// The slot in which `second` lies; `None` when whole seconds do not tell it.
    fn of(self, second: u32) -> Option<u64> {
        let whole = self.interval_ms > 0 && self.interval_ms.is_multiple_of(1000);
        whole.then(|| u64::from(second) * 1000 / self.interval_ms)
    }
}

/// What is known of one client. A million of these must be cheap: no more than 40 bytes, and nothing on the heap
/// while all goes well.
#[derive(Debug, Default)]
pub(crate) struct Auditor {
    /// The last snapshot's Unix second, also of an earlier connection; 0 before the first `init`.
    second: u32,
    /// When the last new snapshot came, in milliseconds on the swarm's clock, plus one; 0: none came.
    state_ms: u32,
    /// The number after that of the last event; 0: none came.
    next: u64,
    /// Which of the 64 numbers before `next` came, the last in the lowest bit.
    seen: u64,
    /// Numbers that were skipped and have not come late.
    holes: Option<Box<Holes>>,
    /// The server has announced that something is missing, or the client was away: the next jump is no loss.
    excused: bool,
    /// `init` came on this connection.
    begun: bool,
    /// How often it came, up to 255: a heartbeat, and a new number.
    pings: u8,
    updates: u8,
}

const _: () = assert!(size_of::<Auditor>() <= 40);

#[derive(Debug, Default)]
struct Holes(Vec<RangeInclusive<u64>>);

impl Auditor {
    /// Takes the next message; tells what was wrong with it.
    pub(crate) fn judge(&mut self, meaning: Meaning, slots: Slots) -> Option<Finding> {
        if !self.has_begun() && !matches!(meaning, Meaning::Init { .. } | Meaning::Malformed) {
            return Some(Finding::BeforeInit);
        }
        match meaning {
            Meaning::Init { second } => {
                self.excused |= self.has_begun();
                self.begun = true;
                self.second = seconds(second);
                None
            }
            Meaning::Update { second, stale } => {
                self.updates = self.updates.saturating_add(u8::from(!stale));
                self.snapshot(seconds(second), stale, slots)
            }
            Meaning::Ping => {
                self.pings = self.pings.saturating_add(1);
                None
            }
            Meaning::Event { number: Some(number) } => self.event(number),
            Meaning::Gap => {
                self.excused = true;
                None
            }
            Meaning::Malformed => Some(Finding::Malformed),
            Meaning::Event { number: None } | Meaning::Theme | Meaning::Letter => None,
        }
    }

    /// Takes events at once, if there is nothing to be said about them: they follow the last one without a break.
    pub(crate) fn continues(&mut self, run: &RangeInclusive<u64>) -> bool {
        let fits = self.next == *run.start() && self.next != 0 && self.has_begun() && !self.excused;
        if fits {
            let count = u32::try_from(run.end() - run.start() + 1).unwrap_or(u32::MAX);
            let new = 1u64.checked_shl(count).map_or(u64::MAX, |bit| bit - 1);
            self.seen = self.seen.checked_shl(count).unwrap_or(0) | new;
            self.next = run.end() + 1;
        }
        fits
    }

    /// Notes that the state came at `now_ms`; tells how long the client has had to do with the one before.
    pub(crate) fn state_came(&mut self, now_ms: u32) -> Option<Duration> {
        let last = std::mem::replace(&mut self.state_ms, now_ms.saturating_add(1));
        (last > 0).then(|| Duration::from_millis(u64::from((now_ms + 1).saturating_sub(last))))
    }

    /// The client has left and will come again: what it misses is nobody's fault, and `init` is due.
    pub(crate) fn away(&mut self) {
        self.begun = false;
        self.excused = true;
    }

    /// Whether no event came since the server announced that some are missing, or the client came again.
    pub(crate) fn is_excused(&self) -> bool {
        self.excused
    }

    /// How many pings and how many new numbers came, at most 255 of each.
    pub(crate) fn heard(&self) -> (u8, u8) {
        (self.pings, self.updates)
    }

    /// Whether `init` came.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun
    }

    /// The second of the newest number that it has seen, on any connection; 0: none.
    pub(crate) fn tick(&self) -> u32 {
        self.second
    }

    /// How long it has had to do with the number that it has, at `now_ms`; `None` before the first.
    pub(crate) fn waits_for_state(&self, now_ms: u32) -> Option<Duration> {
        let since = self.state_ms.checked_sub(1)?;
        Some(Duration::from_millis(u64::from(now_ms.saturating_sub(since))))
    }

    /// The last numbered event that came.
    pub(crate) fn last(&self) -> Option<u64> {
        self.next.checked_sub(1)
    }

    /// How many events never came, not counting those that the producer gave up.
    pub(crate) fn lost(&self, given_up: &Numbers) -> u64 {
        let holes = self.holes.iter().flat_map(|holes| &holes.0);
        holes.map(|hole| hole.end() - hole.start() + 1 - given_up.within(hole)).sum()
    }

    fn snapshot(&mut self, second: u32, stale: bool, slots: Slots) -> Option<Finding> {
        let last = std::mem::replace(&mut self.second, second);
        if stale && second == last {
            return None;
        }
        let same_slot = slots.of(second).is_some_and(|slot| slots.of(last) == Some(slot));
        match second.cmp(&last) {
            std::cmp::Ordering::Less if !same_slot => {
                self.second = last;
                Some(Finding::SlotBack)
            }
            _ if same_slot => Some(Finding::DuplicateSlot),
            _ => None,
        }
    }

    fn event(&mut self, number: u64) -> Option<Finding> {
        let excused = std::mem::take(&mut self.excused);
        let Some(last) = self.last() else {
            (self.next, self.seen) = (number.saturating_add(1), 1);
            return None;
        };
        if number > last {
            let step = number - last;
            self.next = number.saturating_add(1);
            self.seen = self.seen.checked_shl(u32::try_from(step).unwrap_or(u32::MAX)).unwrap_or(0) | 1;
            if step > 1 && !excused {
                self.open_hole(last + 1..=number - 1);
            }
            return None;
        }
        let bit = u32::try_from(last - number).ok().and_then(|back| 1u64.checked_shl(back));
        match bit {
            Some(bit) if self.seen & bit != 0 => Some(Finding::DuplicateEvent),
            _ => {
                self.seen |= bit.unwrap_or(0);
                self.close_hole(number);
                Some(Finding::ReorderedEvent)
            }
        }
    }

    fn open_hole(&mut self, hole: RangeInclusive<u64>) {
        let Holes(holes) = &mut **self.holes.get_or_insert_default();
        if holes.len() < HOLES_MAX {
            holes.push(hole);
        }
    }

    /// A number came late: it is out of order, and not lost.
    fn close_hole(&mut self, number: u64) {
        let Some(Holes(holes)) = self.holes.as_deref_mut() else { return };
        let Some(at) = holes.iter().position(|hole| hole.contains(&number)) else { return };
        let hole = holes.swap_remove(at);
        if *hole.start() < number {
            holes.push(*hole.start()..=number - 1);
        }
        if number < *hole.end() {
            holes.push(number + 1..=*hole.end());
        }
    }
}

/// Unix seconds in four bytes, which last until 2106; never 0.
fn seconds(second: u64) -> u32 {
    u32::try_from(second).unwrap_or(u32::MAX).max(1)
}

/// Whether an event that took so long is late.
pub(crate) fn lateness(age_us: u64, bound: Option<Duration>) -> Option<Finding> {
    let late = bound.is_some_and(|bound| u128::from(age_us) > bound.as_micros());
    late.then_some(Finding::LateEvent)
}

/// A set of numbers, as ranges that do not overlap.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Numbers(BTreeMap<u64, u64>);

impl Numbers {
    /// Adds numbers that are not in it.
    pub(crate) fn add(&mut self, numbers: RangeInclusive<u64>) {
        self.0.insert(*numbers.start(), *numbers.end());
    }

    /// How many of the set lie in `range`.
    pub(crate) fn within(&self, range: &RangeInclusive<u64>) -> u64 {
        let reaching = self.0.range(..=range.end()).rev().take_while(|(_, end)| *end >= range.start());
        reaching.map(|(start, end)| end.min(range.end()) - start.max(range.start()) + 1).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SLOTS: Slots = Slots { interval_ms: 5000 };
    const BEGUN: Meaning = Meaning::Init { second: 1000 };

    fn event(number: u64) -> Meaning {
        Meaning::Event { number: Some(number) }
    }

    fn update(second: u64) -> Meaning {
        Meaning::Update { second, stale: false }
    }

    /// What a client with these messages is found to have suffered, and how many events it lost.
    fn suffered(messages: &[Meaning]) -> (Vec<Finding>, u64) {
        let mut auditor = Auditor::default();
        let findings = messages.iter().filter_map(|message| auditor.judge(*message, SLOTS)).collect();
        (findings, auditor.lost(&Numbers::default()))
    }

    #[test]
    fn a_sound_session_has_no_findings() {
        let session = [BEGUN, event(7), update(1005), Meaning::Ping, event(8), Meaning::Theme, update(1010), event(9)];
        assert_eq!(suffered(&session), (vec![], 0));
    }

    #[test]
    fn each_planted_fault_is_found() {
        let check = |messages: &[Meaning], findings: &[Finding], lost: u64| {
            assert_eq!(suffered(messages), (findings.to_vec(), lost), "{messages:?}");
        };
        check(&[update(1005), BEGUN], &[Finding::BeforeInit], 0);
        check(&[event(1), BEGUN], &[Finding::BeforeInit], 0);
        check(&[Meaning::Ping, BEGUN], &[Finding::BeforeInit], 0);
        check(&[BEGUN, update(1000)], &[Finding::DuplicateSlot], 0);
        check(&[BEGUN, update(1004)], &[Finding::DuplicateSlot], 0);
        check(&[BEGUN, update(1005), update(1005)], &[Finding::DuplicateSlot], 0);
        check(&[BEGUN, update(1010), update(1005)], &[Finding::SlotBack], 0);
        check(&[BEGUN, update(1010), update(1005), update(1010)], &[Finding::SlotBack, Finding::DuplicateSlot], 0);
        check(&[BEGUN, event(1), event(2), event(4)], &[], 1);
        check(&[BEGUN, event(1), event(1)], &[Finding::DuplicateEvent], 0);
        check(&[BEGUN, event(1), event(2), event(1)], &[Finding::DuplicateEvent], 0);
        check(&[BEGUN, event(1), event(3), event(2)], &[Finding::ReorderedEvent], 0);
        check(&[BEGUN, event(5), event(4)], &[Finding::ReorderedEvent], 0);
        check(&[BEGUN, event(1), event(9), event(5)], &[Finding::ReorderedEvent], 6);
        check(&[BEGUN, event(1), event(1000), event(2)], &[Finding::ReorderedEvent], 997);
        check(&[BEGUN, Meaning::Malformed], &[Finding::Malformed], 0);
    }

    #[test]
    fn a_client_that_was_away_has_to_begin_again_and_remembers_its_number() {
        let mut auditor = Auditor::default();
        assert_eq!((auditor.judge(BEGUN, SLOTS), auditor.tick()), (None, 1000));
        auditor.away();
        assert_eq!((auditor.has_begun(), auditor.tick()), (false, 1000));
        assert_eq!(auditor.judge(update(1005), SLOTS), Some(Finding::BeforeInit));
        assert_eq!((auditor.judge(BEGUN, SLOTS), auditor.has_begun()), (None, true));
    }

    #[test]
    fn what_the_server_announces_is_no_loss() {
        assert_eq!(suffered(&[BEGUN, event(1), Meaning::Gap, event(5), event(6)]), (vec![], 0));
        assert_eq!(suffered(&[BEGUN, event(1), Meaning::Init { second: 1005 }, event(5)]), (vec![], 0));
        assert_eq!(suffered(&[BEGUN, event(1), Meaning::Gap, event(5), event(7)]), (vec![], 1), "once only");
    }

    #[test]
    fn a_stale_snapshot_may_repeat() {
        let stale = Meaning::Update { second: 1000, stale: true };
        assert_eq!(suffered(&[BEGUN, stale, stale, update(1020)]), (vec![], 0));
        assert_eq!(suffered(&[BEGUN, update(1005), stale]), (vec![Finding::SlotBack], 0));
    }

    #[test]
    fn what_the_producer_gave_up_is_nobodys_loss() {
        let mut auditor = Auditor::default();
        for message in [BEGUN, event(1), event(10), event(20)] {
            assert_eq!(auditor.judge(message, SLOTS), None);
        }
        let mut given_up = Numbers::default();
        assert_eq!(auditor.lost(&given_up), 17);
        given_up.add(5..=7);
        given_up.add(9..=12);
        given_up.add(19..=30);
        assert_eq!(auditor.lost(&given_up), 17 - 3 - 1 - 2 - 1);
    }

    #[test]
    fn what_takes_longer_than_the_bound_is_late() {
        let bound = Some(Duration::from_millis(2));
        assert_eq!(lateness(2000, bound), None);
        assert_eq!(lateness(2001, bound), Some(Finding::LateEvent));
        assert_eq!(lateness(u64::MAX, None), None);
    }

    #[test]
    fn who_comes_again_has_missed_nothing_and_is_owed_an_init() {
        let mut auditor = Auditor::default();
        for message in [BEGUN, event(1)] {
            assert_eq!(auditor.judge(message, SLOTS), None);
        }
        auditor.away();
        assert_eq!(auditor.judge(event(5), SLOTS), Some(Finding::BeforeInit));
        for message in [BEGUN, event(9), event(11)] {
            assert_eq!(auditor.judge(message, SLOTS), None);
        }
        assert_eq!(auditor.lost(&Numbers::default()), 1);
    }

    #[test]
    fn heartbeats_and_numbers_are_counted() {
        let mut auditor = Auditor::default();
        let stale = Meaning::Update { second: 1005, stale: true };
        for message in [BEGUN, Meaning::Ping, update(1005), stale, Meaning::Ping, event(1)] {
            assert_eq!(auditor.judge(message, SLOTS), None);
        }
        assert_eq!(auditor.heard(), (2, 1));
    }

    #[test]
    fn the_age_of_the_state() {
        let mut auditor = Auditor::default();
        assert_eq!(auditor.state_came(0), None);
        assert_eq!(auditor.state_came(5_100), Some(Duration::from_millis(5_100)));
        assert_eq!(auditor.state_came(10_000), Some(Duration::from_millis(4_900)));
    }

    proptest! {
        #[test]
        fn a_run_is_judged_as_its_events_are(
            before in prop::collection::vec(1u64..100, 0..5), first in 1u64..100, count in 1u64..80, after in 1u64..200,
        ) {
            let (mut at_once, mut one_by_one) = (Auditor::default(), Auditor::default());
            for auditor in [&mut at_once, &mut one_by_one] {
                auditor.judge(BEGUN, SLOTS);
                for number in &before { auditor.judge(event(*number), SLOTS); }
            }
            if at_once.continues(&(first..=first + count - 1)) {
                for number in first..first + count {
                    prop_assert_eq!(one_by_one.judge(event(number), SLOTS), None);
                }
                prop_assert_eq!(at_once.last(), one_by_one.last());
                prop_assert_eq!(at_once.judge(event(after), SLOTS), one_by_one.judge(event(after), SLOTS));
            } else {
                prop_assert_ne!(before.iter().max().copied(), Some(first - 1));
            }
        }

        #[test]
        fn a_loss_is_counted_exactly(kept in prop::collection::btree_set(0u64..200, 2..60)) {
            let mut messages = vec![BEGUN];
            messages.extend(kept.iter().map(|number| event(*number)));
            let (first, last) = (kept.first().expect("two"), kept.last().expect("two"));
            prop_assert_eq!(suffered(&messages), (vec![], last - first + 1 - kept.len() as u64));
        }

        #[test]
        fn one_swap_in_an_order_is_found(count in 2u64..100, at in any::<prop::sample::Index>()) {
            let mut messages: Vec<Meaning> = (0..count).map(event).collect();
            let at = at.index(messages.len() - 1);
            messages.swap(at, at + 1);
            messages.insert(0, BEGUN);
            prop_assert_eq!(suffered(&messages), (vec![Finding::ReorderedEvent], 0));
        }

        #[test]
        fn no_numbers_make_it_panic(numbers in prop::collection::vec(any::<u64>(), 0..20)) {
            let mut messages = vec![BEGUN];
            messages.extend(numbers.into_iter().map(event));
            let mut auditor = Auditor::default();
            for message in messages { auditor.judge(message, SLOTS); }
        }
    }
}
