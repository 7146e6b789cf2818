//! Joining while broadcasts are going out.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinSet;

use super::*;
use crate::hub::broadcast;
use crate::lifecycle::{Lifecycle, Phase};
use crate::metrics::Direction;

/// Updates that each client checks after its `init`.
const CHECKED: u64 = 30;

// Inv. ORDER: no update before `init`, and after it each update once and in order: the numbers have no hole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_joins_under_fire() {
    // As fast as it goes, so clients fall behind; what they lose then is another test's matter.
    let room = 64 * 1024 * 1024;
    // Several writers share each pass, as on a larger machine.
    let settings = HubSettings {
        outbox_bytes_max: room,
        outbox_total_bytes_max: 16 * room,
        writers_max: 3,
        ..HubSettings::default()
    };
    let rig = Arc::new(Rig::new(settings).await);
    let lifecycle = Lifecycle::default();
    let (sender, receiver) = broadcast::channel();
    let running = rig.tasks.spawn(broadcast::run(Arc::clone(&rig.hub), receiver, lifecycle.clone()));
    let done = Arc::new(AtomicBool::new(false));
    let fire = rig.tasks.spawn({
        let done = Arc::clone(&done);
        async move {
            for n in 1.. {
                sender.send(update(n)).await.expect("the broadcaster runs");
                if done.load(Ordering::Relaxed) {
                    break;
                }
            }
        }
    });
    let mut joiners = JoinSet::new();
    for _ in 0..10 {
        let rig = Arc::clone(&rig);
        joiners.spawn(async move {
            for _ in 0..50 {
                let mut client = rig.open(Ids::Without, b"", None).await;
                let init = client.text().await;
                assert!(init.starts_with(r#"{"type":"init""#), "{init}");
                let start = number(&init);
                for n in start + 1..=start + CHECKED {
                    let text = client.text().await;
                    assert!(text.starts_with(r#"{"type":"realtime_update""#), "{text}");
                    assert_eq!(number(&text), n, "after the init of {start}");
                }
            }
        });
    }
    while let Some(joiner) = joiners.join_next().await {
        joiner.expect("no panic");
    }
    done.store(true, Ordering::Relaxed);
    fire.await.expect("no panic");
    lifecycle.advance(Phase::Stopped);
    in_time("the broadcaster's end", running).await.expect("no panic").expect("no panic in its thread");
    assert!(rig.metrics.passes.value() > 0);
    assert!(rig.metrics.messages.value(Direction::Sent) >= 500 * (1 + CHECKED));
    rig.emptied().await;
}

#[tokio::test]
async fn each_form_is_what_its_sockets_asked_for() {
    let rig = Rig::new(HubSettings::default()).await;
    let mut plain = rig.join(Ids::Without).await;
    let mut with_ids = rig.open(Ids::With, b"", None).await;
    assert_eq!(id_of(&with_ids.text().await), Some(0));
    let messages = [update(7), event(8, 3)];
    rig.pass(&messages);
    // Inv. WIRE: without ids, the very text that was broadcast.
    assert_eq!(plain.text().await, messages[0].text);
    assert_eq!(plain.text().await, messages[1].text);
    assert_eq!(id_of(&with_ids.text().await), Some(7));
    assert_eq!(id_of(&with_ids.text().await), Some(8));
    assert_eq!(rig.hub.state(), Some(state(7).shown_at(Mono::ZERO)));
    assert_eq!(rig.metrics.messages.value(Direction::Sent), 6);
    drop((plain, with_ids));
    rig.emptied().await;
}

#[tokio::test]
async fn a_socket_hears_only_the_kinds_it_chose() {
    let rig = Rig::new(HubSettings::default()).await;
    let mut client = rig.open_with(MessageKinds::parse("new_event").expect("a kind"), Ids::Without, b"", None).await;
    assert!(client.text().await.starts_with(r#"{"type":"init""#), "init always comes");
    rig.pass(&[update(1)]);
    rig.pass(&[update(2), event(3, 1), update(4)]);
    assert_eq!(client.text().await, event(3, 1).text);
    drop(client);
    rig.emptied().await;
}

#[tokio::test]
async fn a_stopped_process_stops_its_broadcaster_and_sweeper() {
    let rig = Rig::new(HubSettings::default()).await;
    let lifecycle = Lifecycle::default();
    let (sender, receiver) = broadcast::channel();
    let running = tokio::task::JoinSet::from_iter([
        Box::pin(broadcast::run(Arc::clone(&rig.hub), receiver, lifecycle.clone()))
            as std::pin::Pin<Box<dyn Future<Output = _> + Send>>,
        Box::pin(crate::hub::sweep::run(Arc::clone(&rig.hub), lifecycle.clone())),
    ]);
    lifecycle.advance(Phase::Stopped);
    for ended in in_time("their end", running.join_all()).await {
        assert_eq!(ended, Ok(()));
    }
    assert_eq!(sender.send(update(1)).await, Err(broadcast::Ended));
}

// Inv. ORDER: the first state is there for those who join when its pass has begun, and not before.
#[tokio::test]
async fn the_first_state_comes_with_its_pass() {
    let (metrics, clock) = (Arc::new(Metrics::default()), Clock::start());
    let hub = Hub::new(HubSettings::default(), clock, Arc::clone(&metrics), Arc::new(Vitals::new(clock)));
    let rig = Rig::of(hub, metrics).await;
    let has_state = rig.hub.has_state();
    rig.pass(&[event(1, 10)]);
    assert!(!*has_state.borrow());
    rig.pass(&[update(2)]);
    assert!(*has_state.borrow());
    let mut client = rig.open(Ids::With, b"", None).await;
    let init = client.text().await;
    assert!(init.starts_with(r#"{"type":"init""#), "{init}");
    rig.pass(&[update(3)]);
    assert_eq!(id_of(&client.text().await), Some(3));
    drop(client);
    rig.emptied().await;
}
