//! The server's memory and CPU, from `/proc`, where server and tester share a Linux machine.

use std::time::Duration;

/// `USER_HZ`: the unit of CPU times in `/proc`, 100 on every Linux that a gateway runs on.
const TICKS_PER_SECOND: u64 = 100;

/// What a process uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Resident memory.
    pub(crate) rss_bytes: u64,
    /// CPU time since its start, user and system.
    pub(crate) cpu: Duration,
}

impl Usage {
    /// Of this process, now; `None` when there is no such process, or no `/proc`.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self { rss_bytes: rss_bytes(&status)?, cpu: cpu(&stat)? })
    }
}

fn rss_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

fn cpu(stat: &str) -> Option<Duration> {
    // The second field is the command in brackets and may hold anything, spaces and brackets too.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11).map(str::parse::<u64>);
    let ticks = times.next()?.ok()? + times.next()?.ok()?;
    Some(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_linux_writes() {
        assert_eq!(rss_bytes("Name:\tx\nVmHWM:\t  9 kB\nVmRSS:\t   11264 kB\n"), Some(11_264 * 1024));
        assert_eq!(rss_bytes("Name:\tx\n"), None);
        let stat = "42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 150 0 0 20 0";
        assert_eq!(cpu(stat), Some(Duration::from_secs(4)));
        assert_eq!(cpu("42 (x"), None);
    }

    #[test]
    fn sees_itself() {
        let usage = Usage::of(std::process::id()).expect("this process runs");
        assert!(usage.rss_bytes > 100_000, "{usage:?}");
    }
}
