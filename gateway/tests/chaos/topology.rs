//! The four ways in which the lab runs Redis, and what it can do to each.

mod cluster;
pub(crate) mod proxied;
mod sentinel;
mod single;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use crate::evidence::{Ms, Number, Published};
use crate::plan::{Fault, Plan, Topology};
use crate::producer::{self, Numbers};
use crate::stage::Stage;
use crate::support::redis_server::RedisServer;
use crate::support::resp::{Reply, Resp};
use crate::support::sentinel::SERVICE;

/// An answer that a server has ready comes within this.
const PROMPTLY: Duration = Duration::from_millis(250);
/// Pause between two looks at something that changes by itself.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Longest wait for an election, and for replicas to follow.
const ELECTED_WITHIN: Duration = Duration::from_secs(40);

/// What was done, and when all was there again that a system needs.
#[derive(Debug)]
pub(crate) struct Struck {
    pub(crate) begun: Ms,
    /// What is acknowledged from then on may be lost before any gateway has read it.
    pub(crate) takes_from: Ms,
    pub(crate) good: Ms,
    /// What shows that it was really done.
    pub(crate) confirmed: String,
}

impl Struck {
    /// Two that struck together: confirmed if both are.
    pub(crate) fn and(&self, other: &Self) -> Self {
        let both = !self.confirmed.is_empty() && !other.confirmed.is_empty();
        Self {
            begun: self.begun.min(other.begun),
            takes_from: self.takes_from.min(other.takes_from),
            good: self.good.max(other.good),
            confirmed: if both { format!("{}; {}", self.confirmed, other.confirmed) } else { String::new() },
        }
    }
}

/// What a fault may need from the run.
pub(crate) struct Scene<'a> {
    pub(crate) stage: &'a Stage,
    pub(crate) numbers: &'a Numbers,
    pub(crate) interval: Duration,
    /// Events that faults publish.
    pub(crate) published: &'a Mutex<Vec<(Number, Published)>>,
    /// For which gateways the way breaks.
    pub(crate) targets: Vec<usize>,
    /// Told when Redis dies, for whoever shall die with it.
    pub(crate) blow: Notify,
}

/// A Redis, however it is run.
#[async_trait(?Send)]
pub(crate) trait Backend {
    /// How that gateway reaches it.
    fn url(&self, gateway: usize) -> String;

    /// How producers find the server that takes writes.
    fn finder(&self) -> Arc<Finder>;

    /// Does it, and returns when a good primary is there again.
    async fn strike(&mut self, fault: Fault, scene: &Scene<'_>) -> Struck;

    /// Waits until it could take the next fault: the dead are back, replicas follow.
    async fn restore(&mut self);
}

/// Starts it.
pub(crate) async fn start(plan: &Plan) -> Box<dyn Backend> {
    match plan.topology {
        Topology::Single => Box::new(single::Single::start()),
        Topology::Sentinel => Box::new(sentinel::Watched::start().await),
        Topology::Cluster => Box::new(cluster::Sharded::start().await),
        Topology::Proxied => Box::new(proxied::Proxied::start(plan.gateways).await),
    }
}

/// Finds the server that takes writes now.
#[derive(Debug)]
pub(crate) enum Finder {
    /// It is always there.
    Fixed(SocketAddr),
    /// One of these Sentinels knows.
    Sentinels(Vec<SocketAddr>),
    /// One of these nodes of a cluster knows.
    Nodes(Vec<SocketAddr>),
}

impl Finder {
    /// Where it is; none while nobody knows.
    pub(crate) async fn primary(&self) -> Option<SocketAddr> {
        let (Self::Sentinels(addresses) | Self::Nodes(addresses)) = self else {
            let Self::Fixed(address) = self else { return None };
            return Some(*address);
        };
        for address in addresses {
            if let Ok(Some(found)) = timeout(PROMPTLY, self.ask(*address)).await {
                return Some(found);
            }
        }
        None
    }

