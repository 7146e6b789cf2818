//! Brings the stream's past into the hub, for clients that come back and say where they were.
//!
//! The relay begins with the last entries that it found at its start, which is enough for whoever was away for
//! a moment. More is read when the first client asks for it, and serves all who ask later: reads follow one another, so
//! however many clients return at once, this node has at most one range read open (Inv. BOUND). When the backplane does
//! not answer, or not for long, those who wait get what there is and a gap before it.

use std::sync::Arc;
use std::time::Duration;

use shared::message::PublicMessage;
use tokio::time::timeout;

use super::decode::decode;
use crate::backplane::{Backplane, BackplaneError, Entry};
use crate::clock::Clock;
use crate::hub::Hub;
use crate::hub::past::ENTRIES_MAX;
use crate::hub::ring::{Item, Recalled};
use crate::lifecycle::{Lifecycle, Phase};
use crate::metrics::Metrics;

/// Entries of one read; the last of them is known already.
const PAGE: usize = 512;
/// How long clients wait for more of the past than there is. A read that is under way then is given up: one page may
/// take the backplane many tries.
const PATIENCE: Duration = Duration::from_secs(5);

/// What entries are to clients that come back.
#[must_use]
pub fn recalled(entries: &[Entry]) -> Vec<Recalled> {
    entries.iter().map(|entry| Recalled { id: entry.event_id(), item: item(entry) }).collect()
}

/// Inv. ANON: as for what is live, only public messages.
fn item(entry: &Entry) -> Option<Item> {
    let id = entry.event_id();
    match decode(entry).ok()? {
        // A number of the past is nobody's news.
        PublicMessage::RealtimeUpdate(_) => Some(Item::passed(id)),
        message => Some(Item::message(message.kind(), &message.encode(), id)),
    }
}

/// Reads more of the past whenever it is wanted, until the process stops.
pub async fn run(
    backplane: Arc<dyn Backplane>,
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    clock: Clock,
    lifecycle: Lifecycle,
) {
    loop {
        // Biased: stopping comes first. Both are cancel safe.
        tokio::select! {
            biased;
            () = lifecycle.reached(Phase::Stopped) => return,
            () = hub.past_wanted() => {}
        }
        fetch(&*backplane, &hub, &metrics, clock).await;
        hub.past_fetched();
    }
}

