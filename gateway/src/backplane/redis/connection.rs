//! One connection to Redis that looks after itself.
//!
//! The client library reconnects, but trusts silence: a peer that died without a word (a lost machine, a frozen
//! process) is noticed when the kernel gives up, after many minutes, and the library's own watchdog ends neither a
//! connection that is written to steadily nor one that waits in a blocking read. Its defaults are unsafe too: no
//! reconnecting, no timeouts, an unbounded queue, in-flight commands sent twice.
//!
//! So each connection has a supervisor: it starts the library's task and owns it, learns of each new connection,
//! looks at the server behind it before anybody may use it, and asks it every two seconds whether it is there. Two
//! questions without an answer, or a read that outlasted its bound, and the connection is made anew. What counts as no
//! answer is time in which this process itself was awake ([`super::patience`]).
//!
//! Deliberately absent: TCP keepalive. It would tell later, and less, than the questions do.

use std::sync::Arc;
use std::time::Duration;

use fred::clients::WithOptions;
use fred::error::Error;
use fred::interfaces::{ClientLike, EventInterface, KeysInterface};
use fred::types::config::{Options, Server};
use fred::types::{ClusterHash, ConnectHandle};
use shared::keys::SCHEMA_VERSION;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::patience::patiently;
use crate::backplane::{BackplaneError, Result};
use crate::metrics::Metrics;

/// Longest wait for an answer to a command, in time in which this process was awake ([`patiently`]).
pub(super) const COMMAND_TIMEOUT: Duration = Duration::from_secs(2);
/// The library's own timers know nothing of a process that was not awake; ours are around every call.
pub(super) const NO_TIMER: Duration = Duration::ZERO;
/// Longest wait for a connection, within [`COMMAND_TIMEOUT`]. Waiting bridges a reconnect, and keeps a caller that
/// tries again at once from spinning.
const CONNECTED_WITHIN: Duration = Duration::from_secs(1);
/// How often a connection is asked whether it is there.
const PING_INTERVAL: Duration = Duration::from_secs(2);
/// Questions without an answer until the connection is made anew.
const PINGS_LOST_MAX: u32 = 2;
/// Pause before the library's task is started again after it ended.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// A connection that fails again is mentioned at most this often, however often it is made.
const MENTION_EVERY: Duration = Duration::from_secs(10);
/// Longest wait for a connection to say goodbye.
const QUIT_WITHIN: Duration = Duration::from_millis(500);

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Commands and scripts. It speaks for the backplane in `backplane_up`.
    Commands,
    /// Blocking reads: a question would wait behind them, and their own bound answers it.
    Reads,
    /// The legacy channel.
    Subscription,
}

/// What is known of the server at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Nothing yet.
    Unknown,
    /// It will do.
    Usable,
    /// It will not.
    Unusable(&'static str),
}

/// A connection and its supervisor, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Link<C> {
    client: C,
    verdict: watch::Receiver<Verdict>,
    made: watch::Receiver<u64>,
    suspect: Arc<Notify>,
    _end: DropGuard,
}

/// How a supervisor asks, and for what.
#[derive(Debug, Clone)]
pub(super) struct Questions {
    /// Says which node of a cluster is asked: see [`ask_options`].
    pub(super) options: Options,
    /// The key that holds the version of the contract.
    pub(super) schema_key: String,
}

