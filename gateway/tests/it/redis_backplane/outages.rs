//! A Redis that dies, freezes, comes late, or is overrun.

use std::time::Instant;

use gateway::backplane::{Join, LEGACY_QUEUE_MAX};
use gateway::metrics::{BackplaneFailure, Legacy};
use shared::ids::StreamId;
use tokio::task::JoinSet;

use super::*;

#[tokio::test]
async fn killed_and_restarted_it_is_found_again() {
    let options = Options { durability: Durability::Everything, ..Options::default() };
    let mut redis = RedisServer::with(options);
    let (backplane, metrics) = connect(&redis.url());
    let mut legacy = bounded(backplane.legacy()).await.expect("subscribed");
    let first = bounded(backplane.publish(&page(node(1), 1))).await.expect("done");
    assert_eq!(metrics.backplane_up.value(), 1);

    redis.kill9();
    let error = bounded(backplane.publish(&page(node(1), 2))).await.expect_err("nobody is there");
    assert!(matches!(error, BackplaneError::Unreachable | BackplaneError::Timeout), "{error}");
    bounded(backplane.read_from(StreamId::ZERO, 1, Duration::from_millis(10))).await.expect_err("nobody is there");
    assert_eq!(metrics.backplane_up.value(), 0);
    assert!(metrics.backplane_failures.value(BackplaneFailure::Unreachable) > 0);

    redis.restart();
    back(&backplane).await;
    // Scripts are unknown to the new process; the answer of before is known.
    assert_eq!(bounded(backplane.publish(&page(node(1), 1))).await, Ok(first));
    let read = until("the stream can be read", BACK_WITHIN, async || {
        backplane.read_from(StreamId::ZERO, 10, Duration::from_millis(10)).await.ok()
    });
    assert_eq!(read.await.len(), 1);
    // Nobody but the subscription itself can say when it is back; until then messages are lost, as pub/sub is.
    let mut producer = Resp::to(&redis).await;
    until("subscribed again", BACK_WITHIN, async || {
        (producer.call(&["PUBLISH", "analytics:realtime", "again"]).await.number() == 1).then_some(())
    })
    .await;
    assert_eq!(legacy.recv().await.expect("open").as_ref(), b"again");
    assert!(metrics.backplane_reconnects.value() >= 2);
    assert_eq!(metrics.backplane_up.value(), 1);
}

