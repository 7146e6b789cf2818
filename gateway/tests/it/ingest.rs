//! `POST /api/v1/events`: what producers get for what they send, and what viewers get to see of it.

use crate::support::client::Client;
use crate::support::gateway::{Gateway, Setup, TOKEN};
use crate::support::http::{self, Answer};
use crate::support::recorder::Recorder;
use crate::support::wait::SOON;

const PATH: &str = "/api/v1/events";

async fn post(gateway: &Gateway, body: &[u8]) -> Answer {
    http::post(gateway.public, PATH, Some(TOKEN), body).await
}

#[tokio::test]
async fn only_the_token_opens_it() {
    let gateway = Setup::embedded().brisk().with("GATEWAY_INGEST_TOKEN", "old-token,new-token").ready().await;
    let event = br#"{"event_type":"page_view","page_url":"/"}"#;
    for (token, status) in [
        (None, 401),
        (Some(""), 401),
        (Some("wrong"), 401),
        (Some("old-token,new-token"), 401),
        (Some("old-token"), 202),
        (Some("new-token"), 202),
    ] {
        assert_eq!(http::post(gateway.public, PATH, token, event).await.status(), status, "{token:?}");
    }
    gateway.until_metric(r#"gateway_ingest_refused_total{reason="unauthorized"}"#, 4).await;
    gateway.until_metric(r#"gateway_ingest_events_total{outcome="accepted"}"#, 2).await;
    assert_eq!(http::get(gateway.public, PATH).await.status(), 405);
}

#[tokio::test]
async fn without_a_configured_token_there_is_no_such_path() {
    let gateway = Setup::embedded().brisk().without("GATEWAY_INGEST_TOKEN").ready().await;
    let answer = http::post(gateway.public, PATH, Some(TOKEN), b"{}").await;
    assert_eq!(answer.status(), 404);
}

#[tokio::test]
async fn each_event_is_judged_by_itself() {
    let gateway = Setup::embedded().brisk().ready().await;
    let recorder = Recorder::join(Client::open(gateway.public).await).await;
    let mixed = br#"[
        {"event_type":"page_view","page_url":"/one"},
        {"event_type":"Page View","page_url":"/two"},
        {"event_type":"cv_theme_change"},
        {"event_type":"page_view","page_url":"/three"}
    ]"#;
    let answer = post(&gateway, mixed).await;
    assert_eq!(answer.status(), 202);
    let json = answer.json();
    assert_eq!(json["accepted"], 2);
    assert!(json["results"][0]["id"].is_string() && json["results"][3]["id"].is_string(), "{json}");
    assert!(json["results"][1]["error"].as_str().is_some_and(|text| text.starts_with("event_type: ")), "{json}");
    assert_eq!(json["results"][2]["error"], "theme: missing");

    let answer = post(&gateway, br#"{"event_type":"letter_generate"}"#).await;
    assert_eq!(answer.status(), 422);
    assert_eq!(answer.body, r#"{"accepted":0,"results":[{"error":"letter_type: missing"}]}"#);
    gateway.until_metric(r#"gateway_ingest_events_total{outcome="invalid"}"#, 3).await;

    recorder.until("both events", SOON, |heard| heard.iter().any(|one| one.text.contains("/three"))).await;
    let pages: Vec<String> =
        recorder.messages(&["new_event"]).iter().map(|message| message.json["data"]["page_url"].to_string()).collect();
    assert_eq!(pages, [r#""/one""#, r#""/three""#]);
}

#[tokio::test]
async fn themes_are_counted_with_their_share() {
    let gateway = Setup::embedded().brisk().ready().await;
    let recorder = Recorder::join(Client::open(gateway.public).await).await;
    for theme in ["backend", "backend", "frontend", "backend"] {
        let answer = gateway.post(&format!(r#"{{"event_type":"cv_theme_change","theme":"{theme}"}}"#)).await;
        assert_eq!(answer.status(), 202);
    }
    recorder
        .until("four", SOON, |heard| heard.iter().filter(|one| one.text.contains("theme_stats")).count() == 4)
        .await;
    let texts: Vec<String> = recorder.messages(&["theme_stats"]).into_iter().map(|message| message.text).collect();
    assert_eq!(
        texts,
        [
            r#"{"type":"theme_stats","data":{"theme":"backend","count":1,"percentage":100.0}}"#,
            r#"{"type":"theme_stats","data":{"theme":"backend","count":2,"percentage":100.0}}"#,
            r#"{"type":"theme_stats","data":{"theme":"frontend","count":1,"percentage":33.3}}"#,
            r#"{"type":"theme_stats","data":{"theme":"backend","count":3,"percentage":75.0}}"#,
        ]
    );
}

#[tokio::test]
async fn a_body_that_cannot_be_judged_is_refused_whole() {
    let gateway = Setup::embedded().brisk().ready().await;
    let deep = [vec![b'['; 20_000], vec![b']'; 20_000]].concat();
    let too_many = format!("[{}]", vec!["{}"; 501].join(","));
    let bodies: [&[u8]; 9] = [
        b"",
        b"{",
        b"null",
        b"\"text\"",
        b"[]",
        b"{\"event_type\":\"page_view\"} {}",
        b"{\"event_type\":\"\xff\xfe\"}",
        &deep,
        too_many.as_bytes(),
    ];
    for body in bodies {
        let answer = post(&gateway, body).await;
        assert_eq!(answer.status(), 400, "{:?}: {}", String::from_utf8_lossy(&body[..body.len().min(40)]), answer.body);
    }
    gateway.until_metric(r#"gateway_ingest_refused_total{reason="malformed"}"#, 9).await;
}

#[tokio::test]
async fn ten_megabytes_are_refused_before_they_are_read() {
    let gateway = Setup::embedded().brisk().ready().await;
    // Only announced: the answer must not wait for it.
    let head =
        format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 10485760\r\n\r\n");
    let answer = http::exchange(gateway.public, head.as_bytes()).await.expect("an answer");
    assert_eq!(answer.status(), 413);
    // Sent as well: the answer must arrive all the same, not be lost in a reset.
    let answer = post(&gateway, &vec![b' '; 10 << 20]).await;
    assert_eq!(answer.status(), 413);
    // Chunked: nothing is announced, so it is read up to the limit.
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    let chunked = format!(
        "POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nTransfer-Encoding: chunked\r\n\r\n\
         {chunk}{chunk}"
    );
    let answer = http::exchange(gateway.public, chunked.as_bytes()).await.expect("an answer");
    assert_eq!(answer.status(), 413);
    gateway.until_metric(r#"gateway_ingest_refused_total{reason="too_large"}"#, 3).await;
    // The largest that fits is no trouble.
    let event = r#"{"event_type":"page_view","page_url":"/"}"#;
    let padded = format!("{event}{}", " ".repeat(64 * 1024 - event.len()));
    assert_eq!(post(&gateway, padded.as_bytes()).await.status(), 202);
}

// Inv. ANON: planted words in every place that is not on the allow-list; viewers see none of them.
// Inv. PRIVATE: nor do logs and metrics.
#[tokio::test]
async fn only_the_allow_list_reaches_viewers() {
    let gateway = Setup::embedded().brisk().ready().await;
    let recorder = Recorder::join(Client::open(gateway.public).await).await;
    let events = br#"[
        {"event_type":"page_view","page_url":"https://user:PLANTED@site.example/cv?q=PLANTED#PLANTED",
         "visitor_id":"PLANTED-visitor","email":"PLANTED@example.org","data":{"PLANTED":"PLANTED"},"PLANTED":1},
        {"event_type":"cv_theme_change","theme":"backend","visitor_id":"PLANTED","referrer":"PLANTED"},
        {"event_type":"letter_generate","letter_type":"motivation","company":"PLANTED","data":{"to":"PLANTED"}},
        {"event_type":"PLANTED","page_url":"/PLANTED"},
        {"event_type":"page_view","page_url":"no path PLANTED"},
        {"event_type":"page_view","page_url":"/last"}
    ]"#;
    let answer = post(&gateway, events).await;
    assert_eq!(answer.json()["accepted"], 4, "{}", answer.body);
    assert!(!answer.body.contains("PLANTED"), "an error repeats nothing: {}", answer.body);
    recorder.until("the last event", SOON, |heard| heard.iter().any(|one| one.text.contains("/last"))).await;
    let heard = recorder.heard();
    assert!(heard.iter().any(|one| one.text.contains(r#""page_url":"/cv""#)), "{heard:?}");
    assert!(heard.iter().all(|one| !one.text.contains("PLANTED")), "{heard:?}");
    assert!(!gateway.log().contains("PLANTED"), "{}", gateway.log());
    assert!(!gateway.metrics_page().await.contains("PLANTED"));
}
