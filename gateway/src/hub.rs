//! All open sockets of this node, and everything that is done to them.
//!
//! | part | what it does |
//! |---|---|
//! | [`conn`] | one socket: written to directly, from any thread |
//! | `outbox` | what waits for a slow reader, and what it loses when too much waits |
//! | `task`, `reader`, `linger` | a socket's task: asleep until bytes arrive; then a reader for as long as they do |
//! | [`broadcast`], `forms`, `pace` | the thread that writes every message to every socket |
//! | [`ring`], `replay`, [`past`] | what the stream brought lately, and how a returning client gets the rest of it |
//! | [`sweep`], `pulse` | the thread that pings and enforces deadlines; what those are |
//! | `viewer` | what a client's message leads to, by the rules of [`crate::session`] |
//!
//! A socket at rest costs an `Arc` of 160 bytes, a sleeping task, and a slot in a map. It has no buffer, no queue and
//! no timer; those exist while they are needed.
//!
//! **Joining** (Inv. ORDER: no update before `init`, nothing twice). A broadcast pass first says what it brings, then
//! looks up the sockets. [`Hub::open`] puts a socket into the map with its lock held, then reads what was said, writes
//! `init` from it and remembers the pass's number; only then it lets go of the lock. A pass that finds the socket waits
//! for the lock, and skips the socket unless it is newer than that number. One that does not find it had said what it
//! brings before the socket read it.
//!
//! Deliberately absent: who may come in (admission), what is sent (relay), and any hold of the map's locks while
//! a socket is written to: passes work on a snapshot.

#[cfg(feature = "bench")]
pub mod bench;
pub mod broadcast;
mod catch_up;
pub mod conn;
mod core;
mod forms;
mod frame;
mod linger;
mod outbox;
mod pace;
mod parcel;
pub mod past;
mod pulse;
mod reader;
mod replay;
pub mod ring;
pub mod sweep;
mod task;
mod viewer;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dashmap::DashMap;
use fastwebsockets::OpCode;
use shared::close::CloseReason;
use shared::ids::{ConnId, EventId};
use shared::message::{CLIENT_MESSAGE_BYTES_MAX, Freshness, MessageKinds, Snapshot};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use self::conn::Conn;
use self::core::Core;
use self::outbox::Content;
use self::parcel::Parcel;
use self::pulse::{Limits, Pulse};
use self::task::SocketTask;
use self::viewer::Viewer;
use crate::backplane::AddressHash;
use crate::clock::{Clock, Mono};
use crate::identity::VisitorDigest;
use crate::metrics::{Close, Direction, Metrics};
use crate::session::{ControlDecision, Session};
use crate::vitals::Vitals;

/// The kernel keeps at most about this much unsent per socket (`TCP_NOTSENT_LOWAT`); what is more waits in the outbox,
/// where it can still be discarded.
const UNSENT_BYTES_MAX: u32 = 16 * 1024;
/// A peer that acknowledges nothing for this long is gone (`TCP_USER_TIMEOUT`).
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(40);

/// How the hub treats its sockets.
#[derive(Debug, Clone)]
pub struct HubSettings {
    /// What may wait for one reader, in bytes.
    pub outbox_bytes_max: usize,
    /// What may wait for all readers together, in bytes; over it those who hold most are closed with 1013.
    pub outbox_total_bytes_max: usize,
    /// The longest message that a client may send, in bytes.
    pub message_bytes_max: usize,
    /// From ping to ping.
    pub ping_interval: Duration,
    /// From a ping to the end of the patience with which its pong is awaited.
    pub pong_timeout: Duration,
    /// Messages that a client may send per second.
    pub messages_per_second: u32,
    /// Messages that a client may send at once.
    pub message_burst: u32,
    /// `SO_SNDBUF` of each socket, in bytes: small, so that a slow reader is noticed while what it has not read can
    /// still be discarded.
    pub socket_send_buffer_bytes: usize,
    /// Threads that may share a broadcast pass.
    pub writers_max: usize,
    /// From snapshot to snapshot, as far as is known here: pings that would fall due before the next ride with one.
    pub snapshot_interval: Duration,
    /// Least time between the beginnings of two broadcast passes.
    pub flush_interval: Duration,
    /// Age at which a socket is asked to come back, give or take a tenth.
    pub max_age: Option<Duration>,
    /// What of the past is kept for clients that come back, in bytes; 0 keeps nothing.
    pub replay_bytes_max: usize,
    /// A fault planted by a test; ignored in release builds.
    pub panic_on: Option<PanicOn>,
}

