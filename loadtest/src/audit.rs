//! The judge: what one client saw, against what every client is promised.
//!
//! `init` comes first; a slot's number comes once, and numbers move forward; events come once each, in the order of
//! publishing, and none is missing between the first and the last that a client saw, unless the server said so (a
//! `gap`, or a fresh `init` after a stall). Events carry their number in their page: `/n/17`.
//!
//! Ten thousand clients get the same bytes. So a text is understood once ([`Meanings`] remembers), and what a client
//! needs is a few words of state. What an event's absence means is known at the end only: a producer's request that
//! failed may or may not have been carried out, so its numbers are nobody's loss ([`Auditor::lost`]).

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;

use serde::Deserialize;
use shared::time::Timestamp;

/// Texts that are remembered at a time; a broadcast is read by all clients within a moment.
const MEANINGS_MAX: usize = 4096;
/// Holes that are remembered per client; what comes on top is one finding more or less, of many.
const HOLES_MAX: usize = 64;

/// What a text from the server means to the judge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// First message: a snapshot of this Unix second.
    Init { second: u64 },
    /// A snapshot of this Unix second; `stale` when it repeats an old one.
    Update { second: u64, stale: bool },
    /// An event; numbered when it is one of ours.
    Event { number: Option<u64> },
    /// A theme's numbers.
    Theme,
    /// A letter.
    Letter,
    /// To be answered.
    Ping,
    /// The server says that something is missing.
    Gap,
    /// Nothing that the protocol knows.
    Malformed,
}

/// The messages that a server of ours sends, as far as the judge looks.
#[derive(Deserialize)]
struct Message<'a> {
    r#type: &'a str,
    data: Option<Data<'a>>,
}

#[derive(Deserialize)]
struct Data<'a> {
    timestamp: Option<&'a str>,
    page_url: Option<std::borrow::Cow<'a, str>>,
    #[serde(default)]
    stale: bool,
}

/// Understands one text.
pub(crate) fn understand(text: &[u8]) -> Meaning {
    let Ok(message) = serde_json::from_slice::<Message<'_>>(text) else { return Meaning::Malformed };
    let second = message
        .data
        .as_ref()
        .and_then(|data| data.timestamp)
        .and_then(|text| Timestamp::parse(text).ok())
        .map(Timestamp::unix_seconds);
    match (message.r#type, message.data, second) {
        ("init", Some(_), Some(second)) => Meaning::Init { second },
        ("realtime_update", Some(data), Some(second)) => Meaning::Update { second, stale: data.stale },
        ("new_event", Some(Data { page_url: Some(page), .. }), Some(_)) => {
            Meaning::Event { number: page.strip_prefix("/n/").and_then(|number| number.parse().ok()) }
        }
        ("theme_stats", Some(_), None) => Meaning::Theme,
        ("letter_generated", Some(_), Some(_)) => Meaning::Letter,
        ("ping", None, _) => Meaning::Ping,
        ("gap", None, _) => Meaning::Gap,
        _ => Meaning::Malformed,
    }
}

/// Remembers what texts mean.
#[derive(Debug, Default)]
pub(crate) struct Meanings(HashMap<Box<[u8]>, Meaning>);

impl Meanings {
    /// What `text` means.
    pub(crate) fn of(&mut self, text: &[u8]) -> Meaning {
        if let Some(meaning) = self.0.get(text) {
            return *meaning;
        }
        if self.0.len() >= MEANINGS_MAX {
            self.0.clear();
        }
        let meaning = understand(text);
        self.0.insert(text.into(), meaning);
        meaning
    }
}

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
    fn of(self, second: u64) -> Option<u64> {
        let whole = self.interval_ms > 0 && self.interval_ms.is_multiple_of(1000);
        whole.then(|| second * 1000 / self.interval_ms)
    }
}

/// What is known of one client.
#[derive(Debug, Default)]
pub(crate) struct Auditor {
    /// The second of the last snapshot; none before `init`.
    second: Option<u64>,
    /// Number of the last event.
    last: Option<u64>,
    /// Which of the 64 numbers up to `last` came, `last` in the lowest bit.
    seen: u64,
    /// The server has announced that something is missing: the next jump is no loss.
    excused: bool,
    /// Numbers that were skipped and have not come late; empty, so without memory, while all goes well.
    holes: Vec<RangeInclusive<u64>>,
}

impl Auditor {
    /// Takes the next message; tells what was wrong with it.
    pub(crate) fn judge(&mut self, meaning: Meaning, slots: Slots) -> Option<Finding> {
        if self.second.is_none() && !matches!(meaning, Meaning::Init { .. } | Meaning::Malformed) {
            return Some(Finding::BeforeInit);
        }
        match meaning {
            Meaning::Init { second } => {
                self.excused = self.second.is_some();
                self.second = Some(second);
                None
            }
            Meaning::Update { second, stale } => self.snapshot(second, stale, slots),
            Meaning::Event { number: Some(number) } => self.event(number),
            Meaning::Gap => {
                self.excused = true;
                None
            }
            Meaning::Malformed => Some(Finding::Malformed),
            Meaning::Event { number: None } | Meaning::Theme | Meaning::Letter | Meaning::Ping => None,
        }
    }

