//! Servers to compare with, in the same run and on the same machine.
//!
//! They speak as much of the gateway's protocol as the audit wants: a 101, `init`, numbered events, an answer to a
//! close frame. They know nothing else: no presence, no limits, no Redis. What they deliver they make themselves, when
//! the control connection orders it (`first count`, a line each) or at a rate of their own.

mod floor;
#[cfg(feature = "comparison")]
mod tungstenite;

pub(crate) use self::floor::compare;
use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow};

use crate::args::{Comparison, ServeArgs};
use crate::frame::{self, Opcode};
use crate::publish::Orders;

/// A time that all messages bear: nobody looks at it, but it must be one.
const TIME: &str = "2025-12-08T10:30:00Z";

/// Serves until the control connection ends, or for ever.
///
/// # Errors
/// When it cannot listen.
pub(crate) fn serve(args: &ServeArgs) -> anyhow::Result<()> {
    rlimit::increase_nofile_limit(u64::MAX).context("raising the descriptor limit")?;
    match args.server {
        Comparison::Floor => floor::serve(args).context("serving"),
        #[cfg(feature = "comparison")]
        Comparison::Tungstenite => tungstenite::serve(args).context("serving"),
    }
}

/// Tells whoever started it where it listens.
fn announce(sockets: SocketAddr, control: SocketAddr) -> io::Result<()> {
    writeln!(io::stdout(), "sockets {sockets} control {control}")
}

/// The first message of a socket.
fn init() -> String {
    format!(r#"{{"type":"init","data":{{"active_visitors":1,"timestamp":"{TIME}"}}}}"#)
}

/// An event of about 100 bytes.
fn event(number: u64) -> String {
    format!(r#"{{"type":"new_event","data":{{"event_type":"x","page_url":"/n/{number}","timestamp":"{TIME}"}}}}"#)
}

/// A message in its frame, as a server sends it.
fn framed(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() + 4);
    frame::write_unmasked(&mut bytes, Opcode::Text, text.as_bytes());
    bytes
}

/// The counters that the tester reads from a server.
fn metrics(messages: u64, passes: u64, send_loop: Duration) -> String {
    let body = format!(
        "websocket_messages_total{{direction=\"sent\"}} {messages}\ngateway_broadcast_passes_total {passes}\n\
         send_loop_cpu_seconds_total {}\n",
        send_loop.as_secs_f64()
    );
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

/// What the control connection ordered: the first number and how many.
fn order(line: &str) -> Option<(u64, u64)> {
    let (first, count) = line.trim().split_once(' ')?;
    Some((first.parse().ok()?, count.parse().ok()?))
}

/// A comparison server that this process has started. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Served {
    process: std::process::Child,
    /// Held so that the server lives while nobody publishes.
    _control: Orders,
    pub(crate) sockets: SocketAddr,
    pub(crate) control: SocketAddr,
}

impl Served {
    /// Starts a server on free ports.
    ///
    /// # Errors
    /// When it does not come up.
    pub(crate) fn start(name: &str, batch: u32) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("finding myself")?;
        let mut command = Command::new(program);
        command.args(["serve", name, "--batch", &batch.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = command.spawn().with_context(|| format!("starting {name}"))?;
        let addresses = process.stdout.take().map(|out| addresses(&mut BufReader::new(out)));
        let control = addresses
            .and_then(|it| it.ok())
            .and_then(|(sockets, control)| Orders::connect(control).ok().map(|orders| (sockets, control, orders)));
        match control {
            Some((sockets, control, orders)) => Ok(Self { process, _control: orders, sockets, control }),
            None => {
                // It may have ended by itself.
                let _ = process.kill();
                let _ = process.wait();
                Err(anyhow!("{name} did not come up"))
            }
        }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn addresses(out: &mut impl BufRead) -> anyhow::Result<(SocketAddr, SocketAddr)> {
    let mut line = String::new();
    out.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (Some("sockets"), Some(sockets), Some("control"), Some(control)) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(anyhow!("{line:?} names no addresses"));
    };
    Ok((sockets.parse()?, control.parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Auditor, Meaning, Slots};

    #[test]
    fn orders() {
        assert_eq!(order("7 3\n"), Some((7, 3)));
        for wrong in ["", "7", "7 x", "-1 3", "7 3 1"] {
            assert_eq!(order(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_audit_understands_it() {
        let mut meanings = crate::audit::Meanings::default();
        let mut auditor = Auditor::default();
        for (text, is_it) in [(init(), true), (event(1), true), (event(2), true), (event(4), true)] {
            let bytes = framed(&text);
            let frame = frame::parse(&bytes).expect("a good frame").expect("a whole frame");
            let meaning = meanings.of(&bytes[frame.payload]);
            assert_eq!(meaning != Meaning::Malformed, is_it);
            assert_eq!(auditor.judge(meaning, Slots::new(5000)), None);
        }
        assert_eq!(auditor.lost(&crate::audit::Numbers::default()), 1);
        assert_eq!(event(1234).len(), 102);
    }
}
