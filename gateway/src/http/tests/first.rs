//! The two ways to an answer, attacked together: what is decided must not depend on whether hyper was asked.

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::http::connection::HEADERS_MAX;

/// An empty line before the request, which every server ignores (RFC 9112 section 2.2): such a beginning is left to
/// hyper.
const TO_HYPER: &[u8] = b"\r\n";

/// A node that refuses nobody for being one of many.
async fn open_to_all() -> Rig {
    let mut plan = Plan::default();
    (plan.admission.max_connections, plan.admission.max_per_address) = (u32::MAX, 0);
    plan.http.pending_per_peer_max = usize::MAX;
    Rig::new(plan).await
}

/// What the server makes of these bytes, after which nothing comes: the whole answer; of a 101 what binds the client,
/// and the first frame.
async fn decision(rig: &Rig, bytes: &[u8]) -> String {
    let mut stream = rig.connect().await;
    stream.write_all(bytes).await.expect("writes");
    stream.shutdown().await.expect("half open");
    decision_on(&mut stream).await
}

async fn decision_on(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let reading = async {
        while !answer.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => answer.push(byte),
                Err(_) => return,
            }
        }
        if !answer.starts_with(b"HTTP/1.1 101 ") {
            let _ = stream.read_to_end(&mut answer).await;
        }
    };
    tokio::time::timeout(DEADLINE, reading).await.expect("the server answers or closes");
    let text = String::from_utf8(answer).expect("UTF-8");
    if !text.starts_with("HTTP/1.1 101 ") {
        return without_date(&text);
    }
    // The names of headers have no case, and hyper adds a date, and `close` for whoever said so.
    let mut lines: Vec<String> =
        text.lines().skip(1).map(|line| line.to_ascii_lowercase().replace(", close", "")).collect();
    lines.retain(|line| !line.is_empty() && !line.starts_with("date: "));
    lines.sort();
    let (opcode, init) = frame(stream).await;
    format!("101 {lines:?} {opcode:#x} {}", String::from_utf8_lossy(&init))
}

fn status(decision: &str) -> &str {
    decision.strip_prefix("HTTP/1.1 ").or(decision.strip_prefix("HTTP/1.0 ")).unwrap_or(decision).get(..3).unwrap_or("")
}

