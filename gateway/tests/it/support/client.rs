//! A small WebSocket client that is as honest, or as hostile, as a test wants.
//!
//! It checks what a server may not do (see [`super::frame`]), hides nothing, and repairs nothing: a library would
//! refuse to send what the gateway must survive.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::frame::{self, Frame};
use super::http::{Answer, Head};
use super::wait::SOON;

/// The key of RFC 6455 section 1.3, and what must be answered to it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A request to open a WebSocket. Right by default; each part can be changed.
#[derive(Debug, Clone)]
pub(crate) struct Upgrade {
    method: &'static str,
    target: String,
    version: &'static str,
    headers: Vec<(String, String)>,
    preface: Vec<u8>,
}

impl Upgrade {
    /// The seed's endpoint without any option.
    pub(crate) fn new() -> Self {
        let headers = [
            ("Host", "localhost:5000"),
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", KEY),
        ];
        Self {
            method: "GET",
            target: "/ws/analytics".to_owned(),
            version: "HTTP/1.1",
            headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
            preface: Vec::new(),
        }
    }

    /// With a query string.
    pub(crate) fn query(query: &str) -> Self {
        let mut upgrade = Self::new();
        upgrade.target = format!("/ws/analytics?{query}");
        upgrade
    }

    /// With another method.
    pub(crate) fn method(mut self, method: &'static str) -> Self {
        self.method = method;
        self
    }

    /// With another HTTP version.
    pub(crate) fn version(mut self, version: &'static str) -> Self {
        self.version = version;
        self
    }

    /// With one more header line.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With another value of a header that it has.
    pub(crate) fn replace(mut self, name: &str, value: &str) -> Self {
        for header in self.headers.iter_mut().filter(|(known, _)| known == name) {
            value.clone_into(&mut header.1);
        }
        self
    }

    /// Without a header.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self
    }

    /// With bytes that go before the request: a PROXY protocol header.
    pub(crate) fn preface(mut self, bytes: &[u8]) -> Self {
        self.preface = bytes.to_vec();
        self
    }

    /// The request's bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.preface.clone();
        bytes.extend_from_slice(format!("{} {} {}\r\n", self.method, self.target, self.version).as_bytes());
        for (name, value) in &self.headers {
            bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes
    }

    /// Sends it.
    ///
    /// # Errors
    /// [`Refusal`] when the answer is not 101.
    pub(crate) async fn try_open(&self, to: SocketAddr) -> Result<Client, Refusal> {
        self.over(connect(to).await.map_err(|_| Refusal::Closed)?).await
    }

    /// Sends it over a connection that somebody has made.
    ///
    /// # Errors
    /// [`Refusal`] when the answer is not 101.
    pub(crate) async fn over(&self, mut stream: TcpStream) -> Result<Client, Refusal> {
        stream.write_all(&self.bytes()).await.map_err(|_| Refusal::Closed)?;
        timeout(SOON, handshake(stream)).await.expect("the upgrade is answered in time")
    }

    /// Sends it; panics when it is refused.
    pub(crate) async fn open(&self, to: SocketAddr) -> Client {
        self.try_open(to).await.unwrap_or_else(|refusal| panic!("refused: {refusal:?}"))
    }

    /// Sends it; panics when it is accepted.
    pub(crate) async fn refused(&self, to: SocketAddr) -> Answer {
        match self.try_open(to).await {
            Ok(_) => panic!("accepted: {self:?}"),
            Err(Refusal::Closed) => panic!("closed without an answer: {self:?}"),
            Err(Refusal::Answered(answer)) => answer,
        }
    }
}

/// Why there is no WebSocket.
#[derive(Debug, Clone)]
pub(crate) enum Refusal {
    /// An HTTP answer other than 101.
    Answered(Answer),
    /// The connection was refused or closed without an answer.
    Closed,
}

impl Refusal {
    /// The status of the answer, if there was one.
    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            Self::Answered(answer) => Some(answer.status()),
            Self::Closed => None,
        }
    }
}

/// A TCP connection.
pub(crate) async fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn handshake(mut stream: TcpStream) -> Result<Client, Refusal> {
    let mut unread = BytesMut::new();
    let (head, length) = loop {
        if let Some(found) = Head::parse(&unread) {
            break found;
        }
        if !matches!(stream.read_buf(&mut unread).await, Ok(1..)) {
            return Err(Refusal::Closed);
        }
    };
    if head.status == 101 {
        assert_eq!(head.header("sec-websocket-accept"), Some(ACCEPT));
        assert_eq!(head.header("sec-websocket-extensions"), None);
        unread.advance(length);
        return Ok(Client { stream, unread, manners: Manners::AnswersPings });
    }
    let promised = head.header("content-length").map_or(0, |text| text.parse().expect("a length"));
    while unread.len() < length + promised && matches!(stream.read_buf(&mut unread).await, Ok(1..)) {}
    let body = String::from_utf8_lossy(&unread[length..]).into_owned();
    Err(Refusal::Answered(Answer { head, body }))
}

/// Whether a client plays along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manners {
    /// Each JSON ping is answered with a pong.
    AnswersPings,
    /// None is.
    Silent,
}

/// How a WebSocket ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// With a close frame.
    Close {
        /// Its code.
        code: u16,
        /// Its reason.
        reason: String,
    },
    /// The connection was closed, or reset, without one.
    Broken,
}

/// What comes from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Incoming {
    /// A text message.
    Text(String),
    /// A pong frame.
    Pong(Vec<u8>),
    /// The end.
    End(End),
}

