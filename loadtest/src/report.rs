//! What is counted while the test runs, and what is said about it at the end.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::audit::{Finding, Meaning};
use crate::latency::Histogram;
use crate::process::Usage;
use crate::publish::Outcome;
use crate::socket::End;

/// Findings that are quoted; all are counted.
const EXAMPLES_MAX: usize = 10;
/// How much of a message is quoted.
const EXAMPLE_BYTES_MAX: usize = 160;

/// Messages by kind.
#[derive(Debug, Default, Clone, Serialize)]
pub(crate) struct Messages {
    init: u64,
    realtime_update: u64,
    stale: u64,
    new_event: u64,
    theme_stats: u64,
    letter_generated: u64,
    ping: u64,
    gap: u64,
    malformed: u64,
    /// Of all of them, without framing.
    payload_bytes: u64,
}

impl Messages {
    /// All of them.
    pub(crate) fn total(&self) -> u64 {
        let states = self.init + self.realtime_update + self.ping + self.gap;
        states + self.new_event + self.theme_stats + self.letter_generated + self.malformed
    }
}

/// Whether an end was to be expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    Yes,
    No,
}

/// Everything that is counted over all sockets.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) messages: Messages,
    pub(crate) pongs: u64,
    /// From publishing an event to each of its deliveries.
    pub(crate) event_us: Histogram,
    /// Microseconds from the begin of connecting to the 101, and to `init`.
    upgrades_us: Vec<u32>,
    begins_us: Vec<u32>,
    findings: BTreeMap<&'static str, u64>,
    examples: Vec<String>,
    refused: BTreeMap<u16, u64>,
    failed: BTreeMap<&'static str, u64>,
    closed: BTreeMap<String, u64>,
    expected_closes: u64,
}

impl Tally {
    /// A server has answered 101.
    pub(crate) fn opened(&mut self, after: Duration) {
        self.upgrades_us.push(micros(after));
    }

    /// A socket got its `init`.
    pub(crate) fn began(&mut self, after: Duration) {
        self.begins_us.push(micros(after));
    }

    /// A message came.
    pub(crate) fn received(&mut self, meaning: Meaning, bytes: usize) {
        let messages = &mut self.messages;
        messages.payload_bytes += bytes as u64;
        let kind = match meaning {
            Meaning::Init { .. } => &mut messages.init,
            Meaning::Update { stale, .. } => {
                messages.stale += u64::from(stale);
                &mut messages.realtime_update
            }
            Meaning::Event { .. } => &mut messages.new_event,
            Meaning::Theme => &mut messages.theme_stats,
            Meaning::Letter => &mut messages.letter_generated,
            Meaning::Ping => &mut messages.ping,
            Meaning::Gap => &mut messages.gap,
            Meaning::Malformed => &mut messages.malformed,
        };
        *kind += 1;
    }

    /// The audit found something in a message.
    pub(crate) fn found(&mut self, finding: Finding, text: &[u8]) {
        self.count(finding.text(), 1);
        if self.examples.len() < EXAMPLES_MAX {
            let text = String::from_utf8_lossy(&text[..text.len().min(EXAMPLE_BYTES_MAX)]).into_owned();
            self.examples.push(format!("{}: {text}", finding.text()));
        }
    }

    /// Counts findings of one sort.
    pub(crate) fn count(&mut self, what: &'static str, times: u64) {
        if times > 0 {
            *self.findings.entry(what).or_default() += times;
        }
    }

    /// Counts the sockets that opened and never got `init`.
    pub(crate) fn count_silent(&mut self) {
        let silent = self.upgrades_us.len() - self.begins_us.len();
        self.count("socket without init", silent as u64);
    }

