//! What every socket needs of its hub: limits, the newest state, the memory that outboxes share, the sweep's time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use shared::ids::EventId;
use shared::message::{encode_init, with_id};
use tokio::sync::{Notify, watch};

use super::outbox::{Loss, Resync};
use super::replay::Waiting;
use super::ring::{Item, Ring};
use super::sweep::{LastSweep, SweepTime};
use super::{HubSettings, Ids, Shown, State, frame};
use crate::clock::{Clock, Mono};
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
    /// The last wish to have the stream read to its end ([`Core::ask_end`]) that was fulfilled before `sequence`.
    pub(super) read_to_end: u64,
}

/// What passes have brought. One lock for all of it: the ring holds exactly what passes up to `sequence` brought.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) published: Published,
    pub(super) ring: Ring,
}

/// What a pass brings, said before any socket gets it.
#[derive(Debug, Default)]
pub(super) struct Brought {
    /// The newest state.
    pub(super) state: Option<State>,
    /// The last id.
    pub(super) last_id: Option<EventId>,
    /// What becomes part of the past.
    pub(super) items: Vec<Item>,
    /// The stream was read to its end, as this wish wanted.
    pub(super) read_to_end: Option<u64>,
}

/// Shared by the hub and all that touch its sockets.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) settings: HubSettings,
    pub(super) metrics: Arc<Metrics>,
    clock: Clock,
    stage: RwLock<Stage>,
    /// There is a state that a joining socket starts from.
    pub(super) has_state: watch::Sender<bool>,
    /// Sockets that catch up and wait for more than their connection.
    waiting: Arc<AtomicUsize>,
    /// The last wish to have the stream read to its end.
    end_asked: AtomicU64,
    /// Somebody wants more of the past than the ring has.
    pub(super) past_asked: Notify,
    outbox_bytes: AtomicUsize,
    pub(super) last_sweep: LastSweep,
}

impl Core {
    pub(super) fn new(settings: HubSettings, clock: Clock, metrics: Arc<Metrics>) -> Self {
        let ring = Ring::new(settings.replay_bytes_max);
        Self {
            settings,
            metrics,
            clock,
            stage: RwLock::new(Stage { published: Published::default(), ring }),
            has_state: watch::Sender::new(false),
            waiting: Arc::default(),
            end_asked: AtomicU64::new(0),
            past_asked: Notify::new(),
            outbox_bytes: AtomicUsize::new(0),
            last_sweep: LastSweep::default(),
        }
    }

    /// The time by which it is judged whether a number that is told is still the truth.
    pub(super) fn now(&self) -> Mono {
        self.clock.now()
    }

    /// What a socket that joins now starts from.
    pub(super) fn published(&self) -> Published {
        self.stage.read().published
    }

    /// What passes have brought, as one.
    pub(super) fn stage(&self) -> RwLockReadGuard<'_, Stage> {
        self.stage.read()
    }

    /// The same, to change the past.
    pub(super) fn stage_mut(&self) -> RwLockWriteGuard<'_, Stage> {
        self.stage.write()
    }

    /// Sets the state before there was a pass.
    pub(super) fn prime(&self, state: State) {
        let published = &mut self.stage.write().published;
        published.state = Some(state);
        published.last_id = published.last_id.or(state.id);
        self.has_state.send_replace(true);
    }

    /// Begins a pass: says what it brings, before any socket gets it. Returns its number and the last id before it.
    // Inv. ORDER: first this, then the snapshot of the sockets. A socket that joins is in the map before it reads
    // `published`; so either the pass sees it, or it has read this.
    pub(super) fn begin_pass(&self, brought: Brought) -> (u64, Option<EventId>) {
        let mut stage = self.stage.write();
        let Stage { published, ring } = &mut *stage;
        let before = published.last_id;
        let is_first_state = published.state.is_none() && brought.state.is_some();
        *published = Published {
            sequence: published.sequence + 1,
            state: brought.state.or(published.state),
            last_id: brought.last_id.or(before),
            read_to_end: brought.read_to_end.unwrap_or(published.read_to_end),
        };
        brought.items.into_iter().for_each(|item| ring.push(item));
        let (sequence, size) = (published.sequence, ring.size());
        drop(stage);
        if is_first_state {
            self.has_state.send_replace(true);
        }
        self.metrics.replay_size(size);
        (sequence, before)
    }

    /// Counts a socket that may wait for news of the stream, as long as the result lives.
    // Before it looks at the stage: a pass changes that first and then looks for who waits, so neither misses the other.
    pub(super) fn waiting(&self) -> Waiting {
        Waiting::among(&self.waiting)
    }

    /// Whether a socket may wait for news of the stream.
    pub(super) fn has_waiting(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Asks that the stream be read to its end from now on; [`Published::read_to_end`] says that number then.
    pub(super) fn ask_end(&self) -> u64 {
        self.end_asked.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Asks for more of the past; returns how many attempts had ended when it did.
    pub(super) fn ask_past(&self) -> u64 {
        let ended = self.stage.read().ring.fetches();
        self.past_asked.notify_one();
        ended
    }

    /// The last number that [`Self::ask_end`] gave.
    pub(super) fn end_asked(&self) -> u64 {
        self.end_asked.load(Ordering::SeqCst)
    }

    /// What a socket gets that joins now.
    pub(super) fn greeting(&self, ids: Ids) -> Resync {
        self.start(ids, |state| state.id.filter(|_| ids == Ids::With))
    }

    /// What a socket gets that takes bytes again after it has missed something, or that has a past.
    // Inv. GAP: without an id. Were the connection to break behind this `init`, a client would go on from its id, and
    // what the gap behind it says would stay unsaid.
    pub(super) fn resync(&self, ids: Ids) -> Resync {
        self.start(ids, |_| None)
    }

    fn start(&self, ids: Ids, id_of_init: impl FnOnce(Shown) -> Option<EventId>) -> Resync {
        let (published, end) = {
            let stage = self.stage();
            (stage.published, stage.ring.end_of_gap())
        };
        let state = published.state.map(|state| state.shown_at(self.now()));
        let init = state.map(|state| {
            let text = encode_init(state.snapshot, state.freshness);
            match id_of_init(state) {
                Some(id) => frame::text(&with_id(&text, id)),
                None => frame::text(&text),
            }
        });
        Resync {
            init,
            state,
            last_id: published.last_id,
            end,
            sequence: published.sequence,
            announces: ids == Ids::With,
        }
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
        self.last_sweep.time()
    }
}
