//! Making the death of an essential loop visible.
//!
//! A node whose broadcaster has panicked still accepts sockets, answers probes and sends nothing. Tokio and std both
//! keep such a panic to themselves until somebody asks for the result; so whoever starts an essential loop awaits it
//! here and gets [`Panicked`], upon which the process ends and its supervisor starts a new one.
//!
//! Deliberately absent: restarting a loop in place. What it left half done is unknown; a fresh process is not.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

/// The loop of this name has panicked: the process cannot do its work any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} panicked")]
pub struct Panicked(pub &'static str);

/// Runs `body` on a thread of its own and waits for its end. The thread must watch the lifecycle by itself: dropping
/// the returned future does not end it.
///
/// # Errors
/// [`Panicked`] when it panicked, or when the system gave no thread.
pub async fn thread(name: &'static str, body: impl FnOnce() + Send + 'static) -> Result<(), Panicked> {
    let (done, ended) = oneshot::channel();
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // Unwinding is caught only to report it; nothing of `body` is used afterwards.
        let outcome = catch_unwind(AssertUnwindSafe(body));
        // Nobody waits any more: then nobody needs to know.
        let _ = done.send(outcome.is_ok());
    });
    if let Err(error) = started {
        tracing::error!(thread = name, %error, "no thread could be started");
        return Err(Panicked(name));
    }
    match ended.await {
        Ok(true) => Ok(()),
        Ok(false) | Err(_) => Err(Panicked(name)),
    }
}

/// Runs `body` as a task of `tasks` and waits for its end.
///
/// # Errors
/// [`Panicked`] when it panicked.
pub async fn task<F>(name: &'static str, tasks: &TaskTracker, body: F) -> Result<F::Output, Panicked>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tasks.spawn(body).await.map_err(|_| Panicked(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_seen_and_an_end_is_not_one() {
        assert_eq!(thread("calm", || ()).await, Ok(()));
        assert_eq!(thread("wild", || panic!("planted")).await, Err(Panicked("wild")));
        let tasks = TaskTracker::new();
        assert_eq!(task("calm", &tasks, async { 7 }).await, Ok(7));
        assert_eq!(task("wild", &tasks, async { panic!("planted") }).await, Err::<(), _>(Panicked("wild")));
    }
}
