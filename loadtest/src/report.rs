//! What is said about one run.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::audit::Finding;
use crate::latency::Waits;
use crate::lead::{Mark, Plan, Run};
use crate::process::{Machine, Usage};
use crate::scrape::Arrivals;
use crate::soak::Soak;
use crate::tally::{Messages, Tally};

/// Percentiles of a wait, in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
struct Percentiles {
    p50: f64,
    p99: f64,
    max: f64,
}

impl Percentiles {
    #[expect(clippy::cast_precision_loss, reason = "microseconds of a load test, far below 2^53")]
    fn of(waits: &Waits) -> Option<Self> {
        let at = |percent| waits.percentile_us(percent).map(|us| us as f64 / 1000.0);
        Some(Self { p50: at(50.0)?, p99: at(99.0)?, max: at(100.0)? })
    }
}

#[derive(Debug, Clone, Serialize)]
struct ServerUse {
    rss_before_bytes: u64,
    rss_open_bytes: u64,
    rss_after_bytes: u64,
    /// The largest while listening.
    rss_most_bytes: Option<u64>,
    /// What each open socket added to the resident memory by the end.
    rss_bytes_per_socket: f64,
    /// None when events were delivered meanwhile: their cost cannot be told apart.
    cpu_us_per_handshake: Option<f64>,
    cpu_percent_while_listening: f64,
    /// Per message that a client got while listening.
    cpu_us_per_message: f64,
    /// Per message that the server says it wrote; of all kinds.
    cpu_us_per_message_written: Option<f64>,
    /// Per write to a socket: passes times open sockets, and a write for each ping.
    cpu_us_per_write: Option<f64>,
    messages_per_write: Option<f64>,
    /// Of a floor: CPU per write of its send loop alone.
    send_loop_us_per_write: Option<f64>,
}

#[derive(Debug, Clone, Serialize)]
struct Published {
    sent: u64,
    accepted: u64,
    answers: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, Serialize)]
struct Storm {
    /// All that came back, by the time it took the last of them.
    returns_per_second: f64,
    returned: u64,
    all_back_after_ms: f64,
    back_ms: Option<Percentiles>,
    cpu_us_per_return: Option<f64>,
}

/// What the machine's memory did between the begin and the end.
#[derive(Debug, Clone, Serialize)]
struct MachineUse {
    available_bytes_less: i64,
    slab_bytes_more: i64,
}

/// What is said at the end.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    ok: bool,
    wanted: u32,
    opened: u64,
    open_at_end: u64,
    refused: BTreeMap<u16, u64>,
    failed: BTreeMap<String, u64>,
    unexpected_closes: BTreeMap<String, u64>,
    expected_closes: u64,
    connecting_seconds: f64,
    listening_seconds: f64,
    upgrade_ms: Option<Percentiles>,
    init_ms: Option<Percentiles>,
    /// From publishing to delivery.
    event_ms: Option<Percentiles>,
    /// From one new state to the next, per client.
    state_gap_ms: Option<Percentiles>,
    messages: Messages,
    pongs: u64,
    /// Events that came to clients per second, while all listened.
    deliveries_per_second: f64,
    published: Option<Published>,
    server: Option<ServerUse>,
    /// What the servers say of those who came.
    arrivals: Option<Arrivals>,
    storm: Option<Storm>,
    soak: Option<Soak>,
    machine: Option<MachineUse>,
    findings: BTreeMap<String, u64>,
    examples: Vec<String>,
    /// Thresholds that were broken.
    broken: Vec<String>,
}

