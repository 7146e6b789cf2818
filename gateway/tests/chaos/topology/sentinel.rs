//! A primary, two replicas, and three Sentinels of which two decide.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{Instant, sleep_until};

use super::{Backend, Finder, Scene, Struck, freeze, index_of, info, kill_lagged, until};
use crate::plan::Fault;
use crate::support::redis_server::{Options, RedisServer};
use crate::support::resp::{Reply, Resp};
use crate::support::sentinel::{SERVICE, Sentinel};

#[derive(Debug)]
pub(super) struct Watched {
    sentinels: Vec<Sentinel>,
    servers: Vec<RedisServer>,
    finder: Arc<Finder>,
}

const REPLICAS: usize = 2;
const SENTINELS: usize = 3;

impl Watched {
    pub(super) async fn start() -> Self {
        let prompt = ("repl-diskless-sync-delay", "0".to_owned());
        let primary = RedisServer::with(Options { directives: vec![prompt.clone()], ..Options::default() });
        let follows = ("replicaof", format!("127.0.0.1 {}", primary.address().port()));
        let mut servers = vec![primary];
        for _ in 0..REPLICAS {
            let directives = vec![prompt.clone(), follows.clone()];
            servers.push(RedisServer::with(Options { directives, ..Options::default() }));
        }
        until_followed(servers[0].address()).await;
        let mut sentinels = Vec::new();
        for _ in 0..SENTINELS {
            sentinels.push(Sentinel::watching(servers[0].address(), 2).await);
        }
        let finder = Arc::new(Finder::Sentinels(sentinels.iter().map(|sentinel| sentinel.address).collect()));
        let mut watched = Self { sentinels, servers, finder };
        watched.restore().await;
        watched
    }

    /// The one that the Sentinels name and that says so itself: during a failover they name the old one.
    async fn primary(&self) -> SocketAddr {
        until("the sentinels know a primary", async || {
            let address = self.finder.primary().await?;
            info(address, "replication").await?.contains("role:master").then_some(address)
        })
        .await
    }

    /// Waits until another server than `old` is the primary, and says so itself.
    async fn elected(&self, old: SocketAddr) -> SocketAddr {
        let others: Vec<SocketAddr> =
            self.servers.iter().map(RedisServer::address).filter(|address| *address != old).collect();
        until("a replica is promoted", async || {
            for address in &others {
                if info(*address, "replication").await.is_some_and(|info| info.contains("role:master")) {
                    return Some(*address);
                }
            }
            None
        })
        .await
    }

    /// Waits until each Sentinel describes the primary like this.
    async fn until_sentinels_say(&self, wanted: &[(&str, String)]) {
        for sentinel in &self.sentinels {
            until("the sentinels agree", async || {
                let mut resp = Resp::try_at(sentinel.address).await.ok()?;
                let seen = resp.ask(&[b"SENTINEL", b"MASTER", SERVICE.as_bytes()]).await.ok()?;
                let Reply::Many(fields) = seen else { return None };
                let says = |key: &str, value: &str| {
                    fields.chunks(2).any(|pair| pair[0].text() == key && pair[1].text() == value)
                };
                wanted.iter().all(|(key, value)| says(key, value)).then_some(())
            })
            .await;
        }
    }

    async fn freeze_primary(&mut self, scene: &Scene<'_>, away: Duration) -> Struck {
        let old = self.primary().await;
        let index = index_of(&self.servers, old);
        let (begun, until) = (scene.stage.now(), Instant::now() + away);
        let stopped = freeze(&self.servers[index]).await;
        let new = self.elected(old).await;
        let good = scene.stage.now();
        sleep_until(until).await;
        self.servers[index].thaw();
        Struck { begun, takes_from: begun, good, confirmed: format!("{stopped}, {new} is the primary") }
    }
}

/// Waits until all replicas follow that primary.
async fn until_followed(primary: SocketAddr) {
    until("the replicas follow", async || {
        let info = info(primary, "replication").await?;
        (info.matches("state=online").count() == REPLICAS).then_some(())
    })
    .await;
}

#[async_trait(?Send)]
impl Backend for Watched {
    fn url(&self, _: usize) -> String {
        let others: Vec<String> =
            self.sentinels[1..].iter().map(|sentinel| format!("node={}", sentinel.address)).collect();
        let first = self.sentinels[0].address;
        format!("redis-sentinel://{first}?{}&sentinelServiceName={SERVICE}", others.join("&"))
    }

    fn finder(&self) -> Arc<Finder> {
        Arc::clone(&self.finder)
    }

    async fn strike(&mut self, fault: Fault, scene: &Scene<'_>) -> Struck {
        match fault {
            Fault::PrimaryKilled { lag, ahead } => {
                let old = self.primary().await;
                let (takes_from, begun, gone) =
                    kill_lagged(&mut self.servers, old, &self.finder, scene, (lag, ahead)).await;
                let new = self.elected(old).await;
                Struck {
                    begun,
                    takes_from,
                    good: scene.stage.now(),
                    confirmed: format!("{gone}, {new} is the primary"),
                }
            }
            Fault::PrimaryFrozen { away } => self.freeze_primary(scene, away).await,
            other => panic!("sentinels do not watch over {other:?}"),
        }
    }

    async fn restore(&mut self) {
        let primary = self.primary().await;
        let port = primary.port().to_string();
        // Before the old primary comes back: a Sentinel that has not heard of the election would take it for the present
        // one, and depose it, and all that was written since, as soon as it follows another.
        let flags = ("flags", "master".to_owned());
        self.until_sentinels_say(&[("port", port.clone()), flags.clone()]).await;
        for server in &mut self.servers {
            if server.state().is_none() {
                server.restart();
            }
            let follows = format!("master_port:{port}\r");
            let knows = info(server.address(), "replication").await.is_some_and(|info| info.contains(&follows));
            if server.address() != primary && !knows {
                Resp::to(server).await.try_call(&["REPLICAOF", "127.0.0.1", &port]).await;
            }
        }
        until_followed(primary).await;
        let replicas = ("num-slaves", REPLICAS.to_string());
        let others = ("num-other-sentinels", (SENTINELS - 1).to_string());
        self.until_sentinels_say(&[("port", port), flags, replicas, others]).await;
    }
}
