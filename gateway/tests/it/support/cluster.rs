//! Several nodes on one Redis.

use shared::ids::Slot;

use super::gateway::{Gateway, Setup};
use super::producer::Producer;
use super::redis_server::RedisServer;
use super::resp::{Reply, Resp};
use super::wait::{SOON, until};

/// A Redis and nodes on it. The nodes are ended first.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// The nodes.
    pub(crate) nodes: Vec<Gateway>,
    /// Their Redis.
    pub(crate) redis: RedisServer,
}

impl Cluster {
    /// That many nodes on a Redis of their own, all ready, each set up by `setup`.
    pub(crate) async fn of(count: usize, setup: impl Fn(Setup) -> Setup) -> Self {
        Self::on(RedisServer::start(), count, setup).await
    }

    /// That many nodes on that Redis, all ready, each set up by `setup`.
    pub(crate) async fn on(redis: RedisServer, count: usize, setup: impl Fn(Setup) -> Setup) -> Self {
        let mut nodes = Vec::new();
        for _ in 0..count {
            nodes.push(setup(Setup::on(&redis)).ready().await);
        }
        Self { nodes, redis }
    }

    /// A producer on its Redis.
    pub(crate) async fn producer(&self) -> Producer {
        Producer::to(&self.redis).await
    }

    /// Which node is the ticker; waits for one if there is none now.
    pub(crate) async fn ticker(&self) -> usize {
        until("a ticker", SOON, async || {
            for (index, node) in self.nodes.iter().enumerate() {
                if node.metric("gateway_ticker").await == 1 {
                    return Some(index);
                }
            }
            None
        })
        .await
    }

    /// The slots and epochs of all snapshots in the stream, in its order.
    pub(crate) async fn ticks(&self) -> Vec<(Slot, u64)> {
        let entries = Resp::to(&self.redis).await.call(&["XRANGE", "{analytics}:events", "-", "+"]).await;
        let field = |entry: &Reply, name: &str| {
            let fields = entry.many()[1].many();
            let pair = fields.chunks(2).find(|pair| pair[0].text() == name)?;
            Some(pair[1].text().to_owned())
        };
        let number = |text: String| text.parse::<u64>().expect("a number");
        entries
            .many()
            .iter()
            .filter(|entry| field(entry, "type").as_deref() == Some("realtime_update"))
            .map(|entry| {
                let slot = field(entry, "slot").expect("a tick has a slot");
                let epoch = field(entry, "epoch").expect("a tick has an epoch");
                (Slot(number(slot)), number(epoch))
            })
            .collect()
    }
}
