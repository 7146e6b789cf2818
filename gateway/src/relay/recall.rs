//! Brings the stream's past into the hub, for clients that come back and say where they were.
//!
//! The relay begins with the last entries that it found at its start, which is enough for whoever was away for
//! a moment. More is read when the first client asks for it, and serves all who ask later: reads follow one another, so
//! however many clients return at once, this node has at most one range read open (Inv. BOUND). When the backplane does
//! not answer, or not for long, those who wait get what there is and a gap before it.

use std::sync::Arc;
use std::time::Duration;

use shared::message::PublicMessage;

use super::decode::decode;
use crate::backplane::{Backplane, Entry};
use crate::clock::Clock;
use crate::hub::Hub;
use crate::hub::past::ENTRIES_MAX;
use crate::hub::ring::{Item, Recalled};
use crate::lifecycle::{Lifecycle, Phase};
use crate::metrics::Metrics;

/// Entries of one read; the last of them is known already.
const PAGE: usize = 512;
/// How long clients wait for more of the past than there is.
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
        // Biased: stopping comes first. Both are cancel safe; a read is never dropped.
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
        let Some(begins) = hub.past_begins().filter(|_| clock.now() < deadline) else { return };
        metrics.replay_reads.inc();
        match backplane.up_to(begins.stream, PAGE).await {
            Ok(entries) => hub.extend_past(recalled(&entries), entries.len() == PAGE),
            Err(error) => {
                tracing::debug!(%error, "more of the past cannot be read");
                return;
            }
        }
    }
}
