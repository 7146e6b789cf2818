//! The broadcaster: one thread that writes every message to every socket.
//!
//! It is a thread and not a task because a pass over 10,000 sockets is tens of milliseconds of system calls, which
//! would starve whatever shares a worker with it.
//!
//! Its cost is nearly all kernel, and nearly all per write. So messages that queue up while a pass is running go out
//! together in the next one, as ONE write per socket: the more there is to do, the cheaper each message gets. A lone one
//! is never delayed; where messages come faster than passes, a short rest after each gathers more of them for the next
//! (`hub/pace.rs`). Each form that sockets asked for is encoded once per pass (`hub/forms.rs`), when the first socket of
//! that form comes along. Pings ride with snapshots (`hub/pulse.rs`).
//!
//! On machines with cores to spare a pass is shared out: each of a few threads writes to a part of the sockets, and the
//! pass ends when all are done. The threads are started for the pass, which costs less than a hundredth of what they
//! write, and leaves nothing to be kept alive, fed or shut down in between.
//!
//! Invariants:
//! - Inv. ORDER: one thread, one queue: every socket gets messages in the queue's order. What a pass brings is said
//!   (`Core::begin_pass`) before the sockets are looked up.
//! - Inv. BOUND: the queue is bounded in messages, a pass in messages and bytes; a full queue makes the sender wait.
//! - Inv. ISOLATION: a socket that takes nothing costs a pass no more than one that does.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use shared::ids::EventId;
use shared::message::MessageKind;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::conn::Conn;
use super::core::Brought;
use super::forms::{Forms, Pass};
use super::pace::{Pace, Passed};
use super::pulse::Ride;
use super::ring::Item;
use super::{Hub, State};
use crate::clock::Clock;
use crate::lifecycle::{Lifecycle, Phase};
use crate::metrics::Direction;
use crate::supervise::{self, Panicked};
use crate::vitals::Loop;

/// Messages that wait for the broadcaster. The relay, which fills it, waits when it is full.
pub const QUEUE_MAX: usize = 1024;
/// Messages of one pass.
const PASS_MESSAGES_MAX: usize = 256;
/// Bytes of one pass: no more than a healthy reader's kernel buffer takes in one write.
const PASS_BYTES_MAX: usize = 16 * 1024;
/// Fewer sockets than this (ten milliseconds of writing) are not worth another thread's start; tests have fewer.
const SOCKETS_PER_WRITER_MIN: usize = if cfg!(test) { 4 } else { 2_000 };
/// So many sockets are written to, in a millisecond or two, between two looks at the clock: a process that is stopped in
/// the middle of a pass tells few of them a number that has become stale meanwhile.
const SOCKETS_PER_LOOK: usize = 256;
/// The broadcaster comes round this often when there is nothing to send.
const IDLE: Duration = Duration::from_secs(2);

const _: () = assert!(IDLE.as_secs() < crate::vitals::STALLED_AFTER.as_secs());

/// A message for all sockets.
#[derive(Debug, Clone)]
pub struct Broadcast {
    /// Which kind; sockets may have chosen.
    pub kind: MessageKind,
    /// The message as clients without ids get it; a number that is stale when it is written is put into words anew.
    pub text: String,
    /// Its id, for clients with ids.
    pub id: Option<EventId>,
    /// The state that it brings: `Some` for a `realtime_update`.
    pub state: Option<State>,
}

/// The broadcaster has ended, and with it the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the broadcaster has ended")]
pub struct Ended;

/// Gives messages to the broadcaster; clones share one queue.
#[derive(Debug, Clone)]
pub struct BroadcastSender(mpsc::Sender<Queued>);

impl BroadcastSender {
    /// Queues word of a snapshot that is not shown here: somebody may have seen it elsewhere. Waits as [`Self::send`].
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn passed(&self, snapshot: EventId) -> Result<(), Ended> {
        self.0.send(Queued::Passed(snapshot)).await.map_err(|_| Ended)
    }

    /// Queues word that everything in the stream has been queued, as [`Hub::end_asked`] had wanted by this number.
    /// Waits as [`Self::send`].
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn read_to_end(&self, asked: u64) -> Result<(), Ended> {
        self.0.send(Queued::ReadToEnd(asked)).await.map_err(|_| Ended)
    }

    /// Queues a message; waits while the queue is full. Cancel safe: a dropped call has queued nothing.
    ///
    /// # Errors
    /// [`Ended`] when nobody will ever send it.
    pub async fn send(&self, message: Broadcast) -> Result<(), Ended> {
        self.0.send(Queued::Message(message)).await.map_err(|_| Ended)
    }
}

/// What the broadcaster is given, in the order of the stream.
#[derive(Debug)]
enum Queued {
    Message(Broadcast),
    Passed(EventId),
    ReadToEnd(u64),
}

/// The broadcaster's end of the queue, for [`run`].
#[derive(Debug)]
pub struct BroadcastReceiver(mpsc::Receiver<Queued>);

