//! Everything that reads bytes from outside, against bytes from outside: no input makes it panic, what it accepts
//! is within its bounds, and what we write is read back as it was.

use proptest::prelude::*;
use shared::event::{BatchError, EVENTS_MAX, Event, LegacyMessage, parse_batch, parse_legacy};
use shared::field::{Name, PAGE_PATH_BYTES_MAX, PagePath, VISITOR_BYTES_MAX, VisitorId};
use shared::message::{
    ClientMessage, LetterGenerated, MessageKind, MessageKinds, NewEvent, ParseBuffers, Percentage, PublicMessage,
    Snapshot, ThemeStats,
};
use shared::time::Timestamp;

/// The longest body that reaches a parser.
const BODY_BYTES_MAX: usize = 64 * 1024;
const KINDS: [&str; 4] = ["realtime_update", "new_event", "theme_stats", "letter_generated"];

/// Gives the bytes to every parser that takes bytes, and checks what each lets through.
fn feed(bytes: &[u8]) {
    if let Ok(events) = parse_batch(&mut bytes.to_vec()) {
        assert!((1..=EVENTS_MAX).contains(&events.len()));
        for event in events.into_iter().flatten() {
            within_bounds(&event.event);
            assert!(event.visitor.is_none_or(|visitor| (1..=VISITOR_BYTES_MAX).contains(&visitor.as_str().len())));
        }
    }
    match parse_legacy(&mut bytes.to_vec()) {
        Ok(LegacyMessage::Event(event)) => within_bounds(&event.event),
        Ok(LegacyMessage::Public(message)) => reads_back(&message),
        Err(_) => {}
    }
    for kind in KINDS {
        if let Ok(message) = PublicMessage::decode(kind, &mut bytes.to_vec()) {
            assert_eq!(message.kind().as_str(), kind);
            reads_back(&message);
        }
    }
    let mut buffers = ParseBuffers::default();
    let first = ClientMessage::parse(&mut bytes.to_vec(), &mut buffers);
    assert_eq!(ClientMessage::parse(&mut bytes.to_vec(), &mut buffers), first, "used buffers change nothing");
    if first.is_ok() {
        assert!(serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok(), "accepted, and no JSON");
    }
}

fn within_bounds(event: &Event) {
    match event {
        Event::Page { event_type, page_url } => {
            assert_eq!(Name::parse("x", Some(event_type.as_str())).as_ref(), Ok(event_type));
            assert!(page_url.as_str().starts_with('/') && page_url.as_str().len() <= PAGE_PATH_BYTES_MAX);
            assert!(!page_url.as_str().contains(['?', '#']) && !page_url.as_str().starts_with("//"));
        }
        Event::ThemeChange { theme: name } | Event::LetterGenerate { letter_type: name } => {
            assert_eq!(Name::parse("x", Some(name.as_str())).as_ref(), Ok(name));
        }
    }
}

#[track_caller]
fn reads_back(message: &PublicMessage) {
    let mut data = message.encode_data().into_bytes();
    assert_eq!(PublicMessage::decode(message.kind().as_str(), &mut data).as_ref(), Ok(message));
}

#[test]
fn hostile_rows() {
    let pong = r#"{"type":"pong"}"#;
    let rows: Vec<Vec<u8>> = vec![
        vec![],
        b" \n\t".to_vec(),
        b"\xef\xbb\xbf{}".to_vec(),
        b"{\"type\":\"\xff\"}".to_vec(),
        b"{\"type\":\"\xc3\x28\"}".to_vec(),
        b"{\"type\":\"\xed\xa0\x80\"}".to_vec(),
        br#"{"type":"\ud800"}"#.to_vec(),
        br#"{"type":"\udc00\ud800"}"#.to_vec(),
        br#"{"type":"\u0000"}"#.to_vec(),
        b"{\"type\":\"a\0b\"}".to_vec(),
        format!("{pong}{pong}").into_bytes(),
        format!("{pong},").into_bytes(),
        format!("[{pong}").into_bytes(),
        b"{\"type\"".to_vec(),
        b"nul".to_vec(),
        b"1e999".to_vec(),
        b"-".to_vec(),
        b"18446744073709551616".to_vec(),
        b"{\"count\":99999999999999999999999999}".to_vec(),
        "\"".repeat(101).into_bytes(),
        "\\".repeat(4096).into_bytes(),
        vec![0; 4096],
        vec![0xff; 4096],
    ];
    for row in rows {
        feed(&row);
    }
}