impl<C: ClientLike + EventInterface + KeysInterface + std::fmt::Debug + 'static> Link<C> {
    /// Starts connecting, and a supervisor on `tasks` that goes on until `end` or until the link is dropped.
    pub(super) fn open(
        client: C,
        role: Role,
        questions: Questions,
        metrics: Arc<Metrics>,
        tasks: &TaskTracker,
        end: &CancellationToken,
    ) -> Self {
        let (verdict, watched) = watch::channel(Verdict::Unknown);
        let (made, counted) = watch::channel(0);
        let suspect = Arc::new(Notify::new());
        let end = end.child_token();
        let supervisor = Supervisor {
            client: client.clone(),
            role,
            ask: client.with_options(&questions.options),
            read: client.with_options(&Options { cluster_hash: None, ..questions.options }),
            schema_key: questions.schema_key,
            metrics,
            verdict,
            made,
            suspect: Arc::clone(&suspect),
            pings_lost: 0,
            failures: 0,
            mentioned: false,
            mentioned_at: None,
            connected_before: false,
            checked: false,
            is_replica: false,
        };
        tasks.spawn(supervisor.run(end.clone()));
        Self { client, verdict: watched, made: counted, suspect, _end: end.drop_guard() }
    }

    /// The client, once it is connected to a server that will do.
    ///
    /// # Errors
    /// [`BackplaneError::Incompatible`] when the server will not do, [`BackplaneError::Unreachable`] when there is
    /// none within a second.
    pub(super) async fn ready(&self) -> Result<&C> {
        let mut verdict = self.verdict.clone();
        let usable = async {
            loop {
                match *verdict.borrow_and_update() {
                    Verdict::Unusable(reason) => return Err(BackplaneError::Incompatible(reason)),
                    Verdict::Usable if self.client.is_connected() => return Ok(&self.client),
                    Verdict::Usable | Verdict::Unknown => {}
                }
                // Told anew for each connection; an error means that the supervisor has ended.
                verdict.changed().await.map_err(|_| BackplaneError::Unreachable)?;
            }
        };
        timeout(CONNECTED_WITHIN, usable).await.unwrap_or(Err(BackplaneError::Unreachable))
    }

    /// How many connections have been made so far: tells whether two answers may be of two servers.
    pub(super) fn made(&self) -> u64 {
        *self.made.borrow()
    }

    /// The client, connected or not.
    pub(super) fn client(&self) -> &C {
        &self.client
    }

    /// Says that the other end has stopped answering: the connection is made anew.
    pub(super) fn suspect(&self) {
        self.suspect.notify_one();
    }
}

struct Supervisor<C: ClientLike> {
    client: C,
    role: Role,
    /// Asks the server that matters to this connection.
    ask: WithOptions<C>,
    /// Reads the key wherever it is.
    read: WithOptions<C>,
    schema_key: String,
    metrics: Arc<Metrics>,
    verdict: watch::Sender<Verdict>,
    made: watch::Sender<u64>,
    suspect: Arc<Notify>,
    pings_lost: u32,
    /// Failures since the last connection.
    failures: u64,
    /// Whether the log knows that there is no connection.
    mentioned: bool,
    mentioned_at: Option<Instant>,
    connected_before: bool,
    /// Whether the server behind the present connection has been looked at.
    checked: bool,
    /// The server at the other end cannot be written to.
    is_replica: bool,
}