/// The seed's values, and the measured ones where the seed has none.
impl Default for HubSettings {
    fn default() -> Self {
        Self {
            outbox_bytes_max: 64 * 1024,
            outbox_total_bytes_max: 64 * 1024 * 1024,
            message_bytes_max: CLIENT_MESSAGE_BYTES_MAX,
            ping_interval: Duration::from_secs(30),
            pong_timeout: Duration::from_secs(10),
            messages_per_second: 1,
            message_burst: 5,
            socket_send_buffer_bytes: 32 * 1024,
            // The other half of the cores reads, and serves handshakes.
            writers_max: std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).clamp(1, 8)),
            snapshot_interval: Duration::from_secs(5),
            flush_interval: Duration::ZERO,
            max_age: None,
            replay_bytes_max: 4 * 1024 * 1024,
            panic_on: None,
        }
    }
}

impl HubSettings {
    fn limits(&self) -> Limits {
        let Self { ping_interval, pong_timeout, max_age, snapshot_interval, .. } = *self;
        Limits { ping_interval, pong_timeout, max_age, snapshot_interval }
    }
}

/// Where a test wants a panic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PanicOn {
    /// When a client says [`PanicOn::TEXT`].
    ClientMessage,
}

impl PanicOn {
    /// The message that sets it off.
    pub const TEXT: &str = r#"{"type":"__panic"}"#;
}

/// Whether a socket gets ids with its messages (`ids=1`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ids {
    /// The documented messages and nothing more.
    Without,
    /// An `id` in each message's envelope, and `gap` where something is missing.
    With,
}

/// The newest number.
///
/// Whether it is still the present truth is no part of it, but a question of the time at which it is told: a flag would
/// be as old as the last look of whoever sets it, and wrong after a pause of the process until that one looks again.
#[derive(Debug, Clone, Copy)]
pub struct State {
    /// The number and when it was counted.
    pub snapshot: Snapshot,
    /// From here on it is stale, on the node's own clock.
    pub fresh_until: Mono,
    /// Its id in the stream.
    pub id: Option<EventId>,
}

impl State {
    /// Whether it is the present truth at `now`.
    #[must_use]
    pub fn freshness_at(&self, now: Mono) -> Freshness {
        if now < self.fresh_until { Freshness::Fresh } else { Freshness::Stale }
    }

    /// As whoever tells it at `now` has to.
    #[must_use]
    pub fn shown_at(&self, now: Mono) -> Shown {
        Shown { snapshot: self.snapshot, freshness: self.freshness_at(now), id: self.id }
    }
}

/// The newest number as it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// The number and when it was counted.
    pub snapshot: Snapshot,
    /// Whether it was the present truth when it was told.
    pub freshness: Freshness,
    /// Its id in the stream.
    pub id: Option<EventId>,
}

/// The right to hold a socket open; giving it back is dropping it.
pub trait SocketPermit: fmt::Debug + Send + Sync {
    /// Whose address slot it is.
    fn address(&self) -> AddressHash;
}

/// A connection that has finished its handshake.
#[derive(Debug)]
pub struct NewSocket {
    /// The connection, from a listener that [`Hub::tune`] has seen.
    pub stream: TcpStream,
    /// What is to be written before everything else: the end of the handshake, if nobody has written it yet.
    pub answer: Bytes,
    /// Bytes that came with the handshake.
    pub leftover: Bytes,
    /// What it wants to hear.
    pub kinds: MessageKinds,
    /// In which form.
    pub ids: Ids,
    /// The last message that it has of an earlier socket (`last_event_id`): it gets what came after that. With
    /// [`Ids::With`] alone.
    pub resume: Option<EventId>,
    /// Who looks.
    pub visitor: VisitorDigest,
    /// Its right to be here; none only in tests and examples.
    pub permit: Option<Box<dyn SocketPermit>>,
}

