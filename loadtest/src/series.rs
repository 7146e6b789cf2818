//! Several runs: medians, and ratios against the servers to compare with.
//!
//! A machine that others use too is now fast, now slow. So the runs alternate, and what is compared are the runs that
//! lie side by side: the median of the ratios, not the ratio of medians.

use std::fmt;

use serde::Serialize;

use crate::limits::{Limits, most};
use crate::report::Report;

/// A figure of a report, by name.
type Figure = (&'static str, fn(&Report) -> Option<f64>);

/// What is compared.
const FIGURES: [Figure; 8] = [
    ("CPU us per message", Report::cpu_us_per_message),
    ("CPU us per write", Report::cpu_us_per_write),
    ("CPU us per handshake", Report::cpu_us_per_handshake),
    ("RSS bytes per socket", Report::rss_bytes_per_socket),
    ("deliveries per second", Report::deliveries_per_second),
    ("p50 of deliveries, ms", Report::event_p50_ms),
    (P99, Report::event_p99_ms),
    ("returns per second", Report::returns_per_second),
];
const P99: &str = "p99 of deliveries, ms";
/// The name of a run without slow readers, beside one with them.
pub(crate) const WITHOUT: &str = "without";

/// A run of what is tested, and the runs beside it.
#[derive(Debug, Serialize)]
pub(crate) struct Round {
    pub(crate) subject: Report,
    /// By name of what it is compared with.
    pub(crate) beside: Vec<(String, Report)>,
}

/// A figure over all rounds.
#[derive(Debug, Serialize)]
struct Row {
    figure: &'static str,
    median: f64,
    /// By name of what it is compared with: its median, and the median of the ratios.
    beside: Vec<(String, f64, f64)>,
}

/// All rounds.
#[derive(Debug, Serialize)]
pub(crate) struct Series {
    ok: bool,
    rows: Vec<Row>,
    /// What the slow readers added to the server's largest resident memory: the most of all rounds.
    slow_bytes: Option<f64>,
    broken: Vec<String>,
    rounds: Vec<Round>,
}

impl Series {
    /// Draws up the comparison.
    pub(crate) fn new(rounds: Vec<Round>, limits: &Limits) -> Self {
        let rows: Vec<Row> = FIGURES.iter().filter_map(|figure| row(*figure, &rounds)).collect();
        let ratio = |name: &str, beside: &str| {
            let row = rows.iter().find(|row| row.figure == name)?;
            row.beside.iter().find(|(what, ..)| what == beside).map(|(.., ratio)| *ratio)
        };
        let slow_bytes = rounds.iter().filter_map(slow_bytes).max_by(f64::total_cmp);
        let broken: Vec<String> = [
            most("bytes that slow readers added", slow_bytes, limits.max_slow_bytes),
            most("CPU per message, of the floor's", ratio(FIGURES[0].0, "floor"), limits.max_cpu_ratio),
            most("CPU per handshake, of the floor's", ratio(FIGURES[2].0, "floor"), limits.max_handshake_ratio),
            most("p99 with slow readers, of that without", ratio(P99, WITHOUT), limits.max_p99_ratio),
        ]
        .into_iter()
        .flatten()
        .collect();
        let ok = broken.is_empty() && rounds.iter().all(|round| round.subject.is_ok());
        Self { ok, rows, slow_bytes, broken, rounds }
    }

    /// Whether every run kept every promise, and the whole its thresholds.
    pub(crate) fn is_ok(&self) -> bool {
        self.ok
    }
}

/// What the slow readers of a round added to the server's memory, beside the run without them.
fn slow_bytes(round: &Round) -> Option<f64> {
    let (_, without) = round.beside.iter().find(|(name, _)| name == WITHOUT)?;
    #[expect(clippy::cast_precision_loss, reason = "bytes of a process, far below 2^53")]
    let float = |bytes: u64| bytes as f64;
    Some(float(round.subject.rss_most_bytes()?) - float(without.rss_most_bytes()?))
}

fn row((figure, of): Figure, rounds: &[Round]) -> Option<Row> {
    let median_of = |values: Vec<Option<f64>>| values.into_iter().collect::<Option<Vec<f64>>>().and_then(median);
    let median = median_of(rounds.iter().map(|round| of(&round.subject)).collect())?;
    let names = rounds.first()?.beside.iter().map(|(name, _)| name.clone());
    let beside = names.filter_map(|name| {
        let others = |round: &Round| {
            let (_, report) = round.beside.iter().find(|(other, _)| *other == name)?;
            of(report).filter(|value| *value > 0.0)
        };
        let own = median_of(rounds.iter().map(others).collect())?;
        let ratios = rounds.iter().map(|round| Some(of(&round.subject)? / others(round)?)).collect();
        Some((name, own, median_of(ratios)?))
    });
    Some(Row { figure, median, beside: beside.collect() })
}

/// The middle one, or the mean of the two in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = *values.get((values.len() - 1) / 2)?;
    Some((lower + upper) / 2.0)
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, Round { subject, beside }) in self.rounds.iter().enumerate() {
            for (name, report) in beside {
                writeln!(f, "--- round {}: {name}\n{report}", n + 1)?;
            }
            writeln!(f, "--- round {}\n{subject}", n + 1)?;
        }
        writeln!(f, "--- medians of {}", self.rounds.len())?;
        for Row { figure, median, beside } in &self.rows {
            write!(f, "{figure:<24} {median:>12.3}")?;
            for (name, own, ratio) in beside {
                write!(f, "   {name} {own:.3}, x {ratio:.2}")?;
            }
            writeln!(f)?;
        }
        if let Some(bytes) = self.slow_bytes {
            writeln!(f, "slow readers added {:.1} MiB to the server's memory at most", bytes / f64::from(1 << 20))?;
        }
        self.broken.iter().try_for_each(|broken| writeln!(f, "BROKEN     {broken}"))?;
        f.write_str(if self.ok { "ok" } else { "NOT ok" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
