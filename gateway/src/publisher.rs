//! Appends to the stream on behalf of everyone on this node: one request under way, each done at most once.
//!
//! A request whose answer is lost may have been carried out, so it is repeated under the same number, and the
//! backplane answers a repetition instead of doing it again. That works for *one* request under way per node: the
//! backplane remembers the last number of each node, nothing more. Hence one task, and a queue before it. What waits
//! in the queue when a request ends goes out as one request (group commit), so throughput does not depend on how far
//! away the backplane is.
//!
//! A request that is given up (its deadline has passed) may still be carried out, late. Its number is never used
//! again: the next one is higher, so the late request either comes before it or is refused as superseded. What is
//! reported as unavailable can therefore stand in the stream, but nothing can stand there twice.
//!
//! Bounds: [`SUBMISSIONS_MAX`] submissions and [`ITEMS_WAITING_MAX`] items wait; beyond it [`PublishError::Full`]
//! (Inv. BOUND).

use std::sync::Arc;
use std::time::Duration;

use shared::backoff::Backoff;
use shared::ids::{EventId, NodeId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use crate::backplane::{
    Backplane, BackplaneError, Lease, PUBLISH_ITEMS_MAX, Publication, Publish, PublishReply, TouchReply,
};
use crate::identity::VisitorDigest;
use crate::lifecycle::{Lifecycle, Phase};
use crate::metrics::Metrics;
use crate::presence::Presence;

/// Submissions that wait.
pub const SUBMISSIONS_MAX: usize = 1024;
/// Items of all submissions that wait or are under way. An item is below 1 KiB.
pub const ITEMS_WAITING_MAX: usize = 10_000;
/// From submission to [`PublishError::Unavailable`]. Longer than one command's timeout (2 s), so that a request which
/// was lost on a broken connection has a second chance; short enough for a producer who waits.
pub const GIVE_UP_AFTER: Duration = Duration::from_millis(2_500);
const BACKOFF_BASE: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(250);

const _: () = assert!(ITEMS_WAITING_MAX >= PUBLISH_ITEMS_MAX, "the largest submission must fit");

/// Something to append to the stream: at most [`PUBLISH_ITEMS_MAX`] items, together and in this order.
#[derive(Debug)]
pub struct Submission {
    /// What, and who caused it.
    pub items: Vec<(Publication, Option<VisitorDigest>)>,
    /// Only while this lease holds.
    pub lease: Option<Lease>,
    /// W3C trace context.
    pub traceparent: Option<String>,
}

/// Why nothing is known to stand in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Too much waits already; nothing was sent. Try again later.
    #[error("too many events wait")]
    Full,
    /// The backplane gave no answer in time; the events may stand in the stream. Try again later.
    #[error("the backplane cannot take events")]
    Unavailable,
    /// The lease is no longer held; nothing was done, and somebody else's turn it is.
    #[error("the lease is no longer held")]
    Fenced,
}

/// The way in; clones share the queue.
#[derive(Debug, Clone)]
pub struct Publisher {
    queue: mpsc::Sender<Waiting>,
    room: Arc<Semaphore>,
}

/// The one who publishes: see [`PublisherTask::run`].
#[derive(Debug)]
pub struct PublisherTask {
    queue: mpsc::Receiver<Waiting>,
    backplane: Arc<dyn Backplane>,
    node: NodeId,
    presence: Arc<Presence>,
    metrics: Arc<Metrics>,
    /// Of the last request.
    number: u64,
    /// Taken from the queue, but not fit for the group before it.
    next: Option<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    submission: Submission,
    deadline: Instant,
    answer: oneshot::Sender<Result<Vec<EventId>, PublishError>>,
    /// Room in the queue, given back when the submission is answered.
    _room: OwnedSemaphorePermit,
}

impl Publisher {
    /// A queue and the task at its end.
    #[must_use]
    pub fn channel(
        backplane: Arc<dyn Backplane>,
        node: NodeId,
        presence: Arc<Presence>,
        metrics: Arc<Metrics>,
    ) -> (Self, PublisherTask) {
        let (sender, receiver) = mpsc::channel(SUBMISSIONS_MAX);
        let publisher = Self { queue: sender, room: Arc::new(Semaphore::new(ITEMS_WAITING_MAX)) };
        (publisher, PublisherTask { queue: receiver, backplane, node, presence, metrics, number: 0, next: None })
    }

    /// Appends, and tells the ids of the items in their order. Dropping the future does not undo it.
    ///
    /// # Errors
    /// [`PublishError`], within [`GIVE_UP_AFTER`].
    pub async fn publish(&self, submission: Submission) -> Result<Vec<EventId>, PublishError> {
        debug_assert!(submission.items.len() <= PUBLISH_ITEMS_MAX, "callers cut their batches");
        let items = u32::try_from(submission.items.len()).map_err(|_| PublishError::Full)?;
        // Inv. BOUND
        let room = Arc::clone(&self.room).try_acquire_many_owned(items).map_err(|_| PublishError::Full)?;
        let (answer, answered) = oneshot::channel();
        let deadline = Instant::now() + GIVE_UP_AFTER;
        self.queue.try_send(Waiting { submission, deadline, answer, _room: room }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => PublishError::Full,
            mpsc::error::TrySendError::Closed(_) => PublishError::Unavailable,
        })?;
        // The task drops what it holds when the process stops.
        answered.await.unwrap_or(Err(PublishError::Unavailable))
    }
}

