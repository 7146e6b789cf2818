//! Clients that come back with the id of their last message, to whichever node.

mod gaps;
mod storm;
mod viewer;

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use shared::ids::EventId;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::viewer::{Ears, Viewer, busy, resumes, stream};
use crate::support::client::{Client, Incoming, Message, Upgrade};
use crate::support::cluster::Cluster;
use crate::support::frame::{self, Frame};
use crate::support::gateway::Setup;
use crate::support::producer::Producer;
use crate::support::resp::Resp;
use crate::support::wait::{SOON, until};

// Inv. ORDER, Inv. GAP: viewers come and go between three nodes while a hundred events a second pass; each hears all of
// them, once and in order, and of no gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn viewers_move_between_nodes_under_load_and_miss_nothing() {
    const VIEWERS: usize = 12;
    const VISITS: usize = 25;
    const LEFT_EARLY_MAX: u64 = 6;
    let cluster = Arc::new(Cluster::of(3, busy).await);
    let published = Arc::new(watch::Sender::new(0));
    let mut producing = JoinSet::new();
    producing.spawn({
        let (cluster, published) = (Arc::clone(&cluster), Arc::clone(&published));
        async move {
            let mut redis = Resp::to(&cluster.redis).await;
            let mut pace = tokio::time::interval(Duration::from_millis(10));
            for page in 0.. {
                pace.tick().await;
                stream(&mut redis, [page]).await;
                published.send_replace(page + 1);
            }
        }
    });
    let mut viewers = JoinSet::new();
    for _ in 0..VIEWERS {
        let (cluster, published) = (Arc::clone(&cluster), Arc::clone(&published));
        viewers.spawn(async move {
            let mut viewer = Viewer::default();
            viewer.visit(&cluster.nodes[0], |viewer| !viewer.pages.is_empty()).await;
            for _ in 0..VISITS {
                let (node, more) = {
                    let mut random = rand::rng();
                    (random.random_range(0..3), random.random_range(0..20))
                };
                // An absence of some events, or of none.
                let (heard, away) = (viewer.pages.len(), rand::rng().random_range(0..30));
                let mut events = published.subscribe();
                let back = *events.borrow() + away;
                events.wait_for(|published| *published >= back).await.expect("the sender lives");
                viewer.visit(&cluster.nodes[node], |viewer| viewer.pages.len() > heard + more).await;
            }
            viewer
        });
    }
    let viewers = viewers.join_all().await;
    drop(producing);
    for viewer in viewers {
        let first = viewer.pages[0];
        viewer.assert_heard(first..first + viewer.pages.len() as u64);
        assert_eq!(viewer.gaps, []);
    }
    let mut answered = 0;
    for node in &cluster.nodes {
        answered += node.metric(&resumes("complete")).await;
        for fault in ["trimmed", "unknown", "too_slow"] {
            assert_eq!(node.metric(&resumes(fault)).await, 0, "{fault}");
        }
    }
    // Who has heard enough leaves, now and then while the rest of its past is still being written: nobody counts that one.
    let returns = (VIEWERS * VISITS) as u64;
    assert!((returns - LEFT_EARLY_MAX..=returns).contains(&answered), "{answered} of {returns}");
}

#[tokio::test]
async fn init_comes_first_and_filters_apply_to_what_is_replayed() {
    let cluster = Cluster::of(2, busy).await;
    let mut redis = Resp::to(&cluster.redis).await;
    let ears = Ears::on(&cluster.nodes).await;
    let ids = stream(&mut redis, 0..3).await;
    let letter = r#"{"letter_type":"motivation","timestamp":"2025-12-08T10:30:05Z"}"#;
    redis.call(&["XADD", "{analytics}:events", "*", "type", "letter_generated", "data", letter]).await;
    stream(&mut redis, 3..5).await;
    ears.until(4).await;
    for node in &cluster.nodes {
        let query = format!("types=letter_generated&last_event_id={}", ids[0]);
        let mut client = Upgrade::query(&query).open(node.public).await;
        let init = client.next_json(SOON).await;
        // An id of its own would be one to go on from, ahead of all that follows.
        assert_eq!((init.kind(), &init.json["id"]), ("init", &serde_json::Value::Null));
        assert!(init.json["data"]["active_visitors"].is_u64());
        let letter = client.next_json(SOON).await;
        assert_eq!(letter.kind(), "letter_generated", "{}", letter.text);
        assert!(letter.json["id"].as_str().is_some_and(|id| id.parse::<EventId>().is_ok()), "ids are implied");
    }
}