impl Report {
    /// Draws up the report.
    pub(crate) fn new(plan: &Plan, mut tally: Tally, run: &Run) -> Self {
        let soak = Soak::new(&run.samples);
        for what in soak.iter().flat_map(Soak::grown) {
            tally.count(what, 1);
        }
        if run.storm.is_some() && tally.back.count() < run.opened.progress.begun {
            tally.count("client that did not come back", run.opened.progress.begun - tally.back.count());
        }
        let smooth = tally.refused.is_empty() && tally.failed.is_empty() && tally.closed.is_empty();
        let window = run.after.at.duration_since(run.opened.at).as_secs_f64();
        let events = float(run.after.progress.events.saturating_sub(run.opened.progress.events));
        Self {
            ok: smooth && tally.findings.is_empty(),
            wanted: plan.job.connections,
            opened: tally.upgrade.count(),
            open_at_end: tally.open_at_end,
            server: server_use(plan, run, &tally),
            arrivals: run.arrivals.clone(),
            storm: run.storm.as_ref().map(|(calm, over)| storm(calm, over, &tally)),
            soak,
            machine: machine_use(run),
            refused: tally.refused,
            failed: tally.failed,
            unexpected_closes: tally.closed,
            expected_closes: tally.expected_closes,
            connecting_seconds: run.opened.at.duration_since(run.before.at).as_secs_f64(),
            listening_seconds: window,
            upgrade_ms: Percentiles::of(&tally.upgrade),
            init_ms: Percentiles::of(&tally.begin),
            event_ms: Percentiles::of(&tally.event),
            state_gap_ms: Percentiles::of(&tally.state_gap),
            messages: tally.messages,
            pongs: tally.pongs,
            deliveries_per_second: per(events, window),
            published: run.published.as_ref().map(|outcome| Published {
                sent: outcome.sent,
                accepted: outcome.accepted,
                answers: outcome.answers.clone(),
            }),
            findings: tally.findings,
            examples: tally.examples,
            broken: Vec::new(),
        }
    }

    /// Whether every promise was kept, and every threshold.
    pub(crate) fn is_ok(&self) -> bool {
        self.ok
    }

    /// Notes thresholds that were broken.
    pub(crate) fn note_broken(&mut self, broken: Vec<String>) {
        self.ok &= broken.is_empty();
        self.broken.extend(broken);
    }

    pub(crate) fn event_p99_ms(&self) -> Option<f64> {
        self.event_ms.map(|ms| ms.p99)
    }

    pub(crate) fn event_p50_ms(&self) -> Option<f64> {
        self.event_ms.map(|ms| ms.p50)
    }

    /// How many events were published.
    pub(crate) fn published(&self) -> u64 {
        self.published.as_ref().map_or(0, |published| published.sent)
    }

    /// Events that were lost, over all clients.
    pub(crate) fn lost(&self) -> u64 {
        self.findings.get(Finding::LostEvent.text()).copied().unwrap_or(0)
    }

    pub(crate) fn deliveries_per_second(&self) -> Option<f64> {
        (self.deliveries_per_second > 0.0).then_some(self.deliveries_per_second)
    }

    pub(crate) fn cpu_us_per_message(&self) -> Option<f64> {
        self.server.as_ref().map(|server| server.cpu_us_per_message)
    }

    pub(crate) fn cpu_us_per_write(&self) -> Option<f64> {
        self.server.as_ref().and_then(|server| server.cpu_us_per_write)
    }

    pub(crate) fn cpu_us_per_handshake(&self) -> Option<f64> {
        self.server.as_ref().and_then(|server| server.cpu_us_per_handshake)
    }

    pub(crate) fn rss_bytes_per_socket(&self) -> Option<f64> {
        self.server.as_ref().map(|server| server.rss_bytes_per_socket)
    }

    /// The server's largest resident memory while listening.
    pub(crate) fn rss_most_bytes(&self) -> Option<u64> {
        self.server.as_ref().and_then(|server| server.rss_most_bytes)
    }

    pub(crate) fn returns_per_second(&self) -> Option<f64> {
        self.storm.as_ref().map(|storm| storm.returns_per_second)
    }

    pub(crate) fn state_gap_ms(&self) -> Option<f64> {
        self.state_gap_ms.map(|ms| ms.max)
    }
}

