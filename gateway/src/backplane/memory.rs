//! The embedded backplane: what a node runs on when there is no Redis.
//!
//! Development, tests and small sites want one process and nothing else. A second code path for them ("if embedded,
//! count here") would be the path that nobody tests. So the same node runs on the same port, and only what is behind
//! it differs: one state under one lock, where Redis has scripts. A lock does for threads of one process what a Lua
//! script does for nodes of a fleet, and each part of the state is pure: it is told the time, and answers.
//!
//! - [`stream`]: the ring of entries, their ids, and how many there ever were.
//! - [`reign`]: who the ticker is, under which epoch, and which slot was ticked last.
//! - [`members`]: who lives, and how many sockets of an address each one holds.
//! - [`visitors`]: who was seen when, salts, and the window that grows by an outage.
//! - [`themes`]: views per theme.
//!
//! The lock is held for map operations and for encoding at most [`PUBLISH_ITEMS_MAX`] small objects, never across an
//! `await`. The only walk over everything is the tick's, over the visitors ([`VISITORS_MAX`]), every interval.
//!
//! Deliberately absent: persistence. A process that ends takes its numbers with it; a site to which they matter has
//! a Redis. Absent too is any way to lose the connection: calls here never fail but for [`BackplaneError::Backpressure`]
//! when a bound is reached.

mod members;
mod reign;
mod stream;
#[cfg(test)]
mod tests;
mod themes;
mod visitors;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use shared::event::Event;
use shared::ids::{EventId, NodeId, StreamId};
use shared::message::{LetterGenerated, NewEvent, PublicMessage, Snapshot};
use shared::time::Timestamp;
use tokio::sync::{Notify, mpsc};

use self::members::Members;
use self::reign::{Reign, Verdict};
use self::stream::Stream;
use self::themes::Themes;
pub use self::visitors::VISITORS_MAX;
use self::visitors::{SaltStore, Visitors};
use super::{
    AddressHash, Admit, AdmitReply, Backplane, BackplaneError, BeatReply, ClaimReply, Entry, Join, LEGACY_QUEUE_MAX,
    Lease, Millis, PUBLISH_ITEMS_MAX, Publication, Publish, PublishReply, READMIT_ADDRESSES_MAX, Result, Salt, Salts,
    TickReply, Touch, TouchReply,
};
use crate::clock::Clock;

/// Publishers whose last number is remembered; the one that was silent longest is forgotten first. One process has
/// one, tests have a few.
pub const PUBLISHERS_MAX: usize = 64;
/// Subscribers of the legacy channel; the ticker alone subscribes.
pub const LEGACY_SUBSCRIBERS_MAX: usize = 16;

/// Where the embedded backplane's time comes from: milliseconds since the Unix epoch.
pub type WallTime = Box<dyn Fn() -> Millis + Send + Sync>;

/// The embedded backplane. See the module's documentation.
pub struct MemoryBackplane {
    wall: WallTime,
    generation: String,
    secret: OnceLock<[u8; 32]>,
    state: Mutex<State>,
    /// Wakes readers after an append. Notified after the lock is released.
    appended: Notify,
}

/// Everything that a Redis would hold.
#[derive(Debug, Default)]
struct State {
    latest: Millis,
    stream: Stream,
    reign: Reign,
    members: Members,
    visitors: Visitors,
    salts: SaltStore,
    themes: Themes,
    snapshot: Option<Snapshot>,
    published: HashMap<NodeId, Published>,
    legacy: Vec<mpsc::Sender<Bytes>>,
}

/// What came of a node's last publish.
#[derive(Debug)]
struct Published {
    number: u64,
    ids: Vec<EventId>,
    touch: TouchReply,
    at: Millis,
}

impl MemoryBackplane {
    /// An empty backplane on the machine's wall clock.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::with_time(Box::new(Clock::wall_ms))
    }

    /// An empty backplane whose time is `wall`'s: how tests move it.
    #[must_use]
    pub fn with_time(wall: WallTime) -> Arc<Self> {
        let generation: [u8; 16] = rand::random();
        Arc::new(Self {
            wall,
            generation: generation.iter().map(|byte| format!("{byte:02x}")).collect(),
            secret: OnceLock::new(),
            state: Mutex::default(),
            appended: Notify::new(),
        })
    }

    /// Publishes on the legacy channel, as `PUBLISH` does on Redis: at most once, to whoever is subscribed now and
    /// keeps up. Returns how many got it.
    pub fn publish_legacy(&self, payload: &Bytes) -> usize {
        let mut state = self.state.lock();
        state.legacy.retain(|subscriber| !subscriber.is_closed());
        state.legacy.iter().filter(|subscriber| subscriber.try_send(payload.clone()).is_ok()).count()
    }

    /// Runs `step` on the state at the present time.
    fn with<R>(&self, step: impl FnOnce(&mut State, Millis) -> R) -> R {
        let mut state = self.state.lock();
        // Inside the lock: times that are handed to the state are in the order of its steps.
        let now = (self.wall)();
        state.observe(now);
        step(&mut state, now)
    }
}

