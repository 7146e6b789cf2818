//! From an HTTP request to a WebSocket: every check, in order of cost, and the hand-over of the socket.
//!
//! The library that writes the 101 checks two header lines and lets POST, HTTP/1.0, a missing `Host` and a garbage key
//! pass, so everything is checked here first ([`check`], pure). Then come the limits, the dearest last: the one that
//! asks the backplane. What was admitted is held by an [`Attempt`], whose drop gives the permit back and counts the
//! attempt as abandoned, wherever the client disappears: while the backplane is asked, before the 101 is written, or
//! before the socket is taken over.
//!
//! There are two ways to the 101. The first request of a connection, which nearly all are, was read whole by
//! [`super::first`] and is answered by [`open_directly`]: the hub writes the 101 and `init` in one go, and hyper is
//! not involved. A request behind another one on its connection, as proxies send them that keep connections, or one
//! that came in pieces, is hyper's ([`handle`]). Both go through the same checks ([`check`], [`admit`]).
//!
//! The hand-over from hyper takes the plain TCP stream out of hyper, with the bytes that hyper had read beyond the request (a
//! client may send its first frame right behind the handshake), and gives both to the hub. Nothing of hyper is kept:
//! its buffers are twenty times the size of an idle socket.

use std::net::IpAddr;
use std::sync::Arc;

use ::http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderValue, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION,
    TRANSFER_ENCODING, UPGRADE, USER_AGENT,
};
use ::http::{Method, Request, Version};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use fastwebsockets::upgrade::UpgradeFut;
use http_body_util::Full;
use hyper::body::Incoming;
use sha1::{Digest as _, Sha1};
use shared::field::VisitorId;
use shared::ids::EventId;
use shared::message::MessageKinds;
use tokio::net::TcpStream;
use tracing::Instrument;

use super::Server;
use super::linger::Linger;
use super::origin::{Origins, Verdict};
use super::refusal::{ParameterError, Refusal};
use super::response::Answer;
use crate::admission::{Admission, Permit};
use crate::drain::retry_after_ms;
use crate::hub::{Ids, NewSocket};
use crate::identity::VisitorDigest;
use crate::lifecycle::Phase;
use crate::metrics::{Handshake, Metrics};
use crate::telemetry::TRACE_TARGET;

/// Where WebSockets are.
pub(super) const PATH: &str = "/ws/analytics";
/// What the key is answered with is hashed with this (RFC 6455 section 1.3).
const KEY_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What the request asks for beyond a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    kinds: MessageKinds,
    ids: Ids,
    resume: Option<EventId>,
    visitor: Option<VisitorId>,
}

/// A request that was let in and has not become a socket yet.
#[derive(Debug)]
struct Attempt {
    metrics: Arc<Metrics>,
    settled: bool,
}

impl Attempt {
    fn new(metrics: &Arc<Metrics>) -> Self {
        Self { metrics: Arc::clone(metrics), settled: false }
    }

    fn settle(mut self, outcome: Handshake) {
        self.settled = true;
        self.metrics.handshakes.inc(outcome);
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.settled {
            self.metrics.handshakes.inc(Handshake::Abandoned);
        }
    }
}

/// A socket that was let in.
#[derive(Debug)]
struct Admitted {
    attempt: Attempt,
    permit: Permit,
    kinds: MessageKinds,
    ids: Ids,
    resume: Option<EventId>,
    visitor: VisitorDigest,
}

/// An upgrade that was answered with 101 by hyper.
#[derive(Debug)]
pub(super) struct Upgrade {
    admitted: Admitted,
    socket: UpgradeFut,
}

/// What came of the first request of a connection.
#[derive(Debug)]
pub(super) enum First {
    /// It is a WebSocket now, or the client has gone.
    Done,
    /// hyper has to answer: with this refusal, which is counted already, or after looking for itself.
    Left(TcpStream, Option<Refusal>),
}