async fn fetch(backplane: &dyn Backplane, hub: &Hub, metrics: &Metrics, clock: Clock) {
    let deadline = clock.now() + PATIENCE;
    for _ in 0..ENTRIES_MAX.div_ceil(PAGE - 1) {
        let left = deadline.saturating_sub(clock.now());
        let Some(begins) = hub.past_begins().filter(|_| !left.is_zero()) else { return };
        metrics.replay_reads.inc();
        let read = timeout(left, backplane.up_to(begins.stream, PAGE)).await;
        match read.unwrap_or(Err(BackplaneError::Timeout)) {
            Ok(entries) => hub.extend_past(recalled(&entries), entries.len() == PAGE),
            Err(error) => {
                tracing::debug!(%error, "more of the past cannot be read");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use shared::event::Event;
    use shared::field::{Name, PagePath};
    use shared::ids::NodeId;

    use super::*;
    use crate::backplane::memory::MemoryBackplane;
    use crate::backplane::{Publication, Publish, STREAM_ENTRIES_MAX};
    use crate::hub::HubSettings;
    use crate::testing::{Call, Fault, Unreliable, within};
    use crate::vitals::Vitals;

    /// A stream of that many events, and a hub that knows the last two.
    async fn world(events: usize) -> (Arc<Unreliable>, Arc<Hub>, Arc<Metrics>) {
        let now = AtomicU64::new(1_700_000_000_000);
        let memory = MemoryBackplane::with_time(Box::new(move || now.fetch_add(1, Ordering::Relaxed)));
        let page = Publication::Event(Event::Page {
            event_type: Name::parse("event_type", Some("page_view")).expect("a name"),
            page_url: PagePath::parse("page_url", Some("/")).expect("a path"),
        });
        for (number, left) in (1..).zip((1..=events).rev().step_by(500)) {
            let items = vec![page.clone(); left.min(500)];
            let (node, lease, touch, traceparent) = (NodeId::from_random(1), None, None, None);
            memory.publish(&Publish { node, number, lease, items, touch, traceparent }).await.expect("answers");
        }
        let metrics = Arc::new(Metrics::default());
        let clock = Clock::start();
        let hub = Hub::new(HubSettings::default(), clock, Arc::clone(&metrics), Arc::new(Vitals::new(clock)));
        hub.begin_past(recalled(&memory.newest(2).await.expect("answers")), true);
        (Unreliable::new(memory), hub, metrics)
    }

    async fn fetched(backplane: &Unreliable, hub: &Hub, metrics: &Metrics) -> (i64, u64) {
        within(fetch(backplane, hub, metrics, Clock::start())).await;
        (metrics.replay_entries.value(), metrics.replay_reads.value())
    }

    // Inv. BOUND: the whole past is a known number of reads, one after the other, and then none.
    #[tokio::test]
    async fn the_past_is_read_once() {
        let (backplane, hub, metrics) = world(1_500).await;
        assert_eq!(fetched(&backplane, &hub, &metrics).await, (1_499, 3), "all but the floor");
        assert_eq!(hub.past_begins(), None);
        assert_eq!(fetched(&backplane, &hub, &metrics).await, (1_499, 3));
        let (backplane, hub, metrics) = world(STREAM_ENTRIES_MAX).await;
        let (entries, reads) = fetched(&backplane, &hub, &metrics).await;
        assert_eq!(entries, i64::try_from(STREAM_ENTRIES_MAX).expect("small") - 1);
        assert_eq!(reads, (STREAM_ENTRIES_MAX as u64).div_ceil(PAGE as u64 - 1));
    }

    #[tokio::test]
    async fn a_read_that_fails_ends_the_fetch_and_the_next_goes_on() {
        let (backplane, hub, metrics) = world(1_500).await;
        backplane.fail(Call::UpTo, [Fault::Lost]);
        assert_eq!(fetched(&backplane, &hub, &metrics).await, (1, 1));
        assert!(hub.past_begins().is_some(), "it can be tried again");
        assert_eq!(fetched(&backplane, &hub, &metrics).await, (1_499, 4));
    }

    // A page is read in parts where it does not come in time, so a read alone may take long.
    #[tokio::test(start_paused = true)]
    async fn who_waits_does_not_wait_for_a_read_without_end() {
        let (backplane, hub, metrics) = world(1_500).await;
        backplane.fail(Call::UpTo, [Fault::Held]);
        let begun = tokio::time::Instant::now();
        assert_eq!(fetched(&backplane, &hub, &metrics).await, (1, 1));
        assert!((PATIENCE..PATIENCE * 2).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        assert_eq!(fetched(&backplane, &hub, &metrics).await, (1_499, 4));
    }

    // Inv. GAP: another data set at the same address does not become part of this one's past.
    #[tokio::test]
    async fn the_past_of_another_stream_is_not_taken() {
        let (backplane, hub, metrics) = world(1_500).await;
        backplane.replace(MemoryBackplane::new());
        assert_eq!(fetched(&backplane, &hub, &metrics).await, (1, 1));
        assert_eq!(hub.past_begins(), None);
    }

    // What clients ask for at once is asked for once.
    #[tokio::test]
    async fn it_runs_when_it_is_wanted_and_ends_with_the_process() {
        let (backplane, hub, metrics) = world(1_500).await;
        let lifecycle = Lifecycle::default();
        let port: Arc<dyn Backplane> = Arc::clone(&backplane) as _;
        let running = run(port, Arc::clone(&hub), metrics, Clock::start(), lifecycle.clone());
        let test = async {
            hub.want_past();
            hub.want_past();
            backplane.seen(Call::UpTo, 3).await;
            lifecycle.advance(Phase::Stopped);
        };
        within(async { tokio::join!(running, test) }).await;
        assert_eq!(backplane.count(Call::UpTo), 3);
    }
}
