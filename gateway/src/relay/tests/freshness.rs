//! Snapshots whose time stamps are not to be believed, and how long the others are.

use super::*;

/// A replica took over whose clock is an hour behind, with a snapshot that was counted by the old one's.
fn set_back(world: &World) {
    world.now.fetch_sub(3_600_000, Ordering::Relaxed);
    world.pass(0);
}

// Its age seems to be less than nothing for an hour, and it is fresh all that time.
#[tokio::test]
async fn a_stored_snapshot_from_the_future_is_no_greeting() {
    let mut world = World::new();
    let ahead = world.tick().await;
    set_back(&world);
    world
        .with_relay(async |world| {
            world.listening().await;
            let repeated = world.next().await;
            assert_eq!(repeated.text, encode_update(ahead, Freshness::Stale));
            assert_eq!(world.hub.state(), None, "nobody was greeted with it");
        })
        .await;
}

#[tokio::test]
async fn a_snapshot_from_the_future_is_flagged_when_it_comes() {
    let mut world = World::new();
    let data = r#"{"active_visitors":5,"timestamp":"2023-11-14T22:13:20Z"}"#;
    let mark = TickMark { epoch: Epoch(1), slot: Slot(START), entries: 1 };
    world.backplane.forge([forged("realtime_update", data, Some(mark))]);
    set_back(&world);
    world
        .with_relay(async |world| {
            let shown = world.next_news().await;
            assert!(shown.id.is_some());
            assert_eq!(world.freshness_of(&shown), Some(Freshness::Stale), "{}", shown.text);
            assert!(shown.text.ends_with(r#","stale":true}}"#), "{}", shown.text);
        })
        .await;
}

// Redis' clock was set forward, and this node's last reading of it is from before: the number is right all the same.
#[tokio::test]
async fn a_snapshot_that_only_seems_to_be_from_the_future_is_not_flagged() {
    let mut world = World::new();
    world
        .with_relay(async |world| {
            world.listening().await;
            world.now.fetch_add(60_000, Ordering::Relaxed);
            let right = world.tick().await;
            let shown = world.next_news().await;
            assert_eq!(shown.text, encode_update(right, Freshness::Fresh));
        })
        .await;
}

// What the hub compares with the clock is the moment in which the relay would say that snapshots stay away.
#[tokio::test(start_paused = true)]
async fn a_number_comes_with_the_end_of_its_time() {
    let mut world = World::new();
    world.tick().await;
    let mut relay = world.relay.take().expect("not run yet");
    relay.start().await.expect("answers");
    let shown = |world: &World| world.hub.state().expect("greets").freshness;
    assert_eq!(shown(&world), Freshness::Fresh);
    let due = relay.watch.due();
    tokio::time::advance(due.saturating_sub(world.clock.now()) - Duration::from_millis(1)).await;
    assert_eq!(shown(&world), Freshness::Fresh);
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(shown(&world), Freshness::Stale);
    assert!(!relay.watch.is_stale(), "the relay did not run");
}
