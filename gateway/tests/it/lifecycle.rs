//! How a process starts, drains, and ends.

use std::time::{Duration, Instant};

use crate::support::client::{Client, End, Upgrade};
use crate::support::cluster::Cluster;
use crate::support::gateway::Setup;
use crate::support::recorder::Recorder;
use crate::support::wait::{SOON, until};

fn draining(setup: Setup, delay: &str, window: &str) -> Setup {
    setup
        .brisk()
        .crowded()
        .with("GATEWAY_DRAIN_DELAY", delay)
        .with("GATEWAY_DRAIN_WINDOW", window)
        .with("GATEWAY_DRAIN_GRACE", "2s")
}

// Inv. DRAIN: from the signal on it only goes forward, and it ends within its announced time.
#[tokio::test]
async fn sigterm_drains() {
    let mut node = draining(Setup::embedded(), "1500ms", "1s").ready().await;
    let mut recorders = Vec::new();
    for _ in 0..20 {
        recorders.push(Recorder::join(Client::open(node.public).await).await);
    }
    let told = Instant::now();
    node.terminate();
    until("/readyz says no", Duration::from_secs(1), async || (node.probe("/readyz").await == Some(503)).then_some(()))
        .await;
    assert_eq!(node.health().await["status"], "draining");
    assert_eq!(node.probe("/livez").await, Some(200), "a draining node is not to be restarted");
    // Balancers have not heard of it yet: whoever comes is served.
    let mut late = Client::open(node.public).await;
    assert_eq!(late.next_json(SOON).await.kind(), "init");
    recorders.push(Recorder::of(late));

    let mut ends = Vec::new();
    for recorder in &recorders {
        match recorder.until_end(SOON).await {
            End::Close { code, reason } => {
                assert_eq!(code, 1012);
                let reason: serde_json::Value = serde_json::from_str(&reason).expect("JSON");
                ends.push(reason["retry_after_ms"].as_u64().expect("says when"));
            }
            End::Broken => panic!("ended without a close frame"),
        }
    }
    assert!(ends.iter().all(|retry_after_ms| *retry_after_ms <= 3_000), "{ends:?}");
    assert!(ends.iter().any(|retry_after_ms| *retry_after_ms != ends[0]), "each its own: {ends:?}");
    assert_eq!(node.exit_code(SOON).await, Some(0));
    let took = told.elapsed();
    assert!((Duration::from_millis(1_500)..Duration::from_millis(5_000)).contains(&took), "{took:?}");
    assert!(Upgrade::new().try_open(node.public).await.is_err());
}

/// Whoever is sent away may come back at once, elsewhere: its place of the cap is free before it hears of the close.
// Inv. CAP: and still there are never more than ten.
#[tokio::test]
async fn the_slot_of_an_address_is_free_before_the_close_frame() {
    let cluster =
        Cluster::of(2, |setup| draining(setup, "0s", "1s").with("GATEWAY_MAX_CONNECTIONS_PER_IP", "10")).await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(Client::open(cluster.nodes[0].public).await);
    }
    cluster.nodes[0].terminate();
    let mut moves = tokio::task::JoinSet::new();
    for mut client in clients {
        let other = cluster.nodes[1].public;
        moves.spawn(async move {
            assert_eq!(client.close_code(SOON).await, 1012);
            // The first try; no other follows.
            Upgrade::new().try_open(other).await.map_err(|refusal| refusal.status())
        });
    }
    let mut moved = Vec::new();
    while let Some(outcome) = moves.join_next().await {
        moved.push(outcome.expect("no panic").expect("let in at the first try"));
    }
    assert_eq!(moved.len(), 10);
    assert_eq!(Upgrade::new().refused(cluster.nodes[1].public).await.status(), 429);
}

