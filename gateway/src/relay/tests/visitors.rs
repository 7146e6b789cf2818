//! Visitors of the stream's events: who marks them as seen.

use super::*;

// Inv. PRIVATE: producers' own visitors are marked by the ticker's node, as digests.
#[tokio::test]
async fn only_the_ticker_marks_the_visitors_of_stream_events() {
    let check = async |lease: Option<Lease>, marked: bool| {
        let mut world = World::new();
        world.tick().await;
        world.reign.send_replace(lease);
        let data = r#"{"event_type":"page_view","page_url":"/a","timestamp":"2025-12-08T10:30:00Z"}"#;
        let by = |visitor: String| Entry { visitor: Some(visitor), ..forged("new_event", data, None) };
        world.backplane.forge([by("v".into()), by("x".repeat(65))]);
        let lifecycle = Lifecycle::default();
        let presence = Arc::clone(&world.presence);
        let test = world.with_relay(async |world| {
            world.listening().await;
            world.event("/wake").await;
            world.next_news().await;
            if marked {
                world.backplane.seen(Call::Touch, 1).await;
            }
        });
        tokio::select! {
            () = presence.drive(std::collections::HashSet::new, &lifecycle) => panic!("ended"),
            () = test => {}
        }
        assert_eq!(world.metrics.visitors_touched.value(), u64::from(marked));
    };
    check(Some(Lease { node: NodeId::from_random(1), epoch: Epoch(1) }), true).await;
    check(None, false).await;
}

// The ticker before may have been gone when they came.
#[tokio::test]
async fn a_new_ticker_marks_the_visitors_of_events_that_came_just_before_its_reign() {
    let mut world = World::new();
    world.tick().await;
    let data = r#"{"event_type":"page_view","page_url":"/a","timestamp":"2025-12-08T10:30:00Z"}"#;
    let by = |visitor: &str| Entry { visitor: Some(visitor.into()), ..forged("new_event", data, None) };
    world.backplane.forge([by("v"), by("w"), by("v")]);
    let lifecycle = Lifecycle::default();
    let presence = Arc::clone(&world.presence);
    let test = world.with_relay(async |world| {
        world.listening().await;
        for _ in 0..3 {
            world.next_news().await;
        }
        // Nothing more comes: it is the reign that makes the relay mark them.
        world.reign.send_replace(Some(Lease { node: NodeId::from_random(1), epoch: Epoch(1) }));
        world.backplane.seen(Call::Touch, 1).await;
    });
    tokio::select! {
        () = presence.drive(std::collections::HashSet::new, &lifecycle) => panic!("ended"),
        () = test => {}
    }
    assert_eq!(world.metrics.visitors_touched.value(), 2);
}
