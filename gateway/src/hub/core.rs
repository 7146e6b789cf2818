//! What every socket needs of its hub: limits, the newest state, the memory that outboxes share, the sweep's time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use parking_lot::RwLock;
use shared::ids::EventId;
use shared::message::{encode_init, with_id};

use super::outbox::{Loss, Resync};
use super::sweep::SweepTime;
use super::{HubSettings, Ids, State, frame};
use crate::metrics::Metrics;

/// The newest state and how far the broadcaster has got: what a joining socket starts from.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Published {
    /// The last pass that was begun; the first is 1.
    pub(super) sequence: u64,
    /// The newest state that passes up to `sequence` brought.
    pub(super) state: Option<State>,
    /// The last id that passes up to `sequence` brought.
    pub(super) last_id: Option<EventId>,
}

/// Shared by the hub and all that touch its sockets.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) settings: HubSettings,
    pub(super) metrics: Arc<Metrics>,
    published: RwLock<Published>,
    outbox_bytes: AtomicUsize,
    sweep_time: AtomicU32,
}

impl Core {
    pub(super) fn new(settings: HubSettings, metrics: Arc<Metrics>) -> Self {
        Self {
            settings,
            metrics,
            published: RwLock::default(),
            outbox_bytes: AtomicUsize::new(0),
            sweep_time: AtomicU32::new(SweepTime::START.to_bits()),
        }
    }

    /// What a socket that joins now starts from.
    pub(super) fn published(&self) -> Published {
        *self.published.read()
    }

    /// Sets the state before there was a pass.
    pub(super) fn prime(&self, state: State) {
        let mut published = self.published.write();
        published.state = Some(state);
        published.last_id = published.last_id.or(state.id);
    }

    /// Begins a pass: says what it brings, before any socket gets it. Returns its number and the last id before it.
    // Inv. ORDER: first this, then the snapshot of the sockets. A socket that joins is in the map before it reads
    // `published`; so either the pass sees it, or it has read this.
    pub(super) fn begin_pass(&self, state: Option<State>, last_id: Option<EventId>) -> (u64, Option<EventId>) {
        let mut published = self.published.write();
        let before = published.last_id;
        *published = Published {
            sequence: published.sequence + 1,
            state: state.or(published.state),
            last_id: last_id.or(before),
        };
        (published.sequence, before)
    }

    /// What a socket gets that joins now, or takes bytes again after it has missed something.
    pub(super) fn resync(&self, ids: Ids) -> Resync {
        let published = self.published();
        let init = published.state.map(|state| {
            let text = encode_init(state.snapshot, state.freshness);
            let text = match (ids, state.id) {
                (Ids::With, Some(id)) => with_id(&text, id),
                _ => text,
            };
            frame::text(&text)
        });
        Resync { init, last_id: published.last_id, sequence: published.sequence, announces: ids == Ids::With }
    }

    /// Accounts for an outbox whose cost went from `before` to `after` bytes.
    pub(super) fn settle(&self, before: usize, after: usize) {
        if after >= before {
            self.outbox_bytes.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.outbox_bytes.fetch_sub(before - after, Ordering::Relaxed);
        }
        let delta = i64::try_from(after).unwrap_or(i64::MAX) - i64::try_from(before).unwrap_or(i64::MAX);
        self.metrics.outbox_bytes.add(delta);
    }

    /// Counts what a slow reader lost.
    pub(super) fn count_loss(&self, loss: Loss) {
        if loss != Loss::default() {
            self.metrics.events_discarded.add(loss.events);
            self.metrics.outbox_overflows.add(loss.overflows);
        }
    }

    /// The cost of all outboxes, in bytes.
    pub(super) fn outbox_bytes(&self) -> usize {
        self.outbox_bytes.load(Ordering::Relaxed)
    }

    /// Whether all outboxes together hold more than they may.
    pub(super) fn is_overloaded(&self) -> bool {
        self.outbox_bytes() > self.settings.outbox_total_bytes_max
    }

    /// When the last sweep was.
    pub(super) fn sweep_time(&self) -> SweepTime {
        SweepTime::from_bits(self.sweep_time.load(Ordering::Relaxed))
    }

    pub(super) fn set_sweep_time(&self, time: SweepTime) {
        self.sweep_time.store(time.to_bits(), Ordering::Relaxed);
    }
}
