//! The load tester: many sockets against a real gateway, an audit of what each one is sent, and a report.
//!
//! One thread polls all sockets, another posts events. The audit's rules are in [`audit`], the framing in [`frame`];
//! both are pure.

mod args;
mod audit;
mod frame;
mod latency;
mod process;
mod publish;
mod report;
mod socket;
mod source;
mod swarm;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::Parser;

use crate::args::{Args, Target};
use crate::publish::{Job, Publisher};
use crate::report::Report;
use crate::swarm::Swarm;

/// Descriptors besides the sockets: the standard three, the poll, the producer, `/proc`.
const OTHER_DESCRIPTORS: u64 = 32;

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args).and_then(|report| say(&report, &args).map(|()| report.is_ok())) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            // Nobody is left to tell when this fails too.
            let _ = writeln!(std::io::stderr(), "loadtest: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> anyhow::Result<Report> {
    let target = Target::resolve(&args.url, "ws").map_err(|error| anyhow!(error))?.with_query(&args.query);
    let limit = rlimit::increase_nofile_limit(u64::MAX).context("raising the descriptor limit")?;
    if u64::from(args.connections) + OTHER_DESCRIPTORS > limit {
        return Err(anyhow!("{} sockets need more descriptors than the hard limit of {limit}", args.connections));
    }
    let swarm = Swarm::new(args, target).context("making a poll")?;
    let publisher = publisher(args)?;
    swarm.run(args, publisher).context("polling")
}

fn publisher(args: &Args) -> anyhow::Result<Option<Publisher>> {
    let (Some(url), Some(token)) = (&args.publish, &args.token) else { return Ok(None) };
    let target = Target::resolve(url, "http").map_err(|error| anyhow!(error))?;
    let (per_second, first_number) = (args.events_per_second, args.first_number);
    let job = Job { target, token: token.clone(), per_second, first_number };
    Publisher::start(job).map(Some).context("starting the producer")
}

fn say(report: &Report, args: &Args) -> anyhow::Result<()> {
    let text = if args.json { serde_json::to_string_pretty(report)? } else { report.to_string() };
    writeln!(std::io::stdout(), "{text}").context("writing the report")
}
