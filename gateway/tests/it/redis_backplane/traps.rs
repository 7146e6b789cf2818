//! The traps of the client library, one by one: each of these tests fails when the setting, or the few lines, that keep
//! out of the trap are taken away. docs/GUARANTEES.md has the table.

mod wire;

use std::time::Instant;

use gateway::backplane::LEGACY_QUEUE_MAX;
use gateway::metrics::Legacy;
use shared::ids::StreamId;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use self::wire::{Mode, Wire};
use super::*;
use crate::support::redis_cluster;

/// A dead connection is noticed after two questions, and made anew within a second and jitter.
const DEATH_NOTICED_WITHIN: Duration = Duration::from_secs(12);

/// How often a command was carried out.
async fn calls(redis: &mut Resp, command: &str) -> u64 {
    let stats = redis.call(&["INFO", "commandstats"]).await;
    let prefix = format!("cmdstat_{command}:calls=");
    let line = stats.text().lines().find_map(|line| line.strip_prefix(prefix.as_str()));
    line.map_or(0, |rest| rest.split(',').next().and_then(|calls| calls.parse().ok()).expect("a number"))
}

/// The library's watchdog looks away from connections that are written to, and from blocked ones; and the kernel repeats
/// itself for a quarter of an hour. All three kinds of connections must be found dead, also under traffic.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_died_without_a_word_are_made_anew_under_traffic() {
    let redis = RedisServer::start();
    let wire = Wire::to(redis.address(), "EVALSHA").await;
    let (backplane, _) = connect(&wire.url());
    let mut legacy = bounded(backplane.legacy()).await.expect("subscribed");
    bounded(backplane.publish(&page(node(1), 1))).await.expect("done");
    let mut traffic = JoinSet::new();
    traffic.spawn({
        let backplane = Arc::clone(&backplane);
        async move {
            loop {
                let _ = backplane.snapshot().await;
                sleep(Duration::from_millis(50)).await;
            }
        }
    });
    traffic.spawn({
        let backplane = Arc::clone(&backplane);
        async move {
            loop {
                let _ = backplane.read_from(StreamId::ZERO, 1, Duration::from_millis(500)).await;
            }
        }
    });
    wire.set(Mode::DeadBefore(wire.made()));
    until("commands work", DEATH_NOTICED_WITHIN, async || bounded(backplane.publish(&page(node(1), 2))).await.ok())
        .await;
    until("reads work", DEATH_NOTICED_WITHIN, async || {
        bounded(backplane.read_from(StreamId::ZERO, 10, Duration::from_millis(10))).await.ok()
    })
    .await;
    let mut producer = Resp::to(&redis).await;
    until("the channel is heard", DEATH_NOTICED_WITHIN, async || {
        producer.call(&["PUBLISH", "analytics:realtime", "x"]).await;
        tokio::time::timeout(Duration::from_millis(200), legacy.recv()).await.ok().flatten()
    })
    .await;
}

/// What was sent and not answered may have been carried out: the library would send it again by itself.
#[tokio::test]
async fn a_command_whose_answer_was_lost_is_not_sent_again_by_itself() {
    let redis = RedisServer::start();
    let wire = Wire::to(redis.address(), "EVALSHA").await;
    let (backplane, _) = connect(&wire.url());
    bounded(backplane.publish(&page(node(1), 1))).await.expect("done");
    let mut resp = Resp::to(&redis).await;
    let before = calls(&mut resp, "evalsha").await;
    wire.set(Mode::ResetAfter("EVALSHA"));
    let lost = bounded(async {
        let lost = backplane.publish(&page(node(1), 2)).await;
        wire.set(Mode::Open);
        lost
    });
    assert_eq!(lost.await, Err(BackplaneError::Unreachable));
    back(&backplane).await;
    assert_eq!(calls(&mut resp, "evalsha").await, before + 1);
    assert_eq!(resp.call(&["XLEN", "{analytics}:events"]).await.number(), 2, "it was carried out");
}

