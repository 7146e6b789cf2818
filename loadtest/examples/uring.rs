//! What would io_uring bring to a broadcast? (docs/ARCHITECTURE.md, ADR on io_uring.)
//!
//! A broadcast is the same 100 bytes to each of 10,000 sockets. Here that is all there is: a process that has accepted
//! them on loopback, another one that reads, and passes that alternate between a loop of send(2) and io_uring in the
//! ways that suit the case: files registered, so that no descriptor is looked up; many sends per system call; and with
//! the flags that spare it interrupts of the submitting thread. What counts is CPU time of the whole process, kernel
//! workers included (they are threads of it), and of the reader, in case work has only moved to the other side.
//!
//! Deliberately absent: zero-copy sends (100 bytes cost less to copy than to pin and be told about twice), a
//! polling thread of the kernel (`SQPOLL` spins on a core that a node has better uses for), and whatever the gateway
//! does besides sending.
//!
//! `make bench-uring`, or with other figures: `… --example uring -- SOCKETS ROUNDS`. It ends by itself.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use io_uring::{IoUring, opcode, types};
use mio::{Events, Interest, Poll, Token};

const SOCKETS: usize = 10_000;
const ROUNDS: usize = 40;
/// Rounds at the begin that are not counted.
const WARM_UP: usize = 2;
/// From one pass to the next: the reader has read everything by then.
const PASS_EVERY: Duration = Duration::from_millis(100);
static FRAME: [u8; 100] = [b'x'; 100];
/// Sends per system call.
const BATCH: u32 = 1024;
/// What one process may have of descriptors besides the sockets.
const OTHER_DESCRIPTORS: u64 = 64;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    rlimit::increase_nofile_limit(u64::MAX).context("raising the descriptor limit")?;
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["read", address, sockets] => read(address.parse()?, sockets.parse()?),
        [] => compare(SOCKETS, ROUNDS),
        [sockets, rounds] => compare(sockets.parse()?, rounds.parse()?),
        _ => bail!("usage: uring [SOCKETS ROUNDS]"),
    }
}

/// A way to send a frame to all sockets.
enum Way {
    Loop,
    Ring(Box<IoUring>),
}

struct Contender {
    name: &'static str,
    way: Way,
    /// By round, in seconds of CPU time: of this process, and of the reader.
    spent: Vec<(f64, f64)>,
}

fn compare(sockets: usize, rounds: usize) -> anyhow::Result<()> {
    let limit = rlimit::Resource::NOFILE.get_soft()?;
    ensure!(sockets as u64 + OTHER_DESCRIPTORS <= limit, "at most {} sockets here", limit - OTHER_DESCRIPTORS);
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    // A connection that finds no room here tries again after a second.
    listener.listen(i32::try_from(sockets)?)?;
    let listener = TcpListener::from(listener);
    let program = std::env::current_exe()?;
    let mut command = Command::new(program);
    command.args(["read", &listener.local_addr()?.to_string(), &sockets.to_string()]).stdout(Stdio::piped());
    let mut reader = Reader(command.spawn().context("starting the reader")?);
    let mut streams = Vec::with_capacity(sockets);
    for _ in 0..sockets {
        let (stream, _) = listener.accept()?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        streams.push(socket2::Socket::from(stream));
    }
    let mut contenders = contenders(&streams)?;
    let begin = cpu_by_proc()?;
    for round in 0..WARM_UP + rounds {
        let count = contenders.len();
        for n in 0..count {
            // Each is first in its turn.
            let contender = &mut contenders[(round + n) % count];
            let (due, before, reader_before) = (Instant::now() + PASS_EVERY, process_cpu(), reader.cpu()?);
            match &mut contender.way {
                Way::Loop => send_loop(&streams)?,
                Way::Ring(ring) => send_by(ring, streams.len())?,
            }
            let spent = process_cpu().saturating_sub(before);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if round >= WARM_UP {
                let readers = reader.cpu()?.saturating_sub(reader_before);
                contender.spent.push((spent.as_secs_f64(), readers.as_secs_f64()));
            }
        }
    }
    let by_proc = cpu_by_proc()?.saturating_sub(begin);
    drop(streams);
    let passes = (WARM_UP + rounds) * contenders.len();
    // What a ring holds registered stays open until it is dropped.
    let rows: Vec<(&str, Vec<(f64, f64)>)> = contenders.into_iter().map(|it| (it.name, it.spent)).collect();
    ensure!(reader.got()? == (passes * sockets * FRAME.len()) as u64, "something was not delivered");
    tell(sockets, rounds, &rows)?;
    let all: f64 = rows.iter().flat_map(|(_, spent)| spent).map(|(spent, _)| spent).sum();
    writeln!(io::stdout(), "process CPU: {all:.2} s in these passes; {by_proc:.2?} in all, by /proc/self/stat")?;
    Ok(())
}

fn contenders(streams: &[socket2::Socket]) -> anyhow::Result<Vec<Contender>> {
    let mut contenders = vec![Contender { name: "send(2)", way: Way::Loop, spent: Vec::new() }];
    let descriptors: Vec<i32> = streams.iter().map(AsRawFd::as_raw_fd).collect();
    let plain = IoUring::builder();
    let mut deferring = IoUring::builder();
    deferring.setup_single_issuer().setup_defer_taskrun();
    for (name, builder) in [("io_uring", plain), ("  SINGLE_ISSUER, DEFER_TASKRUN", deferring)] {
        match builder.build(BATCH) {
            Ok(ring) => {
                ring.submitter().register_files(&descriptors).context("registering files")?;
                contenders.push(Contender { name, way: Way::Ring(Box::new(ring)), spent: Vec::new() });
            }
            Err(error) => writeln!(io::stdout(), "{name}: the kernel refuses: {error}")?,
        }
    }
    Ok(contenders)
}