// Inv. BOUND: however many come back at once, the node reads its past once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_returning_viewers_is_a_handful_of_reads() {
    const VIEWERS: usize = 150;
    let cluster = Cluster::of(1, busy).await;
    let mut redis = Resp::to(&cluster.redis).await;
    let script = "for n = 0, 1999 do redis.call('XADD', KEYS[1], '*', 'type', 'new_event', 'data', \
                  '{\"event_type\":\"page_view\",\"page_url\":\"/' .. n .. '\",\"timestamp\":\"2025-12-08T10:30:05Z\"}') end";
    redis.call(&["EVAL", script, "1", "{analytics}:events"]).await;
    let first = redis.call(&["XRANGE", "{analytics}:events", "-", "+", "COUNT", "50"]).await;
    let page = Producer::page_data("/0");
    let at = first.many().iter().find(|entry| entry.many()[1].many()[3].text() == page).expect("the first page");
    let last = format!("{}-{}", at.many()[0].text(), shared::ids::EntryDigest::of("new_event", page.as_bytes()));
    let late = Arc::new(busy(Setup::on(&cluster.redis)).ready().await);
    let range_reads = async |redis: &mut Resp| {
        let stats = redis.call(&["INFO", "commandstats"]).await;
        let calls = |name: &str| {
            let line = stats.text().lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{name}:calls=")));
            line.map_or(0, |rest| rest.split(',').next().expect("a number").parse::<u64>().expect("a number"))
        };
        calls("xrange") + calls("xrevrange")
    };
    let before = range_reads(&mut redis).await;
    // A node takes so many requests of one address at once; this is about what comes after the handshake.
    let door = Arc::new(tokio::sync::Semaphore::new(20));
    let mut storm = JoinSet::new();
    for _ in 0..VIEWERS {
        let (late, last, door) = (Arc::clone(&late), last.clone(), Arc::clone(&door));
        storm.spawn(async move {
            let mut viewer = Viewer::at(&last);
            let turn = door.acquire().await.expect("never closed");
            let mut client = viewer.connect(&late).await;
            drop(turn);
            viewer.read(&mut client, |viewer| viewer.pages.len() == 1_999).await;
            viewer.assert_heard(1..2_000);
            assert_eq!(viewer.gaps, []);
        });
    }
    storm.join_all().await;
    let (asked, read) = (late.metric("gateway_replay_reads_total").await, range_reads(&mut redis).await - before);
    // Two reads of 512; on the wire in pages of 64. The node read its newest 1,024 when it started.
    assert!((1..=4).contains(&asked), "{asked}");
    assert!(read <= 50, "{read} range reads for {VIEWERS} viewers");
}

// Inv. ORDER: the client was ahead of the node that it comes to; it must not hear again what it has heard elsewhere.
#[tokio::test]
async fn who_comes_to_a_node_that_lags_waits_for_it() {
    let cluster = Cluster::of(2, busy).await;
    let mut redis = Resp::to(&cluster.redis).await;
    let mut viewer = Viewer::default();
    let mut client = viewer.connect(&cluster.nodes[0]).await;
    viewer.read(&mut client, |viewer| viewer.last.is_some()).await;
    for round in 0..5u64 {
        cluster.nodes[1].freeze();
        stream(&mut redis, round * 20..round * 20 + 10).await;
        viewer.read(&mut client, |viewer| viewer.pages.len() as u64 == round * 20 + 10).await;
        drop(client);
        // The kernel takes the connection and the request for it.
        let mut stream_of = tokio::net::TcpStream::connect(cluster.nodes[1].public).await.expect("the kernel accepts");
        let request = Upgrade::query(&viewer.query()).bytes();
        tokio::io::AsyncWriteExt::write_all(&mut stream_of, &request).await.expect("the kernel takes it");
        cluster.nodes[1].thaw();
        let mut late = Client::after_request(stream_of).await;
        stream(&mut redis, round * 20 + 10..round * 20 + 20).await;
        viewer.read(&mut late, |viewer| viewer.pages.len() as u64 == round * 20 + 20).await;
        drop(late);
        client = viewer.connect(&cluster.nodes[0]).await;
    }
    viewer.assert_heard(0..100);
    assert_eq!(viewer.gaps, []);
}

