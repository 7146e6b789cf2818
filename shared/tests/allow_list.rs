//! Inv. ANON: only what is on the allow-list gets through, whatever stands beside it.

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use shared::event::{Event, IncomingEvent, LegacyMessage, parse_batch, parse_legacy};
use shared::field::{EventError, PAGE_PATH_BYTES_MAX};
use shared::message::PublicMessage;

/// Stands for everything that nobody may see.
const SECRET: &str = "jane.doe@example.org";

fn one(event: &Value) -> Result<IncomingEvent, EventError> {
    let mut body = serde_json::to_vec(event).expect("JSON");
    parse_batch(&mut body).expect("an object").pop().expect("one event")
}

fn decode(kind: &str, data: &Value) -> Result<PublicMessage, EventError> {
    PublicMessage::decode(kind, &mut serde_json::to_vec(data).expect("JSON"))
}

/// Fails when the secret is anywhere in what was kept. `Debug` shows every field of these types.
#[track_caller]
fn hides_it(kept: &impl std::fmt::Debug) {
    let text = format!("{kept:?}");
    assert!(!text.contains("jane") && !text.contains("example"), "leaks: {text}");
}

/// What a careless producer adds.
fn with_baggage(event: Value) -> Value {
    let baggage = json!({
        "email": SECRET, "ip": "192.0.2.7 jane", "user_agent": SECRET, "referrer": format!("https://example.org/?q={SECRET}"),
        "visitor_id": "jane", "data": {"email": SECRET, "theme": "jane?"}, "nested": {"a": [{"b": SECRET}]}, SECRET: SECRET,
        "timestamp": SECRET, "count": SECRET, "active_visitors": SECRET,
    });
    let (Value::Object(mut all), Value::Object(event)) = (baggage, event) else { panic!("objects") };
    all.extend(event);
    Value::Object(all)
}

#[test]
fn an_event_keeps_its_named_fields_alone() {
    let page = with_baggage(json!({"event_type": "page_view", "page_url": format!("/cv?email={SECRET}#{SECRET}")}));
    let theme = with_baggage(json!({"event_type": "cv_theme_change", "theme": "backend"}));
    let letter = with_baggage(json!({"event_type": "letter_generate", "letter_type": "motivation"}));
    for event in [page, theme, letter] {
        let kept = one(&event).expect("it is valid");
        assert_eq!(kept.visitor.as_ref().map(|visitor| visitor.as_str()), Some("jane"), "known here, to be hashed");
        hides_it(&kept);
    }
}

#[test]
fn a_page_is_its_path() {
    let check = |url: &str, want: Option<&str>| {
        let got = one(&json!({"event_type": "page_view", "page_url": url}));
        let got = got.map(|kept| match kept.event {
            Event::Page { page_url, .. } => page_url.as_str().to_owned(),
            other => panic!("not a page: {other:?}"),
        });
        assert_eq!(got.as_deref().ok(), want, "{url}");
    };
    check("/cv", Some("/cv"));
    check("/cv?email=jane", Some("/cv"));
    check("/cv#jane", Some("/cv"));
    check("/cv?a#b", Some("/cv"));
    check("/cv#a?b", Some("/cv"));
    check("https://jane:secret@example.org/cv?x", Some("/cv"));
    check("http://example.org", Some("/"));
    check("https://example.org?jane", Some("/"));
    check("https://example.org#/jane", Some("/"));
    check("", None);
    check("cv", None);
    check("?jane", None);
    check("mailto:jane@example.org", None);
    check("javascript:alert(1)", None);
    check("/a\nb", None);
    check("/a\u{7f}", None);
    check(&format!("/{}", "x".repeat(PAGE_PATH_BYTES_MAX - 1)), Some(&format!("/{}", "x".repeat(511))));
    check(&format!("/{}", "x".repeat(PAGE_PATH_BYTES_MAX)), None);
    check(&format!("/{}?{}", "x".repeat(511), "y".repeat(4000)), Some(&format!("/{}", "x".repeat(511))));
}

#[test]
fn a_name_has_a_closed_alphabet() {
    let check = |name: &str, fits: bool| {
        assert_eq!(one(&json!({"event_type": "cv_theme_change", "theme": name})).is_ok(), fits, "{name:?}");
        assert_eq!(one(&json!({"event_type": "letter_generate", "letter_type": name})).is_ok(), fits, "{name:?}");
        assert_eq!(one(&json!({"event_type": name, "page_url": "/"})).is_ok(), fits, "{name:?}");
    };
    check("a", true);
    check("a_b.c-0", true);
    check(&"x".repeat(64), true);
    for bad in ["", "A", "a b", "jane@example", "ä", "a\u{0}", "a/b", &"x".repeat(65)] {
        check(bad, false);
    }
}

