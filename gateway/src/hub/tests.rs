//! The hub over real loopback sockets. Nothing sleeps: each wait is for an event, with a deadline that fails the test.

mod freshness;
mod heartbeat;
mod joining;
mod lifetime;
mod reading;
mod resuming;
mod slow;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fastwebsockets::OpCode;
use shared::close::CloseReason;
use shared::ids::{ConnId, EntryDigest, EventId, StreamId};
use shared::message::{Freshness, MessageKind, MessageKinds, Snapshot, encode_update};
use shared::time::Timestamp;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::task::TaskTracker;

use super::broadcast::{Batch, Broadcast};
use super::sweep::{SweepTime, sweep};
use super::{Handler, Hub, HubSettings, Ids, NewSocket, SocketPermit, State};
use crate::clock::{Clock, Mono};
use crate::identity::VisitorDigest;
use crate::metrics::{Inbound, Metrics};
use crate::vitals::Vitals;

/// No event of these tests takes this long; a wait that does has failed.
const DEADLINE: Duration = Duration::from_secs(20);
/// Receive buffer of clients, in bytes: small, so that one that does not read is noticed soon.
const CLIENT_BUFFER_BYTES: u32 = 4096;

async fn in_time<F: Future>(what: &str, event: F) -> F::Output {
    tokio::time::timeout(DEADLINE, event).await.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"))
}

/// A hub, and a door to it.
struct Rig {
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    /// One at a time, so that each connects to its own end.
    listener: tokio::sync::Mutex<TcpListener>,
}

impl Rig {
    async fn new(settings: HubSettings) -> Self {
        let metrics = Arc::new(Metrics::default());
        let clock = Clock::start();
        let hub = Hub::new(settings, clock, Arc::clone(&metrics), Arc::new(Vitals::new(clock)));
        hub.prime(state(0));
        Self::of(hub, metrics).await
    }

    async fn with_handler(settings: HubSettings, handler: Box<dyn Handler>) -> Self {
        let metrics = Arc::new(Metrics::default());
        let clock = Clock::start();
        let vitals = Arc::new(Vitals::new(clock));
        Self::of(Hub::with_handler(settings, clock, Arc::clone(&metrics), vitals, handler), metrics).await
    }

    async fn of(hub: Arc<Hub>, metrics: Arc<Metrics>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        hub.tune(&listener);
        Self { hub, metrics, tasks: TaskTracker::new(), listener: listener.into() }
    }

    /// A client that has read nothing yet.
    async fn open(&self, ids: Ids, leftover: &[u8], permit: Option<Box<dyn SocketPermit>>) -> Client {
        self.open_with(MessageKinds::ALL, ids, leftover, permit).await
    }

    async fn open_with(
        &self,
        kinds: MessageKinds,
        ids: Ids,
        leftover: &[u8],
        permit: Option<Box<dyn SocketPermit>>,
    ) -> Client {
        self.open_as((kinds, ids, None), leftover, permit).await
    }

    /// A client that has everything up to the `last`th message.
    async fn resume(&self, last: EventId) -> Client {
        self.open_as((MessageKinds::ALL, Ids::With, Some(last)), b"", None).await
    }

    async fn open_as(
        &self,
        (kinds, ids, resume): (MessageKinds, Ids, Option<EventId>),
        leftover: &[u8],
        permit: Option<Box<dyn SocketPermit>>,
    ) -> Client {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(CLIENT_BUFFER_BYTES).expect("sets");
        let listener = self.listener.lock().await;
        let address = listener.local_addr().expect("bound");
        let (theirs, ours) = tokio::join!(socket.connect(address), listener.accept());
        drop(listener);
        let new = NewSocket {
            stream: ours.expect("accepts").0,
            answer: Bytes::new(),
            leftover: Bytes::copy_from_slice(leftover),
            kinds,
            ids,
            resume,
            visitor: VisitorDigest([0; 16]),
            permit,
        };
        self.hub.open(new, &self.tasks);
        let stream = theirs.expect("connects");
        stream.set_nodelay(true).expect("sets");
        Client { stream, bytes: Vec::new() }
    }

