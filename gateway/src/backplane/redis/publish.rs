//! Appending to the stream: a request packed for `publish.lua`, and its answer unpacked.

use fred::types::Value;
use shared::event::Event;
use shared::ids::{EntryDigest, EventId};
use shared::message::MessageKind;

use super::presence::{parse_touched, touch_arguments};
use super::reply::{ODD_REPLY, Reply};
use super::{RedisBackplane, number, text};
use crate::backplane::{PUBLISH_ITEMS_MAX, Publication, Publish, PublishReply, Result};

impl RedisBackplane {
    /// Inv. ORDER: the items stand in the stream as they stand in the request, with nothing between them.
    pub(super) async fn append(&self, request: &Publish) -> Result<PublishReply> {
        debug_assert!(request.items.len() <= PUBLISH_ITEMS_MAX, "the caller cuts requests");
        // Without a touch no salt is read; a key must be named all the same.
        let day = request.touch.as_ref().map_or(0, |touch| touch.day);
        let keys = vec![
            self.keys.published(),
            self.keys.events(),
            self.keys.themes(),
            self.keys.ticker(),
            self.keys.visitors(),
            self.keys.touched(),
            self.keys.salt(day),
        ];
        let (lease_node, lease_epoch) = match request.lease {
            Some(lease) => (lease.node.to_string(), lease.epoch.to_string()),
            None => (String::new(), String::new()),
        };
        let mut arguments = vec![
            text(&request.node),
            number(request.number),
            text(&lease_node),
            text(&lease_epoch),
            text(request.traceparent.as_deref().unwrap_or_default()),
            number(request.items.len() as u64),
        ];
        for item in &request.items {
            arguments.extend(item_arguments(item));
        }
        if let Some(touch) = &request.touch {
            arguments.push(text("touch"));
            arguments.extend(touch_arguments(touch));
        }
        let mut reply = self.run(&self.scripts.publish, keys, arguments).await?;
        match reply.text()?.as_str() {
            "done" => done(reply),
            "fenced" => Ok(PublishReply::Fenced),
            "superseded" => Ok(PublishReply::Superseded),
            _ => Err(ODD_REPLY),
        }
    }
}

/// How, type, text: what `publish.lua` makes of it depends on the first.
fn item_arguments(item: &Publication) -> [Value; 3] {
    let json = |name: &str| serde_json::Value::from(name).to_string();
    let (how, kind, data) = match item {
        Publication::Public(message) => ("whole", message.kind(), message.encode_data()),
        Publication::Event(Event::Page { event_type, page_url }) => {
            let (event_type, page_url) = (json(event_type.as_str()), json(page_url.as_str()));
            let data = format!("{{\"event_type\":{event_type},\"page_url\":{page_url},");
            ("stamped", MessageKind::NewEvent, data)
        }
        Publication::Event(Event::LetterGenerate { letter_type }) => {
            let data = format!("{{\"letter_type\":{},", json(letter_type.as_str()));
            ("stamped", MessageKind::LetterGenerated, data)
        }
        Publication::Event(Event::ThemeChange { theme }) => {
            ("theme", MessageKind::ThemeStats, theme.as_str().to_owned())
        }
    };
    [text(how), text(kind.as_str()), text(&data)]
}

fn done(mut reply: Reply) -> Result<PublishReply> {
    let touch = parse_touched(&reply.text()?)?;
    let mut ids = Vec::new();
    while !reply.is_empty() {
        let stream = reply.parse()?;
        let kind = reply.text()?;
        // A repeat whose entry is trimmed away has neither type nor data. The digest of nothing names no entry that
        // ever stood there, so whoever comes back with such an id is told of a gap, which is the truth.
        let digest = EntryDigest::of(&kind, &reply.bytes()?);
        ids.push(EventId { stream, digest });
    }
    Ok(PublishReply::Done { ids, touch })
}
