//! `POST /api/v1/events`: how a site's backend says what happened.
//!
//! Who may say so holds a token; without a configured one the path does not exist. Tokens are compared as SHA-256
//! digests in constant time and each with each, so neither length nor position nor the common prefix of a wrong one
//! shows in the time it takes.
//!
//! A batch is judged event by event: the good ones are published in their order, and each result stands at its
//! event's place. The visitor of an event is the one that it names, and nobody otherwise: the peer of this request is
//! the site's backend.

use ::http::header::{ALLOW, AUTHORIZATION, CONNECTION, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use ::http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};
use shared::event::{IncomingEvent, parse_batch};
use shared::field::EventError;
use shared::ids::EventId;
use subtle::{Choice, ConstantTimeEq};
use tracing::Instrument;

use super::Server;
use super::body::{self, BodyError};
use super::response::{self, Answer, json_error};
use crate::backplane::Publication;
use crate::config::Secret;
use crate::identity::VisitorDigest;
use crate::metrics::{Ingest, IngestRefused, Metrics};
use crate::publisher::{PublishError, Submission};
use crate::telemetry::{self, TRACE_TARGET};

/// The largest body.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// When to try again after 503, in seconds.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// The tokens, as digests.
#[derive(Debug)]
pub(super) struct Tokens(Vec<[u8; 32]>);

impl Tokens {
    pub(super) fn new(tokens: &[Secret]) -> Self {
        Self(tokens.iter().map(|token| Sha256::digest(token.reveal()).into()).collect())
    }

    /// Whether the request brings one of them (RFC 6750 section 2.1).
    fn accept(&self, headers: &HeaderMap) -> bool {
        let mut lines = headers.get_all(AUTHORIZATION).iter();
        let (Some(line), None) = (lines.next(), lines.next()) else { return false };
        let Some((scheme, token)) = line.as_bytes().split_at_checked(7) else { return false };
        if !scheme.eq_ignore_ascii_case(b"bearer ") {
            return false;
        }
        let given: [u8; 32] = Sha256::digest(token.trim_ascii()).into();
        // No early exit: which of the tokens it was stays unknown.
        self.0.iter().fold(Choice::from(0), |found, token| found | token.ct_eq(&given)).into()
    }
}

/// What became of one event; serialises as `{"id":"…"}` or `{"error":"field: reason"}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Accepted(EventId),
    Refused(EventError),
}

impl Serialize for Outcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        match self {
            Self::Accepted(id) => map.serialize_entry("id", id)?,
            Self::Refused(error) => map.serialize_entry("error", &error.to_string())?,
        }
        map.end()
    }
}

#[derive(Debug, Serialize)]
struct Report {
    accepted: usize,
    results: Vec<Outcome>,
}

/// Answers a request to the path.
pub(super) async fn handle(server: &Server, request: Request<Incoming>) -> Answer {
    let metrics = &server.public.metrics;
    if server.tokens.0.is_empty() {
        return super::not_found();
    }
    if request.method() != Method::POST {
        let mut answer = json_error(StatusCode::METHOD_NOT_ALLOWED, "use POST");
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        return answer;
    }
    if !server.tokens.accept(request.headers()) {
        metrics.ingest_refused.inc(IngestRefused::Unauthorized);
        let mut answer = json_error(StatusCode::UNAUTHORIZED, "a valid bearer token is needed");
        answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"events\""));
        // The body of somebody unknown is not worth reading.
        answer.headers_mut().insert(CONNECTION, response::CLOSE);
        return answer;
    }
    if let Err(error) = body::check_announced(request.headers(), BODY_BYTES_MAX) {
        return refuse_body(metrics, error);
    }
    let traceparent = traceparent(request.headers()).map(ToOwned::to_owned);
    let mut body = match body::read(request.into_body(), BODY_BYTES_MAX, server.public.settings.body_time_max).await {
        Ok(body) => body,
        Err(error) => return refuse_body(metrics, error),
    };
    match parse_batch(&mut body) {
        Ok(events) => {
            let span = tracing::info_span!(target: TRACE_TARGET, "ingest", events = events.len());
            let traceparent = telemetry::join_trace(&span, traceparent);
            publish(server, events, traceparent).instrument(span).await
        }
        Err(error) => {
            metrics.ingest_refused.inc(IngestRefused::Malformed);
            json_error(StatusCode::BAD_REQUEST, error)
        }
    }
}

