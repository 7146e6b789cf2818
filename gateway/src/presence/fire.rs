//! Presence under fire: three nodes on the embedded backplane, with days, outages and deaths of a few milliseconds.
//!
//! Everything that keeps time does so by tokio's paused clock: the nodes' loops (the real ones, of presence and of the
//! cluster), their connections, and the backplane, whose clock is set apart from it by what a test says. So a night
//! passes at once, the same each time, and every count on its way is looked at.
//!
//! What must hold: the number returns to the truth within one window, whatever happens, and never counts anybody twice.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicI64, Ordering};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::tests::visitor;
use super::*;
use crate::admission::{Admission, AdmissionSettings};
use crate::backplane::memory::MemoryBackplane;
use crate::backplane::{Millis, Tick, TickReply};
use crate::cluster::{Cluster, ClusterParts};
use crate::hub::HubSettings;
use crate::testing::Unreliable;
use crate::vitals::Vitals;
use shared::ids::Slot;

const WINDOW: Duration = Duration::from_secs(300);
const INTERVAL: Duration = Duration::from_secs(5);
const MINUTE: Duration = Duration::from_secs(60);
/// Twenty minutes before a midnight.
const EVENING: Millis = 20_000 * DAY_MS - 1_200_000;
/// Visitors of each node; one more is on all of them.
const EACH: u64 = 10;
const ALL: u64 = 3 * EACH + 1;
/// The ticker is nobody in particular.
const TICKER: u64 = 99;

struct Node {
    link: Arc<Unreliable>,
    presence: Arc<Presence>,
    clock: Clock,
    time: Arc<ClusterTime>,
    sockets: Arc<Mutex<HashSet<VisitorDigest>>>,
    paused: watch::Sender<bool>,
    _loops: JoinSet<()>,
}

impl Node {
    async fn start(id: u64, memory: &Arc<MemoryBackplane>) -> Self {
        let link = Unreliable::new(Arc::clone(memory));
        let port: Arc<dyn Backplane> = Arc::clone(&link) as _;
        let (node, clock, metrics) = (NodeId::from_random(id), Clock::start(), Arc::new(Metrics::default()));
        let (vitals, time) = (Arc::new(Vitals::new(clock)), Arc::new(ClusterTime::new(clock)));
        let hub = Hub::new(HubSettings::default(), clock, Arc::clone(&metrics), Arc::clone(&vitals));
        let presence = Presence::new(Arc::clone(&port), node, WINDOW, Arc::clone(&metrics), clock, Arc::clone(&time));
        let settings = AdmissionSettings {
            max_connections: 100,
            max_per_address: 10,
            handshakes_per_second: 0,
            backplane_wait: Duration::from_millis(250),
            visitor_window: WINDOW,
        };
        let admission = Admission::new(settings, node, Arc::clone(&port), metrics, clock);
        admission.set_secret([7; 32]);
        let cluster = Cluster::new(ClusterParts {
            backplane: port,
            node,
            admission,
            hub,
            presence: Arc::clone(&presence),
            vitals,
            clock,
            time: Arc::clone(&time),
        });
        presence.start().await.expect("salts");
        let sockets: Arc<Mutex<HashSet<VisitorDigest>>> = Arc::default();
        let paused = watch::Sender::new(false);
        let mut loops = JoinSet::new();
        loops.spawn(unless(paused.subscribe(), cluster.run(Lifecycle::default())));
        let (driven, visitors) = (Arc::clone(&presence), Arc::clone(&sockets));
        loops.spawn(unless(paused.subscribe(), async move {
            driven.drive(|| visitors.lock().clone(), &Lifecycle::default()).await;
        }));
        Self { link, presence, clock, time, sockets, paused, _loops: loops }
    }

    fn opens(&self, visitor: VisitorDigest) {
        self.sockets.lock().insert(visitor);
        self.presence.arrived(visitor);
    }
}

