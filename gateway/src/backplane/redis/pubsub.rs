//! The legacy channel: pub/sub for producers that know nothing better.
//!
//! Pub/sub is at most once by nature; what can be kept is kept. The receiver is there before the subscription, a
//! subscription holds when this says so, a new connection subscribes again, and messages that nobody took in time are
//! counted, never silently gone. Between the library and the reader stand two bounded queues (Inv. BOUND): the
//! library's, which overwrites its oldest, and ours, which refuses the newest.

use bytes::Bytes;
use fred::clients::SubscriberClient;
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use fred::types::Message;
use fred::util::redis_keyslot;
use std::sync::Arc;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::timeout;

use super::RedisBackplane;
use super::connection::{COMMAND_TIMEOUT, Link, Questions, Role, ask_options};
use super::reply::{self, ODD_REPLY};
use crate::backplane::{BackplaneError, LEGACY_QUEUE_MAX, Result};
use crate::metrics::{Legacy, Metrics};

/// Messages that may wait in the library: it reads a burst to its end before others run, so this must hold one as
/// large as our own queue does. What is overwritten is counted as lost.
const EVENTS_QUEUED_MAX: usize = LEGACY_QUEUE_MAX;

impl RedisBackplane {
    pub(super) async fn subscribe_legacy(&self) -> Result<mpsc::Receiver<Bytes>> {
        let mut builder = self.builder.clone();
        // Here alone: each client has eight such queues, which are allocated whole, megabytes in all.
        builder.with_performance_config(|config| config.broadcast_channel_capacity = EVENTS_QUEUED_MAX);
        let client = builder.build_subscriber_client().map_err(|error| reply::error(&error))?;
        let messages = client.message_rx();
        let connections = client.reconnect_rx();
        let questions = Questions { options: ask_options(home_slot(&client)), schema_key: self.keys.schema() };
        let link = Link::open(client, Role::Subscription, questions, Arc::clone(&self.metrics), &self.tasks, &self.end);
        let subscription =
            Subscription { link, channel: self.keys.legacy_channel(), metrics: Arc::clone(&self.metrics) };
        let subscribe = async {
            subscription.link.ready().await?;
            subscription.subscribe().await
        };
        timeout(COMMAND_TIMEOUT, subscribe).await.unwrap_or(Err(BackplaneError::Timeout))?;
        let (sender, receiver) = mpsc::channel(LEGACY_QUEUE_MAX);
        let end = self.end.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = end.cancelled() => {}
                () = subscription.forward(messages, connections, sender) => {}
            }
        });
        Ok(receiver)
    }
}

/// On a cluster the library sends SUBSCRIBE to the node that owns the slot of the client's own name: that one has to
/// be asked whether it is there.
fn home_slot(client: &SubscriberClient) -> u16 {
    redis_keyslot(client.id().as_bytes())
}

struct Subscription {
    link: Link<SubscriberClient>,
    channel: String,
    metrics: Arc<Metrics>,
}

impl Subscription {
    /// Subscribes, and returns when the subscription holds: SUBSCRIBE itself is not answered in turn, but what is
    /// asked after it on the same connection is answered after it.
    async fn subscribe(&self) -> Result<()> {
        let client = self.link.client();
        client.subscribe(self.channel.as_str()).await.map_err(|error| reply::error(&error))?;
        let ask = client.with_options(&ask_options(home_slot(client)));
        ask.ping::<String>(None).await.map_err(|error| reply::error(&error)).map(|_| ())
    }

    /// Until the receiver is dropped.
    async fn forward(
        self,
        mut messages: broadcast::Receiver<Message>,
        mut connections: broadcast::Receiver<fred::types::config::Server>,
        sender: mpsc::Sender<Bytes>,
    ) {
        loop {
            // Each branch is cancel safe. A new connection comes first: until it subscribes, nothing is heard.
            tokio::select! {
                biased;
                () = sender.closed() => return,
                connected = connections.recv() => match connected {
                    Ok(_) | Err(RecvError::Lagged(_)) => {
                        if self.subscribe().await.is_err() {
                            // Connected, but not subscribed: a silence that nothing else would notice.
                            self.link.suspect();
                        }
                    }
                    Err(RecvError::Closed) => return,
                },
                message = messages.recv() => match message {
                    Ok(message) => self.take(message, &sender),
                    Err(RecvError::Lagged(lost)) => self.metrics.legacy.add(Legacy::Overflow, lost),
                    Err(RecvError::Closed) => return,
                },
            }
        }
    }

    fn take(&self, message: Message, sender: &mpsc::Sender<Bytes>) {
        if *message.channel != *self.channel {
            return;
        }
        match message.value.into_bytes().ok_or(ODD_REPLY) {
            Ok(payload) => {
                if let Err(TrySendError::Full(_)) = sender.try_send(payload) {
                    self.metrics.legacy.inc(Legacy::Overflow);
                }
            }
            Err(_) => self.metrics.legacy.inc(Legacy::Invalid),
        }
    }
}
