use std::sync::atomic::{AtomicU64, Ordering};

use shared::ids::{Epoch, Slot, StreamId};

use super::*;
use crate::backplane::memory::MemoryBackplane;
use crate::backplane::{Entry, STREAM_ENTRIES_MAX};
use crate::presence::Presence;
use crate::testing::{Call, Fault, Unreliable, within};

const SETTINGS: TickerSettings = TickerSettings {
    interval: Duration::from_millis(100),
    window: Duration::from_secs(300),
    lease: Duration::from_secs(3),
};

struct Node {
    metrics: Arc<Metrics>,
    ticker: Ticker,
    publishes: crate::publisher::PublisherTask,
    lifecycle: Lifecycle,
}

impl Node {
    fn new(backplane: &Arc<Unreliable>, id: u64) -> Self {
        let (id, clock, metrics) = (NodeId::from_random(id), Clock::start(), Arc::new(Metrics::default()));
        let time = Arc::new(ClusterTime::new(clock));
        let port: Arc<dyn Backplane> = Arc::clone(backplane) as _;
        let (port2, metrics2) = (Arc::clone(&port), Arc::clone(&metrics));
        let presence = Presence::new(port2, id, SETTINGS.window, metrics2, clock, Arc::clone(&time));
        let (publisher, publishes) = Publisher::channel(Arc::clone(&port), id, presence, Arc::clone(&metrics));
        let ticker = Ticker::new(port, id, publisher, SETTINGS, Arc::clone(&metrics), clock, time);
        Self { metrics, ticker, publishes, lifecycle: Lifecycle::default() }
    }

    /// Ends when the node drains.
    async fn run(self) {
        let lifecycle = self.lifecycle.clone();
        tokio::select! {
            () = self.ticker.run(lifecycle.clone()) => {}
            () = self.publishes.run(lifecycle) => {}
        }
    }
}

async fn stream(backplane: &Unreliable) -> Vec<Entry> {
    backplane.read_from(StreamId::ZERO, STREAM_ENTRIES_MAX, Duration::ZERO).await.expect("answers")
}

#[tokio::test]
async fn ticks_each_slot_and_hands_over_at_once_when_drained() {
    let backplane = Unreliable::new(MemoryBackplane::new());
    let (first, second) = (Node::new(&backplane, 1), Node::new(&backplane, 2));
    let mut first_reigns = first.ticker.is_ticker();
    let mut second_reigns = second.ticker.is_ticker();
    let (first_life, first_metrics) = (first.lifecycle.clone(), Arc::clone(&first.metrics));
    let test = async {
        first_reigns.wait_for(Option::is_some).await.expect("lives");
        backplane.seen(Call::Tick, 5).await;
        assert_eq!(first_metrics.ticker.value(), 1);
        first_life.advance(Phase::Draining);
        first_reigns.wait_for(Option::is_none).await.expect("lives");
        let begun = tokio::time::Instant::now();
        second_reigns.wait_for(Option::is_some).await.expect("lives");
        assert!(begun.elapsed() < SETTINGS.lease / 2, "does not wait for the lease to run out");
        backplane.seen(Call::Tick, 9).await;
    };
    // The first node's run ends with its drain; the second goes on until the test is over.
    let both = async { tokio::join!(first.run(), second.run()) };
    tokio::select! {
        biased;
        () = within(test) => {}
        _ = both => panic!("the second node ended"),
    }
    assert_eq!(first_metrics.ticker.value(), 0);
    // Inv. SLOT
    let slots: Vec<Slot> =
        stream(&backplane).await.iter().filter_map(|entry| entry.tick).map(|tick| tick.slot).collect();
    assert!(slots.len() >= 5 && slots.is_sorted_by(|a, b| a < b), "{slots:?}");
}

#[tokio::test]
async fn legacy_messages_are_moved_once_and_garbage_is_counted() {
    let memory = MemoryBackplane::new();
    let backplane = Unreliable::new(Arc::clone(&memory));
    // The first subscription fails: it delays the ticks, and is tried again.
    backplane.fail(Call::Legacy, [Fault::Lost]);
    let (one, two) = (Node::new(&backplane, 1), Node::new(&backplane, 2));
    let metrics = [Arc::clone(&one.metrics), Arc::clone(&two.metrics)];
    let test = async {
        backplane.seen(Call::Tick, 1).await;
        backplane.seen(Call::Legacy, 2).await;
        for text in [
            r#"{"type":"page_view","visitor_id":"v","page_url":"/cv?secret=1","timestamp":"x","data":{"mail":"m"}}"#,
            r#"{"type":"letter_generated","data":{"letter_type":"motivation","timestamp":"2025-12-08T10:31:00Z"}}"#,
            r#"{"type":"realtime_update","data":{"active_visitors":1,"timestamp":"2025-12-08T10:31:00Z"}}"#,
            "garbage",
        ] {
            assert_eq!(memory.publish_legacy(&Bytes::from(text)), 1, "the ticker alone listens");
        }
        backplane.seen(Call::Publish, 1).await;
    };
    tokio::select! {
        biased;
        () = within(test) => {}
        _ = async { tokio::join!(one.run(), two.run()) } => panic!("ended"),
    }
    let moved: Vec<Entry> = stream(&backplane).await.into_iter().filter(|entry| entry.tick.is_none()).collect();
    let kinds: Vec<&str> = moved.iter().map(|entry| entry.kind.as_str()).collect();
    assert_eq!(kinds, ["new_event", "letter_generated"]);
    // Inv. ANON
    let text = String::from_utf8_lossy(&moved[0].data).into_owned();
    assert!(text.contains(r#""page_url":"/cv""#) && !text.contains("secret") && !text.contains("mail"), "{text}");
    let count = |label| metrics.iter().map(|metrics| metrics.legacy.value(label)).sum::<u64>();
    assert_eq!(count(Legacy::Invalid), 2);
}

// Inv. FENCE: what the backplane decides, not what the node believes.
#[tokio::test]
async fn a_mover_that_has_lost_the_lease_moves_nothing() {
    let now = Arc::new(AtomicU64::new(1_700_000_000_000));
    let time = Arc::clone(&now);
    let backplane = Unreliable::new(MemoryBackplane::with_time(Box::new(move || time.load(Ordering::Relaxed))));
    let node = Node::new(&backplane, 1);
    let payload = Bytes::from_static(br#"{"type":"page_view","page_url":"/cv"}"#);
    let item = node.ticker.read(&payload).expect("fits");
    let lease = Lease { node: NodeId::from_random(1), epoch: Epoch(1) };
    tokio::select! {
        () = node.publishes.run(Lifecycle::default()) => panic!("ended"),
        () = within(node.ticker.move_items(vec![item], lease)) => {}
    }
    assert_eq!(node.metrics.legacy.value(Legacy::Fenced), 1);
    assert_eq!(stream(&backplane).await, []);
}
