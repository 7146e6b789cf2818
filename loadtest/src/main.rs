//! The load tester: many sockets against a real gateway, an audit of what each one is sent, and a report.
//!
//! `lead.rs` leads a run; threads (`swarm.rs`), of this process or of several, own the sockets; another thread
//! publishes events. The audit's rules are in `audit.rs`, the framing in `frame.rs`; both are pure. `serve.rs` has
//! servers to compare with.

mod args;
mod audit;
mod control;
mod crew;
mod display;
mod frame;
mod latency;
mod lead;
mod limits;
mod pace;
mod process;
mod publish;
mod report;
mod scenario;
mod scrape;
mod series;
mod serve;
mod soak;
mod socket;
mod source;
mod swarm;
mod tally;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

use crate::args::{Cli, Command};

fn main() -> ExitCode {
    let Cli { scenario, plain } = Cli::parse();
    let result = match scenario {
        Some(Command::Serve(args)) => serve::serve(&args).map(|()| true),
        Some(Command::Bare(args)) => serve::compare(&args).and_then(|found| {
            let text = if args.json { serde_json::to_string_pretty(&found)? } else { found.to_string() };
            say(&text)?;
            Ok(found.is_ok())
        }),
        Some(Command::Worker) => crew::work().map(|()| true),
        test => scenario::run(test, plain).and_then(|(verdict, json)| {
            say(&verdict.text(json)?)?;
            Ok(verdict.is_ok())
        }),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            // Nobody is left to tell when this fails too.
            let _ = writeln!(std::io::stderr(), "loadtest: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn say(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}").context("writing the report")
}
