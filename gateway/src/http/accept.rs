//! Listening and accepting, for as long as the process wants to.
//!
//! An accept loop that ends at its first error is an outage that health checks do not see; one that tries again at
//! once spins while descriptors are short. So errors of the *connection* (it was reset before it was accepted) go on
//! with the next one, and all others pause for [`PAUSE`], which leaves time for sockets to end. Either is counted.

//!
//! In a crowd ([`Crowd`]) the loop looks at the queue once a millisecond and takes all that stand there. Taken one by one
//! as they come, each client would wake this process twice, for its connection and for its request, and to wake costs
//! more than to accept; taken together, their requests have come as well. A lone client is accepted at once.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::metrics::{Connect, Metrics};

/// Connections that the kernel has completed and that wait to be accepted: a reconnect storm of a whole node's
/// clients comes within seconds. The kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 8192;
/// How long to wait when accepting fails for want of something.
const PAUSE: Duration = Duration::from_millis(100);

/// In a crowd, how long those who come are left to gather in the queue.
const GATHERED_FOR: Duration = Duration::from_millis(1);

/// Whether clients come faster than one per millisecond.
#[derive(Debug)]
struct Crowd {
    since: Instant,
    count: u32,
}

impl Crowd {
    /// So many within [`Self::WINDOW`] are a crowd.
    const COUNT: u32 = 8;
    const WINDOW: Duration = Duration::from_millis(8);

    fn new(now: Instant) -> Self {
        Self { since: now, count: 0 }
    }

    /// Somebody came.
    fn came(&mut self, now: Instant) {
        if now.duration_since(self.since) > Self::WINDOW {
            *self = Self::new(now);
        }
        self.count = self.count.saturating_add(1);
    }

    fn is_here(&self, now: Instant) -> bool {
        self.count >= Self::COUNT && now.duration_since(self.since) <= Self::WINDOW
    }
}

/// A listening socket. An IPv6 wildcard (`[::]`) takes IPv4 as well.
///
/// # Errors
/// What the system says: the address is taken, or not allowed.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restarted process must not wait for the connections of the former one to be forgotten.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Where connections come from; a trait so that its failures can be tested.
pub(super) trait Accept: Send {
    /// The next connection.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>>;
}

impl Accept for TcpListener {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        Self::poll_accept(self, cx)
    }
}

/// Gives each connection to `handle`, until `end`; before each it waits for `room`. Takes the listener with it: when
/// this returns, it is closed.
pub(super) async fn accept_until<R: Future<Output = ()> + Send>(
    mut listener: impl Accept,
    end: impl Future<Output = ()> + Send,
    metrics: &Metrics,
    room: impl Fn() -> R + Send,
    mut handle: impl FnMut(TcpStream, SocketAddr) + Send,
) {
    let mut end = pin!(end);
    let mut failures: u64 = 0;
    let mut crowd = Crowd::new(Instant::now());
    loop {
        // Biased: an end comes before work. Both arms are cancel safe: a connection is taken only when it is returned.
        let accepting = async {
            room().await;
            let waiting = std::future::poll_fn(|cx| Poll::Ready(listener.poll_accept(cx))).await;
            if let Poll::Ready(accepted) = waiting {
                return accepted;
            }
            if crowd.is_here(Instant::now()) {
                tokio::time::sleep(GATHERED_FOR).await;
            }
            std::future::poll_fn(|cx| listener.poll_accept(cx)).await
        };
        let accepted = tokio::select! {
            biased;
            () = &mut end => return,
            accepted = accepting => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                if failures > 0 {
                    tracing::info!(failures, "accepting again");
                    failures = 0;
                }
                crowd.came(Instant::now());
                handle(stream, peer);
            }
            Err(error) => {
                metrics.connects_failed.inc(Connect::AcceptFailed);
                if !is_of_one_connection(&error) {
                    // Once per run of failures: ten lines a second would tell no more.
                    if failures == 0 {
                        tracing::warn!(%error, "accept failed, pausing");
                    }
                    failures += 1;
                    tokio::select! {
                        biased;
                        () = &mut end => return,
                        () = tokio::time::sleep(PAUSE) => {}
                    }
                }
            }
        }
    }
}

/// Whether the error says something about the connection that was to be accepted, and nothing about the next one.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// Fails as told, and then has nothing more.
    struct Failing {
        errors: VecDeque<io::Error>,
        at: Vec<tokio::time::Instant>,
        done: Option<tokio::sync::oneshot::Sender<Vec<tokio::time::Instant>>>,
    }

    impl Accept for Failing {
        fn poll_accept(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
            self.at.push(tokio::time::Instant::now());
            let Some(error) = self.errors.pop_front() else {
                if let Some(done) = self.done.take() {
                    let _ = done.send(std::mem::take(&mut self.at));
                }
                return Poll::Pending;
            };
            Poll::Ready(Err(error))
        }
    }

    #[test]
    fn a_crowd_is_one_client_per_millisecond() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut crowd = Crowd::new(start);
        (1..8).for_each(|n| crowd.came(at(n)));
        assert!(!crowd.is_here(at(8)));
        crowd.came(at(8));
        assert!(crowd.is_here(at(8)));
        assert!(!crowd.is_here(at(9)), "they may have been the last");
        (0..100).for_each(|n| crowd.came(at(20 + 2 * n)));
        assert!(!crowd.is_here(at(220)), "a steady trickle is none");
    }

    // EMFILE, ENFILE, ENOBUFS and ENOMEM wait; ECONNABORTED does not; nothing ends the loop.
    #[tokio::test(start_paused = true)]
    async fn errors_pause_the_loop_and_never_end_it() {
        let codes = [24, 24, 103, 23, 105, 104, 12];
        let errors = codes.iter().map(|code| io::Error::from_raw_os_error(*code)).collect();
        let (done, seen) = tokio::sync::oneshot::channel();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let metrics = Metrics::default();
        let listener = Failing { errors, at: Vec::new(), done: Some(done) };
        let ended = async { ended.await.expect("sent") };
        let accepting = accept_until(listener, ended, &metrics, || async {}, |_, _| unreachable!("no connection came"));
        let driving = async {
            let at = seen.await.expect("all errors were met");
            let pauses: Vec<u128> = at.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
            assert_eq!(pauses, [100, 100, 0, 100, 100, 0, 100]);
            end.send(()).expect("still accepting");
        };
        tokio::join!(accepting, driving);
        assert_eq!(metrics.connects_failed.value(Connect::AcceptFailed), 7);
    }

    #[tokio::test]
    async fn a_wildcard_of_ipv6_takes_ipv4_and_the_end_closes_the_listener() {
        // A machine without IPv6 cannot be asked.
        let Ok(listener) = listen("[::]:0".parse().expect("an address")) else { return };
        let port = listener.local_addr().expect("bound").port();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let mut end = Some(end);
        let metrics = Metrics::default();
        let ended = async { ended.await.expect("sent") };
        let accepting = accept_until(
            listener,
            ended,
            &metrics,
            || async {},
            |_, peer| {
                assert_eq!(peer.ip().to_canonical(), std::net::Ipv4Addr::LOCALHOST);
                let _ = end.take().map(|end| end.send(()));
            },
        );
        let (_, connected) = tokio::join!(accepting, TcpStream::connect(("127.0.0.1", port)));
        assert!(connected.is_ok());
        assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err(), "closed");
    }
}
