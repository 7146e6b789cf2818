//! What the servers and the machine use, from `/proc`, where server and tester share a Linux machine.

use std::time::Duration;

use serde::Serialize;

/// `USER_HZ`: the unit of CPU times in `/proc`, 100 on every Linux that a gateway runs on.
const TICKS_PER_SECOND: u64 = 100;

/// What a process uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Resident memory.
    pub(crate) rss_bytes: u64,
    /// CPU time since its start, user and system.
    pub(crate) cpu: Duration,
    /// Open descriptors.
    pub(crate) descriptors: u64,
    /// Threads.
    pub(crate) threads: u64,
}

impl Usage {
    /// Of these processes together; `None` when there are none, or one of them is not there.
    pub(crate) fn of_all(pids: &[u32]) -> Option<Self> {
        let all: Option<Vec<Self>> = pids.iter().map(|pid| Self::of(*pid)).collect();
        all?.into_iter().reduce(|a, b| Self {
            rss_bytes: a.rss_bytes + b.rss_bytes,
            cpu: a.cpu + b.cpu,
            descriptors: a.descriptors + b.descriptors,
            threads: a.threads + b.threads,
        })
    }

    /// Of this process, now; `None` when there is no such process, or no `/proc`.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let descriptors = descriptors(pid);
        let threads = field(&status, "Threads:")?.parse().ok()?;
        Some(Self { rss_bytes: kib(&status, "VmRSS:")? * 1024, cpu: cpu(&stat)?, descriptors, threads })
    }
}

/// Resident bytes of these processes together, at little cost; `None` when one of them is not there.
pub(crate) fn rss_of_all(pids: &[u32]) -> Option<u64> {
    let rss = |pid: &u32| kib(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "VmRSS:");
    let kib = pids.iter().map(rss).sum::<Option<u64>>()?;
    (!pids.is_empty()).then_some(kib * 1024)
}

/// Memory of the whole machine, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Machine {
    /// What programs could still get.
    pub(crate) available_bytes: u64,
    /// What the kernel has allocated for its own objects: sockets, descriptors, poll entries.
    pub(crate) slab_bytes: u64,
}

impl Machine {
    /// Now; `None` without `/proc`.
    pub(crate) fn now() -> Option<Self> {
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let bytes = |name| kib(&text, name).map(|kib| kib * 1024);
        Some(Self { available_bytes: bytes("MemAvailable:")?, slab_bytes: bytes("Slab:")? })
    }
}

/// Open descriptors of this process; 0 for somebody else's, which cannot be read.
fn descriptors(pid: u32) -> u64 {
    let path = format!("/proc/{pid}/fd");
    // Since Linux 6.2 the folder's size is their number: to list 20,000 each second costs a tenth of a core.
    match std::fs::metadata(&path) {
        Ok(folder) if folder.len() > 0 => folder.len(),
        _ => std::fs::read_dir(&path).map_or(0, |files| files.count() as u64),
    }
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

fn kib(text: &str, name: &str) -> Option<u64> {
    field(text, name)?.strip_suffix("kB")?.trim().parse().ok()
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
        assert_eq!(kib("Name:\tx\nVmHWM:\t  9 kB\nVmRSS:\t   11264 kB\n", "VmRSS:"), Some(11_264));
        assert_eq!(kib("Name:\tx\n", "VmRSS:"), None);
        let stat = "42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 150 0 0 20 0";
        assert_eq!(cpu(stat), Some(Duration::from_secs(4)));
        assert_eq!(cpu("42 (x"), None);
    }

    #[test]
    fn sees_itself() {
        let usage = Usage::of(std::process::id()).expect("this process runs");
        assert!(usage.rss_bytes > 100_000 && usage.descriptors >= 3 && usage.threads >= 1, "{usage:?}");
        assert!(Machine::now().is_some_and(|machine| machine.available_bytes > 0 && machine.slab_bytes > 0));
        assert_eq!((Usage::of_all(&[]), rss_of_all(&[]), rss_of_all(&[u32::MAX])), (None, None, None));
        assert!(rss_of_all(&[std::process::id()]) > Some(100_000));
        assert_eq!(Usage::of_all(&[std::process::id(), u32::MAX]), None);
    }
}
