//! `GET /api/v1/stats`: the current snapshot, for whoever wants the number once.

use ::http::StatusCode;
use ::http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, HeaderMap, HeaderValue, ORIGIN, RETRY_AFTER, VARY};
use serde::Serialize;
use shared::message::{Freshness, Snapshot};

use super::origin::{Origins, Verdict};
use super::response::{self, Answer};
use crate::hub::Shown;

/// The seed's two keys, and `stale` last where it is so: the same object as in `realtime_update`.
#[derive(Serialize)]
struct Document {
    #[serde(flatten)]
    snapshot: Snapshot,
    #[serde(skip_serializing_if = "Option::is_none")]
    stale: Option<bool>,
}

/// The snapshot, or 503 before the first one. Pages of allowed origins may read it; the origin is repeated only when
/// it is one of those.
pub(super) fn answer(state: Option<Shown>, headers: &HeaderMap, origins: &Origins) -> Answer {
    let mut answer = match state {
        Some(Shown { snapshot, freshness, .. }) => {
            let stale = (freshness == Freshness::Stale).then_some(true);
            response::json(StatusCode::OK, &Document { snapshot, stale })
        }
        None => {
            let mut answer = response::json_error(StatusCode::SERVICE_UNAVAILABLE, "no snapshot yet");
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("2"));
            answer
        }
    };
    answer.headers_mut().insert(VARY, HeaderValue::from(ORIGIN));
    if let Verdict::Allowed(origin) = origins.judge(headers) {
        answer.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    }
    answer
}
