//! What only the embedded backplane can show: its time can be moved. All that it shares with Redis is in the
//! contract suite.

use std::sync::atomic::{AtomicU64, Ordering};

use shared::field::{Name, PagePath};
use shared::ids::Slot;

use super::*;
use crate::backplane::{Seen, Standing, Tick, VisitorHash};

const DAY_MS: Millis = 86_400_000;
const INTERVAL: Duration = Duration::from_secs(5);
const WINDOW: Duration = Duration::from_secs(300);
const LEASE: Duration = Duration::from_secs(3);

/// A backplane and the hand of its clock.
struct Moved {
    backplane: Arc<MemoryBackplane>,
    now: Arc<AtomicU64>,
}

impl Moved {
    fn at(now: Millis) -> Self {
        let now = Arc::new(AtomicU64::new(now));
        let hand = now.clone();
        Self { backplane: MemoryBackplane::with_time(Box::new(move || hand.load(Ordering::Relaxed))), now }
    }

    fn move_to(&self, now: Millis) {
        self.now.store(now, Ordering::Relaxed);
    }

    async fn lease(&self) -> Lease {
        self.backplane.claim(node(1), LEASE).await.expect("answers").lease.expect("nobody else wants it")
    }

    async fn tick(&self, lease: Lease) -> TickReply {
        let slot = Slot::containing(self.now.load(Ordering::Relaxed), millis(INTERVAL));
        self.backplane.tick(&Tick { lease, slot, interval: INTERVAL, window: WINDOW }).await.expect("answers")
    }

    async fn active(&self) -> u64 {
        match self.tick(self.lease().await).await {
            TickReply::Published { snapshot, .. } => snapshot.active_visitors,
            other => panic!("not published: {other:?}"),
        }
    }

    async fn see(&self, visitor: u8, alias: Option<u8>, salts: &Salts) -> TouchReply {
        let hash = |name| VisitorHash([name; 16]);
        let seen = vec![Seen { visitor: hash(visitor), alias: alias.map(hash) }];
        let touch = Touch { day: salts.day, fingerprint: salts.today.fingerprint(), seen, round_of: None };
        self.backplane.touch(&touch).await.expect("answers")
    }
}

fn node(name: u64) -> NodeId {
    NodeId::from_random(name)
}

fn page() -> Publication {
    let event_type = Name::parse("x", Some("page_view")).expect("a name");
    let page_url = PagePath::parse("x", Some("/cv")).expect("a path");
    Publication::Event(Event::Page { event_type, page_url })
}

#[tokio::test]
async fn nobody_counts_twice_when_the_day_turns() {
    let moved = Moved::at(100 * DAY_MS - 10_000);
    let old = moved.backplane.salts(&[]).await.expect("answers");
    assert_eq!(moved.see(1, None, &old).await, TouchReply::Done);
    assert_eq!(moved.see(2, None, &old).await, TouchReply::Done);
    assert_eq!(moved.active().await, 2);

    moved.move_to(100 * DAY_MS);
    assert_eq!(moved.see(1, None, &old).await, TouchReply::Refused, "under yesterday's salt");
    let new = moved.backplane.salts(&[]).await.expect("answers");
    assert_eq!((new.day, &new.yesterday), (100, &old.today));
    assert_eq!(moved.see(11, Some(1), &new).await, TouchReply::Done);
    assert_eq!(moved.active().await, 2, "1 is 11 now, 2 is still remembered");
}

// Inv. ORDER, Inv. SLOT
#[tokio::test]
async fn a_clock_set_back_an_hour_stops_neither_order_nor_snapshots() {
    let hour = 3_600_000;
    let moved = Moved::at(100 * DAY_MS + hour);
    let (first, before) = (moved.lease().await, moved.active().await);
    assert_eq!(before, 0);
    moved.move_to(100 * DAY_MS);
    let TickReply::Published { lease, .. } = moved.tick(first).await else { panic!("believes the new clock") };
    assert!(lease.epoch > first.epoch);
    let entries = moved.backplane.newest(2).await.expect("answers");
    let marks: Vec<_> = entries.iter().filter_map(|entry| entry.tick).collect();
    assert!(entries[0].id < entries[1].id, "{entries:?}");
    assert!(marks[0] < marks[1] && marks[0].slot > marks[1].slot, "greater by epoch: {marks:?}");
}

#[tokio::test]
async fn a_lease_does_not_grow_when_the_clock_is_set_back() {
    let moved = Moved::at(100 * DAY_MS);
    moved.lease().await;
    for name in [1, 2] {
        moved.backplane.beat(node(name), Join::Enter, 2 * LEASE).await.expect("answers");
    }
    moved.move_to(99 * DAY_MS);
    assert_eq!(moved.backplane.claim(node(2), LEASE).await.expect("answers").lease, None, "it still holds");
    moved.move_to(99 * DAY_MS + millis(LEASE) - 1);
    assert_eq!(moved.backplane.claim(node(2), LEASE).await.expect("answers").lease, None, "to its last moment");
    moved.backplane.beat(node(1), Join::Stay, 2 * LEASE).await.expect("answers");
    moved.move_to(99 * DAY_MS + 2 * millis(LEASE));
    assert!(moved.backplane.claim(node(2), LEASE).await.expect("answers").lease.is_some());
    let late = moved.backplane.beat(node(2), Join::Stay, 2 * LEASE).await.expect("answers");
    assert_eq!((late.standing, late.members), (Standing::Gone, 1));
}

// Inv. BOUND
#[tokio::test]
async fn a_legacy_subscriber_that_does_not_read_loses_the_rest() {
    let backplane = MemoryBackplane::new();
    let mut receiver = backplane.legacy().await.expect("subscribed");
    let delivered: usize =
        (0..LEGACY_QUEUE_MAX + 10).map(|_| backplane.publish_legacy(&Bytes::from_static(b"x"))).sum();
    assert_eq!(delivered, LEGACY_QUEUE_MAX);
    receiver.recv().await.expect("the first");
    assert_eq!(backplane.publish_legacy(&Bytes::from_static(b"y")), 1, "there is room again");
}

// Inv. BOUND
#[tokio::test]
async fn publishers_that_come_and_go_are_forgotten_the_silent_ones_first() {
    let moved = Moved::at(1000);
    let publish = |name: u64, number| Publish {
        node: node(name),
        number,
        lease: None,
        items: vec![page()],
        touch: None,
        traceparent: None,
    };
    for name in 0..PUBLISHERS_MAX as u64 + 1 {
        moved.move_to(1000 + name);
        moved.backplane.publish(&publish(name, 7)).await.expect("answers");
    }
    assert_eq!(moved.backplane.state.lock().published.len(), PUBLISHERS_MAX);
    assert_eq!(moved.backplane.publish(&publish(1, 6)).await, Ok(PublishReply::Superseded), "remembered");
    let again = moved.backplane.publish(&publish(0, 6)).await.expect("answers");
    assert!(matches!(again, PublishReply::Done { .. }), "forgotten: {again:?}");
}

// Inv. PRIVATE
#[test]
fn its_debug_shows_no_secret() {
    let backplane = MemoryBackplane::new();
    let shown = format!("{backplane:?}");
    assert!(!shown.contains("secret") && !shown.contains("visitors"), "{shown}");
}