#[cfg(test)]
impl BroadcastReceiver {
    /// The next message, in the place of [`run`]: for tests of those who send.
    pub(crate) async fn next(&mut self) -> Option<Broadcast> {
        loop {
            if let Queued::Message(message) = self.0.recv().await? {
                return Some(message);
            }
        }
    }
}

/// The queue of messages to send.
#[must_use]
pub fn channel() -> (BroadcastSender, BroadcastReceiver) {
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    (BroadcastSender(sender), BroadcastReceiver(receiver))
}

/// Sends what comes until the process stops or all senders are gone.
///
/// # Errors
/// [`Panicked`]: then nothing is delivered any more; the process must end.
pub async fn run(hub: Arc<Hub>, receiver: BroadcastReceiver, lifecycle: Lifecycle) -> Result<(), Panicked> {
    let runtime = tokio::runtime::Handle::current();
    let mut queue = receiver.0;
    supervise::thread("broadcaster", move || {
        let mut sockets = Vec::new();
        let mut batch = Batch::default();
        let mut pace = Pace::new(hub.core.settings.flush_interval, Instant::now());
        loop {
            hub.vitals.moved(Loop::Broadcaster);
            match runtime.block_on(wait(&mut queue, &lifecycle)) {
                Woken::Something(first) => batch.push(first),
                Woken::Idle => continue,
                Woken::Stop => return,
            }
            runtime.block_on(batch.gather(&mut queue, &pace, &lifecycle));
            let (messages, began) = (batch.messages.len(), Instant::now());
            pass(&hub, &mut batch, &mut sockets);
            pace.passed(Passed { messages, left: queue.len(), began, ended: Instant::now() });
        }
    })
    .await
}

enum Woken {
    Something(Queued),
    Idle,
    Stop,
}

/// Waits for a message, the end, or long enough to show that the loop lives. Stopping comes first: a queue that
/// never runs dry must not hold it up.
async fn wait(queue: &mut mpsc::Receiver<Queued>, lifecycle: &Lifecycle) -> Woken {
    tokio::select! {
        biased;
        () = lifecycle.reached(Phase::Stopped) => Woken::Stop,
        next = queue.recv() => next.map_or(Woken::Stop, Woken::Something),
        () = tokio::time::sleep(IDLE) => Woken::Idle,
    }
}

/// What one pass brings.
#[derive(Debug, Default)]
pub(super) struct Batch {
    messages: Vec<Broadcast>,
    bytes: usize,
    /// What of it, and of what is not shown, becomes part of the past.
    items: Vec<Item>,
    read_to_end: Option<u64>,
}

impl Batch {
    /// Takes what waits in the queue, and what comes until the pass may begin, as far as one pass goes. A full pass
    /// goes at once: waiting would only fill the queue behind it.
    async fn gather(&mut self, queue: &mut mpsc::Receiver<Queued>, pace: &Pace, lifecycle: &Lifecycle) {
        while self.messages.len().max(self.items.len()) < PASS_MESSAGES_MAX && self.bytes < PASS_BYTES_MAX {
            let next = match queue.try_recv() {
                Ok(next) => Some(next),
                Err(_) => {
                    let earliest = pace.earliest(self.messages.len());
                    if earliest <= Instant::now() {
                        return;
                    }
                    tokio::select! {
                        biased;
                        () = lifecycle.reached(Phase::Stopped) => None,
                        next = queue.recv() => next,
                        () = tokio::time::sleep_until(earliest) => None,
                    }
                }
            };
            let Some(next) = next else { return };
            self.push(next);
        }
    }

    fn push(&mut self, next: Queued) {
        match next {
            Queued::Message(message) => self.add(message),
            Queued::Passed(id) => self.items.push(Item::passed(id)),
            Queued::ReadToEnd(asked) => self.read_to_end = Some(asked),
        }
    }

    /// Adds a message.
    pub(super) fn add(&mut self, message: Broadcast) {
        self.bytes += message.text.len();
        self.items.extend(Item::of(&message));
        self.messages.push(message);
    }

    fn clear(&mut self) {
        self.messages.clear();
        (self.bytes, self.read_to_end) = (0, None);
    }
}

/// Writes what `batch` brings to all sockets, and clears it. `sockets` is empty before and after; it is kept for its
/// memory.
pub(super) fn pass(hub: &Hub, batch: &mut Batch, sockets: &mut Vec<Arc<Conn>>) {
    let (core, messages) = (&hub.core, &batch.messages);
    let state = messages.iter().rev().find_map(|message| message.state);
    let last_id = messages.iter().rev().find_map(|message| message.id);
    let (items, read_to_end) = (std::mem::take(&mut batch.items), batch.read_to_end);
    let (number, id_before) = core.begin_pass(Brought { state, last_id, items, read_to_end });
    if !messages.is_empty() {
        visit(hub, &Pass { messages, number, id_before, ride: ride(hub, messages), wall: Clock::wall() }, sockets);
    }
    if core.has_waiting() {
        hub.for_each(|conn| conn.wake_waiting());
    }
    batch.clear();
}

