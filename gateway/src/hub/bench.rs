//! What benchmarks need of the hub and nobody else may have: single passes and sweeps, on the caller's thread.
//!
//! Compiled with the feature `bench` only. The sockets need no seam: instructions are counted in user space, so what
//! the kernel does with a write costs nothing there.

use std::sync::Arc;
use std::time::Duration;

use shared::ids::ConnId;

use super::broadcast::{Batch, Broadcast, pass};
use super::conn::Conn;
use super::sweep::{SweepTime, sweep};
use super::task::SocketTask;
use super::{DashMap, Hub};

/// What a socket's own struct takes, with the two counts of its `Arc`, in bytes.
pub const CONN_BYTES: usize = size_of::<Conn>() + 2 * size_of::<usize>();
/// What tokio keeps of a socket's task besides its own header and trailer, in bytes.
pub const TASK_BYTES: usize = size_of::<SocketTask>();

/// Goes over all sockets of a hub, as its two threads do.
#[derive(Debug, Default)]
pub struct Walk {
    sockets: Vec<Arc<Conn>>,
    batch: Batch,
}

impl Walk {
    /// One broadcast pass.
    pub fn pass(&mut self, hub: &Hub, messages: &[Broadcast]) {
        messages.iter().for_each(|message| self.batch.add(message.clone()));
        pass(hub, &mut self.batch, &mut self.sockets);
    }

    /// The sweep `seconds` after the start.
    pub fn sweep(&mut self, hub: &Hub, seconds: u64) {
        sweep(hub, SweepTime::START.after(Duration::from_secs(seconds)), &mut self.sockets);
    }
}

/// The map of sockets by itself, with `sockets` entries that share one value.
#[derive(Debug)]
pub struct Slots(#[expect(dead_code, reason = "held for its memory")] DashMap<ConnId, Arc<u8>>);

impl Slots {
    /// As [`Hub`] fills its own.
    #[must_use]
    pub fn fill(sockets: u64) -> Self {
        let shared = Arc::new(0);
        let map = DashMap::new();
        (1..=sockets).for_each(|id| drop(map.insert(ConnId(id), Arc::clone(&shared))));
        Self(map)
    }
}
