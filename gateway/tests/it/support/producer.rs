//! The site's backend: gives events to Redis, by the stream or the legacy channel.

use super::redis_server::RedisServer;
use super::resp::{Reply, Resp};

/// The stream, and the channel.
const STREAM: &str = "{analytics}:events";
const CHANNEL: &str = "analytics:realtime";

/// A connection of a producer.
pub(crate) struct Producer(Resp);

impl Producer {
    /// Connects.
    pub(crate) async fn to(redis: &RedisServer) -> Self {
        Self(Resp::to(redis).await)
    }

    /// The `data` of a page view.
    pub(crate) fn page_data(page: &str) -> String {
        format!(r#"{{"event_type":"page_view","page_url":"{page}","timestamp":"2025-12-08T10:30:05Z"}}"#)
    }

    /// Adds a page view to the stream.
    pub(crate) async fn stream_page(&mut self, page: &str) {
        self.stream(&[("type", "new_event"), ("data", &Self::page_data(page))]).await;
    }

    /// Adds an entry with these fields to the stream.
    pub(crate) async fn stream(&mut self, fields: &[(&str, &str)]) {
        let fields: Vec<(&[u8], &[u8])> = fields.iter().map(|(k, v)| (k.as_bytes(), v.as_bytes())).collect();
        self.stream_bytes(&fields).await;
    }

    /// Like [`Self::stream`], for what is not text.
    pub(crate) async fn stream_bytes(&mut self, fields: &[(&[u8], &[u8])]) {
        let mut command: Vec<&[u8]> = vec![b"XADD", STREAM.as_bytes(), b"MAXLEN", b"~", b"10000", b"*"];
        command.extend(fields.iter().flat_map(|(name, value)| [*name, *value]));
        let reply = self.0.call_bytes(&command).await;
        assert!(matches!(reply, Reply::Text(_)), "{reply:?}");
    }

    /// Publishes a public message with a page view.
    pub(crate) async fn publish_page(&mut self, page: &str) {
        self.publish(format!(r#"{{"type":"new_event","data":{}}}"#, Self::page_data(page)).as_bytes()).await;
    }

    /// Publishes anything. Somebody must listen: what nobody hears is lost.
    pub(crate) async fn publish(&mut self, message: &[u8]) {
        let reply = self.0.call_bytes(&[b"PUBLISH", CHANNEL.as_bytes(), message]).await;
        assert!(reply.number() >= 1, "nobody listens on the channel");
    }

    /// Sends any command.
    pub(crate) async fn call(&mut self, command: &[&str]) -> Reply {
        self.0.call(command).await
    }
}
