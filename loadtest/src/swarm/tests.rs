//! Swarms against servers of a few lines, which do one thing right or wrong.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;

use super::*;
use crate::control;
use crate::frame::{self, Opcode};
use crate::lead::{Middle, Plan, PublishFrom, Source};

/// Longer than anything here takes.
const OPEN_WITHIN: Duration = Duration::from_secs(10);
const INIT: &str = r#"{"type":"init","data":{"active_visitors":5,"timestamp":"2025-12-08T10:30:00Z"}}"#;
const UPDATE: &str = r#"{"type":"realtime_update","data":{"active_visitors":5,"timestamp":"2025-12-08T10:30:05Z"}}"#;
const PING: &str = r#"{"type":"ping","timestamp":"2025-12-08T10:30:30Z"}"#;

fn event(number: u32) -> String {
    let time = "2025-12-08T10:30:05Z";
    format!(r#"{{"type":"new_event","data":{{"event_type":"x","page_url":"/n/{number}","timestamp":"{time}"}}}}"#)
}

/// A server that sends every client the same, answers its close, and returns what clients sent.
fn server(clients: usize, head: &'static str, texts: Vec<String>) -> (SocketAddr, JoinHandle<Vec<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let mut bytes = head.as_bytes().to_vec();
    for text in texts {
        let length = u8::try_from(text.len()).expect("short texts");
        bytes.extend_from_slice(if length < 126 { &[0x81] } else { &[0x81, 126, 0] });
        bytes.push(length);
        bytes.extend_from_slice(text.as_bytes());
    }
    let thread = std::thread::spawn(move || {
        let mut streams: Vec<_> = (0..clients).map(|_| listener.accept().expect("a client").0).collect();
        // In pieces: clients must put frames together again.
        for (piece, stream) in bytes.chunks(17).flat_map(|piece| streams.iter().map(move |stream| (piece, stream))) {
            let mut stream = stream;
            stream.write_all(piece).expect("the client reads");
        }
        streams.iter_mut().map(until_close).collect()
    });
    (address, thread)
}

/// Everything that a client sends; its close is answered.
fn until_close(stream: &mut TcpStream) -> Vec<u8> {
    let mut close = Vec::new();
    frame::write(&mut close, Opcode::Close, &1000u16.to_be_bytes());
    let (mut got, mut buffer) = (Vec::new(), [0; 1024]);
    while !got.ends_with(&close) {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return got,
            Ok(n) => got.extend_from_slice(&buffer[..n]),
        }
    }
    stream.write_all(&[0x88, 2, 0x03, 0xe8]).expect("the client reads");
    got
}

/// A swarm of one client, which has sent its request to the server at the other end of the returned stream.
fn one_that_waits() -> (Swarm, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("ws://{}/ws/analytics", listener.local_addr().expect("bound"));
    let job = control::tests::job(&[url], 1);
    let mut swarm = Swarm::new(job, 0, Arc::new(Control::new(1)), Watch::default()).expect("a poll");
    swarm.sockets.push(None);
    swarm.connect(0, Auditor::default()).expect("it connects");
    let (mut stream, _) = listener.accept().expect("a client");
    stream.set_nonblocking(true).expect("a socket");
    let mut got = Vec::new();
    let has_asked = |stream: &mut TcpStream, got: &mut Vec<u8>| {
        let mut buffer = [0; 1024];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            got.extend_from_slice(&buffer[..n]);
        }
        got.ends_with(b"\r\n\r\n")
    };
    let deadline = Instant::now() + OPEN_WITHIN;
    while !has_asked(&mut stream, &mut got) {
        assert!(Instant::now() < deadline, "it sent {got:?}");
        swarm.serve_until(Instant::now(), |_| false).expect("a poll");
    }
    stream.set_nonblocking(false).expect("a socket");
    (swarm, stream)
}

/// What the client sends after its request, to the end of the connection; its close is answered after `first`.
fn farewell(mut stream: TcpStream, first: Vec<u8>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        stream.write_all(&first).expect("the client reads");
        let mut got = until_close(&mut stream);
        stream.read_to_end(&mut got).expect("the client ends it");
        got
    })
}

fn frames(texts: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    texts.iter().for_each(|text| frame::write_unmasked(&mut bytes, Opcode::Text, text.as_bytes()));
    bytes
}

