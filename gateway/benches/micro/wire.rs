//! Encoding and parsing: once per message, whoever many sockets get it, or once per client's message.

use std::hint::black_box;

use shared::event::{EVENTS_MAX, parse_batch};
use shared::field::{Name, PagePath};
use shared::ids::{EntryDigest, EventId, StreamId};
use shared::message::{
    ClientMessage, Freshness, LetterGenerated, NewEvent, ParseBuffers, Percentage, PublicMessage, Snapshot, ThemeStats,
    encode_gap, encode_init, encode_ping, with_id,
};
use shared::time::Timestamp;

use super::meter::{Case, each};

const ROUNDS: u32 = 100;
const PAGE_VIEW: &str = r#"{"event_type":"page_view","page_url":"/cv?utm_source=mail","visitor_id":"v-4f2a9c"}"#;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case { name: "encode/init", run: || each(ROUNDS, snapshot, |s| encode_init(s, Freshness::Fresh)) },
        Case { name: "encode/realtime_update", run: || plain(&PublicMessage::RealtimeUpdate(snapshot())) },
        Case { name: "encode/new_event", run: || plain(&new_event()) },
        Case { name: "encode/theme_stats", run: || plain(&theme_stats()) },
        Case { name: "encode/letter_generated", run: || plain(&letter_generated()) },
        Case { name: "encode/ping", run: || each(ROUNDS, time, encode_ping) },
        Case { name: "encode/gap", run: || each(ROUNDS, || Some(id()), |id| encode_gap(id, id)) },
        Case { name: "encode/realtime_update+id", run: || identified(&PublicMessage::RealtimeUpdate(snapshot())) },
        Case { name: "encode/new_event+id", run: || identified(&new_event()) },
        Case { name: "encode/theme_stats+id", run: || identified(&theme_stats()) },
        Case { name: "encode/letter_generated+id", run: || identified(&letter_generated()) },
        Case { name: "parse/batch of 1", run: || each(ROUNDS, || bytes(PAGE_VIEW), |mut body| parse_batch(&mut body)) },
        Case { name: "parse/batch of 500", run: || each(5, full_batch, |mut body| parse_batch(&mut body)) },
        Case { name: "parse/new_event of the stream", run: public_message },
        Case { name: "parse/client's pong", run: pong },
    ]
}

/// Encodes the message as sockets without ids get it.
fn plain(message: &PublicMessage) -> u32 {
    each(ROUNDS, || message, PublicMessage::encode)
}

/// Adds the id to a message that is encoded already.
fn identified(message: &PublicMessage) -> u32 {
    each(ROUNDS, || message.encode(), |text| with_id(&text, id()))
}

fn public_message() -> u32 {
    let data = new_event().encode_data();
    each(ROUNDS, || bytes(&data), |mut data| PublicMessage::decode("new_event", &mut data))
}

fn pong() -> u32 {
    let mut buffers = ParseBuffers::default();
    let text = || bytes(r#"{"type":"pong","timestamp":"2025-12-08T10:30:30Z"}"#);
    each(ROUNDS, text, |mut text| ClientMessage::parse(&mut text, &mut buffers))
}

fn full_batch() -> Vec<u8> {
    format!("[{}]", vec![PAGE_VIEW; EVENTS_MAX].join(",")).into_bytes()
}

fn bytes(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

pub(crate) fn time() -> Timestamp {
    black_box(Timestamp::from_unix_ms(1_765_189_830_000))
}

pub(crate) fn snapshot() -> Snapshot {
    Snapshot { active_visitors: black_box(1234), timestamp: time() }
}

pub(crate) fn id() -> EventId {
    EventId { stream: StreamId { ms: black_box(1_765_189_830_000), seq: 7 }, digest: EntryDigest::of("", b"") }
}

pub(crate) fn new_event() -> PublicMessage {
    let page_url = PagePath::parse("page_url", Some("/cv/backend")).expect("a path");
    PublicMessage::NewEvent(NewEvent { event_type: name("page_view"), page_url, timestamp: time() })
}

fn theme_stats() -> PublicMessage {
    PublicMessage::ThemeStats(ThemeStats { theme: name("backend"), count: 420, percentage: Percentage::of(420, 970) })
}

fn letter_generated() -> PublicMessage {
    PublicMessage::LetterGenerated(LetterGenerated { letter_type: name("motivation"), timestamp: time() })
}

fn name(text: &str) -> Name {
    Name::parse("name", Some(text)).expect("a name")
}
