//! A TCP proxy that can be told to break.
//!
//! A network does worse than closing: it delays, swallows, forgets one direction, and cuts in the middle of an answer.
//! Each gateway has its own way to Redis, so one of them can be cut off while the others are not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::plan::Breakage;

/// Bytes that are taken at once.
const CHUNK_BYTES: usize = 16 * 1024;

/// What the proxy has done to its connections.
#[derive(Debug, Default)]
pub(crate) struct Harm {
    /// Connections that were reset.
    pub(crate) cut: AtomicU64,
    /// Pieces that came late, or after the breakage.
    pub(crate) held: AtomicU64,
    /// Bytes that never arrived.
    pub(crate) swallowed: AtomicU64,
    /// Answers of Redis that refuse a ticker whose lease is gone. The proxy's doing are only those that it made late.
    pub(crate) refused: AtomicU64,
}

/// How Redis refuses a ticker whose lease is gone, on the wire.
const REFUSAL: &[u8] = b"$6\r\nfenced\r\n";

/// A way to a server; it ends when it is dropped, with all connections.
#[derive(Debug)]
pub(crate) struct FaultProxy {
    /// Where to connect.
    pub(crate) address: SocketAddr,
    breakage: watch::Sender<Option<Breakage>>,
    harm: Arc<Harm>,
    snare: Arc<watch::Sender<Snare>>,
    _accepting: JoinSet<()>,
}

impl FaultProxy {
    /// A way to `server` that works.
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (breakage, watched) = watch::channel(None);
        let harm = Arc::new(Harm::default());
        let snare = Arc::new(watch::Sender::new(Snare::Open));
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, server, watched, Arc::clone(&harm), Arc::clone(&snare)));
        Self { address, breakage, harm, snare, _accepting: accepting }
    }

    /// The next request that holds this text is stopped on its way, until [`Self::open_snare`]. Others go on.
    pub(crate) fn set_snare(&self, text: &'static [u8]) {
        self.snare.send_replace(Snare::Set(text));
    }

    /// Returns when one is held.
    pub(crate) async fn caught(&self) {
        let _ = self.snare.subscribe().wait_for(|snare| *snare == Snare::Holding).await;
    }

    /// Lets go what is held, if anything is, and holds nothing from now on.
    pub(crate) fn open_snare(&self) {
        self.snare.send_replace(Snare::Open);
    }

    /// How often Redis has refused a ticker whose lease was gone.
    pub(crate) fn refused(&self) -> u64 {
        self.harm.refused.load(Ordering::Relaxed)
    }

    /// From now on it is broken like this, or works.
    pub(crate) fn set(&self, breakage: Option<Breakage>) {
        self.breakage.send_replace(breakage);
    }

    /// How often harm was done so far, of the kind that this breakage does.
    pub(crate) fn harm(&self, breakage: Breakage) -> u64 {
        let counter = match breakage {
            Breakage::Cut | Breakage::ResetMidReply => &self.harm.cut,
            Breakage::Delay(_) | Breakage::BlackHole => &self.harm.held,
            Breakage::HalfOpen => &self.harm.swallowed,
        };
        counter.load(Ordering::Relaxed)
    }
}

async fn accept(
    listener: TcpListener,
    server: SocketAddr,
    breakage: watch::Receiver<Option<Breakage>>,
    harm: Arc<Harm>,
    snare: Arc<watch::Sender<Snare>>,
) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(connect(client, server, breakage.clone(), Arc::clone(&harm), Arc::clone(&snare)));
    }
}

