//! All sockets, on one thread and one poll.
//!
//! A runtime would spend more on a task and its wake-up than a client spends on a message, and the tester must not
//! be what is measured. So: edge-triggered readiness, a table of sockets, one read buffer. Each is touched only when
//! the kernel has something for it.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};

use crate::args::{Args, Target, YesNo};
use crate::audit::{Auditor, Finding, Meanings, Numbers, Slots};
use crate::process::Usage;
use crate::publish::{Outcome, Publisher};
use crate::report::{Expected, Report, Run, Server, Tally};
use crate::socket::{self, End, Reads, Shared, Socket};
use crate::source;

/// What one read can bring.
const READ_BYTES: usize = 256 * 1024;
/// Events of one poll.
const EVENTS: usize = 1024;
/// The longest that a poll sleeps.
const POLL_MAX: Duration = Duration::from_millis(100);
/// From the begin of connecting to the 101.
const OPEN_WITHIN: Duration = Duration::from_secs(10);
/// After the last event was accepted, for every socket to have it.
const SETTLE_WITHIN: Duration = Duration::from_secs(5);
/// For the server to answer our close frames.
const LEAVE_WITHIN: Duration = Duration::from_secs(10);
/// The code with which a server closes who does not answer pings.
const NO_PONG: u16 = 4408;

/// The sockets and what drives them.
pub(crate) struct Swarm {
    poll: Poll,
    events: Events,
    buffer: Vec<u8>,
    target: Target,
    source: Option<u32>,
    sockets: Vec<Option<Socket>>,
    /// Sockets that are not open yet, in the order of their deadlines.
    opening: VecDeque<(Instant, usize)>,
    alive: u32,
    leaving: bool,
    shared: Shared,
    /// What is known of clients that ended.
    gone: Vec<Auditor>,
}

