//! The lazy reader: fastwebsockets while bytes arrive, nothing while they do not.
//!
//! A fastwebsockets reader owns 8 KiB from its first moment to its last, and a viewer says twenty bytes in half a
//! minute. So a reader is made when the socket becomes readable and dropped at the next frame boundary, at which it
//! provably holds nothing: what was delivered to it ([`Source`] counts) is what its frames took.
//!
//! fastwebsockets parses and unmasks; RFC 6455 asks for more, which [`Assembly`] adds: frames must be masked (5.1),
//! control frames short (5.5), a message is not begun inside of another (5.4), the sum of its fragments is bounded in
//! bytes and number, UTF-8 holds across fragments (8.1), close codes are such that may be sent (7.4). A length that is
//! not minimally encoded (5.2) cannot be seen from outside the parser. It makes the reader look as if it held bytes, so
//! the deadline for unfinished frames catches it.
//!
//! `read_frame` is not cancel safe: it consumes a head before its payload has come. So [`read`] is polled to its end
//! or dropped together with the socket, and never stands in a `select!`.

use std::io::{self, Read as _};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use fastwebsockets::{CloseCode, Frame, OpCode, Role, WebSocket, WebSocketError};
use shared::close::CloseReason;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use super::conn::Conn;
use super::{Hub, Message, Peer};
use crate::metrics::{Direction, Inbound};
use crate::session::{ControlDecision, Session};

/// The longest payload of a control frame (RFC 6455 section 5.5).
const CONTROL_BYTES_MAX: usize = 125;
/// Read from the kernel at once; a page, so that a reader for a pong touches no second one.
const READ_BYTES: usize = 4096;
/// Frames handled before other sockets get a turn.
// Inv. ISOLATION: a client that floods frames does not keep a worker to itself.
const FRAMES_PER_TURN: u32 = 32;

/// Why reading ended for good.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The client broke a rule.
    Violation(CloseReason),
    /// The client closes; its code, if it gave one, is to be sent back.
    PeerClosed(Option<[u8; 2]>),
    /// The connection ended or broke.
    Gone,
}

impl From<CloseReason> for End {
    fn from(reason: CloseReason) -> Self {
        Self::Violation(reason)
    }
}

/// What fastwebsockets found, as a reason to close.
fn end_of(error: &WebSocketError) -> End {
    match error {
        WebSocketError::InvalidUTF8 => CloseReason::InvalidPayload.into(),
        WebSocketError::FrameTooLarge => CloseReason::MessageTooBig.into(),
        WebSocketError::UnexpectedEOF | WebSocketError::ConnectionClosed | WebSocketError::IoError(_) => End::Gone,
        _ => CloseReason::ProtocolViolation.into(),
    }
}