    /// A socket ended.
    pub(crate) fn ended(&mut self, end: End, expected: Expected) {
        match (end, expected) {
            (End::Refused(status), _) => *self.refused.entry(status).or_default() += 1,
            (End::Failed(why), _) => *self.failed.entry(why).or_default() += 1,
            (_, Expected::Yes) => self.expected_closes += 1,
            (End::Closed(code, reason), Expected::No) => {
                *self.closed.entry(close_label(code, &reason)).or_default() += 1;
            }
            (End::Lost(why), Expected::No) => {
                *self.closed.entry(format!("without close frame: {why}")).or_default() += 1
            }
            (End::Broke(why), Expected::No) => {
                self.count("framing violated", 1);
                *self.closed.entry(format!("by us, after {why}")).or_default() += 1;
            }
        }
    }
}

/// The server's process at the turns of the test.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Server {
    pub(crate) before: Usage,
    pub(crate) opened: Usage,
    pub(crate) after: Usage,
}

/// What the report is made of, besides the tally.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) wanted: u32,
    /// Sockets that were still open when the time was over.
    pub(crate) open_at_end: u64,
    pub(crate) connecting: Duration,
    pub(crate) listening: Duration,
    /// Messages that had come when all sockets were open.
    pub(crate) messages_when_open: u64,
    pub(crate) server: Option<Server>,
    pub(crate) published: Option<Outcome>,
}

/// Percentiles of a wait, in milliseconds.
#[derive(Debug, Serialize)]
struct Waits {
    p50: f64,
    p99: f64,
    max: f64,
}

impl Waits {
    fn of_many(us: &Histogram) -> Option<Self> {
        #[expect(clippy::cast_precision_loss, reason = "microseconds of a load test, far below 2^53")]
        let at = |percent| us.percentile_us(percent).map(|us| us as f64 / 1000.0);
        Some(Self { p50: at(50)?, p99: at(99)?, max: at(100)? })
    }

    fn of(mut us: Vec<u32>) -> Option<Self> {
        us.sort_unstable();
        let at =
            |percent: usize| us.get((us.len().saturating_sub(1)) * percent / 100).map(|us| f64::from(*us) / 1000.0);
        Some(Self { p50: at(50)?, p99: at(99)?, max: at(100)? })
    }
}

#[derive(Debug, Serialize)]
struct ServerUse {
    rss_before_bytes: u64,
    rss_open_bytes: u64,
    rss_after_bytes: u64,
    /// What each open socket added to the resident memory by the end.
    rss_bytes_per_socket: f64,
    /// None when events were delivered meanwhile: their cost cannot be told apart.
    cpu_us_per_handshake: Option<f64>,
    cpu_percent_while_listening: f64,
    cpu_us_per_message: f64,
}

#[derive(Debug, Serialize)]
struct Published {
    accepted: u64,
    answers: BTreeMap<String, u64>,
}

/// What is said at the end.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    ok: bool,
    wanted: u32,
    opened: usize,
    open_at_end: u64,
    refused: BTreeMap<u16, u64>,
    failed: BTreeMap<&'static str, u64>,
    unexpected_closes: BTreeMap<String, u64>,
    expected_closes: u64,
    connecting_seconds: f64,
    listening_seconds: f64,
    upgrade_ms: Option<Waits>,
    init_ms: Option<Waits>,
    event_ms: Option<Waits>,
    messages: Messages,
    pongs: u64,
    published: Option<Published>,
    server: Option<ServerUse>,
    findings: BTreeMap<&'static str, u64>,
    examples: Vec<String>,
}

impl Report {
    /// Draws up the report.
    pub(crate) fn new(tally: Tally, run: Run) -> Self {
        let opened = tally.upgrades_us.len();
        let server = run.server.map(|server| server_use(&server, &run, opened, tally.messages.total()));
        let smooth = tally.refused.is_empty() && tally.failed.is_empty() && tally.closed.is_empty();
        Self {
            ok: smooth && tally.findings.is_empty(),
            wanted: run.wanted,
            opened,
            open_at_end: run.open_at_end,
            refused: tally.refused,
            failed: tally.failed,
            unexpected_closes: tally.closed,
            expected_closes: tally.expected_closes,
            connecting_seconds: run.connecting.as_secs_f64(),
            listening_seconds: run.listening.as_secs_f64(),
            upgrade_ms: Waits::of(tally.upgrades_us),
            init_ms: Waits::of(tally.begins_us),
            event_ms: Waits::of_many(&tally.event_us),
            messages: tally.messages,
            pongs: tally.pongs,
            published: run.published.map(|outcome| Published { accepted: outcome.accepted, answers: outcome.answers }),
            server,
            findings: tally.findings,
            examples: tally.examples,
        }
    }

