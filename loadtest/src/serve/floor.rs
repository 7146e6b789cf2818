//! The limit of the machine: one thread that sends the same bytes to all sockets in a loop.
//!
//! Accept, answer, write one message: all in the turn of the poll that brings the request, the answer and the message
//! in one write. A message is sent by walking a vector of sockets and calling `send` on each. No timers, no parsing
//! of what clients say beyond a glance at the first byte, no outbox: whose buffer is full is closed. What a real server
//! costs more than this is what its promises cost.

mod bare;

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

pub(crate) use self::bare::compare;
use super::{announce, event, framed, init, metrics, order};
use crate::args::ServeArgs;
use crate::frame::{self, Opcode};
use crate::socket::ACCEPT;

const LISTENER: Token = Token(usize::MAX);
const CONTROL_LISTENER: Token = Token(usize::MAX - 1);
/// Control connections, counted down from here.
const CONTROLS: usize = usize::MAX - 2;
const CONTROLS_MAX: usize = 8;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 16 * 1024;
/// Events that are ordered and not sent yet.
const WAITING_MAX: usize = 1 << 16;
/// The longest request, and the longest of anything else that is looked at.
const REQUEST_BYTES_MAX: usize = 4096;
/// Events of one poll.
const EVENTS: usize = 1024;
/// The longest that a poll sleeps.
const POLL_MAX: Duration = Duration::from_millis(100);

struct Floor {
    poll: Poll,
    events: Events,
    listener: TcpListener,
    control_listener: TcpListener,
    sockets: Vec<Option<TcpStream>>,
    free: Vec<usize>,
    /// Which sockets are WebSockets and get what is sent.
    open: Vec<bool>,
    controls: Vec<Option<(TcpStream, String)>>,
    /// Ends with the last control connection, once there was one.
    ends: bool,
    waiting: VecDeque<u64>,
    batch: usize,
    greeting: Vec<u8>,
    messages: u64,
    passes: u64,
    /// CPU time of the loop that sends: what of this server is the machine's limit.
    send_loop: Duration,
}

/// Serves until the last control connection is gone.
pub(super) fn serve(args: &ServeArgs) -> io::Result<()> {
    let mut floor = Floor::new(args.listen, args.batch as usize)?;
    announce(floor.listener.local_addr()?, floor.control_listener.local_addr()?)?;
    floor.run(args.events_per_second)
}

fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(at), socket2::Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&at.into())?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from_std(socket.into()))
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

impl Floor {
    fn new(listen_at: SocketAddr, batch: usize) -> io::Result<Self> {
        let mut listener = listen(listen_at)?;
        let mut control_listener = listen(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let poll = Poll::new()?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        poll.registry().register(&mut control_listener, CONTROL_LISTENER, Interest::READABLE)?;
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: \
             {ACCEPT}\r\n\r\n"
        );
        Ok(Self {
            poll,
            events: Events::with_capacity(EVENTS),
            listener,
            control_listener,
            sockets: Vec::new(),
            free: Vec::new(),
            open: Vec::new(),
            controls: Vec::new(),
            ends: false,
            waiting: VecDeque::new(),
            batch,
            greeting: [head.into_bytes(), framed(&init())].concat(),
            messages: 0,
            passes: 0,
            send_loop: Duration::ZERO,
        })
    }

    fn run(&mut self, per_second: f64) -> io::Result<()> {
        let (began, mut own) = (Instant::now(), 0u64);
        while !self.ends {
            let mut wait = if self.waiting.is_empty() { POLL_MAX } else { Duration::ZERO };
            if per_second > 0.0 {
                #[expect(clippy::cast_precision_loss, reason = "a count of events")]
                let due = Duration::from_secs_f64((own + 1) as f64 / per_second);
                if began.elapsed() >= due {
                    own += 1;
                    self.waiting.push_back(own);
                }
                wait = wait.min(due.saturating_sub(began.elapsed()));
            }
            self.turn(wait)?;
        }
        Ok(())
    }