#[tokio::test]
async fn odd_requests_are_answered_alike_with_and_without_hyper() {
    let rig = open_to_all().await;
    let change = |from: &str, to: &str| format!("{UPGRADE}\r\n").replace(from, to).into_bytes();
    let add = |line: &str| change("Host:", &format!("{line}\r\nHost:"));
    let path = |path: &str| change("/ws/analytics", path);
    let crowd = |lines: usize| add(&vec!["X: y"; lines].join("\r\n"));
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("101", change("", "")),
        ("101", path("/ws/analytics?ids=1")),
        ("101", path("/ws/analytics?")),
        ("101", path("http://gateway:5000/ws/analytics")),
        ("404", path("/ws/analyticsx")),
        ("404", path("/ws/analytics/")),
        ("404", path("/ws/analytics/../admin")),
        ("404", path("/ws/analytics;v=1")),
        ("404", path("/ws/analytics%3Fids=1")),
        ("404", path("/ws/analytics%20?ids=1")),
        ("404", path("/ws/%61nalytics")),
        ("404", path("/WS/analytics")),
        ("404", path("//ws/analytics")),
        ("400", path("/ws/analytics ?ids=1")),
        ("400", change("GET ", "GET  ")),
        ("400", change(" HTTP/1.1", "")),
        ("400", change("HTTP/1.1", "HTTP/1.2")),
        ("400", change("HTTP/1.1", "HTTP/1.0")),
        ("400", change("HTTP/1.1", "HTTP/2.0")),
        ("405", change("GET", "get")),
        ("101", change("\r\n", "\n")),
        ("101", change("Connection", "cONNECTION")),
        ("101", change("Connection: Upgrade", "Connection: keep-alive, Upgrade")),
        ("101", change("Connection: Upgrade", "Connection: close\r\nConnection: ,uPGRADE")),
        ("426", change("Connection: Upgrade", "Connection: \"Upgrade\"")),
        ("426", change("Connection: Upgrade", "Connection: keep-alive Upgrade")),
        ("426", change("Connection: Upgrade", "Connection:")),
        ("400", change("Connection: Upgrade", "Connection : Upgrade")),
        ("400", change("Connection: Upgrade", "Connection:\r\n Upgrade")),
        ("101", change("Upgrade: websocket", "Upgrade: h2c, websocket")),
        ("426", change("Upgrade: websocket", "Upgrade: websocket/13")),
        ("400", add("Host: other")),
        ("400", change("Host: gateway:5000", "Host: ")),
        ("400", add("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")),
        ("426", add("Sec-WebSocket-Version: 13")),
        ("426", change("Version: 13", "Version: 13, 8")),
        ("101", change("Version: 13", "Version:\t13 \t")),
        ("101", add("Content-Length: 0")),
        ("101", add("Content-Length: 0\r\nContent-Length: 0")),
        ("400", add("Content-Length: 0\r\nContent-Length: 1")),
        ("400", add("Content-Length: 00")),
        ("400", add("Content-Length: ")),
        ("400", add("Content-Length: -0")),
        ("400", add("Transfer-Encoding: chunked")),
        ("400", add("Transfer-Encoding: identity")),
        ("400", add("Content-Length: 0\r\nTransfer-Encoding: chunked")),
        ("101", add("Expect: 100-continue")),
        ("101", add("Empty:")),
        (
            "101",
            [&b"GET /ws/analytics HTTP/1.1\r\nX: \xff\xfe"[..], &change("GET /ws/analytics HTTP/1.1", "")].concat(),
        ),
        ("400", add("Null: a\0b")),
        ("400", add("Return: a\rb")),
        ("400", add("Na me: x")),
        ("400", add(": x")),
        ("101", crowd(HEADERS_MAX - 5)),
        ("431", crowd(HEADERS_MAX - 4)),
        ("101", add(&format!("Cookie: {}", "c".repeat(3_000)))),
        ("101", add(&format!("Cookie: {}", "c".repeat(8_000)))),
        ("431", add(&format!("Cookie: {}", "c".repeat(20_000)))),
        ("", change("\r\n\r\n", "\r\n")),
    ];
    for (expected, request) in rows {
        let text = String::from_utf8_lossy(&request).into_owned();
        let first = decision(&rig, &request).await;
        let hyper = decision(&rig, &[TO_HYPER, &request].concat()).await;
        assert_eq!(first, hyper, "{text}");
        assert_eq!(status(&first), expected, "{text}: {first}");
    }
}

