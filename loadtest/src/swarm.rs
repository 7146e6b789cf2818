//! The sockets of one thread, on one poll.
//!
//! A runtime would spend more on a task and its wake-up than a client spends on a message, and the tester must not
//! be what is measured. So: edge-triggered readiness, a table of sockets, one read buffer. Each is touched only when
//! the kernel has something for it.
//!
//! What is to be done next is read from the [`Control`] at least every [`POLL_MAX`]; how far it has got is written to
//! a board there. Nothing else is shared between threads.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};

use crate::args::{Target, YesNo};
use crate::audit::{Auditor, Chunks, Finding, Meanings, Numbers, Slots};
use crate::control::{Control, Job, SlowManner, Stage};
use crate::latency::Sends;
use crate::pace::Pace;
use crate::socket::{self, End, Reader, Reads, Shared, Socket};
use crate::source;
use crate::tally::{Expected, Tally};

/// What one read can bring.
const READ_BYTES: usize = 256 * 1024;
/// Events of one poll.
const EVENTS: usize = 1024;
/// The longest that a poll sleeps.
const POLL_MAX: Duration = Duration::from_millis(100);
/// [`Job::open_within`] when all come at once, at least: the kernel tries again after 1, 3, 7 and 15 s when the server's queue is full.
const RETURN_WITHIN: Duration = Duration::from_secs(30);
/// For the server to answer our close frames, at least; [`Job::open_within`] if that is more.
const LEAVE_WITHIN: Duration = Duration::from_secs(10);
/// What a life is longer by when it would end before it has begun.
const LIFE_MORE: Duration = Duration::from_millis(20);
/// The code with which a server closes who does not answer pings.
const NO_PONG: u16 = 4408;
/// Connections that are begun before the poll is looked at again.
const CONNECTS_AT_ONCE: usize = 64;
/// How often a slow reader takes its byte.
const SLOW_EVERY: Duration = Duration::from_secs(1);

/// What a thread has to do with events of ours.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// When they were sent.
    pub(crate) sends: Option<Arc<Sends>>,
    /// Who waits for the slowest client.
    pub(crate) pace: Option<Pace>,
}

/// The sockets of a thread and what drives them.
pub(crate) struct Swarm {
    poll: Poll,
    events: Events,
    buffer: Vec<u8>,
    job: Job,
    targets: Vec<Target>,
    control: Arc<Control>,
    /// Number of this thread.
    thread: usize,
    /// By token: the client's number, counted from the job's first.
    sockets: Vec<Option<Socket>>,
    /// Sockets that are not open yet, in the order of their deadlines.
    opening: VecDeque<(Instant, usize)>,
    /// When clients leave to come again.
    lives: BinaryHeap<Reverse<(Instant, usize)>>,
    slow: Vec<usize>,
    slow_due: Instant,
    awake: bool,
    alive: u32,
    leaving: bool,
    shared: Shared,
    /// What is known of clients that ended.
    gone: Vec<Auditor>,
}

impl std::fmt::Debug for Swarm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Swarm").field("thread", &self.thread).field("alive", &self.alive).finish_non_exhaustive()
    }
}

