//! What most people would write: tokio-tungstenite, a task per socket, a broadcast channel.
//!
//! Written as its documentation's examples are, and not worse: text that all share, no copy per socket.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::{announce, event, init, metrics, order};
use crate::args::ServeArgs;

/// What a slow socket may miss nothing of.
const CHANNEL_MESSAGES: usize = 1024;
/// What is read of a request before it is known to be one for metrics.
const PEEK_BYTES: usize = 12;

/// Serves until the first control connection ends.
pub(super) fn serve(args: &ServeArgs) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(args.listen, args.events_per_second))
}

async fn run(listen: SocketAddr, per_second: f64) -> io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    let control = TcpListener::bind("127.0.0.1:0").await?;
    announce(listener.local_addr()?, control.local_addr()?)?;
    let (events, _) = broadcast::channel(CHANNEL_MESSAGES);
    let sent = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    let mut own =
        tokio::time::interval(Duration::from_secs_f64(if per_second > 0.0 { 1.0 / per_second } else { 3600.0 }));
    let (mut ends, mut number) = (JoinSet::new(), 0u64);
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                stream.set_nodelay(true)?;
                tasks.spawn(socket(stream, events.subscribe(), sent.clone()));
            }
            accepted = control.accept() => {
                ends.spawn(obey(accepted?.0, events.clone()));
            }
            Some(_) = tasks.join_next() => {}
            Some(_) = ends.join_next() => {
                if ends.is_empty() {
                    return Ok(());
                }
            }
            _ = own.tick(), if per_second > 0.0 => {
                number += 1;
                // Nobody listens yet.
                let _ = events.send(Utf8Bytes::from(event(number)));
            }
        }
    }
}

/// Does what a control connection orders, until it ends.
async fn obey(stream: TcpStream, events: broadcast::Sender<Utf8Bytes>) {
    let mut lines = BufReader::new(stream).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let Some((first, count)) = order(&line) else { continue };
        for number in first..first.saturating_add(count) {
            // Nobody listens yet.
            let _ = events.send(Utf8Bytes::from(event(number)));
        }
    }
}

/// One client; whatever goes wrong ends it, and the tester sees it on its side.
async fn socket(mut stream: TcpStream, mut events: broadcast::Receiver<Utf8Bytes>, sent: Arc<AtomicU64>) {
    let mut begin = [0; PEEK_BYTES];
    if stream.peek(&mut begin).await.is_ok() && begin.starts_with(b"GET /metrics") {
        let page = metrics(sent.load(Ordering::Relaxed), 0, Duration::ZERO);
        let _ = stream.write_all(page.as_bytes()).await;
        return;
    }
    let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
    let mut next = Some(Utf8Bytes::from(init()));
    loop {
        if let Some(text) = next.take() {
            if socket.send(Message::Text(text)).await.is_err() {
                return;
            }
            sent.fetch_add(1, Ordering::Relaxed);
        }
        tokio::select! {
            event = events.recv() => match event {
                Ok(text) => next = Some(text),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            },
            message = socket.next() => match message {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            },
        }
    }
}
