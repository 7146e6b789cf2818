//! What a client's message means: pure decisions on a text, the socket's short history, and the time.
//!
//! A viewer has one thing to say, `pong`. Whatever else arrives is a mistake or an attack, and must cost the node
//! less than it costs the sender. So the rate is looked at before the text is parsed, what is over it is dropped
//! unread, and who keeps it up is closed. One message has precedence over the rate: a pong while a ping is open.
//! A client that has just used up its rate must not be closed for a missing pong that it did send.
//!
//! A socket's history is two words ([`Session`]); the rates themselves stand once per node in [`Rules`]. Governor's
//! limiters are made for a map of keys; here the key *is* the state, so that it lives and dies with the socket and no
//! second map of all sockets exists.
//!
//! Deliberately absent: IO, metrics, and any reaction to what is decided here.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use governor::clock::{Clock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::{Quota, RateLimiter};
use shared::close::CloseReason;
use shared::message::{ClientMessage, ParseBuffers};

/// WebSocket ping and pong frames that a client may send per second, and at once.
pub const CONTROL_FRAMES_PER_SECOND: u32 = 10;
/// This many messages may be dropped within [`DROPS_WINDOW`]; one more closes the socket.
pub const DROPS_MAX: usize = 20;
/// See [`DROPS_MAX`].
pub const DROPS_WINDOW: Duration = Duration::from_secs(10);

/// What the node remembers of one socket's behaviour.
#[derive(Debug, Default)]
pub struct Session {
    messages: Arrival,
    controls: Arrival,
    /// Only for sockets that were over a rate once.
    drops: Option<Box<Drops>>,
}

/// Whether the socket owes a pong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heartbeat {
    /// A ping was sent and is not answered yet.
    PingOpen,
    /// It is not.
    Idle,
}

/// What to do about a text message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// A pong: an open ping is answered by it.
    Pong,
    /// Well-formed, but nothing that this server knows.
    Unknown,
    /// Over the rate: it was not looked at.
    Dropped,
    /// Close the socket.
    Close(CloseReason),
}

/// What to do about a WebSocket ping or pong frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlDecision {
    /// Treat it as RFC 6455 says.
    Accept,
    /// Over the rate: as if it had not come.
    Dropped,
    /// Close the socket.
    Close(CloseReason),
}

/// The rules that hold for all sockets of a node.
pub struct Rules<C: Clock = NodeClock> {
    messages: Limiter<C>,
    controls: Limiter<C>,
    clock: C,
    origin: C::Instant,
}

type Limiter<C> = RateLimiter<Arrival, InTheKey, C, NoOpMiddleware<<C as Clock>::Instant>>;

impl<C: Clock> fmt::Debug for Rules<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rules")
    }
}

impl<C: Clock + Clone> Rules<C> {
    /// Rules by which a client may send `messages_per_second`, and `message_burst` at once. Zeros count as ones.
    #[must_use]
    pub fn new(messages_per_second: u32, message_burst: u32, clock: C) -> Self {
        let at_least_one = |n: u32| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
        let messages = Quota::per_second(at_least_one(messages_per_second)).allow_burst(at_least_one(message_burst));
        let controls = Quota::per_second(at_least_one(CONTROL_FRAMES_PER_SECOND));
        Self {
            messages: RateLimiter::new(messages, InTheKey, clock.clone()),
            controls: RateLimiter::new(controls, InTheKey, clock.clone()),
            origin: clock.now(),
            clock,
        }
    }

    /// Judges a text message. `text` is used as scratch space; the caller has bounded its length and checked that it
    /// is UTF-8.
    pub fn text(&self, session: &mut Session, text: &mut [u8], heartbeat: Heartbeat) -> Decision {
        let within_rate = self.messages.check_key(&session.messages).is_ok();
        if !within_rate && heartbeat == Heartbeat::Idle {
            return self.drop_message(session);
        }
        match parse(text) {
            None => Decision::Close(CloseReason::InvalidPayload),
            Some(ClientMessage::Pong) if heartbeat == Heartbeat::PingOpen => Decision::Pong,
            Some(_) if !within_rate => self.drop_message(session),
            Some(ClientMessage::Pong) => Decision::Pong,
            Some(ClientMessage::Unknown) => Decision::Unknown,
        }
    }

    /// Judges a WebSocket ping or pong frame.
    pub fn control(&self, session: &mut Session) -> ControlDecision {
        if self.controls.check_key(&session.controls).is_ok() {
            return ControlDecision::Accept;
        }
        match self.drop_message(session) {
            Decision::Close(reason) => ControlDecision::Close(reason),
            _ => ControlDecision::Dropped,
        }
    }

    fn drop_message(&self, session: &mut Session) -> Decision {
        let now = Duration::from_nanos(self.clock.now().duration_since(self.origin).as_u64());
        match session.drops.get_or_insert_default().add(now) {
            Persistence::Once => Decision::Dropped,
            Persistence::Persistent => Decision::Close(CloseReason::MessageRate),
        }
    }
}

fn parse(text: &mut [u8]) -> Option<ClientMessage> {
    thread_local! {
        static BUFFERS: RefCell<ParseBuffers> = RefCell::default();
    }
    BUFFERS.with_borrow_mut(|buffers| ClientMessage::parse(text, buffers)).ok()
}

/// When the last [`DROPS_MAX`] messages were dropped; a ring whose oldest entry is overwritten next.
#[derive(Debug)]
struct Drops {
    at: [Option<Duration>; DROPS_MAX],
    next: usize,
}

enum Persistence {
    Once,
    Persistent,
}

impl Default for Drops {
    fn default() -> Self {
        Self { at: [None; DROPS_MAX], next: 0 }
    }
}