/// Answers the first request of a connection, which has come whole, if there is nothing to object to.
pub(super) async fn open_directly(
    server: &Server,
    stream: TcpStream,
    request: Request<()>,
    leftover: Bytes,
    client: IpAddr,
) -> First {
    let Ok(wanted) = check(&request, &server.origins) else { return First::Left(stream, None) };
    let Some(answer) = only(request.headers(), &SEC_WEBSOCKET_KEY).map(switching_protocols) else {
        return First::Left(stream, None);
    };
    let admitted = tokio::select! {
        biased;
        admitted = admit(server, &request, wanted, client) => admitted,
        // Dropping the other arm gives back what it took, and counts the attempt as abandoned.
        () = hung_up(&stream) => return First::Done,
    };
    match admitted {
        Ok(admitted) => {
            hand_over(server, admitted, stream, answer, leftover);
            First::Done
        }
        Err(refusal) => First::Left(stream, Some(refusal)),
    }
}

/// Waits until the client has closed the connection; for ever when it says something instead.
async fn hung_up(stream: &TcpStream) {
    if matches!(stream.peek(&mut [0]).await, Ok(1..)) {
        std::future::pending().await
    }
}

/// The answer to a request with this key (RFC 6455 section 4.2.2).
fn switching_protocols(key: &[u8]) -> Bytes {
    let digest = Sha1::new().chain_update(key).chain_update(KEY_SUFFIX).finalize();
    let accept = BASE64_STANDARD.encode(digest);
    Bytes::from(format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: \
         {accept}\r\n\r\n"
    ))
}

/// Answers a request for a WebSocket: with 101 and the upgrade to be finished, or with a refusal.
pub(super) async fn handle(
    server: &Server,
    request: &mut Request<Incoming>,
    client: IpAddr,
) -> Result<(Answer, Upgrade), Answer> {
    let refuse = |refusal: Refusal| {
        server.public.metrics.handshakes.inc(refusal.label());
        refusal.answer()
    };
    let wanted = check(request, &server.origins).map_err(refuse)?;
    let admitted = admit(server, request, wanted, client).await.map_err(Refusal::answer)?;
    // It looks for key and version, which have been checked.
    match fastwebsockets::upgrade::upgrade(&mut *request) {
        Ok((answer, socket)) => Ok((answer.map(|_| Full::default()), Upgrade { admitted, socket })),
        Err(_) => {
            admitted.attempt.settle(Handshake::Malformed);
            Err(Refusal::Key.answer())
        }
    }
}

/// The checks that ask more than the request, cheap before dear. A refusal is counted.
async fn admit<B>(server: &Server, request: &Request<B>, wanted: Wanted, client: IpAddr) -> Result<Admitted, Refusal> {
    let attempt = Attempt::new(&server.public.metrics);
    let span = tracing::info_span!(target: TRACE_TARGET, "handshake");
    match permit(server, client).instrument(span).await {
        Ok(permit) => {
            let user_agent = request.headers().get(USER_AGENT).map(HeaderValue::as_bytes);
            let visitor = identify(&server.public.admission, &permit, &wanted, client, user_agent);
            let Wanted { kinds, ids, resume, .. } = wanted;
            Ok(Admitted { attempt, permit, kinds, ids, resume, visitor })
        }
        Err(refusal) => {
            attempt.settle(refusal.label());
            Err(refusal)
        }
    }
}

async fn permit(server: &Server, client: IpAddr) -> Result<Permit, Refusal> {
    match server.public.lifecycle.phase() {
        Phase::Starting => return Err(Refusal::Starting),
        // Balancers need a moment to notice: upgrades are taken until the listener closes.
        Phase::Ready | Phase::Draining => {}
        Phase::Closing | Phase::Stopped => return Err(Refusal::Draining),
    }
    server.public.admission.check_handshake_rate(client).map_err(Refusal::Rate)?;
    Ok(server.public.admission.admit(client).await?)
}

/// Gives a socket to the hub. `answer`: what is to be written before anything else.
fn hand_over(server: &Server, admitted: Admitted, stream: TcpStream, answer: Bytes, leftover: Bytes) {
    let Admitted { attempt, permit, kinds, ids, resume, visitor } = admitted;
    let public = &server.public;
    attempt.settle(Handshake::Accepted);
    let socket = NewSocket { stream, answer, leftover, kinds, ids, resume, visitor, permit: Some(Box::new(permit)) };
    let id = public.hub.open(socket, &public.tasks);
    public.presence.arrived(visitor);
    // Inv. DRAIN: the drain looks for sockets after it has closed the listener, so it either finds this one, or
    // this line sees that it has passed.
    if public.lifecycle.phase() >= Phase::Closing {
        public.hub.close_draining(id, retry_after_ms());
    }
}

