//! Wiring: the only place that knows every room. It decides nothing but who is connected to whom, in which order
//! things start, and in which order they end.
//!
//! ```text
//! listeners ── http ──► admission ──► backplane ◄── cluster (beat, true counts)
//!               │ └──► publisher ───►   ▲   ▲  ◄─── ticker (election, snapshots, legacy channel)
//!               ▼                       │   └────── presence (who is there)
//!              hub ◄── broadcaster ◄── relay
//! ```
//!
//! Sockets and what they say are served on a runtime of their own; the loops, and the connection to the backplane, are
//! on the one that [`App::run`] is called on. A runtime serves who is ready in turn, and after a snapshot 20,000 sockets
//! are: on one runtime, a beat or an answer of Redis waits behind all of their pongs, for seconds where cores are short,
//! and the node is taken for dead, or takes Redis for it. Threads get their turn from the kernel, which is fair to those
//! that need little.
//!
//! Every loop is *essential*: the node lives by it, and if it ends before it was told to, the process ends with it
//! ([`Ending::Failed`]). A node that silently stopped relaying would be worse than one that restarts.

mod essential;
mod settings;
mod start;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rand::RngExt;
use shared::ids::NodeId;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use self::essential::{Essential, once_member, until_stopped};
use self::start::Start;
use crate::admission::Admission;
use crate::backplane::Backplane;
use crate::backplane::memory::MemoryBackplane;
use crate::backplane::redis::RedisBackplane;
use crate::clock::Clock;
use crate::cluster::{Cluster, ClusterParts};
use crate::cluster_time::ClusterTime;
use crate::config::{Config, TestPanic};
use crate::drain;
use crate::health::Health;
use crate::http::{self, Internal, Public};
use crate::hub::broadcast::BroadcastSender;
use crate::hub::{self, Hub};
use crate::lifecycle::{Ending, Lifecycle, Phase};
use crate::metrics::{Metrics, Page};
use crate::presence::Presence;
use crate::publisher::Publisher;
use crate::relay::{self, Relay, RelayParts};
use crate::telemetry::Telemetry;
use crate::ticker::Ticker;
use crate::vitals::Vitals;

/// How long the loops may take to end once the phase is `Stopped`.
const END_PATIENCE: Duration = Duration::from_secs(3);
/// How often rate limiters forget who has not come back.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// A second wish to stop within this time is the first one's echo: `timeout(1)` and others signal both a process and
/// its group.
const SAME_WISH_WITHIN: Duration = Duration::from_millis(250);

/// A node that is built and listens, but does not run yet.
#[derive(Debug)]
pub struct App {
    sockets: Handle,
    public: TcpListener,
    internal: TcpListener,
    config: Config,
    node: NodeId,
    clock: Clock,
    metrics: Arc<Metrics>,
    backplane: Connected,
    page: Page,
}

/// The backplane, and what of it only one kind has.
#[derive(Debug)]
enum Connected {
    Memory(Arc<MemoryBackplane>),
    Redis(Arc<RedisBackplane>),
}

impl Connected {
    fn backplane(&self) -> Arc<dyn Backplane> {
        match self {
            Self::Memory(memory) => Arc::clone(memory) as Arc<dyn Backplane>,
            Self::Redis(redis) => Arc::clone(redis) as Arc<dyn Backplane>,
        }
    }

    async fn close(&self) {
        if let Self::Redis(redis) = self {
            redis.close().await;
        }
    }
}

