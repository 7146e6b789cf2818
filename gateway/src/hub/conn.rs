//! One socket: written to from any thread, and closed from any thread.
//!
//! A task and a queue per socket are the obvious design, and cost a wake-up and a copy of the queue's bookkeeping per
//! message and socket. Here the sender writes: a small lock is taken, the kernel takes the bytes, done. Only when
//! the kernel takes no more, an `Outbox` is made, and the socket's task (`hub/task.rs`) writes the rest.
//!
//! Who may write follows from one rule: **while there is an outbox, everything goes through it**. So no byte
//! overtakes another (Inv. ORDER), and a socket at rest is this struct, a sleeping task and a slot in a map. A client
//! that catches up (`hub/replay.rs`) has an outbox for as long as that takes.
//!
//! Locks: the socket's own is the only one held while writing. [`super::Hub::open`] takes the map's inside of it; nobody
//! takes it inside of the map's. Nothing is awaited and no foreign code runs under it.

use std::io;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use shared::close::{CloseReason, draining_text};
use shared::ids::{ConnId, EventId};
use shared::message::MessageKinds;
use socket2::SockRef;
use tokio::net::TcpStream;

use super::catch_up::{Progress, catch_up};
use super::core::Core;
use super::forms::Forms;
use super::outbox::{Content, Loss, Outbox, Resync};
use super::parcel::Parcel;
use super::pulse::{Action, Limits, Pulse};
use super::replay::Replay;
use super::sweep::SweepTime;
use super::{Ids, SocketPermit, frame};
use crate::backplane::AddressHash;
use crate::identity::VisitorDigest;
use crate::metrics::{Close, Direction};

/// Writes for one client before others have their turn.
const WRITES_PER_TURN: usize = 16;

/// An open WebSocket.
#[derive(Debug)]
pub struct Conn {
    id: ConnId,
    visitor: VisitorDigest,
    stream: TcpStream,
    inner: Mutex<Inner>,
}

// A socket at rest is what a node has most of: with the two counts of its `Arc` it fits jemalloc's class of 160
// bytes. What is rarely needed is boxed.
const _: () = assert!(size_of::<Conn>() + 2 * size_of::<usize>() <= 160);

/// What changes in a socket's life.
#[derive(Debug)]
pub(super) struct Inner {
    /// Exists while the kernel's buffer is full. Then only the task writes.
    pub(super) outbox: Option<Box<Outbox>>,
    /// Wakes the socket's task.
    waker: Option<Waker>,
    permit: Option<Box<dyn SocketPermit>>,
    /// The last pass that the socket's `init` stands for; see [`Core::begin_pass`].
    pub(super) sequence: u64,
    pulse: Pulse,
    life: Life,
    /// Never change; they are here because the lock's padding has room for them.
    pub(super) kinds: MessageKinds,
    ids: Ids,
}

/// Where a socket is in its life. Forward only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// Messages flow.
    Open,
    /// A close frame was written or queued, and is the last frame.
    Closing(Close),
    /// Nothing is to be written or read any more.
    Ended(Close),
}

impl Conn {
    pub(super) fn new(
        id: ConnId,
        stream: TcpStream,
        (kinds, ids): (MessageKinds, Ids),
        visitor: VisitorDigest,
        permit: Option<Box<dyn SocketPermit>>,
        pulse: Pulse,
    ) -> Self {
        let inner = Inner { outbox: None, waker: None, permit, sequence: 0, pulse, life: Life::Open, kinds, ids };
        Self { id, visitor, stream, inner: Mutex::new(inner) }
    }

    /// Its name within this process.
    #[must_use]
    pub fn id(&self) -> ConnId {
        self.id
    }

    /// Who looks.
    #[must_use]
    pub fn visitor(&self) -> VisitorDigest {
        self.visitor
    }