/// Whom the socket is counted as: the visitor that it names, else whoever has this address and browser. Both are the
/// client's to invent; beyond what an address may, it is whoever has this address.
fn identify(
    admission: &Admission,
    permit: &Permit,
    wanted: &Wanted,
    client: IpAddr,
    user_agent: Option<&[u8]>,
) -> VisitorDigest {
    let named = wanted.visitor.as_ref().map(VisitorDigest::of_id);
    let browser = VisitorDigest::of_client(client, user_agent);
    let mut claims = named.into_iter().chain([browser]);
    claims
        .find(|visitor| admission.new_visitor_allowed(permit.address(), visitor))
        .unwrap_or_else(|| VisitorDigest::of_client(client, None))
}

/// Everything that can be judged by looking at the request alone.
fn check<B>(request: &Request<B>, origins: &Origins) -> Result<Wanted, Refusal> {
    let headers = request.headers();
    if request.method() != Method::GET {
        return Err(Refusal::Method);
    }
    if request.version() != Version::HTTP_11 {
        return Err(Refusal::HttpVersion);
    }
    if !has_one_host(headers) {
        return Err(Refusal::Host);
    }
    if has_body(headers) {
        return Err(Refusal::Body);
    }
    if !has_token(headers, &CONNECTION, "upgrade") || !has_token(headers, &UPGRADE, "websocket") {
        return Err(Refusal::NoUpgrade);
    }
    if only(headers, &SEC_WEBSOCKET_VERSION) != Some(b"13") {
        return Err(Refusal::WebSocketVersion);
    }
    if !only(headers, &SEC_WEBSOCKET_KEY).is_some_and(is_key) {
        return Err(Refusal::Key);
    }
    let wanted = parse_query(request.uri().query().unwrap_or_default()).map_err(Refusal::Parameter)?;
    if origins.judge(headers) == Verdict::Refused {
        return Err(Refusal::Origin);
    }
    Ok(wanted)
}

/// Whether the request names its host, once (RFC 9112 section 3.2).
pub(super) fn has_one_host(headers: &HeaderMap) -> bool {
    only(headers, &HOST).is_some_and(|host| !host.is_empty())
}

fn has_body(headers: &HeaderMap) -> bool {
    let length = headers.get_all(CONTENT_LENGTH).iter().any(|length| length.as_bytes() != b"0");
    length || headers.contains_key(TRANSFER_ENCODING)
}

/// The value of a header that may stand only once.
fn only<'h>(headers: &'h HeaderMap, name: &::http::HeaderName) -> Option<&'h [u8]> {
    let mut lines = headers.get_all(name).iter();
    let line = lines.next()?;
    lines.next().is_none().then(|| line.as_bytes().trim_ascii())
}

/// Whether a comma list, over all its lines, has `token`; tokens have no case.
fn has_token(headers: &HeaderMap, name: &::http::HeaderName, token: &str) -> bool {
    let mut entries = headers.get_all(name).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    entries.any(|entry| entry.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// Sixteen bytes in base64 are 22 digits and two `=` (RFC 6455 section 4.1). The last digit carries two bits, and
/// some clients leave rubbish in the other four; nobody decodes the key, so that is let pass.
fn is_key(key: &[u8]) -> bool {
    let digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    key.len() == 24 && key.ends_with(b"==") && key[..22].iter().all(digit)
}

/// Reads the opt-ins. Unknown parameters are ignored; a known one that comes twice is a mistake which one of the two
/// values would hide.
fn parse_query(query: &str) -> Result<Wanted, ParameterError> {
    let (mut kinds, mut ids, mut resume, mut visitor) = (None, None, None, None);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let refuse = |name, reason| ParameterError { name, reason };
        match &*name {
            "types" => {
                let reason = "choose from realtime_update, new_event, theme_stats, letter_generated";
                let parsed = MessageKinds::parse(&value).map_err(|_| refuse("types", reason))?;
                set_once(&mut kinds, parsed, "types")?;
            }
            "ids" if value == "1" => set_once(&mut ids, Ids::With, "ids")?,
            "ids" => return Err(refuse("ids", "not 1")),
            "last_event_id" => {
                let parsed = value.parse().map_err(|_| refuse("last_event_id", "not an id of a message"))?;
                set_once(&mut resume, parsed, "last_event_id")?;
            }
            "visitor" => {
                // What is not UTF-8 was replaced by the decoder; such an id would be another one each time.
                if value.contains(char::REPLACEMENT_CHARACTER) {
                    return Err(refuse("visitor", "not UTF-8"));
                }
                let parsed = VisitorId::parse("visitor", &value).map_err(|error| refuse(error.field, error.reason))?;
                set_once(&mut visitor, parsed, "visitor")?;
            }
            _ => {}
        }
    }
    // Who resumes by an id sees ids, or could not do so again.
    let ids = ids.unwrap_or(if resume.is_some() { Ids::With } else { Ids::Without });
    Ok(Wanted { kinds: kinds.unwrap_or(MessageKinds::ALL), ids, resume, visitor })
}

fn set_once<T>(slot: &mut Option<T>, value: T, name: &'static str) -> Result<(), ParameterError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(ParameterError { name, reason: "given twice" }),
    }
}