    async fn ask(&self, address: SocketAddr) -> Option<SocketAddr> {
        let mut resp = Resp::try_at(address).await.ok()?;
        if let Self::Sentinels(_) = self {
            let reply = resp.ask(&[b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", SERVICE.as_bytes()]).await.ok()?;
            let Reply::Many(parts) = reply else { return None };
            return format!("{}:{}", parts[0].text(), parts[1].text()).parse().ok();
        }
        match resp.ask(&[b"EXISTS", producer::STREAM]).await.ok()? {
            Reply::Number(_) => Some(address),
            // MOVED slot address
            Reply::Error(error) => error.strip_prefix("MOVED ")?.split(' ').nth(1)?.parse().ok(),
            _ => None,
        }
    }

    /// A connection to it.
    pub(crate) async fn connect(&self) -> Option<Resp> {
        Resp::try_at(self.primary().await?).await.ok()
    }
}

impl Scene<'_> {
    /// Writes an event under an id that far in the future, and waits until it was read by somebody: entries that come
    /// after it are given ids in the future too, and those of a server that has lost it lie below.
    pub(crate) async fn put_ahead(&self, finder: &Finder, ahead: Option<Duration>) {
        self.put_ahead_after(finder, ahead, async {}).await;
    }

    /// The same, but `first` is done between connecting and writing, whether there is anything to write or not.
    pub(crate) async fn put_ahead_after(
        &self,
        finder: &Finder,
        ahead: Option<Duration>,
        first: impl Future<Output = ()>,
    ) {
        let connection = finder.connect().await;
        first.await;
        let Some((ahead, mut redis)) = ahead.zip(connection) else { return };
        let (number, sent) = (self.numbers.next(), self.stage.now());
        let id = format!("{}-0", sent + Ms::try_from(ahead.as_millis()).expect("short"));
        let id = producer::add(&mut redis, id.as_bytes(), number, sent).await;
        let accepted = id.map(|id| (self.stage.now(), id));
        let was_accepted = accepted.is_some();
        self.published.lock().push((number, Published { sent, accepted }));
        let deadline = Instant::now() + PROMPTLY * 4;
        while was_accepted && Instant::now() < deadline {
            if self.stage.sights.lock().iter().any(|sight| sight.newest >= sent) {
                return;
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

/// The panic of a run whose servers did not do what they do by themselves: it has shown nothing about gateways.
#[derive(Debug)]
pub(crate) struct ServersUnwilling(pub(crate) String);

/// Waits for something that the servers do by themselves; panics with [`ServersUnwilling`] when they do not.
async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + ELECTED_WITHIN;
    loop {
        // A look at a server that is stopped has no end of its own.
        if let Ok(Some(found)) = timeout(PROMPTLY, look()).await {
            return found;
        }
        if Instant::now() >= deadline {
            std::panic::panic_any(ServersUnwilling(format!("not within {ELECTED_WITHIN:?}: {what}")));
        }
        sleep(LOOK_EVERY).await;
    }
}

/// A server's section of INFO; none when it does not answer.
async fn info(address: SocketAddr, section: &str) -> Option<String> {
    match Resp::try_at(address).await.ok()?.ask(&[b"INFO", section.as_bytes()]).await.ok()? {
        Reply::Text(text) => Some(text),
        _ => None,
    }
}

/// Which of these servers listens there.
fn index_of(servers: &[RedisServer], address: SocketAddr) -> usize {
    servers.iter().position(|server| server.address() == address).expect("the primary is one of ours")
}

/// kill -9, and what shows it.
fn kill(server: &mut RedisServer) -> String {
    let pid = server.pid();
    server.kill9();
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "pid {pid} lives on");
    format!("pid {pid} gone")
}

/// SIGSTOP, and what shows it.
async fn freeze(server: &RedisServer) -> String {
    server.freeze();
    until("the server is stopped", async || (server.state() == Some('T')).then_some(())).await;
    format!("pid {} in state T", server.pid())
}

/// Cuts the primary's replicas off, so that what it takes from now on dies with it. A password that they do not know
/// keeps them from coming back; whoever is connected already is not asked for it.
async fn hold_back_replicas(primary: SocketAddr) {
    let mut resp = Resp::at(primary).await;
    resp.call(&["CONFIG", "SET", "requirepass", "not-for-replicas"]).await;
    resp.call(&["CLIENT", "KILL", "TYPE", "replica"]).await;
}

/// kill -9 of the primary `old`; before it, if it shall `lag`, its replicas are held back for so long (and an entry put
/// `ahead`), so that what it took meanwhile dies with it. Gives when it began to take that, when it died, and what shows
/// that.
async fn kill_lagged(
    servers: &mut [RedisServer],
    old: SocketAddr,
    finder: &Finder,
    scene: &Scene<'_>,
    (lag, ahead): (Option<Duration>, Option<Duration>),
) -> (Ms, Ms, String) {
    let takes_from = scene.stage.now();
    if let Some(lag) = lag {
        scene.put_ahead_after(finder, ahead, hold_back_replicas(old)).await;
        sleep(lag).await;
    }
    let begun = scene.stage.now();
    (takes_from, begun, kill(&mut servers[index_of(servers, old)]))
}