/// The close frame with which a client leaves.
fn goodbye() -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::write(&mut bytes, Opcode::Close, &1000u16.to_be_bytes());
    bytes
}

fn report(address: SocketAddr, answer_pings: YesNo) -> serde_json::Value {
    let url = format!("ws://{address}/ws/analytics");
    let plan = Plan {
        job: Job { answer_pings, ..control::tests::job(&[url], 3) },
        threads: 2,
        processes: 1,
        duration: Duration::from_millis(100),
        middle: Middle::Listen,
        source: Source::Nowhere,
        publish_from: PublishFrom::Begin,
        per_second: 1.0,
        in_flight: None,
        first_number: 1,
        pids: vec![],
        metrics: vec![],
    };
    serde_json::to_value(plan.run().expect("it runs")).expect("JSON")
}

const SWITCHING: &str =
    "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

#[test]
fn a_sound_server_passes() {
    let texts = vec![INIT.to_owned(), event(1), UPDATE.to_owned(), PING.to_owned(), event(2)];
    let (address, thread) = server(3, SWITCHING, texts);
    let report = report(address, YesNo::Yes);
    assert_eq!((&report["ok"], &report["opened"], &report["expected_closes"]), (&true.into(), &3.into(), &3.into()));
    assert_eq!((&report["messages"]["new_event"], &report["pongs"]), (&6.into(), &3.into()));
    for got in thread.join().expect("the server served") {
        let head = b"GET /ws/analytics HTTP/1.1\r\n";
        assert!(got.starts_with(head));
    }
}

#[test]
fn a_server_that_loses_repeats_and_reorders_is_found_out() {
    let events = [1, 2, 2, 5, 4].map(event);
    let texts = [vec![UPDATE.to_owned(), INIT.to_owned()], events.into(), vec![UPDATE.to_owned(), UPDATE.to_owned()]];
    let (address, thread) = server(3, SWITCHING, texts.concat());
    let report = report(address, YesNo::No);
    let want = serde_json::json!({
        "message before init": 3, "event delivered twice": 3, "event after a later one": 3, "event lost": 3,
        "slot delivered twice": 3,
    });
    assert_eq!((&report["ok"], &report["findings"]), (&false.into(), &want));
    thread.join().expect("the server served");
}

#[test]
fn a_refusal_is_counted_by_its_status() {
    let (address, thread) = server(3, "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\n\r\n", vec![]);
    let report = report(address, YesNo::Yes);
    assert_eq!((&report["ok"], &report["refused"]), (&false.into(), &serde_json::json!({"429": 3})));
    thread.join().expect("the server served");
}

// It was told to leave while its request was under way, and then took the 101 for frames: 'H' has reserved bits set.
#[test]
fn who_is_told_to_leave_before_it_is_let_in_leaves_as_soon_as_it_is() {
    let (mut swarm, stream) = one_that_waits();
    swarm.say_goodbye().expect("a poll");
    let thread = farewell(stream, [SWITCHING.as_bytes(), &frames(&[INIT])].concat());
    swarm.depart().expect("a poll");
    let tally = &swarm.shared.tally;
    assert_eq!((&tally.closed, &tally.findings), (&BTreeMap::new(), &BTreeMap::new()));
    assert_eq!((tally.begin.count(), tally.expected_closes), (1, 1));
    assert_eq!(thread.join().expect("the server served"), goodbye());
}

#[test]
fn who_has_said_goodbye_says_nothing_more() {
    let (mut swarm, mut stream) = one_that_waits();
    stream.write_all(&[SWITCHING.as_bytes(), &frames(&[INIT])].concat()).expect("the client reads");
    swarm.serve_until(Instant::now() + OPEN_WITHIN, |swarm| swarm.shared.awaited == 0).expect("a poll");
    // Its life ends, and the test does, before the server has answered.
    swarm.lives.push(Reverse((Instant::now(), 0)));
    swarm.serve_until(Instant::now(), |_| false).expect("a poll");
    swarm.say_goodbye().expect("a poll");
    let thread = farewell(stream, frames(&[PING, UPDATE]));
    swarm.depart().expect("a poll");
    assert_eq!(thread.join().expect("the server served"), goodbye());
    assert_eq!((swarm.shared.tally.expected_closes, swarm.shared.tally.pongs), (1, 0));
    assert_eq!(swarm.shared.tally.findings, BTreeMap::new());
}

