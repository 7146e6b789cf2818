//! What this process says about its sockets, and about its membership: one statement at a time, numbered.
//!
//! A statement whose answer did not come may still be under way: it waits in a frozen Redis, or in the kernel, which
//! goes on delivering what was written to a connection that is long given up. By then its successor has been carried
//! out over another connection, and would be overwritten by what was true before (Inv. CAP). So there is at most one
//! statement under way, the next has a larger number, and Redis refuses a number that is smaller than one that it has
//! seen (`prelude.lua`, `refuse_if_late`). Only what nobody waits for any more can come late. Beats are numbered in the
//! same way and apart, so that none waits for a statement: a late one would revive a membership that ran out since.
//!
//! The numbers belong to this process's handle, not to the node: one that was closed and opened again begins anew.

use fred::types::Value;
use tokio::sync::{Mutex, MutexGuard};

use super::{number, text};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Statements {
    speaker: String,
    newest: Mutex<u64>,
}

impl Default for Statements {
    fn default() -> Self {
        Self { speaker: format!("{:016x}", rand::random::<u64>()), newest: Mutex::default() }
    }
}

/// The right to make a statement. It is over when this is dropped, with or without an answer.
pub(super) struct Statement<'a> {
    speaker: &'a str,
    number: MutexGuard<'a, u64>,
}

impl Statements {
    /// Waits until nobody else makes one: no longer than a command may take. Cancel safe.
    pub(super) async fn begin(&self) -> Statement<'_> {
        let mut number = self.newest.lock().await;
        *number += 1;
        Statement { speaker: &self.speaker, number }
    }
}

impl Statement<'_> {
    /// Who speaks, and the number, as scripts take them.
    pub(super) fn arguments(&self) -> [Value; 2] {
        [text(self.speaker), number(*self.number)]
    }
}
