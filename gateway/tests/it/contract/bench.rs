//! What the cases stand on: two handles on one backplane, and the words to talk to it.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gateway::backplane::memory::MemoryBackplane;
use gateway::backplane::redis::{RedisBackplane, RedisSettings};
use gateway::backplane::{
    AddressHash, Admit, AdmitReply, Backplane, BeatReply, Entry, Join, Lease, Millis, Publication, Publish,
    PublishReply, Seen, Standing, Tick, TickReply, Touch, TouchReply, VisitorHash,
};
use shared::event::Event;
use shared::field::{Name, PagePath};
use shared::ids::{EventId, NodeId, Slot, StreamId};
use shared::keys::Keys;
use shared::message::Snapshot;

use crate::support::redis_server::{Durability, Listen, Options, RedisServer};
use crate::support::resp::Resp;

/// Within this, what must happen has happened.
const WITHIN: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);
/// A lease that ends while a test looks.
pub(crate) const SHORT: Duration = Duration::from_millis(150);
/// A lease that outlives any test, and is no longer than a node may ask for.
pub(crate) const LONG: Duration = Duration::from_secs(60);
/// The window where nobody should be forgotten.
pub(crate) const WINDOW: Duration = Duration::from_secs(3600);

/// Two handles on one backplane.
pub(crate) struct Bench {
    pub(crate) a: Arc<dyn Backplane>,
    pub(crate) b: Arc<dyn Backplane>,
    behind: Behind,
}

enum Behind {
    Memory(Arc<MemoryBackplane>),
    Redis(RedisServer),
}

impl Bench {
    pub(crate) fn memory() -> Self {
        let memory = MemoryBackplane::new();
        Self { a: memory.clone(), b: memory.clone(), behind: Behind::Memory(memory) }
    }

    /// A Redis of the case's own, and two connections to it, as two nodes have.
    pub(crate) fn redis() -> Self {
        let options = Options { listen: Listen::Unix, durability: Durability::Nothing, ..Options::default() };
        let server = RedisServer::with(options);
        let keys = Keys::new("analytics").expect("a plain word");
        let settings = RedisSettings { url: server.url(), ca_file: None, keys };
        let connect = |name| RedisBackplane::connect(&settings, node(name), Arc::default()).expect("a good URL");
        Self { a: connect(1), b: connect(2), behind: Behind::Redis(server) }
    }

    /// Publishes on the legacy channel as a producer does; tells how many were subscribed.
    pub(crate) async fn publish_legacy(&self, payload: &str) -> usize {
        match &self.behind {
            Behind::Memory(memory) => memory.publish_legacy(&Bytes::copy_from_slice(payload.as_bytes())),
            Behind::Redis(server) => {
                let reply = Resp::to(server).await.call(&["PUBLISH", "analytics:realtime", payload]).await;
                usize::try_from(reply.number()).expect("not negative")
            }
        }
    }

    /// The lease, taken by `node` for [`LONG`].
    pub(crate) async fn reign(&self, node: NodeId) -> Lease {
        self.a.claim(node, LONG).await.expect("an answer").lease.expect("nobody else holds it")
    }

    /// Everything in the stream, in portions that any machine reads in time.
    pub(crate) async fn all(&self) -> Vec<Entry> {
        let mut all: Vec<Entry> = Vec::new();
        loop {
            let after = all.last().map_or(StreamId::ZERO, |entry| entry.id);
            let more = self.b.read_from(after, 1000, Duration::from_millis(1)).await.expect("an answer");
            if more.is_empty() {
                return all;
            }
            all.extend(more);
        }
    }

    /// Ticks the present slot of `interval`, waiting for one that is not done.
    pub(crate) async fn tick(&self, lease: Lease, interval: Duration, window: Duration) -> Ticked {
        eventually("a slot is free", || async {
            let now = self.now().await;
            let slot = Slot::containing(now, ms(interval));
            match self.a.tick(&Tick { lease, slot, interval, window }).await.expect("an answer") {
                TickReply::Published { snapshot, lease, now } => Some(Ticked { snapshot, lease, slot, now }),
                TickReply::AlreadyDone { .. } | TickReply::WrongSlot { .. } => None,
                TickReply::Fenced => panic!("the lease is held"),
            }
        })
        .await
    }