/// A text message.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    /// As it came.
    pub(crate) text: String,
    /// Parsed.
    pub(crate) json: Value,
}

impl Message {
    /// Parses a message; panics when it is not JSON.
    pub(crate) fn of(text: String) -> Self {
        let json = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}"));
        Self { text, json }
    }

    /// Its `type`.
    pub(crate) fn kind(&self) -> &str {
        self.json["type"].as_str().expect("each message has a type")
    }
}

/// An open WebSocket.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
    unread: BytesMut,
    /// Whether it answers pings while somebody reads from it.
    pub(crate) manners: Manners,
}

impl Client {
    /// Opens a plain WebSocket from 127.0.0.1.
    pub(crate) async fn open(to: SocketAddr) -> Self {
        Upgrade::new().open(to).await
    }

    /// The client of a connection on which the request was sent already; panics when it is refused.
    pub(crate) async fn after_request(stream: TcpStream) -> Self {
        let opened = timeout(SOON, handshake(stream)).await.expect("the upgrade is answered in time");
        opened.unwrap_or_else(|refusal| panic!("refused: {refusal:?}"))
    }

    /// The same client, but one that never answers a ping.
    pub(crate) fn silent(mut self) -> Self {
        self.manners = Manners::Silent;
        self
    }

    /// Sends bytes as they are. An error is ignored: the server may have closed, which the next read shows.
    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// Sends a frame.
    pub(crate) async fn send(&mut self, frame: &Frame<'_>) {
        self.send_bytes(&frame.bytes()).await;
    }

    /// Sends a text message.
    pub(crate) async fn send_text(&mut self, text: &str) {
        self.send(&Frame::of(frame::TEXT, text.as_bytes())).await;
    }

    /// What comes next; none when nothing does before `deadline`. Cancel safe.
    pub(crate) async fn next_before(&mut self, deadline: Instant) -> Option<Incoming> {
        timeout_at(deadline, self.next()).await.ok()
    }

    /// What comes next. Cancel safe: bytes are taken only as whole frames.
    pub(crate) async fn next(&mut self) -> Incoming {
        loop {
            let Some((opcode, payload, length)) = frame::parse_server_frame(&self.unread) else {
                match self.stream.read_buf(&mut self.unread).await {
                    Ok(1..) => continue,
                    _ => return Incoming::End(End::Broken),
                }
            };
            self.unread.advance(length);
            match opcode {
                frame::TEXT => {
                    let text = String::from_utf8(payload).expect("text is UTF-8");
                    if self.manners == Manners::AnswersPings && text.starts_with(r#"{"type":"ping""#) {
                        self.send_text(r#"{"type":"pong"}"#).await;
                    }
                    return Incoming::Text(text);
                }
                frame::PONG => return Incoming::Pong(payload),
                frame::CLOSE => {
                    self.send(&Frame::of(frame::CLOSE, &payload)).await;
                    return Incoming::End(close_of(&payload));
                }
                _ => panic!("a server sends no frame of opcode {opcode:#x}"),
            }
        }
    }

    /// Whether another frame came with the bytes that were read last.
    pub(crate) fn has_another(&self) -> bool {
        frame::parse_server_frame(&self.unread).is_some()
    }

    /// The next text message; panics when there is none within `within`.
    pub(crate) async fn next_json(&mut self, within: Duration) -> Message {
        match self.next_before(Instant::now() + within).await {
            Some(Incoming::Text(text)) => Message::of(text),
            Some(other) => panic!("instead of a message: {other:?}"),
            None => panic!("no message within {within:?}"),
        }
    }

    /// The next text message of that type; others are skipped.
    pub(crate) async fn next_of(&mut self, kind: &str, within: Duration) -> Message {
        let deadline = Instant::now() + within;
        loop {
            match self.next_before(deadline).await {
                Some(Incoming::Text(text)) => {
                    let message = Message::of(text);
                    if message.kind() == kind {
                        return message;
                    }
                }
                Some(other) => panic!("instead of {kind:?}: {other:?}"),
                None => panic!("no {kind:?} within {within:?}"),
            }
        }
    }

    /// Reads until the socket ends; panics when it does not within `within`.
    pub(crate) async fn end(&mut self, within: Duration) -> End {
        let deadline = Instant::now() + within;
        loop {
            match self.next_before(deadline).await {
                Some(Incoming::End(end)) => return end,
                Some(_) => {}
                None => panic!("still open after {within:?}"),
            }
        }
    }

    /// Reads until the close frame and gives its code; panics when there is none within `within`.
    pub(crate) async fn close_code(&mut self, within: Duration) -> u16 {
        match self.end(within).await {
            End::Close { code, .. } => code,
            End::Broken => panic!("ended without a close frame"),
        }
    }

    /// Closes as a browser does, and waits for the answer.
    pub(crate) async fn close(mut self) -> u16 {
        self.send(&Frame::of(frame::CLOSE, &frame::close_payload(1000, ""))).await;
        self.close_code(SOON).await
    }

    /// Resets the connection: the server gets an error, not an end.
    pub(crate) fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).expect("a TCP socket has a linger time");
    }
}

fn close_of(payload: &[u8]) -> End {
    match payload.split_at_checked(2) {
        Some((code, reason)) => End::Close {
            code: u16::from_be_bytes(code.try_into().expect("two bytes")),
            reason: String::from_utf8(reason.to_vec()).expect("a close reason is UTF-8"),
        },
        None => End::Close { code: 1005, reason: String::new() },
    }
}
