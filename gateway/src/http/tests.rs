//! The public and the internal listener over real loopback sockets, asked with raw bytes.

use std::sync::atomic::Ordering;

use shared::ids::NodeId;
use shared::message::Snapshot;
use shared::time::Timestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::admission::AdmissionSettings;
use crate::admission::fake::Fake;
use crate::backplane::Backplane;
use crate::backplane::memory::MemoryBackplane;
use crate::clock::Clock;
use crate::cluster_time::ClusterTime;
use crate::health::Health;
use crate::hub::{HubSettings, State};
use crate::metrics::{Direction, Handshake, Ingest, IngestRefused, Page};
use crate::vitals::Vitals;

mod first;
mod listener;
mod post;

/// No test waits longer than this for something that must happen.
const DEADLINE: Duration = Duration::from_secs(20);
const TOKEN: &str = "a-token-for-tests";
const UPGRADE: &str = "GET /ws/analytics HTTP/1.1\r\nHost: gateway:5000\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// What a test wants to be different.
struct Plan {
    http: HttpSettings,
    admission: AdmissionSettings,
    phase: Phase,
    snapshot: bool,
    /// Whether somebody serves the publisher's queue.
    publishing: bool,
}

impl Default for Plan {
    fn default() -> Self {
        let admission = AdmissionSettings {
            max_connections: 100,
            max_per_address: 10,
            handshakes_per_second: 0,
            backplane_wait: Duration::from_secs(10),
            visitor_window: Duration::from_secs(300),
        };
        let http = HttpSettings { ingest_tokens: vec![Secret::new(TOKEN)], ..HttpSettings::default() };
        Self { http, admission, phase: Phase::Ready, snapshot: true, publishing: true }
    }
}

/// A node's HTTP side, listening.
struct Rig {
    address: std::net::SocketAddr,
    internal: std::net::SocketAddr,
    public: Arc<Public>,
    fake: Arc<Fake>,
    memory: Arc<dyn Backplane>,
    serving: TaskTracker,
}

impl Rig {
    async fn new(plan: Plan) -> Self {
        let (clock, metrics) = (Clock::start(), Arc::new(Metrics::default()));
        let vitals = Arc::new(Vitals::new(clock));
        let (node, fake) = (NodeId::from_random(1), Arc::new(Fake::default()));
        let memory = MemoryBackplane::new() as Arc<dyn Backplane>;
        let admission =
            Admission::new(plan.admission, node, Arc::clone(&fake) as Arc<dyn Backplane>, Arc::clone(&metrics), clock);
        admission.set_secret([7; 32]);
        let hub = Hub::new(HubSettings::default(), clock, Arc::clone(&metrics), Arc::clone(&vitals));
        if plan.snapshot {
            let timestamp = Timestamp::parse("2025-12-08T10:30:00Z").expect("a timestamp");
            let snapshot = Snapshot { active_visitors: 5, timestamp };
            hub.prime(State { snapshot, fresh_until: clock.now() + DEADLINE, id: None });
        }
        let window = Duration::from_secs(300);
        let time = Arc::new(ClusterTime::new(clock));
        let presence = Presence::new(Arc::clone(&memory), node, window, Arc::clone(&metrics), clock, time);
        let (publisher, task) =
            Publisher::channel(Arc::clone(&memory), node, Arc::clone(&presence), Arc::clone(&metrics));
        let (lifecycle, serving) = (Lifecycle::default(), TaskTracker::new());
        lifecycle.advance(plan.phase);
        if plan.publishing {
            serving.spawn(task.run(lifecycle.clone()));
        }
        let health = Health {
            backplane: Arc::clone(&fake) as Arc<dyn Backplane>,
            admission: Arc::clone(&admission),
            hub: Arc::clone(&hub),
            metrics: Arc::clone(&metrics),
            vitals: Arc::clone(&vitals),
            lifecycle: lifecycle.clone(),
        };
        let inner = Internal {
            page: Page::new(&metrics, None).expect("builds"),
            health: Arc::new(health),
            lifecycle: lifecycle.clone(),
            vitals,
            metrics: Arc::clone(&metrics),
            tasks: TaskTracker::new(),
            clock,
        };
        let tasks = TaskTracker::new();
        let public =
            Arc::new(Public { settings: plan.http, admission, hub, publisher, presence, lifecycle, metrics, tasks });
        let local = "127.0.0.1:0".parse().expect("an address");
        let (listener, internal) = (listen(local).expect("listens"), listen(local).expect("listens"));
        let rig = Self {
            address: listener.local_addr().expect("bound"),
            internal: internal.local_addr().expect("bound"),
            public: Arc::clone(&public),
            fake,
            memory,
            serving,
        };
        rig.serving.spawn(serve_public(listener, public));
        rig.serving.spawn(serve_internal(internal, Arc::new(inner)));
        rig
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("connects")
    }

    /// Sends bytes and reads until the server closes.
    async fn ask(&self, request: &str) -> String {
        ask(self.address, request).await
    }

    /// Opens a WebSocket; `extra` are further header lines.
    async fn open(&self, extra: &str) -> TcpStream {
        let mut stream = self.connect().await;
        stream.write_all(format!("{UPGRADE}{extra}\r\n").as_bytes()).await.expect("writes");
        let head = head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        stream
    }

    /// Waits until something that the server does has happened.
    async fn until(&self, what: &str, happened: impl Fn(&Metrics) -> bool) {
        let waiting = async {
            while !happened(&self.public.metrics) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
    }
}

async fn ask(address: std::net::SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    stream.write_all(request.as_bytes()).await.expect("writes");
    rest(&mut stream).await
}

/// All that comes until the end, without the `date` line.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut bytes)).await;
    read.expect("the server closes").expect("no reset");
    let text = String::from_utf8(bytes).expect("UTF-8");
    without_date(&text)
}

fn without_date(answer: &str) -> String {
    answer.split_inclusive("\r\n").filter(|line| !line.starts_with("date: ")).collect()
}

/// The head of an answer.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = tokio::time::timeout(DEADLINE, stream.read_u8()).await.expect("an answer in time");
        head.push(byte.expect("an answer"));
    }
    String::from_utf8(head).expect("ASCII")
}

/// The payload of one unmasked frame shorter than 126 bytes.
async fn frame(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let read = async {
        let (first, length) = (stream.read_u8().await.expect("a frame"), stream.read_u8().await.expect("a frame"));
        let mut payload = vec![0; usize::from(length)];
        stream.read_exact(&mut payload).await.expect("a frame");
        (first, payload)
    };
    tokio::time::timeout(DEADLINE, read).await.expect("a frame in time")
}

/// A client's frame, masked with zeros.
fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("short");
    [&[0x80 | opcode, 0x80 | length, 0, 0, 0, 0], payload].concat()
}
