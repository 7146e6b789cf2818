//! An HTTP client of one request per connection, which sends exactly the bytes it is told to.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest wait for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// An HTTP answer's head.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    /// The status code.
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
}

impl Head {
    /// Reads a head from the front of `bytes`; none while its empty line has not come. The second value is its
    /// length.
    pub(crate) fn parse(bytes: &[u8]) -> Option<(Self, usize)> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
        let text = std::str::from_utf8(&bytes[..end]).expect("heads are ASCII");
        let mut lines = text.split("\r\n");
        let status_line = lines.next().expect("split gives one");
        let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let headers = lines
            .map(|line| line.split_once(':').unwrap_or_else(|| panic!("not a header: {line:?}")))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Some((Self { status: status.unwrap_or_else(|| panic!("not HTTP: {status_line:?}")), headers }, end + 4))
    }

    /// The first header of that name (lower case).
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// An HTTP answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// Its head.
    pub(crate) head: Head,
    /// Its body.
    pub(crate) body: String,
}

impl Answer {
    /// The status code.
    pub(crate) fn status(&self) -> u16 {
        self.head.status
    }

    /// The body as JSON; panics when it is none.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// Sends `request` and reads the answer to its end. None when the server closes without one.
pub(crate) async fn exchange(to: SocketAddr, request: &[u8]) -> Option<Answer> {
    let mut stream = TcpStream::connect(to).await.ok()?;
    // A server may answer and close before it has read everything; its answer is what counts then.
    let _ = stream.write_all(request).await;
    timeout(ANSWER_WITHIN, read_answer(&mut stream)).await.expect("the server answers in time, or closes")
}

/// Reads one answer from `stream`. None when it ends before a whole one.
async fn read_answer(stream: &mut TcpStream) -> Option<Answer> {
    let mut bytes = Vec::new();
    let mut ended = false;
    loop {
        if let Some((head, length)) = Head::parse(&bytes) {
            let promised = head.header("content-length").map(|text| text.parse::<usize>().expect("a length"));
            let body = &bytes[length..];
            if promised.is_some_and(|promised| body.len() >= promised) || ended {
                return Some(Answer { head, body: String::from_utf8_lossy(body).into_owned() });
            }
        }
        if ended {
            return None;
        }
        ended = !matches!(stream.read_buf(&mut bytes).await, Ok(1..));
    }
}

/// `GET path`; none when nobody answers.
pub(crate) async fn try_get(to: SocketAddr, path: &str) -> Option<Answer> {
    exchange(to, format!("GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n").as_bytes()).await
}

/// `GET path`; panics when nobody answers.
pub(crate) async fn get(to: SocketAddr, path: &str) -> Answer {
    try_get(to, path).await.unwrap_or_else(|| panic!("no answer to GET {path}"))
}

/// `POST path` with a body, and a bearer token if there is one; panics when nobody answers.
pub(crate) async fn post(to: SocketAddr, path: &str, token: Option<&str>, body: &[u8]) -> Answer {
    try_post(to, path, token, body).await.unwrap_or_else(|| panic!("no answer to POST {path}"))
}

/// `POST path`; none when nobody answers.
pub(crate) async fn try_post(to: SocketAddr, path: &str, token: Option<&str>, body: &[u8]) -> Option<Answer> {
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         {authorization}Content-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    exchange(to, &request).await
}
