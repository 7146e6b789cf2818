//! The small pieces of work that a node repeats most, each to be counted in instructions.
//!
//! Times on a shared machine vary by a third from run to run; instructions vary by a thousandth. So this program
//! measures nothing by itself. It does one case (`micro CASE`), under callgrind, which collects inside of [`measured`]
//! alone; without an argument it prints the names. `make bench-micro` goes through them. Memory needs no callgrind:
//! `micro idle-socket` prints what a socket at rest takes.
//!
//! What callgrind cannot see is the kernel, which has most of the time of a broadcast. That makes the pass over 10,000
//! sockets a benchmark without IO: its sockets are real, and what is counted is what this program does about them.

#![expect(clippy::print_stdout, reason = "what it prints is its result")]

mod hub;
mod meter;
mod rules;
mod socket_memory;
mod sockets;
mod wire;

use std::process::ExitCode;

use self::meter::Case;

/// The allocator of the gateway: its instructions count too.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // cargo bench says `--bench` to whatever it runs.
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let cases: Vec<Case> = [wire::cases(), rules::cases(), hub::cases()].concat();
    match arguments.next() {
        None => cases.iter().for_each(|case| println!("{}", case.name)),
        Some(name) if name == socket_memory::NAME => socket_memory::print(arguments.next().as_deref()),
        Some(name) => {
            let Some(case) = cases.iter().find(|case| case.name == name) else {
                eprintln!("no such case: {name}");
                return ExitCode::FAILURE;
            };
            // The counts are divided by it.
            println!("{}", (case.run)());
        }
    }
    ExitCode::SUCCESS
}