    /// A client that has read its `init`.
    async fn join(&self, ids: Ids) -> Client {
        let mut client = self.open(ids, b"", None).await;
        assert!(client.text().await.starts_with(r#"{"type":"init""#));
        client
    }

    /// All sockets have ended and their tasks too.
    async fn emptied(&self) {
        self.tasks.close();
        in_time("the last socket's end", self.tasks.wait()).await;
        assert_eq!(self.hub.len(), 0);
        assert_eq!(self.metrics.connections_active.value(), 0);
        assert_eq!(self.metrics.outbox_bytes.value(), 0, "bytes of ended sockets are still counted");
    }

    /// The sweep that many seconds after the start.
    fn sweep_at(&self, second: u64) {
        sweep(&self.hub, SweepTime::START.after(Duration::from_secs(second)), &mut Vec::new());
    }

    /// So many pongs have come.
    async fn pongs(&self, count: u64) {
        in_time("the pongs", async {
            while self.metrics.inbound.value(Inbound::Pong) < count {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    fn pass(&self, messages: &[Broadcast]) {
        let mut batch = Batch::default();
        messages.iter().for_each(|message| batch.add(message.clone()));
        super::broadcast::pass(&self.hub, &mut batch, &mut Vec::new());
    }
}

/// The state that pass `n` brings.
fn state(n: u64) -> State {
    let snapshot = Snapshot { active_visitors: n, timestamp: Timestamp::from_unix_ms(0) };
    State { snapshot, fresh_until: Mono::MAX, id: Some(id(n)) }
}

fn id(n: u64) -> EventId {
    EventId { stream: StreamId { ms: n, seq: 0 }, digest: EntryDigest::of("", b"") }
}

fn update(n: u64) -> Broadcast {
    let state = state(n);
    let text = encode_update(state.snapshot, Freshness::Fresh);
    Broadcast { kind: MessageKind::RealtimeUpdate, text, id: state.id, state: Some(state) }
}

/// An event of about `bytes` bytes.
fn event(n: u64, bytes: usize) -> Broadcast {
    let text = format!(r#"{{"type":"new_event","data":"{}"}}"#, "x".repeat(bytes));
    Broadcast { kind: MessageKind::NewEvent, text, id: Some(id(n)), state: None }
}

/// The number in an `init` or `realtime_update` of these tests.
fn number(text: &str) -> u64 {
    let (_, rest) = text.split_once(r#""active_visitors":"#).expect("a snapshot");
    rest.split_once(',').expect("more keys").0.parse().expect("a number")
}

/// The number in a message's id.
fn id_of(text: &str) -> Option<u64> {
    let (_, rest) = text.split_once(r#""id":""#)?;
    rest.split_once('-')?.0.parse().ok()
}

/// A WebSocket client that shows every frame and can break every rule.
struct Client {
    stream: TcpStream,
    bytes: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Frame {
    opcode: u8,
    payload: Vec<u8>,
}

impl Client {
    /// The next frame; none at the end of the stream.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some((frame, used)) = parse(&self.bytes) {
                self.bytes.drain(..used);
                return Some(frame);
            }
            let mut chunk = [0; 4096];
            match in_time("a frame", self.stream.read(&mut chunk)).await {
                Ok(0) | Err(_) => {
                    assert!(self.bytes.is_empty(), "the stream ends within a frame");
                    return None;
                }
                Ok(n) => self.bytes.extend_from_slice(&chunk[..n]),
            }
        }
    }

    async fn text(&mut self) -> String {
        let frame = self.next().await.expect("a text, not the end");
        assert_eq!(frame.opcode, OpCode::Text as u8, "{frame:?}");
        String::from_utf8(frame.payload).expect("UTF-8")
    }

    /// The code and reason of the close frame, which nothing follows; messages before it are skipped.
    async fn closed(&mut self) -> (Option<u16>, String) {
        loop {
            let frame = self.next().await.expect("a close frame, not the end");
            if frame.opcode != OpCode::Close as u8 {
                continue;
            }
            assert_eq!(self.next().await, None, "something follows the close frame");
            let (code, reason) = frame.payload.split_at(frame.payload.len().min(2));
            let code = code.try_into().map(u16::from_be_bytes).ok();
            return (code, String::from_utf8(reason.to_vec()).expect("UTF-8"));
        }
    }

    async fn closed_for(&mut self, reason: CloseReason) {
        assert_eq!(self.closed().await, (Some(reason.code()), reason.text().to_owned()));
    }

    async fn send(&mut self, bytes: &[u8]) {
        in_time("room to send", self.stream.write_all(bytes)).await.expect("sends");
    }

    async fn say(&mut self, text: &str) {
        self.send(&masked(0x81, text.as_bytes())).await;
    }
}

/// An unmasked frame at the beginning of `bytes`, and its length.
fn parse(bytes: &[u8]) -> Option<(Frame, usize)> {
    let (first, second) = (*bytes.first()?, *bytes.get(1)?);
    assert_eq!(second & 0x80, 0, "a server must not mask");
    let (head, len) = match second {
        126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().expect("two bytes")))),
        127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().expect("eight bytes")).try_into().expect("fits")),
        len => (2, usize::from(len)),
    };
    let payload = bytes.get(head..head + len)?.to_vec();
    assert_eq!(first & 0xf0, 0x80, "a whole frame without reserved bits");
    Some((Frame { opcode: first & 0x0f, payload }, head + len))
}

/// A client's frame; `first` holds the FIN bit, reserved bits and the opcode.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        len @ 0..126 => bytes.push(0x80 | u8::try_from(len).expect("below 126")),
        len @ 126..65_536 => {
            bytes.push(0x80 | 126);
            bytes.extend_from_slice(&u16::try_from(len).expect("below 65,536").to_be_bytes());
        }
        len => {
            bytes.push(0x80 | 127);
            bytes.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    bytes.extend_from_slice(&mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}
