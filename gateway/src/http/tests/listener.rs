//! Upgrades, refusals, limits of connections, and the small GETs.

use super::*;

/// Sends bytes on a connection that the server ends without an answer: politely or by a reset, as the bytes lie.
async fn dropped(rig: &Rig, bytes: &str) {
    let mut stream = rig.connect().await;
    let _ = stream.write_all(bytes.as_bytes()).await;
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await;
    assert!(ended.is_ok(), "still open");
    assert_eq!(answer, b"");
}

/// The answer with the status line of `status` and these header lines, a text body and the common rest.
fn refusal(status: &str, lines: &str, body: &str) -> String {
    let length = body.len() + 1;
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncache-control: no-store\r\n\
         x-content-type-options: nosniff\r\n{lines}content-length: {length}\r\n\r\n{body}\n"
    )
}

// Inv. WIRE: the table of refusals, byte for byte.
#[tokio::test]
async fn each_refusal_has_its_answer_and_its_label() {
    let close = "connection: close\r\n";
    let wait = |seconds: u32| format!("connection: close\r\nretry-after: {seconds}\r\n");
    let rig = Rig::new(Plan::default()).await;
    let replaced = |from: &str, to: &str| format!("{UPGRADE}\r\n").replace(from, to);
    let query = |query: &str| replaced("/ws/analytics", &format!("/ws/analytics?{query}"));
    let check = async |request: String, expected: String, label: Handshake| {
        let before = rig.public.metrics.handshakes.value(label);
        assert_eq!(rig.ask(&request).await, expected, "{request}");
        assert_eq!(rig.public.metrics.handshakes.value(label), before + 1, "{request}");
    };
    use Handshake::{Malformed, Method, NoUpgrade, Origin};
    let bad = |body: &str| refusal("400 Bad Request", close, body);

    let not_allowed = refusal("405 Method Not Allowed", "connection: close\r\nallow: GET\r\n", "use GET");
    check(replaced("GET", "POST"), not_allowed.clone(), Method).await;
    check(replaced("GET", "BREW"), not_allowed, Method).await;
    // To HTTP/1.0 the answer is of that version, and says nothing of keep-alive.
    let old = bad("a WebSocket needs HTTP/1.1").replace("HTTP/1.1 400", "HTTP/1.0 400");
    check(replaced("HTTP/1.1", "HTTP/1.0"), old, Malformed).await;
    check(replaced("Host: gateway:5000\r\n", ""), bad("exactly one Host is needed"), Malformed).await;
    let body = replaced("Host:", "Content-Length: 1\r\nHost:");
    check(format!("{body}x"), bad("a WebSocket request has no body"), Malformed).await;
    check(replaced("ZQ==", "Z"), bad("Sec-WebSocket-Key: not 16 bytes in base64"), Malformed).await;
    check(query("ids=2"), bad("ids: not 1"), Malformed).await;
    check(query("visitor="), bad("visitor: not 1 to 64 bytes"), Malformed).await;
    let types = "types: choose from realtime_update, new_event, theme_stats, letter_generated";
    // Inv. PRIVATE: what came from outside is not repeated.
    check(query("types=%3Cscript%3E"), bad(types), Malformed).await;

    let upgrade = "connection: upgrade, close\r\nupgrade: websocket\r\n";
    let upgrade = refusal("426 Upgrade Required", upgrade, "this is a WebSocket endpoint");
    check(replaced("Connection: Upgrade\r\n", ""), upgrade.clone(), NoUpgrade).await;
    check(replaced("Upgrade: websocket\r\n", ""), upgrade, NoUpgrade).await;
    let version = "connection: close\r\nsec-websocket-version: 13\r\n";
    let version = refusal("426 Upgrade Required", version, "use WebSocket version 13");
    check(replaced("Version: 13", "Version: 8"), version, NoUpgrade).await;
    let forbidden = refusal("403 Forbidden", close, "this origin is not allowed");
    check(replaced("Host:", "Origin: https://evil.example\r\nHost:"), forbidden, Origin).await;

    *rig.fake.others.lock() = 10;
    let many = refusal("429 Too Many Requests", &wait(30), "too many sockets of this address");
    check(replaced("", ""), many, Handshake::AddressCap).await;

    let limited = |change: fn(&mut Plan)| {
        let mut plan = Plan::default();
        change(&mut plan);
        Rig::new(plan)
    };
    let asked = format!("{UPGRADE}\r\n");
    let full = limited(|plan| plan.admission.max_connections = 0).await;
    assert_eq!(full.ask(&asked).await, refusal("503 Service Unavailable", &wait(10), "this node is full"));
    let starting = limited(|plan| plan.phase = Phase::Starting).await;
    assert_eq!(starting.ask(&asked).await, refusal("503 Service Unavailable", &wait(2), "this node is starting"));
    let rated = limited(|plan| plan.admission.handshakes_per_second = 1).await;
    let often = refusal("429 Too Many Requests", &wait(1), "too many handshakes from this address");
    // A burst of four; a slow machine may be granted one more for each second that it takes.
    let mut open = Vec::new();
    let answer = loop {
        let mut stream = rated.connect().await;
        stream.write_all(asked.as_bytes()).await.expect("writes");
        let head = head(&mut stream).await;
        if !head.starts_with("HTTP/1.1 101 ") {
            break without_date(&head) + &rest(&mut stream).await;
        }
        open.push(stream);
    };
    assert_eq!(answer, often);
    assert!(open.len() >= 4, "{}", open.len());
    let draining = Refusal::Draining.answer();
    assert_eq!((draining.status().as_u16(), &draining.headers()["retry-after"]), (503, &HeaderValue::from(1)));
}