#[tokio::test]
async fn frozen_it_is_given_up_in_time_and_used_again_when_it_thaws() {
    let redis = RedisServer::start();
    let (backplane, metrics) = connect(&redis.url());
    let _legacy = bounded(backplane.legacy()).await.expect("subscribed");
    bounded(backplane.publish(&page(node(1), 1))).await.expect("done");
    redis.freeze();
    let begin = Instant::now();
    // The first calls wait for an answer, later ones for a connection; none of them hangs.
    until("the connection is given up", Duration::from_secs(30), async || {
        let call = bounded(backplane.publish(&page(node(1), 2))).await.expect_err("it is frozen");
        let read = backplane.read_from(StreamId::ZERO, 1, Duration::from_millis(200));
        let read = bounded(read).await;
        assert!(begin.elapsed() < Duration::from_millis(500) || read.is_err());
        (call == BackplaneError::Unreachable && read == Err(BackplaneError::Unreachable)).then_some(())
    })
    .await;
    assert!(metrics.backplane_failures.value(BackplaneFailure::Timeout) > 0);
    assert_eq!(metrics.backplane_up.value(), 0);
    redis.thaw();
    back(&backplane).await;
    bounded(backplane.publish(&page(node(1), 3))).await.expect("done");
    until("reads go on", BACK_WITHIN, async || {
        backplane.read_from(StreamId::ZERO, 10, Duration::from_millis(10)).await.ok()
    })
    .await;
    let mut producer = Resp::to(&redis).await;
    until("subscribed again, once", BACK_WITHIN, async || {
        (producer.call(&["PUBLISH", "analytics:realtime", "x"]).await.number() == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn it_may_come_later() {
    let mut redis = RedisServer::start();
    redis.kill9();
    let (backplane, metrics) = connect(&redis.url());
    assert_eq!(bounded(backplane.secret(None)).await, Err(BackplaneError::Unreachable));
    assert_eq!(bounded(backplane.legacy()).await.map(|_| ()), Err(BackplaneError::Unreachable));
    redis.restart();
    back(&backplane).await;
    bounded(backplane.secret(None)).await.expect("made");
    assert_eq!((metrics.backplane_up.value(), metrics.backplane_reconnects.value()), (1, 0));
}

#[tokio::test]
async fn closed_it_leaves_no_connection_and_no_caller_behind() {
    let redis = scratch();
    let mut resp = Resp::to(&redis).await;
    let (backplane, metrics) = connect(&redis.url());
    let mut legacy = bounded(backplane.legacy()).await.expect("subscribed");
    back(&backplane).await;
    let reader = Arc::clone(&backplane);
    let mut reads = JoinSet::new();
    reads.spawn(async move { reader.read_from(StreamId::ZERO, 1, Duration::from_secs(60)).await });
    until("the read is under way", BACK_WITHIN, async || blocked(&mut resp).await.then_some(())).await;
    tokio::time::timeout(CALL_WITHIN, backplane.close()).await.expect("closing is bounded");
    assert_eq!(bounded(backplane.secret(None)).await, Err(BackplaneError::Unreachable));
    assert_eq!(legacy.recv().await, None);
    assert_eq!(metrics.backplane_up.value(), 0);
    until("Redis sees them gone", BACK_WITHIN, async || (clients(&mut resp).await == 1).then_some(())).await;
}

#[tokio::test]
async fn dropped_it_leaves_no_connection_behind() {
    let redis = scratch();
    let mut resp = Resp::to(&redis).await;
    let (backplane, _) = connect(&redis.url());
    let legacy = bounded(backplane.legacy()).await.expect("subscribed");
    until("all are connected", BACK_WITHIN, async || (clients(&mut resp).await == 4).then_some(())).await;
    drop(legacy);
    until("the subscription is gone", BACK_WITHIN, async || (clients(&mut resp).await == 3).then_some(())).await;
    drop(backplane);
    until("all are gone", BACK_WITHIN, async || (clients(&mut resp).await == 1).then_some(())).await;
}

async fn clients(resp: &mut Resp) -> usize {
    resp.call(&["CLIENT", "LIST"]).await.text().lines().count()
}

async fn blocked(resp: &mut Resp) -> bool {
    resp.call(&["INFO", "clients"]).await.text().contains("blocked_clients:1")
}

/// Inv. BOUND: what nobody takes is refused and counted.
#[tokio::test]
async fn a_flood_on_the_legacy_channel_is_bounded_and_counted() {
    const SENT: usize = LEGACY_QUEUE_MAX + 1000;
    let redis = scratch();
    let (backplane, metrics) = connect(&redis.url());
    let mut legacy = bounded(backplane.legacy()).await.expect("subscribed");
    let mut producer = Resp::to(&redis).await;
    for number in 0..SENT {
        producer.call(&["PUBLISH", "analytics:realtime", &number.to_string()]).await;
    }
    until("the rest is counted", BACK_WITHIN, async || (metrics.legacy.value(Legacy::Overflow) == 1000).then_some(()))
        .await;
    for number in 0..LEGACY_QUEUE_MAX {
        assert_eq!(legacy.recv().await.expect("open").as_ref(), number.to_string().as_bytes());
    }
    producer.call(&["PUBLISH", "analytics:realtime", "after"]).await;
    assert_eq!(legacy.recv().await.expect("open").as_ref(), b"after");
}

/// It has the same data but for the last that was written to it; nodes must be able to tell.
#[tokio::test]
async fn another_process_has_another_name() {
    let mut redis = RedisServer::with(Options { durability: Durability::Everything, ..Options::default() });
    let (backplane, _) = connect(&redis.url());
    let beat = async || backplane.beat(node(1), Join::Enter, Duration::from_secs(6)).await;
    let before = bounded(beat()).await.expect("answers");
    assert!(!before.server.is_empty());
    assert_eq!(bounded(beat()).await.expect("answers").server, before.server);
    redis.kill9();
    redis.restart();
    back(&backplane).await;
    let after = bounded(beat()).await.expect("answers");
    assert_eq!(after.generation, before.generation);
    assert_ne!(after.server, before.server);
}

/// What Redis sends in one go is not lost between the library and the reader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_on_the_legacy_channel_arrives_whole() {
    let redis = scratch();
    let (backplane, metrics) = connect(&redis.url());
    let mut legacy = bounded(backplane.legacy()).await.expect("subscribed");
    let mut producer = Resp::to(&redis).await;
    let burst = "for n = 1, tonumber(ARGV[1]) do redis.call('PUBLISH', 'analytics:realtime', n) end";
    producer.call(&["EVAL", burst, "0", &LEGACY_QUEUE_MAX.to_string()]).await;
    for number in 1..=LEGACY_QUEUE_MAX {
        let payload = bounded(async { Ok(legacy.recv().await) }).await.expect("answers").expect("open");
        assert_eq!(payload.as_ref(), number.to_string().as_bytes());
    }
    assert_eq!(metrics.legacy.value(Legacy::Overflow), 0);
}

/// Reads that are answered by the wrong server can only be led elsewhere by connecting anew.
#[tokio::test]
async fn distrusted_reads_get_a_connection_of_their_own_anew_and_nothing_else_does() {
    let redis = scratch();
    let mut resp = Resp::to(&redis).await;
    let (backplane, _) = connect(&redis.url());
    back(&backplane).await;
    let reader = Arc::clone(&backplane);
    let mut reads = JoinSet::new();
    reads.spawn(async move { reader.read_from(StreamId::ZERO, 1, Duration::from_secs(60)).await });
    until("the read is under way", BACK_WITHIN, async || blocked(&mut resp).await.then_some(())).await;
    let ids = async |resp: &mut Resp| -> Vec<String> {
        let list = resp.call(&["CLIENT", "LIST"]).await;
        list.text().lines().filter_map(|line| line.strip_prefix("id=")?.split(' ').next()).map(str::to_owned).collect()
    };
    let before = ids(&mut resp).await;
    backplane.distrust_reads();
    let read = bounded(async { Ok(reads.join_next().await) }).await.expect("in time").expect("started").expect("ends");
    assert!(matches!(read, Err(BackplaneError::Unreachable | BackplaneError::Timeout)), "{read:?}");
    // Commands go on meanwhile, on their own connection.
    bounded(backplane.publish(&page(node(1), 1))).await.expect("done");
    let entries = until("reads go on", BACK_WITHIN, async || {
        bounded(backplane.read_from(StreamId::ZERO, 10, Duration::from_millis(10))).await.ok()
    });
    assert_eq!(entries.await.len(), 1);
    let after = ids(&mut resp).await;
    let gone = before.iter().filter(|id| !after.contains(id)).count();
    assert_eq!((gone, after.len()), (1, before.len()), "{before:?} {after:?}");
}
