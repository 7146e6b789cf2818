//! One client: a non-blocking socket that opens a WebSocket, listens, and answers pings.
//!
//! No task, no timer, no buffer while it is silent: what a read brings is parsed where it lies, in a buffer that all
//! sockets share; only an unfinished frame is kept. Which socket is due is the poll's business. An open, silent
//! client is 56 bytes: a million of them are to fit beside the servers.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::TcpStream;

use crate::args::YesNo;
use crate::audit::{self, Auditor, Chunk, Chunks, Meaning, Meanings, Slots};
use crate::frame::{self, Opcode};
use crate::latency::Sends;
use crate::pace::Pace;
use crate::tally::Tally;

/// The longest response head that is read.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// What may wait to be written: a few pongs. A server that does not read them is not well.
const OUTBOX_BYTES_MAX: usize = 4096;
/// What a slow reader's kernel holds for it; the rest waits at the server.
const SLOW_RECEIVE_BYTES: usize = 4096;
/// The example key of RFC 6455 section 1.3, and the answer to it that proves a WebSocket server.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub(crate) const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

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

/// What all sockets of a thread share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) answer_pings: YesNo,
    pub(crate) slots: Slots,
    /// Deliveries that take longer are a finding.
    pub(crate) late: Option<Duration>,
    pub(crate) meanings: Meanings,
    pub(crate) chunks: Chunks,
    /// When our events were sent, if we publish.
    pub(crate) sends: Option<Arc<Sends>>,
    /// Who waits for the slowest client, if anybody does.
    pub(crate) pace: Option<Pace>,
    /// The begin of this thread's time.
    pub(crate) origin: Instant,
    /// When the bytes that are being taken were read.
    pub(crate) read_at: Instant,
    /// Clients that are connected, or connecting, and have no `init` yet.
    pub(crate) awaited: u32,
    pub(crate) tally: Tally,
}

impl Shared {
    /// This thread's clock at `moment`.
    pub(crate) fn ms(&self, moment: Instant) -> u32 {
        u32::try_from(moment.duration_since(self.origin).as_millis()).unwrap_or(u32::MAX)
    }
}

/// The request that opens a WebSocket.
pub(crate) fn request(host: &str, path: &str, forwarded_for: Option<std::net::Ipv4Addr>) -> Vec<u8> {
    let forwarded = forwarded_for.map(|address| format!("X-Forwarded-For: {address}\r\n")).unwrap_or_default();
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: \
         13\r\nSec-WebSocket-Key: {KEY}\r\nUser-Agent: pulsegate-loadtest\r\n{forwarded}\r\n"
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

/// How a client reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    /// What is there.
    Prompt,
    /// Only when it is told to.
    Slow,
}

/// What a socket needs while something is under way.
#[derive(Debug)]
struct Unfinished {
    started: Instant,
    /// An unfinished head or frame.
    inbox: Vec<u8>,
    /// What the kernel did not take yet.
    outbox: Vec<u8>,
}

/// A client.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: TcpStream,
    phase: Phase,
    pub(crate) reader: Reader,
    unfinished: Option<Box<Unfinished>>,
    pub(crate) auditor: Auditor,
}

/// A debug build's poll keeps a little more.
const _: () = assert!(cfg!(debug_assertions) || size_of::<Option<Socket>>() <= 56);