/// A slot that has moved uses up tries of the library. With too few of them each move would cost every caller a call; what
/// may cost one is that the library looks at the cluster anew just then.
#[tokio::test]
async fn a_slot_that_moves_is_followed_by_the_call_that_finds_it_gone() {
    const MOVES: u64 = 6;
    let servers = redis_cluster::start(0).await;
    let (backplane, _) = connect(&format!("redis-cluster://{}", servers[0].address()));
    back(&backplane).await;
    bounded(backplane.publish(&page(node(1), 1))).await.expect("done");
    let mut nodes = Vec::new();
    for server in &servers {
        nodes.push((Resp::to(server).await, server.address()));
    }
    let slot = nodes[0].0.call(&["CLUSTER", "KEYSLOT", "{analytics}:events"]).await.number().to_string();
    let mut failed = 0;
    for number in 2..2 + MOVES {
        move_slot(&mut nodes, &slot).await;
        until("it is found", BACK_WITHIN, async || {
            let answer = bounded(backplane.publish(&page(node(1), number))).await;
            failed += u64::from(answer.is_err());
            answer.ok()
        })
        .await;
    }
    assert!(failed < MOVES / 2, "{failed} failures");
}

/// From whoever has it to another.
async fn move_slot(nodes: &mut [(Resp, std::net::SocketAddr)], slot: &str) {
    let mut owner = 0;
    for (index, (resp, _)) in nodes.iter_mut().enumerate() {
        if resp.call(&["DBSIZE"]).await.number() > 0 {
            owner = index;
        }
    }
    let target = (owner + 1) % nodes.len();
    let port = nodes[target].1.port().to_string();
    let from = nodes[owner].0.call(&["CLUSTER", "MYID"]).await.text().to_owned();
    let to = nodes[target].0.call(&["CLUSTER", "MYID"]).await.text().to_owned();
    nodes[target].0.call(&["CLUSTER", "SETSLOT", slot, "IMPORTING", &from]).await;
    nodes[owner].0.call(&["CLUSTER", "SETSLOT", slot, "MIGRATING", &to]).await;
    let keys = nodes[owner].0.call(&["CLUSTER", "GETKEYSINSLOT", slot, "100"]).await;
    for key in keys.many() {
        nodes[owner].0.call(&["MIGRATE", "127.0.0.1", &port, key.text(), "0", "5000", "REPLACE"]).await;
    }
    // All are told, the new owner first, as redis-cli does: gossip may take seconds, and epochs may collide.
    for step in 0..nodes.len() {
        let index = (target + step) % nodes.len();
        nodes[index].0.call(&["CLUSTER", "SETSLOT", slot, "NODE", &to]).await;
    }
}

/// Inv. BOUND: the library's own queue has no bound unless it is given one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_silent_redis_does_not_take_is_refused_not_hoarded() {
    /// What the kernel takes, and more than may wait beside that.
    const LARGE: u64 = 300;
    const SMALL: u64 = 6_000;
    let redis = RedisServer::start();
    let (backplane, _) = connect(&redis.url());
    back(&backplane).await;
    redis.freeze();
    let mut crowd = JoinSet::new();
    for number in 0..LARGE {
        let mut large = page(node(1), number);
        large.items = vec![large.items[0].clone(); 500];
        let backplane = Arc::clone(&backplane);
        crowd.spawn(async move { bounded(backplane.publish(&large)).await.map(|_| ()) });
    }
    for _ in 0..SMALL {
        let backplane = Arc::clone(&backplane);
        crowd.spawn(async move { bounded(backplane.snapshot()).await.map(|_| ()) });
    }
    let answers = crowd.join_all().await;
    assert!(answers.iter().all(Result::is_err));
    let refused = answers.iter().filter(|answer| **answer == Err(BackplaneError::Backpressure)).count();
    assert!(refused > 0, "they all wait");
    redis.thaw();
    back(&backplane).await;
}

