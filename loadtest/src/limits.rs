//! Thresholds: what a run must keep to, beyond the audit.
//!
//! A threshold on something that was not measured is broken, not skipped: a gate that a typing error opens is none.

use std::time::Duration;

use clap::Args;

use crate::args::per_second;
use crate::report::Report;

/// What must not be exceeded, or fallen short of. All are optional.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Thresholds (exit code 1 when one is broken)")]
pub(crate) struct Limits {
    /// 99 % of deliveries take no longer
    #[arg(long, value_parser = humantime::parse_duration)]
    max_p99: Option<Duration>,
    /// Events that were lost, over all clients
    #[arg(long)]
    max_lost: Option<u64>,
    /// Deliveries per second, at least: 1500000/s
    #[arg(long, value_parser = per_second)]
    min_deliveries: Option<f64>,
    /// The server's CPU time per message that a client got
    #[arg(long)]
    max_cpu_us_per_message: Option<f64>,
    /// The server's CPU time per handshake
    #[arg(long)]
    max_cpu_us_per_handshake: Option<f64>,
    /// The server's resident memory per open socket
    #[arg(long)]
    max_rss_per_socket: Option<f64>,
    /// Clients that came back per second after a storm, at least
    #[arg(long, value_parser = per_second)]
    min_returns: Option<f64>,
    /// The longest that a client went without a new state
    #[arg(long, value_parser = humantime::parse_duration)]
    max_state_gap: Option<Duration>,
    /// CPU per message as a multiple of the floor's (with --floor)
    #[arg(long, requires = "floor")]
    pub(crate) max_cpu_ratio: Option<f64>,
    /// CPU per handshake as a multiple of the floor's (with --floor)
    #[arg(long, requires = "floor")]
    pub(crate) max_handshake_ratio: Option<f64>,
    /// The others' p99 with slow readers as a multiple of that without (for slow)
    #[arg(long)]
    pub(crate) max_p99_ratio: Option<f64>,
    /// What slow readers may add to the server's largest resident memory, in bytes (for slow)
    #[arg(long)]
    pub(crate) max_slow_bytes: Option<f64>,
}

impl Limits {
    /// Which thresholds this run broke, in sentences.
    pub(crate) fn broken_by(&self, report: &Report) -> Vec<String> {
        let ms = |limit: Option<Duration>| limit.map(|limit| limit.as_secs_f64() * 1000.0);
        #[expect(clippy::cast_precision_loss, reason = "a count, far below 2^53")]
        let lost = |count: u64| count as f64;
        [
            most("p99 of deliveries, ms", report.event_p99_ms(), ms(self.max_p99)),
            most("lost events", Some(lost(report.lost())), self.max_lost.map(lost)),
            least("deliveries per second", report.deliveries_per_second(), self.min_deliveries),
            most("CPU us per message", report.cpu_us_per_message(), self.max_cpu_us_per_message),
            most("CPU us per handshake", report.cpu_us_per_handshake(), self.max_cpu_us_per_handshake),
            most("RSS bytes per socket", report.rss_bytes_per_socket(), self.max_rss_per_socket),
            least("returns per second", report.returns_per_second(), self.min_returns),
            most("longest time without a new state, ms", report.state_gap_ms(), ms(self.max_state_gap)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// What is wrong with a figure that has an upper limit.
pub(crate) fn most(what: &str, is: Option<f64>, limit: Option<f64>) -> Option<String> {
    broken(what, is, limit, "most", |is, limit| is <= limit)
}

/// What is wrong with a figure that has a lower limit.
pub(crate) fn least(what: &str, is: Option<f64>, limit: Option<f64>) -> Option<String> {
    broken(what, is, limit, "least", |is, limit| is >= limit)
}

fn broken(what: &str, is: Option<f64>, limit: Option<f64>, at: &str, fits: fn(f64, f64) -> bool) -> Option<String> {
    let limit = limit?;
    match is {
        None => Some(format!("{what}: not measured, at {at} {limit} wanted")),
        Some(is) => (!fits(is, limit)).then(|| format!("{what}: {is:.2}, at {at} {limit} wanted")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_is_kept_broken_or_not_measured() {
        assert_eq!(most("x", Some(2.0), None), None);
        assert_eq!(most("x", Some(2.0), Some(2.0)), None);
        assert_eq!(most("x", Some(2.5), Some(2.0)).as_deref(), Some("x: 2.50, at most 2 wanted"));
        assert_eq!(least("x", Some(2.0), Some(2.0)), None);
        assert_eq!(least("x", Some(1.5), Some(2.0)).as_deref(), Some("x: 1.50, at least 2 wanted"));
        assert_eq!(least("x", None, Some(2.0)).as_deref(), Some("x: not measured, at least 2 wanted"));
        assert!(most("x", Some(f64::NAN), Some(2.0)).is_some());
    }
}
