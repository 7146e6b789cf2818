//! Sending everybody away so that nobody notices.
//!
//! The obvious way (close all sockets, exit) makes ten thousand browsers reconnect in the same second, to whichever
//! nodes are left. So the closes are spread evenly over a window, and each carries its own `retry_after_ms`. The
//! timeline, from the first signal:
//!
//! ```text
//! 0            delay                    delay + window            + grace
//! ├─ Draining ─┼─ Closing ──────────────┼─ the last ones ─────────┤ Stopped
//! │ /readyz 503│ listener closed,       │ leave; who is left then │
//! │ ticker     │ closes with 1012,      │ is dropped with the     │
//! │ lease given│ evenly spread          │ process                 │
//! ```
//!
//! A client that is sent away may come back at once, on another node; its address must not be at its cap then because of
//! the socket that it has just lost. So the places of those who are next are given back, and the cluster has been told,
//! before their close frames are sent (Inv. CAP). A backplane that does not answer delays that by little.
//!
//! It ends early: as soon as no socket is left after the delay. The window is hard. A fleet-wide reconnect budget
//! that it exceeds is told, not obeyed: an orchestrator kills whoever takes longer than it announced.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use shared::ids::ConnId;

use crate::admission::Admission;
use crate::hub::Hub;
use crate::lifecycle::{Lifecycle, Phase};
use crate::metrics::Metrics;

/// The longest time after which a client is told to come back.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3);
/// How often the drain looks which closes are due.
const STEP: Duration = Duration::from_millis(50);
/// How long the closes that are due wait for the cluster to learn that their places are free.
const TELL_MAX: Duration = Duration::from_millis(250);

/// The drain's timeline.
#[derive(Debug, Clone, Copy)]
pub struct DrainSettings {
    /// How long upgrades are still taken.
    pub delay: Duration,
    /// Over how long the closes are spread.
    pub window: Duration,
    /// How long the last sockets may take to leave.
    pub grace: Duration,
    /// Reconnects per second that the fleet can take.
    pub reconnect_budget: u32,
}

impl DrainSettings {
    /// How many of `sockets` must have been sent away when `elapsed` of the window has passed.
    fn due(&self, sockets: usize, elapsed: Duration) -> usize {
        if elapsed >= self.window {
            return sockets;
        }
        // The window is not zero here.
        let share = elapsed.as_secs_f64() / self.window.as_secs_f64();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a share of at most 1 of a socket count is a socket count"
        )]
        let due = (sockets as f64 * share).ceil() as usize;
        due.min(sockets)
    }

    /// Closes per second, if that is more than the budget.
    fn over_budget(&self, sockets: usize) -> Option<usize> {
        let seconds = usize::try_from(self.window.as_secs()).unwrap_or(usize::MAX).max(1);
        let rate = sockets / seconds;
        (rate > self.reconnect_budget as usize).then_some(rate)
    }
}

/// Runs the timeline; returns when no socket is left or its time is over. The phase is `Stopped` then.
// Inv. DRAIN: each step only moves the phase forward.
pub async fn run(
    settings: DrainSettings,
    hub: &Arc<Hub>,
    admission: &Admission,
    metrics: &Metrics,
    lifecycle: &Lifecycle,
) {
    lifecycle.advance(Phase::Draining);
    tracing::info!(sockets = hub.len(), delay = ?settings.delay, window = ?settings.window, "draining");
    tokio::time::sleep(settings.delay).await;
    lifecycle.advance(Phase::Closing);
    if let Some(rate) = settings.over_budget(hub.len()) {
        tracing::warn!(rate, budget = settings.reconnect_budget, "closing faster than the fleet's reconnect budget");
        metrics.drains_over_budget.inc();
    }
    send_away(settings, hub, admission).await;
    let left = tokio::time::timeout(settings.grace, async {
        while !hub.is_empty() {
            tokio::time::sleep(STEP).await;
        }
    });
    if left.await.is_err() {
        tracing::warn!(sockets = hub.len(), "sockets left when the grace was over");
    }
    lifecycle.advance(Phase::Stopped);
}

async fn send_away(settings: DrainSettings, hub: &Hub, admission: &Admission) {
    let begin = tokio::time::Instant::now();
    let mut ids = Vec::with_capacity(hub.len());
    hub.for_each(|conn| ids.push(conn.id()));
    let mut closed = 0;
    while closed < ids.len() {
        let due = settings.due(ids.len(), begin.elapsed());
        send_off(&ids[closed..due], hub, admission).await;
        closed = due;
        tokio::time::sleep(STEP).await;
    }
    // Those that were in the middle of their handshake when the listener closed.
    let mut stragglers = Vec::new();
    hub.for_each(|conn| stragglers.push(conn.id()));
    send_off(&stragglers, hub, admission).await;
}

/// Gives the places of these sockets back, and then closes them.
// Inv. CAP: the cluster has been told before the client is.
async fn send_off(ids: &[ConnId], hub: &Hub, admission: &Admission) {
    if ids.is_empty() {
        return;
    }
    ids.iter().for_each(|id| hub.give_place_back(*id));
    // Without an answer in time the client may meet the cap for a moment; holding it back would break the window.
    let _ = tokio::time::timeout(TELL_MAX, admission.settle()).await;
    ids.iter().for_each(|id| hub.close_draining(*id, retry_after_ms()));
}

/// When a client that is sent away shall come back: full jitter.
pub(crate) fn retry_after_ms() -> u64 {
    let max_ms = u64::try_from(RETRY_AFTER_MAX.as_millis()).unwrap_or(u64::MAX);
    rand::rng().random_range(0..=max_ms)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings(window_ms: u64) -> DrainSettings {
        DrainSettings {
            delay: Duration::ZERO,
            window: Duration::from_millis(window_ms),
            grace: Duration::ZERO,
            reconnect_budget: 500,
        }
    }

    proptest! {
        // Inv. DRAIN
        #[test]
        fn closes_are_spread_evenly_and_all_are_closed_by_the_end(window_ms in 0u64..60_000, sockets in 0usize..100_000) {
            let settings = settings(window_ms);
            let mut last = 0;
            for step in 0..=20 {
                let elapsed = settings.window * step / 20;
                let due = settings.due(sockets, elapsed);
                prop_assert!(due >= last && due <= sockets);
                let even = sockets * step as usize / 20;
                prop_assert!(window_ms == 0 || due.abs_diff(even) <= 1, "{due} of {sockets} at {step}/20");
                last = due;
            }
            prop_assert_eq!(last, sockets);
        }
    }

    #[test]
    fn a_drain_above_the_budget_is_told() {
        assert_eq!(settings(25_000).over_budget(12_500), None);
        assert_eq!(settings(25_000).over_budget(20_000), Some(800));
        assert_eq!(settings(0).over_budget(1_000), Some(1_000));
    }
}
