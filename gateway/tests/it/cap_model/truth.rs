//! The backplane that three nodes share, and time on it.
//!
//! The nodes' time is tokio's, paused, so nothing here may wait for the real one: what talks to a real Redis does so
//! on a thread of its own, while which the paused clock stands still. Redis's own clock cannot be moved; instead the
//! leases that it keeps are moved the other way.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gateway::backplane::memory::MemoryBackplane;
use gateway::backplane::redis::{RedisBackplane, RedisSettings};
use gateway::backplane::{Backplane, BeatReply, Join, MEMBER_LEASE, Result};
use parking_lot::Mutex;
use shared::ids::NodeId;
use shared::keys::Keys;
use tokio::runtime::Runtime;

use super::wire::{Reply, Request};
use crate::support::redis_server::{Durability, Listen, Options, RedisServer};
use crate::support::resp::Resp;

/// Moves the ends of all leases `ARGV[1]` ms nearer.
const PASS: &str = r"
for _, node in ipairs(redis.call('ZRANGE', '{analytics}:nodes', 0, -1)) do
  redis.call('ZINCRBY', '{analytics}:nodes', -ARGV[1], node)
end";

/// Keeps a copy of all that there is.
const SAVE: &str = r"
redis.call('SELECT', 1)
redis.call('FLUSHDB')
redis.call('SELECT', 0)
for _, key in ipairs(redis.call('KEYS', '*')) do
  redis.call('COPY', key, key, 'DB', 1)
end";

/// Forgets all that has happened since the copy was made.
const FALL_BACK: &str = r"
redis.call('FLUSHDB')
redis.call('SELECT', 1)
for _, key in ipairs(redis.call('KEYS', '*')) do
  redis.call('COPY', key, key, 'DB', 0)
end";

/// What the nodes share.
pub(super) trait Truth {
    /// Carries a call out.
    async fn carry(&self, request: &Request) -> Result<Reply>;
    /// A node's beat.
    async fn beat(&self, node: NodeId, join: Join) -> Result<BeatReply>;
    /// Time passes.
    async fn pass(&self, time: Duration);
    /// All data are lost.
    async fn lose_data(&self);
    /// What is there now is what a restart would find.
    async fn save(&self);
    /// A restart: what was not saved is lost.
    async fn fall_back(&self);
}

async fn carry(backplane: &dyn Backplane, request: &Request) -> Result<Reply> {
    match request {
        Request::Admit(request) => backplane.admit(request).await.map(Reply::Admit),
        Request::Readmit(node, cap, held) => backplane.readmit(*node, *cap, held).await.map(Reply::Readmit),
        Request::SetCounts(node, counts) => backplane.set_counts(*node, counts).await.map(Reply::SetCounts),
    }
}

/// The embedded backplane. It has no restart that keeps a part of its data.
pub(super) struct Memory {
    backplane: Mutex<Arc<MemoryBackplane>>,
    now: Arc<AtomicU64>,
}

impl Memory {
    pub(super) fn new() -> Self {
        let now = Arc::new(AtomicU64::new(1_700_000_000_000));
        Self { backplane: Mutex::new(Self::empty(&now)), now }
    }

    fn empty(now: &Arc<AtomicU64>) -> Arc<MemoryBackplane> {
        let now = Arc::clone(now);
        MemoryBackplane::with_time(Box::new(move || now.load(Ordering::Relaxed)))
    }

    fn backplane(&self) -> Arc<MemoryBackplane> {
        Arc::clone(&self.backplane.lock())
    }
}

impl Truth for Memory {
    async fn carry(&self, request: &Request) -> Result<Reply> {
        carry(&*self.backplane(), request).await
    }
    async fn beat(&self, node: NodeId, join: Join) -> Result<BeatReply> {
        self.backplane().beat(node, join, MEMBER_LEASE).await
    }
    async fn pass(&self, time: Duration) {
        self.now.fetch_add(u64::try_from(time.as_millis()).expect("short"), Ordering::Relaxed);
    }
    async fn lose_data(&self) {
        *self.backplane.lock() = Self::empty(&self.now);
    }
    async fn save(&self) {}
    async fn fall_back(&self) {}
}

/// A real Redis.
pub(super) struct Redis {
    backplane: Arc<RedisBackplane>,
    resp: Arc<tokio::sync::Mutex<Resp>>,
    /// Where time is real.
    runtime: Arc<Runtime>,
    _server: RedisServer,
}

impl Redis {
    pub(super) fn start() -> Self {
        let options = Options { listen: Listen::Unix, durability: Durability::Nothing, ..Options::default() };
        let server = RedisServer::with(options);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = Arc::new(runtime.expect("a runtime"));
        let keys = Keys::new("analytics").expect("a plain word");
        let settings = RedisSettings { url: server.url(), ca_file: None, keys };
        let (backplane, resp) = runtime.block_on(async {
            let backplane = RedisBackplane::connect(&settings, NodeId::from_random(0), Arc::default());
            (backplane.expect("a good URL"), Resp::to(&server).await)
        });
        Self { backplane, resp: Arc::new(tokio::sync::Mutex::new(resp)), runtime, _server: server }
    }

    /// Runs what needs real time, while which the paused clock stands still.
    async fn really<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let runtime = Arc::clone(&self.runtime);
        tokio::task::spawn_blocking(move || runtime.block_on(work)).await.expect("no panic")
    }

    async fn eval(&self, script: &'static str, argument: String) {
        let resp = Arc::clone(&self.resp);
        self.really(async move {
            resp.lock().await.call(&["EVAL", script, "0", &argument]).await;
        })
        .await;
    }
}

impl Truth for Redis {
    async fn carry(&self, request: &Request) -> Result<Reply> {
        let (backplane, request) = (Arc::clone(&self.backplane), request.clone());
        self.really(async move { carry(&*backplane, &request).await }).await
    }
    async fn beat(&self, node: NodeId, join: Join) -> Result<BeatReply> {
        let backplane = Arc::clone(&self.backplane);
        self.really(async move { backplane.beat(node, join, MEMBER_LEASE).await }).await
    }
    async fn pass(&self, time: Duration) {
        self.eval(PASS, time.as_millis().to_string()).await;
    }
    async fn lose_data(&self) {
        self.eval("redis.call('FLUSHALL')", String::new()).await;
    }
    async fn save(&self) {
        self.eval(SAVE, String::new()).await;
    }
    async fn fall_back(&self) {
        self.eval(FALL_BACK, String::new()).await;
    }
}