/// Does the work except while it is paused: then its time passes unused, as that of a stopped process.
async fn unless(mut paused: watch::Receiver<bool>, work: impl Future<Output = ()>) {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            _ = paused.wait_for(|paused| *paused) => {}
            () = &mut work => return,
        }
        if paused.wait_for(|paused| !*paused).await.is_err() {
            return;
        }
    }
}

struct World {
    nodes: Vec<Node>,
    memory: Arc<MemoryBackplane>,
    /// How far the backplane's clock is ahead of where it began, beside the time that has passed.
    set: Arc<AtomicI64>,
    began: Instant,
    /// Nobody can tick.
    out: bool,
}

impl World {
    /// Three nodes with their visitors, all of them counted.
    async fn new() -> Self {
        let (set, began) = (Arc::new(AtomicI64::new(0)), Instant::now());
        let memory = Self::empty(&set, began);
        let mut world = Self { nodes: Vec::new(), memory, set, began, out: false };
        for n in 0..3 {
            world.nodes.push(Node::start(n + 1, &world.memory).await);
            for name in visitors_of(n) {
                world.nodes[usize::try_from(n).expect("few")].opens(name);
            }
        }
        world.counts(ALL..=ALL, MINUTE).await;
        world
    }

    fn empty(set: &Arc<AtomicI64>, began: Instant) -> Arc<MemoryBackplane> {
        let set = Arc::clone(set);
        MemoryBackplane::with_time(Box::new(move || {
            let passed = Millis::try_from(began.elapsed().as_millis()).expect("days");
            (EVENING + passed).saturating_add_signed(set.load(Ordering::Relaxed))
        }))
    }

    /// Time passes, in which every count lies in that range.
    async fn counts(&self, range: RangeInclusive<u64>, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            tokio::time::sleep(INTERVAL).await;
            if let Some(count) = self.tick().await {
                let at = self.began.elapsed().as_secs();
                assert!(range.contains(&count), "{count} visitors, not {range:?}, {at} s after the beginning");
            }
        }
    }

    async fn tick(&self) -> Option<u64> {
        if self.out {
            return None;
        }
        let claim = self.memory.claim(NodeId::from_random(TICKER), INTERVAL * 2).await.expect("answers");
        let (lease, slot) = (claim.lease.expect("the only ticker"), Slot::containing(claim.now, 5_000));
        let tick = Tick { lease, slot, interval: INTERVAL, window: WINDOW };
        match self.memory.tick(&tick).await.expect("answers") {
            TickReply::Published { snapshot, .. } => Some(snapshot.active_visitors),
            // The clock was set back a little, and is waited for.
            TickReply::AlreadyDone { .. } => None,
            other => panic!("{other:?}"),
        }
    }

    fn backplane_is_out(&mut self, out: bool) {
        self.out = out;
        self.nodes.iter().for_each(|node| node.link.set_down(out));
    }

    fn lose_data(&mut self) {
        self.memory = Self::empty(&self.set, self.began);
        self.nodes.iter().for_each(|node| node.link.replace(Arc::clone(&self.memory)));
    }

    /// The backplane's clock jumps.
    fn set_clock(&self, by_ms: i64) {
        self.set.fetch_add(by_ms, Ordering::Relaxed);
    }
}

/// Who is on a node; the last of them is on every node.
fn visitors_of(node: u64) -> Vec<VisitorDigest> {
    (0..EACH).map(|n| visitor(&format!("{node}-{n}"))).chain([visitor("everywhere")]).collect()
}

#[tokio::test(start_paused = true)]
async fn a_night_passes_and_everybody_counts_once() {
    let world = World::new().await;
    world.counts(ALL..=ALL, 40 * MINUTE).await;
    world.counts(ALL..=ALL, 2 * 60 * MINUTE).await;
}