impl App {
    /// Opens the listeners and begins to connect. Does not wait for Redis: it may come later. Clients will be served on
    /// the runtime of `sockets`.
    ///
    /// # Errors
    /// An address that cannot be listened on, or a Redis URL that cannot be understood.
    pub fn build(config: Config, sockets: Handle) -> anyhow::Result<Self> {
        let listen = |address| http::listen(address).with_context(|| format!("cannot listen on {address}"));
        let public = {
            // A listener belongs to the runtime that it is opened on, and so do the sockets that it accepts.
            let _entered = sockets.enter();
            listen(config.listen)?
        };
        let internal = listen(config.internal_listen)?;
        let metrics = Arc::new(Metrics::default());
        let page = Page::new(&metrics, Telemetry::metric_exporter(&config)?)?;
        let node = NodeId::from_random(rand::rng().random());
        let backplane = match config.redis_settings() {
            None => {
                // In the same process: it answers as long as anybody can ask.
                metrics.backplane_up.set(1);
                Connected::Memory(MemoryBackplane::new())
            }
            Some(settings) => {
                Connected::Redis(RedisBackplane::connect(&settings, node, Arc::clone(&metrics)).context("REDIS_URL")?)
            }
        };
        Ok(Self { sockets, public, internal, config, node, clock: Clock::start(), metrics, backplane, page })
    }

    /// Where clients connect.
    ///
    /// # Errors
    /// The system's.
    pub fn public_address(&self) -> std::io::Result<SocketAddr> {
        self.public.local_addr()
    }

    /// Where probes and metrics are.
    ///
    /// # Errors
    /// The system's.
    pub fn internal_address(&self) -> std::io::Result<SocketAddr> {
        self.internal.local_addr()
    }

    /// Runs until `stop` yields: the first time begins the drain, the second ends at once.
    pub async fn run(self, mut stop: impl Stop) -> Ending {
        let Self { sockets, public, internal, config, node, clock, metrics, backplane: connected, page } = self;
        let rooms = Rooms::new(config, node, clock, metrics, connected.backplane());
        let mut essential = Essential::default();
        let publisher = rooms.start_loops(&mut essential);
        rooms.serve_inside(&mut essential, internal, page);
        rooms.serve_outside(&mut essential, &sockets, public, publisher);

        let Rooms { config, hub, admission, metrics, lifecycle, tasks, .. } = rooms;
        let drain = drain::run(settings::drain(&config), &hub, &admission, &metrics, &lifecycle);
        let ending = live(&mut essential, &mut stop, drain).await;
        lifecycle.advance(Phase::Stopped);
        if ending == Ending::Drained {
            finish(essential, &tasks, &connected).await;
        }
        ending
    }
}

/// What the parts of a running node share.
struct Rooms {
    config: Config,
    node: NodeId,
    clock: Clock,
    lifecycle: Lifecycle,
    metrics: Arc<Metrics>,
    vitals: Arc<Vitals>,
    time: Arc<ClusterTime>,
    tasks: TaskTracker,
    backplane: Arc<dyn Backplane>,
    admission: Arc<Admission>,
    hub: Arc<Hub>,
    presence: Arc<Presence>,
}

impl Rooms {
    fn new(config: Config, node: NodeId, clock: Clock, metrics: Arc<Metrics>, backplane: Arc<dyn Backplane>) -> Self {
        let vitals = Arc::new(Vitals::new(clock));
        let time = Arc::new(ClusterTime::new(clock));
        let admission =
            Admission::new(settings::admission(&config), node, Arc::clone(&backplane), Arc::clone(&metrics), clock);
        let hub = Hub::new(settings::hub(&config), clock, Arc::clone(&metrics), Arc::clone(&vitals));
        let presence = Presence::new(
            Arc::clone(&backplane),
            node,
            config.visitor_window,
            Arc::clone(&metrics),
            clock,
            Arc::clone(&time),
        );
        let (lifecycle, tasks) = (Lifecycle::default(), TaskTracker::new());
        Self { config, node, clock, lifecycle, metrics, vitals, time, tasks, backplane, admission, hub, presence }
    }

