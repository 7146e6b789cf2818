//! Events by `POST /api/v1/events`: one request at a time over one connection.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::ops::RangeInclusive;

use serde::Deserialize;

use super::{ANSWER_WITHIN, Outlet, malformed};
use crate::args::Target;

/// The longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// An ingest path.
#[derive(Debug)]
pub(crate) struct Http {
    target: Target,
    token: String,
    connection: Option<BufReader<TcpStream>>,
}

impl Http {
    /// Posts to `target`.
    pub(crate) fn new(target: Target, token: String) -> Self {
        Self { target, token, connection: None }
    }
}

impl Outlet for Http {
    fn publish(&mut self, numbers: RangeInclusive<u64>) -> io::Result<(u64, String)> {
        let mut stream = match self.connection.take() {
            Some(stream) => stream,
            None => connect(self)?,
        };
        stream.get_mut().write_all(&request(self, numbers))?;
        let answer = answer(&mut stream)?;
        // Only now: after a failure, what is left in it belongs to nobody.
        self.connection = Some(stream);
        Ok((answer.accepted, answer.status.to_string()))
    }
}

/// A status, and how many events were accepted.
#[derive(Debug)]
struct Answer {
    status: u16,
    accepted: u64,
}

fn connect(to: &Http) -> io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&to.target.address, ANSWER_WITHIN)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.set_write_timeout(Some(ANSWER_WITHIN))?;
    Ok(BufReader::new(stream))
}

fn request(to: &Http, numbers: RangeInclusive<u64>) -> Vec<u8> {
    let mut body = String::from("[");
    for number in numbers {
        let comma = if body.len() > 1 { "," } else { "" };
        // Writing to a String cannot fail.
        let _ = write!(body, r#"{comma}{{"event_type":"page_view","page_url":"/n/{number}"}}"#);
    }
    body.push(']');
    let Target { host, path, .. } = &to.target;
    format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {}\r\nContent-Type: \
         application/json\r\nContent-Length: {}\r\n\r\n{body}",
        to.token,
        body.len()
    )
    .into_bytes()
}

fn answer(stream: &mut impl BufRead) -> io::Result<Answer> {
    let mut stream = stream.take(ANSWER_BYTES_MAX);
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        // The server has closed an idle connection, as it may.
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let status = line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(malformed)?;
    let mut length = 0;
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let field = line.trim_end();
        if field.is_empty() {
            break;
        }
        match field.split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse().map_err(|_| malformed())?;
            }
            Some(_) => {}
            None => return Err(malformed()),
        }
    }
    let mut body = Vec::new();
    stream.take(length).read_to_end(&mut body)?;
    #[derive(Deserialize)]
    struct Body {
        accepted: u64,
    }
    let accepted = serde_json::from_slice::<Body>(&body).map_or(0, |body| body.accepted);
    Ok(Answer { status, accepted })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http() -> Http {
        Http::new(Target::resolve("http://127.0.0.1:9/api/v1/events", "http").expect("a URL"), "t".to_owned())
    }

    #[test]
    fn a_request_is_what_the_server_reads() {
        let request = String::from_utf8(request(&http(), 7..=8)).expect("text");
        let (head, body) = request.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("POST /api/v1/events HTTP/1.1\r\nHost: 127.0.0.1:9\r\nAuthorization: Bearer t\r\n"));
        assert!(head.ends_with(&format!("Content-Length: {}", body.len())), "{head}");
        let events = shared::event::parse_batch(&mut body.as_bytes().to_vec()).expect("an array");
        assert_eq!(events.len(), 2);
        assert!(events.iter().all(Result::is_ok));
    }

    #[test]
    fn answers() {
        let check = |text: &str, want: Option<(u16, u64)>| {
            let got = answer(&mut text.as_bytes()).ok().map(|answer| (answer.status, answer.accepted));
            assert_eq!(got, want, "{text}");
        };
        let body = r#"{"accepted":2,"results":[]}"#;
        check(&format!("HTTP/1.1 202 Accepted\r\ncontent-length: {}\r\n\r\n{body}more", body.len()), Some((202, 2)));
        check("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\r\n", Some((503, 0)));
        check("HTTP/1.1 202 Accepted\r\ncontent-len", None);
        check("HTTP/1.1 202 Accepted\r\ncontent-length: x\r\n\r\n", None);
        check("", None);
    }
}
