//! Whether a server stays as it is while clients come and go.
//!
//! Its first part is left out: a process fills its caches and pools, and that is no leak. Then the first third of what
//! is left is compared with the last one: a leak of any constant rate shows as a difference of two thirds of the time,
//! noise does not.

use std::time::Duration;

use serde::Serialize;

use crate::process::Usage;

/// How much of the samples is warm-up: one of so many.
const WARM_UP_PART: usize = 5;
/// Growth of resident memory that is none: a part, and what an allocator keeps by chance.
const RSS_GROWTH_MAX: f64 = 0.05;
const RSS_SLACK_BYTES: f64 = (1 << 20) as f64;
/// Growth of descriptors beyond the clients', and of threads, that is none: connections on their way.
const DESCRIPTORS_SLACK: f64 = 64.0;
const THREADS_SLACK: f64 = 2.0;

/// The server at one moment.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Sample {
    seconds: f64,
    rss_bytes: u64,
    descriptors: u64,
    threads: u64,
    clients: u32,
}

impl Sample {
    /// After this time.
    pub(crate) fn new(after: Duration, usage: Usage, clients: u32) -> Self {
        let Usage { rss_bytes, descriptors, threads, .. } = usage;
        Self { seconds: after.as_secs_f64(), rss_bytes, descriptors, threads, clients }
    }
}

/// The first and the last third, on average.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Trend {
    first: f64,
    last: f64,
}

/// What became of the server.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Soak {
    pub(crate) rss_bytes: Trend,
    /// Without one for each client.
    pub(crate) other_descriptors: Trend,
    pub(crate) threads: Trend,
    samples: Vec<Sample>,
}

impl Soak {
    /// Draws a conclusion; `None` from too few samples.
    pub(crate) fn new(samples: &[Sample]) -> Option<Self> {
        let warm = samples.get(samples.len() / WARM_UP_PART..)?;
        let third = warm.len() / 3;
        let (first, last) = (warm.get(..third)?, warm.get(warm.len() - third..)?);
        #[expect(clippy::cast_precision_loss, reason = "bytes and counts, far below 2^53")]
        let mean = |samples: &[Sample], of: fn(&Sample) -> i64| {
            samples.iter().map(|sample| of(sample) as f64).sum::<f64>() / samples.len() as f64
        };
        let trend = |of| Trend { first: mean(first, of), last: mean(last, of) };
        (third > 0).then(|| Self {
            rss_bytes: trend(|sample| i64::try_from(sample.rss_bytes).unwrap_or(i64::MAX)),
            other_descriptors: trend(|sample| {
                i64::try_from(sample.descriptors).unwrap_or(i64::MAX) - i64::from(sample.clients)
            }),
            threads: trend(|sample| i64::try_from(sample.threads).unwrap_or(i64::MAX)),
            samples: samples.to_vec(),
        })
    }

    /// What grew.
    pub(crate) fn grown(&self) -> Vec<&'static str> {
        let over = |trend: Trend, slack: f64| trend.last > trend.first + slack;
        let rss_slack = RSS_SLACK_BYTES + RSS_GROWTH_MAX * self.rss_bytes.first;
        [
            ("the server's memory grows", over(self.rss_bytes, rss_slack)),
            ("the server's descriptors grow", over(self.other_descriptors, DESCRIPTORS_SLACK)),
            ("the server's threads grow", over(self.threads, THREADS_SLACK)),
        ]
        .into_iter()
        .filter_map(|(what, grows)| grows.then_some(what))
        .collect()
    }
}

impl std::fmt::Display for Trend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.0} -> {:.0}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soak(rss: fn(u64) -> u64, descriptors: fn(u64) -> u64, threads: fn(u64) -> u64) -> Soak {
        let sample = |n: u64| {
            let (rss_bytes, descriptors, threads) = (rss(n), descriptors(n), threads(n));
            let usage = Usage { rss_bytes, cpu: Duration::ZERO, descriptors, threads };
            Sample::new(Duration::from_secs(n), usage, 100)
        };
        Soak::new(&(0..120).map(sample).collect::<Vec<_>>()).expect("enough samples")
    }

    #[test]
    fn what_grows_is_named() {
        assert!(Soak::new(&[]).is_none());
        let steady = soak(|n| (20 << 20) + (n % 7) * 10_000, |n| 120 + n % 9, |_| 8);
        assert_eq!(steady.grown(), Vec::<&str>::new());
        let warm_up = soak(|n| (20 << 20) + n.min(20) * 1_000_000, |_| 120, |_| 8);
        assert_eq!(warm_up.grown(), Vec::<&str>::new());
        let leaks = soak(|n| (20 << 20) + n * 60_000, |n| 100 + 2 * n, |n| 8 + n / 10);
        assert_eq!(leaks.grown().len(), 3);
    }
}