/// Nagle's algorithm, which the library leaves on: a second command would wait until the first has been answered, or until
/// the kernel of the other side says after 40 ms that it has come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_does_not_wait_for_the_answer_to_another() {
    let redis = RedisServer::start();
    let wire = Wire::to(redis.address(), "EVALSHA").await;
    let (backplane, _) = connect(&wire.url());
    // Kernels say at once that something has come while a connection is young or was quiet for long, and take their time
    // when answers follow requests.
    for number in 1..40 {
        bounded(backplane.publish(&page(node(1), number))).await.expect("done");
    }
    wire.set(Mode::SlowAnswers(Duration::from_millis(60)));
    let mut seen = wire.seen();
    let mut waits = Vec::new();
    for round in 0..15 {
        let send = |number| {
            let backplane = Arc::clone(&backplane);
            async move { bounded(backplane.publish(&page(node(round + 2), number))).await }
        };
        let before = *seen.borrow_and_update();
        let mut both = JoinSet::new();
        both.spawn(send(1));
        seen.wait_for(|seen| *seen > before).await.expect("the wire is there");
        let sent = Instant::now();
        both.spawn(send(2));
        seen.wait_for(|seen| *seen > before + 1).await.expect("the wire is there");
        waits.push(sent.elapsed());
        both.join_all().await;
    }
    waits.sort();
    assert!(waits[waits.len() / 2] < Duration::from_millis(20), "{waits:?}");
}

/// A Redis that answers every script with this refusal. Says how many connections it got.
async fn refusing(refusal: &'static str) -> (String, watch::Receiver<u64>, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("redis://{}", listener.local_addr().expect("bound"));
    let (sender, made) = watch::channel(0);
    let mut accepting = JoinSet::new();
    accepting.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            sender.send_modify(|made| *made += 1);
            connections.spawn(refuse(stream, refusal));
        }
    });
    (url, made, accepting)
}