// Whatever stands in the parameter, the node says what is wrong with it, or that the past is missing.
#[tokio::test]
async fn hostile_values_are_refused_by_name() {
    let node = Setup::embedded().crowded().ready().await;
    let long = "1".repeat(4_000);
    let values = [
        "",
        "0",
        "$",
        "%2B",
        "-",
        "+",
        "1-1",
        "null",
        "1-1-abcg",
        "1-1-ABCD",
        "01-1-abcd",
        "-1-1-abcd",
        "1-1-abcd%00",
        "%F0%9F%8E%89-0-abcd",
        "18446744073709551616-0-abcd",
        "1-18446744073709551616-abcd",
        "1-1-abcd,1-1-abcd",
        "1-1-abcd%0d%0aSet-Cookie:x",
        &long,
    ];
    for value in values {
        let answer = Upgrade::query(&format!("last_event_id={value}")).refused(node.public).await;
        assert_eq!((answer.status(), answer.body.contains("last_event_id")), (400, true), "{value}: {}", answer.body);
        assert!(answer.head.header("set-cookie").is_none());
    }
    let twice = Upgrade::query("last_event_id=1-1-abcd&last_event_id=1-1-abcd").refused(node.public).await;
    assert_eq!(twice.status(), 400);
    // Well-formed: told that it is of no known stream, and served.
    let mut viewer = Viewer::at("0-0-0000");
    viewer.visit(&node, |viewer| !viewer.gaps.is_empty()).await;
}

// Inv. DRAIN: whoever comes back to a node that is going is served, sent away, and goes on elsewhere.
#[tokio::test]
async fn resuming_at_a_node_that_drains_and_going_on_elsewhere() {
    let setup = |setup: Setup| {
        busy(setup)
            .with("GATEWAY_DRAIN_DELAY", "3s")
            .with("GATEWAY_DRAIN_WINDOW", "1s")
            .with("GATEWAY_DRAIN_GRACE", "2s")
    };
    let mut cluster = Cluster::of(2, setup).await;
    let mut redis = Resp::to(&cluster.redis).await;
    let ears = Ears::on(&cluster.nodes).await;
    let ids = stream(&mut redis, 0..2_000).await;
    ears.until(1_999).await;
    drop(ears);
    cluster.nodes[0].terminate();
    until("it drains", SOON, async || (cluster.nodes[0].probe("/readyz").await == Some(503)).then_some(())).await;
    let mut viewer = Viewer::at(&ids[9].to_string());
    let mut client = viewer.connect(&cluster.nodes[0]).await;
    // It reads some, is sent away, and reads what was under way.
    viewer.read(&mut client, |viewer| viewer.pages.len() == 100).await;
    stream(&mut redis, 2_000..2_100).await;
    let code = loop {
        match client.next_before(Instant::now() + SOON).await.expect("it comes to an end") {
            Incoming::Text(text) => viewer.hear(&Message::of(text)),
            Incoming::Pong(_) => {}
            Incoming::End(end) => break end,
        }
    };
    assert!(matches!(code, crate::support::client::End::Close { code: 1012, .. }), "{code:?}");
    viewer.visit(&cluster.nodes[1], |viewer| viewer.pages.last() == Some(&2_099)).await;
    viewer.assert_heard(10..2_100);
    assert_eq!(viewer.gaps, []);
    assert_eq!(cluster.nodes[0].exit_code(SOON).await, Some(0));
}

// A client that is closed in the middle of its past goes on from there; its heartbeat and its close work meanwhile.
#[tokio::test]
async fn a_close_in_the_middle_of_the_past_is_answered() {
    let cluster = Cluster::of(1, busy).await;
    let mut redis = Resp::to(&cluster.redis).await;
    let ears = Ears::on(&cluster.nodes).await;
    let ids = stream(&mut redis, 0..3_000).await;
    ears.until(2_999).await;
    let mut viewer = Viewer::at(&ids[0].to_string());
    let mut client = viewer.connect(&cluster.nodes[0]).await;
    viewer.read(&mut client, |viewer| viewer.pages.len() == 10).await;
    client.send(&Frame::of(frame::CLOSE, &frame::close_payload(1000, ""))).await;
    loop {
        match client.next_before(Instant::now() + SOON).await.expect("it comes to an end") {
            Incoming::Text(text) => viewer.hear(&Message::of(text)),
            Incoming::Pong(_) => {}
            Incoming::End(end) => {
                assert!(matches!(end, crate::support::client::End::Close { code: 1000, .. }), "{end:?}");
                break;
            }
        }
    }
    viewer.visit(&cluster.nodes[0], |viewer| viewer.pages.last() == Some(&2_999)).await;
    viewer.assert_heard(1..3_000);
}
