//! What is answered before the 101.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::client::{Client, Upgrade};
use crate::support::gateway::Setup;
use crate::support::wait::{SOON, until};

#[tokio::test]
async fn a_request_that_cannot_become_a_websocket_is_told_why() {
    let gateway = Setup::embedded().brisk().crowded().ready().await;
    let mut counted: BTreeMap<&str, u64> = BTreeMap::new();
    let mut check = async |upgrade: Upgrade, status: u16, outcome, header: Option<(&str, &str)>, body: &str| {
        let answer = upgrade.refused(gateway.public).await;
        assert_eq!(answer.status(), status, "{upgrade:?}");
        assert!(answer.body.contains(body), "{body:?} in {:?} for {upgrade:?}", answer.body);
        if let Some((name, value)) = header {
            assert_eq!(answer.head.header(name), Some(value), "{upgrade:?}");
        }
        *counted.entry(outcome).or_default() += 1;
    };
    let new = Upgrade::new;
    check(new().method("POST"), 405, "method", None, "").await;
    check(new().method("DELETE"), 405, "method", None, "").await;
    check(new().version("HTTP/1.0"), 400, "malformed", None, "").await;
    check(new().without("Host"), 400, "malformed", None, "").await;
    check(new().without("Sec-WebSocket-Key"), 400, "malformed", None, "").await;
    check(new().replace("Sec-WebSocket-Key", "c2hvcnQ="), 400, "malformed", None, "").await;
    check(new().replace("Sec-WebSocket-Key", "not base64 at all, really"), 400, "malformed", None, "").await;
    check(new().without("Upgrade"), 426, "no_upgrade", Some(("upgrade", "websocket")), "").await;
    check(new().without("Connection"), 426, "no_upgrade", Some(("upgrade", "websocket")), "").await;
    let version = Some(("sec-websocket-version", "13"));
    check(new().replace("Sec-WebSocket-Version", "8"), 426, "no_upgrade", version, "").await;
    check(new().without("Sec-WebSocket-Version"), 426, "no_upgrade", version, "").await;
    check(new().header("Origin", "https://evil.example"), 403, "origin", None, "").await;
    check(new().header("Origin", "null"), 403, "origin", None, "").await;
    check(Upgrade::query("types=everything"), 400, "malformed", None, "types").await;
    check(Upgrade::query("types="), 400, "malformed", None, "types").await;
    check(Upgrade::query("ids=maybe"), 400, "malformed", None, "ids").await;
    check(Upgrade::query("visitor="), 400, "malformed", None, "visitor").await;
    let long = format!("visitor={}", "v".repeat(65));
    check(Upgrade::query(&long), 400, "malformed", None, "visitor").await;
    for (outcome, count) in counted {
        gateway.until_metric_is(&format!(r#"gateway_handshakes_total{{outcome="{outcome}"}}"#), count).await;
    }
}

#[tokio::test]
async fn what_is_fine_is_accepted() {
    let gateway = Setup::embedded().brisk().crowded().ready().await;
    for upgrade in [
        Upgrade::new(),
        Upgrade::new().header("Origin", "http://localhost:3000"),
        // The node's own page, wherever it is served.
        Upgrade::new().replace("Host", "stats.example:8443").header("Origin", "https://stats.example:8443"),
        Upgrade::new().replace("Connection", "keep-alive, Upgrade"),
        Upgrade::new().replace("Upgrade", "WebSocket"),
        Upgrade::new().header("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"),
        Upgrade::query("utm_source=x&unknown=1"),
        Upgrade::query(&format!("visitor={}", "v".repeat(64))),
        Upgrade::query("ids=1&types=new_event,theme_stats&visitor=anna"),
    ] {
        let mut client = upgrade.open(gateway.public).await;
        assert_eq!(client.next_json(SOON).await.kind(), "init", "{upgrade:?}");
    }
    gateway.until_metric(r#"gateway_handshakes_total{outcome="accepted"}"#, 9).await;
}

#[tokio::test]
async fn only_so_many_handshakes_per_second_and_address() {
    let gateway = Setup::embedded()
        .brisk()
        .with("GATEWAY_MAX_CONNECTIONS_PER_IP", "0")
        .with("GATEWAY_HANDSHAKES_PER_SECOND_PER_IP", "1")
        .with("GATEWAY_TRUSTED_PROXIES", "127.0.0.1")
        .ready()
        .await;
    let mut accepted = Vec::new();
    let answer = until("a refusal", SOON, async || match Upgrade::new().try_open(gateway.public).await {
        Ok(client) => {
            accepted.push(client);
            None
        }
        Err(refusal) => Some(refusal),
    })
    .await;
    assert_eq!(answer.status(), Some(429));
    assert!((4..=14).contains(&accepted.len()), "a burst of four: {}", accepted.len());
    gateway.until_metric(r#"gateway_handshakes_total{outcome="rate"}"#, 1).await;

    let _other_address = Upgrade::new().header("X-Forwarded-For", "198.51.100.1").open(gateway.public).await;

    // Who is told to wait, and does, is let in.
    let refused = Upgrade::new().try_open(gateway.public).await.err();
    if let Some(crate::support::client::Refusal::Answered(answer)) = refused {
        let after: u64 = answer.head.header("retry-after").expect("says when").parse().expect("seconds");
        assert!((1..=5).contains(&after), "{after}");
    }
    until("let in again", SOON, async || Upgrade::new().try_open(gateway.public).await.ok()).await;
}

#[tokio::test]
async fn a_full_node_says_so_and_takes_the_next_when_one_leaves() {
    let gateway = Setup::embedded().brisk().crowded().with("GATEWAY_MAX_CONNECTIONS", "2").ready().await;
    let first = Client::open(gateway.public).await;
    let _second = Client::open(gateway.public).await;
    let answer = Upgrade::new().refused(gateway.public).await;
    assert_eq!(answer.status(), 503);
    assert!(answer.head.header("retry-after").is_some());
    gateway.until_metric(r#"gateway_handshakes_total{outcome="full"}"#, 1).await;
    assert_eq!(first.close().await, 1000);
    until("a free place", Duration::from_secs(3), async || Upgrade::new().try_open(gateway.public).await.ok()).await;
}
