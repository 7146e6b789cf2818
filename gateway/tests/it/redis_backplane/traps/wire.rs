//! A way to Redis on which what is sent can be seen, held back and lost.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Bytes that are taken at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// What the wire does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// It passes everything.
    Open,
    /// Connections older than this one (they are counted) lead nowhere, and nobody is told. New ones work.
    DeadBefore(u64),
    /// Requests come late.
    SlowRequests(Duration),
    /// Answers come late.
    SlowAnswers(Duration),
    /// Who sends this word gets no answer, but a reset when it was carried out.
    ResetAfter(&'static str),
    /// What follows the first of these words on its connection waits at the second.
    HoldBehind(&'static str, &'static str),
}

/// See the module's documentation. It ends when it is dropped.
#[derive(Debug)]
pub(super) struct Wire {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    made: watch::Receiver<u64>,
    /// Requests that hold the watched word.
    seen: watch::Receiver<u64>,
    _accepting: JoinSet<()>,
}

impl Wire {
    /// A way to `server` that counts requests with this word.
    pub(super) async fn to(server: SocketAddr, word: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (mode, watched) = watch::channel(Mode::Open);
        let (made_sender, made) = watch::channel(0);
        let (seen_sender, seen) = watch::channel(0);
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let number = *made_sender.borrow();
                made_sender.send_replace(number + 1);
                let Ok(upstream) = TcpStream::connect(server).await else { continue };
                let way = Way { number, mode: watched.clone(), seen: seen_sender.clone(), word };
                connections.spawn(way.run(client, upstream));
            }
        });
        Self { address, mode, made, seen, _accepting: accepting }
    }

    pub(super) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    pub(super) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// How many connections were made so far.
    pub(super) fn made(&self) -> u64 {
        *self.made.borrow()
    }

    /// How many requests with the word have come.
    pub(super) fn seen(&self) -> watch::Receiver<u64> {
        self.seen.clone()
    }
}

#[derive(Clone)]
struct Way {
    number: u64,
    mode: watch::Receiver<Mode>,
    seen: watch::Sender<u64>,
    word: &'static str,
}

impl Way {
    async fn run(self, client: TcpStream, upstream: TcpStream) {
        let _ = (client.set_nodelay(true), upstream.set_nodelay(true));
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = upstream.into_split();
        let (doomed, doom) = watch::channel(false);
        let end = tokio::select! {
            end = self.clone().requests(from_client, to_server, doomed) => end,
            end = self.answers(from_server, &to_client, doom) => end,
        };
        if end == End::Reset {
            let _ = socket2::SockRef::from(to_client.as_ref()).set_linger(Some(Duration::ZERO));
        }
    }

    async fn requests(mut self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, doomed: watch::Sender<bool>) -> End {
        let mut chunk = vec![0; CHUNK_BYTES];
        while let Ok(read @ 1..) = from.read(&mut chunk).await {
            let text = String::from_utf8_lossy(&chunk[..read]).into_owned();
            if text.contains(self.word) {
                self.seen.send_modify(|seen| *seen += 1);
            }
            let mode = *self.mode.borrow();
            let mut kept = read;
            match mode {
                Mode::DeadBefore(first) if self.number < first => continue,
                Mode::SlowRequests(delay) => sleep(delay).await,
                Mode::ResetAfter(word) if text.contains(word) => {
                    doomed.send_replace(true);
                }
                Mode::HoldBehind(first, second) => {
                    let behind = text.find(first).and_then(|at| Some(at + text[at..].find(second)?));
                    kept = behind.or(text.contains(second).then_some(0)).unwrap_or(read);
                }
                _ => {}
            }
            if to.write_all(&chunk[..kept]).await.is_err() {
                break;
            }
            if kept < read {
                let _ = self.mode.wait_for(|now| *now != mode).await;
                if to.write_all(&chunk[kept..read]).await.is_err() {
                    break;
                }
            }
        }
        End::Closed
    }

    async fn answers(&self, mut from: OwnedReadHalf, to: &OwnedWriteHalf, doom: watch::Receiver<bool>) -> End {
        let mut chunk = vec![0; CHUNK_BYTES];
        while let Ok(read @ 1..) = from.read(&mut chunk).await {
            let mode = *self.mode.borrow();
            match mode {
                Mode::DeadBefore(first) if self.number < first => continue,
                Mode::SlowAnswers(delay) => sleep(delay).await,
                _ => {}
            }
            if *doom.borrow() {
                return End::Reset;
            }
            let mut rest = &chunk[..read];
            while !rest.is_empty() {
                if to.writable().await.is_err() {
                    return End::Closed;
                }
                match to.try_write(rest) {
                    Ok(written) => rest = &rest[written..],
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(_) => return End::Closed,
                }
            }
        }
        End::Closed
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// One side has closed.
    Closed,
    /// Its answer is not passed on.
    Reset,
}