#[tokio::test]
async fn an_upgrade_gets_init_and_its_pipelined_frames_are_read() {
    let rig = Rig::new(Plan::default()).await;
    let mut stream = rig.connect().await;
    let request = [format!("{UPGRADE}\r\n").as_bytes(), &masked(1, br#"{"type":"hello"}"#)].concat();
    stream.write_all(&request).await.expect("writes");
    let head = head(&mut stream).await;
    assert_eq!(
        head,
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    );
    let init = br#"{"type":"init","data":{"active_visitors":5,"timestamp":"2025-12-08T10:30:00Z"}}"#;
    assert_eq!(frame(&mut stream).await, (0x81, init.to_vec()));
    stream.write_all(&masked(8, &1000_u16.to_be_bytes())).await.expect("writes");
    assert_eq!(frame(&mut stream).await, (0x88, 1000_u16.to_be_bytes().to_vec()));
    drop(stream);
    rig.until("the frame behind the handshake counts", |m| m.messages.value(Direction::Received) == 1).await;
    rig.until("the socket ends", |m| m.connections_active.value() == 0).await;
    assert_eq!(rig.public.metrics.handshakes.value(Handshake::Accepted), 1);
    assert_eq!(rig.public.metrics.handshakes.value(Handshake::Abandoned), 0);
}

// Those that hyper answers: a head in pieces, and one behind another request, as proxies send it that keep connections.
#[tokio::test]
async fn an_upgrade_that_is_not_the_first_whole_request_gets_init_as_well() {
    let rig = Rig::new(Plan::default()).await;
    let mut pieces = rig.connect().await;
    let (one, two) = UPGRADE.split_at(UPGRADE.len() / 2);
    pieces.write_all(one.as_bytes()).await.expect("writes");
    let mut second = rig.connect().await;
    second.write_all(b"GET /api/v1/stats HTTP/1.1\r\nHost: gateway\r\n\r\n").await.expect("writes");
    assert!(head(&mut second).await.starts_with("HTTP/1.1 200 "));
    let mut body = vec![0; r#"{"active_visitors":5,"timestamp":"2025-12-08T10:30:00Z"}"#.len()];
    second.read_exact(&mut body).await.expect("the body");
    second.write_all(format!("{UPGRADE}\r\n").as_bytes()).await.expect("writes");
    pieces.write_all(format!("{two}\r\n").as_bytes()).await.expect("writes");
    for stream in [&mut pieces, &mut second] {
        assert!(head(stream).await.starts_with("HTTP/1.1 101 "));
        let (first, init) = frame(stream).await;
        assert_eq!((first, init.starts_with(br#"{"type":"init""#)), (0x81, true));
    }
}

// Inv. CAP: a client that disappears while the backplane is asked leaves no place taken.
#[tokio::test]
async fn an_abandoned_upgrade_gives_its_permit_back() {
    let mut plan = Plan::default();
    plan.admission.max_connections = 1;
    let rig = Rig::new(plan).await;
    // The question is put and stays open.
    rig.fake.answers.forget_permits(tokio::sync::Semaphore::MAX_PERMITS);
    let mut stream = rig.connect().await;
    stream.write_all(format!("{UPGRADE}\r\n").as_bytes()).await.expect("writes");
    rig.until("the backplane is asked", |_| rig.fake.asked.load(Ordering::Relaxed) == 1).await;
    drop(stream);
    rig.until("the attempt is abandoned", |m| m.handshakes.value(Handshake::Abandoned) == 1).await;
    rig.fake.answers.add_permits(100);
    rig.public.admission.flush_dirty().await.expect("answers");
    assert_eq!(rig.fake.told.lock().values().sum::<u32>(), 0, "what the backplane had counted is taken back");
    rig.open("").await;
}

// Inv. CAP: a spoofed X-Forwarded-For of a peer that is not trusted changes nothing; of one that is, it counts.
// Inv. BOUND: neither names nor browsers let one address be a crowd.
#[tokio::test]
async fn an_address_may_invent_so_many_visitors_and_no_more() {
    let mut plan = Plan::default();
    (plan.admission.max_connections, plan.admission.max_per_address) = (1_000, 1_000);
    let rig = Rig::new(plan).await;
    let mut sockets = Vec::new();
    for n in 0..60 {
        sockets.push(rig.open(&format!("User-Agent: browser {n}\r\n")).await);
        let named = UPGRADE.replace("/ws/analytics", &format!("/ws/analytics?visitor=name{n}"));
        let mut stream = rig.connect().await;
        stream.write_all(format!("{named}\r\n").as_bytes()).await.expect("writes");
        assert!(head(&mut stream).await.starts_with("HTTP/1.1 101 "));
        sockets.push(stream);
    }
    rig.until("all sockets are open", |metrics| metrics.handshakes.value(Handshake::Accepted) == 120).await;
    let mut visitors = std::collections::HashSet::new();
    rig.public.hub.for_each(|conn| {
        visitors.insert(conn.visitor());
    });
    assert_eq!(visitors.len(), 51, "fifty, and the address itself");
}

#[tokio::test]
async fn sockets_count_for_the_client_behind_trusted_proxies_only() {
    for (trusted, second) in [(None, "429"), (Some("127.0.0.0/8"), "101")] {
        let mut plan = Plan::default();
        plan.admission.max_per_address = 1;
        plan.http.trusted_proxies = trusted.into_iter().map(|net| net.parse().expect("a network")).collect();
        let rig = Rig::new(plan).await;
        let _open = rig.open("X-Forwarded-For: 198.51.100.1\r\n").await;
        let mut stream = rig.connect().await;
        let request = format!("{UPGRADE}X-Forwarded-For: 198.51.100.1, 203.0.113.7\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("writes");
        assert_eq!(head(&mut stream).await[9..12], *second);
    }
}

#[tokio::test]
async fn a_proxy_header_names_the_client_and_only_proxies_may_send_it() {
    let mut plan = Plan::default();
    plan.admission.max_per_address = 1;
    plan.http.proxy_protocol = ProxyProtocol::On;
    plan.http.trusted_proxies = vec!["127.0.0.1/32".parse().expect("a network")];
    let http = plan.http.clone();
    let rig = Rig::new(plan).await;
    let status = async |rig: &Rig, source: &str| {
        let mut stream = rig.connect().await;
        // X-Forwarded-For is ignored: it would make each of them another client.
        let spoof = format!("X-Forwarded-For: 192.0.2.{}\r\n", rig.fake.asked.load(Ordering::Relaxed));
        let request = format!("PROXY TCP4 {source} 203.0.113.7 35646 80\r\n{UPGRADE}{spoof}\r\n");
        stream.write_all(request.as_bytes()).await.expect("writes");
        (head(&mut stream).await[9..12].to_owned(), stream)
    };
    let first = status(&rig, "198.51.100.1").await;
    let second = status(&rig, "198.51.100.1").await;
    let third = status(&rig, "198.51.100.2").await;
    assert_eq!([&first.0, &second.0, &third.0], ["101", "429", "101"]);
    dropped(&rig, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    // A balancer that only sees whether somebody listens.
    drop(rig.connect().await);
    rig.until("it is counted", |m| m.connects_failed.value(Connect::ProxyHeader) == 1).await;

    let elsewhere = vec!["10.0.0.0/8".parse().expect("a network")];
    let rig = Rig::new(Plan { http: HttpSettings { trusted_proxies: elsewhere, ..http }, ..Plan::default() }).await;
    dropped(&rig, "PROXY TCP4 198.51.100.1 203.0.113.7 35646 80\r\nGET / HTTP/1.1\r\n").await;
    rig.until("it is counted", |m| m.connects_failed.value(Connect::ProxyHeader) == 1).await;
}

// Inv. BOUND: one client behind a balancer that passes bytes on cannot take all the places.
#[tokio::test]
async fn connections_that_a_proxy_names_a_client_of_are_capped_by_the_client() {
    let mut plan = Plan::default();
    plan.http.pending_per_peer_max = 2;
    plan.http.proxy_protocol = ProxyProtocol::On;
    plan.http.trusted_proxies = vec!["127.0.0.1/32".parse().expect("a network")];
    let rig = Rig::new(plan).await;
    let header = |source: &str| format!("PROXY TCP4 {source} 203.0.113.7 35646 80\r\n");
    let mut silent = Vec::new();
    for _ in 0..2 {
        let mut stream = rig.connect().await;
        // The first answer shows that the header was read.
        let request = header("198.51.100.1") + "GET /api/v1/stats HTTP/1.1\r\nHost: a\r\n\r\n";
        stream.write_all(request.as_bytes()).await.expect("writes");
        assert!(head(&mut stream).await.starts_with("HTTP/1.1 200 "));
        silent.push(stream);
    }
    dropped(&rig, &header("198.51.100.1")).await;
    rig.until("it is counted", |m| m.connects_failed.value(Connect::TooManyOfPeer) == 1).await;
    let ask = async |source: &str| {
        let request = header(source) + "GET /api/v1/stats HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        rig.ask(&request).await
    };
    assert!(ask("198.51.100.2").await.starts_with("HTTP/1.1 200 "), "another client has places of its own");
    // The balancer itself, which asks whether somebody is there, is nobody's client.
    for _ in 0..3 {
        let mut own = rig.connect().await;
        own.write_all(b"PROXY UNKNOWN\r\nGET /api/v1/stats HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("writes");
        assert!(head(&mut own).await.starts_with("HTTP/1.1 200 "));
        silent.push(own);
    }
    drop(silent);
}

// Inv. BOUND: on a full node, connections that do not upgrade leave descriptors to probes and the backplane.
#[tokio::test]
async fn sockets_and_connections_together_are_capped() {
    let mut plan = Plan::default();
    plan.http.connections_max = 3;
    let rig = Rig::new(plan).await;
    let _sockets = [rig.open("").await, rig.open("").await];
    rig.until("both are sockets", |metrics| metrics.handshakes.value(Handshake::Accepted) == 2).await;
    let _third = rig.open("").await;
    rig.until("the third is a socket", |metrics| metrics.handshakes.value(Handshake::Accepted) == 3).await;
    dropped(&rig, "").await;
    assert_eq!(rig.public.metrics.connects_failed.value(Connect::TooMany), 1);
}

// Inv. BOUND
#[tokio::test]
async fn connections_that_do_not_upgrade_are_capped_and_slow_ones_closed() {
    let mut plan = Plan::default();
    plan.http.pending_per_peer_max = 2;
    plan.http.head_time_max = Duration::from_millis(300);
    let rig = Rig::new(plan).await;
    let mut silent = rig.connect().await;
    let mut half = rig.connect().await;
    half.write_all(b"GET /ws/analytics HTTP/1.1\r\nHost: ga").await.expect("writes");
    dropped(&rig, "").await;
    assert_eq!(rig.public.metrics.connects_failed.value(Connect::TooManyOfPeer), 1);
    assert_eq!((rest(&mut silent).await, rest(&mut half).await), (String::new(), String::new()));
    rig.until("both were slow", |m| m.connects_failed.value(Connect::Slow) == 2).await;
    // A WebSocket gives its place back.
    let _open = [rig.open("").await, rig.open("").await, rig.open("").await];
}

// Inv. BOUND: however busy a connection keeps itself, it ends, and after a whole answer.
#[tokio::test]
async fn a_connection_that_goes_on_asking_is_ended() {
    let mut plan = Plan::default();
    plan.http.life_max = Duration::from_millis(200);
    let rig = Rig::new(plan).await;
    let mut stream = rig.connect().await;
    let asking = async {
        loop {
            let asked = stream.write_all(b"HEAD /api/v1/stats HTTP/1.1\r\nHost: a\r\n\r\n").await;
            let mut byte = [0];
            if asked.is_err() || stream.peek(&mut byte).await.unwrap_or(0) == 0 {
                return;
            }
            assert!(head(&mut stream).await.starts_with("HTTP/1.1 200 "));
        }
    };
    tokio::time::timeout(DEADLINE, asking).await.expect("the connection is ended");
}

// Inv. BOUND
#[tokio::test]
async fn heads_are_bounded() {
    let rig = Rig::new(Plan::default()).await;
    let too_large = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let many: String = (0..65).map(|n| format!("X-{n}: y\r\n")).collect();
    assert_eq!(rig.ask(&format!("GET / HTTP/1.1\r\n{many}\r\n")).await, too_large);
    let long = "y".repeat(1 << 20);
    assert_eq!(rig.ask(&format!("GET / HTTP/1.1\r\nX: {long}\r\n\r\n")).await, too_large);
    let garbage = rig.ask("\u{16}\u{3}\u{1}\r\n\r\n").await;
    assert!(garbage.starts_with("HTTP/1.1 400 "), "{garbage}");
    rig.until("all are counted", |m| m.connects_failed.value(Connect::Malformed) == 3).await;
}

#[tokio::test]
async fn the_small_gets() {
    let rig = Rig::new(Plan::default()).await;
    let get = async |method: &str, path: &str, lines: &str| {
        rig.ask(&format!("{method} {path} HTTP/1.1\r\nHost: gateway:5000\r\nConnection: close\r\n{lines}\r\n")).await
    };
    let stats = |cors: &str| {
        format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncache-control: no-store\r\n\
             x-content-type-options: nosniff\r\nvary: origin\r\n{cors}connection: close\r\ncontent-length: 56\r\n\r\n"
        )
    };
    let body = r#"{"active_visitors":5,"timestamp":"2025-12-08T10:30:00Z"}"#;
    let with_cors = stats("access-control-allow-origin: http://localhost:3000\r\n");
    let plain = stats("");
    assert_eq!(get("GET", "/api/v1/stats", "").await, format!("{plain}{body}"));
    assert_eq!(get("GET", "/api/v1/stats", "Origin: http://localhost:3000\r\n").await, format!("{with_cors}{body}"));
    assert_eq!(get("GET", "/api/v1/stats", "Origin: https://evil.example\r\n").await, format!("{plain}{body}"));
    assert_eq!(get("HEAD", "/api/v1/stats", "").await, plain);
    let delete = get("DELETE", "/api/v1/stats", "").await;
    assert!(delete.starts_with("HTTP/1.1 405 ") && delete.contains("allow: GET, HEAD\r\n"), "{delete}");

    let page = get("GET", "/", "").await;
    assert!(page.contains("content-security-policy: default-src 'none'; script-src 'self'"), "{page}");
    assert!(page.contains("\r\n\r\n<!doctype html>"), "{page}");
    assert!(get("HEAD", "/page.js", "").await.ends_with("\r\n\r\n"));
    for nowhere in ["/ws", "/ws/analytics/", "/page.css/", "/metrics", "/livez", "//", "/%2e%2e/etc/passwd"] {
        assert!(get("GET", nowhere, "").await.starts_with("HTTP/1.1 404 "), "{nowhere}");
    }
    assert!(rig.ask("GET / HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 400 "));

    let early = Rig::new(Plan { snapshot: false, ..Plan::default() }).await;
    let answer = early.ask("GET /api/v1/stats HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after: 2\r\n"), "{answer}");
}

// Nothing but time passes: there is no relay here that could notice it, as there is none that has run yet when a process
// that was stopped goes on.
#[tokio::test]
async fn the_number_is_stale_when_its_time_is_over_whoever_has_noticed() {
    let rig = Rig::new(Plan::default()).await;
    let ask = async |address, path: &str| {
        ask(address, &format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await
    };
    let stats = async || ask(rig.address, "/api/v1/stats").await;
    let health = async || ask(rig.internal, "/healthz").await;
    assert!(stats().await.ends_with(r#""timestamp":"2025-12-08T10:30:00Z"}"#));
    assert!(health().await.contains(r#""snapshot":{"ok":true,"#));
    tokio::time::pause();
    tokio::time::advance(DEADLINE).await;
    tokio::time::resume();
    assert!(stats().await.ends_with(r#""timestamp":"2025-12-08T10:30:00Z","stale":true}"#));
    assert!(health().await.contains(r#""snapshot":{"ok":false,"#));
}

// Inv. DRAIN
#[tokio::test]
async fn upgrades_are_taken_until_the_listener_closes_and_probes_answer_to_the_end() {
    let rig = Rig::new(Plan::default()).await;
    let probe = async |path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let answer = ask(rig.internal, &request).await;
        let body = answer.split("\r\n\r\n").nth(1).expect("a body").to_owned();
        (answer[9..12].to_owned(), body)
    };
    let pair = |status: &str, body: &str| (status.to_owned(), body.to_owned());
    assert_eq!(probe("/livez").await, pair("200", "ok\n"));
    assert_eq!(probe("/readyz").await, pair("200", "ready\n"));
    let (status, metrics) = probe("/metrics").await;
    assert!(status == "200" && metrics.contains("\nwebsocket_connections_active 0\n"), "{metrics}");
    assert_eq!(probe("/").await.0, "404");

    rig.public.lifecycle.advance(Phase::Draining);
    assert_eq!(probe("/readyz").await, pair("503", "draining\n"));
    let (status, health) = probe("/healthz").await;
    assert!(status == "200" && health.starts_with(r#"{"status":"draining","components":{"#), "{health}");
    let _socket = rig.open("").await;
    let mut idle = rig.connect().await;
    idle.write_all(b"GET /api/v1/stats HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("writes");
    assert!(head(&mut idle).await.starts_with("HTTP/1.1 200 "));

    rig.public.lifecycle.advance(Phase::Closing);
    let closed = async {
        while TcpStream::connect(rig.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, closed).await.expect("the listener closes");
    assert!(rest(&mut idle).await.ends_with('}'), "idle connections are asked to end");
    assert_eq!(probe("/readyz").await, pair("503", "closing\n"));
    rig.public.lifecycle.advance(Phase::Stopped);
    rig.serving.close();
    tokio::time::timeout(DEADLINE, rig.serving.wait()).await.expect("both listeners end");
}

// Inv. ISOLATION
#[tokio::test]
async fn a_panic_ends_its_own_connection_and_is_counted() {
    let (tasks, metrics) = (TaskTracker::new(), Arc::new(Metrics::default()));
    spawn(&tasks, &metrics, async { panic!("planted") });
    spawn(&tasks, &metrics, async { Ok(()) });
    tasks.close();
    tasks.wait().await;
    assert_eq!(metrics.connects_failed.value(Connect::Panic), 1);
}