impl State {
    /// Takes notice of the time. When the wall clock was set back, what ends at a point of the old time line is
    /// moved with it, so that no lease lives longer than it was given; slots get a new epoch (see [`Reign`]).
    fn observe(&mut self, now: Millis) {
        let back_by = self.latest.saturating_sub(now);
        if back_by > 0 {
            self.reign.move_back(back_by);
            self.members.move_back(back_by);
            self.visitors.clamp(now);
        }
        self.latest = now;
    }

    fn publish(&mut self, request: &Publish, now: Millis) -> PublishReply {
        debug_assert!(request.items.len() <= PUBLISH_ITEMS_MAX, "callers cut their batches");
        if let Some(last) = self.published.get(&request.node) {
            if request.number == last.number {
                return PublishReply::Done { ids: last.ids.clone(), touch: last.touch };
            }
            if request.number < last.number {
                return PublishReply::Superseded;
            }
        }
        // Inv. FENCE: judged here, where the lease is kept, whatever the sender believes.
        if request.lease.is_some_and(|lease| !self.reign.holds(lease, now)) {
            return PublishReply::Fenced;
        }
        let ids = request
            .items
            .iter()
            .map(|item| {
                let message = self.complete(item, now);
                let data = Bytes::from(message.encode_data());
                self.stream.append(now, message.kind().as_str(), data, request.traceparent.clone())
            })
            .collect::<Vec<_>>();
        let touch = request.touch.as_ref().map_or(TouchReply::Done, |touch| self.touch(touch, now));
        let published = Published { number: request.number, ids: ids.clone(), touch, at: now };
        self.remember(request.node, published);
        PublishReply::Done { ids, touch }
    }

    /// Adds what the backplane knows: the time of an event, the count of a theme.
    fn complete(&mut self, item: &Publication, now: Millis) -> PublicMessage {
        let timestamp = Timestamp::from_unix_ms(now);
        match item {
            Publication::Public(message) => message.clone(),
            Publication::Event(Event::Page { event_type, page_url }) => PublicMessage::NewEvent(NewEvent {
                event_type: event_type.clone(),
                page_url: page_url.clone(),
                timestamp,
            }),
            Publication::Event(Event::ThemeChange { theme }) => PublicMessage::ThemeStats(self.themes.view(theme)),
            Publication::Event(Event::LetterGenerate { letter_type }) => {
                PublicMessage::LetterGenerated(LetterGenerated { letter_type: letter_type.clone(), timestamp })
            }
        }
    }

    /// Inv. BOUND: at most [`PUBLISHERS_MAX`] are remembered.
    fn remember(&mut self, node: NodeId, published: Published) {
        self.published.insert(node, published);
        if self.published.len() > PUBLISHERS_MAX {
            let silent = self.published.iter().min_by_key(|(_, last)| last.at).map(|(node, _)| *node);
            silent.map(|node| self.published.remove(&node));
        }
    }

    fn touch(&mut self, request: &Touch, now: Millis) -> TouchReply {
        if !self.salts.is_present(request.day, &request.fingerprint, now) {
            return TouchReply::Refused;
        }
        self.visitors.touch(request, now);
        TouchReply::Done
    }

    fn tick(&mut self, request: &super::Tick, now: Millis) -> TickReply {
        let lease = match self.reign.judge(request, now) {
            Verdict::Fenced => return TickReply::Fenced,
            Verdict::WrongSlot => return TickReply::WrongSlot { now },
            Verdict::AlreadyDone => return TickReply::AlreadyDone { now },
            Verdict::Publish(lease) => lease,
        };
        let active_visitors = self.visitors.count(request.interval, request.window, &self.members.awaited(now), now);
        let snapshot = Snapshot { active_visitors, timestamp: Timestamp::from_unix_ms(now) };
        let message = PublicMessage::RealtimeUpdate(snapshot);
        self.stream.append_snapshot(
            now,
            message.kind().as_str(),
            message.encode_data().into(),
            lease.epoch,
            request.slot,
        );
        self.snapshot = Some(snapshot);
        TickReply::Published { snapshot, lease, now }
    }
}

