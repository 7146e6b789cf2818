//! Drives this node's part in the election, and moves legacy messages while it is the ticker.
//!
//! The decisions are [`election`]'s; here they are carried out, one call at a time, each cut off after
//! [`CALL_TIMEOUT`] so that one lost packet does not cost the lease. Beside it, in the same task, runs the mover:
//! producers that know nothing but `PUBLISH` reach the stream through the ticker alone, under its lease, so each of
//! their messages is there once and in one place of the order (the backplane refuses a mover whose lease is gone,
//! Inv. FENCE). The mover subscribes before the first tick of a reign, so what is published after a snapshot of this
//! ticker was seen is not missed; but a subscription that cannot be had delays the ticks by one call at most.
//!
//! Pub/sub is at most once: what is published while no ticker is subscribed is lost. What comes too fast, does not
//! fit, or cannot be taken is dropped and counted, never logged.
//!
//! When the node is told to drain it gives the lease back at once, and another node ticks within a poll.

pub mod election;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shared::event::{LegacyMessage, parse_legacy};
use shared::ids::NodeId;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use self::election::{Action, Election, ElectionSettings};
use crate::backplane::{Backplane, ClaimReply, Lease, PUBLISH_ITEMS_MAX, Publication, Tick, TickReply};
use crate::clock::Clock;
use crate::cluster_time::ClusterTime;
use crate::identity::VisitorDigest;
use crate::lifecycle::{Lifecycle, Phase};
use crate::metrics::{Legacy, Metrics, TickOutcome};
use crate::publisher::{PublishError, Publisher, Submission};

/// A call of the election is given up after this. A lease of three seconds leaves room for a second try.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(1);
/// A subscription that failed is tried again after this.
const RESUBSCRIBE_AFTER: Duration = Duration::from_secs(1);
/// The longest legacy message that is looked at, in bytes.
pub const LEGACY_BYTES_MAX: usize = 16 * 1024;

/// What the ticker goes by.
#[derive(Debug, Clone, Copy)]
pub struct TickerSettings {
    /// Length of a slot.
    pub interval: Duration,
    /// How long a visitor counts after it was last seen.
    pub window: Duration,
    /// How long a claim holds without renewal.
    pub lease: Duration,
}

/// One node's ticker: idle on all nodes but one.
#[derive(Debug)]
pub struct Ticker {
    backplane: Arc<dyn Backplane>,
    node: NodeId,
    publisher: Publisher,
    settings: TickerSettings,
    metrics: Arc<Metrics>,
    clock: Clock,
    time: Arc<ClusterTime>,
    /// The lease, while this node believes that it is the ticker.
    reign: watch::Sender<Option<Lease>>,
    /// The reign in which the legacy channel is subscribed.
    subscribed: watch::Sender<Option<Lease>>,
}

impl Ticker {
    /// A ticker that holds no lease.
    #[must_use]
    pub fn new(
        backplane: Arc<dyn Backplane>,
        node: NodeId,
        publisher: Publisher,
        settings: TickerSettings,
        metrics: Arc<Metrics>,
        clock: Clock,
        time: Arc<ClusterTime>,
    ) -> Self {
        let (reign, subscribed) = (watch::Sender::new(None), watch::Sender::new(None));
        Self { backplane, node, publisher, settings, metrics, clock, time, reign, subscribed }
    }

    /// Follows whether this node is the ticker.
    #[must_use]
    pub fn is_ticker(&self) -> watch::Receiver<Option<Lease>> {
        self.reign.subscribe()
    }

    /// Takes part in the election until the node drains; then gives the lease back.
    pub async fn run(self, lifecycle: Lifecycle) {
        // Biased: the end first. Leaving the election between any two polls of it is safe: a call that was under way
        // can at worst renew a lease which is given back right after it, on the same connection.
        tokio::select! {
            biased;
            () = lifecycle.reached(Phase::Draining) => {}
            () = self.elect() => {}
            () = self.move_legacy() => {}
        }
        let lease = *self.reign.borrow();
        self.publish_reign(None);
        if let Some(lease) = lease {
            // Unanswered, the lease runs out by itself.
            let _ = timeout(CALL_TIMEOUT, self.backplane.release(lease)).await;
        }
    }

    async fn elect(&self) {
        let settings = ElectionSettings { interval: self.settings.interval, lease: self.settings.lease };
        let mut election = Election::new(self.node, settings);
        loop {
            let action = election.next(self.clock.now());
            self.publish_reign(election.lease(self.clock.now()));
            match action {
                Action::Wait(until) => tokio::time::sleep(until.saturating_sub(self.clock.now())).await,
                Action::Claim => {
                    let sent = self.clock.now();
                    let reply = self.claim().await;
                    election.claimed(sent, self.clock.now(), reply, &mut rand::rng());
                }
                Action::Tick { lease, .. } if *self.subscribed.borrow() != Some(lease) => {
                    // Time passes here, so what to do is asked again.
                    self.await_subscription(lease).await;
                }
                Action::Tick { lease, slot } => {
                    let sent = self.clock.now();
                    let tick = Tick { lease, slot, interval: self.settings.interval, window: self.settings.window };
                    let reply = self.tick(&tick).await;
                    election.ticked(sent, self.clock.now(), slot, reply, &mut rand::rng());
                }
            }
        }
    }

