//! The one table of answers to a request for a WebSocket that does not get one.
//!
//! Browsers show none of this to the page, so the readers are people with `curl -i`, load testers and balancers: each
//! refusal has its own status, says in one line of fixed text what is wrong, and has its own label in the metrics.
//! Nothing that came from outside is repeated. 429 and 503 say when to come back.

use std::time::Duration;

use ::http::StatusCode;
use ::http::header::{ALLOW, CONNECTION, HeaderName, HeaderValue, RETRY_AFTER, SEC_WEBSOCKET_VERSION, UPGRADE};

use super::response::{self, Answer};
use crate::admission;
use crate::metrics::Handshake;

/// Why a request gets no WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// A method other than GET.
    Method,
    /// Not HTTP/1.1, which RFC 6455 section 4.1 demands.
    HttpVersion,
    /// Not exactly one `Host` (RFC 9112 section 3.2).
    Host,
    /// A GET with a body: it would be read as frames.
    Body,
    /// A `Sec-WebSocket-Key` that is not 16 bytes in base64.
    Key,
    /// A query parameter that this endpoint knows, with a value that it does not.
    Parameter(ParameterError),
    /// No `Connection: Upgrade` and `Upgrade: websocket`.
    NoUpgrade,
    /// A `Sec-WebSocket-Version` other than 13.
    WebSocketVersion,
    /// A page whose origin is not allowed.
    Origin,
    /// Too many handshakes of the address; to be tried again after this time.
    Rate(Duration),
    /// Too many sockets of the address.
    AddressCap,
    /// The node carries all it may.
    Full,
    /// The node is not ready yet.
    Starting,
    /// The node takes nobody any more.
    Draining,
}

/// Which query parameter does not fit, and why; fixed texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {reason}")]
pub(super) struct ParameterError {
    pub(super) name: &'static str,
    pub(super) reason: &'static str,
}

impl From<admission::Refusal> for Refusal {
    fn from(refusal: admission::Refusal) -> Self {
        match refusal {
            admission::Refusal::AddressCap => Self::AddressCap,
            admission::Refusal::Full => Self::Full,
            admission::Refusal::NotReady => Self::Starting,
        }
    }
}

impl Refusal {
    /// The label under which it is counted.
    pub(super) fn label(self) -> Handshake {
        self.row().1
    }

    /// The answer.
    pub(super) fn answer(self) -> Answer {
        let (status, _, line) = self.row();
        let mut answer = match self {
            Self::Parameter(error) => response::text(status, error),
            _ => response::text(status, line),
        };
        let headers = answer.headers_mut();
        // Who was refused comes back on a new connection if at all; this one would only hold its place.
        headers.insert(CONNECTION, response::CLOSE);
        match self {
            Self::Method => insert(headers, ALLOW, "GET"),
            Self::NoUpgrade => {
                // RFC 9110 section 7.8: who sends Upgrade must name it in Connection.
                insert(headers, CONNECTION, "upgrade, close");
                insert(headers, UPGRADE, "websocket");
            }
            Self::WebSocketVersion => insert(headers, SEC_WEBSOCKET_VERSION, "13"),
            _ => {}
        }
        if let Some(seconds) = self.retry_after_seconds() {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        answer
    }

    fn retry_after_seconds(self) -> Option<u64> {
        match self {
            Self::Rate(wait) => Some(wait.as_secs() + u64::from(wait.subsec_nanos() > 0)),
            // Tabs close at their own pace; asking each second would only be more handshakes.
            Self::AddressCap => Some(30),
            Self::Full => Some(10),
            Self::Starting => Some(2),
            // Another node takes it at once.
            Self::Draining => Some(1),
            _ => None,
        }
    }

    fn row(self) -> (StatusCode, Handshake, &'static str) {
        use StatusCode as S;
        match self {
            Self::Method => (S::METHOD_NOT_ALLOWED, Handshake::Method, "use GET"),
            Self::HttpVersion => (S::BAD_REQUEST, Handshake::Malformed, "a WebSocket needs HTTP/1.1"),
            Self::Host => (S::BAD_REQUEST, Handshake::Malformed, "exactly one Host is needed"),
            Self::Body => (S::BAD_REQUEST, Handshake::Malformed, "a WebSocket request has no body"),
            Self::Key => (S::BAD_REQUEST, Handshake::Malformed, "Sec-WebSocket-Key: not 16 bytes in base64"),
            Self::Parameter(_) => (S::BAD_REQUEST, Handshake::Malformed, ""),
            Self::NoUpgrade => (S::UPGRADE_REQUIRED, Handshake::NoUpgrade, "this is a WebSocket endpoint"),
            Self::WebSocketVersion => (S::UPGRADE_REQUIRED, Handshake::NoUpgrade, "use WebSocket version 13"),
            Self::Origin => (S::FORBIDDEN, Handshake::Origin, "this origin is not allowed"),
            Self::Rate(_) => (S::TOO_MANY_REQUESTS, Handshake::Rate, "too many handshakes from this address"),
            Self::AddressCap => (S::TOO_MANY_REQUESTS, Handshake::AddressCap, "too many sockets of this address"),
            Self::Full => (S::SERVICE_UNAVAILABLE, Handshake::Full, "this node is full"),
            Self::Starting => (S::SERVICE_UNAVAILABLE, Handshake::Starting, "this node is starting"),
            Self::Draining => (S::SERVICE_UNAVAILABLE, Handshake::Draining, "this node is shutting down"),
        }
    }
}

fn insert(headers: &mut ::http::HeaderMap, name: HeaderName, value: &'static str) {
    headers.insert(name, HeaderValue::from_static(value));
}
