//! Who ticks, and the tick.

use std::time::Duration;

use fred::interfaces::KeysInterface;
use serde::Deserialize;
use shared::ids::{Epoch, NodeId, Slot};
use shared::message::Snapshot;
use shared::time::Timestamp;

use super::reply::ODD_REPLY;
use super::{RedisBackplane, millis, number, text};
use crate::backplane::{BackplaneError, ClaimReply, Lease, Millis, Result, Tick, TickReply};

const ODD_SNAPSHOT: BackplaneError = BackplaneError::Corrupt("key snapshot: not a snapshot");

/// What `tick.lua` writes, as far as a node that starts needs it.
#[derive(Deserialize)]
struct StoredSnapshot {
    active_visitors: u64,
    timestamp: String,
}

impl RedisBackplane {
    pub(super) async fn last_snapshot(&self) -> Result<Option<Snapshot>> {
        let key = self.keys.snapshot();
        let stored: Option<Vec<u8>> = self.command(|client| async move { client.get(key).await }).await?;
        let Some(stored) = stored else { return Ok(None) };
        let stored: StoredSnapshot = serde_json::from_slice(&stored).map_err(|_| ODD_SNAPSHOT)?;
        let timestamp = Timestamp::parse(&stored.timestamp).map_err(|_| ODD_SNAPSHOT)?;
        Ok(Some(Snapshot { active_visitors: stored.active_visitors, timestamp }))
    }

    pub(super) async fn claim_ticker(&self, node: NodeId, lease: Duration) -> Result<ClaimReply> {
        let keys = vec![self.keys.ticker(), self.keys.snapshot()];
        let mut reply = self.run(&self.scripts.claim, keys, vec![text(&node), number(millis(lease))]).await?;
        let held = match reply.text()?.as_str() {
            "held" => true,
            "taken" => false,
            _ => return Err(ODD_REPLY),
        };
        let epoch = Epoch(reply.parse()?);
        let lease = held.then_some(Lease { node, epoch });
        Ok(ClaimReply { lease, last_slot: Slot(reply.parse()?), now: reply.parse()? })
    }

    pub(super) async fn release_ticker(&self, lease: Lease) -> Result<()> {
        let arguments = vec![text(&lease.node), text(&lease.epoch)];
        self.run(&self.scripts.release, vec![self.keys.ticker()], arguments).await.map(|_| ())
    }

    pub(super) async fn tick_slot(&self, request: &Tick) -> Result<TickReply> {
        let keys = vec![
            self.keys.ticker(),
            self.keys.snapshot(),
            self.keys.visitors(),
            self.keys.nodes(),
            self.keys.touched(),
            self.keys.events(),
        ];
        let arguments = vec![
            text(&request.lease.node),
            text(&request.lease.epoch),
            text(&request.slot),
            number(millis(request.interval)),
            number(millis(request.window)),
            self.member_lease(),
        ];
        let mut reply = self.run(&self.scripts.tick, keys, arguments).await?;
        match reply.text()?.as_str() {
            "published" => {
                let now: Millis = reply.parse()?;
                let lease = Lease { node: request.lease.node, epoch: Epoch(reply.parse()?) };
                let timestamp = Timestamp::from_unix_ms(now);
                let snapshot = Snapshot { active_visitors: reply.parse()?, timestamp };
                Ok(TickReply::Published { snapshot, lease, now })
            }
            "already done" => Ok(TickReply::AlreadyDone { now: reply.parse()? }),
            "wrong slot" => Ok(TickReply::WrongSlot { now: reply.parse()? }),
            "fenced" => Ok(TickReply::Fenced),
            _ => Err(ODD_REPLY),
        }
    }
}
