//! Clients that come back and say what they have.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rand::RngExt;
use tokio::task::JoinSet;

use super::*;
use crate::hub::broadcast;
use crate::hub::ring::Recalled;
use crate::lifecycle::{Lifecycle, Phase};
use crate::metrics::{Close, Resume};

fn far(n: u64) -> EventId {
    EventId { digest: EntryDigest::of("", b"another stream"), ..id(n) }
}

/// Both ends of a `gap`.
fn gap_of(text: &str) -> (Option<u64>, Option<u64>) {
    let end = |name: &str| text.split_once(name)?.1.split_once('-')?.0.parse().ok();
    assert!(text.starts_with(r#"{"type":"gap""#), "{text}");
    (end(r#""from":""#), end(r#""to":""#))
}

async fn init(client: &mut Client) {
    let init = client.text().await;
    assert!(init.starts_with(r#"{"type":"init""#), "{init}");
    // Its snapshot is newer than what the client has read up to: as a place to go on from it would hide the rest.
    assert_eq!(id_of(&init), None, "{init}");
}

/// Waits until the hub has come so far with those who resume.
async fn until(what: &str, is: impl Fn() -> bool) {
    in_time(what, async {
        while !is() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

// Inv. ORDER: `init`, what was missed, what is new.
#[tokio::test]
async fn init_then_what_was_missed_then_what_is_new() {
    let rig = Rig::new(HubSettings::default()).await;
    let mut keen = rig.join(Ids::Without).await;
    rig.pass(&[event(1, 10), event(2, 10)]);
    rig.pass(&[update(3), event(4, 10)]);
    let mut back = rig.resume(id(1)).await;
    init(&mut back).await;
    for n in [2, 4] {
        assert_eq!(id_of(&back.text().await), Some(n), "the number was told by init");
    }
    rig.pass(&[event(5, 10), update(6)]);
    for n in [5, 6] {
        assert_eq!(id_of(&back.text().await), Some(n));
    }
    for _ in 0..6 {
        keen.text().await;
    }
    assert_eq!(rig.metrics.resumes.value(Resume::Complete), 1);
    assert_eq!(rig.metrics.messages.value(crate::metrics::Direction::Sent), 7 + 5);
    drop((keen, back));
    rig.emptied().await;
}

// Inv. GAP
#[tokio::test]
async fn who_is_of_another_stream_is_told_that_the_past_is_missing() {
    let rig = Rig::new(HubSettings::default()).await;
    rig.pass(&[event(1, 10), event(2, 10), event(3, 10)]);
    let mut back = rig.resume(far(2)).await;
    init(&mut back).await;
    assert_eq!(gap_of(&back.text().await), (Some(2), Some(3)));
    rig.pass(&[event(4, 10)]);
    assert_eq!(id_of(&back.text().await), Some(4));
    assert_eq!(rig.metrics.resumes.value(Resume::Unknown), 1);
    drop(back);
    rig.emptied().await;
}

// A node that lags behind the one that the client comes from; its heartbeat goes on, and so does whatever is said.
#[tokio::test]
async fn who_is_ahead_of_the_node_waits_and_can_be_closed() {
    let rig = Rig::new(HubSettings::default()).await;
    rig.pass(&[event(1, 10)]);
    let (mut back, mut foreign, mut leaving) =
        (rig.resume(id(3)).await, rig.resume(far(3)).await, rig.resume(id(9)).await);
    for client in [&mut back, &mut foreign, &mut leaving] {
        init(client).await;
    }
    until("all three ask", || rig.hub.end_asked() == 3).await;
    rig.pass(&[event(2, 10)]);
    rig.hub.close_draining(ConnId(3), 7);
    assert_eq!(leaving.closed().await.0, Some(CloseReason::Draining.code()));
    rig.pass(&[event(3, 10), event(4, 10)]);
    assert_eq!(id_of(&back.text().await), Some(4), "3 is what it had");
    assert_eq!(gap_of(&foreign.text().await), (Some(3), Some(4)), "what stands there is something else");
    rig.pass(&[event(5, 10)]);
    assert_eq!(id_of(&back.text().await), Some(5));
    assert_eq!(id_of(&foreign.text().await), Some(5));
    drop((back, foreign, leaving));
    rig.emptied().await;
    assert_eq!(rig.metrics.closes.value(Close::Draining), 1);
}

#[tokio::test]
async fn the_past_is_fetched_once_for_all_who_wait() {
    let rig = Rig::new(HubSettings::default()).await;
    let recalled = |ms: std::ops::RangeInclusive<u64>| -> Vec<Recalled> {
        let item = |n: u64| crate::hub::ring::Item::of(&event(n, 10));
        ms.map(|n| Recalled { id: id(n), item: item(n) }).collect()
    };
    rig.hub.begin_past(recalled(50..=52), true);
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(rig.resume(id(48)).await);
    }
    for client in &mut clients {
        init(client).await;
    }
    in_time("the past is wanted", rig.hub.past_wanted()).await;
    assert_eq!(rig.hub.past_begins(), Some(id(50)));
    rig.hub.extend_past(recalled(40..=50), true);
    rig.hub.past_fetched();
    for client in &mut clients {
        for n in 49..=52 {
            assert_eq!(id_of(&client.text().await), Some(n));
        }
    }
    // Nothing comes of the next fetch: then what there is must do.
    let mut late = rig.resume(id(30)).await;
    init(&mut late).await;
    in_time("more is wanted", rig.hub.past_wanted()).await;
    rig.hub.past_fetched();
    assert_eq!(gap_of(&late.text().await), (Some(30), Some(40)));
    assert_eq!(id_of(&late.text().await), Some(41));
    drop((clients, late));
    rig.emptied().await;
}

// Inv. BOUND, Inv. ISOLATION: a client that does not read what it asked for holds no more than the rest of a frame.
#[tokio::test]
async fn a_client_that_does_not_read_its_past_costs_no_memory_and_loses_it_with_a_word() {
    let settings =
        HubSettings { socket_send_buffer_bytes: 4096, replay_bytes_max: 1024 * 1024, ..HubSettings::default() };
    let rig = Rig::new(settings).await;
    rig.pass(&[event(1, 10)]);
    for n in 2..=900 {
        rig.pass(&[event(n, 1000)]);
    }
    let mut slow = rig.resume(id(1)).await;
    until("it fills the kernel's buffers", || rig.metrics.outbox_bytes.value() > 0).await;
    assert!(rig.metrics.outbox_bytes.value() < 1200, "{}", rig.metrics.outbox_bytes.value());
    // The past goes by beneath it.
    for n in 901..=2500 {
        rig.pass(&[event(n, 1000)]);
    }
    assert_eq!(rig.metrics.events_discarded.value(), 0, "it has no outbox that could overflow");
    init(&mut slow).await;
    let mut at = 1;
    let to = loop {
        let text = slow.text().await;
        match id_of(&text) {
            Some(n) => assert_eq!((n, at), (at + 1, n - 1), "in order, without a hole"),
            None => break gap_of(&text),
        }
        at += 1;
    };
    assert_eq!(to, (Some(at), Some(2500)));
    rig.pass(&[event(2501, 10)]);
    assert_eq!(id_of(&slow.text().await), Some(2501));
    assert_eq!(rig.metrics.resumes.value(Resume::TooSlow), 1);
    drop(slow);
    rig.emptied().await;
}

/// The last id that clients of these tests begin with.
const BEGIN: u64 = 1_000;

// Inv. ORDER, Inv. GAP: clients come and go at any moment while messages go out as fast as they can, over several
// writers; each client's messages are those of one client that never left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_returns_under_fire() {
    let room = 64 * 1024 * 1024;
    let settings = HubSettings {
        outbox_bytes_max: room,
        outbox_total_bytes_max: 16 * room,
        replay_bytes_max: room,
        writers_max: 3,
        ..HubSettings::default()
    };
    let rig = Arc::new(Rig::new(settings).await);
    let lifecycle = Lifecycle::default();
    let (sender, receiver) = broadcast::channel();
    let running = rig.tasks.spawn(broadcast::run(Arc::clone(&rig.hub), receiver, lifecycle.clone()));
    let done = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(AtomicU64::new(0));
    let fire = rig.tasks.spawn({
        let (done, sent) = (Arc::clone(&done), Arc::clone(&sent));
        async move {
            for n in 1.. {
                sender.send(event(n, 10)).await.expect("the broadcaster runs");
                sent.store(n, Ordering::Relaxed);
                if done.load(Ordering::Relaxed) {
                    break;
                }
                // The past must outlive an absence.
                if n.is_multiple_of(64) {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
        }
    });
    until("some have gone out", || sent.load(Ordering::Relaxed) > BEGIN).await;
    let mut clients = JoinSet::new();
    for _ in 0..10 {
        let rig = Arc::clone(&rig);
        clients.spawn(async move {
            let mut last = BEGIN;
            for _ in 0..50 {
                let mut client = rig.resume(id(last)).await;
                init(&mut client).await;
                let stay = rand::rng().random_range(0..200);
                for n in 0..stay {
                    let text = client.text().await;
                    assert_eq!(id_of(&text), Some(last + 1), "message {n} after {last}: {text}");
                    last += 1;
                }
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.expect("no panic");
    }
    done.store(true, Ordering::Relaxed);
    fire.await.expect("no panic");
    lifecycle.advance(Phase::Stopped);
    in_time("the broadcaster's end", running).await.expect("no panic").expect("no panic in its thread");
    rig.emptied().await;
    assert_eq!(rig.metrics.events_discarded.value(), 0);
}