    /// Whether `init` came.
    pub(crate) fn has_begun(&self) -> bool {
        self.second.is_some()
    }

    /// The last numbered event that came.
    pub(crate) fn last(&self) -> Option<u64> {
        self.last
    }

    /// How many events never came, not counting those that the producer gave up.
    pub(crate) fn lost(&self, given_up: &Numbers) -> u64 {
        self.holes.iter().map(|hole| hole.end() - hole.start() + 1 - given_up.within(hole)).sum()
    }

    fn snapshot(&mut self, second: u64, stale: bool, slots: Slots) -> Option<Finding> {
        let last = self.second.replace(second)?;
        if stale && second == last {
            return None;
        }
        let same_slot = slots.of(second).is_some_and(|slot| slots.of(last) == Some(slot));
        match second.cmp(&last) {
            std::cmp::Ordering::Less if !same_slot => {
                self.second = Some(last);
                Some(Finding::SlotBack)
            }
            _ if same_slot => Some(Finding::DuplicateSlot),
            _ => None,
        }
    }

    fn event(&mut self, number: u64) -> Option<Finding> {
        let excused = std::mem::take(&mut self.excused);
        let Some(last) = self.last.replace(number) else {
            self.seen = 1;
            return None;
        };
        if number > last {
            let step = number - last;
            self.seen = self.seen.checked_shl(u32::try_from(step).unwrap_or(u32::MAX)).unwrap_or(0) | 1;
            if step > 1 && !excused {
                self.open_hole(last + 1..=number - 1);
            }
            return None;
        }
        self.last = Some(last);
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
        if self.holes.len() < HOLES_MAX {
            self.holes.push(hole);
        }
    }

    /// A number came late: it is out of order, and not lost.
    fn close_hole(&mut self, number: u64) {
        let Some(at) = self.holes.iter().position(|hole| hole.contains(&number)) else { return };
        let hole = self.holes.swap_remove(at);
        if *hole.start() < number {
            self.holes.push(*hole.start()..=number - 1);
        }
        if number < *hole.end() {
            self.holes.push(number + 1..=*hole.end());
        }
    }
}

/// A set of numbers, as ranges that do not overlap.
#[derive(Debug, Default)]
pub(crate) struct Numbers(BTreeMap<u64, u64>);

impl Numbers {
    /// Adds numbers that are not in it.
    pub(crate) fn add(&mut self, numbers: RangeInclusive<u64>) {
        self.0.insert(*numbers.start(), *numbers.end());
    }

    /// How many of the set lie in `range`.
    fn within(&self, range: &RangeInclusive<u64>) -> u64 {
        let reaching = self.0.range(..=range.end()).rev().take_while(|(_, end)| *end >= range.start());
        reaching.map(|(start, end)| end.min(range.end()) - start.max(range.start()) + 1).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shared::field::{Name, PagePath};
    use shared::message::{self, Freshness, NewEvent, PublicMessage, Snapshot};

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
    fn reads_what_the_gateway_writes() {
        let timestamp = Timestamp::parse("2025-12-08T10:30:05Z").expect("a time");
        let second = timestamp.unix_seconds();
        let snapshot = Snapshot { active_visitors: 5, timestamp };
        let check = |text: String, want: Meaning| {
            assert_eq!(understand(text.as_bytes()), want, "{text}");
            let id = "1-0-abcd".parse().expect("an id");
            assert_eq!(understand(message::with_id(&text, id).as_bytes()), want, "{text} with an id");
        };
        check(message::encode_init(snapshot, Freshness::Fresh), Meaning::Init { second });
        check(message::encode_init(snapshot, Freshness::Stale), Meaning::Init { second });
        check(message::encode_update(snapshot, Freshness::Fresh), update(second));
        check(message::encode_update(snapshot, Freshness::Stale), Meaning::Update { second, stale: true });
        let page = |path: &str| {
            PublicMessage::NewEvent(NewEvent {
                event_type: Name::parse("x", Some("page_view")).expect("a name"),
                page_url: PagePath::parse("x", Some(path)).expect("a path"),
                timestamp,
            })
        };
        check(page("/n/17").encode(), event(17));
        check(page("/cv").encode(), Meaning::Event { number: None });
        check(page("/\"\\").encode(), Meaning::Event { number: None });
        check(message::encode_ping(timestamp), Meaning::Ping);
        check(message::encode_gap(None, None), Meaning::Gap);
        for wrong in ["", "{}", "[]", r#"{"type":"init"}"#, r#"{"type":"init","data":{}}"#, r#"{"type":"hello"}"#] {
            assert_eq!(understand(wrong.as_bytes()), Meaning::Malformed, "{wrong}");
        }
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

    proptest! {
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
        fn no_text_makes_it_panic(text: Vec<u8>, numbers in prop::collection::vec(any::<u64>(), 0..20)) {
            understand(&text);
            let mut messages = vec![BEGUN];
            messages.extend(numbers.into_iter().map(event));
            let mut auditor = Auditor::default();
            for message in messages { auditor.judge(message, SLOTS); }
        }
    }
}
