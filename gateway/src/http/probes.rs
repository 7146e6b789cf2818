//! The internal listener: metrics for Prometheus, probes for supervisors and balancers, health for people.
//!
//! - `/livez` fails when a loop that the node lives by hangs: restart me. It never looks at the backplane.
//! - `/readyz` fails before the node is ready and from the first moment of its shutdown: send me nobody.
//! - `/healthz` never fails and tells what works and what does not.
//! - `/metrics` is rendered at most once a second, whoever asks how often.

use std::sync::Arc;
use std::time::Duration;

use ::http::header::HeaderValue;
use ::http::{Request, StatusCode};
use bytes::Bytes;
use parking_lot::Mutex;

use super::response::{self, Answer};
use crate::clock::{Clock, Mono};
use crate::health::{Health, phase_name};
use crate::lifecycle::{Lifecycle, Phase};
use crate::metrics::{self, Metrics};
use crate::vitals::Vitals;
use tokio_util::task::TaskTracker;

/// How long a rendered metrics page is good for.
const RENDERED_FOR: Duration = Duration::from_secs(1);

/// What the internal listener needs.
#[derive(Debug)]
pub struct Internal {
    /// The metrics page.
    pub page: metrics::Page,
    /// How the node is.
    pub health: Arc<Health>,
    /// Where the process is in its life.
    pub lifecycle: Lifecycle,
    /// Whether its loops move.
    pub vitals: Arc<Vitals>,
    /// Where connections that came to nothing are counted.
    pub metrics: Arc<Metrics>,
    /// Owns the connections' tasks.
    pub tasks: TaskTracker,
    /// The node's clock.
    pub clock: Clock,
}

/// The metrics page as it was last rendered.
#[derive(Debug, Default)]
pub(super) struct Rendered(Mutex<Option<(Mono, Bytes)>>);

impl Rendered {
    /// The page, rendered anew if it is older than a second. Rendering happens under the lock: it takes less than a
    /// millisecond, and whoever waits wants the same page.
    fn page(&self, now: Mono, render: impl FnOnce() -> anyhow::Result<String>) -> anyhow::Result<Bytes> {
        let mut rendered = self.0.lock();
        if let Some((at, page)) = &*rendered
            && now.saturating_sub(*at) < RENDERED_FOR
        {
            return Ok(page.clone());
        }
        let page = Bytes::from(render()?);
        *rendered = Some((now, page.clone()));
        Ok(page)
    }
}

/// Answers a request to the internal listener.
pub(super) fn answer<B>(internal: &Internal, rendered: &Rendered, request: &Request<B>) -> Answer {
    let path = request.uri().path();
    if !["/metrics", "/livez", "/readyz", "/healthz"].contains(&path) {
        return super::not_found();
    }
    if !super::is_read(request.method()) {
        return super::only_reads();
    }
    match path {
        "/livez" => live(&internal.vitals),
        "/readyz" => ready(internal.lifecycle.phase()),
        "/healthz" => response::json(StatusCode::OK, &internal.health.report()),
        _ => match rendered.page(internal.clock.now(), || internal.page.render()) {
            Ok(page) => response::answer(StatusCode::OK, HeaderValue::from_static(metrics::CONTENT_TYPE), page),
            Err(error) => {
                tracing::error!(%error, "metrics page failed");
                response::text(StatusCode::INTERNAL_SERVER_ERROR, "metrics page failed")
            }
        },
    }
}

fn live(vitals: &Vitals) -> Answer {
    let stalled: Vec<_> = vitals.stalled().into_iter().map(crate::vitals::Loop::name).collect();
    if stalled.is_empty() {
        response::text(StatusCode::OK, "ok")
    } else {
        response::text(StatusCode::SERVICE_UNAVAILABLE, format_args!("stalled: {}", stalled.join(", ")))
    }
}

// Inv. DRAIN: the phase never goes back, so who is not ready any more never is again.
fn ready(phase: Phase) -> Answer {
    let status = if phase == Phase::Ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    response::text(status, phase_name(phase))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_rendered_once_a_second() {
        let rendered = Rendered::default();
        let page = |ms: u64, text: &str| {
            let page = rendered.page(Duration::from_millis(ms), || Ok(text.to_owned())).expect("renders");
            String::from_utf8(page.to_vec()).expect("UTF-8")
        };
        assert_eq!(page(0, "a"), "a");
        assert_eq!(page(999, "b"), "a");
        assert_eq!(page(1000, "c"), "c");
        assert!(rendered.page(Duration::from_secs(5), || anyhow::bail!("no")).is_err());
        assert_eq!(page(5000, "d"), "d");
    }

    // Inv. DRAIN
    #[test]
    fn ready_is_ready_alone() {
        for (phase, status) in [
            (Phase::Starting, 503),
            (Phase::Ready, 200),
            (Phase::Draining, 503),
            (Phase::Closing, 503),
            (Phase::Stopped, 503),
        ] {
            assert_eq!(ready(phase).status(), status);
        }
    }
}