/// Publishes the events that fit and reports on all.
async fn publish(
    server: &Server,
    events: Vec<Result<IncomingEvent, EventError>>,
    traceparent: Option<String>,
) -> Answer {
    let metrics = &server.public.metrics;
    let item = |event: &IncomingEvent| {
        (Publication::Event(event.event.clone()), event.visitor.as_ref().map(VisitorDigest::of_id))
    };
    let items: Vec<_> = events.iter().flatten().map(item).collect();
    let (accepted, invalid) = (items.len(), events.len() - items.len());
    let ids = if items.is_empty() {
        Vec::new()
    } else {
        match server.public.publisher.publish(Submission { items, lease: None, traceparent }).await {
            Ok(ids) => ids,
            Err(error) => {
                metrics.ingest.add(Ingest::Unavailable, accepted as u64);
                return unavailable(metrics, error);
            }
        }
    };
    metrics.ingest.add(Ingest::Accepted, accepted as u64);
    metrics.ingest.add(Ingest::Invalid, invalid as u64);
    let mut ids = ids.into_iter();
    let outcome = |event: Result<IncomingEvent, EventError>| match event {
        // The publisher answers with one id for each item.
        Ok(_) => ids.next().map(Outcome::Accepted),
        Err(error) => Some(Outcome::Refused(error)),
    };
    let report = Report { accepted, results: events.into_iter().filter_map(outcome).collect() };
    let status = if accepted > 0 { StatusCode::ACCEPTED } else { StatusCode::UNPROCESSABLE_ENTITY };
    response::json(status, &report)
}

fn unavailable(metrics: &Metrics, error: PublishError) -> Answer {
    metrics.ingest_refused.inc(IngestRefused::Unavailable);
    let reason = match error {
        PublishError::Full => "too many events wait, try again later",
        // Without a lease there is no fence; were there one, trying again would be right as well.
        PublishError::Unavailable | PublishError::Fenced => "the backplane does not answer, try again later",
    };
    let mut answer = json_error(StatusCode::SERVICE_UNAVAILABLE, reason);
    answer.headers_mut().insert(RETRY_AFTER, RETRY_AFTER_SECONDS);
    answer
}

fn refuse_body(metrics: &Metrics, error: BodyError) -> Answer {
    let (label, status) = match error {
        BodyError::TooLarge => (IngestRefused::TooLarge, StatusCode::PAYLOAD_TOO_LARGE),
        BodyError::Slow => (IngestRefused::Malformed, StatusCode::REQUEST_TIMEOUT),
        BodyError::Incomplete => (IngestRefused::Malformed, StatusCode::BAD_REQUEST),
    };
    metrics.ingest_refused.inc(label);
    let mut answer = json_error(status, error);
    answer.headers_mut().insert(CONNECTION, response::CLOSE);
    answer
}

/// The request's W3C trace context (version 00, <https://www.w3.org/TR/trace-context/>), if it is well-formed: it is
/// stored with the events.
fn traceparent(headers: &HeaderMap) -> Option<&str> {
    let mut lines = headers.get_all("traceparent").iter();
    let (Some(line), None) = (lines.next(), lines.next()) else { return None };
    let text = line.to_str().ok()?;
    let mut parts = text.split('-');
    let mut hex = |len: usize| {
        let lower_hex = |part: &&str| part.len() == len && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        parts.next().filter(lower_hex)
    };
    let (version, trace, span, _flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
    let known = |id: &str| id.bytes().any(|byte| byte != b'0');
    (version == "00" && known(trace) && known(span) && parts.next().is_none()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name, value.parse().expect("a header value"));
        }
        headers
    }

    #[test]
    fn one_of_the_tokens_is_needed() {
        let tokens = Tokens::new(&[Secret::new("first-token"), Secret::new("second-token")]);
        let check = |values: &[&str]| tokens.accept(&headers("authorization", values));
        assert!(check(&["Bearer first-token"]));
        assert!(check(&["bearer  second-token"]));
        for bad in
            ["Bearer first-token2", "Bearer first-toke", "Bearer ", "Bearer", "first-token", "Basic first-token", ""]
        {
            assert!(!check(&[bad]), "{bad}");
        }
        assert!(!check(&[]));
        assert!(!check(&["Bearer first-token", "Bearer first-token"]));
        assert!(!Tokens::new(&[]).accept(&headers("authorization", &["Bearer "])));
    }

    // Inv. PRIVATE
    #[test]
    fn no_token_can_be_printed() {
        let printed = format!("{:?}", Tokens::new(&[Secret::new("first-token")]));
        assert!(!printed.contains("first"), "{printed}");
    }

    #[test]
    fn only_a_well_formed_trace_context_is_passed_on() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(traceparent(&headers("traceparent", &[good])), Some(good));
        assert_eq!(traceparent(&headers("traceparent", &[good, good])), None);
        for bad in [
            "",
            "00",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-",
        ] {
            assert_eq!(traceparent(&headers("traceparent", &[bad])), None, "{bad}");
        }
    }
}