// A million goodbyes take half a minute; 244 clients were closed before it was their turn, and the server was blamed.
#[test]
fn who_is_closed_for_silence_while_all_leave_did_not_lose_its_socket() {
    let (mut swarm, stream) = one_that_waits();
    swarm.leaving = true;
    let mut close = Vec::new();
    frame::write_unmasked(&mut close, Opcode::Close, &4408u16.to_be_bytes());
    let mut server = &stream;
    server.write_all(&[SWITCHING.as_bytes(), &close].concat()).expect("the client reads");
    swarm.serve_until(Instant::now() + OPEN_WITHIN, |swarm| swarm.alive == 0).expect("a poll");
    assert_eq!((swarm.shared.tally.expected_closes, &swarm.shared.tally.closed), (1, &BTreeMap::new()));
}

// It would never see the `init` that it is entitled to, and the server would be blamed.
#[test]
fn a_life_does_not_end_before_it_has_begun() {
    let (mut swarm, stream) = one_that_waits();
    swarm.lives.push(Reverse((Instant::now(), 0)));
    let mut server = &stream;
    server.write_all(SWITCHING.as_bytes()).expect("the client reads");
    let is_open = |swarm: &Swarm| swarm.sockets[0].as_ref().is_some_and(Socket::is_open);
    swarm.serve_until(Instant::now() + OPEN_WITHIN, is_open).expect("a poll");
    swarm.serve_until(Instant::now(), |_| false).expect("a poll");
    assert!(swarm.sockets[0].as_ref().is_some_and(|socket| !socket.is_leaving()));
    server.write_all(&frames(&[INIT])).expect("the client reads");
    let leaves = |swarm: &Swarm| swarm.sockets[0].as_ref().is_some_and(Socket::is_leaving);
    swarm.serve_until(Instant::now() + OPEN_WITHIN, leaves).expect("a poll");
    assert!(leaves(&swarm), "it leaves once it has begun");
}

/// A swarm whose client has got these texts.
fn swarm_that_got(texts: &[&str]) -> Swarm {
    let (mut swarm, mut stream) = one_that_waits();
    stream.write_all(&[SWITCHING.as_bytes(), &frames(texts)].concat()).expect("the client reads");
    let count = texts.len() as u64;
    let has_all = |swarm: &Swarm| swarm.shared.tally.messages.total() == count;
    swarm.serve_until(Instant::now() + OPEN_WITHIN, has_all).expect("a poll");
    swarm
}

// A soak blamed the server for clients whose last life began when all events had been sent.
#[test]
fn who_came_again_after_the_last_event_is_not_behind() {
    let mut swarm = swarm_that_got(&[INIT, &event(1), &event(2)]);
    swarm.job.lives = Some((Duration::from_secs(1), Duration::from_secs(2)));
    assert_eq!((swarm.behind(Some(2)), swarm.behind(Some(3))), (0, 1));
    if let Some(socket) = swarm.sockets[0].as_mut() {
        socket.auditor.away();
    }
    assert_eq!(swarm.behind(Some(3)), 0);
    // All are there for good where nobody leaves: whoever was let in again gets what follows.
    swarm.job.lives = None;
    assert_eq!(swarm.behind(Some(3)), 1);
}

#[test]
fn the_number_that_it_had_is_no_new_state() {
    let gaps = |texts: &[&str]| swarm_that_got(texts).shared.tally.state_gap.count();
    assert_eq!(gaps(&[INIT, UPDATE]), 1);
    let same = UPDATE.replace("realtime_update", "init");
    assert_eq!(gaps(&[INIT, UPDATE, &same]), 1);
    assert_eq!(gaps(&[INIT, UPDATE, &same.replace("30:05Z", "30:10Z")]), 2);
}

#[test]
fn a_tick_that_never_comes_is_a_gap_too() {
    let mut swarm = swarm_that_got(&[INIT, UPDATE]);
    swarm.note_waits();
    let long = Duration::from_secs(20);
    assert!(swarm.shared.tally.state_gap.longest() < Some(long));
    swarm.shared.origin = swarm.shared.origin.checked_sub(long).expect("the machine has run for long enough");
    swarm.note_waits();
    assert!(swarm.shared.tally.state_gap.longest() >= Some(long));
}
