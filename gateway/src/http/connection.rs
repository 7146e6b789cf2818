//! One connection as long as it is HTTP: its limits, and how it ends.
//!
//! A connection that has not upgraded is the cheapest way to hurt a server, so each way to keep one is bounded: a
//! request's head must arrive within [`Limits::head_time_max`] (hyper enforces it, for idle keep-alive connections
//! as well), be at most [`HEAD_BYTES_MAX`] long with at most [`HEADERS_MAX`] lines (431), its body has a bound of its
//! own ([`super::body`]), and the whole is asked to end after [`Limits::life_max`] and made to [`GRACE`] later, which
//! bounds a client that reads its answers a byte at a time.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use ::http::{Request, Response};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::TokioTimer;
use tokio::net::TcpStream;

use super::linger::Linger;
use crate::metrics::Connect;

/// The largest request head: request line and header lines.
// Inv. BOUND
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// The most header lines.
pub(super) const HEADERS_MAX: usize = 64;
/// How long a connection has left after it was asked to end.
const GRACE: Duration = Duration::from_secs(5);

/// How long a connection may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// For a request's head, and between two requests.
    pub(super) head_time_max: Duration,
    /// In all.
    pub(super) life_max: Duration,
}

/// Serves requests until the connection ends, upgrades, or `end` (then after the present request). Tells what was
/// wrong with the connection, if that is worth counting. `first`: bytes that were read from it already.
pub(super) async fn serve<S>(
    stream: TcpStream,
    first: Bytes,
    service: S,
    limits: Limits,
    end: impl Future<Output = ()>,
) -> Result<(), Connect>
where
    S: Service<Request<Incoming>, Response = Response<Full<Bytes>>, Error = Infallible>,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_time_max)
        .max_headers(HEADERS_MAX)
        .max_header_size(HEAD_BYTES_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(Linger::new(stream, first), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let asked_to_end = async {
        tokio::select! {
            () = end => {}
            () = tokio::time::sleep(limits.life_max) => {}
        }
    };
    // Biased: what is done is done. Neither arm is dropped before it has ended but the timer.
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = asked_to_end => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(GRACE, connection).await {
                Ok(ended) => ended,
                Err(_) => return Err(Connect::Slow),
            }
        }
    };
    match ended {
        Err(error) if error.is_timeout() => Err(Connect::Slow),
        Err(error) if error.is_parse() => Err(Connect::Malformed),
        // Otherwise the client went away, which it may.
        Ok(()) | Err(_) => Ok(()),
    }
}