impl Upgrade {
    /// Takes the socket over, after the connection has ended as HTTP. What goes wrong is counted as abandoned.
    pub(super) async fn finish(self, server: &Server) {
        // Resolved already: hyper has handed the connection over, or it has broken.
        let Ok(socket) = self.socket.await else { return };
        let Ok(parts) = socket.into_inner().into_inner().downcast::<Linger>() else {
            // The only connections that exist are ours.
            tracing::error!("upgraded connection is of an unknown kind");
            return;
        };
        let (stream, unread) = parts.io.into_inner();
        let leftover = if unread.is_empty() { parts.read_buf } else { [parts.read_buf, unread].concat().into() };
        hand_over(server, self.admitted, stream, Bytes::new(), leftover);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shared::message::MessageKind;

    use super::*;
    use crate::config::AllowedOrigins;

    #[track_caller]
    fn refused(query: &str, line: &str) {
        assert_eq!(parse_query(query).map_err(|error| error.to_string()), Err(line.to_owned()), "{query}");
    }

    #[test]
    fn the_opt_ins() {
        let plain = Wanted { kinds: MessageKinds::ALL, ids: Ids::Without, resume: None, visitor: None };
        for query in ["", "&&", "utm_source=x&utm_source=y", "type=new_event", "TYPES=nonsense"] {
            assert_eq!(parse_query(query), Ok(plain.clone()), "{query}");
        }
        let wanted = parse_query("types=new_event%2Ctheme_stats&x=1&ids=1&visitor=%C3%A4+b").expect("fits");
        assert_eq!(wanted.ids, Ids::With);
        assert_eq!(wanted.visitor.as_ref().map(VisitorId::as_str), Some("ä b"));
        let chosen = [MessageKind::NewEvent, MessageKind::LetterGenerated].map(|kind| wanted.kinds.contains(kind));
        assert_eq!(chosen, [true, false]);
        assert!(parse_query(&format!("visitor={}", "v".repeat(64))).is_ok());
        // To resume is to want ids, said or not.
        for query in ["last_event_id=17-0-0a1f", "ids=1&last_event_id=17%2D0-0a1f"] {
            let wanted = parse_query(query).expect("fits");
            assert_eq!(wanted.resume.map(|id| id.to_string()).as_deref(), Some("17-0-0a1f"));
            assert_eq!(wanted.ids, Ids::With);
        }
    }

    #[test]
    fn bad_values_are_named() {
        let types = "types: choose from realtime_update, new_event, theme_stats, letter_generated";
        refused("types=", types);
        refused("types=new_event,", types);
        refused("types=nonsense", types);
        refused("types=ping&types=ping", "types: given twice");
        refused("ids=", "ids: not 1");
        refused("ids=0", "ids: not 1");
        refused("ids=1&ids=1", "ids: given twice");
        let far = "last_event_id=18446744073709551616-0-abcd";
        let short = "last_event_id=17-0";
        for query in ["last_event_id=", "last_event_id=$", "last_event_id=0", short, far, "last_event_id=17-0-ABCD"] {
            refused(query, "last_event_id: not an id of a message");
        }
        refused("last_event_id=1-0-abcd&last_event_id=1-0-abcd", "last_event_id: given twice");
        refused("visitor=", "visitor: not 1 to 64 bytes");
        refused("visitor", "visitor: not 1 to 64 bytes");
        refused(&format!("visitor={}", "v".repeat(65)), "visitor: not 1 to 64 bytes");
        refused("visitor=%ff", "visitor: not UTF-8");
        refused("visitor=a&visitor=a", "visitor: given twice");
    }

    fn request(change: impl FnOnce(&mut Request<()>)) -> Request<()> {
        let mut request = Request::builder()
            .uri("/ws/analytics")
            .header(HOST, "gateway:5000")
            .header(CONNECTION, "keep-alive, Upgrade")
            .header(UPGRADE, "h2c")
            .header(UPGRADE, "WebSocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==")
            .body(())
            .expect("well-formed");
        change(&mut request);
        request
    }

    // The example of RFC 6455 section 1.3.
    #[test]
    fn the_key_is_answered() {
        let answer = switching_protocols(b"dGhlIHNhbXBsZSBub25jZQ==");
        let line = b"\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        assert!(answer.starts_with(b"HTTP/1.1 101 ") && answer.ends_with(line), "{answer:?}");
    }

    #[test]
    fn the_request_is_judged_in_order() {
        let origins = Origins::new(&AllowedOrigins::Only(["http://localhost:3000".to_owned()].into()));
        let check = |change: fn(&mut Request<()>)| super::check(&request(change), &origins).map(|_| ());
        assert_eq!(check(|_| ()), Ok(()));
        assert_eq!(check(|r| *r.method_mut() = Method::POST), Err(Refusal::Method));
        assert_eq!(check(|r| *r.method_mut() = Method::HEAD), Err(Refusal::Method));
        assert_eq!(check(|r| *r.version_mut() = Version::HTTP_10), Err(Refusal::HttpVersion));
        assert_eq!(check(|r| drop(r.headers_mut().remove(HOST))), Err(Refusal::Host));
        assert_eq!(check(|r| put(r, HOST, "")), Err(Refusal::Host));
        assert_eq!(check(|r| add(r, HOST, "gateway:5000")), Err(Refusal::Host));
        assert_eq!(check(|r| put(r, CONTENT_LENGTH, "0")), Ok(()));
        assert_eq!(check(|r| put(r, CONTENT_LENGTH, "5")), Err(Refusal::Body));
        assert_eq!(check(|r| put(r, TRANSFER_ENCODING, "chunked")), Err(Refusal::Body));
        assert_eq!(check(|r| drop(r.headers_mut().remove(UPGRADE))), Err(Refusal::NoUpgrade));
        assert_eq!(check(|r| put(r, CONNECTION, "keep-alive")), Err(Refusal::NoUpgrade));
        assert_eq!(check(|r| put(r, UPGRADE, "websockets")), Err(Refusal::NoUpgrade));
        assert_eq!(check(|r| put(r, SEC_WEBSOCKET_VERSION, "8")), Err(Refusal::WebSocketVersion));
        assert_eq!(check(|r| add(r, SEC_WEBSOCKET_VERSION, "13")), Err(Refusal::WebSocketVersion));
        assert_eq!(check(|r| drop(r.headers_mut().remove(SEC_WEBSOCKET_KEY))), Err(Refusal::Key));
        assert_eq!(check(|r| put(r, SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ")), Err(Refusal::Key));
        assert_eq!(check(|r| put(r, SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25j!Q==")), Err(Refusal::Key));
        assert_eq!(check(|r| put(r, ::http::header::ORIGIN, "http://localhost:3000")), Ok(()));
        assert_eq!(check(|r| put(r, ::http::header::ORIGIN, "https://evil.example")), Err(Refusal::Origin));
    }

    fn put(request: &mut Request<()>, name: ::http::HeaderName, value: &'static str) {
        request.headers_mut().insert(name, HeaderValue::from_static(value));
    }

    fn add(request: &mut Request<()>, name: ::http::HeaderName, value: &'static str) {
        request.headers_mut().append(name, HeaderValue::from_static(value));
    }

    proptest! {
        #[test]
        fn no_query_makes_the_parser_panic(query in "(types|ids|last_event_id|visitor|[a-z%]{0,5}|=|&|,|%[0-9a-f]{2}|[ -~]|\\PC){0,20}") {
            if let Ok(wanted) = parse_query(&query) {
                prop_assert!(wanted.visitor.is_none_or(|visitor| (1..=64).contains(&visitor.as_str().len())));
            }
        }
    }
}