    /// Whose address slot it holds; none once it is being sent away, or where it was let in without.
    #[must_use]
    pub fn address(&self) -> Option<AddressHash> {
        self.inner.lock().permit.as_ref().map(|permit| permit.address())
    }

    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Writes or queues `answer`, which ends the handshake, and `init` with the present state, in the guard that
    /// [`Conn::lock`] gave. What came after `resume` follows, as the socket's task finds room. Returns the messages
    /// written.
    // Inv. ORDER: nothing was written before, because the guard has been held since the socket was put into the map.
    pub(super) fn join(&self, core: &Core, inner: &mut Inner, answer: &Bytes, resume: Option<EventId>) -> u64 {
        let Some(last) = resume else {
            let greeting = core.greeting(inner.ids);
            return self.greet(core, inner, answer, greeting);
        };
        // Before it is looked where the stream is; see `Core::waiting`.
        let waiting = core.waiting();
        let greeting = Resync { last_id: resume, ..core.resync(inner.ids) };
        let replay = Replay::new(last, greeting.state, waiting);
        let sent = self.greet(core, inner, answer, greeting);
        inner.outbox.get_or_insert_default().replay = Some(Box::new(replay));
        sent
    }

    fn greet(&self, core: &Core, inner: &mut Inner, answer: &Bytes, greeting: Resync) -> u64 {
        const INIT: Content = Content::State(None);
        inner.sequence = greeting.sequence;
        let answer = (!answer.is_empty()).then(|| Parcel::single(answer.clone(), Content::Answer));
        let parcel = match (answer, greeting.init) {
            (Some(answer), Some(init)) => answer.followed_by(&init, INIT),
            (Some(answer), None) => answer,
            (None, Some(init)) => Parcel::single(init, INIT),
            (None, None) => return 0,
        };
        self.offer(core, inner, &parcel, greeting.last_id)
    }

    /// Writes or queues what a broadcast pass brings, unless the socket's `init` stands for it already: the messages
    /// that it wants to hear, and with a snapshot its ping, if one would fall due before the next. Returns how many
    /// messages were written at once. Never blocks. One lock for all of it: a pass is mostly this, 10,000 times.
    // Inv. ORDER: a pass that is not newer than the socket's start is skipped, so nothing comes twice. One that catches
    // up finds the pass in the past.
    pub(super) fn send_pass(&self, core: &Core, forms: &mut Forms<'_>) -> u64 {
        let mut inner = self.inner.lock();
        if inner.life != Life::Open || forms.pass().number <= inner.sequence || inner.is_catching_up() {
            return 0;
        }
        let wants = (inner.kinds, inner.ids);
        let last_id = forms.pass().id_before;
        // The ping is noted as open before it is written, so its pong finds it.
        match forms.parcel(wants, |ride| inner.pulse.rides(ride)) {
            Some(parcel) => self.offer(core, &mut inner, parcel, last_id),
            None => 0,
        }
    }

    /// Writes or queues `parcel`; returns how many messages were written at once. Never blocks.
    pub(super) fn send(&self, core: &Core, parcel: &Parcel) -> u64 {
        self.offer(core, &mut self.inner.lock(), parcel, None)
    }

    /// `last_id`: everything up to this message was written or queued before.
    fn offer(&self, core: &Core, inner: &mut Inner, parcel: &Parcel, last_id: Option<EventId>) -> u64 {
        if inner.life != Life::Open {
            return 0;
        }
        let written = match inner.outbox {
            Some(_) => 0,
            None => match self.write(inner, &parcel.bytes) {
                Some(written) => written,
                None => return 0,
            },
        };
        if written < parcel.bytes.len() {
            inner.queue(core, parcel, written, last_id);
        }
        parcel.messages_within(written)
    }

    /// Writes what the kernel takes of `bytes`; none when the connection is broken.
    fn write(&self, inner: &mut Inner, bytes: &[u8]) -> Option<usize> {
        match self.stream.try_write(bytes) {
            Ok(written) => Some(written),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Some(0),
            Err(_) => {
                inner.end(Close::Io);
                None
            }
        }
    }

    /// A pong came.
    pub(super) fn pong(&self) {
        self.inner.lock().pulse.pong();
    }

    /// Whether a pong is owed.
    pub(super) fn is_ping_open(&self) -> bool {
        self.inner.lock().pulse.is_ping_open()
    }

