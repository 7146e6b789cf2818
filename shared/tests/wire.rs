//! Inv. WIRE: what a client reads, byte for byte.
//!
//! The examples of the protocol's public page stand here as they stand there; without its white space each of them
//! is exactly what the encoder writes. Clients in the field were written against that page: a change that fails here
//! is a change of the contract.

use shared::close;
use shared::field::{Name, PagePath};
use shared::ids::{EntryDigest, EventId, StreamId};
use shared::message::{
    Freshness, LetterGenerated, MessageKinds, NewEvent, Percentage, PublicMessage, Snapshot, ThemeStats, encode_gap,
    encode_init, encode_ping, encode_update, with_id,
};
use shared::time::Timestamp;

/// Fails unless `encoded` is the page's example without its line breaks and indentation.
#[track_caller]
fn check(encoded: &str, example: &str) {
    let compact: String = example.lines().map(|line| line.trim_start().replacen("\": ", "\":", 1)).collect();
    assert_eq!(encoded, compact);
    // The page's clients parse it; what they see must be the example's value.
    let values = [encoded, example].map(|text| serde_json::from_str::<serde_json::Value>(text).expect("JSON"));
    assert_eq!(values[0], values[1]);
}

fn time(text: &str) -> Timestamp {
    Timestamp::parse(text).expect("a time")
}

fn name(text: &str) -> Name {
    Name::parse("name", Some(text)).expect("a name")
}

fn five() -> Snapshot {
    Snapshot { active_visitors: 5, timestamp: time("2025-12-08T10:30:00Z") }
}

fn id() -> EventId {
    EventId { stream: StreamId { ms: 1_765_189_800_123, seq: 7 }, digest: EntryDigest::of("new_event", b"{}") }
}

#[test]
fn init() {
    let example = r#"{
  "type": "init",
  "data": {
    "active_visitors": 5,
    "timestamp": "2025-12-08T10:30:00Z"
  }
}"#;
    check(&encode_init(five(), Freshness::Fresh), example);
}

#[test]
fn realtime_update() {
    let example = r#"{
  "type": "realtime_update",
  "data": {
    "active_visitors": 5,
    "timestamp": "2025-12-08T10:30:00Z"
  }
}"#;
    check(&encode_update(five(), Freshness::Fresh), example);
    check(&PublicMessage::RealtimeUpdate(five()).encode(), example);
}

#[test]
fn new_event() {
    let message = PublicMessage::NewEvent(NewEvent {
        event_type: name("page_view"),
        page_url: PagePath::parse("page_url", Some("/cv")).expect("a path"),
        timestamp: time("2025-12-08T10:30:05Z"),
    });
    let example = r#"{
  "type": "new_event",
  "data": {
    "event_type": "page_view",
    "page_url": "/cv",
    "timestamp": "2025-12-08T10:30:05Z"
  }
}"#;
    check(&message.encode(), example);
}

#[test]
fn theme_stats() {
    let percentage = Percentage::from_percent(25.8).expect("a share");
    let message = PublicMessage::ThemeStats(ThemeStats { theme: name("backend"), count: 88, percentage });
    let example = r#"{
  "type": "theme_stats",
  "data": {
    "theme": "backend",
    "count": 88,
    "percentage": 25.8
  }
}"#;
    check(&message.encode(), example);
}

#[test]
fn letter_generated() {
    let message = PublicMessage::LetterGenerated(LetterGenerated {
        letter_type: name("motivation"),
        timestamp: time("2025-12-08T10:31:00Z"),
    });
    let example = r#"{
  "type": "letter_generated",
  "data": {
    "letter_type": "motivation",
    "timestamp": "2025-12-08T10:31:00Z"
  }
}"#;
    check(&message.encode(), example);
}

#[test]
fn ping() {
    let example = r#"{
  "type": "ping",
  "timestamp": "2025-12-08T10:30:30Z"
}"#;
    check(&encode_ping(time("2025-12-08T10:30:30Z")), example);
}

#[test]
fn stale_is_the_last_key_of_data() {
    let update = encode_update(five(), Freshness::Stale);
    let golden =
        r#"{"type":"realtime_update","data":{"active_visitors":5,"timestamp":"2025-12-08T10:30:00Z","stale":true}}"#;
    assert_eq!(update, golden);
    assert_eq!(encode_init(five(), Freshness::Stale), golden.replace("realtime_update", "init"));
}

#[test]
fn an_id_is_the_last_key_of_the_envelope() {
    // The digest as `printf 'new_event\0{}' | sha256sum` begins.
    let golden = r#"{"type":"init","data":{"active_visitors":5,"timestamp":"2025-12-08T10:30:00Z"},"id":"1765189800123-7-c2fa"}"#;
    assert_eq!(with_id(&encode_init(five(), Freshness::Fresh), id()), golden);
}

#[test]
fn a_gap_says_from_where_to_where() {
    let to = EventId { stream: StreamId { ms: 1_765_189_801_000, seq: 0 }, ..id() };
    let golden = r#"{"type":"gap","from":"1765189800123-7-c2fa","to":"1765189801000-0-c2fa"}"#;
    assert_eq!(encode_gap(Some(id()), Some(to)), golden);
    assert_eq!(encode_gap(None, Some(to)), r#"{"type":"gap","from":null,"to":"1765189801000-0-c2fa"}"#);
}

#[test]
fn draining_says_when_to_come_back() {
    assert_eq!(close::draining_text(2750), r#"{"retry_after_ms":2750}"#);
}

#[test]
fn shares_have_one_decimal_always() {
    let check = |percentage: Percentage, golden: &str| {
        let stats = ThemeStats { theme: name("t"), count: 1, percentage };
        let data = PublicMessage::ThemeStats(stats).encode_data();
        assert_eq!(data, format!(r#"{{"theme":"t","count":1,"percentage":{golden}}}"#));
    };
    check(Percentage::of(0, 0), "0.0");
    check(Percentage::of(0, 3), "0.0");
    check(Percentage::of(1, 2), "50.0");
    check(Percentage::of(1, 3), "33.3");
    check(Percentage::of(2, 3), "66.7");
    check(Percentage::of(1, 16), "6.3");
    check(Percentage::of(1, 2001), "0.0");
    check(Percentage::of(1, 2000), "0.1");
    check(Percentage::of(1, 1), "100.0");
    check(Percentage::of(7, 3), "100.0");
    check(Percentage::of(u64::MAX, u64::MAX), "100.0");
    // Every one of the 1001 values has the one spelling.
    for tenths in 0..=1000u32 {
        let text = format!("{}.{}", tenths / 10, tenths % 10);
        check(Percentage::from_percent(f64::from(tenths) / 10.0).expect("a share"), &text);
        check(Percentage::of(u64::from(tenths), 1000), &text);
    }
    for wrong in [-0.1, 100.06, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert_eq!(Percentage::from_percent(wrong), None, "{wrong}");
    }
}

#[test]
fn what_always_comes_cannot_be_filtered_away() {
    use shared::message::MessageKind::{Gap, Init, NewEvent, Ping, RealtimeUpdate, ThemeStats};
    let kinds = MessageKinds::parse("new_event,theme_stats").expect("a list");
    for kind in [Init, Ping, Gap, NewEvent, ThemeStats] {
        assert!(kinds.contains(kind), "{kind:?}");
    }
    assert!(!kinds.contains(RealtimeUpdate));
    for bad in ["", ",", "new_event,", "New_Event", "new_event, theme_stats", "everything", "new_event;theme_stats"] {
        assert!(MessageKinds::parse(bad).is_err(), "{bad:?}");
    }
}