fn send_loop(streams: &[socket2::Socket]) -> anyhow::Result<()> {
    for stream in streams {
        ensure!(stream.send(&FRAME).context("send")? == FRAME.len(), "a socket is full");
    }
    Ok(())
}

fn send_by(ring: &mut IoUring, sockets: usize) -> anyhow::Result<()> {
    let (mut next, mut done) = (0, 0);
    while done < sockets {
        let mut waiting = ring.submission();
        while next < sockets && !waiting.is_full() {
            let file = types::Fixed(u32::try_from(next)?);
            let length = u32::try_from(FRAME.len())?;
            let entry = opcode::Send::new(file, FRAME.as_ptr(), length).flags(DONT_WAIT).build();
            push(&mut waiting, &entry)?;
            next += 1;
        }
        drop(waiting);
        ring.submit_and_wait(next - done)?;
        for completion in ring.completion() {
            ensure!(completion.result() == i32::try_from(FRAME.len())?, "a send gave {}", completion.result());
            done += 1;
        }
    }
    Ok(())
}

/// `MSG_DONTWAIT`: a full socket is told, not waited for by a kernel worker.
const DONT_WAIT: i32 = 0x40;

#[expect(unsafe_code, reason = "the crate cannot know how long the bytes live")]
fn push(waiting: &mut io_uring::SubmissionQueue<'_>, entry: &io_uring::squeue::Entry) -> anyhow::Result<()> {
    // SAFETY: every entry points at FRAME, a static that nobody writes to.
    unsafe { waiting.push(entry) }.context("a full queue")
}

#[expect(clippy::cast_precision_loss, reason = "a count of sockets")]
fn tell(sockets: usize, rounds: usize, rows: &[(&str, Vec<(f64, f64)>)]) -> anyhow::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{sockets} sockets, {rounds} rounds: medians of CPU us per frame, and of the ratios to send(2)")?;
    writeln!(out, "{:<32} {:>8}          {:>8}   {:>8}", "", "sender", "reader", "both")?;
    let us = |seconds: f64| seconds * 1e6 / sockets as f64;
    let both = |(own, readers): &(f64, f64)| own + readers;
    let Some((_, plain)) = rows.first() else { return Ok(()) };
    for (name, spent) in rows {
        let neighbours = || spent.iter().zip(plain);
        writeln!(
            out,
            "{name:<32} {:>8.3} x {:.3}  {:>8.3}   {:>8.3} x {:.3}",
            us(median(spent.iter().map(|(own, _)| *own))),
            median(neighbours().map(|(it, plain)| it.0 / plain.0)),
            us(median(spent.iter().map(|(_, readers)| *readers))),
            us(median(spent.iter().map(both))),
            median(neighbours().map(|(it, plain)| both(it) / both(plain))),
        )?;
    }
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Of all threads of this process, the kernel's workers for it too.
fn process_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// The same in the kernel's other book, to 10 ms.
fn cpu_by_proc() -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The name in brackets may hold anything.
    let (_, fields) = stat.rsplit_once(')').context("a stat without a name")?;
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).map_while(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}

/// The process at the other ends; dropping it ends it.
struct Reader(Child);

impl Reader {
    /// Its only thread's CPU time, to the nanosecond.
    fn cpu(&self) -> anyhow::Result<Duration> {
        let text = std::fs::read_to_string(format!("/proc/{}/schedstat", self.0.id()))?;
        let ns = text.split_whitespace().next().context("an empty schedstat")?;
        Ok(Duration::from_nanos(ns.parse()?))
    }

    /// How many bytes it got; it says so when all connections have ended.
    fn got(&mut self) -> anyhow::Result<u64> {
        let mut text = String::new();
        self.0.stdout.take().context("once only")?.read_to_string(&mut text)?;
        text.trim().parse().context("the reader failed")
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Connects, reads to the end of every connection, says how many bytes that was.
fn read(address: SocketAddr, sockets: usize) -> anyhow::Result<()> {
    let (mut poll, mut events) = (Poll::new()?, Events::with_capacity(1024));
    let mut streams = Vec::with_capacity(sockets);
    for n in 0..sockets {
        let stream = std::net::TcpStream::connect(address)?;
        stream.set_nonblocking(true)?;
        let mut stream = mio::net::TcpStream::from_std(stream);
        poll.registry().register(&mut stream, Token(n), Interest::READABLE)?;
        streams.push(Some(stream));
    }
    let (mut open, mut got, mut buffer) = (sockets, 0u64, vec![0; 64 * 1024]);
    while open > 0 {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error.into()),
            _ => {}
        }
        for event in &events {
            let Token(token) = event.token();
            let Some(place) = streams.get_mut(token) else { continue };
            // Read to the end already, when its end is announced once more.
            let Some(stream) = place.as_mut() else { continue };
            loop {
                match stream.read(&mut buffer) {
                    Ok(0) => {
                        *place = None;
                        open -= 1;
                        break;
                    }
                    Ok(n) => got += n as u64,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error).context("reading"),
                }
                if !event.is_read_closed() {
                    // A short read is the last one for now.
                    break;
                }
            }
        }
    }
    writeln!(io::stdout(), "{got}").context("telling how much")
}
