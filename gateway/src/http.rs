//! HTTP: what comes in before it is a WebSocket, and what never becomes one.
//!
//! Two listeners share one way of accepting ([`accept`]) and of serving a connection ([`connection`]); the request for
//! a WebSocket, if it is the first of its connection, has a shorter one ([`first`]). The public one
//! has the WebSocket endpoint, the ingest path, the snapshot and the live page; the internal one has metrics and
//! probes ([`probes`]) and belongs on an address that only the operator reaches.
//!
//! A connection's task ends in one of three ways: HTTP is over; something is wrong with it (counted by a closed set
//! of reasons); or it became a WebSocket, and then the socket goes to the hub, which gives it a small task of its own,
//! while everything that HTTP needed is freed. A panic ends its own connection and is counted (Inv. ISOLATION).
//!
//! Deliberately absent: TLS, HTTP/2 and compression, which the balancer in front does better; and a router, which four
//! paths do not need.

mod accept;
mod body;
pub mod client_address;
mod connection;
mod events;
mod first;
mod gate;
mod linger;
mod origin;
mod page;
mod probes;
pub mod proxy_protocol;
mod refusal;
mod response;
mod stats;
#[cfg(test)]
mod tests;
mod upgrade;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::http::header::{ALLOW, HeaderValue};
use ::http::{Method, Request, StatusCode, Version};
use bytes::Bytes;
use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

pub use self::accept::listen;
use self::client_address::{TrustedProxies, client_address};
use self::connection::Limits;
use self::gate::{Gate, Pass, Peer};
use self::origin::Origins;
pub use self::probes::Internal;
use self::refusal::Refusal;
use self::response::Answer;
use self::upgrade::First;
use crate::admission::Admission;
use crate::config::{AllowedOrigins, ProxyProtocol, Secret};
use crate::hub::Hub;
use crate::identity::normalise;
use crate::lifecycle::{Lifecycle, Phase};
use crate::metrics::{Connect, Metrics};
use crate::presence::Presence;
use crate::publisher::Publisher;

/// Connections of the internal listener: a few probes and scrapers.
const INTERNAL_CONNECTIONS_MAX: usize = 256;
/// The least time that is left for a head whose beginning came late.
const HEAD_TIME_LEFT_MIN: Duration = Duration::from_millis(100);

/// How the public listener behaves.
#[derive(Debug, Clone)]
pub struct HttpSettings {
    /// Which origins a browser may connect from, beside the gateway's own.
    pub origins: AllowedOrigins,
    /// Whose `X-Forwarded-For` or PROXY header is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether connections of trusted proxies begin with a PROXY header.
    pub proxy_protocol: ProxyProtocol,
    /// Who may bring events; nobody when empty.
    pub ingest_tokens: Vec<Secret>,
    /// The most connections that are not WebSockets (yet).
    pub pending_max: usize,
    /// The most of them and the sockets together: what there are descriptors for.
    pub connections_max: usize,
    /// The most of those from one peer, or of one client that a PROXY header names; trusted proxies have no such limit.
    pub pending_per_peer_max: usize,
    /// How long a PROXY header, a request's head, and the pause between two requests may take.
    pub head_time_max: Duration,
    /// How long a request's body may take.
    pub body_time_max: Duration,
    /// How long a connection may stay that is not a WebSocket.
    pub life_max: Duration,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            origins: AllowedOrigins::Only(["http://localhost:3000".to_owned()].into()),
            trusted_proxies: Vec::new(),
            proxy_protocol: ProxyProtocol::Off,
            ingest_tokens: Vec::new(),
            // At 27 KB each about 110 MB when all places are taken.
            pending_max: 4096,
            connections_max: usize::MAX,
            // A page loads its three files over six connections; a household has a few browsers.
            pending_per_peer_max: 64,
            head_time_max: Duration::from_secs(5),
            body_time_max: Duration::from_secs(10),
            life_max: Duration::from_secs(60),
        }
    }
}

/// What the public listener needs.
#[derive(Debug)]
pub struct Public {
    /// How it behaves.
    pub settings: HttpSettings,
    /// Who may open a socket.
    pub admission: Arc<Admission>,
    /// Takes the sockets.
    pub hub: Arc<Hub>,
    /// Takes the events.
    pub publisher: Publisher,
    /// Is told of each visitor who comes.
    pub presence: Arc<Presence>,
    /// Where the process is in its life.
    pub lifecycle: Lifecycle,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Owns the connections' tasks.
    pub tasks: TaskTracker,
}

/// The public listener while it runs: settings in the form in which they are used.
#[derive(Debug)]
struct Server {
    public: Arc<Public>,
    origins: Origins,
    trusted: TrustedProxies,
    tokens: events::Tokens,
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy)]
enum Client {
    /// Told by a PROXY header, or by the connection itself where no header is believed.
    Known(IpAddr),
    /// The peer, unless it is a trusted proxy and says otherwise in each request.
    Behind(IpAddr),
}

