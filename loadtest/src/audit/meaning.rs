//! What texts mean to the judge, understood once for everybody.
//!
//! Ten thousand clients get the same bytes, and at a million deliveries a second a tester that parses each of them is
//! what is measured. So texts are remembered ([`Meanings`]), and whole reads too ([`Chunks`]): what one client was
//! sent in one piece, the next one is mostly sent in the same piece, and comparing is all that is left to do.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::rc::Rc;

use serde::Deserialize;
use shared::time::Timestamp;

/// Texts that are remembered at a time; a broadcast is read by all clients within a moment.
const MEANINGS_MAX: usize = 4096;
/// Whole reads that are remembered: clients are at most a few writes apart.
const CHUNKS_MAX: usize = 8;

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

/// What a whole read brought, when it was text messages and nothing else.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// Each message's meaning and length.
    pub(crate) messages: Vec<(Meaning, u32)>,
    /// The numbers of the events, when it is events without a break in their order and nothing else.
    pub(crate) run: Option<RangeInclusive<u64>>,
    /// Of the payloads.
    pub(crate) payload_bytes: u64,
}

impl Chunk {
    /// Sums up.
    pub(crate) fn new(messages: Vec<(Meaning, u32)>) -> Self {
        let payload_bytes = messages.iter().map(|(_, bytes)| u64::from(*bytes)).sum();
        let run = run(&messages);
        Self { messages, run, payload_bytes }
    }
}

fn run(messages: &[(Meaning, u32)]) -> Option<RangeInclusive<u64>> {
    let mut numbers = messages.iter().map(|(meaning, _)| match meaning {
        Meaning::Event { number } => *number,
        _ => None,
    });
    let first = numbers.next()??;
    let last = numbers.try_fold(first, |last, number| number.filter(|number| *number == last + 1))?;
    Some(first..=last)
}

/// Remembers the last reads.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    known: Vec<(Box<[u8]>, Rc<Chunk>)>,
    oldest: usize,
}

impl Chunks {
    /// What these bytes were found to be the last time.
    pub(crate) fn find(&self, bytes: &[u8]) -> Option<Rc<Chunk>> {
        self.known.iter().find(|(known, _)| known.as_ref() == bytes).map(|(_, chunk)| chunk.clone())
    }

    /// Remembers these bytes instead of the oldest.
    pub(crate) fn remember(&mut self, bytes: &[u8], chunk: Chunk) {
        let known = (bytes.into(), Rc::new(chunk));
        if self.known.len() < CHUNKS_MAX {
            self.known.push(known);
        } else if let Some(place) = self.known.get_mut(self.oldest) {
            *place = known;
            self.oldest = (self.oldest + 1) % CHUNKS_MAX;
        }
    }
}

#[cfg(test)]
mod tests {
    use shared::field::{Name, PagePath};
    use shared::message::{self, Freshness, NewEvent, PublicMessage, Snapshot};

    use super::*;

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
        check(message::encode_update(snapshot, Freshness::Fresh), Meaning::Update { second, stale: false });
        check(message::encode_update(snapshot, Freshness::Stale), Meaning::Update { second, stale: true });
        let page = |path: &str| {
            PublicMessage::NewEvent(NewEvent {
                event_type: Name::parse("x", Some("page_view")).expect("a name"),
                page_url: PagePath::parse("x", Some(path)).expect("a path"),
                timestamp,
            })
        };
        check(page("/n/17").encode(), Meaning::Event { number: Some(17) });
        check(page("/cv").encode(), Meaning::Event { number: None });
        check(page("/\"\\").encode(), Meaning::Event { number: None });
        check(message::encode_ping(timestamp), Meaning::Ping);
        check(message::encode_gap(None, None), Meaning::Gap);
        for wrong in ["", "{}", "[]", r#"{"type":"init"}"#, r#"{"type":"init","data":{}}"#, r#"{"type":"hello"}"#] {
            assert_eq!(understand(wrong.as_bytes()), Meaning::Malformed, "{wrong}");
        }
    }

    #[test]
    fn a_read_of_consecutive_events_is_a_run() {
        let event = |number| (Meaning::Event { number }, 10);
        let check = |messages: &[(Meaning, u32)], want: Option<RangeInclusive<u64>>| {
            assert_eq!(Chunk::new(messages.to_vec()).run, want, "{messages:?}");
        };
        check(&[], None);
        check(&[event(Some(7))], Some(7..=7));
        check(&[event(Some(7)), event(Some(8)), event(Some(9))], Some(7..=9));
        check(&[event(Some(7)), event(Some(9))], None);
        check(&[event(Some(7)), event(Some(7))], None);
        check(&[event(Some(7)), event(None)], None);
        check(&[event(Some(7)), (Meaning::Ping, 10), event(Some(8))], None);
        assert_eq!(Chunk::new(vec![event(Some(1)); 3]).payload_bytes, 30);
    }

    #[test]
    fn a_read_is_remembered_until_newer_ones_push_it_out() {
        let mut chunks = Chunks::default();
        for n in 0..=CHUNKS_MAX {
            let byte = u8::try_from(n).expect("few");
            chunks.remember(&[byte], Chunk::new(vec![(Meaning::Ping, u32::from(byte))]));
        }
        assert_eq!(chunks.find(&[0]), None);
        for n in 1..=8 {
            assert_eq!(chunks.find(&[n]).expect("remembered").payload_bytes, u64::from(n));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text: Vec<u8>) {
            understand(&text);
        }
    }
}