impl Swarm {
    /// A swarm without sockets.
    ///
    /// # Errors
    /// When the system has no poll left.
    pub(crate) fn new(args: &Args, target: Target) -> io::Result<Self> {
        let interval_ms = u64::try_from(args.interval.as_millis()).unwrap_or(u64::MAX);
        let on_loopback = matches!(target.address, SocketAddr::V4(v4) if v4.ip().is_loopback());
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS),
            buffer: vec![0; READ_BYTES],
            source: Some(args.spread).filter(|spread| *spread > 0 && on_loopback),
            sockets: Vec::new(),
            opening: VecDeque::new(),
            alive: 0,
            leaving: false,
            shared: Shared {
                request: socket::request(&target),
                answer_pings: args.answer_pings,
                slots: Slots::new(interval_ms),
                meanings: Meanings::default(),
                sends: None,
                read_at: Instant::now(),
                tally: Tally::default(),
            },
            target,
            gone: Vec::new(),
        })
    }

    /// Opens, listens, leaves, reports.
    ///
    /// # Errors
    /// When the poll fails.
    pub(crate) fn run(mut self, args: &Args, publisher: Option<Publisher>) -> io::Result<Report> {
        self.shared.sends = publisher.as_ref().map(Publisher::sends);
        let usage = || args.pid.and_then(Usage::of);
        let (before, began) = (usage(), Instant::now());
        self.open(args.connections, args.rate)?;
        let (opened, connecting) = (usage(), began.elapsed());
        let messages_when_open = self.shared.tally.messages.total();

        let listening_from = Instant::now();
        self.serve_until(listening_from + args.duration, |_| false)?;
        let (after, listening) = (usage(), listening_from.elapsed());
        let server = match (before, opened, after) {
            (Some(before), Some(opened), Some(after)) => Some(Server { before, opened, after }),
            _ => None,
        };
        let published = publisher.map(|publisher| self.settle(publisher)).transpose()?.flatten();
        let open_at_end = self.sockets.iter().flatten().filter(|socket| socket.is_open()).count() as u64;
        self.leave()?;
        self.judge(published.as_ref());
        let wanted = args.connections;
        let run = Run { wanted, open_at_end, connecting, listening, messages_when_open, server, published };
        Ok(Report::new(self.shared.tally, run))
    }

    /// Opens sockets at a rate, and waits until each is open or is not going to be.
    fn open(&mut self, wanted: u32, per_second: f64) -> io::Result<()> {
        let began = Instant::now();
        for index in 0..wanted {
            let due = began + Duration::from_secs_f64(f64::from(index) / per_second);
            self.serve_until(due, |_| false)?;
            self.connect(index)?;
        }
        self.serve_until(Instant::now() + OPEN_WITHIN * 2, |swarm| swarm.opening.is_empty())
    }

    fn connect(&mut self, index: u32) -> io::Result<()> {
        let source = self.source.map(|spread| SocketAddr::from((source::address(index, spread), 0)));
        let token = self.sockets.len();
        let mut socket = match Socket::connect(self.target.address, source) {
            Ok(socket) => socket,
            Err(error) => {
                self.shared.tally.ended(socket::not_connected(&error), Expected::No);
                return Ok(());
            }
        };
        self.poll.registry().register(socket.stream(), Token(token), Interest::READABLE | Interest::WRITABLE)?;
        self.sockets.push(Some(socket));
        self.alive += 1;
        self.opening.push_back((Instant::now() + OPEN_WITHIN, token));
        Ok(())
    }

    /// Serves the sockets until `deadline`, or until `done` says so.
    fn serve_until(&mut self, deadline: Instant, done: impl Fn(&Self) -> bool) -> io::Result<()> {
        loop {
            self.give_up_late_ones();
            let left = deadline.saturating_duration_since(Instant::now());
            // At least once, so that who is behind with connecting still hears.
            match self.poll.poll(&mut self.events, Some(left.min(POLL_MAX))) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            self.serve_events();
            if left.is_zero() || done(self) {
                return Ok(());
            }
        }
    }

    fn serve_events(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        for event in &events {
            let Token(token) = event.token();
            let Some(socket) = self.sockets.get_mut(token).and_then(Option::as_mut) else { continue };
            let mut result = Ok(());
            if event.is_writable() {
                result = socket.writable(&self.shared);
            }
            if result.is_ok() && event.is_readable() {
                let reads = if event.is_read_closed() { Reads::ToTheEnd } else { Reads::UntilShort };
                result = socket.readable(&mut self.shared, &mut buffer, reads);
            }
            if let Err(end) = result {
                self.end(token, end);
            }
        }
        (self.buffer, self.events) = (buffer, events);
    }

    fn give_up_late_ones(&mut self) {
        let now = Instant::now();
        while let Some((deadline, token)) = self.opening.front().copied() {
            let open = self.sockets.get(token).and_then(Option::as_ref).is_none_or(Socket::is_open);
            if !open && now < deadline {
                return;
            }
            self.opening.pop_front();
            if !open {
                self.end(token, End::Failed("no answer in time"));
            }
        }
    }

    fn end(&mut self, token: usize, end: End) {
        let Some(socket) = self.sockets.get_mut(token).and_then(Option::take) else { return };
        self.alive -= 1;
        let refuses_pings = self.shared.answer_pings == YesNo::No;
        let expected = match &end {
            End::Closed(1000, _) if self.leaving => Expected::Yes,
            End::Closed(code, _) if refuses_pings && *code == NO_PONG => Expected::Yes,
            _ => Expected::No,
        };
        self.shared.tally.ended(end, expected);
        // The descriptor is closed with the socket, and its registration with the descriptor.
        self.gone.push(socket.auditor);
    }

    /// Lets the producer finish, and everybody get what it published.
    fn settle(&mut self, publisher: Publisher) -> io::Result<Option<Outcome>> {
        publisher.stop();
        self.serve_until(Instant::now() + 2 * SETTLE_WITHIN, |_| publisher.is_stopped())?;
        let Some(outcome) = publisher.outcome() else { return Ok(None) };
        let last = outcome.last;
        self.serve_until(Instant::now() + SETTLE_WITHIN, |swarm| swarm.behind(last) == 0)?;
        let behind = self.behind(last);
        self.shared.tally.count("socket without the last events", behind);
        Ok(Some(outcome))
    }

    /// How many open sockets that listen to events have not got the last one.
    fn behind(&self, last: Option<u64>) -> u64 {
        let behind = |socket: &&Socket| socket.auditor.last().is_some_and(|seen| Some(seen) < last);
        self.sockets.iter().flatten().filter(behind).count() as u64
    }

    /// Says goodbye to the server.
    fn leave(&mut self) -> io::Result<()> {
        self.leaving = true;
        for token in 0..self.sockets.len() {
            let Some(socket) = self.sockets.get_mut(token).and_then(Option::as_mut) else { continue };
            if let Err(end) = socket.leave() {
                self.end(token, end);
            }
            if token % EVENTS == 0 {
                self.serve_until(Instant::now(), |_| false)?;
            }
        }
        self.serve_until(Instant::now() + LEAVE_WITHIN, |swarm| swarm.alive == 0)?;
        self.shared.tally.count("close frame not answered", u64::from(self.alive));
        Ok(())
    }

    /// What can be judged at the end only.
    fn judge(&mut self, published: Option<&Outcome>) {
        let nothing = Numbers::default();
        let given_up = published.map_or(&nothing, |outcome| &outcome.given_up);
        let auditors = self.gone.iter().chain(self.sockets.iter().flatten().map(|socket| &socket.auditor));
        let lost = auditors.map(|auditor| auditor.lost(given_up)).sum();
        self.shared.tally.count(Finding::LostEvent.text(), lost);
        self.shared.tally.count_silent();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::thread::JoinHandle;

    use clap::Parser;

    use super::*;
    use crate::frame::{self, Opcode};

    const INIT: &str = r#"{"type":"init","data":{"active_visitors":5,"timestamp":"2025-12-08T10:30:00Z"}}"#;
    const UPDATE: &str =
        r#"{"type":"realtime_update","data":{"active_visitors":5,"timestamp":"2025-12-08T10:30:05Z"}}"#;
    const PING: &str = r#"{"type":"ping","timestamp":"2025-12-08T10:30:30Z"}"#;

    fn event(number: u32) -> String {
        let time = "2025-12-08T10:30:05Z";
        format!(r#"{{"type":"new_event","data":{{"event_type":"x","page_url":"/n/{number}","timestamp":"{time}"}}}}"#)
    }

    /// A server that sends every client the same, answers its close, and returns what clients sent.
    fn server(clients: usize, head: &'static str, texts: Vec<String>) -> (SocketAddr, JoinHandle<Vec<Vec<u8>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let mut bytes = head.as_bytes().to_vec();
        for text in texts {
            let length = u8::try_from(text.len()).expect("short texts");
            bytes.extend_from_slice(if length < 126 { &[0x81] } else { &[0x81, 126, 0] });
            bytes.push(length);
            bytes.extend_from_slice(text.as_bytes());
        }
        let thread = std::thread::spawn(move || {
            let mut streams: Vec<_> = (0..clients).map(|_| listener.accept().expect("a client").0).collect();
            // In pieces: clients must put frames together again.
            for (piece, stream) in bytes.chunks(17).flat_map(|piece| streams.iter().map(move |stream| (piece, stream)))
            {
                let mut stream = stream;
                stream.write_all(piece).expect("the client reads");
            }
            streams.iter_mut().map(until_close).collect()
        });
        (address, thread)
    }

    /// Everything that a client sends; its close is answered.
    fn until_close(stream: &mut TcpStream) -> Vec<u8> {
        let mut close = Vec::new();
        frame::write(&mut close, Opcode::Close, &1000u16.to_be_bytes());
        let (mut got, mut buffer) = (Vec::new(), [0; 1024]);
        while !got.ends_with(&close) {
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => return got,
                Ok(n) => got.extend_from_slice(&buffer[..n]),
            }
        }
        stream.write_all(&[0x88, 2, 0x03, 0xe8]).expect("the client reads");
        got
    }

    fn report(address: SocketAddr, more: &[&str]) -> serde_json::Value {
        let url = format!("ws://{address}/ws/analytics");
        let given = ["loadtest", "--url", &url, "--duration", "100ms", "--connections", "3"];
        let args = Args::parse_from(given.iter().chain(more));
        let target = Target::resolve(&args.url, "ws").expect("a URL");
        let report = Swarm::new(&args, target).expect("a poll").run(&args, None).expect("it polls");
        serde_json::to_value(&report).expect("JSON")
    }

    const SWITCHING: &str =
        "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

    #[test]
    fn a_sound_server_passes() {
        let texts = vec![INIT.to_owned(), event(1), UPDATE.to_owned(), PING.to_owned(), event(2)];
        let (address, thread) = server(3, SWITCHING, texts);
        let report = report(address, &[]);
        assert_eq!(
            (&report["ok"], &report["opened"], &report["expected_closes"]),
            (&true.into(), &3.into(), &3.into())
        );
        assert_eq!((&report["messages"]["new_event"], &report["pongs"]), (&6.into(), &3.into()));
        for got in thread.join().expect("the server served") {
            let head = b"GET /ws/analytics HTTP/1.1\r\n";
            assert!(got.starts_with(head));
        }
    }

    #[test]
    fn a_server_that_loses_repeats_and_reorders_is_found_out() {
        let events = [1, 2, 2, 5, 4].map(event);
        let texts =
            [vec![UPDATE.to_owned(), INIT.to_owned()], events.into(), vec![UPDATE.to_owned(), UPDATE.to_owned()]];
        let (address, thread) = server(3, SWITCHING, texts.concat());
        let report = report(address, &["--answer-pings", "no"]);
        let want = serde_json::json!({
            "message before init": 3, "event delivered twice": 3, "event after a later one": 3, "event lost": 3,
            "slot delivered twice": 3,
        });
        assert_eq!((&report["ok"], &report["findings"]), (&false.into(), &want));
        thread.join().expect("the server served");
    }

    #[test]
    fn a_refusal_is_counted_by_its_status() {
        let (address, thread) = server(3, "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\n\r\n", vec![]);
        let report = report(address, &[]);
        assert_eq!((&report["ok"], &report["refused"]), (&false.into(), &serde_json::json!({"429": 3})));
        thread.join().expect("the server served");
    }
}
