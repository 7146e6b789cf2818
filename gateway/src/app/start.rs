//! What must have been there once before the node takes clients.
//!
//! Redis may come later than the node, so each step is tried until it succeeds; until then upgrades are answered 503
//! and `/readyz` says no. Afterwards nothing that Redis does makes the node unready again (see docs/OPERATIONS.md).

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use shared::backoff::Backoff;
use tokio::sync::watch;

use crate::admission::Admission;
use crate::backplane::{self, Backplane};
use crate::cluster::Report;
use crate::lifecycle::{Lifecycle, Phase};
use crate::presence::Presence;

/// Pause before a start-up step is tried again, at first and at most.
const RETRY_BASE: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// What must have been there once before the node takes clients.
pub(super) struct Start {
    pub(super) backplane: Arc<dyn Backplane>,
    pub(super) admission: Arc<Admission>,
    pub(super) presence: Arc<Presence>,
    pub(super) members: watch::Receiver<Report>,
    pub(super) first_snapshot: watch::Receiver<bool>,
}

impl Start {
    /// Makes the node ready when all of it has been there, however long that takes.
    pub(super) async fn run(mut self, lifecycle: Lifecycle) {
        tokio::select! {
            biased;
            () = lifecycle.reached(Phase::Stopped) => {}
            () = self.all() => {
                lifecycle.advance(Phase::Ready);
                tracing::info!("ready");
            }
        }
    }

    async fn all(&mut self) {
        let backplane = &self.backplane;
        self.admission.set_secret(insist("secret", || backplane.secret(None)).await);
        insist("salts", || self.presence.start()).await;
        // The senders live in essential loops: while we wait, they do.
        let _ = self.members.wait_for(|report| report.is_member).await;
        let _ = self.first_snapshot.wait_for(|there| *there).await;
    }
}

/// Tries until it succeeds. The first failure is logged, and every further kind of failure.
async fn insist<T, F: Future<Output = backplane::Result<T>>>(what: &'static str, step: impl Fn() -> F) -> T {
    let mut backoff = Backoff::new(RETRY_BASE, RETRY_MAX);
    let mut told = None;
    loop {
        match step().await {
            Ok(value) => return value,
            Err(error) => {
                if told.as_ref() != Some(&error) {
                    tracing::warn!(what, %error, "waiting for the backplane");
                    told = Some(error);
                }
                let delay = backoff.next_delay(&mut rand::rng());
                tokio::time::sleep(delay).await;
            }
        }
    }
}
