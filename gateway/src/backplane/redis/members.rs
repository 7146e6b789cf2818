//! Membership, and the counts of sockets per address that rest on it ([`super::admissions`] asks for more of them).

use std::sync::atomic::Ordering;
use std::time::Duration;

use shared::ids::NodeId;

use super::connection::OTHER_SCHEMA;
use super::reply::{ODD_REPLY, hex};
use super::{RedisBackplane, millis, number, text};
use crate::backplane::{AddressHash, BackplaneError, BeatReply, Join, Result, Standing};

/// Addresses that one script writes: some 1 ms of Redis's one thread.
const COUNTS_PER_SCRIPT: usize = 500;

impl RedisBackplane {
    pub(super) async fn beat_member(&self, node: NodeId, join: Join, lease: Duration) -> Result<BeatReply> {
        self.member_lease_ms.store(millis(lease), Ordering::Relaxed);
        let join = match join {
            Join::Enter => "enter",
            Join::Stay => "stay",
        };
        let keys = vec![self.keys.nodes(), self.keys.schema(), self.keys.generation(), self.keys.told()];
        let generation = hex(&rand::random::<[u8; 16]>());
        let beat = self.beats.begin().await;
        let mut arguments = beat.arguments().to_vec();
        arguments.extend([text(&node), text(join), number(millis(lease)), text(&generation)]);
        let mut reply = self.run(&self.scripts.beat, keys, arguments).await?;
        let standing = match reply.text()?.as_str() {
            "member" => Standing::Member,
            "gone" => Standing::Gone,
            "incompatible" => {
                return Err(BackplaneError::Incompatible(OTHER_SCHEMA));
            }
            _ => return Err(ODD_REPLY),
        };
        let (generation, server) = (reply.text()?, reply.text()?);
        Ok(BeatReply { standing, generation, server, members: reply.number()?, now: reply.parse()? })
    }

    pub(super) async fn leave_members(&self, node: NodeId) -> Result<()> {
        let keys = vec![self.keys.nodes(), self.keys.touched()];
        self.run(&self.scripts.leave, keys, vec![text(&node)]).await.map(|_| ())
    }

    pub(super) async fn write_counts(&self, node: NodeId, counts: &[(AddressHash, u32)]) -> Result<Vec<AddressHash>> {
        let mut unreadable = Vec::new();
        for batch in counts.chunks(COUNTS_PER_SCRIPT) {
            let statement = self.statements.begin().await;
            let addresses = batch.iter().map(|(address, _)| self.keys.address(address));
            let keys = std::iter::once(self.keys.told()).chain(addresses).collect();
            let mut arguments = statement.arguments().to_vec();
            arguments.push(text(&node));
            arguments.extend(batch.iter().map(|(_, count)| number(*count)));
            let mut reply = self.run(&self.scripts.set_counts, keys, arguments).await?;
            while !reply.is_empty() {
                let (address, _) = batch.get(reply.number::<usize>()?).ok_or(ODD_REPLY)?;
                self.met_corrupt_address();
                unreadable.push(*address);
            }
        }
        Ok(unreadable)
    }
}
