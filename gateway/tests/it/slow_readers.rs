//! Clients that do not read, or read too late.

use serde_json::Value;
use shared::ids::EventId;

use crate::support::client::{Client, Message, Upgrade};
use crate::support::gateway::{Gateway, Setup};
use crate::support::recorder::Recorder;
use crate::support::wait::SOON;

/// What may wait for one client, by default.
const OUTBOX_BYTES: u64 = 64 << 10;
/// Events of one request: together less than an outbox holds, so that who reads misses nothing of a burst.
const BATCH: usize = 100;

/// Posts page views `/n/ppp…` with growing n.
struct Flood {
    posted: usize,
}

impl Flood {
    async fn batch(&mut self, gateway: &Gateway) {
        let padding = "p".repeat(400);
        let event = |n: usize| format!(r#"{{"event_type":"page_view","page_url":"/{n}/{padding}"}}"#);
        let events: Vec<String> = (self.posted..self.posted + BATCH).map(event).collect();
        assert_eq!(gateway.post(&format!("[{}]", events.join(","))).await.status(), 202);
        self.posted += BATCH;
    }

    /// Until what the kernel and the outbox hold for somebody who does not read has overflowed. Goes on when `reader`
    /// has heard each batch: a test's client is slower than a gateway.
    async fn until_overflow(&mut self, gateway: &Gateway, reader: &Recorder) {
        while gateway.metric("gateway_outbox_overflows_total").await == 0 {
            self.batch(gateway).await;
            reader.until_heard(&format!("/{}/", self.posted - 1), SOON).await;
            assert!(self.posted <= 50_000, "no kernel buffer holds 25 MB");
            // Inv. BOUND: what waits for a client stays within its outbox; there are two at most.
            assert!(gateway.metric("gateway_outbox_bytes").await <= 2 * OUTBOX_BYTES);
        }
    }
}

fn number_of(message: &Message) -> usize {
    let page = message.json["data"]["page_url"].as_str().expect("a page");
    page.split('/').nth(1).expect("/n/…").parse().expect("a number")
}

// Inv. ISOLATION: a client that reads nothing is the only one that misses anything.
#[tokio::test]
async fn a_client_that_does_not_read_costs_the_others_nothing() {
    let gateway = Setup::embedded().brisk().crowded().ready().await;
    let reader = Recorder::join(Client::open(gateway.public).await).await;
    let _deaf = Client::open(gateway.public).await;
    let mut flood = Flood { posted: 0 };
    flood.until_overflow(&gateway, &reader).await;
    let numbers: Vec<usize> = reader.messages(&["new_event"]).iter().map(number_of).collect();
    assert_eq!(numbers, (0..flood.posted).collect::<Vec<_>>());
    reader.assert_open();
    gateway.until_metric("gateway_events_discarded_total", 1).await;
}

// Inv. GAP: who asked for ids and reads too late is told from where to where something is missing.
#[tokio::test]
async fn a_client_that_reads_too_late_gets_the_newest_state_and_learns_what_it_missed() {
    let gateway = Setup::embedded().brisk().crowded().ready().await;
    let reader = Recorder::join(Client::open(gateway.public).await).await;
    let mut late = Upgrade::query("ids=1").open(gateway.public).await;
    let mut flood = Flood { posted: 0 };
    flood.until_overflow(&gateway, &reader).await;
    flood.batch(&gateway).await;

    // It begins to read, and after the stall an event comes that it must not miss.
    let mut messages: Vec<Message> = Vec::new();
    while messages.iter().filter(|message| message.kind() == "init").count() < 2 {
        messages.push(late.next_json(SOON).await);
    }
    gateway.post_page("/last/").await;
    while !messages.last().is_some_and(|message| message.text.contains("/last/")) {
        messages.push(late.next_json(SOON).await);
    }

    let position = |id: &Value| id.as_str().expect("an id").parse::<EventId>().expect("well-formed").stream;
    let bounds = |gap: &Message| (position(&gap.json["from"]), position(&gap.json["to"]));
    // Usually one; but the kernel may make room in between, and then there is another stall.
    let gaps: Vec<_> = messages.iter().filter(|message| message.kind() == "gap").map(bounds).collect();
    assert!(!gaps.is_empty() && gaps.iter().all(|(from, to)| from < to), "{gaps:?}");
    let events: Vec<&Message> =
        messages.iter().filter(|message| message.kind() == "new_event" && !message.text.contains("/last/")).collect();
    assert_eq!(number_of(events[0]), 0, "nothing is missing before the first stall");
    for event in &events {
        let id = position(&event.json["id"]);
        assert!(gaps.iter().all(|(from, to)| id <= *from || id > *to), "{id} was said to be missing: {gaps:?}");
    }
    let mut holes = 0;
    for pair in events.windows(2) {
        let (one, next) = (position(&pair[0].json["id"]), position(&pair[1].json["id"]));
        assert!(one < next, "in the order of the stream");
        if number_of(pair[1]) != number_of(pair[0]) + 1 {
            holes += 1;
            assert!(gaps.iter().any(|(from, to)| *from <= one && one < *to && *to < next), "an unannounced hole");
        }
    }
    assert!(holes <= gaps.len());
}
