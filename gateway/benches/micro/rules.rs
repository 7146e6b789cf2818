//! Decisions: once per handshake, per stream entry or per client's message.

use std::net::{IpAddr, Ipv4Addr};

use bytes::Bytes;
use gateway::admission::bench::Book;
use gateway::backplane::Entry;
use gateway::clock::Clock;
use gateway::http::client_address::{TrustedProxies, client_address};
use gateway::relay::cursor::Cursor;
use gateway::relay::decode::decode;
use gateway::session::{Heartbeat, NodeClock, Rules, Session};
use shared::ids::StreamId;

use super::meter::{Case, each};
use super::sockets;
use super::wire::new_event;

const ROUNDS: u32 = 100;
/// Addresses that the node knows before the one that comes.
const ADDRESSES: u32 = 10_000;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case { name: "admission/counts of a socket that comes and goes", run: counts },
        Case { name: "admission/handshake rate", run: handshake_rate },
        Case { name: "admission/X-Forwarded-For", run: forwarded_for },
        Case { name: "relay/decode and accept an entry", run: relay },
        Case { name: "session/judge a pong", run: pong },
    ]
}

fn counts() -> u32 {
    let mut book = Book::default();
    let mut addresses = (0..).map(sockets::address);
    for address in addresses.by_ref().take(ADDRESSES as usize) {
        assert!(book.come(address), "the first of its address");
    }
    each(
        ROUNDS,
        || addresses.next().expect("endless"),
        |address| {
            let came = book.come(address);
            book.go(address);
            came
        },
    )
}

fn handshake_rate() -> u32 {
    let admission = sockets::admission(10);
    let mut ips = (0..).map(sockets::ip);
    for ip in ips.by_ref().take(ADDRESSES as usize) {
        admission.check_handshake_rate(ip).expect("its first");
    }
    each(ROUNDS, || ips.next().expect("endless"), |ip| admission.check_handshake_rate(ip))
}

fn forwarded_for() -> u32 {
    let networks = ["10.0.0.0/8", "172.16.0.0/12", "2001:db8:f::/48"];
    let trusted = TrustedProxies::new(networks.iter().map(|text| text.parse().expect("a network")).collect());
    let peer = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    let line: &[u8] = b"198.51.100.7, 203.0.113.9, 172.16.4.2, 10.1.2.3";
    each(ROUNDS, || line, |line| client_address(peer, &trusted, std::iter::once(line)))
}

fn relay() -> u32 {
    let mut cursor = Cursor::default();
    let data = Bytes::from(new_event().encode_data());
    let mut entries = (1..).map(|ms| Entry {
        id: StreamId { ms, seq: 0 },
        kind: "new_event".to_owned(),
        data: data.clone(),
        visitor: None,
        tick: None,
        traceparent: None,
    });
    for entry in entries.by_ref().take(2000) {
        // The memory of past entries is full from then on.
        let _ = cursor.accept(entry.event_id(), None);
    }
    each(ROUNDS, || entries.next().expect("endless"), |entry| (cursor.accept(entry.event_id(), None), decode(&entry)))
}

fn pong() -> u32 {
    let rules = Rules::new(1, 5, NodeClock(Clock::start()));
    let text = || br#"{"type":"pong","timestamp":"2025-12-08T10:30:30Z"}"#.to_vec();
    each(ROUNDS, text, |mut text| rules.text(&mut Session::default(), &mut text, Heartbeat::PingOpen))
}
