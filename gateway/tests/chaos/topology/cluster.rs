//! Three primaries that share the slots, a replica for each. All keys of a gateway live in one slot.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;

use super::{Backend, Finder, Scene, Struck, info, kill_lagged, until};
use crate::plan::Fault;
use crate::producer::STREAM;
use crate::support::redis_cluster;
use crate::support::redis_server::RedisServer;
use crate::support::resp::{Reply, Resp};

#[derive(Debug)]
pub(super) struct Sharded {
    servers: Vec<RedisServer>,
    finder: Arc<Finder>,
}

const REPLICAS: usize = 3;
/// Keys that move in one step.
const KEYS_MAX: &str = "100";

impl Sharded {
    pub(super) async fn start() -> Self {
        let servers = redis_cluster::start(REPLICAS).await;
        let finder = Arc::new(Finder::Nodes(servers.iter().map(RedisServer::address).collect()));
        Self { servers, finder }
    }

    async fn primary(&self) -> SocketAddr {
        until("somebody serves the slot", async || {
            let address = self.finder.primary().await?;
            let info = info(address, "replication").await?;
            info.contains("role:master").then_some(address)
        })
        .await
    }

    /// Waits until another server than `old` serves the slot.
    async fn elected(&self, old: SocketAddr) -> SocketAddr {
        until("a replica is promoted", async || {
            let address = self.finder.primary().await.filter(|address| *address != old)?;
            let info = info(address, "cluster").await;
            info.is_some().then_some(address)
        })
        .await
    }

    /// Moves the slot of all keys as an operator would: key by key, while they are in use.
    async fn migrate(&mut self, scene: &Scene<'_>) -> Struck {
        let from = self.primary().await;
        let mut source = Resp::at(from).await;
        let slot = source.call(&["CLUSTER", "KEYSLOT", &String::from_utf8_lossy(STREAM)]).await.number().to_string();
        let to = self.another_primary(from).await;
        let mut target = Resp::at(to).await;
        let source_id = source.call(&["CLUSTER", "MYID"]).await.text().to_owned();
        let target_id = target.call(&["CLUSTER", "MYID"]).await.text().to_owned();
        let begun = scene.stage.now();
        target.call(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source_id]).await;
        source.call(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target_id]).await;
        let mut moved = 0;
        loop {
            let keys = source.call(&["CLUSTER", "GETKEYSINSLOT", &slot, KEYS_MAX]).await;
            if keys.many().is_empty() {
                break;
            }
            for key in keys.many() {
                let port = to.port().to_string();
                source.call(&["MIGRATE", "127.0.0.1", &port, key.text(), "0", "5000", "REPLACE"]).await;
                moved += 1;
            }
        }
        for resp in [&mut target, &mut source] {
            resp.call(&["CLUSTER", "SETSLOT", &slot, "NODE", &target_id]).await;
        }
        let good = scene.stage.now();
        let owner = self.primary().await;
        assert_eq!(owner, to, "the slot has moved");
        Struck { begun, takes_from: begun, good, confirmed: format!("{moved} keys of slot {slot} from {from} to {to}") }
    }

    async fn another_primary(&self, than: SocketAddr) -> SocketAddr {
        until("another primary", async || {
            for server in &self.servers {
                let address = server.address();
                let info = info(address, "replication").await?;
                if address != than && info.contains("role:master") {
                    return Some(address);
                }
            }
            None
        })
        .await
    }
}

#[async_trait(?Send)]
impl Backend for Sharded {
    fn url(&self, _: usize) -> String {
        let others: Vec<String> = self.servers[1..].iter().map(|server| format!("node={}", server.address())).collect();
        format!("redis-cluster://{}?{}", self.servers[0].address(), others.join("&"))
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
                    confirmed: format!("{gone}, {new} serves the slot"),
                }
            }
            Fault::SlotMigrated => self.migrate(scene).await,
            other => panic!("a cluster cannot suffer {other:?}"),
        }
    }

    async fn restore(&mut self) {
        for server in &mut self.servers {
            if server.state().is_none() {
                server.restart();
            }
        }
        for server in &self.servers {
            until("the cluster is whole", async || {
                let mut resp = Resp::try_at(server.address()).await.ok()?;
                let Reply::Text(state) = resp.ask(&[b"CLUSTER", b"INFO"]).await.ok()? else { return None };
                let role = info(server.address(), "replication").await?;
                let followed = role.contains("role:slave") && role.contains("master_link_status:up")
                    || role.contains("role:master") && role.contains("state=online");
                (state.contains("cluster_state:ok") && followed).then_some(())
            })
            .await;
        }
    }
}
