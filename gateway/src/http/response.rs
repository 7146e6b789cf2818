//! The few forms that answers have: short text, JSON, files.

use ::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use ::http::{Response, StatusCode};
use bytes::Bytes;
use http_body_util::Full;
use serde::Serialize;

/// What all handlers answer.
pub(super) type Answer = Response<Full<Bytes>>;

pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");
pub(super) const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
pub(super) const CLOSE: HeaderValue = HeaderValue::from_static("close");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
const NO_SNIFF: HeaderValue = HeaderValue::from_static("nosniff");

/// An answer that no cache keeps and no browser reinterprets.
pub(super) fn answer(status: StatusCode, content_type: HeaderValue, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(CACHE_CONTROL, NO_STORE);
    headers.insert(X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
    answer
}

/// A line of text.
pub(super) fn text(status: StatusCode, line: impl std::fmt::Display) -> Answer {
    answer(status, TEXT, format!("{line}\n"))
}

/// A JSON document.
pub(super) fn json(status: StatusCode, document: &impl Serialize) -> Answer {
    match serde_json::to_vec(document) {
        Ok(body) => answer(status, JSON, body),
        // Documents are structs of strings and numbers, which always serialise.
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "internal error"),
    }
}

/// `{"error":"…"}`, the form of every refusal under `/api/`.
pub(super) fn json_error(status: StatusCode, error: impl std::fmt::Display) -> Answer {
    #[derive(Serialize)]
    struct Document {
        error: String,
    }
    json(status, &Document { error: error.to_string() })
}