fn server_use(plan: &Plan, run: &Run, tally: &Tally) -> Option<ServerUse> {
    let Run { before, opened, after, .. } = run;
    let (was, open, is) = (before.usage?, opened.usage?, after.usage?);
    let opened_count = float(tally.upgrade.count());
    let window_us = after.at.duration_since(opened.at).as_secs_f64() * 1e6;
    let cpu_us = us(&open, &is);
    let written = after.written.zip(opened.written).map(|(after, before)| after.since(before));
    let writes = written.map(|written| written.passes * f64::from(opened.progress.alive) + float(tally.messages.ping));
    let quiet = run.published.is_none() || plan.publish_from == crate::lead::PublishFrom::Open;
    Some(ServerUse {
        rss_before_bytes: was.rss_bytes,
        rss_open_bytes: open.rss_bytes,
        rss_after_bytes: is.rss_bytes,
        rss_most_bytes: run.rss_most_bytes,
        rss_bytes_per_socket: per(float(is.rss_bytes) - float(was.rss_bytes), float(tally.open_at_end)),
        cpu_us_per_handshake: quiet.then(|| per(us(&was, &open), opened_count)),
        cpu_percent_while_listening: per(cpu_us * 100.0, window_us),
        cpu_us_per_message: per(cpu_us, float(after.progress.messages.saturating_sub(opened.progress.messages))),
        cpu_us_per_message_written: written.map(|written| per(cpu_us, written.messages)),
        cpu_us_per_write: writes.map(|writes| per(cpu_us, writes)),
        send_loop_us_per_write: written
            .zip(writes)
            .map(|(written, writes)| per(written.send_loop_seconds * 1e6, writes))
            .filter(|us| *us > 0.0),
        messages_per_write: written.zip(writes).map(|(written, writes)| per(written.messages, writes)),
    })
}

fn storm(calm: &Mark, over: &Mark, tally: &Tally) -> Storm {
    let all_back = tally.back.longest().unwrap_or_default().as_secs_f64();
    let returned = tally.back.count();
    let cpu = calm.usage.zip(over.usage).map(|(calm, over)| per(us(&calm, &over), float(returned)));
    Storm {
        returns_per_second: per(float(returned), all_back),
        returned,
        all_back_after_ms: all_back * 1000.0,
        back_ms: Percentiles::of(&tally.back),
        cpu_us_per_return: cpu,
    }
}

fn machine_use(run: &Run) -> Option<MachineUse> {
    let (before, after): (Machine, Machine) = (run.before.machine?, run.after.machine?);
    let difference = |a: u64, b: u64| i64::try_from(a).ok().zip(i64::try_from(b).ok()).map(|(a, b)| a - b);
    Some(MachineUse {
        available_bytes_less: difference(before.available_bytes, after.available_bytes)?,
        slab_bytes_more: difference(after.slab_bytes, before.slab_bytes)?,
    })
}

fn us(from: &Usage, to: &Usage) -> f64 {
    to.cpu.saturating_sub(from.cpu).as_secs_f64() * 1e6
}

fn per(amount: f64, count: f64) -> f64 {
    if count > 0.0 { amount / count } else { 0.0 }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a load test, far below 2^53")]
fn float(count: u64) -> f64 {
    count as f64
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "sockets    {} of {} opened, {} open at the end", self.opened, self.wanted, self.open_at_end)?;
        let (connecting, listening) = (self.connecting_seconds, self.listening_seconds);
        writeln!(f, "time       {connecting:.1} s to open them, {listening:.1} s listening")?;
        for (name, waits) in [
            ("101 after", &self.upgrade_ms),
            ("init after", &self.init_ms),
            ("events", &self.event_ms),
            ("new state", &self.state_gap_ms),
        ] {
            if let Some(Percentiles { p50, p99, max }) = waits {
                writeln!(f, "{name:<10} {p50:.1} ms (median), {p99:.1} ms (99 %), {max:.1} ms (longest)")?;
            }
        }
        self.messages(f)?;
        if let Some(Published { accepted, answers, .. }) = &self.published {
            writeln!(f, "published  {accepted} events; requests by answer: {answers:?}")?;
            writeln!(f, "delivered  {:.0} events per second", self.deliveries_per_second)?;
        }
        self.server(f)?;
        self.special(f)?;
        for (outcome, count) in self.arrivals.iter().flat_map(|Arrivals(counts)| counts) {
            writeln!(f, "gateways   {outcome} {count}")?;
        }
        self.faults(f)?;
        f.write_str(if self.ok { "ok" } else { "NOT ok" })
    }
}

