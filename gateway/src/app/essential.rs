//! The loops that the node lives by: any of them that ends too early ends the process.

use std::collections::HashMap;
use std::future::Future;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::{Id, JoinSet};

use crate::cluster::Report;
use crate::lifecycle::{Lifecycle, Phase};
use crate::supervise::Panicked;

/// The loops that the node lives by: each a task that must not end before the phase is `Stopped`.
#[derive(Default)]
pub(super) struct Essential {
    loops: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

impl Essential {
    /// Starts a loop.
    pub(super) fn start(&mut self, name: &'static str, body: impl Future<Output = ()> + Send + 'static) {
        let id = self.loops.spawn(body).id();
        self.names.insert(id, name);
    }

    /// Starts a loop on another runtime than this one.
    pub(super) fn start_on(
        &mut self,
        on: &Handle,
        name: &'static str,
        body: impl Future<Output = ()> + Send + 'static,
    ) {
        let id = self.loops.spawn_on(body, on).id();
        self.names.insert(id, name);
    }

    /// A loop that runs a thread: its panic becomes the task's end.
    pub(super) fn start_thread(
        &mut self,
        name: &'static str,
        body: impl Future<Output = Result<(), Panicked>> + Send + 'static,
        lifecycle: &Lifecycle,
    ) {
        let lifecycle = lifecycle.clone();
        self.start(name, async move {
            if body.await.is_ok() {
                // It has ended because it was told to, a moment before everyone else saw it.
                lifecycle.reached(Phase::Stopped).await;
            }
        });
    }

    /// The name of the next loop that ends, however it does; none when all have.
    pub(super) async fn ended(&mut self) -> Option<&'static str> {
        let ended = self.loops.join_next_with_id().await?;
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => error.id(),
        };
        Some(self.names.remove(&id).unwrap_or("loop"))
    }
}

/// Runs `body`; its end before the phase is `Stopped` is not a failure.
pub(super) async fn until_stopped(body: impl Future<Output = ()>, lifecycle: Lifecycle) {
    body.await;
    lifecycle.reached(Phase::Stopped).await;
}

/// Runs `body` from when this node has become a member: one that the data there does not fit, because they are of
/// another version of the contract, must not tick either.
pub(super) async fn once_member(mut members: watch::Receiver<Report>, body: impl Future<Output = ()>, life: Lifecycle) {
    // The value that is found must not be held while `body` runs.
    let entered = async { members.wait_for(|report| report.is_member).await.is_ok() };
    tokio::select! {
        biased;
        () = life.reached(Phase::Stopped) => {}
        true = entered => body.await,
    }
}
