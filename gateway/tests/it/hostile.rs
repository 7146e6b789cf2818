//! What bad input gets: a typed answer and a metric each, and no other client notices.
//!
//! Each test has a neighbour, a well-behaved client of the same node. Whatever the attackers did, in the end it is
//! still there, has heard nothing but its own messages, and hears the next one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::support::client::{Client, End, Incoming, Upgrade, connect};
use crate::support::frame::{self, BINARY, CLOSE, CONTINUATION, FIN, Frame, PING, TEXT, close_payload};
use crate::support::gateway::{Gateway, Setup};
use crate::support::http;
use crate::support::recorder::Recorder;
use crate::support::wait::SOON;

/// A word that stands in all that the attackers send, and must be found nowhere afterwards.
const PLANTED: &str = "PLANTED";

/// A node and a client that minds its own business.
struct Scene {
    gateway: Gateway,
    neighbour: Recorder,
}

impl Scene {
    async fn open() -> Self {
        let gateway = Setup::embedded().brisk().crowded().ready().await;
        let neighbour = Recorder::join(Client::open(gateway.public).await).await;
        Self { gateway, neighbour }
    }

    /// A client that has got its `init`.
    async fn attacker(&self) -> Client {
        let mut client = Client::open(self.gateway.public).await;
        assert_eq!(client.next_json(SOON).await.kind(), "init");
        client
    }