/// Reads until the reader holds nothing at a frame boundary, and gives the session back; then it may be dropped.
/// `leftover`: bytes that came with the handshake.
pub(super) async fn read(
    hub: Arc<Hub>,
    conn: Arc<Conn>,
    mut session: Session,
    leftover: Bytes,
) -> Result<Session, End> {
    let delivered = Arc::new(AtomicUsize::new(0));
    let source = Source { hub: hub.clone(), conn: conn.clone(), leftover, delivered: delivered.clone(), began: false };
    let message_bytes_max = hub.core.settings.message_bytes_max;
    let mut socket = WebSocket::after_handshake(source, Role::Server);
    // Control frames are ours: they are judged before they are answered. The limit of fastwebsockets is exclusive.
    socket.set_auto_close(false);
    socket.set_auto_pong(false);
    socket.set_max_message_size(message_bytes_max + 1);
    let mut assembly = Assembly::new(message_bytes_max);
    let mut consumed = 0;
    let mut turn = 0;
    loop {
        let mut frame = socket.read_frame().await.map_err(|error| end_of(&error))?;
        consumed += check_head(&mut frame)?;
        let peer = Peer { hub: &hub, conn: &conn };
        handle(&peer, &mut session, assembly.take(frame)?)?;
        if consumed == delivered.load(Ordering::Relaxed) && assembly.is_empty() {
            conn.frame_done();
            return Ok(session);
        }
        conn.frame_begun(&hub.core);
        turn += 1;
        if turn == FRAMES_PER_TURN {
            turn = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// Does what a complete message or control frame asks for.
fn handle(peer: &Peer<'_>, session: &mut Session, received: Received<'_>) -> Result<(), End> {
    let (handler, metrics) = (&peer.hub.handler, &peer.hub.core.metrics);
    match received {
        Received::Nothing => {}
        Received::Close(code) => return Err(End::PeerClosed(code)),
        Received::Text(mut payload) => {
            metrics.messages.inc(Direction::Received);
            handler.message(peer, session, Message::Text(payload.bytes()))?;
        }
        Received::Binary(mut payload) => {
            metrics.messages.inc(Direction::Received);
            handler.message(peer, session, Message::Binary(payload.bytes()))?;
        }
        Received::Control(frame) => match handler.control(session) {
            ControlDecision::Accept => {
                metrics.inbound.inc(Inbound::Control);
                if frame.opcode == OpCode::Ping {
                    peer.pong(&frame.payload);
                }
            }
            ControlDecision::Dropped => metrics.inbound.inc(Inbound::ControlOverRate),
            ControlDecision::Close(reason) => {
                metrics.inbound.inc(Inbound::ControlOverRate);
                return Err(reason.into());
            }
        },
    }
    Ok(())
}

/// Refuses an unmasked frame; returns how many bytes a minimally encoded head and the payload are.
fn check_head(frame: &mut Frame<'_>) -> Result<usize, End> {
    // The mask is private to fastwebsockets, but it shows in a head that is formatted anew.
    let mut head = [0; 16];
    let head_bytes = frame.fmt_head(&mut head);
    let is_masked = head[1] & 0x80 != 0;
    if is_masked { Ok(head_bytes + frame.payload.len()) } else { Err(CloseReason::ProtocolViolation.into()) }
}

/// A complete message or control frame.
enum Received<'a> {
    /// A fragment; the message goes on.
    Nothing,
    Text(Payload<'a>),
    Binary(Payload<'a>),
    /// Ping or pong.
    Control(Frame<'a>),
    Close(Option<[u8; 2]>),
}

/// A message's bytes, wherever they lie.
enum Payload<'a> {
    Whole(Frame<'a>),
    Assembled(Vec<u8>),
}

impl Payload<'_> {
    fn bytes(&mut self) -> &mut [u8] {
        match self {
            Self::Whole(frame) => frame.payload.to_mut(),
            Self::Assembled(bytes) => bytes,
        }
    }
}

/// Puts fragmented messages together and enforces what fastwebsockets leaves to its user.
struct Assembly {
    message_bytes_max: usize,
    begun: Option<Begun>,
}

/// A fragmented message whose end has not come.
struct Begun {
    is_text: bool,
    bytes: Vec<u8>,
    /// Up to here the bytes are whole UTF-8 characters.
    valid: usize,
    /// Fragments that brought nothing.
    empty: usize,
}

impl Assembly {
    fn new(message_bytes_max: usize) -> Self {
        Self { message_bytes_max, begun: None }
    }

    fn is_empty(&self) -> bool {
        self.begun.is_none()
    }

    fn take<'a>(&mut self, frame: Frame<'a>) -> Result<Received<'a>, End> {
        match frame.opcode {
            OpCode::Ping | OpCode::Pong | OpCode::Close if frame.payload.len() > CONTROL_BYTES_MAX => {
                Err(CloseReason::ProtocolViolation.into())
            }
            OpCode::Ping | OpCode::Pong => Ok(Received::Control(frame)),
            OpCode::Close => close_code(&frame.payload).map(Received::Close),
            OpCode::Text | OpCode::Binary if self.begun.is_some() => Err(CloseReason::ProtocolViolation.into()),
            // Text that is one frame was checked for UTF-8 by fastwebsockets.
            OpCode::Text if frame.fin => Ok(Received::Text(Payload::Whole(frame))),
            OpCode::Binary if frame.fin => Ok(Received::Binary(Payload::Whole(frame))),
            OpCode::Text | OpCode::Binary => {
                let is_text = frame.opcode == OpCode::Text;
                self.go_on(Begun { is_text, bytes: Vec::new(), valid: 0, empty: 0 }, &frame)
            }
            OpCode::Continuation => match self.begun.take() {
                Some(begun) => self.go_on(begun, &frame),
                None => Err(CloseReason::ProtocolViolation.into()),
            },
        }
    }

    fn go_on<'a>(&mut self, mut begun: Begun, fragment: &Frame<'_>) -> Result<Received<'a>, End> {
        // Inv. BOUND: the sum counts, however small the fragments are, and an empty one counts as a byte: no rate sees
        // a message before its end, and one made of nothing would never come to it.
        begun.empty += usize::from(fragment.payload.is_empty());
        if begun.bytes.len() + begun.empty + fragment.payload.len() > self.message_bytes_max {
            return Err(CloseReason::MessageTooBig.into());
        }
        begun.bytes.extend_from_slice(&fragment.payload);
        if begun.is_text && !begun.is_utf8_so_far(fragment.fin) {
            return Err(CloseReason::InvalidPayload.into());
        }
        if !fragment.fin {
            self.begun = Some(begun);
            return Ok(Received::Nothing);
        }
        let payload = Payload::Assembled(begun.bytes);
        Ok(if begun.is_text { Received::Text(payload) } else { Received::Binary(payload) })
    }
}