#[test]
fn errors_name_the_field_and_repeat_nothing() {
    let check = |event: Value, want: &str| {
        let error = one(&event).expect_err("it is wrong");
        assert_eq!(error.to_string(), want, "{event}");
        hides_it(&error);
    };
    check(json!({}), "event_type: missing");
    check(json!({"event_type": null}), "event_type: missing");
    check(json!({"event_type": 7}), "event_type: not a string");
    check(json!({"event_type": SECRET}), "event_type: not 1 to 64 of a-z 0-9 _ . -");
    check(json!({"event_type": "page_view"}), "page_url: missing");
    check(json!({"event_type": "page_view", "page_url": [SECRET]}), "page_url: not a string");
    check(json!({"event_type": "page_view", "page_url": SECRET}), "page_url: neither a path nor an http URL");
    check(json!({"event_type": "page_view", "page_url": "/", "visitor_id": ""}), "visitor_id: not 1 to 64 bytes");
    check(json!({"event_type": "page_view", "page_url": "/", "visitor_id": {}}), "visitor_id: not a string");
    check(json!({"event_type": "cv_theme_change"}), "theme: missing");
    check(json!({"event_type": "letter_generate", "letter_type": SECRET}), "letter_type: not 1 to 64 of a-z 0-9 _ . -");
    check(json!({"event_type": "cv_theme_change", "data": {"theme": {"a": SECRET}}}), "theme: not a string");
}

#[test]
fn a_stream_entry_keeps_its_named_fields_alone() {
    let time = "2025-12-08T10:30:05.123Z";
    let check = |kind: &str, data: Value, golden: &str| {
        let mut data = data;
        let object = data.as_object_mut().expect("an object");
        for key in ["email", "ip", "visitor_id", "visitor", SECRET] {
            object.insert(key.to_owned(), json!(SECRET));
        }
        object.insert("nested".to_owned(), json!({"type": "new_event", "data": [SECRET, {"deep": SECRET}]}));
        assert_eq!(decode(kind, &data).expect("it is valid").encode(), golden);
    };
    check(
        "new_event",
        json!({"event_type": "page_view", "page_url": format!("https://example.org/cv?{SECRET}"), "timestamp": time}),
        r#"{"type":"new_event","data":{"event_type":"page_view","page_url":"/cv","timestamp":"2025-12-08T10:30:05Z"}}"#,
    );
    check(
        "theme_stats",
        json!({"theme": "backend", "count": 88, "percentage": 50}),
        r#"{"type":"theme_stats","data":{"theme":"backend","count":88,"percentage":50.0}}"#,
    );
    check(
        "letter_generated",
        json!({"letter_type": "motivation", "timestamp": time}),
        r#"{"type":"letter_generated","data":{"letter_type":"motivation","timestamp":"2025-12-08T10:30:05Z"}}"#,
    );
    check(
        "realtime_update",
        json!({"active_visitors": 5, "timestamp": time}),
        r#"{"type":"realtime_update","data":{"active_visitors":5,"timestamp":"2025-12-08T10:30:05Z"}}"#,
    );
}

#[test]
fn a_stream_entry_of_another_shape_is_refused() {
    let check = |kind: &str, data: Value, want: &str| {
        assert_eq!(decode(kind, &data).expect_err("it is wrong").to_string(), want, "{kind} {data}");
    };
    let time = "2025-12-08T10:30:05Z";
    for kind in ["", "init", "ping", "gap", "pong", "New_Event", SECRET] {
        check(kind, json!({"active_visitors": 1, "timestamp": time}), "type: unknown");
    }
    for data in [json!(null), json!([]), json!("x"), json!(1)] {
        check("new_event", data, "data: malformed");
    }
    check("realtime_update", json!({"timestamp": time}), "active_visitors: missing");
    check("realtime_update", json!({"active_visitors": -1, "timestamp": time}), "data: malformed");
    check("realtime_update", json!({"active_visitors": 1.5, "timestamp": time}), "data: malformed");
    check("realtime_update", json!({"active_visitors": 1}), "timestamp: missing");
    check("new_event", json!({"event_type": "a", "page_url": "/", "timestamp": 5}), "data: malformed");
    check(
        "new_event",
        json!({"event_type": "a", "page_url": "/", "timestamp": "now"}),
        "timestamp: not an RFC 3339 time in UTC",
    );
    check("theme_stats", json!({"theme": "a", "count": 1}), "percentage: not within 0 to 100");
    check("theme_stats", json!({"theme": "a", "count": 1, "percentage": 100.1}), "percentage: not within 0 to 100");
    check("theme_stats", json!({"theme": SECRET, "count": 1, "percentage": 1}), "theme: not 1 to 64 of a-z 0-9 _ . -");
    check("letter_generated", json!({"timestamp": time}), "letter_type: missing");
}

