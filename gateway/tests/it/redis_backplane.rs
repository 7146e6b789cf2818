//! What only Redis can show: keys that others broke, clocks that jumped, servers that vanish, freeze, move or refuse.
//!
//! What both backplanes promise is tested in `contract`. Here the tests go behind the port: they plant keys, look at
//! what was written, and take the server away.

mod deployments;
mod keys;
mod outages;
mod traps;

use std::sync::Arc;
use std::time::Duration;

use gateway::backplane::redis::{RedisBackplane, RedisSettings};
use gateway::backplane::{Backplane, BackplaneError, Publication, Publish, PublishReply, Result};
use gateway::metrics::{BackplaneFailure, Metrics};
use shared::event::Event;
use shared::field::{Name, PagePath};
use shared::ids::NodeId;
use shared::keys::Keys;

use crate::support::redis_server::{Durability, Listen, Options, RedisServer};
use crate::support::resp::{Reply, Resp};
use crate::support::wait::until;

/// No call may take longer than its bound; tests allow a busy machine as much again.
const CALL_WITHIN: Duration = Duration::from_secs(4);
/// A deadline for reconnecting: the longest pause between two tries is a second.
const BACK_WITHIN: Duration = Duration::from_secs(15);

fn settings(url: &str) -> RedisSettings {
    RedisSettings { url: url.to_owned(), ca_file: None, keys: Keys::new("analytics").expect("a plain word") }
}

fn connect(url: &str) -> (Arc<RedisBackplane>, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::default());
    let backplane = RedisBackplane::connect(&settings(url), node(1), Arc::clone(&metrics)).expect("a good URL");
    (backplane, metrics)
}

fn node(name: u64) -> NodeId {
    NodeId::from_random(name)
}

fn page(node: NodeId, number: u64) -> Publish {
    let event_type = Name::parse("event_type", Some("page_view")).expect("a name");
    let page_url = PagePath::parse("page_url", Some("/cv")).expect("a path");
    let items = vec![Publication::Event(Event::Page { event_type, page_url })];
    Publish { node, number, lease: None, items, touch: None, traceparent: None }
}

/// Waits until Redis answers again.
async fn back(backplane: &RedisBackplane) {
    until("redis answers", BACK_WITHIN, async || backplane.snapshot().await.ok()).await;
}

/// A server without a disk, for tests that look at its keys.
fn scratch() -> RedisServer {
    RedisServer::with(Options { listen: Listen::Unix, durability: Durability::Nothing, ..Options::default() })
}

/// Ends a call that has no end, with the test.
async fn bounded<T>(call: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(CALL_WITHIN, call).await.expect("a call ends within its bound")
}
