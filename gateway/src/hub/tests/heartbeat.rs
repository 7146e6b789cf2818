//! Pings that ride with snapshots. Sweeps are made by hand; the milliseconds between them are the machine's, and count
//! for less than a second: what is asserted holds wherever in it they lie.

use super::*;
use crate::metrics::{Close, Direction};

const PING: &str = r#"{"type":"ping","timestamp":""#;

/// A client that was pinged for the first time, at 31 s, and has answered; the `n`th of its rig.
async fn greeted(rig: &Rig, kinds: MessageKinds, n: u64) -> Client {
    let mut client = rig.open_with(kinds, Ids::Without, b"", None).await;
    assert!(client.text().await.starts_with(r#"{"type":"init""#));
    rig.sweep_at(31);
    answer(rig, &mut client, n).await;
    client
}

/// Answers the ping that comes next.
async fn answer(rig: &Rig, client: &mut Client, pongs: u64) {
    assert!(client.text().await.starts_with(PING));
    client.say(r#"{"type":"pong"}"#).await;
    rig.pongs(pongs).await;
}

#[tokio::test]
async fn a_ping_that_is_due_leaves_with_the_snapshot() {
    let rig = Rig::new(HubSettings::default()).await;
    let mut client = greeted(&rig, MessageKinds::ALL, 1).await;
    // Due at 61 s: what comes before does not bring it, and events never do.
    rig.sweep_at(59);
    rig.pass(&[update(1)]);
    rig.sweep_at(61);
    rig.pass(&[event(2, 10)]);
    let sent = rig.metrics.messages.value(Direction::Sent);
    rig.pass(&[event(3, 10), update(4), event(5, 10)]);
    assert_eq!(rig.metrics.messages.value(Direction::Sent), sent + 4, "the ping is counted");
    for want in [update(1), event(2, 10), event(3, 10), update(4), event(5, 10)] {
        assert_eq!(client.text().await, want.text);
    }
    assert!(parse(&client.bytes).is_some(), "the ping came with the messages, in one write");
    answer(&rig, &mut client, 2).await;
    // The next one is due 30 s later.
    rig.sweep_at(89);
    rig.pass(&[update(6)]);
    assert_eq!(client.text().await, update(6).text);
    rig.sweep_at(91);
    rig.pass(&[update(7)]);
    assert_eq!(client.text().await, update(7).text);
    answer(&rig, &mut client, 3).await;
    drop(client);
    rig.emptied().await;
}

#[tokio::test]
async fn who_does_not_answer_a_ping_that_rode_is_closed_in_time() {
    let rig = Rig::new(HubSettings::default()).await;
    let mut silent = greeted(&rig, MessageKinds::ALL, 1).await;
    rig.sweep_at(61);
    rig.pass(&[update(1)]);
    rig.sweep_at(70);
    rig.pass(&[update(2)]);
    assert_eq!(silent.text().await, update(1).text);
    assert!(silent.text().await.starts_with(PING));
    // Still open, and not pinged again.
    assert_eq!(silent.text().await, update(2).text);
    rig.sweep_at(72);
    silent.closed_for(CloseReason::PongTimeout).await;
    drop(silent);
    rig.emptied().await;
    assert_eq!(rig.metrics.closes.value(Close::PongTimeout), 1);
}

// Inv. ISOLATION: on a machine without a moment to spare, pongs were answered with closes.
#[tokio::test]
async fn a_pong_that_this_node_has_not_read_is_not_late() {
    let rig = Rig::new(HubSettings::default()).await;
    let mut client = greeted(&rig, MessageKinds::ALL, 1).await;
    rig.sweep_at(62);
    assert!(client.text().await.starts_with(PING));
    // Nothing is awaited between these, so the socket's task reads nothing.
    client.stream.try_write(&masked(0x81, br#"{"type":"pong"}"#)).expect("the kernel takes it");
    rig.sweep_at(72);
    rig.sweep_at(73);
    rig.pongs(2).await;
    rig.sweep_at(83);
    rig.pass(&[event(1, 10)]);
    assert_eq!(client.text().await, event(1, 10).text);
    // Bytes that are no pong do not count for ever.
    rig.sweep_at(93);
    assert!(client.text().await.starts_with(PING));
    client.stream.try_write(&masked(0x81, b"{}")).expect("the kernel takes it");
    rig.sweep_at(103);
    assert!(rig.hub.find(ConnId(1)).expect("open").is_ping_open());
    rig.sweep_at(124);
    client.closed_for(CloseReason::PongTimeout).await;
    drop(client);
    rig.emptied().await;
}

#[tokio::test]
async fn who_hears_no_snapshots_is_pinged_by_the_sweeper() {
    let rig = Rig::new(HubSettings::default()).await;
    let kinds = MessageKinds::parse("new_event").expect("a kind");
    let mut client = greeted(&rig, kinds, 1).await;
    rig.sweep_at(61);
    rig.pass(&[update(1), event(2, 10)]);
    assert_eq!(client.text().await, event(2, 10).text, "the ping waits for the next sweep");
    rig.sweep_at(62);
    answer(&rig, &mut client, 2).await;
    drop(client);
    rig.emptied().await;
}

#[tokio::test]
async fn where_snapshots_are_rarer_than_pings_the_sweeper_pings() {
    let rig = Rig::new(HubSettings { snapshot_interval: Duration::from_secs(60), ..HubSettings::default() }).await;
    let mut client = greeted(&rig, MessageKinds::ALL, 1).await;
    rig.sweep_at(60);
    rig.pass(&[update(1), event(2, 10)]);
    assert!(!rig.hub.find(ConnId(1)).expect("open").is_ping_open());
    rig.sweep_at(61);
    assert_eq!(client.text().await, update(1).text);
    assert_eq!(client.text().await, event(2, 10).text);
    answer(&rig, &mut client, 2).await;
    drop(client);
    rig.emptied().await;
}

// Inv. BOUND: one ping waits for a reader, whoever sent it, and however often it would be time for another.
#[tokio::test]
async fn a_reader_that_does_not_read_finds_one_ping() {
    let settings = HubSettings { socket_send_buffer_bytes: 4096, ..HubSettings::default() };
    let rig = Rig::new(settings).await;
    let mut slow = greeted(&rig, MessageKinds::ALL, 1).await;
    rig.sweep_at(61);
    let mut last = 0;
    while rig.metrics.outbox_bytes.value() == 0 {
        last += 1;
        rig.pass(&[event(last, 1000)]);
    }
    rig.pass(&[update(last + 1)]);
    rig.pass(&[update(last + 2)]);
    rig.sweep_at(62);
    rig.pass(&[update(last + 3)]);
    for n in 1..=last {
        assert_eq!(slow.text().await, event(n, 1000).text);
    }
    assert_eq!(slow.text().await, update(last + 1).text);
    answer(&rig, &mut slow, 2).await;
    assert_eq!(slow.text().await, update(last + 2).text);
    assert_eq!(slow.text().await, update(last + 3).text);
    drop(slow);
    rig.emptied().await;
}

// Inv. ORDER: a socket that catches up takes no part in passes, so no ping of theirs gets between its past.
#[tokio::test]
async fn who_catches_up_is_pinged_by_the_sweeper() {
    let rig = Rig::new(HubSettings::default()).await;
    // Ahead of this node, so it waits.
    let mut client = rig.resume(id(1_000)).await;
    assert!(client.text().await.starts_with(r#"{"type":"init""#));
    rig.sweep_at(31);
    answer(&rig, &mut client, 1).await;
    rig.sweep_at(61);
    rig.pass(&[update(1)]);
    let conn = rig.hub.find(ConnId(1)).expect("open");
    assert!(!conn.is_ping_open());
    rig.sweep_at(62);
    assert!(conn.is_ping_open());
    answer(&rig, &mut client, 2).await;
    drop(client);
    rig.emptied().await;
}