#[test]
fn the_legacy_channel_is_read_like_a_post() {
    let read = |message: Value| parse_legacy(&mut serde_json::to_vec(&message).expect("JSON"));
    let raw = read(json!({
        "type": "page_view", "visitor_id": "jane", "page_url": format!("/cv?{SECRET}"),
        "timestamp": "2025-12-08T10:30:05Z", "data": {"email": SECRET}, "email": SECRET,
    }));
    let Ok(LegacyMessage::Event(event)) = raw else { panic!("a raw event: {raw:?}") };
    hides_it(&event);
    assert!(event.visitor.is_some());

    let nested = read(json!({"type": "cv_theme_change", "data": {"theme": "backend", "email": SECRET}}));
    let Ok(LegacyMessage::Event(IncomingEvent { event: Event::ThemeChange { theme }, .. })) = nested else {
        panic!("a theme: {nested:?}")
    };
    assert_eq!(theme.as_str(), "backend");

    let public = read(json!({
        "type": "theme_stats", "email": SECRET,
        "data": {"theme": "backend", "count": 88, "percentage": 25.8, "email": SECRET},
    }));
    let Ok(LegacyMessage::Public(message)) = public else { panic!("a public message: {public:?}") };
    assert_eq!(message.encode(), r#"{"type":"theme_stats","data":{"theme":"backend","count":88,"percentage":25.8}}"#);

    let snapshot = json!({"active_visitors": 999_999, "timestamp": "2025-12-08T10:30:05Z"});
    for reserved in ["realtime_update", "init", "ping", "gap"] {
        let refused = read(json!({"type": reserved, "data": snapshot})).expect_err("no producer makes these");
        assert_eq!(refused.to_string(), "type: reserved", "{reserved}");
    }
    assert_eq!(read(json!({"type": "new_event"})).expect_err("no data").to_string(), "data: missing");
    assert_eq!(read(json!("text")).expect_err("no object").to_string(), "type: missing");
}

/// Any JSON, with the secret in every text and in many keys.
fn secretive_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z]{0,8}".prop_map(|salt| json!(format!("{salt}{SECRET}"))),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((key(), inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

fn key() -> impl Strategy<Value = String> {
    const KNOWN: [&str; 9] =
        ["type", "event_type", "page_url", "theme", "letter_type", "visitor_id", "data", "timestamp", "count"];
    prop_oneof![prop::sample::select(&KNOWN[..]).prop_map(str::to_owned), Just(SECRET.to_owned()), "[a-z]{1,6}"]
}

proptest! {
    #[test]
    fn nothing_that_was_not_asked_for_survives(
        extras in prop::collection::vec((key(), secretive_json()), 0..8),
        which in 0usize..3,
        legacy: bool,
    ) {
        let kind_field = if legacy { "type" } else { "event_type" };
        let (kind, field, value) = [
            ("page_view", "page_url", "/cv?jane"),
            ("cv_theme_change", "theme", "backend"),
            ("letter_generate", "letter_type", "motivation"),
        ][which];
        let mut event: Map<String, Value> = extras.into_iter().collect();
        event.remove("visitor_id");
        event.insert(kind_field.to_owned(), json!(kind));
        event.insert(field.to_owned(), json!(value));
        let mut bytes = serde_json::to_vec(&Value::Object(event)).expect("JSON");
        let kept = if legacy {
            match parse_legacy(&mut bytes) {
                Ok(LegacyMessage::Event(event)) => event,
                other => panic!("a raw event: {other:?}"),
            }
        } else {
            parse_batch(&mut bytes).expect("an object").remove(0).expect("a valid event")
        };
        hides_it(&kept);
    }

    #[test]
    fn a_refusal_does_not_tell_what_was_refused(value in secretive_json(), kind in key()) {
        let mut bytes = serde_json::to_vec(&value).expect("JSON");
        match parse_batch(&mut bytes.clone()) {
            Ok(events) => events.iter().filter_map(|event| event.as_ref().err()).for_each(|error| hides_it(error)),
            Err(error) => hides_it(&error),
        }
        if let Err(error) = parse_legacy(&mut bytes.clone()) { hides_it(&error) }
        if let Err(error) = PublicMessage::decode(&kind, &mut bytes) { hides_it(&error) }
    }
}