impl PublisherTask {
    /// Publishes until the process stops.
    pub async fn run(mut self, lifecycle: Lifecycle) {
        loop {
            // Biased: an end comes before work. Receiving is cancel safe; publishing is left at once when the process
            // stops, as its answer would reach nobody.
            let group = tokio::select! {
                biased;
                () = lifecycle.reached(Phase::Stopped) => return,
                group = self.gather() => group,
            };
            let Some(group) = group else { return };
            tokio::select! {
                biased;
                () = lifecycle.reached(Phase::Stopped) => return,
                () = self.publish(group) => {}
            }
        }
    }

    /// What waits and may go as one request: the same lease, the same trace, not too many items. Cancel safe.
    async fn gather(&mut self) -> Option<Vec<Waiting>> {
        let first = match self.next.take() {
            Some(first) => first,
            None => self.queue.recv().await?,
        };
        let mut items = first.submission.items.len();
        let mut group = vec![first];
        while let Ok(waiting) = self.queue.try_recv() {
            let (head, candidate) = (&group[0].submission, &waiting.submission);
            items += candidate.items.len();
            let alike = head.lease == candidate.lease && head.traceparent == candidate.traceparent;
            if !alike || items > PUBLISH_ITEMS_MAX {
                self.next = Some(waiting);
                break;
            }
            group.push(waiting);
        }
        Some(group)
    }

    async fn publish(&mut self, mut group: Vec<Waiting>) {
        // Who has waited too long behind others is told so, without a request that could outlive the answer.
        let now = Instant::now();
        group.retain_mut(|waiting| now < waiting.deadline);
        let Some(deadline) = group.iter().map(|waiting| waiting.deadline).min() else { return };
        let mut items = Vec::with_capacity(PUBLISH_ITEMS_MAX);
        let mut visitors = Vec::new();
        let mut lengths = Vec::with_capacity(group.len());
        let (lease, traceparent) = (group[0].submission.lease, group[0].submission.traceparent.clone());
        for waiting in &mut group {
            lengths.push(waiting.submission.items.len());
            for (item, visitor) in waiting.submission.items.drain(..) {
                items.push(item);
                visitors.extend(visitor);
            }
        }
        let touch = (!visitors.is_empty()).then(|| self.presence.touch_of(&visitors)).flatten();
        let touched_here = touch.is_some();
        self.number += 1;
        let request = Publish { node: self.node, number: self.number, lease, items, touch, traceparent };
        let result = self.request(&request, deadline).await;
        let result = result.map(|(ids, touch)| {
            self.touched(&visitors, touched_here.then_some(touch));
            ids
        });
        answer(group, &lengths, &result);
    }

    /// One request, repeated under its number until it is answered or `deadline` has passed.
    async fn request(&self, request: &Publish, deadline: Instant) -> Result<(Vec<EventId>, TouchReply), PublishError> {
        let mut backoff = Backoff::new(BACKOFF_BASE, BACKOFF_MAX);
        loop {
            let reply = tokio::time::timeout_at(deadline, self.backplane.publish(request)).await;
            match reply {
                Ok(Ok(PublishReply::Done { ids, touch })) if ids.len() == request.items.len() => {
                    return Ok((ids, touch));
                }
                Ok(Ok(PublishReply::Fenced)) => return Err(PublishError::Fenced),
                Ok(Err(BackplaneError::Unreachable | BackplaneError::Timeout | BackplaneError::Backpressure)) => {}
                // An answer of another length, or to a later request than this, the last: not what the contract says.
                Ok(Ok(PublishReply::Done { .. } | PublishReply::Superseded))
                | Ok(Err(BackplaneError::Corrupt(_) | BackplaneError::Incompatible(_)))
                | Err(_) => return Err(PublishError::Unavailable),
            }
            let again = Instant::now() + backoff.next_delay(&mut rand::rng());
            if again >= deadline {
                return Err(PublishError::Unavailable);
            }
            tokio::time::sleep_until(again).await;
        }
    }

    /// Sees to it that the visitors of published events are marked, if not by the request then by a later touch.
    fn touched(&self, visitors: &[VisitorDigest], reply: Option<TouchReply>) {
        if visitors.is_empty() {
            return;
        }
        if reply == Some(TouchReply::Done) {
            self.metrics.visitors_touched.add(visitors.len() as u64);
            return;
        }
        self.presence.salts_refused();
        visitors.iter().for_each(|visitor| self.presence.arrived(*visitor));
    }
}

/// Gives each submission its part of the result.
fn answer(group: Vec<Waiting>, lengths: &[usize], result: &Result<Vec<EventId>, PublishError>) {
    let mut ids = result.as_ref().map(|ids| ids.iter().copied());
    for (waiting, length) in group.into_iter().zip(lengths) {
        let part = ids.as_mut().map(|ids| ids.take(*length).collect()).map_err(|error| **error);
        // Whoever asked may have gone away; what was published stays.
        let _ = waiting.answer.send(part);
    }
}

#[cfg(test)]
mod tests;