    /// Starts everything but the listeners; returns the way into the stream.
    fn start_loops(&self, essential: &mut Essential) -> Publisher {
        let life = &self.lifecycle;
        let (publisher, publishing) = Publisher::channel(
            Arc::clone(&self.backplane),
            self.node,
            Arc::clone(&self.presence),
            Arc::clone(&self.metrics),
        );
        let ticker = Ticker::new(
            Arc::clone(&self.backplane),
            self.node,
            publisher.clone(),
            settings::ticker(&self.config),
            Arc::clone(&self.metrics),
            self.clock,
            Arc::clone(&self.time),
        );
        let cluster = self.cluster();
        let (broadcast, broadcasts) = hub::broadcast::channel();
        let relay = self.relay(broadcast, &ticker, &cluster);
        let start = Start {
            backplane: Arc::clone(&self.backplane),
            admission: Arc::clone(&self.admission),
            presence: Arc::clone(&self.presence),
            members: cluster.report(),
            first_snapshot: self.hub.has_state(),
        };

        let hub = || Arc::clone(&self.hub);
        essential.start_thread("broadcaster", hub::broadcast::run(hub(), broadcasts, life.clone()), life);
        essential.start_thread("sweeper", hub::sweep::run(hub(), life.clone()), life);
        essential.start("relay", relay.run(life.clone()));
        essential.start("recall", self.recall());
        // It also ends when nobody is left who could publish: the listener is closed and the ticker has gone.
        essential.start("publisher", until_stopped(publishing.run(life.clone()), life.clone()));
        essential.start("presence", Arc::clone(&self.presence).run(hub(), life.clone()));
        let ticking = once_member(cluster.report(), ticker.run(life.clone()), life.clone());
        essential.start("ticker", until_stopped(ticking, life.clone()));
        essential.start("beat", cluster.run(life.clone()));
        essential.start("housekeeper", keep_house(Arc::clone(&self.admission), life.clone()));
        essential.start("start", until_stopped(start.run(life.clone()), life.clone()));
        publisher
    }

    fn cluster(&self) -> Cluster {
        Cluster::new(ClusterParts {
            backplane: Arc::clone(&self.backplane),
            node: self.node,
            admission: Arc::clone(&self.admission),
            hub: Arc::clone(&self.hub),
            presence: Arc::clone(&self.presence),
            vitals: Arc::clone(&self.vitals),
            clock: self.clock,
            time: Arc::clone(&self.time),
        })
    }

    fn relay(&self, broadcast: BroadcastSender, ticker: &Ticker, cluster: &Cluster) -> Relay {
        Relay::new(RelayParts {
            backplane: Arc::clone(&self.backplane),
            broadcast,
            hub: Arc::clone(&self.hub),
            presence: Arc::clone(&self.presence),
            tick_interval: self.config.tick_interval,
            metrics: Arc::clone(&self.metrics),
            vitals: Arc::clone(&self.vitals),
            clock: self.clock,
            time: Arc::clone(&self.time),
            is_ticker: ticker.is_ticker(),
            data_set: cluster.data_set(),
            panic_on: (self.config.test_panic == Some(TestPanic::Relay)).then_some(relay::PanicOn::FirstSnapshot),
        })
    }

    fn recall(&self) -> impl Future<Output = ()> + use<> {
        let (backplane, hub, metrics) = (Arc::clone(&self.backplane), Arc::clone(&self.hub), Arc::clone(&self.metrics));
        relay::recall::run(backplane, hub, metrics, self.clock, self.lifecycle.clone())
    }

    fn serve_outside(&self, essential: &mut Essential, on: &Handle, listener: TcpListener, publisher: Publisher) {
        let public = Arc::new(Public {
            settings: settings::http(&self.config),
            admission: Arc::clone(&self.admission),
            hub: Arc::clone(&self.hub),
            publisher,
            presence: Arc::clone(&self.presence),
            lifecycle: self.lifecycle.clone(),
            metrics: Arc::clone(&self.metrics),
            tasks: self.tasks.clone(),
        });
        let serving = until_stopped(http::serve_public(listener, public), self.lifecycle.clone());
        essential.start_on(on, "listener", serving);
    }