#[async_trait]
impl Backplane for MemoryBackplane {
    fn name(&self) -> &'static str {
        "memory"
    }

    async fn publish(&self, request: &Publish) -> Result<PublishReply> {
        let reply = self.with(|state, now| state.publish(request, now));
        self.appended.notify_waiters();
        Ok(reply)
    }

    async fn read_from(&self, after: StreamId, count: usize, block: Duration) -> Result<Vec<Entry>> {
        let deadline = tokio::time::Instant::now() + block;
        loop {
            // Registered before the look: what is appended in between wakes it.
            let appended = self.appended.notified();
            let entries = self.state.lock().stream.after(after, count);
            if !entries.is_empty() || tokio::time::timeout_at(deadline, appended).await.is_err() {
                return Ok(entries);
            }
        }
    }

    fn distrust_reads(&self) {
        // There is no way that could lead elsewhere.
    }

    async fn newest(&self, count: usize) -> Result<Vec<Entry>> {
        Ok(self.state.lock().stream.newest(count))
    }

    async fn up_to(&self, last: StreamId, count: usize) -> Result<Vec<Entry>> {
        Ok(self.state.lock().stream.up_to(last, count))
    }

    async fn entry(&self, id: StreamId) -> Result<Option<Entry>> {
        Ok(self.state.lock().stream.entry(id))
    }

    async fn snapshot(&self) -> Result<Option<Snapshot>> {
        Ok(self.state.lock().snapshot)
    }

    async fn claim(&self, node: NodeId, lease: Duration) -> Result<ClaimReply> {
        Ok(self.with(|state, now| state.reign.claim(node, millis(lease), now)))
    }

    async fn release(&self, lease: Lease) -> Result<()> {
        self.with(|state, _| state.reign.release(lease));
        Ok(())
    }

    async fn tick(&self, request: &super::Tick) -> Result<TickReply> {
        let reply = self.with(|state, now| state.tick(request, now));
        self.appended.notify_waiters();
        Ok(reply)
    }

    async fn beat(&self, node: NodeId, join: Join, lease: Duration) -> Result<BeatReply> {
        let generation = self.generation.clone();
        Ok(self.with(|state, now| {
            let standing = state.members.beat(node, join, millis(lease), now);
            state.visitors.forget_nodes(|node| !state.members.is_known(node));
            BeatReply { standing, generation, server: String::new(), members: state.members.alive(now), now }
        }))
    }

    async fn leave(&self, node: NodeId) -> Result<()> {
        self.with(|state, _| {
            state.members.leave(node);
            state.visitors.forget_nodes(|other| other == node);
        });
        Ok(())
    }

    async fn admit(&self, request: &Admit) -> Result<AdmitReply> {
        self.with(|state, now| state.members.admit(request, now)).ok_or(BackplaneError::Backpressure)
    }

    async fn readmit(&self, node: NodeId, cap: u32, held: &[(AddressHash, u32)]) -> Result<Vec<Result<AdmitReply>>> {
        Ok(self.with(|state, now| {
            let again = |(address, held): &(AddressHash, u32)| {
                let request = Admit { node, address: *address, held: *held, wanted: *held, cap };
                state.members.admit(&request, now).ok_or(BackplaneError::Backpressure)
            };
            held.iter().take(READMIT_ADDRESSES_MAX).map(again).collect()
        }))
    }

    async fn set_counts(&self, node: NodeId, counts: &[(AddressHash, u32)]) -> Result<Vec<AddressHash>> {
        let noted = self.with(|state, _| state.members.set_counts(node, counts));
        // Nothing but counts can stand in here.
        noted.map(|()| Vec::new()).ok_or(BackplaneError::Backpressure)
    }

    async fn salts(&self, offer: &[(u64, Salt)]) -> Result<Salts> {
        Ok(self.with(|state, now| state.salts.salts(offer, now)))
    }

    async fn touch(&self, request: &Touch) -> Result<TouchReply> {
        Ok(self.with(|state, now| state.touch(request, now)))
    }

    async fn secret(&self, held: Option<[u8; 32]>) -> Result<[u8; 32]> {
        Ok(*self.secret.get_or_init(|| held.unwrap_or_else(rand::random)))
    }

    async fn legacy(&self) -> Result<mpsc::Receiver<Bytes>> {
        let (sender, receiver) = mpsc::channel(LEGACY_QUEUE_MAX);
        let mut state = self.state.lock();
        state.legacy.retain(|subscriber| !subscriber.is_closed());
        if state.legacy.len() >= LEGACY_SUBSCRIBERS_MAX {
            return Err(BackplaneError::Backpressure);
        }
        state.legacy.push(sender);
        Ok(receiver)
    }
}

impl fmt::Debug for MemoryBackplane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Inv. PRIVATE: the secret and the visitors are not shown.
        f.debug_struct("MemoryBackplane").field("generation", &self.generation).finish_non_exhaustive()
    }
}

fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}