// An idea of the time that is wrong changes nothing: whose day it is, is the backplane's to say.
#[tokio::test(start_paused = true)]
async fn nodes_whose_clocks_disagree_name_everybody_alike() {
    let world = World::new().await;
    for _ in 0..30 {
        for (node, hours) in world.nodes.iter().zip([-2, 0, 2_i64]) {
            let (sent, now) = (node.clock.now(), node.time.at(node.clock.now()).expect("has beaten").earliest);
            node.time.learned(sent, now.saturating_add_signed(hours * 3_600_000));
            node.presence.refresh_all();
        }
        world.counts(ALL..=ALL, MINUTE).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_shorter_than_the_window_loses_nobody_who_stays() {
    for seconds in [4, 11, 61, 150, 299] {
        let mut world = World::new().await;
        world.counts(ALL..=ALL, Duration::from_secs(37)).await;
        world.backplane_is_out(true);
        world.counts(0..=0, Duration::from_secs(seconds)).await;
        world.backplane_is_out(false);
        world.counts(ALL..=ALL, 3 * WINDOW).await;
    }
}

// Names of both days are counted after an outage whose length is added to the window.
#[tokio::test(start_paused = true)]
async fn an_outage_over_midnight_counts_nobody_twice() {
    for (before, minutes) in [(15, 8), (15, 30), (18, 3), (5, 120)] {
        let mut world = World::new().await;
        world.counts(ALL..=ALL, before * MINUTE).await;
        world.backplane_is_out(true);
        world.counts(0..=0, minutes * MINUTE).await;
        world.backplane_is_out(false);
        world.counts(ALL..=ALL, 4 * WINDOW).await;
    }
}

// The nodes have turned their names and not yet marked anybody under the new ones: the old ones outlast the outage.
#[tokio::test(start_paused = true)]
async fn an_outage_that_begins_just_after_midnight_counts_nobody_twice() {
    for (seconds, minutes) in [(5, 15), (10, 9), (20, 15), (40, 15), (40, 180)] {
        let mut world = World::new().await;
        // Rounds are due 50 s after the full minute from here on.
        world.counts(ALL..=ALL, Duration::from_secs(50)).await;
        world.nodes.iter().for_each(|node| node.presence.refresh_all());
        world.counts(ALL..=ALL, 18 * MINUTE + Duration::from_secs(10 + seconds)).await;
        world.backplane_is_out(true);
        world.counts(0..=0, minutes * MINUTE).await;
        world.backplane_is_out(false);
        world.counts(ALL..=ALL, 4 * WINDOW).await;
    }
}

// A replica whose clock is behind takes over just after midnight.
#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_over_midnight_counts_nobody_twice() {
    let world = World::new().await;
    world.counts(ALL..=ALL, 21 * MINUTE).await;
    world.set_clock(-10 * 60_000);
    world.counts(ALL..=ALL, 30 * MINUTE).await;
}

#[tokio::test(start_paused = true)]
async fn who_was_on_a_dead_node_counts_for_a_window_and_not_twice_elsewhere() {
    let mut world = World::new().await;
    let dead = world.nodes.remove(0);
    drop(dead);
    for name in visitors_of(0).into_iter().take(5) {
        world.nodes[0].opens(name);
    }
    world.counts(ALL..=ALL, WINDOW - 2 * MINUTE).await;
    world.counts(ALL - 5..=ALL, 2 * MINUTE).await;
    world.counts(ALL - 5..=ALL - 5, 2 * WINDOW).await;
}

#[tokio::test(start_paused = true)]
async fn a_paused_nodes_visitors_come_back_with_it() {
    for pause in [MINUTE, 3 * WINDOW] {
        let world = World::new().await;
        world.nodes[0].paused.send_replace(true);
        world.counts(ALL - EACH..=ALL, pause).await;
        world.nodes[0].paused.send_replace(false);
        // The beat says that it was out, or a batch is late; then all are marked at once.
        world.counts(ALL - EACH..=ALL, INTERVAL).await;
        world.counts(ALL..=ALL, 2 * WINDOW).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_backplane_that_lost_its_data_knows_everybody_after_a_beat() {
    for minutes in [1, 19, 20] {
        let mut world = World::new().await;
        world.counts(ALL..=ALL, minutes * MINUTE).await;
        world.lose_data();
        // The first tick over an empty data set waits 4 s: see docs/ARCHITECTURE.md, ADR 10.
        world.counts(ALL..=ALL, 3 * WINDOW).await;
    }
}