    fn serve_inside(&self, essential: &mut Essential, listener: TcpListener, page: Page) {
        let health = Arc::new(Health {
            backplane: Arc::clone(&self.backplane),
            admission: Arc::clone(&self.admission),
            hub: Arc::clone(&self.hub),
            metrics: Arc::clone(&self.metrics),
            vitals: Arc::clone(&self.vitals),
            lifecycle: self.lifecycle.clone(),
        });
        let internal = Arc::new(Internal {
            page,
            health,
            lifecycle: self.lifecycle.clone(),
            vitals: Arc::clone(&self.vitals),
            metrics: Arc::clone(&self.metrics),
            tasks: self.tasks.clone(),
            clock: self.clock,
        });
        essential.start("internal listener", http::serve_internal(listener, internal));
    }
}

/// Where the wish to stop comes from: signals in the process, a channel in tests.
pub trait Stop: Send {
    /// Waits for the next wish. Cancel safe.
    fn wished(&mut self) -> impl Future<Output = ()> + Send;
}

/// SIGTERM and SIGINT.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes the two signals over from their defaults.
    ///
    /// # Errors
    /// The system's.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }
}

impl Stop for Signals {
    async fn wished(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Waits for the first wish to stop and drains; ends early on a second wish, or when an essential loop ends.
async fn live(essential: &mut Essential, stop: &mut impl Stop, drain: impl Future<Output = ()>) -> Ending {
    let failed = |name: Option<&'static str>| Ending::Failed(name.unwrap_or("loop"));
    // Biased: a failure comes before everything else.
    tokio::select! {
        biased;
        name = essential.ended() => return failed(name),
        () = stop.wished() => {}
    }
    let told_at = Instant::now();
    let again = async {
        stop.wished().await;
        while told_at.elapsed() < SAME_WISH_WITHIN {
            stop.wished().await;
        }
    };
    tokio::select! {
        biased;
        () = drain => Ending::Drained,
        name = essential.ended() => failed(name),
        () = again => Ending::Interrupted,
    }
}

/// Waits for every task: the last counts are told, the membership ends, then the connection closes.
async fn finish(mut essential: Essential, tasks: &TaskTracker, connected: &Connected) {
    tasks.close();
    let all = async {
        while essential.ended().await.is_some() {}
        tasks.wait().await;
        connected.close().await;
    };
    if tokio::time::timeout(END_PATIENCE, all).await.is_err() {
        tracing::warn!("some tasks did not end in time");
    }
}

/// Lets the rate limiters forget who has not come back.
async fn keep_house(admission: Arc<Admission>, lifecycle: Lifecycle) {
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    loop {
        tokio::select! {
            biased;
            () = lifecycle.reached(Phase::Stopped) => return,
            _ = sweep.tick() => admission.sweep(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wishes at these times, counted from the beginning; none after the last.
    struct At(Instant, Vec<Duration>);

    impl Stop for At {
        async fn wished(&mut self) {
            let Some(at) = self.1.first().copied() else { return std::future::pending().await };
            tokio::time::sleep_until(self.0 + at).await;
            self.1.remove(0);
        }
    }

    // Inv. DRAIN: a second wish cuts the drain short, the echo of the first does not.
    #[tokio::test(start_paused = true)]
    async fn an_echo_is_no_second_wish() {
        for (second, drained) in
            [(Duration::ZERO, true), (Duration::from_millis(240), true), (Duration::from_millis(260), false)]
        {
            let mut essential = Essential::default();
            essential.start("loop", std::future::pending());
            let mut stop = At(Instant::now(), vec![Duration::ZERO, second]);
            let ending = live(&mut essential, &mut stop, tokio::time::sleep(Duration::from_secs(5))).await;
            assert_eq!(matches!(ending, Ending::Drained), drained, "{second:?}: {ending:?}");
        }
    }
}