/// Accepts connections until [`Phase::Closing`], then closes the listener and returns; connections that are open go
/// on in their tasks.
pub async fn serve_public(listener: TcpListener, public: Arc<Public>) {
    let settings = &public.settings;
    let server = Arc::new(Server {
        origins: Origins::new(&settings.origins),
        trusted: TrustedProxies::new(settings.trusted_proxies.clone()),
        tokens: events::Tokens::new(&settings.ingest_tokens),
        public: Arc::clone(&public),
    });
    public.hub.tune(&listener);
    let gate = Gate::new(settings.pending_max, settings.pending_per_peer_max);
    let (metrics, lifecycle) = (&public.metrics, &public.lifecycle);
    accept::accept_until(
        listener,
        lifecycle.reached(Phase::Closing),
        metrics,
        || gate.room(),
        |stream, peer| {
            let peer_ip = normalise(peer.ip());
            let peer = if server.trusted.contains(peer_ip) { Peer::Exempt } else { Peer::Anybody(peer_ip) };
            // Inv. BOUND: without a place the connection is dropped here.
            let room = settings.connections_max.saturating_sub(public.admission.sockets());
            match gate.enter(peer, room) {
                Ok(pass) => {
                    spawn(&public.tasks, &public.metrics, public_connection(Arc::clone(&server), stream, peer_ip, pass))
                }
                Err(reason) => metrics.connects_failed.inc(reason),
            }
        },
    )
    .await;
}

/// Serves metrics and probes until [`Phase::Stopped`]: they are of most use while the node goes down.
pub async fn serve_internal(listener: TcpListener, internal: Arc<Internal>) {
    let gate = Gate::new(INTERNAL_CONNECTIONS_MAX, INTERNAL_CONNECTIONS_MAX);
    let rendered = Arc::new(probes::Rendered::default());
    let lifecycle = internal.lifecycle.clone();
    accept::accept_until(
        listener,
        lifecycle.reached(Phase::Stopped),
        &internal.metrics,
        || gate.room(),
        |stream, _| match gate.enter(Peer::Exempt, usize::MAX) {
            Ok(pass) => {
                let connection = internal_connection(Arc::clone(&internal), Arc::clone(&rendered), stream, pass);
                spawn(&internal.tasks, &internal.metrics, connection);
            }
            Err(reason) => internal.metrics.connects_failed.inc(reason),
        },
    )
    .await;
}

/// Runs a connection in a task of its own and counts what was wrong with it.
// Inv. ISOLATION: a panic ends this connection alone.
fn spawn(
    tasks: &TaskTracker,
    metrics: &Arc<Metrics>,
    connection: impl Future<Output = Result<(), Connect>> + Send + 'static,
) {
    let metrics = Arc::clone(metrics);
    // Boxed before it is wrapped: each wrapper would copy its two kilobytes once more.
    let connection = Box::pin(connection);
    tasks.spawn(async move {
        // What a panic leaves behind is dropped with the future; what is shared has locks that do not poison.
        let ended = AssertUnwindSafe(connection).catch_unwind().await.unwrap_or_else(|_| {
            tracing::error!("a connection's task panicked");
            Err(Connect::Panic)
        });
        if let Err(reason) = ended {
            metrics.connects_failed.inc(reason);
        }
    });
}

/// A connection of the public listener, until it ends or is handed over.
async fn public_connection(
    server: Arc<Server>,
    mut stream: TcpStream,
    peer: IpAddr,
    mut pass: Pass,
) -> Result<(), Connect> {
    let settings = &server.public.settings;
    let client = match settings.proxy_protocol {
        ProxyProtocol::Off => Client::Behind(peer),
        ProxyProtocol::On => match read_proxy_header(&server, &mut stream, peer).await? {
            Some(client) => {
                if !server.trusted.contains(client) {
                    pass.charge(client)?;
                }
                Client::Known(client)
            }
            None => return Ok(()),
        },
    };
    let began = Instant::now();
    let Some(bytes) = first::read(&mut stream, settings.head_time_max, &server.public.lifecycle).await? else {
        return Ok(());
    };
    let mut refused = None;
    if let Some((request, leftover)) = first::parse(&bytes) {
        let client = client.of(&server.trusted, &request);
        match upgrade::open_directly(&server, stream, request, leftover, client).await {
            First::Done => return Ok(()),
            First::Left(left, refusal) => (stream, refused) = (left, refusal),
        }
    }
    // What the client took to begin is part of the time that it has for its head.
    let head_time_max = settings.head_time_max.saturating_sub(began.elapsed()).max(HEAD_TIME_LEFT_MIN);
    let limits = Limits { head_time_max, life_max: settings.life_max };
    // Boxed: nearly no connection comes here, and all would carry its size.
    Box::pin(serve_http(server, (stream, bytes), client, refused, limits, pass)).await
}