/// A client's message; the bytes may be used as scratch space.
#[derive(Debug)]
pub enum Message<'a> {
    /// UTF-8.
    Text(&'a mut [u8]),
    /// Anything.
    Binary(&'a mut [u8]),
}

/// What is done with clients' messages. The gateway's own is made by [`Hub::new`]; examples and tests bring others.
pub trait Handler: fmt::Debug + Send + Sync + 'static {
    /// A message came.
    ///
    /// # Errors
    /// Why the socket is to be closed.
    fn message(&self, peer: &Peer<'_>, session: &mut Session, message: Message<'_>) -> Result<(), CloseReason>;

    /// A WebSocket ping or pong frame came; a ping that is accepted is answered by the hub.
    fn control(&self, session: &mut Session) -> ControlDecision;
}

/// The socket whose message is being handled.
#[derive(Debug, Clone, Copy)]
pub struct Peer<'a> {
    hub: &'a Hub,
    conn: &'a Arc<Conn>,
}

impl Peer<'_> {
    /// Sends a text message. Like every message it may be discarded when the client does not read.
    pub fn send_text(&self, text: &[u8]) {
        self.send(OpCode::Text, text, Content::Event(None));
    }

    /// Sends a binary message, likewise.
    pub fn send_binary(&self, bytes: &[u8]) {
        self.send(OpCode::Binary, bytes, Content::Event(None));
    }

    fn pong(&self, payload: &[u8]) {
        self.send(OpCode::Pong, payload, Content::Pong);
    }

    fn send(&self, opcode: OpCode, payload: &[u8], content: Content) {
        let parcel = Parcel::single(frame::encode(opcode, payload), content);
        let sent = self.conn.send(&self.hub.core, &parcel);
        self.hub.core.metrics.messages.add(Direction::Sent, sent);
    }

    fn owes_pong(&self) -> bool {
        self.conn.is_ping_open()
    }

    fn pong_came(&self) {
        self.conn.pong();
    }
}

/// All sockets of this node.
#[derive(Debug)]
pub struct Hub {
    core: Core,
    conns: DashMap<ConnId, Arc<Conn>>,
    next_id: AtomicU64,
    handler: Box<dyn Handler>,
    clock: Clock,
    vitals: Arc<Vitals>,
}

impl Hub {
    /// A hub without sockets, whose clients are viewers.
    #[must_use]
    pub fn new(settings: HubSettings, clock: Clock, metrics: Arc<Metrics>, vitals: Arc<Vitals>) -> Arc<Self> {
        let handler = Viewer::new(&settings, clock, Arc::clone(&metrics));
        Self::with_handler(settings, clock, metrics, vitals, Box::new(handler))
    }

    /// A hub without sockets, whose clients' messages go to `handler`.
    #[must_use]
    pub fn with_handler(
        settings: HubSettings,
        clock: Clock,
        metrics: Arc<Metrics>,
        vitals: Arc<Vitals>,
        handler: Box<dyn Handler>,
    ) -> Arc<Self> {
        let core = Core::new(settings, clock, metrics);
        Arc::new(Self { core, conns: DashMap::new(), next_id: AtomicU64::new(1), handler, clock, vitals })
    }

    /// Sets the state that sockets start from, before the first of them and the first broadcast. A hub that was never
    /// primed gives no `init`.
    pub fn prime(&self, state: State) {
        self.core.prime(state);
    }

    /// The newest state, as it is to be told now.
    #[must_use]
    pub fn state(&self) -> Option<Shown> {
        self.core.published().state.map(|state| state.shown_at(self.clock.now()))
    }

    /// Becomes true when there is a state.
    #[must_use]
    pub fn has_state(&self) -> watch::Receiver<bool> {
        self.core.has_state.subscribe()
    }

