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
//! Every loop is *essential*: the node lives by it, and if it ends before it was told to, the process ends with it
//! ([`Ending::Failed`]). A node that silently stopped relaying would be worse than one that restarts.

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rand::RngExt;
use shared::backoff::Backoff;
use shared::ids::NodeId;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::admission::{Admission, AdmissionSettings};
use crate::backplane::memory::MemoryBackplane;
use crate::backplane::redis::RedisBackplane;
use crate::backplane::{self, Backplane};
use crate::clock::Clock;
use crate::cluster::{self, Cluster, ClusterParts};
use crate::cluster_time::ClusterTime;
use crate::config::{Config, TestPanic};
use crate::drain::{self, DrainSettings};
use crate::health::Health;
use crate::http::{self, HttpSettings, Internal, Public};
use crate::hub::{self, Hub, HubSettings};
use crate::lifecycle::{Ending, Lifecycle, Phase};
use crate::metrics::{Metrics, Page};
use crate::presence::Presence;
use crate::publisher::Publisher;
use crate::relay::{self, Relay, RelayParts};
use crate::supervise::Panicked;
use crate::telemetry::Telemetry;
use crate::ticker::{Ticker, TickerSettings};
use crate::vitals::Vitals;

/// How long the loops may take to end once the phase is `Stopped`.
const END_PATIENCE: Duration = Duration::from_secs(3);
/// Pause before a start-up step is tried again, at first and at most.
const RETRY_BASE: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// How long the ticker's lease holds without renewal.
const TICKER_LEASE: Duration = Duration::from_secs(3);
/// How long a handshake waits for the backplane before the node decides alone.
const ADMISSION_WAIT: Duration = Duration::from_millis(250);
/// How often rate limiters forget who has not come back.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// A second wish to stop within this time is the first one's echo: `timeout(1)` and others signal both a process and
/// its group.
const SAME_WISH_WITHIN: Duration = Duration::from_millis(250);

/// A node that is built and listens, but does not run yet.
#[derive(Debug)]
pub struct App {
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

/// The loops that the node lives by: each a task that must not end before the phase is `Stopped`.
struct Essential {
    loops: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

impl Essential {
    fn new() -> Self {
        Self { loops: JoinSet::new(), names: HashMap::new() }
    }

    fn start(&mut self, name: &'static str, body: impl Future<Output = ()> + Send + 'static) {
        let id = self.loops.spawn(body).id();
        self.names.insert(id, name);
    }

    /// A loop that runs a thread: its panic becomes the task's end.
    fn start_thread(
        &mut self,
        name: &'static str,
        body: impl Future<Output = Result<(), Panicked>> + Send + 'static,
        lifecycle: &Lifecycle,
    ) {
        let lifecycle = lifecycle.clone();
        self.start(name, async move {
            if body.await.is_ok() {
                // It has ended because it was told to, a moment before everyone else saw it.
                lifecycle.reached(Phase::Stopped).await;
            }
        });
    }

    /// The name of the next loop that ends, however it does; none when all have.
    async fn ended(&mut self) -> Option<&'static str> {
        let ended = self.loops.join_next_with_id().await?;
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => error.id(),
        };
        Some(self.names.remove(&id).unwrap_or("loop"))
    }
}

