//! Reading a request's body within its bounds.

use std::time::Duration;

use ::http::header::{CONTENT_LENGTH, HeaderMap};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;

/// Why there is no body to work with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BodyError {
    /// Announced, or turned out, to be larger than allowed.
    #[error("body: larger than allowed")]
    TooLarge,
    /// It did not arrive in time.
    #[error("body: did not arrive in time")]
    Slow,
    /// The connection broke, or the chunks are malformed.
    #[error("body: incomplete")]
    Incomplete,
}

/// Refuses a body that says itself that it is too large, before a byte of it is read (or, where the client waits for
/// `100 Continue`, sent).
pub(super) fn check_announced(headers: &HeaderMap, bytes_max: usize) -> Result<(), BodyError> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    match announced {
        Some(length) if length > bytes_max as u64 => Err(BodyError::TooLarge),
        _ => Ok(()),
    }
}

/// The whole body; at most `bytes_max`, within `time_max`.
// Inv. BOUND
pub(super) async fn read(body: Incoming, bytes_max: usize, time_max: Duration) -> Result<Vec<u8>, BodyError> {
    let whole = tokio::time::timeout(time_max, Limited::new(body, bytes_max).collect());
    match whole.await {
        Err(_) => Err(BodyError::Slow),
        Ok(Ok(body)) => Ok(body.to_bytes().into()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(BodyError::TooLarge),
        Ok(Err(_)) => Err(BodyError::Incomplete),
    }
}
