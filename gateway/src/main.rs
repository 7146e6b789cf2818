//! The process's life on one screen: read, check, build, run, drain, and an exit code that means something.

use std::process::ExitCode;

use clap::Parser;
use gateway::app::{App, Signals};
use gateway::config::{Args, Config, Environment};
use gateway::healthcheck;
use gateway::lifecycle::Ending;
use gateway::telemetry::Telemetry;
use tokio::runtime::{Builder, Runtime};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The configuration is wrong (also what clap uses for words that it does not know).
const EXIT_CONFIG: u8 = 2;
/// The node could not be built: an address is taken, a file is unreadable (sysexits.h: EX_UNAVAILABLE).
const EXIT_UNAVAILABLE: u8 = 69;
/// A part that the node lives by failed (sysexits.h: EX_SOFTWARE).
const EXIT_SOFTWARE: u8 = 70;

/// Threads that accept and read: half of the cores. The other half writes, and belongs to the kernel, which does nine
/// tenths of the work. More threads are worse, not better: each small task would be handed to a sleeping thread, and
/// to wake it costs more than the task (docs/BENCHMARKS.md, handshakes).
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}

/// Two runtimes (ADR 22): the sockets' has the [`workers`]; the other one, on this thread, has all that the node lives
/// by.
fn runtimes() -> std::io::Result<(Runtime, Runtime)> {
    let sockets = Builder::new_multi_thread().worker_threads(workers()).thread_name("sockets").enable_all().build()?;
    Ok((sockets, Builder::new_current_thread().enable_all().build()?))
}

fn main() -> ExitCode {
    let args = Args::parse();
    // Failing to raise the soft limit is not fatal: the hard limit is what `max_connections` is checked against,
    // and accept(2) copes with running out.
    let descriptors = rlimit::increase_nofile_limit(u64::MAX);
    let config = match Config::resolve(&args, &Environment::of_process()) {
        Ok(config) => config,
        Err(errors) => {
            errors.iter().for_each(|error| eprintln!("gateway: {error}"));
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    if args.check_config {
        #[expect(clippy::print_stdout, reason = "it is what was asked for, and may be piped into a file")]
        {
            print!("{}", config.effective());
        }
        return ExitCode::SUCCESS;
    }
    if let Some(address) = &args.healthcheck {
        return healthcheck::run(address, config.internal_listen);
    }
    let (sockets, runtime) = match runtimes() {
        Ok(runtimes) => runtimes,
        Err(error) => {
            eprintln!("gateway: cannot start the runtime: {error}");
            return ExitCode::from(EXIT_UNAVAILABLE);
        }
    };
    // Declared before the app, so dropped after it: the last log lines and spans get out.
    let _telemetry = match Telemetry::install(&config) {
        Ok(telemetry) => telemetry,
        Err(error) => {
            eprintln!("gateway: {error:#}");
            return ExitCode::from(EXIT_UNAVAILABLE);
        }
    };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), descriptors = ?descriptors.ok(), "gateway starts");
    let ending = runtime.block_on(async {
        let app = App::build(config, sockets.handle().clone())?;
        tracing::info!(public = %app.public_address()?, internal = %app.internal_address()?, "listening");
        anyhow::Ok(app.run(Signals::new()?).await)
    });
    match ending {
        Ok(Ending::Drained) => {
            tracing::info!("gateway ended");
            ExitCode::SUCCESS
        }
        Ok(Ending::Interrupted) => {
            tracing::warn!("ended at once by a second signal");
            ExitCode::SUCCESS
        }
        Ok(Ending::Failed(part)) => {
            tracing::error!(part, "a part that the node lives by failed");
            // Other threads may hang with it: do not wait for them.
            sockets.shutdown_background();
            runtime.shutdown_background();
            ExitCode::from(EXIT_SOFTWARE)
        }
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "cannot start");
            ExitCode::from(EXIT_UNAVAILABLE)
        }
    }
}