    // Inv. ISOLATION: nobody else notices.
    // Inv. PRIVATE: what came from outside is in no log and on no page.
    async fn close(mut self) {
        self.gateway.assert_alive();
        assert_eq!(self.gateway.probe("/livez").await, Some(200));
        self.neighbour.until_new("realtime_update", SOON).await;
        for heard in self.neighbour.heard() {
            let own = heard.text.starts_with(r#"{"type":"init""#) || heard.text.starts_with(r#"{"type":"realtime_up"#);
            assert!(own, "the neighbour heard {}", heard.text);
        }
        self.neighbour.assert_open();
        assert!(!self.gateway.log().contains(PLANTED), "{}", self.gateway.log());
        assert!(!self.gateway.metrics_page().await.contains(PLANTED));
        let errors = self.gateway.log().lines().filter(|line| line.contains("ERROR")).count();
        assert_eq!(errors, 0, "bad input is not an error of ours: {}", self.gateway.log());
    }
}

#[tokio::test]
async fn frames_that_close_the_socket() {
    let scene = Scene::open().await;
    let mut counted: BTreeMap<&str, u64> = BTreeMap::new();
    let mut check = async |what: &str, bytes: Vec<u8>, code: u16, reason| {
        let mut attacker = scene.attacker().await;
        attacker.send_bytes(&bytes).await;
        assert_eq!(attacker.close_code(SOON).await, code, "{what}");
        assert_eq!(attacker.end(SOON).await, End::Broken, "{what}: the connection is closed after the close frame");
        *counted.entry(reason).or_default() += 1;
    };
    let text = |payload: &[u8]| Frame::of(TEXT, payload).bytes();
    let fragments = |parts: &[(u8, &[u8])]| -> Vec<u8> {
        parts.iter().flat_map(|(first, payload)| Frame::raw(*first, payload).bytes()).collect()
    };

    let invalid = "invalid_payload";
    check("not JSON", text(br#"{"type":PLANTED"#), 1007, invalid).await;
    check("empty", text(b""), 1007, invalid).await;
    check("trailing data", text(br#"{"type":"pong"} PLANTED"#), 1007, invalid).await;
    check("not UTF-8", text(b"{\"type\":\"\xff\xfePLANTED\"}"), 1007, invalid).await;
    check("UTF-8 cut at the end", text(b"\"PLANTED\xe2\x82"), 1007, invalid).await;
    let nested = [vec![b'['; 2_000], vec![b']'; 2_000]].concat();
    check("nested 2,000 deep", text(&nested), 1007, invalid).await;
    let cut = fragments(&[(TEXT, b"\"PLANTED\xe2\x82"), (FIN | CONTINUATION, b"\"")]);
    check("UTF-8 cut in a fragmented message", cut, 1007, invalid).await;

    check("binary", Frame::of(BINARY, b"PLANTED").bytes(), 1003, "binary").await;

    check("4,097 bytes", text(&vec![b'P'; 4_097]), 1009, "too_big").await;
    let announced = Frame { claimed: Some(1 << 40), ..Frame::of(TEXT, b"PLANTED") };
    check("a terabyte announced", announced.bytes(), 1009, "too_big").await;
    let kilobyte = vec![b'P'; 1_024];
    let endless = [vec![(TEXT, kilobyte.as_slice())], vec![(CONTINUATION, kilobyte.as_slice()); 4]].concat();
    check("fragments without end", fragments(&endless), 1009, "too_big").await;

    let protocol = "protocol";
    let unmasked = Frame { masked: false, ..Frame::of(TEXT, br#"{"type":"PLANTED"}"#) };
    check("unmasked", unmasked.bytes(), 1002, protocol).await;
    check("reserved bit", Frame::raw(FIN | 0x40 | TEXT, b"{}").bytes(), 1002, protocol).await;
    check("unknown opcode", Frame::raw(FIN | 0x3, b"{}").bytes(), 1002, protocol).await;
    check("unknown control opcode", Frame::raw(FIN | 0xB, b"").bytes(), 1002, protocol).await;
    check("continuation of nothing", Frame::of(CONTINUATION, b"PLANTED").bytes(), 1002, protocol).await;
    let interleaved = fragments(&[(TEXT, b"{\"PLANTED\""), (FIN | TEXT, b"{}")]);
    check("a second message inside a fragmented one", interleaved, 1002, protocol).await;
    check("fragmented ping", Frame::raw(PING, b"PLANTED").bytes(), 1002, protocol).await;
    check("ping of 126 bytes", Frame::of(PING, &[b'P'; 126]).bytes(), 1002, protocol).await;
    check("close of one byte", Frame::of(CLOSE, b"P").bytes(), 1002, protocol).await;
    check("close with a code that must not be sent", close(1005, ""), 1002, protocol).await;
    check("close with a code that does not exist", close(999, ""), 1002, protocol).await;
    scene.gateway.until_metric_is("websocket_errors_total", counted.values().sum()).await;
    for (reason, count) in counted {
        scene.gateway.until_metric_is(&format!(r#"gateway_socket_closes_total{{reason="{reason}"}}"#), count).await;
    }
    let top_bit = Frame { claimed: Some(u64::MAX), ..Frame::of(TEXT, b"PLANTED") };
    let mut attacker = scene.attacker().await;
    attacker.send(&top_bit).await;
    let code = attacker.close_code(SOON).await;
    assert!(matches!(code, 1002 | 1009), "a length with its top bit set: {code}");
    scene.close().await;
}

fn close(code: u16, reason: &str) -> Vec<u8> {
    Frame::of(CLOSE, &close_payload(code, reason)).bytes()
}

#[tokio::test]
async fn messages_that_are_ignored_and_counted() {
    let scene = Scene::open().await;
    let unknown = r#"gateway_client_messages_total{kind="unknown"}"#;
    let texts = [r#"{"type":"PLANTED"}"#, r#"{"type":1}"#, "{}", "[]", r#""PLANTED""#];
    let mut attacker = scene.attacker().await;
    for text in texts {
        attacker.send_text(text).await;
    }
    scene.gateway.until_metric(unknown, texts.len() as u64).await;
    attacker.next_of("realtime_update", SOON).await;

    // In fragments, with a ping between them, and the largest that fits: all of that is right.
    let mut client = scene.attacker().await;
    client.send(&Frame::raw(TEXT, br#"{"type":"#)).await;
    client.send(&Frame::of(PING, b"between")).await;
    client.send(&Frame::raw(FIN | CONTINUATION, br#""hello"}"#)).await;
    let largest = format!(r#"{{"type":"{}"}}"#, "P".repeat(4_096 - 11));
    assert_eq!(largest.len(), 4_096);
    client.send_text(&largest).await;
    scene.gateway.until_metric(unknown, texts.len() as u64 + 2).await;
    let pong = async {
        loop {
            if let Incoming::Pong(payload) = client.next().await {
                return payload;
            }
        }
    };
    assert_eq!(timeout(SOON, pong).await.expect("a pong frame"), b"between");
    assert_eq!(client.close().await, 1000);
    scene.close().await;
}

#[tokio::test]
async fn too_many_messages_are_dropped_and_then_close_the_socket() {
    let scene = Scene::open().await;
    let over = r#"gateway_client_messages_total{kind="over_rate"}"#;
    let mut burst = Vec::new();
    for _ in 0..15 {
        burst.extend_from_slice(&Frame::of(TEXT, br#"{"type":"PLANTED"}"#).bytes());
    }
    let mut attacker = scene.attacker().await;
    attacker.send_bytes(&burst).await;
    // Five pass at once, and one more each second.
    scene.gateway.until_metric(over, 8).await;
    assert!(scene.gateway.metric(over).await <= 10);
    attacker.next_of("realtime_update", SOON).await;
    attacker.send_bytes(&burst).await;
    assert_eq!(attacker.close_code(SOON).await, 1008);
    scene.gateway.until_metric(r#"gateway_socket_closes_total{reason="message_rate"}"#, 1).await;

    // Control frames have a rate of their own; what is over it is not answered.
    let mut attacker = scene.attacker().await;
    let pings = Frame::of(PING, PLANTED.as_bytes()).bytes().repeat(20);
    attacker.send_bytes(&pings).await;
    scene.gateway.until_metric(r#"gateway_client_messages_total{kind="control_over_rate"}"#, 5).await;
    scene.close().await;
}

#[tokio::test]
async fn an_answer_to_an_open_ping_counts_whatever_else_was_sent() {
    let gateway =
        Setup::embedded().brisk().with("GATEWAY_PING_INTERVAL", "3s").with("GATEWAY_PONG_TIMEOUT", "1s").ready().await;
    let mut chatty = Client::open(gateway.public).await.silent();
    for _ in 0..2 {
        chatty.next_of("ping", SOON).await;
        for _ in 0..7 {
            chatty.send_text(r#"{"type":"chat"}"#).await;
        }
        chatty.send_text(r#"{"type":"pong"}"#).await;
    }
    // Past the deadline of the second ping.
    chatty.next_of("ping", SOON).await;
}

#[tokio::test]
async fn slow_requests_are_ended_after_five_seconds() {
    let scene = Scene::open().await;
    let slow = r#"gateway_connects_failed_total{reason="slow"}"#;
    let request = Upgrade::new().header("X-Planted", PLANTED).bytes();
    let mut tasks = tokio::task::JoinSet::new();
    for part in [0, 1, request.len() / 2, request.len() - 1] {
        let bytes = request[..part].to_vec();
        let to = scene.gateway.public;
        tasks.spawn(async move {
            let begun = Instant::now();
            let mut stream = connect(to).await.expect("accepted");
            stream.write_all(&bytes).await.expect("taken");
            let mut rest = Vec::new();
            // A reset or an answer before the end are as good; what counts is when.
            let _ = timeout(SOON, stream.read_to_end(&mut rest)).await.expect("ended in time");
            begun.elapsed().as_secs_f64()
        });
    }
    while let Some(seconds) = tasks.join_next().await {
        let seconds = seconds.expect("no panic");
        assert!((4.5..8.0).contains(&seconds), "ended after {seconds} s");
    }
    scene.gateway.until_metric(slow, 4).await;
    scene.close().await;
}

#[tokio::test]
async fn a_frame_must_be_complete_within_ten_seconds() {
    let scene = Scene::open().await;
    let begun = Instant::now();
    let whole = Frame::of(TEXT, br#"{"type":"PLANTED"}"#).bytes();
    let mut in_head = scene.attacker().await;
    in_head.send_bytes(&whole[..1]).await;
    let mut in_payload = scene.attacker().await;
    in_payload.send_bytes(&whole[..10]).await;
    // One byte each second does not help.
    let mut dripping = scene.attacker().await;
    let drip = async {
        for byte in &whole[..whole.len() - 1] {
            dripping.send_bytes(&[*byte]).await;
            if let Ok(end) = timeout(Duration::from_secs(1), dripping.end(SOON * 2)).await {
                return end;
            }
        }
        panic!("still open after {:?}", begun.elapsed());
    };
    let (head, payload, dripped) = tokio::join!(in_head.close_code(SOON * 2), in_payload.close_code(SOON * 2), drip);
    let seconds = begun.elapsed().as_secs_f64();
    assert_eq!((head, payload), (1002, 1002));
    assert!(matches!(dripped, End::Close { code: 1002, .. }), "{dripped:?}");
    assert!((9.5..15.0).contains(&seconds), "closed after {seconds} s");
    scene.close().await;
}

#[tokio::test]
async fn connections_that_break_leave_nothing_behind() {
    let scene = Scene::open().await;
    for _ in 0..10 {
        scene.attacker().await.reset();
    }
    scene.gateway.until_metric(r#"gateway_socket_closes_total{reason="io"}"#, 10).await;
    scene.gateway.until_metric_is("websocket_connections_active", 1).await;
    scene.close().await;
}

#[tokio::test]
async fn what_is_not_http_gets_no_further() {
    let scene = Scene::open().await;
    let malformed = r#"gateway_connects_failed_total{reason="malformed"}"#;
    let many: String = (0..2_000).map(|n| format!("X-{PLANTED}-{n}: {PLANTED}\r\n")).collect();
    let bomb = format!("GET /ws/analytics HTTP/1.1\r\nHost: x\r\n{many}\r\n");
    let long = format!("GET /ws/analytics HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", PLANTED.repeat(100_000));
    let target = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", PLANTED.repeat(100_000));
    let rows: [(&str, &[u8]); 6] = [
        ("no HTTP", b"PLANTED PLANTED PLANTED\r\n\r\n"),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
        ("bytes", &[0xff; 512]),
        ("header bomb", bomb.as_bytes()),
        ("long header", long.as_bytes()),
        ("long target", target.as_bytes()),
    ];
    for (number, (what, bytes)) in (1..).zip(rows) {
        let answer = http::exchange(scene.gateway.public, bytes).await;
        if let Some(answer) = answer {
            assert!((400..500).contains(&answer.status()), "{what}: {}", answer.status());
            assert!(!answer.body.contains(PLANTED), "{what}: {}", answer.body);
        }
        scene.gateway.until_metric(malformed, number).await;
    }
    scene.close().await;
}

#[tokio::test]
async fn frames_sent_along_with_the_request_are_read() {
    let scene = Scene::open().await;
    let mut stream = connect(scene.gateway.public).await.expect("accepted");
    let mut bytes = Upgrade::new().bytes();
    bytes.extend_from_slice(&Frame::of(BINARY, b"PLANTED").bytes());
    stream.write_all(&bytes).await.expect("taken");
    let mut answer = Vec::new();
    timeout(SOON, stream.read_to_end(&mut answer)).await.expect("closed in time").expect("not reset");
    let (head, length) = http::Head::parse(&answer).expect("a head");
    assert_eq!(head.status, 101);
    let (opcode, init, first) = frame::parse_server_frame(&answer[length..]).expect("init");
    assert!(opcode == TEXT && init.starts_with(br#"{"type":"init""#));
    let (opcode, close, _) = frame::parse_server_frame(&answer[length + first..]).expect("a close frame");
    assert_eq!((opcode, &close[..2]), (CLOSE, &1003u16.to_be_bytes()[..]));
    scene.close().await;
}
