//! Clients that come back with the id of their last message, to whichever node.

mod storm;

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use shared::ids::EventId;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::client::{Client, Incoming, Message, Upgrade};
use crate::support::cluster::Cluster;
use crate::support::frame::{self, Frame};
use crate::support::gateway::{Gateway, Setup};
use crate::support::producer::Producer;
use crate::support::recorder::Recorder;
use crate::support::redis_server::{Durability, Options, RedisServer};
use crate::support::resp::Resp;
use crate::support::wait::{SOON, until};

/// Ticks come often enough here that snapshots are among what is missed.
fn busy(setup: Setup) -> Setup {
    setup.brisk().crowded()
}

/// A viewer, over all its connections.
#[derive(Debug, Default)]
struct Viewer {
    /// From which message it goes on.
    last: Option<String>,
    /// The numbers of the pages that it heard of, as they came.
    pages: Vec<u64>,
    /// What it was told is missing.
    gaps: Vec<(Option<EventId>, Option<EventId>)>,
    /// Where each of its pages stands.
    ids: Vec<EventId>,
}

impl Viewer {
    /// One that has heard of this page last.
    fn at(last: &str) -> Self {
        Self { last: Some(last.to_owned()), ..Self::default() }
    }

    fn query(&self) -> String {
        self.last.as_ref().map_or("ids=1".to_owned(), |last| format!("last_event_id={last}"))
    }

    async fn connect(&self, node: &Gateway) -> Client {
        Upgrade::query(&self.query()).open(node.public).await
    }

    /// Connects, reads until it has enough, and goes without a word.
    async fn visit(&mut self, node: &Gateway, enough: impl Fn(&Self) -> bool) {
        let mut client = self.connect(node).await;
        self.read(&mut client, enough).await;
    }

    async fn read(&mut self, client: &mut Client, enough: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + SOON * 2;
        while !enough(self) {
            match client.next_before(deadline).await {
                Some(Incoming::Text(text)) => self.hear(&Message::of(text)),
                Some(other) => panic!("{other:?} after {:?}", self.pages.last()),
                None => {
                    panic!("nothing comes after {:?} from {:?}; gaps: {:?}", self.pages.last(), self.last, self.gaps)
                }
            }
        }
    }

    /// As docs/PROTOCOL.md says: the last id that came is where a client goes on.
    fn hear(&mut self, message: &Message) {
        if let Some(id) = message.json["id"].as_str() {
            self.last = Some(id.to_owned());
        }
        match message.kind() {
            "new_event" => {
                let page = message.json["data"]["page_url"].as_str().expect("a page");
                self.pages.push(page.trim_start_matches('/').parse().expect("a number"));
                self.ids.push(message.json["id"].as_str().expect("an id").parse().expect("ours"));
            }
            "gap" => {
                let end = |key: &str| message.json[key].as_str().map(|id| id.parse().expect("an id"));
                self.gaps.push((end("from"), end("to")));
                if let Some(to) = message.json["to"].as_str() {
                    self.last = Some(to.to_owned());
                }
            }
            _ => {}
        }
    }

    fn assert_heard(&self, pages: impl IntoIterator<Item = u64>) {
        assert_eq!(self.pages, pages.into_iter().collect::<Vec<_>>(), "gaps: {:?}", self.gaps);
    }
}

/// Adds pages to the stream; says where each stands.
async fn stream(redis: &mut Resp, pages: impl IntoIterator<Item = u64>) -> Vec<EventId> {
    let mut ids = Vec::new();
    for page in pages {
        let data = Producer::page_data(&format!("/{page}"));
        let command = ["XADD", "{analytics}:events", "*", "type", "new_event", "data", &data];
        let stream = redis.call(&command).await.text().parse().expect("an id");
        ids.push(EventId { stream, digest: shared::ids::EntryDigest::of("new_event", data.as_bytes()) });
    }
    ids
}

/// Plain viewers, one on each node: they show how far the nodes are.
struct Ears(Vec<Recorder>);

impl Ears {
    async fn on(nodes: &[Gateway]) -> Self {
        let mut ears = Vec::new();
        for node in nodes {
            ears.push(Recorder::join(Client::open(node.public).await).await);
        }
        Self(ears)
    }