impl<C: ClientLike + EventInterface + KeysInterface + 'static> Supervisor<C> {
    async fn run(mut self, end: CancellationToken) {
        let mut library = self.client.connect();
        tokio::select! {
            biased;
            () = end.cancelled() => {}
            () = self.watch(&mut library) => {}
        }
        self.finish(library).await;
    }

    async fn watch(&mut self, library: &mut ConnectHandle) {
        let mut connections = self.client.reconnect_rx();
        let mut errors = self.client.error_rx();
        let mut ask = interval(PING_INTERVAL);
        ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Each branch is cancel safe: a receive, a notification, a tick, a handle that is polled again. Errors
            // come before connections: the last word is whether the newest connection answers.
            tokio::select! {
                biased;
                ended = &mut *library => {
                    self.library_ended(ended.map_err(|_| "panic"));
                    // Only configuration errors get here; one of them can heal: a server that was no cluster yet.
                    sleep(RESTART_PAUSE).await;
                    *library = self.client.connect();
                }
                error = errors.recv() => match error {
                    Ok((error, server)) => self.failed(&error, server.as_ref()),
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => errors = self.client.error_rx(),
                },
                connected = connections.recv() => match connected {
                    Ok(_) | Err(RecvError::Lagged(_)) => {
                        self.made.send_modify(|made| *made += 1);
                        self.checked = false;
                        self.look().await;
                        // A cluster tells of each of its nodes; one look was enough.
                        while connections.try_recv().is_ok() {}
                    }
                    Err(RecvError::Closed) => connections = self.client.reconnect_rx(),
                },
                () = self.suspect.notified() => self.reconnect().await,
                _ = ask.tick() => {
                    let fit = self.checked && *self.verdict.borrow() == Verdict::Usable;
                    match (self.client.is_connected(), fit) {
                        (false, _) => {}
                        // Who was the primary, or whose name it has, is another server by now.
                        (true, false) if self.is_replica => self.connect_anew().await,
                        (true, false) => self.look().await,
                        (true, true) if self.role == Role::Reads => {}
                        (true, true) => self.ping().await,
                    }
                }
            }
        }
    }

    /// Looks at the server behind a new connection, before it is used. Tried again until it answers, and while it
    /// will not do.
    async fn look(&mut self) {
        let verdict = match self.ask_server().await {
            Seen::Nobody => return,
            Seen::Replica => return self.found_replica(),
            Seen::Server(verdict) => verdict,
        };
        let news = self.verdict.send_replace(verdict) != verdict || !self.checked;
        if let Verdict::Unusable(reason) = verdict {
            if news && self.role == Role::Commands {
                tracing::error!(reason, "this redis cannot be used");
                self.metrics.backplane_up.set(0);
            }
            self.checked = true;
            return;
        }
        if news && self.role == Role::Commands {
            if self.mentioned || !self.connected_before {
                tracing::info!(failures = self.failures, again = self.connected_before, "connected to redis");
            }
            self.metrics.backplane_up.set(1);
        }
        if news && self.connected_before {
            self.metrics.backplane_reconnects.inc();
        }
        self.connected_before = true;
        self.checked = true;
        self.failures = 0;
        self.pings_lost = 0;
        (self.mentioned, self.is_replica) = (false, false);
    }

    /// Who is at the other end, and whether it will do.
    async fn ask_server(&self) -> Seen {
        let first = !self.checked && self.role == Role::Commands;
        match patiently(COMMAND_TIMEOUT, self.ask.info::<String>(None)).await {
            Some(Ok(info)) if is_replica(&info) => return Seen::Replica,
            Some(Ok(info)) => {
                if first {
                    warn_of_eviction(&info);
                }
                match judge(&info) {
                    Verdict::Usable => {}
                    unfit => return Seen::Server(unfit),
                }
            }
            Some(Err(error)) if error.details().starts_with("NOPERM") => {
                if first {
                    tracing::warn!("the redis user may not run INFO: version and eviction policy are not checked");
                }
            }
            Some(Err(_)) | None => return Seen::Nobody,
        }
        // Each beat looks at it too, and says it first. But whoever does not speak the contract must not even begin
        // to publish or to tick.
        match patiently(COMMAND_TIMEOUT, self.read.get::<Option<String>, _>(&self.schema_key)).await {
            Some(Ok(schema)) => Seen::Server(judge_schema(schema.as_deref())),
            // Of another type: that is corrupt, and for the beat to say.
            Some(Err(error)) if error.details().starts_with("WRONGTYPE") => Seen::Server(Verdict::Usable),
            Some(Err(_)) | None => Seen::Nobody,
        }
    }

    fn failed(&mut self, error: &Error, server: Option<&Server>) {
        self.failures += 1;
        // Redis 5 and older do not know the first word that we say, and there is no connection to ask through.
        if error.details().starts_with("ERR unknown command") && error.details().contains("HELLO") {
            self.verdict.send_replace(Verdict::Unusable(TOO_OLD));
        }
        if self.role == Role::Commands {
            self.metrics.backplane_up.set(0);
        }
        if self.is_to_be_mentioned() {
            let server = server.map(ToString::to_string);
            tracing::warn!(role = ?self.role, %error, server, "connection to redis failed");
        }
    }

    /// Whether the log should be told of a failure: once in each time without a connection, and not more often than
    /// bearable when such times are many and short.
    fn is_to_be_mentioned(&mut self) -> bool {
        let now = Instant::now();
        let due = !self.mentioned && self.mentioned_at.is_none_or(|at| now.duration_since(at) >= MENTION_EVERY);
        if due {
            (self.mentioned, self.mentioned_at) = (true, Some(now));
        }
        due
    }

    /// A replica answers everything but what matters. Nobody gets to use it, and another connection is tried with each
    /// question from now on; were commands sent there, each refusal would make the library connect again at once.
    fn found_replica(&mut self) {
        self.is_replica = true;
        self.failures += 1;
        self.verdict.send_replace(Verdict::Unknown);
        if self.role == Role::Commands {
            self.metrics.backplane_up.set(0);
        }
        if self.is_to_be_mentioned() {
            tracing::warn!(role = ?self.role, "this redis is a replica and cannot be written to; trying again");
        }
    }

    fn library_ended(&self, ended: Result<Result<(), Error>, &'static str>) {
        let reason = match ended {
            Ok(Ok(())) => "closed".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(panic) => panic.to_owned(),
        };
        tracing::error!(role = ?self.role, reason, "the redis client gave up; it is started again");
    }

    async fn ping(&mut self) {
        let answered = matches!(patiently(COMMAND_TIMEOUT, self.ask.ping::<()>(None)).await, Some(Ok(())));
        if answered {
            self.pings_lost = 0;
            if self.role == Role::Commands {
                self.metrics.backplane_up.set(1);
            }
            return;
        }
        self.pings_lost += 1;
        if self.role == Role::Commands {
            self.metrics.backplane_up.set(0);
        }
        if self.pings_lost >= PINGS_LOST_MAX {
            self.reconnect().await;
        }
    }

    /// Makes the connection anew. Bounded: while there is no server the library goes on trying by itself.
    async fn reconnect(&mut self) {
        self.pings_lost = 0;
        self.failures += 1;
        if self.is_to_be_mentioned() {
            tracing::warn!(role = ?self.role, "redis does not answer; the connection is made anew");
        }
        self.connect_anew().await;
    }

    async fn connect_anew(&self) {
        if let Ok(Err(error)) = timeout(COMMAND_TIMEOUT, self.client.force_reconnection()).await {
            tracing::debug!(role = ?self.role, %error, "reconnecting failed");
        }
    }

    async fn finish(self, library: ConnectHandle) {
        if timeout(QUIT_WITHIN, self.client.quit()).await.is_err() {
            tracing::debug!(role = ?self.role, "redis did not take the goodbye");
        }
        library.abort();
        // Cancelled, or done: either way it has ended.
        let _ = library.await;
        if self.role == Role::Commands {
            self.metrics.backplane_up.set(0);
        }
    }
}

