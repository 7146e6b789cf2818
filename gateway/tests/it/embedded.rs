//! One node without Redis: what a client of the seed page sees, and what it can opt into.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use shared::time::Timestamp;

use crate::support::client::{Client, Manners, Message, Upgrade};
use crate::support::gateway::Setup;
use crate::support::http;
use crate::support::recorder::Recorder;
use crate::support::wait::{SOON, until};

/// The exact text of a snapshot message that holds what `message` holds.
fn seed_shape(message: &Message) -> String {
    format!(
        r#"{{"type":"{}","data":{{"active_visitors":{},"timestamp":"{}"}}}}"#,
        message.kind(),
        message.json["data"]["active_visitors"].as_u64().expect("a count"),
        message.json["data"]["timestamp"].as_str().expect("a time"),
    )
}

/// The second of a snapshot message's timestamp.
fn second_of(message: &Message) -> u64 {
    let text = message.json["data"]["timestamp"].as_str().expect("a time");
    Timestamp::parse(text).expect("RFC 3339").unix_seconds()
}

// Inv. WIRE: without a parameter not one byte but the seed's.
#[tokio::test]
async fn init_comes_first_and_an_update_in_each_slot() {
    let gateway = Setup::embedded().brisk().ready().await;
    let opened = Instant::now();
    let mut client = Client::open(gateway.public).await;

    let init = client.next_json(SOON).await;
    assert_eq!(init.kind(), "init");
    assert_eq!(init.text, seed_shape(&init));
    assert!(opened.elapsed() < Duration::from_secs(1), "init comes at once");

    let mut last = client.next_json(SOON).await;
    for _ in 0..3 {
        let update = client.next_json(SOON).await;
        assert_eq!(update.kind(), "realtime_update");
        assert_eq!(update.text, seed_shape(&update));
        assert_eq!(second_of(&update), second_of(&last) + 1, "one in each slot of a second");
        last = update;
    }
    assert_eq!(last.json["data"]["active_visitors"], 1, "this client");
    assert_eq!(client.close().await, 1000);
    gateway.until_metric(r#"gateway_socket_closes_total{reason="normal"}"#, 1).await;
    gateway.until_metric_is("websocket_connections_active", 0).await;
    gateway.until_metric_is("websocket_errors_total", 0).await;
}

#[tokio::test]
async fn counts_messages_both_ways_under_the_seeds_names() {
    let gateway = Setup::embedded().brisk().ready().await;
    let mut client = Client::open(gateway.public).await;
    client.next_of("realtime_update", SOON).await;
    client.send_text(r#"{"type":"hello"}"#).await;
    gateway.until_metric(r#"websocket_messages_total{direction="received"}"#, 1).await;
    gateway.until_metric(r#"websocket_messages_total{direction="sent"}"#, 2).await;
    gateway.until_metric_is("websocket_connections_active", 1).await;
}

/// The seed's times, at full length: updates on the 5 s slot, a ping after 30 s, 10 s for the answer.
#[tokio::test]
async fn a_client_that_never_answers_is_closed_40_to_42_seconds_after_opening() {
    let gateway = Setup::embedded().ready().await;
    let opened = Instant::now();
    let polite = Recorder::join(Client::open(gateway.public).await).await;
    let mut silent = Client::open(gateway.public).await.silent();

    let ping = silent.next_of("ping", Duration::from_secs(33)).await;
    let pinged = opened.elapsed().as_secs_f64();
    assert!((30.0..32.5).contains(&pinged), "first ping after {pinged} s");
    let time = ping.json["timestamp"].as_str().expect("a time");
    assert_eq!(ping.text, format!(r#"{{"type":"ping","timestamp":"{time}"}}"#));
    Timestamp::parse(time).expect("RFC 3339");

    assert_eq!(silent.close_code(SOON + Duration::from_secs(5)).await, 4408);
    let closed = opened.elapsed().as_secs_f64();
    assert!((40.0..42.5).contains(&closed), "closed after {closed} s");
    gateway.until_metric(r#"gateway_socket_closes_total{reason="pong_timeout"}"#, 1).await;

    polite.assert_open();
    let updates = polite.messages(&["realtime_update"]);
    let slots: BTreeSet<u64> = updates.iter().map(|update| second_of(update) / 5).collect();
    assert_eq!(slots.len(), updates.len(), "at most one update in a slot");
    assert!(slots.len() >= 8, "{} updates in {closed} s", slots.len());
    let (first, last) = (slots.first().expect("some"), slots.last().expect("some"));
    assert_eq!(usize::try_from(last - first).expect("few") + 1, slots.len(), "no slot is left out");
}

#[tokio::test]
#[ignore = "takes two minutes; `make acceptance` runs it"]
async fn acceptance_a_client_that_answers_is_still_there_after_two_minutes() {
    let gateway = Setup::embedded().ready().await;
    let mut client = Client::open(gateway.public).await;
    let opened = Instant::now();
    for _ in 0..4 {
        client.next_of("ping", Duration::from_secs(33)).await;
    }
    // To about a second each.
    assert!(opened.elapsed() >= Duration::from_secs(116));
    while opened.elapsed() < Duration::from_secs(120) {
        client.next_of("realtime_update", SOON).await;
    }
}

#[tokio::test]
async fn pongs_keep_a_socket_open_and_silence_ends_it() {
    let gateway =
        Setup::embedded().brisk().with("GATEWAY_PING_INTERVAL", "2s").with("GATEWAY_PONG_TIMEOUT", "1s").ready().await;
    let mut polite = Client::open(gateway.public).await;
    for _ in 0..3 {
        polite.next_of("ping", SOON).await;
    }
    gateway.until_metric(r#"gateway_client_messages_total{kind="pong"}"#, 2).await;
    // It has answered so far and stops: an old answer does not count for a new ping.
    polite.manners = Manners::Silent;
    assert_eq!(polite.close_code(SOON).await, 4408);
    gateway.until_metric_is("websocket_errors_total", 1).await;
}

/// The first ping comes by itself, the others in the same write as a snapshot.
#[tokio::test]
async fn pings_ride_with_snapshots_and_are_to_be_answered_all_the_same() {
    let gateway =
        Setup::embedded().brisk().with("GATEWAY_PING_INTERVAL", "10s").with("GATEWAY_PONG_TIMEOUT", "2s").ready().await;
    let ping_within = Duration::from_secs(16);
    let mut client = Client::open(gateway.public).await;
    let opened = Instant::now();
    client.next_of("ping", ping_within).await;
    let first = opened.elapsed();
    assert!(first >= Duration::from_secs(10), "the first after {first:?}");
    let (mut pings, mut rode) = (Vec::new(), 0);
    while pings.len() < 3 {
        let message = client.next_json(SOON).await;
        if message.kind() == "ping" {
            pings.push(Instant::now());
        } else if client.has_another() {
            rode += 1;
            assert_eq!(message.kind(), "realtime_update");
        }
    }
    // On a machine so busy that a snapshot comes late, the sweeper may have been first.
    assert!(rode >= pings.len() - 1, "{rode} pings came with a snapshot");
    for two in pings.windows(2) {
        // 10 s to about a second, and what this machine is late by.
        let interval = two[1] - two[0];
        assert!((8.75..14.0).contains(&interval.as_secs_f64()), "{interval:?} from ping to ping");
    }
    // It answered the last one, and stops.
    client.manners = Manners::Silent;
    client.next_of("ping", ping_within).await;
    let pinged = Instant::now();
    assert_eq!(client.close_code(SOON).await, 4408);
    let closed = pinged.elapsed().as_secs_f64();
    assert!((1.5..5.0).contains(&closed), "closed {closed} s after the ping");
}

#[tokio::test]
async fn a_pong_with_a_timestamp_is_as_good() {
    let gateway =
        Setup::embedded().brisk().with("GATEWAY_PING_INTERVAL", "2s").with("GATEWAY_PONG_TIMEOUT", "1s").ready().await;
    let mut client = Client::open(gateway.public).await.silent();
    for _ in 0..3 {
        client.next_of("ping", SOON).await;
        client.send_text(r#"{"type":"pong","timestamp":"2025-12-08T10:30:30.123Z"}"#).await;
    }
    client.next_of("realtime_update", SOON).await;
}

#[tokio::test]
async fn types_chooses_what_is_heard() {
    let gateway = Setup::embedded().brisk().ready().await;
    let only_themes = Recorder::join(Upgrade::query("types=theme_stats").open(gateway.public).await).await;
    let two_types = Recorder::join(Upgrade::query("types=new_event,letter_generated").open(gateway.public).await).await;

    gateway.post_page("/first").await;
    let answer = gateway.post(r#"{"event_type":"cv_theme_change","theme":"backend"}"#).await;
    assert_eq!(answer.status(), 202, "{}", answer.body);
    let answer = gateway.post(r#"{"event_type":"letter_generate","letter_type":"motivation"}"#).await;
    assert_eq!(answer.status(), 202, "{}", answer.body);

    two_types.until("the letter", SOON, |heard| heard.iter().any(|one| one.text.contains("letter_generated"))).await;
    only_themes.until("the theme", SOON, |heard| heard.iter().any(|one| one.text.contains("theme_stats"))).await;
    let kinds = |recorder: &Recorder| -> Vec<String> {
        recorder.heard().into_iter().map(|one| Message::of(one.text).kind().to_owned()).collect()
    };
    assert_eq!(kinds(&only_themes), ["init", "theme_stats"]);
    assert_eq!(kinds(&two_types), ["init", "new_event", "letter_generated"]);
}

#[tokio::test]
async fn ids_are_appended_for_those_who_ask() {
    let gateway = Setup::embedded().brisk().ready().await;
    let plain = Recorder::join(Client::open(gateway.public).await).await;
    let with_ids = Recorder::join(Upgrade::query("ids=1").open(gateway.public).await).await;
    let answer = gateway.post(r#"{"event_type":"page_view","page_url":"/cv?token=1#x"}"#).await;
    let id = answer.json()["results"][0]["id"].as_str().expect("an id").to_owned();

    for recorder in [&plain, &with_ids] {
        recorder.until("the event", SOON, |heard| heard.iter().any(|one| one.text.contains("new_event"))).await;
    }
    let plain = plain.messages(&["new_event"]).remove(0);
    let with_id = with_ids.messages(&["new_event"]).remove(0);
    let time = plain.json["data"]["timestamp"].as_str().expect("a time");
    let data = format!(r#"{{"event_type":"page_view","page_url":"/cv","timestamp":"{time}"}}"#);
    assert_eq!(plain.text, format!(r#"{{"type":"new_event","data":{data}}}"#));
    assert_eq!(with_id.text, format!(r#"{{"type":"new_event","data":{data},"id":"{id}"}}"#));
}

#[tokio::test]
async fn a_visitor_counts_once_however_many_sockets() {
    let gateway = Setup::embedded().brisk().ready().await;
    let mut clients = Vec::new();
    for visitor in ["anna", "anna", "bert", "anna"] {
        clients.push(Upgrade::query(&format!("visitor={visitor}")).open(gateway.public).await);
    }
    // Without a name it is the address and the User-Agent.
    for agent in ["one", "one", "two"] {
        clients.push(Upgrade::new().header("User-Agent", agent).open(gateway.public).await);
    }
    until("four visitors", SOON, async || {
        let update = clients[0].next_of("realtime_update", SOON).await;
        (update.json["data"]["active_visitors"] == 4).then_some(())
    })
    .await;
    let update = clients[0].next_of("realtime_update", SOON).await;
    assert_eq!(update.json["data"]["active_visitors"], 4, "and so it stays");
}

#[tokio::test]
async fn stats_are_the_snapshot_and_allowed_origins_may_read_them() {
    let gateway = Setup::embedded().brisk().ready().await;
    let stats = http::get(gateway.public, "/api/v1/stats").await;
    assert_eq!(stats.status(), 200);
    let time = stats.json()["timestamp"].as_str().expect("a time").to_owned();
    assert_eq!(stats.body, format!(r#"{{"active_visitors":0,"timestamp":"{time}"}}"#));

    let asked_from = async |origin: &str| {
        let request = format!(
            "GET /api/v1/stats HTTP/1.1\r\nHost: gateway.test\r\nOrigin: {origin}\r\nConnection: close\r\n\r\n"
        );
        let answer = http::exchange(gateway.public, request.as_bytes()).await.expect("an answer");
        answer.head.header("access-control-allow-origin").map(str::to_owned)
    };
    assert_eq!(asked_from("http://localhost:3000").await.as_deref(), Some("http://localhost:3000"));
    assert_eq!(asked_from("https://evil.example").await, None);
}

#[tokio::test]
async fn the_live_page_needs_nothing_from_elsewhere() {
    let gateway = Setup::embedded().brisk().ready().await;
    let page = http::get(gateway.public, "/").await;
    assert_eq!(page.status(), 200);
    assert!(page.head.header("content-type").is_some_and(|kind| kind.starts_with("text/html")));
    let policy = page.head.header("content-security-policy").expect("a policy");
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe-inline"), "{policy}");
    for outside in ["src=\"http", "href=\"http", "@import", "url(http"] {
        assert!(!page.body.contains(outside), "{outside}");
    }
    assert_eq!(http::get(gateway.public, "/nothing/here").await.status(), 404);
    for internal in ["/metrics", "/livez", "/readyz", "/healthz"] {
        assert_eq!(http::get(gateway.public, internal).await.status(), 404, "{internal} is not for the public");
    }
}

#[tokio::test]
async fn probes_of_a_healthy_node() {
    let gateway = Setup::embedded().brisk().ready().await;
    assert_eq!(gateway.probe("/livez").await, Some(200));
    assert_eq!(gateway.probe("/readyz").await, Some(200));
    assert_eq!(gateway.health().await["status"], "ok");
    let metrics = http::get(gateway.internal, "/metrics").await;
    assert_eq!(metrics.head.header("content-type"), Some("text/plain; version=0.0.4"));
}
