//! Is the floor the floor? Its passes beside a loop of `send` with nothing around it, over the same sockets.
//!
//! Every ratio of a report has the floor below the line: a floor that wastes time flatters what is measured against
//! it. So one thread alternates, over the sockets that it has accepted: a pass of the floor, then the same bytes by a
//! loop over bare descriptors. Of the floor counts all that its thread does until the next pass is due (the order, the
//! poll, its counters), of the other one nothing but the loop. The clients are processes of their own, because a
//! process may not have descriptors enough for both ends, and they audit: what a loop did not deliver is found.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;

use super::{Floor, cpu_time};
use crate::args::BareArgs;
use crate::control::{Job, Order, Stage};
use crate::crew::{Crew, Published};
use crate::limits::most;
use crate::series::median;
use crate::serve::{event, framed};

/// From one pass to the next: the clients have read everything by then.
const PASS_EVERY: Duration = Duration::from_millis(100);
/// Rounds at the begin that are not counted.
const WARM_UP: u32 = 2;
/// For the clients to come, to get the last event, or to go.
const WITHIN: Duration = Duration::from_secs(30);
/// Connections that are opened per second.
const RATE: f64 = 4000.0;

/// What was measured: microseconds of CPU time per send.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    sockets: u32,
    rounds: u32,
    bare_us: f64,
    floor_us: f64,
    /// Median of the ratios of neighbours.
    ratio: f64,
    broken: Vec<String>,
}

impl Comparison {
    /// Whether the floor is as cheap as was wanted.
    pub(crate) fn is_ok(&self) -> bool {
        self.broken.is_empty()
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sockets, rounds, bare_us, floor_us, ratio, broken } = self;
        writeln!(f, "sockets    {sockets}, each sent {rounds} events by each of the two (medians)")?;
        writeln!(f, "bare loop  {bare_us:.3} us of CPU per send")?;
        writeln!(f, "floor      {floor_us:.3} us of CPU per send, x {ratio:.3}")?;
        broken.iter().try_for_each(|broken| writeln!(f, "BROKEN     {broken}"))?;
        f.write_str(if broken.is_empty() { "ok" } else { "NOT ok" })
    }
}

/// Compares the floor with a bare loop.
///
/// # Errors
/// When clients do not come, do not keep up, or do not get what was sent.
pub(crate) fn compare(args: &BareArgs) -> anyhow::Result<Comparison> {
    rlimit::increase_nofile_limit(u64::MAX).context("raising the descriptor limit")?;
    let mut floor = Floor::new(SocketAddr::from(([127, 0, 0, 1], 0)), 1)?;
    let url = format!("ws://{}/ws/analytics", floor.listener.local_addr()?);
    let job = Job::new(vec![url], args.connections, RATE);
    let mut crew = Crew::start(&job, 1, args.processes(), &Published::default())?;
    serve_until(&mut floor, &crew, "connecting", |crew| crew.progress().has_done(Stage::Open))?;
    let open = floor.open.iter().filter(|open| **open).count();
    if open != args.connections as usize {
        bail!("{open} of {} clients came", args.connections);
    }
    crew.order(&Order::Listen)?;
    let (mut pairs, mut number) = (Vec::new(), 0);
    for round in 0..WARM_UP + args.rounds {
        let mut pass = |is_floor: bool| {
            number += 1;
            if is_floor { floor.measured_pass(number) } else { floor.bare_pass(number) }
        };
        // Whoever is first in a round is second in the next.
        let first = pass(round % 2 == 0)?;
        let second = pass(round % 2 != 0)?;
        pairs.push(if round % 2 == 0 { (first, second) } else { (second, first) });
    }
    crew.order(&Order::Settle(Some(number)))?;
    let has_all = |crew: &Crew| crew.progress().has_done(Stage::Settle) && crew.progress().behind == 0;
    serve_until(&mut floor, &crew, "waiting for the last event", has_all)?;
    crew.order(&Order::Leave(crate::audit::Numbers::default()))?;
    serve_until(&mut floor, &crew, "leaving", Crew::has_failed)?;
    let tally = crew.finish()?;
    if !tally.findings.is_empty() || !tally.closed.is_empty() {
        bail!("the clients did not get what was sent: {:?} {:?}", tally.findings, tally.closed);
    }
    Ok(conclude(args, pairs.get(WARM_UP as usize..).unwrap_or_default()))
}

/// From pairs of CPU times, the floor's first.
fn conclude(args: &BareArgs, pairs: &[(Duration, Duration)]) -> Comparison {
    let per_send = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(args.connections);
    let median_of = |of: fn(&(Duration, Duration)) -> Duration| {
        median(pairs.iter().map(|pair| per_send(of(pair))).collect()).unwrap_or(f64::NAN)
    };
    let ratios = pairs.iter().map(|(floor, bare)| floor.as_secs_f64() / bare.as_secs_f64()).collect();
    let ratio = median(ratios).unwrap_or(f64::NAN);
    Comparison {
        sockets: args.connections,
        rounds: args.rounds,
        bare_us: median_of(|(_, bare)| *bare),
        floor_us: median_of(|(floor, _)| *floor),
        ratio,
        broken: most("the floor, of a bare loop", Some(ratio), args.max_ratio).into_iter().collect(),
    }
}

impl Floor {
    /// CPU time of all that the floor does from one event to the next.
    fn measured_pass(&mut self, number: u64) -> anyhow::Result<Duration> {
        let (due, before) = (Instant::now() + PASS_EVERY, cpu_time());
        self.waiting.push_back(number);
        let mut wait = Duration::ZERO;
        while Instant::now() < due || !self.waiting.is_empty() {
            self.turn(wait)?;
            wait = due.saturating_duration_since(Instant::now());
        }
        Ok(cpu_time().saturating_sub(before))
    }

    /// CPU time of a loop of `send` over descriptors, and nothing else.
    fn bare_pass(&mut self, number: u64) -> anyhow::Result<Duration> {
        let due = Instant::now() + PASS_EVERY;
        let open = self.sockets.iter().zip(&self.open).filter(|(_, open)| **open);
        let bare: Vec<socket2::SockRef<'_>> = open.filter_map(|(socket, _)| socket.as_ref().map(Into::into)).collect();
        let bytes = framed(&event(number));
        let before = cpu_time();
        for socket in &bare {
            let sent = socket.send(&bytes).context("sending to a client")?;
            if sent != bytes.len() {
                bail!("a client does not keep up");
            }
        }
        let spent = cpu_time().saturating_sub(before);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        Ok(spent)
    }
}

fn serve_until(floor: &mut Floor, crew: &Crew, what: &str, done: impl Fn(&Crew) -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + WITHIN;
    while !done(crew) {
        if Instant::now() > deadline {
            bail!("{what} took longer than {WITHIN:?}");
        }
        floor.turn(PASS_EVERY)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_that_of_neighbours() {
        let ms = |floor, bare| (Duration::from_millis(floor), Duration::from_millis(bare));
        let args = BareArgs { connections: 1000, rounds: 3, max_ratio: Some(1.05), json: false };
        let slow_machine_in_between = [ms(10, 10), ms(21, 20), ms(11, 10)];
        let found = conclude(&args, &slow_machine_in_between);
        assert!((found.ratio - 1.05).abs() < 1e-9 && found.is_ok(), "{found}");
        assert!((found.bare_us - 10.0).abs() < 1e-9 && (found.floor_us - 11.0).abs() < 1e-9, "{found}");
        assert!(!conclude(&args, &[ms(12, 10)]).is_ok());
        assert!(!conclude(&args, &[]).is_ok(), "what was not measured is broken");
    }
}