/// A header line, or several, as they may stand in a request; mostly as they should.
fn line(name: &'static str, values: &'static [&'static str]) -> impl Strategy<Value = String> {
    (0_u8..60, select(values)).prop_map(move |(form, odd)| {
        let right = values[0];
        match form {
            0 => String::new(),
            1 => format!("{name}: {right}\r\n{name}: {odd}\r\n"),
            2 => format!("{}: {right}\r\n", name.to_ascii_uppercase()),
            3 => format!("{name} : {right}\r\n"),
            4 => format!("{name}:\r\n {right}\r\n"),
            5 => format!("{name}:{right} \t\r\n"),
            6 => format!("{name}: {right}\n"),
            7..10 => format!("{name}: {odd}\r\n"),
            _ => format!("{name}: {right}\r\n"),
        }
    })
}

/// A request's bytes, as a failed test shows them.
#[derive(Clone)]
struct Shown(Vec<u8>);

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

fn request() -> impl Strategy<Value = Shown> {
    let usual = |right: &'static str, odd: &'static [&'static str]| prop_oneof![9 => Just(right), 2 => select(odd)];
    let method = usual("GET", &["get", "POST", "HEAD", "CONNECT", "GE T"]);
    let target = usual(
        "/ws/analytics",
        &[
            "/ws/analytics?ids=1",
            "/ws/analytics?ids=2",
            "/ws/analytics?visitor=%ff",
            "/ws/analytics?types=",
            "/ws/analytics?\u{e4}",
            "/ws/analytics#f",
            "/ws/analytics?#f",
            "/ws/analytics/",
            "/ws/analytics1",
            "/ws/analytics%3f",
            "/ws/analytics\\",
            "/ws/analytics\u{e4}",
            "/ws/analytics<>",
            "/ws/%61nalytics",
            "http://a/ws/analytics",
            "*",
            "a:1",
            "/ws/analytics?last_event_id=0",
        ],
    );
    let version = usual("HTTP/1.1", &["HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "http/1.1", "HTTP/1.1 ", ""]);
    let lines = (
        line("Host", &["gateway:5000", "", "a b", "\u{e4}"]),
        line("Connection", &["Upgrade", "keep-alive, upgrade", "close, Upgrade", "close", "", ",,", "Upgrade;q=1"]),
        line("Upgrade", &["websocket", "WebSocket", "h2c", "", "websocket, h2c", "websocket/13"]),
        line("Sec-WebSocket-Version", &["13", "013", "8", "", "13,13"]),
        line("Sec-WebSocket-Key", &["dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZR==", "", "a", "!!!!"]),
    );
    let lines = lines.prop_map(|(a, b, c, d, e)| vec![a, b, c, d, e]).prop_shuffle();
    let extras = subsequence(
        vec![
            "Content-Length: 0\r\n",
            "Content-Length: 1\r\n",
            "Content-Length: x\r\n",
            "Transfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip\r\n",
            "Origin: http://localhost:3000\r\n",
            "Origin: null\r\n",
            "Expect: 100-continue\r\n",
            "Connection: close\r\n",
            "Upgrade: h2c\r\n",
            "X-Forwarded-For: 192.0.2.1\r\n",
            "Sec-WebSocket-Extensions: permessage-deflate\r\n",
            "User-Agent: \u{e4}\r\n",
            "X:\r\n",
            "X:\t\r\n",
            ":\r\n",
            "X: a\rb\r\n",
            "X: a\u{0}\r\n",
            "X: \u{7f}\r\n",
            " X: y\r\n",
            "X\r\n",
            "\r\n",
        ],
        0..3,
    );
    let tail = select(&["\r\n", "\r\n", "\r\n", "\n", "\r", "", "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"][..]);
    (method, target, version, lines, extras, tail).prop_map(|(method, target, version, lines, extras, tail)| {
        let head = format!("{method} {target} {version}\r\n{}{}{tail}", lines.concat(), extras.concat());
        Shown(head.into_bytes())
    })
}

/// One byte made another, anywhere.
fn damaged() -> impl Strategy<Value = Shown> {
    let place = any::<prop::sample::Index>();
    let byte = prop_oneof![select(&b"\r\n\0 \t:,?#/%\x7f\xff"[..]), any::<u8>()];
    (request(), place, byte).prop_map(|(mut request, place, byte)| {
        let place = place.index(request.0.len());
        request.0[place] = byte;
        request
    })
}

#[test]
fn no_request_is_decided_otherwise_than_hyper_would() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let rig = runtime.block_on(open_to_all());
    let accepted = || rig.public.metrics.handshakes.value(Handshake::Accepted);
    let mut runner = TestRunner::new(Config { cases: 1_000, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&prop_oneof![request(), damaged()], |Shown(request)| {
        let (first, hyper) = runtime.block_on(async {
            let behind = [TO_HYPER, &request].concat();
            (decision(&rig, &request).await, decision(&rig, &behind).await)
        });
        prop_assert_eq!(first, hyper);
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
    assert!(accepted() >= 100, "hardly any request was right: {}", accepted());
}

/// Lets the server take notice of what was sent: it runs on the same thread.
async fn look_up() {
    for _ in 0..8 {
        tokio::task::yield_now().await;
    }
}

// Wherever a network cuts it: a request, and the frame behind it that the client did not wait with.
#[tokio::test]
async fn a_request_cut_anywhere_is_one_request() {
    let rig = open_to_all().await;
    let bytes = [format!("{UPGRADE}\r\n").as_bytes(), &masked(1, br#"{"type":"hello"}"#)].concat();
    for cut in 1..bytes.len() {
        let mut stream = rig.connect().await;
        stream.set_nodelay(true).expect("a TCP socket");
        stream.write_all(&bytes[..cut]).await.expect("writes");
        look_up().await;
        stream.write_all(&bytes[cut..]).await.expect("writes");
        let decision = decision_on(&mut stream).await;
        assert_eq!(status(&decision), "101", "cut at {cut}: {decision}");
        let heard = u64::try_from(cut).expect("small");
        rig.until("the frame is read", |m| m.messages.value(Direction::Received) == heard).await;
    }
}

// What is read first ends somewhere in a frame then.
#[tokio::test]
async fn more_than_the_first_read_may_follow_the_request_at_once() {
    let rig = open_to_all().await;
    let text = format!(r#"{{"type":"{}"}}"#, "x".repeat(4_000));
    let [.., high, low] = text.len().to_be_bytes();
    let long = [&[0x81, 0x80 | 126, high, low, 0, 0, 0, 0], text.as_bytes()].concat();
    let close = masked(8, &1000_u16.to_be_bytes());
    for before in [&b""[..], TO_HYPER] {
        let mut stream = rig.connect().await;
        let bytes = [before, UPGRADE.as_bytes(), b"\r\n", &long, &long, &close].concat();
        stream.write_all(&bytes).await.expect("writes");
        let decision = decision_on(&mut stream).await;
        assert_eq!(status(&decision), "101", "{decision}");
        assert_eq!(frame(&mut stream).await, (0x88, 1000_u16.to_be_bytes().to_vec()));
    }
    assert_eq!(rig.public.metrics.messages.value(Direction::Received), 4);
}

#[tokio::test]
async fn a_request_behind_a_proxy_header_cut_anywhere_is_one_request() {
    let mut plan = Plan::default();
    (plan.admission.max_connections, plan.admission.max_per_address) = (u32::MAX, 1);
    plan.http.proxy_protocol = ProxyProtocol::On;
    plan.http.trusted_proxies = vec!["127.0.0.1/32".parse().expect("a network")];
    let rig = Rig::new(plan).await;
    let mut open = Vec::new();
    for cut in 1..(60 + UPGRADE.len()) {
        for version in [1, 2] {
            // One socket per address: each is told apart, or it were refused.
            let [.., high, low] = cut.to_be_bytes();
            let client = [198, version, high, low];
            let header = match version {
                1 => format!("PROXY TCP4 {} 203.0.113.7 35646 80\r\n", IpAddr::from(client)).into_bytes(),
                _ => [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &client, &[203, 0, 113, 7, 1, 2, 0, 80]].concat(),
            };
            let bytes = [&header[..], UPGRADE.as_bytes(), b"\r\n"].concat();
            let Some((one, two)) = bytes.split_at_checked(cut) else { continue };
            let mut stream = rig.connect().await;
            stream.set_nodelay(true).expect("a TCP socket");
            stream.write_all(one).await.expect("writes");
            look_up().await;
            stream.write_all(two).await.expect("writes");
            let decision = decision_on(&mut stream).await;
            assert_eq!(status(&decision), "101", "version {version} cut at {cut}: {decision}");
            open.push(stream);
        }
    }
}
