//! One client: a non-blocking socket that opens a WebSocket, listens, and answers pings.
//!
//! No task, no timer, no buffer while it is silent: what a read brings is parsed where it lies, in a buffer that all
//! sockets share; only an unfinished frame is kept. Which socket is due is the poll's business.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use mio::net::TcpStream;

use crate::args::{Target, YesNo};
use crate::audit::{Auditor, Meaning, Meanings, Slots};
use crate::frame::{self, Opcode};
use crate::latency::Sends;
use crate::report::Tally;

/// The longest response head that is read.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// What may wait to be written: a few pongs. A server that does not read them is not well.
const OUTBOX_BYTES_MAX: usize = 4096;
/// The example key of RFC 6455 section 1.3, and the answer to it that proves a WebSocket server.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// How a socket ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// Answered by something else than a 101.
    Refused(u16),
    /// No WebSocket came to be.
    Failed(&'static str),
    /// The server sent a close frame.
    Closed(u16, String),
    /// The connection ended without a close frame.
    Lost(&'static str),
    /// The server broke the framing.
    Broke(&'static str),
}

/// What all sockets share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// What a socket sends first.
    pub(crate) request: Vec<u8>,
    pub(crate) answer_pings: YesNo,
    pub(crate) slots: Slots,
    pub(crate) meanings: Meanings,
    /// When our events were sent, if we publish.
    pub(crate) sends: Option<Arc<Sends>>,
    /// When the bytes that are being taken were read.
    pub(crate) read_at: Instant,
    pub(crate) tally: Tally,
}

/// The request that opens a WebSocket at `target`.
pub(crate) fn request(target: &Target) -> Vec<u8> {
    let Target { host, path, .. } = target;
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: \
         13\r\nSec-WebSocket-Key: {KEY}\r\nUser-Agent: pulsegate-loadtest\r\n\r\n"
    )
    .into_bytes()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    Upgrading,
    Open,
    /// We have sent a close frame.
    Leaving,
}

/// A client.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: TcpStream,
    phase: Phase,
    started: Instant,
    /// An unfinished head or frame.
    inbox: Vec<u8>,
    /// What the kernel did not take yet.
    outbox: Vec<u8>,
    pub(crate) auditor: Auditor,
}

impl Socket {
    /// Begins to connect, from `source` if there is one.
    ///
    /// # Errors
    /// What the system says, for example that there are no descriptors left.
    pub(crate) fn connect(to: SocketAddr, source: Option<SocketAddr>) -> io::Result<Self> {
        let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if let Some(source) = source {
            socket.set_reuse_address(true)?;
            socket.bind(&source.into())?;
        }
        match socket.connect(&to.into()) {
            Err(error) if error.raw_os_error() != Some(EINPROGRESS) => return Err(error),
            _ => {}
        }
        Ok(Self {
            stream: TcpStream::from_std(socket.into()),
            phase: Phase::Connecting,
            started: Instant::now(),
            inbox: Vec::new(),
            outbox: Vec::new(),
            auditor: Auditor::default(),
        })
    }