/// Whether pings may leave with this pass: it must bring a snapshot.
fn ride(hub: &Hub, messages: &[Broadcast]) -> Option<Ride> {
    let (core, settings) = (&hub.core, &hub.core.settings);
    let brings = messages.iter().any(|message| message.kind == MessageKind::RealtimeUpdate);
    let now = core.last_sweep.moment(hub.clock.now_ms());
    Ride::new(now, settings.limits()).filter(|_| brings)
}

fn visit(hub: &Hub, pass: &Pass<'_>, sockets: &mut Vec<Arc<Conn>>) {
    let core = &hub.core;
    hub.snapshot(sockets);
    let write = |sockets: &[Arc<Conn>]| write(hub, pass, sockets);
    let share = sockets.len().div_ceil(core.settings.writers_max.max(1)).max(SOCKETS_PER_WRITER_MIN);
    let mut shares = sockets.chunks(share);
    let first = shares.next().unwrap_or_default();
    // Inv. ORDER: the scope ends when every share is written, so passes never overlap, not even on one socket.
    let sent = std::thread::scope(|scope| {
        let others: Vec<_> = shares.map(|share| scope.spawn(|| write(share))).collect();
        let joined = others.into_iter().map(|other| other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        write(first) + joined.sum::<u64>()
    });
    sockets.clear();
    core.metrics.messages.add(Direction::Sent, sent);
    core.metrics.passes.inc();
}

/// Writes what the pass brings to some of the sockets; returns how many messages were written at once.
fn write(hub: &Hub, pass: &Pass<'_>, sockets: &[Arc<Conn>]) -> u64 {
    let core = &hub.core;
    let mut forms = Forms::new(pass, core.now());
    let mut sent = 0;
    for some in sockets.chunks(SOCKETS_PER_LOOK) {
        forms.at(core.now());
        for conn in some {
            sent += conn.send_pass(core, &mut forms);
            if core.is_overloaded() {
                hub.shed();
            }
        }
    }
    sent
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: usize) -> Broadcast {
        Broadcast { kind: MessageKind::NewEvent, text: format!("{number}"), id: None, state: None }
    }

    async fn gathered(queued: usize, pace: Pace) -> usize {
        let (sender, mut receiver) = channel();
        for number in 0..queued {
            sender.send(event(number)).await.expect("the receiver lives");
        }
        let mut batch = Batch::default();
        batch.gather(&mut receiver.0, &pace, &Lifecycle::default()).await;
        batch.messages.len()
    }

    #[tokio::test(start_paused = true)]
    async fn without_an_interval_a_pass_takes_what_waits_and_goes() {
        let begin = Instant::now();
        let pace = Pace::new(Duration::ZERO, begin);
        assert_eq!(gathered(0, pace).await, 0);
        assert_eq!(gathered(3, pace).await, 3);
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn with_an_interval_a_pass_waits_for_more_unless_it_is_full() {
        let begin = Instant::now();
        let mut pace = Pace::new(Duration::from_millis(200), begin);
        pace.passed(Passed { messages: 1, left: 0, began: begin, ended: begin });
        assert_eq!(gathered(3, pace).await, 3);
        assert_eq!(begin.elapsed(), Duration::from_millis(200));
        // Inv. BOUND: what is more than a pass is left for the next one.
        let begin = Instant::now();
        pace.passed(Passed { messages: 1, left: 0, began: begin, ended: begin });
        assert_eq!(gathered(PASS_MESSAGES_MAX + 7, pace).await, PASS_MESSAGES_MAX);
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    #[expect(clippy::disallowed_methods, reason = "ends with the test")]
    async fn a_rest_gathers_what_comes_and_ends_when_that_is_enough() {
        let (sender, mut receiver) = channel();
        let begin = Instant::now();
        let mut pace = Pace::new(Duration::ZERO, begin);
        let pass_after = async |pace: &Pace, receiver: &mut BroadcastReceiver| {
            let mut batch = Batch::default();
            batch.gather(&mut receiver.0, pace, &Lifecycle::default()).await;
            (batch.messages.len(), begin.elapsed().as_millis())
        };
        // One message each 3 ms, for as long as it takes.
        let events = tokio::spawn(async move {
            let mut ticks = tokio::time::interval_at(begin + Duration::from_millis(1), Duration::from_millis(3));
            for number in 0.. {
                ticks.tick().await;
                if sender.send(event(number)).await.is_err() {
                    return;
                }
            }
        });
        // The last pass took 40 ms and is just over: a rest of 20 ms, in which come seven.
        let passed = |began, ended| Passed { messages: 2, left: 1, began, ended };
        pace.passed(passed(begin - Duration::from_millis(40), begin));
        assert_eq!(pass_after(&pace, &mut receiver).await, (7, 20));
        // It took a second: sixteen come before the longest rest is over.
        pace.passed(passed(begin - Duration::from_secs(1), Instant::now()));
        assert_eq!(pass_after(&pace, &mut receiver).await, (16, 67));
        drop(receiver);
        events.await.expect("ends");
    }
}
