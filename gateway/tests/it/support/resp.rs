//! A Redis client of the tests' own: one command, one answer.
//!
//! The tests play the producers and look at the keys. The gateway's client library would bring its reconnects,
//! queues and retries into what is tested; RESP2 takes fifty lines.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::redis_server::RedisServer;

/// Longest wait for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// What Redis answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    /// A simple string, or a bulk string.
    Text(String),
    /// An integer.
    Number(i64),
    /// Several replies.
    Many(Vec<Reply>),
    /// Nothing there.
    Nil,
    /// A refusal, in Redis's words.
    Error(String),
}

impl Reply {
    /// The text; panics when it is none.
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            other => panic!("not a text: {other:?}"),
        }
    }

    /// The number; panics when it is none.
    pub(crate) fn number(&self) -> i64 {
        match self {
            Self::Number(number) => *number,
            other => panic!("not a number: {other:?}"),
        }
    }

    /// The elements; panics when there are none.
    pub(crate) fn many(&self) -> &[Reply] {
        match self {
            Self::Many(replies) => replies,
            other => panic!("not an array: {other:?}"),
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A connection to a Redis.
pub(crate) struct Resp(BufReader<Box<dyn Stream>>);

impl Resp {
    /// Connects, and authenticates where a password is set.
    pub(crate) async fn to(server: &RedisServer) -> Self {
        let stream: Box<dyn Stream> = if server.url().starts_with("redis+unix") {
            Box::new(UnixStream::connect(server.socket_path()).await.expect("redis is up"))
        } else {
            Box::new(TcpStream::connect(server.address()).await.expect("redis is up"))
        };
        let mut resp = Self(BufReader::new(stream));
        if let Some(password) = server.password() {
            assert_eq!(resp.call(&["AUTH", password]).await.text(), "OK");
        }
        resp
    }

    /// Connects to a server that is no [`RedisServer`], such as a Sentinel.
    pub(crate) async fn at(address: SocketAddr) -> Self {
        Self(BufReader::new(Box::new(TcpStream::connect(address).await.expect("somebody listens"))))
    }

    /// Connects to an address where perhaps nobody listens.
    ///
    /// # Errors
    /// Those of connecting.
    pub(crate) async fn try_at(address: SocketAddr) -> io::Result<Self> {
        Ok(Self(BufReader::new(Box::new(TcpStream::connect(address).await?))))
    }

    /// Sends a command and waits for its answer; a refusal is a panic.
    pub(crate) async fn call(&mut self, command: &[&str]) -> Reply {
        match self.try_call(command).await {
            Reply::Error(error) => panic!("{command:?}: {error}"),
            reply => reply,
        }
    }

    /// Sends a command and waits for its answer, which may be a refusal.
    pub(crate) async fn try_call(&mut self, command: &[&str]) -> Reply {
        let words: Vec<&[u8]> = command.iter().map(|word| word.as_bytes()).collect();
        self.call_bytes(&words).await
    }

    /// Like [`Self::try_call`], for words that are not text.
    pub(crate) async fn call_bytes(&mut self, command: &[&[u8]]) -> Reply {
        timeout(ANSWER_WITHIN, self.ask(command)).await.expect("redis answers in time").expect("redis is up")
    }

    /// Sends a command to a server that may die meanwhile. After an error, or when it is dropped half done, the
    /// connection is of no use any more.
    ///
    /// # Errors
    /// The connection broke. Whether the command was carried out is not known.
    pub(crate) async fn ask(&mut self, command: &[&[u8]]) -> io::Result<Reply> {
        let mut request = format!("*{}\r\n", command.len()).into_bytes();
        for word in command {
            request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            request.extend_from_slice(word);
            request.extend_from_slice(b"\r\n");
        }
        self.0.get_mut().write_all(&request).await?;
        self.reply().await
    }

    fn reply(&mut self) -> Pin<Box<dyn Future<Output = io::Result<Reply>> + Send + '_>> {
        Box::pin(async move {
            let mut line = String::new();
            self.0.read_line(&mut line).await?;
            // A line that breaks off is none.
            let line = line.strip_suffix("\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
            let (kind, rest) = line.split_at_checked(1).ok_or(io::ErrorKind::UnexpectedEof)?;
            Ok(match kind {
                "+" => Reply::Text(rest.to_owned()),
                "-" => Reply::Error(rest.to_owned()),
                ":" => Reply::Number(rest.parse().expect("a number")),
                "$" if rest == "-1" => Reply::Nil,
                "$" => {
                    let mut body = vec![0; rest.parse::<usize>().expect("a length") + 2];
                    self.0.read_exact(&mut body).await?;
                    body.truncate(body.len() - 2);
                    Reply::Text(String::from_utf8_lossy(&body).into_owned())
                }
                "*" if rest == "-1" => Reply::Nil,
                "*" => {
                    let mut replies = Vec::new();
                    for _ in 0..rest.parse::<usize>().expect("a count") {
                        replies.push(self.reply().await?);
                    }
                    Reply::Many(replies)
                }
                _ => panic!("not RESP2: {line:?}"),
            })
        })
    }
}