impl App {
    /// Opens the listeners and begins to connect. Does not wait for Redis: it may come later.
    ///
    /// # Errors
    /// An address that cannot be listened on, or a Redis URL that cannot be understood.
    pub fn build(config: Config) -> anyhow::Result<Self> {
        let listen = |address| http::listen(address).with_context(|| format!("cannot listen on {address}"));
        let (public, internal) = (listen(config.listen)?, listen(config.internal_listen)?);
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
        Ok(Self { public, internal, config, node, clock: Clock::start(), metrics, backplane, page })
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
        let Self { public, internal, config, node, clock, metrics, backplane: connected, page } = self;
        let backplane = connected.backplane();
        let lifecycle = Lifecycle::default();
        let vitals = Arc::new(Vitals::new(clock));
        let time = Arc::new(ClusterTime::new(clock));
        let tasks = TaskTracker::new();

        let admission =
            Admission::new(admission_settings(&config), node, Arc::clone(&backplane), Arc::clone(&metrics), clock);
        let hub = Hub::new(hub_settings(&config), clock, Arc::clone(&metrics), Arc::clone(&vitals));
        let presence = Presence::new(
            Arc::clone(&backplane),
            node,
            config.visitor_window,
            Arc::clone(&metrics),
            clock,
            Arc::clone(&time),
        );
        let (publisher, publishing) =
            Publisher::channel(Arc::clone(&backplane), node, Arc::clone(&presence), Arc::clone(&metrics));
        let ticker_settings =
            TickerSettings { interval: config.tick_interval, window: config.visitor_window, lease: TICKER_LEASE };
        let ticker = Ticker::new(
            Arc::clone(&backplane),
            node,
            publisher.clone(),
            ticker_settings,
            Arc::clone(&metrics),
            clock,
            Arc::clone(&time),
        );
        let cluster = Cluster::new(ClusterParts {
            backplane: Arc::clone(&backplane),
            node,
            admission: Arc::clone(&admission),
            hub: Arc::clone(&hub),
            presence: Arc::clone(&presence),
            vitals: Arc::clone(&vitals),
            clock,
            time: Arc::clone(&time),
        });
        let (broadcast, broadcasts) = hub::broadcast::channel();
        let relay = Relay::new(RelayParts {
            backplane: Arc::clone(&backplane),
            broadcast,
            hub: Arc::clone(&hub),
            presence: Arc::clone(&presence),
            tick_interval: config.tick_interval,
            metrics: Arc::clone(&metrics),
            vitals: Arc::clone(&vitals),
            clock,
            time,
            is_ticker: ticker.is_ticker(),
            data_set: cluster.data_set(),
            panic_on: (config.test_panic == Some(TestPanic::Relay)).then_some(relay::PanicOn::FirstSnapshot),
        });
        let members = cluster.report();
        let start = Start {
            backplane: Arc::clone(&backplane),
            admission: Arc::clone(&admission),
            presence: Arc::clone(&presence),
            members: members.clone(),
            first_snapshot: relay.first_snapshot(),
        };
        let health = Arc::new(Health {
            backplane,
            admission: Arc::clone(&admission),
            hub: Arc::clone(&hub),
            metrics: Arc::clone(&metrics),
            vitals: Arc::clone(&vitals),
            lifecycle: lifecycle.clone(),
        });
        let outside = Arc::new(Public {
            settings: http_settings(&config),
            admission: Arc::clone(&admission),
            hub: Arc::clone(&hub),
            publisher,
            presence: Arc::clone(&presence),
            lifecycle: lifecycle.clone(),
            metrics: Arc::clone(&metrics),
            tasks: tasks.clone(),
        });
        let inside = Arc::new(Internal {
            page,
            health,
            lifecycle: lifecycle.clone(),
            vitals,
            metrics,
            tasks: tasks.clone(),
            clock,
        });

        let mut essential = Essential::new();
        essential.start_thread(
            "broadcaster",
            hub::broadcast::run(Arc::clone(&hub), broadcasts, lifecycle.clone()),
            &lifecycle,
        );
        essential.start_thread("sweeper", hub::sweep::run(Arc::clone(&hub), lifecycle.clone()), &lifecycle);
        essential.start("relay", relay.run(lifecycle.clone()));
        // It also ends when nobody is left who could publish: the listener is closed and the ticker has gone.
        essential.start("publisher", until_stopped(publishing.run(lifecycle.clone()), lifecycle.clone()));
        essential.start("presence", presence.run(Arc::clone(&hub), lifecycle.clone()));
        essential.start("beat", cluster.run(lifecycle.clone()));
        let ticking = once_member(members, ticker.run(lifecycle.clone()), lifecycle.clone());
        essential.start("ticker", until_stopped(ticking, lifecycle.clone()));
        essential.start("housekeeper", keep_house(Arc::clone(&admission), lifecycle.clone()));
        essential.start("start", until_stopped(start.run(lifecycle.clone()), lifecycle.clone()));
        essential.start("listener", until_stopped(http::serve_public(public, outside), lifecycle.clone()));
        essential.start("internal listener", http::serve_internal(internal, inside));

        let drain = drain::run(drain_settings(&config), &hub, &admission, &lifecycle);
        let ending = live(&mut essential, &mut stop, drain).await;
        lifecycle.advance(Phase::Stopped);
        if ending == Ending::Drained {
            finish(essential, &tasks, &connected).await;
        }
        ending
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

/// Runs `body`; its end before the phase is `Stopped` is not a failure.
async fn until_stopped(body: impl Future<Output = ()>, lifecycle: Lifecycle) {
    body.await;
    lifecycle.reached(Phase::Stopped).await;
}

/// Runs `body` from when this node has become a member: one that the data there does not fit, because they are of
/// another version of the contract, must not tick either.
async fn once_member(mut members: watch::Receiver<cluster::Report>, body: impl Future<Output = ()>, life: Lifecycle) {
    // The value that is found must not be held while `body` runs.
    let entered = async { members.wait_for(|report| report.is_member).await.is_ok() };
    tokio::select! {
        biased;
        () = life.reached(Phase::Stopped) => {}
        true = entered => body.await,
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

/// What must have been there once before the node takes clients.
struct Start {
    backplane: Arc<dyn Backplane>,
    admission: Arc<Admission>,
    presence: Arc<Presence>,
    members: watch::Receiver<cluster::Report>,
    first_snapshot: watch::Receiver<bool>,
}

impl Start {
    /// Makes the node ready when all of it has been there, however long that takes.
    async fn run(mut self, lifecycle: Lifecycle) {
        tokio::select! {
            biased;
            () = lifecycle.reached(Phase::Stopped) => {}
            () = self.all() => {
                lifecycle.advance(Phase::Ready);
                tracing::info!("ready");
            }
        }
    }

    async fn all(&mut self) {
        let backplane = &self.backplane;
        self.admission.set_secret(insist("secret", || backplane.secret(None)).await);
        insist("salts", || self.presence.start()).await;
        // The senders live in essential loops: while we wait, they do.
        let _ = self.members.wait_for(|report| report.is_member).await;
        let _ = self.first_snapshot.wait_for(|there| *there).await;
    }
}

/// Tries until it succeeds. The first failure is logged, and every further kind of failure.
async fn insist<T, F: Future<Output = backplane::Result<T>>>(what: &'static str, step: impl Fn() -> F) -> T {
    let mut backoff = Backoff::new(RETRY_BASE, RETRY_MAX);
    let mut told = None;
    loop {
        match step().await {
            Ok(value) => return value,
            Err(error) => {
                if told.as_ref() != Some(&error) {
                    tracing::warn!(what, %error, "waiting for the backplane");
                    told = Some(error);
                }
                let delay = backoff.next_delay(&mut rand::rng());
                tokio::time::sleep(delay).await;
            }
        }
    }
}

fn admission_settings(config: &Config) -> AdmissionSettings {
    AdmissionSettings {
        max_connections: config.max_connections,
        max_per_address: config.max_connections_per_ip,
        handshakes_per_second: config.handshakes_per_second_per_ip,
        backplane_wait: ADMISSION_WAIT,
        visitor_window: config.visitor_window,
    }
}

fn hub_settings(config: &Config) -> HubSettings {
    HubSettings {
        outbox_bytes_max: config.outbox_bytes,
        outbox_total_bytes_max: config.outbox_total_bytes,
        ping_interval: config.ping_interval,
        pong_timeout: config.pong_timeout,
        messages_per_second: config.client_messages_per_second,
        message_burst: config.client_message_burst,
        panic_on: (config.test_panic == Some(TestPanic::Connection)).then_some(hub::PanicOn::ClientMessage),
        ..HubSettings::default()
    }
}

fn http_settings(config: &Config) -> HttpSettings {
    HttpSettings {
        origins: config.allowed_origins.clone(),
        trusted_proxies: config.trusted_proxies.clone(),
        proxy_protocol: config.proxy_protocol,
        ingest_tokens: config.ingest_tokens.clone(),
        ..HttpSettings::default()
    }
}

fn drain_settings(config: &Config) -> DrainSettings {
    DrainSettings {
        delay: config.drain_delay,
        window: config.drain_window,
        grace: config.drain_grace,
        reconnect_budget: config.reconnect_budget,
    }
}
