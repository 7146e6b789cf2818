//! What a connection says first; nearly always the request for a WebSocket.
//!
//! hyper can do all of HTTP/1, and is dear for the one request that this process lives by: its buffers, its state and
//! a second task's worth of future are made and freed around one read and one write. So what the client sends first
//! is read here. If that is one whole head which asks for the endpoint, the caller can answer it without
//! hyper ([`super::upgrade::open_directly`]), the 101 and `init` in one write. Anything else goes to hyper, together
//! with the bytes ([`super::linger`] hands them over): half a head, another path, and all that is to be
//! refused. So refusals are written in one place, and a head that is merely unusual costs what it always did.
//!
//! The parser is httparse, which is hyper's own, with the same limits: both see the same request.

use std::io::Read;
use std::mem::MaybeUninit;
use std::time::Duration;

use ::http::{HeaderName, HeaderValue, Method, Request, Uri, Version};
use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::connection::HEADERS_MAX;
use super::upgrade::PATH;
use crate::lifecycle::{Lifecycle, Phase};
use crate::metrics::Connect;

/// Room for what is read first: a browser's request with some cookies. What is longer goes to hyper.
const FIRST_BYTES: usize = 4096;
/// What a request begins with that is worth parsing here.
const BEGINNING: &[u8] = b"GET /ws/";

/// What has come, in one read; none when the connection or the process ends instead.
///
/// # Errors
/// [`Connect::Slow`] after `time_max`.
pub(super) async fn read(
    stream: &mut TcpStream,
    time_max: Duration,
    lifecycle: &Lifecycle,
) -> Result<Option<Bytes>, Connect> {
    let mut buffer = BytesMut::with_capacity(FIRST_BYTES);
    // Biased: what has come is served. Reading into the buffer is cancel safe.
    let read = tokio::select! {
        biased;
        read = stream.read_buf(&mut buffer) => read,
        () = lifecycle.reached(Phase::Closing) => return Ok(None),
        () = tokio::time::sleep(time_max) => return unread(stream).map(Some).ok_or(Connect::Slow),
    };
    // A client that goes away without a word may.
    Ok(read.ok().filter(|read| *read > 0).map(|_| buffer.freeze()))
}

/// What the kernel holds of a client whose time is up. In a process that gets too little of the processor its timers can
/// come before the news that the client has spoken.
// Inv. ISOLATION: who has spoken in time is not slow, however late this process is.
fn unread(stream: &TcpStream) -> Option<Bytes> {
    let mut buffer = vec![0; FIRST_BYTES];
    // Not through tokio, which would answer by the news that it has.
    let read = (&*SockRef::from(stream)).read(&mut buffer).ok().filter(|read| *read > 0)?;
    buffer.truncate(read);
    Some(buffer.into())
}

/// The request that `bytes` begin with, if it is whole and a GET of the endpoint, and the bytes behind it.
pub(super) fn parse(bytes: &Bytes) -> Option<(Request<()>, Bytes)> {
    if !bytes.starts_with(BEGINNING) {
        return None;
    }
    let mut lines = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut []);
    let httparse::Status::Complete(length) = head.parse_with_uninit_headers(bytes, &mut lines).ok()? else {
        return None;
    };
    if head.version != Some(1) || head.method != Some("GET") {
        return None;
    }
    let mut request = Request::new(());
    *request.method_mut() = Method::GET;
    *request.version_mut() = Version::HTTP_11;
    *request.uri_mut() = Uri::from_maybe_shared(bytes.slice_ref(head.path?.as_bytes())).ok()?;
    if request.uri().path() != PATH {
        return None;
    }
    let headers = request.headers_mut();
    headers.reserve(head.headers.len());
    for line in &*head.headers {
        let name = HeaderName::from_bytes(line.name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_maybe_shared(bytes.slice_ref(line.value)).ok()?);
    }
    Some((request, bytes.slice(length..)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REQUEST: &str = "GET /ws/analytics?ids=1 HTTP/1.1\r\nHost: gateway\r\nX-A: 1\r\nx-a:  2 \r\n\r\n";

    fn parsed(text: &str) -> Option<(Request<()>, Bytes)> {
        parse(&Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn a_whole_head_and_what_follows_it() {
        let (request, rest) = parsed(&format!("{REQUEST}\u{1}more")).expect("whole");
        assert_eq!(request.uri(), "/ws/analytics?ids=1");
        assert_eq!(request.headers()["host"], "gateway");
        let both: Vec<_> = request.headers().get_all("x-a").iter().collect();
        assert_eq!(both, ["1", "2"]);
        assert_eq!(rest, "\u{1}more");
    }

    // On two cores that had a million sockets, one of twenty handshakes was dropped; those clients had spoken.
    #[tokio::test]
    async fn what_has_come_is_found_without_news_of_it() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut client = std::net::TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
        let (stream, _) = listener.accept().await.expect("a client");
        assert_eq!(unread(&stream), None, "a silent client is slow");
        // Nothing is awaited in between, so tokio knows nothing of it.
        std::io::Write::write_all(&mut client, REQUEST.as_bytes()).expect("the kernel takes it");
        assert_eq!(unread(&stream).as_deref(), Some(REQUEST.as_bytes()));
        assert_eq!(unread(&stream), None);
        drop(client);
        assert_eq!(unread(&stream), None, "one that has gone said nothing");
    }

    #[test]
    fn anything_unusual_is_left_to_hyper() {
        for end in 0..REQUEST.len() {
            assert!(parsed(&REQUEST[..end]).is_none(), "half a head");
        }
        assert!(parsed(&REQUEST.replace("GET", "POST")).is_none());
        assert!(parsed(&REQUEST.replace("1.1", "1.0")).is_none());
        for elsewhere in
            ["/ws/analyticsx?", "/ws/analytics/?", "/ws/analytics;a?", "/ws/%61nalytics?", "/wss/analytics?"]
        {
            assert!(parsed(&REQUEST.replace("/ws/analytics?", elsewhere)).is_none(), "{elsewhere}");
        }
        assert!(parsed(&REQUEST.replace("Host:", "Ho st:")).is_none());
        assert!(parsed(&REQUEST.replace("gateway", "gate\0way")).is_none());
        let crowded = "x: y\r\n".repeat(HEADERS_MAX);
        assert!(parsed(&REQUEST.replace("X-A: 1\r\n", &crowded)).is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Bytes::from([BEGINNING, &tail].concat());
            if let Some((_, rest)) = parse(&bytes) {
                prop_assert!(bytes.ends_with(&rest));
            }
        }
    }
}