#[test]
fn deep_nesting_is_refused_and_ends_no_stack() {
    for open in ["[", r#"{"a":"#, r#"{"type":["#, r#"[{"data":"#] {
        let bytes = open.repeat(BODY_BYTES_MAX / open.len()).into_bytes();
        feed(&bytes);
        assert_eq!(parse_batch(&mut bytes.clone()), Err(BatchError::Malformed), "{open}");
        assert!(ClientMessage::parse(&mut bytes.clone(), &mut ParseBuffers::default()).is_err(), "{open}");
    }
    // Closed again, and in a field that nobody reads.
    let half = BODY_BYTES_MAX / 2 - 100;
    let deep = format!(r#"{{"event_type":"page_view","page_url":"/","x":{}{}}}"#, "[".repeat(half), "]".repeat(half));
    feed(deep.as_bytes());
    assert_eq!(parse_batch(&mut deep.into_bytes()), Err(BatchError::Malformed));
}

#[test]
fn batches_have_bounds() {
    let event = r#"{"event_type":"page_view","page_url":"/"}"#;
    let batch = |count: usize| parse_batch(&mut format!("[{}]", vec![event; count].join(",")).into_bytes());
    assert_eq!(batch(0), Err(BatchError::Empty));
    assert_eq!(batch(EVENTS_MAX).map(|events| events.len()), Ok(EVENTS_MAX));
    assert_eq!(batch(EVENTS_MAX + 1), Err(BatchError::TooMany));
    for scalar in ["null", "1", "\"page_view\"", "true"] {
        assert_eq!(parse_batch(&mut scalar.as_bytes().to_vec()), Err(BatchError::Malformed), "{scalar}");
    }
    let mixed = parse_batch(&mut format!("[{event},1,[],{{}},{event}]").into_bytes()).expect("an array");
    let good: Vec<bool> = mixed.iter().map(Result::is_ok).collect();
    assert_eq!(good, [true, false, false, false, true], "each is judged by itself");
}

#[test]
fn a_field_that_comes_twice_does_not_pass_twice() {
    let twice = r#"{"active_visitors":1,"active_visitors":2,"timestamp":"2025-12-08T10:30:00Z"}"#;
    assert!(PublicMessage::decode("realtime_update", &mut twice.as_bytes().to_vec()).is_err());
    // Producers' objects are read by name; whichever of two wins, it was checked.
    for event in [
        r#"{"event_type":"page_view","page_url":"/","page_url":"?jane"}"#,
        r#"{"event_type":"page_view","page_url":"?jane","page_url":"/"}"#,
    ] {
        for kept in parse_batch(&mut event.as_bytes().to_vec()).expect("an object").into_iter().flatten() {
            within_bounds(&kept.event);
        }
    }
}

#[test]
fn what_clients_say() {
    let mut buffers = ParseBuffers::default();
    let mut check = |text: &str, want: Option<ClientMessage>| {
        let got = ClientMessage::parse(&mut text.as_bytes().to_vec(), &mut buffers).ok();
        assert_eq!(got, want, "{text}");
    };
    let (pong, unknown) = (Some(ClientMessage::Pong), Some(ClientMessage::Unknown));
    check(r#"{"type":"pong","timestamp":"2025-12-08T10:30:30Z"}"#, pong);
    check(r#"{"type":"pong"}"#, pong);
    check(r#" { "timestamp" : 12 , "type" : "pong" } "#, pong);
    check(r#"{"type":"\u0070ong","timestamp":null}"#, pong);
    check(r#"{"type":"Pong"}"#, unknown);
    check(r#"{"type":"subscribe","data":{"type":"pong"}}"#, unknown);
    check(r#"{"data":{"type":"pong"}}"#, unknown);
    check(r#"{"type":["pong"]}"#, unknown);
    check("{}", unknown);
    check("[]", unknown);
    check(r#""pong""#, unknown);
    check("0", unknown);
    check("pong", None);
    check("", None);
    check("{", None);
    check(r#"{"type":"pong"}}"#, None);
    check(r#"{'type':'pong'}"#, None);
}

/// Valid messages, to be bent.
fn sound() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        r#"{"event_type":"page_view","page_url":"/cv?x=1","visitor_id":"abc"}"#,
        r#"[{"event_type":"cv_theme_change","theme":"backend"},{"event_type":"letter_generate","letter_type":"m"}]"#,
        r#"{"type":"page_view","visitor_id":"v","page_url":"/","timestamp":"2025-12-08T10:30:05Z","data":{"a":[1,2]}}"#,
        r#"{"type":"theme_stats","data":{"theme":"backend","count":88,"percentage":25.8}}"#,
        r#"{"active_visitors":5,"timestamp":"2025-12-08T10:30:00Z"}"#,
        r#"{"event_type":"page_view","page_url":"/","timestamp":"2025-12-08T10:30:00+00:00"}"#,
        r#"{"theme":"a","count":1,"percentage":50}"#,
        r#"{"type":"pong","timestamp":"\u00e9\ud83d\ude00"}"#,
    ])
    .prop_map(str::to_owned)
}

fn timestamps() -> impl Strategy<Value = Timestamp> {
    (0u64..253_402_300_800).prop_map(|seconds| Timestamp::from_unix_ms(seconds * 1000))
}

fn names() -> impl Strategy<Value = Name> {
    "[a-z0-9_.-]{1,64}".prop_map(|text| Name::parse("x", Some(&text)).expect("a name"))
}

fn paths() -> impl Strategy<Value = PagePath> {
    "/[^?#\\pC]{0,120}".prop_map(|text| PagePath::parse("x", Some(&text)).expect("a path"))
}

fn messages() -> impl Strategy<Value = PublicMessage> {
    prop_oneof![
        (any::<u64>(), timestamps()).prop_map(|(active_visitors, timestamp)| {
            PublicMessage::RealtimeUpdate(Snapshot { active_visitors, timestamp })
        }),
        (names(), paths(), timestamps()).prop_map(|(event_type, page_url, timestamp)| {
            PublicMessage::NewEvent(NewEvent { event_type, page_url, timestamp })
        }),
        (names(), any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(theme, count, part, whole)| {
            PublicMessage::ThemeStats(ThemeStats { theme, count, percentage: Percentage::of(part, whole) })
        }),
        (names(), timestamps()).prop_map(|(letter_type, timestamp)| {
            PublicMessage::LetterGenerated(LetterGenerated { letter_type, timestamp })
        }),
    ]
}

proptest! {
    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        feed(&bytes);
    }

    #[test]
    fn bent_messages(text in sound(), at: prop::sample::Index, with in prop::collection::vec(any::<u8>(), 0..4), cut in 0usize..4) {
        let mut bytes = text.into_bytes();
        let at = at.index(bytes.len());
        let end = (at + cut).min(bytes.len());
        bytes.splice(at..end, with);
        feed(&bytes);
    }

    #[test]
    fn json_alphabet_soup(bytes in prop::collection::vec(prop::sample::select(&br#"{}[]":,\u0d8 -1e.truefalsnyp"#[..]), 0..300)) {
        feed(&bytes);
    }

    #[test]
    fn messages_are_read_back_and_are_what_a_viewer_parses(message in messages()) {
        reads_back(&message);
        let seen: serde_json::Value = serde_json::from_str(&message.encode()).expect("JSON");
        let data: serde_json::Value = serde_json::from_str(&message.encode_data()).expect("JSON");
        prop_assert_eq!(&seen["type"], message.kind().as_str());
        prop_assert_eq!(&seen["data"], &data);
    }

    #[test]
    fn names_take_their_alphabet_and_nothing_else(text in prop_oneof![any::<String>(), "[a-z0-9_.-]{0,70}", ".{0,3}[a-z]{60}.{0,3}"]) {
        let fits = (1..=64).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-'));
        match Name::parse("x", Some(&text)) {
            Ok(name) => { prop_assert!(fits); prop_assert_eq!(name.as_str(), text); }
            Err(_) => prop_assert!(!fits),
        }
    }

    #[test]
    fn paths_are_paths(text in prop_oneof![any::<String>(), "(https?://[a-z:@]{0,9})?/?\\PC{0,40}", "/.{500,520}"]) {
        if let Ok(path) = PagePath::parse("x", Some(&text)) {
            let path = path.as_str();
            prop_assert!(path.starts_with('/') && path.len() <= PAGE_PATH_BYTES_MAX);
            prop_assert!(!path.contains(['?', '#']) && !path.chars().any(char::is_control));
            prop_assert!(path == "/" || text.contains(path), "nothing is made up");
            let again = PagePath::parse("x", Some(path)).expect("a path is a path");
            prop_assert_eq!(again.as_str(), path);
        }
    }

    #[test]
    fn visitor_ids_are_opaque_and_unprinted(text in prop_oneof![any::<String>(), ".{60,70}"]) {
        match VisitorId::parse("x", &text) {
            Ok(visitor) => {
                prop_assert!((1..=VISITOR_BYTES_MAX).contains(&text.len()));
                prop_assert_eq!(visitor.as_str(), &text);
                // Inv. PRIVATE
                prop_assert_eq!(format!("{visitor:?}"), "VisitorId(…)");
            }
            Err(_) => prop_assert!(!(1..=VISITOR_BYTES_MAX).contains(&text.len())),
        }
    }

    #[test]
    fn a_list_of_kinds_is_a_set(text in prop_oneof![any::<String>(), "((new_event|theme_stats|init|x),?){0,5}"]) {
        let named = |kind: MessageKind| text.split(',').any(|word| word == kind.as_str());
        let known = text.split(',').all(|word| MessageKind::ALL.iter().any(|kind| kind.as_str() == word));
        match MessageKinds::parse(&text) {
            Ok(kinds) => {
                prop_assert!(known);
                for kind in MessageKind::ALL {
                    let always = matches!(kind, MessageKind::Init | MessageKind::Ping | MessageKind::Gap);
                    prop_assert_eq!(kinds.contains(kind), always || named(kind));
                }
            }
            Err(_) => prop_assert!(!known),
        }
    }

    #[test]
    fn times_are_read_back_and_no_text_panics(time in timestamps(), text: String) {
        prop_assert_eq!(Timestamp::parse(&time.to_string()), Ok(time));
        if let Ok(time) = Timestamp::parse(&text) { prop_assert_eq!(Timestamp::parse(&time.to_string()), Ok(time)); }
    }
}