    /// Waits until all nodes have shown this page.
    async fn until(&self, page: u64) {
        for ear in &self.0 {
            ear.until_heard(&format!(r#""page_url":"/{page}","#), SOON).await;
        }
    }
}

fn resumes(outcome: &str) -> String {
    format!(r#"gateway_resumes_total{{outcome="{outcome}"}}"#)
}

// Inv. ORDER, Inv. GAP: viewers come and go between three nodes while a hundred events a second pass; each hears all of
// them, once and in order, and of no gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn viewers_move_between_nodes_under_load_and_miss_nothing() {
    const VIEWERS: usize = 12;
    const VISITS: usize = 25;
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
    assert_eq!(answered, (VIEWERS * VISITS) as u64);
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

// Inv. GAP: the past of a node has an end, and what lies before it is said exactly.
#[tokio::test]
async fn what_the_past_does_not_reach_is_a_gap_with_exact_bounds() {
    let cluster = Cluster::of(1, |setup| busy(setup).with("GATEWAY_REPLAY_BYTES", "16KiB")).await;
    let mut redis = Resp::to(&cluster.redis).await;
    let ears = Ears::on(&cluster.nodes).await;
    let ids = stream(&mut redis, 0..500).await;
    ears.until(499).await;
    let mut viewer = Viewer::at(&ids[3].to_string());
    viewer.visit(&cluster.nodes[0], |viewer| viewer.pages.last() == Some(&499)).await;
    let first = viewer.pages[0];
    assert!((5..499).contains(&first), "{first}: 16 KiB hold some tens of messages");
    viewer.assert_heard(first..500);
    let [(from, to)] = viewer.gaps[..] else { panic!("{:?}", viewer.gaps) };
    assert_eq!(from, Some(ids[3]));
    // It ends with the last that is missing; a snapshot may stand between that and the first that is not.
    let (to, first) = (to.expect("known"), usize::try_from(first).expect("small"));
    assert!(ids[first - 1].stream <= to.stream && to.stream < ids[first].stream, "{to} before {}", ids[first]);
    until("it is counted", SOON, async || (cluster.nodes[0].metric(&resumes("trimmed")).await == 1).then_some(()))
        .await;
}

// Inv. GAP: the stream was trimmed before the node came to read it.
#[tokio::test]
async fn what_redis_has_trimmed_is_a_gap_with_exact_bounds() {
    let cluster = Cluster::of(1, busy).await;
    let mut redis = Resp::to(&cluster.redis).await;
    let ears = Ears::on(&cluster.nodes).await;
    let ids = stream(&mut redis, 0..100).await;
    ears.until(99).await;
    redis.call(&["XTRIM", "{analytics}:events", "MINID", &ids[60].stream.to_string()]).await;
    let late = busy(Setup::on(&cluster.redis)).ready().await;
    let mut viewer = Viewer::at(&ids[3].to_string());
    viewer.visit(&late, |viewer| viewer.pages.last() == Some(&99)).await;
    // The oldest that is left is the end of the gap, and part of it: what lies before it has no name any more.
    viewer.assert_heard(61..100);
    assert_eq!(viewer.gaps, [(Some(ids[3]), Some(ids[60]))]);
    // Who has the oldest misses nothing.
    let mut viewer = Viewer::at(&ids[60].to_string());
    viewer.visit(&late, |viewer| viewer.pages.last() == Some(&99)).await;
    viewer.assert_heard(61..100);
    assert_eq!(viewer.gaps, []);
    // On the node that has seen it all, nobody does.
    let mut viewer = Viewer::at(&ids[3].to_string());
    viewer.visit(&cluster.nodes[0], |viewer| viewer.pages.last() == Some(&99)).await;
    viewer.assert_heard(4..100);
    assert_eq!(viewer.gaps, []);
}

// Inv. GAP: the stream is trimmed past the place of a node that slept. Who is live is told before anything that comes
// behind the hole, so who leaves then has not missed it unsaid; and who comes back is told in its place.
#[tokio::test]
async fn a_node_that_was_outrun_says_so_before_it_goes_on() {
    let cluster = Cluster::of(2, busy).await;
    let mut redis = Resp::to(&cluster.redis).await;
    let ears = Ears::on(&cluster.nodes).await;
    let mut ids = stream(&mut redis, 0..5).await;
    ears.until(4).await;
    let (outrun, other) = (&cluster.nodes[0], &cluster.nodes[1]);
    let mut viewer = Viewer::at(&ids[2].to_string());
    let mut client = viewer.connect(outrun).await;
    viewer.read(&mut client, |viewer| viewer.pages.len() == 2).await;
    // Shorter than what would make the node doubt its place by itself.
    outrun.freeze();
    ids.extend(stream(&mut redis, 5..100).await);
    ears.0[1].until_heard(r#""page_url":"/99","#, SOON).await;
    redis.call(&["XTRIM", "{analytics}:events", "MINID", &ids[60].stream.to_string()]).await;
    outrun.thaw();
    viewer.read(&mut client, |viewer| viewer.pages.last() >= Some(&60)).await;
    // The last that it got before it fell asleep.
    let got = viewer.pages[viewer.pages.len() - 2];
    viewer.assert_heard((3..=got).chain([60]));
    let got = usize::try_from(got).expect("small");
    let [(from, None)] = viewer.gaps[..] else { panic!("{:?}", viewer.gaps) };
    assert!(from.is_some_and(|from| ids[got].stream <= from.stream && from.stream < ids[60].stream), "{from:?}");
    // Who was away then, and comes to this node, is told the same.
    ears.until(99).await;
    let mut away = Viewer::at(&ids[3].to_string());
    away.visit(outrun, |viewer| viewer.pages.last() == Some(&99)).await;
    away.assert_heard((4..=got as u64).chain(60..100));
    assert_eq!(away.gaps, viewer.gaps);
    // The other node was awake.
    let mut away = Viewer::at(&ids[3].to_string());
    away.visit(other, |viewer| viewer.pages.last() == Some(&99)).await;
    away.assert_heard(4..100);
    assert_eq!(away.gaps, []);
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

// Inv. GAP: ids of another stream, of no stream, and of the future.
#[tokio::test]
async fn an_id_that_never_was_gets_a_gap_up_to_now() {
    let cluster = Cluster::of(2, busy).await;
    let mut redis = Resp::to(&cluster.redis).await;
    let ears = Ears::on(&cluster.nodes).await;
    let ids = stream(&mut redis, 0..10).await;
    ears.until(9).await;
    let foreign = EventId { digest: shared::ids::EntryDigest::of("new_event", b"{}"), ..ids[4] };
    let mut between = ids[4];
    between.stream.seq += 1_000;
    let future: EventId = "18446744073709551615-18446744073709551615-abcd".parse().expect("an id");
    let mut page = 10;
    for last in [foreign, between, future] {
        for node in &cluster.nodes {
            let mut viewer = Viewer::at(&last.to_string());
            let mut client = viewer.connect(node).await;
            viewer.read(&mut client, |viewer| !viewer.gaps.is_empty()).await;
            let (from, to) = viewer.gaps[0];
            assert_eq!(from, Some(last));
            // Inv. ORDER: an end that lies behind what the client had would lead it back.
            let up_to_now = to.is_some_and(|to| to.stream >= ids[9].stream);
            assert_eq!(up_to_now, last != future, "up to now, or open: {to:?}");
            assert_eq!(to.is_none(), last == future);
            stream(&mut redis, [page]).await;
            viewer.read(&mut client, |viewer| !viewer.pages.is_empty()).await;
            viewer.assert_heard([page]);
            ears.until(page).await;
            page += 1;
        }
    }
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

// Inv. GAP: Redis loses its data while the client is away. The nodes tell it, and a node that came later does.
#[tokio::test]
async fn who_was_away_while_redis_lost_its_data_is_told() {
    let redis = RedisServer::with(Options { durability: Durability::Nothing, ..Options::default() });
    let mut cluster = Cluster::on(redis, 2, busy).await;
    let mut producer = Resp::to(&cluster.redis).await;
    let mut viewer = Viewer::default();
    let mut client = viewer.connect(&cluster.nodes[0]).await;
    viewer.read(&mut client, |viewer| viewer.last.is_some()).await;
    stream(&mut producer, 0..5).await;
    viewer.read(&mut client, |viewer| viewer.pages.len() == 5).await;
    drop(client);
    // Some more that it will never see, if the node saw them.
    let ears = Ears::on(&cluster.nodes).await;
    let lost = stream(&mut producer, 5..8).await;
    ears.until(7).await;

    cluster.redis.kill9();
    for node in &cluster.nodes {
        node.until_health("degraded", SOON).await;
    }
    cluster.redis.restart();
    let mut producer = Resp::to(&cluster.redis).await;
    stream(&mut producer, 10..15).await;
    for node in &cluster.nodes {
        node.until_metric("gateway_gap_entries_total", 1).await;
    }
    stream(&mut producer, 15..20).await;
    let last = viewer.last.clone().expect("some");
    let had: EventId = last.parse().expect("an id");
    viewer.visit(&cluster.nodes[1], |viewer| viewer.pages.last() == Some(&19)).await;
    // The node still has what it saw before, and knows where the hole is.
    viewer.assert_heard((0..8).chain(10..20));
    let [(from, _)] = viewer.gaps[..] else { panic!("{:?}", viewer.gaps) };
    assert!(from.is_some_and(|from| from.stream >= lost[2].stream), "behind what it has got: {from:?}");

    let late = busy(Setup::on(&cluster.redis)).ready().await;
    let mut again = Viewer::at(&last);
    again.visit(&late, |viewer| viewer.pages.last() == Some(&19)).await;
    let [(from, to)] = again.gaps[..] else { panic!("{:?}", again.gaps) };
    assert_eq!(from, Some(had));
    let first = again.pages[0];
    again.assert_heard(first..20);
    let to = to.expect("the oldest that is left is known");
    assert!(again.ids[0].stream > to.stream && had.stream < to.stream, "{to}");
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