    /// How many visitors are active, by a tick of a short interval.
    pub(crate) async fn population(&self, lease: Lease, window: Duration) -> u64 {
        self.tick(lease, Duration::from_millis(100), window).await.snapshot.active_visitors
    }

    /// A touch of these visitors under the present salt.
    pub(crate) async fn touch_of(&self, visitors: &[u8]) -> Touch {
        let salts = self.a.salts(&[]).await.expect("an answer");
        let seen = visitors.iter().map(|name| Seen { visitor: visitor(*name), alias: None }).collect();
        Touch { day: salts.day, fingerprint: salts.today.fingerprint(), seen, round_of: None }
    }

    /// Marks these visitors as seen now.
    pub(crate) async fn see(&self, visitors: &[u8]) {
        let touch = self.touch_of(visitors).await;
        assert_eq!(self.b.touch(&touch).await, Ok(TouchReply::Done));
    }

    /// The backplane's time.
    pub(crate) async fn now(&self) -> Millis {
        self.a.salts(&[]).await.expect("an answer").now
    }

    /// Waits until the backplane's time is at least `then`.
    pub(crate) async fn past(&self, then: Millis) {
        eventually("time passes", || async { (self.now().await >= then).then_some(()) }).await;
    }

    /// Makes these nodes members for [`LONG`].
    pub(crate) async fn enter(&self, nodes: &[NodeId]) {
        for node in nodes {
            assert_eq!(self.beat(*node, Join::Enter, LONG).await.standing, Standing::Member);
        }
    }

    pub(crate) async fn beat(&self, node: NodeId, join: Join, lease: Duration) -> BeatReply {
        self.a.beat(node, join, lease).await.expect("an answer")
    }

    /// Asks for `wanted` sockets of `address` where `held` are held, with a cap of ten.
    pub(crate) async fn admit(&self, node: NodeId, address: AddressHash, held: u32, wanted: u32) -> AdmitReply {
        self.b.admit(&Admit { node, address, held, wanted, cap: 10 }).await.expect("an answer")
    }

    /// Publishes by handle `a`.
    pub(crate) async fn publish(&self, request: &Publish) -> PublishReply {
        self.a.publish(request).await.expect("an answer")
    }
}

/// What a tick brought.
pub(crate) struct Ticked {
    pub(crate) snapshot: Snapshot,
    pub(crate) lease: Lease,
    pub(crate) slot: Slot,
    pub(crate) now: Millis,
}

/// Polls until there is something; panics with `what` when there is nothing in time.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + WITHIN;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(POLL).await;
    }
}

pub(crate) fn node(name: u64) -> NodeId {
    NodeId::from_random(name)
}

pub(crate) fn address(name: u8) -> AddressHash {
    AddressHash([name; 16])
}

pub(crate) fn visitor(name: u8) -> VisitorHash {
    VisitorHash([name; 16])
}

/// A request with nothing but items.
pub(crate) fn request(node: NodeId, number: u64, items: Vec<Publication>) -> Publish {
    Publish { node, number, lease: None, items, touch: None, traceparent: None }
}

/// A page view of `path`.
pub(crate) fn page(path: &str) -> Publication {
    let page_url = PagePath::parse("page_url", Some(path)).expect("a path");
    Publication::Event(Event::Page { event_type: name("page_view"), page_url })
}

/// A view of a theme.
pub(crate) fn theme(theme: &str) -> Publication {
    Publication::Event(Event::ThemeChange { theme: name(theme) })
}

pub(crate) fn name(text: &str) -> Name {
    Name::parse("name", Some(text)).expect("a name")
}

/// The ids of what was done.
pub(crate) fn done(reply: PublishReply) -> Vec<EventId> {
    match reply {
        PublishReply::Done { ids, touch: TouchReply::Done } => ids,
        other => panic!("not done: {other:?}"),
    }
}

/// The ids as they stand in the stream.
pub(crate) fn ids(entries: &[Entry]) -> Vec<EventId> {
    entries.iter().map(Entry::event_id).collect()
}

pub(crate) fn ms(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).expect("short durations")
}