    /// The reader has begun a frame, or goes on with a fragmented message.
    pub(super) fn frame_begun(&self, core: &Core) {
        self.inner.lock().pulse.frame_begun(core.sweep_time());
    }

    /// The reader holds no part of a frame or message.
    pub(super) fn frame_done(&self) {
        self.inner.lock().pulse.frame_done();
    }

    /// What the sweep at `now` has to do about this socket.
    // Inv. ISOLATION: a node that is behind with reading does not close those who have answered.
    pub(super) fn judge(&self, now: SweepTime, limits: Limits) -> Action {
        let mut inner = self.inner.lock();
        let action = inner.pulse.judge(now, limits);
        let is_late = action == Action::Close(CloseReason::PongTimeout);
        if is_late && self.has_unread() && inner.pulse.wait_longer(now) { Action::Nothing } else { action }
    }

    /// Whether the kernel holds bytes that the socket's task has not got round to.
    fn has_unread(&self) -> bool {
        matches!(SockRef::from(&self.stream).peek(&mut [MaybeUninit::uninit()]), Ok(1..))
    }

    /// The cost of what waits for the reader, in bytes.
    pub(super) fn outbox_bytes(&self) -> usize {
        self.inner.lock().outbox.as_ref().map_or(0, |outbox| outbox.bytes())
    }

    /// Sends a close frame, after what is queued; where the reader is the problem, instead of it. Only the first
    /// close of a socket counts.
    pub(super) fn close(&self, core: &Core, reason: CloseReason) {
        let queued = match reason {
            CloseReason::Overloaded | CloseReason::PongTimeout => Queued::Discard,
            _ => Queued::Keep,
        };
        self.begin_close(core, reason.into(), frame::close(reason.code(), reason.text()), queued);
    }

    /// Gives the place of its address back, before its end.
    pub(super) fn give_place_back(&self) {
        // Taken under the lock, dropped without it: the permit has locks of its own.
        let permit = self.inner.lock().permit.take();
        drop(permit);
    }

    /// Sends the socket away because the node is going down.
    // Inv. CAP: the address slot is free before the client knows that it has to come back.
    pub(super) fn close_draining(&self, core: &Core, retry_after_ms: u64) {
        self.give_place_back();
        let text = draining_text(retry_after_ms);
        let frame = frame::close(CloseReason::Draining.code(), &text);
        self.begin_close(core, Close::Draining, frame, Queued::Keep);
    }

    /// Answers the peer's close frame with its own code (RFC 6455 section 5.5.1). `payload`: two bytes, or none.
    pub(super) fn answer_close(&self, core: &Core, payload: &[u8]) {
        let frame = frame::encode(fastwebsockets::OpCode::Close, payload);
        self.begin_close(core, Close::Normal, frame, Queued::Discard);
    }

    fn begin_close(&self, core: &Core, close: Close, frame: Bytes, queued: Queued) {
        let mut inner = self.inner.lock();
        if inner.life != Life::Open {
            return;
        }
        if queued == Queued::Discard {
            inner.discard(core);
        }
        self.offer(core, &mut inner, &Parcel::single(frame, Content::Close), None);
        inner.life = match inner.life {
            Life::Open | Life::Closing(_) => Life::Closing(close),
            // The connection broke under the close frame; the reason for it stays.
            Life::Ended(_) => Life::Ended(close),
        };
        inner.pulse.close_begun(core.sweep_time());
        inner.wake();
    }

    /// Ends the socket without another word.
    pub(super) fn end(&self) {
        self.inner.lock().end(Close::Io);
    }

    pub(super) fn life(&self) -> Life {
        self.inner.lock().life
    }

