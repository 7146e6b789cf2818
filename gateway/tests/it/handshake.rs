//! Clients that go away during the handshake, at every step of it: what they had taken is given back.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::client::{Client, Upgrade, connect};
use crate::support::frame::{Frame, TEXT};
use crate::support::gateway::{Gateway, Setup};
use crate::support::http;
use crate::support::redis_server::RedisServer;
use crate::support::wait::{SOON, until};

/// How many sockets one address may have; more than are rude at a time.
const CAP: usize = 10;
/// Un-upgraded connections that one address may have.
const PENDING: usize = 64;

/// How a rude client leaves.
#[derive(Debug, Clone, Copy)]
enum Leave {
    /// As if it had crashed: the server gets an error.
    Reset,
    /// The server gets an end.
    Close,
}

/// Sends `bytes`, if any, and goes.
async fn be_rude(to: SocketAddr, bytes: &[u8], leave: Leave) {
    let mut stream = connect(to).await.expect("accepted");
    // A server that knows already that nothing will come of this may have closed.
    let _ = stream.write_all(bytes).await;
    go(stream, leave);
}

fn go(stream: TcpStream, leave: Leave) {
    if let Leave::Reset = leave {
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a TCP socket has a linger time");
    }
    drop(stream);
}

/// All places are free: those of sockets, and those of connections that are none.
async fn assert_nothing_is_taken(gateway: &mut Gateway) {
    gateway.until_metric_is("websocket_connections_active", 0).await;
    let silent = until("places for connections", SOON, async || {
        let mut silent = Vec::new();
        for _ in 0..PENDING {
            silent.push(connect(gateway.public).await.ok()?);
        }
        // One more would be dropped, so what is asked shares a place with none of them.
        drop(silent.pop());
        http::try_get(gateway.public, "/api/v1/stats").await.map(|answer| assert_eq!(answer.status(), 200))?;
        for stream in &silent {
            // Those that were dropped have ended.
            (stream.try_read(&mut [0]).err()?.kind() == std::io::ErrorKind::WouldBlock).then_some(())?;
        }
        Some(silent)
    })
    .await;
    drop(silent);
    let mut open = Vec::new();
    for _ in 0..CAP {
        let opened = until("a place for a socket", SOON, async || Upgrade::new().try_open(gateway.public).await.ok());
        open.push(opened.await);
    }
    let eleventh = Upgrade::new().try_open(gateway.public).await.expect_err("the address has all that it may");
    assert_eq!(eleventh.status(), Some(429));
    for client in open {
        assert_eq!(client.close().await, 1000);
    }
    gateway.assert_alive();
    assert!(!gateway.log().contains("ERROR"), "{}", gateway.log());
}

fn capped(setup: Setup) -> Setup {
    setup.brisk().with("GATEWAY_HANDSHAKES_PER_SECOND_PER_IP", "0")
}

// Inv. CAP: whenever a client goes, its place comes back.
// Inv. BOUND: and so does what it had taken of those for connections.
#[tokio::test]
async fn clients_that_go_during_the_handshake_leave_nothing_behind() {
    let redis = RedisServer::start();
    let request = Upgrade::new().bytes();
    let with_frame = [&request[..], &Frame::of(TEXT, br#"{"type":"hello"}"#).bytes()].concat();
    let refused = Upgrade::query("ids=2").bytes();
    let through_hyper = [b"\r\n", &request[..]].concat();
    let steps: [&[u8]; 6] = [b"", &request[..40], &request[..request.len() - 1], &refused, &with_frame, &through_hyper];
    for setup in [capped(Setup::embedded()), capped(Setup::on(&redis))] {
        let mut gateway = setup.ready().await;
        for _ in 0..20 {
            for bytes in steps.iter().chain([&&request[..]]) {
                for leave in [Leave::Reset, Leave::Close] {
                    be_rude(gateway.public, bytes, leave).await;
                }
            }
        }
        assert_nothing_is_taken(&mut gateway).await;
    }
}

// Inv. CAP: nor does it matter that the backplane had been asked, and what it says when it is back.
#[tokio::test]
async fn clients_that_go_while_redis_is_silent_leave_nothing_behind() {
    let redis = RedisServer::start();
    let mut gateway = capped(Setup::on(&redis)).ready().await;
    let first = Client::open(gateway.public).await;
    let request = Upgrade::new().bytes();
    let through_hyper = [b"\r\n", &request[..]].concat();
    redis.freeze();
    let mut waiting = Vec::new();
    for bytes in [&request, &through_hyper, &request, &through_hyper] {
        let mut stream = connect(gateway.public).await.expect("accepted");
        stream.write_all(bytes).await.expect("taken");
        waiting.push(stream);
    }
    for (stream, leave) in waiting.into_iter().zip([Leave::Reset, Leave::Reset, Leave::Close, Leave::Close]) {
        go(stream, leave);
    }
    let settled = async |gateway: &Gateway| {
        let mut settled = 0;
        for outcome in ["accepted", "abandoned"] {
            settled += gateway.metric(&format!(r#"gateway_handshakes_total{{outcome="{outcome}"}}"#)).await;
        }
        settled
    };
    until("each handshake has an outcome", SOON, async || (settled(&gateway).await == 5).then_some(())).await;
    redis.thaw();
    gateway.until_metric_is("websocket_connections_active", 1).await;
    assert_eq!(first.close().await, 1000);
    assert_nothing_is_taken(&mut gateway).await;
}
