//! An echo server on the gateway's own socket layer: hub, lazy reader, direct writes, lingering close.
//!
//! Autobahn's test suite wants a server that sends back what it gets (`gateway/tests/autobahn/run.sh`). What it
//! proves holds for the gateway, because nothing below the handler differs.
//!
//! `cargo run --example echo [ADDRESS]` prints the address that it listens on, by default a free port of 127.0.0.1,
//! and serves until it is killed.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use fastwebsockets::upgrade;
use gateway::clock::Clock;
use gateway::hub::{Handler, Hub, HubSettings, Ids, Message, NewSocket, Peer, sweep};
use gateway::identity::VisitorDigest;
use gateway::lifecycle::Lifecycle;
use gateway::metrics::Metrics;
use gateway::session::{ControlDecision, Session};
use gateway::vitals::Vitals;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use shared::close::CloseReason;
use shared::message::MessageKinds;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

/// The largest message of the suite, but for its performance cases (9.*), is 64 KiB.
const MESSAGE_BYTES_MAX: usize = 1024 * 1024;

#[derive(Debug)]
struct Echo;

impl Handler for Echo {
    fn message(&self, peer: &Peer<'_>, _: &mut Session, message: Message<'_>) -> Result<(), CloseReason> {
        match message {
            Message::Text(text) => peer.send_text(text),
            Message::Binary(bytes) => peer.send_binary(bytes),
        }
        Ok(())
    }

    fn control(&self, _: &mut Session) -> ControlDecision {
        ControlDecision::Accept
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let listener = TcpListener::bind(&address).await.with_context(|| format!("cannot listen on {address}"))?;
    writeln!(std::io::stdout(), "{}", listener.local_addr()?)?;
    let clock = Clock::start();
    let settings = HubSettings {
        message_bytes_max: MESSAGE_BYTES_MAX,
        // The suite's clients read what they are sent; nothing may be discarded here.
        outbox_bytes_max: 4 * MESSAGE_BYTES_MAX,
        // An echo has no heartbeat.
        ping_interval: Duration::from_secs(24 * 3600),
        ..HubSettings::default()
    };
    let vitals = Arc::new(Vitals::new(clock));
    let hub = Hub::with_handler(settings, clock, Arc::new(Metrics::default()), vitals, Box::new(Echo));
    hub.tune(&listener);
    let tasks = TaskTracker::new();
    tasks.spawn(sweep::run(Arc::clone(&hub), Lifecycle::default()));
    loop {
        let (stream, _) = listener.accept().await?;
        let (hub, sockets) = (Arc::clone(&hub), tasks.clone());
        tasks.spawn(async move {
            if let Err(error) = serve(stream, hub, sockets).await {
                eprintln!("{error:#}");
            }
        });
    }
}

/// Answers one handshake and gives the connection to the hub.
async fn serve(stream: TcpStream, hub: Arc<Hub>, sockets: TaskTracker) -> anyhow::Result<()> {
    let (upgraded, mut upgrades) = tokio::sync::mpsc::channel(1);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let answer = match upgrade::upgrade(&mut request) {
            Ok((response, future)) => {
                // One upgrade ends a connection, so there is room for it.
                let _ = upgraded.try_send(future);
                response
            }
            Err(_) => {
                let mut refusal = Response::new(Empty::<Bytes>::new());
                *refusal.status_mut() = StatusCode::BAD_REQUEST;
                refusal
            }
        };
        async move { Ok::<_, std::convert::Infallible>(answer) }
    });
    hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await
        .context("no HTTP")?;
    let Ok(upgrade) = upgrades.try_recv() else { return Ok(()) };
    let socket = upgrade.await.context("upgrade failed")?.into_inner().into_inner();
    let parts = socket.downcast::<TokioIo<TcpStream>>().ok().context("not a TCP connection")?;
    let socket = NewSocket {
        stream: parts.io.into_inner(),
        answer: Bytes::new(),
        leftover: parts.read_buf,
        kinds: MessageKinds::ALL,
        ids: Ids::Without,
        resume: None,
        visitor: VisitorDigest([0; 16]),
        permit: None,
    };
    hub.open(socket, &sockets);
    Ok(())
}