    /// For the poll's registry.
    pub(crate) fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Whether the server has answered 101.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Leaving)
    }

    /// Begins to say goodbye.
    ///
    /// # Errors
    /// [`End`] when the connection is gone already.
    pub(crate) fn leave(&mut self) -> Result<(), End> {
        self.phase = Phase::Leaving;
        self.send(Opcode::Close, &1000u16.to_be_bytes())
    }

    /// The kernel takes bytes, for the first time or again.
    ///
    /// # Errors
    /// [`End`] when it is over.
    pub(crate) fn writable(&mut self, shared: &Shared) -> Result<(), End> {
        if self.phase == Phase::Connecting {
            match self.stream.take_error() {
                Ok(None) => {}
                Ok(Some(error)) | Err(error) => return Err(End::Failed(kind(&error))),
            }
            match self.stream.peer_addr() {
                Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(()),
                _ => {}
            }
            self.phase = Phase::Upgrading;
            self.outbox.extend_from_slice(&shared.request);
        }
        self.flush()
    }

    /// Bytes are there; `buffer` is scratch space. Without `to_the_end`, a read that does not fill the buffer is
    /// taken for the last one.
    ///
    /// # Errors
    /// [`End`] when it is over.
    pub(crate) fn readable(&mut self, shared: &mut Shared, buffer: &mut [u8], reads: Reads) -> Result<(), End> {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => return Err(self.end_of_stream("end of stream")),
                Ok(n) => {
                    shared.read_at = Instant::now();
                    self.take(&buffer[..n], shared)?;
                    if n < buffer.len() && reads == Reads::UntilShort {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.end_of_stream(kind(&error))),
            }
        }
    }

    fn end_of_stream(&self, why: &'static str) -> End {
        if self.is_open() { End::Lost(why) } else { End::Failed(why) }
    }

    fn take(&mut self, bytes: &[u8], shared: &mut Shared) -> Result<(), End> {
        if self.inbox.is_empty() {
            let used = self.consume(bytes, shared)?;
            self.inbox.extend_from_slice(&bytes[used..]);
        } else {
            let mut kept = std::mem::take(&mut self.inbox);
            kept.extend_from_slice(bytes);
            let used = self.consume(&kept, shared)?;
            // A copy, so that the memory of a large frame does not stay.
            self.inbox = kept[used..].to_vec();
        }
        Ok(())
    }

    /// Deals with what is whole; tells how many bytes that was.
    fn consume(&mut self, bytes: &[u8], shared: &mut Shared) -> Result<usize, End> {
        let mut used = 0;
        if !self.is_open() {
            let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
                return if bytes.len() > HEAD_BYTES_MAX { Err(End::Failed("endless head")) } else { Ok(0) };
            };
            used = end + 4;
            upgraded(&bytes[..end])?;
            self.phase = Phase::Open;
            shared.tally.opened(self.started.elapsed());
        }
        while let Some(frame) = frame::parse(&bytes[used..]).map_err(|error| End::Broke(error.text()))? {
            let payload = &bytes[used..][frame.payload.clone()];
            used += frame.payload.end;
            match frame.opcode {
                Opcode::Text => self.text(payload, shared)?,
                Opcode::Binary => return Err(End::Broke("a binary message")),
                Opcode::Ping => self.send(Opcode::Pong, payload)?,
                Opcode::Pong => {}
                Opcode::Close => {
                    let (code, reason) = frame::close_reason(payload);
                    // It is over, whether our answer still gets through or not.
                    let _ = self.send(Opcode::Close, &payload[..payload.len().min(2)]);
                    return Err(End::Closed(code, reason));
                }
            }
        }
        Ok(used)
    }

    fn text(&mut self, text: &[u8], shared: &mut Shared) -> Result<(), End> {
        let meaning = shared.meanings.of(text);
        shared.tally.received(meaning, text.len());
        if let (Meaning::Event { number: Some(number) }, Some(sends)) = (meaning, &shared.sends) {
            let age = sends.age_us(number, shared.read_at);
            age.into_iter().for_each(|us| shared.tally.event_us.record(us));
        }
        let began = self.auditor.has_begun();
        if let Some(finding) = self.auditor.judge(meaning, shared.slots) {
            shared.tally.found(finding, text);
        }
        if !began && self.auditor.has_begun() {
            shared.tally.began(self.started.elapsed());
        }
        if meaning == Meaning::Ping && shared.answer_pings == YesNo::Yes {
            shared.tally.pongs += 1;
            self.send(Opcode::Text, br#"{"type":"pong"}"#)?;
        }
        Ok(())
    }

    fn send(&mut self, opcode: Opcode, payload: &[u8]) -> Result<(), End> {
        if self.outbox.len() > OUTBOX_BYTES_MAX {
            return Err(End::Lost("the server does not read"));
        }
        frame::write(&mut self.outbox, opcode, payload);
        self.flush()
    }

    fn flush(&mut self) -> Result<(), End> {
        let mut done = 0;
        while done < self.outbox.len() {
            match self.stream.write(&self.outbox[done..]) {
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.end_of_stream(kind(&error))),
            }
        }
        // A new one, so that nothing is held while the socket is silent.
        self.outbox = self.outbox[done..].to_vec();
        Ok(())
    }
}

/// How far to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reads {
    /// Until a read leaves room in the buffer: then nothing more is there now.
    UntilShort,
    /// Until the end: the peer has closed, and will not announce anything again.
    ToTheEnd,
}

/// `connect` goes on in the background; the one error number that the standard library has no stable name for.
const EINPROGRESS: i32 = 115;

/// Judges the head of a response (without its final empty line).
fn upgraded(head: &[u8]) -> Result<(), End> {
    let head = std::str::from_utf8(head).map_err(|_| End::Failed("head is not text"))?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")).and_then(|line| line.get(..3));
    let status = status.and_then(|code| code.parse().ok()).ok_or(End::Failed("not an HTTP response"))?;
    if status != 101 {
        return Err(End::Refused(status));
    }
    let accepted = lines
        .filter_map(|line| line.split_once(':'))
        .any(|(name, value)| name.eq_ignore_ascii_case("sec-websocket-accept") && value.trim() == ACCEPT);
    if accepted { Ok(()) } else { Err(End::Failed("wrong Sec-WebSocket-Accept")) }
}

/// What happened, in words that can be counted.
fn kind(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused",
        io::ErrorKind::ConnectionReset => "connection reset",
        io::ErrorKind::ConnectionAborted => "connection aborted",
        io::ErrorKind::BrokenPipe => "broken pipe",
        io::ErrorKind::TimedOut => "timed out",
        io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable => "no source address",
        _ => "other error",
    }
}

/// Counts what an unsuccessful `connect` means.
pub(crate) fn not_connected(error: &io::Error) -> End {
    End::Failed(kind(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads() {
        let check = |head: &str, want: Result<(), End>| assert_eq!(upgraded(head.as_bytes()), want, "{head}");
        check(
            &format!("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nsec-websocket-accept: {ACCEPT}"),
            Ok(()),
        );
        check("HTTP/1.1 101 X\r\nSec-WebSocket-Accept: nonsense", Err(End::Failed("wrong Sec-WebSocket-Accept")));
        check("HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1", Err(End::Refused(429)));
        check("HTTP/1.1 503", Err(End::Refused(503)));
        check("SSH-2.0", Err(End::Failed("not an HTTP response")));
        check("HTTP/1.1 abc", Err(End::Failed("not an HTTP response")));
    }
}