    /// Whether every promise was kept.
    pub(crate) fn is_ok(&self) -> bool {
        self.ok
    }
}

fn server_use(server: &Server, run: &Run, opened: usize, messages: u64) -> ServerUse {
    let Server { before, opened: open, after } = server;
    let per = |amount: f64, count: f64| if count > 0.0 { amount / count } else { 0.0 };
    #[expect(clippy::cast_precision_loss, reason = "counts of a load test, far below 2^53")]
    let float = |count: u64| count as f64;
    let us = |from: &Usage, to: &Usage| to.cpu.saturating_sub(from.cpu).as_secs_f64() * 1e6;
    let listening_us = run.listening.as_secs_f64() * 1e6;
    ServerUse {
        rss_before_bytes: before.rss_bytes,
        rss_open_bytes: open.rss_bytes,
        rss_after_bytes: after.rss_bytes,
        rss_bytes_per_socket: per(float(after.rss_bytes) - float(before.rss_bytes), float(run.open_at_end)),
        cpu_us_per_handshake: run.published.is_none().then(|| per(us(before, open), float(opened as u64))),
        cpu_percent_while_listening: per(us(open, after) * 100.0, listening_us),
        cpu_us_per_message: per(us(open, after), float(messages.saturating_sub(run.messages_when_open))),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "sockets    {} of {} opened, {} open at the end", self.opened, self.wanted, self.open_at_end)?;
        let (connecting, listening) = (self.connecting_seconds, self.listening_seconds);
        writeln!(f, "time       {connecting:.1} s to open them, {listening:.1} s listening")?;
        for (name, waits) in
            [("101 after", &self.upgrade_ms), ("init after", &self.init_ms), ("events", &self.event_ms)]
        {
            if let Some(Waits { p50, p99, max }) = waits {
                writeln!(f, "{name:<10} {p50:.1} ms (median), {p99:.1} ms (99 %), {max:.1} ms (longest)")?;
            }
        }
        let Messages { init, realtime_update, stale, new_event, theme_stats, letter_generated, ping, gap, .. } =
            self.messages;
        writeln!(f, "messages   {} ({} payload bytes)", self.messages.total(), self.messages.payload_bytes)?;
        writeln!(
            f,
            "           {init} init, {realtime_update} realtime_update ({stale} stale), {new_event} new_event"
        )?;
        writeln!(f, "           {theme_stats} theme_stats, {letter_generated} letter_generated, {gap} gap")?;
        writeln!(f, "pings      {ping}, {} answered", self.pongs)?;
        if let Some(Published { accepted, answers }) = &self.published {
            writeln!(f, "published  {accepted} events; requests by answer: {answers:?}")?;
        }
        if let Some(server) = &self.server {
            let mib = |bytes: u64| bytes >> 20;
            let ServerUse { rss_before_bytes: before, rss_open_bytes: open, rss_after_bytes: after, .. } = server;
            writeln!(f, "server RSS {} MiB, {} MiB when open, {} MiB after", mib(*before), mib(*open), mib(*after))?;
            writeln!(f, "           {:.0} bytes per socket", server.rss_bytes_per_socket)?;
            let (percent, per_message) = (server.cpu_percent_while_listening, server.cpu_us_per_message);
            writeln!(f, "server CPU {percent:.2} % of a core while listening, {per_message:.2} us per message")?;
            if let Some(us) = server.cpu_us_per_handshake {
                writeln!(f, "           {us:.1} us per handshake")?;
            }
        }
        for (status, count) in &self.refused {
            writeln!(f, "REFUSED    {count} with status {status}")?;
        }
        for (why, count) in &self.failed {
            writeln!(f, "FAILED     {count}: {why}")?;
        }
        for (how, count) in &self.unexpected_closes {
            writeln!(f, "CLOSED     {count}: {how}")?;
        }
        for (what, count) in &self.findings {
            writeln!(f, "FOUND      {count}: {what}")?;
        }
        for example in &self.examples {
            writeln!(f, "           {example}")?;
        }
        f.write_str(if self.ok { "ok" } else { "NOT ok" })
    }
}