    async fn claim(&self) -> Option<ClaimReply> {
        let sent = self.clock.now();
        let reply = timeout(CALL_TIMEOUT, self.backplane.claim(self.node, self.settings.lease)).await.ok()?.ok()?;
        self.time.learned(sent, reply.now);
        Some(reply)
    }

    async fn tick(&self, tick: &Tick) -> Option<TickReply> {
        let reply = timeout(CALL_TIMEOUT, self.backplane.tick(tick)).await.ok().and_then(Result::ok);
        self.metrics.ticks.inc(match reply {
            Some(TickReply::Published { .. }) => TickOutcome::Published,
            Some(TickReply::AlreadyDone { .. }) => TickOutcome::AlreadyDone,
            Some(TickReply::WrongSlot { .. }) => TickOutcome::WrongSlot,
            Some(TickReply::Fenced) => TickOutcome::Fenced,
            None => TickOutcome::Failed,
        });
        reply
    }

    fn publish_reign(&self, lease: Option<Lease>) {
        let changed = self.reign.send_if_modified(|reign| std::mem::replace(reign, lease) != lease);
        if changed {
            self.metrics.ticker.set(i64::from(lease.is_some()));
            match lease {
                Some(lease) => tracing::info!(epoch = lease.epoch.0, "this node is the ticker"),
                None => tracing::info!("this node is no longer the ticker"),
            }
        }
    }

    /// Waits until the mover has subscribed for this reign, once and for one call's time at most.
    async fn await_subscription(&self, lease: Lease) {
        let mut subscribed = self.subscribed.subscribe();
        if timeout(CALL_TIMEOUT, subscribed.wait_for(|reign| *reign == Some(lease))).await.is_err() {
            // Not again in this reign: the number is worth more than legacy messages.
            self.subscribed.send_replace(Some(lease));
        }
    }

    /// Moves legacy messages whenever this node is the ticker.
    async fn move_legacy(&self) {
        let mut reign = self.reign.subscribe();
        let mut failing = false;
        loop {
            // The sender lives as long as `self`, so waiting cannot fail.
            let Ok(lease) = reign.wait_for(Option::is_some).await.map(|lease| *lease) else { return };
            match self.backplane.legacy().await {
                Ok(messages) => {
                    failing = false;
                    self.move_while_reigning(messages, &mut reign).await;
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "cannot subscribe to the legacy channel");
                    }
                    self.subscribed.send_replace(lease);
                    tokio::time::sleep(RESUBSCRIBE_AFTER).await;
                }
            }
        }
    }

    /// Returns when the node is no longer the ticker, or the subscription has ended.
    async fn move_while_reigning(
        &self,
        mut messages: mpsc::Receiver<Bytes>,
        reign: &mut watch::Receiver<Option<Lease>>,
    ) {
        let mut batch = Vec::with_capacity(PUBLISH_ITEMS_MAX);
        loop {
            let Some(lease) = *reign.borrow_and_update() else { return };
            self.subscribed.send_replace(Some(lease));
            // Both are cancel safe. A reign that was renamed or ended is looked at before messages are moved under it.
            let received = tokio::select! {
                biased;
                _ = reign.changed() => continue,
                received = messages.recv_many(&mut batch, PUBLISH_ITEMS_MAX) => received,
            };
            if received == 0 {
                tokio::time::sleep(RESUBSCRIBE_AFTER).await;
                return;
            }
            let items: Vec<_> = batch.drain(..).filter_map(|payload| self.read(&payload)).collect();
            self.move_items(items, lease).await;
        }
    }

    fn read(&self, payload: &Bytes) -> Option<(Publication, Option<VisitorDigest>)> {
        // Inv. ANON, Inv. PRIVATE: what does not fit is counted and gone; what fits has named fields, and a digest.
        let parsed = (payload.len() <= LEGACY_BYTES_MAX).then(|| parse_legacy(&mut payload.to_vec()).ok()).flatten();
        match parsed {
            None => {
                self.metrics.legacy.inc(Legacy::Invalid);
                None
            }
            Some(LegacyMessage::Public(message)) => Some((Publication::Public(message), None)),
            Some(LegacyMessage::Event(incoming)) => {
                let visitor = incoming.visitor.as_ref().map(VisitorDigest::of_id);
                Some((Publication::Event(incoming.event), visitor))
            }
        }
    }

    async fn move_items(&self, items: Vec<(Publication, Option<VisitorDigest>)>, lease: Lease) {
        if items.is_empty() {
            return;
        }
        let count = items.len() as u64;
        let submission = Submission { items, lease: Some(lease), traceparent: None };
        let outcome = match self.publisher.publish(submission).await {
            Ok(_) => Legacy::Moved,
            Err(PublishError::Fenced) => Legacy::Fenced,
            Err(PublishError::Full) => Legacy::Overflow,
            Err(PublishError::Unavailable) => Legacy::Unavailable,
        };
        self.metrics.legacy.add(outcome, count);
    }
}

#[cfg(test)]
mod tests;
