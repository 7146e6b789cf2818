//! Viewers that come and go, what they must have heard, and the stream that they hear of.

use shared::ids::EventId;
use tokio::time::Instant;

use crate::support::client::{Client, Incoming, Message, Upgrade};
use crate::support::gateway::{Gateway, Setup};
use crate::support::producer::Producer;
use crate::support::recorder::Recorder;
use crate::support::resp::Resp;
use crate::support::wait::SOON;

/// Ticks come often enough here that snapshots are among what is missed.
pub(super) fn busy(setup: Setup) -> Setup {
    setup.brisk().crowded()
}

/// A viewer, over all its connections.
#[derive(Debug, Default)]
pub(super) struct Viewer {
    /// From which message it goes on.
    pub(super) last: Option<String>,
    /// The numbers of the pages that it heard of, as they came.
    pub(super) pages: Vec<u64>,
    /// What it was told is missing.
    pub(super) gaps: Vec<(Option<EventId>, Option<EventId>)>,
    /// Where each of its pages stands.
    pub(super) ids: Vec<EventId>,
}

impl Viewer {
    /// One that has heard of this page last.
    pub(super) fn at(last: &str) -> Self {
        Self { last: Some(last.to_owned()), ..Self::default() }
    }

    pub(super) fn query(&self) -> String {
        self.last.as_ref().map_or("ids=1".to_owned(), |last| format!("last_event_id={last}"))
    }

    pub(super) async fn connect(&self, node: &Gateway) -> Client {
        Upgrade::query(&self.query()).open(node.public).await
    }

    /// Connects, reads until it has enough, and goes without a word.
    pub(super) async fn visit(&mut self, node: &Gateway, enough: impl Fn(&Self) -> bool) {
        let mut client = self.connect(node).await;
        self.read(&mut client, enough).await;
    }

    pub(super) async fn read(&mut self, client: &mut Client, enough: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + SOON * 2;
        while !enough(self) {
            match client.next_before(deadline).await {
                Some(Incoming::Text(text)) => self.hear(&Message::of(text)),
                Some(other) => panic!("{other:?} after {:?}", self.pages.last()),
                None => {
                    panic!("nothing comes after {:?} from {:?}; gaps: {:?}", self.pages.last(), self.last, self.gaps)
                }
            }
        }
    }

    /// As docs/PROTOCOL.md says: the last id that came is where a client goes on.
    pub(super) fn hear(&mut self, message: &Message) {
        if let Some(id) = message.json["id"].as_str() {
            self.last = Some(id.to_owned());
        }
        match message.kind() {
            "new_event" => {
                let page = message.json["data"]["page_url"].as_str().expect("a page");
                self.pages.push(page.trim_start_matches('/').parse().expect("a number"));
                self.ids.push(message.json["id"].as_str().expect("an id").parse().expect("ours"));
            }
            "gap" => {
                let end = |key: &str| message.json[key].as_str().map(|id| id.parse().expect("an id"));
                self.gaps.push((end("from"), end("to")));
                if let Some(to) = message.json["to"].as_str() {
                    self.last = Some(to.to_owned());
                }
            }
            _ => {}
        }
    }

    pub(super) fn assert_heard(&self, pages: impl IntoIterator<Item = u64>) {
        assert_eq!(self.pages, pages.into_iter().collect::<Vec<_>>(), "gaps: {:?}", self.gaps);
    }
}

/// Adds pages to the stream; says where each stands.
pub(super) async fn stream(redis: &mut Resp, pages: impl IntoIterator<Item = u64>) -> Vec<EventId> {
    let mut ids = Vec::new();
    for page in pages {
        let data = Producer::page_data(&format!("/{page}"));
        let command = ["XADD", "{analytics}:events", "*", "type", "new_event", "data", &data];
        let stream = redis.call(&command).await.text().parse().expect("an id");
        ids.push(EventId { stream, digest: shared::ids::EntryDigest::of("new_event", data.as_bytes()) });
    }
    ids
}

/// Plain viewers, one on each node: they show how far the nodes are.
pub(super) struct Ears(pub(super) Vec<Recorder>);

impl Ears {
    pub(super) async fn on(nodes: &[Gateway]) -> Self {
        let mut ears = Vec::new();
        for node in nodes {
            ears.push(Recorder::join(Client::open(node.public).await).await);
        }
        Self(ears)
    }

    /// Waits until all nodes have shown this page.
    pub(super) async fn until(&self, page: u64) {
        for ear in &self.0 {
            ear.until_heard(&format!(r#""page_url":"/{page}","#), SOON).await;
        }
    }
}

pub(super) fn resumes(outcome: &str) -> String {
    format!(r#"gateway_resumes_total{{outcome="{outcome}"}}"#)
}
