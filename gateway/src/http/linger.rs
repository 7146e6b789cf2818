//! Ending a connection so that the client reads the answer.
//!
//! Whoever answers 413 to the first kilobyte of a 10 MB body and closes has bytes unread in its receive buffer; the
//! kernel then sends a reset, which overtakes the answer in the client's stack and eats it. The remedy is as old as
//! Apache: shut down the write side, read and discard for a moment, close. [`Linger`] does it whenever HTTP shuts the
//! connection down, for at most [`DRAIN_BYTES_MAX`] and [`DRAIN_TIME_MAX`]; where the client has closed already, or
//! closes at once as clients do that have their answer, it costs nothing.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// What is read and discarded at most.
// Inv. BOUND
const DRAIN_BYTES_MAX: usize = 256 * 1024;
/// How long at most.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(1);

/// A TCP stream that begins with bytes which were read from it already, and ends politely.
#[derive(Debug)]
pub(super) struct Linger {
    first: Bytes,
    io: TokioIo<TcpStream>,
    draining: Option<Draining>,
}

#[derive(Debug)]
struct Draining {
    left: usize,
    deadline: Pin<Box<Sleep>>,
}

impl Linger {
    pub(super) fn new(stream: TcpStream, first: Bytes) -> Self {
        Self { first, io: TokioIo::new(stream), draining: None }
    }

    /// The stream, and what was not read of the bytes that it began with.
    pub(super) fn into_inner(self) -> (TcpStream, Bytes) {
        (self.io.into_inner(), self.first)
    }

    /// Reads and discards until the client closes, or the bounds are reached.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(draining) = &mut self.draining else { return Poll::Ready(()) };
        let mut scrap = [0; 4096];
        loop {
            if draining.deadline.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            match self.io.inner().try_read(&mut scrap) {
                Ok(read) if read > 0 && read < draining.left => draining.left -= read,
                Ok(_) => return Poll::Ready(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if ready!(self.io.inner().poll_read_ready(cx)).is_err() {
                        return Poll::Ready(());
                    }
                }
                Err(_) => return Poll::Ready(()),
            }
        }
    }
}

impl Read for Linger {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let length = self.first.len().min(buf.remaining());
            buf.put_slice(&self.first.split_to(length));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for Linger {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.draining.is_none() {
            ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
            let deadline = Box::pin(tokio::time::sleep(DRAIN_TIME_MAX));
            self.draining = Some(Draining { left: DRAIN_BYTES_MAX, deadline });
        }
        self.poll_drain(cx).map(Ok)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}