impl Report {
    fn messages(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Messages { init, realtime_update, stale, new_event, theme_stats, letter_generated, ping, gap, .. } =
            self.messages;
        writeln!(f, "messages   {} ({} payload bytes)", self.messages.total(), self.messages.payload_bytes)?;
        writeln!(
            f,
            "           {init} init, {realtime_update} realtime_update ({stale} stale), {new_event} new_event"
        )?;
        writeln!(f, "           {theme_stats} theme_stats, {letter_generated} letter_generated, {gap} gap")?;
        writeln!(f, "pings      {ping}, {} answered", self.pongs)
    }

    fn server(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(server) = &self.server else { return Ok(()) };
        let mib = |bytes: u64| bytes >> 20;
        let ServerUse { rss_before_bytes: before, rss_open_bytes: open, rss_after_bytes: after, .. } = server;
        writeln!(f, "server RSS {} MiB, {} MiB when open, {} MiB after", mib(*before), mib(*open), mib(*after))?;
        if let Some(most) = server.rss_most_bytes {
            writeln!(f, "           {} MiB at most", mib(most))?;
        }
        writeln!(f, "           {:.0} bytes per socket", server.rss_bytes_per_socket)?;
        let (percent, per_message) = (server.cpu_percent_while_listening, server.cpu_us_per_message);
        writeln!(f, "server CPU {percent:.2} % of a core while listening, {per_message:.3} us per message")?;
        if let (Some(written), Some(write), Some(many)) =
            (server.cpu_us_per_message_written, server.cpu_us_per_write, server.messages_per_write)
        {
            writeln!(
                f,
                "           {written:.3} us per message written, {write:.3} us per write ({many:.2} messages)"
            )?;
        }
        if let Some(us) = server.send_loop_us_per_write {
            writeln!(f, "           {us:.3} us per write in the loop that sends")?;
        }
        match server.cpu_us_per_handshake {
            Some(us) => writeln!(f, "           {us:.1} us per handshake"),
            None => Ok(()),
        }
    }

    fn special(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Storm { returns_per_second, returned, all_back_after_ms, back_ms, cpu_us_per_return }) = &self.storm
        {
            writeln!(f, "storm      {returned} back after {all_back_after_ms:.0} ms: {returns_per_second:.0}/s")?;
            if let Some(Percentiles { p50, p99, .. }) = back_ms {
                writeln!(f, "           {p50:.0} ms (median), {p99:.0} ms (99 %)")?;
            }
            if let Some(us) = cpu_us_per_return {
                writeln!(f, "           {us:.1} us of server CPU per return")?;
            }
            if let Some(Percentiles { max, .. }) = &self.state_gap_ms {
                writeln!(f, "           {max:.0} ms: the worst gap between ticks that any client saw")?;
            }
        }
        if let Some(Soak { rss_bytes, other_descriptors, threads, .. }) = &self.soak {
            writeln!(f, "soak       RSS {rss_bytes} bytes (first to last third)")?;
            writeln!(f, "           descriptors besides the clients' {other_descriptors}, threads {threads}")?;
        }
        if let Some(MachineUse { available_bytes_less, slab_bytes_more }) = &self.machine {
            let mib = |bytes: i64| bytes / (1 << 20);
            let (less, slab) = (mib(*available_bytes_less), mib(*slab_bytes_more));
            writeln!(f, "machine    {less} MiB less available, {slab} MiB more kernel slab")?;
        }
        Ok(())
    }

    fn faults(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
        self.broken.iter().try_for_each(|broken| writeln!(f, "BROKEN     {broken}"))
    }
}
