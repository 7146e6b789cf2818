//! One write of the past to a client that catches up; what to write is decided in [`super::replay`].

use std::io;

use tokio::net::TcpStream;

use super::conn::Inner;
use super::core::Core;
use super::replay::{Chunk, Step};
use crate::metrics::Direction;

/// What came of an attempt to write on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// There is nothing to write now.
    Nothing,
    /// It went on.
    Written,
    /// The kernel takes no more.
    NoRoom,
}

/// Writes what comes next, if nothing else waits.
///
/// # Errors
/// The socket's.
// Inv. ORDER: a client becomes live under the socket's lock, which has been held since the past was looked at.
pub(super) fn catch_up(stream: &TcpStream, core: &Core, inner: &mut Inner) -> io::Result<Progress> {
    let Some(outbox) = inner.outbox.as_mut() else { return Ok(Progress::Nothing) };
    if !outbox.is_empty() {
        return Ok(Progress::NoRoom);
    }
    let Some(replay) = outbox.replay.as_mut() else { return Ok(Progress::Nothing) };
    let step = {
        let stage = core.stage();
        replay.step(&stage.ring, &stage.published, inner.kinds, core.now())
    };
    match step {
        Step::Wait => return Ok(Progress::Nothing),
        Step::AskEnd => replay.awaits_end(core.ask_end()),
        Step::AskPast => replay.awaits_past(core.ask_past()),
        Step::Write(chunk) => match stream_write(stream, &chunk) {
            Ok(written) => take_note(core, inner, &chunk, written),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Progress::NoRoom),
            Err(error) => return Err(error),
        },
    }
    Ok(Progress::Written)
}

fn stream_write(stream: &TcpStream, chunk: &Chunk) -> io::Result<usize> {
    // There may be nothing to write but that the client is live.
    if chunk.parcel.bytes.is_empty() {
        return Ok(0);
    }
    match stream.try_write(&chunk.parcel.bytes)? {
        // No bytes of a non-empty write: the socket takes nothing, ever.
        0 => Err(io::ErrorKind::WriteZero.into()),
        written => Ok(written),
    }
}

fn take_note(core: &Core, inner: &mut Inner, chunk: &Chunk, written: usize) {
    let Some(outbox) = inner.outbox.as_mut() else { return };
    let Some(replay) = outbox.replay.as_mut() else { return };
    let wrote = replay.wrote(chunk, written);
    let position = replay.position();
    // What is to be said if the rest overflows begins behind this.
    outbox.delivered(Some(position));
    // Inv. BOUND: the rest of one frame; what follows it stays in the past.
    if let Some((rest, content)) = chunk.parcel.half_at(written) {
        outbox.push_half(rest, content);
        core.settle(0, outbox.bytes());
    }
    core.metrics.messages.add(Direction::Sent, chunk.parcel.messages_within(written));
    if let Some(outcome) = wrote.outcome {
        core.metrics.resumes.inc(outcome);
    }
    if let Some(sequence) = wrote.live {
        inner.sequence = sequence;
        outbox.replay = None;
        if outbox.is_empty() {
            inner.outbox = None;
        }
    }
}
