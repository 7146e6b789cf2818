//! `read_from`, `newest`, `entry`, `legacy`: one order, complete, bounded.

use std::time::{Duration, Instant};

use gateway::backplane::{PUBLISH_ITEMS_MAX, STREAM_ENTRIES_MAX};
use shared::ids::{EventId, StreamId};
use tokio::task::JoinSet;

use super::bench::{Bench, done, eventually, ids, node, page, request};

const BLOCK: Duration = Duration::from_secs(10);

// Inv. ORDER
pub(crate) async fn publishers_at_once_make_one_order_without_holes(bench: Bench) {
    const PUBLISHERS: u64 = 4;
    const EACH: u64 = 25;
    const ITEMS: usize = 5;
    let mut publishers = JoinSet::new();
    for publisher in 0..PUBLISHERS {
        let handle = if publisher % 2 == 0 { bench.a.clone() } else { bench.b.clone() };
        publishers.spawn(async move {
            let mut batches = Vec::new();
            for number in 1..=EACH {
                let items = (0..ITEMS).map(|i| page(&format!("/{publisher}/{number}/{i}"))).collect();
                batches.push(done(handle.publish(&request(node(publisher), number, items)).await.expect("an answer")));
            }
            batches
        });
    }
    // Read while they write, as the relay does.
    let total = usize::try_from(PUBLISHERS * EACH).expect("few") * ITEMS;
    let mut read: Vec<EventId> = Vec::new();
    while read.len() < total {
        let after = read.last().map_or(StreamId::ZERO, |id| id.stream);
        let entries = bench.b.read_from(after, 7, BLOCK).await.expect("an answer");
        assert!((1..=7).contains(&entries.len()), "{} entries after {} of {total}", entries.len(), read.len());
        read.extend(ids(&entries));
    }
    assert!(read.is_sorted_by(|x, y| x.stream < y.stream), "strictly growing");
    for batches in publishers.join_all().await {
        let mut last = 0;
        for batch in batches {
            let at = read.iter().position(|id| *id == batch[0]).expect("all are read");
            assert_eq!(read[at..at + ITEMS], batch, "nothing between the items of one request");
            assert!(at >= last, "a publisher's requests keep their order");
            last = at + ITEMS;
        }
    }
    assert_eq!(ids(&bench.all().await), read);
}

pub(crate) async fn reading_goes_on_after_an_id_in_portions(bench: Bench) {
    let told = done(bench.publish(&request(node(1), 1, (0..5).map(|i| page(&format!("/{i}"))).collect())).await);
    let read = |after: StreamId, count| {
        let handle = bench.a.clone();
        async move { ids(&handle.read_from(after, count, BLOCK).await.expect("an answer")) }
    };
    assert_eq!(read(StreamId::ZERO, 2).await, told[..2]);
    assert_eq!(read(told[1].stream, 2).await, told[2..4]);
    assert_eq!(read(told[3].stream, 100).await, told[4..]);
    // An id between entries, where nothing stands, is a place too.
    let between = StreamId { ms: told[0].stream.ms - 1, seq: u64::MAX };
    assert_eq!(read(between, 100).await, told);
}

pub(crate) async fn reading_waits_for_the_first_entry(bench: Bench) {
    let first = done(bench.publish(&request(node(1), 1, vec![page("/1")])).await);
    let (handle, after) = (bench.b.clone(), first[0].stream);
    let mut reader = JoinSet::new();
    reader.spawn(async move { handle.read_from(after, 100, BLOCK).await.expect("an answer") });
    let began = Instant::now();
    // Calls on the same handle are answered while it waits.
    bench.b.salts(&[]).await.expect("an answer");
    let second = done(bench.b.publish(&request(node(1), 2, vec![page("/2"), page("/3")])).await.expect("an answer"));
    let entries = reader.join_next().await.expect("it was started").expect("it does not panic");
    assert_eq!(ids(&entries), second);
    assert!(began.elapsed() < BLOCK / 2, "woken, not timed out: {:?}", began.elapsed());
}

pub(crate) async fn reading_gives_up_after_its_wait(bench: Bench) {
    let wait = Duration::from_millis(100);
    for after in [StreamId::ZERO, StreamId { ms: u64::MAX, seq: 0 }] {
        let began = Instant::now();
        assert_eq!(bench.a.read_from(after, 10, wait).await, Ok(Vec::new()));
        assert!(began.elapsed() >= wait * 9 / 10, "gave up early: {:?}", began.elapsed());
    }
}

pub(crate) async fn newest_are_the_last_ones_oldest_first(bench: Bench) {
    assert_eq!(bench.a.newest(10).await, Ok(Vec::new()));
    let told = done(bench.publish(&request(node(1), 1, (0..5).map(|i| page(&format!("/{i}"))).collect())).await);
    assert_eq!(ids(&bench.b.newest(2).await.expect("an answer")), told[3..]);
    assert_eq!(ids(&bench.b.newest(100).await.expect("an answer")), told);
}