impl Begun {
    /// Checks what came since the last check. A character may be cut by the end of a fragment, not of the message.
    fn is_utf8_so_far(&mut self, is_last: bool) -> bool {
        match std::str::from_utf8(&self.bytes[self.valid..]) {
            Ok(_) => {
                self.valid = self.bytes.len();
                true
            }
            Err(error) => {
                self.valid += error.valid_up_to();
                error.error_len().is_none() && !is_last
            }
        }
    }
}

/// The code of a close frame, as it came: absent, or one that may be sent, with a reason that is UTF-8.
fn close_code(payload: &[u8]) -> Result<Option<[u8; 2]>, End> {
    match payload {
        [] => Ok(None),
        [high, low, reason @ ..] => {
            if !CloseCode::from(u16::from_be_bytes([*high, *low])).is_allowed() {
                return Err(CloseReason::ProtocolViolation.into());
            }
            if std::str::from_utf8(reason).is_err() {
                return Err(CloseReason::InvalidPayload.into());
            }
            Ok(Some([*high, *low]))
        }
        [_] => Err(CloseReason::ProtocolViolation.into()),
    }
}

/// Gives fastwebsockets the socket's bytes and counts them.
struct Source {
    hub: Arc<Hub>,
    conn: Arc<Conn>,
    leftover: Bytes,
    delivered: Arc<AtomicUsize>,
    /// The first byte came: the deadline of the frame runs.
    began: bool,
}

impl Source {
    fn count(&mut self, bytes: usize) {
        self.delivered.fetch_add(bytes, Ordering::Relaxed);
        if bytes > 0 && !self.began {
            self.began = true;
            self.conn.frame_begun(&self.hub.core);
        }
    }
}

impl AsyncRead for Source {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.leftover.has_remaining() {
            let bytes = this.leftover.len().min(buf.remaining());
            buf.put_slice(&this.leftover.split_to(bytes));
            this.count(bytes);
            return Poll::Ready(Ok(()));
        }
        let wanted = buf.remaining().min(READ_BYTES);
        loop {
            ready!(this.conn.stream().poll_read_ready(cx))?;
            let mut outcome = None;
            // The read happens inside of `try_io`, and a short one is reported as `WouldBlock`: so tokio clears the
            // readiness that it saw before the read, without a second read(2) that returns nothing, and without
            // losing a wake-up that comes after it.
            let tried = this.conn.stream().try_io(Interest::READABLE, || {
                let socket = SockRef::from(this.conn.stream());
                let read = (&*socket).read(buf.initialize_unfilled_to(wanted))?;
                outcome = Some(read);
                if (1..wanted).contains(&read) { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match (outcome, tried) {
                (Some(read), _) => {
                    buf.advance(read);
                    this.count(read);
                    return Poll::Ready(Ok(()));
                }
                (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                (None, tried) => return Poll::Ready(tried),
            }
        }
    }
}

/// fastwebsockets wants to be able to write; with automatic answers off it never does. All writing is [`Conn`]'s.
impl AsyncWrite for Source {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
