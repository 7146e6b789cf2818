//! Several nodes on one Redis behave as one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use shared::ids::EventId;
use shared::time::Timestamp;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::support::client::{Message, Upgrade};
use crate::support::cluster::Cluster;
use crate::support::gateway::Setup;
use crate::support::recorder::{Heard, Recorder};
use crate::support::wait::{SOON, until};

/// How many messages of a page view were heard.
fn pages_heard(heard: &[Heard]) -> usize {
    heard.iter().filter(|one| one.text.starts_with(r#"{"type":"new_event""#)).count()
}

fn page_of(message: &Message) -> &str {
    message.json["data"]["page_url"].as_str().expect("a page")
}

fn second_of(message: &Message) -> u64 {
    let text = message.json["data"]["timestamp"].as_str().expect("a time");
    Timestamp::parse(text).expect("RFC 3339").unix_seconds()
}

/// What a client heard from the first page view to the last: type and data.
fn heard_part(recorder: &Recorder) -> Vec<String> {
    let all: Vec<Message> = recorder.heard().into_iter().map(|heard| Message::of(heard.text)).collect();
    let is_page = |message: &Message| message.kind() == "new_event";
    let first = all.iter().position(is_page).expect("some");
    let last = all.iter().rposition(is_page).expect("some");
    all[first..=last].iter().map(|message| format!("{} {}", message.kind(), message.json["data"])).collect()
}

/// Two clients heard the same events, and what both heard they heard in the same order. A node that has to catch up
/// shows only the newest of several numbers, so a number that only one of them saw is no fault.
fn assert_alike(one: &[String], other: &[String]) {
    let is_event = |heard: &&String| !heard.starts_with("realtime_update");
    assert!(one.iter().filter(is_event).eq(other.iter().filter(is_event)), "{one:#?}\n{other:#?}");
    let common: BTreeSet<&String> = one.iter().filter(|heard| other.contains(heard)).collect();
    let in_both = |heard: &&String| common.contains(heard);
    assert!(one.iter().filter(in_both).eq(other.iter().filter(in_both)), "{one:#?}\n{other:#?}");
}

// Inv. ORDER: three ways in, three nodes, clients of two kinds: one order, each event once.
#[tokio::test]
async fn each_event_reaches_each_client_once_and_in_one_order() {
    const EACH: usize = 60;
    let cluster = Cluster::of(3, |setup| setup.brisk().crowded()).await;
    let [a, b, c] = &cluster.nodes[..] else { panic!("three nodes") };
    let mut plain = Vec::new();
    let mut with_ids = Vec::new();
    for node in [a, b, c] {
        plain.push(Recorder::join(Upgrade::new().open(node.public).await).await);
        with_ids.push(Recorder::join(Upgrade::query("ids=1").open(node.public).await).await);
    }
    // The ticker listens on the channel from before its first tick.
    plain[0].until_new("realtime_update", SOON).await;

    let (mut streamer, mut publisher) = (cluster.producer().await, cluster.producer().await);
    let post = async |node: &crate::support::gateway::Gateway, name: &str| {
        for n in 0..EACH {
            node.post_page(&format!("/{name}/{n}")).await;
        }
    };
    let stream = async {
        for n in 0..EACH {
            streamer.stream_page(&format!("/stream/{n}")).await;
        }
    };
    let publish = async {
        for n in 0..EACH {
            publisher.publish_page(&format!("/channel/{n}")).await;
        }
    };
    tokio::join!(stream, publish, post(a, "a"), post(b, "b"), post(c, "c"));

    for recorder in plain.iter().chain(&with_ids) {
        recorder.until("all events", SOON, |heard| pages_heard(heard) >= 5 * EACH).await;
    }
    let order = heard_part(&plain[0]);
    let pages = plain[0].messages(&["new_event"]);
    let distinct: BTreeSet<&str> = pages.iter().map(page_of).collect();
    assert_eq!((pages.len(), distinct.len()), (5 * EACH, 5 * EACH), "each event once");
    let mut next: HashMap<&str, usize> = HashMap::new();
    for page in &pages {
        let (source, number) = page_of(page).rsplit_once('/').expect("/source/number");
        let expected = next.entry(source).or_default();
        assert_eq!(number.parse(), Ok(*expected), "{source}'s events keep their order");
        *expected += 1;
    }
    for recorder in plain.iter().chain(&with_ids) {
        assert_alike(&heard_part(recorder), &order);
    }
    for recorder in &with_ids {
        let messages = recorder.messages(&["new_event", "realtime_update"]);
        let id =
            |message: &Message| message.json["id"].as_str().expect("an id").parse::<EventId>().expect("well-formed");
        assert!(messages.is_sorted_by(|one, other| id(one).stream < id(other).stream), "ids grow");
        assert!(recorder.messages(&["gap"]).is_empty());
    }
}

// Inv. ORDER: whoever joins in the middle gets `init`, then a part of the stream without hole or repetition.
#[tokio::test]
async fn five_hundred_join_while_a_hundred_events_a_second_pass() {
    const JOINS: usize = 500;
    const AT_A_TIME: usize = 25;
    let cluster = Cluster::of(3, |setup| setup.brisk().crowded()).await;
    let mut producer = cluster.producer().await;
    let mut load = JoinSet::new();
    load.spawn(async move {
        let mut pace = tokio::time::interval(Duration::from_millis(10));
        pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for n in 0u64.. {
            pace.tick().await;
            producer.stream_page(&format!("/join/{n}")).await;
        }
    });
    let nodes = Arc::new(cluster.nodes.iter().map(|node| node.public).collect::<Vec<_>>());
    let mut workers = JoinSet::new();
    for worker in 0..AT_A_TIME {
        let nodes = Arc::clone(&nodes);
        workers.spawn(async move {
            for join in 0..JOINS / AT_A_TIME {
                let upgrade = if join % 2 == 0 { Upgrade::new() } else { Upgrade::query("ids=1") };
                join_and_check(&upgrade, nodes[(worker + join) % nodes.len()]).await;
            }
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker.expect("each join is right");
    }
    assert!(load.try_join_next().is_none(), "events kept coming");
}

async fn join_and_check(upgrade: &Upgrade, node: std::net::SocketAddr) {
    let mut client = upgrade.open(node).await;
    let init = client.next_json(SOON).await;
    assert_eq!(init.kind(), "init");
    let mut last_second = second_of(&init);
    let mut last_page: Option<u64> = None;
    for _ in 0..15 {
        let message = client.next_json(SOON).await;
        match message.kind() {
            "realtime_update" => {
                assert!(second_of(&message) > last_second, "newer than init: {message:?} after {init:?}");
                last_second = second_of(&message);
            }
            "new_event" => {
                let page: u64 = page_of(&message).trim_start_matches("/join/").parse().expect("a number");
                if let Some(last) = last_page {
                    assert_eq!(page, last + 1, "neither hole nor repetition");
                }
                last_page = Some(page);
            }
            other => panic!("nobody sent {other:?}"),
        }
    }
    assert_eq!(client.close().await, 1000);
}

// Inv. SLOT: nodes come and go, and each time it is the ticker that goes.
#[tokio::test]
async fn one_snapshot_per_slot_while_nodes_come_and_go() {
    come_and_go(2, 10).await;
}

/// The documented interval, for a minute.
#[tokio::test]
#[ignore = "takes more than a minute; `make acceptance` runs it"]
async fn acceptance_one_snapshot_per_5s_slot_for_a_minute_while_nodes_come_and_go() {
    come_and_go(5, 13).await;
}

async fn come_and_go(interval_s: u64, slots: usize) {
    let setup = move |setup: Setup| {
        setup
            .crowded()
            .with("GATEWAY_TICK_INTERVAL", &format!("{interval_s}s"))
            .with("GATEWAY_DRAIN_DELAY", "0s")
            .with("GATEWAY_DRAIN_WINDOW", "200ms")
    };
    let mut cluster = Cluster::of(3, setup).await;
    let mut recorders = Vec::new();
    for node in &cluster.nodes {
        recorders.push(Recorder::join(Upgrade::new().open(node.public).await).await);
    }
    let before = cluster.ticks().await.len();
    while cluster.ticks().await.len() < before + slots {
        let new = setup(Setup::on(&cluster.redis)).ready().await;
        recorders.push(Recorder::join(Upgrade::new().open(new.public).await).await);
        cluster.nodes.push(new);
        let ticker = cluster.ticker().await;
        let mut leaving = cluster.nodes.remove(ticker);
        leaving.terminate();
        assert_eq!(leaving.exit_code(SOON * 2).await, Some(0));
    }

    let ticks = cluster.ticks().await;
    for pair in ticks.windows(2) {
        let ((slot, epoch), (next_slot, next_epoch)) = (pair[0], pair[1]);
        assert_eq!(next_slot.0 - slot.0, interval_s * 1_000, "one in each slot, none left out: {ticks:?}");
        assert!(next_epoch >= epoch, "{ticks:?}");
    }
    let reigns: BTreeSet<u64> = ticks.iter().map(|(_, epoch)| *epoch).collect();
    assert!(reigns.len() > 3, "the ticker changed: {reigns:?}");
    for recorder in &recorders {
        let slots: Vec<u64> =
            recorder.messages(&["realtime_update"]).iter().map(|update| second_of(update) / interval_s).collect();
        assert!(slots.windows(2).all(|pair| pair[1] == pair[0] + 1), "{slots:?}");
    }
}

#[tokio::test]
async fn all_nodes_show_the_same_number_and_it_is_right() {
    let cluster = Cluster::of(3, |setup| setup.brisk().crowded().with("GATEWAY_VISITOR_WINDOW", "10s")).await;
    let [a, b, c] = &cluster.nodes[..] else { panic!("three nodes") };
    // Four visitors with five sockets: dora has two, on two nodes.
    let mut watchers = Vec::new();
    for (node, visitor) in [(a, "anna"), (b, "bert"), (c, "carl"), (a, "dora"), (c, "dora")] {
        watchers.push(Recorder::join(Upgrade::query(&format!("visitor={visitor}")).open(node.public).await).await);
    }
    // One who came and left.
    let left = Upgrade::query("visitor=gina").open(b.public).await;
    assert_eq!(left.close().await, 1000);
    // Two who are known from events alone, again and again, by each of the ways.
    watchers[0].until_new("realtime_update", SOON).await;
    let mut producer = cluster.producer().await;
    for node in [a, b] {
        let answer = node.post(r#"{"event_type":"page_view","page_url":"/e","visitor_id":"emil"}"#).await;
        assert_eq!(answer.status(), 202, "{}", answer.body);
    }
    let data = crate::support::producer::Producer::page_data("/f");
    producer.stream(&[("type", "new_event"), ("data", &data), ("visitor", "fred")]).await;
    producer.publish(br#"{"type":"page_view","visitor_id":"fred","page_url":"/f"}"#).await;
    // And one who is watching anyway.
    let answer = c.post(r#"{"event_type":"page_view","page_url":"/a","visitor_id":"anna"}"#).await;
    assert_eq!(answer.status(), 202, "{}", answer.body);

    let says = |count: u64| format!(r#""active_visitors":{count},"#);
    for watcher in &watchers {
        watcher.until("seven visitors", SOON, |heard| heard.iter().any(|one| one.text.contains(&says(7)))).await;
    }
    // After the window only those who are there remain; and they do remain.
    for watcher in &watchers {
        watcher.until_new(&says(4), SOON * 3).await;
    }
    for _ in 0..4 {
        watchers[0].until_new("realtime_update", SOON).await;
    }
    let mut shown: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for watcher in &watchers {
        let updates = watcher.messages(&["realtime_update"]);
        let counts: Vec<u64> =
            updates.iter().map(|update| update.json["data"]["active_visitors"].as_u64().expect("a count")).collect();
        assert!(counts.iter().all(|count| *count <= 7), "nobody is counted twice: {counts:?}");
        assert_eq!(counts[counts.len() - 3..], [4, 4, 4], "{counts:?}");
        for (update, count) in updates.iter().zip(counts) {
            shown.entry(second_of(update)).or_default().insert(count);
        }
    }
    assert!(shown.values().all(|counts| counts.len() == 1), "at no time two numbers: {shown:?}");
}

#[tokio::test]
async fn a_prefix_of_its_own_is_a_cluster_of_its_own() {
    let cluster = Cluster::of(1, |setup| setup.brisk().crowded()).await;
    let other = Setup::on(&cluster.redis).brisk().crowded().with("GATEWAY_KEY_PREFIX", "staging").ready().await;
    let here = Recorder::join(Upgrade::new().open(cluster.nodes[0].public).await).await;
    let there = Recorder::join(Upgrade::new().open(other.public).await).await;
    cluster.nodes[0].post_page("/here").await;
    other.post_page("/there").await;
    here.until("its event", SOON, |heard| pages_heard(heard) == 1).await;
    there.until("its event", SOON, |heard| pages_heard(heard) == 1).await;
    until("both tick", SOON, async || {
        let ticking = cluster.nodes[0].metric("gateway_ticker").await + other.metric("gateway_ticker").await;
        (ticking == 2).then_some(())
    })
    .await;
    assert_eq!(page_of(&here.messages(&["new_event"])[0]), "/here");
    assert_eq!(page_of(&there.messages(&["new_event"])[0]), "/there");
}