impl Socket {
    /// Begins to connect, from `source` if there is one, and to send `request`: right away if the kernel has connected by
    /// then, as it has on loopback unless the server's queue is full. Otherwise the request waits for [`Self::writable`],
    /// behind whatever else the poll has; with 19,000 other sockets in one process that can be longer than servers wait.
    ///
    /// # Errors
    /// What the system says, for example that there are no descriptors left.
    pub(crate) fn connect(
        to: SocketAddr,
        source: Option<SocketAddr>,
        request: Vec<u8>,
        reader: Reader,
    ) -> io::Result<Self> {
        let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if reader == Reader::Slow {
            socket.set_recv_buffer_size(SLOW_RECEIVE_BYTES)?;
        }
        if let Some(source) = source {
            socket.set_reuse_address(true)?;
            socket.bind(&source.into())?;
        }
        match socket.connect(&to.into()) {
            Err(error) if error.raw_os_error() != Some(EINPROGRESS) => return Err(error),
            _ => {}
        }
        let started = Instant::now();
        // What went wrong here goes wrong again when the poll tells of it.
        let (phase, outbox) = match socket.send(&request) {
            Ok(sent) => (Phase::Upgrading, request[sent..].to_vec()),
            Err(_) => (Phase::Connecting, request),
        };
        Ok(Self {
            stream: TcpStream::from_std(socket.into()),
            phase,
            reader,
            unfinished: Some(Box::new(Unfinished { started, inbox: Vec::new(), outbox })),
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

    /// Whether we have said goodbye.
    pub(crate) fn is_leaving(&self) -> bool {
        self.phase == Phase::Leaving
    }

    /// Begins to say goodbye, once. Who is not let in yet has nobody to say it to: what comes next is the server's
    /// answer to the request, and no frame.
    ///
    /// # Errors
    /// [`End`] when the connection is gone already.
    pub(crate) fn leave(&mut self) -> Result<(), End> {
        if self.phase != Phase::Open {
            return Ok(());
        }
        self.phase = Phase::Leaving;
        self.send(Opcode::Close, &1000u16.to_be_bytes())
    }

    /// The kernel takes bytes, for the first time or again.
    ///
    /// # Errors
    /// [`End`] when it is over.
    pub(crate) fn writable(&mut self) -> Result<(), End> {
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
                    if reads == Reads::Once || (n < buffer.len() && reads == Reads::UntilShort) {
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
        let kept = self.unfinished.as_mut().map(|unfinished| std::mem::take(&mut unfinished.inbox)).unwrap_or_default();
        if !kept.is_empty() {
            let mut kept = kept;
            kept.extend_from_slice(bytes);
            let used = self.consume(&kept, shared)?;
            self.keep(&kept[used..]);
        } else if !self.take_known(bytes, shared)? {
            let used = self.consume(bytes, shared)?;
            self.keep(&bytes[used..]);
        }
        Ok(())
    }

    /// Keeps what is not whole yet; a copy, so that the memory of a large frame does not stay.
    fn keep(&mut self, rest: &[u8]) {
        if !rest.is_empty() {
            self.unfinished().inbox = rest.to_vec();
        } else if self.auditor.has_begun() && self.unfinished.as_ref().is_some_and(|it| it.outbox.is_empty()) {
            self.unfinished = None;
        }
    }

    fn unfinished(&mut self) -> &mut Unfinished {
        let new = || Box::new(Unfinished { started: Instant::now(), inbox: Vec::new(), outbox: Vec::new() });
        self.unfinished.get_or_insert_with(new)
    }

    /// Deals with a read as a whole, if another client got the same, or if it is whole messages and others may.
    fn take_known(&mut self, bytes: &[u8], shared: &mut Shared) -> Result<bool, End> {
        if self.phase != Phase::Open {
            return Ok(false);
        }
        let chunk = match shared.chunks.find(bytes) {
            Some(chunk) => chunk,
            None => {
                let Some(chunk) = whole_texts(bytes, &mut shared.meanings) else { return Ok(false) };
                shared.chunks.remember(bytes, chunk);
                let Some(chunk) = shared.chunks.find(bytes) else { return Ok(false) };
                chunk
            }
        };
        let before = self.auditor.last();
        if let Some(run) = chunk.run.as_ref().filter(|run| self.auditor.continues(run)) {
            let count = run.end() - run.start() + 1;
            shared.tally.messages.add_events(count, chunk.payload_bytes);
            for number in run.clone() {
                self.age(number, b"", shared);
            }
            self.passed(before, shared);
            return Ok(true);
        }
        let mut at = 0;
        for (meaning, length) in &chunk.messages {
            let Ok(Some(frame)) = frame::parse(&bytes[at..]) else { break };
            let text = &bytes[at..][frame.payload.clone()];
            debug_assert_eq!(text.len(), *length as usize);
            at += frame.payload.end;
            self.message(*meaning, text, shared)?;
        }
        Ok(true)
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
            shared.tally.opened(self.waited());
        }
        while let Some(frame) = frame::parse(&bytes[used..]).map_err(|error| End::Broke(error.text()))? {
            let payload = &bytes[used..][frame.payload.clone()];
            used += frame.payload.end;
            match frame.opcode {
                Opcode::Text => {
                    let meaning = shared.meanings.of(payload);
                    self.message(meaning, payload, shared)?;
                }
                Opcode::Binary => return Err(End::Broke("a binary message")),
                Opcode::Ping if self.phase == Phase::Open => self.send(Opcode::Pong, payload)?,
                // After our close frame nothing may follow (RFC 6455 section 5.5.1).
                Opcode::Ping => {}
                Opcode::Pong => {}
                Opcode::Close => {
                    let (code, reason) = frame::close_reason(payload);
                    if self.phase == Phase::Open {
                        // It is over, whether our answer still gets through or not.
                        let _ = self.send(Opcode::Close, &payload[..payload.len().min(2)]);
                    }
                    return Err(End::Closed(code, reason));
                }
            }
        }
        Ok(used)
    }

    /// Since the begin of connecting; only known until `init` is there.
    fn waited(&self) -> Duration {
        self.unfinished.as_ref().map(|unfinished| unfinished.started.elapsed()).unwrap_or_default()
    }

    fn message(&mut self, meaning: Meaning, text: &[u8], shared: &mut Shared) -> Result<(), End> {
        shared.tally.messages.add(meaning, text.len());
        let (began, before, tick) = (self.auditor.has_begun(), self.auditor.last(), self.auditor.tick());
        let finding = self.auditor.judge(meaning, shared.slots);
        if let Some(finding) = finding {
            shared.tally.found(finding, text);
        }
        match meaning {
            Meaning::Event { number: Some(number) } => self.age(number, text, shared),
            // Who comes again and is told the number that it had knows nothing new.
            Meaning::Init { .. } if self.auditor.tick() != tick => self.state_came(shared),
            Meaning::Update { stale: false, .. } if finding.is_none() => self.state_came(shared),
            _ => {}
        }
        self.passed(before, shared);
        if !began && self.auditor.has_begun() {
            shared.awaited = shared.awaited.saturating_sub(1);
            shared.tally.began(self.waited());
        }
        if meaning == Meaning::Ping && shared.answer_pings == YesNo::Yes && self.phase == Phase::Open {
            shared.tally.pongs += 1;
            self.send(Opcode::Text, br#"{"type":"pong"}"#)?;
        }
        Ok(())
    }

    /// Counts how long an event took to a prompt reader.
    fn age(&self, number: u64, text: &[u8], shared: &mut Shared) {
        let sends = shared.sends.as_ref().filter(|_| self.reader == Reader::Prompt);
        if let Some(us) = sends.and_then(|sends| sends.age_us(number, shared.read_at)) {
            shared.tally.event.record(us);
            if let Some(finding) = audit::lateness(us, shared.late) {
                shared.tally.found(finding, text);
            }
        }
    }

    fn state_came(&mut self, shared: &mut Shared) {
        let now_ms = shared.ms(shared.read_at);
        if let (Some(gap), Reader::Prompt) = (self.auditor.state_came(now_ms), self.reader) {
            shared.tally.state_gap.record_duration(gap);
        }
    }

    fn passed(&self, before: Option<u64>, shared: &mut Shared) {
        let Some(last) = self.auditor.last().filter(|last| Some(*last) != before) else { return };
        if let Some(pace) = shared.pace.as_mut().filter(|_| self.reader == Reader::Prompt) {
            pace.moved(before, last);
        }
    }

    fn send(&mut self, opcode: Opcode, payload: &[u8]) -> Result<(), End> {
        let outbox = &mut self.unfinished().outbox;
        if outbox.len() > OUTBOX_BYTES_MAX {
            return Err(End::Lost("the server does not read"));
        }
        frame::write(outbox, opcode, payload);
        self.flush()
    }

    fn flush(&mut self) -> Result<(), End> {
        let Some(unfinished) = self.unfinished.as_mut() else { return Ok(()) };
        let mut done = 0;
        while done < unfinished.outbox.len() {
            match self.stream.write(&unfinished.outbox[done..]) {
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.end_of_stream(kind(&error))),
            }
        }
        // A new one, so that nothing is held while the socket is silent.
        unfinished.outbox = unfinished.outbox[done..].to_vec();
        if unfinished.outbox.is_empty() && unfinished.inbox.is_empty() && self.auditor.has_begun() {
            self.unfinished = None;
        }
        Ok(())
    }
}

/// The messages in these bytes, if they are whole text frames and nothing else.
fn whole_texts(bytes: &[u8], meanings: &mut Meanings) -> Option<Chunk> {
    let (mut messages, mut used) = (Vec::new(), 0);
    while used < bytes.len() {
        let frame = frame::parse(&bytes[used..]).ok()??;
        if frame.opcode != Opcode::Text {
            return None;
        }
        let text = &bytes[used..][frame.payload.clone()];
        messages.push((meanings.of(text), u32::try_from(text.len()).ok()?));
        used += frame.payload.end;
    }
    Some(Chunk::new(messages))
}

/// How far to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reads {
    /// What one read brings.
    Once,
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