    /// Writes what is queued. Ready when nothing is; the task is woken when that changes, or the socket's life does.
    ///
    /// # Errors
    /// The socket's.
    pub(super) fn poll_flush(&self, core: &Core, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        for _ in 0..WRITES_PER_TURN {
            {
                let mut inner = self.inner.lock();
                inner.remember(cx.waker());
                if inner.outbox.is_none() {
                    return Poll::Ready(Ok(()));
                }
                self.flush(core, &mut inner)?;
                match catch_up(&self.stream, core, &mut inner)? {
                    Progress::Nothing => return Poll::Ready(Ok(())),
                    Progress::Written => continue,
                    Progress::NoRoom => {}
                }
            }
            // The kernel took nothing, and tokio knows. Ready here means that it does again.
            match self.stream.poll_write_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => return Poll::Pending,
            }
        }
        // Inv. ISOLATION: a reader that takes all that it gets lets others have a turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// The stream has news for those who wait for it.
    pub(super) fn wake_waiting(&self) {
        let inner = self.inner.lock();
        if inner.is_catching_up() {
            inner.wake();
        }
    }

    fn flush(&self, core: &Core, inner: &mut Inner) -> io::Result<()> {
        let ids = inner.ids;
        let Some(outbox) = inner.outbox.as_mut() else { return Ok(()) };
        let before = outbox.bytes();
        let flushed = outbox.flush(|slices| self.stream.try_write_vectored(slices), || core.resync(ids));
        core.settle(before, outbox.bytes());
        let flushed = flushed?;
        if let Some(sequence) = flushed.resynced {
            inner.sequence = sequence;
        }
        if flushed.done {
            inner.outbox = None;
        }
        core.metrics.messages.add(Direction::Sent, flushed.messages);
        Ok(())
    }

    /// Tells the peer that nothing follows.
    pub(super) fn shutdown(&self, how: Shutdown) {
        // An error means that the connection is gone already, which is what was wanted.
        let _ = SockRef::from(&self.stream).shutdown(how);
    }

    /// Gives back what the socket held, at its end. Returns how it ended.
    pub(super) fn release(&self, core: &Core) -> Close {
        let mut inner = self.inner.lock();
        inner.end(Close::Io);
        if let Some(outbox) = inner.outbox.take() {
            core.settle(outbox.bytes(), 0);
        }
        let permit = inner.permit.take();
        let Life::Ended(close) = inner.life else { return Close::Io };
        drop(inner);
        drop(permit);
        close
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Queued {
    Keep,
    Discard,
}

impl Inner {
    fn queue(&mut self, core: &Core, parcel: &Parcel, written: usize, last_id: Option<EventId>) {
        let limit = core.settings.outbox_bytes_max;
        let is_new = self.outbox.is_none();
        let outbox = self.outbox.get_or_insert_default();
        let before = outbox.bytes();
        outbox.assume_delivered(last_id);
        let mut loss = Loss::default();
        let mut start = 0;
        for mark in &parcel.marks {
            if mark.end <= written {
                outbox.delivered(mark.content.id());
            } else if start < written {
                outbox.push_half(parcel.bytes.slice(written..mark.end), mark.content);
            } else {
                loss += outbox.push(parcel.bytes.slice(start..mark.end), mark.content, limit);
            }
            start = mark.end;
        }
        core.settle(before, outbox.bytes());
        core.count_loss(loss);
        // An older outbox has the task waiting for the kernel already, unless it waits for the stream.
        if is_new || self.is_catching_up() {
            self.wake();
        }
    }

    /// Whether the past is being read instead of passes.
    fn is_catching_up(&self) -> bool {
        self.outbox.as_ref().is_some_and(|outbox| outbox.replay.is_some())
    }

    fn discard(&mut self, core: &Core) {
        if let Some(outbox) = self.outbox.as_mut() {
            let before = outbox.bytes();
            let events = outbox.discard();
            core.settle(before, outbox.bytes());
            core.count_loss(Loss { events, overflows: 0 });
        }
    }

    /// Ends the socket; one that was being closed ends for that reason.
    fn end(&mut self, close: Close) {
        self.life = match self.life {
            Life::Open => Life::Ended(close),
            Life::Closing(close) | Life::Ended(close) => Life::Ended(close),
        };
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    fn remember(&mut self, waker: &Waker) {
        if !self.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            self.waker = Some(waker.clone());
        }
    }
}