    /// How many sockets there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.conns.len()
    }

    /// Whether there is no socket.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.conns.is_empty()
    }

    /// Takes over a socket: it gets `init` at once, what it missed if it says where it was, and every message from then
    /// on. Its task, one of `tasks`, ends with
    /// it.
    pub fn open(self: &Arc<Self>, new: NewSocket, tasks: &TaskTracker) -> ConnId {
        let id = ConnId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let pulse = Pulse::new(self.core.sweep_time(), self.core.settings.limits(), &mut rand::rng());
        let conn = Arc::new(Conn::new(id, new.stream, (new.kinds, new.ids), new.visitor, new.permit, pulse));
        // Inv. ORDER: in the map before it reads the state, and locked until `init` is written; see the module's head.
        let mut inner = conn.lock();
        self.conns.insert(id, Arc::clone(&conn));
        let sent = conn.join(&self.core, &mut inner, &new.answer, new.resume);
        drop(inner);
        self.core.metrics.messages.add(Direction::Sent, sent);
        self.core.metrics.connections_active.add(1);
        tasks.spawn(SocketTask::new(Arc::clone(self), conn, new.leftover));
        id
    }

    /// Sets the options that sockets need on the listener that accepts them, once: they inherit them. A socket with the
    /// system's defaults works; only, more is buffered where nobody can discard it.
    pub fn tune(&self, listener: &TcpListener) {
        let socket = SockRef::from(listener);
        let set = || {
            socket.set_tcp_nodelay(true)?;
            socket.set_send_buffer_size(self.core.settings.socket_send_buffer_bytes)?;
            #[cfg(target_os = "linux")]
            {
                socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
                socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
            }
            io::Result::Ok(())
        };
        if let Err(error) = set() {
            tracing::warn!(%error, "socket options could not be set");
        }
    }

    /// Calls `visit` with each socket. No lock is held meanwhile; a socket may end before it is visited.
    pub fn for_each(&self, visit: impl FnMut(&Arc<Conn>)) {
        let mut sockets = Vec::new();
        self.snapshot(&mut sockets);
        sockets.iter().for_each(visit);
    }

    /// Fills `sockets` with all there are. A shard's lock is held for the microseconds that it takes to count its
    /// sockets up, not for the milliseconds that it takes to write to them.
    fn snapshot(&self, sockets: &mut Vec<Arc<Conn>>) {
        sockets.extend(self.conns.iter().map(|entry| Arc::clone(entry.value())));
    }

    /// Closes a socket, if it is still there.
    pub fn close(&self, id: ConnId, reason: CloseReason) {
        if let Some(conn) = self.find(id) {
            conn.close(&self.core, reason);
        }
    }

    /// Gives the place of a socket's address back while the socket lives on: it is about to be sent away, and the
    /// cluster shall know of the place first.
    pub fn give_place_back(&self, id: ConnId) {
        if let Some(conn) = self.find(id) {
            conn.give_place_back();
        }
    }

    /// Sends a socket away because the node is going down, with the time after which it shall come back. Its place is
    /// given back first, if it was not.
    pub fn close_draining(&self, id: ConnId, retry_after_ms: u64) {
        if let Some(conn) = self.find(id) {
            conn.close_draining(&self.core, retry_after_ms);
        }
    }

    fn find(&self, id: ConnId) -> Option<Arc<Conn>> {
        self.conns.get(&id).map(|entry| Arc::clone(entry.value()))
    }

    /// Closes those who hold most, until all outboxes together are well below their limit again.
    // Inv. BOUND: the memory that slow readers cost together has a limit, and those pay who cause it.
    fn shed(&self) {
        if !self.core.is_overloaded() {
            return;
        }
        let mut holders = Vec::new();
        self.for_each(|conn| {
            let bytes = conn.outbox_bytes();
            if bytes > 0 {
                holders.push((bytes, Arc::clone(conn)));
            }
        });
        holders.sort_unstable_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        // Below the limit by an eighth, so that this search is not made again for the next message.
        let enough = self.core.settings.outbox_total_bytes_max / 8 * 7;
        for (_, conn) in holders {
            if self.core.outbox_bytes() <= enough {
                break;
            }
            conn.close(&self.core, CloseReason::Overloaded);
        }
    }

    fn remove(&self, id: ConnId, close: Close) {
        self.conns.remove(&id);
        self.core.metrics.connections_active.add(-1);
        self.core.metrics.closed(close);
        tracing::debug!(conn = %id, ?close, "socket closed");
    }
}