impl Drops {
    /// Notes a drop. It is one too many when as many as are allowed happened within the window before it.
    fn add(&mut self, now: Duration) -> Persistence {
        let oldest = self.at[self.next].replace(now);
        self.next = (self.next + 1) % DROPS_MAX;
        match oldest {
            Some(at) if now.saturating_sub(at) < DROPS_WINDOW => Persistence::Persistent,
            _ => Persistence::Once,
        }
    }
}

/// A limiter's state for one socket: the theoretical arrival time of governor's algorithm (GCRA). 0: none yet.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Arrival(Cell<u64>);

// Governor asks for what a map's key needs, because its own stores are maps. `InTheKey` is none and never hashes.
impl Hash for Arrival {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.get().hash(state);
    }
}

/// A store that keeps the state in the key that it is given.
#[derive(Debug)]
pub(crate) struct InTheKey;

impl StateStore for InTheKey {
    type Key = Arrival;

    fn measure_and_replace<T, F, E>(&self, key: &Arrival, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        // An `Arrival` is not `Sync`: nobody else can be here, so reading and writing need no loop.
        let (result, next) = f(NonZeroU64::new(key.0.get()).map(|state| state.get().into()))?;
        key.0.set(next.into());
        Ok(result)
    }
}

/// The node's clock, as governor wants it.
#[derive(Debug, Clone, Copy)]
pub struct NodeClock(pub crate::clock::Clock);

impl Clock for NodeClock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.now()
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    const PONG: &str = r#"{"type":"pong"}"#;

    fn rules() -> (Rules<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        // Governor takes an arrival of 0 for "none yet"; a real clock is past it.
        clock.advance(Duration::from_secs(1));
        (Rules::new(1, 5, clock.clone()), clock)
    }

    fn say(rules: &Rules<FakeRelativeClock>, session: &mut Session, text: &str, heartbeat: Heartbeat) -> Decision {
        rules.text(session, &mut text.as_bytes().to_vec(), heartbeat)
    }

    #[test]
    fn what_messages_mean() {
        let check = |text: &str, want: Decision| {
            let (rules, _) = rules();
            assert_eq!(say(&rules, &mut Session::default(), text, Heartbeat::Idle), want, "{text}");
        };
        check(PONG, Decision::Pong);
        check(r#"{"type":"pong","timestamp":"2025-12-08T10:30:30Z"}"#, Decision::Pong);
        check(r#"{"type":"hello"}"#, Decision::Unknown);
        check("17", Decision::Unknown);
        check("pong", Decision::Close(CloseReason::InvalidPayload));
        check("", Decision::Close(CloseReason::InvalidPayload));
        check(&"[".repeat(4096), Decision::Close(CloseReason::InvalidPayload));
    }

    #[test]
    fn a_burst_of_five_then_one_each_second() {
        let (rules, clock) = rules();
        let mut session = Session::default();
        let mut told = |heartbeat| say(&rules, &mut session, r#"{"type":"hello"}"#, heartbeat);
        for _ in 0..5 {
            assert_eq!(told(Heartbeat::Idle), Decision::Unknown);
        }
        assert_eq!(told(Heartbeat::Idle), Decision::Dropped);
        // An open ping excuses a pong, nothing else.
        assert_eq!(told(Heartbeat::PingOpen), Decision::Dropped);
        clock.advance(Duration::from_secs(1));
        assert_eq!(told(Heartbeat::Idle), Decision::Unknown);
        assert_eq!(told(Heartbeat::Idle), Decision::Dropped);
    }

    #[test]
    fn a_pong_that_is_owed_is_heard_over_the_rate() {
        let (rules, _) = rules();
        let mut session = Session::default();
        for _ in 0..5 {
            assert_eq!(say(&rules, &mut session, PONG, Heartbeat::Idle), Decision::Pong);
        }
        assert_eq!(say(&rules, &mut session, PONG, Heartbeat::Idle), Decision::Dropped);
        assert_eq!(say(&rules, &mut session, PONG, Heartbeat::PingOpen), Decision::Pong);
    }

    #[test]
    fn the_twenty_first_drop_within_ten_seconds_closes() {
        // Rows: pause between messages after the burst, and whether 100 more of them lead to a close.
        let check = |pause_ms: u64, closes: bool| {
            let (rules, clock) = rules();
            let mut session = Session::default();
            let mut dropped = 0;
            let closed = (0..100).any(|_| {
                clock.advance(Duration::from_millis(pause_ms));
                let decision = say(&rules, &mut session, PONG, Heartbeat::Idle);
                dropped += u32::from(decision == Decision::Dropped);
                decision == Decision::Close(CloseReason::MessageRate)
            });
            assert_eq!(closed, closes, "pause {pause_ms} ms");
            assert!(!closed || dropped >= 20, "closed after {dropped} drops");
        };
        check(0, true);
        check(100, true);
        check(300, true); // 2.3 drops per second: 23 within 10 s
        check(500, false); // 1 drop per second
        check(1000, false);
    }

    #[test]
    fn control_frames_have_their_own_rate() {
        let (rules, clock) = rules();
        let mut session = Session::default();
        for _ in 0..10 {
            assert_eq!(rules.control(&mut session), ControlDecision::Accept);
        }
        for _ in 0..20 {
            assert_eq!(rules.control(&mut session), ControlDecision::Dropped);
        }
        assert_eq!(rules.control(&mut session), ControlDecision::Close(CloseReason::MessageRate));
        clock.advance(Duration::from_secs(1));
        assert_eq!(rules.control(&mut session), ControlDecision::Accept);
        assert_eq!(say(&rules, &mut session, PONG, Heartbeat::Idle), Decision::Pong);
    }

    #[test]
    fn a_session_is_three_words() {
        assert_eq!(size_of::<Session>(), 24);
    }
}