/// A connection that did not become a WebSocket by its first request. `refused`: what that request is to be told.
async fn serve_http(
    server: Arc<Server>,
    (stream, first): (TcpStream, Bytes),
    client: Client,
    refused: Option<Refusal>,
    limits: Limits,
    pass: Pass,
) -> Result<(), Connect> {
    let (refused, upgrade) = (Mutex::new(refused), Mutex::new(None));
    let service = service_fn(|request| {
        let (server, refused, upgrade) = (&server, &refused, &upgrade);
        async move {
            let decided = refused.lock().take();
            Ok::<_, Infallible>(match decided {
                Some(refusal) => refusal.answer(),
                None => route(server, client, upgrade, request).await,
            })
        }
    });
    let ended =
        connection::serve(stream, first, service, limits, server.public.lifecycle.reached(Phase::Closing)).await;
    // From here on the connection falls under admission, or is over.
    drop(pass);
    if let Some(upgrade) = upgrade.into_inner() {
        let upgrade: upgrade::Upgrade = upgrade;
        if ended.is_ok() {
            upgrade.finish(&server).await;
        }
    }
    ended
}

/// The client according to the PROXY header, which only trusted proxies may and must send. None when the connection
/// ended instead, as those of balancers do that only see whether somebody listens.
async fn read_proxy_header(server: &Server, stream: &mut TcpStream, peer: IpAddr) -> Result<Option<IpAddr>, Connect> {
    if !server.trusted.contains(peer) {
        return Err(Connect::ProxyHeader);
    }
    match tokio::time::timeout(server.public.settings.head_time_max, proxy_protocol::read(stream)).await {
        Ok(Ok(client)) => Ok(Some(client.map_or(peer, normalise))),
        Ok(Err(error)) if error.kind() != io::ErrorKind::InvalidData => Ok(None),
        Ok(Err(_)) => Err(Connect::ProxyHeader),
        Err(_) => Err(Connect::Slow),
    }
}

/// Answers a request to the public listener. An upgrade that was granted is left in `granted`, to be finished when the
/// connection is no longer HTTP.
async fn route(
    server: &Server,
    client: Client,
    granted: &Mutex<Option<upgrade::Upgrade>>,
    mut request: Request<Incoming>,
) -> Answer {
    let path = request.uri().path();
    if path == upgrade::PATH {
        let client = client.of(&server.trusted, &request);
        return match upgrade::handle(server, &mut request, client).await {
            Ok((answer, upgrade)) => {
                *granted.lock() = Some(upgrade);
                answer
            }
            Err(refusal) => refusal,
        };
    }
    if request.version() == Version::HTTP_11 && !upgrade::has_one_host(request.headers()) {
        return Refusal::Host.answer();
    }
    if path == "/api/v1/events" {
        return events::handle(server, request).await;
    }
    let answer = match path {
        "/api/v1/stats" => Some(stats::answer(server.public.hub.state(), request.headers(), &server.origins)),
        _ => page::answer(path, request.headers()),
    };
    match answer {
        None => not_found(),
        Some(_) if !is_read(request.method()) => only_reads(),
        Some(answer) => answer,
    }
}

impl Client {
    fn of<B>(self, trusted: &TrustedProxies, request: &Request<B>) -> IpAddr {
        match self {
            Self::Known(client) => client,
            Self::Behind(peer) => {
                let lines = request.headers().get_all("x-forwarded-for").iter();
                client_address(peer, trusted, lines.map(HeaderValue::as_bytes))
            }
        }
    }
}

/// A connection of the internal listener.
async fn internal_connection(
    internal: Arc<Internal>,
    rendered: Arc<probes::Rendered>,
    stream: TcpStream,
    _pass: Pass,
) -> Result<(), Connect> {
    let HttpSettings { head_time_max, life_max, .. } = HttpSettings::default();
    let service = service_fn(|request| {
        let answer = probes::answer(&internal, &rendered, &request);
        async move { Ok::<_, Infallible>(answer) }
    });
    let end = internal.lifecycle.reached(Phase::Stopped);
    connection::serve(stream, Bytes::new(), service, Limits { head_time_max, life_max }, end).await
}

/// Whether the method only reads; hyper sends no body in answer to HEAD.
fn is_read(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

fn not_found() -> Answer {
    response::text(StatusCode::NOT_FOUND, "not found")
}

fn only_reads() -> Answer {
    let mut answer = response::text(StatusCode::METHOD_NOT_ALLOWED, "use GET");
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    answer
}