/// Who was found at the other end of a connection.
enum Seen {
    /// It does not answer.
    Nobody,
    /// A server that follows another, and cannot be written to.
    Replica,
    /// A server, and whether it will do.
    Server(Verdict),
}

/// What a node of another release is told, here and by its beats.
pub(super) const OTHER_SCHEMA: &str = "key schema: the data there follow another version of the contract";
/// Whether INFO is that of a server which follows another.
fn is_replica(info: &str) -> bool {
    info.lines().any(|line| line.trim_end() == "role:slave")
}

const TOO_OLD: &str = "Redis 7 or newer, or Valkey, is needed";
const REDIS_MAJOR_MIN: u64 = 7;

/// Reads what INFO says of the version.
fn judge(info: &str) -> Verdict {
    let major = field(info, "redis_version").and_then(|version| version.split('.').next()?.parse::<u64>().ok());
    match major {
        Some(major) if major < REDIS_MAJOR_MIN && field(info, "valkey_version").is_none() => Verdict::Unusable(TOO_OLD),
        // A server that hides its version is given the benefit of the doubt.
        _ => Verdict::Usable,
    }
}

fn warn_of_eviction(info: &str) {
    if let Some(policy) = field(info, "maxmemory_policy").filter(|policy| *policy != "noeviction") {
        tracing::warn!(
            policy,
            "redis may evict keys when memory is short: visitors, leases and caps can vanish; set maxmemory-policy \
             to noeviction"
        );
    }
}

fn field<'i>(info: &'i str, name: &str) -> Option<&'i str> {
    info.lines().find_map(|line| line.trim_end().strip_prefix(name)?.strip_prefix(':'))
}

/// A node runs beside versions that differ by one.
fn judge_schema(schema: Option<&str>) -> Verdict {
    match schema.map(str::parse::<u32>) {
        Some(Ok(schema)) if schema.abs_diff(SCHEMA_VERSION) > 1 => Verdict::Unusable(OTHER_SCHEMA),
        // None yet, or no number: the beat writes it, or says that it is corrupt.
        _ => Verdict::Usable,
    }
}

/// Options of the questions that a supervisor asks.
pub(super) fn ask_options(slot: u16) -> Options {
    Options {
        timeout: Some(NO_TIMER),
        cluster_hash: Some(ClusterHash::Custom(slot)),
        max_attempts: Some(1),
        ..Options::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_decides() {
        let check = |info: &str, want| assert_eq!(judge(info), want, "{info:?}");
        check("# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\n", Verdict::Usable);
        check("redis_version:8.2.1\r\n", Verdict::Usable);
        check("redis_version:6.2.14\r\n", Verdict::Unusable(TOO_OLD));
        check("redis_version:6.0.0\r\nserver_name:valkey\r\nvalkey_version:9.0.0\r\n", Verdict::Usable);
        check("redis_version:unknown\r\n", Verdict::Usable);
        check("", Verdict::Usable);
    }

    #[test]
    fn a_contract_may_differ_by_one() {
        let check = |schema, want| assert_eq!(judge_schema(schema), want, "{schema:?}");
        check(None, Verdict::Usable);
        check(Some("x"), Verdict::Usable);
        check(Some("0"), Verdict::Usable);
        check(Some("2"), Verdict::Usable);
        check(Some("3"), Verdict::Unusable(OTHER_SCHEMA));
    }
}
