//! A socket's task: asleep, unless bytes arrive, an outbox can be flushed, or the socket is being closed.
//!
//! It is a hand-written future because the compiler's own would keep room for its largest moment at all times. At rest
//! it is a few words; whatever needs more (a reader, the linger after a close) is boxed for as long as it lasts.
//!
//! A panic in here, so in the handling of one client's bytes, ends that client's socket with 1011 and nothing else
//! (Inv. ISOLATION). The registration removes the socket from the hub however the task ends, also when it is dropped
//! with the runtime.

use std::net::Shutdown;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use shared::close::CloseReason;

use super::Hub;
use super::conn::{Conn, Life};
use super::linger::linger;
use super::reader::{self, End};
use crate::session::Session;

/// A socket's membership in its hub.
#[derive(Debug)]
struct Registration {
    hub: Arc<Hub>,
    conn: Arc<Conn>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let close = self.conn.release(&self.hub.core);
        self.hub.remove(self.conn.id(), close);
        // Whoever holds the socket still, in a snapshot of all of them, must not keep the connection open by that.
        // Nobody can find it any more, so where this is the last hand, dropping it closes the connection.
        if Arc::strong_count(&self.conn) > 1 {
            self.conn.shutdown(Shutdown::Both);
        }
    }
}

/// What the task is doing.
enum Stage {
    /// Waiting for bytes.
    Quiet(Session),
    /// A frame has begun.
    Reading(Pin<Box<dyn Future<Output = Result<Session, End>> + Send>>),
    /// The close frame is out.
    Lingering(Pin<Box<dyn Future<Output = ()> + Send>>),
}

/// The task of one socket.
pub(super) struct SocketTask {
    registration: Registration,
    stage: Stage,
}

// With tokio's own header and trailer it fits the 256 bytes that tokio's alignment makes of anything above 128.
const _: () = assert!(size_of::<SocketTask>() <= 64);

impl SocketTask {
    /// The task of a socket that is in the hub's map. `leftover`: bytes that came with the handshake.
    pub(super) fn new(hub: Arc<Hub>, conn: Arc<Conn>, leftover: Bytes) -> Self {
        let stage = if leftover.is_empty() {
            Stage::Quiet(Session::default())
        } else {
            Stage::Reading(Box::pin(reader::read(hub.clone(), conn.clone(), Session::default(), leftover)))
        };
        Self { registration: Registration { hub, conn }, stage }
    }

    fn advance(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Registration { hub, conn } = &self.registration;
        loop {
            let flushed = match conn.poll_flush(&hub.core, cx) {
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(_)) => {
                    conn.end();
                    return Poll::Ready(());
                }
                Poll::Pending => false,
            };
            match conn.life() {
                Life::Open => {}
                Life::Ended(_) => return Poll::Ready(()),
                // The sweeper ends it if the reader never takes the close frame.
                Life::Closing(_) if !flushed => return Poll::Pending,
                Life::Closing(_) => {
                    if !matches!(self.stage, Stage::Lingering(_)) {
                        conn.shutdown(Shutdown::Write);
                        self.stage = Stage::Lingering(Box::pin(linger(conn.clone())));
                    }
                }
            }
            match &mut self.stage {
                Stage::Lingering(lingering) => return lingering.as_mut().poll(cx),
                Stage::Quiet(session) => match conn.stream().poll_read_ready(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(_)) => conn.end(),
                    Poll::Ready(Ok(())) => {
                        let session = std::mem::take(session);
                        let reading = reader::read(hub.clone(), conn.clone(), session, Bytes::new());
                        self.stage = Stage::Reading(Box::pin(reading));
                    }
                },
                Stage::Reading(reading) => match reading.as_mut().poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(session)) => self.stage = Stage::Quiet(session),
                    Poll::Ready(Err(end)) => {
                        // A finished future must not be polled again.
                        self.stage = Stage::Quiet(Session::default());
                        match end {
                            End::Violation(reason) => conn.close(&hub.core, reason),
                            End::PeerClosed(code) => {
                                conn.answer_close(&hub.core, code.as_ref().map_or(&[], |c| &c[..]))
                            }
                            End::Gone => conn.end(),
                        }
                    }
                },
            }
        }
    }

    /// Begins to close the socket after a panic; ends it when it was closing already.
    fn panicked(&mut self) -> Poll<()> {
        let Registration { hub, conn } = &self.registration;
        tracing::error!(conn = %conn.id(), "panic in a connection's task");
        let was_open = conn.life() == Life::Open;
        self.stage = Stage::Quiet(Session::default());
        conn.close(&hub.core, CloseReason::Internal);
        if was_open { Poll::Pending } else { Poll::Ready(()) }
    }
}

impl Future for SocketTask {
    type Output = ();

    // Inv. ISOLATION: a panic goes no further than here.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        loop {
            // What a panic left half done is the reader, which is dropped; a `Conn`'s own state changes under its
            // lock by steps that do not panic.
            match catch_unwind(AssertUnwindSafe(|| this.advance(cx))) {
                Ok(poll) => return poll,
                Err(_) if this.panicked().is_ready() => return Poll::Ready(()),
                Err(_) => {}
            }
        }
    }
}
