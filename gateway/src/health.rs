//! How the node is, for people and dashboards: one JSON document with a word for the whole.
//!
//! It is always answered with 200. What must act on health has probes of its own: `/livez` restarts a process whose
//! loops hang, `/readyz` takes a node out of the balancer. Neither may look at the backplane, or one failure of Redis
//! would restart or empty the whole fleet; this document is where such a failure shows.

use std::sync::Arc;

use serde::Serialize;
use shared::message::Freshness;
use shared::time::Timestamp;

use crate::admission::Admission;
use crate::backplane::Backplane;
use crate::hub::Hub;
use crate::lifecycle::{Lifecycle, Phase};
use crate::metrics::Metrics;
use crate::vitals::Vitals;

/// What is looked at.
#[derive(Debug)]
pub struct Health {
    /// Its name says of which kind it is.
    pub backplane: Arc<dyn Backplane>,
    /// Whether handshakes are decided with the cluster.
    pub admission: Arc<Admission>,
    /// Sockets, and the freshness of the number.
    pub hub: Arc<Hub>,
    /// Whether the backplane answers, and who ticks.
    pub metrics: Arc<Metrics>,
    /// Whether the loops move.
    pub vitals: Arc<Vitals>,
    /// Where the process is in its life.
    pub lifecycle: Lifecycle,
}

/// The whole in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Everything works.
    Ok,
    /// Clients are served, but something does not work.
    Degraded,
    /// The node is on its way out.
    Draining,
}

/// The document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The whole.
    pub status: Status,
    /// Its parts.
    pub components: Components,
}

/// The parts; each says for itself whether it is well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names are the document")]
pub struct Components {
    pub process: Part<&'static str>,
    pub backplane: Part<&'static str>,
    pub snapshot: Part<Option<Timestamp>>,
    pub admission: Part<&'static str>,
    pub loops: Part<Vec<&'static str>>,
    pub ticker: bool,
    pub sockets: usize,
}

/// Whether a part is well, and what there is to say about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Part<T> {
    /// Whether it is well.
    pub ok: bool,
    /// The phase; the kind of backplane; the time of the snapshot; who decides; the loops that hang.
    pub detail: T,
}

impl Health {
    /// How the node is now.
    #[must_use]
    pub fn report(&self) -> Report {
        let phase = self.lifecycle.phase();
        let state = self.hub.state();
        let stalled: Vec<_> = self.vitals.stalled().into_iter().map(crate::vitals::Loop::name).collect();
        let alone = self.admission.is_alone();
        let components = Components {
            process: Part { ok: phase == Phase::Ready, detail: phase_name(phase) },
            backplane: Part { ok: self.metrics.backplane_up.value() > 0, detail: self.backplane.name() },
            snapshot: Part {
                ok: state.as_ref().is_some_and(|state| state.freshness == Freshness::Fresh),
                detail: state.map(|state| state.snapshot.timestamp),
            },
            admission: Part { ok: !alone, detail: if alone { "this node alone" } else { "with the cluster" } },
            loops: Part { ok: stalled.is_empty(), detail: stalled },
            ticker: self.metrics.ticker.value() > 0,
            sockets: self.hub.len(),
        };
        Report { status: judge(phase, &components), components }
    }
}

fn judge(phase: Phase, parts: &Components) -> Status {
    let all = [parts.process.ok, parts.backplane.ok, parts.snapshot.ok, parts.admission.ok, parts.loops.ok];
    match phase {
        Phase::Draining | Phase::Closing | Phase::Stopped => Status::Draining,
        Phase::Starting | Phase::Ready if all.contains(&false) => Status::Degraded,
        Phase::Starting | Phase::Ready => Status::Ok,
    }
}

/// The phase's name, for probes.
#[must_use]
pub fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "starting",
        Phase::Ready => "ready",
        Phase::Draining => "draining",
        Phase::Closing => "closing",
        Phase::Stopped => "stopped",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> Components {
        Components {
            process: Part { ok: true, detail: "ready" },
            backplane: Part { ok: true, detail: "memory" },
            snapshot: Part { ok: true, detail: None },
            admission: Part { ok: true, detail: "with the cluster" },
            loops: Part { ok: true, detail: Vec::new() },
            ticker: false,
            sockets: 3,
        }
    }

    #[test]
    fn one_part_degrades_the_whole_and_draining_says_more_than_degraded() {
        assert_eq!(judge(Phase::Ready, &well()), Status::Ok);
        let sick: [fn(&mut Components); 4] =
            [|c| c.backplane.ok = false, |c| c.snapshot.ok = false, |c| c.admission.ok = false, |c| c.loops.ok = false];
        for break_it in sick {
            let mut parts = well();
            break_it(&mut parts);
            assert_eq!(judge(Phase::Ready, &parts), Status::Degraded);
            assert_eq!(judge(Phase::Draining, &parts), Status::Draining);
        }
    }

    #[test]
    fn the_document() {
        let report = Report { status: Status::Ok, components: well() };
        assert_eq!(
            serde_json::to_string(&report).expect("serialises"),
            "{\"status\":\"ok\",\"components\":{\"process\":{\"ok\":true,\"detail\":\"ready\"},\
             \"backplane\":{\"ok\":true,\"detail\":\"memory\"},\"snapshot\":{\"ok\":true,\"detail\":null},\
             \"admission\":{\"ok\":true,\"detail\":\"with the cluster\"},\"loops\":{\"ok\":true,\"detail\":[]},\
             \"ticker\":false,\"sockets\":3}}"
        );
    }
}
