//! What must always hold.
//!
//! Progress is a law like the others: *always*, no more than so many seconds go by without trouble and without a new
//! snapshot. As an "eventually" it would be weaker, since it would not say when; and the checker's `eventually` is not
//! exact where two paths meet in one state. The price is a counter in the state, and that the world has to go on
//! beyond the last fault for as long as the bound.

use std::time::Duration;

use gateway::backplane::{Lease, TickMark};
use gateway::relay::freshness::GRACE;
use gateway::ticker::election::SETTLE_AFTER_LOSS;
use shared::ids::NodeId;
use stateright::{Model, Property};

use crate::redis::Published;
use crate::steps::Cluster;
use crate::world::{LEASE, Params, World};

pub(crate) const SLOT: &str = "SLOT: the stream has one snapshot per slot, as far as Redis remembers";
pub(crate) const SHOWN_ONCE: &str = "SLOT: no viewer sees two snapshots of a slot, whatever Redis forgets";
pub(crate) const FENCE: &str = "FENCE: only the present holder of the lease publishes";
pub(crate) const EPOCHS: &str =
    "FENCE: no snapshot comes under an older epoch than one before it, whatever Redis forgets";
pub(crate) const ONE_BELIEVER: &str = "FENCE: no two nodes believe in their lease, unless Redis forgot one";
pub(crate) const SETTLED: &str = "who knows that the data were lost waits before it counts";
pub(crate) const PROGRESS: &str = "a new snapshot is seen within the bound once the trouble is over";

/// Not of the election but of the model: where nothing can happen nothing can go wrong, and nobody would notice.
pub(crate) const GOES_ON: &str = "the model never stands still before its end";

/// Which laws were broken by what has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Broken {
    slot: bool,
    shown_once: bool,
    fence: bool,
    epochs: bool,
    settled: bool,
}

pub(crate) fn all() -> Vec<Property<Cluster>> {
    vec![
        Property::always(SLOT, |_, world: &World| !world.broken.slot),
        Property::always(SHOWN_ONCE, |_, world: &World| !world.broken.shown_once),
        Property::always(FENCE, |_, world: &World| !world.broken.fence),
        Property::always(EPOCHS, |_, world: &World| !world.broken.epochs),
        Property::always(ONE_BELIEVER, |_, world: &World| one_believer(world)),
        Property::always(SETTLED, |_, world: &World| !world.broken.settled),
        Property::always(PROGRESS, |cluster: &Cluster, world: &World| world.memory.quiet <= cluster.0.quiet_max),
        // Asked where the space is small: it costs as much as all the rest.
        Property::always(GOES_ON, |cluster: &Cluster, world: &World| cluster.0.faults > 1 || goes_on(cluster, world)),
    ]
}

fn goes_on(cluster: &Cluster, world: &World) -> bool {
    let mut steps = Vec::new();
    cluster.actions(world, &mut steps);
    !steps.is_empty() || world.memory.healed || world.now == cluster.0.ends()
}

fn one_believer(world: &World) -> bool {
    // Until then the holder of a lease that Redis forgot can believe in it, beside the new one. Redis fences it.
    let believers = world.up().filter(|(_, process)| process.election.lease(world.own_time()).is_some()).count();
    world.memory.forgot_at.is_some() || believers <= 1
}

impl World {
    /// Judges a snapshot that has just been published; `before` is the world without it.
    pub(crate) fn witness(&mut self, params: &Params, before: &Self, lease: Lease, published: Published) {
        let held = before.redis.ticker;
        let now_ms = params.redis_ms(self.now);
        // Inv. SLOT
        self.broken.slot |= before.redis.last.is_some_and(|last| last.slot >= published.slot);
        // Inv. FENCE
        self.broken.fence |= !held.is_some_and(|held| held.lease == lease && held.until > now_ms);
        self.broken.epochs |= published.epoch < self.memory.greatest_epoch;
        self.memory.greatest_epoch = self.memory.greatest_epoch.max(published.epoch);
        self.broken.settled |= before.redis.last.is_none() && self.knew_better(lease.node);
        self.show(params, published);
    }

    /// Whether this node knew that there were data before, and the present ones are too young to count.
    fn knew_better(&self, node: NodeId) -> bool {
        let knows = self.up().any(|(_, process)| process.id == node && process.knows_of_data);
        knows && self.memory.emptied_at.is_some()
    }

    fn show(&mut self, params: &Params, published: Published) {
        let viewer = &mut self.viewer;
        let mark = TickMark { epoch: published.epoch, slot: published.slot, entries: 0 };
        if viewer.gate.admit(mark) || !params.habits.gates_slots {
            self.broken.shown_once |= viewer.last.is_some_and(|last| last >= published.slot);
            viewer.last = Some(published.slot);
            viewer.silent = 0;
            self.memory.quiet = 0;
            self.memory.healed = self.is_over(params);
        }
    }

    /// A second has gone by.
    pub(crate) fn count_second(&mut self, params: &Params) {
        let stale = (params.interval * 2 + GRACE).as_secs();
        self.viewer.silent = (self.viewer.silent + 1).min(stale);
        if self.viewer.silent == stale {
            self.viewer.gate.forget();
        }
        self.memory.quiet = if self.is_troubled() { 0 } else { self.memory.quiet + 1 };
        let now = self.own_time();
        self.memory.forgot_at = self.memory.forgot_at.filter(|at| now < Duration::from_secs(*at) + LEASE);
        self.memory.emptied_at = self.memory.emptied_at.filter(|at| now < Duration::from_secs(*at) + SETTLE_AFTER_LOSS);
    }
}