impl Swarm {
    /// A swarm without sockets.
    ///
    /// # Errors
    /// When the system has no poll left, or a URL is not one.
    pub(crate) fn new(job: Job, thread: usize, control: Arc<Control>, watch: Watch) -> io::Result<Self> {
        let targets: Result<Vec<Target>, String> =
            job.urls.iter().map(|url| Target::resolve(url, "ws").map(|target| target.with_query(&job.query))).collect();
        let now = Instant::now();
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS),
            buffer: vec![0; READ_BYTES],
            targets: targets.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?,
            sockets: Vec::with_capacity(job.connections as usize),
            opening: VecDeque::new(),
            lives: BinaryHeap::new(),
            slow: Vec::new(),
            slow_due: now,
            awake: false,
            alive: 0,
            leaving: false,
            shared: Shared {
                answer_pings: job.answer_pings,
                slots: Slots::new(job.interval_ms),
                late: job.late,
                meanings: Meanings::default(),
                chunks: Chunks::default(),
                sends: watch.sends,
                pace: watch.pace,
                origin: now,
                read_at: now,
                awaited: 0,
                tally: Tally::default(),
            },
            job,
            control,
            thread,
            gone: Vec::new(),
        })
    }

    /// Opens, does what it is told, leaves, and says what it saw.
    ///
    /// # Errors
    /// When the poll fails.
    pub(crate) fn run(mut self) -> io::Result<Tally> {
        self.open()?;
        let mut done = Stage::Open;
        self.control.reached(self.thread, done);
        loop {
            let stage = self.control.stage();
            match stage {
                Stage::Leave => break,
                Stage::Scatter if done < stage => self.scatter()?,
                Stage::Wake if done < stage => self.wake(),
                _ => self.serve_until(Instant::now() + POLL_MAX, |_| false)?,
            }
            if stage == Stage::Settle {
                self.control.behind(self.thread, self.behind(self.control.last_number()));
            }
            if done < stage {
                done = stage;
                self.control.reached(self.thread, done);
            }
        }
        let behind = self.behind(self.control.last_number());
        self.shared.tally.count("socket without the last events", u64::from(behind));
        self.note_waits();
        self.shared.tally.open_at_end = self.sockets.iter().flatten().filter(|socket| socket.is_open()).count() as u64;
        self.leave()?;
        self.judge();
        Ok(self.shared.tally)
    }

    /// Opens sockets at the job's rate, and waits until each is open or is not going to be.
    fn open(&mut self) -> io::Result<()> {
        let began = Instant::now();
        for token in 0..self.job.connections as usize {
            #[expect(clippy::cast_precision_loss, reason = "a count of sockets")]
            let due = began + Duration::from_secs_f64(token as f64 / self.job.rate);
            if token.is_multiple_of(CONNECTS_AT_ONCE) || Instant::now() < due {
                self.serve_until(due, |_| false)?;
            }
            self.sockets.push(None);
            self.connect(token, Auditor::default())?;
        }
        self.serve_until(Instant::now() + self.job.open_within * 2, |swarm| swarm.shared.awaited == 0)
    }

    fn connect(&mut self, token: usize, auditor: Auditor) -> io::Result<()> {
        let index = self.job.first + u32::try_from(token).unwrap_or(u32::MAX);
        // Each server gets a contiguous share of all clients.
        let at = (u64::from(index) * self.targets.len() as u64) / u64::from(self.job.total.max(1));
        let at = usize::try_from(at).unwrap_or(0).min(self.targets.len() - 1);
        let Some(target) = self.targets.get(at) else { return Ok(()) };
        let on_loopback = matches!(target.address, SocketAddr::V4(v4) if v4.ip().is_loopback());
        let source = (self.job.spread > 0 && on_loopback && !self.job.forwarded_for)
            .then(|| SocketAddr::from((source::address(index, self.job.spread), 0)));
        let forwarded = self.job.forwarded_for.then(|| source::forwarded(index, self.job.spread));
        let request = socket::request(&target.host, &target.path, forwarded);
        let reader = if self.job.is_slow(index) { Reader::Slow } else { Reader::Prompt };
        let connected = Socket::connect(target.address, source, request, reader);
        let mut socket = match connected {
            Ok(socket) => socket,
            Err(error) => {
                self.shared.tally.ended(socket::not_connected(&error), Expected::No);
                self.gone.push(auditor);
                return Ok(());
            }
        };
        self.poll.registry().register(socket.stream(), Token(token), Interest::READABLE | Interest::WRITABLE)?;
        socket.auditor = auditor;
        if reader == Reader::Slow {
            self.slow.push(token);
        } else if let Some(pace) = &mut self.shared.pace {
            pace.join();
        }
        if let Some(place) = self.sockets.get_mut(token) {
            *place = Some(socket);
        }
        self.alive += 1;
        self.shared.awaited += 1;
        let least = if self.shared.tally.scattered.is_some() { RETURN_WITHIN } else { Duration::ZERO };
        let within = self.job.open_within.max(least);
        self.opening.push_back((Instant::now() + within, token));
        if let Some(life) = self.job.life(index, self.shared.tally.upgrade.count()) {
            self.lives.push(Reverse((Instant::now() + life, token)));
        }
        Ok(())
    }

    /// Serves the sockets until `deadline`, or until `done` says so.
    fn serve_until(&mut self, deadline: Instant, done: impl Fn(&Self) -> bool) -> io::Result<()> {
        loop {
            self.give_up_late_ones()?;
            self.end_lives()?;
            self.read_slow()?;
            let left = deadline.saturating_duration_since(Instant::now());
            // At least once, so that who is behind with connecting still hears.
            match self.poll.poll(&mut self.events, Some(left.min(POLL_MAX))) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            self.serve_events()?;
            self.control.note(self.thread, self.alive, self.shared.awaited, &self.shared.tally);
            if left.is_zero() || done(self) {
                return Ok(());
            }
        }
    }

    fn serve_events(&mut self) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        for event in &events {
            let Token(token) = event.token();
            let Some(socket) = self.sockets.get_mut(token).and_then(Option::as_mut) else { continue };
            let mut result = Ok(());
            if event.is_writable() {
                result = socket.writable();
            }
            let sleeps = socket.reader == Reader::Slow && socket.auditor.has_begun() && !self.awake;
            if result.is_ok() && event.is_readable() && !sleeps {
                let reads = if event.is_read_closed() { Reads::ToTheEnd } else { Reads::UntilShort };
                result = socket.readable(&mut self.shared, &mut buffer, reads);
            }
            if result.is_ok() && self.leaving && socket.auditor.has_begun() {
                result = socket.leave();
            }
            if let Err(end) = result {
                self.end(token, end)?;
            }
        }
        (self.buffer, self.events) = (buffer, events);
        Ok(())
    }

    /// Each slow reader takes its byte, if that is its manner.
    fn read_slow(&mut self) -> io::Result<()> {
        let now = Instant::now();
        if self.job.slow_manner != SlowManner::Drip || self.awake || now < self.slow_due {
            return Ok(());
        }
        self.slow_due = now + SLOW_EVERY;
        self.read_all_slow(&mut [0], Reads::Once)
    }

    fn wake(&mut self) {
        self.awake = true;
        let mut buffer = std::mem::take(&mut self.buffer);
        // What ended meanwhile is counted like any other end; the poll does not fail here.
        let _ = self.read_all_slow(&mut buffer, Reads::ToTheEnd);
        self.buffer = buffer;
    }

    fn read_all_slow(&mut self, buffer: &mut [u8], reads: Reads) -> io::Result<()> {
        for token in self.slow.clone() {
            let Some(socket) = self.sockets.get_mut(token).and_then(Option::as_mut) else { continue };
            if !socket.is_open() {
                continue;
            }
            if let Err(end) = socket.readable(&mut self.shared, buffer, reads) {
                self.end(token, end)?;
            }
        }
        Ok(())
    }

    fn give_up_late_ones(&mut self) -> io::Result<()> {
        let now = Instant::now();
        while let Some((deadline, token)) = self.opening.front().copied() {
            let open = self.sockets.get(token).and_then(Option::as_ref).is_none_or(Socket::is_open);
            if !open && now < deadline {
                return Ok(());
            }
            self.opening.pop_front();
            if !open {
                self.end(token, End::Failed("no answer in time"))?;
            }
        }
        Ok(())
    }

    /// Who has lived long enough leaves; who has not got its `init` yet is asked again later.
    fn end_lives(&mut self) -> io::Result<()> {
        let now = Instant::now();
        while let Some(Reverse((due, token))) = self.lives.peek().copied() {
            if now < due {
                return Ok(());
            }
            self.lives.pop();
            let Some(socket) = self.sockets.get_mut(token).and_then(Option::as_mut) else { continue };
            if !socket.auditor.has_begun() {
                self.lives.push(Reverse((now + LIFE_MORE, token)));
            } else if let Err(end) = socket.leave() {
                self.end(token, end)?;
            }
        }
        Ok(())
    }

    fn end(&mut self, token: usize, end: End) -> io::Result<()> {
        let Some(mut socket) = self.sockets.get_mut(token).and_then(Option::take) else { return Ok(()) };
        self.alive -= 1;
        if !socket.auditor.has_begun() {
            self.shared.awaited = self.shared.awaited.saturating_sub(1);
        }
        if let Some(pace) = self.shared.pace.as_mut().filter(|_| socket.reader == Reader::Prompt) {
            pace.leave(socket.auditor.last());
        }
        let refuses_pings = self.shared.answer_pings == YesNo::No;
        let expected = match &end {
            End::Closed(1000, _) if socket.is_leaving() => Expected::Yes,
            // It answers no pings any more, and the server may not have read its goodbye yet. Nor does who has yet to
            // say it when all are told to leave: a million goodbyes go before its answer.
            End::Closed(NO_PONG, _) if socket.is_leaving() || self.leaving => Expected::Yes,
            End::Closed(code, _) if refuses_pings && *code == NO_PONG => Expected::Yes,
            // A server may close who does not read.
            End::Closed(..) | End::Lost(_) if socket.reader == Reader::Slow => Expected::Yes,
            _ => Expected::No,
        };
        self.shared.tally.ended(end, expected);
        let auditor = std::mem::take(&mut socket.auditor);
        // The descriptor is closed with the socket, and its registration with the descriptor.
        let comes_again = socket.is_leaving() && !self.leaving;
        drop(socket);
        if comes_again {
            return self.return_of(token, auditor);
        }
        self.gone.push(auditor);
        Ok(())
    }

    fn return_of(&mut self, token: usize, mut auditor: Auditor) -> io::Result<()> {
        auditor.away();
        self.connect(token, auditor)
    }

    /// All drop their connections without a word, and come again at once.
    fn scatter(&mut self) -> io::Result<()> {
        let mut dropped = Vec::new();
        for (token, place) in self.sockets.iter_mut().enumerate() {
            if let Some(mut socket) = place.take() {
                dropped.push((token, std::mem::take(&mut socket.auditor)));
            }
        }
        let count = u32::try_from(dropped.len()).unwrap_or(u32::MAX);
        self.alive = self.alive.saturating_sub(count);
        self.shared.awaited = 0;
        self.opening.clear();
        self.shared.tally.scattered = Some(Instant::now());
        for (n, (token, auditor)) in dropped.into_iter().enumerate() {
            if n.is_multiple_of(CONNECTS_AT_ONCE) {
                self.serve_until(Instant::now(), |_| false)?;
            }
            self.return_of(token, auditor)?;
        }
        self.serve_until(Instant::now() + RETURN_WITHIN, |swarm| swarm.shared.awaited == 0)
    }

    /// How many open sockets that listen to events have not got the last one. Where clients come and go, one that has
    /// got none since it came may have come after the last.
    fn behind(&self, last: Option<u64>) -> u32 {
        let may_have_missed = |auditor: &Auditor| self.job.lives.is_some() && auditor.is_excused();
        let behind = |socket: &&Socket| {
            socket.reader == Reader::Prompt
                && socket.auditor.last().is_some_and(|seen| Some(seen) < last)
                && !may_have_missed(&socket.auditor)
        };
        u32::try_from(self.sockets.iter().flatten().filter(behind).count()).unwrap_or(u32::MAX)
    }

    /// Leaves the server in good order.
    fn leave(&mut self) -> io::Result<()> {
        self.say_goodbye()?;
        self.depart()
    }

    /// Who has got its `init` leaves; who waits for it will as soon as it is there (`serve_events`).
    fn say_goodbye(&mut self) -> io::Result<()> {
        self.leaving = true;
        self.lives.clear();
        self.wake();
        self.leave_if(|socket| socket.auditor.has_begun())
    }

    /// Waits for those who are on their way in, then until the server has answered everybody.
    fn depart(&mut self) -> io::Result<()> {
        self.serve_until(Instant::now() + self.job.open_within, |swarm| swarm.shared.awaited == 0)?;
        self.leave_if(|_| true)?;
        self.serve_until(Instant::now() + LEAVE_WITHIN.max(self.job.open_within), |swarm| swarm.alive == 0)?;
        self.shared.tally.count("close frame not answered", u64::from(self.alive));
        Ok(())
    }

    fn leave_if(&mut self, may_leave: fn(&Socket) -> bool) -> io::Result<()> {
        for token in 0..self.sockets.len() {
            if token.is_multiple_of(EVENTS) {
                self.serve_until(Instant::now(), |_| false)?;
            }
            let Some(socket) = self.sockets.get_mut(token).and_then(Option::as_mut) else { continue };
            if may_leave(socket)
                && let Err(end) = socket.leave()
            {
                self.end(token, end)?;
            }
        }
        Ok(())
    }

    /// Who still waits for a new state has waited so long: a tick that never came is no gap that ended.
    fn note_waits(&mut self) {
        let now_ms = self.shared.ms(Instant::now());
        let prompt = self.sockets.iter().flatten().filter(|socket| socket.reader == Reader::Prompt);
        let longest = prompt.filter_map(|socket| socket.auditor.waits_for_state(now_ms)).max();
        // One figure, and only if it is the worst: the others' waits are not over and would shorten the average.
        let gaps = &mut self.shared.tally.state_gap;
        if let Some(wait) = longest.filter(|wait| gaps.longest().is_some_and(|worst| *wait > worst)) {
            gaps.record_duration(wait);
        }
    }

    /// What can be judged at the end only.
    fn judge(&mut self) {
        let nothing = Numbers::default();
        let given_up = self.control.given_up().unwrap_or(&nothing);
        let auditors = self.gone.iter().chain(self.sockets.iter().flatten().map(|socket| &socket.auditor));
        let (mut lost, mut unpinged, mut unserved) = (0, 0, 0);
        let (pings_min, updates_min) = self.job.heard_min;
        for auditor in auditors {
            let (pings, updates) = auditor.heard();
            lost += auditor.lost(given_up);
            unpinged += u64::from(pings < pings_min);
            unserved += u64::from(updates < updates_min);
        }
        self.shared.tally.count("client with too few heartbeats", unpinged);
        self.shared.tally.count("client with too few snapshots", unserved);
        self.shared.tally.count(Finding::LostEvent.text(), lost);
        self.shared.tally.count_silent();
    }
}

#[cfg(test)]
mod tests;