async fn connect(
    client: TcpStream,
    server: SocketAddr,
    mut breakage: watch::Receiver<Option<Breakage>>,
    harm: Arc<Harm>,
    snare: Arc<watch::Sender<Snare>>,
) {
    if *breakage.borrow_and_update() == Some(Breakage::Cut) {
        harm.cut.fetch_add(1, Ordering::Relaxed);
        return reset(&client);
    }
    let Ok(upstream) = TcpStream::connect(server).await else { return reset(&client) };
    // A connection that was made while others are half-open is to another machine, so to say.
    let since = breakage.borrow().filter(|now| *now == Breakage::HalfOpen);
    let _ = (client.set_nodelay(true), upstream.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = upstream.into_split();
    let way = Way { breakage, harm, snare, immune: since.is_some() };
    // What one direction ends with, ends both.
    let ended = tokio::select! {
        end = way.clone().pass(Traffic::Requests, from_client, to_server) => end,
        end = way.clone().pass(Traffic::Replies, from_server, to_client) => end,
    };
    if let (End::Reset, harm) = (ended, &way.harm) {
        harm.cut.fetch_add(1, Ordering::Relaxed);
    }
}

fn reset(stream: &TcpStream) {
    // A close that is a reset: the peer gets an error.
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// One side has closed.
    Closed,
    /// It was cut.
    Reset,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Traffic {
    Requests,
    Replies,
}

/// A trap for one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Snare {
    Open,
    /// The first request that holds this text is stopped on its way.
    Set(&'static [u8]),
    /// One is held.
    Holding,
}

fn occurrences(bytes: &[u8], text: &[u8]) -> u64 {
    bytes.windows(text.len()).filter(|window| *window == text).count() as u64
}

#[derive(Clone)]
struct Way {
    breakage: watch::Receiver<Option<Breakage>>,
    harm: Arc<Harm>,
    snare: Arc<watch::Sender<Snare>>,
    /// Half-openness does not concern it.
    immune: bool,
}

impl Way {
    /// Passes on what comes, in the state in which the way is.
    async fn pass(mut self, what: Traffic, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> End {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let read = tokio::select! {
                biased;
                () = cut(&mut self.breakage) => return self.reset(to.as_ref()),
                read = from.read(&mut chunk) => read,
            };
            let Ok(read @ 1..) = read else { return End::Closed };
            let bytes = &chunk[..read];
            match (what, self.now()) {
                (Traffic::Replies, Some(Breakage::HalfOpen)) if !self.immune => return self.forget(from, read).await,
                (Traffic::Replies, Some(Breakage::ResetMidReply)) => {
                    let _ = to.write_all(&bytes[..read / 2]).await;
                    return self.reset(to.as_ref());
                }
                (Traffic::Replies, _) => {
                    self.harm.refused.fetch_add(occurrences(bytes, REFUSAL), Ordering::Relaxed);
                    self.hold().await;
                }
                (Traffic::Requests, _) => {
                    self.fall_into_snare(bytes).await;
                    self.hold().await;
                }
            }
            if to.write_all(bytes).await.is_err() {
                return End::Closed;
            }
        }
    }

    /// Waits, if these bytes are what a snare was set for, until it is opened.
    async fn fall_into_snare(&self, bytes: &[u8]) {
        let caught = self.snare.send_if_modified(|snare| match snare {
            Snare::Set(text) if occurrences(bytes, text) > 0 => {
                *snare = Snare::Holding;
                true
            }
            _ => false,
        });
        if caught {
            let _ = self.snare.subscribe().wait_for(|snare| *snare != Snare::Holding).await;
        }
    }

    fn now(&self) -> Option<Breakage> {
        *self.breakage.borrow()
    }

    /// Waits as long as the way is broken so that things come late.
    async fn hold(&mut self) {
        match self.now() {
            Some(Breakage::Delay(delay)) => {
                self.harm.held.fetch_add(1, Ordering::Relaxed);
                sleep(delay).await;
            }
            Some(Breakage::BlackHole) => {
                self.harm.held.fetch_add(1, Ordering::Relaxed);
                let _ = self.breakage.wait_for(|breakage| *breakage != Some(Breakage::BlackHole)).await;
            }
            _ => {}
        }
    }

    /// Takes what the server sends and gives it to nobody, for ever.
    async fn forget(&self, mut from: OwnedReadHalf, read: usize) -> End {
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut read = read;
        loop {
            self.harm.swallowed.fetch_add(u64::try_from(read).expect("a length"), Ordering::Relaxed);
            match from.read(&mut chunk).await {
                Ok(more @ 1..) => read = more,
                // The server gives up; the client is not told.
                _ => std::future::pending::<()>().await,
            }
        }
    }

    fn reset(&self, stream: &TcpStream) -> End {
        reset(stream);
        End::Reset
    }
}

/// Returns when connections are cut.
async fn cut(breakage: &mut watch::Receiver<Option<Breakage>>) {
    if breakage.wait_for(|breakage| *breakage == Some(Breakage::Cut)).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::support::redis_server::{Durability, Options, RedisServer};
    use crate::support::resp::{Reply, Resp};

    async fn proxied() -> (RedisServer, FaultProxy, Resp) {
        let redis = RedisServer::with(Options { durability: Durability::Nothing, ..Options::default() });
        let proxy = FaultProxy::to(redis.address()).await;
        let resp = Resp::try_at(proxy.address).await.expect("the proxy listens");
        (redis, proxy, resp)
    }

    async fn count(resp: &mut Resp) -> Option<Reply> {
        timeout(Duration::from_millis(300), resp.ask(&[b"INCR", b"n"])).await.ok()?.ok()
    }

    async fn stored(redis: &RedisServer) -> String {
        Resp::to(redis).await.call(&["GET", "n"]).await.text().to_owned()
    }

    #[tokio::test]
    async fn it_passes_delays_and_cuts() {
        let (_redis, proxy, mut resp) = proxied().await;
        assert_eq!(count(&mut resp).await, Some(Reply::Number(1)));
        let delay = Breakage::Delay(Duration::from_millis(40));
        proxy.set(Some(delay));
        let asked = Instant::now();
        assert_eq!(count(&mut resp).await, Some(Reply::Number(2)));
        assert!(asked.elapsed() >= Duration::from_millis(80) && proxy.harm(delay) == 2);
        proxy.set(Some(Breakage::Cut));
        assert!(resp.ask(&[b"INCR", b"n"]).await.is_err());
        let mut another = Resp::try_at(proxy.address).await.expect("the proxy listens");
        assert!(another.ask(&[b"INCR", b"n"]).await.is_err());
        assert_eq!(proxy.harm(Breakage::Cut), 2);
        proxy.set(None);
        let mut another = Resp::try_at(proxy.address).await.expect("the proxy listens");
        assert_eq!(count(&mut another).await, Some(Reply::Number(3)));
    }

    #[tokio::test]
    async fn a_black_hole_gives_back_late_what_a_half_open_way_never_does() {
        let (redis, proxy, mut resp) = proxied().await;
        proxy.set(Some(Breakage::BlackHole));
        assert_eq!(count(&mut resp).await, None);
        proxy.set(None);
        // The request that nobody waits for any more was carried out, late.
        assert_eq!(resp.ask(&[b"INCR", b"n"]).await.expect("open"), Reply::Number(1));

        let mut resp = Resp::try_at(proxy.address).await.expect("the proxy listens");
        assert_eq!(count(&mut resp).await, Some(Reply::Number(3)));
        proxy.set(Some(Breakage::HalfOpen));
        assert_eq!(count(&mut resp).await, None);
        assert_eq!(stored(&redis).await, "4", "it was carried out");
        let mut another = Resp::try_at(proxy.address).await.expect("the proxy listens");
        assert_eq!(count(&mut another).await, Some(Reply::Number(5)), "who comes anew is served");
        proxy.set(None);
        assert_eq!(count(&mut resp).await, None, "for ever");
        assert!(proxy.harm(Breakage::HalfOpen) > 0);
    }

    #[tokio::test]
    async fn a_snare_holds_one_request_and_lets_others_go() {
        let (redis, proxy, mut resp) = proxied().await;
        proxy.set_snare(b"INCR");
        assert_eq!(count(&mut resp).await, None);
        timeout(Duration::from_secs(5), proxy.caught()).await.expect("it is held");
        let mut another = Resp::try_at(proxy.address).await.expect("the proxy listens");
        assert_eq!(count(&mut another).await, Some(Reply::Number(1)));
        assert_eq!(stored(&redis).await, "1");
        proxy.open_snare();
        assert_eq!(resp.ask(&[b"INCR", b"n"]).await.expect("open"), Reply::Number(2), "what was held went on");
        let script = "return {'fenced'}";
        let _ = another.ask(&[b"EVAL", script.as_bytes(), b"0"]).await.expect("open");
        assert_eq!(proxy.refused(), 1);
    }

    #[tokio::test]
    async fn an_answer_breaks_off_in_its_middle() {
        let (redis, proxy, mut resp) = proxied().await;
        proxy.set(Some(Breakage::ResetMidReply));
        assert!(resp.ask(&[b"INCR", b"n"]).await.is_err());
        assert_eq!((stored(&redis).await.as_str(), proxy.harm(Breakage::ResetMidReply)), ("1", 1));
    }
}