async fn refuse(stream: TcpStream, refusal: &'static str) {
    let mut stream = BufReader::new(stream);
    while let Some(words) = super::deployments::command(&mut stream).await {
        let answer = match words[0].as_str() {
            "HELLO" => "%1\r\n$5\r\nproto\r\n:3\r\n".to_owned(),
            "INFO" => "+redis_version:7.0.15\r\n".to_owned(),
            "PING" => "+PONG\r\n".to_owned(),
            "CLIENT" => ":1\r\n".to_owned(),
            "EVALSHA" => format!("-{refusal}\r\n"),
            _ => "_\r\n".to_owned(),
        };
        if stream.get_mut().write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Who answers like this is not, or not any more, the one that may be written to, and it pings well.
#[tokio::test]
async fn who_is_not_the_primary_is_left() {
    for refusal in [
        "LOADING Redis is loading the dataset in memory",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "CLUSTERDOWN The cluster is down",
        "READONLY You can't write against a read only replica.",
    ] {
        let (url, made, _accepting) = refusing(refusal).await;
        let (backplane, _) = connect(&url);
        // One for commands and one for reads.
        until(refusal, BACK_WITHIN, async || {
            bounded(backplane.publish(&page(node(1), 1))).await.expect_err("refused");
            (*made.borrow() > 2).then_some(())
        })
        .await;
    }
}

/// A machine that takes connections and says nothing: each try must end in time, for the next may lead elsewhere.
#[tokio::test]
async fn a_server_that_says_nothing_is_left_in_time() {
    let directory = tempfile::TempDir::new().expect("a directory");
    super::deployments::certificates(directory.path());
    for (scheme, within) in [("redis", 4), ("rediss", 5)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("{scheme}://{}", listener.local_addr().expect("bound"));
        let ca_file = (scheme == "rediss").then(|| directory.path().join("ca.crt"));
        let settings = RedisSettings { ca_file, ..settings(&url) };
        let _backplane = RedisBackplane::connect(&settings, node(1), Arc::default()).expect("good settings");
        let mut kept = Vec::new();
        for _ in 0..2 {
            kept.push(listener.accept().await.expect("a connection"));
        }
        let begun = Instant::now();
        let third = tokio::time::timeout(Duration::from_secs(15), listener.accept());
        kept.push(third.await.expect("another try").expect("a connection"));
        assert!(begun.elapsed() < Duration::from_secs(within), "{scheme}: {:?}", begun.elapsed());
        // It says something, and we know how to read it.
        let mut first = [0; 1];
        kept[0].0.read_exact(&mut first).await.expect("a first word");
    }
}

/// The library says that it has subscribed when it has only asked for it.
#[tokio::test]
async fn who_has_subscribed_is_subscribed() {
    let redis = RedisServer::start();
    let wire = Wire::to(redis.address(), "SUBSCRIBE").await;
    let (backplane, _) = connect(&wire.url());
    back(&backplane).await;
    wire.set(Mode::SlowRequests(Duration::from_millis(150)));
    let mut legacy = bounded(backplane.legacy()).await.expect("subscribed");
    let heard = Resp::to(&redis).await.call(&["PUBLISH", "analytics:realtime", "x"]).await.number();
    assert_eq!(heard, 1);
    assert_eq!(legacy.recv().await.expect("open").as_ref(), b"x");
}

/// Messages come as soon as Redis has heard the SUBSCRIBE, and the library throws away what nobody listens to.
#[tokio::test]
async fn what_comes_before_the_subscription_is_confirmed_is_heard() {
    let redis = RedisServer::start();
    let wire = Wire::to(redis.address(), "SUBSCRIBE").await;
    let (backplane, _) = connect(&wire.url());
    back(&backplane).await;
    let mut seen = wire.seen();
    wire.set(Mode::HoldBehind("SUBSCRIBE", "PING"));
    let subscribing = bounded(backplane.legacy());
    let publishing = async {
        seen.wait_for(|seen| *seen > 0).await.expect("the wire is there");
        let mut producer = Resp::to(&redis).await;
        until("Redis knows of it", BACK_WITHIN, async || {
            (producer.call(&["PUBLISH", "analytics:realtime", "x"]).await.number() == 1).then_some(())
        })
        .await;
        wire.set(Mode::Open);
    };
    let (legacy, ()) = tokio::join!(subscribing, publishing);
    let heard = bounded(async { Ok(legacy.expect("subscribed").recv().await) }).await.expect("in time");
    assert_eq!(heard.expect("open").as_ref(), b"x");
}

/// More than both queues hold, in one go: the library's events lag, which its own examples take for the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_that_is_too_large_is_counted_and_survived() {
    const SENT: usize = LEGACY_QUEUE_MAX * 6;
    let redis = scratch();
    let (backplane, metrics) = connect(&redis.url());
    let mut legacy = bounded(backplane.legacy()).await.expect("subscribed");
    let mut producer = Resp::to(&redis).await;
    let burst = "for n = 1, tonumber(ARGV[1]) do redis.call('PUBLISH', 'analytics:realtime', n) end";
    producer.call(&["EVAL", burst, "0", &SENT.to_string()]).await;
    producer.call(&["PUBLISH", "analytics:realtime", "last"]).await;
    let mut heard = 0;
    until("all is heard or counted", BACK_WITHIN, async || {
        while legacy.try_recv().is_ok() {
            heard += 1;
        }
        let lost = usize::try_from(metrics.legacy.value(Legacy::Overflow)).expect("small");
        (heard + lost == SENT + 1).then_some(())
    })
    .await;
    producer.call(&["PUBLISH", "analytics:realtime", "after"]).await;
    assert_eq!(legacy.recv().await.expect("open").as_ref(), b"after");
}

/// An answer that comes when nobody waits for it any more is nobody else's.
#[tokio::test]
async fn a_late_answer_is_not_taken_for_another() {
    let redis = RedisServer::start();
    let wire = Wire::to(redis.address(), "EVALSHA").await;
    let (backplane, _) = connect(&wire.url());
    let secret = bounded(backplane.secret(None)).await.expect("made");
    let done = bounded(backplane.publish(&page(node(1), 1))).await;
    wire.set(Mode::SlowAnswers(Duration::from_millis(2_300)));
    assert_eq!(bounded(backplane.secret(None)).await, Err(BackplaneError::Timeout));
    wire.set(Mode::Open);
    assert_eq!(bounded(backplane.publish(&page(node(1), 1))).await, done);
    assert_eq!(bounded(backplane.secret(None)).await, Ok(secret));
}