pub(crate) async fn up_to_an_id_are_the_last_ones_before_it(bench: Bench) {
    assert_eq!(bench.a.up_to(StreamId { ms: u64::MAX, seq: u64::MAX }, 10).await, Ok(Vec::new()));
    let told = done(bench.publish(&request(node(1), 1, (0..6).map(|i| page(&format!("/{i}"))).collect())).await);
    let up_to = async |last: StreamId, count| ids(&bench.b.up_to(last, count).await.expect("an answer"));
    assert_eq!(up_to(told[3].stream, 2).await, told[2..4], "itself included, oldest first");
    assert_eq!(up_to(told[3].stream, 100).await, told[..4]);
    assert_eq!(up_to(told[0].stream, 1).await, told[..1]);
    assert_eq!(up_to(told[3].stream, 0).await, []);
    assert_eq!(up_to(StreamId::ZERO, 10).await, []);
    // An id between entries, where nothing stands, is a place too.
    let between = StreamId { seq: told[2].stream.seq + 1_000_000, ..told[2].stream };
    let last = told.iter().rposition(|id| id.stream <= between).expect("the third at least");
    assert_eq!(up_to(between, 2).await, told[last - 1..=last]);
}

pub(crate) async fn a_long_past_is_read_page_by_page_without_a_hole(bench: Bench) {
    let mut told = Vec::new();
    for number in 1..=3 {
        let items = (0..400).map(|i| page(&format!("/{number}/{i}"))).collect();
        told.extend(done(bench.publish(&request(node(1), number, items)).await));
    }
    // Each page ends with the entry at which the one before began: the tie between the two.
    let mut past = vec![*told.last().expect("some")];
    loop {
        let mut page = ids(&bench.a.up_to(past[0].stream, 130).await.expect("an answer"));
        assert_eq!(page.pop(), Some(past[0]));
        if page.is_empty() {
            break;
        }
        past.splice(0..0, page);
    }
    assert_eq!(past, told);
}

pub(crate) async fn an_entry_is_found_at_its_id_alone(bench: Bench) {
    let told = done(bench.publish(&request(node(1), 1, vec![page("/1"), page("/2")])).await);
    for id in &told {
        let entry = bench.b.entry(id.stream).await.expect("an answer").expect("it stands there");
        assert_eq!(entry.event_id(), *id);
    }
    // Redis's clock may tick between two items of one request, so each has its own millisecond.
    let (first, last) = (told[0].stream, told[1].stream);
    for id in [StreamId::ZERO, StreamId { ms: last.ms, seq: last.seq + 1 }, StreamId { ms: first.ms - 1, seq: 0 }] {
        assert_eq!(bench.b.entry(id).await, Ok(None), "{id}");
    }
}

// Inv. BOUND
pub(crate) async fn the_stream_is_trimmed_to_about_its_bound(bench: Bench) {
    let rounds = STREAM_ENTRIES_MAX / PUBLISH_ITEMS_MAX + 2;
    let mut last = Vec::new();
    for round in 1..=rounds as u64 {
        let items = (0..PUBLISH_ITEMS_MAX).map(|i| page(&format!("/{round}/{i}"))).collect();
        last = done(bench.publish(&request(node(1), round, items)).await);
        assert_eq!(last.len(), PUBLISH_ITEMS_MAX);
    }
    let entries = bench.all().await;
    assert!((STREAM_ENTRIES_MAX..STREAM_ENTRIES_MAX * 21 / 20).contains(&entries.len()), "{}", entries.len());
    assert!(ids(&entries).ends_with(&last), "the newest stay");
    assert_eq!(ids(&bench.a.newest(10).await.expect("an answer")), last[last.len() - 10..]);
}

pub(crate) async fn the_legacy_channel_delivers_in_order_to_who_subscribed(bench: Bench) {
    assert_eq!(bench.publish_legacy("lost").await, 0, "nobody is subscribed yet");
    let mut receivers = [bench.a.legacy().await.expect("subscribed"), bench.b.legacy().await.expect("subscribed")];
    for i in 0..20 {
        assert_eq!(bench.publish_legacy(&format!("message {i}")).await, 2);
    }
    for receiver in &mut receivers {
        for i in 0..20 {
            let payload = tokio::time::timeout(BLOCK, receiver.recv()).await.expect("it comes").expect("it is open");
            assert_eq!(payload, format!("message {i}"));
        }
    }
    assert_eq!(bench.all().await, [], "moving it into the stream is the ticker's business");
}

pub(crate) async fn a_dropped_legacy_receiver_ends_its_subscription(bench: Bench) {
    drop(bench.a.legacy().await.expect("subscribed"));
    eventually("the subscription ends", || async { (bench.publish_legacy("x").await == 0).then_some(()) }).await;
    let mut again = bench.a.legacy().await.expect("subscribed again");
    assert_eq!(bench.publish_legacy("y").await, 1);
    let payload = tokio::time::timeout(BLOCK, again.recv()).await.expect("it comes").expect("it is open");
    assert_eq!(payload, "y");
}
