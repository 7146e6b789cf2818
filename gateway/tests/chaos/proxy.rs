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
}

/// A way to a server; it ends when it is dropped, with all connections.
#[derive(Debug)]
pub(crate) struct FaultProxy {
    /// Where to connect.
    pub(crate) address: SocketAddr,
    breakage: watch::Sender<Option<Breakage>>,
    harm: Arc<Harm>,
    _accepting: JoinSet<()>,
}

impl FaultProxy {
    /// A way to `server` that works.
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (breakage, watched) = watch::channel(None);
        let harm = Arc::new(Harm::default());
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, server, watched, Arc::clone(&harm)));
        Self { address, breakage, harm, _accepting: accepting }
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
) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(connect(client, server, breakage.clone(), Arc::clone(&harm)));
    }
}

async fn connect(
    client: TcpStream,
    server: SocketAddr,
    mut breakage: watch::Receiver<Option<Breakage>>,
    harm: Arc<Harm>,
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
    let way = Way { breakage, harm, immune: since.is_some() };
    // What one direction ends with, ends both.
    let ended = tokio::select! {
        end = way.clone().requests(from_client, to_server) => end,
        end = way.clone().replies(from_server, to_client) => end,
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

#[derive(Clone)]
struct Way {
    breakage: watch::Receiver<Option<Breakage>>,
    harm: Arc<Harm>,
    /// Half-openness does not concern it.
    immune: bool,
}

impl Way {
    async fn requests(mut self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> End {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let read = tokio::select! {
                biased;
                () = cut(&mut self.breakage) => return self.reset(to.as_ref()),
                read = from.read(&mut chunk) => read,
            };
            let Ok(read @ 1..) = read else { return End::Closed };
            self.hold().await;
            if to.write_all(&chunk[..read]).await.is_err() {
                return End::Closed;
            }
        }
    }

    async fn replies(mut self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> End {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let read = tokio::select! {
                biased;
                () = cut(&mut self.breakage) => return self.reset(to.as_ref()),
                read = from.read(&mut chunk) => read,
            };
            let Ok(read @ 1..) = read else { return End::Closed };
            match self.now() {
                Some(Breakage::HalfOpen) if !self.immune => return self.forget(from, read).await,
                Some(Breakage::ResetMidReply) => {
                    let _ = to.write_all(&chunk[..read / 2]).await;
                    return self.reset(to.as_ref());
                }
                _ => self.hold().await,
            }
            if to.write_all(&chunk[..read]).await.is_err() {
                return End::Closed;
            }
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
    async fn an_answer_breaks_off_in_its_middle() {
        let (redis, proxy, mut resp) = proxied().await;
        proxy.set(Some(Breakage::ResetMidReply));
        assert!(resp.ask(&[b"INCR", b"n"]).await.is_err());
        assert_eq!((stored(&redis).await.as_str(), proxy.harm(Breakage::ResetMidReply)), ("1", 1));
    }
}