#[tokio::test]
async fn without_sockets_a_drain_ends_at_once_after_its_delay() {
    let mut node = draining(Setup::embedded(), "0s", "1h").ready().await;
    node.terminate();
    assert_eq!(node.exit_code(Duration::from_secs(3)).await, Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let mut node = draining(Setup::embedded(), "10m", "1h").ready().await;
    let _client = Client::open(node.public).await;
    node.terminate();
    until("draining", SOON, async || (node.probe("/readyz").await == Some(503)).then_some(())).await;
    // What comes right after the first is taken for its echo, so it may take several.
    until("the end", Duration::from_secs(3), async || {
        node.terminate();
        node.has_ended().then_some(())
    })
    .await;
    assert_eq!(node.exit_code(SOON).await, Some(0));
}

#[tokio::test]
async fn a_panic_in_the_relay_ends_the_process_with_70() {
    let mut node = Setup::embedded().brisk().with("GATEWAY_TEST_PANIC", "relay").spawn();
    assert_eq!(node.exit_code(SOON).await, Some(70));
    assert!(node.log().contains("relay"), "the log says which part: {}", node.log());
}

// Inv. ISOLATION: a panic in one connection is the end of that one.
#[tokio::test]
async fn a_panic_in_a_connection_ends_only_that_connection() {
    let mut node = Setup::embedded().brisk().with("GATEWAY_TEST_PANIC", "connection").ready().await;
    let neighbour = Recorder::join(Client::open(node.public).await).await;
    for _ in 0..3 {
        let mut unlucky = Client::open(node.public).await;
        unlucky.send_text(r#"{"type":"__panic"}"#).await;
        unlucky.end(SOON).await;
    }
    until("its place is free", SOON, async || (node.metric("websocket_connections_active").await == 1).then_some(()))
        .await;
    node.until_metric_is("websocket_errors_total", 3).await;
    neighbour.until_new("realtime_update", SOON).await;
    neighbour.assert_open();
    node.assert_alive();
    assert_eq!(node.probe("/livez").await, Some(200));
}

#[tokio::test]
async fn a_wrong_configuration_is_told_at_once_and_whole() {
    let setup = Setup::embedded()
        .with("GATEWAY_LISTEN", "nowhere")
        .with("GATEWAY_TICK_INTERVAL", "fast")
        .with("GATEWAY_TRUSTED_PROXIES", "10.0.0.0/99")
        .with("GATEWAY_PING_INTERVALL", "30s");
    for arguments in [&["--check-config"][..], &[]] {
        let output = setup.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        for name in ["GATEWAY_LISTEN", "GATEWAY_TICK_INTERVAL", "GATEWAY_TRUSTED_PROXIES", "GATEWAY_PING_INTERVALL"] {
            assert!(said.contains(name), "{name} is missing in:\n{said}");
        }
    }
}

// Inv. PRIVATE: what would run is shown, but no secret.
#[tokio::test]
async fn check_config_shows_what_would_run_but_no_secret() {
    let setup = Setup::embedded()
        .with("GATEWAY_INGEST_TOKEN", "secret-of-the-producers")
        .with("REDIS_URL", "redis://user:hunter2hunter2@127.0.0.1:6379")
        .with("GATEWAY_TICK_INTERVAL", "7s")
        // Kubernetes injects these where a service is called gateway.
        .with("GATEWAY_SERVICE_HOST", "10.0.0.1")
        .with("GATEWAY_PORT", "tcp://10.0.0.1:80")
        .with("GATEWAY_PORT_80_TCP_ADDR", "10.0.0.1");
    let output = setup.run(&["--check-config"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("7s"), "{said}");
    assert!(!said.contains("secret-of-the-producers") && !said.contains("hunter2"), "{said}");
}

#[tokio::test]
async fn a_taken_address_is_told_and_ends_with_69() {
    let first = Setup::embedded().brisk().ready().await;
    let output = Setup::embedded()
        .with("GATEWAY_LISTEN", &first.public.to_string())
        .with("GATEWAY_INTERNAL_LISTEN", "127.0.0.1:0")
        .run(&[]);
    assert_eq!(output.status.code(), Some(69), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn healthcheck_asks_whether_a_node_is_ready() {
    let node = Setup::embedded().brisk().ready().await;
    let check = |address: String| {
        let setup = Setup::embedded();
        tokio::task::spawn_blocking(move || setup.run(&["--healthcheck", &address]).status.code())
    };
    assert_eq!(check(node.internal.to_string()).await.expect("no panic"), Some(0));
    let nobody = crate::support::ports::free();
    assert_ne!(check(nobody.to_string()).await.expect("no panic"), Some(0));
}