    /// Waits for something to do, at most so long, does it, and sends what is due.
    fn turn(&mut self, wait: Duration) -> io::Result<()> {
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        for event in &events {
            match event.token() {
                LISTENER => self.accept()?,
                CONTROL_LISTENER => self.accept_control()?,
                Token(token) if token > CONTROLS - CONTROLS_MAX => self.obey(CONTROLS - token),
                Token(token) => self.serve(token),
            }
        }
        self.events = events;
        self.send_waiting();
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // A client that is gone already, or no descriptor left: the tester sees it on its side.
                Err(_) => continue,
            };
            stream.set_nodelay(true)?;
            let token = self.free.pop().unwrap_or(self.sockets.len());
            self.poll.registry().register(&mut stream, Token(token), Interest::READABLE)?;
            if token == self.sockets.len() {
                self.sockets.push(Some(stream));
                self.open.push(false);
            } else if let Some(place) = self.sockets.get_mut(token) {
                *place = Some(stream);
            }
        }
    }

    fn serve(&mut self, token: usize) {
        let Some(stream) = self.sockets.get_mut(token).and_then(Option::as_mut) else { return };
        let mut buffer = [0; REQUEST_BYTES_MAX];
        loop {
            let n = match stream.read(&mut buffer) {
                Ok(0) => return self.close(token),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.close(token),
            };
            // A client that leaves is answered by being closed, a request by the whole greeting at once.
            let said = &buffer[..n];
            let answer = if said.starts_with(b"GET /metrics") {
                metrics(self.messages, self.passes, self.send_loop).into_bytes()
            } else if said.starts_with(b"GET ") {
                self.greeting.clone()
            } else if said.first() == Some(&0x88) {
                let mut close = Vec::new();
                frame::write_unmasked(&mut close, Opcode::Close, &1000u16.to_be_bytes());
                close
            } else {
                continue;
            };
            if stream.write(&answer).ok() != Some(answer.len()) || !said.starts_with(b"GET /ws") {
                return self.close(token);
            }
            self.messages += 1;
            if let Some(open) = self.open.get_mut(token) {
                *open = true;
            }
        }
    }

    fn close(&mut self, token: usize) {
        if self.sockets.get_mut(token).and_then(Option::take).is_some() {
            if let Some(open) = self.open.get_mut(token) {
                *open = false;
            }
            self.free.push(token);
        }
    }

    /// Sends of what is waiting one write to each socket: as many messages as `--batch` allows.
    fn send_waiting(&mut self) {
        let count = self.waiting.len().min(self.batch);
        if count > 0 {
            let bytes: Vec<u8> = self.waiting.drain(..count).flat_map(|number| framed(&event(number))).collect();
            self.send(&bytes, count as u64);
        }
    }

    /// The loop that all this is about.
    fn send(&mut self, bytes: &[u8], messages: u64) {
        self.passes += 1;
        let before = cpu_time();
        for (place, open) in self.sockets.iter_mut().zip(&mut self.open) {
            let (Some(stream), true) = (place.as_mut(), *open) else { continue };
            match stream.write(bytes) {
                Ok(n) if n == bytes.len() => self.messages += messages,
                _ => {
                    *open = false;
                    // The tester sees the end, and counts it.
                    let _ = stream.shutdown(std::net::Shutdown::Both);
                }
            }
        }
        self.send_loop += cpu_time().saturating_sub(before);
    }

    fn accept_control(&mut self) -> io::Result<()> {
        while let Ok((mut stream, _)) = self.control_listener.accept() {
            let at = self.controls.iter().position(Option::is_none).unwrap_or(self.controls.len());
            if at >= CONTROLS_MAX {
                continue;
            }
            self.poll.registry().register(&mut stream, Token(CONTROLS - at), Interest::READABLE)?;
            if at == self.controls.len() {
                self.controls.push(None);
            }
            if let Some(place) = self.controls.get_mut(at) {
                *place = Some((stream, String::new()));
            }
        }
        Ok(())
    }

    fn obey(&mut self, at: usize) {
        let Some(place) = self.controls.get_mut(at) else { return };
        let Some((stream, kept)) = place.as_mut() else { return };
        let mut buffer = [0; REQUEST_BYTES_MAX];
        loop {
            match stream.read(&mut buffer) {
                Ok(n) if n > 0 => kept.push_str(&String::from_utf8_lossy(&buffer[..n])),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                _ => {
                    *place = None;
                    self.ends = self.controls.iter().all(Option::is_none);
                    return;
                }
            }
        }
        while let Some((line, rest)) = kept.split_once('\n') {
            if let Some((first, count)) = order(line) {
                let room = (WAITING_MAX - self.waiting.len()) as u64;
                self.waiting.extend(first..first + count.min(room));
            }
            *kept = rest.to_owned();
        }
    }
}