/// Code and reason, with numbers in the reason left out: each drained socket is told another time to come back, and
/// is the same sort of close all the same.
fn close_label(code: u16, reason: &str) -> String {
    let mut label = code.to_string();
    let words: Vec<&str> = reason.split(|c: char| c.is_ascii_digit()).filter(|word| !word.is_empty()).collect();
    if !words.is_empty() {
        label.push(' ');
        label.push_str(&words.join("N"));
    }
    label
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> Run {
        let usage = |rss_bytes, ms| Usage { rss_bytes, cpu: Duration::from_millis(ms) };
        Run {
            wanted: 10,
            open_at_end: 10,
            connecting: Duration::from_secs(1),
            listening: Duration::from_secs(10),
            messages_when_open: 1,
            server: Some(Server { before: usage(1000, 0), opened: usage(9000, 1), after: usage(11_000, 101) }),
            published: None,
        }
    }

    #[test]
    fn a_smooth_run_is_ok_and_its_numbers_are_right() {
        let mut tally = Tally::default();
        for ms in 1..=10 {
            tally.opened(Duration::from_millis(ms));
            tally.received(Meaning::Ping, 50);
        }
        tally.received(Meaning::Gap, 10);
        tally.ended(End::Closed(1000, String::new()), Expected::Yes);
        let report = Report::new(tally, run());
        assert!(report.is_ok());
        let server = report.server.as_ref().expect("it was measured");
        assert!((server.rss_bytes_per_socket - 1000.0).abs() < 1e-9);
        assert!(server.cpu_us_per_handshake.is_some_and(|us| (us - 100.0).abs() < 1e-9));
        assert!((server.cpu_percent_while_listening - 1.0).abs() < 1e-9);
        assert!((server.cpu_us_per_message - 10_000.0).abs() < 1e-9);
        let waits = report.upgrade_ms.as_ref().expect("ten waits");
        assert_eq!((waits.p50, waits.p99, waits.max), (5.0, 9.0, 10.0));
        let json: serde_json::Value = serde_json::to_value(&report).expect("JSON");
        assert_eq!(json["messages"]["payload_bytes"], 510);
        assert!(report.to_string().ends_with("\nok"));
    }

    #[test]
    fn whatever_goes_wrong_is_not_ok() {
        let check = |spoil: &dyn Fn(&mut Tally), said: &str| {
            let mut tally = Tally::default();
            spoil(&mut tally);
            let report = Report::new(tally, run());
            assert!(!report.is_ok() && report.to_string().contains(said), "{report}");
        };
        check(&|tally| tally.ended(End::Refused(429), Expected::No), "1 with status 429");
        check(&|tally| tally.ended(End::Failed("timed out"), Expected::No), "1: timed out");
        let drained = |tally: &mut Tally, ms| {
            tally.ended(End::Closed(1012, format!("{{\"retry_after_ms\":{ms}}}")), Expected::No);
        };
        let drained_twice = |tally: &mut Tally| [17, 2500].into_iter().for_each(|ms| drained(tally, ms));
        check(&drained_twice, "2: 1012 {\"retry_after_ms\":N}");
        check(&|tally| tally.ended(End::Lost("connection reset"), Expected::No), "connection reset");
        check(&|tally| tally.ended(End::Broke("a masked frame"), Expected::No), "1: framing violated");
        check(&|tally| tally.found(Finding::LostEvent, b"{\"x\":1}"), "event lost: {\"x\":1}");
        check(&|tally| tally.count("event lost", 5), "5: event lost");
    }
}
